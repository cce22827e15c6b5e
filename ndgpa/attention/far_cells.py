"""The far field of bundles: for each cell some keys more, which it reads beside its blocks.

The blocks are in bundles of similar keys (`far_bundles`). What a cell did not select of a bundle is
one key: the mean of its sites, weighed by their number. It is what all blocks of the bundle that
the cell may see add up to, less those that it selected; so nothing is as large as cells times
blocks.

If causal, or in groups, cells differ in what they may see: a run of the blocks in the order of
space and time. The blocks stand in segments in that order, with running totals from segment to
segment. What a cell sees is a total and the few blocks that no whole segment has.

Letters: N bundles, J segments (one where all cells see all blocks), t tables of selections, f
features: of key, value and the number of sites, side by side.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import call, constant, is_transformed, wide
from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.attention.far_field import BlockMeans, Bundles, latest_of_blocks
from ndgpa.attention.rows import add_rows, add_rows_
from ndgpa.problem import Problem, Selection, check_block_ids


class FarPlan(NamedTuple):
    """What the far keys of the cells are made of; nothing of it has a gradient."""

    bundle: Tensor  # (b, hk, B): the bundle of each block
    less: Tensor  # (b, t, C, K): blocks that a cell sees and selected, each once; -1 for none
    segment: Tensor  # (B,): the segment of each block
    space: Tensor  # (J,): the space of each segment; one of its own where it has two
    table: Tensor  # (C,): the last segment that a cell sees as a whole; -1 for none
    more: Tensor  # (C, E): blocks that a cell sees besides; -1 for none
    bundles: int
    square: float  # times |k|^2 is what a key loses of its logit


def far_arguments(plan: FarPlan | None, sums: Tensor | None) -> dict[str, Any]:
    """What `attend_chunked` takes of a plan."""
    names = FarPlan._fields
    none = dict.fromkeys(names) | {"bundles": 0, "square": 0.0}
    given = none if plan is None else {name: getattr(plan, name) for name in names}
    return {f"far_{name}": x for name, x in (given | {"sums": sums}).items()}


@dataclass(frozen=True)
class FarCells:
    """The far field of a call.

    Args:
        key_sites: The sites that are read where a block is selected; None means the blocks.
    """

    bundles: Bundles
    problem: Problem
    selection: Selection
    key_sites: Int[Tensor, "B S"] | None

    def plan(self, sums: Float[Tensor, "b hk B f"]) -> FarPlan:
        """Bundle the blocks by their mean keys, and find what each cell sees of the bundles.

        Args:
            sums: As `block_sums` takes them.
        """
        problem, keys = self.problem, self.problem.key_structure
        heads, key_heads, blocks = problem.query.shape[1], sums.shape[1], self.selection.blocks
        if not is_transformed():
            check_block_ids(blocks, keys.num_blocks)
        blocks = blocks.expand(-1, heads if blocks.shape[1] == heads else key_heads, -1, -1)
        latest = None
        if problem.causal:
            latest = constant(lambda: latest_of_blocks(keys, self.key_sites))
        tables = constant(lambda: _what_cells_see(problem, latest, self.bundles.count))
        sums, seen = sums[..., : problem.key.shape[3]].detach(), sums[..., -1].detach()
        mean = sums / seen.clamp(min=1)[..., None]
        bundle = call(bundle_blocks, mean, seen > 0, latest, keys.group, self.bundles.count)
        square = problem.scale if problem.affinity == "euclidean" else 0.0
        less = _selected(blocks, problem, latest)
        return FarPlan(bundle, less, *tables, self.bundles.count, square)


def block_sums(
    key: Float[Tensor, "b hk B R d"],
    value: Float[Tensor, "b hk B R w"],
    key_bias: Float[Tensor, "b hk B R"] | None,
) -> Float[Tensor, "b hk B f"]:
    """Add up the keys and values of each block, and count those that are seen.

    A key with a bias of -inf is not seen; it has to be 0, and its value too.
    """
    count = key.new_full((*key.shape[:3], 1), key.shape[3], dtype=wide(key))
    if key_bias is not None:
        count = (key_bias > -torch.inf).sum(dim=3, keepdim=True).to(count)
    sums = [x.sum(dim=3, dtype=wide(key)) for x in (key, value)]
    return torch.cat([*sums, count], dim=-1)


def sums_of_means(means: BlockMeans) -> Float[Tensor, "b hk B f"]:
    """The same from means."""
    seen = means.seen[..., None]
    return torch.cat([means.key * seen, means.value * seen, seen], dim=-1)


class FarTile(NamedTuple):
    """The far keys of some cells."""

    key: Tensor  # (c, N, d)
    value: Tensor  # (c, N, w)
    bias: Tensor  # (c, N), -inf where nothing is left of a bundle
    share: Tensor  # (c, N, 1): 1 over the number of sites; 0 for none
    members: Tensor  # (c, N, K + E): what a block adds to the mean of its bundle, times its sum


class FarTiles:
    """The flattened far field: a tile for each cell of each batch and each table of selections."""

    def __init__(self, plan: FarPlan, sums: Float[Tensor, "b hk B f"], features: int) -> None:
        batch, key_heads, blocks, _ = sums.shape
        tables, segments = plan.less.shape[1], len(plan.space)
        head = torch.arange(tables, device=sums.device) // (tables // key_heads)
        head = head + key_heads * torch.arange(batch, device=head.device)[:, None]
        # One row more, of totals and of sums, for nothing.
        row = (head[..., None] * segments + plan.table).flatten(0, 1)
        self.total_row = row.masked_fill(plan.table < 0, batch * key_heads * segments).flatten()
        ids = torch.cat([plan.less, plan.more.expand(*plan.less.shape[:3], -1)], dim=3)
        rows = ids.clamp(min=0).long() + (head * blocks)[..., None, None]
        self.bundle = plan.bundle.flatten()[rows.flatten(0, 2)]  # (tiles, K + E)
        self.rows = rows.masked_fill(ids < 0, batch * key_heads * blocks).flatten(0, 2)
        self.sign = sums.new_ones(ids.shape[3])
        self.sign[: plan.less.shape[3]] = -1
        parts = sums.tensor_split([-1], dim=3)
        self.sums, sizes = (F.pad(x.flatten(0, 2), (0, 0, 0, 1)) for x in parts)
        self.total, total_sizes = (_totals(x, plan) for x in parts)
        self.numbers = torch.arange(plan.bundles, device=sums.device)[:, None]
        size = self._sizes(sizes.detach()[:, 0], total_sizes.detach()[..., 0])
        self.share = torch.where(size > 0, 1 / size, 0)[..., None]
        self.bias = size.clamp(min=0).log()
        self.features, self.square = features, plan.square

    def _sizes(self, sizes: Tensor, total_sizes: Tensor) -> Float[Tensor, "tiles N"]:
        """Count the sites that are left of each bundle."""
        count = total_sizes.index_select(0, self.total_row)
        first = count.shape[1] * torch.arange(count.shape[0], device=count.device)
        rows = (self.bundle + first[:, None]).flatten()
        part = sizes[self.rows] * self.sign
        return add_rows(count.flatten(), rows, part.flatten()).view(count.shape)

    def tile(self, chunk: slice | Tensor) -> FarTile:
        """Average what is left of each bundle; differentiable."""
        rows, share, bias = self.rows[chunk], self.share[chunk], self.bias[chunk]
        members = (self.bundle[chunk][:, None] == self.numbers) * self.sign * share
        added = self.sums.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        mean = self.total.index_select(0, self.total_row[chunk]) * share  # (c, N, f)
        key, value = mean.baddbmm_(members, added).tensor_split([self.features], dim=2)
        if self.square:
            bias = bias - self.square * key.square().sum(dim=-1)
        return FarTile(key, value, bias, share, members)

    def add(
        self,
        grads: "FarGrads",
        chunk: slice | Tensor,
        tile: FarTile,
        by_key: Tensor,
        by_value: Tensor,
        by_bias: Tensor,
    ) -> None:
        """Add what a tile's keys, values and biases get to the gradients."""
        if self.square:
            by_key = by_key - 2 * self.square * by_bias[..., None] * tile.key
        by_mean = torch.cat([by_key, by_value], dim=-1)
        by_sums = torch.bmm(tile.members.mT, by_mean)
        add_rows_(grads.sums, self.rows[chunk].flatten(), by_sums.flatten(0, 1))
        add_rows_(grads.total, self.total_row[chunk], by_mean.mul_(tile.share))


