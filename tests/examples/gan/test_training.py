"""Training of generators: resumed bit by bit, losses as defined, bad input refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.common import checkpoints
from examples.common.adversarial import r1
from examples.common.commands import command
from examples.common.untrusted import BadInput
from examples.images.gan.attention import operator_of
from examples.images.gan.augment import augment
from examples.images.gan.data import Pictured, open_data, photographs
from examples.images.gan.train import TrainConfig, train

OPTIONS = {"system": "ylg", "batch": 2, "threads": 1, "pictures_every": 2, "device": "cpu"}


def some_pictures() -> Pictured:
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    return Pictured(images, torch.arange(12) % 3, 3)


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    pictures = some_pictures()
    train(TrainConfig(tmp_path / "once", steps=3, **OPTIONS), pictures)
    train(TrainConfig(tmp_path / "twice", steps=1, **OPTIONS), pictures)
    train(TrainConfig(tmp_path / "twice", steps=3, **OPTIONS), pictures)
    once, twice = (checkpoints.latest(tmp_path / name) for name in ("once", "twice"))
    assert once is not None
    assert twice is not None
    assert once.tensors.keys() == twice.tensors.keys()
    assert all(torch.equal(once.tensors[name], twice.tensors[name]) for name in once.tensors)


def test_r1_of_a_linear_score_is_the_square_of_its_slope() -> None:
    slope = torch.randn(3, 4, 4)
    penalty = r1(lambda x: (x * slope).sum(dim=(1, 2, 3)), torch.randn(5, 3, 4, 4), 10.0)
    torch.testing.assert_close(penalty, 10 * slope.square().sum())


def test_augmentation_has_a_gradient_and_keeps_the_size() -> None:
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    y = augment(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_photographs_are_four_classes() -> None:
    found = photographs(16)
    assert found.images.shape[1:] == (3, 16, 16)
    assert found.labels.unique().tolist() == [0, 1, 2, 3]
    pictures, _ = found.draw(5)
    assert -1 <= pictures.min() <= pictures.max() <= 1


def test_a_folder_of_folders_is_classes(tmp_path: Path) -> None:
    for name, value in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.full((20, 30, 3), value, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    found = open_data(str(tmp_path), 16)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.images[:, 0, 0, 0].tolist() == [10, 10, 240, 240]


@pytest.mark.bad_input
def test_bad_data_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither a folder nor the word photographs"):
        open_data(str(tmp_path / "none"), 16)
    with pytest.raises(BadInput, match="holds no picture"):
        open_data(str(tmp_path), 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty holds no picture"):
        open_data(str(tmp_path), 16)
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"a\.png cannot be read as a picture"):
        open_data(str(tmp_path), 16)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["GAP(12)", "GPA(", "GPA(12, far=nowhere)", "GPA()", "print(1)"])
def test_a_wrong_attention_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(BadInput, match="attention"):
        operator_of(name)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"system": "gan"}, "no system 'gan'"),
        ({"preset": "huge"}, "has no preset 'huge'"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch": 1}, "--batch must be at least 2"),
    ],
)
def test_wrong_options_end_the_command(
    options: dict[str, object], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(lambda: train(TrainConfig(tmp_path / "run", **{**OPTIONS, **options})))
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
