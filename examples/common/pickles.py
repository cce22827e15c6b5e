"""Weights that others saved with `torch.save`, read without running what is pickled in them."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from examples.common.untrusted import BadInput, check_file, of_kind, sentence

WEIGHT_BYTES = 2**31


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """Read a file of finite tensors.

    Args:
        path: The file.
        what: What it should hold, for the error.

    Raises:
        BadInput: It is something else or too large.
    """
    check_file(path, WEIGHT_BYTES)
    try:
        if zipfile.is_zipfile(path) and unpacked_bytes(path) > WEIGHT_BYTES:
            raise BadInput(f"it unpacks to more than {WEIGHT_BYTES} bytes")
        saved = of_kind(torch.load(path, map_location="cpu", weights_only=True), dict, "it")
        tensors = {name: of_kind(x, Tensor, str(name)) for name, x in saved.items()}
    except Exception as error:  # on hostile bytes a decoder may raise anything
        raise BadInput(f"{path} does not hold {what}: {sentence(error)}") from error
    for name, x in tensors.items():
        if not bool(x.isfinite().all()):
            raise BadInput(f"{path} holds numbers that are not finite ({name})")
    return tensors


def unpacked_bytes(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())
