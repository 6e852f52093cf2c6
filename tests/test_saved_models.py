"""A model counts as saved only once it is loaded back and gives the same answers, whatever the data are like."""

import dataclasses
import subprocess
import sys
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline

from classical import classifiers
from classical.classifiers import MODELS, ModelError, cross_validate, evaluate, load_or_fit, predict
from classical.descriptors import CELLS, FAMILIES
from config import ROOT
from conftest import write_video
from experiment import save_weights
from files import ResultFiles, read_predictions
from models import WeightsError
from videos.library import open_data

NAMES = {"a pair": ("left", "right"), "many with odd names": (
    "1", "2.0", "1e3", "nan", "None", "NA", "True", "jump rope", "$HOME", "挥拳", "a-b.c", "_")}
AGAIN = """
import sys
import numpy as np
sys.path.insert(0, "src")
from classical.classifiers import load_pipeline
from pathlib import Path

folder = Path(sys.argv[1])
for checkpoint, sha256 in zip(sys.argv[2::2], sys.argv[3::2]):
    its = np.load(folder / f"{Path(checkpoint).stem}.npz")
    np.testing.assert_allclose(load_pipeline(Path(checkpoint), sha256).predict_proba(its["x"]), its["p"], atol=1e-9)
"""


def folder_of(root, classes, groups=4, clips=2):
    """A data set of clips of noise: `few_columns` describes them by their names."""
    rng = np.random.default_rng(0)
    for label, group, clip in product(classes, range(groups), range(clips)):
        frames = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        write_video(root / label / f"v_{label}_g{group:02d}_c{clip:02d}.avi", frames)
    return open_data(str(root), results=root.parent / "results")


def smaller(build, fewer, seed):
    return build(seed).set_params(**fewer)


@pytest.fixture
def few_columns(monkeypatch):
    """Two columns per family instead of hundreds, one setting for the slow models, and few trees."""
    def described(table, root, cache, names=FAMILIES):
        classes, rng = sorted(path.name for path in root.iterdir()), np.random.default_rng(len(table))
        place = np.array([classes.index(path.split("/")[1]) for path in table["clip_path"]]) / len(classes)
        columns = {name: np.prod(CELLS) if name == "cells" else 2 for name in names}
        return {name: np.abs(place[:, None] + rng.normal(0, 0.05, (len(table), count))).astype(np.float32)
                for name, count in columns.items()}

    monkeypatch.setattr(classifiers, "clip_descriptors", described)
    for name, fewer in {"random_forest": {"classify__n_estimators": 9}, "fisher_svm": {},
                        "gradient_boosting": {"classify__n_estimators": 9}}.items():
        grid = [{key: values[:1] for key, values in MODELS[name].grid[0].items()}]
        its = dataclasses.replace(MODELS[name], grid=grid, build=partial(smaller, MODELS[name].build, fewer))
        monkeypatch.setitem(MODELS, name, its)


