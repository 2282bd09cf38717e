"""Preparing mammograms: crop and flip by hand, a folder that is stopped and goes on, files that are no mammograms."""

import csv
import os
import re
import shutil
import struct
import tracemalloc
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, PngImagePlugin
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLosslessSV1
from test_data_dicom import write as write_dicom

from xai_lib.data import prepare
from xai_lib.data.case import DataError
from xai_lib.data.dicom import read_dicom
from xai_lib.data.images import read_image
from xai_lib.data.prepare import TABLE, move_boxes, prepare_folder, prepare_image

ROWS, COLS, LEFT, RIGHT = 20, 40, 70, 140  # of the block that stands for a breast


def block(shape=(200, 160), grey=0.5):
    """A textured rectangle on black, brighter to the top, and a film label beside it."""
    image = np.zeros(shape, dtype=np.float32)
    image[ROWS : ROWS + 100, LEFT:RIGHT] = grey + np.linspace(0.1, 0, 100)[:, None]
    image[3:9, 10:14] = 1
    return image


def breast(seed=0, shape=(120, 90)):
    """Half an ellipse at the left border with seeded grain, in [0, 1]."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] / np.array(shape).reshape(2, 1, 1)
    inside = ((rows - 0.5) / 0.45) ** 2 + (cols / 0.8) ** 2 < 1
    grain = np.random.default_rng(seed).random(shape)
    return (inside * (0.3 + 0.5 * grain)).astype(np.float32)


# one image


def test_crop_by_hand():
    done = prepare_image(block(), stretch=False)
    row0, col0, row1, col1 = done.box
    assert np.abs(np.array(done.box) - [ROWS, LEFT, ROWS + 100, RIGHT]).max() <= 1  # the label is not in it
    assert done.image.shape == done.mask.shape == (row1 - row0, col1 - col0)
    assert done.image.dtype == np.float32 and done.mask.dtype == bool and done.mask.mean() > 0.99
    assert (done.low, done.high) == (0, 1)
    cropped = block()[row0:row1, col0:col1]
    assert np.array_equal(done.image, cropped[:, ::-1] if done.flipped else cropped)


def test_threshold_is_a_share_of_the_range():
    image = breast() * 0.5 + 0.25
    low, high = prepare_image(image, 0.07), prepare_image(image, 0.5)
    smooth = prepare.gaussian(image, 3 * 120 / 1024)
    for done, share in ((low, 0.07), (high, 0.5)):
        assert done.threshold == pytest.approx(smooth.min() + share * (smooth.max() - smooth.min()), rel=1e-5)


def test_chest_wall_comes_to_column_zero():
    image = breast()
    left, right = prepare_image(image), prepare_image(image[:, ::-1])
    assert (left.flipped, right.flipped) == (False, True)
    assert np.array_equal(left.image, right.image) and np.array_equal(left.mask, right.mask)
    row0, col0, row1, col1 = left.box
    assert right.box == (row0, 90 - col1, row1, 90 - col0) and col0 == 0
    assert left.mask[:, 0].mean() > 0.8 > 0.3 > left.mask[:, -1].mean()


def test_grey_values_are_stretched_over_the_breast():
    image = breast() / 16  # twelve bits in sixteen
    image[2:5, 80:84] = 1  # a label in the corner of the crop must not decide
    done = prepare_image(image, 0.01)
    assert done.image.min() == 0 and done.image[done.mask].max() == 1
    assert (done.low, done.high) == (0, pytest.approx(image[:, :75].max()))
    row0, col0, row1, col1 = done.box
    expected = (image[row0:row1, col0:col1] / done.high).clip(0, 1)
    np.testing.assert_allclose(done.image, expected, atol=1e-6)


def test_holes_of_the_mask_are_filled_also_at_the_chest_wall():
    image = breast(shape=(200, 160))
    image[60:80, 40:60] = 0
    image[110:130, 0:20] = 0
    done = prepare_image(image)
    row0 = done.box[0]
    assert done.mask[60 - row0 : 80 - row0, 40:60].all() and done.mask[110 - row0 : 130 - row0, 0:20].all()
    assert not done.mask[:3, -3:].any()


def test_large_image_is_searched_in_a_small_one():
    image = np.kron(block(), np.ones((13, 13), dtype=np.float32))[:2590, :2075]  # no multiples of the factor 3
    done = prepare_image(image)
    assert np.abs(np.array(done.box) - 13 * np.array([ROWS, LEFT, ROWS + 100, RIGHT])).max() <= 13
    row0, col0, row1, col1 = done.box
    assert done.image.shape == (row1 - row0, col1 - col0)


def test_image_without_background_stays_whole():
    image = 0.3 + 0.5 * np.random.default_rng(0).random((64, 48)).astype(np.float32)
    image[0, 0] = 0
    done = prepare_image(image)
    assert done.box == (0, 0, 64, 48)


def test_boxes_move_with_the_pixels():
    image = breast(1)
    boxes = torch.tensor([[40, 5, 50, 9], [60, 20, 62, 50]])
    for pixels in (image, image[:, ::-1]):
        there = (
            boxes
            if pixels is image
            else boxes[:, [0, 3, 2, 1]] * torch.tensor([1, -1, 1, -1]) + torch.tensor([0, 90, 0, 90])
        )
        done = prepare_image(pixels, stretch=False)
        moved = move_boxes(there, done)
        for (r0, c0, r1, c1), (a, b, c, d) in zip(moved.tolist(), there.tolist(), strict=True):
            part = pixels[a:c, b:d]
            assert np.array_equal(done.image[r0:r1, c0:c1], part[:, ::-1] if done.flipped else part)


def test_boxes_are_clipped_to_the_crop_and_refused_outside():
    done = prepare_image(block(), stretch=False)
    height, width = done.image.shape
    assert move_boxes(torch.tensor([[0, 0, 200, 160]]), done).tolist() == [[0, 0, height, width]]
    assert move_boxes(torch.zeros(0, 4, dtype=torch.int64), done).shape == (0, 4)
    for outside in ([0, 0, 10, 160], [30, 0, 40, 60], [500, 500, 510, 510]):
        with pytest.raises(DataError, match=r"a box lies outside the crop \("):
            move_boxes(torch.tensor([outside]), done)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((50, 40), dtype=np.float32), "constant"),
        (np.full((50, 40), 0.7, dtype=np.float32), "constant"),
        (np.full((50, 40), np.nan, dtype=np.float32), "NaN or infinite"),
        ((block() > 0).astype(np.float32), "two grey values only: a mask"),
        (np.pad(breast(shape=(12, 9)), 100), "nothing as large as a breast"),
    ],
)
def test_image_without_a_breast(pixels, message):
    with pytest.raises(DataError, match=message):
        prepare_image(pixels)


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 7])
def test_wrong_threshold(threshold):
    with pytest.raises(ValueError, match=rf"threshold: {threshold} is not between 0 and 1"):
        prepare_image(breast(), threshold)


@pytest.mark.parametrize("shape", [(3, 20, 20), (20,), (0, 5)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"pixels: expected shape \(H, W\), got \("):
        prepare_image(np.zeros(shape))


# a folder


def dicom(path, seed=0, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_dicom(path, np.round(breast(seed) * 4095).astype(np.uint16), **fields)


def png(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("Patient", "Smith")
    Image.fromarray(np.round(image * 65535).astype(np.uint16)).save(path, pnginfo=note, dpi=(99, 99))
    return path


def bomb(path, width=50_000, height=50_000):
    """A small PNG file that claims gigabytes and holds some rows of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * (width + 1) * 99)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def chunks(path):
    """Kinds of the chunks of a PNG file."""
    content, place, kinds = path.read_bytes(), 8, []
    while place < len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        kinds.append(content[place + 4 : place + 8])
        place += 12 + size
    return kinds


