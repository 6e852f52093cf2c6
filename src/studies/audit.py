"""What a data set holds, and what in it could mislead: broken and duplicate clips, shortcuts, leakage."""

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

from config import CACHE, get_recipe
from data_loader import VideoError, clip_file, open_video
from experiment import untrained
from files import file_hash, shown, write_csv
from machine import cores
from metrics import interval_table
from models import choose_source
from videos.library import VideoData
from videos.splits import KINDS, NO_GROUPS, check_leakage, group_pairs, make_split, split_parts

PAIR_EVERY = 12  # of so many frames, two neighbours are looked at for motion and colour
FLOW_SIZE = (160, 120)  # (width, height) in pixels at which motion is measured
SHORTCUTS = {
    "duration": ["duration"],
    "file format": ["fps", "width", "height", "kbit_per_second"],
    "mean colour": ["mean_l", "mean_a", "mean_b"],
    "amount of motion": ["motion"],
}
MEASURED = ("kbit_per_second", "motion", "mean_l", "mean_a", "mean_b")  # columns that are empty where unreadable
TEXTS = ("clip_path", "label", "group", "part", "status", "codec", "sha256", "duplicate_of")
LAB_SPLITS = {"random": "random splits", "group": "splits by whole groups"}


# ---------------------------------------------------------------- every clip, decoded once

def check_clips(root: str | Path, clips: pd.DataFrame) -> pd.DataFrame:
    """Decodes every clip once.

    Args:
        root: folder that `clip_path` is relative to.
        clips: with clip_path, label, group and, where known, part.

    Returns:
        The same rows with status (ok; truncated: under 90 % of the frames that the file's header tells; unreadable),
        frames, duration (seconds), fps, width and height (pixels), codec (four characters), kbit_per_second (of the
        file), motion (mean optical flow in frame heights per second), mean_l, mean_a, mean_b (mean colour in CIE Lab),
        sha256 of the file, duplicate_of (clip_path of the first clip of the same content).
    """
    paths = [clip_file(root, clip_path) for clip_path in clips["clip_path"]]
    with ThreadPoolExecutor(cores()) as pool:
        probed = list(tqdm(pool.map(_probe, paths), "decoding", len(paths), unit="clip", file=sys.stdout, ncols=90))
    report = clips.reset_index(drop=True).join(pd.DataFrame(probed))
    first = report.groupby("sha256")["clip_path"].transform("first")
    report["duplicate_of"] = first.where(first != report["clip_path"], "")
    return report


def _probe(path: Path) -> dict:
    """One clip, frame by frame with one decoder thread; only the looked-at frames become pictures."""
    facts = {"status": "unreadable", "frames": 0, "duration": 0.0, "fps": 0.0, "width": 0, "height": 0, "codec": "",
             **dict.fromkeys(MEASURED, np.nan), "sha256": file_hash(path)}
    try:
        capture, info = open_video(path)
    except VideoError:
        return facts
    codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("ascii", "replace")
    frames, flows, colours = _scan(capture)
    capture.release()
    if frames == 0:
        return facts
    (lightness, a, b), flow = np.mean(colours, axis=0), float(np.mean(flows)) if flows else np.nan
    duration = frames / info.fps if info.fps else 0.0
    return {**facts, "status": "ok" if frames >= 0.9 * info.frames else "truncated", "frames": frames,
            "duration": duration, "fps": info.fps, "width": info.width, "height": info.height, "codec": codec,
            "kbit_per_second": path.stat().st_size * 8 / 1000 / duration if duration else np.nan,
            "motion": flow * info.fps / FLOW_SIZE[1], "mean_l": lightness, "mean_a": a, "mean_b": b}


def _scan(capture: cv2.VideoCapture) -> tuple[int, list[float], list[np.ndarray]]:
    """Frames; of those looked at, the mean flow between neighbours in pixels, and (3,) mean CIE Lab colours."""
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
    return frames, flows, colours


