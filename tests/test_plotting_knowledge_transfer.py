import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn import functional

from xai_lib.data import Case
from xai_lib.data.rois import RECIPES
from xai_lib.patch_replacement import PatchReplacement
from xai_lib.plotting import knowledge_transfer as kp
from xai_lib.plotting import knowledge_transfer_images as ki
from xai_lib.results import Estimate as E

pytestmark = pytest.mark.usefixtures("closed")


def case(size=64, pixel_mm=0.5, box=(20, 16, 40, 48)):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    image = torch.linspace(0, 1, size * size).reshape(1, size, size)
    return Case(image, 1, mask, torch.tensor([list(box)]), pixel_mm, "p", "CC", "s")


def words(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def points(axes):
    """Label -> (x, y) of every line with a marker."""
    lines = [line for line in axes.get_lines() if line.get_marker() not in ("None", "", None)]
    return {line.get_label(): line.get_xydata() for line in lines}


def bars(axes):
    """Ends of every line without a marker and with two points."""
    return [line.get_xydata().tolist() for line in axes.get_lines() if line.get_marker() in ("None", "")]


def smallest_text(figure):
    texts = figure.findobj(matplotlib.text.Text)
    texts += [text for ax in figure.axes for text in (*ax.get_xticklabels(), *ax.get_yticklabels()) if ax.axison]
    return min(text.get_fontsize() for text in texts if text.get_text().strip())


# ---------------------------------------------------------------------------------------- images


def test_a_map_is_resized_as_by_torch():
    values = np.arange(25.0).reshape(5, 5)
    small = torch.from_numpy(values)[None, None]
    bilinear = functional.interpolate(small, (64, 48), mode="bilinear", align_corners=False)[0, 0]
    assert_array_equal(ki.resized(values, (64, 48)), bilinear)
    assert ki.resized([[1, 2], [3, 4]], (4, 4), "nearest").tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    with pytest.raises(ValueError, match="interpolation: 'cubic' is unknown, expected one of bilinear, nearest"):
        ki.resized(values, (8, 8), "cubic")


@pytest.mark.parametrize(("pixel_mm", "written"), [(0.5, "10 mm"), (0.2, "5 mm"), (0.02, None), (None, None)])
def test_the_scale_bar_fits(pixel_mm, written):
    _, axes = plt.subplots()
    ki.show_roi(axes, case(pixel_mm=pixel_mm))
    assert words(axes) == ([written] if written else [])
    if written:
        left, right = axes.get_lines()[0].get_xdata()
        assert (right - left) * pixel_mm == pytest.approx(float(written.split()[0]))
        assert right - left <= 32
    assert axes.get_xlim() == (-0.5, 63.5) and axes.get_ylim() == (63.5, -0.5)


def test_windows_and_rois_of_the_recipes():
    rois = {name: case(32, None, (8, 8, 20, 24)) for name in RECIPES}
    figure = ki.recipe_rows([case(), case()], [rois, {"original": rois["original"]}], ["first", "second"], context=50)
    grid = np.array(figure.axes).reshape(2, 6)
    assert [ax.get_title() for ax in grid[0]] == [
        "first",
        "original",
        "double square",
        "double flips",
        "shifted",
        "mass centred",
    ]
    drawn = {
        (round(p.get_y() + 0.5), round(p.get_x() + 0.5), round(p.get_height()), round(p.get_width()))
        for p in grid[0, 0].patches
        if not p.get_fill()
    }
    # box of 20 x 32 at (20, 16): itself; 64 x 64; 40 x 64; 50 x 50, all around the middle (30, 32)
    assert drawn == {(20, 16, 20, 32), (-2, 0, 64, 64), (10, 0, 40, 64), (5, 7, 50, 50)}
    assert grid[0, 0].get_ylim()[1] == -4.5  # the view reaches over the edge, to the window and two pixels more
    frames = [next(p for p in ax.patches if isinstance(p, Rectangle)) for ax in grid[0, 1:]]
    assert to_hex(frames[0].get_edgecolor()) == to_hex(frames[3].get_edgecolor())  # the same window
    assert len({(to_hex(f.get_edgecolor()), f.get_linestyle()) for f in frames}) == 4
    assert not grid[1, 2].get_images() and grid[1, 1].get_images()
    assert smallest_text(figure) >= 7


def test_every_map_is_divided_by_its_own_maximum():
    maps = [{"fine-tuning": 8 * np.eye(5), "transfer": np.zeros((7, 7))}, {"transfer": np.full((7, 7), 3.0)}]
    spots = torch.zeros(64, 64, dtype=torch.bool)
    spots[2:6, 2:6] = True
    regions = [{"calcifications": spots, "dense": torch.zeros_like(spots)}, {}]
    notes = [{"transfer": "40 % inside"}, {}]
    figure = ki.activation_rows([case(), case()], maps, ["a", "b"], regions, notes, interpolation="nearest")
    grid, bar = np.array(figure.axes[:-1]).reshape(2, 4), figure.axes[-1]
    assert [ax.get_title() for ax in grid[0]] == ["a", "mask", "fine-tuning", "transfer"]
    assert_array_equal(grid[0, 2].get_images()[1].get_array(), ki.resized(np.eye(5), (64, 64), "nearest"))
    assert grid[0, 3].get_images()[1].get_array().max() == 0  # a map of zeros is clear, not missing
    assert_array_equal(grid[1, 3].get_images()[1].get_array(), np.ones((64, 64)))
    assert len(grid[1, 2].get_images()) == 0
    assert_array_equal(grid[0, 1].get_images()[0].get_array(), case().mask)
    assert words(grid[0, 3]) == ["40 % inside"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mass", "calcifications"]  # what is there
    assert bar.get_ylabel() == "share of the map's maximum" and bar.get_ylim() == (0, 1)
    assert smallest_text(figure) >= 7


def test_maps_of_the_groups_alone():
    maps = [{f"group {k}": np.random.default_rng(k).random((8 - k, 8 - k)) for k in range(1, 5)}] * 2
    figure = ki.activation_rows([case(), case()], maps, ["binary mask", "ROI"], masks=False, over=False)
    grid = np.array(figure.axes[:-1]).reshape(2, 5)
    assert [ax.get_title() for ax in grid[0]] == ["binary mask", "group 1", "group 2", "group 3", "group 4"]
    colours = ki.heat(False)(np.linspace(0, 1, 9)), ki.heat()(np.linspace(0, 1, 9))
    assert (colours[0][:, 3] == 1).all() and (np.diff(colours[1][:, 3]) > 0).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mass"]


def found():
    distances = np.full((2, 2, 2), 0.3)
    distances[0, 0, 1] = 0.125
    distances[1, 1, 0] = 0.1
    return PatchReplacement(distances, np.arange(4.0).reshape(2, 2), np.zeros((2, 2)), 32)


def test_cells_have_letters_and_one_has_its_distances():
    contents = {"lesion": np.zeros((64, 64)), "background": np.ones((64, 64))}
    figure = ki.replacement_panels([case()] * 2, [contents] * 2, [found()] * 2, ["a", "b"], [(0, 1), None])
    grid = np.array(figure.axes[:-1]).reshape(2, 5)
    assert [ax.get_title() for ax in grid[0]] == ["a", "Lesion", "Background", "L Lesion, B Background", "activation"]
    letters = [[text for text in words(ax) if text in "LB"] for ax in grid[:, 3]]
    assert letters == [["B", "L", "B", "B"]] * 2  # a tie is Background
    colours = [to_hex(patch.get_facecolor()) for patch in grid[0, 3].patches[:4]]
    assert colours[1] != colours[0] == colours[2] == colours[3]
    assert [words(ax)[-1] for ax in grid[0, :4]] == [
        "framed cell:",
        "distance 0.125",
        "distance 0.3",
        "the smaller: Lesion",
    ]
    framed = grid[0, 1].patches[0]
    assert (framed.get_y() + 0.5, framed.get_x() + 0.5, framed.get_height()) == (0, 32, 32)
    assert not grid[1, 1].patches and not words(grid[1, 1])
    lines = [c for c in grid[0, 0].collections if isinstance(c, LineCollection)]
    assert [len(c.get_segments()) for c in lines] == [1, 1]  # between two rows and two columns
    assert_array_equal(grid[0, 2].get_images()[0].get_array(), contents["background"])
    assert grid[0, 4].get_images()[1].get_array().max() == 1
    assert smallest_text(figure) >= 7


def test_no_cell_need_be_chosen():
    contents = {"lesion": np.zeros((64, 64)), "background": np.ones((64, 64))}
    figure = ki.replacement_panels([case()], [contents], [found()], ["a"])
    assert not figure.axes[1].patches and not words(figure.axes[1])
    assert any(isinstance(c, QuadMesh) for c in figure.axes[-1].collections)


# ---------------------------------------------------------------------------------------- numbers


def test_the_papers_matrices_are_named_as_the_papers():
    ours = {"fine-tuning": [[30, 10], [5, 15]], "masks": [[1.5, 0.5], [0, 0]]}
    figure = kp.confusion_matrices(ours, {"fine-tuning": [[53, 91], [42, 88]], "masks": None})
    first, second, papers, empty = figure.axes
    assert words(first) == ["30\n75 %", "10\n25 %", "5\n25 %", "15\n75 %"]
    assert words(second) == ["2\n75 %", "0\n25 %", "0\n0 %", "0\n0 %"]  # a row without cases
    assert first.get_title() == "ours:\nfine-tuning" and papers.get_title() == "the paper's:\nfine-tuning"
    assert words(papers)[0] == "53\n37 %" and not words(empty) and not empty.axison
    maps = [ax.get_images()[0].get_cmap().name for ax in (first, papers)]
    assert maps == ["Blues", "Greys"]
    assert (first.get_ylabel(), first.get_xlabel()) == ("truth", "called")
    assert smallest_text(figure) >= 7


def test_matrices_alone_need_no_owner():
    figure = kp.confusion_matrices({str(k): np.eye(2) for k in range(3)}, columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["0", "1", "2", ""]


def test_accuracy_beside_the_papers():
    frame = pd.DataFrame(
        {
            "start": ["ImageNet", "ImageNet", "mammograms"],
            "method": ["fine-tuning", "transfer", "transfer"],
            "accuracy": [E(0.6, 0.5, 0.7), E(0.65), E(0.8, 0.75, 0.85)],
        }
    )
    paper = {"ImageNet": {"transfer": E(0.682, 0.627, 0.737), "not ours": E(0.1)}}
    figure = kp.accuracy_rows(frame, {"ImageNet": 0.62, "mammograms": 0.62}, paper)
    first, second = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["ImageNet", "mammograms"]
    assert_allclose(points(first)["ours"], [(0.6, 0), (0.65, 1)])
    assert [[0.5, 0], [0.7, 0]] in bars(first)
    hollow = [line for line in first.get_lines() if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1 and hollow[0].get_xdata()[0] == 0.682 and 1 < hollow[0].get_ydata()[0] < 1.5
    assert not [line for line in second.get_lines() if line.get_markerfacecolor() == "white"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours, 95 % interval", "paper (BCDR), mean ± sd"]
    assert first.get_xlim() == second.get_xlim()
    assert first.get_xlabel() == "accuracy (dotted: majority class)"
    assert smallest_text(figure) >= 7


def test_recipes_beside_the_papers():
    frame = pd.DataFrame({"recipe": ["original", "mass_centred"], "accuracy": [E(0.6, 0.5, 0.7), E(0.7, 0.6, 0.8)]})
    figure = kp.recipe_points(frame, {"original": 0.544, "mass_centred": 0.636}, 0.62)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["original", "mass centred"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ours, 95 % interval", "paper (OMI-DB)"]
    assert sorted(line.get_xdata()[0] for line in axes.get_lines() if line.get_markerfacecolor() == "white") == [
        0.544,
        0.636,
    ]
    assert len(kp.recipe_points(frame).axes[0].get_lines()) == 3  # two intervals and the points


def test_a_line_per_case_and_a_box_per_group():
    rows = [
        {"network": n, "case": f"c{c}", "group": f"group{g}", "printed": 1.0 + c, "mean_squared": 10.0**-g}
        for n in ("start", "random")
        for c in range(3)
        for g in (1, 2, 3, 4)
    ]
    figure = kp.distance_groups(pd.DataFrame(rows))
    grid = np.array(figure.axes).reshape(2, 2)
    assert [ax.get_yscale() for ax in grid[0]] == ["linear", "log"]
    assert grid[0, 0].get_title() == "start: equation 4 as printed, 3 cases"
    assert "log $d_j$ + 10" in grid[1, 1].get_ylabel() and "log" not in grid[1, 0].get_ylabel()
    (lines,) = [c for c in grid[1, 1].collections if isinstance(c, LineCollection)]
    assert len(lines.get_segments()) == 3
    assert_allclose(lines.get_segments()[0], [(0, 0.1), (1, 0.01), (2, 0.001), (3, 0.0001)])
    assert len(grid[0, 0].patches) == 4
    assert [tick.get_text() for tick in grid[1, 0].get_xticklabels()] == ["group 1", "group 2", "group 3", "group 4"]
    assert smallest_text(figure) >= 7


def shift():
    values = {"same": 0.9, "reversed": 0.2, "none": 0.6}
    rows = [
        {"test": test, "method": method, "auc": E(v + k / 100, v - 0.1, v + 0.1), "inside": E(0.4)}
        for test, v in values.items()
        for k, method in enumerate(("fine-tuning", "transfer", "transfer, groups 3 and 4", "another"))
    ]
    return pd.DataFrame(rows)


def test_lines_over_the_test_sets():
    figure = kp.shift_lines(shift(), {"auc": "AUC", "inside": "share"})
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["same", "none", "reversed"]
    lines = points(left)
    assert_allclose(lines["transfer"][:, 1], [0.91, 0.61, 0.21])
    assert (lines["fine-tuning"][:, 0] < lines["transfer"][:, 0]).all()  # dodged
    assert_allclose(lines["fine-tuning"][:, 0].round(), [0, 1, 2])
    assert len([bar for bar in bars(left) if bar[0][0] == bar[1][0]]) == 12
    level = [
        [
            line.get_ydata()[0]
            for line in ax.get_lines()
            if line.get_ls() == ":" and not line.get_label().startswith("a")
        ]
        for ax in (left, right)
    ]
    assert level == [[0.5], []]
    looks = {
        line.get_label(): (line.get_color(), line.get_ls()) for line in left.get_lines() if line.get_label() in lines
    }
    assert len(set(looks.values())) == 4 and looks["transfer"][0] == looks["transfer, groups 3 and 4"][0]
    assert left.get_xlabel() == "calcifications in testing" and right.get_ylabel() == "share"
    assert smallest_text(figure) >= 7


def test_other_test_sets_come_last():
    frame = shift().replace({"test": {"same": "moved"}})
    figure = kp.shift_lines(frame[frame["method"] != "another"], tested="place")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["none", "reversed", "moved"]
    assert figure.axes[0].get_xlabel() == "place"


def betas():
    rows = [("printed", 0.0)] + [(form, b) for form in ("printed", "mean_squared") for b in (100.0, 1.0)]
    return pd.DataFrame(
        [
            {
                "test": test,
                "form": form,
                "beta": beta,
                "auc": E(0.5 + beta / 1000, 0.4, 0.7),
                "distance": E(0.5),
                "inside": E(0.3),
            }
            for test in ("reversed", "same")
            for form, beta in rows
        ]
    )


def test_fine_tuning_is_a_band_under_the_betas():
    figure = kp.beta_curves(betas())
    grid = np.array(figure.axes).reshape(3, 2)
    assert [ax.get_title() for ax in grid[0]] == [f"calcifications in testing: {t}" for t in ("same", "reversed")]
    assert [ax.get_ylabel() for ax in grid[:, 0]] == ["AUC", "distance to teacher", "share inside the mass"]
    lines = points(grid[0, 0])
    assert set(lines) == {"equation 4 as printed", "mean of squares"}
    assert_allclose(lines["mean of squares"][:, 1], [0.501, 0.6])  # in the order of beta
    assert_allclose(lines["equation 4 as printed"][:, 0], [1, 100], rtol=0.1)
    (band,) = grid[0, 0].patches
    assert_allclose([band.get_y(), band.get_y() + band.get_height()], [0.4, 0.7])
    assert not grid[1, 0].patches  # no interval, no band
    assert grid[0, 0].get_xscale() == "symlog" and grid[2, 1].get_xlim()[0] == 0
    assert [tick.get_text() for tick in grid[2, 0].get_xticklabels()] == ["0", "$10^{0}$", "$10^{1}$", "$10^{2}$"]
    assert [t.get_text() for t in figure.legends[0].get_texts()][-1] == "fine-tuning (beta 0)"
    assert smallest_text(figure) >= 7


def test_a_sweep_needs_a_beta():
    frame = betas()
    with pytest.raises(ValueError, match="frame: no beta above 0, expected at least one beside fine-tuning"):
        kp.beta_curves(frame[frame["beta"] == 0])


def test_controls_of_the_cells_are_grey():
    frame = pd.DataFrame({"network": ["transfer", "pixels alone", "centre"], "auc": [E(0.8, 0.7, 0.9), E(0.8), E(0.9)]})
    figure = kp.cell_points(frame)
    (axes,) = figure.axes
    colours = [to_hex(line.get_color()) for line in axes.get_lines() if line.get_marker() == "o"]
    assert colours == [to_hex(kp.BLUE), to_hex("0.5"), to_hex("0.5")]
    assert [line.get_xdata()[0] for line in axes.get_lines() if line.get_ls() == ":"] == [0.5]
    assert "grey: without a network" in axes.get_title()
    gap = frame.assign(activation_gap=[E(0.1), E(0.2), E(float("nan"))])
    assert len(kp.cell_points(gap, {"auc": "AUC", "activation_gap": "gap"}).axes) == 2
    assert smallest_text(figure) >= 7
