"""The table of the comparison."""

from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from examples.common.files import write_json, write_text
from examples.common.tables import markdown_table

COLUMNS = {
    "psnr_db": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "flicker": ("flicker", ".2f"),
    "attention_cpu_s": ("attention CPU s", ".2f"),
    "attention_mb": ("MB", ".0f"),
    "dense_matrix_mb": ("dense matrix of a head, MB", ".0f"),
}

Row = dict[str, Any]


def write_results(out: Path, about: dict[str, Any], rows: list[Row]) -> str:
    """Write table.json with every row and table.md with means; return the Markdown."""
    text = markdown(about, rows)
    write_json(out / "table.json", {"about": about, "rows": rows})
    write_text(out / "table.md", text)
    return text


def markdown(about: dict[str, Any], rows: list[Row]) -> str:
    lines = ["Filling held-out clips; all figures are of the holes, flicker in parts of 255.", ""]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    for (frames, side, camera), some in groups(rows, "frames", "side", "camera"):
        clips = ", ".join(sorted({row["clip"] for row in some}))
        lines += ["", f"{frames} frames of {side}x{side}, {camera} camera ({clips})", ""]
        lines.append(table(some))
    return "\n".join(lines) + "\n"


def table(rows: list[Row]) -> str:
    heads = ["method", *(head for head, _ in COLUMNS.values())]
    lines = [
        [way, *(cell(some, key) for key in COLUMNS)] for (way,), some in groups(rows, "method")
    ]
    return markdown_table(heads, lines)


def cell(rows: list[Row], key: str) -> str:
    values = [row[key] for row in rows if key in row]
    return format(mean(values), COLUMNS[key][1]) if values else ""


def groups(rows: list[Row], *keys: str) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Group rows that agree in the keys, in the order of their first."""
    pick: Callable[[Row], tuple[Any, ...]] = lambda row: tuple(row[key] for key in keys)  # noqa: E731
    found = dict.fromkeys(pick(row) for row in rows)
    return [(key, [row for row in rows if pick(row) == key]) for key in found]
