"""Procedural figures: what is seen where, and that they are the same on every run."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, strategies as st

from examples.common.commands import Stopped
from examples.people.figures import cache, clothes, fabric, prints
from examples.people.figures.body import PARTS, Capsule, capsules
from examples.people.figures.cache import Figures, Options, build
from examples.people.figures.camera import Camera
from examples.people.figures.cast import NOWHERE, cast, meet, normals
from examples.people.figures.correspondence import (
    COPYABLE,
    Correspondence,
    correspondence,
)
from examples.people.figures.poses import draw_skeleton
from examples.people.figures.render import (
    FINER,
    Figure,
    colour,
    draw_figure,
    locate,
    looks_of,
    render,
)
from examples.people.figures.skeleton import (
    KEY_POINTS,
    Body,
    Pose,
    place,
    rotation,
)
from ndgpa.testing import draw

ROOT = Path(__file__).parents[3]
SMALL = Options(size=(32, 32), identities=60, poses=3, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered by two processes."""
    folder = tmp_path_factory.mktemp("figures")
    build(folder, SMALL, workers=2)
    return folder


def standing(yaw: float, arms: tuple[float, float, float] = (0.15, 0, 0)) -> Pose:
    """Upright, with both arms alike."""
    return Pose(yaw, np.zeros(2), np.zeros(2), np.array([arms, arms]), np.zeros((2, 3)), 0.0)


def seen(pose: Pose, camera: Camera) -> dict[str, np.ndarray]:
    """Key points of a pose: x, y, seen."""
    skeleton = place(pose, Body())
    surface = cast(capsules(skeleton, long_hair=False), camera, FINER)
    return dict(zip(KEY_POINTS, locate(skeleton, surface, camera)))