@pytest.fixture
def source(tmp_path):
    """Five images and five faulty files; folder and file names name a patient."""
    root = tmp_path / "source"
    dicom(root / "Smith_4711" / "smith1.dcm", 1, ImageLaterality="L", ViewPosition="CC", ImagerPixelSpacing=[0.1, 0.1])
    dicom(root / "Smith_4711" / "smith2.dcm", 2, ImageLaterality="R", ViewPosition="MLO", PixelSpacing=[0, 0])
    dicom(root / "Smith_4711" / "SMITH3", 3)  # no suffix
    png(root / "smith4.png", breast(4)[:, ::-1])
    png(root / "b" / "smith4.png", breast(5))
    shutil.copy(root / "Smith_4711" / "smith1.dcm", root / "smith_copy.dcm")
    dicom(root / "smith_half.dcm", 6)
    (root / "smith_half.dcm").write_bytes((root / "smith_half.dcm").read_bytes()[:9000])
    png(root / "smith_black.png", np.zeros((30, 20)))
    bomb(root / "smith_bomb.png")
    (root / "smith_text.png").write_text("no image")
    (root / "notes.txt").write_text("nothing")
    shutil.copy(root / "Smith_4711" / "smith1.dcm", root / "DICOMDIR")
    return root


def run(source, out, **options):
    return prepare_folder(source, out, progress=False, **options)


