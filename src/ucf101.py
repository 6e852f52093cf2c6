"""Gets UCF-101 clips into one folder a class.

    python src/ucf101.py fetch  [--classes PullUps Punch PushUps | all] [--url URL]
    python src/ucf101.py import --from DIR [--link | --copy | --reference] [--classes ...]
    python src/ucf101.py splits [--kind official1] [--lists DIR]

UCF-101: Soomro, Zamir, Shah, CRCV-TR-12-01, 2012. `fetch` reads only the wanted members of the public zip.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import filecmp
import io
import os
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import pandas as pd
import psutil
import requests
import urllib3
from remotezip import RemoteZip, RemoteZipError
from tqdm import tqdm

from config import CLASSES, UCF101_ROOT, VIDEO_SUFFIXES
from splits import (
    COLUMNS,
    KINDS,
    TEST_GROUPS,
    ensure_splits,
    group_of,
    make_split,
    print_split,
    scan_clips,
    split_paths,
)

DEFAULT_URL = "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip"
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
ATTEMPTS, BACKOFF = 5, 1.0  # tries of each request; seconds before the second, doubled for each later one
CHUNK = 1 << 18  # bytes

UCF101_CLASSES = tuple("""
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch Basketball
    BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles BodyWeightSquats Bowling
    BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth CleanAndJerk CliffDiving CricketBowling
    CricketShot CuttingInKitchen Diving Drumming Fencing FieldHockeyPenalty FloorGymnastics FrisbeeCatch
    FrontCrawl GolfSwing Haircut Hammering HammerThrow HandstandPushups HandstandWalking HeadMassage
    HighJump HorseRace HorseRiding HulaHoop IceDancing JavelinThrow JugglingBalls JumpingJack JumpRope
    Kayaking Knitting LongJump Lunges MilitaryParade Mixing MoppingFloor Nunchucks ParallelBars PizzaTossing
    PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano PlayingSitar PlayingTabla
    PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting RockClimbingIndoor RopeClimbing Rowing
    SalsaSpin ShavingBeard Shotput SkateBoarding Skiing Skijet SkyDiving SoccerJuggling SoccerPenalty
    StillRings SumoWrestling Surfing Swing TableTennisShot TaiChi TennisSwing ThrowDiscus TrampolineJumping
    Typing UnevenBars VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo
""".split())
CLIP_COUNTS = {"PullUps": 100, "Punch": 160, "PushUps": 102}
GROUPS, FEWEST_CLIPS = 25, 4  # groups of each class; clips that each group has at least

_CLIP = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c(?P<clip>\d+)"
                   rf"(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))})", re.IGNORECASE)
_BY_LOWER_CASE = {name.lower(): name for name in UCF101_CLASSES}
_PART_FOLDERS = {"train", "val", "valid", "test"}
_TRANSIENT = (requests.RequestException, urllib3.exceptions.HTTPError, RemoteZipError, zipfile.BadZipFile,
              zlib.error, EOFError)


class DataError(RuntimeError):
    """What stands in the way of the data, and the cure, in one line."""


def canonical_class(name: str) -> str:
    """UCF-101's folder name of a class, whatever its case (`HandStandPushups`); another name as it is."""
    return _BY_LOWER_CASE.get(name.lower(), name)


def _choose(available: Iterable[str], classes: Iterable[str] | None, place: str | Path) -> list[str]:
    available = sorted(available)
    if not available:
        raise DataError(f"{place} has no clips: it needs v_<Class>_gNN_cNN.avi files, or one folder a class")
    wanted = available if classes is None else sorted({canonical_class(name) for name in classes})
    for name in wanted:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {' '.join(available)}"
            raise DataError(f"{place} has no class {name}: {hint}")
    return wanted


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, moved to `path` when the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk is full at {path}: free some space and run again, finished clips "
                            "are kept") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(root: Path) -> None:
    """Removes the temporary files of runs that were killed."""
    for path in root.glob("*/.tmp-*-*"):
        process = path.name.split("-")[1]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            path.unlink(missing_ok=True)


