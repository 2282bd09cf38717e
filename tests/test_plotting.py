import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgba
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from xai_lib import plotting
from xai_lib.attribution import Attribution
from xai_lib.data import Case
from xai_lib.localization import COLUMNS, REGIONS
from xai_lib.plotting import common
from xai_lib.statistics import Estimate

pytestmark = pytest.mark.usefixtures("closed")


def case(label=1, pixel_mm=0.5, mask=True, shape=(40, 60)):
    inside = torch.zeros(shape, dtype=torch.bool)
    inside[10:20, 20:40] = True
    image = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
    return Case(image, label, inside if mask else None, torch.zeros(0, 4), pixel_mm, "p", "v", "s")


def drawn(axes):
    """The pictures on an axes, in the order in which they were drawn."""
    return axes.get_images()


def lines(axes, **wanted):
    """Lines of an axes with these properties: marker, linestyle or colour."""
    found = axes.get_lines()
    for name, value in wanted.items():
        if name == "color":
            found = [line for line in found if to_hex(line.get_color()) == to_hex(value)]
        else:
            found = [line for line in found if getattr(line, f"get_{name}")() == value]
    return list(found)


def marks(axes):
    """Markers without a line: (marker, x, y, colour)."""
    return [
        (line.get_marker(), float(line.get_xdata()[0]), float(line.get_ydata()[0]), to_hex(line.get_color()))
        for line in axes.get_lines()
        if line.get_marker() not in ("None", "")
    ]


# ------------------------------------------------------------------------------------------- files, source


def test_save_writes_a_png_in_a_new_folder(tmp_path):
    figure, _ = plt.subplots(figsize=(2, 1))
    plotting.save(figure, tmp_path / "new" / "figures", "table2")
    with Image.open(tmp_path / "new" / "figures" / "table2.png") as picture:
        assert picture.format == "PNG"
        assert max(picture.size) > 100
    plotting.save(figure, str(tmp_path / "new" / "figures"), "table2")  # again, and with a text


def test_show_source():
    shown = plotting.show_source(plotting.save)
    assert inspect.getsource(plotting.save) in shown.data and shown.data.startswith("```python\n")


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("pixel_mm", "length"), [(0.5, 20.0), (0.25, 40.0)])
def test_scale_bar_is_10_mm_long(pixel_mm, length):
    _, axes = plt.subplots()
    plotting.show_image(axes, case(pixel_mm=pixel_mm), outline=False)
    (bar,) = axes.get_lines()
    assert np.ptp(bar.get_xdata()) == pytest.approx(length)
    assert np.ptp(bar.get_ydata()) == 0
    assert [text.get_text() for text in axes.texts] == ["10 mm"]


@pytest.mark.parametrize(("options", "pixel_mm"), [({}, None), ({"bar": False}, 0.5)])
def test_no_scale_bar(options, pixel_mm):
    _, axes = plt.subplots()
    plotting.show_image(axes, case(pixel_mm=pixel_mm), **options)
    assert not axes.get_lines()
    assert not axes.texts


def test_image_has_a_fixed_grey_scale_and_an_outline():
    _, (with_outline, without, no_mask) = plt.subplots(1, 3)
    plotting.show_image(with_outline, case(), bar=False)
    plotting.show_image(without, case(), outline=False, bar=False)
    plotting.show_image(no_mask, case(mask=False), bar=False)
    (picture,) = drawn(with_outline)
    assert picture.get_clim() == (0, 1)
    assert_array_equal(picture.get_array(), case().image[0])
    (outline,) = with_outline.collections
    vertices = np.concatenate([path.vertices for path in outline.get_paths()])
    assert_allclose([vertices[:, 0].min(), vertices[:, 0].max()], [19.5, 39.5])  # columns 20 to 39
    assert_allclose([vertices[:, 1].min(), vertices[:, 1].max()], [9.5, 19.5])  # rows 10 to 19
    assert not without.collections
    assert not no_mask.collections


@pytest.mark.parametrize(("label", "title"), [(0, "benign"), (1, "malignant"), (None, "")])
def test_title_is_the_class(label, title):
    _, (axes, named) = plt.subplots(1, 2)
    plotting.show_image(axes, case(label))
    plotting.show_image(named, case(label), title="")
    assert axes.get_title() == title
    assert named.get_title() == ""


def test_image_grid_fills_rows():
    figure = plotting.image_grid([case(i % 2) for i in range(5)], columns=3, title="Examples")
    assert len(figure.axes) == 6
    assert [len(drawn(axes)) for axes in figure.axes] == [1, 1, 1, 1, 1, 0]
    assert [axes.get_title() for axes in figure.axes] == ["benign", "malignant", "benign", "malignant", "benign", ""]
    assert not any(axes.axison for axes in figure.axes)
    assert figure.get_suptitle() == "Examples"


