"""Reading images and masks of any PNG mode or from DICOM, and resizing.

Usage::

    image = read_image("case001.png")        # (H, W), float32, in [0, 1]
    mask = read_mask("case001_tumor.png")    # (H, W), bool
    small = resize(torch.from_numpy(image)[None], 224)
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from xai_lib.data.case import Case, DataError, boxes_from_mask
from xai_lib.data.dicom import MAX_PIXELS, SUFFIXES, read_dicom

_FAILURES = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_image(path: Path | str) -> np.ndarray:
    """Read an image as (H, W) float32 in [0, 1].

    Grey 8-bit is divided by 255, grey 16-bit by 65535; colour becomes luminance (ITU-R 601), transparency is ignored.
    ``.dcm`` and ``.dicom`` are read by `dicom.read_dicom` with its defaults.

    Raises:
        DataError: the file is missing, truncated, no image, has no pixel, more than `dicom.MAX_PIXELS`, or a mode that
            is none of these.
    """
    path = Path(path)
    if path.suffix.lower() in SUFFIXES:
        return read_dicom(path).pixels
    image = _open(path)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # Pillow < 11 calls a 16-bit PNG "I"
        return np.asarray(image, dtype=np.float32) / 65535
    return np.asarray(_opaque(image).convert("L"), dtype=np.float32) / 255


def read_mask(path: Path | str) -> np.ndarray:
    """Read a mask as (H, W) bool: True where any colour channel is above 0; transparency is ignored.

    Raises:
        DataError: as for `read_image`.
    """
    values = np.asarray(_opaque(_open(Path(path))))
    return np.any(values.reshape(*values.shape[:2], -1) > 0, axis=-1)


def read_image_and_masks(
    image_path: Path | str, mask_paths: Sequence[Path | str]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Read an image (H, W) and its masks (H, W), one per lesion.

    Raises:
        DataError: a file cannot be read, a mask has another size than the image, or has no pixel.
    """
    image = read_image(image_path)
    masks = [read_mask(path) for path in mask_paths]
    for path, mask in zip(mask_paths, masks, strict=True):
        if mask.shape != image.shape:
            sizes = f"{mask.shape[0]} x {mask.shape[1]}, its image is {image.shape[0]} x {image.shape[1]}"
            raise DataError(f"{path}: mask has another size than its image: it is {sizes} (rows x columns)")
        if not mask.any():
            raise DataError(f"{path}: mask has no pixel: the lesion is empty")
    return image, masks


def read_case(row: pd.Series) -> Case:
    """Case of a table row whose `files` are an image and its masks; several masks become one mask and a box for each.

    Raises:
        DataError: as for `read_image_and_masks`.
    """
    image, masks = read_image_and_masks(row["files"][0], row["files"][1:])
    return Case(
        image=torch.from_numpy(image)[None],
        label=int(row["label"]),
        mask=torch.from_numpy(np.logical_or.reduce(masks)),
        boxes=torch.cat([boxes_from_mask(mask) for mask in masks]),
        pixel_mm=None if pd.isna(row.get("pixel_mm")) else float(row["pixel_mm"]),
        patient_id=row["patient_id"],
        view=row["view"],
        source=row["source"],
    )


def resize(image: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize (1, H, W) to (1, *size), one number meaning a square: bilinear, anti-aliased, half-pixel centres.

    The aspect ratio is not kept.
    """
    return _interpolate(image[None], (size, size) if isinstance(size, int) else size)[0]


def resample(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resample (H, W) to `shape`: bilinear, anti-aliased, half-pixel centres."""
    return _interpolate(torch.from_numpy(array)[None, None], shape)[0, 0].numpy()


def _interpolate(images: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(images, size=shape, mode="bilinear", align_corners=False, antialias=True)


def _opaque(image: Image.Image) -> Image.Image:
    """The image without palette and transparency."""
    if image.mode in ("P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        return image.convert("RGB")
    return image.convert("L") if image.mode == "LA" else image


def _open(path: Path) -> Image.Image:
    """Open and decode completely, so that a truncated file is noticed here; Pillow refuses an image without pixels."""
    if not path.is_file():
        raise DataError(f"{path}: image file is missing")
    try:
        with Image.open(path) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.height} x {image.width} pixels; expected at most {MAX_PIXELS}")
            image.load()
    except DataError:
        raise
    except _FAILURES as error:
        raise DataError(f"{path}: not a readable image: {error}") from error
    if image.mode == "F":
        raise DataError(f"{path}: images of floating point numbers are not read; expected 8- or 16-bit grey or colour")
    return image
