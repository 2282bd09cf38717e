"""RISE, meaningful perturbations and extremal perturbations: what study 5 is compared with.

Usage::

    found = rise(model, x, seed=0)                          # (N, H, W): weight of evidence at each pixel
    found = meaningful_perturbation(model, x)               # (N, H, W) in [0, 1]: how much of each pixel is deleted
    found = extremal_perturbation(model, x, area=0.05)      # (N, H, W) in [0, 1]: the mask with 5 % of the image

Theory: all three ask what a classifier says when part of the image is removed. RISE blackens random parts and averages
the masks, each weighted by the score. The other two replace parts by a blurred image and search for the mask: the
smallest one whose deletion lowers the score (2017), or the one of a given area that preserves or deletes the score best
(2019). The classifier gives one logit for each grey image; the images of a batch are explained independently.

Lengths are published for images of 224 x 224 pixels. They are multiplied here by ``sqrt(H * W) / 224``, and a grid of
square cells keeps its number of cells where an image is not square. RISE keeps its cells x cells, as published.

References: Petsiuk, Das and Saenko 2018, arXiv:1806.07421; Fong and Vedaldi 2017, arXiv:1704.03296; Fong, Patrick and
Vedaldi 2019, arXiv:1910.08485.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from xai_lib.attribution.core import BAR_AFTER_S, Network, Refused, chunked
from xai_lib.config import torch_generator
from xai_lib.perturbation_masks import (
    area_misfit,
    blur,
    centred_disc,
    enlarge,
    gaussian_weights,
    radial_weights,
    smooth_masks,
)

SIDE = 224  # pixels; the published lengths are for images of this side


def _check(settings: object, above_0: str, shares: str = "") -> None:
    for name in (above_0 + " " + shares).split():
        value = getattr(settings, name)
        if not value > 0 or (name in shares.split() and not value < 1):
            raise ValueError(f"{name}: {value}, expected more than 0{' and less than 1' * (name in shares.split())}")


@dataclass(frozen=True)
class Rise:
    """Petsiuk 2018, section 4: `masks` masks of `cells` x `cells`, a cell is kept with probability `p`.

    `chunk` bounds the memory: masks at a time, for one image after the other.
    """

    masks: int = 4000
    cells: int = 7
    p: float = 0.5
    chunk: int = 32

    def __post_init__(self) -> None:
        _check(self, "masks cells chunk", shares="p")


@dataclass(frozen=True)
class Meaningful:
    """Fong and Vedaldi 2017, section 4.3. Lengths in pixels of a 224 x 224 image; `chunk` images are searched together.

    `l1` weighs the deleted cells (a sum), `tv` the differences between neighbours to the power of `beta` (a sum). The
    search starts from the smallest centred disc whose deletion takes away `suppression` of what deleting all does.
    """

    steps: int = 300
    lr: float = 0.1
    l1: float = 1e-4
    tv: float = 1e-2
    beta: float = 3.0
    cells: int = 28
    blur: float = 10.0
    mask_blur: float = 5.0
    jitter: int = 4
    suppression: float = 0.99
    chunk: int = 8

    def __post_init__(self) -> None:
        _check(self, "steps lr cells blur mask_blur jitter chunk", shares="suppression")


@dataclass(frozen=True)
class Extremal:
    """Fong 2019 and its authors' program. Lengths in pixels of a 224 x 224 image; `chunk` images are searched together.

    `weight` is that of the area constraint and is multiplied by `growth` after every step. `flip`: the perturbed image
    is seen mirrored in every second step. `temperature` is that of the smooth maximum.
    """

    variant: Literal["preserve", "delete"] = "preserve"
    steps: int = 800
    lr: float = 0.01
    momentum: float = 0.9
    weight: float = 300.0
    growth: float = 1.0035
    step: int = 7
    points: int = 2
    sigma: float = 21.0
    temperature: float = 0.05
    blur: float = 20.0
    levels: int = 8
    flip: bool = True
    chunk: int = 4

    def __post_init__(self) -> None:
        if self.variant not in ("preserve", "delete"):
            raise ValueError(f"variant: {self.variant!r} is unknown, expected 'preserve' or 'delete'")
        _check(self, "steps lr step points sigma temperature blur chunk")
        if self.levels < 2:
            raise ValueError(f"levels: {self.levels}, expected at least 2 (the blurred image and the image)")


def rise(model: nn.Module, x: Tensor, settings: Rise = Rise(), seed: int = 0, progress: bool = False) -> Tensor:
    """Mean of random masks, each weighted by the score sigmoid(logit) of the image it leaves (eq. 6).

    Args:
        model: in eval mode; one logit for each image. It is not changed.
        x: grey images (N, 1, H, W); what a mask removes is black.
        settings: the published ones.
        seed: of the masks, which are the same for all images and for any chunk.
        progress: show a bar on work of more than a few seconds.

    Returns:
        (N, H, W): sum of score times mask, divided by the number of masks times p.

    Raises:
        TypeError: images that are no floating-point tensor.
        ValueError: images of another shape or not finite; a model in train mode, or with other outputs or none finite.
    """
    network, x = _prepared(model, x, progress)
    height, width = x.shape[-2:]
    generator = torch_generator(seed, "rise")
    grids = torch.rand(settings.masks, settings.cells, settings.cells, generator=generator) < settings.p
    cell = (math.ceil(height / settings.cells), math.ceil(width / settings.cells))
    shifts = torch.stack([torch.randint(0, c, (settings.masks,), generator=generator) for c in cell], dim=1)

    def run(start: int, stop: int) -> Tensor:  # -> (N, H, W)
        masks = enlarge(grids[start:stop].to(x), shifts[start:stop], (height, width))  # (m, H, W)
        with torch.no_grad():
            scores = [torch.sigmoid(_logits(network, image * masks[:, None])) for image in x]  # N times (m,)
        return torch.einsum("nm,mhw->nhw", torch.stack(scores), masks)

    total = torch.zeros_like(x[:, 0], dtype=torch.float64)
    for _, _, value in chunked(network, settings.masks, run, settings.chunk, "masks"):
        total += value
    return (total / (settings.masks * settings.p)).to(x.dtype)


def meaningful_perturbation(
    model: nn.Module, x: Tensor, settings: Meaningful = Meaningful(), seed: int = 0, progress: bool = False
) -> Tensor:
    """The smallest smooth part of the image whose blurring lowers the score sigmoid(logit) (eq. 4).

    The mask m of kept parts minimises ``score + l1 sum(1 - m) + tv sum |difference of neighbours| ** beta`` on a coarse
    grid that a Gaussian brings to the image's size; Adam, clamped to [0, 1]. In each step the image lies a few pixels
    elsewhere under the mask (jitter, here around 0; the border is repeated).

    Args and errors as in `rise`, and a ValueError for a model that cannot be differentiated. The seed is that of the
    jitter, which is the same for all images.

    Returns:
        1 - m (N, H, W) in [0, 1]: 1 where the image is blurred.
    """
    network, x = _prepared(model, x, progress)
    jitter = max(1, round(settings.jitter * _scale(x)))
    shifts = torch.randint(0, jitter, (settings.steps, 2), generator=torch_generator(seed, "meaningful")).tolist()
    parts = [_meaningful(network, part, settings, jitter // 2, shifts) for part in x.split(settings.chunk)]
    return torch.cat(parts)


def _meaningful(network: Network, x: Tensor, settings: Meaningful, pad: int, shifts: list[list[int]]) -> Tensor:
    height, width = x.shape[-2:]
    scale = _scale(x)
    rows, cols = (
        gaussian_weights(n, max(1, round(settings.cells * n / (SIDE * scale))), settings.mask_blur * scale).to(x)
        for n in (height, width)
    )
    image, blurred = (F.pad(v, (pad,) * 4, mode="replicate") for v in (x, blur(x, settings.blur * scale)))

    def score(cells: Tensor, top: int = pad, left: int = pad) -> Tensor:  # (N, h, w) -> (N,)
        keep = (rows @ cells @ cols.T)[:, None]
        seen = (..., slice(top, top + height), slice(left, left + width))
        return torch.sigmoid(_logits(network, torch.lerp(blurred[seen], image[seen], keep)))

    def loss(cells: Tensor, step: int) -> Tensor:
        down, across = (cells.diff(dim=d).abs().pow(settings.beta).sum() for d in (1, 2))
        return score(cells, *shifts[step]).sum() + settings.l1 * (1 - cells).sum() + settings.tv * (down + across)

    cells = centred_disc(score, x.new_ones(len(x), rows.shape[1], cols.shape[1]), settings.suppression)
    _descend(cells, torch.optim.Adam([cells], settings.lr), loss, settings.steps, network.progress)
    return (1 - rows @ cells @ cols.T).clamp(0, 1)


def extremal_perturbation(
    model: nn.Module, x: Tensor, area: float, settings: Extremal = Extremal(), progress: bool = False
) -> Tensor:
    """The smooth mask of a given area that preserves the logit best, or deletes it best.

    The mask minimises ``-logit(image kept in m) + weight mean((sorted m - r)^2)``, or for "delete" ``logit(image
    blurred in m) + ...``, where r is the sorted mask of the wanted area: 0s, then 1s. It is drawn by `smooth_masks`
    from cells in [0, 1] that start at 1; gradient descent with momentum. Blurring is gradual: m goes through `levels`
    images of falling blur. Simpler than in the authors' program: the area is that in the image, without a margin around
    it; cells beyond the border repeat those at it, or the border would be favoured at the start; the mask is computed
    at `points` x `points` points of each cell and bilinear between them, not at every pixel.

    Args and errors as in `meaningful_perturbation`, and `area`: share of the image, in (0, 1), else a ValueError.

    Returns:
        m (N, H, W) in [0, 1]. Nothing is random.
    """
    if not 0 < area < 1:
        raise ValueError(f"area: {area}, expected a share of the image between 0 and 1, both excluded")
    network, x = _prepared(model, x, progress)
    return torch.cat([_extremal(network, part, area, settings) for part in x.split(settings.chunk)])


def _extremal(network: Network, x: Tensor, area: float, settings: Extremal) -> Tensor:
    size, scale = (x.shape[-2], x.shape[-1]), _scale(x)
    step = max(1, round(settings.step * scale))
    weights = radial_weights(step, settings.sigma * scale, min(settings.points, step)).to(x)
    sigmas = [settings.blur * scale * (1 - k / (settings.levels - 1)) for k in range(settings.levels)]
    pyramid = torch.cat([blur(x, sigma) for sigma in sigmas], dim=1)  # (N, L, H, W)
    level = torch.arange(settings.levels).to(x)[:, None, None]
    sign = -1 if settings.variant == "preserve" else 1

    def masks(cells: Tensor) -> Tensor:
        small = smooth_masks(cells, weights, settings.temperature)[:, None]
        large = F.interpolate(small, size=[n * step for n in cells.shape[2:]], mode="bilinear", align_corners=False)
        return large[:, 0, : size[0], : size[1]]

    def loss(cells: Tensor, t: int) -> Tensor:
        mask = masks(cells)
        keep = mask if settings.variant == "preserve" else 1 - mask
        shares = (1 - (keep[:, None] * (settings.levels - 1) - level).abs()).clamp(min=0)  # (N, L, H, W)
        seen = (pyramid * shares).sum(1, keepdim=True)
        logits = _logits(network, seen.flip(-1) if settings.flip and t % 2 == 0 else seen)
        return (sign * logits + settings.weight * settings.growth**t * area_misfit(mask, area)).sum()

    cells = x.new_ones(len(x), 1, *(math.ceil(n / step) for n in size))
    optimizer = torch.optim.SGD([cells], settings.lr, momentum=settings.momentum, dampening=settings.momentum)
    _descend(cells, optimizer, loss, settings.steps, network.progress)
    return masks(cells)


def _descend(
    cells: Tensor, optimizer: torch.optim.Optimizer, loss: Callable[[Tensor, int], Tensor], steps: int, progress: bool
) -> None:
    """Minimise the loss of the cells (a leaf, changed in place), which stay in [0, 1]."""
    for step in tqdm(range(steps), unit="steps", delay=BAR_AFTER_S, leave=False, disable=not progress):
        with torch.enable_grad():
            cells.requires_grad_()
            cells.grad = torch.autograd.grad(loss(cells, step), cells)[0]
        optimizer.step()
        cells.requires_grad_(False).clamp_(0, 1)


def _prepared(model: nn.Module, x: Tensor, progress: bool) -> tuple[Network, Tensor]:
    network = Network(model, progress=progress)
    x, _ = network.inputs(x, 0)
    if x.shape[1] != 1:
        raise ValueError(f"x: expected grey images (N, 1, H, W), got {tuple(x.shape)}")
    return network, x


def _logits(network: Network, x: Tensor) -> Tensor:
    """One logit for each image: (N, 1, H, W) -> (N,)."""
    out = network(x)
    if out.shape[1] != 1:
        raise ValueError(f"model: expected one logit for each image, got outputs of shape {tuple(out.shape)}")
    if x.requires_grad and not out.requires_grad:
        raise Refused("model: its output does not depend on the image in a way that can be differentiated")
    return out[:, 0]


def _scale(x: Tensor) -> float:
    return math.sqrt(x.shape[-2] * x.shape[-1]) / SIDE
