"""Several models of one data set, compared by what they left in its results; nothing is trained, no clip opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from statsmodels.stats.multitest import multipletests

import metrics
from config import DEFAULT_BACKBONE, title_of
from files import ClassicalFiles, ModelFiles, ResultFiles, read_json, read_predictions
from folds import fold_table
from machine import hardware_line
from names import in_markdown
from videos.findings import left_out

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
FISHER = "linear SVM on Fisher vectors"  # sees local motion alone, whose fusion was named before any was scored
DESCRIPTORS = "RBF SVM"  # sees all families of descriptors: chosen by the folds of one partition (see the README)
FUSIONS = (("2D-CNN", "3D-CNN"), ("2D-CNN", FISHER), ("2D-CNN", "3D-CNN", FISHER),
           ("2D-CNN", "3D-CNN", FISHER, DESCRIPTORS))
SHORT = {"2D-CNN": "2D", "3D-CNN": "3D", FISHER: "Fisher vectors"}  # in the names of fusions
CALIBRATION = {"calibration error": metrics.expected_calibration_error, "log loss": metrics.negative_log_likelihood,
               "Brier score": metrics.brier}


def load_results(root: Path, split: str | None = None) -> dict[str, dict]:
    """What the models that were evaluated left in a data set's results root, the CNNs first, then the classical models.

    Returns:
        Title to statistics, with `predictions`, the per-clip table of the test set; `validation` where it was kept; and
        where there are folds `fold_predictions` of every video and `fold_validation`.

    Raises:
        FileNotFoundError: none has been evaluated; the message names their notebooks.
        ValueError: the models were evaluated on different test clips, or belong to other data than the `split` with
            this sha256 (`VideoData.split`); None takes that of the first model.
    """
    results = {}
    for kind in ("2d", "3d"):
        files = ResultFiles(root, kind, DEFAULT_BACKBONE[kind])
        stats = read_json(files.stats)
        if not files.predictions.is_file() or "accuracy" not in stats:
            continue
        stats |= {"network": title_of(stats["backbone"]), "predictions": read_predictions(files.predictions)}
        if files.is_current(files.validation):
            stats["validation"] = read_predictions(files.validation)
        results[f"{kind.upper()}-CNN"] = stats | _folds(files, stats)
    for path in sorted(ClassicalFiles(root, "").stats.parent.glob("stats_*.json")):
        files = ClassicalFiles(root, path.stem.removeprefix("stats_"))
        stats = read_json(path)
        if files.predictions.is_file() and "accuracy" in stats:
            results[stats["title"]] = {**stats, "train_time": stats.get("fit_time"), "network": "classical descriptors",
                                       "predictions": read_predictions(files.predictions), **_folds(files, stats)}
    if not results:
        raise FileNotFoundError(f"{root}: no evaluated model there; {lacking(results)}")
    first, *others = results
    clips = set(results[first]["predictions"]["clip_path"])
    for title in others:
        if odd := clips ^ set(results[title]["predictions"]["clip_path"]):
            raise ValueError(f"{first} and {title} were tested on different clips ({len(odd)} are in one test only): "
                             "run both notebooks on the same split")
    if odd := [title for title, stats in results.items()
               if stats["split"]["sha256"] != (split or results[first]["split"]["sha256"])]:
        raise ValueError(f"the results of {', '.join(odd)} are of other clips, labels or another split than "
                         f"{'there are now' if split else f'those of {first}'}: run their notebooks again")
    return results


def lacking(results: dict[str, dict]) -> str:
    """Which notebooks to run for the models that `results` don't have; empty where they have them all."""
    there = {title if "backbone" in stats else "classical models" for title, stats in results.items()}
    notebooks = {"2D-CNN": "03_2d_cnn", "3D-CNN": "04_3d_cnn", "classical models": "02_classical_ml"}
    absent = [f"{notebook} ({title})" for title, notebook in notebooks.items() if title not in there]
    return f"run {', '.join(absent)}" if absent else ""


def _folds(files: ModelFiles, stats: dict) -> dict[str, pd.DataFrame]:
    if "folds" not in stats or not (files.folds.is_file() and files.folds_validation.is_file()):
        return {}
    tables = {"fold_predictions": files.folds, "fold_validation": files.folds_validation}
    return {name: read_predictions(path) for name, path in tables.items()}


# ---------------------------------------------------------------- every video, by folds

def fold_predictions(results: dict[str, dict]) -> dict[str, pd.DataFrame]:
    """Title to the fold predictions of every video, for the models that have them and for their FUSIONS.

    Raises:
        ValueError: models were tested by different folds.
    """
    tables = {title: stats["fold_predictions"] for title, stats in results.items() if "fold_predictions" in stats}
    folds = {title: dict(zip(table["clip_path"], table["fold"], strict=True)) for title, table in tables.items()}
    first = next(iter(folds), None)
    if odd := [title for title, its in folds.items() if its != folds[first]]:
        raise ValueError(f"{first} and {odd[0]} were tested by different folds: run both with the same FOLDS and SEED")
    return tables | {fusion_title(titles): fusion(results, titles)[0] for titles in _fusions(results)}


