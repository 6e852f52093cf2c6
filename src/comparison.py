"""Several models of one data set, compared by what they left in its results; nothing is trained, no clip opened."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import metrics
from config import DEFAULT_BACKBONE, TITLES
from files import ClassicalFiles, ResultFiles, read_json, read_predictions
from machine import hardware_line

# What the seed notebook printed: another data set (UCF-101, a random split that shares groups) and another machine.
SEED_PRINTED = {
    "seed 2D-CNN (UCF-101, other machine)": {
        "network": "ResNet-18", "weights": "torchvision", "accuracy": 0.957, "precision": 0.97, "recall": 0.95,
        "f1": 0.96, "params": 11_178_051, "trained_params": 11_178_051, "train_time": 3717.9, "inference_time": 0.488,
        "model_size_mb": 42.72, "memory_mb": 3266.2, "test_clips": 46},
    "seed 3D-CNN (UCF-101, other machine)": {
        "network": "R3D-18", "weights": "torchvision", "accuracy": 0.500, "precision": 0.51, "recall": 0.46,
        "f1": 0.47, "params": 33_167_811, "trained_params": 1_539, "train_time": 3936.8, "inference_time": 1.261,
        "memory_mb": 3276.7, "test_clips": 46},
}
# Columns of the tables: what the statistics call a figure, its heading and its format.
SCORES = {"accuracy": ("accuracy", ".3f"), "f1": ("macro F1", ".3f"), "precision": ("macro precision", ".3f"),
          "recall": ("macro recall", ".3f"), "test_clips": ("test clips", ""), "network": ("network", ""),
          "weights": ("weights", "")}
COSTS = {"params": ("parameters", ","), "trained_params": ("trained parameters", ","),
         "train_time": ("training [s]", ".0f"), "inference_time": ("latency [s/clip]", ".3f"),
         "model_size_mb": ("file [MiB]", ".1f"), "memory_mb": ("peak memory [MiB]", ".0f")}
SEED_SCORES = {"accuracy": "accuracy", "f1": "macro F1", "log_loss": "log loss"}  # of several trainings
CALIBRATION = {"calibration error": metrics.expected_calibration_error, "log loss": metrics.negative_log_likelihood,
               "Brier score": metrics.brier}


def load_results(root: Path) -> dict[str, dict]:
    """What the models of the data set with this results root left, the CNNs first, then the classical models.

    Returns:
        Title to statistics, with `predictions`, the per-clip table, and `validation` where it was kept.

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
        stats |= {"network": TITLES[stats["backbone"]], "predictions": read_predictions(files.predictions)}
        if files.is_current(files.validation):
            stats["validation"] = read_predictions(files.validation)
        results[f"{kind.upper()}-CNN"] = stats
    for path in sorted(ClassicalFiles(root, "").stats.parent.glob("stats_*.json")):
        files = ClassicalFiles(root, path.stem.removeprefix("stats_"))
        stats = read_json(path)
        if files.predictions.is_file() and "accuracy" in stats:
            results[stats["title"]] = {**stats, "train_time": stats.get("fit_time"), "network": "classical descriptors",
                                       "predictions": read_predictions(files.predictions)}
    first, *others = results
    clips = set(results[first]["predictions"]["clip_path"])
    for title in others:
        if odd := clips ^ set(results[title]["predictions"]["clip_path"]):
            raise ValueError(f"{first} and {title} were tested on different clips ({len(odd)} are in one test only): "
                             "run both notebooks on the same split")
    return results


def chosen(results: dict[str, dict]) -> dict[str, dict]:
    """The CNNs and the classical model with the best cross-validated accuracy: those that the figures show."""
    cnns = {title: stats for title, stats in results.items() if "backbone" in stats}
    classical = [title for title in results if title not in cnns]
    best = max(classical, key=lambda title: results[title]["cv_mean"], default=None)
    return {**cnns, **({best: results[best]} if best else {})}


def comparison_table(results: dict[str, dict]) -> pd.DataFrame:
    """One row per model: accuracy with its 95 % Wilson interval, other scores, network, weights; then the seed's."""
    table = _table(results, SCORES)
    intervals = metrics.interval_table({title: stats["predictions"] for title, stats in results.items()})
    shown = [f"{row.low:.2f} to {row.high:.2f}" for row in intervals.itertuples()]
    table.insert(1, "95 % interval", shown + ["–"] * len(SEED_PRINTED))
    return table


def cost_table(results: dict[str, dict]) -> pd.DataFrame:
    """One row per model: parameters, training time, latency, file size and memory; the seed's at the end."""
    return _table(results, COSTS)


