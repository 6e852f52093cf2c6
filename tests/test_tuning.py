import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
import sqlalchemy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial, TrialState
from torch import nn
from torch.utils.data import Subset

import config
import data_loader
import experiment
import features
import plots
import tune
from config import Recipe, get_recipe
from data_loader import make_loader
from features import Activations
from files import NotWritten
from models import FrameModel, InflatedEfficientNet
from studies import tuning
from studies.tuning import best_recipe, compare, cross_validate, run_study, train_head, trials_table
from videos.decoding import VideoError
from videos.library import VideoData, open_data

# pytest resets the filters that the module sets
pytestmark = [pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
              pytest.mark.filterwarnings("ignore:Fixed parameter:UserWarning")]
TESTS = Path(__file__).resolve().parent
PLAIN = {"modality": "rgb", "stills": None, "grid": "1x1", "pooling": "avg", "standardize": False}
TINY = get_recipe("recommended", "2d", num_frames=4, epochs=3, batch_size=8, **PLAIN)
HEAD = dataclasses.replace(TINY, trained="head")
FEW = {"head": (2, 4), "stage": (2, 4)}
VALUES = {"lr": 1e-3, "weight_decay": 1e-3, "label_smoothing": 0.0, "dropout": 0.0, "schedule": "step",
          "epochs": 2, "pooling": "max"}


