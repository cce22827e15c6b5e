"""Which place of the body a pixel shows: a small network that knows key points alone.

It was shown drawn figures, which know the part and the surface point of every pixel
(`train_surface.py`), and stays as it is while a generator trains. So queries and keys need not
find out by matching pictures what the pose says already. What it says, the generator corrects by
what it sees.

Source: surface embeddings as queries and keys are those of Neverova et al. 2020, "Continuous
Surface Embeddings"; there they are found in the picture, and here in the pose.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from examples.common.checkpoints import restore_module
from examples.common.stylegan2 import Conv, Linear, activate
from examples.common.untrusted import read_tensors
from examples.images.pose_morphing.body import CHANNELS, POSE, coordinates, grid, pose
from examples.people.figures.body import PARTS

HIDDEN = 192
QUICK = 12.0  # learning-rate multiplier, as of the generator's convolutions
KINDS = 1 + len(PARTS)  # the background first
CODE = 5  # channels that tell parts apart
WIDTH = 3 + CODE  # of an embedding
SPREAD = 0.05  # of surface points around the middle of their part, in body heights
APART = 0.33  # codes of parts, in spreads
LENGTH = 52.0  # of a spread in queries and keys; what ships was trained at half of it


class Surface(nn.Module):
    """Tell the part of the body at a place, and for each part the surface point, if it is that."""

    def __init__(self) -> None:
        super().__init__()
        self.of_place = Linear(CHANNELS, HIDDEN, lr=QUICK)
        self.of_pose = Linear(POSE, HIDDEN, lr=QUICK)
        self.second, self.third = (Linear(HIDDEN, HIDDEN, lr=QUICK) for _ in range(2))
        self.to_part = Linear(HIDDEN, KINDS, lr=QUICK)
        self.to_point = Linear(HIDDEN, 3 * KINDS, lr=QUICK)

    def forward(
        self,
        points: Float[Tensor, "b 18 3"],
        across: Float[Tensor, "c p"],
        down: Float[Tensor, "c p"],
    ) -> tuple[Float[Tensor, "b p k"], Float[Tensor, "b p k 3"]]:
        """Tell it of each place.

        Args:
            points, across, down: As `body.coordinates` takes them.

        Returns:
            Logits of the parts, and surface points in spreads.
        """
        place = coordinates(points, across, down).mT
        x = activate(self.of_place(place) + self.of_pose(pose(points))[:, None])
        x = activate(self.third(activate(self.second(x))))
        return self.to_part(x), self.to_point(x).unflatten(2, (KINDS, 3))


def use_surface(model: nn.Module, path: Path) -> None:
    """Load the weights that `train_surface.py` wrote into a model, if it has grown so far.

    Raises:
        BadInput: The file is none, or of another network.
    """
    weights = read_tensors(path)
    for each in model.modules():
        if isinstance(each, Surface):
            restore_module("surface", each, weights)


class SurfaceEmbedding(nn.Module):
    """What the pixels of a level show, as channels of queries and keys: the point, and the part.

    Their scale is not learnt: a cross-entropy lowers it for the sake of the few pixels whose part
    is wrong, until neighbours cannot be told apart.

    Args:
        width: Channels of the features that correct which part it is, and where on it.
        lr: Learning-rate multiplier of the convolutions.
    """

    codes: Float[Tensor, "k 5"]

    def __init__(self, width: int, lr: float = 1.0) -> None:
        super().__init__()
        self.surface = Surface().requires_grad_(False)
        self.correct_target, self.correct_source = (Conv(width, KINDS + 3, 1, lr=lr) for _ in "ts")
        for each in (self.correct_target, self.correct_source):
            nn.init.zeros_(each.weight)
        self.register_buffer("codes", APART * torch.randn(KINDS, CODE))

    def forward(
        self,
        target: Float[Tensor, "b c h w"],
        source: Float[Tensor, "b c h w"],
        points: tuple[Float[Tensor, "b 18 3"], Float[Tensor, "b 18 3"]],
    ) -> tuple[Float[Tensor, "b 8 h w"], Float[Tensor, "b 8 h w"]]:
        """Embed the pixels of the target and of the source; `points` are of the source first."""
        query = self.embedded(self.correct_target(target), points[1])
        key = self.embedded(self.correct_source(source), points[0])
        return query, key

    def embedded(
        self, correction: Float[Tensor, "b k+3 h w"], points: Float[Tensor, "b 18 3"]
    ) -> Float[Tensor, "b 8 h w"]:
        """In float32, also under autocast: sixteen bits do not tell neighbours apart."""
        h, w = correction.shape[2:]
        with torch.autocast(correction.device.type, enabled=False):
            across, down = (x.reshape(1, -1) for x in grid((h, w), points))
            logits, places = self.surface(points, across, down)
            parts, shift = correction.float().flatten(2).mT.split([KINDS, 3], dim=2)
            share = (logits + parts).softmax(dim=2)
            place = (places * share[..., None]).sum(dim=2) + shift
            embedded = LENGTH * torch.cat([place, share @ self.codes], dim=2)
        return embedded.mT.unflatten(2, (h, w))
