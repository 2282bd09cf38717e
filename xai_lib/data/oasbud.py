"""OASBUD: raw radio-frequency (RF) ultrasound of breast lesions, two orthogonal planes of each.

H. Piotrzkowska-Wroblewska et al., "Open access database of raw ultrasonic signals acquired from malignant and benign
breast lesions", Medical Physics 44 (2017) 6105-6109, doi:10.1002/mp.12538; data: Zenodo, doi:10.5281/zenodo.545928.

Usage::

    cases = load_oasbud("OASBUD")                    # the folder with OASBUD.mat, or the file
    image = b_mode(rf, Display())                    # envelope, square pixels, log compression

`OASBUD.mat` holds a struct array `data`, one element per lesion (52 malignant, 48 benign, of 78 women), with the fields
id, rf1, rf2 (int16, samples x 510 lines; the number of samples differs), roi1, roi2 (mask of the same size), birads
("4a") and class. The lines were formed by the scanner: what is left to do is the envelope and its display.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import scipy.signal
import torch

from xai_lib.data.case import (
    Case,
    CaseDataset,
    DataError,
    Report,
    Skipped,
    boxes_from_mask,
    existing,
    hashed_id,
    refuse,
)
from xai_lib.data.images import resample

FILE = "OASBUD.mat"
FIELDS = ("id", "rf1", "rf2", "roi1", "roi2", "birads", "class")
LESIONS = 100  # in the official file
SAMPLE_MM = 1540.0 / (2 * 40e6) * 1e3  # 0.01925 mm of depth per sample: 40 MHz, 1540 m/s, there and back
LINE_MM = 0.3048 / 4  # 0.0762 mm between lines: four lines per element (probe L14-5/38: 128 elements, pitch 0.3048 mm)


@dataclass(frozen=True)
class Display:
    """How RF lines become an image.

    Attributes:
        dynamic_range_db: of the log compression; the authors of the data use 50.
        pixel_mm: side of the square pixels.
        line_mm: distance of neighbouring lines, from the probe's data (data/README.md); 38 mm / 510 would be 2 % less.

    Raises:
        ValueError: one of them is not above 0.
    """

    dynamic_range_db: float = 50.0
    pixel_mm: float = LINE_MM
    line_mm: float = LINE_MM

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"{name}: {value} is not above 0")

    def shape(self, rf: np.ndarray) -> tuple[int, int]:
        """Rows and columns of square pixels that cover RF data (samples, lines)."""
        samples, lines = rf.shape
        return max(1, round(samples * SAMPLE_MM / self.pixel_mm)), max(1, round(lines * self.line_mm / self.pixel_mm))


def load_oasbud(
    root: Path | str,
    strict: bool = False,
    dynamic_range_db: float = 50.0,
    pixel_mm: float = LINE_MM,
    line_mm: float = LINE_MM,
    malignant: int = 1,
) -> CaseDataset:
    """Load OASBUD: two cases per lesion, views "plane 1" and "plane 2"; which plane is which was not published.

    The file cannot be read in parts, so the RF data stay in memory (about 0.6 GB for the official file); the images are
    made when they are asked for.

    Args:
        root: the folder that holds ``OASBUD.mat``, or the file.
        strict: raise for the first faulty plane, and for fewer than 100 lesions, instead of skipping and counting.
        dynamic_range_db: see `Display`, as for the next two.
        pixel_mm: see `Display`.
        line_mm: see `Display`.
        malignant: the value of the field `class` that means malignant.

    Raises:
        DataError: the file is missing or of another format, no plane can be used, or the lesions called benign have the
            higher mean BI-RADS category (then `malignant` is the wrong way round); with `strict`, any fault.
        ValueError: a length or the dynamic range is not above 0.
    """
    display = Display(dynamic_range_db, pixel_mm, line_mm)
    path = _path(root)
    lesions = _lesions(path)
    rows, faults = _rows(path, lesions, malignant)
    incomplete = (
        [Skipped("oasbud", f"lesions are missing: {len(lesions)} of {LESIONS}")] if len(lesions) < LESIONS else []
    )
    refuse("oasbud", [*faults, *incomplete] if strict else [])
    if not rows:
        raise DataError(f"{path}: no plane can be used; the first fault: {faults[0].source}: {faults[0].why}")
    table = pd.DataFrame(rows)
    _check_classes(path, table)
    return CaseDataset("oasbud", table, partial(_read, lesions=lesions, display=display), faults, asdict(display))


def check_oasbud(root: Path | str) -> Report:
    """Count what an OASBUD file holds: lesions, usable planes per class, faulty planes.

    Raises:
        DataError: the file is missing or of another format.
    """
    path = _path(root)
    lesions = _lesions(path)
    rows, faults = _rows(path, lesions, malignant=1)
    labels = [row["label"] for row in rows]
    found = {"lesions": len(lesions), "benign planes": labels.count(0), "malignant planes": labels.count(1)}
    notes = [f"{len({row['patient_id'] for row in rows})} patients"]
    try:
        _check_classes(path, pd.DataFrame(rows, columns=["birads", "label"]))
    except DataError as error:
        notes.append(str(error))
    return Report("oasbud", found, [f"{LESIONS - len(lesions)} lesions"] * (len(lesions) < LESIONS), faults, notes)


def envelope(rf: np.ndarray) -> np.ndarray:
    """Envelope of RF lines (samples, lines): the magnitude of the analytic signal along each line."""
    return np.abs(scipy.signal.hilbert(rf.astype(np.float64), axis=0))


def log_compress(amplitude: np.ndarray, dynamic_range_db: float = 50.0) -> np.ndarray:
    """Map an envelope to [0, 1]: its maximum to 1, and `dynamic_range_db` below it, and less, to 0."""
    floor = 10 ** (-dynamic_range_db / 20)
    relative = np.maximum(amplitude / amplitude.max(), floor)
    return (20 * np.log10(relative) / dynamic_range_db + 1).astype(np.float32)


def b_mode(rf: np.ndarray, display: Display) -> np.ndarray:
    """B-mode image (H, W) in [0, 1] with square pixels: envelope, resampled as amplitude, then log compression."""
    return log_compress(resample(envelope(rf), display.shape(rf)), display.dynamic_range_db)


def _read(row: pd.Series, lesions: list[dict[str, Any]], display: Display) -> Case:
    """Case of one plane."""
    lesion, plane = lesions[row["lesion"]], row["plane"]
    rf, roi = lesion[f"rf{plane}"], lesion[f"roi{plane}"]
    inside = resample((roi > 0).astype(np.float64), display.shape(rf)) >= 0.5
    return Case(
        image=torch.from_numpy(b_mode(rf, display))[None],
        label=int(row["label"]),
        mask=torch.from_numpy(inside),
        boxes=boxes_from_mask(inside),
        pixel_mm=display.pixel_mm,
        patient_id=row["patient_id"],
        view=row["view"],
        source=row["source"],
    )


def _path(root: Path | str) -> Path:
    """The file, given itself or its folder."""
    path = Path(root).expanduser()
    if path.suffix != ".mat":
        path = existing(root, "oasbud") / FILE
    if not path.is_file():
        raise DataError(f"oasbud: {path} is missing; see data/README.md for how to get it")
    return path


def _lesions(path: Path) -> list[dict[str, Any]]:
    """The elements of the struct array `data`, as dictionaries."""
    try:
        content = scipy.io.loadmat(path, variable_names=["data"], simplify_cells=True)
    except Exception as error:  # a damaged file raises one of many kinds
        raise DataError(f"{path}: not a readable MATLAB file (version 5 to 7): {error}") from error
    lesions = list(np.atleast_1d(np.asarray(content.get("data", []), dtype=object)))
    if not lesions:
        raise DataError(f"{path}: holds no lesion; expected a struct array 'data' with the fields {', '.join(FIELDS)}")
    for lesion in lesions:
        lacking = [name for name in FIELDS if not isinstance(lesion, dict) or name not in lesion]
        if lacking:
            raise DataError(f"{path}: 'data' lacks the fields {', '.join(lacking)}")
    return lesions


def _rows(path: Path, lesions: list[dict[str, Any]], malignant: int) -> tuple[list[dict[str, object]], list[Skipped]]:
    """A table row for every usable plane, and the faulty planes."""
    rows: list[dict[str, object]] = []
    faults = []
    for number, lesion in enumerate(lesions):
        for plane in (1, 2):
            source = f"oasbud/lesion-{number + 1:03d}-plane-{plane}"
            if why := _fault(lesion, plane):
                faults.append(Skipped(source, why))
                continue
            rows.append(
                {
                    "source": source,
                    "label": int(lesion["class"] == malignant),
                    "patient_id": hashed_id(f"oasbud/{lesion['id']}"),
                    "view": f"plane {plane}",
                    "birads": str(lesion["birads"]),
                    "lesion": number,
                    "plane": plane,
                    "files": (path,),
                }
            )
    return rows, faults


def _fault(lesion: dict[str, Any], plane: int) -> str:
    """What is wrong with one plane of a lesion; "" if nothing."""
    rf, roi = np.asarray(lesion[f"rf{plane}"]), np.asarray(lesion[f"roi{plane}"])
    if np.size(lesion["class"]) != 1 or lesion["class"] not in (0, 1):
        return f"class is neither 0 nor 1: {lesion['class']!r}"
    if rf.ndim != 2 or rf.size == 0 or rf.dtype.kind not in "iuf":
        return f"rf{plane} is no matrix of real numbers: shape {rf.shape}, {rf.dtype}"
    if not np.isfinite(rf).all() or not rf.any():
        return f"rf{plane} has no signal or is not finite"
    if roi.shape != rf.shape:
        return f"mask has another size than its image: roi{plane} is {roi.shape}, rf{plane} is {rf.shape}"
    return "" if roi.any() else f"mask has no pixel: roi{plane} is empty"


def _check_classes(path: Path, table: pd.DataFrame) -> None:
    """The lesions called malignant must not have the lower mean BI-RADS category."""
    category = pd.to_numeric(table["birads"].str[:1], errors="coerce")
    mean = category.groupby(table["label"]).mean()
    if {0, 1} <= set(mean.index) and mean[1] < mean[0]:
        raise DataError(
            f"{path}: mean BI-RADS category {mean[1]:.1f} of the malignant lesions, {mean[0]:.1f} of the benign ones; "
            "the field 'class' seems to be the other way round: give malignant=0"
        )
