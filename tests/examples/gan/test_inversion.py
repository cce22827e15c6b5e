"""Inversion: saliency is as defined, and what a generator made itself is found again."""

import pytest
import torch
from torch import nn

from examples.common.untrusted import BadInput
from examples.images.gan import hit, ylg
from examples.images.gan.inversion import (
    Found,
    Inversion,
    compared,
    feature_error,
    feature_loss,
    saliency,
)
from examples.images.gan.systems import Unconditional
from examples.images.gan.trained import SHIPPED, Trained, load


def some_trained() -> Trained:
    """Small networks as they begin."""
    torch.manual_seed(0)
    model = ylg.YLGConfig((16, 8), attend_at=8, latent=8, classes=2)
    networks = ylg.Generator(model).eval(), ylg.Discriminator(model).eval()
    for network in networks:
        network.requires_grad_(False)
    return Trained("ylg", model, *networks, 0)


@pytest.mark.parametrize("attention", [None, "Full()", "GPA(4, far=block)"])
def test_what_a_site_reads_sums_to_1(attention: str | None) -> None:
    layer = ylg.SelfAttention(32, attention)
    weights = layer.weights(torch.randn(2, 32, 8, 8))
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(2, 4, 64))


def test_weights_times_values_are_what_the_layer_reads() -> None:
    layer = ylg.SelfAttention(32, None).eval()
    x, value = torch.randn(1, 32, 8, 8), torch.randn(1, 4, 16, 3)
    torch.testing.assert_close(layer.attend(x, value), layer.weights(x) @ value)


def test_saliency_of_uniform_attention_is_uniform() -> None:
    layer = ylg.SelfAttention(32, "Full()").eval()
    layer.to_query = nn.Conv2d(32, 4, 1)
    nn.init.zeros_(layer.to_query.weight)
    nn.init.zeros_(layer.to_query.bias)
    found = saliency(layer, torch.randn(1, 32, 16, 16))
    torch.testing.assert_close(found, torch.full((1, 4, 16, 16), 1 / 64))


def test_places_without_weight_have_no_gradient() -> None:
    found = torch.randn(2, 3, 4, 4, requires_grad=True)
    weights = torch.rand(2, 2, 4, 4)
    weights[:, :, 1] = 0
    feature_loss(found, torch.randn(2, 3, 4, 4), weights).sum().backward()
    assert found.grad is not None
    assert not found.grad[:, :, 1].any()
    assert found.grad[:, :, 0].all()


def test_the_loss_adds_norms_over_heads() -> None:
    difference, weights = torch.randn(1, 3, 4, 4), torch.rand(1, 2, 4, 4)
    wanted = sum((difference * weights[:, i : i + 1]).norm() for i in range(2))
    assert isinstance(wanted, torch.Tensor)
    torch.testing.assert_close(
        feature_loss(difference, torch.zeros(1, 3, 4, 4), weights), wanted[None]
    )


def test_a_picture_that_was_made_is_found_again() -> None:
    trained = some_trained()
    label = torch.tensor([1])
    picture = trained.generator(torch.randn(1, 8), label)
    found = Inversion(steps=70, restarts=2)(trained, picture, label)
    assert (found.first_loss > 10 * found.loss).all()
    start = Inversion(steps=1, restarts=2)(trained, picture, label)
    assert (found.picture - picture).norm() < (start.picture - picture).norm() / 3


def test_the_shipped_network_makes_different_heads() -> None:
    trained = load(SHIPPED / "ylg")
    pictures = trained.generator(torch.randn(8, trained.model.latent), torch.arange(8) % 4)
    assert pictures.shape == (8, 3, 32, 32)
    assert pictures.std(dim=0).mean() > 0.1


@pytest.mark.slow
def test_the_shipped_network_finds_its_own_pictures() -> None:
    trained = load(SHIPPED / "ylg")
    label = torch.arange(2)
    picture = trained.generator(torch.randn(2, trained.model.latent), label)
    found = Inversion(steps=300, restarts=2)(trained, picture, label)
    assert (found.first_loss / found.loss).median() >= 10
    assert (found.picture - picture).square().mean().sqrt() < 0.1


@pytest.mark.bad_input
def test_a_discriminator_without_attention_is_refused() -> None:
    model = hit.PRESETS["tiny32"]
    networks = hit.Generator(model), Unconditional(hit.Discriminator((8, 8, 8, 8)))
    with pytest.raises(BadInput, match="hit has a discriminator without attention"):
        Inversion()(Trained("hit", model, *networks, 0), torch.zeros(1, 3, 32, 32), torch.zeros(1))


def test_the_advantage_of_the_weights_is_that_over_all_pictures_and_seeds() -> None:
    """The plain way is off by 0.5 in every pixel; the other by nothing, and by 0.25."""
    picture = torch.rand(2, 3, 32, 32) - 0.5

    def found(off: float, loss: float) -> Found:
        return Found(torch.zeros(2, 1), picture + off, torch.full((2,), loss), torch.ones(2))

    figures = compared(
        picture, [[found(0.0, 0.1), found(0.5, 0.5)], [found(0.25, 0.1), found(0.5, 0.5)]]
    )
    assert figures["loss_falls_times"] == {"weighted": pytest.approx(10), "plain": pytest.approx(2)}
    assert figures["pixels"] == {
        "weighted": pytest.approx(0.125),
        "plain": pytest.approx(0.5),
        "less_by_weights": pytest.approx(0.375),
        "standard_error": pytest.approx(0.125 * (4 / 3) ** 0.5 / 2),
    }
    assert figures["features"]["weighted"] < figures["features"]["plain"]
    assert feature_error(picture, picture).max() == 0
