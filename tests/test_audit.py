"""What a data set holds and what in it could mislead: clips with known faults, shortcuts and groups."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import data
from conftest import REAL_CLIPS
from studies import audit
from studies.audit import (
    check_clips,
    check_table,
    findings,
    group_overlap,
    leakage_lab,
    leakage_table,
    load_or_check,
    same_group_neighbours,
    shortcut_scores,
    split_kinds,
)
from videos import splits


def write_video(path: Path, frames: np.ndarray, fps: float = 10.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(frame)
    writer.release()


def noise(frames: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


@pytest.fixture
def videos(tmp_path):
    """Eight clips per class, of 10 to 17 frames, split by group."""
    for number, label in enumerate(("A", "B")):
        for group in range(8):
            write_video(tmp_path / label / f"v_{label}_g{group + 1:02d}_c01.avi", noise(10 + group, 8 * number + group))
    splits.ensure_splits(tmp_path, tmp_path / "splits", "group")
    return tmp_path


def table_of(root: Path) -> pd.DataFrame:
    return pd.concat([t.assign(part=part) for part, t in splits.read_split(root / "splits").items()], ignore_index=True)


def test_check_reports_frames_time_and_format(videos):
    report = check_clips(videos, splits.scan_clips(videos))
    assert report["frames"].tolist() == [*range(10, 18)] * 2
    assert report["duration"].tolist() == [frames / 10 for frames in report["frames"]]
    assert set(report["codec"]) == {"MJPG"} and set(report["width"]) == {64} and set(report["height"]) == {48}
    assert set(report["status"]) == {"ok"} and set(report["duplicate_of"]) == {""}
    size = (videos / "A" / "v_A_g01_c01.avi").stat().st_size
    assert report["kbit_per_second"][0] == pytest.approx(size * 8 / 1000 / 1.0)
    assert check_table(report).loc["B"].tolist() == [8, 0, 0, 0, "10-17", 10.8, "10", "64x48", "MJPG"]


@pytest.mark.parametrize("fps", [10.0, 20.0])
def test_motion_is_in_frame_heights_a_second_and_colour_in_lab(tmp_path, fps):
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (240, 640, 3), dtype=np.uint8), (0, 0), 3)
    write_video(tmp_path / "moves.avi", np.stack([texture[:, 4 * i:4 * i + 320] for i in range(30)]), fps)
    red = np.zeros((30, 240, 320, 3), np.uint8)
    red[..., 2] = 255
    write_video(tmp_path / "red.avi", red, fps)
    clips = pd.DataFrame({"clip_path": ["/moves.avi", "/red.avi"], "label": "x", "group": ["1", "2"]})
    report = check_clips(tmp_path, clips)
    assert report["motion"].tolist() == pytest.approx([4 / 240 * fps, 0], rel=0.1, abs=0.01)
    assert report.loc[1, ["mean_l", "mean_a", "mean_b"]].tolist() == pytest.approx([53.2, 80.1, 67.2], abs=2.5)


def test_a_report_is_reused_until_a_clip_changes(videos, capfd):
    clips, path = table_of(videos), videos / "report" / "check.csv"
    first = load_or_check(videos, clips, path)
    capfd.readouterr()
    again = load_or_check(videos, clips, path)
    assert "reloaded" in capfd.readouterr().out
    pd.testing.assert_frame_equal(again[first.columns], first, check_dtype=False)
    write_video(videos / clips["clip_path"][3].lstrip("/"), noise(25, 99))
    changed = load_or_check(videos, clips, path)
    assert "reloaded" not in capfd.readouterr().out and changed["frames"][3] == 25


def test_check_finds_bad_clips_and_duplicates_across_parts(videos, capfd, monkeypatch):
    parts = {name: part["clip_path"].tolist() for name, part in splits.read_split(videos / "splits").items()}
    train, spare, test = parts["train"][0], parts["train"][-1], parts["test"][0]
    shutil.copy(f"{videos}{min(train, test)}", f"{videos}{max(train, test)}")
    (videos / "B" / "unreadable.avi").write_bytes(b"\0" * 5000)
    cut = Path(f"{videos}{spare}")
    cut.write_bytes(cut.read_bytes()[:cut.stat().st_size // 2])
    monkeypatch.setattr(data, "locate", lambda dataset: (dataset, videos, videos / "results"))
    with pytest.raises(SystemExit, match="unreadable: remove them and fetch or import them again"):
        data.main(["check", "mine"])
    printed = capfd.readouterr().out
    duplicate = f"duplicate: {max(train, test)} = {min(train, test)}"
    assert duplicate in printed
    both = "train and test" if train > test else "test and train"
    assert f"{duplicate} ({both})" in findings(check_clips(videos, table_of(videos)))
    assert "unreadable: /B/unreadable.avi (0 frames)" in printed and f"truncated: {spare}" in printed
    table = check_table(pd.read_csv(videos / "results" / "dataset" / "check.csv", keep_default_na=False))
    assert table[["clips", "unreadable", "truncated", "duplicates"]].sum().tolist() == [17, 1, 1, 1]


def test_check_of_a_class_without_a_readable_clip(videos):
    for path in (videos / "B").iterdir():
        path.write_bytes(path.name.encode())
    report = check_clips(videos, splits.scan_clips(videos))
    assert check_table(report).loc["B", "unreadable"] == 8 and check_table(report).loc["A", "frames"] == "10-17"
    assert len(findings(report)) == 8


def test_check_names_a_missing_data_set():
    with pytest.raises(SystemExit, match=r"^error: DATASET=no/such/folder"):
        data.main(["check", "no/such/folder"])


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the real clips of shared/ucf101 are not here")
def test_real_clips_are_whole_and_different():
    report = check_clips(REAL_CLIPS, splits.scan_clips(REAL_CLIPS))
    assert set(report["status"]) == {"ok"} and set(report["duplicate_of"]) == {""}
    assert report["motion"].between(0.001, 2).all() and report["kbit_per_second"].between(50, 2000).all()


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
