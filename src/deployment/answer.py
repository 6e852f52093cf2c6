"""What trained models say of a video, as a whole and over time, in the memory of a few seconds of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from deployment.reference import Reference
from deployment.trained import Judge
from videos.decoding import DEFAULT_RATE, VideoInfo, stream_frames

PARTS = (4, 5, 10, 20)  # of a window, by one of which the next one lies later; they share the frames of the others
HOP = 1.0  # seconds from a window to the next one, at most
AT_ONCE = 8  # windows that are judged together
EPSILON = 1e-12  # probabilities below it count as it


@dataclass(frozen=True)
class Answer:
    """What was said of one file.

    Attributes:
        file: its path.
        model: the title of who said it.
        seconds: its length.
        classes: (K,) names, in the order of probabilities.
        probabilities: (K,) of the whole video, calibrated where a temperature was fitted.
        unfamiliarity: how far it is from the training videos: above 1, farther than nearly all of these when they are
            held out (see `reference.Reference.unfamiliarity`), so that its probabilities mean little.
        nearest: the training videos most like it (see `reference.Reference.nearest`).
        starts, ends: (W,) seconds of the windows over a long video; none over a short one.
        course: (W, K) probabilities of the windows.
        unfamiliar: (W,) their unfamiliarity.
    """

    file: Path
    model: str
    seconds: float
    classes: list[str]
    probabilities: np.ndarray
    unfamiliarity: float
    nearest: list[dict]
    starts: np.ndarray
    ends: np.ndarray
    course: np.ndarray
    unfamiliar: np.ndarray

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.classes[int(self.probabilities.argmax())]

    def familiarity(self) -> str:
        """In words: how far the video is from the training videos."""
        nearest, far = self.nearest[0], self.unfamiliarity
        where = f"the nearest is {nearest['clip_path'].lstrip('/')} ({nearest['label']})"
        if far > 1:
            return (f"unlike the training videos (unfamiliarity {far:.2f}, above 1): the probabilities mean little; "
                    f"{where}")
        return f"like the training videos (unfamiliarity {far:.2f}, not above 1); {where}"

    def over_time(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds at which something changes (S + 1,), and (S, K) probabilities between them: the mean of the windows
        that cover the time; those of the whole where there are no windows."""
        if not len(self.starts):
            return np.array([0.0, self.seconds]), self.probabilities[None]
        edges = np.unique(np.concatenate([self.starts, self.ends]))
        middles = (edges[:-1] + edges[1:]) / 2
        covers = (self.starts <= middles[:, None]) & (middles[:, None] < self.ends)  # (S, W)
        return edges, covers @ self.course / covers.sum(axis=1, keepdims=True)

    def segments(self) -> list[dict]:
        """Runs of time with the same most probable class: start and end in seconds, class, and its mean probability."""
        edges, course = self.over_time()
        best = course.argmax(axis=1)
        cuts = [0, *(np.flatnonzero(np.diff(best)) + 1).tolist(), len(best)]
        return [{"start": float(edges[a]), "end": float(edges[b]), "class": self.classes[best[a]],
                 "probability": float(np.average(course[a:b, best[a]], weights=np.diff(edges[a:b + 1])))}
                for a, b in pairwise(cuts)]

    def to_dict(self) -> dict:
        """The answer as plain types, for JSON."""
        windows = [{"start": float(start), "end": float(end), "unfamiliarity": float(far),
                    "probabilities": dict(zip(self.classes, row.tolist(), strict=True))}
                   for start, end, far, row in zip(self.starts, self.ends, self.unfamiliar, self.course, strict=True)]
        return {"file": str(self.file), "model": self.model, "seconds": self.seconds, "predicted": self.predicted,
                "probabilities": dict(zip(self.classes, self.probabilities.tolist(), strict=True)),
                "unfamiliarity": self.unfamiliarity, "nearest": self.nearest, "segments": self.segments(),
                "windows": windows}


@dataclass
class Model:
    """One judge, or several whose weighted log-probabilities are added.

    Attributes:
        title: as it is written.
        judges, references: in the same order.
        weights: of each judge's log-probabilities; of a single one, one over its temperature.
    """

    title: str
    judges: list[Judge]
    references: list[Reference]
    weights: list[float]

    @property
    def classes(self) -> list[str]:
        """In the order of probabilities."""
        return self.judges[0].classes

    def join(self, probabilities: list[np.ndarray]) -> np.ndarray:
        """(J, ..., K) probabilities of the judges to (..., K) of all of them together."""
        logits = sum(weight * np.log(np.maximum(its, EPSILON))
                     for weight, its in zip(self.weights, probabilities, strict=True))
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return shares / shares.sum(axis=-1, keepdims=True)


@dataclass
class Plan:
    """What is looked at of one video.

    Attributes:
        fps: frames per second.
        seconds: its length.
        whole: whether it is judged as a whole, as in the test: it is no longer than training videos are.
        windows: (W, 2) first frame, and the one behind the last, of each window.
        views: for each judge, the frame indices of its views of the whole, and of each window.
    """

    fps: float
    seconds: float
    whole: bool
    windows: np.ndarray
    views: list[tuple[list[np.ndarray], list[np.ndarray]]] = field(repr=False)

    def wanted(self) -> np.ndarray:
        """Indices of all frames that are looked at, ascending."""
        return np.unique(np.concatenate([view for whole, over in self.views for view in (*whole, *over)]))


