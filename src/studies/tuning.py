"""Hyperparameter search over the deep models' head, on kept activations; the test set takes no part in it.

A trial is one set of values, judged by its cross-validated loss on the training and validation clips, whole groups
held out. Optuna keeps the trials in a database, so that a study can be interrupted, go on, and be shared by processes.
"""

import copy
import errno
import hashlib
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext
from sqlalchemy.exc import SQLAlchemyError
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from cluster import asked_cluster, shared_out
from config import CACHE, NETWORKS, Recipe, get_recipe
from data_loader import make_loader
from data_parallel import trained_part
from experiment import Experiment, prediction_table, untrained, view_probabilities
from features import Activations
from files import NotWritten, make_folder, read_json, update_json
from machine import environment
from metrics import classification_metrics, negative_log_likelihood
from models import POOLINGS, VideoModel, choose_backbone, choose_source
from utils import Training, fit, make_optimizer, make_scheduler, seed_everything
from videos.library import VideoData
from videos.splits import group_folds

optuna.logging.set_verbosity(optuna.logging.ERROR)  # a progress bar tells enough
warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
warnings.filterwarnings("ignore", "Fixed parameter", UserWarning)  # a baseline's value may lie outside its range

FOLDS = 5  # at most; fewer where a class has fewer groups
CUTS = ("head", "stage")
EPOCHS = {"head": (2, 24), "stage": (2, 12)}
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
REFUSALS = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EACCES}
HEARTBEAT = 10  # seconds between a running trial's heartbeats; after three without one it counts as dead


# ---------------------------------------------------------------- one head

def load_clips(experiment: Experiment, *parts: str, train: bool = False) -> Activations:
    """The parts' clips, one after another, in one of the recipe's training views, drawn, or in the centre view."""
    view = "random" if train else experiment.recipe.test_clips // 2
    return experiment.activations(*(experiment.dataset(part, train=train) for part in parts), view=view)


def train_head(model: VideoModel, train_set: Dataset, val_set: Dataset, recipe: Recipe, seed: int) -> Training:
    """Trains a new head for all of the recipe's epochs; their number is searched, so nothing stops early.

    `model` gives the head's form, and the initial values of a trained stage; its trunk may be missing. Both sets are of
    `Activations`, as they are or as `seen_by` gives them for the recipe's pooling; the loss of `val_set` is unsmoothed
    cross-entropy, by which trials of any smoothing can be compared.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    seed_everything(seed)
    model = copy.deepcopy(model)
    model.renew(recipe.pooling, recipe.dropout)
    whole = recipe.trained == "head" and not getattr(train_set, "dataset", train_set).summary
    head = model.head if whole else trained_part(model, recipe)
    optimizer = make_optimizer(recipe, head)
    scheduler = make_scheduler(recipe, optimizer, len(train_set))
    training = Training(head, optimizer, scheduler, None, recipe.epochs, seed=seed, report=None)
    train_loader = make_loader(train_set, recipe.batch_size, shuffle=True, num_workers=0, collate=tuple)
    val_loader = make_loader(val_set, 64, num_workers=0, collate=tuple)

    def criterion(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing if head.training else 0.0)

    # The operations of a head alone are too small to be shared out: with two threads on two busy cores a step took
    # 7 to 55 ms, with one 1.3 to 3.8 ms.
    with threadpool_limits(1 if recipe.trained == "head" else None):
        return fit(training, train_loader, val_loader, criterion, model.classifier[1].weight.device)


def seen_by(model: VideoModel, recipe: Recipe, *clips: Activations) -> list[Activations]:
    """The clips as a head of the recipe's pooling needs them: computed once for trainings that follow one another."""
    model = copy.deepcopy(model)
    model.renew(recipe.pooling, recipe.dropout)
    return [its.through(model.summary) for its in clips]


# ---------------------------------------------------------------- one trial

def search_space(kind: str, cuts: tuple[str, ...] = ("head",)) -> dict[str, BaseDistribution]:
    """The values that are searched, by recipe field."""
    space = {"lr": FloatDistribution(3e-5, 1e-2, log=True), "weight_decay": FloatDistribution(1e-4, 1e1, log=True),
             "label_smoothing": FloatDistribution(0.0, 0.9), "dropout": FloatDistribution(0.0, 0.8),
             "schedule": CategoricalDistribution(("cosine", "step")), "epochs": IntDistribution(*EPOCHS[cuts[-1]])}
    if kind == "2d":
        space["pooling"] = CategoricalDistribution(POOLINGS)
    if len(cuts) > 1:
        space["trained"] = CategoricalDistribution(cuts)
    return space


