"""Frames as a network sees them: fitted into its square, as differences or not, normalised.

torchvision, whose import takes longer than a clip does, is imported where its own transforms are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from config import Preprocessing, Recipe

DIFFERENCE_GAIN = 2.0  # of differences of values in [0, 1], which are small


class ClipTransform:
    """Transforms of a clip as a whole, so that random parameters are drawn once per clip.

    `steps` are modules that work on (F, C, H, W) uint8; `mean` and `std` are per channel, for values in [0, 1]. The
    first `stills` frames stay RGB; what follows them are the first frames of pairs, then the second ones (see
    `sampling.FrameSampler`), of which the difference remains. None takes all frames as they are.
    """

    def __init__(self, steps: Sequence[nn.Module], mean: Sequence[float], std: Sequence[float],
                 stills: int | None = None):
        self.steps, self.mean, self.std = nn.Sequential(*steps), torch.tensor(mean), torch.tensor(std)
        self.stills = stills

    def normalize(self, pixels: torch.Tensor, stills: int | None = None) -> torch.Tensor:
        """(F, C, H, W) uint8 to (T, C, H, W) float32 on the same device; T is F, less the second frames of pairs.

        `stills` frames come before the pairs, where there are pairs; None takes the clip's.
        """
        mean, std = (its.to(pixels.device)[:, None, None] for its in (self.mean, self.std))
        stills = len(pixels) if self.stills is None else self.stills if stills is None else stills
        frames = pixels[:stills].float().div_(255.0).sub_(mean).div_(std)
        first, second = pixels[stills:].tensor_split(2)
        differences = (second.float() - first).mul_(DIFFERENCE_GAIN / 255.0 / std).add_((0.5 - mean) / std)
        if not len(frames) or not len(differences):
            return frames if len(frames) else differences
        return torch.cat([frames, differences])

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """(F, C, H, W) uint8 to (T, C, H', W') float32."""
        return self.normalize(self.steps(clip))

    def __str__(self) -> str:
        steps = [getattr(step, "step", step) for step in self.steps]
        lines = [str(line) for step in steps for line in (step if isinstance(step, nn.Sequential) else [step])]
        mean, std = ([round(value, 5) for value in values.tolist()] for values in (self.mean, self.std))
        if self.stills is not None:
            kept = f"{self.stills} RGB frames, then " if self.stills else ""
            lines.append(f"{kept}differences of pairs: 0.5 + {DIFFERENCE_GAIN:g} (second - first)")
        return "\n    ".join(["ClipTransform(", *lines, f"Normalize(mean={mean}, std={std})"]) + "\n)"

    def __repr__(self) -> str:
        differences = "" if self.stills is None else f", stills={self.stills}, gain={DIFFERENCE_GAIN:g}"
        return f"ClipTransform({self.steps}, {self.mean.tolist()}, {self.std.tolist()}{differences})"


class Squeeze(nn.Module):
    """The whole frame, fitted into a square of `side` pixels, whatever its proportions: (F, C, H, W) uint8 to
    (F, C, side, side), the same values as torchvision's v2.Resize."""

    def __init__(self, side: int, interpolation: str = "bilinear", antialias: bool = True):
        super().__init__()
        self.side, self.interpolation, self.antialias = side, interpolation, antialias

    @property
    def in_whole_numbers(self) -> bool:
        """Whether it is done without floats on this machine, so that each axis is rounded by itself."""
        return self.interpolation == "bicubic" or "AVX2" in torch.backends.cpu.get_cpu_capability()

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        resize = {"size": (self.side, self.side), "mode": self.interpolation, "antialias": self.antialias}
        if self.in_whole_numbers:
            return F.interpolate(frames, **resize)
        return F.interpolate(frames.float(), **resize).round_().byte()

    def extra_repr(self) -> str:
        return f"{self.side}, {self.interpolation}, antialias={self.antialias}"


def eval_transform(prep: Preprocessing, stills: int | None = None) -> ClipTransform:
    """The whole frame, or resize and centre crop, equal to the last bit to the weights' own evaluation preset; `stills`
    as `ClipTransform`."""
    fit = squeeze(prep)
    steps = [fit] if fit else _augmentation().preset_steps(prep)
    return ClipTransform(steps, prep.mean, prep.std, stills)


def train_transform(prep: Preprocessing, stills: int | None = None) -> ClipTransform:
    """Random resized crop, flip and colour, each drawn once per clip; `stills` as `ClipTransform`.

    Where the whole frame is squeezed into the square nothing is cropped; differences alone keep their colours.
    """
    steps = _augmentation().random_steps(prep, squeeze(prep), colour=stills != 0)
    return ClipTransform(steps, prep.mean, prep.std, stills)


def squeeze(prep: Preprocessing) -> Squeeze | None:
    """Fits the whole frame into the square; None where the preset crops."""
    whole = prep.resize == (prep.crop, prep.crop)
    return Squeeze(prep.crop, prep.interpolation, prep.antialias) if whole else None


def seed_transform(train: bool) -> Callable:
    """The seed's transforms: one frame in, so that each frame gets its own random crop. Kept for comparison."""
    return _augmentation().seed_transform(train)


def _augmentation():
    import augmentation

    return augmentation


def recipe_transform(recipe: Recipe, prep: Preprocessing, train: bool) -> Callable:
    """The transform that a recipe and its weights ask for."""
    if recipe.augmentation == "frame":
        return seed_transform(train)
    stills = recipe.stills_shown() if "diff" in recipe.modality else None
    return train_transform(prep, stills) if train else eval_transform(prep, stills)


def denormalize(clip: torch.Tensor, prep: Preprocessing) -> np.ndarray:
    """(..., C, H, W) normalised values as pictures again: (..., H, W, C) uint8."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (prep.mean, prep.std))
    return (255 * (clip.cpu() * std + mean)).round().clamp(0, 255).byte().movedim(-3, -1).numpy()


def apply_transform(frames: np.ndarray, transform: Callable | None) -> torch.Tensor:
    """(T, H, W, C) uint8 frames through a transform, to (T, C, H', W').

    A `ClipTransform` sees the whole clip. Any other callable sees one (H, W, C) uint8 array at a time, as the
    seed's do. Without a transform the pixels come back as they are, uint8.
    """
    if transform is None:
        return channels_first(frames).contiguous()
    if isinstance(transform, ClipTransform):
        return transform(channels_first(frames))
    return torch.stack([transform(frame) for frame in frames])


def framed(frames: np.ndarray, transform: Callable | None) -> torch.Tensor:
    """(F, H, W, C) uint8 frames as the transform fits them into its square, (F, C, H', W'), for `normalized`."""
    return (transform.steps(channels_first(frames)) if isinstance(transform, ClipTransform)
            else apply_transform(frames, transform))


def normalized(pictures: torch.Tensor, transform: Callable | None, stills: int | None = None) -> torch.Tensor:
    """What `apply_transform` makes of `framed` pictures; a transform of single frames has nothing left to do. `stills`
    as `ClipTransform.normalize`."""
    return transform.normalize(pictures, stills) if isinstance(transform, ClipTransform) else pictures


def channels_first(frames: np.ndarray) -> torch.Tensor:
    """(T, H, W, C) pictures as (T, C, H, W)."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, C, H, W), channels last in memory: cropped sooner
