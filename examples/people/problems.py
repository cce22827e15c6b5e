"""What is wrong with a file, and where."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from examples.common.untrusted import check_file

TABLE_BYTES = 2**28
log = logging.getLogger(__name__)
Record = TypeVar("Record")


@dataclass(frozen=True)
class Problem:
    """One fault: a file, the line of it, counted from 1 (None for the whole file), a sentence."""

    path: Path
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.line is None else f':{self.line}'}: {self.what}"


def counted(count: int, noun: str) -> str:
    """Write a count and its noun, as in "1 picture" and "2 pictures"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def log_opened(root: Path, contents: str, problems: int) -> None:
    """Log what a folder holds, as a warning if something was left out."""
    level = logging.WARNING if problems else logging.INFO
    log.log(level, "%s: %s, %s", root, contents, counted(problems, "problem"))


def parse_lines(
    path: Path, lines: Iterable[tuple[int, str]], parse: Callable[[str], Record]
) -> tuple[dict[int, Record], list[Problem]]:
    """Parse numbered lines; a line that `parse` refuses with ValueError is reported."""
    records, problems = {}, []
    for number, line in lines:
        try:
            records[number] = parse(line)
        except ValueError as error:
            problems.append(Problem(path, number, str(error)))
    return records, problems


def read_table(
    path: Path, separator: str, columns: tuple[str, ...]
) -> tuple[list[str], list[tuple[int, str]]]:
    """Read the columns of the header and the numbered lines below it, without blank ones.

    Raises:
        ValueError: The file cannot be read, or the header has other columns or another separator.
    """
    if not path.is_file():
        raise ValueError("is missing")
    check_file(path, TABLE_BYTES)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot be read as text: {error}") from error
    header = [name.strip() for name in lines[0].split(separator)] if lines else []
    if sorted(header) != sorted(columns):
        first, wanted = lines[0] if lines else "", separator.join(columns)
        raise ValueError(f"the first line is {first!r}; expected {wanted}")
    return header, [(i, line) for i, line in enumerate(lines[1:], start=2) if line.strip()]