def suggest(trial: Trial, space: dict[str, BaseDistribution]) -> dict:
    """A trial's values, by recipe field."""
    suggesting = {FloatDistribution: trial.suggest_float, IntDistribution: trial.suggest_int,
                  CategoricalDistribution: trial.suggest_categorical}
    return {name: suggesting[type(its)](name, **vars(its)) for name, its in space.items()}


def baselines(recipe: Recipe, cuts: tuple[str, ...] = ("head",)) -> dict[str, dict]:
    """The values that are tried first, by setting: `default`, the recipe's, and `seed`, where these are others."""
    values = {}
    for setting, its in (("default", recipe), ("seed", get_recipe("seed", recipe.kind))):
        its = _within(its, cuts).resolved("")
        values[setting] = {name: getattr(its, name) for name in search_space(recipe.kind, cuts)}
    return values if values["default"] != values["seed"] else {"default": values["default"]}


def _within(recipe: Recipe, cuts: tuple[str, ...]) -> Recipe:
    return recipe if recipe.trained in cuts else replace(recipe, trained=cuts[0])


def cross_validate(trial: Trial, clips: dict[str, tuple[VideoModel, Activations, Activations]], folds: list,
                   recipe: Recipe, seed: int) -> float:
    """A trial's loss: cross-entropy after the last epoch, averaged over all held-out clips.

    By the average so far, a poor trial is pruned after any fold; baseline trials are not. Every trial sees the same
    folds, initial values and order.

    Args:
        clips: by cut, the model and all clips in training views and in the centre view.
        folds: pairs of indices, to train on and held out.
        recipe: for the fields that are not searched; its `trained` is one of the cuts.
    """
    recipe = replace(recipe, **suggest(trial, search_space(recipe.kind, tuple(clips))))
    model, *both = clips[recipe.trained]
    augmented, centre = seen_by(model, recipe, *both)
    losses, accuracies, sizes = [], [], [len(held_out) for _, held_out in folds]
    for fold, (rows, held_out) in enumerate(folds):
        try:
            history = train_head(model, Subset(augmented, rows), Subset(centre, held_out), recipe, seed + fold).history
        except FloatingPointError as error:
            raise optuna.TrialPruned(str(error)) from error
        losses.append(history["val_losses"][-1])
        accuracies.append(history["val_accs"][-1])
        loss = float(np.average(losses, weights=sizes[:fold + 1]))
        trial.report(loss, fold)
        if fold + 1 < len(folds) and "setting" not in trial.user_attrs and trial.should_prune():
            raise optuna.TrialPruned
    trial.set_user_attr("loss_sd", float(np.std(losses, ddof=1)))
    trial.set_user_attr("accuracy", float(np.average(accuracies, weights=sizes)))
    return loss


# ---------------------------------------------------------------- the study

