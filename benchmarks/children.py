"""Forked processes that may be killed at any moment, and what they write."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlalchemy import event
from sqlalchemy.engine import Engine

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def child(work: Callable[[], None], log: Path) -> int:
    """Forks a process that works, leads a group of its own, and writes what it says into a log; gives its number."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        status = 0
    except BaseException:
        sys.stdout.flush()  # what was said before the error stands before it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def ended(pid: int, seconds: float = 600.0) -> int:
    """Waits for a child, and kills its group when the time is over; its exit status, negative after a signal."""
    deadline = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            kill(pid)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(0.005)
    kill(pid)  # what it left of loaders' workers
    return os.waitstatus_to_exitcode(found[1])


def kill(pid: int) -> None:
    """Kills a child and its children at once, as a lack of memory or of power does."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def at_writes(place: Path, action: Callable[[int, str, Path], None]) -> None:
    """In this process, calls `action` with the number of each opening for writing, moving or removing of a file under
    a place, what it is, and the path, just before it is done; and of each commit to a database."""
    count = 0

    def seen(what: str, path: object) -> None:
        nonlocal count
        if isinstance(path, (str, bytes, os.PathLike)) and str(place) in os.fsdecode(path):
            count += 1
            action(count, what, Path(os.fsdecode(path)))

    def hook(name: str, values: tuple) -> None:
        if name == "open" and isinstance(values[2], int) and values[2] & WRITING:
            seen("open", values[0])
        elif name in ("os.rename", "os.remove", "os.mkdir", "os.link"):
            seen(name, values[0])

    sys.addaudithook(hook)
    event.listen(Engine, "commit", lambda connection: seen("commit", place / "database"))
