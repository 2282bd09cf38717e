"""Tests of pairs: signs, ranks, folds, and cases that one of two methods gets right; Holm's correction of many.

Usage::

    p = paired_permutation(first, second, seed=0)            # a figure of each patient by two methods
    p = corrected_ttest(first, second, 1 / 4)                # a figure of each of five folds
    adjusted = holm([0.01, 0.04, 0.03])

References: Wilcoxon, Biometrics Bull. 1 (1945) 80; Pratt, J. Am. Stat. Assoc. 54 (1959) 655; Kerby, Compr. Psychol. 3
(2014) 1; Nadeau and Bengio, Machine Learning 52 (2003) 239; McNemar, Psychometrika 12 (1947) 153; Holm, Scand. J. Stat.
6 (1979) 65.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from xai_lib.config import numpy_generator
from xai_lib.statistics import finite_vector


def _differences(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Paired differences a - b, shape (n,)."""
    first, second = finite_vector(a, "a"), finite_vector(b, "b")
    if first.shape != second.shape:
        raise ValueError(f"b: {second.size} values for the {first.size} of a, expected pairs")
    return first - second


def paired_permutation(a: ArrayLike, b: ArrayLike, n: int = 10000, seed: int = 0) -> float:
    """Two-sided p that the mean of a - b, (k,) each, is zero, by flipping the signs of the pairs.

    Exact where all 2^k sign patterns are at most `n`; else `n` random ones, with the observed one counted in.

    Raises:
        ValueError: empty, NaN, or not the same number of values.
    """
    gaps = _differences(a, b)
    observed = abs(gaps.sum()) - 1e-12 * np.abs(gaps).sum()  # rounding must not turn a tie into a difference
    if gaps.size <= math.log2(n):
        patterns = np.arange(2**gaps.size)[:, None] >> np.arange(gaps.size) & 1
        return float((np.abs((2 * patterns - 1) @ gaps) >= observed).mean())
    rng = numpy_generator(seed, "permutation")
    reached = sum(abs((2 * rng.integers(2, size=gaps.size) - 1) @ gaps) >= observed for _ in range(n))
    return float((reached + 1) / (n + 1))


def wilcoxon(gaps: Iterable[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros by Pratt: they are ranked, then left out of both sums.

    1.0 where all differences are zero, NaN without one. Every image counts as independent, as in Major et al. 2020.
    """
    values = np.asarray(list(gaps))
    if not len(values):
        return math.nan
    return float(stats.wilcoxon(values, zero_method="pratt").pvalue) if values.any() else 1.0


def rank_biserial(gaps: Iterable[float]) -> float:
    """Matched-pairs rank-biserial correlation, the effect size of `wilcoxon` (Kerby 2014).

    ``(R+ - R-) / (R+ + R-)``, where R+ and R- are the sums of the ranks of ``|gap|`` over the positive and the negative
    differences, zeros ranked with them (Pratt). 1 where no difference is negative, 0 where all are zero, NaN without.
    """
    values = np.asarray(list(gaps))
    ranks = stats.rankdata(np.abs(values))
    above, below = ranks[values > 0].sum(), ranks[values < 0].sum()
    if not len(values):
        return math.nan
    return float((above - below) / (above + below)) if values.any() else 0.0


def corrected_ttest(a: ArrayLike, b: ArrayLike, test_over_train: float) -> float:
    """Two-sided p of Nadeau and Bengio's corrected paired t-test over folds.

    The training parts of folds overlap, so the differences are not independent and the plain test is too sure. The
    correction takes ``var * (1 / k + n_test / n_train)`` as the variance of their mean.

    Args:
        a: a figure of one method in each fold (k,).
        b: of the other.
        test_over_train: test cases over training cases of a fold, 1/4 for five folds; 0 gives the plain paired t-test.

    Returns:
        p; 1.0 where all pairs are equal, 0.0 where all differ by the same.

    Raises:
        ValueError: fewer than two pairs, NaN, not the same number of values, or a negative ratio.
    """
    gaps = _differences(a, b)
    if gaps.size < 2:
        raise ValueError("a: one value; a t-test needs two pairs")
    if not (math.isfinite(test_over_train) and test_over_train >= 0):
        raise ValueError(f"test_over_train: {test_over_train} is not a number of at least 0")
    mean, spread = gaps.mean(), gaps.std(ddof=1)
    if spread <= 1e-12 * np.abs(gaps).max():
        return 1.0 if mean == 0 else 0.0
    t = mean / (spread * math.sqrt(1 / gaps.size + test_over_train))
    return float(2 * stats.t.sf(abs(t), gaps.size - 1))


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test: of the cases that one method alone gets right, does each have half?

    Args:
        right_a: whether the first method is right, for each case (n,); True and False, or 1 and 0.
        right_b: the same for the second method.

    Returns:
        p; 1.0 where the two are right on the same cases.

    Raises:
        ValueError: empty, not the same number of values, or others than 0 and 1.
    """
    for name, values in (("right_a", right_a), ("right_b", right_b)):
        if not np.isin(finite_vector(values, name), (0, 1)).all():
            raise ValueError(f"{name}: expected only 0 (wrong) and 1 (right)")
    gaps = _differences(right_a, right_b)
    first, second = int((gaps > 0).sum()), int((gaps < 0).sum())
    return float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p values, in the order given; shape (m,).

    Raises:
        ValueError: empty, NaN, or a value outside [0, 1].
    """
    values = finite_vector(p, "p")
    if ((values < 0) | (values > 1)).any():
        raise ValueError("p: expected values between 0 and 1")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(values.size, 0, -1)  # smallest times m, next times m - 1, ...
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted
