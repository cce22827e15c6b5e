"""What have the tests on a GPU said so far?

    python benchmarks/gpu_tests.py --out DIR

Reads DIR/test.jsonl, which `make gpu-test` writes line by line; the last line of a test counts.
Exits with 1 where a test failed, or none has run (not in a rehearsal, --dry).
"""

import argparse
import json
from collections import Counter
from pathlib import Path


def outcomes(path: Path) -> dict[str, dict[str, str]]:
    """The last result of each test; a line that was cut off says nothing."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["test"]: row for row in found}


def table(found: dict[str, dict[str, str]]) -> str:
    count = Counter(row["outcome"] for row in found.values())
    lines = ["| outcome | tests |", "|---|---|", *(f"| {k} | {n} |" for k, n in count.items())]
    failed = [row for row in found.values() if row["outcome"] == "failed"]
    lines += [f"\n{row['test']}\n    {_last_line(row)}" for row in failed]
    return "\n".join(lines)


def _last_line(row: dict[str, str]) -> str:
    return (row.get("error", "").strip().splitlines() or [""])[-1][:200]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(argv)
    found = outcomes(options.out / "test.jsonl")
    print(table(found))
    failed = any(row["outcome"] == "failed" for row in found.values())
    return int(failed or not (found or options.dry))


if __name__ == "__main__":
    raise SystemExit(main())
