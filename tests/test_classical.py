import dataclasses
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.base import BaseEstimator
from sklearn.preprocessing import FunctionTransformer

from classical import classifiers, descriptors
from classical.classifiers import (
    FOLDS,
    MODELS,
    ModelError,
    ablation,
    evaluate,
    fitting_table,
    importance,
    load_or_fit,
    measure_latency,
    model_input,
    predict,
    summary,
)
from classical.descriptors import FAMILIES
from conftest import REAL_CLIPS
from files import file_hash, read_json, update_json, write_json
from videos.decoding import VideoError
from videos.library import VideoData, open_data
from videos.splits import group_folds


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return open_data(str(tiny_dataset), results=tmp_path / "results")


@pytest.fixture
def quick(monkeypatch):
    """One setting for the slow models: their whole grids are for a study."""
    for name in ("random_forest", "gradient_boosting", "fisher_svm"):
        grid = [{key: values[:1] for key, values in MODELS[name].grid[0].items()}]
        monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], grid=grid))


def no_clip(*_):
    raise AssertionError("a clip was opened")


# ---------------------------------------------------------------- fit, save, reload

@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fitted_then_reloaded_without_a_clip(name, data, cache, quick, capsys):
    model = load_or_fit(name, data, seed=0, cache=cache)
    table, latency = evaluate(model), measure_latency(model)
    stats, files = model.stats, model.files
    assert list(table) == ["clip_path", "group", "label", "predicted", *(f"p_{c}" for c in data.classes)]
    assert table["clip_path"].tolist() == data.table("test")["clip_path"].tolist()
    p = table.filter(regex="^p_").to_numpy()
    np.testing.assert_allclose(p.sum(axis=1), 1)
    assert [data.classes[i] for i in p.argmax(axis=1)] == table["predicted"].tolist()
    assert (table["label"] == table["predicted"]).mean() == stats["accuracy"] >= 0.8  # the squares are easy
    for key in ("cv_mean", "cv_std", "parameters", "precision", "recall", "f1", "fit_time", "feature_time",
                "model_size_mb", "split", "dataset", "classes", "seed", "environment", "test_clips", "title"):
        assert key in stats, key
    assert stats["cv_mean"] == pytest.approx(np.mean(stats["cv_scores"]))
    assert stats["environment"]["scikit-learn"]
    assert stats["inference_time"] == latency["descriptors"] + latency["model"] < latency["total"]
    assert files.checkpoint == data.results / f"saved_models/classical_ml/best_{name}.skops"
    capsys.readouterr()

    with pytest.MonkeyPatch.context() as patch:
        for function in ("file_hash", "read_pairs"):
            patch.setattr(descriptors, function, no_clip)
        again = load_or_fit(name, data, seed=0, cache=cache)
        assert again.reloaded and again.stats == stats and "reloaded" in capsys.readouterr().out
        pd.testing.assert_frame_equal(evaluate(again), table)
        assert measure_latency(again) == latency
    pd.testing.assert_frame_equal(predict(again), table)
    assert summary(data.results)["test accuracy"].tolist() == [stats["accuracy"]]


@pytest.mark.slow
def test_same_seed_same_model(data, tmp_path, cache, quick):
    runs = [dataclasses.replace(data, results=tmp_path / f"run{i}") for i in (1, 2)]
    tables = [predict(load_or_fit("fisher_svm", run, cache=cache)) for run in runs]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_what_differs_is_fitted_anew_and_the_old_kept(data, cache, monkeypatch, capsys):
    first = load_or_fit("knn", data, cache=cache)
    kept = first.files.checkpoint.read_bytes()
    assert not load_or_fit("knn", data, seed=7, cache=cache).reloaded
    assert "seed is 7, was 42" in capsys.readouterr().out
    assert [p.read_bytes() for p in (data.results / "previous").glob("knn-*/best_knn.skops")] == [kept]
    other = dataclasses.replace(MODELS["knn"], grid=[{"classify__n_neighbors": [1]}])
    monkeypatch.setitem(MODELS, "knn", other)
    assert not load_or_fit("knn", data, seed=7, cache=cache).reloaded
    assert "search is" in capsys.readouterr().out
    monkeypatch.setattr(descriptors, "VERSION", 0)
    assert not load_or_fit("knn", data, seed=7, cache=cache).reloaded
    assert "descriptors.version is 0, was" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no classical model 'svm': there are linear_svm"):
        load_or_fit("svm", data)


