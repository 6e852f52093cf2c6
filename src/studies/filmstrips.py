"""Clips as pictures: strips of frames, contact sheets, optical flow, and animations."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from classical.descriptors import optical_flow, read_pairs, small_frames
from plots import clip_strips, drawn, flow_colours
from sampling import segment_indices, time_indices
from videos.decoding import read_frames, read_timed_frames
from videos.splits import clip_file

CLASSES_SHOWN = 12  # of more than these


def first_of_each_class(table: pd.DataFrame) -> pd.DataFrame:
    """The first clip of each class, in alphabetical order, of at most CLASSES_SHOWN."""
    return table.groupby("label", sort=True).first().reset_index().head(CLASSES_SHOWN)


def sample_strips(table: pd.DataFrame, root: str | Path, count: int = 8) -> Figure:
    """The first clip of each class as a strip of frames."""
    first = first_of_each_class(table)
    return _strips(first["clip_path"], first["label"] + "   " + first["clip_path"], root, count)


def prediction_strips(table: pd.DataFrame, root: str | Path, count: int = 8) -> Figure:
    """A strip of `count` frames for each row with clip_path, label, predicted and probability, and its `verdict`."""
    titles = [verdict(clip, partial(drawn, longest=40)) for clip in table.itertuples()]
    return _strips(table["clip_path"], titles, root, count)


def verdict(clip, written: Callable[[str], str] = str) -> str:
    """What is said of a predicted clip: its path, true and predicted class, probability, correct or WRONG.

    `written` takes each name to how it is written.
    """
    path, label, predicted = map(written, (clip.clip_path, clip.label, clip.predicted))
    return (f"{path}: true {label}, predicted {predicted} with probability {clip.probability:.2f}: "
            f"{'correct' if clip.label == clip.predicted else 'WRONG'}")


def _strips(clip_paths: Iterable[str], titles: Iterable[str], root: str | Path, count: int) -> Figure:
    spread = (read_timed_frames(clip_file(root, path), lambda info: segment_indices(info.frames, count))
              for path in clip_paths)
    return clip_strips((frames, title, times) for (frames, times), title in zip(spread, titles, strict=True))


def contact_sheet(table: pd.DataFrame, root: str | Path, label: str, columns: int = 8, rows: int = 2) -> Figure:
    """The middle frame of clips of the class `label`, each of another group as long as there are groups."""
    clips = table[table["label"] == label]
    clips = clips.assign(turn=clips.groupby("group").cumcount()).sort_values(["turn", "group"]).head(columns * rows)
    rows = -(-len(clips) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.42 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, clip in zip(axes.flat, clips.itertuples(), strict=False):
        frames, _ = read_frames(clip_file(root, clip.clip_path), lambda info: [info.frames // 2])
        ax.imshow(frames[0])
        ax.set_title(drawn(clip.group, 22), fontsize=8, pad=2, fontweight="normal")
    words = f"{drawn(label)}: {len(clips)} of {(table['label'] == label).sum()} clips, named by their group"
    figure.suptitle(words, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def flow_strips(table: pd.DataFrame, root: str | Path, count: int = 6) -> Figure:
    """`count` frames of each class's first clip above their optical flow: direction as hue, speed as brightness."""
    rows = []
    for clip in first_of_each_class(table).itertuples():
        frames, seconds = read_pairs(clip_file(root, clip.clip_path))
        flow = optical_flow(small_frames(frames)[1], seconds)
        chosen = np.linspace(0, len(flow) - 1, count).astype(int)
        fastest = max(np.quantile(np.hypot(flow[:, 0], flow[:, 1]), 0.998), 0.01)
        title = f"optical flow, less the camera's; brightest at {fastest:.2f} frame heights per second"
        rows += [(frames[::2][chosen], drawn(f"{clip.label}   {clip.clip_path}", 110)),
                 (flow_colours(flow[chosen], fastest), title)]
    return clip_strips(rows)


def animation(frames: np.ndarray, caption: str, fps: float = 8.0, height: int = 150) -> str:
    """Frames, (T, H, W, 3) uint8, as an endless WebP, a quarter of a GIF in size, in an HTML figure of its own.

    The caption stands below it, as it is, and is its text for those who can't see it; `height` is in pixels. By their
    classes, MathJax 2 and 3 leave the figure alone, so that dollar signs of names begin no formula.
    """
    width = round(height * frames.shape[2] / frames.shape[1])
    first, *others = (Image.fromarray(frame).resize((width, height)) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=60)
    data, words = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption, quote=True)
    style = (f"display:inline-block;vertical-align:top;width:{width}px;margin:0 1em 1em 0;font-size:.85em;"
             "overflow-wrap:anywhere")
    return (f'<figure class="tex2jax_ignore mathjax_ignore" style="{style}">'
            f'<img alt="animation: {words}" width="{width}" height="{height}" src="data:image/webp;base64,{data}">'
            f'<figcaption>{words}</figcaption></figure>')


def animated_samples(table: pd.DataFrame, root: str | Path, seconds: float = 2.5, fps: float = 8.0) -> str:
    """The middle of the first clip of each class, moving at its true speed, as one piece of HTML."""
    figures = []
    for clip in first_of_each_class(table).itertuples():
        frames, _ = read_frames(clip_file(root, clip.clip_path),
                                lambda info: time_indices(info.frames, info.fps, round(seconds * fps), fps))
        figures.append(animation(frames, f"{clip.label}: {clip.clip_path}", fps))
    return f"<div>{''.join(figures)}</div>"
