"""Results of study 5: figures counted by hand, empty masks and missing variants."""

import math

import numpy as np
import pandas as pd
import pytest
from deletion_masks import DIAGONAL, NAN, prepared, rows, value

from xai_lib import statistics
from xai_lib.studies.deletion import summary as ds


def scores(none, label, **tissues):
    """One patient per case; a tissue is a list of runs, a run a logit per case, None where there is no row."""
    runs = {"none": [none], **tissues}
    rows = [
        {"case": f"c{i}", "patient_id": i, "label": label[i], "tissue": tissue, "run": run, "logit": logit}
        for tissue, of_runs in runs.items()
        for run, logits in enumerate(of_runs)
        for i, logit in enumerate(logits)
        if logit is not None
    ]
    return pd.DataFrame(rows)


def nothing(*columns):
    return pd.DataFrame(columns=["case", "patient_id", *columns])


def everything(seed=0, n=24):
    """All variants on n images; SDR is nearer, smaller and rounder."""
    rng = np.random.default_rng(seed)
    D = {"SDR": 5} | {name: 20 for name in ds.MAPS} | {ds.ABLATED: 30}
    A = {"SDR": 0.03} | {name: 1 - int(name[-2:]) / 100 for name in ds.MAPS}
    O = {name: 0.6 if name.startswith("SAL") else 0.4 for name in ds.MAPS}  # noqa: E741
    own = [name for name in ds.VARIANTS if name != "grid 8"] + [
        f"lambda2 {v}" for v in ("0", "0.01", "0.03", "0.3", "1")
    ]
    parts = []
    for name in own:
        noise = rng.random((6, n))
        part = rows(name, D.get(name, 15) + 3 * noise[0], A=A.get(name, 0.05) * (1 + 0.1 * noise[1]))
        part["O"] = NAN if name == "SDR" else O.get(name, 0.5) + 0.1 * noise[2]
        part["components"] = (5 if name == ds.ABLATED else 1) + (noise[3] > 0.5)
        part["circumference"] = 0.4 + 0.1 * noise[4]
        parts.append(part)
    label = np.repeat([0, 1], n)
    logit = 2 * label - 1 + rng.normal(size=2 * n)
    healthy = [logit + 0.01 * rng.normal(size=2 * n) for _ in range(3)]
    mass = [[None] * n + list(logit[n:] - 1.5) for _ in range(3)]
    tissues = scores(logit, label, healthy=healthy, mass=mass, twin=[[None] * n + list(logit[n:] - 2)])
    fills = [fill_rows(hole, fill, rng.random(n)) for hole in ("mass", "SDR") for fill in ds.FILLS]
    return tissues, pd.concat(parts, ignore_index=True), pd.concat(fills, ignore_index=True)


def fill_rows(hole, fill, error, logit=0.0, distance=1.0):
    cases = {"case": [f"c{i}" for i in range(len(error))], "patient_id": range(len(error))}
    return pd.DataFrame(cases | {"hole": hole, "fill": fill, "error": error, "logit": logit, "distance": distance})


# ------------------------------------------------------------------------------------------------- AUC


def test_auc_by_hand():
    # healthy -2 0, mass 1 -1: three of four pairs in order
    label, none = [0, 0, 1, 1], [-2.0, 0.0, 1.0, -1.0]
    table = scores(
        none,
        label,
        healthy=[none, [-2.0, 0.0, 1.0, 1.0]],  # AUC 3/4 and 1
        mass=[[None, None, -3.0, -1.0]],  # -1 beats -2 alone: 1/4
        twin=[[None, None, -3.0, -3.0]],
    )
    found = ds.areas(table, n=20).set_index("tissue")
    assert [e.value for e in found["auc"]] == pytest.approx([0.75, 0.875, 0.25, 0.0])
    assert [e.value for e in found["change"]] == pytest.approx([0, 0.125, -0.5, -0.75])
    assert found["runs"].tolist() == [1, 2, 1, 1] and set(found["images"]) == {4}
    assert found.loc["healthy", "sd"] == pytest.approx(0.25 / math.sqrt(2)) and math.isnan(found.loc["mass", "sd"])
    assert all(e.low <= e.value <= e.high for e in found["auc"])


def test_auc_is_that_of_statistics():
    table, *_ = everything()
    before = table[table["tissue"] == "none"]
    found = ds.areas(table, n=5).set_index("tissue")
    assert found.loc["none", "auc"].value == pytest.approx(statistics.auc(before["label"], before["logit"]))
    after = [table[(table["tissue"] == "healthy") & (table["run"] == k)] for k in range(3)]
    each = [statistics.auc(part["label"], part["logit"]) for part in after]
    assert found.loc["healthy", "auc"].value == pytest.approx(np.mean(each))
    assert found.loc["healthy", "sd"] == pytest.approx(np.std(each, ddof=1))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc(label):
    found = ds.areas(scores([1.0, 2.0], [label] * 2, healthy=[[1.0, 2.0]]), n=5)
    assert list(found["tissue"]) == ["none", "healthy"] and found["auc"].map(value).isna().all()


