"""The examples of docs/tokens.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "tokens.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("place", range(len(EXAMPLES)))
def test_the_example_runs(place: int) -> None:
    torch.manual_seed(0)
    exec(compile(EXAMPLES[place], f"tokens.md, example {place}", "exec"), {})
