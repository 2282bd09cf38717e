"""Around a readout: hit matrices in files, intervals over images, and the limits of the European guidelines.

Usage::

    matrices = read_matrices(["scores.csv"])                 # 0 or 1 per image and cell, for centre and corner disc
    hits = pooled(matrices, "corner")                        # (16, 16)
    found = read_out(hits, images=len(matrices.images))
    table = compare(found, ACCEPTABLE_UM, bootstrap(matrices.corner))

A file of matrices is long or wide. Long: a CSV with the columns image, diameter_mm, thickness_um, centre, corner, one
line per image and cell. Wide: one file per image and place, NAME_centre.csv and NAME_corner.csv, 16 lines of 16
numbers, a line per diameter from 2 mm down, a number per thickness from 0.03 um up, 0 where the phantom has no cell.

References: European guidelines for quality assurance in breast cancer screening and diagnosis, 4th edition (2006), part
2b, section 2.4.1, and supplements (2013): limits in gold thickness as recalled; those from 1 mm down agree with
MedPhysQC/MG_CDMAM. Nearest neighbours: Artinis, CDMAM manual, correction scheme. Efron and Tibshirani, An Introduction
to the Bootstrap (1993).
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import convolve

from xai_lib.cdmam.geometry import CELLS, CURVE_MM, DIAMETERS_MM, THICKNESSES_UM
from xai_lib.cdmam.readout import HUMAN_FACTORS, Floats, Readout, checked, third_order, thresholds
from xai_lib.config import numpy_generator

ACCEPTABLE_UM: Mapping[float, float] = {2.0: 0.069, 1.0: 0.091, 0.5: 0.150, 0.25: 0.352, 0.1: 1.68}
ACHIEVABLE_UM: Mapping[float, float] = {2.0: 0.038, 1.0: 0.056, 0.5: 0.103, 0.25: 0.244, 0.1: 1.10}
PLACES = ("centre", "corner")
COLUMNS = ("image", "diameter_mm", "thickness_um", *PLACES)
CROSS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])


@dataclass(frozen=True, eq=False)
class Matrices:
    """What was read in each image: `centre` and `corner` are bool (images, 16, 16), False where there is no cell."""

    centre: NDArray[np.bool_]
    corner: NDArray[np.bool_]
    images: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Intervals:
    """95 % percentile intervals of the curve, each (12,) in micrometres, and of its mean over the diameters.

    `failed` is the share of replicates, (12,), in which the threshold of a diameter was not found.
    """

    low_um: Floats
    high_um: Floats
    midpoint_um: tuple[float, float]
    failed: Floats
    replicates: int


def pooled(matrices: Matrices, use: str = "corner") -> Floats:
    """In how many images each cell was read rightly, (16, 16).

    `use` is "corner" (four alternatives, as the guidelines ask), "centre", or "both", the mean of the two. The readout
    takes a guess to be right in one case of four: whether that is so for a centre disc depends on who read it.
    """
    return used(matrices, use).sum(axis=0)


def used(matrices: Matrices, use: str = "corner") -> Floats:
    """The scores that `pooled` adds up: (images, 16, 16) in [0, 1]."""
    if use not in (*PLACES, "both"):
        raise ValueError(f"use: {use!r}, expected 'centre', 'corner' or 'both'")
    if len(matrices.images) == 0:
        raise ValueError("matrices: no image, expected at least one")
    chosen = [getattr(matrices, place) for place in (PLACES if use == "both" else (use,))]
    return np.mean(chosen, axis=0)


def nearest_neighbour(correct: ArrayLike) -> NDArray[np.bool_]:
    """Human scores after the correction of the CDMAM manual; `correct` is bool (..., 16, 16).

    A cell has up to four neighbours, along thickness and along diameter. A right answer stays right if two neighbours
    are right, a wrong one becomes right if three are. A cell that has two neighbours only needs one to stay right, and
    both to become right. The two corners that the phantom lacks (2 mm with 0.03 um, 0.06 mm with 2 um) count as right
    neighbours where both of their own neighbours are right. All cells are corrected at once, from the scores as given.
    """
    scores = np.asarray(correct)
    counts, _ = checked(scores, 1, name="correct")
    right = counts.reshape(-1, 16, 16) > 0.5
    present = CELLS.copy()
    for row, column, step in ((0, 0, 1), (15, 15, -1)):
        present[row, column] = True
        right[:, row, column] = right[:, row + step, column] & right[:, row, column + step]
    neighbours = convolve(present.astype(int), CROSS, mode="constant")
    right_ones = convolve(right.astype(int), CROSS[None], mode="constant")
    few = neighbours <= 2
    stays, becomes = right_ones >= np.where(few, 1, 2), right_ones >= np.where(few, 2, 3)
    return (np.where(right, stays, becomes) & CELLS).reshape(scores.shape)


def bootstrap(
    matrices: ArrayLike, n: int = 1000, seed: int = 0, smooth: bool = True, slope: str | float = "free"
) -> Intervals:
    """Intervals from `n` resamplings of the images: `matrices` (images, 16, 16) bool, or shares in [0, 1].

    One image alone, or none, is refused: there is nothing to resample. With 16 images the intervals held the truth in
    92 % of the cases (make bench): they are somewhat too narrow, most at 1 to 0.5 mm.
    """
    scores = np.asarray(matrices, dtype=float)
    if scores.ndim != 3 or len(scores) < 2:
        raise ValueError(f"matrices: have shape {scores.shape}, expected (images, 16, 16) with two images or more")
    if n < 1:
        raise ValueError(f"n: {n} replicates, expected at least 1")
    scores, cells = checked(scores, 1, name="matrices")
    images = len(scores)
    draws = numpy_generator(seed, "cdmam bootstrap").multinomial(images, np.full(images, 1 / images), size=n)
    shares = (draws @ scores.reshape(images, -1)).reshape(n, 16, 16) / images
    automatic, _ = thresholds(np.minimum(shares, 1), smooth, cells, slope)
    curves = third_order(automatic) * HUMAN_FACTORS
    low, high = np.nanpercentile(curves, [2.5, 97.5], axis=0)
    middle = np.nanpercentile(curves.mean(axis=1), [2.5, 97.5])
    return Intervals(low, high, (float(middle[0]), float(middle[1])), np.isnan(automatic).mean(axis=0), n)


def compare(readout: Readout, limits: Mapping[float, float], intervals: Intervals | None = None) -> pd.DataFrame:
    """The curve against `limits` (diameter in mm to micrometres of gold): one row per limit, with the columns
    diameter_mm, limit_um, value_um, low_um, high_um, result.

    The result is "pass" (at most the limit; with intervals: the whole interval), "fail", "undecided" (the limit lies in
    the interval) or "not read": the curve of an automated readout starts at 1 mm, so the limit at 2 mm is not tested,
    nor is a point for which there is no curve.
    """
    rows = []
    for diameter, limit in limits.items():
        value = low = high = np.nan
        if diameter in CURVE_MM:
            k = CURVE_MM.index(diameter)
            value = readout.fitted_um[k]
            low, high = (value, value) if intervals is None else (intervals.low_um[k], intervals.high_um[k])
        if not np.isfinite([value, low, high]).all():
            result = "not read"
        else:
            result = "pass" if high <= limit else "fail" if low > limit else "undecided"
        rows.append((diameter, limit, value, *((np.nan, np.nan) if intervals is None else (low, high)), result))
    return pd.DataFrame(rows, columns=["diameter_mm", "limit_um", "value_um", "low_um", "high_um", "result"])


def read_matrices(paths: Iterable[str | Path]) -> Matrices:
    """Hit matrices from CSV files, long or wide (see the module), images in the order in which they appear.

    FileNotFoundError or ValueError names the file and line.
    """
    found: dict[str, dict[str, NDArray[np.float64]]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file of hit matrices")
        text = path.read_text(encoding="utf-8-sig")
        (read_long if text.startswith("image") else read_wide)(path, text, found)
    if not found:
        raise ValueError("paths: no image, expected at least one file with one")
    for image, matrices in found.items():
        for place in PLACES:
            if place not in matrices:
                raise ValueError(f"image {image!r}: no {place} scores, expected a file {image}_{place}.csv")
            missing = np.argwhere(np.isnan(matrices[place]) & CELLS)
            if len(missing):
                raise ValueError(f"image {image!r}: no {place} score for {cell(*missing[0])}, {len(missing)} in all")
    centre, corner = (np.array([m[place] for m in found.values()]) == 1 for place in PLACES)
    return Matrices(centre, corner, tuple(found))


def cell(i: int, j: int) -> str:
    """The name of a cell."""
    return f"{DIAMETERS_MM[i]:g} mm, {THICKNESSES_UM[j]:g} um"


def score(text: str, where: str) -> float:
    """0 or 1; `where` names file and line."""
    if text.strip() not in ("0", "1"):
        raise ValueError(f"{where}: {text.strip()!r}, expected 0 or 1")
    return float(text)


def read_long(path: Path, text: str, found: dict[str, dict[str, NDArray[np.float64]]]) -> None:
    """Put the lines of a long file into `found`: image -> place -> (16, 16), NaN where nothing was said."""
    lines = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    lacking = set(COLUMNS) - set(lines.fieldnames or ())
    if lacking:
        raise ValueError(f"{path}, line 1: lacks the column {', '.join(sorted(lacking))}")
    for line in lines:
        where = f"{path}, line {lines.line_num}"
        if any(line[name] is None for name in COLUMNS):
            raise ValueError(f"{where}: too few values, expected {', '.join(COLUMNS)}")
        i = step(line["diameter_mm"], DIAMETERS_MM, f"{where}: diameter_mm")
        j = step(line["thickness_um"], THICKNESSES_UM, f"{where}: thickness_um")
        blank = {place: np.full(CELLS.shape, np.nan) for place in PLACES}
        matrices = found.setdefault(line["image"], blank)
        for place in PLACES:
            put(matrices[place], line["image"], i, j, score(line[place], f"{where}: {place}"), where)


def step(text: str, steps: tuple[float, ...], where: str) -> int:
    """Which of `steps` the number in `text` is."""
    try:
        near = np.flatnonzero(np.isclose(steps, float(text), rtol=1e-3))
    except ValueError:
        near = np.array([], dtype=int)
    if not len(near):
        raise ValueError(f"{where}: {text!r}, expected one of {', '.join(f'{s:g}' for s in steps)}")
    return int(near[0])


def put(matrix: NDArray[np.float64], image: str, i: int, j: int, value: float, where: str) -> None:
    """Set one cell, once; a hit where the phantom has no cell is refused."""
    if value and not CELLS[i, j]:
        raise ValueError(f"{where}: a hit at {cell(i, j)}, where the phantom has no cell")
    if not np.isnan(matrix[i, j]):
        raise ValueError(f"{where}: {cell(i, j)} of image {image!r} is given twice")
    matrix[i, j] = value


def read_wide(path: Path, text: str, found: dict[str, dict[str, NDArray[np.float64]]]) -> None:
    """Put a wide file, NAME_centre.csv or NAME_corner.csv, into `found`."""
    image, _, place = path.stem.rpartition("_")
    if place not in PLACES or not image:
        raise ValueError(f"{path}: expected a first line {','.join(COLUMNS)}, or a name ending in _centre or _corner")
    if place in found.setdefault(image, {}):
        raise ValueError(f"{path}: the {place} scores of image {image!r} are given twice")
    matrix = found[image][place] = np.full(CELLS.shape, np.nan)
    lines = [(k, line.replace(",", " ").split()) for k, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) != 16:
        raise ValueError(f"{path}: {len(lines)} lines of numbers, expected 16, one per diameter")
    for i, (k, values) in enumerate(lines):
        if len(values) != 16:
            raise ValueError(f"{path}, line {k}: {len(values)} numbers, expected 16, one per thickness")
        for j, value in enumerate(values):
            put(matrix, image, i, j, score(value, f"{path}, line {k}"), f"{path}, line {k}")


def write_matrices(path: str | Path, matrices: Matrices) -> None:
    """Write a long file, which `read_matrices` reads."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for k, image in enumerate(matrices.images):
            for i, j in np.argwhere(CELLS):
                scores = (int(getattr(matrices, place)[k, i, j]) for place in PLACES)
                writer.writerow([image, DIAMETERS_MM[i], THICKNESSES_UM[j], *scores])
