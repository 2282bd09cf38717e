import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from xai_lib import augmentations, data
from xai_lib.data.case import Case, CaseDataset, DataError, boxes_from_mask
from xai_lib.data.rois import PADDINGS, RECIPES, cut, rois, shifted, window

BOX = (100, 200, 140, 260)  # 40 high, 60 wide, middle (120, 230)


def oval(shape, box):
    """A filled oval in the box, at least a pixel smaller than the image."""
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    row0, col0, row1, col1 = box
    down = (rows + 0.5 - (row0 + row1) / 2) / ((row1 - row0) / 2)
    right = (cols + 0.5 - (col0 + col1) / 2) / ((col1 - col0) / 2)
    return torch.from_numpy(down**2 + right**2 <= 1)


def ramp(shape):
    """An image whose grey tells the place: (1, H, W)."""
    return (torch.arange(shape[0] * shape[1], dtype=torch.float32) / (shape[0] * shape[1])).reshape(1, *shape)


def dataset(masks, labels=None, lesions=None, boxes=None, pixel_mm=0.1):
    """Cases with these masks; module-level reading is not needed here."""
    rows = {
        "source": [f"mine/{i}" for i in range(len(masks))],
        "label": labels or [0] * len(masks),
        "patient_id": [f"p{i}" for i in range(len(masks))],
        "view": "CC",
        "number": range(len(masks)),
    }
    table = pd.DataFrame(rows)
    if lesions is not None:
        table["lesions"] = lesions

    def read(row):
        i = int(row["number"])
        found = boxes_from_mask(masks[i]) if boxes is None and masks[i] is not None else (boxes or {}).get(i)
        found = torch.zeros((0, 4), dtype=torch.int64) if found is None else found
        image = ramp((60, 80))
        return Case(image, row["label"], masks[i], found, pixel_mm, row["patient_id"], "CC", row["source"])

    return CaseDataset("mine", table, read)


def test_windows_by_hand():
    assert window(BOX, "tight") == BOX
    assert window(BOX, "double_square") == (60, 170, 180, 290)  # 120 x 120
    assert window(BOX, "double") == (80, 170, 160, 290)  # 80 x 120
    assert window(BOX, "context") == (8, 118, 232, 342)  # 224 x 224
    assert window((100, 0, 400, 60), "context") == (100, -82, 400, 142)  # max(224, 300) x max(224, 60)
    with pytest.raises(ValueError, match="kind: 'wide' is unknown, expected one of tight"):
        window(BOX, "wide")


