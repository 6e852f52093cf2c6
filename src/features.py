"""What is computed once and kept: the frozen trunk's activations of every view of every clip.

One file a clip, named by everything that decides its content: the clip's bytes, the sampling, the transform, the
views, the trunk's weights and the precision. A file is complete or absent, so that an interrupted run goes on where
it was, and two data sets, splits or recipes that agree on a clip share its file.
"""

from __future__ import annotations

import copy
import sys
import time
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from config import CACHE, shown
from data_loader import ClipTransform, ClipViews, VideoDataset2D, make_loader
from models import VideoModel, state_hash
from store import ArrayStore, file_hash
from utils import environment, hardware_line, read_json, update_json

PRECISIONS = ("auto", "float32", "bfloat16")
TOLERANCE = 0.06  # share of the activations' norm by which bfloat16 may be off


class Activations(Dataset):
    """The kept activations of a data set's clips, read from memory-mapped files.

    Args:
        files: one .npy a clip, (V, ...) float16.
        labels: one integer a clip.
        draw: give one view, drawn from torch's generator (training); otherwise all of them.

    A sample is ((...), label) where a view is drawn and ((V, ...), label) where not; values are float32.
    """

    def __init__(self, files: list[Path], labels: list[int], draw: bool):
        self.files, self.labels, self.draw = files, labels, draw

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            views = np.load(self.files[index], mmap_mode="r")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.files[index]}: removed meanwhile, by hand or by another process that needed the "
                                    "space: run again, with a higher CACHE_GB") from error
        if self.draw:
            views = views[int(torch.randint(len(views), (1,)))]
        return torch.from_numpy(views.astype(np.float32)), self.labels[index]


def trunk_activations(model: VideoModel, dataset: VideoDataset2D, views: int, device: str | torch.device,
                      draw: bool = False, seed: int = 0, cache: Path = CACHE, title: str = "features",
                      precision: str = "auto") -> Activations:
    """Computes what is missing of the trunk's activations and gives access to all of them.

    Args:
        model: on `device`; its trunk is run in evaluation mode.
        dataset: the clips, with a `ClipTransform`; its `train` decides between random and evenly spread views.
        views: V, views a clip.
        device: where the trunk runs.
        draw: whether a sample is one view, drawn anew each time, or all of them.
        seed: of the training views.
        cache: folder of the kept files, an `ArrayStore`.
        title: of the progress bar.
        precision: `float32`, `bfloat16`, or `auto` (see `choose_precision`).

    Raises:
        VideoError: a clip can't be decoded; what was computed before it is kept.
        FloatingPointError: the trunk gave values that are not finite.
    """
    if not isinstance(dataset.transform, ClipTransform):
        raise TypeError("kept activations need a ClipTransform: a transform of single frames has no fixed views")
    store, frozen = ArrayStore(cache), frozen_trunk(model, dataset, device, precision, cache)
    kept = [store.path(frozen.folder, key) for key in _keys(dataset, views, seed, frozen.precision)]
    store.in_use = set(kept)
    missing = [i for i, path in enumerate(kept) if store.read(path) is None]
    if missing:
        clips = Subset(ClipViews(dataset, views, seed, pixels=True), missing)
        loader = make_loader(clips, batch_size=1, collate=_only_views)
        progress = tqdm(zip(missing, loader), title, len(missing), unit="clip", file=sys.stdout, ncols=90)
        for index, pixels in progress:
            store.write(kept[index], _checked(frozen(pixels)))
        left, size = store.trim(), sum(path.stat().st_size for path in kept)
        print(f"{title}: {len(kept)} clips in {frozen.precision}, {size / 1e6:.0f} MB kept; {shown(store.folder)} holds "
              f"{left / 1e6:.0f} MB of at most {store.budget / 1e9:g} GB")
    return Activations(kept, [dataset.label(i) for i in range(len(dataset))], draw)


def _only_views(samples: list) -> torch.Tensor:
    """The views of a batch of one clip; a function of the module, so that spawned workers find it."""
    return samples[0][0]


