"""A video file to RGB frames, by the times that its container gives (FFmpeg's libraries, through PyAV).

What counts is what the container presents: the moving picture and not a cover, without the lead-in that an edit list
hides, turned as a phone's rotation says. Nothing here trusts a header's frame rate where there are time stamps.
"""

from __future__ import annotations

import os.path
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

MOST_PIXELS = 640 * 480  # of a frame: larger ones are reduced as they are decoded
MOST_RATE = 120.0  # frames per second at which irregular ones are shown
LONGEST_STILL = 3600  # seconds that a frame may be shown: a leap of the stamps by more is damage
MOST_SHOWN = 4_000_000  # frames in such a view: stamps that ask for more (a day and a half) are damaged
SHORT_OF = (2, 0.02)  # frames, and share of them, that a file may lack of what its header promises
LATE_END = (0.5, 0.05)  # seconds, and share of them, by which a Matroska file may end before its header says
FAILING = (2, 0.05)  # packets, and share of them, that may fail to be decoded
SEEK_OVER = 300  # frames that are decoded rather than skipped: to seek costs about as much
DEFAULT_RATE = 25.0  # frames per second, for files that don't say
CURE = "fetch or copy the file again, move it away, or leave it out with SKIP_BROKEN=1"
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails


class VideoError(RuntimeError):
    """A video that can't be used; the message names the file, what was read and what to do."""


class VideoInfo(NamedTuple):
    """A clip as it is shown: `frames` in all, `fps` in frames per second (0 where unknown), size in pixels as coded.

    Where a file's frames come irregularly, these are frames shown at a constant rate: what is on the screen then.
    """

    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Track:
    """A file's moving picture, as its container describes it, before anything is decoded.

    Attributes:
        info: the clip as it is shown.
        codec: FFmpeg's name of the format.
        shown: (info.frames,) number, in the file, of the frame that is shown; None where each is shown once.
        presented: frames in the file, as far as packets tell.
        packets: of the stream, hidden ones included.
        stamps: presentation time stamps of the presented frames, ascending; None where the container has no good ones.
        keys: those of the key frames, ascending, each with the stamp by which one seeks to it.
    """

    info: VideoInfo
    codec: str
    shown: np.ndarray | None
    presented: int
    packets: int
    stamps: list[int] | None
    keys: list[tuple[int, int]]

    def in_file(self, indices: np.ndarray) -> np.ndarray:
        """Numbers, in the file, of the frames that are shown at some indices."""
        return indices if self.shown is None else self.shown[indices]


# ---------------------------------------------------------------- what the container says

@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A file and its moving picture, with one decoder thread (more only cost time on clips this small)."""
    path = Path(path)
    if not os.path.isfile(path):  # not path.is_file(): that raises an error for a name that is too long
        reason = ("is a folder" if os.path.isdir(path) else "is a link to nothing" if os.path.islink(path)
                  else "no such file")
        raise VideoError(f"{path}: {reason}; check the path (in a table, clip_path and the data set's root folder)")
    try:  # a colon in a relative name would look like a protocol's; titles may be in any encoding
        container = av.open(str(path.absolute()), metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"{path}: can't be opened as a video ({path.stat().st_size} bytes); {CURE}") from error
    with container:
        moving = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
        if not moving:
            held = ", ".join(sorted({stream.type for stream in container.streams} - {"video"}))
            raise VideoError(f"{path}: holds no moving picture ({held or 'a picture'} only); move it away, or leave it "
                             "out with SKIP_BROKEN=1")
        moving = [stream for stream in moving if stream.codec_context]
        if not moving:
            raise VideoError(f"{path}: its codec isn't known here; convert it, for example to H.264 in an .mp4, or "
                             "leave it out with SKIP_BROKEN=1")
        stream = max(moving, key=lambda its: bool(its.disposition & Disposition.default))
        stream.thread_count = 1
        yield container, stream


class _Packets(NamedTuple):
    """What the packets of a stream tell without being decoded.

    `stamps` and `keys` as in `Track`, but in the file's order and with None where there is none; `slots` are the
    decoding time stamps of all `count` packets. `end` is where the file's last packet of any stream ends, in seconds
    (Matroska only). `cut`: the last packet is broken.
    """

    count: int
    stamps: list
    keys: list
    slots: list
    end: float
    cut: bool


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream) -> _Packets:
    stamps, keys, slots, ends, cut = [], [], [], {}, False
    matroska, by_slot = _is(container, "matroska"), _is(container, "mpegts")
    try:
        for packet in _demuxed(container, *([] if matroska else [stream])):
            if not packet.size:
                continue
            if matroska and packet.pts is not None:
                ends[packet.stream_index] = max(ends.get(packet.stream_index, 0), packet.pts + (packet.duration or 0))
            if packet.stream_index != stream.index:
                continue
            slots.append(packet.dts)
            cut = packet.is_corrupt
            if not packet.is_discard:
                stamps.append(packet.pts)
                if packet.is_keyframe:
                    keys.append((packet.pts, packet.dts if by_slot and packet.dts is not None else packet.pts))
    except av.FFmpegError:
        cut = True
    end = max((float(stamp * container.streams[index].time_base) for index, stamp in ends.items()), default=0.0)
    return _Packets(len(slots), stamps, keys, slots, end, cut)


def _demuxed(container: av.container.InputContainer, *streams: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of some streams, or of all, and one without data for each, which flushes the decoder."""
    with suppress(IndexError):  # at the end, where a stream began within the file: PyAV's issue 692
        yield from container.demux(*streams)


