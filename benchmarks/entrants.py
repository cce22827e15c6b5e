"""The attentions that benchmarks/ranking.py compares: a function each, which says where it applies.

To add one, write a function decorated with `entrant("its name")`: it takes a `Place` and yields its
settings, cheapest first, each a `Setting`; it yields nothing where the method does not apply.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ndgpa
from ndgpa import presets
from ndgpa.analysis import low_rank_entries

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


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
    def sites(self) -> int:
        return self.features.shape[2]

    @property
    def width(self) -> int:
        return self.features.shape[3]


@dataclass(frozen=True)
class Setting:
    """A call, and the entries of the affinity matrix that it computes for a query, on average."""

    call: Call
    entries: float
    text: str


Settings = Callable[[Place], Iterator[Setting]]
ENTRANTS: dict[str, Settings] = {}
CAUSAL: dict[str, Settings] = {}
"""Methods that are causal by definition: compared with causal full attention, on sequences."""


def entrant(name: str, to: dict[str, Settings] = ENTRANTS) -> Callable[[Settings], Settings]:
    def add(settings: Settings) -> Settings:
        to[name] = settings
        return settings

    return add


def of_operator(operator: Any, space: ndgpa.SpatialStructure, entries: float, text: str) -> Setting:
    return Setting(lambda q, k, v: operator(q, k, v, space), entries, text)


def keys_read(operator: Any, place: Place, *spaces: ndgpa.SpatialStructure) -> float:
    """Keys that a query reads, on average, counted in the operator's own mask."""
    x = place.features
    query_space, key_space = (*spaces, *spaces)[:2]
    groups = operator.mask(query_space, key_space, x, x)
    return float(torch.stack([group.sum() / group.shape[0] for group in groups]).mean())


def phase_1(place: Place, *spaces: ndgpa.SpatialStructure) -> float:
    query_space, key_space = (*spaces, *spaces)[:2]
    return query_space.num_blocks * key_space.num_blocks / place.sites


def of_preset(preset: presets.Preset, place: Place, text: str) -> Setting:
    """A preset whose operator selects; its entries are counted in what it selects."""
    spaces = (preset.structure, preset.key_structure)
    entries = phase_1(place, *spaces) + keys_read(preset.operator, place, *spaces)
    return Setting(lambda q, k, v: preset(q, k, v), entries, text)


