"""Splits of a table of clips: official, by whole groups, given or random; folds; and the leakage check.

Clips of one group (`gNN` in `v_<Class>_gNN_cNN.avi`) share people and scene. Groups are numbered anew in each class, so
what must not be shared between two parts is the pair (label, group). Groups that show the same clip are one:
`g03=/g07`, or `=/A/g03=//B/g01` where they are of several classes (see `united`); no name of a file has a slash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from config import quoted_list
from videos.folder import COLUMNS, PARTS

TEST_GROUPS = {"official1": range(1, 8), "official2": range(8, 15), "official3": range(15, 22)}
VAL_GROUPS = range(22, 26)
KINDS = (*TEST_GROUPS, "group", "random")
HELD_OUT = 0.125  # fraction of the clips of a class in each of val and test
ENOUGH_CLIPS = 8  # of a class, for a random split
JOINED = "=/"  # between the names of groups that are one
NO_GROUPS = "no clip names a group (_gNN_cNN): each is its own, and leakage can't be checked"


# ---------------------------------------------------------------- clips and their groups

def group_pairs(clips: pd.DataFrame) -> pd.Series:
    """The group of each clip, told apart between classes, in each of which groups are numbered anew."""
    return clips["group"].where(clips["group"].str.startswith(JOINED), clips["label"] + "/" + clips["group"])


def united(clips: pd.DataFrame, copy_of: pd.Series) -> pd.DataFrame:
    """The clips with groups that show the same clip made one; `copy_of` is as `contents.copies`, in the same order."""
    pairs, copies = pd.factorize(group_pairs(clips))[0], pd.factorize(copy_of.to_numpy())[0]
    size = max(len(clips), 1)
    graph = coo_array((np.ones(len(clips)), (pairs, size + copies)), (2 * size, 2 * size))
    together = connected_components(graph, False)[1][pairs]
    table = pd.DataFrame({"set": together, "pair": group_pairs(clips), **clips[["label", "group"]]}, clips.index)
    sets = table.groupby("set")
    one_class = sets["label"].transform("nunique") == 1
    names = table["group"].where(one_class, "/" + table["pair"])
    joined = names.groupby(together).agg(lambda its: JOINED.join(sorted(its.unique()))).reindex(together).to_numpy()
    return clips.assign(group=np.where(one_class, joined, JOINED[0] + joined)) if len(clips) else clips


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
        return clips.assign(part=_given_parts(clips, seed, had))
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


def _given_parts(clips: pd.DataFrame, seed: int, known: pd.Series) -> pd.Series:
    """The parts that the clips have; what is missing is taken from the training part by whole groups."""
    part = clips["part"]
    if missing := [name for name in ("test", "val") if name not in set(part)]:
        rest = clips[part == "train"]
        free = _group_parts(rest.reset_index(drop=True), seed, known[rest.index].reset_index(drop=True), missing)
        part = part.where(part != "train", pd.Series(free, rest.index))
    for name in ("train", "test"):
        there = sorted(clips.loc[part == name, "label"].unique())
        if lacking := sorted(set(clips["label"]) - set(there)):
            without = f"leave these classes out with CLASSES={quoted_list(there)}, " if len(there) > 1 else ""
            raise ValueError(f"{name} has no clip of {', '.join(lacking)}: add some, {without}or use SPLIT=group")
    return part


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
        sizes.index = pd.Series(its.to_numpy(), of_class["group"]).groupby(level=0).first()[sizes.index]
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
        _check_sizes(copies.groupby(clips["label"]).nunique(), 3, "different clips", clips)
        return _group_parts(clips.assign(group=JOINED + copies), seed, known)
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
    copies = clips.get("copy_of", clips["clip_path"])
    if what == "groups" and copies.groupby(clips["label"]).nunique().min() >= ENOUGH_CLIPS:
        cures.append("use SPLIT=random, which ignores groups")
    raise ValueError(f"too few {what} for train, val and test, {least} of each class: "
                     + ", ".join(f"{label} has {count}" for label, count in small.items())
                     + f"; {', or '.join(['add clips', *cures])}")


# ---------------------------------------------------------------- what is in a split

def clip_file(root: str | Path, clip_path: str) -> Path:
    """The file of a split's `clip_path`, which begins with `/` and is relative to the root."""
    return Path(root) / clip_path.lstrip("/")


def split_parts(split: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One table per part, without the column `part`, of what `make_split` returns."""
    return {name: split.loc[split["part"] == name, COLUMNS].reset_index(drop=True) for name in PARTS}


def check_leakage(parts: dict[str, pd.DataFrame], folder: str | Path | None = None) -> pd.DataFrame:
    """One row per group in more than one part of a split: label (its first), group, parts (such as "train, test").

    A clip in more than one part is a ValueError; the message lists such clips, and the CSVs in `folder` that have them.
    """
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    in_parts = rows.groupby("clip_path")["part"].nunique()
    if shared := sorted(in_parts.index[in_parts > 1]):
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        named = sorted({f"{part}.csv" for part in rows["part"][rows["clip_path"].isin(shared)]})
        where = f"{folder}: {' and '.join(named)}: " if folder else ""
        raise ValueError(f"{where}clips in more than one part: {', '.join(shared[:5])}{more}; keep each in one")
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
        raise ValueError(f"{clips.idxmin()} has one clip to tune on: cross-validation needs two: add clips of it, take "
                         "more folds, which leave more to train on, or none (FOLDS=0)")
    pairs = group_pairs(table)
    fewest = pairs.groupby(table["label"]).nunique().min()
    if fewest >= 2 and (grouped or table["group"].str.contains(JOINED, regex=False).any()):
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
