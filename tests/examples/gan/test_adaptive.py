"""Adaptive augmentation: what it does at either end, what moves its strength."""

import math
from pathlib import Path

import pytest
import torch

from examples.common import checkpoints
from examples.common.commands import command
from examples.images.gan import adaptive
from examples.images.gan.adaptive import Adaptation, Adaptive
from examples.images.gan.data import Pictured
from examples.images.gan.train import TrainConfig, train


def some(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


def test_nothing_happens_at_strength_0() -> None:
    x = some()
    torch.testing.assert_close(Adaptive(Adaptation())(x), x)


def test_everything_happens_at_strength_1_and_has_a_gradient() -> None:
    augment = Adaptive(Adaptation())
    augment.strength.fill_(1)
    x = some(8).requires_grad_()
    y = augment(x)
    y.sum().backward()
    assert all(not torch.allclose(a, b) for a, b in zip(x, y, strict=True))
    assert x.grad is not None
    assert x.grad.abs().sum(dim=(1, 2, 3)).min() > 0


def test_each_change_comes_as_often_as_its_probability() -> None:
    torch.manual_seed(0)
    change = torch.full((20_000, 3, 3), 7.0)
    kept = (adaptive.sometimes(change, torch.tensor(0.3))[:, 0, 0] == 7).float().mean()
    assert kept == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20_000))


def test_a_quarter_turn_is_that_of_torch() -> None:
    x = some(1)
    where = adaptive.turning(torch.tensor([math.pi / 2]))
    grid = torch.nn.functional.affine_grid(where[:, :2], [1, 3, 16, 16], align_corners=False)
    turned = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(turned, x.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_colours_turn_about_grey() -> None:
    """A third of a turn exchanges red, green and blue; grey stays whatever the angle."""
    third = adaptive.around_grey(torch.tensor([2 * math.pi / 3]))[0]
    torch.testing.assert_close(third @ torch.eye(3), torch.eye(3).roll(1, 0), atol=1e-6, rtol=0)
    turn = adaptive.around_grey(torch.tensor([0.7]))[0]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3))
    torch.testing.assert_close(turn @ torch.ones(3), torch.ones(3))


def test_strength_follows_the_sign_of_what_is_above_the_target() -> None:
    """Every 4th step it moves by the pictures since, over 100: up, down, and never below 0."""
    augment = Adaptive(Adaptation(0.6, 4, 100))
    overfit, unsure = torch.tensor([1.0, 2, 3, 4, -1]), torch.tensor([1.0, 1, 1, -1, -1])
    assert overfit.sign().mean() == pytest.approx(0.6)
    strengths = []
    for scores in [torch.ones(5)] * 8 + [unsure] * 12:
        augment.observe(scores, 5)
        strengths.append(round(augment.strength.item(), 4))
    assert strengths[:8] == [0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.4]
    assert strengths[8:] == [0.4] * 3 + [0.2] * 4 + [0.0] * 5


def test_a_resumed_run_has_the_same_strength_and_bits(tmp_path: Path) -> None:
    """It stops between two changes of the strength."""
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    pictures = Pictured(images, torch.zeros(12).long(), 1)

    def to(name: str, steps: int) -> checkpoints.Checkpoint:
        config = TrainConfig(
            tmp_path / name,
            "stylegan2",
            steps=steps,
            batch=2,
            threads=1,
            device="cpu",
            augmented="adaptive",
            rates=(1e-6, 0.02),
            adaptation=Adaptation(-0.5, 2, 8),
        )
        train(config, pictures)
        found = checkpoints.latest(tmp_path / name)
        assert found is not None
        return found

    once = to("once", 6)
    assert to("twice", 5).tensors["adaptive/steps"] == 1
    twice = to("twice", 6)
    assert once.tensors["adaptive/strength"] > 0
    assert all(torch.equal(x, twice.tensors[name]) for name, x in once.tensors.items())


@pytest.mark.bad_input
def test_a_target_that_no_mean_of_signs_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(tmp_path / "run", adaptation=Adaptation(target=2))
    with pytest.raises(SystemExit):
        command(lambda: train(config))
    assert "--adaptation.target must be" in capsys.readouterr().err
