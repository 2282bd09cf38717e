"""NYU sample: the few 16-bit screening mammograms that come with the GMIC network of New York University.

Y. Shen et al., "An interpretable classifier for high-resolution breast cancer screening images utilizing weakly
supervised localization", Medical Image Analysis 68 (2021) 101908; github.com/nyukat/GMIC, folder ``sample_data``.

Usage::

    cases = load_nyu_sample("sample_data")        # the folder with images/ and segmentation/

``images/0_R-CC.png`` is a view of exam 0, ``segmentation/0_R-CC_benign.png`` the biopsied findings in it. What to know:

- The grey levels are 12-bit (0 to 4095) in 16-bit files; 4095 becomes 1.
- A mask has the network's window of 2944 x 1920, in which right breasts are mirrored to the left edge. An image lies in
  it at column 0, centred vertically: row 400 for the image of 2144 rows. The one mask that we have fits this (the
  calcifications lie inside it); for other images it is our reading. The mask of a case is in its image's frame.
- A breast is malignant, or benign, if one of its views has such a mask, else normal. The exam list of the repository
  (a pickle file) is not read. The pixel size is not given.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped, boxes_from_mask, existing, hashed_id
from xai_lib.data.images import read_image, read_mask
from xai_lib.data.mammograms import CLASSES, Scan, label_of, make_case, to_dataset, to_report

FRAME = (2944, 1920)  # rows and columns of a mask
LEVELS = 4095
_NAME = re.compile(r"(?P<exam>\w+)_(?P<side>[LR])-(?P<view>CC|MLO)(_(?P<kind>benign|malignant))?\.png")


def load_nyu_sample(
    root: Path | str, strict: bool = False, verify: bool = False, classes: Sequence[str] = tuple(CLASSES)
) -> CaseDataset:
    """Load the sample images of GMIC.

    Args:
        root: the folder ``sample_data`` with ``images`` and ``segmentation``.
        strict: raise for the first missing image (a mask without one) or faulty name instead of skipping and counting.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" (both label 0) and "malignant" (1).

    Raises:
        DataError: the folder is missing, no case can be used; with `strict`, any fault.
        ValueError: a class is unknown.
    """
    return to_dataset("nyu_sample", root, _scan(existing(root, "nyu_sample")), _read, classes, strict, verify)


def check_nyu_sample(root: Path | str, verify: bool = True) -> Report:
    """Count what the folder holds: images per class, missing and faulty ones.

    Raises:
        DataError: the folder is missing.
    """
    return to_report("nyu_sample", root, _scan(existing(root, "nyu_sample")), _read, verify)


def _scan(folder: Path) -> Scan:
    """One row per image."""
    scan = Scan()
    images: dict[tuple[str, str, str], Path] = {}
    masks: dict[tuple[str, str, str], list[tuple[str, Path]]] = {}
    for path in sorted([*folder.glob("images/*.png"), *folder.glob("segmentation/*.png")]):
        found = _NAME.fullmatch(path.name)
        if found is None or (found["kind"] is None) != (path.parent.name == "images"):
            scan.faults.append(Skipped(f"nyu_sample/{path.stem}", "name not understood: expected '0_R-CC.png'"))
        elif found["kind"] is None:
            images[found["exam"], found["side"], found["view"]] = path
        else:
            masks.setdefault((found["exam"], found["side"], found["view"]), []).append((found["kind"], path))
    if not images and not scan.faults:
        raise DataError(f"nyu_sample: {folder} holds no image; expected images/0_R-CC.png and the like")
    for key in sorted(masks.keys() - images.keys()):
        scan.missing.append(Skipped(f"nyu_sample/{key[0]}_{key[1]}-{key[2]}", "image file is missing"))
    for (exam, side, view), path in images.items():
        kinds = [kind for key, found in masks.items() if key[:2] == (exam, side) for kind, _ in found]
        own = masks.get((exam, side, view), [])
        row = {
            "source": f"nyu_sample/{path.stem}",
            **label_of(max(kinds, default="normal")),  # "malignant" comes after "benign"
            "patient_id": hashed_id(f"nyu_sample/{exam}"),
            "laterality": side,
            "view": view,
            "pixel_mm": None,
            "files": (path, *[mask for _, mask in own]),
        }
        scan.rows.append(row)
    return scan


def _read(row: pd.Series) -> Case:
    """Case of one image; the masks are brought into its frame."""
    pixels = np.minimum(read_image(row["files"][0]) * (65535 / LEVELS), 1)
    masks = [_aligned(path, pixels.shape, row["laterality"] == "R") for path in row["files"][1:]]
    boxes = [tuple(box) for mask in masks for box in boxes_from_mask(mask).tolist()]
    return make_case(row, pixels, boxes, np.logical_or.reduce(masks) if masks else None)


def _aligned(path: Path, shape: tuple[int, int], mirrored: bool) -> np.ndarray:
    """The part of a mask's frame in which the image lies, bool, mirrored back for a right breast."""
    mask = read_mask(path)
    if mask.shape != FRAME:
        raise DataError(f"{path}: mask is {mask.shape[0]} x {mask.shape[1]}, expected {FRAME[0]} x {FRAME[1]}")
    rows, cols = shape
    if rows > FRAME[0] or cols > FRAME[1]:
        raise DataError(f"{path}: its image of {rows} x {cols} is larger than the mask's frame")
    top = (FRAME[0] - rows) // 2
    part = mask[top : top + rows, :cols]
    if not part.any():
        raise DataError(f"{path}: mask outside the image: no pixel of it is in rows {top} to {top + rows}")
    return part[:, ::-1] if mirrored else part
