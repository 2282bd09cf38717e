import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from skimage import measure
from sklearn.metrics import roc_auc_score

from xai_lib.data.case import Case, CaseDataset
from xai_lib.data.synthetic import mammogram, mammogram_lesions, mammogram_tissue
from xai_lib.data.synthetic.mammogram import anatomy, load_synthetic_mammogram
from xai_lib.data.synthetic.mammogram_lesions import draw_lesion, film, insert_lesion, paste, places
from xai_lib.data.synthetic.mammogram_patches import patches

SMALL = (256, 128)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def pairs():
    """Twelve images (three patients) and their twins."""
    options = {"patients": 3, "seed": 4, "size": SMALL, "calcifications": 0.5}
    cases, twins = (load_synthetic_mammogram(**options, twins=t) for t in (False, True))
    return cases, [(cases[i], twins[i]) for i in range(len(cases))]


def exponent(square, pixel_mm, low=0.1, high=0.7):
    """Minus the slope of log power against log frequency between `low` and `high` (1/mm), averaged over directions."""
    n = len(square)
    window = np.outer(np.hanning(n), np.hanning(n))
    power = np.abs(np.fft.fft2((square - square.mean()) * window)) ** 2
    bins = np.hypot(*np.meshgrid(*[np.fft.fftfreq(n) * n] * 2)).round().astype(int).ravel()
    radial = np.bincount(bins, power.ravel()) / np.bincount(bins)
    frequency = np.arange(len(radial)) / (n * pixel_mm)
    used = (frequency >= low) & (frequency <= high)
    return -np.polyfit(np.log(frequency[used]), np.log(radial[used]), 1)[0]


# film, lesions and insertion, by hand


def test_film_is_an_exponential_law():
    assert film(np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 1 - math.exp(-1), 1 - math.exp(-2)])
    assert film(np.array([0.5]), gain=1.1) == pytest.approx(1 - math.exp(-1.1))


def test_exposure_keeps_the_background_and_has_the_stated_noise(rng):
    signal = np.zeros((200, 200))
    signal[:, :100] = 0.4
    image = mammogram.expose(signal, 0.2, rng)
    assert not image[:, 100:].any()
    log_exposure = -np.log1p(-image[:, :100].astype(float)) / mammogram_lesions.FILM
    gain = log_exposure.mean() / 0.4
    assert 0.9 < gain < 1.1
    assert log_exposure.std() / gain == pytest.approx(mammogram.NOISE_MM / 0.2 * math.exp(0.2), rel=0.02)


def test_insertion_into_flat_tissue_follows_the_film_law(rng):
    lesion = draw_lesion(rng, "benign", 8, 0.4)
    image, breast = np.full((200, 150), 0.4, np.float32), np.ones((200, 150), bool)
    out = insert_lesion(image, breast, lesion, (90, 60), contrast=0.2)
    half = len(lesion.mass) // 2
    assert lesion.mass[half, half] == pytest.approx(1, abs=0.01)
    assert out.image[90, 60] == pytest.approx(1 - 0.6 * math.exp(-0.4), abs=0.002)
    row, col = 90 - half + 50, 60 - half + 40  # any other pixel
    assert out.image[row, col] == pytest.approx(1 - 0.6 * math.exp(-0.4 * lesion.mass[50, 40]), abs=1e-6)


@pytest.mark.parametrize("kind", mammogram_lesions.KINDS)
def test_insertion_changes_the_support_only_and_keeps_to_the_breast(kind, rng):
    image = rng.random((120, 100), dtype=np.float32)
    breast = np.zeros(image.shape, bool)
    breast[:, :50] = True
    out = insert_lesion(image, breast, draw_lesion(rng, kind, 5, 0.4, calcifications=True), (4, 45), contrast=0.3)
    assert np.array_equal(out.image[~out.support], image[~out.support])
    assert (out.image[out.support] != image[out.support]).mean() > 0.99
    assert not out.support[:, 50:].any()
    assert out.mask[4, 45]
    assert not (out.mask & ~out.support).any()
    assert 0 <= out.image.min() <= out.image.max() <= 1
    faint = insert_lesion(image, breast, draw_lesion(rng, kind, 5, 0.4), (100, 20), contrast=1e-4)
    assert 0 < np.abs(faint.image - image).max() < 4e-4


