from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from drawings import titles, words
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from xai_lib.data import Case
from xai_lib.deletion_region import DeletionConfig, start_mask
from xai_lib.plotting import deletion as dp
from xai_lib.plotting import deletion_images as di
from xai_lib.plotting.common import GREEN, ORANGE
from xai_lib.results import Estimate as E
from xai_lib.studies.deletion.inpainting_losses import WEIGHTS

pytestmark = pytest.mark.usefixtures("drawn")


# ---------------------------------------------------------------------------------------- numbers


def scores():
    """Healthy images at 0 and 2; masses at 1 and 3; inpainted, at -1 and -1, then at -1 and 1."""
    rows = [("none", 0, 0, 0.0), ("none", 0, 0, 2.0), ("none", 0, 1, 1.0), ("none", 0, 1, 3.0)]
    rows += [("mass", 0, 1, -1.0), ("mass", 0, 1, -1.0), ("mass", 1, 1, -1.0), ("mass", 1, 1, 1.0)]
    return pd.DataFrame(rows, columns=["tissue", "run", "label", "logit"])


def test_rocs_by_hand():
    figure = dp.tissue_rocs(scores())
    assert words(figure.legends[0].get_texts()) == [
        "no inpainting: AUC 0.75",
        "mass inpainted: AUC 0.12 (0.00 to 0.25 in 2 runs)",
    ]
    none, mass = figure.axes[0].get_lines()[:2]
    assert_array_equal(none.get_xydata(), [(0, 0), (0, 0.5), (0.5, 1), (1, 1)])
    assert_array_equal(mass.get_xydata(), [(0, 0), (0, 0), (0.5, 0.25), (1, 1)])  # the mean of 0 and 0.5
    assert none.get_drawstyle() == mass.get_drawstyle() == "steps-post"
    assert none.get_linestyle() != mass.get_linestyle() and none.get_color() != mass.get_color()
    (band,) = figure.axes[0].collections  # of the two runs
    assert {(0.5, 0.0), (0.5, 0.5)} <= {tuple(point) for point in band.get_paths()[0].vertices}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.drop(columns="run"),
            "scores: lacks run; expected rows with the columns tissue, run, label, logit",
        ),
        (lambda s: s[s["tissue"] != "none"], "scores: tissue 'none': expected logits of label 0 and of label 1"),
        (lambda s: s[s["label"] == 1], "scores: tissue 'none': expected logits of label 0 and of label 1"),
        (lambda s: s.assign(logit=np.nan), "scores: a logit is not finite"),
        (lambda s: s.assign(label=0), "scores: tissue 'none': expected logits"),
        (lambda s: s[:0], "scores: is empty"),
    ],
)
def test_scores_that_have_no_roc(change, message):
    with pytest.raises(ValueError, match=message):
        dp.tissue_rocs(change(scores()))
    plt.close("all")


def sweep(values=(1.0, 0.1, 0.0, 0.01)):
    return pd.DataFrame(
        [{"lambda2": v, "D": E(10 * v + 1, 10 * v, 10 * v + 2), "components": E(5 - v)} for v in values]
    )


def test_zero_stands_apart():
    figure = dp.sweep_curves(sweep(), {"D": "D, mm", "components": "components"})
    assert titles(figure.axes) == ["D, mm", "components"]
    line, zero = figure.axes[0].get_lines()[:2]
    assert_allclose(line.get_xydata(), [(-2, 1.1), (-1, 2), (0, 11)])  # in order, on decades
    assert_allclose(zero.get_xydata(), [(-2.6, 1)])
    assert words(figure.axes[0].get_xticklabels()) == ["0", ".01", ".1", "1"]
    assert_allclose(figure.axes[0].collections[0].get_segments()[0], [(-2.6, 0), (-2.6, 2)])
    (used,) = [line for line in figure.axes[1].get_lines() if line.get_ls() == ":"]
    assert used.get_xdata()[0] == -1


def test_five_panels_take_two_rows():
    table = sweep((0.1, 1)).assign(a=E(1), b=E(1), c=E(float("nan")))
    figure = dp.sweep_curves(table, {name: name for name in ("D", "components", "a", "b", "c")}, used=None)
    assert [ax.axison for ax in figure.axes] == [True] * 5 + [False] * 3
    assert not [line for ax in figure.axes for line in ax.get_lines() if line.get_ls() == ":"]


