"""Training a network's own stages: a batch in micro-batches, in one process or shared out to several.

A batch that is too large for a device passes through the stages a micro-batch at a time, whose gradients add up to the
batch's (gradient accumulation); what stands behind the pooling over time sees the whole batch. Who computes a
micro-batch decides nothing: what is drawn belongs to the batch and to the clip. So one process and many give the same
within rounding, and one goes on where the other stopped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, zip_longest

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from cluster import in_step
from config import Recipe
from data_loader import drawn_with
from engines import choose_precision
from machine import team
from models import Standardize, VideoModel
from utils import Training, fit

DRAWS = 2**62  # keys of what is drawn: whole numbers below it


def trained_part(model: VideoModel, recipe: Recipe) -> nn.Module:
    """What training sees of a recipe's model: of a head, what follows the summary of the kept activations, or the whole
    model where none are kept; of stages, a `MicroBatched`."""
    kept = recipe.cache == "activations"
    if recipe.trained != "head":
        return MicroBatched(model, model.cut if kept else 0, recipe.micro_batch, recipe.precision)
    return model.tail if kept else model


class MicroBatched(nn.Module):
    """What follows the first `start` stages of a model, trained: a batch, or this process's micro-batches of one, to
    the (B, num_classes) logits of the whole batch.

    In several processes each takes every so many-th micro-batch of a batch (see `data_loader.SharedBatches`), and all
    of them the pooled features of all clips. Where all of the network is trained, on more than one micro-batch in
    a process, what lies between the layers is computed twice rather than kept. Random layers within the stages draw by
    the number of the micro-batch. BatchNorm layers that are trained see one micro-batch each; their running statistics
    become the mean of what each would make of them.

    Args:
        model: gives the stages and what follows them, which are shared.
        start: stages whose activations are what comes in: none, or all that are frozen.
        size: clips of a micro-batch.
        precision: as `engines.choose_precision`: on CUDA, bfloat16 trains the stages in mixed precision. On a CPU it is
            float32 always, where bfloat16 has given gradients that are not finite.
    """

    def __init__(self, model: VideoModel, start: int, size: int, precision: str = "auto"):
        super().__init__()
        self.start, self.size, self.precision = start, size, precision
        self.part = nn.ModuleList(model.branches(start)) if start else model  # what has parameters and a mode
        self._whole = (model,)  # not registered

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (model,), (first, step) = self._whole, team()
        features, decide = model.parted()
        decide.training = self.training
        draws = int(torch.randint(DRAWS, ())) if self.training else 0
        mine = x.split(self.size) if len(x) else ()
        again = self.training and torch.is_grad_enabled() and not model.cut and len(mine) > 1
        with self._statistics(len(mine)) as moving:
            rows = [self._of_one(features, its, draws + first + step * number, moving, again)
                    for number, its in enumerate(mine)]
        own = torch.cat(rows) if rows else next(self.parameters()).new_empty(0, 0)
        logits = decide(_Gathered.apply(own, self.size) if step > 1 else own)
        if step > 1 and not self.training:
            dist.broadcast(logits, 0)  # other hardware rounds otherwise: all stop at the same epoch
        return logits

    def _of_one(self, features: Callable, x: torch.Tensor, key: int, moving: _Statistics, again: bool) -> torch.Tensor:
        """(n, D) features of a micro-batch; computed `again` when the gradient needs what is in between."""
        (model,) = self._whole
        mixed = self.training and x.is_cuda and choose_precision(self.precision, x.device) == "bfloat16"
        halved = torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext()
        with halved, drawn_with(key, x.device) if self.training else nullcontext(), moving.micro_batch():
            if not self.start and model.cut:
                with torch.no_grad():
                    x = model.joined(model.trunk, x)
            if again:
                its = checkpoint(features, x, use_reentrant=False,
                                 context_fn=lambda: (nullcontext(), moving.as_they_are()))
            else:
                its = features(x)
        return its.float() if mixed else its

    @contextmanager
    def _statistics(self, count: int) -> Iterator[_Statistics]:
        layers = [its for its in self.part.modules()
                  if isinstance(its, _BatchNorm) and its.training and not isinstance(its, Standardize)]
        moving = _Statistics([buffer for layer in layers for buffer in layer.buffers()])
        yield moving
        moving.average(count)


class _Statistics:
    """The running statistics of BatchNorm layers over the micro-batches of a batch: each starts with those before it,
    and their mean stays."""

    def __init__(self, buffers: Sequence[torch.Tensor]):
        self.buffers, self.before = buffers, [buffer.clone() for buffer in buffers]
        self.sums = [torch.zeros_like(its if its.is_floating_point() else its.float()) for its in buffers]

    def _set(self, values: Sequence[torch.Tensor]) -> None:
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer.data.copy_(value)  # no gradient depends on them

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """What happens within starts with the statistics before the batch, and counts."""
        self._set(self.before)
        yield
        for total, buffer in zip(self.sums, self.buffers, strict=True):
            total += buffer

    @contextmanager
    def as_they_are(self) -> Iterator[None]:
        """What happens within leaves the statistics as they are."""
        now = [buffer.clone() for buffer in self.buffers]
        try:
            yield
        finally:  # what is computed again ends where nothing more is needed of it
            self._set(now)

    def average(self, count: int) -> None:
        """Sets them to the mean over the micro-batches, of which `count` were this process's."""
        if not self.buffers:
            return
        flat = torch.cat([total.flatten() for total in self.sums] + [self.sums[0].new_tensor([count])])
        if team()[1] > 1:
            dist.all_reduce(flat)
        means = (flat[:-1] / flat[-1]).split([total.numel() for total in self.sums])
        self._set([mean.view_as(buffer) for mean, buffer in zip(means, self.buffers, strict=True)])


