"""From a video file to frames, to a clip tensor, to batches.

Frames are RGB uint8 until the last moment. Which frames are wanted is decided by pure functions of
(frames in the file, frames wanted, position); random augmentation is drawn once per clip, never once per frame.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Recipe
from machine import cores
from videos.decoding import DEFAULT_RATE, VideoInfo, read_frames
from videos.folder import scan_clips
from videos.split_files import read_part
from videos.splits import clip_file

DIFFERENCE_GAIN = 2.0  # of differences of values in [0, 1], which are small
MODALITIES = ("rgb", "diff", "rgb+diff")
ROOM = 32  # of a batch's size that must be free in shared memory, if it is to go through it
# ---------------------------------------------------------------- sampling: pure functions
#
# `n` of a clip's `total` frames, as (n,) int64 indices, ascending, each within [0, total). `position` is where they
# lie, 0 (start) to 1 (end); 0.5 is the centre. A clip that is too short is stretched by repeating indices.

def window_indices(total: int, n: int, position: float = 0.5) -> np.ndarray:
    """Dense sampling: contiguous frames."""
    if total < n:
        return _stretched(total, n)
    start = max(int(np.ceil(position * (total - n + 1))) - 1, 0)
    return start + np.arange(n, dtype=np.int64)


def segment_indices(total: int, n: int, position: float | np.ndarray = 0.5) -> np.ndarray:
    """Uniform-segment sampling (TSN, Wang et al. 2016): one frame from each of `n` equal segments.

    `position` is where in its segment each frame lies: one number, or one per segment.
    """
    _check_counts(total, n)
    first = np.arange(n)
    offsets = np.floor((first + np.asarray(position, dtype=float)) * total / n)
    return np.minimum(offsets, np.ceil((first + 1) * total / n) - 1).astype(np.int64)  # its segment's last at most


def time_indices(total: int, fps: float, n: int, rate: float, position: float = 0.5) -> np.ndarray:
    """Frames at `rate` per second, whatever the file's own `fps`; where that is unknown (0), contiguous frames."""
    step = (fps if fps > 0 else rate) / rate
    span = (n - 1) * step
    if total - 1 < span:
        return _stretched(total, n)
    start = position * (total - 1 - span)
    return np.minimum(np.floor(start + step * np.arange(n) + 0.5), total - 1).astype(np.int64)


def _stretched(total: int, n: int) -> np.ndarray:
    _check_counts(total, n)
    return np.linspace(0, total - 1, n).round().astype(np.int64)


def _check_counts(total: int, n: int) -> None:
    if total < 1 or n < 1:
        raise ValueError(f"sampling needs at least one frame of a clip with at least one: {n} of {total}")


class FrameSampler:
    """Frame indices as a recipe wants them (see `config.Recipe`): `stills` frames where the modality has RGB, then,
    where it has differences, `num_frames` frames and as many that follow them `gap` seconds later.

    `frame_rate` is in frames per second. Stills that are fewer than `num_frames` lie over the same time.
    """

    def __init__(self, num_frames: int, sampling: str = "window", frame_rate: float | None = None,
                 modality: str = "rgb", stills: int | None = None, gap: float = 1 / 15):
        if sampling not in ("window", "segments", "time"):
            raise ValueError(f"unknown sampling {sampling!r}: window, segments or time")
        if sampling == "time" and not frame_rate:
            raise ValueError("sampling by time needs frame_rate, in frames per second")
        if modality not in MODALITIES:
            raise ValueError(f"unknown modality {modality!r}: {', '.join(MODALITIES)}")
        self.num_frames, self.sampling, self.frame_rate, self.gap = num_frames, sampling, frame_rate, gap
        self.pairs = num_frames if "diff" in modality else 0
        self.stills = min(stills or num_frames, num_frames) if "rgb" in modality else 0

    def __call__(self, info: VideoInfo, position: float | np.ndarray = 0.5) -> np.ndarray:
        """(stills + 2 pairs,) int64 indices into a clip; the same position gives the same indices."""
        chosen = [self._indices(info, self.stills, position)] if self.stills else []
        if self.pairs:
            later = min(max(round(self.gap * (info.fps or DEFAULT_RATE)), 1), info.frames - 1)
            first = self._indices(info._replace(frames=info.frames - later), self.pairs, position)
            chosen += [first, first + later]
        return np.concatenate(chosen)

    def _indices(self, info: VideoInfo, n: int, position: float | np.ndarray) -> np.ndarray:
        if self.sampling == "segments":
            return segment_indices(info.frames, n, np.broadcast_to(position, self.num_frames)[:n])
        position = float(np.mean(position))
        if self.sampling == "window":
            return window_indices(info.frames, n, position)
        return time_indices(info.frames, info.fps, n, self.frame_rate * n / self.num_frames, position)

    def __repr__(self) -> str:
        shown = f"FrameSampler({self.num_frames}, {self.sampling!r}, {self.frame_rate}"
        return f"{shown}, stills={self.stills}, pairs={self.pairs}, gap={self.gap:.4g})" if self.pairs else f"{shown})"

    def random_position(self) -> np.ndarray:
        """Drawn from torch's generator: one position per segment for `segments`, else one per clip."""
        return torch.rand(self.num_frames if self.sampling == "segments" else 1, dtype=torch.float64).numpy()


