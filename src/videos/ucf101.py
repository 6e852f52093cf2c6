"""UCF-101 in one folder per class: fetched from the public zip, or imported from a local copy.

UCF-101: Soomro, Zamir, Shah, CRCV-TR-12-01, 2012. Of the zip only the wanted members are read.
"""

import filecmp
import os
import re
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import urllib3
from remotezip import RemoteZip, RemoteZipError
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from config import UCF101_ROOT, VIDEO_SUFFIXES
from files import atomic_path, remove_abandoned
from videos.folder import LOOSE, PART_FOLDERS, Folder, find_clips, match_classes

DEFAULT_URL = "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip"
TIMEOUT = (10, 60)  # seconds to connect, and without a byte
PASSING = (408, 429, *range(500, 600))  # answers that may be others a little later
RETRIES = Retry(total=4, backoff_factor=1, status_forcelist=PASSING, raise_on_status=False)  # after 0, 2, 4 and 8 s
CHUNK = 1 << 18  # bytes

UCF101_CLASSES = (
    "ApplyEyeMakeup", "ApplyLipstick", "Archery", "BabyCrawling", "BalanceBeam", "BandMarching", "BaseballPitch",
    "Basketball", "BasketballDunk", "BenchPress", "Biking", "Billiards", "BlowDryHair", "BlowingCandles",
    "BodyWeightSquats", "Bowling", "BoxingPunchingBag", "BoxingSpeedBag", "BreastStroke", "BrushingTeeth",
    "CleanAndJerk", "CliffDiving", "CricketBowling", "CricketShot", "CuttingInKitchen", "Diving", "Drumming", "Fencing",
    "FieldHockeyPenalty", "FloorGymnastics", "FrisbeeCatch", "FrontCrawl", "GolfSwing", "Haircut", "Hammering",
    "HammerThrow", "HandstandPushups", "HandstandWalking", "HeadMassage", "HighJump", "HorseRace", "HorseRiding",
    "HulaHoop", "IceDancing", "JavelinThrow", "JugglingBalls", "JumpingJack", "JumpRope", "Kayaking", "Knitting",
    "LongJump", "Lunges", "MilitaryParade", "Mixing", "MoppingFloor", "Nunchucks", "ParallelBars", "PizzaTossing",
    "PlayingCello", "PlayingDaf", "PlayingDhol", "PlayingFlute", "PlayingGuitar", "PlayingPiano", "PlayingSitar",
    "PlayingTabla", "PlayingViolin", "PoleVault", "PommelHorse", "PullUps", "Punch", "PushUps", "Rafting",
    "RockClimbingIndoor", "RopeClimbing", "Rowing", "SalsaSpin", "ShavingBeard", "Shotput", "SkateBoarding", "Skiing",
    "Skijet", "SkyDiving", "SoccerJuggling", "SoccerPenalty", "StillRings", "SumoWrestling", "Surfing", "Swing",
    "TableTennisShot", "TaiChi", "TennisSwing", "ThrowDiscus", "TrampolineJumping", "Typing", "UnevenBars",
    "VolleyballSpiking", "WalkingWithDog", "WallPushups", "WritingOnBoard", "YoYo",
)
CLIP_COUNTS = {"PullUps": 100, "Punch": 160, "PushUps": 102}
GROUPS, FEWEST_CLIPS = 25, 4  # groups of each class; clips that each group has at least

_CLIP = re.compile(r"v_(?P<label>\w+)_g(?P<group>\d+)_c(?P<clip>\d+)"
                   rf"(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))})", re.IGNORECASE)
_BY_LOWER_CASE = {name.lower(): name for name in UCF101_CLASSES}
# A body that broke off, or isn't what the directory says: what `RETRIES` doesn't see.
_BAD_BODY = (urllib3.exceptions.HTTPError, zipfile.BadZipFile, zlib.error, EOFError)


class DataError(RuntimeError):
    """What stands in the way of the data, and the cure, in one line."""


def canonical_class(name: str) -> str:
    """UCF-101's folder name of a class, whatever its case (`HandStandPushups`); another name as it is."""
    return _BY_LOWER_CASE.get(name.lower(), name)


