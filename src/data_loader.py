"""From a video file to frames, to a clip tensor, to batches.

Frames are RGB uint8 until the last moment. Which frames are wanted is decided by pure functions of
(frames in the file, frames wanted, position); random augmentation is drawn once a clip, never once a frame.
"""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own chatter; failures are raised below

import cv2

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # an unreadable file is told below
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.transforms import v2

from config import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Recipe
from splits import scan_clips
from store import ArrayStore, file_hash

HINT_TOLERANCE = 0.05  # a header may promise this share of frames too many before a file counts as broken


class VideoError(RuntimeError):
    """A video that can't be used; the message names the file, what was read and what to do."""


class VideoInfo(NamedTuple):
    """What a file's header says: `frames` is a hint (0 where unknown), `fps` in frames a second, size in pixels."""

    frames: int
    fps: float
    width: int
    height: int


# ---------------------------------------------------------------- sampling: pure functions

def window_indices(total: int, n: int, position: float = 0.5, stride: int = 1) -> np.ndarray:
    """Dense sampling: `n` frames, `stride` apart, from one contiguous window.

    Args:
        total: frames in the clip.
        n: frames wanted.
        position: where the window lies, 0 (start) to 1 (end); 0.5 is the centre.
        stride: distance between frames, in frames.

    Returns:
        (n,) int64, ascending, each within [0, total). A clip shorter than the window is stretched over its
        whole length by repeating indices.
    """
    span = (n - 1) * stride + 1
    if total < span:
        return _stretched(total, n)
    start = max(int(np.ceil(position * (total - span + 1))) - 1, 0)
    return start + stride * np.arange(n, dtype=np.int64)


def segment_indices(total: int, n: int, position: float | np.ndarray = 0.5) -> np.ndarray:
    """Uniform-segment sampling (TSN, Wang et al. 2016): one frame from each of `n` equal segments.

    Args:
        total: frames in the clip.
        n: segments, and frames wanted.
        position: where in its segment each frame lies, in [0, 1]; one number, or one a segment.

    Returns:
        (n,) int64, ascending, each within [0, total).
    """
    _check_counts(total, n)
    first = np.arange(n)
    offsets = np.floor((first + np.asarray(position, dtype=float)) * total / n)
    return np.minimum(offsets, np.ceil((first + 1) * total / n) - 1).astype(np.int64)  # its segment's last at most


def time_indices(total: int, fps: float, n: int, rate: float, position: float = 0.5) -> np.ndarray:
    """`n` frames at `rate` frames a second, whatever the file's own frame rate.

    Args:
        total: frames in the clip.
        fps: the clip's frames a second; where unknown (0), `rate` is taken.
        n: frames wanted.
        rate: frames a second wanted.
        position: where the window lies, 0 (start) to 1 (end).

    Returns:
        (n,) int64, ascending, each within [0, total). A clip shorter than the window is stretched.
    """
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
    """Frame indices as a recipe wants them.

    Args:
        num_frames: frames a clip.
        sampling: `window`, `segments` or `time` (see `config.Recipe`).
        frame_rate: frames a second, for `time`.
    """

    def __init__(self, num_frames: int, sampling: str = "window", frame_rate: float | None = None):
        if sampling not in ("window", "segments", "time"):
            raise ValueError(f"unknown sampling {sampling!r}: window, segments or time")
        if sampling == "time" and not frame_rate:
            raise ValueError("sampling by time needs frame_rate, in frames a second")
        self.num_frames, self.sampling, self.frame_rate = num_frames, sampling, frame_rate

    def __call__(self, info: VideoInfo, position: float | np.ndarray = 0.5) -> np.ndarray:
        """(num_frames,) int64 indices into a clip; the same position gives the same indices."""
        if self.sampling == "window":
            return window_indices(info.frames, self.num_frames, float(np.mean(position)))
        if self.sampling == "segments":
            return segment_indices(info.frames, self.num_frames, position)
        return time_indices(info.frames, info.fps, self.num_frames, self.frame_rate, float(np.mean(position)))

    def __repr__(self) -> str:
        return f"FrameSampler({self.num_frames}, {self.sampling!r}, {self.frame_rate})"

    def random_position(self) -> float | np.ndarray:
        """A position drawn from torch's generator: one a segment for `segments`, else one a clip."""
        count = self.num_frames if self.sampling == "segments" else 1
        drawn = torch.rand(count, dtype=torch.float64).numpy()
        return drawn if count > 1 else float(drawn[0])


