"""Models made ready to answer: loaded with their references, which are computed where they are not there yet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from deployment.answer import Model
from deployment.reference import Reference, make_reference, read_reference, write_reference
from deployment.trained import CNNS, Judge, NotTrained, load_judge, saved_model
from files import read_json, write_json

FUSION = "fusion"
FUSED = CNNS  # whose answers a fusion joins


def load_model(name: str, dataset: str, results: Path, device: str | None = None) -> Model:
    """A model of a data set's results: `2d`, `3d`, a classical model's name, or `fusion`.

    What it needs to know of its training videos is computed once, which a printed line tells, and kept.

    Args:
        dataset: as `places.locate`; opened only where its videos have to be looked at.
        results: the data set's.

    Raises:
        NotTrained: a model is not there, or the data set is not that which it was trained on any more.
        WeightsError, classical.classifiers.ModelError: a saved model can't be loaded.
        FileNotFoundError, ValueError: the data set has to be opened, and can't be.
    """
    names = FUSED if name == FUSION else (name,)
    judges = [load_judge(its, results, device) for its in names]
    references = [_reference(judge, dataset) for judge in judges]
    if name == FUSION:
        return Model("fusion of " + " and ".join(judge.title for judge in judges), judges, references,
                     _fusion_weights(judges))
    return Model(judges[0].title, judges, references, [1 / references[0].temperature])


def _reference(judge: Judge, dataset: str) -> Reference:
    known = read_reference(judge.files)
    if known is None:
        print(f"the {judge.title} looks at its training videos once more, to know what is unlike them",
              file=sys.stderr, flush=True)
        known = _computed(judge, dataset)
        write_reference(judge.files, known)
    return known


def _computed(judge: Judge, dataset: str) -> Reference:
    """The reference of a judge, of the training videos of its data set."""
    import os

    from tqdm import tqdm

    from config import asked_number, name_list
    from videos.decoding import DEFAULT_RATE, read_track, stream_frames
    from videos.library import open_data
    from videos.splits import clip_file

    results = judge.files.root
    data = open_data(dataset, os.environ.get("SPLIT") or None, name_list(os.environ.get("CLASSES", "")),
                     asked_number("SEED"), results if dataset == "ucf101" else results.parent)
    _, saved = saved_model(judge.name, results)
    if saved["split"] != data.split["sha256"]:
        raise NotTrained(f"{data.root}: other clips, classes or another split than the {judge.title} was trained on: "
                         "train it again with make run, or set SPLIT, CLASSES and SEED as they were then")
    table, features, seconds = data.table("train"), [], []
    for path in tqdm(table["clip_path"], "training videos", unit="clip", ncols=90, delay=1):
        file = clip_file(data.root, path)
        info = read_track(file).info
        view = judge.view(info, 0, info.frames)
        pictures = {index: judge.prepare(picture)
                    for index, picture in stream_frames(file, lambda _, view=view: np.unique(view))}
        features.append(judge.judge([view], pictures, info.fps or DEFAULT_RATE, {})[1][0])
        seconds.append(info.frames / (info.fps or DEFAULT_RATE))
    return make_reference(judge.files.sha256, np.stack(features), table["clip_path"].tolist(), table["label"].tolist(),
                          table["group"].tolist(), np.array(seconds), _temperature(judge))


def _temperature(judge: Judge) -> float:
    """Fitted to the validation predictions of a CNN; classical models give calibrated probabilities."""
    validation = getattr(judge.files, "validation", None)
    if validation is None or not judge.files.is_current(validation):
        return 1.0
    from files import read_predictions
    from metrics import fit_temperature

    return fit_temperature(read_predictions(validation))


def _fusion_weights(judges: list[Judge]) -> list[float]:
    """Of each judge's log-probabilities, fitted to the validation predictions; kept beside the saved models."""
    path = judges[0].files.checkpoint.with_name("fusion.json")
    of, kept = [judge.files.sha256 for judge in judges], read_json(path)
    if kept.get("of") == of:
        return kept["weights"]
    if without := [judge.title for judge in judges if not judge.files.is_current(judge.files.validation)]:
        raise NotTrained(f"no validation predictions of the {' and '.join(without)} to weigh a fusion by: run their "
                         "notebooks with make run")
    from files import read_predictions
    from metrics import fusion_weights

    weights = fusion_weights([read_predictions(judge.files.validation) for judge in judges]).tolist()
    write_json(path, {"of": of, "weights": weights})
    return weights
