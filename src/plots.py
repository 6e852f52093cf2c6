"""Every figure: small functions that take data and axes and give the axes back."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image as Picture

from files import atomic_path
from metrics import coverage_curve, reliability

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
    """Saves a figure where a path is given, shows it once and closes it.

    One with photographs in it is drawn once, at the screen's resolution, and shown as JPEG, which takes a fifth of what
    a PNG takes in a notebook.
    """
    if any(image.get_array().ndim == 3 for ax in figure.axes for image in ax.images):
        data, jpeg = png(figure), io.BytesIO()
        if path is not None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(data)
        Picture.open(io.BytesIO(data)).convert("RGB").save(jpeg, "JPEG", quality=85)
        display(Image(jpeg.getvalue()))
    else:
        if path is not None:
            save_figure(figure, path)
        plt.show()
        plt.close(figure)


def png(figure: Figure) -> bytes:
    """A figure as a PNG file at the screen's resolution; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def from_the_top(ax: Axes) -> Axes:
    """Bars in the order of their table from the top down, also where axes share their scale."""
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    return ax


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
    for i, (frame, ax) in enumerate(zip(frames, axes, strict=False)):
        ax.imshow(frame)
        ax.set_xticks([])
        ax.set_yticks([])
        if times is not None:
            ax.set_xlabel(f"{times[i]:.1f} s", fontsize=8, labelpad=2)
    axes[0].set_title(" ", fontsize=10)  # keeps the height; the words run over the strip and must not widen a column
    axes[0].text(0, 1.06, title, fontsize=10, transform=axes[0].transAxes, in_layout=False)
    return axes


def batch_strips(batch: np.ndarray, titles: list[str], count: int = 8) -> Figure:
    """A batch of clips, (B, T, H, W, 3) uint8, a strip of at most `count` frames for each."""
    shown = np.linspace(0, batch.shape[1] - 1, min(count, batch.shape[1])).astype(int)
    figure, axes = plt.subplots(len(batch), len(shown), figsize=(1.3 * len(shown), 1.5 * len(batch)), squeeze=False)
    for clip, title, row in zip(batch, titles, axes, strict=True):
        clip_strip(clip[shown], title, row)
    return figure


def metric_bars(results: dict[str, dict], ax: Axes) -> Axes:
    """Accuracy and macro precision, recall and F1 of each model, as grouped bars."""
    names = {"accuracy": "accuracy", "precision": "macro precision", "recall": "macro recall", "f1": "macro F1"}
    scores = pd.DataFrame(results).loc[list(names)].rename(index=names)
    scores.plot.bar(ax=ax, width=0.8, rot=0, ylabel="score on the test clips", ylim=(0, 1.1), title="Test metrics")
    for bars in ax.containers:
        ax.bar_label(bars, fmt="%.3f", fontsize=9, padding=2)
    ax.grid(False, axis="x")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def cost_bars(results: dict[str, dict], key: str, label: str, ax: Axes) -> Axes:
    """One cost of each model that has it, as bars; on a logarithmic scale where they are far apart."""
    values = {title: stats[key] for title, stats in results.items() if stats.get(key)}
    bars = ax.barh(list(values), list(values.values()), color=PALETTE[0], height=0.65)
    written = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values.values()]
    ax.bar_label(bars, labels=written, padding=3, fontsize=9)
    if max(values.values()) > 30 * min(values.values()):
        ax.set_xscale("log")
    ax.set(xlabel=label, title=label.split(" [")[0])
    ax.margins(x=0.22)
    from_the_top(ax)
    ax.grid(False, axis="y")
    return ax


def accuracy_against_cost(results: dict[str, dict], key: str, label: str, ax: Axes) -> Axes:
    """Test accuracy over one cost, a point for each model that has it."""
    points = {title: stats for title, stats in results.items() if stats.get(key)}
    for (title, stats), marker in zip(points.items(), "os^vD<>Pp*hXd", strict=False):
        ax.scatter(stats[key], stats["accuracy"], s=110, marker=marker, label=title, zorder=3)
    widest = max(stats[key] for stats in points.values())
    ax.set(xlabel=label, ylabel="test accuracy", xlim=(0, 1.1 * widest), ylim=(0, 1.08),
           title=f"Accuracy against {label.split(' [')[0]}")
    return ax


