import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from xai_lib import statistics as s
from xai_lib.statistics import Estimate

LABELS = [0, 0, 1, 1]
SCORES = [0.1, 0.4, 0.35, 0.8]  # three of the four pairs are in the right order


def tied_sample(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 0, 1, 1, rng.integers(2, size=n - 4)]
    return labels, np.round(labels + rng.normal(size=n), 1)


def components_by_definition(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong 1988: psi(x, y) = 1, 1/2 or 0 over all pairs, averaged per positive and per negative."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    psi = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in negatives] for x in positives])
    return psi.mean(axis=1), psi.mean(axis=0)


# ------------------------------------------------------------------------------------------------ AUC and DeLong


def test_auc_by_hand():
    assert s.auc(LABELS, SCORES) == 0.75
    assert s.auc([0, 1], [1, 1]) == 0.5
    assert s.auc([0, 1, 1], [2, 2, 3]) == 0.75


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_sklearn_with_ties(seed):
    labels, scores = tied_sample(seed)
    assert s.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_delong_by_hand():
    # Components 1/2, 1 (positives) and 1, 1/2 (negatives): variance 0.125 / 2 + 0.125 / 2 = 0.125.
    # On the logit scale: log 3 +- 1.959964 * sqrt(0.125) / (0.75 * 0.25).
    estimate = s.auc_delong(LABELS, SCORES)
    assert estimate.value == 0.75
    assert (estimate.low, estimate.high) == (pytest.approx(0.069323, abs=1e-6), pytest.approx(0.991792, abs=1e-6))
    assert "logit" in estimate.method


@pytest.mark.parametrize("seed", range(5))
def test_delong_equals_its_definition(seed):
    labels, scores = tied_sample(seed)
    fast = s._components(labels == 1, scores)
    for got, expected in zip(fast, components_by_definition(labels, scores), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_delong_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    truth, labels = stats.norm.cdf(1 / math.sqrt(2)), np.repeat([0, 1], 40)
    estimates = [s.auc_delong(labels, labels + rng.normal(size=80)) for _ in range(300)]
    assert 0.91 <= np.mean([e.low <= truth <= e.high for e in estimates]) <= 0.985


def test_delong_says_where_it_has_no_interval():
    perfect = s.auc_delong(LABELS, [1, 2, 3, 4])
    assert (perfect.value, perfect.low, perfect.high) == (1.0, None, None) and "overlap" in perfect.method
    single = s.auc_delong([0, 0, 1], [1, 3, 2])
    assert (single.value, single.low) == (0.5, None) and "one case" in single.method


def test_delong_test_by_hand():
    # Gaps of the components: -1/2, 0 and 0, -1/2: mean -1/4, variance 0.125, z = 0.7071.
    assert s.delong_test(LABELS, SCORES, [0.1, 0.4, 0.8, 0.9]) == pytest.approx(0.479500, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_delong_test_equals_its_definition(seed):
    labels, a = tied_sample(seed)
    b = np.round(a + np.random.default_rng(seed).normal(size=a.size), 1)
    variance = 0.0
    for of_a, of_b in zip(components_by_definition(labels, a), components_by_definition(labels, b), strict=True):
        covariance = np.cov(of_a, of_b)
        variance += (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / of_a.size
    z = (roc_auc_score(labels, a) - roc_auc_score(labels, b)) / math.sqrt(variance)
    assert s.delong_test(labels, a, b) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-10)


def test_delong_test_without_variance():
    assert s.delong_test(LABELS, SCORES, np.multiply(SCORES, 10)) == 1.0
    assert math.isnan(s.delong_test(LABELS, [1, 2, 3, 4], [4, 3, 2, 1]))
    with pytest.raises(ValueError, match="two cases of each class"):
        s.delong_test([0, 0, 1], [1, 2, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], [], "labels: is empty"),
        ([1, 1], [0.1, 0.2], "labels: all 2 are 1, expected both classes"),
        ([0, 1], [0.1, math.nan], "scores: 1 of 2 values are NaN"),
        ([0, 1], [0.1, math.inf], "scores: 1 of 2"),
        ([0, 1], [0.1], "scores: 1 values for 2 labels"),
        ([0, 2], [0.1, 0.2], "labels: expected only 0"),
        ([[0, 1]], [[0.1, 0.2]], r"labels: has shape \(1, 2\)"),
    ],
)
@pytest.mark.parametrize("function", [s.auc, s.auc_delong, s.closest_to_corner])
def test_bad_labels_and_scores_are_named(function, labels, scores, message):
    with pytest.raises(ValueError, match=message):
        function(labels, scores)


def test_delong_test_names_the_second_score():
    with pytest.raises(ValueError, match="scores_b: 1 of 4"):
        s.delong_test(LABELS, SCORES, [0, 1, 2, math.nan])


# ------------------------------------------------------------------------------------------------ bootstrap


def test_bootstrap_draws_whole_patients():
    # Patient b has one row of 0, patient a three rows of 1: a draw of two gives bb, ab or aa.
    frame = pd.DataFrame({"patient_id": ["a", "b", "a", "a"], "value": [1.0, 0.0, 1.0, 1.0]})
    seen = []

    def mean(part: pd.DataFrame) -> float:
        seen.append((len(part), part["value"].mean()))
        return seen[-1][1]

    estimate = s.bootstrap(mean, frame, n=200)
    assert set(seen[1:]) == {(2, 0.0), (4, 0.75), (6, 1.0)}
    assert 0.35 < np.mean([size == 4 for size, _ in seen[1:]]) < 0.65
    assert (estimate.value, estimate.low, estimate.high) == (0.75, 0.0, 1.0)
    assert estimate.method == "bootstrap over 2 patient_id, 200 replicates"


def test_bootstrap_of_single_rows_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    frame = pd.DataFrame({"patient_id": np.arange(80), "value": values})
    ours = s.bootstrap(lambda f: f["value"].mean(), frame, n=2000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=0).confidence_interval
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.02), pytest.approx(theirs.high, abs=0.02))


