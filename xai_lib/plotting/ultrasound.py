"""Figures of study 3: class activation maps, regions, the pointing game."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from xai_lib.data import Case
from xai_lib.localization import COLUMNS, REGIONS
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, class_name, show_image
from xai_lib.results import Estimate

REGION_COLOURS = {"mass": ORANGE, "ring": SKY, "below": PURPLE}


def cam_scheme(
    case: Case, contributions: NDArray[Any], names: Sequence[str], cam: NDArray[Any], bias: float, logit: float
) -> Figure:
    """How a class activation map is made (Fig. 2): image, some weighted feature maps, their sum over all, the decision.

    Args:
        case: the image.
        contributions: weighted feature maps ``w_k f_k`` (k, h, w) to show.
        names: their titles.
        cam: the sum over all channels (h, w).
        bias: of the head.
        logit: of the network.
    """
    n = len(contributions)
    figure, axes = plt.subplots(1, n + 2, figsize=(1.45 * (n + 2), 2.2))
    show_image(axes[0], case, title="image")
    limit = max(float(np.abs(contributions).max()), 1e-9)
    for ax, part, name in zip(axes[1:-1], contributions, names, strict=True):
        ax.imshow(part, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title(name, fontsize=8)
        ax.set_axis_off()
    limit = max(float(np.abs(cam).max()), 1e-9)
    drawn = axes[-1].imshow(cam, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[-1].set_title(
        f"sum of all channels = CAM\nmean {cam.mean():+.2f}, bias {bias:+.2f}\nlogit {logit:+.2f}", fontsize=8
    )
    axes[-1].set_axis_off()
    figure.colorbar(drawn, ax=axes[-1], fraction=0.046, label="logit units")
    figure.tight_layout()
    return figure


def regions_figure(case: Case, areas: NDArray[np.uint8]) -> Figure:
    """An image and its three regions (Fig. 3)."""
    figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.1))
    name = class_name(case)
    show_image(axes[0], case, title=f"A. image ({name})" if name else "A. image")
    titles = ("B. breast mass", "C. peritumoral ring", "D. below the mass")
    for ax, title, (name, bit) in zip(axes[1:], titles, REGIONS.items(), strict=True):
        show_image(ax, case, outline=False, title=title, bar=False)
        shade = np.where(areas & bit > 0, 1.0, np.nan)
        ax.imshow(shade, cmap=ListedColormap([REGION_COLOURS[name]]), alpha=0.55)
    figure.tight_layout(pad=0.4)
    return figure


def cam_cases(
    cases: Sequence[Case],
    maps: Sequence[ArrayLike],
    points: Sequence[Mapping[str, tuple[float, float]]],
    titles: Sequence[str],
    limit: float | None = None,
) -> Figure:
    """Images beside their signed maps, maximum (cross) and minimum (circle) marked (Fig. 4).

    Args:
        cases: images.
        maps: their maps, already of the images' size.
        points: ``{"maximum": (row, col), "minimum": (row, col)}``.
        titles: one for each case.
        limit: of the colour scale; None takes the largest value shown.
    """
    columns = len(cases)
    figure, axes = plt.subplots(2, columns, figsize=(1.55 * columns + 0.7, 3.5), squeeze=False, layout="constrained")
    arrays = [np.asarray(m, float) for m in maps]
    limit = limit or max(1e-9, *(float(np.abs(m).max()) for m in arrays))
    norm = TwoSlopeNorm(0, -limit, limit)
    for column, (case, m, marks, title) in enumerate(zip(cases, arrays, points, titles, strict=True)):
        show_image(axes[0, column], case, title=title)
        show_image(axes[1, column], case, title="", bar=False)
        axes[1, column].imshow(m, cmap="RdBu_r", norm=norm, alpha=0.5)
        for name, marker in (("maximum", "x"), ("minimum", "o")):
            row, col = marks[name]
            face = {"facecolors": "none"} if marker == "o" else {}
            for width, colour in ((3.2, "white"), (1.4, "black")):
                axes[1, column].scatter(col, row, marker=marker, s=55, linewidths=width, color=colour, **face)
    scale = ScalarMappable(norm, "RdBu_r")
    figure.colorbar(scale, ax=axes[1, :], fraction=0.03, label="logit units\nblue benign, red malignant")
    return figure


def roc(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], point: tuple[float, float] | None = None) -> Figure:
    """ROC curves, ``{name: (false positive rate, true positive rate)}``, and the point closest to the corner."""
    figure, ax = plt.subplots(figsize=(3.6, 3.4))
    for (name, (fpr, tpr)), colour in zip(curves.items(), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        ax.plot(fpr, tpr, color=colour, label=name, lw=1.8)
    if point:
        ax.plot(*point, "o", color=BLACK, ms=7, label="closest to the corner")
    ax.plot([0, 1], [0, 1], color="grey", lw=0.8, ls=":")
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    ax.legend(fontsize=8, loc="lower right", frameon=False)
    figure.tight_layout()
    return figure


def pointing(
    table: pd.DataFrame, paper: Mapping[str, float] | None = None, group: str = "all", title: str = ""
) -> Figure:
    """Hit rates of every map and of chance, one panel for each region, with 95 % intervals (Tab. 2).

    Args:
        table: from `studies.ultrasound.pointing_tables.table2`.
        paper: the paper's rate for each region, drawn as a line.
        group: class to draw.
        title: above the figure.
    """
    rows = table[table["class"] == group].reset_index(drop=True)
    place = -np.arange(len(rows))
    figure, axes = plt.subplots(1, 4, figsize=(7.6, 0.23 * len(rows) + 1.3), sharey=True)
    for ax, region in zip(axes, COLUMNS, strict=True):
        for y, kind, estimate in zip(place, rows["kind"], rows[region], strict=True):
            colour = BLUE if kind == "map" else "grey"
            if estimate.low is not None:
                ax.plot([100 * estimate.low, 100 * (estimate.high or 0)], [y, y], color=colour, lw=1.6)
            ax.plot(100 * estimate.value, y, "o" if kind == "map" else "D", color=colour, ms=5)
        if paper:
            ax.axvline(100 * paper[region], color=ORANGE, lw=1.2, ls="--")
        ax.set_title(region, fontsize=9)
        ax.set(xlim=(-2, 102), xlabel="hits, %")
        ax.grid(axis="x", color="0.9")
    axes[0].set_yticks(place, rows["row"], fontsize=8)
    note = "dashed: the paper's value; diamonds: chance" if paper else "diamonds: chance"
    figure.suptitle(f"{title} ({note})" if title else note, fontsize=9)
    figure.tight_layout()
    return figure


def training_length(table: pd.DataFrame, chance: Mapping[str, float]) -> Figure:
    """AUC and hit rates against epochs of training (columns epoch, auc, mass, ring, below, any)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.7))
    left.plot(table["epoch"], table["auc"], "o-", color=BLACK)
    left.axhline(0.5, color="grey", ls=":", lw=0.8)
    left.set(xlabel="epochs", ylabel="AUC", ylim=(0.3, 1))
    for region, colour in (*REGION_COLOURS.items(), ("any", BLACK)):
        right.plot(table["epoch"], 100 * table[region], "o-", color=colour, label=region, mec="0.3", mew=0.4)
        right.axhline(100 * chance[region], color=colour, ls=":", lw=1.2)
    right.set(xlabel="epochs", ylabel="hits, %", ylim=(0, 130), yticks=range(0, 101, 20))
    right.legend(
        fontsize=8, frameon=False, ncol=4, loc="upper center", title="dotted: two random points", title_fontsize=8
    )
    figure.tight_layout()
    return figure


