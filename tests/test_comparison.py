"""Several models compared from what they left in results."""

import statistics
import subprocess
import sys
from itertools import chain, combinations
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import comparison
import run_notebooks
from config import ROOT
from files import ClassicalFiles, ResultFiles, read_json, write_csv, write_json
from machine import environment
from metrics import classification_metrics, interval_table, seeds_reading


def table(seed=0, n=40, classes=("A", "B", "C")):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), n)
    rows = pd.DataFrame({"clip_path": [f"/c{i}.avi" for i in range(n)], "group": "g01", "label": rng.choice(classes, n),
                         "predicted": np.array(classes)[p.argmax(1)]})
    return rows.join(pd.DataFrame(p, columns=[f"p_{c}" for c in classes]))


def powerset(names):
    return chain.from_iterable(combinations(names, count) for count in range(len(names) + 1))


def test_calibration_before_and_after():
    sure = table(3, 2000)
    columns = [c for c in sure if c.startswith("p_")]
    true = sure[columns].to_numpy()
    drawn = (true.cumsum(axis=1) > np.random.default_rng(0).random((len(sure), 1))).argmax(axis=1)
    sure["label"] = np.array(["A", "B", "C"])[drawn]  # as the probabilities say
    sure[columns] = true**3 / (true**3).sum(axis=1, keepdims=True)  # told three times too certain
    tables = comparison.calibrated({"a": {"predictions": sure, "validation": sure}, "b": {"predictions": sure}})
    assert list(tables) == ["a"] and (tables["a"]["after"]["predicted"] == sure["predicted"]).all()
    scores = comparison.calibration_table(tables).loc["a"]
    assert tables["a"]["temperature"] == pytest.approx(3, rel=0.1)
    for name in ("calibration error", "log loss", "Brier score"):
        assert scores[f"{name} after"] < scores[f"{name} before"]
    told = comparison.calibration_reading(tables)
    assert "on 2000 validation videos warrant less certainty than a has" in told
    assert f"falls from {scores['calibration error before']:.3f}" in told


def write_results(root, kind, predictions):
    files = ResultFiles(root, kind, "resnet18")
    write_csv(files.predictions, predictions)
    write_json(files.stats, {
        **classification_metrics(predictions), "test_clips": len(predictions), "params": 10, "dataset": "d",
        "trained_params": 5, "train_time": 3.2, "inference_time": 0.1, "model_size_mb": 1.0, "memory_mb": 100.0,
        "backbone": "resnet18" if kind == "2d" else "resnet3d", "weights": "none", "classes": ["A", "B", "C"],
        "environment": environment(), "split": {"sha256": "s"}})


def test_comparison_reads_results_and_refuses_other_clips(tmp_path):
    with pytest.raises(FileNotFoundError, match="03_2d_cnn"):
        comparison.load_results(tmp_path)
    write_results(tmp_path, "2d", table(0))
    write_results(tmp_path, "3d", table(1))
    results = comparison.load_results(tmp_path)
    shown = comparison.comparison_table(results)
    assert list(shown.index)[:2] == ["2D-CNN", "3D-CNN"] and all("seed" in title for title in shown.index[2:])
    assert shown.loc["2D-CNN", "accuracy"] == f"{results['2D-CNN']['accuracy']:.3f}"
    low, high = map(float, shown.loc["2D-CNN", "95 % interval"].split(" to "))
    assert low < results["2D-CNN"]["accuracy"] < high
    assert comparison.cost_table(results).loc["seed 3D-CNN (UCF-101, other machine)", "parameters"] == "33,167,811"
    differing = comparison.disagreements(results)
    assert len(differing) == (table(0).predicted != table(1).predicted).sum()
    assert f"{results['2D-CNN']['test_clips']} test videos" in comparison.scores_reading(results)
    for name, cv in (("knn", 0.5), ("rbf_svm", 0.9)):
        files = ClassicalFiles(tmp_path, name)
        write_csv(files.predictions, table(2))
        write_json(files.stats, {**classification_metrics(table(2)), "title": name, "cv_mean": cv,
                                 "inference_time": 0.01, "test_clips": 40, "split": {"sha256": "s"}})
    results = comparison.load_results(tmp_path)
    assert list(results) == ["2D-CNN", "3D-CNN", "knn", "rbf_svm"]
    assert list(comparison.chosen(results)) == ["2D-CNN", "3D-CNN", "rbf_svm"]
    assert comparison.comparison_table(results).loc["knn", "weights"] == "–"
    intervals = interval_table({title: stats["predictions"] for title, stats in results.items()})
    assert intervals["accuracy"]["knn"] == results["knn"]["accuracy"]
    write_results(tmp_path, "3d", table(1).iloc[1:])
    with pytest.raises(ValueError, match="different clips"):
        comparison.load_results(tmp_path)


