"""Statistics of prediction tables against independent implementations, and the properties they promise."""

import json
import time
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve

import metrics

CLASSES = ("A", "B", "C")


def table(seed=0, n=60, classes=CLASSES, groups=4, skill=1.5, scale=1.0):
    """Random clips; `skill` is what the true class's logit is raised by, `scale` multiplies the logits."""
    rng = np.random.default_rng(seed)
    label = rng.integers(len(classes), size=n)
    logits = rng.normal(size=(n, len(classes)))
    logits[np.arange(n), label] += skill
    p = torch.from_numpy(scale * logits).softmax(dim=1).numpy()
    names = np.array(classes)
    rows = pd.DataFrame({"clip_path": [f"/{i:04d}.avi" for i in range(n)],
                         "group": [f"g{g:02d}" for g in rng.integers(1, groups + 1, n)],
                         "label": names[label], "predicted": names[p.argmax(1)]})
    return rows.join(pd.DataFrame(p, columns=[f"p_{c}" for c in classes]))


def rival(t, seed):
    """Another model's predictions of the same clips, the rows in another order."""
    other = table(seed, len(t), CLASSES, skill=1.0)
    rng = np.random.default_rng(seed)
    right = rng.random(len(t)) < 0.6
    other[["group", "label"]] = t[["group", "label"]]
    other["predicted"] = np.where(right, t["label"], "A")
    return other.sample(frac=1, random_state=seed)


def with_hits(sizes, hits, group="g01"):
    """A table of one class in which `hits` of `sizes` clips are correct."""
    return pd.DataFrame({"clip_path": [f"/{i}.avi" for i in range(sizes)], "group": group, "label": "A",
                         "predicted": ["A"] * hits + ["B"] * (sizes - hits)})


tables = st.builds(table, seed=st.integers(0, 10**6), n=st.integers(1, 40),
                   classes=st.sampled_from([("A", "B"), CLASSES, ("10", "9", "100"), ("p_x", "clip", "ü b")]),
                   groups=st.integers(1, 5), skill=st.sampled_from([-1.0, 0.0, 2.0, 50.0]),
                   scale=st.sampled_from([0.1, 1.0, 30.0]))
few = settings(max_examples=25)


# ---------------------------------------------------------------- one model

@given(tables)
@few
def test_per_class_equals_scikit_learn_with_its_wilson_interval(t):
    classes = sorted({*t["label"], *t["predicted"], "absent"})
    ours = metrics.per_class(t, classes)
    theirs = sk.precision_recall_fscore_support(t["label"], t["predicted"], labels=classes, zero_division=0)
    assert np.array_equal(ours[["precision", "recall", "f1", "support"]].T.to_numpy(), np.stack(theirs))
    assert ours.loc["absent", ["recall_low", "recall_high"]].tolist() == [0, 1]
    for name, row in ours[ours["support"] > 0].iterrows():
        hits = int(((t["label"] == name) & (t["predicted"] == name)).sum())
        expected = binomtest(hits, int(row["support"])).proportion_ci(method="wilson")
        assert (row["recall_low"], row["recall_high"]) == pytest.approx(tuple(expected), abs=1e-12)


@given(st.integers(1, 5000), st.floats(0, 1))
@example(7, 0.0)  # rounding would leave the ends a hair above 0
@example(10, 1.0)  # and below 1
@few
def test_accuracy_interval_is_wilsons(n, share):
    hits = round(share * n)
    ours = metrics.accuracy_interval(with_hits(n, hits))
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert ours == pytest.approx((hits / n, expected.low, expected.high), abs=1e-12)
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1
    if hits == n:
        assert ours.low < 1 and ours.high == 1


