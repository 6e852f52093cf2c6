"""What in a data set could mislead: shortcuts, groups and leakage."""


import numpy as np
import pandas as pd
import pytest

from studies import audit
from studies.audit import (
    group_overlap,
    leakage_lab,
    leakage_table,
    same_group_neighbours,
    shortcut_scores,
    split_kinds,
)
from videos import splits


def clip_table(groups: int, clips: int) -> pd.DataFrame:
    rows = [(f"v_{label}_g{g:02d}_c{c:02d}.avi", f"/{label}/v_{label}_g{g:02d}_c{c:02d}.avi", label, f"g{g:02d}")
            for label in ("A", "B", "C") for g in range(1, groups + 1) for c in range(1, clips + 1)]
    return pd.DataFrame(rows, columns=splits.COLUMNS)


def test_group_overlap_and_kinds_of_split():
    clips = clip_table(25, 4)
    shared = group_overlap(splits.split_parts(splits.make_split(clips, "random")))
    apart = group_overlap(splits.split_parts(splits.make_split(clips, "group")))
    assert shared.loc["train", "test"] > 0 and (shared.to_numpy() == shared.to_numpy().T).all()
    assert apart.sum().sum() == np.trace(apart) == 75
    kinds = split_kinds(clips)
    assert kinds.loc["official1", ["train", "val", "test", "shared groups"]].tolist() == ["168", "48", "84", "0"]
    assert int(kinds.loc["random", "shared groups"]) > 0 and kinds.loc["group", "shared groups"] == "0"
    few = split_kinds(clip_table(6, 4))
    assert few.loc["official1", "note"].startswith("not possible: ") and few.loc["official1", "train"] == "–"


def test_a_rule_on_duration_is_found_where_there_is_one():
    clips = splits.make_split(clip_table(8, 2), "group")
    rng = np.random.default_rng(0)
    report = clips.assign(status="ok", fps=25.0, width=320, height=240, kbit_per_second=rng.normal(500, 50, len(clips)),
                          motion=rng.random(len(clips)), mean_l=rng.random(len(clips)), mean_a=0.0, mean_b=0.0,
                          duration=clips["label"].map({"A": 2.0, "B": 5.0, "C": 9.0}) + rng.random(len(clips)))
    scores = {title: (rows["label"] == rows["predicted"]).mean() for title, rows in shortcut_scores(report).items()}
    assert scores["duration"] == 1.0 and scores["most frequent class"] == pytest.approx(1 / 3)
    assert scores["mean colour"] < 0.8
    assert len(shortcut_scores(report)["duration"]) == (clips["part"] == "test").sum()
    table = audit.shortcut_table(shortcut_scores(report))
    assert (table["low"] <= table["accuracy"]).all() and table.loc["duration", "high"] == 1.0
    said = audit.shortcut_reading(table)
    assert "duration alone names 100%" in said and "beyond chance: **duration (100%)" in said


def test_lab_without_enough_groups_says_so(capsys):
    clips = clip_table(2, 8)
    lab = leakage_lab(clips, {"x": np.random.default_rng(0).normal(size=(len(clips), 3))}, repeats=2)
    assert set(lab["split"]) == {"random"} and "no group splits in the lab: too few groups" in capsys.readouterr().out
    assert list(leakage_table(lab)) == ["random splits"] and "can't be measured" in audit.leakage_reading(lab, 0.5, 0.1)


def test_lab_shows_what_leakage_is_worth():
    """Features that tell the group and nothing else: right under random splits, chance under whole groups."""
    clips = clip_table(12, 4)
    rng = np.random.default_rng(0)
    codes = pd.factorize(clips["label"] + clips["group"])[0]
    scenes = rng.normal(size=(codes.max() + 1, 40))[codes] + 0.05 * rng.normal(size=(len(clips), 40))
    actions = np.eye(3)[pd.factorize(clips["label"])[0]] + 0.05 * rng.normal(size=(len(clips), 3))
    lab = leakage_lab(clips, {"scene": scenes, "action": actions}, repeats=4)
    mean = lab.groupby(["representation", "split"])["accuracy"].mean()
    assert mean["scene", "random"] > 0.9 and mean["scene", "group"] < 0.6
    assert mean["action", "random"] == mean["action", "group"] == 1.0
    assert (lab.loc[lab["split"] == "group", "shared_groups"] == 0).all() and len(lab) == 16
    assert leakage_table(lab).loc["action", "difference of the means"] == "+0.000"
    said = audit.leakage_reading(lab, *same_group_neighbours(clips, scenes))
    assert "nearest other clip, by these frozen features, is of their own group" in said and "100% of the clips" in said
    assert "points from leakage" in said.split("With the action")[0] and "no gain" in said.split("With the action")[1]
    near, chance = same_group_neighbours(clips, scenes)
    assert near == 1.0 and chance == pytest.approx(3 / (len(clips) - 1))
    assert same_group_neighbours(clips, rng.normal(size=scenes.shape))[0] < 0.15
    assert "can't be measured" in audit.leakage_reading(lab, 0.0, 0.0)


def test_the_lab_takes_some_of_many_classes_and_tells_it(capsys):
    clips = pd.DataFrame([{"clip_path": f"/{label}/{name}", "clip_name": name, "label": label, "group": group}
                          for label in [f"{number:02d}" for number in range(30)]
                          for group in [f"g{number:02d}" for number in range(1, 9)]
                          for name in [f"v_{label}_{group}_c01.avi"]])
    own = clips["label"].astype(int).to_numpy()[:, None] == np.arange(30)
    lab = leakage_lab(clips, {"class": own.astype(float)}, repeats=1)
    assert "15 of 30 classes" in capsys.readouterr().out
    assert lab["accuracy"].tolist() == [1.0, 1.0] and lab["test_clips"].max() <= 15 * 8
