"""How much each cell of queries wants each key block, a few cells at a time."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

RELEVANCE = ("mass", "logit")

# Elements of one tile of coarse scores: small enough to stay in a processor's cache, or large
# enough to keep a GPU busy.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


def cell_relevance(
    query: Float[Tensor, "L gk g C P d"],
    key: Float[Tensor, "L gk B_k d"],
    bias: Float[Tensor, "L gk B_k"] | None,
    log_size: Float[Tensor, "L B_k"] | None,
    weight: Float[Tensor, "L C P"],
    cell_group: Int[Tensor, " C"] | None,
    key_group: Int[Tensor, " B_k"] | None,
    cell_time: Int[Tensor, " C"] | None,
    key_time: Int[Tensor, " B_k"] | None,
    kind: str,
    scale: float,
) -> Iterator[tuple[slice, slice, Float[Tensor, "l c B_k"]]]:
    """Relevance r_lj of key block j for cell l, summed over the heads of one selection.

    Source: Phase 1 of Algorithm 1 of Jetchev et al. 2021 (the sum inside R_kappa), weighted by
    block sizes so that ragged blocks count as their sites do. The coarse score matrix is made tile
    by tile and never held.

    Args:
        query: Coarse queries of each cell. L counts pairs of batch and selection head; a selection
            head has gk key heads with g query heads each.
        key: Coarse keys.
        bias: Added to the logit of each key block.
        log_size: Logarithm of the seen sites of each key block, -inf where there are none.
        weight: Sites of each query block, 0 for an empty place.
        cell_group, key_group: Spaces that do not see each other, or None.
        cell_time, key_time: The earliest time of each cell and the latest of each key block, whose
            relevance to earlier cells does not exist; or None.
        kind: "mass" sums softmax weights (the paper), "logit" sums logits.
        scale: Factor of the dot products.

    Yields:
        A range of L, a range of cells, and their relevance: -inf for a block that cannot be seen,
        0 in place of NaN.
    """
    score = _mass if kind == "mass" else _logit
    hidden = log_size is not None or cell_group is not None or cell_time is not None
    may_be_nan = hidden or not _stays_finite(query, key, bias, weight, scale)
    for rows, cells in _tiles(query, key):
        seen = None
        if cell_group is not None and key_group is not None:
            seen = cell_group[cells, None] == key_group
        if cell_time is not None and key_time is not None:
            past = cell_time[cells, None] >= key_time
            seen = past if seen is None else seen & past
        own_size = None if log_size is None else log_size[rows, None]
        relevance = score(
            query[rows, :, :, cells],
            key[rows],
            None if bias is None else bias[rows],
            own_size,
            weight[rows, cells],
            seen,
            scale,
            may_be_nan,
        )
        if seen is not None:
            relevance.masked_fill_(~seen, -torch.inf)
        if own_size is not None:
            relevance.masked_fill_(own_size == -torch.inf, -torch.inf)
        yield rows, cells, relevance


def _tiles(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut (L, cells) so that each tile of scores fits the budget."""
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
    return mass.mul_(weight[:, None, None, ..., None]).sum(dim=(1, 2, 4))


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
        return logits.sum(dim=1) * scale
    return _zero_for_nan(_zero_for_nan(logits).sum(dim=1) * scale)  # inf and -inf sum to NaN


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
    if query.is_cuda or not query.numel():
        return False
    most = query.abs().amax() * key.abs().amax() * (query.shape[-1] * max(1.0, abs(scale)))
    if bias is not None:
        most = most + bias.abs().amax()
    return bool((most * weight.amax() * query.shape[1:3].numel() * query.shape[4]).isfinite())
