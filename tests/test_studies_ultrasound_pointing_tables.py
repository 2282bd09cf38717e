import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from xai_lib import estimate_tables, localization, statistics
from xai_lib.statistics import Estimate
from xai_lib.studies.ultrasound import pointing_tables as pt

NONE = dict.fromkeys([f"{point}_{region}" for point in ("max", "min") for region in localization.COLUMNS], False)


def row(index, label, logit, *hits, seed=0, fold=0, patient=None):
    """One row of a frame; `hits` such as "max_mass"."""
    found = NONE | dict.fromkeys(hits, True) | {f"{hit[:3]}_any": True for hit in hits}
    return {
        "seed": seed,
        "fold": fold,
        "index": index,
        "logit": logit,
        **found,
        "source": f"s{index}",
        "patient_id": patient or f"p{index}",
        "label": label,
    }


@pytest.fixture
def small():
    """Six images, one run; the threshold is 1.0, and image 3 is the one that is wrong."""
    rows = [
        row(0, 0, -3.0, "max_mass", "min_mass"),
        row(1, 0, -1.0, "max_mass", "min_ring"),
        row(2, 0, 0.0),
        row(3, 0, 2.0, "min_below"),
        row(4, 1, 1.0, "max_ring"),
        row(5, 1, 4.0, "min_below"),
    ]
    return pt.mark_correct(pd.DataFrame(rows))


@pytest.fixture
def areas():
    """Regions of the six images, 7 x 7 pixels: mass of k pixels, ring of 2 k, below of 3 k."""
    made = []
    for k in range(1, 7):
        flat = np.zeros(49, np.uint8)
        flat[:k], flat[k : 3 * k], flat[3 * k : 6 * k] = 1, 2, 4
        made.append(flat.reshape(7, 7))
    return made


