from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from xai_lib import box_scores, boxes
from xai_lib.data import Case
from xai_lib.studies.mammograms import maps as mm
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import VARIANTS, Scene, Variant

SIZE = (128, 64)


class Corner(nn.Module):
    """Malignant logit: the sum of the pixels in rows 40-49 and columns 20-29."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        value = self.weight * x[:, 0, 40:50, 20:30].sum((1, 2))
        return torch.stack([torch.zeros_like(value), value], 1)


def scene(box=(40, 20, 50, 30)):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((1, *SIZE)).astype(np.float32)) * 0.2
    image[0, box[0] : box[2], box[1] : box[3]] += 0.7
    breast = np.zeros(SIZE, bool)
    breast[:, :48] = True
    case = Case(image, 1, None, torch.tensor([box]), None, "p", "CC", "s")
    return Scene(case, image * 0, breast)


NETWORKS = {"trained": Corner().eval()}
SETUP = Setup(window=10, stride=5, steps=4, baseline=0.0)


def test_find_boxes_is_the_thesis_rule():
    """Against `paper_rule`, at every quantile, for a map that is dilated and one that is not."""
    scores = np.random.default_rng(1).normal(size=SIZE)
    for method in ("saliency", "lime"):
        found = mm.find_boxes(scores, method)
        for q in mm.QUANTILES:
            np.testing.assert_array_equal(found["union", q], boxes.paper_rule(method, SIZE[0], q)(scores))
    assert {rule for rule, _ in found} == {"union", "separate", "component", "peak"}


def test_boxes_of_one_square():
    scores = np.zeros(SIZE)
    scores[40:50, 20:30] = 1
    found = mm.find_boxes(scores, "lime")  # no dilation
    for key in (("union", 0.9), ("component", 0.9), ("separate", 0.98)):
        assert found[key].tolist() == [[40, 20, 50, 30]]
    assert len(found["union", 0.998]) == 0  # more than 0.2 % of the pixels tie for the first place


def test_measure_by_hand():
    frame, maps = mm.measure(scene(), {n: VARIANTS[n] for n in ("saliency", "brightness")}, NETWORKS, SETUP)
    assert (maps["saliency"] > 0).sum() == 100  # the gradient is 1 in the box, 0 elsewhere
    saliency = frame[frame["variant"] == "saliency"]
    assert (saliency["energy"] == 1).all() and (saliency["hit"] == 1).all()
    union = saliency[(saliency["rule"] == "union") & (saliency["setting"] == 0.98)].iloc[0]
    assert union["iou"] == pytest.approx(1.0) and union["ratio"] == 1 and union["components"] == 1
    assert (saliency["off_row"].abs() < 1).all() and (saliency["off_col"].abs() < 1).all()
    bright = frame[frame["variant"] == "brightness"].iloc[0]
    assert bright["hit"] == 1 and 0.05 < bright["energy"] < 0.6 and bright["forward"] == 0
    expected = float(scene().case.image[0, 40:50, 20:30].sum())
    np.testing.assert_allclose(frame["score"], expected, rtol=1e-5)


def test_plain_boxes():
    here = scene()
    frame, _ = mm.measure(here, {}, NETWORKS, SETUP)
    rows = frame.set_index("variant")
    assert list(rows.index) == list(mm.PLAIN_BOXES)
    whole = box_scores.breast_box(here.breast)
    assert rows.loc["breast box", "iou"] == pytest.approx(100 / (128 * 48))
    assert rows.loc["breast box", "ratio"] == pytest.approx(box_scores.box_mask(whole, SIZE).sum() / 100)
    assert 0 < rows.loc["random box", "iou"] < 0.1
    assert rows["hit"].tolist() == pytest.approx([100 / (128 * 48)] * 3)  # chance of a point in the breast


def test_map_without_a_positive_part_has_no_box():
    class Against(Corner):
        def forward(self, x):
            return super().forward(x).flip(1)

    frame, _ = mm.measure(
        scene(), {"deeplift": VARIANTS["occlusion"]}, {"trained": Against().eval()}, replace(SETUP, baseline=-1.0)
    )
    row = frame[(frame["variant"] == "deeplift")]
    assert (row["iou"] == 0).all() and row["ratio"].isna().all() and (row["components"] == 0).all()
    assert (row["energy"] == 0).all() and (row["hit"] == 0).all() and row["off_row"].isna().all()


def test_reference_is_a_rank_correlation():
    twice = {
        "a": Variant("brightness"),
        "b": Variant("brightness", reference="a"),
        "c": Variant("saliency", reference="x"),
    }
    frame, _ = mm.measure(scene(), twice, NETWORKS, SETUP)
    like = frame.drop_duplicates("variant").set_index("variant")["like"]
    assert like["b"] == pytest.approx(1) and np.isnan(like["a"]) and np.isnan(like["c"])


def test_same_seed_same_rows():
    first, second = (mm.measure(scene(), {"saliency": VARIANTS["saliency"]}, NETWORKS, SETUP, seed=3)[0] for _ in "ab")
    assert first.drop(columns="seconds").equals(second.drop(columns="seconds"))
    other = mm.measure(scene(), {}, NETWORKS, SETUP, seed=4)[0]
    assert other["iou"].iloc[0] != mm.measure(scene(), {}, NETWORKS, SETUP, seed=3)[0]["iou"].iloc[0]


def test_image_without_annotation_is_refused():
    here = scene()
    here = Scene(replace(here.case, boxes=torch.zeros(0, 4, dtype=torch.int64)), None, here.breast)
    with pytest.raises(ValueError, match="s has no annotated box"):
        mm.measure(here, {}, NETWORKS, SETUP)
