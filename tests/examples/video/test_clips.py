"""Clips in and out of files."""

import resource
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.video.clips import Clip, read_clip, write_clip
from tests.examples.people.made_up import write_video


def gradients(frames: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Smooth frames, each a little brighter, that any codec keeps."""
    across = torch.linspace(0, 150, width)[None, None, None].expand(frames, 3, height, width)
    return (across + 8 * torch.arange(frames)[:, None, None, None]).byte()


def clip_of(frames: torch.Tensor, times: tuple[int, ...]) -> Clip:
    return Clip(frames, times, Fraction(1, 600))


def test_uneven_times_survive_writing_and_reading(tmp_path: Path) -> None:
    times = (0, 24, 48, 60, 300, 310)
    clip = clip_of(gradients(6), times)
    write_clip(tmp_path / "a.mp4", clip)
    again = read_clip(tmp_path / "a.mp4", side=32)
    seconds = [time * again.time_base for time in again.times]
    assert seconds == [Fraction(time, 600) for time in times]
    assert again.frames.shape == clip.frames.shape
    assert (again.frames.float() - clip.frames.float()).abs().mean() < 4


def test_a_clip_is_brought_to_the_side_asked_for_and_cut(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", clip_of(gradients(9), tuple(range(0, 216, 24))))
    clip = read_clip(tmp_path / "a.mp4", side=16, first=2, most=5)
    assert clip.frames.shape == (5, 3, 16, 24)
    brightness = clip.frames.float().mean(dim=(1, 2, 3))
    assert brightness[0] == pytest.approx(75 + 16, abs=3)


def test_a_turned_clip_is_upright(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255
    write_video(tmp_path / "a.mp4", [pixels] * 3, turned=90)
    frames = read_clip(tmp_path / "a.mp4", side=24).frames.float()
    assert frames.shape == (3, 3, 32, 24)
    assert frames[:, :, 20:].mean() > 250  # left has become below: a quarter turn against the clock
    assert frames[:, :, :12].mean() < 5


def test_a_bad_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(ValueError, match=r"a\.mp4 is not a file$"):
        read_clip(path, side=32)
    path.write_bytes(b"no film")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_clip(path, side=32)
    write_clip(path, clip_of(gradients(9), tuple(range(9))))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_clip(path, side=32)


def test_a_clip_of_two_frames_is_too_short(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", clip_of(gradients(2), (0, 24)))
    with pytest.raises(ValueError, match="has 2 frames from frame 0; it needs 3"):
        read_clip(tmp_path / "a.mp4", side=32)
    write_clip(tmp_path / "b.mp4", clip_of(gradients(5), (0, 24, 48, 72, 96)))
    with pytest.raises(ValueError, match="has 1 frames from frame 4; it needs 3"):
        read_clip(tmp_path / "b.mp4", side=32, first=4)


@pytest.fixture
def _full_disk() -> Iterator[None]:
    """No file of this process can become larger than 20,000 bytes; it is told by an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("_full_disk")
def test_a_full_disk_leaves_the_old_file_and_no_half_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "filled.mp4"
    path.write_text("old")
    noise = torch.randint(0, 255, (20, 3, 64, 64), dtype=torch.uint8)
    with pytest.raises(OSError, match=r"File too large: .*filled\.mp4"):
        write_clip(path, clip_of(noise, tuple(range(0, 480, 24))))
    assert [file.name for file in tmp_path.iterdir()] == ["filled.mp4"]
    assert path.read_text() == "old"
