"""Rows of a run that may be cut off: each is on the disk before the next begins.

One JSON a line: what began, and its row when it ended. A run goes on where the last one stopped.
What began twice and never ended (it hung, or took the process with it) is not tried a third time.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

ATTEMPTS = 2
Key = tuple[str, ...]


class RowFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """Those that ended, in the order in which they did, and a note for each given up."""
        given_up = [
            {"key": list(key), "note": "did not end"}
            for key, began in self._began().items()
            if began >= ATTEMPTS and key not in self._ended()
        ]
        return [*self._ended().values(), *given_up]

    def wants(self, key: Key) -> bool:
        return key not in self._ended() and self._began()[key] < ATTEMPTS

    def begin(self, key: Key) -> None:
        self._append({"key": key, "began": True})

    def end(self, key: Key, row: dict[str, Any]) -> None:
        self._append({"key": key, **row})

    def _ended(self) -> dict[Key, dict[str, Any]]:
        return {tuple(line["key"]): line for line in self._lines() if "began" not in line}

    def _began(self) -> Counter[Key]:
        return Counter(tuple(line["key"]) for line in self._lines() if "began" in line)

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [found for text in self.path.read_text().splitlines() if (found := _parsed(text))]

    def _append(self, line: dict[str, Any]) -> None:
        """Behind a line that was cut off begins a new one."""
        with self.path.open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            cut_off = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * cut_off + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # cut off
        return None
