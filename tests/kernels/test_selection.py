"""The selection kernels against the torch formulas."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

import ndgpa
from ndgpa import Clusters, Grid
from ndgpa.selection import select_blocks
from ndgpa.selection.relevance import CoarseCells
from ndgpa.structures import means
from ndgpa.structures.means import block_sums, in_two, means_in_two, whole
from tests.kernels.kernel_problems import structures

MORE = settings(max_examples=5 * settings().max_examples)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@MORE
@given(data=st.data())
def test_sums_over_blocks_are_those_of_the_structure(dtype, data):
    structure = data.draw(structures())
    width, masked = data.draw(st.integers(1, 40)), data.draw(st.booleans())
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.randn(2, structure.num_sites, 2, width, generator=g).to(dtype).transpose(1, 2)
    seen = torch.rand(2, structure.num_sites, generator=g) < 0.7 if masked else None
    clean = x if seen is None else x.masked_fill(~seen[:, None, :, None], 0)
    if masked:
        x = x.masked_fill(~seen[:, None, :, None], torch.nan)
    x.requires_grad_()
    sums = block_sums(x, seen, structure.blocks, structure.block_of_site)
    exact = structure.block_sums(clean.double())
    assert torch.allclose(sums.double(), exact, rtol=1e-6, atol=1e-6)
    cotangent = torch.randn(sums.shape, generator=g)
    (grad,) = torch.autograd.grad(sums, x, cotangent)
    wanted = cotangent[:, :, structure.block_of_site].to(dtype)
    if masked:
        wanted = wanted.masked_fill(~seen[:, None, :, None], 0)
    assert torch.equal(grad, wanted)


@st.composite
def coarse_problems(draw):
    key_heads, group = draw(st.sampled_from([(1, 1), (2, 1), (2, 2)]))
    cells, places, blocks, width = (draw(st.integers(1, m)) for m in (9, 5, 70, 20))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    biased, ragged, grouped, causal = (draw(st.booleans()) for _ in range(4))
    weight = torch.randint(0, 4, (draw(st.integers(1, 2)), cells, places), generator=g).float()
    weight[:, :, 0] += 1
    query = torch.randn(2, key_heads * group, cells, places, width, generator=g)
    log_size = torch.randint(0, 3, (2, blocks), generator=g).float().log()
    forced, share = None, draw(st.sampled_from(["head", "group", "all"]))
    if draw(st.booleans()):
        rows = torch.rand((cells, blocks), generator=g).argsort(dim=1)[:, : min(3, blocks)]
        forced = rows.clone()
        forced[:, 1:].masked_fill_(torch.rand(forced[:, 1:].shape, generator=g) < 0.3, -1)
        heads = {"head": key_heads * group, "group": key_heads, "all": 1}[share]
        forced = forced.expand(2, heads, -1, -1)
    return {
        "query": query * draw(st.sampled_from([1.0, 4.0])),
        "key": torch.randn(2, key_heads, blocks, width, generator=g),
        "bias": torch.randn(2, key_heads, blocks, generator=g) if biased else None,
        "log_size": log_size if ragged else None,
        "weight": weight.expand(2, -1, -1),
        "cell_group": torch.randint(0, 2, (cells,), generator=g) if grouped else None,
        "key_group": torch.randint(0, 2, (blocks,), generator=g) if grouped else None,
        "forced": forced,
        "k": draw(st.integers(1, 80)),
        "relevance": draw(st.sampled_from(["mass", "logit"])),
        "share": share,
        "scale": 0.4,
        "cell_time": torch.randint(0, 5, (cells,), generator=g) if causal else None,
        "key_time": torch.randint(0, 5, (blocks,), generator=g) if causal else None,
    }


def in_triton(*, forced, k, relevance, share, counts=None, p=None, at_least=1, **tensors):
    """The kernels, called as the operator is."""
    assert counts is None
    assert p is None
    times = dict.fromkeys(("cell_time", "key_time"))
    return select_blocks.select_in_triton(
        CoarseCells(**(times | tensors)), forced, k, relevance, share
    )


@MORE
@given(problem=coarse_problems())
def test_the_blocks_are_those_of_the_torch_formula(problem):
    assert torch.equal(
        in_triton(**problem).sort().values,
        select_blocks.select_top_k(**problem).sort().values,
    )
    assert torch.equal(in_triton(**problem), select_blocks.select_top_k(**problem))


def coarse(query, key, weight, k):
    nothing = ("bias", "log_size", "cell_group", "key_group", "forced")
    options = {"k": k, "relevance": "mass", "share": "head", "scale": 1.0}
    return {"query": query, "key": key, "weight": weight, **dict.fromkeys(nothing), **options}


def _top_k(scores, k):
    from ndgpa.selection import triton_top_k

    out = torch.empty(*scores.shape[:1], k, dtype=torch.int32)
    groups = torch.nn.functional.pad(scores, (0, -scores.shape[1] % 16), value=-torch.inf)
    triton_top_k.top_k(scores, out, groups.unflatten(1, (-1, 16)).amax(dim=2))
    return out


@pytest.mark.parametrize("longest", [1 << 14, 4])
def test_of_equals_the_lowest_ids_are_taken(longest, monkeypatch):
    from ndgpa.selection import triton_top_k

    monkeypatch.setattr(triton_top_k, "MOST_HELD", longest)
    inf = torch.inf
    scores = torch.tensor(
        [
            [1.0, 3.0, 3.0, 1.0, 3.0, 0.0],
            [0.0, -0.0, 0.0, -0.0, -1.0, 2.0],
            [-inf, -1.0, -inf, -2.0, -inf, -inf],
            [1e-40, 1e-39, -1e-40, -3.0, inf, 2e38],
        ]
    )
    wanted = [[1, 2, 4], [0, 1, 5], [1, 3, -1], [1, 4, 5]]
    assert _top_k(scores, 3).tolist() == wanted
    assert _top_k(torch.zeros(2, 9), 4).tolist() == [[0, 1, 2, 3]] * 2


def test_of_equals_in_many_groups_the_lowest_ids_are_taken():
    """The best groups are found first; a tie between groups goes to the lower."""
    scores = torch.zeros(3, 400)
    scores[0, [399, 37, 200, 201]] = torch.tensor([2.0, 1.0, 1.0, 1.0])
    scores[1, 100:] = 1.0
    scores[2] = -torch.inf
    scores[2, 300] = -5.0
    wanted = [[37, 200, 399], [100, 101, 102], [300, -1, -1]]
    assert _top_k(scores, 3).tolist() == wanted


@MORE
@given(st.data())
def test_top_k_is_the_front_of_a_stable_sort(data):
    rows, blocks = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 300))
    k = data.draw(st.integers(1, min(blocks, data.draw(st.sampled_from([3, 300])))))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    scores = torch.randn(rows, blocks, generator=g)
    if data.draw(st.booleans()):
        scores = scores.round()
    wanted = scores.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values
    assert torch.equal(_top_k(scores, k), wanted.int())


def test_relevance_is_made_for_a_few_cells_at_a_time(monkeypatch):
    from ndgpa.selection import triton_top_k

    g = torch.Generator().manual_seed(3)
    problem = coarse(
        torch.randn(1, 2, 7, 2, 8, generator=g),
        torch.randn(1, 2, 9, 8, generator=g),
        torch.ones(1, 7, 2),
        k=3,
    )
    whole = in_triton(**problem)
    for held in (1, 20, 63, 100):
        monkeypatch.setattr(triton_top_k, "_HELD", held)
        assert torch.equal(in_triton(**problem), whole)


def test_a_cell_of_more_blocks_than_a_tile_has_rows():
    g = torch.Generator().manual_seed(5)
    problem = coarse(
        torch.randn(1, 1, 2, 150, 8, generator=g),
        torch.randn(1, 1, 20, 8, generator=g),
        torch.ones(1, 2, 150),
        k=4,
    )
    assert torch.equal(in_triton(**problem), select_blocks.select_top_k(**problem))


def test_a_nan_query_takes_no_part():
    g = torch.Generator().manual_seed(4)
    query, key = torch.randn(1, 1, 2, 2, 8, generator=g), torch.randn(1, 1, 9, 8, generator=g)
    query[0, 0, 0, 1, 3] = torch.nan
    problem = coarse(query, key, torch.ones(1, 2, 2), k=3)
    assert torch.equal(in_triton(**problem), select_blocks.select_top_k(**problem))


def test_logits_that_overflow_name_no_block_twice():
    """Sums of infinities of both signs are no numbers, and a forced block stays forced."""
    g = torch.Generator().manual_seed(6)
    query, key = torch.randn(2, 4, 3, 2, 8, generator=g), torch.randn(2, 4, 9, 8, generator=g)
    problem = coarse(1e19 * query, 1e20 * key, torch.ones(2, 3, 2), k=3)
    problem |= {
        "relevance": "logit",
        "share": "all",
        "forced": torch.tensor([[1, 4]] * 3).expand(2, 1, 3, 2),
    }
    found = in_triton(**problem)
    assert torch.equal(found, select_blocks.select_top_k(**problem))
    assert (found[..., 1:] > found[..., :-1]).all()


def test_groups_and_grids_through_the_public_rule(monkeypatch):
    """The public call with the kernels put in place of the torch formula."""

    structures = [
        Grid((5, 7), 2, (2, 1), time_axis=0),
        Clusters(
            torch.tensor([0, 0, 1, 2, 2, 3, 3, 3]),
            torch.tensor([0, 0, 1, 1]),
            time=torch.tensor([3, 1, 4, 1, 5, 9, 2, 6]),
            group=torch.tensor([0, 0, 1, 1]),
        ),
    ]
    for structure, causal in itertools.product(structures, (False, True)):
        g = torch.Generator().manual_seed(1)
        q, k = (torch.randn(2, 2, structure.num_sites, 12, generator=g) for _ in range(2))
        mask = torch.rand(2, structure.num_sites, generator=g) < 0.8
        rule = ndgpa.TopK(2, force=ndgpa.Own())
        options = {"affinity": "euclidean", "key_mask": mask, "causal": causal}
        wanted = ndgpa.select(q, k, structure, rule, **options)
        with monkeypatch.context() as patch:
            patch.setattr(select_blocks, "select_top_k", in_triton)
            patch.setattr(
                means,
                "seen_sums",
                lambda s, x, seen=None: block_sums(x, seen, s.blocks, s.block_of_site),
            )
            found = ndgpa.select(q, k, structure, rule, **options)
        assert torch.equal(found.blocks, wanted.blocks)


def _falling(steps, d=1):
    """A problem of one query whose logits are -40 times these."""
    key = -40.0 * torch.tensor(steps).float()[None, None, :, None]
    return coarse(torch.ones(1, 1, 1, 1, d), key, torch.ones(1, 1, 1), k=5)


def test_a_cell_of_one_query_needs_no_log_sum_exp(monkeypatch):
    from ndgpa.selection import triton_top_k

    monkeypatch.setattr(triton_top_k, "write_log_sum_exp", None)
    g = torch.Generator().manual_seed(7)
    query, key = torch.randn(1, 2, 5, 1, 8, generator=g), torch.randn(1, 2, 40, 8, generator=g)
    problem = coarse(query, key, torch.ones(1, 5, 1), k=4)
    assert torch.equal(in_triton(**problem), select_blocks.select_top_k(**problem))


@pytest.mark.parametrize(
    ("steps", "forced", "wanted"),
    [
        ([9, 8, 0, 7, 1, 6, 2, 5, 3], [], [0, 1, 2, 4, 6]),  # exp(-120) is 0
        ([9, 8, 0, 7, 1, 6, 2, 5, 3], [2], [0, 1, 3, 4, 6]),  # what is read anyway counts
        ([2, 0, 1, 0, 2, 1, 9, 9, 9], [], [0, 1, 2, 3, 5]),
        ([9, 8, 0, 7, -torch.inf, 6, 2, 5, 3], [], [0, 1, 2, 3, 4]),  # no softmax at all
        ([9, 8, torch.nan, 7, 1, 6, 2, 5, 3], [8], [0, 1, 2, 3, 4]),
    ],
)
def test_weights_of_one_query_that_are_0_are_equals(steps, forced, wanted):
    problem = _falling(steps)
    if forced:
        problem["forced"] = torch.tensor(forced)[None, None, None]
        wanted = sorted(wanted + forced)
    assert in_triton(**problem)[0, 0, 0].tolist() == wanted
    assert select_blocks.select_top_k(**problem)[0, 0, 0].tolist() == wanted


def test_a_cell_of_one_query_without_sites_takes_the_lowest_ids():
    problem = _falling([3, 2, 1, 0, 1, 2, 3]) | {"weight": torch.zeros(1, 1, 1), "k": 2}
    assert in_triton(**problem)[0, 0, 0].tolist() == [0, 1]
    assert select_blocks.select_top_k(**problem)[0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(data=st.data())
def test_means_in_two_parts_are_the_means(dtype, data):
    """To 2^-17 on a GPU; the interpreter cuts bits off where a GPU rounds."""
    structure = data.draw(structures())
    masked = data.draw(st.booleans())
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.randn(2, structure.num_sites, 2, 20, generator=g).to(dtype).transpose(1, 2)
    seen = torch.rand(2, structure.num_sites, generator=g) < 0.7 if masked else None
    exact, _ = means.seen_means(structure, x.double(), seen)
    if masked:
        x = x.masked_fill(~seen[:, None, :, None], torch.nan)
    parts = means_in_two(x, seen, structure.blocks, structure.is_even)
    assert parts.dtype == torch.bfloat16
    assert parts.shape == (*exact.shape[:3], 2, 20)
    assert ((whole(parts).double() - exact).abs() <= 2**-15 * exact.abs() + 1e-6).all()


def test_two_parts_are_split_as_the_formula_splits_them():
    g = torch.Generator().manual_seed(8)
    x = torch.randn(1, 2, 48, 20, generator=g).bfloat16()
    parts = means_in_two(x, None, torch.arange(48)[:, None], True)
    assert torch.equal(parts, in_two(x.float()))
    assert (parts[..., 1, :] == 0).all()


def _scores(query, key, weight):
    """Relevance of one head as the kernels write it."""
    from ndgpa.selection import triton_lse, triton_relevance

    of = CoarseCells(query, key, None, None, weight, None, None, None, None, 0.4)
    lse = torch.empty(query.shape[:4])
    out = torch.empty(1, query.shape[2], key.shape[2])
    largest = torch.empty(1, query.shape[2], -(-key.shape[2] // 16))
    triton_lse.write_log_sum_exp(lse, of, 1)
    triton_relevance.write_relevance(out, largest, of, lse, "mass", 0, 0, 1)
    return out[0], largest[0]


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_relevance_is_within_the_float64_budget(scale):
    """Of float32 means twice the error of float32 torch, and a rounding of the largest product.

    Of two parts 2^-15 of the largest product, as the interpreter cuts them.
    """
    g = torch.Generator().manual_seed(9)
    query = scale * torch.randn(1, 1, 6, 4, 20, generator=g)
    key = torch.randn(1, 1, 100, 20, generator=g)
    weight = torch.randint(0, 4, (1, 6, 4), generator=g).float()

    def formula(q, k):
        logits = 0.4 * q[0, 0] @ k[0, 0].T
        return (logits.softmax(dim=-1) * weight[0, :, :, None]).sum(dim=1)

    exact = formula(query.double(), key.double())
    plain = (formula(query, key) - exact).norm()
    found, largest = _scores(query, key, weight)
    most = 0.4 * query.norm(dim=-1).max() * key.norm(dim=-1).max()
    assert (found - exact).norm() <= 2 * plain + 2**-23 * most * exact.norm()
    padded = torch.nn.functional.pad(found, (0, 12), value=-torch.inf)
    assert torch.equal(largest, padded.unflatten(1, (7, 16)).amax(dim=2))
    found, _ = _scores(in_two(query), in_two(key), weight)
    assert (found - exact).norm() <= 2**-15 * most * exact.norm()


@pytest.mark.parametrize("places", [1, 2, 3, 4, 8, 20, 70])
@pytest.mark.parametrize("parts", [1, 2])
def test_equal_blocks_are_equal_to_the_last_bit(places, parts):
    """Wherever they stand in a tile; and each place is summed once, whatever the cell's size."""
    g = torch.Generator().manual_seed(places)
    query = torch.randn(1, 1, 3, places, 12, generator=g)
    key = torch.randn(1, 1, 5, 12, generator=g).repeat(1, 1, 16, 1)
    weight = 1.0 + torch.arange(3 * places).reshape(1, 3, places)
    if parts == 2:
        query, key = in_two(query), in_two(key)
    found, _ = _scores(query, key, weight)
    assert torch.equal(found, found[:, :5].repeat(1, 16))
    assert torch.allclose(found.sum(dim=1), weight[0].sum(dim=1), rtol=1e-4)