@pytest.mark.slow
def test_a_model_saved_before_its_encoder_moved_is_fitted_anew(data, cache, quick, monkeypatch, capsys):
    model = load_or_fit("fisher_svm", data, cache=cache)
    files = model.files
    with monkeypatch.context() as patch:
        patch.setattr(descriptors.FisherVectors, "__module__", "descriptors")
        files.checkpoint.write_bytes(skops.io.dumps(model.pipeline))
    sidecar = {**read_json(files.sidecar), "sha256": file_hash(files.checkpoint)}
    del sidecar["encoder"]
    write_json(files.sidecar, sidecar)
    capsys.readouterr()
    assert not load_or_fit("fisher_svm", data, cache=cache).reloaded
    assert "SVM on Fisher vectors: encoder is classical.descriptors.FisherVectors, was" in capsys.readouterr().out
    assert load_or_fit("fisher_svm", data, cache=cache).reloaded


@pytest.mark.slow
def test_test_clips_are_never_read_while_tuning(tiny_dataset, tmp_path):
    root = shutil.copytree(tiny_dataset, tmp_path / "copy")
    shutil.rmtree(root / "splits")
    data = open_data(str(root), results=tmp_path / "results")
    for clip in data.table("test")["clip_path"]:
        (root / clip.lstrip("/")).write_bytes(clip.encode())
    model = load_or_fit("linear_svm", data, cache=tmp_path / "cache")
    seen = list((tmp_path / "cache" / "descriptors").iterdir())
    assert len(seen) == len(data.table("train")) + len(data.table("val"))
    with pytest.raises(VideoError, match=data.table("test")["clip_name"].iloc[0]):
        evaluate(model)


def test_learning_steps_see_only_a_folds_fitting_clips(data, cache):
    """Scaling, components and mixtures are inside the pipeline: poisoned scoring clips change nothing."""
    table = fitting_table(data)
    y = table["label"].map(data.class_map).to_numpy()
    fit, score = group_folds(table, FOLDS, True, 0)[0][0]
    for name in ("linear_svm", "fisher_svm"):
        x = model_input(name, table, data.root, cache)
        poisoned = x.copy()
        poisoned[score] = 0
        pipelines = [MODELS[name].build(0).fit(rows[fit], y[fit]) for rows in (x, poisoned)]
        np.testing.assert_array_equal(*(p.decision_function(x[score]) for p in pipelines))


# ---------------------------------------------------------------- files that were tampered with

