"""Comparisons of study 5: figures counted by hand, tests against scipy, empty masks and missing variants."""

import math

import numpy as np
import pandas as pd
import pytest
from deletion_masks import DIAGONAL, NAN, prepared, rows, value
from numpy.testing import assert_allclose

from xai_lib import paired_tests, statistics
from xai_lib.studies.deletion import comparisons as dc


def test_a_disc_as_large_as_an_empty_mask_is_empty():
    table = prepared(rows("SDR", [5, 7, NAN]), rows("random disc", [10, 12]), rows("CAM 50", [20, 20, 20]))
    disc = table[table["variant"] == "random disc"].sort_values("case")
    assert disc["empty"].tolist() == [False, False, True] and "breast centre" not in set(table["variant"])
    assert_allclose(disc["D"], [10, 12, NAN])
    assert disc["D penalty"].tolist() == [10, 12, DIAGONAL]
    row = dc.against_maps(table, n=5).iloc[0]
    assert row["chance"].value == pytest.approx((10 + 8 - 80) / 3)


def test_differences_by_hand():
    table = prepared(rows("SDR", [4, 6, NAN, 5]), rows("CAM 50", [10, 6, 50, NAN]))
    row = dc.differences(table, [("D", "CAM 50", "SDR")], n=50).iloc[0]
    assert (row["images"], row["first_mean"].value, row["second_mean"].value) == (2, 8, 5)
    assert (row["difference"].value, row["ratio"].value) == (3, 1.6)
    row = dc.differences(table, [("D penalty", "CAM 50", "SDR")], n=50).iloc[0]
    gaps = [6.0, 0.0, -50.0, 95.0]
    assert (row["images"], row["difference"].value) == (4, np.mean(gaps))
    assert (row["p"], row["effect"]) == (paired_tests.wilcoxon(gaps), paired_tests.rank_biserial(gaps))
    assert row["difference"].low < np.mean(gaps) < row["difference"].high
    assert not len(dc.differences(table, [("D", "CAM 75", "SDR")]))  # was not run


def test_intervals_are_those_of_the_bootstrap():
    first, second = np.arange(6) ** 2.0, np.arange(6) * 1.0
    found = dc.differences(prepared(rows("a", first), rows("b", second)), [("D", "a", "b")], n=50, seed=3)
    frame = pd.DataFrame({"gap": first - second, "patient_id": range(6)})
    wanted = statistics.bootstrap(lambda f: f["gap"].mean(), frame, n=50, seed=3)
    assert_allclose([found.loc[0, "difference"].low, found.loc[0, "difference"].high], [wanted.low, wanted.high])


def test_pairs_by_hand():
    disc = rows("random disc", [10, 10, NAN])
    maps = [rows(name, [20 + k, 30 + k, 40 + k], A=0.3) for k, name in enumerate(dc.MAPS)]
    found = dc.against_maps(prepared(rows("SDR", [5, 7, NAN]), disc, *maps), n=10)
    assert len(found) == 18 and set(found["empty"]) == {1}
    row = found[(found["variant"] == "CAM 50") & (found["measure"] == "D")].iloc[0]
    assert row["difference"].value == pytest.approx((15 + 23 - 60) / 3) and row["images"] == 3
    assert row["both"].value == pytest.approx(19) and row["both_images"] == 2
    assert row["chance"].value == pytest.approx((10 + 20 - 60) / 3)
    small = found[found["measure"] == "A"]
    assert [e.value for e in small["ratio"]] == pytest.approx([3] * 6) and set(small["images"]) == {2}
    assert_allclose(found["holm"], paired_tests.holm(list(found["p"])))


def test_pairs_without_some_maps_or_the_disc():
    found = dc.against_maps(prepared(rows("SDR", [5, 7]), rows("SAL 90", [9, 9])), n=5)
    assert found["measure"].tolist() == ["D", "H", "A"] and found["chance"].map(value).isna().all()
    found = dc.against_maps(prepared(rows("SDR", [NAN, NAN]), rows("SAL 90", [9, 9])), n=5).set_index("measure")
    assert math.isnan(found.loc["A", "p"]) and math.isnan(found.loc["A", "holm"]) and found.loc["D", "holm"] <= 1


def test_the_comparisons_of_the_study():
    parts = [rows(name, [1 + k, 3 + k], O=0.1 * k) for k, name in enumerate(("SDR", "SAL 50", "CAM 50", dc.ABLATED))]
    table = prepared(*parts, rows("untrained", [6, NAN]))
    found = dc.overlaps(table, n=5)
    assert found["percentile"].tolist() == ["50"] and found.loc[0, "difference"].value == pytest.approx(-0.1)
    found = dc.ablation(table, n=5).set_index("measure")
    assert found["difference"].map(value).to_dict() == {"D": 3, "H": 6, "components": 0, "A": 0}
    found = dc.against_chance(table, n=5).set_index("measure")
    gaps = {"D": -5, "H": -10, "D penalty": (-5 - 97) / 2, "H penalty": (-10 - 94) / 2}
    assert found["difference"].map(value).to_dict() == gaps and found["images"].tolist() == [1, 1, 2, 2]
    lone = prepared(rows("SDR", [1, 2]))
    assert not any(len(of(lone)) for of in (dc.overlaps, dc.ablation, dc.against_chance))
