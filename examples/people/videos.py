"""Frames of videos, read one at a time through PyAV."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from examples.common.untrusted import PIXELS, sentence
from examples.people.pictures import Unreadable

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


def decoded(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Decode all frames in the order in which they are shown.

    Raises:
        Unreadable: The file is missing, no video, or breaks off.
    """
    try:
        with av.open(str(path)) as container:
            yield from map(upright, container.decode(video=0))
    except (av.error.FFmpegError, IndexError) as error:
        raise Unreadable(path, f"cannot be read as a video: {sentence(error)}") from error


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """The frame of a video at a time stamp, in the stream's own units."""

    path: Path
    pts: int

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        try:
            with av.open(str(self.path)) as container:
                return self._seek(container)
        except (av.error.FFmpegError, ValueError) as error:
            raise Unreadable(self.path, f"cannot be read as a video: {sentence(error)}") from error

    def _seek(self, container: av.container.InputContainer) -> np.ndarray:
        stream = container.streams.video[0]
        container.seek(self.pts, stream=stream)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= self.pts:
                return upright(frame)
        raise ValueError(f"it ends before the time stamp {self.pts}")


def upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """Rotate the picture as the camera says."""
    return np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).copy()


def video_frames(path: Path) -> list[VideoFrame]:
    """List the frames of a video in the order in which they are shown.

    Nothing is decoded: one may yet turn out to be broken.

    Raises:
        Unreadable: The file is missing or is no video.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.width * stream.height > PIXELS:
                raise Unreadable(
                    path,
                    f"has frames of {stream.width}x{stream.height}; at most {PIXELS} pixels "
                    "are read",
                )
            packets = container.demux(stream)
            stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    except (av.error.FFmpegError, IndexError) as error:
        raise Unreadable(path, f"cannot be read as a video: {sentence(error)}") from error
    return [VideoFrame(path, stamp) for stamp in stamps]
