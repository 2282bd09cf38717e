"""tables and virtual: curves, interventions, paths, members, costs, and their columns."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from cdmam_smoke import coarse, trained

from xai_lib import stored_tables
from xai_lib.cdmam import readout
from xai_lib.cdmam.detectability import probabilities
from xai_lib.cdmam.geometry import CELLS, CURVE_MM
from xai_lib.cdmam.simulate import MARGINS, SCENARIOS, levels, noise_sd
from xai_lib.omig import Omig
from xai_lib.studies.omig import tables as ct
from xai_lib.studies.omig.study import PAPER, READER, UNTRAINED
from xai_lib.studies.omig.virtual import SHOWN, TESTED, phantoms, shown_images, virtual

NAMES = ("curves", "interventions", "paths", "members", "costs", "readouts")


@pytest.fixture(scope="module")
def ready():
    with coarse():
        yield trained()[0]


@pytest.fixture(scope="module")
def found(ready, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(ct, "CHANGED", ("#1",))
        return ct.tables(ready, progress=False)


def images_of(ready, network=PAPER, count=4, seed=0, **factors):
    rng = np.random.default_rng(seed)
    return virtual(ready.ensembles[network], ready.phantom, SCENARIOS["#1"], count, rng, **factors)


# ---------------------------------------------------------------------------------------- by hand


def test_chi_square_by_hand():
    """10 images: 5 expected and 7 found, and 8 expected and 8 found; a cell that is always right is left out."""
    read = pd.DataFrame(
        [("#1", 10, 7, 0.5), ("#1", 10, 8, 0.8), ("#1", 10, 3, 1.0), ("#4", 10, 0, 0.5)],
        columns=["scenario", "images", "corner", "probability"],
    )
    value, cells = ct.chi_square(read, "#1")
    assert value == pytest.approx(2**2 / 2.5 + 0) and cells == 2
    assert ct.chi_square(read, "#4") == (pytest.approx(25 / 2.5), 1)


def test_paths_by_hand(ready):
    change = torch.tensor([1.0, -1.0, 3.0, -3.0]).view(1, 1, 2, 2)
    one, two = torch.tensor([2.0]), torch.tensor([1.5])
    known = {"change": change, "sensitivity": 2 * change, "clipped_sensitivity": -change, "start": one, "end": two}
    unknown = {f: torch.tensor([0.25]) for f in Omig.__dataclass_fields__ if f not in known}
    ensemble = replace(ready.ensembles[PAPER], sd=10.0)
    (row,) = ct.compared(Omig(**known | unknown), Omig(**known | unknown), ensemble, {"c": 1.0})
    assert row["rms"] == pytest.approx(5**0.5) and row["rms_grey"] == pytest.approx(10 * 5**0.5)
    assert (row["start"], row["end"], row["c"], row["network"]) == (2.0, 1.5, 1.0, PAPER)
    assert row["clipped_share"] == 0.25
    assert row["with_sensitivity"] == pytest.approx(1) == row["with_reference"]
    assert row["with_clipped"] == pytest.approx(-1)


def test_the_papers_cost(found):
    costs = found.costs.set_index("what")
    assert costs.loc["paper", "gradients"] == 2_500_000 and np.isnan(costs.loc["paper", "seconds"])
    assert costs.loc["smoke", "gradients"] == 6 * 2 * 2 and costs.loc["smoke", "seconds"] > 0
    assert costs.loc["smoke", "device"].startswith("CPU")


# ---------------------------------------------------------------------------------------- virtual images


def test_factor_one_changes_nothing_and_each_factor_its_own(ready):
    plain = images_of(ready)
    np.testing.assert_array_equal(plain, images_of(ready, contrast=1.0, noise=1.0, grid=1.0))
    quiet = {"noise": 1e-9}
    clean = images_of(ready, **quiet)
    grey = levels("#1")[0]
    discs = images_of(ready, **quiet, contrast=2.0) - clean
    grid = images_of(ready, **quiet, grid=2.0) - clean
    background = np.isclose(clean, grey, atol=1e-2)
    assert background.any() and np.abs((discs + grid)[background]).max() < 0.02
    np.testing.assert_allclose((discs + grid)[~background], (clean - grey)[~background], rtol=1e-3, atol=0.02)
    assert ((discs < -0.1) & (grid < -0.1)).sum() == 0 and (discs < -0.1).any() and (grid < -0.1).any()
    noise = plain - clean
    np.testing.assert_allclose(images_of(ready, noise=2.0) - clean, 2 * noise, rtol=1e-3, atol=0.01)
    assert noise.std() == pytest.approx(noise_sd(9.55, SCENARIOS["#1"].detector), rel=0.1)


def test_virtual_images_have_each_margin_in_turn(ready):
    margins = (0.0, 0.14)
    wide = images_of(ready, count=40, noise=1e-9, margins=margins)
    plain = np.isclose(wide, levels("#1")[0], atol=1e-2).mean((1, 2))
    assert plain[1::2].mean() > plain[::2].mean() + 0.1
    assert images_of(ready, READER).shape == (4, 20, 20) == images_of(ready).shape
    assert (images_of(ready, seed=1) != images_of(ready)).mean() > 0.99


def test_shown_images(ready):
    shown = shown_images(ready)
    assert list(shown) == list(SHOWN) and set(SHOWN) <= set(TESTED)
    for name, image in shown.items():
        assert image.shape == (20, 20)
        np.testing.assert_array_equal(image, shown_images(ready)[name])


def test_each_system_has_its_phantom(ready):
    plates = phantoms(ready)
    assert set(plates) == {*SCENARIOS, "system 2"}
    assert all(plates[name] is ready.phantom for name in SCENARIOS)
    assert plates["system 2"].detector == TESTED["system 2"].detector != ready.phantom.detector
    assert plates["system 2"].margin == max(MARGINS)


# ---------------------------------------------------------------------------------------- tables


def test_curves(ready, found):
    curves = found.curves
    assert list(curves) == [
        "network", "scenario", "margin", "image", "diameter_mm", "predicted", "epistemic", "aleatoric", "exact",
        "drawn", "extrapolated",
    ]  # fmt: skip
    assert len(curves) == 3 * 6 * ready.study.tested * 12
    assert set(curves["network"]) == {PAPER, READER, UNTRAINED}
    assert curves["diameter_mm"].iloc[:12].tolist() == list(CURVE_MM)
    assert np.isfinite(curves[["predicted", "epistemic", "aleatoric", "exact"]]).all().all()
    assert (curves["aleatoric"] > 0).all()
    assert (curves.loc[curves["network"] == READER, "epistemic"] == 0).all()  # of one member
    assert set(curves.loc[curves["network"] == READER, "margin"]) == {0.0}
    assert set(curves.loc[curves["network"] == PAPER, "margin"]) == set(MARGINS[: ready.study.tested])


def test_labels_of_the_curves(found):
    curves = found.curves
    own = curves[(curves["network"] == PAPER) & (curves["scenario"] == "#1")]
    exact = own.groupby("diameter_mm")["exact"].unique()
    assert all(len(values) == 1 for values in exact)
    wanted = readout.curve_from_probabilities(probabilities("#1"))
    np.testing.assert_allclose([exact[d][0] for d in CURVE_MM], wanted, rtol=1e-5)
    assert own.groupby("diameter_mm")["drawn"].nunique().median() == own["image"].nunique()  # drawn for each image
    np.testing.assert_allclose(own.groupby("diameter_mm")["drawn"].mean(), exact.map(lambda v: v[0]), rtol=0.4)


def test_extrapolated_points(found):
    """Where half of the answers above chance are right lies outside the thicknesses of the row."""
    curves = found.curves
    low, high = readout.row_range()
    for scenario, rows in curves.groupby("scenario"):
        chance = probabilities(TESTED[scenario])
        threshold = readout.thresholds(chance[None])[0][0]
        outside = dict(zip(CURVE_MM, ~((threshold >= low) & (threshold <= high)), strict=True))
        assert rows["extrapolated"].tolist() == [outside[d] for d in rows["diameter_mm"]]
    assert 0 < curves["extrapolated"].mean() < 1


def test_interventions(found):
    frame = found.interventions
    assert list(frame) == ["network", "scenario", "image", "what", "factor", "predicted", "true"]
    assert {k: set(g) for k, g in frame.groupby("what")["factor"]} == {k: set(v) for k, v in ct.CHANGES.items()}
    one = frame[frame["factor"] == 1.0].pivot(index=["network", "image"], columns="what", values=["predicted", "true"])
    for value in ("predicted", "true"):
        np.testing.assert_array_equal(one[value]["contrast"], one[value]["noise"])
        np.testing.assert_array_equal(one[value]["contrast"], one[value]["grid"])
    true = frame[frame["network"] == PAPER].groupby(["what", "factor"])["true"].first()
    assert (np.diff(true["contrast"]) < 0).all() and (np.diff(true["noise"]) > 0).all()
    assert true["grid"].nunique() == 1
    changed = frame[(frame["network"] == UNTRAINED) & (frame["what"] == "grid")].groupby("image")["predicted"].nunique()
    assert (changed == 5).all()


def test_paths(ready, found):
    assert list(found.paths) == [
        "network", "image", "scenario", "c", "steps", "first_clipped", "start", "end", "rms", "rms_grey",
        "clipped_share", "with_sensitivity", "with_clipped", "with_reference",
    ]  # fmt: skip
    assert len(found.paths) == ready.study.paths
    assert found.paths["rms_grey"].iloc[0] == pytest.approx(
        found.paths["rms"].iloc[0] * ready.ensembles[PAPER].sd, rel=1e-4
    )
    assert (found.paths["end"] <= found.paths["start"]).all()
    assert (found.paths["with_reference"] > 0.9).all()


def test_paths_over_c_and_l(ready, monkeypatch):
    monkeypatch.setattr(ct, "CS", (0.5, 1.0))
    monkeypatch.setattr(ct, "STEPS", (1, 3))
    monkeypatch.setattr(ct, "REFERENCE_STEPS", 3)
    frame = ct.paths(replace(ready, study=replace(ready.study, profile="lab", paths=2)), progress=False)
    assert frame[["c", "steps"]].drop_duplicates().to_numpy().tolist() == [[0.5, 3], [1.0, 1], [1.0, 3]]
    assert frame.groupby(["c", "steps"])["image"].apply(list).map(lambda images: images == [0, 1]).all()
    np.testing.assert_allclose(frame.loc[frame["steps"] == 3, "with_reference"], 1, atol=1e-5)


def test_members(found):
    frame = found.members
    assert list(frame) == ["network", "scenario", "first", "second", "correlation"]
    assert frame[["network", "first", "second"]].to_numpy().tolist() == [[PAPER, "member 0", "member 1"]]
    assert frame["correlation"].between(-1, 1).all()


def test_readouts(found):
    frame = found.readouts
    assert list(frame) == ["scenario", "row", "column", "images", "corner", "centre", "probability"]
    assert len(frame) == CELLS.sum() == 205 and (frame["images"] == 2).all()
    assert frame["corner"].between(0, 2).all() and frame["centre"].between(0, 2).all()
    wanted = probabilities("#1")[frame["row"], frame["column"]]
    np.testing.assert_allclose(frame["probability"], wanted, rtol=1e-5)


# ---------------------------------------------------------------------------------------- stored


def test_stored_tables_are_used_again(ready, found, tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    key = ct.key(ready)
    for name in NAMES:
        stored_tables.save(getattr(found, name), f"cdmam_{name}", key, tmp_path / "shipped")
    for name in NAMES:
        monkeypatch.setattr(ct, name, lambda *_: pytest.fail("computed"))
    again = ct.tables(replace(ready, study=replace(ready.study, checkpoint=str(tmp_path / "shipped"))), progress=False)
    for name in NAMES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(found, name))


def test_tables_of_other_ensembles_are_not_used(ready, found, tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    for name in NAMES:
        stored_tables.save(getattr(found, name), f"cdmam_{name}", ct.key(ready), tmp_path / "shipped")
        monkeypatch.setattr(ct, name, lambda *_, name=name: pd.DataFrame({"computed": [name]}))
    other = replace(ready, seed=1, study=replace(ready.study, checkpoint=str(tmp_path / "shipped")))
    again = ct.tables(other, progress=False)
    assert [getattr(again, name)["computed"][0] for name in NAMES] == list(NAMES)


def test_the_key_names_all_that_matters(ready):
    key = stored_tables.digest(ct.key(ready))
    for change in ({"tested": 4}, {"few": 7}, {"c": 2.0}, {"steps": 3}, {"paths": 2}, {"virtual_images": 7}):
        assert stored_tables.digest(ct.key(replace(ready, study=replace(ready.study, **change)))) != key
    assert stored_tables.digest(ct.key(replace(ready, seed=1))) != key
    card = {**ready.ensembles[PAPER].card, "sha256": "other"}
    changed = {**ready.ensembles, PAPER: replace(ready.ensembles[PAPER], card=card)}
    assert stored_tables.digest(ct.key(replace(ready, ensembles=changed))) != key
