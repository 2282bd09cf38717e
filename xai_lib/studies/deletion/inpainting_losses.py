"""The loss that an inpainter learns by: six terms of what it draws, beside the truth.

Usage::

    features = stages(frozen_network, healthy.images[:16] / 255, runtime())
    terms = losses(out, truth, keep, features)               # without their WEIGHTS

Theory. The network draws the whole image `out`; `comp` takes its known pixels from the truth. Liu et al. (2018, section
3.3) minimise::

    L_valid + 6 L_hole + 0.05 L_perceptual + 120 (L_style_out + L_style_comp) + 0.1 L_tv

L_valid and L_hole are mean absolute errors, L_perceptual and L_style compare the features of a network that stays as it
is (VGG-16's pool1 to pool3) and their Gram matrices, L_tv is the unevenness around the holes.

Reference: Liu et al. 2018, "Image inpainting for irregular holes using partial convolutions", equations 3 to 7.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from xai_lib import models
from xai_lib.config import Runtime

WEIGHTS = {"valid": 1.0, "hole": 6.0, "perceptual": 0.05, "style_out": 120.0, "style_comp": 120.0, "tv": 0.1}

Features = Callable[[Tensor], list[Tensor]]


def stages(model: models.Classifier, examples: Tensor, runtime: Runtime, count: int = 3) -> Features:
    """Features of a classifier at its first `count` halvings of the image: what the layer that halves it returns.

    For VGG-16 these are pool1, pool2 and pool3. Each stage is divided by its root mean square over `examples`
    (N, 1, H, W), so that the weights of the loss, found for VGG-16, mean the same for other networks. The precision is
    the runtime's.
    """

    def raw(x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        with runtime.autocast():
            x = model.normalize(x)
            for layer in model.features.children():
                before, x = x.shape[-1], layer(x)
                if x.shape[-1] < before:
                    found.append(x.float())
                if len(found) == count:
                    break
        return found

    with torch.no_grad():
        sizes = [float(f.square().mean().sqrt()) for f in raw(examples.to(runtime.device))]
    return lambda x: [f / size for f, size in zip(raw(x), sizes, strict=True)]


def gram(features: Tensor) -> Tensor:
    """F F^T / (C H W) of features (N, C, H, W): (N, C, C)."""
    flat = features.flatten(2)
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def losses(out: Tensor, truth: Tensor, keep: Tensor, features: Features | None) -> dict[str, Tensor]:
    """The six terms, without their weights; images (N, 1, H, W). Without features three of them are 0."""
    comp = keep * truth + (1 - keep) * out
    drawn, mixed, true = (features(x) if features else [] for x in (out, comp, truth))
    style = {
        name: sum(((gram(a) - gram(b)).abs().mean() for a, b in zip(found, true, strict=True)), out.new_zeros(()))
        for name, found in (("style_out", drawn), ("style_comp", mixed))
    }
    rim = functional.max_pool2d(1 - keep, 3, 1, 1)  # the holes, one pixel wider
    tv = sum(
        (comp.diff(dim=d).abs() * rim.narrow(d, 1, n - 1) * rim.narrow(d, 0, n - 1)).sum() / comp.numel()
        for d, n in ((2, comp.shape[2]), (3, comp.shape[3]))
    )
    return {
        "valid": (keep * (out - truth)).abs().mean(),
        "hole": ((1 - keep) * (out - truth)).abs().mean(),
        "perceptual": sum(
            (functional.l1_loss(a, t) + functional.l1_loss(b, t) for a, b, t in zip(drawn, mixed, true, strict=True)),
            out.new_zeros(()),
        ),
        **style,
        "tv": torch.as_tensor(tv),
    }
