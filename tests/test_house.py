"""The order of the house: imports run down the floors only, no circle, no file too long."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ndgpa"
FLOORS = (
    ("arguments", "_flops", "_ops"),
    ("structures",),
    ("problem",),
    ("selection", "attention"),
    ("functional",),
    ("operators", "cache", "distributed"),
    ("nn", "analysis", "presets"),
    ("__init__",),
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
                names.add(inner if inner in known else module or "__init__")
        if isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] == "ndgpa"]
            names |= {name.removeprefix("ndgpa").removeprefix(".") or "__init__" for name in ours}
    return names


def room(name: str) -> str:
    return name.split(".")[0]


def floor(name: str) -> int:
    return next(height for height, rooms in enumerate(FLOORS) if room(name) in rooms)


TREES = modules()
IMPORTS = {name: imported(tree, set(TREES)) for name, tree in TREES.items()}


def test_every_file_stands_on_a_floor() -> None:
    assert {room(name) for name in TREES} == {room for rooms in FLOORS for room in rooms}


def test_no_import_runs_upward_or_between_the_phases() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if floor(other) > floor(name)
        or (floor(other) == floor(name) and {room(name), room(other)} == {"selection", "attention"})
    ]
    assert wrong == []


def test_what_needs_an_extra_is_imported_by_its_user_only() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        for other in others
        if room(other) in FLOORS[-1] and room(other) != room(name)
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
