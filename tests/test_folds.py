"""Folds of whole groups, and that nothing of a fold's test groups is learned or chosen from.

Each leak path has a test of two halves: what was learned stays as it is when the fold's test clips show something else
and are labelled otherwise; and it does change when the leak is introduced on purpose.
"""

import dataclasses
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import comparison
import evaluation
import experiment
import folds
import utils
from classical import classifiers
from config import get_recipe
from conftest import write_video
from experiment import Experiment, untrained
from files import ModelFiles, read_json, read_predictions
from folds import fold_sets, fold_table
from videos.folder import PARTS
from videos.library import open_data
from videos.splits import group_pairs, make_folds, split_hash

RECIPE = get_recipe("recommended", "2d", modality="auto", num_frames=3, stills=2, size=64, grid="1x1", train_views=1,
                    test_clips=1, epochs=4, patience=2, batch_size=8, precision="float32")


@pytest.fixture
def data(tiny_dataset, tmp_path):
    return open_data(str(tiny_dataset), results=tmp_path / "results")


# ---------------------------------------------------------------- folds

@st.composite
def clip_tables(draw):
    """Two or three classes of three to seven groups of one to five clips."""
    rows = []
    for label in range(draw(st.integers(2, 3))):
        for group, clips in enumerate(draw(st.lists(st.integers(1, 5), min_size=3, max_size=7)), 1):
            names = [f"v_{label}_g{group:02d}_c{clip:02d}.avi" for clip in range(1, clips + 1)]
            rows += [(name, f"/class{label}/{name}", f"class{label}", f"g{group:02d}") for name in names]
    return pd.DataFrame(rows, columns=["clip_name", "clip_path", "label", "group"])


@settings(max_examples=25)
@given(clip_tables(), st.integers(3, 6), st.integers(0, 99))
def test_folds_test_each_clip_once_and_share_no_group(clips, most, seed):
    made, how = make_folds(clips, most, official=False, grouped=True, seed=seed)
    assert len(made) == min(most, clips.groupby("label")["group"].nunique().min()) and "whole groups" in how
    tested = pd.concat(fold.loc[fold["part"] == "test", "clip_path"] for fold in made)
    assert sorted(tested) == sorted(clips["clip_path"])
    for fold in made:
        assert sorted(fold["clip_path"]) == sorted(clips["clip_path"])
        assert group_pairs(fold).groupby(fold["part"]).unique().explode().is_unique
        assert (fold.groupby("part")["label"].nunique() == clips["label"].nunique()).all()
        assert set(fold["part"]) == set(PARTS)


def some_clips(groups, each=1):
    rows = [(f"v_{label}_g{group:02d}_c{clip:02d}.avi", label, f"g{group:02d}")
            for label in "ab" for group in range(1, groups + 1) for clip in range(1, each + 1)]
    return pd.DataFrame([(name, f"/{label}/{name}", label, group) for name, label, group in rows],
                        columns=["clip_name", "clip_path", "label", "group"])


def test_folds_follow_the_seed_and_not_the_order_of_rows():
    clips = some_clips(7, each=2)
    first, shuffled, other = (make_folds(its, 5, False, True, seed)[0] for its, seed in (
        (clips, 0), (clips.sample(frac=1, random_state=1), 0), (clips, 1)))
    assert all(a.equals(b) for a, b in zip(first, shuffled, strict=True)) and not first[0].equals(other[0])


def test_with_two_groups_the_tested_one_is_still_seen_by_nothing_else():
    made, how = make_folds(some_clips(2, each=3), 5, False, True, 0)
    assert len(made) == 2 and how == "2 folds of whole groups"
    for fold in made:
        tested = fold["part"] == "test"
        assert set(group_pairs(fold[tested])).isdisjoint(group_pairs(fold[~tested])) and set(fold["part"]) == set(PARTS)


def test_clips_without_groups_are_dealt_out_one_by_one():
    clips = some_clips(1, each=8)
    made, how = make_folds(clips, 4, False, False, 0)
    assert how == "4 folds of single clips, since the clips name no groups"
    tested = pd.concat(fold.loc[fold["part"] == "test", "clip_path"] for fold in made)
    assert sorted(tested) == sorted(clips["clip_path"])


