"""Classical descriptors of a clip, computed once and kept: what its frames look like, and how they move.

All are histograms of fixed size from a fixed number of frames, each family of unit length, so that neither the length
nor the frame rate nor the size of a clip shows in them. Motion is measured between frames a fixed time apart that lie
evenly over the clip.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import skimage
from skimage.feature import fisher_vector, hog, learn_gmm, local_binary_pattern
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from tqdm import tqdm

from cluster import asked_cluster, failures, shared_out
from config import CACHE
from files import ArrayStore, file_hash
from machine import cores, opencv_without_threads
from sampling import segment_indices
from videos.decoding import DEFAULT_RATE, VideoError, VideoInfo, read_timed_frames
from videos.splits import clip_file

VERSION = 1  # raise it where the same settings give other numbers
WIDTH, HEIGHT = 160, 120  # every frame is brought to this size, in pixels
FLOW_WIDTH, FLOW_HEIGHT = 80, 60  # and its flow to this: DIS computes no finer
PAIRS = 24  # pairs of frames whose optical flow is measured
SECONDS = 0.08  # between the frames of a pair: 2 frames at 25 and at 30 per second
STILLS = 4  # frames whose appearance is described
STILL_SPEED = 0.04  # slower is "no motion", in frame heights per second (Wang et al.: 0.4 pixels per frame)
ORIENTATIONS = 8
WINDOWS, ROWS, COLUMNS = 6, 12, 16  # space-time cells of local motion: 4 pairs, 5x5 flow vectors
CHANNELS = 3 * ORIENTATIONS + 1  # HOF with its bin for no motion, MBH of horizontal and vertical flow
CELLS = (WINDOWS, ROWS, COLUMNS, CHANNELS)
GRID = (3, 3, 4)  # thirds of the clip, rows and columns of the pooled motion histograms
VECTORS = (PAIRS // WINDOWS, FLOW_HEIGHT // ROWS, FLOW_WIDTH // COLUMNS)  # of flow in a cell
# (PAIRS, FLOW_HEIGHT, FLOW_WIDTH): the cell that each vector is in
CELL_OF_VECTOR = np.kron(np.arange(np.prod(CELLS[:3])).reshape(CELLS[:3]), np.ones(VECTORS, np.int64))
LAB_BINS = (6, 7, 7)  # odd for a and b, so that grey lies inside a bin
LBP_BINS = 59  # uniform patterns of 8 neighbours, and one bin for the rest
LOCAL_POOL = 256  # local motion descriptors per clip, the liveliest
FLOOR = 0.1  # a family shorter than about this is faint, and stays short of unit length


class Family(NamedTuple):
    """A family of descriptors: its group (`appearance` or `motion`), its dimension, what it describes."""

    group: str
    dimension: int
    about: str


FAMILIES = {
    "hog": Family("appearance", 5 * 7 * 36, f"shape: histograms of oriented gradients, {STILLS} frames"),
    "colour": Family("appearance", int(np.prod(LAB_BINS)), f"colour: joint CIE Lab histogram of {STILLS} frames"),
    "texture": Family("appearance", 12 * LBP_BINS,
                      f"texture: uniform local binary patterns in a 3x4 grid, {STILLS} frames"),
    "hof": Family("motion", int(np.prod(GRID)) * (ORIENTATIONS + 1),
                  f"motion: histograms of optical flow in a 3x4 grid and thirds of the clip, {PAIRS} pairs"),
    "mbh": Family("motion", int(np.prod(GRID)) * 2 * ORIENTATIONS,
                  f"motion boundaries: the same of the flow's gradients, {PAIRS} pairs"),
}
# What is kept of a clip: its families, in this order, and the local motion in half precision.
RECORD = np.dtype([*((name, np.float32, family.dimension) for name, family in FAMILIES.items()),
                   ("cells", np.float16, CELLS)])


def settings() -> dict:
    """What decides a descriptor's numbers besides the clip, as plain types."""
    return {"version": VERSION, "size": [WIDTH, HEIGHT], "pairs": PAIRS, "seconds": SECONDS, "stills": STILLS,
            "cells": list(CELLS), "dimensions": {name: family.dimension for name, family in FAMILIES.items()},
            "opencv": cv2.__version__, "scikit-image": skimage.__version__}


