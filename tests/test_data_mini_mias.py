import numpy as np
import pytest
import torch
from mammogram_files import ENCODINGS, truncate
from PIL import Image

from xai_lib.data import splits
from xai_lib.data.case import DataError, hashed_id, summary
from xai_lib.data.mini_mias import check_mini_mias, load_mini_mias

HEADER = "MAMMOGRAPHIC IMAGE ANALYSIS SOCIETY\n\nCoordinate system origin is the bottom-left corner.\n\n"
LINES = [
    "mdb001 G CIRC B 535 425 197",
    "mdb002 D NORM ",
    "mdb005 F CIRC B 477 133 30",
    "mdb005 F CIRC B 500 168 26",
    "mdb059 F CIRC B",
    "mdb144 F MISC B 233 994 29",
    "mdb144 F MISC M 313 540 27",
    "mdb216 D CALC M *NOTE 3* ",
    "mdb322 D NORM ",
]


def write_table(folder, lines=LINES, encoding="utf-8"):
    (folder / "Info.txt").write_bytes((HEADER + "\n".join(lines) + "\n").encode(encoding))


def write_image(folder, number, suffix=".pgm", size=1024):
    image = np.full((size, size), number % 256, np.uint8)
    Image.fromarray(image).save(folder / f"mdb{number:03d}{suffix}")


@pytest.fixture
def root(tmp_path):
    write_table(tmp_path)
    for number, suffix in ((1, ".pgm"), (2, ".png"), (5, ".png"), (59, ".png"), (144, ".pgm"), (216, ".png")):
        write_image(tmp_path, number, suffix)
    return tmp_path


def test_cases(root):
    cases = load_mini_mias(root)
    assert [source[-6:] for source in cases.table["source"]] == [
        "mdb001",
        "mdb002",
        "mdb005",
        "mdb059",
        "mdb144",
        "mdb216",
    ]
    assert list(cases.table["class"]) == ["benign", "normal", "benign", "benign", "malignant", "malignant"]
    assert cases.labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert list(cases.table["laterality"]) == list("RLRRLL") and set(cases.table["view"]) == {"MLO"}
    assert list(cases.table["abnormality"]) == ["CIRC", "NORM", "CIRC", "CIRC", "MISC", "CALC"]
    assert cases[0].pixel_mm == 0.2 and cases[0].image.shape == (1, 1024, 1024)
    assert summary(cases.skipped) == "1 x image file is missing"


def test_two_breasts_of_a_patient_are_files_2k_minus_1_and_2k(root):
    ids = load_mini_mias(root).patient_ids
    assert ids[0] == ids[1] == hashed_id("mini_mias/1")
    assert (
        ids[2] == hashed_id("mini_mias/3")
        and ids[4] == hashed_id("mini_mias/72")
        and ids[5] == hashed_id("mini_mias/108")
    )


def test_circles_have_their_origin_at_the_bottom_left(root):
    write_table(root, ["mdb001 G CIRC B 100 1014 5"])  # y = 1014 of 1024: near the top
    case = load_mini_mias(root)[0]
    assert case.boxes.tolist() == [[5, 95, 16, 106]]  # row 1024 - 1014 = 10, column 100, radius 5
    rows, cols = torch.nonzero(case.mask, as_tuple=True)
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (5, 15, 95, 105)
    assert int(case.mask.sum()) == 81  # points of whole numbers in a circle of radius 5


def test_overlapping_circles_stay_two_boxes(root):
    case = load_mini_mias(root)[2]
    assert case.boxes.tolist() == [[861, 447, 922, 508], [830, 474, 883, 527]]
    inside = torch.zeros_like(case.mask)
    for top, left, bottom, right in case.boxes.tolist():
        inside[top:bottom, left:right] = True
    assert not (case.mask & ~inside).any()


def test_image_with_a_benign_and_a_malignant_lesion_is_malignant(root):
    table = load_mini_mias(root).table
    assert table["lesions"][4] == ("benign", "malignant") and table["label"][4] == 1


def test_rows_without_circle_and_normal_images_have_no_box_and_no_mask(root):
    cases = load_mini_mias(root)
    assert cases.table["located"].tolist() == [True, True, True, False, True, False]
    for index in (1, 3, 5):
        assert cases[index].mask is None and cases[index].boxes.shape == (0, 4)


def test_classes(root):
    assert set(load_mini_mias(root, classes=["benign", "malignant"]).table["class"]) == {"benign", "malignant"}
    with pytest.raises(ValueError, match="classes: "):
        load_mini_mias(root, classes=["cancer"])


