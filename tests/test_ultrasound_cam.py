import functools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn

from xai_lib import config, localization, models, training
from xai_lib import ultrasound_cam as uc
from xai_lib.attribution import cam
from xai_lib.data.case import Case, CaseDataset

SIZE = 64
BACKBONE = uc.Backbone("squeezenet1_1", transfer="all", layer="features.7")
FIT = training.FitConfig(epochs=2, batch_size=4, learning_rate=3e-4)
CPU = config.runtime("cpu", threads=1)


def disc(row):
    """A mass as a disc, dark on noise; malignant ones are larger."""
    rng = np.random.default_rng(int(row["number"]))
    rows, cols = np.indices((SIZE, SIZE))
    mask = np.hypot(rows - rng.integers(24, 40), cols - rng.integers(24, 40)) <= 6 + 5 * row["label"]
    image = np.where(mask, 0.2, 0.6) + 0.1 * rng.random((SIZE, SIZE))
    image, mask = torch.tensor(image, dtype=torch.float32)[None], torch.tensor(mask)
    return Case(image, int(row["label"]), mask, torch.zeros(0, 4), 0.5, row["patient_id"], row["view"], row["source"])


def discs(patients=10, name="discs", read=disc):
    rows = [
        {
            "source": f"{name}/{p}{view}",
            "label": p % 2,
            "patient_id": f"p{p}",
            "view": view,
            "number": 2 * p + (view == "b"),
        }
        for p in range(patients)
        for view in "ab"
    ]
    return CaseDataset(name, pd.DataFrame(rows), read, parameters={"size": SIZE})


@pytest.fixture(scope="module", autouse=True)
def small_cameras():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uc.cam, "cameras", functools.partial(cam.cameras, sizes=(64, 96)))
        yield


@pytest.fixture(scope="module")
def dataset():
    return discs()


@pytest.fixture(scope="module")
def images(dataset):
    return training.stack(dataset, SIZE, progress=False)


@pytest.fixture(scope="module")
def parts(dataset):
    return uc.fold_parts(dataset, 2, seed=3)[1]


def train(images, parts, **options):
    return uc.train_run(BACKBONE, images, parts, FIT, CPU, seed=3, fold=1, progress=False, **options)


@pytest.fixture(scope="module")
def trained(images, parts):
    return train(images, parts)


def assert_same(a, b):
    for name in ("seed", "fold", "test", "logits", "maps", "val_loss", "test_loss", "offset", "gap"):
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
        assert np.asarray(getattr(a, name)).dtype == np.asarray(getattr(b, name)).dtype, name
    assert sorted(a.extras) == sorted(b.extras)
    for name, values in a.extras.items():
        assert_array_equal(values, b.extras[name], err_msg=name)


def made(maps, logits=None, **more):
    """A run of one image and one epoch for each map, or with `maps` of shape (E, N, h, w)."""
    maps = np.asarray(maps, np.float32)
    maps = maps.reshape(-1, *maps.shape[-3:])
    logits = np.zeros(maps.shape[:2], np.float32) if logits is None else np.asarray(logits, np.float32)
    losses = np.arange(len(maps), 0.0, -1)
    values = dict(seed=0, fold=0, test=np.arange(maps.shape[1]), val_loss=losses, test_loss=losses)
    return uc.Run(logits=logits, maps=maps, **(values | dict(offset=np.zeros(2), gap=np.array(0.0)) | more))


# ----------------------------------------------------------------------------------------------- backbone


