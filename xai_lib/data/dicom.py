"""Reading one mammogram from a DICOM file.

Usage::

    shown = read_dicom("000001.dcm")                 # pixels as the header's look-up tables show them
    shown.pixels, shown.pixel_mm, shown.laterality   # (H, W) float32 in [0, 1], 0.07, "L"
    raw = read_dicom("000001.dcm", voi=False)        # without window or VOI look-up table

Stored values pass through up to three steps (DICOM PS3.3, C.11.1, C.11.2 and C.7.6.3.1.2): the modality LUT or rescale,
the VOI LUT or window, and for MONOCHROME1 an inversion, so that bright is dense. All three act on single values, so
they are worked out once for every value that the pixels can have (at most 65536) and looked up.

Privacy: only the header fields in `FIELDS` are read from the file at all, and none of them describes a patient. The
identifier of the image is hashed.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import apply_windowing

from xai_lib.data.case import DataError, hashed_id

MAX_PIXELS = 80_000_000  # a film of 24 x 30 cm at 43 micron has 39 million
SUFFIXES = (".dcm", ".dicom")
NEEDED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation")
FIELDS = (
    *NEEDED,
    *("SamplesPerPixel", "NumberOfFrames", "HighBit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("ImagerPixelSpacing", "PixelSpacing", "PixelSpacingCalibrationType"),
    *("ImageLaterality", "Laterality", "ViewPosition", "ViewCodeSequence", "PatientOrientation", "SOPInstanceUID"),
)
VIEWS = (
    "CC",
    "MLO",
    "ML",
    "LM",
    "LMO",
    "XCCL",
    "XCCM",
    "AT",
)  # others become None
VIEW_CODES = {"399162004": "CC", "399368009": "MLO", "399260004": "ML", "399352003": "LM"}  # SNOMED CT, CID 4014
VIEW_CODES |= {"R-10242": "CC", "R-10226": "MLO", "R-10224": "ML", "R-10228": "LM"}  # the same in SNOMED RT


@dataclass(frozen=True, eq=False)
class DicomImage:
    """One image and what its header says about it; nothing in it describes the patient."""

    pixels: np.ndarray  # (H, W), float32, in [0, 1]
    pixel_mm: float | None  # side of a pixel, None where the header gives none that can be used
    laterality: str | None  # "L" or "R"
    view: str | None  # "CC", "MLO", ...
    instance: str | None  # hash of the SOP instance UID, equal for two copies of one image
    remarks: tuple[str, ...]  # what is wrong with the header but does not harm the pixels


def read_dicom(path: Path | str, voi: bool = True, max_pixels: int = MAX_PIXELS) -> DicomImage:
    """Read a single grey image.

    Args:
        path: a DICOM file (part 10).
        voi: apply the first VOI look-up table, or else the first window.
        max_pixels: a header that claims more rows x columns is refused before anything is allocated.

    0 and 1 are the ends of the window; without one, of the VOI look-up table's values; without either, of what the
    stored bits can hold.

    Raises:
        DataError: the file is missing, not DICOM, truncated, without pixel data or too large; it has several frames, a
            palette or colours; its compression needs a codec that is not installed; its header contradicts its pixels
            or its look-up tables cannot be used. The message holds the file's name, without its folder.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom quotes header values in its warnings
            header = _header(path, max_pixels)
            stored = _stored(path, header)
            table = _table(header, voi)
            return _image(header, table[stored])
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from None
    except Exception as error:  # pydicom and its codecs raise many kinds
        raise DataError(f"{path.name}: not a readable DICOM image: {shorten(str(error), 200)}") from None


def _header(path: Path, max_pixels: int) -> Dataset:
    """The fields that are wanted, checked; no pixel is read."""
    if not path.is_file():
        raise DataError("DICOM file is missing")
    if path.stat().st_size > 4 * max_pixels:
        raise DataError(f"file is larger than {4 * max_pixels} bytes, too large for {max_pixels} pixels (max_pixels)")
    if pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID", pydicom.uid.UID("")).is_deflated:
        raise DataError("deflated DICOM is not read: how much is inside cannot be known before unpacking")
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(FIELDS))
    lacking = [name for name in NEEDED if header.get(name) is None]
    if lacking:
        raise DataError(f"has no image: the header lacks {', '.join(lacking)}")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(f"multi-frame image with {frames} frames (tomosynthesis?); expected a single frame")
    colours = header.PhotometricInterpretation
    if colours not in ("MONOCHROME1", "MONOCHROME2") or header.get("SamplesPerPixel", 1) != 1:
        raise DataError(f"photometric interpretation {colours}; expected MONOCHROME1 or MONOCHROME2")
    rows, columns, bits = header.Rows, header.Columns, header.BitsStored
    if not 0 < rows * columns <= max_pixels:
        raise DataError(f"header claims {rows} x {columns} pixels; expected 1 to {max_pixels} (max_pixels)")
    if header.BitsAllocated not in (8, 16) or not 2 <= bits <= header.BitsAllocated:
        raise DataError(f"{bits} bits stored in {header.BitsAllocated} allocated; expected 2-16 in 8 or 16")
    if header.get("HighBit", bits - 1) != bits - 1:
        raise DataError(f"high bit {header.HighBit} does not fit {bits} bits stored; expected {bits - 1}")
    return header


