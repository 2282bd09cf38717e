import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from xai_lib.data.case import Case
from xai_lib.data.synthetic import tissue, ultrasound
from xai_lib.data.synthetic.tissue import CUES
from xai_lib.data.synthetic.ultrasound import load_synthetic_ultrasound, planted

PIXEL_MM = 0.17


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def round_mass(rng):
    """A smooth sphere of 9 mm, 15 mm deep, in a field of 38 mm."""
    mass = tissue.draw_mass(rng, 0, tissue.DEFAULT_STRENGTH)
    return replace(
        mass, diameter_mm=9.0, axes_mm=(9.0, 9.0, 9.0), depth_mm=15.0, field_mm=38.0, lobes=(0.0,) * 6, spicules=0
    )


@pytest.fixture(scope="module")
def forty():
    """Forty images with the default settings."""
    dataset = load_synthetic_ultrasound(masses=20, seed=3)
    return [dataset[i] for i in range(len(dataset))]


# the physics, by hand


def test_homogeneous_absorber_lowers_the_level_by_its_db_per_mm():
    path = ultrasound.transmission_db(np.full((100, 3), 0.5), pixel_mm=0.2)
    assert path[0] == pytest.approx(-0.5 * 0.1)  # centre of the first pixel: 0.1 mm deep
    assert path[-1] == pytest.approx(-0.5 * 19.9)


def test_slab_lowers_the_level_behind_it_and_nothing_above():
    absorption = np.zeros((100, 2))
    absorption[25:75, 1] = 1.0  # 5 mm to 15 mm
    path = ultrasound.transmission_db(absorption, pixel_mm=0.2)
    assert not path[:, 0].any()
    assert not path[:25, 1].any()
    assert path[75:, 1] == pytest.approx(-10.0)


def test_shadow_in_the_image_has_the_depth_of_the_absorber():
    absorption = np.full((224, 224), tissue.TISSUE_ABSORPTION)
    scene = tissue.Scene(np.zeros((224, 224)), absorption, np.empty((0, 2), int), absorption > 9, PIXEL_MM)
    slab = absorption.copy()
    slab[30:60, :112] += 6 / (30 * PIXEL_MM)  # 6 dB in all, left half
    plain = ultrasound.scan(scene, np.random.default_rng(1)).astype(float)
    shadow = ultrasound.scan(replace(scene, absorption=slab), np.random.default_rng(1)).astype(float)
    change = (shadow - plain)[65:110]
    drop = change[:, 20:92].mean() - change[:, 132:204].mean()  # against the right half: the gain differs
    assert drop == pytest.approx(-6 * 255 / ultrasound.DYNAMIC_RANGE_DB, rel=0.03)


def test_time_gain_and_beam_width_and_log_compression():
    assert ultrasound.time_gain_db(np.array([5.0, 15.0]), fade=0.4) == pytest.approx([7.0, 17.0])  # 1.4 dB/mm
    width = ultrasound.beam_width(np.array([ultrasound.FOCUS_MM, ultrasound.FOCUS_MM + ultrasound.FOCAL_ZONE_MM]))
    assert width == pytest.approx([ultrasound.LATERAL_MM, ultrasound.LATERAL_MM * math.sqrt(2)])
    levels = np.array([9.0, 0.0, -13.5, -27.0, -54.0, -80.0])
    assert ultrasound.log_compress(levels, white_db=0.0).tolist() == [255, 255, 191, 128, 0, 0]


def test_scatterers_have_the_power_of_their_level(rng):
    field = ultrasound.scatterers(np.full((200, 200), 6.0), rng)
    assert np.mean(np.abs(field) ** 2) == pytest.approx(10**0.6, rel=0.02)
    assert abs(field.mean()) < 0.03


def test_fully_developed_speckle_is_rayleigh(rng):
    """Envelope SNR sqrt(pi / (4 - pi)) = 1.91 before compression, and the whole distribution."""
    shape = (256, 256)
    envelope = np.concatenate(
        [np.abs(ultrasound.focus(ultrasound.scatterers(np.zeros(shape), rng), PIXEL_MM))[8:-8, 8:-8] for _ in range(4)]
    )
    assert envelope.mean() / envelope.std() == pytest.approx(math.sqrt(math.pi / (4 - math.pi)), rel=0.02)
    assert np.mean(envelope**2) == pytest.approx(1.0, rel=0.03)  # the point-spread function keeps the power
    apart = envelope[::10, ::20].ravel()  # far enough to be independent
    assert stats.kstest(apart, stats.rayleigh(scale=math.sqrt(0.5)).cdf).pvalue > 0.01


def test_two_looks_raise_the_snr(rng):
    scene = tissue.Scene(np.zeros((256, 256)), np.zeros((256, 256)), np.empty((0, 2), int), np.zeros(1), PIXEL_MM)
    envelope = [np.sqrt(ultrasound.detect(scene, rng, looks)) for looks in (1, 2)]
    one, two = (e.mean() / e.std() for e in envelope)
    assert two > 1.3 * one > 1.3 * 1.91  # smoothing helps as well


