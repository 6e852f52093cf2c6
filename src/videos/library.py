"""Data sets: found by name, opened, split."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from config import DEMO_ROOT, RESULTS, ROOT, UCF101_ROOT
from videos import splits
from videos.demo import render_dataset

DATASETS = {"demo": DEMO_ROOT, "ucf101": UCF101_ROOT}


@dataclass(frozen=True)
class VideoData:
    """A data set, split, with the place of its results.

    Attributes:
        name: of the data set, as in the results folder.
        root: folder that `clip_path` is relative to.
        class_map: class name to integer label.
        splits: part (`train`, `val`, `test`) to CSV.
        split: facts of the split: kind, sha256, clips per part, groups shared between parts, and whether the clips
            name groups at all.
        results: root of what is written.
    """

    name: str
    root: Path
    class_map: dict[str, int]
    splits: dict[str, Path]
    split: dict
    results: Path

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
        return f"**Data: {self.name}**, {sum(self.split['clips'].values())} clips of {len(self.class_map)} classes."

    def table(self, part: str) -> pd.DataFrame:
        """A part's CSV as a DataFrame."""
        return splits.read_part(self.splits[part])


def locate(dataset: str = "demo", results: Path = RESULTS) -> tuple[str, Path, Path]:
    """Name, root folder and results root of a data set, without opening it.

    A folder is given absolutely, or relative to the working folder or the repository.

    Raises:
        FileNotFoundError: it is neither `demo`, `ucf101` nor a folder.
    """
    if dataset in DATASETS:
        return dataset, DATASETS[dataset], results if dataset == "ucf101" else results / dataset
    places = dict.fromkeys([Path(dataset).expanduser().absolute(), ROOT / dataset])
    root = next((place.resolve() for place in places if place.is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"DATASET={dataset}: neither demo, ucf101 nor a folder (looked at "
                                f"{' and '.join(map(str, places))})")
    name = re.sub(r"[^\w.-]+", "-", root.name)
    name = f"{name}-sample" if name in DATASETS else name  # apart from the names that are taken
    return name, root, results / name


def open_data(dataset: str = "demo", split: str | None = None, classes: list[str] | None = None, seed: int = 42,
              results: Path = RESULTS, root: Path | None = None) -> VideoData:
    """Finds a data set (rendering the demo where it is absent), splits it where it is not, and checks for leakage.

    Args:
        dataset: `demo`, `ucf101` (dataset_info/dataset), or a folder with one sub-folder of clips per class.
        split: a kind of split (see `splits.make_split`); None takes official1 for UCF-101 and group elsewhere.
        classes: a selection; None takes all that there are.
        seed: of the split.
        results: the folder that holds all data sets' results.
        root: folder of the clips where it is not the data set's own; the split CSVs then lie with the results, and
            nothing is written beside the clips.

    Raises:
        FileNotFoundError, ValueError: no such data, or it can't be split so; the message says what to do.
    """
    name, own_root, own_results = locate(dataset, results)
    home = own_root if dataset in DATASETS and root is None else own_results  # of the splits
    root = root or own_root
    if dataset == "demo":
        render_dataset(root)
    elif dataset == "ucf101" and not root.is_dir():
        raise FileNotFoundError(f"{root}: UCF-101 is not there; put its class folders there, or name another DATASET")
    default = "official1" if dataset == "ucf101" else "group"
    kind = "" if split in (None, default) else split
    chosen = hashlib.sha256("\n".join(sorted(classes)).encode()).hexdigest()[:8] if classes else ""
    variant = "-".join(filter(None, (kind, chosen)))  # nothing for the default split of all classes
    folder = home / "splits" / variant
    paths = splits.ensure_splits(root, folder, split or default, classes, seed)
    parts = splits.read_split(folder)
    shared = splits.check_leakage(parts)
    if warning := splits.leakage_warning(shared):
        print(f"warning: {warning}")
    clips = pd.concat(parts.values())
    labels = sorted(clips["label"].unique())
    about = {"kind": split or default, "sha256": splits.split_hash(parts),
             "clips": {part: len(table) for part, table in parts.items()},
             "groups_named": splits.has_groups(clips), "shared_groups": len(shared)}
    return VideoData(name, root, {label: i for i, label in enumerate(labels)}, paths, about, own_results)


def open_asked() -> VideoData:
    """The data set that DATASET, SPLIT, CLASSES and SEED in the environment ask for, as `open_data`."""
    return open_data(os.environ.get("DATASET") or "demo", os.environ.get("SPLIT") or None,
                     os.environ.get("CLASSES", "").split() or None, int(os.environ.get("SEED") or 42))
