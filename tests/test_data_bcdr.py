import numpy as np
import pytest
import torch
from mammogram_files import ENCODINGS, truncate
from PIL import Image

from xai_lib import data
from xai_lib.data.bcdr import FINDINGS, check_bcdr, load_bcdr
from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.rois import rois

HEADER = (
    "patient_id,study_id,series,lesion_id,segmentation_id,image_view,image_filename,lw_x_points,lw_y_points,"
    "mammography_type," + ",".join(f"mammography_{finding}" for finding in FINDINGS) + ",age,density,classification"
)
SQUARE = ("10 20 20 10", "5 5 15 15")  # x and y


def line(patient, image, points=SQUARE, view=1, findings=("nodule",), word="Benign", lesion=1):
    flags = ", ".join(str(int(finding in findings)) for finding in FINDINGS)
    path = f"patient_{patient}/study_{patient}/img_{patient}_{patient}_1_{image}.tif"
    x, y = points
    return f"{patient}, {patient}, 1, {lesion}, {lesion}, {view}, {path}, {x}, {y}, 1, {flags}, 55, 2, {word}"


def write(root, part, lines, suffix=".tif", encoding="utf-8"):
    """The part's table as published, cells beginning with a blank, and the images that it names."""
    folder = root / f"BCDR-{part}_dataset"
    for text in lines:
        stem = (folder / text.split(",")[6].strip()).with_suffix("")
        stem.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)
        Image.fromarray(pixels).save(stem.with_suffix(suffix))
    table = folder / f"bcdr_{part.lower()}_outlines.csv"
    table.write_bytes(("\r\n".join([HEADER, *lines]) + "\r\n").encode(encoding))
    return folder


@pytest.fixture
def root(tmp_path):
    digital = [
        line(1, "RCC", word="Malign", findings=("nodule", "microcalcification")),
        line(1, "RO", view=3, word="Malign"),
        line(2, "LCC", view=2, findings=("calcification",)),
    ]
    film = [
        line(1, "LO", view=4),
        line(9, "RCC", lesion=1),
        line(9, "RCC", points=("1 8 8 1", "30 30 38 38"), word="Malign", lesion=2),
    ]
    write(tmp_path, "D01", digital)
    write(tmp_path, "F01", film)
    return tmp_path


def test_cases(root):
    cases = load_bcdr(root)
    assert list(cases.table["source"]) == [
        "bcdr/D01/img_1_1_1_RCC",
        "bcdr/D01/img_1_1_1_RO",
        "bcdr/F01/img_1_1_1_LO",
        "bcdr/F01/img_9_9_1_RCC",
    ]
    assert cases.labels.tolist() == [1, 1, 0, 1]
    assert list(cases.table["class"]) == ["malignant", "malignant", "benign", "malignant"]
    assert list(cases.table["laterality"]) == list("RRLR")
    assert list(cases.table["view"]) == ["CC", "MLO", "MLO", "CC"]
    assert list(cases.table["lesions"]) == [("malignant",), ("malignant",), ("benign",), ("benign", "malignant")]
    assert cases.table["findings"][0] == ("nodule+microcalcification",) and set(cases.table["density"]) == {"2"}
    assert cases[0].pixel_mm == 0.07 and cases[2].pixel_mm is None
    assert cases[0].image.shape == (1, 40, 30) and not cases.skipped


def test_one_patient_in_two_parts(root):
    ids = load_bcdr(root).patient_ids
    assert ids[0] == ids[1] == ids[2] == hashed_id("bcdr/1") and ids[3] == hashed_id("bcdr/9")


