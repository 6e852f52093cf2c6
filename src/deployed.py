"""A network as it is run once it is trained: its trunk folded and in the hardware's precision, its head in float32."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from engines import choose_precision, compiled
from models import VideoModel, state_hash
from transforms import ClipTransform

FRAMES_AT_ONCE = 4  # whose maps fit the processor's cache: 20 at once take three times as long


def as_batch(model: VideoModel, clip: torch.Tensor) -> torch.Tensor:
    """A clip (T, C, H, W) as a batch of one, laid out as the model takes it."""
    return clip.movedim(0, model.time - 1)[None]


class FrozenTrunk:
    """A trunk in evaluation mode, its BatchNorm folded into the convolutions before it.

    Args:
        model: gives the trunk, which is copied when it is first run.
        device: where it runs.
        precision: as `engines.choose_precision`; the attribute is what was chosen.
        engine: `torch` or `openvino` (see `engines`).
    """

    def __init__(self, model: VideoModel, device: str | torch.device, precision: str = "auto", engine: str = "torch"):
        self.model, self.device, self.engine = model, device, engine
        self.precision = choose_precision(precision, device)

    @cached_property
    def folder(self) -> str:
        """Where its activations are kept, below the cache."""
        trunk = self.model.trunk
        form = hashlib.sha256(repr(trunk).encode()).hexdigest()  # what has no parameters, such as pooling
        return f"activations/{self.model.backbone}-{state_hash(trunk)[:16]}-{form[:8]}"

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

    def __call__(self, pixels: torch.Tensor, transform: ClipTransform) -> np.ndarray:
        """(V, F, C, H, W) uint8 views to (V, T, ...) float16 activations, normalised as `transform` does where the
        trunk runs: on a GPU, or shared out, all at once; else a view at a time, which bounds the memory."""
        views = [as_batch(self.model, transform.normalize(view.to(self.device, non_blocking=True))) for view in pixels]
        at_once = self.by_frames or torch.device(self.device).type != "cpu"  # a view alone leaves a GPU idle
        batches = [torch.cat(views)] if at_once else views
        return torch.cat([self.run(batch).half().cpu() for batch in batches]).numpy()

    def run(self, clip: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) or (B, C, T, H, W) normalised to (B, ...) activations."""
        if not self.by_frames:
            return torch.cat(self._outputs([clip] if self.engine == "torch" else clip.split(1)))
        time, b = self.model.time, len(clip)
        frames = clip.movedim(time, 1).flatten(0, 1)[None]  # (1, B*T, C, H, W)
        count = frames.shape[1]
        if self.engine != "torch" and count % FRAMES_AT_ONCE:  # it takes one shape: the last part is filled up
            frames = F.pad(frames, [0] * 7 + [-count % FRAMES_AT_ONCE])
        parts = [part.movedim(1, time) for part in frames.split(FRAMES_AT_ONCE, dim=1)]
        return torch.cat(self._outputs(parts), dim=1)[0, :count].unflatten(0, (b, -1))

    def _outputs(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.engine != "torch":
            return compiled((self.folder,), lambda: self.trunk, self.precision, self.by_frames)(parts)
        run = partial(self._run, self.trunk)  # made before threads ask for it
        return in_threads(run, parts) if self.by_frames else list(map(run, parts))

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
