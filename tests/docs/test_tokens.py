"""The examples of docs/tokens.md and docs/decoding.md run as they stand."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = [
    (page, example)
    for page in ("tokens.md", "decoding.md")
    for example in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
]


@pytest.mark.parametrize("place", range(len(EXAMPLES)))
def test_the_example_runs(place: int) -> None:
    page, example = EXAMPLES[place]
    if "transformers" in example:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    exec(compile(example, f"{page}, example {place}", "exec"), {})