def test_build_draws_from_its_seed_and_from_nothing_else():
    state = torch.get_rng_state()
    nets = [BACKBONE.build(seed) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    first, same, other = ([p.detach() for p in net.parameters()] for net in nets)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(nets[0].head.weight, nets[2].head.weight)


def test_build_starts_from_weights_and_trains_what_transfer_says(tmp_path):
    stored = BACKBONE.build(5)
    path = tmp_path / "squeezenet.pth"
    keys = models.ARCHITECTURES["squeezenet1_1"][0](weights=None).state_dict()
    keys |= {f"features.{name}": value for name, value in stored.features.state_dict().items()}
    torch.save(keys, path)
    start = uc.Backbone("squeezenet1_1", str(path), transfer="drs")
    drs, head = start.build(0), replace(start, transfer="head").build(0)
    x = torch.rand(2, 1, SIZE, SIZE)
    assert_allclose(drs.feature_maps(x).detach(), stored.feature_maps(x).detach(), atol=1e-6)
    assert torch.equal(head.feature_maps(x), stored.feature_maps(x))
    assert {n.split(".")[-1] for n, p in drs.features.named_parameters() if p.requires_grad} == {"gamma", "beta"}
    assert not any(p.requires_grad for p in head.features.parameters()) and head.head.weight.requires_grad
    assert torch.equal(drs.head.weight, head.head.weight)
    random = start.build(0, pretrained=False)
    assert not torch.allclose(random.feature_maps(x), stored.feature_maps(x))
    with pytest.raises(ValueError, match="transfer: 'most' is not 'drs', 'head' or 'all'"):
        replace(start, transfer="most").build(0)


# -------------------------------------------------------------------------------------------- Run.epoch


def losses(val, test):
    nan = [np.nan]
    return replace(made(np.zeros((4, 1, 2, 2))), val_loss=np.array(nan + val), test_loss=np.array([9.0, *test]))


def test_epoch_by_hand():
    run = losses(val=[3.0, 2.0, 2.5, 2.4, 1.0], test=[1.0, 4.0, 3.0, 0.5, 2.0])
    assert run.epoch() == 5 and run.epoch("test") == 4
    assert run.epoch(patience=3) == 5
    assert run.epoch(patience=2) == 2  # two epochs without a lower loss end it after the fourth
    assert run.epoch("test", patience=3) == 4 and run.epoch("test", patience=2) == 1
    assert losses([2.0, 1.0, 1.0], [1.0, 1.0, 1.0]).epoch() == 2  # the first of equal ones
    assert losses([], []).epoch() == losses([], []).epoch("test") == 0  # the untrained network is not chosen otherwise
    with pytest.raises(ValueError, match="'train' is not 'validation' or 'test'"):
        run.epoch("train")


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_epoch_stops_where_training_would(patience):
    rng = np.random.default_rng(patience)
    config_ = training.FitConfig(patience=patience)
    for _ in range(30):
        values = rng.integers(0, 9, 15).astype(float).tolist()
        history = []
        for value in values:
            if training._patience_over(history, config_):
                break
            history.append({"loss": value})
        assert losses(values, values).epoch(patience=patience) == training._best_epoch(history)
        cut = values[: len(history)]  # what such a training leaves: no patience is needed to read it
        assert losses(cut, cut).epoch() == training._best_epoch(history)


# ------------------------------------------------------------------------------------------------- points


def test_relative_points_by_hand():
    maps = np.zeros((2, 2, 4))
    maps[0, 0, 3], maps[0, 1, 1] = 1, -1
    maps[1, 1, 0], maps[1, 0, 0] = 5, -5
    expected = [[[0.25, 0.875], [0.75, 0.375]], [[0.75, 0.125], [0.25, 0.125]]]
    assert_allclose(uc.relative_points(maps), expected)
    assert_allclose(uc.relative_points(torch.tensor(maps)), expected)


def test_first_points_drift_to_the_edge():
    maps = np.zeros((1, 7, 7), np.float32)
    maps[0, 0, 6] = 1  # flat from the centre of the corner cell, (15.5, 207.5), to the corner
    maps[0, 2, 3], maps[0, 2, 2], maps[0, 3, 3] = -1, -0.5, -0.25
    where, tied = uc.first_points(maps)
    assert_allclose(where[0, 0], (0.5 / 224, 208.5 / 224))
    assert_allclose(where[0, 1], (2.5 / 7, 3.5 / 7), atol=1 / 224)
    assert tied.tolist() == [[True, False]]


def test_points_by_hand():
    data = discs(2)
    areas = [np.zeros((4, 8), np.uint8) for _ in range(4)]
    areas[0][0, 6:8] = 1  # pixels of cell (0, 3) of a 4 x 4 grid
    areas[0][3, 0] = 2
    areas[2][1, 2:4] = 4
    first, second = np.zeros((4, 4)), np.zeros((4, 4))
    first[0, 3], first[3, 0] = 1, -1  # drawn at (0, 6.5) and (3, 0.5)
    second[1, 1], second[2, 2] = -2, 3
    run = made([first, second], logits=[[0.5, -1.5]], test=np.array([0, 2]), seed=7, fold=4)
    frame = uc.points([run], areas, data)
    assert frame["index"].tolist() == [0, 2] and frame["source"].tolist() == ["discs/0a", "discs/1a"]
    assert frame["patient_id"].tolist() == ["p0", "p1"] and frame["label"].tolist() == [0, 1]
    assert frame["logit"].tolist() == [0.5, -1.5] and set(frame["seed"]) == {7} and set(frame["fold"]) == {4}
    hits = {(i, c) for i in (0, 1) for c in frame.columns if c[:4] in ("max_", "min_") and frame[c][i]}
    assert hits == {(0, "max_mass"), (0, "max_any"), (0, "min_ring"), (0, "min_any"), (1, "min_below"), (1, "min_any")}
    assert frame["max_mass"].dtype == bool


def test_points_agree_with_the_pointing_game(dataset):
    areas = uc.region_maps(dataset, progress=False, ring_mm=3.0)
    maps = np.random.default_rng(0).normal(size=(len(dataset), 7, 7))
    frame = uc.points([made(maps)], areas, dataset)
    for i, (values, area) in enumerate(zip(maps.astype(np.float32), areas, strict=True)):
        for short, which in (("max", "maximum"), ("min", "minimum")):
            expected = localization.pointing_game(values, area, which)
            assert {c: bool(frame[f"{short}_{c}"][i]) for c in expected} == expected


def test_points_of_an_epoch():
    maps = np.zeros((3, 1, 2, 2))
    for epoch, cell in enumerate([(0, 0), (0, 1), (1, 1)]):
        maps[epoch, 0][cell] = 1
    run = made(maps, logits=[[0.0], [1.0], [2.0]], val_loss=np.array([np.nan, 1, 2]), test_loss=np.array([3.0, 2, 1]))
    data = discs(1).subset([0])
    areas = [np.array([[1, 2], [0, 4]], np.uint8)]

    def seen(**options):
        row = uc.points([run], areas, data, **options).iloc[0]
        return row["logit"], next(c for c in localization.REGIONS if row[f"max_{c}"])

    assert seen() == seen(epoch=1) == (1.0, "ring")
    assert seen(early_stopping="test") == seen(epoch=2) == seen(epoch=99) == (2.0, "below")
    assert seen(epoch=0) == (0.0, "mass")


def test_measured_offset_is_added():
    values = np.zeros((1, 7, 7))
    values[0, 3, 3], values[0, 6, 0] = 1, -1  # drawn at 111.5; torchvision's padding looks 15.5 pixels above and left
    run = made(values, offset=np.array([-15.5, -15.5]) / 224, extras={"grad_cam": uc.relative_points(values)})
    area = np.zeros((224, 224), np.uint8)
    area[95:98, 95:98] = 1
    area[191:194, 0] = 4  # the minimum, drawn at (207.5, 15.5)
    data = discs(1).subset([0])
    for which in ("cam", "cam_first", "grad_cam"):
        assert not uc.points([run], [area], data, which)["max_mass"][0]
        row = uc.points([run], [area], data, which, align="measured").iloc[0]
        assert row["max_mass"] and (row["min_below"] or which == "cam_first")


def test_correction_finds_what_a_displaced_network_looks_at(dataset):
    """Three stride-2 convolutions with torchvision's padding draw a bright spot 3.5 pixels too far down and right."""
    layers = [nn.Conv2d(3 if k == 0 else 1, 1, 3, stride=2, padding=1, bias=False) for k in range(3)]
    net = models.Classifier(nn.Sequential(*layers), 1, {"in_channels": 1, "outputs": 1}).eval()
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(
                torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])).expand_as(layer.weight)
            )
        net.head.weight.fill_(1)
        net.normalize.mean.zero_()
    rng = np.random.default_rng(0)
    spots = rng.integers(12, 52, (80, 2))
    pictures = torch.zeros(80, 1, 64, 64, dtype=torch.uint8)
    for picture, (row, col) in zip(pictures, spots, strict=True):
        picture[0, row, col] = 255
    stack = training.Stack(pictures, torch.zeros(80, dtype=torch.long))
    offset = uc.measured_offset(net, stack, CPU)
    drawn = uc.relative_points(uc.explain(net, stack, CPU)[1])[:, 0]
    assert_allclose((drawn * 64 - 0.5 - spots).mean(0), 3.5, atol=0.8)
    assert_allclose(((drawn + offset) * 64 - 0.5 - spots).mean(0), 0, atol=0.8)


