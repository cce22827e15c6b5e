"""What the video example is made of: damage, camera, first filling, spaces, measures."""

import pytest
import torch
import torch.nn.functional as F

from examples.common.measures import psnr
from examples.video.attention import ATTENTIONS, Spaces
from examples.video.camera import camera_path
from examples.video.damage import MOVING_CAMERA, damage
from examples.video.data import HELD_OUT, TRAINING_CLIP, shots
from examples.video.filming import film, wander
from examples.video.guess import fill, from_around
from examples.video.metrics import flicker, scores, ssim
from examples.video.model import FillNet, Sketch, places


def scenery(height: int, width: int) -> torch.Tensor:
    """A smooth random picture, (1, 3, height, width)."""
    return F.interpolate(torch.rand(1, 3, height // 4, width // 4), (height, width), mode="bicubic")


def filmed(frames: int = 12, side: int = 48, speed: float = 2.0) -> tuple[torch.Tensor, ...]:
    """A still scene under a moving camera, what is known of it, and the camera's path."""
    scene = scenery(80, 112).clamp(0, 1).expand(frames, -1, -1, -1)
    path = torch.stack([speed * torch.arange(frames), 0.25 * torch.arange(frames)], dim=1)
    known = torch.ones(frames, 1, side, side, dtype=torch.bool)
    known[:, :, 16:30, 18:32] = False
    known[frames // 2] = False
    return film(scene, path, side), known, path


def test_no_clip_is_both_trained_on_and_held_out() -> None:
    assert TRAINING_CLIP not in HELD_OUT


def test_the_path_of_the_camera_is_found_in_spite_of_holes_and_a_lost_frame() -> None:
    frames, known, path = filmed()
    torch.testing.assert_close(camera_path(frames * known, known), path, atol=0.1, rtol=0)


def test_what_is_in_a_hole_does_not_matter() -> None:
    frames, known, _ = filmed()
    garbage = torch.where(known, frames, torch.rand_like(frames))
    one, other = Sketch.of(frames, known), Sketch.of(garbage, known)
    assert torch.equal(one.path, other.path)
    assert torch.equal(one.coarse, other.coarse)


def test_a_clip_of_which_nothing_can_be_compared_stands_still() -> None:
    frames, known = torch.rand(5, 3, 16, 16), torch.zeros(5, 1, 16, 16, dtype=torch.bool)
    known[2] = True
    assert torch.equal(camera_path(frames, known), torch.zeros(5, 2))


def test_filming_shifts_the_scene() -> None:
    scene = torch.rand(1, 3, 20, 30)
    seen = film(scene, torch.tensor([[7.0, 4.0]]), 10)
    torch.testing.assert_close(seen, scene[:, :, 4:14, 7:17], atol=1e-5, rtol=0)


def test_the_camera_stays_in_its_room() -> None:
    path = wander(200, (30.0, 9.0), 3.0, 1.0, torch.Generator().manual_seed(0))
    assert path.min() >= 0
    assert path[:, 0].max() <= 30
    assert path[:, 1].max() <= 9
    assert path[:, 0].max() - path[:, 0].min() > 15


def test_cuts_part_a_clip() -> None:
    dark, bright = 0.1 * torch.rand(6, 3, 16, 16), 1 - 0.1 * torch.rand(9, 3, 16, 16)
    assert [len(shot) for shot in shots(torch.cat([dark, bright]))] == [6, 9]


def test_damage_keeps_the_first_and_last_frame_and_smudges_stay() -> None:
    known = damage(24, 32, MOVING_CAMERA, torch.Generator().manual_seed(3))
    lost = ~known.flatten(1).any(dim=1)
    assert lost.any()
    assert not lost[0]
    assert not lost[-1]
    assert (~known).flatten(1).all(dim=0).any()
    assert 0.5 < known.float().mean() < 0.95


def test_a_still_hole_is_filled_by_the_line_between_the_frames_beside_it() -> None:
    frames = torch.arange(5.0)[:, None, None, None].expand(5, 1, 8, 8)
    known = torch.ones(5, 1, 8, 8, dtype=torch.bool)
    known[1:3, :, 2:5, 2:5] = False
    filled, found = fill(frames * known, known, torch.zeros(5, 2))
    torch.testing.assert_close(filled, frames)
    assert found.all()


def test_along_the_camera_a_smudge_is_filled_by_what_it_hid() -> None:
    frames, known, path = filmed()
    filled, _ = fill(frames * known, known, path)
    still, _ = fill(frames * known, known, torch.zeros_like(path))
    assert psnr(filled, frames, ~known) > psnr(still, frames, ~known) + 10


def test_from_around_a_hole_in_a_plain_colour_takes_the_colour() -> None:
    known = torch.ones(2, 1, 13, 9, dtype=torch.bool)
    known[:, :, 3:9, 2:7] = False
    filled = from_around(0.3 * known.float(), known)
    torch.testing.assert_close(filled, torch.full((2, 1, 13, 9), 0.3))


def test_the_sites_in_holes_are_those_that_are_not_known() -> None:
    known = torch.rand(5, 1, 20, 26) > 0.3
    spaces = Spaces.of(known)
    assert torch.equal(spaces.sites, (~known).flatten().nonzero()[:, 0])
    for block, sites in zip(spaces.blocks, spaces.holes.blocks):
        own = spaces.sites[sites[sites >= 0]]
        assert (spaces.clip.block_of_site[own] == block).all()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_what_is_known_stays_and_holes_are_never_copied_from(name: str) -> None:
    frames, known, _ = filmed(frames=6, side=21)
    net = FillNet()
    torch.nn.init.normal_(net.head[-1].weight, std=0.1)
    sketch = Sketch.of(frames, known)
    filled = net(sketch, ATTENTIONS[name])
    assert torch.equal(filled.frames[known.expand_as(frames)], frames[known.expand_as(frames)])
    assert filled.frames.isfinite().all()
    reached = filled.found > 0
    assert reached.any() == (name != "nothing")
    least, most = frames[known.expand_as(frames)].aminmax()
    copied = filled.copied[reached]
    assert ((copied >= least - 1e-4) & (copied <= most + 1e-4)).all()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_clip_smaller_than_a_window_is_filled(name: str) -> None:
    known = torch.ones(3, 1, 11, 9, dtype=torch.bool)
    known[1] = False
    sketch = Sketch.of(torch.full((3, 3, 11, 9), 0.25), known)
    filled = FillNet()(sketch, ATTENTIONS[name]).frames
    torch.testing.assert_close(filled, torch.full_like(filled, 0.25), atol=0.05, rtol=0)


def test_taking_frames_a_few_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, known, _ = filmed(frames=7, side=24)
    net, sketch = FillNet(), Sketch.of(frames, known)
    torch.nn.init.normal_(net.head[-1].weight, std=0.1)
    whole = net(sketch, ATTENTIONS["gpa"]).frames
    monkeypatch.setattr("examples.video.model.FRAMES_AT_A_TIME", 3)
    with torch.no_grad():
        parts = net(sketch, ATTENTIONS["gpa"]).frames
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_gpa_with_every_block_is_full_attention() -> None:
    frames, known, _ = filmed(frames=4, side=24)
    net, sketch = FillNet(), Sketch.of(frames, known)
    every = Spaces.of(known).clip.num_blocks
    mine = net(sketch, lambda spaces: ATTENTIONS["gpa"](spaces, kappa=every))
    torch.testing.assert_close(
        mine.frames, net(sketch, ATTENTIONS["full"]).frames, atol=1e-4, rtol=0
    )


def test_places_of_one_thing_agree_along_the_path() -> None:
    frames, known, path = filmed()
    sketch = Sketch(frames, known, path, frames, frames)
    where = places(sketch)
    assert where[0, :2, 10, 20].tolist() == where[8, :2, 8, 4].tolist()
    assert where[8, 2, 0, 0] == 8


def test_measures_of_known_frames() -> None:
    truth = torch.rand(3, 3, 16, 16)
    holes = torch.zeros(3, 1, 16, 16, dtype=torch.bool)
    holes[1, :, 4:12, 4:12] = True
    worse = truth + 0.1 * holes
    assert psnr(worse, truth, holes) == pytest.approx(20, abs=1e-3)
    assert flicker(worse, truth, holes) == pytest.approx(25.5, rel=1e-4)
    assert ssim(truth, truth, holes) == pytest.approx(1)
    assert scores(truth, truth, ~holes)["flicker"] == 0
