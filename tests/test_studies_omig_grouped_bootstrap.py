"""Figures of groups: sums by hand, pairs between groups, intervals."""

import math

import numpy as np
import pandas as pd
import pytest

from xai_lib import statistics
from xai_lib.results import Estimate
from xai_lib.studies.omig.grouped_bootstrap import averages, known, partner, shares, table


def mean(frame, n=50, by=("group",), seed=0):
    columns, means = averages(["x"])
    return table(known(frame, ["x"]), by, "image", columns, lambda sums, _: means(sums), n, seed)


def rows(**groups):
    return pd.DataFrame(
        [{"group": name, "image": i, "x": x} for name, values in groups.items() for i, x in enumerate(values)]
    )


def test_means_by_hand():
    found = mean(pd.concat([rows(b=[1.0, 2.0, 6.0], a=[4.0, np.nan]), rows(b=[3.0])]))
    assert found["group"].tolist() == ["b", "a"]  # in the order of the rows
    assert found["images"].tolist() == [3, 2]
    assert [e.value for e in found["x"]] == [3.0, 4.0]


def test_the_interval_is_that_of_the_plain_bootstrap():
    frame = rows(a=np.random.default_rng(0).normal(size=20))
    ours = mean(frame, 200)["x"][0]
    plain = statistics.bootstrap(lambda drawn: drawn["x"].mean(), frame, "image", 200)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high))
    assert ours.method == "bootstrap over 20 image, 200 replicates"


def test_groups_that_share_units_stay_paired():
    x = np.random.default_rng(0).normal(size=20)
    frame = rows(a=x, b=x + 1)
    columns, means = averages(["x"])

    def gap(sums, names):
        return {"gap": partner(means(sums)["x"], names, group="a") - means(sums)["x"]}

    found = table(known(frame, ["x"]), ["group"], "image", columns, gap, 50, 0)["gap"]
    assert math.isnan(found[0].value)  # no partner of its own
    assert (found[1].low, found[1].value, found[1].high) == pytest.approx((-1, -1, -1))


def test_partners():
    names = pd.DataFrame({"network": ["a", "a", "b"], "scenario": ["#1", "#4", "#1"]})
    found = partner(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), names, scenario="#4")
    assert found[:, 0].tolist() == [2, 5] and np.isnan(found[:, 1:]).all()


def test_one_unit_has_no_interval():
    found = mean(rows(a=[1.0]))["x"][0]
    assert found.value == 1 and found.low is None


def test_nothing_gives_nothing():
    assert not len(mean(pd.DataFrame({"x": []})))


def test_a_share_of_one_gets_an_exact_interval():
    frame = pd.DataFrame({"x": [Estimate(1.0, 1.0, 1.0), Estimate(0.5, 0.2, 0.8), Estimate(0.0)], "images": [3, 5, 1]})
    found = shares(frame, ["x"], "images")["x"]
    assert found[0].low == pytest.approx(0.025 ** (1 / 3)) and found[0].method == "exact binomial over 3 images"
    assert found[1] == frame["x"][1] and found[2] == frame["x"][2]
    assert frame["x"][0].low == 1