def descriptor_table() -> pd.DataFrame:
    """One row per family: its name, group, dimensions and what it describes."""
    return pd.DataFrame([(name, *family) for name, family in FAMILIES.items()],
                        columns=["family", "group", "dimensions", "what it describes"])


def pair_indices(info: VideoInfo) -> np.ndarray:
    """(2 * PAIRS,) frame indices: one pair in each of PAIRS equal segments, its frames about SECONDS apart.

    The place within the segment moves by the golden ratio, so that a movement's period can't beat with the segments: a
    quick swing and the same played twice had MBH of cosine 0.59 with the middles of the segments, and 0.92 so.
    """
    apart = min(max(round(SECONDS * (info.fps or DEFAULT_RATE)), 1), info.frames - 1)
    places = (0.5 + np.arange(PAIRS) * (5**0.5 - 1) / 2) % 1
    first = segment_indices(info.frames - apart, PAIRS, places)
    return np.stack([first, first + apart], axis=1).ravel()


def read_pairs(path: str | Path) -> tuple[np.ndarray, float]:
    """What a clip's descriptors need: (2 * PAIRS, H, W, 3) uint8 RGB, each two a pair, and the seconds within a pair.

    Errors as `read_frames`.
    """
    frames, times = read_timed_frames(path, pair_indices)
    return frames, float(times[1] - times[0]) or 1.0  # a clip of one frame has no motion, whatever the time


def small_frames(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W, 3) RGB frames at HEIGHT x WIDTH, in colour and (T, HEIGHT, WIDTH) in grey."""
    small = np.stack([cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames])
    return small, np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in small])


def unit(histogram: np.ndarray) -> np.ndarray:
    """A histogram's square root (Hellinger kernel) at about unit length, flat; what is faint stays so."""
    root = np.sqrt(histogram, dtype=np.float64).ravel()
    return (root / np.sqrt(root @ root + FLOOR**2)).astype(np.float32)


def describe_shape(grey: np.ndarray) -> np.ndarray:
    """HOG (Dalal and Triggs, 2005) of (T, H, W) frames, averaged over them."""
    return np.mean([hog(frame, 9, (20, 20), (2, 2), transform_sqrt=True) for frame in grey], axis=0)


def describe_colour(frames: np.ndarray) -> np.ndarray:
    """Joint CIE Lab histogram of (T, H, W, 3) RGB frames, shares of the pixels; a, b are cut at -64, 64."""
    lab = cv2.cvtColor(frames.reshape(-1, WIDTH, 3), cv2.COLOR_RGB2LAB)  # 8 bits: a and b are 128 at grey
    lab[..., 1:] = lab[..., 1:].clip(64, 191)
    return cv2.calcHist([lab], [0, 1, 2], None, list(LAB_BINS), [0, 256, 64, 192, 64, 192]) / lab[..., 0].size


def describe_texture(grey: np.ndarray) -> np.ndarray:
    """Uniform local binary patterns (Ojala et al., 2002) of (T, H, W) frames: shares of a region's pixels."""
    codes = np.stack([local_binary_pattern(frame, 8, 1, "nri_uniform") for frame in grey]).astype(np.int64)
    rows, columns = np.arange(HEIGHT) * 3 // HEIGHT, np.arange(WIDTH) * 4 // WIDTH
    region = rows[:, None] * 4 + columns
    counts = np.bincount((region * LBP_BINS + codes).ravel(), minlength=12 * LBP_BINS).reshape(12, LBP_BINS)
    return counts / counts.sum(axis=1, keepdims=True)


def optical_flow(grey: np.ndarray, seconds: float) -> np.ndarray:
    """Dense optical flow (DIS, Kroeger et al., 2016) of (2 * P, H, W) uint8 frames, each two a pair, less the camera's.

    It is (P, 2, FLOW_HEIGHT, FLOW_WIDTH) float32, horizontal and vertical, in frame heights per second; the median of a
    pair's flow is taken for the camera's. `seconds` lie between the frames of a pair.
    """
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    full = [dis.calc(first, second, None) for first, second in zip(grey[::2], grey[1::2], strict=True)]
    flow = np.stack([cv2.resize(f, (FLOW_WIDTH, FLOW_HEIGHT), interpolation=cv2.INTER_AREA) for f in full])
    flow = flow.transpose(0, 3, 1, 2) - np.median(flow, axis=(1, 2))[..., None, None]
    return np.ascontiguousarray(flow * np.float32(1 / HEIGHT / seconds))


