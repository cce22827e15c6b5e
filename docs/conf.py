"""The site: `make docs` builds it into build/site, without a network.

Its sources are the repository's own pages, where they stand, so every relative link works in the
repository and on the site. API pages are made from docstrings.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

import ndgpa

ROOT = Path(__file__).parents[1]

project = "ndgpa"
author = "The ndgpa developers"
release = ndgpa.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "examples/**README.md",
    "examples/**/results/**.md",
    "benchmarks/**.md",
    "README.md",
    "CHANGELOG.md",
]
exclude_patterns = ["**/.*"]

html_theme = "furo"
html_title = f"ndgpa {release}"
html_show_sphinx = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
# Links to code and folders are for readers of the repository; `tests/docs` checks that they exist.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_use_rtype = False
default_role = "code"  # docstrings set code in single backticks
napoleon_use_ivar = True


def setup(app: Sphinx) -> None:
    app.connect("source-read", give_a_title)
    app.connect("autodoc-process-docstring", as_plain_text, priority=400)  # before napoleon


def give_a_title(app: Sphinx, page: str, source: list[str]) -> None:
    """Result files are tables without a heading; call them by their names."""
    if "/results/" in page and not source[0].startswith("#"):
        source[0] = f"# {page.rsplit('/')[-1]}\n\n{source[0]}"


def as_plain_text(
    app: Sphinx, what: str, name: str, thing: object, _: object, lines: list[str]
) -> None:
    """Docstrings are plain text: bars and stars mean themselves, and an example is code."""
    for i, line in enumerate(lines):
        after = lines[i + 1].strip() if i + 1 < len(lines) else ""
        if line.strip() == "Example:" and not after.startswith("`"):
            lines[i : i + 1] = [".. code-block:: python", ""]
            return
        lines[i] = re.sub(r"(?<=\S)([|*])|([|*])(?=\S)", r"\\\1\2", line)
