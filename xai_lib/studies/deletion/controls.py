"""Study 5, what the paper says and does not measure: other fills, how far they are from real images, random holes.

Usage::

    blurred = fill(FILLS["blur"], x, hole)                        # any fill stands where the inpainter stands
    distance = Healthy(classifier, healthy_images)(blurred)       # (N,): how unusual the network finds each image
    holes = mass_holes(mask, side=8, rng=rng)                     # squares over the mass, on a lattice drawn at random

Theory. The paper's argument against blur, noise and grey is that the classifier sees images from outside its training
set. The distance of its features from those of healthy training images, in units of their own scatter (Mahalanobis
1936; the covariance shrunk after Ledoit & Wolf 2004), says how far outside.

A `Fill` takes images in [0, 1] and keep masks, 0 in holes, both (N, 1, H, W), and returns images of that shape.

Reference: Major et al. 2020, sections 1 and 3.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional

from xai_lib.config import torch_generator
from xai_lib.models import Classifier

Mask = NDArray[np.bool_]
Fill = Callable[[Tensor, Tensor], Tensor]


def _smooth(x: Tensor, sigma: float) -> Tensor:
    """Gaussian smoothing of (N, 1, H, W)."""
    return torch.stack([torch.from_numpy(ndimage.gaussian_filter(a.numpy(), sigma)) for a in x[:, 0].cpu()])[:, None]


def blur(image: Tensor, keep: Tensor, sigma: float = 10.0) -> Tensor:
    """The images (N, 1, H, W) smoothed by a Gaussian of `sigma` pixels (Fong & Vedaldi 2017)."""
    return _smooth(image, sigma).to(image)


def noise(image: Tensor, keep: Tensor) -> Tensor:
    """Gaussian noise (N, 1, H, W) with mean and standard deviation of each image's tissue; always the same pattern."""
    draw = torch.randn(image.shape[1:], generator=torch_generator(0, "fill")).to(image)
    means, scatters = zip(*((a[a > 0].mean(), a[a > 0].std()) for a in image), strict=True)
    mean, scatter = (torch.stack(list(values)).view(-1, 1, 1, 1) for values in (means, scatters))
    return (mean + scatter * draw).clamp(0, 1)


def grey(image: Tensor, keep: Tensor) -> Tensor:
    """The mean grey value of each image's tissue, everywhere: (N, 1, H, W)."""
    return torch.stack([torch.full_like(a, float(a[a > 0].mean())) for a in image])


def rim(image: Tensor, keep: Tensor, width: int = 4) -> Tensor:
    """In every hole the mean of the pixels within `width` pixels of it; elsewhere the image: (N, 1, H, W)."""
    out = image.clone()
    for i, (a, kept) in enumerate(zip(image[:, 0].cpu().numpy(), keep[:, 0].cpu().numpy() > 0.5, strict=True)):
        parts, count = ndimage.label(~kept, np.ones((3, 3)))
        for part in range(1, count + 1):
            inside = parts == part
            around = ndimage.binary_dilation(inside, iterations=width) & kept
            out[i, 0, torch.from_numpy(inside)] = float(a[around].mean()) if around.any() else 0.0
    return out


FILLS: Mapping[str, Fill] = {"blur": blur, "noise": noise, "grey": grey, "mean of the rim": rim}


class Healthy:
    """How far the classifier's pooled features of an image lie from those of healthy images: Mahalanobis distance.

    Args:
        model: the classifier, in eval mode.
        healthy: images (N, 1, H, W), at least two.

    Raises:
        ValueError: fewer than two images.
    """

    def __init__(self, model: Classifier, healthy: Tensor) -> None:
        if len(healthy) < 2:
            raise ValueError(f"healthy: {len(healthy)} images, expected at least two")
        self.model = model
        self.fitted = LedoitWolf().fit(self.features(healthy))

    def features(self, x: Tensor, chunk: int = 16) -> NDArray[np.float64]:
        """Pooled features (N, K)."""
        with torch.no_grad():
            pooled = [self.model.feature_maps(part).mean((2, 3)).double().cpu() for part in x.split(chunk)]
        return torch.cat(pooled).numpy()

    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Distances (N,) of images (N, 1, H, W)."""
        return np.sqrt(self.fitted.mahalanobis(self.features(x)))


def mass_holes(mask: Mask, side: int, rng: np.random.Generator, wider: int = 2) -> Mask:
    """Squares of `side` pixels over the mass (H, W) and `wider` pixels around it, on a lattice of random origin."""
    covered = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=wider) if wider else mask
    row, col = rng.integers(side, size=2)
    return squares(np.pad(covered, ((row, 0), (col, 0))), side)[row:, col:]


def squares(mask: Mask, side: int) -> Mask:
    """All squares of a lattice of `side` pixels that hold a pixel of the mask: (H, W) -> (H, W)."""
    height, width = mask.shape
    padded = torch.from_numpy(np.pad(mask, ((0, -height % side), (0, -width % side)))).float()[None, None]
    return (
        functional.interpolate(functional.max_pool2d(padded, side), scale_factor=side)[0, 0, :height, :width] > 0
    ).numpy()