@pytest.mark.parametrize("relevance", ["mass", "logit"])
@pytest.mark.parametrize("places", [1, 3])
def test_blocks_of_two_parts_are_those_of_the_torch_formula(places, relevance):
    g = torch.Generator().manual_seed(10)
    query = torch.randn(1, 2, 5, places, 8, generator=g)
    key = torch.randn(1, 1, 40, 8, generator=g)
    problem = coarse(in_two(query), in_two(key), torch.ones(1, 5, places), k=4)
    problem |= {"relevance": relevance, "share": "group"}
    assert torch.equal(in_triton(**problem), select_blocks.select_top_k(**problem))


@pytest.mark.parametrize("structure", [Grid((6, 8), 2, 2), Grid((5, 7), 2, (2, 1), time_axis=0)])
@pytest.mark.parametrize("estimate", ["mean", "site"])
def test_features_of_16_bit_go_through_the_public_rule(structure, estimate, monkeypatch):
    """Means in two parts of 16 bit, sites as they are."""
    g = torch.Generator().manual_seed(11)
    shape = (1, 2, structure.num_sites, 8)
    q, k = (torch.randn(shape, generator=g).to(torch.float16) for _ in range(2))
    causal, rule = structure.time is not None, ndgpa.TopK(3, estimate=estimate)
    wanted = ndgpa.select(q, k, structure, rule, causal=causal).blocks
    asked = []

    def kernels(query, **rest):
        asked.append(query.dtype)
        return in_triton(query=query, **rest)

    monkeypatch.setattr(select_blocks, "has_triton", lambda x: True)
    monkeypatch.setattr(select_blocks, "select_top_k", kernels)
    assert torch.equal(ndgpa.select(q, k, structure, rule, causal=causal).blocks, wanted)
    assert asked == [torch.bfloat16 if estimate == "mean" else torch.float32]


@pytest.mark.parametrize("cell", [1, 2])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf])
def test_what_is_not_finite_leaves_no_slot_of_a_full_selection_empty(junk, cell, monkeypatch):
    for module in (select_blocks, means):
        monkeypatch.setattr(module, "has_triton", lambda _: True)
    query, key = torch.randn(2, 1, 1, 16, 4, generator=torch.Generator().manual_seed(0))
    key[:, :, ::5], query[:, :, 3], query[:, :, 8:] = junk, junk, junk
    found = ndgpa.select(query, key, ndgpa.Grid((16,), 2, cell), 3)
    assert found.full
    assert (found.blocks >= 0).all()


def test_amd_has_no_tf32x3(monkeypatch):
    from ndgpa.selection import triton_products

    assert triton_products.precision() == "tf32x3"
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert triton_products.precision() == "ieee"
