"""Another rule for each head."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ndgpa.problem import Problem, Selection
from ndgpa.selection.base import Rule, check_rules


@dataclass(frozen=True)
class PerHead(Rule):
    """Head h reads what the h-th rule says; rows of fewer blocks end in empty slots.

    Args:
        rules: One for each head of the query. Heads of one rule are answered together, so a rule
            that shares a selection shares it among them (`share="group"`: among those of a key
            head, if the rule has as many heads in every group that it is in).

    Raises:
        TypeError: Something is not a rule.
        ValueError: Their number is not that of the heads.
    """

    rules: tuple[Rule, ...]

    def __post_init__(self) -> None:
        check_rules("PerHead", self.rules)

    def select(self, problem: Problem) -> Selection:
        heads = problem.query.shape[1]
        _check_one_per_head(len(self.rules), heads)
        parts: list[Selection | None] = [None] * heads
        for rule in dict.fromkeys(self.rules):
            own = [h for h in range(heads) if self.rules[h] == rule]
            answer = rule.select(problem.of_heads(own))
            for place, head in enumerate(own):
                parts[head] = _one_head(answer, place, len(own))
        answers = [part for part in parts if part is not None]
        width = max(part.blocks.shape[-1] for part in answers)
        blocks = torch.cat([_widened(part.blocks, width, -1) for part in answers], dim=1)
        if all(part.bias is None for part in answers):
            return Selection(blocks)
        wide = torch.promote_types(problem.query.dtype, torch.float32)
        zero = problem.query.new_zeros((), dtype=wide)
        biases = [zero.expand(p.blocks.shape) if p.bias is None else p.bias for p in answers]
        return Selection(blocks, torch.cat([_widened(x, width, 0) for x in biases], dim=1))


def _one_head(selection: Selection, head: int, heads: int) -> Selection:
    """What one of `heads` heads reads."""
    own = head * selection.blocks.shape[1] // heads
    bias = None if selection.bias is None else selection.bias[:, own : own + 1]
    return Selection(selection.blocks[:, own : own + 1], bias)


def _widened(x: Tensor, width: int, value: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]), value=value)


def _check_one_per_head(count: int, heads: int) -> None:
    if count != heads:
        raise ValueError(f"PerHead has {count} rules but query has {heads} heads")
