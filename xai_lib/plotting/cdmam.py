"""Figures of study 6 that show numbers: hit matrices, contrast-detail curves, their errors and coverage.

Usage::

    contrast_detail({"system A": {"predicted": curve, "low": low, "high": high}}, limits)     # Fig. 2a
    error_and_uncertainty(curves)                                                           # Fig. 2b
    hit_matrices({"one image": hits, "mean of 16": mean})

Thicknesses are micrometres of gold, diameters millimetres; matrices are (16, 16), [diameter, thickness], and cells that
the phantom does not have stay blank. Images are in `cdmam_images`, maps and experiments in `omig_maps` and `omig`.

Reference: Amanova et al. 2022.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from xai_lib.cdmam.geometry import CELLS, CURVE_MM, DIAMETERS_MM, THICKNESSES_UM
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY
from xai_lib.plotting.patches import COLOURS, MARKERS
from xai_lib.results import Estimate

WIDTH = 7.2  # inches
SCENARIOS = {  # colour and marker of a scenario in all figures
    "#1": (BLUE, "o"),
    "#2": (GREEN, "s"),
    "#3": (PURPLE, "^"),
    "#4": (ORANGE, "D"),
    "OOD": (SKY, "v"),
    "system 2": (BLACK, "P"),
}
LEAST_ERROR = 1e-3  # micrometres; smaller errors are drawn there, on a logarithmic axis
LIMITS = {"acceptable": ("-", "o"), "achievable": ("--", "s")}  # of the European guidelines: dash and marker
LABELS = {"exact": ("exact label", BLUE, ""), "drawn": ("label drawn from 16 images", ORANGE, "///")}


def contrast_detail(
    curves: Mapping[str, Mapping[str, ArrayLike]], limits: Mapping[str, Mapping[float, float]] | None = None
) -> Figure:
    """Threshold thickness over diameter, with intervals, known truths and the limits of the guidelines (Fig. 2a).

    Args:
        curves: by label; each has predicted, and where they are known low and high (the interval), truth (dashed),
            extrapolated (bool: hollow markers) and diameters_mm (default: the twelve of a curve); NaN leaves a gap.
        limits: "acceptable" and "achievable": thickness by diameter.

    Raises:
        ValueError: there is no curve, or its parts differ in length.
    """
    if not curves:
        raise ValueError("curves: there is none, expected at least one by its label")
    figure, axes = plt.subplots(figsize=(0.72 * WIDTH, 3.8), layout="constrained")
    for k, (label, curve) in enumerate(curves.items()):
        diameters = np.asarray(curve.get("diameters_mm", CURVE_MM), float)
        parts = {name: np.asarray(values) for name, values in curve.items()}
        lengths = {name: values.shape for name, values in parts.items() if values.shape != diameters.shape}
        if lengths or "predicted" not in parts:
            raise ValueError(f"curves: {label}: {lengths or 'lacks predicted'}, expected shapes {diameters.shape}")
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        beyond = parts.get("extrapolated", np.zeros(len(diameters))).astype(bool)
        axes.plot(diameters, parts["predicted"], color=colour, lw=1.5, marker=marker, ms=4, label=label)
        axes.plot(diameters[beyond], parts["predicted"][beyond], color=colour, marker=marker, ms=5, mfc="white", ls="")
        if {"low", "high"} <= set(parts):
            axes.fill_between(diameters, parts["low"], parts["high"], color=colour, alpha=0.22, lw=0)
        if "truth" in parts:
            axes.plot(diameters, parts["truth"], color=colour, lw=1.5, ls=(0, (4, 1.5)), label=f"{label}: truth")
    for name, limit in (limits or {}).items():
        dash, marker = LIMITS.get(name, (":", "D"))
        axes.plot(list(limit), list(limit.values()), dash, color=BLACK, lw=1.2, marker=marker, ms=3.5, label=name)
    over_diameters(axes, "threshold thickness, µm of gold")
    decades(axes, "y")
    axes.legend(fontsize=7.5, frameon=False, handlelength=2.8)
    return figure


def hit_matrices(matrices: Mapping[str, ArrayLike], label: str = "share of correct answers") -> Figure:
    """Detection matrices side by side: diameters down, thicknesses across.

    Guessing one of four corners gives 0.25; a threshold thickness is at 0.625. Both are marked on the colour bar.

    Args:
        matrices: (16, 16) by title, bool or shares in [0, 1]; NaN is left blank as well.
        label: of the colour bar.

    Raises:
        ValueError: there is none, or another shape.
    """
    if not matrices:
        raise ValueError("matrices: there is none, expected at least one by its title")
    count = len(matrices)
    side = min(WIDTH / count, 3.6)
    figure, grid = plt.subplots(
        1, count, figsize=(side * count, side + 0.75), squeeze=False, sharey=True, layout="constrained"
    )
    for axes, (title, hits) in zip(grid[0], matrices.items(), strict=True):
        values = np.asarray(hits, float)
        if values.shape != CELLS.shape:
            raise ValueError(f"matrices: {title}: shape {values.shape}, expected {CELLS.shape}")
        shown = axes.imshow(np.where(CELLS, values, np.nan), cmap="cividis", vmin=0, vmax=1)
        every = slice(None) if side > 2.9 else slice(None, None, 3)
        places = range(len(CELLS))[every]
        axes.set_xticks(places, [f"{t:.2f}" for t in THICKNESSES_UM][every], rotation=90, fontsize=7)
        axes.set_yticks(places, [f"{d:.2f}" for d in DIAMETERS_MM][every], fontsize=7)
        axes.set_xlabel("thickness, µm of gold", fontsize=8)
        axes.set_title(title, fontsize=8)
    grid[0, 0].set_ylabel("diameter, mm", fontsize=8)
    bar = figure.colorbar(
        shown, ax=list(grid[0]), orientation="horizontal", aspect=45, fraction=0.04, ticks=[0, 0.25, 0.625, 1]
    )
    bar.ax.set_xticklabels(["0", "0.25\nguessing", "0.625\nthreshold", "1"], fontsize=7)
    bar.set_label(label, fontsize=8)
    return figure


def hit_matrix(hits: ArrayLike, title: str = "") -> Figure:
    """One detection matrix, as in `hit_matrices`."""
    return hit_matrices({title: hits})


def error_and_uncertainty(curves: pd.DataFrame, label: str = "drawn") -> Figure:
    """Error of every predicted thickness over its expanded uncertainty, a panel per network (Fig. 2b).

    The expanded uncertainty is 1.96 times the root of the summed squares of both; points below the line are covered.

    Args:
        curves: columns scenario, predicted, epistemic, aleatoric, `label`, and network where there are several.
        label: "drawn" or "exact", what the prediction is compared with.

    Raises:
        ValueError: a column is missing.
    """
    require("curves", curves, ("scenario", "predicted", "epistemic", "aleatoric", label))
    panels = {str(n): p for n, p in curves.groupby("network", sort=False)} if "network" in curves else {"": curves}
    width = WIDTH if len(panels) > 1 else 0.62 * WIDTH
    figure, grid = plt.subplots(
        1, len(panels), figsize=(width, 3.5), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axes, (network, part) in zip(grid[0], panels.items(), strict=True):
        for order, (scenario, rows) in enumerate(part.groupby("scenario", sort=False)):
            colour, marker = SCENARIOS.get(str(scenario), (BLACK, "x"))
            spread = 1.96 * np.hypot(rows["epistemic"], rows["aleatoric"])
            error = (rows["predicted"] - rows[label]).abs().clip(lower=LEAST_ERROR)
            look = {
                "marker": marker,
                "ms": 3,
                "mew": 0,
                "alpha": 0.4,
                "color": colour,
                "zorder": 3 - len(rows) / len(part) - 0.01 * order,
            }
            axes.plot(spread, error, ls="", label=scenario, **look)
        axes.set_title(network, fontsize=8.5)
        axes.set_xlabel("1.96 × total sd, µm of gold (line: equal)", fontsize=8)
        plain(axes)
    decades(grid[0, 0], "x", "y")
    ends = np.array(grid[0, 0].get_xlim())
    for axes in grid[0]:
        axes.plot(ends, ends, color=BLACK, lw=1.2, scalex=False, scaley=False, zorder=4)
    grid[0, 0].set_ylabel(f"|predicted − {label} label|, µm of gold", fontsize=8)
    handles, names = grid[0, 0].get_legend_handles_labels()
    legend = figure.legend(
        handles, names, fontsize=8, loc="outside upper center", ncols=6, frameon=False, markerscale=2
    )
    plt.setp(legend.legend_handles, alpha=1)
    return figure


def coverage_bars(rows: pd.DataFrame) -> Figure:
    """Share of labels inside the 95 % interval per scenario, with intervals, beside the paper's, a panel per network.

    Args:
        rows: columns scenario, exact and drawn (an `Estimate` each), paper (NaN where it has none); network
            where there are several.

    Raises:
        ValueError: a column is missing.
    """
    require("rows", rows, ("scenario", *LABELS, "paper"))
    panels = {str(n): p for n, p in rows.groupby("network", sort=False)} if "network" in rows else {"": rows}
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(WIDTH, 2.1 * len(panels) + 0.4), squeeze=False, sharex=True, layout="constrained"
    )
    for axes, (network, part) in zip(grid[:, 0], panels.items(), strict=True):
        places = np.arange(len(part))
        for k, (column, (name, colour, hatch)) in enumerate(LABELS.items()):
            found = list(part[column])
            x = places + 0.28 * (k - 1)
            axes.bar(
                x, [e.value for e in found], 0.26, color=colour, alpha=0.75, hatch=hatch, edgecolor="white", label=name
            )
            axes.vlines(x, *ends_of(found), color=BLACK, lw=1.3)
        axes.plot(places + 0.26, part["paper"], ls="", marker="D", ms=5, color="0.45", mfc="white", label="paper")
        axes.axhline(0.95, color="0.4", ls=":", lw=1.2, zorder=0)
        axes.set_xticks(places, list(part["scenario"]))
        axes.set(ylim=(0, 1.03))
        axes.set_ylabel("coverage (dotted: 0.95)", fontsize=8)
        axes.set_title(network, fontsize=8.5)
        plain(axes)
        axes.grid(False, axis="x")
        axes.set_axisbelow(True)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=3, frameon=False
    )
    return figure


def psychometric(hits: ArrayLike, fits: Mapping[float, tuple[float, float]], images: int | None = None) -> Figure:
    """Share of correct answers over thickness for a few diameters, and the fitted curves with their thresholds.

    A curve is 0.25 + 0.75 / (1 + exp(-slope (ln t - ln T))), which is 0.625 at the threshold T.

    Args:
        hits: (16, 16), shares that were fitted.
        fits: diameter in mm -> threshold T in micrometres and slope; where T is NaN there is no curve.
        images: how many were read, for the axis.

    Raises:
        ValueError: another shape, or a diameter that the phantom does not have.
    """
    shares = np.asarray(hits, float)
    if shares.shape != CELLS.shape or not set(fits) <= set(DIAMETERS_MM):
        raise ValueError(
            f"hits, fits: {shares.shape}, {list(fits)}; expected {CELLS.shape} and diameters of the phantom"
        )
    figure, axes = plt.subplots(figsize=(0.72 * WIDTH, 3.2), layout="constrained")
    fine = np.geomspace(THICKNESSES_UM[0] / 2, THICKNESSES_UM[-1] * 2, 200)
    for k, (diameter, (threshold, slope)) in enumerate(fits.items()):
        row, colour = DIAMETERS_MM.index(diameter), COLOURS[k % len(COLOURS)]
        on = CELLS[row]
        label = f"{diameter:.2f} mm: {threshold:.3f} µm" if np.isfinite(threshold) else f"{diameter:.2f} mm: no fit"
        axes.plot(
            np.array(THICKNESSES_UM)[on],
            shares[row, on],
            ls="",
            marker=MARKERS[k % len(MARKERS)],
            ms=4.5,
            color=colour,
            label=label,
        )
        if np.isfinite(threshold):
            axes.plot(fine, 0.25 + 0.75 / (1 + (fine / threshold) ** -slope), color=colour, lw=1.4)
            axes.plot([threshold] * 2, [0.2, 0.625], color=colour, lw=1, ls=":")
    axes.axhline(0.625, color="0.4", lw=1, ls="--")
    axes.text(fine[0], 0.635, " 62.5 %", fontsize=7.5, va="bottom")
    axes.set(xscale="log", xlim=(fine[0], fine[-1]), ylim=(0.2, 1.03))
    axes.set_xticks(THICKNESSES_UM[::3], [f"{t:g}" for t in THICKNESSES_UM[::3]])
    axes.minorticks_off()
    axes.set_xlabel("thickness, µm of gold", fontsize=8)
    axes.set_ylabel("share of correct answers" + (f", {images} images" if images else ""), fontsize=8)
    plain(axes)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper", title="diameter: threshold", title_fontsize=8)
    return figure


def over_diameters(axes: Axes, label: str, diameters: Sequence[float] = CURVE_MM) -> None:
    """An axis of diameters, the large ones at the left as in the paper."""
    axes.set_xscale("log")
    axes.set_xlim(diameters[0] * 1.08, diameters[-1] / 1.08)
    axes.set_xticks(diameters, [f"{d:.2f}" for d in diameters], rotation=90)
    axes.minorticks_off()
    axes.set_xlabel("diameter, mm", fontsize=8)
    axes.set_ylabel(label, fontsize=8)
    plain(axes)


def decades(axes: Axes, *names: str) -> None:
    """Make the axes "x" and "y", or one of them, logarithmic, with plain numbers at 1, 2 and 5."""
    for name in names:
        axes.set(**{f"{name}scale": "log"})
        one = getattr(axes, f"{name}axis")
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_major_formatter("{x:g}")
        one.set_minor_locator(NullLocator())


def ends_of(found: Sequence[Estimate]) -> NDArray[np.float64]:
    """Lower and upper ends of intervals (2, n); both are the value where there is no interval."""
    ends = [(e.value, e.value) if e.low is None or e.high is None else (e.low, e.high) for e in found]
    return np.array(ends, float).reshape(-1, 2).T


def require(name: str, table: pd.DataFrame, wanted: Sequence[str]) -> None:
    """Refuse an empty table, and one that lacks a column."""
    lacking = [column for column in wanted if column not in table]
    if lacking or table.empty:
        what = f"lacks {', '.join(lacking)}" if lacking else "is empty"
        raise ValueError(f"{name}: {what}; expected rows with the columns {', '.join(wanted)}")


def plain(axes: Axes) -> None:
    """A faint grid and small numbers."""
    axes.grid(color="0.93")
    axes.tick_params(labelsize=7.5)