def test_a_patient_is_never_in_two_splits(root):
    cases = load_mini_mias(root)
    splits.check_disjoint(cases, train=np.array([0, 1]), test=np.array([2]))
    with pytest.raises(DataError, match="is in"):
        splits.check_disjoint(cases, train=np.array([0]), test=np.array([1]))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_table_in_another_encoding(root, encoding):
    write_table(root, ["mdb001 G CIRC B 535 425 197", "", "Döktor"], encoding)
    assert len(load_mini_mias(root)) == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("mdb001 G CIRC B 2000 425 197", "box outside the image"),
        ("mdb001 G CIRC B 535 425", "circle not understood: '535 425', expected x, y and radius"),
        ("mdb001 G CIRC B 535 425 0", "circle not understood: radius 0"),
        ("mdb001 G CIRC B x y 20", "circle not understood"),
        ("mdb001 G CIRC", "row not understood"),
        ("mdb001 G BUMP B 535 425 20", "row not understood"),
        ("mdb001 ?", "row not understood"),
    ],
)
def test_faulty_row_is_skipped_and_counted_or_refused(root, line, why):
    write_table(root, [line, "mdb002 D NORM"])
    cases = load_mini_mias(root)
    assert list(cases.table["source"]) == ["mini_mias/mdb002"]
    assert [item.source for item in cases.skipped] == ["mini_mias/mdb001"] and cases.skipped[0].why.startswith(why)
    with pytest.raises(DataError, match=f"mini_mias/mdb001: {why[:20]}"):
        load_mini_mias(root, strict=True)


def test_circle_across_the_edge_is_clipped(root):
    write_table(root, ["mdb001 G CIRC B 2 3 10"])
    assert load_mini_mias(root)[0].boxes.tolist() == [[1011, 0, 1024, 13]]


def test_damaged_image_is_found_on_reading_by_check_and_by_verify(root):
    truncate(root / "mdb001.pgm")
    write_image(root, 2, ".png", size=512)
    cases = load_mini_mias(root)
    with pytest.raises(DataError, match=r"mdb001.pgm: not a readable image"):
        cases[0]
    with pytest.raises(DataError, match=r"mdb002.png: image is 512 x 512, expected 1024 x 1024"):
        cases[1]
    assert [item.source for item in check_mini_mias(root).faulty] == ["mini_mias/mdb001", "mini_mias/mdb002"]
    assert len(load_mini_mias(root, verify=True)) == 4
    with pytest.raises(DataError, match=r"mini_mias: mini_mias/mdb001: mdb001.pgm: not a readable image.*1 more"):
        (root / "mdb322.png").write_bytes((root / "mdb059.png").read_bytes())
        load_mini_mias(root, verify=True, strict=True)


def test_missing_image_with_strict(root):
    with pytest.raises(DataError, match=r"^mini_mias: mini_mias/mdb322: image file is missing$"):
        load_mini_mias(root, strict=True)


def test_no_table(tmp_path):
    with pytest.raises(DataError, match=r"Info\.txt: file is missing"):
        load_mini_mias(tmp_path)
    write_table(tmp_path, [])
    with pytest.raises(DataError, match=r"holds no row such as 'mdb001"):
        load_mini_mias(tmp_path)


def brighter(image, row, col, radius):
    """Whether the middle of a circle is brighter than the ring around it."""
    rows, cols = np.ogrid[: image.shape[0], : image.shape[1]]
    square = (rows - row) ** 2 + (cols - col) ** 2
    ring = (square > radius**2) & (square < (1.7 * radius) ** 2)
    return image[square < (0.7 * radius) ** 2].mean() > image[ring].mean()


@pytest.mark.realdata
def test_real_mini_mias(data_root):
    folder = data_root / "mini-MIAS" / "all-mias"
    cases = load_mini_mias(folder)
    kinds = cases.table["class"].value_counts().to_dict()
    assert kinds == {"benign": 63, "malignant": 52, "normal": 36}
    assert len(cases.skipped) == 171 and {item.why for item in cases.skipped} == {"image file is missing"}
    assert cases.table["boxes"].map(len).sum() == 119  # 123 lesions, 4 without circle
    assert cases.table["source"][~cases.table["located"]].str[-3:].tolist() == ["059", "216", "233", "245"]
    masses = [i for i, kind in enumerate(cases.table["abnormality"]) if kind == "CIRC" and cases.table["located"][i]]
    circles = [(cases[i].image[0].numpy(), cases.table["circles"][i][0]) for i in masses]
    right = [brighter(image, row, col, radius) for image, (row, col, radius) in circles]
    wrong = [brighter(image, 1024 - row, col, radius) for image, (row, col, radius) in circles]  # a top-left origin
    assert len(masses) == 22 and all(right) and sum(wrong) < 15
    report = check_mini_mias(folder, verify=False)
    assert report.faulty == [] and len(report.missing) == 171 and report.found["located lesions"] == 119
