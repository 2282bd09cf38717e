"""Figures of study 5 that show mammograms: holes and what fills them, result masks, and the way of a mask as a GIF.

Usage::

    inpainting_rows(cases, holes, filled, twins, around=16)            # Fig. 2, right
    result_rows(cases, [{"ours": hole, "CAM 50": other}])              # Fig. 3
    data = way_gif(case, found.way[:, 0].numpy(), config.theta, config.cell)

Holes and masks are bool (H, W), True where pixels are removed; images are (H, W) in [0, 1]. The annotation is green.

Reference: Major et al. 2020, Figs. 2 and 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from xai_lib.data import Case
from xai_lib.deletion_region import full_size
from xai_lib.plotting.common import BLACK, GREEN, ORANGE, PURPLE
from xai_lib.plotting.knowledge_transfer_images import OUTLINE, show_roi

WIDTH = 9.0  # inches
GREYS = 60  # of the GIF; as many tinted ones inside the hole


def inpainting_rows(
    cases: Sequence[Case],
    holes: Sequence[ArrayLike],
    filled: Sequence[ArrayLike],
    twins: Sequence[ArrayLike] | None = None,
    around: int | None = 16,
    titles: Sequence[str] | None = None,
) -> Figure:
    """A row per image: the hole outlined, cut out, inpainted; the true healthy twin, and the difference to it.

    Args:
        cases: the images.
        holes: one per image.
        filled: the images with their holes inpainted.
        twins: the same images without the mass; all differences have one scale. None: both columns are left out.
        around: pixels to be seen around the hole, at least; all rows are cropped to one size. None: the whole image.
        titles: of each row.

    Raises:
        ValueError: no image, other numbers or shapes of arrays than of images, an empty hole.
    """
    names = _matched(cases, titles, holes=holes, filled=filled, **({} if twins is None else {"twins": twins}))
    cut = [_array("holes", hole, case, filled=True) for hole, case in zip(holes, cases, strict=True)]
    drawn = [_array("filled", image, case) for image, case in zip(filled, cases, strict=True)]
    true = [_array("twins", image, case) for image, case in zip(twins, cases, strict=True)] if twins is not None else []
    windows, count = _windows(cut, around), len(cases)
    headings = ["", "hole", "inpainted", *(["true healthy twin", "inpainted − twin"] if true else [])]
    figure, grid = _grid(count, len(headings), cut[0][windows[0]].shape)
    apart = [(image - other)[place] for image, other, place in zip(drawn, true, windows, strict=bool(true))]
    limit = max([float(np.abs(a).max()) for a in apart] + [1e-3])
    for k, (row, case, hole, image, place) in enumerate(zip(grid, cases, cut, drawn, windows, strict=True)):
        _show(row[0], case, place, title=names[k], mask=True)
        _outline(row[0], hole[place], ORANGE)
        _show(row[1], case, place)
        row[1].imshow(np.where(hole, 1.0, np.nan)[place], cmap=ListedColormap([PURPLE]), vmin=0, vmax=1)
        _show(row[2], case, place, image)
        if true:
            _show(row[3], case, place, true[k])
            signed = row[4].imshow(apart[k], cmap="RdBu_r", vmin=-limit, vmax=limit)
            row[4].set_axis_off()
        for ax, heading in zip(row[1:], headings[1:], strict=True):
            ax.set_title("" if k else heading, fontsize=8.5)
    if true:
        bar = figure.colorbar(signed, ax=list(grid[:, 4]), fraction=0.08, pad=0.03, aspect=16 * count)
        bar.set_label("grey values (0 to 1); red: brighter than the twin", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    _legend(figure, cases, {"hole": ORANGE})
    return figure


def result_rows(
    cases: Sequence[Case],
    masks: Sequence[Mapping[str, ArrayLike]],
    titles: Sequence[str] | None = None,
    around: int | None = None,
) -> Figure:
    """A row per image: the image with its annotation, then every result mask over it (Fig. 3).

    Args:
        cases: the images.
        masks: for each image its masks by name; an empty one says so.
        titles: of each row.
        around: pixels to be seen around the annotation, at least; None: the whole image.

    Raises:
        ValueError: no image or mask, other numbers or shapes of arrays than of images, `around` without an annotation.
    """
    rows = _matched(cases, titles, masks=masks)
    names = list(dict.fromkeys(name for found in masks for name in found))
    marked = [_annotation(case) for case in cases]
    if not names:
        raise ValueError("masks: there is none, expected at least one by name for each image")
    if around is not None and not all(area.any() for area in marked):
        raise ValueError("around: an image has no annotation to crop to; give None")
    windows = _windows(marked, around)
    figure, grid = _grid(len(cases), len(names) + 1, marked[0][windows[0]].shape)
    for k, (row, case, found, place) in enumerate(zip(grid, cases, masks, windows, strict=True)):
        _show(row[0], case, place, title=rows[k], mask=True)
        for ax, name in zip(row[1:], names, strict=True):
            ax.set_axis_off()
            ax.set_title("" if k else name, fontsize=8.5)
            if name not in found:
                continue
            _show(ax, case, place, title=ax.get_title(), mask=True)
            mask = _array(f"masks: {name}", found[name], case, bool)[place]
            ax.imshow(np.where(mask, 1.0, np.nan), cmap=ListedColormap([ORANGE]), vmin=0, vmax=1, alpha=0.4)
            _outline(ax, mask, ORANGE)
            if not mask.any():
                ax.text(0.5, 0.97, "empty", transform=ax.transAxes, color="white", fontsize=8, ha="center", va="top")
    _legend(figure, cases, {"result mask": ORANGE})
    return figure


def fills_row(
    case: Case,
    hole: ArrayLike,
    filled: Mapping[str, ArrayLike],
    twin: ArrayLike | None = None,
    around: int | None = 16,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """One image whose hole is filled in several ways, and the truth.

    Args:
        case: the image.
        hole: where it is filled.
        filled: images by the name of the fill.
        twin: the same image without the mass; None: it is not known.
        around: pixels to be seen around the hole, at least; None: the whole image.
        notes: a line below the panels, by name: of a fill, "original" or "true healthy twin".

    Raises:
        ValueError: an array of another shape than the image, an empty hole, or no fill.
    """
    if not filled:
        raise ValueError("filled: there is no image, expected at least one by name")
    cut = _array("hole", hole, case, filled=True)
    (place,) = _windows([cut], around)
    images = {name: _array(f"filled: {name}", image, case) for name, image in filled.items()}
    images |= {} if twin is None else {"true healthy twin": _array("twin", twin, case)}
    figure, grid = _grid(1, len(images) + 1, cut[place].shape, below=0.2 if notes else 0.0)
    _show(grid[0, 0], case, place, title="original", mask=True)
    _outline(grid[0, 0], cut[place], ORANGE)
    for ax, (name, image) in zip(grid[0, 1:], images.items(), strict=True):
        _show(ax, case, place, image, name)
    for ax, name in zip(grid[0], ("original", *images), strict=True):
        ax.text(0.5, -0.03, (notes or {}).get(name, ""), transform=ax.transAxes, ha="center", va="top", fontsize=8)
    _legend(figure, [case], {"hole": ORANGE})
    return figure


def way_gif(
    case: Case,
    way: ArrayLike,
    theta: float = 0.5,
    cell: int = 8,
    truth: ArrayLike | None = None,
    every: int = 4,
    size: int = 480,
) -> bytes:
    """Animated GIF of a mask's way over the image: the hole orange, the annotation green, the step above.

    Args:
        case: the image.
        way: (steps + 1, h, w), cells of the mask from start to end, as in `DeletionRegion.way` of one image.
        theta: the hole is where the mask, at the size of the image, is not above it.
        cell: side of a cell in pixels.
        truth: annotation (H, W), bool; None: that of the case, if it has one.
        every: a frame after so many steps; the last step always has one, which stays for ten times as long.
        size: height of the image in the GIF, in pixels; at 480 a way is seldom above 150 kB.

    Raises:
        ValueError: cells that do not fit the image, an annotation of another shape, or a number below 1.
    """
    if min(every, size, cell) < 1:
        raise ValueError(f"every, size, cell: {every}, {size}, {cell}; expected at least 1")
    cells, (height, width) = np.asarray(way, np.float32), case.image.shape[1:]
    expected = (-(-height // cell), -(-width // cell))
    if cells.ndim != 3 or not len(cells) or cells.shape[1:] != expected:
        raise ValueError(f"way: shape {cells.shape}, expected (steps + 1, {expected[0]}, {expected[1]}) at cell {cell}")
    marked = _annotation(case) if truth is None else _array("truth", truth, case, bool)
    steps = sorted({*range(0, len(cells), every), len(cells) - 1})
    holes = full_size(torch.from_numpy(cells[steps])[:, None], (height, width), cell)[:, 0].numpy() <= theta
    holes &= case.image[0].numpy() > 0  # outside the breast nothing is deleted
    shape = (size, round(size * width / height))
    first, *rest = [_frame(case, hole, marked, f"step {step}", shape) for hole, step in zip(holes, steps, strict=True)]
    stays = [160] * len(rest) + [1600]  # milliseconds
    first.save(file := BytesIO(), "GIF", save_all=True, append_images=rest, duration=stays, loop=0, optimize=True)
    return file.getvalue()


def _frame(case: Case, hole: NDArray[Any], marked: NDArray[Any], text: str, shape: tuple[int, int]) -> Image.Image:
    """One frame in the palette of all: greys, greys tinted in the hole, then black, white, green and orange."""
    black, white, green, orange = range(2 * GREYS, 2 * GREYS + 4)
    greys = np.linspace(0, 255, GREYS)[:, None].repeat(3, 1)
    colours = np.array([to_rgb(colour) for colour in (BLACK, "white", GREEN, ORANGE)]) * 255
    palette = np.concatenate((greys, 0.6 * greys + 0.4 * colours[3], colours)).round().astype(np.uint8)
    pick = np.ix_(*((np.arange(n) * m // n for n, m in zip(shape, hole.shape, strict=True))))
    levels = (case.image[0].numpy().clip(0, 1) * (GREYS - 1)).round().astype(np.uint8)
    pixels = (levels + GREYS * hole).astype(np.uint8)[pick]
    for area, colour in ((hole[pick], orange), (marked[pick], green)):
        pixels[area & ~ndimage.binary_erosion(area, np.ones((3, 3)), iterations=2 - (colour == orange))] = colour
    frame = Image.fromarray(np.pad(pixels, ((20, 0), (0, 0)), constant_values=black), "P")
    frame.putpalette(palette.tobytes())
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(14)
    draw.fontmode = "1"  # no colours between black and white
    draw.text((6, 1), text, white, font)
    if case.pixel_mm:
        left, bottom, length = 8, shape[0] + 10, 10 / case.pixel_mm * shape[0] / hole.shape[0]
        draw.rectangle((left - 1, bottom - 1, left + length + 1, bottom + 4), white, black)
        draw.text((left, bottom - 19), "10 mm", white, font, stroke_width=1, stroke_fill=black)
    return frame


def _annotation(case: Case) -> NDArray[np.bool_]:
    """The annotation (H, W); False everywhere if there is none."""
    return np.zeros(case.image.shape[1:], bool) if case.mask is None else case.mask.numpy()


def _matched(cases: Sequence[Case], titles: Sequence[str] | None, **lists: Sequence[Any]) -> list[str]:
    """Titles of the rows; refuse lists that are not as long as `cases`."""
    if not len(cases):
        raise ValueError("cases: there is none, expected at least one")
    names = list(titles) if titles is not None else ["image"] + [""] * (len(cases) - 1)
    for name, values in {**lists, "titles": names}.items():
        if len(values) != len(cases):
            raise ValueError(f"{name}: {len(values)} for {len(cases)} images, expected one each")
    return names


def _array(name: str, values: ArrayLike, case: Case, kind: type = float, filled: bool = False) -> NDArray[Any]:
    """An array of the image's shape; `filled`: a mask with a pixel."""
    array: NDArray[Any] = np.asarray(values, bool if filled else kind)
    if array.shape != tuple(case.image.shape[1:]):
        raise ValueError(f"{name}: shape {array.shape}, expected {tuple(case.image.shape[1:])} as the image")
    if filled and not array.any():
        raise ValueError(f"{name}: {case.source}: it is empty, expected at least one pixel")
    return array