def reliability_diagram(predictions: pd.DataFrame, title: str, ax: Axes) -> Axes:
    """Accuracy over confidence in bins, with the number of clips in each; on the diagonal, they agree."""
    table = reliability(predictions)
    middle, width = (table["lower"] + table["upper"]) / 2, table["upper"] - table["lower"]
    ax.plot([0, 1], [0, 1], linestyle="--", color="0.4", label="perfectly calibrated")
    ax.bar(middle, table["accuracy"], width=0.92 * width, color=PALETTE[0], alpha=0.8, label="accuracy of the bin")
    for row in table[table["clips"] > 0].itertuples():
        ax.text((row.lower + row.upper) / 2, 0.03, str(row.clips), ha="center", fontsize=9,
                color="white" if row.accuracy > 0.1 else "black")
    ax.set(xlabel="confidence (probability of the answer)", ylabel="accuracy", title=title, xlim=(0, 1), ylim=(0, 1.03))
    ax.legend(loc="upper left", fontsize=9)
    return ax


def coverage(tables: dict[str, pd.DataFrame], ax: Axes) -> Axes:
    """Accuracy of the clips that are left when the least certain are set aside, for each model's predictions."""
    for (title, predictions), marker in zip(tables.items(), "os^vD<>Pp", strict=False):
        curve_of = coverage_curve(predictions)
        ax.plot(curve_of["coverage"], curve_of["accuracy"], marker=marker, markersize=4, label=title)
    ax.set(xlabel="coverage: share of the clips that are answered", ylabel="accuracy on them", xlim=(0, 1.02),
           ylim=(0, 1.03), title="When the least certain clips are set aside")
    ax.legend(loc="lower left")
    return ax


# ---------------------------------------------------------------- classical models

def flow_colours(flow: np.ndarray, fastest: float) -> np.ndarray:
    """(P, 2, H, W) flow to (P, H, W, 3) uint8: direction as hue; `fastest`, in the flow's unit, and more is bright."""
    speed, angle = np.hypot(flow[:, 0], flow[:, 1]), np.arctan2(flow[:, 1], flow[:, 0])
    hsv = np.stack([(angle / (2 * np.pi)) % 1, np.ones_like(speed), np.clip(speed / fastest, 0, 1)], axis=-1)
    return np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)


def cross_validated(summary: pd.DataFrame, ax: Axes) -> Axes:
    """Cross-validated accuracy of `classifiers.summary`'s models: mean, and standard deviation over the folds."""
    mean, deviation = summary.set_index("model")["cv accuracy"], summary.set_index("model")["cv std"]
    scores = pd.DataFrame({"accuracy": mean, "low": mean - deviation, "high": mean + deviation})
    return accuracy_bars(scores, "Cross-validation, whole groups", ax,
                         label="accuracy, mean and standard deviation of the folds")


def ablation_bars(ablation: pd.DataFrame, ax: Axes) -> Axes:
    """`classifiers.ablation`: cross-validated and test accuracy with parts of the descriptors."""
    names = {"cv accuracy": "cross-validation", "test accuracy": "test"}
    grouped_bars(ablation.set_index("descriptors")[list(names)].rename(columns=names), ax)
    ax.set(xlabel="accuracy", title="With these descriptors only", xlim=(0, 1.05))
    ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return ax


def family_importance(falls: pd.DataFrame, ax: Axes) -> Axes:
    """`classifiers.importance`: how far test accuracy and the true class's probability fall without a family."""
    names = {"accuracy fall": "accuracy", "probability fall": "the true class's probability"}
    grouped_bars(falls.set_index("family")[list(names)].rename(columns=names), ax)
    ax.set(xlabel="fall on the test set when the family is permuted", title="What the linear SVM relies on")
    ax.legend(loc="lower right")
    return ax


