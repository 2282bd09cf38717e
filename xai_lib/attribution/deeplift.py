"""DeepLIFT and DeepSHAP: attributions that add up to the change of the output from a baseline to the image.

Usage::

    found = deeplift(network, x, target)                            # against a black image
    found = deep_shap(network, x, target, baselines=images)         # the mean over images (B, C, H, W)

Theory: DeepLIFT replaces the derivative of every non-linear call by the slope between baseline and image (see `rules`),
so the chain rule carries differences instead of derivatives, and ``m (x - b)`` sums to f(x) - f(b). This is checked at
every call: a network that computes something unseen is refused, not explained wrongly.

References: Shrikumar et al. 2017, "Learning important features through propagating activation differences"; Lundberg
and Lee 2017, "A unified approach to interpreting model predictions".
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from xai_lib.attribution.core import (
    COMPLETENESS_LIMIT,
    Found,
    Network,
    Refused,
    as_baseline,
    chunked,
    completeness_gap,
    pick,
    require_complete,
    shadow,
)
from xai_lib.attribution.passes import Gradients, Reference, gradients, reference, there


def deeplift(
    network: Network,
    x: Tensor | Gradients,
    target: Tensor,
    *,
    baseline: float | Tensor | Reference | None = None,
) -> Found:
    """DeepLIFT, rescale rule: ``sum_c m_c (x_c - b_c)``; the map sums to f(x) - f(b). The rules are those of `rules`.

    Runs in float32 whatever the network's precision. Where rounding spoils the sum by more than the limit, the map is
    computed again in float64, and a note says so. A sum that is wrong in float64 too is refused.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        baseline: what the images are compared with, see `as_baseline`; or a `Reference` made before by
            `passes.reference`, which saves a forward pass for every further image of a study.

    Raises:
        Refused: the network has a call without a rule, or the sum misses f(x) - f(b).

    Reference: Shrikumar et al. 2017, sections 3.1 to 3.5.1.
    """
    with network.exact():
        if isinstance(x, Tensor):
            made = baseline if isinstance(baseline, Reference) else reference(network, as_baseline(baseline, x))
            x = gradients(network, x, target, reference=made)
        start = there(x.reference).baseline

        def again(double: Network, images: Tensor) -> Found:
            made = reference(double, start.double())
            return _deeplift(gradients(double, images, target, reference=made), target)

        return _complete("deeplift", network, _deeplift(x, target), x.x, again)


def deep_shap(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    baselines: Tensor | None = None,
    chunk: int | None = None,
) -> Found:
    """DeepSHAP: the mean of DeepLIFT over several baselines; the map sums to f(x) - mean f(b).

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        baselines: images (B, C, H, W), all of them used for every image. None is one black image: then this is
            DeepLIFT, and a note says so.
        chunk: baselines at a time; None chooses by timing.

    Raises:
        ValueError: no baseline, or baselines of another shape.
        Refused: as `deeplift`.

    Reference: Lundberg and Lee 2017, section 4.2; Chen et al. 2022, "Explaining a series of models by propagating
    Shapley values".
    """
    if baselines is None:
        network.note("deep_shap: a single baseline, 0, so this is DeepLIFT; give baselines=images")
        baselines = torch.zeros_like(x[:1])
    if not isinstance(baselines, Tensor) or baselines.numel() == 0 or baselines.shape != (len(baselines), *x.shape[1:]):
        shape = tuple(getattr(baselines, "shape", ()))
        raise ValueError(f"baselines: expected images (B, {', '.join(map(str, x.shape[1:]))}), got shape {shape}")
    starts = as_baseline(baselines, baselines.to(x))
    with network.exact():
        found = _deep_shap(network, x, target, starts, chunk)
        return _complete(
            "deep_shap",
            network,
            found,
            x,
            lambda double, images: _deep_shap(double, images, target, starts.double(), chunk),
        )


def _deeplift(done: Gradients, target: Tensor) -> Found:
    """DeepLIFT of a batch, with its gap."""
    start = there(done.reference)
    parts = there(done.multipliers) * (done.x - start.baseline)  # (N, C, H, W)
    difference = done.scores - pick(start.outputs.expand(len(target), -1), target)
    gap = completeness_gap(parts.double().sum((1, 2, 3)), difference, torch.cat([done.scores, start.outputs.flatten()]))
    return Found(parts.sum(1), done.scores, baseline=start.baseline, gap=gap)


def _deep_shap(network: Network, x: Tensor, target: Tensor, starts: Tensor, chunk: int | None) -> Found:
    """The mean of DeepLIFT over the baselines `starts` (B, C, H, W), and the gap of its sum."""
    scores = x.new_zeros(len(x))
    outputs = x.new_zeros(len(x), len(starts))  # of the baselines, for every image's target

    def run(start: int, stop: int) -> Tensor:
        made = reference(network, starts[start:stop])
        maps = []
        for i, image in enumerate(x):
            wanted = target[i].expand(stop - start)
            found = _deeplift(gradients(network, image.expand_as(made.baseline), wanted, reference=made), wanted)
            scores[i], outputs[i, start:stop] = found.scores[0], pick(made.outputs, wanted)
            maps.append(found.map.sum(0))
        return torch.stack(maps)  # (N, H, W)

    total = torch.zeros_like(x[:, 0])
    for _, _, part in chunked(network, len(starts), run, chunk, unit="baselines"):
        total += part
    mean = total / len(starts)
    known = torch.cat([scores, outputs.flatten()])
    return Found(mean, scores, gap=completeness_gap(mean.double().sum((1, 2)), scores - outputs.mean(1), known))


def _complete(
    method: str, network: Network, found: Found, x: Tensor, again: Callable[[Network, Tensor], Found]
) -> Found:
    """The result if its sum is right; `again` computes it in float64 where float32 is not good enough.

    Raises:
        Refused: the sum is wrong in float64 as well.
    """
    gap = there(found.gap)
    if gap > COMPLETENESS_LIMIT and x.dtype == torch.float32:
        double = copy(network)
        double.module, double.dtype = shadow(network.module).double(), torch.float64
        try:
            fine = again(double, x.double())
        except (TypeError, ValueError) as error:
            raise Refused(f"{method}: the sum misses by {gap:.2g} in float32; in float64: {error}") from error
        network.forward_passes, network.backward_passes = double.forward_passes, double.backward_passes
        network.note(f"{method}: the sum missed by {gap:.2g} in float32, so the map was computed in float64")
        gap = there(fine.gap)
        found = replace(found, map=fine.map.to(x.dtype), gap=gap)
    require_complete(method, gap)
    return found
