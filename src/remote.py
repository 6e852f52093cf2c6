"""The part of the cache that machines share: a folder that fsspec can reach, such as s3://bucket/study.

The variable CACHE names it. What is computed goes there too, whole, in one request; what others have computed is taken
from there, once it is seen to be as it was written. fsspec's drivers are packages of their own (s3fs for s3://).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property


class RemoteError(OSError):
    """A remote folder that can't be used; the message names it, and what to do."""


def asked_remote() -> Remote | None:
    """The folder that CACHE names; None where it names none.

    Raises:
        RemoteError: fsspec knows no such address, or its driver is not installed.
    """
    url = os.environ.get("CACHE")
    return Remote(url) if url else None


class Remote:
    """A folder by its address. It can be pickled; each process opens it for itself.

    All methods raise a RemoteError where the folder can't be reached.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._names: dict[str, set[str]] = {}

    def __getstate__(self) -> dict:
        return {"url": self.url, "_names": {}}

    def names(self, kind: str) -> set[str]:
        """The files of one of its folders, as `kind/name`; asked for once."""
        if kind not in self._names:
            with _told(self.url), suppress(FileNotFoundError):  # nothing there yet
                self._names[kind] = {path[len(self._root) + 1:] for path in self._system.find(f"{self._root}/{kind}")}
        return self._names.setdefault(kind, set())

    def read(self, name: str) -> bytes | None:
        """A file; None where it is not there any more."""
        with _told(self.url), suppress(FileNotFoundError):
            return self._system.cat_file(f"{self._root}/{name}")
        return None

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Writes a file, whole."""
        with _told(self.url):
            self._system.pipe_file(f"{self._root}/{name}", bytes(content))

    @cached_property
    def _opened(self) -> tuple:
        import fsspec

        with _told(self.url):
            settings = {"auto_mkdir": True} if self.url.startswith("file:") else {}
            system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **settings)
            return system, root.rstrip("/")

    @property
    def _system(self):
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Makes a RemoteError of whatever a driver raises."""
    try:
        yield
    except RemoteError:
        raise
    except ImportError as error:
        raise RemoteError(f"CACHE={url}: {error}") from error
    except Exception as error:  # drivers have errors of their own
        reason = (str(error).splitlines() or [""])[0][:200]
        raise RemoteError(f"CACHE={url}: can't be used ({type(error).__name__}: {reason}): check the address, your "
                          "rights and the network; what is finished is kept here") from error