def grouped_bars(table: pd.DataFrame, ax: Axes, **settings) -> Axes:
    """Horizontal bars from the top down, a group for each row; `settings` are of `DataFrame.plot.barh`."""
    table.plot.barh(ax=ax, width=0.8, ylabel="", **settings)
    ax.grid(False, axis="y")
    return from_the_top(ax)


# ---------------------------------------------------------------- the data set

def class_counts(counts: pd.DataFrame, ax: Axes) -> Axes:
    """Clips of each class by part, stacked: what `splits.split_table` gives."""
    counts = counts.drop(index="total", columns="total")
    grouped_bars(counts, ax, stacked=True)
    for bars in ax.containers if len(counts) <= 15 else []:
        ax.bar_label(bars, label_type="center", color="white", fontweight="bold")
    ax.set(xlabel="clips", ylabel="class", title="Clips of each class")
    ax.legend(title="part", bbox_to_anchor=(1, 1), loc="upper left")
    return ax


def by_class(report: pd.DataFrame, column: str, label: str, ax: Axes) -> Axes:
    """The spread of one of `audit.check_clips`'s columns in each class: quartiles, and every clip as a point."""
    common = {"data": report, "x": column, "y": "label", "hue": "label", "order": sorted(report["label"].unique()),
              "legend": False, "ax": ax}
    sns.boxplot(**common, fliersize=0, width=0.6, boxprops={"alpha": 0.4})
    if len(report) <= 1000:
        sns.stripplot(**common, size=3, alpha=0.6)
    ax.set(xlabel=label, ylabel="", title=label.split(" [")[0], xlim=(0, None))
    return ax


def accuracy_bars(scores: pd.DataFrame, title: str, ax: Axes, chance: float | None = None,
                  label: str = "test accuracy, with 95 % interval") -> Axes:
    """Accuracies with their intervals, one bar per row, the value written in it.

    Args:
        scores: indexed by name, with accuracy, low and high.
        title: of the axes.
        ax: to draw on.
        chance: accuracy of naming the most frequent class, drawn as a line.
        label: of the accuracy axis.
    """
    errors = (scores[["low", "high"]].sub(scores["accuracy"], axis=0)).abs().to_numpy().T
    ax.barh(scores.index, scores["accuracy"], xerr=errors, height=0.6, color=PALETTE[0], alpha=0.85,
            error_kw={"capsize": 4, "ecolor": "0.25"})
    for y, value in enumerate(scores["accuracy"]):
        ax.text(0.01, y, f"{value:.2f}", va="center", color="white", fontweight="bold")
    if chance is not None:
        ax.axvline(chance, color="0.3", linestyle="--", label=f"most frequent class: {chance:.2f}")
        ax.legend(loc="lower right")
    ax.set(xlabel=label, title=title, xlim=(0, 1.05))
    ax.grid(False, axis="y")
    return from_the_top(ax)


def leakage(lab: pd.DataFrame, ax: Axes) -> Axes:
    """The accuracies of `audit.leakage_lab`: each split a point, the mean a line."""
    common = {"data": lab, "x": "accuracy", "y": "representation", "hue": "split", "hue_order": ["random", "group"],
              "ax": ax}
    sns.stripplot(**common, dodge=True, size=6, alpha=0.6)
    sns.pointplot(**common, dodge=0.4, errorbar=None, linestyle="none", marker="|", markersize=26, markeredgewidth=3,
                  legend=False)
    ax.set(xlabel="test accuracy", ylabel="", title="The same classifier under random splits and under whole groups")
    ax.legend(title="split", bbox_to_anchor=(1, 1), loc="upper left")
    return ax


# ---------------------------------------------------------------- hyperparameter search

def search_history(trials: pd.DataFrame, ax: Axes) -> Axes:
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
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=9)
    return ax


