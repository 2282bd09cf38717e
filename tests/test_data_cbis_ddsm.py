import csv

import numpy as np
import pytest
from mammogram_files import ENCODINGS, grey, truncate, write_dicom
from PIL import Image

from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.cbis_ddsm import check_cbis_ddsm, load_cbis_ddsm

HEAD = (
    "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,mass shape,mass margins,"
    "assessment,pathology,subtlety,image file path,cropped image file path,ROI mask file path"
)


def lesion(kind, part, patient, side, view, number, pathology):
    """A row of an official table: the last path ends with a stray line break."""
    top = f"{kind}-{part}_{patient}_{side}_{view}"
    paths = [
        f"{top}/1.3.6/9.1/000000.dcm",
        f"{top}_{number}/1.3.7/9.2/000000.dcm",
        f"{top}_{number}/1.3.7/9.2/000001.dcm\n",
    ]
    return [patient, "3", side, view, str(number), kind.lower(), "OVAL", "", "4", pathology, "3", *paths]


LESIONS = {
    "mass_case_description_train_set.csv": [
        lesion("Mass", "Training", "P_00001", "LEFT", "CC", 1, "MALIGNANT"),
        lesion("Mass", "Training", "P_00001", "LEFT", "CC", 2, "BENIGN"),
        lesion("Mass", "Training", "P_00002", "RIGHT", "MLO", 1, "BENIGN_WITHOUT_CALLBACK"),
    ],
    "mass_case_description_test_set.csv": [lesion("Mass", "Test", "P_00003", "LEFT", "CC", 1, "BENIGN")],
    "calc_case_description_train_set.csv": [lesion("Calc", "Training", "P_00003", "LEFT", "CC", 1, "BENIGN")],
    "calc_case_description_test_set.csv": [lesion("Calc", "Test", "P_00004", "LEFT", "MLO", 1, "MALIGNANT")],
}


def write_tables(root, lesions=LESIONS, head=HEAD, encoding="utf-8", terminator="\r\n"):
    root.mkdir(exist_ok=True)
    for name, rows in lesions.items():
        with (root / name).open("w", encoding=encoding, newline="") as file:
            file.write(head.replace("breast_density", "breast density" if "calc" in name else "breast_density"))
            file.write(terminator)
            csv.writer(file, lineterminator=terminator).writerows(rows)


def mask(box, rows=40, cols=30):
    pixels = np.zeros((rows, cols), np.uint8)
    pixels[box[0] : box[2], box[1] : box[3]] = 255
    return pixels


def write_lesion(root, top, box, mask_name="000001", crop_name="000000", series=True):
    """Mask and crop of a lesion as the official DICOM files."""
    folder = root / top / "1.3.7" / "9.2"
    said = ("ROI mask images", "cropped images") if series else (None, None)
    headers = [{"SeriesDescription": words} if words else {} for words in said]
    write_dicom(folder / f"{mask_name}.dcm", mask(box), bits=8, **headers[0])
    write_dicom(folder / f"{crop_name}.dcm", grey(box[2] - box[0], box[3] - box[1], top=65536), bits=16, **headers[1])


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "CBIS-DDSM"
    write_tables(root)
    for number, top in enumerate(("Training_P_00001_LEFT_CC", "Training_P_00002_RIGHT_MLO", "Test_P_00003_LEFT_CC")):
        write_dicom(root / f"Mass-{top}" / "1.3.6" / "9.1" / "000000.dcm", grey(seed=number, top=65536), bits=16)
    write_lesion(root, "Mass-Training_P_00001_LEFT_CC_1", (5, 6, 15, 20))
    write_lesion(root, "Mass-Training_P_00001_LEFT_CC_2", (30, 2, 35, 9))
    write_lesion(root, "Mass-Training_P_00002_RIGHT_MLO_1", (0, 0, 4, 4), mask_name="000000", crop_name="000001")
    write_lesion(root, "Mass-Test_P_00003_LEFT_CC_1", (10, 10, 20, 20), "000000", "000001", series=False)
    return root


