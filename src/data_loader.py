"""From a video file to frames, to a clip tensor, to batches: the data sets, and the loaders over them.

Frames are RGB uint8 until the last moment. `sampling` says which frames are wanted, `transforms` how they are seen.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.multiprocessing.reductions import reduce_tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from machine import cores, team
from sampling import FrameSampler, stretched
from transforms import apply_transform, channels_first
from videos.decoding import VideoInfo, read_frames
from videos.folder import scan_clips
from videos.split_files import read_part
from videos.splits import clip_file

MOST_WORKERS = 16  # processes that decode for a GPU
ROOM = 32  # of a batch's size that must be free in shared memory, if it is to go through it


# ---------------------------------------------------------------- the seed's frames

def extract_frames(path: str | Path, max_frames: int = 30, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """Uniformly spread frames, all of them where the clip is short, blurred with a 5x5 Gaussian.

    `size` is (width, height) in pixels; the frames are (T, height, width, 3) float32 RGB in [0, 1].
    """
    frames, _ = read_frames(path, lambda info: stretched(info.frames, min(max_frames, info.frames)))
    smooth = [cv2.GaussianBlur(cv2.resize(f, size, interpolation=cv2.INTER_AREA), (5, 5), 0) for f in frames]
    return np.stack(smooth).astype(np.float32) / 255.0


# ---------------------------------------------------------------- data sets

@contextmanager
def drawn_with(key: int, device: torch.device | None = None) -> Iterator[None]:
    """Draws within, on the CPU and on a CUDA `device`, are those of `key`; the generators are left as they were."""
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(key)  # of the CPU alone: other GPUs' would not be set back
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(key)
        yield


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
        return shared_views([(self, index)])[0], self.dataset.label(index)

    def indices(self, index: int, info: VideoInfo) -> np.ndarray:
        """The frames of a clip's views, one view after another."""
        with self._draws(index) as positions:
            return np.concatenate([self.dataset.sampler(info, position) for position in positions])

    def of_frames(self, index: int, frames: np.ndarray) -> torch.Tensor:
        """The views, from a clip's frames in the order of `indices`."""
        with self._draws(index):
            return torch.stack([self._transformed(clip) for clip in np.split(frames, self.views)])

    @contextmanager
    def _draws(self, index: int) -> Iterator[list]:
        """Draws within are those of this clip, the views' positions first; the generator is left as it was."""
        data, views = self.dataset, range(self.views)
        words = [self.seed, *data.data["clip_path"].iloc[index].encode()]
        with drawn_with(int(np.random.SeedSequence(words).generate_state(1)[0])):
            within = [data.sampler.random_position() if data.train else 0.5 for _ in views]
            # windows lie in consecutive parts of the clip; where segments spread over all of it, each view does
            yield [x if np.size(x) > 1 else (v + x) / self.views for v, x in zip(views, within, strict=True)]

    def _transformed(self, frames: np.ndarray) -> torch.Tensor:
        data = self.dataset
        if self.pixels:
            return data.transform.steps(channels_first(frames))
        return data.layout(apply_transform(frames, data.transform))


def shared_views(asked: Sequence[tuple[ClipViews, int]]) -> list[torch.Tensor]:
    """What several `ClipViews` give of one clip, each with its index there; the file is decoded once for all."""
    (first, index), lengths = asked[0], []

    def choose(info: VideoInfo) -> np.ndarray:
        chosen = [views.indices(its, info) for views, its in asked]
        lengths[:] = map(len, chosen)
        return np.concatenate(chosen)

    frames, _ = read_frames(first.dataset.file(index), choose)
    parts = np.split(frames, np.cumsum(lengths)[:-1])
    return [views.of_frames(its, part) for (views, its), part in zip(asked, parts, strict=True)]


class SharedPasses(Dataset):
    """`shared_views` of each entry of a list."""

    def __init__(self, asked: Sequence[Sequence[tuple[ClipViews, int]]]):
        self.asked = asked

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return shared_views(self.asked[index])


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
        return shutil.disk_usage("/dev/shm").free  # noqa: S108  nothing is written there, its room is asked for
    except OSError:
        return math.inf


