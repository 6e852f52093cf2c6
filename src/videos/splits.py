"""Splits of a table of clips: official, by whole groups, given or random; folds; and the leakage check.

Clips of one group (`gNN` in `v_<Class>_gNN_cNN.avi`) share people and scene. Groups are numbered anew in each class, so
what must not be shared between two parts is the pair (label, group). Groups that show the same clip are one: `g03=g07`,
or `=A/g03=B/g01` where they are of several classes (see `united`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from config import quoted_list
from files import atomic_path, read_json, write_json
from videos.folder import COLUMNS, PARTS, group_of

TEST_GROUPS = {"official1": range(1, 8), "official2": range(8, 15), "official3": range(15, 22)}
VAL_GROUPS = range(22, 26)
KINDS = (*TEST_GROUPS, "group", "random")
HELD_OUT = 0.125  # fraction of the clips of a class in each of val and test
ENOUGH_CLIPS = 8  # of a class, for a random split
NO_GROUPS = "no clip names a group (_gNN_cNN): each is its own, and leakage can't be checked"


# ---------------------------------------------------------------- clips and their groups

def group_pairs(clips: pd.DataFrame) -> pd.Series:
    """The group of each clip, told apart between classes, in each of which groups are numbered anew."""
    return clips["group"].where(clips["group"].str.startswith("="), clips["label"] + "/" + clips["group"])


def united(clips: pd.DataFrame, copy_of: pd.Series) -> pd.DataFrame:
    """The clips with groups that show the same clip made one; `copy_of` is as `contents.copies`, in the same order."""
    pairs, copies = pd.factorize(group_pairs(clips))[0], pd.factorize(copy_of.to_numpy())[0]
    size = max(len(clips), 1)
    graph = coo_array((np.ones(len(clips)), (pairs, size + copies)), (2 * size, 2 * size))
    together = connected_components(graph, False)[1][pairs]
    groups = []
    for _, its in clips.groupby(together, sort=False):
        one_class = its["label"].nunique() == 1
        names = sorted(its["group"].unique() if one_class else group_pairs(its).unique())
        groups.append(pd.Series(("" if one_class else "=") + "=".join(names), its.index))
    return clips.assign(group=pd.concat(groups)) if groups else clips


# ---------------------------------------------------------------- splits

def make_split(clips: pd.DataFrame, kind: str, seed: int = 42, known: pd.Series | None = None) -> pd.DataFrame:
    """The clips of `scan_folder`, sorted by path, with the column `part`: train, val or test, each with every class.

    Args:
        clips: where two rows have the same `copy_of`, if there is such a column, `random` keeps them in one part.
        kind: `official1|2|3` (UCF-101's test groups 1-7, 8-14 or 15-21; validation groups 22-25), `group`
            (75/12.5/12.5 of each class in whole groups: val and test are within half of the class's largest group of
            their target, given enough groups), `random` (75/12.5/12.5, stratified by class, groups ignored), or `given`
            (the parts that the clips came with; one that is missing is taken from train in whole groups). What is dealt
            out depends on `seed`, none on the order of rows.
        known: parts that clips, told by `clip_path`, keep (with their groups).

    Raises:
        ValueError: the kind is unknown, or can't be made of these clips.
    """
    known = pd.Series("", clips["clip_path"], dtype=object) if known is None else known
    clips = clips.sort_values("clip_path", ignore_index=True)
    had = clips["clip_path"].map(known).fillna("")
    if kind in TEST_GROUPS:
        return clips.assign(part=_official_parts(clips, kind))
    if kind == "given":
        return clips.assign(part=_given_parts(clips, seed))
    if kind not in KINDS:
        raise ValueError(f"no split {kind!r}: there are {', '.join(KINDS)}")
    return clips.assign(part=(_group_parts if kind == "group" else _random_parts)(clips, seed, had))


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


def _given_parts(clips: pd.DataFrame, seed: int) -> pd.Series:
    """The parts that the clips have; what is missing is taken from the training part by whole groups."""
    part = clips["part"]
    missing = [name for name in ("test", "val") if name not in set(part)]
    if missing:
        rest = clips[part == "train"]
        free = _group_parts(rest.reset_index(drop=True), seed, pd.Series("", range(len(rest))), missing)
        part = part.where(part != "train", pd.Series(free, rest.index))
    for name in ("train", "test"):
        there = sorted(clips.loc[part == name, "label"].unique())
        if lacking := sorted(set(clips["label"]) - set(there)):
            raise ValueError(f"{name} has no clip of {', '.join(lacking)}: add some, leave these classes out with "
                             f"CLASSES={quoted_list(there)}, or use SPLIT=group")
    return part


def with_given_parts(clips: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """The clips that a user's three CSVs in `folder` list, with the label, group and part that these say.

    Raises:
        FileNotFoundError: clips of the CSVs are not there; all of them are listed.
        ValueError: as `read_split`, or a clip is in more than one part.
    """
    parts = read_split(folder)
    check_leakage(parts)
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    if gone := sorted(set(rows["clip_path"]) - set(clips["clip_path"])):
        raise FileNotFoundError(_gone(gone, folder))
    return rows.sort_values("clip_path", ignore_index=True)[[*COLUMNS, "part"]]


def _gone(clips: list[str], folder: str | Path) -> str:
    listed = "\n  ".join(clips)
    return (f"{len(clips)} clips of the split in {folder} are not there, or can't be used:\n  {listed}\nget them, take "
            "these rows out, or move the three CSVs away to have a split made anew")


def _group_parts(clips: pd.DataFrame, seed: int, known: pd.Series, parts: tuple = ("test", "val")) -> np.ndarray:
    """Deals whole groups out to `parts`, the rest being train; groups with a part in `known` keep it."""
    counts = clips.groupby("label")["group"].nunique()
    _check_sizes(counts, 1 + len(parts), "groups", clips)
    rng, pairs, settled = np.random.default_rng(seed), group_pairs(clips), {}
    for name in ("train", "val", "test"):  # where clips of one group had several, test goes before val and train
        settled |= dict.fromkeys(pairs[known == name], name)
    for label, of_class in clips.groupby("label", sort=True):
        its = pairs[of_class.index]
        sizes = of_class["group"].value_counts().sort_index()
        sizes.index = [its[of_class["group"] == group].iloc[0] for group in sizes.index]
        held = {name: sum(size for pair, size in sizes.items() if settled.get(pair) == name) for name in PARTS}
        free = sizes[[pair not in settled for pair in sizes.index]]
        free = free.iloc[rng.permutation(len(free))]
        for number, name in enumerate(parts, 1):
            needed = sum(not held[other] for other in (*parts[number:], "train"))
            taken = _take_groups(free, HELD_OUT * len(of_class) - held[name], len(free) - needed, not held[name])
            if not taken and not held[name]:  # all groups have a part: one of train's is given up
                spare = sizes[[settled.get(pair) == "train" for pair in sizes.index]]
                if len(spare) < 2:
                    raise ValueError(f"no group of {label} is left for {name}")
                taken = [spare.idxmin()]
            settled |= dict.fromkeys(taken, name)
            free = free.drop(taken, errors="ignore")
        if free.empty and not held["train"]:
            raise ValueError(f"no group of {label} is left for train")
    return pairs.map(settled).fillna("train").to_numpy()


def _take_groups(sizes: pd.Series, target: float, most: int, needed: bool) -> list[str]:
    """At most `most` groups, each bringing the number of clips nearer to the target; where none does and one is
    `needed`, the smallest."""
    taken, total = [], 0
    for group, size in sizes.items():
        if len(taken) < most and total + size / 2 < target:
            taken.append(group)
            total += size
    return taken or ([sizes.idxmin()] if needed and most > 0 else [])


def _random_parts(clips: pd.DataFrame, seed: int, known: pd.Series) -> np.ndarray:
    label, copies = clips["label"].to_numpy(), clips.get("copy_of", clips["clip_path"])
    if known.any() or copies.duplicated().any():
        return _group_parts(clips.assign(group="=" + copies), seed, known)
    try:
        _, rest = train_test_split(clips.index, test_size=2 * HELD_OUT, stratify=label, random_state=seed)
        val, test = train_test_split(rest, test_size=0.5, stratify=label[rest], random_state=seed)
    except ValueError:
        _check_sizes(clips["label"].value_counts(), ENOUGH_CLIPS, "clips", clips)
        raise
    part = np.full(len(clips), "train", dtype=object)
    part[val], part[test] = "val", "test"
    return part


def _check_sizes(counts: pd.Series, least: int, what: str, clips: pd.DataFrame) -> None:
    """Raises a ValueError that names every class with too few groups or clips, and what can be done."""
    small, enough = counts[counts < least].sort_index(), sorted(counts[counts >= least].index)
    if small.empty:
        return
    cures = [f"leave them out with CLASSES={quoted_list(enough)}"] if len(enough) > 1 else []
    if what == "groups" and clips["label"].value_counts().min() >= ENOUGH_CLIPS:
        cures.append("use SPLIT=random, which ignores groups")
    raise ValueError(f"too few {what} for train, val and test, {least} of each class: "
                     + ", ".join(f"{label} has {count}" for label, count in small.items())
                     + f"; {', or '.join(['add clips', *cures])}")


# ---------------------------------------------------------------- their files

def split_paths(folder: str | Path) -> dict[str, Path]:
    """Where the CSV of each part is in a splits folder."""
    return {name: Path(folder) / f"{name}.csv" for name in PARTS}


def split_record(folder: str | Path) -> Path:
    """Where it is written of what a split was made, beside its CSVs; a user's own split has no such file."""
    return Path(folder) / "split.json"


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

    Read as spreadsheets write them: columns apart by `,` or `;`, with or without a byte order mark, with `/` or `\\` in
    paths.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it has no clip_path or label, or no row.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such split file; python tools/data.py split FOLDER makes one, and says "
                                "where")
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        part = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig",
                           sep=";" if ";" in header and "," not in header else ",")
    except pd.errors.EmptyDataError:
        part = pd.DataFrame()
    except (UnicodeError, pd.errors.ParserError) as error:
        raise ValueError(f"{path}: can't be read as a table ({error}): save it as CSV in UTF-8") from error
    part = part.rename(columns=lambda name: str(name).strip())
    if not {"clip_path", "label"} <= set(part.columns) or part.empty:
        raise ValueError(f"{path} needs the columns clip_path and label, and at least one row: mend it, or "
                         "remove the three split CSVs to have them made anew")
    part["clip_path"] = "/" + part["clip_path"].map(_with_slashes).str.lstrip("/")
    names = part["clip_path"].str.rsplit("/", n=1).str[1]
    return pd.DataFrame({"clip_name": names, "group": names.map(group_of), **part})[COLUMNS]


