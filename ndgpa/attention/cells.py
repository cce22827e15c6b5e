"""Which rows a cell reads: the engine of the `torch` backend.

A tile is the queries of one cell, of all heads that share its selection; it reads whole blocks,
each gathered as a single row, and after them the far keys of the cell.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ndgpa._ops import has_values, wide
from ndgpa.attention.chunks import chunks, room
from ndgpa.attention.engine import Tile, scaled_bmm
from ndgpa.attention.far_cells import FarGrads, FarPlan, FarTile, FarTiles
from ndgpa.attention.rows import Rows, Run
from ndgpa.attention.softmax import softmax


class Inputs(NamedTuple):
    """What `attend_chunked` takes, in its order."""

    query: Tensor  # (b, t, C, X, d): tiles of X queries
    key: Tensor  # (b, hk, B, R, d)
    value: Tensor  # (b, hk, B, R, dv)
    blocks: Tensor  # (b, t, C, K) int, -1 for an empty slot
    slot_bias: Tensor | None  # (b, t, C, K)
    key_bias: Tensor | None  # (b, hk, B, R)
    offset_bias: Tensor | None  # (b, t, entries of all heads of a tile)
    far_sums: Tensor | None  # (b, hk, B, f): `block_sums`, whose gradient key and value get
    far_bundle: Tensor | None  # this and the others: as in `FarPlan`
    far_less: Tensor | None
    query_time: Tensor | None  # (C, X)
    key_time: Tensor | None  # (B, R)
    query_offset: Tensor | None  # (C, X), added to key_offset: the entry of a pair
    key_offset: Tensor | None  # (B, R)
    far_segment: Tensor | None
    far_space: Tensor | None
    far_table: Tensor | None
    far_more: Tensor | None
    far_bundles: int
    far_square: float
    scale: float
    softcap: float = 0.0  # none

    @property
    def plan(self) -> FarPlan | None:
        if self.far_bundle is None:
            return None
        given: Any = {name: getattr(self, f"far_{name}") for name in FarPlan._fields}
        return FarPlan(**given)


class _Chunk(NamedTuple):
    """Cells that are attended from together, and how many of their slots to look at."""

    cells: slice | Tensor
    slots: int


class Cells:
    """The flattened problem: a tile for each cell (of each batch and each tile of heads), which
    reads whole blocks as single rows."""

    def __init__(self, given: Inputs) -> None:
        batch, tiles, self.cells, self.places, _ = given.query.shape
        key_heads, num_blocks, self.sites = given.key.shape[1:4]
        self.query, self.key, self.value = (
            x.flatten(0, 2) for x in (given.query, given.key, given.value)
        )
        self.key_bias = None if given.key_bias is None else given.key_bias.flatten(0, 2)
        self.slot_bias = None if given.slot_bias is None else given.slot_bias.flatten(0, 2)
        self.query_time, self.key_time = given.query_time, given.key_time
        self.query_offset, self.key_offset = given.query_offset, given.key_offset
        self.offset_bias = None if given.offset_bias is None else given.offset_bias.flatten(0, 1)
        self.scale, self.softcap, self.wide = given.scale, given.softcap, wide(given.query)
        device = given.blocks.device
        heads = torch.arange(tiles, device=device) // (tiles // key_heads)
        heads = heads + key_heads * torch.arange(batch, device=device)[:, None]
        self.first_row = (heads * num_blocks).repeat_interleave(self.cells)  # (tiles,)
        self.blocks = given.blocks.flatten(0, 2)
        plan, sums = given.plan, given.far_sums
        self.far = self.far_grads = None
        if plan is not None and sums is not None:
            self.far = FarTiles(plan, sums, given.key.shape[4])
            self.far_grads = FarGrads(plan, sums)
        self.has_empty = not has_values(given.blocks) or bool((given.blocks < 0).any())

    def tiles(self) -> Iterator[Tile]:
        return map(self.tile, self.chunks())

    def whole(self) -> Tile:
        """All cells as one chunk."""
        return self.tile(_Chunk(slice(None), self.blocks.shape[1]))

    def chunks(self) -> Iterator[_Chunk]:
        """Cells that keep to the budget together.

        Cells of very different length go together with their like, the longest first. If causal,
        how many slots of a cell are looked at depends on that cell alone: a later one must not
        change so much as the order in which an earlier one adds up.
        """
        count, width = self.blocks.shape
        causal = self.query_time is not None
        lengths = self._lengths() if has_values(self.blocks) and self.has_empty else None
        few = lengths is not None and 4 * int(lengths.sum()) <= 3 * lengths.numel() * width
        if lengths is None or not (causal or few):
            yield from (_Chunk(cells, width) for cells in chunks(count, self._room(width)))
            return
        if causal:
            lengths = _power_of_two(lengths).clamp(max=width)
        lengths, order = lengths.sort(descending=True, stable=True)
        begin = 0
        while begin < count:
            width = max(1, int(lengths[begin]))
            end = begin + self._room(width)
            if causal:
                end = min(end, int((lengths >= width).sum()))
            yield _Chunk(order[begin:end], width)
            begin = end

    def _room(self, width: int) -> int:
        """How many cells of so many slots fit."""
        keys = width * self.sites + (0 if self.far is None else len(self.far.numbers))
        pairs = self.places * keys * (2 if self.offset_bias is None else 5)
        return room(pairs + keys * (self.key.shape[2] + self.value.shape[2]), self.query)

    def _lengths(self) -> Tensor:  # (tiles,)
        """The slots of each cell up to the last one that is filled."""
        place = torch.arange(1, self.blocks.shape[1] + 1, device=self.blocks.device)
        return (place * (self.blocks >= 0)).amax(dim=1)

    def tile(self, chunk: _Chunk) -> Tile:
        cells, slots = chunk
        blocks = self.blocks[cells, :slots]
        empty = blocks < 0
        ids = (blocks.clamp(min=0) + self.first_row[cells, None]).flatten()
        keys = Rows(ids, empty.flatten() if self.has_empty else None, empty.shape[0])
        query = Run(cells).take(self.query, self.wide)
        far = None if self.far is None else self.far.tile(cells)
        if far is None:
            key, value = (keys.take(x, self.wide) for x in (self.key, self.value))
        else:
            key, value = self._taken_beside(keys, far)
        is_plain, near = self._is_plain(ids, empty), slots * self.sites
        logits, bend = _capped(scaled_bmm(query, key.mT, self.scale), self.softcap)
        if self.offset_bias is not None:
            logits = logits + self.offset_bias.to(self.wide)[self.entries(cells, blocks)]
        hides = self.query_time is not None  # asked, for a mask costs several passes over all pairs
        if not is_plain:
            bias = self._bias(chunk, ids, empty)
            logits[..., :near] += bias
            hides = hides or not has_values(bias) or bool((bias == -torch.inf).any())
        if far is not None:
            logits[..., near:] += far.bias[:, None]
        if self.query_time is not None and self.key_time is not None:
            now = self.query_time[self._cell(cells)]
            then = self.key_time[blocks.clamp(min=0).long()].flatten(1)
            later = then[:, None] > now[:, :, None]
            later = F.pad(later, (0, logits.shape[2] - near))
            logits = logits.masked_fill(later, -torch.inf)
        weights = softmax(logits, may_see_nothing=hides)
        return Tile(
            cells,
            query,
            key,
            value,
            weights,
            self.scale,
            Run(cells),
            keys,
            is_masked=hides,
            contains=self.query_time is not None,
            bend=bend,
            far=far,
        )

    def _taken_beside(self, rows: Rows, far: FarTile) -> tuple[Tensor, Tensor]:
        """Copy the rows of each tile, and put the far keys and values after them."""
        more = -(-far.bias.shape[1] // self.sites)  # rows that are written over
        ids = F.pad(rows.ids.view(rows.tiles, -1), (0, more))
        near = (ids.shape[1] - more) * self.sites
        empty = None
        if rows.empty is not None:
            empty = F.pad(rows.empty.view(rows.tiles, -1), (0, more)).flatten()
        room = Rows(ids.flatten(), empty, rows.tiles)
        end = near + far.bias.shape[1]
        key, value = (room.take(x, self.wide)[:, :end] for x in (self.key, self.value))
        key[:, near:], value[:, near:] = far.key, far.value
        return key, value

    def add_to_far(self, tile: Tile, slope: Tensor, grad_out: Tensor) -> None:
        """Add what a tile's far keys get to `far_grads`."""
        if self.far is None or self.far_grads is None or tile.far is None:
            return
        last, g = slice(tile.near.stop, None), tile.queries.take(grad_out, self.wide)
        slope, weights = slope[..., last], tile.softmax.weights[..., last]
        by_key = scaled_bmm(slope.mT, tile.query, self.scale)
        by_value, by_bias = torch.bmm(weights.mT, g), slope.sum(dim=1)
        self.far.add(self.far_grads, tile.chunk, tile.far, by_key, by_value, by_bias)

    def add_sums(self, by_key: Tensor, by_value: Tensor) -> None:
        """Add the gradients of the sums over blocks to those of keys and values."""
        if self.far_grads is not None:
            widths = [by_key.shape[-1], by_value.shape[-1]]
            parts = self.far_grads.of_sums[:, :, :, None].split(widths, dim=-1)
            by_key += parts[0]
            by_value += parts[1]

    def _is_plain(self, ids: Tensor, empty: Tensor) -> bool:
        """Whether a softmax of bare logits is all there is to do, so that a short last block costs
        only those that read it. A GPU is not asked; it would be waited for."""
        if self.query_time is not None or self.slot_bias is not None:
            return False
        if not has_values(empty, ids) or (self.has_empty and bool(empty.any())):
            return False
        return self.key_bias is None or not self._is_biased(self.key_bias, ids)

    def _is_biased(self, key_bias: Tensor, ids: Tensor) -> bool:
        """Whether a key of these blocks has a bias; any, where the bias shall get a gradient."""
        return key_bias.requires_grad or bool((key_bias.index_select(0, ids) != 0).any())

    def _bias(self, chunk: _Chunk, ids: Tensor, empty: Tensor) -> Tensor:  # (c, 1, Y)
        """What is added to the logits of each key of the chunk."""
        bias = torch.zeros((*empty.shape, 1), dtype=self.wide, device=ids.device)
        if self.slot_bias is not None:
            bias = bias + self.slot_bias[chunk.cells, : chunk.slots][..., None]
        if self.key_bias is not None:
            bias = bias + self.key_bias.index_select(0, ids).view(*empty.shape, self.sites)
        bias = bias.masked_fill(empty[..., None], -torch.inf)
        return bias.expand(-1, -1, self.sites).flatten(1)[:, None]

    def entries(self, cells: slice | Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Name the entry of the table of offsets for each pair: its row, its place in the row."""
        assert self.query_offset is not None
        assert self.key_offset is not None
        of_query = self.query_offset[self._cell(cells)]
        of_key = self.key_offset[blocks.clamp(min=0).long()].flatten(1)
        rows = torch.arange(self.query.shape[0], device=blocks.device)[cells] // self.cells
        return rows[:, None, None], of_query[:, :, None] + of_key[:, None]

    def add_to_offsets(self, grad: Tensor, tile: Tile, slope: Tensor) -> None:
        """Add the gradients of the logits to the entries that they came through."""
        blocks = self.blocks[tile.chunk, : slope.shape[2] // self.sites]
        rows, places = self.entries(tile.chunk, blocks)
        ids, slope = (rows * grad.shape[1] + places).flatten(), slope.flatten()
        if grad.is_cuda:  # index_add_ is atomic there; this sorts
            grad.view(-1).index_put_((ids,), slope, accumulate=True)
        else:
            grad.view(-1).index_add_(0, ids, slope)

    def _cell(self, chunk: slice | Tensor) -> Tensor:
        """The cell of each tile of the chunk."""
        tiles = torch.arange(self.query.shape[0], device=self.query.device)[chunk]
        return tiles % self.cells


def _capped(scores: Tensor, cap: float) -> tuple[Tensor, Tensor | None]:
    """Bend scores to within a cap; also how steep that is at each. A cap of 0 is none."""
    if not cap:
        return scores, None
    bent = (scores / cap).tanh()
    return cap * bent, (1 - bent.square()).nan_to_num(0.0)


def _power_of_two(lengths: Tensor) -> Tensor:
    """Round up to 1, 2, 4, 8 ..."""
    return 2 ** lengths.clamp(min=1).double().log2().ceil().long()