def affine(figure: Figure, part: int) -> tuple[np.ndarray, float]:
    """(4, 2): the map from points of a part to pixels, as the picture shows it, and its error.

    A part is rigid and the camera orthographic, so the map is affine.
    """
    row, column = np.nonzero(figure.part == part)
    known = np.concatenate([figure.local[row, column], np.ones((len(row), 1))], axis=1)
    ray = (0.5 + FINER // 2) / FINER - 0.5  # of the one that the truth belongs to, in its pixel
    wanted = np.stack([column, row], axis=1) + ray
    found = np.linalg.lstsq(known, wanted, rcond=None)[0]
    return found, float(np.abs(known @ found - wanted).max())


def test_other_processes_draw_the_same(folder: Path) -> None:
    figures = Figures(folder, "train")
    for identity, pose in ((0, 0), (17, 2), (55, 1)):
        figure, row = draw_figure(identity, pose, (32, 32), seed=5), identity * 3 + pose
        assert np.array_equal(figures.images[row], figure.image)
        assert np.array_equal(figures.points[row], figure.points)
        assert np.array_equal(figures.part[row], figure.part)
        assert np.array_equal(figures.local[row], figure.local.astype(np.float16))
        assert figures.yaw[row] == np.float32(figure.yaw)


def test_other_numbers_are_other_figures() -> None:
    first = draw_figure(3, 1, (32, 32))
    for identity, pose, seed in ((4, 1, 0), (3, 2, 0), (3, 1, 1)):
        other = draw_figure(identity, pose, (32, 32), seed)
        assert (first.image != other.image).mean() > 0.1


def test_splits_share_nobody(folder: Path) -> None:
    splits = [Figures(folder, name).identities for name in ("train", "validation", "test")]
    assert splits == [range(56), range(56, 58), range(58, 60)]
    assert [len(Figures(folder, name).images) for name in cache.SPLITS] == [168, 6, 6]


def test_pairs_are_of_one_identity_and_mostly_of_near_turns(folder: Path) -> None:
    figures = Figures(folder, "train")
    source, target = figures.pairs.T
    assert (source // 3 == target // 3).all()
    assert (source != target).all()
    assert len(np.unique(figures.pairs, axis=0)) == len(figures.pairs)
    turn = figures.yaw[source] - figures.yaw[target]
    near = np.cos(turn) > np.cos(1.0)
    assert (~near).mean() == pytest.approx(0.04, abs=0.01)
    possible = figures.yaw.reshape(-1, 3, 1) - figures.yaw.reshape(-1, 1, 3)
    assert near.sum() == (np.cos(possible) > np.cos(1.0)).sum() - len(figures.yaw)


@pytest.mark.parametrize("size", [(256, 256), (512, 256), (128, 64), (64, 32), (100, 48)])
def test_every_pose_fits_the_picture(size: tuple[int, int]) -> None:
    camera, last = Camera(*size), np.array([size[1], size[0]]) - 0.5
    for number in range(60):
        generator = np.random.default_rng(number)
        body = Body(height=generator.uniform(0.95, 1.04), girth=generator.uniform(0.9, 1.15))
        _, skeleton = draw_skeleton(generator, body, camera)
        for name, shape in zip(PARTS, capsules(skeleton, long_hair=number % 2 == 0)):
            centres = camera.project(np.stack([shape.low, shape.high]))
            reach = np.array(shape.radii)[:, None] * max(shape.squeeze) * camera.scale
            assert (centres - reach >= -0.5).all(), name
            assert (centres + reach <= last).all(), name


def test_figures_are_large_and_move() -> None:
    """They stand 85 % of the picture high and more, and many still lift an arm in 2:1."""
    heights, raised = [], 0
    for number in range(30):
        figure = draw_figure(number, 7, (64, 32))
        heights.append(np.ptp(np.nonzero(figure.part)[0]) / 64)
        _, elbow_y, _ = figure.points[KEY_POINTS.index("left elbow")]
        _, wrist_y, _ = figure.points[KEY_POINTS.index("left wrist")]
        raised += wrist_y < elbow_y
    assert np.mean(heights) > 0.85
    assert raised >= 5


def test_key_points_lie_where_the_picture_shows_the_ends_of_the_bones() -> None:
    ends = {"upper arm": "elbow", "forearm": "wrist", "thigh": "knee", "shin": "ankle"}
    checked = 0
    for number in range(4):
        figure = draw_figure(number, number, (128, 128))
        for side in ("right", "left"):
            for part, joint in ends.items():
                found, error = affine(figure, 1 + PARTS.index(f"{side} {part}"))
                if error > 0.01:  # not enough of the part is seen to tell
                    continue
                x, y, _ = figure.points[KEY_POINTS.index(f"{side} {joint}")]
                assert found[3] == pytest.approx([x, y], abs=0.1)
                checked += 1
    assert checked > 20


def test_what_is_turned_away_is_not_seen() -> None:
    camera = Camera(128, 128)
    front, back = seen(standing(0.0), camera), seen(standing(np.pi), camera)
    aside = seen(standing(np.pi / 2), camera)  # its right side is near
    assert all(front[name][2] for name in KEY_POINTS)
    hidden = {name for name in KEY_POINTS if not back[name][2]}
    assert hidden == {"nose", "right eye", "left eye"}
    for joint in ("shoulder", "elbow", "wrist", "knee", "ankle", "ear", "eye"):
        assert aside[f"right {joint}"][2], joint
        assert not aside[f"left {joint}"][2], joint


def test_an_arm_hides_what_is_behind_it() -> None:
    camera = Camera(128, 128)
    folded = np.array([(0.15, 0, 0), (0.1, -1.5, 0)])  # the left one points at the viewer
    pose = replace(standing(0.0), arms=folded)
    points = seen(pose, camera)
    assert points["left wrist"][2]
    assert not points["left shoulder"][2]
    assert points["right shoulder"][2]


def test_a_key_point_outside_the_picture_is_missing() -> None:
    points = seen(standing(0.0, arms=(1.5, 0, 0)), Camera(128, 64))
    assert points["left wrist"].tolist() == points["right wrist"].tolist() == [-1, -1, 0]
    assert points["left shoulder"][2]


def test_right_and_left_are_the_persons_own() -> None:
    points = seen(standing(0.0), Camera(128, 128))
    for joint in ("eye", "shoulder", "wrist", "ankle"):
        assert points[f"right {joint}"][0] < 63.5 < points[f"left {joint}"][0]
    x, y, _ = points["nose"]
    assert x == pytest.approx(63.5, abs=1e-4)  # the middle, where the first pixel's centre is 0
    assert y < points["neck"][1] < points["right hip"][1] < points["right ankle"][1]


@draw.FEW
@given(st.integers(0, 2**32 - 1))
def test_rays_meet_the_hull_of_two_squeezed_balls(seed: int) -> None:
    """Against the union of the balls between the two, searched along every ray."""
    generator = np.random.default_rng(seed)
    shape = random_capsule(generator)
    x, y = generator.uniform(-0.2, 0.2, (2, 5))
    depth, _ = meet(shape, x, y)
    z = np.linspace(-0.5, 0.5, 501)
    points = np.stack(np.broadcast_arrays(x[None, :, None], y[:, None, None], z), axis=-1)
    distance = outside(shape, points)
    last = np.where((distance < 0).any(-1), 500 - (distance < 0)[..., ::-1].argmax(-1), -1)
    for hit, at, ray in zip(depth.ravel(), last.ravel(), distance.reshape(-1, 501)):
        if at >= 0:
            assert hit == pytest.approx(z[at], abs=0.003)
        elif ray.min() > 0.002:  # not a near miss
            assert hit <= NOWHERE


def random_capsule(generator: np.random.Generator) -> Capsule:
    frame = rotation("x", generator.uniform(-3, 3)) @ rotation("z", generator.uniform(-3, 3))
    low, length = generator.uniform(-0.1, 0.1, 3), generator.uniform(0.08, 0.2)
    radii = generator.uniform(0.03, 0.09, 2)
    squeeze = generator.uniform(0.7, 1.3, 2)
    return Capsule(low, low + length * frame[:, 1], tuple(radii), frame, tuple(squeeze))


def outside(shape: Capsule, points: np.ndarray) -> np.ndarray:
    """(...) roughly how far points (..., 3) are outside; negative inside."""
    own = (points - shape.low) @ shape.frame / (shape.squeeze[0], 1, shape.squeeze[1])
    distance = np.full(points.shape[:-1], np.inf)
    for share in np.linspace(0, 1, 100):
        radius = shape.radii[0] + share * (shape.radii[1] - shape.radii[0])
        ball = np.linalg.norm(own - (0, share * shape.length, 0), axis=-1) - radius
        distance = np.minimum(distance, ball)
    return distance


def test_normals_stand_on_the_surface() -> None:
    shape = random_capsule(np.random.default_rng(4))
    x, y = shape.low[:2]
    step = 1e-3
    (near, right), (up, _) = meet(shape, np.array([x, x + step]), np.array([y, y + step]))[0]
    point = meet(shape, np.array([x]), np.array([y]))[1].reshape(1, 3)
    slope = np.array([near - right, near - up, step])
    assert normals(shape, point)[0] == pytest.approx(slope / np.linalg.norm(slope), abs=0.02)


def test_correspondence_is_the_nearest_point_of_the_same_part() -> None:
    source, target = (draw_figure(2, pose, (64, 32)) for pose in (0, 1))
    found = match(source, target)
    candidates = np.argwhere(source.part > 0)
    for row, column in np.argwhere(target.part > 0)[::7]:
        same = candidates[source.part[*candidates.T] == target.part[row, column]]
        if len(same) == 0:
            assert found.row[row, column] == -1
            continue
        away = np.linalg.norm(source.local[*same.T] - target.local[row, column], axis=1)
        assert found.distance[row, column] == pytest.approx(away.min(), abs=1e-6)
        chosen = source.local[found.row[row, column], found.column[row, column]]
        wanted = away.min() + 1e-6
        assert np.linalg.norm(chosen - target.local[row, column]) <= wanted
    assert (found.row[target.part == 0] == -1).all()
    assert not found.copyable[target.part == 0].any()


def test_a_figure_corresponds_to_itself() -> None:
    figure = draw_figure(9, 0, (64, 32))
    found, body = match(figure, figure), figure.part > 0
    assert np.array_equal(np.argwhere(body), np.stack([found.row, found.column], axis=-1)[body])
    assert np.array_equal(found.copyable, body)


def test_copyable_pixels_show_the_same_point_within_two_pixels() -> None:
    """The source's own affine maps say where each point of the target is seen."""
    source, target = (draw_figure(12, pose, (128, 64)) for pose in (0, 3))
    found, camera = match(source, target), Camera(128, 64)
    checked = 0
    for part in np.unique(source.part)[1:]:
        to_pixels, error = affine(source, part)
        copied = found.copyable & (target.part == part)
        if error > 0.01:
            continue
        point = np.concatenate([target.local[copied], np.ones((copied.sum(), 1))], axis=1)
        pixel = np.stack([found.column[copied], found.row[copied]], axis=1) + 0.25
        away = np.linalg.norm(point @ to_pixels - pixel, axis=1)
        assert (away <= COPYABLE * camera.scale + 0.01).all()
        checked += copied.sum()
    assert checked > 300


def match(source: Figure, target: Figure) -> Correspondence:
    return correspondence(source.part, source.local, target.part, target.local)


def test_a_print_across_the_seam_is_the_print_in_front() -> None:
    texture = np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8)
    drawing = prints.outlined("88", (255, 0, 0), (0, 0, 255))
    behind = prints.stamp(texture, (0.5, 0.0), (30.0, 40.0), drawing)
    front = prints.stamp(np.roll(texture, 32, axis=1), (0.5, 0.5), (30.0, 40.0), drawing)
    assert np.array_equal(np.roll(behind, 32, axis=1), front)
    assert (behind[:, [0, -1]] != texture[:, [0, -1]]).any()


def test_a_print_on_the_back_is_whole_and_in_the_middle_from_behind() -> None:
    camera, looks = Camera(128, 128), looks_of(0, (128, 128))
    black = {part: np.zeros_like(texture) for part, texture in looks.textures.items()}
    square = prints.panel(" ", (255, 0, 0), (255, 0, 0))
    trunk = prints.stamp(black["trunk"], clothes.BACK, (24.0, 24.0), square)
    looks = replace(looks, textures=black | {"trunk": trunk})
    shapes = capsules(place(standing(np.pi), Body()), long_hair=False)
    surface = cast(shapes, camera, FINER)
    image = colour(surface, shapes, looks, np.zeros((128, 128, 3), np.float32))
    red = image[..., 0] > 60
    assert scipy.ndimage.label(red)[1] == 1
    assert red.sum() > 80
    assert np.nonzero(red)[1].mean() == pytest.approx(63.5, abs=0.3)  # the middle column


@pytest.mark.parametrize("name", [name for name in fabric.PATTERNS if name != "photo"])
def test_patterns_close_around_the_part(name: str) -> None:
    """The seam is no sharper than the pattern itself."""
    mask = fabric.pattern(name, (96, 61), 9.0)
    change = np.abs(mask - np.roll(mask, 1, axis=1)).mean(axis=0)
    assert change[0] <= change[1:].max() + 1e-9


@pytest.mark.parametrize("rows", [64, 128, 256, 512])
def test_stripes_are_four_pixels_wide_and_three_where_they_close_around_a_part(rows: int) -> None:
    camera, generator = Camera(rows, rows), np.random.default_rng(rows)
    tailor = clothes.Tailor(generator, rows)
    for _ in range(10):
        cloth = replace(tailor.draw_cloth(), pattern="horizontal stripes")
        stripes = tailor.cloth("thigh", cloth)[:, 0].astype(int)
        edges = np.flatnonzero(np.abs(np.diff(stripes, axis=0)).sum(axis=1))
        texel = clothes.EXTENT["thigh"][0] / len(stripes) * camera.scale  # in pixels
        assert (np.diff(edges) * texel >= 4).all()
        shape, half = tailor.shape("trunk"), cloth.half * tailor.density
        around = np.flatnonzero(np.diff(fabric.pattern("vertical stripes", shape, half)[0]))
        texel = clothes.EXTENT["trunk"][1] / shape[1] * camera.scale
        assert (np.diff(around) * texel >= 3).all()


def test_looks_keep_from_size_to_size() -> None:
    small, large = looks_of(11, (64, 32)), looks_of(11, (256, 256))
    assert small.body == large.body
    assert small.textures["hand"][0, 0].tolist() == large.textures["hand"][0, 0].tolist()
    assert small.textures["shoe"].mean((0, 1)) == pytest.approx(
        large.textures["shoe"].mean((0, 1)), abs=3
    )
    assert small.backdrop.horizon == large.backdrop.horizon


def test_a_killed_build_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    """The process that it had started ends by itself, after the identity at hand."""
    again = tmp_path / "again"
    command = [sys.executable, "-m", "examples.people.figures"]
    command += ["--folder", str(again), "--workers", "1", "--size", "32", "32"]
    command += ["--identities", "60", "--poses", "3", "--seed", "5"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            done = wait_for(again, some=3)
        finally:
            process.kill()
    before = int(done.sum())
    time.sleep(0.5)
    assert 3 <= done.sum() <= before + 1 < 60
    assert not (again / "figures.json").exists()
    with pytest.raises(ValueError, match="holds no complete set of figures"):
        Figures(again, "train")
    build(again, SMALL, workers=0)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in again.iterdir()} == {path.name for path in folder.iterdir()}


def wait_for(folder: Path, some: int, timeout_s: float = 300.0) -> np.ndarray:
    """The memory-mapped list of finished identities, once there are some."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if (folder / "started.json").exists():
            done = np.load(folder / "done.npy", mmap_mode="r")
            if done.sum() >= some:
                return done
        time.sleep(0.01)
    raise TimeoutError(f"no {some} identities after {timeout_s} s")


def test_a_finished_folder_is_left_alone(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    build(folder, SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_ctrl_c_leaves_what_was_rendered_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def draw(*arguments: object) -> Figure:
        drawn.append(arguments)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return render(*arguments)  # type: ignore[arg-type]

    options = Options(size=(32, 32), identities=30, poses=2, truth=False)
    monkeypatch.setattr(cache, "render", draw)
    with pytest.raises(Stopped, match="has 2 of 30 identities; the same command continues"):
        build(tmp_path, options, workers=0)
    build(tmp_path, options, workers=0)
    assert len(drawn) == 5 + 2 * 28


def test_what_does_not_fit_is_said_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds figures of .* name another"):
        build(folder, replace(SMALL, seed=6))
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        build(tmp_path / "new", SMALL, workers=-1)
    with pytest.raises(ValueError, match="a figure does not fit 128x40 pixels"):
        Camera(128, 40)
    with pytest.raises(ValueError, match="29 identities in 2 poses do not make three splits"):
        Options(identities=29, poses=2)
    with pytest.raises(ValueError, match="unknown split 'all'; expected one of 'train'"):
        Figures(folder, "all")
    with pytest.raises(ValueError, match="unknown pattern 'tartan'"):
        fabric.pattern("tartan", (8, 8), 2.0)
    build(tmp_path / "bare", Options(size=(32, 32), identities=30, poses=2, truth=False), workers=0)
    with pytest.raises(ValueError, match="holds no 'local'; render it with --truth"):
        _ = Figures(tmp_path / "bare", "test").local
    written = SMALL.written() | {"version": cache.VERSION + 1}
    (tmp_path / "figures.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="holds figures of version"):
        Figures(tmp_path, "train")


def test_pictures_have_the_same_figure_at_every_resolution() -> None:
    small, large = (render(looks_of(4, size), 4, 2, size) for size in ((64, 64), (128, 128)))
    assert large.points[:, 0] == pytest.approx(2 * small.points[:, 0] + 0.5, abs=1e-3)
    assert (large.part[1::2, 1::2] == small.part).mean() > 0.97