# Fetching


@dataclass(frozen=True)
class _Member:
    """A clip in the archive: its entry and the bytes [start, end) of the archive that hold it."""

    info: zipfile.ZipInfo
    start: int
    end: int

    @property
    def name(self) -> str:
        return self.info.filename.rsplit("/", 1)[-1]


def fetch(classes: Iterable[str] | None, out: str | Path = UCF101_ROOT, url: str = DEFAULT_URL,
          workers: int = 4) -> list[Path]:
    """Downloads the clips of some classes by range reads of a remote zip, into `<out>/<Class>/`.

    A clip gets its name only when it is whole and its CRC is right. Clips that are there are not fetched
    again, so an interrupted run is continued by running it again.

    Args:
        classes: names, in any case; None for all that the archive has.
        out: folder for the class folders.
        url: a zip whose members are called `v_<Class>_gNN_cNN.avi`, in whatever folder.
        workers: clips read at the same time.

    Returns:
        The paths of all clips of these classes.

    Raises:
        DataError: no connection, a server without ranges, a class or clip that the archive lacks, an archive
            that is damaged or changes meanwhile, a full disk, another file at a clip's place.
    """
    out = Path(out)
    with _session(url) as session:
        members = _retrying(url, lambda: _read_directory(session, url))
        labels = _choose(members, classes, url)
        clips = {out / label / member.name: member for label in labels for member in members[label]}
        todo = {path: member for path, member in clips.items() if not _is_finished(path, member)}
        _remove_abandoned(out)
        _require_space(out, sum(member.info.file_size for member in todo.values()))
        _download_all(session, url, clips, todo, workers)
    if lacking := describe_missing(out, UCF101_CLASSES if classes is None else labels):
        raise DataError(f"fetched {len(clips)} clips, but {url} is not complete: {'; '.join(lacking)}")
    return sorted(clips)


def _session(url: str) -> requests.Session:
    """A session that accepts only ranges, all of one unchanged file."""
    first = {}

    def check_response(response: requests.Response, **_) -> None:
        status = response.status_code
        if response.is_redirect or status in (408, 429) or status >= 500:
            return
        ranged = "Content-Range" in response.headers
        version = response.headers.get("Content-Range", "").rsplit("/")[-1], response.headers.get("ETag")
        if status == 416 or (ranged and first.setdefault("version", version) != version):
            raise DataError(f"{url} changed while it was read: run again, finished clips are kept")
        if status >= 400:
            raise DataError(f"{url}: the server answers {status} {response.reason}: give the address of a "
                            "copy with --url, or import a local copy")
        if not ranged:
            raise DataError(f"{url}: the server doesn't serve ranges, only the whole archive: give the "
                            "address of another copy with --url, or import a local copy")

    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(check_response)
    return session


def _read_directory(session: requests.Session, url: str) -> dict[str, list[_Member]]:
    """The archive's clips by class."""
    with RemoteZip(url, session=session, timeout=TIMEOUT) as archive:
        entries = sorted(archive.infolist(), key=lambda info: info.header_offset)
        ends = [info.header_offset for info in entries[1:]] + [archive.start_dir]
    members = {}
    for info, end in zip(entries, ends, strict=True):
        if found := _CLIP.fullmatch(info.filename.rsplit("/", 1)[-1]):
            member = _Member(info, info.header_offset, end)
            members.setdefault(canonical_class(found["label"]), []).append(member)
    return members


def _is_finished(path: Path, member: _Member) -> bool:
    if not path.exists():
        return False
    size, right_size = path.stat().st_size, member.info.file_size
    if size != right_size:
        raise DataError(f"{path} has {size} bytes, in the archive {right_size}: move it away and run again")
    return True


