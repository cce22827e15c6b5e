"""The tables of docs/far_field.md are those of the results."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "far_field.md").read_text()
RESULTS = ROOT / "benchmarks" / "results"
HELD_OUT = ("coffee", "cat", "rocket", "sound", "video", "points")


def test_the_tables_are_those_of_the_results() -> None:
    for name in ("far_field_errors", "far_field_time", "finding"):
        result = (RESULTS / f"{name}.md").read_text()
        lines = [line for line in result.splitlines() if line.startswith("|")]
        assert all(line in PAGE for line in lines)


def test_the_coverage_is_that_of_the_results() -> None:
    rows = json.loads((RESULTS / "far_field_coverage.json").read_text())["rows"]
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        if (row["sites a block"], row["blocks a cell"]) == (16, 4):
            both = f"{row['share_128']:.3f} / {row['share_16']:.3f}".replace("0.", ".")
            found.setdefault(row["rule"], {})[row["features"]] = both
    for rule, shares in found.items():
        assert " | ".join([f"| {rule}", *(shares[name] for name in HELD_OUT)]) + " |" in PAGE
