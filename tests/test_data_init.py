import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xai_lib import data
from xai_lib.data import splits


@pytest.fixture
def home(tmp_path, monkeypatch):
    """XAI_DATA_DIR with a BUSI of five unlike images per class."""
    monkeypatch.setenv("XAI_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for label in ("benign", "malignant"):
        folder = tmp_path / "data" / "BUSI" / "Dataset_BUSI_with_GT" / label
        folder.mkdir(parents=True)
        for number in range(1, 6):
            Image.fromarray(rng.integers(0, 255, (32, 40), dtype=np.uint8)).save(folder / f"{label} ({number}).png")
            Image.fromarray(np.full((32, 40), 255, np.uint8)).save(folder / f"{label} ({number})_mask.png")
    return tmp_path / "data"


REAL = sorted(data.FOLDERS)


def test_available_names():
    mammograms = {"mini_mias", "cbis_ddsm", "nyu_sample", "inbreast", "rsna", "vindr", "omi_db", "ddsm"}
    assert {"breast", "busi", "oasbud", "synthetic_ultrasound"} | mammograms <= set(data.available())
    assert data.available() == sorted(data.available())


def test_finds_the_official_folder(home):
    found = data.load("busi")
    assert len(found) == 10 and found.name == "busi"
    assert found.fingerprint == data.load("busi", root=home / "BUSI" / "Dataset_BUSI_with_GT").fingerprint


def test_split_by_patient(home):
    whole = data.load("busi", seed=3)
    parts = {name: data.load("busi", split=name, seed=3) for name in ("train", "val", "test")}
    assert [len(part) for part in parts.values()] == [6, 2, 2]
    expected = splits.by_patient(whole, seed=3)
    for name, part in parts.items():
        assert list(part.table["source"]) == list(whole.table["source"][expected[name]])


def test_options_reach_the_loader(home):
    assert data.load("busi", classes=["malignant"]).labels.tolist() == [1] * 5
    assert set(data.load("busi", grouping=False).patient_ids) != set(data.load("busi").patient_ids)


@pytest.mark.parametrize("name", REAL)
def test_unknown_option_is_named(home, name):
    with pytest.raises(ValueError, match=f"sise: not an option of '{name}', expected some of strict"):
        data.load(name, sise=3)


def test_unknown_name_lists_what_is_there():
    with pytest.raises(ValueError, match=f"'bsui' is unknown, expected one of {', '.join(data.available())}"):
        data.load("bsui")
    with pytest.raises(ValueError, match="'synthetic_ultrasound' has no folder to check"):
        data.check("synthetic_ultrasound")


def test_unknown_split(home):
    with pytest.raises(
        ValueError, match="split: 'validation' is unknown, expected one of None, 'train', 'val', 'test'"
    ):
        data.load("busi", split="validation")


@pytest.mark.parametrize("name", REAL)
def test_missing_root_says_what_to_do(name, monkeypatch, tmp_path):
    monkeypatch.delenv("XAI_DATA_DIR", raising=False)
    for call in (data.load, data.check):
        with pytest.raises(data.DataError, match=f"{name}: no folder given; give root=, or set XAI_DATA_DIR"):
            call(name)
    monkeypatch.setenv("XAI_DATA_DIR", str(tmp_path))
    with pytest.raises(data.DataError, match="is not a folder; give root=, or set XAI_DATA_DIR"):
        data.load(name)


@pytest.mark.parametrize("name", REAL)
def test_every_real_data_set_says_what_an_empty_folder_lacks(name, tmp_path):
    for call in (data.load, data.check):
        with pytest.raises(data.DataError, match=r"is missing|holds no"):
            call(name, root=tmp_path)


def test_check(home):
    report = data.check("busi")
    assert report.found["benign images"] == 5 and len(report.missing) == 637
    assert "busi/benign (6), " in str(report) and "and 629 more" in str(report)


def test_generator_gets_seed_and_takes_no_folder(monkeypatch, tmp_path):
    def load_synthetic_ultrasound(masses=2, seed=0):
        rows = {"source": [f"{seed}/{i}" for i in range(masses)], "label": 0, "patient_id": "p", "view": "v"}
        return data.CaseDataset("synthetic_ultrasound", pd.DataFrame(rows), lambda row: None)

    monkeypatch.setattr(data, "_loader", lambda name: load_synthetic_ultrasound)
    assert data.load("synthetic_ultrasound", seed=5, masses=3).table["source"].tolist() == ["5/0", "5/1", "5/2"]
    with pytest.raises(ValueError, match="takes no folder"):
        data.load("synthetic_ultrasound", root=tmp_path)
    with pytest.raises(ValueError, match="strict: not an option of 'synthetic_ultrasound', expected some of masses"):
        data.load("synthetic_ultrasound", strict=True)


def test_synthetic_ultrasound_is_loaded_by_name():
    found = data.load("synthetic_ultrasound", seed=1, masses=3)
    assert len(found) == 6 and len(set(found.patient_ids)) == 3