def test_points_refuse_what_the_runs_cannot_answer(dataset):
    data = dataset.subset([0, 1])
    area = np.zeros((8, 8), np.uint8)
    two, three = np.full((2, 2, 2), 0.5), np.full((3, 2, 2), 0.5)
    extras = {"grad_cam": two, "layer_cam": two, "cameras": two, "random_network": two, "logits_random_network": [0, 0]}
    run = made(np.zeros((2, 3, 3)), extras=extras | {"other": three, "logits_other": np.zeros(3)})
    get = functools.partial(uc.points, [run], [area, area], data)
    for which in ("grad_cam", "random_network", "layer_cam", "cameras"):
        assert len(get(which)) == 2
    for which in ("layer_cam", "cameras", "random_network"):
        with pytest.raises(ValueError, match=f"last layer of the trained network, not on '{which}'"):
            get(which, align="measured")
    for options in ({"early_stopping": "test"}, {"epoch": 0}):
        assert len(get("random_network", **options)) == 2
        with pytest.raises(ValueError, match="'grad_cam' is known for the network that validation stopping keeps"):
            get("grad_cam", **options)
    with pytest.raises(ValueError, match="'other' has points on 3 images, the run tested 2"):
        get("other")
    for which in ("saliency", "logits_other"):
        with pytest.raises(ValueError, match="is unknown, expected one of cam, cam_first, grad_cam"):
            get(which)
    with pytest.raises(ValueError, match="align: 'nominal' is not"):
        get(align="nominal")
    with pytest.raises(ValueError, match="runs: there is none"):
        uc.points([], [area, area], data)
    with pytest.raises(ValueError, match="areas: 1 for the 2 cases of discs"):
        uc.points([run], [area], data)


