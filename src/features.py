"""What is computed once and kept: the frozen trunk's activations of every view of every clip.

One file per clip, named by everything that decides its content: the clip's bytes, the sampling, the transform, the
views, the trunk's weights and the precision. An interrupted run goes on where it was, and two data sets, splits or
recipes that agree on a clip share its file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from config import CACHE
from data_loader import ClipViews, VideoDataset2D, make_loader
from deployed import FrozenTrunk
from files import ArrayStore, file_hash, shown
from models import VideoModel
from transforms import ClipTransform

IN_MEMORY = 1e9  # bytes of kept activations that a loader of many epochs holds; the rest is read when it is needed


class Activations(Dataset):
    """The kept activations of clips: in `files`, for each clip one .npy per stream, (V, T, ...) float16; those of
    several streams are joined along T.

    A sample is (activations, label): of all views, (V, T, ...); with `view` a number, of this one, (T, ...); with
    `view` `random`, of one that is drawn from torch's generator (training). Values are float32. Where a view is named,
    they are read for epochs: once, and held in memory, as many as IN_MEMORY allows. A loader gets batches
    of them, (B, ...) and (B,), by `__getitems__`; it needs a `collate` that leaves them as they are, such as `tuple`.
    """

    def __init__(self, files: list[tuple[Path, ...]], labels: list[int], view: int | str | None = None):
        self.files, self.labels, self.view = files, labels, view
        self._memory: dict[Path, np.ndarray] = {}
        self._room = IN_MEMORY

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, labels = self.__getitems__([index])
        return x[0], int(labels[0])

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        clips = [[self._stream(path) for path in self.files[row]] for row in rows]
        views = [self.view] * len(rows)
        if self.view == "random":
            views = torch.randint(len(clips[0][0]), (len(rows),)).tolist()
        x = [np.concatenate([stream[slice(None) if view is None else view] for stream in streams],
                            axis=1 if view is None else 0) for streams, view in zip(clips, views, strict=True)]
        return torch.from_numpy(np.stack(x)).float(), torch.tensor([self.labels[row] for row in rows])

    def _stream(self, path: Path) -> np.ndarray:
        if path in self._memory:
            return self._memory[path]
        stream = _mapped(path)
        if self.view is not None and stream.nbytes <= self._room:
            self._room -= stream.nbytes
            stream = self._memory[path] = np.array(stream)
        return stream


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: removed meanwhile, by hand or by another process that needed the space: run "
                                "again, with a higher CACHE_GB") from error


def trunk_activations(model: VideoModel, dataset: VideoDataset2D, views: int, device: str | torch.device,
                      seed: int = 0, cache: Path = CACHE, title: str = "features", precision: str = "auto"
                      ) -> list[Path]:
    """Computes what is missing of the trunk's activations of V `views` of each clip; gives the files that keep them.

    The data set, of one modality, decides by `train` between random views, which follow `seed`, and evenly spread ones.
    `device` and `precision` are as in `FrozenTrunk`; `cache` is the folder of an `ArrayStore`.

    Raises:
        VideoError: a clip can't be decoded; what was computed before it is kept.
        FloatingPointError: the trunk gave values that are not finite.
    """
    if not isinstance(dataset.transform, ClipTransform):
        raise TypeError("kept activations need a ClipTransform: a transform of single frames has no fixed views")
    store, frozen = ArrayStore(cache), FrozenTrunk(model, dataset.transform, device, precision)
    kept = [store.path(frozen.folder, key) for key in _keys(dataset, views, seed, frozen)]
    store.in_use = set(kept)
    missing = [i for i, path in enumerate(kept) if not store.has(path)]
    if missing:
        clips = Subset(ClipViews(dataset, views, seed, pixels=True), missing)
        loader = make_loader(clips, batch_size=1, collate=itemgetter(0))  # not a lambda: spawned workers import it
        progress = tqdm(zip(missing, loader, strict=True), title, len(missing), unit="clip", file=sys.stdout, ncols=90)
        for index, (pixels, _) in progress:
            activations = frozen(pixels)
            if not np.isfinite(activations).all():
                raise FloatingPointError("the frozen trunk gave values that are not finite or exceed float16")
            store.write(kept[index], activations)
        left, size = store.trim(), sum(path.stat().st_size for path in kept)
        print(f"{title}: {len(kept)} clips in {frozen.precision}, {size / 1e6:.0f} MB kept; {shown(store.folder)} "
              f"holds {left / 1e6:.0f} MB of at most {store.budget / 1e9:g} GB")
    return kept


def _keys(dataset: VideoDataset2D, views: int, seed: int, frozen: FrozenTrunk) -> list[tuple]:
    settings = (type(dataset).__name__, repr(dataset.sampler), repr(dataset.transform), dataset.train, views,
                seed if dataset.train else None, frozen.precision, torch.device(frozen.device).type)
    names = dataset.data["clip_path"] if dataset.train else [""] * len(dataset)  # random views depend on the name
    return [(settings, name, file_hash(dataset.file(i))) for i, name in enumerate(names)]
