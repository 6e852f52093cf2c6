"""What is kept: whole or absent, within its budget, shared by processes, and the same as what was computed."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import features
from conftest import numbered_frames, write_csv, write_video
from data_loader import ClipViews, DrawnView, VideoDataset2D, eval_transform, train_transform
from config import ROOT, Preprocessing
from features import FrozenTrunk, choose_precision, fold_batchnorm
from models import FrameModel, InflatedEfficientNet, ResNet3D
from store import ArrayStore, file_hash


def test_what_is_kept_is_given_back_and_not_computed_again(tmp_path):
    store = ArrayStore(tmp_path)
    path = store.path("kind", ("key", 1))
    assert store.read(path) is None and path != store.path("kind", ("key", 2)) != store.path("other", ("key", 2))
    first = store.get(path, lambda: np.arange(6).reshape(2, 3))
    again = store.get(path, lambda: pytest.fail("computed again"))
    assert np.array_equal(first, again) and not again.flags.writeable
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
    store = ArrayStore(tmp_path, budget_gb=3500e-9)
    paths = [store.path("kind", i) for i in range(5)]
    for age, path in zip((50, 40, 30, 20, 10), paths):
        store.write(path, np.zeros(109))  # 1000 bytes with the header of 128
        os.utime(path, (time.time() - age,) * 2)
    store.read(paths[0])  # used now
    assert store.trim() == 3000 and [p.exists() for p in paths] == [True, False, False, True, True]
    assert store.trim() == 3000 and capsys.readouterr().out == ""
    tight = ArrayStore(tmp_path, budget_gb=1500e-9)
    tight.in_use = set(paths[3:])
    assert tight.trim() == 2000 and "set CACHE_GB higher" in capsys.readouterr().out


def test_temporary_files_of_killed_processes_go(tmp_path):
    store = ArrayStore(tmp_path)
    old, new = tmp_path / ".a-1-2.npy", tmp_path / ".b-3-4.npy"
    for path, age in ((old, 7200), (new, 5)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    store.trim()
    assert not old.exists() and new.exists()


WRITER = """
import sys; sys.path.insert(0, {src!r})
import numpy as np
from store import ArrayStore
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


# ---------------------------------------------------------------- decoded frames

@pytest.fixture
def clips(tmp_path):
    write_video(tmp_path / "a.avi", numbered_frames(40))
    csv = write_csv(tmp_path / "clips.csv", [("/a.avi", "A")])
    return lambda train, **more: VideoDataset2D(csv, tmp_path, {"A": 0}, num_frames=4, train=train, **{
        "transform": eval_transform(Preprocessing(resize=48, crop=48)), **more})


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("sampling", ["window", "segments"])
def test_kept_frames_equal_decoded_ones(clips, tmp_path, monkeypatch, train, sampling):
    store = ArrayStore(tmp_path / "store")
    direct, kept = (ClipViews(clips(train, sampling=sampling), 3, seed=5, store=s) for s in (None, store))
    expected = direct[0][0]
    assert torch.equal(kept[0][0], expected)  # cold
    monkeypatch.setattr("data_loader.read_frames", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(kept[0][0], expected)  # warm


def test_a_changed_clip_or_sampling_is_decoded_anew(clips, tmp_path):
    store = ArrayStore(tmp_path / "store")
    before = ClipViews(clips(False), 2, store=store).frames(0)
    assert not np.array_equal(ClipViews(clips(False, sampling="segments"), 2, store=store).frames(0), before)
    write_video(tmp_path / "a.avi", numbered_frames(20))
    after = ClipViews(clips(False), 2, store=store).frames(0)
    assert after.mean() != before.mean()
    assert np.array_equal(after, ClipViews(clips(False), 2).frames(0))


def test_drawn_views_decode_once_and_augment_anew(clips, tmp_path, monkeypatch):
    drawn = DrawnView(clips(True, transform=train_transform(Preprocessing(resize=48, crop=32))), 2, seed=1,
                      store=ArrayStore(tmp_path / "store"))
    torch.manual_seed(0)
    first = drawn[0][0]
    monkeypatch.setattr("data_loader.read_frames", lambda *_: pytest.fail("decoded again"))
    others = [drawn[0][0] for _ in range(8)]
    assert first.shape == (4, 3, 32, 32) and not any(torch.equal(first, other) for other in others)
    plain = DrawnView(clips(True, transform=eval_transform(Preprocessing(resize=48, crop=48))), 2, seed=1,
                      store=ArrayStore(tmp_path / "store"))
    assert len({plain[0][0].sum().item() for _ in range(24)}) == 2  # two fixed places in the clip


# ---------------------------------------------------------------- the trunk as it is run

@pytest.mark.parametrize("model, shape", [
    (lambda: FrameModel(3, "resnet18", weights=None, trained="head"), (1, 2, 3, 64, 64)),
    (lambda: FrameModel(3, "efficientnet_b0", weights=None, trained="head"), (1, 2, 3, 64, 64)),
    (lambda: FrameModel(3, "efficientnet_lite0", weights="packaged", trained="head"), (1, 2, 3, 64, 64)),
    (lambda: InflatedEfficientNet(3, trained="head"), (1, 3, 4, 64, 64)),
    (lambda: ResNet3D(3, weights=None, trained="head"), (1, 3, 4, 64, 64)),
], ids=["resnet18", "efficientnet_b0", "efficientnet_lite0", "efficientnet_lite0_3d", "resnet3d"])
def test_folded_batchnorm_is_the_same_function(model, shape):
    torch.manual_seed(0)
    trunk = model().trunk
    for module in trunk.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)) and module.running_mean.abs().sum() == 0:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(shape)
    folded = fold_batchnorm(trunk)
    assert not any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in folded.modules())
    with torch.inference_mode():
        expected = trunk.eval()(x)
        assert (folded(x) - expected).norm() < 1e-4 * expected.norm()
    assert any(isinstance(m, (nn.BatchNorm2d, nn.BatchNorm3d)) for m in trunk.modules())  # itself as it was


class Tried(FrozenTrunk):
    """Answers as told in bfloat16."""

    def __init__(self, error: float, delay: float):
        self.device, self.precision, self.error, self.delay = "cpu", "float32", error, delay

    def __call__(self, pixels):
        half = self.precision == "bfloat16"
        time.sleep(self.delay if half else 0.02)
        return np.ones((1, 4), np.float16) * np.float16(1 + self.error * half)


@pytest.mark.parametrize("error, delay, chosen", [
    (0.01, 0.0, "bfloat16"), (0.2, 0.0, "float32"), (0.01, 0.08, "float32"), (float("nan"), 0.0, "float32")])
def test_bfloat16_is_taken_only_where_faster_and_near(tmp_path, monkeypatch, capsys, error, delay, chosen):
    monkeypatch.setattr(features, "_computes_bfloat16", lambda device: True)
    clips, memo = [(torch.zeros(1), 0)] * 2, tmp_path / "precision.json"
    assert choose_precision(Tried(error, delay), clips, memo) == chosen
    assert f"trunk in {chosen}" in capsys.readouterr().out
    assert choose_precision(Tried(0.2, 0.08), [], memo) == chosen  # remembered
    monkeypatch.setattr(features, "_computes_bfloat16", lambda device: False)
    assert choose_precision(Tried(0.0, 0.0), clips, tmp_path / "other.json") == "float32"
