"""What in a data set could mislead: shared groups, shortcuts, leakage."""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from config import CACHE, get_recipe
from experiment import untrained
from metrics import MANY, interval_table
from models import choose_source
from videos.library import VideoData
from videos.splits import KINDS, NO_GROUPS, check_leakage, group_pairs, make_split, split_parts

SHORTCUTS = {
    "duration": ["duration"],
    "file format": ["fps", "width", "height", "kbit_per_second"],
    "mean colour": ["mean_l", "mean_a", "mean_b"],
    "amount of motion": ["motion"],
}
LAB_SPLITS = {"random": "random splits", "group": "splits by whole groups"}


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

def shortcut_scores(facts: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """How well the class can be told without looking at the action.

    Each rule is a decision tree with as many leaves as there are classes (for duration: one threshold fewer), grown on
    the training set; the first entry always names the most frequent class.

    Args:
        facts: of the clips, as `VideoData.facts`; those in no part are left out.

    Returns:
        Title of the rule to its predictions on the test set: clip_path, group, label, predicted.
    """
    train, test = (facts[facts["part"] == part] for part in ("train", "test"))
    rules = {"most frequent class": (["duration"], DummyClassifier(strategy="most_frequent"))}
    for title, columns in SHORTCUTS.items():
        rules[title] = columns, DecisionTreeClassifier(max_leaf_nodes=facts["label"].nunique(), random_state=0)
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
    clips = experiment.activations(*map(experiment.dataset, data.splits))
    features = np.stack([clip.mean(dim=(0, 1)).numpy() for clip, _ in clips])  # (V, T, F) -> (F)
    rows = [data.table(part).assign(part=part) for part in data.splits]
    return experiment.title, pd.concat(rows, ignore_index=True), features


def leakage_lab(clips: pd.DataFrame, representations: dict[str, np.ndarray], repeats: int = 10) -> pd.DataFrame:
    """Logistic regression on standardised features under random splits and under splits by whole groups.

    The difference between the two kinds (75/12.5/12.5) is what shared people and scenes are worth. Of more than MANY
    classes so many are taken, evenly from their names, which is told.

    Args:
        clips: N rows with clip_path, label and group.
        representations: title to (N, D) features.
        repeats: splits of each kind, seeded 0, 1, ...

    Returns:
        One row each: representation, split, seed, accuracy, test_clips, shared_groups.
    """
    names = sorted(clips["label"].unique())
    if len(names) > MANY:
        print(f"the lab takes {MANY} of {len(names)} classes")
        names = [names[number] for number in np.linspace(0, len(names) - 1, MANY).round().astype(int)]
    taken = clips["label"].isin(names).to_numpy()
    clips, representations = clips[taken], {title: x[taken] for title, x in representations.items()}
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
