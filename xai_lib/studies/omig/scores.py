"""Study 6, scores: an upsampled map held against the discs and the grid of the phantom that it explains.

Usage::

    discs = score_discs(total, visits, phantom, probability)         # one row per disc
    cells = score_cells(total, visits, phantom)                      # one row per cell: its grid lines

A map is a sum over virtual images and a count of visits per pixel; its value is the mean per visit. Border, writing
and the empty corners hold the largest values of all and are left out: background is what lies inside the cells.

The scale of every score is the standard deviation of one visit, found from the background pixels weighted by their
visits. So the mean of n visits has the standard deviation sd / sqrt(n), where the phantom is not seen.

Reference: Amanova et al. 2022, section 3, Figs. 3 to 7 (maps without numbers).
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xai_lib import statistics
from xai_lib.cdmam.geometry import PITCH_MM
from xai_lib.cdmam.phantom import BACKGROUND, GRID, Phantom
from xai_lib.omig_maps import smoothed

RING_PX = (5.0, 22.0)  # of a disc: from its radius plus the first to its radius plus the second
REACH = 1.1  # of the grid lines around a cell, as a multiple of the cell

Floats = NDArray[np.floating]
Counts = NDArray[np.integer]
Mask = NDArray[np.bool_]
Window = tuple[slice, slice]


def score_discs(
    total: Floats,
    visits: Counts,
    phantom: Phantom,
    probability: Floats,
    smooth_px: float = 7,
    polarity: int = -1,
) -> pd.DataFrame:
    """Every disc of the phantom against the ring around it.

    Args:
        total: sum of the map over all visits (H, W).
        visits: how often each pixel was visited (H, W).
        phantom: of this image; one without discs is scored at the places that its `discs` name.
        probability: the observer's chance to find the discs of each cell (16, 16).
        smooth_px: standard deviation of the Gaussian for `auc_smooth`.
        polarity: of the image: -1 where discs are darker than the background, 1 where they are brighter.

    Returns:
        row, column, place, diameter_mm, thickness_um, probability, polarity; `disc` and `ring`, means per visit; `sd`
        of one visit; disc_visits, ring_visits; `total`, the sum of (map - ring) over all visits of the disc; `auc` of
        the disc's pixels against the ring's and `auc_smooth` on the smoothed map, both of visited pixels. NaN where
        one side has no visit.

    Raises:
        ValueError: total, visits and phantom differ in shape, or polarity is neither -1 nor 1.
    """
    require_shape(total, visits, phantom)
    if polarity not in (-1, 1):
        raise ValueError(f"polarity: {polarity} is neither -1 (discs darker) nor 1 (discs brighter)")
    smooth = smoothed(total, visits, smooth_px)
    facts = ["row", "column", "place", "diameter_mm", "thickness_um"]
    heads = phantom.discs[facts].assign(
        probability=probability[phantom.discs["row"], phantom.discs["column"]],
        polarity=polarity,
        sd=sd_per_visit(total, visits, inside_cells(phantom)),
    )
    rows = []
    for y, x, radius in phantom.discs[["y", "x", "radius_px"]].to_numpy():
        window, dy, dx = around(y, x, radius + RING_PX[1], phantom.shape)
        away, seen = np.hypot(dy, dx), visits[window] > 0
        ring = (away > radius + RING_PX[0]) & (away < radius + RING_PX[1]) & (phantom.classes[window] == BACKGROUND)
        rows.append(score(total[window], visits[window], smooth[window], seen & (away < radius), seen & ring))
    names = ["disc", "ring", "disc_visits", "ring_visits", "total", "auc", "auc_smooth"]
    return pd.concat([heads.reset_index(drop=True), pd.DataFrame(rows, columns=names)], axis=1)


def score(total: Floats, visits: Counts, smooth: Floats, disc: Mask, ring: Mask) -> tuple[float, ...]:
    """disc, ring, disc_visits, ring_visits, total, auc and auc_smooth of `score_discs`, from a disc's window (h, w)."""
    in_disc, in_ring = mean_per_visit(total, visits, disc), mean_per_visit(total, visits, ring)
    seen = visits[disc].sum()
    both: tuple[float, ...] = (math.nan, math.nan)
    if disc.any() and ring.any():
        label = np.repeat([1, 0], [disc.sum(), ring.sum()])
        plain = total[disc] / visits[disc], total[ring] / visits[ring]
        both = tuple(statistics.auc(label, np.concatenate(of)) for of in (plain, (smooth[disc], smooth[ring])))
    return in_disc, in_ring, int(seen), int(visits[ring].sum()), seen * (in_disc - in_ring), *both


