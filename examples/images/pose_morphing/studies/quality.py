"""Where is quality lost? The error of held-out pairs, stage by stage, and mends without training.

    python -m examples.images.pose_morphing.studies.quality --data data/figures

Drawn figures know which pixel of the source each pixel of the person shows. So the squared error of
a pixel (0 to 1, mean of the channels) is followed through the stages that make it: the true pixel
of the source, the one of the strongest key, the average that the finest attention copies, and the
output of the decoder. The error after the last stage is the sum of what each adds; what mends it is
negative. Pixels whose strongest key lies 3 pixels off or more have a wrong key: either no key that
is read lies nearer (`not read`), or one does and is weaker (`read, too weak`).

Mends change the temperature of the finest attention (`hot x4` multiplies its logits by 4), read
more key blocks (`kappa 12`), let neighbours vote on a key (`vote 3`: a logit is the mean of those
of the 3x3 pairs around), or several of these, joined by " + ". `the true pixels` is what copying
whole pixels could reach: every copyable pixel from where it truly is. Writes quality.json and
quality.md.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Bool, Float, Int
from torch import Tensor

from examples.common.commands import check_count, command
from examples.common.files import check_folder, write_json, write_text
from examples.common.tables import machine, markdown_table
from examples.images.pose_morphing import figures
from examples.images.pose_morphing.attention import CopyAttention
from examples.images.pose_morphing.demo import SHIPPED
from examples.images.pose_morphing.evaluate import BATCH, Rendered, key_scores, scores
from examples.images.pose_morphing.measures.scores import CHUNK, keys_and_weights
from examples.images.pose_morphing.measures.tasks import (
    Task,
    in_unit_range,
    pair_task,
    part_of,
)
from examples.images.pose_morphing.model import Generator, Morph
from examples.images.pose_morphing.trained import load_trained, read
from examples.people import open_pictures
from examples.people.figures.truth import Truth, open_truth

NEAR_PX = 3
GROUPS = ("right key", "read, too weak", "not read", "not visible")
STAGES = ("true pixel", "strongest key", "average", "output")
SHOWN = {"copyable_ssim": "SSIM copyable", "acc3": "keys within 3 px", "texture": "texture"}


@dataclass(frozen=True)
class Options:
    """What is measured, on what."""

    data: Path  # a folder of drawn figures with their truth, of the generator's size
    model: Path = SHIPPED / "gpa128"
    out: Path = figures.HERE / "results"
    split: str = "test"
    pairs: int = 96
    seed: int = 77  # those of the shipped evaluation
    mends: tuple[str, ...] = ("none", "kappa 12", "hot x4", "vote 3")


@dataclass(frozen=True)
class Traced:
    """The pixels of one person, and the squared error of each after every stage."""

    group: Int[Tensor, " s"]
    errors: Float[Tensor, "s 4"]  # of a pixel that is not visible the last alone counts


def main(options: Options) -> None:
    """Measure every mend.

    Raises:
        ValueError: An option cannot be read, or the data has no truth.
    """
    check_folder(options.out)
    check_count("--pairs", options.pairs)
    for mend in options.mends:
        mended(load_trained(options.model).generator, mend)
    truth = open_truth(options.data, options.split)
    if truth is None:
        raise ValueError(f"{options.data} holds no drawn figures with their truth")
    size = load_trained(options.model).generator.config.size
    pictures = open_pictures(options.data, options.split, size)
    task = pair_task(pictures, options.pairs, options.seed, truth)
    people = persons(pictures.pairs, truth, options)
    shares: dict[str, dict[str, float]] = {}
    means = {}
    for mend in options.mends:
        generator = mended(load_trained(options.model).generator, mend)
        rendered, traced = follow(generator, task, None if shares else people)
        shares = shares or summed(traced)
        means[mend] = summary(rendered, task)
        if len(means) == 1:
            means["the true pixels"] = summary(copied_truly(rendered, task), task)
        print(mend, {name: round(means[mend][name], 4) for name in SHOWN}, flush=True)
        write(options, shares, means)


def summary(rendered: Rendered, task: Task) -> dict[str, float]:
    return {name: x.nanmean().item() for name, x in scores(rendered, task).items()}


def copied_truly(rendered: Rendered, task: Task) -> Rendered:
    """What whole pixels of the source can do: each copyable pixel from where it truly is."""
    row, column = task.places.long().clamp(min=0).unbind(dim=-1)
    picture = torch.arange(len(task))[:, None, None]
    true = task.batch.source[picture, :, row, column].permute(0, 3, 1, 2)
    return Rendered(torch.where(task.copyable[:, None], true, rendered.images), {})


def write(
    options: Options, shares: dict[str, dict[str, float]], means: dict[str, dict[str, float]]
) -> None:
    """Write what is known by now."""
    said = {"machine": machine(), "pairs": options.pairs, "split": options.split}
    write_json(options.out / "quality.json", said | {"shares": shares, "mends": means})
    write_text(options.out / "quality.md", as_markdown(options, shares, means))


def persons(pairs: Int[Tensor, "p 2"], truth: Truth, options: Options) -> Bool[Tensor, "b h w"]:
    """Where the person is in each target of the task."""
    rows = np.random.default_rng(options.seed).permutation(len(pairs))[: options.pairs]
    return torch.stack([torch.from_numpy(truth.on_person(int(i))) for i in pairs[rows][:, 1]])


def mended(generator: Generator, mend: str) -> Generator:
    """Change what a mend says.

    Raises:
        ValueError: It is none.
    """
    for part in [] if mend == "none" else mend.split(" + "):
        kind, _, number = part.partition(" ")
        if kind == "kappa" and number.isdecimal():
            read(generator, int(number))
        elif kind == "hot" and number.startswith("x") and number[1:].isdecimal():
            finest = generator.attentions[0]
            finest.config = replace(finest.config, sharper=int(number[1:]) * finest.config.sharper)
        elif kind == "vote" and number.isdecimal() and int(number) % 2:
            vote(generator.attentions[0], int(number))
        else:
            raise ValueError(f"unknown mend {part!r}; expected none, kappa K, hot xN or vote N")
    return generator


def vote(attention: CopyAttention, side: int) -> None:
    """Let the neighbours of a pixel vote on its keys, each for the key as far off as it is itself.

    A logit becomes the mean of those of the pairs (query + d, key + d) over offsets d within a
    square: queries and keys become those of the whole square.
    """
    heat = attention.heat

    def heat_of_square(x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b dss h w"]:
        around = F.pad(heat(x), (side // 2,) * 4, mode="replicate")
        return F.unfold(around, side).unflatten(2, x.shape[2:]) / side

    attention.heat = heat_of_square


@torch.no_grad()
def follow(
    generator: Generator, task: Task, people: Bool[Tensor, "b h w"] | None
) -> tuple[Rendered, list[Traced]]:
    """Render every pair, and follow the error of the pixels of people, if they are given."""
    images, keys, traced = [], [], []
    for ids in torch.arange(len(task)).split(BATCH):
        part = part_of(task, ids)
        morph = generator(part.batch.source, part.batch.source_maps, part.batch.target_maps)
        images.append(morph.image)
        keys += [key_scores(morph, part, i) for i in range(len(part))]
        if people is not None:
            traced += [trace(morph, part, i, people[ids[i]]) for i in range(len(part))]
    found = {name: torch.tensor([each[name] for each in keys]) for name in keys[0]}
    return Rendered(torch.cat(images), found), traced


def trace(morph: Morph, task: Task, picture: int, person: Bool[Tensor, "h w"]) -> Traced:
    """Follow one picture."""
    level, width = morph.levels[0], person.shape[1]
    truth, source, copied, output = (
        in_unit_range(x[picture]).permute(1, 2, 0).flatten(0, 1)
        for x in (task.batch.truth, task.batch.source, level.copied, morph.image)
    )
    seen = (task.copyable[picture] & person).flatten().nonzero()[:, 0]
    hidden = (~task.copyable[picture] & person).flatten().nonzero()[:, 0]
    places = task.places[picture].flatten(0, 1)[seen].long()
    best, group = keys_of(morph, picture, seen, places)
    origin = places[:, 0] * width + places[:, 1]
    stages = (source[origin], source[best], copied[seen], output[seen])
    errors = torch.stack([(x - truth[seen]).square().mean(dim=1) for x in stages], dim=1)
    lost = (output[hidden] - truth[hidden]).square().mean(dim=1)[:, None].expand(-1, len(STAGES))
    groups = torch.cat([group, torch.full_like(hidden, GROUPS.index("not visible"))])
    return Traced(groups, torch.cat([errors, lost]))


def keys_of(
    morph: Morph, picture: int, sites: Int[Tensor, " s"], places: Int[Tensor, "s 2"]
) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"]]:
    """The strongest key of each site, and the group that it is in."""
    level, width = morph.levels[0], morph.image.shape[3]
    best, group = [sites.new_empty(0)], [sites.new_empty(0)]
    for chunk, where in zip(sites.split(CHUNK), places.split(CHUNK), strict=True):
        keys, weights = keys_and_weights(level, picture, chunk)
        at = torch.stack([keys // width, keys % width], dim=-1)
        off = (at - where[:, None]).float().norm(dim=-1).masked_fill(keys < 0, torch.inf)
        first = weights.argmax(dim=1, keepdim=True)
        best.append(keys.gather(1, first)[:, 0])
        right, near = off.gather(1, first)[:, 0] <= NEAR_PX, (off <= NEAR_PX).any(dim=1)
        group.append(torch.where(right, 0, torch.where(near, 1, 2)))
    return torch.cat(best), torch.cat(group)


def summed(traced: list[Traced]) -> dict[str, dict[str, float]]:
    """For each group its share of the pixels and what each stage adds to the error of all.

    The shares of the error sum to 1.
    """
    group = torch.cat([each.group for each in traced])
    errors = torch.cat([each.errors for each in traced]).double()
    total = errors[:, -1].sum()
    found = {}
    for number, name in enumerate(GROUPS):
        of = errors[group == number].sum(dim=0) / total
        added = torch.diff(of, prepend=of.new_zeros(1))
        stages = dict(zip(STAGES, added.tolist(), strict=True))
        if name == "not visible":
            stages = dict.fromkeys(STAGES[:-1], 0.0) | {"output": of[-1].item()}
        found[name] = {"pixels": (group == number).double().mean().item(), **stages}
    return found


def as_markdown(
    options: Options,
    shares: dict[str, dict[str, float]],
    means: dict[str, dict[str, float]],
) -> str:
    rows = [
        [name, *(f"{x:.3f}" for x in of.values()), f"{sum(of.values()) - of['pixels']:.3f}"]
        for name, of in shares.items()
    ]
    first = markdown_table(
        ["pixels of people", "share", *(f"error: {x}" for x in STAGES), "error: sum"], rows
    )
    rows = [
        [mend, *(f"{of[name]:.4f}" if name in of else "1" for name in SHOWN)]
        for mend, of in means.items()
    ]
    second = markdown_table(["mend", *SHOWN.values()], rows)
    about = f"{options.pairs} pairs of the {options.split} split. {machine()}."
    return f"{__doc__}\n{about}\n\n{first}\n\n{second}\n"


if __name__ == "__main__":
    command(lambda: main(tyro.cli(Options)))
