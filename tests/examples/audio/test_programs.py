"""The commands, in small."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from examples.audio import evaluate, restore, train
from examples.audio.data import excerpt, recordings_to_train_on
from examples.audio.recordings import HELD_OUT, OWN, MissingRecordingError
from examples.audio.weights import trained
from examples.common import checkpoints
from examples.common.untrusted import BadInput


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Three steps of every network."""
    out = tmp_path_factory.mktemp("runs")
    for name in ("gpa", "window", "full", "nothing"):
        train.main(train.Options(operator=name, out=out, smoke=True))
    train.main(train.Options(causal=True, out=out, smoke=True))
    return out / "smoke"


def test_a_run_can_be_found_again(runs: Path):
    found = checkpoints.latest(runs / "gpa-causal")
    assert found.step == 3
    assert found.facts["operator"] == "gpa"


def test_a_smoke_run_is_not_taken_for_a_training(runs: Path):
    assert [path.name for path in runs.parent.iterdir()] == ["smoke"]
    shipped = trained("gpa", False, Path("none")).state_dict()
    assert all(torch.equal(shipped[k], x) for k, x in weights_in(runs.parent).items())
    assert not all(torch.equal(shipped[k], x) for k, x in weights_in(runs).items())
    with pytest.raises(BadInput, match="--ship is for a network that is trained"):
        train.main(train.Options(out=runs.parent, smoke=True, ship=True))


def weights_in(runs: Path) -> dict[str, torch.Tensor]:
    return trained("gpa", False, runs).state_dict()


def test_a_training_that_is_not_finished_is_not_used(runs: Path, tmp_path: Path):
    found = checkpoints.latest(runs / "nothing")
    checkpoints.save(tmp_path / "nothing", 3, found.tensors, found.facts | {"steps": 9})
    with pytest.raises(BadInput, match="has taken 3 of 9 steps: finish its training first"):
        trained("nothing", False, tmp_path)


def test_excerpts_follow_from_the_seed():
    recordings = recordings_to_train_on([])
    one, two, other = (
        excerpt(recordings, 40_000, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.wave, two.wave)
    assert not torch.equal(one.wave, other.wave)
    assert one.true.isfinite().all()


def test_steps_fit_into_the_time(tmp_path: Path):
    options = train.Options(out=tmp_path, cpu_minutes=1.0, excerpt_s=1.0)
    recordings = recordings_to_train_on([])
    steps = train.steps_in(options, recordings, tmp_path, trial=4)
    said = json.loads((tmp_path / "steps.json").read_text())
    assert steps == round(60 / said["step_s"])
    assert train.steps_in(options, recordings, tmp_path, trial=0) == steps  # not measured again


def test_evaluation_writes_its_tables(runs: Path, tmp_path: Path):
    evaluate.main(evaluate.Options(runs=runs, out=tmp_path, smoke=True))
    said = json.loads((tmp_path / "held_out.json").read_text())
    assert [row["attention"] for row in said["rows"]][2:6] == ["nothing", "window", "full", "GPA"]
    assert "refrain" in said["rows"][0]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{kind}"
        for name in ("held_out", "damaged", "cost", "ten_minutes")
        for kind in ("md", "json")
    }
    long = json.loads((tmp_path / "ten_minutes.json").read_text())["rows"][0]
    assert 0 < long["process at most GB"] < 8


def test_a_smoke_evaluation_leaves_the_committed_results_alone(runs: Path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "RESULTS", tmp_path / "example" / "results")
    monkeypatch.setattr(evaluate, "quote", lambda *args: pytest.fail("README.md was written"))
    evaluate.main(evaluate.Options(runs=runs, tables=("cost",), smoke=True))
    evaluate.main(evaluate.Options(runs, evaluate.RESULTS, tables=("cost",), smoke=True))
    asked = {path.parent for path in tmp_path.rglob("cost.md")}
    assert asked == {tmp_path / "runs/audio/smoke/results", evaluate.RESULTS}


def test_any_attention_can_be_trained_and_compared_by_its_name(tmp_path: Path):
    name = "GPA(Refine(TopK(12), 4), far=block)"
    train.main(train.Options(operator=name, out=tmp_path, smoke=True))
    asked = {"runs": tmp_path / "smoke", "attentions": (name,), "tables": ("held_out",)}
    with pytest.raises(BadInput, match="name their folder by --out"):
        evaluate.main(evaluate.Options(**asked, smoke=True))
    evaluate.main(evaluate.Options(**asked, out=tmp_path / "tables", smoke=True))
    rows = json.loads((tmp_path / "tables" / "held_out.json").read_text())["rows"]
    assert [row["attention"] for row in rows] == [name]


