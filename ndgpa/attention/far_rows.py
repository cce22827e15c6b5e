"""The far field by rows: each query of each head that shares a key head against all blocks.

A tile is some rows of some pairs of batch and key head. What is computed of a tile is here, and
nothing that is larger; `far_chunked` makes it one operator.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits of one chunk: about a processor's cache, or enough to fill a GPU.
_CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}


class Inputs(NamedTuple):
    """The arguments of the operator; floating ones are float32 or wider."""

    query: Tensor  # (b, h, Q, d)
    key: Tensor  # (b, hk, B, d)
    value: Tensor  # (b, hk, B, w)
    bias: Tensor  # (b, hk, B), -inf for a block that does not exist
    selected: Tensor  # (b, hs, C, K) int32, -1 for an empty slot
    cell: Tensor  # (Q,)
    query_time: Tensor | None  # (Q,)
    key_time: Tensor | None  # (B,)
    query_group: Tensor | None  # (Q,)
    key_group: Tensor | None  # (B,)
    scale: float


class Features(NamedTuple):
    """What a tile computes with, differentiably."""

    query: Tensor  # (l, r, d)
    key: Tensor  # (l, N, d)
    value: Tensor  # (l, N, w)
    bias: Tensor  # (l, N)


Tile = tuple[slice, slice]  # of pairs of batch and key head, and of their rows


class FarRows:
    """The flattened problem: a row for each query of each head that shares a key head.

    An empty slot selects one more block, which does not exist: N is B + 1.
    """

    def __init__(self, given: Inputs) -> None:
        heads, (batch, key_heads) = given.query.shape[1], given.key.shape[:2]
        self.pairs, self.sharing = batch * key_heads, heads // key_heads
        self.query, self.scale = self.by_row(given.query), given.scale
        self.key = one_more_block(given.key.flatten(0, 1))
        self.value = one_more_block(given.value.flatten(0, 1))
        self.bias = one_more_block(given.bias.flatten(0, 1), -torch.inf)
        self.selected, self.row = self._selected(given.selected, heads, key_heads, given.cell)
        self.query_time = _tiled(given.query_time, self.sharing)
        self.query_group = _tiled(given.query_group, self.sharing)
        self.key_time, self.key_group = _padded(given.key_time), _padded(given.key_group)
        # Where what is hidden is not finite, a weight of zero does not hide it: 0 NaN is NaN.
        # A GPU is not asked: the host would wait for it.
        hides = given.key_time is not None or given.key_group is not None
        self.unsafe = hides and (given.key.is_cuda or not _all_finite(given.key, given.value))
        self.no_key = self.no_value = None
        if self.unsafe:
            self.no_key, self.no_value = ~self.key.isfinite().all(dim=-1), ~self.value.isfinite()
            self.key = self.key.masked_fill(~self.key.isfinite(), 0)
            self.value = self.value.masked_fill(self.no_value, 0)

    def by_row(self, x: Tensor) -> Tensor:  # (b, h, Q, ...) -> (b hk, g Q, ...)
        return x.reshape(self.pairs, self.sharing * x.shape[2], *x.shape[3:])

    def _selected(
        self, selected: Tensor, heads: int, key_heads: int, cell: Tensor
    ) -> tuple[Tensor, Tensor]:  # (b hk, rows of a table, K), (g Q,)
        """What each pair selected, and which of its selections each row has."""
        (cells, width), sharing = selected.shape[2:], self.sharing
        row = cell.repeat(sharing)
        if selected.shape[1] == heads:
            first = cells * torch.arange(sharing, device=cell.device)
            row = row + first.repeat_interleave(len(cell))
            selected = selected.reshape(self.pairs, sharing * cells, width)
        else:
            selected = selected.expand(-1, key_heads, -1, -1).reshape(self.pairs, cells, width)
        return selected.long() % self.key.shape[1], row

    def tiles_by_pairs(self) -> Iterator[tuple[slice, Iterator[Tile]]]:
        """Cut pairs and rows so that the logits of each tile, and its outputs, fit the budget."""
        rows, columns = self.query.shape[1], max(self.key.shape[1], self.value.shape[2])
        budget = _CHUNK["cuda" if self.query.is_cuda else "cpu"]
        step = min(rows, max(1, budget // columns))
        pairs = max(1, budget // max(1, rows * columns))
        for pair in range(0, self.pairs, pairs):
            own = slice(pair, pair + pairs)
            starts = range(0, rows, max(1, step))
            yield own, ((own, slice(row, row + step)) for row in starts)

    def tiles(self) -> Iterator[Tile]:
        for _, tiles in self.tiles_by_pairs():
            yield from tiles

    def features(self, tile: Tile) -> Features:
        pair = tile[0]
        return Features(self.query[tile], self.key[pair], self.value[pair], self.bias[pair])

    def logits(self, tile: Tile, of: Features) -> Tensor:
        """(l, r, N), -inf for what is not in the far field. Differentiable."""
        pair, row = tile
        logits = torch.baddbmm(of.bias[:, None], of.query, of.key.mT, alpha=self.scale)
        if self.no_key is not None:
            logits.masked_fill_(self.no_key[pair, None], torch.nan)
            logits.masked_fill_(of.bias[:, None] == -torch.inf, -torch.inf)
        if self.query_time is not None and self.key_time is not None:
            later = self.key_time > self.query_time[row, None]
            logits.masked_fill_(later, -torch.inf)
        if self.query_group is not None and self.key_group is not None:
            other = self.key_group != self.query_group[row, None]
            logits.masked_fill_(other, -torch.inf)
        taken = self.selected[pair].index_select(1, self.row[row])
        return logits.scatter_(2, taken, -torch.inf)

    def attend(self, tile: Tile, of: Features) -> tuple[Tensor, Tensor]:
        """Attend; differentiable.

        Returns:
            The outputs (l, r, w) and log-sum-exps (l, r), 0 and -inf where nothing is seen.
        """
        logits = self.logits(tile, of)
        top = logits.detach().amax(dim=-1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0)
        weights = logits.sub_(top).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        masked = total == 0
        total = total.masked_fill(masked, 1)
        out = torch.bmm(weights, of.value) / total
        if self.no_value is not None:
            reads = torch.bmm((weights > 0).to(out.dtype), self.no_value[tile[0]].to(out.dtype))
            out = out.masked_fill(reads > 0, torch.nan)
        return out, (top + total.log()).masked_fill(masked, -torch.inf)[..., 0]

    def differentiate(
        self,
        tile: Tile,
        grad_out: Tensor,  # (l, r, w)
        grad_lse: Tensor,  # (l, r)
        out: Tensor,
        lse: Tensor,
        grad_key: Tensor,  # (l, N, d)
        grad_value: Tensor,  # (l, N, w)
        grad_bias: Tensor,  # (l, N)
    ) -> Tensor:  # (l, r, d)
        """Return the gradient of the queries, and add to those of keys, values and bias."""
        of, norm = self.features(tile), lse.masked_fill(lse == -torch.inf, 0)
        weights = self.logits(tile, of).sub_(norm[..., None]).exp_()
        # An output that is not finite and has no gradient sends none.
        product = grad_out * out
        mean = (product.masked_fill(grad_out == 0, 0) if self.unsafe else product).sum(dim=-1)
        slope = torch.bmm(grad_out, of.value.mT)
        slope = slope.sub_((mean - grad_lse)[..., None]).mul_(weights)
        grad_value += torch.bmm(weights.mT, grad_out)
        grad_key += torch.bmm(slope.mT, of.query).mul_(self.scale)
        grad_bias += slope.sum(dim=1)
        return torch.bmm(slope, of.key).mul_(self.scale)


def one_more_block(x: Tensor, value: float = 0) -> Tensor:
    return F.pad(x, (0, 1) if x.ndim == 2 else (0, 0, 0, 1), value=value)


def _padded(x: Tensor | None) -> Tensor | None:
    return None if x is None else F.pad(x, (0, 1))


def _tiled(x: Tensor | None, times: int) -> Tensor | None:
    return None if x is None else x.repeat(times)


def _all_finite(*xs: Tensor) -> bool:
    return all(bool(x.isfinite().all()) for x in xs)
