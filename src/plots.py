"""Every figure: small functions that draw data on axes."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from pandas.api.types import is_numeric_dtype
from PIL import Image as Picture
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.preprocessing import minmax_scale

from files import atomic_path
from metrics import MANY, TOP, coverage_curve, reliability

PALETTE = sns.color_palette("colorblind")
FINER = 1.5  # pixels of a drawn figure to one of the screen
# Fonts that are asked, where they are installed, for signs that the usual ones lack, such as Chinese ones and emoji.
# Fonts of coloured pictures, which Matplotlib can't draw, are not among them.
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans SC",
         "Noto Sans JP", "Noto Sans KR", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei",
         "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei", "PingFang SC",
         "Hiragino Sans GB", "Hiragino Sans", "Heiti TC", "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Emoji",
         "Segoe UI Emoji", "Segoe UI Symbol", "Symbola", "Noto Sans Symbols 2", "Apple Symbols")
LONGEST, LONGEST_TITLE = 32, 140  # columns of a name, and of the words above a strip of frames, as they are drawn


def set_style() -> None:
    """The look of all figures, and of tables as notebooks show them.

    Dollar signs, which names of classes and files may hold, begin no formula, neither in figures nor in tables: numbers
    of logarithmic axes are plain text (see `logarithmic`). Signs that the usual font lacks are looked for in `FONTS`.
    """
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    installed = set(font_manager.get_font_names())
    plt.rcParams.update({"figure.dpi": 100, "figure.constrained_layout.use": True,
                         "axes.titlesize": 12, "axes.titleweight": "bold", "text.parse_math": False,
                         "font.family": ["sans-serif", *(name for name in FONTS if name in installed)]})
    pd.set_option("display.html.use_mathjax", False)


# ---------------------------------------------------------------- names

def drawn(name: str, longest: int = LONGEST) -> str:
    """A name, or words with names in them, as figures draw them.

    A sign that no font in use has, and a line break or another control sign, is written as its hexadecimal code, as
    browsers draw it in a box: `[1F3C3] run.mp4`. What is wider than `longest` columns is shortened in the middle, where
    `…` then stands.
    """
    there = _drawable(tuple(plt.rcParams["font.family"]))
    signs = [sign if ord(sign) in there else f"[{ord(sign):04X}]" for sign in name]
    widths = np.array([columns(sign) for sign in signs], dtype=int)
    if widths.sum() <= longest:
        return "".join(signs)
    first = np.searchsorted(widths.cumsum(), longest // 2, side="right")  # signs that fit into the first half
    last = np.searchsorted(widths[::-1].cumsum(), (longest - 1) // 2, side="right")
    return "".join([*signs[:first], "…", *signs[len(signs) - last:]])


def columns(text: str) -> int:
    """The width of a text, roughly, in letters of Latin; those of Chinese, Japanese and Korean count two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


@lru_cache
def _drawable(families: tuple[str, ...]) -> frozenset[int]:
    """Codes of the signs that are in the fonts of these families, both in normal and in bold ones; no control signs."""
    by_weight = []
    for weight in ("normal", "bold"):
        files = [font_manager.findfont(font_manager.FontProperties(family=[its], weight=weight)) for its in families]
        by_weight.append({code for file in files for code in font_manager.get_font(file).get_charmap()})
    return frozenset(code for code in set.intersection(*by_weight) if unicodedata.category(chr(code)) != "Cc")


def legend(ax: Axes, handles: Sequence[Artist], names: Iterable[str], **settings) -> None:
    """A legend of names, also those that begin with an underscore, which Matplotlib would leave out."""
    box = ax.legend(handles, [" "] * len(handles), **settings)
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_text(drawn(name))


class PlainNumbers(LogFormatter):
    """The numbers that Matplotlib writes on a logarithmic axis, without its powers of ten, which are formulas."""

    def __call__(self, x, pos=None):
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axis: Axis) -> None:
    """Writes plain numbers on an axis that has a logarithmic scale."""
    axis.set_major_formatter(PlainNumbers())
    axis.set_minor_formatter(PlainNumbers())


