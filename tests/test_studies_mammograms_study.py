import json

import pytest

from xai_lib.checkpoints import CheckpointError
from xai_lib.config import runtime
from xai_lib.stored_tables import digest
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms import study as ms
from xai_lib.studies.mammograms.thesis_methods import Setup

CHOSEN = mn.WholeSettings(patients=2, size=(128, 64), architecture="squeezenet1_1")


def study(seed=0, counts=None, card=None, **more):
    return ms.study_of(
        CHOSEN, mn.fresh("squeezenet1_1", None, 0), card, Setup(), counts or ms.Counts(), seed=seed, **more
    )


def test_profiles():
    for name, rows, window in (("smoke", 128, 32), ("lab", 512, 30), ("paper", 1024, 60)):
        chosen, setup, counts = ms.profile_settings(name)
        assert chosen.size == (rows, rows // 2) and setup.window == window == 2 * setup.stride
        assert counts.ablations <= counts.main <= counts.cheap and set(counts.costly) <= set(counts.contrasts)
    assert setup.steps == 200 and setup.segments == 150 and setup.samples == 200  # 3.2.4
    assert ms.profile_settings("lab")[0] == mn.WholeSettings()  # the shipped network and tables were made with it
    with pytest.raises(ValueError, match="profile: 'fast' is unknown"):
        ms.profile_settings("fast")


def test_paper_profile_trains_as_the_thesis_says():
    fit = ms.profile_settings("paper")[0].fit
    assert (fit.optimizer, fit.learning_rate, fit.schedule, fit.loss) == ("sgd", 0.01, "warm_restarts", "cross_entropy")


def test_key_names_all_that_matters():
    key = study().key
    json.dumps(key)
    assert digest(study().key) == digest(key)
    others = [study(seed=1), study(counts=ms.Counts(main=3)), study(precision="bf16"), study(card={"sha256": "a"})]
    assert len({digest(other.key) for other in others} | {digest(key)}) == 5
    assert study(counts=ms.Counts(main=3)).base == study().base  # an image's rows outlive other counts


def test_networks_of_a_study():
    one = study()
    assert set(one.networks) == {"trained", "untrained"} and not any(n.training for n in one.networks.values())
    assert not (one.networks["trained"].head.weight == one.networks["untrained"].head.weight).any()
    assert len(one.twins) == len(one.dataset) and one.twins.labels.sum() == 0


def test_lab_loads_the_shipped_network(tmp_path, monkeypatch):
    monkeypatch.setattr(ms.config, "repository_dir", lambda: tmp_path)
    with pytest.raises(CheckpointError, match="mammogram_squeezenet1_1"):
        ms.network(CHOSEN, "lab", 0, runtime("cpu"), tmp_path)
    model = mn.fresh("squeezenet1_1", None, 0)
    file = tmp_path / "data" / "checkpoints" / "mammogram_squeezenet1_1.safetensors.gz"
    ms.checkpoints.save(model, file, {"seed": 0})
    loaded, card = ms.network(CHOSEN, "lab", 0, runtime("cpu"), tmp_path)
    assert card is not None and card["seed"] == 0 and (loaded.head.weight == model.head.weight).all()


def test_others_train(tmp_path, monkeypatch):
    """What is trained is handed over in eval mode, without a card."""
    calls = []
    monkeypatch.setattr(ms.mn, "whole_images", lambda chosen, seed, progress: calls.append(seed))
    monkeypatch.setattr(ms.mn, "train_whole", lambda *a, **k: (mn.fresh("squeezenet1_1", None, 0).train(), {}))
    for profile, retrain in (("smoke", False), ("lab", True)):
        model, card = ms.network(CHOSEN, profile, 7, runtime("cpu"), tmp_path, retrain)
        assert card is None and not model.training
    assert calls == [7, 7]