def test_regions_name_the_case():
    def without_mask(row):
        return replace(disc(row), mask=None) if row["source"].endswith("1b") else disc(row)

    def without_size(row):
        return replace(disc(row), pixel_mm=None) if row["source"].endswith("2a") else disc(row)

    assert [a.shape for a in uc.region_maps(discs(2), progress=False)] == [(SIZE, SIZE)] * 4
    with pytest.raises(ValueError, match="discs/1b: it has no mask"):
        uc.region_maps(discs(3, read=without_mask), progress=False)
    with pytest.raises(ValueError, match="discs/2a: pixel_mm: None"):
        uc.region_maps(discs(3, read=without_size), progress=False)
    assert len(uc.region_maps(discs(3, read=without_size), progress=False, ring_fraction=0.5)) == 6


# -------------------------------------------------------------------------------------------- one training


def test_run_is_consistent(trained, images, parts):
    run, model = trained
    n = len(parts["test"])
    assert run.logits.shape == (3, n) and run.maps.shape == (3, n, 3, 3)
    assert run.val_loss.shape == run.test_loss.shape == (3,) and np.isnan(run.val_loss[0])
    assert (run.seed, run.fold) == (3, 1) and run.offset.shape == (2,) and run.gap <= 1e-5
    assert_array_equal(run.test, parts["test"])
    untrained = uc.explain(BACKBONE.build(3), images.subset(run.test), CPU)
    assert_allclose(run.logits[0], untrained[0], atol=1e-5)  # rounding: training may change the memory layout
    assert_allclose(run.maps[0], untrained[1], atol=1e-5)
    assert not np.allclose(run.logits[0], run.logits[2])
    kept = run.epoch()
    logits, maps = uc.explain(model, images.subset(run.test), CPU)
    assert_array_equal(run.logits[kept], logits)
    assert_array_equal(run.maps[kept], maps)
    assert_allclose(maps.mean((1, 2)) + model.head.bias.item(), logits, atol=1e-5)
    labels = images.labels[run.test].numpy()
    expected = [log_loss(labels, 1 / (1 + np.exp(-row.astype(float)))) for row in run.logits]
    assert_allclose(run.test_loss, expected, rtol=1e-6)