# --------------------------------------------------------------------------------------------------- maps


def test_scheme_has_symmetric_scales():
    parts = np.array([[[0.5, -3.0]], [[1.0, 0.0]]])
    cam = np.array([[4.0, -1.0]])
    figure = plotting.cam_scheme(case(), parts, ["one", "two"], cam, bias=0.25, logit=1.75)
    image, first, second, total = figure.axes[:4]
    assert [drawn(ax)[0].get_clim() for ax in (first, second)] == [(-3, 3)] * 2  # one scale for all parts
    assert drawn(total)[0].get_clim() == (-4, 4)
    assert all(drawn(ax)[0].get_cmap().name == "RdBu_r" for ax in (first, second, total))
    assert [ax.get_title() for ax in (image, first, second)] == ["image", "one", "two"]
    assert total.get_title() == "sum of all channels = CAM\nmean +1.50, bias +0.25\nlogit +1.75"


def test_positive_is_red():
    red, _, blue = plt.get_cmap("RdBu_r")([1.0, 0.5, 0.0])
    assert red[0] > red[2]
    assert blue[2] > blue[0]


def test_cam_cases_scale_and_points():
    maps = [np.linspace(-5, 2, 40 * 60).reshape(40, 60), np.full((40, 60), 1.0)]
    points = [{"maximum": (30, 12), "minimum": (3, 50)}, {"maximum": (0, 1), "minimum": (2, 3)}]
    figure = plotting.cam_cases([case(), case(0)], maps, points, ["a", "b"])
    top, lower = figure.axes[:2], figure.axes[2:4]
    assert [ax.get_title() for ax in top] == ["a", "b"]
    assert [len(drawn(ax)) for ax in top] == [1, 1]
    for ax, m, marked in zip(lower, maps, points, strict=True):
        _, overlay = drawn(ax)
        assert (overlay.norm.vmin, overlay.norm.vcenter, overlay.norm.vmax) == (-5, 0, 5)
        assert overlay.get_cmap().name == "RdBu_r"
        assert_array_equal(overlay.get_array(), m)
        scatters = [c for c in ax.collections if isinstance(c, PathCollection)]
        places = [tuple(float(v) for v in c.get_offsets()[0]) for c in scatters]
        (top_row, top_col), (low_row, low_col) = marked["maximum"], marked["minimum"]
        assert places == [(top_col, top_row)] * 2 + [(low_col, low_row)] * 2  # x is the column
        assert [tuple(c.get_edgecolors()[0]) for c in scatters] == [to_rgba("white"), to_rgba("black")] * 2
        assert len(scatters[3].get_facecolors()) == 0  # the circle of the minimum is open
    assert "red malignant" in figure.axes[-1].get_ylabel()


def test_cam_cases_with_a_given_limit_and_with_empty_maps():
    zero = np.zeros((40, 60))
    points = [{"maximum": (1, 2), "minimum": (3, 4)}]
    figure = plotting.cam_cases([case()], [zero], points, ["a"], limit=7)
    norm = drawn(figure.axes[1])[1].norm
    assert (norm.vmin, norm.vmax) == (-7, 7)
    norm = drawn(plotting.cam_cases([case()], [zero], points, ["a"]).axes[1])[1].norm
    assert norm.vmin == -norm.vmax < 0
    with pytest.raises(ValueError, match="zip"):
        plotting.cam_cases([case()], [zero, zero], points, ["a"])


def test_regions_figure_shades_each_region():
    areas = np.zeros((40, 60), np.uint8)
    areas[10:20, 20:40], areas[5:10, 20:40], areas[25:, 20:40] = REGIONS["mass"], REGIONS["ring"], REGIONS["below"]
    areas[19, 20:40] |= REGIONS["ring"]  # a pixel may be in two regions
    figure = plotting.regions_figure(case(), areas)
    assert figure.axes[0].get_title() == "A. image (malignant)"
    for ax, (name, bit) in zip(figure.axes[1:], REGIONS.items(), strict=True):
        shade = drawn(ax)[1]
        assert_array_equal(np.isfinite(np.ma.filled(shade.get_array(), np.nan)), areas & bit > 0)
        assert to_hex(shade.get_cmap()(0)) == plotting.REGION_COLOURS[name].lower()
        assert not ax.get_lines()  # one scale bar is enough
    assert plotting.regions_figure(case(None), areas).axes[0].get_title() == "A. image"


