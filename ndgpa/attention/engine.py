"""Attention in tiles, a chunk of them at a time: what every engine computes.

An engine says which rows a tile reads and what is added to its logits, and yields its tiles chunk
by chunk. What is done with them is here: the output, and one backward, which computes the weights
of each chunk again. So the memory beside inputs and outputs is that of one chunk.

Letters: c tiles of a chunk, of X queries and Y keys each.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ndgpa._ops import has_values
from ndgpa.attention.far_cells import FarTile
from ndgpa.attention.rows import Rows, Run
from ndgpa.attention.softmax import Softmax


@dataclass(frozen=True)
class Tile:
    """The attention of a chunk of tiles, in float32 or wider; differentiable.

    Args:
        chunk: Which tiles these are.
        queries, keys: The rows of the tables of queries and of keys.
        is_masked: Whether a key may be hidden from a query.
        contains: Whether a key may be hidden that is not finite. A weight of 0 does not hide NaN.
        far: The far keys, which come after those of rows.
        bend: How steep the logits are in the products; None means 1.
    """

    chunk: slice | Tensor
    query: Tensor  # (c, X, d)
    key: Tensor  # (c, Y, d)
    value: Tensor  # (c, Y, dv)
    softmax: Softmax  # (c, X, Y)
    scale: float
    queries: Rows | Run
    keys: Rows
    is_masked: bool
    contains: bool = False
    bend: Tensor | None = None  # (c, X, Y)
    far: FarTile | None = None

    @property
    def near(self) -> slice:
        """Which of the keys are those of rows."""
        return slice(self.key.shape[1] - (0 if self.far is None else self.far.bias.shape[1]))

    @property
    def out(self) -> Tensor:  # (c, X, dv)
        """The weighted values; NaN where one that is not finite has a weight.

        A value that is not finite reaches its feature of all queries of the tile, also at a weight
        of 0; so where the result is finite, all values were.
        """
        out = torch.bmm(self.softmax.weights, self.value)
        if not self.contains or _are_finite(out):
            return out
        bad = ~self.value.isfinite()
        out = torch.bmm(self.softmax.weights, self.value.masked_fill(bad, 0))
        counts = torch.bmm((self.softmax.weights > 0).to(out.dtype), bad.to(out.dtype))
        return out.masked_fill(counts > 0, torch.nan)

    @property
    def contained(self) -> "Tile":
        """The same with zeros for keys and values that are not finite, where any may be hidden."""
        if not self.contains or _are_finite(self.key, self.value):
            return self
        key, value = (x.nan_to_num(0.0, 0.0, 0.0) for x in (self.key, self.value))
        return replace(self, key=key, value=value)

    def slope(self, grad_out: Tensor, grad_lse: Tensor | None) -> Tensor:  # (c, X, Y)
        """The gradient of the logits, of those of the output and of the log-sum-exp."""
        weights = self.softmax.weights
        slope = torch.bmm(grad_out, self.value.mT)
        mean = (slope * weights).sum(dim=-1, keepdim=True)
        slope.sub_(mean if grad_lse is None else mean - grad_lse[..., None]).mul_(weights)
        return slope.masked_fill_(weights == 0, 0) if self.is_masked else slope


class Tables(NamedTuple):
    """One tensor for each of query, key and value, as tables of rows."""

    query: Tensor
    key: Tensor
    value: Tensor


def attend(tiles: Iterable[Tile], out: Tensor, lse: Tensor | None = None) -> None:
    """Write the output, and the log-sum-exp where it is wanted, to tables of the queries."""
    for tile in tiles:
        tile.queries.put(out, tile.out)
        if lse is not None:
            tile.queries.put(lse, tile.softmax.lse)
        del tile  # before the next is made


def differentiate(
    tiles: Iterable[Tile], grads: Tables, grad_out: Tensor, grad_lse: Tensor | None = None
) -> Iterator[tuple[Tile, Tensor]]:
    """Write the gradients of queries, and add those of keys and values to `grads`.

    Yields:
        Each chunk and the gradient of its logits, for what else was added to them.
    """
    wide = grads.key.dtype
    for tile in map(_contained, tiles):
        g = tile.queries.take(grad_out, wide)
        slope = tile.slope(g, None if grad_lse is None else tile.queries.take(grad_lse, wide))
        products = slope if tile.bend is None else slope * tile.bend
        tile.queries.put(grads.query, scaled_bmm(products, tile.key, tile.scale))
        weights = tile.softmax.weights[..., tile.near]
        tile.keys.add(grads.key, scaled_bmm(products[..., tile.near].mT, tile.query, tile.scale))
        tile.keys.add(grads.value, torch.bmm(weights.mT, g))
        yield tile, slope
        del tile, slope, products, g  # before the next are made; who asked for them does so too


def _contained(tile: Tile) -> Tile:
    """Without what is not finite; and without the logits, which a gradient does not need."""
    weights = tile.softmax.weights
    return replace(tile.contained, softmax=replace(tile.softmax, logits=weights))


def scaled_bmm(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _are_finite(*xs: Tensor) -> bool:
    """Whether all numbers are, by their sums; a GPU is not asked, for it would be waited for."""
    return has_values(*xs) and all(bool(x.sum().isfinite()) for x in xs)
