"""tables: the four frames of study 5, their columns and what they must agree on."""

import numpy as np
import pandas as pd
import pytest
from deletion_smoke import trained

from xai_lib import stored_tables
from xai_lib.config import runtime
from xai_lib.studies.deletion import searches as se
from xai_lib.studies.deletion import tables as dt
from xai_lib.studies.deletion.summary import summarise

MAPS = [f"{name} {p}" for name in ("CAM", "SAL") for p in dt.PERCENTILES]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dt.Tables:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return dt.tables(trained()[0], runtime("cpu"), progress=False)


def test_scores(found):
    study, scores = trained()[0].study, found.scores
    runs = scores.groupby(["label", "tissue"])["run"].nunique()
    assert runs[1].to_dict() == {"healthy": study.runs, "mass": study.runs, "none": 1, "twin": 1}
    assert runs[0].to_dict() == {"healthy": study.runs, "none": 1}
    assert np.isfinite(scores["logit"]).all()


def test_masks(found):
    masks = found.masks.set_index(["case", "variant"])
    ours = masks.xs(se.SDR, level="variant")
    assert set(MAPS) <= set(found.masks["variant"])
    for name, p in zip(MAPS, dt.PERCENTILES * 2, strict=True):
        assert masks.xs(name, level="variant")["over"].to_numpy() == pytest.approx((100 - p) / 100, abs=1e-3)
    for name in ("random disc", "breast centre", "brightest spot"):
        if name in found.masks["variant"].to_numpy():
            discs = masks.xs(name, level="variant")["area"]
            assert (discs == ours["area"].reindex(discs.index)).all()
    assert ours["O"].isna().all()
    assert (found.masks["empty"] == (found.masks["area"] == 0)).all()
    holes = found.holes.set_index(["case", "variant"])["hole"]
    shape = trained()[0].study.size
    assert all(se.unpack(text, shape).sum() == masks.loc[key, "area"] for key, text in holes.items())


def test_pixels(found):
    pixels = found.pixels
    twin, original = (pixels[pixels["fill"] == name] for name in ("twin", "original"))
    assert (twin["error"] == 0).all()
    assert (original.loc[original["hole"] == "mass", "error"] > 0).all()
    assert pixels.groupby(["case", "hole"]).size().eq(7).all()
    assert np.isfinite(pixels[["error", "logit", "distance"]]).all().all()


def test_the_tables_are_read_again(found, tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    ready, _ = trained()
    key = se.key(ready)
    folder = tmp_path / "tables" / stored_tables.digest(key)
    for name in ("scores", "holes", "masks", "pixels"):
        stored_tables.save(getattr(found, name), f"deletion_{name}", key, folder)
    monkeypatch.setattr(dt, "scores", None)
    again = dt.tables(ready, runtime("cpu"), progress=False)
    pd.testing.assert_frame_equal(again.masks, found.masks)


def test_the_summary_takes_them(found):
    study = trained()[0].study
    result = summarise(found.scores, found.masks, found.pixels, 100.0, str(study.region.cell), study.region.lambda2, 20)
    assert set(result.verdicts) == {f"5.{i}" for i in range(1, 7)}


def test_a_hole_elsewhere():
    breast = np.zeros((40, 20), bool)
    breast[2:38, :16] = True
    hole = np.zeros_like(breast)
    hole[4:9, 3:9] = True
    moved = dt.elsewhere(hole, breast, np.random.default_rng(0))
    assert moved.sum() == hole.sum() and not (moved & hole).any() and not (moved & ~breast).any()
    assert not dt.elsewhere(breast, breast, np.random.default_rng(0)).any()  # no room
