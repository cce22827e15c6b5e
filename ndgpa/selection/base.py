"""What a rule is, and several rules as one: `TopK(8) | Window(1)`."""

import abc
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.ranking import in_order
from ndgpa.structures.base import SpatialStructure


class Rule(abc.ABC):
    """Says which key blocks each cell reads. Final rules are frozen dataclasses."""

    @abc.abstractmethod
    def select(self, problem: Problem) -> Selection:
        """Answer for every cell of `problem.structure`."""

    @property
    def is_static(self) -> bool:
        """Whether the structures alone decide, so that the answer is worked out once for a pair.

        Static rules that are equal (==) must name equal blocks.
        """
        return False

    def named_blocks(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> Int[Tensor, "C K"]:
        """Name the blocks of each cell, seen or not; only of a static rule.

        In any order and as often as one likes, -1 for an empty slot.
        """
        raise NotImplementedError(f"{type(self).__name__} does not depend on structures alone")

    def __or__(self, other: "Rule") -> "Rule":
        """The rule that reads what either reads."""
        if not isinstance(other, Rule):
            return NotImplemented
        return Union((self, other))


@dataclass(frozen=True)
class Union(Rule):
    """Each cell reads every block that any of the rules reads, once.

    A block that several rules name keeps the bias of the first of them.

    Args:
        rules: At least one rule; `a | b` makes the union of two.

    Raises:
        TypeError: Something is not a rule.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        check_rules("Union", self.rules)

    @property
    def is_static(self) -> bool:
        return all(rule.is_static for rule in self.rules)

    def named_blocks(
        self, structure: SpatialStructure, key_structure: SpatialStructure
    ) -> Int[Tensor, "C K"]:
        tables = [rule.named_blocks(structure, key_structure) for rule in self.rules]
        return torch.cat(tables, dim=1)

    def select(self, problem: Problem) -> Selection:
        parts = [rule.select(problem) for rule in self.rules]
        heads = max(part.blocks.shape[1] for part in parts)
        blocks = torch.cat([_for_heads(part.blocks, heads) for part in parts], dim=-1)
        bias = None
        if any(part.bias is not None for part in parts):
            bias = torch.cat([_for_heads(_bias(part, problem), heads) for part in parts], dim=-1)
        return once(blocks, bias, problem.key_structure.num_blocks)


def once(
    blocks: Int[Tensor, "b hs C K"], bias: Float[Tensor, "b hs C K"] | None, num_blocks: int
) -> Selection:
    """The same blocks in ascending order, each in the first of its slots; empty slots last."""
    blocks, order = in_order(blocks.masked_fill(blocks < 0, num_blocks))
    again = torch.zeros_like(blocks, dtype=torch.bool)
    again[..., 1:] = blocks[..., 1:] == blocks[..., :-1]
    blocks, moved = in_order(blocks.masked_fill(again, num_blocks))
    blocks = blocks.masked_fill(blocks == num_blocks, -1)
    if bias is not None:
        bias = bias.gather(-1, order).gather(-1, moved)
    return Selection(blocks.int(), bias)


def _for_heads(x: Tensor, heads: int) -> Tensor:  # (b, some heads, C, K) -> (b, heads, C, K)
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _bias(part: Selection, problem: Problem) -> Float[Tensor, "b hs C K"]:
    if part.bias is not None:
        return part.bias
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    return problem.query.new_zeros(part.blocks.shape, dtype=wide)


def check_rules(who: str, items: Any) -> None:
    if not isinstance(items, tuple) or not items:
        raise TypeError(f"{who} needs a tuple of rules; got {items!r}")
    for item in items:
        if not isinstance(item, Rule):
            raise TypeError(f"{who} needs rules; got {type(item).__name__}")