def test_the_official_protocol_is_three_splits():
    made, how = make_folds(some_clips(25), 5, official=True, grouped=True, seed=0)
    tested = [set(fold.loc[fold["part"] == "test", "group"]) for fold in made]
    assert [(min(its), max(its)) for its in tested] == [("g01", "g07"), ("g08", "g14"), ("g15", "g21")]
    assert "22-25" in how and all(set(fold["part"]) == set(PARTS) for fold in made)


def test_a_data_sets_folds_are_files_of_their_own(data, tmp_path):
    sets, how = fold_sets(data, 5, 0, tmp_path)
    assert len(sets) == 5 and how == "5 folds of whole groups" and len({its.split["sha256"] for its in sets}) == 5
    for its in sets:
        parts = {part: its.table(part) for part in its.splits}
        assert its.split["sha256"] == split_hash(parts) and its.root == data.root and its.results == data.results
        assert its.split["clips"] == {part: len(table) for part, table in parts.items()}
    again, _ = fold_sets(data, 5, 0, tmp_path)
    assert [its.splits for its in again] == [its.splits for its in sets]
    assert {its.split["sha256"] for its in fold_sets(data, 5, 1, tmp_path)[0]} != {its.split["sha256"] for its in sets}


# ---------------------------------------------------------------- cross-validation

def guess(data, part):
    """A prediction table of a part, each clip's probabilities drawn by its name."""
    table = data.table(part)[["clip_path", "group", "label"]]
    rows = [np.random.default_rng(zlib.crc32(path.encode())).dirichlet(np.ones(3)) for path in table["clip_path"]]
    p = pd.DataFrame(rows, columns=[f"p_{name}" for name in data.classes])
    return table.assign(predicted=[data.classes[i] for i in p.to_numpy().argmax(axis=1)]).join(p)


class Guesses:
    """Predicts folds by `guess`, and notes which; raises KeyboardInterrupt in call number `stop`."""

    def __init__(self, stop=None):
        self.stop, self.tested = stop, []

    def __call__(self, data, folder):
        if len(self.tested) + 1 == self.stop:
            raise KeyboardInterrupt
        self.tested.append(frozenset(data.table("test")["clip_path"]))
        return guess(data, "test"), guess(data, "val"), "guessed"


def validated(data, predict, cache, asked=None, count=5, seed=0, model="some"):
    files = ModelFiles(data.results, model, "deep_learning", ".pth")
    run = folds.FoldRun(data, files, asked or {"a": 1}, predict, *fold_sets(data, count, seed, cache), seed, cache)
    return folds.run_all([run])[0], files


def test_every_video_is_predicted_once_and_kept(data, tmp_path):
    predict = Guesses()
    table, files = validated(data, predict, tmp_path / "cache")
    clips = pd.concat(data.table(part) for part in data.splits)
    assert sorted(table["clip_path"]) == sorted(clips["clip_path"]) and set(table["fold"]) == {1, 2, 3, 4, 5}
    assert len(predict.tested) == 5 and table["clip_path"].is_unique
    stats = read_json(files.stats)["folds"]
    assert (stats["videos"], stats["count"], stats["how"]) == (36, 5, "5 folds of whole groups")
    assert stats["accuracy"] == (table["label"] == table["predicted"]).mean()
    validation = read_predictions(files.folds_validation)
    for fold, its in table.groupby("fold"):  # what fusion is fitted to was not tested in that fold
        kept = validation[validation["fold"] == fold]
        assert len(kept) and set(group_pairs(kept)).isdisjoint(group_pairs(its))
    by_fold = fold_table(table)
    assert by_fold["videos"].sum() == 36
    assert np.average(by_fold["accuracy"], weights=by_fold["videos"]) == pytest.approx(stats["accuracy"])


