import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage, special, stats
from sklearn.metrics import roc_auc_score

from xai_lib import data
from xai_lib.data import splits
from xai_lib.data.rois import rois
from xai_lib.data.synthetic.mammogram import load_synthetic_mammogram
from xai_lib.data.synthetic.mammogram_masses import CONFOUNDERS, TRAITS, confounders, load_synthetic_masses

CLEAN = {"calcifications": 0.0, "dense": 0.0, "noise": 0.0}
SMALL = {"patients": 2, "size": 64, "view": "CC"}


def auc(table, columns):
    """Of the sum of the traits' normal scores."""
    scores = special.ndtri(np.clip(table[columns].to_numpy(), 1e-9, 1 - 1e-9)).sum(1)
    return roc_auc_score(table["label"], scores)


def test_a_case():
    cases = data.load("synthetic_masses", patients=3, seed=1)
    case = cases[0]
    assert len(cases) == 6 and cases.labels.tolist()[::2] == cases.labels.tolist()[1::2]
    assert case.image.shape == (1, 128, 128) and case.image.dtype == torch.float32
    assert 0 <= case.image.min() and case.image.max() <= 1 and case.image.isfinite().all()
    assert case.mask.dtype == torch.bool and len(case.boxes) == 1 and case.pixel_mm == 36 / 128
    assert case.source == "synthetic_masses/patient-00000-CC" and case.view == "CC"
    row0, col0, row1, col1 = case.boxes[0].tolist()
    assert abs(row0 + row1 - 128) < 16 and abs(col0 + col1 - 128) < 16  # in the middle
    radius = cases.table["radius_mm"][0] * 128 / 36
    assert float(case.mask.sum()) == pytest.approx(np.pi * radius**2, rel=0.35)


def test_same_seed_same_bits_whatever_the_number_of_patients():
    few, many = (load_synthetic_masses(**{**SMALL, "patients": n}, seed=5) for n in (2, 4))
    assert all(few[i].image.equal(many[i].image) and few[i].mask.equal(many[i].mask) for i in range(2))
    assert not few[0].image.equal(load_synthetic_masses(**SMALL, seed=6)[0].image)
    assert pickle.loads(pickle.dumps(few))[1].image.equal(few[1].image)


def test_fingerprint_knows_every_argument():
    changes = [
        {},
        {"seed": 1},
        {"size": 72},
        {"side_mm": 40.0},
        {"malignant": 0.4},
        {"separation": 1.0},
        {"twins": True},
    ]
    changes += [{name: 0.3} for name in CONFOUNDERS] + [{"shift_mm": 2.0}, {"calcification_correlation": 0.5}]
    prints = [load_synthetic_masses(**{**SMALL, **change}).fingerprint for change in changes]
    assert len(set(prints)) == len(changes) and prints[0] == load_synthetic_masses(**SMALL).fingerprint


@pytest.mark.parametrize("name", CONFOUNDERS)
def test_switching_a_confounder_changes_its_own_pixels_only(name):
    clean, one = (load_synthetic_masses(**{**SMALL, **CLEAN, **change}, seed=2) for change in ({}, {name: 1.0}))
    for i in range(2):
        found = confounders(one, i)
        where, changed = getattr(found, name), (clean[i].image != one[i].image)[0]
        assert where.any() and clean[i].mask.equal(one[i].mask)
        assert not any(getattr(found, other).any() for other in CONFOUNDERS if other != name)
        assert not any(getattr(confounders(clean, i), each).any() for each in CONFOUNDERS)
        difference = (one[i].image - clean[i].image)[0].abs()
        assert changed[where].float().mean() > 0.95  # salt on white tissue changes nothing
        assert difference[~where].max() < 0.15 and difference[where].mean() > 3 * difference[~where].mean()
        if name == "noise":
            assert not changed[~where].any() and set(one[i].image[0][where].unique().tolist()) <= {0.0, 1.0}


