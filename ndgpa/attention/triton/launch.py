"""How a kernel with one program per tile of a cell's queries is launched: forward, query-major."""

from dataclasses import dataclass
from typing import Any

from ndgpa.attention.triton.inputs import Inputs
from ndgpa.attention.triton.tiles import (
    Tile,
    ceil_div,
    key_tiles,
    precision,
    split_width,
    tiles_per_slot,
)

# Sizes of which no kernel is compiled anew: neither 1 nor a multiple of 16 makes it faster.
SIZES = (
    "s_slots_b",
    "s_slots_t",
    "s_lse_b",
    "s_lse_h",
    "n_k",
    "C",
    "K",
    "num_key_tiles",
)


@dataclass(frozen=True)
class Launch:
    """The grid, the arguments named in `SIZES`, and the constants of a launch."""

    grid: tuple[int, int]
    sizes: tuple[int, ...]
    constants: dict[str, Any]

    @property
    def programs(self) -> int:
        return self.grid[0] * self.grid[1]

    @classmethod
    def of(cls, given: Inputs, tile: Tile) -> "Launch":
        """Launch with this tile.

        Args:
            given: As `Inputs.laid_out` gives them.
        """
        (batch, heads, n, d), (_, key_heads, n_k, dv) = given.query.shape, given.value.shape
        selection_heads, cells, slots = given.blocks.shape[1:]
        places, sites, tiles = given.cell_sites.shape[1], given.key_sites.shape[1], given.tiles
        group = heads // tiles
        row_tiles = ceil_div(group * places * tile.members, tile.rows)
        s_slots = 0 if selection_heads == 1 else cells * slots
        sizes = (
            selection_heads * cells * slots,
            s_slots,
            heads * n,
            n,
            n_k,
            cells,
            slots,
            key_tiles(tile.members * slots, sites, tile.keys),
        )
        constants = {
            "X": places,
            "R": sites,
            "GROUP": group,
            "TILES": tiles // key_heads,
            "D": d,
            "DV": dv,
            **feature_tiles(d, dv),
            "ROWS": tile.rows,
            "KEYS": tile.keys,
            "TILES_PER_SLOT": tiles_per_slot(sites, tile.keys),
            "MEMBERS": tile.members,
            "EVEN": given.even,
            "WHOLE": given.even and _is_whole(sites, slots, cells, tile),
            "FOLD": given.has_no_bias and given.scale > 0,
            "PRECISION": precision(given.query.dtype),
            "num_warps": tile.warps,
            "num_stages": tile.stages,
            "enable_fp_fusion": True,
        }
        grid = row_tiles * ceil_div(cells, tile.members) * batch, tiles
        return cls(grid, sizes, constants)


def feature_tiles(d: int, dv: int) -> dict[str, int]:
    """The constants that say how features are tiled."""
    (pad_d, rest_d), (pad_dv, rest_dv) = split_width(d), split_width(dv)
    return {"PAD_D": pad_d, "REST_D": rest_d, "PAD_DV": pad_dv, "REST_DV": rest_dv}


def _is_whole(sites: int, slots: int, cells: int, tile: Tile) -> bool:
    """Whether the slots of every program fill whole tiles of keys."""
    if cells % tile.members:
        return False
    if sites >= tile.keys:
        return sites % tile.keys == 0
    return tile.keys % sites == 0 and tile.members * slots % (tile.keys // sites) == 0
