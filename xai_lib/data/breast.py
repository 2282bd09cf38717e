"""BrEaST-Lesions-USG: breast ultrasound with lesion masks, pixel size, BI-RADS descriptors and verified diagnosis.

A. Pawlowska et al., "Curated benchmark dataset for ultrasound based breast lesion analysis", Scientific Data 11 (2024)
148; data: The Cancer Imaging Archive, doi:10.7937/9WKK-Q141, CC BY 4.0. One image per patient.

Usage::

    cases = load_breast("BrEaST")       # the folder that holds the XLSX and the folder of images
    cases[0].pixel_mm                   # the table gives centimetres per pixel, a case has millimetres
"""

import math
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd

from xai_lib.data.case import CaseDataset, DataError, Report, Skipped, existing, hashed_id, refuse
from xai_lib.data.images import read_case, read_image_and_masks

CLASSES = {"benign": 0, "malignant": 1}
COLUMNS = ("CaseID", "Image_filename", "Mask_tumor_filename", "Pixel_size", "Classification")
IMAGES = "BrEaST-Lesions_USG-images_and_masks"
TABLE = "BrEaST-Lesions-USG-clinical-data*.xlsx"
NORMAL = "normal: no lesion"
MISSING = "image file is missing"


@dataclass(frozen=True)
class _Scan:
    """Sound rows, faulty ones, rows whose image is not there, and normal ones."""

    rows: list[dict[str, Any]]
    faults: list[Skipped]
    missing: list[Skipped]
    normal: list[Skipped]


def load_breast(root: Path | str, strict: bool = False) -> CaseDataset:
    """Load BrEaST-Lesions-USG from its official layout: an XLSX and a folder of images side by side.

    The data set's table has the columns birads and diagnosis beside the usual ones; `pixel_mm` is in mm per pixel.

    Args:
        root: the folder that holds both (the images may also lie directly in it).
        strict: raise for the first missing or faulty file or pixel size instead of skipping and counting it. Normal
            cases have no lesion and are skipped in any case.

    Raises:
        DataError: the folder, the XLSX or one of its columns is missing, no case can be used; with `strict`, any fault.
    """
    scan = _scan(existing(root, "breast"))
    refuse("breast", [*scan.faults, *scan.missing] if strict else [])
    skipped = [*scan.faults, *scan.missing, *scan.normal]
    if not scan.rows:
        first = skipped[0] if skipped else Skipped("table", "it is empty")
        raise DataError(f"breast: no case of {root} can be used; the first reason: {first.source}: {first.why}")
    return CaseDataset("breast", pd.DataFrame(scan.rows), read_case, skipped)


def check_breast(root: Path | str) -> Report:
    """Count what a BrEaST folder holds: rows of the table, usable cases per class, missing and faulty ones.

    Raises:
        DataError: the folder, the XLSX or one of its columns is missing.
    """
    scan = _scan(existing(root, "breast"))
    sizes = [row["pixel_mm"] for row in scan.rows]
    found = {"rows of the table": len(scan.rows) + len(scan.faults) + len(scan.missing) + len(scan.normal)}
    found |= {f"{name} images": sum(row["label"] == label for row in scan.rows) for name, label in CLASSES.items()}
    masks = sum(len(row["files"]) - 1 for row in scan.rows)
    found |= {"tumour masks": masks, "normal images": len(scan.normal)}
    notes = [f"pixel size {min(sizes):.3f} to {max(sizes):.3f} mm"] if sizes else []
    notes += ["normal images show no lesion and are not loaded"]
    return Report("breast", found, [item.source for item in scan.missing], scan.faults, notes)


def _scan(folder: Path) -> _Scan:
    """Read the table and try every row."""
    scan = _Scan([], [], [], [])
    images = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    for _, entry in _table(folder).iterrows():
        name = str(entry["Image_filename"])
        source = f"breast/{Path(name).stem}"
        label = CLASSES.get(str(entry["Classification"]).strip().lower())
        if not (images / name).is_file():
            scan.missing.append(Skipped(source, MISSING))
        elif str(entry["Classification"]).strip().lower() == "normal":
            scan.normal.append(Skipped(source, NORMAL))
        elif label is None:
            scan.faults.append(Skipped(source, f"Classification: {entry['Classification']!r} is none of {[*CLASSES]}"))
        else:
            try:
                scan.rows.append(_row(entry, images, source, label))
            except DataError as error:
                scan.faults.append(Skipped(source, str(error).replace(f"{images}{os.sep}", "")))
    return scan


def _table(folder: Path) -> pd.DataFrame:
    """The first sheet of the XLSX."""
    paths = sorted(path for path in folder.glob(TABLE) if not path.name.startswith("~$"))
    if not paths:
        raise DataError(f"breast: {folder} holds no '{TABLE}'; expected it beside the folder '{IMAGES}'")
    try:
        table = pd.read_excel(paths[-1], sheet_name=0, dtype={"Pixel_size": object})  # a text stays one
    except Exception as error:  # openpyxl and zipfile raise many kinds for a damaged file
        raise DataError(f"{paths[-1]}: not a readable XLSX file: {error}") from error
    lacking = [column for column in COLUMNS if column not in table]
    if lacking:
        raise DataError(f"{paths[-1]}: the first sheet lacks the columns {', '.join(lacking)}")
    return table


def _row(entry: pd.Series, images: Path, source: str, label: int) -> dict[str, Any]:
    """Table row of one case; its files are decoded once, so that a fault is known now."""
    pixel_mm = _pixel_mm(entry["Pixel_size"])
    if pd.isna(entry["Mask_tumor_filename"]):
        raise DataError("image without mask: the table names none in Mask_tumor_filename")
    names = [entry["Image_filename"], *str(entry["Mask_tumor_filename"]).split("&")]
    files = tuple(images / name.strip() for name in names)
    read_image_and_masks(files[0], files[1:])
    return {
        "source": source,
        "label": label,
        "patient_id": hashed_id(f"breast/{entry['CaseID']}"),
        "view": "unknown",
        "pixel_mm": pixel_mm,
        "birads": str(entry.get("BIRADS", "")),
        "diagnosis": str(entry.get("Diagnosis", "")),
        "files": files,
    }


def _pixel_mm(value: object) -> float:
    """Millimetres per pixel of a `Pixel_size` in centimetres per pixel."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise DataError(f"pixel size is not a number above 0: {value!r}; expected Pixel_size in cm per pixel")
    return float(value) * 10
