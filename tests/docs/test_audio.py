"""Every example of docs/audio.md does what it says."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "audio.md"
EXAMPLES = re.findall(r"## (.*?)\n.*?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_it_runs(title: str, code: str) -> None:
    torch.manual_seed(0)
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {"__name__": title})


def test_there_is_one_example_for_each_thing_to_use() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize(
    "page", [PAGE, PAGE.parents[1] / "examples" / "audio" / "README.md"], ids=["docs", "README"]
)
def test_the_pictures_and_files_that_it_links_exist(page: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
