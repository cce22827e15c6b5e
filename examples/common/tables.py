"""Tables in Markdown, and the machine that their figures were measured on."""

import os
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from examples.common.files import write_text


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quote(page: Path, name: str, table: str) -> None:
    """Put a table between the marks <!-- NAME --> and <!-- /NAME --> of a page."""
    block = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    write_text(page, block.sub(lambda marks: f"{marks[1]}{table}\n{marks[2]}", page.read_text()))


def machine() -> str:
    """Name the processor, its cores, and the versions of what ran on it."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def processor() -> str:
    """Name the processor as Linux knows it; elsewhere, its kind."""
    about = Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
