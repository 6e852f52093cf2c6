"""Numbers about a trained model: metrics of its predictions, what it costs, and the comparison of several."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import torch

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # CUDA's absence is no news to the reader
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from config import RESULTS, ClassicalFiles, ResultFiles
from data_loader import apply_transform, read_frames
from experiment import Experiment, predict, prediction_table, view_probabilities
from metrics import (
    apply_temperature, brier, classification_metrics, confidence, expected_calibration_error, fit_temperature,
    interval_table, negative_log_likelihood,
)
from models import DEFAULT_BACKBONE, TITLES
from utils import hardware_line, memory_mb, read_json, save_array, update_json, write_csv

# What the seed notebook printed: another data set (UCF-101, a random split that shares groups) and another machine.
SEED_PRINTED = {
    "2D-CNN": {"network": "ResNet-18", "accuracy": 0.957, "precision": 0.97, "recall": 0.95, "f1": 0.96,
               "params": 11_178_051, "trained_params": 11_178_051, "train_time": 3717.9, "inference_time": 0.488,
               "model_size_mb": 42.72, "memory_mb": 3266.2, "test_clips": 46},
    "3D-CNN": {"network": "R3D-18", "accuracy": 0.500, "precision": 0.51, "recall": 0.46, "f1": 0.47,
               "params": 33_167_811, "trained_params": 1_539, "train_time": 3936.8, "inference_time": 1.261,
               "memory_mb": 3276.7, "test_clips": 46},
}
SCORES = {"accuracy": "accuracy", "f1": "macro F1", "precision": "macro precision", "recall": "macro recall",
          "test_clips": "test clips", "network": "network", "weights": "weights"}
COSTS = {"params": "parameters", "trained_params": "trained parameters", "train_time": "training [s]",
         "inference_time": "latency [s/clip]", "gflop": "GFLOP/clip", "model_size_mb": "file [MiB]", "memory_mb": "peak memory [MiB]"}


# ---------------------------------------------------------------- one model

def evaluate(experiment: Experiment) -> pd.DataFrame:
    """The test part's predictions, from disk where they are this very checkpoint's, else computed and written.

    Writes predictions/<model>.csv, preds and labels as .npy, and the metrics into the statistics, among them the accuracy
    of single clips: what a video would be judged by if it were seen in one view only, averaged over the views.

    Returns:
        One row a test clip, as `experiment.predict`.
    """
    files, stats, checkpoint = experiment.files, experiment.stats, experiment.sha256
    if stats.get("predictions_of") == checkpoint and files.predictions.is_file():
        return read_predictions(files.predictions)
    views = view_probabilities(experiment.trained_part(), experiment.test_loader(), experiment.device)  # (N, V, K)
    predictions = prediction_table(experiment, "test", views.mean(dim=1))
    truth = predictions["label"].map(experiment.data.class_map).to_numpy()
    write_csv(files.predictions, predictions)
    for name, column in (("preds", "predicted"), ("labels", "label")):
        save_array(files.array(name), predictions[column].map(experiment.data.class_map).to_numpy())
    update_json(files.stats, **classification_metrics(predictions), test_clips=len(predictions),
                views_per_video=experiment.recipe.test_clips, predictions_of=checkpoint,
                single_clip_accuracy=float((views.argmax(dim=2).numpy() == truth[:, None]).mean()))
    return predictions


def predict_validation(experiment: Experiment) -> pd.DataFrame:
    """The validation part's predictions, as `evaluate` gives the test part's; calibration is fitted to them."""
    files, checkpoint = experiment.files, experiment.sha256
    if experiment.stats.get("validation_of") == checkpoint and files.validation.is_file():
        return read_predictions(files.validation)
    predictions = predict(experiment, "val")
    write_csv(files.validation, predictions)
    update_json(files.stats, validation_of=checkpoint)
    return predictions


def read_predictions(path: Path) -> pd.DataFrame:
    """A table that `evaluate` wrote; names stay text, also where they look like numbers."""
    return pd.read_csv(path, dtype={"group": str, "label": str, "predicted": str}, keep_default_na=False)


def uncertain(predictions: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The rows to look at: wrong ones first, the most confident mistake on top; the least certain where none is wrong.

    Returns:
        At most `count` rows, with the column `probability`, that of the predicted class.
    """
    table = predictions.assign(probability=confidence(predictions))
    wrong = table[table["label"] != table["predicted"]]
    if len(wrong):
        return wrong.sort_values("probability", ascending=False).head(count)
    return table.sort_values("probability").head(count)


