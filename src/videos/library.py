"""Data sets: found by name, opened, checked, split."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from config import CACHE, DEMO_ROOT, RESULTS, asked_number, name_list, quoted_list
from files import remove_abandoned
from names import in_markdown
from videos import split_files, splits
from videos.contents import clip_facts, copies
from videos.demo import render_dataset
from videos.findings import STRADDLING, TWO_LABELS, findings, left_out
from videos.folder import Folder, find_clips, has_groups, match_classes, scan_folder
from videos.places import DATASETS, claim, locate

LISTED = 500  # broken clips that an error names, at most


@dataclass(frozen=True)
class VideoData:
    """A data set, split, with the place of its results.

    Attributes:
        name: of the data set, as in the results folder.
        root: folder that `clip_path` is relative to.
        class_map: class name to integer label.
        splits: part (`train`, `val`, `test`) to CSV.
        split: facts of the split: kind, sha256 (of its clips' contents too), clips per part, groups shared between
            parts, whether the clips name groups at all, and how many clips were left out, by reason.
        results: root of what is written.
        facts: what is in the clips, as `contents.clip_facts`, with part and copy_of (see `contents.copies`).
        findings: what a reader should know of the folder: a row each of what, files and which (the first of them).
    """

    name: str
    root: Path
    class_map: dict[str, int]
    splits: dict[str, Path]
    split: dict
    results: Path
    facts: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    findings: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels."""
        return sorted(self.class_map, key=self.class_map.get)

    @property
    def note(self) -> str:
        """What a reader must know of the data, in Markdown."""
        if self.root == DEMO_ROOT:
            return ("**Data: the embedded demo set.** Its clips are rendered, synthetic scenes of PullUps, Punch and "
                    "PushUps in UCF-101's form. Scores on them show that the study works; they say nothing about "
                    "real video. For real clips set `DATASET` (see the README).")
        return (f"**Data: {in_markdown(self.name)}**, {sum(self.split['clips'].values())} clips of "
                f"{len(self.class_map)} classes{left_out(self.split)}.")

    def table(self, part: str) -> pd.DataFrame:
        """A part's CSV as a DataFrame."""
        return split_files.read_part(self.splits[part])


def open_data(dataset: str = "demo", split: str | None = None, classes: list[str] | None = None, seed: int = 42,
              results: Path = RESULTS, root: Path | None = None, cache: Path = CACHE,
              leave_out: set[str] | None = None, look_first: bool = False) -> VideoData:
    """Finds a data set (rendering the demo where it is absent), decodes every clip once, splits it, checks for leakage.

    What is known of a clip's content is kept in the cache. What changed since, or is left out, is printed.

    Args:
        dataset: `demo`, `ucf101` (dataset_info/dataset), or a folder with one sub-folder of clips per class.
        split: a kind of split (see `splits.make_split`); None takes official1 for UCF-101, elsewhere the one that the
            folder came with (part folders, or CSVs in its sub-folder `splits`), or else group.
        classes: a selection, in any case; None, or the word `all` alone, takes all that there are.
        seed: of the split.
        results: the folder that holds all data sets' results.
        root: folder of the clips where it is not the data set's own; the split CSVs then lie with the results, and
            nothing is written beside the clips.
        leave_out: kinds of clips that are not used: `broken`, which is an error otherwise, and `one frame`. None
            follows SKIP_BROKEN and ONE_FRAME in the environment: broken clips are an error, one frame is no video.
        look_first: whether the findings by names, headers, sizes and hashes alone, which take seconds, are printed
            before every clip is decoded.

    Raises:
        FileNotFoundError, ValueError: no such data, clips that can't be used, or no such split; the message says what
            to do.
    """
    classes = None if classes == ["all"] else classes
    name, own_root, own_results = locate(dataset, results)
    own = dataset in DATASETS and root is None
    root = root or own_root
    found, kind, default = _found(dataset, split, root, own, classes)
    if dataset not in DATASETS:
        claim(own_results, root)
    remove_abandoned(own_results)
    if look_first:
        print(_glanced(root, found, cache).to_string(index=False), flush=True)
    facts = clip_facts(root, found.clips, cache=cache)
    facts["copy_of"] = copies(facts)
    considered = facts if kind != "given" else facts[facts["part"] != ""]  # the others are in none of the user's lists
    clips = _usable(considered, asked_to_leave_out() if leave_out is None else leave_out)
    if kind not in splits.TEST_GROUPS:
        clips = splits.united(clips, clips["copy_of"])
    labels = "\n".join(sorted(set(found.clips["label"])))
    chosen = hashlib.sha256(labels.encode()).hexdigest()[:8] if classes else ""
    variant = "-".join(filter(None, ("" if kind == default else kind, chosen)))  # nothing: the default, all classes
    settled = split_files.ensure_splits(clips, (root if own else own_results) / "splits" / variant, kind, seed)
    data = VideoData(name, root, {}, settled.paths, {"kind": settled.kind}, own_results)
    return _described(data, found, facts, clips, settled.lines)


def _glanced(root: Path, found: Folder, cache: Path) -> pd.DataFrame:
    """The findings of a folder whose clips are not decoded yet."""
    facts = clip_facts(root, found.clips, decode=False, cache=cache)
    return findings(found, facts.drop(columns="part").assign(copy_of=copies(facts)))


def asked_to_leave_out() -> set[str]:
    """The kinds of clips that the environment asks to leave out."""
    skip, one_frame = (os.environ.get(name, "") not in ("", "0") for name in ("SKIP_BROKEN", "ONE_FRAME"))
    return {*(["broken"] if skip else []), *([] if one_frame else ["one frame"])}


def _usable(facts: pd.DataFrame, leave_out: set[str]) -> pd.DataFrame:
    """The clips that are used; a ValueError that names all the broken ones, where these are not left out."""
    broken = facts[facts["status"] == "broken"]
    if len(broken) and "broken" not in leave_out:
        listed = [f"\n  {row.clip_path}: {row.reason}" for row in broken.head(LISTED).itertuples()]
        more = f"\n  and {len(broken) - LISTED} more" if len(broken) > LISTED else ""
        raise ValueError(f"{len(broken)} of {len(facts)} clips can't be used:{''.join(listed)}{more}\nfetch or copy "
                         "them again, move them away, or leave them out with SKIP_BROKEN=1")
    usable = facts[~facts["status"].isin(leave_out)].reset_index(drop=True)
    if lost := sorted(set(facts["label"]) - set(usable["label"])):
        counts = ", ".join(f"{count} {status}" for status, count in facts["status"].value_counts().items())
        left = sorted(set(usable["label"]))
        without = f"leave these classes out with CLASSES={quoted_list(left)}, " if len(left) > 1 else ""
        raise ValueError(f"no clip of {', '.join(lost)} can be used (of all {len(facts)}: {counts}): add some, "
                         f"{without}or use files of one frame with ONE_FRAME=1")
    return usable


def _found(dataset: str, split: str | None, root: Path, own: bool,
           classes: list[str] | None) -> tuple[Folder, str, str]:
    """What lies in the folder; the kind of split that is wanted of it, and the one that is its default.

    A split that is impossible by the clips' names alone is an error here, before minutes are spent.
    """
    if own and dataset == "demo":
        render_dataset(root)
    elif dataset == "ucf101" and not root.is_dir():
        raise FileNotFoundError(f"{root}: UCF-101 is not there; put its class folders there, or name another DATASET")
    lists = split_files.has_own_csvs(root / "splits")
    if lists and split in (None, "given"):
        found = _selected(split_files.with_given_parts(find_clips(root), root / "splits"), classes)
    else:
        found = scan_folder(root, classes)
    given = lists or found.clips["part"].any()
    if split == "given" and not given:
        raise ValueError(f"SPLIT=given: {root} has neither the folders train, val and test nor CSVs in splits")
    default = "given" if given else "official1" if dataset == "ucf101" else "group"
    kind = split or default
    splits.make_split(found.clips if kind != "given" else found.clips[found.clips["part"] != ""], kind)
    return found, kind, default


def _selected(found: Folder, classes: list[str] | None) -> Folder:
    """The clips of some classes, by the labels that the user's lists give."""
    if classes is None:
        return found
    clips = found.clips[found.clips["part"] != ""]
    chosen = match_classes(classes, set(clips["label"]))
    return replace(found, clips=clips[clips["label"].isin(chosen)].reset_index(drop=True))


def _described(data: VideoData, found: Folder, facts: pd.DataFrame, clips: pd.DataFrame,
               lines: list[str]) -> VideoData:
    """The data set with what is to be said of it, which is printed where it matters."""
    parts = {part: split_files.read_part(path) for part, path in data.splits.items()}
    rows = pd.concat(parts, names=["part"]).reset_index("part")
    shared = splits.check_leakage(parts, data.splits["train"].parent)
    facts = facts.assign(part=facts["clip_path"].map(dict(zip(rows["clip_path"], rows["part"], strict=True))))
    facts["part"] = facts["part"].fillna("")
    unused = facts.loc[facts["part"] == "", "status"].replace("ok", "not in the split").value_counts().to_dict()
    table = findings(found, facts)
    lines = [*found.notes, *lines]
    lines += [f"left out: {row.files} {row.what} ({row.which})" for row in table.itertuples() if row.what in unused]
    lines += [f"warning: {row.what}: {row.which}" for row in table.itertuples() if row.what in (TWO_LABELS, STRADDLING)]
    lines += [f"warning: {warning}"] if (warning := splits.leakage_warning(shared)) else []
    print(*lines, sep="\n", end="\n" if lines else "")
    contents = dict(zip(clips["clip_path"], clips["sha256"], strict=True))
    about = {**data.split, "sha256": splits.split_hash(parts, contents),
             "clips": {part: len(table) for part, table in parts.items()}, "groups_named": has_groups(found.clips),
             "shared_groups": len(shared), "left_out": unused}
    labels = {label: i for i, label in enumerate(sorted(rows["label"].unique()))}
    return replace(data, class_map=labels, split=about, facts=facts.drop(columns="glances"), findings=table)


def open_asked(dataset: str | None = None, look_first: bool = True, **settings) -> VideoData:
    """The data set that DATASET, or `dataset`, and SPLIT, CLASSES and SEED in the environment ask for, with a look
    first; other `settings` as `open_data`."""
    return open_data(dataset or os.environ.get("DATASET") or "demo", os.environ.get("SPLIT") or None,
                     name_list(os.environ.get("CLASSES", "")), asked_number("SEED"), look_first=look_first, **settings)