# ---------------------------------------------------------------- figures as files and pictures

def show(figure: Figure, path: str | Path | None = None) -> None:
    """Draws a figure once, shows it, saves the same picture where a path is given, and closes it.

    One with photographs in it is drawn at the screen's resolution and shown as JPEG, which takes a fifth of what a PNG
    takes in a notebook; others are drawn finer, and shown at the size that they were made for.
    """
    photographs = any(image.get_array().ndim == 3 for ax in figure.axes for image in ax.images)
    data = png(figure, 1 if photographs else FINER)
    if path is not None:
        _save(data, path)
    picture = Picture.open(io.BytesIO(data))
    if photographs:
        jpeg = io.BytesIO()
        picture.convert("RGB").save(jpeg, "JPEG", quality=85)
        display(Image(jpeg.getvalue()))
    else:
        display(Image(data, width=round(picture.width / FINER)))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as a PNG file, whole or not at all, and closes it."""
    _save(png(figure, FINER), path)


def _save(data: bytes, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def png(figure: Figure, finer: float = 1) -> bytes:
    """A figure as a PNG file, so many times as fine as the screen's resolution; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=finer * figure.dpi, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


# ---------------------------------------------------------------- data on axes

def from_the_top(ax: Axes) -> None:
    """Horizontal bars in the order of their table from the top down, also where axes share their scale."""
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    ax.grid(False, axis="y")