def measure_latency(experiment: Experiment, repeats: float = 2.0) -> dict[str, float]:
    """Seconds for one clip of the test part, warm, by part of the work; measured once a checkpoint and kept.

    Args:
        repeats: seconds that each part is measured for, at least.

    Returns:
        `decode`, `transform` and `model` in seconds (medians), the trunk's `precision`, `threads`, and `total`.
    """
    files, stats, checkpoint = experiment.files, experiment.stats, experiment.sha256
    if stats.get("latency", {}).get("of") == checkpoint:
        return stats["latency"]
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
            "precision": model.frozen.precision, "of": checkpoint}
    latency["total"] = latency["decode"] + latency["transform"] + latency["model"]
    save_array(files.array("inf_time"), latency["model"])
    update_json(files.stats, inference_time=latency["model"], latency=latency)
    return latency


def count_flops(experiment: Experiment) -> float:
    """GFLOP of one clip through the model by torch's counter, in which a multiply-add counts as two; counted once."""
    if (known := experiment.stats.get("gflop")) is not None:
        return known
    dataset = experiment.dataset("test")
    clip = dataset[0][0][None].to(experiment.device)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        experiment.model.eval()(clip)
    gflop = counter.get_total_flops() / 1e9
    update_json(experiment.files.stats, gflop=gflop)
    return gflop


def record_memory(experiment: Experiment) -> dict[str, float]:
    """This process's memory now, in MiB; the peak is kept in the statistics by the process that trained."""
    memory = memory_mb()
    if not experiment.reloaded:
        update_json(experiment.files.stats, memory_mb=memory["peak"])
    return memory


# ---------------------------------------------------------------- several models

def load_results(root: Path = RESULTS) -> dict[str, dict]:
    """What the models of one data set left: title to statistics, with `predictions`, the per-clip table.

    Args:
        root: the data set's results root.

    Returns:
        The CNNs first, then the classical models that were evaluated.

    Raises:
        FileNotFoundError: a CNN has not been trained and evaluated; the message names its notebook.
        ValueError: the models were evaluated on different test clips.
    """
    results = {}
    for kind, notebook in (("2d", "03_2d_cnn"), ("3d", "04_3d_cnn")):
        files = ResultFiles(root, kind, DEFAULT_BACKBONE[kind])
        stats = read_json(files.stats)
        if not files.predictions.is_file() or "accuracy" not in stats:
            raise FileNotFoundError(f"{files.stats}: no evaluated {kind.upper()}-CNN there; run {notebook} first")
        title = f"{kind.upper()}-CNN"
        results[title] = {**stats, "network": TITLES[stats["backbone"]], "predictions": read_predictions(files.predictions)}
        if files.validation.is_file() and stats.get("validation_of") == stats["predictions_of"]:
            results[title]["validation"] = read_predictions(files.validation)
    for path in sorted(ClassicalFiles(root, "").stats.parent.glob("stats_*.json")):
        files = ClassicalFiles(root, path.stem.removeprefix("stats_"))
        stats = read_json(path)
        if files.predictions.is_file() and "accuracy" in stats:
            results[stats["title"]] = {**stats, "train_time": stats.get("fit_time"), "network": "classical descriptors",
                                       "predictions": read_predictions(files.predictions)}
    check_same_clips(results)
    return results


