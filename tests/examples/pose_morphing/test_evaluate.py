"""Judging generators: one run on a few small figures, and the parts that can be checked by hand."""

import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from examples.common.frechet import frechet_of
from examples.images.pose_morphing import evaluate
from examples.images.pose_morphing.config import PRESETS
from examples.images.pose_morphing.evaluate import Rendered, render, scores
from examples.images.pose_morphing.measures.report import cell, differences, markdown, summary
from examples.images.pose_morphing.measures.sheet import (
    as_pictures,
    draw_sheet,
    in_lines,
    save_picture,
)
from examples.images.pose_morphing.measures.tasks import (
    Task,
    distortion_task,
    pair_task,
    part_of,
)
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.trained import load_trained
from examples.people.figures import cache
from examples.people.figures.truth import open_truth
from examples.people.pictures import Arrays
from tests.examples.pose_morphing.conftest import SIZE


def test_an_evaluation_writes_its_report_and_its_sheets(
    figures: Path, run: Path, tmp_path: Path
) -> None:
    options = evaluate.Options(
        figures,
        (f"gpa={run}", f"gpa1={run}@1"),
        tmp_path,
        pairs=3,
        distortions=4,
        shown=2,
        device="cpu",
    )
    report = evaluate.main(options)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report
    assert set(report["tasks"]) == {"distortion", "pairs"}
    for task in report["tasks"].values():
        assert list(task["scores"]) == ["gpa", "gpa1"]
        for measure in ("psnr", "copyable_ssim", "texture", "perceptual", "key_px", "acc6"):
            assert math.isfinite(task["scores"]["gpa"][measure]["mean"])
        gain = task["differences"]["gpa minus gpa1"]["psnr"]["mean"]
        psnr = [task["scores"][name]["psnr"]["mean"] for name in ("gpa", "gpa1")]
        assert gain == pytest.approx(psnr[0] - psnr[1], abs=1e-5)
        assert "frechet_random_conv" not in task  # of so few
    said = report["models"]["gpa"]
    assert (said["attention"], said["steps_taken"], said["setting"]) == ("GPA128_4_8", 5, "mixed")
    assert list(said["attention_bytes"]) == ["64x32", "32x16", "16x8", "8x4"]
    text = (tmp_path / "evaluation.md").read_text()
    assert "## Pairs, 3 held-out pictures" in text
    assert "| gpa minus gpa1 |" in text
    with PIL.Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.width > 5 * 3 * SIZE[1]
    assert not list(tmp_path.glob(".part-*"))