def _choose(found: dict[str, dict], classes: Iterable[str] | None, out: Path, place: str | Path) -> dict[Path, object]:
    """The place in `out` of each clip of some classes, to where it comes from; `found` is by class and name."""
    if not found:
        raise DataError(f"{place} has no clips: it needs v_<Class>_gNN_cNN.avi files, or one folder per class")
    try:
        wanted = set(found) if classes is None else match_classes(classes, found)
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None
    remove_abandoned(out)
    return {out / label / name: clip for label in sorted(wanted) for name, clip in found[label].items()}


def _is_there(path: Path, size: int, source: str | Path) -> bool:
    """Whether a clip, `size` bytes in its source, is at its place already."""
    if path.exists() and (found := path.stat().st_size) != size:
        raise DataError(f"{path} is another file than in {source} ({found} bytes, not {size}): move it away and run "
                        "again")
    return path.exists()


# ---------------------------------------------------------------- fetching

def fetch(classes: Iterable[str] | None, out: str | Path = UCF101_ROOT, url: str = DEFAULT_URL,
          workers: int = 4) -> list[Path]:
    """Downloads the clips of some classes by range reads of a remote zip, into `<out>/<Class>/`; gives all their paths.

    A clip gets its name only when it is whole and its CRC is right. Clips that are there are not fetched again, so an
    interrupted run is continued by running it again.

    Args:
        classes: names, in any case; None for all that the archive has.
        url: a zip whose members are called `v_<Class>_gNN_cNN.avi`, in whatever folder.
        workers: clips read at the same time; each worker reads the archive's directory once.

    Raises:
        DataError: no connection, a server without ranges, a class or clip that the archive lacks, an archive that is
            damaged or changes meanwhile, a full disk, another file at a clip's place.
    """
    out = Path(out)
    with _session(url, workers) as session:
        clips = _choose(_retrying(url, _read_directory, session, url), classes, out, url)
        todo = {path: info for path, info in clips.items() if not _is_there(path, info.file_size, url)}
        size = sum(info.file_size for info in todo.values())
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"{len(todo)} clips") as bar:
            _download(session, url, todo, workers, bar)
    if lacking := describe_missing(out, UCF101_CLASSES if classes is None else {path.parent.name for path in clips}):
        raise DataError(f"fetched {len(clips)} clips, but {url} is not complete: {'; '.join(lacking)}")
    return sorted(clips)


def _session(url: str, workers: int) -> requests.Session:
    """A session that tries again, and accepts only ranges, all of one unchanged file."""
    first = {}

    def check_response(response: requests.Response, **_) -> None:
        status = response.status_code
        if response.is_redirect:
            return
        ranged = "Content-Range" in response.headers
        version = response.headers.get("Content-Range", "").rsplit("/")[-1], response.headers.get("ETag")
        if status == 416 or (ranged and first.setdefault("version", version) != version):
            raise DataError(f"{url} changed while it was read: run again, finished clips are kept")
        another = "give the address of another copy with --url, or import a local copy"
        if status >= 400:
            cure = "run again later, finished clips are kept" if status in PASSING else another
            raise DataError(f"{url}: the server answers {status} {response.reason}: {cure}")
        if not ranged:
            raise DataError(f"{url}: the server doesn't serve ranges, only the whole archive: {another}")

    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(check_response)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=RETRIES, pool_maxsize=workers))
    return session


def _read_directory(session: requests.Session, url: str) -> dict[str, dict[str, zipfile.ZipInfo]]:
    """The archive's clips by class and name."""
    members = {}
    with RemoteZip(url, session=session, timeout=TIMEOUT) as archive:
        for info in archive.infolist():
            name = info.filename.rsplit("/", 1)[-1]
            if found := _CLIP.fullmatch(name):
                members.setdefault(canonical_class(found["label"]), {})[name] = info
    return members