def chosen(results: dict[str, dict]) -> dict[str, dict]:
    """The CNNs and the classical model with the best cross-validated accuracy: those that the figures show."""
    cnns = {title: stats for title, stats in results.items() if "backbone" in stats}
    classical = [title for title in results if title not in cnns]
    best = max(classical, key=lambda title: results[title]["cv_mean"], default=None)
    return {**cnns, **({best: results[best]} if best else {})}


def check_same_clips(results: dict[str, dict]) -> None:
    """Refuses to compare models that were tested on different clips.

    Raises:
        ValueError: they were; the message says which models, and how many clips differ.
    """
    titles = list(results)
    first = set(results[titles[0]]["predictions"]["clip_path"])
    for title in titles[1:]:
        if odd := first ^ set(results[title]["predictions"]["clip_path"]):
            raise ValueError(f"{titles[0]} and {title} were tested on different clips ({len(odd)} are in one test "
                             "only): run both notebooks on the same split")


def comparison_table(results: dict[str, dict]) -> pd.DataFrame:
    """One row a model: accuracy with its 95 % Wilson interval, other scores, network and weights; the seed's at the end."""
    rows = {title: {label: _shown(key, stats.get(key)) for key, label in SCORES.items()}
            for title, stats in {**results, **_seed_rows()}.items()}
    for title, interval in interval_table({t: stats["predictions"] for t, stats in results.items()}).iterrows():
        rows[title]["95 % interval"] = f"{interval.low:.2f} to {interval.high:.2f}"
    table = pd.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("model")
    table.insert(1, "95 % interval", table.pop("95 % interval"))
    return table


