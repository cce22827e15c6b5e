"""The layer: what it computes, and that it behaves as a module should."""

import copy
import io

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import ndgpa
from ndgpa.nn import SpatialAttention

IMAGE = ndgpa.Image((6, 8), 2)


def test_it_is_projections_around_the_operator() -> None:
    layer = SpatialAttention(8, heads=2, key_dim=6, value_dim=4, out_dim=5, operator=ndgpa.Full())
    x, context = torch.randn(2, 48, 8), torch.randn(2, 10, 6)
    out = layer(x, IMAGE, context, ndgpa.Sequence(10, 3))
    heads = []
    for h in range(2):
        q = x @ layer.to_query.weight[4 * h : 4 * h + 4].mT
        k = context @ layer.to_key.weight[4 * h : 4 * h + 4].mT
        v = context @ layer.to_value.weight[2 * h : 2 * h + 2].mT
        heads.append((q @ k.mT / 2).softmax(-1) @ v)
    torch.testing.assert_close(out, layer.to_out(torch.cat(heads, -1)))


def test_without_a_context_it_attends_to_itself() -> None:
    layer = SpatialAttention(8, operator=ndgpa.GPA(3))
    x = torch.randn(1, 48, 8)
    assert torch.equal(layer(x, IMAGE), layer(x, IMAGE, x, IMAGE))


def test_operators_are_swapped_by_one_argument() -> None:
    layers = [
        SpatialAttention(8, operator=operator)
        for operator in (ndgpa.GPA(3), ndgpa.Full(), ndgpa.operators.NoAttention())
    ]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x = torch.randn(1, 48, 8)
    kept, full, nothing = (layer(x, IMAGE) for layer in layers)
    assert not torch.equal(kept, full)
    assert torch.equal(nothing, layers[0].to_out.bias.expand_as(nothing))
    layers[0].operator = ndgpa.GPA(IMAGE.num_blocks)
    torch.testing.assert_close(layers[0](x, IMAGE), full)
    layers[0].operator = ndgpa.operators.Performer(8)  # a module, and from a module to none
    assert "operator" in dict(layers[0].named_modules())
    layers[0].operator = ndgpa.Full()
    assert "operator" not in dict(layers[0].named_modules())
    assert torch.equal(layers[0](x, IMAGE), full)


@pytest.mark.bad_input
def test_what_is_no_operator_is_refused() -> None:
    words = r"operator must be an operator, such as GPA\(12\); got "
    for wrong, name in ((12, "12"), ("full", "'full'"), (ndgpa.Full, "<class"), (None, "None")):
        with pytest.raises(TypeError, match=words + name):
            SpatialAttention(8, operator=wrong)
    layer = SpatialAttention(8)
    with pytest.raises(TypeError, match=words + "3"):
        layer.operator = 3


@pytest.mark.bad_input
def test_a_grid_of_features_is_refused_with_the_flattening_it_needs() -> None:
    layer = SpatialAttention(8)
    channels_last, channels_first = torch.randn(2, 6, 8, 8), torch.randn(2, 8, 6, 5)
    for x, words in (
        (channels_last, r"got \(2, 6, 8, 8\); flatten the grid with x.flatten\(1, -2\)"),
        (channels_first, r"got \(2, 8, 6, 5\); flatten the grid with x.flatten\(2\).mT"),
        (torch.randn(2, 48, 7), r"x must have shape \(batch, sites, 8\); got \(2, 48, 7\)$"),
    ):
        with pytest.raises(ValueError, match=words):
            layer(x, IMAGE)


def test_copies_and_saved_states_give_the_same() -> None:
    layer = SpatialAttention(8, heads=2)
    x = torch.randn(1, 48, 8)
    assert torch.equal(copy.deepcopy(layer)(x, copy.deepcopy(IMAGE)), layer(x, IMAGE))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = SpatialAttention(8, heads=2)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x, IMAGE), layer(x, IMAGE))


def test_checkpointing_recomputes_the_same() -> None:
    layer = SpatialAttention(8)
    x = torch.randn(1, 48, 8, requires_grad=True)
    plain = torch.autograd.grad(layer(x, IMAGE).square().sum(), x)
    for reentrant in (False, True):
        out = checkpoint(layer, x, IMAGE, use_reentrant=reentrant)
        x.grad = None
        out.square().sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, plain[0])


