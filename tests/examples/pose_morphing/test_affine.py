"""tau moves pictures, pose maps and key points alike."""

import pytest
import torch

from examples.images.pose_morphing.data import random_affine, warp, warp_points

SIZE = (96, 64)


def gaussians(points: torch.Tensor, sigma: float = 3.0) -> torch.Tensor:
    """A bump at each point; written here anew, to check against."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in SIZE)
    x, y = points[..., 0, None, None], points[..., 1, None, None]
    square = (columns[None, :] - x) ** 2 + (rows[:, None] - y) ** 2
    return torch.exp(-square / (2 * sigma**2))


@pytest.mark.parametrize(("padding", "margin"), [("zeros", 0), ("border", 2)])
def test_a_point_of_a_warped_map_is_the_warped_point_within_a_pixel(
    padding: str, margin: int
) -> None:
    """Border padding draws what lies at the very edge out to the frame; hence its margin."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([SIZE[1], SIZE[0]]) - 1 - 2 * margin
    points = torch.rand(64, 18, 2, generator=generator) * sides + margin
    points = torch.cat([points, torch.ones(64, 18, 1)], dim=-1)
    theta = random_affine(64, 0.15, generator)
    maps = warp(gaussians(points), theta, padding)
    moved = warp_points(points, theta, SIZE)
    kept = moved[..., 2] > 0
    peak = maps.flatten(2).argmax(dim=-1)
    found = torch.stack([peak % SIZE[1], peak // SIZE[1]], dim=-1)
    errors = (found - moved[..., :2])[kept].abs().amax(dim=-1)
    assert kept.float().mean() > 0.5
    assert errors.max() < 1


def test_a_shift_by_hand() -> None:
    points = torch.tensor([[[20.0, 10.0, 1.0], [1.0, 10.0, 1.0], [-1.0, -1.0, 0.0]]])
    theta = torch.tensor([[[1.0, 0.0, 2 * 4 / SIZE[1]], [0.0, 1.0, 0.0]]])  # 4 pixels to the left
    expected = torch.tensor([[[16.0, 10.0, 1.0], [-1.0, -1.0, 0.0], [-1.0, -1.0, 0.0]]])
    torch.testing.assert_close(warp_points(points, theta, SIZE), expected)


def test_no_strength_is_the_identity_exactly() -> None:
    theta = random_affine(3, 0.0)
    assert torch.equal(theta, torch.eye(2, 3).expand(3, 2, 3))
    images = torch.rand(3, 3, *SIZE)
    torch.testing.assert_close(warp(images, theta), images, atol=1e-5, rtol=0)


def test_entries_stay_within_the_strength_and_reach_it() -> None:
    noise = random_affine(500, 0.15, torch.Generator().manual_seed(0)) - torch.eye(2, 3)
    assert noise.abs().max() <= 0.15
    assert (noise.abs().amax(dim=0) > 0.14).all()


def test_outside_is_the_border() -> None:
    images = torch.rand(1, 3, *SIZE)
    theta = torch.tensor([[[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]])
    left = warp(images, theta)[..., : SIZE[1] // 2 - 1]
    torch.testing.assert_close(left, images[..., :1].expand_as(left))


def test_a_strength_that_could_flatten_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength must be from 0 to below 0\.5, got 0\.5"):
        random_affine(1, 0.5)