def _is(container: av.container.InputContainer, name: str) -> bool:
    return name in container.format.name.split(",")


def read_track(path: str | Path) -> Track:
    """Reads a file's headers and packets, without decoding.

    Raises:
        VideoError: the file is missing, no video, without a frame, or ends before what its header promises.
    """
    with _opened(path) as (container, stream):
        packets = _read_packets(container, stream)
        count, stamps, keys, slots, *_ = packets
        in_places = _is(container, "avi") and count and None not in slots
        # an AVI leaves places empty where a frame is shown for longer
        places = slots[-1] + (int(np.median(np.diff(slots))) if count > 1 else 1) if in_places else count
        _check_whole(path, container, stream, packets, places)
        if not stamps:
            raise VideoError(f"{path}: holds no frame; {CURE}")
        if _is(container, "avi"):  # has no other time stamps than places
            if not in_places or places - count <= SHORT_OF[0]:
                return _track(stream, stream.frames or count, count, [None], [])
            return replace(_track(stream, count, count, slots, []), stamps=None)
        known = [slot for slot in slots if slot is not None]
        if any(later < earlier for earlier, later in pairwise(known)):  # where recordings are joined time begins anew
            stamps = [None]
        return _track(stream, len(packets.stamps), count, stamps, keys)


def _check_whole(path, container, stream, packets: _Packets, places: int) -> None:
    """Raises a VideoError where the file ends before what its header promises."""
    promised = stream.frames
    if _is(container, "mp4"):  # whose header counts frames that the edit list takes out of the index
        promised = min(promised, len(stream.index_entries))
    few, share = SHORT_OF
    if places + max(few, share * promised) < promised or (packets.cut and places < promised):
        raise VideoError(f"{path}: breaks off after frame {places} of the {promised} that its header promises; {CURE}")
    if _is(container, "matroska") and container.duration:
        (seconds, share), promised = LATE_END, container.duration / av.time_base
        if packets.end < promised * (1 - share) - seconds:
            raise VideoError(f"{path}: breaks off after {packets.end:.1f} of the {promised:.1f} seconds that its "
                             f"header promises; {CURE}")


def _track(stream: av.VideoStream, presented: int, packets: int, stamps: list, keys: list) -> Track:
    """The track of so many presented frames; `stamps` in any order, with None where one is missing."""
    header = float(stream.guessed_rate or 0)
    coded = stream.codec_context
    describe = partial(VideoInfo, width=coded.width, height=coded.height)
    codec = coded.codec.canonical_name
    untimed = Track(describe(presented, header), codec, None, presented, packets, None, [])
    if None in stamps or len(set(stamps)) < len(stamps):
        return untimed
    stamps = sorted(stamps)
    times = np.array([float((stamp - stamps[0]) * stream.time_base) for stamp in stamps])
    rate, shown = constant_rate(times, header), None
    if rate is None:
        try:
            rate, shown = constant_view(times)
        except OverflowError:
            return untimed
    return Track(describe(presented if shown is None else len(shown), rate), codec, shown, presented, packets, stamps,
                 sorted(keys))


def constant_rate(times: np.ndarray, header: float) -> float | None:
    """Frames per second of (N,) ascending times in seconds, where these never stray by half a frame from a constant
    rate: the header's, or else their own; None where they come irregularly, 0 where a single one has no rate."""
    if len(times) < 2:
        return max(header, 0.0)
    steps = np.arange(len(times))
    for rate in (header, (len(times) - 1) / float(times[-1]) if times[-1] > 0 else 0.0):
        if rate > 0 and np.ptp(times - steps / rate) < 0.9 / rate:
            return rate
    return None


