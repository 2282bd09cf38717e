"""Attribution methods that read one backward pass: gradients, the CAM family, guided backpropagation and DeepLIFT.

Usage::

    found = grad_cam(network, x, target)                                   # one method
    found = shared(network, x, target, {"saliency": {}, "grad_cam": {"layer": "layer3"}, "deeplift": {}})

Theory: all of these methods multiply a gradient with something. `passes` gets the gradients, under the plain, the
guided or the DeepLIFT rule (see `rules`), and each function below is one formula. `shared` runs several from one
forward pass.

A class activation map has the grid of its layer; it is returned as `Found.grid`, and resized to the image as
`Found.map`.

References: at the functions. Notation: g is the gradient of the score, A an activation (K, h, w).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xai_lib.attribution.core import Found, Network, as_baseline
from xai_lib.attribution.deeplift import deep_shap, deeplift
from xai_lib.attribution.passes import Gradients, Reference, gradients, reference, there

__all__ = ["deep_shap", "deeplift", "grad_cam", "gradient_x_input", "guided_backprop", "guided_grad_cam", "layer_cam"]
__all__ += ["SHARED", "resize_map", "saliency", "shared"]

RESIZE = ("bilinear", "nearest")


def saliency(network: Network, x: Tensor | Gradients, target: Tensor) -> Found:
    """Largest absolute gradient over the channels, ``max_c |g_c|``; never negative.

    Reference: Simonyan et al. 2014, "Deep inside convolutional networks", section 3.1.
    """
    done = gradients(network, x, target, image=True)
    return Found(there(done.image).abs().amax(1), done.scores)


def gradient_x_input(network: Network, x: Tensor | Gradients, target: Tensor) -> Found:
    """``sum_c g_c x_c``. Reference: Shrikumar et al. 2016, "Not just a black box", section 3.1."""
    done = gradients(network, x, target, image=True)
    return Found((there(done.image) * done.x).sum(1), done.scores)


def guided_backprop(network: Network, x: Tensor | Gradients, target: Tensor) -> Found:
    """Sum over channels of the gradient under the guided rule: only positive gradients pass active rectifiers.

    The rule is published for ReLU. At other rectifiers (ReLU6, SiLU, ...) it is the definition in `rules`, and a note
    says so. A sigmoid gate keeps its gradient.

    Raises:
        Refused: the network has a call without a rule.

    Reference: Springenberg et al. 2015, "Striving for simplicity", section 3.4.
    """
    done = gradients(network, x, target, guided=True)
    _note_rectifiers(network, done)
    return Found(there(done.guided).sum(1), done.scores)


def grad_cam(
    network: Network,
    x: Tensor | Gradients,
    target: Tensor,
    *,
    layer: str | None = None,
    relu: bool = False,
    resize: str = "bilinear",
) -> Found:
    """Grad-CAM: ``sum_k mean(g_k) A_k``.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        layer: dotted name of a layer; None takes the last map before the classifier.
        relu: keep positive values only, as the paper does at the end.
        resize: "bilinear" or "nearest".

    Raises:
        ValueError: no such layer (the message lists those there are), or it gives no single output (N, K, h, w).

    Reference: Selvaraju et al. 2017, equations 1 and 2.
    """
    done = gradients(network, x, target, layers=[layer])
    return _resized(done, _grad_cam(done, layer, relu), resize)


def guided_grad_cam(
    network: Network,
    x: Tensor | Gradients,
    target: Tensor,
    *,
    layer: str | None = None,
    resize: str = "bilinear",
) -> Found:
    """Guided Grad-CAM: guided backpropagation times Grad-CAM after its ReLU, resized to the image.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        layer: of Grad-CAM; see there.
        resize: "bilinear" or "nearest".

    Raises:
        ValueError, Refused: as `grad_cam` and `guided_backprop`.

    Reference: Selvaraju et al. 2017, section 3.2.
    """
    done = gradients(network, x, target, guided=True, layers=[layer])
    _note_rectifiers(network, done)
    cam = _resized(done, _grad_cam(done, layer, relu=True), resize)
    return replace(cam, map=cam.map * there(done.guided).sum(1))


def layer_cam(
    network: Network,
    x: Tensor | Gradients,
    target: Tensor,
    *,
    layer: str | Sequence[str] | None = None,
    signed: bool = False,
    resize: str = "bilinear",
) -> Found:
    """LayerCAM: ``relu(sum_k relu(g_k) A_k)``, every position weighted by its own gradient.

    Several layers are fused: each map M becomes ``tanh(2 M / max M)`` and the largest value at each pixel is kept.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        layer: dotted name of a layer, or several; None takes the last map before the classifier.
        signed: ``sum_k g_k A_k`` instead. That is the map before its last ReLU minus that of the opposite score
            (gradient -g), so that negative values have a meaning too.
        resize: "bilinear" or "nearest".

    Raises:
        ValueError: as `grad_cam`; signed maps of several layers.

    Reference: Jiang et al. 2021, section III.
    """
    layers = [layer] if layer is None or isinstance(layer, str) else list(layer)
    if not layers or (signed and len(layers) > 1):
        raise ValueError(f"layer: expected one layer, or several without signed=True, got {layer!r}")
    done = gradients(network, x, target, layers=layers)
    found = [_resized(done, _layer_cam(done, name, signed), resize) for name in layers]
    if len(found) == 1:
        return found[0]
    peaks = [f.map.amax((1, 2), keepdim=True).clamp(min=torch.finfo(f.map.dtype).tiny) for f in found]
    scaled = [torch.tanh(2 * f.map / peak) for f, peak in zip(found, peaks, strict=True)]
    return Found(torch.stack(scaled).amax(0), done.scores)


def shared(network: Network, x: Tensor, target: Tensor, methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Found]:
    """Several of the methods in `SHARED`, from one forward pass and one backward pass per rule.

    DeepLIFT adds a forward pass of its baseline. Where it is asked for, all methods run in float32.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        methods: keys of `SHARED`, with the options of each.

    Raises:
        ValueError: an unknown method.
        ValueError, Refused: as the methods.
    """
    unknown = [name for name in methods if name not in SHARED]
    if unknown:
        raise ValueError(f"methods: {unknown[0]!r} shares no passes, expected some of {', '.join(SHARED)}")
    layers: list[str | None] = []
    for name in ("grad_cam", "guided_grad_cam", "layer_cam"):
        wanted = methods.get(name, {}).get("layer")
        if name in methods:
            layers += [wanted] if wanted is None or isinstance(wanted, str) else list(wanted)
    with network.exact() if "deeplift" in methods else nullcontext():
        start = methods.get("deeplift", {}).get("baseline")
        if "deeplift" in methods and not isinstance(start, Reference):
            start = reference(network, as_baseline(start, x))
        done = gradients(
            network,
            x,
            target,
            image="saliency" in methods or "gradient_x_input" in methods,
            guided="guided_backprop" in methods or "guided_grad_cam" in methods,
            reference=start,
            layers=layers,
        )
        return {name: SHARED[name](network, done, target, **options) for name, options in methods.items()}


SHARED: dict[str, Callable[..., Found]] = {
    "saliency": saliency,
    "gradient_x_input": gradient_x_input,
    "guided_backprop": guided_backprop,
    "grad_cam": grad_cam,
    "guided_grad_cam": guided_grad_cam,
    "layer_cam": layer_cam,
    "deeplift": deeplift,
}


def resize_map(maps: Tensor, shape: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resize (N, h, w) -> (N, H, W); bilinear with ``align_corners=False``, or nearest.

    Bilinear at an integer factor keeps the mean exactly, elsewhere almost.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in RESIZE:
        raise ValueError(f"resize: {mode!r} is unknown, expected one of {', '.join(RESIZE)}")
    corners = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(maps[:, None], size=shape, mode=mode, **corners)[:, 0]


# ---------------------------------------------------------------------------------------------- formulas


def _grad_cam(done: Gradients, layer: str | None, relu: bool) -> Tensor:
    """(N, h, w)."""
    at = done.layers[layer]
    grid = (at.gradient.mean((2, 3), keepdim=True) * at.value).sum(1)
    return grid.relu() if relu else grid


def _layer_cam(done: Gradients, layer: str | None, signed: bool) -> Tensor:
    """(N, h, w)."""
    at = done.layers[layer]
    return (at.gradient * at.value).sum(1) if signed else (at.gradient.relu() * at.value).sum(1).relu()


def _resized(done: Gradients, grid: Tensor, resize: str) -> Found:
    shape = (done.x.shape[2], done.x.shape[3])
    return Found(resize_map(grid, shape, resize), done.scores, grid=grid)


def _note_rectifiers(network: Network, done: Gradients) -> None:
    if done.rectifiers:
        names = ", ".join(sorted(done.rectifiers))
        network.note(f"the guided rule is published for ReLU; for {names} it is relu(g) f'(z) [z > 0] by definition")
