"""Measures of generators, and the comparison of systems by processor time."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from examples.common.files import write_json
from examples.common.untrusted import BadInput, read_json
from examples.images.gan import judge
from examples.images.gan.data import Pictured, open_data, photographs
from examples.images.gan.measures import Measures, made_by, precision_recall, some_real
from examples.images.gan.studies import compare, report, spoilt
from examples.images.gan.studies.compare import Case
from examples.images.gan.systems import latent_width
from examples.images.gan.trained import SHIPPED, Options, load, main as export
from examples.people.figures import cache
from examples.people.recogniser import load as load_recogniser
from examples.people.sources import open_pictures


def some_pictures(count: int = 12) -> Pictured:
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    return Pictured(images, torch.arange(count) % 3, 3)


def colours(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def test_precision_and_recall_of_points_on_a_line() -> None:
    """With one neighbour each point reaches to the next one; 5 reaches down to 0.6, so to 1."""
    real = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    made = torch.tensor([[0.5], [0.6], [5.0]])
    assert precision_recall(real, made, 1) == (pytest.approx(2 / 3), 0.25)
    assert precision_recall(made, real, 1) == (0.25, pytest.approx(2 / 3))
    assert precision_recall(real, real, 3) == (1.0, 1.0)


def test_measures_of_the_same_pictures_are_perfect_and_named() -> None:
    pictured = some_pictures(100)
    found = Measures.of(pictured, 100)(some_real(pictured, 100))
    assert found == {
        "frechet_form": pytest.approx(0, abs=1e-3),
        "frechet_colours": pytest.approx(0, abs=1e-3),
        "precision": 1,
        "recall": 1,
    }
    worse = Measures.of(pictured, 100)(some_real(pictured, 100) / 2)
    assert min(worse["frechet_form"], worse["frechet_colours"]) > 0.1


def test_measures_are_read_between_two_times() -> None:
    curve = {
        "10": {"interval_s": 4.0, "frechet": 8.0},
        "20": {"interval_s": 2.0, "frechet": 2.0},
    }
    assert report.at_time(curve, 5.0) == {"steps": 15.0, "s": 5.0, "frechet": 5.0}
    assert report.at_time(curve, 1.0) == {"steps": 10.0, "s": 4.0, "frechet": 8.0}
    assert report.times(curve) == [4.0, 6.0]


def test_the_run_that_had_least_time_goes_on_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured = some_pictures()
    measures = Measures({"colours": colours}, {"colours": colours(some_real(pictured, 12))})
    for module in (compare, report):
        monkeypatch.setattr(module, "open_data", lambda *_: pictured)
        monkeypatch.setattr(module, "Measures", type("", (), {"of": lambda *_: measures}))
    trained: list[tuple[str, int]] = []
    real_train = compare.train
    monkeypatch.setattr(
        compare,
        "train",
        lambda c, *more: trained.append((c.out.name, c.steps)) or real_train(c, *more),
    )
    runs = tmp_path / "runs"
    options = compare.Options(
        "", runs, minutes=1e-4, seeds=1, systems=("stylegan2",), every=1, pictures=12
    )
    compare.main(options)
    assert trained == [("stylegan2-own-0", 1), ("stylegan2-gpa-0", 1)]
    own = compare.curve_of(runs / "stylegan2-own-0")
    longer = compare.time_of(Case("stylegan2"), runs) / 60 + 1e-6
    compare.main(compare.Options(**{**vars(options), "minutes": longer, "attentions": ("own",)}))
    assert trained[2:] == [("stylegan2-own-0", 2)]
    for name, seconds in (("own", 1.0), ("gpa", 2.0)):
        path = runs / f"stylegan2-{name}-0" / "measures.json"
        curve = {str(step): own["1"] | {"interval_s": seconds} for step in (1, 2)}
        write_json(path, curve)
    report.main(report.Options(runs, "", tmp_path, 1, pictures=6, shown=2))
    table = (tmp_path / "gans.md").read_text()
    assert "| StyleGAN2 | none | 1 | 2 | 2 |" in table
    assert "| StyleGAN2 | GPA(4, far=block) | 1 | 2 | 1 |" in table
    assert "\n* colours: the mean colours of 4x4 squares.\n" in table
    found = read_json(tmp_path / "gans.json")
    assert found["runs"].keys() == {"stylegan2-own-0", "stylegan2-gpa-0"}
    assert all((tmp_path / f"gans_{name}.png").is_file() for name in ("curves", "sheet"))

    small = tmp_path / "small"
    export(Options(runs / "stylegan2-own-0", small))
    latent = torch.randn(2, 64)
    a, b = (made_by(load(x).generator, latent, 1) for x in (runs / "stylegan2-own-0", small))
    assert (a - b).abs().max() < 0.05 * a.abs().max()


@pytest.mark.parametrize("name", sorted(x.name for x in SHIPPED.iterdir() if x.is_dir()))
def test_networks_that_ship_make_heads(name: str, drawn: Path) -> None:
    """Nearer to real ones than those with faces smoothed out, or stained, are."""
    trained, real = load(SHIPPED / name), open_data(str(drawn), 32)
    measures, latents = Measures.of(real, 200), torch.randn(200, latent_width(trained.model))
    found = measures(made_by(trained.generator, latents, real.classes))
    assert found["frechet_form"] < 0.2
    assert found["frechet_colours"] < 0.3


@pytest.mark.bad_input
def test_folders_without_runs_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no measured run"):
        report.main(report.Options(tmp_path, "photographs", tmp_path))
    for name, feature in (("hit-own-0", "form"), ("ylg-own-0", "figures")):
        point = {"interval_s": 1.0, f"frechet_{feature}": 1.0}
        write_json(tmp_path / "runs" / name / "measures.json", {"1": point})
    with pytest.raises(BadInput, match="ylg-own-0 was measured by"):
        report.main(report.Options(tmp_path / "runs", "photographs", tmp_path))
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput, match="holds no trained generator"):
            load(folder)
    with pytest.raises(BadInput, match="no system 'gan'"):
        compare.main(compare.Options("photographs", tmp_path, systems=("gan",)))


@pytest.fixture(scope="module")
def patches() -> Pictured:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("examples.images.gan.data.PATCHES", 122)
        return photographs(32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    cache.build(folder, cache.Options((192, 96), 30, 8, seed=5, truth=False), workers=0)
    return folder


@pytest.fixture(scope="module")
def distances(drawn: Path) -> dict[str, dict[str, float]]:
    return spoilt.distances(open_data(str(drawn), 32), 512)


def test_spoilt_heads_are_farther_the_more_they_are_spoilt(
    distances: dict[str, dict[str, float]],
) -> None:
    real, form = "other real pictures", "frechet_form"
    for measure, *worse in (
        (form, real, "blurred by 0.5 pixels", "blurred by 1 pixel", "blurred by 2 pixels"),
        (form, real, "noise of 0.2", "noise of 0.5"),
        (form, real, "faces smoothed out", "quarters exchanged"),
        (form, real, "stained", "pixels out of order"),
        (form, real, "bent", "pixels out of order"),
        ("frechet_colours", real, "grey", "stained"),
        ("frechet_colours", real, "16 pictures, repeated", "one picture, repeated"),
    ):
        ordered = [distances[name][measure] for name in worse]
        assert ordered == sorted(ordered), worse
        assert ordered[1] > 1.3 * ordered[0], worse


def test_form_does_not_depend_on_colours(distances: dict[str, dict[str, float]]) -> None:
    real, grey = distances["other real pictures"], distances["grey"]
    assert grey["frechet_form"] < 1.5 * real["frechet_form"]
    assert grey["frechet_colours"] > 3 * real["frechet_colours"]


def test_points_of_heads_lie_where_the_judge_finds_them(drawn: Path) -> None:
    """In pictures of strangers, whose colours are mixed."""
    some = judge.heads_of(open_pictures(drawn, "train"))
    assert some.images.shape[1:] == (3, 32, 32)
    known = judge.knowledge(judge.shipped(), some)
    assert known["points_found"] > 0.8
    assert known["point_px"] < 1
    shifted = judge.Heads(some.images, some.points + torch.tensor([3.0, 0.0, 0.0]))
    assert judge.knowledge(judge.shipped(), shifted)["points_found"] < 0.3


def test_a_judge_learns_key_points(drawn: Path, tmp_path: Path) -> None:
    some = judge.heads_of(open_pictures(drawn, "train"))
    far = []
    for steps in (1, 60):
        options = judge.Options(drawn, tmp_path / str(steps), steps, batch=24)
        far.append(judge.knowledge(judge.main(options), some)["point_px"])
        weights = load_recogniser(options.out / "weights.safetensors")
        held_out = judge.knowledge(weights, judge.heads_of(open_pictures(drawn, "test")))
        assert read_json(options.out / "held_out.json").items() >= held_out.items()
    assert far[1] < 0.8 * far[0]


def test_the_distance_is_that_of_the_last_stage_with_unit_variance(patches: Pictured) -> None:
    """Computed again in numpy and scipy, from the network's own features."""
    real, others = (some_real(patches, 244, skip) for skip in (0, 244))
    measured = Measures.of(patches, 244)(others)
    network = judge.shipped()
    squares = [x.reshape(-1, 3, 4, 8, 4, 8).mean(dim=(3, 5)).flatten(1) for x in (others, real)]
    stages = [network(x)[-1].mean(dim=(2, 3)) for x in (others, real)]
    assert measured["frechet_form"] == pytest.approx(frechet_over_spread(*stages), rel=1e-3)
    assert measured["frechet_colours"] == pytest.approx(frechet_over_spread(*squares), rel=1e-3)


def frechet_over_spread(others: Tensor, real: Tensor) -> float:
    a, b = (x.double().numpy() for x in (others, real))
    spread = np.sqrt(np.square(b - b.mean(axis=0)).sum() / (len(b) - 1))
    a, b = a / spread, b / spread
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    assert np.trace(cov_b) == pytest.approx(1)
    values = scipy.linalg.eigvals(cov_a @ cov_b).real.clip(0)
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(values).sum()


def test_all_runs_of_a_round_come_before_the_next() -> None:
    assert compare.goals(12, 5) == [5, 10, 12]
    assert compare.goals(5, 5) == [5]
    assert compare.goals(0.5, 5) == [0.5]
