"""Reading DICOM: grey values by hand, look-up tables, pixel size, privacy, and files that lie."""

import dataclasses
import io
import math
import tracemalloc

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from xai_lib.data import dicom
from xai_lib.data.case import DataError
from xai_lib.data.dicom import read_dicom
from xai_lib.data.images import read_image

THIRDS = np.array([[0, 1365], [2730, 4095]], dtype=np.uint16)  # of 12 bits
PATIENT = {
    "PatientName": "Smith^Jane",
    "PatientID": "4711",
    "PatientBirthDate": "19700101",
    "PatientComments": "Smithy",
    "InstitutionName": "Smith Clinic",
}


def write(path, pixels=THIRDS, bits=12, syntax=ExplicitVRLittleEndian, **fields):
    """Write a mammogram; a field given as None is left out."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    defaults = {
        "SOPInstanceUID": generate_uid(entropy_srcs=[path.name]),
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "BitsAllocated": pixels.dtype.itemsize * 8,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(np.issubdtype(pixels.dtype, np.signedinteger)),
        "PhotometricInterpretation": "MONOCHROME2",
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }
    for name, value in (defaults | PATIENT | fields).items():
        if value is not None:
            setattr(dataset, name, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if syntax.is_compressed and not syntax.is_deflated else "OW"
        dataset["PixelData"].is_undefined_length = dataset["PixelData"].VR == "OB"
    dataset.save_as(path, enforce_file_format=True)
    return path


def compressed(path, syntax, *frames, pixels=THIRDS, **fields):
    return write(path, pixels, syntax=syntax, PixelData=encapsulate(list(frames)), **fields)


def lut(first, bits, values):
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.LUTData = np.asarray(values, dtype="<u2").tobytes()
    item["LUTData"].VR = "OW"
    return [item]


def grey(path, **options):
    return read_dicom(path, **options).pixels.flatten().tolist()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.dcm"


# grey values by hand


def test_twelve_bits(path):
    image = read_dicom(write(path))
    assert image.pixels.dtype == np.float32 and image.pixels.shape == (2, 2)
    assert image.pixels.tolist() == [pytest.approx([0, 1 / 3]), pytest.approx([2 / 3, 1])]
    assert read_image(path).tolist() == image.pixels.tolist()


@pytest.mark.parametrize("bits", range(8, 17))
def test_every_number_of_bits(path, bits):
    top = 2**bits - 1
    pixels = np.array([[0, 1, top // 2, top]], dtype=np.uint8 if bits == 8 else np.uint16)
    assert grey(write(path, pixels, bits)) == pytest.approx([0, 1 / top, top // 2 / top, 1], abs=1e-7)


def test_odd_number_of_bytes(path):
    assert grey(write(path, np.array([[0, 51, 255]], dtype=np.uint8), 8)) == pytest.approx([0, 0.2, 1])


def test_signed(path):
    assert grey(write(path, np.array([[-2048, 0, 2047]], dtype=np.int16))) == pytest.approx([0, 2048 / 4095, 1])


def test_monochrome1_is_inverted(path):
    write(path, PhotometricInterpretation="MONOCHROME1")
    assert grey(path) == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_rescale(path):
    assert grey(write(path, RescaleSlope=2, RescaleIntercept=-100)) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert grey(write(path, RescaleSlope=-1, RescaleIntercept=0)) == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_linear_window(path):
    # PS3.3 C.11.2.1.2.1: y = (x - (c - 0.5)) / (w - 1) + 0.5, between c - 0.5 -+ (w - 1) / 2
    pixels = np.array([[0, 1000, 1100, 1200, 4095]], dtype=np.uint16)
    write(path, pixels, WindowCenter=[1100, 7], WindowWidth=[401, 7])
    expected = [0, (1000 - 1099.5) / 400 + 0.5, 0.5 / 400 + 0.5, 100.5 / 400 + 0.5, 1]
    assert grey(path) == pytest.approx(expected)
    assert grey(path, voi=False) == pytest.approx(pixels[0] / 4095)


def test_other_window_functions(path):
    pixels = np.array([[900, 1100, 1300]], dtype=np.uint16)
    window = {"WindowCenter": 1100, "WindowWidth": 400}
    assert grey(write(path, pixels, VOILUTFunction="LINEAR_EXACT", **window)) == pytest.approx([0, 0.5, 1])
    sigmoid = [1 / (1 + math.exp(-4 * d / 400)) for d in (-200, 0, 200)]
    assert grey(write(path, pixels, VOILUTFunction="SIGMOID", **window)) == pytest.approx(sigmoid)


def test_window_acts_on_rescaled_values_and_before_the_inversion(path):
    pixels = np.array([[100, 200, 300]], dtype=np.uint16)
    window = {"WindowCenter": 150.5, "WindowWidth": 101, "RescaleSlope": 1, "RescaleIntercept": -50}
    assert grey(write(path, pixels, **window)) == pytest.approx([0, 0.5, 1])
    write(path, pixels, PhotometricInterpretation="MONOCHROME1", **window)
    assert grey(path) == pytest.approx([1, 0.5, 0])


def test_window_after_a_falling_rescale(path):
    # values -100, -200, -300: the larger value is brighter
    pixels = np.array([[100, 200, 300]], dtype=np.uint16)
    window = {"WindowCenter": -199.5, "WindowWidth": 201, "RescaleSlope": -1, "RescaleIntercept": 0}
    assert grey(write(path, pixels, **window)) == pytest.approx([1, 0.5, 0])


def test_voi_table_by_hand(path):
    # stored 0..2 hold the first entry, 3, 4, 5 map to 10, 30, 20, from 6 on the last is held
    pixels = np.array([[0, 3, 4, 5, 9]], dtype=np.uint16)
    write(path, pixels, VOILUTSequence=lut(3, 16, [10, 30, 20]), WindowCenter=5, WindowWidth=2)  # the table wins
    assert grey(path) == [0, 0, 1, 0.5, 0.5]


@pytest.mark.parametrize("bits", [8, 12])
def test_voi_table_with_more_than_256_entries(path, bits):
    values = np.arange(4096) // 16  # with 8 bits pydicom's own function wraps at 256
    write(path, VOILUTSequence=lut(0, bits, values))
    assert grey(path) == pytest.approx([0, 85 / 255, 170 / 255, 1])


def test_voi_table_of_single_bytes_and_of_numbers(path):
    item = lut(0, 8, [0])[0]
    item.LUTDescriptor, item.LUTData = [4, 0, 8], bytes([0, 10, 40, 20])
    pixels = np.array([[0, 1, 2, 3]], dtype=np.uint16)
    assert grey(write(path, pixels, VOILUTSequence=[item])) == [0, 0.25, 1, 0.5]
    item.add_new("LUTData", "US", [0, 10, 40, 20])
    assert grey(write(path, pixels, VOILUTSequence=[item])) == [0, 0.25, 1, 0.5]


def test_modality_table_comes_before_the_window(path):
    pixels = np.array([[0, 1, 2]], dtype=np.uint16)
    table = {"ModalityLUTSequence": lut(0, 16, [0, 300, 100])}
    assert grey(write(path, pixels, **table)) == pytest.approx([0, 1, 1 / 3])
    window = {"WindowCenter": 100, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    assert grey(write(path, pixels, **table, **window)) == pytest.approx([0, 1, 0.5])


# against pydicom


@pytest.mark.parametrize("fields", [{}, {"RescaleSlope": 0.5, "RescaleIntercept": 7}])
def test_agrees_with_pydicoms_pipeline(path, fields):
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30), dtype=np.uint16)
    write(path, pixels, WindowCenter=900, WindowWidth=700, **fields)
    dataset = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    ends = np.array([0, 4095]) * fields.get("RescaleSlope", 1) + fields.get("RescaleIntercept", 0)
    np.testing.assert_allclose(read_dicom(path).pixels, (shown - ends[0]) / (ends[1] - ends[0]), atol=1e-6)


def test_a_scanners_file():
    file = get_testdata_file("CT_small.dcm", download=False)
    dataset = pydicom.dcmread(file)
    image = read_dicom(file)
    np.testing.assert_allclose(image.pixels, (dataset.pixel_array + 32768.0) / 65535, atol=1e-7)
    assert (image.pixel_mm, image.laterality, image.view) == (pytest.approx(0.661468), None, None)


def test_compressed_is_as_uncompressed(path, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 48), dtype=np.uint16)
    plain = read_dicom(write(path, pixels)).pixels
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG2000", irreversible=False)
    compressed(tmp_path / "j2k.dcm", JPEG2000Lossless, stream.getvalue(), pixels=pixels)
    for name in ("rle.dcm", "j2k.dcm"):
        assert np.array_equal(read_dicom(tmp_path / name).pixels, plain)


def test_implicit_headers(path):
    assert grey(write(path, syntax=ImplicitVRLittleEndian)) == pytest.approx([0, 1 / 3, 2 / 3, 1])


# what the header says about the image


@pytest.mark.parametrize(
    ("fields", "expected", "remark"),
    [
        ({}, None, None),
        ({"ImagerPixelSpacing": [0.07, 0.07]}, 0.07, None),
        ({"PixelSpacing": [0.05, 0.05]}, 0.05, None),
        ({"ImagerPixelSpacing": [0.07, 0.07], "PixelSpacing": [0.07, 0.07]}, 0.07, None),
        ({"ImagerPixelSpacing": [0.07, 0.07], "PixelSpacing": [0.05, 0.05]}, None, "differ, no calibration"),
        (
            {
                "ImagerPixelSpacing": [0.07, 0.07],
                "PixelSpacing": [0.05, 0.05],
                "PixelSpacingCalibrationType": "GEOMETRY",
            },
            0.05,
            None,
        ),
        ({"ImagerPixelSpacing": [-0.07, 0.07]}, None, "ImagerPixelSpacing is not positive"),
        ({"ImagerPixelSpacing": [0, 0]}, None, "ImagerPixelSpacing is not positive"),
        ({"ImagerPixelSpacing": [0, 0], "PixelSpacing": [0.1, 0.1]}, 0.1, "ImagerPixelSpacing is not positive"),
        ({"PixelSpacing": [0.07, 0.14]}, None, "PixelSpacing differs between rows and columns"),
        ({"PixelSpacing": [0.07, 0.07, 0.07]}, None, "PixelSpacing is not two numbers"),
        ({"PixelSpacing": 0.07}, None, "PixelSpacing is not two numbers"),
        ({"PixelSpacing": ""}, None, None),
    ],
)
def test_pixel_size(path, fields, expected, remark):
    image = read_dicom(write(path, **fields))
    assert image.pixel_mm == expected
    assert len(image.remarks) == (remark is not None)
    assert all(remark in found for found in image.remarks)


@pytest.mark.parametrize("text", [b"abcd\\0.07", b"nan\\ 0.07", b"inf\\ inf ", b"0.07 0.07"])
def test_pixel_size_that_is_no_number(path, text):
    content = write(path, PixelSpacing=[0.07, 0.07]).read_bytes()
    assert content.count(b"0.07\\0.07") == 1
    path.write_bytes(content.replace(b"0.07\\0.07", text))
    image = read_dicom(path)
    assert image.pixel_mm is None and len(image.remarks) == 1 and "PixelSpacing" in image.remarks[0]


def test_laterality(path):
    assert read_dicom(write(path)).laterality is None
    assert read_dicom(write(path, ImageLaterality="L", Laterality="R")).laterality == "L"
    assert read_dicom(write(path, Laterality="R")).laterality == "R"
    assert read_dicom(write(path, ImageLaterality="B")).laterality is None
    assert read_dicom(write(path, ImageLaterality="")).laterality is None


def test_view(path):
    def code(value):
        item = Dataset()
        item.CodeValue = value
        return [item]

    assert read_dicom(write(path)).view is None
    assert read_dicom(write(path, ViewPosition="MLO", ViewCodeSequence=code("R-10242"))).view == "MLO"
    assert read_dicom(write(path, ViewCodeSequence=code("R-10242"))).view == "CC"
    assert read_dicom(write(path, ViewCodeSequence=code("399368009"))).view == "MLO"
    assert read_dicom(write(path, ViewCodeSequence=code("other"))).view is None
    assert read_dicom(write(path, PatientOrientation=["A", "L"])).view is None
    assert read_dicom(write(path, PatientOrientation="CC")).view == "CC"  # as in CBIS-DDSM
    assert read_dicom(write(path, ViewPosition="SMITH")).view is None


def test_instance_is_a_hash_and_the_same_for_a_copy(tmp_path):
    one, two = (write(tmp_path / name) for name in ("one.dcm", "two.dcm"))
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(one.read_bytes())
    assert read_dicom(one).instance == read_dicom(copy).instance != read_dicom(two).instance
    assert len(read_dicom(one).instance) == 12
    assert read_dicom(write(tmp_path / "none.dcm", SOPInstanceUID=None)).instance is None


# privacy


def test_no_field_of_the_patient_is_read():
    groups = {name: tag_for_keyword(name) >> 16 for name in dicom.FIELDS}
    assert all(group not in (0x0010, 0x0038, 0x0040) for group in groups.values())
    about = {name for name in dicom.FIELDS if "Patient" in name}
    assert about == {"PatientOrientation"}


def test_nothing_of_the_patient_is_returned_or_shown(path, capfd, caplog, recwarn):
    write(path, ImagerPixelSpacing=[0, 0], ImageLaterality="L")
    content = path.read_bytes().replace(b"19700101", b"Smith\0\0\0")  # no date: pydicom quotes such values in warnings
    path.write_bytes(content)
    image = read_dicom(path)
    errors = []
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        try:
            read_dicom(path)
        except DataError as error:
            assert error.__cause__ is None and error.__suppress_context__
            errors.append(str(error))
    shown = repr(dataclasses.asdict(image)) + "".join(errors) + caplog.text + "".join(capfd.readouterr())
    assert errors and "Smith" not in shown and "4711" not in shown
    assert not [w for w in recwarn if "Smith" in str(w.message)]


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"PixelData": None}, "has no pixel data"),
        ({"PixelData": b""}, "has no pixel data"),
        ({"Rows": None}, "has no image: the header lacks Rows"),
        ({"BitsStored": None, "PhotometricInterpretation": None}, "lacks BitsStored, PhotometricInterpretation"),
        ({"NumberOfFrames": 60}, r"multi-frame image with 60 frames .*expected a single frame"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "photometric interpretation PALETTE COLOR; expected MONO"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "photometric interpretation RGB"),
        ({"Rows": 65535, "Columns": 65535}, "header claims 65535 x 65535 pixels; expected 1 to 80000000"),
        ({"Rows": 0}, "header claims 0 x 2 pixels"),
        ({"Rows": 3}, "pixel data have 8 bytes, the header's size needs 12"),
        ({"Columns": 1}, "pixel data have 8 bytes, the header's size needs 4"),
        ({"bits": 17}, "17 bits stored in 16 allocated"),
        ({"bits": 0, "HighBit": 0}, "0 bits stored in 16 allocated"),
        ({"BitsAllocated": 32}, "12 bits stored in 32 allocated"),
        ({"HighBit": 15}, "high bit 15 does not fit 12 bits stored; expected 11"),
        ({"bits": 10}, "stored values 0 to 4095 do not fit 10 bits stored"),
        ({"syntax": DeflatedExplicitVRLittleEndian}, "deflated DICOM is not read"),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "makes all values one"),
        ({"WindowCenter": 99999, "WindowWidth": 10}, "makes all values one"),
        ({"WindowCenter": 99, "WindowWidth": 0}, "Window Width must be greater than"),
        ({"WindowCenter": 99, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "Unsupported .* VOI LUT Function"),
        ({"VOILUTSequence": lut(0, 12, range(4096))[:0], "WindowCenter": 5, "WindowWidth": -5}, "Window Width"),
    ],
)
def test_file_that_contradicts_itself(path, options, message):
    write(path, **options)
    with pytest.raises(DataError, match=rf"^image\.dcm: .*{message}"):
        read_dicom(path)


def test_signed_values_that_do_not_fit(path):
    write(path, np.array([[-3000, 100]], dtype=np.int16))
    with pytest.raises(DataError, match="stored values -3000 to 100 do not fit 12 bits"):
        read_dicom(path)


def test_voi_table_that_is_too_short(path):
    item = lut(0, 12, range(100))[0]
    item.LUTDescriptor = [4096, 0, 12]
    write(path, VOILUTSequence=[item])
    with pytest.raises(DataError, match="look-up table has 200 of 4096 entries"):
        read_dicom(path)
    assert grey(path, voi=False)[-1] == 1


def test_missing_codec_is_named(path):
    compressed(path, JPEGLosslessSV1, b"\xff\xd8 no matter what")
    try:
        import pylibjpeg  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"compressed as JPEG Lossless.* no codec is installed; try: pip install"):
            read_dicom(path)
    else:
        pytest.skip("the codec is installed")


def test_unknown_compression(path):
    compressed(path, pydicom.uid.MPEG2MPML, b"film")
    with pytest.raises(DataError, match="compressed as MPEG2"):
        read_dicom(path)


def test_damaged_compressed_pixels(path):
    compressed(path, JPEG2000Lossless, b"\xff\x4f\xff\x51 damaged")
    with pytest.raises(DataError, match=r"image\.dcm: not a readable DICOM image: Unable to decode") as caught:
        read_dicom(path)
    assert len(str(caught.value)) < 300


def test_compressed_picture_of_another_size(path):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((40, 50), dtype=np.uint16)).save(stream, "JPEG2000", irreversible=False)
    compressed(path, JPEG2000Lossless, stream.getvalue())
    with pytest.raises(DataError, match=r"image\.dcm"):
        read_dicom(path)


def test_truncated_anywhere(path):
    content = write(path, np.zeros((40, 40), dtype=np.uint16), ImageLaterality="L").read_bytes()
    for size in (*range(0, len(content) - 3200, 29), len(content) - 3000, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"^image\.dcm: "):
            read_dicom(path)


def test_missing_file_folder_and_text(tmp_path):
    (tmp_path / "text.dcm").write_text("no DICOM, but long enough to hold a preamble " * 9)
    for name, message in (("gone.dcm", "is missing"), (".", "is missing"), ("text.dcm", "not a readable DICOM image")):
        with pytest.raises(DataError, match=message):
            read_dicom(tmp_path / name)


def test_header_that_claims_gigabytes_costs_nothing(path):
    write(path, Rows=60000, Columns=60000)
    tracemalloc.start()
    with pytest.raises(DataError, match="60000 x 60000"):
        read_dicom(path)
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_limit_is_a_parameter(path):
    write(path, np.zeros((30, 40), dtype=np.uint16))
    assert read_dicom(path, max_pixels=1200).pixels.shape == (30, 40)
    with pytest.raises(DataError, match="30 x 40 pixels; expected 1 to 1199"):
        read_dicom(path, max_pixels=1199)
    with pytest.raises(DataError, match="file is larger than 400 bytes"):
        read_dicom(path, max_pixels=100)


# real files


@pytest.mark.realdata
def test_cbis_ddsm_crops(data_root):
    files = sorted((data_root / "CBIS-DDSM").rglob("*.dcm"))
    if not files:
        pytest.skip("no CBIS-DDSM files")
    images = [read_dicom(file) for file in files]
    for file, image in zip(files, images, strict=True):
        case = file.parts[-4]  # Mass-Test_P_00016_LEFT_CC_1
        assert f"_{image.view}_" in case and {"L": "LEFT", "R": "RIGHT"}[image.laterality] in case
        assert np.array_equal(np.round(image.pixels * 65535), pydicom.dcmread(file).pixel_array)
    assert {image.pixels.shape for image in images} == {(384, 385), (483, 286), (486, 497)}
