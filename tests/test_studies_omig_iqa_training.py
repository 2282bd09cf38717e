"""iqa_training: settings, labels, virtual images, likelihood, and what training must do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cdmam_smoke import QUICK, coarse
from test_iqa_network import of_two

from xai_lib.cdmam.detectability import probabilities
from xai_lib.cdmam.phantom import Detector, build, crop
from xai_lib.cdmam.readout import curve_from_probabilities
from xai_lib.cdmam.simulate import levels, noise_sd
from xai_lib.iqa_network import IqaNetwork
from xai_lib.studies.omig import iqa_training as it

COURSE = it.paper_like(**QUICK, second_system=0.25)


@pytest.fixture(scope="module", autouse=True)
def small():
    with coarse():
        yield


@pytest.fixture(scope="module")
def phantoms(small):
    return tuple(build(detector, 0.14) for detector in (Detector(), it.SECOND_SYSTEM.detector))


@pytest.fixture(scope="module")
def lessons(phantoms):
    return it.prepare_lessons(COURSE, 0, phantoms)


def empty(lessons, spread=0.0):
    """Lessons of one setting whose phantom shows nothing."""
    blank = replace(lessons.phantoms[0], coverage=np.zeros_like(lessons.phantoms[0].coverage))
    return replace(
        lessons,
        phantoms=(blank,),
        settings=lessons.settings[:1],
        contrasts=np.ones(1),
        grey=lessons.grey[:1],
        spread=np.array([spread]),
        labels=lessons.labels[:1],
        system=np.zeros(1, np.int64),
    )


def drawn(lessons, which=(0,), seed=0, margins=(0.0,), **changes):
    course = replace(COURSE, **{"mirror": False} | changes)
    return it.draw(course, lessons, np.array(which), np.random.default_rng(seed), margins)


# ---------------------------------------------------------------------------------------- by hand


def test_likelihood_by_hand():
    """Residuals 1 and 1 in standard units, variances 4 and 1."""
    loss = it.negative_log_likelihood(of_two(), torch.rand(3, 1, 8, 8), torch.tensor([[2.0, 2.0]] * 3))
    assert loss.item() == pytest.approx(0.5 * ((math.log(4) + 1 / 4) + (0 + 1)) / 2)


def test_windows_by_hand(phantoms):
    """457 x 290 pixels show the plate; 64 and 41 are added on each side, and 18 and 12 by a margin of 0.04."""
    phantom = phantoms[0]
    assert phantom.shape == (457 + 2 * 64, 290 + 2 * 41)
    whole = (0.0, 1.0, 0.0, 1.0)
    assert it.window(phantom, 0.0, whole) == (64, 64 + 457, 41, 41 + 290)
    assert it.window(phantom, 0.14, whole) == (0, 585, 0, 372)
    assert it.window(phantom, 0.04, whole) == (46, 585 - 46, 29, 372 - 29)
    assert it.window(phantom, 0.0, (0.0, 0.5, 0.5, 1.0)) == (64, 64 + 228, 41 + 145, 41 + 290)
    assert it.window(crop(phantom, 0.0), 0.0, whole) == (0, 457, 0, 290)


def test_refit_by_hand(lessons):
    """One setting, and a network that says the same of all images: sigma is what it is wrong by."""
    one, course = empty(lessons, spread=3.0), replace(COURSE, size=8)
    network = IqaNetwork(size=8, hidden=2).eval()
    network.mu.weight.data.zero_()
    network.mu.bias.data.fill_(0.25)
    it.refit(course, replace(one, labels=np.linspace(1, 2, 12)[None]), network, np.random.default_rng(0), 16)
    _, sd = network.distribution(torch.zeros(1, 1, 8, 8))
    np.testing.assert_allclose(sd[0].detach(), np.linspace(1, 2, 12) - 0.25, rtol=1e-5)


def test_refit_takes_the_root_of_the_mean_square(lessons):
    half = replace(lessons, labels=np.where(np.arange(len(lessons.labels))[:, None] % 2, 1.0, 3.0) * np.ones(12))
    network = IqaNetwork(size=20, hidden=2).eval()
    network.mu.weight.data.zero_()
    network.mu.bias.data.zero_()
    it.refit(COURSE, half, network, np.random.default_rng(0), 400)
    assert network.log_variance[0].exp().item() == pytest.approx((1 + 9) / 2, rel=0.15)


# ---------------------------------------------------------------------------------------- settings and labels


def test_courses():
    assert it.paper_like() == it.Course() and it.paper_like(size=10).size == 10
    reader = it.disc_reader(members=1)
    assert (reader.unit, reader.sampling, reader.label_images, reader.members) == ("log um", "blocks", 0, 1)
    assert reader.contrast == (0.5, 2.0) and not reader.mirror and not reader.second_system


def test_settings_of_a_seed_are_the_same():
    course = replace(COURSE, settings=40, contrast=(0.5, 2.0))
    settings, contrasts = it.draw_settings(course, 3)
    again, same = it.draw_settings(course, 3)
    assert settings == again and (contrasts == same).all()
    assert settings != it.draw_settings(course, 4)[0]
    assert {s.kvp for s in settings} <= set(np.arange(24, 30.1, 0.5)) and len({s.kvp for s in settings}) > 5
    noises = np.array([s.noise for s in settings])
    assert noises.min() >= 6.5 and noises.max() <= 20
    assert contrasts.min() >= 0.5 and contrasts.max() <= 2
    assert len({s.name for s in settings}) == 40


def test_the_last_settings_are_of_the_second_system():
    settings, _ = it.draw_settings(replace(COURSE, settings=40), 0)
    assert [s.detector == it.SECOND_SYSTEM.detector for s in settings] == [False] * 30 + [True] * 10
    assert all(s.rays.kvp == s.kvp for s in settings)
    assert all(s.detector == Detector() for s in it.draw_settings(replace(COURSE, second_system=0.0), 0)[0])


def test_lessons(lessons):
    assert lessons.labels.shape == (8, 12) and np.isfinite(lessons.labels).all()
    assert lessons.system.tolist() == [0] * 6 + [1] * 2
    np.testing.assert_array_equal(lessons.grey[7], levels(lessons.settings[7], lessons.contrasts[7]))
    assert lessons.spread[2] == noise_sd(lessons.settings[2].noise, Detector())
    shown = drawn(lessons, range(8))
    assert shown.mean() == pytest.approx(lessons.mean, rel=0.03) and shown.std() == pytest.approx(lessons.sd, rel=0.15)


def test_exact_labels_are_those_of_the_setting(phantoms):
    """All images of a setting share one label, so no image of a setting held back is seen."""
    lessons = it.prepare_lessons(replace(COURSE, label_images=0, contrast=(0.5, 2.0)), 0, phantoms)
    for setting, contrast, label in zip(lessons.settings, lessons.contrasts, lessons.labels, strict=True):
        np.testing.assert_array_equal(label, curve_from_probabilities(probabilities(setting, contrast)))
    assert len(np.unique(lessons.labels, axis=0)) == len(lessons.settings)


def test_drawn_labels_scatter_around_the_exact_one(lessons):
    settings, rng = list(lessons.settings[:1]) * 30, np.random.default_rng(0)
    exact = it.labels_of(settings[:1], 1.0, 0, rng)[0]
    labels = it.labels_of(settings, np.ones(30), 16, rng)
    assert (labels.std(0) > 0).all()
    np.testing.assert_allclose(np.nanmedian(labels, 0)[2:10], exact[2:10], rtol=0.1)


def test_shuffled_labels_are_a_permutation(phantoms, lessons):
    shuffled = it.prepare_lessons(replace(COURSE, shuffled=True), 0, phantoms)
    assert shuffled.settings == lessons.settings
    assert (shuffled.labels != lessons.labels).any()
    np.testing.assert_array_equal(np.sort(shuffled.labels, 0), np.sort(lessons.labels, 0))
    assert {tuple(row) for row in shuffled.labels} == {tuple(row) for row in lessons.labels}


def test_a_label_that_is_no_curve_is_left_out(phantoms, lessons, monkeypatch):
    labels_of = it.labels_of

    def broken(*arguments):
        labels = labels_of(*arguments)
        labels[2, 5] = np.nan
        return labels

    monkeypatch.setattr(it, "labels_of", broken)
    fewer = it.prepare_lessons(COURSE, 0, phantoms)
    assert [s.name for s in fewer.settings] == [f"setting {k}" for k in range(8) if k != 2]
    np.testing.assert_array_equal(fewer.grey, np.delete(lessons.grey, 2, 0))
    assert len(fewer.labels) == len(fewer.spread) == len(fewer.system) == len(fewer.contrasts) == 7


def test_phantoms_are_drawn_where_none_are_given():
    for stages, margin in (((0.0,),), 0.0), (((0.0,), (0.04, 0.02)), 0.04):
        course = replace(COURSE, settings=2, second_system=0.0, stages=stages)
        made = it.prepare_lessons(course, 0).phantoms
        assert [p.margin for p in made] == [margin]


# ---------------------------------------------------------------------------------------- virtual images


def test_images_of_a_blank_phantom_are_its_background_and_noise(lessons):
    images = drawn(empty(lessons, spread=5.0), [0] * 20)
    assert images.dtype == np.float32 and images.shape == (20, 20, 20)
    assert images.mean() == pytest.approx(lessons.grey[0, 0], abs=0.3)
    assert images.std() == pytest.approx(5.0, rel=0.05)
    white = images - images.mean()
    assert abs((white[:, 1:] * white[:, :-1]).mean()) < 1.0  # of 25: neighbours are independent


def test_draws_differ_per_image(lessons):
    same = drawn(lessons, [1, 1, 1])
    assert (same[0] != same[1]).mean() > 0.99 and (same[1] != same[2]).mean() > 0.99
    np.testing.assert_array_equal(drawn(lessons, [1, 2], seed=5), drawn(lessons, [1, 2], seed=5))


def test_an_image_shows_the_phantoms_pixels(lessons):
    quiet = replace(lessons, spread=np.zeros(8))
    rows, columns = it.picked(COURSE, lessons.phantoms[1], 0.04, _after_one_integer(7))
    image = drawn(quiet, [7], 7, (0.04,))[0]
    phantom, grey = lessons.phantoms[1], lessons.grey[7]
    for i, j in ((0, 0), (5, 11), (19, 19)):
        at = rows[i], columns[j]
        expected = grey[0] + phantom.coverage[at] * (grey[phantom.classes[at]] - grey[0])
        assert image[i, j] == pytest.approx(expected)


def _after_one_integer(seed):
    """The generator as `draw` has it once the margin is chosen."""
    rng = np.random.default_rng(seed)
    rng.integers(1)
    return rng


def test_mirroring(lessons):
    quiet = replace(lessons, spread=np.zeros(8))
    seen = set()
    for seed in range(24):
        plain, mirrored = (drawn(quiet, [0], seed, mirror=m)[0] for m in (False, True))
        flips = {"none": plain, "rows": plain[::-1], "columns": plain[:, ::-1], "both": plain[::-1, ::-1]}
        found = [name for name, flip in flips.items() if np.array_equal(flip, mirrored)]
        assert len(found) == 1
        seen |= set(found)
    assert seen == {"none", "rows", "columns", "both"}


def test_inverted_images_mirror_at_the_background(lessons):
    plain, inverted = drawn(lessons, [0, 3]), drawn(lessons, [0, 3], inverted=True)
    background = np.array([lessons.grey[0, 0], lessons.grey[3, 0]])[:, None, None]
    np.testing.assert_allclose(plain + inverted, 2 * background * np.ones_like(plain), rtol=1e-6)


@pytest.mark.parametrize("sampling", ["anywhere", "blocks"])
@pytest.mark.parametrize("margin", [0.0, 0.04, 0.14])
def test_picked_pixels_lie_inside(phantoms, sampling, margin):
    course = replace(COURSE, sampling=sampling, region=(0.1, 0.5, 0.5, 0.9))
    top, bottom, left, right = it.window(phantoms[0], margin, course.region)
    rng = np.random.default_rng(0)
    found = [it.picked(course, phantoms[0], margin, rng) for _ in range(60)]
    rows, columns = (np.array(axis) for axis in zip(*found, strict=True))
    for picked, low, high in ((rows, top, bottom), (columns, left, right)):
        assert (np.diff(picked, axis=1) > 0).all()  # ascending, each once
        assert picked.min() == pytest.approx(low, abs=2) and picked.max() == pytest.approx(high - 1, abs=2)
        assert picked.min() >= low and picked.max() < high
    if sampling == "blocks":
        edges = np.arange(21) * (bottom - top) // 20
        assert ((rows - top >= edges[:-1]) & (rows - top < edges[1:])).all()


def test_margins_in_turn(lessons):
    """A plate with a wide margin shows more of the plain background than one without."""
    quiet = replace(lessons, spread=np.zeros(8))
    plain = [
        float((drawn(quiet, [0] * 30, margins=m) == lessons.grey[0, 0]).mean()) for m in ((0.0,), (0.0, 0.14), (0.14,))
    ]
    assert plain[0] < plain[1] < plain[2]


def test_normalised():
    x = it.normalised(np.full((2, 3, 3), 7, np.float32), 5.0, 4.0)
    assert x.shape == (2, 1, 3, 3) and x.dtype == torch.float32 and (x == 0.5).all()


# ---------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def member(lessons):
    return it.train(replace(COURSE, images=400), lessons, 0, 0, progress=False)


def loss_of(network, lessons):
    x = it.normalised(drawn(lessons, [0, 1, 2, 3, 4, 5] * 10, seed=99), lessons.mean, lessons.sd)
    labels = torch.from_numpy(lessons.labels).float()[[0, 1, 2, 3, 4, 5] * 10]
    return it.negative_log_likelihood(network, x, labels).item()


def test_training_lowers_the_loss(lessons, member):
    before = IqaNetwork(20, 8).eval()
    before.curve_mean.copy_(member.curve_mean)
    before.curve_sd.copy_(member.curve_sd)
    assert loss_of(member, lessons) < loss_of(before, lessons) - 0.1
    assert not member.training and not any(p.requires_grad for p in member.parameters())


def test_outputs_are_standardised_by_the_labels(lessons, member):
    np.testing.assert_allclose(member.curve_mean, lessons.labels.mean(0), rtol=1e-5)
    np.testing.assert_allclose(member.curve_sd, lessons.labels.std(0, ddof=1), rtol=1e-4)
    log = it.train(replace(COURSE, unit="log um", images=8), lessons, 0, 0, progress=False)
    np.testing.assert_allclose(log.curve_mean, np.log(lessons.labels).mean(0), rtol=1e-4, atol=1e-5)


def test_same_seed_same_weights(lessons):
    first, again, other, reseeded = (
        it.train(COURSE, lessons, member, seed, progress=False).state_dict()
        for member, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    for different in (other, reseeded):
        assert not torch.equal(first["mu.weight"], different["mu.weight"])


def test_sigma_is_the_residual_after_training(lessons, member):
    """Of fresh images of all settings with all margins: the root of the mean squared residual."""
    squares, rng = [], np.random.default_rng(5)
    for _ in range(40):
        which = rng.integers(8, size=8)
        images = it.draw(COURSE, lessons, which, rng, COURSE.stages[-1])
        found = member(it.normalised(images, lessons.mean, lessons.sd))
        squares.append((found.numpy() - lessons.labels[which]) ** 2)
    _, sd = member.distribution(torch.zeros(1, 1, 20, 20))
    np.testing.assert_allclose(sd[0], np.sqrt(np.concatenate(squares).mean(0)), rtol=0.2)


def test_the_second_system_comes_last(lessons, monkeypatch):
    """Until the last stage only the first system's settings are shown; each stage has its margins."""
    shown, draw = [], it.draw

    def noted(course, own, which, rng, margins):
        shown.append((set(own.system[which].tolist()), margins))
        return draw(course, own, which, rng, margins)

    monkeypatch.setattr(it, "draw", noted)
    it.train(replace(COURSE, images=8 * 16, refit_sigma=False), lessons, 0, 0, progress=False)
    assert [margins for _, margins in shown] == [stage for stage in COURSE.stages for _ in range(4)]
    assert all(systems == {0} for systems, _ in shown[:12])
    assert {1} <= set.union(*(systems for systems, _ in shown[12:]))


