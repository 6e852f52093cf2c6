"""A short version of the campaign of faults, and what it found once, each fault mended as a kind."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import files
from files import (
    HOST,
    ArrayStore,
    ModelFiles,
    NotWritten,
    atomic_path,
    read_sealed,
    remove_abandoned,
    replaced_model,
    save_array,
    temporary_name,
    whole_folder,
    write_json,
    write_sealed,
)

ROOT = Path(__file__).resolve().parents[1]
GONE = 2**22 + 1  # no process has a number above 2**22


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork processes: no campaign of faults")
def test_a_short_campaign_finds_what_is_planted_and_nothing_else(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--short", "--budget", "10m", "--out"]
    done = subprocess.run([*command, str(tmp_path / "faults.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "faults.json").read_text(encoding="utf-8"))
    assert document["planted"] >= 5
    assert [fault for its in document["families"].values() for fault in its["faults"]] == []
    tried = {name: its["tried"] for name, its in document["families"].items()}
    assert tried.keys() - {"small disk"} == {"kills", "mutants", "disk", "broken", "together", "surroundings"}
    assert min(tried.values()) >= 1
    assert document["families"]["mutants"]["told"]["refused"] >= 0.3 * tried["mutants"]


@pytest.mark.parametrize(("code", "said"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"),
                                            (errno.EACCES, "not allowed"), (errno.EROFS, "read-only")])
def test_a_refused_write_is_one_clear_line_and_the_old_file_stays(tmp_path, monkeypatch, code, said):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "replace", refused)
    with pytest.raises(NotWritten, match=rf"^{path}: not written, .*{said}.*") as caught:
        write_json(path, {"new": 1})
    assert caught.value.errno == code and "\n" not in str(caught.value)
    assert json.loads(path.read_text()) == {"old": 1} and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("write", [lambda path: save_array(path, np.zeros(50_000)),
                                   lambda path: write_json(path, {"a": "b" * 50_000})])
def test_a_disk_that_fills_up_while_a_file_is_written(tmp_path, monkeypatch, write):
    def full(path):
        name = temporary_name(path)
        name.symlink_to("/dev/full")
        return name

    monkeypatch.setattr(files, "temporary_name", full)
    with pytest.raises(NotWritten, match="the disk is full: make room there"):
        write(tmp_path / "a.npy")
    assert not os.listdir(tmp_path)


def test_a_copy_that_finds_no_room_names_what_is_written(tmp_path):
    with pytest.raises(NotWritten, match=f"^{tmp_path / 'b'}: not written"), atomic_path(tmp_path / "b") as temporary:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a"), None, str(temporary))


def test_a_folder_that_may_not_be_made_is_named(tmp_path, monkeypatch):
    def refused(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(NotWritten, match=f"^{tmp_path / 'tuning'}: not written, the disk is read-only"):
        files.make_folder(tmp_path / "tuning")


def test_an_error_of_what_is_read_keeps_its_own_name(tmp_path):
    with pytest.raises(PermissionError, match="other"), atomic_path(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/another/other")


def test_a_sealed_file_is_believed_only_as_it_was_written(tmp_path):
    path = tmp_path / "a.npy"
    write_sealed(path, b"content")
    assert bytes(read_sealed(path)) == b"content"
    for broken in (b"", b"con", b"version 0", path.read_bytes()[:-1], b"d" + path.read_bytes()[1:]):
        path.write_bytes(broken)
        assert read_sealed(path) is None
    write_sealed(tmp_path / "b.npy", b"content")
    os.replace(tmp_path / "b.npy", path)  # exchanged
    assert read_sealed(path) is None and read_sealed(tmp_path / "none") is None


def test_an_exchanged_array_is_computed_again(tmp_path):
    store = ArrayStore(tmp_path)
    paths = [store.path("kind", number) for number in range(2)]
    for number, path in enumerate(paths):
        store.write(path, np.full(3, number))
    os.replace(paths[0], paths[1])
    assert store.get(paths[1], lambda: np.full(3, 7)).tolist() == [7, 7, 7]


def test_a_changed_prediction_table_is_computed_again(tmp_path):
    import pandas as pd

    its = ModelFiles(tmp_path, "knn", "classical_ml", ".skops")
    write_json(its.sidecar, {"sha256": "one"})
    table = pd.DataFrame({"clip_path": ["/a", "/b"], "group": ["1", "2"], "label": ["A", "B"], "predicted": ["A", "A"]})
    its.kept_table(its.predictions, lambda: table)
    lines = its.predictions.read_text().splitlines(keepends=True)
    its.predictions.write_text("".join(lines[:-1]))
    assert len(its.kept_table(its.predictions, lambda: table)) == 2


def test_an_earlier_model_stays_where_it_was_until_the_new_one_is_in_its_place(tmp_path, monkeypatch):
    its = ModelFiles(tmp_path, "knn", "classical_ml", ".skops")
    its.checkpoint.parent.mkdir(parents=True)
    its.checkpoint.write_bytes(b"old")
    write_json(its.sidecar, {"sha256": "old"})
    real = os.replace

    def full(source, target):
        if Path(target) == its.checkpoint:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(NotWritten), replaced_model(its) as temporary:
        temporary.write_bytes(b"new")
    assert its.checkpoint.read_bytes() == b"old" and its.sidecar.is_file()
    monkeypatch.setattr(files.os, "replace", real)
    with replaced_model(its) as temporary:
        temporary.write_bytes(b"new")
    assert its.checkpoint.read_bytes() == b"new" and not its.sidecar.exists()
    (folder,) = (tmp_path / "previous").iterdir()
    assert {path.name: path.read_bytes() for path in folder.iterdir()}.keys() == {"best_knn.skops", "best_knn.json"}
    assert (folder / "best_knn.skops").read_bytes() == b"old"


def left_by(place: Path, host: str, process: int) -> Path:
    return place / f".a-{host}-{process}-1.json"


def test_a_model_that_another_process_replaces_at_the_same_time_is_replaced_all_the_same(tmp_path):
    its = ModelFiles(tmp_path, "knn", "classical_ml", ".skops")
    its.checkpoint.parent.mkdir(parents=True)
    its.checkpoint.write_bytes(b"old")
    write_json(its.sidecar, {"sha256": "old"})
    with replaced_model(its) as temporary:
        temporary.write_bytes(b"new")
        its.sidecar.unlink()  # by the other process, which has its own copy
    assert its.checkpoint.read_bytes() == b"new"
    assert [path.name for path in tmp_path.glob("previous/*/*")] == ["best_knn.skops"]


def test_what_killed_processes_left_goes_and_what_others_write_stays(tmp_path):
    ours, theirs = left_by(tmp_path, HOST, GONE), left_by(tmp_path, "0" * 8, GONE)
    alive, hidden = left_by(tmp_path, HOST, os.getpid()), tmp_path / ".a-file-of-the-user.json"
    for path in (ours, theirs, alive, hidden):
        path.write_text("half")
    remove_abandoned(tmp_path)
    assert not ours.exists() and theirs.exists() and alive.exists() and hidden.exists()
    os.utime(theirs, (time.time() - 2 * files.ABANDONED,) * 2)
    remove_abandoned(tmp_path)
    assert not theirs.exists() and alive.exists() and hidden.exists()


def test_a_folder_whose_exchange_was_killed_is_put_back(tmp_path):
    left = tmp_path / f".report-{HOST}-{GONE}-1"
    (left / "old").mkdir(parents=True)
    (left / "old" / "index.html").write_text("old")
    with pytest.raises(KeyError), whole_folder(tmp_path / "report") as new:
        assert (tmp_path / "report" / "index.html").read_text() == "old" and not left.exists()
        raise KeyError
    assert not new.exists()
    with whole_folder(tmp_path / "report") as new:
        (new / "index.html").write_text("new")
    assert (tmp_path / "report" / "index.html").read_text() == "new" and os.listdir(tmp_path) == ["report"]
