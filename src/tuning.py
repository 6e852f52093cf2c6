"""Hyperparameter search over the deep models' head, on kept activations; the test part takes no part in it.

    python src/tuning.py --kind 2d --trials 60 [--cuts head stage] [--storage URL] [--test]

DATASET, WEIGHTS, SPLIT, CLASSES and SEED are taken from the environment, as by the notebooks. A trial is one
set of values, judged by its cross-validated loss on the training and validation clips, whole groups held out;
the trials are kept in a database, so that an interrupted study goes on and several processes can share one.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import hashlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState
from sklearn.metrics import accuracy_score, log_loss
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from torch import nn
from tqdm import tqdm

from config import CACHE, Recipe, get_recipe, shown
from data_loader import VideoError
from experiment import (
    Experiment, VideoData, find_folder, make_optimizer, make_scheduler, open_data, predict_probabilities, untrained,
)
from models import (
    POOLINGS, TemporalPool, VideoModel, WeightsError, choose_backbone, choose_source,
)
from splits import group_pairs, stratified_folds
from utils import environment, eval_one_epoch, read_json, seed_everything, train_one_epoch, update_json

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a progress bar tells enough

FOLDS = 5  # at most; fewer where a class has fewer groups
CUTS = ("head", "stage")
LOG_RANGES = {"lr": (1e-4, 3e-2), "weight_decay": (1e-5, 1e-1)}
RANGES = {"label_smoothing": (0.0, 0.9), "dropout": (0.0, 0.8)}
EPOCHS = {"head": (2, 24), "stage": (2, 12)}
SCHEDULES = ("cosine", "step")
TUNED = (*LOG_RANGES, *RANGES, "schedule", "epochs", "pooling", "trained")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
HEARTBEAT = 10  # seconds between a running trial's signs of life; after three without one it counts as dead


# ---------------------------------------------------------------- clips as tensors in memory

@dataclass(frozen=True)
class Views:
    """What a head sees of the clips at one cut of the model, and the model that its initial layers are from.

    Attributes:
        augmented: (N, V, ...) float16 activations of V training views of each clip.
        centre: (N, 1, ...) float16 activations of its evaluation view.
        labels: (N,) integers.
    """

    model: VideoModel
    augmented: torch.Tensor
    centre: torch.Tensor
    labels: torch.Tensor


class Batches:
    """Mini-batches of one view a clip, from (N, V, ...) tensors; `shuffle` draws order and views anew."""

    def __init__(self, x: torch.Tensor, labels: torch.Tensor, size: int, shuffle: bool = False):
        self.x, self.labels, self.size, self.shuffle = x, labels, size, shuffle

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n, views = self.x.shape[:2]
        order, view = torch.arange(n), torch.zeros(n, dtype=torch.long)
        if self.shuffle:
            order, view = torch.randperm(n), torch.randint(views, (n,))
        for rows in order.split(self.size):
            yield self.x[rows, view[rows]].float(), self.labels[rows]


def _activations(experiment: Experiment, part: str, train: bool,
                 views: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A part's (N, V, ...) float16 activations and (N,) labels, in memory; training and search share them."""
    kept = experiment.activations(part, views, train)
    x = torch.stack([clip.half() for clip, _ in kept])
    return x.to(experiment.device), torch.tensor(kept.labels, device=experiment.device)


def load_views(experiment: Experiment, parts: tuple[str, ...]) -> Views:
    """The parts' clips, one after another, as `Views`."""
    augmented = [_activations(experiment, part, True, experiment.recipe.train_views)[0] for part in parts]
    centre = [_activations(experiment, part, False, 1) for part in parts]
    return Views(experiment.model, torch.cat(augmented), torch.cat([x for x, _ in centre]),
                 torch.cat([labels for _, labels in centre]))


# ---------------------------------------------------------------- one head

def new_head(model: VideoModel, recipe: Recipe) -> nn.Sequential:
    """An untrained head, as `model.head` is built, with the recipe's pooling and dropout."""
    stage, pool, (_, linear) = model.head
    pool = TemporalPool(recipe.pooling, linear.in_features) if recipe.kind == "2d" else copy.deepcopy(pool)
    classifier = nn.Sequential(nn.Dropout(recipe.dropout), nn.Linear(linear.in_features, linear.out_features))
    return nn.Sequential(copy.deepcopy(stage), pool, classifier).to(linear.weight.device)


