"""The figure of a sweep: each headline figure against the cells of the grid.

Usage::

    sweep_figure(runs_table(runs), summary)          # tables of `sweep_summary`
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from xai_lib.plotting.cdmam import plain, require
from xai_lib.plotting.common import BLUE, ORANGE, SKY

_RUN = ("cell", "figure", "value", "baselines")
_CELL = ("cell", "label", "notebook", "figure", "unit", "mean", "low", "high", "within_low", "within_high")


def sweep_figure(runs: pd.DataFrame, summary: pd.DataFrame, columns: int = 3, panel: float = 3.4) -> Figure:
    """A panel per notebook and figure, a row per cell: runs, their mean with its interval, and chance levels.

    Of each cell from above: dots are the runs, the square is their mean and the dark line its t interval over seeds,
    the light line is the mean interval within a run. Grey ticks are chance levels, which a figure is read against.

    Args:
        runs: a row per run and figure.
        summary: a row per cell and figure.
        columns: panels side by side.
        panel: width of a panel in inches.

    Raises:
        ValueError: a table is empty or lacks a column.
    """
    require("runs", runs, _RUN)
    require("summary", summary, _CELL)
    panels = list(summary.groupby(["notebook", "figure"], sort=False))
    columns = min(columns, len(panels))
    rows = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    heights = [0.75 + 0.34 * max(len(part) for _, part in row) for row in rows]
    labels = max(len(label) for label in summary["label"])
    size = (columns * (panel + 0.055 * labels), sum(heights) + 0.2 * 4 / columns + 0.3)
    figure, grid = plt.subplots(
        len(rows), columns, figsize=size, squeeze=False, height_ratios=heights, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((notebook, name), part) in zip(grid.flat, panels, strict=False):
        _panel(axes, part, runs[runs["figure"] == name])
        axes.set_title(f"{str(notebook)[:2]} {name}" if str(notebook)[:2].isdigit() else f"{notebook} {name}", size=8.5)
    figure.legend(handles=_key(), fontsize=8, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _panel(axes: Axes, cells: pd.DataFrame, runs: pd.DataFrame) -> None:
    """One figure of one notebook; the first cell is on top."""
    for y, cell in enumerate(cells.to_dict("records")):
        part = runs[runs["cell"] == cell["cell"]]
        levels = {value for found in part["baselines"] for value in found.values()}
        axes.vlines(sorted(levels), y - 0.32, y + 0.32, color="0.6", lw=1)
        axes.hlines(y + 0.2, cell["within_low"], cell["within_high"], color=SKY, lw=2.5)
        axes.hlines(y, cell["low"], cell["high"], color=BLUE, lw=1.5)
        axes.plot(part["value"], [y - 0.2] * len(part), "o", color=ORANGE, ms=3.5, alpha=0.6, mew=0)
        axes.plot(cell["mean"], y, "s", color=BLUE, ms=4.5)
    axes.set_xlabel(cells["unit"].iloc[0], fontsize=7.5)
    plain(axes)
    axes.set_yticks(range(len(cells)), list(cells["label"]), fontsize=7.5)
    axes.set_ylim(len(cells) - 0.5, -0.5)


def _key() -> Sequence[Line2D]:
    """What the marks mean."""
    return [
        Line2D([], [], color=BLUE, marker="s", ms=5, lw=1.5, label="mean over seeds, 95 % t interval"),
        Line2D([], [], color=ORANGE, marker="o", ms=3.5, lw=0, label="a run"),
        Line2D([], [], color=SKY, lw=2.5, label="mean 95 % interval within a run"),
        Line2D([], [], color="0.6", marker="|", ms=9, lw=0, label="chance levels of the runs"),
    ]