def test_calcifications_and_dense_tissue_lie_beside_the_mass():
    cases = load_synthetic_masses(8, 3, view="CC", calcifications=1, dense=1)
    for i in range(8):
        mask, found = cases[i].mask, confounders(cases, i)
        assert (found.calcifications & ~mask).sum() > 0.7 * found.calcifications.sum() > 0
        assert (found.dense & ~mask).sum() > 0.4 * found.dense.sum() > 0
        near = torch.from_numpy(ndimage.binary_dilation(mask, iterations=4))
        assert (found.dense & near).any()


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.8])
@pytest.mark.parametrize("name", ["calcifications", "dense", "noise"])
def test_correlation_with_the_label(name, correlation):
    tie = "calcification_correlation" if name == "calcifications" else f"{name}_correlation"
    table = load_synthetic_masses(500, 4, view="CC", **{name: 0.5, tie: correlation}).table
    assert table[name].mean() == pytest.approx(0.5, abs=0.07)
    found = np.corrcoef(table[name].astype(float), table["label"])[0, 1]
    assert found == pytest.approx(correlation, abs=1e-9 if correlation == -1 else 0.1)


def test_correlation_of_unequal_shares_by_hand():
    table = load_synthetic_masses(2000, 4, view="CC", malignant=0.2, dense=0.3, dense_correlation=0.4).table
    # 0.3 + 0.4 sqrt(0.3 0.7 0.8 / 0.2) of the malignant ones, 0.3 - 0.4 sqrt(0.3 0.7 0.2 / 0.8) of the benign ones
    shares = table.groupby("label")["dense"].mean()
    assert shares[1] == pytest.approx(0.6666, abs=0.05) and shares[0] == pytest.approx(0.2083, abs=0.03)
    assert np.corrcoef(table["dense"].astype(float), table["label"])[0, 1] == pytest.approx(0.4, abs=0.05)


def test_reversed_confounder_is_on_the_same_images():
    first, turned = (load_synthetic_masses(20, 1, 64, view="CC", calcification_correlation=r) for r in (0.9, -0.9))
    columns = ["source", "label", *TRAITS, "dense", "noise", "radius_mm", "contrast"]
    assert first.table[columns].equals(turned.table[columns])
    same = (first.table["calcifications"] == turned.table["calcifications"]).to_numpy()
    assert 0 < same.sum() < 10
    alike, unlike = int(np.flatnonzero(same)[0]), int(np.flatnonzero(~same)[0])
    assert first[alike].image.equal(turned[alike].image) and not first[unlike].image.equal(turned[unlike].image)


def test_twins_keep_everything_but_the_mass():
    cases, twins = (load_synthetic_masses(4, 2, 64, view="CC", twins=t, noise=0) for t in (False, True))
    assert cases.labels.tolist() == twins.labels.tolist()
    rows, cols = np.ogrid[:64, :64]
    middle = torch.from_numpy(np.hypot(rows - 31.5, cols - 31.5) * 36 / 64)  # mm
    compared = 0
    for i in range(4):
        away = middle > 2.8 * cases.table["radius_mm"][i]
        assert not twins[i].mask.any() and len(twins[i].boxes) == 0
        assert twins[i].image[0][away].equal(cases[i].image[0][away])
        assert (cases[i].image - twins[i].image)[0][cases[i].mask].mean() > 0.08
        assert confounders(cases, i).calcifications.equal(confounders(twins, i).calcifications)
        compared += int(away.sum())
    assert compared > 500


def test_every_mass_can_be_seen():
    cases, twins = (load_synthetic_masses(12, 7, 64, view="CC", twins=t) for t in (False, True))
    rise = [float((cases[i].image - twins[i].image)[0][cases[i].mask].mean()) for i in range(12)]
    assert min(rise) > 0.05


def test_classes_overlap_as_stated():
    table = load_synthetic_masses(800, 0, view="CC").table
    assert auc(table, list(TRAITS)) == pytest.approx(special.ndtr(np.sqrt(1.5) * 1.8), abs=0.015)  # 0.986
    for trait in TRAITS:
        assert auc(table, [trait]) == pytest.approx(special.ndtr(1.8 / np.sqrt(2)), abs=0.04)  # 0.90
    assert auc(load_synthetic_masses(800, 0, view="CC", separation=0).table, list(TRAITS)) == pytest.approx(
        0.5, abs=0.03
    )


