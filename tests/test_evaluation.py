"""One trained model: scores kept for its checkpoint, other seeds, and what it costs."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score

import evaluation
import utils
from config import get_recipe
from experiment import Experiment, load_or_train, untrained
from files import read_json, read_predictions, write_json
from videos.library import open_data

TINY = {"precision": "float32", "modality": "rgb", "stills": None, "num_frames": 4, "size": 64, "epochs": 3,
        "test_clips": 2, "batch_size": 6}


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    data = open_data(str(tiny_dataset), results=tmp_path_factory.mktemp("results"))
    return load_or_train("3d", data, get_recipe("recommended", "3d", **TINY), "packaged", seed=0,
                         cache=tmp_path_factory.mktemp("cache"))


def forbidden(*_, **__):
    raise AssertionError("trained or computed again")


def test_scores_are_those_of_the_table_and_kept_for_the_checkpoint(trained, monkeypatch):
    table, validation = evaluation.evaluate(trained), evaluation.predict_validation(trained)
    stats, files = trained.stats, trained.files
    assert stats["accuracy"] == accuracy_score(table["label"], table["predicted"]) and stats["test_clips"] == len(table)
    assert 0 <= stats["single_clip_accuracy"] <= 1 and set(validation["clip_path"]).isdisjoint(table["clip_path"])
    codes = table["predicted"].map(trained.data.class_map)
    assert np.array_equal(np.load(files.array("preds")), codes) and files.is_current(files.predictions)
    monkeypatch.setattr(evaluation, "view_probabilities", forbidden)
    monkeypatch.setattr(evaluation, "predict", forbidden)
    pd.testing.assert_frame_equal(evaluation.evaluate(trained), table)
    pd.testing.assert_frame_equal(evaluation.predict_validation(trained), validation)


def test_operations_of_a_known_network(tiny_dataset, tmp_path):
    """ResNet-18 at 224 has 1.81 G multiply-adds a frame, published; each counts as two here, once per checkpoint."""
    data = open_data(str(tiny_dataset), results=tmp_path)
    recipe = get_recipe("recommended", "2d", modality="rgb", stills=None, num_frames=2, framing="preset")
    experiment = untrained(data, recipe, "none", 0, device="cpu")
    write_json(experiment.files.sidecar, {"sha256": "one"})
    assert evaluation.count_flops(experiment) == pytest.approx(2 * 2 * 1.814, rel=0.01)
    experiment.model = None
    assert evaluation.count_flops(experiment) == pytest.approx(2 * 2 * 1.814, rel=0.01)


# ---------------------------------------------------------------- other seeds

def test_the_own_seed_gives_the_very_model(trained):
    again = evaluation.as_before(trained, trained.seed)
    for name, value in again.model.trunk.state_dict().items():
        assert torch.equal(value, trained.model.trunk.state_dict()[name])
    train_ds, val_ds = again.dataset("train", train=True), again.dataset("val")
    loaders = again.loader(train_ds), again.loader(val_ds)
    training = utils.fit(again.training(len(train_ds), last=None), *loaders, again.criterion(), again.device)
    assert training.history == trained.history


def test_other_seeds_are_trained_once_and_leave_the_model_alone(trained, monkeypatch):
    files = trained.files
    checkpoint = files.checkpoint.read_bytes()
    rows = evaluation.repeat_training(trained, [1, 0, 2, 1])
    assert rows["seed"].tolist() == [0, 1, 2] and rows["log_loss"].nunique() == 3
    assert files.checkpoint.read_bytes() == checkpoint and not list(files.root.rglob("last_*"))
    assert read_json(files.stats)["seeds"] == rows.to_dict("records")
    own = evaluation.evaluate(trained)
    for seed in (1, 2):
        table = read_predictions(files.repeated(seed))
        assert table["clip_path"].tolist() == own["clip_path"].tolist() and not table.equals(own)
    monkeypatch.setattr(Experiment, "fit", forbidden)
    before = files.stats.stat().st_mtime_ns
    pd.testing.assert_frame_equal(evaluation.repeat_training(trained, [0, 1, 2]), rows)
    assert files.stats.stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="trained or computed again"):
        evaluation.repeat_training(trained, [3])


@pytest.mark.slow
def test_an_interrupted_repetition_goes_on(trained, monkeypatch):
    evaluation.repeat_training(trained, [5])
    path = trained.files.repeated(5)
    whole = read_predictions(path)
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "predict", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluation.repeat_training(trained, [5])
    assert list(trained.files.root.rglob("last_*"))
    monkeypatch.setattr(utils, "train_one_epoch", forbidden)  # every epoch is done: none is trained
    evaluation.repeat_training(trained, [5])
    pd.testing.assert_frame_equal(read_predictions(path), whole)
    assert not list(trained.files.root.rglob("last_*"))
