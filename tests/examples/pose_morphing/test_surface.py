"""The network that says where on the body a pixel is: its training, and generators with it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.common.checkpoints import restore_module
from examples.common.files import write_tensors
from examples.common.untrusted import BadInput, read_tensors
from examples.images.pose_morphing import train_surface
from examples.images.pose_morphing.body import grid, located
from examples.images.pose_morphing.config import PRESETS, preset
from examples.images.pose_morphing.data import random_affine, warp_points
from examples.images.pose_morphing.demo import SHIPPED, STRANGERS
from examples.images.pose_morphing.growth import begin_with
from examples.images.pose_morphing.model import Generator
from examples.images.pose_morphing.surface import (
    FLIP,
    KINDS,
    OTHER_SIDE,
    RAY,
    SPREAD,
    WIDTH,
    Surface,
    SurfaceEmbedding,
    use_surface,
)
from examples.images.pose_morphing.train import Trainer, groups
from examples.images.pose_morphing.train_options import TrainConfig, check_options
from examples.images.pose_morphing.train_surface import (
    Options,
    Shown,
    distorted,
    drawn,
    losses,
    scaled,
    with_mirrored,
)
from examples.people.figures import cache
from examples.people.figures.cache import Figures
from examples.people.figures.camera import Camera
from examples.people.figures.poses import draw_skeleton
from examples.people.figures.render import Figure, draw_figure, looks_of, picture
from examples.people.figures.skeleton import Pose, place
from examples.people.keypoints import NAMES, heat_maps
from examples.people.pictures import Arrays
from tests.examples.pose_morphing.conftest import SIZE, filled

CONFIG = replace(preset("tiny64"), body=16, stems=2)


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "told", replace(CONFIG, body=32))


def people(count: int = 2) -> torch.Tensor:
    places = torch.rand(count, 18, 2) * torch.tensor([24.0, 56.0]) + 4
    return torch.cat([places, torch.ones(count, 18, 1)], dim=2)


def test_pixels_are_drawn_with_what_they_show(figures: Path) -> None:
    shown, held = drawn(figures, "test", 0), Figures(figures, "test")
    h, w = SIZE
    off = 0.5 / h - RAY
    x, y = ((shown.across - off) * h + w - 1) / 2, ((shown.down - off) * h + h - 1) / 2
    for i in range(len(shown.points)):
        row, column = y[i].round().long(), x[i].round().long()
        part = torch.from_numpy(np.array(held.part[i]))[row, column]
        assert torch.equal(part.long(), shown.part[i])
        assert (part[: train_surface.ON_PERSON] > 0).all()
    assert (shown.part == 0).any()


def test_key_points_are_where_their_heat_maps_are() -> None:
    points = people(1)
    points[0, 3] = torch.tensor([-1.0, -1.0, 0.0])
    from_maps = located(heat_maps(points, SIZE, 1.0))[0]
    torch.testing.assert_close(scaled(points[0], SIZE), from_maps, atol=2e-3, rtol=0)


def test_distortion_moves_points_and_pixels_as_it_moves_pictures(figures: Path) -> None:
    shown = drawn(figures, "test", 0)
    theta = random_affine(len(shown.points), 0.2)
    seen = torch.from_numpy(np.array(Figures(figures, "test").points))
    expected = warp_points(seen, theta, SIZE)
    found = distorted(shown, theta)
    kept = expected[..., 2] > 0  # those that have not left the picture
    assert kept.any()
    for mine, theirs, there in zip(found.points, expected, kept, strict=True):
        torch.testing.assert_close(mine[there], scaled(theirs, SIZE)[there], atol=1e-5, rtol=0)
    pixels = torch.stack([shown.across, shown.down, torch.ones_like(shown.down)], dim=2)
    also = distorted(replace(shown, points=pixels), theta)
    torch.testing.assert_close(also.points[..., 0], also.across)
    torch.testing.assert_close(also.points[..., 1], also.down)


def shown_in(figure: Figure) -> Shown:
    """All pixels of a figure."""
    points = scaled(torch.from_numpy(figure.points), SIZE)[None]
    off = 0.5 / SIZE[0] - RAY
    across, down = (x.reshape(1, -1) + off for x in grid(SIZE, points))
    part = torch.from_numpy(figure.part).reshape(1, -1).long()
    return Shown(points, across, down, part, torch.from_numpy(figure.local).reshape(1, -1, 3))


def in_a_mirror(pose: Pose, shift: float) -> Pose:
    return Pose(
        yaw=-pose.yaw,
        spine=pose.spine * (-1, 1),
        head=-pose.head,
        arms=pose.arms[::-1],
        legs=pose.legs[::-1],
        shift=shift - pose.shift,
    )


def test_a_mirror_shows_what_is_drawn_of_a_mirrored_pose() -> None:
    """Half a pixel further right, as the rays lie right of the middle of pixels."""
    camera, looks = Camera(*SIZE), looks_of(1, SIZE)
    pose, skeleton = draw_skeleton(np.random.default_rng(3), looks.body, camera)
    one = shown_in(picture(looks, pose, skeleton, camera))
    pose = in_a_mirror(pose, 0.5 / camera.scale)
    expected = shown_in(picture(looks, pose, place(pose, looks.body), camera))
    mirrored, step = with_mirrored(one), 1 / SIZE[0]

    def in_order(name: str) -> torch.Tensor:
        return getattr(mirrored, name)[1].unflatten(0, SIZE).flip(1).flatten(0, 1)

    assert torch.equal(in_order("part"), expected.part[0])
    for name, off in {"place": 0.0, "across": -step, "down": 0.0}.items():
        right = getattr(expected, name)[0] + off
        torch.testing.assert_close(in_order(name), right, atol=1e-5, rtol=0)
    points = mirrored.points[1]
    there = points[:, 2:] * expected.points[0, :, 2:] > 0
    assert there.sum() > 10
    moved = expected.points[0] - torch.tensor([step, 0.0, 0.0])
    torch.testing.assert_close(torch.where(there, points, 0), torch.where(there, moved, 0))


def test_a_mirror_image_has_the_mirrored_surface() -> None:
    torch.manual_seed(0)
    network, points = Surface(), scaled(people(1)[0], SIZE)[None]
    across, down = torch.rand(2, 1, 50) - 0.5
    logits, places = network(points, across, down)
    swap = [NAMES.index({"r": "l", "l": "r"}.get(n[0], n[0]) + n[1:]) for n in NAMES]
    flip = torch.tensor(FLIP)
    others, flipped = network(flip * points[:, swap], -across - 2 * RAY, down)
    torch.testing.assert_close(logits, others[..., OTHER_SIDE])
    torch.testing.assert_close(places, flip * flipped[:, :, OTHER_SIDE])
    assert (logits - network.read(points, across, down)[0]).abs().max() > 0.01


def test_training_finds_parts_and_points_and_writes_them(
    figures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = drawn(figures, "test", 0)
    monkeypatch.setattr(train_surface, "drawn", lambda *_, **__: shown)
    torch.manual_seed(0)
    before = {name: x.item() for name, x in losses(Surface(), shown).items()}
    network = train_surface.main(Options(figures, tmp_path, steps=60, batch=4))
    after = {name: x.item() for name, x in losses(network, shown).items()}
    assert after["parts"] < 0.6 * before["parts"]
    assert after["points"] < 0.8 * before["points"]
    said = json.loads((tmp_path / "held_out.json").read_text())
    assert 0 < said["parts"] <= 1
    generator = Generator(CONFIG)
    use_surface(generator, tmp_path / "weights.safetensors")
    held = generator.attentions[1].on_body.surface.state_dict()
    for name, x in network.state_dict().items():
        assert torch.equal(x.half().float(), held[name])


def test_a_network_that_grows_is_told_when_it_has_the_level(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = Surface().state_dict()
    write_tensors(tmp_path / "surface.safetensors", weights)
    trainer = trainer_of(tmp_path, surface=tmp_path / "surface.safetensors", grow_at=(1,))
    assert not any(isinstance(x, Surface) for x in trainer.generator.modules())
    trainer.grow(1)
    for network in (trainer.generator, trainer.average):
        (held,) = (x.state_dict() for x in network.modules() if isinstance(x, Surface))
        assert all(torch.equal(x, held[name]) for name, x in weights.items())


def trainer_of(folder: Path, **options: object) -> Trainer:
    images = np.zeros((2, *SIZE, 3), np.uint8)
    pictures = Arrays(images, people().numpy(), np.array([[0, 1]]))
    config = TrainConfig(folder, folder / "run", "told", **options)
    check_options(config)
    return Trainer(config, pictures)


@pytest.mark.bad_input
def test_surfaces_that_are_missing_or_not_used(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="told needs --surface, weights of"):
        trainer_of(tmp_path)
    with pytest.raises(BadInput, match="nowhere"):
        trainer_of(tmp_path, surface=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="for a model that uses it, and tiny64 does not"):
        check_options(TrainConfig(tmp_path, tmp_path, "tiny64", surface=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="a pyramid of queries, and one head"):
        replace(CONFIG, heads=2)


def test_what_moves_as_a_whole_keeps_its_embedding() -> None:
    torch.manual_seed(0)
    embedding = SurfaceEmbedding(2, CONFIG)
    points = people(1)
    points[..., 0] = points[..., 0] / 2 + 2
    right = points + torch.tensor([6.0, 0.0, 0.0])
    maps = [scaled(x[0], SIZE)[None] for x in (points, right)]
    before, after = (embedding.embedded(torch.zeros(1, KINDS, *SIZE), x) for x in maps)
    assert before.shape == after.shape == (1, WIDTH + 1, *SIZE)
    torch.testing.assert_close(after[..., 6:], before[..., :-6], atol=1e-3, rtol=1e-3)
    assert after[..., 6:].std() > 0.1


def test_the_background_has_no_surface() -> None:
    torch.manual_seed(0)
    embedding, points = SurfaceEmbedding(2, CONFIG), scaled(people(1)[0], SIZE)[None]
    correction = torch.zeros(1, KINDS, *SIZE)
    before = embedding.embedded(correction, points)
    for sites, changes in ((slice(0, 3), False), (slice(3, 6), True)):  # of the background, a part
        embedding.surface.to_point.bias.data[sites] += 1000
        after = embedding.embedded(correction, points)
        assert torch.equal(before, after) is not changes


def test_surfaces_are_told_of_other_poses_and_not_of_one_that_was_moved() -> None:
    torch.manual_seed(0)
    embedding, features = SurfaceEmbedding(2, CONFIG), torch.zeros(1, 2, *SIZE)
    one, other = (scaled(x, SIZE)[None] for x in people(2))
    sheared = torch.cat([one[..., :2] @ torch.tensor([[1.1, 0.1], [-0.2, 0.9]]), one[..., 2:]], 2)
    alone = embedding.embedded(torch.zeros(1, KINDS, *SIZE), one)
    seen = torch.ones(1, 3, *SIZE)
    for target, share in ((sheared, 0.0), (other, 1.0)):
        told = embedding.read(features, one)
        key = embedding((seen, seen), features, told, (one, target))[1]
        torch.testing.assert_close(key[:, 3:], share * alone[:, :-1], atol=0.01, rtol=0.01)
        less = 1 - (1 - CONFIG.body_seen) * share * alone[:, -1:].expand_as(seen)
        torch.testing.assert_close(key[:, :3], less, atol=0.01, rtol=0)


def test_a_source_that_was_read_is_told_of_once() -> None:
    torch.manual_seed(0)
    generator = Generator(CONFIG)
    maps, source = heat_maps(people(), SIZE, 1.5), torch.rand(2, 3, *SIZE) * 2 - 1
    features = generator.read(source, maps)
    assert len(features) == len(generator.attentions) + 1
    told = generator.attentions[1].on_body
    told.correct_source.bias.data[0] += 100  # all background: what was told before counts
    first, again = (generator(source, maps, maps.flip(0), features=x) for x in (features, None))
    assert (first.levels[0].key - again.levels[0].key).abs().max() > 0.1
    told.correct_source.bias.data[0] -= 100
    again = generator(source, maps, maps.flip(0))
    torch.testing.assert_close(first.image, again.image)


def test_a_temperature_changes_what_is_seen_and_not_what_is_told() -> None:
    attention = Generator(replace(CONFIG, sharper=4.0)).attentions[1]
    x = torch.rand(1, CONFIG.query_width + WIDTH, 2, 2)
    before = attention.heat(x)
    attention.log_temperature.data += 2
    after = attention.heat(x)
    seen, told = (after / before).split([CONFIG.query_width, WIDTH], dim=1)
    torch.testing.assert_close(seen, torch.full_like(seen, np.e))
    assert torch.equal(told, torch.ones_like(told))
    torch.testing.assert_close(after[:, -WIDTH:], 2 * x[:, -WIDTH:])  # logits 4 times as large


def test_a_generator_corrects_parts_and_leaves_the_surface_as_it_is() -> None:
    torch.manual_seed(1)
    without, with_body = Generator(replace(CONFIG, body=0)), Generator(CONFIG)
    begin_with([without], with_body)
    maps, source = heat_maps(people(), SIZE, 1.5), torch.rand(2, 3, *SIZE) * 2 - 1
    ours, theirs = (x(source, maps, maps.flip(0)) for x in (with_body, without))
    beside = ours.levels[1].query[..., :16] / theirs.levels[1].query
    assert ((beside > CONFIG.body_seen - 1e-5) & (beside < 1 + 1e-5)).all()
    assert ours.levels[0].query.shape[3] == theirs.levels[0].query.shape[3] + WIDTH
    ours.image.square().mean().backward()
    embedding = with_body.attentions[1].on_body
    assert all(p.grad is None for p in embedding.surface.parameters())
    learnt = [p for group in groups(with_body) for p in group["params"]]
    assert not {id(p) for p in learnt} & {id(p) for p in embedding.surface.parameters()}
    for each in (embedding.correct_target, embedding.correct_source):
        assert each.weight.grad.abs().max() > 0


def test_the_surface_that_ships_knows_a_stranger() -> None:
    size, network = (128, 64), Surface()
    restore_module("surface", network, read_tensors(SHIPPED / "surface" / "weights.safetensors"))
    figure = draw_figure(3, 1, size, STRANGERS)
    points = scaled(torch.from_numpy(figure.points), size)[None]
    logits, places = network(points, *(x.reshape(1, -1) for x in grid(size, points)))
    part = torch.from_numpy(figure.part).flatten().long()
    on = part > 0
    off = (
        SPREAD * places[0][on, part[on]] - torch.from_numpy(figure.local).flatten(0, 1)[on]
    ).norm(dim=1)
    assert (logits[0].argmax(dim=1) == part)[on].float().mean() > 0.85
    assert off.median() < 0.016  # of the body's height: two pixels of 128


@pytest.mark.bad_input
def test_pictures_of_other_proportions_are_refused(tmp_path: Path) -> None:
    filled(tmp_path, cache.Options((64, 48), identities=30, poses=2), [])
    with pytest.raises(ValueError, match="64x48; they must be twice as high as wide"):
        drawn(tmp_path, "test", 0)