def stacked(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples as a batch, (B, ...) and (B,); torch's own collation takes shared memory in a worker."""
    tensors, labels = zip(*samples, strict=True)
    return torch.stack(tensors), torch.tensor(labels)


def make_loader(dataset: Dataset, batch_size: int = 1, shuffle: bool = False, num_workers: int | None = None,
                collate: Callable = stacked, device: str | torch.device = "cpu",
                batches: Sampler | None = None) -> DataLoader:
    """A DataLoader whose workers don't fight over cores; shuffling and their seeds come from torch's generator.

    `batches` gives the indices of each batch, instead of `batch_size` and `shuffle`.

    `num_workers` None takes one process fewer than there are cores; four at most where `device`, on which the network
    runs, is the CPU, which needs them itself.
    """
    if num_workers is None:
        num_workers = min(max(cores() - 1, 1), 4 if torch.device(device).type == "cpu" else MOST_WORKERS)
    return DataLoader(dataset, batch_size, shuffle, batch_sampler=batches, num_workers=num_workers, collate_fn=collate,
                      worker_init_fn=start_worker, pin_memory=torch.cuda.is_available())


class DrawnClips(Dataset):
    """A data set whose random draws belong to the clip: asked for (index, key, whether it is wanted), it gives the clip
    drawn with that key, or None, and its label."""

    def __init__(self, dataset: Dataset, labels: Sequence[int]):
        self.dataset, self.labels = dataset, labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, asked: tuple[int, int, bool]) -> tuple[torch.Tensor | None, int]:
        index, key, wanted = asked
        if not wanted:
            return None, self.labels[index]
        with drawn_with(key):
            return self.dataset[index][0], self.labels[index]


class SharedBatches(Sampler):
    """Batches for `DrawnClips`; of several processes that train together (`machine.team`) each wants the clips of its
    own micro-batches alone, those number `rank`, `rank + count` and so on of a batch.

    Order and keys are drawn anew each time, with one number from torch's generator, so that all have the same.
    """

    def __init__(self, clips: int, batch_size: int, micro_batch: int, shuffle: bool):
        self.clips, self.batch_size, self.micro_batch, self.shuffle = clips, batch_size, micro_batch, shuffle

    def __len__(self) -> int:
        return math.ceil(self.clips / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        drawn, (rank, count) = np.random.default_rng(int(torch.randint(2**62, ()))), team()
        keys = drawn.integers(2**62, size=self.clips)
        order = drawn.permutation(self.clips) if self.shuffle else np.arange(self.clips)
        for batch in np.split(order, range(self.batch_size, self.clips, self.batch_size)):
            whose = np.arange(len(batch)) // self.micro_batch % count
            yield [(int(index), int(keys[index]), bool(its == rank)) for index, its in zip(batch, whose, strict=True)]


def own_stacked(samples: list[tuple[torch.Tensor | None, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A process's clips of a batch, (n, ...), none of which may be its own, and the labels of the whole batch, (B,)."""
    own = [clip for clip, _ in samples if clip is not None]
    return torch.stack(own) if own else torch.empty(0), torch.tensor([label for _, label in samples])


def shared_loader(dataset: Dataset, labels: Sequence[int], batch_size: int, micro_batch: int, shuffle: bool = False,
                  num_workers: int | None = None, device: str | torch.device = "cpu") -> DataLoader:
    """A loader of `SharedBatches`; `num_workers` and `device` as `make_loader`."""
    return make_loader(DrawnClips(dataset, labels), num_workers=num_workers, collate=own_stacked, device=device,
                       batches=SharedBatches(len(dataset), batch_size, micro_batch, shuffle))


def load_dataset(root: str | Path, class_map: dict[str, int] | None = None) -> tuple[list[str], np.ndarray, dict]:
    """All clips of a folder with one sub-folder per class: N file paths, sorted; (N,) int64 labels; the class map.

    Without a class map every sub-folder with a video is a class, in alphabetical order; errors as `scan_clips`.
    """
    clips = scan_clips(root, class_map)
    class_map = class_map or {name: i for i, name in enumerate(sorted(clips["label"].unique()))}
    paths = [str(clip_file(root, clip_path)) for clip_path in clips["clip_path"]]
    return paths, clips["label"].map(class_map).to_numpy(dtype=np.int64), dict(class_map)
