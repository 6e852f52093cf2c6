import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FixedTrial, TrialState
from torch import nn

import data_loader
import experiment
import features
import plots
import tuning
from config import Recipe, get_recipe
from data_loader import VideoError, make_loader
from experiment import VideoData, open_data
from models import FrameModel, InflatedEfficientNet, TemporalPool
from tuning import (
    Batches, Objective, Views, best_recipe, compare, importances, make_folds, run_study, train_head,
    trials_table,
)

TESTS = Path(__file__).resolve().parent
TINY = get_recipe("recommended", "2d", num_frames=4, epochs=3, batch_size=8)
FEW = {"head": (2, 4), "stage": (2, 4)}
VALUES = {"lr": 1e-3, "weight_decay": 1e-3, "label_smoothing": 0.0, "dropout": 0.0, "schedule": "step",
          "epochs": 2, "pooling": "max"}


class FakeActivations(list):
    """What `trunk_activations` gives for the 2D head, without a clip: 4 frames that hint at the class."""

    def __init__(self, model, dataset, views, device, seed=0, **_):
        self.labels = [dataset.label(i) for i in range(len(dataset))]
        for i, label in enumerate(self.labels):
            rng = np.random.default_rng([seed, i, dataset.train])
            x = rng.normal(size=(views, 4, model.classifier[1].in_features)).astype(np.float32)
            x[..., label] += 2
            self.append((torch.from_numpy(x), label))


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return open_data(str(tiny_dataset), results=tmp_path / "results")


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch):
    monkeypatch.setattr(tuning, "EPOCHS", FEW)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(experiment, "trunk_activations", FakeActivations)


def study_of(data, trials, **changes):
    usual = {"weights": "packaged", "trials": trials, "seed": 0, "recipe": TINY}
    return run_study("2d", data, **{**usual, **changes})


def finished(study):
    return {t.number: (t.params, t.value, t.state) for t in study.trials if t.state in tuning.FINISHED}


def forbidden(*_, **__):
    raise AssertionError("a clip, an activation or a model was touched")


# ---------------------------------------------------------------- the study

