"""The attentions that benchmarks/ranking.py compares: a function each, which says where it applies.

To add one, write a function decorated with `entrant("its name")`: it takes a `Place` and returns
its settings, cheapest first, each a `Setting`; it returns none where the method does not apply.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

import ndgpa
from ndgpa import presets
from ndgpa.analysis import low_rank_entries

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
COUNTS = range(1, 65)
SHARES = [n / 100 for n in range(2, 100)]


@dataclass(frozen=True)
class Place:
    """Where an attention is asked: features (1, h, n, d) on a space of some kind.

    `space(block, cell)` has blocks of so many sites and cells of so many blocks.
    """

    kind: str  # "image", "sequence", "video", "points"
    shape: tuple[int, ...]
    features: Tensor
    space: Callable[[int, int], ndgpa.SpatialStructure]

    @property
    def heads(self) -> int:
        return self.features.shape[1]

    @property
    def sites(self) -> int:
        return self.features.shape[2]

    @property
    def width(self) -> int:
        return self.features.shape[3]


@dataclass(frozen=True)
class Setting:
    """A call, and the entries of the affinity matrix that it computes for a query, on average."""

    call: Call
    count: Callable[[], float]
    text: str

    @cached_property
    def entries(self) -> float:
        return float(self.count())


Settings = list[Setting]
Family = Callable[[Place], Settings]
ENTRANTS: dict[str, Family] = {}
CAUSAL: dict[str, Family] = {}
"""Methods that are causal by definition: compared with causal full attention, on sequences."""
LEARNT: dict[str, Family] = {}
"""Methods that differ from one of the others by their gradients alone."""
ADAPTIVE: set[str] = set()
"""Methods that read the more keys the more alike the weights are."""


def entrant(
    name: str, to: dict[str, Family] = ENTRANTS, adaptive: bool = False
) -> Callable[[Callable[[Place], Iterable[Setting]]], Callable[[Place], Iterable[Setting]]]:
    def add(settings: Callable[[Place], Iterable[Setting]]) -> Callable[[Place], Iterable[Setting]]:
        to[name] = lambda place: list(settings(place))
        if adaptive:
            ADAPTIVE.add(name)
        return settings

    return add


def of_operator(operator: Any, space: ndgpa.SpatialStructure, entries: float, text: str) -> Setting:
    return Setting(lambda q, k, v: operator(q, k, v, space), lambda: entries, text)


def of_preset(make: Callable[[], presets.Preset], place: Place, seen: float, text: str) -> Setting:
    """A preset whose entries are those `seen` to select, and the keys that it then reads."""
    made = cache(make)

    def count() -> float:
        preset = made()
        return seen + keys_read(preset.operator, place, preset.structure, preset.key_structure)

    return Setting(lambda q, k, v: made()(q, k, v), count, text)


def keys_read(operator: Any, place: Place, *spaces: ndgpa.SpatialStructure) -> float:
    """Keys that a query reads, on average, counted in the operator's own mask."""
    x = place.features
    query_space, key_space = (*spaces, *spaces)[:2]
    groups = operator.mask(query_space, key_space, x, x)
    return float(torch.stack([group.sum() / group.shape[0] for group in groups]).mean())


def phase_1(place: Place, space: ndgpa.SpatialStructure) -> float:
    return space.num_blocks**2 / place.sites


def windows(place: Place, dilation: int) -> Iterator[tuple[int, ...]]:
    """Windows as near to cubes as may be, one key more along one axis at a time."""
    shape = place.shape
    for side in range(2, min(1200, min(shape))):
        for longer in range(len(shape)):
            window = tuple(side + (axis >= len(shape) - longer) for axis in range(len(shape)))
            if all(dilation * keys <= sites for keys, sites in zip(window, shape)):
                yield window


@entrant("GPA, blocks of 4")
def gpa(place: Place) -> Iterator[Setting]:
    return _gpa(place, 4)


@entrant("GPA, blocks of 16")
def gpa_of_16(place: Place) -> Iterator[Setting]:
    return _gpa(place, 16)