def headline(root, split="s"):
    return run_notebooks.headline(SimpleNamespace(results=root, split={"sha256": split}))


def write_classical(root, name, predictions):
    files = ClassicalFiles(root, name)
    write_csv(files.predictions, predictions)
    write_json(files.stats, {**classification_metrics(predictions), "title": name, "cv_mean": 0.9, "cv_how": "folds",
                             "test_clips": len(predictions), "environment": environment(), "split": {"sha256": "s"}})


@pytest.mark.parametrize("there", list(powerset(["2d", "3d", "knn"])), ids="-".join)
def test_there_is_a_table_of_the_models_that_are_there(there, tmp_path):
    for name in there:
        (write_classical if name == "knn" else write_results)(tmp_path, name, table(0))
    notebooks = {"2d": "03_2d_cnn", "3d": "04_3d_cnn", "knn": "02_classical_ml"}
    told = headline(tmp_path)
    assert {name for name, notebook in notebooks.items() if notebook not in told} == set(there)
    if not there:
        assert told.startswith("no headline table yet: ") and len(told.splitlines()) == 1
        with pytest.raises(FileNotFoundError, match="no evaluated model there; run 03_2d_cnn"):
            comparison.load_results(tmp_path)
        return
    results = comparison.load_results(tmp_path)
    titles = [{"2d": "2D-CNN", "3d": "3D-CNN"}.get(name, name) for name in there]
    assert list(results) == titles and list(comparison.chosen(results)) == titles
    assert all(title in told for title in titles) and "measured on" in told
    assert (comparison.lacking(results) == "") == (len(there) == 3)
    assert comparison.disagreements(results).empty  # all have the same predictions


def test_results_of_other_clips_than_there_are_now_are_refused(tmp_path):
    write_results(tmp_path, "2d", table(0))
    assert list(comparison.load_results(tmp_path, "s")) == ["2D-CNN"]
    with pytest.raises(ValueError, match="results of 2D-CNN are of other clips, labels or another split than"):
        comparison.load_results(tmp_path, "other")
    assert headline(tmp_path, "other").startswith("no headline table yet: the results of 2D-CNN are of other clips")


def test_a_model_whose_latency_was_not_measured_is_compared_too(tmp_path):
    write_results(tmp_path, "2d", table(0))
    write_results(tmp_path, "3d", table(1))
    stats = ResultFiles(tmp_path, "3d", "resnet3d").stats
    write_json(stats, {name: value for name, value in read_json(stats).items() if name != "inference_time"})
    results = comparison.load_results(tmp_path)
    assert "2D-CNN needs 100 ms per clip" in comparison.scores_reading(results)
    assert comparison.cost_table(results).loc["3D-CNN", "latency [s/clip]"] == "–"
    assert "ms per clip" not in comparison.scores_reading({"3D-CNN": results["3D-CNN"]})


def test_results_that_do_not_go_together_are_told_not_raised(tmp_path):
    write_results(tmp_path, "2d", table(0))
    write_results(tmp_path, "3d", table(0).iloc[1:])
    assert headline(tmp_path).startswith("no headline table yet: 2D-CNN and 3D-CNN were tested on")


def test_summary_of_seeds():
    values = [0.9, 1.0, 0.8]
    rows = pd.DataFrame({"seed": [0, 1, 2], "accuracy": values, "f1": values, "log_loss": [0.3, 0.1, 0.2]})
    results = {"a": {"seeds": rows.to_dict("records")}, "b": {"seeds": rows.to_dict("records")[:1]}, "c": {}}
    table = comparison.seeds_table(results)
    assert table.index.tolist() == ["a"] and table.loc["a", "trainings"] == 3
    assert table.loc["a", "accuracy mean"] == round(statistics.mean(values), 3)
    assert table.loc["a", "accuracy sd"] == round(statistics.stdev(values), 3)
    assert "0.900 with a standard deviation of 0.100, from 0.800 to 1.000" in seeds_reading(rows)
    assert seeds_reading(rows.head(1)).startswith("One training only")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["config", "files", "machine", "metrics", "comparison", "plots", "videos.library",
                                    "videos.ucf101", "run_notebooks"])
def test_what_reads_results_splits_or_paths_leaves_torch_out(module):
    code = f"import sys; sys.path[:0] = ['src', 'tools']; import {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
