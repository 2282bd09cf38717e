"""VinDr-Mammo: 20,000 full-field digital mammograms of 5,000 exams with BI-RADS categories and boxes of findings.

H. T. Nguyen et al., "VinDr-Mammo: a large-scale benchmark dataset for computer-aided diagnosis in full-field digital
mammography", Scientific Data 10 (2023) 277; data: PhysioNet, doi:10.13026/br2v-7517 (restricted access).

Usage::

    cases = load_vindr("vindr-mammo/1.0.0")                              # the folder with the two tables and images
    cases = load_vindr("vindr-mammo/1.0.0", findings=["Mass"], part="test")

Layout (PhysioNet): ``breast-level_annotations.csv``, ``finding_annotations.csv`` and
``images/<study_id>/<image_id>.dicom``; images converted to PNG under the same name are read too. What to know:

- There is no biopsy: the label is the BI-RADS category of the breast. 1 is normal, 2 and 3 are benign, 4 and 5
  malignant, which here means suspicious; `birads` has the number.
- Boxes are drawn for findings of category 3 to 5. A box that crosses the edge is clipped; an image with a box wholly
  outside is skipped and counted.
- An exam stands for a patient: the tables do not tell patients.
"""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xai_lib.data.case import CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.mammograms import (
    CLASSES,
    MISSING,
    Scan,
    first_file,
    inside,
    label_of,
    read_case,
    read_csv,
    to_dataset,
    to_report,
)

BREASTS = "breast-level_annotations.csv"
FINDINGS = "finding_annotations.csv"
BREAST_COLUMNS = (
    "study_id",
    "image_id",
    "laterality",
    "view_position",
    "height",
    "width",
    "breast_birads",
    "breast_density",
    "split",
)
FINDING_COLUMNS = ("image_id", "finding_categories", "finding_birads", "xmin", "ymin", "xmax", "ymax")
NONE = "No Finding"
BIRADS = {1: "normal", 2: "benign", 3: "benign", 4: "malignant", 5: "malignant"}
PARTS = ("training", "test")
SUFFIXES = (".dicom", ".dcm", ".png")


def load_vindr(
    root: Path | str,
    strict: bool = False,
    verify: bool = False,
    classes: Sequence[str] = tuple(CLASSES),
    findings: Sequence[str] | None = None,
    part: str | None = None,
) -> CaseDataset:
    """Load VinDr-Mammo. The table has the columns birads, density, part, rows and columns beside the usual ones.

    Args:
        root: the folder with the two tables and ``images``.
        strict: raise for the first missing image or faulty row instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" (both label 0) and "malignant" (1), by BI-RADS category.
        findings: categories whose boxes are kept, e.g. ["Mass"]; None keeps all. It changes no label.
        part: "training" or "test" of the official split; None takes both.

    Raises:
        DataError: the folder, a table or a column is missing, no case can be used; with `strict`, any fault.
        ValueError: a class or the part is unknown.
    """
    scan = _scan(existing(root, "vindr"), findings, part)
    return to_dataset("vindr", root, scan, read_case, classes, strict, verify)


def check_vindr(root: Path | str, verify: bool = False) -> Report:
    """Count what a VinDr-Mammo folder holds: images per class, located lesions, missing and faulty ones.

    Raises:
        DataError: the folder, a table or a column is missing.
    """
    return to_report("vindr", root, _scan(existing(root, "vindr"), None, None), read_case, verify)


def _scan(folder: Path, findings: Sequence[str] | None, part: str | None) -> Scan:
    """One row per row of the breasts' table."""
    if part not in (None, *PARTS):
        raise ValueError(f"part: {part!r} is unknown, expected None, 'training' or 'test'")
    scan = Scan()
    marked = read_csv(folder / FINDINGS, FINDING_COLUMNS)
    by_image = {str(image): table.to_dict("records") for image, table in marked.groupby("image_id")}
    for entry in read_csv(folder / BREASTS, BREAST_COLUMNS).to_dict("records"):
        source = f"vindr/{entry['image_id']}"
        if part not in (None, entry["split"]):
            continue
        if (path := first_file(folder / "images" / entry["study_id"] / entry["image_id"], SUFFIXES)) is None:
            scan.missing.append(Skipped(source, MISSING))
            continue
        with scan.collecting(source):
            scan.rows.append(_row(source, entry, by_image.get(entry["image_id"], []), findings, path))
    return scan


def _row(
    source: str,
    entry: dict[Any, str],
    marks: Sequence[dict[Any, str]],
    findings: Sequence[str] | None,
    path: Path,
) -> dict[str, Any]:
    """Table row of one image with its findings."""
    if entry["laterality"] not in ("L", "R") or entry["view_position"] not in ("CC", "MLO"):
        raise DataError(f"view {entry['laterality']!r} {entry['view_position']!r} is not L or R with CC or MLO")
    birads = entry["breast_birads"].removeprefix("BI-RADS ")
    if not birads.isdigit() or int(birads) not in BIRADS:
        raise DataError(f"breast_birads {entry['breast_birads']!r} is none of BI-RADS 1 to 5")
    try:
        shape = (int(entry["height"]), int(entry["width"]))
    except ValueError as error:
        raise DataError(f"height {entry['height']!r} or width {entry['width']!r} is not a whole number") from error
    named = [(_categories(mark["finding_categories"]), mark) for mark in marks]
    kept = [
        (names, mark) for names, mark in named if names != [NONE] and (findings is None or set(names) & set(findings))
    ]
    return {
        "source": source,
        **label_of(BIRADS[int(birads)]),
        "patient_id": hashed_id(f"vindr/{entry['study_id']}"),
        "laterality": entry["laterality"],
        "view": entry["view_position"],
        "birads": int(birads),
        "density": entry["breast_density"].removeprefix("DENSITY "),
        "part": entry["split"],
        "rows": shape[0],
        "columns": shape[1],
        "boxes": tuple(inside(_corners(mark), shape) for _, mark in kept),
        "lesions": tuple("+".join(names) for names, _ in kept),
        "pixel_mm": None,  # in the DICOM file
        "files": (path,),
    }


def _categories(text: str) -> list[str]:
    """Names of the cell ``['Mass', 'Skin Retraction']``."""
    try:
        return [str(name) for name in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError) as error:
        raise DataError(f"finding_categories {text!r} is not a list such as ['Mass']") from error


def _corners(mark: dict[Any, str]) -> tuple[float, float, float, float]:
    try:
        return float(mark["ymin"]), float(mark["xmin"]), float(mark["ymax"]), float(mark["xmax"])
    except ValueError as error:
        cells = ", ".join(f"{name} {mark[name]!r}" for name in ("xmin", "ymin", "xmax", "ymax"))
        raise DataError(f"not a box: {cells}") from error