def test_offsets_show_rows_and_columns_the_right_way_round():
    energy = np.zeros((3, 20, 30))
    energy[:, 4, 9] = 4.0
    energy[:, 5, 9] = 1.0
    figure = plotting.offsets({"net": (energy, (4.0, 9.0), (6.0, 14.0))})
    assert [m[:3] for m in marks(figure.axes[0])] == [("s", 14.0, 6.0), ("x", 9.0, 4.0)]
    assert figure.axes[0].get_title() == "net\noffset (-2, -5) px"
    shown = drawn(figure.axes[0])[0].get_array()
    assert shown[4, 9] == 1
    assert shown[5, 9] == pytest.approx(0.5)  # the root of 1 / 4


# ------------------------------------------------------------------------------------------------- tables


def table():
    def rates(mass):
        return {c: Estimate(mass + 0.1 * i, mass - 0.05, mass + 0.05) for i, c in enumerate(COLUMNS)}

    rows = [("CAM", "map", 0.3), ("two random points", "chance", 0.2), ("image centre", "chance", 0.6)]
    return pd.DataFrame(
        [
            {"row": name, "kind": kind, "class": group, "images": 9, **rates(value + shift)}
            for name, kind, value in rows
            for group, shift in (("all", 0), ("benign", 0.07))
        ]
    )


def test_pointing_draws_chance_in_grey_diamonds():
    paper = {"mass": 0.34, "ring": 0.38, "below": 0.30, "any": 0.71}
    figure = plotting.pointing(table(), paper, title="Tab. 2")
    blue, grey = common.BLUE.lower(), to_hex("grey")
    for i, (ax, region) in enumerate(zip(figure.axes, COLUMNS, strict=True)):
        assert ax.get_title() == region
        found = marks(ax)
        assert [(m[0], m[3]) for m in found] == [("o", blue), ("D", grey), ("D", grey)]
        assert_allclose([m[1] for m in found], [30 + 10 * i, 20 + 10 * i, 60 + 10 * i])
        assert [m[2] for m in found] == [0, -1, -2]
        (dashed,) = lines(ax, linestyle="--")
        assert_allclose(dashed.get_xdata(), 100 * paper[region])
        bars = [line for line in lines(ax, linestyle="-", marker="None")]
        assert_allclose([bar.get_xdata() for bar in bars], [[25, 35], [15, 25], [55, 65]])
        assert [to_hex(bar.get_color()) for bar in bars] == [blue, grey, grey]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["CAM", "two random points", "image centre"]
    assert figure.get_suptitle() == "Tab. 2 (dashed: the paper's value; diamonds: chance)"


def test_pointing_of_one_class_and_without_the_paper():
    figure = plotting.pointing(table(), group="benign")
    assert_allclose([m[1] for m in marks(figure.axes[0])], [37, 27, 67])
    assert not lines(figure.axes[0], linestyle="--")
    assert figure.get_suptitle() == "diamonds: chance"


def test_pointing_without_an_interval():
    rows = table().map(lambda v: Estimate(v.value) if isinstance(v, Estimate) else v)
    figure = plotting.pointing(rows)
    assert len(marks(figure.axes[0])) == len(figure.axes[0].get_lines()) == 3


def test_estimates_beside_the_paper():
    rows = {
        "ours": {"auc": Estimate(0.8, 0.7, 0.9), "accuracy": Estimate(0.6)},
        "chance": {"auc": Estimate(0.5, 0.4, 0.6), "accuracy": Estimate(0.4)},
    }
    figure = plotting.estimates(rows, {"auc": Estimate(0.25, 0.0, 0.5)})
    auc, accuracy = figure.axes
    assert [m[1:3] for m in marks(auc)] == [(0.8, 0), (0.5, -1)]
    assert_allclose([line.get_xdata() for line in lines(auc, linestyle="-", marker="None")], [[0.7, 0.9], [0.4, 0.6]])
    (dashed,) = lines(auc, linestyle="--")
    assert_allclose(dashed.get_xdata(), 0.25)
    (span,) = auc.patches
    assert_allclose(span.get_extents().transformed(auc.transData.inverted()).intervalx, [0, 0.5], atol=1e-9)
    assert len(accuracy.get_lines()) == 2 and not accuracy.patches  # no interval, and nothing in the paper
    assert len(plotting.estimates({"ours": {"auc": Estimate(0.8)}}).axes) == 1


# ------------------------------------------------------------------------------------------------- curves


def test_roc():
    curve = ([0, 0.2, 1], [0, 0.9, 1])
    figure = plotting.roc({"ours": curve, "chance": ([0, 1], [0, 1])}, point=(0.2, 0.9))
    (ax,) = figure.axes
    ours = lines(ax, color=common.BLUE)[0]
    assert_array_equal(ours.get_xdata(), curve[0])
    assert_array_equal(ours.get_ydata(), curve[1])
    assert [m[:3] for m in marks(ax)] == [("o", 0.2, 0.9)]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ours", "chance", "closest to the corner"]
    (diagonal,) = lines(ax, linestyle=":")
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert not marks(plotting.roc({"ours": curve}).axes[0])


