"""Finding the latent of a picture, as Your Local GAN does: by the discriminator's attention.

    python -m examples.images.gan.inversion --run FOLDER --data FOLDER --out inversion.png

A latent is moved by gradient until the discriminator's features of the made picture are those of
the real one. Each feature counts as much as the real picture's attention looks there (saliency),
head by head. The sheet shows pictures, what was found with and without these weights, and the
saliency of each head; a JSON file beside it has the figures: how far off the found pictures are, in
pixels and in the features of a network that has nothing to do with the training, and the mean
advantage of the weights over pictures and seeds with its standard error.

Source: Daras et al. 2020, "Your Local GAN", section 5 and its released code.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange, repeat
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.common.commands import check_count, command, set_threads
from examples.common.figures import save_figure, show_picture
from examples.common.files import check_output, write_json
from examples.common.tables import machine
from examples.common.untrusted import BadInput
from examples.images.gan import ylg
from examples.images.gan.data import open_data
from examples.images.gan.judge import shipped
from examples.images.gan.trained import Trained, load

WAYS = ("weighted", "plain")


@dataclass(frozen=True)
class Inversion:
    """How a latent is looked for.

    Args:
        steps: Of Adam.
        rate: Of Adam.
        restarts: Latents that are tried for each picture; the best is kept.
        weighted: By saliency; else every place counts alike.
        seed: Draws the latents to begin with.
    """

    steps: int = 300
    rate: float = 0.07
    restarts: int = 8
    weighted: bool = True
    seed: int = 1

    def __call__(
        self,
        trained: Trained,
        picture: Float[Tensor, "b 3 h w"],
        label: Int[Tensor, " b"],
    ) -> "Found":
        """Invert pictures in -1 to 1 of known classes.

        Raises:
            BadInput: The discriminator has no attention.
        """
        judge = _with_attention(trained)
        with torch.no_grad():
            wanted = judge.features(picture)
            weights = self.weights(judge, wanted)
        wanted, weights, label = (self.repeated(x) for x in (wanted, weights, label))
        latent = self.draw(len(label), trained.model.latent).requires_grad_()
        adam = torch.optim.Adam([latent], self.rate)
        first: Tensor | None = None
        for _ in range(self.steps):
            features = judge.features(trained.generator(latent, label))
            loss = feature_loss(features, wanted, weights)
            first = loss.detach() if first is None else first
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
        assert first is not None
        return self.best(trained, latent.detach(), label, wanted, weights, first)

    def weights(
        self, judge: ylg.Discriminator, features: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b m h w"]:
        """Return the saliency of the first half of the heads, or 1 everywhere."""
        if not self.weighted:
            return torch.ones_like(features[:, :1])
        found = saliency(judge.attention, features)
        return found[:, : max(1, found.shape[1] // 2)]

    def repeated(self, x: Tensor) -> Tensor:
        return repeat(x, "b ... -> (b r) ...", r=self.restarts)

    def draw(self, count: int, width: int) -> Float[Tensor, "n z"]:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.nn.init.trunc_normal_(torch.empty(count, width), generator=generator)

    @torch.no_grad()
    def best(
        self,
        trained: Trained,
        latent: Tensor,
        label: Tensor,
        wanted: Tensor,
        weights: Tensor,
        first: Tensor,
    ) -> "Found":
        """Keep the best latent of each picture."""
        picture = trained.generator(latent, label)
        features = _with_attention(trained).features(picture)
        loss = rearrange(feature_loss(features, wanted, weights), "(b r) -> b r", r=self.restarts)
        first = rearrange(first, "(b r) -> b r", r=self.restarts)
        own = torch.arange(len(loss)) * self.restarts + loss.argmin(dim=1)
        return Found(latent[own], picture[own], loss.amin(dim=1), first.amin(dim=1))


@dataclass(frozen=True)
class Found:
    """The best latent of each picture, what is made of it, and the losses.

    The loss at the beginning is that of the best of the latents that were drawn.
    """

    latent: Float[Tensor, "b z"]
    picture: Float[Tensor, "b 3 h w"]
    loss: Float[Tensor, " b"]
    first_loss: Float[Tensor, " b"]


def saliency(
    attention: ylg.SelfAttention, features: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b heads h w"]:
    """Return how much each place is read, as the mean over the sites that read it at all."""
    weights = attention.weights(features)
    read = (weights > 0).sum(dim=2).clamp(min=1)
    height = features.shape[2] // 2
    looked = rearrange(weights.sum(dim=2) / read, "b n (h w) -> b n h w", h=height)
    return F.interpolate(looked, scale_factor=2)


def feature_loss(
    found: Float[Tensor, "b c h w"],
    wanted: Float[Tensor, "b c h w"],
    weights: Float[Tensor, "b m h w"],
) -> Float[Tensor, " b"]:
    """Add over the m weights the norm of the weighted difference, each picture by itself."""
    difference = (found - wanted)[:, None] * weights[:, :, None]
    return difference.flatten(2).square().sum(dim=2).clamp(min=1e-24).sqrt().sum(dim=1)


def _with_attention(trained: Trained) -> ylg.Discriminator:
    if not isinstance(trained.discriminator, ylg.Discriminator):
        raise BadInput(
            f"{trained.system} has a discriminator without attention; inversion needs ylg or sagan"
        )
    return trained.discriminator


@dataclass(frozen=True)
class Options:
    """Invert pictures that the generator made itself, and pictures that no run saw."""

    run: Path  # of training, or shipped weights
    data: str  # as of training; of figures the test split is taken
    out: Path = Path("inversion.png")
    pictures: int = 6  # of each kind
    shown: int = 4  # of them
    steps: int = 300
    restarts: int = 8
    seeds: int = 3  # of the latents to begin with


def main(options: Options) -> dict[str, Any]:
    """Invert, and write the sheet and its figures."""
    for name in ("pictures", "shown", "steps", "restarts", "seeds"):
        check_count(f"--{name}", getattr(options, name))
    check_output(options.out)
    set_threads(1)
    trained = load(options.run)
    _with_attention(trained)
    held_out = open_data(options.data, trained.model.size, "test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        real, label = held_out.draw(options.pictures, mirror=False)
        latent = torch.randn(options.pictures, trained.model.latent)
        own_label = torch.arange(options.pictures) % trained.model.classes
    kinds = {
        "made by itself": (trained.generator(latent, own_label), own_label),
        "held out": (real, label),
    }
    figure = Figure(figsize=(1.1 * options.shown * 2 + 0.6, 7.2), layout="constrained")
    figures = {}
    for part, (name, (asked, of_class)) in zip(figure.subfigures(1, 2), kinds.items()):
        runs = [inverted(trained, asked, of_class, options, seed) for seed in range(options.seeds)]
        figures[name] = compared(asked, runs)
        part.suptitle(name)
        draw(part, trained, asked[: options.shown], runs[0])
    save_figure(figure, options.out, 110)
    about = {
        "machine": machine(),
        "trained_steps": trained.steps,
        "steps": options.steps,
        "restarts": options.restarts,
        "seeds": options.seeds,
        "pictures": options.pictures,
    }
    write_json(options.out.with_suffix(".json"), {**about, **figures})
    return figures


def inverted(
    trained: Trained, picture: Tensor, label: Tensor, options: Options, seed: int
) -> list[Found]:
    """Invert with the weights and without, from the same latents."""
    inversion = Inversion(options.steps, restarts=options.restarts, seed=seed)
    return [replace(inversion, weighted=w)(trained, picture, label) for w in (True, False)]


def compared(picture: Tensor, runs: list[list[Found]]) -> dict[str, Any]:
    """Compare the two ways: losses, and how far off the pictures are that were found."""
    falls = [torch.cat([f.first_loss / f.loss for f in way]) for way in zip(*runs)]
    found: dict[str, Any] = {
        "loss_falls_times": dict(zip(WAYS, (x.median().item() for x in falls)))
    }
    for name, error in (("pixels", pixel_error), ("features", feature_error)):
        weighted, plain = (
            torch.cat([error(f.picture, picture) for f in way]) for way in zip(*runs)
        )
        less = plain - weighted
        found[name] = {
            **dict(zip(WAYS, (x.mean().item() for x in (weighted, plain)))),
            "less_by_weights": less.mean().item(),
            "standard_error": less.std().item() / len(less) ** 0.5,
        }
    return found


def pixel_error(found: Tensor, wanted: Tensor) -> Float[Tensor, " b"]:
    """Return the root mean square difference of each picture; values are -1 to 1."""
    return (found - wanted).square().mean(dim=(1, 2, 3)).sqrt()


@torch.no_grad()
def feature_error(found: Tensor, wanted: Tensor) -> Float[Tensor, " b"]:
    """Return the difference in features of the network that judges heads, over their own size.

    The mean over its stages; it was trained on other people, to find key points.
    """
    network = shipped()
    stages = zip(network(found), network(wanted), strict=True)
    errors = [((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)) for a, b in stages]
    return torch.stack(errors).mean(dim=0)


def draw(part: Any, trained: Trained, picture: Tensor, found: list[Found]) -> None:
    """Draw one column a picture: it, what was found with weights and without, its saliency."""
    judge = _with_attention(trained)
    maps = saliency(judge.attention, judge.features(picture))
    rows = [picture, *(each.picture for each in found)]
    names = ["picture", "by saliency", "without", *(f"head {i}" for i in range(maps.shape[1]))]
    axes = part.subplots(len(names), len(picture), squeeze=False)
    for line, name in zip(axes, names):
        line[0].set_ylabel(name, fontsize=8)
    for column in range(len(picture)):
        for row, images in enumerate(rows):
            show_picture(axes[row][column], (images[column] + 1) / 2)
        for head, seen in enumerate(maps[column]):
            axes[len(rows) + head][column].imshow(seen.numpy(), cmap="magma")
    for at in axes.flat:
        _without_ticks(at)


def _without_ticks(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
