"""Photographs in the figures and conditions around them: what changes, and what must not."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.images.pose_morphing.data import distorted, draw_pairs
from examples.people.figures.cache import Figures, Options, build
from examples.people.figures.fabric import Patch, load_photo
from examples.people.figures.render import draw_figure
from examples.people.figures.truth import Truth
from examples.people.pictures import Arrays, People
from examples.people.variety import Conditions, draw_conditions, under_conditions

SIZE = (64, 32)
PLAIN = Conditions(gain=(1, 1, 1), contrast=1, gradient=(0, 0), blur=0, quality=95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    build(folder, Options(SIZE, identities=30, poses=2, photos=0.5), workers=0)
    return folder


def people(seed: int, count: int = 3) -> People:
    draws = np.random.default_rng(seed)
    points = draws.random((count, 18, 3)).astype(np.float32)
    return People(draws.integers(0, 256, (count, *SIZE, 3), dtype=np.uint8), points)


@pytest.mark.parametrize("identity", range(4))
def test_photographs_change_colours_alone(identity: int) -> None:
    """Body, pose, key points and the true correspondence are those of the drawn figure."""
    drawn, photographed = (draw_figure(identity, 1, SIZE, photos=share) for share in (0.0, 1.0))
    for name in ("points", "part", "local", "yaw"):
        assert np.array_equal(getattr(drawn, name), getattr(photographed, name))
    changed = (drawn.image != photographed.image).any(axis=2)
    trunk = drawn.part > 0
    assert changed[~trunk].mean() > 0.5
    assert changed[trunk].mean() > 0.3


def test_a_patch_is_a_piece_of_its_photograph() -> None:
    photo = load_photo("astronaut")
    cut = np.asarray(Patch("astronaut", (0.5, 1.0), (2, 0, 1)).cut(np.array([100, 50])))
    assert np.array_equal(cut, photo[206:306, 462:512, [2, 0, 1]])
    whole = Patch("astronaut", (0.3, 0.3)).cut(np.array([9999, 50]))
    assert whole.size == (50, 512)


def test_a_folder_says_how_many_photographs_only_if_there_are_some(folder: Path) -> None:
    assert Figures(folder, "train").options["photos"] == 0.5
    older = Options(SIZE, identities=30, poses=2).written()
    assert set(older) == {"version", "size", "identities", "poses", "seed", "truth"}


def test_plain_conditions_change_what_compression_changes() -> None:
    smooth = np.linspace(0, 255, 64 * 32 * 3).reshape(64, 32, 3).astype(np.uint8)
    assert np.abs(PLAIN.seen(smooth).astype(int) - smooth).max() <= 4


def test_conditions_by_hand() -> None:
    """A flat grey picture: each channel's gain, the tone curve, and light from the right."""
    grey = np.full((64, 32, 3), 100, np.uint8)
    gain = dataclasses.replace(PLAIN, gain=(1.2, 1.0, 0.8)).seen(grey)
    assert np.abs(gain.astype(int) - (120, 100, 80)).max() <= 2
    curve = dataclasses.replace(PLAIN, contrast=2.0).seen(grey)
    assert np.abs(curve.astype(float) - 255 * (100 / 255) ** 2).max() <= 2
    right = dataclasses.replace(PLAIN, gradient=(0.0, 0.5)).seen(grey)[:, [0, -1], 0]
    assert np.abs(right - 100 * np.exp([-0.5, 0.5])).max() <= 4


def test_blur_spreads_an_edge_and_keeps_the_mean() -> None:
    edge = np.zeros((64, 32, 3), np.uint8)
    edge[32:] = 200
    seen = dataclasses.replace(PLAIN, blur=2 / 64).seen(edge)
    assert 30 < int(seen[31, 16, 0]) < 100 < int(seen[32, 16, 0]) < 170
    assert abs(seen.mean() - edge.mean()) < 2


def test_two_pictures_of_one_person_are_seen_alike_and_stay_in_place() -> None:
    group = people(0)
    torch.manual_seed(4)
    first, second = under_conditions([group, group], 1.0)
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.points, group.points)
    assert not np.array_equal(first.images, group.images)
    torch.manual_seed(4)
    assert np.array_equal(under_conditions([group], 1.0)[0].images, first.images)


def test_a_share_of_the_people_is_changed() -> None:
    group = people(1, count=60)
    torch.manual_seed(0)
    (seen,) = under_conditions([group], 0.3)
    changed = (seen.images != group.images).any(axis=(1, 2, 3)).mean()
    assert 0.15 < changed < 0.45
    before = torch.get_rng_state()
    assert under_conditions([group], 0.0)[0] is group
    assert torch.equal(torch.get_rng_state(), before)


def test_conditions_are_many() -> None:
    drawn = [draw_conditions(np.random.default_rng(seed)) for seed in range(40)]
    assert len({c.quality for c in drawn}) > 15
    assert 0.3 < np.mean([c.blur == 0 for c in drawn]) < 0.7
    assert min(c.gain[0] for c in drawn) < 0.85 < 1.15 < max(c.gain[0] for c in drawn)


def test_true_pairs_say_where_each_pixel_was(folder: Path) -> None:
    """Against a loop over the truth's rows and columns."""
    figures = Figures(folder, "train")
    pictures, truth = Arrays(figures.images, figures.points, figures.pairs), Truth(figures)
    torch.manual_seed(0)
    batch = draw_pairs(pictures, 3, torch.device("cpu"), truth, variety=1.0)
    torch.manual_seed(0)
    rows = torch.randint(len(figures.pairs), (3,)).tolist()
    assert batch.known.any()
    for sample, row in enumerate(rows):
        places, copyable = truth.correspond(*figures.pairs[row].tolist())
        assert np.array_equal(batch.known[sample].numpy(), copyable)
        for y, x in np.argwhere(copyable)[::7]:
            at = batch.origin[sample, y, x]
            column, line = ((at[0] + 1) * 32 - 1) / 2, ((at[1] + 1) * 64 - 1) / 2
            assert (line.item(), column.item()) == pytest.approx(places[y, x], abs=1e-4)


@pytest.mark.bad_input
def test_a_share_beyond_one_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="--photos must"):
        Options(photos=1.5)
    said = json.loads((folder / "figures.json").read_text())
    assert said["photos"] == 0.5


def test_a_reduced_batch_keeps_its_correspondence() -> None:
    """What comes from (x, y) still does, in a picture of half the sides."""
    torch.manual_seed(1)
    image, maps = torch.randn(1, 3, 64, 32), torch.zeros(1, 18, 64, 32)
    shift = torch.tensor([[[1.0, 0, 0.25], [0, 1, 0]]])  # 4 of 32 pixels from the right
    batch = distorted(image, maps, shift).reduced(1)
    assert torch.equal(batch.source, torch.nn.functional.avg_pool2d(image, 2))
    known = batch.known[0]
    assert known[:, :14].all()
    assert not known[:, 14:].any()
    copied = torch.nn.functional.grid_sample(batch.source, batch.origin, align_corners=False)
    torch.testing.assert_close(copied[..., :14], batch.truth[..., :14])
