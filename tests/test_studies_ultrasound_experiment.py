import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy.ndimage import gaussian_filter

from xai_lib import checkpoints, config, localization, training
from xai_lib.data import DataError, splits
from xai_lib.data.case import Case, CaseDataset
from xai_lib.studies.ultrasound import experiment as ue
from xai_lib.studies.ultrasound import training as ultrasound_training
from xai_lib.studies.ultrasound.cam import explain
from xai_lib.studies.ultrasound.runs import Run, load_run
from xai_lib.training import FitConfig

CPU = config.runtime("cpu", threads=1)
SEED = 3


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of its own, and two of the four cues."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XAI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(ue, "CUES", ("margin", "posterior"))
        yield


# ----------------------------------------------------------------------------------- synthetic: train, load

TINY = replace(
    ue.settings("smoke"),
    masses=12,
    cue_masses=12,
    size=64,
    fit=FitConfig(epochs=1, batch_size=8, patience=None),
    cue_fit=FitConfig(epochs=1, batch_size=8),
    replicates=10,
)


def go(chosen, folder, seed=SEED, **options):
    return ue.carry_out(chosen, seed, CPU, folder, progress=False, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shipped")


@pytest.fixture(scope="module")
def trained(folder):
    return go(TINY, folder)


@pytest.fixture(scope="module")
def loaded(trained, folder):
    return go(replace(TINY, checkpoint=str(folder)), folder / "unused", seed=SEED + 1)


@pytest.fixture(scope="module")
def cues(trained, folder):
    return ue.planted_cues(TINY, trained.model, SEED, CPU, folder)


def test_training_leaves_network_run_and_control(trained, folder):
    names = {"ultrasound_resnet10.safetensors", "ultrasound_resnet10.json", "ultrasound_resnet10.npz"}
    assert names | {"ultrasound_shuffled.npz"} <= {p.name for p in folder.iterdir()}
    card = json.loads((folder / "ultrasound_resnet10.json").read_text())
    assert card == trained.card
    assert (card["profile"], card["seed"], card["dtype"], card["kept_epoch"]) == ("smoke", SEED, "float16", 1)
    assert card["data"] == ue.data.load(ue.SYNTHETIC, seed=SEED, masses=12, size=64).fingerprint
    stored = load_run(folder / "ultrasound_resnet10.npz")
    (run,) = trained.runs
    assert_array_equal(stored.logits, run.logits)
    assert stored.maps.dtype == np.float16
    assert_allclose(stored.maps, run.maps, atol=2e-3 * np.abs(run.maps).max())


def test_tested_masses_were_not_trained_on(trained):
    (run,) = trained.runs
    whole = ue.data.load(ue.SYNTHETIC, seed=SEED, masses=12, size=64)
    parts = splits.by_patient(whole, dict(zip(("train", "val", "test"), TINY.parts, strict=True)), SEED)
    test = whole.table["source"].to_numpy()[parts["test"]]
    assert trained.dataset.table["source"].tolist() == test.tolist()
    train = whole.subset(np.concatenate([parts["train"], parts["val"]]))
    assert not set(trained.dataset.patient_ids) & set(train.patient_ids)
    n = len(trained.dataset)
    assert_array_equal(run.test, np.arange(n))
    assert run.logits.shape == (2, n) and run.maps.shape == (2, n, 2, 2)
    assert trained.grid == (2, 2)
    assert set(run.extras) == {"grad_cam", "layer_cam", "cameras", "random_network", "logits_random_network"}
    assert run.gap < 1e-4
    assert [a.shape for a in trained.areas] == [(64, 64)] * n
    case = trained.dataset[0]
    assert_array_equal(trained.areas[0], localization.regions(case.mask.numpy(), case.pixel_mm, ring_mm=5.0))


def test_shuffled_control_keeps_one_epoch(trained, folder):
    (shuffled,) = trained.shuffled
    assert shuffled.logits.shape == (1, len(trained.dataset)) and shuffled.maps.shape[0] == 1
    assert shuffled.epoch() == 0
    assert not np.allclose(shuffled.logits[0], trained.runs[0].logits[1])
    assert not np.allclose(shuffled.logits[0], trained.runs[0].logits[0])  # it is not the untrained network
    assert_array_equal(load_run(folder / "ultrasound_shuffled.npz").logits, shuffled.logits)


def test_the_network_given_back_is_the_one_that_was_stored(trained, folder):
    """Scales that are trained on it fit the network that is loaded later (and that was rounded to float16)."""
    stored, _ = checkpoints.load(folder / ue.NETWORK)
    for (name, ours), theirs in zip(trained.model.state_dict().items(), stored.state_dict().values(), strict=True):
        assert torch.equal(ours.cpu(), theirs), name
    assert not trained.model.training


def test_loaded_network_gives_the_same(trained, loaded):
    (a,), (b,) = trained.runs, loaded.runs
    assert loaded.card == trained.card
    assert loaded.dataset.fingerprint == trained.dataset.fingerprint  # the card's seed counts, not the one given
    kept = a.epoch()
    assert b.epoch() == kept == 1
    assert_allclose(b.logits[kept], a.logits[kept], atol=1e-3)
    assert_allclose(b.maps[kept], a.maps[kept], atol=1e-2)
    assert not np.array_equal(b.logits[kept], a.logits[kept])  # computed now, from weights in float16
    assert_array_equal(b.logits[0], a.logits[0])  # epochs that are gone are read
    assert b.maps.dtype == np.float32
    assert_array_equal(b.val_loss, a.val_loss)
    assert_array_equal(b.test_loss, a.test_loss)
    assert_array_equal(b.test, a.test)
    assert set(b.extras) == set(a.extras)
    assert_array_equal(loaded.shuffled[0].logits, trained.shuffled[0].logits)
    assert all(np.array_equal(x, y) for x, y in zip(loaded.areas, trained.areas, strict=True))


def test_loading_writes_nothing(loaded, folder):
    assert not (folder / "unused").exists()


def copy_of(folder, target, **changes):
    """The network of `folder` with another card."""
    target.mkdir()
    for path in folder.glob("ultrasound_*"):
        shutil.copy(path, target)
    card = target / "ultrasound_resnet10.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | changes))
    return replace(TINY, checkpoint=str(target))


@pytest.mark.parametrize(
    "changes", [{"data": "0" * 64}, {"data": None}, {"seed": SEED + 1}, {"parts": [0.8, 0.1, 0.1]}]
)
def test_checkpoint_of_another_generator_is_refused(trained, folder, tmp_path, changes):
    chosen = copy_of(folder, tmp_path / "old", **changes)
    with pytest.raises(checkpoints.CheckpointError, match=r"old/ultrasound_resnet10.*other images.*retrain=True"):
        go(chosen, tmp_path)


def test_checkpoint_of_another_network_is_refused(trained, folder, tmp_path):
    chosen = copy_of(folder, tmp_path / "other", architecture="resnet18")
    with pytest.raises(checkpoints.CheckpointError, match="architecture is 'resnet18', expected 'resnet10'"):
        go(chosen, tmp_path)


class Trains(Exception):
    pass


def test_when_it_trains(tmp_path, monkeypatch):
    def train(*arguments):
        raise Trains

    monkeypatch.setattr(ue, "_train_synthetic", train)
    nowhere = replace(TINY, checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(Trains):
        go(TINY, tmp_path)
    with pytest.raises(Trains):
        go(nowhere, tmp_path, retrain=True)
    with pytest.raises(checkpoints.CheckpointError, match=r"nowhere/ultrasound_resnet10\.json: missing"):
        go(nowhere, tmp_path)


# ------------------------------------------------------------------------------------------- planted cues


def test_planted_cues_train_scales_and_head(trained, cues, folder):
    assert list(cues) == ["margin", "posterior"]
    before = checkpoints.load(folder / ue.NETWORK)[0]
    for cue, done in cues.items():
        assert (done.card["cue"], done.card["dtype"]) == (cue, "float32")
        assert done.card["partial"] and done.card["drs"]
        assert (folder / f"ultrasound_cue_{cue}.safetensors").stat().st_size < 200_000
        (run,) = done.runs
        assert run.extras == {} and len(run.test) == len(done.areas) == len(done.dataset)
        own = done.model.state_dict()
        frozen = [n for n, _ in before.named_parameters() if n in own and not n.startswith("head")]
        assert frozen and all(torch.equal(own[n], before.state_dict()[n]) for n in frozen)
    assert len({done.dataset.fingerprint for done in cues.values()}) == 2  # every cue has its own images


def test_planted_cues_load_on_the_loaded_network(cues, loaded, folder):
    again = ue.planted_cues(replace(TINY, checkpoint=str(folder)), loaded.model, SEED, CPU, folder / "unused")
    assert not (folder / "unused").exists()
    for cue, done in cues.items():
        found = again[cue]
        assert found.card == done.card
        assert found.dataset.table["source"].tolist() == done.dataset.table["source"].tolist()
        (a,), (b,) = done.runs, found.runs
        assert b.logits.shape == (1, len(found.dataset))
        assert_allclose(b.logits[0], a.logits[a.epoch()], atol=1e-3)
        assert_allclose(b.maps[0], a.maps[a.epoch()], atol=1e-3)


# ----------------------------------------------------------------------------------------------- real data


def write_busi(folder, benign=8, malignant=8, shape=(70, 90)):
    """Images that are not alike, with a disc as the mass."""
    for label, count in (("benign", benign), ("malignant", malignant)):
        (folder / label).mkdir(parents=True)
        for k in range(1, count + 1):
            rng = np.random.default_rng([k, label == "benign"])
            image = gaussian_filter(rng.standard_normal(shape), 4)
            image = np.round(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)
            rows, cols = np.indices(shape)
            mask = np.hypot(rows - rng.integers(25, 45), cols - rng.integers(30, 60)) < rng.integers(6, 14)
            Image.fromarray(image).save(folder / label / f"{label} ({k}).png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / label / f"{label} ({k})_mask.png")


@pytest.fixture(scope="module")
def busi_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "Dataset_BUSI_with_GT"
    write_busi(root)
    return root


@pytest.fixture
def real(busi_root, trained, folder):
    """Settings of a tiny cross-validation."""

    def chosen(transfer):
        full = ue.settings(
            "lab", "busi", str(busi_root), "squeezenet1_1", folds=2, repetitions=1, transfer=transfer, epochs=1
        )
        random_start = replace(full.backbone, weights=None)  # ImageNet weights would be a download
        return replace(
            full, fit=FitConfig(epochs=1, batch_size=4), checkpoint=str(folder), size=64, backbone=random_start
        )

    return chosen


def assert_folds(runs, n, seeds):
    assert [(r.seed, r.fold) for r in runs] == [(s, f) for s in seeds for f in (0, 1)]
    for s in seeds:
        assert_array_equal(np.sort(np.concatenate([r.test for r in runs if r.seed == s])), np.arange(n))


def test_cross_validation_with_scales(real, tmp_path, monkeypatch):
    done = go(real("drs"), tmp_path / "out")
    n = len(done.dataset)
    assert (done.dataset.name, n) == ("busi", 16)
    assert_folds(done.runs, n, [SEED])
    assert_folds(done.shuffled, n, [SEED])
    assert done.runs[0].logits.shape == (2, len(done.runs[0].test)) and done.grid == (3, 3)
    for run, shuffled in zip(done.runs, done.shuffled, strict=True):
        assert_array_equal(run.logits[0], shuffled.logits[0])  # the same untrained network
        assert not np.allclose(run.logits[1], shuffled.logits[1])
        assert shuffled.extras == {}
    assert done.externals == {}  # another set is not looked for beside a folder given by hand
    mask = done.dataset[0].mask.numpy()
    assert_array_equal(done.areas[0], localization.regions(mask, ring_fraction=0.567))
    assert done.card["sha256"] and done.model.spec["architecture"] == "resnet10"  # the shipped network, to look into
    assert not (tmp_path / "out").exists()
    stored = sorted(p.name for p in (config.cache_dir() / "ultrasound").rglob("seed3-fold*.npz"))
    assert stored == ["seed3-fold0.npz"] * 2 + ["seed3-fold1.npz"] * 2  # real and shuffled labels

    def train(*arguments):
        raise Trains

    monkeypatch.setattr(ultrasound_training, "train_run", train)
    again = go(real("drs"), tmp_path)  # finished folds are read
    assert_array_equal(again.runs[1].logits, done.runs[1].logits)
    with pytest.raises(Trains):
        go(real("drs"), tmp_path, seed=SEED + 1)


def test_cross_validation_with_a_linear_head(real, tmp_path):
    done = go(replace(real("linear"), repetitions=2), tmp_path)
    assert_folds(done.runs, 16, [SEED, SEED + 1])
    assert done.shuffled == [] and done.externals == {}
    for run in done.runs:
        assert run.logits.shape == (1, 8) and run.gap < 1e-4 and run.extras == {}
    assert ue.training_length(done)["epoch"].tolist() == [0]


def test_shipped_network_as_it_is(real, trained, folder, tmp_path):
    done = go(real("none"), tmp_path)
    (run,) = done.runs
    assert_array_equal(run.test, np.arange(16))
    images = training.stack(done.dataset, 64, progress=False)
    logits, maps = explain(trained.model, images, CPU)
    assert_allclose(run.logits[0], logits, atol=1e-5)
    assert_allclose(run.maps[0], maps, atol=1e-4)
    assert done.card == trained.card and "linear_head" not in run.extras


def test_missing_folder(real, tmp_path):
    with pytest.raises(DataError, match="nothing"):
        go(replace(real("drs"), data_root=str(tmp_path / "nothing")), tmp_path)


# ------------------------------------------------------------------------ stopping and length of training


def by_hand(labels, logits, places, **more):
    """One run over a data set of one image per patient, on a 3 x 3 map.

    Args:
        labels: of the images.
        logits: (E, N).
        places: (E, N) cell 0 to 8 of the map's maximum; the minimum is always cell 8.
    """
    logits = np.array(logits, np.float32)
    maps = np.zeros((*logits.shape, 9), np.float32)
    maps[..., 8] = -1
    np.put_along_axis(maps, np.array(places)[..., None], 1.0, axis=2)
    losses = np.array([np.nan, *range(len(logits) - 1, 0, -1)])  # the last epoch is the best
    values = {"seed": 0, "fold": 0, "val_loss": losses, "test_loss": losses} | more
    run = Run(
        test=np.arange(len(labels)),
        logits=logits,
        maps=maps.reshape(*logits.shape, 3, 3),
        offset=np.zeros(2),
        gap=np.array(0.0),
        **values,
    )
    table = pd.DataFrame(
        [{"source": f"s{i}", "label": y, "patient_id": f"p{i}", "view": "a"} for i, y in enumerate(labels)]
    )

    def read(row):
        return Case(torch.zeros(1, 3, 3), row["label"], None, torch.zeros(0, 4), None, row["patient_id"], "a", "s")

    areas = np.zeros((3, 3), np.uint8)
    areas[0] = list(localization.REGIONS.values())  # cells 0, 1, 2: mass, ring, below
    return run, CaseDataset("by hand", table, read, parameters={}), [areas] * len(labels)


def test_stopping_by_hand():
    """Benign, benign, and two malignant images, of which epoch 1 ranks only the first rightly, epoch 2 the second.

    Each half holds one of them, chooses the epoch that suits it (AUC 1), and the other half gets 0.
    """
    logits = [[-9, -9, 9, 9], [-3, -3, 3, -5], [-1, -1, -2, 2]]
    run, dataset, areas = by_hand([0, 0, 1, 1], logits, np.full((3, 4), 4))
    found = ue.stopping(ue.Done(dataset, areas, [run], None, {}), repeats=5).set_index("stopping")
    assert found.index.tolist() == ["validation", "test"]
    assert found.loc["test"].to_dict() == {"epoch": 1.5, "auc_same": 1.0, "auc_fresh": 0.0}
    assert found.loc["validation"].to_dict() == {"epoch": 2.0, "auc_same": 0.5, "auc_fresh": 0.5}


def test_stopping_of_several_runs_is_averaged():
    """A second run that ranks everything rightly after its only epoch; the untrained network is never chosen."""
    first, dataset, areas = by_hand(
        [0, 0, 1, 1], [[-9, -9, 9, 9], [-3, -3, 3, -5], [-1, -1, -2, 2]], np.full((3, 4), 4)
    )
    second, _, _ = by_hand([0, 0, 1, 1], [[-9, -9, 9, 9], [-1, -2, 1, 2]], np.full((2, 4), 4), fold=1)
    found = ue.stopping(ue.Done(dataset, areas, [first, second], None, {}), repeats=2).set_index("stopping")
    assert found.loc["test"].to_dict() == {"epoch": 1.25, "auc_same": 1.0, "auc_fresh": 0.5}
    assert found.loc["validation"].to_dict() == {"epoch": 1.5, "auc_same": 0.75, "auc_fresh": 0.75}


def test_training_length_by_hand():
    """Epochs 0, 1, 2, 4 and the last, 5. At even epochs the second malignant image is wrong and does not count."""
    wrong, right = [-1, -1, 1, -2], [-1, -1, 1, 2]
    logits = [wrong, right, wrong, right, wrong, right]
    #         benign hit: mass, nothing; malignant: ring, below
    places = [[0, 4, 1, 2]] * 5 + [[0, 0, 0, 0]]
    run, dataset, areas = by_hand([0, 0, 1, 1], logits, places)
    found = ue.training_length(ue.Done(dataset, areas, [run], None, {}))
    assert found.columns.tolist() == ["epoch", "auc", "mass", "ring", "below", "any"]
    assert found["epoch"].tolist() == [0, 1, 2, 4, 5]
    assert found["auc"].tolist() == [0.5, 1, 0.5, 0.5, 1]
    assert_allclose(found["mass"], [1 / 3, 1 / 4, 1 / 3, 1 / 3, 1])
    assert_allclose(found["ring"], [1 / 3, 1 / 4, 1 / 3, 1 / 3, 0])
    assert_allclose(found["below"], [0, 1 / 4, 0, 0, 0])
    assert_allclose(found["any"], [2 / 3, 3 / 4, 2 / 3, 2 / 3, 1])


def test_training_length_takes_a_shorter_run_at_its_end():
    short, dataset, areas = by_hand([0, 1], [[0, 1], [1, 0]], np.zeros((2, 2), int))
    long, _, _ = by_hand([0, 1], [[0, 1]] * 4, np.zeros((4, 2), int), fold=1)
    found = ue.training_length(ue.Done(dataset, areas, [short, long], None, {}))
    assert found["epoch"].tolist() == [0, 1, 2, 3]
    assert found["auc"].tolist() == [1, 0.5, 0.5, 0.5]


def test_paths_of_the_shipped_network():
    assert Path(ue.NETWORK).suffix == ".safetensors"
    assert ue.settings("lab").backbone.name in ue.NETWORK
