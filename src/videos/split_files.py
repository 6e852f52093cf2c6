"""The CSVs of a split: the user's own, read as they are; or made here, with a record of what they were made of."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from files import atomic_path, read_json, write_json
from videos.folder import COLUMNS, LOOSE, PARTS, Folder, group_of
from videos.splits import check_leakage, group_pairs, make_split, split_hash, split_parts


class Settled(NamedTuple):
    """A split that is in use: the CSV of each part, its kind (`given` where the CSVs are the user's), and lines on
    what changed."""

    paths: dict[str, Path]
    kind: str
    lines: list[str]


# ---------------------------------------------------------------- reading and writing

def split_paths(folder: str | Path) -> dict[str, Path]:
    """Where the CSV of each part is in a splits folder."""
    return {name: Path(folder) / f"{name}.csv" for name in PARTS}


def has_own_csvs(folder: str | Path) -> bool:
    """Whether a folder has CSVs of the user's: none were made here."""
    return any(path.exists() for path in split_paths(folder).values()) and not _record_path(folder).exists()


def _record_path(folder: str | Path) -> Path:
    return Path(folder) / "split.json"


def write_split(split: pd.DataFrame, folder: str | Path) -> dict[str, Path]:
    """Writes what `make_split` returns as train.csv, val.csv and test.csv, all whole before the first is replaced."""
    paths = split_paths(folder)
    with ExitStack() as stack:
        for name, part in split_parts(split).items():
            part.to_csv(stack.enter_context(atomic_path(paths[name])), index=False)
    return paths


def read_split(folder: str | Path) -> dict[str, pd.DataFrame]:
    """One table per part, as `read_part` gives it, of the three CSVs in a splits folder; errors as `read_part`."""
    paths = split_paths(folder)
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: put it there, or remove the other "
                                "split CSVs to have all three made anew")
    return {name: read_part(path) for name, path in paths.items()}


def read_part(path: str | Path) -> pd.DataFrame:
    """One CSV of a split: clip_name, clip_path, label, group, all text; missing names and groups come from the paths.

    Read as spreadsheets write them: columns apart by `,` or `;`, with or without a byte order mark, with `/` or `\\` in
    paths.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it has no clip_path or label, or no row, a row without label, or a clip twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split file; python tools/data.py split FOLDER makes one, and says "
                                "where")
    part = _read_table(path)
    if not {"clip_path", "label"} <= set(part.columns) or part.empty:
        raise ValueError(f"{path} needs the columns clip_path and label, and at least one row: mend it, or "
                         "remove the three split CSVs to have them made anew")
    if (empty := (part["label"] == "") | (part["clip_path"] == "")).any():
        raise ValueError(f"{path}: line {empty.argmax() + 2} has no clip_path or no label: mend it")
    part["clip_path"] = "/" + part["clip_path"].map(_with_slashes).str.lstrip("/")
    if (twice := part["clip_path"].duplicated()).any():
        raise ValueError(f"{path}: {part['clip_path'][twice].iloc[0]} is listed twice: keep it once")
    names = part["clip_path"].str.rsplit("/", n=1).str[1]
    part = pd.DataFrame({"clip_name": names, "group": "", **part})
    return part.assign(group=part["group"].where(part["group"] != "", names.map(group_of)))[COLUMNS]


def _read_table(path: Path) -> pd.DataFrame:
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        separator = ";" if ";" in header and "," not in header else ","
        part = pd.read_csv(path, sep=separator, skipinitialspace=f"{separator} " in header, dtype=str,
                           keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (UnicodeError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: can't be read as a table ({error}): save it as CSV in UTF-8") from error
    return part.rename(columns=lambda name: str(name).strip())


def _with_slashes(path: str) -> str:
    """A path as it is written on Windows, with slashes; a name that has a backslash keeps it."""
    return path if "/" in path else path.replace("\\", "/")


# ---------------------------------------------------------------- the user's own

def with_given_parts(found: Folder, folder: str | Path) -> Folder:
    """What was found, with the labels, groups and parts that the user's three CSVs in `folder` give; clips that they
    don't list have no part. Paths are found in any Unicode form and, where that tells one file, in any case.

    Raises:
        FileNotFoundError: clips of the CSVs are not there; all of them are listed.
        ValueError: as `read_split`, or a clip is in more than one part.
    """
    parts = read_split(folder)
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    loose = found.others.loc[found.others["reason"] == LOOSE, "path"]
    there = [*found.clips["clip_path"], *loose]
    plain = Counter(map(_plain, there))
    by_plain = {_plain(path): path for path in there if plain[_plain(path)] == 1}
    known = set(there)
    paths = [path if path in known else by_plain.get(_plain(path), "") for path in rows["clip_path"]]
    if gone := [path for path, its in zip(rows["clip_path"], paths, strict=True) if not its]:
        raise FileNotFoundError(_gone(gone, folder))
    rows = rows.assign(clip_path=paths, clip_name=[path.rsplit("/", 1)[1] for path in paths])
    check_leakage({name: rows.loc[rows["part"] == name, COLUMNS] for name in PARTS}, folder)
    others = found.clips[~found.clips["clip_path"].isin(paths)].assign(part="")
    clips = pd.concat([rows[[*COLUMNS, "part"]], others]).sort_values("clip_path", ignore_index=True)
    return replace(found, clips=clips, others=found.others[~found.others["path"].isin(paths)],
                   notes=[f"the split is the one in {folder}"])


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _gone(clips: list[str], folder: str | Path) -> str:
    listed = "\n  ".join(sorted(clips))
    return (f"{len(clips)} clips of the split in {folder} are not there, or can't be used:\n  {listed}\nget them, take "
            "these rows out, or move the three CSVs away to have a split made anew")


def _compared(parts: dict[str, pd.DataFrame], contents: Mapping[str, str], folder: str | Path) -> list[str]:
    """Lines on clips that a user's split has not; those that it has in vain are an error."""
    listed = set(pd.concat(parts.values())["clip_path"])
    if gone := listed - contents.keys():
        raise FileNotFoundError(_gone(list(gone), folder))
    spare = sorted(contents.keys() - listed)
    return [f"{len(spare)} clips are in none of the CSVs in {folder}, and left out (first {spare[0]}): add rows for "
            "them, or move the three CSVs away to have a split made anew"] if spare else []