def facts(table):
    return table.sort_values("source").reset_index(drop=True)


def test_folder(source, tmp_path):
    table = run(source, tmp_path / "out", keep_paths=True)
    table["name"] = table["path"].str.replace("\\", "/")
    rows = {row["name"]: row for row in table.to_dict("records")}
    assert table["status"].value_counts().to_dict() == {"done": 5, "failed": 4, "duplicate": 1}
    assert len(rows) == 10 and "notes.txt" not in rows and "DICOMDIR" not in rows
    one, two = rows["Smith_4711/smith1.dcm"], rows["Smith_4711/smith2.dcm"]
    assert (one["laterality"], one["view"], one["pixel_mm"], one["flipped"]) == ("L", "CC", 0.1, False)
    assert (two["laterality"], two["view"], two["remark"]) == ("R", "MLO", "PixelSpacing is not positive")
    assert one["output"] == f"{one['source']}_L_CC.png" and rows["smith4.png"]["output"].count("_") == 0
    assert rows["smith4.png"]["flipped"] and not rows["b/smith4.png"]["flipped"]
    expected = {
        "smith_copy.dcm": "another file has the same SOP instance UID",
        "smith_half.dcm": "pixel data have",
        "smith_black.png": "image is constant",
        "smith_bomb.png": "50000",
        "smith_text.png": "not a readable image",
    }
    for name, why in expected.items():
        assert why in rows[name]["why"], name
    for row in rows.values():
        assert (row["status"] == "done") == isinstance(row["output"], str)
    assert set(os.listdir(tmp_path / "out")) == {TABLE, *(r["output"] for r in rows.values() if r["status"] == "done")}


def test_outputs_are_the_prepared_images(source, tmp_path):
    table = run(source, tmp_path / "out", keep_paths=True).set_index("path")
    row = table.loc["smith4.png"]
    done = prepare_image(read_image(source / "smith4.png"))
    saved = tmp_path / "out" / row["output"]
    np.testing.assert_allclose(read_image(saved), done.image, atol=1 / 65535)
    assert tuple(row[["row0", "col0", "row1", "col1"]]) == done.box and (row["rows"], row["columns"]) == (120, 90)
    assert [row["threshold"], row["low"], row["high"]] == pytest.approx([done.threshold, done.low, done.high])
    with Image.open(saved) as image:
        assert image.mode.startswith("I;16") and not image.info


