"""Every example of docs/graphs.md does what it says."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "graphs.md"
EXAMPLES = re.findall(r"## (.*?)\n.*?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_it_runs(title: str, code: str) -> None:
    if "torch_geometric" in code:
        pytest.importorskip("torch_geometric")
    exec(compile(code, f"{PAGE.name}: {title}", "exec"), {"__name__": title})


def test_there_is_one_example_for_each_thing_to_use() -> None:
    titles = [title for title, _ in EXAMPLES]
    assert titles == ["A graph", "Points", "Many spaces as one", "PyTorch Geometric"]


def test_the_pictures_and_files_that_it_links_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