def search_parallel(trials: pd.DataFrame, values: list[str], ax: Axes) -> Axes:
    """Parallel coordinates: one line per complete trial through its values, dark for a low loss, bold for the lowest.

    Args:
        trials: as `tuning.trials_table`.
        values: columns of it; learning rate and weight decay are drawn on logarithmic axes.
        ax: to draw on.
    """
    complete = trials[trials["state"] == "complete"].sort_values("loss", ascending=False)
    heights = np.stack([_height(complete[name], x, ax) for x, name in enumerate(values)])
    ax.set_prop_cycle(color=plt.cm.viridis(np.linspace(0.9, 0.1, len(complete))))  # by rank: losses spread widely
    ax.plot(heights, alpha=0.6, linewidth=1)
    ax.plot(heights[:, -1], color=PALETTE[3], linewidth=2.5)
    ax.set(xticks=range(len(values)), xticklabels=[name.replace("_", "\n") for name in values], yticks=[],
           ylim=(-0.1, 1.1), xlim=(-0.2, len(values) - 0.4),
           title=f"Values of the trials (dark: low loss; bold: trial {complete['trial'].iloc[-1]}, the best)")
    return ax


def _height(column: pd.Series, x: int, ax: Axes) -> np.ndarray:
    """A column scaled to [0, 1]; its names, or its lowest and highest number, are written beside its axis."""
    if pd.api.types.is_numeric_dtype(column):
        numbers = np.log10(column) if column.name in ("lr", "weight_decay") else column
        marks = {column.idxmin(): f"{column.min():.3g}", column.idxmax(): f"{column.max():.3g}"}
    else:
        numbers = column.rank(method="dense")
        marks = column.drop_duplicates().to_dict()
    heights = (numbers - numbers.min()) / ((numbers.max() - numbers.min()) or 1)
    for row, text in marks.items():
        ax.annotate(text, (x, heights[row]), (4, 0), textcoords="offset points", fontsize=8, va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1})
    return heights.to_numpy()


def importance_bars(importances: dict[str, float], ax: Axes) -> Axes:
    """What Optuna's `get_param_importances` gives, as bars, the largest on top."""
    bars = ax.barh([name.replace("_", " ") for name in importances], list(importances.values()), color=PALETTE[0])
    ax.bar_label(bars, fmt="%.2f", fontsize=9, padding=2)
    ax.set(xlabel="share (PED-ANOVA)", title="Importance of each value")
    ax.margins(x=0.12)
    from_the_top(ax)
    ax.grid(False, axis="y")
    return ax


# ---------------------------------------------------------------- what a model looks at

def cam_strip(frames: np.ndarray, maps: np.ndarray, title: str, axes: np.ndarray,
              times: np.ndarray | None = None) -> np.ndarray:
    """A clip's frames above, what speaks for the predicted class below.

    Args:
        frames: (T, H, W, 3) uint8.
        maps: (T, H, W) in [0, 1], as `interpretation.grad_cam` gives them.
        title: with the class and its probability.
        axes: (2, T) to draw on.
        times: (T,) seconds, written below the frames.
    """
    clip_strip(frames, title, axes[0], times)
    for frame, response, ax in zip(frames, maps, axes[1], strict=False):
        ax.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255)  # colour is left to the overlay
        overlay = ax.imshow(response, cmap="viridis", vmin=0, vmax=1, alpha=0.55)
        ax.set(xticks=[], yticks=[])
    bar = axes[0, 0].figure.colorbar(overlay, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("share of the strongest response", fontsize=8)
    return axes


def embedding(table: pd.DataFrame, title: str, ax: Axes) -> Axes:
    """What `interpretation.trunk_embedding` gives: one point per clip, coloured by class, its marker by part."""
    markers = dict(zip(("train", "val", "test"), ("o", "s", "X"), strict=True))
    sns.scatterplot(table, x="x", y="y", hue="label", style="part", hue_order=sorted(table["label"].unique()),
                    markers=markers, s=60, alpha=0.8, ax=ax)
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[], title=title)
    ax.legend(bbox_to_anchor=(1, 1), loc="upper left")
    return ax


def probability_lines(table: pd.DataFrame, ax: Axes) -> Axes:
    """What `interpretation.probabilities_over_time` gives, one line per class."""
    for name, values in table.items():
        ax.plot(table.index, values, marker="o", markersize=3, label=name)
    ax.set(xlabel="seconds", ylabel="probability", ylim=(-0.03, 1.03))
    ax.legend(fontsize=7)
    return ax
