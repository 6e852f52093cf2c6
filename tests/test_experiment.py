import dataclasses
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import data_loader
import deployed
import evaluation
import features
import transforms
import utils
from config import RESULTS, get_recipe
from data_loader import VideoDataset3D
from experiment import load_or_train, predict, prepare, untrained
from features import trunk_activations
from files import differences, read_json
from models import build_model, recipe_preprocessing
from transforms import eval_transform
from videos.library import open_data
from videos.places import locate

TINY = {"precision": "float32", "modality": "rgb", "stills": None, "num_frames": 4, "size": 64, "train_views": 2,
        "epochs": 3, "test_clips": 2, "batch_size": 6}


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return open_data(str(tiny_dataset), results=tmp_path / "results")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def train(data, store, kind="3d", seed=0, weights="packaged", **changes):
    return load_or_train(kind, data, get_recipe("recommended", kind, **{**TINY, **changes}), weights, seed, cache=store)


def test_open_data(data, tiny_dataset):
    assert data.classes == ["PullUps", "Punch", "PushUps"] and sum(data.split["clips"].values()) == 36
    assert data.split["shared_groups"] == 0 and data.split["groups_named"] and data.results.name == data.name
    assert locate("ucf101")[2] == RESULTS and locate("demo")[2] == RESULTS / "demo"
    with pytest.raises(FileNotFoundError, match="DATASET=nowhere"):
        open_data("nowhere")


@pytest.mark.slow
def test_results_contract_and_reload_without_a_clip(data, cache, monkeypatch):
    first = train(data, cache)
    predictions = evaluation.evaluate(first)
    latency = evaluation.measure_latency(first, repeats=0.05)
    files, stats = first.files, first.stats
    assert set(torch.load(files.checkpoint, weights_only=True)) == set(first.model.state_dict())
    for key in ("train_losses", "val_losses", "train_accs", "val_accs", "best_val_acc", "accuracy", "precision",
                "recall", "f1", "inference_time", "params", "model_size_mb", "train_time", "recipe", "weights",
                "dataset", "split", "device", "environment"):
        assert key in stats, key
    assert len(stats["train_losses"]) == 3 and stats["inference_time"] == latency["model"] > 0
    for what in ("train_time", "inf_time", "model_size", "preds", "labels"):
        assert np.load(files.array(what)).size > 0
    assert list(predictions)[:4] == ["clip_path", "group", "label", "predicted"]
    np.testing.assert_allclose(predictions.filter(regex="^p_").sum(axis=1), 1)
    assert not list(files.last.parent.glob("last_*"))

    def no_clip(*_):
        raise AssertionError("a clip was opened")

    monkeypatch.setattr(data_loader, "read_frames", no_clip)
    monkeypatch.setattr(features, "file_hash", no_clip)
    again = train(data, cache, weights="auto")
    assert again.reloaded and again.stats == stats and again.history == first.history
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name])
    pd.testing.assert_frame_equal(evaluation.evaluate(again), predictions)
    assert evaluation.measure_latency(again) == latency


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["activations", "none"])
def test_interrupted_training_ends_the_same(data, tmp_path, cache, monkeypatch, kept):
    changes = {} if kept == "activations" else {"cache": kept, "epochs": 2, "batch_size": 12}
    whole = train(dataclasses.replace(data, results=tmp_path / "whole"), cache, **changes)
    real, calls = utils.train_one_epoch, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    parts = dataclasses.replace(data, results=tmp_path / "parts")
    monkeypatch.setattr(utils, "train_one_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(parts, cache, **changes)
    files = whole.files
    assert len(list((tmp_path / "parts").rglob("last_*-cnn-*.pth"))) == 1
    assert not (tmp_path / "parts" / files.checkpoint.relative_to(tmp_path / "whole")).exists()
    monkeypatch.setattr(utils, "train_one_epoch", real)
    resumed = train(parts, cache, **changes)
    assert resumed.history == whole.history
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_the_page_trains_the_very_model(data, tmp_path, cache, capsys):
    """The steps of the notebooks' pages, one by one, and `load_or_train`; then the page of a reloaded model."""
    whole = train(dataclasses.replace(data, results=tmp_path / "whole"), cache)
    told = capsys.readouterr().out

    def page():
        experiment = prepare("3d", data, get_recipe("recommended", "3d", **TINY), "packaged", seed=0, cache=cache)
        recipe, backbone = experiment.recipe, experiment.files.backbone
        utils.seed_everything(0)
        experiment.adopt(build_model(recipe, len(data.classes), experiment.initial_weights, backbone))
        trained, criterion = experiment.trained_part(), experiment.criterion()
        train_tfms = transforms.recipe_transform(recipe, recipe_preprocessing(recipe, backbone), train=True)
        train_ds = VideoDataset3D(data.splits["train"], data.root, data.class_map, transform=train_tfms, train=True,
                                  **recipe.frames())
        val_ds = experiment.dataset("val")
        loaders = None if experiment.reloaded else (experiment.loader(train_ds), experiment.loader(val_ds))
        optimizer = utils.make_optimizer(recipe, trained)
        scheduler = utils.make_scheduler(recipe, optimizer, len(train_ds))
        stopping = utils.EarlyStopping(recipe.patience, recipe.tolerance)
        training = experiment.resumable(trained, optimizer, scheduler, stopping)
        capsys.readouterr()
        for _ in training:
            results = utils.train_one_epoch(trained, loaders[0], optimizer, criterion, experiment.device, scheduler)
            training.record(*results, *utils.eval_one_epoch(trained, loaders[1], criterion, experiment.device))
        experiment.save(training)
        return experiment, capsys.readouterr().out

    (first, lines), (again, same_lines) = page(), page()
    assert again.reloaded and not first.reloaded and lines == same_lines and lines in told
    assert first.history == whole.history == again.history
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name]) and torch.equal(value, again.model.state_dict()[name])


