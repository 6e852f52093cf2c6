"""The decoder on every kind of file that people have: made here (see synthetic.py), and real clips where they are."""

import os
import re
import shutil
import subprocess
import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conftest import REAL_CLIPS
from sampling import FrameSampler
from synthetic import (
    COLOURS,
    SIZE,
    boxes,
    colours,
    content,
    cover_first,
    grid_numbers,
    jpeg,
    mutant,
    numbers,
    picture,
    promise,
    remux,
    rotate,
    trim,
    write,
    write_fast,
    write_song,
    zeroed,
)
from videos import decoding
from videos.decoding import (
    MOST_PIXELS,
    MOST_RATE,
    MOST_SHOWN,
    VideoError,
    constant_rate,
    constant_view,
    read_frames,
    read_timed_frames,
    read_track,
    stream_frames,
    walk,
)

SOURCE = Path(decoding.__file__).parents[1]
COUNT, RATE = 30, 25  # frames, and frames per second, of a file of each kind
GREY = np.repeat(np.array(COLOURS) @ [[0.299], [0.587], [0.114]], 3, axis=1)


def all_frames(info) -> range:
    return range(info.frames)


def read_all(path: Path) -> list[int]:
    """The numbers of all frames, as `read_frames` gives them at once, and `stream_frames` one after another."""
    told, streamed = numbers(read_frames(path, all_frames)[0]), list(stream_frames(path, all_frames))
    assert [index for index, _ in streamed] == list(range(len(told)))
    assert numbers([frame for _, frame in streamed]) == told
    return told


def walked(path: Path) -> list[int]:
    """The numbers of all frames, as `walk` gives them."""
    told = [(number, picture()) for number, picture in walk(path)]
    assert [number for number, _ in told] == list(range(len(told)))
    assert all(frame.flags["C_CONTIGUOUS"] for _, frame in told)
    return numbers([frame for _, frame in told])


