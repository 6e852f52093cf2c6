from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

import evaluation
from config import ClassicalFiles, ResultFiles
from metrics import classification_metrics, confusion, interval_table
from models import FrameModel
from utils import write_csv, write_json


def table(seed=0, n=40, classes=("A", "B", "C")):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), n)
    rows = pd.DataFrame({"clip_path": [f"/c{i}.avi" for i in range(n)], "group": "g01", "label": rng.choice(classes, n),
                         "predicted": np.array(classes)[p.argmax(1)]})
    return rows.join(pd.DataFrame(p, columns=[f"p_{c}" for c in classes]))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_scikit_learns(seed):
    t = table(seed)
    ours = classification_metrics(t)
    assert ours["accuracy"] == metrics.accuracy_score(t.label, t.predicted)
    assert ours["f1"] == metrics.f1_score(t.label, t.predicted, average="macro")
    assert ours["recall"] == pytest.approx(metrics.balanced_accuracy_score(t.label, t.predicted))
    matrix = confusion(t, ["A", "B", "C"])
    assert matrix.sum() == len(t) and np.trace(matrix) / len(t) == ours["accuracy"]
    assert matrix[0].sum() == (t.label == "A").sum()


def test_uncertain_prefers_confident_mistakes():
    t = table()
    chosen = evaluation.uncertain(t, 4)
    assert (chosen.label != chosen.predicted).all() and chosen.probability.is_monotonic_decreasing
    right = t[t.label == t.predicted]
    chosen = evaluation.uncertain(right, 4)
    assert chosen.probability.is_monotonic_increasing
    assert chosen.probability.iloc[0] == right.filter(regex="^p_").max(axis=1).min()


def test_operations_of_a_known_network():
    """ResNet-18 at 224 has 1.81 G multiply-adds a frame, published; each counts as two here."""
    frames = torch.zeros(2, 3, 224, 224)
    experiment = SimpleNamespace(model=FrameModel(1000, "resnet18", weights=None), device="cpu", stats={"gflop": None},
                                 dataset=lambda part: [(frames, 0)], files=SimpleNamespace(stats=None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "update_json", lambda path, gflop: None)
        assert evaluation.count_flops(experiment) == pytest.approx(2 * 2 * 1.814, rel=0.01)


def test_calibration_before_and_after():
    sure = table(3, 2000)
    columns = [c for c in sure if c.startswith("p_")]
    true = sure[columns].to_numpy()
    drawn = (true.cumsum(axis=1) > np.random.default_rng(0).random((len(sure), 1))).argmax(axis=1)
    sure["label"] = np.array(["A", "B", "C"])[drawn]  # as the probabilities say
    sure[columns] = true**3 / (true**3).sum(axis=1, keepdims=True)  # told three times too certain
    tables = evaluation.calibrated({"a": {"predictions": sure, "validation": sure}, "b": {"predictions": sure}})
    assert list(tables) == ["a"] and (tables["a"]["after"]["predicted"] == sure["predicted"]).all()
    scores = evaluation.calibration_table(tables).loc["a"]
    assert tables["a"]["temperature"] == pytest.approx(3, rel=0.1)
    for name in ("calibration error", "log loss", "Brier score"):
        assert scores[f"{name} after"] < scores[f"{name} before"]
    told = evaluation.calibration_reading(tables)
    assert "on 2000 validation videos warrant less certainty than a has" in told and f"falls from {scores['calibration error before']:.3f}" in told


def write_results(root, kind, predictions):
    files = ResultFiles(root, kind, "resnet18")
    write_csv(files.predictions, predictions)
    write_json(files.stats, {
        **classification_metrics(predictions), "test_clips": len(predictions), "params": 10, "dataset": "d",
        "trained_params": 5, "train_time": 3.2, "inference_time": 0.1, "model_size_mb": 1.0, "memory_mb": 100.0,
        "backbone": "resnet18" if kind == "2d" else "resnet3d", "weights": "none", "classes": ["A", "B", "C"]})


def test_comparison_reads_results_and_refuses_other_clips(tmp_path):
    with pytest.raises(FileNotFoundError, match="03_2d_cnn"):
        evaluation.load_results(tmp_path)
    write_results(tmp_path, "2d", table(0))
    write_results(tmp_path, "3d", table(1))
    results = evaluation.load_results(tmp_path)
    shown = evaluation.comparison_table(results)
    assert list(shown.index)[:2] == ["2D-CNN", "3D-CNN"] and all("seed" in title for title in shown.index[2:])
    assert shown.loc["2D-CNN", "accuracy"] == f"{results['2D-CNN']['accuracy']:.3f}"
    low, high = map(float, shown.loc["2D-CNN", "95 % interval"].split(" to "))
    assert low < results["2D-CNN"]["accuracy"] < high
    assert evaluation.cost_table(results).loc["seed 3D-CNN (UCF-101, other machine)", "parameters"] == "33,167,811"
    differing = evaluation.disagreements(results)
    assert len(differing) == (table(0).predicted != table(1).predicted).sum()
    assert f"{results['2D-CNN']['test_clips']} test videos" in evaluation.reading(results)
    for name, cv in (("knn", 0.5), ("rbf_svm", 0.9)):
        files = ClassicalFiles(tmp_path, name)
        write_csv(files.predictions, table(2))
        write_json(files.stats, {**classification_metrics(table(2)), "title": name, "cv_mean": cv, "inference_time": 0.01,
                                 "test_clips": 40})
    results = evaluation.load_results(tmp_path)
    assert list(results) == ["2D-CNN", "3D-CNN", "knn", "rbf_svm"]
    assert list(evaluation.chosen(results)) == ["2D-CNN", "3D-CNN", "rbf_svm"]
    assert evaluation.comparison_table(results).loc["knn", "weights"] == "–"
    assert interval_table({title: stats["predictions"] for title, stats in results.items()})["accuracy"]["knn"] == results["knn"]["accuracy"]
    write_results(tmp_path, "3d", table(1).iloc[1:])
    with pytest.raises(ValueError, match="different clips"):
        evaluation.load_results(tmp_path)
