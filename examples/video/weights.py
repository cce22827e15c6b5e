"""The trained networks that come with the example."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from examples.video.model import FillNet

FOLDER = Path(__file__).parent / "weights"
SHIPPED = FOLDER / "gpa.safetensors"


def load_net(path: Path) -> FillNet:
    """The network of a file that `train.py` wrote.

    Raises:
        ValueError: There is no such file, it is damaged, or it is of another network.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; `python -m examples.video.train` makes one")
    net = FillNet()
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        net.load_state_dict(tensors)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold a network of this program") from error
    return net.eval()


def facts_of(path: Path) -> dict[str, str]:
    """What the training took: steps, cpu_s, and the size of its clips."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
