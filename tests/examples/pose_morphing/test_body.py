"""Coordinates between key points: a place keeps them wherever the body goes."""

import numpy as np
import pytest
import torch

from examples.images.pose_morphing.body import (
    OVERHANG,
    PARTS,
    USUAL,
    bent,
    coordinates,
    grid,
    joints,
    located,
    pose,
    torso_length,
)
from examples.people.keypoints import NAMES, heat_maps

SIZE = (64, 32)
# fmt: off
BODY = torch.tensor([
    [0.0, -0.75], [0.0, -0.5], [-0.2, -0.45], [-0.25, -0.2], [-0.25, 0.05], [0.2, -0.45],
    [0.25, -0.2], [0.25, 0.05], [-0.1, 0.05], [-0.12, 0.4], [-0.12, 0.75], [0.1, 0.05],
    [0.12, 0.4], [0.12, 0.75], [-0.04, -0.78], [0.04, -0.78], [-0.08, -0.76], [0.08, -0.76],
])  # across and down, in halves of the height
# fmt: on


def points_of(places: torch.Tensor = BODY) -> torch.Tensor:
    return torch.cat([places, torch.ones(len(places), 1)], dim=1)[None]


def at(points: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """The coordinates of one place: those of the middle when it has moved there."""
    moved = points.clone()
    moved[..., :2] -= place
    return coordinates(moved, torch.zeros(1, 1), torch.zeros(1, 1))[0, :, 0]


def everywhere(points: torch.Tensor) -> torch.Tensor:
    return coordinates(points, *(x[None] for x in grid(SIZE, points)))


def turned(places: torch.Tensor, angle: float, scale: float, by: list[float]) -> torch.Tensor:
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    return places @ torch.tensor([[c, s], [-s, c]], dtype=places.dtype) + torch.tensor(by)


def test_heat_maps_are_located_between_their_pixels() -> None:
    pixels = torch.tensor([[10.3, 20.7, 1.0], [16.0, 40.25, 1.0], [-1, -1, 0]]).repeat(6, 1)[None]
    found = located(heat_maps(pixels, SIZE, 1.5))[0, :3]
    across = (2 * torch.tensor([10.3, 16.0]) + 1 - 32) / 64
    down = (2 * torch.tensor([20.7, 40.25]) + 1 - 64) / 64
    torch.testing.assert_close(found[:2, 0], across, atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:2, 1], down, atol=2e-3, rtol=0)
    assert found[:, 2].tolist() == [1, 1, 0]
    assert found[2].tolist() == [0, 0, 0]


def test_a_place_keeps_its_coordinates_when_the_body_moves() -> None:
    move = (0.7, 1.3, [0.2, -0.1])
    before, after = points_of(), points_of(turned(BODY, *move))
    for place in torch.tensor([[0.05, -0.3], [-0.24, -0.1], [0.13, 0.5], [0.02, -0.7], [0.5, 0.5]]):
        expected = at(before, place)
        torch.testing.assert_close(at(after, turned(place, *move)), expected, atol=1e-5, rtol=0)


def test_joints_lie_at_the_ends_of_their_parts() -> None:
    start, end = PARTS[0]
    assert (start, end) == ("rsho", "relb")
    for name, along in ((start, -1 / OVERHANG), (end, 1 / OVERHANG)):
        on, u, v = at(points_of(), BODY[NAMES.index(name)])[:3]
        assert on == 1
        assert u.item() == pytest.approx(along, abs=1e-5)
        assert v.item() == pytest.approx(0, abs=1e-5)


def test_parts_end_gently_and_far_away_there_is_nothing() -> None:
    torso = PARTS.index(("neck", "hips"))
    half_width = 0.5 * 0.55  # of a torso 0.55 long
    middle = torch.tensor([0.0, -0.225])
    for out, on in ((0.9, 1.0), (1.5, 0.5), (2.1, 0.0)):
        place = middle + torch.tensor([-out * half_width, 0.0])
        found = at(points_of(), place)[3 * torso : 3 * torso + 3]
        assert found[0].item() == pytest.approx(on, abs=1e-4)
        assert found[2].item() == pytest.approx(on * out, abs=1e-4)


def test_what_is_not_seen_has_no_coordinates() -> None:
    points = points_of()
    points[0, NAMES.index("rhip")] = 0
    found = everywhere(points)[0].unflatten(0, (len(PARTS), 3)).abs().amax(dim=(1, 2, 3))
    gone = {PARTS[i] for i in range(len(PARTS)) if found[i] == 0}
    assert gone == {("rhip", "rkne"), ("neck", "hips")}
    assert torso_length(joints(points)).item() == pytest.approx(USUAL)
    assert not everywhere(torch.zeros(1, 18, 3)).any()
    assert not pose(torch.zeros(1, 18, 3)).any()


def test_the_pose_does_not_depend_on_place_and_size() -> None:
    moved = points_of(turned(BODY, 0.0, 0.6, [0.1, 0.2]))
    torch.testing.assert_close(pose(moved), pose(points_of()), atol=1e-5, rtol=0)
    assert not torch.allclose(pose(points_of(turned(BODY, 1.0, 1.0, [0, 0]))), pose(points_of()))


def test_a_pose_is_bent_by_what_no_affine_map_explains() -> None:
    draws = np.random.default_rng(0)
    first, second = draws.normal(size=(2, 18, 2)) * (0.2, 0.5)
    there = np.ones((2, 18))
    there[0, [1, 4]] = there[1, [4, 7]] = 0
    both = there.all(axis=0)
    columns = np.c_[first, np.ones(18)][both]
    left = second[both] - columns @ np.linalg.lstsq(columns, second[both], rcond=None)[0]
    expected = np.sqrt((left**2).sum() / (both.sum() - 3))
    mine = [np.c_[x * t[:, None], t] for x, t in zip((first, second), there, strict=True)]
    mine = [torch.from_numpy(x).float()[None] for x in mine]
    assert bent(*mine).item() == pytest.approx(expected, rel=1e-3)
    moved = turned(mine[0][0, :, :2], 0.4, 1.3, [0.1, 0.2]) * mine[0][0, :, 2:]
    assert bent(mine[0], torch.cat([moved, mine[0][0, :, 2:]], dim=1)[None]).item() < 1e-3


def test_few_points_are_bent_without_end() -> None:
    few = points_of()
    few[:, 5:] = 0
    assert bent(few, points_of()).isinf().all()
    on_a_line = points_of(BODY * torch.tensor([0.0, 1.0]))
    assert bent(on_a_line, points_of()).isfinite().all()
