"""Files that are whole or absent, and arrays computed once and kept in them: shared by processes, within a budget.

An array's file is named by everything that decides its content, the bytes of its clip among them, so that a changed
clip has another file. It is written under a temporary name and moved into place: two processes that compute the same
write the same, and a file that is there is complete. Where the budget is exceeded, what was used longest ago goes.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from config import CACHE, CACHE_GB

ABANDONED = 3600  # seconds after which a temporary file is taken for that of a killed process
TRIM_EVERY = 64  # files written between two looks at the budget


@contextmanager
def atomic_path(path: str | Path):
    """A temporary name beside `path`, with its suffix, that is moved into place when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{threading.get_ident()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class ArrayStore:
    """A folder of .npy files.

    Args:
        folder: made where it is missing.
        budget_gb: of everything below the folder, in GB (10^9 bytes).

    Attributes:
        in_use: files that are never removed: those that are about to be read.
    """

    def __init__(self, folder: str | Path = CACHE, budget_gb: float = CACHE_GB):
        self.folder, self.budget, self.written = Path(folder), budget_gb * 1e9, 0
        self.in_use: set[Path] = set()

    def path(self, kind: str, key: object, suffix: str = ".npy") -> Path:
        """Where the array of a key is kept, or would be; `key` is told apart by its `repr`."""
        return self.folder / kind / (hashlib.sha256(repr(key).encode()).hexdigest()[:32] + suffix)

    def read(self, path: Path) -> np.ndarray | None:
        """A kept array, memory-mapped and read-only; None where there is none, or only a broken one, which is removed."""
        try:
            array = np.load(path, mmap_mode="r")
            os.utime(path)  # used now
            return array
        except FileNotFoundError:
            return None
        except (ValueError, EOFError):
            path.unlink(missing_ok=True)
            return None

    def write(self, path: Path, array: np.ndarray) -> None:
        """Keeps an array, whole or not at all."""
        with atomic_path(path) as temporary:
            np.save(temporary, array)
        self.written += 1
        if self.written % TRIM_EVERY == 0:
            self.trim()

    def get(self, path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The kept array, or else what `compute` gives, which is kept."""
        array = self.read(path)
        if array is None:
            array = compute()
            self.write(path, array)
        return array

    def touch(self, paths: Iterable[Path]) -> None:
        """Marks kept files as used now."""
        for path in paths:
            os.utime(path)

    def trim(self) -> int:
        """Removes what was used longest ago, and is not in use, until the rest is within the budget.

        Returns:
            Bytes that are left.
        """
        files = []
        for path in self.folder.rglob("*.np[yz]"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.name[0] != ".":
                files.append((stat.st_mtime, stat.st_size, path))
            elif stat.st_mtime < time.time() - ABANDONED:
                path.unlink(missing_ok=True)
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self.budget:
                break
            if path not in self.in_use:
                path.unlink(missing_ok=True)
                left -= size
        if left > self.budget:
            print(f"kept files take {left / 1e9:.1f} GB, more than the budget of {self.budget / 1e9:g} GB, and all of them "
                  "are in use: set CACHE_GB higher, or choose fewer views")
        return left


def file_hash(path: str | Path) -> str:
    """SHA-256 (hex) of a file's content; remembered within a process while size and time of the file stay."""
    stat = os.stat(path)
    return _hash(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _hash(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