def kept(folder: Path, clips: list[np.ndarray], labels: list[int], view: int | str | None = None) -> Activations:
    """(V, T, ...) activations of clips, kept as an experiment keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [(folder / f"{number}.npy",) for number in range(len(clips))]
    for clip, (path,) in zip(clips, files, strict=True):
        np.save(path, clip.astype(np.float16))
    return Activations(files, labels, view)


def fake_activations(its, *datasets, view=None):
    """What an experiment keeps of the 2D trunk, without a clip: frames that hint at the class."""
    recipe, clips, labels = its.recipe, [], []
    frames = recipe.stills_shown() + recipe.num_frames * ("diff" in recipe.modality)
    size = its.model.classifier[1].in_features // (5 if recipe.pooling == "stats" else 1)
    for dataset in datasets:
        for i in range(len(dataset)):
            views = recipe.train_views if dataset.train else recipe.test_clips
            x = np.random.default_rng([its.seed, i, dataset.train]).normal(size=(views, frames, size))
            x[..., dataset.label(i)] += 2
            clips.append(x)
            labels.append(dataset.label(i))
    return kept(its.data.results / f"fake-{os.getpid()}" / str(time.monotonic_ns()), clips, labels, view)


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return open_data(str(tiny_dataset), results=tmp_path / "results")


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch):
    monkeypatch.setattr(tuning, "EPOCHS", FEW)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(experiment.Experiment, "activations", fake_activations)


def study_of(data, trials, **changes):
    usual = {"weights": "packaged", "trials": trials, "seed": 0, "recipe": TINY}
    return run_study("2d", data, **{**usual, **changes})


def finished(study):
    return {t.number: (t.params, t.value, t.state) for t in study.trials if t.state in tuning.FINISHED}


def by_loss(study):
    """The finished trials without their numbers, of which an interrupted trial takes one."""
    return sorted(finished(study).values(), key=lambda trial: trial[1])


def forbidden(*_, **__):
    raise AssertionError("a clip, an activation or a model was touched")


# ---------------------------------------------------------------- the study

def test_study_from_clips_whose_test_set_is_unreadable(tiny_dataset, tmp_path, monkeypatch, capfd):
    data = open_data(str(tiny_dataset), classes=["Punch", "PushUps"], results=tmp_path)
    root = tmp_path / "clips"
    for part in ("train", "val", "test"):
        for path in data.table(part)["clip_path"]:
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if part == "test":
                target.write_bytes(b"no video")
            else:
                target.symlink_to(data.root / path.lstrip("/"))
    data = VideoData(data.name, root, data.class_map, data.splits, data.split, data.results)
    monkeypatch.setattr(features, "make_loader", partial(make_loader, num_workers=0))  # workers start slowly
    recipe = get_recipe("recommended", "3d", num_frames=2, size=64, train_views=1, epochs=3, precision="float32",
                        **PLAIN)
    study = run_study("3d", data, "packaged", 3, cache=tmp_path / "cache", recipe=recipe)
    assert len(finished(study)) == 3 and capfd.readouterr().err == ""
    assert study.user_attrs["folds"].endswith("folds of whole groups")
    assert (data.results / "tuning" / "3d.db").is_file() and "pooling" not in study.best_params
    with pytest.raises(VideoError, match="can't be opened"):
        tuning.test_of_choice(study, data, seeds=(0,), cache=tmp_path / "cache")

    for place, name in ((data_loader, "read_frames"), (experiment, "trunk_activations"), (experiment, "build_model"),
                        (tuning, "choose_source")):
        monkeypatch.setattr(place, name, forbidden)
    again = run_study("3d", data, "auto", 3, cache=tmp_path / "cache", recipe=recipe)
    assert finished(again) == finished(study) and "reloaded the 3d study: 3 trials" in capfd.readouterr().out
    assert optuna.get_all_study_names(f"sqlite:///{data.results}/tuning/3d.db") == [study.study_name]


def test_default_and_seed_come_first_and_are_compared(data, fake, capfd):
    study = study_of(data, 7)
    first, second = study.trials[:2]
    for trial, name, recipe in ((first, "default", TINY.resolved("")), (second, "seed", get_recipe("seed", "2d"))):
        assert trial.user_attrs["setting"] == name and trial.state == TrialState.COMPLETE
        assert trial.params == {field: getattr(recipe, field) for field in tuning.search_space("2d")}
    table = compare(study)
    assert list(table.index) == ["default", "seed", "chosen"]
    assert table.loc["chosen", "trial"] == study.best_trial.number
    assert table["loss"].min() == table.loc["chosen", "loss"] and table["accuracy"].between(0, 1).all()
    assert table.loc["seed", ["label_smoothing", "lr", "schedule"]].tolist() == [0.9, 1e-4, "step"]
    tuned = best_recipe(study)
    assert tuned.name == "tuned" and tuned.trained == "head" and tuned.lr == study.best_params["lr"]
    assert (tuned.num_frames, tuned.batch_size) == (TINY.num_frames, TINY.batch_size)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_study_that_goes_on_is_the_same_study(data, fake, tmp_path):
    straight = study_of(data, 5, storage=f"sqlite:///{tmp_path}/straight.db")
    assert study_of(data, 3).study_name == straight.study_name
    assert finished(study_of(data, 5)) == finished(straight)
    assert len(finished(study_of(data, 4))) == 5  # enough already
    assert len({trial.params["lr"] for trial in straight.trials}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 3])
def test_a_study_interrupted_within_a_trial_goes_on_as_it_would(data, fake, tmp_path, monkeypatch, at):
    straight = study_of(data, 4, storage=f"sqlite:///{tmp_path}/straight.db")
    real, begun = tuning.cross_validate, []

    def interrupted(trial, **settings):
        value = real(trial, **settings)
        begun.append(trial)
        if len(begun) == at:
            raise KeyboardInterrupt
        return value

    monkeypatch.setattr(tuning, "cross_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study_of(data, 4)
    study = study_of(data, 4)
    assert by_loss(study) == by_loss(straight)
    assert list(compare(study).index) == ["default", "seed", "chosen"]


@pytest.mark.slow
def test_what_differs_is_another_study(data, fake, tiny_dataset):
    study = study_of(data, 2)
    two = open_data(str(tiny_dataset), classes=["Punch", "PushUps"], results=data.results.parent)
    other = open_data(str(tiny_dataset), "random", results=data.results.parent)
    runs = [study, study_of(two, 2), study_of(other, 2), study_of(data, 2, seed=1),
            study_of(data, 2, weights="none"),
            study_of(data, 2, recipe=get_recipe("recommended", "2d", num_frames=4, **PLAIN))]
    assert len({run.study_name for run in runs}) == len(runs) and all(len(run.trials) == 2 for run in runs)
    assert {"2d", "efficientnet_lite0", "head", "3classes", "seed0"} <= set(study.study_name.split("-"))


@pytest.mark.slow
def test_the_seeds_recipe_has_one_baseline(data, fake):
    recipe = get_recipe("seed", "2d", num_frames=4)
    study = study_of(data, 2, recipe=recipe)
    assert [trial.user_attrs.get("setting") for trial in study.trials] == ["default", None]
    assert list(compare(study).index) == ["default", "chosen"]
    assert tuning.test_of_choice(study, data, seeds=(0,))["setting"].tolist() == ["default", "tuned"]


def child(root: str, results: str, trials: int) -> None:
    """A process of its own on the study: slow trials, that it may be killed in the middle of one."""
    tuning.HEARTBEAT, tuning.EPOCHS, experiment.Experiment.activations = 1, FEW, fake_activations
    real = tuning.train_head

    def slow(*arguments):
        time.sleep(0.06)
        return real(*arguments)

    tuning.train_head = slow
    study_of(open_data(root, results=Path(results)), trials)


@pytest.fixture
def others(data, tiny_dataset):
    """Two children on the study of `data` until it has 9 trials, and a wait for a number of finished ones."""
    call = f"import test_tuning; test_tuning.child({str(tiny_dataset)!r}, {str(data.results.parent)!r}, 9)"
    path = os.pathsep.join(str(folder) for folder in (TESTS.parent / "src", TESTS.parent / "tools", TESTS))
    processes = [subprocess.Popen([sys.executable, "-c", call], env={**os.environ, "PYTHONPATH": path},
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    database = data.results / "tuning" / "2d.db"

    def wait_for(count):
        query = "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"
        until = time.monotonic() + 240
        while time.monotonic() < until and processes[0].poll() is None:
            if database.is_file():
                with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
                    there = connection.execute("select 1 from sqlite_master where name = 'trials'").fetchone()
                    if there and connection.execute(query).fetchone()[0] >= count:
                        return
            time.sleep(0.02)
        raise AssertionError(f"no {count} trials: {processes[0].communicate(timeout=9)}")

    yield *processes, wait_for
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_and_shared_studies_lose_no_trial_and_end(data, fake, others, monkeypatch):
    killed, other, wait_for = others
    wait_for(3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = finished(optuna.load_study(study_name=None, storage=f"sqlite:///{data.results}/tuning/2d.db"))
    assert 3 <= len(before) < 9
    here, real = [], tuning.cross_validate
    monkeypatch.setattr(tuning, "HEARTBEAT", 1)
    monkeypatch.setattr(tuning, "cross_validate", lambda trial, **rest: here.append(trial) or real(trial, **rest))
    study = study_of(data, 9)
    out, err = other.communicate(timeout=240)
    assert other.returncode == 0, err.decode()
    assert err == b"" and b"2d search" in out
    assert 9 <= len(finished(study)) <= 10 and before.items() <= finished(study).items() and 1 <= len(here) < 9
    assert {"default", "seed", "chosen"} == set(compare(study).index)


@pytest.mark.slow
def test_workers_of_a_cluster_share_a_study_on_a_server_and_one_is_killed(data, fake, two_nodes, postgres, capfd):
    psycopg, before = pytest.importorskip("psycopg"), {}
    query = "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"

    def kill_one() -> None:
        with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as connection:
            count = 0
            while count < 3:
                time.sleep(0.05)
                with suppress(psycopg.errors.UndefinedTable):
                    count = connection.execute(query).fetchone()[0]
        next(its for its in psutil.process_iter(["name"]) if "_Worker" in its.info["name"]).kill()
        before.update(finished(optuna.load_study(study_name=None, storage=postgres)))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    study = study_of(data, 12, storage=postgres)
    killer.join(60)
    assert len(before) >= 3 and before.items() <= finished(study).items()
    assert 12 <= len(finished(study)) <= 14
    assert {"default", "seed", "chosen"} == set(compare(study).index)
    assert study_of(data, 12, storage=postgres).trials == study.trials and "reloaded" in capfd.readouterr().out


@pytest.mark.slow
def test_a_killed_process_s_trial_is_tried_again(data, fake, monkeypatch):
    monkeypatch.setattr(tuning, "HEARTBEAT", 1)
    study = study_of(data, 2)
    with pytest.warns(UserWarning, match="Heartbeat"):
        dead = study.ask()
    dead.suggest_float("lr", 3e-5, 1e-2, log=True)
    study._storage.record_heartbeat(dead._trial_id)  # its only sign of life
    time.sleep(4.1)
    again = study_of(data, 3).trials
    assert again[dead.number].state == TrialState.FAIL
    assert again[-1].params["lr"] == dead.params["lr"] and again[-1].state in tuning.FINISHED


@pytest.mark.parametrize("changes, words", [
    ({"trials": 1}, "at least 2"), ({"cuts": ("all",)}, "head, stage"), ({"cuts": ()}, "empty"),
    ({"storage": "nothing://me:secret@there/db"}, "storage there/db can't be opened")])
def test_wrong_requests_are_told(data, changes, words):
    with pytest.raises(ValueError, match=words) as error:
        study_of(data, **{"trials": 2, **changes})
    assert "secret" not in str(error.value)


def test_broken_database_is_named(data):
    path = data.results / "tuning" / "2d.db"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database " * 99)
    with pytest.raises(ValueError, match=r"2d\.db can't be opened \(.*not a database.*move a broken file"):
        study_of(data, 2)
    assert path.read_bytes() == b"not a database " * 99


# ---------------------------------------------------------------- heads and trials

@pytest.fixture
def some_clips(tmp_path):
    """Makes two sets of `clips` random clips of a shape."""
    def make(shape, clips=9) -> list[Activations]:
        rng, labels = np.random.default_rng(0), [i % 3 for i in range(clips)]
        return [kept(tmp_path / name, rng.normal(size=(clips, 1, *shape)), labels, 0) for name in ("first", "second")]

    return make


def frame_model() -> FrameModel:
    return FrameModel(3, "efficientnet_lite0", weights=None, trained="head")


def thirds(clips: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three folds of different sizes."""
    held_out = np.split(np.arange(clips), [clips // 2, clips - 3])
    return [(np.setdiff1d(np.arange(clips), rows), rows) for rows in held_out]


def test_trained_head_equals_a_plain_loop(some_clips):
    """One full batch without dropout is AdamW on softmax regression of the averaged frames; it is judged unsmoothed."""
    clips, others = some_clips((4, 1280))
    recipe = get_recipe("recommended", "2d", pooling="avg", dropout=0.0, batch_size=9, epochs=4, schedule="step",
                        lr=1e-2, weight_decay=1e-2)
    training = train_head(frame_model(), clips, others, recipe, seed=3)
    torch.manual_seed(3)
    linear = nn.Linear(1280, 3)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=1e-2)
    x, labels = clips.__getitems__(range(9))
    for _ in range(4):
        optimizer.zero_grad()
        logits = linear(x.mean(dim=1))
        target = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
        (-(target * logits.log_softmax(dim=1)).sum(dim=1).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(training.model[2][1].weight, linear.weight, rtol=1e-4, atol=1e-5)
    x, labels = others.__getitems__(range(9))
    loss = nn.functional.cross_entropy(linear(x.mean(dim=1)), labels).item()
    assert training.history["val_losses"][-1] == pytest.approx(loss, rel=1e-4)


def test_stage_starts_pretrained_and_the_model_keeps_its_weights(some_clips):
    model = InflatedEfficientNet(3, trained="stage")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clips, others = some_clips((2, 192, 3, 3), clips=4)
    recipe = get_recipe("recommended", "3d", trained="stage", lr=5e-4, epochs=2, batch_size=4, pooling="avg")
    stage = len([*model.head[0].parameters()])  # its parameters come first, before the classifier's

    def pairs(recipe):
        head = train_head(model, clips, others, recipe, seed=0).model
        return list(zip([*head.parameters()][:stage], model.head[0].parameters(), strict=True))

    assert all(torch.allclose(a, b, rtol=0, atol=1e-9) for a, b in pairs(dataclasses.replace(recipe, lr=1e-12)))
    assert any(not torch.equal(a, b) for a, b in pairs(recipe))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 8), st.sampled_from([0, 10, 1e9]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_give_every_clip_once_with_its_label(tmp_path_factory, monkeypatch, clips, views, size, memory):
    x = (np.arange(clips)[:, None] * 10 + np.arange(views))[..., None]
    monkeypatch.setattr(features, "IN_MEMORY", memory)
    folder = tmp_path_factory.mktemp("kept")
    drawing = Subset(kept(folder, list(x), list(range(clips)), "random"), range(clips))
    batches = list(make_loader(drawing, size, shuffle=True, num_workers=0, collate=tuple))
    rows = torch.cat([labels for _, labels in batches])
    assert len(batches) == -(-clips // size) and rows.sort().values.equal(torch.arange(clips))
    drawn = torch.cat([batch for batch, _ in batches])[:, 0]
    assert (drawn // 10).long().equal(rows) and drawn.dtype == torch.float32 and (drawn % 10 < views).all()


def test_held_out_clips_are_not_trained_on_and_bad_trials_stop(monkeypatch, some_clips, tmp_path):
    model, (augmented, centre), folds, seen = frame_model(), some_clips((4, 1280), clips=30), thirds(30), []
    real = tuning.train_head

    def watched(model, train_set, val_set, *rest):
        training = real(model, train_set, val_set, *rest)
        seen.append((train_set, val_set, training.history["val_losses"][-1]))
        return training

    monkeypatch.setattr(tuning, "train_head", watched)
    trial = {"clips": {"head": (model, augmented, centre)}, "folds": folds, "recipe": HEAD, "seed": 0}
    loss = cross_validate(FixedTrial(VALUES), **trial)
    for (train_set, val_set, _), (rows, held_out) in zip(seen, folds, strict=True):
        assert set(train_set.indices).isdisjoint(val_set.indices) and set(train_set.indices) == set(rows)
        assert list(val_set.indices) == list(held_out) and train_set.dataset.files is augmented.files
        assert val_set.dataset.files is centre.files
    sizes = [len(held_out) for _, held_out in folds]
    assert loss == pytest.approx(np.average([loss for *_, loss in seen], weights=sizes))
    broken = kept(tmp_path / "broken", np.full((30, 1, 4, 1280), np.nan), augmented.labels, "random")
    trial["clips"] = {"head": (model, broken, centre)}
    with pytest.raises(optuna.TrialPruned, match="the loss became nan"):
        cross_validate(FixedTrial(VALUES), **trial)


def test_poor_trials_are_pruned_after_a_fold_but_baselines_are_not(some_clips):
    clips = {"head": (frame_model(), *some_clips((4, 1280), clips=30))}
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0))
    study.enqueue_trial({}, user_attrs={"setting": "default"})
    study.optimize(partial(cross_validate, clips=clips, folds=thirds(30), recipe=HEAD, seed=0), n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [len(t.intermediate_values) for t in study.trials] == [3, 1]
    assert trials_table(study)["loss"].notna().all()


def test_cuts_enter_the_space():
    values = {**VALUES, "trained": "stage"}
    assert tuning.suggest(FixedTrial(values), tuning.search_space("2d", ("head", "stage"))) == values
    assert tuning.suggest(FixedTrial(values), tuning.search_space("3d", ("stage",))).keys() == values.keys() - {
        "pooling", "trained"}


def test_space_is_told_with_the_baselines():
    table = tuning.space_table(get_recipe("recommended", "2d"))
    assert list(table.index) == list(tuning.search_space("2d")) and list(table) == ["tried", "default", "seed"]
    assert table.loc["label_smoothing", "seed"] == 0.9 and table.loc["lr", "tried"] == "3e-05 to 0.01, logarithmic"


# ---------------------------------------------------------------- what came out

@pytest.mark.slow
def test_choice_is_tested_once(data, fake, monkeypatch):
    study = study_of(data, 4)
    table = tuning.test_of_choice(study, data, seeds=(0, 1))
    assert table["setting"].tolist() == 2 * ["default"] + 2 * ["tuned"] and table["seed"].tolist() == [0, 1, 0, 1]
    assert (table["loss"] > 0).all() and table["accuracy"].between(0, 1).all()
    kept = json.loads((data.results / "tuning" / "2d.json").read_text())
    [(key, document)] = kept.items()
    assert study.study_name in key and document["test_videos"] == len(data.table("test"))
    assert Recipe(**document["recipes"]["tuned"]) == best_recipe(study)
    monkeypatch.setattr(experiment.Experiment, "activations", forbidden)
    pd.testing.assert_frame_equal(tuning.test_of_choice(study, data, seeds=(0, 1)), table)


@pytest.mark.parametrize("tuned, verdict", [(0.9, "The search helped"), (0.52, "no difference"), (0.1, "did not help")])
def test_reading_of_the_choice_follows_the_accuracy(tuned, verdict):
    choice = pd.DataFrame({"setting": ["default", "default", "tuned", "tuned"], "seed": [0, 1, 0, 1],
                           "loss": [0.5, 0.7, 0.3, 0.5], "accuracy": [0.5, 0.5, tuned, tuned]})
    told = tuning.choice_reading(choice, videos=20)
    assert verdict in told and f"accuracy {tuned:.3f} with the chosen values, 0.500" in told
    assert "lower: 0.400 against 0.600" in told


def test_reading_where_the_defaults_were_chosen():
    choice = pd.DataFrame({"setting": ["default", "tuned"] * 2, "seed": [0, 0, 1, 1], "loss": 0.5, "accuracy": 0.9})
    assert "no difference" in (told := tuning.choice_reading(choice, videos=20)) and "the same: 0.500" in told


@pytest.mark.slow
def test_tables_and_figures(data, fake):
    study = study_of(data, 8)
    table, shares = trials_table(study), optuna.importance.get_param_importances(study)
    assert len(table) == 8 and set(table["state"]) <= {"complete", "pruned"}
    assert set(shares) == set(study.best_params) <= set(table)
    figure, axes = plt.subplots(1, 3, figsize=(18, 4))
    plots.search_history(table, axes[0])
    plots.search_parallel(table, list(study.best_params), axes[1])
    plots.importance_bars(shares, axes[2])
    assert all(ax.get_title() for ax in axes)
    figure.canvas.draw()
    assert len(axes[1].lines) == (table["state"] == "complete").sum() + 1
    plt.close(figure)


def test_command_line(data, fake, tiny_dataset, monkeypatch, capsys):
    monkeypatch.setattr(tune, "open_asked", lambda: data)
    monkeypatch.setitem(config.RECIPES, ("recommended", "2d"), TINY)
    for name, value in (("WEIGHTS", "packaged"), ("SEED", "7")):
        monkeypatch.setenv(name, value)
    tune.main(["--kind", "2d", "--trials", "2", "--test"])
    out = capsys.readouterr().out
    assert "default" in out and "on the test set" in out and "seed7" in out
    monkeypatch.setenv("WEIGHTS", "some")
    with pytest.raises(SystemExit, match=r"error: .*some"):
        tune.main(["--kind", "2d", "--trials", "9"])


def test_command_line_names_a_missing_data_set(monkeypatch):
    monkeypatch.setenv("DATASET", "nowhere")
    with pytest.raises(SystemExit, match="error: DATASET=nowhere"):
        tune.main(["--kind", "2d"])


def test_a_database_that_finds_no_room_is_one_clear_line(tmp_path):
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/2d.db")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("create table notes (text)"))
        connection.execute(sqlalchemy.text("pragma max_page_count = 4"))  # as a full disk
        with pytest.raises(NotWritten, match=r"2d\.db: not written, the disk is full: make room there"):
            connection.execute(sqlalchemy.text("insert into notes values (zeroblob(1000000))"))
