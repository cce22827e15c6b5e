"""The order of the house: imports run down the floors only, no circle, no file too long."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ndgpa"
FLOORS = (
    ("arguments", "_ops", "_flops"),
    ("structures",),
    ("problem",),
    ("selection", "attention"),
    ("functional",),
    ("operators", "cache"),
    ("nn", "analysis", "presets"),
    ("integrations", "testing"),
)
LONGEST, LONGEST_KERNELS = 350, 420  # lines


def modules() -> dict[str, ast.Module]:
    """Every file of the package by its dotted name below `ndgpa`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return found


def imported(tree: ast.Module, known: set[str]) -> set[str]:
    """The files that a file imports, those inside of its functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ndgpa":
            module = (node.module or "").removeprefix("ndgpa").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                names.add(inner if inner in known else module)
        if isinstance(node, ast.Import):
            names |= {a.name.removeprefix("ndgpa.") for a in node.names if "ndgpa." in a.name}
    return names - {""}


def floor(name: str) -> int:
    room = name.split(".")[0]
    return next(height for height, rooms in enumerate(FLOORS) if room in rooms)


TREES = {name: tree for name, tree in modules().items() if name != "__init__"}
IMPORTS = {name: imported(tree, set(TREES)) for name, tree in TREES.items()}


def test_every_file_stands_on_a_floor() -> None:
    assert {name.split(".")[0] for name in TREES} == {room for rooms in FLOORS for room in rooms}


def test_no_import_runs_upward_or_between_the_phases() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if floor(other) > floor(name)
        or (
            floor(other) == floor(name)
            and {name.split(".")[0], other.split(".")[0]} >= {"selection", "attention"}
        )
    ]
    assert wrong == []


def test_no_circle() -> None:
    tuple(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names it


def test_no_file_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    long = {
        str(path.relative_to(PACKAGE)): length
        for path, length in lengths.items()
        if length > (LONGEST_KERNELS if "triton" in str(path) else LONGEST)
    }
    assert long == {}
