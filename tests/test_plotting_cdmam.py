import numpy as np
import pandas as pd
import pytest
from drawings import titles, words
from matplotlib import pyplot as plt
from numpy.testing import assert_allclose, assert_array_equal

from xai_lib.cdmam.geometry import CELLS, CURVE_MM, DIAMETERS_MM, THICKNESSES_UM
from xai_lib.cdmam.phantom import Detector, build, rotated
from xai_lib.plotting import cdmam as pc
from xai_lib.plotting import cdmam_images as pi
from xai_lib.results import Estimate as E

pytestmark = pytest.mark.usefixtures("drawn")


# ---------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def phantom():
    return build(Detector(pixel_mm=0.48), writing=False)


@pytest.mark.parametrize("turned", [False, True])
def test_the_phantom_with_its_steps(phantom, turned):
    shown = rotated(phantom) if turned else phantom
    image = 1000 - np.where(shown.classes == 17, 600, 30) * shown.coverage
    figure = pi.phantom_figure(image, shown, cell=(5, 5))
    whole, part = figure.axes
    steps = {f"{v:.2f}" for v in (*DIAMETERS_MM, *THICKNESSES_UM)}
    assert steps <= set(words(whole.texts)) and "20 mm" in words(whole.texts) and words(part.texts) == ["5 mm"]
    at = {text.get_text(): text.get_position() for text in whole.texts if text.get_color() == pi.BLUE}
    first = shown.discs.set_index(["row", "column", "place"]).loc[(6, 0, "centre")]
    assert np.hypot(*(at["0.50"] - first[["x", "y"]].to_numpy(float))) == pytest.approx(
        0.6 * 10 / shown.pixel_mm, rel=0.1
    )
    pixels = part.get_images()[0].get_array()
    assert pixels.shape == (round(30 / shown.pixel_mm),) * 2
    low, high = part.get_images()[0].get_clim()
    assert low >= 970 and high == pytest.approx(1000, abs=1)  # the grid does not set them
    assert "0.63 mm, 0.10 µm" in part.get_title()
    line = whole.get_lines()[0].get_xdata()
    assert line[1] - line[0] == pytest.approx(20 / shown.pixel_mm)
    with pytest.raises(ValueError, match=r"image: shape \(4, 4\), expected"):
        pi.phantom_figure(np.ones((4, 4)), shown)


def test_virtual_images_side_by_side():
    figure = pi.virtual_images({"#1": np.arange(64.0).reshape(8, 8), "#4": 10 * np.arange(64.0).reshape(8, 8)}, 3)
    assert titles(figure.axes) == ["#1", "#4"] and figure.get_figwidth() == pytest.approx(4.8)
    one, other = (ax.get_images()[0].get_clim()[1] for ax in figure.axes)
    assert other == pytest.approx(10 * one)  # each on its own scale
    with pytest.raises(ValueError, match="images: there is none"):
        pi.virtual_images({})


def test_blocks_leave_out_what_is_not_there():
    values = np.array([[1, 3, 5], [np.nan, np.nan, np.nan], [7, 9, np.nan]])
    assert_array_equal(pi.blocks(values, 2), [[2, 5], [8, np.nan]])
    assert_array_equal(pi.blocks(values, 1), values)


@pytest.mark.parametrize(
    ("middle", "box"), [((10, 10), (7, 7, 13, 13)), ((0, 19), (0, 14, 6, 20)), ((29, 1), (24, 0, 30, 6))]
)
def test_boxes_stay_inside(middle, box):
    assert pi.around(middle, 6, (30, 20)) == box


def test_a_whole_image_is_drawn_small():
    _, axes = plt.subplots()
    pi.show_whole(axes, np.ones((1500, 800)), [(10, 20, 30, 60), (0, 0, 5, 5)], 0.1)
    (image,) = axes.get_images()
    assert image.get_array().shape == (500, 267) and list(image.get_extent()) == [-0.5, 799.5, 1499.5, -0.5]
    assert {patch.get_bbox().bounds for patch in axes.patches} == {(20, 10, 40, 20), (0, 0, 5, 5)}
    assert words(axes.texts) == ["1 ", "2 ", "20 mm"]


# ---------------------------------------------------------------------------------------- curves and matrices

THICK = np.geomspace(0.05, 2, 12)
LIMIT = {"acceptable": {2.0: 0.069, 1.0: 0.091, 0.1: 1.68}, "achievable": {1.0: 0.056, 0.1: 1.1}}


def test_curves_with_bands_truths_and_limits():
    beyond = np.arange(12) < 2
    curve = {"predicted": THICK, "low": THICK / 2, "high": THICK * 2, "truth": THICK * 1.1, "extrapolated": beyond}
    figure = pc.contrast_detail({"A": curve, "B": {"diameters_mm": CURVE_MM[:3], "predicted": THICK[:3]}}, LIMIT)
    (axes,) = figure.axes
    assert words(axes.get_legend().get_texts()) == ["A", "A: truth", "B", "acceptable", "achievable"]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert_allclose(lines["A: truth"].get_xydata(), np.column_stack((CURVE_MM, THICK * 1.1)))
    assert lines["A: truth"].get_linestyle() == "--" and lines["acceptable"].get_color() == pc.BLACK
    hollow = next(line for line in axes.get_lines() if line.get_markerfacecolor() == "white")
    assert_allclose(hollow.get_xdata(), CURVE_MM[:2])
    assert axes.get_xlim()[0] > 1 > axes.get_xlim()[1] > 0.07  # large discs at the left
    assert axes.get_xscale() == axes.get_yscale() == "log" and len(axes.collections) == 1
    assert words(axes.get_xticklabels())[0] == "1.00" and "µm" in axes.get_ylabel() and "mm" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "curves: there is none"),
        ({"A": {"truth": THICK}}, "curves: A: lacks predicted"),
        ({"A": {"predicted": THICK[:5]}}, r"curves: A: \{'predicted': \(5,\)\}, expected shapes \(12,\)"),
    ],
)
def test_curves_that_do_not_fit(curves, message):
    with pytest.raises(ValueError, match=message):
        pc.contrast_detail(curves)
    plt.close("all")


