"""Learning curve: accuracy by folds against the share of training groups, for the CNNs and the best classical model.

    python benchmarks/curve.py

DATASET, SPLIT, CLASSES, SEED, FOLDS and WEIGHTS are taken from the environment, as by the notebooks. Whole groups are
left out of each fold's training part, class by class; its validation and test parts stay. What is finished is kept in
the cache: an interrupted curve goes on. Writes learning_curve.csv, predictions/learning_curve.csv and
performance_plots/learning_curve.png into the data set's results.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import matplotlib
import pandas as pd

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import evaluation
import plots
from classical import classifiers
from comparison import curve_reading, learning_curve
from config import CACHE, asked_number, get_recipe
from experiment import untrained
from files import ClassicalFiles, read_json, shown, write_csv
from folds import fold_sets, fold_table
from models import WeightsError, choose_source
from videos.decoding import VideoError
from videos.library import VideoData, open_asked
from videos.splits import group_pairs

SHARES = (0.25, 0.5, 0.75, 1.0)
COLUMNS = ["model", "share", "fold", "clip_path", "group", "label", "predicted"]

Learner = Callable[[VideoData, float], pd.DataFrame]  # data and share to the fold predictions of every video


def learners(root: Path, weights: str, count: int, seed: int, cache: Path = CACHE) -> dict[str, Learner]:
    """Name to learner of the two CNNs, and of the classical model with the best cross-validated accuracy in `root`.

    Args:
        weights: as WEIGHTS.
        count, seed: of the folds; the seed is also that of training.
    """
    def cnn(kind: str) -> Learner:
        source, recipe = choose_source(kind, weights), get_recipe("recommended", kind)
        planned = dataclasses.replace(recipe, modality="diff") if recipe.modality == "auto" else recipe

        def predict(data: VideoData, share: float) -> pd.DataFrame:
            experiment = untrained(data, planned, source, seed, cache=cache)
            return evaluation.cross_validate(experiment, recipe, count, seed, share)

        return predict

    def classical(name: str) -> Learner:
        def predict(data: VideoData, share: float) -> pd.DataFrame:
            model = classifiers.ClassicalModel(name, data, seed, cache)
            return classifiers.cross_validate([model], count, share)[model.title]

        return predict

    best = best_classical(root)
    return {"2d-cnn": cnn("2d"), "3d-cnn": cnn("3d"), **({best: classical(best)} if best else {})}


def best_classical(root: Path) -> str | None:
    """The classical model with the best cross-validated accuracy in a results root; None where there is none."""
    kept = {name: read_json(ClassicalFiles(root, name).stats) for name in classifiers.MODELS}
    return max((name for name, stats in kept.items() if stats), key=lambda name: kept[name]["cv_mean"], default=None)


def measure(data: VideoData, its_learners: dict[str, Learner], count: int, seed: int, cache: Path = CACHE) -> None:
    """Trains and tests each learner with each share of the training groups; writes the two tables."""
    sizes, predictions = [], []
    for share in SHARES:
        sets, _ = fold_sets(data, count, seed, cache, share)
        scratch = dataclasses.replace(data, results=cache / "curve" / data.name / f"{100 * share:.0f}")
        trained_on = pd.DataFrame([_size(its.table("train")) for its in sets], index=range(1, len(sets) + 1))
        for name, learner in its_learners.items():
            print(f"{name}, {share:.0%} of the training groups:", flush=True)
            table = learner(scratch, share).assign(model=name, share=share)
            scores = trained_on.join(fold_table(table)).rename_axis("fold").reset_index()
            sizes.append(scores.assign(model=name, share=share))
            predictions.append(table[COLUMNS])
    first = ["model", "share", "fold", "groups", "clips", "videos", "accuracy"]
    write_csv(data.results / "predictions" / "learning_curve.csv", pd.concat(predictions))
    write_csv(data.results / "learning_curve.csv", pd.concat(sizes)[first].sort_values(first[:3], kind="stable"))


def _size(train: pd.DataFrame) -> dict[str, int]:
    return {"groups": group_pairs(train).nunique(), "clips": len(train)}


def draw(data: VideoData, points: pd.DataFrame) -> Path:
    """Draws the points that `comparison.learning_curve` gives of the data set's results; gives the picture's file."""
    path = data.results / "performance_plots" / "learning_curve.png"
    plots.set_style()
    figure, ax = plt.subplots(figsize=(8, 4.5))
    plots.learning_curve(points, f"More training groups: {data.name}, {points['videos'].max()} videos by folds", ax)
    plots.save_figure(figure, path)
    return path


def main() -> None:
    """The command, with what the environment asks for."""
    try:
        seed, count = asked_number("SEED"), asked_number("FOLDS") or 5
        data = open_asked()
        if best_classical(data.results) is None:
            print("no classical model in the results, so that none is in the curve: run 02_classical_ml for one")
        measure(data, learners(data.results, os.environ.get("WEIGHTS") or "auto", count, seed), count, seed)
        points = learning_curve(data.results)
        if points is None:
            raise ValueError(f"{shown(data.results / 'learning_curve.csv')}: written, but its folds of all groups are "
                             f"not those of the study: run that by as many, too (make run FOLDS={count})")
        path = draw(data, points)
    except (OSError, ValueError, WeightsError, VideoError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"\n{curve_reading(points)}\n\nwritten: {shown(data.results / 'learning_curve.csv')}, "
          f"{shown(path)}")


if __name__ == "__main__":
    main()