def curve(history: dict[str, list[float]], what: str, title: str, ax: Axes, best_epoch: int | None = None) -> None:
    """Training and validation curve over epochs, the best one, counted from 1, marked.

    `what` is `loss` or `accuracy`; `history` has `train_losses`, `val_losses`, `train_accs` and `val_accs`.
    """
    key = {"loss": "losses", "accuracy": "accs"}[what]
    for part, name, marker in (("train", "training", "o"), ("val", "validation", "s")):
        values = history[f"{part}_{key}"]
        ax.plot(np.arange(1, len(values) + 1), values, marker=marker, label=f"{name} {what}")
    if best_epoch:
        ax.axvline(best_epoch, color="grey", linestyle=":", label=f"kept: epoch {best_epoch}")
    ax.set(xlabel="epoch", ylabel="cross-entropy loss" if what == "loss" else "accuracy", title=title)
    if what == "accuracy":
        ax.set_ylim(0, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()


def matrix_axes(classes: int, small: tuple[float, float] = (5, 4.2)) -> tuple[Figure, Axes]:
    """A figure for a confusion matrix: small, in inches, or so large that the names of MANY classes can be read."""
    side = max(0.125 * classes + 2, small[1])
    return plt.subplots(figsize=(side + 1, side) if classes > MANY else small)


def confusion_heatmap(matrix: np.ndarray, classes: list[str], title: str, ax: Axes) -> None:
    """Confusion matrix with counts: true class by row, predicted class by column.

    MANY classes are put in the order of a clustering, so that those which are confused lie beside each other; where
    there is no room for their names, they are left out.
    """
    many, names = len(classes) > MANY, [drawn(name) for name in classes]
    if many:
        order = _clustered(matrix)
        matrix, names = matrix[np.ix_(order, order)], [names[its] for its in order]
        if ax.get_window_extent().height / ax.figure.dpi < 0.09 * len(names):
            names = [""] * len(names)
        else:
            title = f"{title}, clustered"
    side_by_side = len(names) <= 4 and sum(map(columns, names)) <= 32
    ConfusionMatrixDisplay(matrix, display_labels=names).plot(
        include_values=not many, cmap="Blues", ax=ax, colorbar=many,
        xticks_rotation=90 if len(names) > 2 * MANY else 0 if side_by_side else 45)
    if len(names) > 2 * MANY:
        ax.tick_params(labelsize=6, length=0)
    elif not side_by_side:  # each name ends below its column
        plt.setp(ax.get_xticklabels(), ha="right", rotation_mode="anchor")
    if max(map(columns, names)) > 16 and len(names) <= 2 * MANY:
        ax.tick_params(labelsize=8)
    ax.set(xlabel="predicted class", ylabel="true class", title=title)
    ax.grid(False)


def _clustered(matrix: np.ndarray) -> np.ndarray:
    """An order of classes (K,) in which those that are confused with each other lie together: average linkage of the
    shares of their clips, in an optimal order of its leaves (Bar-Joseph et al., 2001)."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    apart = 1 - np.minimum((shares + shares.T) / 2, 1)
    np.fill_diagonal(apart, 0)
    return leaves_list(linkage(squareform(apart, checks=False), "average", optimal_ordering=True))


def clip_strip(frames: np.ndarray, title: str, axes: np.ndarray, times: np.ndarray | None = None) -> None:
    """Frames of a clip in a row of axes: (T, H, W, 3) uint8; `times` in seconds stand below them.

    The title is `drawn`, with `LONGEST_TITLE` columns at most.
    """
    for i, (frame, ax) in enumerate(zip(frames, axes, strict=False)):
        ax.imshow(frame)
        ax.set(xticks=[], yticks=[])
        if times is not None:
            ax.set_xlabel(f"{times[i]:.1f} s", fontsize=8, labelpad=2)
    axes[0].set_title(" ", fontsize=10)  # keeps the height; the words run over the strip and must not widen a column
    axes[0].text(0, 1.06, drawn(title, LONGEST_TITLE), fontsize=10, transform=axes[0].transAxes, in_layout=False)


def clip_strips(clips: Iterable[tuple]) -> Figure:
    """A `clip_strip` for each (frames, title) or (frames, title, times), which have the same number of frames."""
    clips = list(clips)
    count = len(clips[0][0])
    figure, axes = plt.subplots(len(clips), count, figsize=(1.55 * count, 1.62 * len(clips)), squeeze=False)
    for (frames, title, *times), row in zip(clips, axes, strict=True):
        clip_strip(frames, title, row, *times)
    return figure


def batch_strips(batch: np.ndarray, titles: list[str], count: int = 8) -> Figure:
    """A batch of clips, (B, T, H, W, 3) uint8, a strip of at most `count` frames for each."""
    shown = np.linspace(0, batch.shape[1] - 1, min(count, batch.shape[1])).astype(int)
    return clip_strips(zip(batch[:, shown], titles, strict=True))


def metric_bars(results: dict[str, dict], ax: Axes) -> None:
    """Accuracy and macro precision, recall and F1 of each model, as grouped bars."""
    scores = pd.DataFrame(results).loc[["accuracy", "precision", "recall", "f1"]]
    scores.index = ["accuracy", "macro precision", "macro recall", "macro F1"]
    scores.plot.bar(ax=ax, width=0.8, rot=0, ylabel="score on the test clips", ylim=(0, 1.1), title="Test metrics")
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=2)
    ax.grid(False, axis="x")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def cost_bars(results: dict[str, dict], key: str, label: str, ax: Axes) -> None:
    """One cost of each model that has it, as bars; on a logarithmic scale where they are far apart."""
    values = {title: stats[key] for title, stats in results.items() if stats.get(key)}
    far = max(values.values()) > 30 * min(values.values())
    labelled_bars(values, lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}", ax, xlabel=label,
                  title=label.split(" [")[0], xscale="log" if far else "linear")
    if far:
        logarithmic(ax.xaxis)


def labelled_bars(values: dict[str, float], form: str | Callable[[float], str], ax: Axes, **settings) -> None:
    """Bars from the top down with their values, formatted by `form`, behind them; `settings` are of `Axes.set`."""
    bars = ax.barh(list(values), list(values.values()), color=PALETTE[0], height=0.65)
    ax.bar_label(bars, fmt=form, padding=3, fontsize=9)
    ax.set(**settings)
    ax.margins(x=0.22)
    from_the_top(ax)


def accuracy_against_cost(results: dict[str, dict], key: str, label: str, ax: Axes) -> None:
    """Test accuracy over one cost, a point for each model that has it."""
    points = {title: stats for title, stats in results.items() if stats.get(key)}
    for (title, stats), marker in zip(points.items(), "os^vD<>Pp*hXd", strict=False):
        ax.scatter(stats[key], stats["accuracy"], s=110, marker=marker, label=title, zorder=3)
    widest = max(stats[key] for stats in points.values())
    ax.set(xlabel=label, ylabel="test accuracy", xlim=(0, 1.1 * widest), ylim=(0, 1.08),
           title=f"Accuracy against {label.split(' [')[0]}")


def reliability_diagram(predictions: pd.DataFrame, title: str, ax: Axes) -> None:
    """Accuracy over confidence in bins, with the number of clips in each; on the diagonal, they agree."""
    table = reliability(predictions)
    middle, width = (table["lower"] + table["upper"]) / 2, table["upper"] - table["lower"]
    ax.plot([0, 1], [0, 1], linestyle="--", color="0.4", label="perfectly calibrated")
    ax.bar(middle, table["accuracy"], width=0.92 * width, color=PALETTE[0], alpha=0.8, label="accuracy of the bin")
    for x, clips in zip(middle, table["clips"], strict=True):
        ax.text(x, 0.03, clips or "", ha="center", fontsize=9)
    ax.set(xlabel="confidence (probability of the answer)", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.03))
    ax.legend(loc="upper left", fontsize=9)


def coverage(tables: dict[str, pd.DataFrame], ax: Axes) -> None:
    """Accuracy of the clips that are left when the least certain are set aside, for each model's predictions."""
    for (title, predictions), marker in zip(tables.items(), "os^vD<>Pp", strict=False):
        curve_of = coverage_curve(predictions)
        ax.plot(curve_of["coverage"], curve_of["accuracy"], marker=marker, markersize=4, label=title)
    ax.set(xlabel="coverage: share of the clips that are answered", ylabel="accuracy on them", xlim=(0, 1.02),
           ylim=(0, 1.03), title="When the least certain clips are set aside")
    ax.legend(loc="lower left")


def flow_colours(flow: np.ndarray, fastest: float) -> np.ndarray:
    """(P, 2, H, W) flow to (P, H, W, 3) uint8: direction as hue; `fastest`, in the flow's unit, and more is bright."""
    speed, angle = np.hypot(flow[:, 0], flow[:, 1]), np.arctan2(flow[:, 1], flow[:, 0])
    hsv = np.stack([(angle / (2 * np.pi)) % 1, np.ones_like(speed), np.clip(speed / fastest, 0, 1)], axis=-1)
    return np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)


