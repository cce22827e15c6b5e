"""The result of a comparison as a file: JSON, and a table to read."""

from pathlib import Path
from typing import Any

from examples.common.files import write_json, write_text
from examples.common.tables import machine, markdown_table


def write(folder: Path, name: str, about: str, rows: list[dict[str, Any]]) -> str:
    """Write NAME.json and NAME.md, and return the text of the latter."""
    table = markdown_table(list(rows[0]), [[cell(x) for x in row.values()] for row in rows])
    text = "\n\n".join([about, f"Machine: {machine()}.", table]) + "\n"
    record = {"about": about, "machine": machine(), "rows": rows}
    write_json(folder / f"{name}.json", record)
    write_text(folder / f"{name}.md", text)
    return text


def cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
