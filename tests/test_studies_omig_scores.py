"""Scores of an upsampled map: means, spread and AUC counted by hand on small phantoms."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from xai_lib.cdmam.phantom import GRID, Detector, Phantom, build, rotated
from xai_lib.studies.omig import scores

NOISE = np.random.default_rng(0)


def phantom(shape=(101, 101), y=50.0, x=50.0, radius=3.0):
    """One disc in a cell of 10 mm with pixels of 0.2 mm: the cell's corners lie 35.4 pixels away, grid around it."""
    down, along = np.indices(shape)
    classes = np.where(np.abs(np.abs(down - y) + np.abs(along - x) - 36) < 2, GRID, 0).astype(np.uint8)
    classes[np.hypot(down - y, along - x) < radius + 2] = 16
    disc = {"row": 2, "column": 15, "place": "centre", "diameter_mm": 1.2, "thickness_um": 2.0}
    discs = pd.DataFrame([disc | {"y": y, "x": x, "radius_px": radius}])
    return Phantom(classes, np.zeros(shape, np.float32), discs, Detector(pixel_mm=0.2, magnification=1.0))


def away(of=(101, 101), y=50, x=50):
    down, along = np.indices(of)
    return np.hypot(down - y, along - x)


def one(total, visits, of=None, **options):
    chance = np.full((16, 16), 0.75)
    found = scores.score_discs(total, visits, of or phantom(), chance, **options)
    return found.iloc[0]


def test_means_per_visit_by_hand():
    visits = np.zeros((101, 101), int)
    total = np.zeros((101, 101))
    total[50, 50], visits[50, 50] = 6, 2  # in the disc: 3 per visit, twice
    total[52, 50], visits[52, 50] = 1, 1  # 2 pixels away: also in it
    total[50, 60], visits[50, 60] = 3, 3  # 10 away: in the ring from 8 to 25
    total[50, 70], visits[50, 70] = -1, 1
    total[50, 54], visits[50, 54] = 100, 1  # between disc and ring
    total[14, 50], visits[14, 50] = 100, 1  # on the grid
    total[0, 0], visits[0, 0] = 1000, 1  # in the empty corner
    row = one(total, visits)
    assert row["disc"] == pytest.approx(7 / 3) and row["ring"] == pytest.approx(0.5)
    assert (row["disc_visits"], row["ring_visits"]) == (3, 4)
    assert row["total"] == pytest.approx(7 - 3 * 0.5)
    assert row["auc"] == pytest.approx(3.5 / 4)  # 3 and 1 against 1 and -1: one tie
    # background of the cell: 1 (three visits) and -1: mean 0.5, 3 * 0.25 + 2.25 = 3 over one degree of freedom
    assert row["sd"] == pytest.approx(math.sqrt(3))
    assert (row["row"], row["column"], row["place"], row["probability"], row["polarity"]) == (2, 15, "centre", 0.75, -1)


def test_every_pixel_alike():
    row = one(np.full((101, 101), 4.0), np.full((101, 101), 2))
    assert (row["disc"], row["ring"], row["total"], row["auc"], row["auc_smooth"]) == (2, 2, 0, 0.5, 0.5)
    assert row["sd"] == 0
    assert row["disc_visits"] == 2 * (away() < 3).sum()
    assert row["ring_visits"] == 2 * ((away() > 8) & (away() < 25) & (phantom().classes == 0)).sum()


@pytest.mark.parametrize("where", ["disc", "ring", "all"])
def test_without_a_visit_there_is_no_score(where):
    visits = np.ones((101, 101), int)
    visits[{"disc": away() < 3, "ring": away() > 5, "all": away() >= 0}[where]] = 0
    row = one(np.zeros((101, 101)), visits)
    assert row[["total", "auc", "auc_smooth"]].isna().all()
    assert math.isnan(row["ring" if where == "ring" else "disc"])
    assert row["disc_visits"] == (0 if where != "ring" else (away() < 3).sum())


def test_smoothing_brings_out_a_disc():
    visits = np.ones((101, 101), int)
    total = NOISE.normal(size=(101, 101)) + 1.0 * (away() < 8)
    row = one(total, visits, phantom(radius=8.0), smooth_px=3)
    assert 0.65 < row["auc"] < 0.85 and row["auc_smooth"] > 0.99
    assert one(-total, visits, phantom(radius=8.0), smooth_px=3)["auc"] == pytest.approx(1 - row["auc"])
    assert row["sd"] == pytest.approx(1, abs=0.1)


