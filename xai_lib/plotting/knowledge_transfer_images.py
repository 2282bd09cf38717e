"""Figures of study 4 that show regions of interest: recipes, activation maps, and patch replacement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional

from xai_lib.data import Case
from xai_lib.data.mammograms import Box
from xai_lib.data.rois import RECIPES, window
from xai_lib.patch_replacement import CONTENTS, PatchReplacement
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, show_image
from xai_lib.plotting.mammograms import draw_boxes

WIDTH = 8.0  # inches
YELLOW = "#F0E442"
EDGE: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=1.8, foreground=BLACK)]
OUTLINE = [patheffects.withStroke(linewidth=2.4, foreground=BLACK)]  # of a mass, to be seen on any colour
WINDOWS = {"tight": (ORANGE, "-"), "double_square": (SKY, "--"), "double": (YELLOW, ":"), "context": (BLUE, "-.")}
REGIONS = {"calcifications": ORANGE, "dense": SKY, "noise": PURPLE}
INTERPOLATIONS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "nearest": {"mode": "nearest-exact"},
}
LETTERS = {"lesion": ("L", ORANGE), "background": ("B", BLUE)}
SHARE = "share of the map's maximum"


def heat(over: bool = True) -> ListedColormap:
    """Colours of an activation map, from violet over orange to yellow; over an image clear at 0, ever denser above."""
    colours = plt.get_cmap("inferno")(np.linspace(0.2 if over else 0, 0.97, 256))
    if over:
        colours[:, 3] = np.linspace(0.15, 0.85, 256)
    return ListedColormap(colours, "heat")


def resized(values: ArrayLike, shape: tuple[int, int], interpolation: str = "bilinear") -> NDArray[np.float64]:
    """A small map (h, w) at the size of its image; bilinear as in section 5.1.2, or "nearest" to see the cells.

    Raises:
        ValueError: an unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation: {interpolation!r} is unknown, expected one of {', '.join(INTERPOLATIONS)}")
    small = torch.as_tensor(np.asarray(values, float))[None, None]  # (1, 1, h, w)
    return functional.interpolate(small, shape, **INTERPOLATIONS[interpolation])[0, 0].numpy()


def show_roi(axes: Axes, case: Case, title: str = "") -> None:
    """`show_image` with a scale bar that fits: 10, 5, 2 or 1 mm, at most half of the ROI; none if the size is unknown.

    It is white with a black edge, so that it can be read on any tissue.
    """
    show_image(axes, case, title=title, bar=False)
    axes.title.set_fontsize(7.5)
    height, width = case.image.shape[1:]
    fitting = [mm for mm in (10, 5, 2, 1) if case.pixel_mm and mm / case.pixel_mm <= width / 2]
    if fitting and case.pixel_mm:
        left, length = 0.05 * width, fitting[0] / case.pixel_mm
        for colour, thick in ((BLACK, 4.0), ("white", 2.2)):
            axes.plot([left, left + length], [0.95 * height] * 2, color=colour, lw=thick)
        note = axes.text(left, 0.91 * height, f"{fitting[0]} mm", color="white", fontsize=7, va="bottom")
        note.set_path_effects(EDGE)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def show_activation(
    axes: Axes, case: Case, values: ArrayLike, title: str = "", interpolation: str = "bilinear", over: bool = True
) -> None:
    """An activation map (h, w) >= 0, divided by its maximum and then resized (section 5.1.2).

    Args:
        axes: where to draw.
        case: image and mask.
        values: the map.
        title: above it.
        interpolation: see `resized`.
        over: draw the map over the image; False: the map alone.
    """
    small = np.asarray(values, float)
    height, width = case.image.shape[1:]
    show_image(axes, case, title=title, bar=False)
    axes.title.set_fontsize(7.5)
    plt.setp(axes.collections, path_effects=OUTLINE)
    axes.imshow(resized(small / (small.max() or 1), (height, width), interpolation), cmap=heat(over), vmin=0, vmax=1)


