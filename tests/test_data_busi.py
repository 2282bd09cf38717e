import os

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from xai_lib import config
from xai_lib.data import busi, duplicates, images, splits
from xai_lib.data.case import DataError, summary


@pytest.fixture(autouse=True)
def small_release(monkeypatch, tmp_path):
    """A release of four benign and three malignant images, and a cache of its own."""
    monkeypatch.setattr(busi, "OFFICIAL", {"benign": 4, "malignant": 3})
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "cache"))


def picture(seed, shape=(90, 120)):
    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 6)
    return np.round(255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def lesion(shape=(90, 120), box=(30, 40, 50, 70)):
    mask = np.zeros(shape, dtype=np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 255
    return mask


def write(folder, name, image, *masks):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"{name}.png")
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{name}_mask{f'_{i}' if i else ''}.png")


@pytest.fixture
def root(tmp_path):
    """benign 1, 2, 4 different; benign 3 and malignant 2 the same image; malignant 3 a copy of malignant 1."""
    folder = tmp_path / "Dataset_BUSI_with_GT"
    for number, seed in ((1, 1), (2, 2), (3, 9), (4, 4)):
        write(folder / "benign", f"benign ({number})", picture(seed), lesion())
    for number, seed in ((1, 5), (2, 9), (3, 5)):
        write(folder / "malignant", f"malignant ({number})", picture(seed), lesion())
    write(folder / "normal", "normal (1)", picture(7), np.zeros((90, 120), np.uint8))
    return folder


def test_labels_sources_and_order(root):
    cases = busi.load_busi(root)
    names = ["benign (1)", "benign (2)", "benign (4)", "malignant (1)", "malignant (3)"]
    assert list(cases.table["source"]) == [f"busi/{name}" for name in names]
    assert cases.labels.tolist() == [0, 0, 0, 1, 1]
    assert cases[0].boxes.tolist() == [[30, 40, 50, 70]] and cases[0].pixel_mm is None


def test_numbers_sort_as_numbers(root):
    write(root / "benign", "benign (10)", picture(10), lesion())
    assert list(busi.load_busi(root).table["source"])[2:4] == ["busi/benign (4)", "busi/benign (10)"]


def test_copies_share_a_patient_and_mixed_groups_are_left_out(root):
    cases = busi.load_busi(root)
    assert cases.patient_ids.tolist() == ["group-0001", "group-0002", "group-0004", "group-0005", "group-0005"]
    assert [item.source for item in cases.skipped] == ["busi/benign (3)", "busi/malignant (2)"]
    assert summary(cases.skipped) == "2 x near-duplicates carry both labels"


def test_without_grouping_every_image_is_its_own_patient(root):
    cases = busi.load_busi(root, grouping=False)
    assert len(set(cases.patient_ids)) == len(cases) == 5
    assert len(cases.skipped) == 2
    assert cases.fingerprint != busi.load_busi(root).fingerprint


def test_one_class(root):
    cases = busi.load_busi(root, classes=["malignant"])
    assert cases.labels.tolist() == [1, 1]
    with pytest.raises(DataError, match="only class 1"):
        splits.by_patient(cases)
    with pytest.raises(ValueError, match=r"classes: \['normal'\] is unknown"):
        busi.load_busi(root, classes=["normal"])
    with pytest.raises(ValueError, match="classes: "):
        busi.load_busi(root, classes=[])


def test_several_masks_and_modes(root):
    masks = [lesion(box=(0, 0, 10, 12)), np.dstack([lesion(box=(5, 50, 20, 60))] * 3)]
    write(root / "benign", "benign (1)", np.dstack([picture(1)] * 3), *masks, lesion(box=(70, 90, 90, 120)) > 0)
    case = busi.load_busi(root)[0]
    assert case.boxes.tolist() == [[0, 0, 10, 12], [5, 50, 20, 60], [70, 90, 90, 120]]
    assert int(case.mask.sum()) == 120 + 150 + 600
    assert case.image.shape == (1, 90, 120)


def break_nothing(root):
    (root / "benign" / "notes.png").write_bytes(b"not a BUSI name")


def remove_mask(root):
    os.remove(root / "benign" / "benign (2)_mask.png")


def remove_image(root):
    os.remove(root / "benign" / "benign (2).png")


def turn_mask(root):
    Image.fromarray(lesion().T).save(root / "benign" / "benign (2)_mask.png")


def empty_mask(root):
    Image.fromarray(lesion() * 0).save(root / "benign" / "benign (2)_mask.png")


def truncate(root):
    path = root / "benign" / "benign (2).png"
    path.write_bytes(path.read_bytes()[:1500])


def text_file(root):
    (root / "benign" / "benign (2).png").write_text("hello")


def folder_for_file(root):
    os.remove(root / "benign" / "benign (2).png")
    (root / "benign" / "benign (2).png").mkdir()


FAULTS = [
    (remove_mask, "image without mask: expected 'benign (2)_mask.png' beside it"),
    (remove_image, "image file is missing"),
    (turn_mask, "benign (2)_mask.png: mask has another size than its image: it is 120 x 90, its image is 90 x 120"),
    (empty_mask, "benign (2)_mask.png: mask has no pixel"),
    (truncate, "benign (2).png: not a readable image"),
    (text_file, "benign (2).png: not a readable image"),
    (folder_for_file, "benign (2).png: image file is missing"),
]


@pytest.mark.parametrize(("damage", "why"), FAULTS, ids=[damage.__name__ for damage, _ in FAULTS])
def test_bad_input_is_skipped_and_counted_or_refused(root, damage, why):
    busi.load_busi(root)  # a cache of the sound folder must not hide the damage
    damage(root)
    cases = busi.load_busi(root)
    assert len(cases) == 4
    (found,) = [item for item in cases.skipped if item.source == "busi/benign (2)"]
    assert found.why.startswith(why) and str(root) not in found.why
    with pytest.raises(DataError) as error:
        busi.load_busi(root, strict=True)
    assert str(error.value).startswith(f"busi: busi/benign (2): {why}")
    report = busi.check_busi(root)
    assert len(report.faulty) + len(report.missing) == 1


def test_strict_accepts_a_sound_release(root):
    break_nothing(root)
    assert len(busi.load_busi(root, strict=True)) == 5


def test_sixteen_bit_and_rgba_images(root):
    Image.fromarray(picture(1).astype(np.uint16) * 257).save(root / "benign" / "benign (1).png")
    Image.fromarray(picture(2)).convert("RGBA").save(root / "benign" / "benign (2).png")
    cases = busi.load_busi(root, strict=True)
    for i, seed in enumerate((1, 2)):
        np.testing.assert_allclose(cases[i].image[0].numpy(), picture(seed) / 255, atol=1e-6)


def test_missing_root_and_empty_folder(tmp_path):
    with pytest.raises(DataError, match="is not a folder; give root="):
        busi.load_busi(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for call in (busi.load_busi, busi.check_busi):
        with pytest.raises(DataError, match="holds no image; expected benign/, malignant/"):
            call(tmp_path / "empty")


def test_no_usable_image(tmp_path):
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "benign (1).png").write_bytes(b"")
    with pytest.raises(DataError, match="can be used; the first fault"):
        busi.load_busi(tmp_path)


def test_check_counts(root):
    report = busi.check_busi(root)
    assert report.found == {"benign images": 4, "malignant images": 3, "lesion masks": 7, "normal images": 1}
    assert report.missing == [] and report.faulty == []
    assert report.notes[0] == "4 images have a near-duplicate; 5 groups, largest 2"
    assert "1 groups carry both labels and are left out, 2 images: busi/benign (3), busi/malignant (2)" in str(report)


def test_second_load_decodes_nothing(root, monkeypatch):
    first = busi.load_busi(root)
    assert len(list(config.cache_dir().glob("busi-*.json"))) == 1

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(busi, "read_image_and_masks", never)
    again = busi.load_busi(root)
    assert again.patient_ids.tolist() == first.patient_ids.tolist() and again.fingerprint == first.fingerprint


@pytest.mark.parametrize("content", ["", "[]", '{"verdicts": [""], "groups": [0]}'])
def test_damaged_cache_is_computed_anew(root, content):
    first = busi.load_busi(root)
    (path,) = config.cache_dir().glob("busi-*.json")
    path.write_text(content)
    assert busi.load_busi(root).patient_ids.tolist() == first.patient_ids.tolist()


def test_cache_folder_that_cannot_be_made(root, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path / "file"))
    assert len(busi.load_busi(root)) == 5


