"""RSNA Screening Mammography Breast Cancer Detection (2022): 54,706 screening mammograms of 11,913 women, no boxes.

Radiological Society of North America, Kaggle competition "rsna-breast-cancer-detection" (2022); non-commercial use.

Usage::

    cases = load_rsna("rsna-breast-cancer-detection")       # the folder with train.csv and train_images

Layout (the competition's page): ``train.csv`` with one row per image, and
``train_images/<patient_id>/<image_id>.dcm``; where that is missing, a PNG file of the same name is read. What to know:

- `cancer` is of the breast, as are `biopsy` and `invasive`: it holds for both views. Malignant is cancer; benign is a
  biopsy without cancer; the rest is normal.
- Nothing tells where the cancer is: boxes are empty and masks None.
- Many files are compressed with JPEG 2000 or lossless JPEG and need the codecs of pylibjpeg.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xai_lib.data.case import CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.mammograms import (
    CLASSES,
    MISSING,
    OTHER_VIEW,
    Scan,
    first_file,
    label_of,
    read_case,
    read_csv,
    to_dataset,
    to_report,
)

COLUMNS = ("patient_id", "image_id", "laterality", "view", "cancer", "biopsy")
SUFFIXES = (".dcm", ".png")


def load_rsna(
    root: Path | str,
    strict: bool = False,
    verify: bool = False,
    classes: Sequence[str] = tuple(CLASSES),
    views: Sequence[str] = ("CC", "MLO"),
) -> CaseDataset:
    """Load the training set of RSNA 2022. The table has the columns birads and density beside the usual ones.

    Args:
        root: the folder with ``train.csv`` and ``train_images``.
        strict: raise for the first missing image or faulty row instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" (both label 0) and "malignant" (1).
        views: images of other views (AT, LM, ML, LMO) are left out and counted.

    Raises:
        DataError: the folder, the table or a column is missing, no case can be used; with `strict`, any fault.
        ValueError: a class is unknown.
    """
    return to_dataset("rsna", root, _scan(existing(root, "rsna"), views), read_case, classes, strict, verify)


def check_rsna(root: Path | str, verify: bool = False) -> Report:
    """Count what an RSNA folder holds: images per class, missing and faulty ones.

    Raises:
        DataError: the folder, the table or a column is missing.
    """
    return to_report("rsna", root, _scan(existing(root, "rsna"), ("CC", "MLO")), read_case, verify)


def _scan(folder: Path, views: Sequence[str]) -> Scan:
    """One row per row of the table."""
    scan = Scan()
    for entry in read_csv(folder / "train.csv", COLUMNS).to_dict("records"):
        source = f"rsna/{entry['image_id']}"
        path = first_file(folder / "train_images" / entry["patient_id"] / entry["image_id"], SUFFIXES)
        if entry["view"] not in views:
            scan.left_out.append(Skipped(source, OTHER_VIEW))
        elif path is None:
            scan.missing.append(Skipped(source, MISSING))
        else:
            with scan.collecting(source):
                scan.rows.append(_row(source, entry, path))
    return scan


def _row(source: str, entry: dict[Any, str], path: Path) -> dict[str, Any]:
    """Table row of one image."""
    for column, known in (("laterality", ("L", "R")), ("cancer", ("0", "1")), ("biopsy", ("0", "1"))):
        if entry[column] not in known:
            raise DataError(f"{column} {entry[column]!r} is none of {', '.join(known)}")
    return {
        "source": source,
        **label_of("malignant" if entry["cancer"] == "1" else "benign" if entry["biopsy"] == "1" else "normal"),
        "patient_id": hashed_id(f"rsna/{entry['patient_id']}"),
        "laterality": entry["laterality"],
        "view": entry["view"],
        "birads": entry.get("BIRADS", ""),
        "density": entry.get("density", ""),
        "pixel_mm": None,  # in the DICOM file
        "files": (path,),
    }
