import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xai_lib import config
from xai_lib.data import breast
from xai_lib.data.case import DataError, hashed_id, summary

NAME = "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx"


def rgba(grey):
    return np.dstack([grey, grey, grey, np.full_like(grey, 255)])


def square(row, col, side=5):
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[row : row + side, col : col + side] = 255
    return mask


def table(**changes):
    """Four cases: benign with two tumours, malignant, normal, and benign whose image is not there."""
    frame = pd.DataFrame(
        {
            "CaseID": [1, 2, 3, 4],
            "Image_filename": [f"case00{i}.png" for i in range(1, 5)],
            "Mask_tumor_filename": [
                "case001_tumor1.png&case001_tumor2.png",
                "case002_tumor.png",
                None,
                "case004_tumor.png",
            ],
            "Mask_other_filename": [None] * 4,
            "Pixel_size": [0.008, 0.0125, 0.01, 0.01],
            "BIRADS": [3, "4b", 1, 2],
            "Diagnosis": ["Cyst", "NST", "not applicable", "not applicable"],
            "Classification": ["benign", "malignant", "normal", "benign"],
        }
    )
    return frame.assign(**changes)


def write(root, frame):
    root.mkdir(parents=True, exist_ok=True)
    frame.to_excel(root / NAME, index=False)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "BrEaST"
    write(folder, table())
    images = folder / breast.IMAGES
    images.mkdir()
    rng = np.random.default_rng(0)
    for number in (1, 2, 3):
        Image.fromarray(rgba(rng.integers(0, 255, (30, 40), dtype=np.uint8))).save(images / f"case00{number}.png")
    Image.fromarray(rgba(square(0, 0))).save(images / "case001_tumor1.png")
    Image.fromarray(rgba(square(20, 30))).save(images / "case001_tumor2.png")
    Image.fromarray(rgba(square(10, 10))).save(images / "case002_tumor.png")
    return folder


def test_cases(root):
    cases = breast.load_breast(root)
    assert list(cases.table["source"]) == ["breast/case001", "breast/case002"]
    assert cases.labels.tolist() == [0, 1]
    assert cases.patient_ids.tolist() == [hashed_id("breast/1"), hashed_id("breast/2")]
    assert cases[0].boxes.tolist() == [[0, 0, 5, 5], [20, 30, 25, 35]] and int(cases[0].mask.sum()) == 50
    assert list(cases.table["birads"]) == ["3", "4b"] and list(cases.table["diagnosis"]) == ["Cyst", "NST"]


def test_pixel_size_is_converted_to_mm(root):
    cases = breast.load_breast(root)
    assert [case.pixel_mm for case in cases] == pytest.approx([0.08, 0.125])
    assert type(cases[0].pixel_mm) is float


def test_missing_image_and_normal_case_are_skipped_and_counted(root):
    assert summary(breast.load_breast(root).skipped) == "1 x image file is missing, 1 x normal"
    with pytest.raises(DataError, match=r"^breast: breast/case004: image file is missing$"):
        breast.load_breast(root, strict=True)


def test_strict_accepts_a_complete_release(root):
    write(root, table().iloc[:3])
    assert len(breast.load_breast(root, strict=True)) == 2


@pytest.mark.parametrize("size", [None, float("nan"), 0.0, -0.008, float("inf"), "0.008", "unknown", True])
def test_pixel_size_missing_zero_negative_or_string(root, size):
    write(root, table(Pixel_size=pd.Series([size, 0.0125, 0.01, 0.01], dtype=object)).iloc[:3])
    cases = breast.load_breast(root)
    assert list(cases.table["source"]) == ["breast/case002"]
    assert summary(cases.skipped) == "1 x pixel size is not a number above 0, 1 x normal"
    with pytest.raises(DataError, match=r"breast/case001: pixel size is not a number above 0: .*in cm per pixel"):
        breast.load_breast(root, strict=True)


def test_whole_number_of_centimetres_is_a_number(root):
    write(root, table(Pixel_size=[1, 1, 1, 1]))
    assert breast.load_breast(root)[0].pixel_mm == 10


def no_mask_named(images):
    write(images.parent, table(Mask_tumor_filename=[None, "case002_tumor.png", None, None]).iloc[:3])


