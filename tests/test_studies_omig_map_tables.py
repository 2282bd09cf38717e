"""Tables of the maps of study 6: scores, pairs, fading and weights counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from omig_tables import cell_rows, disc_rows
from scipy import stats

from xai_lib.studies.omig import map_tables as tables


def made(*frames):
    return tables.prepared(pd.concat(frames, ignore_index=True))


def row_of(frame, **where):
    rows = frame[(frame[list(where)] == pd.Series(where)).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_scores_by_hand():
    frame = disc_rows([1.0, 0.2, -0.4], disc_visits=[10, 20, 10], sd=2.0, auc=[0.8, np.nan, 0.4])
    row = row_of(tables.discs_of(made(frame), 50), diameters="all", chosen="all")
    assert row["score"].value == pytest.approx((10 * 0.5 + 20 * 0.1 - 10 * 0.2) / 40)
    assert row["signed"].value == -row["score"].value and row["cells"] == 3
    # variance of the sum of visits: 10 + 100/90, 20 + 400/90, 10 + 100/90
    assert row["z"].value == pytest.approx(5 / math.sqrt(40 + 600 / 90))
    assert row["auc"].value == pytest.approx(0.6)  # of the two that have one
    assert row["shown"].value == 0


def test_single_discs_that_show():
    # z = gap * sqrt(visits / (1 + visits / ring)) = gap * 3 with 10 and 90 visits
    row = row_of(tables.discs_of(made(disc_rows([0.66, 0.67, -5.0])), 20), diameters="all", chosen="all")
    assert row["shown"].value == pytest.approx(1 / 3)
    assert row_of(tables.discs_of(made(disc_rows([2.0])), 20), diameters="all", chosen="all")["shown"].value == 1


def test_seen_discs_and_diameters():
    size = [2.0, 1.25, 1.0, 0.63, 0.5, 0.31, 0.25, 0.16, 0.13, 0.06]
    frame = disc_rows(np.arange(10.0), diameter_mm=size, probability=[0.95, 0.9] * 5)
    found = tables.discs_of(made(frame), 20)
    assert len(found) == 12
    values = {(r["chosen"], r["diameters"]): r["score"].value for _, r in found.iterrows()}
    assert values["all", "all"] == pytest.approx(4.5) and values["seen", "all"] == pytest.approx(4)
    for k, name in enumerate(("2.00-1.25", "1.00-0.63", "0.50-0.31", "0.25-0.16", "<= 0.13")):
        assert values["all", name] == pytest.approx(2 * k + 0.5) and values["seen", name] == pytest.approx(2 * k)


def test_discs_without_a_visit_or_spread_are_left_out():
    frame = disc_rows([1.0, 2.0, 3.0, 4.0], disc_visits=[0, 10, 10, 10], ring_visits=[9, 0, 9, 9], sd=[1, 1, 0, 1])
    assert row_of(tables.discs_of(made(frame), 20), diameters="all", chosen="all")["score"].value == 4
    assert not len(tables.discs_of(made(frame.assign(disc_visits=0)), 20))


def test_both_discs_of_a_cell_are_drawn_together():
    frame = pd.concat([disc_rows([1.0, 3.0]), disc_rows([-1.0, 1.0]).assign(place="corner")])
    row = row_of(tables.discs_of(made(frame), 200), diameters="all", chosen="all")
    assert row["cells"] == 2
    assert (row["score"].low, row["score"].value, row["score"].high) == pytest.approx((0, 1, 2))


def test_pairs_by_hand():
    ours = disc_rows([1.0, 2.0, 3.0], auc=[0.7, 0.8, np.nan])
    other = disc_rows([0.5, 1.5], method="sensitivity", auc=[0.6, 0.6])  # the third disc is missing
    found = tables.pairs_of(made(ours, other), 50)
    row = row_of(found, first="OMIG", second="sensitivity", diameters="all", chosen="seen")
    assert row["score"].value == pytest.approx(0.5) and row["score"].low == pytest.approx(0.5)
    assert row["auc"].value == pytest.approx(0.15) and row["cells"] == 2
    assert set(found["second"]) == {"sensitivity"}


def test_pairs_are_of_one_map():
    assert not len(tables.pairs_of(made(disc_rows([1.0]), disc_rows([1.0], method="sensitivity", scenario="#4"))))


def test_grid_by_hand():
    cells = tables.prepared_cells(cell_rows([1.0, -0.5, 9.0], grid_visits=[10, 30, 0], sd=2.0))
    row = tables.grid_of(cells, 20).iloc[0]
    assert row["score"].value == pytest.approx((10 * 0.5 - 30 * 0.25) / 40) and row["cells"] == 2


def test_fading_takes_discs_that_are_seen_in_both():
    one = disc_rows([2.0, 4.0, 9.0])
    four = disc_rows([1.0, 1.0, 9.0], scenario="#4", probability=[1.0, 1.0, 0.5])
    cells = [cell_rows([-2.0, -2.0]), cell_rows([-1.0, -1.0], scenario="#4"), cell_rows([0.0], view="rotated")]
    found = tables.fading_of(made(one, four), tables.prepared_cells(pd.concat(cells)), 50)
    discs, grid = row_of(found, what="discs"), row_of(found, what="grid")
    values = {"first_score": 3, "second_score": 1, "difference": 2, "ratio": 1 / 3}
    assert {k: discs[k].value for k in values} == pytest.approx(values)
    assert {k: grid[k].value for k in values} == pytest.approx(
        {"first_score": -2, "second_score": -1, "difference": -1, "ratio": 0.5}
    )
    assert discs["second"] == "#4" and not len(tables.fading_of(made(one), pd.DataFrame(), 20))


def test_weights_by_hand():
    size = [2.0, 2.0, 1.0, 0.5, 0.25]
    frame = disc_rows([1.0] * 5, diameter_mm=size, total=[3.0, 1.0, 3.0, 2.0, 9.0], disc_visits=[30, 10, 10, 4, 9])
    frame["probability"] = [1.0, 1.0, 1.0, 1.0, 0.5]
    found = tables.weights_of(made(frame), 50)
    assert found["diameter_mm"].tolist() == [2.0, 1.0, 0.5]
    assert [e.value for e in found["total"]] == pytest.approx([4, 3, 2])
    assert [e.value for e in found["mean"]] == pytest.approx([0.1, 0.3, 0.5])
    ranks = tables.ranks_of(made(frame), 50)
    seen, every = row_of(ranks, chosen="seen"), row_of(ranks, chosen="all")
    assert (seen["total"].value, seen["mean"].value) == pytest.approx((1, -1))
    assert every["total"].value == pytest.approx(stats.spearmanr([2, 1, 0.5, 0.25], [4, 3, 2, 9])[0])


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    values, order = rng.integers(0, 6, (5, 9)).astype(float), np.arange(9.0)
    values[1, [2, 5]] = np.nan
    values[2, 2:] = np.nan
    found = tables.rank_correlation(values, order)
    there = ~np.isnan(values)
    wanted = [stats.spearmanr(values[k, there[k]], order[there[k]])[0] for k in range(5)]
    wanted[2] = math.nan  # two values alone
    assert found == pytest.approx(wanted, nan_ok=True)


def test_nothing_was_run():
    empty = pd.DataFrame()
    assert not len(tables.prepared(empty)) and not len(tables.prepared_cells(empty))
    assert not any(
        len(of(empty)) for of in (tables.discs_of, tables.pairs_of, tables.grid_of, tables.weights_of, tables.ranks_of)
    )
    assert not len(tables.fading_of(empty, empty))
