"""Which rows of a table a chunk of tiles reads and writes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Rows named one by one, as many for each tile.

    Args:
        ids: (tiles * rows,); any row in an empty place.
        empty: (tiles * rows,), True in an empty place; None where there is none.
        tiles: How many tiles there are.
    """

    ids: Tensor
    empty: Tensor | None
    tiles: int

    def take(self, table: Tensor, dtype: torch.dtype) -> Tensor:  # (N, ..., d) -> (tiles, rows, d)
        """Copy the rows; zeros in empty places."""
        taken = table.flatten(1).index_select(0, self.ids)
        if self.empty is not None:
            taken.masked_fill_(self.empty[:, None], 0)
        return taken.view(self.tiles, -1, table.shape[-1]).to(dtype)

    def put(self, table: Tensor, x: Tensor) -> None:
        """Write the rows, none of which is named twice. Empty places go to the table's last row."""
        ids = self.ids
        if self.empty is not None:
            ids = ids.masked_fill(self.empty, table.shape[0] - 1)
        table.index_copy_(0, ids, x.flatten(0, 1).to(table.dtype))

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add to the rows, always in the same order; nothing from empty places."""
        total, part = total.view(len(total), -1), part.reshape(len(self.ids), -1)
        if self.empty is not None:
            part = part.masked_fill(self.empty[:, None], 0)
        add_rows_(total, self.ids, part)


@dataclass(frozen=True)
class Run:
    """Rows of a table that has one row for each tile: a range of them, or some by number."""

    ids: slice | Tensor

    def take(self, table: Tensor, dtype: torch.dtype) -> Tensor:
        return table[self.ids].to(dtype)

    def put(self, table: Tensor, x: Tensor) -> None:
        table[self.ids] = x.to(table.dtype)


def add_rows_(total: Tensor, ids: Tensor, part: Tensor) -> Tensor:
    """Add each row of `part` to the row of `total` that its number names, always in one order."""
    if total.is_cuda:  # index_add_ is atomic there; this sorts
        return total.index_put_((ids,), part, accumulate=True)
    return total.index_add_(0, ids, part)


def add_rows(total: Tensor, ids: Tensor, part: Tensor) -> Tensor:
    """As `add_rows_`, to a copy."""
    if total.is_cuda:
        return total.index_put((ids,), part, accumulate=True)
    return total.index_add(0, ids, part)
