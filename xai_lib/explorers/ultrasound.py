"""Study 3, hands on: a class activation map, its extreme points, and which region of the image they hit.

Usage::

    pointing(done, [4, 17, 30])

Reference: Byra et al. 2022, "Evaluations", Figs. 3 and 4; Zhang et al. 2018 (a tolerance of 15 pixels).
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch
from numpy.typing import NDArray

from xai_lib import plotting
from xai_lib.attribution.cam import resize_map
from xai_lib.data import Case
from xai_lib.explorers.common import Explorer, checkbox, dropdown, slider
from xai_lib.localization import REGIONS, area_shares, extremes, pointing_game
from xai_lib.plotting.common import class_name
from xai_lib.studies.ultrasound.experiment import Done

EXTREMES = {"maximum (malignant)": "maximum", "minimum (benign)": "minimum", "either": "both"}
MARKERS = {"maximum": "x", "minimum": "o"}


def pointing(done: Done, indices: Sequence[int]) -> Explorer:
    """Choose image, extreme and tolerance, and whether cells are drawn where the network looks; no map is computed.

    Args:
        done: the study's networks and images.
        indices: images of `done.dataset` to choose from; those that the first network was not tested on are left out.

    Raises:
        ValueError: none of them was tested.
    """
    run = done.runs[0]
    rows = {int(i): int(np.flatnonzero(run.test == i)[0]) for i in indices if i in set(run.test.tolist())}
    if not rows:
        raise ValueError(f"indices: {list(indices)} hold no image that the first network was tested on")

    def draw(image: int, which: str, tolerance: int, aligned: bool) -> Figure:
        cam, logit = (found[run.epoch()][rows[image]] for found in (run.maps, run.logits))
        case, areas = done.dataset[image], done.areas[image]
        offset = np.asarray(run.offset) * areas.shape if aligned else np.zeros(2)
        return pointing_figure(case, areas, cam, which, tolerance, (float(offset[0]), float(offset[1])), float(logit))

    names = {f"image {i}, {class_name(done.dataset[i])}": i for i in rows}
    controls = {
        "image": dropdown("image", names, next(iter(rows))),
        "which": dropdown("extreme", EXTREMES, "both"),
        "tolerance": slider("tolerance, pixels", 0, 60, 1, 0),
        "aligned": checkbox("draw cells where the network looks"),
    }
    return Explorer(draw, controls, "a class activation map, its extreme points and the regions that they hit")


def pointing_figure(
    case: Case,
    areas: NDArray[np.uint8],
    cam: NDArray[np.float32],
    which: str,
    tolerance: int,
    offset: tuple[float, float],
    logit: float,
) -> Figure:
    """The regions with hit or miss beside the map with its points.

    Args:
        case: the image (1, H, W).
        areas: its regions (H, W), see `localization.regions`.
        cam: its map (h, w).
        which: "maximum", "minimum" or "both".
        tolerance: a point hits what it comes within so many pixels of.
        offset: (rows, cols) in pixels that map and points are moved by.
        logit: of the image; positive is malignant.
    """
    height, width = areas.shape
    hits, chance = pointing_game(cam, areas, which, tolerance, offset), area_shares(areas)
    found = extremes(cam, (height, width), offset)
    figure, axes = plt.subplots(1, 2, figsize=(6.6, 3.0), layout="constrained")
    for ax in axes:
        plotting.show_image(ax, case, title="", bar=ax is axes[0])
    for name, bit in REGIONS.items():
        shade = np.where(areas & bit > 0, 1.0, np.nan)
        axes[0].imshow(shade, cmap=ListedColormap([plotting.REGION_COLOURS[name]]), alpha=0.5)
    large = resize_map(torch.from_numpy(np.asarray(cam, np.float32))[None], (height, width))[0].numpy()
    limit = max(float(np.abs(large).max()), 1e-9)
    place = (offset[1] - 0.5, width + offset[1] - 0.5, height + offset[0] - 0.5, offset[0] - 0.5)
    axes[1].imshow(large, cmap="RdBu_r", norm=TwoSlopeNorm(0, -limit, limit), alpha=0.5, extent=place)
    for name, marker in MARKERS.items():
        if which not in (name, "both"):
            continue
        row, col = getattr(found, name)
        for ax in axes:
            for lw, colour in ((3.4, "white"), (1.6, "black")):
                face = {"facecolors": "none"} if marker == "o" else {}
                ax.scatter(col, row, marker=marker, s=60, linewidths=lw, color=colour, zorder=4, **face)
                if tolerance:
                    ax.add_patch(Circle((col, row), tolerance, fill=False, ec=colour, lw=0.5 * lw, ls="-", zorder=4))
    for ax in axes:
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes[0].set_title("regions", fontsize=8)
    axes[1].set_title(f"map (red: malignant), logit {logit:+.1f}", fontsize=8)
    said = {name: f"{name}: {'HIT' if hits[name] else 'miss'} (area {chance[name]:.0%})" for name in REGIONS}
    lines = [Patch(color=plotting.REGION_COLOURS[name], label=text) for name, text in said.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
