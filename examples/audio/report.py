"""Result tables: Markdown to read, JSON to compute with."""

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from examples.common.files import replacing


def write(folder: Path, name: str, about: list[str], rows: list[dict[str, Any]]) -> str:
    """NAME.md and NAME.json, each written whole; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join([*about, f"Machine: {machine()}.", table(rows)]) + "\n"
    content = {"about": about, "machine": machine(), "rows": rows}
    with replacing(folder / f"{name}.md") as part:
        part.write_text(text)
    with replacing(folder / f"{name}.json") as part:
        part.write_text(json.dumps(content, indent=1) + "\n")
    return text


def quote(page: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Put a table between the marks <!-- NAME --> and <!-- /NAME --> of a page."""
    block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text = block.sub(lambda marks: f"{marks[1]}{table(rows)}\n{marks[2]}", page.read_text())
    with replacing(page) as part:
        part.write_text(text)


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " / ".join(cell(x) for x in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def machine() -> str:
    name = platform.processor() or platform.machine()
    for line in processor_lines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def processor_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