@entrant("GPA")
def gpa(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + 4 * k
        yield of_operator(ndgpa.GPA(k), space, entries, f"GPA({k}), blocks of 4")


@entrant("GPA, blocks of 16")
def gpa_of_16(place: Place) -> Iterator[Setting]:
    space = place.space(16, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + 16 * k
        yield of_operator(ndgpa.GPA(k), space, entries, f"GPA({k}), blocks of 16")


@entrant("GPA, far field in bundles")
def gpa_far_block(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + 4 * k + ndgpa.Bundles().count
        yield of_operator(ndgpa.GPA(k, far="block"), space, entries, f'GPA({k}, far="block")')


@entrant("GPA, second look and far field")
def gpa_refined(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        rule = ndgpa.Refine(ndgpa.TopK(2 * k), k, parts=2)  # an entry a query for each candidate
        entries = phase_1(place, space) + 4 * k + 2 * k + ndgpa.Bundles().count
        operator = ndgpa.GPA(rule, far="block")
        yield of_operator(operator, space, entries, f"{k} of {2 * k} blocks of 4, far field")


@entrant("GPA, far field of sites")
def gpa_far_site(place: Place) -> Iterator[Setting]:
    space = place.space(16, 1)
    for k in COUNTS:
        entries = phase_1(place, space) + 16 * k + space.num_blocks - k
        yield of_operator(ndgpa.GPA(k, far="site"), space, entries, f'GPA({k}, far="site"), of 16')


@entrant("VSA, its sparse branch")
def vsa(place: Place) -> Iterator[Setting]:
    shapes = {"video": ((4, 4, 4), place.shape), "image": ((1, 8, 8), (1, *place.shape))}
    if place.kind not in shapes:
        return
    tile, shape = shapes[place.kind]
    for k in COUNTS[:8]:
        space = presets.vsa(shape, tile=tile).structure
        rule = ndgpa.TopK(k, relevance="logit")
        yield of_preset(presets.Preset(ndgpa.GPA(rule), space, space), place, f"{k} tiles of 64")


@entrant("BiFormer")
def biformer(place: Place) -> Iterator[Setting]:
    if place.kind != "image":
        return
    heads = place.features.shape[1]
    scaled = heads**0.5  # it divides by all channels; here every method has 1/sqrt(d)
    for k in COUNTS[:8]:
        preset = presets.biformer(place.shape, dim=heads * place.width, n_win=8, topk=k)
        entries = phase_1(place, preset.structure) + 64 * k
        yield Setting(lambda q, k, v, p=preset: p(scaled * q, k, v), entries, f"{k} regions of 64")


@entrant("QuadTree-B")
def quadtree(place: Place) -> Iterator[Setting]:
    if place.kind != "image":
        return
    for k in COUNTS[:9]:
        levels = [(place.sites / 4**level) for level in (2, 1, 0)]
        entries = (levels[0] ** 2 + levels[1] * 4 * k + levels[2] * 4 * k) / place.sites
        preset = presets.quadtree_b(place.shape, (k, k))
        yield Setting(lambda q, k, v, p=preset: p(q, k, v), entries, f"{k} tokens a level")


@entrant("SVG2")
def svg2(place: Place) -> Iterator[Setting]:
    x = place.features[0, 0]
    for p in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        preset = presets.svg2(x, x, query_clusters=64, key_clusters=256, p=p)
        yield of_preset(preset, place, f"p = {p}")


@entrant("XAttention")
def xattention(place: Place) -> Iterator[Setting]:
    if place.kind != "sequence":
        return
    for p in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        preset = presets.xattention(place.sites, block=32, stride=8, threshold=p)
        read = keys_read(preset.operator, place, preset.structure)
        entries = place.sites / 64 + read  # runs of 8 by runs of 8
        yield Setting(lambda q, k, v, a=preset: a(q, k, v), entries, f"threshold {p}")


@entrant("Neighborhood")
def neighborhood(place: Place) -> Iterator[Setting]:
    if place.kind == "points":
        return
    rank = len(place.shape)
    for side in (3, 5, 7, 9, 11, 13, 16, 64, 128, 256, 300, 512):
        if side <= min(place.shape):
            operator = ndgpa.operators.Neighborhood(side)
            yield of_operator(operator, place.space(4, 1), float(side**rank), f"{side} a side")


@entrant("Hydra, dilations 1 and 4")
def hydra(place: Place) -> Iterator[Setting]:
    if place.kind == "points":
        return
    rank = len(place.shape)
    for side in (3, 5, 7, 9, 11, 13, 16, 64, 128, 256, 300, 512):
        if 4 * side <= min(place.shape):
            operator = ndgpa.operators.Hydra.of([side], [1, 4])
            yield of_operator(operator, place.space(4, 1), float(side**rank), f"{side} a side")


@entrant("MultiAxis")
def multi_axis(place: Place) -> Iterator[Setting]:
    if place.kind not in ("image", "sequence"):
        return
    for side in (4, 8, 16) if place.kind == "image" else (16, 64, 256):
        operator = ndgpa.operators.MultiAxis(side)
        inside = side ** len(place.shape)
        entries = (inside + place.sites / inside) / 2
        yield of_operator(operator, place.space(4, 1), entries, f"blocks of {inside}")


@entrant("LocalSparse")
def local_sparse(place: Place) -> Iterator[Setting]:
    if place.kind == "points":
        return
    space = place.space(4, 1)
    for stride in (64, 128, 256):
        operator = ndgpa.operators.LocalSparse("strided", stride=stride)
        yield of_operator(operator, space, keys_read(operator, place, space), f"stride {stride}")


@entrant("Nystrom")
def nystrom(place: Place) -> Iterator[Setting]:
    for rank in (16, 32, 64, 128, 144, 256):
        entries = low_rank_entries(rank, place.sites) / place.sites
        operator = ndgpa.operators.Nystrom(rank)
        yield of_operator(operator, place.space(4, 1), entries, f"{rank} landmarks")


@entrant("Performer")
def performer(place: Place) -> Iterator[Setting]:
    for rank in (16, 32, 64, 128, 144, 256):
        entries = low_rank_entries(rank, place.sites) / place.sites
        operator = ndgpa.operators.Performer(place.width, rank).eval()
        yield of_operator(operator, place.space(4, 1), entries, f"{rank} features")


@entrant("NoAttention")
def no_attention(place: Place) -> Iterator[Setting]:
    yield of_operator(ndgpa.operators.NoAttention(), place.space(4, 1), 0.0, "-")


@entrant("Full")
def full(place: Place) -> Iterator[Setting]:
    yield of_operator(ndgpa.Full(), place.space(4, 1), float(place.sites), "-")


@entrant("GPA, causal", CAUSAL)
def causal_gpa(place: Place) -> Iterator[Setting]:
    space = place.space(4, 1)
    for k in COUNTS:
        operator = ndgpa.GPA(ndgpa.TopK(k, force=ndgpa.Own()), causal=True)
        entries = phase_1(place, space) / 2 + 4 * (k + 1)
        yield of_operator(operator, space, entries, f"{k} blocks of 4 and its own")


@entrant("GPA, causal, blocks of 16", CAUSAL)
def causal_gpa_of_16(place: Place) -> Iterator[Setting]:
    space = place.space(16, 1)
    for k in COUNTS:
        operator = ndgpa.GPA(ndgpa.TopK(k, force=ndgpa.Own()), causal=True)
        entries = phase_1(place, space) / 2 + 16 * (k + 1)
        yield of_operator(operator, space, entries, f"{k} blocks of 16 and its own")


@entrant("MoBA", CAUSAL)
def moba(place: Place) -> Iterator[Setting]:
    for k in COUNTS[:8]:
        preset = presets.moba(place.sites, chunk=32, top_k=k)
        entries = place.sites / 32 / 2 + 32 * k  # single queries against mean keys
        yield Setting(lambda q, k, v, p=preset: p(q, k, v), entries, f"{k} chunks of 32")


@entrant("NSA, its selection branch", CAUSAL)
def nsa(place: Place) -> Iterator[Setting]:
    for k in COUNTS[:8]:
        preset = presets.nsa_selection(place.sites, block=32, top=k)
        entries = place.sites / 32 / 2 + 32 * k
        yield Setting(lambda q, k, v, p=preset: p(q, k, v), entries, f"{k} blocks of 32")


@entrant("Window, causal", CAUSAL)
def causal_window(place: Place) -> Iterator[Setting]:
    for radius in (1, 3, 7, 15, 17, 31):
        space = place.space(16, 1)
        operator = ndgpa.GPA(ndgpa.Window(radius), causal=True)
        yield of_operator(operator, space, 16.0 * (radius + 1), f"{16 * radius} back")


@entrant("Full, causal", CAUSAL)
def causal_full(place: Place) -> Iterator[Setting]:
    yield of_operator(ndgpa.Full(causal=True), place.space(4, 1), place.sites / 2, "-")