def test_the_spread_is_that_of_one_visit():
    visits = NOISE.integers(1, 9, (101, 101))
    total = NOISE.normal(0, 2 * np.sqrt(visits))  # sum of visits with sd 2
    everywhere = np.ones((101, 101), bool)
    assert scores.sd_per_visit(total, visits, everywhere) == pytest.approx(2, rel=0.03)
    assert math.isnan(scores.sd_per_visit(total, visits, np.zeros((101, 101), bool)))


def test_the_grid_of_a_cell():
    visits, of = np.ones((101, 101), int), phantom()
    cell = np.abs(np.indices((101, 101)) - 50).sum(0)
    total = np.where(of.classes == GRID, -3.0, 1.0) + 50.0 * (cell > 40)  # beyond the grid lies the border
    row = scores.score_cells(total, visits, of).iloc[0]
    assert (row["row"], row["column"], row["grid"], row["background"], row["sd"]) == (2, 15, -3, 1, 0)
    assert row["grid_visits"] == (of.classes == GRID).sum()
    assert row["background_visits"] == ((of.classes == 0) & (cell < 35.4)).sum()
    empty = scores.score_cells(total, 0 * visits, of).iloc[0]
    assert empty[["grid", "background", "sd"]].isna().all() and empty["grid_visits"] == 0


def test_the_border_does_not_count():
    visits, of = np.ones((101, 101), int), phantom()
    total = NOISE.normal(size=(101, 101))
    loud = total + 1000 * (np.abs(np.indices((101, 101)) - 50).sum(0) > 40)
    assert one(loud, visits)["sd"] == one(total, visits)["sd"]
    assert not scores.inside_cells(of)[of.classes > 0].any()


def test_a_disc_at_the_edge_of_the_image():
    of = phantom(y=1.0, x=99.0)
    row = one(np.ones((101, 101)), np.ones((101, 101), int), of)
    assert 0 < row["disc_visits"] < (away() < 3).sum() and row["total"] == 0
    outside = replace(of, discs=of.discs.assign(y=500.0))
    row = one(np.ones((101, 101)), np.ones((101, 101), int), outside)
    assert row["disc_visits"] == 0 and math.isnan(row["auc"])


def test_the_whole_phantom_and_its_turn():
    of = build(Detector(pixel_mm=0.48))
    visits = NOISE.poisson(1.0, of.shape)
    total = NOISE.normal(size=of.shape) * np.sqrt(visits) + visits * (-0.5 * (of.classes == GRID))
    chance = NOISE.random((16, 16))
    discs, cells = scores.score_discs(total, visits, of, chance, 1), scores.score_cells(total, visits, of)
    assert len(discs) == 410 and len(cells) == 205
    assert discs["sd"].nunique() == 1 and discs["sd"][0] == pytest.approx(1, abs=0.05)
    assert (discs["probability"] == chance[discs["row"], discs["column"]]).all()
    weight = cells["grid_visits"]
    assert np.average(cells["grid"] - cells["background"], weights=weight) == pytest.approx(-0.5, abs=0.05)
    turned = [np.rot90(part) for part in (total, visits)]
    again = scores.score_discs(*turned, rotated(of), chance, 1)
    columns = ["disc", "disc_visits", "ring_visits", "total", "auc"]
    pd.testing.assert_frame_equal(again[columns], discs[columns], rtol=1e-6, atol=1e-9)
    pd.testing.assert_frame_equal(scores.score_cells(*turned, rotated(of)), cells, rtol=1e-6, atol=1e-9)


def test_other_sizes_and_polarities_are_refused():
    of, there = phantom(), np.ones((101, 101), int)
    with pytest.raises(ValueError, match=r"visits: has shape \(100, 101\), expected that of the phantom, \(101, 101\)"):
        scores.score_discs(there, there[1:], of, np.ones((16, 16)))
    with pytest.raises(ValueError, match="total: has shape"):
        scores.score_cells(there[1:], there, of)
    with pytest.raises(ValueError, match="polarity: 0 is neither"):
        scores.score_discs(there, there, of, np.ones((16, 16)), polarity=0)
