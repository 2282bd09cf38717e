"""Figures of study 2: maps of whole mammograms, boxes, and how well they agree."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from xai_lib.data import Case
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, show_image
from xai_lib.plotting.maps import overlay
from xai_lib.results import Estimate

METHOD_STYLES = {  # the thesis's seven keep their colour and dash in all figures
    "saliency": (BLACK, "-"),
    "integrated_gradients": (ORANGE, "-"),
    "occlusion": (BLUE, "-"),
    "guided_grad_cam": (GREEN, "-"),
    "lime": (PURPLE, "--"),
    "kernel_shap": (SKY, "--"),
    "deeplift": (ORANGE, "--"),
    "brightness": ("0.5", "-"),
    "centre box": ("0.5", "--"),
    "breast box": ("0.5", ":"),
    "grad_cam": (GREEN, ":"),
    "untrained integrated_gradients": ("0.7", "-."),
}
LABELS = {
    "integrated_gradients": "Integrated Gradients",
    "guided_grad_cam": "Guided Grad-CAM",
    "grad_cam": "Grad-CAM",
    "kernel_shap": "SHAP",
    "lime": "LIME",
    "deeplift": "DeepLIFT",
    "saliency": "Saliency",
    "occlusion": "Occlusion",
    "guided_grad_cam_as_captum": "Guided Grad-CAM as Captum",
    "deeplift_as_captum": "DeepLIFT as Captum",
    "brightness": "image brightness",
}


def label(name: str) -> str:
    """A variant's name as it is printed."""
    for known in sorted(LABELS, key=len, reverse=True):
        if name in (known, f"untrained {known}") or name.startswith(f"{known},"):
            return name.replace(known, LABELS[known])
    return name


def draw_boxes(axes: Axes, boxes: ArrayLike, colour: str, style: str = "-", width: float = 1.4) -> None:
    """Outline boxes (k, 4), half-open row0, col0, row1, col1."""
    for row0, col0, row1, col1 in np.asarray(boxes).reshape(-1, 4):
        frame = Rectangle((col0 - 0.5, row0 - 0.5), col1 - col0, row1 - row0, fill=False, ec=colour, ls=style, lw=width)
        axes.add_patch(frame)


