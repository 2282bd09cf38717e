"""Preparing whole mammograms: find the breast, crop to it, put the chest wall on the left.

Usage::

    prepared = prepare_image(read_image("film.png"))      # prepared.image: (h, w) float32, chest wall at column 0
    boxes = move_boxes(boxes, prepared)                   # annotations into the same frame
    table = prepare_folder("downloads", "prepared")       # 16-bit PNG files and prepared.csv; run again to go on

Steps (Sam-Millan 2023, section 3.2.1): read, threshold, largest connected component, its bounding box, crop, flip,
save. The thesis gives no numbers. Ours: the image is shrunk to about 1024 rows, smoothed, and thresholded at 7 % of its
range; an opening takes film labels off. On mini-MIAS Otsu's threshold cuts the thin fatty margin away, and the triangle
method's takes in the film's background.

Privacy: outputs hold pixels only. Their names are a hash of the path below the source folder, then laterality and view:
folders and files of a clinic are often named after patients. A hash keeps tables tidy; it is no protection, as a known
path can be hashed again.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydicom.misc import is_dicom
from scipy.ndimage import binary_fill_holes
from skimage.filters import gaussian
from skimage.measure import label
from skimage.morphology import isotropic_opening
from skimage.transform import downscale_local_mean
from torch import Tensor
from tqdm.auto import tqdm

from xai_lib.data.case import DataError, hashed_id
from xai_lib.data.dicom import SUFFIXES, read_dicom
from xai_lib.data.images import read_image

WORKING_ROWS = 1024  # of the shrunk image in which the breast is looked for
SMOOTHING, OPENING = 3, 7  # standard deviation and radius in pixels of that image
SMALLEST_BREAST = 0.01  # of the image's area
TABLE = "prepared.csv"
IMAGE_SUFFIXES = (".png", ".pgm", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
COLUMNS = (
    *("source", "status", "output", "laterality", "view", "pixel_mm", "rows", "columns"),
    *("row0", "col0", "row1", "col1", "flipped", "threshold", "low", "high"),
    *("instance", "stamp", "path", "remark", "why"),
)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A mammogram cropped to the breast, chest wall at column 0, and how it came about."""

    image: np.ndarray  # (h, w), float32, in [0, 1]
    mask: np.ndarray  # (h, w), bool: the breast
    box: tuple[int, int, int, int]  # in the original image, half-open row0, col0, row1, col1
    flipped: bool
    threshold: float  # grey level in the original image
    low: float  # grey levels of the original image that became 0
    high: float  # and 1