def drawn(n=60, seeds=2, folds=2, hit=0.4, seed=0):
    """A random frame of several runs, every image tested once for each seed."""
    rng = np.random.default_rng(seed)
    columns = [c for c in NONE if not c.endswith("any")]
    rows = []
    for s, i in itertools.product(range(seeds), range(n)):
        hits = [c for c in columns if rng.random() < hit]
        label = i % 2
        rows.append(row(i, label, rng.normal(label * 2.0), *hits, seed=s, fold=i // 2 % folds, patient=f"p{i // 2}"))
    return pt.mark_correct(pd.DataFrame(rows))


# ------------------------------------------------------------------------------------------------- Tab. 1


def test_threshold_and_correct_by_hand(small):
    """Calling >= 1 malignant: sensitivity 1, specificity 3/4, the nearest to the corner."""
    assert small["threshold"].tolist() == [1.0] * 6
    assert small["correct"].tolist() == [True, True, True, False, True, True]


def test_every_run_has_its_own_threshold():
    rows = [row(i, i % 2, (i % 2) + 10.0 * seed, seed=seed) for seed in (0, 1) for i in range(4)]
    frame = pt.mark_correct(pd.DataFrame(rows[::-1]))
    assert frame.groupby("seed")["threshold"].unique().map(list).to_dict() == {0: [1.0], 1: [11.0]}
    assert frame["correct"].all()
    assert frame["index"].tolist() == [r["index"] for r in rows[::-1]]  # the order is kept


def test_one_class_in_a_run_is_an_error():
    with pytest.raises(ValueError, match="labels: all 2 are 1"):
        pt.mark_correct(pd.DataFrame([row(0, 1, 0.0), row(1, 1, 1.0)]))


def test_table1_by_hand(small):
    found = pt.table1(small, n=200)
    assert {name: e.value for name, e in found.items()} == {
        "auc": 7 / 8,  # of the 8 pairs, 1.0 against 2.0 is in the wrong order
        "accuracy": 5 / 6,
        "sensitivity": 1.0,
        "specificity": 0.75,
    }
    assert all(e.low <= e.value <= e.high for e in found.values())


def test_auc_is_the_mean_over_runs():
    frame = drawn()
    frame.loc[frame["seed"] == 1, "logit"] += 100  # scores of different networks are not compared
    expected = [roc_auc_score(run["label"], run["logit"]) for _, run in frame.groupby(["seed", "fold"])]
    assert pt.mean_auc(frame) == pytest.approx(np.mean(expected))
    assert pt.table1(frame, n=5)["auc"].value == pytest.approx(np.mean(expected))
    spread = pt.spread_over_runs(frame)
    assert spread["auc"].value == pytest.approx(np.mean(expected))
    assert spread["auc"].high - spread["auc"].value == pytest.approx(np.std(expected, ddof=1))


def test_spread_over_runs_by_hand():
    first = [row(i, label, logit) for i, (label, logit) in enumerate([(0, 0.0), (0, 1.0), (1, 2.0), (1, 3.0)])]
    second = [row(i, label, logit, seed=1) for i, (label, logit) in enumerate([(0, 0.0), (0, 2.0), (1, 1.0), (1, 3.0)])]
    found = pt.spread_over_runs(pd.DataFrame(first + second))
    assert found["auc"].value == pytest.approx((1 + 0.75) / 2)
    assert found["accuracy"].value == pytest.approx((1 + 0.75) / 2)
    # two points are equally near, (0, 1/2) and (1/2, 1): the higher threshold is taken
    assert found["sensitivity"].value == pytest.approx((1 + 0.5) / 2) and found["specificity"].value == 1


# ---------------------------------------------------------------------------------------- hits and chance


def test_hits_by_hand(small):
    assert pt.hit_columns(small).sum().to_dict() == {"mass": 2, "ring": 2, "below": 2, "any": 5}
    assert pt.hit_columns(small, "max").sum().to_dict() == {"mass": 2, "ring": 1, "below": 0, "any": 3}
    assert pt.hit_columns(small, "min").sum().to_dict() == {"mass": 1, "ring": 1, "below": 2, "any": 4}
    with pytest.raises(ValueError, match="'maximum' is not one of max, min, both"):
        pt.hit_columns(small, "maximum")


def test_chance_of_uniform_points_and_cells(small, areas):
    both, one = (pt.chance_columns(small, areas, "uniform", which=which) for which in ("both", "max"))
    cells = pt.chance_columns(small, areas, "cells", (7, 7))
    for i in range(6):
        for name, times in (("mass", 1), ("ring", 2), ("below", 3), ("any", 6)):
            count = times * (i + 1)
            p = count / 49
            assert one[name][i] == pytest.approx(p)
            assert both[name][i] == pytest.approx(1 - (1 - p) ** 2)
            assert cells[name][i] == pytest.approx(1 - (49 - count) * (48 - count) / (49 * 48))
    assert pt.chance_columns(small, areas, "cells", (7, 7), "min").equals(one)


def test_chance_of_the_centre_is_one_point(small, areas):
    """Pixel 24 of 49: in the mass for no k, ring for 3 k > 24 >= k, below for 6 k > 24 >= 3 k."""
    centre = pt.chance_columns(small, areas, "centre")
    assert centre["mass"].tolist() == [0] * 6 and centre["ring"].tolist() == [0] * 6
    assert centre["below"].tolist() == centre["any"].tolist() == [0, 0, 0, 0, 1, 1]
    assert centre.equals(pt.chance_columns(small, areas, "centre", which="max"))


def test_chance_follows_the_rows_of_the_frame(small, areas):
    part = small.iloc[[4, 1, 4]]
    found = pt.chance_columns(part, areas, "uniform")
    whole = pt.chance_columns(small, areas, "uniform")
    assert found["mass"].tolist() == whole["mass"].iloc[[4, 1, 4]].tolist()
    assert found.index.tolist() == [4, 1, 4]


def test_chance_options(small, areas):
    with pytest.raises(ValueError, match="kind: 'corner' is not"):
        pt.chance_columns(small, areas, "corner")
    with pytest.raises(ValueError, match="which: 'maximum' is not one of"):
        pt.chance_columns(small, areas, "uniform", which="maximum")


def test_chance_against_drawn_maps(areas):
    """Random 7 x 7 maps score what the "cells" row says."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(1200):
        game = localization.pointing_game(rng.normal(size=(7, 7)), areas[k % 6], "both")
        rows.append(row(k % 6, k % 2, 0.0, *[f"max_{c}" for c in localization.REGIONS if game[c]]))
    frame = pd.DataFrame(rows)
    drawn_rates, exact = pt.hit_columns(frame).mean(), pt.chance_columns(frame, areas, "cells").mean()
    assert drawn_rates.to_dict() == pytest.approx(exact.to_dict(), abs=0.04)


# ------------------------------------------------------------------------------------------ rates, Tab. 2


def test_rates_per_class_by_hand(small):
    kept = small[small["correct"]]
    found = pt.rates(pt.hit_columns(kept), kept, n=50)
    values = {k: [e.value for e in row.values()] for k, row in found.items()}
    assert values["all"] == pytest.approx([2 / 5, 2 / 5, 1 / 5, 4 / 5])  # adds to 100 % and more
    assert values["benign"] == pytest.approx([2 / 3, 1 / 3, 0, 2 / 3])
    assert values["malignant"] == pytest.approx([0, 1 / 2, 1 / 2, 1])
    only_benign = kept[kept["label"] == 0]
    found = pt.rates(pt.hit_columns(only_benign), only_benign, n=20)
    assert np.isnan(found["malignant"]["any"].value) and found["malignant"]["any"].low is None


@pytest.mark.parametrize("patients", [2, 100])
def test_exact_share_is_the_interval_of_scipy(patients):
    for hits in (0, patients):
        share = float(hits > 0)
        found = statistics.exact_share(Estimate(share, share, share, "bootstrap"), patients)
        assert (found.low, found.high) == pytest.approx(tuple(binomtest(hits, patients).proportion_ci()))
        assert found.value == share and found.method == f"exact binomial over {patients} patients"


def test_an_interval_of_the_bootstrap_is_kept():
    for other in (Estimate(0.0), Estimate(0.0, 0.0, 0.1), Estimate(0.5, 0.5, 0.5), Estimate(np.nan)):
        assert statistics.exact_share(other, 100) is other


def test_rates_without_variance_have_the_exact_interval_of_their_class(small):
    kept = small[small["correct"]]
    found = pt.rates(pt.hit_columns(kept), kept, n=50)
    assert found["benign"]["below"].high == pytest.approx(1 - 0.025 ** (1 / 3))  # none of three
    assert found["malignant"]["any"].low == pytest.approx(0.025 ** (1 / 2))  # both
    assert "bootstrap" in found["all"]["any"].method
    twice = pd.concat([kept, kept], ignore_index=True)  # two images of every patient
    assert pt.rates(pt.hit_columns(twice), twice, n=50)["benign"]["below"] == found["benign"]["below"]


def test_interval_resamples_patients():
    """Ten copies of each patient's row: the interval is as wide as with one row, not narrower."""
    frame = drawn(n=40, seeds=1, folds=1)
    copies = pd.concat([frame] * 10, ignore_index=True)
    one, ten = (pt.rates(pt.hit_columns(f), f, n=300)["all"]["any"] for f in (frame, copies))
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high)) and one.high - one.low > 0.1


