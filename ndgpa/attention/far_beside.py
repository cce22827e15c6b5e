"""Far keys as blocks more, for a backend that knows none: the selection of each cell names its own.

The keys of all cells lie in memory; the `torch` backend makes them a few cells at a time instead.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa._ops import wide
from ndgpa.attention.far_cells import FarCells, FarPlan, all_far_keys, block_sums, sums_of_means
from ndgpa.attention.far_field import BlockMeans
from ndgpa.problem import Selection
from ndgpa.structures.base import SpatialStructure
from ndgpa.structures.line import Line
from ndgpa.structures.tables import take_sites

Attend = Callable[..., tuple[Tensor, Tensor]]


def read_beside(
    run: Attend,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    value: Float[Tensor, "b hk n_k dv"],
    selection: Selection,
    structure: SpatialStructure,
    key_structure: SpatialStructure,
    *,
    far: FarCells,
    scale: float,
    key_bias: Float[Tensor, "b hk n_k"] | None = None,
    key_sites: Int[Tensor, "B S"] | None = None,
    causal: bool = False,
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
    """Attend with a backend to the selected blocks and to the far keys of each cell.

    Arguments as for the backend.
    """
    rows = key_structure.blocks if key_sites is None else key_sites
    if key_bias is None:
        key_bias = key.new_zeros(key.shape[:3], dtype=wide(key))
    unseen = (key_bias == -torch.inf)[..., None]
    near = [take_sites(x.masked_fill(unseen, 0), rows) for x in (key, value)]
    bias = take_sites(key_bias[..., None], rows)[..., 0].masked_fill(rows < 0, -torch.inf)
    sums = block_sums(near[0], near[1], bias)
    blocks, (slots, *more) = rows.shape[0], _in_blocks(far.plan(sums), sums, key, rows.shape[1])
    parts = zip((*near, bias), more, strict=True)
    keys = [torch.cat([x, y.to(x.dtype)], dim=2) for x, y in parts]
    time = None
    if causal:
        assert key_structure.time is not None
        time = F.pad(
            key_structure.time[rows.clamp(min=0)], (0, 0, 0, more[0].shape[2]), value=_PAST
        )
    return _read(run, query, keys, _with_slots(selection, slots + blocks), structure, time, scale)


def read_alone(
    run: Attend,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b hk n_k d"],
    structure: SpatialStructure,
    far: FarCells,
    means: BlockMeans,
    scale: float,
    causal: bool,
) -> tuple[Float[Tensor, "b h n dv"], Float[Tensor, "b h n"]]:
    """Attend with a backend to the far keys of each cell and to nothing else."""
    sums = sums_of_means(means)
    slots, *keys = _in_blocks(far.plan(sums), sums, key, far.bundles.count)
    keys = [keys[0].to(key.dtype), keys[1].to(key.dtype), keys[2]]
    selection = Selection(slots.expand(len(query), -1, -1, -1))
    time = keys[0].new_full(keys[0].shape[2:4], _PAST, dtype=torch.int64) if causal else None
    return _read(run, query, keys, selection, structure, time, scale)


_PAST = torch.iinfo(torch.int64).min


def _read(
    run: Attend,
    query: Tensor,
    keys: list[Tensor],  # (b, hk, B, R, d), (b, hk, B, R, dv), (b, hk, B, R)
    selection: Selection,
    structure: SpatialStructure,
    time: Tensor | None,  # (B, R)
    scale: float,
) -> tuple[Tensor, Tensor]:
    count, places = keys[0].shape[2:4]
    time = None if time is None else time.flatten()
    space = Line(count * places, places, time, query.device)
    key, value, bias = (x.flatten(2, 3) for x in keys)
    options = {"scale": scale, "key_bias": bias, "causal": time is not None}
    return run(query, key, value, selection, structure, space, **options)


def _in_blocks(
    plan: FarPlan, sums: Tensor, key: Tensor, places: int
) -> tuple[Int[Tensor, "1 t C S"], Tensor, Tensor, Tensor]:
    """Lay the far keys of each cell out in blocks of so many places, the last with empty ones.

    Returns:
        The numbers of each cell's blocks; keys, values (b, hk, B, places, f) and bias.
    """
    tile = all_far_keys(plan, sums, key.shape[3])
    tables, cells, bundles = tile.bias.shape[1:]
    slots, heads = -(-bundles // places), key.shape[1]
    room = slots * places - bundles
    form = "b (k g) c (s r) f -> b k (g c s) r f"
    laid = [
        rearrange(F.pad(x, (0, 0, 0, room), value=fill), form, k=heads, s=slots)
        for x, fill in ((tile.key, 0.0), (tile.value, 0.0), (tile.bias[..., None], -torch.inf))
    ]
    ids = torch.arange(tables // heads * cells * slots, dtype=torch.int32, device=key.device)
    ids = ids.view(1, -1, cells, slots).repeat(1, heads, 1, 1)
    return ids, laid[0], laid[1], laid[2][..., 0]


def _with_slots(selection: Selection, more: Int[Tensor, "1 t C S"]) -> Selection:
    """Let every cell read some blocks first."""
    shape = len(selection.blocks), *more.shape[1:]
    blocks = selection.blocks.expand(-1, shape[1], -1, -1)
    bias = selection.bias
    if bias is not None:
        bias = torch.cat([bias.new_zeros(shape), bias.expand(blocks.shape)], dim=3)
    return Selection(torch.cat([more.expand(shape), blocks.int()], dim=3), bias, selection.full)
