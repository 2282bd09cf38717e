"""Numbers with their uncertainty: AUC, operating point, bootstrap over patients. Tests of pairs: `paired_tests`.

Usage::

    area = bootstrap(lambda f: auc(f["label"], f["score"]), frame, by="patient_id", seed=0)
    point = closest_to_corner(labels, scores)          # the paper's way to choose a threshold
    p = delong_test(labels, scores_a, scores_b)

Labels are 0 (benign, negative) or 1 (malignant, positive); a higher score means more likely positive.

References: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837; Sun and Xu, IEEE Signal Process. Lett. 21
(2014) 1389; Efron and Tibshirani, An Introduction to the Bootstrap (1993).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import roc_curve

from xai_lib.config import numpy_generator
from xai_lib.results import Estimate


class OneClassError(ValueError):
    """The labels hold one class only, so the statistic is not defined; the bootstrap drops such a replicate."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and what it gives; a case is called positive when its score >= `threshold`."""

    threshold: float
    sensitivity: float
    specificity: float
    accuracy: float


def finite_vector(values: ArrayLike, name: str) -> np.ndarray:
    """`values` as finite floats of shape (n,), n >= 1.

    Raises:
        ValueError: another shape, empty, NaN or infinite; the message starts with `name`.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"{name}: has shape {array.shape}, expected one dimension")
    if array.size == 0:
        raise ValueError(f"{name}: is empty")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    return array


def _labels_and_scores(labels: ArrayLike, scores: ArrayLike, name: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    """Return boolean labels and float scores, both of shape (n,), with both classes present."""
    truth = finite_vector(labels, "labels")
    values = finite_vector(scores, name)
    if truth.shape != values.shape:
        raise ValueError(f"{name}: {values.size} values for {truth.size} labels")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels: expected only 0 (benign) and 1 (malignant)")
    if truth.min() == truth.max():
        raise OneClassError(f"labels: all {truth.size} are {int(truth[0])}, expected both classes")
    return truth.astype(bool), values


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties counting one half.

    Computed from midranks (Mann-Whitney); equal to ``sklearn.metrics.roc_auc_score`` and much faster.

    Raises:
        OneClassError: one class only (a ValueError).
        ValueError: empty, NaN, or of different lengths.
    """
    truth, values = _labels_and_scores(labels, scores)
    positives = int(truth.sum())
    ranks = stats.rankdata(values)
    return float((ranks[truth].sum() / positives - (positives + 1) / 2) / (truth.size - positives))


def _components(truth: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components: for each positive, and for each negative, the share of pairs in right order.

    By midranks (Sun and Xu 2014, section III): the rank among all cases less the rank within the own class counts the
    cases of the other class that lie below. Returns shapes (positives,) and (negatives,).
    """
    ranks = stats.rankdata(values)
    below = ranks[truth] - stats.rankdata(values[truth])
    not_above = ranks[~truth] - stats.rankdata(values[~truth])
    return below / (~truth).sum(), 1 - not_above / truth.sum()


def auc_delong(labels: ArrayLike, scores: ArrayLike) -> Estimate:
    """AUC with DeLong's 95 % interval, made on the logit scale so that it stays inside (0, 1).

    Cases are taken as independent. Where a patient has several images the interval is too narrow: use `bootstrap`.
    There is no interval at an AUC of 0 or 1, nor with fewer than two cases of a class; `method` then says why.

    Raises:
        ValueError: as `auc`.
    """
    truth, values = _labels_and_scores(labels, scores)
    area = auc(labels, scores)
    if min(truth.sum(), (~truth).sum()) < 2:
        return Estimate(area, method="DeLong: no interval with one case of a class")
    if area in (0.0, 1.0):
        return Estimate(area, method="DeLong: no interval, the classes do not overlap")
    by_positive, by_negative = _components(truth, values)
    variance = by_positive.var(ddof=1) / by_positive.size + by_negative.var(ddof=1) / by_negative.size
    centre = math.log(area / (1 - area))
    reach = stats.norm.ppf(0.975) * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(-end)) for end in (centre - reach, centre + reach))
    return Estimate(area, low, high, f"DeLong, logit scale, {truth.size} cases")


def delong_test(labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> float:
    """Two-sided p of DeLong's test that two scores (n,) of the same cases have the same AUC.

    Returns 1.0 where the two order every pair alike, and NaN where the variance is zero but the areas differ.

    Raises:
        ValueError: as `auc`; the message names ``scores_a`` or ``scores_b``. Also with one case of a class.
    """
    truth, first = _labels_and_scores(labels, scores_a, "scores_a")
    _, second = _labels_and_scores(labels, scores_b, "scores_b")
    if min(truth.sum(), (~truth).sum()) < 2:
        raise ValueError("labels: DeLong's test needs two cases of each class")
    gaps = [a - b for a, b in zip(_components(truth, first), _components(truth, second), strict=True)]
    difference = gaps[0].mean()
    variance = sum(gap.var(ddof=1) / gap.size for gap in gaps)
    if variance < 1e-20:
        return 1.0 if abs(difference) < 1e-10 else math.nan
    return float(2 * stats.norm.sf(abs(difference) / math.sqrt(variance)))


def _resamples(groups: ArrayLike, n: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `n` arrays of row numbers, each made of as many whole groups as there are, drawn with replacement."""
    codes = pd.factorize(np.asarray(groups), use_na_sentinel=False)[0]
    rows = np.argsort(codes, kind="stable")  # rows of group 0, then of group 1, ...
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    rng = numpy_generator(seed, "bootstrap")
    for _ in range(n):
        drawn = rng.integers(counts.size, size=counts.size)
        sizes = counts[drawn]
        offsets = starts[drawn] - (np.cumsum(sizes) - sizes)
        yield rows[np.repeat(offsets, sizes) + np.arange(sizes.sum())]


def bootstrap_many(
    statistic: Callable[[pd.DataFrame], pd.Series],
    frame: pd.DataFrame,
    by: str = "patient_id",
    n: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """95 % percentile intervals of several statistics from one resampling of whole groups (patients).

    Args:
        statistic: gives named figures of a frame with the columns of `frame`; NaN, or an `OneClassError`, where one
            is not defined. It is called n + 1 times, so it should not group or merge.
        frame: one row per case.
        by: column that names the patient; all rows of a patient are drawn together.
        n: number of replicates.
        seed: of the resampling; frames with the same groups in the same order are resampled alike.

    Returns:
        An Estimate for each entry of the statistic. Undefined replicates are dropped, and counted in `method`. With
        one group only, or without a defined replicate, there is no interval.

    Raises:
        ValueError: `frame` is empty or lacks the column `by`, or n < 1; what `statistic` raises on the whole frame.
    """
    if by not in frame.columns:
        raise ValueError(f"by: the frame has no column {by!r}, only {', '.join(map(str, frame.columns))}")
    if len(frame) == 0:
        raise ValueError("frame: is empty")
    if n < 1:
        raise ValueError(f"n: {n} replicates, expected at least 1")
    whole = statistic(frame).astype(float)
    groups = frame[by].nunique(dropna=False)
    replicates = np.full((n, len(whole)), np.nan)
    for i, rows in enumerate(_resamples(frame[by], n, seed)):
        try:
            replicates[i] = statistic(frame.iloc[rows]).to_numpy(dtype=float)
        except OneClassError:
            continue
    made = f"bootstrap over {groups} {by}, {n} replicates"
    return {str(name): _percentiles(whole[name], replicates[:, k], groups, made) for k, name in enumerate(whole.index)}


def _percentiles(value: float, replicates: np.ndarray, groups: int, made: str) -> Estimate:
    """Estimate from the replicates of one statistic; NaN replicates are dropped and counted."""
    defined = replicates[~np.isnan(replicates)]
    if defined.size < replicates.size:
        made += f", {replicates.size - defined.size} dropped as undefined"
    if groups < 2 or defined.size == 0 or math.isnan(value):
        return Estimate(float(value), method=made + ", no interval")
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), made)


