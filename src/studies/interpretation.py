"""How trained CNNs behave: whether they use motion, where they look, what they hold alike, where they err.

Everything here runs a trained model on a data set's own clips, one centre view per clip unless said otherwise.
"""

from __future__ import annotations

import html
import sys
from base64 import b64encode
from collections.abc import Sequence
from functools import cache, partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from scipy.ndimage import binary_fill_holes
from sklearn.manifold import TSNE
from sklearn.metrics.pairwise import cosine_similarity
from torch.utils.data import Dataset
from tqdm import tqdm

import plots
from data_loader import VideoDataset2D, make_loader
from deployed import Deployed, as_batch
from experiment import Experiment, pooled_features
from files import ArrayStore, file_hash, read_json, write_json
from metrics import confidence, interval_table, uncertain
from sampling import segment_indices
from studies.filmstrips import animation, verdict
from studies.gradcam import class_maps
from transforms import apply_transform, denormalize, framed, normalized
from videos.decoding import VideoInfo, read_frames, read_timed_frames
from videos.splits import clip_file

VARIANTS = ("as it is", "one frozen frame", "frames shuffled", "frames reversed", "background only")
BACKGROUND_FRAMES = 25  # of a clip, evenly spread, from which its background is taken
BACKGROUND_LINES = 240  # height in pixels at which it is looked for
SHAKE = 5  # pixels at that height by which the camera may shake
MOVED = 25  # grey levels by which a pixel differs from its surroundings in the median when it moved
ROUNDING = 1e-4  # probabilities that differ by less are the same
UNTELLING = 0.6  # painting over more of the picture than this leaves nothing to conclude from
WRONG_SHOWN = 16  # misclassified clips in a gallery, at most
GALLERY_FRAMES = 12  # of a moving picture in it
CLASSES_DRAWN = 5  # over time: those that reach the highest probabilities, and the true one


# ---------------------------------------------------------------- does it use motion?

def motion_probe(experiment: Experiment) -> pd.DataFrame:
    """The test set with the motion taken out of its clips in several ways; kept for this very model.

    The variants show the model the same number of pictures: the centre view as it is; its middle frame throughout (so
    that no difference is left); its frames, or differences, in an order drawn once per clip; time reversed; and,
    throughout, what `still_background` leaves of the clip, which is an approximation.

    One row per variant of `VARIANTS`: variant, clips, accuracy, low and high (its Wilson interval), chance (one in the
    number of classes), probability (mean, of the true class), changed (answers other than those of the first row),
    shift (the largest difference of any probability of any clip from the first row) and painted (mean share of the
    picture that was painted over).
    """
    files = experiment.files
    path = files.root / "behaviour" / f"{files.model_name}.json"
    kept = read_json(path)
    if kept.get("of") != files.identity:
        kept = {"of": files.identity, "motion": _probe(experiment).to_dict("records")}
        write_json(path, kept)
    return pd.DataFrame(kept["motion"])


@torch.inference_mode()
def _probe(experiment: Experiment) -> pd.DataFrame:
    dataset, deployed = experiment.dataset("test"), experiment.deployed()
    loader = make_loader(Pictures(dataset), batch_size=1, collate=itemgetter(0))
    progress = tqdm(loader, f"{experiment.files.model_name} motion", unit="clip", file=sys.stdout, ncols=90)
    probabilities, painted = [], []
    for (pictures, share), clip_path in zip(progress, dataset.data["clip_path"], strict=True):
        orders = variant_orders(dataset.sampler.stills, dataset.sampler.pairs, clip_path)
        clips = [normalized(pictures[order], dataset.transform).to(experiment.device) for order in orders]
        probabilities.append(_logits(deployed, clips).cpu().double().softmax(dim=1).numpy())  # (variants, K)
        painted.append(share)
    labels = dataset.data["label"].map(dataset.class_map).to_numpy()
    return _probe_table(np.stack(probabilities, axis=1), labels, float(np.mean(painted)))


