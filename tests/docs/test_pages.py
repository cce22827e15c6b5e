"""Every example on every page runs as it stands, and every link leads somewhere."""

import re
from pathlib import Path

import pytest
import torch

from tests.docs.pages import PAGES, examples

ELSEWHERE = "docs/extending.md"  # its examples are tests themselves
SLOW = pytest.mark.slow  # an export takes a quarter of a minute; tests/test_onnx.py has a quick one
EXAMPLES = [
    pytest.param(page, code, id=f"{name}: {title}", marks=SLOW if "onnx" in code else ())
    for name, page in PAGES.items()
    if not name.startswith(ELSEWHERE)
    for title, code in examples(page).items()
]


@pytest.mark.filterwarnings("ignore:.*non-interactive")
@pytest.mark.parametrize(("page", "code"), EXAMPLES)
def test_it_runs(page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "import timm" in code:  # `make test` runs it with timm's own tests
        pytest.importorskip("timm")
    if "import onnxruntime" in code:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    try:
        exec(compile(code, page.name, "exec"), {"__name__": page.stem})
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_its_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!http|#)([^)#\s]+)[^)]*\)", page.read_text()):
        assert (page.parent / link).exists(), link
