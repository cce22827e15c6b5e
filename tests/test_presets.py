"""Each preset against plain loops written from the peer's own description, gradients too."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

import ndgpa
from ndgpa import presets
from ndgpa.nn import SpatialAttention
from ndgpa.testing.draw import seeded
from ndgpa.testing.oracle import algorithm_1

Lists = list[list[int]]


def drawn(
    seed: int, heads: int, key_heads: int, n: int, d: int, even: bool = False
) -> list[Tensor]:
    """Query, key and value in float64; of small whole numbers where scores shall be equal."""
    generator = seeded(seed)

    def one(h: int) -> Tensor:
        x = torch.randn(1, h, n, d, generator=generator, dtype=torch.float64)
        return (x.round() if even else x).requires_grad_()

    return [one(heads), one(key_heads), one(key_heads)]


def best(scores: dict[int, float], k: int) -> list[int]:
    """The k largest, ties to the lowest number."""
    return sorted(scores, key=lambda j: (-round(scores[j], 9), j))[:k]


def softmax_over(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return torch.softmax(scale * keys @ q, dim=0) @ values


def agree(ours: Tensor, theirs: Tensor, inputs: Iterable[Tensor]) -> None:
    """To rounding, forward and gradients."""
    inputs = list(inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view(ours.shape)
    mine = torch.autograd.grad((ours * weight).sum(), inputs)
    yours = torch.autograd.grad((theirs * weight).sum(), inputs)
    for a, b in zip(mine, yours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def tiles(shape: tuple[int, ...], tile: tuple[int, ...]) -> Lists:
    """The tokens of each tile, tiles and tokens in raster order."""
    members: dict[tuple[int, ...], list[int]] = {}
    for site in range(math.prod(shape)):
        rest, at = site, []
        for size in reversed(shape):
            at.append(rest % size)
            rest //= size
        name = tuple(a // t for a, t in zip(reversed(at), tile))
        members.setdefault(name, []).append(site)
    return [members[name] for name in sorted(members)]


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("tile", [(2, 2, 2), (4, 2, 8)], ids=["", "tile longer than its axis"])
def test_vsa(tile: tuple[int, int, int], sparsity: float, gated: bool, even: bool) -> None:
    """Tiles of a video that do not divide it; coarse branch of weight 1, or gated."""
    shape = (3, 5, 4)
    query, key, value = inputs = drawn(0, 2, 2, 60, 4, even)
    gate = torch.randn(1, 2, 60, 4, generator=seeded(9), dtype=torch.float64)
    blocks, scale = tiles(shape, tile), 0.5
    count = len(blocks)
    k = max(1, min(math.ceil((1 - sparsity) * count), count))
    out = torch.zeros(1, 2, 60, 4, dtype=torch.float64)
    for h in range(2):
        q, ks, vs = query[0, h], key[0, h], value[0, h]
        key_means = torch.stack([ks[b].mean(0) for b in blocks])
        value_means = torch.stack([vs[b].mean(0) for b in blocks])
        for own in blocks:
            mean = q[own].mean(0)
            logits = scale * key_means @ mean
            coarse = torch.softmax(logits, dim=0) @ value_means
            kept = best(dict(enumerate(logits.tolist())), k)
            sites = [y for j in kept for y in blocks[j]]
            for x in own:
                fine = softmax_over(q[x], ks[sites], vs[sites], scale)
                out[0, h, x] = fine + (gate[0, h, x] * coarse if gated else coarse)
    preset = presets.vsa(shape, sparsity, tile, gated)
    agree(preset(*inputs, **({"gate": gate} if gated else {})), out, inputs)


@pytest.mark.parametrize("tiles", [1, 2, 3, 7, 10, 100, 1000])
def test_vsa_reads_the_peers_number_of_tiles(tiles: int) -> None:
    """The ceiling of the peer's own floating product, at every thousandth."""
    for sparsity in (i / 1000 for i in range(1000)):
        peers = max(1, min(math.ceil((1 - sparsity) * tiles), tiles))
        preset = presets.vsa((tiles, 1, 1), sparsity, (1, 1, 1))
        assert preset.operator.rule.k == peers, sparsity


