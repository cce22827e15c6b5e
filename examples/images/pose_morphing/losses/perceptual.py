"""Distance in the features of a VGG-16, with weights of one's own or seeded random ones."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: halve
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Perceptual(nn.Module):
    """Mean absolute difference of unit-length features at the end of each of the five stages.

    Source: Zhang et al. 2018 without their learnt weights, which the paper does not mention; each
    stage counts the same. With random weights (a fixed seed) it still compares local structure at
    five scales, but it has learnt nothing about pictures.

    Args:
        weights: A state dict of torchvision's `vgg16`, as saved by `torch.save`; None draws random
            weights.
        stages: How many of the five stages are used; fewer are faster.

    Raises:
        ValueError: The file cannot be read or holds another network.
    """

    def __init__(self, weights: Path | None = None, stages: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers())
        self.stages = stages
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for layer in self.features:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
        if weights is not None:
            self.load(weights)
        self.requires_grad_(False)
        for name, numbers in (("mean", MEAN), ("deviation", DEVIATION)):
            x = torch.tensor(numbers)[:, None, None]
            self.register_buffer(name, x, persistent=False)

    def load(self, path: Path) -> None:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            saved = {k: x for k, x in saved.items() if k.startswith("features.")}
            self.load_state_dict(saved)
        except Exception as error:
            raise ValueError(f"{path} does not hold torchvision's vgg16 weights") from error

    def forward(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        """The distance of pictures in -1 to 1."""
        return self.each(image, truth).mean()

    def each(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """The distance of each picture from its truth."""
        pairs = zip(self.stage_features(image), self.stage_features(truth), strict=True)
        terms = [(F.normalize(a) - F.normalize(b)).abs().sum(1).mean((1, 2)) for a, b in pairs]
        return torch.stack(terms).mean(0)

    def stage_features(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c k l"]]:
        x = ((image + 1) / 2 - self.mean) / self.deviation
        stages = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(x)
                if len(stages) == self.stages:
                    return stages
            x = layer(x)
        return [*stages, x]


def layers() -> list[nn.Module]:
    """In the order that torchvision numbers them."""
    made: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        if width == 0:
            made.append(nn.MaxPool2d(2))
            continue
        made += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return made
