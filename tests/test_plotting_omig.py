import numpy as np
import pandas as pd
import pytest
from drawings import titles, words
from matplotlib import pyplot as plt
from numpy.testing import assert_allclose, assert_array_equal

from xai_lib.plotting import omig as po
from xai_lib.plotting import omig_maps as pm
from xai_lib.plotting.common import BLACK
from xai_lib.results import Estimate as E

pytestmark = pytest.mark.usefixtures("drawn")


def clim(axes):
    return axes.get_images()[0].get_clim()


# ---------------------------------------------------------------------------------------- maps

MAP = np.linspace(-1, 2, 60 * 40).reshape(60, 40)


def holed():
    values = MAP.copy()
    values[10:20, 10:20] = np.nan
    return values


def test_each_map_has_its_own_symmetric_scale():
    maps = {"#1": {"sensitivity": MAP, "OMIG": 10 * MAP}, "OOD": {"OMIG": -MAP}}
    figure = pm.maps_on_virtual(maps, {"#1": MAP, "OOD": MAP})
    grid = np.array(figure.axes).reshape(2, 3)
    assert titles(grid[0]) == ["image", "sensitivity", "OMIG"] and not titles(grid[1])
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["#1", "OOD"]
    for axes, limit in ((grid[0, 1], 1), (grid[0, 2], 10), (grid[1, 2], 1)):
        low, high = clim(axes)
        assert low == -high and high == pytest.approx(2 * limit, rel=0.02)
        assert axes.get_xlabel().startswith(f"± {high:.2g}")
    assert "normalised grey" in grid[0, 2].get_xlabel() and not grid[1, 1].get_images()
    assert len(pm.maps_on_virtual(maps).axes) == 4
    with pytest.raises(ValueError, match="maps: there is none"):
        pm.maps_on_virtual({"#1": {}})


def test_what_was_not_visited_is_grey_and_zero_is_black():
    figure = pm.upsampled({"OMIG": holed()}, [(5, 5, 25, 25)])
    whole, part, bar = figure.axes
    shown = whole.get_images()[0]
    pixels = shown.to_rgba(np.ma.masked_invalid(np.array([[np.nan, 0.0, 9.0, -9.0]])))[0, :, :3]
    assert_allclose(pixels[0], 0.6)
    assert_allclose(pixels[1], 0)
    assert pixels[2].argmax() == 0 and pixels[3].argmax() == 2  # red, blue
    assert shown.get_array().mask.sum() == 100 == part.get_images()[0].get_array().mask.sum()
    assert clim(whole) == clim(part) and clim(whole)[0] == -clim(whole)[1]
    assert bar.get_xlabel() == "normalised grey" and words(bar.get_xticklabels())[1] == "0"
    assert "20 mm" in words(whole.texts) and words(part.texts) == ["5 mm"]
    assert_array_equal(whole.patches[0].get_bbox().extents, (5, 5, 25, 25))


def test_several_maps_with_an_image_and_cut_outs():
    boxes = [(0, 0, 10, 10), (20, 20, 40, 30)]
    figure = pm.upsampled({"OMIG, #1": MAP, "other": MAP}, boxes, images={"image": MAP}, units={"other": "µm"})
    panels = [ax for ax in figure.axes if ax.get_images()]
    assert titles(panels)[:3] == ["image", "OMIG, #1", "other"] and titles(panels).count("cut-out 2") == 3
    assert len(panels) == 9 and panels[8].get_images()[0].get_array().shape == (20, 10)
    bars = [ax.get_xlabel() for ax in figure.axes if ax not in panels]
    assert bars == ["grey levels", "normalised grey", "µm"]
    assert clim(panels[0])[0] != -clim(panels[0])[1]  # the image is grey
    assert "not visited" in figure.get_supxlabel()


