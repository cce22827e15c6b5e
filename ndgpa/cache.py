"""Decoding: append keys and values, attend with the newest queries."""

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
from ndgpa.structures import Sequence
from ndgpa.structures.base import MakeTable, SpatialStructure


class Cache:
    """Hold the keys and values of a growing sequence, for causal attention to them.

    `attend` returns for the newest sites what `ndgpa.gpa` returns for them on the whole
    `Sequence(length, block, cell)` with `causal=True`. Each cell selects once, at its first site,
    from the means of the blocks complete by then. So a step costs the kept blocks at every site and
    the means at the first site of a cell, however long the sequence is. A step compiles as one
    graph and never makes the host wait for a GPU. For inference: no gradient is recorded.

    Args:
        block: Sites of a block.
        cell: Blocks of a cell.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`. It must not need queries
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
        self._pending = 0  # sites appended but not attended from
        self._selection: Selection | None = None  # of the newest cell
        # Buffers along the sites; those beyond `length` are spare and later than any query.
        self._key = self._value = torch.empty(1, 1, 0, 1)
        self._bias: Tensor | None = None  # (b, hk, capacity, 1), for a euclidean affinity
        self._means = torch.empty(1, 1, 0, 1)  # (b, hk, capacity / block, d)
        self._time = torch.empty(0, dtype=torch.int64)  # (capacity,)
        self._sequence = Sequence(block, block)  # of `capacity` sites

    @property
    def _cell_sites(self) -> int:
        return self.block * self.cell

    @torch.no_grad()
    def append(self, key: Float[Tensor, "b hk m d"], value: Float[Tensor, "b hk m dv"]) -> None:
        """Add the keys and values of the next m sites."""
        check_value(key, value)
        if self.length:
            _check_same_sequence("key", key, self._key)
            _check_same_sequence("value", value, self._value)
        begin, self.length = self.length, self.length + key.shape[2]
        self._pending += key.shape[2]
        capacity = _round_up(self.length, self._cell_sites)
        self._key = _write(self._key, key, begin, capacity)
        self._value = _write(self._value, value, begin, capacity)
        self._append_bias(key, begin)
        self._append_means(begin)
        capacity = self._key.shape[2]
        if self._time.shape[0] != capacity:
            self._time = torch.arange(capacity, device=key.device)

    def _append_bias(self, key: Tensor, begin: int) -> None:
        bias, _ = dot_form(key, self.affinity, self._scale(key))
        if bias is not None:
            bias = bias[..., None]
            held = bias[:, :, :0] if self._bias is None else self._bias
            self._bias = _write(held, bias, begin, self._key.shape[2])

    def _append_means(self, begin: int) -> None:
        """Take the means of the blocks from site `begin` on; wrong until a block is complete."""
        first, end = begin // self.block, -(-self.length // self.block)
        key = self._by_block(self._key[:, :, first * self.block : end * self.block])
        wide = torch.promote_types(key.dtype, torch.float32)
        means = key.sum(dim=3, dtype=wide) / self.block
        self._means = _write(self._means, means, first, self._key.shape[2] // self.block)

    @torch.no_grad()
    def attend(self, query: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m dv"]:
        """Return the output of the m sites appended since the last call.

        Raises:
            ValueError: m is another number, or as for `gpa`.
        """
        _check_newest(query, self._pending)
        check_heads_and_features(query, self._key)
        begin = self.length - self._pending
        out = self._continue(query, begin) if begin else self._prefill(query)
        self._pending = 0
        return out

    def _prefill(self, query: Tensor) -> Tensor:
        """Attend from all sites at once; also keep the selection of an unfinished last cell."""
        begin = self.length // self._cell_sites * self._cell_sites
        if begin < self.length:
            self._selection = self._select(query[:, :, begin : begin + 1], begin)
        block = min(self.block, self.length)
        return gpa(
            query,
            self._key[:, :, : self.length],
            self._value[:, :, : self.length],
            Sequence(self.length, block, min(self.cell, -(-self.length // block))),
            self.rule,
            scale=self.scale,
            affinity=self.affinity,
            causal=True,
        )

    def _continue(self, query: Tensor, begin: int) -> Tensor:
        """Attend from the sites after `begin`, cell by cell."""
        out, left = [], self._cell_sites - begin % self._cell_sites
        while query.shape[2] > left:
            out.append(self._attend_in_cell(query[:, :, :left], begin))
            query, begin, left = query[:, :, left:], begin + left, self._cell_sites
        out.append(self._attend_in_cell(query, begin))
        return torch.cat(out, dim=2)

    def _attend_in_cell(self, query: Tensor, begin: int) -> Tensor:
        """Attend from sites of one cell, which selects if they are its first."""
        if begin % self._cell_sites == 0:
            self._selection = self._select(query[:, :, :1], begin)
        assert self._selection is not None
        (query,) = cast_for_autocast(query)
        time = torch.arange(begin, begin + query.shape[2], device=query.device)
        with without_autocast(query):
            out, _ = attend_from_cells(
                query[:, :, None],
                self._by_block(self._key),
                self._by_block(self._value),
                self._selection,
                self._scale(query) * (1 if self.affinity == "dot" else 2),
                key_bias=None if self._bias is None else self._by_block(self._bias)[..., 0],
                query_time=time[None],
                key_time=self._time.view(-1, self.block),
            )
        return out[:, :, 0].to(query.dtype)

    def _select(self, query: Tensor, begin: int) -> Selection:
        """Select for the cell that begins with this query."""
        cell = _NewestCell(begin // self.block, self.block, self.cell, query.device)
        later = query.new_zeros(*query.shape[:2], cell.num_sites - 1, query.shape[3])
        if self._sequence.num_sites != self._key.shape[2]:
            self._sequence = Sequence(self._key.shape[2], self.block)
        problem = Problem(
            torch.cat([query, later], dim=2),
            self._key,
            cell,
            self._sequence.to(query.device),
            self._scale(query),
            self.affinity,
            causal=True,
            key_means=self._means,
        )
        with without_autocast(query):
            return self.rule.select(problem)

    def _by_block(self, x: Tensor) -> Tensor:  # (b, hk, sites, d) -> (b, hk, B, R, d)
        return x.unflatten(2, (-1, self.block))

    def _scale(self, query: Tensor) -> float:
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale


class _NewestCell(SpatialStructure):
    """One whole cell of a sequence, as a structure that needs no table to be searched.

    Args:
        first_block: The block of the sequence that the cell begins with.
        block: Sites of a block.
        cell: Blocks of the cell.
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

    def count_candidates(self, key_structure: SpatialStructure, causal: bool) -> Int[Tensor, " 1"]:
        assert causal
        return torch.full((1,), self.first_block + self._past_of_its_own, device=self._on)

    @property
    def _past_of_its_own(self) -> int:
        """How many of its blocks are over as it begins: the first, if it is one site."""
        return int(self.sites_per_block == 1)


def _write(
    buffer: Tensor,  # (b, hk, held, d)
    new: Tensor,  # (b, hk, m, d)
    begin: int,
    capacity: int,
) -> Tensor:  # (b, hk, at least capacity, d)
    """Write into a buffer from row `begin` on, after copying a buffer that is too small.

    The copy has at least twice the rows, so that copies are rare.
    """
    if buffer.shape[2] < capacity or capacity == 0:
        grown = new.new_zeros(*new.shape[:2], max(capacity, 2 * buffer.shape[2]), new.shape[3])
        grown[:, :, :begin] = buffer[:, :, :begin]
        buffer = grown
    buffer[:, :, begin : begin + new.shape[2]] = new
    return buffer


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


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
        raise ValueError("the cache has no site without an output; append keys and values first")
    if query.shape[2] != wanted:
        raise ValueError(
            f"query has {query.shape[2]} sites but {wanted} were appended since the last call"
        )
