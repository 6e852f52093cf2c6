"""What is computed once and kept: the frozen trunk's activations of every view of every clip.

One file per clip, named by everything that decides its content: the clip's bytes, the sampling, the transform, the
views, the trunk's weights and the precision. An interrupted run goes on where it was, and two data sets, splits or
recipes that agree on a clip share its file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from cluster import asked_cluster, failures, shared_out
from config import CACHE
from data_loader import ClipViews, SharedPasses, VideoDataset2D, make_loader
from deployed import FrozenTrunk
from files import ArrayStore, file_hash, shown
from models import VideoModel
from transforms import ClipTransform
from videos.decoding import VideoError

IN_MEMORY = 1e9  # bytes of kept activations that a loader of many epochs holds; more are read when they are needed


class Activations(Dataset):
    """The kept activations of clips: in `files`, for each clip one .npy per stream, (V, T, ...) float16; those of
    several streams are joined along T.

    A sample is (activations, label): of all views, (V, T, ...); with `view` a number, of this one, (T, ...); with
    `view` `random`, of one that is drawn from torch's generator (training). Values are float32. Where a view is named,
    they are read for epochs: once, and held in memory where IN_MEMORY allows it. A loader gets batches of them,
    (B, ...) and (B,), by `__getitems__`; it needs a `collate` that leaves them as they are, such as `tuple`.
    """

    def __init__(self, files: list[tuple[Path, ...]], labels: list[int], view: int | str | None = None,
                 summary: nn.Module | None = None):
        self.files, self.labels, self.view, self.summary = files, labels, view, summary
        self._seen: dict[str, Activations] = {}

    def through(self, summary: nn.Module | None) -> Activations:
        """The same clips as a `models.Summary` gives them: of each view (S, ...); with None, as they are."""
        if summary is None:
            return self
        if repr(summary) not in self._seen:
            self._seen = {repr(summary): Activations(self.files, self.labels, self.view, summary)}  # the last one alone
        return self._seen[repr(summary)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        x, labels = self.__getitems__([index])
        return x[0], int(labels[0])

    def __getitems__(self, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        views = [self.view] * len(rows)
        if self.view == "random":
            views = torch.randint(self.views, (len(rows),)).tolist()
        if self._memory is not None:
            x = torch.from_numpy(self._memory[rows, views]).float()
        else:
            x = torch.stack([self._clip(row, slice(None) if view is None else slice(view, view + 1))
                             for row, view in zip(rows, views, strict=True)])
            x = x if self.view is None else x[:, 0]
        return x, torch.tensor([self.labels[row] for row in rows])

    @cached_property
    def views(self) -> int:
        """Of each clip, V."""
        return len(_mapped(self.files[0][0]))

    @cached_property
    def _memory(self) -> np.ndarray | None:
        """(N, V, ...): all clips, where they are read for epochs and there is room for them."""
        if self.view is None:
            return None
        first = self._clip(0, slice(None))
        first = first if self.summary else first.half()  # as it is kept
        if first.nbytes * len(self) > IN_MEMORY:
            return None
        held = torch.empty((len(self), *first.shape), dtype=first.dtype)
        for row in range(len(self)):
            held[row] = self._clip(row, slice(None))
        return held.numpy()

    @torch.inference_mode()
    def _clip(self, row: int, views: slice) -> torch.Tensor:
        """(V, T, ...) float32: a clip's views, its streams joined along T; or what the summary gives of them."""
        x = np.concatenate([_mapped(path)[views] for path in self.files[row]], axis=1)
        x = torch.from_numpy(x).float()
        return self.summary(x) if self.summary else x


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: removed meanwhile, by hand or by another process that needed the space: run "
                                "again, with a higher CACHE_GB") from error


