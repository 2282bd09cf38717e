"""The readout against hand-computed numbers, scipy, known observers, and bad input."""

import numpy as np
import pytest
from scipy.optimize import minimize

from xai_lib.cdmam import limits, readout
from xai_lib.cdmam.geometry import CELLS, CURVE_MM, DIAMETERS_MM, READ, THICKNESSES_UM
from xai_lib.cdmam.limits import ACCEPTABLE_UM, Intervals, Matrices, bootstrap, compare, nearest_neighbour
from xai_lib.cdmam.readout import HUMAN_FACTORS, curve_from_probabilities, draw_label, read_out

CUBIC = (0.0085, 0.0181, 0.00315, 0.00053)  # automatic thresholds in um, as polynomial in 1 / diameter


def automatic(diameters=DIAMETERS_MM):
    return np.polynomial.polynomial.polyval(1 / np.array(diameters), CUBIC)


def observer(slope=3.0):
    """Chances of an observer whose thresholds lie on the cubic, (16, 16)."""
    return (0.25 + 0.75 / (1 + (automatic()[:, None] / np.array(THICKNESSES_UM)) ** slope)) * CELLS


TRUTH = automatic(CURVE_MM) * HUMAN_FACTORS


def matrices(images=16, seed=0):
    return np.random.default_rng(seed).random((images, 16, 16)) < observer()


# known answers


def test_an_observer_on_a_cubic_is_recovered_exactly_from_its_chances():
    found = read_out(observer() * 7, 7, smooth=False)
    np.testing.assert_allclose(found.automatic_um, automatic(CURVE_MM), rtol=1e-6)
    np.testing.assert_allclose(found.slope, 3, rtol=1e-5)
    np.testing.assert_allclose(found.human_um, TRUTH, rtol=1e-6)
    np.testing.assert_allclose(found.fitted_um, TRUTH, rtol=1e-6)
    np.testing.assert_allclose(curve_from_probabilities(observer(), smooth=False), TRUTH, rtol=1e-6)
    assert found.failed == () and not found.extrapolated[1:-1].any()


@pytest.mark.parametrize("slope", ["shared", 3.0])
def test_one_slope_for_all_diameters(slope):
    found = read_out(observer() * 100, 100, smooth=False, slope=slope)
    assert np.unique(found.slope).size == 1
    np.testing.assert_allclose(found.automatic_um, automatic(CURVE_MM), rtol=0.02)


