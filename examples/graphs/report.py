"""The result of a comparison as a file: JSON, and a table to read."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from examples.common.files import replacing


def write(folder: Path, name: str, about: str, rows: list[dict[str, Any]]) -> str:
    """Write NAME.json and NAME.md; and return the text of the latter."""
    machine = f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}"
    text = "\n".join([about, "", f"Machine: {machine}.", "", *table(rows)]) + "\n"
    record = {"about": about, "machine": machine, "rows": rows}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{name}.json") as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    with replacing(folder / f"{name}.md") as part:
        part.write_text(text)
    return text


def table(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "| " + " | ".join(rows[0]) + " |",
        "|" + "---|" * len(rows[0]),
        *("| " + " | ".join(cell(x) for x in row.values()) + " |" for row in rows),
    ]


def cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def processor() -> str:
    """As Linux names it, where there is Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
