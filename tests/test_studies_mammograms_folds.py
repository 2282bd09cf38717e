import numpy as np
import pandas as pd
import pytest
import torch

from xai_lib import checkpoints, training
from xai_lib.config import runtime
from xai_lib.data.case import CaseDataset
from xai_lib.studies.mammograms import folds as mf
from xai_lib.studies.mammograms import networks as mn
from xai_lib.training import FitConfig, Stack

CPU = runtime("cpu")
FIT = FitConfig(epochs=1, batch_size=8, augment="none", patience=None)
START = mf.Start("squeezenet1_1")


def images(n=24):
    """Bright squares on dark ground: two images a patient, half of the patients malignant."""
    labels = np.arange(n) // 2 % 2
    table = pd.DataFrame({"source": [f"s{i}" for i in range(n)], "label": labels, "view": "CC"})
    table["patient_id"] = [f"p{i // 2}" for i in range(n)]
    pixels = torch.full((n, 1, 64, 64), 60, dtype=torch.uint8)
    pixels[labels == 1, :, 20:44, 20:44] = 220
    return CaseDataset("squares", table, lambda row: None), Stack(pixels, torch.tensor(labels))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    return tmp_path


def trained(start=START, config=FIT, seed=0):
    dataset, stack = images()
    return mf.cross_validate(dataset, stack, start, config, seed, CPU, 2, progress=False)


def test_every_image_is_tested_by_the_network_that_has_not_seen_its_patient(cache):
    dataset, stack = images()
    found = trained()
    assert found.logits.shape == (24, 2) and np.isfinite(found.logits).all()
    for fold, parts in enumerate(found.parts):
        assert (found.fold_of[parts["test"]] == fold).all()
        seen = set(dataset.patient_ids[np.concatenate([parts["train"], parts["val"]])])
        assert not seen & set(dataset.patient_ids[parts["test"]])
        again = training.predict(found.model(fold), stack.subset(parts["test"]), CPU)
        np.testing.assert_allclose(again, found.logits[parts["test"]], atol=1e-5)
    np.testing.assert_array_equal(found.scores, found.logits[:, 1] - found.logits[:, 0])


def test_finished_folds_are_read(cache, monkeypatch):
    first = trained()
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("trained again"))
    np.testing.assert_array_equal(trained().logits, first.logits)


def test_another_start_or_setting_trains_anew(cache):
    first = trained()
    assert trained(seed=1).files[0] != first.files[0]
    assert trained(config=FitConfig(epochs=2, batch_size=8, augment="none")).files[0] != first.files[0]


def test_a_start_from_a_checkpoint(cache):
    model = mn.fresh("squeezenet1_1", None, 5)
    path = cache / "start.safetensors"
    checkpoints.save(model, path, {})
    start = mf.Start("squeezenet1_1", str(path))
    assert torch.equal(start.build(0).head.weight, model.head.weight)
    moved = path.rename(cache / "elsewhere.safetensors")
    path.with_suffix(".json").rename(moved.with_suffix(".json"))
    assert mf.Start("squeezenet1_1", str(moved)).key == start.key | {"weights": mf.file_digest(moved)}
    with pytest.raises(checkpoints.CheckpointError, match="architecture"):
        mf.Start("resnet18", str(moved)).build(0)


def test_without_weights_the_seed_decides():
    heads = [START.build(seed).head.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
