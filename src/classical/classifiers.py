"""Classical machine learning on a clip's descriptors: tuned by whole groups, fitted once, later reloaded.

Tuning and fitting see the training and validation clips; the test set is opened by `evaluate`, `measure_latency`,
`ablation` and `importance` alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import skimage
import sklearn
import skops.io
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

import folds
from classical import descriptors
from classical.descriptors import FAMILIES, FisherVectors, clip_descriptors
from config import CACHE
from data_loader import read_clip_table
from experiment import prediction_table
from files import ClassicalFiles, differences, read_json, replaced_model, update_json, write_json
from machine import cores, environment, in_processes, memory_mb
from metrics import MANY, classification_metrics
from videos.library import VideoData
from videos.splits import clip_file, group_folds

FOLDS = 5
LATENCY_CLIPS = 10
ENCODER = "classical.descriptors.FisherVectors"  # as saved models name it
TRUSTED = [  # what a saved model may hold besides the types that skops trusts
    ENCODER, "sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling", "sklearn.tree._tree.Tree",
]


class ModelError(RuntimeError):
    """A saved model that must not be loaded, or one that can't be saved so that it can be; the message names the file,
    why, and what to do."""


@dataclass(frozen=True)
class ModelSpec:
    """One kind of model."""

    title: str  # its name as it is written
    build: Callable[[int], Pipeline]  # seed to an unfitted pipeline
    grid: list[dict]  # what is tuned, as for GridSearchCV; the first of equals is taken: the simplest stands first
    inputs: tuple[str, ...] = tuple(FAMILIES)  # what it sees: the families, or `cells`, the local motion
    calibrated: bool = False  # whether its scores must be made probabilities
    by_class: bool = False  # whether it takes as many times longer as there are classes


def _scaled(classifier: BaseEstimator) -> Pipeline:
    return Pipeline([("scale", "passthrough"), ("reduce", "passthrough"), ("classify", classifier)])


def _scalings(name: str, plain: list, standard: list) -> list[dict]:
    """Families as they are (each counts alike), or columns standardised, with PCA and without."""
    return [{"scale": ["passthrough"], f"classify__{name}": plain},
            {"scale": [StandardScaler()], "reduce": ["passthrough", PCA(0.95)], f"classify__{name}": standard}]


MODELS = {
    "linear_svm": ModelSpec(
        "linear SVM",
        lambda seed: _scaled(SVC(kernel="linear", class_weight="balanced")),  # faster on few, wide rows
        _scalings("C", [1.0, 10.0], [0.01]), calibrated=True),
    "rbf_svm": ModelSpec(
        "RBF SVM", lambda seed: _scaled(SVC(C=10.0, class_weight="balanced")),
        _scalings("gamma", [0.1, 0.3, 1.0], ["scale"]), calibrated=True),
    "random_forest": ModelSpec(
        "random forest", lambda seed: Pipeline([("classify", RandomForestClassifier(
            200, class_weight="balanced", random_state=seed))]),
        [{"classify__min_samples_leaf": [1, 3]}]),
    "gradient_boosting": ModelSpec(  # drawn columns: many times faster here than histograms of all of them
        "gradient boosting", lambda seed: Pipeline([("classify", GradientBoostingClassifier(
            n_estimators=60, subsample=0.8, max_features="sqrt", random_state=seed))]),
        [{"classify__max_depth": [1, 2, 3]}], by_class=True),
    "logistic_regression": ModelSpec(
        "logistic regression", lambda seed: _scaled(LogisticRegression(max_iter=2000, class_weight="balanced")),
        _scalings("C", [10.0, 100.0], [0.01])),
    "knn": ModelSpec(
        "k-nearest neighbours",
        lambda seed: _scaled(KNeighborsClassifier(weights="distance", algorithm="brute")),  # no file may hold its trees
        [{"reduce": ["passthrough", PCA(0.9)], "classify__n_neighbors": [1, 5, 9]}]),
    "fisher_svm": ModelSpec(
        "linear SVM on Fisher vectors", lambda seed: Pipeline([
            ("encode", FisherVectors(random_state=seed)),
            ("classify", SVC(kernel="linear", C=10.0, class_weight="balanced"))]),  # C hardly matters
        [{"encode__components": [24, 48]}], inputs=("cells",), calibrated=True),
}


def suited(classes: int) -> list[str]:
    """The names of the models that are fitted to so many classes: of MANY, not those that fit a tree for each class at
    every step, which takes hours; it is told which these are."""
    left = [spec.title for spec in MODELS.values() if spec.by_class and classes > MANY]
    if left:
        print(f"left out for {classes} classes, for each of which it fits a tree at every step: {', '.join(left)}")
    return [name for name, spec in MODELS.items() if spec.title not in left]


@dataclass
class ClassicalModel:
    """A model and what it is fitted for; `pipeline` takes descriptors to probabilities, in the order of `data.classes`.

    `reloaded` tells whether it came from a file rather than from fitting now.
    """

    name: str
    data: VideoData
    seed: int
    cache: Path
    pipeline: BaseEstimator | None = None
    reloaded: bool = False

    @property
    def title(self) -> str:
        """The model's name as it is written."""
        return MODELS[self.name].title

    @property
    def files(self) -> ClassicalFiles:
        """Where its results lie."""
        return ClassicalFiles(self.data.results, self.name)

    @property
    def stats(self) -> dict:
        """The statistics document as it is on disk now."""
        return read_json(self.files.stats)


