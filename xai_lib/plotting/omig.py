"""Figures of study 6 that show numbers: what changing the image does to the prediction, and the scores of maps.

Usage::

    intervention_figure(result.interventions.query("scenario == '#1'"))
    disc_scores(result.discs.query("scenario == '#1' and view == 'plain' and chosen == 'seen'"))
    c_sweep(result.paths.query("network == 'paper-like' and scenario == '#1'"))                  # Fig. 14

Tables are those of `studies.omig.summary.Summary`, with `results.Estimate` objects in their columns. Maps are in
`omig_maps`.

Reference: Amanova et al. 2022, section 3 and appendix E.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from xai_lib.cdmam.geometry import CURVE_MM, DIAMETERS_MM
from xai_lib.plotting.cdmam import WIDTH, decades, ends_of, over_diameters, plain, require
from xai_lib.plotting.cdmam_images import EDGED
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY
from xai_lib.plotting.patches import method_points
from xai_lib.results import Estimate

NETWORKS = {  # colour and marker in all figures
    "paper-like": (ORANGE, "o"),
    "disc reader": (BLUE, "s"),
    "bright discs": (GREEN, "^"),
    "shuffled labels": (PURPLE, "D"),
    "untrained": (SKY, "v"),
}
CHANGES = {"contrast": "contrast of all discs", "noise": "noise", "grid": "contrast of the grid"}
WEIGHTS = {"total": "total weight, sum over visits", "mean": "mean weight of a pixel"}
GROUPS = ("all", "2.00-1.25", "1.00-0.63", "0.50-0.31", "0.25-0.16", "<= 0.13")  # as in the tables


def intervention_figure(rows: pd.DataFrame, against: str = "factor") -> Figure:
    """One thing of the image is changed: does the predicted midpoint follow the true one? One panel per thing.

    On the black line the prediction is the truth. A network that reads what was changed follows it; one that does not
    stays level. The grid tells nothing about image quality, so there the truth is level and every move is an error.

    Args:
        rows: columns network, what, factor, predicted and true (an `Estimate` each), of one scenario.
        against: the horizontal axis: "factor" of the change, or "true", the true midpoint (the line is the identity).

    Raises:
        ValueError: a column is missing, a factor is there twice, or another axis is asked for.
    """
    require("rows", rows, ("network", "what", "factor", "predicted", "true"))
    if against not in ("true", "factor") or rows.duplicated(["network", "what", "factor"]).any():
        raise ValueError(f"rows, against: {against!r}; expected 'true' or 'factor', and each factor once per network")
    kinds = [what for what in CHANGES if (rows["what"] == what).any()]
    size = (WIDTH, 3.4)
    figure, grid = plt.subplots(1, len(kinds), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axes, what in zip(grid[0], kinds, strict=True):
        part = rows[rows["what"] == what].sort_values("factor")
        for network, found in part.groupby("network", sort=False):
            colour, marker = NETWORKS.get(str(network), (BLACK, "P"))
            x = [e.value for e in found["true"]] if against == "true" else list(found["factor"])
            axes.vlines(x, *ends_of(list(found["predicted"])), color=colour, lw=1.5)
            axes.plot(
                x, [e.value for e in found["predicted"]], color=colour, marker=marker, ms=6, lw=1.2, label=network
            )
        _truth(axes, part, against)
        axes.set_title(f"{CHANGES[what]} changed", fontsize=8.5)
        plain(axes)
    grid[0, 0].set_ylabel("predicted midpoint, µm of gold", fontsize=8)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=4, frameon=False
    )
    return figure


def _truth(axes: Axes, part: pd.DataFrame, against: str) -> None:
    """The line on which a prediction is the truth, the axes, and the factors."""
    first = part.drop_duplicates("factor")
    truth, factors = np.array([e.value for e in first["true"]]), first["factor"].to_numpy(float)
    if against == "factor":
        decades(axes, "x", "y")
        axes.plot(factors, truth, color=BLACK, lw=1.6, ls="--", label="truth")
        axes.set_xticks(factors, [f"×{f:g}" for f in factors])
        axes.set_xlabel("factor", fontsize=8)
        return
    level = truth.max() < 1.01 * truth.min()
    ends = np.array([truth.min(), truth.max()]) * ((1 / 1.7, 1.7) if level else (1 / 1.15, 1.15))
    axes.plot(ends, ends, color=BLACK, lw=1.6, ls="--", label="prediction = truth", scaley=False)
    decades(axes, "x", "y")
    axes.set(xlim=ends)
    axes.set_xlabel("true midpoint, µm of gold", fontsize=8)
    for _, row in part[part["network"] == part["network"].iloc[0]].iterrows():  # the points of one network are named
        where: Any = {"xytext": (7, 0), "va": "center"} if level else {"xytext": (0, -6), "va": "top", "ha": "center"}
        at = (row["true"].value, row["predicted"].value)
        axes.annotate(f"×{row['factor']:g}", at, textcoords="offset points", fontsize=7, **where, **EDGED)


def disc_scores(rows: pd.DataFrame, column: str = "signed") -> Figure:
    """Disc minus ring per group of diameters, a panel per network, a marker per method (Figs. 4 to 7 as numbers).

    Args:
        rows: columns network, method, diameters and `column`, an `Estimate`, of one scenario, view and choice of discs.
        column: "signed" (positive: towards discs that are easier to see) or "score" (positive: red).

    Raises:
        ValueError: a column is missing, or a group is there twice.
    """
    require("rows", rows, ("network", "method", "diameters", column))
    if rows.duplicated(["network", "method", "diameters"]).any():
        raise ValueError("rows: a group of diameters is there twice; expected one scenario, view and choice of discs")
    order = {name: k for k, name in enumerate(GROUPS)}
    ordered = rows.sort_values("diameters", key=lambda names: names.map(order), kind="stable")
    panels: dict[str, dict[str, dict[str, Estimate]]] = {
        str(network): {
            str(method): dict(zip(found["diameters"], found[column], strict=True))
            for method, found in part.groupby("method", sort=False)
        }
        for network, part in ordered.groupby("network", sort=False)
    }
    note = {"signed": "← harder to see   easier to see →", "score": "← blue   red →"}.get(column, "")
    labels = {network: f"{note}\ndisc − ring, sd of one visit" for network in panels}
    figure = method_points(panels, dict.fromkeys(panels, 0.0), labels, WIDTH)
    figure.axes[0].set_ylabel("diameters, mm", fontsize=8)
    widest = max(abs(end) for axes in figure.axes for end in axes.get_xlim())
    for axes in figure.axes:
        axes.set_xlim(-widest, widest)
        axes.locator_params(axis="x", nbins=5)
    return figure


def weights(rows: pd.DataFrame) -> Figure:
    """Weight of the discs over their diameter: the sum over all their pixels, and the mean of one (claim 6.5).

    Args:
        rows: columns network, diameter_mm, total and mean (an `Estimate` each), of one scenario, view and method.

    Raises:
        ValueError: a column is missing, or a diameter is there twice.
    """
    require("rows", rows, ("network", "diameter_mm", *WEIGHTS))
    if rows.duplicated(["network", "diameter_mm"]).any():
        raise ValueError("rows: a diameter is there twice; expected one scenario, view and method")
    networks = list(dict.fromkeys(rows["network"]))
    size = (WIDTH, 2.0 * len(networks) + 0.5)
    figure, grid = plt.subplots(len(networks), 2, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for line, network in zip(grid, networks, strict=True):
        last = network == networks[-1]
        part = rows[rows["network"] == network].sort_values("diameter_mm")
        colour, marker = NETWORKS.get(str(network), (BLACK, "P"))
        for axes, (column, title) in zip(line, WEIGHTS.items(), strict=True):
            over_diameters(axes, "", DIAMETERS_MM)
            axes.vlines(part["diameter_mm"], *ends_of(list(part[column])), color=colour, lw=1.5)
            axes.plot(part["diameter_mm"], [e.value for e in part[column]], color=colour, marker=marker, ms=4.5, lw=1)
            axes.axhline(0, color="0.3", lw=1)
            axes.set_title(f"{network}: {title}", fontsize=8.5)
            axes.tick_params(labelbottom=last)
            axes.set_xlabel("diameter, mm" if last else "", fontsize=8)
        line[0].set_ylabel("normalised grey", fontsize=8)
    return figure


def whole_map_step(curves: Mapping[str, Mapping[str, ArrayLike]]) -> Figure:
    """Predicted curve before and after the whole map was added, and the change in per cent (Fig. 13).

    Args:
        curves: by label; each has before and after, and where they are known truth and diameters_mm.

    Raises:
        ValueError: there is no curve.
    """
    if not curves:
        raise ValueError("curves: there is none, expected at least one by its label")
    size = (WIDTH if len(curves) > 1 else 0.6 * WIDTH, 4.3)
    figure, grid = plt.subplots(
        2,
        len(curves),
        figsize=size,
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=(1.7, 1),
        layout="constrained",
    )
    for (top, below), (label, curve) in zip(grid.T, curves.items(), strict=True):
        x = np.asarray(curve.get("diameters_mm", CURVE_MM), float)
        before, after = (np.asarray(curve[name], float) for name in ("before", "after"))
        top.plot(x, before, color=ORANGE, marker="o", ms=4, lw=1.4, label="before")
        top.plot(x, after, color=BLUE, marker="s", ms=3.5, lw=1.4, ls="--", label="map added")
        if "truth" in curve:
            top.plot(x, curve["truth"], color=BLACK, lw=1.3, ls=":", label="truth")
        below.plot(x, 100 * (after / before - 1), color=BLUE, marker="s", ms=3.5, lw=1.2)
        below.axhline(0, color="0.3", lw=1)
        over_diameters(top, "")
        decades(top, "y")
        over_diameters(below, "")
        top.label_outer()
        top.set_title(label, fontsize=8.5)
    grid[0, 0].set_ylabel("threshold thickness, µm", fontsize=8)
    grid[1, 0].set_ylabel("change, %", fontsize=8)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=3, frameon=False
    )
    return figure


def c_sweep(rows: pd.DataFrame, c: float = 1.0, steps: int = 50, reference: int = 200) -> Figure:
    """Paths of any length c, and of any number of steps L (Fig. 14 as numbers); dotted: the paper's values.

    Left, the correlation of the map with sensitivity analysis, plain and clipped; middle, how far the predicted
    midpoint falls; right, the correlation with the map of `reference` steps.

    Args:
        rows: columns c, steps, first_clipped and, an `Estimate` each, with_sensitivity, with_clipped, relative_fall and
            with_reference; of one network and scenario. Paths whose first gradient is clipped are left out.
        c: of the right panel.
        steps: of the other two.
        reference: number of steps that `with_reference` compares with.

    Raises:
        ValueError: a column is missing, or no path has these steps and this c.
    """
    columns = ("with_sensitivity", "with_clipped", "relative_fall", "with_reference")
    require("rows", rows, ("c", "steps", "first_clipped", *columns))
    plain_paths = rows[~rows["first_clipped"].astype(bool)]
    over_c = plain_paths[plain_paths["steps"] == steps].sort_values("c")
    over_steps = plain_paths[plain_paths["c"] == c].sort_values("steps")
    if over_c.empty or over_steps.empty or over_c["c"].duplicated().any() or over_steps["steps"].duplicated().any():
        raise ValueError(f"rows: expected each c once with {steps} steps, and each number of steps once with c = {c:g}")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(WIDTH, 2.8), layout="constrained")
    _line(left, over_c, "c", "with_sensitivity", ORANGE, "o", "sensitivity")
    _line(left, over_c, "c", "with_clipped", BLUE, "s", "clipped sensitivity")
    _line(middle, over_c, "c", "relative_fall", BLACK, "D", scale=100)
    _line(right, over_steps, "steps", "with_reference", BLACK, "D")
    for axes, name, used in ((left, "c", c), (middle, "c", c), (right, "L", steps)):
        axes.axvline(used, color="0.4", ls=":", lw=1.3, zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel(f"{name} (dotted: {used:g})", fontsize=8)
        plain(axes)
    right.set_xticks(over_steps["steps"], [f"{n:g}" for n in over_steps["steps"]])
    right.minorticks_off()
    left.set_title("correlation of the map with", fontsize=8.5)
    middle.set_title("fall of the midpoint, %", fontsize=8.5)
    right.set_title(f"correlation with L = {reference}", fontsize=8.5)
    left.legend(fontsize=7.5, frameon=False)
    return figure


def _line(
    axes: Axes, rows: pd.DataFrame, x: str, y: str, colour: str, marker: str, label: str = "", scale: float = 1
) -> None:
    found: Sequence[Estimate] = list(rows[y])
    axes.vlines(rows[x], *(scale * ends_of(found)), color=colour, lw=1.5)
    axes.plot(
        rows[x], [scale * e.value for e in found], color=colour, marker=marker, ms=4.5, lw=1.3, label=label or None
    )