def prepare_image(pixels: np.ndarray, threshold: float = 0.07, stretch: bool = True) -> Prepared:
    """Crop a mammogram to the breast and flip it so that the chest wall is at column 0.

    Args:
        pixels: (H, W), grey, bright breast on dark background.
        threshold: of the range between the darkest and the brightest pixel after smoothing, 0 < threshold < 1.
        stretch: map the darkest pixel of the crop to 0 and the brightest of the breast to 1. Files with 12 bits in 16
            are nearly black without it.

    The side on which the breast's mask has its centre of mass is the chest wall's.

    Raises:
        ValueError: `threshold` is not between 0 and 1, or `pixels` is not two-dimensional.
        DataError: the image holds NaN or infinite values, is constant or a mask, or shows nothing the size of a breast.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: {threshold!r} is not between 0 and 1")
    if pixels.ndim != 2 or pixels.size == 0:
        raise ValueError(f"pixels: expected shape (H, W), got {pixels.shape}")
    if not np.isfinite(pixels).all():
        raise DataError("image holds NaN or infinite values")
    if ((pixels == pixels.min()) | (pixels == pixels.max())).all():
        raise DataError("image is constant or has two grey values only: a mask?")
    breast, level = _breast(pixels, threshold)
    rows, cols = (np.flatnonzero(breast.any(axis)) for axis in (1, 0))
    box = (int(rows[0]), int(cols[0]), int(rows[-1]) + 1, int(cols[-1]) + 1)
    window = np.s_[box[0] : box[2], box[1] : box[3]]
    image, mask = pixels[window], breast[window]
    flipped = bool(np.average(np.arange(mask.shape[1]) + 0.5, weights=mask.sum(0)) > mask.shape[1] / 2)
    if flipped:
        image, mask = image[:, ::-1], mask[:, ::-1]
    mask = binary_fill_holes(np.pad(mask, ((0, 0), (1, 0)), constant_values=True))[:, 1:]  # a hole may touch the wall
    low, high = (float(image.min()), float(image[mask].max())) if stretch else (0.0, 1.0)
    if high <= low:
        raise DataError("breast is constant")
    image = ((image - low) / (high - low)).clip(0, 1).astype(np.float32)
    return Prepared(image, mask, box, flipped, level, low, high)


def _breast(pixels: np.ndarray, threshold: float) -> tuple[np.ndarray, float]:
    """Largest bright component, (H, W) bool, and the grey level of the threshold."""
    factor = max(1, round(pixels.shape[0] / WORKING_ROWS))
    padding = [(0, -size % factor) for size in pixels.shape]
    small = downscale_local_mean(np.pad(pixels, padding, mode="edge"), (factor, factor))
    scale = small.shape[0] / WORKING_ROWS
    small = gaussian(small, SMOOTHING * scale)
    level = float(small.min() + threshold * (small.max() - small.min()))
    parts = label(isotropic_opening(small > level, OPENING * scale))
    areas = np.bincount(parts.ravel())[1:]
    if len(areas) == 0 or areas.max() < SMALLEST_BREAST * parts.size:
        raise DataError(f"nothing as large as a breast is brighter than {level:.3g}")
    breast = np.repeat(np.repeat(parts == 1 + areas.argmax(), factor, 0), factor, 1)
    return breast[: pixels.shape[0], : pixels.shape[1]], level


def move_boxes(boxes: Tensor, prepared: Prepared) -> Tensor:
    """Boxes (k, 4) of the original image in the frame of the prepared one, clipped to it.

    Raises:
        DataError: a box lies wholly outside the crop.
    """
    row0, col0, row1, col1 = prepared.box
    moved = boxes - torch.tensor([row0, col0, row0, col0])
    if prepared.flipped:
        moved = torch.stack([moved[:, 0], col1 - col0 - moved[:, 3], moved[:, 2], col1 - col0 - moved[:, 1]], 1)
    height, width = row1 - row0, col1 - col0
    moved = moved.clamp(min=0).minimum(torch.tensor([height, width, height, width]))
    if (moved[:, :2] >= moved[:, 2:]).any():
        raise DataError(f"a box lies outside the crop {prepared.box} of the image")
    return moved


def prepare_folder(
    source: Path | str,
    out: Path | str,
    threshold: float = 0.07,
    stretch: bool = True,
    voi: bool = True,
    keep_paths: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Prepare every DICOM and image file below a folder, one at a time; a run that was stopped goes on.

    Args:
        source: folder; its subfolders are searched. DICOM files may lack a suffix.
        out: folder of the results, outside `source`: one 16-bit PNG without metadata per image and ``prepared.csv``
            with one row per file. A row is written as soon as its file is done. A finished file is skipped the next
            time, unless it or an argument has changed; one that failed is tried again.
        threshold, stretch: see `prepare_image`.
        voi: see `dicom.read_dicom`.
        keep_paths: fill the table's column `path` with the path below `source`, to find a file that failed. It may name
            patients, so it is empty unless asked for.
        progress: show a progress bar on stderr.

    Returns:
        The table. `status` is done, failed (`why` says why) or duplicate (another file has the same SOP instance UID
        and came first). `source` is the hash of the path below the source folder, `stamp` one of the file's size, time
        and the arguments. `row0` to `col1` and `flipped` lead from the original frame to the output's.

    Raises:
        DataError: `source` is not a folder or holds no image, `out` lies inside it, or the table in `out` is not one of
            this function.
        OSError: nothing can be written to `out`.
    """
    source, out = Path(source).expanduser().resolve(), Path(out).expanduser().resolve()
    if not source.is_dir():
        raise DataError(f"source: {source} is not a folder")
    if out.is_relative_to(source):
        raise DataError(f"out: {out} lies inside source; expected a folder beside it")
    paths, faults = _walk(source)
    if not paths and not faults:
        raise DataError(f"source: {source} holds no DICOM or image file")
    out.mkdir(parents=True, exist_ok=True)
    names = {path: hashed_id(os.fsencode(path.relative_to(source).as_posix())) for path in [*paths, *faults]}
    stamps = {names[path]: _stamp(path, threshold, stretch, voi) for path in paths}
    finished = _finished(out, stamps)
    instances = {row["instance"] for row in finished.values()} - {""}
    with (out / TABLE).open("a", newline="", errors="surrogateescape") as file:
        table = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        for path in tqdm([*faults, *paths], desc="prepare", unit="file", disable=not progress):
            name = names[path]
            if name in finished:
                continue
            if path in faults:
                row: dict[str, object] = {"status": "failed", "why": f"folder cannot be read: {faults[path]}"}
            else:
                row = _prepare_file(path, out, name, instances, (threshold, stretch, voi))
            shown = str(path.relative_to(source)) if keep_paths else ""
            table.writerow({"source": name, "stamp": stamps.get(name, ""), "path": shown} | row)
            file.flush()
    types = dict.fromkeys(("source", "instance", "stamp", "path"), str)
    return pd.read_csv(out / TABLE, dtype=types, encoding_errors="surrogateescape").convert_dtypes()