def test_tissues_that_were_not_inpainted_are_absent():
    assert list(ds.areas(scores([1.0, 2.0], [0, 1]), n=5)["tissue"]) == ["none"]
    assert not len(ds.areas(nothing("label", "tissue", "run", "logit"), n=5))


# ------------------------------------------------------------------------------------------------- masks


def test_methods_by_hand():
    skipped = {"score": [1.0, 2.0, -1.0], "after": [-0.5, 1.0, -1.0], "skipped": [False, False, True]}
    found = ds.methods(prepared(rows("CAM 50", [30, 40, 50], A=0.5), rows("SDR", [4, 6, NAN], **skipped)), n=10)
    assert found["variant"].tolist() == ["SDR", "CAM 50"]  # in the order of the study
    row = found.map(value).iloc[0].to_dict()
    assert {k: row[k] for k in ("images", "empty", "skipped")} == {"images": 3, "empty": 1, "skipped": 1}
    wanted = {"D": 5, "H": 10, "D_mm": 2.5, "H_mm": 5, "D penalty": 110 / 3, "H penalty": 40, "A": 0.1, "over": 0.05}
    wanted |= {"components": 1, "hit": 0.5, "circumference gain": 0.3, "O": 0.5, "healthy after": 0.5}
    wanted |= {"D_sd": math.sqrt(2), "D_median": 5, "H_sd": math.sqrt(8), "A_sd": 0, "A_median": 0.1}
    assert {k: row[k] for k in wanted} == pytest.approx(wanted)
    assert found.loc[1, "healthy after"].low == pytest.approx(0.025 ** (1 / 3))  # all of three: exact


def test_a_variant_with_empty_masks_alone():
    row = ds.methods(prepared(rows("untrained", [NAN, NAN], score=-1.0, skipped=True)), n=5).map(value).iloc[0]
    assert (row["empty"], row["skipped"], row["D penalty"]) == (2, 2, DIAGONAL)
    assert row[["D", "A", "components", "hit", "healthy after", "D_median", "A_sd"]].isna().all()


def test_unknown_millimetres_and_names():
    found = ds.methods(prepared(rows("mine", [1, 2], pixel_mm=NAN), rows("printed", [1, 2])), n=5)
    assert found["variant"].tolist() == ["printed", "mine"]
    assert math.isnan(found.loc[1, "D_mm"].value) and found.loc[1, "D"].value == 1.5


def test_settings_take_the_images_that_all_have():
    table = prepared(rows("SDR", [1, 2, 30]), rows("lambda2 0", [3, 5]), rows("lambda2 1", [7, 8]))
    found = ds.settings(table, [f"lambda2 {v}" for v in ("0", "0.01", "0.03", "0.1", "0.3", "1")], "lambda2 0.1", n=5)
    assert found["variant"].tolist() == ["lambda2 0", "lambda2 0.1", "lambda2 1"]
    assert [e.value for e in found["D"]] == [4, 1.5, 7.5] and set(found["images"]) == {2}
    assert not len(ds.settings(table, ds.GRIDS, "grid 8"))
    twice = prepared(rows("SDR", [1, 2]), rows("grid 8", [3, 3]), rows("grid pixel", [4, 4]))
    assert ds.settings(twice, ds.GRIDS, "grid 8", n=5)["D"].map(value).tolist() == [4, 3]  # its own row counts


# ------------------------------------------------------------------------------------------------- fills


def test_fills_by_hand():
    table = pd.concat(
        [
            fill_rows("mass", "original", [0.4, 0.4], logit=[3.0, 2.0], distance=[5.0, 7.0]),
            fill_rows("mass", "inpainting", [0.1, 0.2], logit=[0.0, -1.0], distance=[6.0, 8.0]),
            fill_rows("mass", "blur", [0.3, 0.3], logit=[1.0, 1.0], distance=[9.0, 9.0]),
            fill_rows("mass", "twin", [0.0, 0.0], logit=[-1.0, 0.0], distance=[4.0, 4.0]),
            fill_rows("SDR", "blur", [0.5, 0.5]),
        ]
    )
    found = ds.filled(table, n=10).map(value).set_index(["hole", "fill"])
    assert found.loc["mass"].index.tolist() == ["original", "inpainting", "blur", "twin"]
    row = found.loc[("mass", "inpainting")]
    assert row[["error", "signed_shift", "shift"]].tolist() == pytest.approx([0.15, 0, 1])
    assert row[["distance", "distance_gain", "error_ratio"]].tolist() == pytest.approx([7, 1, 1])
    assert found.loc[("mass", "blur"), "error_ratio"] == pytest.approx(0.5)
    assert math.isnan(found.loc[("mass", "twin"), "error_ratio"])
    lone = found.loc[("SDR", "blur")]  # neither twin nor original nor inpainting
    assert lone["error"] == 0.5 and lone[["shift", "distance_gain", "error_ratio"]].isna().all()
    assert not len(ds.filled(nothing("hole", "fill", "error", "logit", "distance")))