def test_smooth_field_has_unit_variance_and_the_stated_autocorrelation(rng):
    fields = np.stack([tissue.smooth_field(rng, (120, 90), (4.0, 2.0)) for _ in range(60)])
    assert fields.var(0).mean() == pytest.approx(1.0, abs=0.05)
    assert (fields[:, 8:] * fields[:, :-8]).mean() == pytest.approx(math.exp(-1), abs=0.03)  # lag 2 sigma
    assert (fields[:, :, 4:] * fields[:, :, :-4]).mean() == pytest.approx(math.exp(-1), abs=0.03)


# the mask


def test_mask_of_a_circle_has_the_area_of_the_circle(round_mass, rng):
    scene = tissue.build_scene(round_mass, 0, rng, size=224)
    assert scene.pixel_mm == 38 / 224
    assert scene.mask.sum() * scene.pixel_mm**2 == pytest.approx(math.pi * 4.5**2, rel=0.01)
    rows, cols = np.nonzero(scene.mask)
    assert np.ptp(rows) * scene.pixel_mm == pytest.approx(9, abs=0.3)
    assert np.ptp(cols) * scene.pixel_mm == pytest.approx(9, abs=0.3)


def test_lobes_and_spicules_keep_the_area_of_the_ellipse(round_mass, rng):
    mass = replace(round_mass, axes_mm=(12.0, 9.0, 6.0), lobes=(0.1,) * 6, spicules=8)
    radius = tissue.contour(mass, 0, rng)
    x, y = radius * np.cos(tissue.ANGLES), radius * np.sin(tissue.ANGLES)
    shoelace = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    assert shoelace == pytest.approx(math.pi * 6 * 3, rel=0.01)
    assert np.std(radius) > 1


def test_a_contour_that_is_too_large_or_outside_is_shrunk_and_moved():
    radius = np.full(tissue.ANGLES.size, 30.0)
    smaller, row, col = tissue.place(radius, row=5, col=70, field_mm=40, top=3)
    assert smaller == pytest.approx(18.0, rel=1e-4)  # 36 mm are free between 3 mm and 39 mm
    assert (row, col) == (pytest.approx(21, abs=0.01), pytest.approx(21, abs=0.01))


def test_masks_are_inside_the_frame_and_masses_are_visible(forty):
    """A mass is darker than the 3 mm around it by at least 20 of 255 grey levels, in every image."""
    for case in forty:
        mask, image = case.mask.numpy(), case.image[0].numpy() * 255
        assert mask.sum() * case.pixel_mm**2 > 15  # mm^2
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
        outside = ndimage.distance_transform_edt(~mask) * case.pixel_mm
        ring = (outside > 0.3) & (outside < 3)
        assert image[ring].mean() - image[mask].mean() > 20, case.source


# the data set


def test_cases_are_complete(forty):
    for case in forty:
        assert isinstance(case, Case)
        assert case.image.shape == (1, 224, 224)
        assert str(case.image.dtype) == "torch.float32"
        assert 0 <= case.image.min() < 0.1 < 0.6 < case.image.max() <= 1
        assert 0.1 < case.pixel_mm < 0.25
        row0, col0, row1, col1 = case.boxes[0].tolist()
        rows, cols = np.nonzero(case.mask.numpy())
        assert (row0, col0) <= (rows.mean(), cols.mean()) <= (row1, col1)


def test_grey_levels_are_those_of_real_scans(forty):
    """BUSI, 5, 25, 50, 75, 95 % of the grey levels: 8, 39, 81, 126, 186 (benign), 5, 30, 70, 122, 182 (malignant)."""
    levels = np.mean([np.percentile(case.image * 255, [5, 25, 50, 75, 95]) for case in forty], axis=0)
    assert np.abs(levels - [7, 35, 76, 124, 184]).max() < 30


def test_two_views_share_patient_label_and_pixel_but_not_the_image():
    dataset = load_synthetic_ultrasound(masses=3, seed=1, size=64)
    assert dataset.table["view"].tolist() == ["longitudinal", "transverse"] * 3
    assert dataset.patient_ids.tolist() == np.repeat(["mass-00000", "mass-00001", "mass-00002"], 2).tolist()
    first, second, other = dataset[0], dataset[1], dataset[2]
    assert (first.patient_id, first.label, first.pixel_mm) == (second.patient_id, second.label, second.pixel_mm)
    speckle = [case.image[0].numpy() - ndimage.uniform_filter(case.image[0].numpy(), 5) for case in (first, second)]
    assert abs(np.corrcoef(speckle[0][8:].ravel(), speckle[1][8:].ravel())[0, 1]) < 0.15  # drawn anew for each view
    assert first.patient_id != other.patient_id
    assert {*CUES, "diameter_mm"} < set(dataset.table)


def test_image_depends_on_seed_and_index_only():
    few, many = (load_synthetic_ultrasound(masses=n, seed=5, size=64) for n in (3, 7))
    again = pickle.loads(pickle.dumps(few))  # as a worker process gets it
    for i in (4, 1):
        for other in (few, many, again):
            assert few[i].image.equal(other[i].image)
            assert few[i].mask.equal(other[i].mask)
        assert few[i].label == many[i].label
    assert not few[1].image.equal(load_synthetic_ultrasound(masses=3, seed=6, size=64)[1].image)


