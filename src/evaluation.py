"""One trained CNN: the scores of its predictions, other training seeds, and what it costs."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Iterable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

import folds
from config import Recipe, get_recipe
from experiment import Experiment, predict, prediction_table, untrained, view_probabilities
from files import file_hash, save_array, update_json
from machine import computes_bfloat16, memory_mb
from metrics import classification_metrics, negative_log_likelihood
from models import ARCHITECTURE, weights_file
from transforms import apply_transform
from utils import Training
from videos.decoding import read_frames
from videos.library import VideoData

# ---------------------------------------------------------------- scores

def evaluate(experiment: Experiment) -> pd.DataFrame:
    """Predictions of the test set, from disk where they are this very checkpoint's, else computed and written.

    Writes predictions/<model>.csv, preds and labels as .npy, and the metrics into the statistics, among them the
    accuracy of single clips: what a video would be judged by if it were seen in one view only, averaged over the views.

    Returns:
        One row per test video, as `experiment.predict`.
    """
    files = experiment.files
    return files.kept_table(files.predictions, lambda: _evaluate(experiment), files.array("preds"),
                            files.array("labels"))


def _evaluate(experiment: Experiment) -> pd.DataFrame:
    files, data = experiment.files, experiment.data
    loader = experiment.test_loader(experiment.dataset("test"))
    views = view_probabilities(experiment.trained_part(), loader, experiment.device)  # (N, V, K)
    predictions = prediction_table(data, "test", views.mean(dim=1))
    truth = predictions["label"].map(data.class_map).to_numpy()
    save_array(files.array("preds"), predictions["predicted"].map(data.class_map).to_numpy())
    save_array(files.array("labels"), truth)
    update_json(files.stats, **classification_metrics(predictions), test_clips=len(predictions),
                views_per_video=experiment.recipe.test_clips,
                single_clip_accuracy=float((views.argmax(dim=2).numpy() == truth[:, None]).mean()))
    return predictions


def predict_validation(experiment: Experiment) -> pd.DataFrame:
    """Predictions of the validation set, as `evaluate` gives the test set's; calibration is fitted to them."""
    return experiment.files.kept_table(experiment.files.validation, lambda: predict(experiment, "val"))


# ---------------------------------------------------------------- folds

def cross_validate(experiment: Experiment, recipe: Recipe | str, count: int,
                   partition: int | None = None, share: float = 1.0) -> pd.DataFrame:
    """The recipe trained and tested by folds of whole groups (see `folds.run_all`, also for what is returned).

    As with the classical models, what is tested is fitted to training and validation part, once the validation part has
    told for how many epochs; its own predictions are of the model that was trained without it.

    Args:
        experiment: of the recipe; gives data, weights, backbone, seed and device.
        recipe: as it was asked for: what it leaves open, such as the modality, is chosen in each fold.
        count: folds.
        partition: seed of the folds; None takes the experiment's.
        share: of each fold's training groups that is kept, as `splits.thinned`.
    """
    recipe = get_recipe(recipe, experiment.recipe.kind) if isinstance(recipe, str) else recipe
    backbone, source = experiment.files.backbone, experiment.source
    weights = file_hash(weights_file(backbone)) if source != "none" else ""
    asked = {"recipe": recipe.resolved(backbone).to_dict(), "backbone": backbone, "weights": weights,
             "bfloat16": computes_bfloat16(experiment.device), "engine": experiment.engine,
             "device": experiment.device.type,
             "seed": experiment.seed, "fitted": "train+val", "architecture": ARCHITECTURE}
    partition = experiment.seed if partition is None else partition
    planned = dataclasses.replace(experiment, model=None)  # each process builds its own
    run = folds.FoldRun(experiment.data, experiment.files, asked, partial(_predict_fold, planned, recipe),
                        *folds.fold_sets(experiment.data, count, partition, experiment.cache, share),
                        partition, experiment.cache, partial(_compute_activations, planned, recipe))
    return folds.run_all([run], _trains_small(experiment))[0]


