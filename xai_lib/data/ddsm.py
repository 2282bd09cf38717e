"""DDSM: the Digital Database for Screening Mammography, 2620 film exams with outlined, verified findings.

M. Heath et al., "The Digital Database for Screening Mammography", Proc. 5th International Workshop on Digital
Mammography (2001) 212-218; University of South Florida. CBIS-DDSM is the curated, easier part of it.

Usage::

    cases = load_ddsm("cases")         # any folder above the exams; images converted to PNG or TIFF first

Layout (the database's own "Description of a case"): one folder per exam, ``cancers/cancer_01/case3024``, with
``B-3024-1.ics`` (size, bits and resolution of every view) and, per view, ``B_3024_1.LEFT_CC.LJPEG`` and, if something
was found, ``B_3024_1.LEFT_CC.OVERLAY`` (outlines as chain codes). What to know:

- **LJPEG is a JPEG variant that no maintained library decodes, so we do not.** Convert the images (16-bit, uncropped)
  to ``B_3024_1.LEFT_CC.png``, ``.tif`` or ``B_3024_1.LEFT_CC.LJPEG.png``; an exam with LJPEG only is refused by name.
- Values that fit the bits stated in the ``.ics`` file are scaled by them, so that raw 12-bit values fill [0, 1].
- An image with an overlay is malignant if one of its abnormalities is; a view without overlay is normal, also in an
  exam with cancer. Abnormalities of pathology UNPROVEN have no class: such an image is left out.
- The outline is the BOUNDARY of each abnormality: start column, start row, then steps 0 (up), 1 (up and right), ...
  clockwise, closed by "#". COREs inside it are not used.
- Known from users of the data: some overlays state more outlines than they have, so that number is not relied on.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.draw import polygon

from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.images import read_image
from xai_lib.data.mammograms import (
    CLASSES,
    MISSING,
    Scan,
    first_file,
    inside,
    label_of,
    make_case,
    read_text,
    to_dataset,
    to_report,
)

SUFFIXES = (".png", ".tif", ".tiff", ".LJPEG.png", ".LJPEG.tif")
PATHOLOGIES = {"MALIGNANT": "malignant", "BENIGN": "benign", "BENIGN_WITHOUT_CALLBACK": "benign"}
STEPS = np.array([(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)])  # row and col of codes 0 to 7
_VIEW = re.compile(
    r"(?P<side>LEFT|RIGHT)_(?P<view>CC|MLO)\s+LINES\s+(?P<rows>\d+)\s+PIXELS_PER_LINE\s+(?P<columns>\d+)"
    r"\s+BITS_PER_PIXEL\s+(?P<bits>\d+)\s+RESOLUTION\s+(?P<microns>[\d.]+)"
)
_PATHOLOGY = re.compile(r"^\s*PATHOLOGY\s+(\S+)", re.MULTILINE)
_BOUNDARY = re.compile(r"^\s*BOUNDARY\s*\n([^#]*)#", re.MULTILINE)

Outline = tuple[tuple[int, int], ...]


def load_ddsm(
    root: Path | str, strict: bool = False, verify: bool = False, classes: Sequence[str] = tuple(CLASSES)
) -> CaseDataset:
    """Load DDSM. The table has the columns pathology, bits, rows and columns beside the usual ones.

    Args:
        root: a folder above the exams' folders.
        strict: raise for the first missing image or faulty file instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" (both label 0) and "malignant" (1).

    Raises:
        DataError: the folder is missing or holds no ``.ics`` file, no case can be used; with `strict`, any fault.
        ValueError: a class is unknown.
    """
    return to_dataset("ddsm", root, _scan(existing(root, "ddsm")), _read, classes, strict, verify)


def check_ddsm(root: Path | str, verify: bool = False) -> Report:
    """Count what a DDSM folder holds: images per class, located lesions, missing and faulty ones.

    Raises:
        DataError: the folder is missing or holds no ``.ics`` file.
    """
    return to_report("ddsm", root, _scan(existing(root, "ddsm")), _read, verify)


def _scan(folder: Path) -> Scan:
    """One row per view of every exam."""
    scan = Scan()
    exams = sorted(folder.rglob("*.ics"))
    if not exams:
        raise DataError(f"ddsm: {folder} holds no '*.ics' file; expected folders such as cancers/cancer_01/case3024")
    for ics in exams:
        with scan.collecting(f"ddsm/{ics.stem}", folder):
            views = list(_VIEW.finditer(read_text(ics)))
            if not views:
                raise DataError(f"{ics.name}: no line such as 'LEFT_CC LINES 4696 PIXELS_PER_LINE 3024 ...'")
            for view in views:
                _add(scan, ics, view)
    return scan


def _add(scan: Scan, ics: Path, view: re.Match[str]) -> None:
    """Add one view to the scan, as a row or as what is wrong with it."""
    stem = ics.with_name(f"{ics.stem.replace('-', '_')}.{view['side']}_{view['view']}")
    source = f"ddsm/{stem.name}"
    with scan.collecting(source):
        if (path := first_file(stem, SUFFIXES)) is None:
            if first_file(stem, (".LJPEG",)):
                raise DataError(f"raw LJPEG is not decoded: convert {stem.name}.LJPEG to {stem.name}.png (16-bit)")
            scan.missing.append(Skipped(source, MISSING))
            return
        shape = (int(view["rows"]), int(view["columns"]))
        overlay = first_file(stem, (".OVERLAY",))
        marks = _abnormalities(overlay) if overlay else []
        if any(kind not in PATHOLOGIES for kind, _ in marks):
            scan.left_out.append(Skipped(source, "pathology is unproven"))
            return
        kinds = [PATHOLOGIES[kind] for kind, _ in marks]
        row = {
            "source": source,
            **label_of(max(kinds, default="normal")),  # "malignant" comes after "benign"
            "patient_id": hashed_id(f"ddsm/{ics.stem}"),
            "laterality": view["side"][0],
            "view": view["view"],
            "pathology": "+".join(dict.fromkeys(kind for kind, _ in marks)),
            "bits": int(view["bits"]),
            "rows": shape[0],
            "columns": shape[1],
            "outlines": tuple(outline for _, outline in marks),
            "boxes": tuple(_box(outline, shape) for _, outline in marks),
            "lesions": tuple(kinds),
            "pixel_mm": float(view["microns"]) / 1000 or None,
            "files": (path, overlay) if overlay else (path,),
        }
        scan.rows.append(row)


def _abnormalities(path: Path) -> list[tuple[str, Outline]]:
    """Pathology and boundary, as points (row, col), of every abnormality of an overlay."""
    text = read_text(path).replace("\r", "")
    found = []
    for block in re.split(r"^\s*ABNORMALITY\s+\d+", text, flags=re.MULTILINE)[1:]:
        pathology, boundary = _PATHOLOGY.search(block), _BOUNDARY.search(block)
        if pathology is None or boundary is None:
            raise DataError(f"{path.name}: an abnormality lacks its PATHOLOGY or a BOUNDARY that ends with '#'")
        found.append((pathology[1], _walk(boundary[1], path)))
    if not found:
        raise DataError(f"{path.name}: holds no ABNORMALITY")
    return found


def _walk(codes: str, path: Path) -> Outline:
    """Points (row, col) of a chain code: start column, start row, steps of 0 to 7."""
    words = codes.split()
    if (
        len(words) < 3
        or not all(word.isdigit() for word in words)
        or any(len(word) > 1 or word > "7" for word in words[2:])
    ):
        raise DataError(f"{path.name}: chain code not understood: expected column, row and steps of 0 to 7")
    col, row, *steps = map(int, words)
    points = np.cumsum([(row, col), *STEPS[steps]], axis=0)
    return tuple((int(r), int(c)) for r, c in points)


def _box(outline: Outline, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    rows, cols = zip(*outline, strict=True)
    return inside((min(rows), min(cols), max(rows) + 1, max(cols) + 1), shape)


def _read(row: pd.Series) -> Case:
    """Case of one view; every outline, filled, is part of the mask."""
    path = row["files"][0]
    pixels = read_image(path)  # (H, W)
    shape = (row["rows"], row["columns"])
    if pixels.shape != shape:
        sizes = f"{pixels.shape[0]} x {pixels.shape[1]}, the .ics file says {shape[0]} x {shape[1]}"
        raise DataError(f"{path}: image has another size than its outlines: it is {sizes} (rows x columns)")
    top = 2 ** row["bits"] - 1
    if round(float(pixels.max()) * 65535) <= top:
        pixels = pixels * (65535 / top)
    if not row["outlines"]:
        return make_case(row, pixels, (), None)
    mask = np.zeros(shape, dtype=bool)
    for outline in row["outlines"]:
        points = np.array(outline)  # (n, 2), row and col
        mask[polygon(points[:, 0], points[:, 1], shape)] = True
        points = points[((points >= 0) & (points < shape)).all(axis=1)]
        mask[points[:, 0], points[:, 1]] = True  # the boundary itself
    return make_case(row, pixels, row["boxes"], mask)
