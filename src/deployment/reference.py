"""What an answer needs of the training: how long its videos were, what they look like to the model, how sure it may be.

It is computed once, from the data set, and kept beside the saved model; an answer then needs no data set.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np

from files import ModelFiles, read_sealed, write_sealed

COMPONENTS = 32  # principal ones that span what is familiar: with 16 to 64 it came out alike (benchmarks/unfamiliar.py)
USUAL = 0.95  # share of training videos that count as familiar when they are held out
FOLDS = 5  # by whole groups, in which they are held out


@dataclass(frozen=True)
class Reference:
    """What is kept of a model's training.

    Attributes:
        of: which saved model, as `files.ModelFiles.identity`.
        features: (N, D) float16 of unit length: the training videos, as the classifier sees them.
        clip_paths, labels: (N,) of these videos.
        centre, axes: (D,) float32, and (C, D) float32 orthonormal: what is familiar lies near this plane.
        limit: distance from it below which USUAL of the training videos lie that had no part in it.
        median_seconds, longest_seconds: lengths of the training videos.
    """

    of: str
    features: np.ndarray
    clip_paths: np.ndarray
    labels: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    limit: float
    median_seconds: float
    longest_seconds: float

    def unfamiliarity(self, features: np.ndarray) -> np.ndarray:
        """How far (W, D) features are from all that training videos are made of, (W,): above 1, farther than USUAL of
        these are from the others."""
        return distance(features, self.centre, self.axes) / self.limit

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


def distance(features: np.ndarray, centre: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(W,) distances of (W, D) features from the plane through `centre` along `axes`: the residual of principal
    components, as in ViM (Wang et al. 2022)."""
    away = np.asarray(features, dtype=np.float32) - centre
    return np.linalg.norm(away - (away @ axes.T) @ axes, axis=1)


def make_reference(of: str, features: np.ndarray, clip_paths: list[str], labels: list[str], groups: list[str],
                   seconds: np.ndarray) -> Reference:
    """A reference, of (N, D) features and (N,) facts of the training videos: two at least, each its own group where all
    have the same one."""
    from sklearn.model_selection import GroupKFold

    groups = groups if len(set(groups)) > 1 else clip_paths
    features, usual = np.asarray(features, dtype=np.float32), np.empty(len(features))
    for known, held_out in GroupKFold(min(FOLDS, len(set(groups)))).split(features, groups=groups):
        usual[held_out] = distance(features[held_out], *_plane(features[known]))
    return Reference(of, unit(features).astype(np.float16), np.array(clip_paths), np.array(labels), *_plane(features),
                     max(float(np.quantile(usual, USUAL)), 1e-6), float(np.median(seconds)), float(np.max(seconds)))


def _plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and axes: at most COMPONENTS, and half as many as there are videos."""
    from sklearn.decomposition import PCA

    found = PCA(min(COMPONENTS, len(features) // 2, features.shape[1]), random_state=0).fit(features)
    return found.mean_.astype(np.float32), found.components_.astype(np.float32)


def reference_file(files: ModelFiles):
    """The path at which a model's reference is kept."""
    return files.checkpoint.with_name(f"reference_{files.model_name}.npz")


def write_reference(files: ModelFiles, reference: Reference) -> None:
    """Writes it, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **{field.name: getattr(reference, field.name) for field in fields(Reference)})
    write_sealed(reference_file(files), buffer.getbuffer())


def read_reference(files: ModelFiles) -> Reference | None:
    """The reference of this very saved model; None where there is none, or only that of another one."""
    content = read_sealed(reference_file(files))
    if content is None:
        return None
    with np.load(io.BytesIO(content)) as kept:
        values = {name: kept[name] for name in kept.files}
    plain = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    known = {field.name for field in fields(Reference)}
    return Reference(**plain) if known == plain.keys() and plain["of"] == files.identity else None
