"""Study 5, hands on: the threshold theta on the soft mask, the region it gives, and what inpainting that region does.

Usage::

    threshold(ready.classifier, ready.inpainter, scenes, found, theta=0.5)

Reference: Major et al. 2020, section 2, "Image-wise Saliency Mapping".
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from xai_lib import plotting
from xai_lib.data import Case
from xai_lib.deletion_region import DeletionRegion, Inpainter, fill, log_odds
from xai_lib.explorers.common import Explorer, dropdown, slider
from xai_lib.plotting.common import BLACK, GREEN, ORANGE
from xai_lib.studies.deletion.searches import Scene

THETAS = tuple(round(0.05 * k, 2) for k in range(1, 20))  # of the curve


def threshold(
    model: nn.Module, inpainter: Inpainter, scenes: Sequence[Scene], found: DeletionRegion, theta: float = 0.5
) -> Explorer:
    """Choose an image and drag theta: everything of the mask that is not above it is inpainted.

    Args:
        model: classifier with one logit, in eval mode.
        inpainter: see `deletion_region`.
        scenes: the images that were searched.
        found: their soft masks, `keep` (N, H, W).
        theta: the study's.
    """
    device = next(model.parameters()).device
    twins = torch.stack([scene.twin for scene in scenes]).to(device)
    with torch.no_grad():
        healthy = log_odds(model, twins).tolist()

    @lru_cache(maxsize=512)
    def cut(image: int, theta: float) -> tuple[Tensor, float]:
        """The inpainted image (1, H, W) and its log odds."""
        x, hole = scenes[image].case.image[None].to(device), (found.keep[image] <= theta).to(device)
        with torch.no_grad():
            filled = fill(inpainter, x, hole[None]) if hole.any() else x
            return filled[0].cpu(), float(log_odds(model, filled)[0])

    def draw(image: int, theta: float) -> Figure:
        curve = {value: cut(image, value)[1] for value in THETAS}
        filled, after = cut(image, round(theta, 3))
        region = (found.keep[image] <= theta).cpu().numpy()
        scores = (float(found.score[image]), after, healthy[image])
        return threshold_figure(scenes[image].case, region, filled, theta, curve, scores)

    names = {f"image {scene.index}": k for k, scene in enumerate(scenes)}
    controls = {"image": dropdown("image", names, 0), "theta": slider("theta", 0.01, 0.99, 0.01, theta)}
    return Explorer(draw, controls, "the region below theta, the image with it inpainted, and the score")


def threshold_figure(
    case: Case,
    region: NDArray[np.bool_],
    filled: Tensor,
    theta: float,
    curve: dict[float, float],
    scores: tuple[float, float, float],
) -> Figure:
    """The region over the image, the inpainted image, and the log odds against theta.

    Args:
        case: the image (1, H, W) with its annotation.
        region: what is inpainted, (H, W).
        filled: the image with it inpainted, (1, H, W).
        theta: the threshold that gave it.
        curve: log odds by theta.
        scores: log odds of the image, of `filled`, and of the healthy twin.
    """
    before, after, twin = scores
    figure, axes = plt.subplots(1, 3, figsize=(6.6, 3.4), width_ratios=(1, 1, 1.3), layout="constrained")
    breast = float((case.image > 0).float().mean())
    plotting.show_image(axes[0], case, title=f"orange: {region.mean() / breast:.1%} of the breast")
    if region.any() and not region.all():
        axes[0].contour(region.astype(float), levels=[0.5], colors=[ORANGE], linewidths=1.2)
    axes[1].imshow(filled[0].numpy(), cmap="gray", vmin=0, vmax=1)
    axes[1].set_title("inpainted", fontsize=8)
    axes[1].set_axis_off()
    axes[2].plot(list(curve), list(curve.values()), color="0.55", lw=1.4)
    for value, colour, style, name in ((before, BLACK, "-", "image"), (twin, GREEN, "--", "healthy twin")):
        axes[2].axhline(value, color=colour, ls=style, lw=1.2, label=f"{name} {value:+.1f}")
    axes[2].plot(theta, after, "o", color=ORANGE, ms=8, label=f"inpainted {after:+.1f}")
    axes[2].axhline(0, color="grey", lw=0.8, ls=":")
    axes[2].set_xlabel("theta", fontsize=8)
    axes[2].set_title("log odds of a mass", fontsize=8)
    axes[2].set_xlim(0, 1)
    axes[2].tick_params(labelsize=7)
    figure.legend(loc="outside lower right", ncols=3, fontsize=7.5, frameon=False)
    return figure
