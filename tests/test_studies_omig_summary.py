"""Results of study 6 as a whole: with everything that can be run, with the least of it, and with nothing."""

import json
import math
from dataclasses import fields

import pandas as pd
import pytest
from omig_tables import everything, smoke

from xai_lib.studies.omig.summary import Summary, summarise

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable here"
IDS = [f"6.{k}" for k in range(1, 10)]


@pytest.fixture(scope="module")
def whole():
    return summarise(**everything(), replicates=60)


@pytest.fixture(scope="module")
def least():
    return summarise(**smoke(), replicates=20)


def test_everything_is_there(whole):
    frames = [field.name for field in fields(Summary) if field.name != "verdicts"]
    assert list(whole.tables()) == frames
    assert list(whole.verdicts) == IDS


def test_what_a_noise_meter_shows(whole):
    found = {name: verdict.verdict for name, verdict in whole.verdicts.items()}
    assert found["6.1"] == HOLDS and found["6.3"] == HOLDS and found["6.7"] == HOLDS
    assert found["6.6"] in (HOLDS, OPEN)  # the discs of #4 are drawn around 0
    assert found["6.4"] == FAILS  # discs that are red are made less visible
    assert whole.verdicts["6.4"].parts["fall of the midpoint"].verdict == HOLDS
    assert found["6.8"] == HOLDS and found["6.9"] == OPEN
    assert "paper: 2500000 gradients, not run; lab: 7680 gradients, 40 s on 2 cores" in whole.verdicts["6.9"].why


def test_headline_figures(whole):
    figures = whole.figures()
    assert not any(math.isnan(figure.estimate.value) for figure in figures.values())
    error = figures["error_4"]
    assert error.unit == "um" and set(error.baselines) == {"disc reader", "untrained"}
    assert error.estimate.value > 2 * figures["error_1"].estimate.value
    assert set(figures["coverage_4"].baselines) == {"exact labels", "nominal", "paper"}
    assert figures["coverage_4"].baselines["paper"].value == 0.61
    score = figures["score_1"]
    assert {"no discs", "rotated", "sensitivity", "disc reader"} <= set(score.baselines)
    assert score.estimate.value > 0.3 and abs(score.baselines["no discs"].value) < 0.2
    assert figures["signed_1"].estimate.value == pytest.approx(-score.estimate.value)
    assert figures["auc_clipped_sensitivity"].baselines["chance"].value == 0.5
    slope = figures["slope_contrast"]
    assert abs(slope.estimate.value) < 0.05 and slope.baselines["disc reader"].value == pytest.approx(0.8, abs=0.05)
    assert slope.baselines["reads it"].value == 1 and figures["slope_grid"].baselines["reads it"].value == 0
    assert {"rank_total", "rank_mean", "score_rotated", "grid_1", "grid_4", "fell", "stability"} <= set(figures)


def test_tables_are_plain(whole):
    for rows in whole.tables().values():
        json.dumps(rows)
    row = next(row for row in whole.tables()["discs"] if row["view"] == "plain")
    assert {"score", "score_low", "score_high", "auc", "z", "shown"} <= set(row)
    assert len(whole.errors) == 15 and len(whole.discs) == 2 * 4 * 4 * 6 * 2


def test_the_least_of_it(least):
    assert "paths" not in least.tables() and "pairs" not in least.tables() and "fading" not in least.tables()
    found = {name: verdict.verdict for name, verdict in least.verdicts.items()}
    undecided = {name: OPEN for name in ("6.1", "6.3", "6.6", "6.7", "6.8", "6.9")}
    assert undecided.items() <= found.items()
    figures = least.figures()
    assert "error_1" in figures and "score_rotated" not in figures and "fall" not in figures
    assert figures["error_1"].estimate.low is None  # one image


def test_without_the_network_of_the_claims():
    tables = everything(images=2)
    others = {
        name: frame[frame["network"] == "disc reader"] if "network" in frame else frame
        for name, frame in tables.items()
    }
    result = summarise(**others, replicates=5)
    assert {verdict.verdict for verdict in result.verdicts.values()} == {OPEN}
    assert result.figures() == {} and len(result.discs)


def test_nothing_was_run():
    names = ("curves", "discs", "cells", "interventions", "paths", "members", "costs")
    result = summarise(**{name: pd.DataFrame() for name in names}, replicates=5)
    assert {verdict.verdict for verdict in result.verdicts.values()} == {OPEN} and list(result.verdicts) == IDS
    assert result.tables() == {} and result.figures() == {}