def _fusions(results: dict[str, dict]) -> list[tuple[str, ...]]:
    return [titles for titles in FUSIONS if all("fold_predictions" in results.get(title, {}) for title in titles)]


def fusion_title(titles: Sequence[str]) -> str:
    """A fusion of models as it is written."""
    return "fusion: " + " + ".join(SHORT.get(title, title) for title in titles)


def fusion(results: dict[str, dict], titles: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Late fusion of several models' fold predictions; the weights are fitted to each fold's validation part.

    Returns:
        The predictions of every video, and the weights: one row per fold, one column per model.
    """
    tests = [results[title]["fold_predictions"] for title in titles]
    validations = [results[title]["fold_validation"] for title in titles]
    fused, weights = [], {}
    for fold in sorted(tests[0]["fold"].unique()):
        its, fitted_to = ([table[table["fold"] == fold] for table in tables] for tables in (tests, validations))
        weights[fold] = metrics.fusion_weights(fitted_to)
        fused.append(metrics.fuse(its, weights[fold]))
    table = pd.DataFrame.from_dict(weights, orient="index", columns=list(titles)).rename_axis("fold")
    return pd.concat(fused, ignore_index=True), table


def fusion_table(results: dict[str, dict]) -> pd.DataFrame:
    """One row per fusion, one column per model: its weight, mean and range of the folds."""
    rows = {}
    for titles in _fusions(results):
        weights = fusion(results, titles)[1].agg(["mean", "min", "max"])
        rows[fusion_title(titles)] = {its: "{:.2f} ({:.2f} to {:.2f})".format(*weights[its]) for its in titles}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("–")


def folds_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per model and fusion, the best first, for what `fold_predictions` gives: every video once, predicted by a
    model that never saw its group.

    Columns: videos, accuracy, its Wilson interval and that of resampled whole groups, macro F1, log loss, and the
    lowest and highest accuracy of a fold.
    """
    rows = {}
    for title, table in tables.items():
        wilson, groups = metrics.accuracy_interval(table), metrics.group_bootstrap(table)
        by_fold = fold_table(table)["accuracy"]
        rows[title] = {"videos": len(table), "accuracy": wilson.estimate,
                       "95 % interval": f"{wilson.low:.3f} to {wilson.high:.3f}",
                       "whole groups": f"{groups.low:.3f} to {groups.high:.3f}",
                       "macro F1": metrics.classification_metrics(table)["f1"],
                       "log loss": metrics.negative_log_likelihood(table),
                       "folds": f"{by_fold.min():.3f} to {by_fold.max():.3f}"}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    if not rows:
        return table
    table = metrics.with_top(table, tables, "whole groups")
    return table.sort_values("accuracy", ascending=False, kind="stable").round(3)


def folds_reading(results: dict[str, dict], table: pd.DataFrame) -> str:
    """The protocol and the first of `folds_table` in a few sentences; what to do where there are no folds."""
    if table.empty:
        return "No model was tested by folds (`FOLDS=0`): there is the single test set only."
    how = next(stats["folds"]["how"] for stats in results.values() if "fold_predictions" in stats)
    most, top = table.iloc[0], table.index[table["accuracy"] == table["accuracy"].max()]
    alone = next(title for title in table.index if not title.startswith("fusion"))
    said = (f"Protocol: {how}; {most.videos} videos are each predicted once. The highest accuracy, {most.accuracy:.3f} "
            f"({most['95 % interval']}), is that of {', '.join(top)}")
    second = "" if alone in top else f"; of the single models, {alone} has the highest, {table.accuracy[alone]:.3f}"
    return f"{said}{second}."


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
    return metrics.with_top(table, {title: stats["predictions"] for title, stats in results.items()}, "95 % interval")


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
    dataset, count = in_markdown(first["dataset"]), len(first["classes"])
    classes = f"{count} classes" if count > metrics.MANY else f"classes {', '.join(map(in_markdown, first['classes']))}"
    lines = [f"- data set **{dataset}**{synthetic if first['dataset'] == 'demo' else ''}, {classes}",
             f"- split {first['split']['kind']} ({first['split']['sha256'][:12]}), {first['test_clips']} test videos"
             f"{left_out(first['split'])}, groups shared between parts: {first['split']['shared_groups']}"]
    lines += [f"- {title}: {stats['network']}, weights {stats['weights']}, recipe {stats['recipe']['name']}, "
              f"seed {stats['seed']}; measured on {hardware_line(stats['environment'])}"
              for title, stats in results.items() if "backbone" in stats]
    classical = [title for title, stats in results.items() if "backbone" not in stats]
    if classical:
        lines.append(f"- {', '.join(classical)}: classical descriptors, tuned by cross-validation on training and "
                     f"validation clips ({results[classical[0]]['cv_how']})")
    if more := lacking(results):
        lines.append(f"- other models are not there yet: {more}")
    return "\n".join(lines)


def scores_reading(results: dict[str, dict]) -> str:
    """A few sentences about the comparison, made from its numbers."""
    accuracy = pd.Series({title: stats["accuracy"] for title, stats in results.items()})
    measured = {title: stats for title, stats in results.items() if "inference_time" in stats}
    latency = pd.Series({title: stats["inference_time"] for title, stats in measured.items()})
    clips = next(iter(results.values()))["test_clips"]
    order = accuracy.sort_values(ascending=False, kind="stable").index
    top = [title for title in order if accuracy[title] == accuracy.max()]
    if len(top) == len(results):
        said = f"All models name {accuracy.max():.1%} of the {clips} test videos correctly."
    else:
        said = (f"The best score, {accuracy.max():.1%} of the {clips} test videos, is that of {', '.join(top)}; the "
                f"lowest, {accuracy.min():.1%}, that of {order[-1]}.")
    said += f" With {clips} test videos, a single video is worth {1 / clips:.1%}, so small differences mean little."
    if latency.empty:
        return said
    return (f"{said} {latency.idxmin()} needs {latency.min() * 1000:.0f} ms per clip, {latency.idxmax()} "
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


# ---------------------------------------------------------------- would more clips help

def learning_curve(root: Path) -> pd.DataFrame | None:
    """Accuracy by folds against the share of training groups, as benchmarks/curve.py left it; None where it did not.

    A model whose folds were computed anew since is left out, which a printed line says.

    Returns:
        One row per model and share, ascending: groups and clips trained on (means over folds), videos tested, accuracy
        with low and high (of resampled groups; Wilson's where no video is wrong), and what was gained over the next
        smaller share of the same model: gain, gain_low, gain_high and the exact p_value of `metrics.compare`.
    """
    sizes, predictions = root / "learning_curve.csv", root / "predictions" / "learning_curve.csv"
    if not (sizes.is_file() and predictions.is_file()):
        return None
    tables = {name: dict(list(its.groupby("share"))) for name, its in read_predictions(predictions).groupby("model")}
    current = [name for name, shares in tables.items() if _is_of_these_folds(ClassicalFiles(root, name), shares)]
    means = pd.read_csv(sizes).groupby(["model", "share"])[["groups", "clips"]].mean()
    rows = [row for name in current for row in _curve_rows(ClassicalFiles(root, name), tables[name], means.loc[name])]
    return pd.DataFrame(rows) if rows else None


def _is_of_these_folds(files: ModelFiles, shares: dict[float, pd.DataFrame]) -> bool:
    if not files.folds.is_file():
        return True
    now, then = (table.set_index("clip_path")["predicted"].sort_index()
                 for table in (read_predictions(files.folds), shares[max(shares)]))
    if now.equals(then):
        return True
    print(f"learning curve: without {files.model_name}, whose folds were computed anew since: run make curve again")
    return False


def _curve_rows(files: ModelFiles, shares: dict[float, pd.DataFrame], means: pd.DataFrame) -> list[dict]:
    rows, before, title = [], None, read_json(files.stats).get("title", files.model_name.upper())
    for share, table in sorted(shares.items()):
        interval = metrics.group_bootstrap(table)
        if interval.low == interval.high:
            interval = metrics.accuracy_interval(table)
        gained = {}
        if before is not None:
            gain = metrics.compare(table, before)
            gained = {"gain": gain.difference, "gain_low": gain.low, "gain_high": gain.high, "p_value": gain.p_value}
        rows.append({"model": title, "share": share, **means.loc[share], "videos": len(table),
                     "accuracy": interval.estimate, "low": interval.low, "high": interval.high, **gained})
        before = table
    return rows


def curve_reading(points: pd.DataFrame) -> str:
    """Whether more clips would help, for what `learning_curve` gives: a sentence per model, then the answer.

    A gain counts where the exact test, adjusted after Holm over the models, rejects equality and the interval of
    resampled groups lies above zero.
    """
    last = points.groupby("model", sort=False).tail(1)
    before = points.groupby("model", sort=False)["share"].nth(-2)
    adjusted = multipletests(last["p_value"], method="holm")[1]
    told, helped = [], []
    for row, p in zip(last.itertuples(), adjusted, strict=True):
        spans_zero = row.gain_low <= 0 <= row.gain_high
        significant = p <= metrics.ALPHA and not spans_zero
        verdict = ("significant" if significant else "not significant: the interval reaches zero" if p <= metrics.ALPHA
                   else "not significant")
        helped += [row.model] if significant and row.gain > 0 else []
        told.append(f"{row.model}: from {before.iloc[0]:.0%} to {row.share:.0%} of the training groups "
                    f"({row.clips:.0f} clips), accuracy changes by {100 * row.gain:+.1f} percentage points "
                    f"(95 % interval of whole groups {100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f}, "
                    f"p = {p:.2g} after Holm): {verdict}.")
    if helped:
        answer = f"More clips would probably help {', '.join(helped)}: the curve still rises."
    else:
        answer = (f"Whether more clips would help is not shown: on {last['videos'].max()} videos no curve rises "
                  f"significantly at its end; a gain of up to {100 * max(last['gain_high'].max(), 0):.1f} percentage "
                  "points would not be seen.")
    return "\n\n".join([*told, answer])
