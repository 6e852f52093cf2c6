"""Answers as pieces of a web page: what trained models say of a video, and what they say it by."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import mistune
import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

import plots
from classical.classifiers import MODELS
from deployment.answer import Answer, Model, answer
from deployment.prepared import FUSED, FUSION, load_model
from deployment.trained import CNNS, Judge, saved_files
from files import read_json
from studies.gradcam import class_maps
from transforms import framed, normalized
from videos.decoding import DEFAULT_RATE, VideoError, VideoInfo, read_frames, read_track
from videos.splits import clip_file

TEMPLATES = Path(__file__).with_name("page")
BARS, SEGMENTS = 5, 100  # classes, and runs of time, that are told of a video, at most
FRAMES = 8  # of a Grad-CAM strip
SIDE = 240  # pixels of a small picture's longer side
HEAT = 0.75  # share of a heat map's colour where a frame speaks most for the class

Tell = Callable[[str, float | None], None]  # what is being done, and the share of it that is done


def clock(seconds: float, digits: int = 1) -> str:
    """Seconds as people read them: 3.2 s, 1:03.2."""
    minutes, rest = divmod(round(seconds, digits), 60)
    return f"{minutes:.0f}:{rest:0{digits + 3}.{digits}f}" if minutes else f"{rest:.{digits}f} s"


PAGES = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                    lstrip_blocks=True)
PAGES.filters |= {"clock": clock, "percent": lambda share: f"{100 * share:.1f}\N{NO-BREAK SPACE}%"}


class Adviser:
    """The trained models of a data set, each of which is loaded when it is first asked. For one thread at a time.

    Attributes:
        titles: name to title of the models that can be asked.
        classes: that they tell apart.
    """

    def __init__(self, dataset: str, name: str, root: Path, results: Path):
        self.dataset, self.name, self.root, self.results = dataset, name, root, results
        self.titles = trained_models(results)
        first = next(iter(self.titles), None)
        self.classes = read_json(saved_files(first, results).sidecar)["classes"] if first else []
        self._loaded: dict[str, Model] = {}
        plots.set_style()

    def load(self, name: str) -> Model:
        """A model; errors as `load_model`."""
        if name not in self._loaded:
            self._loaded[name] = load_model(name, self.dataset, self.results)
        return self._loaded[name]

    def answer(self, name: str, path: Path, called: str, tell: Tell = lambda doing, share: None) -> str:
        """What a model says of a video that its sender calls by some name, as HTML.

        Raises:
            VideoError: as `deployment.answer.answer`.
            Exception: as `load_model`, or what `tell` raises.
        """
        if name not in self._loaded:
            tell("Getting the model ready: when it is first asked, it looks at its training videos once more", None)
        model = self.load(name)
        said = answer(path, model, lambda done, frames: tell("Watching the video", done / frames))
        tell("Drawing what it looked at", None)
        return PAGES.get_template("answer.html.j2").render(
            said=said, called=called, bars=bars(said), familiarity=said.familiarity(), segments=said.segments(),
            listed=SEGMENTS, chart=chart(said), stretch=telling_stretch(said),
            strips=[(judge.title, strip(judge, said)) for judge in model.judges if judge.name in CNNS],
            nearest=[its | {"picture": thumbnail(clip_file(self.root, its["clip_path"]))} for its in said.nearest],
            cards=[its for judge in model.judges if (its := card(judge, self.results))])


def trained_models(results: Path) -> dict[str, str]:
    """Name to title of the models in a data set's results, and of their fusion; CNNs come first."""
    titles = {kind: f"{kind.upper()}-CNN" for kind in CNNS} | {name: spec.title for name, spec in MODELS.items()}
    there = {name: title for name, title in titles.items()
             if (files := saved_files(name, results)).sidecar.is_file() and files.checkpoint.is_file()}
    if there.keys() >= set(FUSED):
        there[FUSION] = "fusion of " + " and ".join(there[name] for name in FUSED)
    return there


# ---------------------------------------------------------------- what it says

def bars(said: Answer) -> list[tuple[str, float, str]]:
    """The most probable classes: name, probability and colour, that of the chart."""
    return [(said.classes[i], float(said.probabilities[i]), colour) for i, colour in _coloured(said)]


def _coloured(said: Answer) -> list[tuple[int, str]]:
    """The numbers of the most probable classes, the first one first, each with a colour of its own."""
    return list(zip(np.argsort(-said.probabilities)[:BARS].tolist(), plots.PALETTE.as_hex(), strict=False))


