"""The site builds without a warning, and tutorials run as notebooks."""

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    plain = ["-D", "html_theme=basic"]  # `make docs` has a theme that takes a third of the time
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", *plain]
    run = subprocess.run([*command, ".", folder], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    pages = {str(page.relative_to(site)) for page in site.rglob("*.html")}
    assert {"docs/index.html", "docs/api/structures.html", "docs/tutorials/sound.html"} <= pages


def test_the_reference_shows_shapes_and_errors(site: Path) -> None:
    page = (site / "docs" / "api" / "functional.html").read_text()
    text = " ".join(html.unescape(re.sub("<[^>]+>", "", page)).split())
    assert "query: Float[Tensor, 'b h n d']" in text
    assert "Raises: ValueError, TypeError" in text


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_a_notebook(page: Path) -> None:
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "notebooks.py")
    assert spec
    assert spec.loader
    notebooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebooks)
    made = notebooks.notebook(page)
    cells = [cell for cell in made.cells if cell.cell_type == "code"]
    assert len(cells) >= 4
    assert all(cell.execution_count for cell in cells)