def _predict_fold(planned: Experiment, recipe: Recipe, data: VideoData,
                  folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    settings = planned.source, planned.seed, planned.files.backbone, planned.device, planned.cache
    with redirect_stdout(io.StringIO()):  # a fold is told in one line
        first = untrained(data, recipe, *settings)
        chosen = train_on(first, ["train"], folder / "last.pth")
        validation = predict(first, "val")
        again = untrained(data, first.recipe, *settings)
        refit = train_on(again, ["train", "val"], folder / "refit.pth", chosen.best_epoch)
        test = predict(again)
    for training in (chosen, refit):
        training.last.unlink(missing_ok=True)
    words = f"{again.recipe.modality}, epoch {chosen.best_epoch} of {len(chosen.history['val_accs'])}"
    return test, validation, f"{words}, {chosen.seconds + refit.seconds:.0f} s"


def _trains_small(experiment: Experiment) -> bool:
    """Whether what is trained is too small to be shared out to threads: a head, on a CPU."""
    return experiment.recipe.trained == "head" and experiment.keeps_activations and experiment.device.type == "cpu"


def train_on(experiment: Experiment, parts: list[str], last: Path, until: int | None = None) -> Training:
    """Trains on these parts of a fold, to the epoch `until` or to early stopping on its validation part."""
    clips = [experiment.dataset(part, train=True) for part in parts]
    validation = None if until else experiment.loader(experiment.dataset("val"))
    training = experiment.training(sum(map(len, clips)), until, last=last, report=None)
    return experiment.fit(training, experiment.loader(*clips), validation)


def _compute_activations(experiment: Experiment, recipe: Recipe) -> None:
    """What the folds will read of all clips, in training and in test views, while its progress can be seen."""
    if experiment.keeps_activations:
        its = untrained(experiment.data, dataclasses.replace(recipe, modality="rgb"), experiment.source,
                        experiment.seed, experiment.files.backbone, experiment.device, experiment.cache)
        its.keep([its.dataset(part, train) for part in its.data.splits for train in (True, False)],
                 "rgb+diff" if recipe.modality == "auto" else recipe.modality)


# ---------------------------------------------------------------- other training seeds

def repeat_training(experiment: Experiment, seeds: Iterable[int]) -> pd.DataFrame:
    """Trains and tests the model again, once per seed; what was done for this very checkpoint is read, not repeated.

    What is frozen, the split and the kept training views are the same in all: the spread is that of initial values of
    what is trained, order, drawn views and dropout, not that of other data. Predictions go to
    predictions/<model>_seed_<seed>.csv, scores into the statistics. An interrupted training goes on after its last
    epoch.

    Args:
        experiment: trained; its own seed is the first row.
        seeds: of the other trainings.

    Returns:
        One row per training, on the test set: seed, accuracy, f1 (macro), log_loss.
    """
    files = experiment.files
    tables = {experiment.seed: evaluate(experiment)}
    for seed in dict.fromkeys(seeds):
        if seed not in tables:
            tables[seed] = files.kept_table(files.repeated(seed), lambda seed=seed: _repeat(experiment, seed))
    rows = []
    for seed, predictions in tables.items():
        scores = classification_metrics(predictions)
        rows.append({"seed": seed, "accuracy": scores["accuracy"], "f1": scores["f1"],
                     "log_loss": negative_log_likelihood(predictions)})
    if experiment.stats.get("seeds") != rows:
        update_json(files.stats, seeds=rows)
    return pd.DataFrame(rows)


def _repeat(experiment: Experiment, seed: int) -> pd.DataFrame:
    again = as_before(experiment, seed)
    train_ds, val_ds = again.dataset("train", train=True), again.dataset("val")
    loaders = again.loader(train_ds), again.loader(val_ds)
    again.request = {"again": experiment.files.identity, "seed": seed}
    last = experiment.files.last.with_name(f"last_{experiment.files.repeated(seed).stem}.pth")
    training = again.training(len(train_ds), seed=seed, last=last, report=None)
    again.fit(training, *loaders)
    print(f"seed {seed}: {len(training.history['val_accs'])} epochs in {training.seconds:.0f} s", flush=True)
    table = predict(again)
    training.last.unlink(missing_ok=True)
    return table


def as_before(experiment: Experiment, seed: int) -> Experiment:
    """The model before its training: what is trained drawn with `seed`, what is frozen, and the views, as they were."""
    source, backbone = experiment.model.source, experiment.model.backbone
    first, again = (untrained(experiment.data, experiment.recipe, source, its, backbone, experiment.device,
                              experiment.cache) for its in (experiment.seed, seed))
    again.model.trunk.load_state_dict(first.model.trunk.state_dict())
    return dataclasses.replace(again, seed=experiment.seed)


# ---------------------------------------------------------------- cost

def measure_latency(experiment: Experiment, repeats: float = 1.0) -> dict[str, float]:
    """Seconds for one test clip, warm, by part of the work; measured once per checkpoint and kept.

    Args:
        repeats: seconds that each part is measured for, at least.

    Returns:
        `decode`, `transform` and `model` in seconds (medians), the trunk's `precision`, `threads`, and `total`.
    """
    latency = experiment.files.kept("latency", lambda: _measure_latency(experiment, repeats))
    if experiment.stats.get("inference_time") != latency["model"]:
        save_array(experiment.files.array("inf_time"), latency["model"])
        update_json(experiment.files.stats, inference_time=latency["model"])
    return latency


def _measure_latency(experiment: Experiment, repeats: float) -> dict:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA's absence is no news to the reader
    from torch.utils.benchmark import Timer

    dataset = experiment.dataset("test")
    path, model = dataset.file(0), experiment.deployed()
    frames, _ = read_frames(path, dataset.sampler)
    clip = dataset.layout(apply_transform(frames, dataset.transform))[None].to(experiment.device)
    threads = torch.get_num_threads()

    def median(statement: str, **names) -> float:
        timer = Timer(statement, globals=names, num_threads=threads)
        return float(timer.blocked_autorange(min_run_time=repeats).median)

    with torch.inference_mode():
        latency = {
            "decode": median("read(path, sampler)", read=read_frames, path=path, sampler=dataset.sampler),
            "transform": median("apply(frames, transform)", apply=apply_transform, frames=frames,
                                transform=dataset.transform),
            "model": median("model(clip)", model=model, clip=clip), "threads": threads,
            "precision": model.frozen.precision}
    latency["total"] = latency["decode"] + latency["transform"] + latency["model"]
    return latency


def count_flops(experiment: Experiment) -> float:
    """GFLOP of one clip through the model by torch's counter, in which a multiply-add counts as two; counted once."""
    return experiment.files.kept("operations", lambda: {"gflop": _gflop(experiment)})["gflop"]


def _gflop(experiment: Experiment) -> float:
    clip = experiment.dataset("test")[0][0][None].to(experiment.device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        experiment.model.eval()(clip)
    return counter.get_total_flops() / 1e9


def record_memory(experiment: Experiment) -> dict[str, float]:
    """This process's memory now, in MiB; the peak is kept in the statistics by the process that trained."""
    memory = memory_mb()
    if not experiment.reloaded:
        update_json(experiment.files.stats, memory_mb=memory["peak"])
    return memory
