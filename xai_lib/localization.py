"""Regions of a breast ultrasound image, the pointing game, and its chance levels.

Usage::

    areas = regions(mask, pixel_mm=0.08)        # mass, 5 mm ring, below, as bits of one array
    points = extremes(cam, areas.shape)         # (row, col) of maximum and minimum
    pointing_game(cam, areas)                   # {"mass": False, "ring": True, "below": False, "any": True}
    chance = {name: two_points(p) for name, p in area_shares(areas).items()}

Reference: Byra et al. 2022, "Evaluations", Fig. 3 and Tab. 2; Zhang et al. 2018 for the pointing game.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.morphology import disk

REGIONS = {"mass": 1, "ring": 2, "below": 4}
COLUMNS = (*REGIONS, "any")


def regions(
    mask: ArrayLike,
    pixel_mm: float | tuple[float, float] | None = None,
    ring_mm: float = 5.0,
    ring_fraction: float | None = None,
    ring: str = "euclidean",
    below: str = "beyond_ring",
) -> NDArray[np.uint8]:
    """Mark the paper's three regions as bits of one array (H, W): 1 mass, 2 ring, 4 below (see `REGIONS`).

    Args:
        mask: bool (H, W), the annotated mass.
        pixel_mm: pixel size in mm, one number or (row, column).
        ring_mm: width of the ring; the paper's 5 mm.
        ring_fraction: width of the ring as a share of the mass's equivalent diameter, for images whose pixel size is
            unknown; then `pixel_mm` is not used.
        ring: "euclidean", all pixels whose centre is within the width of the centre of a mass pixel; "disk", dilation
            with a disk in pixels, which on pixels that are not square is an ellipse in the tissue.
        below: in each column of the mass, what is deeper than its lowest pixel there, to the image's bottom:
            "touching", all of it, so that it shares pixels with the ring; "beyond_ring", without the ring (disjoint
            regions).

    Raises:
        ValueError: an empty mask, no usable pixel size, or an unknown option.
    """
    inside = np.asarray(mask, bool)
    if inside.ndim != 2 or not inside.any():
        raise ValueError(
            f"mask: expected (H, W) with at least one pixel, got shape {inside.shape}, {inside.sum()} pixels"
        )
    if below not in ("beyond_ring", "touching") or ring not in ("euclidean", "disk"):
        raise ValueError(
            f"below: {below!r} is not 'beyond_ring' or 'touching', or ring: {ring!r} is not 'euclidean' or 'disk'"
        )
    if ring_fraction is not None:
        size, width = np.ones(2), ring_fraction * 2 * np.sqrt(inside.sum() / np.pi)
    else:
        size, width = _pixel_size(pixel_mm), ring_mm
    if not 0 < width < np.inf:
        name, value = ("ring_mm", ring_mm) if ring_fraction is None else ("ring_fraction", ring_fraction)
        raise ValueError(f"{name}: {value!r} gives no ring, expected a positive number")
    if ring == "disk":
        around = ndimage.binary_dilation(inside, disk(round(width / size.mean()))) & ~inside
    else:
        around = (ndimage.distance_transform_edt(~inside, sampling=size) <= width) & ~inside
    under = np.maximum.accumulate(inside, axis=0) & ~inside & (np.cumsum(inside[::-1], axis=0)[::-1] == 0)
    if below == "beyond_ring":
        under &= ~around
    return (inside * REGIONS["mass"] + around * REGIONS["ring"] + under * REGIONS["below"]).astype(np.uint8)


def _pixel_size(pixel_mm: object) -> NDArray[np.float64]:
    """Pixel size as (row, column) in mm."""
    given = np.asarray(pixel_mm)
    if given.dtype.kind not in "iuf" or given.shape not in ((), (2,)) or not ((given > 0) & (given < np.inf)).all():
        raise ValueError(
            f"pixel_mm: {pixel_mm!r} gives no ring in mm; expected one positive number or (row, column), "
            "or a ring_fraction where the size is unknown"
        )
    return np.broadcast_to(given.astype(float), 2)


@dataclass(frozen=True)
class Extremes:
    """Points of the largest and smallest map value, (row, col) in image pixels, and how many places tie for each."""

    maximum: tuple[float, float]
    minimum: tuple[float, float]
    ties: tuple[int, int]


def extremes(cam: ArrayLike, shape: tuple[int, int], offset: tuple[float, float] = (0.0, 0.0)) -> Extremes:
    """Find maximum and minimum of a map (h, w) and place them on an image of `shape` (H, W).

    Args:
        cam: the map, best on its own grid, so that the point is the centre of the extreme cell. Of equal values the
            first in row-major order counts; a resized map has flat borders, where that drifts to the edge.
        shape: of the image.
        offset: (rows, cols) added to the points, in image pixels; see `alignment.cell_offset`.

    Returns:
        Points clipped to the image.

    Raises:
        ValueError: a map that is not finite or not (h, w).
    """
    values = np.asarray(cam, float)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"cam: expected finite values of shape (h, w), got shape {values.shape}")
    points, ties = [], []
    for best in (values.max(), values.min()):
        places = np.argwhere(values == best)
        step = np.array(shape) / values.shape
        point = (places[0] + 0.5) * step - 0.5 + offset
        points.append(tuple(np.clip(point, 0, np.array(shape) - 1)))
        ties.append(len(places))
    return Extremes(points[0], points[1], (ties[0], ties[1]))


def region_hits(point: tuple[float, float], areas: NDArray[np.uint8], tolerance_px: float = 0) -> dict[str, bool]:
    """Which regions hold `point` (row, col), or come within `tolerance_px` of it."""
    row, col = (round(float(v)) for v in point)
    if tolerance_px > 0:
        r = int(np.ceil(tolerance_px))
        window = areas[max(row - r, 0) : row + r + 1, max(col - r, 0) : col + r + 1]
        rows, cols = np.ogrid[: window.shape[0], : window.shape[1]]
        near = np.hypot(rows - min(row, r), cols - min(col, r)) <= tolerance_px
        bits = int(np.bitwise_or.reduce(window[near], initial=0))
    else:
        bits = int(areas[row, col])
    return {name: bool(bits & bit) for name, bit in REGIONS.items()}


def pointing_game(
    cam: ArrayLike,
    areas: NDArray[np.uint8],
    which: str = "both",
    tolerance_px: float = 0,
    offset: tuple[float, float] = (0.0, 0.0),
) -> dict[str, bool]:
    """Pointing game of the paper: is the maximum, the minimum, or either of them ("both") in each region?

    Returns:
        ``{"mass": ..., "ring": ..., "below": ..., "any": ...}``.
    """
    if which not in ("maximum", "minimum", "both"):
        raise ValueError(f"which: {which!r} is not 'maximum', 'minimum' or 'both'")
    found = extremes(cam, (areas.shape[0], areas.shape[1]), offset)
    points = {"maximum": [found.maximum], "minimum": [found.minimum], "both": [found.maximum, found.minimum]}[which]
    per_point = [region_hits(p, areas, tolerance_px) for p in points]
    hits = {name: any(h[name] for h in per_point) for name in REGIONS}
    return {**hits, "any": any(hits.values())}


def area_shares(areas: NDArray[np.uint8]) -> dict[str, float]:
    """Share of the image that each region covers, and any of them: the chance that one uniform point hits."""
    return {name: float((areas & bit > 0).mean()) for name, bit in _bits().items()}


def cell_shares(areas: NDArray[np.uint8], grid: tuple[int, int]) -> dict[str, float]:
    """Share of the cells of a (h, w) grid whose centre lies in each region: one random cell of a CAM."""
    steps = zip(grid, areas.shape, strict=True)
    rows, cols = (np.round((np.arange(n) + 0.5) * size / n - 0.5).astype(int) for n, size in steps)
    return area_shares(areas[np.ix_(rows, cols)])


def centre_hits(areas: NDArray[np.uint8]) -> dict[str, bool]:
    """Which regions hold the centre of the image: a pointer that ignores the network."""
    bits = int(areas[areas.shape[0] // 2, areas.shape[1] // 2])
    return {name: bool(bits & bit) for name, bit in _bits().items()}


def two_points(share: float, cells: int | None = None) -> float:
    """Chance that at least one of two random points hits a region of this share.

    Two independent points: ``1 - (1 - p)^2``. With `cells`, two different cells out of so many, as maximum and minimum
    of a map are: ``1 - (1 - p) (n (1 - p) - 1) / (n - 1)``; the two are the same one where the map has one cell.
    """
    miss = 1 - share
    if cells is None:
        return 1 - miss * miss
    return share if cells == 1 else 1 - miss * max(cells * miss - 1, 0) / (cells - 1)


def _bits() -> dict[str, int]:
    return {**REGIONS, "any": sum(REGIONS.values())}