def load_or_check(root: str | Path, clips: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """What `check_clips` reported, from the CSV at `path` where it is of these very clips, else anew and written there.

    Parts are always those of `clips`.
    """
    clips, path = clips.reset_index(drop=True), Path(path)
    if path.is_file():
        saved = pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(MEASURED, ""),
                            dtype=dict.fromkeys(TEXTS, str))
        hashes = [file_hash(clip_file(root, clip_path)) for clip_path in clips["clip_path"]]
        now = pd.DataFrame({"clip_path": clips["clip_path"].astype(str), "sha256": hashes})
        if saved.reindex(columns=now.columns).equals(now):
            print(f"reloaded {shown(path)}: every clip is as it was when it was decoded")
            return clips.join(saved[saved.columns.difference(clips.columns, sort=False)])
    report = check_clips(root, clips)
    write_csv(path, report)
    return report


def check_table(report: pd.DataFrame) -> pd.DataFrame:
    """One row per class of what `check_clips` found: counts, the range of frames, seconds in all, and the formats."""
    def values(column: pd.Series) -> str:
        return " ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(column.unique()))

    report = report.assign(size=report["width"].astype(str) + "x" + report["height"].astype(str))
    unreadable = report["status"] == "unreadable"
    counted = pd.DataFrame({"clips": True, "unreadable": unreadable, "truncated": report["status"] == "truncated",
                            "duplicates": report["duplicate_of"] != ""})
    readable = report[~unreadable].groupby("label")
    return counted.groupby(report["label"]).sum().join(pd.DataFrame({
        "frames": readable["frames"].agg(lambda frames: f"{frames.min()}-{frames.max()}"),
        "seconds": readable["duration"].sum().round(1),
        **{name: readable[name].agg(values) for name in ("fps", "size", "codec")}}))


def findings(report: pd.DataFrame) -> list[str]:
    """A line for each clip that is broken, or has the content of another one."""
    broken = report[report["status"] != "ok"]
    lines = [f"{row.status}: {row.clip_path} ({row.frames} frames)" for row in broken.itertuples()]
    part = report.set_index("clip_path").get("part", pd.Series("", report["clip_path"]))
    for row in report[report["duplicate_of"] != ""].itertuples():
        parts = (part[row.clip_path], part[row.duplicate_of])
        where = f" ({' and '.join(parts)})" if all(parts) else ""
        lines.append(f"duplicate: {row.clip_path} = {row.duplicate_of}{where}")
    return lines


# ---------------------------------------------------------------- splits and groups