def _table(results: dict[str, dict], columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    results = {**results, **SEED_PRINTED}
    table = pd.DataFrame(index=pd.Index(results, name="model"))
    for key, (heading, form) in columns.items():
        values = [stats.get(key) for stats in results.values()]
        table[heading] = ["–" if value is None else format(value, form) for value in values]
    return table


def clip_table(results: dict[str, dict]) -> pd.DataFrame:
    """Accuracy of videos judged by several clips, and of single clips, where both are known."""
    rows = {title: {"clips per video": stats["views_per_video"], "video accuracy": stats["accuracy"],
                    "single-clip accuracy": stats["single_clip_accuracy"]}
            for title, stats in results.items() if "single_clip_accuracy" in stats}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def calibrated(results: dict[str, dict]) -> dict[str, dict]:
    """Test predictions of the models that kept validation predictions, as they are and with a fitted temperature.

    Returns:
        Title to `before` and `after`, prediction tables of the test set; `validation`, that of the validation set; and
        `temperature`, fitted to it.
    """
    tables = {}
    for title, stats in results.items():
        if "validation" in stats:
            temperature = metrics.fit_temperature(stats["validation"])
            after = metrics.apply_temperature(stats["predictions"], temperature)
            tables[title] = {"before": stats["predictions"], "after": after, "validation": stats["validation"],
                             "temperature": temperature}
    return tables


def calibration_table(tables: dict[str, dict]) -> pd.DataFrame:
    """Calibration error, loss and Brier score on the test set before and after, for what `calibrated` gives."""
    rows = {}
    for title, its in tables.items():
        rows[title] = {"temperature": round(its["temperature"], 2)}
        for name, score in CALIBRATION.items():
            rows[title] |= {f"{name} {when}": round(score(its[when]), 3) for when in ("before", "after")}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def calibration_reading(tables: dict[str, dict]) -> str:
    """What the fitted temperatures say and do, a sentence per model, for what `calibrated` gives."""
    told = []
    for title, its in tables.items():
        before, after = (metrics.expected_calibration_error(its[when]) for when in ("before", "after"))
        validation = its["validation"]
        right = (validation["label"] == validation["predicted"]).sum()
        told.append(f"{right} right answers on {len(validation)} validation videos warrant "
                    f"{'less' if its['temperature'] > 1 else 'more'} certainty than {title} has (temperature "
                    f"{its['temperature']:.2f}); with it, the calibration error on the {len(its['before'])} test "
                    f"videos {'falls' if after < before else 'rises'} from {before:.3f} to {after:.3f}.")
    return "\n\n".join(told)


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
        lines.append(f"- {', '.join(classical)}: classical descriptors, tuned by cross-validation on training and "
                     f"validation clips ({results[classical[0]]['cv_how']})")
    return "\n".join(lines)


def scores_reading(results: dict[str, dict]) -> str:
    """A few sentences about the comparison, made from its numbers."""
    accuracy = pd.Series({title: stats["accuracy"] for title, stats in results.items()})
    latency = pd.Series({title: stats["inference_time"] for title, stats in results.items()})
    clips = next(iter(results.values()))["test_clips"]
    order = accuracy.sort_values(ascending=False, kind="stable").index
    top = [title for title in order if accuracy[title] == accuracy.max()]
    if len(top) == len(results):
        said = f"All models name {accuracy.max():.1%} of the {clips} test videos correctly."
    else:
        said = (f"The best score, {accuracy.max():.1%} of the {clips} test videos, is that of {', '.join(top)}; the "
                f"lowest, {accuracy.min():.1%}, that of {order[-1]}.")
    return (f"{said} With {clips} test videos, a single video is worth {1 / clips:.1%}, so small differences mean "
            f"little. {latency.idxmin()} needs {latency.min() * 1000:.0f} ms per clip, {latency.idxmax()} "
            f"{latency.max() / latency.min():.1f} times that.")


def motion_comparison(root: Path) -> pd.DataFrame:
    """Accuracy of each CNN under each variant of the motion probe, and of rules that see no action at all.

    Read from what `06_interpretation` and `01_dataset` left in the data set's results root.

    Returns:
        One row per variant or rule, one column per model; – where a rule is no model's.
    """
    kept = {path.stem: read_json(path)["motion"] for path in sorted((root / "behaviour").glob("*.json"))}
    columns = {name.upper(): {row["variant"]: f"{row['accuracy']:.3f}" for row in rows} for name, rows in kept.items()}
    rules = root / "dataset" / "shortcuts.csv"
    if rules.is_file():
        scores = pd.read_csv(rules).set_index("rule")["accuracy"].map("{:.3f}".format)
        columns["rule without a model"] = scores[["duration", "most frequent class"]].to_dict()
    return pd.DataFrame(columns).fillna("–").rename_axis("what is seen")


def disagreements(results: dict[str, dict]) -> pd.DataFrame:
    """The test clips on which the models' answers differ: clip_path, label and a column per model."""
    tables = {title: stats["predictions"].set_index("clip_path") for title, stats in results.items()}
    first = next(iter(tables.values()))
    answers = pd.DataFrame({"label": first["label"], **{title: t["predicted"] for title, t in tables.items()}})
    return answers[answers.drop(columns="label").nunique(axis=1) > 1].reset_index()


def seeds_table(results: dict[str, dict]) -> pd.DataFrame:
    """Mean and spread over training seeds, for the models of `load_results` that have several."""
    rows = {}
    for title, stats in results.items():
        trainings = pd.DataFrame(stats.get("seeds", []))
        if len(trainings) > 1:
            rows[title] = {"trainings": len(trainings)}
            for key, name in SEED_SCORES.items():
                mean, sd = trainings[key].agg(["mean", "std"]).tolist()
                rows[title] |= {f"{name} mean": round(mean, 3), f"{name} sd": round(sd, 3)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
