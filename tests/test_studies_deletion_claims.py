"""Claims of study 5: every rule of the ledger in each of its three states, from hand-made tables."""

import math

import pandas as pd
import pytest

from xai_lib.results import Estimate
from xai_lib.studies.deletion import claims as dc

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable here"
MAPS = ("CAM 50", "CAM 75", "CAM 90", "SAL 50", "SAL 75", "SAL 90")
FIGURES = {
    "5.1": ["0.03 - rise by healthy tissue", "0.03 - fall by healthy tissue", "fall by the mass"],
    "5.2": [f"{m}, {name} - SDR" for m in ("D", "H") for name in MAPS],
    "5.3": [f"{name} / SDR" for name in MAPS],
    "5.4": ["SAL 50 - CAM 50", "SAL 75 - CAM 75", "SAL 90 - CAM 90"],
    "5.5": ["D, without - with", "H, without - with", "components, without - with"],
    "5.6": ["share - shifted"],
}


def e(low, high):
    return Estimate((low + high) / 2, low, high, "bootstrap over 9 patient_id, 99 replicates")


def tables(healthy=(-0.01, 0.01), mass=(-0.3, -0.1), closer=(1, 2), ratio=(3, 4), more=(0.1, 0.2), scatter=(1, 2),
           share=(0.1, 0.2), p=0.001, chance=(0.5, 3)):  # fmt: skip
    """Tables of results with which every claim holds; an argument is the interval of each figure, or of the last."""
    auc = pd.DataFrame({"tissue": ["none", "healthy", "mass"], "change": [e(0, 0), e(*healthy), e(*mass)]})
    rows = [
        {"measure": m, "variant": name, "difference": e(1, 2), "chance": e(*chance), "ratio": e(3, 4), "holm": p}
        for m in ("D", "H", "A")
        for name in MAPS
    ]
    pairs = pd.DataFrame(rows)
    pairs.loc[11, ["difference"]] = [e(*closer)]  # H, SAL 90
    pairs.loc[17, ["ratio"]] = [e(*ratio)]
    overlaps = pd.DataFrame({"percentile": ["50", "75", "90"], "difference": [e(0.1, 0.2), e(0.1, 0.2), e(*more)]})
    ablation = pd.DataFrame({"measure": ["D", "H", "components"], "difference": [e(1, 2), e(1, 2), e(*scatter)]})
    around = pd.DataFrame({"variant": ["SDR", "CAM 50"], "gain": [e(*share), e(-1, -0.5)]})
    return auc, pairs, overlaps, ablation, around


def judged(name, **known):
    return dc.judge(*tables(**known))[name]


def test_all_hold():
    verdicts = dc.judge(*tables())
    assert {name: v.verdict for name, v in verdicts.items()} == dict.fromkeys(FIGURES, HOLDS)
    assert all(list(verdicts[name].parts) == FIGURES[name] for name in FIGURES if name != "5.6")


@pytest.mark.parametrize(
    ("healthy", "mass", "verdict"),
    [
        ((-0.029, 0.029), (-0.2, -0.001), HOLDS),
        ((-0.031, 0.01), (-0.2, -0.1), OPEN),  # reaches out on one side
        ((0.0, 0.04), (-0.2, -0.1), OPEN),
        ((0.031, 0.05), (-0.2, -0.1), FAILS),  # wholly outside
        ((-0.05, -0.031), (-0.2, -0.1), FAILS),
        ((-0.01, 0.01), (-0.1, 0.01), OPEN),
        ((-0.01, 0.01), (0.01, 0.1), FAILS),  # the mass raises the AUC
        ((-0.04, 0.01), (0.01, 0.1), FAILS),
    ],
)
def test_5_1(healthy, mass, verdict):
    assert judged("5.1", healthy=healthy, mass=mass).verdict == verdict


def test_5_1_states_the_change_that_is_left():
    part = judged("5.1", healthy=(-0.01, 0.02)).parts["0.03 - rise by healthy tissue"].ours
    assert (part.value, part.low, part.high) == pytest.approx((0.025, 0.01, 0.04))


@pytest.mark.parametrize(
    ("closer", "p", "verdict"),
    [
        ((1, 2), 0.0099, HOLDS),
        ((1, 2), 0.01, OPEN),
        ((1, 2), math.nan, OPEN),
        ((-1, 2), 0.001, OPEN),
        ((-2, -1), 0.001, FAILS),
        ((-2, -1), 0.5, FAILS),  # a sign alone is enough
    ],
)
def test_5_2(closer, p, verdict):
    found = judged("5.2", closer=closer, p=p)
    assert found.verdict == verdict and "largest p of Wilcoxon's test after Holm" in found.why


def test_5_2_takes_the_p_of_distances_alone():
    found = tables()
    found[1].loc[found[1]["measure"] == "A", "holm"] = 0.5
    assert dc.judge(*found)["5.2"].verdict == HOLDS
    found[1].loc[0, "holm"] = 0.5
    assert dc.judge(*found)["5.2"].verdict == OPEN


def test_5_2_names_what_a_random_disc_gains():
    assert "the chance level 1.500 lies in our interval" in judged("5.2", chance=(1, 2)).why
    assert judged("5.2", chance=(1, 2)).verdict == HOLDS


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((2.1, 3), HOLDS),
        ((1.9, 3), OPEN),
        ((1.2, 1.9), OPEN),  # below 2, but not below 1
        ((0.9, 1.5), OPEN),
        ((0.9, 2.5), OPEN),
        ((0.5, 0.9), FAILS),
    ],
)
def test_5_3(ratio, verdict):
    found = judged("5.3", ratio=ratio)
    assert found.verdict == verdict == found.parts["SAL 90 / SDR"].verdict
    assert ("not wholly below 1" in found.why) == (ratio[1] < 2 and verdict == OPEN)


@pytest.mark.parametrize("name", ["5.4", "5.5", "5.6"])
@pytest.mark.parametrize(("ends", "verdict"), [((0.1, 0.2), HOLDS), ((-0.1, 0.2), OPEN), ((-0.2, -0.1), FAILS)])
def test_5_4_to_5_6(name, ends, verdict):
    argument = {"5.4": "more", "5.5": "scatter", "5.6": "share"}[name]
    verdicts = dc.judge(*tables(**{argument: ends}))
    assert verdicts.pop(name).verdict == verdict
    assert {v.verdict for v in verdicts.values()} == {HOLDS}


def test_what_was_not_measured_decides_nothing():
    verdicts = dc.judge(*(pd.DataFrame() for _ in range(5)))
    assert {name: v.verdict for name, v in verdicts.items()} == dict.fromkeys(FIGURES, OPEN)
    auc, pairs, overlaps, ablation, around = tables()
    found = dc.judge(auc.iloc[:2], pairs.iloc[:-1], overlaps.iloc[1:], ablation.iloc[1:], around.iloc[1:])
    assert {name: v.verdict for name, v in found.items()} == dict.fromkeys(FIGURES, OPEN) | {"5.2": HOLDS}
    assert "not defined" in found["5.3"].parts["SAL 90 / SDR"].why


def test_a_figure_without_an_interval_decides_nothing():
    found = tables()
    found[4].loc[0, "gain"] = Estimate(0.4, method="bootstrap over 1 patient_id, 99 replicates, no interval")
    found[0].loc[1, "change"] = Estimate(0.0)
    verdicts = dc.judge(*found)
    assert (verdicts["5.6"].verdict, verdicts["5.1"].verdict) == (OPEN, OPEN)
