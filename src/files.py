"""Files: where results lie, writing them whole or not at all, and what is computed once and kept.

Nothing here imports torch, so that what only reads results stays small.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import platform
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from config import CACHE, ROOT, asked_number
from remote import asked_remote

if TYPE_CHECKING:
    import pandas as pd

ABANDONED = 86400  # seconds after which a temporary file of another machine is taken for that of a killed process
HOST = f"{zlib.crc32(platform.node().encode()):08x}"  # in temporary names: a process is told by its number only here
SEAL = 4  # bytes of the checksum at the end of a sealed file
CURES = {errno.ENOSPC: "the disk is full: make room there", errno.EDQUOT: "the quota is used up: make room there",
         errno.EACCES: "not allowed: change the rights of the folder", errno.EPERM: "not allowed: change the rights",
         errno.EROFS: "the disk is read-only: work in a folder that can be written",
         errno.EISDIR: "a folder has its name: choose another",
         **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file lies where its folder belongs: choose another place")}
REQUESTS = 16  # of a shared folder, at the same time
LOOK_AGAIN = 0.5  # share of the room that may be written before the folder is looked through again


# ---------------------------------------------------------------- where results lie

def shown(path: Path) -> str:
    """A path as it is printed: relative to the repository where it lies in it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


class ModelFiles:
    """Where one model's results lie below a data set's results root, in folders of its family.

    `short` is its name in the statistics, `picture` in the confusion matrix's: `model_name` where they aren't given.
    """

    def __init__(self, root: Path, model_name: str, family: str, suffix: str, short: str = "", picture: str = ""):
        self.root, self.model_name = root, model_name
        self.checkpoint = root / "saved_models" / family / f"best_{model_name}{suffix}"
        self.sidecar = self.checkpoint.with_suffix(".json")
        self.stats = root / f"stats_{family}" / f"stats_{short or model_name}.json"
        self.predictions = root / "predictions" / f"{model_name}.csv"
        self.folds = root / "predictions" / f"{model_name}_folds.csv"  # of every video (see `folds`)
        self.folds_validation = root / "predictions" / f"{model_name}_folds_validation.csv"
        self.confusion_matrix = root / "confusion_matrices" / family / f"{picture or model_name}_confusion_matrix.png"

    @property
    def sha256(self) -> str:
        """Of the checkpoint, as its sidecar has it."""
        return read_json(self.sidecar).get("sha256", "")

    @property
    def identity(self) -> str:
        """What is kept of a model is kept for it: the checkpoint's sha256, and what tells the clips and their parts.

        The same training clips give the same checkpoint, whatever is tested."""
        saved = read_json(self.sidecar)
        return "-".join(filter(None, (saved.get("sha256"), saved.get("split", "")[:16])))

    def kept(self, entry: str, compute: Callable[[], dict]) -> dict:
        """An entry of the statistics that belongs to this very model; else what `compute` gives, which is kept."""
        known = read_json(self.stats).get(entry, {})
        if known.get("of") != self.identity:
            known = {**compute(), "of": self.identity}
            update_json(self.stats, **{entry: known})
        return known

    def is_current(self, table: Path, *beside: Path) -> bool:
        """Whether a prediction table, and what is kept beside it, is there as written for this very model."""
        known = read_json(self.stats).get("tables", {}).get(table.stem, [])
        return known[:2 + len(beside)] == [self.identity, *(_hash_of(path) for path in (table, *beside))]

    def kept_table(self, path: Path, compute: Callable[[], pd.DataFrame], *beside: Path) -> pd.DataFrame:
        """A prediction table of this very model; else what `compute` gives, which is kept. `compute` also writes
        what is kept `beside` it."""
        if self.is_current(path, *beside):
            return read_predictions(path)
        table = compute()
        write_csv(path, table)
        tables = read_json(self.stats).get("tables", {})
        update_json(self.stats, tables={**tables, path.stem: [self.identity, *map(_hash_of, (path, *beside))]})
        return read_predictions(path)  # the same now and later


