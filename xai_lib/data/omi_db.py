"""OMI-DB (OPTIMAM): mammograms of the British screening programme with screening history, biopsies and marked lesions.

M. D. Halling-Brown et al., "OPTIMAM Mammography Image Database: a large-scale resource of mammography images and
clinical data", Radiology: Artificial Intelligence 3 (2021) e200103. Access by application; no redistribution.

Usage::

    cases = load_omi_db("omi-db")              # the folder with data and images

Layout, second-hand: taken from the documentation and tests of the database's own package ``omidb`` and from public
programs, as we have no copy::

    data/demd128247/imagedb_demd128247.json    images and marks: STUDIES -> study -> series -> image -> mark
    data/demd128247/nbss_demd128247.json       episodes with SURGERY and BIOPSYWIDE, left_opinion and right_opinion
    images/demd128247/<study>/<image>.dcm

What to know:

- A breast is malignant, or benign, in an episode if surgery or wide-bore biopsy found it so (the rule of ``omidb``),
  else normal. Left out and counted: interval cancers, and images of a breast that is malignant in another episode.
- The database has most images twice, raw and processed. Processed ones ("FOR PRESENTATION") are loaded.
- Side, view, size and presentation are read from each DICOM header while loading.
- A mark is a box X1, Y1, X2, Y2. ``omidb`` calls the corners lower-left and upper-right; programs that cut it out of
  the image use y downwards from the top, as we do. We take Y1 and Y2 by size and the box as half-open.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from xai_lib.data.case import CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.mammograms import (
    CLASSES,
    MISSING,
    OTHER_VIEW,
    Scan,
    inside,
    label_of,
    read_case,
    read_text,
    to_dataset,
    to_report,
)

EVENTS = ("SURGERY", "BIOPSYWIDE")
SIDES = {"L": "left_opinion", "R": "right_opinion"}
PROCESSED = "FOR PRESENTATION"
TAGS = ("ImageLaterality", "Laterality", "ViewPosition", "PresentationIntentType", "Rows", "Columns")


def load_omi_db(
    root: Path | str,
    strict: bool = False,
    verify: bool = False,
    classes: Sequence[str] = tuple(CLASSES),
    views: Sequence[str] = ("CC", "MLO"),
) -> CaseDataset:
    """Load OMI-DB. The table has the columns rows and columns beside the usual ones.

    Args:
        root: the folder with ``data`` and ``images``.
        strict: raise for the first missing image or faulty file instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "normal", "benign" (both label 0) and "malignant" (1).
        views: images of other views are left out and counted.

    Raises:
        DataError: the folder or one of its two parts is missing, no case can be used; with `strict`, any fault.
        ValueError: a class is unknown.
    """
    return to_dataset("omi_db", root, _scan(existing(root, "omi_db"), views), read_case, classes, strict, verify)


def check_omi_db(root: Path | str, verify: bool = False) -> Report:
    """Count what an OMI-DB folder holds: images per class, located lesions, missing and faulty ones.

    Raises:
        DataError: the folder or one of its two parts is missing.
    """
    return to_report("omi_db", root, _scan(existing(root, "omi_db"), ("CC", "MLO")), read_case, verify)


def _scan(folder: Path, views: Sequence[str]) -> Scan:
    """One row per processed image of every client."""
    data, images = (_part(folder, name) for name in ("data", "images"))
    scan = Scan()
    for client in sorted(path for path in data.iterdir() if path.is_dir()):
        with scan.collecting(f"omi_db/{hashed_id(client.name)}", folder):
            episodes = _json(client, "nbss")
            for image in _images(_json(client, "imagedb")):
                _add(scan, image, episodes, images / client.name, client.name, views)
    return scan


def _part(folder: Path, name: str) -> Path:
    """The sub-folder of this name, in small or capital letters."""
    for path in (folder / name, folder / name.upper()):
        if path.is_dir():
            return path
    raise DataError(f"omi_db: {folder} holds no folder '{name}'; expected 'data' and 'images' side by side")


def _json(client: Path, kind: str) -> dict[str, Any]:
    """One of a client's two files."""
    paths = [client / f"{prefix}_{client.name}.json" for prefix in (kind, kind.upper())]
    path = next((path for path in paths if path.is_file()), paths[0])
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        if isinstance(error, DataError):
            raise DataError(f"{kind} file of the client: {str(error).rpartition(': ')[2]}") from error
        raise DataError(f"{kind} file of the client: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{kind} file of the client: expected a JSON object, found {type(content).__name__}")
    return content


