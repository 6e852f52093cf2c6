"""The comparison of recipes and the learning curve: what they keep, what they write, and what they say."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

import config
import curve
import evaluation
import plots
import recipes
from comparison import FISHER, curve_reading, fusion_title, learning_curve
from config import get_recipe
from experiment import plan
from files import ClassicalFiles, read_predictions, write_csv, write_json
from videos.folder import scan_clips
from videos.library import open_data
from videos.splits import group_pairs, make_folds, thinned

pytestmark = pytest.mark.slow

TINY = {"precision": "float32", "num_frames": 2, "stills": 2, "train_views": 1, "epochs": 2, "test_clips": 2,
        "batch_size": 8, "size": 32, "grid": "1x1", "modality": "diff"}


@pytest.fixture
def tiny_recipes(monkeypatch):
    """Both recommended recipes, but tiny."""
    for kind in ("2d", "3d"):
        monkeypatch.setitem(config.RECIPES, ("recommended", kind), get_recipe("recommended", kind, **TINY))


def refuse(*args, **kwargs):
    raise AssertionError("computed again")


# ---------------------------------------------------------------- recipes

def test_finished_rows_are_kept_until_the_clips_change(tiny_recipes, tiny_dataset, tmp_path, monkeypatch):
    root, target = tmp_path / "clips", tmp_path / "page" / "recipes.json"
    shutil.copytree(tiny_dataset, root)
    monkeypatch.setattr(recipes, "FOLDS", 2)
    monkeypatch.setattr(recipes, "VARIANTS", {"2d": {"default": {}, "modality=auto": {"modality": "auto"}}})

    def compare() -> list[dict]:
        data = open_data(str(root), results=tmp_path / "cache" / "recipes")
        recipes.compare_recipes([data], {"2d": "packaged"}, [42], None, target, tmp_path / "cache")
        return json.loads(target.read_text(encoding="utf-8"))["rows"]

    rows = compare()
    assert [row["recipe"]["modality"] for row in rows] == ["diff", "auto"]
    for row in rows:
        assert row["scores"]["all"]["videos"] == 36 and row["cost"]["gflop"] > 0 and row["cost"]["view_seconds"] > 0
    page = target.with_suffix(".md").read_text(encoding="utf-8")
    assert "| **default** | " in page and "| modality = auto | " in page and "clips, all (n = 36)" in page
    assert str(tmp_path) not in page

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "cross_validate", refuse)
        assert compare() == rows
        clip = next(root.glob("Punch/*.avi"))
        shutil.copy(next(root.glob("PushUps/*.avi")), clip)
        with pytest.raises(AssertionError, match="computed again"):
            compare()


def test_defaults_are_fused_by_the_same_folds_once(tiny_recipes, tiny_dataset, tmp_path, monkeypatch):
    target, sources = tmp_path / "page" / "recipes.json", {"2d": "packaged", "3d": "packaged"}
    monkeypatch.setattr(recipes, "FOLDS", 2)
    data = open_data(str(tiny_dataset), results=tmp_path / "cache" / "recipes")
    recipes.compare_fusions([data], sources, [42, 43], target, tmp_path / "cache")
    rows = json.loads(target.read_text(encoding="utf-8"))["fusions"]
    assert [row["partition"] for row in rows] == [42, 43]
    assert all(score["all"]["videos"] == 36 for row in rows for score in row["scores"].values())
    page = target.with_suffix(".md").read_text(encoding="utf-8")
    for title in ("2D-CNN", FISHER, *map(fusion_title, recipes.FUSIONS)):
        values = [row["scores"][title]["all"]["accuracy"] for row in rows]
        assert f"| {title} | {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} (2) |" in page

    monkeypatch.setattr(recipes, "cross_validate", refuse)
    recipes.compare_fusions([data], sources, [42, 43], target, tmp_path / "cache")
    assert json.loads(target.read_text(encoding="utf-8"))["fusions"] == rows


def row_of(data: str, partition: int, accuracy: float, recipe: dict) -> dict:
    scores = {"all": {"accuracy": accuracy, "videos": 120}}
    if data == "hard":
        scores |= {part: {"accuracy": accuracy + gain, "videos": 60}
                   for part, gain in ((recipes.CHOOSING, 0.1), (recipes.REPORTING, -0.1))}
    return {"data": data, "backbone": "efficientnet_lite0", "weights": "packaged", "partition": partition,
            "recipe": recipe, "scores": scores, "cost": {"gflop": 12.34, "view_seconds": 0.5}, "hardware": "a machine",
            "commit": "abc1234", "of": f"{data}{partition}{accuracy}"}


def test_the_page_has_a_line_per_recipe_with_the_spread_over_partitions():
    default = get_recipe("recommended", "2d").resolved("efficientnet_lite0")
    other = dataclasses.replace(default, gap=1 / 30)
    rows = [row_of("easy", 42, 0.9, default.to_dict()), row_of("hard", 42, 0.6, other.to_dict()),
            row_of("hard", 42, 0.7, default.to_dict()), row_of("hard", 43, 0.8, default.to_dict())]
    page = recipes.page(rows=json.loads(json.dumps(rows)))
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    assert lines[0] == ["changed", "easy, all (n = 120)", "hard, g01-g10 (n = 60)", "hard, g11-g20 (n = 60)",
                        "hard, all (n = 120)", "GFLOP per video", "s per view"]
    sd = np.std([0.7, 0.8], ddof=1)
    assert lines[2] == ["**default**", "0.900 (1)", f"0.850 ± {sd:.3f} (2)", f"0.650 ± {sd:.3f} (2)",
                        f"0.750 ± {sd:.3f} (2)", "12.3", "0.50"]
    assert lines[3][:3] == ["gap = 0.0333", "–", "0.700 (1)"]
    assert "a machine" in page and "abc1234" in page and "--partitions 42 43" in page and "Rule of choice" in page


def test_halves_of_twenty_groups_are_scored_apart():
    groups = [f"g{number:02d}" for number in range(1, 21)]
    table = pd.DataFrame({"group": groups, "label": "a", "predicted": ["a"] * 10 + ["b"] * 10})
    assert recipes.part_scores(table) == {
        "all": {"accuracy": 0.5, "videos": 20}, recipes.CHOOSING: {"accuracy": 1.0, "videos": 10},
        recipes.REPORTING: {"accuracy": 0.0, "videos": 10}}
    assert list(recipes.part_scores(table.iloc[:-1])) == ["all"]


@pytest.mark.parametrize("kind, backbone", [("2d", "efficientnet_lite0"), ("3d", "efficientnet_lite0_3d"),
                                            ("2d", "resnet18"), ("3d", "resnet3d")])
def test_every_variant_is_another_recipe_of_a_network_that_exists(kind, backbone):
    from models import build_model

    found = recipes.variants(kind, backbone)
    assert len({json.dumps(recipe.to_dict(), sort_keys=True) for recipe in found.values()}) >= len(found) - 1
    for recipe in (its for name, its in found.items() if name == "default" or name.startswith(("depth", "modality"))):
        if recipe.modality != "auto":
            build_model(recipe, 3, "none", backbone)


# ---------------------------------------------------------------- learning curve

def test_thinned_groups_are_whole_and_nested(tiny_dataset):
    folds, _ = make_folds(scan_clips(tiny_dataset), 3, False, True, 42)
    for fold in folds:
        before = set()
        for share in curve.SHARES:
            kept = thinned(fold, share, 42)
            train = kept[kept["part"] == "train"]
            groups, whole = set(group_pairs(train)), fold[fold["part"] == "train"]
            assert before <= groups
            assert set(train["clip_path"]) == set(whole["clip_path"][group_pairs(whole).isin(groups)])
            for part in ("val", "test"):
                pd.testing.assert_frame_equal(*(its[its["part"] == part].reset_index(drop=True)
                                                for its in (kept, fold)))
            assert group_pairs(train).groupby(train["label"]).nunique().min() >= 2
            before = groups
        pd.testing.assert_frame_equal(kept, fold)
        assert len(thinned(fold, 0.25, 42)) < len(fold)


@pytest.fixture
def measured(tiny_recipes, tiny_dataset, tmp_path):
    """A data set with its curve, the learners and the cache."""
    data, cache = open_data(str(tiny_dataset), results=tmp_path / "results"), tmp_path / "cache"
    for name, title, cv_mean in (("knn", "k-nearest neighbours", 0.4), ("logistic_regression", "logistic", 0.9)):
        write_json(ClassicalFiles(data.results, name).stats, {"title": title, "cv_mean": cv_mean})
    learners = curve.learners(data.results, "packaged", 3, 42, cache)
    curve.measure(data, learners, 3, 42, cache)
    return data, learners, cache


def test_curve_has_a_row_per_model_share_and_fold_and_goes_on(measured, monkeypatch):
    data, learners, cache = measured
    sizes = pd.read_csv(data.results / "learning_curve.csv")
    assert set(learners) == {"2d-cnn", "3d-cnn", "logistic_regression"}
    assert list(sizes) == ["model", "share", "fold", "groups", "clips", "videos", "accuracy"]
    assert len(sizes) == 3 * 4 * 3 and sizes.groupby(["model", "share"])["videos"].sum().eq(36).all()
    clips = sizes[sizes["model"] == "2d-cnn"].pivot(index="fold", columns="share", values="clips")
    assert (clips.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None) and (clips[1.0] > clips[0.25]).all()

    written = (data.results / "learning_curve.csv").read_bytes()
    monkeypatch.setattr(evaluation.Experiment, "fit", refuse)
    monkeypatch.setattr(curve.classifiers, "tune", refuse)
    shutil.rmtree(cache / "curve")
    curve.measure(data, learners, 3, 42, cache)
    assert (data.results / "learning_curve.csv").read_bytes() == written
    # all groups are the study's own folds: not trained again
    recipe = get_recipe("recommended", "2d")
    study = plan(data, recipe, "packaged", 42, cache=cache).build()
    folds = evaluation.cross_validate(study, recipe, 3)
    kept = read_predictions(data.results / "predictions" / "learning_curve.csv").query("model == '2d-cnn'")
    assert folds["predicted"].tolist() == kept.loc[kept["share"] == 1, "predicted"].tolist()

    points = learning_curve(data.results)
    assert points["model"].unique().tolist() == ["2D-CNN", "3D-CNN", "logistic"] and len(points) == 12
    assert (points["low"] <= points["accuracy"]).all() and (points["accuracy"] <= points["high"]).all()
    assert curve.draw(data, points).stat().st_size > 10_000
    write_csv(study.files.folds, folds.assign(predicted="Punch"))
    assert learning_curve(data.results)["model"].unique().tolist() == ["3D-CNN", "logistic"]


def test_no_curve_is_none(tmp_path):
    assert learning_curve(tmp_path) is None


def points_of(gains: dict[str, tuple[float, float, float, float]]) -> pd.DataFrame:
    rows = []
    for model, (gain, low, high, p) in gains.items():
        common = {"model": model, "groups": 9, "videos": 120, "low": 0.5, "high": 0.9}
        rows += [{**common, "share": 0.75, "clips": 60, "accuracy": 0.7},
                 {**common, "share": 1.0, "clips": 80, "accuracy": 0.7 + gain, "gain": gain, "gain_low": low,
                  "gain_high": high, "p_value": p}]
    return pd.DataFrame(rows)


def test_reading_tells_a_rise_from_chance():
    both = curve_reading(points_of({"2D-CNN": (0.1, 0.04, 0.16, 0.001), "3D-CNN": (0.02, -0.03, 0.07, 0.5)}))
    assert "2D-CNN: from 75% to 100% of the training groups (80 clips), accuracy changes by +10.0" in both
    assert "p = 0.002 after Holm): significant." in both and "p = 0.5 after Holm): not significant." in both
    assert both.endswith("More clips would probably help 2D-CNN: the curve still rises.")
    flat = curve_reading(points_of({"2D-CNN": (0.04, 0.01, 0.08, 0.04), "3D-CNN": (-0.1, -0.16, -0.04, 0.001)}))
    assert "p = 0.04 after Holm): significant" in flat  # below ALPHA also after Holm
    assert flat.endswith("More clips would probably help 2D-CNN: the curve still rises.")
    none = curve_reading(points_of({"2D-CNN": (0.04, -0.01, 0.08, 0.04), "3D-CNN": (-0.1, -0.16, -0.04, 0.001)}))
    assert "is not shown: on 120 videos" in none and "a gain of up to 8.0 percentage points" in none


def test_figure_draws_each_model_with_its_interval():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    plots.learning_curve(points_of({"2D-CNN": (0.1, 0, 0.2, 0.1), "SVM": (0, 0, 0, 1)}), "curve", ax)
    assert len(ax.containers) == 2 and [text.get_text() for text in ax.get_xticklabels()] == ["75%\n(60)", "100%\n(80)"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["2D-CNN", "SVM"]
