"""Figures of study 5 that show numbers: ROC curves, the sweep of lambda 2, fills, and what happens in training.

Usage::

    tissue_rocs(scores)                                    # Fig. 2, left
    sweep_curves(table, {"D": "D, mm", "components": "components"})
    loss_curves(found.terms[:, 0].numpy(), (-1, -1, 0.1, 0.1))

Measures of masks by variant (Tabs. 1 and 2) are `mammograms.dots`. Images are in `deletion_images`.

Reference: Major et al. 2020.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, roc_curve

from xai_lib.deletion_region import TERMS
from xai_lib.plotting.common import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY
from xai_lib.plotting.patches import method_points
from xai_lib.studies.deletion.inpainting_losses import WEIGHTS

WIDTH = 9.0  # inches
TISSUES = {  # name, colour and dash of what is inpainted, in all figures; the paper's are green, blue and red
    "none": ("no inpainting", GREEN, "-"),
    "healthy": ("healthy tissue inpainted", BLUE, "--"),
    "mass": ("mass inpainted", ORANGE, "-."),
    "twin": ("true healthy twin (oracle)", BLACK, ":"),
}
TERM_NAMES = {
    "phi": ("φ, −log p", BLUE, "--"),
    "psi": ("ψ, log odds before − after", ORANGE, "-"),
    "tv": ("tv, sum over cells", GREEN, "-."),
    "ar": ("ar, size of the hole", PURPLE, ":"),
}
FILL_COLUMNS = {
    "error": "error in the hole,\ngrey values (0 to 1)",
    "shift": "|log odds − those of the twin|",
    "distance": "distance from healthy features\n(Mahalanobis)",
}
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def tissue_rocs(scores: pd.DataFrame) -> Figure:
    """ROC curves of the classifier with healthy tissue, the mass, or nothing inpainted (Fig. 2, left).

    Of several runs the mean curve is drawn, at each false positive rate, and their range is shaded; the legend has the
    mean AUC and its range. Where a tissue has no images without a mass, those of "none" serve.

    Args:
        scores: columns tissue ("none", and any of "healthy", "mass", "twin"), run, label and logit.

    Raises:
        ValueError: a column is missing, a logit is not finite, "none" lacks a label, or another tissue has no masses.
    """
    _columns("scores", scores, ("tissue", "run", "label", "logit"))
    if not np.isfinite(scores["logit"].to_numpy(float)).all():
        raise ValueError("scores: a logit is not finite")
    healthy = scores[(scores["tissue"] == "none") & (scores["label"] == 0)]
    figure, axes = plt.subplots(figsize=(5.2, 5.8), layout="constrained")
    for tissue, (name, colour, dash) in TISSUES.items():
        part = scores[scores["tissue"] == tissue]
        if part.empty and tissue != "none":
            continue
        runs = [run if (run["label"] == 0).any() else pd.concat([run, healthy]) for _, run in part.groupby("run")]
        if not runs or any(set(run["label"]) != {0, 1} for run in runs):
            raise ValueError(f"scores: tissue {tissue!r}: expected logits of label 0 and of label 1")
        curves = [roc_curve(run["label"], run["logit"], drop_intermediate=False)[:2] for run in runs]
        areas = [auc(*curve) for curve in curves]
        label = f"{name}: AUC {np.mean(areas):.2f}"
        if len(runs) > 1:
            label += f" ({min(areas):.2f} to {max(areas):.2f} in {len(runs)} runs)"
        _runs(axes, curves, label, colour, dash)
    axes.plot([0, 1], [0, 1], color="0.7", lw=0.8)
    axes.set(xlim=(-0.01, 1), ylim=(0, 1.01), aspect="equal")
    axes.set_xlabel("1 − specificity", fontsize=9)
    axes.set_ylabel("sensitivity", fontsize=9)
    axes.tick_params(labelsize=8.5)
    figure.legend(fontsize=8.5, loc="outside upper left", frameon=False, handlelength=3)
    return figure


def sweep_curves(table: pd.DataFrame, columns: Mapping[str, str], used: float | None = 0.1) -> Figure:
    """Measures over lambda 2 on a logarithmic axis, a panel each; 0, which has no logarithm, stands apart at the left.

    Args:
        table: columns lambda2 and those to draw, an `Estimate` each.
        columns: column -> label of its panel, with its unit.
        used: the value of all other figures, a dotted line; None: no line.

    Raises:
        ValueError: a column is missing, or no lambda2 is above 0, or one is below.
    """
    _columns("table", table, ("lambda2", *columns))
    ordered = table.sort_values("lambda2")
    values = ordered["lambda2"].to_numpy(float)
    if not (values >= 0).all() or not (values > 0).any():
        raise ValueError(f"table: lambda2 is {values.tolist()}, expected values from 0, and one above it")
    smallest, largest = np.log10(values[values > 0][[0, -1]])
    gap = max(0.3 * (largest - smallest), 0.5)
    places = np.where(values > 0, np.log10(np.where(values > 0, values, 1)), smallest - gap)
    across = min(len(columns), 4)
    down = -(-len(columns) // across)
    size = (WIDTH if across > 1 else WIDTH / 2, 2.7 * down)
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(columns) :]:
        axes.set_axis_off()
    for axes, (column, label) in zip(grid.flat, columns.items(), strict=False):
        found = list(ordered[column])
        ends = [(e.value, e.value) if e.low is None or e.high is None else (e.low, e.high) for e in found]
        axes.vlines(places, *np.array(ends, float).T, color=BLUE, lw=1.5)
        middles, some = np.array([e.value for e in found], float), values > 0
        axes.plot(places[some], middles[some], color=BLUE, marker="o", ms=5, lw=1.4)
        axes.plot(places[~some], middles[~some], color=BLUE, marker="s", ms=6, mfc="white", ls="")
        if (~some).any():
            axes.axvspan(smallest - 1.6 * gap, smallest - 0.5 * gap, color="0.94", zorder=0)
            axes.set_xlim(smallest - 1.6 * gap, largest + 0.3 * gap)
        if used:
            axes.axvline(np.log10(used), color="0.5", ls=":", lw=1.3)
        axes.set_xticks(places, [f"{value:g}".lstrip("0") or "0" for value in values])
        axes.set_xlabel("λ$_2$" + (f" (dotted: {used:g}, used elsewhere)" if used else ""), fontsize=8.5)
        axes.set_title(label, fontsize=9)
        _plain(axes)
    return figure


def fill_points(table: pd.DataFrame, columns: Mapping[str, str] | None = None) -> Figure:
    """For every fill of a hole: how far pixels, score and features are from the true healthy ones.

    Args:
        table: columns fill, hole and those to draw, an `Estimate` each; one that is not defined is left out.
        columns: column -> label of its panel, with its unit; None: `FILL_COLUMNS`.

    Raises:
        ValueError: a column is missing.
    """
    shown = FILL_COLUMNS if columns is None else columns
    _columns("table", table, ("fill", "hole", *shown))
    panels = {
        label: {
            f"hole: {hole}": dict(zip(part["fill"], part[column], strict=True))
            for hole, part in table.groupby("hole", sort=False)
        }
        for column, label in shown.items()
    }
    figure = method_points(panels, width=WIDTH)
    for axes in figure.axes:
        axes.set_xlim(left=min(0, axes.get_xlim()[0]))
    return figure


def loss_curves(terms: ArrayLike, weights: Sequence[float]) -> Figure:
    """The search of one mask, step by step: what each term adds to the loss (left), and the terms themselves (right).

    Args:
        terms: (steps, 4): phi, psi, tv and ar, as in `DeletionRegion.terms`.
        weights: of the four in the minimised loss, with their signs; the paper's are (-1, -1, 0.1, 0.1).

    Raises:
        ValueError: another shape, or values that are not finite: the image was skipped.
    """
    values, weighing = np.asarray(terms, float), np.asarray(weights, float)
    if values.ndim != 2 or values.shape[1] != len(TERMS) or weighing.shape != (len(TERMS),):
        raise ValueError(
            f"terms, weights: shapes {values.shape}, {weighing.shape}; expected (steps, {len(TERMS)}), ({len(TERMS)},)"
        )
    if not np.isfinite(values).all():
        raise ValueError("terms: not finite; an image that was skipped has no search to show")
    steps = np.arange(len(values))
    figure, axes = plt.subplot_mosaic(
        [["loss", "phi", "psi"], ["loss", "tv", "ar"]], figsize=(WIDTH, 3.6), width_ratios=(1.5, 1, 1),
        layout="constrained",
    )  # fmt: skip
    axes["loss"].plot(steps, values @ weighing, color=BLACK, lw=2, label="loss")
    for k, name in enumerate(TERMS):
        title, colour, dash = TERM_NAMES[name]
        label = f"{weighing[k]:+g} {name}".replace("-", "−")
        axes["loss"].plot(steps, weighing[k] * values[:, k], dash, color=colour, lw=1.8, label=label)
        axes[name].plot(steps, values[:, k], dash, color=colour, lw=1.8)
        axes[name].set_title(title, fontsize=9)
    axes["loss"].set_title("what each term adds to the loss", fontsize=9)
    axes["loss"].legend(fontsize=8.5, frameon=False)
    for name in ("loss", "tv", "ar"):
        axes[name].set_xlabel("step", fontsize=8.5)
    for ax in axes.values():
        _plain(ax)
    return figure


def training_curves(history: Sequence[Mapping[str, float]], first_phase: int | None = None) -> Figure:
    """The inpainter's training by epoch: error in the holes of images that it does not learn from, and its loss.

    Args:
        history: a row per epoch, as `studies.deletion.inpainting_training.train` returns them.
        first_phase: epochs before the encoder's norms were frozen; a dotted line.

    Raises:
        ValueError: no epoch, or a column is missing.
    """
    table = pd.DataFrame(history)
    _columns("history", table, ("error", "loss", *WEIGHTS))
    epochs = np.arange(1, len(table) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    left.plot(epochs, table["error"], color=BLACK, marker="o", ms=3.5, lw=1.6)
    left.set_title("mean absolute error in holes, held-out images", fontsize=9)
    left.set_ylabel("grey values (0 to 1)", fontsize=8.5)
    left.set_ylim(bottom=0)
    right.plot(epochs, table["loss"], color=BLACK, marker="o", ms=3.5, lw=2, label="loss")
    looks = zip((BLUE, ORANGE, GREEN, PURPLE, SKY, "0.5"), ("-", "--", "-.", ":", "-", "--"), strict=True)
    for (name, weight), (colour, dash) in zip(WEIGHTS.items(), looks, strict=True):
        if not table[name].any():
            continue  # it had no weight
        label = f"{weight:g} {name.replace('_', ' ')}"
        right.plot(epochs, weight * table[name], dash, color=colour, lw=1.5, label=label)
    right.set_yscale("log")
    right.set_title("loss and what its terms add (log axis)", fontsize=9)
    right.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in (left, right):
        if first_phase is not None:
            axes.axvline(first_phase + 0.5, color="0.5", ls=":", lw=1.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch" + ("" if first_phase is None else " (dotted: the second phase begins)"), fontsize=8.5)
        _plain(axes)
    return figure


def _columns(name: str, table: pd.DataFrame, wanted: Sequence[str]) -> None:
    """Refuse an empty table, and one that lacks a column."""
    lacking = [column for column in wanted if column not in table]
    if lacking or table.empty:
        what = f"lacks {', '.join(lacking)}" if lacking else "is empty"
        raise ValueError(f"{name}: {what}; expected rows with the columns {', '.join(wanted)}")


def _runs(axes: Axes, curves: Sequence[Curve], label: str, colour: str, dash: str) -> None:
    """Mean and range of ROC curves, which are steps, at every false positive rate that one of them has."""
    rates = np.unique(np.concatenate([fpr for fpr, _ in curves]))
    found = np.stack([tpr[np.searchsorted(fpr, rates, side="right") - 1] for fpr, tpr in curves])  # (runs, rates)
    mean, low, high = (np.r_[0, line] for line in (found.mean(0), found.min(0), found.max(0)))
    x = np.r_[0, rates]
    axes.plot(x, mean, dash, color=colour, lw=2, label=label, drawstyle="steps-post")
    if len(curves) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.25, lw=0, step="post")


def _plain(axes: Axes) -> None:
    axes.grid(color="0.93")
    axes.tick_params(labelsize=8.5)