def test_sigma_from_features_trains(lessons):
    course = replace(COURSE, sigma="features", refit_sigma=False, schedule="constant")
    network = it.train(course, lessons, 0, 0, progress=False)
    _, sd = network.distribution(it.normalised(drawn(lessons, [0, 5]), lessons.mean, lessons.sd))
    assert (sd > 0).all() and (sd[0] != sd[1]).any()


# ---------------------------------------------------------------------------------------- what goes wrong


def test_collapse_of_sigma_is_named(lessons):
    network = of_two(spread=(1.0, math.exp(-10.5)))
    with pytest.raises(FloatingPointError, match="sigma: a learnt variance has collapsed"):
        it.negative_log_likelihood(network, torch.rand(1, 1, 8, 8), torch.ones(1, 2))
    course = replace(COURSE, sigma_rate=1e3, images=400)
    with pytest.raises(FloatingPointError, match=r"sigma: .*sigma_rate"):
        it.train(course, lessons, 0, 0, progress=False)


def test_nan_in_sigma_is_a_collapse():
    with pytest.raises(FloatingPointError, match="sigma"):
        it.negative_log_likelihood(of_two(spread=(math.nan, 1.0)), torch.rand(1, 1, 8, 8), torch.ones(1, 2))


def test_a_loss_that_is_not_finite():
    with pytest.raises(FloatingPointError, match=r"loss: it is not finite.*learning_rate"):
        it.negative_log_likelihood(of_two(bias=(math.nan, 0.0)), torch.rand(1, 1, 8, 8), torch.ones(1, 2))
    with pytest.raises(FloatingPointError, match="loss"):
        it.negative_log_likelihood(of_two(), torch.rand(1, 1, 8, 8), torch.tensor([[1.0, torch.inf]]))