def _stored(path: Path, header: Dataset) -> np.ndarray:
    """Stored values as indices of the table of `_table`, (H, W)."""
    dataset = pydicom.dcmread(path, specific_tags=[*FIELDS, "PixelData"])
    if not dataset.get("PixelData"):
        raise DataError("has no pixel data")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            available = False
        if not available:
            raise DataError(
                f"compressed as {syntax.name}, for which no codec is installed; "
                "try: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            )
    else:
        expected = header.Rows * header.Columns * header.BitsAllocated // 8
        if not expected <= len(dataset.PixelData) <= expected + 1:  # padded to an even length
            raise DataError(f"pixel data have {len(dataset.PixelData)} bytes, the header's size needs {expected}")
    stored = pixel_array(dataset, correct_unused_bits=False)  # correcting would wrap values that do not fit
    if stored.shape != (header.Rows, header.Columns):
        raise DataError(f"pixels have the shape {stored.shape}, the header says {header.Rows} x {header.Columns}")
    low, high = _stored_range(header)
    if stored.min() < low or stored.max() > high:
        raise DataError(f"stored values {stored.min()} to {stored.max()} do not fit {header.BitsStored} bits stored")
    return stored - np.array(low, dtype=np.int32) if low else stored


def _stored_range(header: Dataset) -> tuple[int, int]:
    """Smallest and largest value that the stored bits can hold."""
    values = 2**header.BitsStored
    return (-values // 2, values // 2 - 1) if header.PixelRepresentation else (0, values - 1)


def _table(header: Dataset, voi: bool) -> np.ndarray:
    """Grey in [0, 1] of every value that the stored bits can hold, from the smallest to the largest."""
    low, high = _stored_range(header)
    values: np.ndarray = np.arange(low, high + 1)
    if header.get("ModalityLUTSequence"):
        values = _look_up(values, header.ModalityLUTSequence[0], header)
    elif header.get("RescaleSlope") is not None:
        values = values * float(header.RescaleSlope) + float(header.get("RescaleIntercept") or 0)
    black, white = values.min(), values.max()
    if voi and header.get("VOILUTSequence"):
        values = _look_up(values, header.VOILUTSequence[0], header)
        black, white = values.min(), values.max()
    elif voi and header.get("WindowWidth") is not None and header.get("WindowCenter") is not None:
        values = apply_windowing(values, header)
        black, white = apply_windowing(np.array([-1e30, 1e30]), header)  # far below and far above the window
    if not np.isfinite(values).all() or values.min() == values.max():
        raise DataError("rescale, window or look-up table of the header makes all values one")
    table = ((values - black) / (white - black)).clip(0, 1).astype(np.float32)
    return 1 - table if header.PhotometricInterpretation == "MONOCHROME1" else table


def _look_up(values: np.ndarray, item: Dataset, header: Dataset) -> np.ndarray:
    """Look-up table of one sequence item (PS3.3 C.11.1.1), the ends held.

    Not pydicom's own: its VOI table of 8 bits wraps the index at 256.
    """
    entries, first, _ = item.LUTDescriptor
    entries = entries or 2**16
    data: Any = item.LUTData
    if isinstance(data, bytes):
        order = "<" if header.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, dtype=np.uint8 if len(data) < 2 * entries else f"{order}u2")
    table = np.atleast_1d(np.asarray(data, dtype=np.int64))
    if len(table) < entries:
        raise DataError(f"look-up table has {len(table)} of {entries} entries")
    return table[np.clip(np.asarray(values - first, dtype=np.int64), 0, entries - 1)]


def _image(header: Dataset, pixels: np.ndarray) -> DicomImage:
    pixel_mm, remarks = _pixel_mm(header)
    uid = header.get("SOPInstanceUID")
    laterality = str(header.get("ImageLaterality") or header.get("Laterality") or "").strip().upper()
    return DicomImage(
        pixels=pixels,
        pixel_mm=pixel_mm,
        laterality=laterality if laterality in ("L", "R") else None,
        view=_view(header),
        instance=hashed_id(uid) if uid else None,
        remarks=remarks,
    )


def _view(header: Dataset) -> str | None:
    """View position; else the coded view; else what CBIS-DDSM writes into the patient orientation."""
    for value in (header.get("ViewPosition"), header.get("PatientOrientation")):
        if isinstance(value, str) and value.strip().upper() in VIEWS:
            return value.strip().upper()
    codes = header.get("ViewCodeSequence") or []
    return next((VIEW_CODES[item.CodeValue] for item in codes if item.get("CodeValue") in VIEW_CODES), None)


def _pixel_mm(header: Dataset) -> tuple[float | None, tuple[str, ...]]:
    """Side of a pixel in mm, and remarks.

    `ImagerPixelSpacing` is measured at the detector. `PixelSpacing` may differ from it only where the header says that
    it was calibrated (PS3.3 10.7.1.3); then it is the better one.
    """
    found: dict[str, float] = {}
    remarks = []
    for name in ("ImagerPixelSpacing", "PixelSpacing"):
        try:
            value = header.get(name)
            if value is None:
                continue
            rows, columns = (float(number) for number in value)
        except (TypeError, ValueError):
            remarks.append(f"{name} is not two numbers")
            continue
        if not (math.isfinite(rows) and math.isfinite(columns) and min(rows, columns) > 0):
            remarks.append(f"{name} is not positive")
        elif not math.isclose(rows, columns, rel_tol=0.01):
            remarks.append(f"{name} differs between rows and columns")
        else:
            found[name] = rows
    spacing = found.get("ImagerPixelSpacing", found.get("PixelSpacing"))
    if len(found) == 2 and not math.isclose(*found.values(), rel_tol=0.01):
        calibrated = bool(header.get("PixelSpacingCalibrationType"))
        spacing = found["PixelSpacing"] if calibrated else None
        remarks += [] if calibrated else ["ImagerPixelSpacing and PixelSpacing differ, no calibration is stated"]
    return spacing, tuple(remarks)