def test_table2_by_hand(small, areas):
    other = small.assign(**{c: True for c in NONE}, correct=False)
    table = pt.table2({"CAM": small, "all hit": other}, areas, (7, 7), n=20)
    assert table["row"].unique().tolist() == ["CAM", "all hit", "two random points", "two random cells", "image centre"]
    assert table["kind"].tolist() == ["map"] * 6 + ["chance"] * 9
    assert table["images"].tolist() == [5, 3, 2] * 5  # the rows that the first one classifies rightly

    def value(name, group, column):
        return table[(table["row"] == name) & (table["class"] == group)][column].iloc[0].value

    assert value("CAM", "malignant", "ring") == 0.5 and value("all hit", "all", "mass") == 1
    kept = [0, 1, 2, 4, 5]
    expected = np.mean([1 - (1 - (i + 1) / 49) ** 2 for i in kept])
    assert value("two random points", "all", "mass") == pytest.approx(expected)
    expected = np.mean([1 - (1 - (i + 1) / 49) ** 2 for i in (4, 5)])
    assert value("two random points", "malignant", "mass") == pytest.approx(expected)
    assert value("image centre", "malignant", "below") == 1 and value("image centre", "benign", "below") == 0


def test_table2_of_one_extreme_has_one_random_point(small, areas):
    table = pt.table2({"CAM": small}, areas, (7, 7), which="min", n=20)
    assert table["row"].unique().tolist() == ["CAM", "one random point", "one random cell", "image centre"]
    first = table[(table["row"] == "one random point") & (table["class"] == "all")].iloc[0]
    assert first["mass"].value == pytest.approx(np.mean([1, 2, 3, 5, 6]) / 49)


