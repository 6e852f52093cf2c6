"""torchvision's transforms: the presets that go with weights, and what is drawn at random in training."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


class FrameByFrame(v2.Transform):
    """A transform drawn once per clip but run a frame at a time: the same values sooner and in less memory, since what
    lies between its steps stays in the processor's cache.

    `step` is a single v2 transform, or a module that draws nothing.
    """

    def __init__(self, step: nn.Module):
        super().__init__()
        self.step = step

    def make_params(self, flat_inputs: list) -> dict:
        return self.step.make_params(flat_inputs) if isinstance(self.step, v2.Transform) else {}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        step = partial(self.step.transform, params=params) if params else self.step
        return torch.cat([step(frame.contiguous()) for frame in inpt.split(1)])


def preset_steps(prep: Preprocessing) -> list[nn.Module]:
    """Resize and centre crop. torchvision's first transforms do it in the presets, and round uint8 otherwise than v2's.
    """
    size = list(prep.resize) if isinstance(prep.resize, tuple) else prep.resize
    resize = transforms.Resize(size, **_resize_settings(prep))
    return [FrameByFrame(nn.Sequential(resize, transforms.CenterCrop(prep.crop)))]


def random_steps(prep: Preprocessing, fit: nn.Module | None, colour: bool) -> list[nn.Module]:
    """A random resized crop, or `fit` instead; a random flip; and where `colour` is asked for, its jitter."""
    fit = fit or v2.RandomResizedCrop(prep.crop, scale=(0.5, 1.0), **_resize_settings(prep))
    jitter = FrameByFrame(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3))
    return [fit, v2.RandomHorizontalFlip(), *([jitter] if colour else [])]


def _resize_settings(prep: Preprocessing) -> dict:
    return {"interpolation": v2.InterpolationMode(prep.interpolation), "antialias": prep.antialias}


def seed_transform(train: bool) -> transforms.Compose:
    """As `transforms.seed_transform`."""
    if train:
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
                 transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3), transforms.RandomRotation(10)]
    else:
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    return transforms.Compose([transforms.ToPILImage(), *steps, transforms.ToTensor(),
                               transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
