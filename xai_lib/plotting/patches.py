"""Figures of study 1: patches beside their maps, methods beside each other, agreement, and randomised networks."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from xai_lib.data import Case
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, show_image
from xai_lib.plotting.maps import overlay
from xai_lib.results import Estimate

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P")


def patch_rows(
    cases: Sequence[Case], maps: Sequence[Mapping[str, ArrayLike]], titles: Sequence[str], size: float = 1.02
) -> Figure:
    """Patches and their maps (Fig. 4, turned: a row per patch, a column per method); red argues for malignant.

    Args:
        cases: patches; the lesion is outlined.
        maps: for each patch its maps (H, W) by method, as they are to be drawn; each on its own scale.
        titles: one per patch.
        size: of a panel in inches.
    """
    names = list(dict.fromkeys(name for found in maps for name in found))
    columns = len(names) + 1
    figure, grid = plt.subplots(
        len(cases), columns, figsize=(size * columns, (size + 0.16) * len(cases) + 0.3), squeeze=False
    )
    for k, (axes, case, found, title) in enumerate(zip(grid, cases, maps, titles, strict=True)):
        show_image(axes[0], case, title=title)
        axes[0].title.set_fontsize(7)
        for ax, name in zip(axes[1:], names, strict=True):
            ax.set_axis_off()
            if name in found:
                overlay(ax, case, found[name])
            if k == 0:
                ax.set_title(
                    name.replace("_", " ").replace("guided ", "guided\n").replace("integrated ", "integrated\n")
                )
                ax.title.set_fontsize(7)
    figure.tight_layout(pad=0.3)
    return figure


def method_points(
    panels: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    levels: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    width: float = 8.2,
) -> Figure:
    """Figures with intervals, a row per method (or network), several series per panel.

    Args:
        panels: ``{panel: {series: {method: estimate}}}``; a figure that is not defined is left out.
        levels: a dotted line per panel, the chance level.
        labels: below the panels, by panel.
        width: of the figure in inches.
    """
    rows = list(dict.fromkeys(name for panel in panels.values() for series in panel.values() for name in series))
    series = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    height = (0.14 + 0.075 * len(series)) * len(rows) + 1.1
    figure, axes = plt.subplots(1, len(panels), figsize=(width, height), sharey=True, squeeze=False)
    for ax, (panel, shown) in zip(axes[0], panels.items(), strict=True):
        for name, found in shown.items():
            k = series.index(name)
            step = 0.7 * ((k + 0.5) / len(series) - 0.5)
            style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
            known = [(rows.index(row), e) for row, e in found.items() if np.isfinite(e.value)]
            for y, e in known:
                if e.low is not None and e.high is not None:
                    ax.plot([e.low, e.high], [y + step] * 2, color=style["color"], lw=1.5)
            ax.plot([e.value for _, e in known], [y + step for y, _ in known], ls="", ms=4.5, label=name, **style)
        if levels and panel in levels:
            ax.axvline(levels[panel], color="grey", ls=":", lw=1.2)
        ax.set_title(panel, fontsize=9)
        ax.set_xlabel((labels or {}).get(panel, ""), fontsize=8)
        ax.grid(axis="x", color="0.92")
        ax.tick_params(labelsize=8)
    axes[0, 0].set_yticks(range(len(rows)), [row.replace("_", " ") for row in rows], fontsize=8)
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    handles = {h.get_label(): h for ax in axes[0] for h in ax.get_lines() if not str(h.get_label()).startswith("_")}
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / height))
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=4, fontsize=8, frameon=False)
    return figure


def agreement_matrix(above: pd.DataFrame, below: pd.DataFrame, names: tuple[str, str]) -> Figure:
    """Agreement of every pair of methods in two groups: one above the diagonal, the other below it.

    Args:
        above: columns first, second (methods) and value.
        below: the same for the other group.
        names: of the two groups.
    """
    methods = list(dict.fromkeys([*above["first"], *above["second"]]))
    values = np.full((len(methods), len(methods)), np.nan)
    for table, upper in ((above, True), (below, False)):
        for _, row in table.iterrows():
            i, j = sorted((methods.index(row["first"]), methods.index(row["second"])))
            values[(i, j) if upper else (j, i)] = row["value"]
    figure, ax = plt.subplots(figsize=(0.62 * len(methods) + 2.0, 0.52 * len(methods) + 1.4))
    drawn = ax.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    for (r, c), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(c, r, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if abs(value) > 0.6 else "k")
    shown = [name.replace("_", " ") for name in methods]
    ax.set_xticks(range(len(methods)), shown, fontsize=8, rotation=35, ha="right")
    ax.set_yticks(range(len(methods)), shown, fontsize=8)
    ax.set_title(f"above the diagonal: {names[0]}; below: {names[1]}", fontsize=9)
    figure.colorbar(drawn, ax=ax, label="rank correlation")
    figure.tight_layout()
    return figure


def randomisation(table: pd.DataFrame, measure: str = "absolute_rank_correlation") -> Figure:
    """Similarity to the map of the trained network while block after block is randomised, and the network's answer.

    Args:
        table: columns method, step, layer, image_effect and `measure`.
        measure: the similarity to draw.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.2, 2.9), width_ratios=(1.6, 1))
    layers = table.drop_duplicates("step").sort_values("step")["layer"].str.removeprefix("features.")
    for (name, part), colour, marker in zip(table.groupby("method", sort=False), COLOURS, MARKERS, strict=False):
        ordered = part.sort_values("step")
        label = str(name).replace("_", " ")
        left.plot(ordered["step"], ordered[measure], color=colour, marker=marker, ms=5, lw=1.4, label=label)
    effect = table.groupby("step")["image_effect"].mean()
    right.semilogy(effect.index, effect.clip(lower=1e-12), color=BLACK, marker="o", ms=4)
    for ax in (left, right):
        ax.set_xticks(range(len(layers)), layers, rotation=35, ha="right", fontsize=8)
        ax.grid(color="0.92")
    left.axhline(0, color="grey", lw=0.8)
    left.set_ylabel(measure.replace("_", " "), fontsize=8)
    left.legend(fontsize=8, frameon=False)
    right.set_title("does the network still answer? |f(x) - f(0)|", fontsize=8)
    left.set_title("randomised from the head down to this block", fontsize=8)
    figure.tight_layout()
    return figure
