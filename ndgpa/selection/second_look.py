"""The attention of each candidate block of a cell: finer than by means, over few blocks."""

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ndgpa._flops import attention, count_products
from ndgpa._ops import fold_into_batch, has_triton

# Numbers of one tile: keys gathered and logits.
_TILE = {"cpu": 1 << 21, "cuda": 1 << 26}


@torch.library.custom_op("ndgpa::second_look", mutates_args=())
def second_look(
    query: Tensor,  # (b, h, C, X, d)
    key: Tensor,  # (b, hk, B, S, d)
    bias: Tensor,  # (b, hk, B, S), -inf for a key that does not exist
    candidates: Tensor,  # (b, hs, C, W) int32, -1 for none
    weight: Tensor,  # (b, C, X), 0 for a query that takes no part
    scale: float,
) -> Tensor:  # (b, hs, C, W)
    """The softmax mass of each candidate, summed over queries and heads; -inf for none."""
    if torch.onnx.is_in_onnx_export():
        return mass_in_one_piece(query, key, bias, candidates, weight, scale)
    if has_triton(query):
        from ndgpa.selection import triton_second_look

        if triton_second_look.fits(query, key):
            out = query.new_empty(candidates.shape)
            triton_second_look.write_mass(out, query, key, bias, candidates, weight, scale)
            return out
    return mass_in_torch(query, key, bias, candidates, weight, scale)


def mass_in_torch(
    query: Tensor, key: Tensor, bias: Tensor, candidates: Tensor, weight: Tensor, scale: float
) -> Tensor:
    """As `second_look`, with the keys of a tile of cells gathered."""
    batch, heads, num_cells, queries, _ = query.shape
    key_heads, blocks, sites, features = key.shape[1:]
    sharers, width = candidates.shape[1], candidates.shape[3]
    # An empty slot names one more block, which does not exist.
    table = F.pad(key.flatten(3), (0, 0, 0, 1))
    bias = F.pad(bias, (0, 0, 0, 1), value=-torch.inf)
    exists = (bias > -torch.inf).any(dim=-1)
    out = query.new_empty(candidates.shape)
    of_one = heads // max(key_heads, sharers)  # heads of a selection that share a key head
    size = width * sites * (features + 2 * of_one * queries)
    step = max(1, _TILE["cuda" if query.is_cuda else "cpu"] // max(1, size))
    for b in range(batch):
        for s in range(sharers):
            own = range(s * heads // sharers, (s + 1) * heads // sharers, of_one)
            for begin in range(0, num_cells, step):
                cells = slice(begin, begin + step)
                ids = candidates[b, s, cells].long() % (blocks + 1)
                total = query.new_zeros(ids.shape)
                there = torch.zeros_like(ids, dtype=torch.bool)
                for h in own:
                    g = h * key_heads // heads
                    tall = query[b, h : h + of_one, cells].transpose(0, 1).flatten(1, 2)
                    keys = table[b, g].index_select(0, ids.flatten()).view(len(ids), -1, features)
                    added = bias[b, g].index_select(0, ids.flatten()).view(len(ids), 1, -1)
                    logits = torch.baddbmm(added, tall, keys.mT, alpha=scale)
                    mass = logits.softmax(dim=-1).nan_to_num_(0.0)
                    mass = torch.bmm(weight[b, cells].repeat(1, of_one)[:, None], mass)
                    total += mass.view(*ids.shape, sites).sum(dim=-1)
                    there |= exists[b, g][ids]
                out[b, s, cells] = total.masked_fill(~there, -torch.inf)
    return out


def mass_in_one_piece(
    query: Tensor, key: Tensor, bias: Tensor, candidates: Tensor, weight: Tensor, scale: float
) -> Tensor:
    """As `second_look`, without a loop, and with the keys of all cells gathered: for a graph."""
    heads, width, sites = query.shape[1], candidates.shape[3], key.shape[3]
    ids = candidates.repeat_interleave(heads // candidates.shape[1], dim=1)  # (b, h, C, W)
    key, bias = (x.repeat_interleave(heads // key.shape[1], dim=1) for x in (key, bias))
    places = ids.clamp(min=0).long().flatten(2)[..., None]
    bias = bias.gather(2, places.expand(-1, -1, -1, sites)).unflatten(2, ids.shape[2:])
    bias = bias.masked_fill((ids < 0)[..., None], -torch.inf)
    keys = key.flatten(3).gather(2, places.expand(-1, -1, -1, sites * key.shape[4]))
    keys = keys.unflatten(2, ids.shape[2:]).unflatten(4, (sites, -1))  # (b, h, C, W, S, d)
    logits = query @ keys.flatten(3, 4).mT * scale + bias.flatten(3)[:, :, :, None]
    mass = logits.softmax(dim=-1).nan_to_num(0.0)
    mass = (mass * weight[:, None, ..., None]).sum(dim=3).unflatten(3, (width, sites)).sum(dim=4)
    there = (bias > -torch.inf).any(dim=-1)
    mass, there = (x.unflatten(1, (candidates.shape[1], -1)) for x in (mass, there))
    return mass.sum(dim=2).masked_fill(~there.any(dim=2), -torch.inf)


@second_look.register_fake
def _(query: Tensor, key: Tensor, bias: Tensor, candidates: Tensor, *_: Any, **__: Any) -> Tensor:
    return query.new_empty(candidates.shape)


second_look.register_vmap(fold_into_batch(second_look, batched=5))


@count_products("second_look")
def _(query: Any, key: Any, bias: Any, candidates: Any, *_: Any, **__: Any) -> int:
    """The logits, and their softmax by the weights of the queries."""
    return attention(prod(query[:4]) * candidates[3] * key[3], query[4], 1)