# ---------------------------------------------------------------- the seed's frames

def extract_frames(path: str | Path, max_frames: int = 30, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Uniformly spread frames, all of them where the clip is short, blurred with a 5x5 Gaussian.

    `size` is (width, height) in pixels; the frames are (T, height, width, 3) float32 RGB in [0, 1].
    """
    frames, _ = read_frames(path, lambda info: _stretched(info.frames, min(max_frames, info.frames)))
    smooth = [cv2.GaussianBlur(cv2.resize(f, size, interpolation=cv2.INTER_AREA), (5, 5), 0) for f in frames]
    return np.stack(smooth).astype(np.float32) / 255.0


# ---------------------------------------------------------------- transforms

class ClipTransform:
    """Torchvision v2 transforms applied to a clip as a whole, so that random parameters are drawn once per clip.

    `steps` work on (F, C, H, W) uint8; `mean` and `std` are per channel, for values in [0, 1]. The first `stills`
    frames stay RGB; what follows them are the first frames of pairs, then the second ones (see `FrameSampler`), of
    which the difference remains. None takes all frames as they are.
    """

    def __init__(self, steps: Sequence, mean: Sequence[float], std: Sequence[float], stills: int | None = None):
        self.steps, self.mean, self.std = v2.Compose(list(steps)), torch.tensor(mean), torch.tensor(std)
        self.stills = stills

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """(F, C, H, W) uint8 to (T, C, H, W) float32 on the same device; T is F, less the second frames of pairs."""
        values = pixels.float().div_(255.0)
        if self.stills is not None:
            first, second = values[self.stills:].chunk(2)
            values = torch.cat([values[:self.stills], 0.5 + DIFFERENCE_GAIN * (second - first)])
        return v2.functional.normalize(values, self.mean, self.std, inplace=True)

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """(F, C, H, W) uint8 to (T, C, H', W') float32."""
        return self.normalize(self.steps(clip))

    def __str__(self) -> str:
        steps = [step.step if isinstance(step, FrameByFrame) else step for step in self.steps.transforms]
        lines = [str(line) for step in steps for line in (step if isinstance(step, nn.Sequential) else [step])]
        mean, std = ([round(value, 5) for value in values.tolist()] for values in (self.mean, self.std))
        if self.stills is not None:
            kept = f"{self.stills} RGB frames, then " if self.stills else ""
            lines.append(f"{kept}differences of pairs: 0.5 + {DIFFERENCE_GAIN:g} (second - first)")
        return "\n    ".join(["ClipTransform(", *lines, f"Normalize(mean={mean}, std={std})"]) + "\n)"

    def __repr__(self) -> str:
        differences = "" if self.stills is None else f", stills={self.stills}, gain={DIFFERENCE_GAIN:g}"
        return f"ClipTransform({self.steps}, {self.mean.tolist()}, {self.std.tolist()}{differences})"


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


def _resize_settings(prep: Preprocessing) -> dict:
    return {"interpolation": v2.InterpolationMode(prep.interpolation), "antialias": prep.antialias}


def eval_transform(prep: Preprocessing, stills: int | None = None) -> ClipTransform:
    """Resize and centre crop, equal to the last bit to the weights' own evaluation preset; `stills` as `ClipTransform`.

    The presets resize with torchvision's first transforms, which round uint8 otherwise than v2's. The whole frame, of
    which no preset knows, is squeezed by v2's, in a tenth of the time.
    """
    size = list(prep.resize) if isinstance(prep.resize, tuple) else prep.resize
    preset = nn.Sequential(transforms.Resize(size, **_resize_settings(prep)), transforms.CenterCrop(prep.crop))
    return ClipTransform([_squeeze(prep) or FrameByFrame(preset)], prep.mean, prep.std, stills)


def train_transform(prep: Preprocessing, stills: int | None = None) -> ClipTransform:
    """Random resized crop, flip and colour, each drawn once per clip; `stills` as `ClipTransform`.

    Where the whole frame is squeezed into the square nothing is cropped; differences alone keep their colours.
    """
    fit = _squeeze(prep) or v2.RandomResizedCrop(prep.crop, scale=(0.5, 1.0), **_resize_settings(prep))
    colour = FrameByFrame(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3))
    steps = [fit, v2.RandomHorizontalFlip(), *([] if stills == 0 else [colour])]
    return ClipTransform(steps, prep.mean, prep.std, stills)


def _squeeze(prep: Preprocessing) -> v2.Resize | None:
    """Fits the whole frame into the square; None where the preset crops."""
    return v2.Resize(prep.resize, **_resize_settings(prep)) if prep.resize == (prep.crop, prep.crop) else None


def seed_transform(train: bool) -> transforms.Compose:
    """The seed's transforms: one frame in, so that each frame gets its own random crop. Kept for comparison."""
    if train:
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
                 transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3), transforms.RandomRotation(10)]
    else:
        steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    return transforms.Compose([transforms.ToPILImage(), *steps, transforms.ToTensor(),
                               transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


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
        return _channels_first(frames).contiguous()
    if isinstance(transform, ClipTransform):
        return transform(_channels_first(frames))
    return torch.stack([transform(frame) for frame in frames])


def framed(frames: np.ndarray, transform: Callable | None) -> torch.Tensor:
    """(F, H, W, C) uint8 frames as the transform fits them into its square, (F, C, H', W'), for `normalized`."""
    return (transform.steps(_channels_first(frames)) if isinstance(transform, ClipTransform)
            else apply_transform(frames, transform))


def normalized(pictures: torch.Tensor, transform: Callable | None) -> torch.Tensor:
    """What `apply_transform` makes of `framed` pictures; a transform of single frames has nothing left to do."""
    return transform.normalize(pictures) if isinstance(transform, ClipTransform) else pictures


def _channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, C, H, W), channels last in memory: cropped sooner


# ---------------------------------------------------------------- data sets

def read_clip_table(csv: str | Path, root: str | Path, class_map: dict[str, int]) -> pd.DataFrame:
    """A split's CSV, checked before anything is decoded: `clip_path` is relative to root, `label` in the class map.

    Raises:
        FileNotFoundError: the CSV is missing, or clips are: all of them are listed.
        ValueError: as `videos.split_files.read_part`, or labels are not in the class map.
    """
    table = read_part(csv)
    unknown = sorted(set(table["label"]) - set(class_map))
    if unknown:
        raise ValueError(f"{csv}: labels not in the class map: {', '.join(unknown)}; it has {', '.join(class_map)}")
    absent = [p for p in table["clip_path"] if not clip_file(root, p).is_file()]
    if absent:
        listed = "\n  ".join(absent)
        raise FileNotFoundError(f"{csv}: {len(absent)} of {len(table)} clips are not under {root}:\n  {listed}\n"
                                "fetch them, or make the splits again")
    return table


class VideoDataset2D(Dataset):
    """Clips as frame sequences, (T, C, H, W), for models that see a frame at a time; `data` is the CSV as a DataFrame.

    Args:
        csv: a split's CSV (see `read_clip_table`).
        root: the data set's folder.
        class_map: class name to integer label.
        num_frames: T.
        transform: as `apply_transform`.
        train: random sampling positions; otherwise the centre, so that the same clip gives the same tensor.
        sampling, frame_rate, modality, stills, gap: as `FrameSampler`; the transform turns pairs into differences.

    Raises:
        FileNotFoundError, ValueError: as `read_clip_table`, at construction.
        VideoError: from `__getitem__`, for a file that can't be decoded.
    """

    def __init__(self, csv, root, class_map, num_frames=20, transform=None, train=False, **sampling):
        self.data, self.csv = read_clip_table(csv, root, class_map), Path(csv)
        self.root, self.class_map = Path(root), dict(class_map)
        self.sampler = FrameSampler(num_frames, **sampling)
        self.transform, self.train = transform, train

    def __len__(self) -> int:
        return len(self.data)

    def file(self, index: int) -> Path:
        """The clip's file."""
        return clip_file(self.root, self.data["clip_path"].iloc[index])

    def label(self, index: int) -> int:
        """The clip's integer label."""
        return self.class_map[self.data["label"].iloc[index]]

    def layout(self, clip: torch.Tensor) -> torch.Tensor:
        """(T, C, H, W) to the layout that the model takes."""
        return clip

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        position = self.sampler.random_position() if self.train else 0.5
        frames, _ = read_frames(self.file(index), lambda info: self.sampler(info, position))
        return self.layout(apply_transform(frames, self.transform)), self.label(index)


class VideoDataset3D(VideoDataset2D):
    """Clips as volumes, (C, T, H, W), for models that convolve over time. Arguments as `VideoDataset2D`."""

    def __init__(self, csv, root, class_map, num_frames=16, **settings):
        super().__init__(csv, root, class_map, num_frames, **settings)

    def layout(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.transpose(0, 1)


class ClipViews(Dataset):
    """Several views of each clip of a data set, decoded in one pass: (V, T, C, H, W) or (V, C, T, H, W), label.

    Training views (`dataset.train`) have random positions, spread over the clip, and augmentation, fixed by (seed,
    view, clip), whatever the order in which clips are asked for. Test views lie evenly over the clip. With `pixels`
    they are (V, F, C, H, W) uint8, for normalisation and layout on the device.
    """

    def __init__(self, dataset: VideoDataset2D, views: int, seed: int = 0, pixels: bool = False):
        self.dataset, self.views, self.seed, self.pixels = dataset, views, seed, pixels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data, views = self.dataset, range(self.views)
        words = [self.seed, *data.data["clip_path"].iloc[index].encode()]
        with torch.random.fork_rng(devices=[]):  # the draws are those of this clip; the generator is left as it was
            torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1)[0]))
            within = [data.sampler.random_position() if data.train else 0.5 for _ in views]
            # windows lie in consecutive parts of the clip; where segments spread over all of it, each view does
            positions = [x if np.size(x) > 1 else (v + x) / self.views for v, x in zip(views, within, strict=True)]
            frames, _ = read_frames(data.file(index),
                                    lambda info: np.concatenate([data.sampler(info, p) for p in positions]))
            clips = [self._transformed(clip) for clip in np.split(frames, self.views)]
        return torch.stack(clips), data.label(index)

    def _transformed(self, frames: np.ndarray) -> torch.Tensor:
        data = self.dataset
        if self.pixels:
            return data.transform.steps(_channels_first(frames))
        return data.layout(apply_transform(frames, data.transform))


