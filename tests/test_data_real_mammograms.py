import numpy as np
import pytest
import torch
from films import films, read

from xai_lib.data.case import Case, CaseDataset, DataError
from xai_lib.data.real_mammograms import prepared, with_centres
from xai_lib.data.synthetic.mammogram_patches import patches


@pytest.mark.parametrize("index", [0, 2])
def test_a_prepared_lesion_is_where_its_box_is(index):
    case = prepared(films(), (160, 80))[index]
    ((row0, col0, row1, col1),) = case.boxes.tolist()
    lesion = case.image[0] > 0.8  # 0.9 over a breast whose brightest pixel is 0.9
    rows, cols = (np.flatnonzero(lesion.any(axis)) for axis in (1, 0))
    assert abs(rows[0] - row0) <= 1 and abs(rows[-1] + 1 - row1) <= 1
    assert abs(cols[0] - col0) <= 1 and abs(cols[-1] + 1 - col1) <= 1
    inside = torch.zeros_like(case.mask)
    inside[row0:row1, col0:col1] = True
    assert (case.mask & ~inside).sum() == 0 and case.mask.sum() > 0.8 * inside.sum()


def test_prepared_breasts_have_the_wall_left_and_no_film_label():
    left, right = (prepared(films(), (160, 80))[i].image[0] for i in (0, 2))
    assert torch.allclose(left, right, atol=0.02)
    assert left[:, 0].max() > 0.3 and left[:6].max() < 0.8 and left[:, -1].sum() < 0.5 * left[:, 0].sum()
    assert prepared(films(), (160, 80))[0].pixel_mm is None


@pytest.mark.parametrize("size", [(120, 160), (160, 40)])
def test_the_aspect_ratio_is_kept_with_black_around(size):
    stretched, kept = (prepared(films(), size, aspect=aspect)[0] for aspect in (False, True))
    assert kept.image.shape == stretched.image.shape == (1, *size)
    ((row0, col0, row1, col1),) = kept.boxes.tolist()
    assert abs((row1 - row0) - (col1 - col0)) <= 2  # the lesion is a square
    assert kept.pixel_mm is not None and (row1 - row0) * kept.pixel_mm == pytest.approx(6.0, abs=2 * kept.pixel_mm)
    filled = kept.image[0] > 0.1
    assert not filled[:, -1].any() if size == (120, 160) else not filled[-1].any()
    assert kept.mask[row0:row1, col0:col1].float().mean() > 0.75 and kept.mask.sum() <= (row1 - row0) * (col1 - col0)
    assert prepared(films(), size).fingerprint != prepared(films(), size, aspect=True).fingerprint


def test_prepared_images_without_a_lesion():
    case = prepared(films(), (160, 80))[1]
    assert case.mask is None and case.boxes.shape == (0, 4) and case.image.shape == (1, 160, 80)


def test_lesions_are_centred_and_normal_places_are_clear_of_them():
    cases = with_centres(films(), seed=0, classes=("malignant", "benign", "normal"), side_mm=10.0, progress=False)
    table = cases.table.set_index("source")
    assert (table.loc["film0-0", ["centre_row", "centre_col"]] == [56, 36]).all()
    assert (table.loc["film2-0", ["centre_row", "centre_col"]] == [56, 64]).all()
    assert table.loc["film0-0", "label"] == 1 and table.loc["film2-0", "label"] == 0
    assert list(table["kind"]).count("normal") == 2  # the only places are those of the lesions: films 0 and 2 have none
    for index in range(len(cases)):
        case, kind = cases[index], cases.table.iloc[index]["kind"]
        assert bool(case.mask.any()) == (kind != "normal") and len(case.boxes) == (kind != "normal")


def test_a_normal_place_is_that_of_a_lesion_relative_to_the_breast():
    table = with_centres(films(), seed=0, side_mm=10.0, progress=False).table.set_index("source")
    mirrored = table.loc["film1-normal", ["centre_row", "centre_col"]].astype(int)
    same = table.loc["film3-normal", ["centre_row", "centre_col"]].astype(int)
    assert abs(same["centre_row"] - 56) <= 1 and abs(same["centre_col"] - 36) <= 1
    assert abs(mirrored["centre_row"] - 56) <= 1 and abs(mirrored["centre_col"] - 64) <= 1


def test_patches_can_be_cut_from_them():
    cut = patches(with_centres(films(), seed=0, side_mm=10.0, progress=False), size=40, side_mm=10.0)
    sick = cut[0]
    assert sick.label == 1 and sick.image.shape == (1, 40, 40)
    assert abs(float(sick.mask.float().mean()) - (12 / 20) ** 2) < 0.05


def test_classes_choose():
    chosen = with_centres(films(), seed=0, classes=("malignant",), side_mm=10.0, progress=False)
    assert list(chosen.table["kind"]) == ["malignant"]


def test_a_film_without_a_breast_is_left_out():
    def blank(row):
        case = read(row)
        return case if row["source"] != "film3" else Case(**{**vars(case), "image": torch.zeros_like(case.image)})

    table = films().table
    cases = with_centres(CaseDataset("films", table, blank), seed=0, side_mm=10.0, progress=False)
    assert "film3-normal" not in set(cases.table["source"])
    assert [item.source for item in cases.skipped] == ["film3"] and "constant" in cases.skipped[0].why


def test_no_located_lesion_is_an_error():
    with pytest.raises(DataError, match="films: no lesion is located"):
        with_centres(films(("normal", "normal"), (False, True)), seed=0, progress=False)
