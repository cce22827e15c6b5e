"""What `torch.utils.flop_counter` counts for the operators: the products of the full tables.

Empty slots and places count as if they were filled, masked keys as if they were seen, for neither
their number nor anything else is known from shapes. The backward is counted as torch counts that
of its own attention: five products for the two of the forward, the logits again among them. That a
kernel makes some of them twice is its own affair.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

Shape = Sequence[int]
Formula = Callable[..., int]

_COUNTER = "torch.utils.flop_counter"
_FORMULAS: dict[Any, Formula] = {}


def count_products(op: Any) -> Callable[[Formula], Formula]:
    """Register a formula: of the arguments of an operator, shapes for tensors, how many products.

    The counter imports Triton, so it is not imported here; when somebody does, it is told.
    """
    packet = op._opoverload.overloadpacket

    def register(formula: Formula) -> Formula:
        _FORMULAS[packet] = formula
        if _COUNTER in sys.modules:
            sys.modules[_COUNTER].register_flop_formula(packet)(formula)
        return formula

    return register


def attention(pairs: int, width: int, value_width: int) -> int:
    """The logits, and the values by the weights."""
    return 2 * pairs * (width + value_width)


def attention_backward(pairs: int, width: int, value_width: int) -> int:
    """The logits again, the gradients of weights and values, and those of query and key."""
    return 2 * pairs * (3 * width + 2 * value_width)


def pairs_of_tables(heads: Shape, cells: Shape, slots: int, blocks: Shape) -> int:
    """Queries of all cells by the keys of all their slots."""
    return prod(heads) * prod(cells) * slots * blocks[1]


class _TellTheCounter(importlib.abc.MetaPathFinder):
    """Register all formulas once the counter has been imported."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_tell(module: ModuleType) -> None:
            execute(module)
            for packet, formula in _FORMULAS.items():
                module.register_flop_formula(packet)(formula)

        spec.loader.exec_module = execute_and_tell  # type: ignore[method-assign]
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _TellTheCounter())
