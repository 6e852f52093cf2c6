"""Training: one epoch, early stopping, and the loop over epochs, which saves and resumes."""

from __future__ import annotations

import hashlib
import io
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, StepLR
from torch.utils.data import DataLoader

from config import Recipe
from files import read_sealed, write_sealed
from machine import of_the_first, team

LINES = 12  # about, that a training prints
HISTORY = ("train_losses", "train_accs", "val_losses", "val_accs")


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch, and forbids cuDNN's autotuned (unrepeatable) kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # CUDA's generators too
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


# ---------------------------------------------------------------- one epoch

def train_one_epoch(model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer,
                    criterion: Callable, device: str | torch.device,
                    scheduler: LRScheduler | None = None) -> tuple[float, float]:
    """One pass over the loader in training mode.

    Args:
        model: batch to (B, num_classes) logits.
        loader: gives (batch, (B,) integer labels).
        optimizer: of the model's trained parameters.
        criterion: (logits, labels) to the batch's mean loss.
        device: where the model is.
        scheduler: a learning rate schedule that steps after every optimiser step.

    Returns:
        Loss and accuracy, weighted by samples.

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    model.train()
    return _run_epoch(model, loader, criterion, device, optimizer, scheduler)


@torch.no_grad()
def eval_one_epoch(model: nn.Module, loader: DataLoader, criterion: Callable,
                   device: str | torch.device) -> tuple[float, float]:
    """One pass over the loader in evaluation mode; arguments and result as `train_one_epoch`."""
    model.eval()
    return _run_epoch(model, loader, criterion, device)


def _run_epoch(model, loader, criterion, device, optimizer=None, scheduler=None) -> tuple[float, float]:
    total_loss, correct, seen = 0.0, 0, 0
    for x, y in loader:
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        logits = model(x)  # (B, num_classes)
        loss = criterion(logits, y)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if scheduler is not None:
            scheduler.step()
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


# ---------------------------------------------------------------- optimiser, schedule, early stopping

def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """`adam` or `adamw` over the model's trained parameters, with the recipe's learning rate and weight decay.

    Raises:
        ValueError: another name.
    """
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if recipe.optimizer not in kinds:
        raise ValueError(f"unknown optimizer {recipe.optimizer!r}: {', '.join(kinds)}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = parameters[0].is_cuda or None  # one kernel for all parameters, on CUDA
    return kinds[recipe.optimizer](parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def make_scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, samples: int) -> LRScheduler:
    """The recipe's schedule; it steps after every optimiser step.

    `cosine` warms up for one epoch and falls to nearly nothing at the last (OneCycleLR); `step` halves the rate every
    five epochs (the seed's).

    Args:
        recipe: gives schedule, epochs and batch size.
        optimizer: whose learning rate is scheduled.
        samples: in an epoch.

    Raises:
        ValueError: another name.
    """
    steps = math.ceil(samples / recipe.batch_size)
    if recipe.schedule == "step":
        return StepLR(optimizer, step_size=5 * steps, gamma=0.5)
    if recipe.schedule != "cosine":
        raise ValueError(f"unknown schedule {recipe.schedule!r}: cosine, step")
    return OneCycleLR(optimizer, recipe.lr, total_steps=max(steps * recipe.epochs + 1, 3),
                      pct_start=1 / max(recipe.epochs, 2), cycle_momentum=False)


class EarlyStopping:
    """Says stop once the validation loss has been worse than its lowest for `patience` epochs in a row.

    Args:
        patience: worse epochs to tolerate.
        tolerance: a loss that is higher than the lowest by less than this share of it is no worse.

    Attributes:
        stop: whether to stop.
        best: lowest loss so far.
        waited: epochs since the last one that was no worse.
    """

    def __init__(self, patience: int = 3, tolerance: float = 0.0):
        self.patience, self.tolerance = patience, tolerance
        self.best, self.waited, self.stop = math.inf, 0, False

    def __call__(self, val_loss: float) -> bool:
        """Takes an epoch's validation loss; returns `stop`."""
        self.waited = 0 if val_loss < self.best * (1 + self.tolerance) else self.waited + 1
        self.best = min(self.best, val_loss)
        self.stop = self.waited >= self.patience
        return self.stop

    def state_dict(self) -> dict:
        """Its state as plain types."""
        return {"best": self.best, "waited": self.waited, "stop": self.stop}

    def load_state_dict(self, state: dict) -> None:
        """Restores the state."""
        self.best, self.waited, self.stop = state["best"], state["waited"], state["stop"]

    def __repr__(self) -> str:
        return f"EarlyStopping(patience={self.patience}, tolerance={self.tolerance:g})"


# ---------------------------------------------------------------- the loop over epochs

class Training:
    """The epochs of one training. Iterating over it gives epoch numbers, as long as there is something to do:

        for epoch in training:
            train_loss, train_acc = train_one_epoch(model, train_loader, optimizer, criterion, device, scheduler)
            val_loss, val_acc = eval_one_epoch(model, val_loader, criterion, device)
            training.record(train_loss, train_acc, val_loss, val_acc)

    The state is saved after each epoch; an interrupted training of the same request goes on after its last whole epoch,
    and ends with the weights and history of an uninterrupted one. At the end the model has the weights of its best
    epoch, as `monitor` says.

    Args:
        model: what is trained, on its device.
        optimizer: of its trained parameters.
        scheduler: steps after every optimiser step.
        stopping: is told each epoch's validation loss; None never stops early.
        epochs: at most.
        seed: of order, drawn views and dropout: set when the first epoch begins, whatever was drawn before.
        last: file of the state after the last whole epoch, whose name is given the request's hash; None keeps none.
        request: what identifies the training: the state of another one is neither resumed nor overwritten.
        history: of a training that is over: no epoch is left.
        monitor: the best epoch is the last one whose validation `loss` was no worse than the lowest, as `stopping`
            judges, or the one of the highest validation `accuracy` and, among equals, the lowest loss.
        report: told a line per epoch, or per few where there are many; None tells nothing.

    Attributes:
        history: losses and accuracies, one value per epoch (HISTORY).
        best_epoch: counted from 1.
        seconds: of the epochs; `feature_seconds`: of what was computed before them.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler,
                 stopping: EarlyStopping | None, epochs: int, *, seed: int = 0, last: Path | None = None,
                 request: str = "", history: dict[str, list[float]] | None = None, monitor: str = "loss",
                 report: Callable[[str], None] | None = print):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.stopping, self.epochs = stopping, epochs
        self.seed, self.request = seed, request
        self.last = last and last.with_stem(f"{last.stem}-{hashlib.sha256(request.encode()).hexdigest()[:8]}")
        self.monitor = monitor
        self.report = report or (lambda line: None)
        self.finished, self.history = history is not None, history or {name: [] for name in HISTORY}
        self.best, self.best_epoch, self.seconds, self.feature_seconds = {}, 0, 0.0, 0.0

    def __iter__(self) -> Iterator[int]:
        if self.finished:
            for epoch in range(1, len(self.history["val_accs"]) + 1):
                self._tell(epoch)
        else:
            seed_everything(self.seed)
            self._resume()
            yield from self._epochs_left()
            self.finished = True
        if len(self.history["val_accs"]) < self.epochs:
            self.report(f"early stopping: worse validation losses for {self.stopping.patience} epochs")

    def _epochs_left(self) -> Iterator[int]:
        while len(self.history["val_accs"]) < self.epochs and not (self.stopping and self.stopping.stop):
            self._started = time.perf_counter()
            yield len(self.history["val_accs"]) + 1
        if self.best:
            self.model.load_state_dict(self.best)

    def record(self, train_loss: float, train_acc: float, val_loss: float, val_acc: float) -> None:
        """Takes the results of the epoch that was just trained."""
        self.seconds += time.perf_counter() - self._started
        for name, value in zip(HISTORY, (train_loss, train_acc, val_loss, val_acc), strict=True):
            self.history[name].append(value)
        epoch = len(self.history["val_accs"])
        if self.stopping:
            self.stopping(val_loss)
            if self._is_best(epoch):
                self.best, self.best_epoch = _copied(self.model.state_dict()), epoch
        if self.last and team()[0] == 0:
            write_sealed(self.last, torch_bytes(self._state()))
        self._tell(epoch)

    def _is_best(self, epoch: int) -> bool:
        if self.monitor == "loss":
            return self.stopping.waited == 0
        ranks = list(zip(self.history["val_accs"], np.negative(self.history["val_losses"]), strict=True))
        return ranks.index(max(ranks)) == epoch - 1

    def _tell(self, epoch: int) -> None:
        """A line for the first epoch and for each of some LINES that follow at equal distances."""
        if epoch > 1 and epoch % max(self.epochs // LINES, 1):
            return
        train_loss, train_acc, val_loss, val_acc = (self.history[name][epoch - 1] for name in HISTORY)
        self.report(f"epoch {epoch:2d}/{self.epochs}  train loss {train_loss:.4f} acc {train_acc:.3f}  "
                    f"val loss {val_loss:.4f} acc {val_acc:.3f}")

    def _state(self) -> dict:
        return {"model": self.model.state_dict(), "best": self.best,
                "best_epoch": self.best_epoch, "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "stopping": self.stopping.state_dict() if self.stopping else {}, "history": self.history,
                "seconds": self.seconds, "feature_seconds": self.feature_seconds, "rng": torch.get_rng_state(),
                "gpu_rng": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None}

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _resume(self) -> None:
        there = bool(self.last and self.last.is_file())
        content = read_sealed(self.last) if there else None
        content = of_the_first(None if content is None else bytes(content))
        if content is None:
            if there:
                self.report(f"{self.last.name} is broken: training from the start")
            return
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for part in ("model", "optimizer", "scheduler", "stopping"):
            if state[part]:
                getattr(self, part).load_state_dict(state[part])
        self.best, self.best_epoch, self.history = state["best"], state["best_epoch"], state["history"]
        self.seconds += state["seconds"]
        self.feature_seconds += state["feature_seconds"]
        torch.set_rng_state(state["rng"])
        if state["gpu_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["gpu_rng"], self._device)
        self.report(f"going on after epoch {len(self.history['val_accs'])} of this training")


def fit(training: Training, train_loader: DataLoader, val_loader: DataLoader | None, criterion: Callable,
        device: str | torch.device, model: nn.Module | None = None) -> Training:
    """Trains to the last epoch or early stopping; without a validation loader its losses and accuracies are NaN.

    `model` is what runs, where that is not the training's own: one that wraps it.
    """
    model = training.model if model is None else model
    for _ in training:
        train = train_one_epoch(model, train_loader, training.optimizer, criterion, device, training.scheduler)
        val = (math.nan, math.nan)
        if val_loader is not None:
            val = eval_one_epoch(model, val_loader, criterion, device)
        training.record(*train, *val)
    return training


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def torch_bytes(state: dict) -> memoryview:
    """What `torch.save` writes; equal states give equal bytes."""
    buffer = io.BytesIO()  # of a path the name would stand in it, and it doesn't tell why it can't be written
    torch.save(state, buffer)
    return buffer.getbuffer()
