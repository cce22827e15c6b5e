"""Rules of every kind, with options that fit a problem."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

import ndgpa
from ndgpa import Problem as Question
from ndgpa.selection import Rule
from tests.problems.call import Problem


@dataclass(frozen=True, eq=False)
class Given(Rule):
    """Blocks and biases that no rule chose: repeated ids and empty slots among them."""

    blocks: Tensor
    bias: Tensor | None

    def select(self, problem: Question) -> ndgpa.Selection:
        return ndgpa.Selection(self.blocks, self.bias)

    def __repr__(self) -> str:
        return f"Given(width {self.blocks.shape[3]}, biased={self.bias is not None})"


def a_rule(draw: random.Random, generator: torch.Generator, drawn: Problem) -> Rule:
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
