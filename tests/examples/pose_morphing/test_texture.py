"""Texture energy."""

import pytest
import torch
import torch.nn.functional as F

from examples.images.pose_morphing.losses import TextureEnergy


def stripes(phase: int) -> torch.Tensor:
    columns = (torch.arange(64) + phase) // 4 % 2
    return (2.0 * columns - 1).expand(1, 3, 64, 64).contiguous()


def test_it_forgives_a_shift_and_not_a_blur() -> None:
    texture = TextureEnergy()
    truth, shifted = stripes(0), stripes(2)
    blurred = F.avg_pool2d(truth, 7, stride=1, padding=3, count_include_pad=False)
    assert (shifted - truth).square().mean() > (blurred - truth).square().mean()
    assert 5 * texture(shifted, truth) < texture(blurred, truth)


def test_flat_colours_have_no_texture() -> None:
    flat = torch.rand(2, 3, 1, 1).expand(2, 3, 40, 40)
    for energy in TextureEnergy().energies(flat):
        torch.testing.assert_close(energy, torch.zeros_like(energy), atol=1e-6, rtol=0)


def test_filters_are_constants_of_the_seed_with_norm_one() -> None:
    filters = TextureEnergy().filters
    assert torch.equal(filters, TextureEnergy().filters)
    assert not torch.equal(filters, TextureEnergy(seed=1).filters)
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(24))
    assert TextureEnergy().state_dict() == {}


def test_it_equals_a_loop_over_windows() -> None:
    texture = TextureEnergy().double()
    image, truth = torch.rand(2, 1, 3, 32, 24, dtype=torch.float64)

    def energies(x: torch.Tensor) -> torch.Tensor:
        found = []
        for scale in (1, 2):
            x = x if scale == 1 else x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
            patches = x[0].unfold(1, 5, 1).unfold(2, 5, 1)
            response = torch.einsum("cyxij,fcij->fyx", patches, texture.filters).abs()
            windows = response.unfold(1, 8, 4).unfold(2, 8, 4).mean(dim=(3, 4))
            found.append(windows)
        return found

    pairs = zip(energies(image), energies(truth))
    expected = sum((a - b).abs().mean() for a, b in pairs) / 2
    torch.testing.assert_close(texture(image, truth), expected)
    torch.testing.assert_close(texture.each(image, truth)[0], expected)


def test_too_small_a_picture_is_refused() -> None:
    small = torch.zeros(1, 3, 64, 22)
    with pytest.raises(ValueError, match="sides of 24 pixels or more, got 64x22"):
        TextureEnergy()(small, small)