def _require_space(out: Path, needed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if free < needed:
        raise DataError(f"the disk is full at {out}: free some space and run again; the clips need "
                        f"{needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")


def _download_all(session: requests.Session, url: str, clips: dict[Path, _Member], todo: dict[Path, _Member],
                  workers: int) -> None:
    """Downloads the clips `todo`; the first failure ends it, when the clips that are under way have ended."""
    total = sum(member.info.file_size for member in clips.values())
    done = total - sum(member.info.file_size for member in todo.values())
    with (tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=f"{len(todo)} clips") as bar,
          ThreadPoolExecutor(workers) as pool):
        try:
            for future in as_completed([pool.submit(_download, session, url, path, member, bar)
                                        for path, member in todo.items()]):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _download(session: requests.Session, url: str, path: Path, member: _Member, bar: tqdm) -> None:
    def attempt() -> None:
        written = 0
        try:
            with (_whole(path) as temporary, open(temporary, "wb") as file,
                  _open_member(session, url, member) as source):
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    written += len(chunk)
                    bar.update(len(chunk))
        except BaseException:
            bar.update(-written)
            raise

    _retrying(member.name, attempt)


def _open_member(session: requests.Session, url: str, member: _Member) -> zipfile.ZipExtFile:
    """Opens a member as a stream, whose end raises BadZipFile where size or CRC is not the directory's."""
    headers = {"Range": f"bytes={member.start}-{member.end - 1}"}
    response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    response.raise_for_status()
    response.raw.auto_close = False  # a closed stream would raise at its end, where a reader wants b""
    stream = io.BufferedReader(response.raw, CHUNK)
    signature, name_size, extra_size = struct.unpack("<4s22x2H", stream.read(30).ljust(30, b"\0"))
    name = stream.read(name_size + extra_size)[:name_size]
    if signature != b"PK\3\4" or name != member.info.orig_filename.encode():
        stream.close()
        raise zipfile.BadZipFile("it is not where the directory has it")
    return zipfile.ZipExtFile(stream, "r", member.info, close_fileobj=True)


