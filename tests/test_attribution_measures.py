import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from xai_lib import localization
from xai_lib.attribution import measures

DISPERSION = (measures.gini, measures.entropy, measures.effective_area)


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(3, 9, 14))


def one(*rows):
    """One map (1, H, W)."""
    return np.array([rows], float)


# ------------------------------------------------------------------------------------------------- dispersion


@pytest.mark.parametrize(
    ("values", "gini", "entropy", "area"),
    [
        ([[0, 0], [0, 1]], 0.75, 0.0, 0.25),
        ([[0.1, 0.1], [0.1, 0.1]], 0.0, 1.0, 0.5),
        ([[0, 2], [2, 0]], 0.5, 0.5, 0.25),
        ([[1, 2], [3, 4]], 0.25, 1.846439 / 2, 0.5),  # bits of (0.1, 0.2, 0.3, 0.4); 4 of 10 are not half, 4 + 3 are
        ([[-5, 0], [0, 1]], 0.75, 0.0, 0.25),  # the negative part does not count
    ],
)
def test_dispersion_by_hand(values, gini, entropy, area):
    assert_allclose(measures.gini(one(*values)), [gini], atol=1e-12)
    assert_allclose(measures.entropy(one(*values)), [entropy], atol=1e-6)
    assert_allclose(measures.effective_area(one(*values)), [area])


def test_absolute_part_counts_what_argues_against():
    values = one([-3, 0], [0, 1])
    assert measures.effective_area(values, "absolute") == 0.25
    assert_allclose(measures.gini(values, "absolute"), [0.625])  # shares 0, 0, 1/4, 3/4: (1/4 + 3 * 3/4) / 4
    assert_allclose(measures.entropy(values, "absolute"), [(0.5 + 0.75 * np.log2(4 / 3)) / 2])


def test_effective_area_of_another_share():
    values = one([1, 2], [3, 4])
    assert [float(measures.effective_area(values, mass=m)[0]) for m in (0.4, 0.41, 0.9, 1)] == [0.25, 0.5, 0.75, 1]
    even = np.full((1, 10, 10), 1 / 3)
    for percent in range(1, 101):
        assert measures.effective_area(even, mass=percent / 100) == percent / 100


def test_gini_of_known_distributions():
    rng = np.random.default_rng(1)
    maps = np.stack([rng.normal(size=(300, 300)), rng.exponential(size=(300, 300)), rng.uniform(size=(300, 300))])
    assert_allclose(measures.gini(maps, "absolute"), [np.sqrt(2) - 1, 1 / 2, 1 / 3], atol=5e-3)


def test_dispersion_against_other_formulas(noise):
    mass = np.abs(noise).reshape(3, -1)
    differences = np.abs(mass[:, :, None] - mass[:, None]).mean((1, 2))
    assert_allclose(measures.gini(noise, "absolute"), differences / (2 * mass.mean(1)))
    assert_allclose(measures.entropy(noise, "absolute"), stats.entropy(mass, axis=1, base=mass.shape[1]))


@pytest.mark.parametrize("measure", DISPERSION)
@pytest.mark.parametrize("factor", [1e-300, 1 / 3, 7.0, 1e300])
def test_dispersion_does_not_depend_on_scale_or_place(noise, measure, factor):
    assert_allclose(measure(factor * noise), measure(noise), rtol=1e-12)
    assert_allclose(measure(noise[:, ::-1].transpose(0, 2, 1)), measure(noise), rtol=1e-12)


@pytest.mark.parametrize("measure", DISPERSION)
def test_no_mass_is_nan_and_nothing_else(measure):
    maps = np.stack([np.zeros((3, 4)), -np.ones((3, 4)), np.eye(3, 4)])
    with np.errstate(all="raise", invalid="warn"):
        assert_array_equal(np.isnan(measure(maps)), [True, True, False])
    assert_array_equal(np.isnan(measure(maps, "absolute")), [True, False, False])


