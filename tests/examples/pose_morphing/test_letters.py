"""Prints that can be read: where they are, which pairs are asked, what is written beside them."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from examples.images.pose_morphing.studies import letters
from examples.people.figures import cache, prints
from examples.people.figures.cache import Figures
from examples.people.figures.render import looks_of, render
from examples.people.figures.truth import Truth
from tests.examples.pose_morphing.conftest import SIZE, filled

OPTIONS = cache.Options(SIZE, identities=120, poses=4)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figures of which only the test's identities are rendered."""
    return filled(tmp_path_factory.mktemp("crowd"), OPTIONS, range(116, 120))


def test_a_print_is_where_pixels_change_with_its_colour(
    crowd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, shown = Figures(crowd, "test"), 0
    for picture in range(len(figures.images)):
        found, versions = letters.print_at(figures, picture, "back"), []
        for colour in ((255, 0, 0), (0, 0, 255)):
            with monkeypatch.context() as painted:
                painted.setattr(prints, "outlined", lambda *_, colour=colour: board(colour))
                person = letters.person_of(figures, picture)
                versions.append(render(looks_of(person[0], SIZE), *person, SIZE).image)
        changed = (versions[0] != versions[1]).any(axis=-1)
        assert not (found & ~changed).any()
        assert (changed & ~found).sum() <= 0.5 * found.sum() + 4  # mixed pixels, along its edges
        shown += bool(found.any())
    assert 0 < shown < len(figures.images)  # of some one sees the chest


def board(colour: tuple[int, int, int]) -> prints.Drawing:
    """Fill the whole print."""
    return lambda canvas, h, w: canvas.rectangle((0, 0, w, h), fill=colour)


def test_pairs_show_their_print_and_turned_ones_are_turned(crowd: Path) -> None:
    figures = Figures(crowd, "test")
    found = letters.drawn(figures, letters.Options(crowd, pairs=2))
    for kind, readings in found.items():
        for each in readings:
            facing = 0.0 if each.where == "chest" else np.pi
            away = np.cos(figures.yaw[[each.source, each.target]] - facing).min()
            low, high = (30, 0) if kind == "frontal" else (65, 30)
            assert np.cos(np.radians(low)) < away <= np.cos(np.radians(high))
            seen = letters.print_at(figures, each.target, each.where)
            _, copyable = Truth(figures).correspond(each.source, each.target)
            assert copyable[seen].mean() >= letters.COPYABLE
    with pytest.raises(ValueError, match="pairs with a print; 1000 are wanted"):
        letters.drawn(figures, letters.Options(crowd, pairs=1000))


def test_sheets_and_what_is_written(run: Path, crowd: Path, tmp_path: Path) -> None:
    letters.main(letters.Options(crowd, run, tmp_path, pairs=1))
    said = json.loads((tmp_path / "letters.json").read_text())
    figures = Figures(crowd, "test")
    for kind in letters.KINDS:
        (each,) = said[kind]
        assert (
            each["words"] == letters.looks_at(figures, each["source"]).prints[each["where"]].words
        )
        with PIL.Image.open(tmp_path / f"{kind}.png") as sheet:
            assert sheet.height > SIZE[0] + SIZE[1]


@pytest.mark.bad_input
def test_a_network_of_another_size_is_refused_before_any_work(crowd: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes pictures of 128x64, the data has 64x32"):
        letters.main(letters.Options(crowd, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