def _logits(deployed: Deployed, clips: list[torch.Tensor]) -> torch.Tensor:
    """(N, K): of N clips (T, C, H, W) of one length that have frames in common; where the trunk sees each frame by
    itself, each distinct one passes it once."""
    frozen = deployed.frozen
    if not (frozen.model.frame_wise and frozen.model.cut):
        return torch.cat([deployed(as_batch(frozen.model, clip)) for clip in clips])
    frames, seen = torch.cat(clips), {}
    which = [seen.setdefault(frame.numpy().tobytes(), len(seen)) for frame in frames.cpu()]
    distinct = frames[[which.index(number) for number in range(len(seen))]]
    activations = frozen.run(as_batch(frozen.model, distinct))[0]  # (distinct, ...)
    return deployed.head(activations[which].unflatten(0, (len(clips), -1)).float())


def _probe_table(probabilities: np.ndarray, labels: np.ndarray, painted: float) -> pd.DataFrame:
    """The rows of `motion_probe`, from (variants, N, K) probabilities and (N,) labels."""
    answers = probabilities.argmax(axis=2)
    tables = [pd.DataFrame({"label": labels, "predicted": its}) for its in answers]
    scores = interval_table(dict(zip(VARIANTS, tables, strict=True))).rename_axis("variant").reset_index()
    scores.insert(1, "clips", len(labels))
    return scores.assign(chance=1 / probabilities.shape[2],
                         probability=probabilities[:, np.arange(len(labels)), labels].mean(axis=1),
                         changed=(answers != answers[0]).sum(axis=1),
                         shift=np.abs(probabilities - probabilities[0]).max(axis=(1, 2)),
                         painted=np.where(scores["variant"] == "background only", painted, 0.0))


class Pictures(Dataset):
    """What the variants of a clip are made of: (F + 1, C, H, W) pictures, and the share that is painted over.

    Picture F is the clip's background; those before it are the frames of its centre view in `dataset`.
    """

    def __init__(self, dataset: VideoDataset2D):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, float]:
        sampler = self.dataset.sampler
        frames, _ = read_frames(self.dataset.file(index), lambda info: np.concatenate(
            [sampler(info), segment_indices(info.frames, BACKGROUND_FRAMES)]))
        view, spread = np.split(frames, [-BACKGROUND_FRAMES])
        background, moved = still_background(spread)
        return framed(np.concatenate([view, background[None]]), self.dataset.transform), float(moved.mean())


