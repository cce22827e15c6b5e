"""The package as others get it."""

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CALLS = """
import ndgpa, torch
for structure in (ndgpa.Sequence(30, 4), ndgpa.Image((9, 8), 2), ndgpa.Video((3, 6, 6), (1, 2, 2))):
    x = torch.randn(1, 2, structure.num_sites, 8)
    assert ndgpa.gpa(x, x, x, structure, 2).shape == x.shape
print(ndgpa.__file__)
"""


def build(folder: Path) -> Path:
    """The wheel, built from the checkout without the network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def write_example(file: Path) -> None:
    """Write the structure of docs/extending.md and its test, as a stranger would."""
    page = (ROOT / "docs" / "extending.md").read_text()
    section = page.split("## A structure\n")[1].split("\n## ")[0]
    file.write_text("\n".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)))


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    names = zipfile.ZipFile(build(tmp_path)).namelist()
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "ndgpa").rglob("*.py")}
    assert modules <= set(names)
    assert "ndgpa/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ndgpa"}


def test_importing_needs_the_core_dependencies_only() -> None:
    """Neither Triton nor anything of an extra is imported."""
    code = (
        "import sys, ndgpa; extra = {'triton', 'matplotlib', 'scipy', 'skimage', 'torchvision', "
        "'torch_geometric', 'hypothesis', 'pytest', 'ndgpa.testing'} & set(sys.modules); "
        "assert not extra, extra"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_wheel_and_its_contracts_work_in_an_empty_environment(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = ["-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, *install, f"{wheel}[testing]"], check=True, cwd=tmp_path)
    run = subprocess.run(
        [python, "-c", CALLS], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert str(tmp_path) in run.stdout
    write_example(tmp_path / "test_theirs.py")
    subprocess.run([python, "-m", "pytest", "-q", "test_theirs.py"], check=True, cwd=tmp_path)
