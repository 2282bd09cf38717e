"""BCDR: the Breast Cancer Digital Repository, mammograms of Portuguese hospitals with outlined lesions.

M. G. Lopez et al., "BCDR: a breast cancer digital repository", 15th International Conference on Experimental Mechanics
(2012), Porto; <https://bcdr.eu>, on registration, for research.

Usage::

    cases = load_bcdr("BCDR")                                    # masses of D01 (digital) and F01 (film)
    cases = load_bcdr("BCDR", parts=["D01"], findings=None)      # all segmentations of D01, as Li et al. 2025 use them

Layout: one folder for each part, ``BCDR-D01_dataset`` and ``BCDR-F01_dataset``, with ``bcdr_d01_outlines.csv`` and the
images, ``patient_9/study_10/img_9_10_1_RCC.tif``. The table has one row for each segmentation of a lesion in an image.
What to know:

- The outline is `lw_x_points` and `lw_y_points`: numbers separated by spaces, x to the right, y down. Nothing says
  where counting starts; we take the first pixel as 0. Interior and outline are the mask.
- `classification` is Benign or Malign, by lesion; an image is malignant if one of its lesions is.
- A lesion may be a nodule (a mass), calcifications and more at once, or none of these; `findings` chooses.
- `image_view` counts RCC, LCC, RO, LO from 1; O is the mediolateral oblique view.
- A digital pixel is 70 micrometres wide. The size of a film's is not given with the images.
- A patient number that is in two parts counts as one patient.
- Cells begin with a blank. Images without an outline are not in the table and not loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.draw import polygon

from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.images import read_image
from xai_lib.data.mammograms import (
    MISSING,
    Scan,
    first_file,
    inside,
    label_of,
    make_case,
    read_csv,
    to_dataset,
    to_report,
)

PARTS = ("D01", "F01")
PIXEL_MM = {"D": 0.07, "F": None}  # by the first letter of the part
FINDINGS = (
    "nodule",
    "calcification",
    "microcalcification",
    "axillary_adenopathy",
    "architectural_distortion",
    "stroma_distortion",
)
VIEWS = {"1": ("R", "CC"), "2": ("L", "CC"), "3": ("R", "MLO"), "4": ("L", "MLO")}
CLASSIFICATIONS = {"benign": "benign", "malign": "malignant", "malignant": "malignant"}
COLUMNS = (
    *("patient_id", "study_id", "lesion_id", "image_view", "image_filename", "lw_x_points", "lw_y_points"),
    *(f"mammography_{finding}" for finding in FINDINGS),
    *("density", "classification"),
)

Outline = tuple[tuple[float, float], ...]


def load_bcdr(
    root: Path | str,
    strict: bool = False,
    verify: bool = False,
    classes: Sequence[str] = ("benign", "malignant"),
    parts: Sequence[str] | None = None,
    findings: Sequence[str] | None = ("nodule",),
) -> CaseDataset:
    """Load BCDR. The table has the columns part, density, findings and outlines beside the usual ones.

    Args:
        root: the folder with ``BCDR-D01_dataset`` and ``BCDR-F01_dataset``, or one of these two.
        strict: raise for the first missing image or faulty row instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "benign" (label 0) and "malignant" (1); there are no normal images.
        parts: which of "D01" and "F01"; None: those that are there.
        findings: a lesion is loaded if one of these of `FINDINGS` was seen in it; None loads all of them.

    Raises:
        DataError: the folder, a table or a column is missing, no case can be used; with `strict`, any fault.
        ValueError: a class, a part or a finding is unknown.
    """
    scan = _scan(existing(root, "bcdr"), parts, findings)
    return to_dataset("bcdr", root, scan, _read, classes, strict, verify)


def check_bcdr(root: Path | str, verify: bool = False) -> Report:
    """Count what a BCDR folder holds: images per class with a lesion of any finding, missing and faulty ones.

    Raises:
        DataError: the folder, a table or a column is missing.
    """
    scan = _scan(existing(root, "bcdr"), None, None)
    masses = sum("nodule" in finding.split("+") for row in scan.rows for finding in row["findings"])
    found = ", ".join(dict.fromkeys(row["part"] for row in scan.rows))
    return to_report("bcdr", root, scan, _read, verify, [f"parts: {found}; {masses} of the located lesions are masses"])


def _scan(folder: Path, parts: Sequence[str] | None, findings: Sequence[str] | None) -> Scan:
    """One row per image with an outline, of all parts."""
    for name, asked, known in (("parts", parts, PARTS), ("findings", findings, FINDINGS)):
        if asked is not None and (not asked or isinstance(asked, str) or set(asked) - set(known)):
            raise ValueError(f"{name}: {asked!r}, expected None or some of {', '.join(known)}")
    tables = {part: _table(folder, part) for part in parts or PARTS}
    lacking = [part for part, path in tables.items() if path is None]
    if lacking and (parts is not None or len(lacking) == len(PARTS)):
        name = lacking[0].lower()
        raise DataError(f"bcdr: {folder} holds no 'BCDR-{lacking[0]}_dataset/bcdr_{name}_outlines.csv'")
    scan = Scan()
    for part, path in tables.items():
        if path is not None:
            _scan_part(scan, path, part, findings)
    return scan


def _table(folder: Path, part: str) -> Path | None:
    """The part's table of outlines, below the folder or in it."""
    name = f"bcdr_{part.lower()}_outlines.csv"
    paths = [folder / f"BCDR-{part}_dataset" / name, folder / f"BCDR-{part}" / name, folder / name]
    return next((path for path in paths if path.is_file()), None)


