import plistlib
import sys

import numpy as np
import pandas as pd
import pytest
from mammogram_files import ENCODINGS, grey, truncate, write_dicom

from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.inbreast import check_inbreast, load_inbreast

HEAD = "Patient ID;Patient age;Laterality;View;Acquisition date;File Name;ACR;Bi-Rads"
LINES = [
    "removed;removed;R;CC;201001;20586908;4;5",
    "removed;removed;L;MLO;201001;20586934;4;1",
    "removed;removed;L;CC;201001;22580192;2;4a",
    "removed;removed;R;MLO;201001;22580218;;3",
    "removed;removed;R;MLO;201001;99999999;1;2",
]
FILES = {
    "20586908": "20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm",
    "20586934": "20586934_6c613a14b80a8591_MG_L_ML_ANON.dcm",
    "22580192": "22580192_5530d5782fc89dd7_MG_L_CC_ANON.dcm",
    "22580218": "22580218_5530d5782fc89dd7_MG_R_ML_ANON.dcm",
}
SQUARE = [(5, 10), (15, 10), (15, 20), (5, 20)]  # x, y
TRIANGLE = [(20.5, 30.2), (24.5, 30.2), (22.0, 36.7)]


def write_table(root, lines=LINES, head=HEAD, encoding="utf-8"):
    (root / "INbreast.csv").write_bytes("\r\n".join([head, *lines, ";;;;;;;", ""]).encode(encoding))


def write_contours(root, number, regions):
    """Regions as OsiriX writes them: names and points (x, y)."""
    rois = [
        {"Name": name, "NumberOfPoints": len(points), "Point_px": [f"({x:f}, {y:f})" for x, y in points]}
        for name, points in regions
    ]
    (root / "AllXML").mkdir(exist_ok=True)
    content = {"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": rois}]}
    (root / "AllXML" / f"{number}.xml").write_bytes(plistlib.dumps(content, fmt=plistlib.FMT_XML))


@pytest.fixture
def root(tmp_path):
    write_table(tmp_path)
    for seed, name in enumerate(FILES.values()):
        write_dicom(tmp_path / "AllDICOMs" / name, grey(seed=seed), bits=14, ImagerPixelSpacing=[0.07, 0.07])
    regions = [
        ("Mass", SQUARE),
        ("Spiculated Region", TRIANGLE),
        ("Calcification", [(1, 1)]),
        ("Calcifications", SQUARE),
    ]
    write_contours(tmp_path, "20586908", regions)
    write_contours(tmp_path, "22580192", [("Cluster", TRIANGLE), ("Assymetry", SQUARE)])
    return tmp_path


def test_cases(root):
    cases = load_inbreast(root)
    assert [source[9:] for source in cases.table["source"]] == list(FILES)
    assert list(cases.table["class"]) == ["malignant", "normal", "malignant", "benign"]
    assert cases.labels.tolist() == [1, 0, 1, 0] and list(cases.table["birads"]) == ["5", "1", "4a", "3"]
    codes = ["6c613a14b80a8591"] * 2 + ["5530d5782fc89dd7"] * 2
    assert cases.patient_ids.tolist() == [hashed_id(f"inbreast/{code}") for code in codes]
    assert list(cases.table["laterality"]) == list("RLLR") and list(cases.table["view"]) == ["CC", "MLO", "CC", "MLO"]
    assert cases[0].pixel_mm == 0.07 and cases[0].image.shape == (1, 40, 30)
    assert summary(cases.skipped) == "1 x image file is missing"


def test_regions_become_mask_and_boxes(root):
    case = load_inbreast(root)[0]
    assert case.boxes.tolist() == [[10, 5, 21, 16], [30, 20, 37, 25]]
    square = np.zeros((40, 30), bool)
    square[10:21, 5:16] = True
    assert (case.mask.numpy() & square).sum() == 121  # a contour's own pixels are inside it
    assert case.mask[32, 22] and not case.mask[32, 20] and not case.mask[38:].any()
    assert load_inbreast(root).table["lesions"][0] == ("mass", "spiculated")
    assert load_inbreast(root).table["lesions"][2] == ("cluster", "asymmetry")


def test_findings(root):
    assert load_inbreast(root, findings=["calcification"])[0].boxes.tolist() == [[10, 5, 21, 16]]  # the point is none
    assert load_inbreast(root, findings=[])[0].mask is None
    with pytest.raises(ValueError, match="findings: 'mass', expected some of mass, cluster"):
        load_inbreast(root, findings="mass")