def cross_validated(summary: pd.DataFrame, ax: Axes) -> None:
    """Cross-validated accuracy of `classifiers.summary`'s models: mean, and standard deviation over the folds."""
    mean, deviation = summary.set_index("model")["cv accuracy"], summary.set_index("model")["cv std"]
    scores = pd.DataFrame({"accuracy": mean, "low": mean - deviation, "high": mean + deviation})
    accuracy_bars(scores, "Cross-validation, whole groups", ax,
                  label="accuracy, mean and standard deviation of the folds")


def ablation_bars(ablation: pd.DataFrame, ax: Axes) -> None:
    """`classifiers.ablation`: cross-validated and test accuracy with parts of the descriptors."""
    names = {"cv accuracy": "cross-validation", "test accuracy": "test"}
    grouped_bars(ablation.set_index("descriptors")[list(names)].rename(columns=names), ax)
    ax.set(xlabel="accuracy", title="With these descriptors only", xlim=(0, 1.05))
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def family_importance(falls: pd.DataFrame, ax: Axes) -> None:
    """`classifiers.importance`: how far test accuracy and the true class's probability fall without a family."""
    names = {"accuracy fall": "accuracy", "probability fall": "the true class's probability"}
    grouped_bars(falls.set_index("family")[list(names)].rename(columns=names), ax)
    ax.set(xlabel="fall on the test set when the family is permuted", title="What the linear SVM relies on")
    ax.legend(loc="lower right")


def grouped_bars(table: pd.DataFrame, ax: Axes, **settings) -> None:
    """Horizontal bars from the top down, a group for each row; `settings` are of `DataFrame.plot.barh`."""
    table.plot.barh(ax=ax, width=0.8, ylabel="", **settings)
    from_the_top(ax)


