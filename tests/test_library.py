"""Folders as people have them: what is used, left out, said, refused; and the advice of every message, followed."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

import data as data_tool
from config import ROOT, name_list
from conftest import moving_square, write_video
from videos.findings import STRADDLING, TWO_LABELS
from videos.folder import COLUMNS, find_clips, match_classes, scan_clips
from videos.library import VideoData, open_asked, open_data
from videos.places import DATASETS, locate
from videos.splits import group_folds


def fill(root: Path, classes: dict[str, int], layout: str = "{label}/{label}_{number}.avi", start: int = 0) -> Path:
    """Clips of classes, so many of each, each different from all others."""
    for label, count in classes.items():
        for number in range(start, start + count):
            path = root / layout.format(label=label, number=number)
            seed = crc32(path.name.encode())
            frames = np.roll(moving_square(number % 3, seed, 12), seed % 96, axis=1)
            write_video(path, frames, codec="XVID")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    return fill(tmp_path / "home" / "videos", {"jump": 8, "run": 8})


def results_in(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Results go to a folder of the test's own."""
    defaults = open_data.__defaults__
    patch.setattr(open_data, "__defaults__", (*defaults[:4], folder / "results", *defaults[5:]))


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Opens a folder as the environment asks."""

    def open_it(root: Path, **asked: str) -> VideoData:
        with monkeypatch.context() as patch:
            for name in ("DATASET", "NAME", "SPLIT", "CLASSES", "SEED", "SKIP_BROKEN", "ONE_FRAME"):
                patch.delenv(name, raising=False)
            for name, value in {"DATASET": str(root), **asked}.items():
                patch.setenv(name, value)
            results_in(patch, tmp_path)
            return open_asked()

    return open_it


def advice(message: str, name: str) -> str:
    """What a message says to set a variable to, as a shell would read it."""
    words = shlex.shlex(re.search(rf"{name}=(.*)", message)[1], posix=True)
    words.whitespace_split, words.commenters = True, ""
    return words.get_token().rstrip(",;")


# ---------------------------------------------------------------- broken, one frame, other files

def test_all_broken_clips_are_named_at_once_and_can_be_left_out(folder, opened):
    for number in range(3):
        (folder / "jump" / f"broken{number}.mp4").write_bytes(b"no video")
    (folder / "run" / "gone.avi").symlink_to(folder / "nowhere")
    with pytest.raises(ValueError, match=r"^4 of 20 clips can't be used") as stopped:
        opened(folder)
    assert all(f"/jump/broken{number}.mp4: can't be opened" in str(stopped.value) for number in range(3))
    assert "/run/gone.avi: is a link to nothing" in str(stopped.value)
    used = opened(folder, SKIP_BROKEN=advice(str(stopped.value), "SKIP_BROKEN"))
    assert sum(used.split["clips"].values()) == 16 and used.split["left_out"] == {"broken": 4}
    assert "16 clips of 2 classes (left out: 4 broken)" in used.note
    for path in [*folder.glob("jump/broken*"), folder / "run" / "gone.avi"]:
        path.unlink()
    assert opened(folder).split["sha256"] == used.split["sha256"]  # after the cure


def test_one_frame_is_no_video_unless_it_is_asked_for(folder, opened, capsys):
    write_video(folder / "jump" / "still.avi", moving_square(0, 77, 1))
    without = opened(folder)
    assert sum(without.split["clips"].values()) == 16 and without.split["left_out"] == {"one frame": 1}
    assert "left out: 1 one frame (/jump/still.avi)" in capsys.readouterr().out
    assert sum(opened(folder, ONE_FRAME="1").split["clips"].values()) == 17


def test_whatever_is_no_clip_is_named(folder, opened, capsys):
    for name in ("notes.txt", "jump/notes.txt", "jump/half.mp4.part", "loose.avi", "jump/Thumbs.db", ".DS_Store",
                 "jump/._jump_1.avi", "__MACOSX/jump/x.avi", "jump/@eaDir/jump_1.avi/shot.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "empty class").mkdir()
    (folder / "jump" / "folder.mp4").mkdir()
    found = opened(folder).findings.set_index("what")["which"].to_dict()
    assert found.pop("used").startswith("/jump/jump_0.avi") and found == {
        "not a video's suffix": "/jump/half.mp4.part, /jump/notes.txt", "a video in no class folder": "/loose.avi",
        "a folder without videos": "/empty class", "a folder": "/jump/folder.mp4"}


@pytest.mark.parametrize("suffix", [
    "m4v", "mpg", "mpeg", "wmv", "3gp", "3g2", "MTS", "m2ts", "ts", "flv", "f4v", "ogv", "vob", "divx", "AVI", "Mp4"])
def test_suffixes_in_any_case_are_videos(tmp_path, suffix):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / f"clip.{suffix}").touch()
    assert len(scan_clips(tmp_path)) == 2


# ---------------------------------------------------------------- identity is content

def test_labels_corrected_are_another_data_set(folder, opened, capsys):
    before = opened(folder)
    part = before.facts.set_index("clip_path").loc["/jump/jump_3.avi", "part"]
    (folder / "jump" / "jump_3.avi").rename(folder / "run" / "jump_3.avi")
    moved = opened(folder)
    assert moved.split["sha256"] != before.split["sha256"] and "1 moved or relabelled" in capsys.readouterr().out
    assert moved.facts.set_index("clip_path").loc["/run/jump_3.avi", "part"] == part
    first, second = folder / "jump" / "jump_0.avi", folder / "run" / "run_0.avi"
    first.rename(folder / "third")
    second.rename(first)
    (folder / "third").rename(second)
    exchanged = opened(folder)
    assert exchanged.split["sha256"] != moved.split["sha256"] and "2 with other content" in capsys.readouterr().out
    assert opened(folder).split == exchanged.split and "changed" not in capsys.readouterr().out


def test_clips_and_classes_added_are_used(folder, opened, capsys):
    before = opened(folder)
    fill(folder, {"jump": 4}, start=8)
    fill(folder, {"spin": 8})
    grown = opened(folder)
    assert grown.classes == ["jump", "run", "spin"] and sum(grown.split["clips"].values()) == 28
    assert "(12 added)" in capsys.readouterr().out
    parts = grown.facts.set_index("clip_path")["part"]
    assert parts[before.facts["clip_path"]].tolist() == before.facts["part"].tolist()
    shutil.rmtree(folder / "spin")
    assert opened(folder).classes == ["jump", "run"] and "(8 removed)" in capsys.readouterr().out


def test_two_folders_of_one_name_are_told_apart(folder, opened, tmp_path):
    first = opened(folder)
    other = fill(tmp_path / "away" / "videos", {"sit": 8, "stand": 8})
    with pytest.raises(ValueError, match="are those of another folder") as stopped:
        opened(other)
    assert str(folder) in str(stopped.value) and opened(folder).split == first.split
    second = opened(other, NAME=advice(str(stopped.value), "NAME"))
    assert second.name == "away-videos" and second.results != first.results and second.classes == ["sit", "stand"]
    shutil.rmtree(folder)
    assert opened(other).results == first.results  # the first one is gone: its place is free, its split is not used
    assert opened(other).classes == ["sit", "stand"]


# ---------------------------------------------------------------- copies

def test_copies_are_named_and_kept_together(folder, opened, capsys):
    shutil.copy(folder / "jump" / "jump_1.avi", folder / "jump" / "again.avi")
    shutil.copy(folder / "jump" / "jump_2.avi", folder / "run" / "other label.avi")
    for split in ("group", "random"):
        its = opened(folder, SPLIT=split)
        parts = its.facts.set_index("clip_path")["part"]
        assert parts["/jump/jump_1.avi"] == parts["/jump/again.avi"]
        assert parts["/jump/jump_2.avi"] == parts["/run/other label.avi"]
        found = its.findings.set_index("what")["which"]
        assert found["copies"] == "/jump/again.avi = /jump/jump_1.avi, /jump/jump_2.avi = /run/other label.avi"
        assert found[TWO_LABELS] == "/jump/jump_2.avi = /run/other label.avi" and STRADDLING not in found
        assert f"warning: {TWO_LABELS}" in capsys.readouterr().out


def test_copies_in_different_parts_of_a_given_split_are_warned_of(tmp_path, opened, capsys):
    root = fill(tmp_path / "set", {"jump": 4, "run": 4}, "train/{label}/{label}_{number}.avi")
    fill(root, {"jump": 2, "run": 2}, "test/{label}/{label}_{number}.avi", start=4)
    shutil.copy(root / "train" / "jump" / "jump_0.avi", root / "test" / "jump" / "copy.avi")
    its = opened(root)
    assert its.split["kind"] == "given" and its.split["clips"] == {"train": 6, "val": 2, "test": 5}
    assert "the folder has no val: taken from the training part in whole groups" in capsys.readouterr().out
    assert f"warning: {STRADDLING}: /test/jump/copy.avi = /train/jump/jump_0.avi" in opened_again(opened, root, capsys)


def opened_again(opened, root: Path, capsys) -> str:
    """What is printed when a folder is opened another time."""
    opened(root)
    return capsys.readouterr().out


# ---------------------------------------------------------------- layouts, classes, too few

def test_part_folders_are_the_split(tmp_path, opened):
    root = tmp_path / "set"
    for part, count in (("Train", 5), ("validation", 2), ("test", 3)):
        fill(root, {"jump": count, "run": count}, f"{part}/{{label}}/{part}_{{number}}.avi")
    its = opened(root)
    assert its.classes == ["jump", "run"] and its.split["clips"] == {"train": 10, "val": 4, "test": 6}
    assert its.split["kind"] == "given" and its.split["shared_groups"] == 0
    assert opened(root, SPLIT="group").split["kind"] == "group"


def test_csvs_in_the_folder_are_the_split(folder, opened, tmp_path):
    rows = scan_clips(folder).assign(label=lambda its: its["label"].str.upper())  # the lists' own words count
    (folder / "splits").mkdir()
    for number, part in enumerate(("train", "val", "test")):
        rows.iloc[number::3][COLUMNS].to_csv(folder / "splits" / f"{part}.csv", index=False, sep=";")
    before = {path: path.read_bytes() for path in (folder / "splits").iterdir()}
    its = opened(folder)
    assert its.classes == ["JUMP", "RUN"] and its.split["clips"] == {"train": 6, "val": 5, "test": 5}
    assert {path: path.read_bytes() for path in (folder / "splits").iterdir()} == before
    assert opened(folder, SPLIT="group").classes == ["jump", "run"]
    (folder / "jump" / "jump_4.avi").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 clips of the split in .*splits are not there") as stopped:
        opened(folder)
    assert "/jump/jump_4.avi" in str(stopped.value) and "move the three CSVs away" in str(stopped.value)
    for path in before:
        path.unlink()
    assert opened(folder).split["kind"] == "group"


def test_lists_may_name_videos_of_a_flat_folder_and_leave_some_out(tmp_path, opened, capsys):
    root = fill(tmp_path / "flat", {"jump": 8, "run": 8, "other": 2}, "{label}_{number}é.avi")
    (root / "splits").mkdir()
    rows = [f"{label}_{number}e\u0301.avi,{label}" for number in range(8) for label in ("jump", "run")]
    for part, its in {"train": rows[:8], "val": rows[8:12], "test": rows[12:]}.items():
        (root / "splits" / f"{part}.csv").write_text("\n".join(["clip_path,label", *its]), encoding="utf-8")
    its = opened(root)
    assert its.classes == ["jump", "run"] and its.split["clips"] == {"train": 8, "val": 4, "test": 4}
    assert its.findings.set_index("what")["which"]["a video in no class folder"] == "/other_0é.avi, /other_1é.avi"
    nested = fill(tmp_path / "nested", {"jump": 9, "run": 8})
    (nested / "splits").mkdir()
    rows = [f"{label}/{label}_{number}.avi,{label}" for number in range(8) for label in ("jump", "run")]
    for part, its in {"train": rows[:8], "val": rows[8:12], "test": rows[12:]}.items():
        text = "\n".join(["clip_path,label", *its]).replace(",", ", ")
        (nested / "splits" / f"{part}.csv").write_text(text, encoding="utf-8")
    (nested / "jump" / "jump_8.avi").write_bytes(b"not listed, and broken")
    its = opened(nested)
    assert its.classes == ["jump", "run"] and its.findings.set_index("what")["which"]["broken"] == "/jump/jump_8.avi"
    assert "left out: 1 broken (/jump/jump_8.avi)" in capsys.readouterr().out
    (nested / "splits" / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks val\.csv"):
        opened(nested)


def test_lists_beside_the_ucf101_clips_are_the_users(tmp_path, monkeypatch):
    root = fill(tmp_path / "dataset", {"jump": 4, "run": 4}, "{label}/v_{label}_g0{number}_c01.avi", start=1)
    monkeypatch.setitem(DATASETS, "ucf101", root)
    rows = scan_clips(root)
    (root / "splits").mkdir()
    for number, part in enumerate(("train", "val", "test")):
        rows[number % 4::4].to_csv(root / "splits" / f"{part}.csv", index=False)
    before = {path: path.read_bytes() for path in (root / "splits").iterdir()}
    its = open_data("ucf101", results=tmp_path / "results")
    assert its.split["kind"] == "given" and its.split["left_out"] == {"not in the split": 2}
    assert {path: path.read_bytes() for path in (root / "splits").iterdir()} == before


def test_copies_are_kept_together_in_the_folds_of_a_given_split(tmp_path, opened):
    root = fill(tmp_path / "set", {"jump": 8, "run": 8}, "train/{label}/{label}_{number}.avi")
    fill(root, {"jump": 3, "run": 3}, "test/{label}/{label}_{number}.avi", start=8)
    for label in ("jump", "run"):
        for number in range(4):
            shutil.copy(root / "train" / label / f"{label}_{number}.avi", root / "train" / label / f"copy{number}.avi")
    its = opened(root)
    parts = its.facts.set_index("clip_path")["part"]
    assert (parts.groupby(its.facts.set_index("clip_path")["copy_of"]).nunique() == 1).all()  # val was taken from train
    table = pd.concat([its.table(part) for part in its.splits], ignore_index=True)
    copy_of = its.facts.set_index("clip_path")["copy_of"][table["clip_path"]].to_numpy()
    folds, _ = group_folds(table, 3, its.split["groups_named"], 0)
    assert all(not set(copy_of[fit]) & set(copy_of[held_out]) for fit, held_out in folds)


def test_part_folders_beside_another_folder_are_explained(tmp_path, opened):
    root = tmp_path / "set"
    for part in ("train", "test", "unlabelled"):
        fill(root, {"jump": 4, "run": 4}, f"{part}/{{label}}/{part}_{{number}}.avi")
    with pytest.raises(ValueError, match=r"look like parts of a split, .* lies unlabelled") as stopped:
        opened(root)
    assert opened(root, CLASSES=advice(str(stopped.value), "CLASSES"), SPLIT="random").classes == ["test", "train",
                                                                                                  "unlabelled"]
    shutil.rmtree(root / "unlabelled")
    assert opened(root).split["kind"] == "given"


def test_sub_folders_of_a_class_are_its_groups(tmp_path, opened, capsys):
    root = fill(tmp_path / "nested", {"jump": 4, "run": 4}, "{label}/scene_{number}/a.avi")
    fill(root, {"jump": 4, "run": 4}, "{label}/scene_{number}/b.avi", start=4)
    for path in sorted(root.rglob("b.avi")):  # two clips of each scene
        path.rename(path.parent.with_name(f"scene_{int(path.parent.name[-1]) - 4}") / "b.avi")
        path.parent.rmdir()
    its = opened(root)
    assert its.classes == ["jump", "run"] and its.split["groups_named"] and its.split["shared_groups"] == 0
    assert set(its.facts["group"]) == {f"scene_{number}" for number in range(4)}
    assert "16 clips lie in sub-folders of their class, which are taken for groups" in capsys.readouterr().out


def test_layouts_that_tell_no_class_are_explained(tmp_path, opened):
    for name in ("train/a.avi", "test/b.avi"):
        (tmp_path / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / name).touch()
    with pytest.raises(ValueError, match=r"look like parts of a split.*such as train/<class>/"):
        opened(tmp_path / "flat")
    wrapped = fill(tmp_path / "wrapped (1)", {"jump": 8, "run": 8}, "my set/{label}/{number}.avi")
    with pytest.raises(ValueError, match="one class alone, my set, with the sub-folders jump, run") as stopped:
        opened(wrapped)
    assert opened(Path(advice(str(stopped.value), "DATASET"))).classes == ["jump", "run"]


def test_all_small_classes_are_named_and_the_advice_works(folder, opened):
    fill(folder, {"pair's": 2, "lone $5": 1})
    fill(folder, {"with blank": 8})
    with pytest.raises(ValueError, match=r"lone \$5 has 1, pair's has 2") as stopped:
        opened(folder)
    chosen = advice(str(stopped.value), "CLASSES")
    assert opened(folder, CLASSES=chosen).classes == ["jump", "run", "with blank"]


def test_too_few_groups_of_many_clips_can_be_split_at_random(tmp_path, opened):
    root = fill(tmp_path / "grouped", {"jump": 8, "run": 8}, "{label}/v_{label}_g01_c{number}.avi")
    with pytest.raises(ValueError, match="jump has 1, run has 1; add clips, or use SPLIT=random") as stopped:
        opened(root)
    assert opened(root, SPLIT=advice(str(stopped.value), "SPLIT")).split["clips"]["train"] == 12


def test_classes_are_found_in_any_case_and_unicode_form(tmp_path, opened):
    root = fill(tmp_path / "set", {"HandstandPushups": 8, "Übung é": 8, "sit ups, slow": 8})
    composed, decomposed = "Übung é", "Ü".encode().decode() + "bung e\u0301"
    its = opened(root, CLASSES=f"handSTANDpushups '{decomposed.lower()}'")
    assert its.classes == ["HandstandPushups", composed]
    assert opened(root, CLASSES="'SIT ups, slow' HandStandPushups").classes == ["HandstandPushups", "sit ups, slow"]
    with pytest.raises(ValueError, match="no class HandstandPushup: did you mean HandstandPushups") as stopped:
        opened(root, CLASSES="HandstandPushup")
    every = opened(root, CLASSES=advice(str(stopped.value), "CLASSES")).classes
    assert every == sorted([*its.classes, "sit ups, slow"])
    with pytest.raises(ValueError, match="differ by case alone"):
        match_classes(["WALK"], ["walk", "Walk"])
    assert match_classes(["Walk"], ["walk", "Walk"]) == ["Walk"]


def test_names_that_are_no_text_are_told(folder, opened):
    try:
        (folder / "jump" / os.fsdecode(b"caf\xe9.avi")).touch()
    except OSError:
        pytest.skip("this file system takes valid names only")
    (folder / "jump" / "line\rbreak.avi").touch()
    (folder / os.fsdecode(b"\xe9t\xe9")).mkdir()
    (folder / os.fsdecode(b"\xe9t\xe9") / "x.avi").touch()
    found = opened(folder).findings.set_index("what")["which"]
    assert found["a name with a line break, or that is not UTF-8: rename it"] == \
        "/\\udce9t\\udce9/x.avi, /jump/caf\\udce9.avi, /jump/line\\rbreak.avi"


def test_a_class_may_be_called_splits(folder, opened):
    fill(folder, {"splits": 8})
    assert opened(folder).classes == ["jump", "run", "splits"]


def test_links_to_folders_are_followed_once(folder):
    (folder / "jump" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "linked").symlink_to(folder / "run", target_is_directory=True)
    assert len(find_clips(folder).clips) == 24


# ---------------------------------------------------------------- the command line

def test_data_check_and_run_judge_alike(folder, opened, monkeypatch, tmp_path, capsys):
    results_in(monkeypatch, tmp_path)
    monkeypatch.setenv("DATASET", str(folder))
    data_tool.main(["check"])
    printed = capsys.readouterr().out
    assert re.search(r"used +16", printed) and re.search(r"jump +8 +0 +0 +0 +12-12", printed)
    whole = (folder / "jump" / "jump_0.avi").read_bytes()
    (folder / "jump" / "jump_0.avi").write_bytes(whole[:len(whole) * 2 // 3])
    with pytest.raises(SystemExit) as checked:
        data_tool.main(["check"])
    with pytest.raises(ValueError) as run:
        opened(folder)
    assert str(checked.value) == f"error: {run.value}" and "/jump/jump_0.avi: breaks off" in str(run.value)
    monkeypatch.setenv("SKIP_BROKEN", "1")
    data_tool.main(["check"])
    data_tool.main(["split"])
    printed = capsys.readouterr().out
    assert "split group, in" in printed and re.search(r"total +11 +2 +2 +15", printed)


def test_the_split_that_is_shown_is_the_one_that_is_used(folder, opened, monkeypatch, tmp_path, capsys):
    results_in(monkeypatch, tmp_path)
    data_tool.main(["split", str(folder)])
    place = Path(re.search(r"split group, in (.*)", capsys.readouterr().out)[1])
    assert opened(folder).splits["train"] == place / "train.csv" and not (folder / "splits").exists()


def test_check_names_a_missing_data_set():
    with pytest.raises(SystemExit, match=r"^error: DATASET=no/such/folder"):
        data_tool.main(["check", "no/such/folder"])


@pytest.mark.parametrize("name, results", [("my-vm-set", "my-vm-set"), ("Predictions", "Predictions-sample"),
                                           ("failed", "failed-sample"),
                                           ("demo", "demo-sample"), ("a b/c", "a-b-c")])
def test_names_of_results(folder, monkeypatch, name, results):
    monkeypatch.setattr("platform.node", lambda: "vm")
    assert locate(str(folder), name=name)[0] == results
    with pytest.raises(ValueError, match="its results need a name"):
        locate(str(folder), name="..")


def test_impossible_splits_are_told_before_clips_are_decoded(folder, opened, monkeypatch):
    monkeypatch.setattr("videos.library.clip_facts", lambda *_, **__: pytest.fail("clips were read"))
    for split, words in (("kfold", "no split 'kfold'"), ("official1", "use SPLIT=group"), ("given", "SPLIT=given")):
        with pytest.raises(ValueError, match=words):
            opened(folder, SPLIT=split)


def test_a_class_that_loses_all_its_clips_is_named(folder, opened):
    for number in range(8):
        write_video(folder / "spin" / f"{number}.avi", moving_square(0, number, 1))
    with pytest.raises(ValueError, match="no clip of spin can be used") as stopped:
        opened(folder)
    assert opened(folder, CLASSES=advice(str(stopped.value), "CLASSES")).classes == ["jump", "run"]
    assert opened(folder, ONE_FRAME=advice(str(stopped.value), "ONE_FRAME")).classes == ["jump", "run", "spin"]
    with pytest.raises(ValueError, match="no clip of spin"):
        opened(folder, ONE_FRAME="0")


def test_results_of_a_folder_that_is_gone_are_taken_over_with_a_word(folder, opened, tmp_path, capsys):
    opened(folder)
    folder.parent.rename(tmp_path / "moved")
    capsys.readouterr()
    moved = opened(tmp_path / "moved" / "videos")
    assert "were those of" in capsys.readouterr().out and moved.name == "videos"
    opened(tmp_path / "moved" / "videos")
    assert "were those of" not in capsys.readouterr().out


def test_a_machine_name_in_the_environment_is_no_name_of_results(folder, monkeypatch):
    monkeypatch.setattr("platform.node", lambda: "DESKTOP-1")
    monkeypatch.setenv("NAME", "DESKTOP-1")
    assert locate(str(folder))[0] == "videos"
    monkeypatch.setenv("NAME", "mine")
    assert locate(str(folder))[0] == "mine"


def test_broken_files_do_not_stop_a_selection_of_other_classes(folder, opened):
    fill(folder, {"spin": 8})
    (folder / "spin" / "spin_0.avi").write_bytes(b"")
    assert opened(folder, CLASSES="jump run").classes == ["jump", "run"]
    assert isinstance(opened(folder, CLASSES="jump run").facts, pd.DataFrame)


@pytest.mark.skipif(not shutil.which("make"), reason="make is not here")
@pytest.mark.parametrize("by_environment", [False, True])
def test_make_hands_names_over_as_they_are(by_environment):
    """Blanks, brackets, quotes, `$` and `#` reach the commands as they were written."""
    asked = {"DATASET": "/my videos (phone)/it's $5 \"#1\"", "CLASSES": "'jumping jack' $5_x", "FROM": "~/a b/c;d"}
    show = "show: ; @$(PYTHON) -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    words = [] if by_environment else [f"{name}={value}" for name, value in asked.items()]
    environment = {**os.environ, **(asked if by_environment else {})}
    command = ["make", "-s", "--no-print-directory", "--eval", show, "show", f"PYTHON={sys.executable}", *words]
    printed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    seen = json.loads(printed)
    assert {name: seen[name] for name in asked} == asked
    assert seen["SPLIT"] == "" and name_list(seen["CLASSES"]) == ["jumping jack", "$5_x"]


def test_data_are_imported_from_a_folder_of_any_name(tmp_path, monkeypatch, capsys):
    source = fill(tmp_path / "it's (1) $5", {"HandstandPushups": 2, "with blank": 2})
    monkeypatch.setenv("FROM", str(source))
    monkeypatch.setenv("CLASSES", "handstandpushups 'With Blank'")
    monkeypatch.setenv("MODE", "copy")
    data_tool.main(["get", "--root", str(tmp_path / "root")])
    assert "4 clips in" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["HandstandPushups", "with blank"]
