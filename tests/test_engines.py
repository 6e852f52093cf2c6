"""Another engine for frozen networks: the same numbers within the precision's own error, taken by a rule."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import engines
import experiment
from config import NETWORKS, get_recipe
from deployed import FrozenTrunk
from engines import choose_engine, choose_precision
from experiment import untrained
from models import build_model
from videos.library import open_data

BOTH = ("float32", "bfloat16")


@pytest.fixture
def installed():
    pytest.importorskip("openvino", reason="no openvino here: torch runs frozen networks")


def trunk_outputs(model, clip, precision):
    return [FrozenTrunk(model, "cpu", precision, engine).run(clip).float()
            for engine in engines.ENGINES]


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backbone"), [("2d", "efficientnet_lite0"), ("2d", "resnet18"),
                                                ("3d", "efficientnet_lite0_3d"), ("3d", "resnet3d")])
@pytest.mark.parametrize("frames", [4, 7])
def test_both_engines_give_the_same(installed, kind, backbone, frames):
    """Of any number of frames; in bfloat16 they differ no more than torch in bfloat16 does from float32."""
    torch.manual_seed(0)
    recipe = get_recipe("recommended", kind, modality="diff", size=64)
    source = "packaged" if NETWORKS[backbone].source == "packaged" else "none"
    model = build_model(recipe, 3, source, backbone).eval()
    clip = torch.randn(2, frames, 3, 64, 64).movedim(1, model.time)
    exact, same = trunk_outputs(model, clip, "float32")
    assert exact.shape == same.shape and distance(same, exact) < 1e-4
    theirs, ours = trunk_outputs(model, clip, "bfloat16")
    assert distance(ours, exact) < 1.5 * distance(theirs, exact) + 1e-4


@pytest.mark.slow
def test_an_engine_gives_the_same_bits_again(installed):
    torch.manual_seed(0)
    model = build_model(get_recipe("recommended", "2d", modality="diff", size=64), 3, "packaged").eval()
    clip = torch.randn(1, 12, 3, 64, 64)
    first, second = (FrozenTrunk(model, "cpu", "auto", "openvino").run(clip) for _ in range(2))
    engines._COMPILED.clear()
    third = FrozenTrunk(model, "cpu", "auto", "openvino").run(clip)
    assert torch.equal(first, second) and torch.equal(first, third)


def test_the_rule(installed):
    assert choose_engine("auto", BOTH, "cpu", "float32", 1e9) == "openvino"
    assert choose_engine("auto", BOTH, "cpu", "float32", 1e6) == "torch"  # a conversion takes longer
    assert choose_engine("auto", ("float32",), "cpu", "bfloat16", 1e9) == "torch"
    assert choose_engine("auto", BOTH, "cuda", "float32", 1e9) == "torch"
    assert choose_engine("torch", BOTH, "cpu", "float32", 1e9) == "torch"
    assert choose_engine("openvino", (), "cpu", "float32", 1) == "openvino"


def test_without_the_package_torch_runs_and_asking_for_it_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert choose_engine("auto", BOTH, "cpu", "float32", 1e9) == "torch"
    for asked in ("openvino", "onnx"):
        with pytest.raises(ValueError, match=f"engine '{asked}': there are auto, torch, and, on a CPU"):
            choose_engine(asked, BOTH, "cpu", "float32", 1e9)
    with pytest.raises(ValueError, match="unknown precision 'float16'"):
        choose_precision("float16", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_kept_features_are_told_apart_by_engine_and_agree(installed, tiny_dataset, tmp_path, monkeypatch, kind, capsys):
    """Those of one engine are never served for the other; clips, splits and modalities all get the same engine."""
    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    recipe = get_recipe("recommended", kind, modality="rgb+diff", size=64, num_frames=4, stills=2, precision="float32")
    kept = []
    for worth, engine in ((float("inf"), "torch"), (0, "openvino")):
        monkeypatch.setattr(engines, "WORTH", worth)
        run = untrained(data, recipe, "packaged", 0, cache=tmp_path / "cache")
        assert run.engine == engine
        kept.append(run.activations(run.dataset("val")))
        assert f"by {engine}" in capsys.readouterr().out
    assert {path for files in kept[0].files for path in files}.isdisjoint(
        path for files in kept[1].files for path in files)
    for (a, _), (b, _) in zip(*kept, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)  # kept in float16


def test_a_conversion_reports_to_nobody(installed):
    """OpenVINO's own telemetry is on unless it is refused: here nothing is sent, nor is its package loaded."""
    code = """
import socket, sys, threading
def refuse(*_, **__): raise SystemExit("a connection was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from engines import Compiled
print(Compiled(torch.nn.Conv2d(3, 4, 3).eval(), "float32", False)([torch.zeros(1, 3, 8, 8)])[0].shape)
assert not any(thread.name.lower().startswith("telemetry") for thread in threading.enumerate())
assert sys.modules["openvino_telemetry"] is None
"""
    source = Path(engines.__file__).parent
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(source)})
    assert ran.returncode == 0 and "[1, 4, 6, 6]" in ran.stdout, ran.stderr


def test_a_saved_model_says_what_computed_its_features(installed, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "WORTH", 0)
    data = open_data(str(tiny_dataset), results=tmp_path / "results")
    recipe = get_recipe("recommended", "2d", modality="diff", size=64, num_frames=4, epochs=1)
    run = experiment.load_or_train("2d", data, recipe, "packaged", cache=tmp_path / "cache")
    assert run.stats["engine"] == "openvino"
