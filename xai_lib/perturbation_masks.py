"""Masks of perturbation maps: how RISE, meaningful and extremal perturbations draw them from coarse cells.

Usage::

    masks = enlarge(grids, shifts, (320, 160))                               # RISE: (M, s, s) -> (M, H, W)
    masks = gaussian_weights(320, 40, 7.0) @ cells @ gaussian_weights(160, 20, 7.0).T      # meaningful: (N, h, w)
    masks = smooth_masks(cells, radial_weights(7, 21.0, points=2), 0.05)     # extremal: (N, 1, h, w) -> (N, 2h, 2w)

All lengths are in pixels. Nothing here knows a classifier; what is searched and averaged is in `perturbation_maps`.

References: Petsiuk, Das and Saenko 2018, arXiv:1806.07421, section 3.2; Fong and Vedaldi 2017, arXiv:1704.03296,
section 4; Fong, Patrick and Vedaldi 2019, arXiv:1910.08485, section 3.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def enlarge(grids: Tensor, shifts: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (M, H, W) from grids (M, s, s): drawn bilinearly on (s + 1) cells a side, and cut out at their shift.

    Shifts (M, 2), row and col, from 0 to one less than a cell; a cell is H / s by W / s pixels, rounded up.
    """
    height, width = size
    side = grids.shape[-1]
    whole = [(side + 1) * math.ceil(n / side) for n in size]
    large = F.interpolate(grids[:, None], size=whole, mode="bilinear", align_corners=False)[:, 0]
    cuts = [mask[r : r + height, c : c + width] for mask, (r, c) in zip(large, shifts.tolist(), strict=True)]
    return torch.stack(cuts)


def gaussian_weights(pixels: int, cells: int, sigma: float) -> Tensor:
    """Gaussian weights (pixels, cells) of evenly spaced cells at each pixel; each row sums to 1. Sigma in pixels."""
    at = torch.arange(pixels, dtype=torch.float64)[:, None] + 0.5
    centre = (torch.arange(cells, dtype=torch.float64) + 0.5) * pixels / cells
    return torch.softmax(-(at - centre).square() / (2 * sigma**2), dim=1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of images (N, 1, H, W); sigma in pixels, 0: none. At the border the weights inside sum to 1."""
    if sigma == 0:
        return x
    rows, cols = (gaussian_weights(n, n, sigma).to(x) for n in x.shape[-2:])
    return rows @ x @ cols.T


def centred_disc(score: Callable[[Tensor], Tensor], ones: Tensor, suppression: float) -> Tensor:
    """Masks (N, h, w), 0 in the smallest centred disc that takes away enough of each score, 1 elsewhere.

    Args:
        score: masks (N, h, w) -> scores (N,).
        ones: the masks (N, h, w) that keep everything.
        suppression: enough is this share of what a mask of 0s takes away. If no disc does, the mask is 0 everywhere.
    """
    away = [torch.arange(n).to(ones) - (n - 1) / 2 for n in ones.shape[1:]]
    distance = torch.hypot(away[0][:, None], away[1])
    cells = torch.zeros_like(ones)
    with torch.no_grad():
        before = score(ones)
        wanted = before - suppression * (before - score(cells))
        for radius in range(math.ceil(float(distance.max())), 0, -1):
            disc = (distance > radius).to(ones).expand_as(ones)
            cells = torch.where((score(disc) <= wanted)[:, None, None], disc, cells)
    return cells.contiguous()


def radial_weights(step: int, sigma: float, points: int) -> Tensor:
    """Kernel (K, points * points): weight of each of K neighbouring cells at points spread evenly in a cell.

    ``exp(-2 max(0, d / sigma - 1/2)^2)`` of the distance d between point and cell centre, in pixels; the neighbours are
    those within ``1 + ceil(sigma / step)`` cells in rows and columns, as in the authors' program.
    """
    radius = 1 + math.ceil(sigma / step)
    point = ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5) * step
    away = torch.arange(-radius, radius + 1)[:, None] * step - point  # (2 radius + 1, points)
    distance = torch.hypot(away[:, None, :, None], away[None, :, None, :])  # neighbour row, col; point row, col
    return torch.exp(-2 * (distance / sigma - 0.5).clamp(min=0).square()).reshape((2 * radius + 1) ** 2, points**2)


def smooth_masks(cells: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Masks (N, h * points, w * points) of cells (N, 1, h, w): a smooth maximum over neighbours of weight times cell.

    The smooth maximum of values v is their mean weighted by softmax(v / temperature): it is a little below the maximum.
    Cells beyond the border repeat those at it.
    """
    side = math.isqrt(len(weights))
    near = F.unfold(F.pad(cells, (side // 2,) * 4, mode="replicate"), side)
    near = near.reshape(len(cells), len(weights), 1, *cells.shape[2:])
    values = weights[:, :, None, None] * near  # (N, K, points * points, h, w)
    masks = (values * torch.softmax(values / temperature, dim=1)).sum(1)
    return F.pixel_shuffle(masks, math.isqrt(weights.shape[1]))[:, 0]


def area_misfit(masks: Tensor, area: float) -> Tensor:
    """Mean squared difference (N,) of each mask's sorted values (N, H, W) from 0s, then a share `area` of 1s."""
    values = masks.flatten(1).sort(dim=1).values
    wanted = torch.arange(values.shape[1], device=values.device) >= int(values.shape[1] * (1 - area))
    return (values - wanted.to(values)).square().mean(1)
