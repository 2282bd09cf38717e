from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from ultrasound_discs import BACKBONE, SIZE, assert_same, made

from xai_lib import models, training
from xai_lib.studies.ultrasound import runs as ur


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
    start = ur.Backbone("squeezenet1_1", str(path), transfer="drs")
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


def test_log_loss_by_hand():
    assert ur.log_loss(np.array([1, 0]), np.full(2, np.log(3))) == pytest.approx(np.log(16 / 3) / 2)
    assert ur.log_loss(np.array([0]), np.array([800.0], np.float32)) == 800  # no overflow


def test_stored_run_is_the_run(tmp_path):
    extras = {"grad_cam": np.full((2, 2, 2), 0.25), "logits_random_network": np.array([0.5, -1], np.float32)}
    losses = np.array([np.nan, 0.5])
    run = made(np.arange(16).reshape(2, 2, 2, 2), seed=3, fold=4, test=np.array([7, 9]), extras=extras, val_loss=losses)
    path = tmp_path / "folder" / "run.npz"
    ur.save_run(run, path)
    assert_same(ur.load_run(path), run)
    assert [p.name for p in path.parent.iterdir()] == ["run.npz"]