def test_a_rerun_predicts_nothing_and_gives_the_same_bits(data, tmp_path):
    first, files = validated(data, Guesses(), tmp_path / "cache")
    written = files.folds.read_bytes()
    again = Guesses()
    second, _ = validated(data, again, tmp_path / "cache")
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert not again.tested and files.folds.read_bytes() == written
    files.folds.unlink()  # the folds themselves are kept beside it
    third, _ = validated(data, again, tmp_path / "cache")
    pd.testing.assert_frame_equal(first, third, check_exact=True)
    assert not again.tested and files.folds.read_bytes() == written


def test_an_interrupted_run_goes_on_with_the_fold_it_was_in(data, tmp_path):
    whole, _ = validated(dataclasses.replace(data, results=tmp_path / "whole"), Guesses(), tmp_path / "one")
    stopped, rest = Guesses(stop=3), Guesses()
    with pytest.raises(KeyboardInterrupt):
        validated(data, stopped, tmp_path / "other")
    assert not ModelFiles(data.results, "some", "deep_learning", ".pth").folds.exists()
    table, _ = validated(data, rest, tmp_path / "other")
    assert len(stopped.tested) == 2 and len(rest.tested) == 3 and not set(stopped.tested) & set(rest.tested)
    pd.testing.assert_frame_equal(table, whole, check_exact=True)


def test_what_decides_the_predictions_is_noticed(data, tiny_dataset, tmp_path):
    """Another request, seed or number of folds, and a clip's changed bytes."""
    cache, root = tmp_path / "cache", tmp_path / data.name
    shutil.copytree(tiny_dataset, root)
    data = open_data(str(root), results=tmp_path / "copied")
    validated(data, Guesses(), cache)
    for changes, count in (({"asked": {"a": 2}}, 5), ({"seed": 1}, 5), ({"count": 3}, 3)):
        again = Guesses()
        validated(data, again, cache, **changes)
        assert len(again.tested) == count, changes
    clip = root / data.table("train")["clip_path"].iloc[0].lstrip("/")
    clip.write_bytes(clip.read_bytes() + b"x")
    changed = Guesses()
    validated(data, changed, cache)
    assert len(changed.tested) == 5


def test_a_fold_that_lost_a_file_is_computed_again(data, tmp_path):
    validated(data, Guesses(), tmp_path / "cache")
    next((tmp_path / "cache" / "folds").rglob("1/validation.csv")).unlink()
    predict = Guesses()
    validated(dataclasses.replace(data, results=tmp_path / "other"), predict, tmp_path / "cache")
    assert len(predict.tested) == 1


# ---------------------------------------------------------------- leaks: a CNN

@pytest.fixture(scope="module")
def fold(tiny_dataset, tmp_path_factory):
    """A fold as it is, and with test clips that show noise and have other labels; and the means to learn from one."""
    root = tmp_path_factory.mktemp("leaks")
    data = open_data(str(tiny_dataset), results=root / "results")
    clean = fold_sets(data, 5, 0, root / "cache")[0][0]
    table, rng = clean.table("test"), np.random.default_rng(0)
    shutil.copytree(tiny_dataset, root / "clips")
    for path in table["clip_path"]:
        noise = rng.integers(0, 256, (20, 96, 128, 3), dtype=np.uint8)
        write_video(root / "clips" / path.lstrip("/"), noise, codec="XVID")
    others = {name: clean.classes[(i + 1) % 3] for i, name in enumerate(clean.classes)}
    table.assign(label=table["label"].map(others)).to_csv(root / "test.csv", index=False)
    changed = dataclasses.replace(clean, root=root / "clips", splits={**clean.splits, "test": root / "test.csv"})
    return SimpleNamespace(data=data, clean=clean, changed=changed, root=root, cache=root / "cache")


def captured(monkeypatch, call):
    """What a function that cross-validates a model would do of one fold."""
    held = []
    monkeypatch.setattr(folds, "run_all", lambda runs, *_: (
        held.extend(runs) or [pd.DataFrame(columns=["label", "predicted", "fold"])]))
    call()
    return held[0].predict


