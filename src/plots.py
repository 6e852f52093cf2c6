"""Every figure: small functions that take data and axes and give the axes back."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, ScalarFormatter

from data_loader import clip_file, open_video, read_frames, segment_indices
from utils import atomic_path

PALETTE = sns.color_palette("colorblind")


def set_style() -> None:
    """The look of all figures."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update({"figure.dpi": 100, "savefig.dpi": 150, "figure.constrained_layout.use": True,
                         "axes.titlesize": 12, "axes.titleweight": "bold"})


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a picture, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight")


def show(figure: Figure, path: str | Path | None = None) -> None:
    """Saves a figure where a path is given, shows it once and closes it."""
    if path is not None:
        save_figure(figure, path)
    plt.show()
    plt.close(figure)


def curve(history: dict[str, list[float]], what: str, title: str, ax: Axes, best_epoch: int | None = None) -> Axes:
    """Training and validation curve over epochs.

    Args:
        history: with `train_losses`, `val_losses`, `train_accs` and `val_accs`.
        what: `loss` or `accuracy`.
        title: of the axes.
        ax: to draw on.
        best_epoch: marked, counted from 1.
    """
    key = {"loss": "losses", "accuracy": "accs"}[what]
    epochs = np.arange(1, len(history[f"train_{key}"]) + 1)
    ax.plot(epochs, history[f"train_{key}"], marker="o", label=f"training {what}")
    ax.plot(epochs, history[f"val_{key}"], marker="s", label=f"validation {what}")
    if best_epoch:
        ax.axvline(best_epoch, color="grey", linestyle=":", label=f"kept: epoch {best_epoch}")
    ax.set(xlabel="epoch", ylabel="cross-entropy loss" if what == "loss" else "accuracy", title=title)
    if what == "accuracy":
        ax.set_ylim(0, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend()
    return ax


def confusion_heatmap(matrix: np.ndarray, classes: list[str], title: str, ax: Axes) -> Axes:
    """Confusion matrix with counts: true class by row, predicted class by column."""
    many = len(classes) > 15
    sns.heatmap(matrix, annot=not many, fmt="d", cmap="Blues", cbar=many, square=True, linewidths=0 if many else 0.5,
                xticklabels=classes, yticklabels=classes, vmin=0, ax=ax)
    ax.set(xlabel="predicted class", ylabel="true class", title=title)
    ax.tick_params(axis="x", rotation=45 if len(classes) > 4 else 0)
    ax.tick_params(axis="y", rotation=0)
    return ax


def clip_strip(frames: np.ndarray, title: str, axes: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Frames of a clip in a row of axes: (T, H, W, 3) uint8; `times` in seconds stand below them."""
    for i, (frame, ax) in enumerate(zip(frames, axes)):
        ax.imshow(frame)
        ax.set_xticks([])
        ax.set_yticks([])
        if times is not None:
            ax.set_xlabel(f"{times[i]:.1f} s", fontsize=8, labelpad=2)
    axes[0].set_title(" ", fontsize=10)  # keeps the height; the words run over the strip and must not widen a column
    axes[0].text(0, 1.06, title, fontsize=10, transform=axes[0].transAxes, in_layout=False)
    return axes


def prediction_strips(table: pd.DataFrame, root: str | Path, count: int = 8) -> Figure:
    """A strip of frames for each row of `evaluation.uncertain`, with true class, predicted class and probability.

    Args:
        table: with clip_path, label, predicted and probability.
        root: the data set's folder.
        count: frames a clip.
    """
    figure, axes = plt.subplots(len(table), count, figsize=(1.55 * count, 1.62 * len(table)), squeeze=False)
    for row, (_, clip) in zip(axes, table.iterrows()):
        path = clip_file(root, clip["clip_path"])
        capture, info = open_video(path)
        capture.release()
        frames, indices = read_frames(path, lambda info: segment_indices(info.frames, count))
        verdict = "correct" if clip["label"] == clip["predicted"] else "WRONG"
        clip_strip(frames, f"{clip['clip_path']}   true {clip['label']}, predicted {clip['predicted']} "
                           f"with probability {clip['probability']:.2f}: {verdict}", row, indices / (info.fps or 25.0))
    return figure


def metric_bars(results: dict[str, dict], ax: Axes) -> Axes:
    """Accuracy and macro precision, recall and F1 of each model, as grouped bars."""
    names = {"accuracy": "accuracy", "precision": "macro precision", "recall": "macro recall", "f1": "macro F1"}
    rows = [{"metric": label, "model": title, "value": stats[key]}
            for title, stats in results.items() for key, label in names.items()]
    sns.barplot(pd.DataFrame(rows), x="metric", y="value", hue="model", ax=ax)
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=2)
    ax.set(xlabel="", ylabel="score on the test clips", ylim=(0, 1.1), title="Test metrics")
    ax.legend(title="", loc="lower right")
    return ax


def cost_bars(results: dict[str, dict], key: str, label: str, ax: Axes) -> Axes:
    """One cost of each model, as bars."""
    values = [stats[key] for stats in results.values()]
    bars = ax.bar(list(results), values, color=PALETTE[:len(values)], width=0.6)
    ax.bar_label(bars, labels=[f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values], padding=2, fontsize=9)
    ax.set(ylabel=label, title=label.split(" [")[0])
    ax.margins(y=0.18)
    return ax


def accuracy_against_cost(results: dict[str, dict], key: str, label: str, ax: Axes) -> Axes:
    """Test accuracy over one cost, a point a model."""
    for i, (title, stats) in enumerate(results.items()):
        ax.scatter(stats[key], stats["accuracy"], s=120, color=PALETTE[i], label=title, zorder=3)
    widest = max(stats[key] for stats in results.values())
    ax.set(xlabel=label, ylabel="test accuracy", xlim=(0, 1.2 * widest), ylim=(0, 1.08),
           title=f"Accuracy against {label.split(' [')[0]}")
    ax.xaxis.set_major_formatter(EngFormatter(sep="") if widest > 1e4 else ScalarFormatter())
    ax.legend(loc="lower right")
    return ax


def sample_strips(table: pd.DataFrame, root: str | Path, count: int = 8) -> Figure:
    """The first clip of each class as a strip of frames."""
    first = table.groupby("label", sort=True).first().reset_index()
    figure, axes = plt.subplots(len(first), count, figsize=(1.55 * count, 1.5 * len(first)), squeeze=False)
    for row, (_, clip) in zip(axes, first.iterrows()):
        frames, _ = read_frames(clip_file(root, clip["clip_path"]), lambda info: segment_indices(info.frames, count))
        clip_strip(frames, f"{clip['label']}   {clip['clip_path']}", row)
    return figure
