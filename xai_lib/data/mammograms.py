"""What the loaders of mammogram data sets share: tables in any encoding, pixels of any file, boxes, skipped cases.

Usage::

    table = read_csv(path, columns=("image_id", "laterality"))     # all cells are str, stray line breaks are gone
    pixels, pixel_mm = read_pixels(path)                           # DICOM or PNG, PGM, TIFF
    scan = Scan()
    with scan.collecting("mine/1"):                                # a DataError becomes a fault of that case
        scan.rows.append({...})
    cases = to_dataset("mine", root, scan, read_case, CLASSES, strict=False, verify=False)

A data set has hundreds to tens of thousands of images, of 10 megapixels each. So a loader reads the tables and looks
whether the files exist; an image is decoded when its case is asked for, and a damaged one raises `DataError` then.
``verify=True`` decodes all of them while loading, so that a damaged one is skipped and counted.

Every table has the columns source, label (1 malignant, 0 not), class (normal, benign or malignant), patient_id
(hashed), laterality (L or R), view (CC, MLO), pixel_mm and files. Where lesions are located there are the columns
boxes, and lesions: what each box is ("benign", "malignant", or the name of the finding). An image is malignant if one
of its lesions is. The mask of a case is None where none is drawn, normal images included.
"""

import io
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped, refuse
from xai_lib.data.dicom import SUFFIXES, read_dicom
from xai_lib.data.images import read_image

CLASSES = {"normal": 0, "benign": 0, "malignant": 1}
MISSING = "image file is missing"
OTHER_VIEW = "view not asked for"

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scan:
    """What a folder holds: sound rows, faulty cases, cases whose files are missing, and cases left out on purpose."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    faults: list[Skipped] = field(default_factory=list)
    missing: list[Skipped] = field(default_factory=list)
    left_out: list[Skipped] = field(default_factory=list)

    @contextmanager
    def collecting(self, source: str, folder: Path | str | None = None) -> Iterator[None]:
        """Turn a DataError of the block into a fault of `source`, without `folder` in its message."""
        try:
            yield
        except DataError as error:
            self.faults.append(Skipped(source, str(error).replace(f"{folder}{os.sep}", "")))

    @property
    def skipped(self) -> list[Skipped]:
        """All that is not a row."""
        return [*self.faults, *self.missing, *self.left_out]


def to_dataset(
    name: str,
    root: Path | str,
    scan: Scan,
    read: Callable[[pd.Series], Case],
    classes: Sequence[str],
    strict: bool,
    verify: bool,
) -> CaseDataset:
    """Data set of the rows whose class is asked for.

    Raises:
        DataError: no case is left; with `strict`, a case is faulty or a file is missing.
        ValueError: a class is unknown.
    """
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes or isinstance(classes, str):
        raise ValueError(f"classes: {unknown or classes!r} is unknown, expected some of {', '.join(CLASSES)}")
    if verify:
        scan = _verified(scan, read, root)
    refuse(name, [*scan.faults, *scan.missing] if strict else [])
    rows = [row for row in scan.rows if row["class"] in classes]
    if not rows:
        first = scan.skipped[0] if scan.skipped else Skipped(name, f"no image is of the classes {', '.join(classes)}")
        raise DataError(f"{name}: no case of {root} can be used; the first reason: {first.source}: {first.why}")
    return CaseDataset(name, pd.DataFrame(rows), read, scan.skipped)


def to_report(
    name: str,
    root: Path | str,
    scan: Scan,
    read: Callable[[pd.Series], Case],
    verify: bool,
    notes: Sequence[str] = (),
) -> Report:
    """Report on a folder: images per class, patients, located lesions, what is missing and what is faulty."""
    scan = _verified(scan, read, root) if verify else scan
    found = {f"{kind} images": sum(row["class"] == kind for row in scan.rows) for kind in CLASSES}
    found["patients"] = len({row["patient_id"] for row in scan.rows})
    if any("lesions" in row for row in scan.rows):
        found["located lesions"] = sum(len(row["lesions"]) for row in scan.rows)
    reasons = sorted({item.why for item in scan.left_out})
    more = [f"left out: {sum(item.why == why for item in scan.left_out)} x {why}" for why in reasons]
    more += [] if verify else ["the images were looked for, not decoded; load them with verify=True to decode them all"]
    return Report(name, found, [item.source for item in scan.missing], scan.faults, [*notes, *more])


def _verified(scan: Scan, read: Callable[[pd.Series], Case], root: Path | str) -> Scan:
    """The scan without the rows that cannot be read; these become faults."""
    checked = Scan(faults=list(scan.faults), missing=scan.missing, left_out=scan.left_out)
    for row in scan.rows:
        with checked.collecting(row["source"], Path(root).expanduser()):
            read(pd.Series(row))
            checked.rows.append(row)
    return checked


def label_of(kind: str) -> dict[str, Any]:
    """The columns label and class of a row."""
    return {"label": CLASSES[kind], "class": kind}


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, with or without byte order mark, UTF-16 with one, or else Latin-1.

    Raises:
        DataError: the file is missing, or holds zero bytes as no text does.
    """
    if not path.is_file():
        raise DataError(f"{path}: file is missing")
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    if b"\x00" in content:
        raise DataError(f"{path}: not a text file: it holds zero bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def read_csv(path: Path, columns: Sequence[str], separator: str = ",") -> pd.DataFrame:
    """Table of a CSV file, all cells as str: stray line breaks and spaces at the ends are removed, empty cells are "".

    Column names are compared without regard to case and to space or underscore, and get the spelling of `columns`.

    Raises:
        DataError: the file is missing or no table, or columns are missing; the message names them.
    """
    text = read_text(path)
    try:
        table = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserError) as error:  # EmptyDataError is a ValueError
        raise DataError(f"{path}: not a readable CSV table: {error}") from error
    return tidy(table, columns, path)


