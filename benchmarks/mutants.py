"""Damaged videos, and what the project says of them: a part of the campaign of benchmarks/faults.py."""

import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import pandas as pd
import psutil

import victim
from children import child, ended, kill
from deployment.answer import answer
from deployment.prepared import load_model
from sampling import segment_indices
from videos.contents import clip_facts
from videos.decoding import VideoError, read_frames

BATCH = 100
LONGEST = 20.0  # seconds that one video may take
MOST = 2**30  # bytes of memory, of the whole process
FORMATS = {  # container, encoder, pixel format
    "mpeg4.avi": ("avi", "mpeg4", "yuv420p"), "mjpeg.avi": ("avi", "mjpeg", "yuvj420p"),
    "ffv1.avi": ("avi", "ffv1", "yuv420p"), "h264.mp4": ("mp4", "libx264", "yuv420p"),
    "mpeg4.mp4": ("mp4", "mpeg4", "yuv420p"), "h265.mp4": ("mp4", "libx265", "yuv420p"),
    "h264.mkv": ("matroska", "libx264", "yuv420p"), "ffv1.mkv": ("matroska", "ffv1", "yuv420p"),
    "vp8.webm": ("webm", "libvpx", "yuv420p"), "vp9.webm": ("webm", "libvpx-vp9", "yuv420p"),
    "av1.mkv": ("matroska", "libsvtav1", "yuv420p"), "mpeg2.ts": ("mpegts", "mpeg2video", "yuv420p")}


# ---------------------------------------------------------------- videos, whole and damaged

def whole_videos(folder: Path) -> list[Path]:
    """A short video in each format that can be written here."""
    possible = {folder / name: form for name, form in FORMATS.items() if form[1] in av.codecs_available}
    if not folder.is_dir():
        folder.mkdir()
        ended(child(lambda: [encode(path, *form) for path, form in possible.items()], folder / "log"))
    return list(possible)