def test_nothing_of_the_patient_is_written(source, tmp_path, capfd):
    run(source, tmp_path / "out")
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes().lower()
        assert b"smith" not in content and b"4711" not in content, file.name
        assert file.name == TABLE or re.fullmatch(r"[0-9a-f]{12}(_[LR])?(_[A-Z]+)?\.png", file.name)
        if file.suffix == ".png":
            assert set(chunks(file)) == {b"IHDR", b"IDAT", b"IEND"}
    shown = "".join(capfd.readouterr())
    assert "mith" not in shown and "4711" not in shown


def test_names_do_not_collide_and_do_not_depend_on_the_folders_place(source, tmp_path):
    first = run(source, tmp_path / "out")
    shutil.move(source, tmp_path / "elsewhere")
    second = run(tmp_path / "elsewhere", tmp_path / "out2")
    assert first["source"].is_unique and list(first["source"]) == list(second["source"])


# stopping and going on


def test_killed_run_goes_on(source, tmp_path, monkeypatch):
    whole = run(source, tmp_path / "whole")
    seen, real = [], prepare._prepare_file

    def killed_in_the_sixth(path, *rest):
        seen.append(path)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return real(path, *rest)

    monkeypatch.setattr(prepare, "_prepare_file", killed_in_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    table = tmp_path / "out" / TABLE
    assert len(table.read_text().splitlines()) == 1 + 5  # every finished file has its row
    table.write_text(table.read_text() + "0123456789ab,done,x")  # and the sixth was half written
    (tmp_path / "out" / "x").touch()
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.png")}
    done = sum(",done," in line for line in table.read_text().splitlines()) - 1
    assert len(before) == done > 0
    second = run(source, tmp_path / "out")
    assert len(seen) == 6 + 10 - done  # what was done is not done again, what failed is tried again
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*.png")}
    assert {name: after[name] for name in before} == before
    assert facts(second).equals(facts(whole))


def test_half_of_the_files_first(source, tmp_path):
    whole = run(source, tmp_path / "whole")
    aside = tmp_path / "aside"
    shutil.move(source / "Smith_4711", aside)
    half = run(source, tmp_path / "out")
    assert 0 < len(half) < len(whole)
    shutil.move(aside, source / "Smith_4711")
    both = run(source, tmp_path / "out")
    assert set(both["source"]) == set(whole["source"]) and both["source"].is_unique
    assert both["status"].value_counts().to_dict() == whole["status"].value_counts().to_dict()


def count_calls(monkeypatch):
    calls, real = [], prepare._prepare_file

    def counted(path, *rest):
        calls.append(path.name)
        return real(path, *rest)

    monkeypatch.setattr(prepare, "_prepare_file", counted)
    return calls


def test_what_is_done_again(tmp_path, monkeypatch):
    root, out = tmp_path / "source", tmp_path / "out"
    for number in range(3):
        png(root / f"{number}.png", breast(number))
    calls = count_calls(monkeypatch)

    def names(**options):
        calls.clear()
        assert len(run(root, out, **options)) == 3
        return list(calls)

    assert names() == ["0.png", "1.png", "2.png"]
    assert names() == []
    png(root / "1.png", breast(9))
    os.utime(root / "1.png", ns=(1, 1))
    assert names() == ["1.png"]  # the file has changed
    (out / run(root, out)["output"][0]).unlink()
    assert len(names()) == 1  # an output is gone
    assert names(stretch=False) == ["0.png", "1.png", "2.png"]  # an argument has changed
    assert names(stretch=False) == []


def test_rows_are_written_one_by_one(source, tmp_path, monkeypatch):
    found, real = [], prepare._prepare_file

    def look(path, out, *rest):
        with (out / TABLE).open(newline="") as file:
            found.append(len(list(csv.DictReader(file))))
        return real(path, out, *rest)

    monkeypatch.setattr(prepare, "_prepare_file", look)
    run(source, tmp_path / "out")
    assert found == list(range(10))


def test_a_failed_save_leaves_no_output_and_stops(tmp_path, monkeypatch):
    png(tmp_path / "source" / "a.png", breast())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare.os, "replace", lambda a, b: full() if str(b).endswith(".png") else shutil.move(a, b))
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "source", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.png"))


