from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from ultrasound_discs import BACKBONE, CPU, SIZE, discs

from xai_lib import models, training
from xai_lib.attribution import cam
from xai_lib.data.splits import fold_parts
from xai_lib.studies.ultrasound import controls as uc
from xai_lib.studies.ultrasound.cam import explain, relative_points


@pytest.fixture(scope="module")
def dataset():
    return discs()


@pytest.fixture(scope="module")
def images(dataset):
    return training.stack(dataset, SIZE, progress=False)


@pytest.fixture(scope="module")
def parts(dataset):
    return fold_parts(dataset, 2, seed=3)[1]


def test_linear_head_is_a_logistic_regression(images, parts):
    model = replace(BACKBONE, transfer="head").build(0)
    features = model.feature_maps(images.images.float() / 255).mean((2, 3)).detach().numpy()
    train, labels = features[parts["train"]], images.labels[parts["train"]].numpy()
    mean, sd = train.mean(0), train.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=1000).fit((train - mean) / sd, labels)
    head = uc.linear_head(model, images.subset(parts["train"]), CPU)
    logits, maps = explain(head, images, CPU)
    assert_allclose(logits, fit.decision_function((features - mean) / sd), atol=0.02)
    assert cam.identity_gap(head, torch.tensor(logits), torch.tensor(maps)) < 1e-4


def test_linear_runs_are_linear_heads(dataset, images):
    """The shortcut over stored features gives what setting the head and running the network gives."""
    runs = uc.linear_runs(dataset, images, BACKBONE, CPU, folds=2, seeds=[3, 4])
    assert [(r.seed, r.fold) for r in runs] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    assert_array_equal(np.sort(np.concatenate([r.test for r in runs[:2]])), np.arange(len(dataset)))
    run, parts = runs[1], fold_parts(dataset, 2, seed=3)[1]
    assert_array_equal(run.test, parts["test"])
    assert run.gap <= 1e-4 and run.epoch() == run.epoch("test") == 0
    learnt = images.subset(np.concatenate([parts["train"], parts["val"]]))
    head = uc.linear_head(replace(BACKBONE, transfer="head").build(0).eval(), learnt, CPU)
    logits, maps = explain(head, images.subset(run.test), CPU)
    assert_allclose(run.logits[0], logits, atol=0.05)  # rounding of features that hardly vary in training
    assert_allclose(run.maps[0].mean((1, 2)), maps.mean((1, 2)), atol=0.05)
    labels = images.labels[run.test].numpy()
    assert run.test_loss[0] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-run.logits[0].astype(float)))), rel=1e-6)


def test_controls_of_a_pretrained_backbone(tmp_path, images, parts):
    path = tmp_path / "squeezenet.pth"
    torch.save(models.ARCHITECTURES["squeezenet1_1"][0](weights=None).state_dict(), path)
    start = replace(BACKBONE, weights=str(path), transfer="drs")
    found = uc.controls(start, images.subset(parts["train"]), images.subset(parts["test"]), 0, CPU)
    assert list(found) == ["random_network", "logits_random_network", "linear_head", "logits_linear_head"]
    assert set(uc.controls(BACKBONE, images, images, 0, CPU)) == {"random_network", "logits_random_network"}
    head = uc.linear_head(replace(start, transfer="head").build(0).eval(), images.subset(parts["train"]), CPU)
    for name, network in (("random_network", BACKBONE.build(0)), ("linear_head", head)):
        logits, maps = explain(network, images.subset(parts["test"]), CPU)
        assert_array_equal(found[f"logits_{name}"], logits)
        assert_array_equal(found[name], relative_points(maps))
