"""The phantom as pixels: which material each pixel shows, and how much of it.

Usage::

    phantom = build()                                        # 3654 x 2323 pixels of 0.06 mm
    wide = build(margin=0.14)                                # with a plain margin around, and the writing on it
    crop(wide, 0.04); rotated(phantom)

One map of materials and one of blurred coverage serve every beam: a pixel's grey level is that of the background, moved
by the coverage towards that of its material. So a phantom is built once and every setting is a look-up.

Reference: Amanova et al. 2022, appendix A and B; the grid's width and strength are inferred (DEVIATIONS.md).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from xai_lib.cdmam import geometry
from xai_lib.cdmam.geometry import CELLS, DIAMETERS_MM, PITCH_MM, THICKNESSES_UM

BACKGROUND, GRID, WRITING = 0, 17, 18  # 1 to 16 are the thicknesses of gold
PLATE_MM = (219.24 / 1.0375, 139.38 / 1.0375)  # what 3654 x 2323 pixels of 0.06 mm show, height and width
LINE_MM = 0.5
FINE = 4  # a pixel is divided in 4 x 4 to find how much of it a disc covers


@dataclass(frozen=True)
class Detector:
    """Pixels, blur and scatter of the imaging system; pixel size and magnification as in the PTB's configurations.

    `blur_px` is the standard deviation of the signal's blur, `noise_blur_px` that of the noise's; `scatter` is the
    share of scattered to primary photons.
    """

    pixel_mm: float = 0.06
    magnification: float = 1.0375
    blur_px: float = 0.7
    noise_blur_px: float = 0.55
    scatter: float = 0.18

    @property
    def px_per_mm(self) -> float:
        """Pixels per millimetre on the plate."""
        return self.magnification / self.pixel_mm


@dataclass(frozen=True, eq=False)
class Phantom:
    """An image's materials.

    `classes` (H, W) uint8: `BACKGROUND`, 1 to 16 a thickness of gold, `GRID`, `WRITING`; `coverage` (H, W) float32, the
    blurred share of the pixel; `discs`: `geometry.discs` with y, x and radius_px in pixels of this image; `margin` is
    the share of the plate that is added on every side; `turned` by 90 degrees.
    """

    classes: NDArray[np.uint8]
    coverage: NDArray[np.float32]
    discs: pd.DataFrame
    detector: Detector
    margin: float = 0.0
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.classes.shape[0], self.classes.shape[1]

    @property
    def pixel_mm(self) -> float:
        """Side of a pixel on the plate in millimetres."""
        return 1 / self.detector.px_per_mm


def build(detector: Detector | None = None, margin: float = 0.0, writing: bool = True) -> Phantom:
    """Draw the phantom; the last four are kept and given out again, with arrays that cannot be written to.

    Args:
        detector: pixels and blur.
        margin: plain background on each side, as a share of the plate's height and width, 0 to 0.5.
        writing: whether the diameters and thicknesses stand beside the matrix.

    Raises:
        ValueError: a margin outside 0 to 0.5, or pixels so large that the phantom has fewer than 64 of them.
    """
    return _drawn(detector or Detector(), float(margin), bool(writing))


@lru_cache(maxsize=4)
def _drawn(detector: Detector, margin: float, writing: bool) -> Phantom:
    if not 0 <= margin <= 0.5:
        raise ValueError(f"margin: {margin} is outside 0 to 0.5")
    scale = detector.px_per_mm
    height, width = (round(side * scale) + 2 * round(margin * side * scale) for side in PLATE_MM)
    if min(height, width) < 64:
        raise ValueError(f"detector: pixels of {detector.pixel_mm} mm leave {height} x {width}, expected at least 64")
    down = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / scale
    along = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / scale
    coverage = grid_lines(down, along, 1 / scale)
    classes = np.where(coverage > 0, GRID, BACKGROUND).astype(np.uint8)
    if writing:
        text = written(height, width, scale)
        text[coverage > 0] = 0
        classes[text > 0] = WRITING
        coverage = np.maximum(coverage, text)
    discs = geometry.discs()
    discs["y"] = (height - 1) / 2 + discs["down_mm"] * scale
    discs["x"] = (width - 1) / 2 + discs["along_mm"] * scale
    discs["radius_px"] = discs["diameter_mm"] / 2 * scale
    for y, x, radius, column in discs[["y", "x", "radius_px", "column"]].to_numpy():
        add_disc(classes, coverage, y, x, radius, int(column) + 1)
    coverage = gaussian_filter(coverage, detector.blur_px)
    classes[(coverage > 1e-3) & (classes == BACKGROUND)] = GRID
    for array in (classes, coverage):
        array.flags.writeable = False
    return Phantom(classes, coverage, discs, detector, margin)


def grid_lines(down_mm: NDArray[np.float32], along_mm: NDArray[np.float32], pixel_mm: float) -> NDArray[np.float32]:
    """Share of each pixel (H, W) that a grid line covers; lines stand around the cells that exist."""
    there = np.pad(CELLS, 1)
    turn = np.float32(math.sqrt(2) / PITCH_MM)
    total, difference = 16 + down_mm[:, None] * turn, 0.5 + along_mm[None, :] * turn
    shares = []
    for position, other, cells in (
        ((total + difference) / 2, (total - difference) / 2, there),  # lines of equal thickness
        ((total - difference) / 2, (total + difference) / 2, there.T),  # lines of equal diameter
    ):
        line = np.clip(np.rint(position), 0, 16)
        share = np.clip(0.5 + (LINE_MM / 2 - np.abs(position - line) * PITCH_MM) / np.float32(pixel_mm), 0, 1)
        k, cell = line.astype(np.int8), np.clip(np.floor(other), -1, 16).astype(np.int8) + 1
        share[~(cells[cell, k] | cells[cell, k + 1])] = 0
        shares.append(share)
    return np.maximum(*shares).astype(np.float32)


def add_disc(
    classes: NDArray[np.uint8], coverage: NDArray[np.float32], y: float, x: float, radius_px: float, material: int
) -> None:
    """Draw a disc into both maps, in place; pixels on its rim are covered in part."""
    n, y0, x0 = int(radius_px + 4), round(y), round(x)
    fine = (np.arange(-n * FINE, (n + 1) * FINE) + 0.5) / FINE - 0.5
    inside = (fine[:, None] + y0 - y) ** 2 + (fine[None, :] + x0 - x) ** 2 < radius_px**2
    share = inside.reshape(2 * n + 1, FINE, 2 * n + 1, FINE).mean((1, 3))
    near = np.hypot(*np.mgrid[-n : n + 1, -n : n + 1]) < radius_px + 3.5
    window = np.s_[max(0, y0 - n) : y0 + n + 1, max(0, x0 - n) : x0 + n + 1]
    own = np.s_[max(0, n - y0) :, max(0, n - x0) :]  # what of the square lies in the image
    height, width = coverage[window].shape
    coverage[window] = np.maximum(coverage[window], share[own][:height, :width])
    classes[window][near[own][:height, :width]] = material


def written(height: int, width: int, px_per_mm: float) -> NDArray[np.float32]:
    """The diameters beside the rows and the thicknesses beside the columns (H, W), along the grid's direction."""
    canvas = Image.new("L", (width, height))
    font = ImageFont.load_default(size=max(6.0, 2.8 * px_per_mm))
    labels = []
    for i in range(16):
        columns, rows = np.flatnonzero(CELLS[i]), np.flatnonzero(CELLS[:, i])
        beside = columns[0] - 0.8 if i < 9 else columns[-1] + 1.8
        above = rows[0] - 0.8 if i < 10 else rows[-1] + 1.8
        labels += [(DIAMETERS_MM[i], (beside, i + 0.5), 45), (THICKNESSES_UM[i], (i + 0.5, above), -45)]
    for number, at, turn in labels:
        text = f"{number:g}"
        along, down = (float(v) for v in geometry.on_plate(*at))
        box = font.getbbox(text)
        label = Image.new("L", (math.ceil(box[2]) + 4, math.ceil(box[3]) + 4))
        ImageDraw.Draw(label).text((2, 2), text, fill=255, font=font)
        label = label.rotate(turn, Image.Resampling.BILINEAR, expand=True)
        y, x = (height - 1) / 2 + down * px_per_mm, (width - 1) / 2 + along * px_per_mm
        canvas.paste(255, (round(x - label.width / 2), round(y - label.height / 2)), label)
    return np.asarray(canvas, np.float32) / np.float32(255)