def oriented_cells(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Histograms of directions, weighted by length, of vectors (x, y), each (PAIRS, FLOW_HEIGHT, FLOW_WIDTH) float32.

    They are (WINDOWS, ROWS, COLUMNS, ORIENTATIONS): lengths averaged over the cell, each shared between the two nearest
    directions.
    """
    length, angle = cv2.cartToPolar(x.reshape(-1, FLOW_WIDTH), y.reshape(-1, FLOW_WIDTH))
    place = angle.ravel() * np.float32(ORIENTATIONS / (2 * np.pi))
    below = place.astype(np.int64)
    upper = length.ravel() * (place - below)
    cell = ORIENTATIONS * CELL_OF_VECTOR.ravel()
    bins = int(np.prod(CELLS[:3])) * ORIENTATIONS
    counts = (np.bincount(cell + below % ORIENTATIONS, length.ravel() - upper, bins)
              + np.bincount(cell + (below + 1) % ORIENTATIONS, upper, bins))
    return (counts / np.prod(VECTORS)).reshape(*CELLS[:3], ORIENTATIONS)


def motion_cells(flow: np.ndarray) -> np.ndarray:
    """HOF (Laptev et al., 2008) and motion boundary histograms (Dalal et al., 2006) of what `optical_flow` gives.

    CELLS float32; the channels are HOF's directions, the share without motion, then MBH's directions of the horizontal
    and the vertical flow. MBH is of the flow's gradient.
    """
    moving = np.hypot(flow[:, 0], flow[:, 1]) >= STILL_SPEED
    hof = oriented_cells(flow[:, 0] * moving, flow[:, 1] * moving)
    still = np.bincount(CELL_OF_VECTOR[~moving], minlength=int(np.prod(CELLS[:3]))) / np.prod(VECTORS)
    boundaries = [oriented_cells(*np.gradient(flow[:, axis], axis=(2, 1))) for axis in (0, 1)]
    return np.concatenate([hof, still.reshape(*CELLS[:3], 1), *boundaries], axis=-1).astype(np.float32)


def pool_cells(cells: np.ndarray) -> np.ndarray:
    """CELLS averaged over GRID, 2x4x4 of them each: (3, 3, 4, CHANNELS)."""
    return cells.reshape(3, 2, 3, 4, 4, 4, CHANNELS).mean(axis=(1, 3, 5))


def describe_pairs(frames: np.ndarray, seconds: float) -> np.ndarray:
    """A RECORD, without dimensions, of what `read_pairs` gives: (D,) float32 of a family, CELLS float16 of `cells`."""
    frames, grey = small_frames(frames)
    stills = slice(0, None, len(frames) // STILLS)
    cells = motion_cells(optical_flow(grey, seconds))
    hof, mbh = np.split(pool_cells(cells), [ORIENTATIONS + 1], axis=-1)
    families = (describe_shape(grey[stills]), describe_colour(frames[stills]), describe_texture(grey[stills]), hof, mbh)
    return np.array((*map(unit, families), cells), RECORD)


def clip_descriptors(table: pd.DataFrame, root: str | Path, cache: Path = CACHE,
                     names: Iterable[str] = FAMILIES) -> dict[str, np.ndarray]:
    """The descriptors of a table's clips, `clip_path` below the folder `root`; what was computed before is read back.

    Kept files, one per clip, are named by the clip's content and the settings, and stay where a broken clip ends the
    work with a VideoError. `names` are of families, or `cells` for the local motion that `FisherVectors` encodes. Each
    has (N, ...) float32 in the table's order: (N, D) of a family.
    """
    names, store = list(names), ArrayStore(cache)
    work = _Description(store, [clip_file(root, path) for path in table["clip_path"]])
    store.fetch(work.paths)
    rows, cluster = range(len(table)), asked_cluster()
    if cluster:
        missing = [row for row in rows if not store.has(work.paths[row])]
        done = shared_out(work, missing, cluster, errors=VideoError)
        done = tqdm(done, "descriptors", len(missing), unit="clip", file=sys.stdout, ncols=90)
        if unread := failures(done, [work.clips[row] for row in missing]):
            raise VideoError("\n".join(unread))

    def wanted(row: int) -> list[np.ndarray]:
        record = work.record(row)
        return [record[name].astype(np.float32) for name in names]

    with opencv_without_threads(), ThreadPoolExecutor(cores()) as pool:
        found = list(tqdm(pool.map(wanted, rows), "descriptors", len(rows), unit="clip", file=sys.stdout, ncols=90,
                          delay=1))
    if store.written or cluster:
        store.trim()
    return {name: np.stack(column) for name, column in zip(names, zip(*found, strict=True), strict=True)}


class _Description:
    """What describes clips that are not described yet, here or in another process, and keeps it."""

    def __init__(self, store: ArrayStore, clips: list[Path]):
        self.store, self.clips = store, clips
        self.paths = [store.path("descriptors", (settings(), file_hash(clip))) for clip in clips]
        store.in_use = set(self.paths)

    def record(self, row: int) -> np.ndarray:
        """A clip's RECORD; errors as `read_pairs`."""
        return self.store.get(self.paths[row], lambda: describe_pairs(*read_pairs(self.clips[row])))

    def __call__(self, row: int) -> None:
        """Keeps a clip's RECORD."""
        self.record(row)


class FisherVectors(TransformerMixin, BaseEstimator):
    """Improved Fisher vectors (Perronnin et al., 2010) of local motion, learnt from `fit`'s clips alone.

    A local descriptor is the HOF and MBH of 2x2 neighbouring cells in one window of the clip, square-rooted and at unit
    length per channel group, brought to `components` whitened principal components, with its place in the frame and
    the clip beside them (Sanchez et al., 2012). Only a clip's LOCAL_POOL liveliest count.

    The mixture has `modes` Gaussians; it and the components are learnt from `per_clip` local descriptors of each clip.
    """

    def __init__(self, modes: int = 16, components: int = 24, per_clip: int = 64, random_state: int = 0):
        self.modes, self.components, self.per_clip, self.random_state = modes, components, per_clip, random_state

    def fit(self, X: np.ndarray, y=None) -> FisherVectors:
        """Learns components and mixture from (N, prod(CELLS)) local motion, a clip's `cells` per row."""
        rng = np.random.default_rng(self.random_state)
        sample = np.concatenate([local_descriptors(row)[rng.permutation(LOCAL_POOL)[:self.per_clip]] for row in X])
        self.pca_ = PCA(self.components, whiten=True, random_state=self.random_state).fit(sample[:, 3:])
        self.gmm_ = learn_gmm(self._project(sample), n_modes=self.modes, gm_args={
            "covariance_type": "diag", "random_state": self.random_state, "reg_covar": 1e-3, "max_iter": 500})
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """(N, prod(CELLS)) to (N, modes * (2 * components + 7)) Fisher vectors of unit length."""
        projected = (self._project(local_descriptors(row)) for row in X)
        return np.stack([fisher_vector(local, self.gmm_, improved=True) for local in projected])

    def _project(self, local: np.ndarray) -> np.ndarray:
        return np.hstack([self.pca_.transform(local[:, 3:]), local[:, :3]])


def local_descriptors(cells: np.ndarray) -> np.ndarray:
    """The liveliest local motion descriptors of a clip's CELLS values, of any shape.

    (LOCAL_POOL, 3 + 4 * CHANNELS): time, row and column, each from -1 to 1, then HOF and MBH of the 2x2 cells.
    """
    cells = cells.reshape(CELLS)
    blocks = np.stack([cells[:, r:ROWS - 1 + r, c:COLUMNS - 1 + c] for r in (0, 1) for c in (0, 1)], axis=3)
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in blocks.shape[:3]), indexing="ij"), axis=-1)
    blocks, place = blocks.reshape(-1, 4, CHANNELS), place.reshape(-1, 3)  # (n, 4, CHANNELS), (n, 3)
    liveliness = np.delete(blocks, ORIENTATIONS, axis=2).sum(axis=(1, 2))
    chosen = np.argsort(-liveliness, kind="stable")[:LOCAL_POOL]
    groups = np.split(np.sqrt(blocks[chosen]), (ORIENTATIONS + 1, 2 * ORIENTATIONS + 1), axis=2)
    groups = [group.reshape(LOCAL_POOL, -1) for group in groups]
    lengths = [np.sqrt((group**2).sum(axis=1, keepdims=True) + FLOOR**2) for group in groups]
    return np.hstack([place[chosen], *(group / length for group, length in zip(groups, lengths, strict=True))])
