import numpy as np
import pandas as pd
import pytest

from xai_lib.studies.mammograms import examples as me
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms import study as ms
from xai_lib.studies.mammograms import tables as mt
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import ABLATIONS, CHEAP, COSTLY, MAIN, THE_SEVEN

CHOSEN = mn.WholeSettings(patients=8, size=(128, 64), parts=(0.5, 0.25, 0.25), architecture="squeezenet1_1")
SETUP = Setup(window=64, stride=32, steps=2, segments=8, samples=8)
COUNTS = ms.Counts(main=1, cheap=2, val=1, ablations=1, inserted=1, contrasts=(0.2, 0.4), costly=(0.4,), shown=1)


@pytest.fixture(scope="module")
def study():
    return ms.study_of(CHOSEN, mn.fresh("squeezenet1_1", None, 0), None, SETUP, COUNTS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cached(cache, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(cache))


@pytest.fixture(scope="module")
def found(study, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(cache))
        return mt.tables(study, progress=False)


def test_images_come_from_all_patients_first(study):
    """Two malignant images of each patient: after as many images as patients every one has been there once."""
    part = np.flatnonzero(study.dataset.labels >= 0)
    patients = study.dataset.table["patient_id"]
    chosen = mt.chosen_images(study.dataset, part, 100)
    assert len(chosen) == study.dataset.labels.sum() and (study.dataset.labels[chosen] == 1).all()
    first = mt.chosen_images(study.dataset, part, patients.nunique())
    assert patients[first].nunique() == patients.nunique()
    assert set(study.dataset.table["view"][first]) == {"CC", "MLO"}
    assert (chosen[: len(first)] == first).all()


def test_plan():
    jobs = mt.plan(ms.Counts(main=2, cheap=3, val=1, ablations=1), [5, 6, 7], [1, 2])
    assert [(stage, index) for stage, index, _ in jobs] == [("test", 5), ("test", 6), ("test", 7), ("val", 1)]
    variants = [set(v) for _, _, v in jobs]
    assert variants[0] == set(MAIN) | set(ABLATIONS) and variants[1] == set(MAIN) and variants[2] == set(CHEAP)
    assert set(THE_SEVEN) <= variants[3] and not any(name.startswith("untrained") for name in variants[3])


def test_tables(found):
    test = found.maps[found.maps["stage"] == "test"]
    assert list(found.maps) == list(mt.MAP_COLUMNS) and list(found.boxes) == list(mt.BOX_COLUMNS)
    assert test["image"].nunique() == 2 and (test["variant"] == COSTLY[0]).sum() == 1
    assert not found.maps.duplicated(["stage", "image", "variant"]).any()
    assert found.boxes["iou"].between(0, 1).all() and len(found.boxes) > 500
    # the costly methods at one contrast and before, the others at all
    seen = found.insertion.groupby("variant")["contrast"].unique().map(sorted)
    assert seen["saliency"] == [0, 0.2, 0.4] and seen["occlusion"] == [0, 0.4]


def test_an_image_is_explained_once(study, found, monkeypatch):
    """A second call reads; more images explain only the new ones."""
    done = []
    monkeypatch.setattr(me, "measure", lambda scene, *a: done.append(scene.case.source))
    again = mt.tables(study, progress=False)
    pd.testing.assert_frame_equal(again.boxes, found.boxes)
    assert not done


def test_a_stopped_run_goes_on(study, found, monkeypatch):
    monkeypatch.setattr(me, "measure", lambda *a: pytest.fail("explained again"))
    first = int(found.maps["image"].iloc[0])
    rows = mt.image_rows(study, first, mt.plan(COUNTS, [first], [])[0][2])
    assert (rows["image"] == first).all() and set(rows["variant"]) >= set(MAIN)


def test_live_rows_equal_the_stored_ones(study, found):
    image = int(found.maps["image"].iloc[0])
    frame, maps = me.explained(study, image, {"saliency": MAIN["saliency"]})
    stored = found.boxes[(found.boxes["image"] == image) & (found.boxes["variant"] == "saliency")]
    mine = frame[frame["variant"] == "saliency"]
    np.testing.assert_allclose(mine["iou"], stored["iou"], atol=1e-4)
    assert maps["saliency"].shape == CHOSEN.size


# ---------------------------------------------------------------- examples


def test_examples(found, study):
    images = {int(name.split("/")[0]) for name in found.examples}
    assert images <= set(found.maps["image"])
    for name, value in found.examples.items():
        if name.endswith("/box"):
            assert value.shape in ((1, 4), (0, 4))
        else:
            assert value.shape == (32, 16) and value.dtype == np.int8
    assert any(name.endswith("/occlusion, twin") for name in found.examples)


def test_what_is_shipped_is_read(study, found, tmp_path, monkeypatch):
    built = mt.build_tables(study, tmp_path, progress=False)
    assert {f.name for f in tmp_path.iterdir()} == {
        *(f"mammogram_{n}.{e}" for n in ("maps", "boxes", "insertion") for e in ("csv", "json")),
        "mammogram_examples.npz",
    }
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(me, "measure", lambda *a: pytest.fail("explained again"))
    read = mt.tables(study, tmp_path, progress=False)
    pd.testing.assert_frame_equal(read.maps, built.maps)
    assert read.examples.keys() == built.examples.keys()
    assert all((read.examples[n] == built.examples[n]).all() for n in built.examples)


def test_tables_of_another_network_are_not_taken(study, found, tmp_path, monkeypatch):
    mt.build_tables(study, tmp_path, progress=False)
    other = ms.study_of(CHOSEN, mn.fresh("squeezenet1_1", None, 5), None, SETUP, COUNTS)
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(mt, "image_rows", lambda *a: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        mt.tables(other, tmp_path, progress=False)
