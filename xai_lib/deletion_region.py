"""The smallest deletion region: the smallest smooth hole that, inpainted, makes the classifier call an image healthy.

Usage::

    found = smallest_deletion_region(classifier, inpainter, x, config=DeletionConfig())
    found.hole                                    # (N, H, W), bool: what had to be inpainted
    found.score, found.after                      # log odds before and after

Theory. Of a mask M, 1 where a pixel is kept, pi(M) is the image whose other pixels are inpainted. With the classifier's
probability p of "pathological" and odds = p / (1 - p), the paper defines::

    phi(M) = -log p(pi(M))        psi(M) = log odds(I) - log odds(pi(M))
    L(M) = lambda1 (phi(M) + psi(M)) + lambda2 tv(M) + lambda3 ar(M)

and minimises L. But phi and psi grow as the image gets healthier, so the printed L looks for the most *pathological*
inpainting. The text wants the class probability to drop; ``signs="intended"`` minimises
``-lambda1 (phi + psi) + lambda2 tv + lambda3 ar``. In terms of the logit z, log p is logsigmoid(z) and log odds is z:
finite everywhere. `ar` is the size of the *deleted* part, 1 - M.

M is relaxed to [0, 1] on a grid of cells, resized to the image, and cut at theta. Outside the breast everything is
kept: there the overlap with the breast would fall by deleting background. On the way the image is
``M I + (1 - M) G``. The inpainter's drawing G comes from the hard hole M <= theta and is taken as it is
(``relaxation="composite"``), so that the gradient asks of every pixel in the hole what its replacement does; or from
the soft mask, with a gradient through the inpainter (``"soft"``), which finds masks between 0 and 1 that turn the
classifier round and that theta destroys. Adam moves a value by about its learning rate in a step, by 0.2 in the
paper's 100 steps: the start, a regular grid of holes, lies near theta.

Reference: Major et al. 2020, section 2, "Image-wise Saliency Mapping", and section 3, "Saliency Mapping".
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from xai_lib.inpainting import inpaint

SIGNS = {"intended": -1.0, "printed": 1.0}
TERMS = ("phi", "psi", "tv", "ar")

Inpainter = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class DeletionConfig:
    """The paper's names and values; what it does not give is ours.

    Ours: `cell`, the side of a cell of the mask in pixels; `spacing`, the cells from hole to hole of the regular grid
    at the start, and `margin`, how far from `theta` it starts; `offset`, the (row, col) of its first hole in cells;
    `size`, "dice" with the breast (paper) or "mean" over the image; `relaxation`, "composite" or "soft" (above);
    `chunk`, images in memory at once.
    """

    lambda1: float = 1.0
    lambda2: float = 0.1
    lambda3: float = 0.1
    theta: float = 0.5
    steps: int = 100
    learning_rate: float = 2e-3
    signs: str = "intended"
    size: str = "dice"
    cell: int = 8
    spacing: int = 4
    margin: float = 0.05
    offset: tuple[int, int] = (0, 0)
    relaxation: str = "composite"
    chunk: int = 8

    def __post_init__(self) -> None:
        choices = {"signs": tuple(SIGNS), "size": ("dice", "mean"), "relaxation": ("composite", "soft")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        for name in ("steps", "cell", "spacing", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is below 1")
        if not self.margin < self.theta < 1 - self.margin or not self.margin > 0:
            raise ValueError(f"theta, margin: {self.theta}, {self.margin}; expected theta +- margin within (0, 1)")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: {self.learning_rate} is not above 0")


@dataclass(frozen=True, eq=False)
class DeletionRegion:
    """Result for N images.

    `hole` (N, H, W), bool; `keep` (N, H, W), the soft mask; `score` and `after` (N,), log odds of the class of the
    image and of `inpainted` (N, 1, H, W); `skipped` (N,), bool: images that were not of the class, whose hole is empty;
    `way` (steps + 1, N, h, w), the mask's cells from start to end; `terms` (steps, N, 4), phi, psi, tv and ar.
    """

    hole: Tensor
    keep: Tensor
    score: Tensor
    after: Tensor
    inpainted: Tensor
    skipped: Tensor
    way: Tensor
    terms: Tensor
    seconds: float


def log_odds(model: nn.Module, x: Tensor, target: int = 1) -> Tensor:
    """Log odds (N,) of class `target`, from one logit (of class 1) or from one for each class.

    Raises:
        ValueError: no such class, or a value is not finite.
    """
    z = _odds(model(x), target)
    bad = (~torch.isfinite(z)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"model: its logit is not finite for image {bad[0]}; look for NaN in the weights or the image")
    return z


def _odds(out: Tensor, target: int) -> Tensor:
    """Log odds (N,) of a class from a classifier's output (N,), (N, 1) or (N, K)."""
    out = out[:, None] if out.ndim == 1 else out
    if not 0 <= target < max(out.shape[1], 2):
        raise ValueError(f"target: {target}, expected a class from 0 to {max(out.shape[1], 2) - 1}")
    if out.shape[1] == 1:
        return out[:, 0].float() if target else -out[:, 0].float()
    others = [c for c in range(out.shape[1]) if c != target]
    return (out[:, target] - out[:, others].logsumexp(1)).float()


