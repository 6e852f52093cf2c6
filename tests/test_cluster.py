"""Work on a Ray cluster of two nodes on this machine: the same results, also where a node dies half-way."""

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import cluster
from classical.descriptors import clip_descriptors
from cluster import Lost, asked_cluster, failures, shared_out
from config import get_recipe
from data_loader import VideoDataset3D
from features import trunk_activations
from models import build_model
from transforms import eval_transform
from videos.decoding import VideoError
from videos.split_files import read_part


def noted(folder: Path, seconds: float):
    """Work that leaves a file of each time that it is done."""
    def work(item: int) -> int:
        (folder / f"{item}-{time.time_ns()}-{os.getpid()}").touch()
        time.sleep(seconds)
        return item * item

    return work


def test_without_ray_in_the_environment_nothing_is_shared_out(monkeypatch):
    monkeypatch.delenv("RAY", raising=False)
    assert asked_cluster() is None
    monkeypatch.setenv("RAY", "local")
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="RAY=local: Ray is missing: pip install"):
        asked_cluster()


def test_what_fails_is_told_with_its_name():
    done = [(1, None), (0, VideoError("a.avi: breaks off; mend it")), (2, Lost("3 workers died over it"))]
    told = ["a.avi: breaks off; mend it", "c.avi: 3 workers died over it"]
    assert failures(done, ["a.avi", "b.avi", "c.avi"]) == told


@pytest.mark.slow
def test_a_node_that_dies_costs_only_what_was_in_work(two_nodes, tmp_path):
    count, results = 60, {}
    for number, result in shared_out(noted(tmp_path, 0.1), range(count), os.environ["RAY"]):
        results[number] = result
        if len(results) == count // 3:
            two_nodes.lose()
    assert results == {number: number**2 for number in range(count)}
    times = Counter(int(path.name.split("-")[0]) for path in tmp_path.iterdir())
    assert len({path.name.split("-")[2] for path in tmp_path.iterdir()}) == 2  # both have worked
    assert sum(times.values()) - count <= 2 * cluster.AHEAD and max(times.values()) <= 2


@pytest.mark.slow
def test_an_item_that_kills_its_workers_is_told_and_the_others_are_done(two_nodes):
    def work(item: int) -> int:
        if item == 7:
            os._exit(1)
        return -item

    results = dict(shared_out(work, range(12), os.environ["RAY"], chunk=3))
    assert isinstance(results.pop(7), Lost)
    assert results == {number: -number for number in range(12) if number != 7}
    with pytest.raises(ZeroDivisionError):
        list(shared_out(lambda item: 1 // item, range(3), os.environ["RAY"]))


@pytest.mark.slow
def test_features_and_descriptors_are_those_of_one_process(two_nodes, tiny_dataset, tmp_path, monkeypatch):
    root = shutil.copytree(tiny_dataset, tmp_path / "clips")
    model = build_model(get_recipe("recommended", "3d", size=32, num_frames=4), 3, "packaged")
    classes = {name: number for number, name in enumerate(sorted({*read_part(root / "splits" / "val.csv")["label"]}))}
    clips = VideoDataset3D(root / "splits" / "val.csv", root, classes, num_frames=4, train=True,
                           transform=eval_transform(model.preprocessing))
    table, threads = read_part(root / "splits" / "val.csv"), torch.get_num_threads()

    def computed(folder: str) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        (kept,) = trunk_activations(model, [(clips, 2)], "cpu", seed=3, cache=tmp_path / folder)
        return [np.load(path) for path in kept], clip_descriptors(table, root, tmp_path / folder)

    shared, described = computed("cluster")
    monkeypatch.delenv("RAY")
    torch.set_num_threads(1)
    alone, alike = computed("alone")
    torch.set_num_threads(threads)
    assert len(shared) == len(table) and all(map(np.array_equal, shared, alone))
    assert all(np.array_equal(described[name], alike[name]) for name in alike)


@pytest.mark.slow
def test_clips_that_cannot_be_decoded_are_all_named_and_the_others_kept(two_nodes, tiny_dataset, tmp_path, monkeypatch):
    root = shutil.copytree(tiny_dataset, tmp_path / "clips")
    table = read_part(root / "splits" / "val.csv")
    broken = [root / path.lstrip("/") for path in table["clip_path"][[0, 3]]]
    for path in broken:
        path.write_bytes(b"no video")
    with pytest.raises(VideoError) as caught:
        clip_descriptors(table, root, tmp_path / "cache")
    assert all(str(path) in str(caught.value) for path in broken)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == len(table) - 2
