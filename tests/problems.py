"""Problems of every kind, each from one number: spaces, rules, values, masks, biases, dtypes.

`problem(seed)` is the same problem on every machine. Plain random choices, not hypothesis: a
problem takes a millisecond to draw, and its number is all that is needed to draw it again.
"""

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import ndgpa
from ndgpa import Problem as Question
from ndgpa.selection import Rule
from ndgpa.structures.sampling import Sampled

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
VALUES = ("normal", "large", "huge", "constant", "tied", "padded")
GROUPS = (0, 1, 2**62, 2**62 + 1)


@dataclass(frozen=True, eq=False)
class Given(Rule):
    """Blocks and biases that no rule chose: repeated ids and empty slots among them."""

    blocks: Tensor
    bias: Tensor | None

    def select(self, problem: Question) -> ndgpa.Selection:
        return ndgpa.Selection(self.blocks, self.bias)

    def __repr__(self) -> str:
        return f"Given(width {self.blocks.shape[3]}, biased={self.bias is not None})"


@dataclass(frozen=True)
class Problem:
    """The arguments of one call of `ndgpa.gpa`."""

    seed: int
    query: Tensor = field(repr=False)
    key: Tensor = field(repr=False)
    value: Tensor = field(repr=False)
    structure: ndgpa.SpatialStructure
    key_structure: ndgpa.SpatialStructure
    rule: Rule
    affinity: str
    scale: float | None
    causal: bool
    key_mask: Tensor | None = field(repr=False)
    values: str

    def __str__(self) -> str:
        shapes = " ".join(str(tuple(x.shape)) for x in self.inputs)
        dtype, masked = str(self.query.dtype).removeprefix("torch."), self.key_mask is not None
        space = _name(self.structure)
        if self.key_structure is not self.structure:
            space += f" to {_name(self.key_structure)}"
        return (
            f"problem {self.seed}: {self.rule} on {space}, {shapes} {dtype} {self.values}, "
            f"{self.affinity}, scale={self.scale}, causal={self.causal}, masked={masked}"
        )

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    @property
    def options(self) -> dict[str, Any]:
        names = ("key_structure", "affinity", "scale", "causal", "key_mask")
        return {name: getattr(self, name) for name in names}

    @property
    def logit_scale(self) -> float:
        return self.query.shape[3] ** -0.5 if self.scale is None else self.scale

    @property
    def hides_queries(self) -> bool:
        """Whether the sites that the mask hides are sites of the queries too."""
        return self.key_mask is not None and self.key_structure is self.structure

    def with_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> "Problem":
        return replace(self, query=query, key=key, value=value)


def _name(structure: ndgpa.SpatialStructure) -> str:
    if isinstance(structure, Sampled):
        return f"{structure.sites_per_block} sampled sites of each block of {structure.structure}"
    groups = "" if structure.group is None else f" in {len(structure.group.unique())} groups"
    return f"{structure}{groups}"


def problem(seed: int, dtypes: tuple[torch.dtype, ...] = DTYPES, sites: int = 40) -> Problem:
    """The problem of that number.

    Args:
        sites: About how many sites a space has at most.
    """
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dtype, values = draw.choice(dtypes), draw.choice(VALUES)
    structure, key_structure = _spaces(draw, generator, sites)
    timed = structure.time is not None and key_structure.time is not None
    batch, key_heads = draw.randint(1, 2), draw.randint(1, 2)
    heads, width = key_heads * draw.randint(1, 2), draw.randint(1, 6)
    keys = key_structure.num_sites
    mask = None
    # Which queries a mask hides is plain only where the keys are the queries' sites, or are not.
    if draw.random() < 0.3 and not _samples(key_structure, structure):
        mask = torch.rand((batch, keys), generator=generator) < draw.choice([0.3, 0.7])
    drawn = Problem(
        seed,
        *(
            _values(values, (batch, h, n, d), generator).to(dtype)
            for h, n, d in (
                (heads, structure.num_sites, width),
                (key_heads, keys, width),
                (key_heads, keys, draw.randint(1, 5)),
            )
        ),
        structure,
        key_structure,
        ndgpa.TopK(1),
        draw.choice(["dot", "dot", "euclidean"]),
        draw.choice([None, 1.0, 0.3, -0.5]),
        timed and draw.random() < 0.6,
        mask,
        values,
    )
    return replace(drawn, rule=_rule(draw, generator, drawn))


# Spaces


def _spaces(
    draw: random.Random, generator: torch.Generator, sites: int
) -> tuple[ndgpa.SpatialStructure, ndgpa.SpatialStructure]:
    """Queries and keys: on one space, on two, or keys that are a sample of a space."""
    timed, grouped = draw.random() < 0.6, draw.random() < 0.25
    structure = _space(draw, generator, sites, timed, grouped)
    kind = draw.choice(["same", "same", "same", "cross", "sampled", "sampled cross"])
    key_structure = structure
    if "cross" in kind:
        key_structure = _space(draw, generator, sites, timed, grouped)
    if "sampled" in kind:
        key_structure = _sampling(draw, key_structure)(key_structure)
    return structure, key_structure


