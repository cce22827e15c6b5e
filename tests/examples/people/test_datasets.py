"""What the folders of data become: cut pictures, moved points, pairs."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from examples.people import open_pictures
from examples.people.clips import Options, draw_pairs, open_clips
from examples.people.deepfashion import open_deepfashion, pair_list
from examples.people.frames import ImageFile
from examples.people.geometry import (
    cut,
    cut_points,
    moved_inside,
    person_box,
    whole_box,
)
from examples.people.keypoints import NAMES
from examples.people.pictures import Arrays, mirrored
from examples.people.prepare import cut_deepfashion, mangled, store_splits
from examples.people.singles import open_singles
from examples.people.stored import open_stored, store
from examples.people.videos import decoded, video_frames
from tests.examples.people import made_up

MISSING = [-1, -1, 0]


def with_presence(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1))], axis=1).astype(np.float32)


def test_a_crop_of_deepfashion_becomes_a_square_with_forty_white_columns_on_each_side() -> None:
    pixels = made_up.picture((256, 176))
    box = whole_box((256, 176), (256, 256))
    assert box == (-40, 0, 216, 256)
    square = cut(pixels, box, (256, 256))
    np.testing.assert_array_equal(square[:, 40:216], pixels)
    assert (square[:, :40] == 255).all()
    assert (square[:, 216:] == 255).all()
    points = with_presence(made_up.standing())
    moved = cut_points(points, box, (256, 256))
    np.testing.assert_array_equal(moved, points + np.float32([40, 0, 0]))
    back = (40, 0, 216, 256)
    np.testing.assert_array_equal(cut(square, back, (256, 176)), pixels)
    np.testing.assert_array_equal(cut_points(moved, back, (256, 176)), points)


def test_points_move_as_the_picture_does_when_it_is_scaled() -> None:
    """A white spot of 8x8 pixels is where its point is after cutting, at any size."""
    pixels = np.zeros((120, 90, 3), np.uint8)
    pixels[40:48, 60:68] = 255
    points = np.tile(np.float32(MISSING), (18, 1))
    points[3] = 63.5, 43.5, 1
    for box, size in [((10, 5, 85, 105), (50, 60)), ((10, 5, 85, 105), (200, 150))]:
        spot = cut(pixels, box, size)[..., 0].astype(float)
        y, x = np.mgrid[: size[0], : size[1]]
        centre = [(spot * x).sum() / spot.sum(), (spot * y).sum() / spot.sum(), 1]
        moved = cut_points(points, box, size)
        np.testing.assert_allclose(moved[3], centre, atol=0.1)
        assert (moved[:3] == MISSING).all()


def test_points_outside_the_box_are_missing() -> None:
    points = with_presence(made_up.standing())
    moved = cut_points(points, (0, 100, 176, 256), (156, 176))
    above = made_up.standing()[:, 1] < 99.5
    np.testing.assert_array_equal(moved[:, 2], ~above)
    assert (moved[above] == MISSING).all()


@pytest.mark.parametrize("size", [(256, 256), (512, 256), (128, 64)])
def test_the_box_holds_the_person_with_room_and_has_the_proportions_of_the_size(
    size: tuple[int, int],
) -> None:
    points = with_presence(made_up.standing())
    left, top, right, bottom = person_box(points, size, margin=0.1)
    (low_x, low_y), (high_x, high_y) = points[:, :2].min(0), points[:, :2].max(0)
    room = 0.1 * (high_y - low_y)
    assert left <= low_x - room + 1
    assert top <= low_y - room + 1
    assert right >= high_x + room
    assert bottom >= high_y + room
    assert (bottom - top) / (right - left) == pytest.approx(size[0] / size[1], rel=0.02)


def test_a_box_moves_into_the_picture_if_it_fits() -> None:
    assert moved_inside((-5, 10, 45, 90), (100, 200)) == (0, 10, 50, 90)
    assert moved_inside((170, 30, 220, 110), (100, 200)) == (150, 20, 200, 100)
    assert moved_inside((-5, -20, 45, 130), (100, 200)) == (0, -20, 50, 130)


def test_deepfashion_gives_pictures_points_and_pairs_of_both_lists(tmp_path: Path) -> None:
    root = made_up.deepfashion(tmp_path)
    pictures = open_deepfashion(root, "train")
    assert pictures.size == (256, 256)
    assert len(pictures) == 4
    np.testing.assert_array_equal(pictures.pairs, [(0, 1), (1, 2), (2, 3), (3, 0)])
    expected = with_presence(made_up.standing(2 + 40))
    np.testing.assert_array_equal(pictures.points[2], expected)
    source, target = pictures.pairs_at(np.array([3, 1]))
    assert source.images.shape == (2, 256, 256, 3)
    np.testing.assert_array_equal(source.images[0], pictures.image(3))
    np.testing.assert_array_equal(target.points, pictures.points[[0, 2]])


def test_a_missing_point_of_the_list_stays_missing(tmp_path: Path) -> None:
    root = made_up.deepfashion(tmp_path)
    points = made_up.standing()
    points[NAMES.index("lwri")] = -1
    listed = root / "fasion-resize-annotation-train.csv"
    name = listed.read_text().splitlines()[1].split(":")[0]
    made_up.change_line(listed, 2, made_up.annotation(name, points))
    found = open_deepfashion(root, "train").points[0]
    assert (found[NAMES.index("lwri")] == MISSING).all()
    assert found[:, 2].sum() == 17


def test_names_of_the_download_are_mangled_as_in_the_lists() -> None:
    path = Path("WOMEN/Blouses_Shirts/id_00000693/02_3_back.jpg")
    assert mangled(path) == "fashionWOMENBlouses_Shirtsid0000069302_3back.jpg"
    path = Path("MEN/Tees_Tanks/id_00000001/04_1_front.jpg")
    assert mangled(path) == "fashionMENTees_Tanksid0000000104_1front.jpg"


def test_the_download_is_cut_and_paired_by_outfit(tmp_path: Path) -> None:
    raw, root = tmp_path / "img", tmp_path / "fashion"
    shots = ["01_1_front", "01_2_side", "02_1_front", "01_7_additional"]
    points = [made_up.standing() for _ in shots]
    points[3][NAMES.index("rhip")] = -1  # a torso that is not whole is not paired
    for i, shot in enumerate(shots[:3]):
        made_up.save(
            raw / "WOMEN/Dresses/id_00000001" / f"{shot}.jpg", made_up.picture((256, 256), i)
        )
    names = [mangled(Path("WOMEN/Dresses/id_00000001") / f"{shot}.jpg") for shot in shots]
    rows = [made_up.annotation(*each) for each in zip(names, points)]
    head = "name:keypoints_y:keypoints_x"
    made_up.write(root / "fasion-resize-annotation-train.csv", [head, *rows])
    left_out = cut_deepfashion(raw, root)
    assert left_out == [f"train/{names[3]} is not in the download"]
    assert pair_list(root, "train").read_text().split() == [
        "from,to",
        f"{names[0]},{names[1]}",
        f"{names[1]},{names[0]}",
    ]
    with PIL.Image.open(root / "train" / names[0]) as crop:
        assert crop.size == (176, 256)
        given = made_up.picture((256, 256), 0)[:, 40:216].astype(float)
        assert np.abs(np.asarray(crop) - given).mean() < 3
    assert len(open_pictures(root, "train")) == 3


@pytest.mark.parametrize("make", [made_up.clip_of_images, made_up.clip_of_video])
def test_a_clip_is_cut_by_one_box_and_its_frames_are_paired(tmp_path: Path, make) -> None:
    make(tmp_path, "a", 5)
    make(tmp_path, "b", 4)
    clips = open_clips(tmp_path, (64, 32), Options(pairs_per_clip=100))
    assert len(clips) == 9
    assert len({tuple(box) for box in clips.boxes[:5]}) == 1
    expected = [(a, b) for a in range(5) for b in range(5) if a != b]
    expected += [(a, b) for a in range(5, 9) for b in range(5, 9) if a != b]
    assert sorted(map(tuple, clips.pairs)) == expected
    assert clips.at(np.arange(9)).images.shape == (9, 64, 32, 3)
    assert (clips.points[..., 2] == 1).all()
    step = clips.points[1, :, 0] - clips.points[0, :, 0]
    assert np.ptp(step) < 1e-4  # all points move to the right alike, in the box that does not
    assert step[0] > 0


def test_a_clip_can_say_which_part_of_its_frames_to_use(tmp_path: Path) -> None:
    folder = made_up.clip_of_images(tmp_path, "a")
    points = [made_up.standing().tolist()] * 5
    (folder / "keypoints.json").write_text(
        json.dumps({"keypoints": points, "box": [40, 0, 140, 250]})
    )
    clips = open_clips(tmp_path, (250, 125))
    np.testing.assert_array_equal(clips.boxes, [(28, 0, 153, 250)] * 5)  # twice as high as wide
    frame = made_up.picture((300, 400), 3)
    np.testing.assert_array_equal(clips.image(3), frame[:250, 28:153])
    np.testing.assert_array_equal(clips.points[3, 0], [88 - 28, 30, 1])


def test_in_a_mirror_a_point_stays_on_its_pixel_and_left_is_right(tmp_path: Path) -> None:
    drawn = open_deepfashion(made_up.deepfashion(tmp_path), "train").at(np.arange(4))
    twin = mirrored(drawn)
    x, y, _ = drawn.points[1, NAMES.index("rwri")].astype(int)
    u, v, _ = twin.points[1, NAMES.index("lwri")].astype(int)
    assert (u, v) == (255 - x, y)
    np.testing.assert_array_equal(twin.images[1, v, u], drawn.images[1, y, x])


def test_the_pairs_of_a_clip_are_the_same_in_every_run_and_do_not_repeat() -> None:
    pairs = draw_pairs(50, 200, [0, 7])
    np.testing.assert_array_equal(pairs, draw_pairs(50, 200, [0, 7]))
    assert (pairs != draw_pairs(50, 200, [1, 7])).any()
    assert len(np.unique(pairs, axis=0)) == 200
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert 0 <= pairs.min() <= pairs.max() < 50
    assert draw_pairs(1, 200, [0]).shape == (0, 2)


def test_any_frame_of_a_video_is_the_one_that_decoding_from_the_start_gives(tmp_path: Path) -> None:
    path = made_up.clip_of_video(tmp_path, "a") / "clip.mp4"
    frames, all_of_them = video_frames(path), list(decoded(path))
    assert len(frames) == len(all_of_them) == 24
    for i in [23, 0, 9, 8, 7, 15]:
        np.testing.assert_array_equal(frames[i].read(), all_of_them[i])
        assert abs(all_of_them[i].mean() - 10 * i) < 3


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255
    made_up.write_video(tmp_path / "a.mp4", [pixels] * 3, turned=90)
    upright = video_frames(tmp_path / "a.mp4")[1].read()
    assert upright.shape == (64, 48, 3)
    assert upright[40:].mean() > 250  # left has become below: a quarter turn against the clock
    assert upright[:24].mean() < 5


def test_a_photograph_is_turned_and_what_is_transparent_is_white(tmp_path: Path) -> None:
    turned = PIL.Image.fromarray(made_up.picture((30, 20)))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(
        ImageFile(tmp_path / "a.png").read(), np.rot90(made_up.picture((30, 20)), -1)
    )
    PIL.Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "b.png")
    assert (ImageFile(tmp_path / "b.png").read() == 255).all()


def test_single_pictures_have_no_pairs_and_take_poses_of_the_bank(tmp_path: Path) -> None:
    root = made_up.singles(tmp_path)
    pictures = open_singles(root, (64, 64))
    assert pictures.pairs.shape == (0, 2)
    np.testing.assert_array_equal(pictures.poses, pictures.points)
    assert (pictures.points[:, NAMES.index("neck"), 2] == 1).all()
    with pytest.raises(ValueError, match="these pictures have no pairs"):
        pictures.pairs_at(np.array([0]))
    np.savez(root / "poses.npz", keypoints=np.stack([5 * made_up.standing()] * 2))
    pictures = open_singles(root, (64, 64))
    assert pictures.poses.shape == (2, 18, 3)
    own = dict(zip(NAMES, pictures.points[0]))
    pose = dict(zip(NAMES, pictures.poses[0]))
    for name in ("rwri", "lank", "nose"):  # five times as large, so cut alike
        np.testing.assert_allclose(pose[name], own[name], atol=0.6)


def damaged(tmp_path: Path) -> tuple[Path, list[str]]:
    """Six pictures, the second and third broken in a way that only decoding shows."""
    root = made_up.deepfashion(tmp_path, count=6)
    names = [line.split(",")[0] for line in pair_list(root, "train").read_text().split()[1:]]
    for name in names[1:3]:
        path = root / "train" / name
        path.write_bytes(path.read_bytes()[:2000])
    return root, names


def test_a_broken_picture_is_replaced_by_the_next_good_one_with_its_points(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, names = damaged(tmp_path)
    pictures = open_deepfashion(root, "train")
    assert len(pictures) == 6
    drawn = pictures.at(np.array([1, 5, 2]))
    for i, stands_in in enumerate([3, 5, 3]):
        np.testing.assert_array_equal(drawn.images[i], pictures.image(stands_in))
        np.testing.assert_array_equal(drawn.points[i], pictures.points[stands_in])
    source, target = pictures.pairs_at(np.array([0, 4]))
    np.testing.assert_array_equal(source.points, pictures.points[[3, 4]])
    np.testing.assert_array_equal(target.points, pictures.points[[4, 5]])
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert f"{names[2]} cannot be read as a picture" in messages[1]
    assert messages[1].endswith("the next good one stands in (2 so far)")


def test_the_stand_ins_do_not_depend_on_what_was_asked_for_before(tmp_path: Path) -> None:
    root, _ = damaged(tmp_path)
    fresh, used = open_deepfashion(root, "train"), open_deepfashion(root, "train")
    used.at(np.array([2, 4, 0]))
    used.pairs_at(np.array([5, 2]))
    for a, b in zip(fresh.pairs_at(np.arange(6)), used.pairs_at(np.arange(6))):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.points, b.points)


def test_a_folder_without_a_good_picture_says_so_instead_of_searching_for_ever(
    tmp_path: Path,
) -> None:
    root = made_up.deepfashion(tmp_path, count=2)
    pictures = open_deepfashion(root, "train")
    for path in (root / "train").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no picture can be read; .* is not a file"):
        pictures.at(np.array([0]))


def test_what_the_lists_and_sizes_give_away_is_left_out_at_opening_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = made_up.deepfashion(tmp_path, count=5)
    names = sorted(path.name for path in (root / "train").iterdir())
    (root / "train" / names[0]).unlink()
    made_up.save(root / "train" / names[1], made_up.picture((176, 256)))
    pictures = open_deepfashion(root, "train")
    assert len(pictures) == 3
    np.testing.assert_array_equal(pictures.pairs, [(0, 1), (1, 2)])
    assert f"{root / 'train'}: 3 pictures, 2 pairs, 2 problems" in caplog.messages


def test_stored_pictures_are_the_pictures_without_the_broken_ones(tmp_path: Path) -> None:
    root, names = damaged(tmp_path / "data")
    lines = store_splits(root, tmp_path / "stored", (64, 64), ("train",))
    assert [names[i] in line for i, line in zip((1, 2), lines)] == [True, True]
    pictures = open_deepfashion(root, "train", (64, 64))
    stored = open_pictures(tmp_path / "stored", "train")
    assert len(stored) == 4
    assert stored.size == (64, 64)
    good = [0, 3, 4, 5]
    everyone = stored.at(np.arange(4))
    np.testing.assert_array_equal(everyone.images, [pictures.image(i) for i in good])
    np.testing.assert_array_equal(everyone.points, pictures.points[good])
    np.testing.assert_array_equal(stored.pairs, [(1, 2), (2, 3), (3, 0)])


def test_a_bank_of_poses_is_stored_too(tmp_path: Path) -> None:
    root = made_up.singles(tmp_path / "data")
    (root / "poses.json").write_text(json.dumps([made_up.standing().tolist()]))
    pictures = open_singles(root, (32, 32))
    store(pictures, tmp_path / "stored")
    np.testing.assert_array_equal(open_stored(tmp_path / "stored").poses, pictures.poses)


def test_a_folder_is_opened_as_what_it_holds(tmp_path: Path) -> None:
    made_up.deepfashion(tmp_path / "fashion", split="test")
    made_up.singles(tmp_path / "singles")
    made_up.clip_of_images(tmp_path / "clips" / "train", "a")
    made_up.clip_of_images(tmp_path / "clips" / "test", "b", frames=3)
    assert open_pictures(tmp_path / "fashion", "test", (64, 64)).size == (64, 64)
    assert len(open_pictures(tmp_path / "singles", "train")) == 3
    assert len(open_pictures(tmp_path / "clips", "train")) == 5
    assert len(open_pictures(tmp_path / "clips", "test")) == 3
    with pytest.raises(ValueError, match="singles has no folder test"):
        open_pictures(tmp_path / "singles", "test")
    with pytest.raises(ValueError, match="holds none of figures, stored pictures"):
        open_pictures(tmp_path / "clips" / "train" / "a" / "frames", "train")
    with pytest.raises(ValueError, match="nothing is not a folder"):
        open_pictures(tmp_path / "nothing", "train")


def test_arrays_refuse_pairs_of_pictures_that_are_not_there() -> None:
    images, points = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 18, 3), np.float32)
    with pytest.raises(ValueError, match="pairs name a picture beyond the 2"):
        Arrays(images, points, np.array([(0, 2)]))
    with pytest.raises(ValueError, match="2 images have 1 sets of points"):
        Arrays(images, points[:1], np.array([(0, 1)]))
    assert Arrays(images, points, np.array([(0, 1)])).images_at(np.array([1, 1, 0])).shape[0] == 3
