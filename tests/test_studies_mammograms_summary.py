import json

import numpy as np
import pandas as pd
import pytest
from mammogram_results import made, scored

from xai_lib import records
from xai_lib.studies.mammograms import summary as ms
from xai_lib.studies.mammograms.variants import MAIN, THE_SEVEN

REPLICATES = 20


@pytest.fixture(scope="module")
def found():
    return made()


@pytest.fixture(scope="module")
def result(found):
    return ms.summarise(found, scored(), REPLICATES, 0)


def test_settings_are_chosen_on_validation_images():
    found = made()
    found.boxes.loc[found.boxes["stage"] == "test", "iou"] = 0.0
    settings = ms.choose(found.boxes[found.boxes["stage"] == "val"], "union")
    assert settings["lime"] == 0.99 and settings["occlusion"] == 0.98 and settings["saliency"] == 0.995
    assert settings["occlusion, black"] == 0.98 and settings["untrained saliency"] == 0.995  # their method's


def test_equal_settings_take_the_lowest():
    rows = [{"variant": "saliency", "rule": "union", "setting": q, "iou": 0.5} for q in (0.99, 0.9, 0.95)]
    assert ms.choose(pd.DataFrame(rows), "union")["saliency"] == 0.9


def test_methods(result):
    rows = result.methods.set_index("map")
    assert set(rows.index) == {*MAIN, *ms.PLAIN_BOXES}
    assert rows.loc["integrated_gradients", "iou"].value == pytest.approx(0.6, abs=0.05)
    assert rows.loc["lime", f"iou at {ms.DEFAULT}"].value == pytest.approx(0.1, abs=0.05)  # its own best is 0.99
    assert rows.loc["occlusion", f"iou at {ms.DEFAULT}"].value == pytest.approx(0.45, abs=0.05)
    assert rows.loc["saliency", "larger"].value == 1 and rows.loc["saliency", "larger"].low < 1
    assert rows.loc["random box", "iou"].value == pytest.approx(0.03) and np.isnan(rows.loc["random box", "quantile"])
    assert len(result.iou) == 12  # the images that have all methods


def test_pairs(result):
    assert len(result.pairs) == 21
    pair = result.pairs.set_index(["first", "second"]).loc[("integrated_gradients", "lime")]
    assert pair["difference"].value == pytest.approx(0.5, abs=0.05)
    assert pair["p"] < 0.01 and pair["p"] <= pair["p_holm"] <= 1
    shared = result.pairs.set_index(["first", "second"]).loc[("saliency", "deeplift")]
    assert shared["p_holm"] > 0.05


def test_sweep_gives_places(result):
    union = result.sweep[(result.sweep["rule"] == "union")].set_index(["setting", "variant"])["place"]
    assert union[0.995, "integrated_gradients"] == 1 and union[0.995, "lime"] == 7
    assert np.isnan(union[0.995, "brightness"])


def test_tpr(result):
    curve = result.tpr.set_index("threshold")
    assert (curve.loc[0.0] == 1).all() and "random box" not in curve
    assert curve.loc[0.3, "integrated_gradients"] == 1 and curve.loc[0.3, "kernel_shap"] == 0


def test_displacement(result):
    rows = result.displacement.set_index("map")
    assert rows.loc["grad_cam", "rows"] == pytest.approx(10, abs=1) and rows.loc["grad_cam", "cols"] == -5
    assert rows.loc["deeplift", "rows"] == 0.5 and rows.loc["grad_cam", "images"] == 28


def test_ablations_and_insertion(result):
    rows = result.ablations.set_index("map")
    assert rows.loc["occlusion, twin", "images"] == 3 and rows.loc["occlusion, twin", "compared_with"] == "occlusion"
    assert rows.loc["occlusion", "best iou"] >= rows.loc["occlusion", "iou"].value - 1e-9
    inserted = result.inserted.set_index(["contrast", "map"])
    assert inserted.loc[(0.2, "saliency"), "gain"].value == pytest.approx(0.2, abs=0.02)
    assert np.isnan(inserted.loc[(0.0, "saliency"), "gain"].value)


def test_figures_stand_beside_their_controls(result):
    figures = result.figures()
    assert set(figures) == {"auc", *(f"{k}_{n}" for k in ("iou", "component") for n in THE_SEVEN)}
    assert {*ms.PLAIN_BOXES, "brightness", "untrained saliency"} <= set(figures["iou_lime"].baselines)
    assert "quantile 0.99 " in figures["iou_lime"].note


def test_record(result, tmp_path):
    record = records.make(
        study="02_whole_mammogram_iou", title="t", profile="smoke", parameters={}, seed=0,
        data={"name": "synthetic_mammogram", "fingerprint": "f"}, figures=result.figures(),
        verdicts=result.verdicts, tables=result.tables(), started=0.0,
    )  # fmt: skip
    records.write(record, tmp_path / "02.record.json")
    read = records.read(tmp_path / "02.record.json")
    assert set(read.verdicts) == {f"2.{i}" for i in range(1, 7)}
    assert json.loads((tmp_path / "02.record.json").read_text())["tables"]["methods"][0]["map"] == "saliency"


def test_same_seed_same_result(found, result):
    again = ms.summarise(found, scored(), REPLICATES, 0)
    assert again.figures() == result.figures()


def test_nothing_found_at_all():
    """No true positives, no ablations, no positive maps: tables are empty or NaN, claims not decidable."""
    found = made(main=2, cheap=3, missed=3, ablations=0, pairs=1)
    found.boxes.loc[:, ["iou", "ratio", "components"]] = [0.0, np.nan, 0]
    result = ms.summarise(found, scored(), REPLICATES, 0)
    assert not len(result.ablations) and not len(result.displacement)
    assert result.methods.set_index("map").loc["lime", "no box"].value == 1
    assert {result.verdicts[c].verdict for c in ("2.2", "2.3", "2.6")} == {"not decidable here"}
    result.tables()
