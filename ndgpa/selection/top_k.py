"""The paper's rule: for each cell, the k most relevant key blocks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import _checks
from ndgpa._ops import fold_into_batch
from ndgpa.selection.base import Problem, Rule, Selection
from ndgpa.selection.relevance import RELEVANCE, cell_relevance
from ndgpa.structures.base import SpatialStructure

SHARE = ("head", "group", "all")


@dataclass(frozen=True)
class TopK(Rule):
    """Each cell reads the k most relevant key blocks; of equals, those of lowest id.

    Source: R_kappa and Phase 1 of Algorithm 1 of Jetchev et al. 2021. The selection carries no
    gradient.

    Args:
        k: Blocks to keep for each cell (the paper's kappa); more than there are means all.
        relevance: "mass" sums the coarse softmax weights over the queries of a cell (the paper);
            "logit" sums the logits.
        share: Who shares one selection: "head" no two heads, "group" the query heads of one key
            head, "all" all heads. Relevance is summed over those who share.
        force: Blocks that are always read in addition to the k: "own" for the cell's own blocks
            (queries and keys on one structure), or numbers of key blocks.

    Raises:
        ValueError, TypeError: k below 1, an unknown word, or a forced block that does not exist.
    """

    k: int
    relevance: str = "mass"
    share: str = "head"
    force: tuple[int | str, ...] | int | str = ()

    def __post_init__(self) -> None:
        _checks.positive_count("k", self.k)
        _checks.one_of("relevance", self.relevance, RELEVANCE)
        _checks.one_of("share", self.share, SHARE)
        _checks.forced(_tuple(self.force))

    def select(self, problem: Problem) -> Selection:
        if problem.causal:
            raise NotImplementedError(
                "TopK does not select causally yet; pass a Selection of your own to attend"
            )
        coarse = problem.coarse()
        structure, key_structure = problem.structure, problem.key_structure
        cells, empty = structure.cells.clamp(min=0), structure.cells < 0
        weight = structure.block_sizes[cells].masked_fill(empty, 0)
        query = coarse.query[:, :, cells].masked_fill(empty[..., None], 0)
        cell_group = key_group = None
        if structure.group is not None and key_structure.group is not None:
            cell_group, key_group = (
                structure.group[structure.cells.amax(dim=1)],
                key_structure.group,
            )
        log_size = coarse.log_size
        blocks = select_top_k(
            query.detach(),
            coarse.key.detach(),
            None if coarse.bias is None else coarse.bias.detach(),
            None if log_size is None else log_size.expand(query.shape[0], -1),
            weight.to(query.dtype),
            cell_group,
            key_group,
            forced_blocks(_tuple(self.force), structure, key_structure),
            self.k,
            self.relevance,
            self.share,
            coarse.scale,
        )
        return Selection(blocks)


def _tuple(force: tuple[int | str, ...] | int | str) -> tuple[int | str, ...]:
    return force if isinstance(force, tuple) else (force,)


def forced_blocks(
    force: tuple[int | str, ...], structure: SpatialStructure, key_structure: SpatialStructure
) -> Int[Tensor, "C F"] | None:
    """The forced blocks of each cell, each once; -1 for an empty slot, never the first."""
    if not force:
        return None
    named = sorted({item for item in force if isinstance(item, int)})
    if named:
        _checks.forced_ids(named[-1], key_structure.num_blocks)
    table = torch.tensor(named, dtype=torch.int64, device=structure.device)
    table = table.expand(structure.num_cells, -1)
    if "own" not in force:
        return table
    _checks.own_blocks(structure, key_structure)
    own = structure.cells
    named_too = (own[:, :, None] == table[:, None]).any(dim=-1)
    table = torch.cat([table, own.masked_fill(named_too, -1)], dim=1)
    return table.sort(dim=1, descending=True).values


@torch.library.custom_op("ndgpa::select_top_k", mutates_args=())
def select_top_k(
    query: Tensor,  # (b, h, C, P, d)
    key: Tensor,  # (b, hk, B_k, d)
    bias: Tensor | None,  # (b, hk, B_k)
    log_size: Tensor | None,  # (b, B_k)
    weight: Tensor,  # (C, P)
    cell_group: Tensor | None,  # (C,)
    key_group: Tensor | None,  # (B_k,)
    forced: Tensor | None,  # (C, F)
    k: int,
    relevance: str,
    share: str,
    scale: float,
) -> Tensor:  # (b, hs, C, min(k, B_k) + F) int32, ascending, empty slots last
    """One opaque operator, so that a compiled graph does not unroll the tiles."""
    batch, heads, num_cells, _, _ = query.shape
    key_heads, num_blocks = key.shape[1:3]
    if share == "head":  # every head has its own key head beside it
        repeats = heads // key_heads
        key = key.repeat_interleave(repeats, dim=1)
        bias = None if bias is None else bias.repeat_interleave(repeats, dim=1)
    selection_heads = {"head": heads, "group": key_heads, "all": 1}[share]
    per_selection = key.shape[1] // selection_heads
    split = (batch * selection_heads, per_selection)
    tiles = cell_relevance(
        query.reshape(*split, heads // (selection_heads * per_selection), *query.shape[2:]),
        key.reshape(*split, *key.shape[2:]),
        None if bias is None else bias.reshape(*split, num_blocks),
        None if log_size is None else log_size.repeat_interleave(selection_heads, dim=0),
        weight,
        cell_group,
        key_group,
        relevance,
        scale,
    )
    out = query.new_empty(split[0], num_cells, _width(k, num_blocks, forced), dtype=torch.int32)
    for rows, cells, scores in tiles:
        always = None
        if forced is not None:
            always = forced[cells].expand(scores.shape[0], -1, -1)
            scores = _without(scores, always)
        ids = _top_k_lowest_id(scores, min(k, num_blocks))
        ids = ids.masked_fill(scores.gather(-1, ids) == -torch.inf, -1)
        if always is not None:
            ids = torch.cat([ids, _of_group(always, cell_group, key_group, cells)], dim=-1)
        out[rows, cells] = _ascending(ids, num_blocks).int()
    return out.unflatten(0, (batch, selection_heads))


@select_top_k.register_fake
def _(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    log_size: Tensor | None,
    weight: Tensor,
    cell_group: Tensor | None,
    key_group: Tensor | None,
    forced: Tensor | None,
    k: int,
    relevance: str,
    share: str,
    scale: float,
) -> Tensor:
    heads = {"head": query.shape[1], "group": key.shape[1], "all": 1}[share]
    return query.new_empty(
        query.shape[0], heads, query.shape[2], _width(k, key.shape[2], forced), dtype=torch.int32
    )


select_top_k.register_vmap(fold_into_batch(select_top_k, batched=4))


def _width(k: int, num_blocks: int, forced: Tensor | None) -> int:
    return min(k, num_blocks) + (0 if forced is None else forced.shape[1])


def _top_k_lowest_id(scores: Float[Tensor, "*batch B_k"], k: int) -> Int[Tensor, "*batch k"]:
    """Ids of the k largest scores, in no order; of equal scores the lowest id."""
    num_blocks = scores.shape[-1]
    if k == num_blocks:
        return torch.arange(k, device=scores.device).expand(*scores.shape[:-1], k)
    values, ids = scores.topk(k + 1, dim=-1)
    tied = values[..., k - 1] == values[..., k]
    ids = ids[..., :k]
    if bool(tied.any()):
        rows, least = scores[tied], values[tied][:, k - 1, None]
        above, equal = rows > least, rows == least
        left = k - above.sum(dim=-1, keepdim=True)
        keep = above | (equal & (equal.cumsum(dim=-1) <= left))
        ids[tied] = keep.nonzero()[:, 1].view(-1, k)
    return ids


def _without(
    scores: Float[Tensor, "l c B_k"], always: Int[Tensor, "l c F"]
) -> Float[Tensor, "l c B_k"]:
    """Scores in which the forced blocks are no candidates."""
    named = torch.where(always < 0, always[..., :1], always)
    return scores.scatter(-1, named, -torch.inf)


def _of_group(
    always: Int[Tensor, "l c F"],
    cell_group: Int[Tensor, " C"] | None,
    key_group: Int[Tensor, " B_k"] | None,
    cells: slice,
) -> Int[Tensor, "l c F"]:
    """Forced blocks, less those of another group than the cell's."""
    if cell_group is None or key_group is None:
        return always
    other = key_group[always.clamp(min=0)] != cell_group[cells, None]
    return always.masked_fill(other, -1)


def _ascending(ids: Int[Tensor, "*batch K"], num_blocks: int) -> Int[Tensor, "*batch K"]:
    """In ascending order, empty slots last."""
    ordered = ids.masked_fill(ids < 0, num_blocks).sort(dim=-1).values
    return ordered.masked_fill(ordered == num_blocks, -1)
