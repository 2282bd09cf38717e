"""Gradients summed along the way from a baseline to the image: integrated gradients and GradientSHAP.

Usage::

    found = integrated_gradients(network, x, target, steps=200)                  # baseline 0
    found = gradient_shap(network, x, target, baselines=images, samples=200)     # baselines (B, C, H, W)

Theory: for a path ``x(a) = b + a (x - b)`` the gradient theorem gives ``f(x) - f(b) = integral over a of
grad f(x(a)) . (x - b)``. The terms of that sum are the attributions, so they are complete: they add up to the change of
the output. Integrated gradients takes the integral by a quadrature rule. GradientSHAP takes its mean over a set of
baselines by random sampling and is complete in expectation.

The steps of all images form one queue and are run in chunks; each chunk is added to the maps and forgotten, so memory
does not depend on the number of steps. No gradient of a weight is computed.

In float32 the gradient of a ReLU network is only good to about 2 % of the map, whoever computes it: rounding decides
about units that are close to zero. The sum is not affected.

References: Sundararajan et al. 2017, "Axiomatic attribution for deep networks", section 3 and equation 3; Lundberg and
Lee 2017 (GradientExplainer in `shap`); Erion et al. 2021, "Improving performance of deep learning models with axiomatic
attribution priors and expected gradients".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from xai_lib.attribution.core import Found, Network, as_baseline, chunked, completeness_gap, pick
from xai_lib.attribution.folding import folded
from xai_lib.config import torch_generator

RULES = ("gausslegendre", "riemann_middle")
INCOMPLETE = 0.01  # a larger gap of integrated gradients is worth a note
FOLD_FROM = 50  # passes that repay a copy with folded batch-norm
FOLD_TOLERANCE = 1e-4  # of the largest output


def integrated_gradients(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    baseline: float | Tensor | None = None,
    steps: int = 200,
    rule: str = "gausslegendre",
    chunk: int | None = None,
) -> Found:
    """Integrated gradients: ``(x - b) * integral of grad f(b + a (x - b)) da`` (Sundararajan 2017, equation 1).

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        baseline: see `as_baseline`; None is 0.
        steps: points on the path, one forward and one backward pass each.
        rule: "gausslegendre" (as Captum's default) or "riemann_middle" (equal steps).
        chunk: points at a time; None chooses by timing.

    Returns:
        map (N, H, W), summed over channels, and the completeness gap; above 1 % a note asks for more steps.

    Raises:
        ValueError: an unknown rule, fewer than one step, or a baseline that does not fit.
    """
    points, weights = quadrature(rule, steps)
    start = as_baseline(baseline, x)  # (1 or N, C, H, W)
    scores, reference = _ends(network, x, start, target, chunk)

    def line(image: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return start.expand_as(x)[image], x[image]

    total = _along(network, x, target, line, points, weights, chunk)
    gap = completeness_gap(total.sum((1, 2)), scores - reference, scores)
    if gap > INCOMPLETE:
        network.note(f"steps: with {steps} the map's sum misses f(x) - f(baseline) by {gap:.2g} of it; take more")
    return Found(total.to(x.dtype), scores, start, gap=gap)


def gradient_shap(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    baselines: float | Tensor | None = None,
    samples: int = 200,
    stdev: float = 0.0,
    seed: int = 0,
    chunk: int | None = None,
) -> Found:
    """GradientSHAP: the mean of ``(x - b) * grad f(b + a (x - b))`` over random baselines b and points a in [0, 1].

    The points of one baseline are stratified, one in each of as many equal intervals as it is drawn: still uniform,
    but with less scatter than Captum's independent draws. Every image of a batch sees the same draws, so its map does
    not depend on the others.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        baselines: the distribution of b, (B, C, H, W); a number fills the image, None is 0.
        samples: draws, one forward and one backward pass each; each different baseline that is drawn costs one more
            forward pass.
        stdev: normal noise added to x in every draw, in units of x.
        seed: of baselines, points and noise.
        chunk: draws at a time; None chooses by timing.

    Returns:
        map (N, H, W), summed over channels; the mean of `baselines`; and the gap between the map's sum and f(x) less
        the mean of f over the drawn baselines. It is expected to vanish only as `samples` (and a `stdev` of 0) allow.

    Raises:
        ValueError: baselines of another shape, fewer than one sample, or a negative `stdev`.
    """
    whole("samples", samples, 1)
    if not 0 <= stdev < float("inf"):
        raise ValueError(f"stdev: {stdev} is not a number >= 0")
    starts = _distribution(baselines, x)  # (B, C, H, W)
    draw = torch_generator(seed, "gradient_shap")
    which = torch.randint(len(starts), (samples,), generator=draw).sort().values
    used, group, times = which.unique(return_inverse=True, return_counts=True)  # (U,), (S,), (U,)
    stratum = torch.arange(samples) - (times.cumsum(0) - times)[group]  # 0, 1, ... within each baseline's draws
    points = (stratum + torch.rand(samples, generator=draw, dtype=torch.float64)) / times[group]
    with network.exact():
        scores = pick(_outputs(network, x, chunk), target)
        at_starts = _outputs(network, starts[used.to(x.device)], chunk)[:, target]  # (U, N)
    reference = (at_starts * times.to(x)[:, None]).sum(0) / samples

    def line(image: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        end = x[image]
        if stdev:
            streams = [torch_generator(seed, "gradient_shap", "noise", int(s)) for s in sample]
            end = end + stdev * torch.stack([torch.randn(x.shape[1:], generator=g) for g in streams]).to(x)
        return starts[which.to(x.device)[sample]], end

    weights = torch.full((samples,), 1 / samples, dtype=torch.float64)
    total = _along(network, x, target, line, points, weights, chunk)
    gap = completeness_gap(total.sum((1, 2)), scores - reference, scores)
    return Found(total.to(x.dtype), scores, starts.mean(0, keepdim=True), gap=gap)


def quadrature(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Points in (0, 1) and weights that add up to 1, both (steps,) in float64.

    Raises:
        ValueError: an unknown rule, or fewer than one step.
    """
    whole("steps", steps, 1)
    if rule == "gausslegendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return torch.from_numpy((points + 1) / 2), torch.from_numpy(weights / 2)
    if rule == "riemann_middle":
        middle = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        return middle, torch.full_like(middle, 1 / steps)
    raise ValueError(f"rule: {rule!r} is unknown, expected one of {', '.join(RULES)}")


def whole(name: str, value: object, least: int) -> int:
    """`value`, if it is a whole number of at least `least`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: {value} is below {least}")
    return int(value)


@contextmanager
def quick(network: Network, x: Tensor, passes: int) -> Iterator[None]:
    """Inside, the network runs as a copy in channels_last with batch-norm folded in, where `passes` repay that.

    The copy has to agree with the model on the first image; these two passes are not counted.
    """
    module = network.module
    copy = folded(module) if passes >= FOLD_FROM and network.device.type == "cpu" else None
    try:
        if copy is not None and _agrees(network, copy, x[:1]):
            network.module = copy
        yield
    finally:
        network.module = module


def _agrees(network: Network, copy: nn.Module, image: Tensor) -> bool:
    module, counted = network.module, network.forward_passes
    try:
        with torch.no_grad(), network.exact():
            own, network.module = network(image), copy
            return bool((own - network(image)).abs().max() <= FOLD_TOLERANCE * own.abs().max())
    except ValueError:  # of the copy; one of the model comes again when the model runs
        return False
    finally:
        network.module, network.forward_passes = module, counted


def _along(
    network: Network,
    x: Tensor,
    target: Tensor,
    line: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    points: Tensor,
    weights: Tensor,
    chunk: int | None,
) -> Tensor:
    """Sum over points a of ``weight * (end - start) * grad f(start + a (end - start))``: (N, H, W) in float64.

    `line` gives start and end (n, C, H, W) for image indices and point indices, both (n,).
    """
    points, weights = points.to(x), weights.to(x.device, torch.float64)
    total = x.new_zeros((len(x), *x.shape[2:]), dtype=torch.float64)
    count = len(x) * len(points)

    def run(first: int, stop: int) -> Tensor:
        item = torch.arange(first, stop, device=x.device)
        image, point = item // len(points), item % len(points)
        start, end = line(image, point)
        move = end - start
        _, gradient = network.gradient(start + points[point, None, None, None] * move, target[image])
        return (gradient * move).sum(1).double() * weights[point, None, None]  # (n, H, W)

    with quick(network, x, count):
        for first, stop, terms in chunked(network, count, run, chunk):
            for item, term in zip(range(first, stop), terms, strict=True):
                total[item // len(points)] += term
    return total


def _ends(network: Network, x: Tensor, start: Tensor, target: Tensor, chunk: int | None) -> tuple[Tensor, Tensor]:
    """The target's output for the images and for the baseline, (N,) each, in float32."""
    with network.exact():
        scores = pick(_outputs(network, x, chunk), target)
        reference = pick(_outputs(network, start, chunk).expand(len(x), -1), target)
    return scores, reference


def _outputs(network: Network, images: Tensor, chunk: int | None) -> Tensor:
    """Outputs (n, K) without gradient."""

    def run(first: int, stop: int) -> Tensor:
        return network(images[first:stop])

    with torch.no_grad():
        return torch.cat([out for _, _, out in chunked(network, len(images), run, chunk)])


def _distribution(baselines: float | Tensor | None, x: Tensor) -> Tensor:
    if not isinstance(baselines, Tensor):
        return as_baseline(baselines, x)
    if baselines.ndim != 4 or len(baselines) == 0 or baselines.shape[1:] != x.shape[1:]:
        expected = ", ".join(map(str, x.shape[1:]))
        raise ValueError(f"baselines: shape {tuple(baselines.shape)} does not fit, expected (B, {expected})")
    if not torch.isfinite(baselines).all():
        raise ValueError("baselines: it holds NaN or infinite values")
    return baselines.detach().to(x)
