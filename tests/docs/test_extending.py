"""Every example of docs/extending.md runs as it stands."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
EXAMPLES = re.findall(r"## (.*?)\n.*?```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_there_is_one_example_for_each_thing_to_write() -> None:
    titles = [title for title, _ in EXAMPLES]
    assert titles == ["A structure", "A rule", "An operator", "A backend"]


@pytest.mark.parametrize(("title", "example"), EXAMPLES, ids=[t for t, _ in EXAMPLES])
def test_it_runs(title: str, example: str) -> None:
    exec(compile(example, f"{PAGE.name}: {title}", "exec"), {"__name__": title})
