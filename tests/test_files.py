"""Files: whole or absent, kept within a budget, shared by processes, belonging to one checkpoint."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from config import ROOT
from files import (
    HOST,
    ArrayStore,
    ResultFiles,
    atomic_path,
    file_hash,
    read_json,
    save_array,
    update_json,
    write_csv,
    write_json,
)


def test_what_is_kept_is_given_back_and_not_computed_again(tmp_path):
    store = ArrayStore(tmp_path)
    path = store.path("kind", ("key", 1))
    assert store.read(path) is None and path != store.path("kind", ("key", 2)) != store.path("other", ("key", 2))
    first = store.get(path, lambda: np.arange(6).reshape(2, 3))
    again = store.get(path, lambda: pytest.fail("computed again"))
    assert np.array_equal(first, again) and store.has(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("left", [0, 10, 100, -1])
def test_a_broken_file_is_never_served(tmp_path, left):
    store = ArrayStore(tmp_path)
    path = store.path("kind", "key")
    store.write(path, np.arange(1000))
    content = path.read_bytes()
    path.write_bytes(content[:left])
    assert store.read(path) is None and not path.exists()
    assert store.get(path, lambda: np.arange(1000)).sum() == 499500


def test_a_failed_computation_leaves_nothing(tmp_path):
    store = ArrayStore(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.get(store.path("kind", "key"), lambda: 1 / 0)
    assert not list(tmp_path.rglob("*.npy"))


def test_budget_takes_what_was_used_longest_ago(tmp_path, capsys):
    ample, store = ArrayStore(tmp_path), ArrayStore(tmp_path, budget_gb=3500e-9)
    paths = [ample.path("kind", i) for i in range(5)]
    for age, path in zip((50, 40, 30, 20, 10), paths, strict=False):
        ample.write(path, np.zeros(109))  # 1004 bytes with the header of 128 and the seal
        os.utime(path, (time.time() - age,) * 2)
    store.read(paths[0])  # used now
    assert store.trim() == 3012 and [p.exists() for p in paths] == [True, False, False, True, True]
    assert store.trim() == 3012 and capsys.readouterr().out == ""
    tight = ArrayStore(tmp_path, budget_gb=1500e-9)
    tight.in_use = set(paths[3:])
    assert tight.trim() == 2008 and "set CACHE_GB higher" in capsys.readouterr().out


@pytest.mark.parametrize(("budget_gb", "looks"), [(1.0, 1), (100e-6, 250)])
def test_the_budget_holds_while_files_are_written_and_is_looked_at_seldom(tmp_path, monkeypatch, budget_gb, looks):
    """By what was written since: each look reads the whole folder, so that looks must not come with every few files."""
    store, seen, real = ArrayStore(tmp_path, budget_gb), [], ArrayStore.trim
    monkeypatch.setattr(ArrayStore, "trim", lambda its: seen.append(1) or real(its))
    for number in range(300):
        store.write(store.path("kind", number), np.zeros(109))  # 300 kB in all
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.npy")) <= 1.02e9 * budget_gb
    assert 1 <= len(seen) <= looks


def test_temporary_files_of_killed_processes_go(tmp_path):
    store = ArrayStore(tmp_path)
    gone, alive = (tmp_path / f".a-{HOST}-{process}-1.npy" for process in (2**22 + 1, os.getpid()))
    for path in (gone, alive):
        path.write_bytes(b"half")
    store.trim()
    assert not gone.exists() and alive.exists()


WRITER = """
import sys; sys.path.insert(0, {src!r})
import numpy as np
from files import ArrayStore
store = ArrayStore({folder!r})
for i in range(150):
    array = store.get(store.path("kind", i), lambda: np.full(20000, i))
    assert (array == i).all(), i
"""


def test_two_processes_fill_one_store(tmp_path):
    code = WRITER.format(src=str(ROOT / "src"), folder=str(tmp_path))
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list(tmp_path.rglob("*.npy"))) == 150 and not list(tmp_path.rglob(".*"))


def test_hash_follows_the_content(tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(b"one")
    first = file_hash(path)
    path.write_bytes(b"other")
    assert file_hash(path) != first and len(first) == 64


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"kept": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"kept": 1} and [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_json_keeps_keys_and_takes_numpy(tmp_path):
    path = tmp_path / "stats.json"
    update_json(path, train_losses=[1.0], accuracy=np.float64(0.5))
    assert list(update_json(path, counts=np.arange(2))) == ["train_losses", "accuracy", "counts"]
    assert read_json(path) == {"train_losses": [1.0], "accuracy": 0.5, "counts": [0, 1]}
    path.write_text("{")
    with pytest.raises(ValueError, match=r"stats\.json"):
        read_json(path)
    assert read_json(tmp_path / "absent.json") == {}


def test_arrays_and_tables(tmp_path):
    save_array(tmp_path / "a.npy", np.arange(3))
    write_csv(tmp_path / "t.csv", pd.DataFrame({"x": [1]}))
    assert np.load(tmp_path / "a.npy").tolist() == [0, 1, 2] and (tmp_path / "t.csv").read_text() == "x\n1\n"


def test_what_belongs_to_one_checkpoint_is_computed_once_for_it(tmp_path):
    files, runs = ResultFiles(tmp_path, "2d", "resnet18"), []
    table = pd.DataFrame({"clip_path": ["/a"], "group": ["01"], "label": ["A"], "predicted": ["B"], "p_A": [0.1]})

    def entry():
        runs.append("entry")
        return {"seconds": 1.5}

    def compute():
        runs.append("table")
        update_json(files.stats, accuracy=0.5)  # what is written meanwhile stays
        return table

    write_json(files.sidecar, {"sha256": "one"})
    for _ in range(2):
        assert files.kept("latency", entry)["seconds"] == 1.5
        pd.testing.assert_frame_equal(files.kept_table(files.predictions, compute), table)
    assert runs == ["entry", "table"] and files.is_current(files.predictions)
    write_json(files.sidecar, {"sha256": "another"})
    assert not files.is_current(files.predictions)
    files.kept("latency", entry)
    files.kept_table(files.predictions, compute)
    assert runs == ["entry", "table"] * 2 and read_json(files.stats)["accuracy"] == 0.5
    files.predictions.unlink()
    files.kept_table(files.predictions, compute)
    assert len(runs) == 5
    write_json(files.sidecar, {"sha256": "another", "split": "other clips are tested"})
    assert not files.is_current(files.predictions)
    files.kept("latency", entry)
    assert len(runs) == 6