class FarGrads:
    """The gradients of the sums over blocks and of the totals, without the number of sites."""

    def __init__(self, plan: FarPlan, sums: Float[Tensor, "b hk B f"]) -> None:
        self.plan, (*self.shape, features) = plan, sums.shape
        pairs, blocks, features = self.shape[0] * self.shape[1], self.shape[2], features - 1
        self.sums = sums.new_zeros(pairs * blocks + 1, features)
        self.total = sums.new_zeros(pairs * len(plan.space) + 1, plan.bundles, features)

    @property
    def of_sums(self) -> Float[Tensor, "b hk B f"]:
        """All of the gradient of the sums, once both are complete."""
        plan = self.plan
        total = self.total[:-1].unflatten(0, (*self.shape[:2], len(plan.space)))
        total = _running(total.flip(2), plan.space.flip(0)).flip(2)
        found = total.flatten(0, 3).index_select(0, _rows_of_totals(plan).flatten())
        return found.unflatten(0, self.shape) + self.sums[:-1].unflatten(0, self.shape)


def _what_cells_see(
    problem: Problem, latest: Int[Tensor, " B"] | None, every: int
) -> tuple[Int[Tensor, " B"], Int[Tensor, " J"], Int[Tensor, " C"], Int[Tensor, "C E"]]:
    """The segment of each block, the space of each segment, and the last segment and the blocks
    besides that each cell sees.

    Args:
        every: Blocks of a segment, where there is more than one.
    """
    own, keys, device = problem.structure, problem.key_structure, problem.query.device
    cells, blocks = own.num_cells, keys.num_blocks
    grouped = own.cell_group is not None and keys.group is not None
    if not (problem.causal or grouped):
        segment = torch.zeros(max(cells, blocks), dtype=torch.int64, device=device)
        return segment[:blocks], segment[:1], segment[:cells], segment.view(-1, 1)[:cells, :0]
    cell_rank, rank = _ranks(own.cell_group, keys.group, cells, blocks, device)
    cell_space, space = (x * (cells + blocks) for x in (cell_rank, rank))
    now = own.cell_span[0] if problem.causal else None
    cell_time, time = _ranks(now, latest, cells, blocks, device)
    ordered, order = (space + time).sort(stable=True)
    first = torch.searchsorted(ordered, cell_space)  # a cell sees the blocks from here
    end = torch.searchsorted(ordered, cell_space + cell_time, right=True)  # to here
    number = torch.arange(blocks, device=device) // every
    whole, no_more = -(-first // every), end // every  # its whole segments, of its space alone
    table = (no_more - 1).masked_fill(no_more <= whole, -1)
    place, space = torch.arange(every - 1, device=device), space[order]
    tops = torch.arange(every - 1, blocks + every - 1, every, device=device).clamp(max=blocks - 1)
    mixed = space[::every] != space[tops]
    space = space[::every].where(~mixed, -1 - number[::every])
    until = torch.minimum(whole * every, end)
    runs = [(torch.maximum(no_more * every, until), end)]
    if grouped:  # else a cell sees from the first block on
        runs.append((first, until))
    places = [(begin[:, None] + place, stop[:, None]) for begin, stop in runs]
    more = [order[x.clamp(max=blocks - 1)].masked_fill(x >= stop, -1) for x, stop in places]
    return number.scatter(0, order, number), space, table, torch.cat(more, dim=1)


def _ranks(
    of_cells: Tensor | None, of_blocks: Tensor | None, cells: int, blocks: int, device: torch.device
) -> tuple[Int[Tensor, " C"], Int[Tensor, " B"]]:
    """Numbers of cells and of blocks as small ones in the same order; 0 where either is None."""
    if of_cells is None or of_blocks is None:
        one = torch.zeros(cells + blocks, dtype=torch.int64, device=device)
        return one[:cells], one[cells:]
    ordered = torch.cat([of_cells, of_blocks]).sort().values
    return torch.searchsorted(ordered, of_cells), torch.searchsorted(ordered, of_blocks)


def _totals(sums: Float[Tensor, "b hk B f"], plan: FarPlan) -> Float[Tensor, "bhkJ1 N f"]:
    """Add up the blocks of each bundle, from segment to segment of a space; zeros are the last."""
    (batch, heads, _, features), segments = sums.shape, len(plan.space)
    zeros = sums.new_zeros(batch * heads * segments * plan.bundles, features)
    total = add_rows(zeros, _rows_of_totals(plan).flatten(), sums.flatten(0, 2))
    total = total.view(batch, heads, segments, plan.bundles, features)
    return F.pad(_running(total, plan.space).flatten(0, 2), (0, 0, 0, 0, 0, 1))


def _rows_of_totals(plan: FarPlan) -> Int[Tensor, "b hk B"]:
    """The row of the flattened totals of segments that each block is part of."""
    pairs, segments = plan.bundle.shape[:2], len(plan.space)
    pair = torch.arange(math.prod(pairs), device=plan.bundle.device).view(*pairs, 1)
    return (pair * segments + plan.segment) * plan.bundles + plan.bundle


def _running(
    total: Float[Tensor, "b hk J N f"], space: Int[Tensor, " J"]
) -> Float[Tensor, "b hk J N f"]:
    """Running sums within each space; nothing of another space is ever added."""
    step = 1
    while step < len(space):
        before = total[:, :, :-step].where((space[step:] == space[:-step])[:, None, None], 0)
        total = torch.cat([total[:, :, :step], total[:, :, step:] + before], dim=2)
        step *= 2
    return total


def _selected(
    blocks: Int[Tensor, "b t C K"], problem: Problem, latest: Int[Tensor, " B"] | None
) -> Int[Tensor, "b t C K"]:
    """The selected blocks that are in the total of their cell, each once; -1 for the others."""
    blocks = blocks.sort(dim=-1).values
    hidden = F.pad(blocks[..., 1:] == blocks[..., :-1], (min(1, blocks.shape[-1]), 0))
    own, group = problem.structure, problem.key_structure.group
    ids = blocks.clamp(min=0).long()
    if own.cell_group is not None and group is not None:
        hidden = hidden | (group[ids] != own.cell_group[:, None])
    if latest is not None:
        hidden = hidden | (latest[ids] > own.cell_span[0][:, None])
    return blocks.masked_fill(hidden, -1)


def all_far_keys(plan: FarPlan, sums: Float[Tensor, "b hk B f"], features: int) -> FarTile:
    """The far keys of all cells: (b, t, C, N, d), (b, t, C, N, w) and (b, t, C, N)."""
    tile = FarTiles(plan, sums, features).tile(slice(None))
    return FarTile(*(x.unflatten(0, plan.less.shape[:3]) for x in tile))
