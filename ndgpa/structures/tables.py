"""Index tables: rows of members, padded with -1; and the property that keeps what it computed."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa._ops import has_values, outside_traces

T = TypeVar("T")


class cached(Generic[T]):
    """A property that is computed at its first use and kept.

    What the compiler traces is not kept: it stands for a tensor and is none. What is computed in
    inference mode, or while `torch.export` traces, is an ordinary tensor, which a later backward
    may save.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self.compute = compute
        self.name = compute.__name__
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, owner: None, kind: type) -> "cached[T]": ...

    @overload
    def __get__(self, owner: Any, kind: type | None = None) -> T: ...

    def __get__(self, owner: Any, kind: type | None = None) -> "T | cached[T]":
        if owner is None:
            return self
        if torch.compiler.is_dynamo_compiling():
            return self.compute(owner)
        with outside_traces():
            value = self.compute(owner)
        if not isinstance(value, Tensor) or type(value) is Tensor:
            owner.__dict__[self.name] = value
        return value


def lookup(rows: Int[Tensor, "rows R"], ids: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape R"]:
    """Take rows by number; a number -1 gives a row of -1."""
    taken = rows[ids.clamp(min=0).long()]
    return taken.masked_fill((ids < 0)[..., None], -1)


def take_sites(
    x: Float[Tensor, "*batch n d"], sites: Int[Tensor, "rows R"], full: bool = False
) -> Float[Tensor, "*batch rows R d"]:
    """Take the features of the sites named, zeros where a site is -1; `full` promises none is."""
    if full:
        return x.index_select(-2, sites.flatten()).unflatten(-2, sites.shape)
    taken = x.index_select(-2, sites.flatten().clamp(min=0)).unflatten(-2, sites.shape)
    empty: Bool[Tensor, "rows R"] = sites < 0
    return taken.masked_fill_(empty[..., None], 0)


def span_of_rows(
    first: Int[Tensor, " members"], last: Int[Tensor, " members"], rows: Int[Tensor, "rows R"]
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Find the earliest and the latest time of the members of each row."""
    limits, empty = torch.iinfo(torch.int64), rows < 0
    members = rows.clamp(min=0)
    earliest = first[members].masked_fill(empty, limits.max).amin(dim=1)
    return earliest, last[members].masked_fill(empty, limits.min).amax(dim=1)


def row_of_member(rows: Int[Tensor, "rows R"], count: int) -> Int[Tensor, " count"]:
    """Find the row that each of `count` members stands in."""
    return place_of_member(rows, count) // rows.shape[1]


def place_of_member(rows: Int[Tensor, "rows R"], count: int) -> Int[Tensor, " count"]:
    """Find where each of `count` members stands in the flattened table."""
    flat = rows.flatten()
    places = torch.empty(count + 1, dtype=torch.int64, device=rows.device)  # the last for -1
    member = torch.where(flat < 0, count, flat)
    places.scatter_(0, member, torch.arange(len(flat), device=rows.device))
    return places[:-1]


def members_of_rows(row_of_member: Int[Tensor, " members"]) -> Int[Tensor, "rows longest"]:
    """List the members of each row in ascending order, -1 after the last."""
    row = row_of_member.long()
    counts = row.bincount()
    order = row.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(row), device=row.device) - starts[row[order]]
    rows = row.new_full((len(counts), int(counts.max())), -1)
    rows[row[order], place] = order
    return rows


def is_full(rows: Int[Tensor, "rows R"]) -> bool:
    """Whether no place is empty, where looking costs nothing: on the CPU, of what is not traced."""
    if not has_values(rows):
        return False
    with outside_traces():
        return bool((rows >= 0).all())
