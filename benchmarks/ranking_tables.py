"""The tables of docs/ranking.md, from the result files of benchmarks/ranking.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEYS = (1024, 128, 16)
EXACT = ("full", "full, causal")
YARDSTICKS = (*EXACT, "none")


def ranking(results: Path) -> dict[str, str]:
    """Every table by its name on the page."""
    entries, time, learning, costs = (
        rows_of(results / f"ranking_{question}.json")
        for question in ("entries", "time", "learning", "cost")
    )
    found = {
        "ranking_nearest": nearest(entries) if entries else None,
        "ranking_entries": wide(entries, errors) if entries else None,
        "ranking_cost": wide(costs, cost) if costs else None,
        "ranking_nearest_in_time": nearest(time) if time else None,
        "ranking_time": wide(time, errors) if time else None,
        "ranking_learning": learnt(learning) if learning else None,
    }
    return {name: table or "Not measured yet." for name, table in found.items()}


def rows_of(path: Path) -> list[Row]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def nearest(rows: list[Row]) -> str:
    """The best of GPA beside the best of the others, and by how much one leads."""
    lines = [
        "| features | keys | best of GPA | error | best other | error | other / GPA |",
        "|---" * 7 + "|",
    ]
    for where in dict.fromkeys((row["features"], "causal" in kind(row)) for row in rows):
        here = [
            r for r in rows if (r["features"], "causal" in kind(r)) == where and "error_16" in r
        ]
        for keys in KEYS:
            name = f"error_{keys}"
            ours, others = (
                min((row for row in here if test(row)), key=lambda row: row[name], default=None)
                for test in (is_ours, is_other)
            )
            if ours is None or others is None:
                continue
            ratio = others[name] / ours[name]
            said = f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"
            place = where[0] + (", causal" if where[1] else "")
            cells = [place, str(keys), ours["attention"], f"{ours[name]:.3f}"]
            cells += [others["attention"], f"{others[name]:.3f}", said]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kind(row: Row) -> str:
    """Methods that are causal are compared among themselves."""
    causal = ("MoBA", "NSA, its selection branch")
    return "causal" if "causal" in row["attention"] or row["attention"] in causal else ""


def is_ours(row: Row) -> bool:
    return row["attention"].startswith("GPA")


def is_other(row: Row) -> bool:
    return not is_ours(row) and row["attention"] not in YARDSTICKS


def wide(rows: list[Row], cell: Callable[[Row], str]) -> str:
    """A line for each method, a column for each features."""
    columns = list(dict.fromkeys(row["features"] for row in rows))
    lines = ["| attention | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in dict.fromkeys(row["attention"] for row in rows):
        if name in EXACT and cell is errors:
            continue
        here = {row["features"]: row for row in rows if row["attention"] == name}
        cells = [cell(here[place]) if place in here else "-" for place in columns]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def errors(row: Row) -> str:
    if "error_16" not in row:
        return "too slow"
    return " / ".join(f"{row[f'error_{keys}']:.3f}".removeprefix("0") for keys in KEYS)


def cost(row: Row) -> str:
    return f"{row['entries/query']:.0f}, {row['time/GPA']:.2g}, {row['memory/tensors']:.2g}"


def learnt(rows: list[Row]) -> str:
    lines = ["| attention | setting | entries/query | error | lowest | highest |", "|---" * 6 + "|"]
    for row in sorted(rows, key=lambda row: row["error"]):
        numbers = [f"{row[name]:.3f}" for name in ("error", "lowest", "highest")]
        cells = [row["attention"], row["setting"], f"{row['entries/query']:.0f}", *numbers]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