def test_training_length_in_per_cent_with_chance_of_each_region():
    rows = pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "auc": [0.5, 0.6, 0.9],
            "mass": [0, 0.1, 0.2],
            "ring": 0.3,
            "below": 0.4,
            "any": [0.5, 0.6, 0.7],
        }
    )
    chance = {"mass": 0.05, "ring": 0.15, "below": 0.25, "any": 0.35}
    left, right = plotting.training_length(rows, chance).axes
    (auc,) = lines(left, marker="o")
    assert_allclose(auc.get_ydata(), rows["auc"])
    assert_allclose(lines(left, linestyle=":")[0].get_ydata(), 0.5)
    colours = plotting.REGION_COLOURS | {"any": common.BLACK}
    for region, colour in colours.items():
        (curve,) = lines(right, marker="o", color=colour)
        assert_allclose(curve.get_ydata(), 100 * rows[region])
        assert curve.get_label() == region
        (level,) = lines(right, linestyle=":", color=colour)
        assert_allclose(level.get_ydata(), 100 * chance[region])


def test_coverage_shows_every_rule_but_the_first():
    rules = pd.DataFrame(
        {
            "rule": ["answer all", "a point in any region", "a point in mass or ring", "a point in the mass"],
            "coverage": [1.0, 0.8, 0.6, 0.3],
            "accuracy": [0.7, 0.71, 0.72, 0.73],
            "random": 0.7,
        }
    )
    (ax,) = plotting.coverage(([0.5, 1.0], [0.95, 0.7]), rules).axes
    assert [m[1:3] for m in marks(ax)] == [(0.8, 0.71), (0.6, 0.72), (0.3, 0.73)]
    assert_allclose(lines(ax, linestyle=":")[0].get_ydata(), 0.7)
    assert_allclose(lines(ax, color=common.BLUE)[0].get_ydata(), [0.95, 0.7])
    assert "answer with a point in the mass" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_cue_matrix():
    values = pd.DataFrame({"mass": [0.1, 0.9], "ring": [0.25, 0.5]}, index=["shape", "margin"])
    ax, _ = plotting.cue_matrix(values, "cues", pd.Series({"ring": 0.3, "mass": 0.2})).axes
    (picture,) = drawn(ax)
    assert picture.get_clim() == (0, 100)
    assert_allclose(picture.get_array(), 100 * values)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {(0, 0): "10", (1, 0): "25", (0, 1): "90", (1, 1): "50"}  # (column, row)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["mass\n(chance 20)", "ring\n(chance 30)"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["shape", "margin"]
    plain = plotting.cue_matrix(values, "cues").axes[0]
    assert [t.get_text() for t in plain.get_xticklabels()] == ["mass", "ring"]


def attribution(method="saliency", shape=(40, 60), backward=1):
    m = torch.linspace(-1, 2, shape[0] * shape[1]).view(1, *shape)
    return Attribution(method, m, torch.tensor([0]), torch.tensor([1.5]), None, None, None, 3, backward, 0.25, ())


def test_methods_shows_one_panel_each_with_its_cost():
    figure = plotting.methods(case(), {"saliency": attribution(), "lime": attribution("lime", backward=0)}, columns=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "image, mass outlined"
    assert titles[1] == "saliency\n3 F + 1 B, 0.25 s" and titles[2] == "lime\n3 F, 0.25 s"
    assert len(figure.axes) == 4


def test_an_overlay_is_symmetric_and_clear_at_zero():
    _, axes = plt.subplots()
    values = np.zeros((40, 60))
    values[0, 0] = -4
    plotting.overlay(axes, case(), values, limit=2)
    drawn = axes.images[-1]
    assert drawn.norm.vmin == -2 and drawn.norm.vmax == 2
    alpha = np.asarray(drawn.get_alpha())
    assert alpha[0, 0] == pytest.approx(0.9) and alpha[1, 1] == pytest.approx(0.15)


def test_an_overlay_of_a_zero_map_can_be_drawn():
    figure, axes = plt.subplots()
    plotting.overlay(axes, case(), np.zeros((40, 60)))
    figure.canvas.draw()


def test_explained_names_method_and_score():
    figure = plotting.explained(case(), attribution("deeplift"))
    assert figure.axes[1].get_title() == "deeplift, output 0: +1.50"
    assert "red for" in figure.axes[-1].get_ylabel()
