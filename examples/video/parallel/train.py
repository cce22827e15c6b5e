"""Train on a long video over many processes: its sites are shared out, and the weights with FSDP2.

    torchrun --nproc-per-node 4 -m examples.video.parallel.train

Every process draws, holds and attends from its own sites alone, and fetches the blocks that its
cells select. With GPUs the processes talk over NCCL, else over gloo. The same command continues a
run that was stopped; so does one with another number of processes, whose sums round otherwise.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
import tyro
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm

import ndgpa
from examples.common.files import write_json
from examples.common.untrusted import BadInput, read_json
from examples.video.parallel.data import Film
from examples.video.parallel.model import Net
from ndgpa.distributed import ContextParallel, CountBytes, Hilbert, Part, shard


@dataclass(frozen=True)
class Options:
    """What is trained, and how long."""

    frames: int = 64
    side: int = 32
    kappa: int = 8
    steps: int = 100
    rate: float = 3e-3
    save_every: int = 25
    """Steps between checkpoints."""
    out: Path = Path("runs/video_parallel")


def train(options: Options) -> list[float]:
    """Take the steps that are missing; return the errors of all steps taken now.

    The process group must be there already.
    """
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),), mesh_dim_names=("context",))
    shape = (options.frames, options.side, options.side)
    part = shard(ndgpa.Video(shape, (1, 4, 4), (2, 2, 2)), mesh, Hilbert()).to(device)
    film, net = Film(shape), _net(options, mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.rate)
    first = _resume(options, net, optimizer)
    errors = []
    for step in tqdm(range(first, options.steps), disable=dist.get_rank() > 0):
        errors.append(_step(net, optimizer, film, part, step))
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            _save(options, net, optimizer, step + 1)
    return errors


def _net(options: Options, mesh: DeviceMesh) -> Net:
    """The same weights on every process, then shared out."""
    torch.manual_seed(0)
    net = Net(ContextParallel(ndgpa.GPA(options.kappa))).to(mesh.device_type)
    for layer in net.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def _step(net: Net, optimizer: torch.optim.Optimizer, film: Film, part: Part, step: int) -> float:
    """One step; returns the mean squared error of the hidden pixels of all processes."""
    features, colours, hidden = (x.to(part.device) for x in film.at(part.sites.cpu(), step))
    out = net(features[None], part)[0]
    wrong = (out - colours).square().mean(dim=1)[hidden].sum()
    total = torch.stack([wrong.detach(), hidden.sum().to(wrong)])
    dist.all_reduce(total)
    # FSDP takes the mean over processes; this makes it the mean over all hidden pixels.
    (wrong * dist.get_world_size() / total[1]).backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(total[0] / total[1])


# Checkpoints: each in a folder of its own, which counts once newest.json names it


def _save(options: Options, net: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    model, state = get_state_dict(net, optimizer)
    folder = options.out / f"step-{step:06d}"
    checkpoints.save({"model": model, "optimizer": state}, checkpoint_id=folder)
    dist.barrier()
    if dist.get_rank() == 0:
        write_json(options.out / "newest.json", {"step": step, "facts": _facts(options)})
        for old in set(options.out.glob("step-*")) - {folder}:
            shutil.rmtree(old)
    dist.barrier()


def _resume(options: Options, net: Net, optimizer: torch.optim.Optimizer) -> int:
    newest = options.out / "newest.json"
    if not newest.exists():
        return 0
    found = read_json(newest)
    if found["facts"] != _facts(options):
        raise BadInput(f"{options.out} holds a run with other options: {found['facts']}")
    model, state = get_state_dict(net, optimizer)
    whole: dict[str, Any] = {"model": model, "optimizer": state}
    checkpoints.load(whole, checkpoint_id=options.out / f"step-{found['step']:06d}")
    set_state_dict(
        net, optimizer, model_state_dict=whole["model"], optim_state_dict=whole["optimizer"]
    )
    return found["step"]


def _facts(options: Options) -> dict[str, Any]:
    return {k: v for k, v in asdict(options).items() if k not in ("out", "steps", "save_every")}


def main(options: Options) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend)
    try:
        with CountBytes() as sent:
            errors = train(options)
        if errors and dist.get_rank() == 0:
            print(f"error {errors[0]:.4f} -> {errors[-1]:.4f}; a step of rank 0:")
            print(f"{sent.total // len(errors):,} bytes sent by attention, both ways")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(tyro.cli(Options))
