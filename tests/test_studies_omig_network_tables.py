"""Tables of the networks of study 6: errors, coverage, slopes, paths and stability counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from omig_tables import curves, intervention, path

from xai_lib.studies.omig import network_tables as tables


def by_name(frame, *names):
    return frame.set_index(list(names))


def test_errors_by_hand():
    frame = pd.concat(
        [
            curves(scenario="#1", error=[0.1, -0.3], exact=2.0),
            curves(scenario="#1", error=[0.5, 0.5], exact=2.0, extrapolated=True),
            curves(scenario="#4", error=[1.0, 1.0], exact=4.0),
            curves(scenario="#1", error=[0.0, 0.2], network="disc reader"),
        ]
    )
    found = by_name(tables.errors_of(frame, 20), "network", "scenario")
    row = found.loc[("paper-like", "#1")]
    values = {"error": 0.35, "bias": 0.2, "relative": 0.175, "error_inside": 0.2, "relative_inside": 0.1}
    values |= {"ratio": 1 / 0.35, "ratio_inside": 5, "ratio_relative": 0.25 / 0.175}
    assert {k: row[k].value for k in values} == pytest.approx(values)
    assert row["images"] == 2 and row["error"].low == pytest.approx(0.3) and row["error"].high == pytest.approx(0.4)
    assert math.isnan(found.loc[("paper-like", "#4"), "ratio"].value)
    assert math.isnan(found.loc[("disc reader", "#1"), "ratio"].value)  # its #4 was not run


def test_coverage_by_hand():
    # sd 1, so 1.96 covers; drawn labels lie elsewhere
    frame = curves(error=[1.9, 2.0, -1.9, -2.0], exact=10.0, drawn=[12.0, 12.0, 12.0, np.nan])
    row = tables.coverage_of(frame, 50).iloc[0]
    assert row["exact"].value == 0.5 and row["drawn"].value == pytest.approx(2 / 3)  # the last label is missing
    assert row["width"].value == pytest.approx(3.92)
    assert row["epistemic_share"].value == pytest.approx(0.36) and row["ratio"].value == pytest.approx(0.75)
    assert row["paper"] == 0.971


def test_full_coverage_has_an_exact_interval():
    row = tables.coverage_of(curves(error=[0.1] * 5), 20).iloc[0]
    assert row["exact"].low == pytest.approx(0.025**0.2) and row["exact"].method == "exact binomial over 5 images"


def test_slopes_by_hand():
    frame = pd.concat(
        [
            intervention("a", "#1", "contrast", -0.5, -1.0),
            intervention("b", "#1", "contrast", 0.0, -1.0),
            intervention("a", "#1", "grid", -1.5, 0.0),
            intervention("a", "#1", "noise", 0.5, 0.0),
        ]
    )
    found = by_name(tables.slopes_of(frame, 50), "network", "what")
    assert found.loc[("a", "contrast"), "slope"].value == pytest.approx(0.5, abs=0.02)
    assert found.loc[("a", "contrast"), "true"].value == pytest.approx(-1)
    assert found.loc[("b", "contrast"), "slope"].value == pytest.approx(0, abs=0.02)
    assert found.loc[("a", "grid"), "slope"].value == pytest.approx(-1.5, abs=0.02)
    assert found["images"].tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    ("x", "y", "slope"),
    [
        ([1, 2, 4], [1, 4, 16], 2),
        ([1, 2, 4], [1, -4, 16], 2),  # what is not positive is left out
        ([1, 2], [-1, 4], math.nan),
        ([2, 2], [1, 4], math.nan),
        ([1, 2], [-1, -1], math.nan),
    ],
)
def test_log_slope(x, y, slope):
    assert tables.log_slope(pd.Series(x), pd.Series(y)) == pytest.approx(slope, nan_ok=True)


def test_a_factor_of_zero_has_no_slope():
    frame = intervention("a", "#1", "grid", 1.0, 0.0)
    none = frame[frame["factor"] == 1].assign(factor=0.0, predicted=5.0)
    found = tables.slopes_of(pd.concat([frame, none]), 20)["slope"][0]
    assert found == tables.slopes_of(frame, 20)["slope"][0]
    assert len(tables.interventions_of(pd.concat([frame, none]), 20)) == 6  # but stands in the table of means


def test_interventions_by_hand():
    frame = pd.DataFrame({"network": "a", "scenario": "#1", "image": [0, 1, 0, 1], "what": "noise",
                          "factor": [1.0, 1.0, 2.0, 2.0], "predicted": [1.0, 3.0, 5.0, 5.0], "true": 2.0})  # fmt: skip
    found = tables.interventions_of(frame, 20)
    assert [e.value for e in found["predicted"]] == [2, 5] and [e.value for e in found["true"]] == [2, 2]


def test_paths_by_hand():
    one = pd.concat([path(1.0, 50, 0.9, 0.99), path(0.01, 50, 0.97, 0.999), path(0.01, 10, 0.96, 0.9)])
    falls = [0.1, -0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    one.loc[one["c"] == 1, "end"] = one.loc[one["c"] == 1, "start"] - falls
    found = by_name(tables.paths_of(one, 50), "c", "steps")
    row = found.loc[(1.0, 50)]
    assert row["fall"].value == pytest.approx(0.075) and row["fell"].value == pytest.approx(7 / 8)
    assert found.loc[(0.01, 50), "fell"].low == pytest.approx(0.025 ** (1 / 8))
    assert found.loc[(0.01, 50), "rise"].value == pytest.approx(0.07)  # with the same draws, so without spread
    assert found.loc[(0.01, 50), "rise"].low == pytest.approx(0.07)
    assert math.isnan(row["rise"].value) and math.isnan(found.loc[(0.01, 10), "rise"].value)


def test_stability_by_hand():
    frame = pd.DataFrame([("a", "#1", "x", "y", 0.5), ("a", "#1", "x", "z", 0.7), ("a", "#1", "y", "z", 0.9)],
                         columns=["network", "scenario", "first", "second", "correlation"])  # fmt: skip
    row = tables.stability_of(frame, 200).iloc[0]
    assert row["correlation"].value == pytest.approx(0.7) and row["lowest"] == 0.5
    assert (row["members"], row["pairs"]) == (3, 3)
    assert row["correlation"].low == pytest.approx(0.5) and row["correlation"].high == pytest.approx(0.9)


def test_nothing_was_run():
    makers = (tables.errors_of, tables.coverage_of, tables.slopes_of, tables.interventions_of, tables.paths_of)
    assert not any(len(of(pd.DataFrame())) for of in (*makers, tables.stability_of))