def load_or_fit(name: str, data: VideoData, seed: int = 42, cache: Path = CACHE) -> ClassicalModel:
    """Reloads the model when the saved one is what is asked for; otherwise says in one line what differs, and fits it.

    A reload opens no clip and changes no file. A saved model that differs is moved to the folder `previous`. The seed
    is of folds, forests and mixtures; descriptors are kept in `cache`.

    Raises:
        ModelError: as `load_pipeline` and `save_pipeline`.
        VideoError, FileNotFoundError, ValueError: from the data, or a name that is not of MODELS.
    """
    if name not in MODELS:
        raise ValueError(f"no classical model {name!r}: there are {', '.join(MODELS)}")
    model = ClassicalModel(name, data, seed, cache)
    files, stats, asked = model.files, model.stats, _asked(model)
    whole = files.checkpoint.is_file() and {"fit_time", "cv_mean", "cv_std"} <= stats.keys()
    saved = read_json(files.sidecar) if whole else {}
    if reasons := differences(asked, saved) if saved else ["there is no saved model"]:
        print(f"fitting the {model.title}: {'; '.join(reasons)}")
        _fit(model, asked)
        return model
    model.pipeline, model.reloaded = load_pipeline(files.checkpoint, saved["sha256"]), True
    print(f"reloaded {files.checkpoint.name}: fitted in {stats['fit_time']:.1f} s, cross-validated accuracy "
          f"{stats['cv_mean']:.3f} ± {stats['cv_std']:.3f}")
    return model


def _asked(model: ClassicalModel) -> dict:
    spec, data = MODELS[model.name], model.data
    encoder = {"encoder": ENCODER} if "cells" in spec.inputs else {}
    search = f"{spec.build(model.seed)!r} {spec.grid} {calibration(spec, data)}"
    return {"model": model.name, "dataset": data.name, "classes": data.classes, "split": data.split["sha256"],
            "seed": model.seed, "search": hashlib.sha256(search.encode()).hexdigest()[:12],
            "scikit-learn": sklearn.__version__, **encoder,
            **{f"descriptors.{key}": value for key, value in descriptors.settings().items()}}


