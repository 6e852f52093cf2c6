"""What is computed once and kept: the frozen trunk's activations of every view of every clip.

One file per clip, named by everything that decides its content: the clip's bytes, the sampling, the transform, the
views, the trunk's weights and the precision. An interrupted run goes on where it was, and two data sets, splits or
recipes that agree on a clip share its file.
"""

from __future__ import annotations

import copy
import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from config import CACHE
from data_loader import ClipTransform, ClipViews, VideoDataset2D, make_loader
from files import ArrayStore, file_hash, shown
from machine import computes_bfloat16
from models import VideoModel, state_hash

IN_MEMORY = 1e9  # bytes of kept activations that a loader of many epochs holds; the rest is read when it is needed
FRAMES_AT_ONCE = 5  # whose maps fit the processor's cache: 20 at once take three times as long


class Activations(Dataset):
    """The kept activations of clips: in `files`, for each clip one .npy per stream, (V, T, ...) float16; those of
    several streams are joined along T.

    A sample is (activations, label): of all views, (V, T, ...); with `view` a number, of this one, (T, ...); with
    `view` `random`, of one that is drawn from torch's generator (training). Values are float32. Where a view is named,
    they are read for epochs: once, and held in memory, as many as IN_MEMORY allows. A loader gets batches
    of them, (B, ...) and (B,), by `__getitems__`; it needs a `collate` that leaves them as they are, such as `tuple`.
    """

    def __init__(self, files: list[tuple[Path, ...]], labels: list[int], view: int | str | None = None):
        self.files, self.labels, self.view = files, labels, view
        self._memory: dict[Path, np.ndarray] = {}
        self._room = IN_MEMORY

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, labels = self.__getitems__([index])
        return x[0], int(labels[0])

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        clips = [[self._stream(path) for path in self.files[row]] for row in rows]
        views = [self.view] * len(rows)
        if self.view == "random":
            views = torch.randint(len(clips[0][0]), (len(rows),)).tolist()
        x = [np.concatenate([stream[slice(None) if view is None else view] for stream in streams],
                            axis=1 if view is None else 0) for streams, view in zip(clips, views, strict=True)]
        return torch.from_numpy(np.stack(x)).float(), torch.tensor([self.labels[row] for row in rows])

    def _stream(self, path: Path) -> np.ndarray:
        if path in self._memory:
            return self._memory[path]
        stream = _mapped(path)
        if self.view is not None and stream.nbytes <= self._room:
            self._room -= stream.nbytes
            stream = self._memory[path] = np.array(stream)
        return stream


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: removed meanwhile, by hand or by another process that needed the space: run "
                                "again, with a higher CACHE_GB") from error


def trunk_activations(model: VideoModel, dataset: VideoDataset2D, views: int, device: str | torch.device,
                      seed: int = 0, cache: Path = CACHE, title: str = "features", precision: str = "auto"
                      ) -> list[Path]:
    """Computes what is missing of the trunk's activations of V `views` of each clip; gives the files that keep them.

    The data set, of one modality, decides by `train` between random views, which follow `seed`, and evenly spread ones.
    `device` and `precision` are as in `FrozenTrunk`; `cache` is the folder of an `ArrayStore`.

    Raises:
        VideoError: a clip can't be decoded; what was computed before it is kept.
        FloatingPointError: the trunk gave values that are not finite.
    """
    if not isinstance(dataset.transform, ClipTransform):
        raise TypeError("kept activations need a ClipTransform: a transform of single frames has no fixed views")
    store, frozen = ArrayStore(cache), FrozenTrunk(model, dataset, device, precision)
    kept = [store.path(frozen.folder, key) for key in _keys(dataset, views, seed, frozen.precision)]
    store.in_use = set(kept)
    missing = [i for i, path in enumerate(kept) if not store.has(path)]
    if missing:
        clips = Subset(ClipViews(dataset, views, seed, pixels=True), missing)
        loader = make_loader(clips, batch_size=1, collate=itemgetter(0))  # not a lambda: spawned workers import it
        progress = tqdm(zip(missing, loader, strict=True), title, len(missing), unit="clip", file=sys.stdout, ncols=90)
        for index, (pixels, _) in progress:
            activations = frozen(pixels)
            if not np.isfinite(activations).all():
                raise FloatingPointError("the frozen trunk gave values that are not finite or exceed float16")
            store.write(kept[index], activations)
        left, size = store.trim(), sum(path.stat().st_size for path in kept)
        print(f"{title}: {len(kept)} clips in {frozen.precision}, {size / 1e6:.0f} MB kept; {shown(store.folder)} "
              f"holds {left / 1e6:.0f} MB of at most {store.budget / 1e9:g} GB")
    return kept


