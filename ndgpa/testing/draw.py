"""Strategies for structures, calls and selections: hypothesis draws sizes and a seed, torch values.

Example:
    @draw.data
    def test_it_holds_for_any_call(self, data):
        problem = data.draw(draw.problems(masked=True))
        out = ndgpa.gpa(*problem.inputs, problem.structure, 2, **problem.options)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

import ndgpa

MAX_SITES = 72

# A contract's tests run once for each class that inherits it, and a first call may take a second.
USUAL = settings(
    deadline=None,
    suppress_health_check=[
        *settings().suppress_health_check,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
    ],
)
# For tests that need fewer or more examples than the profile has; so a sweep reaches them too.
FEW = settings(USUAL, max_examples=max(1, USUAL.max_examples // 2))
MORE = settings(USUAL, max_examples=2 * USUAL.max_examples)


def data(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test on `data`, from which it draws what it needs, as often as the profile says."""
    drawn: Callable[..., None] = USUAL(given(data=st.data())(test))
    return drawn


@st.composite
def grids(draw: Any, max_rank: int = 4, time: bool | None = None) -> ndgpa.Grid:
    """Grids of any rank; sizes that need not divide; blocks and cells up to the whole axis."""
    rank = draw(st.integers(1, max_rank))
    shape: list[int] = []
    for _ in range(rank):
        room = MAX_SITES // math.prod(shape)
        shape.append(draw(st.integers(1, max(1, min(room, 24 if rank == 1 else 9)))))
    block = tuple(draw(st.integers(1, min(size, 4))) for size in shape)
    blocks = [-(-size // d) for size, d in zip(shape, block)]
    cell = tuple(draw(st.integers(1, min(count, 3))) for count in blocks)
    has_time = draw(st.booleans()) if time is None else time
    time_axis = draw(st.integers(0, rank - 1)) if has_time else None
    return ndgpa.Grid(tuple(shape), block, cell, time_axis=time_axis)


@st.composite
def clusters(draw: Any, time: bool | None = None, group: bool = False) -> ndgpa.Clusters:
    """Ragged partitions, sites in no order."""
    generator = seeded(draw(st.integers(0, 2**20)))
    blocks = draw(st.integers(1, 9))
    sites = draw(st.integers(blocks, 48))
    cells = draw(st.integers(1, blocks))
    cell_of_block = _onto(blocks, cells, generator)
    times = None
    if draw(st.booleans()) if time is None else time:
        times = torch.randint(-5, 5, (sites,), generator=generator)
    groups = None
    if group:
        ids = torch.tensor([0, 1, 2**62])[torch.randint(0, 3, (cells,), generator=generator)]
        groups = ids[cell_of_block]
    return ndgpa.Clusters(_onto(sites, blocks, generator), cell_of_block, times, groups)


@st.composite
def anything(draw: Any, x: Tensor) -> Tensor:
    """What may stand where nothing is to be read: other numbers, huge ones, NaN, infinities."""
    numbers = torch.randn(x.shape, generator=seeded(draw(st.integers(0, 2**20)))).to(x)
    return numbers * draw(st.sampled_from([5.0, 1e30, torch.nan, torch.inf, -torch.inf]))


def structures(time: bool | None = None) -> st.SearchStrategy[ndgpa.SpatialStructure]:
    return st.one_of(grids(time=time), clusters(time=time))


@st.composite
def with_tokens(draw: Any, time: bool | None = None) -> ndgpa.SpatialStructure:
    """Spaces with special tokens on either side or on none; some with times of their own."""
    inner = draw(structures(time=time))
    prefix, suffix = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    times = None
    if inner.time is not None and draw(st.booleans()):
        generator = seeded(draw(st.integers(0, 2**20)))
        times = torch.randint(-6, 6, (prefix + suffix,), generator=generator)
    return ndgpa.with_tokens(inner, prefix, suffix, time=times)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _onto(count: int, rows: int, generator: torch.Generator) -> Tensor:
    """A random map of `count` members onto `rows` rows, every row used."""
    rest = torch.randint(0, rows, (count - rows,), generator=generator)
    return torch.cat([torch.arange(rows), rest])[torch.randperm(count, generator=generator)]


@dataclass
class Problem:
    """Arguments of a call, values drawn from one seed."""

    query: Tensor
    key: Tensor
    value: Tensor
    structure: ndgpa.SpatialStructure
    key_structure: ndgpa.SpatialStructure
    affinity: str
    scale: float | None
    key_mask: Tensor | None

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What hypothesis prints: sizes, not values."""
        shapes = [tuple(x.shape) for x in self.inputs]
        masked = self.key_mask is not None
        printer.text(
            f"Problem({shapes}, {self.query.dtype}, {self.structure}, {self.key_structure}, "
            f"{self.affinity}, scale={self.scale}, masked={masked})"
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "key_structure": self.key_structure,
            "affinity": self.affinity,
            "scale": self.scale,
            "key_mask": self.key_mask,
        }

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def logit_scale(self) -> float:
        return self.query.shape[-1] ** -0.5 if self.scale is None else self.scale

    def with_inputs(self, *inputs: Tensor) -> "Problem":
        query, key, value = inputs
        return Problem(query, key, value, *list(vars(self).values())[3:])


@st.composite
def problems(
    draw: Any,
    dtype: torch.dtype = torch.float64,
    masked: bool | None = None,
    same: bool | None = None,
    time: bool | None = None,
    max_batch: int = 2,
    spaces: st.SearchStrategy[ndgpa.SpatialStructure] | None = None,
) -> Problem:
    spaces = structures(time=time) if spaces is None else spaces
    structure = draw(spaces)
    cross = not (draw(st.booleans()) if same is None else same)
    key_structure = draw(spaces) if cross else structure
    batch, key_heads = draw(st.integers(1, max_batch)), draw(st.integers(1, 2))
    heads = key_heads * draw(st.integers(1, 2))
    width, value_width = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = seeded(draw(st.integers(0, 2**20)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    keys = key_structure.num_sites
    mask = None
    if draw(st.booleans()) if masked is None else masked:
        mask = torch.rand((batch, keys), generator=generator) < 0.7
    return Problem(
        normal(batch, heads, structure.num_sites, width),
        normal(batch, key_heads, keys, width),
        normal(batch, key_heads, keys, value_width),
        structure,
        key_structure,
        draw(st.sampled_from(["dot", "euclidean"])),
        draw(st.sampled_from([None, 1.0, 0.3])),
        mask,
    )


@st.composite
def selections(draw: Any, problem: Problem, bias: bool | None = None) -> ndgpa.Selection:
    """Any ids, repeated ones and empty slots among them, or no slots at all."""
    batch, heads = problem.query.shape[:2]
    key_heads = problem.key.shape[1]
    heads = draw(st.sampled_from(sorted({1, key_heads, heads})))
    width = draw(st.integers(0, 4))
    generator = seeded(draw(st.integers(0, 2**20)))
    shape = (batch, heads, problem.structure.inner.num_cells, width)
    blocks = torch.randint(-1, problem.key_structure.inner.num_blocks, shape, generator=generator)
    added = None
    if draw(st.booleans()) if bias is None else bias:
        added = torch.randn(shape, generator=generator, dtype=torch.float64).to(problem.query.dtype)
        if draw(st.booleans()):
            added = 100 * added.sign()
    return ndgpa.Selection(blocks.int(), added)
