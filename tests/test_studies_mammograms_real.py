from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from films import films
from mammogram_results import made as results

from xai_lib import checkpoints, data, records
from xai_lib.config import runtime
from xai_lib.studies import real_runs
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms import real as mammogram_real
from xai_lib.studies.mammograms.maps import PLAIN_BOXES
from xai_lib.studies.mammograms.real import RealWhole
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import CONTROLS, MAIN, THE_SEVEN
from xai_lib.training import FitConfig

KINDS = ("malignant", "normal", "benign") * 4
SETUP = Setup(window=32, stride=32, steps=2, segments=8, samples=8)
FIT = FitConfig(epochs=1, batch_size=4, augment="none", patience=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    start = folder / "start.safetensors"
    checkpoints.save(mn.fresh("squeezenet1_1", None, 0), start, {"seed": 0})
    real = RealWhole("films", None, str(start), (64, 32), 2, FIT, SETUP, 2, replicates=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(folder))
        patch.setattr(mammogram_real, "ARCHITECTURE", "squeezenet1_1")  # a fifth of EfficientNet's time
        patch.setattr(data, "load", lambda name, root: films(KINDS, tuple(i % 2 == 0 for i in range(len(KINDS)))))
        record, result = mammogram_real.boxes_record(real, 0, runtime("cpu"), "the command", progress=False)
        patch.setattr(mammogram_real, "measure", None)  # a second run explains nothing
        again = mammogram_real.boxes_tables(real, 0, runtime("cpu"), progress=False)
    return record, result, again


def test_the_record_says_what_was_done(made):
    record, result, _ = made
    assert record.command == "the command" and record.data["name"] == "films" and record.data["cases"] == 12
    assert result.images == record.parameters["explained"] == 2
    assert set(record.verdicts) == {"2.1", "2.2", "2.3"}
    assert set(record.figures) == {"auc"} | {f"iou_{name}" for name in THE_SEVEN}
    assert set(record.figures["iou_lime"].baselines) == {*PLAIN_BOXES, *CONTROLS}


def test_every_image_is_scored_and_the_malignant_ones_explained(made):
    _, _, (facts, rows, whole) = made
    assert np.isfinite(facts["score"]).all() and set(facts["fold"]) == {0, 1} and len(facts) == 12
    assert rows["image"].nunique() == 2 and (whole.labels[rows["image"].unique()] == 1).all()
    assert set(rows["variant"]) == {*MAIN, *PLAIN_BOXES}
    fold = facts["fold"].to_numpy()
    assert (rows["fold"] == fold[rows["image"]]).all()  # explained by the network that has not seen the image


def by_hand(scale=1.0):
    """Two images in each of two folds; fold 0 is best at quantile 0.9, fold 1 at 0.99."""
    iou = {(0, 0.9): 0.8, (0, 0.99): 0.2, (1, 0.9): 0.1, (1, 0.99): 0.5}
    rows = [
        {"image": 2 * fold + i, "fold": fold, "patient_id": f"p{fold}{i}", "variant": name, "rule": "union"}
        | {"setting": q, "iou": scale * value, "chance": 0.1, "ratio": 2.0, "hit": 1.0, "energy": 0.5}
        for (fold, q), value in iou.items()
        for i in range(2)
        for name in THE_SEVEN
    ]
    plain = [
        {**row, "variant": name, "rule": "box", "setting": 0.0, "iou": 0.3, "hit": 0.1}
        for row in rows
        if row["setting"] == 0.9 and row["variant"] == "lime"
        for name in PLAIN_BOXES
    ]
    return pd.DataFrame(rows + plain)


FACTS = pd.DataFrame({"label": [1, 1, 0, 0] * 5, "score": [2, 1, -1, 0] * 5, "patient_id": [str(i) for i in range(20)]})


def test_settings_come_from_the_other_folds():
    result = mammogram_real.summarise_boxes(FACTS, by_hand(), 50)
    methods = result.methods.set_index("map")
    assert methods.loc["saliency", "iou"].value == pytest.approx((0.2 + 0.1) / 2)  # 0.65 if chosen on the fold itself
    assert methods.loc["random box", "iou"].value == pytest.approx(0.3)
    assert result.auc.value == 1.0 and result.verdicts["2.3"].verdict == "not decidable here"  # 4 images
    assert result.figures()["auc"].note == ""


def test_a_network_at_chance_is_marked():
    facts = FACTS.assign(score=[1, -1, 1, -1] * 5)
    figures = mammogram_real.summarise_boxes(facts, by_hand(), 50).figures()
    assert figures["auc"].note == "chance level"
    assert figures["iou_lime"].note == "quantile chosen on the other folds; of a network at chance level"


def test_no_box_to_measure_by():
    with pytest.raises(ValueError, match="films: no malignant image has a box"):
        mammogram_real._located(films(("normal", "benign"), (False, False)), 3)


# by name


def test_unknown_studies_and_options():
    with pytest.raises(
        ValueError, match="study: 'maps' is unknown, expected one of patches, boxes, insertion, transfer, deletion"
    ):
        real_runs.run_real("maps")
    with pytest.raises(ValueError, match="weights: insertion follows the shipped network"):
        real_runs.run_real("insertion", weights="imagenet")


def test_the_names_reach_the_studies(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        real_runs, "real_record", lambda real, seed, machine, command: (seen.update(a=real, b=command), None)
    )
    monkeypatch.setattr(
        real_runs, "boxes_record", lambda real, seed, machine, command: (seen.update(c=real, d=command), None)
    )
    monkeypatch.setattr(real_runs, "inserted_record", lambda *args: seen.update(e=args))
    real_runs.run_real("patches", "d", "r", "/home/w.pth", "tensorflow", "bf16", 7, 1)
    assert (seen["a"].dataset, seen["a"].root, seen["a"].weights) == ("d", "r", "/home/w.pth")
    assert (seen["a"].padding, seen["a"].precision, seen["a"].malignant, seen["a"].others) == (
        "tensorflow",
        "bf16",
        7,
        7,
    )
    assert seen["b"] == (
        "xai-lib real patches RECORD.json --dataset d --weights w.pth --precision bf16 --padding tensorflow --maps 7"
    )
    real_runs.run_real("boxes", "d", maps=3)
    assert seen["c"] == replace(RealWhole("d"), images=3)
    assert seen["d"] == "xai-lib real boxes RECORD.json --dataset d --precision float32 --maps 3"
    real_runs.run_real("insertion", "d", "r")
    assert seen["e"][:3] == ("d", "r", real_runs.LESIONS)


def test_record_of_insertions(tmp_path):
    """SHAP's gain is half of the others'; the score rises by ten times the contrast."""
    rows = results(gains={"kernel_shap": 0.1}, main=1, cheap=1, missed=0).insertion
    data = {"name": "mini_mias", "fingerprint": "f", "cases": 12}
    record = mammogram_real.insertion_record(rows, data, None, {"contrasts": [0.2, 0.4]}, 0.0, 20)
    records.write(record, tmp_path / "02.record.json")
    figures = records.read(tmp_path / "02.record.json").figures
    assert figures["score_rise"].estimate.value == pytest.approx(2.0)
    assert figures["gain_saliency"].estimate.value == pytest.approx(0.2, abs=0.02)
    assert figures["gain_kernel_shap"].estimate.value == pytest.approx(0.1, abs=0.02)
    assert figures["gain_lime"].baselines["before"].value == pytest.approx(0.05, abs=0.02)
    assert record.verdicts["2.6"].verdict == "holds"
