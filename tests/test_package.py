"""The package as others get it."""

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
CONTRACTS = '''
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

import ndgpa
from ndgpa.testing import CausalContract, RuleContract, StructureContract


@dataclass(frozen=True)
class Ring(ndgpa.SpatialStructure):
    """Sites on a circle, `block` of them in a block, every block a cell."""

    length: int
    block: int
    on: str = "cpu"

    @property
    def device(self):
        return torch.device(self.on)

    @property
    def num_sites(self):
        return self.length

    @property
    def blocks(self):
        count = -(-self.length // self.block)
        sites = torch.arange(count * self.block)
        return sites.masked_fill(sites >= self.length, -1).view(count, self.block).to(self.on)

    @property
    def cells(self):
        return torch.arange(-(-self.length // self.block))[:, None].to(self.on)

    def to(self, device):
        if str(device) == self.on:
            return self
        copies = self.__dict__.setdefault("copies", {})
        return copies.setdefault(str(device), Ring(self.length, self.block, str(device)))

    def coarsen(self, factor, cell=1):
        return Ring(self.num_blocks, factor, self.on)

    def near_cells(self, radius):
        apart = torch.arange(-radius, radius + 1).to(self.on)
        return (self.cells + apart) % self.num_blocks


class TestRing(StructureContract):
    def structures(self):
        return st.builds(Ring, st.integers(1, 30), st.integers(1, 4))


class TestTopK(RuleContract, CausalContract):
    def rules(self, problem):
        return st.integers(1, 3).map(ndgpa.TopK)
'''


def build(folder: Path) -> Path:
    """The wheel, built from the checkout without the network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


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
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    wheel = build(tmp_path)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = ["-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, *install, f"{wheel}[testing]"], check=True, cwd=tmp_path)
    run = subprocess.run(
        [python, "-c", CALLS], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert str(tmp_path) in run.stdout
    (tmp_path / "test_theirs.py").write_text(CONTRACTS)
    subprocess.run([python, "-m", "pytest", "-q", "test_theirs.py"], check=True, cwd=tmp_path)


@pytest.mark.slow
def test_contracts_are_met_from_the_wheel_alone(tmp_path: Path) -> None:
    """By someone who has written a structure and a rule; nothing of the checkout is on the path."""
    with zipfile.ZipFile(build(tmp_path)) as wheel:
        wheel.extractall(tmp_path)
    (tmp_path / "test_theirs.py").write_text(CONTRACTS)
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "--rootdir", ".", "-rs"]
    run = subprocess.run(
        [*command, "test_theirs.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert " skipped" not in run.stdout, run.stdout