def _fit(model: ClassicalModel, asked: dict) -> None:
    """Fits a model and writes it, its statistics, and last the sidecar, which is what makes a saved model count."""
    list(in_processes(_ready, [()] * cores()))  # their start is no part of the time that fitting takes
    files, data, started = model.files, model.data, time.perf_counter()
    table = fitting_table(data)
    x = model_input(model.name, table, data.root, model.cache)
    described = time.perf_counter()
    model.pipeline, found = tune(MODELS[model.name], x, table, data, model.seed, cores())
    fitted = time.perf_counter()
    print(f"cross-validated accuracy {found['cv_mean']:.3f} ± {found['cv_std']:.3f} ({found['cv_how']}), "
          f"{fitted - described:.1f} s")
    saved = save_pipeline(model.pipeline, files, x)
    versions = {**environment(), "scikit-learn": sklearn.__version__, "scikit-image": skimage.__version__,
                "skops": skops.__version__}
    write_json(files.stats, {
        "model": model.name, "title": model.title, **found, "fit_time": fitted - described,
        "feature_time": described - started, "model_size_mb": len(saved) / 2**20, "train_memory_mb": memory_mb(),
        "dataset": data.name, "classes": data.classes, "split": data.split, "seed": model.seed,
        "descriptors": descriptors.settings(), "environment": versions})
    write_json(files.sidecar, {**asked, "environment": versions, "sha256": hashlib.sha256(saved).hexdigest()})


def _ready() -> None:
    """Nothing: a process that was asked for it has imported this module."""


def fitting_table(data: VideoData) -> pd.DataFrame:
    """The training and validation clips in one table; errors, a missing clip among them, as `read_clip_table`."""
    parts = [read_clip_table(data.splits[part], data.root, data.class_map) for part in ("train", "val")]
    return pd.concat(parts, ignore_index=True)


def model_input(name: str, table: pd.DataFrame, root: Path, cache: Path) -> np.ndarray:
    """(N, D) float32: what a model sees of a table's clips, side by side."""
    described = clip_descriptors(table, root, cache, names=MODELS[name].inputs)
    return np.hstack([values.reshape(len(table), -1) for values in described.values()])


def calibration(spec: ModelSpec, data: VideoData) -> str | None:
    """How a model's scores become probabilities (see `fit`); None where they are."""
    return ("sigmoid" if len(data.class_map) <= MANY else "temperature") if spec.calibrated else None


@threadpool_limits.wrap(limits=1)  # with two threads on two busy cores the same took 9 to 27 times as long
def fit(spec: ModelSpec, parameters: dict, x: np.ndarray, table: pd.DataFrame, data: VideoData,
        seed: int) -> BaseEstimator:
    """A model with these parameters, fitted to all rows.

    Scores of SVMs become probabilities by Platt's sigmoid, fitted to the scores that clips get when they are held out
    in folds: scikit-learn's own replacement of SVC's deprecated `probability`, but by groups. Temperature scaling, the
    alternative, becomes certain where all scored clips are right: in nested cross-validation on real clips (Punch and
    YoYo) the linear SVM's log loss was 0.185 with it and 0.135 with the sigmoid. Of MANY classes, though, each sigmoid
    is fitted to a few clips against all the others, and the answers are not the SVM's any more (of 101 drawn classes
    with six clips each, 0.998 were right in folds before the sigmoids, 0.624 of the test videos after them): there it
    is the temperature, which leaves them as they are.
    """
    model = spec.build(seed).set_params(**{name: clone(value, safe=False) for name, value in parameters.items()})
    if spec.calibrated:
        splits, _ = group_folds(table, FOLDS, data.split["groups_named"], seed)
        model = CalibratedClassifierCV(model, method=calibration(spec, data), cv=splits, ensemble=False)
    return model.fit(x, table["label"].map(data.class_map).to_numpy())