def plan(model: Model, info: VideoInfo) -> Plan:
    """What to look at of a video: all of it where it is no longer than training videos are; and windows as long as
    these are in the median, where two of them or more fit into it."""
    fps, reference = info.fps or DEFAULT_RATE, model.references[0]
    seconds = reference.median_seconds
    parts = next((its for its in PARTS if seconds / its <= HOP), PARTS[-1])
    hop = max(round(seconds * fps / parts), 1)
    length = min(hop * parts, info.frames)
    whole = info.frames <= math.ceil(reference.longest_seconds * fps) + 1
    long = info.frames >= 2 * length or not whole
    starts = np.arange(0, info.frames - length + 1, hop) if long else np.empty(0, int)
    if len(starts) and starts[-1] + length < info.frames:
        starts = np.append(starts, info.frames - length)
    views = [(judge.views(info) if whole else [], [judge.view(info, start, length) for start in starts.tolist()])
             for judge in model.judges]
    return Plan(fps, info.frames / fps, whole, np.column_stack([starts, starts + length]), views)


def answer(path: str | Path, model: Model, tell: Callable[[int, int], None] = lambda done, all: None) -> Answer:
    """What a model says of a video.

    Args:
        tell: called with the number of the frame that was decoded, and how many will be.

    Raises:
        VideoError: as `stream_frames`.
    """
    found = _Watch(model)
    for index, picture in stream_frames(path, found.choose, anew=True):
        found.see(index, picture)
        tell(index + 1, found.frames)
    return found.conclude(Path(path))


class _Watch:
    """Frames as they come, judged as soon as the views that want them are complete, and then let go of."""

    def __init__(self, model: Model):
        self.model = model

    def choose(self, info: VideoInfo) -> np.ndarray:
        """Begins; anew, where another count of frames shows."""
        self.plan, self.frames, self.done = plan(self.model, info), info.frames, 0  # windows that are judged
        self.pictures: list[dict[int, object]] = [{} for _ in self.model.judges]
        self.known: list[dict[tuple[int, ...], object]] = [{} for _ in self.model.judges]
        self.course, self.unfamiliar = [np.empty((0, len(self.model.classes)))], [np.empty(0)]  # of windows, in batches
        self.likest = math.inf, np.empty(0)  # the least unfamiliarity of a window, and the first judge's features of it
        self._wanted = [set(np.concatenate([*whole, *over]).tolist()) for whole, over in self.plan.views]
        self._of_whole = [set(np.concatenate(whole).tolist()) if whole else set() for whole, _ in self.plan.views]
        return self.plan.wanted()

    def see(self, index: int, picture: np.ndarray) -> None:
        for judge, wanted, pictures in zip(self.model.judges, self._wanted, self.pictures, strict=True):
            if index in wanted:
                pictures[index] = judge.prepare(picture)
        until = self.done + AT_ONCE
        if until <= len(self.plan.windows) and index >= self.plan.windows[until - 1, 1] - 1:
            self._judge(until)

    def _judge(self, until: int) -> None:
        """Judges the windows up to one, and lets go of what the next ones don't need."""
        if until <= self.done:
            return
        next_start = self.plan.windows[until, 0] if until < len(self.plan.windows) else self.frames
        said = []
        for n, judge in enumerate(self.model.judges):
            over = self.plan.views[n][1][self.done:until]
            said.append(judge.judge(over, self.pictures[n], self.plan.fps, self.known[n]))
            self.known[n] = {key: value for key, value in self.known[n].items() if key[0] >= next_start}
            self.pictures[n] = {index: picture for index, picture in self.pictures[n].items()
                                if index >= next_start or index in self._of_whole[n]}
        course, far = self._together(said)
        self.course.append(course)
        self.unfamiliar.append(far)
        if far.min() < self.likest[0]:
            self.likest = far.min(), said[0][1][far.argmin()].copy()
        self.done = until

    def conclude(self, path: Path) -> Answer:
        model, plan = self.model, self.plan
        self._judge(len(plan.windows))
        course, unfamiliar = np.concatenate(self.course), np.concatenate(self.unfamiliar)
        if plan.whole:
            views = [judge.judge(whole, pictures, plan.fps, {}) for judge, (whole, _), pictures
                     in zip(model.judges, plan.views, self.pictures, strict=True)]
            clip = [(probabilities.mean(axis=0)[None], features[[len(features) // 2]])
                    for probabilities, features in views]
            (overall,), (far,), (seen,) = *self._together(clip), clip[0][1]
        else:
            overall, far, seen = course.mean(axis=0), np.median(unfamiliar), self.likest[1]
        starts, ends = (plan.windows / plan.fps).T
        return Answer(path, model.title, plan.seconds, model.classes, overall, float(far),
                      model.references[0].nearest(seen), starts, ends, course, unfamiliar)

    def _together(self, said: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Of all judges' (W, K) probabilities and (W, D) features: (W, K) probabilities, and (W,) unfamiliarity."""
        far = [reference.unfamiliarity(features)
               for reference, (_, features) in zip(self.model.references, said, strict=True)]
        return self.model.join([probabilities for probabilities, _ in said]), np.mean(far, axis=0)
