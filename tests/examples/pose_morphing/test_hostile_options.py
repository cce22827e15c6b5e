"""Hostile options and outputs of every command end with one sentence and exit code 2.

Nothing may be left half-written.
"""

import os
from pathlib import Path

import pytest
import torch

from examples.common import checkpoints
from examples.people.pictures import Arrays
from examples.people.sources import open_pictures
from examples.people.stored import store
from tests.examples.people import made_up
from tests.examples.pose_morphing.shell import MORPHING, SHIPPED, end_of, files_in

TRAIN = ["--data", "DATA", "--out", "OUT", "--preset", "tiny64", "--device", "cpu"]
MORPH = ["0", "0", "--model", "RUN", "--data", "DATA"]
EVALUATE = ["--data", "DATA", "--out", "OUT", "--models", "a=RUN"]
PAGE = ["page", "--real", "PHOTOS", "--made", "PHOTOS"]
OPTIONS = [
    *(
        (f"{MORPHING}.train", [*TRAIN, *more.split()])
        for more in (
            *("--accumulate 0", "--warm-up-steps 0", "--threads -4", "--steps 0", "--batch -1"),
            *("--clip -1", "--clip nan", "--learning-rate inf", "--ema 2", "--seed -1"),
            *("--weights.gan nan", "--weights.pixels -1", "--betas 0.9 nan", "--gan-from nan"),
            *("--device cuda:99", "--device nonsense", "--preset nope", "--attention GPA1_1"),
            *(
                "--attention GPA128_4_64",
                "--attention NO_32",
                "--attention FULL_32",
            ),
            *("--save-every-s nan", "--setting nothing", "--weights.perceptual 1 --vgg PHOTOS"),
        )
    ),
    *(
        (f"{MORPHING}.morph", [*MORPH, *more.split()])
        for more in (
            "--kappa 0",
            "--kappa -3",
            "--out OUT",
            "--out PHOTOS",
            "--out PHOTOS/a.png/b.png",
        )
    ),
    *(
        (f"{MORPHING}.studies.lines", [*MORPH, *more.split()])
        for more in ("--pixels -1,3", "--pixels 1e9,1", "--out PHOTOS", "--out OUT")
    ),
    *(
        (f"{MORPHING}.evaluate", [*EVALUATE, *more.split()])
        for more in (
            *("--pairs 0", "--distortions -1", "--shown 0", "--blocks 0", "--form exe"),
            *("--form ../../x.png", "--seed -1", "--device cuda:99", "--out PHOTOS/a.png"),
            *("--models", "--models a=RUN@0", "--models a", "--vgg PHOTOS/a.png"),
            "--inception PHOTOS/a.png",
        )
    ),
    (f"{MORPHING}.export", ["--run", "PHOTOS", "--out", "OUT"]),
    (f"{MORPHING}.export", ["--run", str(SHIPPED), "--out", "PHOTOS/a.png"]),
    (f"{MORPHING}.export", ["--run", str(SHIPPED), "--out", str(SHIPPED)]),
    (f"{MORPHING}.export", ["--run", "--out", "OUT"]),
    (f"{MORPHING}.export", ["--run", str(SHIPPED), str(SHIPPED.parent / "gpa256"), "--out", "OUT"]),
    (f"{MORPHING}", ["--pairs", "0", "--out", "OUT"]),
    (f"{MORPHING}", ["--steps", "-1", "--out", "OUT"]),
    *(
        (f"{MORPHING}.studies.ablation", ["--data", "DATA", "--out", "OUT", *more.split()])
        for more in ("--seconds nan", "--seeds 0", "--preset nope", "--attentions GPA128_4_64")
    ),
    *(
        (f"{MORPHING}.studies.compare", ["--data", "DATA", "--out", "OUT", *more.split()])
        for more in ("--seeds 0", "--without MAGIC", "--preset nope", "--results PHOTOS/a.png")
    ),
    *(
        (f"{MORPHING}.studies.crowd", more)
        for more in (
            [*PAGE, "--exposure-s", "nan", "--out", "OUT"],
            [*PAGE, "--exposure-s", "-1", "--out", "OUT"],
            [*PAGE, "--out", "PHOTOS"],
            [*PAGE, "--out", "OUT", "--count", "0"],
            [*PAGE, "--out", "OUT", "--count", "2000"],
            ["page", "--real", "DATA", "--made", "PHOTOS", "--out", "OUT"],
            ["count", "PHOTOS/a.png"],
            ["count", "missing.csv"],
            ["count", "ANSWERS", "--least", "nan"],
            ["count", "ANSWERS", "--golden", "PHOTOS"],
            ["count", "ANSWERS", "--golden", "PHOTOS/a.png"],
        )
    ),
    *(
        (f"{MORPHING}.studies.gan", ["--data", "DATA", "--strangers", *more.split()])
        for more in ("DATA --steps 0 --out OUT", "PHOTOS --out OUT", "DATA --out PHOTOS/a.png")
    ),
    (f"{MORPHING}.studies.gan_report", ["--data", "DATA", "--strangers", "DATA", "--runs", "OUT"]),
    (f"{MORPHING}.figures", ["4", "--out", "OUT"]),
    ("examples.people.recogniser.train", ["--data", "DATA", "--out", "OUT", "--batch", "1"]),
    ("examples.people.recogniser.train", ["--data", "PHOTOS", "--out", "OUT"]),
    *(
        ("examples.images.gan.judge", ["--data", *more.split()])
        for more in ("DATA --out OUT --steps 0", "DATA --out OUT", "PHOTOS --out OUT")
    ),
    *(
        ("examples.people.figures", ["--folder", "OUT", *more.split()])
        for more in (
            *("--size 0 0", "--size -64 32", "--size 1000000 1000000", "--identities -3"),
            *("--identities 10000000 --poses 10000000", "--poses 0", "--workers -2", "--seed -1"),
        )
    ),
    ("examples.people.figures", ["--folder", "PHOTOS/a.png"]),
    *(
        ("examples.people.figures.sheet", ["--out", "OUT.png", *more.split()])
        for more in ("--identities 0", "--poses 1", "--size 4 4", "--first -1", "--out PHOTOS")
    ),
    ("examples.people.check", ["singles", "PHOTOS", "--least", "nan"]),
    ("examples.people.check", ["paintings", "PHOTOS"]),
    ("examples.people.prepare", ["store", "SINGLES", "OUT", "--size", "0", "0"]),
    ("examples.people.prepare", ["store", "SINGLES", "PHOTOS/a.png", "--splits", "train"]),
    ("examples.people.prepare", ["store", "missing", "OUT"]),
    ("examples.people.prepare", ["deepfashion", "missing", "OUT"]),
]