def _with_slashes(path: str) -> str:
    """A path as it is written on Windows, with slashes; a name that has a backslash keeps it."""
    return path if "/" in path else path.replace("\\", "/")


def ensure_splits(clips: pd.DataFrame, folder: str | Path, kind: str,
                  seed: int = 42) -> tuple[dict[str, Path], list[str]]:
    """The CSV of each part in `folder`, made of the clips where there are none yet; and lines on what changed.

    A split that was made here is extended where clips were added, and those that are gone are taken out: groups, and
    contents, that had a part keep it. Three CSVs of the user's are used as they are, and never written.

    Args:
        clips: with the columns of a split's CSV, sha256 and, for the kind `given`, part.
        kind, seed: as `make_split`, where a split is made.

    Raises:
        FileNotFoundError: clips of the user's CSVs are not among `clips`; all of them are listed.
        ValueError: as `make_split` and `read_split`.
    """
    paths, contents = split_paths(folder), dict(zip(clips["clip_path"], clips["sha256"], strict=True))
    if not any(path.exists() for path in paths.values()):
        return _write_own(make_split(clips, kind, seed), folder, kind, contents), []
    parts, record = read_split(folder), read_json(split_record(folder))
    if record.get("sha256") != split_hash(parts):  # made, or changed, by hand
        return paths, _compared(parts, contents, folder)
    if kind == "given":
        made = make_split(clips, kind, seed)
        same = split_hash(split_parts(made)) == record["sha256"] and record["clips"] == contents
        if not same:
            _write_own(made, folder, kind, contents)
        return paths, [] if same else ["the split that came with the clips, or their contents, changed"]
    if record["kind"] != kind:
        return _write_own(make_split(clips, kind, seed), folder, kind, contents), [
            f"the split in {folder} was made anew: it was of the kind {record['kind']}"]
    if record["clips"] == contents:
        return paths, []
    known, changes = _parts_kept(parts, record["clips"], clips, kind)
    try:
        split, how = make_split(clips, kind, seed, known), "extended: what had a part keeps it"
    except ValueError:
        split, how = make_split(clips, kind, seed), "made anew, since too little of the old one is left"
    paths = _write_own(split, folder, kind, contents)
    return paths, [f"the clips changed ({changes}); the split in {folder} was {how}"]