def _scan_part(scan: Scan, path: Path, part: str, findings: Sequence[str] | None) -> None:
    """Add the images of one part to the scan."""
    table = read_csv(path, COLUMNS)
    seen = table[[f"mammography_{finding}" for finding in findings or FINDINGS]].isin(["1", "1.0"]).any(axis=1)
    chosen = table if findings is None else table[seen]
    for image, lesions in chosen.groupby("image_filename", sort=False):
        stem = Path(*str(image).replace("\\", "/").split("/")).with_suffix("")
        source = f"bcdr/{part}/{stem.name}"
        if (file := first_file(path.parent / stem, (".tif", ".tiff", ".png"))) is None:
            scan.missing.append(Skipped(source, MISSING))
            continue
        with scan.collecting(source, path.parent):
            scan.rows.append(_row(source, part, lesions.to_dict("records"), file))


def _row(source: str, part: str, lesions: Sequence[dict[Any, Any]], file: Path) -> dict[str, Any]:
    """Table row of one image with its lesions."""
    first = lesions[0]
    view = first["image_view"].removesuffix(".0")
    if view not in VIEWS:
        raise DataError(f"image_view {first['image_view']!r} is none of {', '.join(VIEWS)}")
    words = [lesion["classification"] for lesion in lesions]
    if unknown := [word for word in words if word.lower() not in CLASSIFICATIONS]:
        raise DataError(f"classification {unknown[0]!r} is none of Benign, Malign")
    kinds = tuple(CLASSIFICATIONS[word.lower()] for word in words)
    laterality, name = VIEWS[view]
    return {
        "source": source,
        **label_of(max(kinds)),  # "malignant" comes after "benign"
        "patient_id": hashed_id(f"bcdr/{first['patient_id']}"),
        "laterality": laterality,
        "view": name,
        "part": part,
        "density": first["density"],
        "findings": tuple(_findings(lesion) for lesion in lesions),
        "outlines": tuple(_outline(lesion) for lesion in lesions),
        "lesions": kinds,
        "pixel_mm": PIXEL_MM[part[0]],
        "files": (file,),
    }


def _findings(lesion: dict[Any, Any]) -> str:
    """What was seen in a lesion, e.g. ``nodule+microcalcification``; "" for none of `FINDINGS`."""
    return "+".join(name for name in FINDINGS if lesion[f"mammography_{name}"] in ("1", "1.0"))


def _outline(lesion: dict[Any, Any]) -> Outline:
    """Points (row, col) of a lesion's outline."""
    try:
        cols, rows = ([float(word) for word in lesion[f"lw_{axis}_points"].split()] for axis in "xy")
    except ValueError as error:
        raise DataError(f"outline of lesion {lesion['lesion_id']} is not understood: {error}") from error
    if len(rows) != len(cols) or len(rows) < 3 or not np.isfinite([*rows, *cols]).all():
        sizes = f"{len(cols)} x and {len(rows)} y"
        raise DataError(f"outline of lesion {lesion['lesion_id']} has {sizes}, expected as many, at least 3")
    return tuple(zip(rows, cols, strict=True))


def _read(row: pd.Series) -> Case:
    """Case of one image; every outline, filled, is part of the mask and has a box."""
    pixels = read_image(row["files"][0])  # (H, W)
    mask, boxes = np.zeros(pixels.shape, dtype=bool), []
    for outline in row["outlines"]:
        points = np.array(outline)  # (n, 2), row and col
        boxes.append(inside((*points.min(axis=0), *(points.max(axis=0) + 1)), pixels.shape))
        mask[polygon(points[:, 0], points[:, 1], pixels.shape)] = True
        points = points.round().astype(int)
        points = points[((points >= 0) & (points < pixels.shape)).all(axis=1)]
        mask[points[:, 0], points[:, 1]] = True  # the outline's own points
    return make_case(row, pixels, boxes, mask)
