"""RGB frames to a video file that browsers play."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from files import atomic_path
from videos.decoding import DEFAULT_RATE, VideoInfo, read_track, stream_frames

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}


def check_target(target: Path) -> None:
    """A ValueError where a video can't be written under this name."""
    if target.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{target}: what is written is H.264; name it {', '.join(CONTAINERS)}")


def write_video(target: str | Path, frames: Iterable[np.ndarray], rate: float) -> None:
    """Writes (H, W, 3) uint8 frames at `rate` per second as H.264, whole or not at all; an odd last line or column is
    cut off, as the format wants it.

    Raises:
        ValueError: the name's suffix is none of CONTAINERS, or there is no frame.
    """
    target, stream = Path(target), None
    check_target(target)
    with (atomic_path(target) as temporary,
          av.open(str(temporary), "w", format=CONTAINERS[target.suffix.lower()]) as container):
        for picture in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(rate).limit_denominator(1001))
                stream.height, stream.width = (side - side % 2 for side in picture.shape[:2])
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "23", "preset": "veryfast"}
            even = np.ascontiguousarray(picture[:stream.height, :stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is None:
            raise ValueError(f"{target}: no frame to write")
        container.mux(stream.encode())


def join_videos(paths: Sequence[str | Path], target: str | Path, rate: float = 25.0) -> np.ndarray:
    """Writes videos one after another, in the size of the first, at `rate` frames per second; errors as `write_video`
    and `decoding.stream_frames`.

    Returns:
        (N,) seconds at which each of them ends.
    """
    counts: list[int] = []

    def choose(info: VideoInfo) -> np.ndarray:
        fps = info.fps or DEFAULT_RATE
        return np.minimum(np.arange(max(round(info.frames / fps * rate), 1)) * fps / rate, info.frames - 1).astype(int)

    def frames() -> Iterator[np.ndarray]:
        size = None
        for path in paths:
            indices = choose(read_track(path).info)
            counts.append(len(indices))
            for index, picture in stream_frames(path, choose):
                size = size or picture.shape[1::-1]
                fitted = picture if picture.shape[1::-1] == size else cv2.resize(picture, size)
                yield from [fitted] * int((indices == index).sum())

    write_video(target, frames(), rate)
    return np.cumsum(counts) / rate
