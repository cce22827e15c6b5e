"""The queue of the paper's own trainings, and the report of what is complete."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from examples.images.pose_morphing.studies import gan, gan_report, judge
from examples.images.pose_morphing.studies.gan import Case
from examples.images.pose_morphing.train_options import TrainConfig
from examples.people import recogniser
from examples.people.figures.cache import Options, build
from examples.people.recogniser import train
from examples.people.sources import open_pictures


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    build(folder, Options((64, 32), identities=30, poses=2, seed=1), workers=0)
    return folder


def test_the_first_seed_of_all_comes_first() -> None:
    found = gan.cases(3)
    assert len(found) == len({case.name for case in found}) == 3 * 19
    assert [case.seed for case in found] == sorted(case.seed for case in found)
    first = [case for case in found[:19] if not case.wrong_poses]
    first = [case for case in first if case.attention in ("gpa", "none")]
    assert {(c.wiring, c.attention, c.discriminator, c.paired) for c in first} == set(
        product(("learnable", "paper"), ("gpa", "none"), (True, False), (True, False))
    )


@pytest.mark.parametrize(
    ("case", "setting", "attention", "gan_weight"),
    [
        (Case("gpa"), "equation2", "GPA128_4_8", 1.0),
        (Case("none", discriminator=False), "equation2", "NO_8", 0.0),
        (Case("far_site", paired=False), "unpaired", "GPA128_4_8+site", 1.0),
        (Case("gpa", discriminator=False, paired=False), "distortion", "GPA128_4_8", 0.0),
    ],
)
def test_a_case_is_equation_2_or_what_is_left_of_it(
    tmp_path: Path, case: Case, setting: str, attention: str, gan_weight: float
) -> None:
    config = case.config(tmp_path, tmp_path, 10)
    assert (config.setting, config.attention) == (setting, attention)
    assert (config.weights.perceptual, config.weights.gan) == (1.0, gan_weight)
    assert config.weights.pixels == config.weights.copying == config.coarse_first == 0
    assert not config.model.pyramid


@pytest.mark.parametrize(
    ("paired", "discriminator", "setting"),
    [
        (True, True, "mixed"),
        (True, False, "mixed"),
        (False, True, "unpaired"),
        (False, False, "distortion"),
    ],
)
def test_the_learnable_wiring_is_that_of_the_example(
    tmp_path: Path, paired: bool, discriminator: bool, setting: str
) -> None:
    config = Case("gpa", "learnable", discriminator, paired).config(tmp_path, tmp_path, 10)
    usual = TrainConfig(tmp_path, tmp_path, preset="tiny64")
    assert config.setting == setting
    assert config.model == replace(usual.model, attention="GPA128_4_8")
    assert config.weights == replace(usual.weights, gan=float(discriminator))


def test_the_queue_goes_on_and_the_report_judges_what_is_complete(
    figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Case("gpa"), Case("none")]
    monkeypatch.setattr(gan, "cases", lambda _: wanted[:1])
    monkeypatch.setattr(gan_report, "cases", lambda _: wanted)
    monkeypatch.setattr(gan, "WATCHED", 2)
    monkeypatch.setattr(judge, "KEYED", 2)
    options = gan.Options(figures, figures, tmp_path / "runs", steps=2, watch_every=1)
    gan.main(options)
    curve = json.loads((tmp_path / "runs/paper-gpa-gan-paired-0/keys.json").read_text())
    assert list(curve) == ["1", "2"]
    assert all(0 <= x <= 1 for x in curve["2"].values())
    monkeypatch.setattr(gan, "cases", lambda _: wanted)
    gan.main(options)
    asked = gan_report.Options(figures, figures, options.out, tmp_path / "results", pictures=6)
    with pytest.warns(RuntimeWarning, match="needs more samples"):
        gan_report.main(asked)
    text = (tmp_path / "results/gan.md").read_text()
    assert "| gpa, the paper's wiring | 1 |" in text
    assert "| none, the paper's wiring | 1 |" in text
    said = json.loads((tmp_path / "results/gan/runs/paper-gpa-gan-paired-0.json").read_text())
    assert said["steps"] == 2
    assert 0 <= said["right_over_wrong"] <= 1
    assert {p.name for p in (tmp_path / "results/gan").glob("*.*")} == {"curves.png", "sheet.jpg"}


@pytest.mark.bad_input
def test_without_a_complete_run_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no complete run"):
        gan_report.main(gan_report.Options(tmp_path, tmp_path, tmp_path / "runs", tmp_path / "out"))


@pytest.mark.parametrize("name", ["loss", "judge"])
def test_the_recognisers_that_come_along_know_figures(figures: Path, name: str) -> None:
    """Of people of another seed: most key points within 5 % of the height, and who is who."""
    known = train.knowledge(recogniser.shipped(name), open_pictures(figures, "train"))
    assert known["points_found"] > 0.6
    assert known["nearer_than_others"] > 0.9


def test_a_recogniser_learns_and_goes_on_with_the_same_bits(figures: Path, tmp_path: Path) -> None:
    """Extended from two steps to three, it ends as one of three: the rate is still warming up."""
    for name, steps in (("parts", 2), ("parts", 3), ("whole", 3)):
        train.main(train.Options(figures, tmp_path / name, steps=steps, batch=2))
    files = [tmp_path / name / "weights.safetensors" for name in ("parts", "whole")]
    a, b = (recogniser.load(path) for path in files)
    assert json.loads((tmp_path / "whole/held_out.json").read_text())["steps"] == 3
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
