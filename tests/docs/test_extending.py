"""Every example of docs/extending.md runs as it stands, and keeps the contract that it names."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ndgpa.attention import BACKENDS

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
)
CONTRACTS = {
    "A structure": "StructureContract",
    "A rule": "RuleContract",
    "An operator": "OperatorContract",
    "A backend": "BackendContract",
}


def run(title: str) -> ModuleType:
    """Run the example and the test of a section as one module, which pickle can find."""
    module = ModuleType(f"extending_{title.split()[-1]}")
    sys.modules[module.__name__] = module
    for block in re.findall(r"```python\n(.*?)```", SECTIONS[title], re.DOTALL):
        exec(compile(block, f"{PAGE.name}: {title}", "exec"), vars(module))
    return module


EXAMPLES = {title: run(title) for title in SECTIONS}
EXACT = BACKENDS.pop("exact")  # the other tests know nothing of it
TestTorus = EXAMPLES["A structure"].TestTorus
TestLargestKeys = EXAMPLES["A rule"].TestLargestKeys
TestGatedMean = EXAMPLES["An operator"].TestGatedMean


class TestExact(EXAMPLES["A backend"].TestExact):  # type: ignore[name-defined,misc]
    @pytest.fixture(autouse=True)
    def _register(self) -> Iterator[None]:
        BACKENDS["exact"] = EXACT
        yield
        del BACKENDS["exact"]


@pytest.mark.parametrize(("title", "contract"), CONTRACTS.items(), ids=CONTRACTS)
def test_there_is_one_example_for_each_contract(title: str, contract: str) -> None:
    assert list(SECTIONS) == list(CONTRACTS)
    example = EXAMPLES[title]
    tests = [x for name, x in vars(example).items() if name.startswith("Test")]
    assert [x.__mro__[1] for x in tests] == [getattr(example, contract)]