def height(classes: int, each: float) -> float:
    """Inches for bars or boxes of so many classes, `each` of one; of MANY classes they are narrow."""
    return 1 + (each if classes <= MANY else 0.17) * classes


def class_counts(counts: pd.DataFrame, ax: Axes) -> None:
    """Clips of each class by part, stacked: what `splits.split_table` gives."""
    counts = counts.iloc[:-1].drop(columns="total").rename(index=drawn)
    grouped_bars(counts, ax, stacked=True)
    for bars in ax.containers if len(counts) <= MANY else []:
        ax.bar_label(bars, label_type="center", color="white", fontweight="bold")
    ax.tick_params("y", labelsize=None if len(counts) <= MANY else 8)
    ax.set(xlabel="clips", ylabel="class", title="Clips of each class")
    ax.legend(title="part", bbox_to_anchor=(1, 1), loc="upper left")


def by_class(report: pd.DataFrame, column: str, label: str, ax: Axes) -> None:
    """The spread of one of `audit.check_clips`'s columns in each class: quartiles, and every clip as a point."""
    classes = sorted(report["label"].unique())
    common = {"data": report, "x": column, "y": "label", "hue": "label", "order": classes, "legend": False, "ax": ax}
    sns.boxplot(**common, fliersize=0, width=0.6, boxprops={"alpha": 0.4})
    if len(report) <= 1000:
        sns.stripplot(**common, size=3, alpha=0.6)
    ax.set_yticks(range(len(classes)), [drawn(name) for name in classes], fontsize=None if len(classes) <= MANY else 8)
    ax.set(xlabel=label, ylabel="", title=label.split(" [")[0], xlim=(0, None))


def accuracy_bars(scores: pd.DataFrame, title: str, ax: Axes, chance: float | None = None,
                  label: str = "test accuracy, with 95 % interval") -> None:
    """Accuracies with their intervals, one bar per row, the value written in it, or beside it where it is short.

    `scores` are indexed by name, with accuracy, low and high; `chance`, the accuracy of naming the most frequent class,
    is drawn as a line.
    """
    errors = (scores[["low", "high"]].sub(scores["accuracy"], axis=0)).abs().to_numpy().T
    ax.barh(scores.index, scores["accuracy"], xerr=errors, height=0.6, color=PALETTE[0], alpha=0.85,
            error_kw={"capsize": 4, "ecolor": "0.25"})
    for y, (value, high) in enumerate(zip(scores["accuracy"], scores["high"], strict=True)):
        x, color = (0.01, "white") if value > 0.1 else (high + 0.02, "0.25")
        ax.text(x, y, f"{value:.2f}", va="center", color=color, fontweight="bold")
    if chance is not None:
        ax.axvline(chance, color="0.3", linestyle="--", label=f"most frequent class: {chance:.2f}")
        ax.legend(loc="lower right")
    ax.set(xlabel=label, title=title, xlim=(0, 1.05))
    from_the_top(ax)


def leakage(lab: pd.DataFrame, ax: Axes) -> None:
    """The accuracies of `audit.leakage_lab`: each split a point, the mean a line."""
    common = {"data": lab, "x": "accuracy", "y": "representation", "hue": "split", "hue_order": ["random", "group"],
              "ax": ax}
    sns.stripplot(**common, dodge=True, size=6, alpha=0.6)
    sns.pointplot(**common, dodge=0.4, errorbar=None, linestyle="none", marker="|", markersize=26, markeredgewidth=3,
                  legend=False)
    ax.set(xlabel="test accuracy", ylabel="", title="The same classifier under random splits and under whole groups")
    ax.legend(title="split", bbox_to_anchor=(1, 1), loc="upper left")