def _windows(areas: Sequence[NDArray[Any]], around: int | None) -> list[tuple[slice, slice]]:
    """Squares of one size around areas (H, W), inside the images, with `around` pixels on each side of the largest."""
    if around is None:
        return [(slice(None), slice(None))] * len(areas)
    ends = [[(found.min(), found.max() + 1) for found in area.nonzero()] for area in areas]
    side = int(max(high - low for found in ends for low, high in found)) + 2 * around
    windows = []
    for found, area in zip(ends, areas, strict=True):
        starts = [(low + high - side) // 2 for low, high in found]
        top, left = (int(np.clip(k, 0, max(n - side, 0))) for k, n in zip(starts, area.shape, strict=True))
        windows.append((slice(top, top + side), slice(left, left + side)))
    return windows


def _grid(rows: int, columns: int, shape: tuple[int, ...], below: float = 0.0) -> tuple[Figure, NDArray[Any]]:
    """Panels as wide as they can be, at most 2 inches, for images of `shape`; a title's line above each."""
    across = min((WIDTH - 0.9) / columns, 2.0)
    size = (across * columns + 0.9, rows * (across * shape[0] / shape[1] + 0.25 + below) + 0.35)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def _show(
    axes: Axes, case: Case, at: tuple[slice, slice], image: ArrayLike | None = None, title: str = "", mask: bool = False
) -> None:
    """A part of the case, or of another image of its size, with its scale bar; `mask`: and its annotation."""
    pixels = case.image[0].numpy() if image is None else np.asarray(image, np.float32)
    marked = _annotation(case)[at] & mask
    outline = torch.from_numpy(marked) if marked.any() and not marked.all() else None
    show_roi(axes, replace(case, image=torch.from_numpy(pixels[at].copy())[None], mask=outline), title)
    plt.setp(axes.collections, path_effects=OUTLINE)
    axes.title.set_fontsize(8.5)


def _outline(axes: Axes, mask: NDArray[Any], colour: str) -> None:
    """Outline a mask that has pixels and does not fill the panel."""
    if mask.any() and not mask.all():
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.4, zorder=2)


def _legend(figure: Figure, cases: Sequence[Case], colours: Mapping[str, str]) -> None:
    lines = {"annotation": GREEN} if any(case.mask is not None for case in cases) else {}
    handles = [Line2D([], [], color=colour, lw=2, label=name) for name, colour in (lines | dict(colours)).items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, fontsize=8.5, frameon=False)
