"""The demo that restores a photograph by copying from a reference."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import torch

from examples.common.files import replacing
from examples.common.measures import psnr, ssim
from examples.common.untrusted import BadInput
from examples.images.copy_photo.data import (
    HELD_OUT,
    TRAINING,
    degrade,
    distort,
    random_theta,
    read_photo,
)
from examples.images.copy_photo.demo import Options, main
from examples.images.copy_photo.matching import affine_fit, compose, identity, positions, transform
from examples.images.copy_photo.train import Training, load_stages, save_stages, trained

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _denormals() -> Iterator[None]:
    """The program flushes them to zero for its whole process."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("_denormals")
def test_a_short_run_writes_its_files_and_a_second_one_reuses_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "examples.images.copy_photo", "--smoke", "--out", tmp_path]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    names = {"smoke.safetensors", "picture.png", "table.json", "table.md", ".lock"}
    assert {path.name for path in tmp_path.iterdir()} == names
    table = json.loads((tmp_path / "table.json").read_text())
    methods = [row["method"] for row in table["rows"]]
    assert methods[1:3] == ["no attention", "full at 16x16"]
    assert methods[3:-1] == ["GPA 1", "GPA 2", "GPA 4", "GPA 12"]
    coverages = [row["coverage"] for row in table["rows"][3:-1]]
    assert coverages == sorted(coverages)
    assert table["verdict"] in first.stdout

    main(Options(smoke=True, out=tmp_path))
    assert "train" not in capsys.readouterr().err
    again = json.loads((tmp_path / "table.json").read_text())
    for row, before in zip(again["rows"], table["rows"]):
        assert row["psnr_db"] == pytest.approx(before["psnr_db"], abs=0.01)


@pytest.mark.usefixtures("_denormals")
def test_a_bad_image_ends_the_program_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"missing\.png is not a file$"):
        main(Options(smoke=True, out=tmp_path / "out", image=tmp_path / "missing.png"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (None, "is not a file"),
        (b"no picture", "cannot be read as a picture"),
        (np.zeros((40, 90, 3), np.uint8), "is 90x40 pixels; the shorter side needs at least 64"),
    ],
)
def test_a_bad_image_is_one_sentence(
    tmp_path: Path, pixels: np.ndarray | bytes | None, message: str
) -> None:
    path = tmp_path / "mine.png"
    if isinstance(pixels, bytes):
        path.write_bytes(pixels)
    elif pixels is not None:
        skimage.io.imsave(path, pixels, check_contrast=False)
    with pytest.raises(ValueError, match=message):
        read_photo(path)


@pytest.mark.parametrize(
    ("shape", "value", "expected"),
    [
        ((64, 70), 102, (0.4, 0.4, 0.4)),
        ((64, 70, 3), (255, 0, 51), (1.0, 0.0, 0.2)),
        ((64, 70, 4), (0, 0, 0, 102), (0.6, 0.6, 0.6)),
        ((64, 70), 13107, (0.2, 0.2, 0.2)),
    ],
)
def test_grey_colour_and_alpha_become_three_channels(
    tmp_path: Path, shape: tuple[int, ...], value: object, expected: tuple[float, ...]
) -> None:
    path = tmp_path / "mine.png"
    dtype = np.uint16 if np.max(value) > 255 else np.uint8
    skimage.io.imsave(path, np.full(shape, value, dtype), check_contrast=False)
    photo = read_photo(path)
    assert photo.shape == (3, 64, 70)
    torch.testing.assert_close(photo[:, 5, 5], torch.tensor(expected), atol=0.003, rtol=0)


def test_no_photograph_is_both_trained_on_and_held_out() -> None:
    assert not set(TRAINING) & set(HELD_OUT)


def test_tau_moves_a_pixel_as_theta_says() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, 4, 9] = 1
    shift = torch.tensor([[[1.0, 0.0, 2 * 3 / 16], [0.0, 1.0, -2 * 2 / 16]]])
    moved = distort(image, shift)  # the pixel at (x, y) becomes the one at (x + 3, y - 2)
    assert float(moved[0, 0, 6, 6]) == pytest.approx(1)
    assert float(moved.sum()) == pytest.approx(3)


def test_degrading_a_grey_square_takes_its_mean() -> None:
    image = torch.rand(1, 1, 16, 8).expand(-1, 3, -1, -1)
    expected = image[0, 0].reshape(2, 8, 8).mean(dim=(1, 2))
    torch.testing.assert_close(degrade(image, 8)[0, 0, :, 0], expected)


def test_the_fit_finds_the_map_in_spite_of_outliers() -> None:
    theta = random_theta(2, torch.Generator().manual_seed(0))
    here = positions(identity(2), (16, 16))
    there = transform(theta, here) + 0.01 * torch.randn(2, 2, 16, 16)
    there[:, :, 3:6, 3:6] += 0.8
    fit = affine_fit(here, there, torch.ones(2, 16, 16), rounds=6)
    torch.testing.assert_close(fit, theta, atol=0.01, rtol=0)


def test_maps_compose() -> None:
    first, then = random_theta(2, torch.Generator().manual_seed(0)).split(1)
    here = positions(identity(1), (4, 5))
    expected = transform(then, transform(first, here))
    torch.testing.assert_close(transform(compose(then, first), here), expected)


def test_psnr_and_ssim_of_known_pictures() -> None:
    truth = torch.rand(3, 32, 32)
    assert psnr(truth + 0.1, truth) == pytest.approx(20.0, abs=1e-3)
    assert ssim(truth, truth) == pytest.approx(1.0)
    assert ssim(1 - truth, truth) < 0


def test_a_checkpoint_of_other_options_or_a_broken_one_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_stages(path, Training(), {"matcher": {"x": torch.ones(1)}})
    assert list(load_stages(path, Training())) == ["matcher"]
    assert load_stages(path, Training(seed=1)) == {}
    assert "other options" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    assert load_stages(path, Training()) == {}
    assert "cannot be read" in capsys.readouterr().out


def test_a_stage_of_another_network_is_trained_anew_with_all_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, path = Training(size=64, match_steps=1, copy_steps=1), tmp_path / "c.safetensors"
    trained(options, path, retrain=False)
    states = load_stages(path, options)
    del states["full"]["to_value.bias"]
    states["nothing"]["log_caution"].fill_(7)
    save_stages(path, options, states)
    capsys.readouterr()
    nets = trained(options, path, retrain=False)
    assert "stage full of" in capsys.readouterr().out
    assert nets["nothing"].log_caution.item() != 7
    for name, x in nets["gpa"].state_dict().items():
        assert torch.equal(x, states["gpa"][name])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text("old")

    def killed_halfway() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed_halfway()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]
