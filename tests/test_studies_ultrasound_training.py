import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import log_loss
from ultrasound_discs import BACKBONE, CPU, FIT, SIZE, assert_same, disc, discs

from xai_lib import config, training
from xai_lib.attribution import cam
from xai_lib.data.splits import fold_parts
from xai_lib.studies.ultrasound import training as ut
from xai_lib.studies.ultrasound.cam import explain, points, region_maps, relative_points
from xai_lib.studies.ultrasound.runs import Backbone


@pytest.fixture(scope="module")
def dataset():
    return discs()


@pytest.fixture(scope="module")
def images(dataset):
    return training.stack(dataset, SIZE, progress=False)


@pytest.fixture(scope="module")
def parts(dataset):
    return fold_parts(dataset, 2, seed=3)[1]


def train(images, parts, **options):
    return ut.train_run(BACKBONE, images, parts, FIT, CPU, seed=3, fold=1, progress=False, **options)


@pytest.fixture(scope="module")
def trained(images, parts):
    return train(images, parts)


def test_run_is_consistent(trained, images, parts):
    run, model = trained
    n = len(parts["test"])
    assert run.logits.shape == (3, n) and run.maps.shape == (3, n, 3, 3)
    assert run.val_loss.shape == run.test_loss.shape == (3,) and np.isnan(run.val_loss[0])
    assert (run.seed, run.fold) == (3, 1) and run.offset.shape == (2,) and run.gap <= 1e-5
    assert_array_equal(run.test, parts["test"])
    untrained = explain(BACKBONE.build(3), images.subset(run.test), CPU)
    assert_allclose(run.logits[0], untrained[0], atol=1e-5)  # rounding: training may change the memory layout
    assert_allclose(run.maps[0], untrained[1], atol=1e-5)
    assert not np.allclose(run.logits[0], run.logits[2])
    kept = run.epoch()
    logits, maps = explain(model, images.subset(run.test), CPU)
    assert_array_equal(run.logits[kept], logits)
    assert_array_equal(run.maps[kept], maps)
    assert_allclose(maps.mean((1, 2)) + model.head.bias.item(), logits, atol=1e-5)
    labels = images.labels[run.test].numpy()
    expected = [log_loss(labels, 1 / (1 + np.exp(-row.astype(float)))) for row in run.logits]
    assert_allclose(run.test_loss, expected, rtol=1e-6)


def test_further_maps_and_controls(trained, images):
    run, model = trained
    assert set(run.extras) == {"grad_cam", "layer_cam", "cameras", "random_network", "logits_random_network"}
    n, kept = len(run.test), relative_points(run.maps[run.epoch()])
    assert all(values.shape == ((n,) if name[:4] == "logi" else (n, 2, 2)) for name, values in run.extras.items())
    assert_allclose(run.extras["grad_cam"], kept)  # at the last layer Grad-CAM is the CAM
    x = images.subset(run.test).images.float() / 255
    assert_array_equal(run.extras["layer_cam"], relative_points(cam.layer_cam(model, x, "features.7")))
    assert_array_equal(run.extras["cameras"], relative_points(cam.cameras(model, x, (SIZE, 91, 2 * SIZE))))
    random = explain(BACKBONE.build(3, pretrained=False), images.subset(run.test), CPU)
    assert_array_equal(run.extras["logits_random_network"], random[0])


def test_a_network_that_is_already_trained(trained, images):
    run, model = trained
    found = ut.tested_run(model, replace(BACKBONE, weights="some.pth"), images.subset(run.test), CPU, seed=3)
    kept = run.epoch()
    assert_array_equal(found.logits, run.logits[[kept]])
    assert_array_equal(found.maps, run.maps[[kept]])
    assert_allclose(found.test_loss, run.test_loss[kept])
    assert_array_equal(found.test, np.arange(len(run.test)))
    assert "linear_head" not in found.extras  # it would be fitted on the images that it is tested on
    assert_array_equal(found.extras["random_network"], run.extras["random_network"])


def test_externals(trained, images, parts, dataset):
    other = discs(3, name="elsewhere", read=lambda row: disc(row.replace({row["number"]: row["number"] + 100})))
    outside = training.stack(other, SIZE, progress=False)
    run, model = train(images, parts, externals={"elsewhere": outside})
    assert_same(replace(run, extras=trained[0].extras), trained[0])
    logits, maps = explain(model, outside, CPU)
    assert_array_equal(run.extras["logits_elsewhere"], logits)
    assert_array_equal(run.extras["elsewhere"], relative_points(maps))
    areas = region_maps(other, progress=False)
    frame = points([replace(run, test=np.arange(len(other)))], areas, other, "elsewhere", align="measured")
    assert frame["source"].tolist() == other.table["source"].tolist()
    assert_allclose(frame["logit"], logits)


def test_shuffled_labels(trained, images, parts):
    run, _ = train(images, parts, shuffle_labels=True)
    assert run.extras == {}
    assert_array_equal(run.logits[0], trained[0].logits[0])
    assert_array_equal(run.test, trained[0].test)
    assert not np.allclose(run.logits[1:], trained[0].logits[1:])
    assert_allclose(run.test_loss[0], trained[0].test_loss[0])  # test labels are the true ones
    again, _ = train(images, parts, shuffle_labels=True)
    assert_same(run, again)