class ResultFiles(ModelFiles):
    """One CNN's results, under the seed's names.

    `kind` is `2d` or `3d`; `backbone` names the network in picture names (the seed's are resnet18, resnet3d).
    """

    def __init__(self, root: Path, kind: str, backbone: str):
        super().__init__(root, f"{kind}-cnn", "deep_learning", ".pth", short=kind, picture=f"{kind}_{backbone}")
        self.kind, self.backbone = kind, backbone
        self.last = self.checkpoint.with_name(f"last_{kind}-cnn.pth")  # the state of an unfinished training
        self.validation = self.predictions.with_name(f"{kind}-cnn_validation.csv")  # to which calibration is fitted

    def array(self, what: str) -> Path:
        """`train_time`, `inf_time`, `model_size`, `preds` or `labels`."""
        return self.stats.with_name(f"{what}_{self.kind}.npy")

    def repeated(self, seed: int) -> Path:
        """Predictions of the test set by the same training with another seed."""
        return self.predictions.with_name(f"{self.model_name}_seed_{seed}.csv")

    def curve(self, what: str) -> Path:
        """`loss` or `accuracy`."""
        return self.root / "performance_plots/deep_learning" / f"{self.kind}_cnn_{what}_curve.png"

    def strip(self, what: str) -> Path:
        """`predictions` or `errors`."""
        return self.root / "feature_visualizations" / f"{self.kind}_cnn_{what}.png"


class ClassicalFiles(ModelFiles):
    """One classical model's results, beside the CNNs'."""

    def __init__(self, root: Path, model_name: str):
        super().__init__(root, model_name, "classical_ml", ".skops")


# ---------------------------------------------------------------- saved, asked for, replaced

def differences(asked: dict, saved: dict) -> list[str]:
    """What of a saved model is not as asked, each in a few words; `auto` and None accept anything."""
    found = []
    for name, value in asked.items():
        old = saved.get(name)
        if name == "recipe":
            old = old or {}
            found += [f"recipe.{field} is {value.get(field)}, was {old.get(field)}"
                      for field in sorted(value.keys() | old.keys()) if value.get(field) != old.get(field)]
        elif name == "split" and old != value:
            found.append("other clips or another split")
        elif old != value and not (value is None or (name, value) == ("weights", "auto")):
            found.append(f"{name} is {value}, was {old}")
    return found


@contextmanager
def replaced_model(files: ModelFiles):
    """`atomic_path` of a model's checkpoint. An earlier model, with its sidecar, statistics and predictions, goes to a
    folder `previous`, named by its checkpoint: copied there before the new one takes its place, so that it stays
    where it was if that fails."""
    beside = [files.sidecar, files.stats, *sorted(files.predictions.parent.glob(f"{files.model_name}*.csv"))]
    beside = [path for path in beside if path.is_file()]
    with atomic_path(files.checkpoint) as temporary:
        yield temporary
        replaced = files.checkpoint.is_file() and file_hash(files.checkpoint) != file_hash(temporary)
        if replaced:
            folder = files.root / "previous" / f"{files.model_name}-{file_hash(files.checkpoint)[:8]}"
            for path in (files.checkpoint, *beside):
                with suppress(FileNotFoundError), atomic_path(folder / path.name) as copy:
                    shutil.copyfile(path, copy)  # unless another process has just replaced the model, too
    if replaced:
        for path in beside:
            path.unlink(missing_ok=True)
        print(f"the earlier model was moved to {shown(folder)}")


# ---------------------------------------------------------------- whole or not there

def temporary_name(path: Path) -> Path:
    """A hidden name beside a path, of this thread alone, by which `is_abandoned` tells whether it is still alive."""
    return path.with_name(f".{path.stem}-{HOST}-{os.getpid()}-{threading.get_ident()}{path.suffix}")


class NotWritten(OSError):
    """A file that could not be written, for a reason of CURES; the message names it, and what to do."""

    @classmethod
    def told(cls, path: str | Path, code: int) -> NotWritten:
        """Of a path and the number of an error."""
        return cls(code, f"{path}: not written, {CURES[code]}, then run again; what is finished is kept")

    def __str__(self) -> str:
        return self.strerror


@contextmanager
def atomic_path(path: str | Path):
    """A temporary name beside `path`, with its suffix, that is moved into place when the block ends without error.

    Raises:
        NotWritten: the disk is full, or the place may not be written; what was there before is unchanged.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with _clear_refusals(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _clear_refusals(path: Path, temporary: Path):
    """Makes a NotWritten of an error that says why `path`, or what it is written as, can't be written."""
    try:
        yield
    except OSError as error:
        named = error.filename2 or error.filename  # of a copy, the second is what is written
        named = Path(os.fsdecode(named)) if named else temporary
        own = named in (path, *path.parents) or temporary in (named, *named.parents)
        if error.errno not in CURES or not own:  # of what the block reads, not of what it writes
            raise
        raise NotWritten.told(path, error.errno) from error


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Writes a file, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_sealed(path: Path, content: bytes | memoryview) -> None:
    """`write_bytes`, with a checksum of name and content at the end, so that a file that was cut, changed or exchanged
    since is told from what was written."""
    write_bytes(path, sealed(path.name, content))