@pytest.mark.parametrize(
    ("module", "arguments"), OPTIONS, ids=lambda x: x if isinstance(x, str) else " ".join(x)[-40:]
)
def test_a_hostile_option_or_output(
    module: str,
    arguments: list[str],
    figures: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up.save(tmp_path / "photos" / "a.png", made_up.picture((256, 176)))
    made_up.singles(tmp_path / "singles" / "train")
    (tmp_path / "answers.csv").write_text("person,picture,kind,answer\nx,a.png,real,real\n")
    places = {"DATA": figures, "OUT": tmp_path / "out", "PHOTOS": tmp_path / "photos"}
    places |= {"RUN": run, "ANSWERS": tmp_path / "answers.csv", "SINGLES": tmp_path / "singles"}
    for word, place in places.items():
        arguments = [argument.replace(word, str(place)) for argument in arguments]
    monkeypatch.chdir(tmp_path)
    before, shipped = files_in(tmp_path), files_in(SHIPPED)
    code, said = end_of(module, arguments, capsys)
    assert code == 2, said
    assert said
    left = {path for path in files_in(tmp_path) if path.name != ".lock"}
    assert left == set(before)
    assert files_in(SHIPPED) == shipped


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    code, said = end_of("examples.people.figures", ["--folder", str(tmp_path / "new")], capsys)
    tmp_path.chmod(0o700)
    assert code == 2
    assert "cannot be written into" in said or "Permission denied" in said


def test_a_run_is_extended_by_more_steps_and_not_shortened(
    figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--preset"]
    arguments += ["tiny64", "--device", "cpu", "--batch", "2", "--setting", "distortion"]
    stored_figures(figures, tmp_path / "data" / "train")
    for steps, code in (("2", 0), ("3", 0), ("1", 2)):
        assert end_of(f"{MORPHING}.train", [*arguments, "--steps", steps], capsys)[0] == code
    found = checkpoints.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 3


def test_two_damaged_checkpoints_are_not_a_beginning(
    figures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path / "run", step, {"x": torch.zeros(3)}, {"steps": 5})
        (tmp_path / "run" / f"step-{step:08d}.safetensors").write_bytes(b"no")
    arguments = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--preset"]
    arguments += ["tiny64", "--device", "cpu", "--setting", "distortion"]
    stored_figures(figures, tmp_path / "data" / "train")
    code, said = end_of(f"{MORPHING}.train", arguments, capsys)
    assert code == 2
    assert "every checkpoint in" in said
    assert "using the one before it" not in said


def stored_figures(figures: Path, folder: Path) -> None:
    """The rendered ones of a folder of figures, as stored pictures."""
    found = open_pictures(figures, "test")
    store(Arrays(found.images, found.points, found.pairs), folder)