def encode(path: Path, container: str, codec: str, pixels: str) -> None:
    """Writes 24 frames of 64x48."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none"}
        for frame in victim.moving(1, 1, 24):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def cut(content: bytearray, others: list[bytes], rng: random.Random) -> bytes:
    """Without its end."""
    return content[:rng.randrange(len(content))]


def flipped(content: bytearray, others: list[bytes], rng: random.Random) -> bytes:
    """Up to 64 bytes changed anywhere, half of the times in the first 512."""
    end = rng.choice([min(512, len(content)), len(content)])
    for _ in range(2 ** rng.randrange(7)):
        content[rng.randrange(end)] = rng.randrange(256)
    return content


def zeroed(content: bytearray, others: list[bytes], rng: random.Random) -> bytes:
    """A stretch of zeros."""
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.randrange(1, len(content) // 2))
    content[start:stop] = bytes(stop - start)
    return content


def beheaded(content: bytearray, others: list[bytes], rng: random.Random) -> bytes:
    """With the beginning of a video of another format."""
    count = rng.choice([4, 64, 512, 2048])
    content[:count] = rng.choice(others)[:count]
    return content


def resized(content: bytearray, others: list[bytes], rng: random.Random) -> bytes:
    """A size that the container states of one of its boxes, chunks or elements, changed."""
    names = (b"moov", b"mdat", b"trak", b"stbl", b"stts", b"stsz", b"stco", b"avcC", b"hdrl", b"movi", b"idx1", b"strf",
             b"strh", b"LIST", b"\x1f\x43\xb6\x75", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"G@")
    places = [at for name in names for at in range(len(content)) if content.startswith(name, at)]
    at = max(rng.choice(places or [0]) + rng.choice([-4, 4, 8]), 0)
    size = rng.choice([0, 1, 7, len(content), 2**31 - 1, 2**32 - 1, rng.getrandbits(32)])
    content[at:at + 4] = struct.pack(rng.choice("<>") + "I", size)
    return content


DAMAGES = (cut, flipped, zeroed, beheaded, resized)


# ---------------------------------------------------------------- what is done with them

def judge(path: Path, model) -> str:
    """Reads a video, checks it and predicts it: `used` or `refused`; an error that is none of ours, or doesn't name the
    file, is raised."""
    refused = []
    for use in (partial(read_frames, choose=lambda info: segment_indices(info.frames, 8)), checked,
                lambda video: answer(video, model)):
        try:
            use(path)
        except VideoError as error:
            if path.name not in str(error):
                raise ValueError(f"{error} doesn't name {path.name}") from error
            refused.append(error)
    return "refused" if refused else "used"


def checked(path: Path) -> None:
    """As `make data-check` looks at it."""
    root = path.parents[1]
    facts = clip_facts(root, pd.DataFrame({"clip_path": [f"/Class/{path.name}"]}), cache=root.parent / "facts")
    if facts["status"].iloc[0] == "broken":
        raise VideoError(f"{path}: {facts['reason'].iloc[0]}")


def judge_all(videos: list[Path], results: Path, first: int) -> None:
    """In a process of its own: each video, alone in a folder of a class, from `first` on; prints how it went."""
    model = load_model("2d", str(results.parent.parent / "clips"), results, "cpu")
    for number, video in enumerate(videos[first:], first):
        root = video.parent / "alone"
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(video.parent / "facts", ignore_errors=True)
        (root / "Class").mkdir(parents=True)
        path = Path(shutil.copyfile(video, root / "Class" / video.name))
        print(f"begin {number} {time.time()}", flush=True)
        try:
            print(f"end {number} {judge(path, model)}", flush=True)
        except Exception as error:
            print(f"end {number} fault {type(error).__name__}: {str(error)[:200]!r}", flush=True)


def batch(places, number: int) -> tuple[int, list[str], dict[str, int]]:
    """BATCH damaged videos: how many, what was not as it must be, how many of them were used or refused."""
    rng, folder = random.Random(number), places.folder / "mutants"
    shutil.rmtree(folder, ignore_errors=True)
    seeds = whole_videos(places.folder / "seeds")
    contents, videos = [path.read_bytes() for path in seeds], []
    folder.mkdir()
    for its in range(BATCH):
        seed, damage = rng.choice(seeds), rng.choice(DAMAGES)
        path = folder / f"{number}-{its}-{damage.__name__}-{seed.name}"
        path.write_bytes(damage(bytearray(seed.read_bytes()), contents, rng))
        videos.append(path)
    results = places.before("predict") / "results" / "clips"
    told, found, log, first = {}, [], folder / "log", 0
    while first < len(videos):
        lines, most = watched(partial(judge_all, videos, results, first), log)
        said = {int(line[1]): line[2:] for line in lines if line[0] == "end"}
        for at, words in said.items():
            told[words[0]] = told.get(words[0], 0) + 1
            if words[0] == "fault":
                found.append(f"{videos[at].name}: {' '.join(words[1:])}")
        first = max(said, default=first - 1) + 1
        if most > MOST:
            found.append(f"{videos[min(first, len(videos) - 1)].name} or an earlier one: {most / 2**20:.0f} MiB")
        if first < len(videos):  # its process died, or took too long
            found.append(f"{videos[first].name}: the process ended, {log.read_text()[-200:]!r}")
            first += 1
    return len(videos), found, told


def watched(work: Callable[[], None], log: Path) -> tuple[list[list[str]], int]:
    """Runs a child until it ends, or takes LONGEST for one video: the lines that it printed, and its peak memory."""
    log.write_text("")
    pid, most, begun, started = child(work, log), 0, "", time.monotonic()
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        last = log.read_text().rpartition("begin ")[2]
        if last != begun:
            begun, started = last, time.monotonic()
        with suppress(psutil.Error):
            most = max(most, psutil.Process(pid).memory_info().rss)
        if time.monotonic() - started > LONGEST:
            kill(pid)
        time.sleep(0.05)
    return [line.split() for line in log.read_text().splitlines() if line.startswith(("begin ", "end "))], most
