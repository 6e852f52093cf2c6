"""Cross-validation by whole groups: every video is predicted once, by a model that saw neither it nor its group.

All models of a data set use the same folds. What is chosen (modality, epochs, parameters, temperature, fusion weights)
is chosen inside each fold's training and validation parts; the test part is opened for its predictions alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from files import (
    ModelFiles,
    file_hash,
    read_json,
    read_predictions,
    read_sealed,
    update_json,
    write_csv,
    write_sealed,
)
from machine import in_processes
from metrics import classification_metrics
from videos.library import VideoData
from videos.split_files import write_split
from videos.splits import clip_file, make_folds, split_hash, split_parts, thinned

PredictFold = Callable[[VideoData, Path], tuple[pd.DataFrame, pd.DataFrame, str]]


def fold_sets(data: VideoData, count: int, seed: int, cache: Path,
              share: float = 1.0) -> tuple[list[VideoData], str]:
    """The data set once per fold, with the fold's own split; and how the folds were made, in words.

    Their CSVs lie in the cache, named by their content. Of each fold's training groups a `share` is kept, as
    `splits.thinned`.

    Raises:
        ValueError: as `splits.make_folds`.
    """
    clips = pd.concat([data.table(part) for part in data.splits], ignore_index=True)
    folds, how = make_folds(clips, count, data.split["kind"].startswith("official"), data.split["groups_named"], seed)
    sets = []
    for fold in folds:
        fold = thinned(fold, share, seed)
        parts = split_parts(fold)
        about = {**data.split, "sha256": split_hash(parts), "clips": {name: len(its) for name, its in parts.items()}}
        paths = write_split(fold, cache / "folds" / about["sha256"][:16])
        sets.append(dataclasses.replace(data, splits=paths, split=about))
    return sets, how


@dataclass
class FoldRun:
    """A model's folds of a data set: what is kept of them, and what is to be computed.

    Args:
        data, seed, cache: of the folds, as `fold_sets`.
        files: where the tables and the statistics lie.
        asked: what decides the predictions, as plain types, apart from the clips and folds.
        predict: given a fold's data and a folder of its own in the cache, gives the predictions of its test and its
            validation part, and a few words on what was chosen; a fold of no words is not told.
        sets, how: the folds, as `fold_sets` gives them.
        prepare: computes what all folds read, before the first one that is computed.
    """

    data: VideoData
    files: ModelFiles
    asked: dict
    predict: PredictFold
    sets: list[VideoData]
    how: str
    seed: int
    cache: Path
    prepare: Callable[[], None] = lambda: None

    def __post_init__(self):
        clips = [path for part in self.data.splits for path in self.data.table(part)["clip_path"]]
        content = [file_hash(clip_file(self.data.root, path)) for path in clips]
        identity = [self.asked, self.data.name, content, [its.split["sha256"] for its in self.sets], self.seed]
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folders = [self.cache / "folds" / self.key[:16] / str(number) for number in range(1, len(self.sets) + 1)]

    @property
    def finished(self) -> bool:
        """Whether the tables on disk are of these very clips and this request."""
        known = read_json(self.files.stats).get("folds", {})
        return known.get("of") == self.key and known.get("tables") == self._tables()

    def _tables(self) -> list[str]:
        """The content of the tables on disk."""
        return [file_hash(path) for path in (self.files.folds, self.files.folds_validation) if path.is_file()]

    def missing(self) -> list[tuple[PredictFold, VideoData, Path, str]]:
        """What is to be computed: arguments of `_compute`, one for each fold whose predictions are not there."""
        if self.finished:
            return []
        return [(self.predict, data, folder, f"fold {number}/{len(self.sets)}")
                for number, (data, folder) in enumerate(zip(self.sets, self.folders, strict=True), 1)
                if not all(read_sealed(folder / f"{part}.csv") for part in ("test", "validation"))]

    def collect(self) -> pd.DataFrame:
        """Writes what the folds predicted; gives the test parts' predictions."""
        if self.finished:
            return read_predictions(self.files.folds)
        tables = {}
        for part, path in (("test", self.files.folds), ("validation", self.files.folds_validation)):
            rows = [read_predictions(io.BytesIO(read_sealed(folder / f"{part}.csv"))).assign(fold=number)
                    for number, folder in enumerate(self.folders, 1)]
            tables[part] = pd.concat(rows, ignore_index=True)
            write_csv(path, tables[part])
        scores = classification_metrics(tables["test"])
        update_json(self.files.stats, folds={
            "of": self.key, "how": self.how, "count": len(self.sets), "seed": self.seed, "tables": self._tables(),
            **scores, "videos": len(tables["test"])})
        return tables["test"]


def run_all(runs: Sequence[FoldRun], parallel: bool = True) -> list[pd.DataFrame]:
    """Predictions of all folds of each run, from disk where they are there.

    Each fold's predictions are kept in the cache as soon as they are there: what was interrupted goes on. Writes
    predictions/<model>_folds.csv, predictions/<model>_folds_validation.csv (the validation parts' predictions, which
    fusion is fitted to) and the entry `folds` of the statistics.

    Args:
        parallel: whether folds are computed side by side, in processes of their own (see `machine.in_processes`).

    Returns:
        For each run, one row per video that was tested: as a prediction table, with `fold`, counted from 1.
    """
    missing = [run.missing() for run in runs]
    for run, folds in zip(runs, missing, strict=True):
        if folds:
            run.prepare()
    for line in in_processes(_compute, [fold for folds in missing for fold in folds], parallel):
        if line:
            print(line, flush=True)
    return [run.collect() for run in runs]


def _compute(predict: PredictFold, data: VideoData, folder: Path, title: str) -> str:
    """Writes a fold's predictions, and gives its line."""
    test, validation, words = predict(data, folder)
    for name, table in (("validation", validation), ("test", test)):
        write_sealed(folder / f"{name}.csv", table.to_csv(index=False).encode())
    return words and f"{title}: {classification_metrics(test)['accuracy']:.3f} of {len(test)} videos ({words})"


def fold_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per fold: videos and accuracy."""
    right = (predictions["label"] == predictions["predicted"]).groupby(predictions["fold"])
    return right.agg(videos="size", accuracy="mean")
