"""What a data set holds, and what in it could mislead: broken and duplicate clips, shortcuts, leakage.

    python src/audit.py [DATASET]

decodes every clip of `demo`, `ucf101` (the default) or a folder once, and reports it.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from tqdm import tqdm

from config import CACHE, get_recipe, shown
from data_loader import VideoError, clip_file, open_video
from experiment import VideoData, locate, untrained
from metrics import interval_table
from models import choose_source
from splits import KINDS, check_leakage, make_split, read_split, scan_clips, split_parts, split_paths
from store import file_hash
from utils import write_csv

PAIR_EVERY = 12  # of so many frames, two neighbours are looked at for motion and colour
FLOW_SIZE = (160, 120)  # (width, height) in pixels at which motion is measured
SHORTCUTS = {
    "duration": ["duration"],
    "file format": ["fps", "width", "height", "kbit_per_second"],
    "mean colour": ["mean_l", "mean_a", "mean_b"],
    "amount of motion": ["motion"],
}
LAB_SPLITS = {"random": "random splits", "group": "splits by whole groups"}


# ---------------------------------------------------------------- every clip, decoded once

def check_clips(root: str | Path, clips: pd.DataFrame, workers: int | None = None) -> pd.DataFrame:
    """Decodes every clip once.

    Args:
        root: folder that `clip_path` is relative to.
        clips: with clip_path, label, group and, where known, part.
        workers: threads, each decoding one clip; None for one a core.

    Returns:
        The same rows with status (ok; truncated: under 90 % of the frames that the file's header tells;
        unreadable), frames, duration (seconds), fps, width and height (pixels), codec (four characters),
        kbit_per_second (of the file), motion (mean optical flow in frame heights a second), mean_l, mean_a, mean_b
        (mean colour in CIE Lab), sha256 of the file, duplicate_of (clip_path of the first clip of the same content).
    """
    paths = [clip_file(root, clip_path) for clip_path in clips["clip_path"]]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        probed = list(tqdm(pool.map(_probe, paths), "decoding", len(paths), unit="clip", file=sys.stdout, ncols=90))
    report = clips.reset_index(drop=True).join(pd.DataFrame(probed))
    first = report.groupby("sha256")["clip_path"].transform("first")
    report["duplicate_of"] = first.where(first != report["clip_path"], "")
    return report


def _probe(path: Path) -> dict:
    """One clip, frame by frame with one decoder thread; only the looked-at frames become pictures."""
    facts = {"status": "unreadable", "frames": 0, "duration": 0.0, "fps": 0.0, "width": 0, "height": 0, "codec": "",
             "kbit_per_second": np.nan, "motion": np.nan, "mean_l": np.nan, "mean_a": np.nan, "mean_b": np.nan,
             "sha256": file_hash(path)}
    try:
        capture, info = open_video(path)
    except VideoError:
        return facts
    codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
    frames, flow, colour = _scan(capture)
    capture.release()
    if frames == 0:
        return facts
    duration = frames / info.fps if info.fps else 0.0
    return {**facts, "status": "ok" if frames >= 0.9 * info.frames else "truncated", "frames": frames,
            "duration": duration, "fps": info.fps, "width": info.width, "height": info.height, "codec": codec,
            "kbit_per_second": path.stat().st_size * 8 / 1000 / duration if duration else np.nan,
            "motion": flow * info.fps / FLOW_SIZE[1], **dict(zip(("mean_l", "mean_a", "mean_b"), colour))}


def _scan(capture: cv2.VideoCapture) -> tuple[int, float, np.ndarray]:
    """Frames; mean flow between neighbours in pixels (nan for one frame); (3,) mean CIE Lab colour."""
    optical_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    frames, flows, colours, before = 0, [], [], None
    while capture.grab():
        if frames % PAIR_EVERY < 2:
            ok, frame = capture.retrieve()
            if not ok:
                break
            small = cv2.resize(frame, FLOW_SIZE, interpolation=cv2.INTER_AREA)
            grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
            if frames % PAIR_EVERY == 1:
                flows.append(np.linalg.norm(optical_flow.calc(before, grey, None), axis=2).mean())
            colours.append(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_BGR2LAB).mean(axis=(0, 1)))
            before = grey
        frames += 1
    if not colours:
        return 0, np.nan, np.full(3, np.nan)
    return frames, float(np.mean(flows)) if flows else np.nan, np.mean(colours, axis=0)


def load_or_check(root: str | Path, clips: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """What `check_clips` reported, from `path` where it is of these very clips, else anew and written there.

    Args:
        root, clips: as `check_clips`; parts are always those of `clips`.
        path: of the CSV.
    """
    clips, path = clips.reset_index(drop=True), Path(path)
    if path.is_file():
        texts = ("clip_path", "label", "group", "part", "status", "codec", "sha256", "duplicate_of")
        numbers = dict.fromkeys(("motion", "kbit_per_second", "mean_l", "mean_a", "mean_b"), [""])  # empty: not known
        saved = pd.read_csv(path, keep_default_na=False, na_values=numbers, dtype=dict.fromkeys(texts, str))
        hashes = [file_hash(clip_file(root, clip_path)) for clip_path in clips["clip_path"]]
        if saved.get("clip_path", pd.Series()).tolist() == clips["clip_path"].tolist() \
                and saved.get("sha256", pd.Series()).tolist() == hashes:
            print(f"reloaded {shown(path)}: every clip is as it was when it was decoded")
            return clips.join(saved[saved.columns.difference(clips.columns, sort=False)])
    report = check_clips(root, clips)
    write_csv(path, report)
    return report


def check_table(report: pd.DataFrame) -> pd.DataFrame:
    """One row a class of what `check_clips` found: counts, the range of frames, seconds in all, and the formats."""
    def values(column: pd.Series) -> str:
        return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(column.unique()))

    report = report.assign(size=report["width"].astype(str) + "x" + report["height"].astype(str))
    counted = pd.DataFrame({"label": report["label"], "clips": True,
                            "unreadable": report["status"] == "unreadable",
                            "truncated": report["status"] == "truncated",
                            "duplicates": report["duplicate_of"] != ""})
    readable = report[report["status"] != "unreadable"].groupby("label")
    return counted.groupby("label").sum().join(pd.DataFrame({
        "frames": readable["frames"].agg(lambda frames: f"{frames.min()}-{frames.max()}"),
        "seconds": readable["duration"].sum().round(1),
        **{name: readable[name].agg(values) for name in ("fps", "size", "codec")}}))


def findings(report: pd.DataFrame) -> list[str]:
    """A line for each clip that is broken, or has the content of another one."""
    lines = [f"{row.status}: {row.clip_path} ({row.frames} frames)"
             for row in report[report["status"] != "ok"].itertuples()]
    part = report.set_index("clip_path").get("part", pd.Series("", report["clip_path"]))
    for row in report[report["duplicate_of"] != ""].itertuples():
        parts = (part[row.clip_path], part[row.duplicate_of])
        where = f" ({' and '.join(parts)})" if all(parts) else ""
        lines.append(f"duplicate: {row.clip_path} = {row.duplicate_of}{where}")
    return lines


# ---------------------------------------------------------------- splits and groups

def group_overlap(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Groups that two parts have in common, a row and a column a part; on the diagonal, the groups of the part."""
    groups = {name: set(zip(table["label"], table["group"])) for name, table in parts.items()}
    return pd.DataFrame({a: {b: len(groups[a] & groups[b]) for b in groups} for a in groups})