def recipe_rows(
    cases: Sequence[Case], cuts: Sequence[Mapping[str, Case]], titles: Sequence[str], context: int = 224
) -> Figure:
    """Each image with the windows of the recipes, then the ROIs that they give (Fig. 2, Table 1).

    A window and the frame of its ROI have the same colour and dash. What lies outside the image is hatched.

    Args:
        cases: the images; the windows are those of the largest box of each.
        cuts: for each image its ROIs by recipe, as `data.rois.rois` makes them.
        titles: one per image.
        context: smallest side of the mass-centred window, in pixels of the image, as it was given to `rois`.
    """
    names = list(dict.fromkeys(name for found in cuts for name in found))
    kinds = {name: RECIPES[name].window for name in names}
    figure, grid = _grid(len(cases), len(names) + 1)
    for k, (row, case, found, title) in enumerate(zip(grid, cases, cuts, titles, strict=True)):
        show_roi(row[0], case, title)
        row0, col0, row1, col1 = max(case.boxes.tolist(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        windows = {kind: window((row0, col0, row1, col1), kind, context) for kind in kinds.values()}
        for kind, where in windows.items():
            draw_boxes(row[0], [where], *WINDOWS[kind], width=1.6)
        _show_all(row[0], case, list(windows.values()))
        for ax, name in zip(row[1:], names, strict=True):
            ax.set_axis_off()
            if name in found:
                show_roi(ax, found[name], "" if k else name.replace("_", " "))
                colour, dash = WINDOWS[kinds[name]]
                ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False, ec=colour, ls=dash, lw=3.5))
    return figure


def activation_rows(
    cases: Sequence[Case],
    maps: Sequence[Mapping[str, ArrayLike]],
    titles: Sequence[str],
    regions: Sequence[Mapping[str, ArrayLike]] | None = None,
    notes: Sequence[Mapping[str, str]] | None = None,
    masks: bool = True,
    over: bool = True,
    interpolation: str = "bilinear",
) -> Figure:
    """A row per ROI: the ROI with the outline of its mask, the mask, and activation maps by name (Figs. 4a and 7).

    Every map is divided by its own maximum, as in the paper: maps are alike in where they are high, not in how high.

    Args:
        cases: ROIs with masks.
        maps: for each ROI its maps (h, w) >= 0 by name, of any size.
        titles: one per ROI.
        regions: for each ROI, regions (H, W), bool, to be outlined on it by name, see `REGIONS`.
        notes: for each ROI a line below its maps, by name; for example how much of the map is inside the mass.
        masks: show the column of the masks.
        over: draw maps over their ROI; False: alone, as in Fig. 4a, whose ROIs are a case and its mask.
        interpolation: "bilinear" or "nearest".
    """
    names = list(dict.fromkeys(name for found in maps for name in found))
    first = 2 if masks else 1
    figure, grid = _grid(len(cases), len(names) + first, below=0.14 if notes else 0.0)
    drawn: dict[str, Line2D] = {"mass": Line2D([], [], color=GREEN, lw=1.4)}
    for k, (row, case, found, title) in enumerate(zip(grid, cases, maps, titles, strict=True)):
        show_roi(row[0], case, title)
        for name, region in (regions[k] if regions else {}).items():
            if np.asarray(region).any():
                row[0].contour(np.asarray(region, float), levels=[0.5], colors=[REGIONS[name]], linewidths=1.1)
                drawn[name] = Line2D([], [], color=REGIONS[name], lw=1.4)
        if masks and case.mask is not None:
            row[1].imshow(case.mask.numpy(), cmap="gray", vmin=0, vmax=1)
            row[1].set_title("" if k else "mask", fontsize=7.5)
        for ax in row[1:]:
            ax.set_axis_off()
        for ax, name in zip(row[first:], names, strict=True):
            if name in found:
                show_activation(ax, case, found[name], "" if k else name.replace("_", " "), interpolation, over)
                note = notes[k].get(name, "") if notes else ""
                ax.text(0.5, -0.03, note, transform=ax.transAxes, ha="center", va="top", fontsize=7)
    _share_bar(figure, grid, over)
    figure.legend(
        drawn.values(),
        [n.replace("dense", "dense tissue") for n in drawn],
        loc="outside lower left",
        ncols=4,
        fontsize=7.5,
        frameon=False,
    )
    return figure


