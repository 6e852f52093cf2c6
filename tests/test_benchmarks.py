"""The benchmark: a faithful yardstick, a page made from its figures, and a run in its smallest configuration."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import bench
import reference_pipeline
import seed_pipeline
import table
import unfamiliar
from conftest import frame_numbers, numbered_frames, write_csv, write_video
from sampling import time_indices
from videos.library import VideoData


def one_clip(root: Path, frames: np.ndarray) -> VideoData:
    """One clip, of label 1, in training and test."""
    write_video(root / "b" / "a.avi", frames)
    csv = write_csv(root / "clips.csv", [("/b/a.avi", "b")])
    return VideoData("one", root, {"a": 0, "b": 1}, {"train": csv, "test": csv}, {}, root)


@pytest.mark.parametrize("kind, shape, parameters, trained", [
    ("2d", (20, 3, 224, 224), 11_178_051, 11_178_051), ("3d", (3, 16, 224, 224), 33_167_811, 1_539)])
def test_the_yardstick_is_the_seeds(tmp_path, kind, shape, parameters, trained):
    data = one_clip(tmp_path, numbered_frames(30, 240, 320))
    for part in data.splits:
        clip, label = seed_pipeline.SeedDataset(kind, data, part)[0]
        assert clip.shape == shape and clip.dtype == torch.float32 and label == 1
    model = seed_pipeline.build(kind, 3)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert len(seed_pipeline.read_all_frames(tmp_path / "b" / "a.avi")) == 30


def test_the_seed_takes_one_window_and_crops_each_frame_by_itself(tmp_path):
    frames = np.zeros((30, 240, 320, 3), np.uint8)
    frames[:, :, :160] = 200
    data = one_clip(tmp_path, frames)
    np.random.seed(0)
    torch.manual_seed(0)
    clip, _ = seed_pipeline.SeedDataset("2d", data, "train")[0]
    assert not torch.equal(clip[0], clip[1])
    centre, _ = seed_pipeline.SeedDataset("2d", data, "test")[0]
    assert torch.allclose(centre[0], centre[19], atol=0.05)


def test_the_other_yardstick_is_torchvisions(tmp_path):
    """Five clips of 16 frames at 15 per second, of a video of 25, each a window of its own; all is trained."""
    frames = numbered_frames(50, 128, 171)
    data = one_clip(tmp_path, frames)
    dataset = reference_pipeline.ReferenceClips(data)
    clip, label = dataset[4]
    assert len(dataset) == 5 and clip.shape == (3, 16, 112, 112) and label == 1
    seen = frame_numbers(reference_pipeline.decode_window(tmp_path / "b" / "a.avi", 1.0))
    assert seen == time_indices(50, 25.0, 16, 15, 1.0).tolist()
    assert all(parameter.requires_grad for parameter in reference_pipeline.build(3).parameters())


def figure(median: float, n: int = 3) -> dict:
    return {"median": median, "min": median * 0.9, "max": median * 1.1, "n": n}


def test_page_states_each_ratio_with_its_figures():
    measured = {
        "seed_2d": {"epochs_8_s": figure(1000), "peak_mib": figure(3000)},
        "ours_2d": {"whole_s": figure(40), "features_s": figure(30), "reload_s": figure(0.5),
                    "peak_mib": figure(1500), "second_training_s": figure(4)},
        "decode": {"ours_clips_per_s": figure(60), "av_clips_per_s": figure(30), "peak_mib": figure(100),
                   "torchcodec_skipped": "RuntimeError: no FFmpeg"},
        "ours_3d": {"whole_s": figure(50)}, "reference_3d": {"epoch_s": figure(250), "whole_s": figure(56000)},
        "trunk_2d": {"bfloat16 torch ms": figure(100), "bfloat16 torch gflops": figure(200),
                     "bfloat16 torch peak": figure(250)},
        "latency_3d": {"seed_model_1_threads_s": figure(2), "ours_model_1_threads_s": figure(0.1)},
        **{f"growth_{n}": {"clips": figure(n, 1), "whole_ms": figure(10 + n / 1000, 1), "open_ms": figure(4, 1),
                           "peak_mib": figure(1000, 1)} for n in (1000, 10000)},
    }
    page = table.markdown({"measured": measured, "clips": "here"}, "a machine")
    assert "a machine" in page and "1000 (900 to 1100)" in page and "**25.0x**" in page and "**2.0x**" in page
    assert "| av | clips per second | 30.0 (27.0 to 33.0) | 60.0 (54.0 to 66.0) | **2.0x** |" in page
    assert re.search(r"\| model 1 threads s \| 2\.0 .* \| 0\.100 .* \| \*\*20\.0x\*\* \|", page)
    assert re.search(r"\| 10000 clips \| per clip \[ms\] \| – \| 20\.0 \| 1\.82 of the fewest's \|", page)
    assert re.search(r"\| 10000 clips \| peak memory \[MiB\] .* 1\.00 of the fewest's", page)
    assert "| torchcodec | not measured: RuntimeError: no FFmpeg |" in page
    assert re.search(r"torch \[GFLOP/s\], beside a large matrix product \| 250 .* \| 200 .* \| \*\*0\.8x", page)
    assert re.search(r"one epoch of one clip per video .* \| \*\*5\.0x\*\* \|", page)
    assert "Loading" not in page  # not measured


def test_committed_figures_are_still_readable():
    found = [path for path in (bench.ROOT / "results/benchmarks").glob("*.json")
             if path.stem not in ("recipes", "faults", "soak", "scale")]  # of other programs
    assert found
    for path in found:
        page = table.markdown(json.loads(path.read_text(encoding="utf-8")), "a machine")
        assert re.search(r"\n## .*\n\n(\|.*\|\n){3}", page)


def test_summary_of_repeats():
    found = bench.summary([{"a": 1.0, "b": "text"}, {"a": 3.0, "b": "text"}, {"a": 2.0, "b": "text"}])
    assert found == {"a": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}, "b": "text"}


@pytest.mark.slow
def test_smallest_run(tiny_dataset, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--clips", str(tiny_dataset), "--repeats", "1", "--only", "decode"])
    bench.main()
    document = json.loads(next((tmp_path / "benchmarks").glob("*.json")).read_text(encoding="utf-8"))
    assert document["measured"]["decode"]["ours_clips_per_s"]["n"] == 1
    assert document["measured"]["decode"]["peak_mib"]["median"] > 50
    page = next((tmp_path / "benchmarks").glob("*.md")).read_text(encoding="utf-8")
    assert re.search(r"\| av \| clips per second \| .* \| \*\*\d+\.\dx\*\* \|", page)
    assert page in capsys.readouterr().out


def test_the_page_on_strangers_states_means_and_the_range_of_folds():
    rows = [{"data": "own", "strangers": "others", "model": "2D-CNN", "fold": fold,
             **unfamiliar.row(unfamiliar.USED, np.array([0.1, 0.2, top]), np.array([0.3, 0.4])), "own above 1": 0.0,
             "strangers above 1": 0.5} for fold, top in ((1, 0.25), (2, 0.35))]
    plain = {**rows[0], **unfamiliar.row("another score", np.array([1.0]), np.array([0.0]))}
    plain = {name: value for name, value in plain.items() if "above" not in name}
    text = unfamiliar.page(pd.DataFrame([*rows, plain]))
    assert f"| own | others | 2D-CNN | {unfamiliar.USED} | 0.917 (0.83 to 1.00) | 0.000 (0.00 to 0.00) |" in text
    assert "| another score | 0.000 (0.00 to 0.00) | – | – |" in text


def test_distances_of_strangers_are_euclidean():
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(20, 5)), rng.normal(size=(7, 5))
    expected = np.sort(np.linalg.norm(asked[:, None] - known, axis=2), axis=1)[:, :unfamiliar.NEIGHBOURS].mean(axis=1)
    np.testing.assert_allclose(unfamiliar.nearest(asked, known), expected)