def sealed(name: str, content: bytes | memoryview) -> bytes:
    """A file's content with the checksum at its end."""
    return b"".join([content, _seal(name, content)])


def read_sealed(path: Path) -> memoryview | None:
    """What `write_sealed` wrote; None where there is no file, or it is not as it was written."""
    try:
        return unsealed(path.name, path.read_bytes())
    except FileNotFoundError:
        return None


def unsealed(name: str, content: bytes) -> memoryview | None:
    """The content of a sealed file of this name; None where it is not as it was written."""
    content = memoryview(content)
    return content[:-SEAL] if _seal(name, content[:-SEAL]) == content[-SEAL:] else None


def _seal(name: str, content: bytes | memoryview) -> bytes:
    return zlib.crc32(content, zlib.crc32(name.encode())).to_bytes(SEAL, "big")


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are not there; a NotWritten as `atomic_path`."""
    with _clear_refusals(folder, folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def whole_folder(folder: Path):
    """An empty folder with a temporary name, that takes the place of `folder` when the block ends without error.

    Raises:
        NotWritten: as `atomic_path`.
    """
    remove_abandoned(folder.parent, f".{folder.stem}-*")
    temporary = temporary_name(folder)
    new, old = temporary / "new", temporary / "old"
    try:
        with _clear_refusals(folder, temporary):
            new.mkdir(parents=True)
            yield new
            if folder.exists():
                os.rename(folder, old)
            try:
                os.rename(new, folder)
            except OSError:
                if old.exists():
                    os.rename(old, folder)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(root: Path, pattern: str = "**/.*-*-*-*") -> None:
    """Removes what `atomic_path` and `whole_folder` left under `root` when their process was killed; a folder that was
    about to be replaced is put back."""
    for path in list(root.glob(pattern)):
        if is_abandoned(path):
            folder = path.with_name("-".join(path.stem.split("-")[:-3])[1:] + path.suffix)
            if (path / "old").is_dir() and not folder.exists():
                os.rename(path / "old", folder)
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def is_abandoned(path: Path) -> bool:
    """Whether a path is a `temporary_name` whose process is gone; where that ran on another machine, for a day."""
    parts = path.stem.split("-")
    if path.name[0] != "." or len(parts) < 4 or not (parts[-2].isdigit() and len(parts[-3]) == len(HOST)):
        return False
    with suppress(FileNotFoundError):
        gone = parts[-3] == HOST and not psutil.pid_exists(int(parts[-2]))
        return gone or path.stat().st_mtime < time.time() - ABANDONED
    return False


def read_json(path: str | Path) -> dict:
    """A JSON document, or an empty one where the file is absent.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend it or move it away") from error


def write_json(path: str | Path, document: dict) -> None:
    """Writes plain types as JSON, whole or not at all; NumPy numbers and arrays become plain ones."""
    text = json.dumps(document, indent=2, default=_plain)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _plain(value):
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def update_json(path: str | Path, **entries) -> dict:
    """Adds entries to a JSON document, dropping none that is there; returns the whole."""
    document = {**read_json(path), **entries}
    write_json(path, document)
    return document


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Writes a table without its index, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def read_predictions(path: Path) -> pd.DataFrame:
    """A prediction table; names stay text, also where they look like numbers."""
    import pandas as pd  # takes longer than all else here

    table = pd.read_csv(path, dtype={"group": str, "label": str, "predicted": str}, keep_default_na=False)
    return table.copy()  # in few blocks: a hundred columns of their own are slow, and pandas warns of them


def save_array(path: str | Path, values) -> None:
    """`np.save`, whole or not at all; a file that has this content stays."""
    content = _saved(values)
    if not Path(path).is_file() or Path(path).read_bytes() != content:
        write_bytes(path, content)


def _saved(values) -> memoryview:
    buffer = io.BytesIO()
    np.save(buffer, values)  # not to a file: there it doesn't tell why it fails
    return buffer.getbuffer()


# ---------------------------------------------------------------- computed once and kept

_VERIFIED: dict[Path, tuple[int, ...]] = {}  # kept arrays whose checksum was right, with their stamp then


