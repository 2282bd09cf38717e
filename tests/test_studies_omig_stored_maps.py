"""stored_maps: views of the phantom, maps that are scored and kept, pictures."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cdmam_smoke import coarse, trained

from xai_lib import stored_tables
from xai_lib.cdmam.phantom import GRID
from xai_lib.cdmam.simulate import levels, noise_free
from xai_lib.stored_pictures import load_pictures, save_pictures, stored_pictures
from xai_lib.studies.omig import scores as omig_scores
from xai_lib.studies.omig import stored_maps as cm
from xai_lib.studies.omig.study import BRIGHT, PAPER, READER, SHUFFLED, UNTRAINED

DISCS = [
    "row", "column", "place", "diameter_mm", "thickness_um", "probability", "polarity", "sd", "disc", "ring",
    "disc_visits", "ring_visits", "total", "auc", "auc_smooth", "network", "scenario", "view", "method",
]  # fmt: skip
CELLS = [
    "row", "column", "grid", "background", "sd", "grid_visits", "background_visits",
    "network", "scenario", "view", "method",
]  # fmt: skip


@pytest.fixture(scope="module")
def ready():
    with coarse():
        yield trained()[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XAI_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def found(ready, cache):
    return cm.maps(ready, progress=False)


def plan(network=PAPER, view="plain", scenario="#1"):
    return cm.Plan(network, scenario, view, 4, 2)


# ---------------------------------------------------------------------------------------- by hand


def test_a_picture_by_hand():
    """Twice as much at twice the visits is the same mean; never visited is NaN."""
    visits = np.zeros((36, 48), np.int32)
    visits[:, :12] = np.tile([1, 3], (36, 6))
    seen = cm.picture(5.0 * visits, visits)
    assert seen.shape == (36 // cm.BLOCK, 48 // cm.BLOCK) and seen.dtype == np.float32
    np.testing.assert_allclose(seen[:, : 24 // cm.BLOCK], 5.0, rtol=1e-5)
    assert np.isnan(seen[:, -1]).all()  # 30 pixels from the last visit; the Gaussian ends at 21


def test_pictures_in_steps_of_a_120th(tmp_path):
    whole = np.linspace(-240, 240, 3001, dtype=np.float32).reshape(1, -1)
    values = {"a": whole, "b #1": np.array([[np.nan, 0.0], [60.0, -120.0]], np.float32)}
    save_pictures(values, tmp_path / "p.npz", "of these")
    digest, found = load_pictures(tmp_path / "p.npz")
    assert digest == "of these" and list(found) == ["a", "b #1"]
    assert np.abs(found["a"] - whole).max() <= 1.001  # half a step of 2
    np.testing.assert_allclose(found["b #1"], values["b #1"], atol=0.5)
    assert np.isnan(found["b #1"]).sum() == 1 and found["b #1"].dtype == np.float32


def test_an_extreme_value_is_cut(tmp_path):
    values = np.ones((100, 100), np.float32)
    values[0, 0] = 1e6
    save_pictures({"a": values}, tmp_path / "p.npz", "")
    found = load_pictures(tmp_path / "p.npz")[1]["a"]
    assert found[0, 0] == pytest.approx(127 / 120) and found[1, 1] == pytest.approx(1)


def test_a_picture_of_nothing(tmp_path):
    save_pictures({"a": np.zeros((3, 3), np.float32)}, tmp_path / "p.npz", "")
    assert (load_pictures(tmp_path / "p.npz")[1]["a"] == 0).all()


def test_stored_pictures_know_their_key(cache, tmp_path):
    one, two = ({"a": np.full((2, 2), v, np.float32)} for v in (120.0, 240.0))
    save_pictures(one, tmp_path / "test.npz", stored_tables.digest({"k": 1}))
    assert stored_pictures("test", {"k": 1}, lambda: two, tmp_path)["a"][0, 0] == pytest.approx(120)  # shipped
    assert stored_pictures("test", {"k": 2}, lambda: two, tmp_path)["a"][0, 0] == pytest.approx(240)  # of another key
    assert stored_pictures("test", {"k": 2}, lambda: one, tmp_path)["a"][0, 0] == pytest.approx(240)  # cached


# ---------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(("network", "shape"), [(PAPER, (457, 290)), (READER, (228, 145))])
@pytest.mark.parametrize("view", ["plain", "rotated"])
def test_discs_are_where_the_view_says(ready, network, shape, view):
    phantom = cm.view_of(ready, plan(network, view))
    assert phantom.shape == (shape if view == "plain" else shape[::-1])
    assert phantom.turned == (view == "rotated")
    assert len(phantom.discs) == 410 if network == PAPER else 40 < len(phantom.discs) < 130
    for disc in phantom.discs.itertuples():
        y, x = round(disc.y), round(disc.x)
        assert phantom.classes[y, x] == disc.column + 1
    big = phantom.discs[(phantom.discs["diameter_mm"] >= 1) & (phantom.discs["thickness_um"] >= 0.2)]
    image = noise_free(phantom, levels("#1"))
    assert all(image[round(d.y), round(d.x)] < levels("#1")[0] - 2 for d in big.itertuples())


def test_the_rotated_view_is_the_plain_one_turned(ready):
    plain, turned = (cm.view_of(ready, plan(view=view)) for view in ("plain", "rotated"))
    np.testing.assert_array_equal(turned.classes, np.rot90(plain.classes))
    np.testing.assert_array_equal(turned.coverage, np.rot90(plain.coverage))


def test_the_reader_sees_the_upper_right_quarter(ready):
    whole, quarter = (cm.view_of(ready, plan(network)) for network in (PAPER, READER))
    np.testing.assert_array_equal(quarter.classes, whole.classes[:228, 145:])
    names = ["row", "column", "place"]
    both = quarter.discs.merge(whole.discs, on=names)
    np.testing.assert_allclose(both["y_x"], both["y_y"])
    np.testing.assert_allclose(both["x_x"], both["x_y"] - 145)


def test_the_view_without_discs_keeps_their_places(ready):
    plain, bare = (cm.view_of(ready, plan(view=view)) for view in ("plain", "no discs"))
    gold = (plain.classes > 0) & (plain.classes < GRID)
    assert gold.any() and (bare.classes[gold] == 0).all() and (bare.coverage[gold] == 0).all()
    np.testing.assert_array_equal(bare.classes[~gold], plain.classes[~gold])
    pd.testing.assert_frame_equal(bare.discs, plain.discs)


def test_where_occlusion_is_measured(ready):
    phantom = cm.view_of(ready, plan())
    one = replace(phantom, discs=phantom.discs.iloc[[8]])
    wanted, disc = cm.measured(one), one.discs.iloc[0]
    down, right = (np.arange(n) - at for n, at in zip(phantom.shape, (disc.y, disc.x), strict=True))
    away = np.hypot(down[:, None], right[None, :]) - disc.radius_px
    inner, outer = omig_scores.RING_PX
    np.testing.assert_array_equal(wanted, (away < 0) | ((away > inner) & (away < outer)))
    assert cm.measured(phantom)[wanted].all()


# ---------------------------------------------------------------------------------------- maps


def test_plans(ready):
    lab = replace(ready, study=replace(ready.study, profile="lab", virtual_images=9, few=5, steps=3, map_steps=7))
    todo = cm.plans(lab)
    assert len({p.name for p in todo}) == len(todo) == 10
    assert {p.network for p in todo} == {PAPER, READER, BRIGHT, SHUFFLED, UNTRAINED}
    assert {p.view for p in todo} == {"plain", "rotated", "no discs"}
    assert (todo[0].virtual_images, todo[0].steps) == (9, 7) and todo[0].name == "paper-like #1 plain"
    assert [p.name for p in cm.plans(ready)] == [p.name for p in todo[:3]]


def test_discs_and_cells(ready, found):
    assert list(found.discs) == DISCS and list(found.cells) == CELLS
    rows = found.discs.groupby(["network", "scenario", "view", "method"]).size()
    methods = ["OMIG", "sensitivity", "clipped sensitivity", "occlusion"]
    for p in cm.plans(ready):
        count = len(cm.view_of(ready, p).discs)
        assert rows[p.network, p.scenario, p.view].to_dict() == dict.fromkeys(methods[: 4 if p.occluded else 3], count)
    assert any(p.occluded for p in cm.plans(ready))
    assert "occlusion" not in set(found.cells["method"])
    assert (found.discs["polarity"] == -1).all()
    assert found.discs["probability"].between(0.2, 1).all()
    assert (found.discs["disc_visits"] >= 0).all() and found.discs["disc_visits"].sum() > 0


def test_pictures(ready, found):
    names = [f"{p.name} {method}" for p in cm.plans(ready) for method in p.pictured]
    assert sorted(found.pictures) == sorted(names) and len(names) >= 3
    for name, picture in found.pictures.items():
        height, width = cm.view_of(ready, plan(READER if name.startswith(READER) else PAPER)).shape
        assert picture.shape == (-(-height // cm.BLOCK), -(-width // cm.BLOCK))
        assert np.isfinite(picture).mean() > 0.5


def test_bright_discs_have_the_other_polarity(ready):
    course = replace(ready.ensembles[PAPER].course, inverted=True)
    bright = replace(ready.ensembles[PAPER], course=course)
    other = replace(ready, ensembles={**ready.ensembles, BRIGHT: bright})
    seen = []

    def upsampled(ready, plan, image, mask=None, progress=True):
        seen.append(image)
        return cm_upsampled(ready, plan, image, mask, progress)

    cm_upsampled = cm.upsampled
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cm, "upsampled", upsampled)
        scored = [cm.compute(other, plan(name), progress=False) for name in (PAPER, BRIGHT)]
    np.testing.assert_allclose(seen[0] + seen[1], 2 * levels("#1")[0], rtol=1e-5)
    assert [set(s.discs["polarity"]) for s in scored] == [{-1}, {1}]


def test_stored_maps_are_used_again(ready, found, monkeypatch):
    monkeypatch.setattr(cm, "compute", None)
    again = cm.maps(ready, progress=False)
    pd.testing.assert_frame_equal(again.discs, found.discs)
    pd.testing.assert_frame_equal(again.cells, found.cells)
    assert all(np.array_equal(again.pictures[k], v, equal_nan=True) for k, v in found.pictures.items())


def test_an_interrupted_computation_goes_on(ready, found, tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    small = replace(ready, study=replace(ready.study, virtual_images=1, occluded=0))
    compute, done = cm.compute, []

    def stops(ready, plan, progress):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(plan.name)
        return compute(ready, plan, progress)

    monkeypatch.setattr(cm, "compute", stops)
    with pytest.raises(KeyboardInterrupt):
        cm.maps(small, progress=False)
    done.clear()
    assert set(cm.maps(small, progress=False).discs["network"]) == {PAPER, READER}
    assert done == [cm.plans(small)[2].name]


def test_the_key_names_all_that_matters(ready):
    key = stored_tables.digest(cm.key(ready))
    assert key == stored_tables.digest(cm.key(ready))
    for change in ({"virtual_images": 7}, {"c": 2.0}, {"steps": 3}, {"map_steps": 3}, {"occluded": 2}):
        assert stored_tables.digest(cm.key(replace(ready, study=replace(ready.study, **change)))) != key
    assert stored_tables.digest(cm.key(replace(ready, seed=1))) != key
    card = {**ready.ensembles[PAPER].card, "sha256": "other"}
    changed = {**ready.ensembles, PAPER: replace(ready.ensembles[PAPER], card=card)}
    assert stored_tables.digest(cm.key(replace(ready, ensembles=changed))) != key


def test_maps_of_single_virtual_images(ready, cache):
    found = cm.virtual_maps(ready)
    assert set(found) == {f"{n} {m}" for n in ("system 2", "#1", "OOD") for m in ("occlusion", "sensitivity", "OMIG")}
    assert all(picture.shape == (20, 20) and np.isfinite(picture).all() for picture in found.values())