def test_outline_by_hand(root):
    case = load_bcdr(root)[0]  # x from 10 to 20, y from 5 to 15
    rows, cols = torch.nonzero(case.mask, as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (5, 15, 10, 20)
    assert case.boxes.tolist() == [[5, 10, 16, 21]]
    assert 100 <= int(case.mask.sum()) <= 121 and case.mask[6:15, 11:20].all()
    for x, y in ((10, 5), (20, 5), (20, 15), (10, 15)):
        assert case.mask[y, x]


def test_outline_of_a_disc(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x, y = np.round(14 + 10 * np.cos(angles)).astype(int), np.round(20 + 12 * np.sin(angles)).astype(int)
    write(tmp_path, "D01", [line(1, "RCC", points=(" ".join(map(str, x)), " ".join(map(str, y))))])
    mask = load_bcdr(tmp_path)[0].mask
    rows, cols = np.ogrid[:40, :30]
    disc = torch.from_numpy(((rows - 20) / 12) ** 2 + ((cols - 14) / 10) ** 2 <= 1)
    assert int((mask ^ disc).sum()) <= 0.15 * int(disc.sum())  # half a pixel of 69 around it


def test_two_lesions_of_one_image_are_two_boxes_and_two_rois(root):
    cases = load_bcdr(root)
    assert cases[3].boxes.tolist() == [[5, 10, 16, 21], [30, 1, 39, 9]]
    found = rois(cases.subset([3]), size=16, context=16)
    assert found.labels.tolist() == [0, 1] and found[1].mask.any()


def test_findings(root):
    assert len(load_bcdr(root, findings=None)) == 5
    assert list(load_bcdr(root, findings=["calcification"]).table["source"]) == ["bcdr/D01/img_2_2_1_LCC"]
    assert len(load_bcdr(root, findings=["microcalcification"])) == 1
    with pytest.raises(ValueError, match=r"findings: \['mass'\], expected None or some of nodule, calcification"):
        load_bcdr(root, findings=["mass"])


def test_parts(root):
    assert set(load_bcdr(root, parts=["F01"]).table["part"]) == {"F01"}
    assert len(load_bcdr(root / "BCDR-D01_dataset")) == 2  # the folder of one part will do
    with pytest.raises(DataError, match=r"holds no 'BCDR-F01_dataset/bcdr_f01_outlines.csv'"):
        load_bcdr(root / "BCDR-D01_dataset", parts=["F01"])
    for parts in (["D02"], [], "D01"):
        with pytest.raises(ValueError, match=r"parts: .* expected None or some of D01, F01"):
            load_bcdr(root, parts=parts)


def test_classes(root):
    assert load_bcdr(root, classes=["benign"]).labels.tolist() == [0]
    with pytest.raises(ValueError, match="classes"):
        load_bcdr(root, classes=["cancer"])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_table_in_any_encoding(tmp_path, encoding):
    write(tmp_path, "F01", [line(1, "RCC")], encoding=encoding)
    assert len(load_bcdr(tmp_path)) == 1


def test_images_converted_to_png(tmp_path):
    write(tmp_path, "F01", [line(1, "RCC")], suffix=".png")
    assert load_bcdr(tmp_path)[0].mask.any()


def test_missing_and_damaged_images(root):
    folder = root / "BCDR-D01_dataset" / "patient_1" / "study_1"
    (folder / "img_1_1_1_RCC.tif").unlink()
    truncate(folder / "img_1_1_1_RO.tif", keep=0.3)
    cases = load_bcdr(root)
    assert len(cases) == 3 and summary(cases.skipped) == "1 x image file is missing"
    with pytest.raises(DataError, match=r"img_1_1_1_RO.tif: not a readable image"):
        cases[0]
    assert len(load_bcdr(root, verify=True)) == 2
    with pytest.raises(DataError, match="bcdr/D01/img_1_1_1_RCC: image file is missing"):
        load_bcdr(root, strict=True)


FAULTS = {
    r"classification 'Suspect' is none of Benign, Malign": {"word": "Suspect"},
    r"image_view '5' is none of 1, 2, 3, 4": {"view": 5},
    r"outline of lesion 1 has 3 x and 4 y, expected as many": {"points": ("1 2 3", "1 2 3 4")},
    r"outline of lesion 1 has 2 x and 2 y, expected as many, at least 3": {"points": ("1 2", "1 2")},
    r"outline of lesion 1 is not understood": {"points": ("1 2 three", "1 2 3")},
}


@pytest.mark.parametrize("message", FAULTS)
def test_faulty_rows_are_skipped_and_named(tmp_path, message):
    write(tmp_path, "D01", [line(1, "RCC"), line(2, "RCC", **FAULTS[message])])
    cases = load_bcdr(tmp_path)
    assert len(cases) == 1 and cases.skipped[0].source == "bcdr/D01/img_2_2_1_RCC"
    with pytest.raises(DataError, match=message):
        load_bcdr(tmp_path, strict=True)


def test_outline_across_the_edge_and_outside(tmp_path):
    across = line(1, "RCC", points=("20 50 50 20", "30 30 60 60"))
    write(tmp_path, "D01", [across, line(2, "RCC", points=("50 60 60 50", "5 5 15 15"))])
    cases = load_bcdr(tmp_path)
    assert cases[0].boxes.tolist() == [[30, 20, 40, 30]] and cases[0].mask[30:, 20:].all()
    with pytest.raises(DataError, match="box outside the image"):
        cases[1]


def test_missing_table_and_columns(tmp_path):
    with pytest.raises(DataError, match=r"holds no 'BCDR-D01_dataset/bcdr_d01_outlines.csv'"):
        load_bcdr(tmp_path)
    folder = write(tmp_path, "D01", [line(1, "RCC")])
    (folder / "bcdr_d01_outlines.csv").write_text("patient_id,study_id\n1,1\n")
    with pytest.raises(DataError, match="lacks the columns lesion_id"):
        load_bcdr(tmp_path)


def test_check(root):
    (root / "BCDR-F01_dataset" / "patient_9" / "study_9" / "img_9_9_1_RCC.tif").unlink()
    report = check_bcdr(root)
    assert report.found == {
        "normal images": 0, "benign images": 2, "malignant images": 2, "patients": 2, "located lesions": 4
    }  # fmt: skip
    assert report.missing == ["bcdr/F01/img_9_9_1_RCC"]
    assert report.notes[0] == "parts: D01, F01; 3 of the located lesions are masses"


def test_by_name(root):
    assert data.load("bcdr", root=root).fingerprint == load_bcdr(root).fingerprint
    assert data.check("bcdr", root).found["patients"] == 3
