"""Parts of the systems against their definitions: wavelets, penalties, costs, maps."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from examples.common.adversarial import PathLength, balanced_consistency, lazy_adam
from examples.images.gan import hit, spectral, stylegan2, stylenat, wavelets, ylg
from examples.images.gan.attention import read_by


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_haar_wavelets_can_be_undone_and_keep_the_energy() -> None:
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    waves = wavelets.haar(x)
    assert waves.shape == (2, 12, 4, 3)
    torch.testing.assert_close(wavelets.inverse_haar(waves), x)
    torch.testing.assert_close(waves.square().sum(), x.square().sum())
    torch.testing.assert_close(waves[:, :3], 2 * nn.functional.avg_pool2d(x, 2))


def test_the_discriminator_of_stylenat_has_as_many_parameters_as_the_released_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spectral, "spectral_norm", lambda module: module)  # has no parameters
    with torch.device("meta"):
        judge = wavelets.Discriminator(wavelets.official_widths(256))
    assert round(count(judge) / 1e6, 2) == 26.21


@pytest.mark.parametrize("make", [spectral.conv, spectral.linear])
def test_layers_under_a_spectral_norm_have_that_norm_and_begin_without_biases(
    make: Callable[[int, int], nn.Module],
) -> None:
    layer = make(5, 7)
    for _ in range(100):  # a power iteration each
        layer.train()(torch.randn(2, 5, 5, 5))
    norm = torch.linalg.matrix_norm(layer.weight.flatten(1).double(), 2)
    assert norm.item() == pytest.approx(1, abs=1e-4)
    assert not layer.bias.any()


def test_the_generator_of_stylegan2_has_as_many_parameters_as_published() -> None:
    """30 million at 1024 without the mapping network, as table 1 of its repository counts."""
    with torch.device("meta"):
        generator = stylegan2.Generator(stylegan2.PRESETS["ffhq1024"])
    mapping = count(generator.mapping)
    assert mapping == 8 * (512 * 512 + 512)
    assert round((count(generator) - mapping) / 1e6, 1) == 28.3


def test_path_length_of_a_linear_generator_is_known() -> None:
    """Styles times a matrix with orthogonal rows: every direction's gradient has its own norm."""
    penalty = PathLength(decay=1.0)
    styles = torch.randn(4, 2, 12, requires_grad=True)
    gain = 3.0

    def linear(styles: torch.Tensor) -> torch.Tensor:
        return gain * styles.sum(dim=1).view(-1, 3, 2, 2)

    torch.manual_seed(5)
    penalty(linear, styles)
    torch.manual_seed(5)
    direction = torch.randn(4, 3, 2, 2) / 2  # over the root of 4 pixels
    length = gain * direction.flatten(1).norm(dim=1)  # the mean over two equal styles
    torch.testing.assert_close(penalty.mean, length.mean())
    torch.manual_seed(5)
    torch.testing.assert_close(penalty(linear, styles), (length - length.mean()).square().mean())


def test_balanced_consistency_is_0_where_nothing_is_changed() -> None:
    judge = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    real, fake = torch.randn(2, 5, 3, 4, 4)
    assert balanced_consistency(judge, real, fake, lambda x: x) == 0
    moved = balanced_consistency(judge, real, fake, lambda x: x + 1)
    shift = judge[1].weight.sum()
    torch.testing.assert_close(moved, 2 * shift.square())


def test_a_lazy_adam_is_slower_by_the_steps_without_a_penalty() -> None:
    weights = [nn.Parameter(torch.ones(1))]
    lazy, eager = lazy_adam(weights, 2e-3, 16), lazy_adam(weights, 2e-3, 1)
    assert lazy.defaults["lr"] == 2e-3 * 16 / 17
    assert lazy.defaults["betas"] == (0.0, 0.99 ** (16 / 17))
    assert (eager.defaults["lr"], eager.defaults["betas"]) == (2e-3, (0.0, 0.99))


def flops(config: hit.HiTConfig) -> int:
    with torch.device("meta"):
        generator = hit.Generator(config).eval()
        with FlopCounterMode(display=False) as counter:
            generator(torch.empty(1, config.latent))
    return counter.get_total_flops()


def test_late_stages_of_hit_cost_the_same_for_each_pixel() -> None:
    """So the whole is nearly linear in pixels: attention is only where pictures are small."""
    base = hit.HiTConfig((1, 1), (64, 64), (4, 4), (4, None), 64)
    more = [
        replace(
            base, layers=(1,) * n, channels=(64,) * n, heads=(4,) * n, block=(4, *[None] * (n - 1))
        )
        for n in (2, 3, 4)
    ]
    cost = [flops(config) for config in more]
    each = [(b - a) / config.size**2 for a, b, config in zip(cost, cost[1:], more[1:])]
    tokens = 2 * 2 * 16 * 512 * 16  # keys and values of 16 tokens, whatever the size
    exact = [x - tokens / config.size**2 for x, config in zip(each, more[1:])]
    assert max(exact) < 1.001 * min(exact)
    assert cost[-1] / cost[-2] < 4


def test_a_map_of_attention_sums_to_1_and_keeps_to_its_window() -> None:
    config = stylenat.PRESETS["tiny32"]
    generator = stylenat.Generator(config).eval()
    site = 16 * 9 + 4  # row 9, column 4 of level 2
    maps = stylenat.attention_map(generator, torch.randn(2, config.style), 2, site)
    assert maps.shape == (2, 2, 16, 16)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(2, 2))
    near, far = maps[:, :1], maps[:, 1:]  # dilations 1 and 3
    rows, columns = near.amax(dim=(0, 1)).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 11, 2, 6)
    rows, columns = far.amax(dim=(0, 1)).nonzero().T
    assert rows.unique().tolist() == [3, 6, 9, 12, 15]
    assert columns.unique().tolist() == [1, 4, 7, 10, 13]


@pytest.mark.parametrize("at_once", [3, 100])
def test_a_map_read_in_parts_is_the_softmax(at_once: int) -> None:
    import ndgpa

    query, key = torch.randn(2, 1, 2, 16, 4)
    found = read_by(ndgpa.Full(), query, key, ndgpa.Image((4, 4), 2), 5, at_once)
    torch.testing.assert_close(found, (query[:, :, 5:6] @ key.mT / 2).softmax(dim=3)[:, :, 0])


def test_sagan_is_ylg_with_one_head_of_full_attention() -> None:
    config = ylg.SAGAN_PRESETS["imagenet128"]
    layer = ylg.SelfAttention(64, config.attention, config.heads).eval()
    x = torch.randn(1, 64, 4, 4)
    query = layer.to_query(x).flatten(2).mT
    key = nn.functional.max_pool2d(layer.to_key(x), 2).flatten(2)
    torch.testing.assert_close(layer.weights(x)[:, 0], (query @ key).softmax(dim=2))