@threadpool_limits.wrap(limits=1)
def tune(spec: ModelSpec, x: np.ndarray, table: pd.DataFrame, data: VideoData,
         seed: int, jobs: int = 1) -> tuple[BaseEstimator, dict]:
    """Chooses a model's parameters by cross-validation, in as many processes as `jobs`, and fits it to all rows.

    Everything that learns from clips (scaling, components, mixtures) is inside the pipeline, so that it sees a fold's
    fitting clips only.

    Beside the fitted model it gives cv_mean, cv_std, cv_scores, cv_how and parameters. The scores are those of the
    chosen parameters in the folds that they were chosen by, hence slightly optimistic.
    """
    y = table["label"].map(data.class_map).to_numpy()
    splits, how = group_folds(table, FOLDS, data.split["groups_named"], seed)
    grid = _possible(spec.grid, min(len(rows) for rows, _ in splits))
    search = GridSearchCV(spec.build(seed), grid, scoring="accuracy", n_jobs=jobs, cv=splits,
                          refit=False, error_score="raise").fit(x, y)
    scores = [float(search.cv_results_[f"split{i}_test_score"][search.best_index_]) for i in range(len(splits))]
    parameters = {k: v if isinstance(v, (int, float, str)) else repr(v) for k, v in search.best_params_.items()}
    found = {"cv_mean": float(np.mean(scores)), "cv_std": float(np.std(scores)), "cv_scores": scores, "cv_how": how,
             "parameters": parameters}
    return fit(spec, search.best_params_, x, table, data, seed), found


def _possible(grid: list[dict], clips: int) -> list[dict]:
    """A grid without the numbers of neighbours that so few clips don't have."""
    return [{name: [value for value in values if name != "classify__n_neighbors" or value <= clips]
             for name, values in settings.items()} for settings in grid]


@threadpool_limits.wrap(limits=1)
def save_pipeline(pipeline: BaseEstimator, files: ClassicalFiles, x: np.ndarray) -> bytes:
    """Writes a fitted model, once it is known that `load_pipeline` gives it back, and gives the file's content.

    An earlier model moves to the folder `previous`. A ModelError where it isn't given back, or then predicts otherwise
    for the rows `x`: nothing is written, and an earlier model stays.
    """
    try:
        saved = skops.io.dumps(pipeline)
        same = np.allclose(_unpacked(saved).predict_proba(x), pipeline.predict_proba(x))
        why = "" if same else "loaded back, it predicts otherwise"
    except Exception as error:  # whatever is wrong with it shows now, not when it is needed
        why = f"it can't be loaded back: {error}"
    if why:
        raise ModelError(f"{files.checkpoint}: not saved: {why} (scikit-learn {sklearn.__version__}, skops "
                         f"{skops.__version__}; constraints.txt has the versions that were tested together)")
    with replaced_model(files) as temporary:
        temporary.write_bytes(saved)
    return saved


def load_pipeline(path: Path, sha256: str) -> BaseEstimator:
    """Loads a saved model, of which nothing is run before it is known to be the file that was written.

    A ModelError where it has another content than `sha256` says, or types that neither skops nor TRUSTED trusts.
    """
    saved = path.read_bytes()
    cure = "move it and its .json away to fit the model anew"
    if hashlib.sha256(saved).hexdigest() != sha256:
        raise ModelError(f"{path}: not the file that its sidecar describes (another sha256): {cure}")
    try:
        return _unpacked(saved)
    except ModelError as error:
        raise ModelError(f"{path}: {error}; {cure}") from None


def _unpacked(saved: bytes) -> BaseEstimator:
    if strange := sorted(set(skops.io.get_untrusted_types(data=saved)) - set(TRUSTED)):
        raise ModelError(f"holds types that a model of ours doesn't: {', '.join(strange)}")
    return skops.io.loads(saved, trusted=TRUSTED)


def predict(model: ClassicalModel, part: str = "test") -> pd.DataFrame:
    """A part's clips, a row each, as `experiment.predict`: clip_path, group, label, predicted, `p_<class>`s."""
    x = model_input(model.name, model.data.table(part), model.data.root, model.cache)
    probabilities = torch.from_numpy(model.pipeline.predict_proba(x).astype(np.float64))
    return prediction_table(model.data, part, probabilities)


def evaluate(model: ClassicalModel) -> pd.DataFrame:
    """`predict` of the test set, from disk where it is this very model's, else computed and written.

    Writes predictions/<model>.csv, and the metrics into the statistics.
    """
    def compute() -> pd.DataFrame:
        predictions = predict(model)
        update_json(model.files.stats, **classification_metrics(predictions), test_clips=len(predictions))
        return predictions

    return model.files.kept_table(model.files.predictions, compute)