def _images(content: dict[str, Any]) -> Iterator[tuple[str, str, str, list[dict[str, Any]]]]:
    """Episode, study, image and marks of every image of a client."""
    studies = content.get("STUDIES")
    for study, series in (studies if isinstance(studies, dict) else {}).items():
        for images in series.values():
            for image, marks in (images if isinstance(images, dict) else {}).items():
                found = [mark for mark in marks.values() if isinstance(mark, dict)] if isinstance(marks, dict) else []
                yield str(series.get("EpisodeID", "")), study, image, found


def _add(
    scan: Scan,
    image: tuple[str, str, str, list[dict[str, Any]]],
    episodes: dict[str, Any],
    folder: Path,
    client: str,
    views: Sequence[str],
) -> None:
    """Add one image to the scan, as a row or as what is wrong with it."""
    episode, study, name, marks = image
    source = f"omi_db/{name}"
    path = folder / study / f"{name}.dcm"
    if not path.is_file():
        scan.missing.append(Skipped(source, MISSING))
        return
    with scan.collecting(source, folder):
        header = _header(path)
        side = str(header.get("ImageLaterality") or header.get("Laterality") or "")
        view = str(header.get("ViewPosition") or "")
        if side not in SIDES or not view:
            raise DataError(f"side or view is missing in the header: laterality {side!r}, view {view!r}")
        kind = _kind(episodes, episode, side)
        if header.get("PresentationIntentType", PROCESSED) != PROCESSED:
            scan.left_out.append(Skipped(source, "raw image"))
        elif view not in views:
            scan.left_out.append(Skipped(source, OTHER_VIEW))
        elif kind not in CLASSES:
            scan.left_out.append(Skipped(source, kind))
        else:
            shape = (int(header.Rows), int(header.Columns))
            scan.rows.append(
                {
                    "source": source,
                    **label_of(kind),
                    "patient_id": hashed_id(f"omi_db/{client}"),
                    "laterality": side,
                    "view": view,
                    "rows": shape[0],
                    "columns": shape[1],
                    "boxes": tuple(inside(_corners(mark), shape) for mark in marks),
                    "lesions": tuple(kind for _ in marks),
                    "pixel_mm": None,  # in the DICOM file
                    "files": (path,),
                }
            )


def _header(path: Path) -> pydicom.Dataset:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(TAGS))
    except (InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{path.name}: not a readable DICOM file") from error
    if header.get("Rows") is None or header.get("Columns") is None:
        raise DataError(f"{path.name}: has no image: the header lacks Rows or Columns")
    return header


def _kind(episodes: dict[str, Any], episode: str, side: str) -> str:
    """Class of a breast in an episode, or why it has none."""
    if not isinstance(own := episodes.get(episode), dict):
        return "episode is not in the screening record"
    kind = str(own.get("EpisodeType"))
    if kind == "CI" or kind.lower().startswith("interval"):
        return "interval cancer"
    found = _opinions(own, side)
    if "Malignant" in found:
        return "malignant"
    if any("Malignant" in _opinions(other, side) for other in episodes.values() if isinstance(other, dict)):
        return "breast is malignant in another episode"
    return "benign" if "Benign" in found else "normal"


def _opinions(episode: dict[str, Any], side: str) -> set[str]:
    """What surgery and wide-bore biopsy say about a breast."""
    events = [event for name in EVENTS if isinstance(event := episode.get(name), dict)]
    return {str(event.get(SIDES[side])) for event in events}


def _corners(mark: dict[str, Any]) -> tuple[float, float, float, float]:
    try:
        x, y = sorted(float(mark[name]) for name in ("X1", "X2")), sorted(float(mark[name]) for name in ("Y1", "Y2"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("not a box: a mark has no numbers X1, Y1, X2 and Y2") from error
    return y[0], x[0], y[1], x[1]