def trunk_activations(model: VideoModel, asked: Sequence[tuple[VideoDataset2D, int]], device: str | torch.device,
                      seed: int = 0, cache: Path = CACHE, title: str = "features", precision: str = "auto",
                      engine: str = "torch") -> list[list[Path]]:
    """Computes what is missing of the trunk's activations of views of clips; gives the files that keep them.

    Args:
        asked: data sets, of one modality each, with the number V of views of their clips: random ones, which follow
            `seed`, of a data set for training, else evenly spread ones. A clip that several want is decoded once.
        device, precision, engine: as in `FrozenTrunk`.
        cache: the folder of an `ArrayStore`.

    Returns:
        For each data set, a file per clip.

    Raises:
        VideoError: a clip can't be decoded; what was computed before it is kept.
        FloatingPointError: the trunk gave values that are not finite.
    """
    if not all(isinstance(dataset.transform, ClipTransform) for dataset, _ in asked):
        raise TypeError("kept activations need a ClipTransform: a transform of single frames has no fixed views")
    store, frozen = ArrayStore(cache), FrozenTrunk(model, device, precision, engine)
    kept = [[store.path(frozen.folder, key) for key in _keys(dataset, views, seed, frozen)] for dataset, views in asked]
    store.in_use = {path for files in kept for path in files}
    store.fetch(store.in_use)
    missing: dict[Path, list[tuple[int, int]]] = {}  # by clip: which data sets want it, and its row there
    for number, files in enumerate(kept):
        for row in (row for row, path in enumerate(files) if not store.has(path)):
            missing.setdefault(asked[number][0].file(row), []).append((number, row))
    if missing:
        work, places, cluster = _Extraction(asked, seed, frozen, store, kept), list(missing.values()), asked_cluster()
        gpu = torch.device(device).type == "cuda"
        done = shared_out(work, places, cluster, gpu, errors=VideoError) if cluster else work.here(places)
        unread = failures(tqdm(done, title, len(missing), unit="clip", file=sys.stdout, ncols=90), list(missing))
        left, size = store.trim(), sum(path.stat().st_size for path in store.in_use if path.is_file())
        print(f"{title}: {len(missing) - len(unread)} clips in {frozen.precision} by {engine}, {size / 1e6:.0f} MB "
              f"kept; {shown(store.folder)} holds {left / 1e6:.0f} MB of at most {store.budget / 1e9:g} GB")
        if unread:
            raise VideoError("\n".join(unread))
    return kept


class _Extraction:
    """What computes and keeps the missing activations of clips, here or in another process; arguments as
    `trunk_activations`, and the store's paths by data set and row.

    A clip is a list of the data sets that want it, by number, each with its row there.
    """

    def __init__(self, asked: Sequence[tuple[VideoDataset2D, int]], seed: int, frozen: FrozenTrunk, store: ArrayStore,
                 kept: list[list[Path]]):
        self.clips = [ClipViews(dataset, views, seed, pixels=True) for dataset, views in asked]
        self.frozen, self.store, self.kept = frozen, store, kept

    def here(self, places: list[list[tuple[int, int]]]) -> Iterator[tuple[int, None]]:
        """All clips, in this process, decoded by others: the number of each that is kept."""
        loader = make_loader(self._passes(places), batch_size=1, collate=itemgetter(0),  # no lambda: workers import it
                             device=self.frozen.device)
        for number, views in enumerate(loader):
            self._keep(places[number], views)
            yield number, None

    def __call__(self, places: list[tuple[int, int]]) -> None:
        """One clip, in a process of its own."""
        self._keep(places, self._passes([places])[0])

    def _passes(self, places: list[list[tuple[int, int]]]) -> SharedPasses:
        return SharedPasses([[(self.clips[number], row) for number, row in its] for its in places])

    def _keep(self, places: list[tuple[int, int]], views: list[torch.Tensor]) -> None:
        for (number, row), pixels in zip(places, views, strict=True):
            activations = self.frozen(pixels, self.clips[number].dataset.transform)
            self.store.write(self.kept[number][row], _finite(activations))


def _finite(activations: np.ndarray) -> np.ndarray:
    if not np.isfinite(activations).all():
        raise FloatingPointError("the frozen trunk gave values that are not finite or exceed float16")
    return activations


def _keys(dataset: VideoDataset2D, views: int, seed: int, frozen: FrozenTrunk) -> list[tuple]:
    settings = (type(dataset).__name__, repr(dataset.sampler), repr(dataset.transform), dataset.train, views,
                seed if dataset.train else None, frozen.precision, torch.device(frozen.device).type, frozen.engine)
    names = dataset.data["clip_path"] if dataset.train else [""] * len(dataset)  # random views depend on the name
    return [(settings, name, file_hash(dataset.file(i))) for i, name in enumerate(names)]