def test_cases(root):
    cases = load_cbis_ddsm(root)
    assert list(cases.table["source"]) == [
        "cbis_ddsm/Mass-Training_P_00001_LEFT_CC",
        "cbis_ddsm/Mass-Training_P_00002_RIGHT_MLO",
        "cbis_ddsm/Mass-Test_P_00003_LEFT_CC",
    ]
    assert cases.labels.tolist() == [1, 0, 0]
    assert cases.patient_ids.tolist() == [hashed_id(f"cbis_ddsm/P_0000{i}") for i in (1, 2, 3)]
    assert list(cases.table["laterality"]) == ["L", "R", "L"] and list(cases.table["view"]) == ["CC", "MLO", "CC"]
    assert list(cases.table["pathology"]) == ["MALIGNANT+BENIGN", "BENIGN_WITHOUT_CALLBACK", "BENIGN"]
    assert list(cases.table["part"]) == ["train", "train", "test"]
    assert summary(cases.skipped) == "2 x image file is missing"


def test_two_lesions_are_one_mask_and_two_boxes(root):
    cases = load_cbis_ddsm(root)
    assert cases[0].boxes.tolist() == [[5, 6, 15, 20], [30, 2, 35, 9]] and int(cases[0].mask.sum()) == 140 + 35
    assert cases.table["lesions"][0] == ("malignant", "benign") and cases[0].pixel_mm is None


def test_which_file_is_the_mask_is_decided_by_series_description_or_content(root):
    cases = load_cbis_ddsm(root)
    assert cases[1].boxes.tolist() == [[0, 0, 4, 4]]  # names exchanged, said by the header
    assert cases[2].boxes.tolist() == [[10, 10, 20, 20]]  # names exchanged, seen from the grey levels


def test_crops(root):
    cases = load_cbis_ddsm(root, crops=True)
    assert [source[10:] for source in cases.table["source"]] == [
        "Mass-Training_P_00001_LEFT_CC_1",
        "Mass-Training_P_00001_LEFT_CC_2",
        "Mass-Training_P_00002_RIGHT_MLO_1",
        "Mass-Test_P_00003_LEFT_CC_1",
    ]
    assert cases.labels.tolist() == [1, 0, 0, 0]  # each lesion its own
    assert [case.image.shape[1:] for case in cases] == [(10, 14), (5, 7), (4, 4), (10, 10)]
    assert cases[0].mask is None and len(cases[0].boxes) == 0


def test_png_is_read_where_there_is_no_dicom(root):
    folder = root / "Calc-Test_P_00004_LEFT_MLO"
    (folder / "1").mkdir(parents=True)
    Image.fromarray(grey(top=65536)).save(folder / "1" / "000000.png")
    (root / f"{folder.name}_1").mkdir()
    Image.fromarray(np.dstack([mask((1, 2, 3, 4))] * 3)).save(root / f"{folder.name}_1" / "000001.png")
    cases = load_cbis_ddsm(root, kinds=["calc"])
    assert cases.labels.tolist() == [1] and cases[0].boxes.tolist() == [[1, 2, 3, 4]]
    Image.fromarray(grey(7, 7)).save(root / "Mass-Test_P_00003_LEFT_CC" / "1.3.6" / "9.1" / "000000.png")
    assert load_cbis_ddsm(root, part="test", kinds=["mass"])[0].image.shape == (1, 40, 30)  # .dcm goes first


def test_options(root):
    assert len(load_cbis_ddsm(root, part="train")) == 2
    assert load_cbis_ddsm(root, classes=["malignant"]).labels.tolist() == [1]
    with pytest.raises(ValueError, match="part: 'val' is unknown"):
        load_cbis_ddsm(root, part="val")
    with pytest.raises(ValueError, match="kinds: 'mass', expected some of mass, calc"):
        load_cbis_ddsm(root, kinds="mass")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tables_in_another_encoding(root, encoding):
    write_tables(root, encoding=encoding, terminator="\n")
    assert len(load_cbis_ddsm(root)) == 3