def crop(phantom: Phantom, margin: float) -> Phantom:
    """The same phantom with a smaller margin.

    Raises:
        ValueError: the margin is larger than the phantom's, or the phantom is turned.
    """
    if not 0 <= margin <= phantom.margin or phantom.turned:
        raise ValueError(f"margin: {margin} is not within 0 and the phantom's {phantom.margin} (or it is turned)")
    scale = phantom.detector.px_per_mm
    cut = [round(phantom.margin * side * scale) - round(margin * side * scale) for side in PLATE_MM]
    (height, width), (dy, dx) = phantom.shape, cut
    return replace(part(phantom, dy, height - dy, dx, width - dx), margin=margin)


def part(phantom: Phantom, top: int, bottom: int, left: int, right: int) -> Phantom:
    """Rows top to bottom and columns left to right (half-open) alone, with the discs whose centres lie in them."""
    window = np.s_[top:bottom, left:right]
    moved = phantom.discs.assign(y=phantom.discs["y"] - top, x=phantom.discs["x"] - left)
    inside = moved["y"].between(0, bottom - top - 1) & moved["x"].between(0, right - left - 1)
    here = moved[inside].reset_index(drop=True)
    return replace(phantom, classes=phantom.classes[window], coverage=phantom.coverage[window], discs=here)


def rotated(phantom: Phantom) -> Phantom:
    """Turned by 90 degrees, counter-clockwise as numpy.rot90."""
    width = phantom.shape[1]
    discs = phantom.discs.assign(y=width - 1 - phantom.discs["x"], x=phantom.discs["y"])
    classes, coverage = np.rot90(phantom.classes).copy(), np.rot90(phantom.coverage).copy()
    return replace(phantom, classes=classes, coverage=coverage, discs=discs, turned=True)


def without_discs(phantom: Phantom) -> Phantom:
    """The plate with its grid and writing alone; the places of the discs are kept."""
    gold = (phantom.classes > BACKGROUND) & (phantom.classes < GRID)
    classes, coverage = phantom.classes.copy(), phantom.coverage.copy()
    classes[gold], coverage[gold] = BACKGROUND, 0
    return replace(phantom, classes=classes, coverage=coverage)
