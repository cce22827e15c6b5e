"""How much each cell of queries wants each key block, a few cells at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ndgpa._ops import has_values

Relevance = Literal["mass", "logit"]
Share = Literal["head", "group", "all"]
RELEVANCE, SHARE = get_args(Relevance), get_args(Share)

# Elements of one tile of coarse scores: small enough to stay in a processor's cache, or large
# enough to keep a GPU busy.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


@dataclass(frozen=True)
class CoarseCells:
    """The coarse level by cell: what relevance is computed from.

    A space is a number; cells and key blocks of different spaces do not see each other. A key block
    whose latest time is after the earliest of a cell has no relevance for it. None is one space,
    or no time.
    """

    query: Tensor  # (b, h, C, P, d); in kernels perhaps in two parts, (b, h, C, P, 2, d) bfloat16
    key: Tensor  # (b, hk, B, d), or (b, hk, B, 2, d)
    bias: Tensor | None  # (b, hk, B), added to the logits of each key block
    log_size: Tensor | None  # (b, B), logarithm of the seen sites of a block, -inf for none
    weight: Tensor  # (b, C, P), sites of each query block, 0 for an empty place
    cell_group: Tensor | None  # (C,), space of each cell
    key_group: Tensor | None  # (B,), space of each key block
    cell_time: Tensor | None  # (C,), the earliest of each cell
    key_time: Tensor | None  # (B,), the latest of each key block
    scale: float  # of the products


def selection_heads(share: str, heads: int, key_heads: int) -> int:
    """How many selections there are if they are shared like this."""
    return {"head": heads, "group": key_heads, "all": 1}[share]


def cell_relevance(
    of: CoarseCells, kind: str, share: str
) -> Iterator[tuple[slice, slice, Float[Tensor, "l c B_k"]]]:
    """Relevance r_lj of key block j for cell l, summed over the heads of one selection.

    Source: Phase 1 of Algorithm 1 of Jetchev et al. 2021 (the sum inside R_kappa), weighted by
    block sizes so that ragged blocks count as their sites do. The coarse score matrix is made tile
    by tile and never held.

    Args:
        kind: "mass" sums softmax weights (the paper), "logit" sums logits.
        share: As for `TopK`.

    Yields:
        A range of L, the pairs of batch and selection head; a range of cells; and their relevance:
        -inf for a block that cannot be seen, 0 in place of NaN.
    """
    score = _mass if kind == "mass" else _logit
    query, key, bias, log_size, weight = _by_selection(of, share)
    hidden = log_size is not None or of.cell_group is not None or of.cell_time is not None
    may_be_nan = hidden or not _stays_finite(query, key, bias, weight, of.scale)
    for rows, cells in _tiles(query, key):
        seen = _seen(of, cells)
        own_size = None if log_size is None else log_size[rows, None]
        relevance = score(
            query[rows, :, :, cells],
            key[rows],
            None if bias is None else bias[rows],
            own_size,
            weight[rows, cells],
            seen,
            of.scale,
            may_be_nan,
        )
        if seen is not None:
            relevance.masked_fill_(~seen, -torch.inf)
        if own_size is not None:
            relevance.masked_fill_(own_size == -torch.inf, -torch.inf)
        yield rows, cells, relevance


def _by_selection(
    of: CoarseCells, share: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Lay query (L gk g C P d), key (L gk B d), bias, log size and weight out by selection head.

    L counts pairs of batch and selection head; a selection head has gk key heads with g query heads
    each.
    """
    key, bias, (batch, heads, *shape) = of.key, of.bias, of.query.shape
    count = selection_heads(share, heads, key.shape[1])
    if share == "head":  # every head has its own key head beside it
        repeats = heads // key.shape[1]
        key = key.repeat_interleave(repeats, dim=1)
        bias = None if bias is None else bias.repeat_interleave(repeats, dim=1)
    split = (batch * count, key.shape[1] // count)
    return (
        of.query.reshape(*split, heads // key.shape[1], *shape),
        key.reshape(*split, *key.shape[2:]),
        None if bias is None else bias.reshape(*split, bias.shape[2]),
        None if of.log_size is None else of.log_size.repeat_interleave(count, dim=0),
        of.weight.repeat_interleave(count, dim=0),
    )


def _seen(of: CoarseCells, cells: slice) -> Tensor | None:  # (c, B)
    """Which key blocks are of the space of a cell, and past to it."""
    seen = None
    if of.cell_group is not None and of.key_group is not None:
        seen = of.cell_group[cells, None] == of.key_group
    if of.cell_time is not None and of.key_time is not None:
        past = of.cell_time[cells, None] >= of.key_time
        seen = past if seen is None else seen & past
    return seen


def _tiles(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (L, cells) so that each tile of scores fits the budget; a graph for ONNX has one tile."""
    if torch.onnx.is_in_onnx_export():
        yield slice(None), slice(None)
        return
    count_l, gk, g, num_cells, places, _ = query.shape
    budget = _TILE["cuda" if query.is_cuda else "cpu"]
    cells = min(num_cells, max(1, budget // (gk * g * places * key.shape[2])))
    rows = max(1, budget // (gk * g * places * key.shape[2] * num_cells))
    for row in range(0, count_l, rows):
        for cell in range(0, num_cells, cells):
            yield slice(row, row + rows), slice(cell, cell + cells)


def _mass(
    query: Tensor,  # (l, gk, g, c, P, d)
    key: Tensor,  # (l, gk, B_k, d)
    bias: Tensor | None,  # (l, gk, B_k)
    log_size: Tensor | None,  # (l, 1, B_k)
    weight: Tensor,  # (l, c, P)
    seen: Tensor | None,  # (c, B_k)
    scale: float,
    may_be_nan: bool,
) -> Tensor:  # (l, c, B_k)
    scores = _logits(query.flatten(2, 4), key, bias, scale)
    if log_size is not None:
        scores += log_size[:, :, None]
    scores = scores.unflatten(2, query.shape[2:5])
    if seen is not None:
        scores.masked_fill_(~seen[:, None], -torch.inf)
    mass = scores.softmax(dim=-1)
    if may_be_nan:
        mass.nan_to_num_(nan=0.0)
    if query.shape[1:3].numel() == 1 and query.shape[4] == 1:
        return mass[:, 0, 0, :, 0] * weight
    mass.mul_(weight[:, None, None, ..., None])
    return _sum(_sum(_sum(mass, 4), 2), 1)


def _logit(
    query: Tensor,
    key: Tensor,
    bias: Tensor | None,
    log_size: Tensor | None,
    weight: Tensor,
    seen: Tensor | None,
    scale: float,
    may_be_nan: bool,
) -> Tensor:
    """As `_mass`; logits are linear in the query, so the queries of a cell are summed first."""
    summed = (query * weight[:, None, None, ..., None]).sum(dim=(2, 4))  # (l, gk, c, d)
    logits = summed @ key.transpose(-1, -2)
    if bias is not None:
        logits *= scale
        logits += bias[:, :, None] * (weight.sum(dim=2) * query.shape[2])[:, None, :, None]
        scale = 1.0
    if not may_be_nan:
        return _sum(logits, 1) * scale
    return _zero_for_nan(_sum(_zero_for_nan(logits), 1) * scale)  # inf and -inf sum to NaN


def _sum(x: Tensor, dim: int) -> Tensor:
    """Sum along an axis by elementwise additions, so that equal columns have equal sums; in place.

    A reduction adds up in another order at the end of a row than in its vectors.
    """
    while (count := x.shape[dim]) > 1:
        half = count // 2
        first, second = x.narrow(dim, 0, half), x.narrow(dim, half, half)
        pairs = first.add_(second) if half > 1 else first + second
        if count % 2:
            pairs.narrow(dim, 0, 1).add_(x.narrow(dim, count - 1, 1))
        x = pairs
    return x.squeeze(dim)


def _zero_for_nan(x: Tensor) -> Tensor:
    return x.nan_to_num_(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def _logits(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """The scale comes last, so that what is equal before it is equal after it."""
    logits = query @ key.transpose(-1, -2)
    if scale != 1:
        logits *= scale
    return logits if bias is None else logits.add_(bias[:, :, None])


def _stays_finite(
    query: Tensor, key: Tensor, bias: Tensor | None, weight: Tensor, scale: float
) -> bool:
    """Whether the largest sum of logits there could be is a number, so that none is NaN.

    Asked on the CPU, where the answer costs little; a GPU is not made to wait for it.
    """
    if not has_values(query, key) or not query.numel():
        return False
    most = query.abs().amax() * key.abs().amax() * (query.shape[-1] * max(1.0, abs(scale)))
    if bias is not None:
        most = most + bias.abs().amax()
    return bool((most * weight.amax() * query.shape[1:3].numel() * query.shape[4]).isfinite())
