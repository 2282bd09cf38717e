"""Reading a CDMAM image as an observer who must name one of four corners.

Usage::

    hits = detect(image, locate(image))          # hits.corner, hits.centre: (16, 16) bool
    many = detect_many(images, placements)       # many.corner: (N, 16, 16) bool

At each site of a cell the image is smoothed by a Gaussian that matches the disc (sd half its radius, but at least 1.5
pixels), and the darkest value within 0.25 mm is the site's; brightest where discs are brighter. The second disc is hit
when the corner that has it wins among the four. The disc in the centre is hit when the centre wins against the three
empty corners. Both are right in one case of four where nothing can be seen. A tie is no hit.

Reference: MedPhysQC, MG_CDMAM (search within 0.25 mm, matched smoothing); protocol of study 6, section 4.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from tqdm.auto import tqdm

from xai_lib.cdmam.geometry import CELLS, CORNERS, DIAMETERS_MM, on_plate, sites
from xai_lib.cdmam.locate import Placement

SEARCH_MM = 0.25
LEAST_SD_PX = 1.5


@dataclass(frozen=True, eq=False)
class Hits:
    """Which discs were found: bool, (16, 16) or (N, 16, 16), False where the phantom has no cell."""

    centre: NDArray[np.bool_]
    corner: NDArray[np.bool_]


def detect(image: ArrayLike, placement: Placement, search_mm: float = SEARCH_MM, flatten: bool = False) -> Hits:
    """Read every cell of one image (H, W).

    `flatten` takes away slow changes of the background (a curved surface through the medians of the cells), as recorded
    images have them. ValueError: the image is not (H, W), holds NaN, or does not hold the whole phantom.
    """
    pixels = np.asarray(image)
    if pixels.ndim != 2:
        raise ValueError(f"image: has the shape {pixels.shape}; expected (H, W)")
    slope = _slope_of_background(pixels, placement) if flatten else np.zeros((len(np.argwhere(CELLS)), 5))
    centre, corner = np.zeros_like(CELLS), np.zeros_like(CELLS)
    rows = np.argwhere(CELLS)[:, 0]
    for i in range(len(DIAMETERS_MM)):
        columns = np.flatnonzero(CELLS[i])
        value = _darkest(pixels, placement, i, search_mm) - slope[rows == i]  # (cells, 5): centre and corners 1 to 4
        at = CORNERS[i, columns][:, None] == np.arange(1, 5)
        corners = value[:, 1:]
        empty = np.where(at, np.inf, corners).min(axis=1)
        corner[i, columns] = corners[at] < empty
        centre[i, columns] = value[:, 0] < empty
    return Hits(centre, corner)


def detect_many(
    images: Iterable[ArrayLike],
    placements: Placement | Iterable[Placement],
    search_mm: float = SEARCH_MM,
    flatten: bool = False,
    progress: bool = True,
) -> Hits:
    """Read many images; one placement may serve all. ValueError as in `detect`, or if the numbers differ."""
    pictures = list(images)
    places = [placements] * len(pictures) if isinstance(placements, Placement) else list(placements)
    if len(places) != len(pictures):
        raise ValueError(f"placements: {len(places)} for {len(pictures)} images")
    pairs = tqdm(zip(pictures, places, strict=True), total=len(pictures), desc="reading", disable=not progress)
    hits = [detect(image, place, search_mm, flatten) for image, place in pairs]
    empty = np.zeros((0, *CELLS.shape), dtype=bool)
    return Hits(*(np.stack([getattr(h, name) for h in hits]) if hits else empty for name in ("centre", "corner")))


def background(image: ArrayLike, placement: Placement) -> NDArray[np.float64]:
    """Median grey level of every cell, in the order of `np.argwhere(CELLS)`: (205,)."""
    row, column = np.nonzero(CELLS)
    steps = np.linspace(-0.35, 0.35, 15)
    u, v = (a.ravel() for a in np.meshgrid(steps, steps))
    plate = on_plate(column[:, None] + 0.5 + u, row[:, None] + 0.5 + v)
    return np.median(map_coordinates(np.asarray(image), placement.pixels(*plate), order=0, output=float), axis=1)


def _darkest(image: NDArray, placement: Placement, row: int, search_mm: float) -> NDArray[np.float32]:
    """Smallest smoothed value around each site of a row of cells, (cells, 5); largest with its sign turned where discs
    are brighter.
    """
    plate = np.array([list(sites(row, int(j)).values()) for j in np.flatnonzero(CELLS[row])])  # (cells, 5, 2)
    y, x = (a.ravel() for a in placement.pixels(plate[..., 0], plate[..., 1]))
    sd = max(LEAST_SD_PX, DIAMETERS_MM[row] / 4 * placement.px_per_mm)
    search = max(search_mm * placement.px_per_mm, math.sqrt(0.5))  # at least the nearest pixel
    reach = math.ceil(search) + math.ceil(4 * sd) + 1
    steps = np.arange(-reach, reach + 1)
    y0, x0 = np.rint(y).astype(int), np.rint(x).astype(int)
    inner = math.ceil(search) + 1
    if min(y0.min(), x0.min()) < inner or y0.max() >= image.shape[0] - inner or x0.max() >= image.shape[1] - inner:
        raise ValueError(
            f"placement: discs of {DIAMETERS_MM[row]:g} mm lie outside the image of {image.shape[0]} x "
            f"{image.shape[1]} pixels"
        )
    rows = np.clip(y0[:, None] + steps, 0, image.shape[0] - 1)
    columns = np.clip(x0[:, None] + steps, 0, image.shape[1] - 1)
    patches = -placement.polarity * image[rows[:, :, None], columns[:, None, :]].astype(np.float32)
    if not np.isfinite(patches).all():
        raise ValueError("image: has NaN or infinite values")
    smooth = gaussian_filter(patches, (0, sd, sd))
    off_y, off_x = (y0 - y)[:, None, None] + steps[:, None], (x0 - x)[:, None, None] + steps
    return np.where(np.hypot(off_y, off_x) <= search, smooth, np.inf).min(axis=(1, 2)).reshape(-1, 5)


def _slope_of_background(image: NDArray, placement: Placement) -> NDArray[np.float64]:
    """Slow change of the background at every site (cells, 5), with the sign that `_darkest` gives it."""
    row, column = np.nonzero(CELLS)
    middles = (
        np.stack(on_plate(*(np.asarray(k + 0.5, float) for k in (column, row))), axis=-1)[:, None] / 100
    )  # (cells, 1, 2)
    places = np.array([list(sites(i, j).values()) for i, j in np.argwhere(CELLS).tolist()]) / 100

    def powers(at: NDArray[np.float64]) -> NDArray[np.float64]:
        a, d = at[..., 0], at[..., 1]
        return np.stack([np.ones_like(a), a, d, a * a, a * d, d * d], axis=-1)

    levels = background(image, placement)
    surface = np.linalg.lstsq(powers(middles)[:, 0], levels, rcond=None)[0]
    return -placement.polarity * (powers(places) @ surface)