def constant_view(times: np.ndarray) -> tuple[float, np.ndarray]:
    """Irregular frames as they are seen: a constant rate in frames per second, and the number of the frame that is on
    the screen at each of its steps. `times` are (N,) ascending seconds from 0, two at least.

    Raises:
        OverflowError: they would be shown MOST_SHOWN times or more often, or one of them for longer than LONGEST_STILL
            and ten times as long as usual.
    """
    step, longest = float(np.median(np.diff(times))), float(np.diff(times).max())
    if longest > max(LONGEST_STILL, 10 * step):
        raise OverflowError(f"{longest:.0f} seconds")
    rate = min(1 / step, MOST_RATE)
    steps = (times[-1] + step) * rate
    if not steps < MOST_SHOWN:
        raise OverflowError(f"{steps:.0f} steps")
    middles = (np.arange(max(round(steps), 1)) + 0.5) / rate
    return rate, np.searchsorted(times, middles, side="right") - 1


# ---------------------------------------------------------------- decoding

class Pictures:
    """Decoded frames to (H, W, 3) uint8 RGB, upright, all of the first one's size, of MOST_PIXELS at most."""

    def __init__(self):
        self.reformatter, self.size = VideoReformatter(), None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        self.size = self.size or reduced_size(frame.width, frame.height)
        how = None if self.size == (frame.width, frame.height) else "AREA"
        picture = self.reformatter.reformat(frame, *self.size, "rgb24", interpolation=how, threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture)


def reduced_size(width: int, height: int) -> tuple[int, int]:
    """Width and height with the same proportions and MOST_PIXELS at most."""
    shrink = min((MOST_PIXELS / (width * height)) ** 0.5, 1.0)
    return (width, height) if shrink == 1 else (max(int(width * shrink), 1), max(int(height * shrink), 1))


def walk(path: str | Path) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """Decodes a whole file: number and picture (when it is called for) of every frame that comes out of it.

    Raises:
        VideoError: as `read_track`, or too many packets can't be decoded, or none.
    """
    track, pictures, count = read_track(path), Pictures(), 0
    with _opened(path) as (container, stream):
        for count, frame in enumerate(_decoded(path, container, stream, track), 1):
            yield count - 1, partial(pictures, frame)
    if not count:
        raise VideoError(f"{path}: holds no frame that can be decoded; {CURE}")


def _decoded(path: str | Path, container, stream, track: Track) -> Iterator[av.VideoFrame]:
    """The frames that come out of a file from where it stands, in the order in which they are shown."""
    failed, packets = 0, _demuxed(container, stream)
    few, share = FAILING
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()
        except av.FFmpegError as error:
            failed += 1
            if failed > max(few, share * track.packets):
                raise VideoError(f"{path}: its data are damaged ({failed} of {track.packets} packets can't be decoded, "
                                 f"and perhaps more); {CURE}") from error


class _Unseekable(Exception):
    """A container that leads elsewhere than its time stamps say."""


class _Otherwise(Exception):
    """A file that gives other frames than its packets promise."""


