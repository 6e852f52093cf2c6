"""The same training with other seeds: how much of a model's score is chance in initial values, order and dropout."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from contextlib import redirect_stdout

import pandas as pd

from evaluation import evaluate, read_predictions
from experiment import Experiment, fit, predict, untrained
from metrics import classification_metrics, negative_log_likelihood, seeds_summary
from utils import update_json, write_csv

SHOWN = {"accuracy": "accuracy", "f1": "macro F1", "log_loss": "log loss"}


def repeat_training(experiment: Experiment, seeds: Iterable[int]) -> pd.DataFrame:
    """Trains and tests the model again, once a seed; what was done for this very checkpoint is read, not repeated.

    What is frozen, the split and the kept training views are the same in all: the spread is that of initial values of
    what is trained, order, drawn views and dropout, not that of other data. Predictions go to
    predictions/<model>_seed_<seed>.csv, scores into the statistics. An interrupted training goes on after its last epoch.

    Args:
        experiment: trained; its own seed is the first row.
        seeds: of the other trainings.

    Returns:
        One row a training, on the test part: seed, accuracy, f1 (macro), log_loss.
    """
    rows = [_row(experiment.seed, evaluate(experiment))]
    for seed in dict.fromkeys(seeds):
        if seed != experiment.seed:
            rows.append(_row(seed, _predictions(experiment, seed)))
    if experiment.stats.get("seeds") != rows:
        update_json(experiment.files.stats, seeds=rows)
    return pd.DataFrame(rows)


def _row(seed: int, predictions: pd.DataFrame) -> dict:
    scores = classification_metrics(predictions)
    return {"seed": seed, "accuracy": scores["accuracy"], "f1": scores["f1"],
            "log_loss": negative_log_likelihood(predictions)}


def _predictions(experiment: Experiment, seed: int) -> pd.DataFrame:
    path, checkpoint = experiment.files.repeated(seed), experiment.sha256
    known = experiment.stats.get("repeated_of", {})
    if known.get(str(seed)) == checkpoint and path.is_file():
        return read_predictions(path)
    again, last = _as_before(experiment, seed), experiment.files.last.with_name(f"last_{path.stem}.pth")
    with redirect_stdout(io.StringIO()):  # a line a training, not a line an epoch
        training = fit(again, {"again": checkpoint, "seed": seed}, last, seed)
        predictions = predict(again)
    write_csv(path, predictions)
    update_json(experiment.files.stats, repeated_of={**known, str(seed): checkpoint})
    last.unlink(missing_ok=True)
    print(f"seed {seed}: {len(training.history['val_accs'])} epochs in {training.seconds:.0f} s", flush=True)
    return predictions


def _as_before(experiment: Experiment, seed: int) -> Experiment:
    """The model before its training: what is trained drawn with `seed`, what is frozen, and the views, as they were."""
    source, backbone = experiment.model.source, experiment.model.backbone
    first, again = (untrained(experiment.data, experiment.recipe, source, its, backbone, str(experiment.device),
                              experiment.cache) for its in (experiment.seed, seed))
    again.model.trunk.load_state_dict(first.model.trunk.state_dict())
    return dataclasses.replace(again, seed=experiment.seed)


def seeds_table(results: dict[str, dict]) -> pd.DataFrame:
    """Mean and spread over training seeds, for the models of `evaluation.load_results` that have several."""
    rows = {title: {"trainings": len(stats["seeds"]), **{
                f"{name} {what}": _of([row[key] for row in stats["seeds"]], what)
                for key, name in SHOWN.items() for what in ("mean", "sd")}}
            for title, stats in results.items() if len(stats.get("seeds", [])) > 1}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def _of(values: list[float], what: str) -> float:
    return round(seeds_summary(values)[what], 3)


def reading(rows: pd.DataFrame) -> str:
    """The spread of `repeat_training`'s rows in a sentence."""
    if len(rows) == 1:
        return "One training only: how much another seed would change is not known (`SEEDS` sets their number)."
    accuracy = seeds_summary(rows["accuracy"])
    return (f"{len(rows)} trainings that differ in nothing but their seed give an accuracy of {accuracy['mean']:.3f} with a standard "
            f"deviation of {accuracy['sd']:.3f}, from {rows['accuracy'].min():.3f} to {rows['accuracy'].max():.3f}.")