@pytest.fixture
def learned(fold, monkeypatch):
    """What a fold's training learns and chooses; `leak` takes a part of it from another one."""
    run = untrained(fold.data, dataclasses.replace(RECIPE, modality="rgb"), "packaged", 0, cache=fold.cache)

    def learn(data, recipe=RECIPE, leak=None):
        seen = SimpleNamespace(scores=None)
        with monkeypatch.context() as patch:
            predict_fold = captured(patch, lambda: evaluation.cross_validate(run, recipe, 5))
            seen.trainings = []
            real_fit, real_scores, real_dataset = Experiment.fit, experiment.modality_scores, Experiment.dataset

            def fit(its, *given):
                seen.trainings.append(real_fit(its, *given))
                return seen.trainings[-1]

            def scores(*given):
                seen.scores = real_scores(*given)
                return seen.scores

            patch.setattr(Experiment, "fit", fit)
            patch.setattr(experiment, "modality_scores", scores)
            patch.setattr(Experiment, "dataset", lambda its, part, train=False: real_dataset(
                its, (leak or {}).get(part, part), train))
            folder = fold.root / str(len(list(fold.root.iterdir())))
            folder.mkdir()
            seen.test, seen.validation, seen.words = predict_fold(data, folder)
        seen.training = seen.trainings[0]
        seen.state = {f"{number} {name}": value.clone() for number, training in enumerate(seen.trainings)
                      for name, value in training.model.state_dict().items()}
        return seen

    return learn


def statistics(seen):
    """Running means and variances of what standardises features."""
    return torch.cat([value for name, value in seen.state.items() if "running_" in name])


@pytest.mark.slow
def test_scaling_learns_nothing_of_the_test_groups(fold, learned):
    recipe = dataclasses.replace(RECIPE, modality="rgb+diff")
    clean, changed = learned(fold.clean, recipe), learned(fold.changed, recipe)
    assert len(statistics(clean)) and torch.equal(statistics(clean), statistics(changed))
    assert all(torch.equal(value, changed.state[name]) for name, value in clean.state.items())
    pd.testing.assert_frame_equal(clean.validation, changed.validation, check_exact=True)
    assert not clean.test.filter(regex="^p_").equals(changed.test.filter(regex="^p_"))  # which do see the clips
    leaks = [learned(its, recipe, {"train": "test"}) for its in (fold.clean, fold.changed)]
    assert not torch.equal(*map(statistics, leaks))


@pytest.mark.slow
def test_early_stopping_sees_nothing_of_the_test_groups(fold, learned):
    recipe = dataclasses.replace(RECIPE, modality="diff")
    clean, changed = learned(fold.clean, recipe), learned(fold.changed, recipe)
    assert clean.training.history == changed.training.history
    assert clean.training.best_epoch == changed.training.best_epoch
    leaks = [learned(its, recipe, {"val": "test"}).training.history for its in (fold.clean, fold.changed)]
    assert leaks[0]["val_losses"] != leaks[1]["val_losses"]


@pytest.mark.slow
def test_the_modality_is_chosen_without_the_test_groups(fold, learned):
    clean, changed = learned(fold.clean), learned(fold.changed)
    pd.testing.assert_frame_equal(clean.scores, changed.scores, check_exact=True)
    assert clean.words.split(",")[0] == changed.words.split(",")[0] == clean.scores.index[0]
    leaks = [learned(its, leak={"train": "test"}).scores for its in (fold.clean, fold.changed)]
    assert not leaks[0].equals(leaks[1])


# ---------------------------------------------------------------- leaks: a classical model