@pytest.mark.slow
@pytest.mark.parametrize("classes", NAMES.values(), ids=NAMES)
def test_every_model_of_odd_data_is_loaded_back_with_the_same_answers(classes, few_columns, tmp_path):
    data = folder_of(tmp_path / "odd", classes)
    command = []
    for name in MODELS:
        model = load_or_fit(name, data, cache=tmp_path)
        again = load_or_fit(name, data, cache=tmp_path)
        assert again.reloaded and not model.reloaded
        x = classifiers.model_input(name, data.table("test"), data.root, tmp_path)
        np.testing.assert_allclose(again.pipeline.predict_proba(x), model.pipeline.predict_proba(x), atol=1e-9)
        table = evaluate(model)
        pd.testing.assert_frame_equal(predict(again), table)
        pd.testing.assert_frame_equal(read_predictions(model.files.predictions), table)
        assert set(table["label"]) == set(classes) and table["predicted"].isin(classes).all()
        np.savez(tmp_path / f"{model.files.checkpoint.stem}.npz", x=x, p=model.pipeline.predict_proba(x))
        command += [model.files.checkpoint, model.files.sha256]
    ran = subprocess.run([sys.executable, "-c", AGAIN, tmp_path, *command], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_neighbours_that_so_few_clips_lack_are_not_asked_for(few_columns, tmp_path):
    data = folder_of(tmp_path / "few", ("a", "b"), clips=1)
    model = load_or_fit("knn", data, cache=tmp_path)
    assert load_or_fit("knn", data, cache=tmp_path).reloaded and len(cross_validate([model], 5)[model.title]) == 8


def test_neighbours_are_found_as_before():
    """Descriptors have more than 15 columns, for which scikit-learn's own choice is brute force as well."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)).astype(np.float32), rng.integers(0, 3, 60)
    x[30:] = x[:30]  # every clip twice: ties
    ours = MODELS["knn"].build(0).set_params(classify__n_neighbors=5).fit(x, y)
    theirs = KNeighborsClassifier(5, weights="distance").fit(x, y)
    np.testing.assert_array_equal(ours.predict_proba(x), theirs.predict_proba(x))


# ---------------------------------------------------------------- what can't be loaded back

def trees(seed):
    return Pipeline([("reduce", "passthrough"), ("classify", KNeighborsClassifier(weights="distance"))])


def refused(*_, **__):
    raise TypeError("what skops says")


@pytest.mark.parametrize(("build", "skops_function", "why"), [
    (trees, None, r"types that a model of ours doesn't: .*KDTree"),
    (None, "loads", "what skops says"), (None, "dumps", "what skops says")])
def test_what_cannot_be_loaded_back_is_not_saved(build, skops_function, why, few_columns, tmp_path, monkeypatch):
    data = folder_of(tmp_path / "odd", ("a", "b"))
    earlier = load_or_fit("knn", data, cache=tmp_path).files
    evaluate(load_or_fit("knn", data, cache=tmp_path))
    before = {path: path.read_bytes() for path in data.results.rglob("*") if path.is_file()}
    if build:
        monkeypatch.setitem(MODELS, "knn", dataclasses.replace(MODELS["knn"], build=build))
    with monkeypatch.context() as patch:
        if skops_function:
            patch.setattr(skops.io, skops_function, refused)
        with pytest.raises(ModelError, match=rf"best_knn\.skops: not saved: it can't be loaded back: .*{why}"):
            load_or_fit("knn", data, seed=7, cache=tmp_path)
    assert {path: path.read_bytes() for path in data.results.rglob("*") if path.is_file()} == before
    if not build:
        assert load_or_fit("knn", data, cache=tmp_path).reloaded and earlier.checkpoint.is_file()


def test_a_model_that_forgets_is_not_saved(few_columns, tmp_path, monkeypatch):
    data = folder_of(tmp_path / "odd", ("a", "b"))
    other = load_or_fit("knn", data, cache=tmp_path).pipeline
    monkeypatch.setattr(skops.io, "loads", lambda *_, **__: other.set_params(classify__n_neighbors=9))
    with pytest.raises(ModelError, match=r"best_linear_svm\.skops: not saved: loaded back, it predicts otherwise"):
        load_or_fit("linear_svm", data, cache=tmp_path)
    assert not list(data.results.rglob("*linear_svm*"))


def test_where_the_disk_is_full_the_earlier_model_stays(few_columns, tmp_path, monkeypatch):
    data = folder_of(tmp_path / "odd", ("a", "b"))
    files = load_or_fit("knn", data, cache=tmp_path).files
    before = {path: path.read_bytes() for path in data.results.rglob("*") if path.is_file()}
    monkeypatch.setattr(type(files.checkpoint), "write_bytes", no_space)
    with pytest.raises(OSError, match="no space left"):
        load_or_fit("knn", data, seed=7, cache=tmp_path)
    assert {path: path.read_bytes() for path in data.results.rglob("*") if path.is_file()} == before


def no_space(path, content):
    path.touch()
    raise OSError("no space left on device")


# ---------------------------------------------------------------- checkpoints

def test_a_checkpoint_is_saved_once_it_is_read_back(tmp_path, monkeypatch):
    files = ResultFiles(tmp_path, "2d", "resnet18")
    weights = {"head.weight": torch.randn(3, 4), "norm.num_batches_tracked": torch.tensor(7)}
    save_weights(files, weights)
    before = files.checkpoint.read_bytes()
    read = torch.load(files.checkpoint, weights_only=True)
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)
    with pytest.raises(WeightsError, match=r"best_2d-cnn\.pth: not saved: torch .* doesn't load it back as it was"):
        save_weights(files, {**weights, "extra": tmp_path})  # a type that isn't loaded
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {**weights, "head.weight": torch.zeros(3, 4)})
        with pytest.raises(WeightsError, match="doesn't load it back as it was"):
            save_weights(files, weights)
    assert files.checkpoint.read_bytes() == before and list(tmp_path.rglob("*.pth")) == [files.checkpoint]
    save_weights(files, {"head.weight": torch.zeros(3, 4)})
    assert [path.read_bytes() for path in tmp_path.glob("previous/*/best_2d-cnn.pth")] == [before]