def test_by_group_counts_pairs_of_label_and_group():
    t = table(n=80)
    groups = metrics.by_group(t)
    assert groups["clips"].sum() == len(t) and len(groups) == len(set(zip(t["label"], t["group"], strict=False)))
    assert groups["correct"].sum() / len(t) == pytest.approx(sk.accuracy_score(t["label"], t["predicted"]))
    for row in groups.itertuples():
        own = t[(t["label"] == row.label) & (t["group"] == row.group)]
        right = sum(own["label"] == own["predicted"])
        assert (row.clips, row.correct, row.accuracy) == (len(own), right, right / len(own))
    pd.testing.assert_frame_equal(groups, metrics.by_group(t.sample(frac=1, random_state=1)))


# ---------------------------------------------------------------- intervals by groups

def naive_resamples(t, repeats, seed):
    """The same draws, group by group and row by row."""
    rng = np.random.default_rng(seed)
    groups = {label: [g for _, g in own.groupby("group")] for label, own in t.groupby("label")}
    drawn = {label: rng.integers(len(own), size=(repeats, len(own))) for label, own in groups.items()}
    for i in range(repeats):
        yield pd.concat([groups[label][g] for label in groups for g in drawn[label][i]])


@pytest.mark.parametrize("classes", [CLASSES, ("10", "9", "absent")])
def test_group_bootstrap_equals_a_naive_loop(classes):
    t = table(7, 50, classes, groups=5)
    t.loc[t["label"] == "absent", ["label", "predicted"]] = "10"  # the class is predicted, and never true
    seen = sorted({*t["label"], *t["predicted"]})
    samples = list(naive_resamples(t, 60, seed=3))
    scores = {"accuracy": [sk.accuracy_score(s["label"], s["predicted"]) for s in samples],
              "f1": [sk.f1_score(s["label"], s["predicted"], labels=seen, average="macro", zero_division=0)
                     for s in samples]}
    for statistic, values in scores.items():
        ours = metrics.group_bootstrap(t, statistic, repeats=60, seed=3)
        assert ours.estimate == pytest.approx(metrics.classification_metrics(t)[statistic])
        assert ours[1:] == pytest.approx(np.percentile(values, [2.5, 97.5]))


def test_difference_equals_a_naive_loop():
    t = table(8, 50, groups=5)
    other = rival(t, 9)
    both = t.merge(other[["clip_path", "predicted"]], on="clip_path", suffixes=("", "_other"))
    values = [(s["label"] == s["predicted"]).mean() - (s["label"] == s["predicted_other"]).mean()
              for s in naive_resamples(both, 60, seed=4)]
    ours = metrics.compare(t, other, repeats=60, seed=4)
    assert ours[1:3] == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert ours.difference == pytest.approx(sk.accuracy_score(t["label"], t["predicted"])
                                            - sk.accuracy_score(other["label"], other["predicted"]))


@given(tables, st.sampled_from(["accuracy", "f1"]))
@few
def test_group_bootstrap_stays_in_range_whatever_the_order(t, statistic):
    ours = metrics.group_bootstrap(t, statistic, repeats=100)
    assert 0 <= ours.low <= ours.high <= 1 and 0 <= ours.estimate <= 1
    assert ours == metrics.group_bootstrap(t.sample(frac=1, random_state=0), statistic, repeats=100)
    if (t["label"] == t["predicted"]).all():
        assert ours == (1, 1, 1)
    single = metrics.group_bootstrap(t.assign(group="g01"), statistic, repeats=100)  # nothing varies
    assert single.low == single.high == pytest.approx(single.estimate)


def test_bootstrap_holds_the_truth_more_often_than_wilson_where_clips_of_a_group_are_alike():
    rng, held = np.random.default_rng(0), np.zeros(2)
    for seed in range(120):
        groups = pd.MultiIndex.from_product([CLASSES, [f"g{i}" for i in range(7)]], names=["label", "group"])
        right = rng.random((len(groups), 5)) < rng.beta(0.6, 0.4, (len(groups), 1))  # truth: 0.6
        t = groups.repeat(5).to_frame(index=False)
        t["predicted"] = np.where(right.ravel(), t["label"], "wrong")
        intervals = metrics.accuracy_interval(t), metrics.group_bootstrap(t, repeats=300, seed=seed)
        held += [interval.low <= 0.6 <= interval.high for interval in intervals]
    wilson, clustered = held / 120
    assert clustered > 0.85 > 0.8 > wilson


