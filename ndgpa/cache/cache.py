"""Append keys and values, attend with the newest queries."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ndgpa import arguments
from ndgpa._ops import cast_for_autocast, wide, without_autocast
from ndgpa.attention.chunked import attend_from_cells
from ndgpa.cache.buffers import empty, write
from ndgpa.cache.layout import Layout, NewestCells
from ndgpa.functional import as_rule, gpa
from ndgpa.problem import (
    AFFINITIES,
    Affinity,
    Problem,
    Selection,
    check_features,
    check_heads_and_features,
    check_key_mask,
    check_scale,
    check_value,
    dot_form,
    hide_keys,
)
from ndgpa.selection import Rule
from ndgpa.structures.base import SpatialStructure


class Cache:
    """Hold the keys and values of a growing space, for causal attention to them.

    `attend` returns for the newest sites what `ndgpa.gpa` returns for them on the whole
    `Sequence(length, block, cell)` with `causal=True`; with `frame`, on the whole
    `Video((frames, *frame), block, cell)`. Each cell selects once, at its first time, from the
    means of the blocks complete by then. So a step costs the kept blocks at every site and the
    means at the first time of a cell, however long the sequence is. A step compiles as one graph
    and never makes the host wait for a GPU. For inference: no gradient is recorded.

    Args:
        block: Sites of a block; with `frame` along time and each axis of a frame.
        cell: Blocks of a cell, likewise.
        rule: Which key blocks each cell reads; an int k means `TopK(k)`. It must not need queries
            and keys on one structure.
        scale, affinity: As for `ndgpa.gpa`.
        frame: The shape of a frame where whole frames are appended; () for a sequence.

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
        block: int | tuple[int, ...],
        cell: int | tuple[int, ...],
        rule: Rule | int,
        scale: float | None = None,
        affinity: Affinity = "dot",
        frame: int | tuple[int, ...] = (),
    ) -> None:
        self._layout = Layout.of(block, cell, frame)
        check_scale(scale)
        arguments.one_of("affinity", affinity, AFFINITIES)
        self.block, self.cell, self.frame = block, cell, frame
        self.rule = as_rule(rule)
        self.scale, self.affinity = scale, affinity
        self.length = 0  # sites appended
        self._pending = 0  # of them not attended from
        self._selection: Selection | None = None  # of the newest cells
        # Buffers along the places of the layout; those beyond `length` are later than any query.
        self._key, self._value, self._means, self._asked = (empty() for _ in range(4))
        self._seen: Tensor | None = None  # (b, 1, capacity, 1) bool, if anything is masked
        self._counts: Tensor | None = None  # (b, 1, blocks, 1), if anything is masked
        self._bias: Tensor | None = None  # (b, hk, capacity, 1), if a key has one
        self._time = torch.empty(0, dtype=torch.int64)  # (capacity,)
        self._space: SpatialStructure = self._layout.newest  # of `capacity` places

    @torch.no_grad()
    def append(
        self,
        key: Float[Tensor, "b hk m d"],
        value: Float[Tensor, "b hk m dv"],
        key_mask: Bool[Tensor, "b m"] | None = None,
    ) -> None:
        """Add the keys and values of the next m sites.

        Args:
            key_mask: True where a site exists, as for `ndgpa.gpa`: False in the padding to the left
                of shorter prompts.

        Raises:
            ValueError, TypeError: They do not match those held, or are no whole frames.
        """
        check_value(key, value)
        check_key_mask(key_mask, key)
        _check_whole_frames(key, self._layout)
        if self.length:
            _check_same_sequence("key", key, self._key)
            _check_same_sequence("value", value, self._value)
        begin, self.length = self.length, self.length + key.shape[2]
        self._pending += key.shape[2]
        capacity = self._layout.capacity(self.length)
        places = self._layout.places(begin, key.shape[2], key.device)
        if key_mask is not None:
            unseen = ~key_mask[:, None, :, None]
            key, value = key.masked_fill(unseen, 0), value.masked_fill(unseen, 0)
        self._key = write(self._key, key, places, capacity)
        self._value = write(self._value, value, places, capacity)
        self._append_mask(key, key_mask, places)
        self._append_bias(key, key_mask, places)
        self._append_means(begin)
        capacity = self._key.shape[2]
        if self._time.shape[0] != capacity:
            self._time = self._layout.times(capacity, key.device)

    def _append_mask(self, key: Tensor, mask: Tensor | None, places: slice | Tensor) -> None:
        if mask is None and self._seen is None:
            return
        if mask is None:
            mask = key.new_ones(key.shape[0], key.shape[2], dtype=torch.bool)
        capacity = self._key.shape[2]
        seen = self._seen
        if seen is None:
            seen = key.new_ones(key.shape[0], 1, capacity, 1, dtype=torch.bool)
        self._seen = write(seen, mask[:, None, :, None], places, capacity)

    def _append_bias(self, key: Tensor, mask: Tensor | None, places: slice | Tensor) -> None:
        bias, _ = dot_form(key, self.affinity, self._scale(key))
        bias = hide_keys(bias, key, mask)
        if bias is None and self._bias is None:
            return
        if bias is None:
            bias = key.new_zeros(key.shape[:3], dtype=wide(key))
        held, capacity = self._bias, self._key.shape[2]
        if held is None:
            held = bias.new_zeros(*bias.shape[:2], capacity, 1)
        self._bias = write(held, bias[..., None], places, capacity)

    def _append_means(self, begin: int) -> None:
        """Take the means of the blocks from site `begin` on; wrong until a block is complete."""
        size = self._layout.block_places
        first, end = self._layout.first_place_of_block_of(begin), self._end_of_blocks()
        key = self._by_block(self._key[:, :, first:end])
        places, capacity = slice(first // size, end // size), self._key.shape[2] // size
        count = self._count(first, end)
        if self._seen is not None:
            held = self._count(0, first) if self._counts is None else self._counts
            self._counts = write(held, count, places, capacity)
        means = key.sum(dim=3, dtype=wide(key)) / count.clamp(min=1)
        self._means = write(self._means, means, places, capacity)

    def _count(self, first: int, end: int) -> Int[Tensor, "#b 1 B 1"]:
        """Count the seen sites of the blocks from one place to another."""
        if self._seen is not None:
            return self._by_block(self._seen[:, :, first:end]).sum(dim=3)
        layer = self._layout.layer.to(self._key.device)
        layers = (end - first) // layer.blocks.numel()
        return layer.block_sizes.repeat(layers)[None, None, :, None]

    def _end_of_blocks(self) -> int:
        """The place after the last layer that has a site."""
        if self.length == 0:
            return 0
        next_layer = self.length + self._layout.block[0] * self._layout.frame_sites - 1
        return self._layout.first_place_of_block_of(next_layer)

    def _count_seen(self, blocks: slice) -> Int[Tensor, "#b B"]:
        """The seen sites of some blocks; of a block that is not complete, those it will have."""
        if self._seen is not None:
            return self._by_block(self._seen)[:, 0, blocks, :, 0].sum(dim=2)
        sizes = self._layout.layer.to(self._key.device).block_sizes
        layers = (blocks.stop - blocks.start) // self._layout.layer_blocks
        return sizes.repeat(layers)[None]

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

    # What generation does to a cache between steps

    def crop(self, length: int) -> None:
        """Forget the sites from number `length` on, such as drafts that were not accepted.

        Raises:
            ValueError: There are fewer sites, or `length` is no whole number of frames.
        """
        _check_crop(length, self.length, self._layout.frame_sites)
        self._pending = max(0, self._pending - (self.length - length))
        self.length, self._selection = length, None

    @torch.no_grad()
    def reorder(self, index: Int[Tensor, " new_b"]) -> None:
        """Replace the batch by the samples numbered, in their order: beams, or repeated prompts."""
        for name in ("_key", "_value", "_means", "_asked", "_seen", "_counts", "_bias"):
            held = getattr(self, name)
            if held is not None and held.shape[2]:
                setattr(self, name, held.index_select(0, index))
        self._selection = None

    @property
    def keys_and_values(self) -> tuple[Float[Tensor, "b hk n d"], Float[Tensor, "b hk n dv"]]:
        """All that is held, in the order of the sites: views, but of a video copies."""
        sites = self._layout.places(0, self.length, self._key.device)
        return self._key[:, :, sites], self._value[:, :, sites]

    def _prefill(self, query: Tensor) -> Tensor:
        """Attend from all sites at once; also keep what asks for the blocks of each cell."""
        sites = self._layout.places(0, self.length, query.device)
        cells = query.unflatten(2, (-1, self._layout.frame_sites))
        asked = cells[:, :, :: self._layout.block[0] * self._layout.cell[0]].flatten(2, 3)
        self._keep_asked(asked, 0)
        mask = None if self._seen is None else self._seen[:, 0, sites, 0]
        return gpa(
            query,
            *self.keys_and_values,
            self._layout.whole(self.length).to(query.device),
            self.rule,
            scale=self.scale,
            affinity=self.affinity,
            causal=True,
            key_mask=mask,
        )

    def _continue(self, query: Tensor, begin: int) -> Tensor:
        """Attend from the sites after `begin`, one layer of cells after another."""
        size = self._layout.cell_sites
        out, left = [], size - begin % size
        while query.shape[2] > left:
            out.append(self._attend_in_cells(query[:, :, :left], begin))
            query, begin, left = query[:, :, left:], begin + left, size
        out.append(self._attend_in_cells(query, begin))
        return torch.cat(out, dim=2)

    def _attend_in_cells(self, query: Tensor, begin: int) -> Tensor:
        """Attend from sites of one layer of cells, which select at their first time."""
        number = begin // self._layout.cell_sites
        if begin % self._layout.cell_sites == 0:
            self._keep_asked(query[:, :, : self._layout.frame_sites], number)
            self._selection = None
        if self._selection is None:
            self._selection = self._select(number)
        (query,) = cast_for_autocast(query)
        with without_autocast(query):
            out, _ = attend_from_cells(
                self._layout.by_cell(query),
                self._by_block(self._key),
                self._by_block(self._value),
                self._selection,
                self._scale(query) * (1 if self.affinity == "dot" else 2),
                key_bias=None if self._bias is None else self._by_block(self._bias)[..., 0],
                query_time=self._layout.query_times(begin, query.shape[2], query.device),
                key_time=self._time.view(-1, self._layout.block_places),
            )
        return self._layout.by_site(out).to(query.dtype)

    def _keep_asked(self, query: Tensor, number: int) -> None:
        """Keep the queries of the first times of layers of cells, from layer `number` on."""
        begin = number * self._layout.frame_sites
        end = begin + query.shape[2]
        self._asked = write(self._asked, query, slice(begin, end), end)

    def _select(self, number: int) -> Selection:
        """Select for a layer of cells, from the queries of its first time."""
        sites, device = self._layout.frame_sites, self._key.device
        query = self._asked[:, :, number * sites : (number + 1) * sites]
        cells = NewestCells(self._layout, number, device)
        later = query.new_zeros(*query.shape[:2], cells.num_sites - sites, query.shape[3])
        voters = seen = None
        if self._seen is not None:
            seen = self._seen[:, 0, :, 0]
            first = seen[:, self._layout.places(number * self._layout.cell_sites, sites, device)]
            voters = torch.cat([first, first.new_zeros(len(first), later.shape[2])], dim=1)
        if self._space.num_sites != self._key.shape[2]:
            self._space = self._layout.held(self._key.shape[2], device)
        counts = self._count(0, self._key.shape[2]) if self._counts is None else self._counts
        problem = Problem(
            torch.cat([query, later], dim=2),
            self._key,
            cells,
            self._space.to(device),
            self._scale(query),
            self.affinity,
            causal=True,
            key_mask=seen,
            query_mask=voters,
            key_means=(self._means, counts[:, 0, :, 0]),
        )
        with without_autocast(query):
            return self.rule.select(problem)

    def _by_block(self, x: Tensor) -> Tensor:  # (b, hk, places, d) -> (b, hk, B, R, d)
        return x.unflatten(2, (-1, self._layout.block_places))

    def _scale(self, query: Tensor) -> float:
        return query.shape[-1] ** -0.5 if self.scale is None else self.scale


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


def _check_whole_frames(key: Tensor, layout: Layout) -> None:
    if key.shape[2] % layout.frame_sites:
        raise ValueError(
            f"key has {key.shape[2]} sites, which are no whole frames of {layout.frame_sites}"
        )


def _check_crop(length: Any, held: int, frame: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int):
        raise TypeError(f"length must be an int; got {length!r}")
    if not 0 <= length <= held:
        raise ValueError(f"length must be from 0 to the {held} sites of the cache; got {length}")
    if length % frame:
        raise ValueError(f"length {length} is no whole number of frames of {frame} sites")