def _download(session: requests.Session, url: str, clips: dict[Path, zipfile.ZipInfo], workers: int, bar: tqdm) -> None:
    """Downloads clips; the first failure ends it, when the clips that are under way have ended."""
    own = threading.local()  # each worker's archive, until a read of it fails

    def save(path: Path) -> None:
        archive = vars(own).pop("archive", None) or RemoteZip(url, session=session, timeout=TIMEOUT)
        with atomic_path(path) as temporary, archive.open(clips[path]) as source, open(temporary, "wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        own.archive = archive
        bar.update(clips[path].file_size)

    with ThreadPoolExecutor(workers) as pool:  # whose map cancels what is left when one fails
        list(pool.map(lambda path: _retrying(path.name, save, path), clips))


def _retrying(name: str, action: Callable, *arguments):
    """Calls an action, again after a pause where a body was bad; requests are tried again by the session itself."""
    retries = RETRIES
    while True:
        try:
            return action(*arguments)
        except (RemoteZipError, *_BAD_BODY) as error:
            if retries.total == 0 or isinstance(error, RemoteZipError):
                raise DataError(_explain(name, error)) from error
            retries = retries.increment("GET", error=error)
            retries.sleep()


def _explain(name: str, error: Exception) -> str:
    if isinstance(error, RemoteZipError) and error.__context__:
        error = error.__context__
    if isinstance(error, requests.exceptions.SSLError):
        return (f"{name}: the server's certificate can't be verified: name your proxy's certificate in "
                "REQUESTS_CA_BUNDLE, or import a local copy")
    if isinstance(error, (requests.RequestException, urllib3.exceptions.HTTPError)):
        return (f"{name}: no connection ({type(error).__name__}): check network and proxy and run again, "
                "finished clips are kept; or import a local copy")
    return f"{name}: {error}: the archive is damaged or has changed: run again, or give another with --url"


# ---------------------------------------------------------------- importing

def import_tree(src: str | Path, out: str | Path, classes: Iterable[str] | None, mode: str = "link") -> list[Path]:
    """Brings a local copy of UCF-101, or a folder of other videos, into `<out>/<Class>/`; gives all paths there.

    A clip's class is the one in its name (`v_<Class>_gNN_cNN.avi`) or else the folder that it is in, at any depth. So
    the official tree, the zip's flat folder and `train/`, `val/`, `test/` with class folders all do; videos of no class
    and split CSVs are not brought along.

    Args:
        classes: names; None for all that are found.
        mode: `link` (hard links), `copy`, or `reference` (symbolic links).

    Raises:
        DataError: no such folder or class, no links possible, a full disk, another file at a clip's place.
    """
    clips = _choose(_find_clips(Path(src)), classes, Path(out), src)
    for target, source in tqdm(clips.items(), unit="clip", desc=mode):
        if not _is_there(target, source.stat().st_size, source.parent):
            _bring(source.resolve(), target, mode)
    return sorted(clips)


def _find_clips(src: Path) -> dict[str, dict[str, Path]]:
    """The videos below a folder, by class and name."""
    if not src.is_dir():
        raise DataError(f"no folder {src}: name the folder of your copy")
    root, rows = _unwrapped(src)
    found = {}
    loose = rows.others.loc[rows.others["reason"] == LOOSE, "path"]
    for clip_path, folder in (*rows.clips[["clip_path", "label"]].to_numpy(), *((path, "") for path in loose)):
        path = root / clip_path.lstrip("/")
        named = _CLIP.fullmatch(path.name)
        if not named and folder.lower() in PART_FOLDERS:  # beside folders that are no parts
            folder = path.parent.name if clip_path.count("/") > 2 else ""
        if label := named["label"] if named else folder:
            clips = found.setdefault(canonical_class(label), {})
            first = clips.setdefault(path.name, path)
            if first != path and not filecmp.cmp(first, path, shallow=False):
                raise DataError(f"{first} and {path} are two clips of one class and name: rename one")
    return found


def _unwrapped(src: Path) -> tuple[Path, Folder]:
    """The folder whose sub-folders are classes or parts: `src` itself, or the one that alone lies in it, and so on."""
    found = find_clips(src)
    labels = found.clips["label"].unique()
    if len(labels) == 1 and (found.clips["clip_path"].str.count("/") > 2).all() and not found.clips["part"].any():
        return _unwrapped(src / labels[0])
    return src, found


def _bring(source: Path, target: Path, mode: str) -> None:
    with atomic_path(target) as temporary:
        if mode == "copy":
            shutil.copyfile(source, temporary)
            return
        try:
            os.link(source, temporary) if mode == "link" else os.symlink(source, temporary)
        except OSError as error:
            raise DataError(f"can't {mode} {source} to {target} ({error.strerror}): use --copy") from error


def describe_missing(root: str | Path, classes: Iterable[str]) -> list[str]:
    """What UCF-101 has and a folder has not: one line per class of UCF-101 that is not complete, as far as is known.

    Each class has the groups g01 to g25 of at least four clips; the exact count is known of those in `CLIP_COUNTS`.
    """
    lines = []
    for label in sorted(set(classes) & set(UCF101_CLASSES)):
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
