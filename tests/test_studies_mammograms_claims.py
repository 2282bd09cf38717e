import math

import numpy as np
import pandas as pd
import pytest
from mammogram_results import LEVEL, made

from xai_lib import claims
from xai_lib.results import Estimate
from xai_lib.studies.mammograms import claims as mc
from xai_lib.studies.mammograms.summary import choose
from xai_lib.studies.mammograms.variants import THE_SEVEN

MANY = mc.Bootstrap(60, 0)
HOLDS, FAILS, UNDECIDED = claims.HOLDS, claims.FAILS, claims.UNDECIDED


AUC = Estimate(0.8, 0.75, 0.85)


def verdicts(auc=AUC, **how):
    found = made(**how)
    maps, boxes = found.maps[found.maps["stage"] == "test"], found.boxes[found.boxes["stage"] == "test"]
    chosen = choose(found.boxes[found.boxes["stage"] == "val"], "union")
    main = maps.loc[maps["variant"] == mc.IG, "image"]
    facts = maps.drop_duplicates("image").set_index("image")[["patient_id"]]
    union = mc.at(boxes[boxes["image"].isin(main)], "union", chosen)
    iou = union.pivot(index="image", columns="variant", values="iou").join(facts)
    weak = mc.groups(maps, boxes, chosen, MANY)[1]
    larger = mc.larger(boxes[boxes["image"].isin(main)], chosen, facts)
    return mc.judge(auc, iou, larger, maps[maps["image"].isin(main)], weak, found.insertion, MANY)


SLOW = {"integrated_gradients": 20.0, "occlusion": 12.0, "grad_cam": 0.2}


def test_all_hold():
    """Tables made as the thesis describes its results."""
    gains = {name: 0.2 for name in THE_SEVEN} | {"kernel_shap": 0.0}
    found = verdicts(seconds=SLOW, gains=gains)
    found["2.4"] = verdicts(seconds=SLOW, gains=gains, weak=True)["2.4"]
    assert {name: v.verdict for name, v in found.items()} == dict.fromkeys(
        ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6"), HOLDS
    )


@pytest.mark.parametrize(
    ("claim", "how", "expected"),
    [
        ("2.1", {"auc": Estimate(0.95, 0.92, 0.97)}, FAILS),
        ("2.1", {"auc": Estimate(0.8, 0.65, 0.9)}, UNDECIDED),
        ("2.2", {"level": LEVEL | {"occlusion": 0.2}}, FAILS),  # one of the two best lies below the rest
        ("2.2", {"level": LEVEL | {"lime": 0.7}}, FAILS),
        ("2.2", {"level": LEVEL | {"occlusion": 0.3}}, UNDECIDED),
        ("2.3", {"ratio": 0.5}, FAILS),
        ("2.4", {"weak": False}, UNDECIDED),
        ("2.4", {"missed": 6}, UNDECIDED),
        ("2.5", {"seconds": SLOW | {"occlusion": 40.0}}, FAILS),
        ("2.5", {"seconds": SLOW | {"grad_cam": 3.0}}, FAILS),
        ("2.6", {"gains": {"lime": 0.0, "saliency": 0.0}}, FAILS),  # four of six still gain, but SHAP gains as much
        ("2.6", {"pairs": 6}, UNDECIDED),
    ],
)
def test_each_can_fail(claim, how, expected):
    if claim == "2.6" and "gains" in how:
        how = {"gains": {"kernel_shap": 0.5} | how["gains"]}
    assert verdicts(**how)[claim].verdict == expected


def test_most_methods_is_the_third_lowest():
    gains = {"saliency": -0.1, "occlusion": -0.05, "lime": 0.15, "deeplift": 0.3, "kernel_shap": 0.0}
    figures = mc.highlighted(made(gains=gains).insertion, MANY)
    assert figures["most methods"].value == pytest.approx(0.15, abs=0.02)  # four of six are above 0
    assert figures["most methods - SHAP"].value == pytest.approx(0.15, abs=0.02)


def test_change_is_paired():
    frame = made(gains={"saliency": 0.1}).insertion
    gained = mc.change(frame, 0.4)
    assert gained["saliency"].mean() == pytest.approx(0.2, abs=0.02) and "occlusion" not in gained
    shuffled = frame.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(mc.change(shuffled, 0.4).sort_index(), gained.sort_index())


def test_groups_by_score():
    found = made(cheap=40, missed=12)
    maps = found.maps[found.maps["stage"] == "test"]
    table, figures = mc.groups(maps, found.boxes[found.boxes["stage"] == "test"], choose(found.boxes, "union"), MANY)
    saliency = table[table["map"] == "saliency"].set_index("group")["images"]
    assert saliency.to_dict() == {"top quarter": 7, "middle half": 14, "bottom quarter": 7, "false negatives": 12}
    assert figures["IOU, top - false negatives"].value == pytest.approx(0.15, abs=0.02)
    assert figures["boxes, low true positives - top"].value == pytest.approx(1.5, abs=0.4)
    assert figures["hit - chance, false negatives"].value == pytest.approx(0.85, abs=0.1)


def test_no_false_negatives_are_no_error():
    found = made(missed=0)
    maps = found.maps[found.maps["stage"] == "test"]
    table, figures = mc.groups(maps, found.boxes[found.boxes["stage"] == "test"], choose(found.boxes, "union"), MANY)
    assert "false negatives" not in set(table["group"])
    missing = figures["hit - chance, false negatives"]
    assert math.isnan(missing.value) and "0 false negatives, at least 10" in missing.method
    assert not math.isnan(figures["hit - chance, low true positives"].value)


def test_larger_leaves_out_images_without_a_box():
    found = made(main=2, cheap=2, missed=0)
    boxes = found.boxes[found.boxes["stage"] == "test"].copy()
    boxes.loc[boxes["variant"] == "lime", "ratio"] = np.nan
    boxes.loc[(boxes["variant"] == "saliency") & (boxes["image"] == 0), "ratio"] = 0.5
    facts = found.maps.drop_duplicates("image").set_index("image")[["patient_id"]]
    larger = mc.larger(boxes, choose(found.boxes, "union"), facts)["larger"]
    assert larger[[0, 1]].tolist() == pytest.approx([5 / 6, 1])
    assert larger[100:].isna().all()  # images that are not in the table


def test_by_equals_separate_bootstraps():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"image": np.repeat(range(20), 2), "variant": ["a", "b"] * 20, "value": rng.random(40)})
    frame["patient_id"] = frame["image"] // 2
    found = MANY.by(frame, "image", ["variant"], ["value"]).set_index("variant")["value"]
    alone = MANY.means(frame[frame["variant"] == "b"], ["value"])["value"]
    assert (found["b"].value, found["b"].low, found["b"].high) == pytest.approx((alone.value, alone.low, alone.high))
    ones = MANY.by(frame.assign(value=1.0), "image", ["variant"], ["value"], ("value",)).set_index("variant")["value"]
    assert ones["a"].low == pytest.approx(0.025 ** (1 / 10), abs=1) and ones["a"].low < 1  # exact, ten patients
