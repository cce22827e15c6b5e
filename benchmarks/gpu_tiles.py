"""The time of each kernel with each tile that compiles, for whoever tunes the choice of tiles."""

import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from gpu_cases import Case
from gpu_contenders import Problem
from gpu_device import Bench
from row_file import Key

from ndgpa.attention.triton import backward_keys, backward_queries, forward
from ndgpa.attention.triton.tiles import Tile
from ndgpa.selection import triton_lse, triton_relevance

CHOOSERS = (
    (forward, "forward_tile", False),
    (backward_queries, "query_major_tile", True),
    (backward_keys, "key_major_tile", True),
)
SIZES = (16, 32, 64, 128)


def rows(case: Case, bench: Bench) -> Iterator[tuple[Key, Callable[[], dict[str, Any]]]]:
    """Rows by key; the tile that is used comes first. Small cells are also timed one by one."""
    made: list[Problem] = []

    def problem() -> Problem:
        if not made:
            made.append(Problem(case, bench, case.lists[0]))
        return made[0]

    def of(kernel: str, tile: Any) -> Key:
        return (case.name, case.lists[0], kernel, str(tile or "as used"))

    for queries in (None, 64, 128):
        yield of("select", queries), lambda q=queries: selection(problem(), q)
    sizes = itertools.product(SIZES, SIZES, (2, 4, 8), (1, 2, 3))
    tiles = [None, *(Tile(*size) for size in sizes)]
    for tile, (module, chooser, backward) in itertools.product(tiles, CHOOSERS):
        yield (
            of(chooser, tile),
            lambda m=module, c=chooser, b=backward, t=tile: attention(problem(), m, c, b, t),
        )


def selection(problem: Problem, queries: int | None) -> dict[str, Any]:
    """With so many coarse queries a tile."""

    def run() -> None:
        with torch.no_grad():
            problem.select()

    if queries is None:
        return {"ms": 1e3 * problem.bench.seconds(run, enough_s=0.2)}
    with (
        mock.patch.object(triton_lse, "rows_of_tile", return_value=queries),
        mock.patch.object(triton_relevance, "rows_of_tile", return_value=queries),
    ):
        return {"ms": 1e3 * problem.bench.seconds(run, enough_s=0.2)}


def attention(
    problem: Problem, module: ModuleType, chooser: str, backward: bool, tile: Tile | None
) -> dict[str, Any]:
    from gpu import once

    run = once(problem.attend, problem.inputs, backward)
    choose = getattr(module, chooser) if tile is None else lambda *_: tile
    with mock.patch.object(module, chooser, choose):
        return {"ms": 1e3 * problem.bench.seconds(run, enough_s=0.2)}