# ---------------------------------------------------------------- batches

def limit_threads(worker_id: int) -> None:
    """One thread to each library in a loader worker, whose generators torch has seeded."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def start_worker(worker_id: int) -> None:
    """Readies a loader worker: one thread, and tensors that leave it as `_handed_over` says."""
    limit_threads(worker_id)
    ForkingPickler.register(torch.Tensor, _handed_over)


def _handed_over(tensor: torch.Tensor) -> tuple[Callable, tuple]:
    """How a tensor is pickled: torch's way, which leaves it in shared memory, where that has ample room for what all
    workers hold ready; else by value, through a pipe: a container may have 64 MB of it, or less."""
    if ROOM * tensor.untyped_storage().nbytes() <= free_shared_memory():
        with suppress(RuntimeError, OSError):  # here: where torch shares it, the batch would be lost and waited for
            return reduce_tensor(tensor.share_memory_())
    return torch.from_numpy, (tensor.numpy(),)


def free_shared_memory() -> float:
    """Bytes; infinite where shared memory has no limit of its own (macOS, Windows)."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return math.inf


def stacked(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples as a batch, (B, ...) and (B,); torch's own collation takes shared memory in a worker."""
    tensors, labels = zip(*samples, strict=True)
    return torch.stack(tensors), torch.tensor(labels)


def make_loader(dataset: Dataset, batch_size: int, shuffle: bool = False, num_workers: int | None = None,
                collate: Callable = stacked) -> DataLoader:
    """A DataLoader whose workers don't fight over cores; shuffling and their seeds come from torch's generator.

    `num_workers` None takes one process fewer than there are cores, four at most.
    """
    if num_workers is None:
        num_workers = min(max(cores() - 1, 1), 4)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers, collate_fn=collate,
                      worker_init_fn=start_worker, pin_memory=torch.cuda.is_available())


def load_dataset(root: str | Path, class_map: dict[str, int] | None = None) -> tuple[list[str], np.ndarray, dict]:
    """All clips of a folder with one sub-folder per class: N file paths, sorted; (N,) int64 labels; the class map.

    Without a class map every sub-folder with a video is a class, in alphabetical order; errors as `scan_clips`.
    """
    clips = scan_clips(root, class_map)
    class_map = class_map or {name: i for i, name in enumerate(sorted(clips["label"].unique()))}
    paths = [str(clip_file(root, clip_path)) for clip_path in clips["clip_path"]]
    return paths, clips["label"].map(class_map).to_numpy(dtype=np.int64), dict(class_map)
