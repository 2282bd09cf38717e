import math

import numpy as np
import pytest
from scipy import stats

from xai_lib import paired_tests as p


def test_permutation_by_hand():
    assert p.paired_permutation([1, 2, 3], [0, 0, 0]) == 2 / 8  # only +++ and --- reach a sum of 6
    assert p.paired_permutation([1, 2, 3], [0, 0, 6]) == 1.0  # the sum is 0
    assert (
        p.paired_permutation([0.1, 0.2, -0.1], [0, 0, 0]) == 6 / 8
    )  # sums 0.4, 0.2 (4 times), 0; rounding must not count


def test_permutation_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.35, 1, 40), rng.normal(size=40)
    difference = lambda x, y: np.mean(x - y)  # noqa: E731
    few = stats.permutation_test((a[:8], b[:8]), difference, permutation_type="samples", n_resamples=math.inf)
    assert p.paired_permutation(a[:8], b[:8]) == pytest.approx(few.pvalue)
    many = stats.permutation_test((a, b), difference, permutation_type="samples", n_resamples=5000, rng=0)
    assert p.paired_permutation(a, b) == pytest.approx(many.pvalue, abs=0.03)


def test_permutation_is_never_zero_and_repeats():
    a = np.full(30, 1.0)
    assert p.paired_permutation(a, 0 * a, n=99) == 1 / 100
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 30))
    assert p.paired_permutation(a, b, n=500, seed=1) == p.paired_permutation(a, b, n=500, seed=1)


def test_wilcoxon_takes_zeros_by_pratt():
    gaps = [0.0, 0.0, 1.0, 2.0, -3.0, 4.0, 5.0, 6.0]
    assert p.wilcoxon(gaps) == stats.wilcoxon(gaps, zero_method="pratt").pvalue
    assert p.wilcoxon(gaps) != pytest.approx(stats.wilcoxon(gaps).pvalue)  # which drops them
    assert p.wilcoxon([0.0, 0.0]) == 1.0 and math.isnan(p.wilcoxon([]))
    assert p.wilcoxon([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 2**5)  # exact


def test_rank_biserial_by_hand():
    # |gaps| 1 2 3: ranks 1 2 3, the 2 is negative
    assert p.rank_biserial([1.0, -2.0, 3.0]) == pytest.approx((4 - 2) / 6)
    # zeros take ranks 1.5 1.5, so 1 and -2 have 3 and 4
    assert p.rank_biserial([0.0, 0.0, 1.0, -2.0]) == pytest.approx(-1 / 7)
    assert (p.rank_biserial([1.0, 5.0]), p.rank_biserial([0.0])) == (1.0, 0.0)
    assert math.isnan(p.rank_biserial([]))


def test_permutation_names_bad_input():
    with pytest.raises(ValueError, match="b: 1 values for the 2 of a"):
        p.paired_permutation([1, 2], [1])
    with pytest.raises(ValueError, match="a: is empty"):
        p.paired_permutation([], [])
    with pytest.raises(ValueError, match="b: 1 of 2 values are NaN"):
        p.paired_permutation([1, 2], [1, math.nan])


def test_corrected_ttest_by_hand():
    a, b = [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]  # mean 3, variance 2.5
    assert p.corrected_ttest(a, b, 0) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    t = 3 / math.sqrt(2.5 * (1 / 5 + 1 / 4))
    assert t == pytest.approx(math.sqrt(8))
    assert p.corrected_ttest(a, b, 1 / 4) == pytest.approx(2 * stats.t.sf(t, 4)) == p.corrected_ttest(b, a, 1 / 4)
    assert p.corrected_ttest(a, a, 1 / 4) == 1.0
    assert p.corrected_ttest([2, 3.1], [1, 2.1], 1 / 4) == 0.0


def test_corrected_ttest_names_bad_input():
    with pytest.raises(ValueError, match="a: one value"):
        p.corrected_ttest([1], [2], 0.25)
    for ratio in (-0.1, math.nan):
        with pytest.raises(ValueError, match="test_over_train: "):
            p.corrected_ttest([1, 2], [2, 4], ratio)


def test_mcnemar_by_hand():
    a, b = [1, 1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 0]  # five cases to one
    assert p.mcnemar(a, b) == p.mcnemar(b, a) == pytest.approx(2 * (1 + 6) / 2**6)
    assert p.mcnemar(np.array(a, bool), b) == pytest.approx(14 / 64)
    assert p.mcnemar(a, a) == 1.0 == p.mcnemar([1, 0], [0, 1])
    with pytest.raises(ValueError, match="right_b: expected only 0"):
        p.mcnemar([1, 0], [1, 2])
    with pytest.raises(ValueError, match="b: 1 values for the 2"):
        p.mcnemar([1, 0], [1])


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 gives .02 .03 .06 .04; the last may not fall below the one before.
    np.testing.assert_allclose(p.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(p.holm([0.9, 0.6]), [1, 1])
    np.testing.assert_allclose(p.holm([0.2]), [0.2])


@pytest.mark.parametrize("values", [[1.1], [-0.1], [math.nan], []])
def test_holm_refuses_what_is_no_probability(values):
    with pytest.raises(ValueError, match="p: "):
        p.holm(values)
