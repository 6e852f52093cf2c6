"""Every figure: small functions that take data and axes and give the axes back."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from data_loader import clip_file, read_frames, read_timed_frames, segment_indices, time_indices
from descriptors import flow_of_pairs, read_pairs
from metrics import coverage_curve, reliability
from store import atomic_path

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


def first_of_each_class(table: pd.DataFrame) -> pd.DataFrame:
    """The first clip of each class, in alphabetical order."""
    return table.groupby("label", sort=True).first().reset_index()


def from_the_top(ax: Axes) -> Axes:
    """Bars in the order of their table from the top down, also where axes share their scale."""
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    return ax


def named_bars(values: pd.Series, errors: np.ndarray, color: tuple, ax: Axes) -> Axes:
    """Horizontal bars from the top down with error bars, the value written in each.

    Args:
        values: indexed by name.
        errors: (N,), or (2, N) below and above.
        color: of the bars.
        ax: to draw on.
    """
    ax.barh(values.index, values, xerr=errors, height=0.6, color=color, alpha=0.85,
            error_kw={"capsize": 4, "ecolor": "0.25"})
    for y, value in enumerate(values):
        ax.text(0.01, y, f"{value:.2f}", va="center", color="white", fontweight="bold")
    ax.grid(False, axis="y")
    return from_the_top(ax)


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
        frames, times = read_timed_frames(clip_file(root, clip["clip_path"]),
                                          lambda info: segment_indices(info.frames, count))
        verdict = "correct" if clip["label"] == clip["predicted"] else "WRONG"
        clip_strip(frames, f"{clip['clip_path']}   true {clip['label']}, predicted {clip['predicted']} "
                           f"with probability {clip['probability']:.2f}: {verdict}", row, times)
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
    ax.legend(title="", loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def cost_bars(results: dict[str, dict], key: str, label: str, ax: Axes) -> Axes:
    """One cost of each model that has it, as bars; on a logarithmic scale where they are far apart."""
    values = {title: stats[key] for title, stats in results.items() if stats.get(key)}
    bars = ax.barh(list(values), list(values.values()), color=PALETTE[0], height=0.65)
    ax.bar_label(bars, labels=[f"{v:,.3g}" if v < 1000 else f"{v:,.0f}" for v in values.values()], padding=3, fontsize=9)
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
    for (title, stats), marker in zip(points.items(), "os^vD<>Pp*hXd"):
        ax.scatter(stats[key], stats["accuracy"], s=110, marker=marker, label=title, zorder=3)
    widest = max(stats[key] for stats in points.values())
    ax.set(xlabel=label, ylabel="test accuracy", xlim=(0, 1.1 * widest), ylim=(0, 1.08),
           title=f"Accuracy against {label.split(' [')[0]}")
    return ax


def sample_strips(table: pd.DataFrame, root: str | Path, count: int = 8) -> Figure:
    """The first clip of each class as a strip of frames."""
    first = first_of_each_class(table)
    figure, axes = plt.subplots(len(first), count, figsize=(1.55 * count, 1.5 * len(first)), squeeze=False)
    for row, (_, clip) in zip(axes, first.iterrows()):
        frames, _ = read_frames(clip_file(root, clip["clip_path"]), lambda info: segment_indices(info.frames, count))
        clip_strip(frames, f"{clip['label']}   {clip['clip_path']}", row)
    return figure


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
    for (title, predictions), marker in zip(tables.items(), "os^vD<>Pp"):
        curve_of = coverage_curve(predictions)
        ax.plot(curve_of["coverage"], curve_of["accuracy"], marker=marker, markersize=4, label=title)
    ax.set(xlabel="coverage: share of the clips that are answered", ylabel="accuracy on them", xlim=(0, 1.02), ylim=(0, 1.03),
           title="When the least certain clips are set aside")
    ax.legend(loc="lower left")
    return ax


# ---------------------------------------------------------------- classical models

def flow_strips(table: pd.DataFrame, root: str | Path, count: int = 6) -> Figure:
    """Frames of the first clip of each class above their optical flow: direction as hue, speed as brightness.

    Args:
        table: with clip_path and label.
        root: the data set's folder.
        count: frames a clip.
    """
    first = first_of_each_class(table)
    figure, axes = plt.subplots(2 * len(first), count, figsize=(1.9 * count, 3.0 * len(first)), squeeze=False)
    for i, clip in enumerate(first.itertuples()):
        pairs = read_pairs(clip_file(root, clip.clip_path))
        frames, flow = pairs.frames[::2], flow_of_pairs(pairs)
        chosen = np.linspace(0, len(flow) - 1, count).astype(int)
        clip_strip(frames[chosen], f"{clip.label}   {clip.clip_path}", axes[2 * i])
        fastest = max(np.quantile(np.hypot(flow[:, 0], flow[:, 1]), 0.998), 0.01)
        clip_strip(flow_colours(flow[chosen], fastest),
                   f"optical flow, less the camera's; brightest at {fastest:.2f} frame heights a second", axes[2 * i + 1])
    return figure


def flow_colours(flow: np.ndarray, fastest: float) -> np.ndarray:
    """(P, 2, H, W) flow to (P, H, W, 3) uint8: direction as hue; `fastest`, in the flow's unit, and more is bright."""
    speed, angle = np.hypot(flow[:, 0], flow[:, 1]), np.arctan2(flow[:, 1], flow[:, 0])
    hsv = np.stack([(angle / (2 * np.pi)) % 1, np.ones_like(speed), np.clip(speed / fastest, 0, 1)], axis=-1)
    return np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)


def cross_validated(summary: pd.DataFrame, ax: Axes) -> Axes:
    """Cross-validated accuracy of `classical.summary`'s models: mean, and standard deviation over the folds."""
    scores = summary.set_index("model")
    named_bars(scores["cv accuracy"], scores["cv std"].to_numpy(), PALETTE[2], ax)
    ax.set(xlabel="accuracy, mean and standard deviation of the folds", title="Cross-validation, whole groups", xlim=(0, 1.05))
    return ax


def ablation_bars(ablation: pd.DataFrame, ax: Axes) -> Axes:
    """`classical.ablation`: cross-validated and test accuracy with parts of the descriptors."""
    rows = ablation.melt("descriptors", ["cv accuracy", "test accuracy"], "part", "accuracy")
    rows["part"] = rows["part"].str.removesuffix(" accuracy").map({"cv": "cross-validation", "test": "test"})
    sns.barplot(rows, x="accuracy", y="descriptors", hue="part", ax=ax)
    ax.set(xlabel="accuracy", ylabel="", title="With these descriptors only", xlim=(0, 1.05))
    ax.legend(title="", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return ax


def family_importance(falls: pd.DataFrame, ax: Axes) -> Axes:
    """`classical.importance`: how far test accuracy and the true class's probability fall when a family is permuted."""
    rows = falls.melt("family", ["accuracy fall", "probability fall"], "of", "fall")
    rows["of"] = rows["of"].str.removesuffix(" fall").map({"accuracy": "accuracy", "probability": "the true class's probability"})
    sns.barplot(rows, x="fall", y="family", hue="of", ax=ax)
    ax.set(xlabel="fall on the test part when the family is permuted", ylabel="", title="What the linear SVM relies on")
    ax.legend(title="", loc="lower right")
    return ax


# ---------------------------------------------------------------- the data set

def class_counts(counts: pd.DataFrame, ax: Axes) -> Axes:
    """Clips of each class by part, stacked: what `splits.split_table` gives."""
    counts = counts.drop(index="total", columns="total")
    left = np.zeros(len(counts))
    for part in counts:
        bars = ax.barh(counts.index, counts[part], left=left, label=part)
        if len(counts) <= 15:
            ax.bar_label(bars, label_type="center", color="white", fontweight="bold")
        left += counts[part].to_numpy()
    ax.set(xlabel="clips", ylabel="class", title="Clips of each class")
    from_the_top(ax)
    ax.grid(False, axis="y")
    ax.legend(title="part", bbox_to_anchor=(1, 1), loc="upper left")
    return ax


def contact_sheet(table: pd.DataFrame, root: str | Path, label: str, columns: int = 8, rows: int = 2) -> Figure:
    """The middle frame of clips of one class, each of another group as long as there are groups.

    Args:
        table: with clip_path, label and group.
        root: the data set's folder.
        label: the class.
        columns, rows: of the sheet.
    """
    clips = table[table["label"] == label]
    clips = clips.assign(turn=clips.groupby("group").cumcount()).sort_values(["turn", "group"]).head(columns * rows)
    rows = -(-len(clips) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.42 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, clip in zip(axes.flat, clips.itertuples()):
        frames, _ = read_frames(clip_file(root, clip.clip_path), lambda info: [info.frames // 2])
        ax.imshow(frames[0])
        ax.set_title(clip.group, fontsize=8, pad=2, fontweight="normal")
    figure.suptitle(f"{label}: {len(clips)} of {(table['label'] == label).sum()} clips, named by their group",
                    fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def animation(frames: np.ndarray, caption: str, fps: float = 8.0, height: int = 150) -> str:
    """An endless GIF in an HTML figure that needs no other file.

    Args:
        frames: (T, H, W, 3) uint8.
        caption: below it, and its text for those who can't see it.
        fps: frames a second.
        height: in pixels.
    """
    width = round(height * frames.shape[2] / frames.shape[1])
    pictures = [Image.fromarray(frame).resize((width, height)).quantize(96, dither=Image.Dither.NONE)
                for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)
    data, words = base64.b64encode(buffer.getvalue()).decode(), html.escape(caption, quote=True)
    style = (f"display:inline-block;vertical-align:top;width:{width}px;margin:0 1em 1em 0;font-size:.85em;"
             "overflow-wrap:anywhere")
    return (f'<figure style="{style}"><img alt="animation: {words}" width="{width}" height="{height}" '
            f'src="data:image/gif;base64,{data}"><figcaption>{words}</figcaption></figure>')


def animated_samples(table: pd.DataFrame, root: str | Path, seconds: float = 2.5, fps: float = 8.0) -> str:
    """The middle of the first clip of each class, moving at its true speed, as one piece of HTML."""
    first = first_of_each_class(table)
    figures = []
    for clip in first.itertuples():
        frames, _ = read_frames(clip_file(root, clip.clip_path),
                                lambda info: time_indices(info.frames, info.fps, round(seconds * fps), fps))
        figures.append(animation(frames, f"{clip.label}: {clip.clip_path}", fps))
    return f"<div>{''.join(figures)}</div>"


def by_class(report: pd.DataFrame, column: str, label: str, ax: Axes) -> Axes:
    """The spread of one of `audit.check_clips`'s columns in each class: quartiles, and every clip as a point."""
    common = dict(data=report, x=column, y="label", hue="label", order=sorted(report["label"].unique()), legend=False, ax=ax)
    sns.boxplot(**common, fliersize=0, width=0.6, boxprops={"alpha": 0.4})
    if len(report) <= 1000:
        sns.stripplot(**common, size=3, alpha=0.6)
    ax.set(xlabel=label, ylabel="", title=label.split(" [")[0], xlim=(0, None))
    return ax


def accuracy_bars(scores: pd.DataFrame, title: str, ax: Axes, chance: float | None = None) -> Axes:
    """Accuracies with their intervals, a bar a row.

    Args:
        scores: indexed by name, with accuracy, low and high.
        title: of the axes.
        ax: to draw on.
        chance: accuracy of naming the most frequent class, drawn as a line.
    """
    errors = np.abs(scores[["low", "high"]].to_numpy().T - scores["accuracy"].to_numpy())
    named_bars(scores["accuracy"], errors, PALETTE[0], ax)
    if chance is not None:
        ax.axvline(chance, color="0.3", linestyle="--", label=f"most frequent class: {chance:.2f}")
        ax.legend(loc="lower right")
    ax.set(xlabel="test accuracy, with 95 % interval", title=title, xlim=(0, 1.02))
    return ax


def leakage(lab: pd.DataFrame, ax: Axes) -> Axes:
    """The accuracies of `audit.leakage_lab`: each split a point, the mean a line."""
    common = dict(data=lab, x="accuracy", y="representation", hue="split", hue_order=["random", "group"], ax=ax)
    sns.stripplot(**common, dodge=True, size=6, alpha=0.6)
    sns.pointplot(**common, dodge=0.4, errorbar=None, linestyle="none", marker="|", markersize=26, markeredgewidth=3,
                  legend=False)
    ax.set(xlabel="test accuracy", ylabel="", title="The same classifier under random splits and under whole groups")
    ax.legend(title="split", bbox_to_anchor=(1, 1), loc="upper left")
    return ax


# ---------------------------------------------------------------- hyperparameter search

def search_history(trials: pd.DataFrame, ax: Axes) -> Axes:
    """Loss of each finished trial and the lowest so far; the default and the seed's values are marked.

    Args:
        trials: as `tuning.trials_table`.
        ax: to draw on; its loss axis is logarithmic.
    """
    complete, pruned = (trials[trials["state"] == state] for state in ("complete", "pruned"))
    ax.scatter(pruned["trial"], pruned["loss"], s=18, color="lightgrey", label="pruned")
    ax.scatter(complete["trial"], complete["loss"], s=26, color=PALETTE[0], label="complete")
    lowest = complete["loss"].cummin()
    ax.step(complete["trial"], lowest, where="post", color=PALETTE[3], label="lowest so far")
    for marker, (name, color) in zip("Ds", (("default", PALETTE[2]), ("seed", PALETTE[1]))):
        its = complete[complete["setting"] == name]
        ax.scatter(its["trial"], its["loss"], s=70, marker=marker, color=color, zorder=3,
                   label=f"{name} values")
    ax.set(xlabel="trial", ylabel="cross-validated loss", yscale="log", title="Search history")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(fontsize=9)
    return ax


def search_parallel(trials: pd.DataFrame, ax: Axes) -> Axes:
    """Parallel coordinates: a line a complete trial through its values, dark for a low loss, bold: best.

    Args:
        trials: as `tuning.trials_table`; learning rate and weight decay are drawn on logarithmic axes.
        ax: to draw on.
    """
    complete = trials[trials["state"] == "complete"].sort_values("loss", ascending=False)
    values = complete.drop(columns=["trial", "setting", "state", "loss", "accuracy", "folds", "seconds"])
    heights = pd.DataFrame({name: _height(values[name], name, x, ax) for x, name in enumerate(values)})
    shade = np.linspace(0.9, 0.1, len(complete))  # by rank: losses spread over orders of magnitude
    for row, level in zip(heights.to_numpy(), shade):
        ax.plot(row, color=plt.cm.viridis(level), alpha=0.6, linewidth=1)
    ax.plot(heights.iloc[-1].to_numpy(), color=PALETTE[3], linewidth=2.5)
    ax.set(xticks=range(values.shape[1]), xticklabels=[name.replace("_", "\n") for name in values], yticks=[],
           ylim=(-0.1, 1.1), xlim=(-0.2, values.shape[1] - 0.4),
           title=f"Values of the trials (dark: low loss; bold: trial {complete['trial'].iloc[-1]}, the best)")
    ax.grid(False, axis="y")
    return ax


def _height(column: pd.Series, name: str, x: int, ax: Axes) -> pd.Series:
    """A column scaled to [0, 1], its marks written beside its axis."""
    if not pd.api.types.is_numeric_dtype(column):
        names = sorted(column.unique())
        marks = {value: i / max(len(names) - 1, 1) for i, value in enumerate(names)}
        scaled = column.map(marks)
    else:
        numbers = np.log10(column) if name in ("lr", "weight_decay") else column
        span = numbers.max() - numbers.min()
        scaled = (numbers - numbers.min()) / (span or 1)
        marks = {f"{column.min():.3g}": 0.0, f"{column.max():.3g}": 1.0 if span else 0.0}
    for text, height in marks.items():
        ax.annotate(text, (x, height), (4, 0), textcoords="offset points", fontsize=8, va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1})
    return scaled


def importance_bars(importances: pd.Series, ax: Axes) -> Axes:
    """What `tuning.importances` gives, as bars, the largest on top."""
    bars = ax.barh([name.replace("_", " ") for name in importances.index], importances, color=PALETTE[0])
    ax.bar_label(bars, fmt="%.2f", fontsize=9, padding=2)
    ax.set(xlabel="share (PED-ANOVA)", title="Importance of each value", xlim=(0, 1.12 * importances.max()))
    from_the_top(ax)
    ax.grid(False, axis="y")
    return ax


# ---------------------------------------------------------------- what a model looks at

def cam_strip(frames: np.ndarray, maps: np.ndarray, title: str, axes: np.ndarray,
              times: np.ndarray | None = None) -> np.ndarray:
    """A clip's frames above, what speaks for the predicted class below.

    Args:
        frames: (T, H, W, 3) uint8.
        maps: (T, H, W) in [0, 1], as `behaviour.grad_cam` gives them.
        title: with the class and its probability.
        axes: (2, T) to draw on.
        times: (T,) seconds, written below the frames.
    """
    clip_strip(frames, title, axes[0], times)
    for frame, response, ax in zip(frames, maps, axes[1]):
        ax.imshow(frame.mean(axis=2), cmap="gray", vmin=0, vmax=255)  # colour is left to the overlay
        overlay = ax.imshow(response, cmap="viridis", vmin=0, vmax=1, alpha=0.55)
        ax.set(xticks=[], yticks=[])
    bar = axes[0, 0].figure.colorbar(overlay, ax=axes, fraction=0.02, pad=0.01)
    bar.set_label("share of the strongest response", fontsize=8)
    return axes


def embedding(table: pd.DataFrame, title: str, ax: Axes) -> Axes:
    """What `behaviour.trunk_embedding` gives: a point a clip, coloured by class, its marker by part."""
    markers = dict(zip(("train", "val", "test"), ("o", "s", "X")))
    sns.scatterplot(table, x="x", y="y", hue="label", style="part", hue_order=sorted(table["label"].unique()),
                    markers=markers, s=60, alpha=0.8, ax=ax)
    ax.set(xlabel="", ylabel="", xticks=[], yticks=[], title=title)
    ax.legend(bbox_to_anchor=(1, 1), loc="upper left")
    return ax


def probability_lines(table: pd.DataFrame, ax: Axes) -> Axes:
    """What `behaviour.probabilities_over_time` gives, a line a class."""
    for name, values in table.items():
        ax.plot(table.index, values, marker="o", markersize=3, label=name)
    ax.set(xlabel="seconds", ylabel="probability", ylim=(-0.03, 1.03))
    ax.legend(fontsize=7)
    return ax


def inline_picture(figure: Figure, words: str, height: int) -> str:
    """A figure as an HTML picture that needs no other file; it is closed.

    Args:
        figure: to draw.
        words: its text for those who can't see it.
        height: in pixels.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, bbox_inches="tight")
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (f'<img alt="{html.escape(words, quote=True)}" style="height:{height}px;width:auto;vertical-align:top" '
            f'src="data:image/png;base64,{data}">')