def cross_validate(models: Sequence[ClassicalModel], count: int, share: float = 1.0) -> dict[str, pd.DataFrame]:
    """Models of one data set and seed, tuned, fitted and tested by `count` folds of whole groups, all side by side;
    tables, by the models' titles, and files as `folds.run_all`.

    `share` of each fold's training groups is kept, as by `splits.thinned`.

    The validation part is tuned and fitted on with the training part, as everywhere; its own predictions, which fusion
    is fitted to, are of a second model with the same parameters, fitted to the training part alone.
    """
    runs, first = [], models[0]
    sets, how = folds.fold_sets(first.data, count, first.seed, first.cache, share)
    for model in models:
        its, asked = replace(model, pipeline=None), {k: v for k, v in _asked(model).items() if k != "split"}
        runs.append(folds.FoldRun(model.data, model.files, asked, partial(_predict_fold, its), sets, how, model.seed,
                                  model.cache, partial(_describe, its)))
    tables = dict(zip((model.title for model in models), folds.run_all(runs), strict=True))
    for title, table in tables.items():
        right = (table["label"] == table["predicted"]).mean()
        print(f"{title}: {right:.3f} of {len(table)} videos in {table['fold'].nunique()} folds", flush=True)
    return tables


def _describe(model: ClassicalModel) -> None:
    """Computes what the folds will read of all clips."""
    for part in model.data.splits:
        model_input(model.name, model.data.table(part), model.data.root, model.cache)


