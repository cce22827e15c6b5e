"""The tables of docs/far_field.md are those of the results."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "far_field.md").read_text()


def test_the_tables_are_those_of_the_results() -> None:
    for name in ("errors", "coverage", "time"):
        result = (ROOT / "benchmarks" / "results" / f"far_field_{name}.md").read_text()
        lines = [line for line in result.splitlines() if line.startswith("|")]
        assert all(line in PAGE for line in lines)
