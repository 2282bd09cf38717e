import numpy as np
import pytest
from mammogram_files import grey, truncate
from PIL import Image

from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.ddsm import check_ddsm, load_ddsm

VIEWS = ("LEFT_CC", "LEFT_MLO", "RIGHT_CC", "RIGHT_MLO")
SQUARE = "5 10 2 2 2 2 4 4 4 6 6 6 6 0 0 0 #"  # from column 5, row 10: 4 right, 3 down, 4 left, 3 up
DIAMOND = "20 30 3 3 5 5 7 7 1 1 #"


def write_ics(folder, views=VIEWS, rows=40, cols=30, bits=12):
    name = folder.name.replace("case", "B-") + "-1"
    lines = ["ics_version 1.0", f"filename {name}", "DATE_OF_STUDY 2 7 1995", "FILM ", "DENSITY 4", "SELECTED"]
    for view in views:
        lines.append(f"{view} LINES {rows} PIXELS_PER_LINE {cols} BITS_PER_PIXEL {bits} RESOLUTION 50 OVERLAY")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ics").write_text("\n".join(lines) + "\n")


def stem(folder, view):
    return f"{folder.name.replace('case', 'B_')}_1.{view}"


def write_image(folder, view, suffix=".png", **options):
    Image.fromarray(grey(**options)).save(folder / (stem(folder, view) + suffix))


def write_overlay(folder, view, abnormalities):
    lines = [f"TOTAL_ABNORMALITIES {len(abnormalities)}"]
    for number, (pathology, chain) in enumerate(abnormalities, 1):
        lines += [f"ABNORMALITY {number}", "LESION_TYPE MASS SHAPE IRREGULAR MARGINS SPICULATED", "ASSESSMENT 5"]
        lines += [
            "SUBTLETY 4",
            f"PATHOLOGY {pathology}",
            "TOTAL_OUTLINES 2 ",
            "BOUNDARY",
            chain,
            "\tCORE",
            "7 11 2 4 6 0 #",
        ]
    (folder / f"{stem(folder, view)}.OVERLAY").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "cancers" / "cancer_01" / "case3024"
    write_ics(folder)
    write_image(folder, "LEFT_CC")
    write_image(folder, "LEFT_MLO", ".LJPEG.png", top=65536)
    write_image(folder, "RIGHT_CC", ".tif")
    write_overlay(folder, "LEFT_CC", [("MALIGNANT", SQUARE), ("BENIGN", DIAMOND)])
    write_overlay(folder, "LEFT_MLO", [("BENIGN_WITHOUT_CALLBACK", DIAMOND)])
    return tmp_path


@pytest.fixture
def case(root):
    return root / "cancers" / "cancer_01" / "case3024"


def test_cases(root):
    cases = load_ddsm(root)
    assert [source[5:] for source in cases.table["source"]] == [
        "B_3024_1.LEFT_CC",
        "B_3024_1.LEFT_MLO",
        "B_3024_1.RIGHT_CC",
    ]
    assert list(cases.table["class"]) == ["malignant", "benign", "normal"] and cases.labels.tolist() == [1, 0, 0]
    assert set(cases.patient_ids) == {hashed_id("ddsm/B-3024-1")}
    assert list(cases.table["pathology"]) == ["MALIGNANT+BENIGN", "BENIGN_WITHOUT_CALLBACK", ""]
    assert list(cases.table["laterality"]) == list("LLR") and list(cases.table["view"]) == ["CC", "MLO", "CC"]
    assert cases[0].pixel_mm == 0.05
    assert summary(cases.skipped) == "1 x image file is missing"


def test_chain_codes(root):
    cases = load_ddsm(root)
    assert cases[0].boxes.tolist() == [[10, 5, 14, 10], [30, 18, 35, 23]]
    expected = np.zeros((40, 30), bool)
    expected[10:14, 5:10] = True  # rows 10 to 13, columns 5 to 9
    rows, cols = np.mgrid[:40, :30]
    expected |= abs(rows - 32) + abs(cols - 20) <= 2  # the diamond's diagonals are its boundary
    assert (cases[0].mask.numpy() == expected).all()
    assert cases.table["lesions"][0] == ("malignant", "benign") and cases[2].mask is None