def test_two_models_of_one_name_are_refused(figures: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two models have the name 'a'"):
        evaluate.main(evaluate.Options(figures, (f"a={run}",) * 2, tmp_path, device="cpu"))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (("gpa",), r"--models has 'gpa'; expected NAME=PATH or NAME=PATH@KAPPA"),
        (("gpa=x@many",), r"--models has 'gpa=x@many'; expected"),
        (("gpa=missing",), "there is no checkpoint missing"),
    ],
)
def test_bad_models_are_one_sentence_before_any_work(
    figures: Path, tmp_path: Path, models: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        evaluate.main(evaluate.Options(figures, models, out, device="cpu"))
    assert not out.exists()


def test_a_checkpoint_gives_its_generator_back_and_another_kappa_if_wanted(run: Path) -> None:
    torch.manual_seed(0)
    expected = Generator(PRESETS["tiny64"]).state_dict()
    found = load_trained(run)
    assert found.generator.config == PRESETS["tiny64"]
    assert all(torch.equal(x, expected[name]) for name, x in found.generator.state_dict().items())
    kappas = [
        [level.operator.rule for level in trained.generator.attentions[:2]]
        for trained in (found, load_trained(run, kappa=7))
    ]
    assert kappas == [[4, 4], [7, 7]]


def test_a_generator_that_gives_the_truth_scores_perfectly(figures: Path) -> None:
    pictures = cache.Figures(figures, "test")
    task = pair_task(
        Arrays(pictures.images, pictures.points, pictures.pairs), 2, 0, open_truth(figures, "test")
    )
    rendered = render(Oracle(task), task, torch.device("cpu"))
    found = summary(scores(rendered, task))
    assert found["psnr"]["count"] == 0  # infinite: no error
    for name, perfect in {"ssim": 1, "copyable_ssim": 1, "l1": 0, "texture": 0}.items():
        assert found[name]["mean"] == pytest.approx(perfect, abs=1e-6)
    assert "key_px" not in found


def test_a_frechet_distance_is_reported_of_enough_pictures(figures: Path) -> None:
    pictures = cache.Figures(figures, "test")
    arrays = Arrays(pictures.images, pictures.points, pictures.pairs)
    task = part_of(distortion_task(arrays, 6, 0), torch.arange(48) % 6)
    truth = task.batch.truth
    made = {"truth": Rendered(truth, {}), "dark": Rendered(truth / 2 - 0.5, {})}
    found = evaluate.judged(made, task, None, frechet_of(None))["frechet_random_conv"]
    assert found["truth"] == pytest.approx(0, abs=1e-6)
    assert found["dark"] > 0.01


class Oracle(Generator):
    """Knows the answers of a task in their order."""

    def __init__(self, task: Task) -> None:
        super().__init__(PRESETS["tiny64"])
        self.task = task

    def forward(self, source, source_maps, target_maps, coarse_only=False):  # type: ignore[no-untyped-def]
        morph = super().forward(source, source_maps, target_maps)
        return type(morph)(self.task.batch.truth, [], [])


def test_true_places_of_a_pair_hold_the_same_surface(figures: Path) -> None:
    pictures = cache.Figures(figures, "test")
    arrays = Arrays(pictures.images, pictures.points, pictures.pairs)
    task = pair_task(arrays, 4, 0, open_truth(figures, "test"))
    rows = np.random.default_rng(0).permutation(len(pictures.pairs))[:4]
    assert task.copyable.float().mean() > 0.05
    for i, (source, target) in enumerate(pictures.pairs[rows]):
        here = task.copyable[i].nonzero()
        there = task.places[i][task.copyable[i]].long()
        parts = pictures.part[target][here[:, 0], here[:, 1]]
        assert np.array_equal(parts, pictures.part[source][there[:, 0], there[:, 1]])


def test_true_places_of_a_distortion_hold_the_same_colour(figures: Path) -> None:
    pictures = cache.Figures(figures, "test")
    arrays = Arrays(pictures.images, pictures.points, pictures.pairs)
    task = distortion_task(arrays, 3, 5, open_truth(figures, "test"))
    for i in range(3):
        here = task.copyable[i].nonzero()
        there = task.places[i][task.copyable[i]].round().long()
        truth = task.batch.truth[i][:, here[:, 0], here[:, 1]]
        nearest = task.batch.source[i][:, there[:, 0], there[:, 1]]
        elsewhere = task.batch.source[i][:, here[:, 0], here[:, 1]]
        assert (truth - nearest).abs().mean() < 0.4 * (truth - elsewhere).abs().mean()


def test_a_task_is_the_same_each_time_and_its_questions_differ(figures: Path) -> None:
    pictures = cache.Figures(figures, "test")
    arrays = Arrays(pictures.images, pictures.points, pictures.pairs)
    first, again = (distortion_task(arrays, 4, 3) for _ in range(2))
    assert torch.equal(first.batch.truth, again.batch.truth)
    assert not torch.equal(first.batch.truth, distortion_task(arrays, 4, 4).batch.truth)
    assert len({tuple(x.flatten()[::97].tolist()) for x in first.batch.source}) == 4


def test_a_summary_by_hand() -> None:
    found = summary({"psnr": torch.tensor([1.0, 3.0, math.nan])})["psnr"]
    assert found == {"mean": 2.0, "standard_error": pytest.approx(1.0), "count": 2}
    gain = differences({"psnr": torch.tensor([3.0])}, {"psnr": torch.tensor([1.0])})
    assert gain["psnr"].tolist() == [2.0]


def test_a_table_by_hand() -> None:
    rows = {"a": summary({"psnr": torch.tensor([1.0, 3.0])}), "b": {}}
    assert markdown(rows) == "| | PSNR dB |\n|---|---|\n| a | 2.00 ± 1.00 |\n| b | - |"
    assert cell({"mean": math.nan, "standard_error": math.nan, "count": 0}, ".3f") == "-"


def test_a_sheet_has_its_pictures_under_their_columns(tmp_path: Path) -> None:
    black, white = np.zeros((4, 2, 3), np.uint8), np.full((4, 2, 3), 255, np.uint8)
    sheet = np.array(draw_sheet({"a": [black, white], "b": [white, black]}, enlarged=10))
    assert (sheet[26:66, :20] == 0).all()
    assert (sheet[26:66, 26:] == 255).all()
    assert (sheet[72:, 26:] == 0).all()
    with pytest.raises(ValueError, match="has no ending of a picture format, such as"):
        save_picture(PIL.Image.fromarray(white), tmp_path / "sheet")


def test_a_long_label_stays_over_its_column() -> None:
    black, words = np.zeros((64, 32, 3), np.uint8), "a network that was shown wrong poses"
    sheet = np.array(draw_sheet({words: [black], "": [black]}))
    top = sheet[: -3 * 64]
    assert len(top) == 26 * in_lines(words, 96).count("\n") + 26 > 26
    assert (top[:, :96] < 255).any()
    assert (top[:, 96:] == 255).all()
    assert in_lines(words, 96).replace("\n", " ") == words


def test_values_from_minus_one_to_one_become_bytes() -> None:
    images = torch.tensor([-2.0, -1, 0, 1])[:, None, None, None].expand(4, 3, 1, 1)
    assert [int(x[0, 0, 0]) for x in as_pictures(images)] == [0, 0, 128, 255]