def _numbered(path, container, stream, track: Track, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their numbers, in order, until the last one of `wanted`, ascending; what lies far between two wanted
    ones is skipped where the container can be trusted to.

    Raises:
        _Unseekable, _Otherwise: it can't; the numbers can't be relied on.
    """
    decoded, number, ahead = _decoded(path, container, stream, track), -1, iter(wanted)
    target = next(ahead)
    while True:
        key = _key_before(track, target)
        if key is not None and key[0] > number + SEEK_OVER:
            number, seek_stamp = key
            decoded = _decoded_from(path, container, stream, track, track.stamps[number], seek_stamp)
            yield number, next(decoded)
        while number < target:
            frame, number = next(decoded, None), number + 1
            if frame is None or (track.stamps is not None and track.stamps[number:number + 1] != [frame.pts]):
                raise _Otherwise
            yield number, frame
        target = next((its for its in ahead if its > number), None)
        if target is None:
            return


def _key_before(track: Track, target: int) -> tuple[int, int] | None:
    """The number of the last key frame up to a frame, and the stamp by which one seeks to it, where one can."""
    if track.stamps is None or target >= len(track.stamps) or len(track.stamps) != track.packets:
        return None
    before = bisect_right(track.keys, track.stamps[target], key=itemgetter(0))
    if not before:
        return None
    stamp, seek_stamp = track.keys[before - 1]
    return bisect_right(track.stamps, stamp) - 1, seek_stamp


def _decoded_from(path, container, stream, track: Track, stamp: int, seek_stamp: int) -> Iterator[av.VideoFrame]:
    """`_decoded`, from the key frame with a stamp on."""
    try:
        container.seek(seek_stamp, stream=stream)
    except av.FFmpegError as error:
        raise _Unseekable from error
    decoded = _decoded(path, container, stream, track)
    for frame in islice(decoded, SEEK_OVER):  # before it may come some that lie before it
        if frame.pts is None or frame.pts >= stamp:
            break
    else:
        raise _Unseekable
    if frame.pts != stamp or not frame.key_frame:
        raise _Unseekable
    yield frame
    yield from decoded


def read_frames(path: str | Path, choose: Callable[[VideoInfo], Iterable[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a file and keeps the wanted frames only, reduced to MOST_PIXELS each as they come.

    Args:
        path: a video file.
        choose: given the file's `VideoInfo`, the indices of the frames wanted, in any order, repeats allowed.

    Returns:
        (T, H, W, 3) uint8 RGB frames in the order wanted, and the (T,) int64 indices that were chosen.

    Raises:
        VideoError: the file can't be opened, holds no frame, ends before what its header promises, or can't be
            decoded. Where it gives other frames than its packets promise, `choose` is asked again with their count.
    """
    frames, indices, _ = _read(path, choose)
    return frames, indices


def read_timed_frames(path: str | Path, choose: Callable[[VideoInfo], Iterable[int]]) -> tuple[np.ndarray, np.ndarray]:
    """`read_frames` with the frames' times in seconds instead of indices; 25 per second where the file is silent."""
    frames, indices, info = _read(path, choose)
    return frames, indices / (info.fps or DEFAULT_RATE)


def stream_frames(path: str | Path, choose: Callable[[VideoInfo], np.ndarray],
                  anew: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """The wanted frames of a file one after another, so that files of any length take the memory of a frame.

    Arguments as `read_frames`, but that each wanted frame comes once, in order: its index, and (H, W, 3) uint8. Where
    the file turns out to give other frames than its packets promise, `choose` is asked again with their count, and what
    it wants behind the frames that were given follows; `anew`, all that it wants.

    Raises:
        VideoError: as `read_frames`; frames may have been given by then.
    """
    track, given = replace(read_track(path), keys=[]), -1  # without key frames: nothing is skipped
    for _ in range(3):
        wanted = np.unique(np.asarray(choose(track.info), dtype=np.int64))
        wanted = wanted if anew else wanted[wanted > given]
        try:
            for index, picture in zip(wanted.tolist(), _stream(path, track, track.in_file(wanted)), strict=True):
                yield index, picture
                given = index
            return
        except _Otherwise:
            track = replace(_recounted(path, track), keys=[])
    raise VideoError(f"{path}: each reading of it gave another number of frames; is it being written?")


def _stream(path: str | Path, track: Track, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """The pictures of ascending numbers, repeats allowed."""
    if not len(numbers):
        return
    pictures, ahead = Pictures(), 0
    with _opened(path) as (container, stream):
        for number, frame in _numbered(path, container, stream, track, numbers.tolist()):
            picture = pictures(frame) if numbers[ahead] == number else None
            while ahead < len(numbers) and numbers[ahead] == number:
                yield picture
                ahead += 1


def _read(path: str | Path, choose) -> tuple[np.ndarray, np.ndarray, VideoInfo]:
    track = read_track(path)
    for _ in range(3):
        indices = np.asarray(list(choose(track.info)), dtype=np.int64)
        try:
            return _keep(path, track, track.in_file(indices)), indices, track.info
        except _Unseekable:
            track = replace(track, keys=[])
        except _Otherwise:
            track = _recounted(path, track)
    raise VideoError(f"{path}: each reading of it gave another number of frames; is it being written?")


def _keep(path: str | Path, track: Track, wanted: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) frames of the wanted numbers."""
    order, pictures, kept, filled = np.argsort(wanted, kind="stable"), Pictures(), None, 0
    ascending = wanted[order]
    with _opened(path) as (container, stream):
        for number, frame in _numbered(path, container, stream, track, ascending.tolist()):
            until = int(np.searchsorted(ascending, number, side="right"))
            if until > filled:
                picture = pictures(frame)
                if kept is None:
                    kept = np.empty((len(wanted), *picture.shape), np.uint8)
                kept[order[filled:until]] = picture
                filled = until
    return kept


def _recounted(path: str | Path, track: Track) -> Track:
    """The track as the frames tell it that come out of the file."""
    with _opened(path) as (container, stream):
        stamps = [frame.pts for frame in _decoded(path, container, stream, track)]
        if not stamps:
            raise VideoError(f"{path}: holds no frame that can be decoded; {CURE}")
        if track.shown is not None and track.stamps is None:  # an AVI: places tell when its frames are shown
            return replace(track, shown=np.minimum(track.shown, len(stamps) - 1))
        timed = track.stamps is not None and None not in stamps and stamps == sorted(set(stamps))
        return _track(stream, len(stamps), track.packets, stamps if timed else [None], [])
