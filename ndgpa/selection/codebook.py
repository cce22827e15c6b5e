"""The best blocks as far as keys can be told apart by a codebook, whatever their means say."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule
from ndgpa.selection.coarse import check_has_keys, voters
from ndgpa.selection.forced import always_read, check_force
from ndgpa.selection.relevance import SHARE, Share, selection_heads
from ndgpa.selection.select_by_codes import select_by_codes
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.tables import place_of_member

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Codebook(Rule):
    """Each cell reads the k blocks on which its queries' attention to quantized keys falls.

    Some keys are codes. Every key counts as the code that is nearest to it, and every query of a
    cell attends to the codes, of which each weighs as many keys as it stands for. What falls on a
    code is shared evenly among its keys, and a block is as relevant as what its keys get. With as
    many codes as keys these are the blocks with the most attention. So blocks are found whose sites
    differ, of which a mean says nothing, for n N products with N codes instead of one for each pair
    of blocks.

    The codes are spread over the seen keys of each space, by steps of the golden ratio, beginning
    with the first: in the order in which the blocks list them, or if causal the order of time. Of
    equally near codes the first counts, of equally relevant blocks the lowest id. The selection
    carries no gradient.

    If causal, a cell chooses from the blocks that are wholly past at its earliest time, by its
    queries of that time, and a key looks only at codes that are past when it is; the blocks that a
    cell can see in part are read besides. Which keys are codes depends on how many there are, so
    decoding with a cache chooses others than a prefill.

    Source: the quantized keys of Transformer-VQ (Lingle 2024), for selection; the bags of visual
    words of Sivic and Zisserman (2003).

    Args:
        k: Blocks to keep for each cell (the paper's kappa); more than there are means all.
        codes: How many, for each key head and space.
        share, force: As for `TopK`.

    Raises:
        ValueError, TypeError: `k` or `codes` below 1, an unknown word, or a `force` that is no rule
            or that `TopK` would refuse.
        NotImplementedError: Only the means of the keys are at hand.
    """

    k: int
    codes: int = 256
    share: Share = "head"
    force: Rule | None = None

    def __post_init__(self) -> None:
        arguments.positive_count("k", self.k)
        arguments.positive_count("codes", self.codes)
        arguments.one_of("share", self.share, SHARE)
        check_force(self.force)

    def select(self, problem: Problem) -> Selection:
        check_has_keys("Codebook", problem)
        structure, keys, causal = problem.structure, problem.key_structure, problem.causal
        count = selection_heads(self.share, problem.query.shape[1], problem.key.shape[1])
        cell_space, key_space, spaces = _spaces(structure, keys)
        return Selection(
            select_by_codes(
                query=problem.query.detach(),
                key=problem.key.detach(),
                codes=_codes(problem, key_space, spaces, self.codes),
                forced=always_read(self.force, problem, count),
                votes=_present(structure.cell_sites, structure, voters(problem), len(problem.key)),
                there=_present(keys.blocks, keys, problem.key_mask, len(problem.key)),
                cell_sites=structure.cell_sites,
                blocks=keys.blocks,
                k=self.k,
                share=self.share,
                scale=problem.scale,
                affinity=problem.affinity,
                cell_space=cell_space,
                key_space=key_space,
                cell_group=structure.cell_group,
                key_group=keys.group,
                cell_time=structure.cell_span[0] if causal else None,
                key_time=keys.block_span[1] if causal else None,
                site_time=keys.time if causal else None,
            )
        )


def _spaces(
    structure: SpatialStructure, keys: SpatialStructure
) -> tuple[Int[Tensor, " C"], Int[Tensor, " B"], int]:
    """Number the spaces of the keys: that of each cell, of each key block, and how many."""
    if structure.cell_group is None or keys.group is None:
        return structure.cells.new_zeros(structure.num_cells), keys.block_sizes * 0, 1
    numbers = keys.kept_with(keys, "spaces", lambda own, _: _group_of(own).unique())
    of_cell = torch.searchsorted(numbers, structure.cell_group)
    last = len(numbers) - 1  # a cell without keys sees none of those of another space either
    return of_cell.clamp(max=last), torch.searchsorted(numbers, keys.group), len(numbers)


def _group_of(structure: SpatialStructure) -> Int[Tensor, " B"]:
    assert structure.group is not None
    return structure.group


def _codes(
    problem: Problem, key_space: Int[Tensor, " B"], spaces: int, count: int
) -> Int[Tensor, "b G N"]:
    """List the keys that are codes, for each space; -1 where there are no more seen ones."""
    keys = problem.key_structure
    order = keys.kept_with(keys, ("order", problem.causal), _in_time if problem.causal else _listed)
    by_space = key_space[keys.block_of_site[order]].sort(stable=True)
    order = order[by_space.indices]
    seen = torch.ones_like(order)[None]
    if problem.key_mask is not None:
        seen = problem.key_mask[:, order].long()
    size = seen.new_zeros(len(seen), spaces)
    size = size.scatter_add(1, by_space.values.expand_as(seen), seen)
    rank = _spread(size, min(count, len(order)))
    place = (size.cumsum(1) - size)[..., None] + rank + 1  # among the seen ones, from 1
    found = torch.searchsorted(seen.cumsum(1), place.flatten(1)).view(place.shape)
    codes = order[found.clamp(max=len(order) - 1)].masked_fill(rank < 0, -1)
    return codes.expand(len(problem.key), -1, -1)


def _listed(structure: SpatialStructure, _: SpatialStructure) -> Int[Tensor, " n"]:
    """The sites in the order in which the blocks list them."""
    return place_of_member(structure.blocks, structure.num_sites).argsort()


def _in_time(structure: SpatialStructure, _: SpatialStructure) -> Int[Tensor, " n"]:
    """The same, the earliest first."""
    assert structure.time is not None
    listed = _listed(structure, structure)
    return listed[structure.time[listed].argsort(stable=True)]


def _spread(size: Int[Tensor, "b G"], count: int) -> Int[Tensor, "b G N"]:
    """Spread as many different numbers below each size as there are, at most `count`; then -1."""
    place = torch.arange(count, device=size.device)
    few = place.where(place < size[..., None], -1)
    share = (place.double() * _GOLDEN) % 1
    return few.where(size[..., None] <= count, (share * size[..., None]).long())


def _present(
    rows: Int[Tensor, "rows R"],
    structure: SpatialStructure,
    mask: Bool[Tensor, "b n"] | None,
    batch: int,
) -> Bool[Tensor, "b rows R"] | None:
    """Tell which places of the rows have a site that the mask leaves; None for all."""
    if mask is not None:
        return mask[:, rows.clamp(min=0)] & (rows >= 0)
    return None if structure.is_even else (rows >= 0).expand(batch, -1, -1)