def test_a_dispersed_map_is_more_dispersed_by_every_measure():
    rows, cols = np.mgrid[:32, :32]
    maps = np.stack([np.exp(-((rows - 12) ** 2 + (cols - 20) ** 2) / (2 * sd**2)) for sd in (2, 4, 8)])
    table = measures.dispersion(maps)
    assert list(table.columns) == ["image", "gini", "entropy", "effective_area"] and list(table["image"]) == [0, 1, 2]
    assert table["gini"].is_monotonic_decreasing
    assert table["entropy"].is_monotonic_increasing and table["effective_area"].is_monotonic_increasing
    inside = np.pi * 2 * np.log(2) * 2**2 / 32**2  # a Gaussian holds half of itself within r^2 = 2 log(2) sd^2
    assert table["effective_area"][0] == pytest.approx(inside, rel=0.15)


# ---------------------------------------------------------------------------------------------------- agreement


def test_rank_correlation_by_hand():
    first, second = one([1, 2], [3, 4]), one([1, 2], [4, 3])
    assert_allclose(measures.rank_correlation(first, second), [0.8])  # 1 - 6 * 2 / (4 * 15)
    assert_allclose(measures.rank_correlation(first, -first), [-1])


def test_rank_correlation_is_scipys_with_ties(noise):
    other = np.round(noise + np.random.default_rng(1).normal(size=noise.shape))
    expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(noise, other, strict=True)]
    assert_allclose(measures.rank_correlation(noise, other), expected)


def test_top_overlap_by_hand():
    first, second = one([9, 8, 0, 1], [2, 3, 4, 5]), one([9, 0, 8, 1], [2, 3, 4, 5])
    assert measures.top_overlap(first, second, share=0.25) == 0.5  # {0, 1} and {0, 2}
    assert measures.top_overlap(first, first, share=0.25) == 1
    assert measures.top_overlap(first, -first, share=0.25) == 0


def test_tied_pixels_share_the_last_places():
    tied = one([5, 1, 1, 1], [0, 0, 0, 0])  # the top 2: the first pixel, and a third of each of the next three
    assert_allclose(measures.top_overlap(tied, one([9, 8, 0, 1], [2, 3, 4, 5]), share=0.25), [(1 + 1 / 3) / 2])
    assert_allclose(measures.top_overlap(tied, tied, share=0.25), [(1 + 3 / 9) / 2])


def test_sparse_maps_do_not_agree_by_their_zeros():
    """Two maps of one bright pixel each: their top deciles overlap as chance has it, whatever the pixels' order."""
    first, second = np.zeros((1, 20, 20)), np.zeros((1, 20, 20))
    first[0, 0, 0] = second[0, 19, 19] = 1
    assert measures.top_overlap(first, second)[0] == pytest.approx(0.1, abs=0.01)


def test_overlap_by_chance_is_the_share():
    rng = np.random.default_rng(2)
    found = measures.top_overlap(rng.normal(size=(40, 50, 50)), rng.normal(size=(40, 50, 50)), share=0.2)
    assert found.mean() == pytest.approx(0.2, abs=0.01)


def test_agreement_has_all_pairs_and_equals_the_measures(noise):
    rng = np.random.default_rng(3)
    maps = {"a": noise, "b": torch.from_numpy(noise + rng.normal(size=noise.shape)).float(), "c": np.abs(noise)}
    table = measures.agreement(maps, share=0.3)
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert list(zip(table["image"], table["first"], table["second"], strict=True)) == [
        (i, *pair) for i in range(3) for pair in pairs
    ]
    for first, second in pairs:
        rows = table[(table["first"] == first) & (table["second"] == second)]
        assert_allclose(rows["rank_correlation"], measures.rank_correlation(maps[first], maps[second]))
        absolute = measures.rank_correlation(np.abs(np.asarray(maps[first])), np.abs(np.asarray(maps[second])))
        assert_allclose(rows["absolute_rank_correlation"], absolute)
        assert_allclose(rows["top_overlap"], measures.top_overlap(maps[first], maps[second], share=0.3))
    assert_allclose(table.query("first == 'a' and second == 'c'")["absolute_rank_correlation"], 1)