def train_head(views: Views, rows: np.ndarray, recipe: Recipe, seed: int) -> nn.Sequential:
    """Trains a new head for all of the recipe's epochs; their number is searched, so nothing stops early.

    Args:
        views: the clips.
        rows: indices of those that are trained on.
        recipe: gives optimiser, schedule, epochs, batch size, smoothing, dropout and pooling.
        seed: of initial values, order, views and dropout.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    seed_everything(seed)
    head, x = new_head(views.model, recipe), views.augmented[rows]
    module = head
    if not list(head[:2].parameters()):  # pooling without parameters is done once, not once an epoch
        with torch.no_grad():
            module, x = head[2], head[:2](x.flatten(0, 1).float()).unflatten(0, x.shape[:2])  # (n, V, F)
    batches = Batches(x, views.labels[rows], recipe.batch_size, shuffle=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    optimizer = make_optimizer(recipe, list(head.parameters()))
    scheduler, each_step = make_scheduler(recipe, optimizer, len(batches))
    for _ in range(recipe.epochs):
        train_one_epoch(module, batches, optimizer, criterion, x.device,
                        scheduler.step if each_step else None)
        if not each_step:
            scheduler.step()
    return head


@contextmanager
def _few_threads(recipe: Recipe):
    """One thread where only the head is trained: its operations are too small to be shared out.

    On two cores that others used as well, a step took 1.3 to 3.8 ms with one thread and 7 to 55 ms with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if recipe.trained == "head" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the objective

