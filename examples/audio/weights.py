"""Trained networks: from a run of one's own, or those that come with the example."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from examples.audio.model import Restorer
from examples.common import checkpoints
from examples.common.files import replacing

SHIPPED = Path(__file__).parent / "weights"


def run_name(operator: str, causal: bool) -> str:
    """The folder of a run inside the folder of runs."""
    return f"{operator}-causal" if causal else operator


def trained(operator: str, causal: bool, runs: Path) -> Restorer:
    """The network of a finished run; where there is none, the one that comes with the example.

    Raises:
        ValueError: There is neither.
    """
    name = run_name(operator, causal)
    found, shipped = checkpoints.latest(runs / name), SHIPPED / f"{name}.safetensors"
    net = Restorer(causal=causal)
    if found is not None and found.step < found.facts["steps"]:
        print(f"{runs / name} has taken {found.step} of {found.facts['steps']} steps: not used")
        found = None
    if found is not None:
        own = {k: x for k, x in found.tensors.items() if k.startswith("net/")}
        checkpoints.restore({"net": net}, own)
    elif shipped.is_file():
        net.load_state_dict({k: x.float() for k, x in load_file(shipped).items()})
    else:
        raise ValueError(f"no network for {name}: train it, with its run in {runs / name}")
    return net.eval()


def ship(operator: str, causal: bool, runs: Path) -> Path:
    """Put a run's network among those that come with the example, in 16 bits."""
    net = trained(operator, causal, runs)
    SHIPPED.mkdir(exist_ok=True)
    path = SHIPPED / f"{run_name(operator, causal)}.safetensors"
    with replacing(path) as part:
        save_file({k: x.to(torch.float16).contiguous() for k, x in net.state_dict().items()}, part)
    return path
