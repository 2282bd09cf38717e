from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from xai_lib import data
from xai_lib.data.case import CaseDataset
from xai_lib.data.real_mammograms import prepared
from xai_lib.data.synthetic.mammogram import anatomy
from xai_lib.studies.mammograms import insertion
from xai_lib.studies.mammograms import networks as mn
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import VARIANTS

CHOSEN = mn.WholeSettings(patients=3, size=(128, 64))
SETUP = Setup(window=32, stride=16, steps=4, segments=12, samples=12)
CONTRASTS = (0.1, 0.4)


@pytest.fixture(scope="module")
def twins():
    return mn.cases(CHOSEN, 0, twins=True)


@pytest.fixture(scope="module")
def pair(twins):
    return next(insertion.twin_pairs(twins, range(12), CONTRASTS, seed=0))


def test_the_pair_differs_in_the_lesion_alone(pair):
    before, after = pair.before.case.image[0].numpy(), pair.after[0.4].case.image[0].numpy()
    changed = before != after
    row0, col0, row1, col1 = pair.before.case.boxes[0].tolist()
    inside = np.zeros(changed.shape, bool)
    inside[row0:row1, col0:col1] = True
    assert changed[inside].mean() > 0.5 and (after >= before)[inside].mean() > 0.9
    rows, cols = np.nonzero(changed)
    reach = 3 * max(row1 - row0, col1 - col0)  # spicules
    assert abs(rows - (row0 + row1) / 2).max() < reach and abs(cols - (col0 + col1) / 2).max() < reach
    assert not changed[~pair.before.breast].any()


def test_more_contrast_changes_more_at_the_same_place(pair):
    gain = [float((scene.case.image - pair.before.case.image).sum()) for scene in pair.after.values()]
    assert 0 < gain[0] < gain[1]
    assert all(torch.equal(scene.case.boxes, pair.before.case.boxes) for scene in pair.after.values())
    assert pair.before.case.label == 0 and pair.after[0.1].case.label == 1
    assert torch.equal(pair.after[0.1].twin, pair.before.case.image)


def test_same_seed_same_pair(twins, pair):
    again = next(insertion.twin_pairs(twins, range(12), CONTRASTS, seed=0))
    assert torch.equal(again.after[0.4].case.image, pair.after[0.4].case.image)
    other = next(insertion.twin_pairs(twins, range(12), CONTRASTS, seed=1))
    assert not torch.equal(other.after[0.4].case.image, pair.after[0.4].case.image)


def test_images_without_a_place_are_passed_over(twins, monkeypatch):
    def none(*args, **more):
        raise ValueError("n: 1 places asked for, but only 0 pixels admit a radius")

    monkeypatch.setattr(insertion, "places", none)
    assert list(insertion.twin_pairs(twins, range(3), CONTRASTS)) == []
    bare = replace(twins[0], pixel_mm=None)
    with pytest.raises(ValueError, match="needs its pixel size"):
        insertion.make_pair(bare, anatomy(twins, 0).breast, CONTRASTS, 0)


# ---------------------------------------------------------------- measured


def test_in_box_by_hand():
    """A box with 6 of 10 in a breast of 20 x 10: no other place holds more, and those that hold as much tie."""
    scores = np.zeros((20, 10))
    scores[4:6, 3:5] = 1.5
    scores[15, 8] = 4.0
    breast = np.ones(scores.shape, bool)
    found = insertion.in_box(scores, np.array([4, 3, 6, 5]), breast, np.random.default_rng(0))
    assert found["energy"] == pytest.approx(0.6) and found["hit"] == 0 and found["rank"] < 0.1
    other = insertion.in_box(scores, np.array([10, 1, 12, 3]), breast, np.random.default_rng(0))
    assert other["energy"] == 0 and 0.4 < other["rank"] < 0.7


def test_in_box_of_maps_that_say_nothing():
    breast, box = np.ones((20, 10), bool), np.array([4, 3, 6, 5])
    nothing = insertion.in_box(np.zeros((20, 10)), box, breast, np.random.default_rng(0))
    assert nothing["energy"] == 0 and nothing["rank"] == 0.5 and np.isnan(nothing["hit"])
    even = insertion.in_box(np.ones((20, 10)), box, breast, np.random.default_rng(0))
    assert even["energy"] == pytest.approx(4 / 200) and even["rank"] == 0.5


def test_follow_a_map_that_sees_the_lesion(pair):
    """The brightness: its share in the box rises with the contrast, its rank falls."""
    networks = {"trained": mn.fresh("squeezenet1_1", None, 0)}
    frame = insertion.follow(pair, {n: VARIANTS[n] for n in ("brightness", "saliency")}, networks, SETUP)
    assert frame["contrast"].tolist() == [0.0, 0.0, 0.1, 0.1, 0.4, 0.4]
    bright = frame[frame["variant"] == "brightness"].set_index("contrast")
    assert bright["energy"].is_monotonic_increasing and bright.loc[0.4, "rank"] <= bright.loc[0.0, "rank"]
    assert frame.groupby("contrast")["score"].nunique().eq(1).all() and frame["score"].nunique() == 3
    again = insertion.follow(pair, {"saliency": VARIANTS["saliency"]}, networks, SETUP)
    assert_allclose(again["rank"], frame.loc[frame["variant"] == "saliency", "rank"])  # others do not move the places


def test_real_pairs_take_one_image_of_a_patient(twins):
    """Stand-ins for prepared films: black outside the breast, no pixel size."""
    cases = [
        replace(twins[i], image=twins[i].image * torch.from_numpy(anatomy(twins, i).breast), pixel_mm=None)
        for i in range(12)
    ]
    normals = CaseDataset(
        "films", twins.table.assign(place=range(12)), lambda row: cases[int(row["place"])], parameters={}
    )
    pairs = list(insertion.real_pairs(normals, 2, CONTRASTS))
    assert len(pairs) == 2 and len({p.before.case.patient_id for p in pairs}) == 2
    assert pairs[0].before.case.pixel_mm == pytest.approx(200 / 128) and pairs[0].after[0.4].case.mask.any()
    assert len(list(insertion.real_pairs(normals, 50, CONTRASTS))) <= 3


@pytest.mark.realdata
def test_a_mass_in_mini_mias(data_root):
    films = data.load("mini_mias", classes=["normal"])
    pair = next(insertion.real_pairs(prepared(films, (512, 256)), 1, (0.4,)))
    change = (pair.after[0.4].case.image - pair.before.case.image)[0].numpy()
    row0, col0, row1, col1 = pair.before.case.boxes[0].tolist()
    assert change[row0:row1, col0:col1].mean() > 0.05 and 8 < row1 - row0 < 80
    assert not change[~pair.before.breast].any()
