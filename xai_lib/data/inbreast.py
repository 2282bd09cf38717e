"""INbreast: 410 full-field digital mammograms of 115 women with contours of all findings.

I. C. Moreira et al., "INbreast: toward a full-field digital mammographic database", Academic Radiology 19 (2012)
236-248. The images may not be passed on.

Usage::

    cases = load_inbreast("INbreast Release 1.0")       # the folder with AllDICOMs, AllXML and INbreast.csv
    cases = load_inbreast("INbreast Release 1.0", findings=["mass"])

Layout: ``INbreast.csv`` (separator ";"; ``INbreast.xls`` holds the same and needs the package xlrd),
``AllDICOMs/20586908_6c613a14b80a8591_MG_R_CC_ANON.dcm`` (the file's number, the patient's code, side and view) and
``AllXML/20586908.xml`` for images with findings: an OsiriX property list, in which every region has a name and points
"(x, y)" in pixels. The layout is second-hand, taken from public programs that read it: we have no copy. What to know:

- There is no verified diagnosis for all images: the label is the BI-RADS category. 1 is normal, 2 and 3 are benign, 4
  to 6 malignant; `birads` has the category.
- Single calcifications are outlined one by one, thousands of them; by default they are no lesions here. Regions of
  fewer than three points never are.
"""

import plistlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

import numpy as np
import pandas as pd
from skimage.draw import polygon

from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.mammograms import (
    CLASSES,
    MISSING,
    Scan,
    inside,
    label_of,
    make_case,
    read_csv,
    read_pixels,
    tidy,
    to_dataset,
    to_report,
)

COLUMNS = ("Laterality", "View", "File Name", "Bi-Rads")
FINDINGS = ("mass", "cluster", "calcification", "distortion", "asymmetry", "spiculated")
LESIONS = ("mass", "cluster", "distortion", "asymmetry", "spiculated")
BIRADS = {"1": "normal", "2": "benign", "3": "benign", "4": "malignant", "5": "malignant", "6": "malignant"}
_STARTS = {"mass": "mass", "clu": "cluster", "calc": "calcification", "dist": "distortion", "as": "asymmetry"}
_STARTS |= {"spic": "spiculated"}  # names are spelt in several ways: "Assymetry", "Spiculated Region"


def load_inbreast(
    root: Path | str,
    strict: bool = False,
    verify: bool = False,
    classes: Sequence[str] = tuple(CLASSES),
    findings: Sequence[str] = LESIONS,
) -> CaseDataset:
    """Load INbreast. The table has the columns birads and density beside the usual ones.

    Args:
        root: the folder with ``AllDICOMs``, ``AllXML`` and the table.
        strict: raise for the first missing image or faulty row instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" (both label 0) and "malignant" (1), by BI-RADS category.
        findings: regions that count as lesions, some of `FINDINGS`; others are in no box and no mask.

    Raises:
        DataError: the folder, the table or a column is missing, no case can be used; with `strict`, any fault.
        ValueError: a class or a finding is unknown.
    """
    scan = _scan(existing(root, "inbreast"), findings)
    return to_dataset("inbreast", root, scan, _read, classes, strict, verify)


def check_inbreast(root: Path | str, verify: bool = False) -> Report:
    """Count what an INbreast folder holds: images per class, located lesions, missing and faulty ones.

    Raises:
        DataError: the folder, the table or a column is missing.
    """
    return to_report("inbreast", root, _scan(existing(root, "inbreast"), LESIONS), _read, verify)


def _scan(folder: Path, findings: Sequence[str]) -> Scan:
    """One row per row of the table."""
    if isinstance(findings, str) or set(findings) - set(FINDINGS):
        raise ValueError(f"findings: {findings!r}, expected some of {', '.join(FINDINGS)}")
    scan = Scan()
    images = {path.name.split("_")[0]: path for path in sorted(folder.glob("AllDICOMs/*.dcm"))}
    for _, entry in _table(folder).iterrows():
        number = entry["File Name"].removesuffix(".0")  # a spreadsheet's number
        if not number.isdigit():
            continue  # the sheet ends with empty rows and remarks
        source = f"inbreast/{number}"
        if number not in images:
            scan.missing.append(Skipped(source, MISSING))
            continue
        with scan.collecting(source, folder):
            scan.rows.append(_row(source, entry, images[number], folder / "AllXML" / f"{number}.xml", findings))
    return scan