def test_further_maps_and_controls(trained, images):
    run, model = trained
    assert set(run.extras) == {"grad_cam", "layer_cam", "cameras", "random_network", "logits_random_network"}
    n, kept = len(run.test), uc.relative_points(run.maps[run.epoch()])
    assert all(values.shape == ((n,) if name[:4] == "logi" else (n, 2, 2)) for name, values in run.extras.items())
    assert_allclose(run.extras["grad_cam"], kept)  # at the last layer Grad-CAM is the CAM
    x = images.subset(run.test).images.float() / 255
    assert_array_equal(run.extras["layer_cam"], uc.relative_points(cam.layer_cam(model, x, "features.7")))
    assert run.extras["cameras"].min() > 0 and run.extras["cameras"].max() < 1
    random = uc.explain(BACKBONE.build(3, pretrained=False), images.subset(run.test), CPU)
    assert_array_equal(run.extras["logits_random_network"], random[0])


def test_linear_head_is_a_logistic_regression(images, parts):
    model = replace(BACKBONE, transfer="head").build(0)
    features = model.feature_maps(images.images.float() / 255).mean((2, 3)).detach().numpy()
    train, labels = features[parts["train"]], images.labels[parts["train"]].numpy()
    mean, sd = train.mean(0), train.std(0) + 1e-6
    fit = LogisticRegression(C=0.01, max_iter=1000).fit((train - mean) / sd, labels)
    head = uc.linear_head(model, images.subset(parts["train"]), CPU)
    logits, maps = uc.explain(head, images, CPU)
    assert_allclose(logits, fit.decision_function((features - mean) / sd), atol=0.02)
    assert cam.identity_gap(head, torch.tensor(logits), torch.tensor(maps)) < 1e-4


def test_linear_runs_are_linear_heads(dataset, images):
    """The shortcut over stored features gives what setting the head and running the network gives."""
    runs = uc.linear_runs(dataset, images, BACKBONE, CPU, folds=2, seeds=[3, 4])
    assert [(r.seed, r.fold) for r in runs] == [(3, 0), (3, 1), (4, 0), (4, 1)]
    assert_array_equal(np.sort(np.concatenate([r.test for r in runs[:2]])), np.arange(len(dataset)))
    run, parts = runs[1], uc.fold_parts(dataset, 2, seed=3)[1]
    assert_array_equal(run.test, parts["test"])
    assert run.gap <= 1e-4 and run.epoch() == run.epoch("test") == 0
    learnt = images.subset(np.concatenate([parts["train"], parts["val"]]))
    head = uc.linear_head(replace(BACKBONE, transfer="head").build(0).eval(), learnt, CPU)
    logits, maps = uc.explain(head, images.subset(run.test), CPU)
    assert_allclose(run.logits[0], logits, atol=0.05)  # rounding of features that hardly vary in training
    assert_allclose(run.maps[0].mean((1, 2)), maps.mean((1, 2)), atol=0.05)
    labels = images.labels[run.test].numpy()
    assert run.test_loss[0] == pytest.approx(log_loss(labels, 1 / (1 + np.exp(-run.logits[0].astype(float)))), rel=1e-6)


def test_controls_of_a_pretrained_backbone(tmp_path, images, parts):
    path = tmp_path / "squeezenet.pth"
    torch.save(models.ARCHITECTURES["squeezenet1_1"][0](weights=None).state_dict(), path)
    start = replace(BACKBONE, weights=str(path), transfer="drs")
    found = uc._controls(start, images.subset(parts["train"]), images.subset(parts["test"]), 0, CPU)
    assert set(found) == {"random_network", "logits_random_network", "linear_head", "logits_linear_head"}
    tested = uc.tested_run(start.build(0).eval(), start, images.subset(parts["test"]), CPU, seed=0)
    assert "linear_head" not in tested.extras  # it would be fitted on the images that it is tested on
    assert "random_network" in tested.extras