# bad folders


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"PixelData": None}, "has no pixel data"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation PALETTE COLOR"),
        ({"NumberOfFrames": 3}, "multi-frame image with 3 frames"),
        ({"bits": 9}, "do not fit 9 bits stored"),
        ({"Rows": 60000, "Columns": 60000}, "header claims 60000 x 60000 pixels"),
        ({"syntax": JPEGLosslessSV1, "PixelData": encapsulate([b"\xff\xd8 no matter what"])}, "JPEG Lossless"),
        ({"RescaleSlope": 0}, "makes all values one"),
    ],
)
def test_bad_dicom_is_a_row_and_the_others_go_on(tmp_path, fields, why):
    dicom(tmp_path / "source" / "a_smith_bad.dcm", **fields)
    dicom(tmp_path / "source" / "b_good.dcm", 2)
    table = run(tmp_path / "source", tmp_path / "out", keep_paths=True).set_index("path")
    assert table["status"].to_dict() == {"a_smith_bad.dcm": "failed", "b_good.dcm": "done"}
    found = table.loc["a_smith_bad.dcm", "why"]
    assert why in found and "smith" not in found.lower()
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


@pytest.mark.parametrize("value", [0, 700, 4095])
def test_dicom_of_one_grey_value(tmp_path, value):
    """Black, grey or white all over: it can be read, but shows no breast."""
    (tmp_path / "source").mkdir()
    path = write_dicom(tmp_path / "source" / "one.dcm", np.full((30, 20), value, dtype=np.uint16))
    assert np.unique(read_dicom(path).pixels) == pytest.approx([value / 4095])
    table = run(tmp_path / "source", tmp_path / "out")
    assert list(table["status"]) == ["failed"] and "image is constant" in table["why"][0]


def test_two_images_of_one_sop_id(tmp_path):
    """Not a copy but another image: the first in the order of the names is kept, also when the run goes on later."""
    uid = "1.2.3.4"
    dicom(tmp_path / "source" / "a.dcm", 1, SOPInstanceUID=uid)
    dicom(tmp_path / "source" / "b.dcm", 2, SOPInstanceUID=uid)
    expected = {"a.dcm": "done", "b.dcm": "duplicate"}
    table = run(tmp_path / "source", tmp_path / "out", keep_paths=True).set_index("path")
    assert table["status"].to_dict() == expected
    assert table.loc["b.dcm", "why"] == "another file has the same SOP instance UID"
    dicom(tmp_path / "source" / "c.dcm", 3, SOPInstanceUID=uid)
    table = run(tmp_path / "source", tmp_path / "out", keep_paths=True).set_index("path")
    assert table["status"].to_dict() == expected | {"c.dcm": "duplicate"}
    (kept,) = (tmp_path / "out").glob("*.png")
    np.testing.assert_allclose(
        read_image(kept), prepare_image(read_dicom(tmp_path / "source" / "a.dcm").pixels).image, atol=1e-4
    )


