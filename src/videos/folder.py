"""What a folder of clips holds: classes, groups, parts, and the files that are no clips of a class."""

from __future__ import annotations

import difflib
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from config import VIDEO_SUFFIXES, quoted_list

pd.set_option("mode.string_storage", "python")  # with pyarrow, where it is installed, names could be UTF-8 alone

PARTS = ("train", "val", "test")
LOOSE = "a video in no class folder"
COLUMNS = ["clip_name", "clip_path", "label", "group"]
PART_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
                "test": "test", "testing": "test"}
LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "#recycle", "lost+found",
             "system volume information"}


@dataclass(frozen=True)
class Folder:
    """A folder of clips, as it was found.

    Attributes:
        clips: one row per clip, sorted by path: clip_name, clip_path (below the root, beginning with `/`), label,
            group, and part: `train`, `val` or `test` where the folder is split, else empty.
        others: path (below the root) and reason of every file or folder that is not used, but for hidden files, what
            systems leave behind, and what is no video beside the class folders.
        notes: what was recognised, in words.
    """

    clips: pd.DataFrame
    others: pd.DataFrame
    notes: list[str]


# ---------------------------------------------------------------- names

def group_of(name: str) -> str:
    """The group in a clip's name: `g07` of `v_PullUps_g07_c04.avi`; the stem where the name has none."""
    stem = PurePosixPath(name).stem
    found = re.search(r"_(g\d+)_c\d+$", stem)
    return found[1] if found else stem


def has_groups(clips: pd.DataFrame) -> bool:
    """Whether any clip is in a group other than its own name's; where none is, leakage can't be checked."""
    return any(group.rsplit("/", 1)[-1] != PurePosixPath(name).stem
               for name, group in clips[["clip_name", "group"]].to_numpy())


def match_classes(wanted: Iterable[str], there: Iterable[str]) -> list[str]:
    """The names in `there` of wanted classes, in whatever case and Unicode form these are given, in their order.

    Raises:
        ValueError: a class that is not there, or that two folders could be.
    """
    wanted, there = list(wanted), sorted(there)
    plain = {name: unicodedata.normalize("NFC", name).casefold() for name in (*there, *wanted)}
    found = []
    for name in wanted:
        same = [name] if name in there else [its for its in there if plain[its] == plain[name]]
        if len(same) > 1:
            raise ValueError(f"class {name}: {' and '.join(same)} differ by case alone: name one exactly")
        if not same:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"no class {name}: {hint}there are CLASSES={quoted_list(there)}; put a name that has "
                             "blanks into quotes")
        found += [its for its in same if its not in found]
    return found


# ---------------------------------------------------------------- what lies in a folder

def find_clips(root: str | Path) -> Folder:
    """Finds the clips below `root`.

    The class is the first sub-folder, at whatever depth the clip lies below it; where the first sub-folders are parts
    (train, val or validation, test), it is the one below, and the part is kept. The group is the one in the clip's name
    (`_gNN_cNN`), else the sub-folder of the class that the clip is in, else the clip is its own. `splits`, hidden
    files and folders, and what systems leave behind are passed over.

    Raises:
        FileNotFoundError: `root` is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: name a folder with one sub-folder of clips per class")
    videos, others = _sorted_out(root)
    parts = _part_folders({video.parts[0] for video in videos if len(video.parts) > 1})
    rows = [_clip(video, parts) for video in videos]
    others += [(f"/{video}", LOOSE) for video, row in zip(videos, rows, strict=True) if not row]
    others += [(f"/{name}", "a folder without videos") for name in _other_folders(root, {v.parts[0] for v in videos})]
    clips = pd.DataFrame(filter(None, rows), columns=[*COLUMNS, "part"]).sort_values("clip_path", ignore_index=True)
    notes = [f"{', '.join(parts)} are taken for parts of a split"] if parts else []
    if parts and (missing := [part for part in PARTS if part not in parts.values()]):
        notes.append(f"the folder has no {' and '.join(missing)}: taken from the training part in whole groups")
    if (nested := clips["clip_path"].str.count("/") > (3 if parts else 2)).any():
        notes.append(f"{nested.sum()} clips lie in sub-folders of their class, which are taken for groups")
    return Folder(clips, pd.DataFrame(others, columns=["path", "reason"]), notes)


def scan_folder(root: str | Path, classes: Iterable[str] | None = None) -> Folder:
    """What `find_clips` finds, of `classes` or of all classes.

    Raises:
        FileNotFoundError: `root` is missing, or has no class folder with clips.
        ValueError: fewer than two classes, an unknown class, or clips whose class can't be told.
    """
    found = find_clips(root)
    clips = found.clips
    if clips.empty:
        _explain_emptiness(Path(root), found)
    there = set(clips["label"])
    if len(there) == 1:
        _explain_wrapping(Path(root), clips)
    if classes is None and not clips["part"].any() and all(_half_split(clips)):
        parts, odd = _half_split(clips)
        raise ValueError(f"{root}: {', '.join(parts)} look like parts of a split, but beside them, or twice, lies "
                         f"{', '.join(odd)}: move that away; if all of these are classes, name them: "
                         f"CLASSES={quoted_list(sorted(there))}")
    try:
        chosen = there if classes is None else set(match_classes(classes, there))
    except ValueError as error:
        raise ValueError(f"{root}: {error}") from None
    if len(chosen) < 2:
        raise ValueError(f"{', '.join(sorted(chosen)) or 'no class'} is not enough to classify: name at least two "
                         f"classes (in {root} there are: {', '.join(sorted(there))})")
    return replace(found, clips=clips[clips["label"].isin(chosen)].reset_index(drop=True))


def scan_clips(root: str | Path, classes: Iterable[str] | None = None) -> pd.DataFrame:
    """The clips of `scan_folder`, without parts; errors as there."""
    return scan_folder(root, classes).clips[COLUMNS]


def _sorted_out(root: Path) -> tuple[list[PurePosixPath], list[tuple[str, str]]]:
    """Videos below a folder, relative to it and sorted; and the other things, each with its reason."""
    videos, others = [], []
    for path in _visible(root):
        below = PurePosixPath(path.relative_to(root).as_posix())
        if not _is_plain(str(below)):
            shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(below))
            others.append((f"/{shown}", "a name with a line break, or that is not UTF-8: rename it"))
        elif path.suffix.lower() not in VIDEO_SUFFIXES:
            if len(below.parts) == 1 and path.is_file():
                continue  # lists and notes beside the class folders
            reason = ("not a video's suffix" if path.is_file() else
                      "a folder that can't be read" if path.is_dir() else "a link to nothing")
            others.append((f"/{below}", reason))
        elif path.is_dir():
            others.append((f"/{below}", "a folder"))
        else:
            videos.append(below)
    return sorted(videos), sorted(others)


def _is_plain(name: str) -> bool:
    """Whether a name can be written into a table."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(sign in name for sign in "\r\n\0")


