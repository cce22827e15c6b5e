"""The pages of the site and the examples on them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {str(page.relative_to(ROOT)): page for page in sorted((ROOT / "docs").rglob("*.md"))}
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def sections(page: Path) -> dict[str, str]:
    """Split a page at its headings of the second order; "" is what stands before them."""
    parts = re.split(r"^## (.*)\n", page.read_text(), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2]))


def code(text: str) -> str:
    return "\n".join(FENCE.findall(text))


def examples(page: Path) -> dict[str, str]:
    """The code of each section, after that from before all sections; a tutorial is one example."""
    if "tutorials" in page.parts:
        return {"": code(page.read_text())}
    found = {title: code(text) for title, text in sections(page).items()}
    before = found.pop("")
    alone = {} if any(found.values()) or not before else {"": before}
    return alone | {title: f"{before}\n{text}" for title, text in found.items() if text}
