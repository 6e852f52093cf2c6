"""Splits: what every kind promises, shown on generated data, on UCF-101's size and on real clips."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import ROOT
from conftest import REAL_CLIPS
from videos import split_files
from videos.folder import COLUMNS, PARTS, group_of, has_groups, scan_clips
from videos.split_files import ensure_splits, read_part, read_split, write_split
from videos.splits import (
    KINDS,
    check_leakage,
    group_folds,
    leakage_warning,
    make_split,
    split_hash,
    split_parts,
    split_table,
    united,
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
    touch(tmp_path, "B/v_B_g01_c01.avi", "A/x.MP4", "A/.tmp-1-y.mp4", "A/notes.txt", "splits/z.avi", "splits/train.csv",
          ".hid/z.avi", "empty/readme.md", "stray.avi")
    clips = scan_clips(tmp_path)
    assert clips.values.tolist() == [["x.MP4", "/A/x.MP4", "A", "x"],
                                     ["v_B_g01_c01.avi", "/B/v_B_g01_c01.avi", "B", "g01"]]
    assert list(clips.columns) == COLUMNS
    touch(tmp_path, "C/c.webm")
    assert set(scan_clips(tmp_path, ["C", "A"])["label"]) == {"A", "C"}


@pytest.mark.parametrize("files, classes, error, words", [
    ([], None, FileNotFoundError, "no clips in"),
    (["A/a.avi", "B/b.avi"], ["A", "Z"], ValueError, "no class Z: there are CLASSES='A B'"),
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
@settings(max_examples=30)
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
@settings(max_examples=30)
def test_random_split_is_stratified_by_class(counts, seed):
    clips = clips_of({label: spread(count) for label, count in counts.items()})
    split = make_split(clips, "random", seed)
    assert_partition(clips, split)
    pd.testing.assert_frame_equal(split, make_split(clips.sample(frac=1, random_state=seed), "random", seed))
    for label, count in counts.items():
        parts = split.loc[split["label"] == label, "part"].value_counts()
        assert abs(parts["val"] - count / 8) <= 1 and abs(parts["test"] - count / 8) <= 1


@given(st.dictionaries(st.sampled_from("ABC"), sizes_of_25_groups, min_size=2), st.integers(1, 3), seeds)
@settings(max_examples=15)
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
    ({"A": [5, 5], "B": [1] * 9, "C": [8], "D": [2] * 4}, "group",
     "too few groups.*: A has 2, C has 1; add clips, or leave them out with CLASSES='B D', or use SPLIT=random"),
    ({"A": [1, 1], "B": [1] * 9}, "group", "A has 2; add clips$"),
    ({"A": [1, 1], "B b": [1] * 9, "C$": [1] * 9}, "random", r"A has 2; add clips, or leave them out with CLASSES="),
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


def with_contents(clips: pd.DataFrame) -> pd.DataFrame:
    """The clips with a content of their own each."""
    return clips.assign(sha256=["content of " + path for path in clips["clip_path"]])


def parts_of(paths: dict[str, Path]) -> dict[str, str]:
    """Part of each clip_path."""
    return {clip: part for part, path in paths.items() for clip in read_part(path)["clip_path"]}


def test_a_split_is_made_once_and_a_users_own_is_respected(tmp_path):
    clips, folder = with_contents(three_classes), tmp_path / "splits"
    paths, kind, lines = ensure_splits(clips, folder, "official1")
    assert kind == "official1"
    assert split_table(read_split(folder)).loc["total"].tolist() == [199, 56, 107, 362] and lines == []
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert ensure_splits(clips, folder, "official1", seed=7) == (paths, "official1", [])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert "made anew" in ensure_splits(clips, folder, "random").lines[0]

    own = write_split(make_split(three_classes[three_classes["label"] != "Punch"], "random"), tmp_path / "own")
    before = {path: path.read_bytes() for path in own.values()}
    used, kind, lines = ensure_splits(clips, tmp_path / "own", "group")
    assert used == own and kind == "given" and {path: path.read_bytes() for path in own.values()} == before
    assert len(lines) == 1 and lines[0].startswith("160 clips are in none of the CSVs") and "left out" in lines[0]
    with pytest.raises(FileNotFoundError, match=r"^102 clips of the split in .*own are not there") as stopped:
        ensure_splits(clips[clips["label"] == "PullUps"], tmp_path / "own", "group")
    assert str(stopped.value).count("/PushUps/") == 102  # all of them at once
    own["val"].unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks val.csv"):
        ensure_splits(clips, tmp_path / "own", "official1")


def test_a_split_that_was_edited_by_hand_is_the_users(tmp_path):
    clips = with_contents(three_classes)
    paths = ensure_splits(clips, tmp_path, "group").paths
    table = pd.read_csv(paths["train"])
    table.iloc[1:].to_csv(paths["train"], index=False)
    lines = ensure_splits(clips, tmp_path, "group").lines
    assert "were changed by hand" in lines[0] and lines[1].startswith("1 clips are in none of the CSVs")
    assert len(pd.read_csv(paths["train"])) == len(table) - 1


@given(data_sets, data_sets, seeds)
@settings(max_examples=25)
def test_what_had_a_part_keeps_it_when_clips_are_added_and_removed(before, after, seed):
    """Whatever is added, removed or relabelled: groups stay whole and where they were, so that no test clip trains."""
    with tempfile.TemporaryDirectory() as folder:
        old = parts_of(ensure_splits(with_contents(clips_of(before)), folder, "group", seed)[0])
        clips = with_contents(clips_of(after))
        paths, _, lines = ensure_splits(clips, folder, "group", seed)
        new, changed = parts_of(paths), set(old) != set(clips["clip_path"])
        assert sorted(new) == sorted(clips["clip_path"])
        assert len(lines) == changed
        if changed and "extended" in lines[0]:
            by_group = {path.rsplit("_", 1)[0]: part for path, part in old.items()}
            assert all(by_group.get(path.rsplit("_", 1)[0], part) in (part, "train") for path, part in new.items())
            assert not [path for path, part in new.items() if part == "train" and old.get(path, part) != part]
        parts = read_split(folder)
        assert check_leakage(parts).empty and all(set(its["label"]) == set(after) for its in parts.values())
        assert ensure_splits(clips, folder, "group", seed) == (paths, "group", [])


def test_added_clips_and_classes_are_dealt_out_and_said(tmp_path):
    clips = with_contents(clips_of({"A": [2] * 8, "B": [2] * 8}))
    old = parts_of(ensure_splits(clips, tmp_path, "group")[0])
    grown = with_contents(clips_of({"A": [2] * 16, "B": [2] * 8, "C": [1] * 8}))
    paths, _, lines = ensure_splits(grown, tmp_path, "group")
    new = parts_of(paths)
    assert {path: new[path] for path in old} == old
    assert split_table(read_split(tmp_path))[["val", "test"]].T.to_numpy().tolist() == [[4, 2, 1, 7]] * 2
    assert lines == [f"the clips changed (24 added); the split in {tmp_path} was extended: what had a part keeps it"]


@pytest.mark.parametrize("kind", ["group", "random"])
def test_a_relabelled_clip_keeps_its_part(tmp_path, kind):
    clips = with_contents(clips_of({"A": [1] * 16, "B": [1] * 16}))
    old = parts_of(ensure_splits(clips, tmp_path, kind)[0])
    moved = next(path for path, part in old.items() if part == "test" and path.startswith("/A"))
    there, columns = moved.replace("A", "B").replace("_g", "_moved_g"), ["clip_path", "clip_name", "label", "group"]
    clips.loc[clips["clip_path"] == moved, columns] = [there, there[3:], "B", "g40"]
    paths, _, lines = ensure_splits(clips, tmp_path, kind)
    assert parts_of(paths)[there] == "test" and "(1 moved or relabelled)" in lines[0]


def test_exchanged_contents_are_another_split_with_the_same_rows(tmp_path):
    clips = with_contents(clips_of({"A": [1] * 8, "B": [1] * 8}))
    paths = ensure_splits(clips, tmp_path, "group").paths
    contents = dict(zip(clips["clip_path"], clips["sha256"], strict=True))
    before, rows = split_hash(read_split(tmp_path), contents), {part: path.read_text() for part, path in paths.items()}
    first, second = clips["clip_path"].iloc[[0, -1]]
    contents[first], contents[second] = contents[second], contents[first]
    clips["sha256"] = clips["clip_path"].map(contents)
    lines = ensure_splits(clips, tmp_path, "group").lines
    assert "(2 with other content)" in lines[0]
    assert {part: path.read_text() for part, path in paths.items()} == rows
    assert split_hash(read_split(tmp_path), contents) != before


def test_where_too_little_is_left_the_split_is_made_anew(tmp_path):
    clips = with_contents(clips_of({"A": [1] * 8, "B": [1] * 8}))
    old = parts_of(ensure_splits(clips, tmp_path, "group")[0])
    left = clips[[old[path] == "train" or path.startswith("/B") for path in clips["clip_path"]]]
    paths, _, lines = ensure_splits(left, tmp_path, "group")
    assert "made anew" in lines[0] or set(parts_of(paths).values()) == set(PARTS)
    assert check_leakage(read_split(tmp_path)).empty
    assert all(set(its["label"]) == {"A", "B"} for its in read_split(tmp_path).values())


@pytest.mark.parametrize("kind", ["group", "random"])
def test_contents_keep_their_part_when_files_are_renumbered(tmp_path, kind):
    names = [f"{label}_{number:03d}.avi" for label in "ab" for number in range(24)]
    clips = pd.DataFrame([(name, f"/{name[0]}/{name}", name[0], name[:-4]) for name in names], columns=COLUMNS)
    clips["sha256"] = [f"content {name}" for name in names]
    first = parts_of(ensure_splits(clips, tmp_path, kind).paths)
    had = {content: first[path] for path, content in zip(clips["clip_path"], clips["sha256"], strict=True)}
    kept = clips["sha256"][[name[2:] != "002.avi" for name in names]].tolist()  # number 2 goes, the others move up
    left = clips[[name[2:] != "023.avi" for name in names]].assign(sha256=kept)
    paths, _, lines = ensure_splits(left, tmp_path, kind)
    now = parts_of(paths)
    moved = [(had[content], now[path]) for path, content in zip(left["clip_path"], left["sha256"], strict=True)]
    assert not [pair for pair in moved if pair[1] == "train" and pair[0] != "train"]
    assert "2 removed" in lines[0] and "with other content" in lines[0]


@pytest.mark.parametrize("kind", ["group", "random", "given"])
def test_clips_that_were_away_for_a_while_keep_their_part(tmp_path, kind):
    clips = with_contents(clips_of({"A": [1] * 24, "B": [1] * 24})).assign(part="train")
    first = parts_of(ensure_splits(clips, tmp_path, kind).paths)
    tested = {path for path, part in first.items() if part != "train"}
    others = with_contents(clips_of({"A": [1] * 40, "B": [1] * 40})).assign(part="train")
    others = others[~others["clip_path"].isin(first)]
    ensure_splits(pd.concat([clips.query("clip_path not in @tested"), others], ignore_index=True), tmp_path, kind)
    last = parts_of(ensure_splits(pd.concat([clips, others], ignore_index=True), tmp_path, kind).paths)
    assert {path: last[path] for path in tested} == {path: first[path] for path in tested}


def test_a_split_whose_writing_was_interrupted_is_written_again(tmp_path, monkeypatch):
    clips = with_contents(clips_of({"A": [1] * 8, "B": [1] * 8}))
    first = parts_of(ensure_splits(clips, tmp_path, "group").paths)
    grown = with_contents(clips_of({"A": [1] * 12, "B": [1] * 8}))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(split_files, "write_split", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure_splits(grown, tmp_path, "group")
    paths, kind, _ = ensure_splits(grown, tmp_path, "group")
    last = parts_of(paths)
    assert kind == "group" and len(last) == 20 and {path: last[path] for path in first} == first
    assert ensure_splits(grown, tmp_path, "group").lines == []


def test_a_record_that_is_none_is_named(tmp_path):
    clips = with_contents(clips_of({"A": [1] * 8, "B": [1] * 8}))
    ensure_splits(clips, tmp_path, "group")
    (tmp_path / "split.json").write_text("{\"kind\": \"group\"}")
    with pytest.raises(ValueError, match=r"split\.json: not what a split was made of: move it"):
        ensure_splits(clips, tmp_path, "group")


# ---------------------------------------------------------------- copies

@given(data_sets, seeds, st.data())
@settings(max_examples=30)
def test_copies_are_kept_in_one_part(sizes, seed, draws):
    clips = clips_of(sizes)
    numbers = st.lists(st.integers(0, len(clips) - 1), min_size=2, max_size=3, unique=True)
    copies = clips["clip_path"].copy()
    for rows in draws.draw(st.lists(numbers, max_size=3)):
        copies.iloc[rows] = copies.iloc[rows[0]]
    for kind in ("group", "random"):
        table = united(clips, copies) if kind == "group" else clips.assign(copy_of=copies)
        try:
            split = make_split(table.assign(copy_of=copies), kind, seed)
        except ValueError as error:  # too few are left that are not tied together
            assert "too few" in str(error) or "is left for" in str(error)
            continue
        part = split.set_index("clip_path")["part"]
        assert (part[clips["clip_path"]].groupby(copies.to_numpy()).nunique() == 1).all()
        if kind == "group":
            assert check_leakage(split_parts(split)).empty


def test_groups_that_show_the_same_clip_are_one():
    clips = clips_of({"A": [2] * 4, "B": [2] * 4})
    copies = clips["clip_path"].copy()
    assert united(clips, copies).equals(clips)
    copies.iloc[2] = copies.iloc[0]  # A g02 and A g01
    copies.iloc[8] = copies.iloc[6]  # B g01 and A g04
    groups = united(clips, copies)["group"].tolist()
    assert groups == ["g01=/g02"] * 4 + ["g03"] * 2 + ["=/A/g04=//B/g01"] * 4 + ["g02"] * 2 + ["g03"] * 2 + ["g04"] * 2
    folds, how = group_folds(united(clips, copies), 3, False, 0)
    assert "copies kept together" in how
    assert all(len({6, 7, 8, 9} & set(held_out)) in (0, 4) for _, held_out in folds)


# ---------------------------------------------------------------- given parts, and lists as people write them

def test_given_parts_are_kept_and_a_missing_one_is_taken_from_train():
    clips = clips_of({"A": [2] * 8, "B": [2] * 8})
    given_parts = clips.assign(part=["test" if number % 4 == 0 else "train" for number in range(len(clips))])
    split = make_split(given_parts, "given")
    assert (split["part"] == "test").tolist() == (given_parts.sort_values("clip_path")["part"] == "test").tolist()
    assert set(split["part"]) == set(PARTS)
    assert make_split(split, "given")["part"].tolist() == split["part"].tolist()
    one_sided = clips.assign(part=["test", *["train"] * 31])
    with pytest.raises(ValueError, match=r"test has no clip of B: .*SPLIT=group"):
        make_split(one_sided, "given")


@pytest.mark.parametrize("text", [
    "clip_path,label\n/A/a.avi,A\n", "\ufeffclip_path,label\r\n/A/a.avi,A\r\n", "clip_path;label\n/A/a.avi;A\n",
    "label,clip_path\nA,\\A\\a.avi\n", "label, clip_path\nA,A/a.avi\n", "clip_path;label\r\nA\\a.avi;A\r\n"])
def test_lists_are_read_as_people_write_them(tmp_path, text):
    (tmp_path / "train.csv").write_bytes(text.encode())
    assert read_part(tmp_path / "train.csv").values.tolist() == [["a.avi", "/A/a.avi", "A", "a"]]


@pytest.mark.parametrize("text, words", [
    ("clip_path,label\n/A/a.avi,\n", "line 2 has no clip_path or no label"),
    ("clip_path,label\n/A/a.avi,A\n/A/a.avi,B\n", "/A/a.avi is listed twice")])
def test_lists_with_mistakes_are_refused(tmp_path, text, words):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_part(tmp_path / "train.csv")


def test_a_list_without_groups_gets_those_of_the_names(tmp_path):
    (tmp_path / "train.csv").write_text("clip_path,label,group\n/A/v_A_g03_c01.avi,A,\n")
    assert read_part(tmp_path / "train.csv")["group"].tolist() == ["g03"]


def test_a_list_in_another_encoding_is_named_with_the_cure(tmp_path):
    (tmp_path / "train.csv").write_bytes("clip_path,label\n/Ü/a.avi,Ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train.csv: can't be read as a table .*save it as CSV in UTF-8"):
        read_part(tmp_path / "train.csv")


def test_names_with_separators_survive_a_split(tmp_path):
    names = ["a;b,c.avi", "back\\slash.avi", 'say "x".avi', "nan", "1.avi", "  blank .avi", "é.avi", "tab\t.avi"]
    rows = [(name, f"/{label}/{name}", label, name) for label in ("1", "nan") for name in names]
    split = pd.DataFrame(rows, columns=COLUMNS).assign(part=[*PARTS, *PARTS, "train", "test"] * 2)
    write_split(split, tmp_path)
    parts = read_split(tmp_path)
    assert {tuple(row) for its in parts.values() for row in its.to_numpy()} == set(rows)


sizes_of_groups = st.lists(st.lists(st.integers(1, 5), min_size=2, max_size=9), min_size=2, max_size=4)


@given(sizes_of_groups, st.integers(2, 6), seeds)
@settings(max_examples=40)
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
        "import json, resource, sys, time; start = time.perf_counter()\n"
        "from videos import folder, split_files, splits\n"
        "clips = folder.scan_clips(sys.argv[1])\n"
        "for kind in splits.KINDS:\n"
        "    split_files.write_split(splits.make_split(clips, kind), sys.argv[2])\n"
        "    parts = split_files.read_split(sys.argv[2])\n"
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


def test_csvs_that_share_clips_are_named(tmp_path):
    clips = pd.DataFrame({"clip_path": ["/A/a.avi"], "label": ["A"], "group": ["g1"]})
    other = clips.assign(clip_path="/A/b.avi")
    with pytest.raises(ValueError, match=r"splits: test.csv and val.csv: clips in more than one part: /A/a.avi"):
        check_leakage({"train": other, "val": clips, "test": clips}, "splits")
