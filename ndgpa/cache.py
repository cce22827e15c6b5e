"""Decoding: append keys and values, attend with the newest queries, as a causal prefill would."""

from collections.abc import Hashable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.attention.chunked import attend_from_cells
from ndgpa.functional import as_rule, gpa
from ndgpa.problem import (
    AFFINITIES,
    Affinity,
    Problem,
    Selection,
    check_features,
    check_heads_and_features,
    check_scale,
    check_value,
    dot_form,
)
from ndgpa.selection import Rule
from ndgpa.selection.candidates import KnowsItsPast
from ndgpa.structures import Grid, Sequence
from ndgpa.structures.base import MakeTable, SpatialStructure


class Cache:
    """Keys and values of a sequence that grows, for causal attention to it.

    What `attend` gives for the newest sites is what `ndgpa.gpa` gives for them, causally, on the
    whole `Sequence(length, block, cell)`. A cell selects at its first site, from the means of
    the blocks that are complete by then, and keeps its selection; so a step costs the means at the
    beginning of a cell, and the kept blocks at every site, however long the sequence is. A step
    compiles as one graph and never makes the host wait for a GPU. For inference: no gradient is
    kept.

    Args:
        block, cell: Of the sequence.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`. Not one that needs queries
            and keys on one structure.
        scale, affinity: As for `ndgpa.gpa`.

    Raises:
        ValueError, TypeError: As for `ndgpa.gpa`.

    Example:
        cache = ndgpa.Cache(block=16, cell=1, rule=8)
        cache.append(key, value)       # the prompt, (batch, key_heads, sites, features)
        out = cache.attend(query)      # its output
        for _ in range(steps):         # one site at a time
            cache.append(key, value)
            out = cache.attend(query)
    """

    def __init__(
        self,
        block: int,
        cell: int,
        rule: Rule | int,
        scale: float | None = None,
        affinity: Affinity = "dot",
    ) -> None:
        arguments.positive_count("block", block)
        arguments.positive_count("cell", cell)
        check_scale(scale)
        arguments.one_of("affinity", affinity, AFFINITIES)
        self.block, self.cell = block, cell
        self.rule = as_rule(rule)
        self.scale, self.affinity = scale, affinity
        self.length = 0
        self._waiting = 0  # sites that no call of `attend` has been made for
        self._kept: Selection | None = None
        self._room_for = Sequence(block, block)
        self._key = self._value = self._means = torch.empty(1, 1, 0, 1)
        self._bias: Tensor | None = None  # (b, hk, room, 1), what euclidean logits add
        self._time = torch.empty(0, dtype=torch.int64)  # (room,)

    @torch.no_grad()
    def append(self, key: Float[Tensor, "b hk m d"], value: Float[Tensor, "b hk m dv"]) -> None:
        """Add the keys and values of the next m sites."""
        check_value(key, value)
        if self.length:
            _check_same_sequence("key", key, self._key)
            _check_same_sequence("value", value, self._value)
        begin, self.length = self.length, self.length + key.shape[2]
        self._waiting += key.shape[2]
        wide = torch.promote_types(key.dtype, torch.float32)
        step, blocks = self.block * self.cell, -(-self.length // self.block)
        room = -(-self.length // step) * step  # for all blocks of the newest cell
        self._key = _room(self._key, key, room, key.dtype)
        self._value = _room(self._value, value, room, value.dtype)
        self._means = _room(self._means, key, self._key.shape[2] // self.block, wide)
        self._key[:, :, begin : self.length] = key
        self._value[:, :, begin : self.length] = value
        if len(self._time) != self._key.shape[2]:
            self._time = torch.arange(self._key.shape[2], device=key.device)
        bias, _ = dot_form(key, self.affinity, self._scale(key))
        if bias is not None:
            kept = bias[:, :, :0, None] if self._bias is None else self._bias
            self._bias = _room(kept, bias[..., None], self._key.shape[2], wide)
            self._bias[:, :, begin : self.length] = bias[..., None]
        first = begin // self.block
        new = self._key[:, :, first * self.block : blocks * self.block]
        new = self._by_block(new).sum(dim=3, dtype=wide)
        self._means[:, :, first:blocks] = new / self.block

    @torch.no_grad()
    def attend(self, query: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m dv"]:
        """The output of the m newest sites, which no call has been made for yet.

        Raises:
            ValueError: m is not the number of sites appended since the last call, or as for `gpa`.
        """
        _check_newest(query, self._waiting)
        check_heads_and_features(query, self._key)
        begin = self.length - self._waiting
        out = self._continue(query, begin) if begin else self._prefill(query)
        self._waiting = 0
        return out

    def _continue(self, query: Tensor, begin: int) -> Tensor:
        """Sites after `begin`, cell by cell."""
        out, step = [], self.block * self.cell
        left = step - begin % step  # of the cell
        while query.shape[2] > left:
            out.append(self._of_one_cell(query[:, :, :left], begin))
            query, begin, left = query[:, :, left:], begin + left, step
        out.append(self._of_one_cell(query, begin))
        return torch.cat(out, dim=2)

    def _of_one_cell(self, query: Tensor, begin: int) -> Tensor:
        if begin % (self.block * self.cell) == 0:
            self._kept = self._select(query[:, :, :1], begin)
        return self._read(query, begin)

    def _prefill(self, query: Tensor) -> Tensor:
        """All sites at once; what a cell that has more to come selects is kept besides."""
        length, step = self.length, self.block * self.cell
        if length % step:
            begin = length // step * step
            self._kept = self._select(query[:, :, begin : begin + 1], begin)
        block = min(self.block, length)
        sequence = Sequence(length, block, min(self.cell, -(-length // block)))
        return gpa(
            query,
            self._key[:, :, :length],
            self._value[:, :, :length],
            sequence,
            self.rule,
            scale=self.scale,
            affinity=self.affinity,
            causal=True,
        )

    def _select(self, query: Tensor, begin: int) -> Selection:
        """What the cell that begins with this query reads."""
        cell = _NewestCell(begin // self.block, self.block, self.cell, query.device)
        later = query.new_zeros(*query.shape[:2], cell.num_sites - 1, query.shape[3])
        problem = Problem(
            torch.cat([query, later], dim=2),
            self._key,
            cell,
            self._sequence().to(query.device),
            self._scale(query),
            self.affinity,
            causal=True,
            key_means=self._means,
        )
        with without_autocast(query):
            return self.rule.select(problem)

    def _read(self, query: Tensor, begin: int) -> Tensor:
        """Attend from sites of the newest cell."""
        assert self._kept is not None
        query = cast_for_autocast(query)[0]
        time = torch.arange(begin, begin + query.shape[2], device=query.device)
        with without_autocast(query):
            out, _ = attend_from_cells(
                query[:, :, None],
                self._by_block(self._key),
                self._by_block(self._value),
                self._kept,
                self._scale(query) * (1 if self.affinity == "dot" else 2),
                key_bias=None if self._bias is None else self._by_block(self._bias)[..., 0],
                query_time=time[None],
                key_time=self._time.view(-1, self.block),
            )
        return out[:, :, 0].to(query.dtype)

    def _by_block(self, x: Tensor) -> Tensor:  # (b, hk, room, d) -> (b, hk, B, R, d)
        return x.unflatten(2, (-1, self.block))

    def _sequence(self) -> Grid:
        """The room there is; what is not filled yet is later than any query."""
        if self._room_for.shape != (self._key.shape[2],):
            self._room_for = Sequence(self._key.shape[2], self.block)
        return self._room_for

    def _scale(self, query: Tensor) -> float:
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale


class _NewestCell(SpatialStructure, KnowsItsPast):
    """One whole cell of a sequence; all is known without a look at a table.

    Args:
        first_block: The block of the sequence that the cell begins with.
        block, cell: Of the sequence.
    """

    def __init__(self, first_block: int, block: int, cell: int, device: torch.device) -> None:
        self.first_block, self._on = first_block, device
        self._blocks = torch.arange(cell * block, device=device).view(cell, block)

    @property
    def blocks(self) -> Int[Tensor, "B R"]:
        return self._blocks

    @property
    def cells(self) -> Int[Tensor, "1 B"]:
        return torch.arange(self.num_blocks, device=self._on)[None]

    @property
    def time(self) -> Int[Tensor, " n"]:
        return self.first_block * self.sites_per_block + self._blocks.flatten()

    @property
    def num_sites(self) -> int:
        return self._blocks.numel()

    @property
    def is_even(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return self._on

    def _move(self, device: torch.device) -> "_NewestCell":
        return _NewestCell(self.first_block, self.sites_per_block, self.num_blocks, device)

    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> SpatialStructure:
        raise NotImplementedError("queries of a cache are not coarsened")

    def kept_with(self, other: SpatialStructure, name: Hashable, make: MakeTable) -> Tensor:
        """Keep nothing: there is another cell before a table is asked for again."""
        return make(self, other)

    def overlapping(self, key_structure: SpatialStructure) -> Int[Tensor, "1 E"]:
        return self.first_block + self.cells[:, self._past_of_its_own :]

    def count_past(self, key_structure: SpatialStructure) -> Int[Tensor, " 1"]:
        return torch.full((1,), self.first_block + self._past_of_its_own, device=self._on)

    @property
    def _past_of_its_own(self) -> int:
        """How many of its blocks are over as it begins: the first, if it is one site."""
        return int(self.sites_per_block == 1)


def _room(kept: Tensor, new: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The same tensor, or one of twice the length with the same beginning."""
    if kept.shape[2] >= length > 0:
        return kept
    grown = new.new_zeros(*new.shape[:2], max(length, 2 * kept.shape[2]), new.shape[3], dtype=dtype)
    if kept.shape[2]:
        grown[:, :, : kept.shape[2]] = kept
    return grown


def _check_same_sequence(name: str, new: Tensor, kept: Tensor) -> None:
    wanted = (*kept.shape[:2], kept.shape[3])
    if (*new.shape[:2], new.shape[3]) != wanted or new.dtype != kept.dtype:
        raise ValueError(
            f"{name} must match the cache, (batch, heads, features) = {wanted} and {kept.dtype}; "
            f"got {(*new.shape[:2], new.shape[3])} and {new.dtype}"
        )


def _check_newest(query: Any, wanted: int) -> None:
    check_features("query", query)
    if wanted == 0:
        raise ValueError(
            "every site of the cache already has its output; append keys and values first"
        )
    if query.shape[2] != wanted:
        raise ValueError(
            f"query has {query.shape[2]} sites but {wanted} were appended since the last call"
        )
