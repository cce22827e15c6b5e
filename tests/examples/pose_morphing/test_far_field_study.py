"""The study of far fields in the flagship's training: what it trains, and that it goes on."""

import json
from pathlib import Path

import pytest

from examples.images.pose_morphing.studies import far_field, gan
from examples.images.pose_morphing.studies.gan import Case
from examples.people.figures.cache import Options, build


def test_the_papers_wiring_has_nothing_that_helps_it_to_find(tmp_path: Path) -> None:
    by_name = {case.name: case.config(tmp_path, tmp_path, 10) for case in far_field.cases(1)}
    assert len(by_name) == 7
    config = by_name["paper-far_block-plain-unpaired-0"]
    assert (config.setting, config.coarse_first, config.weights.gan) == ("distortion", 0, 0)
    assert (config.weights.copying, config.weights.correspondence, config.weights.selected) == (
        (0,) * 3
    )
    assert config.weights.perceptual == 1
    assert by_name["learnable-gpa-plain-paired-0"].setting == "mixed"


@pytest.mark.usefixtures("_one_turn")
def test_it_trains_for_the_same_time_measures_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "figures"
    build(data, Options((64, 32), identities=30, poses=2, seed=1), workers=0)
    wanted = [Case("gpa", "learnable", discriminator=False)]
    monkeypatch.setattr(far_field, "cases", lambda _: wanted)
    monkeypatch.setattr(far_field, "FOLLOWED", 2)
    monkeypatch.setattr(far_field, "COMPARED", [("learnable", "gpa")])
    monkeypatch.setattr(gan, "WATCHED", 2)
    options = far_field.Options(data, data, tmp_path / "runs", tmp_path / "results", 1, 1e-3)
    far_field.main(options)
    path = tmp_path / "results/far_field/learnable-gpa-plain-paired-0.json"
    said = json.loads(path.read_text())
    assert list(said["curve"]) == ["1"]
    assert 0 <= said["curve"]["1"]["keys/64x32"] <= 1
    text = (tmp_path / "results/far_field.md").read_text()
    assert "| the recipe that learns | GPA | 1 | 1 |" in text
    assert (tmp_path / "results/far_field/curves.png").stat().st_size > 0
    before = path.stat().st_mtime_ns
    far_field.main(options)  # nothing is left to do
    assert path.stat().st_mtime_ns == before


@pytest.mark.bad_input
def test_it_refuses_no_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--seconds"):
        far_field.main(far_field.Options(tmp_path, tmp_path, seconds=0.0))
