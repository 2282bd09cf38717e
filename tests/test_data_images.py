import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from skimage.transform import resize as skimage_resize

from xai_lib.data import images
from xai_lib.data.case import DataError
from xai_lib.data.images import read_case, read_image, read_image_and_masks, read_mask, resample, resize

GREY = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)


def save(path, array, mode=None):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def png_of_size(path, width, height):
    """A PNG file whose header gives any size, also one that no writer would write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("mode", [None, "L", "LA", "RGB", "RGBA", "P"])
def test_eight_bit_modes_give_the_same_grey(tmp_path, mode):
    image = read_image(save(tmp_path / "a.png", GREY, mode))
    assert image.dtype == np.float32 and image.shape == (2, 3)
    np.testing.assert_allclose(image, [[0, 0.2, 0.4], [0.6, 0.8, 1]], atol=1e-7)


def test_sixteen_bit(tmp_path):
    image = read_image(save(tmp_path / "a.png", GREY.astype(np.uint16) * 257))
    np.testing.assert_allclose(image, GREY / 255, atol=1e-7)


def test_one_bit(tmp_path):
    assert read_image(save(tmp_path / "a.png", GREY > 100)).tolist() == [[0, 0, 1], [1, 1, 1]]


def test_colour_becomes_luminance(tmp_path):
    pixels = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(read_image(save(tmp_path / "a.png", pixels)), [[0.299, 0.587, 0.114]], atol=0.002)


def test_transparency_is_ignored(tmp_path):
    pixels = np.zeros((1, 2, 4), dtype=np.uint8)
    pixels[0, 0] = [255, 255, 255, 0]
    pixels[0, 1] = [0, 0, 0, 255]
    path = save(tmp_path / "a.png", pixels)
    assert read_image(path).tolist() == [[1, 0]]
    assert read_mask(path).tolist() == [[True, False]]


@pytest.mark.parametrize("mode", [None, "L", "LA", "RGB", "RGBA", "P", "1"])
def test_mask_modes(tmp_path, mode):
    lesion = np.array([[0, 255, 0], [0, 255, 255]], dtype=np.uint8)
    mask = read_mask(save(tmp_path / "m.png", lesion, mode))
    assert mask.dtype == bool and mask.tolist() == (lesion > 0).tolist()


def test_mask_of_sixteen_bit_and_of_one_colour(tmp_path):
    assert read_mask(save(tmp_path / "a.png", np.array([[0, 7]], dtype=np.uint16))).tolist() == [[False, True]]
    blue = np.array([[[0, 0, 0], [0, 0, 9]]], dtype=np.uint8)
    assert read_mask(save(tmp_path / "b.png", blue)).tolist() == [[False, True]]


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: image file is missing"):
        read_image(tmp_path / "gone.png")


def test_truncated_png(tmp_path):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        read_image(path)


def test_more_pixels_than_any_mammogram(tmp_path):
    path = png_of_size(tmp_path / "bomb.png", 9000, 9000)  # below the size that Pillow warns of
    with pytest.raises(DataError, match=r"bomb\.png: 9000 x 9000 pixels; expected at most 80000000"):
        read_image(path)
    with pytest.raises(DataError, match=r"bomb\.png: 9000 x 9000 pixels"):
        read_mask(path)


@pytest.mark.parametrize("name", ["a.dcm", "a.DICOM"])
def test_dicom_goes_to_its_own_reader(tmp_path, monkeypatch, name):
    monkeypatch.setattr(images, "read_dicom", lambda path: SimpleNamespace(pixels=path.name))
    assert read_image(tmp_path / name) == name


def test_text_and_empty_file_named_png(tmp_path):
    for name, content in (("text.png", b"no image at all"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: not a readable image"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(("width", "height"), [(0, 4), (4, 0), (0, 0)])
def test_zero_size_image(tmp_path, width, height):
    with pytest.raises(DataError, match=r"zero\.png"):
        read_image(png_of_size(tmp_path / "zero.png", width, height))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_image_of_one_grey_value(tmp_path, value):
    """All black or constant can be read; only preparation and masks need two values."""
    path = save(tmp_path / "a.png", np.full((6, 5), value, dtype=np.uint8))
    assert np.unique(read_image(path)) == pytest.approx([value / 255])


def test_floating_point_image(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(path)
    with pytest.raises(DataError, match=r"floating point numbers are not read"):
        read_image(path)


def test_mask_of_another_size(tmp_path):
    image, mask = save(tmp_path / "i.png", GREY), save(tmp_path / "m.png", GREY.T)
    with pytest.raises(
        DataError, match=r"m\.png: mask has another size than its image: it is 3 x 2, its image is 2 x 3"
    ):
        read_image_and_masks(image, [mask])


def test_mask_with_no_pixel(tmp_path):
    image, mask = save(tmp_path / "i.png", GREY), save(tmp_path / "m.png", np.zeros_like(GREY))
    with pytest.raises(DataError, match=r"m\.png: mask has no pixel"):
        read_image_and_masks(image, [mask])


def row(*files, **more):
    return pd.Series({"source": "s", "label": 1, "patient_id": "p", "view": "v", "files": files} | more)


def test_case_of_several_masks(tmp_path):
    one, two = np.zeros((8, 9), dtype=np.uint8), np.zeros((8, 9), dtype=np.uint8)
    one[0:2, 0:3] = 255  # touches the border
    two[1:5, 2:9] = 255  # overlaps the first, and touches the other border
    files = [save(tmp_path / f"{i}.png", a) for i, a in enumerate([np.full((8, 9), 51, np.uint8), one, two])]
    case = read_case(row(*files, pixel_mm=0.1))
    assert case.image.shape == (1, 8, 9) and case.image.dtype == torch.float32
    assert case.image.unique().tolist() == pytest.approx([0.2])
    assert case.mask.dtype == torch.bool and case.mask.tolist() == ((one > 0) | (two > 0)).tolist()
    assert case.boxes.tolist() == [[0, 0, 2, 3], [1, 2, 5, 9]]
    assert (case.label, case.pixel_mm, case.patient_id, case.view, case.source) == (1, 0.1, "p", "v", "s")


@pytest.mark.parametrize("more", [{}, {"pixel_mm": None}, {"pixel_mm": float("nan")}])
def test_case_without_pixel_size(tmp_path, more):
    path = save(tmp_path / "i.png", GREY)
    assert read_case(row(path, path, **more)).pixel_mm is None


def test_resize_keeps_a_constant_and_its_mean():
    assert resize(torch.full((1, 31, 17), 0.3), 224).shape == (1, 224, 224)
    assert (resize(torch.full((1, 31, 17), 0.3), 224) - 0.3).abs().max() < 1e-6
    image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert resize(image, 32).mean().item() == pytest.approx(image.mean().item(), abs=2e-3)


def test_resize_by_hand_uses_half_pixel_centres():
    ramp = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    assert resize(ramp, 4)[0, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1])


def test_resample_agrees_with_skimage_where_it_enlarges():
    array = np.random.default_rng(0).random((7, 7))
    expected = skimage_resize(array, (28, 21), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resample(array, (28, 21)), expected, atol=1e-6)
