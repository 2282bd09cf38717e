import numpy as np
import pytest
from mammogram_files import truncate
from PIL import Image

from xai_lib.data.case import DataError, hashed_id
from xai_lib.data.nyu_sample import FRAME, check_nyu_sample, load_nyu_sample

ROWS, COLS = 200, 90


def write_image(root, name, shape=(ROWS, COLS), level=4095):
    (root / "images").mkdir(exist_ok=True, parents=True)
    image = np.zeros(shape, np.uint16)
    image[0, :] = level
    Image.fromarray(image).save(root / "images" / f"{name}.png")


def write_mask(root, name, box, shape=FRAME):
    (root / "segmentation").mkdir(exist_ok=True, parents=True)
    mask = np.zeros(shape, np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 255
    Image.fromarray(mask).save(root / "segmentation" / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    for name in ("0_L-CC", "0_R-CC", "0_R-MLO", "1_L-CC"):
        write_image(tmp_path, name)
    top = (2944 - ROWS) // 2  # the image's first row in the mask's frame
    write_mask(tmp_path, "0_R-CC_benign", (top + 20, 10, top + 30, 25))
    write_mask(tmp_path, "1_L-CC_malignant", (top + 20, 10, top + 30, 25))
    return tmp_path


def test_cases(root):
    cases = load_nyu_sample(root)
    assert [source[11:] for source in cases.table["source"]] == ["0_L-CC", "0_R-CC", "0_R-MLO", "1_L-CC"]
    assert list(cases.table["class"]) == ["normal", "benign", "benign", "malignant"]
    assert cases.labels.tolist() == [0, 0, 0, 1]
    assert cases.patient_ids.tolist() == [hashed_id("nyu_sample/0")] * 3 + [hashed_id("nyu_sample/1")]
    assert list(cases.table["view"]) == ["CC", "CC", "MLO", "CC"] and list(cases.table["laterality"]) == list("LRRL")


def test_12_bit_levels_fill_0_to_1(root):
    image = load_nyu_sample(root)[0].image
    assert image.shape == (1, ROWS, COLS) and float(image[0, 0, 0]) == pytest.approx(1) and float(image[0, 1, 0]) == 0
    write_image(root, "0_L-CC", level=65535)
    assert float(load_nyu_sample(root)[0].image.max()) == 1


def test_mask_of_a_left_breast_is_only_moved(root):
    case = load_nyu_sample(root)[3]
    assert case.boxes.tolist() == [[20, 10, 30, 25]] and case.mask.shape == (ROWS, COLS) and int(case.mask.sum()) == 150


def test_mask_of_a_right_breast_is_mirrored_too(root):
    case = load_nyu_sample(root)[1]
    assert case.boxes.tolist() == [[20, COLS - 25, 30, COLS - 10]]


def test_other_view_of_a_breast_has_its_label_and_no_mask(root):
    case = load_nyu_sample(root)[2]
    assert case.label == 0 and case.mask is None and len(case.boxes) == 0


def test_classes(root):
    assert load_nyu_sample(root, classes=["malignant"]).labels.tolist() == [1]


def outside(root):
    write_mask(root, "0_R-CC_benign", (0, 0, 10, 10))


def other_frame(root):
    write_mask(root, "0_R-CC_benign", (0, 0, 10, 10), shape=(ROWS, COLS))


def larger_image(root):
    write_image(root, "0_R-CC", shape=(3000, 10))


def damaged(root):
    truncate(root / "images" / "0_R-CC.png")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (outside, "mask outside the image"),
        (other_frame, "mask is 200 x 90, expected 2944 x 1920"),
        (larger_image, "is larger than the mask's frame"),
        (damaged, "not a readable image"),
    ],
)
def test_faults(root, damage, why):
    damage(root)
    with pytest.raises(DataError, match=why):
        load_nyu_sample(root)[1]
    report = check_nyu_sample(root)
    assert [item.source for item in report.faulty] == ["nyu_sample/0_R-CC"] and why in report.faulty[0].why
    assert str(root) not in report.faulty[0].why
    assert len(load_nyu_sample(root, verify=True)) == 3


def test_missing_image_and_other_names(root):
    (root / "images" / "0_R-CC.png").unlink()
    write_image(root, "cat")
    cases = load_nyu_sample(root)
    assert [(item.source, item.why.split(":")[0]) for item in cases.skipped] == [
        ("nyu_sample/cat", "name not understood"),
        ("nyu_sample/0_R-CC", "image file is missing"),
    ]
    with pytest.raises(DataError, match="nyu_sample: nyu_sample/cat: name not understood"):
        load_nyu_sample(root, strict=True)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="holds no image; expected images/0_R-CC"):
        load_nyu_sample(tmp_path)


@pytest.mark.realdata
def test_real_sample(data_root):
    cases = load_nyu_sample(data_root / "NYU-sample" / "sample_data", strict=True, verify=True)
    assert list(cases.table["source"]) == ["nyu_sample/0_L-CC", "nyu_sample/0_R-CC"]
    assert [case.image.shape for case in cases] == [(1, 2023, 801), (1, 2144, 801)]
    right = cases[1]
    assert right.boxes.tolist() == [[1388, 267, 1551, 436]] and int(right.mask.sum()) == 20440
    image = right.image[0]
    assert image[right.mask].mean() > image[1388:1551, 20:189].mean()  # the lesion against the breast beside it