def _table(folder: Path) -> pd.DataFrame:
    """The table, from the CSV or else the XLS file."""
    path = folder / "INbreast.csv"
    if path.is_file():
        return read_csv(path, COLUMNS, separator=";")
    paths = sorted(folder.glob("INbreast.xls*"))
    if not paths:
        raise DataError(f"{path}: file is missing")
    try:
        table = pd.read_excel(paths[0], dtype=str)
    except Exception as error:  # xlrd and openpyxl raise many kinds; ImportError where xlrd is not installed
        raise DataError(f"{paths[0]}: cannot be read: {error}; save it as INbreast.csv with separator ';'") from error
    return tidy(table, COLUMNS, paths[0])


def _row(source: str, entry: pd.Series, path: Path, contours: Path, findings: Sequence[str]) -> dict[str, Any]:
    """Table row of one image."""
    words = path.name.split("_")
    birads = entry["Bi-Rads"].lower()
    if birads[:1] not in BIRADS:
        raise DataError(f"Bi-Rads {entry['Bi-Rads']!r} is none of 1 to 6")
    for column, known in (("Laterality", ("L", "R")), ("View", ("CC", "MLO"))):
        if entry[column] not in known:
            raise DataError(f"{column} {entry[column]!r} is none of {', '.join(known)}")
    regions = [region for region in _regions(contours) if region[0] in findings] if contours.is_file() else []
    return {
        "source": source,
        **label_of(BIRADS[birads[0]]),
        "patient_id": hashed_id(f"inbreast/{words[1] if len(words) > 2 else words[0]}"),
        "laterality": entry["Laterality"],
        "view": entry["View"],
        "birads": birads,
        "density": entry.get("ACR", ""),
        "regions": tuple(points for _, points in regions),
        "lesions": tuple(name for name, _ in regions),
        "pixel_mm": None,  # in the DICOM file
        "files": (path,),
    }


def _regions(path: Path) -> list[tuple[str, tuple[tuple[float, float], ...]]]:
    """Name and points (row, col) of the regions of three points or more of a property list."""
    try:
        with path.open("rb") as file:
            content = plistlib.load(file, fmt=plistlib.FMT_XML)
        regions = [(str(region["Name"]), region["Point_px"]) for region in content["Images"][0]["ROIs"]]
    except (plistlib.InvalidFileException, ExpatError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{path}: contours not understood: expected Images, ROIs, Name and Point_px: {error}"
        ) from error
    return [(_finding(name), _points(points, path)) for name, points in regions if len(points) > 2]


def _finding(name: str) -> str:
    """One of `FINDINGS`, or the name itself."""
    plain = name.strip().lower()
    return next((finding for start, finding in _STARTS.items() if plain.startswith(start)), plain)


def _points(texts: Sequence[str], path: Path) -> tuple[tuple[float, float], ...]:
    """Points (row, col) of texts "(x, y)"."""
    try:
        pairs = [[float(number) for number in text.strip().strip("()").split(",")] for text in texts]
        return tuple((y, x) for x, y in pairs)
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: contours not understood: a point is not '(x, y)': {error}") from error


def _read(row: pd.Series) -> Case:
    """Case of one image; every region is a filled polygon of the mask and a box."""
    pixels, pixel_mm = read_pixels(row["files"][0])  # (H, W)
    mask = np.zeros(pixels.shape, dtype=bool)
    boxes = []
    for region in row["regions"]:
        points = np.array(region)  # (n, 2), row and col
        low, high = points.min(axis=0), points.max(axis=0)
        boxes.append(inside((*np.floor(low), *np.floor(high) + 1), pixels.shape))
        mask[polygon(points[:, 0], points[:, 1], pixels.shape)] = True
    return make_case(row, pixels, boxes, mask if boxes else None, pixel_mm)