def make_folds(data: VideoData, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of the training and validation clips, stratified by class, no group in two of them.

    Groups are numbered anew in each class, so that a group is the pair (label, group). Where clips name no
    groups, the folds are stratified by class alone, which is said in one line.

    Returns:
        (training, held out) pairs of indices into the training clips followed by the validation clips.

    Raises:
        ValueError: a class has fewer than two groups (or clips) there.
    """
    clips = pd.concat([data.table("train"), data.table("val")], ignore_index=True)
    fewest = group_pairs(clips).groupby(clips["label"]).nunique()
    folds = min(FOLDS, fewest.min())
    if folds < 2:
        raise ValueError(f"{fewest.idxmin()} has a single group in the training and validation clips: "
                         "cross-validation needs two; add clips of other groups, or leave the class out")
    grouped = data.split["groups_named"]
    if not grouped:
        print("the clips name no groups: the folds of the search are stratified by class alone")
    return stratified_folds(clips, folds, grouped, seed)


def suggest(trial: Trial, kind: str, cuts: tuple[str, ...]) -> dict:
    """A trial's values, by recipe field."""
    values = {name: trial.suggest_float(name, *bounds, log=True) for name, bounds in LOG_RANGES.items()}
    values |= {name: trial.suggest_float(name, *bounds) for name, bounds in RANGES.items()}
    values["schedule"] = trial.suggest_categorical("schedule", SCHEDULES)
    values["epochs"] = trial.suggest_int("epochs", *EPOCHS[cuts[-1]])
    if kind == "2d":
        values["pooling"] = trial.suggest_categorical("pooling", POOLINGS)
    values["trained"] = trial.suggest_categorical("trained", cuts) if len(cuts) > 1 else cuts[0]
    return values


class Objective:
    """A trial's cross-validated loss: cross-entropy without smoothing, averaged over all held-out clips.

    After each fold the average so far is reported, by which a poor trial is pruned. Every trial sees the same
    folds, initial values and order.

    Args:
        views: by cut.
        folds: from `make_folds`.
        recipe: for the fields that are not searched.
        seed: of the trainings.
    """

    def __init__(self, views: dict[str, Views], folds: list, recipe: Recipe, seed: int):
        self.views, self.folds, self.recipe, self.seed = views, folds, recipe, seed

    def __call__(self, trial: Trial) -> float:
        recipe = dataclasses.replace(self.recipe, **suggest(trial, self.recipe.kind, tuple(self.views)))
        with _few_threads(recipe):
            return self._cross_validate(trial, recipe)

    def _cross_validate(self, trial: Trial, recipe: Recipe) -> float:
        losses, accuracies, sizes = [], [], []
        for fold, (rows, held_out) in enumerate(self.folds):
            try:
                loss, accuracy = self._score(recipe, rows, held_out, self.seed + fold)
            except FloatingPointError as error:
                raise optuna.TrialPruned(str(error)) from error
            losses.append(loss)
            accuracies.append(accuracy)
            sizes.append(len(held_out))
            trial.report(float(np.average(losses, weights=sizes)), fold)
            if fold + 1 < len(self.folds) and "setting" not in trial.user_attrs and trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("fold_losses", losses)
        trial.set_user_attr("accuracy", float(np.average(accuracies, weights=sizes)))
        return float(np.average(losses, weights=sizes))

    def _score(self, recipe, rows, held_out, seed) -> tuple[float, float]:
        views = self.views[recipe.trained]
        head = train_head(views, rows, recipe, seed)
        batches = Batches(views.centre[held_out], views.labels[held_out], 64)
        return eval_one_epoch(head, batches, nn.CrossEntropyLoss(), views.labels.device)


# ---------------------------------------------------------------- the study

def run_study(kind: str, data: VideoData, weights: str = "auto", trials: int = 60, seed: int = 42,
              cuts: tuple[str, ...] = ("head",), storage: str | None = None, cache: Path = CACHE,
              recipe: Recipe | str = "recommended") -> optuna.Study:
    """Runs a study until it has `trials` finished trials, or loads it where it has them.

    Loading opens no clip and no activation. The trials of an interrupted study count; one whose process died
    is marked as failed and made up for. Processes that run the same study share its trials. The values of the
    recipe and of the seed come first, and are never pruned. A study whose data, split, classes, weights,
    recipe, cuts or seed differ is another one, in the same database.

    Args:
        kind: `2d` or `3d`.
        data: from `open_data`.
        weights: `auto`, `torchvision`, `packaged` or `none`; `auto` accepts what a finished study has.
        trials: finished ones (pruned ones included) in the whole study.
        seed: of folds, trainings and sampler.
        cuts: what of the model may be trained. `head` takes seconds a trial. `stage` (the last stage too) is
            for a long budget: on two shared cores one step took 3 to 4 s, and a trial has hundreds.
        storage: database URL, such as postgresql://...; None takes `tuning/<kind>.db` in the results.
        cache: where activations are kept.
        recipe: a name, or a `Recipe`; gives what is not searched, and the default values.

    Returns:
        The study, with at least `trials` finished trials.

    Raises:
        ValueError: fewer than two trials, an unknown cut, a storage that can't be opened, too few groups.
        WeightsError: the pretrained weights can't be had.
        VideoError, FileNotFoundError: from the data.
    """
    recipe = get_recipe(recipe, kind) if isinstance(recipe, str) else recipe
    if trials < 2 or not cuts or set(cuts) - set(CUTS):
        raise ValueError(f"trials is {trials}, and at least 2 (the default and the seed's values); "
                         f"cuts is {' '.join(cuts) or 'empty'}, and of {', '.join(CUTS)}")
    cuts = tuple(cut for cut in CUTS if cut in cuts)
    database = _open_storage(storage, data.results / "tuning" / f"{kind}.db")
    if study := _finished(database, data, recipe, weights, cuts, seed, trials):
        finished = _count(study, FINISHED)
        print(f"reloaded the {kind} study: {finished} trials, best loss {study.best_value:.4f}")
        return study
    source = choose_source(kind, weights)
    study = _study(database, _settings(data, recipe, source, cuts, seed))
    folds = make_folds(data, seed)
    views = {cut: load_views(untrained(data, dataclasses.replace(recipe, trained=cut), source, seed, cache=cache),
                             ("train", "val")) for cut in cuts}
    fill(study, Objective(views, folds, recipe, seed), trials, seed, _anchors(recipe, cuts), f"{kind} search")
    return study


def _settings(data: VideoData, recipe: Recipe, source: str, cuts: tuple[str, ...], seed: int) -> dict:
    """All that makes two trials comparable, as plain types."""
    return {"kind": recipe.kind, "backbone": choose_backbone(recipe.kind, source), "weights": source,
            "cuts": list(cuts), "dataset": data.name, "split": data.split["sha256"], "classes": data.classes,
            "seed": seed, "recipe": recipe.to_dict(),
            "space": [FOLDS, LOG_RANGES, RANGES, EPOCHS[cuts[-1]], SCHEDULES, POOLINGS]}


def _study_name(settings: dict) -> str:
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return (f"{settings['kind']}-{settings['backbone']}-{settings['weights']}-{'+'.join(settings['cuts'])}-"
            f"{settings['dataset'][:60]}-{len(settings['classes'])}classes-split{settings['split'][:8]}-"
            f"seed{settings['seed']}-{digest}")


def _open_storage(url: str | None, default: Path) -> optuna.storages.RDBStorage:
    """The database, with signs of life of running trials."""
    if url is None:
        default.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{default}"
    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for seconds in (0.5, 1, 2, 4, None):
        try:
            with _quiet():
                return optuna.storages.RDBStorage(url, waits, heartbeat_interval=HEARTBEAT,
                                                  grace_period=3 * HEARTBEAT)
        except (SQLAlchemyError, ImportError) as error:
            if seconds and ("already exists" in str(error) or "UNIQUE" in str(error)):
                time.sleep(seconds)  # another process makes the same tables just now
                continue
            reason = str(error).splitlines()[0]
            raise ValueError(f"storage {url.rsplit('@')[-1]} can't be opened ({reason}): name a database URL "
                             "whose driver is installed, or move a broken file away") from error


def _study(storage: optuna.storages.RDBStorage, settings: dict) -> optuna.Study:
    """The study of these settings, made where it is not there."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=8)
    study = optuna.create_study(study_name=_study_name(settings), storage=storage, pruner=pruner,
                                load_if_exists=True)
    if not study.user_attrs:
        study.set_user_attr("settings", settings)
    return study


def _finished(storage, data, recipe, weights, cuts, seed, trials) -> optuna.Study | None:
    """The study as asked for where it has enough finished trials; `auto` accepts either source of weights."""
    known = optuna.get_all_study_names(storage)
    for source in ("torchvision", "packaged") if weights == "auto" else (weights,):
        settings = _settings(data, recipe, source, cuts, seed)
        if _study_name(settings) in known and _count(study := _study(storage, settings), FINISHED) >= trials:
            return study
    return None


def _count(study: optuna.Study, states: tuple[TrialState, ...]) -> int:
    return len(study.get_trials(deepcopy=False, states=states))


def _anchors(recipe: Recipe, cuts: tuple[str, ...]) -> dict[str, dict]:
    """The values that are tried first, by name: the recipe's and the seed's."""
    anchors = {}
    for name, its in (("default", recipe), ("seed", get_recipe("seed", recipe.kind))):
        its = its if its.trained in cuts else dataclasses.replace(its, trained=cuts[0])
        anchors[name] = {field: getattr(its.resolved(""), field) for field in TUNED}
    return anchors


class _Superfluous(Exception):
    """Another process took the last place, or the same anchor."""


def fill(study: optuna.Study, objective: Callable[[Trial], float], trials: int, seed: int,
         anchors: dict[str, dict], title: str) -> None:
    """Runs trials until the study has `trials` finished ones, together with whatever other processes run.

    Args:
        study: in a database.
        objective: of a trial.
        trials: finished ones in the whole study.
        seed: of the sampler, with the number of trials so far: an interrupted study goes on as it would.
        anchors: values that come first, by the name that is kept as the trial's attribute `setting`.
        title: of the progress bar.
    """

    def within_target(trial: Trial) -> float:
        earlier = [t for t in study.get_trials(deepcopy=False)
                   if t.number < trial.number and t.state != TrialState.FAIL]
        setting = trial.user_attrs.get("setting")
        if len(earlier) >= trials or setting and any(t.user_attrs.get("setting") == setting for t in earlier):
            raise _Superfluous
        return objective(trial)

    with tqdm(total=trials, desc=title, unit="trial", file=sys.stdout, ncols=90) as progress, _quiet():
        while (finished := _count(study, FINISHED)) < trials:
            _show(progress, study, finished)
            if finished + _count(study, (TrialState.RUNNING,)) >= trials:  # others are at the last ones
                time.sleep(0.2)
                optuna.storages.fail_stale_trials(study)
                _fail_silent(study)
                continue
            _enqueue(study, anchors)
            drawn = np.random.SeedSequence([seed, len(study.get_trials(deepcopy=False))]).generate_state(1)
            study.sampler = optuna.samplers.TPESampler(seed=int(drawn[0]))
            with suppress(UpdateFinishedTrialError):  # stalled for so long that others took it for dead
                study.optimize(within_target, n_trials=1, catch=(_Superfluous,))
        _show(progress, study, finished)


def _fail_silent(study: optuna.Study) -> None:
    """Fails running trials whose process died before its first sign of life: Optuna's own cleaning passes over them."""
    storage = study._storage
    with getattr(storage, "_backend", storage).engine.connect() as connection:
        alive = set(connection.execute(text("select trial_id from trial_heartbeats")).scalars())
    dead = datetime.datetime.now() - datetime.timedelta(seconds=3 * HEARTBEAT)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial._trial_id not in alive and trial.datetime_start < dead:
            with suppress(UpdateFinishedTrialError):  # another process was faster
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _show(progress: tqdm, study: optuna.Study, finished: int) -> None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    progress.n = finished
    progress.set_postfix(loss=f"{min((t.value for t in complete), default=np.nan):.4f}")


def _enqueue(study: optuna.Study, anchors: dict[str, dict]) -> None:
    """Queues the anchors that are neither finished, running nor queued."""
    present = {t.user_attrs.get("setting") for t in study.get_trials(deepcopy=False)
               if t.state != TrialState.FAIL}
    for name, values in anchors.items():
        if name not in present:
            study.enqueue_trial(values, user_attrs={"setting": name})


@contextmanager
def _quiet():
    """Without Optuna's notes that heartbeats are experimental and that an anchor lies outside its range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Fixed parameter", UserWarning)
        yield


# ---------------------------------------------------------------- what came out

def best_recipe(study: optuna.Study, base_recipe: Recipe) -> Recipe:
    """The base recipe with the values of the trial with the lowest loss, named `tuned`.

    `trained` becomes the cut that the values were found for: a study of the head alone finds the best head on
    a frozen network, which need not beat a recipe that trains the last stage as well.
    """
    return dataclasses.replace(base_recipe, name="tuned", **_values(study, study.best_trial))


def _values(study: optuna.Study, trial: FrozenTrial) -> dict:
    """A trial's values by recipe field, what is trained among them."""
    return {**trial.params, "trained": trial.params.get("trained", study.user_attrs["settings"]["cuts"][0])}


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """The finished trials.

    Returns:
        One row a trial: trial (number), setting (`default`, `seed` or empty), state (`complete` or `pruned`),
        loss (of a pruned trial: over the folds that it saw), accuracy, folds, seconds, and a column a value.
    """
    rows = []
    for trial in study.get_trials(deepcopy=False, states=FINISHED):
        losses = trial.intermediate_values
        rows.append({"trial": trial.number, "setting": trial.user_attrs.get("setting", ""),
                     "state": trial.state.name.lower(), "loss": losses[max(losses)] if losses else np.nan,
                     "accuracy": trial.user_attrs.get("accuracy", np.nan), "folds": len(losses),
                     "seconds": trial.duration.total_seconds(), **trial.params})
    return pd.DataFrame(rows)


def compare(study: optuna.Study) -> pd.DataFrame:
    """The default, the seed's and the chosen values, judged by the same folds.

    The chosen trial's loss is the lowest of many and so flatters it: `test_of_choice` tells whether it holds.

    Returns:
        One row a setting: trial, loss (cross-validated), loss_sd (over folds), accuracy, a column a value.
    """
    trials = {"default": None, "seed": None, "chosen": study.best_trial}  # in this order
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if "setting" in trial.user_attrs:
            trials[trial.user_attrs["setting"]] = trial
    rows = {name: {"trial": trial.number, "loss": trial.value,
                   "loss_sd": float(np.std(trial.user_attrs["fold_losses"], ddof=1)),
                   "accuracy": trial.user_attrs["accuracy"], **_values(study, trial)}
            for name, trial in trials.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def importances(study: optuna.Study) -> pd.Series:
    """Importance of each searched value by PED-ANOVA (Watanabe et al. 2023): shares of one, largest first."""
    return pd.Series(optuna.importance.get_param_importances(study), name="importance", dtype=float)


def test_of_choice(study: optuna.Study, data: VideoData, seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
                   cache: Path = CACHE) -> pd.DataFrame:
    """Whether the search helped: heads with the default and the chosen values, on the test part.

    Both are trained on the training part by the code of the search, once a seed. The test part is looked at
    once for a chosen trial: the rows are kept in `tuning/<kind>.json` in the results, and read from there.

    Returns:
        One row a setting (`default`, `tuned`) and seed: loss and accuracy over the test videos, each video's
        probabilities averaged over the recipe's test views.
    """
    settings = study.user_attrs["settings"]
    path = data.results / "tuning" / f"{settings['kind']}.json"
    key = f"{study.study_name} trial {study.best_trial.number} seeds {' '.join(map(str, seeds))}"
    if (kept := read_json(path).get(key)) is None:
        base = Recipe(**settings["recipe"])
        default = dataclasses.replace(base, **_anchors(base, settings["cuts"])["default"])
        recipes = {"default": default, "tuned": best_recipe(study, base)}
        rows = [{"setting": name, **row} for name, recipe in recipes.items()
                for row in _test(recipe, settings, data, seeds, cache)]
        kept = {"rows": rows, "recipes": {name: recipe.to_dict() for name, recipe in recipes.items()},
                "test_videos": len(data.table("test")), "environment": environment()}
        update_json(path, **{key: kept})
    return pd.DataFrame(kept["rows"])


def reading(choice: pd.DataFrame, videos: int) -> str:
    """Whether the search helped, in sentences made from the rows of `test_of_choice`.

    Args:
        choice: those rows.
        videos: of the test part.
    """
    mean = choice.groupby("setting")[["loss", "accuracy"]].mean()
    gain = mean["accuracy"]["tuned"] - mean["accuracy"]["default"]
    by_seed = choice.pivot(index="seed", columns="setting", values="accuracy")
    spread = (by_seed["tuned"] - by_seed["default"]).std()
    verdict = ("The search made no difference that this test could show" if abs(gain) < 1 / videos else
               "The search helped on the test part" if gain > 0 else "The search did not help: the defaults did better")
    lower = "lower" if mean["loss"]["tuned"] < mean["loss"]["default"] else "higher"
    return (f"{verdict}: accuracy {mean['accuracy']['tuned']:.3f} with the chosen values, {mean['accuracy']['default']:.3f} with "
            f"the defaults (means of {len(by_seed)} seeds, whose differences spread by {spread:.3f}; one of the {videos} test "
            f"videos is worth {1 / videos:.3f}). The loss is {lower}: {mean['loss']['tuned']:.3f} against "
            f"{mean['loss']['default']:.3f}.")


def _test(recipe: Recipe, settings: dict, data: VideoData, seeds: tuple[int, ...], cache: Path) -> list[dict]:
    """A row a seed: loss and accuracy on the test part of heads trained on the training part."""
    experiment = untrained(data, recipe, settings["weights"], settings["seed"], cache=cache)
    train = load_views(experiment, ("train",))
    x, labels = _activations(experiment, "test", False, recipe.test_clips)
    batches, truth = [(views.float(), None) for views in x.split(64)], labels.cpu().numpy()
    rows = []
    for seed in seeds:
        with _few_threads(recipe):
            head = train_head(train, np.arange(len(train.labels)), recipe, seed)
            probabilities = predict_probabilities(head, batches, experiment.device).numpy()
        rows.append({"seed": seed, "loss": log_loss(truth, probabilities, labels=range(len(data.classes))),
                     "accuracy": accuracy_score(truth, probabilities.argmax(axis=1))})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Searches hyperparameters of a deep model's head.")
    parser.add_argument("--kind", choices=("2d", "3d"), required=True)
    parser.add_argument("--trials", type=int, default=60, help="finished trials in the study (default: 60)")
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=["head"],
                        help="what may be trained: head (the default), or with a long budget stage as well")
    parser.add_argument("--storage", help="database URL; several machines can share one (default: a file)")
    parser.add_argument("--test", action="store_true",
                        help="afterwards, the default and the chosen values on the test part")
    asked = parser.parse_args(arguments)
    dataset, seed = os.environ.get("DATASET") or "demo", int(os.environ.get("SEED") or 42)
    try:
        dataset = dataset if dataset in ("demo", "ucf101") else str(find_folder(dataset))
        classes = os.environ.get("CLASSES", "").split() or None
        data = open_data(dataset, os.environ.get("SPLIT") or None, classes, seed)
        study = run_study(asked.kind, data, os.environ.get("WEIGHTS") or "auto", asked.trials, seed,
                          tuple(asked.cuts), asked.storage)
        print(f"\n{study.study_name}\n{compare(study).T.to_string()}")
        if asked.test:
            print(f"\non the test part:\n{test_of_choice(study, data).to_string(index=False)}")
    except (OSError, ValueError, WeightsError, VideoError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\nresults: {shown(data.results / 'tuning')}")


if __name__ == "__main__":
    main()
