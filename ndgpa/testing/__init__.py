"""Tests for structures, rules, backends and operators that you write yourself.

A contract is a class of tests. To test something of your own, inherit the contract, say what is to
be tested, and run pytest:

    from ndgpa.testing import StructureContract, draw
    from hypothesis import strategies as st

    class TestRing(StructureContract):
        def structures(self):
            return st.builds(Ring, st.integers(8, 40), st.integers(1, 4))

| contract            | tests                 | its hook                                          |
|---------------------|-----------------------|---------------------------------------------------|
| `StructureContract` | a `SpatialStructure`  | `structures()`: a strategy that draws some        |
| `RuleContract`      | a `Rule`              | `rules(problem)`: a strategy that draws some      |
| `CausalContract`    | a rule, causal        | the same `rules(problem)`                         |
| `BackendContract`   | a backend of `attend` | `backend`: its name in `ndgpa.attention.BACKENDS` |
| `TokensContract`    | a backend, tokens     | the same `backend`                                |
| `OperatorContract`  | an operator           | `operator(heads, width)`: makes one               |

`draw` has the strategies that the contracts draw from (structures, problems, selections), `oracle`
the slow and obvious form of the attention that they compare with. Both may be used in tests of
your own. Nothing else in `ndgpa` imports this package: it needs `pip install ndgpa[testing]`.

How many examples are drawn is what your hypothesis profile says, if it is loaded before this
package is imported, for example in `conftest.py`.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{file}"
        for file in ("structure", "rule", "causal", "backend", "operator", "tokens")
    )
)

from ndgpa.testing import draw, oracle  # noqa: E402
from ndgpa.testing.backend import BackendContract  # noqa: E402
from ndgpa.testing.causal import CausalContract  # noqa: E402
from ndgpa.testing.operator import OperatorContract  # noqa: E402
from ndgpa.testing.rule import RuleContract  # noqa: E402
from ndgpa.testing.structure import StructureContract  # noqa: E402
from ndgpa.testing.tokens import TokensContract  # noqa: E402

__all__ = [
    "BackendContract",
    "CausalContract",
    "OperatorContract",
    "RuleContract",
    "StructureContract",
    "TokensContract",
    "draw",
    "oracle",
]