@pytest.mark.slow
def test_same_seed_same_predictions_cold_or_warm(data, tmp_path):
    tables = [predict(train(dataclasses.replace(data, results=tmp_path / f"run{i}"), tmp_path / f"cache{min(i, 1)}"))
              for i in range(3)]  # cold, cold, warm
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    pd.testing.assert_frame_equal(tables[1], tables[2], check_exact=True)


@pytest.mark.slow
def test_what_differs_is_not_reloaded(data, tiny_dataset, cache, capsys):
    first = train(data, cache, epochs=1)
    kept = first.files.checkpoint.read_bytes()
    assert not train(data, cache, epochs=1, lr=1e-3).reloaded
    assert "recipe.lr is 0.001, was 0.0006" in capsys.readouterr().out
    previous = list((data.results / "previous").glob("*/best_3d-cnn.pth"))
    assert [p.read_bytes() for p in previous] == [kept]
    two = open_data(str(tiny_dataset), classes=["Punch", "PushUps"], results=data.results.parent)
    assert not train(two, cache, epochs=1, lr=1e-3).reloaded
    assert "classes" in capsys.readouterr().out
    other = open_data(str(tiny_dataset), "random", results=data.results.parent)
    assert not train(other, cache, epochs=1).reloaded
    assert "another split" in capsys.readouterr().out
    assert not train(other, cache, epochs=1, seed=1).reloaded
    assert "seed is 1, was 0" in capsys.readouterr().out


def test_altered_checkpoint_is_noticed(data, cache, capsys):
    files = train(data, cache, epochs=1).files
    files.checkpoint.write_bytes(files.checkpoint.read_bytes() + b"x")
    assert not train(data, cache, epochs=1).reloaded
    assert "not the file that its sidecar describes" in capsys.readouterr().out


def test_differences_accepts_auto_and_none():
    recipe = get_recipe("recommended", "2d").to_dict()
    asked = {"dataset": "demo", "recipe": recipe, "weights": "auto", "backbone": None, "seed": 1}
    saved = json.loads(json.dumps({**asked, "weights": "packaged", "backbone": "efficientnet_lite0"}))
    assert differences(asked, saved) == []
    assert differences({**asked, "weights": "torchvision"}, saved) == ["weights is torchvision, was packaged"]
    assert differences(asked, {}) != []


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-3), ("bfloat16", 0.06)])
def test_activations_equal_the_direct_path(data, cache, precision, tolerance):
    """Stated tolerances, in shares of the norm: of float16 storage, and of a bfloat16 trunk besides."""
    recipe = get_recipe("recommended", "3d", **TINY)
    model = build_model(recipe, 3, "packaged").eval()
    clips = VideoDataset3D(data.splits["val"], data.root, data.class_map, num_frames=4, sampling="time",
                           frame_rate=15.0, transform=eval_transform(model.preprocessing))
    kept = trunk_activations(model, [(clips, 1)], "cpu", cache=cache, precision=precision)[0]
    with torch.inference_mode():
        direct = model.trunk(clips[0][0][None])[0]
    assert (torch.from_numpy(np.load(kept[0])[0]) - direct).norm() < tolerance * direct.norm()


def test_activations_are_computed_once_and_follow_the_clip(data, tmp_path, monkeypatch):
    model = build_model(get_recipe("recommended", "3d", **TINY), 3, "packaged")
    clips = VideoDataset3D(data.splits["val"], data.root, data.class_map, num_frames=4,
                           transform=eval_transform(model.preprocessing))
    first = trunk_activations(model, [(clips, 1)], "cpu", cache=tmp_path)[0]
    first[0].unlink()
    runs, real = [], deployed.FrozenTrunk.__call__
    monkeypatch.setattr(deployed.FrozenTrunk, "__call__", lambda *a: runs.append(1) or real(*a))
    again = trunk_activations(model, [(clips, 1)], "cpu", cache=tmp_path)[0]
    assert len(runs) == 1 and again == first
    clips.sampler.num_frames = 5
    assert set(trunk_activations(model, [(clips, 1)], "cpu", cache=tmp_path)[0]).isdisjoint(first)


@pytest.mark.slow
def test_every_view_that_folds_need_comes_from_one_pass_over_the_clips(data, tmp_path, monkeypatch):
    recipe = get_recipe("recommended", "2d", **{**TINY, "modality": "rgb+diff"})
    run, calls, real = untrained(data, recipe, "packaged", 0, cache=tmp_path), [], data_loader.read_frames
    monkeypatch.setattr(data_loader, "read_frames", lambda path, choose: calls.append(path) or real(path, choose))
    monkeypatch.setattr(features, "make_loader", partial(data_loader.make_loader, num_workers=0))
    clips = [run.dataset(part, train) for part in data.splits for train in (True, False)]
    run.keep(clips, "rgb+diff")
    assert len(calls) == len(set(calls)) == sum(data.split["clips"].values())
    for its in clips:  # what was kept is what is asked for later
        run.activations(its)
    assert len(calls) == len(set(calls))


@pytest.mark.slow
def test_seed_recipe_runs_on_the_same_code(data, cache):
    recipe = get_recipe("seed", "3d", num_frames=2, epochs=1, batch_size=12)
    run = load_or_train("3d", data, recipe, "none", cache=cache)
    assert run.model.update_frozen_batchnorm and run.model.preprocessing.crop == 224 and run.recipe.cache == "none"
    assert run.stats["trained_params"] == 1539 and len(run.stats["train_losses"]) == 1
    assert read_json(run.files.sidecar)["weights"] == "none"