def test_table2_needs_the_same_rows(small, areas):
    for other in (small.iloc[:-1], small.iloc[::-1]):
        with pytest.raises(ValueError, match="maps: 'LayerCAM' has other rows than 'CAM'"):
            pt.table2({"CAM": small, "LayerCAM": other}, areas, (7, 7), n=5)


def test_table_as_text_and_rows():
    table = pd.DataFrame(
        {"row": ["CAM"], "images": [5], "mass": [Estimate(0.344, 0.281, 0.409)], "ring": [Estimate(0.5)]}
    )
    assert estimate_tables.as_text(table).iloc[0].tolist() == ["CAM", 5, "34 [28, 41]", "50"]
    assert estimate_tables.as_text(table, percent=False)["mass"][0] == "0.344 [0.281, 0.409]"
    assert estimate_tables.as_rows(table) == [
        {
            "row": "CAM",
            "images": 5,
            "mass": 0.344,
            "mass_low": 0.281,
            "mass_high": 0.409,
            "ring": 0.5,
            "ring_low": None,
            "ring_high": None,
        }
    ]


def test_rows_of_a_record_are_the_table_again(small, areas):
    table = pt.table2({"CAM": small}, areas, (7, 7), n=20)
    again = estimate_tables.from_rows(estimate_tables.as_rows(table))
    assert list(again.columns) == ["row", "class", *localization.COLUMNS, "kind", "images"]
    assert estimate_tables.as_text(again[table.columns]).equals(estimate_tables.as_text(table))
    assert estimate_tables.as_rows(again[table.columns]) == estimate_tables.as_rows(table)
    without = estimate_tables.from_rows([{"row": "x", "mass": None, "mass_low": None, "mass_high": None}])
    assert without["mass"][0] is None  # a figure that was not defined: NaN is null in a record


# --------------------------------------------------------------------------------------------- abstention


def test_abstention_by_hand(small):
    """|logit - 1| is 4, 2, 1, 1, 0, 3: the order of confidence is 0, 5, 1, 2, 3, 4, and 3 is the one that is wrong."""
    table = pt.abstention(small).set_index("rule")
    assert table["coverage"].tolist() == pytest.approx([1, 5 / 6, 3 / 6, 2 / 6])
    assert table["accuracy"].tolist() == pytest.approx([5 / 6, 4 / 5, 1, 1])  # {0 1 3 4 5}, {0 1 4}, {0 1}
    assert table["same_coverage_confident"].tolist() == pytest.approx([5 / 6, 4 / 5, 1, 1])
    assert table["random"].tolist() == pytest.approx([5 / 6] * 4)


def test_abstention_that_never_answers(small):
    nothing = small.assign(**NONE)
    table = pt.abstention(nothing).set_index("rule")
    assert table["coverage"].tolist() == [1, 0, 0, 0] and np.isnan(table["accuracy"].iloc[1:]).all()


def test_confidence_curve_by_hand(small):
    coverage, accuracy = pt.confidence_curve(small)
    assert coverage == pytest.approx(np.arange(1, 7) / 6)
    assert accuracy == pytest.approx([1, 1, 1, 1, 4 / 5, 5 / 6])


def test_bootstrap_is_reproducible(small, areas):
    tables = [estimate_tables.as_rows(pt.table2({"CAM": small}, areas, (7, 7), n=30, seed=seed)) for seed in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]
    assert statistics.bootstrap_many(lambda f: f[["logit"]].mean(), small, n=5)["logit"].value == 0.5