def test_two_thousand_resamples_of_a_large_test_take_less_than_a_second():
    t = table(0, 4000, groups=7)
    started = time.process_time()
    accuracy = metrics.group_bootstrap(t)
    assert accuracy.low < accuracy.estimate < accuracy.high and time.process_time() - started < 1


# ---------------------------------------------------------------- two models

@given(st.integers(0, 10**6), st.integers(1, 60))
@few
def test_mcnemar_is_the_binomial_test_of_the_discordant_clips(seed, n):
    t = table(seed, n)
    other = rival(t, seed + 1)
    ours, mirrored = metrics.compare(t, other, 50), metrics.compare(other, t, 50)
    one, two = (x.set_index("clip_path").sort_index().eval("label == predicted") for x in (t, other))
    assert (ours.b, ours.c) == ((one & ~two).sum(), (~one & two).sum())
    discordant = ours.b + ours.c
    expected = binomtest(ours.b, discordant).pvalue if discordant else 1.0
    assert ours.p_value == pytest.approx(expected)
    assert mirrored[3:] == (ours.c, ours.b, ours.p_value)
    assert -1 <= ours.low <= ours.high <= 1
    assert mirrored[:3] == pytest.approx((-ours.difference, -ours.high, -ours.low))
    assert ours.difference == pytest.approx((ours.b - ours.c) / n)


def test_the_exact_p_value_by_hand():
    t, other = with_hits(12, 9), with_hits(12, 2)
    tail = Fraction(1, 2**7)  # 7 clips, all of them the first model's
    assert metrics.compare(t, other, 10)[3:] == (7, 0, float(2 * tail))
    assert metrics.compare(t, other.assign(predicted=["B"] * 8 + ["A"] * 4), 10)[3:] == (
        8, 3, pytest.approx(2 * sum(comb(11, k) for k in range(4)) / 2**11))


def test_tables_that_do_not_belong_together_are_refused():
    t = table()
    for other, message in ((t.iloc[1:], "different clips \\(1 in one only\\)"),
                           (t.assign(clip_path=t["clip_path"] + "x"), "clips \\(120 in one only\\)"),
                           (t.assign(label=["other", *t["label"][1:]]), "1 of 60 clips have other labels"),
                           (pd.concat([t, t.iloc[:1]]), "twice")):
        with pytest.raises(ValueError, match=message) as error:
            metrics.compare(t, other)
        assert "\n" not in str(error.value)
        with pytest.raises(ValueError, match=f"first and second: .*{message}"):
            metrics.pairwise({"first": t, "second": other})


def test_pairwise_compares_all_pairs_and_adjusts_after_holm():
    t = table(1, 80)
    models = {"one": t, "two": rival(t, 2), "three": rival(t, 3), "four": t.assign(predicted="A")}
    pairs = metrics.pairwise(models, repeats=200, seed=5)
    assert pairs["first"].tolist() == ["one"] * 3 + ["two"] * 2 + ["three"]
    assert pairs["second"].tolist() == ["two", "three", "four", "three", "four", "four"]
    for row in pairs.itertuples():
        its = row.difference, row.low, row.high, row.b, row.c, row.p_value
        assert its == metrics.compare(models[row.first], models[row.second], 200, 5)
    order, running = pairs["p_value"].sort_values().index, 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(pairs) - rank) * pairs.loc[index, "p_value"]))
        assert pairs.loc[index, "p_holm"] == pytest.approx(running)
    with pytest.raises(ValueError, match="two models at least, not 1"):
        metrics.pairwise({"one": t})


def pair(b, c, clips=40, p_holm=None, low=None, high=None, first="M", second="N"):
    p = binomtest(b, b + c).pvalue if b + c else 1.0
    difference = (b - c) / clips
    return pd.DataFrame([{"first": first, "second": second, "clips": clips, "difference": difference,
                          "low": difference - 0.01 if low is None else low,
                          "high": difference + 0.01 if high is None else high,
                          "b": b, "c": c, "p_value": p, "p_holm": p if p_holm is None else p_holm}])


