"""The README's examples do what they say."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_run(example: str) -> None:
    exec(compile(example, str(README), "exec"), {})


def test_the_pictures_and_files_that_it_links_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link
