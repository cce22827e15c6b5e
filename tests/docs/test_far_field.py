"""The example of docs/far_field.md runs as it stands, and its tables are those of the results."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "far_field.md").read_text()


def test_the_example_runs() -> None:
    torch.manual_seed(0)
    for example in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(example, "far_field.md", "exec"), {})


def test_the_tables_are_those_of_the_results() -> None:
    for name in ("errors", "coverage", "time"):
        result = (ROOT / "benchmarks" / "results" / f"far_field_{name}.md").read_text()
        lines = [line for line in result.splitlines() if line.startswith("|")]
        assert all(line in PAGE for line in lines)