@pytest.mark.parametrize("row, said", [
    (pair(0, 0, 1),
     "Of 1 test video, none is right with only one of M and N: the test set can't tell them apart."),
    (pair(1, 0, 1),
     "Of 1 test video, 1 is right with M only and none with N only: a difference of 100.0 percentage points "
     "(95% interval 99.0 to 101.0; exact McNemar p = 1). The test set does not resolve it: 1 such video "
     "can't give a p below 1."),
    (pair(3, 2), "5 such videos can't give a p below 0.062."),
    (pair(10, 1),
     "Of 40 test videos, 10 are right with M only and 1 with N only: a difference of 22.5 percentage points "
     "(95% interval 21.5 to 23.5; exact McNemar p = 0.012). The test set resolves it: M is more accurate."),
    (pair(1, 10),
     "10 are right with N only and 1 with M only: a difference of 22.5 percentage points (95% interval 21.5 "
     "to 23.5; exact McNemar p = 0.012). The test set resolves it: N is more accurate."),
    (pair(10, 6, low=0.02), "The test set does not resolve it."),
    (pair(10, 1, low=-0.1), "does not resolve it: with whole groups resampled, the interval reaches zero."),
    (pair(0, 40, high=0.0),
     "percentage points (95% interval 0.0 to 101.0; exact McNemar p < 0.001). The test set does not resolve "
     "it: with whole groups resampled, the interval reaches zero."),
    (pair(1, 0, low=0.025, high=0.025),
     "points (no interval, since resampling whole groups never changes it; exact McNemar p = 1). The test set "
     "does not resolve it: 1 such video can't give a p below 1."),
])
def test_reading_says_what_the_numbers_allow(row, said):
    assert metrics.pairwise_reading(row).endswith(said)


def test_reading_of_several_pairs_takes_the_adjusted_p():
    several = pd.concat([pair(10, 1, p_holm=0.06), pair(12, 0, p_holm=0.001, first="K")])
    first, second = metrics.pairwise_reading(several).splitlines()
    assert first.endswith("p = 0.012, p = 0.06 after Holm over 2 comparisons). The test set does not resolve "
                          "it among 2 comparisons.")
    assert second.endswith("K is more accurate.")


def test_reading_takes_pairwise_as_it_is():
    t = table(1, 80, skill=6)
    said = metrics.pairwise_reading(metrics.pairwise({"2D-CNN": t.assign(predicted="A"), "3D-CNN": t}))
    assert said.startswith("Of 80 test videos, ") and said.endswith("resolves it: 3D-CNN is more accurate.")


# ---------------------------------------------------------------- calibration

def one_hot(t):
    return np.stack([t["label"] == c.removeprefix("p_") for c in t.filter(regex="^p_")], axis=1).astype(float)


@given(tables)
@few
def test_scores_equal_their_formulas(t):
    p, y = t.filter(regex="^p_").to_numpy(), one_hot(t)
    p = p / p.sum(axis=1, keepdims=True)
    assert metrics.brier(t) == pytest.approx(((p - y) ** 2).sum(axis=1).mean())
    eps = np.finfo(float).eps
    log_p, target = torch.from_numpy(np.clip(p, eps, 1)).log(), torch.from_numpy(y.argmax(1))
    expected = torch.nn.functional.nll_loss(log_p, target)
    assert metrics.negative_log_likelihood(t) == pytest.approx(expected.item(), abs=1e-12)
    np.testing.assert_allclose(metrics.confidence(t), p.max(axis=1), rtol=1e-12)
    if p.shape[1] == 2:
        assert metrics.brier(t) == pytest.approx(2 * sk.brier_score_loss(y[:, 1], p[:, 1]))


