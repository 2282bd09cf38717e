import json

import pytest
from mammogram_files import grey, truncate, write_dicom

from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.omi_db import check_omi_db, load_omi_db

MARK = {"MarkID": 10241, "LinkedNBSSLesionNumber": "1", "X1": "5", "Y1": "10", "X2": "15", "Y2": "22", "Mass": 1}
MALIGNANT = {"left_opinion": None, "right_opinion": "Malignant", "dateperformed": "1950-02-22"}
BENIGN = {"left_opinion": "Benign", "right_opinion": None}
SHOWN = {"PresentationIntentType": "FOR PRESENTATION", "ViewPosition": "CC", "ImagerPixelSpacing": [0.07, 0.07]}


def write_client(root, client, episodes, images):
    """`images` are (study, episode, image, marks, header fields)."""
    data = root / "data" / client
    data.mkdir(parents=True, exist_ok=True)
    studies = {}
    for study, episode, image, marks, header in images:
        entry = studies.setdefault(study, {"EpisodeID": episode, "StudyDate": "1950-01-01"})
        entry.setdefault("1.2.3", {})[image] = {str(mark["MarkID"]): mark for mark in marks} or None
        if header is not None:
            write_dicom(root / "images" / client / study / f"{image}.dcm", grey(), **SHOWN | header)
    (data / f"imagedb_{client}.json").write_text(json.dumps({"ClientID": client, "Site": "x", "STUDIES": studies}))
    (data / f"nbss_{client}.json").write_text(json.dumps({"ClientID": client, **episodes}))


LEFT, RIGHT = {"ImageLaterality": "L"}, {"ImageLaterality": "R"}


@pytest.fixture
def root(tmp_path):
    write_client(
        tmp_path,
        "demd1",
        {"9": {"EpisodeType": "F", "SURGERY": MALIGNANT, "BIOPSYWIDE": {"left_opinion": "Normal"}}, "8": {}},
        [
            ("1.1", "9", "1.1.1", [MARK], RIGHT),
            ("1.1", "9", "1.1.2", [], LEFT),
            ("1.1", "9", "1.1.3", [MARK], RIGHT | {"PresentationIntentType": "FOR PROCESSING"}),
            ("1.1", "9", "1.1.4", [MARK], RIGHT | {"ViewPosition": "ML"}),
            ("1.2", "8", "1.2.1", [], RIGHT),  # the malignant breast in another episode
            ("1.2", "8", "1.2.2", [], None),  # its file is missing
        ],
    )
    write_client(tmp_path, "optm2", {"1": {"BIOPSYWIDE": BENIGN}}, [("2.1", "1", "2.1.1", [], LEFT)])
    write_client(tmp_path, "optm3", {"1": {"EpisodeType": "CI"}}, [("3.1", "1", "3.1.1", [], LEFT)])
    return tmp_path


def test_cases(root):
    cases = load_omi_db(root)
    assert list(cases.table["source"]) == ["omi_db/1.1.1", "omi_db/1.1.2", "omi_db/2.1.1"]
    assert list(cases.table["class"]) == ["malignant", "normal", "benign"] and cases.labels.tolist() == [1, 0, 0]
    assert cases.patient_ids.tolist() == [hashed_id(f"omi_db/{client}") for client in ("demd1", "demd1", "optm2")]
    assert list(cases.table["laterality"]) == list("RLL") and set(cases.table["view"]) == {"CC"}
    assert cases[0].pixel_mm == 0.07


def test_what_is_left_out_is_counted(root):
    assert summary(load_omi_db(root).skipped) == (
        "1 x image file is missing, 1 x raw image, 1 x view not asked for, "
        "1 x breast is malignant in another episode, 1 x interval cancer"
    )
    assert "left out: 1 x interval cancer" in str(check_omi_db(root))


def test_marks_are_half_open_boxes_with_y_down(root):
    cases = load_omi_db(root)
    assert cases[0].boxes.tolist() == [[10, 5, 22, 15]] and cases.table["lesions"][0] == ("malignant",)
    assert cases[1].boxes.shape == (0, 4) and cases[0].mask is None


def test_options(root):
    assert "omi_db/1.1.4" in set(load_omi_db(root, views=["CC", "ML"]).table["source"])
    assert load_omi_db(root, classes=["malignant"]).labels.tolist() == [1]


def test_folders_and_files_in_capital_letters(root):
    (root / "data" / "optm2" / "nbss_optm2.json").rename(root / "data" / "optm2" / "NBSS_optm2.json")
    (root / "data").rename(root / "DATA")
    (root / "images").rename(root / "IMAGES")
    assert len(load_omi_db(root)) == 3


def test_no_patient_identifier_is_said(root):
    (root / "data" / "demd1" / "nbss_demd1.json").unlink()
    (root / "data" / "optm2" / "imagedb_optm2.json").write_text("{")
    text = str(check_omi_db(root))
    assert "demd1" not in text and "optm2" not in text
    assert "nbss file of the client: file is missing" in text
    assert "imagedb file of the client: not readable as JSON" in text


@pytest.mark.parametrize("content", ["[]", '{"STUDIES": null}', "null"])
def test_other_json(root, content):
    (root / "data" / "demd1" / "imagedb_demd1.json").write_text(content)
    assert list(load_omi_db(root).table["source"]) == ["omi_db/2.1.1"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"X1": "500", "X2": "600"}, "box outside the image"),
        ({"X1": "15"}, "not a box: rows 10 to 22, columns 15 to 15"),
        ({"Y2": None}, "not a box: a mark has no numbers"),
    ],
)
def test_faulty_mark(root, change, why):
    write_client(root, "optm2", {"1": {"BIOPSYWIDE": BENIGN}}, [("2.1", "1", "2.1.1", [MARK | change], LEFT)])
    cases = load_omi_db(root)
    assert len(cases) == 2 and cases.skipped[0].why.startswith(why)


@pytest.mark.parametrize("header", [{"ImageLaterality": ""}, {"ViewPosition": ""}])
def test_side_or_view_missing_in_the_header(root, header):
    write_client(root, "optm2", {"1": {}}, [("2.1", "1", "2.1.1", [], LEFT | header)])
    assert summary(load_omi_db(root).skipped).startswith("1 x side or view is missing in the header")


def test_episode_that_is_not_in_the_record(root):
    write_client(root, "optm2", {"7": {}}, [("2.1", "1", "2.1.1", [], LEFT)])
    assert "1 x episode is not in the screening record" in summary(load_omi_db(root).skipped)


def test_damaged_images(root):
    (root / "images" / "optm2" / "2.1" / "2.1.1.dcm").write_bytes(b"hello")
    truncate(root / "images" / "demd1" / "1.1" / "1.1.1.dcm")
    cases = load_omi_db(root)
    assert cases.skipped[0].why == "2.1.1.dcm: not a readable DICOM file"
    with pytest.raises(DataError, match=r"1\.1\.1\.dcm"):
        cases[0]
    assert len(load_omi_db(root, verify=True)) == 1


def test_strict(root):
    with pytest.raises(DataError, match=r"^omi_db: omi_db/1\.2\.2: image file is missing$"):
        load_omi_db(root, strict=True)


def test_missing_folders(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="holds no folder 'images'; expected 'data' and 'images' side by side"):
        load_omi_db(tmp_path)