def enlarged(values: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float64]:
    """A small map (h, w) at the `shape` (H, W) of its image, by repeating pixels."""
    rows, cols = (np.arange(n) * m // n for n, m in zip(shape, values.shape, strict=True))
    return values[np.ix_(rows, cols)].astype(float)


def twins(cases: Sequence[Case], healthy: Sequence[Case]) -> Figure:
    """Images with a lesion, each beside the same image without it."""
    figure, grid = plt.subplots(1, 2 * len(cases), figsize=(7.2, 2.1), squeeze=False)
    for place, (case, twin) in enumerate(zip(cases, healthy, strict=True)):
        show_image(grid[0, 2 * place], case, title="malignant", bar=place == 0)
        show_image(grid[0, 2 * place + 1], twin, title="healthy twin", bar=False)
    figure.tight_layout(pad=0.3)
    return figure


def sheet(
    cases: Sequence[Case],
    maps: Sequence[Mapping[str, NDArray[Any]]],
    found: Sequence[Mapping[str, ArrayLike]],
    titles: Sequence[str],
    width: float = 0.95,
) -> Figure:
    """A row per image: the image, then its map by every method, the annotated box and the found one (Figs. 8 to 11).

    Args:
        cases: the images.
        maps: of each image by name, (h, w), of any size; red argues for malignant.
        found: boxes of each image by name, (k, 4).
        titles: of each row.
        width: of a panel in inches.
    """
    names = list(maps[0])
    height, breadth = cases[0].image.shape[1:]
    size = (width * (len(names) + 1), len(cases) * (width * height / breadth + 0.12) + 0.3)
    figure, grid = plt.subplots(len(cases), len(names) + 1, figsize=size, squeeze=False)
    for place, (row, case, mine, boxes, title) in enumerate(zip(grid, cases, maps, found, titles, strict=True)):
        show_image(row[0], case, outline=False, title=title, bar=False)
        draw_boxes(row[0], case.boxes, GREEN)
        for axes, name in zip(row[1:], names, strict=True):
            overlay(axes, case, enlarged(mine[name], (height, breadth)), "")
            for lines in axes.collections:
                lines.remove()  # the mask's outline: the box is what counts here
            draw_boxes(axes, case.boxes, GREEN)
            draw_boxes(axes, boxes[name], ORANGE)
            axes.set_title("" if place else label(name).replace(" ", "\n", 1), fontsize=7)
    for axes in grid[:, 0]:
        axes.title.set_fontsize(7)
    figure.tight_layout(pad=0.2)
    return figure


def pipeline(case: Case, steps: Mapping[str, NDArray[Any]], boxes: ArrayLike, merged: ArrayLike) -> Figure:
    """From map to box, step by step (Fig. 3).

    Args:
        case: the image.
        steps: arrays (H, W) by name, in order.
        boxes: of the separate regions (k, 4).
        merged: the single box (1, 4).
    """
    figure, grid = plt.subplots(1, len(steps) + 3, figsize=(1.15 * (len(steps) + 3), 2.6))
    show_image(grid[0], case, outline=False, title="image, annotation", bar=False)
    draw_boxes(grid[0], case.boxes, GREEN)
    for axes, (name, values) in zip(grid[1:], steps.items(), strict=False):
        shown = values if values.dtype == bool else np.minimum(values, np.percentile(values, 99.8))
        axes.imshow(shown, cmap="gray" if values.dtype == bool else "inferno")
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    for axes, name, some in ((grid[-2], f"{len(np.asarray(boxes))} boxes", boxes), (grid[-1], "merged", merged)):
        show_image(axes, case, outline=False, title=name, bar=False)
        draw_boxes(axes, case.boxes, GREEN)
        draw_boxes(axes, some, ORANGE, width=1.0)
    for axes in grid:
        axes.title.set_fontsize(8)
    figure.tight_layout(pad=0.3)
    return figure


def iou_boxplots(iou: pd.DataFrame, names: Sequence[str], controls: Sequence[str], title: str = "") -> Figure:
    """IOU of every image by method, and of the controls in grey (Fig. 5); the mean is a diamond.

    Args:
        iou: one row per image, one column per map.
        names: methods.
        controls: what knows no trained network.
        title: above.
    """
    rows = [*names, *controls]
    figure, axes = plt.subplots(figsize=(7.2, 0.27 * len(rows) + 1.0))
    drawn = axes.boxplot(
        [iou[name].dropna() for name in rows],
        orientation="horizontal",
        positions=-np.arange(len(rows)),
        widths=0.6,
        patch_artist=True,
        showmeans=True,
        flierprops={"ms": 3},
        meanprops={"marker": "D", "mfc": "white", "mec": BLACK, "ms": 4},
        medianprops={"color": BLACK},
    )
    for name, box in zip(rows, drawn["boxes"], strict=True):
        box.set_facecolor(SKY if name in names else "0.85")
    axes.set_yticks(-np.arange(len(rows)), [label(name) for name in rows], fontsize=8)
    axes.set(xlabel="IOU", xlim=(-0.02, 1))
    axes.set_title(title, fontsize=9)
    axes.grid(axis="x", color="0.9")
    figure.tight_layout()
    return figure


def tpr_curves(tpr: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Share of images whose IOU reaches a threshold (Fig. 6)."""
    figure, axes = plt.subplots(figsize=(5.6, 3.2))
    for name in [n for n in names if n in tpr]:
        colour, style = METHOD_STYLES.get(name, ("0.5", "-"))
        axes.plot(tpr["threshold"], tpr[name], style, color=colour, label=label(name), lw=1.6)
    axes.set(xlabel="IOU threshold", ylabel="share of images (TPR)", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=7, frameon=False)
    axes.grid(color="0.93")
    figure.tight_layout()
    return figure


def quantile_sweep(sweep: pd.DataFrame, names: Sequence[str], rules: Sequence[str] = ("union", "component")) -> Figure:
    """Mean IOU over the quantile for two rules: where lines cross, the order of the methods is the quantile's."""
    figure, grid = plt.subplots(1, len(rules), figsize=(7.2, 3.0), sharey=True, squeeze=False)
    for axes, rule in zip(grid[0], rules, strict=True):
        table = sweep[sweep["rule"] == rule]
        places = {q: i for i, q in enumerate(sorted(table["setting"].unique()))}
        for name in names:
            mine = table[table["variant"] == name].sort_values("setting")
            colour, style = METHOD_STYLES.get(name, ("0.5", "-"))
            axes.plot(
                mine["setting"].map(places),
                mine["iou"],
                style,
                color=colour,
                label=label(name),
                lw=1.6,
                marker=".",
                ms=5,
            )
        axes.set_xticks(list(places.values()), [f"{q:g}"[1:] for q in places], fontsize=8)
        axes.set_xlabel("quantile")
        axes.set_title(
            {"union": "the thesis's single big box", "component": "region of the largest sum"}.get(rule, rule),
            fontsize=9,
        )
        axes.grid(color="0.93")
    grid[0, 0].set_ylabel("mean IOU")
    grid[0, -1].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure


def dots(table: pd.DataFrame, columns: Mapping[str, str], name: str = "map", grey: Sequence[str] = ()) -> Figure:
    """Estimates with intervals, one panel per column, one line per row.

    Args:
        table: with estimates in the columns.
        columns: column -> title.
        name: column that names the rows.
        grey: rows that are controls.
    """
    figure, grid = plt.subplots(1, len(columns), figsize=(7.2, 0.21 * len(table) + 0.9), sharey=True, squeeze=False)
    for axes, (column, title) in zip(grid[0], columns.items(), strict=True):
        for place, (row, estimate) in enumerate(zip(table[name], table[column], strict=True)):
            colour = "0.5" if row in grey else BLUE
            if isinstance(estimate, Estimate) and estimate.low is not None and estimate.high is not None:
                axes.plot([estimate.low, estimate.high], [-place, -place], color=colour, lw=1.6)
            axes.plot(estimate.value, -place, "o", color=colour, ms=4)
        axes.set_title(title, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", color="0.9")
    grid[0, 0].set_yticks(-np.arange(len(table)), [label(row) for row in table[name]], fontsize=7.5)
    figure.tight_layout()
    return figure


def peak_offsets(
    maps: pd.DataFrame, names: Sequence[str], limit: float, measured: tuple[float, float] | None = None
) -> Figure:
    """Where each map's peak lies from the lesion's centre, image by image, and the median (cross).

    Args:
        maps: columns variant, off_row, off_col, in pixels.
        names: variants.
        limit: half of the side of a panel, in pixels; peaks beyond it are drawn at the border.
        measured: rows and columns by which a cell of the last layer is drawn away from where it looks; a square.
    """
    figure, grid = plt.subplots(1, len(names), figsize=(1.45 * len(names), 1.9), squeeze=False, sharey=True)
    for axes, name in zip(grid[0], names, strict=True):
        mine = maps[maps["variant"] == name].dropna(subset=["off_row"])
        axes.axhline(0, color="0.85", lw=0.8)
        axes.axvline(0, color="0.85", lw=0.8)
        axes.plot(*mine[["off_col", "off_row"]].clip(-limit, limit).to_numpy().T, ".", color=BLUE, ms=3, alpha=0.6)
        axes.plot(mine["off_col"].median(), mine["off_row"].median(), "x", color=ORANGE, ms=9, mew=2.2)
        if measured and "cam" in name:
            axes.plot(measured[1], measured[0], "s", ms=9, mfc="none", mec=BLACK)
        axes.set(xlim=(-limit * 1.05, limit * 1.05), ylim=(limit * 1.05, -limit * 1.05), aspect="equal")
        axes.set_title(label(name).replace(" ", "\n", 1), fontsize=7.5)
        axes.tick_params(labelsize=6.5)
    grid[0, 0].set_ylabel("rows, pixels", fontsize=8)
    figure.tight_layout(pad=0.4)
    return figure


def before_after(table: pd.DataFrame, names: Sequence[str], columns: Mapping[str, str]) -> Figure:
    """Mean over images against the contrast of the inserted lesion (0: before), a line per method.

    Args:
        table: columns map, contrast and estimates.
        names: methods to draw.
        columns: column -> label of its panel.
    """
    figure, grid = plt.subplots(1, len(columns), figsize=(7.2, 2.8), squeeze=False)
    for axes, (column, title) in zip(grid[0], columns.items(), strict=True):
        for name in names:
            mine = table[table["map"] == name].sort_values("contrast")
            colour, style = METHOD_STYLES.get(name, ("0.5", "-"))
            values = [e.value for e in mine[column]]
            ends = [(e.value - (e.low or e.value), (e.high or e.value) - e.value) for e in mine[column]]
            look = {"color": colour, "label": label(name), "lw": 1.4, "elinewidth": 0.7, "marker": ".", "ms": 5}
            axes.errorbar(mine["contrast"], values, np.clip(np.array(ends).T, 0, None), ls=style, **look)
        axes.set_xlabel("contrast (0: before)", fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.grid(color="0.93")
        axes.tick_params(labelsize=7)
    grid[0, -1].legend(fontsize=6.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    return figure