def test_the_five_recipes_of_table_1():
    assert list(RECIPES) == ["original", "double_square", "double_flips", "shifted", "mass_centred"]
    assert [recipe.copies for recipe in RECIPES.values()] == [1, 1, 4, 10, 1]
    assert all(recipe.augment in augmentations.AUGMENTATIONS for recipe in RECIPES.values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_resizing_is_that_of_pillow(recipe):
    image, mask = torch.rand(1, 220, 300, generator=torch.manual_seed(0)), oval((220, 300), (80, 100, 120, 180))
    row0, col0, row1, col1 = window((80, 100, 120, 180), RECIPES[recipe].window, 70)
    assert row0 >= 0 and col0 >= 0 and row1 <= 220 and col1 <= 300
    found, small = cut(image, mask, (80, 100, 120, 180), recipe, size=32, context=70)
    piece = Image.fromarray(image[0, row0:row1, col0:col1].numpy(), mode="F")
    expected = np.asarray(piece.resize((32, 32), Image.Resampling.BICUBIC)).clip(0, 1)
    assert found.shape == (1, 32, 32) and np.allclose(found[0], expected, atol=1e-4)
    piece = Image.fromarray(mask[row0:row1, col0:col1].numpy().astype(np.uint8))
    assert np.array_equal(small, np.asarray(piece.resize((32, 32), Image.Resampling.NEAREST)) > 0)
    assert small.dtype == torch.bool


def test_a_window_of_the_right_size_is_not_resized():
    image, mask = ramp((300, 400)), oval((300, 400), BOX)
    found, small = cut(image, mask, BOX)
    assert found.equal(image[:, 8:232, 118:342]) and small.equal(mask[8:232, 118:342])


def test_shape_survives_the_square_windows_only():
    mask = oval((400, 500), (150, 200, 190, 280))  # 40 x 80
    aspects = {}
    for recipe in RECIPES:
        _, small = cut(ramp((400, 500)), mask, (150, 200, 190, 280), recipe, size=112)
        row0, col0, row1, col1 = boxes_from_mask(small)[0].tolist()
        aspects[recipe] = (col1 - col0) / (row1 - row0)
    assert aspects["mass_centred"] == pytest.approx(2) and aspects["double_square"] == pytest.approx(2, abs=0.1)
    assert all(aspects[name] == pytest.approx(1, abs=0.05) for name in ("original", "shifted", "double_flips"))


@pytest.mark.parametrize("padding", PADDINGS)
def test_mass_on_the_border_stays_in_the_middle(padding):
    image, mask = ramp((300, 400)), oval((300, 400), (0, 380, 30, 400))
    found, small = cut(image, mask, (0, 380, 30, 400), padding=padding)
    assert window((0, 380, 30, 400)) == (-97, 278, 127, 502)
    mode = {"zeros": "constant", "edge": "edge", "reflect": "reflect"}[padding]
    expected = np.pad(image[0].numpy(), ((97, 0), (0, 102)), mode=mode)[:224, 278:502]
    assert np.array_equal(found[0], expected)
    assert boxes_from_mask(small).tolist() == [[97, 102, 127, 122]]  # no mask outside the image, whatever the padding


@pytest.mark.parametrize("padding", PADDINGS)
def test_roi_larger_than_the_image(padding):
    image, mask = ramp((5, 7)), torch.zeros(5, 7, dtype=torch.bool)
    mask[2, 3] = True
    found, small = cut(image, mask, (2, 3, 3, 4), padding=padding, size=40, context=40)
    mode = {"zeros": "constant", "edge": "edge", "reflect": "reflect"}[padding]
    row0, col0, row1, col1 = window((2, 3, 3, 4), "context", 40)
    expected = np.pad(image[0].numpy(), ((-row0, row1 - 5), (-col0, col1 - 7)), mode=mode)
    assert np.array_equal(found[0], expected) and int(small.sum()) == 1 and small[2 - row0, 3 - col0]


def test_shifts_cover_the_box_and_reach_the_limit():
    rng, box = np.random.default_rng(0), (10, 20, 50, 120)  # 40 x 100
    covered = []
    for _ in range(400):
        row0, col0, row1, col1 = shifted(box, 0.9, rng)
        assert (row1 - row0, col1 - col0) == (40, 100)
        covered.append((40 - abs(row0 - 10)) * (100 - abs(col0 - 20)) / 4000)
    assert min(covered) == pytest.approx(0.9, abs=0.01) and min(covered) >= 0.9 and np.mean(covered) < 0.97
    assert shifted(box, 1.0, rng) == box and shifted((0, 0, 3, 3), 0.9, rng) == (0, 0, 3, 3)


def test_copies():
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[20:30, 40:60], mask[20, 40] = True, False
    plain, across, down, both = (rois(dataset([mask]), "double_flips", size=20)[i] for i in range(4))
    assert across.image.equal(plain.image.flip(2)) and across.mask.equal(plain.mask.flip(1))
    assert down.image.equal(plain.image.flip(1)) and both.mask.equal(plain.mask.flip(0, 1))
    moved = rois(dataset([mask]), "shifted", size=20, copies=6)
    assert moved[0].image.equal(rois(dataset([mask]), "original", size=20)[0].image)
    assert len({moved[i].image.numpy().tobytes() for i in range(6)}) > 3
    assert moved[3].image.equal(rois(dataset([mask]), "shifted", size=20)[3].image)  # whatever the number of copies
    assert list(moved.table["copy"]) == list(range(6)) and moved.table["source"].is_unique
    assert len(rois(dataset([mask]), "shifted", copies=1)) == 1


def test_one_roi_of_the_largest_lesion():
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[5:9, 5:9], mask[30:50, 30:60] = True, True
    case = rois(dataset([mask], labels=[1]), size=64, context=64)[0]
    assert case.source == "mine/0-roi" and case.label == 1 and case.patient_id == "p0"
    assert window((30, 30, 50, 60), "context", 64) == (8, 13, 72, 77)
    assert case.boxes.tolist() == [[22, 17, 42, 47]] and int(case.mask.sum()) == 600  # the other one is not in it
    assert case.pixel_mm == 0.1


def test_a_roi_and_a_label_for_each_lesion_that_the_table_lists():
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[5:9, 5:9], mask[30:50, 30:60] = True, True
    empty = torch.zeros(60, 80, dtype=torch.bool)
    lesions = [("benign", "malignant"), (), ("Mass", "Calcification")]
    found = rois(dataset([mask, empty, mask], labels=[1, 0, 1], lesions=lesions), "original", size=16)
    assert found.labels.tolist() == [0, 1, 1, 1]  # a finding without class has its image's label
    assert list(found.table["image"]) == [0, 0, 2, 2] and list(found.table["lesion"]) == [0, 1, 0, 1]
    assert list(found.table["source"]) == ["mine/0-roi0", "mine/0-roi1", "mine/2-roi0", "mine/2-roi1"]
    assert found[0].pixel_mm == pytest.approx(0.1 * 4 / 16) and found[1].pixel_mm is None  # 20 x 30 became a square


def test_parameters_are_part_of_the_fingerprint():
    mask = oval((60, 80), (20, 20, 40, 50))
    base = rois(dataset([mask])).fingerprint
    assert base == rois(dataset([mask])).fingerprint
    changes = ({"recipe": "original"}, {"size": 64}, {"context": 50}, {"padding": "zeros"}, {"seed": 1})
    assert len({base, *(rois(dataset([mask]), **change).fingerprint for change in changes)}) == 6


def test_synthetic_rois_can_be_pickled():
    cases = rois(data.load("synthetic_masses", patients=1, size=64), "double_square", size=32)
    assert pickle.loads(pickle.dumps(cases))[1].image.equal(cases[1].image)


BAD_MASKS = {
    "mask: shape \\(60, 81\\), the image has": torch.ones(60, 81, dtype=torch.bool),
    "the lesion is empty": torch.zeros(60, 80, dtype=torch.bool),
    "mask: full": torch.ones(60, 80, dtype=torch.bool),
    "mask: not binary": torch.full((60, 80), 0.5),
    "it has no mask": None,
}


@pytest.mark.parametrize("message", BAD_MASKS)
def test_bad_masks_are_named(message):
    with pytest.raises(DataError, match=f"^mine/0: .*{message}"):
        rois(dataset([BAD_MASKS[message]]))[0]


def test_bad_cuts():
    image, mask = ramp((60, 80)), oval((60, 80), (20, 20, 40, 50))
    with pytest.raises(ValueError, match=r"box: \(50, 20, 70, 50\) is no box within 60 x 80"):
        cut(image, mask, (50, 20, 70, 50))
    with pytest.raises(ValueError, match=r"mask: no pixel in the box \(0, 0, 10, 10\)"):
        cut(image, mask, (0, 0, 10, 10))
    with pytest.raises(ValueError, match="mask: empty"):
        cut(image, torch.zeros(60, 80, dtype=torch.bool), (0, 0, 10, 10))
    with pytest.raises(ValueError, match="rng: None, expected a generator"):
        cut(image, mask, (20, 20, 40, 50), "shifted", copy=1)
    tiny = torch.zeros(60, 80, dtype=torch.bool)
    tiny[30, 30] = True
    with pytest.raises(ValueError, match="size: the mask vanishes when 200 x 200 become 8"):
        cut(image, tiny, (30, 30, 31, 31), size=8, context=200)


def test_boxes_that_the_table_does_not_know():
    mask = oval((60, 80), (20, 20, 40, 50))
    with pytest.raises(DataError, match="mine/0: boxes: 1, the table says 2 lesions"):
        rois(dataset([mask], lesions=[("benign", "benign")]))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "loose"}, "recipe: 'loose' is unknown, expected one of original"),
        ({"padding": "wrap"}, "padding: 'wrap' is unknown, expected one of edge, zeros, reflect"),
        ({"size": 4}, "size, context: 4 and 224"),
        ({"context": 0}, "size, context: 224 and 0"),
        ({"overlap": 0.0}, "overlap: 0.0"),
        ({"copies": 2}, "copies: 2, expected from 1 to 1 for 'mass_centred'"),
        ({"recipe": "double_flips", "copies": 5}, "copies: 5, expected from 1 to 4"),
        ({"recipe": "shifted", "copies": 0}, "copies: 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        rois(dataset([oval((60, 80), (20, 20, 40, 50))]), **options)


def test_no_lesion_at_all():
    with pytest.raises(DataError, match="mine: no case has a lesion"):
        rois(dataset([torch.zeros(60, 80, dtype=torch.bool)], lesions=[()]))


@pytest.mark.realdata
def test_real_busi(data_root):
    cases = data.load("busi", root=data_root / "BUSI" / "Dataset_BUSI_with_GT")
    found = rois(cases)
    assert len(found) == len(cases) and set(found.patient_ids) == set(cases.patient_ids)
    for index in range(0, len(found), 60):
        case = found[index]
        row0, col0, row1, col1 = case.boxes[0].tolist()
        assert case.image.shape == (1, 224, 224) and abs(row0 + row1 - 224) <= 2 and abs(col0 + col1 - 224) <= 2


@pytest.mark.realdata
def test_real_cbis_ddsm(data_root):
    found = rois(data.load("cbis_ddsm", root=data_root / "CBIS-DDSM", kinds=["mass"]))
    assert len(found) == 3 and all(found[i].mask.any() for i in range(3))
