"""CBIS-DDSM: film mammograms with verified pathology and a mask of every mass and calcification cluster.

R. S. Lee et al., "A curated mammography data set for use in computer-aided detection and diagnosis research",
Scientific Data 4 (2017) 170177; data: The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2016.7O02S9CY, CC BY 3.0.

Usage::

    cases = load_cbis_ddsm("CBIS-DDSM")                              # whole mammograms with masks
    cases = load_cbis_ddsm("CBIS-DDSM", crops=True, part="train")    # the cropped lesions, one case each

The folder holds the four tables ``{mass,calc}_case_description_{train,test}_set.csv`` and the folders of the images,
``Mass-Test_P_00016_LEFT_CC`` for the mammogram and ``Mass-Test_P_00016_LEFT_CC_1`` for its first lesion. What to know:

- Below these folders the names depend on how the files were downloaded, and the tables' paths (which carry stray line
  breaks) fit the oldest way only. So we take every ``.dcm`` and, where there is none of that name, ``.png`` below the
  folder.
- A lesion's folder holds its crop and its mask, and the tables often exchange the two. The DICOM series description
  says which is which; without one, the image with two grey levels is the mask.
- An image may have several lesions; it is malignant if one is. BENIGN_WITHOUT_CALLBACK counts as benign (`pathology`
  has the original words).
- 71 films with masses and calcifications are there twice, as ``Mass-...`` and ``Calc-...``; and 31 patients are in the
  official test set of one kind and the training set of the other. Splits of this library are by patient.
- The DICOM files that we have seen give no pixel size.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom

from xai_lib.data.case import Case, CaseDataset, DataError, Report, Skipped, existing, hashed_id
from xai_lib.data.dicom import SUFFIXES
from xai_lib.data.mammograms import (
    MISSING,
    Scan,
    label_of,
    make_case,
    read_csv,
    read_pixels,
    to_dataset,
    to_report,
)

PARTS = ("train", "test")
KINDS = ("mass", "calc")
IMAGE, MASK = "image file path", "ROI mask file path"
COLUMNS = ("patient_id", "left or right breast", "image view", "pathology", IMAGE, MASK)
PATHOLOGIES = {"MALIGNANT": "malignant", "BENIGN": "benign", "BENIGN_WITHOUT_CALLBACK": "benign"}


def load_cbis_ddsm(
    root: Path | str,
    strict: bool = False,
    verify: bool = False,
    classes: Sequence[str] = ("benign", "malignant"),
    kinds: Sequence[str] = KINDS,
    part: str | None = None,
    crops: bool = False,
) -> CaseDataset:
    """Load CBIS-DDSM. The table has the columns kind (mass, calc), part (train, test) and pathology beside the usual.

    Args:
        root: the folder with the tables and the images' folders.
        strict: raise for the first missing image or faulty row instead of skipping and counting it.
        verify: decode every image now, so that a damaged one is skipped and counted.
        classes: which of "benign" (label 0) and "malignant" (1); there are no normal images.
        kinds: which of "mass" and "calc".
        part: "train" or "test" of the official split; None takes both.
        crops: the official crops around the lesions, one case each and without mask, instead of whole mammograms.

    Raises:
        DataError: the folder, a table or a column is missing, no case can be used; with `strict`, any fault.
        ValueError: a class, a kind or the part is unknown.
    """
    scan = _scan(existing(root, "cbis_ddsm"), kinds, part, crops)
    return to_dataset("cbis_ddsm", root, scan, _read_crop if crops else _read, classes, strict, verify)


def check_cbis_ddsm(root: Path | str, verify: bool = False) -> Report:
    """Count what a CBIS-DDSM folder holds: mammograms per class, missing and faulty ones.

    Raises:
        DataError: the folder, a table or a column is missing.
    """
    scan = _scan(existing(root, "cbis_ddsm"), KINDS, None, crops=False)
    return to_report("cbis_ddsm", root, scan, _read, verify)


def _scan(folder: Path, kinds: Sequence[str], part: str | None, crops: bool) -> Scan:
    """One row per mammogram, or per crop."""
    if part not in (None, *PARTS):
        raise ValueError(f"part: {part!r} is unknown, expected None, 'train' or 'test'")
    if not kinds or isinstance(kinds, str) or set(kinds) - set(KINDS):
        raise ValueError(f"kinds: {kinds!r}, expected some of {', '.join(KINDS)}")
    scan = Scan()
    for kind in kinds:
        for name in PARTS if part is None else (part,):
            table = read_csv(folder / f"{kind}_case_description_{name}_set.csv", COLUMNS)
            groups: dict[str, list[dict[Any, Any]]] = {}
            for lesion in table.assign(kind=kind, part=name, lesion=table[MASK].str.split("/").str[0]).to_dict(
                "records"
            ):
                groups.setdefault(lesion["lesion"] if crops else lesion[IMAGE].split("/")[0], []).append(lesion)
            for top, lesions in groups.items():
                _add(scan, folder, top, lesions)
    return scan


def _add(scan: Scan, folder: Path, top: str, lesions: list[dict[Any, Any]]) -> None:
    """Add the row of one mammogram or crop, `top` being its folder, to the scan."""
    source = f"cbis_ddsm/{top}"
    parts = [_files(folder / name) for name in dict.fromkeys([top, *[lesion["lesion"] for lesion in lesions]]) if name]
    if not top or not all(parts):
        scan.missing.append(Skipped(source, MISSING))
        return
    with scan.collecting(source, folder):
        scan.rows.append(_row(source, lesions, parts))


def _files(folder: Path) -> list[Path]:
    """The images below a folder; of two with the same stem, the DICOM file."""
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (*SUFFIXES, ".png"))
    stems = {path.with_suffix("") for path in paths if path.suffix.lower() in SUFFIXES}
    return [path for path in paths if path.suffix.lower() in SUFFIXES or path.with_suffix("") not in stems]


def _row(source: str, lesions: list[dict[Any, Any]], parts: list[list[Path]]) -> dict[str, Any]:
    """Table row of a mammogram with its lesions."""
    first = lesions[0]
    for column, known in (("left or right breast", ("LEFT", "RIGHT")), ("image view", ("CC", "MLO"))):
        if first[column] not in known:
            raise DataError(f"{column} {first[column]!r} is none of {', '.join(known)}")
    words = [lesion["pathology"] for lesion in lesions]
    if unknown := set(words) - set(PATHOLOGIES):
        raise DataError(f"pathology {min(unknown)!r} is none of {', '.join(PATHOLOGIES)}")
    kinds = [PATHOLOGIES[word] for word in words]
    return {
        "source": source,
        **label_of(max(kinds)),  # "malignant" comes after "benign"
        "patient_id": hashed_id(f"cbis_ddsm/{first['patient_id']}"),
        "laterality": first["left or right breast"][0],
        "view": first["image view"],
        "kind": first["kind"],
        "part": first["part"],
        "pathology": "+".join(dict.fromkeys(words)),
        "lesions": tuple(kinds),
        "pixel_mm": None,
        "counts": tuple(len(files) for files in parts),
        "files": tuple(path for files in parts for path in files),
    }


def _read(row: pd.Series) -> Case:
    """Case of a mammogram; its mask is the union of its lesions' masks, with a box for each."""
    bounds = np.cumsum(row["counts"])
    full, _ = read_pixels(row["files"][0])  # (H, W)
    masks = []
    for start, stop in pairwise(bounds):
        mask = _mask_and_crop(row["files"][start:stop])[0]
        if mask is None:
            raise DataError(f"{row['files'][start].parent}: mask is missing: no image here has two grey levels")
        if mask.shape != full.shape:
            sizes = f"{mask.shape[0]} x {mask.shape[1]}, its image is {full.shape[0]} x {full.shape[1]}"
            raise DataError(f"{row['files'][start].parent}: mask has another size than its image: it is {sizes}")
        masks.append(mask)
    return make_case(row, full, [_box(mask) for mask in masks], np.logical_or.reduce(masks))


def _read_crop(row: pd.Series) -> Case:
    """Case of one crop."""
    crop = _mask_and_crop(row["files"])[1]
    if crop is None:
        raise DataError(f"{row['files'][0].parent}: crop is missing: every image here is a mask")
    return make_case(row, crop, (), None)


def _mask_and_crop(paths: Sequence[Path]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Mask, bool, and crop among the files of a lesion; None for one that is not there."""
    mask = crop = None
    for path in paths:
        pixels, _ = read_pixels(path)
        said = _said(path)
        if said == "mask" or (not said and _two_levels(pixels)):
            mask = pixels > pixels.min()
        else:
            crop = pixels
    return mask, crop


def _said(path: Path) -> str:
    """What the DICOM series description says the image is, "mask" or "crop"; "" if it does not say."""
    if path.suffix.lower() not in SUFFIXES:
        return ""
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesDescription"])
    words = str(header.get("SeriesDescription", "")).lower()
    return "mask" if "mask" in words else "crop" if "crop" in words else ""


def _two_levels(pixels: np.ndarray) -> bool:
    low, high = pixels.min(), pixels.max()
    return bool(low < high and ((pixels == low) | (pixels == high)).all())


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a mask; a mask has at least one pixel, as it has two grey levels."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1