def test_copies_of_a_row_do_not_narrow_the_interval():
    frame = pd.DataFrame({"patient_id": list("abcdefgh"), "value": [3.0, 1, 4, 1, 5, 9, 2, 6]})
    copies = pd.concat([frame] * 5).sort_values("patient_id", kind="stable")
    mean = lambda f: f["value"].mean()  # noqa: E731
    once, five = s.bootstrap(mean, frame, n=300), s.bootstrap(mean, copies, n=300)
    assert (five.low, five.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert s.bootstrap(mean, copies.assign(row=range(40)), by="row", n=300).high < once.high


def test_bootstrap_depends_on_the_seed_only():
    frame = pd.DataFrame({"patient_id": range(30), "value": np.random.default_rng(1).normal(size=30)})
    mean = lambda f: f["value"].mean()  # noqa: E731
    assert s.bootstrap(mean, frame, n=100, seed=3) == s.bootstrap(mean, frame, n=100, seed=3)
    assert s.bootstrap(mean, frame, n=100, seed=3) != s.bootstrap(mean, frame, n=100, seed=4)


def test_bootstrap_many_resamples_once_for_all():
    frame = pd.DataFrame({"patient_id": range(40), "a": np.random.default_rng(2).normal(size=40)})
    frame["b"] = 1 - frame["a"]
    many = s.bootstrap_many(lambda f: pd.Series({"a": f["a"].mean(), "b": f["b"].mean()}), frame)
    assert list(many) == ["a", "b"]
    assert many["a"].low == pytest.approx(1 - many["b"].high)
    assert many["a"] == s.bootstrap(lambda f: f["a"].mean(), frame)


def test_undefined_replicates_are_dropped_and_counted():
    frame = pd.DataFrame({"patient_id": range(5), "label": [0, 0, 0, 0, 1], "score": [1.0, 2, 3, 5, 4]})
    estimate = s.bootstrap(lambda f: s.auc(f["label"], f["score"]), frame, n=500)
    dropped = int(estimate.method.split(", ")[2].split()[0])
    assert 0.8**5 - 0.07 < dropped / 500 < 0.8**5 + 0.07  # replicates without the one positive
    assert estimate.value == 0.75 and estimate.low is not None
    rate = s.bootstrap(lambda f: f["score"][f["label"] == 1].mean(), frame, n=500)  # NaN instead of an error
    assert f"{dropped} dropped" in rate.method


def test_bootstrap_without_an_interval():
    one = pd.DataFrame({"patient_id": ["a", "a"], "value": [1.0, 2.0]})
    estimate = s.bootstrap(lambda f: f["value"].mean(), one, n=20)
    assert (estimate.value, estimate.low, estimate.high) == (1.5, None, None) and "no interval" in estimate.method
    nothing = s.bootstrap(lambda f: math.nan, one.assign(patient_id=["a", "b"]), n=20)
    assert math.isnan(nothing.value) and nothing.low is None


def test_bootstrap_errors():
    frame = pd.DataFrame({"patient_id": [1, 2], "value": [0.0, 1.0]})
    mean = lambda f: f["value"].mean()  # noqa: E731
    with pytest.raises(ValueError, match="by: the frame has no column 'mass'"):
        s.bootstrap(mean, frame, by="mass")
    with pytest.raises(ValueError, match="frame: is empty"):
        s.bootstrap(mean, frame.iloc[:0])
    with pytest.raises(ValueError, match="n: 0 replicates"):
        s.bootstrap(mean, frame, n=0)
    with pytest.raises(s.OneClassError):  # of the whole frame, not of a replicate
        s.bootstrap(lambda f: s.auc([1, 1], [0, 1]), frame)

    def fails_later(part: pd.DataFrame) -> float:
        if part["value"].nunique() == 1:
            raise ValueError("a fault of the statistic")
        return 0.0

    with pytest.raises(ValueError, match="a fault of the statistic"):
        s.bootstrap(fails_later, frame)


def test_a_thousand_replicates_of_the_auc_over_650_rows_take_less_than_3_seconds():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": rng.integers(2, size=650), "patient_id": np.arange(650) // 2})
    frame["score"] = frame["label"] + rng.normal(size=650)
    started = time.process_time()
    s.bootstrap(lambda f: s.auc(f["label"], f["score"]), frame)
    assert time.process_time() - started < 3


# ------------------------------------------------------------------------------------------------ operating point


def test_closest_to_corner_by_hand():
    # Thresholds 5, 4, 3, 2, 1 give (false, true) rates (0, 1/3), (0, 2/3), (1/2, 2/3), (1/2, 1), (1, 1).
    point = s.closest_to_corner([0, 1, 0, 1, 1], [1, 2, 3, 4, 5])
    assert point == s.OperatingPoint(4, pytest.approx(2 / 3), 1.0, 0.8)


def test_closest_to_corner_takes_the_highest_threshold_of_a_tie():
    assert s.closest_to_corner(LABELS, SCORES) == s.OperatingPoint(0.8, 0.5, 1.0, 0.75)  # (0, 1/2) and (1/2, 1)


def test_closest_to_corner_sees_points_inside_a_straight_piece():
    point = s.closest_to_corner([0, 1] * 4, [4, 4, 3, 3, 2, 2, 1, 1])  # the ROC is the diagonal, in four steps
    assert point == s.OperatingPoint(3, 0.5, 0.5, 0.5)


def test_closest_to_corner_of_a_useless_score_calls_all_negative():
    point = s.closest_to_corner([0, 1, 1], [7, 7, 7])
    assert point.threshold == math.inf and (point.sensitivity, point.specificity) == (0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_closest_to_corner_against_every_threshold(seed):
    labels, scores = tied_sample(seed)
    point = s.closest_to_corner(labels, scores)
    called = scores >= point.threshold
    assert point.sensitivity == pytest.approx(called[labels == 1].mean())
    assert point.specificity == pytest.approx((~called)[labels == 0].mean())
    assert point.accuracy == pytest.approx((called == labels).mean())
    distances = [
        math.hypot((scores >= t)[labels == 0].mean(), 1 - (scores >= t)[labels == 1].mean()) for t in np.unique(scores)
    ]
    assert math.hypot(1 - point.specificity, 1 - point.sensitivity) == pytest.approx(min(distances))


def test_mean_sd_by_hand():
    assert s.mean_sd([1, 2, 3]) == Estimate(2, 1, 3, "sd over 3 runs")
    assert s.mean_sd([4]) == Estimate(4, None, None, "1 run, no sd")
