"""Checkpoints: tensors as safetensors, the rest as JSON beside them, and nothing half-written.

A checkpoint counts once its JSON is there, which is written last and holds the hash of the tensors.
A damaged one is noticed, and the newest whole one is used.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.common.files import check_folder, write_json, write_tensors
from examples.common.untrusted import BadInput, fields, read_json, read_tensors

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
    """Write one checkpoint; remove those of later steps, and of earlier ones all but the newest.

    One of a later step is damaged, or else this run would have begun there.

    Args:
        keep: How many stay, this one among them.
    """
    path = folder / f"step-{step:08d}.safetensors"
    write_tensors(path, tensors)
    record = {"step": step, "sha256": digest(path), "facts": facts}
    write_json(path.with_suffix(".json"), record)
    later = [old for old in records(folder) if step_of(old) > step]
    for old in later + records(folder)[len(later) + keep :]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)


def export(runs: Sequence[Path], out: Path, parts: tuple[str, ...]) -> int:
    """Write some parts of a run's newest checkpoint in half precision, and return the bytes.

    Of several runs of one network the mean is written, with the step and the facts of the first,
    to which `mean_of` adds how many they were.

    Raises:
        BadInput: A run has no whole checkpoint, is `out` itself, or is of another network than the
            first; or there is none.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models".
    """
    check_folder(out)
    if not runs:
        raise BadInput("no run to export; name at least one")
    for run in runs:
        if out.resolve() == run.resolve():
            raise BadInput(f"{out} is the run itself; name another folder")
    found = [_newest(run) for run in runs]
    tensors = [_parts_of(checkpoint, parts) for checkpoint in found]
    for run, own in zip(runs, tensors):
        if _shapes(own) != _shapes(tensors[0]):
            raise BadInput(f"{run} is of another network than {runs[0]}")
    small = {name: _mean([own[name] for own in tensors]) for name in tensors[0]}
    facts = found[0].facts if len(runs) == 1 else found[0].facts | {"mean_of": len(runs)}
    save(out, found[0].step, small, facts, keep=1)
    return records(out)[0].with_suffix(".safetensors").stat().st_size


def _newest(run: Path) -> Checkpoint:
    found = latest(run)
    if found is None:
        raise BadInput(f"{run} holds no checkpoint")
    return found


def _parts_of(found: Checkpoint, parts: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: x for name, x in found.tensors.items() if name.partition("/")[0] in parts}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in tensors.items()}


def _mean(same: list[Tensor]) -> Tensor:
    """Average a tensor of several checkpoints, to half precision; of integers, take the first."""
    if not same[0].is_floating_point():
        return same[0]
    return torch.stack(same).mean(dim=0).half()


def latest(folder: Path) -> Checkpoint | None:
    """Load the newest whole checkpoint; return None where there are no checkpoints at all.

    Raises:
        BadInput: There are some, and all are damaged.
    """
    damaged: list[str] = []
    for record in records(folder):
        try:
            found = load(record)
        except BadInput:
            damaged.append(record.stem)
            continue
        if damaged:
            print(f"{', '.join(damaged)} in {folder} damaged: using {record.stem}")
        return found
    if damaged:
        raise BadInput(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}); "
            "name another folder, or delete them to begin at step 0"
        )
    return None


def load(record: Path) -> Checkpoint:
    """Load one checkpoint, given its JSON file.

    Raises:
        BadInput: There is none, it is damaged, or half of it is missing.
    """
    if not record.is_file():
        raise BadInput(f"there is no checkpoint {record}")
    path = record.with_suffix(".safetensors")
    try:
        found = fields(read_json(record), {"step": int, "sha256": str, "facts": dict}, str(record))
        tensors = read_tensors(path)
        if found["step"] < 0 or digest(path) != found["sha256"]:
            raise BadInput(f"{path} is not the file that {record.name} was written for")
    except BadInput as error:
        raise BadInput(
            f"the checkpoint {record.stem} in {record.parent} is damaged: {error}"
        ) from error
    return Checkpoint(found["step"], tensors, found["facts"])


def tensors_file(path: Path) -> Path:
    """Name the tensors of one checkpoint, given its JSON file, or of a folder's newest one.

    Raises:
        BadInput: There is none.
    """
    record = path if path.suffix == ".json" else next(iter(records(path)), path)
    if not record.is_file():
        raise BadInput(f"{path} holds no checkpoint")
    return record.with_suffix(".safetensors")


def records(folder: Path) -> list[Path]:
    """List the JSON files of all checkpoints, the newest first."""
    named = [x for x in folder.glob("step-*.json") if re.fullmatch(r"step-\d{8,}", x.stem)]
    return sorted(named, key=step_of, reverse=True)


def step_of(record: Path) -> int:
    return int(record.stem.removeprefix("step-"))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_of(parts: dict[str, Part]) -> dict[str, Tensor]:
    """Flatten the state: "part/name" of a module, "part/index/name" of an optimizer."""
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
    """Put saved tensors back; the options of an optimizer stay those of the program.

    Raises:
        BadInput: A tensor has another shape or is missing: it was saved by another network.
    """
    for part_name, part in parts.items():
        own = {name: x for name, x in tensors.items() if name.startswith(f"{part_name}/")}
        own = {name.removeprefix(f"{part_name}/"): x for name, x in own.items()}
        if isinstance(part, torch.nn.Module):
            restore_module(part_name, part, own)
        else:
            restore_optimizer(part_name, part, own)


def restore_module(name: str, module: torch.nn.Module, saved: dict[str, Tensor]) -> None:
    shapes = {key: x.shape for key, x in module.state_dict().items()}
    if {key: x.shape for key, x in saved.items()} != shapes:
        raise _of_another_network(name)
    module.load_state_dict(saved)


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]
) -> None:
    """Restore the state of each parameter: scalars, and tensors of its shape."""
    groups = optimizer.state_dict()["param_groups"]
    learnt = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = dict(zip([i for group in groups for i in group["params"]], (p.shape for p in learnt)))
    state: dict[int, dict[str, Tensor]] = {}
    for key, x in saved.items():
        index, _, entry = key.partition("/")
        if not index.isdecimal() or x.shape not in ((), shapes.get(int(index))):
            raise _of_another_network(name)
        state.setdefault(int(index), {})[entry] = x
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _of_another_network(name: str) -> BadInput:
    return BadInput(f"the checkpoint was made with another network or options ({name})")