class ArrayStore:
    """A folder of .npy files, shared by processes, within a budget of `budget_gb` (10^9 bytes; None takes CACHE_GB).

    A file is named by everything that decides its content, the bytes of its clip among them, so that a changed clip has
    another file. It is written whole and sealed: two processes that compute the same write the same, and a broken file
    is removed, to be computed again. Where the budget is exceeded, what was used longest ago goes, but for the files
    `in_use`: those that are about to be read. Where CACHE names a folder that machines share, what is written goes
    there too, and what others have written is taken from there (see `remote`); the budget is not of that one.

    All methods raise a `remote.RemoteError` where that folder can't be used.
    """

    def __init__(self, folder: str | Path = CACHE, budget_gb: float | None = None):
        budget_gb = asked_number("CACHE_GB") if budget_gb is None else budget_gb
        self.folder, self.budget, self.written = Path(folder), budget_gb * 1e9, 0
        self.in_use: set[Path] = set()
        self.remote = asked_remote()
        self._room = 0.0  # bytes to be written before the next look

    def path(self, kind: str, key: object) -> Path:
        """Where the array of a key is kept, or would be; `key` is told apart by its `repr`."""
        return self.folder / kind / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.npy"

    def has(self, path: Path) -> bool:
        """Whether an array is kept there, which counts as using it; a broken file is removed."""
        with suppress(FileNotFoundError):
            if _VERIFIED.get(path) == file_stamp(path) or read_sealed(path) is not None:
                os.utime(path)  # used now
                _VERIFIED[path] = file_stamp(path)
                return True
            path.unlink(missing_ok=True)
        return False

    def read(self, path: Path) -> np.ndarray | None:
        """A kept array; None where there is none, or only a broken one, which is removed."""
        with suppress(FileNotFoundError):  # another process needed the space
            return np.load(path) if self.has(path) else None
        return None

    def fetch(self, paths: Iterable[Path]) -> None:
        """Takes those of some arrays that are lacking here, and whole there, from the shared folder."""
        lacking = [path for path in paths if self.remote and not path.is_file()]
        names = {path: path.relative_to(self.folder).as_posix() for path in lacking}
        there = {kind: self.remote.names(kind) for kind in {name.rpartition("/")[0] for name in names.values()}}

        def take(path: Path) -> None:
            content = self.remote.read(names[path])
            if content is not None and unsealed(path.name, content) is not None:
                write_bytes(path, content)

        wanted = [path for path, name in names.items() if name in there[name.rpartition("/")[0]]]
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(take, wanted))

    def write(self, path: Path, array: np.ndarray) -> None:
        """Keeps an array, whole or not at all."""
        content = sealed(path.name, _saved(array))
        write_bytes(path, content)
        if self.remote:
            self.remote.write(path.relative_to(self.folder).as_posix(), content)
        self.written += 1
        self._room -= array.nbytes
        if self._room < 0:  # by what this process wrote; others may write too
            self.trim()

    def get(self, path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """The kept array, or else what `compute` gives, which is kept."""
        self.fetch([path])
        array = self.read(path)
        if array is None:
            array = compute()
            self.write(path, array)
        return array

    def trim(self) -> int:
        """Removes what was used longest ago, but for `in_use`, until the rest is within the budget; gives its bytes."""
        files = []
        for path in self.folder.rglob("*.np[yz]"):
            with suppress(FileNotFoundError):  # another process was faster
                stat = path.stat()
                if path.name[0] != ".":
                    files.append((stat.st_mtime, stat.st_size, path))
                elif is_abandoned(path):
                    path.unlink()
        left = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if left <= self.budget:
                break
            if path not in self.in_use:
                with suppress(PermissionError):  # Windows: another process maps it
                    path.unlink(missing_ok=True)
                    left -= size
        if left > self.budget:
            print(f"kept files take {left / 1e9:.1f} GB, more than the budget of {self.budget / 1e9:g} GB, and all of "
                  "them are in use: set CACHE_GB higher, or choose fewer views")
        self._room = max(LOOK_AGAIN * (self.budget - left), 0.01 * self.budget)
        return left


def file_stamp(path: str | Path) -> tuple[int, ...]:
    """What changes with a file's content or place: size, times of content and entry (ns), and number in its system."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def file_hash(path: str | Path) -> str:
    """SHA-256 (hex) of a file's content; remembered within a process while the file's stamp stays."""
    return _hash(str(path), file_stamp(path))


def _hash_of(path: Path) -> str | None:
    return file_hash(path) if path.is_file() else None


@lru_cache(maxsize=1 << 16)
def _hash(path: str, stamp: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
