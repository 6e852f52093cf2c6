"""The machine: what is told of it, and which device is taken."""

import shutil
import subprocess

import psutil
import pytest
import torch

from machine import accelerator, commit, computes_bfloat16, cores, environment, hardware_line, memory_mb


def test_what_is_told_of_this_machine():
    told = environment("cpu")
    line = hardware_line(told)
    assert told["torch"] == torch.__version__ and told["gpu"] is None and "no GPU" in line
    assert f"{psutil.cpu_count()} cores" in line and 1 <= cores() <= psutil.cpu_count()
    memory = memory_mb()
    assert 0 < memory["current"] <= memory["peak"] * 1.5


@pytest.mark.parametrize("cuda, mps, taken", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_cuda_before_mps_before_cpu(monkeypatch, cuda, mps, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert accelerator().type == taken and accelerator("cpu").type == "cpu"


@pytest.mark.parametrize("able, computes", [("amx_bf16", True), ("avx512_bf16", True), ("avx2", False)])
def test_bfloat16_where_the_processor_has_its_arithmetic(monkeypatch, able, computes):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {able: True})
    assert computes_bfloat16("cpu") == computes and not computes_bfloat16("mps")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_told_and_whether_code_differs_from_it(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True,
                       capture_output=True)

    assert commit(tmp_path) == "unknown"
    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "one")
    clean = commit(tmp_path)
    assert len(clean) >= 7 and not clean.endswith("dirty")
    (tmp_path / "result.json").write_text("{}")
    assert commit(tmp_path) == clean
    (tmp_path / "code.py").write_text("2")
    assert commit(tmp_path) == f"{clean}-dirty"
