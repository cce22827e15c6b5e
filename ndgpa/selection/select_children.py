"""The most relevant children of what each cell kept at the level above, as one operator."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ndgpa._flops import count_products
from ndgpa._ops import fold_into_batch
from ndgpa.selection.slots import ascending

# Elements of one tile: keys gathered and scores.
_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}
# More than the number of any child.
_NOBODY = (1 << 31) - 1


@torch.library.custom_op("ndgpa::select_children", mutates_args=())
def select_children(
    query: Tensor,  # (b, h, C, P, f)
    key: Tensor,  # (b, hk, N, R, f): the children of each node
    log_size: Tensor,  # (b, N, R), -inf for a child that does not exist; 0 in empty places
    kept: Tensor,  # (b, hs, C, K) int32 nodes, -1 for an empty slot
    weight: Tensor,  # (b, C, P)
    forced: Tensor | None,  # (b, hs, C, F) children that are read besides, -1 for an empty slot
    children: Tensor,  # (N, R) int64, -1 for an empty place
    k: int,
    share: str,
    scale: float,  # not negative
    cell_time: Tensor | None = None,  # (C,)
    child_time: Tensor | None = None,  # (number of children,)
) -> Tensor:  # (b, hs, C, min(k, K R) + F) int32, ascending, empty slots last
    """The most relevant children of the nodes that each cell kept."""
    batch, heads, num_cells, places, width = query.shape
    key_heads, nodes, per_node = key.shape[1:4]
    if share == "head":
        key = key.repeat_interleave(heads // key_heads, dim=1)
    sharers = kept.shape[1]
    split = (batch * sharers, key.shape[1] // sharers)
    query = query.reshape(*split, heads // key.shape[1], num_cells, places, width)
    log_size = log_size.masked_fill(children < 0, -torch.inf)
    rank = (_NOBODY - children).masked_fill(log_size == -torch.inf, -1)
    # One more node, without children, is what an empty slot kept.
    rows_of_keys = F.pad(key.reshape(*split, nodes, per_node * width), (0, 0, 0, 1))
    log_size = F.pad(log_size, (0, 0, 0, 1), value=-torch.inf)
    rank = F.pad(rank, (0, 0, 0, 1), value=-1)
    wide = kept.shape[-1] * per_node
    out = kept.new_empty(_shape(kept, children, forced, k))
    size = (width + 2 * query.shape[2] * places) * split[1] * wide
    step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // size)
    for row in range(split[0]):
        b, head = divmod(row, sharers)
        for begin in range(0, num_cells, step):
            cells = slice(begin, begin + step)
            own = kept[b, head, cells]
            ids = own.where(own >= 0, nodes).flatten()
            sizes, ranks = (x[b].index_select(0, ids).view(-1, wide) for x in (log_size, rank))
            if cell_time is not None and child_time is not None:
                later = _time_of(ranks, child_time) > cell_time[cells, None]
                sizes, ranks = sizes.masked_fill(later, -torch.inf), ranks.masked_fill(later, -1)
            scores = _mass_of_children(
                query[row, :, :, cells], rows_of_keys[row], sizes, weight[b, cells], scale, ids
            )
            if forced is not None:
                ranks = _without(ranks, forced[b, head, cells])
            chosen = _best(scores, ranks, min(k, wide))
            if forced is not None:
                chosen = torch.cat([chosen, forced[b, head, cells]], dim=1)
            out[b, head, cells] = ascending(chosen, _NOBODY).int()
    return out


def _time_of(ranks: Tensor, child_time: Tensor) -> Tensor:
    """The time of each child; any time where there is none."""
    return child_time[(_NOBODY - ranks).clamp(max=len(child_time) - 1)]


def _mass_of_children(
    query: Tensor,  # (gk, g, c, P, f)
    keys: Tensor,  # (gk, N, R f)
    log_size: Tensor,  # (c, K R), -inf where there is nothing
    weight: Tensor,  # (c, P)
    scale: float,
    ids: Tensor,  # (c K,)
) -> Tensor:  # (c, K R)
    total, hidden = torch.zeros_like(log_size), (log_size == -torch.inf)[:, None]
    for own, rows in zip(query, keys):
        gathered = rows.index_select(0, ids).view(*log_size.shape, query.shape[-1])
        tall = own.transpose(0, 1).flatten(1, 2)  # (c, g P, f)
        logits = torch.bmm(tall, gathered.mT)
        torch.add(log_size[:, None], logits, alpha=scale, out=logits)
        mass = logits.masked_fill_(hidden, -torch.inf).softmax(dim=-1).nan_to_num_(0.0)
        total += torch.bmm(weight.repeat(1, len(own))[:, None], mass)[:, 0]
    return total


def _without(ranks: Tensor, forced: Tensor) -> Tensor:
    """Ranks less those of the children that are read anyway."""
    for column in forced.unbind(dim=1):
        ranks = ranks.masked_fill(ranks == _NOBODY - column[:, None], -1)
    return ranks


def _best(scores: Tensor, ranks: Tensor, k: int) -> Tensor:  # (c, k)
    """The numbers of the k best children, -1 for none; of equals the lowest number.

    Nothing is asked of the device, so a GPU is not waited for.

    Args:
        scores: (c, w), at least 0.
        ranks: (c, w), `_NOBODY` less the number of each child, -1 for one that is no candidate.
    """
    if scores.dtype == torch.float64:
        ranks = _best_of_two_sorts(scores, ranks, k)
    else:  # the bits of a float that is not negative are in its order: one integer says both
        bits = scores.float().view(torch.int32).long()
        both = bits.mul_(1 << 32).add_(ranks).masked_fill_(ranks < 0, -1)
        both = both.topk(k, dim=1, sorted=False).values
        ranks = both.bitwise_and(_NOBODY).masked_fill_(both < 0, -1)
    return (_NOBODY - ranks).masked_fill_(ranks < 0, -1)


def _best_of_two_sorts(scores: Tensor, ranks: Tensor, k: int) -> Tensor:
    ranks, order = ranks.sort(dim=1, descending=True)
    scores = scores.gather(1, order).masked_fill(ranks < 0, -torch.inf)
    return ranks.gather(1, scores.sort(dim=1, descending=True, stable=True).indices[:, :k])


@select_children.register_fake
def _(
    query: Tensor,
    key: Tensor,
    log_size: Tensor,
    kept: Tensor,
    weight: Tensor,
    forced: Tensor | None,
    children: Tensor,
    k: int,
    *_: Any,
    **__: Any,
) -> Tensor:
    return kept.new_empty(_shape(kept, children, forced, k))


def _shape(kept: Tensor, children: Tensor, forced: Tensor | None, k: int) -> tuple[int, ...]:
    width = min(k, kept.shape[3] * children.shape[1])
    return (*kept.shape[:3], width + (0 if forced is None else forced.shape[3]))


select_children.register_vmap(fold_into_batch(select_children, batched=6))


@count_products("select_children")
def _(query: Any, key: Any, log_size: Any, kept: Any, *_: Any, **__: Any) -> int:
    """The logits of all children of what was kept, and the weighted sum of their masses."""
    queries = math.prod(query[:4])
    return 2 * queries * kept[3] * key[3] * (query[4] + 1)