class _Gathered(torch.autograd.Function):
    """The rows of all clips of a batch, in its order, of which each process has those of its micro-batches.

    All processes go on alike, so that each has the whole gradient of its own rows. It is multiplied by the number of
    processes, since DistributedDataParallel takes the mean of what are parts of a sum.
    """

    @staticmethod
    def forward(ctx, own: torch.Tensor, size: int) -> torch.Tensor:
        ctx.size, (_, count) = size, team()
        shapes = [torch.empty(2, dtype=torch.long, device=own.device) for _ in range(count)]
        dist.all_gather(shapes, torch.tensor(own.shape, device=own.device))
        lengths, width = [int(rows) for rows, _ in shapes], max(int(columns) for _, columns in shapes)
        filled = own.new_zeros(max(lengths), width)
        if len(own):
            filled[:len(own)] = own
        everyone = [torch.empty_like(filled) for _ in range(count)]
        dist.all_gather(everyone, filled)
        parts = [rows[:length].split(size) if length else () for rows, length in zip(everyone, lengths, strict=True)]
        return torch.cat([part for part in chain(*zip_longest(*parts)) if part is not None])

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, None]:
        rank, count = team()
        own = gradient.split(ctx.size)[rank::count]
        return (count * torch.cat(own) if own else gradient.new_empty(0, 0)), None


# ---------------------------------------------------------------- in a cluster

def fit_in_cluster(training: Training, train_loader: DataLoader, val_loader: DataLoader | None, criterion: Callable,
                   address: str, device: torch.device) -> None:
    """Trains in the processes of a Ray cluster, as `utils.fit` does in this one: what is to do afterwards is to go on
    from the state that they saved, in which no epoch is left.

    Args:
        training: of a `MicroBatched`, with a file for its state, which all machines see.
        train_loader, val_loader: of `data_loader.shared_loader`.
        criterion: as `utils.fit`.
        address: as `cluster.shared_out`.
        device: of the model; CUDA takes the cluster's GPUs, else its cores are taken.

    Raises:
        FileNotFoundError: the processes' state is not where it was to be saved.
        Exception: as `cluster.in_step`.
    """
    most = math.ceil(train_loader.batch_sampler.batch_size / training.model.size)  # more would have nothing to do
    (model,) = training.model._whole
    model.to("cpu")  # on its way
    in_step(_Fitting(training, train_loader, val_loader, criterion), address, most, device.type == "cuda",
            training.report)
    model.to(device)
    if not training.last.is_file():
        raise FileNotFoundError(f"{training.last}: the cluster's processes saved their state, and it is not there: the "
                                "results need the same path, of the same folder, on every machine")


class _Fitting:
    """A training on its way to the processes that share it, and how each of them does it."""

    def __init__(self, training: Training, train_loader: DataLoader, val_loader: DataLoader | None,
                 criterion: Callable):
        self.training, self.loaders, self.criterion = copy.copy(training), (train_loader, val_loader), criterion
        self.training.report = None  # lines go back to where it is from

    def __call__(self, device: torch.device, cores: int, report: Callable[[str], None]) -> None:
        self.training.report = report
        for loader in filter(None, self.loaders):
            loader.num_workers = min(loader.num_workers, cores - 1)
        model = self.training.model.to(device)
        if team()[1] > 1:
            batches = self.loaders[0].batch_sampler
            last = batches.clips % batches.batch_size  # of the last batch, which may have nothing for some processes
            idle = 0 < math.ceil(last / batches.micro_batch) < team()[1]
            model = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=idle)
        fit(self.training, *self.loaders, self.criterion, device, model)
