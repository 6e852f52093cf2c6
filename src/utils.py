"""Training's small parts: seeds, one epoch, early stopping, and files that are whole or not there."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import random
import resource
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from store import atomic_path


def seed_everything(seed: int, deterministic: bool = True) -> None:
    """Seeds Python, NumPy and torch; `deterministic` also forbids cuDNN's autotuned (unrepeatable) kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators too
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def train_one_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer,
                    criterion: Callable, device: str | torch.device,
                    after_step: Callable[[], None] | None = None) -> tuple[float, float]:
    """One pass over the loader in training mode.

    Args:
        model: batch to (B, num_classes) logits.
        loader: gives (batch, (B,) integer labels).
        optimizer: of the model's trained parameters.
        criterion: (logits, labels) to the batch's mean loss.
        device: where the model is.
        after_step: called after every optimiser step, such as a schedule's step.

    Returns:
        Loss and accuracy, weighted by samples.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    model.train()
    return _run_epoch(model, loader, criterion, device, optimizer, after_step)


@torch.no_grad()
def eval_one_epoch(model: nn.Module, loader: DataLoader, criterion: Callable,
                   device: str | torch.device) -> tuple[float, float]:
    """One pass over the loader in evaluation mode; arguments and result as `train_one_epoch`."""
    model.eval()
    return _run_epoch(model, loader, criterion, device)


def _run_epoch(model, loader, criterion, device, optimizer=None, after_step=None) -> tuple[float, float]:
    total_loss, correct, seen = 0.0, 0, 0
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        logits = model(x)  # (B, num_classes)
        loss = criterion(logits, y)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if after_step:
                after_step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss became {value} after {seen} samples: try a lower learning rate, "
                                     "and float32 where bfloat16 was used")
        total_loss += value * len(y)
        correct += int((logits.argmax(dim=1) == y).sum())
        seen += len(y)
    if seen == 0:
        raise ValueError("the loader gave no samples")
    return total_loss / seen, correct / seen


class EarlyStopping:
    """Says stop once the validation loss has not improved for `patience` epochs in a row.

    Args:
        patience: epochs without improvement that are borne.
        min_delta: an improvement is a loss lower by more than this.

    Attributes:
        stop: whether to stop.
        best: lowest loss so far.
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0):
        self.patience, self.min_delta = patience, min_delta
        self.best, self.waited, self.stop = math.inf, 0, False

    def __call__(self, val_loss: float) -> bool:
        """Takes an epoch's validation loss; returns `stop`."""
        if val_loss < self.best - self.min_delta:
            self.best, self.waited = val_loss, 0
        else:
            self.waited += 1
        self.stop = self.waited >= self.patience
        return self.stop

    def state_dict(self) -> dict:
        """Where it stands, as plain types."""
        return {"best": self.best, "waited": self.waited, "stop": self.stop}

    def load_state_dict(self, state: dict) -> None:
        """Goes on from where `state_dict` was taken."""
        self.best, self.waited, self.stop = state["best"], state["waited"], state["stop"]


# ---------------------------------------------------------------- files that are whole or not there

def read_json(path: str | Path) -> dict:
    """A JSON document, or an empty one where the file is absent.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); mend it or move it away") from error


def write_json(path: str | Path, document: dict) -> None:
    """Writes plain types as JSON, whole or not at all; NumPy numbers and arrays become plain ones."""
    text = json.dumps(document, indent=2, default=_plain)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def _plain(value):
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return str(value)


def update_json(path: str | Path, **entries) -> dict:
    """Adds entries to a JSON document, dropping none that is there; returns the whole."""
    document = {**read_json(path), **entries}
    write_json(path, document)
    return document


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Writes a table without its index, whole or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def save_array(path: str | Path, values) -> None:
    """`np.save`, whole or not at all."""
    with atomic_path(path) as temporary:
        np.save(temporary, values)


def save_torch(path: str | Path, state: dict) -> None:
    """`torch.save`, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


# ---------------------------------------------------------------- where a number was measured

def environment(device: str | torch.device = "cpu") -> dict:
    """Date, versions and hardware, as plain types, to stand beside every result."""
    gpu = torch.cuda.get_device_name(0) if torch.device(device).type == "cuda" else None
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return {"date": datetime.date.today().isoformat(), "python": platform.python_version(),
            "torch": torch.__version__, "torchvision": torchvision.__version__,
            "opencv": cv2.__version__, "numpy": np.__version__, "system": platform.system(), "cpu": cpu,
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "gpu": gpu}


def hardware_line(env: dict) -> str:
    """An environment's hardware in one line."""
    gpu = f", {env['gpu']}" if env.get("gpu") else ", no GPU"
    return (f"{env['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB{gpu}, {env['system']}, "
            f"Python {env['python']}, torch {env['torch']}")


def memory_mb() -> dict[str, float]:
    """This process's memory in MiB: `current` and `peak` resident set, and `gpu_peak` where CUDA is in use."""
    unit = 1 if platform.system() == "Darwin" else 1024  # getrusage counts bytes on macOS, KiB on Linux
    memory = {"current": psutil.Process().memory_info().rss / 2**20,
              "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if torch.cuda.is_available():
        memory["gpu_peak"] = torch.cuda.max_memory_allocated() / 2**20
    return memory