def test_every_direction():
    from xai_lib.data.ddsm import STEPS

    assert STEPS.tolist() == [[-1, 0], [-1, 1], [0, 1], [1, 1], [1, 0], [1, -1], [0, -1], [-1, -1]]  # clockwise from up


def test_12_bit_values_fill_0_to_1_and_16_bit_ones_stay(root, case):
    Image.fromarray(np.full((40, 30), 4095, np.uint16)).save(case / "B_3024_1.LEFT_CC.png")
    Image.fromarray(np.full((40, 30), 40000, np.uint16)).save(case / "B_3024_1.LEFT_MLO.LJPEG.png")
    cases = load_ddsm(root)
    assert float(cases[0].image.max()) == pytest.approx(1)
    assert float(cases[1].image.max()) == pytest.approx(40000 / 65535)


def test_raw_ljpeg_is_refused_by_name(root, case):
    (case / "B_3024_1.RIGHT_MLO.LJPEG").write_bytes(b"\xff\xd8\xff")
    fault = load_ddsm(root).skipped[0]
    assert fault.source == "ddsm/B_3024_1.RIGHT_MLO"
    assert fault.why == "raw LJPEG is not decoded: convert B_3024_1.RIGHT_MLO.LJPEG to B_3024_1.RIGHT_MLO.png (16-bit)"
    with pytest.raises(DataError, match="raw LJPEG is not decoded"):
        load_ddsm(root, strict=True)


def test_unproven_is_left_out(root, case):
    write_overlay(case, "LEFT_MLO", [("UNPROVEN", DIAMOND)])
    assert "1 x pathology is unproven" in summary(load_ddsm(root).skipped)


def test_classes(root):
    assert load_ddsm(root, classes=["malignant"]).labels.tolist() == [1]


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ("5 10 2 2 8 #", "chain code not understood"),
        ("5 10 #", "chain code not understood"),
        ("5 x 2 2 #", "chain code not understood"),
        ("5 10 2 2", "lacks its PATHOLOGY or a BOUNDARY that ends with '#'"),
        ("500 10 2 2 4 4 6 6 0 0 #", "box outside the image"),
    ],
)
def test_faulty_outline(root, case, chain, why):
    path = case / "B_3024_1.LEFT_MLO.OVERLAY"
    text = "TOTAL_ABNORMALITIES 1\nABNORMALITY 1\nPATHOLOGY BENIGN\nTOTAL_OUTLINES 1\nBOUNDARY\n" + chain + "\n"
    path.write_bytes(text.replace("\n", "\r\n").encode())
    cases = load_ddsm(root)
    assert len(cases) == 2 and why in cases.skipped[0].why
    with pytest.raises(DataError, match=r"ddsm/B_3024_1\.LEFT_MLO: "):
        load_ddsm(root, strict=True)


def test_empty_overlay_and_ics_without_views(root, case):
    (case / "B_3024_1.LEFT_MLO.OVERLAY").write_text("TOTAL_ABNORMALITIES 0\n")
    write_ics(root / "normals" / "normal_01" / "case0001", views=())
    assert [item.why.split(": ")[1] for item in check_ddsm(root).faulty] == [
        "holds no ABNORMALITY",
        "no line such as 'LEFT_CC LINES 4696 PIXELS_PER_LINE 3024 ...'",
    ]


def test_outline_across_the_edge_is_clipped(root, case):
    write_overlay(case, "LEFT_MLO", [("BENIGN", "0 0 4 4 2 2 0 0 0 6 6 5 #")])  # up to row -1
    assert load_ddsm(root)[1].boxes.tolist() == [[0, 0, 3, 3]]


def test_cropped_or_damaged_image(root, case):
    write_image(case, "LEFT_CC", rows=38)
    truncate(case / "B_3024_1.LEFT_MLO.LJPEG.png")
    with pytest.raises(DataError, match=r"LEFT_CC\.png: image has another size than its outlines: it is 38 x 30"):
        load_ddsm(root)[0]
    assert [item.source[14:] for item in check_ddsm(root, verify=True).faulty] == ["LEFT_CC", "LEFT_MLO"]
    assert load_ddsm(root, verify=True).labels.tolist() == [0]


def test_empty_folder(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no '\*\.ics' file; expected folders such as cancers/cancer_01/case3024"
    ):
        load_ddsm(tmp_path)