def test_the_fit_is_the_most_likely_one_according_to_scipy():
    hits = matrices(16).sum(axis=0) * CELLS
    found = read_out(hits, 16, smooth=False)
    for k in (2, 6, 9):
        row, cells = hits[READ][k], CELLS[READ][k]

        def loss(x, row=row, cells=cells):
            p = 0.25 + 0.75 / (1 + np.exp(-np.exp(x[0]) * (np.log(THICKNESSES_UM) - x[1])))
            return -(row * np.log(p) + (16 - row) * np.log1p(-p))[cells].sum()

        best = minimize(loss, [1.0, np.log(0.1)], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
        assert found.automatic_um[k] == pytest.approx(np.exp(best.x[1]), rel=1e-3)


def test_smoothing_by_hand():
    one = np.zeros((1, 16, 16))
    one[0, 7, 7] = 1
    found = readout.smoothed(one)[0, 6:9, 6:9]
    np.testing.assert_allclose(found, np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16)
    np.testing.assert_allclose(readout.smoothed(CELLS[None] * 0.4)[0], CELLS * 0.4)
    corner = np.zeros((1, 16, 16))
    corner[0, 0, 1] = 1  # (0, 0) is absent: 4 of 4 + 2 + 2 + 2 + 1 + 1 ... sixteenths that are present
    present = 4 + 2 + 2 + 1 + 1  # itself, right, below, below left, below right
    assert readout.smoothed(corner)[0, 0, 1] == pytest.approx(4 / present)


def test_the_third_order_fit_leaves_out_lost_points_and_needs_four():
    points = np.array([automatic(CURVE_MM)] * 3)
    points[1, [0, 11]] = np.nan
    points[2, 3:] = np.nan
    curve = readout.third_order(points)
    np.testing.assert_allclose(curve[:2], [automatic(CURVE_MM)] * 2, rtol=1e-8)
    assert np.isnan(curve[2]).all()


def test_the_third_order_fit_is_the_relative_least_squares_of_numpy():
    points = automatic(CURVE_MM) * np.exp(np.random.default_rng(0).normal(0, 0.1, 12))
    powers = (1 / np.array(CURVE_MM)[:, None]) ** np.arange(4)
    coefficients = np.linalg.lstsq(powers / points[:, None], np.ones(12), rcond=None)[0]
    np.testing.assert_allclose(readout.third_order(points[None])[0], powers @ coefficients, rtol=1e-6)


def test_smoothing_moves_a_curve_by_less_than_four_per_cent():
    np.testing.assert_allclose(curve_from_probabilities(observer()), TRUTH, rtol=0.04)


def test_factors_and_limits_are_those_of_the_literature():
    factor = dict(zip(CURVE_MM, HUMAN_FACTORS, strict=True))
    assert factor[0.25] == pytest.approx(1.82) and factor[0.1] == pytest.approx(1.50)  # Young et al. 2006, abstract
    assert all(limits.ACHIEVABLE_UM[d] < ACCEPTABLE_UM[d] for d in (2.0, 1.0, 0.5, 0.25, 0.1))


# labels


def test_a_label_from_very_many_images_is_the_exact_one():
    many = draw_label(observer(), 200_000, np.random.default_rng(0))
    np.testing.assert_allclose(many, curve_from_probabilities(observer()), rtol=0.01)


def test_a_batch_of_labels_is_one_label_after_the_other():
    p = np.stack([observer(), observer(2.0), 0.25 + 0.5 * (observer() - 0.25) * CELLS])
    p = np.where(CELLS, p, np.nan)  # cells without disc do not count
    together = curve_from_probabilities(p)
    assert together.shape == (3, 12)
    np.testing.assert_allclose(together, [curve_from_probabilities(one) for one in p], rtol=1e-9)
    first, second = (draw_label(p, 16, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


# what cannot be read


def test_a_diameter_at_chance_is_named_and_the_curve_goes_on():
    p = observer()
    p[14] = 0.25 * CELLS[14]  # 0.08 mm
    found = read_out(p * 20, 20, smooth=False)
    assert found.failed == (0.08,) and np.isnan(found.automatic_um[11]) and np.isnan(found.slope[11])
    assert found.extrapolated[11] and "0.08 mm" in found.notes[0]
    np.testing.assert_allclose(found.fitted_um, TRUTH, rtol=1e-5)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_no_threshold_at_all(share):
    found = read_out(CELLS * share, 1)
    assert found.failed == CURVE_MM and np.isnan(found.fitted_um).all() and found.extrapolated.all()


def test_thresholds_outside_the_row_are_called_extrapolated():
    p = (0.25 + 0.75 / (1 + (0.3 * automatic()[:, None] / np.array(THICKNESSES_UM)) ** 3)) * CELLS
    found = read_out(p, 1, smooth=False)
    outside = 0.3 * automatic(CURVE_MM) < readout.row_range()[0]
    np.testing.assert_array_equal(found.extrapolated, outside)
    assert outside.any() and not outside.all()


def test_a_row_without_cells_is_lost_and_named():
    cells = CELLS.copy()
    cells[5] = False
    found = read_out(observer(), 1, smooth=False, cells=cells)
    assert found.failed == (DIAMETERS_MM[5],)
    np.testing.assert_allclose(found.fitted_um, TRUTH, rtol=1e-5)


def test_few_images_are_noted():
    assert "15 images" in read_out(observer() * 15, 15).notes[0]
    assert read_out(observer() * 16, 16).notes == ()


def outside_a_cell():
    hits = observer() * 16
    hits[0, 0] = 1
    return hits


@pytest.mark.parametrize(
    ("hits", "options", "message"),
    [
        (np.zeros((12, 16)), {}, "hits: has shape"),
        (np.zeros((2, 16, 16)), {}, "hits: has shape"),
        (np.full((16, 16), np.nan), {}, "NaN"),
        (outside_a_cell(), {}, "row 0, column 0"),
        (observer() * 17, {}, "expected 0 to 16"),
        (-observer(), {}, "expected 0 to 16"),
        (observer(), {"images": 0}, "images: 0"),
        (observer(), {"images": 2.5}, "images: 2.5"),
        (observer(), {"cells": np.ones((16, 16))}, "cells: row 0"),
        (observer(), {"cells": np.ones((4, 16))}, "cells: has shape"),
        (observer(), {"slope": "steep"}, "slope: 'steep'"),
        (observer(), {"slope": -1.0}, "slope: -1"),
    ],
)
def test_bad_input_is_named(hits, options, message):
    with pytest.raises(ValueError, match=message):
        read_out(hits, **{"images": 16, **options})


def test_bad_chances_are_named():
    with pytest.raises(ValueError, match="p: from"):
        curve_from_probabilities(observer() * 2)
    with pytest.raises(ValueError, match="p: NaN"):
        draw_label(observer() * np.nan, 16, np.random.default_rng(0))
    with pytest.raises(ValueError, match="images: 0"):
        draw_label(observer(), 0, np.random.default_rng(0))


# nearest neighbours, by hand


def corrected(*cells):
    """Cells that are right after the correction, when only those given were."""
    scores = np.zeros((16, 16), dtype=bool)
    for cell in cells:
        scores[cell] = True
    return {tuple(cell) for cell in np.argwhere(nearest_neighbour(scores)).tolist()}


@pytest.mark.parametrize(
    ("given", "cell", "expected"),
    [
        ([(7, 7), (7, 8)], (7, 7), False),  # one right neighbour of four is too few
        ([(7, 7), (7, 8), (6, 7)], (7, 7), True),  # two keep it
        ([(7, 8), (6, 7)], (7, 7), False),  # two do not make it right
        ([(7, 8), (6, 7), (8, 7)], (7, 7), True),  # three do
        ([(0, 9), (1, 9)], (0, 9), True),  # two neighbours, (0, 8) and (1, 9): one keeps it
        ([(0, 9)], (0, 9), False),
        ([(0, 8), (1, 9)], (0, 9), True),  # both make it right
        ([(0, 8)], (0, 9), False),
        ([(0, 1), (1, 0), (0, 2)], (0, 1), True),  # the lacking corner counts, as (0, 1) and (1, 0) are right
        ([(0, 1), (0, 2)], (0, 1), False),  # it does not
    ],
)
def test_nearest_neighbours(given, cell, expected):
    assert (cell in corrected(*given)) is expected


def test_the_correction_leaves_a_full_and_an_empty_matrix_alone():
    both = np.stack([CELLS, np.zeros_like(CELLS)])
    np.testing.assert_array_equal(nearest_neighbour(both), both)
    with pytest.raises(ValueError, match="correct: row 0"):
        nearest_neighbour(np.ones((16, 16)))


# intervals and limits


def test_the_truth_lies_in_the_interval_as_often_as_promised():
    inside, middle = [], []
    for seed in range(20):
        found = bootstrap(matrices(16, seed), n=60, seed=seed, smooth=False)
        inside.append((found.low_um <= TRUTH) & (TRUTH <= found.high_um))
        middle.append(found.midpoint_um[0] <= TRUTH.mean() <= found.midpoint_um[1])
    assert 0.85 <= np.mean(inside) <= 0.99
    assert sum(middle) >= 16


def test_intervals_repeat_hold_the_curve_and_shrink_with_images():
    few, again, many = (bootstrap(matrices(n), n=60, seed=1) for n in (8, 8, 128))
    np.testing.assert_array_equal(few.low_um, again.low_um)
    assert ((many.high_um - many.low_um) / TRUTH).mean() < 0.6 * ((few.high_um - few.low_um) / TRUTH).mean()
    curve = read_out(matrices(128).sum(axis=0), 128).fitted_um
    assert ((many.low_um <= curve) & (curve <= many.high_um)).all() and many.failed.max() == 0


@pytest.mark.parametrize("given", [np.zeros((16, 16)), np.zeros((1, 16, 16)), np.zeros((0, 16, 16))])
def test_intervals_need_images(given):
    with pytest.raises(ValueError, match="two images or more"):
        bootstrap(given)


def test_comparison_with_limits():
    found = read_out(observer() * 16, 16, smooth=False)
    at = {d: TRUTH[CURVE_MM.index(d)] for d in (1.0, 0.5, 0.25, 0.1)}
    tight = {2.0: 1.0, 1.0: at[1.0] * 1.01, 0.5: at[0.5] * 0.99, 0.25: at[0.25] * 1.2, 0.1: at[0.1] * 0.8}
    table = compare(found, tight)
    assert table["result"].tolist() == ["not read", "pass", "fail", "pass", "fail"]
    around = Intervals(TRUTH * 0.9, TRUTH * 1.1, (0.0, 1.0), np.zeros(12), 9)
    assert compare(found, tight, around)["result"].tolist() == ["not read", "undecided", "undecided", "pass", "fail"]
    assert compare(found, ACCEPTABLE_UM)["diameter_mm"].tolist() == [2.0, 1.0, 0.5, 0.25, 0.1]


# files


def some():
    rng = np.random.default_rng(0)
    centre, corner = rng.random((2, 3, 16, 16)) < 0.5
    return Matrices(centre & CELLS, corner & CELLS, ("a", "b", "c, d"))


def test_a_long_file_comes_back(tmp_path):
    limits.write_matrices(tmp_path / "scores.csv", some())
    back = limits.read_matrices([tmp_path / "scores.csv"])
    assert back.images == some().images
    np.testing.assert_array_equal(back.centre, some().centre)
    np.testing.assert_array_equal(back.corner, some().corner)


def test_wide_files(tmp_path):
    paths = []
    for k, image in enumerate("ab"):
        for place in ("centre", "corner"):
            paths.append(tmp_path / f"{image}_{place}.csv")
            np.savetxt(paths[-1], getattr(some(), place)[k], fmt="%d", delimiter="," if k else " ")
    back = limits.read_matrices(paths)
    assert back.images == ("a", "b")
    np.testing.assert_array_equal(back.corner, some().corner[:2])
    with pytest.raises(ValueError, match="image 'b': no corner scores"):
        limits.read_matrices(paths[:3])
    paths[0].write_text(paths[0].read_text().replace("\n", " 1\n", 1))
    with pytest.raises(ValueError, match=r"a_centre.csv, line 1: 17 numbers"):
        limits.read_matrices(paths)


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        (0, "image,diameter_mm,thickness_um,centre", "line 1: lacks the column corner"),
        (2, "a,2.0,0.05,2,1", "line 3: centre: '2', expected 0 or 1"),
        (2, "a,2.0,0.055,0,1", "line 3: thickness_um: '0.055'"),
        (2, "a,none,0.05,0,1", "line 3: diameter_mm: 'none'"),
        (2, "a,2.0,0.05", "line 3: too few values"),
        (2, "a,2.0,0.03,1,1", "line 3: a hit at 2 mm, 0.03 um"),
        (2, "a,2.0,0.04,1,1", "line 3: 2 mm, 0.04 um of image 'a' is given twice"),
        (2, "a,2.0,0.03,0,0", "image 'a': no centre score for 2 mm, 0.05 um, 1 in all"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, by, message):
    path = tmp_path / "scores.csv"
    limits.write_matrices(path, some())
    lines = path.read_text().splitlines()
    lines[line] = by
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        limits.read_matrices([path])


def test_files_that_hold_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        limits.read_matrices([tmp_path / "none.csv"])
    with pytest.raises(ValueError, match="no image"):
        limits.read_matrices([])
    (tmp_path / "odd.csv").write_text("1 0\n")
    with pytest.raises(ValueError, match=r"odd.csv: expected a first line"):
        limits.read_matrices([tmp_path / "odd.csv"])


def test_pooling():
    given = some()
    np.testing.assert_array_equal(limits.pooled(given), given.corner.sum(axis=0))
    np.testing.assert_array_equal(limits.pooled(given, "centre"), given.centre.sum(axis=0))
    both = limits.pooled(given, "both")
    np.testing.assert_array_equal(both, (given.corner.sum(axis=0) + given.centre.sum(axis=0)) / 2)
    assert read_out(both, 3).images == 3
    with pytest.raises(ValueError, match="use: 'middle'"):
        limits.pooled(given, "middle")
    with pytest.raises(ValueError, match="no image"):
        limits.pooled(Matrices(given.centre[:0], given.corner[:0], ()))
