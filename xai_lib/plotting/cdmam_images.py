"""Figures of study 6 that show images of the phantom, and how images and maps of its size are drawn.

Usage::

    phantom_figure(simulate("#1", 0, phantom), phantom)       # Fig. 8
    virtual_images({"scenario #1": x, "rotated": turned})     # Fig. 1

A whole image is drawn in blocks of pixels, which keeps a figure small; cut-outs show every pixel. Millimetres are those
of the plate. Curves and matrices are in `cdmam`, maps in `omig_maps`.

Reference: Amanova et al. 2022.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from xai_lib.cdmam.geometry import DIAMETERS_MM, PITCH_MM, THICKNESSES_UM
from xai_lib.cdmam.phantom import GRID, Phantom
from xai_lib.plotting.common import BLACK, BLUE, ORANGE

WIDTH = 7.2  # inches
EDGED: dict[str, Any] = {"path_effects": [withStroke(linewidth=2, foreground="white")]}
GREYS = plt.get_cmap("gray", 24)  # few levels, so that noise makes a small file
DRAWN = 700  # blocks of a whole image each way, at most
Box = tuple[int, int, int, int]  # in pixels: top, left, bottom, right


def phantom_figure(image: ArrayLike, phantom: Phantom, cell: tuple[int, int] = (4, 9), cells: int = 3) -> Figure:
    """The whole phantom with its diameters and thicknesses along the edges, and a few cells at full size (Fig. 8).

    Args:
        image: grey levels (H, W).
        phantom: what was imaged.
        cell: row and column of the cell in the middle of the cut-out.
        cells: side of the cut-out, in cells.

    Raises:
        ValueError: the image and the phantom differ in size.
    """
    grey = np.asarray(image, float)
    if grey.shape != phantom.classes.shape:
        raise ValueError(f"image: shape {grey.shape}, expected {phantom.classes.shape} as the phantom")
    centres = phantom.discs[phantom.discs["place"] == "centre"].set_index(["row", "column"])[["y", "x"]]
    box = around(centres.xs(cell).to_numpy(float), cells * PITCH_MM / phantom.pixel_mm, grey.shape)
    low, high = np.percentile(
        grey[::5, ::5][phantom.classes[::5, ::5] < GRID], (0.3, 99.7)
    )  # the grid would hide discs
    share = grey.shape[1] / grey.shape[0]
    widths = (share, 1.0) if share < 1 else (1.0, 0.6)
    size = (WIDTH, 0.92 * WIDTH * widths[0] / sum(widths) / share)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=widths, layout="constrained")
    show_whole(left, grey, [box], phantom.pixel_mm, cmap=GREYS, vmin=low, vmax=high)
    show_part(right, grey, box, phantom.pixel_mm, cmap=GREYS, vmin=low, vmax=high)
    for steps, level, colour in ((DIAMETERS_MM, 0, BLUE), (THICKNESSES_UM, 1, ORANGE)):
        for k, value in enumerate(steps):
            first, second = centres.xs(k, level=level).to_numpy(float)[:2]  # the row, or the column, starts here
            dy, dx = first - second
            if k == 0:  # the phantom has no cell in this corner; the label stands beyond it
                first = 2 * first - second
            look: Any = {"ha": "right" if dx < 0 else "left", "va": "bottom" if dy < 0 else "top", "color": colour}
            left.text(first[1] + 0.6 * dx, first[0] + 0.6 * dy, f"{value:.2f}", fontsize=7, **look, **EDGED)
    left.set_title("diameter in mm (blue), thickness in µm (orange)", fontsize=8, pad=17)
    right.set_title(f"full size; middle: {DIAMETERS_MM[cell[0]]:.2f} mm, {THICKNESSES_UM[cell[1]]:.2f} µm", fontsize=8)
    return figure


def virtual_images(images: Mapping[str, ArrayLike], columns: int = 4) -> Figure:
    """Inputs of the network, downsampled by random rows and columns, each on its own grey scale (Fig. 1).

    Args:
        images: (S, S) by title.
        columns: panels in a row.

    Raises:
        ValueError: there is no image.
    """
    if not images:
        raise ValueError("images: there is none, expected at least one by its title")
    across = min(columns, len(images))
    down = -(-len(images) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(WIDTH * across / columns, (WIDTH / columns + 0.25) * down), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, image) in zip(grid.flat, images.items(), strict=False):
        low, high = np.nanpercentile(np.asarray(image, float), (0.5, 99.5))
        axes.imshow(image, cmap=GREYS, vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title, fontsize=8)
    return figure


def blocks(values: ArrayLike, size: int) -> NDArray[np.float64]:
    """Means of blocks of `size` by `size` pixels of an image (H, W), without the NaNs; NaN where all are NaN."""
    array = np.asarray(values, float)
    padded = np.pad(array, [(0, -n % size) for n in array.shape], constant_values=np.nan)
    cut = padded.reshape(padded.shape[0] // size, size, padded.shape[1] // size, size)
    count = np.isfinite(cut).sum((1, 3))
    return np.where(count > 0, np.nansum(cut, (1, 3)) / np.maximum(count, 1), np.nan)


def around(middle: ArrayLike, side: float, shape: tuple[int, ...]) -> Box:
    """Square of `side` pixels around a point (row, col), moved into the image of `shape` (H, W) where it sticks out."""
    low = [
        int(np.clip(round(m - side / 2), 0, max(n - side, 0))) for m, n in zip(np.asarray(middle), shape, strict=True)
    ]
    high = [min(a + round(side), n) for a, n in zip(low, shape, strict=True)]
    return low[0], low[1], high[0], high[1]


def show_whole(
    axes: Axes, values: ArrayLike, boxes: Sequence[Box], pixel_mm: float, bar: float = 20, **look: Any
) -> AxesImage:
    """Draw a whole image in blocks, at most `DRAWN` of them each way, with its boxes and a scale bar in millimetres."""
    array = np.asarray(values, float)
    height, width = array.shape
    small, extent = blocks(array, -(-max(height, width) // DRAWN)), (-0.5, width - 0.5, height - 0.5, -0.5)
    shown = axes.imshow(small, extent=extent, interpolation_stage="data", **look)
    for number, (top, left, bottom, right) in enumerate(boxes, 1):
        for colour, thick in ((BLACK, 2.4), ("white", 1.2)):
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=thick))
        if len(boxes) > 1:
            axes.text(left, top, f"{number} ", fontsize=8, ha="right", va="top", **EDGED)
    _scale(axes, (0, 0, height, width), pixel_mm, bar)
    return shown


def show_part(axes: Axes, values: ArrayLike, box: Box, pixel_mm: float, bar: float = 5, **look: Any) -> AxesImage:
    """Draw every pixel of a cut-out, with a scale bar in millimetres."""
    top, left, bottom, right = box
    part, extent = np.asarray(values)[top:bottom, left:right], (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
    shown = axes.imshow(part, extent=extent, interpolation_stage="data", **look)
    _scale(axes, box, pixel_mm, bar)
    return shown


def _scale(axes: Axes, window: Box, pixel_mm: float, bar: float) -> None:
    top, left, bottom, right = window
    y, x = bottom - 0.04 * (bottom - top), right - 0.04 * (right - left)
    for colour, thick in ((BLACK, 4), ("white", 2)):
        ends = [x - bar / pixel_mm, x]
        axes.plot(ends, [y, y], color=colour, lw=thick, solid_capstyle="butt", scalex=False, scaley=False)
    axes.text(x, y - 0.02 * (bottom - top), f"{bar:g} mm", fontsize=7.5, ha="right", va="bottom", **EDGED)
    axes.set_axis_off()
