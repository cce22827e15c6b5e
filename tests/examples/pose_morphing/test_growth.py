"""Growth: what a finer level leaves as it was, what is carried over, and resume to the bit."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from examples.common import checkpoints
from examples.common.stylegan2 import double
from examples.common.untrusted import BadInput
from examples.images.pose_morphing.attention import enlarge
from examples.images.pose_morphing.config import PRESETS, ModelConfig
from examples.images.pose_morphing.data import distorted, random_affine, to_tensors
from examples.images.pose_morphing.demo import SHIPPED, STRANGERS
from examples.images.pose_morphing.growth import (
    before_growth,
    begin_with,
    carry_over,
    coarser_part,
    deepened,
)
from examples.images.pose_morphing.levels import Given
from examples.images.pose_morphing.model import MASK_START, Generator
from examples.images.pose_morphing.train import Trainer, train
from examples.images.pose_morphing.train_options import TrainConfig, Weights
from examples.images.pose_morphing.trained import load_trained
from examples.people.figures.render import draw_figure
from examples.people.pictures import Arrays, People

GROWN = ModelConfig(
    (64, 32),
    (4, 4, 6),
    "GPA128_2_8",
    affinity="euclidean",
    query_width=4,
    style=False,
    noise=False,
    stylegan2=False,
    pyramid=True,
    coordinates=True,
    temperature=True,
    copy_rgb=True,
    stems=3,
)
SIZES = {1: (16, 8), 2: (16, 8), 3: (32, 16), 4: (32, 16), 5: (64, 32), 6: (64, 32)}  # by steps
NO_TEXTURE = Weights(texture=0.0, selected=0.1)  # which needs larger pictures


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "test", GROWN)


@pytest.fixture(scope="module")
def pictures() -> Arrays:
    draws = np.random.default_rng(1)
    images = draws.integers(0, 256, (6, 64, 32, 3), dtype=np.uint8)
    points = np.concatenate([draws.uniform(0, 32, (6, 18, 2)), np.ones((6, 18, 1))], axis=2)
    return Arrays(images, points.astype(np.float32), np.array([[0, 1], [2, 3], [5, 4]]))


def config_for(out: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        Path("unused"), out, "test", steps=6, batch=2, threads=1, device="cpu", grow_at=(2, 4)
    )
    return dataclasses.replace(base, weights=NO_TEXTURE, coarse_first=0.0, **changes)


def drawn(config: ModelConfig, seed: int) -> Generator:
    torch.manual_seed(seed)
    return Generator(config)


def test_the_smaller_networks_of_a_growth() -> None:
    sizes = [(c.size, c.channels, c.stems, c.attention) for c in map(before, (0, 1, 2))]
    assert sizes == [
        ((64, 32), (4, 4, 6), 3, "GPA128_2_8"),
        ((32, 16), (4, 6), 2, "GPA128_2_8"),
        ((16, 8), (6,), 1, "FULL"),
    ]


def before(times: int) -> ModelConfig:
    return before_growth(GROWN, times)


@pytest.mark.parametrize("added", [1, 2])
def test_a_finer_level_changes_nothing_that_coarser_ones_make(added: int) -> None:
    small, large = drawn(before(added), 1), drawn(GROWN, 2)
    carry_over(small, large)
    side = 2**added
    source, here, there = (torch.randn(2, c, 64, 32) for c in (3, 18, 18))
    with torch.no_grad():
        coarse = small(*(F.avg_pool2d(x, side) for x in (source, here, there)))
        fine = large(source, here, there)
    assert len(fine.levels) == len(coarse.levels) + added
    for name in ("query", "key", "copied"):
        pairs = zip(fine.levels[added:], coarse.levels, strict=True)
        for ours, theirs in pairs:
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    image = coarse.image
    for copied in reversed(fine.copied[:added]):
        enlarged = double(image, smooth=False)
        image = enlarged + torch.sigmoid(torch.tensor(MASK_START)) * (copied - enlarged)
    torch.testing.assert_close(fine.image, image)


def test_a_finer_level_begins_to_look_where_the_coarser_one_does() -> None:
    """Logits of enlarged queries and keys, four times as hot since neighbours lie closer."""
    small, large = drawn(before(1), 1), drawn(GROWN, 2)
    with torch.no_grad():
        small.attentions[0].log_temperature.add_(0.7)
    carry_over(small, large)
    fine, coarse = large.attentions[:2]
    assert fine.log_temperature == coarse.log_temperature + math.log(4)
    features = torch.randn(1, 4, 64, 32), torch.randn(1, 4, 64, 32)
    handed = torch.randn(1, 4, 32, 16), torch.randn(1, 4, 32, 16)
    asked = Given(*features, torch.empty(0), torch.empty(0), torch.empty(0), handed)
    with torch.no_grad():
        for made, given in zip(fine.project(asked), handed, strict=True):
            torch.testing.assert_close(made, enlarge(given))


def test_every_weight_of_the_new_level_learns_after_two_steps(
    tmp_path: Path, pictures: Arrays
) -> None:
    """What comes through a strength of 0 has no gradient before the strength has moved."""
    trainer = Trainer(config_for(tmp_path, grow_at=()), pictures)
    before = {name: p.clone() for name, p in trainer.generator.named_parameters()}
    for step in range(3):
        trainer.advance(step)
    after = dict(trainer.generator.named_parameters())
    assert [name for name, p in before.items() if torch.equal(p, after[name])] == []


def test_a_network_is_carried_over_into_one_that_it_is_part_of_alone() -> None:
    other = dataclasses.replace(GROWN, channels=(4, 4, 8))
    with pytest.raises(ValueError, match="is no part of"):
        carry_over(drawn(before(1), 1), drawn(other, 2))
    with pytest.raises(ValueError, match="is no part of"):
        carry_over(drawn(GROWN, 1), drawn(before(1), 2))
    stemless = dataclasses.replace(GROWN, stems=1)
    with pytest.raises(ValueError, match="is no part of"):
        carry_over(drawn(dataclasses.replace(before(1), stems=1), 1), drawn(stemless, 2))


def test_the_network_that_ships_is_part_of_the_one_that_grows() -> None:
    shipped = load_trained(SHIPPED / "gpa").generator
    large = Generator(PRESETS["grow256"])
    carry_over(shipped, large)
    assert torch.equal(large.to_rgb[1].weight, shipped.to_rgb[0].weight)
    assert torch.equal(large.source_encoder.stems[0].weight, shipped.source_encoder.stem.weight)


def test_coarser_levels_are_taken_out_trained_and_put_back() -> None:
    large, other = drawn(GROWN, 1), drawn(GROWN, 2)
    part = coarser_part(large, 1)
    assert part.config == before(1)
    fresh = drawn(GROWN, 2)
    begin_with([other, part], fresh)  # the finest level of one, the others of the other
    finest, whole, mine = other.state_dict(), large.state_dict(), fresh.state_dict()
    carried = {deepened(name, 1) for name in part.state_dict()}
    assert carried < mine.keys()
    for name, x in mine.items():
        assert torch.equal(x, whole[name] if name in carried else finest[name])


def test_a_network_begins_with_the_coarser_levels_of_a_larger_one() -> None:
    large, small = drawn(GROWN, 1), drawn(before(1), 2)
    begin_with([large], small)
    expected = coarser_part(large, 1).state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in small.state_dict().items())


@pytest.mark.bad_input
def test_levels_that_never_were_the_finest_are_no_network() -> None:
    with pytest.raises(ValueError, match="of 3 stems has not grown 3 times"):
        coarser_part(drawn(GROWN, 1), 3)


@torch.no_grad()
def test_the_new_level_of_the_large_network_that_ships_copies_what_is_finer() -> None:
    """Of distorted strangers, it is nearer to the truth than what the level below has copied."""
    generator = load_trained(SHIPPED / "gpa256").generator
    size = generator.config.size
    people = [draw_figure(identity, 0, size, STRANGERS) for identity in range(2)]
    folk = People(np.stack([x.image for x in people]), np.stack([x.points for x in people]))
    image, maps = to_tensors(folk, torch.device("cpu"))
    batch = distorted(image, maps, random_affine(2, 0.3, torch.Generator().manual_seed(0)))
    morph = generator(batch.source, batch.source_maps, batch.target_maps)
    fine, coarse = morph.copied[0], double(morph.copied[1], smooth=False)
    error, before = ((x - batch.truth).square().mean() for x in (fine, coarse))
    assert size == (256, 128)
    assert error < before
    assert (morph.image - batch.truth).square().mean() < before


def test_a_run_grows_at_its_steps(tmp_path: Path, pictures: Arrays) -> None:
    sizes, warm = [], []

    def note(trainer: Trainer, done: int) -> dict[str, float]:
        sizes.append(trainer.generator.config.size)
        warm.append(trainer.optimizer.param_groups[0]["lr"])
        return {}

    grown = train(config_for(tmp_path, warm_up_steps=2, hold=1.0), pictures, note)
    assert sizes == list(SIZES.values())
    assert warm == pytest.approx([1e-3, 2e-3] * 3)
    assert load_trained(tmp_path).generator.config == GROWN == grown.generator.config


@pytest.mark.parametrize("killed_after", [2, 3, 4])  # at growths and between
def test_a_run_that_grows_resumes_with_the_same_bits(
    tmp_path: Path, pictures: Arrays, whole: dict[str, torch.Tensor], killed_after: int
) -> None:
    parts = config_for(tmp_path, save_every_s=0.0)

    def kill(trainer: Trainer, done: int) -> dict[str, float]:
        if done == killed_after + 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(parts, pictures, kill)
    stopped = load_trained(tmp_path)
    assert (stopped.step, stopped.generator.config.size) == (killed_after, SIZES[killed_after])
    train(parts, pictures)
    found = checkpoints.latest(tmp_path)
    assert found is not None
    assert found.tensors.keys() == whole.keys()
    assert all(torch.equal(x, whole[name]) for name, x in found.tensors.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Arrays) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "test", GROWN)
        train(config_for(folder), pictures)
    found = checkpoints.latest(folder)
    assert found is not None
    return found.tensors


def test_a_run_begins_with_what_another_has_learnt(tmp_path: Path, pictures: Arrays) -> None:
    train(config_for(tmp_path / "small", grow_at=(2,), steps=3), pictures)
    small = load_trained(tmp_path / "small").generator
    start = config_for(tmp_path / "large", grow_at=(), start=(tmp_path / "small",))
    trainer = Trainer(start, pictures)
    for network in (trainer.generator, trainer.average):
        assert all(
            torch.equal(x, network.state_dict()[name]) for name, x in small.state_dict().items()
        )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"grow_at": (2, 2)}, "must be steps that rise from 1"),
        ({"grow_at": (0,)}, "must be steps that rise from 1"),
        ({"grow_at": (1, 2, 3)}, "names 3 steps; a network of 3 stems can grow 2 times"),
        ({"start": (Path("nowhere"),)}, "there is no checkpoint nowhere"),
        ({"true_pairs": True}, "--true-pairs needs drawn figures with their truth"),
        ({"variety": 1.5}, "--variety must"),
        ({"sharper": 0.0}, "--sharper must"),
    ],
)
def test_bad_growth(
    tmp_path: Path, pictures: Arrays, changes: dict[str, object], error: str
) -> None:
    with pytest.raises((ValueError, BadInput), match=error):
        train(config_for(tmp_path, **changes), pictures)
    assert not list(tmp_path.iterdir())


@pytest.mark.bad_input
def test_a_discriminator_judges_the_last_size_alone(tmp_path: Path, pictures: Arrays) -> None:
    config = dataclasses.replace(config_for(tmp_path, gan_from=0.5), weights=Weights(gan=1.0))
    with pytest.raises(ValueError, match="judges the last size"):
        train(config, pictures)


def test_sharper_attentions_are_those_that_select() -> None:
    plain, sharp = (drawn(dataclasses.replace(GROWN, sharper=x), 1) for x in (1.0, 4.0))
    x = torch.randn(1, 4, 8, 8)
    for i, times in enumerate((4.0, 4.0, 1.0)):  # the coarsest is full
        ratio = (sharp.attentions[i].heat(x) / plain.attentions[i].heat(x)).square()
        torch.testing.assert_close(ratio, torch.full_like(ratio, times))
    with pytest.raises(ValueError, match="1 without temperature"):
        dataclasses.replace(GROWN, temperature=False, sharper=4.0)
