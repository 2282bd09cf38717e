"""Networks of studies 1 and 2 at tiny settings: what they see, and that a killed training goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import StochasticDepth

from xai_lib import training
from xai_lib.config import Runtime
from xai_lib.data.synthetic.mammogram_patches import patches
from xai_lib.studies.mammograms import networks as mn
from xai_lib.training import Stack

CPU = Runtime(torch.device("cpu"), 1, bf16=False, channels_last=False)
PARTS = (0.5, 0.25, 0.25)
PATCHES = mn.PatchSettings(
    patients=8,
    image_size=(128, 64),
    size=32,
    parts=PARTS,
    architectures=("squeezenet1_1",),
    fit=replace(mn.PatchSettings().fit, epochs=2, batch_size=8),
)
WHOLE = mn.WholeSettings(
    patients=8,
    size=(128, 64),
    parts=PARTS,
    architecture="squeezenet1_1",
    patch=32,
    jitter=3,
    patch_fit=replace(mn.WholeSettings().patch_fit, epochs=2, batch_size=8),
    fit=replace(mn.WholeSettings().fit, epochs=2, batch_size=4),
)


@pytest.fixture(scope="module")
def whole():
    return mn.whole_images(WHOLE, seed=0, progress=False)


@pytest.fixture(scope="module")
def cut():
    return mn.patch_images(PATCHES, seed=0, progress=False)


def same(a, b):
    a, b = (m.state_dict() for m in (a, b))
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def without_time(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


# the thesis's settings


def test_settings_are_the_thesis_s():
    study1, study2 = mn.PatchSettings(), mn.WholeSettings()
    assert study1.architectures == ("resnet50", "mobilenet_v2") and study1.size == 224
    assert (study1.fit.optimizer, study1.fit.learning_rate, study1.fit.schedule) == ("adam", 1e-3, "onecycle")
    assert study1.fit.loss == "cross_entropy" and study1.fit.augment == "patch" and study1.fit.patience is None
    assert study2.architecture == "efficientnet_b0"
    assert (study2.fit.optimizer, study2.fit.learning_rate) == ("sgd", 0.01)


# data


@pytest.mark.parametrize("name", ["whole", "cut"])
def test_no_patient_is_in_two_parts(name, request):
    images = request.getfixturevalue(name)
    patients = {part: set(images.dataset.patient_ids[index]) for part, index in images.parts.items()}
    assert list(patients) == ["train", "val", "test"]
    assert sum(map(len, patients.values())) == len(set.union(*patients.values())) == 8
    assert sorted(np.concatenate(list(images.parts.values()))) == list(range(len(images.dataset)))


def test_pairs_are_an_image_and_its_twin(whole):
    pairs, twins = whole.stacks["train"], mn.cases(WHOLE, 0, twins=True)
    index = [i for i in whole.parts["train"] if whole.dataset.labels[i] == 1]
    assert len(pairs) == 2 * len(index) > 0 and pairs.labels.tolist() == [1, 0] * len(index)
    assert torch.equal(pairs.images[0::2], training.stack(whole.dataset.subset(index), WHOLE.size, False).images)
    assert torch.equal(pairs.images[1::2], training.stack(twins.subset(index), WHOLE.size, False).images)
    assert whole.centres["train"].shape == (len(pairs), 2)
    assert (whole.centres["train"][0::2] == whole.centres["train"][1::2]).all()
    for k, i in enumerate(index):
        mask = whole.dataset[i].mask.numpy()
        changed = (pairs.images[2 * k] != pairs.images[2 * k + 1])[0].numpy()
        assert changed[mask].mean() > 0.9  # the lesion
        row, col = np.argwhere(mask).mean(0)
        assert np.abs(whole.centres["train"][2 * k] - (row, col)).max() <= 2
        rows, cols = np.nonzero(changed)
        assert np.hypot(rows - row, cols - col).max() < 30  # and its spicules; nothing far away


def test_stopping_set_has_no_twins(whole):
    val = whole.stacks["val"]
    assert torch.equal(val.images, training.stack(whole.dataset.subset(whole.parts["val"]), WHOLE.size, False).images)
    assert set(val.labels.tolist()) == {0, 1} and len(whole.centres["val"]) == len(val)


def test_patches_are_pairs_around_the_lesion(cut):
    twins = patches(mn.cases(PATCHES, 0, twins=True), 32)
    assert cut.dataset.fingerprint == patches(mn.cases(PATCHES, 0), 32).fingerprint
    index = [i for i in cut.parts["train"] if cut.dataset.labels[i] == 1]
    pairs, val = cut.stacks["train"], cut.stacks["val"]
    assert pairs.labels.tolist() == [1, 0] * len(index) and pairs.images.shape[1:] == (1, 32, 32)
    assert torch.equal(pairs.images[0::2], training.stack(cut.dataset.subset(index), 32, False).images)
    assert torch.equal(pairs.images[1::2], training.stack(twins.subset(index), 32, False).images)
    assert torch.equal(val.images, training.stack(cut.dataset.subset(cut.parts["val"]), 32, False).images)
    assert val.labels.tolist() == cut.dataset.labels[cut.parts["val"]].tolist()  # the classes are different breasts
    for i in np.flatnonzero(cut.dataset.labels == 1):
        rows, cols = np.nonzero(cut.dataset[i].mask.numpy())
        assert abs(rows.mean() - 15.5) < 3 and abs(cols.mean() - 15.5) < 3  # the lesion is in the middle


def test_images_are_reproducible(whole, cut):
    again = mn.whole_images(WHOLE, seed=0, progress=False)
    other = mn.whole_images(WHOLE, seed=1, progress=False)
    for name in ("train", "val"):
        assert torch.equal(again.stacks[name].images, whole.stacks[name].images)
    assert other.dataset.fingerprint != whole.dataset.fingerprint == again.dataset.fingerprint
    assert torch.equal(mn.patch_images(PATCHES, 0, False).stacks["train"].images, cut.stacks["train"].images)


# patches of study 2's first stage


def marked(centres, size=(60, 40)):
    """Black images with a white dot at each centre; labels 1, 0, 1, 0, ..."""
    images = torch.zeros(len(centres), 1, *size, dtype=torch.uint8)
    for image, (row, col) in zip(images, centres, strict=True):
        image[0, row, col] = 255
    return Stack(images, (torch.arange(len(centres)) + 1) % 2)


def test_cut_by_hand():
    centres = np.array([[30, 20], [0, 0], [59, 39], [5, 35]])  # inside, two corners, near a corner
    chosen = replace(WHOLE, patch=9, jitter=0, copies=2)
    out = mn.cut_patches(marked(centres), centres, chosen.patch, chosen.jitter, chosen.copies, np.random.default_rng(0))
    assert out.images.shape == (8, 1, 9, 9) and out.images.dtype == torch.uint8
    assert out.labels.tolist() == [1, 0, 1, 0] * 2
    assert (out.images[:, 0, 4, 4] == 255).all() and (out.images != 0).sum() == 8  # beyond the edges it is black


def test_cut_moves_by_the_jitter_at_most():
    centres = np.tile([[30, 20]], (200, 1))
    chosen = replace(WHOLE, patch=15, jitter=3, copies=1)
    out = mn.cut_patches(marked(centres), centres, chosen.patch, chosen.jitter, chosen.copies, np.random.default_rng(0))
    dots = torch.nonzero(out.images[:, 0])[:, 1:] - 7
    assert len(dots) == 200 and dots.min() == -3 and dots.max() == 3
    assert len(dots.unique(dim=0)) == 49


def test_half_of_the_healthy_patches_lie_elsewhere():
    centres = np.stack([np.arange(400) // 2 % 20 + 20, np.arange(400) // 2 // 20 + 15], 1)  # in pairs, all different
    chosen = replace(WHOLE, patch=3, jitter=0, copies=1)
    stack = marked(centres)
    out = mn.cut_patches(
        stack, centres, chosen.patch, chosen.jitter, chosen.copies, np.random.default_rng(0), elsewhere=True
    )
    own = (out.images[:, 0, 1, 1] == 255).numpy()
    assert own[0::2].all() and 0.4 < own[1::2].mean() < 0.6
    assert (
        mn.cut_patches(stack, centres, chosen.patch, chosen.jitter, chosen.copies, np.random.default_rng(0))
        .images[:, 0, 1, 1]
        .min()
        == 255
    )


def test_cut_patches_of_malignant_images_show_the_lesion(whole):
    """The same place of image and twin: they differ in the lesion, which is in the middle of the patch."""
    train, rng = whole.stacks["train"], np.random.default_rng(0)
    pairs = mn.cut_patches(train, whole.centres["train"], WHOLE.patch, 0, WHOLE.copies, rng)
    changed = pairs.images[0::2] != pairs.images[1::2]
    assert len(changed) == WHOLE.copies * len(train) // 2
    assert (changed[:, 0, 14:18, 14:18].float().mean((1, 2)) > 0.9).all()
    again = mn.cut_patches(train, whole.centres["train"], WHOLE.patch, 0, WHOLE.copies, np.random.default_rng(0))
    assert torch.equal(again.images, pairs.images)


# networks


def test_fresh_network():
    before = torch.random.get_rng_state()
    model, again, other = (mn.fresh("efficientnet_b0", None, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(model, again) and not same(model, other)
    assert model.spec["outputs"] == 2 and model.head.out_features == 2
    depths = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    assert len(depths) == 16 and set(depths) == {0.0}


def test_patch_training(cut):
    model, result = mn.train_patches(PATCHES, "squeezenet1_1", cut, 0, CPU, progress=False)
    assert model.spec["architecture"] == "squeezenet1_1" and not model.training
    assert len(result.history) == 2 and all(np.isfinite(row["auc"]) for row in result.history)
    again, repeated = mn.train_patches(PATCHES, "squeezenet1_1", cut, 0, CPU, progress=False)
    assert same(model, again) and without_time(result) == without_time(repeated)
    assert not same(model, mn.train_patches(PATCHES, "squeezenet1_1", cut, 1, CPU, progress=False)[0])


@pytest.fixture(scope="module")
def trained(whole):
    return mn.train_whole(WHOLE, whole, 0, CPU, progress=False)


def test_whole_training_goes_through_patches(trained, whole, monkeypatch):
    model, results = trained
    assert list(results) == ["patches", "whole"] and not model.training
    assert [len(r.history) for r in results.values()] == [2, 2]
    seen, original = [], training.fit

    def fit(network, train, val, config, *args, **options):
        seen.append((tuple(train.images.shape), tuple(val.images.shape), config))
        return original(network, train, val, config, *args, **options)

    monkeypatch.setattr(training, "fit", fit)
    again, _ = mn.train_whole(WHOLE, whole, 0, CPU, progress=False)
    assert same(model, again)
    n, m = len(whole.stacks["train"]), len(whole.stacks["val"])
    assert seen == [
        ((2 * n, 1, 32, 32), (2 * m, 1, 32, 32), WHOLE.patch_fit),
        ((n, 1, 128, 64), (m, 1, 128, 64), WHOLE.fit),
    ]
    _, alone = mn.train_whole(replace(WHOLE, patch_fit=None), whole, 0, CPU, progress=False)
    assert list(alone) == ["whole"]


class Killed(Exception):
    pass


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_killed_whole_training_resumes(trained, whole, tmp_path, monkeypatch, epoch):
    """Killed in each epoch: the first two are the patches'."""
    original, calls = training._train_epoch, iter(range(10))

    def killed(*args):
        if next(calls) == epoch:
            raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_train_epoch", killed)
        with pytest.raises(Killed):
            mn.train_whole(WHOLE, whole, 0, CPU, tmp_path / "part", progress=False)
    model, results = mn.train_whole(WHOLE, whole, 0, CPU, tmp_path / "part", progress=False)
    assert same(model, trained[0]) and list(tmp_path.iterdir()) == []
    for name, result in results.items():
        assert without_time(result) == without_time(trained[1][name])