def group_overlap(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Groups that two parts have in common, a row and a column per part; on the diagonal, the groups of the part."""
    groups = {name: set(group_pairs(table)) for name, table in parts.items()}
    return pd.DataFrame({a: {b: len(groups[a] & groups[b]) for b in groups} for a in groups})


def group_note(split: dict) -> str:
    """What `VideoData.split` tells of groups, in one line."""
    if not split["groups_named"]:
        return NO_GROUPS
    return f"split {split['kind']}: {split['shared_groups']} groups in more than one part"


def split_kinds(clips: pd.DataFrame, seed: int = 42) -> pd.DataFrame:
    """What each kind of split would make of these clips: clips per part and groups shared, or why it can't be made."""
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

    Each rule is a decision tree with as many leaves as there are classes (for duration: one threshold fewer), grown on
    the training set; the first entry always names the most frequent class. Unreadable clips are left out.

    Returns:
        Title of the rule to its predictions on the test set: clip_path, group, label, predicted.
    """
    report = report[report["status"] != "unreadable"]
    train, test = (report[report["part"] == part] for part in ("train", "test"))
    rules = {"most frequent class": (["duration"], DummyClassifier(strategy="most_frequent"))}
    for title, columns in SHORTCUTS.items():
        rules[title] = columns, DecisionTreeClassifier(max_leaf_nodes=report["label"].nunique(), random_state=0)
    clips = test[["clip_path", "group", "label"]].reset_index(drop=True)
    return {title: clips.assign(predicted=rule.fit(train[columns], train["label"]).predict(test[columns]))
            for title, (columns, rule) in rules.items()}


def shortcut_table(rules: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Test accuracy of each rule of `shortcut_scores` with its 95 % Wilson interval: accuracy, low, high."""
    return interval_table(rules).rename_axis("rule")


def shortcut_reading(scores: pd.DataFrame) -> str:
    """What `shortcut_table` says, in a sentence or two made from its numbers."""
    chance, rules = scores.loc["most frequent class", "accuracy"], scores.drop(index="most frequent class")
    telling = rules[rules["low"] > chance].sort_values("accuracy", ascending=False)
    said = (f"Clip duration alone names {rules.loc['duration', 'accuracy']:.0%} of the test clips correctly; always "
            f"naming the most frequent class is right on {chance:.0%}.")
    if telling.empty:
        return f"{said} No rule is better than that beyond what so few test clips may show by chance."
    listed = ", ".join(f"{title} ({row.accuracy:.0%})" for title, row in telling.iterrows())
    return (f"{said} Better than that, beyond chance: **{listed}**. A model that reaches no more than these may have "
            "learnt nothing about the action.")


# ---------------------------------------------------------------- leakage

def frozen_features(data: VideoData, weights: str = "auto", device: str = "cpu",
                    cache: Path = CACHE) -> tuple[str, pd.DataFrame, np.ndarray]:
    """Pretrained features of every clip's RGB frames, averaged over them; they are kept for the 2D-CNN.

    Returns:
        The network's name; the clips (clip_path, label, group, part); (N, F) float32 features.
    """
    recipe = get_recipe("recommended", "2d", modality="rgb")
    experiment = untrained(data, recipe, choose_source("2d", weights), seed=0, device=device, cache=cache)
    rows, features = [], []
    for part in data.splits:
        clips = experiment.activations(experiment.dataset(part))
        features += [clip.mean(dim=(0, 1)).numpy() for clip, _ in clips]  # (V, T, F) -> (F)
        rows.append(data.table(part).assign(part=part))
    return experiment.title, pd.concat(rows, ignore_index=True), np.stack(features)


def leakage_lab(clips: pd.DataFrame, representations: dict[str, np.ndarray], repeats: int = 10) -> pd.DataFrame:
    """Logistic regression on standardised features under random splits and under splits by whole groups.

    The difference between the two kinds (75/12.5/12.5) is what shared people and scenes are worth.

    Args:
        clips: N rows with clip_path, label and group.
        representations: title to (N, D) features.
        repeats: splits of each kind, seeded 0, 1, ...

    Returns:
        One row each: representation, split, seed, accuracy, test_clips, shared_groups.
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
    """What `leakage_lab` says, with `near` and `chance` of `same_group_neighbours`, in sentences made from numbers."""
    if chance == 0:
        return "Every clip is its own group, or names none: what leakage is worth can't be measured on these clips."
    said = [f"For {near:.0%} of the clips the nearest other clip, by these frozen features, is of their own group (by "
            f"chance {chance:.1%}): under a random split a classifier can look the answer up."]
    for title, rows in lab.groupby("representation", sort=False):
        by_seed = rows.pivot(index="seed", columns="split", values="accuracy")
        if set(by_seed) < set(LAB_SPLITS):
            return "Without both kinds of split, leakage can't be measured on these clips."
        gain = by_seed["random"].mean() - by_seed["group"].mean()
        error = np.sqrt(sum(by_seed[kind].var() / len(by_seed) for kind in LAB_SPLITS))
        verdict = (f"gains {100 * gain:.1f} points from leakage" if gain > 2 * error else
                   f"shows no gain beyond the spread of the splits ({100 * gain:+.1f} points)")
        said.append(f"With the {title}, the score under random splits is {by_seed['random'].mean():.1%}, under whole "
                    f"groups {by_seed['group'].mean():.1%}: it {verdict}.")
    return " ".join(said)


def same_group_neighbours(clips: pd.DataFrame, features: np.ndarray) -> tuple[float, float]:
    """Share of clips whose nearest other clip, by cosine of (N, D) features, is of their group; and that by chance."""
    group = pd.factorize(group_pairs(clips))[0]
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(features).kneighbors(return_distance=False)[:, 0]
    chance = (np.bincount(group)[group] - 1).mean() / (len(group) - 1)
    return float((group[nearest] == group).mean()), float(chance)
