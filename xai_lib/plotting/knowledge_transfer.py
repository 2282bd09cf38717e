"""Figures of study 4 that show numbers: accuracy, distances, the shifted confounder, verdicts on cells.

Tables are those of `studies.transfer.summary.Summary`, with `results.Estimate` objects in their columns. What the
paper found on its own data is grey and hollow, or says whose it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from xai_lib.plotting.common import BLACK, BLUE, CLASS_NAMES, GREEN, ORANGE, PURPLE, SKY
from xai_lib.plotting.mammograms import dots
from xai_lib.plotting.patches import COLOURS, MARKERS, method_points
from xai_lib.results import Estimate

Panels = Mapping[str, Mapping[str, Estimate]]  # panel -> row -> figure
WIDTH = 8.0  # inches
STYLES = {  # colour, marker and dash of a method in all figures
    "fine-tuning": (ORANGE, "o", "-"),
    "transfer": (BLUE, "s", "-"),
    "shuffled masks": (GREEN, "^", "-"),
    "centred disc": (PURPLE, "D", "-"),
    "untrained teacher": (SKY, "v", "-"),
    "masks": (BLACK, "P", "-"),
    "fine-tuning, groups 3 and 4": (ORANGE, "o", "--"),
    "transfer, groups 3 and 4": (BLUE, "s", "--"),
}
TESTS = ("same", "none", "reversed")
TESTED = "calcifications in testing"
FORMS = {"printed": "equation 4 as printed", "mean_squared": "mean of squares"}
CURVES = {"auc": "AUC", "distance": "distance to teacher", "inside": "share inside the mass"}
CONTROLS = ("pixels alone", "centre", "brightness")
PAPER: dict[str, Any] = {"color": "0.45", "mfc": "white", "marker": "D", "ms": 5, "ls": "", "zorder": 4}


def confusion_matrices(
    ours: Mapping[str, ArrayLike], paper: Mapping[str, ArrayLike | None] | None = None, columns: int = 5
) -> Figure:
    """Counts and percentages of the row, and below ours, in grey, the paper's on its own data (Fig. 4b, Table 2).

    Args:
        ours: counts (2, 2) by name; rows are the truth, columns what it is called: benign, malignant.
        paper: the same of the paper; None where it has none.
        columns: matrices side by side.
    """
    names, sources = list(ours), {"ours": ours, "the paper's": paper} if paper else {"": ours}
    blocks = [names[k : k + columns] for k in range(0, len(names), columns)]
    lines = [(block, whose, found) for block in blocks for whose, found in sources.items()]
    side = min(WIDTH / len(blocks[0]), 2.0)
    shape, size = (len(lines), len(blocks[0])), (side * len(blocks[0]), (side + 0.1) * len(lines))
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    for ax in grid.flat:
        ax.set_axis_off()
    for row, (block, whose, found) in zip(grid, lines, strict=True):
        for ax, name in zip(row, block, strict=False):
            counts = (found or {}).get(name)
            if counts is not None:
                _matrix(ax, np.asarray(counts, float), name, whose)
    return figure


def accuracy_rows(
    frame: pd.DataFrame,
    majority: Mapping[str, float] | None = None,
    paper: Panels | None = None,
    column: str = "accuracy",
) -> Figure:
    """Methods as rows, starts as panels with one axis, with intervals (Table 2).

    Args:
        frame: columns start, method and `column`, an `Estimate`; for example `Summary.performance`.
        majority: by start, the share of the larger class; a dotted line.
        paper: by start and method, what the paper found on its own data; with its standard deviation if it has ends.
        column: the figure to draw.
    """
    parts = {str(start): part for start, part in frame.groupby("start", sort=False)}
    found = {start: dict(zip(part["method"], part[column], strict=True)) for start, part in parts.items()}
    figure = _beside(found, majority, paper or {}, column, "paper (BCDR)")
    limits = np.array([ax.get_xlim() for ax in figure.axes])
    plt.setp(figure.axes, xlim=(limits.min(), limits.max()))
    return figure


def recipe_points(
    frame: pd.DataFrame, paper: Mapping[str, float] | None = None, majority: float | None = None
) -> Figure:
    """Accuracy of the five ROI recipes with intervals, and the paper's values (Table 1).

    Args:
        frame: columns recipe and accuracy, an `Estimate`; for example `Summary.recipes`.
        paper: accuracy by recipe, on the paper's own data.
        majority: share of the larger class; a dotted line.
    """
    found = {"": dict(zip(frame["recipe"], frame["accuracy"], strict=True))}
    values = {name: Estimate(value) for name, value in (paper or {}).items()}
    return _beside(found, None if majority is None else {"": majority}, {"": values}, "accuracy", "paper (OMI-DB)")


def distance_groups(frame: pd.DataFrame) -> Figure:
    """Distance of the activation maps of ROI and mask after each group: a line per case, boxes on top (Fig. 6).

    The mean of squares has a logarithmic axis, as the paper plots log d + 10.

    Args:
        frame: columns network, case, group, printed and mean_squared; a row of panels per network.
    """
    networks = list(dict.fromkeys(frame["network"]))
    size = (WIDTH, 2.2 * len(networks) + 0.3)
    figure, grid = plt.subplots(
        len(networks), 2, figsize=size, squeeze=False, sharex=True, sharey="col", layout="constrained"
    )
    for row, network in zip(grid, networks, strict=True):
        for ax, (form, name) in zip(row, FORMS.items(), strict=True):
            table = frame[frame["network"] == network].pivot(index="case", columns="group", values=form).dropna()
            values, places = table.to_numpy(float), np.arange(table.shape[1])
            paths = [np.column_stack((places, line)) for line in values]
            faint = float(np.clip(40 / max(len(paths), 1), 0.15, 0.8))
            ax.add_collection(LineCollection(paths, colors="0.6", linewidths=0.5, alpha=faint))
            look = {"boxprops": {"facecolor": SKY, "alpha": 0.75}, "medianprops": {"color": BLACK, "lw": 1.6}}
            ax.boxplot(values, positions=places, widths=0.35, showfliers=False, patch_artist=True, zorder=3, **look)
            ax.set_xticks(places, [str(group).replace("group", "group ") for group in table.columns])
            ax.set_title(f"{network}: {name}, {len(table)} cases", fontsize=8.5)
            _finish(ax, "distance $d_j$")
            if form == "mean_squared":
                ax.set(yscale="log", ylabel="distance $d_j$, log$_{10}$ axis\n(the paper plots log $d_j$ + 10)")
    return figure


def shift_lines(frame: pd.DataFrame, columns: Mapping[str, str] | None = None, tested: str = TESTED) -> Figure:
    """A line per method over the test sets: calcifications as in training, without, and the other way round.

    Args:
        frame: columns test, method and those to draw, an `Estimate` each; for example `Summary.shift`.
        columns: column -> label of its panel; None: the AUC. Chance, an AUC of 0.5, is dotted.
        tested: below the axis, what differs between the test sets.
    """
    shown = {"auc": "AUC"} if columns is None else columns
    methods, tests = list(dict.fromkeys(frame["method"])), _tests(frame)
    figure, axes = plt.subplots(1, len(shown), figsize=(WIDTH, 3.2), squeeze=False, layout="constrained")
    for ax, (column, label) in zip(axes[0], shown.items(), strict=True):
        for k, method in enumerate(methods):
            part = frame[frame["method"] == method].set_index("test")[column]
            places = np.array([x for x, test in enumerate(tests) if test in part])
            dodge = 0.36 * ((k + 0.5) / len(methods) - 0.5)
            style = STYLES.get(method, (COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], ":"))
            _line(ax, places + dodge, [part[tests[x]] for x in places], style, method)
        if column == "auc":
            ax.axhline(0.5, color="grey", ls=":", lw=1.2)
        ax.set_xticks(range(len(tests)), tests)
        ax.set_xlim(-0.4, len(tests) - 0.6)
        ax.set_xlabel(tested, fontsize=8)
        _finish(ax, label)
    _legend(figure, 4 if len(methods) != 5 else 5)
    return figure


def beta_curves(frame: pd.DataFrame, columns: Mapping[str, str] | None = None, tested: str = TESTED) -> Figure:
    """What the weight beta of the transfer does: a column per test set, a row per figure, a line per form of eq. 4.

    Fine-tuning, beta 0, is a horizontal line with its interval as a band.

    Args:
        frame: columns test, form, beta, and those to draw, an `Estimate` each; for example `Summary.betas`.
        columns: column -> label of its row; None: `CURVES`.
        tested: what differs between the test sets.

    Raises:
        ValueError: no beta is above 0.
    """
    shown, tests, trained = columns or CURVES, _tests(frame), frame[frame["beta"] > 0]
    if trained.empty:
        raise ValueError("frame: no beta above 0, expected at least one beside fine-tuning")
    size = (WIDTH, 1.65 * len(shown) + 0.7)
    figure, grid = plt.subplots(
        len(shown), len(tests), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for row, (column, label) in zip(grid, shown.items(), strict=True):
        for ax, test in zip(row, tests, strict=True):
            for form, style, dodge in zip(FORMS, ((BLUE, "s", "-"), (PURPLE, "^", "--")), (0.93, 1.07), strict=True):
                part = trained[(trained["test"] == test) & (trained["form"] == form)].sort_values("beta")
                if len(part):
                    _line(ax, part["beta"].to_numpy(float) * dodge, list(part[column]), style, FORMS[form])
            for e in frame.loc[(frame["test"] == test) & (frame["beta"] == 0), column]:
                ax.axhline(e.value, color=ORANGE, lw=1.3, label="fine-tuning (beta 0)")
                if e.low is not None and e.high is not None:
                    ax.axhspan(e.low, e.high, color=ORANGE, alpha=0.2, lw=0)
            if column == "auc":
                ax.axhline(0.5, color="grey", ls=":", lw=1.2)
            _beta_axis(ax, trained["beta"])
            _finish(ax, label if test == tests[0] else "")
    for ax, test in zip(grid[0], tests, strict=True):
        ax.set_title(f"{tested}: {test}", fontsize=8.5)
    for ax in grid[-1]:
        ax.set_xlabel("weight beta of the transfer", fontsize=8)
    _legend(figure, 3)
    return figure


def cell_points(
    frame: pd.DataFrame, columns: Mapping[str, str] | None = None, controls: Sequence[str] = CONTROLS
) -> Figure:
    """How well the verdicts on cells tell the mass from the rest, by network; controls without a network are grey.

    Args:
        frame: columns network and those to draw, an `Estimate` each; for example `Summary.cells`.
        columns: column -> title of its panel; None: the AUC. Chance, an AUC of 0.5, is dotted.
        controls: rows that know no network.
    """
    shown = {"auc": "AUC of the verdict on cells against the mask"} if columns is None else columns
    figure = dots(frame, shown, "network", controls)
    figure.set_size_inches(WIDTH, 0.27 * len(frame) + 0.8)
    for ax, (column, title) in zip(figure.axes, shown.items(), strict=True):
        if column == "auc":
            ax.axvline(0.5, color="grey", ls=":", lw=1.2)
            title = f"{title} (grey: without a network)"
        ax.set_title(title, fontsize=8.5)
        ax.tick_params(labelsize=8)
    figure.tight_layout()
    return figure


def _tests(frame: pd.DataFrame) -> list[str]:
    """The test sets, in the order of `TESTS`; others after them."""
    there = list(dict.fromkeys(frame["test"]))
    return sorted(there, key=lambda test: TESTS.index(test) if test in TESTS else len(TESTS))


def _matrix(axes: Axes, counts: np.ndarray, name: str, whose: str) -> None:
    """One confusion matrix, (2, 2); the paper's is grey."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.set_axis_on()
    axes.imshow(shares, cmap="Greys" if "paper" in whose else "Blues", vmin=0, vmax=1.2)
    for (row, col), count in np.ndenumerate(counts):
        colour = "white" if shares[row, col] > 0.72 else "black"
        text = f"{count:.0f}\n{100 * shares[row, col]:.0f} %"
        axes.text(col, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_title(f"{whose}:\n{name}" if whose else name, fontsize=8)
    axes.set_xticks((0, 1), CLASS_NAMES.values(), fontsize=7)
    axes.set_yticks((0, 1), CLASS_NAMES.values(), fontsize=7, rotation=90, va="center")
    axes.set_xlabel("called", fontsize=7.5)
    axes.set_ylabel("truth", fontsize=7.5)


def _beside(ours: Panels, majority: Mapping[str, float] | None, paper: Panels, name: str, label: str) -> Figure:
    """`method_points`, and the paper's values below ours, hollow and grey."""
    note = name + (" (dotted: majority class)" if majority else "")
    panels = {panel: {"ours": found} for panel, found in ours.items()}
    figure = method_points(panels, majority, dict.fromkeys(ours, note), WIDTH)
    rows = list(dict.fromkeys(row for found in ours.values() for row in found))
    shown = []
    for ax, panel in zip(figure.axes, ours, strict=True):
        for y, e in [(rows.index(row) + 0.27, e) for row, e in paper.get(panel, {}).items() if row in rows]:
            shown.append(e)
            if e.low is not None and e.high is not None:
                ax.plot([e.low, e.high], [y, y], color=PAPER["color"], lw=1, zorder=3)
            ax.plot(e.value, y, **PAPER)
    if shown:
        handles = [figure.axes[0].get_legend_handles_labels()[0][0], Line2D([], [], **PAPER)]
        names = ["ours, 95 % interval", label + (", mean ± sd" if any(e.low is not None for e in shown) else "")]
        figure.legends[0].remove()
        figure.legend(handles, names, loc="upper center", ncols=2, fontsize=8, frameon=False)
    return figure


def _line(axes: Axes, x: np.ndarray, estimates: Sequence[Estimate], style: tuple[str, str, str], label: str) -> None:
    """Points with intervals, joined."""
    colour, marker, dash = style
    for place, e in zip(x, estimates, strict=True):
        if e.low is not None and e.high is not None:
            axes.plot([place, place], [e.low, e.high], color=colour, lw=1.2)
    axes.plot(x, [e.value for e in estimates], dash, color=colour, marker=marker, ms=4.5, lw=1.3, label=label)


def _beta_axis(axes: Axes, betas: pd.Series) -> None:
    """Decades, and 0 at the left."""
    first, last = int(np.floor(np.log10(betas.min()))), int(np.ceil(np.log10(betas.max())))
    axes.set_xscale("symlog", linthresh=10.0**first)
    decades = np.arange(first, last + 1, 1 + (last - first) // 5)
    axes.set_xticks([0, *10.0**decades], ["0", *(f"$10^{{{k}}}$" for k in decades)])
    axes.set_xticks([], minor=True)
    axes.set_xlim(0, 1.8 * betas.max())


def _finish(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, fontsize=8)
    axes.grid(axis="y", color="0.92")
    axes.tick_params(labelsize=8)


def _legend(figure: Figure, columns: int) -> None:
    shown = figure.axes[0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside upper center", ncols=columns, fontsize=8, frameon=False)
