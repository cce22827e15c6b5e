"""The paper's configurations and its peers, each as a structure, a rule and an operator.

A preset takes the peer's own parameters and gives the peer's own result: which blocks are read,
what counts towards k, how ties fall, the scales, the padding. Call it with query, key and value in
natural order, laid out as in `ndgpa.gpa`:

    preset = ndgpa.presets.vsa((8, 16, 16), sparsity=0.9)
    out = preset(query, key, value)
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ndgpa import arguments
from ndgpa.functional import attend, select
from ndgpa.operators import GPA, Operator
from ndgpa.problem import Problem, Selection
from ndgpa.selection import Antidiagonal, Own, Rule, TopK
from ndgpa.selection.coarse import coarse_level
from ndgpa.selection.select_children import select_children
from ndgpa.selection.slots import ascending
from ndgpa.structures import Clusters, Grid, Image, Sequence, SpatialStructure


@dataclass(frozen=True)
class Preset:
    """An operator on the structure that it was made for."""

    operator: Operator
    structure: SpatialStructure
    key_structure: SpatialStructure

    def __call__(
        self,
        query: Float[Tensor, "b h n d"],
        key: Float[Tensor, "b hk n_k d"],
        value: Float[Tensor, "b hk n_k dv"],
        **options: Any,
    ) -> Float[Tensor, "b h n dv"]:
        return self.operator(query, key, value, self.structure, self.key_structure, **options)


def paper_pivot(side: int = 256) -> Preset:
    """GPA1024_12_64: Phase 1 at 64x64, cells of 2x2, kappa 12, no scale.

    Source: Section 3.1 of Jetchev et al. 2021.

    Args:
        side: Pixels along each side, a multiple of 64.
    """
    _check_multiple("paper_pivot", "side", side, 64)
    image = Image((side, side), side // 64, 2)
    return Preset(GPA(TopK(12), scale=1.0), image, image)


def chal(height: int = 512, kappa: int = 4) -> Preset:
    """The 512x256 configuration: Phase 1 at 64x32, cells of one coarse pixel, kappa 1, 2 or 4.

    Source: Section 3.3 of Jetchev et al. 2021.

    Args:
        height: Pixels, a multiple of 64; the width is half of it.
    """
    _check_multiple("chal", "height", height, 64)
    image = Image((height, height // 2), height // 64)
    return Preset(GPA(TopK(kappa), scale=1.0), image, image)


def vsa(
    shape: tuple[int, int, int],
    sparsity: float = 0.9,
    tile: tuple[int, int, int] = (4, 4, 4),
    gated: bool = False,
) -> Preset:
    """Video Sparse Attention: the best tiles for each tile, and a coarse branch.

    Means over the valid tokens of a tile, one query tile a cell, by logits, ties to the lowest; the
    coarse softmax counts each tile once. Without a gate the coarse branch has weight 1. Ours works
    in float32 where the peer rounds means and scores to bfloat16.

    Source: Zhang et al. 2025, "VSA: Faster video diffusion with trainable sparse attention".

    Args:
        shape: Frames, height, width, in tokens.
        sparsity: The share of tiles that is not read, in [0, 1). As in the peer, the number read is
            the ceiling of a floating product: 0.7 of 10 tiles leaves 4, as 1 - 0.7 is above 0.3.
        tile: Tokens of a tile along each axis; an axis that is shorter is one tile long.
        gated: Whether the call takes a `gate` for the coarse branch, (b, h, n, dv).
    """
    sizes = _shape("vsa", "shape", shape, 3)
    tile_sizes = _shape("vsa", "tile", tile, 3)
    arguments.below_one("sparsity", sparsity)
    video = Grid(sizes, tuple(min(t, n) for t, n in zip(tile_sizes, sizes)))
    count = video.num_blocks
    k = max(1, min(math.ceil((1 - sparsity) * count), count))
    branch = "gate" if gated else "add"
    operator = GPA(TopK(k, relevance="logit"), coarse=branch, coarse_sizes=False)
    return Preset(operator, video, video)


def moba(length: int, chunk: int, top_k: int) -> Preset:
    """Mixture of Block Attention: each query reads its own chunk and the best past ones, causally.

    Logits of single queries and mean keys; the own chunk counts as one of `top_k`. A chunk longer
    than the sequence holds all of it.

    Source: Lu et al. 2025, "MoBA: Mixture of block attention for long-context LLMs".
    """
    arguments.positive_count("top_k", top_k)
    rule: Rule = Own() if top_k == 1 else TopK(top_k - 1, relevance="logit", force=Own())
    return _causal(rule, length, "chunk", chunk)


def nsa_selection(length: int, block: int = 64, top: int = 16) -> Preset:
    """The selection branch of Native Sparse Attention, causal, before its gate.

    Softmax over the complete past blocks for each query and head, summed over the query heads of a
    key head, which share a selection; the own block counts as one of `top`. A block longer than the
    sequence holds all of it.

    Source: Yuan et al. 2025, "Native sparse attention".
    """
    arguments.positive_count("top", top)
    rule: Rule = Own() if top == 1 else TopK(top - 1, share="group", force=Own())
    return _causal(rule, length, "block", block)


def _causal(rule: Rule, length: int, name: str, block: int) -> Preset:
    """Select blocks of keys for each token of a sequence, causally."""
    arguments.positive_count("length", length)
    arguments.positive_count(name, block)
    return Preset(GPA(rule, causal=True), Sequence(length, 1), Sequence(length, min(block, length)))


def biformer(shape: tuple[int, int], dim: int, n_win: int = 7, topk: int = 4) -> Preset:
    """Bi-level routing attention: one routing for all heads, over all channels.

    Regions are (height // n_win, width // n_win) pixels. Where they do not divide, keys and values
    are padded with zeros that are attended to, as the peer does; means leave the padding out.

    Source: Zhu et al. 2023, "BiFormer: Vision transformer with bi-level routing attention".

    Args:
        dim: Channels of all heads together; the scale is 1/sqrt(dim).
    """
    height, width = _shape("biformer", "shape", shape, 2)
    arguments.at_most("n_win", n_win, min(height, width), "pixels of the shorter side")
    image = Image((height, width), (height // n_win, width // n_win))
    rule = TopK(topk, relevance="logit", share="all")
    return Preset(_ZeroPadded(rule, dim**-0.5), image, image)


@dataclass(frozen=True)
class _ZeroPadded:
    """GPA on a grid whose border blocks are filled up with keys and values of zero."""

    rule: Rule
    scale: float

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        grid = structure if key_structure is None else key_structure
        assert isinstance(grid, Grid)
        options: dict[str, Any] = {"scale": self.scale, "key_mask": key_mask}
        selection = select(
            query,
            key,
            structure,
            self.rule,
            key_structure=grid,
            query_mask=query_mask,
            **options,
        )
        whole = tuple(-(-n // r) * r for n, r in zip(grid.shape, grid.block_shape))
        more = [extra for n, w in zip(grid.shape[::-1], whole[::-1]) for extra in (0, w - n)]
        key, value = (
            F.pad(x.unflatten(2, grid.shape), [0, 0, *more]).flatten(2, -2) for x in (key, value)
        )
        if key_mask is not None:
            mask = F.pad(key_mask.unflatten(1, grid.shape), more, value=True)
            options["key_mask"] = mask.flatten(1)
        padded = Grid(whole, grid.block_shape)
        return attend(query, key, value, selection, structure, key_structure=padded, **options)


def quadtree_b(
    shape: tuple[int, int],
    topks: tuple[int, ...],
    weights: Float[Tensor, " levels"] | tuple[float, ...] | None = None,
) -> Preset:
    """QuadTree attention B: messages of all levels of a pyramid, added with softmax weights.

    At the coarsest level every token attends to all. At each finer one a token attends to the
    children of the `topks` best tokens of its parent, and chooses among them for its own children.
    Queries, keys and values of a level are 2x2 means of the next finer one's.

    Source: Tang et al. 2022, "QuadTree attention for vision transformers".

    Args:
        shape: Height and width, multiples of 2 for each of `topks`.
        topks: How many tokens are kept at each level but the finest, coarsest first.
        weights: The weight of each level before the softmax, coarsest first; None is 0s. To learn
            them, give an `nn.Parameter`; it becomes a parameter of the preset's operator.
    """
    height, width = _shape("quadtree_b", "shape", shape, 2)
    for size in (height, width):
        _check_multiple("quadtree_b", "side", size, 2 ** len(topks))
    levels = len(topks) + 1
    if not isinstance(weights, Tensor):
        given = (0.0,) * levels if weights is None else weights
        weights = torch.tensor(given, dtype=torch.float64)
    _check_level_weights(weights, levels)
    image = Image((height, width), 2)
    return Preset(_QuadTreeB(topks, weights), image, image)


class _QuadTreeB(nn.Module):
    def __init__(self, topks: tuple[int, ...], weights: Float[Tensor, " levels"]) -> None:
        super().__init__()
        self.topks, self.weights = topks, weights

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        structure: SpatialStructure,
        key_structure: SpatialStructure | None = None,
        *,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        _check_no_mask("quadtree_b", key_mask)
        structure = structure.to(query.device)
        levels = [(structure, query, key, value)]
        for _ in self.topks:
            space, q, k, v = levels[0]
            q, k, v = (space.downsample(x) for x in (q, k, v))
            levels.insert(0, (space.coarsened(2), q, k, v))
        share = self.weights.to(torch.promote_types(self.weights.dtype, torch.float32)).softmax(0)
        _, q, k, v = levels[0]
        grouped = k.shape[1] != q.shape[1]
        out = share[0] * F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        kept: Tensor | None = None
        for level, topk in enumerate(self.topks, start=1):
            space, q, k, _ = levels[level - 1]
            kept = _choose(q, k, space, kept, topk)
            finer, q, k, v = levels[level]
            message = attend(q, k, v, Selection(kept), finer)
            out = out[:, :, finer.block_of_site] + share[level] * message
        return out


def _choose(
    query: Tensor,  # (b, h, n, d): tokens of one level
    key: Tensor,
    space: SpatialStructure,  # the tokens, four to a block
    kept: Int[Tensor, "b h B K"] | None,  # what the parents kept; None at the coarsest level
    topk: int,
) -> Int[Tensor, "b h n k"]:
    """The best tokens for each token among the children of what its parent kept."""
    if kept is None:
        every = Sequence(space.num_sites, 1)
        return select(query, key, every, TopK(topk)).blocks
    return select_children(
        query=query[:, :, :, None].detach(),
        key=space.by_block(key).detach(),
        log_size=query.new_zeros(len(query), *space.blocks.shape),
        kept=kept[:, :, space.block_of_site],
        weight=query.new_ones(len(query), space.num_sites, 1),
        forced=None,
        children=space.blocks,
        k=topk,
        share="head",
        scale=query.shape[-1] ** -0.5,
    )


def xattention(length: int, block: int = 128, stride: int = 16, threshold: float = 0.9) -> Preset:
    """XAttention, not causal: blocks until a share of the antidiagonal relevance is reached.

    It follows the paper. The released code, by a slip, reads block 0 in addition: it overwrites the
    numbers of the blocks that it drops with 0, then marks all numbers as read. For its result, use
    `GPA(Antidiagonal(stride, threshold) | Fixed((0,)))` on the same structures.

    Source: Xu et al. 2025, "XAttention: Block sparse attention with antidiagonal scoring".

    Args:
        length, block: Tokens, and tokens of a block, which divide them.
        stride: Tokens of a run, which divide a block.
        threshold: The share of relevance.
    """
    _check_multiple("xattention", "length", length, block)
    _check_multiple("xattention", "block", block, stride)
    sequence = Sequence(length, block)
    return Preset(GPA(Antidiagonal(stride, threshold)), sequence, sequence)


def svg2(
    query: Float[Tensor, "n d"],
    key: Float[Tensor, "n_k d"],
    query_clusters: int,
    key_clusters: int,
    p: float = 0.9,
    min_ratio: float = 0.0,
    iterations: int = 10,
    seed: int = 0,
) -> Preset:
    """Attention between k-means clusters of the tokens, as in Sparse VideoGen 2.

    A cluster of queries is a cell; it reads clusters of keys until they exceed a share p of its
    relevance, each weighted by its size. One clustering serves all heads.

    Source: Yang et al. 2025, "Sparse VideoGen2".

    Args:
        query, key: The tokens to cluster.
        min_ratio: The least share of `key_clusters` that is read, rounded down; clusters that stay
            empty count towards `key_clusters`, as in the peer.
    """
    spaces = []
    for x, count in ((query, query_clusters), (key, key_clusters)):
        arguments.at_most("clusters", count, len(x), "tokens")
        block = k_means(x.detach(), count, iterations, seed)
        spaces.append(Clusters(block, torch.arange(int(block.max()) + 1, device=x.device)))
    return Preset(GPA(_MoreThanP(p, int(min_ratio * key_clusters))), *spaces)


@dataclass(frozen=True)
class _MoreThanP(Rule):
    """Read the most relevant blocks until their share exceeds `p`, where `TopP` stops at p."""

    p: float
    at_least: int

    def __post_init__(self) -> None:
        arguments.share_of("p", self.p)

    def select(self, problem: Problem) -> Selection:
        """Select for cells of one block each."""
        coarse = coarse_level(problem)
        key = coarse.key.repeat_interleave(problem.query.shape[1] // problem.key.shape[1], dim=1)
        logits = coarse.scale * coarse.query @ key.mT
        if coarse.log_size is not None:
            logits = logits + coarse.log_size[:, None, None]
        logits, ids = logits.detach().sort(dim=-1, descending=True, stable=True)
        reached = logits.softmax(dim=-1).cumsum(dim=-1).clamp(max=1)
        enough = F.pad(reached[..., :-1] > self.p, (1, 0))
        enough[..., : self.at_least] = False
        ids = ids.masked_fill(enough | (logits == -torch.inf), -1)
        return Selection(ascending(ids, problem.key_structure.num_blocks).int())


def k_means(
    x: Float[Tensor, "n d"], count: int, iterations: int, seed: int = 0
) -> Int[Tensor, " n"]:
    """The cluster of each point, by Lloyd's iteration from random points; none is empty."""
    generator = torch.Generator().manual_seed(seed)
    centre = x[torch.randperm(len(x), generator=generator)[:count].to(x.device)]
    own = torch.cdist(x, centre).argmin(dim=1)
    for _ in range(iterations):
        size = own.bincount(minlength=count)
        sums = torch.zeros_like(centre).index_add_(0, own, x)
        centre = torch.where(size[:, None] > 0, sums / size.clamp(min=1)[:, None], centre)
        own = torch.cdist(x, centre).argmin(dim=1)
    return own.unique(return_inverse=True)[1]


def _shape(who: str, name: str, sizes: Any, rank: int) -> tuple[int, ...]:
    entries = arguments.ints(name, sizes)
    if len(entries) != rank:
        raise ValueError(f"{who} needs a {name} of {rank} axes; got {sizes}")
    return entries


def _check_level_weights(weights: Tensor, levels: int) -> None:
    if not weights.dtype.is_floating_point or tuple(weights.shape) != (levels,):
        raise ValueError(
            f"quadtree_b needs {levels} floating weights, one more than topks has entries; got "
            f"{weights.dtype} of shape {tuple(weights.shape)}"
        )


def _check_multiple(who: str, name: str, value: int, of: int) -> None:
    if value % of:
        raise ValueError(f"{who} needs a {name} that is a multiple of {of}; got {value}")


def _check_no_mask(who: str, mask: Any) -> None:
    if mask is not None:
        raise ValueError(f"{who} does not support key_mask")
