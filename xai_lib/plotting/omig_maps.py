"""Figures of study 6 that show maps: of virtual images, and upsampled ones of a whole phantom with cut-outs.

Usage::

    maps_on_virtual({"scenario #1": {"occlusion": o, "sensitivity": s, "OMIG": m}}, {"scenario #1": x})   # Fig. 3
    upsampled({"OMIG": smooth}, [box], phantom.pixel_mm)                                        # Figs. 4 to 6, 12
    upsampled({"OMIG": smooth}, [box], phantom.pixel_mm, images={"rotated": image})             # Fig. 7
    polarity_pair(image, {"paper-like": a, "disc reader": b}, box, phantom.pixel_mm)

Red: a brighter pixel lowers the predicted curve; blue: a darker one does; black is zero. The scale is the same on both
sides of zero and stated. Pixels that no virtual image has visited are NaN and grey.

Reference: Amanova et al. 2022, section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike, NDArray

from xai_lib.plotting.cdmam_images import GREYS, WIDTH, Box, show_part, show_whole
from xai_lib.plotting.common import BLACK, BLUE, SKY
from xai_lib.plotting.maps import ROBUST

COLOURS = LinearSegmentedColormap.from_list(  # few levels make a small file; this red is seen on black by all
    "blue_black_red", [SKY, BLUE, BLACK, "#CC3311", "#FF9478"], 65
).with_extremes(bad="0.6")
TALLEST = 6.2  # inches
UNITS = {
    "OMIG": "normalised grey",
    "sensitivity": "µm per norm. grey",
    "clipped sensitivity": "µm per norm. grey",
    "occlusion": "µm",
}
MEANING = ("red: a brighter pixel lowers the predicted curve; ", "blue: a darker one does; grey: not visited")


def maps_on_virtual(
    maps: Mapping[str, Mapping[str, ArrayLike]],
    images: Mapping[str, ArrayLike] | None = None,
    inside: ArrayLike | None = None,
) -> Figure:
    """A row per virtual image, a column per method, each map on its own scale, which stands below it (Fig. 3).

    Args:
        maps: (S, S) by image and by method.
        images: the virtual images, in a first column.
        inside: bool (S, S), where the scales are taken, as in `upsampled`.

    Raises:
        ValueError: there is no map, or none of its values is finite.
    """
    methods = list(dict.fromkeys(name for found in maps.values() for name in found))
    if not methods:
        raise ValueError("maps: there is none, expected at least one by image and by method")
    columns = (["image"] if images else []) + methods
    side = min(WIDTH / len(columns), 2.2)
    size = (side * len(columns), (side + 0.12) * len(maps) + 0.4)
    figure, grid = plt.subplots(len(maps), len(columns), figsize=size, squeeze=False, layout="constrained")
    for k, (row, (title, found)) in enumerate(zip(grid, maps.items(), strict=True)):
        for axes, column in zip(row, columns, strict=True):
            axes.set(xticks=[], yticks=[])
            if column in found:
                limit = strongest(found[column], inside)
                axes.imshow(found[column], interpolation="nearest", cmap=COLOURS, vmin=-limit, vmax=limit)
                axes.set_xlabel(f"± {limit:.2g} {UNITS.get(column, '')}", fontsize=7.5)
            elif column == "image" and images and title in images:
                axes.imshow(images[title], interpolation="nearest", **_grey(np.asarray(images[title], float)))
            axes.set_title("" if k else column, fontsize=8.5)
        row[0].set_ylabel(title, fontsize=8.5)
    return figure


def upsampled(
    maps: Mapping[str, ArrayLike],
    boxes: Sequence[Box] = (),
    pixel_mm: float = 0.06,
    limit: float | None = None,
    inside: ArrayLike | None = None,
    images: Mapping[str, ArrayLike] | None = None,
    units: Mapping[str, str] | None = None,
) -> Figure:
    """Whole maps side by side, and below each its cut-outs; of one map alone the cut-outs stand beside it.

    Args:
        maps: (H, W) by title, NaN where not visited; all of one size.
        boxes: of the cut-outs, in pixels.
        pixel_mm: side of a pixel.
        limit: value of the strongest colour, for all maps; None: the 99.5th percentile of each map's absolute values.
        inside: bool (H, W), where that percentile is taken, for example inside the cells of the phantom: the border
            holds the largest values. None: everywhere.
        images: in grey before the maps, of the same size.
        units: of the maps, by title; None: those of the method whose name begins the title.

    Raises:
        ValueError: there is no map, one has another size or no finite value, a box sticks out.
    """
    if not maps:
        raise ValueError("maps: there is none, expected at least one by its title")
    arrays = {title: np.asarray(values, float) for title, values in {**(images or {}), **maps}.items()}
    height, width = next(iter(arrays.values())).shape
    for title, values in arrays.items():
        if values.shape != (height, width):
            raise ValueError(f"maps: {title}: shape {values.shape}, expected {(height, width)} as the first")
    if any(not (0 <= top < bottom <= height and 0 <= left < right <= width) for top, left, bottom, right in boxes):
        raise ValueError(f"boxes: {list(boxes)} stick out of {(height, width)}")
    figure, columns = _panels(len(arrays), len(boxes), height / width)
    for column, (title, values) in zip(columns, arrays.items(), strict=True):
        if title in maps:
            strong = limit or strongest(values, inside)
            look: dict[str, Any] = {"cmap": COLOURS, "vmin": -strong, "vmax": strong}
        else:
            look = _grey(values)
        shown = show_whole(column[0], values, boxes, pixel_mm, **look)
        for number, (axes, box) in enumerate(zip(column[1:], boxes, strict=True), 1):
            show_part(axes, values, box, pixel_mm, **look)
            axes.set_title(f"cut-out {number}" if len(boxes) > 1 else "", fontsize=8)
        column[0].set_title(title, fontsize=8.5)
        unit = UNITS.get(title.split(",")[0], "") if title in maps else "grey levels"
        colour_bar(figure, shown, column, (units or {}).get(title, unit))
    _explain(figure)
    return figure


def polarity_pair(
    image: ArrayLike,
    maps: Mapping[str, ArrayLike],
    box: Box,
    pixel_mm: float = 0.06,
    notes: Mapping[str, str] | None = None,
    inside: ArrayLike | None = None,
) -> Figure:
    """One cut-out of the image and of the maps of several networks, each on its own scale, with a note below each.

    Args:
        image: grey levels (H, W).
        maps: (H, W) by network.
        box: of the cut-out, in pixels.
        pixel_mm: side of a pixel.
        notes: what a map says about its network, by network; "image" for the image.
        inside: bool (H, W), where the scales are taken, as in `upsampled`.
    """
    count = len(maps) + 1
    size = (WIDTH, WIDTH / count + 1.1)
    figure, panels = plt.subplots(1, count, figsize=size, layout="constrained")
    shown = show_part(panels[0], image, box, pixel_mm, **_grey(np.asarray(image, float)))
    colour_bar(figure, shown, [panels[0]], "grey levels")
    panels[0].set_title("image", fontsize=8.5)
    for axes, (network, values) in zip(panels[1:], maps.items(), strict=True):
        strong = strongest(values, inside)
        shown = show_part(axes, values, box, pixel_mm, cmap=COLOURS, vmin=-strong, vmax=strong)
        axes.set_title(network, fontsize=8.5)
        colour_bar(figure, shown, [axes], UNITS["OMIG"])
    for axes, name in zip(panels, ("image", *maps), strict=True):
        axes.text(0.5, -0.03, (notes or {}).get(name, ""), transform=axes.transAxes, fontsize=8, ha="center", va="top")
    _explain(figure)
    return figure


def strongest(values: ArrayLike, inside: ArrayLike | None = None) -> float:
    """Value of the strongest colour: the 99.5th percentile of the absolute values that are finite, and inside.

    Raises:
        ValueError: there is no such value.
    """
    array = np.abs(np.asarray(values, float))
    chosen = array[np.isfinite(array) & (True if inside is None else np.asarray(inside, bool))]
    if not chosen.size:
        raise ValueError(f"maps: none of {array.size} values is finite and inside, expected some to set the colours by")
    return max(float(np.percentile(chosen, ROBUST)), float(chosen.max()) * 1e-3, 1e-12)


def colour_bar(figure: Figure, shown: AxesImage, panels: Sequence[Axes], unit: str) -> None:
    """A bar below the panels, with both ends, zero where it lies between them, and the unit."""
    low, high = shown.get_clim()
    ticks = [low, 0, high] if low < 0 < high else [low, high]
    names = [f"{tick:.0f}" if abs(tick) >= 100 else f"{tick:.2g}".replace("-", "−") for tick in ticks]
    bar = figure.colorbar(shown, ax=list(panels), orientation="horizontal", ticks=ticks, pad=0.03, aspect=40)
    bar.ax.set_xticklabels(names, fontsize=7.5)
    bar.ax.get_xticklabels()[0].set_horizontalalignment("left")
    bar.ax.get_xticklabels()[-1].set_horizontalalignment("right")
    bar.set_label(unit, fontsize=7.5)


def _explain(figure: Figure) -> None:
    figure.supxlabel(("" if figure.get_figwidth() > 5.5 else "\n").join(MEANING), fontsize=7.5)


def _grey(values: NDArray[np.float64]) -> dict[str, Any]:
    """Grey levels between two percentiles of an image."""
    low, high = np.nanpercentile(values[:: 1 + values.shape[0] // 500], (0.5, 99.5))
    return {"cmap": GREYS, "vmin": low, "vmax": high}


def _panels(count: int, cuts: int, tall: float) -> tuple[Figure, list[list[Axes]]]:
    """For each of `count` maps, `tall` times as high as wide, the axes of the whole map and of its cut-outs."""
    if count == 1 and cuts:
        across = 1 / tall + 1 / cuts  # of the figure, where its height is 1
        height = min(0.95 * WIDTH / across, TALLEST)
        mosaic: list[Any] = [["whole", f"{k}"] for k in range(cuts)]
        figure, named = plt.subplot_mosaic(
            mosaic, figsize=(height * across, height + 0.8), width_ratios=(1 / tall, 1 / cuts), layout="constrained"
        )
        return figure, [list(named.values())]
    width = min(WIDTH / count, TALLEST / (tall + cuts))
    size = (width * count, width * (tall + cuts) + 1.0 - 0.1 * count)
    figure, grid = plt.subplots(
        1 + cuts, count, figsize=size, height_ratios=[tall, *[1.0] * cuts], squeeze=False, layout="constrained"
    )
    return figure, grid.T.tolist()