def _retrying(name: str, action: Callable):
    """Runs an action, again after a pause where the connection or the received bytes were bad."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except _TRANSIENT as error:
            if attempt == ATTEMPTS:
                raise DataError(_explain(name, error)) from error
            pause = BACKOFF * 2 ** (attempt - 1)
            tqdm.write(f"{name}: {type(error).__name__}, next try in {pause:g} s", file=sys.stderr)
            sleep(pause)


def _explain(name: str, error: Exception) -> str:
    if isinstance(error, RemoteZipError) and error.__context__:
        error = error.__context__
    if isinstance(error, requests.exceptions.SSLError):
        return (f"{name}: the server's certificate can't be verified: name your proxy's certificate in "
                "REQUESTS_CA_BUNDLE, or import a local copy")
    if isinstance(error, requests.HTTPError):
        return f"{name}: the server answers {error}: run again later, finished clips are kept"
    if isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError)):
        return (f"{name}: no connection ({type(error).__name__}): check network and proxy and run again, "
                "finished clips are kept; or import a local copy")
    return f"{name}: {error}: the archive is damaged or has changed: run again, or give another with --url"


# Importing


def import_tree(src: str | Path, out: str | Path, classes: Iterable[str] | None,
                mode: str = "link") -> list[Path]:
    """Brings a local copy of UCF-101, or a folder of other videos, into `<out>/<Class>/`.

    A clip's class is the one in its name (`v_<Class>_gNN_cNN.avi`) or else the folder that it is in, at any
    depth. So the official tree, the zip's flat folder and `train/`, `val/`, `test/` with class folders all
    do; videos of no class and split CSVs are not brought along.

    Args:
        src: folder to look through.
        out: folder for the class folders.
        classes: names; None for all that are found.
        mode: `link` (hard links), `copy`, or `reference` (symbolic links).

    Returns:
        The paths of all clips of these classes in `out`.

    Raises:
        DataError: no such folder or class, no links possible, a full disk, another file at a clip's place.
    """
    found = _find_clips(Path(src))
    labels = _choose(found, classes, src)
    _remove_abandoned(Path(out))
    clips = {Path(out) / label / name: path for label in labels for name, path in found[label].items()}
    for target, source in tqdm(clips.items(), unit="clip", desc=mode):
        _bring(source, target, mode)
    return sorted(clips)


def _find_clips(src: Path) -> dict[str, dict[str, Path]]:
    """The videos below a folder, by class and name."""
    if not src.is_dir():
        raise DataError(f"no folder {src}: name the folder of your copy")
    found = {}
    for path in sorted(src.rglob("*")):
        parts = path.relative_to(src).parts
        if path.suffix.lower() not in VIDEO_SUFFIXES or any(part[0] == "." for part in parts):
            continue
        named = _CLIP.fullmatch(path.name)
        label = named["label"] if named else path.parent.name
        if not named and (len(parts) == 1 or label.lower() in _PART_FOLDERS):
            continue
        clips = found.setdefault(canonical_class(label), {})
        first = clips.setdefault(path.name, path)
        if first != path and not filecmp.cmp(first, path, shallow=False):
            raise DataError(f"{first} and {path} are two clips of one class and name: rename one")
    return found


def _bring(source: Path, target: Path, mode: str) -> None:
    if target.exists():
        if target.stat().st_size != source.stat().st_size:
            raise DataError(f"{target} is another file than {source}: move it away and run again")
        return
    source = source.resolve()
    with _whole(target) as temporary:
        if mode == "copy":
            shutil.copyfile(source, temporary)
            return
        try:
            os.link(source, temporary) if mode == "link" else os.symlink(source, temporary)
        except OSError as error:
            raise DataError(f"can't {mode} {source} to {target} ({error.strerror}): use --copy") from error


def describe_missing(root: str | Path, classes: Iterable[str]) -> list[str]:
    """Says what UCF-101 has and a folder has not: a line for each class that is not complete.

    Each class of UCF-101 has the groups g01 to g25 of at least four clips, and how many clips `CLIP_COUNTS`
    knows. Classes that are not UCF-101's are left out.
    """
    lines = []
    for label in classes:
        if label not in UCF101_CLASSES:
            continue
        found = filter(None, (_CLIP.fullmatch(path.name) for path in Path(root, label).glob("v_*")))
        present = {(int(clip["group"]), int(clip["clip"])) for clip in found}
        groups = {group for group, _ in present}
        needed = {(group, clip) for group in groups for clip in range(1, FEWEST_CLIPS + 1)}
        missing = [f"g{group:02d}" for group in range(1, GROUPS + 1) if group not in groups]
        missing += [f"g{group:02d}_c{clip:02d}" for group, clip in sorted(needed - present)]
        known = CLIP_COUNTS.get(label)
        if missing or (known and len(present) < known):
            of_known = f" of {known}" if known else ""
            what = "all" if not present else " ".join(missing) or "some"
            lines.append(f"{label} has {len(present)}{of_known} clips, lacks {what}")
    return lines


# Published lists


def check_lists(root: str | Path, lists: str | Path, classes: Iterable[str] | None = None) -> pd.DataFrame:
    """Compares the official splits, derived from group numbers, with UCF-101's published list files.

    Args:
        root: folder of class folders.
        lists: folder with trainlist01.txt and testlist01.txt to those of 03.
        classes: class folders to compare; None for all in `root`.

    Returns:
        One row a difference: split, clip_name, difference. Validation clips count as training clips.

    Raises:
        DataError: a list file is missing.
    """
    clips = scan_clips(root, classes)
    there = {name.lower(): name for name in clips["clip_name"]}
    differences = []
    for kind in TEST_GROUPS:
        listed = _read_lists(Path(lists), kind)
        derived = make_split(listed[listed["label"].isin(clips["label"])], kind)
        wrong = derived[(derived["part"] == "test") != (derived["listed"] == "test")]
        names = {name.lower(): name for name in derived["clip_name"]}
        differences += [(kind, row.clip_name, f"listed for {row.listed}, derived {row.part}")
                        for row in wrong.itertuples()]
        differences += [(kind, names[key], "listed, but not here") for key in sorted(names.keys() - there)]
        differences += [(kind, there[key], "here, but not listed") for key in sorted(there.keys() - names)]
    return pd.DataFrame(differences, columns=["split", "clip_name", "difference"])


def _read_lists(folder: Path, kind: str) -> pd.DataFrame:
    """The clips of one pair of list files, with the column `listed`: train or test."""
    rows = []
    for part in ("train", "test"):
        path = folder / f"{part}list0{kind[-1]}.txt"
        if not path.is_file():
            raise DataError(f"no {path}: name the folder with UCF-101's trainlist01.txt to testlist03.txt")
        for line in filter(None, map(str.strip, path.read_text().splitlines())):
            name = line.split()[0].rsplit("/", 1)[-1]
            label = canonical_class(line.split("/")[0])
            rows.append((name, f"/{label}/{name}", label, group_of(name), part))
    return pd.DataFrame(rows, columns=[*COLUMNS, "listed"])


# The command line


def _parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument("--root", type=Path, default=UCF101_ROOT, help="folder of class folders")
    classes = argparse.ArgumentParser(add_help=False)
    classes.add_argument("--classes", nargs="+", default=CLASSES, help="class names, or all")
    parser = argparse.ArgumentParser(description="Gets UCF-101 clips and splits them.")
    commands = parser.add_subparsers(dest="command", required=True)
    fetching = commands.add_parser("fetch", parents=[root, classes], help="download only the wanted clips")
    fetching.add_argument("--url", default=DEFAULT_URL)
    fetching.add_argument("--workers", type=int, default=4, help="clips at the same time")
    importing = commands.add_parser("import", parents=[root, classes], help="use a local copy")
    importing.add_argument("--from", dest="source", type=Path, required=True, help="folder of the copy")
    modes = importing.add_mutually_exclusive_group()
    for mode in ("link", "copy", "reference"):
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="link")
    splitting = commands.add_parser("splits", parents=[root, classes], help="write the split CSVs")
    splitting.add_argument("--kind", choices=KINDS, default="official1")
    splitting.add_argument("--lists", type=Path, help="folder with UCF-101's published list files")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command line: an error is one line and exit status 1."""
    options = _parser().parse_args(arguments)
    run = {"fetch": _run_fetch, "import": _run_import, "splits": _run_splits}
    try:
        run[options.command](options)
    except (DataError, ValueError, OSError) as error:
        raise SystemExit(f"ucf101: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("ucf101: stopped; run again to go on, finished clips are kept") from None


def _wanted(options: argparse.Namespace) -> list[str] | None:
    return None if "all" in options.classes else options.classes


def _run_fetch(options: argparse.Namespace) -> None:
    clips = fetch(_wanted(options), options.root, options.url, options.workers)
    print(f"{len(clips)} clips in {options.root}")


def _run_import(options: argparse.Namespace) -> None:
    clips = import_tree(options.source, options.root, _wanted(options), options.mode)
    print(f"{len(clips)} clips in {options.root}")
    for line in describe_missing(options.root, sorted({path.parent.name for path in clips})):
        print(line)


def _run_splits(options: argparse.Namespace) -> None:
    folder = options.root / "splits"
    kept = split_paths(folder)["train"].exists()
    ensure_splits(options.root, folder, options.kind, _wanted(options))
    print(f"{'kept as they were' if kept else f'written ({options.kind})'}: the split CSVs in {folder}")
    print_split(folder)
    if options.lists:
        differences = check_lists(options.root, options.lists, _wanted(options))
        print("the same as the published lists" if differences.empty else differences.to_string(index=False))


if __name__ == "__main__":
    main()