@given(tables, st.integers(1, 20))
@few
def test_reliability_equals_scikit_learns_curve(t, bins):
    diagram = metrics.reliability(t, bins)
    right = (t["label"] == t["predicted"]).to_numpy()
    accuracy, confidence = calibration_curve(right, metrics.confidence(t), n_bins=bins)
    filled = diagram[diagram["clips"] > 0]
    assert filled["accuracy"].to_numpy() == pytest.approx(accuracy)
    assert filled["confidence"].to_numpy() == pytest.approx(confidence)
    assert len(diagram) == bins and diagram["clips"].sum() == len(t)
    assert diagram.loc[diagram["clips"] == 0, ["confidence", "accuracy"]].isna().all(axis=None)
    error = metrics.expected_calibration_error(t, bins)
    weights = filled["clips"].to_numpy() / len(t)
    assert error == pytest.approx((weights * np.abs(accuracy - confidence)).sum()) and 0 <= error <= 1
    assert error == pytest.approx(metrics.expected_calibration_error(t.sample(frac=1, random_state=0), bins))


def test_bins_are_closed_above():
    t = pd.DataFrame({"clip_path": list("abcd"), "group": "g01", "label": "A", "predicted": list("AABB"),
                      "p_A": [0.5, 1.0, 0.5, 1.0], "p_B": [0.5, 0.0, 0.5, 0.0]})
    diagram = metrics.reliability(t, 2)
    assert diagram["clips"].tolist() == [3, 1]  # 0.5, 0.5 and 0 lie in (0, 0.5]
    assert diagram["accuracy"].tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_equals_torchs(scale):
    t = table(11, 200, skill=1.5, scale=scale)
    logits = torch.tensor(t.filter(regex="^p_").to_numpy()).log()
    target = torch.from_numpy((one_hot(t) * 200 + 1) / (200 + 3))  # one more clip of each answer
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], lr=0.5, max_iter=200, tolerance_change=1e-14, tolerance_grad=1e-10)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / log_t.exp(), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = metrics.fit_temperature(t)
    assert fitted == pytest.approx(log_t.exp().item(), rel=1e-4)
    after = metrics.apply_temperature(t, fitted)
    assert metrics.negative_log_likelihood(after) <= metrics.negative_log_likelihood(t)
    assert metrics.fit_temperature(after) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("clips", [4, 18, 400])
@pytest.mark.parametrize("confidence", [0.7, 0.97])
def test_temperature_of_clips_that_are_all_correct_is_limited_by_their_number(clips, confidence):
    p = np.where(np.arange(clips) % 2, confidence, 1 - confidence)
    t = pd.DataFrame({"clip_path": [f"{i}" for i in range(clips)], "group": "g01",
                      "label": np.where(p > 0.5, "A", "B"), "predicted": np.where(p > 0.5, "A", "B"),
                      "p_A": p, "p_B": 1 - p})
    after = metrics.apply_temperature(t, metrics.fit_temperature(t))
    assert metrics.confidence(after) == pytest.approx(np.full(clips, (clips + 1) / (clips + 2)), abs=1e-4)
    wrong = t.assign(predicted=t["label"].map({"A": "B", "B": "A"}), p_A=t["p_B"], p_B=t["p_A"])
    assert metrics.fit_temperature(wrong) == metrics.TEMPERATURE_BOUNDS[1]


@given(tables, st.floats(*metrics.TEMPERATURE_BOUNDS))
@few
def test_applied_temperature_keeps_the_tables_form_and_answers(t, temperature):
    after = metrics.apply_temperature(t, temperature)
    columns = list(t.filter(regex="^p_"))
    pd.testing.assert_frame_equal(after.drop(columns=columns), t.drop(columns=columns))
    assert list(after.columns) == list(t.columns) and (after.dtypes == t.dtypes).all()
    p = after[columns].to_numpy()
    assert np.isfinite(p).all() and p.sum(axis=1) == pytest.approx(np.ones(len(t)))
    assert np.array_equal(p[np.arange(len(p)), t[columns].to_numpy().argmax(axis=1)], p.max(axis=1))
    unchanged = metrics.apply_temperature(t, 1.0)
    assert unchanged[columns].to_numpy() == pytest.approx(t[columns].to_numpy(), abs=1e-14)