def _checked(activations: np.ndarray) -> np.ndarray:
    if not np.isfinite(activations).all():
        raise FloatingPointError("the frozen trunk gave values that are not finite or exceed float16")
    return activations


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

    Attributes:
        precision: `float32` or `bfloat16`.
        folder: where below the cache its activations are kept.
    """

    def __init__(self, model: VideoModel, dataset: VideoDataset2D, device: str | torch.device):
        self.model, self.dataset, self.device, self.precision = model, dataset, device, "float32"
        self.folder = f"activations/{model.backbone}-{state_hash(model.trunk)[:16]}"

    @cached_property
    def trunk(self) -> nn.Module:
        """The trunk as it is run; where all that is asked for is kept, it is not made."""
        return fold_batchnorm(self.model.trunk)

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """(V, T, C, H, W) uint8 views to (V, ...) float16 activations, a view at a time, which bounds the memory."""
        return torch.stack([self.run(self._input(view))[0].half().cpu() for view in pixels]).numpy()

    @torch.inference_mode()
    def run(self, clip: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) or (B, C, T, H, W) normalised to (B, ...) activations."""
        half = self.precision == "bfloat16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16) if half else nullcontext():
            return self.trunk(clip)

    def _input(self, view: torch.Tensor) -> torch.Tensor:
        clip = self.dataset.transform.normalize(view.to(self.device, non_blocking=True))
        return self.dataset.layout(clip)[None]  # (1, T, C, H, W) or (1, C, T, H, W)


class Deployed:
    """A trained model as it is tested: its trunk as its activations are computed, its head in float32.

    Args:
        frozen: the model's trunk.
        head: `model.head`.
    """

    def __init__(self, frozen: FrozenTrunk, head: nn.Module):
        self.frozen, self.head = frozen, fold_batchnorm(head)

    @torch.inference_mode()
    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) or (B, C, T, H, W) normalised to (B, num_classes) logits."""
        return self.head(self.frozen.run(clip).float())


def frozen_trunk(model: VideoModel, dataset: VideoDataset2D, device: str | torch.device, precision: str = "auto",
                 cache: Path = CACHE) -> FrozenTrunk:
    """A model's trunk as it is run, in the precision asked for; `auto` as `choose_precision`.

    Raises:
        ValueError: no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: {', '.join(PRECISIONS)}")
    frozen = FrozenTrunk(model, dataset, device)
    if precision == "auto":
        memo = Path(cache) / frozen.folder / "precision.json"
        precision = choose_precision(frozen, ClipViews(dataset, 1, pixels=True), memo)
    frozen.precision = precision
    return frozen


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


def choose_precision(frozen: FrozenTrunk, clips: ClipViews, memo: Path) -> str:
    """`bfloat16` where it is tried and found faster than float32 and near enough, else `float32`.

    Where the hardware computes with bfloat16 (CUDA; CPUs with AVX512-BF16 or AMX), one view of each of two clips is
    run in both, the second of them timed. The outcome is told in one line and remembered beside the activations, so
    that a later run on the same hardware finds their files.

    Args:
        frozen: the trunk.
        clips: to try it on.
        memo: a JSON file.
    """
    hardware = hardware_line(environment(frozen.device))
    known = read_json(memo).get(hardware)
    if known is None:
        known = _try_bfloat16(frozen, clips) if _computes_bfloat16(frozen.device) else {"precision": "float32"}
        update_json(memo, **{hardware: known})
        if "speed" in known:
            print(f"trunk in {known['precision']}: bfloat16 has {known['speed']:.1f} times float32's speed here and is off by "
                  f"{known['error']:.1%} (up to {TOLERANCE:.0%} is taken)")
    return known["precision"]


def _computes_bfloat16(device: str | torch.device) -> bool:
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _try_bfloat16(frozen: FrozenTrunk, clips: ClipViews) -> dict:
    first, second = (clips[i][0][:1] for i in (0, min(1, len(clips) - 1)))  # (1, T, C, H, W) each
    seconds, outputs = {}, {}
    for precision in ("float32", "bfloat16"):
        frozen.precision = precision
        warming = frozen(first)
        started = time.perf_counter()
        outputs[precision] = np.stack([warming, frozen(second)]).astype(np.float64)
        seconds[precision] = time.perf_counter() - started
    exact, half = outputs["float32"], outputs["bfloat16"]
    speed = seconds["float32"] / seconds["bfloat16"]
    error = float(np.linalg.norm(half - exact) / np.linalg.norm(exact))
    fits = speed > 1 and error <= TOLERANCE  # a value that is not finite fails too
    return {"precision": "bfloat16" if fits else "float32", "speed": speed, "error": error}