# ---------------------------------------------------------------- decoding

def open_video(path: str | Path) -> tuple[cv2.VideoCapture, VideoInfo]:
    """Opens a file with one decoder thread (more only cost time on clips this small).

    Raises:
        VideoError: the file is missing, or no decoder opens it.
    """
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path}: no such file; check the clip_path column and the data set's root folder")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    if not capture.isOpened():
        raise VideoError(f"{path}: can't be opened as a video ({path.stat().st_size} bytes); "
                         "replace the file or remove its row from the split")
    count, fps = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
    return capture, VideoInfo(
        max(int(count), 0), fps if np.isfinite(fps) and fps > 0 else 0.0,
        int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
    )


def read_frames(path: str | Path, choose: Callable[[VideoInfo], Iterable[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a file in order and keeps the wanted frames only.

    Args:
        path: a video file.
        choose: given the file's `VideoInfo`, the frame indices wanted, in any order, repeats allowed.

    Returns:
        (T, H, W, 3) uint8 RGB frames in the order wanted, and the (T,) int64 indices they have in the file.

    Raises:
        VideoError: the file can't be opened, holds no frame, or breaks off before the frames that its header
            promises. A header that is off by at most 5 %, or silent, is corrected by the count of frames read.
    """
    capture, info = open_video(path)
    try:
        if info.frames < 1:  # the header is silent: count, then start again
            info = info._replace(frames=_count_frames(capture))
            capture.release()
            capture, _ = open_video(path)
        wanted, frames, read = _keep_wanted(capture, info, choose)
        if read is not None:  # the file ended before the last wanted frame
            _check_count(path, read, info.frames)
            capture.release()
            capture, _ = open_video(path)
            wanted, frames, read = _keep_wanted(capture, info._replace(frames=read), choose)
            if read is not None:
                raise VideoError(f"{path}: reading it twice gave different numbers of frames; is it being written?")
    finally:
        capture.release()
    return np.stack([frames[i] for i in wanted.tolist()]), wanted


def read_timed_frames(path: str | Path, choose: Callable[[VideoInfo], Iterable[int]]) -> tuple[np.ndarray, np.ndarray]:
    """`read_frames` with the frames' times in seconds instead of their indices; 25 a second where the file is silent."""
    frames, indices = read_frames(path, choose)
    capture, info = open_video(path)
    capture.release()
    return frames, indices / (info.fps or 25.0)


def _count_frames(capture: cv2.VideoCapture) -> int:
    count = 0
    while capture.grab():
        count += 1
    return count


def _keep_wanted(capture, info: VideoInfo, choose) -> tuple[np.ndarray, dict[int, np.ndarray], int | None]:
    """The wanted indices, the frames kept by index, and, where the file ended too early, the frames read."""
    if info.frames < 1:
        return np.empty(0, np.int64), {}, 0
    wanted = np.asarray(list(choose(info)), dtype=np.int64)
    keep, frames = set(wanted.tolist()), {}
    for index in range(max(keep) + 1):
        if not capture.grab():
            return wanted, frames, index
        if index in keep:
            ok, frame = capture.retrieve()
            if not ok:
                return wanted, frames, index
            frames[index] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    return wanted, frames, None


def _check_count(path, read: int, promised: int) -> None:
    cure = "fetch or copy the file again, or remove its row from the split"
    if read == 0:
        raise VideoError(f"{path}: holds no frame that can be decoded; {cure}")
    if promised - read > max(2, HINT_TOLERANCE * promised):
        raise VideoError(f"{path}: breaks off after frame {read} of the {promised} that its header promises; {cure}")


def extract_frames(path: str | Path, max_frames: int = 30, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Uniformly spread, slightly blurred frames, for classical descriptors.

    Args:
        path: a video file.
        max_frames: frames at most; a shorter clip gives all of its frames.
        size: (width, height) in pixels.

    Returns:
        (T, height, width, 3) float32 RGB in [0, 1], blurred with a 5x5 Gaussian.

    Raises:
        VideoError: as `read_frames`.
    """
    frames, _ = read_frames(path, lambda info: _stretched(info.frames, min(max_frames, info.frames)))
    smooth = [cv2.GaussianBlur(cv2.resize(f, size, interpolation=cv2.INTER_AREA), (5, 5), 0) for f in frames]
    return np.stack(smooth).astype(np.float32) / 255.0


# ---------------------------------------------------------------- transforms

class ClipTransform:
    """Torchvision v2 transforms applied to a clip as a whole, so that random parameters are drawn once a clip.

    Args:
        steps: v2 transforms on (T, C, H, W) uint8.
        mean: per channel, for values in [0, 1].
        std: per channel.
    """

    def __init__(self, steps: Sequence, mean: Sequence[float], std: Sequence[float]):
        self.steps = v2.Compose(list(steps))
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.normalizes = True

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """(..., C, H, W) uint8 to float32 of the same shape, on the same device."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return pixels.float().div_(255.0).sub_(mean).div_(std)

    def pixels_only(self) -> ClipTransform:
        """The same without the normalisation: uint8 in, uint8 out."""
        other = copy.copy(self)
        other.normalizes = False
        return other

    def __call__(self, clip: torch.Tensor) -> torch.Tensor:
        """(T, C, H, W) uint8 to (T, C, H', W') float32."""
        pixels = self.steps(clip)
        return self.normalize(pixels) if self.normalizes else pixels

    def __repr__(self) -> str:
        return f"ClipTransform({self.steps}, {self.mean.flatten().tolist()}, {self.std.flatten().tolist()})"


class FrameByFrame(v2.Transform):
    """A transform drawn once a clip but run a frame at a time: the same values sooner and in less memory, since what
    lies between its steps stays in the processor's cache.

    Args:
        step: on (T, C, H, W), each frame by itself: a single v2 transform, or a module that draws nothing.
    """

    def __init__(self, step: nn.Module):
        super().__init__()
        self.step = step

    def make_params(self, flat_inputs: list) -> dict:
        """The step's own draw."""
        return self.step.make_params(flat_inputs) if isinstance(self.step, v2.Transform) else {}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        """(T, C, H, W) to the same."""
        drawn = isinstance(self.step, v2.Transform)
        step = partial(self.step.transform, params=params) if drawn else self.step
        return torch.cat([step(frame.contiguous()) for frame in inpt.split(1)])


def _resize_settings(prep: Preprocessing) -> dict:
    return {"interpolation": v2.InterpolationMode(prep.interpolation), "antialias": prep.antialias}


def eval_transform(prep: Preprocessing) -> ClipTransform:
    """Resize and centre crop, equal to the last bit to the weights' own evaluation preset.

    The presets resize with torchvision's first transforms, which round uint8 otherwise than v2's.
    """
    size = list(prep.resize) if isinstance(prep.resize, tuple) else prep.resize
    step = nn.Sequential(transforms.Resize(size, **_resize_settings(prep)), transforms.CenterCrop(prep.crop))
    return ClipTransform([FrameByFrame(step)], prep.mean, prep.std)


def train_transform(prep: Preprocessing) -> ClipTransform:
    """Random resized crop, flip and colour, each drawn once a clip."""
    steps = [
        v2.RandomResizedCrop(prep.crop, scale=(0.5, 1.0), **_resize_settings(prep)),
        v2.RandomHorizontalFlip(),
        FrameByFrame(v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)),
    ]
    return ClipTransform(steps, prep.mean, prep.std)


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
    return train_transform(prep) if train else eval_transform(prep)


def apply_transform(frames: np.ndarray, transform: Callable | None) -> torch.Tensor:
    """(T, H, W, C) uint8 frames through a transform, to (T, C, H', W').

    A `ClipTransform` sees the whole clip. Any other callable sees one (H, W, C) uint8 array at a time, as the
    seed's do. Without a transform the pixels come back as they are, uint8.
    """
    if transform is None or isinstance(transform, ClipTransform):
        clip = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, C, H, W), channels last in memory: cropped sooner
        return clip.contiguous() if transform is None else transform(clip)
    return torch.stack([transform(frame) for frame in frames])


# ---------------------------------------------------------------- data sets

def read_clip_table(csv: str | Path, root: str | Path, class_map: dict[str, int]) -> pd.DataFrame:
    """A split's CSV, checked before anything is decoded.

    Args:
        csv: a file with the columns `clip_path` (relative to root) and `label` (a class name).
        root: the data set's folder.
        class_map: class name to integer label.

    Raises:
        FileNotFoundError: the CSV is missing, or clips are: all of them are listed.
        ValueError: a column is missing, the table is empty, or labels are not in the class map.
    """
    csv = Path(csv)
    if not csv.is_file():
        raise FileNotFoundError(f"{csv}: no such split file; make the splits with python src/splits.py ROOT")
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError:
        table = pd.DataFrame()
    missing = [c for c in ("clip_path", "label") if c not in table.columns]
    if missing:
        raise ValueError(f"{csv}: lacks the column {', '.join(missing)}; it has {', '.join(table.columns) or 'none'}")
    if table.empty:
        raise ValueError(f"{csv}: holds no clips; make the splits again")
    unknown = sorted(set(table["label"]) - set(class_map))
    if unknown:
        raise ValueError(f"{csv}: labels not in the class map: {', '.join(unknown)}; it has {', '.join(class_map)}")
    absent = [p for p in table["clip_path"] if not clip_file(root, p).is_file()]
    if absent:
        listed = "\n  ".join(absent)
        raise FileNotFoundError(f"{csv}: {len(absent)} of {len(table)} clips are not under {root}:\n  {listed}\n"
                                "fetch them, or make the splits again")
    return table


def clip_file(root: str | Path, clip_path: str) -> Path:
    """The file of a split's `clip_path`, which begins with `/` and is relative to the root."""
    return Path(root) / clip_path.lstrip("/")


class VideoDataset2D(Dataset):
    """Clips as frame sequences, (T, C, H, W), for models that see a frame at a time.

    Args:
        csv: a split's CSV (see `read_clip_table`).
        root: the data set's folder.
        class_map: class name to integer label.
        num_frames: T.
        transform: a `ClipTransform`, or any callable that takes one (H, W, C) uint8 frame; None gives uint8.
        train: random sampling positions; otherwise the centre, so that the same clip gives the same tensor.
        sampling: `window` (the seed's contiguous frames), `segments` or `time`.
        frame_rate: frames a second, for `time`.

    Attributes:
        data: the CSV as a DataFrame.

    Raises:
        FileNotFoundError, ValueError: as `read_clip_table`, at construction.
        VideoError: from `__getitem__`, for a file that can't be decoded.
    """

    def __init__(self, csv, root, class_map, num_frames=20, transform=None, train=False, sampling="window",
                 frame_rate=None):
        self.data = read_clip_table(csv, root, class_map)
        self.root, self.class_map = Path(root), dict(class_map)
        self.sampler = FrameSampler(num_frames, sampling, frame_rate)
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

    Training views (`dataset.train`) have random positions and augmentation, fixed by (seed, view, clip), whatever
    the order in which clips are asked for. Test views lie evenly over the clip.

    Args:
        dataset: a `VideoDataset2D` or `VideoDataset3D`.
        views: V.
        seed: for the training views.
        pixels: give (V, T, C, H, W) uint8, for normalisation and layout on the device.
        store: where decoded frames are kept; None decodes each time.
    """

    def __init__(self, dataset: VideoDataset2D, views: int, seed: int = 0, pixels: bool = False,
                 store: ArrayStore | None = None):
        self.dataset, self.views, self.seed, self.pixels, self.store = dataset, views, seed, pixels, store

    def __len__(self) -> int:
        return len(self.dataset)

    def frames(self, index: int) -> np.ndarray:
        """(V, T, H, W, 3) uint8; draws the positions of training views from torch's generator."""
        data = self.dataset
        positions = [data.sampler.random_position() if data.train else (view + 0.5) / self.views
                     for view in range(self.views)]

        def decode() -> np.ndarray:
            frames, _ = read_frames(
                data.file(index), lambda info: np.concatenate([data.sampler(info, p) for p in positions]))
            return frames.reshape(self.views, -1, *frames.shape[1:])

        if self.store is None:
            return decode()
        key = file_hash(data.file(index)), repr(data.sampler), np.array(positions).tolist()
        return self.store.get(self.store.path("frames", key), decode)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        data = self.dataset
        transform = data.transform.pixels_only() if self.pixels else data.transform
        with self._fixed_draws(index):
            clips = [apply_transform(np.require(view, requirements="W"), transform) for view in self.frames(index)]
        return torch.stack(clips if self.pixels else [data.layout(c) for c in clips]), data.label(index)

    @contextmanager
    def _fixed_draws(self, index: int):
        """Draws from torch's generator are those of this clip; the generator itself is left as it was."""
        with torch.random.fork_rng(devices=[]):
            name = self.dataset.data["clip_path"].iloc[index]
            torch.manual_seed(int(np.random.SeedSequence([self.seed, *name.encode()]).generate_state(1)[0]))
            yield


class DrawnView(ClipViews):
    """One of a clip's views a sample, augmented anew each time, from frames that are decoded once and kept.

    A sample is as the data set's own, (T, C, H, W) or (C, T, H, W), label; arguments are those of `ClipViews`.
    """

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with self._fixed_draws(index):
            frames = self.frames(index)
        view = np.require(frames[int(torch.randint(self.views, (1,)))], requirements="W")  # (T, H, W, 3)
        return self.dataset.layout(apply_transform(view, self.dataset.transform)), self.dataset.label(index)


# ---------------------------------------------------------------- batches

def seed_worker(worker_id: int) -> None:
    """Gives a loader worker its own reproducible generators, and one thread to each library."""
    seed = torch.initial_seed() % 2**32
    random.seed(seed)
    np.random.seed(seed)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def make_loader(dataset: Dataset, batch_size: int, shuffle: bool = False, num_workers: int | None = None,
                collate: Callable = default_collate) -> DataLoader:
    """A DataLoader whose workers are seeded from torch's generator and don't fight over cores.

    Args:
        dataset: any map-style data set.
        batch_size: samples a batch.
        shuffle: a new order each epoch, from torch's generator.
        num_workers: processes that decode; None takes one fewer than there are cores, four at most.
        collate: how samples become a batch.
    """
    if num_workers is None:
        num_workers = min(max(len(os.sched_getaffinity(0)) - 1, 1), 4) if hasattr(os, "sched_getaffinity") else 2
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers, collate_fn=collate,
                      worker_init_fn=seed_worker, pin_memory=torch.cuda.is_available())


def load_dataset(root: str | Path, class_map: dict[str, int] | None = None) -> tuple[list[str], np.ndarray, dict]:
    """All clips of a folder with one sub-folder a class.

    Args:
        root: the folder.
        class_map: class name to integer label; None takes every sub-folder with a video, in alphabetical order.

    Returns:
        (N) file paths, sorted; their (N,) int64 labels; and the class map.

    Raises:
        FileNotFoundError, ValueError: as `splits.scan_clips`.
    """
    clips = scan_clips(root, class_map)
    class_map = class_map or {name: i for i, name in enumerate(sorted(clips["label"].unique()))}
    paths = [str(clip_file(root, clip_path)) for clip_path in clips["clip_path"]]
    return paths, clips["label"].map(class_map).to_numpy(dtype=np.int64), dict(class_map)