def _gpa(place: Place, block: int) -> Iterator[Setting]:
    space = place.space(block, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + block * k
        yield of_operator(ndgpa.GPA(k), space, entries, f"k = {k}")


@entrant("GPA, blocks of 4, far field")
def gpa_far_block(place: Place) -> Iterator[Setting]:
    return _gpa_far(place, 4)


@entrant("GPA, blocks of 16, far field")
def gpa_far_block_of_16(place: Place) -> Iterator[Setting]:
    return _gpa_far(place, 16)


def _gpa_far(place: Place, block: int) -> Iterator[Setting]:
    """The entries of the far field are those of Phase 1, and one a query for each bundle."""
    space = place.space(block, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + block * k + ndgpa.Bundles().count
        yield of_operator(ndgpa.GPA(k, far="block"), space, entries, f"k = {k}")


@entrant("GPA, second look and far field")
def gpa_refined(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        rule = ndgpa.Refine(ndgpa.TopK(2 * k), k, parts=2)  # an entry a query for each candidate
        entries = phase_1(place, space) + 4 * k + 2 * k + ndgpa.Bundles().count
        operator = ndgpa.GPA(rule, far="block")
        yield of_operator(operator, space, entries, f"k = {k} of {2 * k}")


@entrant("GPA, blocks of 16, far field of sites")
def gpa_far_site(place: Place) -> Iterator[Setting]:
    space = place.space(16, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + 16 * k + space.num_blocks - k
        yield of_operator(ndgpa.GPA(k, far="site"), space, entries, f"k = {k}")


@entrant("VSA, its sparse branch")
def vsa(place: Place) -> Iterator[Setting]:
    if place.kind not in ("image", "video"):
        return
    shape = place.shape if place.kind == "video" else (1, *place.shape)
    tile = (4, 4, 4) if place.kind == "video" else (1, *(side // 8 for side in place.shape))
    space = presets.vsa(shape, tile=tile).structure
    for k in COUNTS[:16]:
        entries = phase_1(place, space) + prod(tile) * k
        operator = ndgpa.GPA(ndgpa.TopK(k, relevance="logit"))
        yield of_operator(operator, space, entries, f"{k} tiles of {prod(tile)}")


@entrant("BiFormer")
def biformer(place: Place) -> Iterator[Setting]:
    if place.kind != "image":
        return
    scaled = place.heads**0.5  # it divides by all channels; here every method has 1/sqrt(d)
    region = place.sites // 64
    for k in COUNTS[:16]:
        preset = presets.biformer(place.shape, dim=place.heads * place.width, n_win=8, topk=k)
        entries = phase_1(place, preset.structure) + region * k
        yield Setting(
            lambda q, k, v, p=preset: p(scaled * q, k, v),
            lambda e=entries: e,
            f"{k} regions of {region}",
        )


@entrant("QuadTree-B, levels mixed evenly")
def quadtree(place: Place) -> Iterator[Setting]:
    return _quadtree(place, (0.0, 0.0, 0.0))


@entrant("QuadTree-B, its finest level")
def quadtree_finest(place: Place) -> Iterator[Setting]:
    return _quadtree(place, (-torch.inf, -torch.inf, 0.0))


def _quadtree(place: Place, weights: tuple[float, ...]) -> Iterator[Setting]:
    """The mix of levels is learnt where the method is trained."""
    if place.kind != "image":
        return
    coarsest = place.sites // 16
    for k in COUNTS[:coarsest]:
        entries = coarsest**2 / place.sites + k + 4 * k
        preset = presets.quadtree_b(place.shape, (k, k), weights)
        yield Setting(
            lambda q, k, v, p=preset: p(q, k, v), lambda e=entries: e, f"{k} tokens a level"
        )


@entrant("SVG2", adaptive=True)
def svg2(place: Place) -> Iterator[Setting]:
    x = place.features[0, 0]
    for p in SHARES:
        yield of_preset(
            lambda p=p: presets.svg2(x, x, query_clusters=64, key_clusters=256, p=p),
            place,
            64 * 256 / place.sites,
            f"p = {p}",
        )


@entrant("XAttention", adaptive=True)
def xattention(place: Place) -> Iterator[Setting]:
    if place.kind == "points":
        return
    for p in SHARES:
        yield of_preset(
            lambda p=p: presets.xattention(place.sites, 32, 32, p),
            place,
            place.sites / 32,  # an antidiagonal of 32 by 32 has 32 entries
            f"threshold {p}",
        )


@entrant("Neighborhood")
def neighborhood(place: Place) -> Iterator[Setting]:
    if place.kind == "points":
        return
    for window in windows(place, 1):
        operator = ndgpa.operators.Neighborhood(window)
        yield of_operator(operator, place.space(4, 1), prod(window), by(window))


@entrant("Hydra, two dilations")
def hydra(place: Place) -> Iterator[Setting]:
    """A dilation of up to 4, with which a window of half an axis still fits."""
    if place.kind == "points":
        return
    dilation = max(2, min(4, min(place.shape) // 8))
    for window in windows(place, dilation):
        operator = ndgpa.operators.Hydra.of([window], [1, dilation])
        text = f"{by(window)}, dilations 1 and {dilation}"
        yield of_operator(operator, place.space(4, 1), prod(window), text)


def by(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


@entrant("MultiAxis")
def multi_axis(place: Place) -> Iterator[Setting]:
    """Half of the heads read a block, half of them one site of each block."""
    for inside in (16, 32, 64, 128, 256, 512, 1024):
        if inside**2 < place.sites or place.sites % inside:
            continue
        entries = (inside + place.sites / inside) / 2
        if place.kind == "points":
            space, operator = place.space(inside, 1), ndgpa.operators.MultiAxis()
        else:
            sides = block_of(inside, place.shape)
            space, operator = place.space(4, 1), ndgpa.operators.MultiAxis(sides)
        yield of_operator(operator, space, entries, f"blocks of {inside}")


def block_of(sites: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Double a block along its shortest axis, the last of several, until it has so many sites."""
    block = [1] * len(shape)
    while prod(block) < sites:
        block[min(reversed(range(len(shape))), key=lambda axis: block[axis])] *= 2
    return tuple(block)


@entrant("LocalSparse")
def local_sparse(place: Place) -> Iterator[Setting]:
    if place.kind == "points":
        return
    space = place.space(4, 1)
    side = round(place.sites**0.5)
    for stride in range(side, min(12 * side, place.sites // 2), side // 4):
        operator = ndgpa.operators.LocalSparse("strided", stride=stride)
        yield Setting(
            lambda q, k, v, o=operator: o(q, k, v, space),
            lambda o=operator: keys_read(o, place, space),
            f"stride {stride}",
        )


@entrant("Nystrom")
def nystrom(place: Place) -> Iterator[Setting]:
    for rank in range(8, place.sites // 4, 4):
        entries = (low_rank_entries(rank, place.sites) + rank**2) / place.sites
        operator = ndgpa.operators.Nystrom(rank)
        yield of_operator(operator, place.space(4, 1), entries, f"{rank} landmarks")


@entrant("Performer")
def performer(place: Place) -> Iterator[Setting]:
    for rank in range(8, place.sites // 4, 4):
        entries = low_rank_entries(rank, place.sites) / place.sites

        @cache
        def made(rank: int = rank) -> Any:
            torch.manual_seed(rank)
            return ndgpa.operators.Performer(place.width, rank).eval()

        yield Setting(
            lambda q, k, v, made=made: made()(q, k, v, place.space(4, 1)),
            lambda e=entries: e,
            f"{rank} features",
        )


@entrant("none")
def no_attention(place: Place) -> Iterator[Setting]:
    yield of_operator(ndgpa.operators.NoAttention(), place.space(4, 1), 0.0, "-")


@entrant("full")
def full(place: Place) -> Iterator[Setting]:
    yield of_operator(ndgpa.Full(), place.space(4, 1), place.sites, "-")


@entrant("GPA, learnt selection", LEARNT)
def gpa_straight_through(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + 4 * k
        operator = ndgpa.GPA(ndgpa.StraightThrough(ndgpa.TopK(k)))
        yield of_operator(operator, space, entries, f"k = {k}")


@entrant("GPA, blocks of 4, causal", CAUSAL)
def causal_gpa(place: Place) -> Iterator[Setting]:
    return _causal_gpa(place, 4)


@entrant("GPA, blocks of 16, causal", CAUSAL)
def causal_gpa_of_16(place: Place) -> Iterator[Setting]:
    return _causal_gpa(place, 16)


def _causal_gpa(place: Place, block: int) -> Iterator[Setting]:
    space = place.space(block, 1)
    for k in COUNTS:
        operator = ndgpa.GPA(ndgpa.TopK(k, force=ndgpa.Own()), causal=True)
        entries = phase_1(place, space) / 2 + block * (k + 1)
        yield of_operator(operator, space, entries, f"k = {k} and its own")


@entrant("GPA, blocks of 4, far field, causal", CAUSAL)
def causal_gpa_far(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        operator = ndgpa.GPA(ndgpa.TopK(k, force=ndgpa.Own()), causal=True, far="block")
        entries = phase_1(place, space) / 2 + 4 * (k + 1) + ndgpa.Bundles().count
        yield of_operator(operator, space, entries, f"k = {k} and its own")


@entrant("MoBA", CAUSAL)
def moba(place: Place) -> Iterator[Setting]:
    return _of_queries(place, presets.moba)


@entrant("NSA, its selection branch", CAUSAL)
def nsa(place: Place) -> Iterator[Setting]:
    return _of_queries(place, presets.nsa_selection)


def _of_queries(place: Place, preset: Callable[..., presets.Preset]) -> Iterator[Setting]:
    """Single queries are compared with the mean keys of their past."""
    for k in COUNTS[:16]:
        made = preset(place.sites, 32, k)
        entries = place.sites / 32 / 2 + 32 * k
        yield Setting(lambda q, k, v, p=made: p(q, k, v), lambda e=entries: e, f"{k} blocks of 32")


@entrant("a window, causal", CAUSAL)
def causal_window(place: Place) -> Iterator[Setting]:
    space = place.space(16, 1)
    for radius in range(1, 40):
        operator = ndgpa.GPA(ndgpa.Window(radius), causal=True)
        yield of_operator(operator, space, 16.0 * (radius + 1), f"{16 * radius} back")


@entrant("full, causal", CAUSAL)
def causal_full(place: Place) -> Iterator[Setting]:
    yield of_operator(ndgpa.Full(causal=True), place.space(4, 1), place.sites / 2, "-")