def test_the_scale_comes_from_inside_or_is_given():
    values = np.ones((60, 40))
    values[:10] = 100  # the border
    inside = np.arange(60)[:, None] + np.zeros(40) >= 10
    assert clim(pm.upsampled({"OMIG": values}).axes[0])[1] == 100
    assert clim(pm.upsampled({"OMIG": values}, inside=inside).axes[0]) == (-1, 1)
    both = pm.upsampled({"#1": values, "#4": values / 9}, limit=0.5).axes
    assert [clim(ax) for ax in both[:2]] == [(-0.5, 0.5)] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"maps": {}}, "maps: there is none"),
        ({"maps": {"A": MAP, "B": MAP.T}}, r"maps: B: shape \(40, 60\), expected \(60, 40\) as the first"),
        ({"maps": {"A": MAP * np.nan}}, "maps: none of 2400 values is finite and inside"),
        ({"maps": {"A": MAP}, "inside": MAP > 9}, "maps: none of 2400 values is finite and inside"),
        ({"maps": {"A": MAP}, "boxes": [(0, 0, 61, 5)]}, r"boxes: \[\(0, 0, 61, 5\)\] stick out of \(60, 40\)"),
    ],
)
def test_maps_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        pm.upsampled(**given)
    plt.close("all")


def test_two_networks_beside_the_image():
    notes = {"image": "discs are darker", "disc reader": "more visible"}
    figure = pm.polarity_pair(MAP, {"paper-like": MAP, "disc reader": -3 * MAP}, (0, 0, 20, 20), notes=notes)
    panels = [ax for ax in figure.axes if ax.get_images()]
    assert titles(panels) == ["image", "paper-like", "disc reader"]
    assert clim(panels[2])[1] == pytest.approx(3 * clim(panels[1])[1]) and clim(panels[2])[0] == -clim(panels[2])[1]
    assert [("more visible" in words(ax.texts)) for ax in panels] == [False, False, True]


# ---------------------------------------------------------------------------------------- numbers


def changed():
    true = {"contrast": {0.5: 0.6, 1: 0.3, 2: 0.15}, "noise": {1: 0.3, 1.2: 0.4}, "grid": {0.5: 0.3, 1: 0.3}}
    rows = []
    for what, by_factor in true.items():
        for factor, truth in by_factor.items():
            meter = 0.3 / factor if what == "grid" else 0.3
            rows.append(("paper-like", what, factor, E(meter, 0.9 * meter, 1.1 * meter), E(truth)))
            rows.append(("disc reader", what, factor, E(truth), E(truth)))
    return pd.DataFrame(rows[::-1], columns=["network", "what", "factor", "predicted", "true"])


def test_a_reader_lies_on_the_line_and_a_meter_stays_level():
    figure = po.intervention_figure(changed())
    assert titles(figure.axes) == ["contrast of all discs changed", "noise changed", "contrast of the grid changed"]
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert_allclose(lines["disc reader"].get_xydata(), lines["truth"].get_xydata())
        assert lines["truth"].get_color() == BLACK
        assert lines["paper-like"].get_marker() != lines["disc reader"].get_marker()
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert_allclose(lines["paper-like"].get_xydata(), [(0.5, 0.3), (1, 0.3), (2, 0.3)])
    assert words(figure.axes[0].get_xticklabels()) == ["×0.5", "×1", "×2"]
    assert set(words(figure.legends[0].get_texts())) == {"paper-like", "disc reader", "truth"}
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_predicted_over_true_midpoints():
    figure = po.intervention_figure(changed(), "true")
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert_allclose(*lines["prediction = truth"].get_data())
        assert_allclose(*lines["disc reader"].get_data())
    assert sorted(words(figure.axes[0].texts)) == ["×0.5", "×1", "×2"]
    meter = {line.get_label(): line for line in figure.axes[2].get_lines()}["paper-like"]
    assert_allclose(meter.get_xydata(), [(0.3, 0.6), (0.3, 0.3)])


def test_interventions_that_do_not_fit():
    for frame, against in ((changed(), "x"), (pd.concat([changed()] * 2), "true")):
        with pytest.raises(ValueError, match="each factor once per network"):
            po.intervention_figure(frame, against)
    with pytest.raises(ValueError, match="rows: lacks true"):
        po.intervention_figure(changed().drop(columns="true"))


def scores():
    rows = [
        {"network": n, "method": m, "diameters": d, "signed": E(s * v, s * v - 0.1, s * v + 0.1)}
        for n, s in (("paper-like", -1), ("disc reader", 1))
        for m, v in (("OMIG", 0.5), ("occlusion", 0.0))
        for d in ("<= 0.13", "all", "2.00-1.25")
    ]
    return pd.DataFrame(rows)


