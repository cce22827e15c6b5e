"""The largest of many scores: of equals the lowest id."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def top_k_lowest_id(scores: Float[Tensor, "*batch B_k"], k: int) -> Int[Tensor, "*batch k"]:
    """Ids of the k largest scores, in no order; of equal ones the lowest id. NaN is the largest."""
    num_blocks = scores.shape[-1]
    if k == num_blocks:
        return torch.arange(k, device=scores.device).expand(*scores.shape[:-1], k)
    if scores.is_cuda or torch.onnx.is_in_onnx_export():  # nobody looks for ties: a host would wait
        return in_order(scores, descending=True, first=k)[1]
    values, ids = scores.topk(k + 1, dim=-1)
    tied = ~(values[..., k - 1] > values[..., k])
    ids = ids[..., :k]
    if bool(tied.any()):
        rows, least = scores[tied], values[tied][:, k - 1, None]
        no_number = rows.isnan(), least.isnan()
        above = (rows > least) | (no_number[0] & ~no_number[1])
        equal = (rows == least) | (no_number[0] & no_number[1])
        left = k - above.sum(dim=-1, keepdim=True)
        keep = above | (equal & (equal.cumsum(dim=-1) <= left))
        ids[tied] = keep.nonzero()[:, 1].view(-1, k)
    return ids


def ranked(
    scores: Float[Tensor, "*batch c B_k"],
    k: int,
    counts: Int[Tensor, " c"] | None = None,
    p: float | None = None,
    at_least: int = 1,
) -> Int[Tensor, "*batch c k"]:
    """Ids of the k largest scores or fewer, largest first; -1 where a cell wants no more."""
    everything = p is not None and p < 1
    values, ids = in_order(scores, descending=True, first=scores.shape[-1] if everything else k)
    place = torch.arange(k, device=scores.device)
    drop = values[..., :k] == -torch.inf
    if counts is not None:
        drop = drop | (place >= counts[:, None])
    if p is not None and everything:  # all of it is every block, not as many as rounding leaves
        mass = values.clamp(min=0)
        before = mass.cumsum(dim=-1) - mass
        reached = before[..., :k] >= p * mass.sum(dim=-1, keepdim=True)
        drop = drop | (reached & (place >= at_least))
    return ids[..., :k].masked_fill(drop, -1)


def in_order(
    x: Tensor, descending: bool = False, first: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sort stably and say where each was; the `first` ones, or all.

    ONNX has no stable sort by name, but its TopK is one.
    """
    first = x.shape[-1] if first is None else first
    if torch.onnx.is_in_onnx_export():
        return x.topk(first, dim=-1, largest=descending)
    values, ids = x.sort(dim=-1, descending=descending, stable=True)
    return values[..., :first], ids[..., :first]
