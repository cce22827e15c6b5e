"""The commands of the video example, on tiny clips."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from examples.common.untrusted import BadInput
from examples.video import evaluate, fill, train
from examples.video.clips import read_clip, write_clip
from examples.video.model import FillNet
from examples.video.weights import FOLDER, SHIPPED, facts_of, load_net
from tests.examples.video.test_clips import clip_of, gradients

MOST_SHIPPED = 3_000_000  # bytes


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """The commands flush them to zero for their whole process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of 48x32 at uneven times."""
    path = tmp_path_factory.mktemp("clip") / "mine.mp4"
    write_clip(path, clip_of(gradients(8), (0, 24, 48, 60, 96, 120, 200, 224)))
    return path


def test_a_smoke_run_trains_every_attention_and_compares_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = train.Options(out=tmp_path, smoke=True)
    train.main(options)
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"]  # no real run is replaced
    smoke = tmp_path / "smoke"
    assert facts_of(smoke / "gpa.safetensors")["steps"] == "2"
    first = load_net(smoke / "gpa.safetensors").state_dict()
    train.main(replace(options, attentions=("gpa",)))  # there is nothing left to do
    again = load_net(smoke / "gpa.safetensors").state_dict()
    assert all(torch.equal(first[name], x) for name, x in again.items())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "RESULTS", tmp_path / "committed")
    evaluate.main(evaluate.Options(smoke, smoke=True))
    assert not (tmp_path / "committed").exists()
    results = tmp_path / "runs/video/smoke/results"
    table = json.loads((results / "table.json").read_text())
    methods = list(dict.fromkeys(row["method"] for row in table["rows"]))
    assert methods[:2] == ["linear in time", "linear along the camera"]
    assert methods[-2:] == ["full, weights of GPA", "full"]
    assert len(table["rows"]) == 4 * len(methods)
    assert (results / "table.md").read_text() in capsys.readouterr().out


def test_any_attention_can_be_trained_and_compared_by_its_name(tmp_path: Path) -> None:
    name = "GPA(Refine(TopK(4, relevance=logit), 2), far=block)"
    train.main(train.Options((name,), out=tmp_path, smoke=True))
    smoke = tmp_path / "smoke"
    assert (smoke / "GPA_Refine_TopK_4_relevance_logit_2_far_block.safetensors").exists()
    with pytest.raises(BadInput, match="name its folder by --out"):
        evaluate.main(evaluate.Options(smoke, attentions=(name,), smoke=True))
    with pytest.raises(BadInput, match="--network needs --attentions"):
        evaluate.main(evaluate.Options(smoke, network=name, smoke=True))
    asked = evaluate.Options(smoke, tmp_path / "out", attentions=(name, "GPA(2)"), smoke=True)
    evaluate.main(replace(asked, network=name))
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["method"] for row in rows] == 4 * [name, "GPA(2)"]


def test_a_training_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    options = train.Options(("gpa",), steps=3, frames=4, side=16, out=tmp_path / "whole")
    train.main(options)
    killed = replace(options, out=tmp_path / "killed")
    advance = train.Trainer.advance

    def dies(self: train.Trainer, step: int) -> dict[str, float]:
        if step == 2:
            raise KeyboardInterrupt
        return advance(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Trainer, "advance", dies)
        patch.setattr("examples.common.loop.time.monotonic", iter(range(0, 10**6, 1000)).__next__)
        with pytest.raises(KeyboardInterrupt):
            train.main(killed)
    assert not (tmp_path / "killed" / "gpa.safetensors").exists()
    train.main(killed)
    whole, resumed = (
        load_net(tmp_path / name / "gpa.safetensors").state_dict() for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], x) for name, x in resumed.items())


def test_filling_ones_own_clip_keeps_its_times_and_what_was_known(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hole = PIL.Image.new("L", (48, 32))
    hole.paste(255, (8, 8, 20, 20))
    hole.save(tmp_path / "hole.png")
    out = tmp_path / "out"
    fill.main(fill.Options(clip, tmp_path / "hole.png", ("3-4",), side=32, out=out))
    assert {file.name for file in out.iterdir()} == {"damaged.mp4", "filled.mp4", "sheet.png"}
    given, filled = read_clip(clip, 32), read_clip(out / "filled.mp4", 32)
    assert [t * filled.time_base for t in filled.times] == [
        t * given.time_base for t in given.times
    ]
    error = (filled.frames.float() - given.frames.float()).abs()
    assert error[0, :, :, 24:].mean() < 5
    assert "8 frames of 48x32" in capsys.readouterr().out


def test_without_a_clip_a_held_out_one_is_filled_and_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill.main(fill.Options(frames=4, side=24, out=tmp_path))
    assert "In the holes:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip": Path("none.mp4"), "missing": ("1",)}, r"none\.mp4 is not a file"),
        ({"missing": ()}, "there is nothing to fill: say what"),
        ({"missing": ("9",)}, "names frame 9; the clip has frames 0 to 7"),
        ({"missing": ("4-2",)}, "takes numbers of frames and runs such as 10-12; got '4-2'"),
        ({"missing": ("x",)}, "got 'x'"),
        ({"missing": ("0-7",)}, "there is nothing to copy from"),
        ({"missing": ("1",), "side": 8}, "--side must be at least 16, got 8"),
        ({"missing": ("1",), "frames": 2}, "--frames must be at least 3, got 2"),
        ({"holes": Path("none.png")}, r"none\.png is not a file"),
        ({"clip": None, "missing": ("1",)}, "name it with --clip"),
        ({"missing": ("1",), "weights": Path("none")}, "none is not a file"),
    ],
)
def test_bad_input_is_one_sentence_before_any_file_is_written(
    tmp_path: Path, clip: Path, change: dict[str, object], message: str
) -> None:
    options = replace(fill.Options(clip, side=32, out=tmp_path / "out"), **change)
    with pytest.raises(BadInput, match=message):
        fill.main(options)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(FillNet(features=5).state_dict(), path)
    with pytest.raises(ValueError, match="does not hold a network of this program"):
        load_net(path)
    path.write_bytes(SHIPPED.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_net(path)


def test_the_weights_that_ship_are_small_and_learnt_for_the_same_time() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < MOST_SHIPPED
    spent = [float(facts_of(path)["cpu_s"]) for path in FOLDER.iterdir()]
    assert max(spent) < 1.5 * min(spent)


def test_an_unknown_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown attention 'gap'; expected one of gpa, window"):
        train.main(train.Options(("gap",), out=tmp_path))
    with pytest.raises(BadInput, match="does not go by distances"):
        train.main(train.Options(("Performer(16, 8)",), out=tmp_path))