def test_evaluation_without_networks_says_what_to_train(tmp_path: Path):
    with pytest.raises(BadInput, match="no network for nothing"):
        evaluate.main(evaluate.Options(runs=tmp_path, out=tmp_path))


def test_the_first_command_shows_a_result(tmp_path: Path, capsys):
    restore.main(restore.Options(out=tmp_path / "x.wav", runs=tmp_path))
    said = capsys.readouterr().out
    figures = [float(x) for x in re.findall(r"in the gaps, SDR (-?[\d.]+) dB", said)]
    assert figures[1] > figures[0] + 10
    assert {path.name for path in tmp_path.iterdir()} == {"x.wav", "x-damaged.wav", "x.png"}


@pytest.mark.parametrize("told", [True, False])
def test_a_stereo_file_at_an_odd_rate_is_restored_at_its_own(tmp_path: Path, told, capsys):
    wave, rate = soundfile.read(OWN / "refrain.ogg", always_2d=True, frames=16_000 * 4)
    given = wave.repeat(2, axis=1) + 0.01 * np.random.default_rng(0).standard_normal((64_000, 2))
    given[:, 1] *= 0.5
    given[20_000:22_000] = 0
    soundfile.write(tmp_path / "in.wav", given, 11_025 * 2, subtype="PCM_16")
    options = restore.Options(
        str(tmp_path / "in.wav"),
        tmp_path / "out.wav",
        gaps=(f"{20_000 / 22_050}-{22_000 / 22_050}",) if told else (),
        runs=tmp_path,
    )
    restore.main(options)
    before, _ = soundfile.read(tmp_path / "in.wav", always_2d=True, dtype="int16")
    after, rate = soundfile.read(tmp_path / "out.wav", always_2d=True, dtype="int16")
    assert rate == 22_050
    assert after.shape == before.shape
    kept = [*range(19_900), *range(22_100, len(before))]
    assert abs(after[kept].astype(int) - before[kept]).max() <= 1
    assert abs(after[20_200:21_800].astype(int)).mean() > 3
    assert "1 gaps" in capsys.readouterr().out


def test_bad_input_is_told_in_one_sentence(tmp_path: Path):
    with pytest.raises(BadInput, match="is not a file"):
        restore.main(restore.Options("none.wav", tmp_path / "out.wav"))
    soundfile.write(tmp_path / "whole.wav", np.ones(8000) / 2, 8000)
    with pytest.raises(BadInput, match="no gap, a silence that cuts off the sound"):
        restore.main(restore.Options(str(tmp_path / "whole.wav"), tmp_path / "out.wav"))
    with pytest.raises(BadInput, match="must end in"):
        restore.main(restore.Options(str(OWN / "refrain.ogg"), tmp_path / "out.doc"))
    with pytest.raises(BadInput, match="unknown attention"):
        train.main(train.Options(operator="dense", out=tmp_path))
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_db": 20.0}, r"--noise-db and --clip need --damage; without it .*refrain\.ogg is"),
        ({"clip": 0.5}, "--noise-db and --clip need --damage"),
        ({"gaps": ("1-2",), "damage": True}, r"--gaps cannot be told: those of .*refrain\.ogg are"),
        ({"gaps": ("1-2",), "recording": "film music loop"}, "--gaps cannot be told"),
    ],
)
def test_options_of_a_recording_that_is_not_of_their_kind_are_refused(tmp_path, change, message):
    options = restore.Options(str(OWN / "refrain.ogg"), tmp_path / "out.wav")
    with pytest.raises(BadInput, match=f"^{message}"):
        restore.main(replace(options, **change))
    assert not any(tmp_path.iterdir())


def test_a_run_does_not_go_on_with_other_recordings(runs: Path):
    options = train.Options(recordings=(OWN / "refrain.ogg",), out=runs.parent, smoke=True)
    with pytest.raises(BadInput, match=r"holds a run with other options \(recordings\)"):
        train.main(options)


@pytest.mark.parametrize("name", HELD_OUT)
def test_recordings_are_there_or_their_package_is_named(name):
    try:
        wave = HELD_OUT[name]()
    except MissingRecordingError as error:
        pytest.skip(str(error))
    assert wave.isfinite().all()
    assert len(wave) > 8 * 16_000
