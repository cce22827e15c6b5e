"""A person who moves, and what is measured of it; where quality is lost."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import ndgpa
from examples.images.pose_morphing import animate
from examples.images.pose_morphing.data import to_maps
from examples.images.pose_morphing.studies import quality
from examples.images.pose_morphing.trained import load_trained
from examples.people.figures.camera import Camera
from examples.people.figures.poses import fits
from examples.people.figures.render import looks_of
from examples.people.figures.skeleton import place
from examples.people.figures.walk import step
from examples.people.videos import video_frames
from ndgpa.functional import as_rule
from tests.examples.pose_morphing.conftest import SIZE

IMAGE = ndgpa.Image((8, 8), block=2, cell=2)


def test_a_drawn_figure_walks_into_an_mp4_and_a_gif(run: Path, tmp_path: Path) -> None:
    animate.main(animate.Options(model=run, out=tmp_path, frames=3, people=1))
    assert len(video_frames(tmp_path / "animation.mp4")) == 3
    with PIL.Image.open(tmp_path / "animation.gif") as picture:
        assert picture.n_frames == 3
        assert picture.size == (3 * 4 * SIZE[1], 4 * SIZE[0])
    said = json.loads((tmp_path / "flicker.json").read_text())
    assert all(of["flicker"] > 0 for of in said["selection"].values())


def test_the_truth_does_not_flicker_and_a_still_picture_does() -> None:
    sequence = animate.walking(0, 4, SIZE)
    assert sequence.truth is not None
    assert animate.errors(sequence.truth, sequence) == (0, 0)
    still = sequence.truth[:1].expand(4, -1, -1, -1)
    assert animate.errors(still, sequence)[0] == pytest.approx(1, abs=0.1)


def test_a_walk_fits_its_picture() -> None:
    for identity in range(5):
        body, camera = looks_of(identity, (128, 64)).body, Camera(128, 64)
        assert all(fits(place(step(number, 48), body), camera) for number in range(48))


def test_what_was_selected_for_one_frame_is_read_for_the_next_besides() -> None:
    torch.manual_seed(0)
    rule, frames = animate.Reuse(as_rule(2)), torch.randn(2, 1, 1, 64, 4)
    own = [ndgpa.select(x, x, IMAGE, 2).blocks for x in frames]
    read = [ndgpa.select(x, x, IMAGE, rule).blocks for x in frames]
    assert torch.equal(read[0], own[0])
    for cell in range(IMAGE.num_cells):
        both = {*own[0][0, 0, cell].tolist(), *own[1][0, 0, cell].tolist()}
        assert set(read[1][0, 0, cell].tolist()) - {-1} == both


@pytest.mark.bad_input
def test_a_source_without_poses_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--source and --poses go together"):
        animate.main(animate.Options(source="me.png", model=run, out=tmp_path))


def test_a_source_that_was_read_once_gives_the_same_morph(run: Path) -> None:
    generator = load_trained(run).generator
    figures = [animate.draw_figure(0, pose, SIZE) for pose in range(2)]
    points = np.stack([figure.points for figure in figures])
    source = animate.Person(figures[0].image, figures[0].points).pixels
    maps = to_maps(points, SIZE, torch.device("cpu")).split(1)
    again = generator(source, *maps, features=generator.read(source, maps[0]))
    torch.testing.assert_close(again.image, generator(source, *maps).image, atol=0, rtol=0)


def test_the_shares_of_the_error_are_all_of_it(run: Path, figures: Path, tmp_path: Path) -> None:
    mends = ("none", "hot x4 + kappa 2", "vote 3")
    quality.main(quality.Options(figures, run, tmp_path, pairs=3, mends=mends))
    said = json.loads((tmp_path / "quality.json").read_text())
    assert sum(of["pixels"] for of in said["shares"].values()) == pytest.approx(1)
    added = [x for of in said["shares"].values() for name, x in of.items() if name != "pixels"]
    assert sum(added) == pytest.approx(1)
    assert list(said["mends"]) == ["none", "the true pixels", *mends[1:]]


def test_all_neighbours_of_a_query_vote_with_its_own_offset(run: Path) -> None:
    """Where keys are queries moved by a pixel, every logit of that offset is the largest: 0."""
    attention = load_trained(run).generator.attentions[0]
    query = torch.randn(1, 16, 6, 6)
    key = query.roll(1, dims=3)
    quality.vote(attention, 3)
    q, k = (attention.heat(x)[0, :, 2, 2 + i] for i, x in enumerate((query, key)))
    torch.testing.assert_close(q, k)


@pytest.mark.bad_input
@pytest.mark.parametrize("mend", ["cold", "kappa x", "vote 4"])
def test_an_unknown_mend_is_refused(mend: str, run: Path) -> None:
    with pytest.raises(ValueError, match="unknown mend"):
        quality.mended(load_trained(run).generator, mend)
