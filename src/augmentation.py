"""torchvision's transforms: the presets that go with weights, and what is drawn at random in training."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import nn
from torchvision import transforms
from torchvision.transforms import v2

from config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

LUMA = np.array((0.2989, 0.587, 0.114))  # of red, green and blue in grey, as in torchvision


class FrameByFrame(nn.Module):
    """A module run a frame at a time: the same values sooner and in less memory, since what lies between its steps
    stays in the processor's cache."""

    def __init__(self, step: nn.Module):
        super().__init__()
        self.step = step

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.step(frame.contiguous()) for frame in clip.split(1)])


class ColourJitter(v2.ColorJitter):
    """torchvision's ColorJitter of brightness, contrast and saturation as one affine map of a clip's colours.

    What is drawn is the same, and its order. The steps are multiplied into one matrix, so that values are rounded and
    clamped once, at the end, rather than at each step; and contrast is about the mean grey of the whole clip rather
    than of each frame. (F, C, H, W) uint8 in and out.
    """

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        frames = inpt.permute(0, 2, 3, 1).contiguous().numpy()  # (F, H, W, C)
        pixels = frames.reshape(-1, frames.shape[2], 3)  # a picture as tall as all frames together
        matrix = colour_matrix(params, np.array(cv2.mean(pixels)[:3]))
        return torch.from_numpy(cv2.transform(pixels, matrix).reshape(frames.shape)).permute(0, 3, 1, 2)


def colour_matrix(params: dict, mean: np.ndarray) -> np.ndarray:
    """(3, 4): ColorJitter's steps, in the order drawn, on colours whose mean is (3,)."""
    names = ("brightness_factor", "contrast_factor", "saturation_factor")  # numbered so in torchvision's order
    whole = np.eye(3, 4)
    for name in (names[i] for i in params["fn_idx"] if i < len(names) and params[names[i]] is not None):
        factor, step = params[name], np.eye(3, 4) * params[name]
        if name == "contrast_factor":
            step[:, 3] = (1 - factor) * LUMA @ (whole @ [*mean, 1])
        elif name == "saturation_factor":
            step[:, :3] += (1 - factor) * LUMA
        whole = step @ np.vstack([whole, (0, 0, 0, 1)])
    return whole


def preset_steps(prep: Preprocessing) -> list[nn.Module]:
    """Resize and centre crop. torchvision's first transforms do it in the presets, and round uint8 otherwise than v2's.
    """
    size = list(prep.resize) if isinstance(prep.resize, tuple) else prep.resize
    resize = transforms.Resize(size, **_resize_settings(prep))
    return [FrameByFrame(nn.Sequential(resize, transforms.CenterCrop(prep.crop)))]


def random_steps(prep: Preprocessing, fit: nn.Module | None, colour: bool) -> list[nn.Module]:
    """A random resized crop, or `fit` instead; a random flip; and where `colour` is asked for, its jitter."""
    fit = fit or v2.RandomResizedCrop(prep.crop, scale=(0.5, 1.0), **_resize_settings(prep))
    jitter = [ColourJitter(brightness=0.3, contrast=0.3, saturation=0.3)] if colour else []
    return [fit, v2.RandomHorizontalFlip(), *jitter]


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
