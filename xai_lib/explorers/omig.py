"""Study 6, hands on: the length c and the steps L of OMIG's path, on one virtual image.

Usage::

    omig_path({"#1": (ensemble, image)}, c=1.0, length=10)

Reference: Amanova et al. 2022, Algorithm 1, Figs. 3 and 14.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from xai_lib import omig, plotting
from xai_lib.explorers.common import Explorer, dropdown, steps
from xai_lib.studies.omig.study import Ensemble

LENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
STEPS = (1, 2, 5, 10, 20, 50, 100)


def omig_path(images: Mapping[str, tuple[Ensemble, NDArray[np.float32]]], c: float = 1.0, length: int = 10) -> Explorer:
    """Choose the image, c and L: the map, how far it is sensitivity analysis, and where the path ends.

    Args:
        images: virtual images (S, S) in grey levels by name, each with the ensemble that reads it.
        c: at the start.
        length: L at the start.
    """

    @lru_cache(maxsize=128)
    def walk(image: str, c: float, length: int) -> omig.Omig:
        ensemble, grey = images[image]
        return omig.explain(ensemble.members, ensemble.normalise(grey[None]), c, length, fast=True)

    def draw(image: str, c: float, length: int) -> Figure:
        return path_figure(f"{image}, c = {c:g}, L = {length}", images[image][1], walk(image, c, length))

    controls = {
        "image": dropdown("image", {name: name for name in images}, next(iter(images))),
        "c": steps("c", {f"{value:g}": value for value in sorted({*LENGTHS, c})}, c),
        "length": steps("L", {str(value): value for value in sorted({*STEPS, length})}, length),
    }
    return Explorer(draw, controls, "a virtual image, its sensitivity and its OMIG map")


def path_figure(title: str, grey: NDArray[np.float32], found: omig.Omig) -> Figure:
    """The image, both maps, and below them their correlation and the predicted midpoint before and after.

    The correlation is also given for sensitivity analysis whose outliers are clipped as those of the path are.

    The corners of a virtual image hold the largest values; the scales are those of its middle.

    Args:
        title: above all.
        grey: the image (S, S).
        found: what Algorithm 1 gives for it.
    """
    fields = (found.change, found.sensitivity, found.clipped_sensitivity)
    change, sensitivity, clipped = (m[0, 0].cpu().numpy() for m in fields)
    middle = np.zeros(change.shape, bool)
    border = len(middle) // 5
    middle[border : len(middle) - border, border : len(middle) - border] = True
    figure = plotting.maps_on_virtual({"": {"sensitivity": sensitivity, "OMIG": change}}, {"": grey}, middle)
    figure.set_size_inches(4.0, 2.3)  # noise makes large files
    for axes in figure.axes[1:]:  # shorter: there is little room
        axes.set_xlabel(axes.get_xlabel().replace(" per norm. grey", "/grey").replace("normalised ", ""))
    r = [np.corrcoef(change.ravel(), other.ravel())[0, 1] for other in (sensitivity, clipped)]
    figure.suptitle(title, fontsize=8.5)
    figure.supxlabel(
        f"correlation with sensitivity {r[0]:.2f}, clipped {r[1]:.2f}\n"
        f"predicted midpoint {float(found.start[0]):.4f} → {float(found.end[0]):.4f} µm",
        fontsize=8.5,
    )
    return figure
