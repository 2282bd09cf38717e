"""BUSI: breast ultrasound images of one hospital, with lesion masks and without patient identities or pixel sizes.

W. Al-Dhabyani et al., "Dataset of breast ultrasound images", Data in Brief 28 (2020) 104863.

Usage::

    cases = load_busi("Dataset_BUSI_with_GT")                  # patient_id is the group of near-duplicates
    cases = load_busi("Dataset_BUSI_with_GT", grouping=False)  # every image for itself: what random splitting would do

Who a patient is was never published, and many images are in the set two or more times. So near-duplicates are grouped
(`duplicates`), and a group stands for a patient. Groups that carry both labels are left out. `normal` images show no
lesion and are not loaded.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from xai_lib import config
from xai_lib.data.case import CaseDataset, DataError, Report, Skipped, existing, file_digest, refuse
from xai_lib.data.duplicates import CORRELATION, DISTANCE, group_numbers, looks, pairs
from xai_lib.data.images import read_case, read_image_and_masks

CLASSES = {"benign": 0, "malignant": 1}
OFFICIAL = {"benign": 437, "malignant": 210}  # images of the official release, numbered from 1
LAYOUT = "benign/, malignant/ with 'benign (1).png', 'benign (1)_mask.png'"
_IMAGE = re.compile(r"(?P<label>benign|malignant) \((?P<number>\d+)\)\.png")
_MASK = re.compile(r"(?P<image>(benign|malignant) \(\d+\))_mask(_\d+)?\.png")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Scan:
    """What a folder holds: readable rows (with `group`), faults, and names of missing images."""

    table: pd.DataFrame
    faults: list[Skipped]
    missing: list[str]


def load_busi(
    root: Path | str, strict: bool = False, classes: Sequence[str] = tuple(CLASSES), grouping: bool = True
) -> CaseDataset:
    """Load BUSI from its official folder ``Dataset_BUSI_with_GT``.

    The first call decodes and hashes all images (some 10 s); the result is kept under `config.cache_dir()`.

    Args:
        root: the folder that holds `benign` and `malignant`.
        strict: raise for the first missing or faulty file instead of skipping and counting it.
        classes: which of "benign" and "malignant" to load.
        grouping: False makes every image its own patient, as a random split would. Groups with both labels stay out.

    Raises:
        DataError: the folder is missing or holds no image; with `strict`, a file is missing or faulty.
        ValueError: a class is unknown.
    """
    unknown = [name for name in classes if name not in CLASSES]
    if unknown or not classes:
        raise ValueError(f"classes: {unknown or classes!r} is unknown, expected some of {', '.join(CLASSES)}")
    scan = _scan(existing(root, "busi"))
    refuse("busi", [*scan.faults, *_absent(scan.missing)] if strict else [])
    table = scan.table
    mixed = table.groupby("group")["label"].transform("nunique") > 1
    excluded = [Skipped(source, "near-duplicates carry both labels") for source in table["source"][mixed]]
    prefix = "group" if grouping else "image"
    numbers = table["group"] if grouping else pd.Series(range(len(table)), index=table.index)
    table["patient_id"] = [f"{prefix}-{number + 1:04d}" for number in numbers]
    table = table[~mixed & table["label"].isin([CLASSES[name] for name in classes])]
    return CaseDataset(
        "busi", table.drop(columns="group"), read_case, [*scan.faults, *_absent(scan.missing), *excluded]
    )


def check_busi(root: Path | str) -> Report:
    """Count what a BUSI folder holds: images per class, masks, missing and faulty files, near-duplicates.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    folder = existing(root, "busi")
    scan = _scan(folder)
    table = scan.table
    found = {f"{name} images": int((table["label"] == label).sum()) for name, label in CLASSES.items()}
    found["lesion masks"] = int(sum(len(files) - 1 for files in table["files"]))
    found["normal images"] = len([path for path in folder.glob("normal/*.png") if "_mask" not in path.name])
    sizes = table["group"].value_counts()
    mixed = table.groupby("group")["label"].nunique() > 1
    of_mixed = table["source"][table["group"].map(mixed).astype(bool)]
    notes = [
        f"{int(sizes[sizes > 1].sum())} images have a near-duplicate; {len(sizes)} groups, largest {sizes.max()}",
        f"{int(mixed.sum())} groups carry both labels and are left out, {len(of_mixed)} images: {', '.join(of_mixed)}",
        "normal images show no lesion and are not loaded; patients and pixel sizes were never published",
    ]
    return Report("busi", found, scan.missing, scan.faults, notes)


