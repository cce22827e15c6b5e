"""Phase 1 by loops: what a cell may choose from, and how relevant it finds it."""

import itertools
import math

import numpy as np

import ndgpa
from ndgpa.selection import Rule
from ndgpa.testing.oracle import logit, rows, softmax
from tests.literal.phase_2 import NONE, exists
from tests.problems import Problem


def spans(structure: ndgpa.SpatialStructure) -> list[tuple[int, int]]:
    """The earliest and the latest time of each block; of a grid's, as if it were whole."""
    if not isinstance(structure, ndgpa.Grid):
        times = [[int(structure.time[x]) for x in block] for block in rows(structure.blocks)]
        return [(min(x), max(x)) for x in times]
    axis = structure.time_axis
    length = structure.block_shape[axis]
    counts = [-(-n // d) for n, d in zip(structure.shape, structure.block_shape)]
    at = np.unravel_index(range(math.prod(counts)), counts)[axis]
    return [(int(i) * length, int(i) * length + length - 1) for i in at]


class Phase1:
    """What each cell may choose from, what it reads in any case, and how relevant it finds them."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.blocks, self.cells = rows(problem.structure.blocks), rows(problem.structure.cells)
        self.key_blocks = rows(problem.key_structure.blocks)
        self.count = len(self.key_blocks)
        groups = problem.structure.group, problem.key_structure.group
        self.groups = None if None in groups else [x.tolist() for x in groups]
        if problem.causal:
            own, self.key_spans = spans(problem.structure), spans(problem.key_structure)
            self.now = [min(own[i][0] for i in members) for members in self.cells]
            self.until = [max(own[i][1] for i in members) for members in self.cells]

    def in_group(self, cell: int, block: int) -> bool:
        if self.groups is None:
            return True
        return self.groups[0][self.cells[cell][0]] == self.groups[1][block]

    def candidates(self, cell: int) -> list[int]:
        """Blocks of the cell's group; if causal, those wholly past at its earliest time."""
        return [
            j
            for j in range(self.count)
            if self.in_group(cell, j)
            and (not self.problem.causal or self.key_spans[j][1] <= self.now[cell])
        ]

    def visible(self, cell: int, named: list[int]) -> set[int]:
        """Those of the named that are not of another group, or wholly later."""
        return {
            j
            for j in named
            if j >= 0
            and self.in_group(cell, j)
            and (not self.problem.causal or self.key_spans[j][0] <= self.until[cell])
        }

    def straddling(self, cell: int) -> set[int]:
        """If causal, the blocks that the cell can see in part: read in any case."""
        if not self.problem.causal:
            return set()
        wanted = self.visible(cell, list(range(self.count)))
        return {j for j in wanted if self.key_spans[j][1] > self.now[cell]}

    def always(self, cell: int, force: Rule | None) -> set[int]:
        return self.visible(cell, self.forced(cell, force)) | self.straddling(cell)

    def forced(self, cell: int, force: Rule | None) -> list[int]:
        if isinstance(force, ndgpa.selection.Union):
            return [j for rule in force.rules for j in self.forced(cell, rule)]
        if isinstance(force, ndgpa.Fixed):
            return list(force.blocks)
        return self.cells[cell] if isinstance(force, ndgpa.Own) else []

    def seen(self, b: int) -> list[list[int]]:
        """The sites of each key block that the mask does not hide."""
        return [[y for y in block if exists(self.problem, b, y)] for block in self.key_blocks]

    def voters(self, b: int, cell: int) -> list[list[int]]:
        """The sites of each block of the cell that say what is relevant."""
        sites = [self.blocks[i] for i in self.cells[cell]]
        if self.problem.hides_queries:
            sites = [[x for x in block if exists(self.problem, b, x)] for block in sites]
        if self.problem.causal:
            time = self.problem.structure.time
            sites = [[x for x in block if time[x] == self.now[cell]] for block in sites]
        return [block for block in sites if block]

    def relevance(self, b: int, heads: list[int], cell: int, kind: str) -> tuple[np.ndarray, float]:
        """The relevance of every block for a cell, summed over heads, -inf for no candidate.

        And how large the numbers are that it was made of, from which its rounding errors follow.
        """
        problem, seen = self.problem, self.seen(b)
        query, key = (x.detach().double().numpy() for x in problem.inputs[:2])
        chosen = [j for j in self.candidates(cell) if seen[j]]
        result, size = np.full(self.count, NONE), 0.0
        result[chosen] = 0
        for h, sites in itertools.product(heads, self.voters(b, cell)):
            q, g = query[b, h, sites].mean(axis=0), h * key.shape[1] // query.shape[1]
            means = [key[b, g, seen[j]].mean(axis=0) for j in chosen]
            logits = [logit(q, k, problem.logit_scale, problem.affinity) for k in means]
            row = softmax(logits, [len(seen[j]) for j in chosen]) if kind == "mass" else logits
            result[chosen] += len(sites) * np.array(row)
            size += len(sites) * (1 + max((self._terms(q, k) for k in means), default=0.0))
        return result, size

    def _terms(self, q: np.ndarray, k: np.ndarray) -> float:
        """The sum of the sizes of what is added up to a logit."""
        squares = q @ q + k @ k if self.problem.affinity == "euclidean" else 0.0
        return abs(self.problem.logit_scale) * float(np.abs(q) @ np.abs(k) + squares)


def heads_of(table: int, tables: int, heads: int) -> list[int]:
    """The query heads that read a table of a selection."""
    return [h for h in range(heads) if h * tables // heads == table]
