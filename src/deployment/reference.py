"""What an answer needs of the training: how long its videos were, what they look like to the model, how sure it may be.

It is computed once, from the data set, and kept beside the saved model; an answer then needs no data set.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from files import ModelFiles, atomic_path

NEIGHBOURS = 3  # whose mean distance tells how far a video is from the training videos (see benchmarks/novelty.py)
UNUSUAL = 0.95  # share of the training videos that lie nearer to those of other groups than what is called unfamiliar


@dataclass(frozen=True)
class Reference:
    """What is kept of a model's training.

    Attributes:
        of: sha256 of the saved model.
        features: (N, D) float16 of unit length: the training videos, as the classifier sees them.
        clip_paths, labels: (N,) of these videos.
        usual: (N,) float32, ascending: each one's distance to the nearest of other groups.
        median_seconds, longest_seconds: lengths of the training videos.
        temperature: by which the logarithms of probabilities are divided (Guo et al. 2017); 1 where none was fitted.
    """

    of: str
    features: np.ndarray
    clip_paths: np.ndarray
    labels: np.ndarray
    usual: np.ndarray
    median_seconds: float
    longest_seconds: float
    temperature: float

    def unfamiliarity(self, features: np.ndarray) -> np.ndarray:
        """How far (W, D) features are from the training videos, (W,): above 1 they are farther than UNUSUAL of these
        are from those of other groups."""
        return nearest_distance(unit(features), self.features) / np.quantile(self.usual, UNUSUAL)

    def nearest(self, features: np.ndarray, count: int = 3) -> list[dict]:
        """The training videos most like (D,) features: clip_path, label and cosine `similarity`, the most alike first.
        """
        likeness = self.features.astype(np.float32) @ unit(features)
        return [{"clip_path": str(self.clip_paths[i]), "label": str(self.labels[i]), "similarity": float(likeness[i])}
                for i in np.argsort(-likeness)[:count]]


def unit(features: np.ndarray) -> np.ndarray:
    """(..., D) to unit length, float32."""
    features = np.asarray(features, dtype=np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def nearest_distance(features: np.ndarray, known: np.ndarray, apart: np.ndarray | None = None) -> np.ndarray:
    """(W,) mean distance, one less the cosine, of (W, D) unit features to the NEIGHBOURS nearest of (N, D) `known` ones
    (Sun et al. 2022). `apart` is (W, N) bool: which of them count; None takes all."""
    far = 1 - features @ known.astype(np.float32).T
    if apart is not None:
        far = np.where(apart, far, np.inf)
    near = np.sort(far, axis=1)[:, :NEIGHBOURS]
    counted = np.isfinite(near)
    return np.where(counted, near, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)


def make_reference(of: str, features: np.ndarray, clip_paths: list[str], labels: list[str], groups: list[str],
                   seconds: np.ndarray, temperature: float = 1.0) -> Reference:
    """A reference, of (N, D) features and (N,) facts of the training videos."""
    features, groups = unit(features).astype(np.float16), np.array(groups)
    others = groups[:, None] != groups if len(set(groups)) > 1 else ~np.eye(len(groups), dtype=bool)
    usual = nearest_distance(features.astype(np.float32), features, others)
    return Reference(of, features, np.array(clip_paths), np.array(labels), np.sort(usual).clip(1e-6),
                     float(np.median(seconds)), float(np.max(seconds)), temperature)


def reference_file(files: ModelFiles) -> Path:
    """Where a model's reference is kept."""
    return files.checkpoint.with_name(f"reference_{files.model_name}.npz")


def write_reference(files: ModelFiles, reference: Reference) -> None:
    """Writes it, whole or not at all."""
    with atomic_path(reference_file(files)) as temporary:
        np.savez(temporary, **{field.name: getattr(reference, field.name) for field in fields(Reference)})


def read_reference(files: ModelFiles) -> Reference | None:
    """The reference of this very saved model; None where there is none, or only that of another one."""
    try:
        with np.load(reference_file(files)) as kept:
            values = {name: kept[name] for name in kept.files}
    except (OSError, ValueError, EOFError):
        return None
    plain = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    known = {field.name for field in fields(Reference)}
    return Reference(**plain) if known == plain.keys() and plain["of"] == files.sha256 else None
