"""What happens to scores before the softmax: a soft cap, a bias per key and per relative position.

The oracle is dense attention in float64 with the bias written out pair by pair.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ndgpa
from ndgpa import Scores
from ndgpa.analysis import key_weights

IMAGE = ndgpa.Image((5, 6), block=2, cell=2)  # sizes that blocks do not divide
SOURCE = ndgpa.Image((4, 7), block=(2, 3))
ALL = 100


def features(
    queries: int, keys: int, heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    sizes = ((heads, queries, 3), (key_heads, keys, 3), (key_heads, keys, 5))
    return [torch.randn(2, *size, dtype=dtype, requires_grad=True) for size in sizes]


def pairs(table: Tensor, shape: tuple[int, ...], key_shape: tuple[int, ...]) -> Tensor:
    """The entry of each pair, one by one: (heads, n, n_k)."""
    places, key_places = (
        [*torch.cartesian_prod(*map(torch.arange, s)).view(-1, len(s)).tolist()]
        for s in (shape, key_shape)
    )
    rows = []
    for x in places:
        entries = [tuple(b - a + n - 1 for a, b, n in zip(x, y, shape)) for y in key_places]
        rows.append(torch.stack([table[:, *entry] for entry in entries], dim=1))
    return torch.stack(rows, dim=1)


def dense(
    query: Tensor, key: Tensor, value: Tensor, bias: Any = 0.0, cap: float | None = None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    return (scores + bias).softmax(dim=-1) @ value


def gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """First derivatives, and the second along them."""
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
    return [*first, *second]


def check(out: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(gradients(out, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_everything_at_once_is_dense_attention_to_the_second_derivative(backend: str) -> None:
    query, key, value = features(30, 28)
    table = torch.randn(4, 8, 12, dtype=torch.float64, requires_grad=True)
    key_bias = torch.randn(2, 2, 28, dtype=torch.float64, requires_grad=True)
    scores = Scores(key_bias, table, softcap=0.7)
    out = ndgpa.gpa(
        query, key, value, IMAGE, ALL, key_structure=SOURCE, scores=scores, backend=backend
    )
    bias = pairs(table, (5, 6), (4, 7)) + key_bias.repeat_interleave(2, dim=1)[:, :, None]
    expected = dense(query, key, value, bias, cap=0.7)
    check(out, expected, [query, key, value, table, key_bias])


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("share", ["head", "group", "all"])
def test_what_is_not_selected_has_no_weight(share: Any, backend: str) -> None:
    query, key, value = features(30, 30)
    table = torch.randn(4, 9, 11, dtype=torch.float64, requires_grad=True)
    selection = ndgpa.select(query, key, IMAGE, ndgpa.TopK(3, share=share))
    scores = Scores(offset_bias=table, softcap=2.0)
    out = ndgpa.attend(query, key, value, selection, IMAGE, scores=scores, backend=backend)
    blocks = selection.blocks.repeat_interleave(4 // selection.blocks.shape[1], dim=1)
    blocks = blocks[:, :, IMAGE.cell_of_site]
    reads = (blocks[..., None] == IMAGE.block_of_site).any(dim=3)
    bias = pairs(table, (5, 6), (5, 6)).where(reads, -torch.inf)
    check(out, dense(query, key, value, bias, cap=2.0), [query, key, value, table])


def test_a_bias_of_keys_is_selected_by() -> None:
    """Keys that say nothing: the block whose bias is largest on average is kept."""
    query, key = torch.zeros(2, 1, 1, 16, 4)
    bias = torch.zeros(16)
    bias[[9, 10]] = 1.0  # blocks of 4 sites: the third
    sequence = ndgpa.Sequence(16, 4)
    found = ndgpa.select(query, key, sequence, 1, scores=Scores(bias.expand(1, 1, 16)))
    assert (found.blocks == 2).all()


def test_a_bias_of_keys_is_minus_infinity_to_a_mask() -> None:
    query, key, value = features(30, 30)
    mask = torch.rand(2, 30) > 0.4
    bias = torch.zeros(2, 1, 30, dtype=torch.float64)
    bias = bias.masked_fill(~mask[:, None], torch.nan)  # what is hidden is not looked at
    out = ndgpa.gpa(query, key, value, IMAGE, 4, scores=Scores(bias), key_mask=mask)
    torch.testing.assert_close(out, ndgpa.gpa(query, key, value, IMAGE, 4, key_mask=mask))


def test_tokens_have_a_bias_as_keys_and_none_by_position() -> None:
    space = ndgpa.with_tokens(IMAGE, prefix=2, suffix=1)
    query, key, value = features(33, 33)
    table = torch.randn(1, 9, 11, dtype=torch.float64, requires_grad=True)
    key_bias = torch.randn(1, 1, 33, dtype=torch.float64, requires_grad=True)
    scores = Scores(key_bias, table)
    bias = torch.nn.functional.pad(pairs(table, (5, 6), (5, 6)), (2, 1, 2, 1)) + key_bias
    expected = dense(query, key, value, bias)
    check(
        ndgpa.gpa(query, key, value, space, ALL, scores=scores),
        expected,
        [query, key, value, table, key_bias],
    )
    torch.testing.assert_close(ndgpa.Full()(query, key, value, space, scores=scores), expected)


def test_the_past_is_hidden_from_biased_scores_too() -> None:
    sequence = ndgpa.Sequence(21, block=4, cell=2)
    query, key, value = features(21, 21)
    table = torch.randn(4, 41, dtype=torch.float64, requires_grad=True)
    scores = Scores(offset_bias=table, softcap=1.5)
    out = ndgpa.gpa(query, key, value, sequence, ALL, causal=True, scores=scores)
    bias = pairs(table, (21,), (21,)).masked_fill(~torch.ones(21, 21).tril().bool(), -torch.inf)
    check(out, dense(query, key, value, bias, cap=1.5), [query, key, value, table])


def test_a_cap_keeps_its_derivative_beside_a_future_that_is_not_finite() -> None:
    sequence = ndgpa.Sequence(12, 4, 2)
    query, key, value = (x.detach() for x in features(12, 12, 2, 2))

    def slope(key: Tensor) -> Tensor:
        leaf = query.clone().requires_grad_()
        scores = Scores(softcap=1.0)
        out = ndgpa.gpa(leaf, key, value, sequence, 3, causal=True, scores=scores)
        return torch.autograd.grad(out[:, :, :6].sum(), leaf)[0][:, :, :6]

    lost = key.clone()
    lost[:, :, 6:] = torch.inf
    torch.testing.assert_close(slope(lost), slope(key))


def test_sixteen_bits_keep_their_biases_in_thirty_two() -> None:
    """A bias of 1000 and one, of which bfloat16 would lose the one."""
    query, key, value = (x.detach() for x in features(16, 16, 1, 1, torch.bfloat16))
    query, sequence = torch.zeros_like(query), ndgpa.Sequence(16, 4)
    bias = torch.full((1, 1, 16), 1000.0)
    bias[..., 0] += 1
    _, lse = ndgpa.attend(
        query,
        key,
        value,
        ndgpa.select(query, key, sequence, 4),
        sequence,
        scores=Scores(bias),
        return_lse=True,
    )
    expected = torch.tensor(15 + torch.e).log() + 1000
    torch.testing.assert_close(lse, expected.expand(lse.shape), rtol=0, atol=1e-3)


def test_a_layer_learns_offsets_and_shares_the_far_ones() -> None:
    bias = ndgpa.nn.OffsetBias(heads=2, reach=(1, 2))
    nn.init.normal_(bias.weight)
    layer = ndgpa.nn.SpatialAttention(8, heads=2, operator=ndgpa.GPA(ALL), scores=bias)
    x = torch.randn(1, 30, 8)
    query, key, value = layer.project(x)
    table = bias.weight[:, [0, 0, 0, 0, 1, 2, 2, 2, 2]][:, :, [0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4]]
    out = dense(query, key, value, pairs(table, (5, 6), (5, 6)))
    torch.testing.assert_close(layer(x, IMAGE), layer.to_out(out.transpose(1, 2).flatten(2)))
    layer(x, IMAGE).square().sum().backward()
    assert bias.weight.grad is not None
    assert (bias.weight.grad != 0).all()
    assert "scores.weight" in layer.state_dict()


def test_the_weights_of_a_layer_come_out_on_request() -> None:
    bias = ndgpa.nn.OffsetBias(heads=2, reach=4)
    nn.init.normal_(bias.weight)
    sequence, x = ndgpa.Sequence(24, 4), torch.randn(1, 24, 8)
    layer = ndgpa.nn.SpatialAttention(8, heads=2, operator=ndgpa.GPA(2), scores=bias)
    query, key, value = layer.project(x)
    selection = ndgpa.select(query, key, sequence, 2)
    sites, weights = key_weights(
        query, key, selection, sequence, torch.arange(24), scores=bias(sequence)
    )
    read = value.gather(2, sites.flatten(2)[..., None].expand(-1, -1, -1, 4))
    out = (weights[..., None] * read.unflatten(2, (24, -1))).sum(dim=3)
    torch.testing.assert_close(layer.to_out(out.transpose(1, 2).flatten(2)), layer(x, sequence))


@pytest.mark.parametrize("call", [ndgpa.gpa, ndgpa.attend])
def test_sites_may_come_before_heads(call: Any) -> None:
    query, key, value = features(30, 28)
    selection = ndgpa.select(query, key, IMAGE, 3, key_structure=SOURCE)
    rule = 3 if call is ndgpa.gpa else selection
    between = [IMAGE, rule] if call is ndgpa.gpa else [rule, IMAGE]
    swapped = [x.transpose(1, 2).contiguous() for x in (query, key, value)]
    out = call(*swapped, *between, key_structure=SOURCE, layout="bnhd")
    expected = call(query, key, value, *between, key_structure=SOURCE)
    assert out.shape == (2, 30, 4, 5)
    torch.testing.assert_close(out.transpose(1, 2), expected)
    again = ndgpa.select(*swapped[:2], IMAGE, 3, key_structure=SOURCE, layout="bnhd")
    assert torch.equal(again.blocks, selection.blocks)


@pytest.mark.slow
@pytest.mark.compiled
def test_a_layer_with_offsets_compiles_as_one_graph() -> None:
    bias = ndgpa.nn.OffsetBias(heads=2, reach=(3, 3), softcap=20.0)
    layer = ndgpa.nn.SpatialAttention(8, heads=2, operator=ndgpa.GPA(3), scores=bias)
    x = torch.randn(2, 30, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, IMAGE), layer(x, IMAGE))
    compiled(x, IMAGE).sum().backward()
    assert bias.weight.grad is not None


def _call(scores: Any, **options: Any) -> Tensor:
    return ndgpa.gpa(*features(30, 30), options.pop("space", IMAGE), 3, scores=scores, **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("scores", "options", "error", "words"),
    [
        (3.0, {}, TypeError, "scores must be ndgpa.Scores; got float"),
        (Scores(softcap=1.0), {"affinity": "euclidean"}, NotImplementedError, "affinity='dot'"),
        (Scores(softcap=1.0), {"far": "site"}, NotImplementedError, "do not reach the far field"),
        (Scores(softcap=1.0), {"backend": "triton"}, NotImplementedError, "use backend='torch'"),
        (Scores(torch.ones(2, 4, 30)), {}, ValueError, r"key heads, keys\) = \(2, 2, 30\)"),
        (Scores(offset_bias=torch.ones(4, 9, 9)), {}, ValueError, r"= \(4, 9, 11\)"),
        (None, {"layout": "nbhd"}, ValueError, "unknown layout 'nbhd'"),
        (
            Scores(offset_bias=torch.ones(4, 59)),
            {"space": ndgpa.Clusters(torch.arange(30) // 4, torch.arange(8) // 2)},
            TypeError,
            "offset_bias needs a Grid as structure; got Clusters",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    scores: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _call(scores, **options)


@pytest.mark.bad_input
def test_scores_and_layers_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match="softcap must be positive"):
        Scores(softcap=0.0)
    with pytest.raises(TypeError, match="key_bias must be a floating tensor; got list"):
        Scores(key_bias=[1.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scores must be called as"):
        ndgpa.nn.SpatialAttention(8, scores=Scores())  # type: ignore[arg-type]
    inputs, space = features(33, 33), ndgpa.with_tokens(IMAGE, prefix=3)
    with pytest.raises(NotImplementedError, match="softcap does not reach special tokens"):
        ndgpa.gpa(*inputs, space, 3, scores=Scores(softcap=1.0))
    with pytest.raises(ValueError, match="reach has 1 axes but the grids have 2 and 2"):
        ndgpa.nn.OffsetBias(1, 3)(IMAGE)
    layer = ndgpa.nn.SpatialAttention(8, scores=ndgpa.nn.OffsetBias(1, 3))
    cache = ndgpa.Cache(block=4, cell=1, rule=2)
    with pytest.raises(NotImplementedError, match="a cache does not change scores"):
        layer.decode(torch.randn(1, 4, 8), cache)