def test_seven_tenths_of_ten_tiles_leave_four() -> None:
    assert presets.vsa((10, 1, 1), 0.7, (1, 1, 1)).operator.rule.k == 4


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize("chunk", [4, 99], ids=["", "chunk longer than the sequence"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 99])
def test_moba(top_k: int, chunk: int, even: bool) -> None:
    """A short last chunk; the own chunk is one of the k; future chunks do not exist."""
    length = 22
    query, key, value = inputs = drawn(1, 2, 1, length, 4, even)
    chunks = [list(range(b, min(b + chunk, length))) for b in range(0, length, chunk)]
    rows = []
    for h in range(2):
        for x in range(length):
            own = x // chunk
            gates = {j: (query[0, h, x] @ key[0, 0, chunks[j]].mean(0)).item() for j in range(own)}
            gates[own] = math.inf
            kept = best(gates, top_k)
            sites = [y for j in kept for y in chunks[j] if y <= x]
            rows.append(softmax_over(query[0, h, x], key[0, 0, sites], value[0, 0, sites], 0.5))
    expected = torch.stack(rows).view(1, 2, length, 4)
    agree(presets.moba(length, chunk, top_k)(*inputs), expected, inputs)


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize("block", [4, 99], ids=["", "block longer than the sequence"])
@pytest.mark.parametrize("top", [1, 2, 3, 99])
def test_nsa_selection(top: int, block: int, even: bool) -> None:
    """Groups of two query heads share what the sum of their probabilities selects."""
    length = 22
    query, key, value = inputs = drawn(2, 4, 2, length, 4, even)
    blocks = [list(range(b, min(b + block, length))) for b in range(0, length, block)]
    out = torch.zeros(1, 4, length, 4, dtype=torch.float64)
    for g in range(2):
        for x in range(length):
            own = x // block
            complete = [j for j, sites in enumerate(blocks) if len(sites) == block]
            complete = [j for j in complete if blocks[j][-1] <= x]
            importance = dict.fromkeys(complete, 0.0)
            for h in (2 * g, 2 * g + 1):
                if complete:
                    means = torch.stack([key[0, g, blocks[j]].mean(0) for j in complete])
                    probability = torch.softmax(0.5 * means @ query[0, h, x], dim=0)
                    for j, p in zip(complete, probability.tolist()):
                        importance[j] += 1.0 if j == own else p
            importance[own] = 2.0
            kept = sorted(importance, key=lambda j: (-round(importance[j], 9), j != own, j))[:top]
            sites = [y for j in kept for y in blocks[j] if y <= x]
            for h in (2 * g, 2 * g + 1):
                out[0, h, x] = softmax_over(
                    query[0, h, x], key[0, g, sites], value[0, g, sites], 0.5
                )
    agree(presets.nsa_selection(length, block, top)(*inputs), out, inputs)


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize(("shape", "topk"), [((6, 12), 2), ((7, 8), 3), ((7, 8), 99)])
def test_biformer(shape: tuple[int, int], topk: int, even: bool) -> None:
    """One routing over all channels; keys of the padding are zeros, attended to."""
    n = math.prod(shape)
    query, key, value = inputs = drawn(3, 2, 2, n, 3, even)
    region = (shape[0] // 3, shape[1] // 3)
    regions = tiles(shape, region)

    def channels(x: Tensor, sites: list[int]) -> Tensor:
        return x[0][:, sites].mean(1).flatten()

    out = torch.zeros(1, 2, n, 3, dtype=torch.float64)
    for own in regions:
        routing = {
            j: (channels(query, own) @ channels(key, sites)).item()
            for j, sites in enumerate(regions)
        }
        kept = best(routing, topk)
        sites = [y for j in kept for y in regions[j]]
        padding = len(kept) * math.prod(region) - len(sites)
        zeros = torch.zeros(padding, 3, dtype=torch.float64)
        for h in range(2):
            keys = torch.cat([key[0, h, sites], zeros])
            values = torch.cat([value[0, h, sites], zeros])
            for x in own:
                out[0, h, x] = softmax_over(query[0, h, x], keys, values, 6**-0.5)
    agree(presets.biformer(shape, dim=6, n_win=3, topk=topk)(*inputs), out, inputs)


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize("topks", [(2,), (3, 2), (99, 99)])
def test_quadtree_b(topks: tuple[int, ...], even: bool) -> None:
    """Three levels at most; each token chooses among the children of its parent's best.

    The weights of the levels are learnt.
    """
    side, levels = 8, len(topks)
    query, key, value = inputs = drawn(4, 2, 2, side * side, 3, even)
    weights = torch.nn.Parameter(0.3 * torch.arange(levels + 1, dtype=torch.float64))
    share = torch.exp(weights) / torch.exp(weights).sum()
    out = torch.zeros(2, side, side, 3, dtype=torch.float64)

    def pyramid(x: Tensor) -> list[Tensor]:  # (h, rows, columns, d), coarsest first
        whole = [x[0].view(2, side, side, 3)]
        for _ in topks:
            y = whole[0]
            quads = [y[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
            whole.insert(0, torch.stack(quads).mean(0))
        return whole

    queries, keys, values = (pyramid(x) for x in (query, key, value))
    for h in range(2):
        kept: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for level in range(levels + 1):
            size = side >> (levels - level)
            everywhere = [(a, b) for a in range(size) for b in range(size)]
            chosen: dict[tuple[int, int], list[tuple[int, int]]] = {}
            for at in everywhere:
                if level == 0:
                    candidates = everywhere
                else:
                    candidates = sorted(
                        (2 * a + i, 2 * b + j)
                        for a, b in kept[at[0] // 2, at[1] // 2]
                        for i in (0, 1)
                        for j in (0, 1)
                    )
                q = queries[level][h, at[0], at[1]]
                ks = torch.stack([keys[level][h, a, b] for a, b in candidates])
                vs = torch.stack([values[level][h, a, b] for a, b in candidates])
                probability = torch.softmax(3**-0.5 * ks @ q, dim=0)
                scale = side // size
                rows = slice(at[0] * scale, (at[0] + 1) * scale)
                columns = slice(at[1] * scale, (at[1] + 1) * scale)
                out[h, rows, columns] = out[h, rows, columns] + share[level] * (probability @ vs)
                if level < levels:
                    top = best(dict(enumerate(probability.tolist())), topks[level])
                    chosen[at] = [candidates[i] for i in top]
            kept = chosen
    preset = presets.quadtree_b((side, side), topks, weights)
    agree(preset(*inputs), out.view(1, 2, side * side, 3), [*inputs, weights])


def test_learnt_weights_of_quadtree_b_are_parameters_of_a_layer() -> None:
    weights = torch.nn.Parameter(torch.zeros(2))
    preset = presets.quadtree_b((8, 8), (3,), weights)
    layer = SpatialAttention(6, 2, operator=preset.operator)
    assert any(p is weights for p in layer.parameters())
    layer(torch.randn(1, 64, 6, generator=seeded(0)), preset.structure).square().sum().backward()
    assert weights.grad is not None
    assert (weights.grad != 0).all()


def test_weights_of_quadtree_b_may_be_numbers() -> None:
    inputs, weights = drawn(5, 2, 2, 64, 3), (0.5, -1.0)
    learnt = presets.quadtree_b((8, 8), (3,), torch.tensor(weights, dtype=torch.float64))
    assert torch.equal(presets.quadtree_b((8, 8), (3,), weights)(*inputs), learnt(*inputs))


def test_quadtree_b_on_its_finest_level_alone_is_gpa() -> None:
    query, key, value = drawn(5, 2, 2, 64, 3)
    image = ndgpa.Image((8, 8), 2)
    preset = presets.quadtree_b((8, 8), (3,), (-1e9, 0.0))
    expected = ndgpa.gpa(query, key, value, image, 3)
    torch.testing.assert_close(preset(query, key, value), expected)


def test_quadtree_b_shares_key_heads() -> None:
    query, key, value = drawn(6, 4, 2, 64, 3)
    preset = presets.quadtree_b((8, 8), (3,))
    repeated = (x.repeat_interleave(2, dim=1) for x in (key, value))
    torch.testing.assert_close(preset(query, key, value), preset(query, *repeated))


def test_quadtree_b_moves_its_structure_to_the_query() -> None:
    inputs, preset = drawn(7, 2, 2, 64, 3), presets.quadtree_b((8, 8), (3,))
    elsewhere = preset.structure.to("meta")
    moved = presets.Preset(preset.operator, elsewhere, elsewhere)
    assert torch.equal(moved(*inputs), preset(*inputs))


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize("threshold", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("released", [False, True], ids=["paper", "released code"])
def test_xattention(released: bool, threshold: float, even: bool) -> None:
    """As in the paper, and as the docstring says for the released code, which reads block 0 too."""
    length, block, stride = 48, 8, 4
    query, key, value = inputs = drawn(6, 2, 2, length, 3)
    if even:  # every other block repeats the keys of the one before
        with torch.no_grad():
            key.unflatten(2, (-1, 2, block))[:, :, :, 1] = key.unflatten(2, (-1, 2, block))[
                :, :, :, 0
            ]
    blocks = [list(range(b, b + block)) for b in range(0, length, block)]
    runs = [list(range(a, a + stride)) for a in range(0, length, stride)]
    out = torch.zeros(1, 2, length, 3, dtype=torch.float64)
    for h in range(2):
        for own in blocks:
            mass = dict.fromkeys(range(len(blocks)), 0.0)
            for run in [r for r in runs if r[0] in own]:
                logits = [
                    sum((query[0, h, x] @ key[0, h, y]).item() for x, y in zip(run[::-1], other))
                    * 3**-0.5
                    / stride
                    for other in runs
                ]
                probability = torch.softmax(torch.tensor(logits, dtype=torch.float64), dim=0)
                for other, p in zip(runs, probability.tolist()):
                    mass[other[0] // block] += p
            total, reached, kept = sum(mass.values()), 0.0, []
            for j in best(mass, len(blocks)):
                if reached >= threshold * total and threshold < 1:
                    break
                kept.append(j)
                reached += mass[j]
            kept += [0] if released and 0 not in kept else []
            sites = [y for j in kept for y in blocks[j]]
            for x in own:
                out[0, h, x] = softmax_over(
                    query[0, h, x], key[0, h, sites], value[0, h, sites], 3**-0.5
                )
    preset = presets.xattention(length, block, stride, threshold)
    if released:
        rule = ndgpa.selection.Antidiagonal(stride, threshold) | ndgpa.Fixed((0,))
        preset = presets.Preset(ndgpa.GPA(rule), preset.structure, preset.key_structure)
    agree(preset(*inputs), out, inputs)


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize(("p", "min_ratio"), [(0.3, 0.0), (0.8, 0.0), (0.1, 0.6), (1.0, 0.0)])
def test_svg2(p: float, min_ratio: float, even: bool) -> None:
    """Centroids weighted by the size of their clusters; the one that crosses p is read.

    Of the keys in four places, two of the six clusters stay empty, and count for `min_ratio`.
    """
    query, key, value = inputs = drawn(7, 1, 1, 40, 3)
    if even:  # keys in four places, mirrored in a feature that no query has
        with torch.no_grad():
            query[..., 2] = 0
            places = (torch.tensor(x) for x in ([0.5, -1.0], [0.7], [-2.0, 2.0]))
            key[:] = torch.cartesian_prod(*places).repeat(10, 1)
    preset = presets.svg2(query[0, 0], key[0, 0], 4, 6, p, min_ratio)
    labels = [s.block_of_site.tolist() for s in (preset.structure, preset.key_structure)]
    cells, clusters = (
        [[x for x in range(40) if label[x] == c] for c in range(max(label) + 1)] for label in labels
    )
    out = torch.zeros(1, 1, 40, 3, dtype=torch.float64)
    for own in cells:
        centre = query[0, 0, own].mean(0)
        weights = [
            len(c) * math.exp((centre @ key[0, 0, c].mean(0)).item() * 3**-0.5) for c in clusters
        ]
        share = {j: w / sum(weights) for j, w in enumerate(weights)}
        reached, kept = 0.0, []
        for j in best(share, len(clusters)):
            enough = len(kept) >= int(min_ratio * 6)
            if enough and reached > p and p < 1:
                break
            kept.append(j)
            reached += share[j]
        sites = [y for j in kept for y in clusters[j]]
        for x in own:
            out[0, 0, x] = softmax_over(
                query[0, 0, x], key[0, 0, sites], value[0, 0, sites], 3**-0.5
            )
    agree(preset(*inputs), out, inputs)


@pytest.mark.parametrize(("p", "kept"), [(0.25, 2), (0.5, 3), (0.74, 3), (0.75, 4), (1.0, 4)])
def test_svg2_reads_on_until_p_is_exceeded(p: float, kept: int) -> None:
    """Four keys, each a cluster of its own, of exactly a quarter of the relevance each."""
    query, key = torch.zeros(3, 2), torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    preset = presets.svg2(query, key, 1, 4, p)
    value = torch.eye(4)[None, None]
    out = preset(query[None, None], key[None, None], value)
    assert ((out > 0).sum(dim=-1) == kept).all()


def test_svg2_does_not_read_clusters_of_hidden_keys() -> None:
    query, key, value = drawn(8, 2, 1, 40, 3)
    mask = torch.rand(1, 40, generator=seeded(3)) < 0.5
    preset = presets.svg2(query[0, 0], key[0, 0], 3, 6, 0.6, 0.5)
    hidden = (~mask)[:, None, :, None]
    poisoned = (x.masked_fill(hidden, torch.nan) for x in (key, value))
    zeroed = (x.masked_fill(hidden, 0) for x in (key, value))
    assert torch.equal(
        preset(query, *poisoned, key_mask=mask), preset(query, *zeroed, key_mask=mask)
    )
    every = presets.svg2(query[0, 0], key[0, 0], 3, 6, 1.0)
    torch.testing.assert_close(
        every(query, key, value, key_mask=mask),
        ndgpa.Full()(query, key, value, every.structure, every.key_structure, key_mask=mask),
    )


def test_k_means_is_lloyds() -> None:
    """No point is nearer to the mean of another cluster once it has settled."""
    x = torch.randn(200, 3, generator=seeded(0))
    own = presets.k_means(x, 8, 100)
    means = torch.stack([x[own == c].mean(0) for c in range(int(own.max()) + 1)])
    assert torch.equal(torch.cdist(x, means).argmin(1), own)


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
@pytest.mark.parametrize("kappa", [1, 2, 4])
def test_chal(kappa: int, even: bool) -> None:
    preset = presets.chal(64, kappa)
    assert preset.structure.num_cells == preset.structure.num_blocks == 64 * 32
    small = drawn(8, 1, 1, 32, 2, even)
    image = ndgpa.Image((8, 4), 2)
    ours = presets.Preset(preset.operator, image, image)(*small)
    agree(ours, algorithm_1(*small, image, image, kappa, 1.0, "dot"), small)


@pytest.mark.parametrize("even", [False, True], ids=["distinct", "equal scores"])
def test_paper_pivot(even: bool) -> None:
    preset = presets.paper_pivot()
    image = preset.structure
    assert (image.num_cells, image.num_blocks, image.num_sites) == (1024, 4096, 65536)
    assert preset.operator == ndgpa.GPA(ndgpa.TopK(12), scale=1.0)
    small = drawn(9, 1, 1, 64, 2, even)
    grid = ndgpa.Image((8, 8), 1, 2)
    ours = presets.Preset(preset.operator, grid, grid)(*small)
    agree(ours, algorithm_1(*small, grid, grid, 12, 1.0, "dot"), small)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: presets.paper_pivot(100), "side that is a multiple of 64; got 100"),
        (lambda: presets.vsa((4, 4)), "vsa needs a shape of 3 axes"),
        (lambda: presets.vsa((4, 4, 4), 1.0), r"sparsity must lie in \[0, 1\)"),
        (lambda: presets.vsa((4, 4, 4), tile=(4, 4)), "vsa needs a tile of 3 axes"),
        (lambda: presets.vsa((4, 4, 4), tile=(4, 0, 4)), "block must be at least 1; got 0"),
        (lambda: presets.moba(16, 0, 2), "chunk must be at least 1; got 0"),
        (lambda: presets.nsa_selection(16, 2.5), "block must be an int; got 2.5"),
        (lambda: presets.nsa_selection(0), "length must be at least 1; got 0"),
        (lambda: presets.moba(16, 4, 0), "top_k must be at least 1"),
        (lambda: presets.quadtree_b((6, 8), (2, 2)), "side that is a multiple of 4; got 6"),
        (
            lambda: presets.quadtree_b((8, 8), (2,), (0.0, 0.0, 0.0)),
            "quadtree_b needs 2 floating weights, one more than topks has entries",
        ),
        (
            lambda: presets.biformer((4, 9), 6, 7),
            "n_win must be at most 4, the number of pixels of the shorter side; got 7",
        ),
        (lambda: presets.xattention(100, 16, 4), "length that is a multiple of 16"),
        (lambda: presets.xattention(96, 16, 3), "block that is a multiple of 3"),
        (
            lambda: presets.svg2(torch.zeros(4, 2), torch.zeros(4, 2), 5, 2),
            "clusters must be at most 4",
        ),
    ],
)
def test_a_structure_that_a_preset_cannot_have_is_named(
    make: Callable[[], Any], match: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        make()


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["key_mask", "query_mask"])
def test_quadtree_b_refuses_masks(name: str) -> None:
    x, preset = torch.randn(1, 1, 64, 2), presets.quadtree_b((8, 8), (2,))
    with pytest.raises(ValueError, match=f"quadtree_b does not support {name}"):
        preset(x, x, x, **{name: torch.ones(1, 64, dtype=torch.bool)})


@pytest.mark.bad_input
def test_a_preset_is_called_on_its_own_number_of_sites() -> None:
    x = torch.randn(1, 1, 20, 2)
    with pytest.raises(ValueError, match="query has 20 sites but structure has 22"):
        presets.moba(22, 4, 2)(x, x, x)
    with pytest.raises(ValueError, match="full blocks of a multiple of 4"):
        ndgpa.select(x, x, ndgpa.Sequence(20, 6), ndgpa.selection.Antidiagonal(4, 0.5))
    with pytest.raises(NotImplementedError, match="its estimate looks ahead"):
        ndgpa.select(x, x, ndgpa.Sequence(20, 4), ndgpa.selection.Antidiagonal(4, 0.5), causal=True)