def cost_table(results: dict[str, dict]) -> pd.DataFrame:
    """One row a model: parameters, training time, latency, file size and memory; the seed's at the end."""
    rows = {title: {label: _shown(key, stats.get(key)) for key, label in COSTS.items()}
            for title, stats in {**results, **_seed_rows()}.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def clip_table(results: dict[str, dict]) -> pd.DataFrame:
    """Accuracy of videos judged by several clips, and of single clips, where both are known."""
    rows = {title: {"clips a video": stats["views_per_video"], "video accuracy": stats["accuracy"],
                    "single-clip accuracy": stats["single_clip_accuracy"]}
            for title, stats in results.items() if "single_clip_accuracy" in stats}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def calibrated(results: dict[str, dict]) -> dict[str, dict]:
    """Test predictions of the models that kept validation predictions, as they are and with a fitted temperature.

    Returns:
        Title to `before` and `after`, prediction tables; `temperature`, fitted on the validation part; and `validation`,
        how many of its answers are right, of how many.
    """
    tables = {}
    for title, stats in results.items():
        if "validation" in stats:
            validation, before = stats["validation"], stats["predictions"]
            temperature = fit_temperature(validation)
            right = int((validation["label"] == validation["predicted"]).sum())
            tables[title] = {"before": before, "after": apply_temperature(before, temperature), "temperature": temperature,
                             "validation": (right, len(validation))}
    return tables


def calibration_table(tables: dict[str, dict]) -> pd.DataFrame:
    """Calibration error, loss and Brier score on the test part before and after, for what `calibrated` gives."""
    rows = {}
    for title, its in tables.items():
        rows[title] = {"temperature": round(its["temperature"], 2)}
        for name, score in (("calibration error", expected_calibration_error), ("log loss", negative_log_likelihood),
                            ("Brier score", brier)):
            rows[title] |= {f"{name} {when}": round(score(its[when]), 3) for when in ("before", "after")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def calibration_reading(tables: dict[str, dict]) -> str:
    """What the fitted temperatures say and do, a sentence a model, made from what `calibrated` gives."""
    told = []
    for title, its in tables.items():
        before, after = (expected_calibration_error(its[when]) for when in ("before", "after"))
        right, clips = its["validation"]
        change = f"{'falls' if after < before else 'rises'} from {before:.3f} to {after:.3f}"
        told.append(f"{right} right answers on {clips} validation videos warrant {'less' if its['temperature'] > 1 else 'more'} "
                    f"certainty than {title} has (temperature {its['temperature']:.2f}); with it, the calibration error on the "
                    f"{len(its['before'])} test videos {change}.")
    return "\n\n".join(told)


def _seed_rows() -> dict[str, dict]:
    return {f"seed {title} (UCF-101, other machine)": {**printed, "weights": "torchvision"}
            for title, printed in SEED_PRINTED.items()}


def _shown(key: str, value) -> str:
    if value is None:
        return "–"
    if key in ("params", "trained_params"):
        return f"{value:,}"
    digits = {"accuracy": 3, "precision": 3, "recall": 3, "f1": 3, "train_time": 0, "fit_time": 1, "inference_time": 3,
              "gflop": 1, "model_size_mb": 1, "memory_mb": 0}
    return f"{value:.{digits[key]}f}" if key in digits else str(value)


def provenance(results: dict[str, dict]) -> str:
    """Where the compared figures come from, in Markdown."""
    first = next(iter(results.values()))
    synthetic = " (**rendered, synthetic clips**: these scores say nothing about real video)"
    lines = [f"- data set **{first['dataset']}**{synthetic if first['dataset'] == 'demo' else ''}, classes "
             f"{', '.join(first['classes'])}",
             f"- split {first['split']['kind']} ({first['split']['sha256'][:12]}), {first['test_clips']} test videos, "
             f"groups shared between parts: {first['split']['shared_groups']}"]
    lines += [f"- {title}: {stats['network']}, weights {stats['weights']}, recipe {stats['recipe']['name']}, "
              f"seed {stats['seed']}; measured on {hardware_line(stats['environment'])}"
              for title, stats in results.items() if "backbone" in stats]
    classical = [title for title, stats in results.items() if "backbone" not in stats]
    if classical:
        lines.append(f"- {', '.join(classical)}: classical descriptors, tuned by cross-validation on training and validation "
                     f"clips ({results[classical[0]]['cv_how']})")
    return "\n".join(lines)


def reading(results: dict[str, dict]) -> str:
    """A few sentences about the comparison, made from its numbers."""
    order = sorted(results, key=lambda title: results[title]["accuracy"], reverse=True)
    best, worst = results[order[0]], results[order[-1]]
    clips = best["test_clips"]
    top = [title for title in order if results[title]["accuracy"] == best["accuracy"]]
    if len(top) == len(results):
        said = f"All models name {best['accuracy']:.1%} of the {clips} test videos correctly."
    else:
        said = (f"The best score, {best['accuracy']:.1%} of the {clips} test videos, is that of {', '.join(top)}; the lowest, "
                f"{worst['accuracy']:.1%}, that of {order[-1]}.")
    fast = min(results, key=lambda title: results[title]["inference_time"])
    slow = max(results, key=lambda title: results[title]["inference_time"])
    ratio = results[slow]["inference_time"] / results[fast]["inference_time"]
    return (f"{said} With {clips} test videos, a single video is worth {1 / clips:.1%}, so small differences mean "
            f"little. {fast} needs {results[fast]['inference_time'] * 1000:.0f} ms a clip, {slow} {ratio:.1f} times that.")


def disagreements(results: dict[str, dict]) -> pd.DataFrame:
    """The test clips on which the models' answers differ: clip_path, label and a column a model."""
    tables = {title: stats["predictions"].set_index("clip_path") for title, stats in results.items()}
    first = next(iter(tables.values()))
    answers = pd.DataFrame({"label": first["label"], **{title: t["predicted"] for title, t in tables.items()}})
    return answers[answers.drop(columns="label").nunique(axis=1) > 1].reset_index()