@pytest.mark.realdata
@pytest.mark.skipif(config.data_dir() is None, reason="XAI_DATA_DIR is not set")
def test_official_release(monkeypatch):
    monkeypatch.setattr(busi, "OFFICIAL", {"benign": 437, "malignant": 210})
    root = config.data_dir() / "BUSI" / "Dataset_BUSI_with_GT"
    cases = busi.load_busi(root, strict=True)
    assert (len(cases), len(cases.skipped), len(set(cases.patient_ids))) == (633, 14, 509)
    report = busi.check_busi(root)
    assert report.notes[0] == "243 images have a near-duplicate; 515 groups, largest 7"
    assert "busi/benign (433)" in report.notes[1] and "busi/malignant (145)" in report.notes[1]
    bits, thumbnails = duplicates.looks(
        images.read_image(root / label / f"{label} ({number}).png")
        for label, count in busi.OFFICIAL.items()
        for number in range(1, count + 1)
    )
    for distance, correlation in ((8, 0.95), (12, 0.95), (10, 0.93), (12, 0.93)):
        sizes = np.bincount(duplicates.group_numbers(duplicates.pairs(bits, thumbnails, distance, correlation)))
        assert abs(int(sizes[sizes > 1].sum()) - 243) <= 4  # a little other thresholds change little