def score_cells(total: Floats, visits: Counts, phantom: Phantom) -> pd.DataFrame:
    """The grid lines around every cell against the cell's background.

    Returns:
        row, column; `grid` and `background`, means per visit; `sd` of one visit; grid_visits, background_visits. NaN
        where a side has no visit.

    Raises:
        ValueError: total, visits and phantom differ in shape.
    """
    require_shape(total, visits, phantom)
    half = half_diagonal_px(phantom)
    sd = sd_per_visit(total, visits, inside_cells(phantom))
    rows = []
    for row, column, y, x in centres(phantom)[["row", "column", "y", "x"]].to_numpy():
        window, dy, dx = around(y, x, REACH * half, phantom.shape)
        away, classes = np.abs(dy) + np.abs(dx), phantom.classes[window]
        masks = (classes == GRID) & (away < REACH * half), (classes == BACKGROUND) & (away < half)
        means = [mean_per_visit(total[window], visits[window], mask) for mask in masks]
        counts = [int(visits[window][mask].sum()) for mask in masks]
        rows.append((int(row), int(column), *means, sd, *counts))
    names = ["row", "column", "grid", "background", "sd", "grid_visits", "background_visits"]
    return pd.DataFrame(rows, columns=names)


def inside_cells(phantom: Phantom) -> Mask:
    """The background pixels inside the cells (H, W): no grid, no disc, no writing, no border, no empty corner."""
    half, inside = half_diagonal_px(phantom), np.zeros(phantom.shape, bool)
    for y, x in centres(phantom)[["y", "x"]].to_numpy():
        window, dy, dx = around(y, x, half, phantom.shape)
        inside[window] |= np.abs(dy) + np.abs(dx) < half
    return inside & (phantom.classes == BACKGROUND)


def sd_per_visit(total: Floats, visits: Counts, background: Mask) -> float:
    """Standard deviation of one visit, from the means of the background pixels: each weighs as often as it was visited.

    NaN with fewer than two visited pixels.
    """
    count = visits[background & (visits > 0)].astype(np.float64)
    if count.size < 2:
        return math.nan
    sums = total[background & (visits > 0)].astype(np.float64)
    return math.sqrt((count * (sums / count - sums.sum() / count.sum()) ** 2).sum() / (count.size - 1))


def mean_per_visit(total: Floats, visits: Counts, mask: Mask) -> float:
    """Sum of the map (H, W) over the masked pixels divided by their visits; NaN without a visit."""
    count = visits[mask].sum()
    return float(total[mask].sum(dtype=np.float64) / count) if count else math.nan


def half_diagonal_px(phantom: Phantom) -> float:
    """From the centre of a cell to its corner; cells stand on a corner."""
    return PITCH_MM / math.sqrt(2) / phantom.pixel_mm


def centres(phantom: Phantom) -> pd.DataFrame:
    """One row per cell: its central disc."""
    return phantom.discs[phantom.discs["place"] == "centre"]


def around(y: float, x: float, reach: float, shape: tuple[int, int]) -> tuple[Window, Floats, Floats]:
    """The window of the image around a place, and its pixels' distances down (h, 1) and right (1, w) of it."""
    (top, bottom), (left, right) = (
        (min(max(0, math.floor(at - reach)), size), min(max(0, math.ceil(at + reach) + 1), size))
        for at, size in ((y, shape[0]), (x, shape[1]))
    )
    return np.s_[top:bottom, left:right], np.arange(top, bottom)[:, None] - y, np.arange(left, right)[None, :] - x


def require_shape(total: Floats, visits: Counts, phantom: Phantom) -> None:
    """Refuse sums and visits (H, W) of another shape than the phantom's image, by a ValueError."""
    for name, part in (("total", total), ("visits", visits)):
        if part.shape != phantom.shape:
            raise ValueError(f"{name}: has shape {part.shape}, expected that of the phantom, {phantom.shape}")