# ---------------------------------------------------------------- made here, and extended

def ensure_splits(clips: pd.DataFrame, folder: str | Path, kind: str, seed: int = 42) -> Settled:
    """The split in `folder`, made of the clips where there is none yet.

    A split that was made here is extended where clips were added, and those that are gone are taken out: contents, and
    groups, that ever had a part keep it. Three CSVs of the user's are used as they are, and never written.

    Args:
        clips: with the columns of a split's CSV, sha256 and, for the kind `given`, part.
        kind, seed: as `make_split`, where a split is made.

    Raises:
        FileNotFoundError: clips of the user's CSVs are not among `clips`; all of them are listed.
        ValueError: as `make_split` and `read_split`.
    """
    paths, record = split_paths(folder), _read_record(folder)
    contents = dict(zip(clips["clip_path"], clips["sha256"], strict=True))
    if not any(path.exists() for path in paths.values()):
        return _write(make_split(clips, kind, seed), clips, folder, kind, {}, [])
    if not record.get("unfinished"):
        parts = read_split(folder)
        if record.get("sha256") != split_hash(parts):
            changed = [f"the CSVs in {folder} were changed by hand, and are used as they are"] if record else []
            return Settled(paths, "given", changed + _compared(parts, contents, folder))
        if record["of"] == _identity(clips, kind):
            return Settled(paths, kind, [])
    if record["kind"] != kind:
        lines = [f"the split in {folder} was made anew: it was of the kind {record['kind']}"]
        return _write(make_split(clips, kind, seed), clips, folder, kind, {}, lines)
    had, how = record["had"], "extended: what had a part keeps it"
    try:
        split = make_split(clips, kind, seed, _parts_kept(clips, had, kind))
    except ValueError:
        split, had, how = make_split(clips, kind, seed), {}, "made anew, since too little of the old one is left"
    lines = [f"the clips changed ({_changes(record['clips'], contents)}); the split in {folder} was {how}"]
    return _write(split, clips, folder, kind, had, lines)


def _read_record(folder: str | Path) -> dict:
    record = read_json(_record_path(folder))
    seal = record.pop("seal", None)  # earlier versions wrote none
    if record and (not {"kind", "sha256", "of", "clips", "had"} <= record.keys() or seal not in (None, _seal(record))):
        raise ValueError(f"{_record_path(folder)}: not what a split was made of: move it and the CSVs beside it away "
                         "to have a split made anew")
    return record


def _write_record(folder: str | Path, record: dict) -> None:
    write_json(_record_path(folder), {**record, "seal": _seal(record)})


def _seal(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _identity(clips: pd.DataFrame, kind: str) -> str:
    """SHA-256 (hex) of everything that a split is made of, but for its seed."""
    rows = clips.reindex(columns=[*COLUMNS, "sha256", "part", "copy_of"]).sort_values("clip_path")
    return hashlib.sha256((kind + rows.to_json(orient="values")).encode()).hexdigest()


def _units(clips: pd.DataFrame, kind: str) -> pd.Series:
    """What is dealt out as a whole."""
    return clips["clip_path"] if kind == "random" else group_pairs(clips)


def _parts_kept(clips: pd.DataFrame, had: dict, kind: str) -> pd.Series:
    """The part that each clip keeps, or nothing, by clip_path: that of its content, or else of its group."""
    parts = clips["sha256"].map(had["contents"]).fillna(_units(clips, kind).map(had["units"])).fillna("")
    return pd.Series(parts.to_numpy(), clips["clip_path"])


def _changes(old: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How clips, clip_path to content, differ, in words."""
    gone, added = old.keys() - now.keys(), now.keys() - old.keys()
    left = Counter(old[path] for path in gone)
    moved = sum((left & Counter(now[path] for path in added)).values())
    counts = {"added": len(added) - moved, "moved or relabelled": moved, "removed": len(gone) - moved,
              "with other content": sum(now[path] != old[path] for path in now.keys() & old.keys())}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "their groups, parts or copies"


def _write(split: pd.DataFrame, clips: pd.DataFrame, folder: str | Path, kind: str, had: dict,
           lines: list[str]) -> Settled:
    """Writes the CSVs and their record; where that is interrupted, the record says so, and it is done again."""
    split = split.sort_values("clip_path").assign(sha256=clips.set_index("clip_path")["sha256"].reindex(
        sorted(clips["clip_path"])).to_numpy())
    contents = dict(zip(split["clip_path"], split["sha256"], strict=True))
    record = {"kind": kind, "sha256": split_hash(split_parts(split)), "of": _identity(clips, kind), "clips": contents,
              "had": {"contents": {**had.get("contents", {}), **dict(zip(split["sha256"], split["part"], strict=True))},
                      "units": {**had.get("units", {}), **dict(zip(_units(split, kind), split["part"], strict=True))}}}
    _write_record(folder, {**record, "unfinished": True})
    paths = write_split(split, folder)
    _write_record(folder, record)
    return Settled(paths, kind, lines)
