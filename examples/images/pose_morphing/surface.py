"""Which place of the body a pixel shows: a small network that knows key points alone.

It was shown drawn figures, which know the part and the surface point of every pixel
(`train_surface.py`), and stays as it is while a generator trains. So queries and keys need not
find out by matching pictures what the pose says already. Which part it is, the generator corrects
by what it sees.

Source: surface embeddings as queries and keys are those of Neverova et al. 2020, "Continuous
Surface Embeddings"; there they are found in the picture, and here in the pose.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from examples.common.checkpoints import restore_module
from examples.common.stylegan2 import Conv, Linear, activate, merge
from examples.common.untrusted import read_tensors
from examples.images.pose_morphing.body import CHANNELS, POSE, bent, coordinates, grid, pose
from examples.images.pose_morphing.config import ModelConfig
from examples.people.figures.body import PARTS
from examples.people.keypoints import MIRRORED

HIDDEN = 192  # features of a place
OF_POSE = 512  # and of a pose
QUICK = 12.0  # learning-rate multiplier, as of the generator's convolutions
_KINDS = ("background", *PARTS)
KINDS = len(_KINDS)
_SIDES = {"right": "left", "left": "right"}
OTHER_SIDE = tuple(
    _KINDS.index(" ".join(_SIDES.get(word, word) for word in kind.split())) for kind in _KINDS
)  # what each is in a mirror
CODE = 5  # channels that tell parts apart
WIDTH = 3 + CODE  # of an embedding
FLIP = (-1.0, 1.0, 1.0)  # points in a mirror, of a body as of a picture
SPREAD = 0.05  # of surface points around the middle of their part, in body heights
APART = 0.33  # codes of parts, in spreads
RAY = 0.5 / 128  # in halves of the picture's height: so far right and below it tells the surface
BENT = 0.02  # in halves of the picture's height: poses that differ by less are as good as one


class Modulated(nn.Module):
    """A layer whose features the pose scales and shifts.

    Source: Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = Linear(width, HIDDEN, lr=QUICK)
        self.scale, self.shift = (Linear(OF_POSE, HIDDEN, lr=QUICK) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "b p i"], pose: Float[Tensor, "b o"]
    ) -> Float[Tensor, "b p h"]:
        scale, shift = self.scale(pose)[:, None], self.shift(pose)[:, None]
        return activate(self.linear(x) * (1 + scale) + shift)


class Surface(nn.Module):
    """Tell the part of the body at a place, and for each part the surface point, if it is that.

    A wide network reads the pose, once a picture; what it found scales and shifts the features of a
    narrow one that reads each place. A body in a mirror is a body, so it is asked of both, and
    errs less by a tenth.
    """

    other_side: Int[Tensor, " k"]

    def __init__(self) -> None:
        super().__init__()
        widths = (POSE, OF_POSE, OF_POSE, OF_POSE)
        self.of_pose = nn.ModuleList(Linear(width, OF_POSE, lr=QUICK) for width in widths)
        self.of_place = nn.ModuleList(Modulated(width) for width in (CHANNELS, HIDDEN, HIDDEN))
        self.to_part = Linear(HIDDEN, KINDS, lr=QUICK)
        self.to_point = Linear(HIDDEN, 3 * KINDS, lr=QUICK)
        self.register_buffer("other_side", torch.tensor(OTHER_SIDE), persistent=False)

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
        logits, places = self.read(points, across, down)
        flip = points.new_tensor(FLIP)
        others, flipped = self.read(*in_mirror(points, across), down)
        others, flipped = others[..., self.other_side], flipped[..., self.other_side, :]
        return (logits + others) / 2, (places + flip * flipped) / 2

    def read(
        self,
        points: Float[Tensor, "b 18 3"],
        across: Float[Tensor, "c p"],
        down: Float[Tensor, "c p"],
    ) -> tuple[Float[Tensor, "b p k"], Float[Tensor, "b p k 3"]]:
        """Tell it of the picture alone."""
        first, *others = self.of_pose
        posture = activate(first(pose(points)))
        for each in others:
            posture = merge(posture, activate(each(posture)))
        first, *others = self.of_place
        x = first(coordinates(points, across, down).mT, posture)
        for each in others:
            x = merge(x, each(x, posture))
        return self.to_part(x), self.to_point(x).unflatten(2, (KINDS, 3))