def test_killed_patch_training_resumes(cut, tmp_path, monkeypatch):
    whole, expected = mn.train_patches(PATCHES, "squeezenet1_1", cut, 0, CPU, progress=False)
    original, calls = training._train_epoch, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return original(*args)

    monkeypatch.setattr(training, "_train_epoch", killed)
    with pytest.raises(Killed):
        mn.train_patches(PATCHES, "squeezenet1_1", cut, 0, CPU, tmp_path / "state", progress=False)
    again, result = mn.train_patches(PATCHES, "squeezenet1_1", cut, 0, CPU, tmp_path / "state", progress=False)
    assert len(calls) == 3  # the first epoch was not trained again
    assert same(again, whole) and without_time(result) == without_time(expected)


# bad input


def test_shares_that_do_not_add_up():
    with pytest.raises(ValueError, match=r"fractions: .* are not positive numbers that add to 1"):
        mn.patch_images(replace(PATCHES, parts=(0.5, 0.5, 0.5)), 0, False)


def test_a_batch_that_splits_pairs():
    with pytest.raises(ValueError, match="group: 2 does not divide the batch_size 5"):
        replace(WHOLE.fit, batch_size=5)
    assert mn.WholeSettings().fit.group == 2 and mn.PatchSettings().fit.group == 1


def test_unknown_architecture(cut):
    with pytest.raises(ValueError, match="name: 'alexnet' is unknown"):
        mn.train_patches(PATCHES, "alexnet", cut, 0, CPU, progress=False)