def _visible(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Files below a folder, folders without any, and links to nothing; links to folders are followed once."""
    if (real := folder.resolve()) in seen:
        return
    try:
        entries = sorted(folder.iterdir())
    except PermissionError:
        entries = []
        yield folder
    for path in entries:
        if path.name.startswith(".") or path.name.lower() in LEFTOVERS:
            continue
        if not path.is_dir():
            yield path
        elif seen or path.name != "splits" or not (path / "train.csv").is_file():
            if path.suffix.lower() in VIDEO_SUFFIXES and not any(path.iterdir()):
                yield path
            yield from _visible(path, seen | {real})


def _other_folders(root: Path, known: set[str]) -> list[str]:
    """Sub-folders, but for those that are known, or passed over."""
    return [path.name for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."
            and path.name.lower() not in LEFTOVERS | {"splits"} and path.name not in known]


def _part_folders(first: set[str]) -> dict[str, str]:
    """Name of each first sub-folder that holds videos to its part, where all of them are parts, one of them train."""
    parts = {name: PART_FOLDERS.get(name.lower(), "") for name in sorted(first)}
    counted = Counter(parts.values())
    return parts if counted["train"] and len(parts) > 1 and not counted[""] and max(counted.values()) == 1 else {}


def _half_split(clips: pd.DataFrame) -> tuple[list[str], list[str]]:
    """First sub-folders that look like parts of a split, train among them, and those beside them that spoil it."""
    nested = {PurePosixPath(path).parts[1] for path in clips["clip_path"] if path.count("/") > 2}
    parts = sorted(name for name in nested if name.lower() in PART_FOLDERS)
    kinds = [PART_FOLDERS[name.lower()] for name in parts]
    if "train" not in kinds or len(set(kinds)) < 2:
        return [], []
    return parts, sorted(set(clips["label"]) - set(parts)) or parts


def _clip(video: PurePosixPath, parts: dict[str, str]) -> tuple[str, ...] | None:
    """A clip's row; None where it is in no class folder."""
    folders = video.parts[bool(parts):-1]
    if not folders:
        return None
    part, group = parts.get(video.parts[0], ""), group_of(video.name)
    if group == video.stem:
        group = "/".join(folders[1:]) or (f"{part}/{group}" if part else group)
    return video.name, f"/{video}", folders[0], group, part


def _explain_emptiness(root: Path, found: Folder) -> None:
    """Raises what is to be said of a folder without a clip in a class folder."""
    loose = found.others.loc[found.others["reason"] == LOOSE, "path"]
    parts = _part_folders({PurePosixPath(path).parts[1] for path in loose if path.count("/") > 1})
    if parts:
        train = next(name for name, part in parts.items() if part == "train")
        raise ValueError(f"{root}: {', '.join(parts)} look like parts of a split, but their clips lie in no class "
                         f"folder: put each into the sub-folder of its class, such as {train}/<class>/")
    where = f"its {len(loose)} videos lie in none" if len(loose) else f"each holding {' '.join(VIDEO_SUFFIXES)} files"
    raise FileNotFoundError(f"no clips in {root}: it needs one sub-folder per class; {where}")


def _explain_wrapping(root: Path, clips: pd.DataFrame) -> None:
    """Raises what is to be said where the classes lie one folder deeper."""
    inner = sorted({PurePosixPath(path).parts[2] for path in clips["clip_path"] if path.count("/") > 2})
    if len(inner) > 1 and not clips["part"].any():
        only = clips["label"].iloc[0]
        raise ValueError(f"{root} has one class alone, {only}, with the sub-folders {', '.join(inner[:5])}: if these "
                         f"are the classes, name DATASET={shlex.quote(str(root / only))}")
