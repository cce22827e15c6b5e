"""Checkpoints: tensors as safetensors, the rest as JSON beside them, and nothing half-written.

A checkpoint counts once its JSON stands there, which is written last and holds the hash of the
tensors: whatever was cut off or damaged is seen, and the one before it is used.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.training.files import replacing

Part = torch.nn.Module | torch.optim.Optimizer


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` steps."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int = 2
) -> None:
    """Write one checkpoint, then remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.safetensors"
    with replacing(path) as part:
        save_file({name: x.detach().contiguous() for name, x in tensors.items()}, part)
    record = {"step": step, "sha256": digest(path), "facts": facts}
    with replacing(path.with_suffix(".json")) as part:
        part.write_text(json.dumps(record, indent=1))
    for old in records(folder)[keep:]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; of each damaged one a line says so."""
    for record in records(folder):
        try:
            return load(record)
        except ValueError as error:
            print(f"{error}: using the one before it")
    return None


def load(record: Path) -> Checkpoint:
    """One checkpoint, given its JSON file.

    Raises:
        ValueError: There is none, it is damaged, or half of it is missing.
    """
    if not record.is_file():
        raise ValueError(f"there is no checkpoint {record}")
    path = record.with_suffix(".safetensors")
    try:
        said = json.loads(record.read_text())
        whole = digest(path) == said["sha256"]
    except (OSError, ValueError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"the checkpoint {record.stem} in {record.parent} is damaged")
    return Checkpoint(said["step"], load_file(path), said["facts"])


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"), reverse=True)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_of(parts: dict[str, Part]) -> dict[str, Tensor]:
    """The state, flat: "part/name" of a module, "part/index/name" of an optimiser."""
    flat = {}
    for part_name, part in parts.items():
        state = part.state_dict()
        if isinstance(part, torch.nn.Module):
            flat |= {f"{part_name}/{name}": x for name, x in state.items()}
            continue
        for index, entry in state["state"].items():
            flat |= {f"{part_name}/{index}/{name}": x for name, x in entry.items()}
    return flat


def restore(parts: dict[str, Part], tensors: dict[str, Tensor]) -> None:
    """Put saved tensors back; the options of an optimiser stay those of the program.

    Raises:
        ValueError: A tensor has another shape or is missing: it was saved by another network.
    """
    for part_name, part in parts.items():
        own = {name: x for name, x in tensors.items() if name.startswith(f"{part_name}/")}
        own = {name.removeprefix(f"{part_name}/"): x for name, x in own.items()}
        if isinstance(part, torch.nn.Module):
            restore_module(part_name, part, own)
        else:
            restore_optimizer(part, own)


def restore_module(name: str, module: torch.nn.Module, saved: dict[str, Tensor]) -> None:
    shapes = {key: x.shape for key, x in module.state_dict().items()}
    if {key: x.shape for key, x in saved.items()} != shapes:
        raise ValueError(f"the checkpoint was made with another network or options ({name})")
    module.load_state_dict(saved)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, x in saved.items():
        index, entry = key.split("/")
        state.setdefault(int(index), {})[entry] = x
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