def phi(z: Tensor) -> Tensor:
    """-log p(c | pi(M)), from the log odds z of pi(M)."""
    return -functional.logsigmoid(z)


def psi(score: Tensor, z: Tensor) -> Tensor:
    """log odds(I) - log odds(pi(M))."""
    return score - z


def tv(mask: Tensor) -> Tensor:
    """Total variation of masks (N, 1, h, w): the sum of absolute differences of neighbours (Dabkowski & Gal 2017)."""
    return mask.diff(dim=2).abs().sum((1, 2, 3)) + mask.diff(dim=3).abs().sum((1, 2, 3))


def ar(deleted: Tensor, breast: Tensor | None) -> Tensor:
    """Size of the deleted part (N, 1, H, W): its dice overlap with the breast (the same shape); None: its mean."""
    if breast is None:
        return deleted.mean((1, 2, 3))
    both = deleted.sum((1, 2, 3)) + breast.sum((1, 2, 3))
    return 2 * (deleted * breast).sum((1, 2, 3)) / both


def start_mask(images: int, shape: tuple[int, int], config: DeletionConfig) -> Tensor:
    """The regular grid (N, 1, h, w): cells just above theta, every `spacing`-th one in both directions just below."""
    cells = [-(-side // config.cell) for side in shape]
    mask = torch.full((images, 1, *cells), config.theta + config.margin)
    row, col = (o % config.spacing for o in config.offset)
    mask[..., row :: config.spacing, col :: config.spacing] = config.theta - config.margin
    return mask


def full_size(mask: Tensor, shape: tuple[int, int], cell: int) -> Tensor:
    """Cells (N, 1, h, w) resized to the image (bilinear); cells that stick out are cut off."""
    if cell == 1:
        return mask
    large = functional.interpolate(mask, scale_factor=cell, mode="bilinear", align_corners=False)
    return large[..., : shape[0], : shape[1]]


def within(keep: Tensor, breast: Tensor) -> Tensor:
    """The mask inside the breast, both (N, 1, H, W); outside everything is kept."""
    return 1 - (1 - keep) * breast


def smallest_deletion_region(
    model: nn.Module,
    inpainter: Inpainter,
    x: Tensor,
    target: int = 1,
    config: DeletionConfig | None = None,
    breast: Tensor | None = None,
    progress: bool = False,
) -> DeletionRegion:
    """Search the mask of every image; the images share their passes, their masks are independent.

    Args:
        model: classifier of (N, 1, H, W) in eval mode, with one logit or one for each class. It is not changed.
        inpainter: draws an image from (image, keep); see `inpainting.PartialUNet`.
        x: images (N, 1, H, W).
        target: the class to be deleted.
        config: the parameters.
        breast: (N, H, W), bool; None: where the image is above 0.
        progress: show a bar.

    Raises:
        ValueError: wrong shapes, an image or a logit that is not finite, an empty breast, a model in train mode, or
            model and inpainter that expect other ranges of grey values. The message names which. Also by an inpainter
            that needs known pixels, where the breast is the whole image and all of it was deleted.
        FloatingPointError: a score is not finite on the way.
    """
    config = config or DeletionConfig()
    breast = _checked(model, inpainter, x, breast)
    began = time.perf_counter()
    with torch.no_grad():
        score = torch.cat([log_odds(model, part, target) for part in x.split(config.chunk)])
    skipped = score <= 0
    shape = (x.shape[2], x.shape[3])
    mask = torch.ones_like(start_mask(len(x), shape, config)).to(x)
    way, terms = mask[None].repeat(config.steps + 1, 1, 1, 1, 1), x.new_full((config.steps, len(x), 4), torch.nan)
    chunks = (~skipped).nonzero().flatten().split(config.chunk)
    for part in tqdm(chunks, desc="deletion regions", disable=not progress, leave=False) if len(x) else ():
        if len(part):
            problem = _Problem(model, inpainter, x[part], breast[part, None].to(x), score[part], target)
            way[:, part], terms[:, part] = _search(problem, config)
    keep = within(full_size(way[-1], shape, config.cell), breast[:, None].to(x))
    hole = (keep <= config.theta)[:, 0]
    inpainted, after = x.clone(), score.clone()
    with torch.no_grad():
        for part in hole.flatten(1).any(1).nonzero().flatten().split(config.chunk):
            if len(part):
                inpainted[part] = fill(inpainter, x[part], hole[part])
                after[part] = log_odds(model, inpainted[part], target)
    seconds = time.perf_counter() - began
    return DeletionRegion(hole, keep[:, 0], score, after, inpainted, skipped, way[:, :, 0], terms, seconds)


def fill(inpainter: Inpainter, x: Tensor, hole: Tensor) -> Tensor:
    """The images (N, 1, H, W) with their holes (N, H, W), bool, inpainted; elsewhere they stay as they are."""
    return inpaint(inpainter, x, (~hole)[:, None].to(x))


@dataclass(frozen=True)
class _Problem:
    """What is fixed during a search."""

    model: nn.Module
    inpainter: Inpainter
    x: Tensor
    breast: Tensor  # (N, 1, H, W), float
    score: Tensor
    target: int

    def terms(self, mask: Tensor, config: DeletionConfig) -> Tensor:
        """phi, psi, tv and ar of masks (N, 1, h, w): (N, 4)."""
        keep = within(full_size(mask, (self.x.shape[2], self.x.shape[3]), config.cell), self.breast)
        if config.relaxation == "soft":
            image = inpaint(self.inpainter, self.x, keep)
        else:
            hard = (keep > config.theta).to(keep)
            with torch.no_grad():
                drawn = self.inpainter(self.x, hard)
            image = keep * self.x + (1 - keep) * drawn
        z = _odds(self.model(image), self.target)
        size = ar(1 - keep, self.breast if config.size == "dice" else None)
        return torch.stack((phi(z), psi(self.score, z), tv(mask), size), 1)


@torch.enable_grad()
def _search(problem: _Problem, config: DeletionConfig) -> tuple[Tensor, Tensor]:
    """Masks from start to end (steps + 1, N, 1, h, w), and the terms on the way (steps, N, 4)."""
    shape = (problem.x.shape[2], problem.x.shape[3])
    mask = start_mask(len(problem.x), shape, config).to(problem.x).requires_grad_(True)
    optimizer = torch.optim.Adam([mask], lr=config.learning_rate)
    weights = mask.new_tensor([config.lambda1 * SIGNS[config.signs]] * 2 + [config.lambda2, config.lambda3])
    way, found = [mask.detach().clone()], []
    for step in range(config.steps):
        terms = problem.terms(mask, config)
        if not torch.isfinite(terms).all():
            raise FloatingPointError(f"step {step + 1} of the search: the model's logit is not finite")
        (mask.grad,) = torch.autograd.grad((terms @ weights).sum(), mask)  # of the mask alone: weights stay untouched
        optimizer.step()
        with torch.no_grad():
            mask.clamp_(0, 1)
        way.append(mask.detach().clone())
        found.append(terms.detach())
    return torch.stack(way), torch.stack(found)


def _checked(model: nn.Module, inpainter: Inpainter, x: Tensor, breast: Tensor | None) -> Tensor:
    """Refuse what does not fit together; return the breast (N, H, W), bool."""
    if x.ndim != 4 or x.shape[1] != 1 or not len(x):
        raise ValueError(f"x: expected shape (N, 1, H, W), got {tuple(x.shape)}")
    if not torch.isfinite(x).all():
        raise ValueError("x: an image has NaN or infinite values")
    for name, network in (("model", model), ("inpainter", inpainter)):
        if getattr(network, "training", False):
            raise ValueError(f"{name}: it is in train mode; call {name}.eval() first")
    ranges = [getattr(network, "value_range", None) for network in (model, inpainter)]
    if ranges[0] and ranges[1] and tuple(ranges[0]) != tuple(ranges[1]):
        raise ValueError(f"inpainter: it expects grey values from {ranges[1]}, the model from {ranges[0]}")
    breast = x[:, 0] > 0 if breast is None else breast
    if breast.dtype != torch.bool or breast.shape != (len(x), *x.shape[2:]):
        raise ValueError(f"breast: {breast.dtype}, {tuple(breast.shape)}; expected bool, (N, H, W) as the images")
    if not breast.flatten(1).any(1).all():
        raise ValueError("breast: the mask of an image is empty")
    return breast