# ---------------------------------------------------------------- selective prediction

@given(tables)
@few
def test_coverage_curve_equals_thresholds(t):
    curve, confidence = metrics.coverage_curve(t), metrics.confidence(t)
    right = (t["label"] == t["predicted"]).to_numpy()
    for threshold in set(confidence):  # equally confident clips are kept together
        kept = confidence >= threshold
        row = curve[curve["coverage"] == kept.sum() / len(t)]
        assert row["confidence"].item() == threshold
        assert row["accuracy"].item() == pytest.approx(right[kept].mean())
    assert curve["coverage"].iloc[-1] == 1 and curve["accuracy"].iloc[-1] == pytest.approx(right.mean())
    assert curve["accuracy"].between(0, 1 + 1e-12).all()
    pd.testing.assert_frame_equal(curve, metrics.coverage_curve(t.sample(frac=1, random_state=0)))


def test_coverage_of_equal_confidences_is_that_of_random_orders():
    t = table(3, 30).assign(p_A=0.4, p_B=0.4, p_C=0.2, predicted="A")
    wrong, rng = (t["label"] != "A").to_numpy(), np.random.default_rng(0)
    areas = [(rng.permutation(wrong).cumsum() / np.arange(1, 31)).mean() for _ in range(4000)]
    assert np.mean(areas) == pytest.approx(wrong.mean(), abs=0.01)
    assert 1 - metrics.coverage_curve(t)["accuracy"].mean() == pytest.approx(wrong.mean())
    sure = t.assign(p_A=np.where(wrong, 0.4, 0.9), p_B=np.where(wrong, 0.4, 0.1), p_C=0.2 * wrong)
    risks = [max(0, kept - (~wrong).sum()) / kept for kept in range(1, 31)]
    assert 1 - metrics.coverage_curve(sure)["accuracy"].mean() == pytest.approx(np.mean(risks))


# ---------------------------------------------------------------- tables at the edge

def test_one_clip():
    t = table(0, 1, skill=50)
    assert metrics.accuracy_interval(t)[::2] == (1, 1) and metrics.group_bootstrap(t, "f1") == (1, 1, 1)
    assert metrics.coverage_curve(t)["coverage"].tolist() == [1]
    assert metrics.expected_calibration_error(t) == pytest.approx(1 - metrics.confidence(t)[0])
    pairs = metrics.pairwise({"a": t, "b": t})
    assert pairs[["b", "c", "p_value", "p_holm"]].values.tolist() == [[0, 0, 1, 1]]


def test_names_that_look_like_numbers_stay_text(tmp_path):
    t = table(2, 40, ("10", "9", "100"))
    renamed = t.replace({"10": "x", "9": "y", "100": "z"})
    renamed = renamed.rename(columns={"p_10": "p_x", "p_9": "p_y", "p_100": "p_z"})
    for score in (metrics.brier, metrics.negative_log_likelihood, metrics.expected_calibration_error,
                  metrics.fit_temperature):
        assert score(t) == pytest.approx(score(renamed))
    t.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ValueError, match=r"no probabilities of 10, 100, 9 .*names as text"):
        metrics.brier(pd.read_csv(tmp_path / "p.csv"))


@pytest.mark.parametrize("function", [
    metrics.accuracy_interval, metrics.group_bootstrap, metrics.by_group, metrics.confidence,
    metrics.reliability, metrics.brier, metrics.negative_log_likelihood, metrics.fit_temperature,
    metrics.coverage_curve])
def test_an_empty_table_is_refused(function):
    with pytest.raises(ValueError, match="holds no clips"):
        function(table().iloc[:0])


def test_bad_tables_and_names_are_refused():
    with pytest.raises(ValueError, match="unknown statistic 'recall': accuracy or f1"):
        metrics.group_bootstrap(table(), "recall")
    for bad in (2.0, np.nan):
        with pytest.raises(ValueError, match="add up to one"):
            metrics.negative_log_likelihood(table().assign(p_A=bad))
    with pytest.raises(ValueError, match="no probabilities of B"):
        metrics.confidence(table().drop(columns="p_B"))


