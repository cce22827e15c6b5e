"""The trained networks that come with the example."""

from pathlib import Path

from examples.common.attention import folder_name
from examples.common.untrusted import BadInput, load_module, read_metadata, read_tensors
from examples.video.model import FillNet

FOLDER = Path(__file__).parent / "weights"
SHIPPED = FOLDER / "gpa.safetensors"


def weights_of(folder: Path, attention: str) -> Path:
    """Name the file of the network that was trained with an attention."""
    return folder / f"{folder_name(attention)}.safetensors"


def load_net(path: Path) -> FillNet:
    """Load the network of a file that `train.py` wrote.

    Raises:
        BadInput: There is no such file, it is damaged, or it is of another network.
    """
    if not path.exists():
        raise BadInput(f"{path} is not a file; `python -m examples.video.train` makes one")
    net = FillNet()
    load_module(net, read_tensors(path), path)
    return net.eval()


def facts_of(path: Path) -> dict[str, str]:
    """Read what the training took: steps, cpu_s, and the size of its clips."""
    return read_metadata(path)
