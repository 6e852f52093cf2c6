"""Videos of every kind that people have, made with PyAV. Each frame tells its number, also after lossy coding."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

SIZE = (64, 48)  # (width, height) in pixels
COLOURS = ((200, 40, 40), (40, 180, 40), (40, 40, 200), (128, 128, 128))  # of the lower half, from left to right
ROWS, COLUMNS = 2, 8  # of the bits in the upper half, the lowest one first
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"},
         "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}, "libsvtav1": {"preset": "12"}}
MATRICES = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise, as a tkhd box has them


# ---------------------------------------------------------------- pictures that tell their number

def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 RGB: above, 16 black or white fields, the bits of the number; below, COLOURS."""
    width, height = size
    bits = (number >> np.arange(ROWS * COLUMNS) & 1).reshape(ROWS, COLUMNS) * 215 + 20
    above = bits[_fields(height // 2, ROWS)][:, _fields(width, COLUMNS)]
    below = np.array(COLOURS)[_fields(width, len(COLOURS))]
    return np.concatenate([np.repeat(above[..., None], 3, axis=2),
                           np.repeat(below[None], height - height // 2, axis=0)]).astype(np.uint8)


def _fields(length: int, count: int) -> np.ndarray:
    """Which of so many equal fields each pixel of a line belongs to."""
    return np.arange(length) * count // length


def numbers(frames: Sequence[np.ndarray]) -> list[int]:
    """The numbers that pictures tell."""
    return [int((_middles(frame[:len(frame) // 2], ROWS, COLUMNS).mean(axis=2) > 128).ravel()
                @ (1 << np.arange(ROWS * COLUMNS))) for frame in frames]


def colours(frame: np.ndarray) -> np.ndarray:
    """(4, 3) colours of a picture, which should be COLOURS."""
    return _middles(frame[len(frame) // 2:], 1, len(COLOURS))[0]


def _middles(part: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows, columns, 3) mean colours of the middles of equal fields."""
    ys, xs = (((np.arange(count) + 0.5) * length / count).astype(int)
              for count, length in zip((rows, columns), part.shape, strict=False))
    near = [part[np.ix_(ys + dy, xs + dx)] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return np.mean(near, axis=0)


# ---------------------------------------------------------------- files

def write(path: Path, count: int = 30, codec: str = "libx264", *, size: tuple[int, int] = SIZE, rate: int = 25,
          pixels: str = "yuv420p", times: Sequence[float] | None = None, clock: Fraction | None = None,
          options: dict | None = None, muxing: dict | None = None, sound: str | None = None, cover: bool = False,
          draw: Callable[[int], np.ndarray] | None = None, matrix: str | None = None, title: str = "",
          **settings) -> Path:
    """A video of numbered pictures; the test is skipped where PyAV has no such encoder.

    Args:
        path: its suffix tells the container.
        count: frames, unless `times` (seconds, ascending) tells when each comes, in ticks of `clock`.
        options: of the encoder.
        muxing: options of the container.
        sound: codec of a second of silence that is added.
        cover: whether an attached JPEG is added.
        draw: a frame's picture, (H, W, 3) uint8 RGB.
        matrix: by which colours are converted, as ITU709; what the file says of it is one of the `settings`.
        settings: attributes of the encoder, as max_b_frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _need_encoder(codec)
    times = [Fraction(n, rate) for n in range(count)] if times is None else times
    clock = clock or Fraction(1, rate)
    with av.open(str(path), "w", options=muxing or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate, options={**QUIET.get(codec, {}), **(options or {})})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = *size, pixels, 1
        stream.codec_context.time_base = clock
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        silence = container.add_stream(sound, rate=44100, bit_rate=64_000) if sound else None
        attached = None
        if cover and path.suffix == ".mkv":
            container.add_attachment("cover.jpg", "image/jpeg", jpeg(picture(0)))
        elif cover:
            attached = _cover_stream(container)
        for number, time in enumerate(times):
            rgb = draw(number) if draw else picture(number, size)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pixels, dst_colorspace=matrix)
            frame.pts, frame.time_base = round(time / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if silence:
            _encode_silence(container, silence)
        if attached:
            _encode_cover(container, attached)
    return path


def jpeg(rgb: np.ndarray) -> bytes:
    """A still picture's file."""
    return cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes()


def _need_encoder(codec: str) -> None:
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this build of PyAV has no encoder {codec}")


def _cover_stream(container):
    cover = container.add_stream("mjpeg", rate=1)
    cover.width, cover.height, cover.pix_fmt = 100, 100, "yuvj420p"
    cover.disposition = Disposition.attached_pic
    return cover


def _encode_cover(container, stream) -> None:
    white = np.full((100, 100, 3), 255, np.uint8)
    container.mux(stream.encode(av.VideoFrame.from_ndarray(white, format="rgb24").reformat(format="yuvj420p")))
    container.mux(stream.encode(None))


def _encode_silence(container, stream) -> None:
    length = stream.codec_context.frame_size or 1152
    for start in range(0, 44100, length):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, length), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 44100, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_song(path: Path, sound: str = "aac") -> Path:
    """Silence and a cover."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        stream, cover = container.add_stream(sound, rate=44100), _cover_stream(container)
        _encode_cover(container, cover)
        _encode_silence(container, stream)
    return path


def write_fast(path: Path, count: int, codec: str = "libx264", *, size: tuple[int, int] = (32, 32), rate: int = 30,
               options: dict | None = None, **settings) -> Path:
    """Many grey frames, or large ones, soon: 4 x 4 fields tell the number, for `grid_numbers`."""
    _need_encoder(codec)
    width, height = size
    rows, columns = _fields(height, 4), _fields(width, 4)
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        for number in range(count):
            bits = (number >> np.arange(16) & 1).astype(np.uint8).reshape(4, 4) * 215 + 20
            planes[:height] = bits[rows][:, columns]
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def grid_numbers(frames: Sequence[np.ndarray]) -> list[int]:
    """The numbers that pictures of `write_fast` tell."""
    return [int((_middles(frame, 4, 4).mean(axis=2) > 128).ravel() @ (1 << np.arange(16))) for frame in frames]


def remux(source: Path, path: Path) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path


# ---------------------------------------------------------------- what is changed in a file afterwards

def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the boxes of an MP4 or of a box's content."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, start + length
        start += length


def content(data: bytes, *kinds: bytes) -> int:
    """Where the content of an MP4's box begins, given its kind and those of the boxes around it."""
    start, end = 0, len(data)
    for kind in kinds:
        start, end = next((first + 8, last) for its, first, last in boxes(data, start, end) if its == kind)
    return start


def rotate(path: Path, degrees: int) -> Path:
    """Says in an MP4 that it is to be shown turned clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    at = content(data, b"moov", b"trak", b"tkhd") + 40
    a, b, c, d = (value << 16 for value in MATRICES[degrees])
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path: Path, seconds: float) -> Path:
    """Hides an MP4's beginning by its edit list, as programs do that trim without encoding anew."""
    data = bytearray(path.read_bytes())
    (movie,), (media,) = (struct.unpack_from(">I", data, content(data, *kinds) + 12) for kinds in (
        (b"moov", b"mvhd"), (b"moov", b"trak", b"mdia", b"mdhd")))
    at = content(data, b"moov", b"trak", b"edts", b"elst") + 8
    length, start = struct.unpack_from(">Ii", data, at)
    struct.pack_into(">Ii", data, at, length - round(seconds * movie), start + round(seconds * media))
    path.write_bytes(data)
    return path


def promise(path: Path, count: int) -> Path:
    """Says in an AVI's header how many frames there are."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, count)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, count)
    path.write_bytes(data)
    return path


def cover_first(path: Path) -> Path:
    """Puts an MP4's user data, with its cover, before its tracks."""
    data = path.read_bytes()
    start = content(data, b"moov")
    end = next(last for kind, _, last in boxes(data) if kind == b"moov")
    parts = [(kind, data[first:last]) for kind, first, last in boxes(data, start, end)]
    parts.sort(key=lambda part: part[0] == b"trak")
    path.write_bytes(data[:start] + b"".join(part for _, part in parts) + data[end:])
    return path


def zeroed(path: Path, to: Path, which: slice) -> Path:
    """A copy in which some packets are zeros."""
    data, places, at = bytearray(path.read_bytes()), [], 0
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            at = data.index(bytes(packet), at)
            places.append(slice(at, at + packet.size))
    for place in places[:-1][which]:
        data[place] = bytes(place.stop - place.start)
    to.write_bytes(data)
    return to


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with some bytes other, zeroed, left out or cut off."""
    data, start, length = bytearray(data), int(rng.integers(len(data))), int(rng.integers(1, len(data) // 4))
    kind = rng.integers(5)
    if kind == 0:
        for at in rng.integers(len(data), size=rng.integers(1, 20)):
            data[at] = rng.integers(256)
    elif kind == 1:  # where headers and indices are
        for at in (len(data) * rng.beta(0.4, 0.4, size=rng.integers(1, 6))).astype(int):
            data[min(at, len(data) - 1)] ^= 1 << rng.integers(8)
    elif kind == 2:
        data[start:start + length] = bytes(len(data[start:start + length]))
    elif kind == 3:
        del data[start:start + length]
    else:
        del data[start:]
    return bytes(data)