def run_study(kind: str, data: VideoData, weights: str = "auto", trials: int = 60, seed: int = 42,
              cuts: tuple[str, ...] = ("head",), storage: str | None = None, cache: Path = CACHE,
              recipe: Recipe | str = "recommended", backbone: str | None = None) -> optuna.Study:
    """Runs a study until it has `trials` finished trials, or loads it, without a clip, where it has them.

    The baseline trials come first. A trial whose process was killed is tried again once its heartbeat has been missing
    for a while, or made up for. With one process, the same seed gives the same study, also where Ctrl-C interrupted it.
    Processes share the trials of one study: each may add one more than was asked for, and a baseline may run twice.
    Where data, split, classes, weights, recipe, cuts or seed differ, it is another study in the same database.

    Args:
        weights: one of `networks.SOURCES`; `auto` accepts what a finished study has.
        trials: finished ones (pruned ones included) in the whole study.
        seed: of folds, trainings and sampler.
        cuts: what of the model may be trained: `head`, in seconds per trial, or `stage` too, for a long budget.
        storage: database URL, such as postgresql+psycopg://...; None takes `tuning/<kind>.db` in the results, which
            only processes of one machine can share.
        recipe: gives the default values and what is not searched; its views are always drawn per clip and kept.
        backbone: one of `config.NETWORKS` of this kind; None takes the one that goes with the weights.

    Raises:
        ValueError: fewer than two trials, an unknown cut, a storage that can't be opened, too few clips for folds.
        WeightsError, VideoError, FileNotFoundError: from weights and clips.
    """
    recipe = get_recipe(recipe, kind) if isinstance(recipe, str) else recipe
    if trials < 2 or not cuts or set(cuts) - set(CUTS):
        raise ValueError(f"trials is {trials}, and at least 2 (the default and the seed's values); "
                         f"cuts is {' '.join(cuts) or 'empty'}, and of {', '.join(CUTS)}")
    cuts = tuple(cut for cut in CUTS if cut in cuts)
    recipe = replace(_within(recipe, cuts), augmentation="clip", cache="activations")
    database = _open_storage(storage, data.results / "tuning" / f"{kind}.db")
    known = optuna.get_all_study_names(database)
    own = (NETWORKS[choose_backbone(kind, "none", backbone)].source,) if backbone else ("torchvision", "packaged")
    for source in own if weights == "auto" else (weights,):
        settings = _settings(data, recipe, source, cuts, seed, backbone)
        if _study_name(settings) in known and len(_trials(study := _study(database, settings))) >= trials:
            print(f"reloaded the {kind} study: {len(_trials(study))} trials, best loss {study.best_value:.4f}")
            return study
    source = choose_source(kind, weights, backbone)
    study = _study(database, _settings(data, recipe, source, cuts, seed, backbone))
    table = pd.concat([data.table("train"), data.table("val")], ignore_index=True)
    folds, how = group_folds(table, FOLDS, data.split["groups_named"], seed)
    study.set_user_attr("folds", how)
    models = {cut: untrained(data, replace(recipe, trained=cut), source, seed, backbone, cache=cache) for cut in cuts}
    clips = {cut: (its.model.without_trunk(), load_clips(its, "train", "val", train=True),
                   load_clips(its, "train", "val")) for cut, its in models.items()}
    there = {trial.user_attrs.get("setting") for trial in _trials(study, *FINISHED, TrialState.WAITING)}
    for setting, values in baselines(recipe, cuts).items():
        if setting not in there:  # `skip_if_exists` would skip an interrupted one too
            study.enqueue_trial(values, user_attrs={"setting": setting})
    objective = partial(cross_validate, clips=clips, folds=folds, recipe=recipe, seed=seed)
    work = _Search(study.study_name, storage, data.results / "tuning" / f"{kind}.db", objective, trials, seed)
    _optimize(study, work, f"{kind} search")
    return study


def _settings(data: VideoData, recipe: Recipe, source: str, cuts: tuple[str, ...], seed: int,
              backbone: str | None) -> dict:
    """All that makes two trials comparable, as plain types."""
    space = {name: str(its) for name, its in search_space(recipe.kind, cuts).items()}
    return {"kind": recipe.kind, "backbone": choose_backbone(recipe.kind, source, backbone), "weights": source,
            "cuts": list(cuts), "dataset": data.name, "split": data.split["sha256"], "classes": data.classes,
            "seed": seed, "recipe": recipe.to_dict(), "space": space, "folds": FOLDS}


def _study_name(settings: dict) -> str:
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return (f"{settings['kind']}-{settings['backbone']}-{settings['weights']}-{'+'.join(settings['cuts'])}-"
            f"{settings['dataset'][:60]}-{len(settings['classes'])}classes-split{settings['split'][:8]}-"
            f"seed{settings['seed']}-{digest}")


def _study(storage: RDBStorage, settings: dict) -> optuna.Study:
    """The study of these settings, made where it is not there."""
    study = optuna.create_study(study_name=_study_name(settings), storage=storage, load_if_exists=True,
                                pruner=_pruner())
    if not study.user_attrs:
        study.set_user_attr("settings", settings)
    return study


def _pruner() -> optuna.pruners.BasePruner:
    return optuna.pruners.MedianPruner(n_startup_trials=8)


def _open_storage(url: str | None, default: Path) -> RDBStorage:
    """The database, with heartbeats of running trials."""
    if url is None:
        make_folder(default.parent)
        url = f"sqlite:///{default.as_posix()}"
    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for _ in range(4):
        try:
            return RDBStorage(url, waits, heartbeat_interval=HEARTBEAT, grace_period=3 * HEARTBEAT,
                              heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=2))
        except (SQLAlchemyError, ImportError) as error:
            reason = error
            time.sleep(0.5)  # where another process makes the same tables just now, they are there next time
    raise ValueError(f"storage {url.rsplit('@')[-1]} can't be opened ({str(reason).splitlines()[0]}): name a database "
                     "URL whose driver is installed, or move a broken file away") from reason


