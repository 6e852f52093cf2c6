"""A trained CNN as it answers about a stretch of a video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deployed import Deployed, FrozenTrunk, as_batch
from deployment.trained import saved_model, saved_recipe
from files import ResultFiles
from machine import accelerator
from models import VideoModel, WeightsError, build_model
from sampling import FrameSampler
from transforms import framed, normalized, recipe_transform
from videos.decoding import VideoInfo


def load_network(files: ResultFiles, saved: dict) -> VideoModel:
    """The network of a checkpoint and its sidecar, in evaluation mode.

    Raises:
        WeightsError: the checkpoint is of another network, or can't be read.
    """
    model = build_model(saved_recipe(saved), len(saved["classes"]), "none", saved["backbone"])
    try:
        model.load_state_dict(torch.load(files.checkpoint, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises almost anything on bytes that are no checkpoint
        raise WeightsError(f"{files.checkpoint}: can't be loaded ({type(error).__name__}); move it and its .json away "
                           "and train again") from error
    model.source = saved["weights"]
    return model.eval()


class Cnn:
    """A `trained.Judge` of kind `2d` or `3d`; errors as `prepared.load_judge`.

    Where the trunk sees frames by themselves, what it gives of one is kept: overlapping stretches share it.
    """

    def __init__(self, name: str, results: Path, device: str | None = None):
        self.files, saved = saved_model(name, results)
        self.name, self.title, self.classes = name, f"{name.upper()}-CNN", saved["classes"]
        self.recipe, self.device = saved_recipe(saved), accelerator(device)
        self.model = load_network(self.files, saved).to(self.device)
        self.transform = recipe_transform(self.recipe, self.model.preprocessing, train=False)
        self.sampler = FrameSampler(**self.recipe.frames())
        precision = self.recipe.precision if self.recipe.cache == "activations" else "float32"
        frozen = FrozenTrunk(self.model, self.device, precision)
        self.network = Deployed(frozen, self.model.head)
        self.shares = self.model.frame_wise and self.model.cut > 0

    def views(self, info: VideoInfo) -> list[np.ndarray]:
        count = self.recipe.test_clips
        return [self.sampler(info, (view + 0.5) / count) for view in range(count)]

    def view(self, info: VideoInfo, start: int, frames: int) -> np.ndarray:
        return start + self.sampler(info._replace(frames=frames))

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        return framed(picture[None], self.transform)[0].numpy()

    @torch.inference_mode()
    def judge(self, views, pictures, fps, known):
        activations = self._shared(views, pictures, known) if self.shares else self._separate(views, pictures)
        logits, features = self.network.head(activations), self.model.embed(activations)
        return logits.double().softmax(dim=1).cpu().numpy(), features.float().cpu().numpy()

    def _separate(self, views, pictures) -> torch.Tensor:
        """(V, ...) activations, a view at a time."""
        clips = (_clip(pictures, view.tolist()).to(self.device) for view in views)
        batches = (as_batch(self.model, normalized(clip, self.transform)) for clip in clips)
        return torch.cat([self.network.frozen.join(batch).float() for batch in batches])

    def _shared(self, views, pictures, known) -> torch.Tensor:
        """(V, T, ...) activations; those of a frame, or pair of frames, that is known are not computed again."""
        shown = [self._shown(view) for view in views]
        missing = sorted({key for keys in shown for key in keys if key not in known}, key=len)  # stills first
        if missing:
            stills = sum(len(key) == 1 for key in missing)
            order = [*(key[0] for key in missing), *(key[1] for key in missing[stills:])]
            clip = normalized(_clip(pictures, order).to(self.device), self.transform, stills)
            known |= zip(missing, self.network.frozen.run(as_batch(self.model, clip))[0].float(), strict=True)
        return torch.stack([torch.stack([known[key] for key in keys]) for keys in shown])

    def _shown(self, view: np.ndarray) -> list[tuple[int, ...]]:
        """The frames, then the pairs of frames, that a view shows."""
        stills = self.sampler.stills
        first, second = np.split(view[stills:], 2)
        return [*zip(view[:stills].tolist()), *zip(first.tolist(), second.tolist(), strict=True)]


def _clip(pictures: dict[int, np.ndarray], order: list[int]) -> torch.Tensor:
    """(F, C, H, W) of prepared frames, in this order."""
    return torch.from_numpy(np.stack([pictures[i] for i in order]))