def test_agreement_is_symmetric_and_knows_no_scale(noise):
    maps = {"a": noise, "b": np.random.default_rng(4).normal(size=noise.shape)}
    table = measures.agreement(maps)
    turned = measures.agreement({"b": 1e-3 * maps["b"], "a": 7 * maps["a"]})
    numbers = ["rank_correlation", "absolute_rank_correlation", "top_overlap"]
    assert_allclose(table[numbers], turned[numbers])
    alone = measures.agreement({k: v[1:2] for k, v in maps.items()})
    assert_allclose(table[numbers].iloc[1], alone[numbers].iloc[0])  # whatever else is in the batch


def test_agreement_with_a_constant_map_is_nan(noise):
    table = measures.agreement({"a": noise, "flat": np.full(noise.shape, 0.3)})
    assert table[["rank_correlation", "absolute_rank_correlation", "top_overlap"]].isna().all(axis=None)


# ------------------------------------------------------------------------------------------ against a mask or a point


def test_mass_inside_by_hand():
    values, mask = one([1, 2], [-3, 5]), np.array([[0, 1], [1, 0]], bool)
    assert_allclose(measures.mass_inside(values, mask), [2 / 8])
    assert_allclose(measures.mass_inside(values, mask, "absolute"), [5 / 11])
    assert np.isnan(measures.mass_inside(-np.abs(values), mask)).all()


def test_top_inside_by_hand():
    values = one([9, 8, 0, 1], [2, 3, 4, 5])
    mask = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], bool)
    assert measures.top_inside(values, mask, share=0.25) == 0.5  # 9 is inside, 8 is not
    assert_allclose(measures.top_inside(values, mask, share=None), [2 / 3])  # 9, 8, 5
    assert np.isnan(measures.top_inside(np.ones((1, 2, 4)), mask)).all()


def test_chance_level_is_the_masks_share():
    maps = np.random.default_rng(5).uniform(size=(60, 30, 40))
    mask = np.zeros((30, 40), bool)
    mask[3:15, 5:25] = True
    top = [measures.top_inside(maps, mask, share) for share in (0.1, None)]
    for found in (measures.mass_inside(maps, mask), *top):
        assert found.mean() == pytest.approx(mask.mean(), abs=0.01)


def test_a_mask_for_all_or_for_each(noise):
    mask = noise[0] > 0
    for measure in (measures.mass_inside, measures.top_inside):
        assert_array_equal(measure(noise, mask), measure(noise, np.stack([mask] * 3)))
        assert_array_equal(measure(torch.from_numpy(noise), torch.from_numpy(mask)), measure(noise, mask))


def test_peak_by_hand():
    values = one([0, 1, 2], [3, 7, 0], [0, 0, 1])
    assert measures.peak(values).tolist() == [[1, 1]]
    assert measures.peak(-values).tolist()[0] != [1, 1]
    assert measures.peak_distance_px(values, (4, 5)) == [5]  # 3, 4, 5
    assert measures.peak_distance_px(np.concatenate([values, values]), [[1, 1], [1, 3]]).tolist() == [0, 2]


def test_peak_without_ties_is_the_one_of_extremes(noise):
    assert measures.peak(noise).tolist() == [list(localization.extremes(m, m.shape).maximum) for m in noise]


@pytest.mark.parametrize("top", [0, 5])
@pytest.mark.parametrize(("height", "width"), list(itertools.product((1, 2, 5), (1, 4))))
def test_peak_of_a_plateau_is_its_centre(top, height, width):
    values = np.full((1, 12, 10), -1.0)
    values[0, top : top + height, 3 : 3 + width] = 2
    assert measures.peak(values).tolist() == [[top + (height - 1) / 2, 3 + (width - 1) / 2]]


