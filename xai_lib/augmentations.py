"""Random changes of training images, one function for each kind of image.

Usage::

    AUGMENTATIONS["patch"](images, generator)      # (N, C, H, W) in [0, 1] -> the same shape and range

References: Byra et al. 2022, "Deep learning methods"; Sam-Millan et al. 2023, section 3.2.2; Li et al. 2025, section
3.3.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def _draw(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` uniform numbers in [-1, 1] for each image: (N, count)."""
    return (torch.rand(len(images), count, generator=generator) * 2 - 1).to(images.device)


def _sample(images: Tensor, rows: Tensor, cols: Tensor, outside: str, mode: str = "bilinear") -> Tensor:
    """Images seen through affine maps: `cols` and `rows` (N, 3) give a pixel's source in [-1, 1] coordinates."""
    grid = F.affine_grid(torch.stack((cols, rows), 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode, padding_mode=outside, align_corners=False)


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


TURNS = 8  # flips and quarter turns of a square


def roi(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flips in both directions and a rotation by any angle, each with a probability of 50 % (Li 2025, 3.3).

    Square images, black corners. The first channel is an image, the others are masks: they move alike, and masks are
    sampled without interpolation.
    """
    draw = _draw(images, 4, generator)
    across, down = (torch.where(draw[:, i] < 0, -1.0, 1.0) for i in (0, 1))
    angle = torch.where(draw[:, 2] < 0, math.pi * draw[:, 3], 0.0)
    zero = torch.zeros_like(angle)
    cols = torch.stack((across * angle.cos(), -down * angle.sin(), zero), 1)
    rows = torch.stack((across * angle.sin(), down * angle.cos(), zero), 1)
    parts = ((images[:, :1], "bilinear"), (images[:, 1:], "nearest"))
    return torch.cat([_sample(part, rows, cols, "zeros", mode) for part, mode in parts if part.shape[1]], 1)


def roi_gain(images: Tensor, generator: torch.Generator) -> Tensor:
    """As `roi`, and a random gain (10 %) of the first channel; masks have none."""
    image, masks = roi(images, generator).tensor_split([1], 1)
    gain = 1 + 0.1 * _draw(images, 1, generator)
    return torch.cat(((image * gain[:, :, None, None]).clamp(0, 1), masks), 1)


def turned(images: Tensor, number: int) -> Tensor:
    """Square images (..., S, S) in one of eight positions: `number` quarter turns, from 4 on of the mirror image."""
    return torch.rot90(images.flip(-1) if number >= TURNS // 2 else images, number % 4, (-2, -1))


def turn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each square image in a random one of its eight positions: flips and quarter turns, without interpolation."""
    numbers = torch.randint(TURNS, (len(images),), generator=generator).tolist()
    return torch.stack([turned(image, number) for image, number in zip(images, numbers, strict=True)])


def version(images: Tensor, generator: torch.Generator) -> Tensor:
    """As `turn`, where the eight positions (or what a network makes of them) are there: (N, 8 C, H, W) -> (N, C, H, W).

    They lie behind each other in the channels.

    Raises:
        ValueError: the number of channels is not a multiple of 8.
    """
    if images.shape[1] % TURNS:
        raise ValueError(f"images: {images.shape[1]} channels do not hold {TURNS} positions")
    numbers = torch.randint(TURNS, (len(images),), generator=generator).to(images.device)
    return images.unflatten(1, (TURNS, -1))[torch.arange(len(images), device=images.device), numbers]


def none(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images as they are."""
    return images


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "ultrasound": ultrasound,
    "patch": patch,
    "mammogram": mammogram,
    "roi": roi,
    "roi_gain": roi_gain,
    "turn": turn,
    "version": version,
    "none": none,
}