def replacement_panels(
    cases: Sequence[Case],
    contents: Sequence[Mapping[str, ArrayLike]],
    found: Sequence[PatchReplacement],
    titles: Sequence[str],
    chosen: Sequence[tuple[int, int] | None] | None = None,
    interpolation: str = "bilinear",
) -> Figure:
    """A row per ROI: its grid, the images *Lesion* and *Background*, the cells' names, activation (Figs. 5, 8d, 9).

    Args:
        cases: ROIs.
        contents: for each ROI its images "lesion" and "background" (H, W) in [0, 1].
        found: what the network says.
        titles: one per ROI.
        chosen: for each ROI a cell (row, col) to be framed, with both distances of eq. 6 printed below; or None.
        interpolation: of the activation map.
    """
    cells = list(chosen) if chosen else [None] * len(cases)
    figure, grid = _grid(len(cases), 5, below=0.14 if any(cells) else 0.0)
    for k, (row, case, fills, result, title, cell) in enumerate(
        zip(grid, cases, contents, found, titles, cells, strict=True)
    ):
        show_roi(row[0], case, title)
        _cell_lines(row[0], result)
        for ax, name in zip(row[1:3], CONTENTS, strict=True):
            ax.imshow(np.asarray(fills[name], float), cmap="gray", vmin=0, vmax=1)
            ax.set_title("" if k else name.capitalize(), fontsize=7.5)
            ax.set_axis_off()
        show_image(row[3], case, False, "" if k else "L Lesion, B Background", bar=False)
        row[3].title.set_fontsize(7.5)
        _cell_names(row[3], result)
        if case.mask is not None:
            row[3].contour(case.mask.numpy(), levels=[0.5], colors=[BLACK], linewidths=1.6, zorder=2)
        show_activation(row[4], case, result.activation, "" if k else "activation", interpolation)
        if cell:
            _chosen(row, result, cell)
    _share_bar(figure, grid)
    return figure


def _grid(rows: int, columns: int, below: float = 0.0) -> tuple[Figure, NDArray[Any]]:
    """Panels as wide as they can be, at most 1.7 inches; a title's line above each, and `below` inches below."""
    side = min((WIDTH - 0.65) / columns, 1.7)
    size = (side * columns + 0.65, rows * (side + 0.2 + below) + 0.3)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _show_all(axes: Axes, case: Case, windows: list[Box]) -> None:
    """Widen the view to all windows; hatch what is outside the image."""
    height, width = case.image.shape[1:]
    top, left = np.minimum(np.min(windows, 0)[:2] - 2, 0)
    bottom, right = np.maximum(np.max(windows, 0)[2:] + 2, (height, width))
    axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))
    corner = (left - 0.5, top - 0.5)
    axes.add_patch(Rectangle(corner, right - left, bottom - top, fc="0.93", ec="0.7", hatch="////", lw=0, zorder=-1))


def _cell_lines(axes: Axes, found: PatchReplacement) -> None:
    """The grid of the cells."""
    bottom, right = (n * found.patch - 0.5 for n in found.activation.shape)
    style: dict[str, Any] = {"color": "white", "lw": 0.5, "alpha": 0.7}
    axes.hlines(np.arange(found.patch - 0.5, bottom, found.patch), -0.5, right, **style)
    axes.vlines(np.arange(found.patch - 0.5, right, found.patch), -0.5, bottom, **style)


def _cell_names(axes: Axes, found: PatchReplacement) -> None:
    """Colour and letter of every cell."""
    for (row, col), lesion in np.ndenumerate(found.labels):
        letter, colour = LETTERS[CONTENTS[0 if lesion else 1]]
        x, y = col * found.patch - 0.5, row * found.patch - 0.5
        axes.add_patch(Rectangle((x, y), found.patch, found.patch, fc=colour, ec="white", lw=0.3, alpha=0.45))
        half = found.patch / 2
        note = axes.text(x + half, y + half, letter, color="white", fontsize=7, ha="center", va="center")
        note.set_path_effects(EDGE)


def _chosen(row: Sequence[Axes], found: PatchReplacement, cell: tuple[int, int]) -> None:
    """Frame a cell in the first four panels, and print both distances."""
    top, left = (place * found.patch for place in cell)
    for ax in row[:4]:
        draw_boxes(ax, [(top, left, top + found.patch, left + found.patch)], "white", width=3)
        draw_boxes(ax, [(top, left, top + found.patch, left + found.patch)], BLACK, width=1.2)
    lesion, background = found.distances[:, cell[0], cell[1]]
    name = "Lesion" if found.labels[cell] else "Background"
    for ax, text in (
        (row[0], "framed cell:"),
        (row[1], f"distance {lesion:.3g}"),
        (row[2], f"distance {background:.3g}"),
        (row[3], f"the smaller: {name}"),
    ):
        ax.text(0.5, -0.04, text, transform=ax.transAxes, ha="center", va="top", fontsize=7.5)


def _share_bar(figure: Figure, grid: NDArray[Any], over: bool = True) -> None:
    """One colour bar for all maps; over an image its ground is a middle grey, so that it has the maps' colours."""
    place: dict[str, Any] = {"fraction": 0.02, "pad": 0.01, "aspect": min(12 * len(grid), 36)}
    bar = figure.colorbar(ScalarMappable(cmap=heat(over)), ax=list(grid.flat), **place)
    bar.ax.set_facecolor("0.45")
    bar.set_label(SHARE, fontsize=7.5)
    bar.ax.tick_params(labelsize=7)
