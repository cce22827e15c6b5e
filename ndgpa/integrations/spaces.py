"""The structures of a model's calls: made from the grid that the tokens lie on, and kept."""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ndgpa import arguments
from ndgpa.structures import Grid, SpatialStructure, with_tokens
from ndgpa.structures.base import check_structure

PerAxis = int | tuple[int, ...]
Shape = tuple[int, ...]
GivenGrid = Shape | Callable[[Shape | None], Shape] | None
KEPT = 8  # structures of different shape


@runtime_checkable
class Space(Protocol):
    """Give the structure of a call."""

    def of(self, tokens: int, seen: Any, /) -> SpatialStructure:
        """Make the structure.

        Args:
            tokens: How many queries the call has.
            seen: What the call was told of its grid, if anything: its shape, or the input of the
                model, as the space has it.

        Raises:
            ValueError: The tokens do not fill the grid.
        """
        ...


@dataclass(frozen=True)
class Blocks:
    """How a grid is cut: blocks, cells, and tokens before its sites.

    Args:
        block: Sites of a block along each axis; one int serves all axes. Cut to a shorter axis.
        cell: Blocks of a cell along each axis, likewise.
        prefix: Tokens before the sites, such as a class token and registers.
        time_axis: The axis that is time; None where there is none.
    """

    block: PerAxis
    cell: PerAxis = 1
    prefix: int = 0
    time_axis: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("block", self.block), ("cell", self.cell)):
            if min(arguments.ints(name, value), default=0) < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")

    def __call__(self, shape: tuple[int, ...]) -> SpatialStructure:
        block = _cut(self.block, shape)
        blocks = tuple(-(-size // b) for size, b in zip(shape, block))
        grid = Grid(shape, block, _cut(self.cell, blocks), self.time_axis)
        return with_tokens(grid, prefix=self.prefix) if self.prefix else grid


class GridSpace:
    """The structures of a model whose tokens fill a grid.

    Args:
        owner: The name of the model, for errors.
        blocks: How a grid is cut.
        rank: The axes of a grid.
        grid: The grid where it is always the same, or a function that gives it from the shape of
            the input, None where that is not known. None means that all tokens are one axis.
    """

    def __init__(
        self,
        owner: str,
        blocks: Blocks,
        rank: int,
        grid: GivenGrid = None,
    ) -> None:
        for name, value in (("block", blocks.block), ("cell", blocks.cell)):
            if not isinstance(value, int) and len(value) != rank:
                raise ValueError(
                    f"{name} has {len(value)} entries but the grid of {owner} has {rank} axes"
                )
        self.owner, self.blocks, self.grid = owner, blocks, grid
        self.recent = Recent(blocks)

    def of(self, tokens: int, x: Tensor | None) -> SpatialStructure:
        shape = self._shape(tokens, x)
        if tokens != self.blocks.prefix + math.prod(shape):
            raise ValueError(
                f"{self.owner} has {tokens} tokens but a grid of {'x'.join(map(str, shape))} and "
                f"{self.blocks.prefix} more: GPA needs every token of the grid"
            )
        return self.recent(shape)

    def _shape(self, tokens: int, x: Tensor | None) -> Shape:
        """The grid, in plain numbers: a graph is compiled for one size of its input."""
        if callable(self.grid):
            return self.grid(None if x is None else tuple(map(_plain, x.shape)))
        return (_plain(tokens) - self.blocks.prefix,) if self.grid is None else self.grid


class GivenSpace:
    """A structure of the user's, or a function that makes one for a number of tokens."""

    def __init__(self, given: SpatialStructure | Callable[[int], SpatialStructure]) -> None:
        if not callable(given):
            check_structure("structure", given)
        self.given = Recent(given) if callable(given) else given

    def of(self, tokens: int, x: Tensor | None) -> SpatialStructure:
        return self.given(tokens) if isinstance(self.given, Recent) else self.given


class Recent:
    """Keep what a function made for its last few arguments, safely among threads.

    Copies and pickles begin empty.
    """

    def __init__(self, make: Callable[[Any], SpatialStructure], size: int = KEPT) -> None:
        self.make, self.size = make, size
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, SpatialStructure] = OrderedDict()

    def __call__(self, key: Any) -> SpatialStructure:
        if torch.compiler.is_compiling():  # the graph holds what is made for its own sizes
            return self.make(key)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self.make(key)
            self._kept.move_to_end(key)
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
            return self._kept[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"make": self.make, "size": self.size}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()


def wanted_layers(layers: Iterable[int] | None, count: int) -> list[int]:
    """List the numbers of the layers that a user names, ascending; None names all."""
    wanted = range(count) if layers is None else sorted(set(layers))
    unknown = [number for number in wanted if number not in range(count)]
    if unknown:
        raise ValueError(f"layers names layer {unknown[0]} but the model has {count}")
    return list(wanted)


def _plain(size: int) -> int:
    """Turn the symbol that a compiler may have for a size into the number."""
    return len(range(size))


def _cut(factor: PerAxis, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give one factor for each axis, none longer than its axis."""
    factors = (factor,) * len(shape) if isinstance(factor, int) else factor
    return tuple(min(one, size) for one, size in zip(factors, shape))
