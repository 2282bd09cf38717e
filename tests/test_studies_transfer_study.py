"""Study 4's settings, images and networks, with a tiny network."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from test_knowledge_transfer import tiny, weights

from xai_lib import checkpoints, models
from xai_lib.config import runtime
from xai_lib.data.synthetic.mammogram_masses import confounders
from xai_lib.studies.transfer import study as ks

CPU = runtime("cpu", threads=1)


def small():
    """The study at `smoke`, smaller still."""
    return replace(ks.settings("smoke"), architecture="tiny", size=64, pixel_mm=0.6, explained=2)


@pytest.fixture(autouse=True)
def _tiny_network(monkeypatch, tmp_path):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "cache"))
    make = lambda weights=None: tiny((4, 4, 4, 6, 8), int(torch.randint(1000, ())))  # noqa: E731
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", (make, lambda net: net.features, 8))


@pytest.fixture(scope="module")
def sets():
    return ks.images(small(), 0)


def test_profiles():
    lab, smoke, paper = (ks.settings(name) for name in ("lab", "smoke", "paper"))
    assert lab.checkpoint is not None and smoke.checkpoint is None and paper.checkpoint is None
    assert 2 * lab.patients == 280 and lab.folds == 5  # the paper has 274 lesions
    assert paper.size == 224 and paper.imagenet.weights == "imagenet" and paper.fit.augment == "roi"
    assert smoke.imagenet is None and smoke.fit.epochs == 1
    with pytest.raises(ValueError, match="profile"):
        ks.settings("big")


def test_a_file_of_weights_has_the_key_of_its_hash(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"weights")
    start = ks.settings("lab", str(file)).imagenet
    assert replace(start, weights=start.key["weights"]).key == start.key
    assert ks.settings("lab").imagenet.key["weights"] == ks.WEIGHTS and len(ks.WEIGHTS) == 64


def test_tests_of_the_shift_show_the_same_masses(sets):
    same, none, reverse = (sets.shift[name] for name in ("same", "none", "reversed"))
    assert list(sets.shift) == ["train", "same", "none", "reversed"]
    for i in range(3):
        assert torch.equal(same[i].mask, none[i].mask) and torch.equal(same[i].mask, reverse[i].mask)
    assert not none.table["calcifications"].any()
    many = ks.images(replace(small(), tested=200), 0).shift
    tied = ("train", "same", "reversed")
    hints = {name: np.corrcoef(many[name].labels, many[name].table["calcifications"])[0, 1] for name in tied}
    assert hints["same"] > 0.8 and hints["reversed"] < -0.8
    assert not set(many["train"].table["contrast"]) & set(many["same"].table["contrast"])


def test_moved_masses_and_twins(sets):
    centred, shifted, twin = (sets.moved[name] for name in ("centred", "shifted", "twin"))
    assert_array_equal(centred.labels, twin.labels)
    for i in range(3):
        assert torch.equal(centred[i].mask, twin[i].mask) and not torch.equal(centred[i].image, twin[i].image)
        far = (centred[i].mask.nonzero().double().mean(0) - shifted[i].mask.nonzero().double().mean(0)).norm()
        assert far == pytest.approx(0.22 * 64, abs=1.5)
    assert torch.equal(centred[0].image[0, :8], twin[0].image[0, :8])  # far from the mass nothing has changed


def test_regions(sets):
    main = sets.main
    found = {"calcifications": ks.calcified(main), "dense": ks.dense(main)}
    assert all(region.shape == (len(main), 64, 64) and region.dtype == torch.bool for region in found.values())
    with_specks = int(np.flatnonzero(main.table["calcifications"])[0])
    row, col = confounders(main, with_specks).calcifications.nonzero()[0].tolist()
    around = found["calcifications"][with_specks, max(row - 3, 0) : row + 4, max(col - 3, 0) : col + 4]
    assert around.all()
    for name in found:
        assert_array_equal(found[name].flatten(1).any(1).numpy(), main.table[name].to_numpy())


def test_networks_are_trained_stored_and_read_again(tmp_path):
    ready = ks.prepare(small(), 3, CPU, tmp_path, progress=False)
    assert list(ready.networks) == ["start", "fine-tuning", "transfer", "masks"] and ready.seed == 3
    start, tuned = weights(ready.networks["start"]), weights(ready.networks["transfer"])
    moved = {name.split(".")[1] for name in start if not torch.equal(start[name], tuned[name])}
    assert {"conv4", "norm4"} <= moved <= {"conv4", "norm4", "weight", "bias"}
    again = ks.prepare(replace(small(), checkpoint=str(tmp_path)), 0, CPU, tmp_path / "none", progress=False)
    assert again.seed == 3 and not (tmp_path / "none").exists()
    for name, network in ready.networks.items():
        both = zip(weights(network).values(), weights(again.networks[name]).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in both)


def test_networks_of_other_images_are_refused(tmp_path):
    ks.prepare(small(), 0, CPU, tmp_path, progress=False)
    card = checkpoints.card_path(tmp_path / ks.checkpoint_name(small(), "transfer"))
    card.write_text(json.dumps(json.loads(card.read_text()) | {"data": "other"}))
    with pytest.raises(checkpoints.CheckpointError, match="made for other images"):
        ks.prepare(replace(small(), checkpoint=str(tmp_path)), 0, CPU, tmp_path, progress=False)