def test_fingerprint_knows_every_parameter():
    base = load_synthetic_ultrasound(masses=2, size=64)
    assert base.fingerprint == load_synthetic_ultrasound(masses=2, size=64).fingerprint
    others = [{"size": 65}, {"seed": 1}, {"strength": planted("shape")}, {"spread": 0.1}, {"masses": 3}]
    for change in others:
        assert load_synthetic_ultrasound(**{"masses": 2, "size": 64, **change}).fingerprint != base.fingerprint


def test_prevalence_is_kept_to_within_one_mass():
    for seed in range(5):
        labels = load_synthetic_ultrasound(masses=31, seed=seed).labels[::2]
        assert abs(labels[:10].sum() - 10 * 123 / 272) < 1
        assert abs(labels.sum() - 31 * 123 / 272) < 1


def test_oracle_overlaps_as_intended_and_size_is_no_cue():
    """Four cues with means 0.2 apart and spread 0.18: d' = 4 * 0.2 / (2 * 0.18), AUC = Phi(d' / sqrt 2) = 0.942."""
    table = load_synthetic_ultrasound(masses=1500, seed=2).table
    assert roc_auc_score(table["label"], table[list(CUES)].sum(axis=1)) == pytest.approx(0.942, abs=0.015)
    assert roc_auc_score(table["label"], table["diameter_mm"]) == pytest.approx(0.5, abs=0.04)


# the cues: each is seen by its own feature


def features(case):
    """Shape, margin, posterior and texture of a case, each higher for the malignant look."""
    image, mask, pixel = case.image[0].numpy() * 255, case.mask.numpy(), case.pixel_mm
    rows, cols = np.nonzero(mask)
    outside = ndimage.distance_transform_edt(~mask) * pixel
    signed = outside - ndimage.distance_transform_edt(mask) * pixel
    upper = np.arange(len(mask))[:, None] <= rows.mean()  # the lower half lies in its own shadow
    smooth = ndimage.gaussian_filter(image, 1)
    shape = np.ptp(rows) / np.ptp(cols)
    just_in, just_out = (signed > -0.7) & (signed < -0.2) & upper, (signed > 0.2) & (signed < 0.7) & upper
    margin = smooth[just_in].mean() - smooth[just_out].mean()
    bottom, reach = rows.max() + 2, int(8 / pixel)
    quarter, wide = np.ptp(cols) // 4, int(5 / pixel)
    behind = image[bottom : bottom + reach, cols.min() + quarter : cols.max() - quarter]
    left = image[bottom : bottom + reach, max(cols.min() - wide, 0) : cols.min()]
    right = image[bottom : bottom + reach, cols.max() + 1 : cols.max() + wide]
    posterior = np.concatenate([left, right], axis=1).mean() - behind.mean()
    core = ndimage.binary_erosion(mask, iterations=4)
    texture = ndimage.gaussian_filter(image, 1.5)[core if core.sum() > 20 else mask].std()
    return shape, margin, posterior, texture


def test_each_planted_cue_is_seen_by_its_own_feature():
    """AUC of four hand-made features (columns) on four planted sets (rows).

    What leaks: shadow and enhancement begin inside the mass, so the posterior cue moves the margin and texture features
    (AUC up to 0.7 to 0.8 with 80 images); shape and texture move the margin feature (up to 0.7). With 32 images chance
    alone adds up to 0.15.
    """
    auc = np.empty((4, 4))
    for i, cue in enumerate(CUES):
        dataset = load_synthetic_ultrasound(masses=16, seed=1, strength=planted(cue), prevalence=0.5)
        values = np.array([features(dataset[j]) for j in range(len(dataset))])
        auc[i] = [roc_auc_score(dataset.labels, column) for column in values.T]
    own = np.diag(auc)
    assert (own > 0.85).all(), auc.round(2)
    leak = np.abs(auc - 0.5) + 0.5
    np.fill_diagonal(leak, 0)
    assert (leak.max(axis=1) < own - 0.15).all(), auc.round(2)  # on its own set the feature is the best one
    assert (leak.max(axis=0) < own - 0.15).all(), auc.round(2)  # and it is at its best on its own set


# bad input


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"masses": 0}, "masses"),
        ({"size": 63}, "size"),
        ({"seed": -1}, "seed"),
        ({"prevalence": 1.1}, "prevalence"),
        ({"spread": -0.1}, "spread"),
        ({"spread": float("nan")}, "spread"),
        ({"strength": {"colour": (0.1, 0.9)}}, "strength: 'colour'"),
        ({"strength": {"shape": (0.1, 1.5)}}, "strength: 'shape'"),
        ({"strength": {"shape": (float("nan"), 0.5)}}, "strength: 'shape'"),
        ({"strength": {"shape": (0.1, 0.2, 0.3)}}, "strength: 'shape'"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        load_synthetic_ultrasound(**arguments)


def test_planted_refuses_an_unknown_cue():
    with pytest.raises(ValueError, match=r"cue: 'halo'.*shape, margin, posterior, texture"):
        planted("halo")
