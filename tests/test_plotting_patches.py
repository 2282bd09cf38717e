import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from numpy.testing import assert_array_equal

from xai_lib import plotting
from xai_lib.data import Case
from xai_lib.results import Estimate

pytestmark = pytest.mark.usefixtures("closed")


def case(lesion=True):
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:8, 4:8] = lesion
    return Case(torch.full((1, 16, 16), 0.5), int(lesion), mask, torch.zeros(0, 4), 1.0, "p", "CC", "s")


def test_a_row_per_patch_and_a_column_per_method():
    maps = [{"saliency": np.eye(16), "guided_grad_cam": np.zeros((16, 16))}, {"saliency": 2 * np.eye(16)}]
    figure = plotting.patch_rows([case(), case(False)], maps, ["TP", "TN"])
    grid = np.array(figure.axes).reshape(2, 3)
    assert [ax.get_title() for ax in grid[0]] == ["TP", "saliency", "guided\ngrad cam"]
    assert [ax.get_title() for ax in grid[1]] == ["TN", "", ""]
    assert_array_equal(grid[0, 1].get_images()[1].get_array(), np.eye(16))
    assert len(grid[0, 2].get_images()) == 2  # a map without mass is clear, not missing
    assert not grid[1, 2].get_images()  # this patch has no such map


def test_points_and_intervals_and_chance():
    series = {
        "patches": {"lime": Estimate(0.4, 0.3, 0.5), "deeplift": Estimate(float("nan"))},
        "twins": {"lime": Estimate(0.2), "deeplift": Estimate(0.1, 0.0, 0.2)},
    }
    figure = plotting.method_points({"overlap": series, "other": series}, {"overlap": 0.25}, {"overlap": "share"})
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["lime", "deeplift"]
    marks = {line.get_label(): line for line in first.get_lines() if line.get_label() in series}
    assert_array_equal(marks["patches"].get_xdata(), [0.4])  # NaN is not drawn
    assert_array_equal(marks["twins"].get_xdata(), [0.2, 0.1])
    assert marks["patches"].get_ydata()[0] < marks["twins"].get_ydata()[0]
    bars = [line for line in first.get_lines() if len(line.get_xdata()) == 2 and line.get_ls() == "-"]
    assert [tuple(bar.get_xdata()) for bar in bars] == [(0.3, 0.5), (0.0, 0.2)]
    assert [line.get_xdata()[0] for line in first.get_lines() if line.get_ls() == ":"] == [0.25]
    assert not [line for line in second.get_lines() if line.get_ls() == ":"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["patches", "twins"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first method on top
    assert first.get_xlabel() == "share"


def test_both_triangles_of_the_agreement():
    above = pd.DataFrame([("a", "b", 0.5), ("a", "c", -0.9), ("b", "c", np.nan)], columns=["first", "second", "value"])
    below = above.assign(value=[0.1, 0.2, 0.3])
    figure = plotting.agreement_matrix(above, below, ("TP", "TN"))
    expected = [[np.nan, 0.5, -0.9], [0.1, np.nan, np.nan], [0.2, 0.3, np.nan]]
    assert_array_equal(np.ma.filled(figure.axes[0].get_images()[0].get_array(), np.nan), expected)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["-0.90", "0.10", "0.20", "0.30", "0.50"]
    assert "TP" in figure.axes[0].get_title()


def test_a_line_per_method_over_the_blocks():
    table = pd.DataFrame(
        {
            "method": ["saliency"] * 2 + ["deeplift"] * 2,
            "step": [1, 0, 0, 1],
            "layer": ["features.layer4", "trained", "trained", "features.layer4"],
            "absolute_rank_correlation": [0.3, 1.0, 1.0, 0.2],
            "image_effect": [2.0, 4.0, 4.0, 0.0],
        }
    )
    left, right = plotting.randomisation(table).axes
    lines = {line.get_label(): line for line in left.get_lines() if not line.get_label().startswith("_")}
    assert_array_equal(lines["saliency"].get_ydata(), [1.0, 0.3])
    assert len({to_hex(line.get_color()) for line in lines.values()}) == 2
    assert [text.get_text() for text in left.get_xticklabels()] == ["trained", "layer4"]
    assert_array_equal(right.get_lines()[0].get_ydata(), [4.0, 1.0])