def bootstrap(
    statistic: Callable[[pd.DataFrame], float],
    frame: pd.DataFrame,
    by: str = "patient_id",
    n: int = 1000,
    seed: int = 0,
) -> Estimate:
    """95 % percentile interval of one statistic by resampling whole groups (patients); see `bootstrap_many`."""
    return bootstrap_many(lambda f: pd.Series({"value": statistic(f)}), frame, by, n, seed)["value"]


def closest_to_corner(labels: ArrayLike, scores: ArrayLike) -> OperatingPoint:
    """Threshold of the ROC point nearest to (0, 1), as in Byra 2022, Evaluations (after Fawcett 2006).

    Of points at the same distance the highest threshold is taken. The threshold is infinite where calling every case
    negative is nearest (scores that order the classes the wrong way).

    Raises:
        ValueError: as `auc`.
    """
    truth, values = _labels_and_scores(labels, scores)
    # Points on a straight piece are kept: the nearest one can lie inside a slanted piece of several tied scores.
    false_rate, true_rate, thresholds = roc_curve(truth, values, drop_intermediate=False)
    nearest = int(np.argmin(np.round(false_rate**2 + (1 - true_rate) ** 2, 12)))
    threshold = float(thresholds[nearest])
    accuracy = ((values >= threshold) == truth).mean()
    return OperatingPoint(threshold, float(true_rate[nearest]), float(1 - false_rate[nearest]), float(accuracy))


def mean_sd(values: ArrayLike) -> Estimate:
    """Mean over runs or folds, with mean - sd and mean + sd as `low` and `high` (not a 95 % interval).

    Raises:
        ValueError: empty or NaN.
    """
    runs = finite_vector(values, "values")
    mean = float(runs.mean())
    if runs.size < 2:
        return Estimate(mean, method="1 run, no sd")
    spread = float(runs.std(ddof=1))
    return Estimate(mean, mean - spread, mean + spread, f"sd over {runs.size} runs")


def exact_share(share: Estimate, patients: int) -> Estimate:
    """A share of 0 or 1 with the exact 95 % interval for `patients` (Clopper and Pearson, Biometrika 26, 404).

    The bootstrap has none to give there, because every replicate is equal. A patient counts once, however many images:
    the share of images that are hit is at most the share of patients with a hit. Other estimates are returned as given.
    """
    if share.value not in (0.0, 1.0) or share.low is None or share.low != share.high:
        return share
    reach = 1 - 0.025 ** (1 / patients)
    low, high = (0.0, reach) if share.value == 0 else (1 - reach, 1.0)
    return Estimate(share.value, low, high, f"exact binomial over {patients} patients")