def _absent(missing: Sequence[str]) -> list[Skipped]:
    return [Skipped(source, "image file is missing") for source in missing]


def _scan(folder: Path) -> _Scan:
    """List, decode and group the images of both classes, whatever classes are asked for later."""
    candidates = _list(folder)
    verdicts, groups = _inspect(candidates)
    faults = [Skipped(source, why) for source, why in zip(candidates["source"], verdicts, strict=True) if why]
    table = candidates[[not why for why in verdicts]].assign(group=groups)
    if table.empty:
        raise DataError(f"busi: no image of {folder} can be used; the first fault: {faults[0].source}: {faults[0].why}")
    numbers = {(row.label, row.number) for row in candidates.itertuples()}
    missing = [
        f"busi/{name} ({number})"
        for name, count in OFFICIAL.items()
        for number in range(1, count + 1)
        if (CLASSES[name], number) not in numbers
    ]
    return _Scan(table.drop(columns="number"), faults, missing)


def _list(folder: Path) -> pd.DataFrame:
    """Images by class and number, each with its masks: source, label, number, view, files, pixel_mm."""
    masks: dict[str, list[Path]] = {}
    images: list[tuple[int, int, Path]] = []
    for path in sorted(path for name in CLASSES for path in (folder / name).glob("*.png")):
        if found := _IMAGE.fullmatch(path.name):
            images.append((CLASSES[found["label"]], int(found["number"]), path))
        elif found := _MASK.fullmatch(path.name):
            masks.setdefault(found["image"], []).append(path)
    if not images:
        raise DataError(f"busi: {folder} holds no image; expected {LAYOUT}")
    rows = [
        {
            "source": f"busi/{path.stem}",
            "label": label,
            "number": number,
            "view": "unknown",
            "pixel_mm": None,
            "files": (path, *masks.get(path.stem, [])),
        }
        for label, number, path in sorted(images)
    ]
    return pd.DataFrame(rows)


def _inspect(candidates: pd.DataFrame) -> tuple[list[str], list[int]]:
    """What is wrong with each candidate ("" if nothing), and the group of each sound one; kept on disk."""
    digests = [[_digest(path) for path in files] for files in candidates["files"]]
    facts = [1, DISTANCE, CORRELATION, list(candidates["source"]), digests]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    cache = config.cache_dir() / f"busi-{key}.json"
    try:
        known = json.loads(cache.read_text())
        if len(known["verdicts"]) == len(candidates) and len(known["groups"]) == known["verdicts"].count(""):
            return known["verdicts"], known["groups"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not ours: compute it
    verdicts, images = [], []
    for files in candidates["files"]:
        image, why = _try(files)
        verdicts.append(why)
        if image is not None:
            images.append(image)
    groups = group_numbers(pairs(*looks(images))).tolist() if images else []
    _keep(cache, {"verdicts": verdicts, "groups": groups})
    return verdicts, groups


def _digest(path: Path) -> str:
    """Sha256 of a file; "" if it cannot be read, which `_try` will say."""
    try:
        return file_digest(path)
    except DataError:
        return ""


def _try(files: Sequence[Path]) -> tuple[np.ndarray | None, str]:
    """The image, or what is wrong with it or its masks."""
    if len(files) < 2:
        return None, f"image without mask: expected '{files[0].stem}_mask.png' beside it"
    try:
        return read_image_and_masks(files[0], files[1:])[0], ""
    except DataError as error:
        return None, str(error).replace(f"{files[0].parent}{os.sep}", "")


def _keep(path: Path, content: dict[str, list]) -> None:
    """Write the cache in one step; a folder that cannot be written only costs the time to compute it again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, suffix=".tmp") as file:
            json.dump(content, file)
        os.replace(file.name, path)
    except OSError as error:
        _log.info("cache %s is not written: %s", path, error)