def _samples(key_structure: ndgpa.SpatialStructure, structure: ndgpa.SpatialStructure) -> bool:
    return isinstance(key_structure, Sampled) and key_structure.structure is structure


def _sampling(draw: random.Random, structure: ndgpa.SpatialStructure) -> Any:
    kinds = [
        ndgpa.structures.Strided(2),
        ndgpa.structures.Strided(3),
        ndgpa.structures.Jittered(1),
        ndgpa.structures.Jittered(2, seed=3),
    ]
    if isinstance(structure, ndgpa.Grid):
        kinds += [
            ndgpa.structures.Halo(1),
            ndgpa.structures.Halo(tuple(draw.randint(0, 2) for _ in structure.shape)),
        ]
    return draw.choice(kinds)


def _space(
    draw: random.Random, generator: torch.Generator, sites: int, timed: bool, grouped: bool
) -> ndgpa.SpatialStructure:
    if grouped and draw.random() < 0.5:
        return _clusters(draw, generator, sites, timed, grouped=True)
    if grouped:
        parts = [_space(draw, generator, sites // 3, timed, False) for _ in range(3)]
        return ndgpa.disjoint(parts[: draw.randint(1, 3)])
    kind = draw.choice(["grid", "grid", "grid", "clusters", "graph", "points"])
    if kind == "grid":
        return _grid(draw, sites, timed)
    if kind == "clusters":
        return _clusters(draw, generator, sites, timed)
    count = draw.randint(1, sites)
    block = draw.randint(1, min(count, 5))
    cell = draw.randint(1, min(-(-count // block), 3))
    time = torch.randint(-4, 4, (count,), generator=generator) if timed else None
    if kind == "points":
        position = torch.randn(count, draw.randint(1, 3), generator=generator)
        return ndgpa.PointCloud(position, block, cell, time=time)
    edges = torch.randint(0, count, (2, 2 * count), generator=generator)
    return ndgpa.Graph(edges, count, block, cell, method="metis", time=time)


def _grid(draw: random.Random, sites: int, timed: bool) -> ndgpa.Grid:
    """Of any rank; sizes need not divide; blocks and cells up to the whole axis."""
    shape: list[int] = []
    for _ in range(rank := draw.choice([1, 1, 2, 2, 3, 4])):
        room = max(1, sites // math.prod(shape))
        shape.append(draw.randint(1, min(room, sites if rank == 1 else 7)))
    block = tuple(draw.randint(1, min(size, 4)) for size in shape)
    counts = [-(-size // d) for size, d in zip(shape, block)]
    cell = tuple(draw.randint(1, min(count, 3)) for count in counts)
    if draw.random() < 0.3:  # whole blocks and cells
        shape = [d * c * draw.randint(1, 2) for d, c in zip(block, cell)]
    return ndgpa.Grid(tuple(shape), block, cell, draw.randrange(rank) if timed else None)


def _clusters(
    draw: random.Random,
    generator: torch.Generator,
    sites: int,
    timed: bool,
    grouped: bool = False,
) -> ndgpa.Clusters:
    """Ragged partitions, sites in no order, times below 0, groups of any number."""
    blocks = draw.randint(1, min(9, sites))
    count, cells = draw.randint(blocks, sites), draw.randint(1, blocks)
    cell_of_block = _onto(blocks, cells, generator)
    time = torch.randint(-5, 5, (count,), generator=generator) if timed else None
    group = None
    if grouped:
        ids = torch.tensor(GROUPS)[torch.randint(0, len(GROUPS), (cells,), generator=generator)]
        group = ids[cell_of_block]
    return ndgpa.Clusters(_onto(count, blocks, generator), cell_of_block, time, group)


def _onto(count: int, rows: int, generator: torch.Generator) -> Tensor:
    """A random map of `count` members onto `rows` rows, every row used."""
    rest = torch.randint(0, rows, (count - rows,), generator=generator)
    return torch.cat([torch.arange(rows), rest])[torch.randperm(count, generator=generator)]


# Values


def _values(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Features in float64: of one size or another, or with sites that are equal."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "constant":
        return x[:, :, :1].expand(shape).clone()
    if kind == "tied":
        return x[:, :, torch.randint(0, min(2, shape[2]), (shape[2],), generator=generator)]
    if kind == "padded":
        x[:, :, shape[2] // 2 :] = 0
        return x
    return {"normal": 1, "large": 4, "huge": 16}[kind] * x


# Rules


def _rule(draw: random.Random, generator: torch.Generator, drawn: Problem) -> Rule:
    makers = [_top_k, _top_k, _top_ratio, _top_p, _fixed, _union, _per_head, _given, _learnt]
    if drawn.key_structure is drawn.structure:
        makers += [_own]
        makers += [_window] if isinstance(drawn.structure, ndgpa.Grid) else []
    if _shrinks(drawn.key_structure):
        makers += [_multi_level, _multi_level]
    if _strides(drawn):
        makers += [_antidiagonal] * 8
    return draw.choice(makers)(draw, generator, drawn)


def _shrinks(structure: ndgpa.SpatialStructure) -> bool:
    return structure.coarsen(2).num_blocks < structure.num_blocks


def _strides(drawn: Problem) -> bool:
    spaces = (drawn.structure, drawn.key_structure)
    plain = drawn.affinity == "dot" and drawn.key_mask is None and not drawn.causal
    return plain and all(
        x.is_even and x.group is None and x.sites_per_block % 2 == 0 for x in spaces
    )


def _share(draw: random.Random) -> str:
    return draw.choice(["head", "group", "all"])


def _force(draw: random.Random, drawn: Problem) -> Rule | None:
    named = ndgpa.Fixed((draw.randrange(drawn.key_structure.num_blocks),))
    if drawn.key_structure is not drawn.structure:
        return draw.choice([None, None, named])
    return draw.choice([None, None, named, ndgpa.Own(), named | ndgpa.Own()])


def _top_k(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    kind = draw.choice(["mass", "logit"])
    return ndgpa.TopK(draw.choice([1, 2, 3, 99]), kind, _share(draw), _force(draw, drawn))


def _top_ratio(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    ratio, kind = draw.choice([0.1, 0.29, 0.5, 1.0]), draw.choice(["mass", "logit"])
    return ndgpa.TopRatio(ratio, draw.randint(1, 2), kind, _share(draw), _force(draw, drawn))


def _top_p(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    p, most = draw.choice([0.1, 0.5, 0.9, 1.0]), draw.choice([None, 2, 4])
    return ndgpa.TopP(p, draw.randint(1, 2), most, _share(draw), _force(draw, drawn))


def _fixed(draw: random.Random, generator: torch.Generator, drawn: Problem) -> Rule:
    shape = draw.choice([(3,), (drawn.structure.num_cells, 2)])
    return ndgpa.Fixed(
        torch.randint(-1, drawn.key_structure.num_blocks, shape, generator=generator)
    )


def _own(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    return ndgpa.Own()


def _window(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    return ndgpa.Window(tuple(draw.randint(0, 2) for _ in drawn.structure.shape))


def _union(draw: random.Random, generator: torch.Generator, drawn: Problem) -> Rule:
    makers = [_top_k, _top_ratio, _top_p, _fixed, _given, _learnt]
    return ndgpa.selection.Union(
        tuple(make(draw, generator, drawn) for make in draw.sample(makers, 2))
    )


def _per_head(draw: random.Random, generator: torch.Generator, drawn: Problem) -> Rule:
    return ndgpa.PerHead(tuple(ndgpa.TopK(draw.randint(1, 3)) for _ in range(drawn.query.shape[1])))


def _given(draw: random.Random, generator: torch.Generator, drawn: Problem) -> Rule:
    """Any ids; biases of the usual size, and of +-100."""
    batch, heads = drawn.query.shape[:2]
    heads = draw.choice(sorted({1, drawn.key.shape[1], heads}))
    shape = (batch, heads, drawn.structure.num_cells, draw.randint(0, 4))
    blocks = torch.randint(-1, drawn.key_structure.num_blocks, shape, generator=generator)
    kind, bias = draw.choice(["none", "normal", "far"]), None
    if kind != "none":
        wide = torch.promote_types(drawn.query.dtype, torch.float32)
        bias = torch.randn(shape, generator=generator, dtype=wide)
    if kind == "far":
        bias = 100 * bias.sign()
    return Given(blocks.int(), bias)


def _learnt(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    k, share = draw.randint(1, 3), _share(draw)
    return draw.choice(
        [
            ndgpa.SoftTopK(k, draw.choice([0.3, 1.0]), share=share),
            ndgpa.PerturbedTopK(k, samples=3, seed=7, share=share),
            ndgpa.StraightThrough(ndgpa.TopK(k, share=share)),
        ]
    )


def _multi_level(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    keep = draw.choice([(1, 2), (2, 2), (2, 3), (99, 99), (3, 1)])
    estimate = draw.choice(["box", "mean"])
    return ndgpa.MultiLevel(keep, 2, _share(draw), _force(draw, drawn), estimate)


def _antidiagonal(draw: random.Random, _: torch.Generator, drawn: Problem) -> Rule:
    return ndgpa.selection.Antidiagonal(2, draw.choice([0.3, 0.9, 1.0]))
