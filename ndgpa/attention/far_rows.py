"""The far field by rows: each query of each head that shares a key head against all blocks.

A tile is some rows of some pairs of batch and key head. What is computed of a tile is here, and
nothing that is larger; `far_chunked` makes it one operator.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ndgpa.attention.far_bundles import Layout

# Logits of one chunk: about a processor's cache, or enough to fill a GPU.
_CHUNK = {"cpu": 1 << 19, "cuda": 1 << 26}


class Inputs(NamedTuple):
    """The arguments of the operator; floating ones are float32 or wider."""

    query: Tensor  # (b, h, Q, d)
    key: Tensor  # (b, hk, B, d)
    value: Tensor  # (b, hk, B, w)
    bias: Tensor  # (b, hk, B), -inf for a block that does not exist
    selected: Tensor  # (b, hs, C, K) int32, -1 for an empty slot
    bundle: Tensor  # (b, hk, B)
    cell: Tensor  # (Q,)
    query_time: Tensor | None  # (Q,)
    key_time: Tensor | None  # (B,)
    query_group: Tensor | None  # (Q,)
    key_group: Tensor | None  # (B,)
    bundles: int
    scale: float


class Features(NamedTuple):
    """What a tile computes with, differentiably."""

    query: Tensor  # (l, r, d)
    key: Tensor  # (l, N T, d)
    value: Tensor  # (l, N T, w)
    bias: Tensor  # (l, N T)


Tile = tuple[slice, slice]  # of pairs of batch and key head, and of their rows


class FarRows:
    """The flattened problem: a row for each query of each head that shares a key head.

    Blocks are laid out in tiles of one bundle each. An empty slot selects one more block, which
    does not exist.
    """

    def __init__(self, given: Inputs) -> None:
        heads, (batch, key_heads) = given.query.shape[1], given.key.shape[:2]
        self.pairs, self.sharing = batch * key_heads, heads // key_heads
        self.query, self.scale = self.by_row(given.query), given.scale
        self.layout = Layout.of(given.bundle.flatten(0, 1), given.bundles)
        lay_out = self.layout.lay_out
        self.key = lay_out(one_more_block(given.key.flatten(0, 1)))
        self.value = lay_out(one_more_block(given.value.flatten(0, 1)))
        self.bias = lay_out(one_more_block(given.bias.flatten(0, 1), -torch.inf))
        self.selected, self.row = self._selected(given.selected, heads, key_heads, given.cell)
        self.query_time = _tiled(given.query_time, self.sharing)
        self.query_group = _tiled(given.query_group, self.sharing)
        self.key_time, self.key_group = self._of_blocks(given.key_time, given.key_group)
        # Where what is hidden is not finite, a weight of zero does not hide it: 0 NaN is NaN.
        # A GPU is not asked: the host would wait for it.
        hides = given.key_time is not None or given.key_group is not None
        self.unsafe = hides and (given.key.is_cuda or not _all_finite(given.key, given.value))
        self.no_key = self.no_value = None
        if self.unsafe:
            self.no_key, self.no_value = ~self.key.isfinite().all(dim=-1), ~self.value.isfinite()
            self.key = self.key.masked_fill(~self.key.isfinite(), 0)
            self.value = self.value.masked_fill(self.no_value, 0)

    def _of_blocks(self, *tables: Tensor | None) -> list[Tensor | None]:
        """A number for each block, by column."""
        return [None if x is None else _padded(x)[self.layout.block] for x in tables]

    def by_row(self, x: Tensor) -> Tensor:  # (b, h, Q, ...) -> (b hk, g Q, ...)
        return x.reshape(self.pairs, self.sharing * x.shape[2], *x.shape[3:])

    def _selected(
        self, selected: Tensor, heads: int, key_heads: int, cell: Tensor
    ) -> tuple[Tensor, Tensor]:  # (b hk, rows of a table, K), (g Q,)
        """The columns that each pair selected, and which of its selections each row has."""
        (cells, width), sharing = selected.shape[2:], self.sharing
        row = cell.repeat(sharing)
        if selected.shape[1] == heads:
            first = cells * torch.arange(sharing, device=cell.device)
            row = row + first.repeat_interleave(len(cell))
            return self._columns(selected.reshape(self.pairs, sharing * cells, width)), row
        selected = selected.expand(-1, key_heads, -1, -1)
        return self._columns(selected.reshape(self.pairs, cells, width)), row

    def _columns(self, selected: Tensor) -> Tensor:
        column = self.layout.column
        taken = selected.long().flatten(1) % column.shape[1]
        return column.gather(1, taken).view(selected.shape)

    def tiles_by_pairs(self) -> Iterator[tuple[slice, Iterator[Tile]]]:
        """Cut pairs and rows so that the logits of each tile, and its sums, fit the budget."""
        rows = self.query.shape[1]
        columns = max(self.key.shape[1], self.layout.tiles * self.value.shape[2])
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
        """(l, r, N T), -inf for what is not in the far field. Differentiable."""
        pair, row = tile
        logits = torch.baddbmm(of.bias[:, None], of.query, of.key.mT, alpha=self.scale)
        if self.no_key is not None:
            logits.masked_fill_(self.no_key[pair, None], torch.nan)
            logits.masked_fill_(of.bias[:, None] == -torch.inf, -torch.inf)
        if self.query_time is not None and self.key_time is not None:
            later = self.key_time[pair, None] > self.query_time[row, None]
            logits.masked_fill_(later, -torch.inf)
        if self.query_group is not None and self.key_group is not None:
            other = self.key_group[pair, None] != self.query_group[row, None]
            logits.masked_fill_(other, -torch.inf)
        taken = self.selected[pair].index_select(1, self.row[row])
        return logits.scatter_(2, taken, -torch.inf)

    def by_tile(self, x: Tensor) -> Tensor:  # (l, r, N T) -> (l, N, r, T)
        return x.unflatten(2, (self.layout.tiles, -1)).transpose(1, 2)

    def attend(self, tile: Tile, of: Features) -> tuple[Tensor, Tensor]:
        """Attend to each bundle; differentiable.

        Returns:
            The outputs (l, r, G, w) and log-sum-exps (l, r, G), 0 and -inf where nothing is seen.
        """
        layout = self.layout.of_pairs(tile[0])
        logits = self.by_tile(self.logits(tile, of))
        top = layout.largest(logits.detach().amax(dim=-1))  # (l, G, r)
        top = top.masked_fill(top == -torch.inf, 0)
        weights = logits.sub_(layout.to_tiles(top)[..., None]).exp_()
        total = layout.sum_tiles(weights.sum(dim=-1))
        masked = total == 0
        total = total.masked_fill(masked, 1)
        value = of.value.unflatten(1, (layout.tiles, -1))
        out = layout.sum_tiles(weights @ value) / total[..., None]
        if self.no_value is not None:
            bad = self.no_value[tile[0]].unflatten(1, (layout.tiles, -1)).to(out.dtype)
            reads = layout.sum_tiles((weights > 0).to(out.dtype) @ bad)
            out = out.masked_fill(reads > 0, torch.nan)
        lse = (top + total.log()).masked_fill(masked, -torch.inf)
        return out.transpose(1, 2), lse.mT

    def differentiate(
        self,
        tile: Tile,
        grad_out: Tensor,  # (l, r, G, w)
        grad_lse: Tensor,  # (l, r, G)
        out: Tensor,
        lse: Tensor,
        grad_key: Tensor,  # (l, N T, d)
        grad_value: Tensor,  # (l, N T, w)
        grad_bias: Tensor,  # (l, N T)
    ) -> Tensor:  # (l, r, d)
        """Return the gradient of the queries, and add to those of keys, values and bias."""
        of, layout = self.features(tile), self.layout.of_pairs(tile[0])
        norm = lse.masked_fill(lse == -torch.inf, 0).mT
        weights = self.by_tile(self.logits(tile, of))
        weights = weights.sub_(layout.to_tiles(norm)[..., None]).exp_()
        # An output that is not finite and has no gradient sends none.
        product = grad_out * out
        mean = (product.masked_fill(grad_out == 0, 0) if self.unsafe else product).sum(dim=-1)
        grad = layout.to_tiles(grad_out.transpose(1, 2))  # (l, N, r, w)
        slope = grad @ of.value.unflatten(1, (layout.tiles, -1)).mT
        slope = slope.sub_(layout.to_tiles((mean - grad_lse).mT)[..., None]).mul_(weights)
        grad_value += (weights.mT @ grad).flatten(1, 2)
        slope = slope.transpose(1, 2).flatten(2)  # (l, r, N T)
        grad_key += torch.bmm(slope.mT, of.query).mul_(self.scale)
        grad_bias += slope.sum(dim=1)
        return torch.bmm(slope, of.key).mul_(self.scale)


def one_more_block(x: Tensor, value: float = 0) -> Tensor:
    return F.pad(x, (0, 1) if x.ndim == 2 else (0, 0, 0, 1), value=value)


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1))


def _tiled(x: Tensor | None, times: int) -> Tensor | None:
    return None if x is None else x.repeat(times)


def _all_finite(*xs: Tensor) -> bool:
    return all(bool(x.isfinite().all()) for x in xs)
