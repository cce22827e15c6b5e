"""The far field of bundles: for each cell some keys more, which it reads beside its blocks.

The blocks are in bundles of similar keys (`far_bundles`). What a cell did not select of a bundle is
one key: the mean of its sites, weighed by their number. It is what all blocks of the bundle that
the cell may see add up to, less those that it selected; so nothing is as large as cells times
blocks.

Letters: N bundles, T totals of each bundle (one, or if causal or in groups as many as cells), t
tables of selections, f features: of key, value and the number of sites, side by side.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.attention.far_field import BlockMeans, Bundles
from ndgpa.attention.rows import add_rows, add_rows_
from ndgpa.problem import Problem, Selection, check_block_ids


class FarInputs(NamedTuple):
    """What the far keys of the cells are made of; all that carries a gradient is the sums."""

    sums: Tensor  # (b, hk, B, f): over the seen sites of each block
    total: Tensor  # (b, hk, T, N, f): over blocks of each bundle
    bundle: Tensor  # (b, hk, B)
    less: Tensor  # (b, t, C, K): blocks of the total that a cell selected, each once; -1 for none
    table: Tensor  # (C,): the total of each cell
    square: float  # times |k|^2 is what a key loses of its logit

    @classmethod
    def of(
        cls, bundles: Bundles, problem: Problem, means: BlockMeans, selection: Selection
    ) -> "FarInputs":
        heads, key_heads = problem.query.shape[1], means.key.shape[1]
        blocks = selection.blocks
        check_block_ids(blocks, means.key.shape[2])
        blocks = blocks.expand(-1, heads if blocks.shape[1] == heads else key_heads, -1, -1)
        exists = means.seen > 0
        bundle = bundle_blocks(means.key.detach(), exists, means.time, means.group, bundles.count)
        seen = means.seen[..., None]
        sums = torch.cat([means.key * seen, means.value * seen, seen], dim=-1)
        place, table, space = _places(problem, means)
        total = _totals(sums, bundle, bundles.count, place, space, problem.causal)
        square = problem.scale if problem.affinity == "euclidean" else 0.0
        return cls(sums, total, bundle, _selected(blocks, problem, means), table, square)


class FarTile(NamedTuple):
    """The far keys of some cells; the bias is -inf where a bundle has nothing left."""

    key: Tensor  # (c, N, d)
    value: Tensor  # (c, N, w)
    bias: Tensor  # (c, N)
    size: Tensor  # (c, N), at least 1


class FarTiles:
    """The flattened far field: a tile for each cell of each batch and each table of selections."""

    def __init__(self, given: FarInputs, features: int) -> None:
        batch, key_heads, blocks, _ = given.sums.shape
        tables, (totals, bundles, _) = given.less.shape[1], given.total.shape[2:]
        head = torch.arange(tables, device=given.less.device) // (tables // key_heads)
        head = head + key_heads * torch.arange(batch, device=head.device)[:, None]
        self.total_row = (head[..., None] * totals + given.table).flatten()  # (tiles,)
        self.empty = (given.less < 0).flatten(0, 2)
        rows = given.less.clamp(min=0).long() + (head * blocks)[..., None, None]
        self.rows = rows.flatten(0, 2)  # (tiles, K)
        self.bundle = given.bundle.flatten()[self.rows]
        self.sums, self.total = given.sums.flatten(0, 2), given.total.flatten(0, 2)
        self.features, self.bundles, self.square = features, bundles, given.square

    def tile(self, chunk: slice | Tensor) -> FarTile:
        """Average what is left of each bundle; differentiable."""
        total = self.total[self.total_row[chunk]]  # (c, N, f)
        selected = self.sums[self.rows[chunk]].masked_fill(self.empty[chunk][..., None], 0)
        place = self._place(chunk).flatten()
        left = add_rows(total.flatten(0, 1), place, -selected.flatten(0, 1)).view(total.shape)
        size = left[..., -1].detach()
        nothing = size <= 0
        size = size.clamp(min=1)
        mean = (left[..., :-1] / size[..., None]).masked_fill(nothing[..., None], 0)
        key, value = mean[..., : self.features], mean[..., self.features :]
        bias = size.log()
        if self.square:
            bias = bias - self.square * key.square().sum(dim=-1)
        return FarTile(key, value, bias.masked_fill(nothing, -torch.inf), size)

    def _place(self, chunk: slice | Tensor) -> Tensor:  # (c, K)
        """Which far key of the chunk each selected block is taken off."""
        bundle = self.bundle[chunk]
        first = self.bundles * torch.arange(len(bundle), device=bundle.device)
        return first[:, None] + bundle

    def add(
        self,
        grads: tuple[Tensor, Tensor],
        chunk: slice | Tensor,
        tile: FarTile,
        by_key: Tensor,
        by_value: Tensor,
        by_bias: Tensor,
    ) -> None:
        """Add the gradients of a tile to those of the sums and totals, flattened."""
        if self.square:
            by_key = by_key - 2 * self.square * by_bias[..., None] * tile.key
        by_mean = torch.cat([by_key, by_value], dim=-1) / tile.size[..., None]
        by_mean.masked_fill_((tile.bias == -torch.inf)[..., None], 0)
        by_mean = F.pad(by_mean, (0, 1))  # the number of sites has none
        taken = by_mean.flatten(0, 1)[self._place(chunk)]
        taken = taken.masked_fill(self.empty[chunk][..., None], 0)
        add_rows_(grads[0], self.rows[chunk].flatten(), -taken.flatten(0, 1))
        add_rows_(grads[1], self.total_row[chunk], by_mean)


def _places(
    problem: Problem, means: BlockMeans
) -> tuple[Int[Tensor, " B"], Int[Tensor, " C"], Int[Tensor, " T"]]:
    """Which total each block belongs to first, -1 for none, which one each cell sees, its space.

    Totals are those of the cells, sorted by space and time. If causal, a block is past from the
    first that is not earlier; what is past then is so for all that follow in its space.
    """
    own, causal = problem.structure, problem.causal
    cells, blocks, device = own.num_cells, means.key.shape[2], means.key.device
    if not causal and (own.cell_group is None or means.group is None):
        one = torch.zeros(max(cells, blocks), dtype=torch.int64, device=device)
        return one[:blocks], one[:cells], one[:1]
    cell_rank, rank = _ranks(own.cell_group, means.group, cells, blocks, device)
    cell_space, space = (x * (cells + blocks) for x in (cell_rank, rank))
    now = own.cell_span[0] if causal else None
    cell_time, time = _ranks(now, means.time, cells, blocks, device)
    ordered = (cell_space + cell_time).sort().values
    spaces = cell_space.sort().values
    place = torch.searchsorted(ordered, space + time)
    there = spaces[place.clamp(max=cells - 1)] == space
    place = place.masked_fill(~(there & (place < cells)), -1)
    return place, torch.searchsorted(ordered, cell_space + cell_time), spaces


def _ranks(
    of_cells: Tensor | None, of_blocks: Tensor | None, cells: int, blocks: int, device: torch.device
) -> tuple[Int[Tensor, " C"], Int[Tensor, " B"]]:
    """Numbers of cells and of blocks as small ones in the same order; 0 where either is None."""
    if of_cells is None or of_blocks is None:
        one = torch.zeros(cells + blocks, dtype=torch.int64, device=device)
        return one[:cells], one[cells:]
    ordered = torch.cat([of_cells, of_blocks]).sort().values
    return torch.searchsorted(ordered, of_cells), torch.searchsorted(ordered, of_blocks)


def _totals(
    sums: Float[Tensor, "b hk B f"],
    bundle: Int[Tensor, "b hk B"],
    count: int,
    place: Int[Tensor, " B"],
    space: Int[Tensor, " T"],
    causal: bool,
) -> Float[Tensor, "b hk T N f"]:
    """Add up the blocks of each bundle; if causal, those that are past at each total."""
    (batch, heads, _, features), totals = sums.shape, len(space)
    pair = torch.arange(batch * heads, device=sums.device).view(batch, heads, 1)
    rows = (pair * totals + place.clamp(min=0)) * count + bundle
    given = sums.masked_fill((place < 0)[:, None], 0).flatten(0, 2)
    zeros = sums.new_zeros(batch * heads * totals * count, features)
    total = add_rows(zeros, rows.flatten(), given).view(batch, heads, totals, count, features)
    step = 1 if causal else totals
    while step < totals:  # by doubling, so that nothing of another space is ever added
        before = total[:, :, :-step].where((space[step:] == space[:-step])[:, None, None], 0)
        total = torch.cat([total[:, :, :step], total[:, :, step:] + before], dim=2)
        step *= 2
    return total


def _selected(
    blocks: Int[Tensor, "b t C K"], problem: Problem, means: BlockMeans
) -> Int[Tensor, "b t C K"]:
    """The selected blocks that are in the total of their cell, each once; -1 for the others."""
    blocks = blocks.sort(dim=-1).values
    hidden = F.pad(blocks[..., 1:] == blocks[..., :-1], (min(1, blocks.shape[-1]), 0))
    own, ids = problem.structure, blocks.clamp(min=0)
    if own.cell_group is not None and means.group is not None:
        hidden = hidden | (means.group[ids] != own.cell_group[:, None])
    if means.time is not None:
        hidden = hidden | (means.time[ids] > own.cell_span[0][:, None])
    return blocks.masked_fill(hidden, -1)


def all_far_keys(given: FarInputs, features: int) -> FarTile:
    """The far keys of all cells: (b, t, C, N, d), (b, t, C, N, w) and (b, t, C, N)."""
    tile = FarTiles(given, features).tile(slice(None))
    return FarTile(*(x.unflatten(0, given.less.shape[:3]) for x in tile))