def test_peak_takes_the_plateau_that_extremes_takes():
    values = np.zeros((1, 9, 9))
    values[0, 2:5, 2:5] = values[0, 7, 7] = 1
    assert measures.peak(values).tolist() == [[3, 3]]
    diagonal = np.zeros((1, 9, 9))
    diagonal[0, [2, 3, 4], [4, 3, 2]] = 1  # touches at corners only
    assert measures.peak(diagonal).tolist() == [[3, 3]]


def test_smoothing_prefers_a_hill_to_a_spike():
    rows, cols = np.mgrid[:40, :40]
    values = np.exp(-((rows - 25) ** 2 + (cols - 10) ** 2) / 50)[None]
    values[0, 3, 30] = 2
    assert measures.peak(values).tolist() == [[3, 30]]
    assert measures.peak(values, smooth_px=3).tolist() == [[25, 10]]


def test_a_constant_map_has_no_peak():
    """Its centre would look like a map that points at the middle of the image."""
    maps = np.stack([np.full((5, 5), 0.1), np.eye(5)])
    assert np.isnan(measures.peak(maps, 2.0)[0]).all() and np.isfinite(measures.peak(maps)[1]).all()
    assert_array_equal(np.isnan(measures.peak_distance_px(maps, (2, 2))), [True, False])


# ---------------------------------------------------------------------------------------------------- bad input


CALLS = {
    "gini": measures.gini,
    "entropy": measures.entropy,
    "effective_area": measures.effective_area,
    "rank_correlation": lambda m: measures.rank_correlation(np.ones((1, 2, 2)), m),
    "top_overlap": lambda m: measures.top_overlap(m, m),
    "agreement": lambda m: measures.agreement({"a": m, "b": m}),
    "mass_inside": lambda m: measures.mass_inside(m, np.ones((2, 2), bool)),
    "top_inside": lambda m: measures.top_inside(m, np.ones((2, 2), bool)),
    "peak": measures.peak,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_not_finite(call, bad):
    with pytest.raises(ValueError, match="map 0 holds NaN"):
        call(one([1, 2], [3, bad]))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("shape", [(2, 2), (0, 2, 2), (1, 1, 1), (1, 3, 2, 2)])
def test_maps_of_another_shape(call, shape):
    with pytest.raises(ValueError, match=r"expected shape \(N, H, W\)"):
        call(np.ones(shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: measures.gini(m, "negative"), "part: 'negative' is unknown, expected one of positive, absolute"),
        (lambda m: measures.effective_area(m, mass=0), r"mass: 0 is not in \(0, 1\]"),
        (lambda m: measures.top_overlap(m, m, share=1.0), r"share: 1.0 is not in \(0, 1\)"),
        (lambda m: measures.agreement({"a": m}), "at least two methods, got 1"),
        (
            lambda m: measures.agreement({"a": m, "b": m[:1]}),
            r"for all, got a: \(3, 9, 14\), b: \(1, 9, 14\)",
        ),
        (lambda m: measures.rank_correlation(m, m[:, 1:]), "one shape for all"),
        (lambda m: measures.mass_inside(m, m[0, 1:] > 0), r"masks: shape \(8, 14\) does not fit"),
        (lambda m: measures.top_inside(m, m[:2] > 0), r"masks: shape \(2, 9, 14\) does not fit"),
        (lambda m: measures.mass_inside(m, m > m[:1].max()), "masks: mask 0 is empty"),
        (lambda m: measures.peak(m, -1), "smooth_px: -1"),
        (lambda m: measures.peak_distance_px(m, (1, np.nan)), "points: expected finite"),
        (lambda m: measures.peak_distance_px(m, (1, 2, 3)), r"points: .*shape \(3,\)"),
    ],
)
def test_bad_arguments(noise, call, message):
    with pytest.raises(ValueError, match=message):
        call(noise)


def test_maps_with_a_gradient_and_in_half_precision():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for other in (maps.clone().requires_grad_(), maps.double()):
        assert_allclose(measures.gini(other), measures.gini(maps))
    assert_allclose(measures.gini(maps.bfloat16()), measures.gini(maps), rtol=0.02)