def _keys(dataset: VideoDataset2D, views: int, seed: int, precision: str) -> list[tuple]:
    settings = (type(dataset).__name__, repr(dataset.sampler), repr(dataset.transform), dataset.train, views,
                seed if dataset.train else None, precision)
    names = dataset.data["clip_path"] if dataset.train else [""] * len(dataset)  # random views depend on the name
    return [(settings, name, file_hash(dataset.file(i))) for i, name in enumerate(names)]


# ---------------------------------------------------------------- the trunk as it is run

class FrozenTrunk:
    """A trunk in evaluation mode, its BatchNorm folded into the convolutions before it.

    Args:
        model: gives the trunk, which is copied when it is first run.
        dataset: gives normalisation and layout.
        device: where it runs.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 where the hardware has its arithmetic (a rule, so that the
            same machine gives the same bits), else float32. The attribute is what was chosen.
    """

    def __init__(self, model: VideoModel, dataset: VideoDataset2D, device: str | torch.device, precision: str = "auto"):
        if precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"unknown precision {precision!r}: auto, float32, bfloat16")
        if precision == "auto":
            precision = "bfloat16" if computes_bfloat16(device) else "float32"
        self.model, self.dataset, self.device, self.precision = model, dataset, device, precision
        form = hashlib.sha256(repr(model.trunk).encode()).hexdigest()  # what has no parameters, such as pooling
        self.folder = f"activations/{model.backbone}-{state_hash(model.trunk)[:16]}-{form[:8]}"  # below the cache

    @cached_property
    def trunk(self) -> nn.Module:
        """The trunk as it is run; where all that is asked for is kept, it is not made."""
        return fold_batchnorm(self.model.trunk)

    def join(self, clip: torch.Tensor) -> torch.Tensor:
        """`run` on a clip of all the model's streams."""
        return self.model.joined(self.run, clip)

    @property
    def by_frames(self) -> bool:
        """Whether frames are shared out to threads, few at a time: on a CPU, where each is seen by itself."""
        return self.model.frame_wise and torch.device(self.device).type == "cpu"

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """(V, F, C, H, W) uint8 views to (V, T, ...) float16 activations; where they are not shared out, a view at a
        time, which bounds the memory."""
        views = [self.dataset.layout(self.dataset.transform.normalize(view.to(self.device, non_blocking=True)))[None]
                 for view in pixels]
        batches = [torch.cat(views)] if self.by_frames else views
        return torch.cat([self.run(batch).half().cpu() for batch in batches]).numpy()

    def run(self, clip: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) or (B, C, T, H, W) normalised to (B, ...) activations."""
        trunk = self.trunk  # made before threads ask for it
        if not self.by_frames:
            return self._run(trunk, clip)
        time, b = self.model.time, len(clip)
        frames = clip.movedim(time, 1).flatten(0, 1)[None]  # (1, B*T, C, H, W)
        parts = [part.movedim(1, time) for part in frames.split(FRAMES_AT_ONCE, dim=1)]
        return torch.cat(in_threads(partial(self._run, trunk), parts), dim=1)[0].unflatten(0, (b, -1))

    @torch.inference_mode()
    def _run(self, trunk: nn.Module, clip: torch.Tensor) -> torch.Tensor:
        half = self.precision == "bfloat16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16) if half else nullcontext():
            return trunk(clip)


def in_threads(function: Callable, parts: Sequence) -> list:
    """`function` of each part, in as many threads as torch has, with one thread of torch's own in each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(threads)


class Deployed:
    """A trained model as it is tested: its trunk as its activations are computed, its head in float32."""

    def __init__(self, frozen: FrozenTrunk, head: nn.Module):
        self.frozen, self.head = frozen, fold_batchnorm(head)

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) or (B, C, T, H, W) normalised to (B, num_classes) logits."""
        return self.head(self.frozen.join(clip).float())


def fold_batchnorm(trunk: nn.Module) -> nn.Module:
    """A copy in evaluation mode in which a BatchNorm that follows a convolution, in the order in which they were
    registered, is part of it; the same function within rounding."""
    folded = copy.deepcopy(trunk).eval()
    for module in list(folded.modules()):
        before = None
        for name, child in list(module.named_children()):
            if before and isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            before = (name, child) if isinstance(child, (nn.Conv2d, nn.Conv3d)) else None
    return folded
