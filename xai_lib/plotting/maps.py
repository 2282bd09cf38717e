"""Figures of attribution maps: one image explained by several methods, or several images by one."""

from collections.abc import Mapping

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from xai_lib.attribution import Attribution
from xai_lib.data import Case
from xai_lib.plotting.common import show_image

ROBUST = 99.5  # percentile of |map| that gets the strongest colour; single pixels above it would whiten the rest


def overlay(axes: Axes, case: Case, values: ArrayLike, title: str = "", limit: float | None = None) -> Axes:
    """An image with a signed map of its size over it: red argues for the target, blue against, clear is zero.

    Args:
        axes: where to draw.
        case: the image.
        values: map (H, W).
        title: above it.
        limit: value of the strongest colour; None takes the 99.5th percentile of the map's absolute values.
    """
    m = np.asarray(values, float)
    limit = limit or max(float(np.percentile(np.abs(m), ROBUST)), float(np.abs(m).max()) * 1e-3, 1e-12)
    show_image(axes, case, title=title, bar=False)
    strength = np.clip(np.abs(m) / limit, 0, 1)
    axes.imshow(m, cmap="RdBu_r", norm=TwoSlopeNorm(0, -limit, limit), alpha=0.15 + 0.75 * strength)
    return axes


def methods(case: Case, found: Mapping[str, Attribution], row: int = 0, columns: int = 5) -> Figure:
    """One image explained by several methods side by side, each on its own scale, with its passes and seconds.

    Args:
        case: the image, of the maps' size.
        found: by method.
        row: which image of the attributions.
        columns: panels in a row.
    """
    rows = -(-(len(found) + 1) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(1.75 * columns, 2.15 * rows), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    show_image(grid.flat[0], case, title="image, mass outlined" if case.mask is not None else "image")
    for axes, (name, a) in zip(grid.flat[1:], found.items(), strict=False):
        passes = f"{a.forward_passes} F" + (f" + {a.backward_passes} B" if a.backward_passes else "")
        overlay(axes, case, a.map[row].cpu().numpy(), f"{name.replace('_', ' ')}\n{passes}, {a.seconds:.2f} s")
    figure.tight_layout(pad=0.5)
    return figure


def explained(case: Case, a: Attribution, row: int = 0) -> Figure:
    """An image, and beside it its map with a colour bar."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), layout="constrained")
    show_image(axes[0], case, title="image")
    values = a.map[row].cpu().numpy()
    overlay(
        axes[1], case, values, f"{a.method.replace('_', ' ')}, output {int(a.target[row])}: {float(a.scores[row]):+.2f}"
    )
    figure.colorbar(axes[1].images[-1], ax=axes[1], fraction=0.046, label="attribution (blue against, red for)")
    return figure
