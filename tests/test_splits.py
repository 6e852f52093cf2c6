"""Splits: what every kind promises, shown on generated data, on UCF-101's size and on real clips."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from config import ROOT
from conftest import REAL_CLIPS
from videos.splits import (
    COLUMNS,
    KINDS,
    PARTS,
    check_leakage,
    ensure_splits,
    group_folds,
    group_of,
    has_groups,
    leakage_warning,
    make_split,
    read_split,
    scan_clips,
    split_hash,
    split_parts,
    split_table,
    write_split,
)

COUNTS = {"PullUps": 100, "Punch": 160, "PushUps": 102}


def clips_of(sizes: dict[str, list[int]]) -> pd.DataFrame:
    """A table of clips from the number of clips in each group, g01 onwards, of each class."""
    names = [(label, f"v_{label}_g{group:02d}_c{clip:02d}.avi") for label, groups in sizes.items()
             for group, size in enumerate(groups, 1) for clip in range(1, size + 1)]
    rows = [(name, f"/{label}/{name}", label, group_of(name)) for label, name in names]
    return pd.DataFrame(rows, columns=COLUMNS)


def spread(clips: int, groups: int = 25) -> list[int]:
    return [clips // groups + (group < clips % groups) for group in range(groups)]


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


three_classes = clips_of({label: spread(count) for label, count in COUNTS.items()})


@pytest.mark.parametrize("name, group", [
    ("v_PullUps_g07_c04.avi", "g07"), ("/Punch/v_Punch_g25_c01.avi", "g25"), ("holiday.mp4", "holiday"),
    ("my_g1_walk.mov", "my_g1_walk"), ("a.b.mkv", "a.b")])
def test_group_of(name, group):
    assert group_of(name) == group


def test_scan_lists_videos_of_class_folders_only(tmp_path):
    touch(tmp_path, "B/v_B_g01_c01.avi", "A/x.MP4", "A/.tmp-1-y.mp4", "A/notes.txt", "splits/z.avi",
          ".hid/z.avi", "empty/readme.md", "stray.avi")
    clips = scan_clips(tmp_path)
    assert clips.values.tolist() == [["x.MP4", "/A/x.MP4", "A", "x"],
                                     ["v_B_g01_c01.avi", "/B/v_B_g01_c01.avi", "B", "g01"]]
    assert list(clips.columns) == COLUMNS
    touch(tmp_path, "C/c.webm")
    assert set(scan_clips(tmp_path, ["C", "A"])["label"]) == {"A", "C"}


@pytest.mark.parametrize("files, classes, error, words", [
    ([], None, FileNotFoundError, "no clips in"),
    (["A/a.avi", "B/b.avi"], ["A", "Z"], FileNotFoundError, "has no clips of Z: .*A, B"),
    (["A/a.avi", "B/b.avi"], ["A"], ValueError, "at least two classes .*A, B"),
    (["A/a.avi"], None, ValueError, "at least two classes")])
def test_scan_errors_name_folder_and_cure(tmp_path, files, classes, error, words):
    touch(tmp_path, *files)
    with pytest.raises(error, match=words) as caught:
        scan_clips(tmp_path, classes)
    assert str(tmp_path) in str(caught.value)


def test_scan_of_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: name a folder"):
        scan_clips(tmp_path / "nowhere")


sizes_of_class = st.lists(st.integers(1, 8), min_size=3, max_size=30)
data_sets = st.dictionaries(st.sampled_from("ABCDE"), sizes_of_class, min_size=2, max_size=4)
sizes_of_25_groups = st.lists(st.integers(1, 8), min_size=25, max_size=25)
seeds = st.integers(0, 10_000)


def assert_partition(clips, split):
    """Every clip is in exactly one part, every class in each part, and rows are sorted by path."""
    assert split["clip_path"].tolist() == sorted(clips["clip_path"])
    assert set(split["part"]) <= set(PARTS)
    counts = pd.crosstab(split["label"], split["part"]).reindex(columns=PARTS, fill_value=0)
    assert (counts > 0).all(axis=None)
    check_leakage(split_parts(split))


@given(data_sets, seeds)
@settings(deadline=None, max_examples=30)
def test_group_split_keeps_groups_whole_and_counts_near_the_target(sizes, seed):
    clips = clips_of(sizes)
    split = make_split(clips, "group", seed)
    assert_partition(clips, split)
    assert check_leakage(split_parts(split)).empty
    pd.testing.assert_frame_equal(split, make_split(clips.sample(frac=1, random_state=seed), "group", seed))
    for label, groups in sizes.items():
        parts = split.loc[split["label"] == label, "part"].value_counts()
        if len(groups) >= 8:
            assert abs(parts["val"] - sum(groups) / 8) <= max(groups) / 2
            assert abs(parts["test"] - sum(groups) / 8) <= max(groups) / 2


@given(st.dictionaries(st.sampled_from("ABCDE"), st.integers(8, 80), min_size=2, max_size=4), seeds)
@settings(deadline=None, max_examples=30)
def test_random_split_is_stratified_by_class(counts, seed):
    clips = clips_of({label: spread(count) for label, count in counts.items()})
    split = make_split(clips, "random", seed)
    assert_partition(clips, split)
    pd.testing.assert_frame_equal(split, make_split(clips.sample(frac=1, random_state=seed), "random", seed))
    for label, count in counts.items():
        parts = split.loc[split["label"] == label, "part"].value_counts()
        assert abs(parts["val"] - count / 8) <= 1 and abs(parts["test"] - count / 8) <= 1


@given(st.dictionaries(st.sampled_from("ABC"), sizes_of_25_groups, min_size=2), st.integers(1, 3), seeds)
@settings(deadline=None, max_examples=15)
def test_official_splits_follow_group_numbers(sizes, number_of_split, seed):
    kind, first = f"official{number_of_split}", 7 * number_of_split - 6
    clips = clips_of(sizes)
    split = make_split(clips.sample(frac=1, random_state=seed), kind)
    assert_partition(clips, split)
    assert check_leakage(split_parts(split)).empty
    number = split["group"].str[1:].astype(int)
    assert set(number[split["part"] == "test"]) == set(range(first, first + 7))
    assert set(number[split["part"] == "val"]) == set(range(22, 26))


def test_seeds_give_different_splits():
    for kind in ("group", "random"):
        assert len({split_hash(split_parts(make_split(three_classes, kind, seed))) for seed in range(5)}) == 5


def test_random_gives_271_45_46():
    table = split_table(split_parts(make_split(three_classes, "random")))
    assert table.loc["total"].tolist() == [271, 45, 46, 362]
    assert table["total"].tolist() == [100, 160, 102, 362]


@pytest.mark.parametrize("sizes, kind, words", [
    ({"A": [4] * 6, "B": [2] * 25}, "official1", "A without a clip for train and val .*g06.*SPLIT=group"),
    ({"A": [1] * 26, "B": [1] * 25}, "official2", "g01 to g25.*/A/v_A_g26_c01.avi.*SPLIT=group"),
    ({"A": [5, 5], "B": [1] * 9}, "group", "too few groups in A: it has 2.*SPLIT=random"),
    ({"A": [1, 1], "B": [1] * 9}, "random", "A has 2; give every class at least 8"),
    ({"A": [1] * 9, "B": [1] * 9}, "kfold", "no split 'kfold': there are official1")])
def test_split_errors_name_class_and_cure(sizes, kind, words):
    with pytest.raises(ValueError, match=words):
        make_split(clips_of(sizes), kind)


@pytest.mark.parametrize("sizes", [[100, 1, 1], [1, 1, 100], [100, 100, 100], [1, 1, 1], [7, 1, 50, 2]])
def test_three_groups_are_enough_however_uneven(sizes):
    for seed in range(10):
        clips = clips_of({"A": sizes, "B": [1] * 25})
        assert_partition(clips, make_split(clips, "group", seed))


def test_own_videos_are_each_their_own_group(tmp_path):
    touch(tmp_path, *(f"{label}/{i}.mp4" for label in "AB" for i in range(16)))
    clips = scan_clips(tmp_path)
    assert not has_groups(clips) and has_groups(three_classes)
    split = make_split(clips, "group")
    assert split_table(split_parts(split)).loc["A"].tolist() == [12, 2, 2, 16]
    assert check_leakage(split_parts(split)).empty  # /A/1.mp4 and /B/1.mp4 are different videos


def test_write_and_read(tmp_path):
    split = make_split(three_classes, "official1")
    paths = write_split(split, tmp_path / "new" / "splits")
    assert [path.name for path in paths.values()] == ["train.csv", "val.csv", "test.csv"]
    assert paths["val"].read_text().splitlines()[0] == "clip_name,clip_path,label,group"
    parts = read_split(tmp_path / "new" / "splits")
    for name in PARTS:
        pd.testing.assert_frame_equal(parts[name], split_parts(split)[name])
    assert sorted(os.listdir(tmp_path / "new" / "splits")) == ["test.csv", "train.csv", "val.csv"]


def test_a_write_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    write_split(make_split(three_classes, "official1"), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = pd.DataFrame.to_csv

    def full_disk(table, path, **options):
        if "test" in path.name:
            raise OSError(28, "No space left on device")
        real(table, path, **options)

    monkeypatch.setattr(pd.DataFrame, "to_csv", full_disk)
    with pytest.raises(OSError):
        write_split(make_split(three_classes, "random"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_csv_of_only_path_and_label_gets_names_and_groups(tmp_path):
    for name in PARTS:
        (tmp_path / f"{name}.csv").write_text(f"label,clip_path,note\nNA,{name}/NA/v_NA_g03_c01.avi,x\n")
    row = ["v_NA_g03_c01.avi", "/val/NA/v_NA_g03_c01.avi", "NA", "g03"]
    assert read_split(tmp_path)["val"].values.tolist() == [row]


@pytest.mark.parametrize("text", ["", "clip_path\n/A/a.avi\n", "clip_path,label\n"])
def test_a_csv_that_is_no_split(tmp_path, text):
    for name in PARTS:
        (tmp_path / f"{name}.csv").write_text(text)
    with pytest.raises(ValueError, match=r"train.csv needs the columns clip_path and label"):
        read_split(tmp_path)


def test_leakage_of_groups_is_found_a_class_at_a_time():
    parts = split_parts(make_split(three_classes, "group"))
    assert check_leakage(parts).empty and leakage_warning(check_leakage(parts)) == ""
    moved = parts["train"].iloc[[0]]
    parts = {**parts, "train": parts["train"].iloc[1:], "test": pd.concat([parts["test"], moved])}
    shared = check_leakage(parts)
    assert shared.values.tolist() == [[moved["label"].iloc[0], moved["group"].iloc[0], "train, test"]]
    warning = leakage_warning(shared)
    assert "1 group is in more than one part" in warning and "\n" not in warning


def test_a_clip_in_two_parts_is_an_error():
    parts = split_parts(make_split(three_classes, "group"))
    parts["val"] = pd.concat([parts["val"], parts["test"].iloc[[0]]])
    with pytest.raises(ValueError, match=parts["test"]["clip_path"].iloc[0]):
        check_leakage(parts)


def test_hash_is_of_the_set_of_clips():
    parts = split_parts(make_split(three_classes, "group"))
    shuffled = {name: parts[name].sample(frac=1, random_state=0) for name in reversed(PARTS)}
    assert split_hash(shuffled) == split_hash(parts)
    assert split_hash({**parts, "val": parts["val"].iloc[1:]}) != split_hash(parts)
    assert split_hash({**parts, "val": parts["test"], "test": parts["val"]}) != split_hash(parts)


def test_ensure_makes_splits_once_and_respects_a_users_own(tmp_path):
    touch(tmp_path, *(path[1:] for path in three_classes["clip_path"]))
    folder = tmp_path / "splits"
    paths = ensure_splits(tmp_path, folder, "official1", COUNTS)
    assert split_table(read_split(folder)).loc["total"].tolist() == [199, 56, 107, 362]
    before = {name: path.read_bytes() for name, path in paths.items()}
    assert ensure_splits(tmp_path, folder, "random", COUNTS) == paths
    assert {name: path.read_bytes() for name, path in paths.items()} == before
    with pytest.raises(ValueError, match=r"hold PullUps, Punch, PushUps, not PullUps, Punch: .*move the"):
        ensure_splits(tmp_path, folder, "official1", iter(["Punch", "PullUps"]))
    paths["val"].unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks val.csv"):
        ensure_splits(tmp_path, folder, "official1")


def test_command_line(tmp_path, capsys):
    touch(tmp_path, *(path[1:] for path in three_classes["clip_path"]))
    data.main(["split", str(tmp_path), "--classes", "Punch", "PullUps"])
    printed = capsys.readouterr().out
    assert "Punch" in printed and "total" in printed and "written (group)" in printed
    assert "in more than one part" not in printed
    write_split(make_split(scan_clips(tmp_path), "random"), tmp_path / "splits")
    before = (tmp_path / "splits" / "train.csv").read_bytes()
    data.main(["split", str(tmp_path), "--classes", "all"])
    printed = capsys.readouterr().out
    assert "kept as they were" in printed and "groups are in more than one part" in printed
    assert (tmp_path / "splits" / "train.csv").read_bytes() == before
    (tmp_path / "splits" / "val.csv").unlink()
    with pytest.raises(SystemExit, match=r"error: .*lacks val\.csv") as stopped:
        data.main(["split", str(tmp_path)])
    assert "\n" not in str(stopped.value)


sizes_of_groups = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=9), min_size=2, max_size=4)


@given(sizes_of_groups, st.integers(2, 6), seeds)
@settings(deadline=None, max_examples=40)
def test_folds_hold_every_clip_out_once_and_share_no_group(sizes, most, seed):
    clips = clips_of({f"c{label}": groups for label, groups in enumerate(sizes)})
    folds, how = group_folds(clips, most, True, seed)
    assert len(folds) == min(most, min(map(len, sizes))) and how == f"{len(folds)} folds of whole groups"
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(clips)))
    pairs = clips["label"] + clips["group"]
    for fit, held_out in folds:
        assert sorted([*fit, *held_out]) == list(range(len(clips)))
        assert not set(pairs[fit]) & set(pairs[held_out])
        assert set(clips["label"][fit]) == set(clips["label"])
    again, _ = group_folds(clips, most, True, seed)
    assert all(np.array_equal(a, b) for a, b in zip(sum(folds, ()), sum(again, ()), strict=True))


def test_folds_of_single_clips_are_stratified_and_said():
    clips = clips_of({"a": [1] * 10, "b": [1] * 20})
    folds, how = group_folds(clips, 5, False, 0)
    assert how == "5 folds of single clips, since the clips name no groups"
    for _, held_out in folds:
        assert clips["label"].iloc[held_out].value_counts().to_dict() == {"a": 2, "b": 4}


def test_folds_where_a_class_has_one_group_or_one_clip():
    clips = clips_of({"a": [2, 2], "b": [4]})
    folds, how = group_folds(clips, 5, True, 0)
    assert how == "4 folds of single clips, since a class has one group only" and len(folds) == 4
    with pytest.raises(ValueError, match="b has one clip"):
        group_folds(clips.iloc[:5], 5, True, 0)


def test_ucf101_sized_tree_takes_seconds_and_little_memory(tmp_path):
    """13,320 clips, 101 classes of 25 groups: scanned, split each way, read, checked and counted in a process."""
    pytest.importorskip("resource", reason="this system doesn't tell a process's peak memory so")
    for number in range(101):
        clips = clips_of({f"Class{number:03d}": spread(131 + (number < 89))})
        touch(tmp_path, *(path[1:] for path in clips["clip_path"]))
    program = (
        "import json, resource, sys, time; start = time.perf_counter(); from videos import splits\n"
        "clips = splits.scan_clips(sys.argv[1])\n"
        "for kind in splits.KINDS:\n"
        "    splits.write_split(splits.make_split(clips, kind), sys.argv[2])\n"
        "    parts = splits.read_split(sys.argv[2])\n"
        "    splits.split_table(parts), splits.check_leakage(parts), splits.split_hash(parts)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps([len(clips), time.perf_counter() - start, peak]))\n")
    # A shell in between: a process keeps the peak of the one that it replaced, here the whole test run's.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", program, tmp_path, tmp_path / "splits"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(command, capture_output=True, env=environment, text=True, check=True)
    clips, seconds, peak = json.loads(result.stdout.splitlines()[-1])
    print(f"{clips} clips, {len(KINDS)} splits: {seconds:.1f} s, {peak / 1e6:.0f} MB")
    assert clips == 13_320 and seconds < 60 and peak < 1e9


@pytest.mark.skipif(not REAL_CLIPS.is_dir(), reason="the real clips of shared/ucf101 are not here")
def test_real_clips_with_six_groups_in_one_class_and_25_in_the_other():
    clips = scan_clips(REAL_CLIPS)
    by_group, at_random = (split_parts(make_split(clips, kind)) for kind in ("group", "random"))
    print(split_table(by_group), split_table(at_random), sep="\n")
    assert split_table(by_group)["total"].tolist() == [31, 50, 81]
    assert check_leakage(by_group).empty and len(check_leakage(at_random)) > 0
    with pytest.raises(ValueError, match="Punch without a clip for train and val"):
        make_split(clips, "official1")
