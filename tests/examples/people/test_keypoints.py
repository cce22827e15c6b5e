"""Key points: their heat maps, their mirror image, other detectors' orders."""

import math

import numpy as np
import pytest
import torch

from examples.people.keypoints import (
    COCO_NAMES,
    LIMBS,
    MIRRORED,
    NAMES,
    draw_skeleton,
    flip,
    from_coco,
    heat_maps,
    locate,
    tidy,
)

SIZE = (64, 44)


def random_points(seed: int, integral: bool = False) -> torch.Tensor:
    """Two people's points on a 64x44 picture, a third of them missing."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(2, 18, 2, generator=generator) * torch.tensor([43.0, 63.0])
    place = place.round() if integral else place
    there = torch.rand(2, 18, 1, generator=generator) > 1 / 3
    return torch.where(
        there, torch.cat([place, torch.ones_like(there)], 2), torch.tensor([-1, -1, 0])
    )


def test_the_order_is_that_of_openpose_with_the_right_eye_and_ear_first() -> None:
    assert NAMES.index("rsho") == 2
    assert NAMES[14:] == ("reye", "leye", "rear", "lear")


def test_flipping_swaps_the_nine_pairs_of_left_and_right() -> None:
    pairs = {(a, b) for a, b in enumerate(MIRRORED) if a < b}
    legs_and_arms = {(2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13)}
    assert pairs == legs_and_arms | {(14, 15), (16, 17)}
    assert all(MIRRORED[MIRRORED[i]] == i for i in range(18))


def test_a_flip_is_undone_by_a_flip_and_keeps_what_is_missing() -> None:
    points = random_points(0, integral=True)
    flipped = flip(points, 44)
    assert torch.equal(flip(flipped, 44), points)
    assert (flipped[flipped[..., 2] == 0] == torch.tensor([-1.0, -1.0, 0.0])).all()
    np.testing.assert_array_equal(flip(points.numpy(), 44), flipped.numpy())


def test_maps_of_flipped_points_are_the_flipped_maps_with_their_channels_swapped() -> None:
    points = random_points(1)
    mirrored = heat_maps(points, SIZE, 3.0).flip(3)[:, list(MIRRORED)]
    torch.testing.assert_close(heat_maps(flip(points, 44), SIZE, 3.0), mirrored)


def test_a_heat_map_is_one_at_the_point_and_half_at_half_its_width() -> None:
    points = torch.full((1, 18, 3), -1.0)
    points[..., 2] = 0
    points[0, 4] = torch.tensor([20.0, 30.0, 1.0])
    sigma = 6.0
    maps = heat_maps(points, (64, 64), sigma)
    assert maps.dtype == torch.float32
    assert maps[0, 4, 30, 20] == 1
    assert maps[0, 4].argmax() == 30 * 64 + 20
    half = sigma * math.sqrt(2 * math.log(2))  # 7.06: between the seventh and the eighth pixel
    assert maps[0, 4, 30, 20 + math.floor(half)] > 0.5 > maps[0, 4, 30, 20 + math.ceil(half)]
    assert maps[0, 4, 33, 24].item() == pytest.approx(math.exp(-(3**2 + 4**2) / (2 * 36)), rel=1e-5)
    assert maps[0, :4].abs().max() == 0


@pytest.mark.parametrize("place", [(-1.0, 5.0), (44.0, 5.0), (5.0, 64.0), (math.nan, 5.0)])
def test_a_point_off_the_picture_has_an_empty_map(place: tuple[float, float]) -> None:
    points = torch.tensor([*place, 1.0]).repeat(1, 18, 1)
    assert heat_maps(points, SIZE, 6.0).abs().max() == 0


def test_the_compatible_maps_have_a_single_one() -> None:
    points = random_points(2, integral=True)
    maps = heat_maps(points, SIZE, 6.0, compat="patn_uint8")
    assert set(maps.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(maps.sum((2, 3)), points[..., 2])
    assert torch.equal(locate(maps), points)


def test_an_unknown_compat_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown compat 'patn'; expected one of"):
        heat_maps(random_points(0), SIZE, 6.0, compat="patn")


def test_locating_inverts_the_maps() -> None:
    points = random_points(3, integral=True)
    assert torch.equal(locate(heat_maps(points, SIZE, 6.0)), points)


def test_a_faint_map_has_no_point() -> None:
    maps = heat_maps(random_points(4, integral=True), SIZE, 6.0)
    assert (locate(0.1 * maps)[..., 2] == 0).all()


def test_coco_points_keep_their_names_and_give_a_neck() -> None:
    coco = np.stack([np.arange(17.0), np.arange(17.0) + 100, np.full(17, 0.9)], axis=1)
    points = from_coco(coco, least=0.3)
    for name in COCO_NAMES:
        assert points[NAMES.index(name), 0] == COCO_NAMES.index(name)
    np.testing.assert_allclose(points[NAMES.index("neck")], [5.5, 105.5, 1])
    coco[COCO_NAMES.index("lsho"), 2] = 0.2
    without = from_coco(coco, least=0.3)
    for name in ("lsho", "neck"):
        np.testing.assert_array_equal(without[NAMES.index(name)], [-1, -1, 0])


def test_tidying_marks_what_is_missing() -> None:
    raw = np.array([[3.0, 4.0], [-1.0, -1.0], [np.nan, 2.0], [0.0, 0.0]])
    missing = [-1, -1, 0]
    np.testing.assert_array_equal(tidy(raw), [[3, 4, 1], missing, missing, [0, 0, 1]])


def test_a_skeleton_is_drawn_over_its_points_and_leaves_the_picture_alone() -> None:
    image = np.full((64, 64, 3), 255, np.uint8)
    points = np.full((18, 3), (-1, -1, 0), np.float32)
    points[[1, 2]] = [[10, 20, 1], [50, 20, 1]]
    assert LIMBS[0] == (1, 2)
    drawn = draw_skeleton(image, points)
    assert (image == 255).all()
    assert (drawn[20, 12:48] != 255).any(-1).all()
    assert (drawn[30:] == 255).all()
