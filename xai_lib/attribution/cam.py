"""Class activation maps and their relatives, signed: positive values argue for the class, negative ones against it.

Usage::

    logits, maps = class_activation_map(model, x)         # (N,), (N, h, w); logits = maps.mean((1, 2)) + bias
    maps = layer_cam(model, x, layer="features.layer3")   # finer grid, earlier layer; the engine's, see `gradients`
    maps = resize_map(maps, (height, width))              # to the image

Theory: a network that ends in global average pooling and one linear layer computes
``logit = sum_k w_k mean(f_k) + b``. The sum and the mean can be swapped, so ``M = sum_k w_k f_k`` is a map whose mean
*is* the decision (up to b). For such a network Grad-CAM at the last layer is M / (h w), and signed LayerCAM is the
same: the three only part at earlier layers.

References: Zhou et al. 2016 (CAM); Selvaraju et al. 2017 (Grad-CAM); Jiang et al. 2021 (LayerCAM); Jalwana et al. 2021
(CAMERAS); Byra et al. 2022, "Deep learning methods" and Fig. 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_lib.attribution import gradients
from xai_lib.attribution.core import Found, Network
from xai_lib.attribution.gradients import resize_map
from xai_lib.models import Classifier


def class_activation_map(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """Signed CAM of a network with one output: ``M(h, w) = sum_k w_k f_k(h, w)``.

    Args:
        model: in eval mode.
        x: images (N, 1 or 3, H, W) in [0, 1].

    Returns:
        logits (N,), by pooling first as the network does, and maps (N, h, w); see `identity_gap`.

    Raises:
        ValueError: the model is in train mode, has several outputs, or gives values that are not finite.
    """
    _check(model)
    with torch.no_grad():
        features = model.feature_maps(x).float()  # (N, K, h, w)
        maps = torch.einsum("k,nkhw->nhw", model.head.weight[0].float(), features)
        logits = model.head(features.mean((2, 3)))[:, 0]  # the network's own way; equal to mean(M) + b
    if not (torch.isfinite(maps).all() and torch.isfinite(logits).all()):
        raise ValueError("model: its map or its logit is not finite; look for NaN in the weights or the image")
    return logits, maps


def identity_gap(model: Classifier, logits: Tensor, maps: Tensor) -> float:
    """Largest ``|logit - mean(M) - b| / max(1, |logit|)``: 0 but for rounding (claim 3.4)."""
    gap = (logits - maps.mean((1, 2)) - model.head.bias.detach().to(logits)).abs() / logits.abs().clamp(min=1)
    return float(gap.max())


def _check(model: Classifier) -> None:
    if model.training:
        raise ValueError("model: it is in train mode; call model.eval() first, or batch statistics change the map")
    if model.head.out_features != 1:
        raise ValueError(f"model: one output expected, it has {model.head.out_features}")


def grad_cam(model: Classifier, x: Tensor, layer: str = "features") -> Tensor:
    """Grad-CAM without its final ReLU, (N, h, w), of a network with one output; see `gradients.grad_cam`."""
    return _grid(gradients.grad_cam(*_explained(model, x), layer=layer))


def layer_cam(model: Classifier, x: Tensor, layer: str = "features") -> Tensor:
    """Signed LayerCAM, (N, h, w), of a network with one output; see `gradients.layer_cam`."""
    return _grid(gradients.layer_cam(*_explained(model, x), layer=layer, signed=True))


def _explained(model: Classifier, x: Tensor) -> tuple[Network, Tensor, Tensor]:
    _check(model)
    network = Network(model)
    return network, *network.inputs(x, 0)


def _grid(found: Found) -> Tensor:
    return found.map if found.grid is None else found.grid


def cameras(model: Classifier, x: Tensor, sizes: Sequence[int] = (224, 320, 448)) -> Tensor:
    """CAMERAS without its final ReLU: CAMs of the image at several sizes, brought to (N, H, W) and averaged.

    CAMERAS multiplies the scale-averaged activation of each channel with its scale-averaged gradient. Behind global
    average pooling and a linear layer that gradient is the same everywhere, so the sum over channels is the average of
    the resized class activation maps, up to a positive factor (a test compares the two).
    """
    maps = []
    for size in sizes:
        scaled = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        maps.append(resize_map(class_activation_map(model, scaled)[1], (x.shape[2], x.shape[3])))
    return torch.stack(maps).mean(0)
