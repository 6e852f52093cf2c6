"""What is computed once and kept: the frozen trunk's activations of every view of every clip.

One file a clip, named by everything that decides its content: the clip's bytes, the sampling, the transform, the
views, the trunk's weights and the precision. A file is complete or absent, so that an interrupted run goes on where
it was, and two data sets, splits or recipes that agree on a clip share its file.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from config import CACHE
from data_loader import ClipTransform, ClipViews, VideoDataset2D, make_loader
from models import VideoModel, state_hash
from utils import atomic_path


def trunk_precision(device: str | torch.device) -> str:
    """`bfloat16` where the hardware computes with it (CUDA; CPUs with AVX512-BF16 or AMX), else `float32`."""
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


class Activations(Dataset):
    """The kept activations of a data set's clips, read from memory-mapped files.

    Args:
        files: one .npy a clip, (V, ...) float16.
        labels: one integer a clip.
        draw: give one view, drawn from torch's generator (training); otherwise all of them.

    A sample is ((...), label) where a view is drawn and ((V, ...), label) where not; values are float32.
    """

    def __init__(self, files: list[Path], labels: list[int], draw: bool):
        self.files, self.labels, self.draw = files, labels, draw

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        views = np.load(self.files[index], mmap_mode="r")
        if self.draw:
            views = views[int(torch.randint(len(views), (1,)))]
        return torch.from_numpy(views.astype(np.float32)), self.labels[index]


def trunk_activations(model: VideoModel, dataset: VideoDataset2D, views: int, device: str | torch.device,
                      draw: bool = False, seed: int = 0, cache: Path = CACHE, title: str = "features") -> Activations:
    """Computes what is missing of the trunk's activations and gives access to all of them.

    Args:
        model: on `device`; its trunk is run in evaluation mode.
        dataset: the clips, with a `ClipTransform`; its `train` decides between random and evenly spread views.
        views: V, views a clip.
        device: where the trunk runs.
        draw: whether a sample is one view, drawn anew each time, or all of them.
        seed: of the training views.
        cache: folder of the kept files.
        title: of the progress bar.

    Raises:
        VideoError: a clip can't be decoded; what was computed before it is kept.
        FloatingPointError: the trunk gave values that are not finite.
    """
    if not isinstance(dataset.transform, ClipTransform):
        raise TypeError("kept activations need a ClipTransform: a transform of single frames has no fixed views")
    precision = trunk_precision(device)
    kept = _kept_files(model, dataset, views, seed, precision, cache)
    missing = [i for i, path in enumerate(kept) if not path.is_file()]
    if missing:
        clips = Subset(ClipViews(dataset, views, seed, pixels=True), missing)
        loader = make_loader(clips, batch_size=1, collate=_only_views)
        trunk = model.trunk.eval()
        progress = tqdm(zip(missing, loader), title, len(missing), unit="clip", file=sys.stdout, ncols=90)
        for index, pixels in progress:
            _keep(kept[index], _run_trunk(trunk, dataset, pixels, device, precision))
    labels = [dataset.label(i) for i in range(len(dataset))]
    return Activations(kept, labels, draw)


def _only_views(samples: list) -> torch.Tensor:
    """The views of a batch of one clip; a function of the module, so that spawned workers find it."""
    return samples[0][0]


@torch.inference_mode()
def _run_trunk(trunk, dataset, pixels: torch.Tensor, device, precision: str) -> np.ndarray:
    """(V, T, C, H, W) uint8 views to (V, ...) float16 activations, a view at a time, which bounds the memory."""
    half = torch.autocast(torch.device(device).type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with half:
        out = [trunk(dataset.layout(dataset.transform.normalize(view.to(device)))[None])[0].half().cpu() for view in pixels]
    return torch.stack(out).numpy()


def _keep(path: Path, activations: np.ndarray) -> None:
    if not np.isfinite(activations).all():
        raise FloatingPointError("the frozen trunk gave values that are not finite or exceed float16")
    with atomic_path(path) as temporary:
        np.save(temporary, activations)


def _kept_files(model, dataset, views, seed, precision, cache) -> list[Path]:
    sampler = dataset.sampler
    settings = (type(dataset).__name__, sampler.num_frames, sampler.sampling, sampler.frame_rate,
                repr(dataset.transform), dataset.train, views, seed if dataset.train else None, precision)
    trunk = state_hash(model.trunk)
    folder = Path(cache) / "activations" / f"{model.backbone}-{trunk[:16]}"
    names = dataset.data["clip_path"] if dataset.train else [""] * len(dataset)  # random views depend on the name
    keys = [hashlib.sha256(repr((settings, trunk, name, file_hash(dataset.file(i)))).encode()).hexdigest()
            for i, name in enumerate(names)]
    return [folder / f"{key[:32]}.npy" for key in keys]


def file_hash(path: str | Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
