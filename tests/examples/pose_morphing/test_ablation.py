"""The ablation: a run of two steps, and its report by hand."""

import dataclasses
import json
from pathlib import Path

import PIL.Image
import pytest
import torch

from examples.images.pose_morphing.config import PRESETS, parse
from examples.images.pose_morphing.studies import ablation
from examples.images.pose_morphing.studies.ablation_report import cell, spread_of, table


@pytest.fixture
def _torch_settings():
    """The program sets both for its whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("_torch_settings", "_one_turn")
def test_a_smoke_run_writes_its_report_and_a_second_one_trains_nothing(
    figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = (ablation.PIVOT, "NO_8")
    options = ablation.Options(
        figures, tmp_path, steps=3, seeds=1, attentions=names, batch=2, tests=3, smoke=True
    )
    ablation.main(options)
    runs = [json.loads((tmp_path / "runs" / f"{name}-0.json").read_text()) for name in names]
    assert list(runs[0]["read"]) == ["1", "2", "4", "8", "16"]
    assert runs[0]["read"]["4"] == runs[0]["scores"]
    sums = [sum(run["attention_bytes"].values()) for run in runs]
    assert sums[0] > 4 * sums[1]
    assert set(json.loads((tmp_path / "step_s.json").read_text())) == set(names)
    assert "| NO_8 | 1 | 2 |" in (tmp_path / "ablation.md").read_text()
    assert set(runs[0]["attention_entries"]) == {"64x32", "32x16", "16x8", "8x4"}
    assert runs[0]["attention_entries"]["64x32"] == 128**2 + 2048 * 4 * 16
    assert runs[0]["scores_at_steps"] != runs[0]["scores"]
    for name in ("memory.png", "kappa.png"):
        with PIL.Image.open(tmp_path / name) as picture:
            assert picture.width > 600
    with PIL.Image.open(tmp_path / "errors.png") as picture:  # truth and both, two rows for each
        assert picture.width == 3 * (2 * 32 + 6) - 6

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    capsys.readouterr()
    ablation.main(options)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    with pytest.raises(ValueError, match="holds runs with other options"):
        ablation.main(dataclasses.replace(options, tests=4))


@pytest.mark.parametrize("name", ablation.ATTENTIONS)
def test_every_attention_fits_the_preset(name: str) -> None:
    for size in PRESETS["tiny64"].sizes:
        parse(name).structure(size)


def test_steps_fill_the_time() -> None:
    options = ablation.Options(Path(), seconds=90)
    assert ablation.steps_of(options, 0.1) == 900
    assert ablation.steps_of(options, 200.0) == 1


def test_a_table_of_two_seeds_by_hand() -> None:
    def run(l1: float) -> dict[str, object]:
        found = {name: {"mean": l1} for name in ("psnr", "ssim", "l1", "texture")}
        memory = {"64x32": 1e6, "32x16": 2e6}
        entries = {"8x4": 4000, "16x8": 1000}
        return {
            "steps": 9,
            "step_s": 0.5,
            "attention_bytes": memory,
            "attention_entries": entries,
            "scores": found,
        }

    lines = table({"x": [run(3.0)], "NO_8": [run(1.0), run(3.0)]}).splitlines()
    value = "2.0000 ± 1.4142"
    head = "| NO_8 | 2 | 9 | 0.500 | 3.00 | 0.02 | 2.00 ± 1.41"
    assert lines[2] == f"{head} | {value} | {value} | {value} | 1.00 |"
    assert lines[3].endswith("| 3.00 | 3.0000 | 3.0000 | 3.0000 | 1.50 |")
    assert cell(spread_of([1.0]), ".2f") == "1.00"
