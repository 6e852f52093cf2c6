"""Statistics of prediction tables: metrics with intervals, paired tests, calibration, selective prediction.

A prediction table is what `experiment.predict` gives: one row per clip with clip_path, group, label, predicted and a
column `p_<class>` for each class; an empty one is refused with a ValueError. Clips of one group share people and scene,
so that they tell less than their number promises: a group is the pair (label, group), and intervals that resample take
groups whole. All intervals are of 95 %.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)
from statsmodels.stats import contingency_tables
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

MANY = 15  # classes; where there are more, tables and figures show some of them, and the first TOP answers count too
TOP = 5
ALPHA = 0.05  # what an interval leaves out, and a test may err
TEMPERATURE_BOUNDS = (0.1, 10.0)
FUSION_PENALTY = 0.1
EPSILON = np.finfo(float).eps  # the least probability in a logarithm, as in scikit-learn's log_loss


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


# ---------------------------------------------------------------- one model

def classification_metrics(predictions: pd.DataFrame) -> dict[str, float]:
    """Accuracy and macro-averaged precision, recall and F1, in [0, 1].

    The average is over the classes that occur as label or predicted; a class never predicted has precision 0.
    """
    truth = predictions["label"], predictions["predicted"]
    macro = precision_recall_fscore_support(*truth, average="macro", zero_division=0)[:3]
    return {"accuracy": float(accuracy_score(*truth)),
            **dict(zip(("precision", "recall", "f1"), map(float, macro), strict=True))}


def per_class(predictions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """One row per class, in the order of `classes`: precision, recall, recall_low, recall_high, f1, support.

    The ends are of the recall's Wilson interval. A class without clips has recall 0, as in scikit-learn, and the
    interval [0, 1]: nothing is known of it.
    """
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions["label"], predictions["predicted"], labels=classes, zero_division=0)
    hits = predictions["label"][_correct(predictions)].value_counts().reindex(classes, fill_value=0)
    low, high = _wilson(hits.to_numpy(), support)
    return pd.DataFrame({"precision": precision, "recall": recall, "recall_low": low, "recall_high": high,
                         "f1": f1, "support": support}, index=pd.Index(classes, name="class"))


def top_accuracy(predictions: pd.DataFrame, answers: int = TOP) -> float:
    """The share of clips whose class is among so many of the most probable ones (top-k accuracy)."""
    classes, probabilities = class_probabilities(predictions)
    return float(top_k_accuracy_score(np.searchsorted(classes, predictions["label"].to_list()), probabilities,
                                      k=answers, labels=range(len(classes))))


def with_top(answers: pd.DataFrame, tables: dict[str, pd.DataFrame], after: str) -> pd.DataFrame:
    """A table of models, by title, with a column of their top-5 accuracies where there are MANY classes."""
    told = answers.copy()
    if any(tables[title].filter(regex="^p_").shape[1] > MANY for title in tables):
        tops = {title: f"{top_accuracy(table):.3f}" for title, table in tables.items()}
        told.insert(told.columns.get_loc(after) + 1, f"top-{TOP}", [tops.get(title, "–") for title in told.index])
    return told


def hardest_classes(predictions: pd.DataFrame, classes: list[str]) -> list[str]:
    """The classes as they are; of more than MANY, so many of the lowest recall, the lowest first."""
    recall = per_class(predictions, classes)["recall"]
    return classes if len(classes) <= MANY else recall.sort_values(kind="stable").index[:MANY].tolist()


def most_confused(predictions: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """The pairs of classes that are taken for each other most often, one row each: label, predicted, videos, share (of
    the label's videos)."""
    wrong = predictions[~_correct(predictions)]
    pairs = wrong.groupby(["label", "predicted"]).size().rename("videos").reset_index()
    sizes = predictions["label"].value_counts()
    pairs["share"] = pairs["videos"] / pairs["label"].map(sizes).to_numpy()
    return pairs.sort_values(["videos", "share"], ascending=False, kind="stable").head(count).reset_index(drop=True)


def by_group(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per group, in the order of label and group: label, group, clips, correct, accuracy."""
    groups = predictions.assign(correct=_correct(predictions)).groupby(["label", "group"])["correct"]
    return groups.agg(clips="size", correct="sum", accuracy="mean").reset_index()


def seeds_reading(rows: pd.DataFrame) -> str:
    """The spread of several trainings (`evaluation.repeat_training`) in a sentence."""
    if len(rows) == 1:
        return "One training only: how much another seed would change is not known (`SEEDS` sets their number)."
    mean, sd, low, high = rows["accuracy"].agg(["mean", "std", "min", "max"])
    return (f"{len(rows)} trainings that differ in nothing but their seed give an accuracy of {mean:.3f} "
            f"with a standard deviation of {sd:.3f}, from {low:.3f} to {high:.3f}.")


def _correct(predictions: pd.DataFrame) -> np.ndarray:
    """(N,) bool."""
    _refuse_empty(predictions)
    return (predictions["label"] == predictions["predicted"]).to_numpy(dtype=bool)


def _refuse_empty(predictions: pd.DataFrame) -> None:
    if predictions.empty:
        raise ValueError("the prediction table holds no clips: evaluate the model on a part that has some")


def accuracy_interval(predictions: pd.DataFrame) -> Interval:
    """Accuracy with Wilson's score interval (Wilson 1927), as if every clip were drawn by itself.

    It is informative also where all clips are correct, but too narrow where clips of a group are alike: read it beside
    `group_bootstrap`.
    """
    correct = _correct(predictions)
    low, high = _wilson(correct.sum(), len(correct))
    return Interval(float(correct.mean()), float(low), float(high))


def interval_table(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy of several prediction tables with Wilson's 95 % interval: one row per title, accuracy, low and high."""
    intervals = {title: accuracy_interval(predictions) for title, predictions in tables.items()}
    return pd.DataFrame(intervals, index=["accuracy", "low", "high"]).T


def _wilson(hits, clips) -> tuple[np.ndarray, np.ndarray]:
    known = np.maximum(clips, 1)
    low, high = proportion_confint(hits, known, alpha=ALPHA, method="wilson")
    # rounding leaves the ends of 0 and of all correct a hair inside the estimate
    return np.minimum(low, hits / known), np.where(clips == 0, 1.0, np.maximum(high, hits / known))


def group_bootstrap(predictions: pd.DataFrame, statistic: str = "accuracy", repeats: int = 2000,
                    seed: int = 0) -> Interval:
    """Percentile interval of `accuracy` or macro `f1` from resampling whole groups within each class.

    The cluster bootstrap (Davison & Hinkley 1997), stratified: every class keeps its number of groups. With all clips
    correct the interval is [1, 1], which says nothing: read `accuracy_interval` then. With few groups per class it is
    too narrow. In simulations of 3 classes with an intraclass correlation of 0.3, intervals held the true accuracy in
    0.90 to 0.92 of the cases with 7 groups per class (Wilson's: 0.82), but in 0.66 to 0.69 with 2 (Wilson's: 0.89 to
    0.90). Macro F1 is averaged over the classes of the whole table in every resample; its interval lies somewhat low.
    Another statistic, or an empty table, is a ValueError.
    """
    if statistic not in ("accuracy", "f1"):
        raise ValueError(f"unknown statistic {statistic!r}: accuracy or f1")
    _refuse_empty(predictions)
    classes = sorted({*predictions["label"], *predictions["predicted"]})
    label, predicted = (predictions[[column]].to_numpy() == classes for column in ("label", "predicted"))  # (N, K)
    counts = pd.DataFrame(np.hstack([label & predicted, label.astype(int) + predicted]), index=predictions.index)
    groups = counts.groupby([predictions["label"], predictions["group"]]).sum()
    hits, total = np.split(_group_sums(groups, repeats, seed), 2, axis=1)
    if statistic == "accuracy":
        return _percentile(2 * hits.sum(axis=1) / total.sum(axis=1))
    return _percentile(np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0).mean(axis=1))


def _group_sums(groups: pd.DataFrame, repeats: int, seed: int) -> np.ndarray:
    """(1 + repeats, C) column sums of (G, C) counts, indexed by label and group: as they are, then in each resample."""
    labels, rng = groups.index.get_level_values("label").to_numpy(), np.random.default_rng(seed)
    draws = np.ones((1 + repeats, len(labels)))  # how often each group is drawn
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        n = len(members)
        drawn = rng.integers(n, size=(repeats, n)) + n * np.arange(repeats)[:, None]
        draws[1:, members] = np.bincount(drawn.ravel(), minlength=repeats * n).reshape(repeats, n)
    return draws @ groups.to_numpy(dtype=float)


def _percentile(values: np.ndarray) -> Interval:
    """The first value, and the interval of the others."""
    return Interval(float(values[0]), *np.quantile(values[1:], [ALPHA / 2, 1 - ALPHA / 2]).tolist())


# ---------------------------------------------------------------- two models, and several

class Comparison(NamedTuple):
    """Accuracy of one model less that of another, with its interval; the clips that only the first (b) and only the
    second (c) names correctly; and the exact p value of their being equally accurate.
    """

    difference: float
    low: float
    high: float
    b: int
    c: int
    p_value: float


def compare(first: pd.DataFrame, second: pd.DataFrame, repeats: int = 2000, seed: int = 0) -> Comparison:
    """Whether two models tested on the same clips, in any order of rows, are equally accurate.

    The interval is the paired one of `group_bootstrap`: both models see the same resampled groups. Where they differ on
    no clip, or in a class of one group only, which can't be resampled, it is a point and says nothing. The exact test
    (McNemar 1947) takes clips as independent. Tables of other clips or labels are a ValueError.
    """
    clips, right, other = _aligned(first, second)
    clips = clips[["label", "group"]].assign(gain=right.astype(int) - other, clips=1)
    gains, sizes = _group_sums(clips.groupby(["label", "group"])[["gain", "clips"]].sum(), repeats, seed).T
    b, c = int((right & ~other).sum()), int((~right & other).sum())
    test = contingency_tables.mcnemar([[0, b], [c, 0]], exact=True)  # it reads only where the models differ
    return Comparison(*_percentile(gains / sizes), b, c, float(test.pvalue))


def pairwise(tables: dict[str, pd.DataFrame], repeats: int = 2000, seed: int = 0) -> pd.DataFrame:
    """`compare` for every pair of several models' tables, with p values adjusted after Holm (1979).

    One row per pair: first, second, clips, the fields of `Comparison`, p_holm. Fewer than two tables, or tables of
    different clips, are a ValueError; the message names the pair.
    """
    if len(tables) < 2:
        raise ValueError(f"a comparison needs the tables of two models at least, not {len(tables)}")
    rows = []
    for one, two in combinations(tables, 2):
        try:
            rows.append((one, two, len(tables[one]), *compare(tables[one], tables[two], repeats, seed)))
        except ValueError as error:
            raise ValueError(f"{one} and {two}: {error}") from error
    pairs = pd.DataFrame(rows, columns=["first", "second", "clips", *Comparison._fields])
    return pairs.assign(p_holm=multipletests(pairs["p_value"], method="holm")[1])


def _aligned(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The first table, and in its order (N,) bool: the clips that each of the two models names correctly."""
    first, second = first.set_index("clip_path"), second.set_index("clip_path")
    if not (first.index.is_unique and second.index.is_unique):
        raise ValueError("a clip stands twice in a prediction table: evaluate the model again")
    if odd := len(first.index.symmetric_difference(second.index)):
        raise ValueError(f"tested on different clips ({odd} in one only): evaluate both on the same split")
    second = second.loc[first.index]
    if other := int((first["label"] != second["label"]).sum()):
        raise ValueError(f"{other} of {len(first)} clips have other labels: evaluate both on the same split")
    return first, _correct(first), _correct(second)


def pairwise_reading(pairs: pd.DataFrame) -> str:
    """Whether the test set resolves the differences of `pairwise`, in two sentences a pair, a line each.

    A difference counts as resolved where the Holm-adjusted exact test rejects equality at the level ALPHA, and the
    group-clustered interval lies on one side of zero.
    """
    return "\n".join(_read_pair(pair, len(pairs)) for pair in pairs.itertuples())


def _read_pair(pair, comparisons: int) -> str:
    if pair.c > pair.b:  # the better one first
        pair = pair._replace(first=pair.second, second=pair.first, b=pair.c, c=pair.b, low=-pair.high, high=-pair.low)
    if pair.b == 0:
        return (f"Of {_videos(pair.clips)}, none is right with only one of {pair.first} and {pair.second}: "
                "the test set can't tell them apart.")
    interval = (f"95% interval {100 * pair.low:z.1f} to {100 * pair.high:z.1f}" if pair.low < pair.high
                else "no interval, since resampling whole groups never changes it")
    adjusted = f", {_p(pair.p_holm)} after Holm over {comparisons} comparisons" if comparisons > 1 else ""
    return (f"Of {_videos(pair.clips)}, {pair.b} {'is' if pair.b == 1 else 'are'} right with {pair.first} only and "
            f"{pair.c or 'none'} with {pair.second} only: a difference of {100 * (pair.b - pair.c) / pair.clips:.1f} "
            f"percentage points ({interval}; exact McNemar {_p(pair.p_value)}{adjusted}). "
            f"{_verdict(pair, comparisons)}")


def _verdict(pair, comparisons: int) -> str:
    unresolved, least = "The test set does not resolve it", 2.0 ** (1 - pair.b - pair.c)
    if least > ALPHA:
        return f"{unresolved}: {_videos(pair.b + pair.c, 'such ')} can't give a p below {least:.2g}."
    if pair.p_value > ALPHA:
        return f"{unresolved}."
    if pair.p_holm > ALPHA:
        return f"{unresolved} among {comparisons} comparisons."
    if pair.low <= 0 <= pair.high:
        return f"{unresolved}: with whole groups resampled, the interval reaches zero."
    return f"The test set resolves it: {pair.first} is more accurate."


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _videos(count: int, kind: str = "test ") -> str:
    return f"{count} {kind}video{'' if count == 1 else 's'}"


# ---------------------------------------------------------------- probabilities: calibration, selective prediction

def class_probabilities(predictions: pd.DataFrame) -> tuple[list[str], np.ndarray]:
    """The table's classes in alphabetical order, as scikit-learn has them, and their (N, K) probabilities.

    A ValueError where a label or predicted class has no column, or the probabilities of a clip don't add up to one.
    """
    _refuse_empty(predictions)
    columns = sorted(predictions.filter(regex="^p_"))
    classes = [column.removeprefix("p_") for column in columns]
    if odd := {*predictions["label"], *predictions["predicted"]} - set(classes):
        raise ValueError(f"no probabilities of {', '.join(sorted(map(str, odd)))} in the table, only "
                         f"{', '.join(columns) or 'none'}: read names as text, or evaluate the model again")
    probabilities = predictions[columns].to_numpy(dtype=float)
    if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3):
        raise ValueError("the probabilities of a clip don't add up to one: evaluate the model again")
    return classes, probabilities / probabilities.sum(axis=1, keepdims=True)  # a table keeps fewer digits


def confidence(predictions: pd.DataFrame) -> np.ndarray:
    """(N,) probability of the class that was predicted."""
    classes, probabilities = class_probabilities(predictions)
    chosen = np.searchsorted(classes, predictions["predicted"].to_list())
    return probabilities[np.arange(len(predictions)), chosen]


def reliability(predictions: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """What a reliability diagram shows: confidence against accuracy in equal bins (lower, upper], the first with 0.

    One row per bin: clips, their mean confidence and accuracy (NaN where the bin is empty), lower and upper.
    """
    edges = np.linspace(0, 1, bins + 1)
    table = pd.DataFrame({"confidence": confidence(predictions), "accuracy": _correct(predictions)})
    groups = table.groupby(pd.cut(table["confidence"], edges, include_lowest=True), observed=False)
    means = groups.agg(clips=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean"))
    return means.assign(lower=edges[:-1], upper=edges[1:]).reset_index(drop=True)


def expected_calibration_error(predictions: pd.DataFrame, bins: int = 10) -> float:
    """Top-label expected calibration error (Guo et al. 2017): mean |accuracy - confidence| of bins.

    With few clips it is above zero also for a calibrated model.
    """
    table = reliability(predictions, bins).dropna()
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["clips"]))


def brier(predictions: pd.DataFrame) -> float:
    """Multi-class Brier score (Brier 1950): squared error summed over classes, mean over clips, in [0, 2]."""
    classes, probabilities = class_probabilities(predictions)
    return brier_score_loss(predictions["label"], probabilities, labels=classes, scale_by_half=False)


def negative_log_likelihood(predictions: pd.DataFrame) -> float:
    """Mean -log probability of the true class, in nats; 0 counts as 2.2e-16, as in scikit-learn."""
    classes, probabilities = class_probabilities(predictions)
    return log_loss(predictions["label"], probabilities, labels=classes)


def fit_temperature(validation: pd.DataFrame) -> float:
    """The temperature, within `TEMPERATURE_BOUNDS`, that minimises the negative log-likelihood (Guo et al. 2017).

    `validation` must not hold clips whose calibration is then measured. Log-probabilities are logits up to a constant
    of each clip; a table's are averaged over a video's views, so that this is a temperature on the logarithm of the
    average. As in Platt's scaling (1999), targets are (N + 1) / (N + K) and 1 / (N + K) for N clips and K classes, as
    if one more clip had been seen of each answer: with one and zero, N correct clips would ask for certainty.
    """
    classes, probabilities = class_probabilities(validation)
    logits, (clips, count) = np.log(probabilities.clip(EPSILON)), probabilities.shape
    targets = (clips * (validation[["label"]].to_numpy() == classes) + 1) / (clips + count)  # (N, K)

    def loss(temperature: float) -> float:
        return -(targets * log_softmax(logits / temperature, axis=1)).sum(axis=1).mean()

    # convex in 1 / temperature: one minimum at most
    found = minimize_scalar(lambda log_t: loss(np.exp(log_t)), bounds=np.log(TEMPERATURE_BOUNDS),
                            method="bounded", options={"xatol": 1e-6})
    return min(*TEMPERATURE_BOUNDS, float(np.exp(found.x)), key=loss)


def apply_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The same table with sharper (below 1) or softer (above 1) probabilities; predicted classes stay."""
    columns = list(predictions.filter(regex="^p_"))
    scaled = softmax(np.log(predictions[columns].to_numpy(dtype=float).clip(EPSILON)) / temperature, axis=1)
    return predictions.assign(**dict(zip(columns, scaled.T, strict=True)))


def fusion_weights(validations: list[pd.DataFrame]) -> np.ndarray:
    """(M,) weights of M models' log-probabilities, at least 0, that minimise the validation clips' log loss.

    A quadratic penalty of `FUSION_PENALTY` draws them towards equal ones, which few clips can't overrule. Their sum is
    free, and so calibrates as a temperature does. All tables are of the same clips.
    """
    logits, truth = _log_probabilities(validations)
    equal = np.full(len(validations), 1 / len(validations))

    def loss(weights: np.ndarray) -> float:
        scores = log_softmax(np.tensordot(weights, logits, axes=1), axis=1)
        return -scores[np.arange(len(truth)), truth].mean() + FUSION_PENALTY * ((weights - equal) ** 2).sum()

    return minimize(loss, equal, bounds=[(0, None)] * len(equal)).x


def fuse(tables: list[pd.DataFrame], weights: np.ndarray) -> pd.DataFrame:
    """The first table with the probabilities, and predictions, of a weighted sum of all tables' log-probabilities."""
    logits, _ = _log_probabilities(tables)
    classes, _ = class_probabilities(tables[0])
    fused = softmax(np.tensordot(weights, logits, axes=1), axis=1)
    columns = {f"p_{name}": column for name, column in zip(classes, fused.T, strict=True)}
    return tables[0].assign(predicted=np.array(classes)[fused.argmax(axis=1)], **columns)


def _log_probabilities(tables: list[pd.DataFrame]) -> tuple[np.ndarray, np.ndarray]:
    """(M, N, K) log-probabilities in the order of the first table's clips, and (N,) true classes."""
    order, (classes, _) = tables[0]["clip_path"], class_probabilities(tables[0])
    rows = [class_probabilities(table.set_index("clip_path").loc[order])[1] for table in tables]
    return np.log(np.clip(rows, EPSILON, None)), np.searchsorted(classes, tables[0]["label"].to_list())


def coverage_curve(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy when the least certain clips are set aside (selective prediction, Geifman & El-Yaniv 2017).

    One row per number of clips kept, the most confident first: coverage in (0, 1], confidence (the least that is kept)
    and accuracy of the kept. Clips of equal confidence count as kept in random order, each with their mean accuracy.
    """
    table = pd.DataFrame({"confidence": confidence(predictions), "accuracy": _correct(predictions)})
    table["accuracy"] = table.groupby("confidence")["accuracy"].transform("mean")
    table = table.sort_values("confidence", ascending=False, ignore_index=True)
    kept = np.arange(1, len(table) + 1)
    return pd.DataFrame({"coverage": kept / len(table), "confidence": table["confidence"],
                         "accuracy": table["accuracy"].cumsum() / kept})


def uncertain(predictions: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The wrong rows, the most confident mistake first; where none is wrong, the least certain rows: at most `count`.

    They have the column `probability`, that of the predicted class.
    """
    table = predictions.assign(probability=confidence(predictions)).sort_values("probability")
    wrong = table[table["label"] != table["predicted"]].iloc[::-1]
    return (table if wrong.empty else wrong).head(count)