def group_note(split: dict) -> str:
    """What `VideoData.split` tells of groups, in one line."""
    if not split["groups_named"]:
        return "no clip names a group (_gNN_cNN): each is its own, and leakage can't be checked"
    return f"split {split['kind']}: {split['shared_groups']} groups in more than one part"


def split_kinds(clips: pd.DataFrame, seed: int = 42) -> pd.DataFrame:
    """What each kind of split would make of these clips: clips a part and groups shared, or why it can't be made."""
    rows = {}
    for kind in KINDS:
        try:
            parts = split_parts(make_split(clips, kind, seed))
            rows[kind] = {**{name: str(len(table)) for name, table in parts.items()},
                          "shared groups": str(len(check_leakage(parts))), "note": ""}
        except ValueError as error:
            rows[kind] = {"note": f"not possible: {error}"}
    columns = ["train", "val", "test", "shared groups", "note"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).fillna("–").rename_axis("split")


# ---------------------------------------------------------------- shortcuts

def shortcut_scores(report: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """How well the class can be told without looking at the action.

    Each rule is a decision tree with as many leaves as there are classes (for duration: one threshold fewer than
    classes), grown on the training part; the first entry always names the most frequent class.

    Args:
        report: from `check_clips`, with the column part; unreadable clips are left out.

    Returns:
        Title of the rule to its predictions on the test part: clip_path, group, label, predicted.
    """
    report = report[report["status"] != "unreadable"]
    train, test = (report[report["part"] == part] for part in ("train", "test"))
    rules = {"most frequent class": (["duration"], DummyClassifier(strategy="most_frequent"))}
    for title, columns in SHORTCUTS.items():
        rules[title] = columns, DecisionTreeClassifier(max_leaf_nodes=report["label"].nunique(), random_state=0)
    return {title: test[["clip_path", "group", "label"]].assign(
        predicted=rule.fit(train[columns], train["label"]).predict(test[columns])).reset_index(drop=True)
        for title, (columns, rule) in rules.items()}


def shortcut_table(rules: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Test accuracy of each rule of `shortcut_scores` with its 95 % Wilson interval: accuracy, low, high."""
    return interval_table(rules).rename_axis("rule")


def shortcut_reading(scores: pd.DataFrame) -> str:
    """What `shortcut_table` says, in a sentence or two made from its numbers."""
    chance, rules = scores.loc["most frequent class", "accuracy"], scores.drop(index="most frequent class")
    telling = rules[rules["low"] > chance].sort_values("accuracy", ascending=False)
    duration = f"Clip duration alone names {rules.loc['duration', 'accuracy']:.0%} of the test clips correctly"
    said = f"{duration}; always naming the most frequent class is right on {chance:.0%}."
    if telling.empty:
        return f"{said} No rule is better than that beyond what so few test clips may show by chance."
    listed = ", ".join(f"{title} ({row.accuracy:.0%})" for title, row in telling.iterrows())
    return (f"{said} Better than that, beyond chance: **{listed}**. A model that reaches no more than these may have learnt "
            "nothing about the action.")


# ---------------------------------------------------------------- leakage

def frozen_features(data: VideoData, weights: str = "auto", device: str = "cpu",
                    cache: Path = CACHE) -> tuple[str, pd.DataFrame, np.ndarray]:
    """Pretrained frame features of every clip's centre view, averaged over its frames; nothing is trained.

    They are those that the 2D-CNN's notebook needs too, and are kept for it.

    Returns:
        The network's name; the clips (clip_path, label, group, part); (N, F) float32 features.
    """
    recipe = get_recipe("recommended", "2d", trained="head")
    experiment = untrained(data, recipe, choose_source("2d", weights), seed=0, device=device, cache=cache)
    rows, features = [], []
    for part in data.splits:
        features += [clip.mean(dim=(0, 1)).numpy() for clip, _ in experiment.activations(part, views=1)]  # (1, T, F) -> (F)
        rows.append(data.table(part).assign(part=part))
    return experiment.title, pd.concat(rows, ignore_index=True), np.stack(features)


def leakage_lab(clips: pd.DataFrame, representations: dict[str, np.ndarray], repeats: int = 10) -> pd.DataFrame:
    """The same classifier under random splits and under splits by whole groups, again and again.

    Logistic regression on standardised features learns from the training part and is tested on the test part of
    each split (75/12.5/12.5); the difference between the two kinds is what shared people and scenes are worth.

    Args:
        clips: N rows with clip_path, label and group.
        representations: title to (N, D) features.
        repeats: splits of each kind, seeded 0, 1, ...

    Returns:
        One row a split and representation: representation, split, seed, accuracy, test_clips, shared_groups.
    """
    clips, rows = clips.reset_index(drop=True), []
    index = pd.Series(clips.index, clips["clip_path"])
    for kind in ("random", "group"):
        try:
            splits = [split_parts(make_split(clips, kind, seed)) for seed in range(repeats)]
        except ValueError as error:
            print(f"no {kind} splits in the lab: {error}")
            continue
        for seed, parts in enumerate(splits):
            train, test = (index[parts[part]["clip_path"]].to_numpy() for part in ("train", "test"))
            shared = len(check_leakage(parts))
            for title, x in representations.items():
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
                accuracy = model.fit(x[train], clips["label"][train]).score(x[test], clips["label"][test])
                rows.append((title, kind, seed, accuracy, len(test), shared))
    return pd.DataFrame(rows, columns=["representation", "split", "seed", "accuracy", "test_clips", "shared_groups"])


def leakage_table(lab: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of `leakage_lab`'s accuracies by representation, and the difference of the means."""
    grouped = lab.groupby(["representation", "split"], sort=False)["accuracy"].agg(["mean", "std"]).unstack("split")
    text = grouped.map("{:.3f}".format)
    table = pd.DataFrame({title: text["mean", kind] + " ± " + text["std", kind]
                          for kind, title in LAB_SPLITS.items() if ("mean", kind) in grouped})
    if len(table.columns) == len(LAB_SPLITS):
        table["difference of the means"] = (grouped["mean", "random"] - grouped["mean", "group"]).map("{:+.3f}".format)
    return table


def leakage_reading(lab: pd.DataFrame, near: float, chance: float) -> str:
    """What the lab says, in sentences made from its numbers.

    Args:
        lab: from `leakage_lab`.
        near, chance: from `same_group_neighbours`.
    """
    if chance == 0:
        return "Every clip is its own group, or names none: what leakage is worth can't be measured on these clips."
    said = [f"For {near:.0%} of the clips the nearest other clip, by these frozen features, is of their own group (by chance "
            f"{chance:.1%}): under a random split a classifier can look the answer up."]
    for title, rows in lab.groupby("representation", sort=False):
        by_seed = rows.pivot(index="seed", columns="split", values="accuracy")
        if set(by_seed) < set(LAB_SPLITS):
            return "Without both kinds of split, leakage can't be measured on these clips."
        gain = by_seed["random"].mean() - by_seed["group"].mean()
        error = np.sqrt(sum(by_seed[kind].var() / len(by_seed) for kind in LAB_SPLITS))
        verdict = (f"gains {100 * gain:.1f} points from leakage" if gain > 2 * error else
                   f"shows no gain beyond the spread of the splits ({100 * gain:+.1f} points)")
        said.append(f"With the {title}, the score under random splits is {by_seed['random'].mean():.1%}, under whole groups "
                    f"{by_seed['group'].mean():.1%}: it {verdict}.")
    return " ".join(said)


def same_group_neighbours(clips: pd.DataFrame, features: np.ndarray) -> tuple[float, float]:
    """The share of clips whose nearest other clip is of their own group, and what chance would give.

    Args:
        clips: N rows with label and group.
        features: (N, D); compared by cosine.
    """
    group = pd.factorize(pd.MultiIndex.from_frame(clips[["label", "group"]]))[0]
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(features).kneighbors(return_distance=False)[:, 0]
    chance = (np.bincount(group)[group] - 1).mean() / (len(group) - 1)
    return float((group[nearest] == group).mean()), float(chance)


# ---------------------------------------------------------------- the command line

def main(arguments: list[str] | None = None) -> None:
    """Decodes a data set, prints what it holds and what is wrong with it; exit status 1 where a clip is unreadable."""
    parser = argparse.ArgumentParser(description="Decodes every clip once and reports broken and duplicate ones.")
    parser.add_argument("dataset", nargs="?", default="ucf101", help="demo, ucf101 or a folder (default: ucf101)")
    parser.add_argument("--csv", type=Path, help="where the report goes (default: in the data set's results)")
    options = parser.parse_args(arguments)
    try:
        _, root, results = locate(options.dataset)
        clips = scan_clips(root)
        part = _part_of_clip(root / "splits") or _part_of_clip(results / "splits")
        csv = options.csv or results / "dataset" / "check.csv"
        report = check_clips(root, clips.drop(columns="clip_name").assign(part=clips["clip_path"].map(part).fillna("")))
        write_csv(csv, report)
    except (ValueError, OSError) as error:
        raise SystemExit(f"audit: {error}") from None
    print(check_table(report).to_string(), *findings(report), f"report: {shown(csv)}", sep="\n")
    if (report["status"] == "unreadable").any():
        raise SystemExit("audit: some clips are unreadable: remove them and fetch or import them again")


def _part_of_clip(folder: Path) -> dict[str, str]:
    if not any(path.exists() for path in split_paths(folder).values()):
        return {}
    return {path: name for name, part in read_split(folder).items() for path in part["clip_path"]}


if __name__ == "__main__":
    main()