def test_start_from_a_trained_network(trained, images, parts):
    base = trained[1]
    before = {name: value.clone() for name, value in base.state_dict().items()}
    start = replace(BACKBONE, transfer="drs")
    run, model = ut.train_run(start, images, parts, FIT, CPU, 3, base=base, extras=False, progress=False)
    assert run.extras == {} and model.spec["drs"]
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in before.items())
    x = images.images[:2].float() / 255
    fresh = ut._transferred(start, base, 3).eval()
    assert_allclose(fresh.feature_maps(x).detach(), base.feature_maps(x).detach(), atol=1e-4)
    head = ut._transferred(replace(BACKBONE, transfer="head"), base, 3)
    assert not any(p.requires_grad for p in head.features.parameters())
    assert all(p.requires_grad for p in ut._transferred(BACKBONE, base, 3).parameters())


class Killed(Exception):
    pass


def killer(function, at):
    """`function` that fails when it is called for the time `at` (from 0)."""
    calls = iter(range(100))

    def wrapped(*arguments, **options):
        if next(calls) == at:
            raise Killed
        return function(*arguments, **options)

    return wrapped


@pytest.mark.parametrize(("name", "at"), [("explain", 0), ("explain", 1), ("explain", 2), ("other_maps", 0)])
def test_killed_and_resumed(trained, images, parts, tmp_path, monkeypatch, name, at):
    """Killed while the test images are looked at after epoch `at`, or while the further maps are made."""
    state = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(ut, name, killer(getattr(ut, name), at))
        with pytest.raises(Killed):
            train(images, parts, state=state)
    run, _ = train(images, parts, state=state)
    assert_same(run, trained[0])
    assert list(tmp_path.iterdir()) == []


def test_killed_between_epochs(trained, images, parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_epoch", killer(training._train_epoch, 1))
        with pytest.raises(Killed):
            train(images, parts, state=tmp_path / "part")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["part.npz", "part.safetensors"]
    run, _ = train(images, parts, state=tmp_path / "part")
    assert_same(run, trained[0])


def test_lost_half_of_the_state_is_an_error(images, parts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_epoch", killer(training._train_epoch, 1))
        with pytest.raises(Killed):
            train(images, parts, state=tmp_path / "part")
    (tmp_path / "part.npz").unlink()
    with pytest.raises(ValueError, match=r"part\.npz holds 0 of the 2 epochs before this one; delete it"):
        train(images, parts, state=tmp_path / "part")


def test_name_of_a_cached_run_is_pinned(tmp_path, monkeypatch):
    """Long trainings are found again by it, in every version: 224 pixels go without saying."""

    class Masses:
        fingerprint = "f" * 64

    def folder(size, bf16=True, **options):
        stack = training.Stack(torch.zeros(1, 1, size, size, dtype=torch.uint8), torch.zeros(1))
        runtime = config.Runtime(torch.device("cpu"), 1, bf16, channels_last=False)
        ut.cross_validate(Masses(), stack, Backbone(), training.FitConfig(), runtime, tmp_path, seeds=[0], **options)
        return {path.parent.name for path in saved}

    saved = []
    monkeypatch.setattr(ut, "fold_parts", lambda *_: [{}] * 5)
    monkeypatch.setattr(ut, "train_run", lambda *_: (None, None))
    monkeypatch.setattr(ut, "save_run", lambda run, path: saved.append(path))
    monkeypatch.setattr(ut, "load_run", lambda path: None)
    assert folder(224) == {"89f81aec7a20"} and len(saved) == 5
    assert folder(224, externals={"breast": None}) == {"89f81aec7a20", "ac93d2dbe8f3"}
    assert len(folder(96)) == 3 and len(folder(64)) == 4


def test_settings_that_were_added_later_change_the_name_of_a_cached_run():
    plain = ut._named(training.FitConfig())
    assert "augment=True)" in plain and "augment=False)" in ut._named(training.FitConfig(augment="none"))
    for change in ({"loss": "focal"}, {"positive_weight": 3.0}, {"group": 2}, {"augment": "patch"}):
        assert ut._named(training.FitConfig(**change)) != plain


def test_cross_validate_shares_a_folder(dataset, images, tmp_path, monkeypatch):
    fit = training.FitConfig(epochs=1, batch_size=8)
    go = functools.partial(
        ut.cross_validate, dataset, images, BACKBONE, fit, CPU, tmp_path, folds=2, shuffle_labels=True, progress=False
    )
    runs = go(seeds=[0])
    assert [(r.seed, r.fold) for r in runs] == [(0, 0), (0, 1)]
    assert_array_equal(np.sort(np.concatenate([r.test for r in runs])), np.arange(len(dataset)))
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["seed0-fold0.npz", "seed0-fold1.npz"]

    called = []

    def counting(*arguments, **options):
        called.append(arguments[5:7])
        return ut.tested_run(BACKBONE.build(0).eval(), BACKBONE, images, CPU, seed=arguments[5], extras=False), None

    monkeypatch.setattr(ut, "train_run", counting)
    for a, b in zip(go(seeds=[0]), runs, strict=True):
        assert_same(a, b)
    assert called == []
    assert len(go(seeds=range(2))) == 4
    assert called == [(1, 0), (1, 1)] and len(list(tmp_path.iterdir())) == 1  # another seed, the same folder
    go(seeds=[0], folds=3)
    assert (
        called[2:] == [(0, 0), (0, 1), (0, 2)] and len(list(tmp_path.iterdir())) == 2
    )  # other settings, another folder
