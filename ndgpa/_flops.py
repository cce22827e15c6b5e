"""What `torch.utils.flop_counter` counts for the operators: the products of the full tables.

Empty slots and places count as if they were filled, masked keys as if they were seen, for neither
their number nor anything else is known from shapes. The backward is counted as torch counts that
of its own attention: five products for the two of the forward, the logits again among them. That a
kernel makes some of them twice is its own affair.

The counter imports Triton, so nobody imports it here: a loader registers the formulas when somebody
else does.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from math import prod
from types import ModuleType
from typing import Any

import torch

Shape = Sequence[int]
Formula = Callable[..., int]

_COUNTER = "torch.utils.flop_counter"
_FORMULAS: dict[str, Formula] = {}


def count_products(operator: str) -> Callable[[Formula], Formula]:
    """Register a formula: of the arguments of an operator, shapes for tensors, how many products.

    Args:
        operator: Its name, after `ndgpa::`.
    """

    def register(formula: Formula) -> Formula:
        _FORMULAS[operator] = formula
        if _COUNTER in sys.modules:
            _tell(sys.modules[_COUNTER], operator)
        return formula

    return register


def attention(pairs: int, width: int, value_width: int) -> int:
    """Count the logits, and the values by the weights."""
    return 2 * pairs * (width + value_width)


def attention_backward(pairs: int, width: int, value_width: int) -> int:
    """Count the logits again, the gradients of weights and values, and those of query and key."""
    return 2 * pairs * (3 * width + 2 * value_width)


def pairs_of_tables(heads: Shape, cells: Shape, slots: int, blocks: Shape) -> int:
    """Count the queries of all cells by the keys of all their slots."""
    return prod(heads) * prod(cells) * slots * blocks[1]


def _tell(counter: ModuleType, operator: str) -> None:
    counter.register_flop_formula(getattr(torch.ops.ndgpa, operator))(_FORMULAS[operator])


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        for operator in _FORMULAS:
            _tell(module, operator)


class _Finder:
    """Have the counter, and nothing else, loaded by `_Loader`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        spec: ModuleSpec | None = PathFinder.find_spec(name, path) if name == _COUNTER else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Finder)