def test_paste_puts_the_middle_at_the_place_and_cuts_at_the_edges():
    patch = np.arange(9).reshape(3, 3)
    assert paste(patch, (3, 4), (1, 2)).tolist() == [[0, 0, 1, 2], [0, 3, 4, 5], [0, 6, 7, 8]]
    assert paste(patch, (2, 2), (0, 0)).tolist() == [[4, 5], [7, 8]]
    assert not paste(patch, (2, 2), (9, 9)).any()


def test_benign_masses_are_round_and_malignant_ones_are_not():
    """Circularity 4 pi area / perimeter^2 of the mask, and how far the lesion reaches beyond it."""
    found = {kind: [] for kind in mammogram_lesions.KINDS}
    for kind, seed in ((kind, seed) for kind in found for seed in range(8)):
        lesion = draw_lesion(np.random.default_rng(seed), kind, 7, 0.25)
        region = measure.regionprops(lesion.mask.astype(int))[0]
        assert region.area * 0.0625 == pytest.approx(math.pi * 49, rel=0.35)
        circularity = 4 * math.pi * region.area / region.perimeter**2
        rows, cols = np.nonzero(lesion.mass > 0)
        reach = np.hypot(rows - len(lesion.mass) // 2, cols - len(lesion.mass) // 2).max() * 0.25 / 7
        found[kind].append((circularity, region.solidity, reach))
    benign, malignant = (np.array(found[kind]) for kind in mammogram_lesions.KINDS)
    assert benign[:, 0].min() > 0.80 > 0.75 > malignant[:, 0].max()
    assert benign[:, 1].min() > 0.97
    assert malignant[:, 1].mean() < 0.95
    assert benign[:, 2].max() < 1.5
    assert 1.7 < malignant[:, 2].min() < malignant[:, 2].max() <= mammogram_lesions.REACH


def test_margin_is_sharp_when_benign_and_blurred_when_malignant():
    """Signal just inside and just outside the mask: the step of a benign mass is larger."""
    steps = {}
    for kind in mammogram_lesions.KINDS:
        lesion = draw_lesion(np.random.default_rng(1), kind, 8, 0.2)
        signed = ndimage.distance_transform_edt(lesion.mask) - ndimage.distance_transform_edt(~lesion.mask)
        inside, outside = (lesion.mass[(signed > a) & (signed < b)].mean() for a, b in ((2, 5), (-5, -2)))
        steps[kind] = inside - outside
    assert steps["benign"] > 1.3 * steps["malignant"] > 0


def test_calcifications_are_small_bright_dots_near_the_mass(rng):
    plain, calcified = (draw_lesion(np.random.default_rng(3), "malignant", 7, 0.2, c) for c in (False, True))
    assert not plain.specks.any()
    assert np.array_equal(plain.mass, calcified.mass)
    dots, count = ndimage.label(calcified.specks > 0.1)
    assert 4 <= count <= 17
    assert np.bincount(dots.ravel())[1:].max() * 0.04 < 3  # mm^2: a few may touch
    assert calcified.signal(0.2) == pytest.approx(0.2 * calcified.mass + calcified.specks)


def test_a_calcification_fades_in_large_pixels_and_keeps_its_integral():
    sums, peaks = [], []
    for pixel in (0.05, 0.4):
        axis = (np.arange(-40, 41) * pixel).astype(np.float32)
        spot = mammogram_lesions.speck(axis[:, None], axis, pixel, (0.2, 0.2), np.random.default_rng(0))
        sums.append(spot.sum() * pixel**2)
        peaks.append(spot.max())
    assert sums == pytest.approx([sums[0]] * 2, rel=1e-3)
    assert peaks[1] < 0.6 * peaks[0]


def test_places_keep_off_background_edges_top_black_and_white(rng):
    image = np.full((200, 100), 0.5, np.float32)
    breast = np.ones(image.shape, bool)
    breast[:, 80:] = False
    image[120:160] = 0.9
    found = places(image * breast, breast, 6, 300, rng)
    assert found.shape == (300, 2)
    assert len(np.unique(found, axis=0)) == 300
    rows, cols = found.T
    assert rows.min() >= 60
    assert rows.max() < 200 - 9
    assert (cols.min(), cols.max()) >= (9, 60)
    assert cols.max() <= 80 - 9
    assert not ((rows > 121) & (rows < 158)).any()
    with pytest.raises(ValueError, match=r"n: 1 places .* 0 pixels admit a radius of 60"):
        places(image, breast, 60, 1, rng)


# the tissue


def test_noise_has_the_exponent_asked_for(rng):
    for beta in (2.0, 3.0, 4.0):
        fields = [mammogram_tissue.power_law(rng, (256, 256), beta) for _ in range(4)]
        assert np.mean([exponent(field, 1.0, 0.03, 0.3) for field in fields]) == pytest.approx(beta, abs=0.15)
    fields = [mammogram_tissue.power_law(rng, (128, 64), 3.0, lowest=4, stretch=2) for _ in range(60)]
    assert np.var(fields) == pytest.approx(1, abs=0.1)
    assert abs(np.mean(fields)) < 0.01


def test_interior_has_the_power_spectrum_of_mammograms():
    """Burgess (1999): exponent near 3. mini-MIAS by the same function: 3.13, standard deviation 0.29 (35 images)."""
    cases = load_synthetic_mammogram(patients=1, seed=1, twins=True)
    found = []
    for i in range(len(cases)):
        image, tissue = cases[i].image[0].numpy(), anatomy(cases, i)
        free = np.pad(tissue.breast & ~tissue.pectoral, 1)
        depth = ndimage.distance_transform_cdt(free, "chessboard")[1:-1, 1:-1]
        row, col = np.unravel_index(depth.argmax(), depth.shape)
        row, col = np.clip(row, 64, 448), max(col, 64)
        found.append(exponent(image[row - 64 : row + 64, col - 64 : col + 64], cases[i].pixel_mm))
    assert 2.7 < np.mean(found) < 3.4
    assert 2.3 < min(found) < max(found) < 3.8


def test_density_classes_are_ordered_by_glandular_share(rng):
    base = mammogram_tissue.draw_breast(rng, rng)
    for view in mammogram_tissue.VIEWS:
        share = []
        for low, high in mammogram_tissue.DENSITIES.values():
            breast = replace(base, gland=(low + high) / 2)
            outline = mammogram_tissue.draw_outline(breast, view, np.random.default_rng(1))
            tissue = mammogram_tissue.build_tissue(breast, outline, np.random.default_rng(2), SMALL)
            inside = tissue.breast & ~tissue.pectoral
            assert (tissue.gland[inside] > 0.5).mean() <= high
            share.append((tissue.gland[inside].mean(), tissue.signal[inside].mean()))
        gland, signal = np.diff(share, axis=0).T
        assert gland.min() > 0.05
        assert signal.min() > 0


def test_drawn_breasts_have_their_classes_share_and_sides_resemble_each_other():
    def breast(patient, side):
        return mammogram_tissue.draw_breast(np.random.default_rng([1, patient]), np.random.default_rng([side, patient]))

    both = [(breast(p, 2), breast(p, 3)) for p in range(300)]
    for left, right in both:
        assert left.density == right.density
        low, high = mammogram_tissue.DENSITIES[left.density]
        assert low <= left.gland <= high
    sides = np.array([[b.depth_mm for b in pair] for pair in both])
    assert np.corrcoef(sides.T)[0, 1] == pytest.approx(0.84, abs=0.06)
    counts = pd.Series([left.density for left, _ in both]).value_counts(normalize=True)
    assert counts.loc[list("ABCD")].to_numpy() == pytest.approx([0.1, 0.4, 0.4, 0.1], abs=0.08)


def test_anatomy_is_that_of_the_view(pairs):
    cases, images = pairs
    for i, (_, twin) in enumerate(images):
        tissue, image = anatomy(cases, i), twin.image[0].numpy()
        assert tissue.pectoral.any() == (twin.view == "MLO")
        assert tissue.breast[0].any() == (twin.view == "MLO")  # runs out of the upper edge into the armpit
        assert tissue.breast[:, 0].mean() > 0.4
        assert not tissue.breast[:, -1].any()
        assert ndimage.label(tissue.breast)[1] == 1
        assert not image[~tissue.breast].any()
        assert (image[tissue.breast] > 0).mean() > 0.97
        assert not (tissue.pectoral & ~tissue.breast).any()
        depth = ndimage.distance_transform_edt(tissue.breast) * twin.pixel_mm
        assert image[(depth > 0.5) & (depth < 4)].mean() < 0.7 * image[depth > 25].mean()  # it thins out at the skin


# pairs


def test_image_and_twin_are_equal_to_the_bit_away_from_the_lesion(pairs):
    cases, images = pairs
    for (case, twin), row in zip(images, cases.table.itertuples(), strict=True):
        changed = (case.image != twin.image)[0].numpy()
        away = (
            np.hypot(*(np.indices(SMALL) - np.array([row.centre_row, row.centre_col])[:, None, None])) * case.pixel_mm
        )
        assert not changed[away > mammogram_lesions.REACH * row.radius_mm + 0.5].any()
        assert changed.any() == case.mask.any() == (case.label == 1)
        assert changed[case.mask.numpy()].all()
        assert changed.sum() <= 10 * case.mask.sum()  # spicules, not a frame
        assert twin.label == 0
        assert not twin.mask.any()
        assert twin.boxes.shape == (0, 4)
        assert twin.source == case.source + "-twin"
        if case.label:
            assert (case.image - twin.image)[0][case.mask].mean() > 0.02


def test_mask_and_box_are_exact(pairs):
    cases, images = pairs
    for i, (case, _) in enumerate(images):
        assert isinstance(case, Case)
        assert case.image.shape == (1, *SMALL)
        assert case.image.dtype == torch.float32
        assert 0 <= case.image.min() < 0.6 < case.image.max() < 1
        assert case.pixel_mm == 200 / 256
        if not case.label:
            continue
        mask, row = case.mask.numpy(), cases.table.loc[i]
        rows, cols = np.nonzero(mask)
        assert case.boxes.tolist() == [[rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]]
        assert mask[row.centre_row, row.centre_col]
        assert mask.sum() * case.pixel_mm**2 == pytest.approx(math.pi * row.radius_mm**2, rel=0.35)
        tissue = anatomy(cases, i)
        assert not (mask & (tissue.pectoral | ~tissue.breast)).any()


def test_a_mass_is_as_far_behind_the_nipple_in_both_views():
    table = load_synthetic_mammogram(patients=20, seed=2).table
    cc, mlo = (table[table["view"] == view].reset_index() for view in mammogram_tissue.VIEWS)
    shared = [
        "label",
        "side",
        "density",
        "kind",
        "radius_mm",
        "contrast",
        "calcified",
        "centre_col",
    ]  # same nipple column
    assert cc[shared].equals(mlo[shared])
    assert (cc["centre_row"] != mlo["centre_row"]).mean() > 0.8


def test_the_same_breast_appears_at_every_size():
    small, large = (load_synthetic_mammogram(1, seed=7, size=(n, n // 2)) for n in (256, 512))
    for i in (0, 3):
        a, b = small[i], large[i]
        shrunk = b.image[0].reshape(256, 2, 128, 2).mean((1, 3))
        inside = anatomy(small, i).breast
        assert np.corrcoef(a.image[0][inside], shrunk[inside])[0, 1] > 0.93
        if a.label:
            assert int(a.mask.sum()) * 4 == pytest.approx(int(b.mask.sum()), rel=0.1)
    wide = load_synthetic_mammogram(1, seed=7, size=(256, 256))[0]
    assert wide.image.shape == (1, 256, 256)
    assert not wide.image[..., 128:].any()
    assert np.corrcoef(wide.image[0, :, :128].ravel(), small[0].image[0].ravel())[0, 1] > 0.999


# the data set


def test_image_depends_on_seed_and_index_only():
    few, many = (load_synthetic_mammogram(n, seed=5, size=SMALL) for n in (2, 4))
    again = pickle.loads(pickle.dumps(few))  # as a worker process gets it
    for i in (6, 1):
        first = few[i]
        for other in (few[i], many[i], again[i]):
            assert first.image.equal(other.image)
            assert first.mask.equal(other.mask)
            assert (first.label, first.source) == (other.label, other.source)
    assert not few[1].image.equal(load_synthetic_mammogram(2, seed=6, size=SMALL)[1].image)


def test_one_view_is_a_part_of_both_views():
    both, only = (load_synthetic_mammogram(2, seed=5, size=SMALL, view=view) for view in (None, "MLO"))
    part = both.subset(np.flatnonzero(both.table["view"] == "MLO"))
    assert part.table["source"].tolist() == only.table["source"].tolist()
    assert part[1].image.equal(only[1].image)


def test_fingerprint_knows_every_parameter():
    def fingerprint(**change):
        return load_synthetic_mammogram(**{"patients": 1, "size": SMALL, **change}).fingerprint

    changes = [{"patients": 2}, {"seed": 1}, {"size": (256, 129)}, {"prevalence": 0.4}, {"benign": 0.1}, {"view": "CC"}]
    changes += [{"contrast": (0.1, 0.2)}, {"radius_mm": (5, 6)}, {"calcifications": 0.0}, {"twins": True}]
    found = {fingerprint(), fingerprint(), *(fingerprint(**change) for change in changes)}
    assert len(found) == 1 + len(changes)


def test_prevalence_sides_and_kinds():
    table = load_synthetic_mammogram(60, seed=3, view="CC").table
    assert (table.groupby("patient_id")["label"].sum() == 1).all()  # one breast of each patient
    assert 15 < table.loc[table["side"] == "L", "label"].sum() < 45
    assert set(table["kind"]) == {"normal", "malignant"}
    assert ((table["kind"] == "malignant") == (table["label"] == 1)).all()
    rare = load_synthetic_mammogram(60, seed=3, view="CC", prevalence=0.2, benign=0.5).table
    assert abs(rare["label"].sum() - 24) <= 1
    assert rare.loc[rare["kind"] == "benign", "label"].sum() == 0
    assert 30 < (rare["kind"] == "benign").sum() < 66
    assert not rare.loc[rare["kind"] != "malignant", "calcified"].any()


def test_a_benign_mass_is_in_the_image_and_labelled_0():
    cases, twins = (load_synthetic_mammogram(1, 0, SMALL, prevalence=0, benign=1, view="CC", twins=t) for t in (0, 1))
    case, twin = cases[0], twins[0]
    assert (case.label, len(case.boxes)) == (0, 1)
    assert (case.image != twin.image)[0][case.mask].all()


def test_nothing_but_the_lesion_separates_the_classes():
    """Size, place and density have one law; so have level, noise and sharpness of the lesion-free images."""
    table = load_synthetic_mammogram(200, seed=1, view="MLO").table
    table["density"] = table["density"].map(ord)
    for column in ("density", "radius_mm", "contrast", "centre_row", "centre_col"):
        assert roc_auc_score(table["label"], table[column]) == pytest.approx(0.5, abs=0.09), column
    cases, twins = (load_synthetic_mammogram(16, seed=8, size=(128, 64), view="CC", twins=t) for t in (False, True))
    values = []
    for i in range(len(twins)):
        image = twins[i].image[0].numpy()
        inside = image[image > 0]
        values.append([inside.mean(), inside.std(), ndimage.laplace(image)[image > 0].std(), len(inside)])
    for column in np.array(values).T:
        assert roc_auc_score(cases.labels, column) == pytest.approx(0.5, abs=0.25)  # 16 + 16 images: 2.4 sd


# patches


def test_patch_is_cut_pixel_by_pixel_around_the_lesion(pairs):
    cases, images = pairs
    side = 40
    cut = patches(cases, size=side, side_mm=side * 200 / 256)
    assert len(cut) == len(cases)
    assert cut.name == "synthetic_mammogram_patches"
    for i in (0, 1, 2, 3):
        case, patch, row = images[i][0], cut[i], cases.table.loc[i]
        wide = np.pad(case.image[0].numpy(), side)  # black beyond the edges
        top, left = row.centre_row + side - side // 2, row.centre_col + side - side // 2
        assert np.array_equal(patch.image[0].numpy(), wide[top : top + side, left : left + side])
        assert (patch.label, patch.patient_id, patch.view) == (case.label, case.patient_id, case.view)
        assert patch.source == case.source + "-patch"
        assert patch.pixel_mm == case.pixel_mm
        assert bool(patch.mask[side // 2, side // 2]) == (case.label == 1)


def test_shifted_patches_move_the_lesion_by_the_distance_asked_for(pairs):
    cases, images = pairs
    i = next(i for i, (case, _) in enumerate(images) if case.label)
    middle, shifted = (patches(cases, size=112, side_mm=80, shift_px=s)[i] for s in (0, 25))
    centres = [np.argwhere(patch.mask.numpy()).mean(0) for patch in (middle, shifted)]
    assert centres[0] == pytest.approx([56, 56], abs=5)
    assert np.hypot(*(centres[1] - centres[0])) == pytest.approx(25, abs=1.5)
    assert middle.pixel_mm == pytest.approx(80 / 112, rel=0.01)
    areas = [int(case.mask.sum()) * case.pixel_mm**2 for case in (middle, images[i][0])]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)
    others = [patches(cases, size=112, side_mm=80, shift_px=25, seed=seed)[i] for seed in (0, 1)]
    assert shifted.image.equal(others[0].image)
    assert not shifted.image.equal(others[1].image)


def test_twin_patch_has_the_same_place(pairs):
    cases, images = pairs
    twins = load_synthetic_mammogram(3, seed=4, size=SMALL, calcifications=0.5, twins=True)
    i = next(i for i, (case, _) in enumerate(images) if case.label)
    for shift in (0, 12):
        a, b = (patches(part, size=56, shift_px=shift)[i] for part in (cases, twins))
        changed = (a.image != b.image)[0]
        assert changed[a.mask].all()
        assert changed.float().mean() < 0.9
        assert (b.label, b.mask.any()) == (0, False)


def test_patches_need_places_a_mask_and_a_pixel_size(pairs):
    cases, images = pairs
    with pytest.raises(ValueError, match="lacks the columns centre_row"):
        patches(CaseDataset("mine", cases.table.drop(columns="centre_row"), lambda row: images[0][0]))
    blind = CaseDataset("mine", cases.table, lambda row: replace(images[0][0], pixel_mm=None))
    with pytest.raises(ValueError, match="pixel size"):
        patches(blind)[0]
    assert patches(cases, shift_px=1).fingerprint != patches(cases).fingerprint
    with pytest.raises(ValueError, match="no known anatomy"):
        anatomy(blind, 0)


# bad input


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"patients": 0}, "patients"),
        ({"seed": -1}, "seed"),
        ({"size": (127, 100)}, "size"),
        ({"size": (256, 127)}, "size"),
        ({"prevalence": 1.1}, "prevalence"),
        ({"benign": -0.1}, "benign"),
        ({"calcifications": float("nan")}, "calcifications"),
        ({"view": "LM"}, "view"),
        ({"contrast": (0.0, 0.1)}, "contrast"),
        ({"contrast": (0.3, 0.1)}, "contrast"),
        ({"radius_mm": (4, 30)}, "radius_mm"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        load_synthetic_mammogram(**arguments)


@pytest.mark.parametrize(
    ("arguments", "name"), [({"size": 4}, "size"), ({"side_mm": 0}, "size, side_mm"), ({"shift_px": 112}, "shift_px")]
)
def test_bad_patch_arguments_are_named(pairs, arguments, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        patches(pairs[0], **arguments)


def test_bad_lesion_arguments_are_named(rng):
    with pytest.raises(ValueError, match="kind: 'cyst'"):
        draw_lesion(rng, "cyst", 5, 0.2)
    with pytest.raises(ValueError, match="radius_mm: 0"):
        draw_lesion(rng, "benign", 0, 0.2)
    lesion = draw_lesion(rng, "benign", 3, 0.4)
    image, breast = np.full((60, 40), 0.5, np.float32), np.ones((60, 40), bool)
    with pytest.raises(ValueError, match=r"place: \(70, 3\)"):
        insert_lesion(image, breast, lesion, (70, 3), 0.2)
    with pytest.raises(ValueError, match="contrast: 0"):
        insert_lesion(image, breast, lesion, (7, 3), 0)
    with pytest.raises(ValueError, match="shapes"):
        insert_lesion(image, breast[1:], lesion, (7, 3), 0.2)
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        insert_lesion(image * 255, breast, lesion, (7, 3), 0.2)
    with pytest.raises(ValueError, match="radius_px, n"):
        places(image, breast, 3, 0, rng)