@pytest.fixture
def searched(fold, monkeypatch):
    """What is chosen of a classical model in a fold, from features drawn by the clips' bytes; `leak` as `learned`."""
    def features(name, table, root, cache):
        rows = []
        for path, label in zip(table["clip_path"], table["label"], strict=True):
            clip = zlib.crc32((Path(root) / path.lstrip("/")).read_bytes())
            hint = 1.5 * (np.arange(6) == fold.clean.class_map[label])
            rows.append(np.random.default_rng(clip).normal(size=6) + hint)
        return np.array(rows, dtype=np.float32)

    def search(data, leak=False):
        fits, searches = [], []
        with monkeypatch.context() as patch:
            model = classifiers.ClassicalModel("logistic_regression", fold.data, 0, fold.cache)
            predict_fold = captured(patch, lambda: classifiers.cross_validate([model], 5))
            real_tune, real_fit, real_table = classifiers.tune, classifiers.fit, classifiers.fitting_table

            def tune(*given):
                searches.append(real_tune(*given))
                return searches[-1]

            def fit(spec, parameters, x, *rest):
                fitted = real_fit(spec, parameters, x, *rest)
                fits.append((parameters, len(x), fitted[-1].coef_))
                return fitted

            patch.setattr(classifiers, "model_input", features)
            patch.setattr(classifiers, "tune", tune)
            patch.setattr(classifiers, "fit", fit)
            if leak:
                patch.setattr(classifiers, "fitting_table", lambda its: pd.concat(
                    [real_table(its), its.table("test")], ignore_index=True))
            test, validation, _ = predict_fold(data, fold.root)
        return SimpleNamespace(found=searches[0][1], fits=fits, test=test, validation=validation)

    return search


def test_the_search_sees_nothing_of_the_test_groups(fold, searched):
    clean, changed = searched(fold.clean), searched(fold.changed)
    assert clean.found == changed.found
    for (_, rows, weights), (_, same_rows, same_weights) in zip(clean.fits, changed.fits, strict=True):
        assert rows == same_rows and np.array_equal(weights, same_weights)
    pd.testing.assert_frame_equal(clean.validation, changed.validation, check_exact=True)
    assert not clean.test.equals(changed.test)
    leaks = [searched(its, leak=True).found for its in (fold.clean, fold.changed)]
    assert leaks[0]["cv_scores"] != leaks[1]["cv_scores"]


def test_what_fusion_is_fitted_to_comes_from_the_training_part_alone(fold, searched):
    """The validation part's own predictions are of a model with the same parameters that was not fitted to it."""
    (chosen, rows, _), (again, fewer, _) = searched(fold.clean).fits
    counts = fold.clean.split["clips"]
    assert (rows, fewer) == (counts["train"] + counts["val"], counts["train"])
    assert str(again) == str(chosen)


# ---------------------------------------------------------------- a CNN's folds as a whole

@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "classical"])
def test_folds_in_processes_of_their_own_end_the_same(data, tmp_path, model):
    def run(backend):
        its, cache = dataclasses.replace(data, results=tmp_path / backend), tmp_path / f"{backend} cache"
        with joblib.parallel_config(backend=backend):
            if model == "classical":
                models = [classifiers.ClassicalModel(name, its, 0, cache) for name in ("linear_svm", "knn")]
                return pd.concat(classifiers.cross_validate(models, 3))
            return evaluation.cross_validate(untrained(its, RECIPE, "packaged", 0, cache=cache), RECIPE, 3)

    pd.testing.assert_frame_equal(run("loky"), run("sequential"), check_exact=True)


