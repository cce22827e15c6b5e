"""Writing files so that a killed run, a full disk or Ctrl-C leaves no half of one."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from examples.common.untrusted import BadInput

written: ContextVar[list[Path] | None] = ContextVar("written", default=None)
"""The files that the running command has finished, for what it says when it is stopped."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, which takes its place once it is written."""
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    finished = written.get()
    if finished is not None and path not in finished:
        finished.append(path)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: It cannot be written, as on a full disk.
    """
    tensors = {name: x.detach().contiguous() for name, x in tensors.items()}
    try:
        with replacing(path) as part:
            save_file(tensors, part, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def check_output(path: Path) -> None:
    """Refuse, before any work, a name that cannot become a file."""
    if path.is_dir():
        raise BadInput(f"{path} is a folder, not a file that can be written")
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is not a regular file and is not replaced")
    check_folder(path.parent)


def check_not_input(path: Path, given: Path | None) -> None:
    """Refuse to write to the very file that is read, under whatever name."""
    if given and given.exists() and path.exists() and path.samefile(given):
        raise BadInput(f"{path} is the file that is read, which is never overwritten")


def check_folder(folder: Path) -> None:
    """Refuse, before any work, a folder that cannot be made or written into; nothing is left."""
    there = next(some for some in (folder, *folder.absolute().parents) if some.exists())
    if not there.is_dir():
        raise BadInput(f"{there} is a file, not a folder that can be written into")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise BadInput(f"{there} cannot be written into: {error.strerror}") from error
