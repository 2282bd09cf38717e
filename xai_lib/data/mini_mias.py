"""mini-MIAS: 322 film mammograms of 161 patients, both breasts, with a circle around every abnormality.

J. Suckling et al., "The Mammographic Image Analysis Society Digital Mammogram Database", Excerpta Medica, International
Congress Series 1069 (1994) 375-378. For research only, see its ``Licence.txt``.

Usage::

    cases = load_mini_mias("all-mias")                        # the folder with Info.txt and mdb001.pgm ...
    cases = load_mini_mias("all-mias", classes=["benign", "malignant"])

What ``Info.txt`` says, and what the loader does:

- The origin of the circles is the bottom-left corner: row = 1024 - y. A circle becomes a disc of the mask and a box.
- An image may have several rows. It is malignant if one of its abnormalities is; ``mdb144`` has one of each kind.
- Four rows have no circle (``mdb059``; in three "*NOTE 3*" calcifications are spread over the image): such an image has
  a label and no box; the column `located` is False.
- Files 2k - 1 (right) and 2k (left) are the breasts of one patient. All films are mediolateral oblique (the paper; the
  table does not say so). A pixel is 200 micrometres wide; all images are 1024 x 1024.
- Mirrors store some files as PNG: ``.pgm`` is tried first, then ``.png``.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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

TABLE = "Info.txt"
SIDE = 1024  # rows and columns of every image
PIXEL_MM = 0.2
ABNORMALITIES = ("CALC", "CIRC", "SPIC", "MISC", "ARCH", "ASYM", "NORM")
SEVERITY = {"B": "benign", "M": "malignant"}
_ROW = re.compile(r"mdb(?P<number>\d{3})\s+(?P<tissue>[FGD])\s+(?P<kind>[A-Z]{4})(\s+(?P<severity>[BM]))?(?P<rest>.*)")


def load_mini_mias(
    root: Path | str, strict: bool = False, verify: bool = False, classes: Sequence[str] = tuple(CLASSES)
) -> CaseDataset:
    """Load mini-MIAS. The table has also the columns tissue (F, G, D), abnormality ("CIRC", ...) and located.

    Args:
        root: the folder ``all-mias`` with ``Info.txt`` and the images.
        strict: raise for the first missing image or faulty row instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" and "malignant" to load; normal and benign have label 0, malignant 1.

    Raises:
        DataError: the folder or ``Info.txt`` is missing, no case can be used; with `strict`, any fault.
        ValueError: a class is unknown.
    """
    scan = _scan(existing(root, "mini_mias"))
    return to_dataset("mini_mias", root, scan, _read, classes, strict, verify)


def check_mini_mias(root: Path | str, verify: bool = True) -> Report:
    """Count what a mini-MIAS folder holds: images per class, located lesions, missing and faulty images.

    Raises:
        DataError: the folder or ``Info.txt`` is missing.
    """
    scan = _scan(existing(root, "mini_mias"))
    bare = [row["source"] for row in scan.rows if not row["located"]]
    return to_report("mini_mias", root, scan, _read, verify, [f"{len(bare)} images have an abnormality without circle"])


def _scan(folder: Path) -> Scan:
    """One row per image of the table."""
    scan = Scan()
    images: dict[int, list[re.Match[str]]] = {}
    for line in read_text(folder / TABLE).splitlines():
        if found := _ROW.match(line.strip()):
            images.setdefault(int(found["number"]), []).append(found)
        elif line.startswith("mdb"):
            scan.faults.append(Skipped(f"mini_mias/{line.split()[0]}", f"row not understood: {line.strip()!r}"))
    if not images:
        raise DataError(f"{folder / TABLE}: holds no row such as 'mdb001 G CIRC B 535 425 197'")
    for number, lines in images.items():
        source = f"mini_mias/mdb{number:03d}"
        if (path := first_file(folder / f"mdb{number:03d}", (".pgm", ".png"))) is None:
            scan.missing.append(Skipped(source, MISSING))
            continue
        with scan.collecting(source):
            scan.rows.append(_row(source, number, lines, path))
    return scan


def _row(source: str, number: int, lines: Sequence[re.Match[str]], path: Path) -> dict[str, Any]:
    """Table row of one image with all its abnormalities."""
    kinds = [line["kind"] for line in lines]
    for line in lines:
        if line["kind"] not in ABNORMALITIES or (line["kind"] == "NORM") != (line["severity"] is None):
            raise DataError(f"row not understood: {line.group().strip()!r}")
    severities = {SEVERITY[line["severity"]] for line in lines if line["severity"]}
    lesions = [line for line in lines if line["severity"]]
    circles = {line: circle for line in lesions if (circle := _circle(line["rest"])) is not None}
    return {
        "source": source,
        **label_of(max(severities, default="normal")),  # "malignant" comes after "benign"
        "patient_id": hashed_id(f"mini_mias/{(number + 1) // 2}"),
        "laterality": "R" if number % 2 else "L",
        "view": "MLO",
        "tissue": lines[0]["tissue"],
        "abnormality": "+".join(dict.fromkeys(kinds)),
        "located": len(circles) == len(lesions),
        "circles": tuple(circles.values()),
        "boxes": tuple(_box(circle) for circle in circles.values()),
        "lesions": tuple(SEVERITY[line["severity"]] for line in circles),
        "pixel_mm": PIXEL_MM,
        "files": (path,),
    }


def _circle(rest: str) -> tuple[int, int, int] | None:
    """Row, column and radius of the three numbers x, y, radius at the end of a line; None if there are none."""
    if not rest.strip() or "NOTE" in rest:
        return None
    try:
        x, y, radius = (int(word) for word in rest.split())
    except ValueError as error:
        raise DataError(f"circle not understood: {rest.strip()!r}, expected x, y and radius") from error
    if radius <= 0:
        raise DataError(f"circle not understood: radius {radius} is not above 0")
    return SIDE - y, x, radius


def _box(circle: tuple[int, int, int]) -> tuple[int, int, int, int]:
    row, col, radius = circle
    return inside((row - radius, col - radius, row + radius + 1, col + radius + 1), (SIDE, SIDE))


def _read(row: pd.Series) -> Case:
    """Case of one image; every circle is a disc of the mask."""
    pixels = read_image(row["files"][0])  # (1024, 1024)
    if pixels.shape != (SIDE, SIDE):
        raise DataError(f"{row['files'][0]}: image is {pixels.shape[0]} x {pixels.shape[1]}, expected {SIDE} x {SIDE}")
    rows, cols = np.ogrid[:SIDE, :SIDE]
    discs = [(rows - y) ** 2 + (cols - x) ** 2 <= radius**2 for y, x, radius in row["circles"]]
    return make_case(row, pixels, row["boxes"], np.logical_or.reduce(discs) if discs else None)
