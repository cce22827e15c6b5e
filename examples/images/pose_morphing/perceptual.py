"""The perceptual distance: how far two pictures lie apart in the features of a network."""

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.pickles import read_weights
from examples.common.untrusted import BadInput
from examples.people import recogniser

VGG_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: halve
VGG_MEAN, VGG_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = 5


class Features(Protocol):
    """A network whose features are compared."""

    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c k l"]]:
        """Return the features of every stage, the finest first, of pictures in -1 to 1."""


class Perceptual(nn.Module):
    """Compare two pictures, and their features at every stage.

    Without heads: the mean absolute difference of the pictures and of every stage, each as a share
    of how far the truth is from its own mean, so that all count the same and 1 is as far as one
    colour everywhere. The picture itself is one of the terms, for features forget: what they are
    blind to would be painted in any colour. Source: Chen and Koltun 2017, equation 2.

    With heads it is LPIPS: squared differences of features of unit length, weighted by a learnt
    head a stage, added over the stages. Source: Zhang et al. 2018.

    Args:
        features: The network.
        heads: A non-negative weight for each channel of each stage.
    """

    def __init__(self, features: Features, heads: list[Tensor] | None = None) -> None:
        super().__init__()
        self.features, self.heads = features, heads

    def forward(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        """Measure the distance of pictures in -1 to 1."""
        return self.each(image, truth).mean()

    def each(
        self, image: Float[Tensor, "b 3 h w"], truth: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Measure the distance of each picture from its truth."""
        pairs = list(zip(self.features(image), self.features(truth), strict=True))
        if self.heads is None:
            return torch.stack([share_of_spread(a, b) for a, b in [(image, truth), *pairs]]).mean(0)
        squares = [(F.normalize(a) - F.normalize(b)).square() for a, b in pairs]
        weighed = zip(self.heads, squares, strict=True)
        terms = [torch.einsum("c,bchw->bhw", w.to(x), x).mean((1, 2)) for w, x in weighed]
        return torch.stack(terms).sum(0)


def share_of_spread(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]
) -> Float[Tensor, " b"]:
    """Compare by absolute difference, over how far each of `b` is from its own mean."""
    spread = (b - b.mean(dim=(2, 3), keepdim=True)).abs().mean(dim=(1, 2, 3)).detach()
    return (a - b).abs().mean(dim=(1, 2, 3)) / spread.clamp(min=1e-6)


def perceptual_of(vgg: Path | None, lpips: Path | None = None) -> Perceptual:
    """Build the distance of the training loss.

    Args:
        vgg: torchvision's `vgg16` weights; None takes the recogniser of figures that comes along.
        lpips: The heads of LPIPS for VGG-16, as its authors save them; None counts all alike.

    Raises:
        ValueError: A file cannot be read or holds another network, or heads come without `vgg`.
    """
    if vgg is None and lpips is not None:
        raise ValueError("the heads of LPIPS belong to VGG-16: give its weights too")
    if vgg is None:
        return Perceptual(recogniser.shipped("loss"))
    return Perceptual(VGG(vgg), read_heads(lpips) if lpips else None)


def read_heads(path: Path) -> list[Tensor]:
    """Read the heads of LPIPS.

    Raises:
        ValueError: The file cannot be read or holds something else.
    """
    saved = read_weights(path, "LPIPS heads")
    names = [f"lin{i}.model.1.weight" for i in range(STAGES)]
    widths = [64, 128, 256, 512, 512]
    shapes = [tuple(saved[name].shape) if name in saved else None for name in names]
    if shapes != [(1, width, 1, 1) for width in widths]:
        raise BadInput(f"{path} does not hold the heads of LPIPS for VGG-16")
    return [rearrange(saved[name], "1 c 1 1 -> c").float() for name in names]


class VGG(nn.Module):
    """VGG-16, up to the end of each of its five stages.

    With random weights (a fixed seed) its features still compare local structure at five scales,
    but have learnt nothing about pictures.

    Args:
        weights: A state dict of torchvision's `vgg16`, as saved by `torch.save`; None draws random
            weights.
        stages: How many of the five stages are used; fewer are faster.

    Raises:
        ValueError: The file cannot be read or holds another network.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Path | None = None, stages: int = STAGES) -> None:
        super().__init__()
        self.features = nn.Sequential(*vgg_layers())
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
        for name, numbers in (("mean", VGG_MEAN), ("deviation", VGG_DEVIATION)):
            x = torch.tensor(numbers)[:, None, None]
            self.register_buffer(name, x, persistent=False)

    def load(self, path: Path) -> None:
        saved = read_weights(path, "torchvision's vgg16 weights")
        saved = {name: x for name, x in saved.items() if name.startswith("features.")}
        shapes = {name: x.shape for name, x in self.state_dict().items()}
        if {name: x.shape for name, x in saved.items()} != shapes:
            raise BadInput(f"{path} does not hold torchvision's vgg16 weights")
        self.load_state_dict(saved)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b c k l"]]:
        """Return the features of every stage; see `Features`."""
        x = ((image + 1) / 2 - self.mean) / self.deviation
        stages = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append(x)
                if len(stages) == self.stages:
                    return stages
            x = layer(x)
        return [*stages, x]


def vgg_layers() -> list[nn.Module]:
    """List them in the order that torchvision numbers them."""
    made: list[nn.Module] = []
    before = 3
    for width in VGG_WIDTHS:
        if width == 0:
            made.append(nn.MaxPool2d(2))
            continue
        made += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = width
    return made