@pytest.mark.parametrize("values", [(0.0,), (-1.0, 0.1), (float("nan"), 1.0)])
def test_a_sweep_needs_a_lambda(values):
    with pytest.raises(ValueError, match=r"table: lambda2 is .*, expected values from 0, and one above it"):
        dp.sweep_curves(sweep(values), {"D": "D"})
    with pytest.raises(ValueError, match="table: lacks H; expected rows with the columns lambda2, H"):
        dp.sweep_curves(sweep(), {"H": "H"})


def test_fills_are_rows_and_holes_are_series():
    rows = [
        {"fill": f, "hole": h, "error": E(0.1 + 0.1 * k, 0, 0.3), "shift": E(1), "distance": E(float("nan"))}
        for k, f in enumerate(("inpainting", "blur"))
        for h in ("mass", "SDR")
    ]
    figure = dp.fill_points(pd.DataFrame(rows))
    assert titles(figure.axes) == list(dp.FILL_COLUMNS.values())
    assert words(figure.axes[0].get_yticklabels()) == ["inpainting", "blur"]
    assert words(figure.legends[0].get_texts()) == ["hole: mass", "hole: SDR"]
    found = {line.get_label(): line.get_xdata() for line in figure.axes[0].get_lines()}
    assert_allclose(found["hole: SDR"], [0.1, 0.2])
    assert titles(dp.fill_points(pd.DataFrame(rows), {"error": "one"}).axes) == ["one"]
    with pytest.raises(ValueError, match="table: lacks hole, shift;"):
        dp.fill_points(pd.DataFrame(rows).drop(columns=["hole", "shift"]))


def test_the_loss_is_the_sum_of_what_its_terms_add():
    terms = np.array([(1.0, 2.0, 10.0, 0.5), (2.0, 3.0, 20.0, 0.1)])
    figure = dp.loss_curves(terms, (-1, -1, 0.1, 0.2))
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert list(lines) == ["loss", "−1 phi", "−1 psi", "+0.1 tv", "+0.2 ar"]
    assert_allclose(lines["loss"], [-1 - 2 + 1 + 0.1, -2 - 3 + 2 + 0.02])
    assert_allclose(lines["+0.1 tv"], [1, 2])
    assert sorted(titles(figure.axes[1:])) == sorted(name for name, *_ in dp.TERM_NAMES.values())
    with pytest.raises(ValueError, match=r"terms, weights: shapes \(4,\), \(4,\); expected \(steps, 4\), \(4,\)"):
        dp.loss_curves(terms[0], (-1, -1, 0.1, 0.2))
    with pytest.raises(ValueError, match="terms: not finite; an image that was skipped has no search"):
        dp.loss_curves(terms * np.nan, (-1, -1, 0.1, 0.2))


@pytest.mark.parametrize("epochs", [1, 4])
def test_training_by_epoch(epochs):
    history = [{"error": 0.1 / (e + 1), "loss": 2.0, **dict.fromkeys(WEIGHTS, 0.5)} for e in range(epochs)]
    figure = dp.training_curves(history, 3)
    left, right = figure.axes
    assert_allclose(left.get_lines()[0].get_xydata()[0], (1, 0.1))
    lines = {line.get_label(): line for line in right.get_lines()}
    assert_allclose(lines["6 hole"].get_ydata(), [3.0] * epochs)
    assert {"loss", "120 style out", "0.1 tv"} <= set(lines) and right.get_yscale() == "log"
    assert [line.get_xdata()[0] for line in left.get_lines() if line.get_ls() == ":"] == [3.5]


@pytest.mark.parametrize("history", [[], [{"loss": 1.0}]])
def test_a_training_without_epochs(history):
    with pytest.raises(ValueError, match="history: lacks error"):
        dp.training_curves(history)


# ---------------------------------------------------------------------------------------- images

SHAPE = (64, 40)


def area(row0, col0, row1, col1):
    mask = np.zeros(SHAPE, bool)
    mask[row0:row1, col0:col1] = True
    return mask


def case(marked=(20, 10, 30, 22)):
    mask = None if marked is None else torch.from_numpy(area(*marked))
    image = torch.linspace(0, 1, 64 * 40).reshape(1, *SHAPE)
    return Case(image, 1, mask, torch.zeros(0, 4, dtype=torch.int64), 1.0, "p", "CC", "s")