# ------------------------------------------------------------------------------------------------- everything


def test_summary_and_verdicts():
    result = ds.summarise(*everything(), DIAGONAL, replicates=25)
    assert {name: v.verdict for name, v in result.verdicts.items()} == dict.fromkeys(result.verdicts, "holds")
    assert list(result.verdicts) == [f"5.{k}" for k in range(1, 7)]
    assert result.sweep["lambda2"].tolist() == [0, 0.01, 0.03, 0.1, 0.3, 1]
    assert result.grids["grid"].tolist() == ["pixel", "8", "16"]
    assert result.overlaps["percentile"].tolist() == ["50", "75", "90"]
    assert result.starts["first"].tolist() == ["start 1", "start 2"] and 0.5 < result.starts.loc[0, "O"].value < 0.6
    assert len(result.chance) == 16 and result.ablation["measure"].tolist() == ["D", "H", "components", "A"]
    figures = result.figures()
    assert {f"auc_{tissue}" for tissue in ds.TISSUES} | {"change_healthy", "change_mass", "change_twin"} <= set(figures)
    assert set(figures["d_sdr"].baselines) == {*ds.MAPS, *ds.COMPARATORS, ds.ABLATED, *ds.CHANCE}
    assert figures["empty_sdr"].estimate.value == 0 and figures["empty_sdr"].note.startswith("of 24 images")
    assert figures["overlap_90"].estimate.value == pytest.approx(0.2, abs=0.05)
    assert figures["circumference_gain"].estimate.value == pytest.approx(0.35, abs=0.03)
    assert "blur" in figures["oracle_gap_mass"].baselines and "error_ratio_blur" in figures
    assert set(result.tables()) == {
        "auc", "methods", "pairs", "overlaps", "ablation", "sweep", "grids", "starts", "chance", "fills",
        "circumference",
    }  # fmt: skip
    assert result.tables()["pairs"][0]["difference_low"] > 0


def test_another_grid():
    tissues, masks, pixels = everything(n=2)
    masks["variant"] = masks["variant"].replace("grid 16", "grid 8")
    few = masks[masks["variant"].isin(["SDR", "grid pixel", "grid 8"])]
    found = ds.summarise(tissues.iloc[:0], few, pixels.iloc[:0], DIAGONAL, grid="16", replicates=2).grids
    assert found["grid"].tolist() == ["pixel", "8", "16"]


def test_a_run_with_few_variants():
    tissues, masks, pixels = everything(n=4)
    few = masks[masks["variant"].isin(["SDR", "CAM 90"])]
    result = ds.summarise(tissues[tissues["tissue"] == "none"], few, pixels.iloc[:0], DIAGONAL, replicates=5)
    undecided = {name for name, v in result.verdicts.items() if v.verdict == "not decidable here"}
    assert undecided == {"5.1", "5.2", "5.3", "5.4", "5.5"}
    assert set(result.tables()) == {"auc", "methods", "pairs", "circumference"}
    assert "oracle_gap_mass" not in result.figures() and "d_sdr" in result.figures()


def test_no_rows_at_all():
    tissues, masks, pixels = (frame.iloc[:0] for frame in everything(n=2))
    result = ds.summarise(tissues, masks, pixels, DIAGONAL, replicates=2)
    assert {v.verdict for v in result.verdicts.values()} == {"not decidable here"}
    assert result.tables() == {} and result.figures() == {}


def test_all_masks_empty():
    tissues, masks, pixels = everything(n=3)
    blank = masks[masks["variant"] == "SDR"].assign(D=NAN, H=NAN, A=0.0, components=0, empty=True, circumference=NAN)
    result = ds.summarise(tissues, pd.concat([blank, masks[masks["variant"] != "SDR"]]), pixels, DIAGONAL, replicates=9)
    assert result.verdicts["5.2"].verdict == "does not hold"  # the diagonal is further than any map
    assert {result.verdicts[k].verdict for k in ("5.3", "5.5", "5.6")} == {"not decidable here"}
    assert result.figures()["empty_sdr"].estimate.value == 3
