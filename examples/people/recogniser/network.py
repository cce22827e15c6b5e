"""The network: five stages of two convolutions, with a head for key points and one for people."""

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.untrusted import load_module, read_tensors
from examples.people.keypoints import NAMES

WIDTHS = (16, 32, 64, 64, 64)  # of the stages; stage i has 1 / 2^i of the picture's side
EMBEDDING = 64
SHIPPED = Path(__file__).parent / "weights"


class Recogniser(nn.Module):
    """Features of pictures in -1 to 1, whose sides 16 divides."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stage(i, o) for i, o in pairwise((3, *WIDTHS)))
        self.to_maps = nn.ModuleList(nn.Conv2d(width, len(NAMES), 1) for width in WIDTHS)
        self.to_person = nn.Linear(WIDTHS[-1], EMBEDDING)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c k l"]]:
        """Return the features of every stage, the finest first."""
        found: list[Tensor] = []
        for i, layers in enumerate(self.stages):
            found.append(layers(F.avg_pool2d(found[-1], 2) if i else image))
        return found

    def maps(self, features: list[Float[Tensor, "b c k l"]]) -> Float[Tensor, "b 18 h w"]:
        """Return the logit of each key point for each pixel."""
        size = features[0].shape[2:]
        return torch.stack(
            [
                F.interpolate(convolve(x), size, mode="bilinear", align_corners=False)
                for convolve, x in zip(self.to_maps, features, strict=True)
            ]
        ).sum(dim=0)

    def points(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 18 2"]:
        """Find x and y of every key point, in pixels: the mean place under the softmax."""
        _, _, h, w = image.shape
        share = self.maps(self(image)).flatten(2).softmax(dim=2).unflatten(2, (h, w))
        x = share.sum(dim=2) @ torch.arange(w, dtype=share.dtype)
        y = share.sum(dim=3) @ torch.arange(h, dtype=share.dtype)
        return torch.stack([x, y], dim=2)

    def person(self, features: list[Float[Tensor, "b c k l"]]) -> Float[Tensor, "b 64"]:
        """Return a vector of length 1, alike for pictures of one person."""
        return F.normalize(self.to_person(features[-1].mean(dim=(2, 3))))

    def gist(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 64"]:
        """Average the features of the last stage over the picture, for Frechet distances."""
        return self(image)[-1].mean(dim=(2, 3))


def stage(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels_out, channels_out, 3, padding=1),
        nn.ReLU(),
    )


def shipped(name: str) -> Recogniser:
    """Load one that comes with the example, "loss" or "judge", frozen.

    Raises:
        BadInput: There is none of that name.
    """
    return load(SHIPPED / f"{name}.safetensors")


def load(path: Path) -> Recogniser:
    """Load the weights of a file, in whatever precision, frozen.

    Raises:
        BadInput: The file is missing, damaged or of another network.
    """
    network = Recogniser()
    load_module(network, {name: x.float() for name, x in read_tensors(path).items()}, path)
    return network.eval().requires_grad_(False)