def test_missing_columns_are_named(root):
    write_tables(root, head=HEAD.replace("pathology", "verdict").replace("image view", "angle"))
    with pytest.raises(
        DataError, match=r"mass_case_description_train_set\.csv: lacks the columns image view, pathology;"
    ):
        load_cbis_ddsm(root)


def test_missing_table(root):
    (root / "calc_case_description_test_set.csv").unlink()
    with pytest.raises(DataError, match=r"calc_case_description_test_set\.csv: file is missing"):
        load_cbis_ddsm(root)


def test_missing_images_with_strict(root):
    with pytest.raises(DataError, match=r"cbis_ddsm/Calc-Training_P_00003_LEFT_CC: image file is missing \(and 1 more"):
        load_cbis_ddsm(root, strict=True)
    assert len(load_cbis_ddsm(root, strict=True, kinds=["mass"])) == 3


@pytest.mark.parametrize(("column", "value"), [(2, "BOTH"), (3, "XCC"), (9, "MAYBE")])
def test_unknown_word_in_a_table(root, column, value):
    rows = [list(row) for row in LESIONS["mass_case_description_train_set.csv"]]
    rows[2][column] = value
    write_tables(root, {"mass_case_description_train_set.csv": rows})
    cases = load_cbis_ddsm(root, kinds=["mass"])
    assert len(cases) == 2 and f"{value!r} is none of" in cases.skipped[0].why


def no_mask(root):
    (root / "Mass-Training_P_00002_RIGHT_MLO_1" / "1.3.7" / "9.2" / "000000.dcm").unlink()


def other_size(root):
    write_dicom(root / "Mass-Training_P_00002_RIGHT_MLO" / "1.3.6" / "9.1" / "000000.dcm", grey(50, 30), bits=16)


def damaged(root):
    truncate(root / "Mass-Training_P_00002_RIGHT_MLO" / "1.3.6" / "9.1" / "000000.dcm")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (no_mask, "mask is missing: no image here has two grey levels"),
        (other_size, "mask has another size than its image: it is 40 x 30, its image is 50 x 30"),
        (damaged, "000000.dcm: "),
    ],
)
def test_faults(root, damage, why):
    damage(root)
    with pytest.raises(DataError, match=why):
        load_cbis_ddsm(root)[1]
    cases = load_cbis_ddsm(root, verify=True)
    assert cases.labels.tolist() == [1, 0] and why in cases.skipped[0].why and str(root) not in cases.skipped[0].why
    assert len(check_cbis_ddsm(root).faulty) == 0 and len(check_cbis_ddsm(root, verify=True).faulty) == 1


def test_crop_that_is_not_there(root):
    (root / "Mass-Training_P_00002_RIGHT_MLO_1" / "1.3.7" / "9.2" / "000001.dcm").unlink()
    with pytest.raises(DataError, match="crop is missing: every image here is a mask"):
        load_cbis_ddsm(root, crops=True)[2]


@pytest.mark.realdata
def test_real_cbis_ddsm(data_root):
    root = data_root / "CBIS-DDSM"
    cases = load_cbis_ddsm(root)
    assert [source[10:] for source in cases.table["source"]] == [
        "Mass-Test_P_00016_LEFT_CC",
        "Mass-Test_P_00116_RIGHT_MLO",
    ]
    assert len(cases.skipped) == 3101 and {item.why for item in cases.skipped} == {"image file is missing"}
    case = cases[0]
    assert case.boxes.tolist() == [[2573, 1326, 2947, 1701]]
    assert cases[1].boxes.tolist() == [[1588, 1180, 2061, 1456], [1154, 1722, 1630, 2209]]
    crops = load_cbis_ddsm(root, crops=True, kinds=["mass"], part="test")
    assert [case.image.shape[1:] for case in crops] == [(384, 385), (483, 286), (486, 497)]
    top, left, bottom, right = case.boxes[0].tolist()
    middle = case.image[0, top:bottom, left:right].numpy()  # the crop is the mask's box and 5 pixels on every side
    assert (
        np.corrcoef(middle.ravel(), crops[0].image[0, 5 : 5 + bottom - top, 5 : 5 + right - left].numpy().ravel())[0, 1]
        > 0.99
    )
