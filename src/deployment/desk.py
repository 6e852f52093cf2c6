"""Where videos of strangers are taken in: limited, answered one after the other, and removed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp

import av
import psutil

from config import VIDEO_SUFFIXES
from deployment.shown import Adviser
from videos.decoding import DEFAULT_RATE, MOST_RATE, VideoError, read_track

MOST_GUESTS = 8  # videos that are received or wait for their answer at the same time
SENDING = 600  # seconds that a video may take to arrive
POLL = 0.25  # seconds between two looks at how far an answer is
PREFIX = "video-page"  # of the folder of what is sent
# Containers that hold a video themselves. FFmpeg knows others, which are lists of further files to open.
CONTAINERS = ("mov", "avi", "matroska", "mpegts", "mpeg", "asf", "flv", "ogg", "mxf", "gif", "nut", "ivf", "rm", "dv",
              "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "obu", "av1")


@dataclass(frozen=True)
class Limits:
    """Of a video that is sent."""

    megabytes: float = 200
    minutes: float = 10

    def __str__(self) -> str:
        return f"{self.megabytes:g} MB and {self.minutes:g} minutes"

    def check_size(self, size: int) -> None:
        """Raises Refused where so many bytes are too many."""
        if size > 1e6 * self.megabytes:
            raise Refused(413, f"The video is larger than {self.megabytes:g} MB, the most that is taken.")


class Refused(Exception):
    """A video that is not taken: the status in HTTP, and the reason in words."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


class Gone(Exception):
    """Whoever asked does not wait for the answer any more."""


@dataclass
class Job:
    """A video that was sent.

    Attributes:
        model: that is asked.
        called: the file's name, as its sender has it.
        file: where it lies, in a folder of its own.
        doing, share: what is being done, and the share of it that is done.
        gone: whether nobody waits for the answer any more.
        future: what the answer will be in.
    """

    model: str
    called: str
    file: Path
    doing: str = ""
    share: float | None = None
    gone: bool = False
    future: Future | None = None

    def tell(self, doing: str, share: float | None) -> None:
        """Notes how far the answer is; raises Gone where nobody waits for it."""
        if self.gone:
            raise Gone
        self.doing, self.share = doing, share


class Desk:
    """Takes videos and has them answered, one after the other, by a thread of its own.

    Each lies in a folder of its own, which goes as soon as the video is answered or refused.
    """

    def __init__(self, adviser: Adviser, limits: Limits):
        self.adviser, self.limits, self.folder = adviser, limits, own_folder()
        self.guests, self.line = 0, []
        self.pool = ThreadPoolExecutor(1, "answers")
        self.pool.submit(adviser.load, next(iter(adviser.titles)))  # the first answer comes sooner

    def close(self) -> None:
        """Answers no more, and removes all that was sent."""
        for job in list(self.line):
            job.gone = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        rmtree(self.folder, ignore_errors=True)

    async def take(self, model: str, name: str, parts: AsyncIterator[bytes]) -> Job:
        """Receives a video and puts it in the line.

        Raises:
            Refused: it is too large, too long or no video, there is no such model, or too much to do.
            Exception: what `parts` raises.
        """
        if model not in self.adviser.titles:
            raise Refused(400, "There is no such model here.")
        if self.guests >= MOST_GUESTS:
            raise Refused(503, "Too many videos are being answered: try again in a minute.")
        self.guests += 1
        called = re.split(r"[/\\]", name)[-1][:200] or "video"
        job = Job(model, called, Path(mkdtemp(dir=self.folder)) / plain_name(called))
        try:
            await receive(parts, job.file, self.limits)
            await asyncio.to_thread(check, job.file, called, self.limits)
        except BaseException:
            self._leave(job)
            raise
        self.line.append(job)
        job.future = self.pool.submit(self._answer, job)
        job.future.add_done_callback(lambda _: self._leave(job))
        return job

    def _leave(self, job: Job) -> None:
        rmtree(job.file.parent, ignore_errors=True)
        self.guests -= 1
        if job in self.line:
            self.line.remove(job)

    def _answer(self, job: Job) -> dict:
        try:
            job.tell("", None)
            return {"answer": self.adviser.answer(job.model, job.file, job.called, job.tell)}
        except Gone:
            return {}
        except VideoError as error:
            return {"error": reason(error, job.file, job.called)}
        except Exception:
            traceback.print_exc()
            return {"error": "The model can't answer: the reason stands where this page was started."}

    async def told(self, job: Job) -> AsyncIterator[str]:
        """How far an answer is, and in the end the answer as HTML, or an error: JSON, an object a line."""
        future, said = asyncio.wrap_future(job.future), None
        try:
            while not future.done():
                ahead = self._ahead(job)
                state = {"ahead": ahead} if ahead else {"doing": job.doing, "share": job.share}
                if state != said:
                    said = state
                    yield json.dumps(state) + "\n"
                await asyncio.wait([future], timeout=POLL)
            yield json.dumps({"error": "The page was closed."} if future.cancelled() else future.result()) + "\n"
        finally:
            job.gone = True

    def _ahead(self, job: Job) -> int:
        line = list(self.line)
        return line.index(job) if job in line else 0


def own_folder() -> Path:
    """A folder for what is sent, which only this user can read; those of pages that are no more are removed."""
    for folder in Path(gettempdir()).glob(f"{PREFIX}-*-*"):
        number = folder.name.split("-")[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            rmtree(folder, ignore_errors=True)
    return Path(mkdtemp(prefix=f"{PREFIX}-{os.getpid()}-"))


def plain_name(called: str) -> str:
    """What a file is named here: of its sender's name it keeps the suffix, by which alone some formats are known."""
    suffix = Path(called).suffix.lower()
    return f"video{suffix}" if suffix in VIDEO_SUFFIXES else "video"


async def receive(parts: AsyncIterator[bytes], file: Path, limits: Limits) -> None:
    """Writes what is sent into a file, and no more of it than is allowed; raises Refused where more comes, or too
    slowly."""
    size = 0
    try:
        async with asyncio.timeout(SENDING):
            with file.open("wb") as kept:
                async for part in parts:
                    size += len(part)
                    limits.check_size(size)
                    kept.write(part)
    except TimeoutError:
        raise Refused(408, f"The video took longer than {SENDING / 60:.0f} minutes to arrive.") from None


def check(file: Path, called: str, limits: Limits) -> None:
    """Raises Refused where a file is no video of a kind that is taken, or too long; no frame is decoded."""
    try:
        with av.open(str(file), options={"format_whitelist": ",".join(CONTAINERS)}, metadata_errors="ignore"):
            pass
    except (av.FFmpegError, ValueError):
        raise Refused(422, f"{called}: is no video, or of a kind that isn't known here "
                           f"({file.stat().st_size:,} bytes).") from None
    try:
        info = read_track(file).info
    except VideoError as error:
        raise Refused(422, reason(error, file, called)) from None
    if info.frames < 2:
        raise Refused(422, f"{called}: is one picture, not a video.")
    seconds = info.frames / min(info.fps or DEFAULT_RATE, MOST_RATE)  # slow motion counts by its frames
    if seconds > 60 * limits.minutes:
        raise Refused(422, f"{called}: lasts {seconds / 60:.2g} minutes, longer than {limits.minutes:g}, the most that "
                           "is taken.")


def reason(error: VideoError, file: Path, called: str) -> str:
    """Why a video can't be used, in the words of its sender: without the cure for data sets, nor the file's path."""
    return str(error).partition("; ")[0].replace(str(file), called) + "."
