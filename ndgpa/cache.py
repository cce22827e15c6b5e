"""Decoding: append keys and values, attend with the newest queries, as a causal prefill would."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ndgpa import _checks
from ndgpa.affinity import AFFINITIES, dot_form
from ndgpa.functional import attend, gpa
from ndgpa.selection import Coarse, Problem, Rule, Selection, TopK
from ndgpa.structures import Clusters, Grid, Sequence


class Cache:
    """Keys and values of a sequence that grows, for causal attention to it.

    What `attend` gives for the newest sites is what `ndgpa.gpa` gives for them, causally, on the
    whole `Sequence(length, downsample, cell)`. A cell selects at its first site, from the means of
    the blocks that are complete by then, and keeps its selection; so a step costs the means at the
    beginning of a cell, and the kept blocks at every site. For inference: no gradient is kept.

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
        self._attended = 0
        self._kept: Selection | None = None
        self._room_for = Sequence(downsample, downsample)
        self._key = self._value = self._means = torch.empty(1, 1, 0, 1)

    @torch.no_grad()
    def append(self, key: Float[Tensor, "b hk m d"], value: Float[Tensor, "b hk m dv"]) -> None:
        """Add the keys and values of the next m sites."""
        _checks.value_for(key, value)
        if self.length:
            _checks.same_sequence("key", key, self._key)
            _checks.same_sequence("value", value, self._value)
        begin, self.length = self.length, self.length + key.shape[2]
        wide = torch.promote_types(key.dtype, torch.float32)
        step, blocks = self.downsample * self.cell, -(-self.length // self.downsample)
        room = -(-self.length // step) * step  # for all blocks of the newest cell
        self._key = _room(self._key, key, room, key.dtype)
        self._value = _room(self._value, value, room, value.dtype)
        self._means = _room(self._means, key, self._key.shape[2] // self.downsample, wide)
        self._key[:, :, begin : self.length] = key
        self._value[:, :, begin : self.length] = value
        first = begin // self.downsample
        new = self._key[:, :, first * self.downsample : blocks * self.downsample]
        new = rearrange(new, "b h (B r) d -> b h B r d", r=self.downsample)
        self._means[:, :, first:blocks] = new.sum(dim=3, dtype=wide) / self.downsample

    @torch.no_grad()
    def attend(self, query: Float[Tensor, "b h m d"]) -> Float[Tensor, "b h m dv"]:
        """The output of the m newest sites, which no call has been made for yet.

        Raises:
            ValueError: m is not the number of sites appended since the last call, or as for `gpa`.
        """
        _checks.newest(query, self.length - self._attended)
        _checks.heads_and_features(query, self._key)
        out = self._continue(query, self._attended) if self._attended else self._prefill(query)
        self._attended = self.length
        return out

    def _continue(self, query: Tensor, begin: int) -> Tensor:
        """Sites after `begin`, cell by cell."""
        out, step = [], self.downsample * self.cell
        for new in query.split(_runs(begin, self.length, step), dim=2):
            if begin % step == 0:
                self._kept = self._select(new[:, :, :1], begin)
            out.append(self._read(new, begin))
            begin += new.shape[2]
        return torch.cat(out, dim=2)

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
        step = self.downsample * self.cell
        site = torch.arange(step, device=query.device)
        cell = Clusters(site // self.downsample, torch.zeros_like(site[: self.cell]), begin + site)
        later = query.new_zeros(*query.shape[:2], step - 1, query.shape[3])
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
        return self.rule.select(problem)

    def _read(self, query: Tensor, begin: int) -> Tensor:
        """Attend from sites of the newest cell."""
        assert self._kept is not None
        time = torch.arange(begin, begin + query.shape[2], device=query.device)
        block = torch.zeros_like(time)
        return attend(
            query,
            self._key,
            self._value,
            self._kept,
            Clusters(block, block[:1], time),
            key_structure=self._sequence(),
            scale=self.scale,
            affinity=self.affinity,
            causal=True,
        )

    def _sequence(self) -> Grid:
        """The room there is; what is not filled yet is later than any query."""
        if self._room_for.shape != (self._key.shape[2],):
            self._room_for = Sequence(self._key.shape[2], self.downsample)
        return self._room_for

    def _scale(self, query: Tensor) -> float:
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale


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


def _runs(begin: int, end: int, step: int) -> list[int]:
    """Lengths of the pieces of [begin, end) between multiples of `step`."""
    cuts = [begin, *range((begin // step + 1) * step, end, step), end]
    return [b - a for a, b in pairwise(cuts)]