def test_scores_on_both_sides_of_zero():
    figure = po.disc_scores(scores())
    assert titles(figure.axes) == ["paper-like", "disc reader"]
    assert words(figure.axes[0].get_yticklabels()) == ["all", "2.00-1.25", "<= 0.13"]
    assert words(figure.legends[0].get_texts()) == ["OMIG", "occlusion"]
    for axes, value in zip(figure.axes, (-0.5, 0.5), strict=True):
        assert next(line for line in axes.get_lines() if line.get_label() == "OMIG").get_xdata() == pytest.approx(value)
        assert axes.get_xlim()[0] == -axes.get_xlim()[1]
        assert any(line.get_ls() == ":" and line.get_xdata()[0] == 0 for line in axes.get_lines())
        assert "easier to see →" in axes.get_xlabel()
    assert "red →" in po.disc_scores(scores().rename(columns={"signed": "score"}), "score").axes[0].get_xlabel()
    with pytest.raises(ValueError, match="rows: a group of diameters is there twice"):
        po.disc_scores(pd.concat([scores()] * 2))


def test_weights_in_opposite_orders():
    rows = [{"network": n, "diameter_mm": d, "total": E(d), "mean": E(1 / d)} for n in ("a", "b") for d in (0.1, 1.0)]
    figure = po.weights(pd.DataFrame(rows))
    assert len(figure.axes) == 4 and titles(figure.axes)[1] == "a: mean weight of a pixel"
    assert_allclose(figure.axes[0].get_lines()[0].get_xydata(), [(0.1, 0.1), (1, 1)])
    assert_allclose(figure.axes[3].get_lines()[0].get_ydata(), [10, 1])
    assert figure.axes[0].get_xlim()[0] > figure.axes[0].get_xlim()[1]
    assert figure.axes[2].get_xlabel() == "diameter, mm"
    with pytest.raises(ValueError, match="rows: a diameter is there twice"):
        po.weights(pd.DataFrame(rows * 2))


def test_curve_before_and_after_the_whole_map():
    before = np.geomspace(0.05, 2, 12)
    figure = po.whole_map_step(
        {"#1": {"before": before, "after": 0.98 * before, "truth": before}, "#4": {"before": before, "after": before}}
    )
    top, other, below, _ = figure.axes
    assert titles([top, other]) == ["#1", "#4"] and below.get_ylabel() == "change, %"
    assert_allclose(below.get_lines()[0].get_ydata(), -2)
    assert words(figure.legends[0].get_texts()) == ["before", "map added", "truth"]
    with pytest.raises(ValueError, match="curves: there is none"):
        po.whole_map_step({})


def paths():
    def row(c, steps, value, first=False):
        measures = ("with_sensitivity", "with_clipped", "relative_fall", "with_reference")
        return {"c": c, "steps": steps, "first_clipped": first, **{name: E(value) for name in measures}}

    found = [row(10.0, 50, 0.3), row(0.1, 50, 0.9), row(1.0, 50, 0.8), row(1.0, 10, 0.7), row(1.0, 200, 1.0)]
    return pd.DataFrame([*found, row(1.0, 50, 0.1, True)])


def test_sweeps_of_c_and_of_steps():
    left, middle, right = po.c_sweep(paths()).axes
    assert titles([left, middle, right]) == [
        "correlation of the map with",
        "fall of the midpoint, %",
        "correlation with L = 200",
    ]
    assert_allclose(left.get_lines()[1].get_xydata(), [(0.1, 0.9), (1, 0.8), (10, 0.3)])
    assert_allclose(middle.get_lines()[0].get_ydata(), [90, 80, 30])
    assert_allclose(right.get_lines()[0].get_xydata(), [(10, 0.7), (50, 0.8), (200, 1)])
    dotted = [line.get_xdata()[0] for ax in (left, middle, right) for line in ax.get_lines() if line.get_ls() == ":"]
    assert dotted == [1, 1, 50] and left.get_xscale() == "log"
    for frame in (paths().query("steps != 50"), pd.concat([paths()] * 2)):
        with pytest.raises(ValueError, match="each c once with 50 steps"):
            po.c_sweep(frame)
