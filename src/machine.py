"""The machine: cores, memory, versions, and the accelerator. torch is imported where it is asked for."""

from __future__ import annotations

import datetime
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import joblib
import psutil
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    import torch


def cores() -> int:
    """CPUs that this process may use."""
    return joblib.cpu_count()


def in_processes(function: Callable, items: Sequence[tuple], parallel: bool = True, least: int = 1) -> Iterator:
    """`function` of each item's values, in the order of the items: with `parallel`, in a process per core, in which it
    has one thread; a single item in this process, unless two are the least.

    `joblib.parallel_config(backend="sequential")` keeps all in this process.

    Raises:
        BrokenProcessPool: a process died; what was given before it holds.
    """
    jobs = max(min(cores(), len(items)), least) if parallel else 1
    warnings.filterwarnings("ignore", "A worker stopped", UserWarning)  # one that grew is replaced, nothing is lost
    call = partial(_on_one_thread, function) if parallel else function
    return joblib.Parallel(max(jobs, 1), return_as="generator")(joblib.delayed(call)(*item) for item in items)


def _on_one_thread(function: Callable, *values):
    with threadpool_limits(1):
        return function(*values)


@contextmanager
def opencv_without_threads():
    """Stops OpenCV's own threads for a while: where clips are worked on side by side, they only get in the way."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def accelerator(name: str | torch.device | None = None) -> torch.device:
    """The device asked for; None takes CUDA, else Apple's MPS, else the CPU."""
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def team() -> tuple[int, int]:
    """This process's number among those that train one model together by torch.distributed, and how many they are."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def of_the_first(value: object) -> object:
    """What the first process of a `team` has."""
    import torch.distributed as dist

    values = [value]
    if team()[1] > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def computes_bfloat16(device: str | torch.device) -> bool:
    """Whether the hardware has bfloat16 arithmetic: CUDA that says so; CPUs with AVX512-BF16 or AMX."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if torch.device(device).type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def environment(device: str | torch.device = "cpu") -> dict:
    """Date, versions and hardware, as plain types, to stand beside every result."""
    import cv2
    import torch

    gpu = {"cuda": torch.cuda.get_device_name, "mps": lambda _: "Apple MPS"}.get(torch.device(device).type)
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    able = torch.backends.cpu.get_cpu_capability() + ", bfloat16" * computes_bfloat16("cpu")  # its speed hangs by that
    return {"date": datetime.date.today().isoformat(), "python": platform.python_version(),
            "torch": torch.__version__, "torchvision": version("torchvision"), "opencv": cv2.__version__,
            "numpy": version("numpy"), "system": platform.system(), "cpu": f"{cpu} ({able})",
            "cores": psutil.cpu_count(), "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "gpu": gpu(device) if gpu else None}


def hardware_line(env: dict) -> str:
    """An environment's hardware in one line."""
    gpu = f", {env['gpu']}" if env.get("gpu") else ", no GPU"
    return (f"{env['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB{gpu}, {env['system']}, "
            f"Python {env['python']}, torch {env['torch']}")


def commit(root: Path) -> str:
    """The commit of the code in `root`, marked where Python files differ from it; `unknown` outside a git checkout."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments],  # noqa: S603, S607  the user's own git, our arguments
                              cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", "*.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def memory_mb() -> dict[str, float]:
    """This process's memory in MiB: `current` and `peak` resident set, and `gpu_peak` where CUDA is in use."""
    import torch

    memory = {"current": psutil.Process().memory_info().rss / 2**20, "peak": _peak_bytes() / 2**20}
    if torch.cuda.is_available():
        memory["gpu_peak"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _peak_bytes() -> int:
    """The peak resident set; where the system doesn't tell it, the current one."""
    info = psutil.Process().memory_info()
    try:
        import resource
    except ImportError:
        return getattr(info, "peak_wset", info.rss)  # Windows
    unit = 1 if platform.system() == "Darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
