"""The far field of bundles: for each cell some keys more, which it reads beside its blocks.

The blocks are in bundles of similar keys (`far_bundles`). What a cell did not select of a bundle is
one key: the mean of its sites, weighed by their number. It is what all blocks of the bundle that
the cell may see add up to, less those that it selected; so nothing is as large as cells times
blocks.

Letters: N bundles, T totals of each bundle (one, or if causal or in groups as many as cells), t
tables of selections, f features: of key, value and the number of sites, side by side.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import is_transformed, wide
from ndgpa.attention.far_bundles import bundle_blocks
from ndgpa.attention.far_field import BlockMeans, Bundles, latest_of_blocks
from ndgpa.attention.rows import add_rows, add_rows_
from ndgpa.problem import Problem, Selection, check_block_ids


class FarPlan(NamedTuple):
    """What the far keys of the cells are made of; nothing of it has a gradient."""

    bundle: Tensor  # (b, hk, B): the bundle of each block
    less: Tensor  # (b, t, C, K): blocks of the total that a cell selected, each once; -1 for none
    place: Tensor  # (B,): the first total that each block is part of; -1 for none
    table: Tensor  # (C,): the total of each cell
    space: Tensor  # (T,): the space of each total
    bundles: int
    causal: bool
    square: float  # times |k|^2 is what a key loses of its logit


def far_arguments(plan: FarPlan | None, sums: Tensor | None) -> dict[str, Any]:
    """What `attend_chunked` takes of a plan."""
    names = "bundle", "less", "place", "table", "space", "bundles", "square"
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
        latest = latest_of_blocks(keys, self.key_sites) if problem.causal else None
        sums, seen = sums[..., : problem.key.shape[3]].detach(), sums[..., -1].detach()
        mean = sums / seen.clamp(min=1)[..., None]
        bundle = bundle_blocks(mean, seen > 0, latest, keys.group, self.bundles.count)
        square = problem.scale if problem.affinity == "euclidean" else 0.0
        less = _selected(blocks, problem, latest)
        options = self.bundles.count, problem.causal, square
        return FarPlan(bundle, less, *_places(problem, latest), *options)


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


class FarTiles:
    """The flattened far field: a tile for each cell of each batch and each table of selections."""

    def __init__(self, plan: FarPlan, sums: Float[Tensor, "b hk B f"], features: int) -> None:
        batch, key_heads, blocks, _ = sums.shape
        tables, totals = plan.less.shape[1], len(plan.space)
        head = torch.arange(tables, device=sums.device) // (tables // key_heads)
        head = head + key_heads * torch.arange(batch, device=head.device)[:, None]
        self.total_row = (head[..., None] * totals + plan.table).flatten()  # (tiles,)
        rows = plan.less.clamp(min=0).long() + (head * blocks)[..., None, None]
        self.bundle = plan.bundle.flatten()[rows.flatten(0, 2)]  # (tiles, K)
        none = batch * key_heads * blocks  # one row more, for what is not in the total
        self.rows = rows.masked_fill(plan.less < 0, none).flatten(0, 2)
        self.sums = F.pad(sums.flatten(0, 2), (0, 0, 0, 1))
        self.total = _totals(sums, plan).flatten(0, 1)
        self.features, self.bundles, self.square = features, plan.bundles, plan.square

    def tile(self, chunk: slice | Tensor) -> FarTile:
        """Average what is left of each bundle; differentiable."""
        total = self.total.index_select(0, self.total_row[chunk])  # (c, N, f)
        rows, members = self.rows[chunk], self._members(chunk)
        selected = self.sums.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        left = torch.baddbmm(total, members, selected, alpha=-1)
        size = left[..., -1:].detach()
        share = torch.where(size > 0, 1 / size, 0)
        key, value = (left[..., :-1] * share).tensor_split([self.features], dim=-1)
        bias = size[..., 0].clamp(min=0).log()
        if self.square:
            bias = bias - self.square * key.square().sum(dim=-1)
        return FarTile(key, value, bias, share)

    def _members(self, chunk: slice | Tensor) -> Tensor:  # (c, N, K)
        """1 where a selected block is of a bundle, else 0."""
        bundles = torch.arange(self.bundles, device=self.bundle.device)
        return (self.bundle[chunk][:, None] == bundles[:, None]).to(self.sums.dtype)

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
        by_mean = torch.cat([by_key, by_value], dim=-1).mul_(tile.share)
        taken = self._members(chunk).mT @ by_mean
        add_rows_(grads.sums, self.rows[chunk].flatten(), taken.flatten(0, 1).neg_())
        add_rows_(grads.total, self.total_row[chunk], by_mean)


class FarGrads:
    """The gradients of the sums over blocks and of the totals, without the number of sites."""

    def __init__(self, plan: FarPlan, sums: Float[Tensor, "b hk B f"]) -> None:
        self.plan, (*self.shape, features) = plan, sums.shape
        pairs, blocks, features = self.shape[0] * self.shape[1], self.shape[2], features - 1
        self.sums = sums.new_zeros(pairs * blocks + 1, features)  # one row for no block
        self.total = sums.new_zeros(pairs * len(plan.space), plan.bundles, features)

    @property
    def of_sums(self) -> Float[Tensor, "b hk B f"]:
        """All of the gradient of the sums, once both are complete."""
        plan = self.plan
        total = self.total.unflatten(0, (*self.shape[:2], len(plan.space)))
        if plan.causal:
            total = _running(total.flip(2), plan.space.flip(0)).flip(2)
        found = total.flatten(0, 3).index_select(0, _rows_of_totals(plan).flatten())
        found = found.unflatten(0, self.shape).masked_fill((plan.place < 0)[:, None], 0)
        return found + self.sums[:-1].view(found.shape)


def _places(
    problem: Problem, latest: Int[Tensor, " B"] | None
) -> tuple[Int[Tensor, " B"], Int[Tensor, " C"], Int[Tensor, " T"]]:
    """Which total each block belongs to first, -1 for none, which one each cell sees, its space.

    Totals are those of the cells, sorted by space and time. If causal, a block is past from the
    first that is not earlier; what is past then is so for all that follow in its space.
    """
    own, keys, causal = problem.structure, problem.key_structure, problem.causal
    cells, blocks, device = own.num_cells, keys.num_blocks, problem.query.device
    if not causal and (own.cell_group is None or keys.group is None):
        one = torch.zeros(max(cells, blocks), dtype=torch.int64, device=device)
        return one[:blocks], one[:cells], one[:1]
    cell_rank, rank = _ranks(own.cell_group, keys.group, cells, blocks, device)
    cell_space, space = (x * (cells + blocks) for x in (cell_rank, rank))
    now = own.cell_span[0] if causal else None
    cell_time, time = _ranks(now, latest, cells, blocks, device)
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


def _totals(sums: Float[Tensor, "b hk B f"], plan: FarPlan) -> Float[Tensor, "bhk T N f"]:
    """Add up the blocks of each bundle; if causal, those that are past at each total."""
    (batch, heads, _, features), totals = sums.shape, len(plan.space)
    given = sums.masked_fill((plan.place < 0)[:, None], 0).flatten(0, 2)
    zeros = sums.new_zeros(batch * heads * totals * plan.bundles, features)
    total = add_rows(zeros, _rows_of_totals(plan).flatten(), given)
    total = total.view(batch, heads, totals, plan.bundles, features)
    return (_running(total, plan.space) if plan.causal else total).flatten(0, 1)


def _rows_of_totals(plan: FarPlan) -> Int[Tensor, "b hk B"]:
    """The row of the flattened totals that each block is part of first."""
    pairs, totals = plan.bundle.shape[:2], len(plan.space)
    pair = torch.arange(pairs.numel(), device=plan.bundle.device).view(*pairs, 1)
    return (pair * totals + plan.place.clamp(min=0)) * plan.bundles + plan.bundle


def _running(
    total: Float[Tensor, "b hk T N f"], space: Int[Tensor, " T"]
) -> Float[Tensor, "b hk T N f"]:
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
    own, group, ids = problem.structure, problem.key_structure.group, blocks.clamp(min=0)
    if own.cell_group is not None and group is not None:
        hidden = hidden | (group[ids] != own.cell_group[:, None])
    if latest is not None:
        hidden = hidden | (latest[ids] > own.cell_span[0][:, None])
    return blocks.masked_fill(hidden, -1)


def all_far_keys(plan: FarPlan, sums: Float[Tensor, "b hk B f"], features: int) -> FarTile:
    """The far keys of all cells: (b, t, C, N, d), (b, t, C, N, w) and (b, t, C, N)."""
    tile = FarTiles(plan, sums, features).tile(slice(None))
    return FarTile(*(x.unflatten(0, plan.less.shape[:3]) for x in tile))