def variant_orders(stills: int, pairs: int, clip_path: str) -> np.ndarray:
    """(variants, F) int64: which of a clip's `Pictures` each variant shows; each clip has its own shuffle.

    Pairs of frames, whose difference is seen, are put in another order as pairs, and turned round where time is.
    """
    rng = np.random.default_rng(list(clip_path.encode()))
    frames, first = np.arange(stills), stills + np.arange(pairs)
    second, drawn, order = first + pairs, rng.permutation(stills), rng.permutation(pairs)
    normal = np.concatenate([frames, first, second])
    frozen = np.full_like(normal, frames[stills // 2] if stills else first[pairs // 2])
    shuffled = np.concatenate([frames[drawn], first[order], second[order]])
    turned = np.concatenate([frames[::-1], second[::-1], first[::-1]])
    return np.stack([normal, frozen, shuffled, turned, np.full_like(normal, len(normal))])


def still_background(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median picture of (S, H, W, 3) uint8 frames, spread over a clip, in which what moved is painted over.

    A pixel moved where two frames at least differ from all that the median shows within `SHAKE` pixels, which a shaking
    camera does not bring about (the tolerance to small displacements of Elgammal et al. 2000). Gaps and outlines are
    filled, and the hole is inpainted (Telea 2004). It is an approximation: what stays still of a person stays in the
    picture; where the camera travels, nearly everything is painted over.

    The picture is (H, W, 3) uint8; beside it, (h, w) bool where it is painted over, h at most `BACKGROUND_LINES`.
    """
    height, width = frames.shape[1:3]
    lines = min(height, BACKGROUND_LINES)
    size = (round(width * lines / height), lines)
    small = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    median = np.median(small, axis=0).astype(np.uint8)
    smooth = partial(cv2.GaussianBlur, ksize=(5, 5), sigmaX=0)
    low, high = (change(smooth(median), _disc(2 * SHAKE + 1)) for change in (cv2.erode, cv2.dilate))
    beyond = (cv2.max(cv2.subtract(low, frame), cv2.subtract(frame, high)) for frame in map(smooth, small))
    moved = np.sum([colours.max(axis=2) > MOVED for colours in beyond], axis=0) >= 2
    closed = cv2.morphologyEx(moved.astype(np.uint8), cv2.MORPH_CLOSE, _disc(lines // 12))
    grown = _disc(2 * SHAKE + lines // 40)  # the rim within SHAKE of what moved was not noticed
    moved = cv2.dilate(binary_fill_holes(closed).astype(np.uint8), grown)
    painted = cv2.inpaint(median, moved, 5, cv2.INPAINT_TELEA)
    return cv2.resize(painted, (width, height), interpolation=cv2.INTER_LINEAR), moved.astype(bool)


def _disc(diameter: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter | 1, diameter | 1))


def motion_reading(table: pd.DataFrame, title: str) -> str:
    """What `motion_probe`'s table says of the model `title`: whether it needs motion, or its order, and of the rest."""
    right = (table["accuracy"] * table["clips"]).round().astype(int)
    normal, frozen, shuffled, turned, background = table.assign(right=right).itertuples()
    n, shift = normal.clips, max(shuffled.shift, turned.shift)
    if shuffled.changed or turned.changed:
        order = (f"The {title} uses the order of frames: of its {n} answers {shuffled.changed} change when frames are "
                 f"shuffled and {turned.changed} when they are reversed; {shuffled.right} and {turned.right} are "
                 "right then.")
    elif shift > ROUNDING:
        order = (f"The order of frames hardly matters to the {title}: shuffled or reversed, none of its {n} answers "
                 f"changes, and no probability moves by more than {shift:.2g}.")
    else:
        order = f"The {title} loses nothing when frames are shuffled or reversed: it does not use their order."
    still = {0: "no answer changes", 1: "1 answer changes"}.get(frozen.changed, f"{frozen.changed} answers change")
    doubt = "; so much is painted over that this tells little of the background"
    needs = ("It needs motion: of frames that stand still it knows no more than chance does" if
             frozen.low <= frozen.chance <= frozen.high else "It does not need motion to do better than chance" if
             frozen.low > frozen.chance else "Frames that stand still mislead it")
    return (f"{needs}. {order} As filmed it is right on {normal.right} of {n} test videos, from one frozen frame on "
            f"{frozen.right} ({still}), and with what moves painted over ({background.painted:.0%} of the "
            f"picture) on {background.right}{doubt if background.painted > UNTELLING else ''}.")


# ---------------------------------------------------------------- where does it look?

class GradCam(NamedTuple):
    """What of a clip speaks for the predicted class.

    `maps` are (T, H, W) float32 in [0, 1], 1 being the clip's strongest response; `frames` (T, H, W, 3) uint8, as the
    model sees them; `times` (T,) seconds; `probability` is that of the `predicted` class, from this view in float32.
    """

    maps: np.ndarray
    frames: np.ndarray
    times: np.ndarray
    predicted: str
    probability: float


def grad_cam(experiment: Experiment, clip_path: str, frames: int = 8) -> GradCam:
    """Grad-CAM of the predicted class over time, as `gradcam.class_maps` gives it; the maps are kept in the cache.

    At most `frames` maps are given, evenly spread over those of the model's centre view. Errors as `read_frames`.
    """
    dataset, model = experiment.dataset("test"), experiment.model.eval()
    path = clip_file(experiment.data.root, clip_path)
    pictures, times = read_timed_frames(path, dataset.sampler)
    clip = apply_transform(pictures, dataset.transform)  # (T, C, H, W)
    shown = segment_indices(len(clip), min(frames, len(clip)))

    @cache
    def found() -> tuple[np.ndarray, np.ndarray]:
        return class_maps(model, clip.to(experiment.device))

    store, key = ArrayStore(experiment.cache), (experiment.files.sha256, file_hash(path), frames)
    maps = store.get(store.path("cams", key), lambda: found()[0][shown])
    probabilities = store.get(store.path("cams", (*key, "probabilities")), lambda: found()[1])
    predicted = int(probabilities.argmax())
    return GradCam(maps, denormalize(clip, model.preprocessing)[shown], times[shown],
                   experiment.data.classes[predicted], float(probabilities[predicted]))


# ---------------------------------------------------------------- which clips does it hold alike?

def _labelled_features(experiment: Experiment) -> tuple[pd.DataFrame, np.ndarray]:
    """The clips of all parts, with the column part, and their `pooled_features`."""
    parts = list(experiment.data.splits)
    clips = pd.concat([experiment.data.table(part).assign(part=part) for part in parts], ignore_index=True)
    return clips, np.concatenate([pooled_features(experiment, part) for part in parts])


def trunk_embedding(experiment: Experiment) -> pd.DataFrame:
    """All clips in the plane: t-SNE (van der Maaten and Hinton 2008) of their features before the classifier.

    Distances are cosines; only neighbourhoods mean something, not the axes nor how far clusters lie apart. One row per
    clip of the three parts: x, y, label, part, clip_path.
    """
    clips, features = _labelled_features(experiment)
    few = (len(features) - 1) / 3  # a perplexity above this has no neighbours to reach
    plane = TSNE(perplexity=min(30.0, few), metric="cosine", random_state=0).fit_transform(features)
    return pd.DataFrame(plane, columns=["x", "y"]).join(clips[["label", "part", "clip_path"]])


def nearest_training_clips(experiment: Experiment, clip_paths: Sequence[str], count: int = 3) -> pd.DataFrame:
    """The training clips that the model holds most alike: by the cosine of features before the classifier.

    `clip_paths` may be of any part (a ValueError where one is of none); a training clip is not its own neighbour.
    `count` rows for each, the most alike first: clip_path, rank, neighbour, label (the neighbour's) and similarity.
    """
    clips, features = _labelled_features(experiment)
    place = {path: i for i, path in enumerate(clips["clip_path"])}
    if unknown := [path for path in clip_paths if path not in place]:
        raise ValueError(f"no part of the split has {', '.join(unknown)}: take clip_path from a prediction table")
    tables = []
    for path in clip_paths:
        known = clips.assign(similarity=cosine_similarity(features[[place[path]]], features)[0], clip_path=path,
                             neighbour=clips["clip_path"]).query("part == 'train' and neighbour != clip_path")
        near = known.nlargest(count, "similarity")
        tables.append(near.assign(rank=range(1, len(near) + 1)))
    return pd.concat(tables, ignore_index=True)[["clip_path", "rank", "neighbour", "label", "similarity"]]


# ---------------------------------------------------------------- where does it err?

def hardest_clips(tables: Sequence[pd.DataFrame], count: int = 3) -> list[str]:
    """The clip_path of `count` clips, each once: the first of `metrics.uncertain` of each table, in turn."""
    ranked = pd.concat([uncertain(table, count)["clip_path"].reset_index(drop=True) for table in tables])
    return ranked.sort_index(kind="stable").drop_duplicates().head(count).tolist()


def probabilities_over_time(experiment: Experiment, clip_path: str, views: int = 8) -> pd.DataFrame:
    """The class probabilities of short views along a clip, as the model is deployed; kept in the cache.

    A view is the recipe's own window, from the clip's start to its end; where the recipe takes frames from all over the
    clip, they are taken from an eighth of it, say, instead. One row per view, indexed by the mean
    time of its frames in seconds; one column per class.
    """
    path, store = clip_file(experiment.data.root, clip_path), ArrayStore(experiment.cache)
    key = experiment.files.sha256, file_hash(path), views
    rows = store.get(store.path("over_time", key), lambda: _over_time(experiment, path, views))
    return pd.DataFrame(rows[:, 1:], pd.Index(rows[:, 0], name="seconds"), experiment.data.classes)


@torch.inference_mode()
def _over_time(experiment: Experiment, path: Path, views: int) -> np.ndarray:
    """(V, 1 + K) float64: seconds and probabilities."""
    dataset, deployed = experiment.dataset("test"), experiment.deployed()
    sampler = dataset.sampler

    def choose(info: VideoInfo) -> np.ndarray:
        if sampler.sampling == "segments":
            ends = np.linspace(0, info.frames, views + 1).astype(int)
            runs = [(start, max(end - start, 1)) for start, end in pairwise(ends)]
            return np.concatenate([np.minimum(start + sampler(info._replace(frames=length)), info.frames - 1)
                                   for start, length in runs])
        return np.concatenate([sampler(info, position) for position in np.linspace(0, 1, views)])

    frames, times = read_timed_frames(path, choose)
    clips = (apply_transform(view, dataset.transform) for view in np.split(frames, views))
    logits = torch.cat([deployed(dataset.layout(clip)[None].to(experiment.device)) for clip in clips])
    return np.column_stack([times.reshape(views, -1).mean(axis=1), logits.cpu().double().softmax(dim=1).numpy()])


def gallery(experiment: Experiment, predictions: pd.DataFrame, count: int = 6) -> str:
    """The clips to look at, moving at their true speed, each with its class probabilities over time: one piece of HTML.

    Of `predictions`, as `evaluation.evaluate` gives them, the misclassified are all shown, up to `WRONG_SHOWN`, the
    most confident first; the least certain of the right ones fill up what is left of `count`. Errors as
    `metrics.confidence` and `read_frames`.
    """
    table = predictions.assign(probability=confidence(predictions)).sort_values("probability")
    correct = table["label"] == table["predicted"]
    wrong, right = table[~correct].iloc[::-1], table[correct]
    chosen = pd.concat([wrong.head(WRONG_SHOWN), right.head(max(count - len(wrong), 0))])
    return f"<div>{''.join(_exhibit(experiment, clip) for clip in chosen.itertuples())}</div>"


def _exhibit(experiment: Experiment, clip) -> str:
    path = clip_file(experiment.data.root, clip.clip_path)
    frames, times = read_timed_frames(path, lambda info: segment_indices(info.frames, min(GALLERY_FRAMES, info.frames)))
    rate = (len(times) - 1) / np.ptp(times) if len(times) > 1 else 1.0
    course = probabilities_over_time(experiment, clip.clip_path)
    course = course.loc[:, course.columns.isin([*course.max().nlargest(CLASSES_DRAWN).index, clip.label])]
    figure, ax = plt.subplots(figsize=(3.6, 2.2))
    plots.probability_lines(course, ax)
    words = ", ".join(f"{name} {column.min():.2f} to {column.max():.2f}" for name, column in course.items())
    return ('<div style="display:inline-block;vertical-align:top;margin-right:1em">'
            f'{animation(frames, verdict(clip), rate)}'
            f'<img alt="class probabilities over time: {html.escape(words)}" style="height:150px;width:auto;'
            f'vertical-align:top" src="data:image/png;base64,{b64encode(plots.png(figure)).decode()}"></div>')
