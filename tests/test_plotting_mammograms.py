import numpy as np
import pandas as pd
import pytest
import torch
from mammogram_results import made, scored
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from xai_lib import plotting
from xai_lib.data import Case
from xai_lib.plotting import mammograms as pm
from xai_lib.results import Estimate
from xai_lib.studies.mammograms.summary import summarise
from xai_lib.studies.mammograms.variants import MAIN, THE_SEVEN

pytestmark = pytest.mark.usefixtures("closed")


@pytest.fixture(scope="module")
def result():
    return summarise(made(main=4, cheap=12, missed=3, pairs=3), scored(), 10, 0)


def case(shape=(40, 20), label=1):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[10:16, 5:12] = True
    return Case(torch.rand((1, *shape)), label, mask, torch.tensor([[10, 5, 16, 12]]), 0.4, "p", "CC", "s")


def frames(axes):
    """Boxes on an axes as (row0, col0, row1, col1)."""
    found = [p for p in axes.patches if isinstance(p, Rectangle)]
    return [
        (p.get_y() + 0.5, p.get_x() + 0.5, p.get_y() + p.get_height() + 0.5, p.get_x() + p.get_width() + 0.5)
        for p in found
    ]


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("guided_grad_cam", "Guided Grad-CAM"),
        ("guided_grad_cam_as_captum", "Guided Grad-CAM as Captum"),
        ("grad_cam", "Grad-CAM"),
        ("untrained integrated_gradients", "untrained Integrated Gradients"),
        ("kernel_shap, breast", "SHAP, breast"),
        ("occlusion, twin", "Occlusion, twin"),
        ("random box", "random box"),
        ("breast", "breast"),
    ],
)
def test_names_as_printed(name, printed):
    assert plotting.label(name) == printed


def test_enlarged_repeats_pixels():
    assert pm.enlarged(np.array([[1, 2], [3, 4]], np.int8), (4, 4)).tolist() == [[1, 1, 2, 2]] * 2 + [[3, 3, 4, 4]] * 2
    assert pm.enlarged(np.eye(4), (4, 4)).tolist() == np.eye(4).tolist()


def test_twins():
    figure = plotting.twins([case(), case()], [case(label=0), case(label=0)])
    assert [axes.get_title() for axes in figure.axes] == ["malignant", "healthy twin"] * 2


def test_sheet_draws_annotation_and_found_box():
    maps = {"saliency": np.random.default_rng(0).normal(size=(10, 5)), "lime": np.zeros((40, 20))}
    found = {"saliency": [[8, 4, 20, 14]], "lime": np.zeros((0, 4))}
    figure = plotting.sheet([case(), case()], [maps, maps], [found, found], ["first", "second"])
    axes = figure.axes
    assert len(axes) == 6 and [a.get_title() for a in axes] == ["first", "Saliency", "LIME", "second", "", ""]
    assert_allclose(frames(axes[0]), [(10, 5, 16, 12)])
    assert_allclose(frames(axes[1]), [(10, 5, 16, 12), (8, 4, 20, 14)])
    assert len(frames(axes[2])) == 1 and axes[1].get_images()[-1].get_array().shape == (40, 20)


def test_pipeline_shows_every_step():
    values = np.random.default_rng(0).random((40, 20))
    steps = {"map": values, "dilated": values, "above 0.99": values > 0.9, "opened": values > 0.9}
    separate = [[1, 1, 3, 3], [10, 6, 14, 11]]
    figure = plotting.pipeline(case(), steps, separate, [[1, 1, 14, 11]])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["image, annotation", *steps, "2 boxes", "merged"]
    assert len(frames(figure.axes[-2])) == 3 and len(frames(figure.axes[-1])) == 2


def test_boxplots(result):
    controls = ["brightness", "random box"]
    figure = plotting.iou_boxplots(result.iou, list(THE_SEVEN), controls, "IOU")
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == [*map(plotting.label, THE_SEVEN), "image brightness", "random box"]


def test_tpr_curves(result):
    figure = plotting.tpr_curves(result.tpr, [*THE_SEVEN, "brightness", "not there"])
    lines = figure.axes[0].get_lines()
    assert len(lines) == 8
    assert_allclose(lines[0].get_ydata(), result.tpr["saliency"])


def test_quantile_sweep(result):
    figure = plotting.quantile_sweep(result.sweep, list(THE_SEVEN))
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == [".9", ".95", ".97", ".98", ".99", ".995", ".998"]
    assert left.get_title() == "the thesis's single big box" and len(right.get_lines()) == 7


def test_dots_without_an_interval():
    table = pd.DataFrame({"map": ["saliency", "brightness"], "iou": [Estimate(0.3, 0.2, 0.4), Estimate(float("nan"))]})
    figure = plotting.dots(table, {"iou": "IOU"}, grey=["brightness"])
    assert len(figure.axes[0].get_lines()) == 3  # an interval and two points


def test_dots_of_a_study(result):
    assert len(plotting.dots(result.methods, {"iou": "union", "peak": "peak"}).axes) == 2


def test_peak_offsets():
    maps = made(main=2, cheap=6, missed=0).maps
    figure = plotting.peak_offsets(maps, ["grad_cam", "deeplift"], 64, (12.0, -4.0))
    left, right = figure.axes
    assert_allclose(left.get_lines()[3].get_xdata(), -5) and left.get_lines()[3].get_ydata()[0] > 8
    assert len(left.get_lines()) == 5 and len(right.get_lines()) == 4  # the square stands beside CAMs only
    empty = plotting.peak_offsets(maps[maps["image"] < 0], ["grad_cam"], 64)
    assert len(empty.axes) == 1


def test_before_after(result):
    figure = plotting.before_after(result.inserted, list(THE_SEVEN), {"energy": "share", "rank": "rank"})
    assert len(figure.axes) == 2 and len(figure.axes[0].containers) == 7


def test_every_method_of_a_figure_has_its_own_look():
    looks = [pm.METHOD_STYLES[name] for name in THE_SEVEN]
    assert len(set(looks)) == 7 and set(pm.LABELS) >= {*THE_SEVEN, "grad_cam"} and set(MAIN) >= set(THE_SEVEN)