def search_history(trials: pd.DataFrame, ax: Axes) -> None:
    """Losses in `tuning.trials_table` and the lowest so far, on a logarithmic axis; the baselines stand out."""
    looks = {"complete": ("o", PALETTE[0]), "pruned": ("X", "lightgrey"), "default": ("D", PALETTE[2]),
             "seed": ("s", PALETTE[1])}
    shown = trials.assign(trial_is=trials["setting"].fillna(trials["state"]))
    for kind, its in shown.groupby("trial_is"):
        marker, color = looks[kind]
        ax.scatter(its["trial"], its["loss"], s=50, marker=marker, color=color, zorder=3, label=kind)
    complete = trials[trials["state"] == "complete"]
    ax.step(complete["trial"], complete["loss"].cummin(), where="post", color=PALETTE[3], label="lowest so far")
    ax.set(xlabel="trial", ylabel="cross-validated loss", yscale="log", title="Search history")
    logarithmic(ax.yaxis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=9)


def search_parallel(trials: pd.DataFrame, values: list[str], ax: Axes) -> None:
    """Parallel coordinates: one line per complete trial through its values, dark for a low loss, bold for the lowest.

    `values` are columns of `tuning.trials_table`; learning rate and weight decay are drawn on logarithmic axes. Names,
    or the lowest and the highest number, are written beside each axis.
    """
    complete = trials[trials["state"] == "complete"].sort_values("loss", ascending=False)
    numbers = complete[values].apply(lambda column: column if is_numeric_dtype(column) else column.rank(method="dense"))
    numbers = numbers.apply(lambda column: np.log10(column) if column.name in ("lr", "weight_decay") else column)
    heights = pd.DataFrame(minmax_scale(numbers), complete.index, values)
    ax.set_prop_cycle(color=plt.cm.viridis(np.linspace(0.9, 0.1, len(complete))))  # by rank: losses spread widely
    ax.plot(heights.to_numpy().T, alpha=0.6, linewidth=1)
    ax.plot(heights.iloc[-1].to_numpy(), color=PALETTE[3], linewidth=2.5)
    for x, (name, column) in enumerate(complete[values].items()):
        numeric = is_numeric_dtype(column)
        for row in [column.idxmin(), column.idxmax()] if numeric else column.drop_duplicates().index:
            ax.annotate(f"{column[row]:.3g}" if numeric else column[row], (x, heights[name][row]), (4, 0),
                        textcoords="offset points", fontsize=8, va="center",
                        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1})
    ax.set(xticks=range(len(values)), xticklabels=[name.replace("_", "\n") for name in values], yticks=[],
           ylim=(-0.1, 1.1), xlim=(-0.2, len(values) - 0.4),
           title=f"Values of the trials (dark: low loss; bold: trial {complete['trial'].iloc[-1]}, the best)")


def importance_bars(importances: dict[str, float], ax: Axes) -> None:
    """What Optuna's `get_param_importances` gives, as bars, the largest on top."""
    labelled_bars({name.replace("_", " "): share for name, share in importances.items()}, "%.2f", ax,
                  xlabel="share (PED-ANOVA)", title="Importance of each value")


def cam_strip(frames: np.ndarray, maps: np.ndarray, title: str, axes: np.ndarray,
              times: np.ndarray | None = None) -> None:
    """A clip's frames above, what speaks for the predicted class below, on (2, T) axes.

    (T, H, W, 3) uint8 frames and (T, H, W) maps in [0, 1] are as `interpretation.grad_cam` gives them; the title holds
    the class and its probability; `times`, (T,) seconds, are written below the frames.
    """
    clip_strip(frames, title, axes[0], times)
    for frame, response, ax in zip(frames, maps, axes[1], strict=False):
        ax.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255)  # colour is left to the overlay
        overlay = ax.imshow(response, cmap="viridis", vmin=0, vmax=1, alpha=0.55)
        ax.set(xticks=[], yticks=[])
    bar = axes[0, 0].figure.colorbar(overlay, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("share of the strongest response", fontsize=8)


def embedding(table: pd.DataFrame, title: str, ax: Axes) -> None:
    """What `interpretation.trunk_embedding` gives: one point per clip, coloured by class, its marker by part; MANY
    classes are not named."""
    numbers = {name: f"class {number}" for number, name in enumerate(sorted(table["label"].unique()))}
    sns.scatterplot(table.assign(label=table["label"].map(numbers)), x="x", y="y", hue="label", style="part",
                    hue_order=list(numbers.values()), palette=None if len(numbers) <= MANY else "husl",
                    markers={"train": "o", "val": "s", "test": "X"}, s=60, alpha=0.8, ax=ax)
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[], title=title)
    handles, labels = ax.get_legend_handles_labels()
    if len(numbers) > MANY:  # the parts alone
        start = labels.index("part")
        handles, labels = handles[start:], labels[start:]
    names = {number: name for name, number in numbers.items()}
    legend(ax, handles, [names.get(label, label) for label in labels], bbox_to_anchor=(1, 1), loc="upper left")


