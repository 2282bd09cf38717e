import pytest
from mammogram_files import ENCODINGS, grey, truncate, write_dicom
from PIL import Image

from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.rsna import check_rsna, load_rsna

HEAD = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
    "difficult_negative_case"
)
LINES = [
    "2,10006,462822612,L,CC,61.0,0,0,0,,0,,29,False",
    "2,10006,1459541791,L,MLO,61.0,0,0,0,,0,,29,False",
    "1,10130,388811999,R,CC,71.0,1,1,1,0.0,0,B,49,False",
    "1,10200,613462606,R,MLO,60.0,0,1,0,0.0,0,C,49,True",
    "1,10200,613462607,R,AT,60.0,0,1,0,0.0,0,C,49,True",
    "2,10300,700000001,L,CC,55.0,0,0,0,1.0,0,A,48,False",
]


def write_table(root, lines=LINES, head=HEAD, encoding="utf-8"):
    (root / "train.csv").write_bytes("\n".join([head, *lines, ""]).encode(encoding))


@pytest.fixture
def root(tmp_path):
    write_table(tmp_path)
    for line in LINES[:5]:
        _, patient, image, side, view, *_ = line.split(",")
        path = tmp_path / "train_images" / patient / f"{image}.dcm"
        write_dicom(path, grey(), ImageLaterality=side, ViewPosition=view, ImagerPixelSpacing=[0.065, 0.065])
    return tmp_path


def test_cases(root):
    cases = load_rsna(root)
    assert list(cases.table["source"]) == [f"rsna/{image}" for image in (462822612, 1459541791, 388811999, 613462606)]
    assert list(cases.table["class"]) == ["normal", "normal", "malignant", "benign"]
    assert cases.labels.tolist() == [0, 0, 1, 0]
    assert cases.patient_ids.tolist() == [hashed_id(f"rsna/{patient}") for patient in (10006, 10006, 10130, 10200)]
    assert list(cases.table["view"]) == ["CC", "MLO", "CC", "MLO"] and list(cases.table["laterality"]) == list("LLRR")
    assert list(cases.table["density"]) == ["", "", "B", "C"]
    assert summary(cases.skipped) == "1 x image file is missing, 1 x view not asked for"


def test_a_case_has_no_boxes(root):
    case = load_rsna(root)[2]
    assert case.image.shape == (1, 40, 30) and case.pixel_mm == 0.065
    assert case.mask is None and case.boxes.shape == (0, 4)


def test_options(root):
    assert len(load_rsna(root, views=["AT"])) == 1
    assert load_rsna(root, classes=["malignant", "normal"]).labels.tolist() == [0, 0, 1]


def test_converted_image(root):
    folder = root / "train_images" / "10006"
    (folder / "462822612.dcm").unlink()
    Image.fromarray(grey(20, 10)).save(folder / "462822612.png")
    case = load_rsna(root)[0]
    assert case.image.shape == (1, 20, 10) and case.pixel_mm is None


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_table_in_another_encoding(root, encoding):
    write_table(root, encoding=encoding)
    assert len(load_rsna(root)) == 4


def test_missing_columns_are_named(root):
    write_table(root, head=HEAD.replace("cancer", "verdict"))
    with pytest.raises(DataError, match=r"train\.csv: lacks the columns cancer; it has site_id"):
        load_rsna(root)


@pytest.mark.parametrize(("cell", "word"), [(3, "X"), (6, ""), (6, "2"), (7, "yes")])
def test_faulty_row(root, cell, word):
    cells = LINES[0].split(",")
    cells[cell] = word
    write_table(root, [",".join(cells), *LINES[1:5]])
    cases = load_rsna(root)
    assert len(cases) == 3 and f"{word!r} is none of" in cases.skipped[0].why
    with pytest.raises(DataError, match="rsna/462822612: "):
        load_rsna(root, strict=True)


def test_image_named_twice(root):
    """Two rows of one SOP id would be two cases of one image."""
    write_table(root, [LINES[0], *LINES[:5]])
    with pytest.raises(DataError, match=r"rsna: two rows have the source 'rsna/462822612'; sources must be unique"):
        load_rsna(root)


def test_missing_image_with_strict(root):
    with pytest.raises(DataError, match=r"^rsna: rsna/700000001: image file is missing$"):
        load_rsna(root, strict=True)


def test_damaged_image(root):
    truncate(root / "train_images" / "10130" / "388811999.dcm")
    with pytest.raises(DataError, match=r"388811999\.dcm"):
        load_rsna(root)[2]
    report = check_rsna(root, verify=True)
    assert [item.source for item in report.faulty] == ["rsna/388811999"] and report.missing == ["rsna/700000001"]
    assert "left out: 1 x view not asked for" in str(report)
