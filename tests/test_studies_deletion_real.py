"""real: which films count, folds by patient, the whole run on small films, the command."""

from dataclasses import replace

import numpy as np
import pytest
from deletion_smoke import trained
from films import films

from xai_lib import records
from xai_lib.config import runtime
from xai_lib.data.case import CaseDataset, DataError
from xai_lib.studies import real_runs
from xai_lib.studies.deletion import real as dr
from xai_lib.studies.deletion import study as deletion_study
from xai_lib.studies.deletion.inpainting_training import Settings
from xai_lib.training import FitConfig

KINDS = ("CIRC", "NORM", "SPIC", "NORM", "CALC", "MISC", "NORM", "NORM", "CIRC", "NORM")


def some_films():
    """Ten films as mini-MIAS names them; the fifth has calcifications, which are no mass."""
    classes = ["normal" if kind == "NORM" else "malignant" if kind == "SPIC" else "benign" for kind in KINDS]
    cases = films(classes, [False] * len(KINDS))
    table = cases.table.assign(abnormality=KINDS, located=True)
    return CaseDataset("films", table, cases._read)


def test_masses_and_normal_films_are_kept():
    cases = dr.with_masses(some_films())
    assert list(cases.table["abnormality"]) == [kind for kind in KINDS if kind != "CALC"]
    assert list(cases.labels) == [int(kind != "NORM") for kind in KINDS if kind != "CALC"]
    assert all(cases[i].label == cases.labels[i] for i in range(len(cases)))


def test_masses_that_are_not_located_are_left_out():
    cases = some_films()
    cases.table["located"] = cases.table["abnormality"] != "SPIC"
    assert "SPIC" not in set(dr.with_masses(cases).table["abnormality"])


def test_data_sets_that_do_not_serve():
    with pytest.raises(DataError, match="films: its table has no column abnormality"):
        dr.with_masses(films())
    normal = some_films()
    with pytest.raises(DataError, match="films: 0 films with a located mass and 5 normal ones"):
        dr.with_masses(normal.subset(np.flatnonzero(np.array(KINDS) == "NORM")))


def test_the_inpainter_sees_no_patient_with_a_mass():
    cases = dr.with_masses(some_films())
    learn, look = dr._normal(cases, 0)
    assert not set(learn) & set(look) and len(look) == 1
    assert (cases.labels[np.r_[learn, look]] == 0).all()


def test_a_run_on_films(monkeypatch, tmp_path):
    ready, folder = trained()
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dr.data, "load", lambda name, root: some_films())
    small = replace(ready.study, checkpoint=str(folder))
    for module in (dr, deletion_study):
        monkeypatch.setattr(module, "settings", lambda name: small)
    real = dr.RealDeletion(
        weights=str(folder / "deletion_squeezenet1_1.safetensors.gz"),
        inpainter=str(folder / "deletion_inpainter.safetensors.gz"),
        folds=2,
        fit=FitConfig(1, 4, 1e-3, augment="none", patience=None),
        inpainting=Settings((1, 1), (1e-3, 1e-4), 2, perceptual=0.0, style=0.0),
        images=2,
        runs=2,
        replicates=20,
    )
    record, result = dr.deletion_record(real, 0, runtime("cpu", threads=1), "the command", progress=False)
    records.write(record, tmp_path / "r.json")
    assert records.read(tmp_path / "r.json").study == "05_inpainting_sdr"
    assert set(result.auc["tissue"]) == {"none", "healthy", "mass"}
    assert set(result.methods["variant"]) >= {"SDR", "no shape terms", "CAM 90", "SAL 90"}
    assert result.methods.loc[result.methods["variant"] == "SDR", "images"].item() == 2
    assert set(record.verdicts) == {f"5.{i}" for i in range(1, 7)}
    assert record.data["cases"] == 9 and record.command == "the command"
    assert record.parameters["folds"] == 2 and record.parameters["region"]["steps"] == small.region.steps
    monkeypatch.setattr(dr.inpainting_training, "train", None)  # read from the cache
    again, _ = dr.deletion_record(real, 0, runtime("cpu", threads=1), progress=False)
    assert again.figures == record.figures


def test_the_command(monkeypatch):
    seen = []
    monkeypatch.setattr(real_runs, "deletion_record", lambda *args: seen.append(args) or (None, None))
    real_runs.run_real("deletion", "mini_mias", "/home/films", maps=7)
    real, seed, _, command = seen[0]
    assert (real.images, real.root, seed) == (7, "/home/films", 0)
    assert command == "xai-lib real deletion RECORD.json --dataset mini_mias --maps 7"
    with pytest.raises(ValueError, match="seeds: 2 for deletion"):
        real_runs.run_real("deletion", seeds=2)
