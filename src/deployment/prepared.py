"""Models made ready to answer: loaded with their references, which are computed where they are not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from config import CACHE, Recipe
from deployment.answer import Model
from deployment.reference import Reference, make_reference, read_reference, write_reference
from deployment.trained import CNNS, Judge, NotTrained, saved_model, temperature_of
from files import read_json, write_json

if TYPE_CHECKING:
    from videos.library import VideoData

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
    return Model(judges[0].title, judges, references, [1 / temperature_of(judges[0].files)])


def load_judge(name: str, results: Path, device: str | None = None) -> Judge:
    """A trained model. What its kind needs is imported now, and no more.

    Raises:
        NotTrained: as `trained.saved_model`.
        WeightsError, classical.classifiers.ModelError: its file can't be loaded.
    """
    if name in CNNS:
        from deployment.cnn import Cnn

        return Cnn(name, results, device)
    from deployment.classical import Classical

    return Classical(name, results)


def _reference(judge: Judge, dataset: str) -> Reference:
    known = read_reference(judge.files)
    if known is None:
        print(f"the {judge.title} looks at its training videos once more, to know what is unlike them", flush=True)
        known = _computed(judge, dataset)
        write_reference(judge.files, known)
    return known


def _computed(judge: Judge, dataset: str) -> Reference:
    """The reference of a judge, of the training videos of its data set."""
    from videos.library import open_asked

    results = judge.files.root
    data = open_asked(dataset, look_first=False, results=results if dataset == "ucf101" else results.parent)
    _, saved = saved_model(judge.name, results)
    if saved["split"] != data.split["sha256"]:
        raise NotTrained(f"{data.root}: other clips, classes or another split than the {judge.title} was trained on: "
                         "train it again with make run, or set SPLIT, CLASSES and SEED as they were then")
    table = data.table("train")
    seconds = table["clip_path"].map(data.facts.set_index("clip_path")["duration"])
    return make_reference(judge.files.identity, _features(judge, data, saved), table["clip_path"].tolist(),
                          table["label"].tolist(), table["group"].tolist(), seconds.to_numpy())


def _features(judge: Judge, data: VideoData, saved: dict) -> np.ndarray:
    """(N, D) features of the training videos; what was computed of them in training is not computed again."""
    if judge.name in CNNS:
        from experiment import pooled_features, prepare

        its = prepare(judge.name, data, Recipe(**saved["recipe"]), saved["weights"], saved["seed"], saved["backbone"],
                      str(judge.device))
        return pooled_features(its.build(), "train")
    from classical.classifiers import model_input
    from deployment.classical import embedded

    return embedded(judge.pipeline, model_input(judge.name, data.table("train"), data.root, CACHE))


def _fusion_weights(judges: list[Judge]) -> list[float]:
    """Of each judge's log-probabilities, fitted to the validation predictions; kept beside the saved models."""
    path = judges[0].files.checkpoint.with_name("fusion.json")
    of, kept = [judge.files.identity for judge in judges], read_json(path)
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