def tidy(table: pd.DataFrame, columns: Sequence[str], path: Path) -> pd.DataFrame:
    """A table of str with the columns' names spelt as in `columns`.

    Raises:
        DataError: columns are missing; the message names them.
    """
    spelling = {_plain(name): name for name in columns}
    table = table.rename(columns=lambda name: spelling.get(_plain(name), str(name).strip()))
    lacking = [name for name in columns if name not in table]
    if lacking:
        raise DataError(f"{path}: lacks the columns {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")
    return table.fillna("").astype(str).apply(lambda cells: cells.str.strip())


def _plain(name: object) -> str:
    return re.sub(r"[\s_-]+", " ", str(name)).strip().lower()


def first_file(stem: Path, suffixes: Sequence[str]) -> Path | None:
    """The first of ``stem + suffix`` that exists."""
    paths = [stem.with_name(stem.name + suffix) for suffix in suffixes]
    return next((path for path in paths if path.is_file()), None)


def read_pixels(path: Path) -> tuple[np.ndarray, float | None]:
    """Pixels (H, W), float32, in [0, 1], and their size in mm where the file gives it (DICOM only).

    Raises:
        DataError: the file is missing or damaged.
    """
    if path.suffix.lower() not in SUFFIXES:
        return read_image(path), None
    image = read_dicom(path)
    return image.pixels, image.pixel_mm


def inside(corners: Sequence[float], shape: tuple[int, int]) -> Box:
    """Smallest half-open box of whole pixels around corners (row0, col0, row1, col1), clipped to the image.

    Raises:
        DataError: the corners are no box, or no pixel of it is in the image.
    """
    row0, col0, row1, col1 = (float(value) for value in corners)
    if not all(map(math.isfinite, (row0, col0, row1, col1))) or row1 <= row0 or col1 <= col0:
        raise DataError(f"not a box: rows {row0:g} to {row1:g}, columns {col0:g} to {col1:g}")
    top, left = max(math.floor(row0), 0), max(math.floor(col0), 0)
    bottom, right = min(math.ceil(row1), shape[0]), min(math.ceil(col1), shape[1])
    if bottom <= top or right <= left:
        where = f"rows {row0:g} to {row1:g}, columns {col0:g} to {col1:g}"
        raise DataError(f"box outside the image: {where}; the image is {shape[0]} x {shape[1]} (rows x columns)")
    return top, left, bottom, right


def read_case(row: pd.Series) -> Case:
    """Case of a row whose `files` is one image and whose `boxes`, if any, are in its pixels.

    Raises:
        DataError: the image is damaged, or its size is not the row's `rows` and `columns`.
    """
    pixels, pixel_mm = read_pixels(row["files"][0])
    expected = (row["rows"], row["columns"]) if "rows" in row else pixels.shape
    if pixels.shape != tuple(expected):
        sizes = f"{pixels.shape[0]} x {pixels.shape[1]}, expected {expected[0]} x {expected[1]} (rows x columns)"
        raise DataError(f"{row['files'][0]}: image has another size than the table says: it is {sizes}")
    return make_case(row, pixels, row.get("boxes", ()), None, pixel_mm)


def make_case(
    row: Mapping[str, Any] | pd.Series,
    pixels: np.ndarray,
    boxes: Sequence[Box],
    mask: np.ndarray | None,
    pixel_mm: float | None = None,
) -> Case:
    """Case of a row with what was read; the row's own `pixel_mm` is used where the file gives none."""
    known = row.get("pixel_mm")
    return Case(
        image=torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))[None],
        label=int(row["label"]),
        mask=None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)),
        boxes=torch.tensor([list(box) for box in boxes], dtype=torch.int64).reshape(-1, 4),
        pixel_mm=pixel_mm if pixel_mm is not None else (None if pd.isna(known) else float(known)),
        patient_id=row["patient_id"],
        view=row["view"],
        source=row["source"],
    )