def in_mirror(
    points: Float[Tensor, "b 18 3"], across: Float[Tensor, "c p"]
) -> tuple[Float[Tensor, "b 18 3"], Float[Tensor, "c p"]]:
    """Return where points are in a mirror, and where to ask for what it shows of the same rays."""
    return points.new_tensor(FLIP) * points[:, MIRRORED], -across - 2 * RAY


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

    Their scale is not learnt, neither here nor by a temperature: a cross-entropy lowers it for the
    sake of the few pixels whose part is wrong, until neighbours cannot be told apart.

    Args:
        width: Channels of the features that correct which part it is.
        config: The generator's options.
    """

    codes: Float[Tensor, "k 5"]

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.length, self.seen, lr = config.body_length, config.body_seen, config.weight_lr
        self.surface = Surface().requires_grad_(False)
        self.correct_target, self.correct_source = (Conv(width, KINDS, 1, lr=lr) for _ in "ts")
        for each in (self.correct_target, self.correct_source):
            nn.init.zeros_(each.weight)
        self.register_buffer("codes", APART * torch.randn(KINDS, CODE))

    def forward(
        self,
        seen: tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h w"]],
        target: Float[Tensor, "b c h w"],
        of_source: Float[Tensor, "b 9 h w"],
        points: tuple[Float[Tensor, "b 18 3"], Float[Tensor, "b 18 3"]],
    ) -> tuple[Float[Tensor, "b d+8 h w"], Float[Tensor, "b d+8 h w"]]:
        """Tell queries and keys of the surface, and weigh there less what is seen.

        Where a pose is the other one, moved as a whole, that is better seen than told: a body
        that is sheared is none of those that were shown.

        Args:
            seen: Queries and keys.
            target: Features that correct which part it is.
            of_source: From `read`.
            points: Of the source, and of the target.
        """
        trust = (1 - 1 / (1 + (bent(*points) / BENT) ** 4))[:, None, None, None]
        of_target = self.embedded(self.correct_target(target), points[1])
        query, key = seen
        return self.beside(query, trust * of_target), self.beside(key, trust * of_source)

    def read(
        self, source: Float[Tensor, "b c h w"], points: Float[Tensor, "b 18 3"]
    ) -> Float[Tensor, "b 9 h w"]:
        """Embed the pixels of the source."""
        return self.embedded(self.correct_source(source), points)

    def embedded(
        self, correction: Float[Tensor, "b k h w"], points: Float[Tensor, "b 18 3"]
    ) -> Float[Tensor, "b 9 h w"]:
        """Embed pixels, and say how much each shows a person.

        In float32, also under autocast: sixteen bits do not tell neighbours apart.
        """
        h, w = correction.shape[2:]
        with torch.autocast(correction.device.type, enabled=False):
            across, down = (x.reshape(1, -1) for x in grid((h, w), points))
            logits, places = self.surface(points, across, down)
            share = (logits + correction.float().flatten(2).mT).softmax(dim=2)
            on = share[..., 1:, None]  # the background has no surface
            place = (on * places[:, :, 1:]).sum(dim=2)
            told = self.length * torch.cat([place, share @ self.codes], dim=2)
            embedded = torch.cat([told, on.sum(dim=2)], dim=2)
        return embedded.mT.unflatten(2, (h, w))

    def beside(self, seen: Float[Tensor, "b d h w"], told: Float[Tensor, "b 9 h w"]) -> Tensor:
        """Append an embedding to queries or keys, which count less where a person is."""
        embedding, on = told.split([WIDTH, 1], dim=1)
        return torch.cat([(1 - (1 - self.seen) * on) * seen, embedding], dim=1)
