"""The example of docs/video.md does what it says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "video.md"


def test_it_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(code, PAGE.name, "exec"), {"__name__": "example"})


def test_the_files_that_it_links_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
