"""Where a cell of a class activation map looks.

Usage::

    offset = cell_offset(model, x)     # pixels of x, (rows, columns); (0, 0): resizing draws the map where it belongs

Resizing an h x h map to H x H draws cell i at pixel ``(i + 0.5) H / h - 0.5``. Whether the network looks there depends
on its padding: stride-2 convolutions with torchvision's padding centre cell i at 32 i, 15.5 pixels above and left of
where a 7 x 7 map is drawn at 224 x 224; weights trained with another padding add an offset of their own. The score does
not notice, the map does. So the offset is measured, on the network at hand, without any label.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from xai_lib.models import Classifier


@dataclass(frozen=True)
class Offset:
    """Where the central cell looks minus where resizing draws it, in pixels of the network's input.

    `rows` and `cols` are means over images, `sd_rows` and `sd_cols` the spread between images.
    """

    rows: float
    cols: float
    sd_rows: float
    sd_cols: float


def cell_energy(model: Classifier, x: Tensor) -> Tensor:
    """Squared gradient of the central cell's activation (summed over channels) by every pixel: (N, H, W), float64.

    Args:
        model: in eval mode; unchanged.
        x: images (N, 1 or 3, H, W); labels are not needed.

    Raises:
        ValueError: no image, a model in train mode, or a gradient that is zero everywhere or not finite.
    """
    if len(x) == 0:
        raise ValueError("x: no image")
    if model.training:
        raise ValueError("model: it is in train mode; call model.eval() first, or batch statistics mix the images")
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        features = model.feature_maps(x)  # (N, K, h, w)
        h, w = features.shape[2:]
        middle = features[:, :, (h - 1) // 2 : h // 2 + 1, (w - 1) // 2 : w // 2 + 1]  # 1 cell, or 2 x 2 if even
        (gradient,) = torch.autograd.grad(middle.sum(), x)
    energy = gradient.double().square().sum(1)  # (N, H, W)
    if not torch.isfinite(energy).all():
        raise ValueError("model: its gradient is not finite; look for NaN in the weights or the image")
    if not (energy.sum((1, 2)) > 0).all():
        raise ValueError("model: the central cell does not depend on the image (its gradient is zero)")
    return energy


def cell_offset(model: Classifier, x: Tensor) -> Offset:
    """Measure the offset of the central cell: centroid of its `cell_energy`, image by image, minus the image's centre.

    Args:
        model: in eval mode; unchanged.
        x: about a dozen images (N, 1 or 3, H, W).

    Raises:
        ValueError: as `cell_energy`.
    """
    return energy_offset(cell_energy(model, x))


def energy_offset(energy: Tensor) -> Offset:
    """Centroid of the energies (N, H, W) of `cell_energy`, image by image, minus the image's centre."""
    total = energy.sum((1, 2))
    height, width = energy.shape[1:]
    rows = torch.arange(height, dtype=torch.float64, device=energy.device)
    cols = torch.arange(width, dtype=torch.float64, device=energy.device)
    d_rows = (energy.sum(2) @ rows) / total - (height - 1) / 2
    d_cols = (energy.sum(1) @ cols) / total - (width - 1) / 2
    spread = [float(d.std()) if len(energy) > 1 else 0.0 for d in (d_rows, d_cols)]
    return Offset(float(d_rows.mean()), float(d_cols.mean()), *spread)