def _predict_fold(model: ClassicalModel, data: VideoData, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    spec, its, clips = MODELS[model.name], replace(model, data=data), fitting_table(data)
    x = model_input(model.name, clips, data.root, model.cache)
    its.pipeline, found = tune(spec, x, clips, data, model.seed)
    test, parameters = predict(its), (its.pipeline.estimator if spec.calibrated else its.pipeline).get_params()
    rows = np.arange(len(clips)) < data.split["clips"]["train"]
    its.pipeline = fit(spec, {name: parameters[name] for name in found["parameters"]}, x[rows],
                       clips[rows].reset_index(drop=True), data, model.seed)
    return test, predict(its, "val"), ""


def measure_latency(model: ClassicalModel) -> dict[str, float]:
    """Seconds for one clip, warm, medians over test clips; measured once and kept.

    They are `decode`, `descriptors`, `model` and `total`; `clips` is how many were measured. As for the CNNs,
    `inference_time` in the statistics is without decoding: descriptors and model. In one process, models of the same
    clips share the first two.
    """
    def measure() -> dict[str, float]:
        clips, seconds = model.data.table("test")["clip_path"].head(LATENCY_CLIPS).tolist(), []
        for number, clip in enumerate([clips[0], *clips]):  # the first warms up
            described, *before = _timed_description(clip_file(model.data.root, clip), warm=number > 0)
            row = np.hstack([described[name].ravel() for name in MODELS[model.name].inputs], dtype=np.float32)[None]
            started = time.perf_counter()
            model.pipeline.predict_proba(row)
            seconds.append([*before, time.perf_counter() - started])
        parts = dict(zip(("decode", "descriptors", "model"), np.median(seconds[1:], axis=0).tolist(), strict=True))
        update_json(model.files.stats, inference_time=parts["descriptors"] + parts["model"])
        return {**parts, "total": sum(parts.values()), "clips": len(clips)}

    return model.files.kept("latency", measure)


@lru_cache(LATENCY_CLIPS + 1)
def _timed_description(file: Path, warm: bool) -> tuple[dict[str, np.ndarray], float, float]:
    """A clip's descriptors, the seconds of its decoding and those of describing it; `warm`: after another one."""
    started = time.perf_counter()
    pairs = descriptors.read_pairs(file)
    decoded = time.perf_counter()
    described = descriptors.describe_pairs(*pairs)
    return described, decoded - started, time.perf_counter() - decoded


def summary(root: Path) -> pd.DataFrame:
    """One row per classical model with this results root, in MODELS' order: its scores and costs, from the statistics.

    A FileNotFoundError where no classical model was fitted there.
    """
    stats = [found for name in MODELS if (found := read_json(ClassicalFiles(root, name).stats))]
    if not stats:
        raise FileNotFoundError(f"{root}: no classical models there; run 02_classical_ml first")
    columns = {"title": "model", "cv_mean": "cv accuracy", "cv_std": "cv std", "accuracy": "test accuracy",
               "precision": "macro precision", "recall": "macro recall", "f1": "macro F1",
               "fit_time": "tuning and fit [s]", "inference_time": "latency [s/clip]", "model_size_mb": "file [MiB]"}
    return pd.DataFrame(stats).reindex(columns=list(columns)).rename(columns=columns)


def ablation(model: ClassicalModel) -> pd.DataFrame:
    """What each family of descriptors is worth: the same kind of model, tuned alike, on parts of the descriptors.

    One row per selection (each family, appearance, motion, both): descriptors, dimensions, cv accuracy, cv std and test
    accuracy. What was found for this very model, one that sees the families, is read, not repeated.
    """
    def compute() -> dict[str, list]:
        data, table, test = model.data, fitting_table(model.data), model.data.table("test")
        fitted_on, tested_on = (clip_descriptors(clips, data.root, model.cache) for clips in (table, test))
        chosen = {family: [family] for family in FAMILIES}
        for group in ("appearance", "motion"):
            chosen[group] = [family for family, about in FAMILIES.items() if about.group == group]
        rows, y = [], test["label"].map(data.class_map)
        for title, families in {**chosen, "both": list(FAMILIES)}.items():
            x, part = (np.hstack([of[family] for family in families]) for of in (fitted_on, tested_on))
            whole = tuple(families) == MODELS[model.name].inputs  # the model itself
            tuned, found = ((model.pipeline, model.stats) if whole else
                            tune(MODELS[model.name], x, table, data, model.seed, cores()))
            rows.append({"descriptors": title, "dimensions": part.shape[1], "cv accuracy": found["cv_mean"],
                         "cv std": found["cv_std"], "test accuracy": float(tuned.score(part, y))})
        return {"rows": rows}

    return pd.DataFrame(model.files.kept("ablation", compute)["rows"])


def importance(model: ClassicalModel, repeats: int = 30) -> pd.DataFrame:
    """Permutation importance (Breiman, 2001) of whole families, whose columns change test clips together.

    One row per family, the most important first: family, group, mean and standard deviation of the fall in test
    accuracy over `repeats` permutations, and the mean fall in the true class's probability, which also shows what no
    answer turned on. A model that sees local motion only is a ValueError.
    """
    if "cells" in MODELS[model.name].inputs:
        raise ValueError(f"{model.name} sees local motion only: there are no families to compare")
    table = model.data.table("test")
    x = clip_descriptors(table, model.data.root, model.cache)
    y, rng = table["label"].map(model.data.class_map).to_numpy(), np.random.default_rng(model.seed)

    def score(families: dict[str, np.ndarray]) -> np.ndarray:
        p = model.pipeline.predict_proba(np.hstack(list(families.values())))
        return np.array([accuracy_score(y, p.argmax(axis=1)), p[np.arange(len(y)), y].mean()])

    whole, rows = score(x), []
    for name, family in FAMILIES.items():
        permuted = (x[name][rng.permutation(len(y))] for _ in range(repeats))
        falls = np.stack([whole - score({**x, name: columns}) for columns in permuted])
        rows.append((name, family.group, falls[:, 0].mean(), falls[:, 0].std(), falls[:, 1].mean()))
    falls = pd.DataFrame(rows, columns=["family", "group", "accuracy fall", "std", "probability fall"])
    return falls.sort_values(["accuracy fall", "probability fall"], ascending=False, ignore_index=True)
