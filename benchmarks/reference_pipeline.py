"""torchvision's reference training of R3D-18 on videos, written anew from its description, as a second yardstick.

All that costs time there is here: in every epoch five random clips of 16 frames, at 15 per second, of each video, each
of them decoded by itself; resized to 128x171, flipped, normalised, cropped to 112; the whole network is trained in
float32.
"""

from pathlib import Path

import av
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from torchvision.models.video import r3d_18
from torchvision.transforms import v2

from sampling import time_indices
from videos.library import VideoData

EPOCHS, CLIPS, BATCH, WORKERS = 45, 5, 24, 10  # its defaults
FRAMES, RATE = 16, 15
MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)


class ReferenceClips(Dataset):
    """A part's videos, CLIPS times each: (3, 16, 112, 112) and the label."""

    def __init__(self, data: VideoData, part: str = "train"):
        self.data, self.table = data, data.table(part)
        self.transform = v2.Compose([
            v2.ToDtype(torch.float32, scale=True), v2.Resize((128, 171), antialias=False), v2.RandomHorizontalFlip(),
            v2.Normalize(MEAN, STD), v2.RandomCrop(112)])

    def __len__(self) -> int:
        return CLIPS * len(self.table)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.table.iloc[index // CLIPS]
        frames = decode_window(f"{self.data.root}{row['clip_path']}", float(torch.rand(())))
        clip = self.transform(torch.from_numpy(frames).permute(0, 3, 1, 2))  # (T, C, H, W)
        return clip.transpose(0, 1), self.data.class_map[row["label"]]


def decode_window(path: str | Path, position: float) -> np.ndarray:
    """(16, H, W, 3) frames of a window: sought at the key frame before it, decoded up to its end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        wanted = time_indices(stream.frames, rate, FRAMES, RATE, position)
        container.seek(int(wanted[0] / rate / stream.time_base), stream=stream)
        frames = {}
        for frame in container.decode(stream):
            number = round(float(frame.pts * stream.time_base) * rate)
            if number in wanted:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number >= wanted[-1]:
                break
    return np.stack([frames[min(frames, key=lambda there: abs(there - number))] for number in wanted])


def build(num_classes: int) -> nn.Module:
    """R3D-18 with random weights, on which time does not depend; all of it is trained."""
    return r3d_18(weights=None, num_classes=num_classes)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Its SGD; the learning rate doesn't matter for time."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
