"""study: profiles, ensembles trained, stored and loaded, and the untrained control."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cdmam_smoke import STUDY, coarse, trained

from xai_lib import checkpoints
from xai_lib.iqa_network import predict
from xai_lib.studies.omig import iqa_training
from xai_lib.studies.omig import study as study_of
from xai_lib.studies.omig.study import BRIGHT, PAPER, READER, SHUFFLED, UNTRAINED


@pytest.fixture(scope="module", autouse=True)
def small():
    with coarse():
        yield


def images_of(ensemble, count=3):
    shape = (count, ensemble.course.size, ensemble.course.size)
    return np.random.default_rng(0).normal(ensemble.mean, ensemble.sd, shape).astype(np.float32)


def test_the_papers_profile():
    study = study_of.settings("paper")
    course = study.courses[PAPER]
    assert (course.size, course.hidden, course.members, course.sigma) == (250, 512, 10, "constant")
    assert (course.learning_rate, course.weight_decay, course.dropout, course.batch) == (1e-5, 1e-4, 0.2, 50)
    assert course.images == (52800 + 4800) * 300 and course.schedule == "constant" and not course.refit_sigma
    assert course.settings == 52800 // 1200 and len(course.stages) == 4 and len(course.stages[-1]) == 6
    assert (study.virtual_images, study.map_steps, study.c) == (5000, 50, 1.0)
    assert study.checkpoint is None


def test_profiles():
    lab, smoke = (study_of.settings(name) for name in ("lab", "smoke"))
    assert lab.checkpoint is not None and smoke.checkpoint is None
    assert set(lab.courses) == {PAPER, READER, BRIGHT, SHUFFLED} == set(study_of.settings("paper").courses)
    assert set(smoke.courses) == {PAPER, READER}
    for name in ("lab", "paper"):
        courses = study_of.settings(name).courses
        assert [k for k, c in courses.items() if c.inverted] == [BRIGHT]
        assert [k for k, c in courses.items() if c.shuffled] == [SHUFFLED]
        assert [k for k, c in courses.items() if c.unit == "log um"] == [READER]
    with pytest.raises(ValueError, match="profile: 'tiny'"):
        study_of.settings("tiny")


def test_ensembles_and_phantom():
    ready, folder = trained()
    assert {name: len(e.members) for name, e in ready.ensembles.items()} == {PAPER: 2, READER: 1, UNTRAINED: 2}
    assert ready.phantom.margin == 0.14 and ready.phantom.shape == (585, 372)
    for ensemble in ready.ensembles.values():
        assert not any(m.training or any(p.requires_grad for p in m.parameters()) for m in ensemble.members)
        said = ensemble.predict(images_of(ensemble))
        assert said.mean.shape == (3, 12) and torch.isfinite(said.mean).all() and (said.total > 0).all()
    files = {"cdmam_paper_like", "cdmam_disc_reader"}
    assert {p.name for p in folder.iterdir()} == {f"{f}.{e}" for f in files for e in ("json", "safetensors.gz")}


def test_an_ensemble_normalises_by_hand():
    ensemble = replace(trained()[0].ensembles[PAPER], mean=600.0, sd=50.0)
    grey = np.full((1, 20, 20), 700, np.float32)
    x = ensemble.normalise(grey)
    assert x.shape == (1, 1, 20, 20) and (x == 2.0).all()
    torch.testing.assert_close(ensemble.predict(grey).mean, predict(ensemble.members, x).mean)


def test_stored_weights_are_those_trained_but_for_8_bits(tmp_path):
    course = replace(STUDY.courses[PAPER], members=1)
    study_of.train(PAPER, course, 3, tmp_path / "net.safetensors.gz", "smoke", progress=False)
    lessons = iqa_training.prepare_lessons(course, 3)
    fresh = iqa_training.train(course, lessons, 0, 3, progress=False).state_dict()
    loaded = study_of.load(PAPER, course, tmp_path / "net.safetensors.gz")
    assert (loaded.mean, loaded.sd) == (lessons.mean, lessons.sd)
    assert {k: loaded.card[k] for k in ("seed", "name", "profile")} == {"seed": 3, "name": PAPER, "profile": "smoke"}
    for name, found in loaded.members[0].state_dict().items():
        wanted = fresh[name].float()
        if wanted.ndim < 2:
            torch.testing.assert_close(found.float(), wanted, rtol=1e-3, atol=1e-6)
        else:
            largest = wanted.flatten(1).abs().amax(1).view(-1, *[1] * (wanted.ndim - 1))
            assert ((found - wanted).abs() <= largest / 127 / 2 * 1.001).all()
    x = loaded.normalise(images_of(loaded))
    network = loaded.members[0]
    before = network(x)
    network.load_state_dict(fresh)
    torch.testing.assert_close(before, network(x), rtol=0.1, atol=0.02)


def test_shipped_ensembles_are_loaded_with_their_seed():
    ready, folder = trained()
    again = study_of.prepare(replace(STUDY, checkpoint=str(folder)), 7, folder / "none", progress=False)
    assert again.seed == ready.seed == 0 and not (folder / "none").exists()
    for name, ensemble in ready.ensembles.items():
        images = images_of(ensemble)
        assert torch.equal(again.ensembles[name].predict(images).mean, ensemble.predict(images).mean)


def test_retrain_leaves_the_shipped_ones_alone(tmp_path, monkeypatch):
    ready, folder = trained()
    written = {p.name: p.read_bytes() for p in folder.iterdir()}
    study = replace(STUDY, checkpoint=str(folder), courses={PAPER: replace(STUDY.courses[PAPER], members=1, images=8)})
    again = study_of.prepare(study, 1, tmp_path, retrain=True, progress=False)
    assert again.seed == 1 and len(again.ensembles[PAPER].members) == 1
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == written
    assert again.ensembles[PAPER].card["sha256"] != ready.ensembles[PAPER].card["sha256"]


def test_untrained_networks():
    ready, _ = trained()
    like, control = ready.ensembles[PAPER], ready.ensembles[UNTRAINED]
    assert control.name == UNTRAINED and (control.mean, control.sd) == (like.mean, like.sd)
    for member, fresh in zip(like.members, control.members, strict=True):
        assert torch.equal(fresh.curve_mean, member.curve_mean) and torch.equal(fresh.curve_sd, member.curve_sd)
        assert not torch.equal(fresh.mu.weight, member.mu.weight)
    assert not torch.equal(control.members[0].mu.weight, control.members[1].mu.weight)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again = study_of.untrained(like, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.members[1].mu.weight, control.members[1].mu.weight)


@pytest.mark.parametrize(
    "change", [{"images": 65}, {"kvp": (24.0, 29.0, 0.5)}, {"stages": ((0.0,),)}, {"inverted": True}, {"members": 1}]
)
def test_an_ensemble_of_another_course_is_refused(change):
    _, folder = trained()
    course = replace(STUDY.courses[PAPER], **change)
    with pytest.raises(checkpoints.CheckpointError, match=r"cdmam_paper_like.*another course than 'paper-like'"):
        study_of.load(PAPER, course, folder / "cdmam_paper_like.safetensors.gz")


def test_a_missing_or_damaged_ensemble(tmp_path):
    _, folder = trained()
    with pytest.raises(checkpoints.CheckpointError, match="missing"):
        study_of.prepare(replace(STUDY, checkpoint=str(tmp_path)), 0, tmp_path, progress=False)
    for file in folder.glob("cdmam_paper_like*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "cdmam_paper_like.safetensors.gz"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(checkpoints.CheckpointError, match="hash"):
        study_of.load(PAPER, STUDY.courses[PAPER], weights)


def test_weights_that_are_not_finite_are_not_written(tmp_path, monkeypatch):
    broken = trained()[0].ensembles[PAPER].members[0].state_dict() | {"mu.bias": torch.full((12,), torch.nan)}
    monkeypatch.setattr(iqa_training, "train", lambda *_: SimpleNamespace(state_dict=lambda: broken))
    with pytest.raises(checkpoints.CheckpointError, match=r"NaN or infinite.*mu\.bias"):
        study_of.train(PAPER, STUDY.courses[PAPER], 0, tmp_path / "net.safetensors.gz", "smoke", progress=False)
    assert not list(tmp_path.iterdir())


def test_names_of_files():
    assert study_of.stem("paper-like") == "cdmam_paper_like" and study_of.stem("bright discs") == "cdmam_bright_discs"