def chart(said: Answer) -> str:
    """The probabilities over a long video as a picture's URL; nothing for a short one."""
    if not len(said.starts):
        return ""
    drawn = _coloured(said)
    table = pd.DataFrame(said.course, (said.starts + said.ends) / 2, said.classes).iloc[:, [i for i, _ in drawn]]
    figure = Figure(figsize=(4.8, 2.4), layout="constrained")
    ax = figure.subplots()
    plots.probability_lines(table, ax)
    ax.get_legend().remove()  # the bars have these colours
    for text in (*ax.get_xticklabels(), *ax.get_yticklabels(), ax.xaxis.label, ax.yaxis.label):
        text.set_fontsize(10)
    return _url("png", plots.png(figure, 2))


# ---------------------------------------------------------------- what it says it by

def telling_stretch(said: Answer) -> tuple[float, float] | None:
    """Start and end, in seconds, of the window that speaks most for the answer; None where the video is short."""
    if not len(said.starts):
        return None
    best = int(said.course[:, said.probabilities.argmax()].argmax())
    return float(said.starts[best]), float(said.ends[best])


def strip(judge: Judge, said: Answer) -> list[dict]:
    """The frames in which something speaks most for a CNN's answer, one of each part of what it looks at: `time` in
    seconds, `share` of the strongest response, and the `picture`'s URL."""
    pictures, indices, fps = _looked_at(judge, said)
    seen = framed(pictures, judge.transform)
    clip = normalized(seen, judge.transform).to(judge.device)
    maps, _ = class_maps(judge.model, clip, int(said.probabilities.argmax()))
    whole, strength = judge.recipe.framing == "whole", maps.max(axis=(1, 2))
    parts = np.array_split(np.argsort(indices[:len(maps)], kind="stable"), min(FRAMES, len(maps)))
    chosen = [int(part[strength[part].argmax()]) for part in parts]
    return [{"time": indices[i] / fps, "share": float(strength[i]),
             "picture": _jpeg(heated(pictures[i] if whole else seen[i].permute(1, 2, 0).numpy(), maps[i]))}
            for i in chosen]


def _looked_at(judge: Judge, said: Answer) -> tuple[np.ndarray, np.ndarray, float]:
    """The frames (F, H, W, 3) of a judge's view of the video, or of its telling stretch; their (F,) indices, and the
    frames per second."""
    fps, stretch = read_track(said.file).info.fps or DEFAULT_RATE, telling_stretch(said)

    def choose(info: VideoInfo) -> np.ndarray:
        start, end = (0, info.frames) if stretch is None else np.rint(np.multiply(stretch, fps)).astype(int).tolist()
        return np.minimum(judge.view(info, start, end - start), info.frames - 1)

    return *read_frames(said.file, choose), fps


def heated(picture: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A small copy of a frame (H, W, 3) uint8 that glows where a map (h, w) in [0, 1] is high."""
    picture = small(picture)
    response = cv2.resize(response, picture.shape[1::-1])[..., None].clip(0, 1)
    glow = cv2.applyColorMap((255 * response).astype(np.uint8), cv2.COLORMAP_AUTUMN)[..., ::-1]
    return (picture + HEAT * response * (glow.astype(np.float32) - picture)).round().astype(np.uint8)


def small(picture: np.ndarray) -> np.ndarray:
    """A picture whose longer side is SIDE pixels."""
    scale = SIDE / max(picture.shape[:2])
    size = [max(round(side * scale), 1) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


@lru_cache(maxsize=256)
def thumbnail(path: Path) -> str:
    """The middle frame of a video as a picture's URL; nothing where it is not there any more."""
    try:
        frames, _ = read_frames(path, lambda info: [info.frames // 2])
    except VideoError:
        return ""
    return _jpeg(small(frames[0]))


def _jpeg(picture: np.ndarray) -> str:
    return _url("jpeg", cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes())


def _url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


class _Card(mistune.HTMLRenderer):
    """A model card's HTML: its headings below those of the page, what is wide in boxes that the keyboard reaches."""

    def heading(self, text: str, level: int, **attributes) -> str:
        return super().heading(text, min(level + 3, 6), **attributes)

    def table(self, text: str) -> str:
        return f'<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>{text}</table></div>'

    def block_code(self, code: str, info: str | None = None) -> str:
        return f'<pre tabindex="0" role="group" aria-label="Code"><code>{mistune.escape(code)}</code></pre>'


def card(judge: Judge, results: Path) -> tuple[str, str] | None:
    """Title and HTML of a model's card; None where `make report` has not written it."""
    file = results / "model_cards" / f"{judge.files.model_name}.md"
    if not file.is_file():
        return None
    return judge.title, mistune.create_markdown(renderer=_Card(escape=False), plugins=["table"])(
        file.read_text(encoding="utf-8"))
