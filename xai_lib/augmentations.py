"""Random changes of training images, one function for each kind of image.

Usage::

    AUGMENTATIONS["patch"](images, generator)      # (N, C, H, W) in [0, 1] -> the same shape and range

References: Byra et al. 2022, "Deep learning methods"; Sam-Millan et al. 2023, section 3.2.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def _draw(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` uniform numbers in [-1, 1] for each image: (N, count)."""
    return (torch.rand(len(images), count, generator=generator) * 2 - 1).to(images.device)


def _sample(images: Tensor, rows: Tensor, cols: Tensor, outside: str) -> Tensor:
    """Images seen through affine maps: `cols` and `rows` (N, 3) give a pixel's source in [-1, 1] coordinates."""
    grid = F.affine_grid(torch.stack((cols, rows), 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=outside, align_corners=False)


def ultrasound(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random horizontal flip, shift (8 %), zoom (10 %) and gain (15 %) of (N, C, H, W) in [0, 1].

    No vertical flip: in ultrasound it would put the acoustic shadow above the mass.
    """
    draw = _draw(images, 5, generator)
    zoom, flip = 1 + 0.1 * draw[:, 0], torch.where(draw[:, 1] < 0, -1.0, 1.0)
    zero = torch.zeros_like(zoom)
    cols = torch.stack((zoom * flip, zero, 0.16 * draw[:, 2]), 1)  # 0.16 in [-1, 1] coordinates = 8 % of the width
    rows = torch.stack((zero, zoom, 0.16 * draw[:, 3]), 1)
    return (_sample(images, rows, cols, "border") * (1 + 0.15 * draw[:, 4, None, None, None])).clamp(0, 1)


def patch(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flips in both directions and a rotation by up to 30 degrees (3.2.2); square images, black corners."""
    draw = _draw(images, 3, generator)
    across, down = (torch.where(draw[:, i] < 0, -1.0, 1.0) for i in (0, 1))
    angle = torch.deg2rad(30 * draw[:, 2])
    zero = torch.zeros_like(angle)
    cols = torch.stack((across * angle.cos(), -down * angle.sin(), zero), 1)
    rows = torch.stack((across * angle.sin(), down * angle.cos(), zero), 1)
    return _sample(images, rows, cols, "zeros")


def mammogram(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random vertical flip and gain (10 %); the chest wall stays on the left, so there is no horizontal flip.

    Each channel has its own gain. In training the images of a group are channels here: a pair of image and twin is
    flipped alike, and its brightness does not say which is which.
    """
    draw = _draw(images, 1 + images.shape[1], generator)
    flipped = torch.where(draw[:, 0, None, None, None] < 0, images.flip(2), images)
    return (flipped * (1 + 0.1 * draw[:, 1:, None, None])).clamp(0, 1)


def none(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are."""
    return images


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "ultrasound": ultrasound,
    "patch": patch,
    "mammogram": mammogram,
    "none": none,
}
