"""Training of generators: resumed bit by bit, losses as defined, bad input refused."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from examples.common import checkpoints
from examples.common.adversarial import r1
from examples.common.commands import command
from examples.common.untrusted import BadInput
from examples.images.gan.augment import augment
from examples.images.gan.data import Pictured, heads, open_data, photographs
from examples.images.gan.quick import quick
from examples.images.gan.systems import Regularizers
from examples.images.gan.train import TrainConfig, Trainer, train
from examples.people.pictures import Arrays

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


KILLED = """
import sys, torch
from pathlib import Path
from examples.images.gan.data import Pictured
from examples.images.gan.train import TrainConfig, train
from examples.images.gan.adaptive import Adaptation

images = torch.arange(12 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(12, 3, 32, 32)
config = TrainConfig(
    Path(sys.argv[1]), "stylegan2", steps=int(sys.argv[2]), batch=2, threads=1, device="cpu",
    save_every_s=0.0, rates=(1e-6, 0.02), augmented="adaptive",
    adaptation=Adaptation(-0.5, every=2, images=40),
)
pictured = Pictured(images, torch.zeros(12).long(), 1)
train(config, pictured, lambda _, step: print(step, flush=True) or {})
"""


def started(out: Path, steps: int) -> subprocess.Popen[str]:
    program = [sys.executable, "-c", KILLED, str(out), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def finish(out: Path) -> None:
    with started(out, 8) as process:
        process.communicate()
    assert process.returncode == 0


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at two moments; each step saves, so it mostly falls into the writing of a file."""
    finish(tmp_path / "once")
    for seen, pause in (("2\n", 0.0), ("4\n", 0.03)):
        with started(tmp_path / "killed", 8) as killed:
            assert killed.stdout is not None
            for line in killed.stdout:
                if line == seen:
                    break
            time.sleep(pause)
            killed.kill()
        assert killed.returncode == -signal.SIGKILL
    finish(tmp_path / "killed")
    once, killed_run = (checkpoints.latest(tmp_path / name) for name in ("once", "killed"))
    assert once is not None
    assert killed_run is not None
    assert killed_run.step == 8
    assert once.tensors["adaptive/strength"] > 0
    assert once.tensors.keys() == killed_run.tensors.keys()
    assert all(torch.equal(once.tensors[name], killed_run.tensors[name]) for name in once.tensors)


def trainer_of(tmp_path: Path, **options: Any) -> Trainer:
    return Trainer(TrainConfig(tmp_path, **{**OPTIONS, **options}), some_pictures())


def penalties(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What 17 steps add to the discriminator's loss where R1 is its gamma."""
    monkeypatch.setattr("examples.images.gan.train.r1", lambda score, x, gamma: torch.tensor(gamma))
    losses: list[torch.Tensor] = []
    trainer.update = lambda _, loss, clip: losses.append(loss)  # type: ignore[method-assign]
    trainer.judge = lambda x, label: torch.zeros(len(x))  # type: ignore[method-assign]
    for step in range(17):
        trainer.advance_discriminator(*torch.zeros(2, 2, 3, 32, 32), torch.zeros(2).long(), step)
    base = losses[1].item() if trainer.added.r1_every > 1 else 2 * torch.tensor(2.0).log().item()
    return [round(loss.item() - base, 4) for loss in losses]


def test_r1_of_hit_comes_in_every_step_and_is_not_halved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert penalties(trainer_of(tmp_path, system="hit"), monkeypatch) == [10.0] * 17


def test_r1_of_stylenat_comes_in_every_16th_step_as_half_of_10_times_16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = penalties(trainer_of(tmp_path, system="stylenat"), monkeypatch)
    assert found == [80.0, *[0.0] * 15, 80.0]


def test_averaged_weights_are_copies_until_step_10(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ema=0.9)
    mean, now = (next(x.parameters()) for x in (trainer.average, trainer.generator))
    for step in range(10):
        with torch.no_grad():
            now += 1
        trainer.update_ema(step)
    assert torch.equal(mean, now)
    before = mean.clone()
    with torch.no_grad():
        now += 1
    trainer.update_ema(10)
    torch.testing.assert_close(mean, before + 0.1)


@pytest.mark.parametrize("system", ["hit", "sagan", "stylenat", "stylegan2"])
def test_every_system_takes_a_step_with_all_that_it_adds(tmp_path: Path, system: str) -> None:
    trainer = trainer_of(tmp_path, system=system)
    before = [p.clone() for p in trainer.generator.parameters()]
    figures = trainer.advance(0)
    assert all(math.isfinite(x) for x in figures.values())
    assert ("path_length" in figures) == (system == "stylegan2")
    assert ("consistency" in figures) == (system in ("hit", "stylenat"))
    after = trainer.generator.parameters()
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > len(before) / 2


@pytest.mark.parametrize("system", ["hit", "ylg", "sagan", "stylenat", "stylegan2"])
def test_every_system_takes_the_first_step_of_the_comparison(tmp_path: Path, system: str) -> None:
    config = replace(quick(tmp_path, system, "", 2), batch=2)
    figures = Trainer(config, some_pictures()).advance(0)
    assert all(math.isfinite(x) for x in figures.values())


def test_bfloat16_steps_are_near_those_of_float32(tmp_path: Path) -> None:
    figures = []
    for bfloat16 in (False, True):
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, system="stylenat", bfloat16=bfloat16)
        torch.manual_seed(1)
        figures.append(trainer.advance(1))
    for name, value in figures[0].items():
        assert figures[1][name] == pytest.approx(value, abs=0.05)
    assert figures[0] != figures[1]


def test_processes_share_a_batch_that_does_not_depend_on_their_number(tmp_path: Path) -> None:
    pictures = some_pictures()
    config = TrainConfig(tmp_path, **{**OPTIONS, "batch": 6})
    drawn = []
    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        trainer = Trainer(config, pictures, rank, processes)
        torch.manual_seed(3)
        drawn.append(trainer.draw())
    for whole, *parts in zip(*drawn):
        assert torch.equal(whole, torch.stack(parts, dim=1).flatten(0, 1))


PARALLEL = """
import os, sys
from pathlib import Path
import torch
from examples.images.gan.data import Pictured
from examples.images.gan.systems import Regularizers
from examples.images.gan.train import TrainConfig, train

out = Path(sys.argv[1])
images = torch.arange(12 * 3 * 32 * 32).remainder(251).to(torch.uint8).view(12, 3, 32, 32)
config = TrainConfig(
    out / "run", "stylegan2", steps=1, batch=8, threads=1, device="cpu",
    added=Regularizers(r1=5.0),
)
trainer = train(config, Pictured(images, torch.zeros(12).long(), 1))
networks = trainer.discriminator, trainer.generator
torch.save(
    [p.grad for network in networks for p in network.parameters()],
    out / f"{os.environ.get('RANK', 'one')}.pt",
)
"""


@pytest.mark.slow
def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    """All gradients of a step; noise has strength 0, and deviations are of four pictures."""
    (tmp_path / "parallel.py").write_text(PARALLEL)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29556"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    for out, start in (("one", []), ("two", launch)):
        (tmp_path / out).mkdir()
        command = [sys.executable, *start, str(tmp_path / "parallel.py"), str(tmp_path / out)]
        assert subprocess.run(command, env=environment, check=False).returncode == 0
    one = torch.load(tmp_path / "one" / "one.pt")
    for rank in (0, 1):
        two = torch.load(tmp_path / "two" / f"{rank}.pt")
        for whole, shared in zip(one, two, strict=True):
            if whole.ndim:  # strengths of noise depend on what is drawn
                assert (whole - shared).norm() <= 1e-4 * whole.norm()


def test_r1_of_a_linear_score_is_the_square_of_its_slope() -> None:
    slope = torch.randn(3, 4, 4)
    penalty = r1(lambda x: (x * slope).sum(dim=(1, 2, 3)), torch.randn(5, 3, 4, 4), 10.0)
    torch.testing.assert_close(penalty, 10 * slope.square().sum())


def test_r1_passes_through_attention() -> None:
    """By torch's fused kernels it would have no gradient: those have no second derivative."""
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def penalty(weight: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        def score(x: torch.Tensor) -> torch.Tensor:
            sites = x.flatten(2).mT @ weight
            return attend(*3 * [sites[:, None]]).square().sum(dim=(1, 2, 3))

        return r1(score, x, 10.0)

    def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.mT * 3**-0.5).softmax(dim=-1) @ v

    slopes = []
    for attend in (torch.nn.functional.scaled_dot_product_attention, by_hand):
        slopes += torch.autograd.grad(penalty(weight, attend), weight)
    torch.testing.assert_close(*slopes)


def test_augmentation_has_a_gradient_and_keeps_the_size() -> None:
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    y = augment(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_heads_are_cut_out_where_they_are() -> None:
    """A red head at x 30, y 12 that looks to the left, and in a mirror to the right."""
    image = np.zeros((64, 48, 3), np.uint8)
    image[6:19, 24:37, 0] = 255
    points = np.tile(np.float32([-1, -1, 0]), (1, 18, 1))
    points[0, 0], points[0, 1], points[0, 16] = (28, 12, 1), (30, 22, 1), (32, 12, 1)
    people = Arrays(image[None], points, np.zeros((0, 2), np.int64))
    found = heads(people, 16)
    assert found.labels.tolist() == [0]
    middle = found.images[0, :, 4:12, 4:12].float().mean(dim=(1, 2))
    assert middle[0] > 250
    assert middle[1:].max() == 0
    torch.manual_seed(0)
    pictures, labels = found.draw(8)
    flipped = labels == 2
    assert flipped.any()
    assert not flipped.all()
    assert all(torch.equal(x, pictures[~flipped][0]) for x in pictures[~flipped])
    assert torch.equal(pictures[flipped][0].flip(2), pictures[~flipped][0])


def test_photographs_are_four_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.images.gan.data.PATCHES", 20)
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
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"system": "gan"}, "no system 'gan'"),
        ({"preset": "huge"}, "has no preset 'huge'"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"batch": 1}, "--batch must be at least 2"),
        ({"rates": (1e-3, 0.0)}, "--rates must be"),
        ({"added": Regularizers(r1_every=0)}, "--added.r1-every must be at least 1"),
        ({"added": Regularizers(path_length=1)}, "ylg has no styles, so no path length"),
    ],
)
def test_wrong_options_end_the_command(
    options: dict[str, object], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(lambda: train(TrainConfig(tmp_path / "run", **{**OPTIONS, **options})))
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