HOLE = area(18, 10, 34, 20)


def flat(value):
    return np.full(SHAPE, value, np.float32)


def test_rows_are_cropped_to_one_size():
    holes = [HOLE, area(60, 36, 64, 40)]
    figure = di.inpainting_rows([case(), case(None)], holes, [flat(0.5)] * 2, [flat(0.25), flat(0.75)], around=4)
    grid, bar = np.array(figure.axes[:-1]).reshape(2, 5), figure.axes[-1]
    assert titles(grid[0]) == ["image", "hole", "inpainted", "true healthy twin", "inpainted − twin"]
    assert not titles(grid[1])
    pixels = [[ax.get_images()[-1].get_array() for ax in row] for row in grid]
    assert {p.shape for row in pixels for p in row} == {(24, 24)}  # 16 + 2 * 4
    assert_array_equal(pixels[0][0], case().image[0][14:38, 3:27])
    assert_array_equal(pixels[1][0], case().image[0][40:, 16:])  # moved into the image
    assert pixels[0][1].mask.sum() == 24 * 24 - 160  # the flat colour is in the hole alone
    assert_allclose([pixels[0][4], pixels[1][4]], [np.full((24, 24), 0.25), np.full((24, 24), -0.25)])
    assert {ax.get_images()[0].get_clim() for ax in grid[:, 4]} == {(-0.25, 0.25)}
    assert "grey values" in bar.get_ylabel()
    assert words(figure.legends[0].get_texts()) == ["annotation", "hole"]
    assert len(grid[0, 0].collections) == 2 and len(grid[1, 0].collections) == 1


def test_without_twins_and_whole():
    figure = di.inpainting_rows([case()], [HOLE], [flat(0.5)], around=None, titles=["a breast"])
    assert titles(figure.axes) == ["a breast", "hole", "inpainted"]
    assert figure.axes[0].get_images()[0].get_array().shape == SHAPE
    assert words(figure.axes[2].texts) == ["10 mm"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cases": []}, "cases: there is none"),
        ({"holes": []}, "holes: 0 for 1 images, expected one each"),
        ({"holes": [HOLE & False]}, "holes: s: it is empty, expected at least one pixel"),
        ({"filled": [flat(0)[None]]}, r"filled: shape \(1, 64, 40\), expected \(64, 40\) as the image"),
        ({"twins": [flat(0)[:5]]}, r"twins: shape \(5, 40\)"),
        ({"titles": ["a", "b"]}, "titles: 2 for 1 images"),
    ],
)
def test_rows_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        di.inpainting_rows(**{"cases": [case()], "holes": [HOLE], "filled": [flat(0.5)], **given})


def test_masks_over_images():
    masks = [{"ours": HOLE, "CAM 50": HOLE | True}, {"ours": HOLE & False}]
    figure = di.result_rows([case(), case(None)], masks)
    grid = np.array(figure.axes).reshape(2, 3)
    assert titles(grid[0]) == ["image", "ours", "CAM 50"]
    assert grid[0, 1].get_images()[1].get_array().mask.sum() == 64 * 40 - 160
    assert [len(ax.collections) for ax in grid[0]] == [1, 2, 1]  # a mask of the whole image has no outline
    assert "empty" in words(grid[1, 1].texts) and not grid[1, 2].get_images()
    cropped = di.result_rows([case()], masks[:1], around=5).axes
    assert cropped[1].get_images()[1].get_array().shape == (22, 22)


@pytest.mark.parametrize(
    ("cases", "masks", "around", "message"),
    [
        ([case()], [{}], None, "masks: there is none"),
        ([case()], [{"ours": HOLE[1:]}], None, r"masks: ours: shape \(63, 40\), expected \(64, 40\)"),
        ([case(None)], [{"ours": HOLE}], 5, "around: an image has no annotation to crop to; give None"),
        ([case()], [], None, "masks: 0 for 1 images"),
    ],
)
def test_masks_that_do_not_fit(cases, masks, around, message):
    with pytest.raises(ValueError, match=message):
        di.result_rows(cases, masks, around=around)
    plt.close("all")