def _write_own(split: pd.DataFrame, folder: str | Path, kind: str, contents: Mapping[str, str]) -> dict[str, Path]:
    paths = write_split(split, folder)
    record = {"kind": kind, "sha256": split_hash(read_split(folder)), "clips": contents}
    write_json(split_record(folder), record)
    return paths


def _parts_kept(parts: dict[str, pd.DataFrame], old: dict[str, str], clips: pd.DataFrame, kind: str):
    """The part that each clip keeps, or nothing, by clip_path; and, in words, how the clips differ from the `old`
    ones, clip_path to content."""
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    unit = group_pairs if kind == "group" else lambda table: table["clip_path"]
    by_unit = dict(zip(unit(rows), rows["part"], strict=True))
    by_content = {old[path]: part for path, part in zip(rows["clip_path"], rows["part"], strict=True) if path in old}
    known = unit(clips).map(by_unit).fillna(clips["sha256"].map(by_content)).fillna("")
    now, contents = dict(zip(clips["clip_path"], clips["sha256"], strict=True)), set(old.values())
    moved = [path for path in now.keys() - old.keys() if now[path] in contents]
    counts = {"added": len(now.keys() - old.keys()) - len(moved), "moved or relabelled": len(moved),
              "removed": len(old.keys() - now.keys()) - len(moved),
              "with other content": sum(now[path] != old[path] for path in now.keys() & old.keys())}
    changes = ", ".join(f"{count} {what}" for what, count in counts.items() if count > 0)
    return pd.Series(known.to_numpy(), clips["clip_path"]), changes


