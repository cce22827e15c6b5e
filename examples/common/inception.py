"""Inception-v3 up to its last means, for Frechet distances with weights that one brings along.

The weights come from a file, with the names of torchvision's `inception_v3`. The file of the
published FID (1008 classes, converted from TensorFlow) goes with a network of slightly other pools,
which is chosen by the number of classes; only with that may a distance be called FID.

Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision".
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.pickles import read_weights
from examples.common.untrusted import BadInput

FID_CLASSES = 1008
SIDE = 299

Kernel = tuple[int, int]
Layer = tuple[str, int, Kernel, int]  # name, output channels, kernel, stride
Chain = list[Layer | list[Layer]]  # layers one after another; of a list, side by side


class Conv(nn.Module):
    """Convolution, batch normalisation, rectifier; padded and of stride 1 it keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel, stride: int, padded: bool
    ) -> None:
        super().__init__()
        padding = tuple(side // 2 for side in kernel) if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of convolutions side by side, the last of them after a pool.

    Args:
        inputs: Channels.
        chains: The last may be empty: then the pool alone.
        pool: "average", "average_inside" (which leaves padding out of the mean), "max", or
            "max_halving", which halves the size.
    """

    def __init__(self, inputs: int, chains: list[Chain], pool: str) -> None:
        super().__init__()
        self.pool, self.chains = pool, chains
        for chain in chains:
            channels = inputs
            for step in chain:
                layers = step if isinstance(step, list) else [step]
                for name, outputs, kernel, stride in layers:
                    conv = Conv(channels, outputs, kernel, stride, padded=stride == 1)
                    self.add_module(name, conv)
                channels = sum(outputs for _, outputs, _, _ in layers)

    def forward(self, x: Tensor) -> Tensor:
        starts = [x] * (len(self.chains) - 1) + [pooled(x, self.pool)]
        return torch.cat([self.run(chain, y) for chain, y in zip(self.chains, starts)], dim=1)

    def run(self, chain: Chain, x: Tensor) -> Tensor:
        for step in chain:
            layers = step if isinstance(step, list) else [step]
            x = torch.cat([self.get_submodule(name)(x) for name, *_ in layers], dim=1)
        return x


def pooled(x: Tensor, pool: str) -> Tensor:
    if pool == "max_halving":
        return F.max_pool2d(x, 3, 2)
    if pool == "max":
        return F.max_pool2d(x, 3, 1, 1)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=pool == "average")


ONE, THREE = (1, 1), (3, 3)


def named(name: str, *layers: tuple[int, Kernel, int]) -> Chain:
    return [(f"{name}_{i + 1}", *layer) for i, layer in enumerate(layers)]


def block_a(inputs: int, pool_outputs: int, pool: str) -> Mixed:
    chains: list[Chain] = [
        [("branch1x1", 64, ONE, 1)],
        named("branch5x5", (48, ONE, 1), (64, (5, 5), 1)),
        named("branch3x3dbl", (64, ONE, 1), (96, THREE, 1), (96, THREE, 1)),
        [("branch_pool", pool_outputs, ONE, 1)],
    ]
    return Mixed(inputs, chains, pool)


def block_b(inputs: int) -> Mixed:
    double = named("branch3x3dbl", (64, ONE, 1), (96, THREE, 1), (96, THREE, 2))
    return Mixed(inputs, [[("branch3x3", 384, THREE, 2)], double, []], "max_halving")


def block_c(inputs: int, c: int, pool: str) -> Mixed:
    row, column = (1, 7), (7, 1)
    double = (c, ONE, 1), (c, column, 1), (c, row, 1), (c, column, 1), (192, row, 1)
    chains: list[Chain] = [
        [("branch1x1", 192, ONE, 1)],
        named("branch7x7", (c, ONE, 1), (c, row, 1), (192, column, 1)),
        named("branch7x7dbl", *double),
        [("branch_pool", 192, ONE, 1)],
    ]
    return Mixed(inputs, chains, pool)


def block_d(inputs: int) -> Mixed:
    seven = (192, ONE, 1), (192, (1, 7), 1), (192, (7, 1), 1), (192, THREE, 2)
    chains = [named("branch3x3", (192, ONE, 1), (320, THREE, 2)), named("branch7x7x3", *seven), []]
    return Mixed(inputs, chains, "max_halving")


def block_e(inputs: int, pool: str) -> Mixed:
    chains: list[Chain] = [
        [("branch1x1", 320, ONE, 1)],
        [("branch3x3_1", 384, ONE, 1), crossed("branch3x3_2")],
        [*named("branch3x3dbl", (448, ONE, 1), (384, THREE, 1)), crossed("branch3x3dbl_3")],
        [("branch_pool", 192, ONE, 1)],
    ]
    return Mixed(inputs, chains, pool)


def crossed(name: str) -> list[Layer]:
    return [(f"{name}a", 384, (1, 3), 1), (f"{name}b", 384, (3, 1), 1)]


class Inception(nn.Module):
    """2048 features of a picture.

    Args:
        fid: Pools as in the network of the published FID.
    """

    def __init__(self, fid: bool) -> None:
        super().__init__()
        average, last = ("average_inside", "max") if fid else ("average", "average")
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, 2, padded=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE, 1, padded=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE, 1, padded=True)
        self.Conv2d_3b_1x1 = Conv(64, 80, ONE, 1, padded=False)
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE, 1, padded=False)
        self.Mixed_5b = block_a(192, 32, average)
        self.Mixed_5c = block_a(256, 64, average)
        self.Mixed_5d = block_a(288, 64, average)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128, average)
        self.Mixed_6c = block_c(768, 160, average)
        self.Mixed_6d = block_c(768, 160, average)
        self.Mixed_6e = block_c(768, 192, average)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, average)
        self.Mixed_7c = block_e(2048, last)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Features of pictures in 0 to 1, which are brought to 299x299 bilinearly."""
        x = 2 * F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean(dim=(2, 3))


def load_inception(path: Path) -> tuple[str, Inception]:
    """The network with weights from a file of `torch.save`, and what to call the distance.

    Raises:
        ValueError: The file is missing, is no such file, or holds another network.
    """
    state = read_weights(path, "Inception-v3 weights")
    if "fc.weight" not in state:
        raise BadInput(f"{path} does not hold Inception-v3 weights: it lacks fc.weight")
    fid = len(state["fc.weight"]) == FID_CLASSES
    network = Inception(fid)
    wanted = network.state_dict()
    shapes = {name: x.shape for name, x in state.items() if name in wanted}
    missing = [name for name, x in wanted.items() if shapes.get(name) != x.shape]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of the weights of Inception-v3, {missing[0]} among them"
        )
    network.load_state_dict({name: x for name, x in state.items() if name in wanted}, strict=False)
    return ("fid" if fid else "frechet_inception"), network.eval()
