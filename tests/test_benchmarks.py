"""The benchmark: a faithful yardstick, a page made from its figures, and a run in its smallest configuration."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import numbered_frames, write_video

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench
import seed_pipeline
import table


@pytest.mark.parametrize("kind, shape, parameters, trained", [
    ("2d", (20, 3, 224, 224), 11_178_051, 11_178_051), ("3d", (3, 16, 224, 224), 33_167_811, 1_539)])
def test_the_yardstick_is_the_seeds(tmp_path, kind, shape, parameters, trained):
    path = write_video(tmp_path / "a.avi", numbered_frames(30, 240, 320))
    for train in (True, False):
        clip, label = seed_pipeline.SeedDataset([str(path)], [1], kind, train)[0]
        assert clip.shape == shape and clip.dtype == torch.float32 and label == 1
    model = seed_pipeline.build(kind, 3)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert len(seed_pipeline.read_all_frames(str(path))) == 30


def test_the_seed_takes_one_window_and_crops_each_frame_by_itself(tmp_path):
    frames = np.zeros((30, 240, 320, 3), np.uint8)
    frames[:, :, :160] = 200
    path = write_video(tmp_path / "a.avi", frames)
    np.random.seed(0)
    torch.manual_seed(0)
    clip, _ = seed_pipeline.SeedDataset([str(path)], [0], "2d", train=True)[0]
    assert not torch.equal(clip[0], clip[1])
    centre, _ = seed_pipeline.SeedDataset([str(path)], [0], "2d", train=False)[0]
    assert torch.allclose(centre[0], centre[19], atol=0.05)


def figure(median: float, n: int = 3) -> dict:
    return {"median": median, "min": median * 0.9, "max": median * 1.1, "n": n}


def test_page_states_each_ratio_with_its_figures():
    measured = {
        "seed_2d": {"epochs_8_s": figure(1000), "peak_mib": figure(3000)},
        "ours_2d": {"whole_s": figure(40), "epochs": figure(16), "features_s": figure(30), "reload_s": figure(0.5),
                    "peak_mib": figure(1500), "second_training_s": figure(4)},
        "decode": {"ours_clips_per_s": figure(60), "av_clips_per_s": figure(30), "decord_skipped": "not installed"},
        "growth_2d": {f"x{n}": {"clips": 24 * n, "seconds": 10.0 * n, "peak_mib": 1000.0 * n**0.5} for n in (1, 2, 4)},
    }
    page = table.markdown({"measured": measured, "clips": "here"}, "a machine")
    assert "a machine" in page and "1000 (900 to 1100)" in page and "**25.0x**" in page and "**2.0x**" in page
    assert "| av | clips per second | 30.0 (27.0 to 33.0) | 60.0 (54.0 to 66.0) | **2.0x** |" in page
    assert "| decord | skipped | not installed |" in page
    assert "seconds grow as clips^1.00" in page and "memory grows as clips^0.50" in page
    assert "Latency" not in page  # not measured


def test_committed_figures_are_still_readable():
    for path in (bench.ROOT / "results/benchmarks").glob("*.json"):
        page = table.markdown(json.loads(path.read_text(encoding="utf-8")), "a machine")
        assert re.search(r"\n## .*\n\n(\|.*\|\n){3}", page)


def test_summary_of_repeats():
    found = bench.summary([{"a": 1.0, "b": "text"}, {"a": 3.0, "b": "text"}, {"a": 2.0, "b": "text"}])
    assert found == {"a": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}, "b": "text"}


def test_smallest_run(tiny_dataset, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--clips", str(tiny_dataset), "--repeats", "1", "--only", "decode",
                                      "transforms"])
    bench.main()
    document = json.loads(next((tmp_path / "benchmarks").glob("*.json")).read_text(encoding="utf-8"))
    assert document["measured"]["decode"]["ours_clips_per_s"]["n"] == 1
    assert document["measured"]["transforms"]["peak_mib"]["median"] > 50
    page = next((tmp_path / "benchmarks").glob("*.md")).read_text(encoding="utf-8")
    assert re.search(r"\| train transform \[ms\] \| .* \| \*\*\d+\.\dx\*\* \|", page)
    assert page in capsys.readouterr().out