def test_externals(trained, images, parts, dataset):
    other = discs(3, name="elsewhere", read=lambda row: disc(row.replace({row["number"]: row["number"] + 100})))
    outside = training.stack(other, SIZE, progress=False)
    run, model = train(images, parts, externals={"elsewhere": outside})
    assert_same(replace(run, extras=trained[0].extras), trained[0])
    logits, maps = uc.explain(model, outside, CPU)
    assert_array_equal(run.extras["logits_elsewhere"], logits)
    assert_array_equal(run.extras["elsewhere"], uc.relative_points(maps))
    areas = uc.region_maps(other, progress=False)
    frame = uc.points([replace(run, test=np.arange(len(other)))], areas, other, "elsewhere", align="measured")
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
    run, model = uc.train_run(start, images, parts, FIT, CPU, 3, base=base, extras=False, progress=False)
    assert run.extras == {} and model.spec["drs"]
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in before.items())
    x = images.images[:2].float() / 255
    fresh = uc._transferred(start, base, 3).eval()
    assert_allclose(fresh.feature_maps(x).detach(), base.feature_maps(x).detach(), atol=1e-4)
    head = uc._transferred(replace(BACKBONE, transfer="head"), base, 3)
    assert not any(p.requires_grad for p in head.features.parameters())
    assert all(p.requires_grad for p in uc._transferred(BACKBONE, base, 3).parameters())


# ---------------------------------------------------------------------------------- storing and resuming


def test_stored_run_is_the_run(trained, tmp_path):
    path = tmp_path / "folder" / "run.npz"
    uc.save_run(trained[0], path)
    assert_same(uc.load_run(path), trained[0])
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]


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
        patch.setattr(uc, name, killer(getattr(uc, name), at))
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


# -------------------------------------------------------------------------------------- cross-validation


def test_fold_parts(dataset):
    folds = uc.fold_parts(dataset, 2, seed=0)
    everything = np.arange(len(dataset))
    for parts in folds:
        assert_array_equal(np.sort(np.concatenate(list(parts.values()))), everything)
        patients = [set(dataset.patient_ids[indices]) for indices in parts.values()]
        assert not patients[0] & patients[1] and not patients[0] & patients[2] and not patients[1] & patients[2]
        assert len(parts["val"]) < len(parts["train"])
    assert_array_equal(np.sort(np.concatenate([parts["test"] for parts in folds])), everything)
    assert uc.fold_parts(dataset, 2, seed=1)[0]["test"].tolist() != folds[0]["test"].tolist()


def test_cross_validate_shares_a_folder(dataset, images, tmp_path, monkeypatch):
    fit = training.FitConfig(epochs=1, batch_size=8)
    go = functools.partial(
        uc.cross_validate, dataset, images, BACKBONE, fit, CPU, tmp_path, folds=2, shuffle_labels=True, progress=False
    )
    runs = go(seeds=[0])
    assert [(r.seed, r.fold) for r in runs] == [(0, 0), (0, 1)]
    assert_array_equal(np.sort(np.concatenate([r.test for r in runs])), np.arange(len(dataset)))
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["seed0-fold0.npz", "seed0-fold1.npz"]

    called = []

    def counting(*arguments, **options):
        called.append(arguments[5:7])
        return uc.tested_run(BACKBONE.build(0).eval(), BACKBONE, images, CPU, seed=arguments[5], extras=False), None

    monkeypatch.setattr(uc, "train_run", counting)
    for a, b in zip(go(seeds=[0]), runs, strict=True):
        assert_same(a, b)
    assert called == []
    assert len(go(seeds=range(2))) == 4
    assert called == [(1, 0), (1, 1)] and len(list(tmp_path.iterdir())) == 1  # another seed, the same folder
    go(seeds=[0], folds=3)
    assert (
        called[2:] == [(0, 0), (0, 1), (0, 2)] and len(list(tmp_path.iterdir())) == 2
    )  # other settings, another folder
