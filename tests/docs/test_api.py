"""Every public name has a place in the API reference, with its docstring and an example."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import ndgpa
import ndgpa.integrations
from tests.docs.pages import ROOT, code, sections

API = {page.stem: sections(page) for page in (ROOT / "docs" / "api").glob("*.md")}
SHARED = ("spaces", "timm")  # not for users; its library is not installed beside the others
PACKAGES = (
    "structures",
    "selection",
    "operators",
    "nn",
    "presets",
    "analysis",
    "distributed",
    "testing",
)


def public_names() -> dict[str, object]:
    """What a user can import: what packages pass on, what single modules define."""
    modules = ["ndgpa", *(f"ndgpa.{name}" for name in PACKAGES)]
    modules += [
        f"ndgpa.integrations.{m.name}"
        for m in pkgutil.iter_modules(ndgpa.integrations.__path__)
        if m.name not in SHARED
    ]
    return {f"{m}.{name}": x for m in modules for name, x in names_of(importlib.import_module(m))}


def names_of(module: ModuleType) -> list[tuple[str, object]]:
    is_package = hasattr(module, "__path__")
    found = [(name, getattr(module, name)) for name in passed_on(module) if is_package]
    found += [
        (name, x)
        for name, x in vars(module).items()
        if not name.startswith("_") and getattr(x, "__module__", None) == module.__name__
    ]
    return [(name, x) for name, x in found if inspect.isclass(x) or inspect.isroutine(x)]


def passed_on(module: ModuleType) -> list[str]:
    """Names that a package imports in order to pass them on."""
    tree = ast.parse(Path(module.__file__ or "").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    listed = getattr(module, "__all__", None)
    names = [a.asname or a.name for node in imports for a in node.names if a.asname or listed]
    return [name for name in names if listed is None or name in listed]


NAMES = public_names()
DEFINED: dict[int, list[str]] = {}
for path, thing in NAMES.items():
    DEFINED.setdefault(id(thing), []).append(path)


def test_there_are_names() -> None:
    assert {"ndgpa.gpa", "ndgpa.nn.SpatialAttention", "ndgpa.testing.RuleContract"} <= set(NAMES)


@pytest.mark.parametrize("paths", DEFINED.values(), ids=lambda paths: paths[0])
def test_it_has_a_place_in_the_reference(paths: list[str]) -> None:
    name = paths[0].rsplit(".")[-1]
    places = [
        text
        for page in API.values()
        for title, text in page.items()
        if title == name and any(f":: {path}\n" in text for path in paths)
    ]
    assert len(places) == 1
    (text,) = places
    assert re.search(rf"\b{name}\b", code(text)), "its example does not use it"
    assert (NAMES[paths[0]].__doc__ or "").strip()


def _documents(text: str, path: str) -> bool:
    return re.search(rf"auto(function|class):: {re.escape(path)}\n", text) is not None


def test_the_reference_names_nothing_else() -> None:
    documented = {
        path
        for page in API.values()
        for text in page.values()
        for path in re.findall(r"auto(?:function|class):: (\S+)", text)
    }
    assert documented <= set(NAMES)
