"""Splits of a folder of clips: official, by whole groups or random; folds; and the leakage check.

Clips of one group (`gNN` in `v_<Class>_gNN_cNN.avi`) share people and scene. Groups are numbered anew in each class, so
what must not be shared between two parts is the pair (label, group).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from config import VIDEO_SUFFIXES
from files import atomic_path

PARTS = ("train", "val", "test")
COLUMNS = ["clip_name", "clip_path", "label", "group"]
TEST_GROUPS = {"official1": range(1, 8), "official2": range(8, 15), "official3": range(15, 22)}
VAL_GROUPS = range(22, 26)
KINDS = (*TEST_GROUPS, "group", "random")
HELD_OUT = 0.125  # fraction of the clips of a class in each of val and test
NO_GROUPS = "no clip names a group (_gNN_cNN): each is its own, and leakage can't be checked"


# ---------------------------------------------------------------- clips and their groups

def group_of(name: str) -> str:
    """The group in a clip's name: `g07` of `v_PullUps_g07_c04.avi`; the stem where the name has none."""
    stem = Path(name).stem
    found = re.search(r"_(g\d+)_c\d+$", stem)
    return found[1] if found else stem


def has_groups(clips: pd.DataFrame) -> bool:
    """Whether any clip is in a group other than its own name's; where none is, leakage can't be checked."""
    return any(group != Path(name).stem for name, group in clips[["clip_name", "group"]].to_numpy())


def group_pairs(clips: pd.DataFrame) -> pd.Series:
    """The group of each clip, told apart between classes, in each of which groups are numbered anew."""
    return clips["label"] + "/" + clips["group"]


