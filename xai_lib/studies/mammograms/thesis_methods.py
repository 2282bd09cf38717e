"""The seven methods of studies 1 and 2 with the thesis's parameters, and what stands beside them.

Usage::

    setup = Setup(height=512)                                     # windows and segments follow the image's height
    maps = method_maps(model, images, THESIS, setup)              # name -> (N, H, W), for the class malignant
    maps["deeplift_as_captum"], maps["grad_cam"]                  # also known: the names in `EXTRAS`

The thesis used Captum. On SiLU and ReLU6 networks Captum's guided backpropagation is the plain gradient, and its
DeepLIFT is gradient x (x - baseline) but for the gates of EfficientNet, whose sigmoid it knows: so the thesis's curves
for EfficientNet-B0 are most likely those of the two maps ``..._as_captum``. Under the names of the methods themselves
stand the methods as published.

Reference: Sam-Millan et al. 2023, section 3.2.4. What it does not say is read as DEVIATIONS.md lists.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xai_lib.attribution import attribute, attribute_all
from xai_lib.attribution.gradients import SHARED
from xai_lib.models import IMAGENET_MEAN

THESIS = ("saliency", "integrated_gradients", "occlusion", "guided_grad_cam", "lime", "kernel_shap", "deeplift")
EXTRAS = ("grad_cam", "guided_grad_cam_as_captum", "deeplift_as_captum")
PERTURBATIONS = ("occlusion", "lime", "kernel_shap")  # forward passes only: bf16 halves the time, ranks keep to 0.999
GREY = sum(IMAGENET_MEAN) / 3  # 0 after normalisation, the baseline of all methods
MALIGNANT = 1  # the output that is explained, as a logit


@dataclass(frozen=True)
class Setup:
    """Parameters of 3.2.4. `window` and `stride` are in pixels of the image: see `scaled`."""

    window: int = 60
    stride: int = 30
    steps: int = 200
    segments: int = 150
    samples: int = 200
    baseline: float = GREY
    seed: int = 0

    def options(self, method: str) -> dict[str, Any]:
        """Options of one method of `attribution`."""
        known: dict[str, dict[str, Any]] = {
            "integrated_gradients": {"steps": self.steps, "baseline": self.baseline},
            "occlusion": {"window": self.window, "stride": self.stride, "baseline": self.baseline},
            "lime": {"segments": self.segments, "samples": self.samples, "baseline": self.baseline, "seed": self.seed},
            "deeplift": {"baseline": self.baseline},
        }
        known["kernel_shap"] = known["lime"]
        return known.get(method, {})


def method_maps(
    model: nn.Module,
    images: Tensor,
    names: Iterable[str] = THESIS,
    setup: Setup | None = None,
    target: int = MALIGNANT,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    precision: str = "float32",
    progress: bool = True,
) -> dict[str, Tensor]:
    """Signed maps by name, each (N, H, W) and on the CPU; Saliency has no sign and is never negative.

    Args:
        model: a network in eval mode.
        images: (N, C, H, W).
        names: of `THESIS` and `EXTRAS`.
        setup: parameters.
        target: output to explain.
        options: by name, options that replace those of `setup`.
        precision: "float32" or "bf16", of `PERTURBATIONS`; the others stay in float32, whose gradients bf16 blurs.
        progress: show bars on long work.

    Raises:
        ValueError: an unknown name, or whatever `attribution.attribute` refuses.
    """
    names, setup = list(names), setup or Setup()
    unknown = [name for name in names if name not in THESIS + EXTRAS]
    if unknown:
        raise ValueError(f"names: {unknown[0]!r} is unknown, expected some of {', '.join(THESIS + EXTRAS)}")
    given = {name: {**setup.options(name), **(options or {}).get(name, {})} for name in names}
    found: dict[str, Tensor] = {}
    shared = [name for name in names if name in SHARED]
    if shared:
        settings = {name: given[name] for name in shared}
        parts = attribute_all(shared, model, images, target, settings=settings, progress=progress)
        found |= {name: part.map for name, part in parts.items()}
    for name in names:
        if name not in found and name in THESIS:
            used = precision if name in PERTURBATIONS else "float32"
            found[name] = attribute(name, model, images, target, precision=used, progress=progress, **given[name]).map
    if any(name.endswith("_as_captum") for name in names):
        found |= _as_captum(model, images, target, setup.baseline)
    return {name: found[name].float().cpu() for name in names}


class _Sigmoid(torch.autograd.Function):
    """Sigmoid of a batch, images first, then their baselines; its derivative is the slope between the two."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = z.sigmoid()
        ctx.save_for_backward(z, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (z, z0), (y, y0) = (tensor.chunk(2) for tensor in ctx.saved_tensors)
        slope = torch.where((z - z0).abs() < 1e-10, y * (1 - y), (y - y0) / (z - z0))
        return gradient * torch.cat((slope, slope))


def _as_captum(model: nn.Module, images: Tensor, target: int, baseline: float) -> dict[str, Tensor]:
    """What Captum returns on networks whose only modules with a rule in Captum are sigmoids (no `nn.ReLU`)."""
    x = images.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[:, target].sum(), x)
    cam = attribute("grad_cam", model, images, target, relu=True, progress=False).map
    changed = deepcopy(model)
    for module in changed.modules():
        if isinstance(module, nn.Sigmoid):
            module.forward = _Sigmoid.apply  # type: ignore[method-assign]
    both = changed(torch.cat((x, torch.full_like(images, baseline))))
    (slopes,) = torch.autograd.grad(both[: len(x), target].sum(), x)
    return {
        "guided_grad_cam_as_captum": gradient.sum(1) * cam,
        "deeplift_as_captum": (slopes * (images - baseline)).sum(1),
    }