def test_one_hole_filled_in_several_ways():
    fills = {"inpainting": flat(0.1), "noise": flat(0.2)}
    figure = di.fills_row(case(), HOLE, fills, flat(0.3), 2, {"noise": "log odds 4.0"})
    assert titles(figure.axes) == ["original", "inpainting", "noise", "true healthy twin"]
    assert [float(ax.get_images()[0].get_array().mean()) for ax in figure.axes[1:]] == pytest.approx([0.1, 0.2, 0.3])
    assert figure.axes[1].get_images()[0].get_array().shape == (20, 20)
    assert "log odds 4.0" in words(figure.axes[2].texts) and "log odds 4.0" not in words(figure.axes[1].texts)
    assert titles(di.fills_row(case(None), HOLE, fills, around=None).axes)[-1] == "noise"
    for given, message in (
        ({"hole": HOLE & False}, "hole: s: it is empty"),
        ({"filled": {}}, "filled: there is no image"),
        ({"filled": {"noise": flat(0)[1:]}}, r"filled: noise: shape \(63, 40\)"),
        ({"twin": flat(0)[1:]}, r"twin: shape \(63, 40\)"),
    ):
        with pytest.raises(ValueError, match=message):
            di.fills_row(**{"case": case(), "hole": HOLE, "filled": fills, **given})


def way(steps=10):
    cells = np.full((steps + 1, 8, 5), 0.6)
    cells[3:, 4:6, 2:4] = 0.4
    return cells


def frames(data):
    with Image.open(BytesIO(data)) as file:
        for k in range(file.n_frames):
            file.seek(k)
            yield np.asarray(file.convert("RGB")), file.info["duration"]


def test_the_way_of_a_mask():
    found = list(frames(di.way_gif(replace(case(None), pixel_mm=None), way(), every=4, size=128)))
    assert [stay for _, stay in found] == [160, 160, 160, 1600]  # steps 0, 4, 8 and 10
    assert {image.shape for image, _ in found} == {(148, 80, 3)}
    orange = [(abs(image - 255 * np.array(to_rgb(ORANGE))).max(2) < 2) for image, _ in found]
    assert not orange[0].any() and orange[1].any() and (orange[1] == orange[3]).all()
    rows, cols = orange[3].nonzero()
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (20 + 64, 20 + 95, 32, 63)  # cells 4 and 5, 2 and 3
    inside, outside = found[3][0][20 + 80, 48], found[0][0][20 + 80, 48]
    assert_allclose(inside, 0.6 * outside + 0.4 * 255 * np.array(to_rgb(ORANGE)), atol=2)
    assert (found[0][0][:20] != found[3][0][:20]).any()  # the step's number
    assert [stay for _, stay in frames(di.way_gif(case(), way()[:1]))] == [1600]


def test_the_annotation_and_the_scale_bar():
    (image, _), *_ = frames(di.way_gif(case(), way(), size=128))
    green = (abs(image - 255 * np.array(to_rgb(GREEN))).max(2) < 2).nonzero()
    assert (green[0].min(), green[0].max(), green[1].min(), green[1].max()) == (60, 79, 20, 43)
    assert (image[128 + 10 : 128 + 14, 8:29] == 255).all()  # 10 mm are 20 pixels
    (image, _), *_ = frames(di.way_gif(case(), way(), truth=HOLE & False, size=128))
    assert not (abs(image - 255 * np.array(to_rgb(GREEN))).max(2) < 2).any()


def test_a_gif_is_small():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(np.kron(rng.random((80, 40)), np.ones((4, 4)))).float()[None]
    end = torch.full((40, 20), 0.6)
    end[20:26, 5:12] = 0.4
    start = start_mask(1, (320, 160), DeletionConfig())[0, 0]
    moved = np.linspace(0, 1, 101)[:, None, None]
    data = di.way_gif(replace(case(None), image=image), (1 - moved) * start.numpy() + moved * end.numpy())
    assert len(list(frames(data))) == 26 and len(data) < 150_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"way": way()[0]}, r"way: shape \(8, 5\), expected \(steps \+ 1, 8, 5\) at cell 8"),
        ({"way": way()[:0]}, r"way: shape \(0, 8, 5\)"),
        ({"cell": 4}, r"way: shape \(11, 8, 5\), expected \(steps \+ 1, 16, 10\) at cell 4"),
        ({"every": 0}, "every, size, cell: 0, 480, 8; expected at least 1"),
        ({"truth": HOLE[1:]}, r"truth: shape \(63, 40\)"),
    ],
)
def test_a_way_that_does_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        di.way_gif(**{"case": case(), "way": way(), **given})