def scan_clips(root: str | Path, classes: Iterable[str] | None = None) -> pd.DataFrame:
    """The clips below `root`, which has one sub-folder per class: those of `classes`, or of all that hold a video.

    One row per clip, sorted by path: clip_name, clip_path (below `root`, beginning with `/`), label, group. `splits`,
    hidden folders and hidden files are left out.

    Raises:
        FileNotFoundError: `root` is missing, has no class folder with clips, or lacks a named class.
        ValueError: fewer than two classes.
    """
    if not Path(root).is_dir():
        raise FileNotFoundError(f"no folder {root}: name a folder with one sub-folder of clips per class")
    visible = (path for path in Path(root).glob("[!.]*/[!.]*")
               if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    rows = [(path.name, f"/{path.parent.name}/{path.name}", path.parent.name, group_of(path.name)) for path in visible]
    clips = pd.DataFrame(rows, columns=COLUMNS).query("label != 'splits'").sort_values("clip_path", ignore_index=True)
    there = set(clips["label"])
    if not there:
        raise FileNotFoundError(f"no clips in {root}: it needs one sub-folder per class, each holding "
                                f"{' '.join(VIDEO_SUFFIXES)} files")
    wanted = there if classes is None else set(classes)
    if missing := sorted(wanted - there):
        raise FileNotFoundError(f"{root} has no clips of {', '.join(missing)}: get them, or choose from the "
                                f"classes it has: {', '.join(sorted(there))}")
    if len(wanted) < 2:
        raise ValueError(f"{', '.join(sorted(wanted)) or 'no class'} is not enough to classify: name at "
                         f"least two classes (in {root} there are: {', '.join(sorted(there))})")
    return clips[clips["label"].isin(wanted)].reset_index(drop=True)


# ---------------------------------------------------------------- splits

def make_split(clips: pd.DataFrame, kind: str, seed: int = 42) -> pd.DataFrame:
    """The clips of `scan_clips`, sorted by path, with the column `part`: train, val or test, each with every class.

    `kind` is `official1|2|3` (UCF-101's test groups 1-7, 8-14 or 15-21; validation groups 22-25), `group` (75/12.5/12.5
    of each class in whole groups: val and test are within half of the class's largest group of their target, given
    enough groups) or `random` (75/12.5/12.5, stratified by class, groups ignored); the last two depend on `seed`, none
    on the order of rows. A kind that is unknown or can't be made of these clips is a ValueError.
    """
    clips = clips.sort_values("clip_path", ignore_index=True)
    if kind not in KINDS:
        raise ValueError(f"no split {kind!r}: there are {', '.join(KINDS)}")
    if kind in TEST_GROUPS:
        return clips.assign(part=_official_parts(clips, kind))
    return clips.assign(part=(_group_parts if kind == "group" else _random_parts)(clips, seed))


def _official_parts(clips: pd.DataFrame, kind: str) -> np.ndarray:
    strange = clips.loc[~clips["group"].str.fullmatch(r"g(?:0[1-9]|1\d|2[0-5])"), "clip_path"]
    if len(strange):
        raise ValueError(f"{kind} needs UCF-101's groups g01 to g25, which {len(strange)} clips do not name "
                         f"(first {strange.iloc[0]}): use SPLIT=group")
    number = clips["group"].str[1:].astype(int)
    part = np.select([number.isin(TEST_GROUPS[kind]), number.isin(VAL_GROUPS)], ["test", "val"], "train")
    for label, of_class in clips.assign(part=part).groupby("label"):
        if lacking := [name for name in PARTS if name not in set(of_class["part"])]:
            raise ValueError(f"{kind} leaves {label} without a clip for {' and '.join(lacking)} (it has groups "
                             f"{of_class['group'].min()} to {of_class['group'].max()}): get its other groups, or "
                             "use SPLIT=group")
    return part


def _group_parts(clips: pd.DataFrame, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    part = np.full(len(clips), "train", dtype=object)
    for label, of_class in clips.groupby("label", sort=True):
        sizes = of_class["group"].value_counts().sort_index()
        if len(sizes) < 3:
            raise ValueError(f"too few groups in {label}: it has {len(sizes)}, and needs 3 to be in train, "
                             "val and test: add groups, or use SPLIT=random")
        sizes = sizes.iloc[rng.permutation(len(sizes))]
        for name, kept in (("test", 2), ("val", 1)):
            held_out = _take_groups(sizes, HELD_OUT * len(of_class), most=len(sizes) - kept)
            part[of_class.index[of_class["group"].isin(held_out)]] = name
            sizes = sizes.drop(held_out)
    return part


def _take_groups(sizes: pd.Series, target: float, most: int) -> list[str]:
    """At most `most` groups, each bringing the number of clips nearer to the target; the smallest where none does."""
    taken, total = [], 0
    for group, size in sizes.items():
        if len(taken) < most and total + size / 2 < target:
            taken.append(group)
            total += size
    return taken or [sizes.idxmin()]


def _random_parts(clips: pd.DataFrame, seed: int) -> np.ndarray:
    label = clips["label"].to_numpy()
    try:
        _, rest = train_test_split(clips.index, test_size=2 * HELD_OUT, stratify=label, random_state=seed)
        val, test = train_test_split(rest, test_size=0.5, stratify=label[rest], random_state=seed)
    except ValueError as error:
        counts = clips["label"].value_counts()
        raise ValueError(f"too few clips for train, val and test: {counts.idxmin()} has {counts.min()}; give "
                         "every class at least 8") from error
    part = np.full(len(clips), "train", dtype=object)
    part[val], part[test] = "val", "test"
    return part


# ---------------------------------------------------------------- their files

def split_paths(folder: str | Path) -> dict[str, Path]:
    """Where the CSV of each part is in a splits folder."""
    return {name: Path(folder) / f"{name}.csv" for name in PARTS}


def split_parts(split: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One table per part, without the column `part`, of what `make_split` returns."""
    return {name: split.loc[split["part"] == name, COLUMNS].reset_index(drop=True) for name in PARTS}


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


def clip_file(root: str | Path, clip_path: str) -> Path:
    """The file of a split's `clip_path`, which begins with `/` and is relative to the root."""
    return Path(root) / clip_path.lstrip("/")


def read_part(path: str | Path) -> pd.DataFrame:
    """One CSV of a split: clip_name, clip_path, label, group, all text; missing names and groups come from the paths.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it has no clip_path or label, or no row.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such split file; make the splits with python tools/data.py split ROOT")
    try:
        part = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        part = pd.DataFrame()
    if not {"clip_path", "label"} <= set(part.columns) or part.empty:
        raise ValueError(f"{path} needs the columns clip_path and label, and at least one row: mend it, or "
                         "remove the three split CSVs to have them made anew")
    part["clip_path"] = "/" + part["clip_path"].str.lstrip("/")
    names = part["clip_path"].str.rsplit("/", n=1).str[1]
    return pd.DataFrame({"clip_name": names, "group": names.map(group_of), **part})[COLUMNS]


def ensure_splits(root: str | Path, folder: str | Path, kind: str, classes: Iterable[str] | None = None,
                  seed: int = 42) -> dict[str, Path]:
    """The path of each part's CSV in `folder`, made from the clips below `root` where there are none yet.

    Three CSVs that are there are used as they are, whatever `kind` says, and never overwritten. Errors as `scan_clips`,
    `make_split` and `read_split`; a ValueError where the CSVs hold other classes than `classes`.
    """
    classes, paths = None if classes is None else set(classes), split_paths(folder)
    if not any(path.exists() for path in paths.values()):
        return write_split(make_split(scan_clips(root, classes), kind, seed), folder)
    held = set(pd.concat(read_split(folder).values())["label"])
    if classes not in (None, held):
        raise ValueError(f"the split CSVs in {folder} hold {', '.join(sorted(held))}, not {', '.join(sorted(classes))}"
                         ": ask for those classes, or move the three CSVs away to have them made anew")
    return paths


# ---------------------------------------------------------------- what is in a split

def check_leakage(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per group in more than one part of a split: label, group, parts (such as "train, test").

    A clip in more than one part is a ValueError; the message lists such clips.
    """
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    in_parts = rows.groupby("clip_path")["part"].nunique()
    if shared := sorted(in_parts.index[in_parts > 1]):
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise ValueError(f"clips in more than one part: {', '.join(shared[:5])}{more}; keep each in one")
    groups = rows.groupby(["label", "group"])["part"].agg(lambda part: ", ".join(part.unique()))
    return groups[groups.str.contains(",")].reset_index(name="parts")


def leakage_warning(shared: pd.DataFrame) -> str:
    """One line about the groups that `check_leakage` found; empty when there are none."""
    if shared.empty:
        return ""
    first = shared.iloc[0]
    count = "1 group is" if len(shared) == 1 else f"{len(shared)} groups are"
    return (f"{count} in more than one part (first {first['label']} {first['group']}: {first['parts']}): the "
            "same people and scenes are trained on and tested, so scores are optimistic; use SPLIT=group")


def split_hash(parts: dict[str, pd.DataFrame]) -> str:
    """SHA-256 (hex) of which clips, with label and group, are in which part, whatever the order of rows."""
    rows = sorted("\t".join((name, *row)) for name, table in parts.items()
                  for row in table[["clip_path", "label", "group"]].to_numpy())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def split_table(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Numbers of clips: a row per class and a last one `total`, a column per part and a last one `total`."""
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    table = pd.crosstab(rows["label"], rows["part"], margins=True, margins_name="total")
    return table.reindex(columns=[*parts, "total"], fill_value=0).rename_axis(index="class", columns=None)


def group_folds(table: pd.DataFrame, most: int, grouped: bool,
                seed: int) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Folds of cross-validation, stratified by class, that keep the clips of one group together; and, in words, how.

    A fold is a pair of row numbers of `table` (to fit on, held out); each row is held out once. They are `most`, or
    fewer where a class has fewer groups. Where the clips name no groups (`grouped` is false), or a class has one only,
    single clips are dealt out instead; a class of a single clip is a ValueError.
    """
    clips = table["label"].value_counts()
    if clips.min() < 2:
        raise ValueError(f"{clips.idxmin()} has one clip to tune on: cross-validation needs two")
    pairs = group_pairs(table)
    fewest = pairs.groupby(table["label"]).nunique().min()
    if grouped and fewest >= 2:
        splitter, groups, how = StratifiedGroupKFold, pairs, "whole groups"
    else:
        splitter, groups, fewest = StratifiedKFold, None, clips.min()
        how = f"single clips, since {'a class has one group only' if grouped else 'the clips name no groups'}"
    folds = list(splitter(min(most, fewest), shuffle=True, random_state=seed).split(table, table["label"], groups))
    return folds, f"{len(folds)} folds of {how}"


def make_folds(clips: pd.DataFrame, most: int, official: bool, grouped: bool,
               seed: int) -> tuple[list[pd.DataFrame], str]:
    """Splits of all clips into train, val and test, such that every clip is tested once.

    With two folds the validation part may share a group with the training part; the test part never does.

    Args:
        clips: with the columns of a split's CSV.
        most: number of folds; fewer where a class has fewer groups.
        official: take UCF-101's three official splits, which never test groups 22 to 25.
        grouped, seed: as `group_folds`, which also takes about an eighth of the rest as the validation part.

    Returns:
        What `make_split` returns, once per fold; and how the folds were made, in words.

    Raises:
        ValueError: a class has too few clips.
    """
    clips = clips.sort_values("clip_path", ignore_index=True)
    if official:
        return [make_split(clips, kind) for kind in TEST_GROUPS], "the three official splits; groups 22-25 never tested"
    folds, how = group_folds(clips, most, grouped, seed)
    made = []
    for rest, tested in folds:
        inner, _ = group_folds(clips.iloc[rest], round(1 / HELD_OUT), grouped, seed)
        part = pd.Series("train", index=clips.index)
        part.iloc[tested], part.iloc[rest[inner[0][1]]] = "test", "val"
        made.append(clips.assign(part=part))
    return made, how


def thinned(split: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    """A split with a share of each class's training groups, two at least; validation and test parts stay.

    Whole groups are drawn in an order that depends on `seed` alone, so that a smaller share is part of a larger one.
    """
    kept = split["part"] != "train"
    for number, (_, clips) in enumerate(split[~kept].groupby("label", sort=True)):
        groups = np.random.default_rng([seed, number]).permutation(sorted(clips["group"].unique()))
        drawn = groups[:max(round(share * len(groups)), 2)]
        kept |= split.index.isin(clips.index[clips["group"].isin(drawn)])
    return split[kept].reset_index(drop=True)
