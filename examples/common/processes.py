"""Training in several processes, as `torchrun` starts them."""

import os

import torch
from torch import Tensor, nn


def start_processes(device: str) -> tuple[int, int]:
    """Return the rank of this process and how many there are, as `torchrun` says."""
    if "RANK" not in os.environ:
        return 0, 1
    backend = "nccl" if "cuda" in device else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(backend)
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def average_gradients(module: nn.Module) -> None:
    for p in module.parameters():
        if p.grad is not None:
            average(p.grad)


def average(x: Tensor) -> Tensor:
    """Average over all processes, in place; where there is one, nothing happens."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
        x /= torch.distributed.get_world_size()
    return x