def no_mask_file(images):
    os.remove(images / "case001_tumor2.png")


def mask_of_another_size(images):
    Image.fromarray(square(0, 0).T).save(images / "case001_tumor1.png")


def mask_with_no_pixel(images):
    Image.fromarray(rgba(square(0, 0, 0))).save(images / "case001_tumor1.png")


def truncated(images):
    (images / "case001.png").write_bytes((images / "case001.png").read_bytes()[:400])


def text(images):
    (images / "case001.png").write_text("hello")


def other_class(images):
    write(images.parent, table(Classification=["maybe", "malignant", "normal", "benign"]).iloc[:3])


FAULTS = [
    (no_mask_named, "image without mask: the table names none"),
    (no_mask_file, "case001_tumor2.png: image file is missing"),
    (mask_of_another_size, "case001_tumor1.png: mask has another size than its image"),
    (mask_with_no_pixel, "case001_tumor1.png: mask has no pixel"),
    (truncated, "case001.png: not a readable image"),
    (text, "case001.png: not a readable image"),
    (other_class, "Classification: 'maybe' is none of"),
]


@pytest.mark.parametrize(("damage", "why"), FAULTS, ids=[damage.__name__ for damage, _ in FAULTS])
def test_bad_input_is_skipped_and_counted_or_refused(root, damage, why):
    write(root, table().iloc[:3])
    damage(root / breast.IMAGES)
    cases = breast.load_breast(root)
    assert list(cases.table["source"]) == ["breast/case002"]
    assert cases.skipped[0].source == "breast/case001" and cases.skipped[0].why.startswith(why)
    assert str(root) not in cases.skipped[0].why
    with pytest.raises(DataError) as error:
        breast.load_breast(root, strict=True)
    assert str(error.value).startswith(f"breast: breast/case001: {why}")
    assert breast.check_breast(root).faulty == [cases.skipped[0]]


def test_folder_without_table_or_with_a_damaged_one(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        breast.load_breast(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no 'BrEaST-Lesions-USG-clinical-data\*\.xlsx'"):
        breast.load_breast(tmp_path)
    (tmp_path / NAME).write_text("no spreadsheet")
    with pytest.raises(DataError, match="not a readable XLSX file"):
        breast.load_breast(tmp_path)
    write(tmp_path, table().drop(columns="Pixel_size"))
    with pytest.raises(DataError, match="the first sheet lacks the columns Pixel_size"):
        breast.load_breast(tmp_path)


def test_no_usable_case(tmp_path):
    write(tmp_path, table())
    with pytest.raises(DataError, match=r"no case of .* can be used; the first reason: breast/case001: image file"):
        breast.load_breast(tmp_path)
    assert "4 missing" in str(breast.check_breast(tmp_path))
    write(tmp_path, table().iloc[:0])
    with pytest.raises(DataError, match="it is empty"):
        breast.load_breast(tmp_path)


def test_check_counts(root):
    report = breast.check_breast(root)
    assert report.found == {
        "rows of the table": 4,
        "benign images": 1,
        "malignant images": 1,
        "tumour masks": 3,
        "normal images": 1,
    }
    assert report.missing == ["breast/case004"] and report.faulty == []
    assert report.notes[0] == "pixel size 0.080 to 0.125 mm"


def test_no_identifier_in_what_is_kept(root):
    write(root, table(CaseID=["Jane Doe", "John Doe", "x", "y"]))
    cases = breast.load_breast(root)
    assert "Doe" not in f"{cases.table.to_dict()} {cases.skipped} {breast.check_breast(root)}"


@pytest.mark.realdata
@pytest.mark.skipif(config.data_dir() is None, reason="XAI_DATA_DIR is not set")
def test_official_files():
    cases = breast.load_breast(config.data_dir() / "BrEaST")
    found = breast.check_breast(config.data_dir() / "BrEaST").found
    assert found["rows of the table"] == 256 == len(cases) + len(cases.skipped)
    sizes = [case.pixel_mm for case in cases]
    assert 0.04 < min(sizes) and max(sizes) < 0.14
    assert all(case.mask.any() and case.mask.shape == case.image.shape[1:] for case in cases)