def test_results_are_plain_in_json():
    t = table()
    kept = json.loads(json.dumps({
        "interval": metrics.group_bootstrap(t, repeats=50)._asdict(), "test": metrics.compare(t, t)._asdict(),
        "temperature": metrics.fit_temperature(t), "brier": metrics.brier(t),
        "nll": metrics.negative_log_likelihood(t), "wilson": metrics.accuracy_interval(t)}))
    assert kept["test"] == {"difference": 0, "low": 0, "high": 0, "b": 0, "c": 0, "p_value": 1}
    assert len(kept["wilson"]) == 3


def test_only_libraries_are_imported():
    modules = {path.stem for path in Path(metrics.__file__).parent.glob("*.py")}
    imported = {line.split()[1].split(".")[0] for line in Path(metrics.__file__).read_text().splitlines()
                if line.startswith(("import ", "from "))}
    assert not modules & imported


def test_uncertain_prefers_confident_mistakes():
    t = table(skill=0.0)
    chosen = metrics.uncertain(t, 4)
    assert (chosen.label != chosen.predicted).all() and chosen.probability.is_monotonic_decreasing
    right = t[t.label == t.predicted]
    chosen = metrics.uncertain(right, 4)
    assert chosen.probability.is_monotonic_increasing
    assert chosen.probability.iloc[0] == right.filter(regex="^p_").max(axis=1).min()


# ---------------------------------------------------------------- many classes

def many_classes(classes: int = 20, clips: int = 6) -> tuple[list[str], pd.DataFrame]:
    """Predictions that are right, but for class c00, taken for c01 four times, and c02, taken for c03 once."""
    names = [f"c{number:02d}" for number in range(classes)]
    rng, rows = np.random.default_rng(0), []
    for label in names:
        for clip in range(clips):
            predicted = "c01" if label == "c00" and clip < 4 else "c03" if label == "c02" and clip == 0 else label
            chances = rng.uniform(0, 0.01, classes)
            chances[names.index(predicted)] = 2.0
            chances[names.index(label)] += 0.5
            rows.append({"clip_path": f"/{label}/{clip}", "group": str(clip), "label": label, "predicted": predicted,
                         **{f"p_{name}": its for name, its in zip(names, chances / chances.sum(), strict=True)}})
    return names, pd.DataFrame(rows)


def test_the_first_answers_count_and_the_most_confused_pairs_are_named():
    names, table = many_classes()
    assert metrics.classification_metrics(table)["accuracy"] == pytest.approx(1 - 5 / 120)
    assert metrics.top_accuracy(table, 1) == pytest.approx(1 - 5 / 120)
    assert metrics.top_accuracy(table, 2) == 1
    confused = metrics.most_confused(table)
    assert confused[["label", "predicted", "videos"]].to_numpy().tolist() == [["c00", "c01", 4], ["c02", "c03", 1]]
    assert confused["share"].tolist() == pytest.approx([4 / 6, 1 / 6])
    assert len(metrics.most_confused(table, 1)) == 1
    assert metrics.most_confused(table[table["label"] == table["predicted"]]).empty
    hardest = metrics.hardest_classes(table, names)
    assert len(hardest) == metrics.MANY and hardest[:2] == ["c00", "c02"]
    assert metrics.hardest_classes(table, names[:4]) == names[:4]


def test_models_of_many_classes_are_told_with_their_top_5_accuracy():
    _, table = many_classes()
    models = pd.DataFrame({"accuracy": [0.9, 0.5]}, index=["ours", "another"])
    told = metrics.with_top(models, {"ours": table}, "accuracy")
    assert told.columns.tolist() == ["accuracy", "top-5"] and told["top-5"].tolist() == ["1.000", "–"]
    assert metrics.with_top(models, {"ours": many_classes(4)[1]}, "accuracy").equals(models)