def test_study_from_clips_whose_test_part_is_unreadable(tiny_dataset, tmp_path, monkeypatch, capfd):
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
    recipe = get_recipe("recommended", "3d", num_frames=2, train_views=1, epochs=3, precision="float32")
    study = run_study("3d", data, "packaged", 3, cache=tmp_path / "cache", recipe=recipe)
    assert len(finished(study)) == 3 and capfd.readouterr().err == ""
    assert (data.results / "tuning" / "3d.db").is_file() and "pooling" not in study.best_params
    with pytest.raises(VideoError, match="can't be opened"):
        tuning.test_of_choice(study, data, seeds=(0,), cache=tmp_path / "cache")

    for place, name in ((data_loader, "open_video"), (experiment, "trunk_activations"), (experiment, "build_model"),
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
        assert trial.params == {field: getattr(recipe, field) for field in tuning.TUNED if field != "trained"}
    table = compare(study)
    assert list(table.index) == ["default", "seed", "chosen"]
    assert table.loc["chosen", "trial"] == study.best_trial.number and table["loss"].min() == table.loc["chosen", "loss"]
    assert set(table["trained"]) == {"head"}
    assert table.loc["seed", ["label_smoothing", "lr", "schedule"]].tolist() == [0.9, 1e-4, "step"]
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        sizes = [len(held_out) for _, held_out in make_folds(data, 0)]
        assert trial.value == pytest.approx(np.average(trial.user_attrs["fold_losses"], weights=sizes))
        assert 0 <= trial.user_attrs["accuracy"] <= 1
    tuned = best_recipe(study, TINY)
    assert tuned.name == "tuned" and tuned.trained == "head" and tuned.lr == study.best_params["lr"]
    assert (tuned.num_frames, tuned.batch_size) == (TINY.num_frames, TINY.batch_size)
    assert capfd.readouterr().err == ""


def test_a_study_that_goes_on_is_the_same_study(data, fake, tmp_path):
    straight = study_of(data, 5, storage=f"sqlite:///{tmp_path}/straight.db")
    assert study_of(data, 3).study_name == straight.study_name
    assert finished(study_of(data, 5)) == finished(straight)
    assert len(finished(study_of(data, 4))) == 5  # enough already
    assert len({trial.params["lr"] for trial in straight.trials}) == 5


def test_what_differs_is_another_study(data, fake, tiny_dataset):
    study = study_of(data, 2)
    two = open_data(str(tiny_dataset), classes=["Punch", "PushUps"], results=data.results.parent)
    other = open_data(str(tiny_dataset), "random", results=data.results.parent)
    runs = [study, study_of(two, 2), study_of(other, 2), study_of(data, 2, seed=1),
            study_of(data, 2, weights="none"),
            study_of(data, 2, recipe=get_recipe("recommended", "2d", num_frames=4))]
    assert len({run.study_name for run in runs}) == len(runs) and all(len(run.trials) == 2 for run in runs)
    assert {"2d", "efficientnet_lite0", "head", "3classes", "seed0"} <= set(study.study_name.split("-"))


def child(root: str, results: str, trials: int) -> None:
    """A process of its own on the study: slow trials, that it may be killed in the middle of one."""
    tuning.HEARTBEAT, tuning.EPOCHS, experiment.trunk_activations = 1, FEW, FakeActivations
    real = Objective._score

    def slow(self, *arguments):
        time.sleep(0.06)
        return real(self, *arguments)

    Objective._score = slow
    study_of(open_data(root, results=Path(results)), trials)


@pytest.fixture
def others(data, tiny_dataset):
    """Two children on the study of `data` until it has 9 trials, and a wait for a number of finished ones."""
    call = f"import test_tuning; test_tuning.child({str(tiny_dataset)!r}, {str(data.results.parent)!r}, 9)"
    path = os.pathsep.join((str(TESTS.parent / "src"), str(TESTS)))
    processes = [subprocess.Popen([sys.executable, "-c", call], env={**os.environ, "PYTHONPATH": path},
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    database = data.results / "tuning" / "2d.db"

    def wait_for(count):
        query = "select count(*) from trials where state in ('COMPLETE', 'PRUNED')"
        until = time.monotonic() + 60
        while time.monotonic() < until and processes[0].poll() is None:
            if database.is_file():
                with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
                    if connection.execute("select 1 from sqlite_master where name = 'trials'").fetchone():
                        if connection.execute(query).fetchone()[0] >= count:
                            return
            time.sleep(0.02)
        raise AssertionError(f"no {count} trials: {processes[0].communicate(timeout=9)}")

    yield *processes, wait_for
    for process in processes:
        process.kill()
        process.communicate()


def test_killed_and_shared_studies_lose_no_trial_and_run_none_too_many(data, fake, others, monkeypatch):
    killed, other, wait_for = others
    wait_for(3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = finished(optuna.load_study(study_name=None, storage=f"sqlite:///{data.results}/tuning/2d.db"))
    assert 3 <= len(before) < 9
    here, real = [], Objective.__call__
    monkeypatch.setattr(tuning, "HEARTBEAT", 1)
    monkeypatch.setattr(Objective, "__call__", lambda *both: here.append(both[1].number) or real(*both))
    study = study_of(data, 9)
    out, err = other.communicate(timeout=60)
    assert other.returncode == 0, err.decode()
    assert err == b"" and b"2d search" in out
    assert len(finished(study)) == 9 and before.items() <= finished(study).items() and 1 <= len(here) < 9
    assert {t.state for t in study.trials} <= {*tuning.FINISHED, TrialState.FAIL}
    settings = [t.user_attrs.get("setting", "") for t in study.trials if t.state in tuning.FINISHED]
    assert sorted(settings)[-2:] == ["default", "seed"] and not any(sorted(settings)[:-2])


def test_the_last_place_is_taken_once(tmp_path, monkeypatch):
    """Two processes see the last place free and take it: the later one gives way and waits for the other."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    other, real, unseen = study.ask(), tuning._count, [0]
    monkeypatch.setattr(tuning, "_count", lambda study, states: unseen.pop() if unseen and len(states) == 1
                        else real(study, states))
    monkeypatch.setattr(tuning, "time", SimpleNamespace(sleep=lambda _: study.tell(other, 1.0)))
    tuning.fill(study, forbidden, 1, 0, {}, "search")
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.FAIL]


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


# ---------------------------------------------------------------- folds and heads

def table_data(counts: list[list[int]], named: bool = True) -> SimpleNamespace:
    """Clips a group of each class, as `VideoData` has them; groups bear the same names in every class."""
    rows = [(f"c{label}", f"g{group}") for label, groups in enumerate(counts)
            for group, clips in enumerate(groups) for _ in range(clips)]
    clips = pd.DataFrame(rows, columns=["label", "group"])
    return SimpleNamespace(table=lambda part: clips[::2] if part == "train" else clips[1::2],
                           split={"groups_named": named})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=7), min_size=2, max_size=4),
       st.integers(0, 3))
def test_folds_cover_every_clip_once_and_share_no_group(counts, seed):
    data = table_data(counts)
    clips = pd.concat([data.table("train"), data.table("val")], ignore_index=True)
    folds = make_folds(data, seed)
    assert len(folds) == min(5, min(map(len, counts)))
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(clips)))
    for rows, held_out in folds:
        assert sorted([*rows, *held_out]) == list(range(len(clips)))
        pairs = [set(map(tuple, clips.iloc[part].to_numpy())) for part in (rows, held_out)]
        assert pairs[0].isdisjoint(pairs[1])


def test_folds_without_named_groups_are_stratified_and_say_so(capsys):
    data = table_data([[1] * 10, [1] * 20], named=False)
    labels = pd.concat([data.table("train"), data.table("val")], ignore_index=True)["label"]
    for _, held_out in make_folds(data, 0):
        assert labels.iloc[held_out].value_counts().to_dict() == {"c0": 2, "c1": 4}
    assert capsys.readouterr().out.startswith("the clips name no groups: the folds of the search are")


def test_a_single_group_is_refused():
    with pytest.raises(ValueError, match="c1 has a single group"):
        make_folds(table_data([[2, 2], [5]]), 0)


def some_views(model, shape, clips=9, views=1):
    torch.manual_seed(0)
    return Views(model, torch.randn(clips, views, *shape).half(), torch.randn(clips, 1, *shape).half(),
                 torch.arange(clips) % 3)


def test_trained_head_equals_a_plain_loop():
    """One full batch without dropout is AdamW on softmax regression of the averaged frames."""
    views = some_views(FrameModel(3, "efficientnet_lite0", weights=None, trained="head"), (4, 1280))
    recipe = get_recipe("recommended", "2d", pooling="avg", dropout=0.0, batch_size=9, epochs=4, schedule="step",
                        lr=1e-2)
    head = train_head(views, np.arange(9), recipe, seed=3)
    torch.manual_seed(3)
    linear = nn.Linear(1280, 3)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2, weight_decay=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        logits = linear(views.augmented[:, 0].float().mean(dim=1))
        target = 0.9 * nn.functional.one_hot(views.labels, 3) + 0.1 / 3
        (-(target * logits.log_softmax(dim=1)).sum(dim=1).mean()).backward()
        optimizer.step()
    torch.testing.assert_close(head[2][1].weight, linear.weight, rtol=1e-4, atol=1e-5)


def test_stage_starts_pretrained_and_the_model_keeps_its_weights():
    model = InflatedEfficientNet(3, trained="stage")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    views = some_views(model, (2, 192, 3, 3), clips=4)
    recipe = get_recipe("recommended", "3d", trained="stage", lr=5e-4, epochs=2, batch_size=4)
    head = tuning.new_head(model, recipe)
    pairs = zip(head[0].parameters(), model.head[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    trained = train_head(views, np.arange(4), recipe, seed=0)
    assert any(not torch.equal(a, b) for a, b in zip(trained[0].parameters(), model.head[0].parameters()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_pooling_done_once_gives_the_same_weights(pooling, monkeypatch):
    class Pool(TemporalPool):  # with a parameter, so that it is done each time
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.unused = nn.Parameter(torch.zeros(1))

    views = some_views(FrameModel(3, "efficientnet_lite0", weights=None, trained="head"), (4, 1280), views=2)
    recipe = get_recipe("recommended", "2d", pooling=pooling, epochs=3, lr=1e-2, batch_size=4)
    once = train_head(views, np.arange(9), recipe, seed=0)
    monkeypatch.setattr(tuning, "TemporalPool", Pool)
    each = train_head(views, np.arange(9), recipe, seed=0)
    torch.testing.assert_close(once[2].state_dict(), each[2].state_dict())


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_batches_give_every_clip_once_with_its_label(clips, views, size):
    x = (torch.arange(clips)[:, None] * 10 + torch.arange(views))[..., None]
    batches = list(Batches(x, torch.arange(clips), size, shuffle=True))
    rows = torch.cat([labels for _, labels in batches])
    assert len(batches) == len(Batches(x, rows, size)) and rows.sort().values.equal(torch.arange(clips))
    drawn = torch.cat([batch for batch, _ in batches])[:, 0]
    assert (drawn // 10).long().equal(rows) and drawn.dtype == torch.float32 and (drawn % 10 < views).all()
    centre = torch.cat([batch for batch, _ in Batches(x, torch.arange(clips), size)])
    assert centre[:, 0].equal(x[:, 0, 0].float())


def test_held_out_clips_are_not_trained_on_and_bad_trials_stop(data, monkeypatch):
    views = some_views(FrameModel(3, "efficientnet_lite0", weights=None, trained="head"), (4, 1280), clips=30)
    folds, seen = make_folds(data, 0), []
    objective = Objective({"head": views}, folds, TINY, seed=0)
    real = tuning.train_head
    monkeypatch.setattr(tuning, "train_head", lambda v, rows, r, s: seen.append(rows) or real(v, rows, r, s))
    assert objective(FixedTrial(VALUES)) > 0
    for rows, (_, held_out) in zip(seen, folds, strict=True):
        assert set(rows).isdisjoint(held_out)
    views.augmented[0] = float("nan")
    with pytest.raises(optuna.TrialPruned, match="the loss became nan"):
        objective(FixedTrial(VALUES))


def test_poor_trials_are_pruned_after_a_fold_but_anchors_are_not(data):
    views = some_views(FrameModel(3, "efficientnet_lite0", weights=None, trained="head"), (4, 1280), clips=30)
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0))
    study.enqueue_trial({}, user_attrs={"setting": "default"})
    folds = make_folds(data, 0)
    study.optimize(Objective({"head": views}, folds, TINY, seed=0), n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert [len(t.intermediate_values) for t in study.trials] == [len(folds), 1]
    assert trials_table(study)["loss"].notna().all()


def test_cuts_enter_the_space():
    values = {**VALUES, "trained": "stage"}
    assert tuning.suggest(FixedTrial(values), "2d", ("head", "stage")) == values
    assert tuning.suggest(FixedTrial(values), "3d", ("stage",)).keys() == values.keys() - {"pooling"}


# ---------------------------------------------------------------- what came out

def test_choice_is_tested_once(data, fake, monkeypatch):
    study = study_of(data, 4)
    table = tuning.test_of_choice(study, data, seeds=(0, 1))
    assert list(zip(table["setting"], table["seed"])) == [(name, seed) for name in ("default", "tuned")
                                                          for seed in (0, 1)]
    assert (table["loss"] > 0).all() and table["accuracy"].between(0, 1).all()
    kept = json.loads((data.results / "tuning" / "2d.json").read_text())
    [(key, document)] = kept.items()
    assert study.study_name in key and document["test_videos"] == len(data.table("test"))
    assert Recipe(**document["recipes"]["tuned"]) == best_recipe(study, TINY)
    monkeypatch.setattr(experiment, "trunk_activations", forbidden)
    pd.testing.assert_frame_equal(tuning.test_of_choice(study, data, seeds=(0, 1)), table)


def test_tables_and_figures(data, fake):
    study = study_of(data, 8)
    table, shares = trials_table(study), importances(study)
    assert len(table) == 8 and set(table["state"]) <= {"complete", "pruned"}
    assert shares.sum() == pytest.approx(1) and set(shares.index) == set(study.best_params)
    figure, axes = plt.subplots(1, 3, figsize=(18, 4))
    for ax, (draw, what) in zip(axes, ((plots.search_history, table), (plots.search_parallel, table),
                                       (plots.importance_bars, shares))):
        assert draw(what, ax) is ax and ax.get_title()
    figure.canvas.draw()
    assert len(axes[1].lines) == (table["state"] == "complete").sum() + 1
    plt.close(figure)


def test_command_line(data, fake, tiny_dataset, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "open_data", lambda *a: open_data(*a, results=data.results.parent))
    for name, value in (("DATASET", str(tiny_dataset)), ("WEIGHTS", "packaged"), ("SEED", "7")):
        monkeypatch.setenv(name, value)
    tuning.main(["--kind", "2d", "--trials", "2", "--test"])
    out = capsys.readouterr().out
    assert "default" in out and "on the test part" in out and "seed7" in out
    for name, value in (("WEIGHTS", "some"), ("DATASET", "nowhere")):
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit, match=f"error: .*{value}"):
            tuning.main(["--kind", "2d", "--trials", "9"])


def test_a_trial_whose_process_died_before_any_sign_of_life_is_made_up_for(data, fake, monkeypatch):
    monkeypatch.setattr(tuning, "HEARTBEAT", 0.1)
    study = study_of(data, 3)
    silent = study._storage.create_new_trial(study._study_id)
    time.sleep(0.4)
    tuning._fail_silent(study)
    assert study._storage.get_trial(silent).state == TrialState.FAIL
    assert len(finished(study_of(data, 4))) == 4
