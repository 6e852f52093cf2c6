"""A fitted classical model as it answers about a stretch of a video."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV

from classical import descriptors
from classical.classifiers import MODELS, load_pipeline
from deployment.trained import saved_model
from videos.decoding import VideoInfo


class Classical:
    """A `trained.Judge` that sees descriptors; errors as `prepared.load_judge`."""

    def __init__(self, name: str, results: Path):
        self.files, saved = saved_model(name, results)
        self.name, self.title, self.classes = name, MODELS[name].title, saved["classes"]
        self.inputs, self.pipeline = MODELS[name].inputs, load_pipeline(self.files.checkpoint, saved["sha256"])

    def views(self, info: VideoInfo) -> list[np.ndarray]:
        return [descriptors.pair_indices(info)]

    def view(self, info: VideoInfo, start: int, frames: int) -> np.ndarray:
        return start + descriptors.pair_indices(info._replace(frames=frames))

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, (descriptors.WIDTH, descriptors.HEIGHT), interpolation=cv2.INTER_AREA)

    def judge(self, views, pictures, fps, known):
        described = (descriptors.describe_pairs(np.stack([pictures[i] for i in view.tolist()]),
                                                float(view[1] - view[0]) / fps or 1.0) for view in views)
        x = np.stack([np.hstack([its[name].ravel() for name in self.inputs], dtype=np.float32) for its in described])
        return self.pipeline.predict_proba(x), embedded(self.pipeline, x)


def embedded(pipeline: BaseEstimator, x: np.ndarray) -> np.ndarray:
    """(N, D) features that a fitted model's classifier sees of what the model takes."""
    if isinstance(pipeline, CalibratedClassifierCV):
        pipeline = pipeline.calibrated_classifiers_[0].estimator
    return pipeline[:-1].transform(x) if len(pipeline) > 1 else x
