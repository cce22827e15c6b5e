"""Decoding: append keys and values, attend with the newest queries, as a causal prefill would."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa import _checks
from ndgpa._ops import cast_for_autocast, without_autocast
from ndgpa.affinity import AFFINITIES, dot_form
from ndgpa.attend.chunked import attend_from_cells
from ndgpa.functional import gpa
from ndgpa.selection import Coarse, Problem, Rule, Selection, TopK
from ndgpa.structures import Grid, Sequence
from ndgpa.structures.base import MakeTable, SpatialStructure


class Cache:
    """Keys and values of a sequence that grows, for causal attention to it.

    What `attend` gives for the newest sites is what `ndgpa.gpa` gives for them, causally, on the
    whole `Sequence(length, downsample, cell)`. A cell selects at its first site, from the means of
    the blocks that are complete by then, and keeps its selection; so a step costs the means at the
    beginning of a cell, and the kept blocks at every site, however long the sequence is. A step
    compiles as one graph and never makes the host wait for a GPU. For inference: no gradient is
    kept.

    Args:
        downsample, cell: Of the sequence.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`. Not one that needs queries
            and keys on one structure.
        scale, affinity: As for `ndgpa.gpa`.

    Raises:
        ValueError, TypeError: As for `ndgpa.gpa`.

    Example:
        cache = ndgpa.Cache(downsample=16, cell=1, rule=8)
        cache.append(key, value)       # the prompt, (batch, key_heads, sites, features)
        out = cache.attend(query)      # its output
        for _ in range(steps):         # one site at a time
            cache.append(key, value)
            out = cache.attend(query)
    """

    def __init__(
        self,
        downsample: int,
        cell: int,
        rule: Rule | int,
        scale: float | None = None,
        affinity: str = "dot",
    ) -> None:
        _checks.positive_count("downsample", downsample)
        _checks.positive_count("cell", cell)
        _checks.scale(scale)
        _checks.rule_or_count(rule)
        _checks.one_of("affinity", affinity, AFFINITIES)
        self.downsample, self.cell = downsample, cell
        self.rule = TopK(rule) if isinstance(rule, int) else rule
        self.scale, self.affinity = scale, affinity
        self.length = 0
        self._waiting = 0  # sites that no call of `attend` has been made for
        self._kept: Selection | None = None
        self._room_for = Sequence(downsample, downsample)
        self._key = self._value = self._means = torch.empty(1, 1, 0, 1)
        self._bias: Tensor | None = None  # (b, hk, room, 1), what euclidean logits add
        self._time = torch.empty(0, dtype=torch.int64)  # (room,)

    @torch.no_grad()
    def append(self, key: Float[Tensor, "b hk m d"], value: Float[Tensor, "b hk m dv"]) -> None:
        """Add the keys and values of the next m sites."""
        _checks.value_for(key, value)
        if self.length:
            _checks.same_sequence("key", key, self._key)
            _checks.same_sequence("value", value, self._value)
        begin, self.length = self.length, self.length + key.shape[2]
        self._waiting += key.shape[2]
        wide = torch.promote_types(key.dtype, torch.float32)
        step, blocks = self.downsample * self.cell, -(-self.length // self.downsample)
        room = -(-self.length // step) * step  # for all blocks of the newest cell
        self._key = _room(self._key, key, room, key.dtype)
        self._value = _room(self._value, value, room, value.dtype)
        self._means = _room(self._means, key, self._key.shape[2] // self.downsample, wide)
        self._key[:, :, begin : self.length] = key
        self._value[:, :, begin : self.length] = value
        if len(self._time) != self._key.shape[2]:
            self._time = torch.arange(self._key.shape[2], device=key.device)
        bias, _ = dot_form(key, self.affinity, self._scale(key))
        if bias is not None:
            kept = bias[:, :, :0, None] if self._bias is None else self._bias
            self._bias = _room(kept, bias[..., None], self._key.shape[2], wide)
            self._bias[:, :, begin : self.length] = bias[..., None]
        first = begin // self.downsample
        new = self._key[:, :, first * self.downsample : blocks * self.downsample]
        new = self._by_block(new).sum(dim=3, dtype=wide)
        self._means[:, :, first:blocks] = new / self.downsample

    @torch.no_grad()
    def attend(self, query: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m dv"]:
        """The output of the m newest sites, which no call has been made for yet.

        Raises:
            ValueError: m is not the number of sites appended since the last call, or as for `gpa`.
        """
        _checks.newest(query, self._waiting)
        _checks.heads_and_features(query, self._key)
        begin = self.length - self._waiting
        out = self._continue(query, begin) if begin else self._prefill(query)
        self._waiting = 0
        return out

    def _continue(self, query: Tensor, begin: int) -> Tensor:
        """Sites after `begin`, cell by cell."""
        out, step = [], self.downsample * self.cell
        left = step - begin % step  # of the cell
        while query.shape[2] > left:
            out.append(self._of_one_cell(query[:, :, :left], begin))
            query, begin, left = query[:, :, left:], begin + left, step
        out.append(self._of_one_cell(query, begin))
        return torch.cat(out, dim=2)

    def _of_one_cell(self, query: Tensor, begin: int) -> Tensor:
        if begin % (self.downsample * self.cell) == 0:
            self._kept = self._select(query[:, :, :1], begin)
        return self._read(query, begin)

    def _prefill(self, query: Tensor) -> Tensor:
        """All sites at once; what a cell that has more to come selects is kept besides."""
        length, step = self.length, self.downsample * self.cell
        if length % step:
            begin = length // step * step
            self._kept = self._select(query[:, :, begin : begin + 1], begin)
        downsample = min(self.downsample, length)
        sequence = Sequence(length, downsample, min(self.cell, -(-length // downsample)))
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
        cell = _NewestCell(begin // self.downsample, self.downsample, self.cell, query.device)
        later = query.new_zeros(*query.shape[:2], cell.num_sites - 1, query.shape[3])
        problem = _Decoding(
            torch.cat([query, later], dim=2),
            self._key,
            cell,
            self._sequence().to(query.device),
            self._scale(query),
            self.affinity,
            causal=True,
            means=self._means,
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
                key_time=self._time.view(-1, self.downsample),
            )
        return out[:, :, 0].to(query.dtype)

    def _by_block(self, x: Tensor) -> Tensor:  # (b, hk, room, d) -> (b, hk, B, R, d)
        return x.unflatten(2, (-1, self.downsample))

    def _sequence(self) -> Grid:
        """The room there is; what is not filled yet is later than any query."""
        if self._room_for.shape != (self._key.shape[2],):
            self._room_for = Sequence(self._key.shape[2], self.downsample)
        return self._room_for

    def _scale(self, query: Tensor) -> float:
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale


class _NewestCell(SpatialStructure):
    """One whole cell of a sequence; all is known without a look at a table.

    Args:
        first_block: The block of the sequence that the cell begins with.
        downsample, cell: Of the sequence.
    """

    def __init__(self, first_block: int, downsample: int, cell: int, device: torch.device) -> None:
        self.first_block, self._on = first_block, device
        self._blocks = torch.arange(cell * downsample, device=device).view(cell, downsample)

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

    def to(self, device: torch.device | str) -> "_NewestCell":
        return _NewestCell(
            self.first_block, self.sites_per_block, self.num_blocks, torch.device(device)
        )

    def coarsen(
        self, factor: int | tuple[int, ...], cell: int | tuple[int, ...] = 1
    ) -> SpatialStructure:
        raise NotImplementedError("queries of a cache are not coarsened")

    def kept_with(self, other: SpatialStructure, name: str, make: MakeTable) -> Tensor:
        """What the cell and the blocks of the sequence are to each other; that is not searched."""
        past = int(
            self.sites_per_block == 1
        )  # of its blocks: a first one that is over as it begins
        known: dict[str, Callable[[], Tensor]] = {
            "overlapping": lambda: self.first_block + self.cells[:, past:],
            "past candidates": lambda: torch.full((1,), self.first_block + past, device=self._on),
        }
        return known[name]() if name in known else make(self, other)


@dataclass(frozen=True)
class _Decoding(Problem):
    """The selection of one cell, the means of whose key blocks are known."""

    means: Float[Tensor, "b hk B_k d"] = field(kw_only=True)

    def of_heads(self, heads: list[int]) -> Problem:
        keys = self.key_heads_of(heads)
        return replace(
            self, query=self.query[:, heads], key=self.key[:, keys], means=self.means[:, keys]
        )

    def coarse(self) -> Coarse:
        wide = self.means.dtype
        first = self.structure.first_in_cell[:, None]
        bias, scale = dot_form(self.means, self.affinity, self.scale)
        return Coarse(
            self.structure.block_sums(self.query),
            self.means,
            bias,
            self.key_structure.block_sizes.to(wide)[None],
            None,
            self.structure.block_sums(first.to(wide)).mT,
            scale,
        )


def _room(kept: Tensor, new: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The same tensor, or one of twice the length with the same beginning."""
    if kept.shape[2] >= length > 0:
        return kept
    grown = new.new_zeros(*new.shape[:2], max(length, 2 * kept.shape[2]), new.shape[3], dtype=dtype)
    if kept.shape[2]:
        grown[:, :, : kept.shape[2]] = kept
    return grown