def coverage(curve: tuple[ArrayLike, ArrayLike], rules: pd.DataFrame) -> Figure:
    """Accuracy against coverage: refusing the least confident first, and the rules that use the map."""
    figure, ax = plt.subplots(figsize=(4.8, 3.0))
    ax.plot(*curve, color=BLUE, lw=1.6, label="refuse the least confident")
    ax.axhline(float(rules["random"].iloc[0]), color="grey", ls=":", label="refuse at random")
    for (_, row), marker in zip(rules.iloc[1:].iterrows(), ("o", "s", "^"), strict=False):
        ax.plot(row["coverage"], row["accuracy"], marker, color=ORANGE, ms=8, label=f"answer with {row['rule']}")
    ax.set(xlabel="coverage (share of cases answered)", ylabel="accuracy", xlim=(0, 1.02))
    ax.legend(fontsize=7.5, frameon=False)
    figure.tight_layout()
    return figure


def cue_matrix(values: pd.DataFrame, title: str, baseline: pd.Series | None = None) -> Figure:
    """Rows: the planted cue. Columns: regions. Cells: hits in per cent; grey figures below: two random points."""
    figure, ax = plt.subplots(figsize=(1.0 * len(values.columns) + 2.2, 0.5 * len(values) + 1.2))
    drawn = ax.imshow(100 * values.to_numpy(float), cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (r, c), value in np.ndenumerate(values.to_numpy(float)):
        dark = value < 0.6
        ax.text(c, r, f"{100 * value:.0f}", ha="center", va="center", color="white" if dark else "black", fontsize=10)
    names = [str(c) if baseline is None else f"{c}\n(chance {100 * baseline[c]:.0f})" for c in values.columns]
    ax.set_xticks(range(len(values.columns)), names, fontsize=8)
    ax.set_yticks(range(len(values)), values.index, fontsize=9)
    ax.set_title(title, fontsize=9)
    figure.colorbar(drawn, ax=ax, label="hits, %")
    figure.tight_layout()
    return figure


def offsets(energies: Mapping[str, tuple[NDArray[Any], tuple[float, float], tuple[float, float]]]) -> Figure:
    """Where the central cell looks: squared gradient, its centroid (x), and where resizing draws the cell (square).

    Args:
        energies: for each network ``(energy (N, H, W), centroid (row, col), drawn centre (row, col))``, in pixels.
    """
    figure, axes = plt.subplots(
        1, len(energies), figsize=(1.75 * len(energies), 2.3), squeeze=False, layout="constrained"
    )
    for ax, (name, (energy, centroid, centre)) in zip(axes[0], energies.items(), strict=True):
        shown = np.sqrt(np.asarray(energy).mean(0) / np.asarray(energy).mean(0).max())
        drawn = ax.imshow(shown, cmap="cividis")
        ax.plot(centre[1], centre[0], "s", ms=11, mfc="none", mec="white", mew=1.6, label="drawn by resizing")
        ax.plot(centroid[1], centroid[0], "x", ms=10, color=ORANGE, mew=2.4, label="centroid")
        ax.set_title(f"{name}\noffset ({centroid[0] - centre[0]:+.0f}, {centroid[1] - centre[1]:+.0f}) px", fontsize=8)
        ax.tick_params(labelsize=7)
    axes[0, 0].legend(fontsize=7, loc="lower left")
    figure.colorbar(drawn, ax=axes[0, :], fraction=0.03, label="gradient (root, relative)")
    return figure


def estimates(values: Mapping[str, Mapping[str, Estimate]], paper: Mapping[str, Estimate] | None = None) -> Figure:
    """Figures with intervals in one panel per name: ``{row: {figure: estimate}}`` (Tab. 1)."""
    names = list(next(iter(values.values())))
    figure, axes = plt.subplots(1, len(names), figsize=(2.3 * len(names), 0.34 * len(values) + 1.2), sharey=True)
    for ax, name in zip(np.atleast_1d(axes), names, strict=True):
        for y, row in enumerate(values.values()):
            e = row[name]
            if e.low is not None:
                ax.plot([e.low, e.high], [-y, -y], color=BLUE, lw=1.6)
            ax.plot(e.value, -y, "o", color=BLUE, ms=5)
        if paper and name in paper:
            p = paper[name]
            if p.low is not None and p.high is not None:
                ax.axvspan(p.low, p.high, color=ORANGE, alpha=0.25)
            ax.axvline(p.value, color=ORANGE, ls="--", lw=1.2)
        ax.set_title(name, fontsize=9)
        ax.grid(axis="x", color="0.9")
    np.atleast_1d(axes)[0].set_yticks(-np.arange(len(values)), list(values), fontsize=8)
    figure.suptitle("orange: the paper's mean and spread; bars: 95 % intervals over patients", fontsize=8)
    figure.tight_layout()
    return figure
