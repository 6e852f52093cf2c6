"""The seed notebook's pipeline, written anew from its description, as the yardstick of the benchmark.

Everything that costs time there is here: every frame of every clip is decoded, resized to 320x240 and blurred in every
epoch, each frame then goes through PIL by itself, models run in float32 with NCHW tensors, the 2D network is trained
whole, and the 3D network passes every clip through its frozen backbone at 224x224. Nothing else in the project uses it.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms

LABEL_SMOOTHING, LEARNING_RATE, WEIGHT_DECAY, EPOCHS, WORKERS = 0.9, 1e-4, 1e-4, 8, 4
BATCH = {"2d": 4, "3d": 2}
FRAMES = {"2d": 20, "3d": 16}


def frame_transform(train: bool) -> transforms.Compose:
    """One frame, (H, W, 3) uint8, to (3, 224, 224) float32; random parameters are drawn for each frame."""
    steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
             transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3), transforms.RandomRotation(10)]
    return transforms.Compose([
        transforms.ToPILImage(), *(steps if train else [transforms.Resize(256), transforms.CenterCrop(224)]),
        transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])


class SeedDataset(Dataset):
    """Clips as the seed reads them: (T, 3, 224, 224) for `2d`, (3, T, 224, 224) for `3d`, and the label.

    Args:
        files: the clips.
        labels: one integer a clip.
        kind: `2d` or `3d`.
        train: a random window and random transforms, or the centre.
    """

    def __init__(self, files: list[str], labels: list[int], kind: str, train: bool):
        self.files, self.labels, self.kind, self.train = files, labels, kind, train
        self.transform = frame_transform(train)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        frames, count = read_all_frames(self.files[index]), FRAMES[self.kind]
        if len(frames) < count:
            wanted = np.linspace(0, len(frames) - 1, count).astype(int)
        else:
            last = len(frames) - count
            start = np.random.randint(0, last + 1) if self.train else last // 2
            wanted = np.arange(start, start + count)
        clip = torch.stack([self.transform(frames[i]) for i in wanted])  # (T, 3, 224, 224)
        return clip if self.kind == "2d" else clip.permute(1, 0, 2, 3), self.labels[index]


def read_all_frames(path: str) -> list[np.ndarray]:
    """Every frame, RGB, 320x240, blurred."""
    capture, frames = cv2.VideoCapture(path), []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frame = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (320, 240))
        frames.append(cv2.GaussianBlur(frame, (5, 5), 0))
    capture.release()
    return frames


class SeedResNet18(nn.Module):
    """ResNet-18 on each frame, average over time, dropout, linear; all of it is trained. (B, T, 3, H, W) -> (B, K)."""

    def __init__(self, num_classes: int):
        super().__init__()
        net = models.resnet18(weights=None)  # values don't matter for time
        self.features = nn.Sequential(*list(net.children())[:-1])
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t = x.shape[:2]
        features = self.features(x.view(b * t, *x.shape[2:])).view(b, t, -1)
        return self.fc(self.dropout(features.mean(dim=1)))


class SeedR3D18(nn.Module):
    """R3D-18 with a frozen backbone and a trained linear layer. (B, 3, T, H, W) -> (B, K)."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.net = models.video.r3d_18(weights=None)
        self.net.requires_grad_(False)
        self.net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(512, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def build(kind: str, num_classes: int) -> nn.Module:
    """The seed's model of a kind."""
    return SeedResNet18(num_classes) if kind == "2d" else SeedR3D18(num_classes)


def loader(files: list[str], labels: list[int], kind: str, train: bool) -> DataLoader:
    """The seed's loader: four workers whatever the machine."""
    return DataLoader(SeedDataset(files, labels, kind, train), batch_size=BATCH[kind], shuffle=train, num_workers=WORKERS)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Adam over all parameters, as the seed has it."""
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
