"""Trained networks: those that come with the example, or from a run of one's own."""

from pathlib import Path

import torch

from examples.audio.model import Restorer
from examples.common import checkpoints
from examples.common.attention import folder_name
from examples.common.files import write_tensors
from examples.common.untrusted import BadInput, load_module, read_tensors

SHIPPED = Path(__file__).parent / "weights"


def run_name(operator: str, causal: bool) -> str:
    """Name the folder of a run inside the folder of runs."""
    return folder_name(operator) + ("-causal" if causal else "")


def shipped(operator: str, causal: bool) -> Restorer:
    """Load the network that comes with the example.

    Raises:
        BadInput: None comes with it for this attention.
    """
    name = run_name(operator, causal)
    path = SHIPPED / f"{name}.safetensors"
    if not path.is_file():
        raise BadInput(
            f"no network for {name} comes with the example: train one and name its folder by --runs"
        )
    net = Restorer(causal=causal)
    load_module(net, {k: x.float() for k, x in read_tensors(path).items()}, path)
    return net.eval()


def of_run(operator: str, causal: bool, runs: Path) -> Restorer | None:
    """Load the network of a finished run; return None where there is no run.

    Raises:
        BadInput: The run is damaged, of another network, or not finished.
    """
    folder = runs / run_name(operator, causal)
    found = checkpoints.latest(folder)
    if found is None:
        return None
    if found.step < found.facts.get("steps", found.step):
        raise BadInput(
            f"{folder} has taken {found.step} of {found.facts['steps']} steps: "
            "finish its training first"
        )
    net = Restorer(causal=causal)
    own = {k: x for k, x in found.tensors.items() if k.startswith("net/")}
    checkpoints.restore({"net": net}, own)
    return net.eval()


def trained(operator: str, causal: bool, runs: Path | None) -> Restorer:
    """Load the network of the run in `runs`, if that is given and holds one, or the shipped one.

    Which it is, is printed.

    Raises:
        BadInput: There is neither, or the run cannot be used.
    """
    name = run_name(operator, causal)
    net = None if runs is None else of_run(operator, causal, runs)
    if net is None:
        net = shipped(operator, causal)
        print(f"network: {name}, as shipped" + (f"; {runs} has no run of it" if runs else ""))
    else:
        print(f"network: {runs / name}")
    return net


def ship(operator: str, causal: bool, runs: Path) -> Path:
    """Put a run's network among those that come with the example, in 16 bits."""
    net = trained(operator, causal, runs)
    path = SHIPPED / f"{run_name(operator, causal)}.safetensors"
    write_tensors(path, {k: x.to(torch.float16) for k, x in net.state_dict().items()})
    return path
