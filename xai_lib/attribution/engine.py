"""Thirteen attribution methods behind one call: right on the network at hand, or refused by name.

Usage::

    a = attribute("integrated_gradients", model, x, target=1, steps=200)
    a.map                                                     # (N, H, W), signed
    a.completeness_gap, a.forward_passes, a.seconds, a.notes  # what it is worth, and what it cost
    maps = attribute_all(["saliency", "grad_cam", "deeplift"], model, x, target=1)   # one forward pass for the three

The methods and their options are the functions in `METHODS`; `options(method)` lists them. The model is run through a
shadow (see `core`), so it is never changed. Captum, shap and pytorch-grad-cam are the referees in the tests, wherever
they are right.

Reference: Sam-Millan et al. 2023, sections 2.0.1 and 3.2.4 (methods and parameters); each function names its own.
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xai_lib.attribution import gradients, kernel_shap, occlusion, path, segments
from xai_lib.attribution.core import Attribution, Found, Network, out_of_memory

METHODS: dict[str, Callable[..., Found]] = {
    "saliency": gradients.saliency,
    "gradient_x_input": gradients.gradient_x_input,
    "integrated_gradients": path.integrated_gradients,
    "occlusion": occlusion.occlusion,
    "guided_backprop": gradients.guided_backprop,
    "grad_cam": gradients.grad_cam,
    "guided_grad_cam": gradients.guided_grad_cam,
    "layer_cam": gradients.layer_cam,
    "deeplift": gradients.deeplift,
    "lime": segments.lime,
    "kernel_shap": kernel_shap.kernel_shap,
    "gradient_shap": path.gradient_shap,
    "deep_shap": gradients.deep_shap,
}
PER_IMAGE = {"baseline": 4, "segments": 3}  # options that may hold one entry per image, and their dimensions then


def options(method: str) -> dict[str, Any]:
    """Options of a method and their defaults.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is unknown, expected one of {', '.join(METHODS)}")
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def attribute(
    method: str,
    model: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    precision: str = "float32",
    progress: bool = True,
    **settings: Any,
) -> Attribution:
    """Explain the model's output `target` for every image.

    Args:
        method: a key of `METHODS`.
        model: any network in eval mode, (N, C, H, W) -> (N, K) or (N,); it is not changed.
        x: images (N, C, H, W), 1 or 3 channels, any size the model takes.
        target: the output to explain, one for all images or one each; 0 for a network with a single logit.
        precision: "float32", or "bf16": faster on some machines, and its deviation is in the notes.
        progress: show a bar when the work takes more than a few seconds.
        settings: options of the method, see `options`.

    Raises:
        TypeError: an option that the method does not have, or tensors of the wrong kind.
        ValueError: the method is unknown, or the model, an image, the target or an option cannot be used; the message
            names it.
        Refused: the method would not be right on this model or this image.
    """
    _check_options(method, settings)
    network = Network(model, precision, progress)
    return _run({method: settings}, network, x, target)[method]


def attribute_all(
    methods: Sequence[str],
    model: nn.Module,
    x: Tensor,
    target: int | Sequence[int] | Tensor,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    precision: str = "float32",
    progress: bool = True,
) -> dict[str, Attribution]:
    """Several methods; those that need the same passes share them.

    Saliency, gradient x input, Grad-CAM and LayerCAM are read from one forward and one backward pass, guided
    backpropagation, Guided Grad-CAM and DeepLIFT from the same forward pass. `seconds` and passes of these are those of
    the set.

    Args:
        methods: keys of `METHODS`.
        model: as for `attribute`.
        x: as for `attribute`.
        target: as for `attribute`.
        settings: options by method.
        precision: as for `attribute`.
        progress: as for `attribute`.

    Raises:
        TypeError, ValueError, Refused: as `attribute`.
    """
    chosen = {method: dict((settings or {}).get(method, {})) for method in methods}
    unused = sorted(set(settings or {}) - set(methods))
    if unused:
        raise ValueError(f"settings: {unused[0]!r} is not among the methods {', '.join(methods)}")
    for method, given in chosen.items():
        _check_options(method, given)
    together = {m: given for m, given in chosen.items() if m in gradients.SHARED}
    found: dict[str, Attribution] = {}
    if together:
        found |= _run(together, Network(model, precision, progress), x, target)
    for method in chosen:
        if method not in together:
            found |= _run({method: chosen[method]}, Network(model, precision, progress), x, target)
    return {method: found[method] for method in chosen}


def _check_options(method: str, given: Mapping[str, Any]) -> None:
    known = options(method)
    wrong = [name for name in given if name not in known]
    if wrong:
        raise TypeError(f"{wrong[0]}: {method} has no such option, it has {', '.join(known) or 'none'}")


def _run(
    chosen: dict[str, dict[str, Any]], network: Network, x: Tensor, target: int | Sequence[int] | Tensor
) -> dict[str, Attribution]:
    """Run one method, or several that share passes, on as many images at once as memory allows."""
    device = x.device if isinstance(x, Tensor) else None
    with torch.inference_mode(False), torch.enable_grad():
        x, wanted = network.inputs(x, target)
        started = time.perf_counter()
        parts = _in_parts(chosen, network, x, wanted)
        seconds = time.perf_counter() - started
    out = {}
    for method in chosen:
        found = [part[method] for part in parts]
        for one in found:
            if not torch.isfinite(one.map).all():
                raise ValueError(f"{method}: the map is not finite; are there extreme values in image or weights?")
        baselines, grids = ([getattr(f, name) for f in found] for name in ("baseline", "grid"))
        gaps = [f.gap for f in found if f.gap is not None]
        out[method] = Attribution(
            method=method,
            map=torch.cat([f.map for f in found]).detach().to(device),
            target=wanted.to(device),
            scores=torch.cat([f.scores for f in found]).detach().to(device),
            baseline=None if baselines[0] is None else _joined(baselines, len(x)).to(device),
            grid=None if grids[0] is None else torch.cat(grids).detach().to(device),
            completeness_gap=max(gaps) if gaps else None,
            forward_passes=network.forward_passes,
            backward_passes=network.backward_passes,
            seconds=seconds,
            notes=tuple(network.notes),
        )
    return out


def _joined(baselines: list[Tensor], images: int) -> Tensor:
    """One baseline for all images, or one each."""
    whole = torch.cat(baselines)
    return whole if len(whole) == images else baselines[0]


def _in_parts(chosen: dict[str, dict[str, Any]], network: Network, x: Tensor, target: Tensor) -> list[dict[str, Found]]:
    """The whole batch at once; half of it at a time, and so on, where memory is short."""
    try:
        if len(chosen) > 1:
            return [gradients.shared(network, x, target, chosen)]
        ((method, given),) = chosen.items()
        return [{method: METHODS[method](network, x, target, **given)}]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(x) == 1:
            raise
    half = len(x) // 2
    network.note(f"memory was short: {half} instead of {len(x)} images at a time")
    parts = []
    for rows in (slice(None, half), slice(half, None)):
        given = {m: {k: _rows(k, v, rows, len(x)) for k, v in o.items()} for m, o in chosen.items()}
        parts += _in_parts(given, network, x[rows], target[rows])
    return parts


def _rows(name: str, value: Any, rows: slice, images: int) -> Any:
    """The entries of an option that belong to some of the images."""
    each = isinstance(value, Tensor) and value.ndim == PER_IMAGE.get(name) and len(value) == images
    return value[rows] if each else value