def test_a_changed_file_is_refused(data, cache):
    files = load_or_fit("knn", data, cache=cache).files
    saved = bytearray(files.checkpoint.read_bytes())
    saved[len(saved) // 2] ^= 1
    files.checkpoint.write_bytes(saved)
    with pytest.raises(ModelError, match=r"best_knn\.skops: not the file that its sidecar describes"):
        load_or_fit("knn", data, cache=cache)


def test_foreign_types_are_refused_and_never_built(data, cache):
    files = load_or_fit("knn", data, cache=cache).files
    foreign = skops.io.dumps(FunctionTransformer(shutil.rmtree))
    files.checkpoint.write_bytes(foreign)
    update_json(files.sidecar, sha256=hashlib.sha256(foreign).hexdigest())
    with pytest.raises(ModelError, match=r"best_knn\.skops: holds types .* shutil\.rmtree"):
        load_or_fit("knn", data, cache=cache)


# ---------------------------------------------------------------- studies

def test_ablation(data, cache):
    model = load_or_fit("knn", data, cache=cache)
    table = ablation(model)
    assert table["descriptors"].tolist() == [*FAMILIES, "appearance", "motion", "both"]
    by_name = table.set_index("descriptors")
    assert by_name.loc["both", "dimensions"] == sum(f.dimension for f in FAMILIES.values())
    assert by_name.loc[["appearance", "motion"], "dimensions"].sum() == by_name.loc["both", "dimensions"]
    assert by_name[["cv accuracy", "test accuracy"]].stack().between(0, 1).all()
    model.pipeline = None  # kept for this model: nothing is tuned again
    before = model.files.stats.stat().st_mtime_ns
    pd.testing.assert_frame_equal(ablation(model), table)
    assert model.files.stats.stat().st_mtime_ns == before


class OneFamily(BaseEstimator):
    """Answers by the first column of HOG alone."""

    def __init__(self, threshold: float, classes: int):
        self.threshold, self.classes = threshold, classes

    def predict_proba(self, x):
        p = np.full((len(x), self.classes), 0.1)
        p[np.arange(len(x)), (x[:, 0] > self.threshold).astype(int)] = 1
        return p / p.sum(axis=1, keepdims=True)


def test_importance_is_of_the_family_that_is_used(data, cache, monkeypatch):
    model = load_or_fit("knn", data, cache=cache)
    x = model_input("knn", data.table("test"), data.root, cache)
    threshold = float(np.median(x[:, 0]))
    model.pipeline = OneFamily(threshold, len(data.classes))
    answers = model.pipeline.predict_proba(x).argmax(axis=1)
    labelled = data.table("test").assign(label=[data.classes[i] for i in answers])
    monkeypatch.setattr(type(data), "table", lambda data, part: labelled)
    table = importance(model, repeats=10)
    assert table["family"].iloc[0] == "hog" and table["accuracy fall"].iloc[0] > 0.2
    others = table[table["family"] != "hog"]
    assert (others[["accuracy fall", "std", "probability fall"]] == 0).all(axis=None)
    model.name = "fisher_svm"
    with pytest.raises(ValueError, match="sees local motion only"):
        importance(model)


def test_summary_of_nothing_names_the_notebook(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_classical_ml first"):
        summary(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="no real UCF-101 clips beside the repository")
def test_real_clips_of_held_out_groups(tmp_path):
    data = open_data(str(REAL_CLIPS), results=tmp_path / "results")
    model = load_or_fit("linear_svm", data, cache=tmp_path / "cache")
    evaluate(model)
    assert read_json(model.files.stats)["accuracy"] >= 0.9 and model.stats["cv_mean"] >= 0.9


def test_a_model_that_fits_a_tree_for_each_class_is_left_out_of_many_and_told(capsys):
    assert classifiers.suited(3) == list(classifiers.MODELS) and capsys.readouterr().out == ""
    assert set(classifiers.MODELS) - set(classifiers.suited(101)) == {"gradient_boosting"}
    assert "gradient boosting" in capsys.readouterr().out


def test_the_answers_of_many_classes_are_the_svms_own_and_are_kept_so():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    centres = rng.normal(size=(24, 30))
    x = centres[labels] + 0.3 * rng.normal(size=(len(labels), 30))
    names = [f"c{label:02d}" for label in labels]
    table = pd.DataFrame({"label": names, "group": [f"g{number % 6}" for number in range(len(labels))],
                          "clip_path": [f"/{name}/{number}.avi" for number, name in enumerate(names)]})
    data = VideoData("many", Path(), {name: number for number, name in enumerate(sorted({*names}))}, {},
                     {"groups_named": True}, Path())
    spec = classifiers.MODELS["linear_svm"]
    model = classifiers.fit(spec, {"classify__C": 1.0, "scale": "passthrough"}, x, table, data, 0)
    seen = centres[labels] + 0.6 * rng.normal(size=(len(labels), 30))
    svm = model.calibrated_classifiers_[0].estimator
    assert model.predict(seen).tolist() == svm.predict(seen).tolist() and model.score(seen, labels) > 0.9
    assert model.predict_proba(seen).sum(axis=1) == pytest.approx(1)
    again = skops.io.loads(skops.io.dumps(model), trusted=classifiers.TRUSTED)
    assert np.array_equal(again.predict_proba(seen), model.predict_proba(seen))