def test_cells_that_do_not_exist_stay_blank():
    hits = np.ones((16, 16))
    hits[3, 3] = np.nan
    figure = pc.hit_matrices({"one": hits, "two": np.zeros((16, 16), bool)})
    one, two, bar = figure.axes
    assert titles([one, two]) == ["one", "two"]
    shown = one.get_images()[0].get_array()
    assert (shown.mask == ~CELLS | (np.arange(256).reshape(16, 16) == 51)).all() and shown[0, 1] == 1
    assert two.get_images()[0].get_array().mask.sum() == 51
    assert "mm" in one.get_ylabel() and "µm" in two.get_xlabel() and bar.get_xlabel() == "share of correct answers"
    alone = pc.hit_matrix(hits, "mean").axes[0]
    assert words(alone.get_xticklabels()) == [f"{t:.2f}" for t in THICKNESSES_UM]
    assert words(alone.get_yticklabels()) == [f"{d:.2f}" for d in DIAMETERS_MM]
    for given, message in (({}, "there is none"), ({"A": hits[1:]}, r"A: shape \(15, 16\), expected \(16, 16\)")):
        with pytest.raises(ValueError, match=f"matrices: {message}"):
            pc.hit_matrices(given)
    plt.close(plt.get_fignums()[-1])


def predictions(networks=("paper-like", "disc reader")):
    rows = [
        {"network": n, "scenario": s, "predicted": 0.5 + k / 10, "epistemic": 0.03, "aleatoric": 0.04, "exact": 0.4,
         "drawn": 0.5}
        for n in networks for s in ("#1", "#4") for k in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_errors_over_uncertainties():
    figure = pc.error_and_uncertainty(predictions(), "exact")
    assert titles(figure.axes) == ["paper-like", "disc reader"]
    points = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert_allclose(points["#4"].get_xydata(), [(0.098, 0.1), (0.098, 0.2), (0.098, 0.3)])
    assert (
        points["#1"].get_color() != points["#4"].get_color() and points["#1"].get_marker() != points["#4"].get_marker()
    )
    line = figure.axes[0].get_lines()[-1].get_xydata()
    assert_allclose(line[:, 0], line[:, 1])
    assert words(figure.legends[0].get_texts()) == ["#1", "#4"] and "exact label" in figure.axes[0].get_ylabel()
    alone = pc.error_and_uncertainty(predictions().drop(columns="network")).axes
    assert len(alone) == 1 and alone[0].get_lines()[0].get_ydata()[0] == pc.LEAST_ERROR
    with pytest.raises(ValueError, match="curves: lacks drawn; expected rows with the columns scenario"):
        pc.error_and_uncertainty(predictions().drop(columns="drawn"))


def test_coverage_beside_the_papers():
    rows = [
        {"scenario": s, "exact": E(0.9, 0.8, 1.0), "drawn": E(0.5), "paper": p}
        for s, p in (("#4", 0.61), ("new", np.nan))
    ]
    (axes,) = pc.coverage_bars(pd.DataFrame(rows)).axes
    assert [bar.get_height() for bar in axes.patches] == [0.9, 0.9, 0.5, 0.5]
    assert_allclose(axes.collections[0].get_segments()[0][:, 1], [0.8, 1.0])
    paper = next(line for line in axes.get_lines() if line.get_label() == "paper")
    assert_array_equal(paper.get_ydata(), [0.61, np.nan])
    assert words(axes.get_xticklabels()) == ["#4", "new"]
    two = pd.concat([pd.DataFrame(rows).assign(network=n) for n in ("a", "b")])
    assert titles(pc.coverage_bars(two).axes) == ["a", "b"]
    with pytest.raises(ValueError, match="rows: is empty"):
        pc.coverage_bars(two[:0])


def test_fits_pass_their_threshold():
    figure = pc.psychometric(np.full((16, 16), 0.5), {0.5: (0.1, 3.0), 0.06: (np.nan, np.nan)}, images=16)
    (axes,) = figure.axes
    assert words(figure.legends[0].get_texts()) == ["0.50 mm: 0.100 µm", "0.06 mm: no fit"]
    points, curve, drop, other, level = axes.get_lines()
    assert len(points.get_xdata()) == CELLS[6].sum() and len(other.get_xdata()) == CELLS[15].sum()
    assert np.interp(0.1, *curve.get_data()) == pytest.approx(0.625, abs=1e-3)
    assert_allclose(drop.get_xydata()[1], (0.1, 0.625))
    assert level.get_ydata()[0] == 0.625 and "16 images" in axes.get_ylabel()
    with pytest.raises(ValueError, match="diameters of the phantom"):
        pc.psychometric(np.ones((16, 16)), {0.7: (0.1, 3.0)})