def test_missing_side_view_and_wrong_spacing_are_no_failure(tmp_path):
    dicom(tmp_path / "source" / "a.dcm", 1)
    dicom(tmp_path / "source" / "b.dcm", 2, ImagerPixelSpacing=[-0.07, -0.07], ViewPosition="SIDEWAYS")
    table = run(tmp_path / "source", tmp_path / "out", keep_paths=True).set_index("path")
    assert list(table["status"]) == ["done", "done"]
    assert table[["laterality", "view", "pixel_mm"]].isna().all(axis=None)
    assert table.loc["b.dcm", "remark"] == "ImagerPixelSpacing is not positive" and pd.isna(
        table.loc["a.dcm", "remark"]
    )
    assert all(row["output"] == f"{row['source']}.png" for _, row in table.iterrows())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_zip_bomb_costs_nothing(tmp_path):
    (tmp_path / "source").mkdir()
    bomb(tmp_path / "source" / "one.png")
    bomb(tmp_path / "source" / "two.png", 12_000, 12_000)  # below Pillow's own limit
    tracemalloc.start()
    table = run(tmp_path / "source", tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert list(table["status"]) == ["failed"] * 2
    assert table["why"].str.contains("12000 x 12000 pixels; expected at most 80000000").sum() == 1


def test_folder_that_cannot_be_read(source, tmp_path, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("Smith_4711"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    table = run(source, tmp_path / "out")
    row = table[table["why"].str.contains("folder", na=False)]
    assert list(row["status"]) == ["failed"] and list(row["why"]) == ["folder cannot be read: Permission denied"]
    monkeypatch.undo()
    again = run(source, tmp_path / "out")
    assert not again["why"].str.contains("folder cannot", na=False).any() and again["source"].is_unique


def test_file_that_cannot_be_read_and_link_to_nothing(tmp_path, monkeypatch):
    root = tmp_path / "source"
    dicom(root / "smith.dcm")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(root / "pipe.dcm")
    png(root / "good.png", breast())

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(prepare, "read_dicom", denied)
    table = run(root, tmp_path / "out", keep_paths=True).set_index("path")
    assert table["status"].to_dict() == {k: "failed" for k in ("gone.png", "pipe.dcm", "smith.dcm")} | {
        "good.png": "done"
    }
    assert table["why"]["gone.png"] == "image file is missing"
    assert table["why"]["smith.dcm"] == "[Errno 13] Permission denied: 'file'"


def test_source_and_out_that_cannot_be_used(source, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")
    for wrong, message in ((tmp_path / "none", "is not a folder"), (tmp_path / "empty", "holds no DICOM or image")):
        with pytest.raises(DataError, match=f"source: .*{message}"):
            run(wrong, tmp_path / "out")
    for inside in (source, source / "out"):
        with pytest.raises(DataError, match=r"out: .* lies inside source"):
            run(source, inside)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / TABLE).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"prepared\.csv: is no table of prepare_folder"):
        run(source, tmp_path / "other")
    assert (tmp_path / "other" / TABLE).read_text() == "a,b\n1,2\n"


def test_name_that_is_no_unicode(tmp_path):
    root = tmp_path / "source"
    png(root / "a.png", breast())
    os.rename(root / "a.png", os.path.join(os.fsencode(root), b"\xff,\n.png"))
    table = run(root, tmp_path / "out", keep_paths=True)
    assert list(table["status"]) == ["done"]
    assert len(run(root, tmp_path / "out", keep_paths=True)) == 1


def test_progress_bar(tmp_path, capfd):
    png(tmp_path / "source" / "a.png", breast())
    prepare_folder(tmp_path / "source", tmp_path / "out")
    captured = capfd.readouterr()
    assert "prepare" in captured.err and not captured.out


# real files


@pytest.mark.realdata
def test_mini_mias_left_and_right_breasts(data_root):
    # files 2k-1 and 2k are the two breasts of a patient
    files = sorted((data_root / "mini-MIAS" / "all-mias").glob("mdb*.p*"))[:12]
    if not files:
        pytest.skip("no mini-MIAS files")
    for file in files:
        done = prepare_image(read_image(file))
        assert done.flipped == (int(file.stem[3:]) % 2 == 1), file.name
        assert 0.1 < done.mask.sum() / 1024**2 < 0.8 and done.mask.mean() > 0.45, file.name


@pytest.mark.realdata
def test_nyu_sample(data_root):
    folder = data_root / "NYU-sample" / "sample_data" / "images"
    for name, flipped in (("0_L-CC.png", False), ("0_R-CC.png", True)):
        if not (folder / name).is_file():
            pytest.skip("no NYU sample")
        done = prepare_image(read_image(folder / name))
        assert done.flipped == flipped and done.high < 4096 / 65535 and done.image.max() == 1