def opencv_frames(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames


def refusal(path: Path) -> str:
    """Why a file is refused, whoever asks: one line that names it and what to do."""
    messages = set()
    for reader in (read_track, lambda p: read_frames(p, all_frames), lambda p: list(stream_frames(p, all_frames)),
                   lambda p: [None for _ in walk(p)]):
        with pytest.raises(VideoError) as error:
            reader(path)
        messages.add(str(error.value))
    assert len(messages) == 1, messages
    message = messages.pop()
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert message.endswith(("SKIP_BROKEN=1", "(in a table, clip_path and the data set's root folder)"))
    return message


# ---------------------------------------------------------------- containers, codecs, pixel formats

@dataclass(frozen=True)
class Kind:
    """A kind of file. `opencv`: whether OpenCV gives the same pixels, nearly the same ones, or other ones (None)."""

    suffix: str
    codec: str
    format: str  # as FFmpeg calls what the encoder makes
    pixels: str = "yuv420p"
    size: tuple[int, int] = SIZE
    options: dict = field(default_factory=dict, hash=False)
    b_frames: int = 0
    opencv: str | None = "same"

    def __str__(self) -> str:
        told = ["x".join(map(str, self.size)) * (self.size != SIZE), "-".join(map(str, self.options.values())),
                f"b{self.b_frames}" * bool(self.b_frames)]
        return "-".join(filter(None, [self.suffix, self.codec, self.pixels, *told]))


CONTAINERS = [
    Kind("avi", "mpeg4", "mpeg4"), Kind("avi", "libx264", "h264"), Kind("mp4", "libx264", "h264"),
    Kind("mp4", "mpeg4", "mpeg4"), Kind("m4v", "libx264", "h264"), Kind("mov", "libx264", "h264"),
    Kind("mkv", "libx264", "h264"), Kind("webm", "libvpx", "vp8"), Kind("webm", "libvpx-vp9", "vp9"),
    Kind("mpg", "mpeg1video", "mpeg1video"), Kind("mpeg", "mpeg2video", "mpeg2video"),
    Kind("vob", "mpeg2video", "mpeg2video"), Kind("wmv", "wmv2", "wmv2"), Kind("asf", "msmpeg4", "msmpeg4v3"),
    Kind("3gp", "h263", "h263", size=(176, 144)), Kind("3gp", "mpeg4", "mpeg4"), Kind("ts", "libx264", "h264"),
    Kind("ts", "mpeg2video", "mpeg2video"), Kind("mts", "libx264", "h264"), Kind("m2ts", "libx264", "h264"),
    Kind("flv", "flv", "flv1"), Kind("flv", "libx264", "h264"), Kind("f4v", "libx264", "h264"),
    Kind("ogv", "libtheora", "theora"), Kind("ogv", "libvpx", "vp8"), Kind("gif", "gif", "gif", "bgr8"),
]
CODECS = [
    Kind("avi", "msmpeg4v2", "msmpeg4v2"), Kind("avi", "ffv1", "ffv1"), Kind("avi", "huffyuv", "huffyuv", "yuv422p"),
    Kind("avi", "cinepak", "cinepak", "rgb24"), Kind("avi", "utvideo", "utvideo", "gbrp"),
    Kind("wmv", "wmv1", "wmv1"), Kind("mov", "jpeg2000", "jpeg2000", "rgb24"),
    Kind("mp4", "libx265", "hevc"), Kind("mov", "prores_ks", "prores", "yuv422p10le", opencv="near"),
    Kind("mp4", "libsvtav1", "av1", opencv=None), Kind("mp4", "libvpx-vp9", "vp9"),
    Kind("mov", "qtrle", "qtrle", "rgb24"),
    Kind("mp4", "libx264", "h264", options={"bf": "0"}), Kind("avi", "mpeg4", "mpeg4", b_frames=2),
    Kind("mp4", "mpeg4", "mpeg4", b_frames=2), Kind("mpg", "mpeg2video", "mpeg2video", b_frames=2),
    Kind("mp4", "libx264", "h264", options={"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    Kind("ts", "libx264", "h264", options={"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    Kind("mkv", "libx265", "hevc", options={"x265-params": "log-level=none:open-gop=1:keyint=12"}),
    Kind("mp4", "libx264", "h264", options={"x264-params": "interlaced=1:tff=1"}, opencv=None),
    Kind("ts", "mpeg2video", "mpeg2video", options={"flags": "+ildct+ilme"}, opencv=None),
]
PIXELS = [
    *(Kind("mp4", "libx264", "h264", pixels) for pixels in ("yuv422p", "yuv444p", "yuvj420p", "nv12", "gray")),
    *(Kind("mp4", "libx264", "h264", pixels, opencv="near") for pixels in ("yuv420p10le", "yuv422p10le", "gray10le")),
    Kind("mp4", "libx265", "hevc", "yuv420p10le", opencv="near"), Kind("mkv", "ffv1", "ffv1", "gray16le"),
    Kind("mkv", "ffv1", "ffv1", "yuva420p"), Kind("mkv", "ffv1", "ffv1", "bgra"), Kind("mov", "png", "png", "rgba"),
    Kind("mov", "libx264rgb", "h264", "rgb24"), Kind("webm", "libvpx-vp9", "vp9", "yuva420p"),
    Kind("mov", "prores_ks", "prores", "yuva444p10le"), *(Kind("avi", "mjpeg", "mjpeg", pixels) for pixels in (
        "yuvj420p", "yuvj422p", "yuvj444p")), Kind("avi", "rawvideo", "rawvideo", "bgr24"),
    Kind("mp4", "libx264", "h264", "yuv444p", (65, 49)), Kind("mp4", "libx264", "h264", size=(66, 50)),
    Kind("mp4", "libx264", "h264", size=(180, 320)), *(Kind(suffix, codec, name, size=(65, 49), opencv="near")
                                                       for suffix, codec, name in (
        ("avi", "mpeg4", "mpeg4"), ("mkv", "ffv1", "ffv1"), ("webm", "libvpx", "vp8"))),
]
every_kind = pytest.mark.parametrize("kind", [*CONTAINERS, *CODECS, *PIXELS], ids=str)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of a kind, made once."""
    files = {}

    def make(kind: Kind) -> Path:
        if str(kind) not in files:
            path = tmp_path_factory.mktemp("kind") / f"clip.{kind.suffix}"
            files[str(kind)] = write(path, COUNT, kind.codec, rate=RATE, size=kind.size, pixels=kind.pixels,
                                     options=kind.options, **{"max_b_frames": kind.b_frames} if kind.b_frames else {})
        return files[str(kind)]

    return make


@every_kind
def test_each_frame_comes_once_in_order_and_colour(made, kind):
    path = made(kind)
    track = read_track(path)
    assert (track.codec, track.presented, track.shown) == (kind.format, COUNT, None)
    assert track.info[:1] + track.info[2:] == (COUNT, *kind.size) and track.info.fps == pytest.approx(RATE)
    frames, seconds = read_timed_frames(path, all_frames)
    assert numbers(frames) == walked(path) == list(range(COUNT))
    assert frames.shape == (COUNT, *kind.size[::-1], 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(seconds, np.arange(COUNT) / RATE, atol=1e-3)
    np.testing.assert_allclose(colours(frames[7]), GREY if "gray" in kind.pixels else COLOURS, atol=12)


@every_kind
def test_frames_equal_opencv(made, kind):
    if kind.opencv is None:
        pytest.skip("OpenCV can't read it" if kind.codec == "libsvtav1" else "OpenCV can't convert interlaced frames")
    ours, theirs = read_frames(made(kind), all_frames)[0], np.stack(opencv_frames(made(kind)))
    if kind.opencv == "same":
        np.testing.assert_array_equal(ours, theirs)
    else:  # more than 8 bits, or odd sizes: the two interpolate colours otherwise at their edges
        assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).mean() < 2.5


def test_colours_of_high_definition_are_told_apart(tmp_path):
    """Phones' files say that they follow BT.709, by which the same bytes are other colours."""
    path = write(tmp_path / "hd.mp4", 5, matrix="ITU709", colorspace=1)
    np.testing.assert_allclose(colours(read_frames(path, all_frames)[0][0]), COLOURS, atol=10)


# ---------------------------------------------------------------- real clips

def real_clips() -> list:
    """Three of each class of each data set beside this repository; what is absent is skipped."""
    chosen = []
    for name in ("ucf101", "ucf101-three", "ut-interaction"):
        folder = REAL_CLIPS.parent / name
        clips = sorted(folder.glob("*/*.avi"))
        chosen += [pytest.param(clip, id=clip.stem) for clip in clips[::max(len(clips) // 5, 1)][:5]] or [
            pytest.param(folder, id=name, marks=pytest.mark.skip(reason=f"real clips are absent: {folder}"))]
    return chosen


@pytest.mark.parametrize("path", real_clips())
def test_real_frames_equal_opencv(path):
    theirs = opencv_frames(path)
    ours = [picture() for _, picture in walk(path)]
    assert len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))
    frames, indices = read_frames(path, FrameSampler(16, "segments"))
    assert all(np.array_equal(frame, theirs[index]) for frame, index in zip(frames, indices, strict=True))


# ---------------------------------------------------------------- times

PHONE = np.cumsum([0.0, *[1 / 30] * 40, *np.linspace(1 / 30, 1 / 24, 30), *[1 / 24] * 30])
RECORDING = np.concatenate([np.arange(8) / 30, 3 + np.arange(20) / 30, [4.5], 7 + np.arange(6) / 30])
HALF_RATE = np.concatenate([np.arange(30) / 30, 1 + np.arange(30) / 15])
TIMED = [("mp4", "libx264", 90_000), ("mov", "libx264", 600), ("mkv", "libx264", 1000), ("ts", "libx264", 90_000),
         ("webm", "libvpx", 1000), ("flv", "flv", 1000), ("wmv", "wmv2", 1000), ("avi", "mpeg4", 30),
         ("avi", "mpeg4", 120)]


def off_screen(frames: np.ndarray, seconds: np.ndarray, times: np.ndarray, rate: float) -> int:
    """By how many frames, at most, frames are others than those on the screen in the middle of their time."""
    at = times[0] + seconds + 0.5 / rate
    expected = [bisect_right(times.tolist(), moment) - 1 for moment in at]
    return max(abs(told - right) for told, right in zip(numbers(frames), expected, strict=True))


@pytest.mark.parametrize("times", [PHONE, RECORDING, HALF_RATE], ids=["phone", "recording", "half-rate"])
@pytest.mark.parametrize("suffix, codec, ticks", TIMED)
def test_irregular_frames_are_those_on_the_screen(tmp_path, suffix, codec, ticks, times):
    clock = Fraction(1, ticks)
    times = np.unique(np.round(times * ticks)) / ticks  # which a coarse clock can tell apart
    path = write(tmp_path / f"clip.{suffix}", codec=codec, rate=min(ticks, 30), times=times, clock=clock)
    info = read_track(path).info
    lasts = times[-1] + np.median(np.diff(times))
    assert info.frames / info.fps == pytest.approx(lasts, abs=0.1) and read_track(path).presented == len(times)
    for choose in (all_frames, FrameSampler(12, "time", 5.0), lambda its: FrameSampler(8, "time", 10.0)(its, 1.0),
                   FrameSampler(16, "segments"), FrameSampler(16, "window")):
        frames, seconds = read_timed_frames(path, choose)
        assert off_screen(frames, seconds, times, info.fps) <= 1
    frames, seconds = read_timed_frames(path, FrameSampler(8, "time", 5.0))
    np.testing.assert_allclose(np.diff(seconds), 0.2, atol=1.01 / info.fps)
    assert walked(path) == list(range(len(times)))


@pytest.mark.parametrize("suffix, codec, ticks, muxing", [
    ("webm", "libvpx", 1000, {"live": "1"}), ("mkv", "libx264", 1000, {}), ("mp4", "libx264", 1000, {})])
def test_jitter_and_a_header_that_says_1000_fps(tmp_path, suffix, codec, ticks, muxing):
    jitter = np.random.default_rng(0).integers(-8, 9, 60) / 1000
    times = np.concatenate([[0], (np.arange(60) / 30 + jitter)[1:]])
    path = write(tmp_path / f"clip.{suffix}", codec=codec, rate=1000, times=times, clock=Fraction(1, ticks),
                 muxing=muxing)
    if muxing:
        with av.open(str(path)) as container:
            assert container.duration is None and container.streams.video[0].guessed_rate == 1000
    info = read_track(path).info
    assert info.frames == 60 and info.fps == pytest.approx(30, abs=0.2)
    frames, seconds = read_timed_frames(path, FrameSampler(8, "time", 10.0))
    assert off_screen(frames, seconds, times, 30) <= 1
    assert set(np.diff(numbers(frames))) == {3}


@pytest.mark.parametrize("said, true", [(60, 12.5), (10, 40), (30, 29.97)])
def test_stamps_count_and_not_the_header(tmp_path, said, true):
    path = write(tmp_path / "clip.mkv", rate=said, times=np.arange(40) / true, clock=Fraction(1, 1000))
    assert read_track(path).info.fps == pytest.approx(true, rel=0.005) and read_all(path) == list(range(40))


def test_an_avi_whose_clock_is_finer_than_its_frames(tmp_path):
    path = write(tmp_path / "clip.avi", codec="mpeg4", clock=Fraction(1, 250))
    info = read_track(path).info
    assert info.frames == 30 and info.fps == pytest.approx(25) and read_all(path) == list(range(30))


@pytest.mark.parametrize("said", [0, 59, 61, 62])
def test_an_avi_that_promises_a_frame_too_many_or_too_few(tmp_path, said):
    path = promise(write(tmp_path / "clip.avi", 60, "mpeg4"), said)
    assert walked(path) == list(range(60))
    assert read_all(path) == list(range(59 if said == 59 else 60))
    assert numbers(read_frames(path, lambda info: [info.frames - 1])[0]) == [58 if said == 59 else 59]


@pytest.mark.parametrize("suffix, codec, first, hidden", [
    ("mp4", "libx264", 7.0, 0), ("mkv", "libx264", 7.0, 0), ("ts", "libx264", 7.0, 0), ("webm", "libvpx", 7.0, 0),
    ("wmv", "wmv2", 7.0, 0), ("ts", "libx264", -0.4, 0), ("asf", "wmv2", -0.4, 0), ("mp4", "libx264", -0.4, 10),
    ("mov", "mpeg4", -0.4, 10)])
def test_files_that_begin_at_another_time_than_0(tmp_path, suffix, codec, first, hidden):
    """What an MP4 has before 0 is hidden by its edit list."""
    path = write(tmp_path / f"clip.{suffix}", codec=codec, times=first + np.arange(40) / 25, clock=Fraction(1, 1000),
                 muxing={"avoid_negative_ts": "disabled"})
    if first < 0 and not hidden:
        assert read_track(path).stamps[0] < 0
    frames, seconds = read_timed_frames(path, FrameSampler(6, "time", 5.0))
    expected = FrameSampler(6, "time", 5.0)(decoding.VideoInfo(40 - hidden, 25.0, *SIZE))
    assert numbers(frames) == (expected + hidden).tolist()
    np.testing.assert_allclose(seconds, expected / 25, atol=1e-6)


def test_recordings_that_were_joined(tmp_path):
    """Time begins anew, in between the frames of the first part: those come in the file's order."""
    parts = [write(tmp_path / "part.ts", times=np.arange(20) / 25 + first, clock=Fraction(1, 1000),
                   muxing={"avoid_negative_ts": "disabled"}).read_bytes() for first in (1, 1.011)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    assert read_track(path).info[:2] == (40, 25.0) and read_all(path) == walked(path) == [*range(20), *range(20)]
    assert numbers(read_frames(path, lambda info: [5, 25])[0]) == [5, 5]


def test_a_recording_to_which_sound_is_added_later(tmp_path):
    parts = [write(tmp_path / "part.ts", count=20, sound=sound).read_bytes() for sound in (None, "aac", "mp2")]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(parts))
    assert read_all(path) == walked(path) == [*range(20)] * 3

    class Stumbling:
        """PyAV at the end of such a file, depending on what lies in memory."""

        def demux(self, *streams):
            yield from ("packet", "flush")
            raise IndexError

    assert list(decoding._demuxed(Stumbling())) == ["packet", "flush"]


def test_a_recording_that_begins_between_key_frames(tmp_path):
    """Its first frames can't be decoded; the others keep their times."""
    whole = write(tmp_path / "whole.ts", 120, options={"g": "30", "keyint_min": "30", "sc_threshold": "0"})
    content = whole.read_bytes()
    path = tmp_path / "middle.ts"
    path.write_bytes(content[len(content) // 188 // 5 * 188:])
    assert read_track(path).presented > 90
    assert read_all(path) == walked(path) == list(range(30, 120))
    for wanted in ([0], [45], [45, 2]):
        assert numbers(read_frames(path, lambda info, wanted=wanted: wanted)[0]) == [30 + i for i in wanted]


@pytest.mark.parametrize("hidden", [3, 10])
def test_packets_that_show_nothing(tmp_path, hidden):
    """VP8 has packets that are only referred to; the frames behind them keep their times."""
    source, path = write(tmp_path / "source.webm", 60, "libvpx"), tmp_path / "clip.webm"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xFF if number % hidden or not number else ~0x10
                changed = av.Packet(bytes(data))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                new.mux(changed)
    shown = [number for number in range(60) if number % hidden or not number]
    assert walked(path) == shown and set(read_all(path)) == set(shown)
    frames, seconds = read_timed_frames(path, FrameSampler(8, "time", 5.0))
    assert off_screen(frames, seconds, np.arange(60) / 25, 25) <= 1


rates = st.floats(1, 120)


@given(st.integers(2, 200), rates, st.floats(0.01, 1000), st.integers(0, 2**32 - 1), st.floats(0, 0.2))
def test_jitter_is_still_a_constant_rate(count, rate, header, seed, jitter):
    times = (np.arange(count) + jitter * np.random.default_rng(seed).uniform(-1, 1, count)) / rate
    times -= times[0]
    found = constant_rate(times, header)
    assert found is not None and type(found) is float
    strays = times - np.arange(count) / found
    assert np.ptp(strays) < 0.9 / found
    assert constant_rate(np.arange(count) / rate, rate) == rate  # the header's, to the last bit


@given(st.integers(4, 100), rates, st.data())
def test_a_hold_is_not_a_constant_rate(count, rate, data):
    at, hold = data.draw(st.integers(1, count - 2)), data.draw(st.floats(2.5, 1000))
    assume(min(at, count - at) * hold > 3)
    times = np.arange(count) / rate
    times[at:] += hold / rate
    assert constant_rate(times, rate) is None


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=80))
def test_what_is_seen_of_irregular_frames(gaps):
    times = np.cumsum([0.0, *gaps])
    rate, shown = constant_view(times)
    step = np.median(gaps)
    assert type(rate) is float and rate == pytest.approx(min(1 / step, MOST_RATE))
    assert len(shown) / rate == pytest.approx(times[-1] + step, abs=0.51 / rate) or len(shown) == 1
    assert shown.min() >= 0 and shown.max() < len(times) and (np.diff(shown) >= 0).all()
    middles = (np.arange(len(shown)) + 0.5) / rate
    assert (times[shown] <= middles).all()
    assert all(middle < times[number + 1] for middle, number in zip(middles, shown, strict=True)
               if number + 1 < len(times))
    held = np.flatnonzero(np.array(gaps) > 1.001 / rate)
    assert set(held) <= set(shown)  # what stays for longer than a step is seen


def test_rates_at_the_edge():
    assert constant_rate(np.zeros(1), 25.0) == 25.0 and constant_rate(np.zeros(1), 0.0) == 0.0
    assert constant_rate(np.array([0, 0.5]), 0.0) == 2.0
    with pytest.raises(OverflowError):
        constant_view(np.array([0, 0.01, 0.02, MOST_SHOWN / 100]))
    with pytest.raises(OverflowError):  # a damaged stamp: two hours of one picture
        constant_view(np.array([0, 0.04, 0.08, 7200.0]))
    assert len(constant_view(np.array([0, 0.04, 0.08, 600.0]))[1]) == 15_001
    assert constant_view(np.array([0, 7200.0, 14500.0]))[1].tolist() == [0, 1, 2]  # one picture every two hours


def test_stamps_that_leap_by_weeks_are_not_believed(tmp_path):
    path = write(tmp_path / "clip.flv", codec="flv", times=[*np.arange(20) / 25, *(2e6 + np.arange(20) / 25)],
                 clock=Fraction(1, 1000))
    assert read_track(path).info[:2] == (40, 25.0) and read_all(path) == list(range(40))


# ---------------------------------------------------------------- edit lists, rotation, covers, sound

@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("b_frames", ["0", "3"])
@pytest.mark.parametrize("gop, hidden", [("60", 10), ("8", 3), ("8", 13)], ids=["within", "within-short", "whole-gops"])
def test_what_an_edit_list_hides_never_appears(tmp_path, suffix, b_frames, gop, hidden):
    path = trim(write(tmp_path / f"clip.{suffix}", 40, options={"bf": b_frames, "g": gop}), hidden / 25)
    expected = list(range(hidden, 40))
    assert read_track(path).info.frames == read_track(path).presented == len(expected)
    assert read_all(path) == walked(path) == expected
    frames, seconds = read_timed_frames(path, FrameSampler(4, "time", 5.0))
    assert off_screen(frames, seconds + hidden / 25, np.arange(40) / 25, 25) == 0


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("size", [SIZE, (1280, 720)], ids=["small", "reduced"])
def test_a_phones_picture_is_upright(tmp_path, degrees, size):
    def lying(number):
        return np.ascontiguousarray(np.rot90(picture(number, size), degrees // 90))

    coded = size if degrees == 180 else size[::-1]
    path = rotate(write(tmp_path / "clip.mp4", 5, draw=lying, size=coded), degrees)
    frames, _ = read_frames(path, all_frames)
    assert numbers(frames) == walked(path) == list(range(5))
    np.testing.assert_allclose(colours(frames[3]), COLOURS, atol=10)
    assert frames.shape[2] / frames.shape[1] == pytest.approx(size[0] / size[1], rel=0.01)
    assert size != SIZE or np.array_equal(frames, opencv_frames(path))


@pytest.mark.parametrize("name", ["after.mp4", "before.mp4", "after.mkv"])
def test_a_cover_is_not_the_video(tmp_path, name):
    path = write(tmp_path / name, 12, cover=True, sound="aac")
    if name == "before.mp4":
        cover_first(path)
    with av.open(str(path)) as container:
        covers = [bool(stream.disposition & decoding.PICTURES) for stream in container.streams.video]
    assert covers == ([True, False] if name == "before.mp4" else [False, True])
    assert read_all(path) == walked(path) == list(range(12))


@pytest.mark.parametrize("suffix, codec, sound", [
    ("avi", "mpeg4", "mp2"), ("mp4", "libx264", "aac"), ("mkv", "libx264", "aac"), ("ts", "libx264", "aac"),
    ("flv", "flv", "aac"), ("wmv", "wmv2", "wmav2"), ("mpg", "mpeg2video", "mp2")])
def test_sound_does_no_harm(tmp_path, suffix, codec, sound):
    path = write(tmp_path / f"clip.{suffix}", 12, codec, sound=sound)
    assert read_track(path).info.frames == 12 and read_all(path) == walked(path) == list(range(12))


@pytest.mark.parametrize("suffix", ["mp4", "m4a"])
def test_a_song_with_a_cover_is_refused(tmp_path, suffix):
    assert "holds no moving picture (audio only)" in refusal(write_song(tmp_path / f"song.{suffix}"))


def test_the_default_one_of_two_videos_is_taken(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=25) for _ in range(2)]
        for stream, default in zip(streams, (0, av.stream.Disposition.default), strict=True):
            stream.width, stream.height, stream.pix_fmt, stream.disposition = *SIZE, "yuv420p", default
        for first, stream in zip((100, 0), streams, strict=True):
            for number in range(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(first + number), format="rgb24")))
            container.mux(stream.encode(None))
    assert read_all(path) == walked(path) == list(range(12))


# ---------------------------------------------------------------- broken files

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sound files of 60 frames, by suffix."""
    folder = tmp_path_factory.mktemp("whole")
    gop = {"g": "12", "keyint_min": "12"}
    return {"avi": write(folder / "whole.avi", 60, "mpeg4", size=(160, 120), options={"g": "1"}),
            "mp4": write(folder / "whole.mp4", 60, options=gop), "mkv": write(folder / "whole.mkv", 60, options=gop),
            "webm": write(folder / "whole.webm", 60, "libvpx", options={"g": "12"}),
            "ts": write(folder / "whole.ts", 60, "mpeg2video", max_b_frames=2),
            "flv": write(folder / "whole.flv", 60, "flv"), "mpg": write(folder / "whole.mpg", 60, "mpeg2video")}


def cut(path: Path, to: Path, share: float) -> Path:
    data = path.read_bytes()
    to.write_bytes(data[:int(len(data) * share)])
    return to


@pytest.mark.parametrize("suffix, share, words", [
    ("avi", 0.5, "breaks off after frame"), ("avi", 0.93, "breaks off after frame"),
    ("avi", 0.1, "can't be opened"), ("mp4", 0.5, "can't be opened"), ("mp4", 0.93, "can't be opened"),
    ("mkv", 0.5, "breaks off after"), ("webm", 0.5, "breaks off after")])
def test_files_that_were_cut_are_refused(tmp_path, whole, suffix, share, words):
    assert words in refusal(cut(whole[suffix], tmp_path / f"cut.{suffix}", share))


@pytest.mark.parametrize("suffix, share", [("avi", 0.995), ("ts", 0.5), ("ts", 0.93), ("mpg", 0.5), ("flv", 0.5),
                                           ("flv", 0.93), ("mkv", 0.93), ("webm", 0.93)])
def test_cut_files_whose_header_promises_nothing_are_used(tmp_path, whole, suffix, share):
    """As what lacks the last moments only; a broken last frame may show anything."""
    path = cut(whole[suffix], tmp_path / f"cut.{suffix}", share)
    told = walked(path)
    assert told[:-1] == list(range(len(told) - 1)) and len(told) > 60 * share - 20
    frames, indices = read_frames(path, lambda info: range(0, len(told) - 1, 5))
    assert numbers(frames) == indices.tolist()


def test_an_mp4_whose_frames_were_cut_off_is_refused(tmp_path):
    """Its index comes first, as in files for the web."""
    path = write(tmp_path / "whole.mp4", 60, muxing={"movflags": "+faststart"})
    assert "breaks off after frame" in refusal(cut(path, tmp_path / "cut.mp4", 0.9))


def test_an_mp4_with_many_zeros_is_refused(tmp_path, whole):
    path = zeroed(whole["mp4"], tmp_path / "zeros.mp4", slice(20, 40))
    for reader in (walk, lambda its: read_frames(its, all_frames)):
        with pytest.raises(VideoError, match=r"zeros\.mp4: its data are damaged .* packets can't be decoded.*; fetch"):
            list(reader(path))


def test_a_lost_frame_does_not_shift_the_others(tmp_path):
    whole = write(tmp_path / "whole.mp4", 60, options={"g": "1"})
    path = zeroed(whole, tmp_path / "clip.mp4", slice(20, 22))
    assert walked(path) == [*range(20), *range(22, 60)]
    for choose in (lambda info: [40], lambda info: [5, 59], FrameSampler(16, "segments"), FrameSampler(16, "window")):
        frames, indices = read_frames(path, choose)
        assert np.abs(np.array(numbers(frames)) - indices).max() <= 1


def test_a_lost_frame_of_an_irregular_avi(tmp_path):
    times = np.unique(np.round(RECORDING * 30)) / 30
    whole = write(tmp_path / "whole.avi", codec="mpeg4", rate=30, times=times)
    path = zeroed(whole, tmp_path / "clip.avi", slice(len(times) - 1, None))
    frames, seconds = read_timed_frames(path, all_frames)
    assert len(frames) == read_track(whole).info.frames and off_screen(frames, seconds, times, 30) <= 1


def test_an_mp4_in_fragments(tmp_path):
    """As browsers and cameras record them: without an index for the whole."""
    path = write(tmp_path / "clip.mp4", 60, options={"g": "12"}, muxing={"movflags": "frag_keyframe+empty_moov"})
    assert read_track(path).info.frames == 60 and read_all(path) == walked(path) == list(range(60))
    told = walked(cut(path, tmp_path / "cut.mp4", 0.7))
    assert told == list(range(len(told))) and 20 < len(told) < 60


@pytest.mark.parametrize("name, data, words", [
    ("empty.mp4", b"", "can't be opened as a video (0 bytes)"),
    ("page.mp4", b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20, "can't be opened as a video"),
    ("notes.avi", b"nothing but text\n" * 50, "can't be opened as a video"),
    ("zeros.mkv", bytes(4096), "can't be opened as a video")])
def test_what_is_no_video_is_refused(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    assert words in refusal(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    for name, words in (("folder.mp4", "is a folder"), ("link.mp4", "is a link to nothing"),
                        ("missing.mp4", "no such file"), ("m" * 300 + ".mp4", "no such file")):
        assert f"{name}: {words}" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix, mark, other", [("mp4", b"avc1", b"zzzz"), ("avi", b"FMP4", b"ZZZZ")])
def test_an_unknown_codec_is_refused(tmp_path, whole, suffix, mark, other):
    (tmp_path / f"clip.{suffix}").write_bytes(whole[suffix].read_bytes().replace(mark, other))
    assert "its codec isn't known here; convert it" in refusal(tmp_path / f"clip.{suffix}")


def test_a_jpeg_called_avi_is_one_frame(tmp_path):
    path = tmp_path / "still.avi"
    path.write_bytes(jpeg(picture(9)))
    assert read_track(path).info.frames == 1 and read_all(path) == walked(path) == [9]
    assert numbers(read_frames(path, FrameSampler(4, "segments"))[0]) == [9] * 4


@pytest.mark.parametrize("suffix, codec", [("mp4", "libx264"), ("webm", "libvpx"), ("ts", "libx264"), ("avi", "mpeg4")])
def test_a_single_frame(tmp_path, suffix, codec):
    path = write(tmp_path / f"clip.{suffix}", 1, codec)
    assert read_track(path).info.frames == 1 and read_all(path) == [0]
    assert numbers(read_frames(path, FrameSampler(8, "time", 10.0))[0]) == [0] * 8


SAMPLERS = (FrameSampler(8, "window"), FrameSampler(12, "segments"), FrameSampler(8, "time", 10.0))


def outcome(read, *arguments):
    """What is read, or the message of a VideoError."""
    try:
        return read(*arguments)
    except VideoError as error:
        return str(error)


def read_as_bytes(path: Path, sampler: FrameSampler) -> tuple[bytes, list[int]]:
    frames, indices = read_frames(path, sampler)
    return frames.tobytes(), indices.tolist()


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv", "ts"])
def test_mutants_are_used_or_refused(tmp_path, whole, suffix):
    """What can be read to its end can be sampled; nothing but VideoError is raised, and all of it again the same."""
    data, path = whole[suffix].read_bytes(), tmp_path / f"mutant.{suffix}"
    refused = 0
    for seed in range(40):
        path.write_bytes(mutant(data, np.random.default_rng(seed)))
        whole_reading = outcome(lambda: sum(1 for _ in walk(path)))
        readings = [outcome(read_as_bytes, path, sampler) for sampler in SAMPLERS]
        assert readings == [outcome(read_as_bytes, path, sampler) for sampler in SAMPLERS], seed
        streamed = outcome(lambda: len(list(stream_frames(path, all_frames))))
        assert isinstance(streamed, str) == isinstance(whole_reading, str), seed
        if isinstance(whole_reading, int):
            assert not [reading for reading in readings if isinstance(reading, str)], seed
        refused += isinstance(whole_reading, str)
    assert refused < 40


# ---------------------------------------------------------------- large and long ones

@pytest.fixture(scope="module")
def four_k(tmp_path_factory) -> Path:
    """Two seconds of 3840 x 2160: a group of frames, four times."""
    folder = tmp_path_factory.mktemp("large")
    group = write_fast(folder / "group.mp4", 12, size=(3840, 2160), rate=24,
                       options={"preset": "ultrafast", "g": "12", "bf": "0"})
    with av.open(str(group)) as old, av.open(str(folder / "large.mp4"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [(bytes(packet), packet.pts, packet.is_keyframe) for packet in old.demux(video=0) if packet.size]
        length, time_base = packets[1][1] * 12, old.streams.video[0].time_base
        for start in range(0, 4 * length, length):
            for data, stamp, key in packets:
                packet = av.Packet(data)
                packet.pts = packet.dts = start + stamp
                packet.time_base, packet.is_keyframe, packet.stream = time_base, key, stream
                new.mux(packet)
    return folder / "large.mp4"


MEMORY = """
import sys, threading, time
import numpy as np, psutil
from videos.decoding import read_frames
process, done = psutil.Process(), threading.Event()
idle = peak = process.memory_info().rss
def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, process.memory_info().rss)
watcher = threading.Thread(target=watch)
watcher.start()
frames, _ = read_frames(sys.argv[1], lambda info: np.linspace(0, info.frames - 1, 120).astype(int))
done.set()
watcher.join()
print((peak - idle) / 2**20, *frames.shape)
"""


def test_4k_takes_little_memory(four_k):
    pytest.importorskip("psutil")
    run = subprocess.run([sys.executable, "-c", MEMORY, str(four_k)], capture_output=True, text=True, check=True,
                         env={**os.environ, "PYTHONPATH": str(SOURCE)})
    megabytes, *shape = run.stdout.split()
    count, height, width, _ = map(int, shape)
    assert float(megabytes) <= 400, megabytes
    assert count == 120 and width * height <= MOST_PIXELS and width / height == pytest.approx(16 / 9, rel=0.005)


def test_large_frames_are_the_right_ones(four_k):
    frames, indices = read_frames(four_k, lambda info: [47, 3, 13])
    assert grid_numbers(frames) == (indices % 12).tolist() == [11, 3, 1]


LONG = 30_000  # frames


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory) -> dict[str, Path]:
    """The same B-frames and open groups of frames in three containers; and closed ones."""
    folder = tmp_path_factory.mktemp("long")
    source = write_fast(folder / "open.mp4", LONG, options={
        "preset": "ultrafast", "g": "250", "bf": "2", "x264-params": "open-gop=1:scenecut=0"})
    return {"open.mp4": source, **{name: remux(source, folder / name) for name in ("open.mkv", "open.ts")},
            "closed.mp4": write_fast(folder / "closed.mp4", LONG // 3, "mpeg4", options={"g": "250"})}


def count_decoded(monkeypatch) -> list[int]:
    """The number of every frame that comes out of the decoder from now on."""
    decoded, decode = [], decoding._decoded

    def counted(*arguments):
        for frame in decode(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decoding, "_decoded", counted)
    return decoded


def spread(info) -> np.ndarray:
    return np.linspace(0, info.frames - 1, 20).astype(int)


@pytest.mark.parametrize("name", ["open.mp4", "open.mkv", "open.ts", "closed.mp4"])
def test_few_frames_of_a_long_video_are_sought(monkeypatch, long_videos, name):
    decoded = count_decoded(monkeypatch)
    sought, indices = read_frames(long_videos[name], spread)
    count = read_track(long_videos[name]).info.frames
    assert count == (LONG // 3 if name == "closed.mp4" else LONG) and grid_numbers(sought) == indices.tolist()
    assert 20 <= len(decoded) < 20 * 270 < count
    monkeypatch.setattr(decoding, "SEEK_OVER", count)
    decoded.clear()
    in_turn, _ = read_frames(long_videos[name], spread)
    assert len(decoded) == count and np.array_equal(sought, in_turn)


def test_a_container_that_lies_about_key_frames_is_read_in_turn(tmp_path, monkeypatch, long_videos):
    """Without its table of key frames, an MP4 says that every frame is one."""
    data = bytearray(long_videos["closed.mp4"].read_bytes())
    at = content(data, b"moov", b"trak", b"mdia", b"minf", b"stbl")
    table = next(start for kind, start, _ in boxes(data, at) if kind == b"stss")
    data[table + 4:table + 8] = b"free"
    (tmp_path / "clip.mp4").write_bytes(data)
    assert len(read_track(tmp_path / "clip.mp4").keys) == LONG // 3
    decoded = count_decoded(monkeypatch)
    frames, indices = read_frames(tmp_path / "clip.mp4", spread)
    assert grid_numbers(frames) == indices.tolist() and len(decoded) > indices[-1]


def test_seeking_that_fails_is_read_in_turn(monkeypatch, long_videos):
    def fail(*arguments):
        raise decoding._Unseekable

    monkeypatch.setattr(decoding, "_decoded_from", fail)
    frames, indices = read_frames(long_videos["closed.mp4"], spread)
    assert grid_numbers(frames) == indices.tolist()


# ---------------------------------------------------------------- which frames, and of which files

@pytest.mark.parametrize("suffix, codec", [("avi", "mpeg4"), ("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264")])
@pytest.mark.parametrize("wanted", [[0], [29], [5, 5, 5], [29, 0, 15, 15, 3], list(range(29, -1, -1)), [7, 8, 7, 9]])
def test_any_order_and_repeats(made, suffix, codec, wanted):
    path = made(Kind(suffix, codec, ""))
    frames, indices = read_frames(path, lambda info: iter(wanted))
    assert numbers(frames) == indices.tolist() == wanted and indices.dtype == np.int64


def test_a_stream_whose_frames_change_their_size(tmp_path):
    """All have the size of the first one that is wanted."""
    parts = [write(tmp_path / f"{width}.ts", 20, size=(width, 48)).read_bytes() for width in (64, 128)]
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(parts))
    frames, _ = read_frames(path, all_frames)
    assert frames.shape == (40, 48, 64, 3) and numbers(frames) == walked(path) == [*range(20), *range(20)]
    frames, _ = read_frames(path, lambda info: [35, 30])
    assert frames.shape == (2, 48, 128, 3) and numbers(frames) == [15, 10]


NAMES = [f"{name}.mp4" for name in (
    "a:b", "http:clip", "file:clip", "pipe:0", "concat:a|b", "%03d", "back\\slash", "'single' \"double\"", "-dash",
    " blank ", "#;&$?*", "\U0001f600 \u732b", "\u00e9" * 105, "l" * 210, os.fsdecode(b"latin-\xe9"))]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_names(tmp_path, monkeypatch, made, name, relative):
    try:
        shutil.copy(made(Kind("mp4", "libx264", "h264")), tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    monkeypatch.chdir(tmp_path)
    path = Path(name) if relative else tmp_path / name
    assert read_all(path) == walked(path) == list(range(COUNT))
    assert read_all(str(path)) == list(range(COUNT))


def test_a_refusal_names_the_file_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a:b.mp4").write_bytes(b"")
    assert refusal(Path("a:b.mp4")).startswith("a:b.mp4: can't be opened")


def test_a_title_in_any_encoding(tmp_path):
    path = write(tmp_path / "clip.avi", codec="mpeg4", title="Caf\u00e9 ")
    data = path.read_bytes()
    assert "Caf\u00e9 ".encode() in data
    path.write_bytes(data.replace("Caf\u00e9 ".encode(), "Caf\u00e9  ".encode("latin-1")))
    assert read_all(path) == list(range(COUNT))


def test_the_table_of_what_works_names_tests_that_exist():
    table = (SOURCE.parent / "dataset_info" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", table.partition("## What works")[2]))
    written = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert len(named) > 30 and not named - set(re.findall(r"^def (test_\w+)", written, re.MULTILINE))
