from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal

from xai_lib import checkpoints
from xai_lib.config import runtime
from xai_lib.data import CaseDataset
from xai_lib.studies.patches.study import choose, patch_sets, prepare, settings


def dataset(labels, patients=None):
    sources = [f"p{i}" for i in range(len(labels))]
    table = pd.DataFrame({"source": sources, "label": labels, "patient_id": patients or sources, "view": "CC"})
    return CaseDataset("toy", table, lambda row: None)


def test_settings_hold_the_thesis_parameters():
    lab = settings("lab")
    assert (lab.setup.steps, lab.setup.window, lab.setup.stride) == (200, 60, 30)
    assert (lab.setup.segments, lab.setup.samples) == (150, 200)
    assert lab.patches.architectures == ("resnet50", "mobilenet_v2") and lab.patches.size == 224
    assert lab.shift * 224 == 50 and lab.checkpoint
    assert settings("smoke").checkpoint is None and settings("paper").patches.weights == "imagenet"
    assert settings("paper").patches.fit.schedule == "plateau"  # 3.2.2
    with pytest.raises(ValueError, match="profile"):
        settings("fast")


@pytest.fixture(scope="module")
def tiny():
    return settings("smoke")


@pytest.fixture(scope="module")
def ready(tiny, tmp_path_factory):
    return prepare(tiny, 0, runtime("cpu"), tmp_path_factory.mktemp("networks"), progress=False)


def test_the_sets_are_the_same_breasts(tiny):
    sets = patch_sets(tiny, 0)
    assert list(sets) == ["centred", "twin", "shifted", "benign"]
    i = int(np.flatnonzero(sets["centred"].labels == 1)[0])
    images = {name: part[i] for name, part in sets.items()}
    where = {name: np.argwhere(images[name].mask.numpy()).mean(0) for name in ("centred", "shifted")}
    assert images["twin"].mask.sum() == 0
    assert np.hypot(*(where["shifted"] - where["centred"])) == pytest.approx(tiny.shift * 64, abs=2)
    same = (images["centred"].image == images["twin"].image)[0]
    assert not same[images["centred"].mask].all() and same.float().mean() > 0.2
    assert (images["benign"].image == images["centred"].image).all()  # only normal patches get a benign mass
    k = int(np.flatnonzero(sets["centred"].labels == 0)[0])
    benign, normal = sets["benign"][k], sets["centred"][k]
    assert benign.mask.any() and not normal.mask.any() and benign.label == 0
    assert (benign.image - normal.image)[0][benign.mask].mean() > 0


def test_prepare_trains_both_networks_and_splits_patients(ready):
    assert list(ready.networks) == ["squeezenet1_1", "resnet10"]
    assert ready.first is ready.networks["squeezenet1_1"] and not ready.first.model.training
    table = ready.sets["centred"].table
    assert table.iloc[ready.test]["patient_id"].nunique() == 2
    assert ready.first.card["data"] == ready.sets["centred"].fingerprint


def test_shipped_networks_are_loaded_with_their_seed_and_checked(ready, tiny, tmp_path):
    for name, trained in ready.networks.items():
        checkpoints.save(trained.model, tmp_path / f"patch_{name}.safetensors.gz", trained.card)
    shipped = replace(tiny, checkpoint=str(tmp_path))
    again = prepare(shipped, 7, runtime("cpu"), tmp_path / "none", progress=False)
    assert again.seed == 0 and not (tmp_path / "none").exists()
    assert_array_equal(again.test, ready.test)
    other = replace(shipped, patches=replace(tiny.patches, contrast=(0.3, 0.4)))
    with pytest.raises(checkpoints.CheckpointError, match=r"patch_squeezenet1_1.*other patches"):
        prepare(other, 0, runtime("cpu"), tmp_path, progress=False)
    with pytest.raises(checkpoints.CheckpointError, match="missing"):
        prepare(replace(shipped, checkpoint=str(tmp_path / "empty")), 0, runtime("cpu"), tmp_path, progress=False)


def test_one_network_is_refused(tiny, tmp_path):
    alone = replace(tiny, patches=replace(tiny.patches, architectures=("resnet50",)))
    with pytest.raises(ValueError, match="two networks"):
        prepare(alone, 0, runtime("cpu"), tmp_path, progress=False)


# ------------------------------------------------------------------------------------------------- choosing


def test_choose_takes_every_patient_before_a_second_patch():
    labels = [1, 1, 0, 0] * 6
    cases = dataset(labels, [f"patient{i // 4}" for i in range(24)])
    test = np.arange(4, 24)
    chosen = choose(cases, test, 5, 7, seed=0)
    assert np.isin(chosen, test).all() and (np.diff(chosen) > 0).all()
    sick = chosen[cases.labels[chosen] == 1]
    assert len(sick) == 5 == len(set(cases.patient_ids[sick]))
    others = chosen[cases.labels[chosen] == 0]
    assert len(others) == 7 and len(set(cases.patient_ids[others])) == 5
    assert_array_equal(chosen, choose(cases, test, 5, 7, seed=0))
    assert not np.array_equal(chosen, choose(cases, test, 5, 7, seed=1))


def test_choose_takes_what_there_is():
    cases = dataset([1, 1, 0])
    assert_array_equal(choose(cases, np.arange(3), 99, 99, 0), [0, 1, 2])
    assert_array_equal(choose(cases, np.array([2]), 3, 3, 0), [2])
    assert_array_equal(choose(cases, np.arange(3), 2, 0, 0), [0, 1])
