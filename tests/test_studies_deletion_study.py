"""study: profiles, labels by mass, pairs, checkpoints that know their images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from deletion_smoke import SMALL, trained

from xai_lib import checkpoints
from xai_lib.config import runtime
from xai_lib.deletion_region import DeletionConfig
from xai_lib.studies.deletion import inpainting_training
from xai_lib.studies.deletion import study as study_of


def test_profiles():
    paper, lab, smoke = (study_of.settings(name) for name in ("paper", "lab", "smoke"))
    assert (paper.size, paper.depth, paper.base, paper.features) == ((576, 448), 8, 64, "vgg16")
    assert paper.region == DeletionConfig() and paper.inpainting == inpainting_training.Settings()
    assert (paper.fit.epochs, paper.fit.batch_size, paper.fit.learning_rate) == (250, 4, 1e-5)
    assert lab.checkpoint is not None and smoke.checkpoint is None
    with pytest.raises(ValueError, match="profile: 'tiny'"):
        study_of.settings("tiny")


def test_the_label_is_a_mass_of_either_kind():
    sets = study_of.images(replace(SMALL, patients=20), 0)
    table = sets.cases.table
    assert set(table["kind"]) == {"normal", "benign", "malignant"}
    assert (sets.cases.labels == (table["kind"] != "normal")).all()
    for kind in ("normal", "benign", "malignant"):
        index = int(table.index[table["kind"] == kind][0])
        assert sets.cases[index].label == (kind != "normal") == bool(sets.cases[index].mask.any())
    assert len(sets.twins) == len(sets.cases) and not sets.twins.labels.any()


def test_twins_differ_by_the_mass_alone():
    sets = study_of.images(SMALL, 0)
    index = int(np.flatnonzero(sets.cases.labels == 1)[0])
    case, twin = sets.cases[index], sets.twins[index]
    changed = (case.image != twin.image)[0]
    assert changed.any() and changed.float().mean() < 0.2
    assert (changed & case.mask).any()


def test_the_same_masses_at_every_seed_of_the_label():
    sets = study_of.images(SMALL, 0)
    again = study_of.images(SMALL, 0)
    assert sets.cases.fingerprint == again.cases.fingerprint != study_of.images(SMALL, 1).cases.fingerprint
    assert sets.cases.fingerprint != sets.twins.fingerprint


def test_trained_and_loaded_networks_are_the_same():
    ready, folder = trained()
    again = study_of.prepare(replace(SMALL, checkpoint=str(folder)), 7, runtime("cpu"), folder, progress=False)
    assert again.seed == ready.seed == 0
    x = torch.rand(1, 1, *SMALL.size)
    keep = torch.ones_like(x)
    assert torch.equal(again.inpainter(x, keep), ready.inpainter(x, keep))
    assert torch.equal(again.classifier(x) + 10, ready.classifier(x))
    assert not any(p.requires_grad for p in [*again.classifier.parameters(), *again.inpainter.parameters()])
    assert len(again.cards["inpainter"]["history"]) == 2
    assert sorted(p.name for p in (folder / "training").iterdir()) == ["preview-001.png", "preview-002.png"]


def test_networks_of_other_images_are_refused():
    _, folder = trained()
    other = replace(SMALL, checkpoint=str(folder), patients=5)
    with pytest.raises(checkpoints.CheckpointError, match=r"deletion_squeezenet1_1.*made for other images"):
        study_of.prepare(other, 0, runtime("cpu"), folder)


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(checkpoints.CheckpointError, match="missing"):
        study_of.prepare(replace(SMALL, checkpoint=str(tmp_path)), 0, runtime("cpu"), tmp_path)