def probability_lines(table: pd.DataFrame, ax: Axes) -> None:
    """What `interpretation.probabilities_over_time` gives, one line per class."""
    table.plot(ax=ax, marker="o", markersize=3, legend=False)
    ax.set(xlabel="seconds", ylabel="probability", ylim=(-0.03, 1.03))
    if np.ptp(table.index) < 0.1:  # of a clip that each view takes whole
        ax.set_xlim(table.index[0] - 0.5, table.index[0] + 0.5)
    legend(ax, ax.lines, table.columns, fontsize=7)


def probabilities_over_time(edges: np.ndarray, shares: np.ndarray, classes: list[str], ax: Axes,
                            changes: Iterable[float] = ()) -> None:
    """A long video's class probabilities, (S, K) between (S + 1,) seconds, stacked; seconds of `changes` are dashed.

    Of MANY classes the TOP that reach the highest are drawn, and all others as one.
    """
    if len(classes) > MANY:
        drawn = np.sort(np.argsort(-shares.max(axis=0), kind="stable")[:TOP])
        shares = np.hstack([shares[:, drawn], 1 - shares[:, drawn].sum(axis=1, keepdims=True)])
        classes = [*(classes[i] for i in drawn), f"{len(classes) - TOP} others"]
    colours = sns.color_palette(n_colors=len(classes))
    areas = ax.stackplot(edges, np.vstack([shares, shares[-1:]]).T, step="post", colors=colours, alpha=0.85)
    for second in changes:
        ax.axvline(second, color="black", linestyle="--", linewidth=1.2)
    ax.set(xlabel="seconds", ylabel="probability", xlim=(edges[0], edges[-1]), ylim=(0, 1))
    legend(ax, areas, classes, bbox_to_anchor=(1, 1), loc="upper left")


def unfamiliarity(groups: dict[str, list[float]], ax: Axes) -> None:
    """How far groups of videos are from the training videos, a dot each; right of the line they count as unlike."""
    for row, values in enumerate(groups.values()):
        ax.scatter(values, [row] * len(values), color=PALETTE[row % len(PALETTE)], alpha=0.7, s=36)
    ax.axvline(1, color="black", linestyle="--", linewidth=1.2)
    ax.set(xlabel="unfamiliarity", xlim=(0, None), ylim=(len(groups) - 0.5, -0.5), yticks=range(len(groups)))
    ax.set_yticklabels([drawn(name) for name in groups])


def learning_curve(points: pd.DataFrame, title: str, ax: Axes) -> None:
    """What `comparison.learning_curve` gives: a line per model over the share of training groups, with intervals."""
    for number, (model, its) in enumerate(points.groupby("model", sort=False)):
        errors = its[["low", "high"]].sub(its["accuracy"], axis=0).abs().to_numpy().T
        ax.errorbar(100 * its["share"] + 0.8 * number, its["accuracy"], errors, marker="o", capsize=3,
                    color=PALETTE[number], label=model)  # side by side, so that no bar hides another
    shares = points.drop_duplicates("share").sort_values("share")
    ax.set(xlabel="training groups (clips per fold)", ylabel="accuracy of all videos, with 95 % interval",
           title=drawn(title, 72), xticks=100 * shares["share"])
    ax.set_xticklabels([f"{row.share:.0%}\n({row.clips:.0f})" for row in shares.itertuples()])
    ax.legend(loc="lower right")