@event.listens_for(Engine, "handle_error")
def _refused(context: ExceptionContext) -> None:
    """Makes a NotWritten of SQLite's error that its file can't be written."""
    code = REFUSALS.get(getattr(context.original_exception, "sqlite_errorname", ""))
    if code and context.engine:
        raise NotWritten.told(context.engine.url.database, code) from context.original_exception


def _trials(study: optuna.Study, *states: TrialState) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=states or FINISHED)


class _Search:
    """What runs trials of a study, here or in another process, which opens the database for itself."""

    def __init__(self, name: str, storage: str | None, default: Path, objective: Callable[[Trial], float], trials: int,
                 seed: int):
        self.name, self.storage, self.default = name, storage, default
        self.objective, self.trials, self.seed = objective, trials, seed

    @cached_property
    def study(self) -> optuna.Study:
        """The study, as its processes see it."""
        return optuna.load_study(study_name=self.name, storage=_open_storage(self.storage, self.default),
                                 pruner=_pruner())

    def run(self, study: optuna.Study, count: int, tell: Callable = lambda *_: None) -> None:
        """At most so many trials, fewer where the study has enough of them meanwhile."""
        callbacks = [optuna.study.MaxTrialsCallback(self.trials, FINISHED), self._draw, tell]
        self._draw(study)
        tell()
        with suppress(UpdateFinishedTrialError):  # stalled for so long that others took it for dead
            study.optimize(self.objective, n_trials=count, callbacks=callbacks)

    def __call__(self, _: int) -> None:
        """One trial, where one is lacking."""
        if len(_trials(self.study)) < self.trials:
            self.run(self.study, 1)

    def _draw(self, study: optuna.Study, _=None) -> None:
        """Decides how the next trial's values are drawn."""
        drawn = len(_trials(study, *FINISHED, TrialState.RUNNING, TrialState.WAITING))  # what failed is drawn again
        words = np.random.SeedSequence([self.seed, drawn]).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(words[0]))


def _optimize(study: optuna.Study, work: _Search, title: str) -> None:
    """Runs trials, under a progress bar, until the study has enough finished ones; where RAY says so, in the workers of
    a cluster."""
    there, cluster = len(_trials(study)), asked_cluster()
    with tqdm(initial=there, total=work.trials, desc=title, unit="trial", file=sys.stdout, ncols=90) as progress:
        def tell(*_) -> None:
            losses = [trial.value for trial in _trials(study, TrialState.COMPLETE)]
            progress.n = min(len(_trials(study)), work.trials)
            progress.set_postfix(loss=f"{min(losses, default=np.nan):.4f}")

        while (left := work.trials - len(_trials(study))) > 0:
            if not cluster:
                work.run(study, left, tell)
                continue
            for _, lost in shared_out(work, range(left), cluster):
                if lost:
                    raise RuntimeError(f"{title}: {lost}, a trial")
                tell()


# ---------------------------------------------------------------- what came out

def space_table(recipe: Recipe, cuts: tuple[str, ...] = ("head",)) -> pd.DataFrame:
    """The search space of a recipe's kind: one row per value, with what is tried and the baselines."""
    tried = {name: ", ".join(its.choices) if isinstance(its, CategoricalDistribution) else
             f"{its.low:g} to {its.high:g}{', logarithmic' if its.log else ''}"
             for name, its in search_space(recipe.kind, cuts).items()}
    return pd.DataFrame({"tried": tried, **baselines(recipe, cuts)}, index=tried).rename_axis("value")


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """The finished trials.

    Returns:
        One row per trial: trial (number), state (`complete` or `pruned`), loss (of a pruned trial: over the folds that
        it saw), duration, setting (`default`, `seed` or missing), accuracy, loss_sd (over folds), one column per value.
    """
    table = study.trials_dataframe(("number", "state", "value", "duration", "user_attrs", "params"))
    table.columns = [name.removeprefix("user_attrs_").removeprefix("params_") for name in table]
    table = table.assign(state=table["state"].str.lower()).rename(columns={"number": "trial", "value": "loss"})
    return table.query("state in ('complete', 'pruned')").reset_index(drop=True)