def test_it_trains_under_autocast() -> None:
    layer = SpatialAttention(8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(1, 48, 8), IMAGE)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.compiled
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_it_compiles_to_one_graph_forward_and_backward(backend: str) -> None:
    layer = SpatialAttention(8, heads=2, operator=ndgpa.GPA(3))
    x = torch.randn(2, 48, 8, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x, IMAGE), layer(x, IMAGE))
    ours = torch.autograd.grad(compiled(x, IMAGE).square().sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad(layer(x, IMAGE).square().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(ours, theirs)


@pytest.mark.compiled
def test_it_compiles_with_a_ragged_context() -> None:
    layer = SpatialAttention(8, operator=ndgpa.GPA(ndgpa.TopK(2), affinity="euclidean"))
    clusters = ndgpa.Clusters(torch.arange(11) % 4, torch.tensor([0, 0, 1, 1]))
    x, context = torch.randn(2, 48, 8), torch.randn(2, 11, 8)
    mask = torch.arange(11)[None] < torch.tensor([[11], [7]])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(x, IMAGE, context, clusters, key_mask=mask),
        layer(x, IMAGE, context, clusters, key_mask=mask),
    )


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = SpatialAttention(8, operator=ndgpa.GPA(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, IMAGE)


@pytest.mark.compiled
def test_it_exports_with_a_batch_of_any_size() -> None:
    model = _Model()
    x = torch.randn(2, 48, 8)
    batch = torch.export.Dim("batch", min=1)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    more = torch.randn(5, 48, 8)
    torch.testing.assert_close(exported(more), model(more))


@pytest.mark.compiled
def test_the_operators_pass_opcheck() -> None:
    from ndgpa.attention.chunked import attend_chunked
    from ndgpa.selection.select_blocks import select_top_k

    tiles = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    blocks = torch.randint(-1, 6, (1, 2, 3, 2), dtype=torch.int32)
    keys = torch.randn(1, 2, 6, 4, 5, requires_grad=True)
    slot = torch.randn(1, 2, 3, 2, requires_grad=True)
    bias = torch.randn(1, 2, 6, 4, requires_grad=True)
    inputs = tiles, keys, keys, blocks, slot, bias
    torch.library.opcheck(attend_chunked, (*inputs, *12 * [None], 0, 0.0, 0.5))
    bundle, sums = torch.tensor([0, 1, 1, 0, 1, 0]).expand(1, 2, 6), torch.ones(1, 2, 6, 11)
    segments, table = (torch.tensor(x) for x in ([0, 0, 1, 1, 1, 0], [-1, 0, 1]))
    more = torch.tensor([[0], [-1], [-1]])
    less = blocks.sort(dim=3).values[..., :1]
    far = (
        None,
        sums,
        bundle,
        less,
        *4 * [None],
        segments,
        torch.zeros(2).long(),
        table,
        more,
        2,
        0.3,
    )
    torch.library.opcheck(attend_chunked, (*inputs, *far, 0.5))
    table = torch.randn(1, 2, 9, requires_grad=True)
    offsets = torch.randint(0, 5, (3, 4)), torch.randint(0, 5, (6, 4))
    scores = table, *5 * [None], *offsets, *4 * [None], 0, 0.0
    torch.library.opcheck(attend_chunked, (*inputs, *scores, 0.5, 2.0))
    torch.library.opcheck(
        select_top_k,
        (
            torch.randn(1, 2, 3, 2, 5),
            torch.randn(1, 2, 6, 5),
            None,
            None,
            torch.ones(1, 3, 2),
            None,
            None,
            None,
            2,
            "mass",
            "head",
            0.5,
        ),
    )


@pytest.mark.bad_input
def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="query_dim must be a multiple of the 3 heads; got 8"):
        SpatialAttention(8, heads=3)
    with pytest.raises(ValueError, match="key_dim must be at least 1; got 0"):
        SpatialAttention(8, key_dim=0)
    with pytest.raises(
        ValueError, match=r"x must have shape \(batch, sites, 8\); got \(1, 48, 7\)"
    ):
        SpatialAttention(8)(torch.randn(1, 48, 7), IMAGE)


def test_a_grid_of_features_goes_in_and_out_where_asked_for() -> None:
    flat, grid = (ndgpa.nn.SpatialAttention(8, 2, key_dim=4, grid=g) for g in (False, True))
    grid.load_state_dict(flat.state_dict())
    own, other = ndgpa.Image((4, 6), 2), ndgpa.Image((6, 2), 2)
    x, context = torch.randn(2, 4, 6, 8), torch.randn(2, 6, 2, 4)
    expected = flat(x.flatten(1, 2), own, context.flatten(1, 2), other)
    assert torch.equal(grid(x, own, context, other), expected.view(2, 4, 6, 8))


def test_hooks_change_queries_and_keys_and_know_the_number_of_the_first_site() -> None:
    """A norm, and an embedding that depends on the site: decoding equals one causal call."""
    position = torch.randn(40, 4)

    def place(x: torch.Tensor, first: int) -> torch.Tensor:
        x = torch.nn.functional.rms_norm(x, x.shape[-1:])
        return x + position[first : first + x.shape[2]]

    layer = ndgpa.nn.SpatialAttention(
        16, 4, operator=ndgpa.GPA(2, causal=True), bias=True, query_hook=place, key_hook=place
    )
    x = torch.randn(1, 40, 16)
    whole = layer(x, ndgpa.Sequence(40, 4))
    query, key, value = layer.project(x)
    attended = ndgpa.gpa(query, key, value, ndgpa.Sequence(40, 4), 2, causal=True)
    torch.testing.assert_close(layer.to_out(attended.transpose(1, 2).flatten(2)), whole)
    cache = ndgpa.Cache(4, 1, 2)
    parts = [layer.decode(x[:, :30], cache)]
    parts += [layer.decode(x[:, site, None], cache) for site in range(30, 40)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_dropout_is_of_the_output_in_training_alone() -> None:
    layer = ndgpa.nn.SpatialAttention(64, 2, dropout=0.5)
    x, image = torch.randn(2, 64, 64), ndgpa.Image((8, 8), 2)
    dropped = layer(x, image) == 0
    assert 0.4 < dropped.double().mean() < 0.6
    assert not (layer.eval()(x, image) == 0).any()


@pytest.mark.bad_input
def test_options_that_do_not_fit_are_refused() -> None:
    layer, image = ndgpa.nn.SpatialAttention(8, 2, grid=True), ndgpa.Image((4, 6), 2)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, \*\(4, 6\), features\)"):
        layer(torch.randn(1, 6, 4, 8), image)
    with pytest.raises(TypeError, match=r"SpatialAttention\(grid=True\) needs a Grid as structure"):
        layer(torch.randn(1, 25, 8), ndgpa.with_tokens(image))
    with pytest.raises(TypeError, match="query_hook must be called as"):
        ndgpa.nn.SpatialAttention(8, 2, query_hook=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\)"):
        ndgpa.nn.SpatialAttention(8, 2, dropout=1.0)
