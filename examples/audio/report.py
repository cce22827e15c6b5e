"""Result tables: Markdown to read, JSON to compute with."""

from pathlib import Path
from typing import Any

from examples.common.files import write_json, write_text
from examples.common.tables import machine, markdown_table


def write(folder: Path, name: str, about: list[str], rows: list[dict[str, Any]]) -> str:
    """Write NAME.md and NAME.json, and return the text of the former."""
    text = "\n\n".join([*about, f"Machine: {machine()}.", table(rows)]) + "\n"
    write_text(folder / f"{name}.md", text)
    write_json(folder / f"{name}.json", {"about": about, "machine": machine(), "rows": rows})
    return text


def table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return markdown_table(columns, [[cell(row.get(name)) for name in columns] for row in rows])


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " / ".join(cell(x) for x in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)