def test_a_sigma_from_features_is_not_refitted(lessons):
    with pytest.raises(ValueError, match="refit_sigma: only a constant sigma"):
        it.refit(COURSE, lessons, IqaNetwork(20, 8, sigma="features"), np.random.default_rng(0))


def test_a_size_that_does_not_fit(lessons):
    with pytest.raises(ValueError, match="size: 300 rows or columns cannot be drawn from 290"):
        drawn(lessons, size=300)


def test_rates_of_both_schedules(lessons, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def watched(self, *arguments, **named):
        seen.append([(group["lr"], group["betas"]) for group in self.param_groups])
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    constant = replace(COURSE, schedule="constant", images=24, learning_rate=1e-5, sigma_rate=1e-4)
    it.train(constant, lessons, 0, 0, progress=False)
    assert seen == [[(1e-5, (0.9, 0.999)), (1e-4, (0.9, 0.999))]] * 3
    seen.clear()
    it.train(replace(COURSE, images=80, learning_rate=1e-3), lessons, 0, 0, progress=False)  # ten steps of one cycle
    rates = [groups[0][0] for groups in seen]
    assert len(rates) == 10 and max(rates) == pytest.approx(1e-3) and rates[-1] < rates[0] < rates[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schedule": "cosine"}, "schedule: 'cosine' is not one of onecycle"), ({"images": 0}, "images: 0 is below 1")],
)
def test_bad_course(change, message):
    with pytest.raises(ValueError, match=message):
        it.paper_like(**change)