@pytest.mark.slow
def test_a_cnns_folds_go_on_within_a_training_and_end_the_same(data, tmp_path, monkeypatch):
    recipe = dataclasses.replace(RECIPE, modality="diff")

    def run(name):
        return untrained(dataclasses.replace(data, results=tmp_path / f"results {name}"), recipe, "packaged", 0,
                         cache=tmp_path / name)

    whole = evaluation.cross_validate(run("whole"), recipe, 3)
    shutil.copytree(tmp_path / "whole" / "activations", tmp_path / "parts" / "activations")
    real, epochs = utils.train_one_epoch, []

    def stopped(*arguments):
        epochs.append(1)
        if len(epochs) == 14:  # in the second training of the second fold
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(utils, "train_one_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluation.cross_validate(run("parts"), recipe, 3)
    assert {path.parent.name for path in (tmp_path / "parts" / "folds").rglob("*.pth")} == {"2"}
    predicted, predict = [], evaluation.predict
    monkeypatch.setattr(evaluation, "predict", lambda its, part="test": predicted.append(part) or predict(its, part))
    parts = evaluation.cross_validate(run("parts"), recipe, 3)
    assert predicted == ["val", "test"] * 2 and not list((tmp_path / "parts" / "folds").rglob("*.pth"))
    pd.testing.assert_frame_equal(parts, whole, check_exact=True)
    assert sorted(whole["clip_path"]) == sorted(path for part in PARTS for path in data.table(part)["clip_path"])


# ---------------------------------------------------------------- leaks: what is fitted to predictions

@pytest.fixture
def results(data, tmp_path):
    """Two models' fold predictions, as `comparison.load_results` gives them."""
    table, files = validated(data, Guesses(), tmp_path / "cache")
    rng, tables = np.random.default_rng(0), {"fold_predictions": table,
                                            "fold_validation": read_predictions(files.folds_validation)}
    return {title: {name: noisy(its, rng) for name, its in tables.items()} for title in ("2D-CNN", "3D-CNN")}


def noisy(table, rng, strength=1.0):
    """The table with other probabilities, which favour the label."""
    classes = [name.removeprefix("p_") for name in table.filter(regex="^p_")]
    logits = rng.normal(size=(len(table), 3)) + strength * (table[["label"]].to_numpy() == classes)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    columns = {f"p_{name}": column for name, column in zip(classes, p.T, strict=True)}
    return table.assign(predicted=np.array(classes)[p.argmax(axis=1)], **columns)


def opposed(results, what):
    """The same with predictions of one table that are systematically wrong."""
    rng = np.random.default_rng(1)
    return {title: {**its, what: noisy(its[what], rng, strength=-5.0 if title == "2D-CNN" else 5.0)}
            for title, its in results.items()}


def test_fusion_weights_see_nothing_of_the_test_groups(results):
    titles = ("2D-CNN", "3D-CNN")
    fused, weights = comparison.fusion(results, titles)
    other, same = comparison.fusion(opposed(results, "fold_predictions"), titles)
    pd.testing.assert_frame_equal(weights, same, check_exact=True)
    assert len(weights) == 5 and sorted(fused["clip_path"]) == sorted(other["clip_path"]) and not fused.equals(other)
    _, leaked = comparison.fusion(opposed(results, "fold_validation"), titles)
    assert not np.allclose(weights, leaked) and (leaked["3D-CNN"] > leaked["2D-CNN"]).all()


def test_each_fold_has_weights_of_its_own_validation_part(results):
    """Another fold's validation part, which holds clips that this one tests, changes nothing here."""
    titles = ("2D-CNN", "3D-CNN")
    _, weights = comparison.fusion(results, titles)
    changed = opposed(results, "fold_validation")
    for title in titles:  # of fold 1 alone
        table = changed[title]["fold_validation"].copy()
        others = table["fold"] != 1
        table[others] = results[title]["fold_validation"][others]
        changed[title]["fold_validation"] = table
    _, again = comparison.fusion(changed, titles)
    pd.testing.assert_frame_equal(weights.loc[2:], again.loc[2:], check_exact=True)
    assert not np.allclose(weights.loc[1], again.loc[1])


def test_the_table_of_fusions_has_the_weights_of_the_models_that_are_there(results):
    _, weights = comparison.fusion(results, ("2D-CNN", "3D-CNN"))
    table = comparison.fusion_table(results)
    its, title = weights["3D-CNN"], comparison.fusion_title(["2D-CNN", "3D-CNN"])
    assert list(table.columns)[:2] == ["2D-CNN", "3D-CNN"] and title in table.index
    assert table.loc[title, "3D-CNN"] == f"{its.mean():.2f} ({its.min():.2f} to {its.max():.2f})"
    assert comparison.fusion_table({"2D-CNN": results["2D-CNN"]}).empty


def test_the_temperature_sees_nothing_of_the_test_groups(results):
    def fitted(its):
        tables = {title: {"predictions": kept["fold_predictions"], "validation": kept["fold_validation"]}
                  for title, kept in its.items()}
        return {title: found["temperature"] for title, found in comparison.calibrated(tables).items()}

    plain = fitted(results)
    assert plain == fitted(opposed(results, "fold_predictions")) and len(plain) == 2
    assert plain["2D-CNN"] < fitted(opposed(results, "fold_validation"))["2D-CNN"]
