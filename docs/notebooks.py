"""Make notebooks of the tutorials, run them, and write them with their output.

    python docs/notebooks.py [FOLDER]      # build/notebooks

A tutorial is one Markdown page; the site shows it, and the notebook is made from it.
"""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parent / "tutorials").glob("*.md"))


def notebook(page: Path) -> nbformat.NotebookNode:
    """The notebook of a page, run from top to bottom; it raises what a cell raises."""
    made = jupytext.reads(page.read_text(), fmt="md")
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return NotebookClient(made, timeout=300, kernel_name="python3").execute()


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for page in TUTORIALS:
        file = folder / page.with_suffix(".ipynb").name
        unfinished = file.with_suffix(".part")
        nbformat.write(notebook(page), unfinished)
        unfinished.replace(file)
        print(file)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/notebooks"))