def _compared(parts: dict[str, pd.DataFrame], contents: Mapping[str, str], folder: str | Path) -> list[str]:
    """Lines on clips that a user's split has not; those that it has in vain are an error."""
    listed = set(pd.concat(parts.values())["clip_path"])
    if gone := sorted(listed - contents.keys()):
        raise FileNotFoundError(_gone(gone, folder))
    spare = sorted(contents.keys() - listed)
    return [f"{len(spare)} clips are in none of the CSVs in {folder}, and left out (first {spare[0]}): add rows for "
            "them, or move the three CSVs away to have a split made anew"] if spare else []


# ---------------------------------------------------------------- what is in a split

def check_leakage(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per group in more than one part of a split: label (its first), group, parts (such as "train, test").

    A clip in more than one part is a ValueError; the message lists such clips.
    """
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    in_parts = rows.groupby("clip_path")["part"].nunique()
    if shared := sorted(in_parts.index[in_parts > 1]):
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise ValueError(f"clips in more than one part: {', '.join(shared[:5])}{more}; keep each in one")
    groups = rows.groupby(group_pairs(rows).to_numpy()).agg(
        label=("label", "first"), group=("group", "first"), parts=("part", lambda part: ", ".join(part.unique())))
    return groups[groups["parts"].str.contains(",")].reset_index(drop=True)


def leakage_warning(shared: pd.DataFrame) -> str:
    """One line about the groups that `check_leakage` found; empty when there are none."""
    if shared.empty:
        return ""
    first = shared.iloc[0]
    count = "1 group is" if len(shared) == 1 else f"{len(shared)} groups are"
    return (f"{count} in more than one part (first {first['label']} {first['group']}: {first['parts']}): the "
            "same people and scenes are trained on and tested, so scores are optimistic; use SPLIT=group")


def split_hash(parts: dict[str, pd.DataFrame], contents: Mapping[str, str] | None = None) -> str:
    """SHA-256 (hex) of which clips, with label, group and, by clip_path, content, are in which part, whatever the order
    of rows."""
    contents = contents or {}
    rows = sorted("\t".join((name, *row, contents.get(row[0], ""))) for name, table in parts.items()
                  for row in table[["clip_path", "label", "group"]].to_numpy())
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def split_table(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Numbers of clips: a row per class and a last one `total`, a column per part and a last one `total`."""
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    table = pd.crosstab(rows["label"], rows["part"]).reindex(columns=[*parts], fill_value=0)
    table = pd.concat([table, table.sum().to_frame("total").T])  # by hand: a class may be called total
    return table.assign(total=table.sum(axis=1)).rename_axis(index="class", columns=None)


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
    if fewest >= 2 and (grouped or table["group"].str.contains("=").any()):
        splitter, groups = StratifiedGroupKFold, pairs
        how = "whole groups" if grouped else "single clips, since the clips name no groups, with copies kept together"
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
