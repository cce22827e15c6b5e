"""The key blocks on which attention to quantized keys falls, as one operator."""

from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
from torch import Tensor

from ndgpa._flops import count_products
from ndgpa._ops import fold_into_batch, wide
from ndgpa.problem import dot_form
from ndgpa.selection.ranking import top_k_lowest_id
from ndgpa.selection.relevance import selection_heads
from ndgpa.selection.slots import ascending, without_blocks

# Numbers of one tile: features and products of sites and codes.
_TILE = {"cpu": 1 << 19, "cuda": 1 << 26}


@torch.library.custom_op("ndgpa::select_by_codes", mutates_args=())
def select_by_codes(
    query: Tensor,  # (b, h, n, d)
    key: Tensor,  # (b, hk, n_k, d)
    codes: Tensor,  # (b, G, N) int64, the keys that are codes of each space, -1 for none
    forced: Tensor | None,  # (b, hs, C, F), read besides, -1 for an empty slot
    votes: Tensor | None,  # (b, C, Q) bool, which queries take part; None for all
    there: Tensor | None,  # (b, B, R) bool, which keys are seen; None for all
    cell_sites: Tensor,  # (C, Q)
    blocks: Tensor,  # (B, R)
    k: int,
    share: str,
    scale: float,
    affinity: str,
    cell_space: Tensor,  # (C,) the space of each cell, below G
    key_space: Tensor,  # (B,)
    cell_group: Tensor | None,  # (C,)
    key_group: Tensor | None,  # (B,)
    cell_time: Tensor | None,  # (C,), the earliest of each cell
    key_time: Tensor | None,  # (B,), the latest of each block
    site_time: Tensor | None,  # (n_k,)
) -> Tensor:  # (b, hs, C, min(k, B) + F) int32, ascending, empty slots last
    """The blocks with the most attention to their keys, each key counting as its nearest code."""
    (batch, heads), key_heads, num_blocks = query.shape[:2], key.shape[1], len(blocks)
    count = selection_heads(share, heads, key_heads)
    table = (batch, count, len(cell_sites), _width(k, num_blocks, forced))
    out = query.new_empty(table, dtype=torch.int32)
    for b in range(batch):
        counted = torch.ones_like(blocks, dtype=torch.bool) if there is None else there[b]
        voting = None if votes is None else votes[b]
        seen = _Seen(counted.any(dim=1), cell_group, key_group, cell_time, key_time)
        books = [
            _Book.of(own, codes[b], counted, blocks, key_space, site_time, scale, affinity)
            for own in key[b]
        ]
        for s in range(count):
            own = range(s * heads // count, (s + 1) * heads // count)
            book_of = {h: books[h * key_heads // heads] for h in own}
            asked = {
                h: book.ask(query[b, h], cell_sites, voting, cell_space, seen)
                for h, book in book_of.items()
            }
            for cells in _runs(len(cell_sites), num_blocks, query):
                falls = (asked[h][cells] @ book.count.mT for h, book in book_of.items())
                total = reduce(torch.add, falls)
                total.masked_fill_(~seen.by(cells), -torch.inf)
                always = None if forced is None else forced[b, s, cells]
                out[b, s, cells] = _best(total, k, always).int()
    return out


@dataclass(frozen=True)
class _Seen:
    """Which key blocks a cell may choose from: those of its space, if causal wholly past ones."""

    exists: Tensor  # (B,) bool
    cell_group: Tensor | None  # (C,)
    key_group: Tensor | None  # (B,)
    cell_time: Tensor | None  # (C,)
    key_time: Tensor | None  # (B,)

    @property
    def alike(self) -> bool:
        """Whether all cells see the same."""
        return self.cell_time is None and (self.cell_group is None or self.key_group is None)

    def by(self, cells: slice) -> Tensor:  # (c or 1, B)
        seen = self.exists[None]
        if self.cell_group is not None and self.key_group is not None:
            seen = seen & (self.cell_group[cells, None] == self.key_group)
        if self.cell_time is not None and self.key_time is not None:
            seen = seen & (self.cell_time[cells, None] >= self.key_time)
        return seen


@dataclass(frozen=True)
class _Book:
    """The codes of one key head, and how many seen keys of each block count as each of them."""

    code: Tensor  # (G, N, d)
    bias: Tensor | None  # (G, N)
    scale: float
    count: Tensor  # (B, N)

    @classmethod
    def of(
        cls,
        key: Tensor,  # (n_k, d)
        codes: Tensor,  # (G, N)
        there: Tensor,  # (B, R)
        blocks: Tensor,  # (B, R)
        space: Tensor,  # (B,)
        time: Tensor | None,  # (n_k,)
        scale: float,
        affinity: str,
    ) -> "_Book":
        missing, codes = codes < 0, codes.clamp(min=0)
        code = key[codes].to(wide(key)).masked_fill(missing[..., None], 0)
        count = code.new_zeros(len(blocks), codes.shape[1])
        less = (-0.5 * code.square().sum(dim=-1)).masked_fill(missing, -torch.inf)
        for rows in _runs(len(blocks), _size(blocks, code), key):
            sites, own, counted = blocks[rows].clamp(min=0), space[rows], there[rows]
            nearness = _products(_take(key, sites).to(code.dtype), code, own, less, 1.0)
            if time is not None:
                later = (time[codes][own, None] > time[sites][..., None]) | missing[own, None]
                nearness.masked_fill_(later, -torch.inf)
                counted = counted & ~later.all(dim=-1)
            count[rows] = count[rows].scatter_add(1, nearness.argmax(dim=-1), counted.to(count))
        bias, scale = dot_form(code, affinity, scale)
        return cls(code, bias, scale, count)

    def ask(
        self,
        query: Tensor,  # (n, d)
        sites: Tensor,  # (C, Q)
        votes: Tensor | None,  # (C, Q) bool
        space: Tensor,  # (C,)
        seen: _Seen,
    ) -> Tensor:  # (C, N)
        """The attention that falls on one key of each code."""
        found, same = [], self._stands_for(seen.by(slice(0, 1))) if seen.alike else None
        for run in _runs(len(sites), _size(sites, self.code), query):
            asked = _take(query, sites[run]).to(self.code.dtype)
            weight = None
            if votes is not None:
                weight = votes[run].to(asked)
                asked = asked.masked_fill(~votes[run][..., None], 0)
            stands_for = self._stands_for(seen.by(run)) if same is None else same
            mass = self._attention(asked, space[run], stands_for)
            own = mass.sum(dim=1) if weight is None else torch.bmm(weight[:, None], mass)[:, 0]
            found.append(own.nan_to_num_(0.0) / stands_for.clamp(min=1))
        return torch.cat(found)

    def _stands_for(self, seen: Tensor) -> Tensor:  # (c, B) bool -> (c, N)
        """For how many of the keys that a cell may choose from each code stands."""
        return seen.to(self.count) @ self.count

    def _attention(self, query: Tensor, space: Tensor, stands_for: Tensor) -> Tensor:  # (c, Q, N)
        weight = stands_for.log()
        if self.bias is not None:
            weight = weight + self.bias[space[: len(weight)]]
        if len(self.code) == len(weight) == 1:
            return _products(query, self.code, space, weight, self.scale).softmax(dim=-1)
        logits = _products(query, self.code, space, None, self.scale) + weight[:, None]
        return logits.masked_fill_((stands_for == 0)[:, None], -torch.inf).softmax(dim=-1)


def _products(
    x: Tensor,  # (c, Q, d)
    code: Tensor,  # (G, N, d)
    space: Tensor,  # (c,)
    added: Tensor | None,  # (G, N)
    scale: float,
) -> Tensor:  # (c, Q, N)
    if added is None:
        added = code.new_zeros(code.shape[:2])
    if len(code) == 1:
        return torch.addmm(added, x.flatten(0, 1), code[0].mT, alpha=scale).view(*x.shape[:2], -1)
    return torch.baddbmm(added[space, None], x, code[space].mT, alpha=scale)


def _take(x: Tensor, sites: Tensor) -> Tensor:
    return x.index_select(0, sites.clamp(min=0).flatten()).view(*sites.shape, -1)


def _size(rows: Tensor, code: Tensor) -> int:
    """Numbers that are made of one row of sites."""
    spaces, count, features = code.shape
    return rows.shape[1] * (count + features) + (count * features if spaces > 1 else 0)


def _runs(rows: int, size: int, like: Tensor) -> list[slice]:
    """Cut rows so that what is made of a run fits the budget."""
    step = max(1, _TILE["cuda" if like.is_cuda else "cpu"] // max(1, size))
    return [slice(begin, begin + step) for begin in range(0, rows, step)]


def _best(scores: Tensor, k: int, always: Tensor | None) -> Tensor:
    """The k best blocks and those that are always read."""
    num_blocks = scores.shape[1]
    if always is not None:
        scores = without_blocks(scores, always)
    ids = top_k_lowest_id(scores, min(k, num_blocks))
    ids = ids.masked_fill(scores.gather(1, ids) == -torch.inf, -1)
    if always is not None:
        ids = torch.cat([ids, always], dim=1)
    return ascending(ids, num_blocks)


def _width(k: int, num_blocks: int, forced: Tensor | None) -> int:
    return min(k, num_blocks) + (0 if forced is None else forced.shape[-1])


@select_by_codes.register_fake
def _(
    query: Tensor,
    key: Tensor,
    codes: Tensor,
    forced: Tensor | None,
    votes: Tensor | None,
    there: Tensor | None,
    cell_sites: Tensor,
    blocks: Tensor,
    k: int,
    share: str,
    *_: Any,
    **__: Any,
) -> Tensor:
    count = selection_heads(share, query.shape[1], key.shape[1])
    shape = len(query), count, len(cell_sites), _width(k, len(blocks), forced)
    return query.new_empty(shape, dtype=torch.int32)


select_by_codes.register_vmap(fold_into_batch(select_by_codes, batched=6))


@count_products("select_by_codes")
def _(query: Any, key: Any, codes: Any, forced: Any, votes: Any, *args: Any, **_: Any) -> int:
    """Keys and queries by the codes of their space, and what falls on codes by blocks."""
    cell_sites, blocks = args[1:3]
    cell_group, key_group, cell_time = args[-5:-2]
    alike = cell_time is None and (cell_group is None or key_group is None)
    (batch, heads), cells = query[:2], cell_sites[0]
    keys = key[1] * prod(blocks) * query[3]
    queries = heads * prod(cell_sites) * (query[3] + (votes is not None))
    relevance = heads * blocks[0] * (cells + (1 if alike else cells))
    return 2 * batch * codes[2] * (keys + queries + relevance)
