"""The seed notebook's pipeline, written anew from its description, as the yardstick of the benchmark.

Everything that costs time there is here: every frame of every clip is decoded, resized to 320x240 and blurred in every
epoch, each frame then goes through PIL by itself, models run in float32 with NCHW tensors, the 2D network is trained
whole, and the 3D network passes every clip through its frozen backbone at 224x224.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torchvision import models

from augmentation import seed_transform
from config import get_recipe
from data_loader import VideoDataset2D
from sampling import window_indices
from transforms import apply_transform
from videos.library import VideoData

WORKERS = 4  # of its loaders, whatever the machine


class SeedDataset(VideoDataset2D):
    """A part's clips as the seed reads them: (T, 3, 224, 224) for `2d`, (3, T, 224, 224) for `3d`, and the label.

    Of the part `train` a random window and random transforms, else the centre.
    """

    def __init__(self, kind: str, data: VideoData, part: str):
        train, frames = part == "train", get_recipe("seed", kind).frames()
        super().__init__(data.splits[part], data.root, data.class_map, transform=seed_transform(train), train=train,
                         **frames)
        self.kind = kind

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        frames = read_all_frames(self.file(index))
        wanted = window_indices(len(frames), self.sampler.num_frames, np.random.random() if self.train else 0.5)
        clip = apply_transform([frames[i] for i in wanted], self.transform)  # (T, 3, 224, 224)
        return clip if self.kind == "2d" else clip.transpose(0, 1), self.label(index)


def read_all_frames(path: str | Path) -> list[np.ndarray]:
    """Every frame, RGB, 320x240, blurred."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frame = cv2.resize(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), (320, 240))
        frames.append(cv2.GaussianBlur(frame, (5, 5), 0))
    capture.release()
    return frames


class SeedResNet18(nn.Module):
    """ResNet-18 on each frame, average over time, dropout, linear; all of it is trained. (B, T, 3, H, W) -> (B, K)."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.features = models.resnet18(weights=None)  # values don't matter for time
        self.features.fc = nn.Identity()
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.features(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # (B, T, 512)
        return self.classifier(features.mean(dim=1))


def build(kind: str, num_classes: int) -> nn.Module:
    """The seed's model of a kind; the 3D one is R3D-18, frozen but for its last layer."""
    if kind == "2d":
        return SeedResNet18(num_classes)
    net = models.video.r3d_18(weights=None).requires_grad_(False)
    net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, num_classes))
    return net
