"""Saved models as they answer about a video; what they are made of lies in the results, no data set is read.

A judge is one trained model. Of a stretch of a video it wants some frames, each as it `prepare`s it when it is decoded,
and gives probabilities and features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from config import DEFAULT_BACKBONE, Recipe
from files import ClassicalFiles, ModelFiles, ResultFiles, file_hash, read_json, read_predictions, shown
from videos.decoding import VideoInfo

CNNS = ("2d", "3d")


class NotTrained(RuntimeError):
    """A model that is not there, or not whole; the message says what to run."""


class Judge(Protocol):
    """One trained model.

    Attributes:
        name, title: as it is asked for, and as it is written.
        classes: in the order of its probabilities.
        files: where its results lie.
    """

    name: str
    title: str
    classes: list[str]
    files: ModelFiles

    def views(self, info: VideoInfo) -> list[np.ndarray]:
        """Indices of the frames of each view of a whole clip, as in the test."""

    def view(self, info: VideoInfo, start: int, frames: int) -> np.ndarray:
        """Indices of the frames of the centre view of a stretch."""

    def prepare(self, picture: np.ndarray) -> object:
        """What is kept of a decoded frame (H, W, 3) until it is judged: less than all of it."""

    def judge(self, views: Sequence[np.ndarray], pictures: dict[int, object], fps: float,
              known: dict[tuple[int, ...], object]) -> tuple[np.ndarray, np.ndarray]:
        """(V, K) probabilities and (V, D) features of views of one video, whose prepared frames are in `pictures`.

        `known` keeps what was computed of single frames, or pairs of them, under their indices, from call to call.
        """


def saved_files(name: str, results: Path) -> ModelFiles:
    """Where a model's results lie: `2d`, `3d` or the name of a classical model."""
    return ResultFiles(results, name, DEFAULT_BACKBONE[name]) if name in CNNS else ClassicalFiles(results, name)


def saved_model(name: str, results: Path) -> tuple[ModelFiles, dict]:
    """A saved model's files, and its sidecar.

    Raises:
        NotTrained: there is none, or its file is not the one that the sidecar describes.
    """
    files = saved_files(name, results)
    saved = read_json(files.sidecar)
    if not saved or not files.checkpoint.is_file():
        there = [its for its in (*CNNS, *_classical(results)) if saved_files(its, results).sidecar.is_file()]
        raise NotTrained(f"no trained model {name!r} in {shown(results)}: "
                         + (f"there are {', '.join(there)}" if there else "train with make run DATASET=..."))
    if file_hash(files.checkpoint) != saved["sha256"]:
        raise NotTrained(f"{shown(files.checkpoint)}: not the file that its sidecar describes (another sha256); move "
                         "both away and train again with make run")
    return files, saved


def _classical(results: Path) -> list[str]:
    found = sorted(ClassicalFiles(results, "x").sidecar.parent.glob("best_*.json"))
    return [path.stem.removeprefix("best_") for path in found]


def saved_recipe(saved: dict) -> Recipe:
    """The recipe of a saved CNN, from its sidecar: with the modality that was chosen."""
    return dataclasses.replace(Recipe(**saved["recipe"]), modality=saved["modality"])


def temperature_of(files: ModelFiles) -> float:
    """By which the logarithms of probabilities are divided (Guo et al. 2017): fitted to the validation predictions of
    this very CNN, and kept; 1 where there are none, and for classical models, whose probabilities are calibrated."""
    validation = getattr(files, "validation", None)
    if validation is None or not files.is_current(validation):
        return 1.0

    def fitted() -> dict[str, float]:
        from metrics import fit_temperature

        return {"temperature": fit_temperature(read_predictions(validation))}

    return files.kept("calibration", fitted)["temperature"]
