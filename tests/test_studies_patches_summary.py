import math

import numpy as np
import pandas as pd
import pytest

from xai_lib import claims
from xai_lib.results import Estimate
from xai_lib.studies.mammograms.thesis_methods import THESIS
from xai_lib.studies.patches import summary as patch_summary
from xai_lib.studies.patches.maps import SETS, Tables
from xai_lib.studies.patches.study import CHEAP
from xai_lib.studies.patches.summary import MEAN, MEDIAN, as_frame, calls, estimates, judge, summarise

MEASURES = ["area", "top_lesion", "energy_lesion", "top_middle", "energy_middle", "gini", "entropy", "effective_area"]
MEASURES += ["central", "peak_centre", "peak_lesion"]


def maps_table(patches=12, seed=0, **effects):
    """Noise around known means: patch i is malignant where i < half of them; `effects` by "set.measure.kind"."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(patches):
        kind = "malignant" if i < patches // 2 else "benign" if i % 3 == 0 else "normal"
        for which in SETS:
            if which in ("twin", "shifted") and kind != "malignant":
                continue
            for method in CHEAP if which == "untrained" else THESIS:
                row = {"index": i, "patient_id": f"p{i}", "label": int(kind == "malignant"), "kind": kind, "set": which}
                row |= {"method": method, "score": 1.0 if kind == "malignant" else -1.0, "gap": np.nan}
                row |= {m: 0.2 + 0.01 * rng.normal() + effects.get(f"{which}.{m}.{kind}", 0) for m in MEASURES}
                row["gap"] = 0.01 * i if method == "deeplift" else np.nan
                rows.append(row)
    table = pd.DataFrame(rows)
    lesion = ["area", "top_lesion", "energy_lesion", "top_middle", "energy_middle", "peak_lesion"]
    table.loc[table["kind"] == "normal", lesion] = np.nan
    return table


def pairs_table(maps, tp=0.3, tn=0.1):
    rng, rows = np.random.default_rng(1), []
    for (i, which), part in maps.groupby(["index", "set"], sort=False):
        names = list(part["method"])
        level = tp if part["label"].iloc[0] == 1 and which != "twin" else tn
        for j, first in enumerate(names):
            for second in names[j + 1 :]:
                row = dict.fromkeys(("rank_correlation", "absolute_rank_correlation", "top_overlap"), 0.0)
                row = {name: level + 0.01 * rng.normal() for name in row}
                rows.append({"index": i, "set": which, "first": first, "second": second, **row})
    return pd.DataFrame(rows).merge(maps.drop_duplicates("index")[["index", "patient_id"]], on="index")


def scores():
    """Two networks, four malignant and four normal patches, in all sets: 6 and 5 of 8 right."""
    kinds = ["malignant"] * 4 + ["normal"] * 4
    values = {"resnet50": [2, 1, 1, -1, -1, -2, -1, 1], "mobilenet_v2": [1, -1, 1, -1, 0.5, -2, -1, -1]}
    rows = [
        {"network": name, "set": which, "index": i, "patient_id": f"p{i // 2}", "kind": kind, "score": score}
        for name, found in values.items()
        for which, only in {"centred": "", "shifted": "", "twin": "malignant", "benign": "normal"}.items()
        for i, (kind, score) in enumerate(zip(kinds, found, strict=True))
        if only in ("", kind)
    ]
    return pd.DataFrame(rows).assign(label=lambda f: (f["kind"] == "malignant").astype(int))


def everything(maps, pairs=None):
    sanity = pd.DataFrame(
        {
            "method": "saliency",
            "step": [0, 0, 1, 1],
            "layer": ["trained", "trained", "head", "head"],
            "image": [0, 1] * 2,
        }
    ).assign(rank_correlation=[1, 1, 0.2, 0.4], absolute_rank_correlation=0.5, top_overlap=0.1, image_effect=1.0)
    return Tables(scores(), maps, pairs_table(maps) if pairs is None else pairs, sanity)


# -------------------------------------------------------------------------------------------------- maps, by hand


def test_calls():
    facts = [
        ("malignant", 1, 0.5),
        ("malignant", 1, -0.5),
        ("normal", 0, -0.5),
        ("benign", 0, -0.5),
        ("benign", 0, 2.0),
    ]
    rows = [
        {
            "index": i,
            "set": which,
            "method": m,
            "kind": kind,
            "label": label,
            "score": score if which == "centred" else -9,
        }
        for i, (kind, label, score) in enumerate(facts)
        for which in ("twin", "centred")
        for m in "ab"
    ]
    assert calls(pd.DataFrame(rows)).tolist() == ["TP", "FN", "TN", "TN benign", "FP"]


def hand_table(values):
    """Rows (index, set, method, value); patients are the indices."""
    table = pd.DataFrame(values, columns=["index", "set", "method", "m"])
    return table.assign(patient_id=table["index"].map("p{}".format))


def test_means_differences_and_the_median_over_methods_by_hand():
    table = hand_table(
        [
            (i, "centred", m, v)
            for m, vs in {"a": [1, 3, 0], "b": [2, 2, 1], "c": [9, 9, 2]}.items()
            for i, v in enumerate(vs)
        ]
    )
    called = pd.Series(["TP", "TP", "TN"])
    levels = {"tp": ("TP", "centred", "m"), "tn": ("TN", "centred", "m")}
    found = estimates(table, "method", called, levels, {"gap": ("tn", "tp")}, (MEDIAN, np.nanmedian), n=200)
    assert {name: e.value for name, e in found["tp"].items()} == {"a": 2, "b": 2, "c": 9, MEDIAN: 2}
    assert {name: e.value for name, e in found["gap"].items()} == {"a": -2, "b": -1, "c": -7, MEDIAN: -2}
    assert (found["tp"]["a"].low, found["tp"]["a"].high) == (1, 3)
    assert "dropped as undefined" in found["tp"]["a"].method  # replicates without a true positive


def test_differences_within_a_group_are_paired():
    # patch 1's map in the twin has no mass: only patch 0 counts for the difference
    rows = [(0, "centred", "a", 5.0), (1, "centred", "a", 1.0), (0, "twin", "a", 4.0), (1, "twin", "a", np.nan)]
    levels = {"own": ("TP", "centred", "m"), "twin": ("TP", "twin", "m")}
    called = pd.Series(["TP", "TP"])
    found = estimates(hand_table(rows), "method", called, levels, {"gap": ("own", "twin")}, (MEDIAN, np.nanmedian), n=9)
    assert found["gap"]["a"].value == 1.0  # not 3 - 4
    assert found["own"]["a"].value == 3.0 and found["twin"]["a"].value == 4.0


def test_malignant_takes_true_positives_and_false_negatives():
    table = hand_table([(i, "centred", "a", float(i)) for i in range(4)])
    called = pd.Series(["TP", "FN", "FP", "TN"])
    found = estimates(table, "method", called, {"x": ("malignant", "centred", "m")}, {}, (MEDIAN, np.nanmedian), n=9)
    assert found["x"]["a"].value == 0.5


def test_a_set_or_method_that_was_not_measured_is_nan():
    table = hand_table(
        [
            (0, "centred", "a", 1.0),
            (0, "centred", "b", 2.0),
            (1, "centred", "a", 1.0),
            (1, "centred", "b", 2.0),
            (0, "untrained", "a", 3.0),
        ]
    )
    levels = {"u": ("TP", "untrained", "m"), "none": ("TP", "shifted", "m")}
    found = estimates(table, "method", pd.Series(["TP", "TP"]), levels, {}, (MEDIAN, np.nanmedian), n=9)
    assert found["u"]["a"].value == 3 == found["u"][MEDIAN].value
    assert math.isnan(found["u"]["b"].value) and all(math.isnan(e.value) for e in found["none"].values())


# ------------------------------------------------------------------------------------------------- the whole


def test_summary_finds_what_was_put_in():
    maps = maps_table(
        60,
        **{"centred.top_lesion.malignant": 0.3, "centred.entropy.normal": 0.1, "centred.central.malignant": 0.2},
        **{"shifted.top_lesion.malignant": 0.25, "twin.entropy.malignant": 0.05},
    )
    result = summarise(everything(maps), replicates=200)
    assert result.counts["TP"] == 30 and result.counts["TN benign"] == 10 and result.counts["TN"] == 20
    for name, value in {
        "overlap": 0.3,
        "overlap_over_twin": 0.3,
        "entropy_tn-tp": 0.1,
        "entropy_twin-tp": 0.05,
        "central": 0.4,
        "follows": 0.25,
        "overlap_untrained": 0.0,
    }.items():
        assert result.maps[name][MEDIAN].value == pytest.approx(value, abs=0.01), name
        assert result.maps[name]["lime" if "untrained" not in name else "deeplift"].value == pytest.approx(
            value, abs=0.01
        )
    assert result.pairs["correlation_tp-tn"][MEAN].value == pytest.approx(0.2, abs=0.01)
    assert {claim: v.verdict for claim, v in result.verdicts.items() if claim != "1.1"} == dict.fromkeys(
        ("1.2", "1.3", "1.4"), claims.HOLDS
    )
    assert result.sanity["rank_correlation"].tolist() == pytest.approx([1.0, 0.3])
    assert result.gaps.set_index("method").loc["deeplift", "largest"] == pytest.approx(0.59)


@pytest.mark.parametrize(
    ("effects", "tp", "wrong"),
    [
        ({"centred.top_lesion.malignant": -0.1, "centred.entropy.normal": 0.1}, 0.3, "1.2"),
        ({"centred.top_lesion.malignant": 0.1, "centred.entropy.normal": -0.1}, 0.3, "1.2"),
        ({}, 0.7, "1.3"),
        ({}, 0.05, "1.3"),
        ({"centred.central.malignant": -0.1}, 0.3, "1.4"),
    ],
)
def test_each_half_of_a_claim_can_fail(effects, tp, wrong):
    maps = maps_table(30, **effects)
    result = summarise(everything(maps, pairs_table(maps, tp=tp)), replicates=60)
    assert result.verdicts[wrong].verdict == claims.FAILS


def test_saliency_is_compared_by_absolute_values():
    maps = maps_table(12)
    pairs = pairs_table(maps)
    unsigned = (pairs["first"] == "saliency") | (pairs["second"] == "saliency")
    pairs["rank_correlation"] = np.where(unsigned, -1.0, 0.5)
    pairs["absolute_rank_correlation"] = np.where(unsigned, 0.2, 9.0)
    found = summarise(everything(maps, pairs), replicates=5).pairs["correlation_tp"]
    assert found["saliency / lime"].value == pytest.approx(0.2)
    assert found["occlusion / deeplift"].value == pytest.approx(0.5)
    assert found[MEAN].value == pytest.approx((6 * 0.2 + 15 * 0.5) / 21)


@pytest.mark.parametrize(("kind", "score"), [("malignant", -1.0), ("normal", 1.0)])
def test_without_true_positives_or_negatives_nothing_is_decided(kind, score):
    maps = maps_table(12, **{"centred.top_lesion.malignant": 0.3})
    maps.loc[maps["kind"] == kind, "score"] = score
    result = summarise(everything(maps), replicates=20)
    assert result.counts["TP" if kind == "malignant" else "TN"] == 0
    figures = result.figures()
    missing = ("top_in_lesion", "correlation_tp") if kind == "malignant" else ("entropy_tn_minus_tp", "correlation_tn")
    assert all(math.isnan(figures[name].estimate.value) for name in missing)
    assert result.verdicts["1.2"].verdict == claims.UNDECIDED and "not defined" in result.verdicts["1.2"].why
    assert result.verdicts["1.3"].verdict == claims.UNDECIDED
    assert not math.isnan(figures["central_share"].estimate.value)  # of all malignant patches


def test_maps_without_mass_are_counted_and_left_out():
    maps = maps_table(12)
    lost = (maps["method"] == "lime") & (maps["index"] < 3) & (maps["set"] == "centred")
    maps.loc[lost, MEASURES[1:]] = np.nan
    result = summarise(everything(maps), replicates=20)
    assert result.counts["maps without mass"] == 3
    assert result.maps["top"]["lime"].value == pytest.approx(0.2, abs=0.02)


def test_figures_stand_beside_their_baselines_and_tables_are_plain():
    result = summarise(everything(maps_table(12)), replicates=20)
    figures = result.figures()
    assert set(figures["top_in_lesion"].baselines) == {"area of the lesion", "healthy twin", "untrained network"}
    assert set(figures["central_share"].baselines) == {
        "even map",
        "healthy twin",
        "untrained network",
        "shifted lesion",
    }
    assert figures["central_share"].baselines["even map"].value == 0.25
    assert figures["accuracy_resnet50"].estimate.value == 6 / 8
    assert figures["accuracy_difference"].estimate.value == pytest.approx(1 / 8)
    tables = result.tables()
    assert {"networks", "difference", "intervention", "maps", "pairs", "gaps", "sanity", "counts"} == set(tables)
    for rows in tables.values():
        assert rows and not any(isinstance(value, Estimate) for row in rows for value in row.values())
    first = tables["maps"][0]
    assert first["method"] == "saliency" and first["top_low"] <= first["top"] <= first["top_high"]


def test_as_frame_keeps_the_order_of_the_methods():
    frame = as_frame(
        {"x": {"b": Estimate(1.0), "a": Estimate(2.0)}, "y": {"b": Estimate(3.0), "a": Estimate(4.0)}}, ["y"]
    )
    assert list(frame.index) == ["b", "a"] and list(frame.columns) == ["y"]
    assert frame["y"]["a"].value == 4.0


def test_the_rules_are_those_of_the_ledger():
    one = {name: {MEDIAN: Estimate(0.1, 0.05, 0.2), "a": Estimate(0.0)} for name in patch_summary.LEVELS}
    one |= {name: {MEDIAN: Estimate(0.1, 0.05, 0.2)} for name in patch_summary.DIFFERENCES}
    one["central"] = {MEDIAN: Estimate(0.24, 0.2, 0.28)}
    two = {
        name: {MEAN: Estimate(0.1, 0.05, 0.2)} for name in (*patch_summary.PAIR_LEVELS, *patch_summary.PAIR_DIFFERENCES)
    }
    verdicts = judge({"accuracy, normal": Estimate(0.0, 0.0, 0.0)}, one, two)
    assert {claim: v.verdict for claim, v in verdicts.items()} == {
        "1.1": claims.UNDECIDED,
        "1.2": claims.HOLDS,
        "1.3": claims.HOLDS,
        "1.4": claims.UNDECIDED,
    }
    below = verdicts["1.3"].parts["0.5 - correlation on TP"].ours
    assert (below.value, below.low, below.high) == pytest.approx((0.4, 0.3, 0.45))
    known = claims.load()
    assert all(known[claim].status == "answered" and known[claim].rule == v.rule for claim, v in verdicts.items())