def _walk(source: Path) -> tuple[list[Path], dict[Path, str]]:
    """Files that may be images, sorted, and folders that cannot be read with the reason."""
    faults: dict[Path, str] = {}

    def note(error: OSError) -> None:
        faults[Path(error.filename)] = error.strerror or "unknown"

    files = [Path(folder, name) for folder, _, names in os.walk(source, onerror=note) for name in names]
    return sorted(path for path in files if _wanted(path)), faults


def _wanted(path: Path) -> bool:
    """By suffix, or DICOM by content: pictures from a clinic's archive often have no suffix."""
    if path.suffix.lower() in (*SUFFIXES, *IMAGE_SUFFIXES):
        return True
    try:
        return path.is_file() and is_dicom(path) and path.name != "DICOMDIR"
    except OSError:
        return True  # reading it will say why not


def _stamp(path: Path, *settings: object) -> str:
    try:
        facts = path.stat()
    except OSError:
        return ""
    return hashed_id((facts.st_size, facts.st_mtime_ns, *settings))


def _finished(out: Path, stamps: dict[str, str]) -> dict[str, dict[str, str]]:
    """Rows of an earlier run that still hold, by source; the table on disk is cut down to them."""
    path = out / TABLE
    rows: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="", errors="surrogateescape") as file:
            table = csv.DictReader(file)
            if tuple(table.fieldnames or ()) != COLUMNS:
                raise DataError(f"{path}: is no table of prepare_folder; choose another folder for out")
            rows = [
                row
                for row in table
                if None not in row.values()  # a line that a killed run left unfinished
                and row["status"] == "done"
                and stamps.get(row["source"], row["stamp"]) == row["stamp"]
                and (out / row["output"]).is_file()
            ]
    new = path.with_suffix(".new")
    with new.open("w", newline="", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, path)
    return {row["source"]: row for row in rows}


def _prepare_file(
    path: Path, out: Path, name: str, instances: set[str], settings: tuple[float, bool, bool]
) -> dict[str, object]:
    """Row of one file; its image is written first, so that a row never promises a missing one."""
    threshold, stretch, voi = settings
    row: dict[str, object] = {"status": "failed"}
    try:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            pixels = read_image(path)
        else:
            dicom = read_dicom(path, voi)
            pixels = dicom.pixels
            row |= {"laterality": dicom.laterality, "view": dicom.view, "pixel_mm": dicom.pixel_mm}
            row |= {"instance": dicom.instance, "remark": "; ".join(dicom.remarks)}
        row |= {"rows": pixels.shape[0], "columns": pixels.shape[1]}
        if row.get("instance") in instances:
            return row | {"status": "duplicate", "why": "another file has the same SOP instance UID"}
        done = prepare_image(pixels, threshold, stretch)
    except (DataError, OSError) as error:
        return row | {"why": _without_path(str(error), path)}
    output = "_".join(str(part) for part in (name, row.get("laterality"), row.get("view")) if part) + ".png"
    _save(done.image, out / output)
    if row.get("instance"):
        instances.add(str(row["instance"]))
    row |= dict(zip(("row0", "col0", "row1", "col1"), done.box, strict=True))
    row |= {"flipped": done.flipped, "threshold": done.threshold, "low": done.low, "high": done.high}
    return row | {"status": "done", "output": output}


def _save(image: np.ndarray, path: Path) -> None:
    """16-bit grey PNG without metadata, there as a whole or not at all."""
    new = path.with_suffix(".new")
    grey = np.round(image * 65535).astype(np.uint16)
    Image.fromarray(grey).save(new, format="PNG", compress_level=1)
    os.replace(new, path)


def _without_path(text: str, path: Path) -> str:
    """An error's text on one line without the file's path or name."""
    for shown in (f"{path}: ", f"{path.name}: "):
        text = text.removeprefix(shown)
    for shown in (str(path), repr(str(path))[1:-1]):
        text = text.replace(shown, "file")
    return shorten(text, 300)