def test_size_contrast_and_place_do_not_know_the_label():
    table = load_synthetic_masses(1000, 1, view="CC").table
    for column in ("radius_mm", "contrast", *CONFOUNDERS):
        assert roc_auc_score(table["label"], table[column].astype(float)) == pytest.approx(0.5, abs=0.05)
    assert table["label"].mean() == pytest.approx(0.5, abs=0.001)


def features(case, twin):
    """Hand-made counterparts of the three traits: length of the outline, softness of the edge, lines around it."""
    mask, mass = case.mask.numpy(), (case.image - twin.image)[0].numpy()
    outline = (mask ^ ndimage.binary_erosion(mask)).sum() / np.sqrt(mask.sum())
    rim = ndimage.binary_dilation(mask, iterations=2) & ~ndimage.binary_erosion(mask, iterations=2)
    slope = np.hypot(*np.gradient(mass))[rim].mean() / mass[mask].mean()
    ring = ndimage.binary_dilation(mask, iterations=14) & ~ndimage.binary_dilation(mask, iterations=6)
    return outline, -slope, (mass - ndimage.gaussian_filter(mass, 2))[ring].std() / mass[mask].mean()


def test_each_trait_shows_in_the_image():
    cases, twins = (load_synthetic_masses(30, 3, view="CC", separation=0, twins=t, **CLEAN) for t in (False, True))
    measured = np.array([features(cases[i], twins[i]) for i in range(30)])
    for number, trait in enumerate(TRAITS):
        assert stats.spearmanr(measured[:, number], cases.table[trait]).statistic > 0.5, trait


def test_shift():
    cases = load_synthetic_masses(6, 2, 128, view="CC", shift_mm=6.0, **CLEAN)
    still = load_synthetic_masses(6, 2, 128, view="CC", **CLEAN)
    for i in range(6):
        moved, centre = (np.array(ndimage.center_of_mass(one[i].mask.numpy())) for one in (cases, still))
        assert np.hypot(*(moved - centre)) == pytest.approx(6 * 128 / 36, abs=1.5)
        assert int(cases[i].mask.sum()) == pytest.approx(int(still[i].mask.sum()), rel=0.03)


def test_views_share_traits_not_images():
    cases = load_synthetic_masses(1, 3, 64)
    assert list(cases.table["view"]) == ["CC", "MLO"] and cases.table[list(TRAITS)].nunique().eq(1).all()
    assert not cases[0].image.equal(cases[1].image) and not cases[0].mask.equal(cases[1].mask)
    assert cases.patient_ids.tolist() == ["patient-00000"] * 2
    assert load_synthetic_masses(1, 3, 64, view="MLO")[0].image.equal(cases[1].image)


def test_folds_and_rois():
    cases = load_synthetic_masses(10, 0, 64)
    for train, test in splits.folds(cases, k=5):
        assert not set(cases.patient_ids[train]) & set(cases.patient_ids[test])
    tight = rois(cases, "original", size=32)[0]
    assert tight.image.shape == (1, 32, 32) and tight.mask.float().mean() > 0.6


def test_confounders_of_other_cases():
    with pytest.raises(ValueError, match="cases: 'synthetic_mammogram' has no known confounders"):
        confounders(load_synthetic_mammogram(1), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patients": 0}, "patients: 0 is below 1"),
        ({"size": 63}, "size: 63 rows and columns, expected at least 64"),
        ({"side_mm": 20}, "side_mm: 20, expected from 36 to 200"),
        ({"malignant": 1.5}, r"malignant: 1.5 is outside \[0, 1\]"),
        ({"separation": -1}, "separation: -1 is below 0"),
        ({"calcifications": 2}, r"calcifications: 2 is outside \[0, 1\]"),
        ({"calcification_correlation": -1.1}, r"calcification_correlation: -1.1 is outside \[-1, 1\]"),
        ({"dense": 0.1, "dense_correlation": 0.9}, "dense_correlation: 0.9 is not possible if dense are on 0.1"),
        ({"malignant": 1, "noise_correlation": 0.5}, "noise_correlation: 0.5, expected 0 where only one class"),
        ({"shift_mm": 10}, "shift_mm: 10, expected from 0 to 9"),
        ({"view": "LCC"}, "view: 'LCC' is unknown, expected None or one of CC, MLO"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        load_synthetic_masses(**options)
