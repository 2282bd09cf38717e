import pandas as pd
import pytest
from mammogram_files import ENCODINGS

from xai_lib.data.case import DataError, Skipped
from xai_lib.data.mammograms import Scan, first_file, inside, read_case, read_csv, read_text, to_dataset, to_report


def row(path, kind="benign", **columns):
    base = {"source": f"s/{kind}", "label": int(kind == "malignant"), "class": kind, "patient_id": "p", "view": "CC"}
    return base | {"pixel_mm": 0.1, "files": (path,)} | columns


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_in_every_encoding(tmp_path, encoding):
    path = tmp_path / "t.csv"
    path.write_bytes("name,größe\nMüller,1\n".encode(encoding))
    assert read_text(path) == "name,größe\nMüller,1\n"
    assert read_csv(path, ("name", "größe")).values.tolist() == [["Müller", "1"]]


def test_text_that_is_none(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n\x00\x01")
    with pytest.raises(DataError, match=r"t\.csv: not a text file: it holds zero bytes"):
        read_csv(tmp_path / "t.csv", ())
    with pytest.raises(DataError, match=r"u\.csv: file is missing"):
        read_text(tmp_path / "u.csv")


def test_stray_line_breaks_spaces_and_empty_cells(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b'a,b c,d\r\n1,"x/y.dcm\n",\r\n 2 ,"\nz",NA\r\n')
    table = read_csv(path, ("a", "b c", "d"))
    assert table.values.tolist() == [["1", "x/y.dcm", ""], ["2", "z", "NA"]]


def test_columns_spelt_otherwise_and_missing_ones(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Breast_Density,Image View\n1,2\n")
    assert list(read_csv(path, ("breast density", "image view"))) == ["breast density", "image view"]
    with pytest.raises(DataError, match=r"t\.csv: lacks the columns side, age; it has image view, Breast_Density$"):
        path.write_text("image view,Breast_Density\n1,2\n")
        read_csv(path, ("side", "image view", "age"))


@pytest.mark.parametrize("content", ["", 'a,b\n1,"2\n', "a,b\n1,2\n1,2,3,4,5\n"])
def test_no_table(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=r"t\.csv: not a readable CSV table"):
        read_csv(tmp_path / "t.csv", ("a",))


def test_box_of_whole_pixels_clipped_to_the_image():
    assert inside((1, 2, 5, 6), (10, 10)) == (1, 2, 5, 6)
    assert inside((1.2, 2.8, 4.1, 6.0), (10, 10)) == (1, 2, 5, 6)
    assert inside((-3, 5, 4, 99), (10, 8)) == (0, 5, 4, 8)


@pytest.mark.parametrize("corners", [(10, 0, 12, 3), (-5, 0, 0, 3), (0, 8, 3, 9)])
def test_box_outside(corners):
    with pytest.raises(DataError, match=r"^box outside the image: .*the image is 10 x 8 \(rows x columns\)$"):
        inside(corners, (10, 8))


@pytest.mark.parametrize("corners", [(3, 0, 3, 4), (5, 0, 2, 4), (0, 0, float("nan"), 4), (0, 0, float("inf"), 4)])
def test_no_box(corners):
    with pytest.raises(DataError, match=r"^not a box: rows"):
        inside(corners, (10, 8))


def test_first_file(tmp_path):
    (tmp_path / "a.b.png").touch()
    assert first_file(tmp_path / "a.b", (".dcm", ".png")) == tmp_path / "a.b.png"
    assert first_file(tmp_path / "a", (".dcm", ".png")) is None


def test_faults_are_collected_without_the_folder(tmp_path):
    scan = Scan()
    with scan.collecting("s/1", tmp_path):
        raise DataError(f"{tmp_path / 'x.png'}: not a readable image")
    assert scan.faults == [Skipped("s/1", "x.png: not a readable image")]
    with pytest.raises(KeyError), scan.collecting("s/2"):
        raise KeyError("a bug stays one")


@pytest.mark.parametrize("classes", [["cancer"], [], "benign"])
def test_unknown_class(tmp_path, classes):
    with pytest.raises(ValueError, match=r"classes: .* expected some of normal, benign, malignant"):
        to_dataset("mine", tmp_path, Scan([row(tmp_path)]), read_case, classes, False, False)


def test_no_case_left_names_the_first_reason(tmp_path):
    with pytest.raises(DataError, match=r"can be used; the first reason: s/1: image file is missing"):
        to_dataset(
            "m", tmp_path, Scan(missing=[Skipped("s/1", "image file is missing")]), read_case, ["benign"], False, False
        )
    with pytest.raises(DataError, match=r"first reason: m: no image is of the classes malignant"):
        to_dataset("m", tmp_path, Scan([row(tmp_path)]), read_case, ["malignant"], False, False)


def test_verify_finds_what_reading_would(tmp_path):
    scan = Scan([row(tmp_path / "gone.png"), row(tmp_path / "gone.dcm", "malignant")])
    assert len(to_dataset("m", tmp_path, scan, read_case, ["benign"], False, False)) == 1
    report = to_report("m", tmp_path, scan, read_case, True)
    assert [fault.why for fault in report.faulty] == [
        "gone.png: image file is missing",
        "gone.dcm: DICOM file is missing",
    ]
    assert "not decoded" in str(to_report("m", tmp_path, scan, read_case, False))
    with pytest.raises(DataError, match=r"s/benign: gone.png: image file is missing"):
        to_dataset("m", tmp_path, scan, read_case, ["benign"], True, True)


def test_rows_survive_as_a_table(tmp_path):
    cases = to_dataset("m", tmp_path, Scan([row(tmp_path)]), read_case, ["benign"], False, False)
    assert isinstance(cases.table, pd.DataFrame) and cases.labels.tolist() == [0]