def test_image_without_contours_has_no_mask(root):
    assert load_inbreast(root)[1].mask is None and load_inbreast(root)[3].boxes.shape == (0, 4)


def test_classes(root):
    assert load_inbreast(root, classes=["normal", "malignant"]).labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_table_in_another_encoding(root, encoding):
    write_table(root, encoding=encoding)
    assert len(load_inbreast(root)) == 4


def test_missing_columns_are_named(root):
    write_table(root, head=HEAD.replace("Bi-Rads", "Category").replace("View", "Angle"))
    with pytest.raises(DataError, match=r"INbreast\.csv: lacks the columns View, Bi-Rads; it has Patient ID"):
        load_inbreast(root)


def test_missing_table(root):
    (root / "INbreast.csv").unlink()
    with pytest.raises(DataError, match=r"INbreast\.csv: file is missing"):
        load_inbreast(root)


def test_spreadsheet_is_read_where_there_is_no_csv(root):
    (root / "INbreast.csv").unlink()
    rows = [line.split(";") for line in LINES]
    table = pd.DataFrame(rows, columns=HEAD.split(";"))
    table["File Name"] = table["File Name"].astype(float)  # as a spreadsheet has it, with an empty row below
    pd.concat([table, pd.DataFrame([{}])]).to_excel(root / "INbreast.xlsx", index=False)
    assert len(load_inbreast(root)) == 4


def test_old_spreadsheet_without_xlrd_says_what_to_do(root, monkeypatch):
    (root / "INbreast.csv").rename(root / "INbreast.xls")
    monkeypatch.setitem(sys.modules, "xlrd", None)
    with pytest.raises(
        DataError, match=r"INbreast\.xls: cannot be read: .*; save it as INbreast\.csv with separator ';'"
    ):
        load_inbreast(root)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("removed;removed;R;CC;201001;20586908;4;7", "Bi-Rads '7' is none of 1 to 6"),
        ("removed;removed;R;CC;201001;20586908;4;", "Bi-Rads '' is none of"),
        ("removed;removed;X;CC;201001;20586908;4;5", "Laterality 'X' is none of L, R"),
        ("removed;removed;R;FB;201001;20586908;4;5", "View 'FB' is none of CC, MLO"),
    ],
)
def test_faulty_row(root, line, why):
    write_table(root, [line, *LINES[1:4]])
    cases = load_inbreast(root)
    assert len(cases) == 3 and cases.skipped[0].why.startswith(why)
    with pytest.raises(DataError, match=f"inbreast/20586908: {why}"):
        load_inbreast(root, strict=True)


@pytest.mark.parametrize("content", [b"hello", b"<?xml version='1.0'?><plist><dict>", plistlib.dumps({"Images": []})])
def test_contours_not_understood(root, content):
    (root / "AllXML" / "20586908.xml").write_bytes(content)
    cases = load_inbreast(root)
    assert len(cases) == 3 and "20586908.xml: contours not understood" in cases.skipped[0].why


def test_point_not_understood(root):
    path = root / "AllXML" / "20586908.xml"
    path.write_text(path.read_text().replace("(15.000000, 20.000000)", "nowhere"))
    assert "a point is not '(x, y)'" in load_inbreast(root).skipped[0].why


def test_region_outside_the_image(root):
    write_contours(root, "20586908", [("Mass", [(100, 100), (110, 100), (110, 110)])])
    with pytest.raises(DataError, match="box outside the image"):
        load_inbreast(root)[0]
    assert summary(load_inbreast(root, verify=True).skipped).startswith("1 x box outside the image")


def test_damaged_image(root):
    truncate(root / "AllDICOMs" / FILES["20586934"])
    with pytest.raises(DataError, match=FILES["20586934"]):
        load_inbreast(root)[1]
    assert len(load_inbreast(root, verify=True)) == 3
    assert [item.source for item in check_inbreast(root, verify=True).faulty] == ["inbreast/20586934"]


def test_missing_image_with_strict(root):
    with pytest.raises(DataError, match=r"^inbreast: inbreast/99999999: image file is missing$"):
        load_inbreast(root, strict=True)
    assert check_inbreast(root).missing == ["inbreast/99999999"] and check_inbreast(root).found["located lesions"] == 4
