"""The index tables of `LocalSparse`: which keys each query reads, in tiles."""

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@torch.library.custom_op(
    "ndgpa::local_sparse_tables", mutates_args=(), device_types=("cpu", "cuda", "meta")
)
def local_sparse_tables(
    shape: list[int],
    key_shape: list[int],
    numbers: list[int],
    pattern: str,
    order: str,
    resize: str,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the tables of `Tiles`: queries, keys, seen; `numbers` are step, stride and mend."""
    sizes = (tuple(x) for x in (shape, key_shape, numbers))
    tables = _tables(*sizes, pattern, order, resize)
    return tuple(torch.from_numpy(x.copy()).to(device) for x in tables)  # type: ignore[return-value]


@local_sparse_tables.register_fake
def _(
    shape: list[int],
    key_shape: list[int],
    numbers: list[int],
    pattern: str,
    order: str,
    resize: str,
    device: torch.device,
) -> tuple[Tensor, ...]:
    sizes = (tuple(int(size) for size in x) for x in (shape, key_shape, numbers))
    return tuple(
        torch.empty(x.shape, dtype=getattr(torch, x.dtype.name), device=device)
        for x in _tables(*sizes, pattern, order, resize)
    )


Array = NDArray[Any]


@functools.lru_cache(maxsize=16)
def _tables(
    shape: tuple[int, ...],
    key_shape: tuple[int, ...],
    numbers: tuple[int, ...],
    pattern: str,
    order: str,
    resize: str,
) -> tuple[Array, Array, Array]:
    step, stride, mend = numbers
    sites = enumerate_sites(key_shape, order)
    keys_of = _keys_under_queries if resize == "geometric" else _keys_by_number
    slots = _queries_of(sites, keys_of(shape, key_shape))
    if step == 1 and pattern == "strided":
        return _window(sites, slots, stride)
    if step == 1:
        return _runs(sites, slots, stride, backward=pattern == "rtl")
    if pattern == "strided":
        return _residues(sites, slots, stride)
    return _representatives(sites, slots, stride, pattern, bool(mend))


def enumerate_sites(shape: tuple[int, ...], order: str) -> Array:
    """List the sites of a grid in the order of their numbers.

    "esa" (enumerate, shift, apply) sorts them by Manhattan distance from the first site, and those
    of equal distance in raster order.
    """
    sites = np.arange(math.prod(shape))
    if order == "raster":
        return sites
    distance = np.indices(shape).sum(axis=0).reshape(-1)
    return np.argsort(distance, kind="stable")


def _keys_under_queries(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> Array:
    """Return for each query the key under its centre."""
    axes = [
        (2 * np.arange(n) + 1) * n_k // (2 * n) for n, n_k in zip(shape, key_shape, strict=True)
    ]
    return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), key_shape).reshape(-1)


def _keys_by_number(shape: tuple[int, ...], key_shape: tuple[int, ...]) -> Array:
    return np.arange(math.prod(shape)) % math.prod(key_shape)


def _queries_of(sites: Array, key_of_query: Array) -> Array:
    """List the queries that use the row of each number, (n, most queries), padded with -1."""
    number = np.empty_like(sites)
    number[sites] = np.arange(len(sites))
    number_of_query = number[key_of_query]
    order = np.argsort(number_of_query, kind="stable")
    members = np.bincount(number_of_query, minlength=len(sites))
    place = np.arange(len(order)) - np.repeat(np.cumsum(members) - members, members)
    slots = np.full((len(sites), members.max()), -1)
    slots[number_of_query[order], place] = order
    return slots


def _cut(rows: Array, size: int) -> Array:
    """Join every `size` rows into one; pad the last with -1."""
    padded = np.pad(rows, ((0, -len(rows) % size), (0, 0)), constant_values=-1)
    return padded.reshape(-1, size * rows.shape[1])


def _repeat(seen: Array, slots: Array) -> Array:
    """Expand a pattern of numbers to the queries that use its rows."""
    return np.repeat(seen, slots.shape[1], axis=0)[None]


def _runs(sites: Array, slots: Array, stride: int, backward: bool) -> tuple[Array, Array, Array]:
    """Step 1 of all but "strided": the part of the own run up to, or from, the site."""
    seen = np.tri(stride, dtype=bool)
    seen = seen.T if backward else seen
    return _cut(slots, stride), _cut(sites[:, None], stride), _repeat(seen, slots)


def _window(sites: Array, slots: Array, stride: int) -> tuple[Array, Array, Array]:
    """Step 1 of "strided": the own run and the one before, but neither later nor too far back."""
    own = _cut(sites[:, None], stride)
    before = np.concatenate([np.full((1, stride), -1), own[:-1]])
    ahead = np.arange(2 * stride) - np.arange(stride)[:, None]
    seen = (ahead >= 0) & (ahead <= stride)
    return _cut(slots, stride), np.concatenate([before, own], axis=1), _repeat(seen, slots)


def _residues(sites: Array, slots: Array, stride: int) -> tuple[Array, Array, Array]:
    """Step 2 of "strided": the numbers of the same residue class."""
    keys = _cut(sites[:, None], stride).T.copy()
    width = slots.shape[1]
    queries = _cut(slots, stride).reshape(-1, stride, width).swapaxes(0, 1).reshape(stride, -1)
    return queries, keys, np.ones((1, 1, 1), dtype=bool)


def _representatives(
    sites: Array, slots: Array, stride: int, pattern: str, mend: bool
) -> tuple[Array, Array, Array]:
    """Step 2 of the others: one site of every run, and the site itself."""
    n, runs = len(sites), -(-len(sites) // stride)
    first = np.arange(0, n, stride)
    last = np.minimum(first + stride, n) - 1
    chosen = first if pattern == "rtl" else last
    if n % stride and not mend:
        chosen = chosen[:-1]
    read = np.broadcast_to(sites[chosen], (runs, len(chosen)))
    themselves = sites.copy()
    if pattern == "fixed":  # only of the runs before
        later = np.arange(len(chosen)) >= np.arange(runs)[:, None]
        read = np.where(later, -1, read)
    else:
        themselves[chosen] = -1  # they are read already
    keys = np.concatenate([read, _cut(themselves[:, None], stride)], axis=1)
    seen = np.concatenate(
        [np.ones((stride, len(chosen)), dtype=bool), np.eye(stride, dtype=bool)], axis=1
    )
    return _cut(slots, stride), keys, _repeat(seen, slots)
