"""The arguments of the operator `attend_triton`, which its launchers take as one object."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ndgpa._ops import side_by_side

LOG2_E = 1.4426950408889634


class Inputs(NamedTuple):
    """What `attend_triton` takes, in its order."""

    query: Tensor  # (b, h, n, d)
    key: Tensor  # (b, hk, n_k, d)
    value: Tensor  # (b, hk, n_k, dv)
    slot_bias: Tensor | None  # (b, hs, C, K) float32
    key_bias: Tensor | None  # (b, hk, n_k) float32
    blocks: Tensor  # (b, hs, C, K) int, -1 for an empty slot
    cell_sites: Tensor  # (C, X) int64, -1 for an empty place
    key_sites: Tensor  # (B, R) int64, -1 for an empty place
    query_time: Tensor | None  # (n,) int64
    key_time: Tensor | None  # (n_k,) int64
    scale: float
    partition: bool = True  # every site of the keys is in exactly one row of key_sites
    even: bool = False  # no slot of blocks and no place of the other two tables is empty

    @property
    def tiles(self) -> int:
        """Tiles of heads: the heads of one share a selection and a key head."""
        heads, key_heads = self.query.shape[1], self.key.shape[1]
        return heads if self.blocks.shape[1] == heads else key_heads

    @property
    def has_no_bias(self) -> bool:
        return self.slot_bias is None and self.key_bias is None

    def laid_out(self) -> "Inputs":
        """The same as the kernels read it: features side by side, tables contiguous.

        Ragged tables get more empty places, so that few widths are ever compiled.
        """
        assert max(self.query.shape[2], self.key.shape[2]) < 2**31
        cell_sites, key_sites = self.cell_sites, self.key_sites
        if not self.even:
            cell_sites = _with_places(cell_sites, _cell_width(cell_sites.shape[1]))
            key_sites = _with_places(key_sites, _block_width(key_sites.shape[1]))
        return self._replace(
            query=side_by_side(self.query),
            key=side_by_side(self.key),
            value=side_by_side(self.value),
            slot_bias=_contiguous(self.slot_bias),
            key_bias=_contiguous(self.key_bias),
            blocks=self.blocks.int().contiguous(),
            cell_sites=cell_sites.contiguous(),
            key_sites=key_sites.contiguous(),
            query_time=_contiguous(self.query_time),
            key_time=_contiguous(self.key_time),
        )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _with_places(table: Tensor, width: int) -> Tensor:
    missing = width - table.shape[1]
    return table if missing == 0 else F.pad(table, (0, missing), value=-1)


def _cell_width(places: int) -> int:
    """A multiple of 8 from 16 on, of 32 from 64 on."""
    step = 1 if places <= 16 else 8 if places <= 64 else 32
    return -(-places // step) * step


def _block_width(places: int) -> int:
    """The most places of which a tile of 64 keys holds as many slots, or a slot as many tiles."""
    if places > 64:
        return -(-places // 64) * 64
    return 64 // (64 // places)