def compare(study: optuna.Study) -> pd.DataFrame:
    """The default, the seed's and the chosen values, judged by the same folds.

    The chosen trial's loss is the lowest of many and so flatters it: `test_of_choice` tells whether it holds.

    Returns:
        One row per setting: trial, loss (cross-validated), loss_sd (over folds), accuracy, one column per value.
    """
    trials = trials_table(study).query("state == 'complete'")
    chosen = trials[trials["trial"] == study.best_trial.number].assign(setting="chosen")
    named = trials.dropna(subset="setting").drop_duplicates("setting").sort_values("setting")
    columns = ["trial", "loss", "loss_sd", "accuracy", *study.best_params]
    return pd.concat([named, chosen]).set_index("setting")[columns]


def best_recipe(study: optuna.Study) -> Recipe:
    """The study's recipe, named `tuned`, with the values of the lowest loss and the cut that they were found for.

    The best head on a frozen network need not beat a recipe that trains the last stage as well.
    """
    return replace(Recipe(**study.user_attrs["settings"]["recipe"]), name="tuned", **study.best_params)


def test_of_choice(study: optuna.Study, data: VideoData, seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
                   cache: Path = CACHE) -> pd.DataFrame:
    """Whether the search helped: heads with the default and the chosen values, on the test set.

    Both are trained on the training set by the code of the search. The test set is looked at once for a chosen trial:
    the rows are kept in `tuning/<kind>.json` in the results.

    Returns:
        One row per setting (`default`, `tuned`) and seed: loss and accuracy over the test videos, each video's
        probabilities averaged over the recipe's test views.
    """
    settings = study.user_attrs["settings"]
    path = data.results / "tuning" / f"{settings['kind']}.json"
    key = f"{study.study_name} trial {study.best_trial.number} seeds {' '.join(map(str, seeds))}"
    if (kept := read_json(path).get(key)) is None:
        recipe = Recipe(**settings["recipe"])
        default = replace(recipe, **baselines(recipe, tuple(settings["cuts"]))["default"])
        recipes, rows = {"default": default, "tuned": best_recipe(study)}, []
        modality = recipe.modality
        for setting, its in recipes.items():
            asked = replace(its, modality=modality)
            experiment = untrained(data, asked, settings["weights"], settings["seed"], settings["backbone"],
                                   cache=cache)
            modality = experiment.recipe.modality  # settled once for both
            rows += [{"setting": setting, **row} for row in _test(experiment, seeds)]
        kept = {"rows": rows, "recipes": {setting: its.to_dict() for setting, its in recipes.items()},
                "test_videos": len(data.table("test")), "environment": environment()}
        update_json(path, **{key: kept})
    return pd.DataFrame(kept["rows"])


def _test(experiment: Experiment, seeds: tuple[int, ...]) -> list[dict]:
    train_set, val_set = seen_by(experiment.model, experiment.recipe, load_clips(experiment, "train", train=True),
                                 load_clips(experiment, "val"))
    test_loader = experiment.test_loader(experiment.dataset("test"))
    rows = []
    for seed in seeds:
        head = train_head(experiment.model, train_set, val_set, experiment.recipe, seed).model
        views = view_probabilities(head, test_loader, experiment.device)  # (N, V, K)
        predictions = prediction_table(experiment.data, "test", views.mean(dim=1))
        rows.append({"seed": seed, "loss": negative_log_likelihood(predictions),
                     "accuracy": classification_metrics(predictions)["accuracy"]})
    return rows


def choice_reading(choice: pd.DataFrame, videos: int) -> str:
    """Whether the search helped, in sentences made from the rows of `test_of_choice` on `videos` test videos."""
    by_seed = choice.pivot(index="seed", columns="setting", values=["loss", "accuracy"])
    default, tuned = by_seed["accuracy"].mean()
    default_loss, tuned_loss = by_seed["loss"].mean()
    spread = (by_seed["accuracy"]["tuned"] - by_seed["accuracy"]["default"]).std()
    verdict = ("The search made no difference that this test could show" if abs(tuned - default) < 1 / videos else
               "The search helped on the test set" if tuned > default else
               "The search did not help: the defaults did better")
    change = "the same" if tuned_loss == default_loss else "lower" if tuned_loss < default_loss else "higher"
    return (f"{verdict}: accuracy {tuned:.3f} with the chosen values, {default:.3f} with the defaults (means of "
            f"{len(by_seed)} seeds, whose differences spread by {spread:.3f}; one of the {videos} test videos is worth "
            f"{1 / videos:.3f}). The loss is {change}: {tuned_loss:.3f} against {default_loss:.3f}.")
