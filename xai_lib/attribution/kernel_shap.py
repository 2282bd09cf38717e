"""Kernel SHAP: Shapley values of an image's segments, with as few passes as honest figures allow.

Usage::

    found = kernel_shap(network, x, target, segments=150)                   # 8 coalitions for each segment
    found = kernel_shap(network, x, target, segments=labels, samples=1600)  # labels (H, W) or (N, H, W), from 0

Theory: the Shapley value of a segment is the mean change of the output when it joins a random coalition of the others.
The values are also the solution of a least-squares problem: the linear model of the coalitions' outputs, weighted by
``(M - 1) / (comb(M, k) k (M - k))`` for k kept segments, that is exact for none and for all. They add up to
f(x) - f(baseline); `segments.painted` puts a segment's value at each of its pixels, so the sum is over segments.

Three choices make the same error cost fewer passes than Captum's solution: every coalition comes with its complement,
the sum rule is a constraint (Captum weights it by 10^6 in float32), and a small ridge pulls towards equal shares where
samples are few. Around two samples for each segment the plain system is only just determined and the result is noise;
so are 200 samples for 100 to 150 segments.

References: Lundberg and Lee 2017, "A unified approach to interpreting model predictions", theorem 2; Covert and Lee
2021, "Improving KernelSHAP", section 4 (constrained solution, paired coalitions).
"""

import warnings
from itertools import product
from math import comb, inf

import torch
from torch import Tensor

from xai_lib.attribution.core import Found, Network, as_baseline, completeness_gap
from xai_lib.attribution.path import whole
from xai_lib.attribution.segments import label_maps, masked_scores, painted
from xai_lib.config import torch_generator

RIDGE = 0.1  # with fewer than ENOUGH samples for each segment
ENOUGH = 8
TOO_FEW = 4


def kernel_shap(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    segments: int | Tensor = 150,
    samples: int | None = None,
    baseline: float | Tensor | None = None,
    ridge: float | str = "auto",
    seed: int = 0,
    chunk: int | None = None,
) -> Found:
    """Kernel SHAP: Shapley values of the segments by weighted least squares (Lundberg and Lee 2017, theorem 2).

    Coalitions are drawn from the Shapley kernel, each with its complement; the sum rule holds exactly because it is a
    constraint of the fit, which is solved in float64. If `samples` reaches the number of all coalitions, each is taken
    once and the values are exact.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        segments: number of SLIC segments, or labels (H, W) or (N, H, W) that count from 0.
        samples: coalitions, one forward pass each, rounded up to pairs; the image and the baseline are two more. None
            takes 8 for each segment.
        baseline: see `as_baseline`; None is 0.
        ridge: penalty on the deviation from equal shares. "auto" is 0, and 0.1 below 8 samples for each segment.
        seed: of the coalitions; the same for every image.
        chunk: coalitions at a time; None chooses by timing.

    Warns:
        UserWarning: below 4 samples for each segment, with the spread between two halves of the coalitions.

    Raises:
        ValueError: an option out of range, labels or a baseline that do not fit.
        Refused: see `slic_segments`.
    """
    if samples is not None:
        whole("samples", samples, 2)
    if ridge != "auto" and not (isinstance(ridge, int | float) and 0 <= ridge < inf):
        raise ValueError(f"ridge: {ridge!r} is neither 'auto' nor a number >= 0")
    labels, start = label_maps(network, x, segments), as_baseline(baseline, x)
    drawn = [coalitions(int(m.max()) + 1, samples, seed) for m in labels]
    rows = [torch.cat([torch.ones_like(m[:1]), torch.zeros_like(m[:1]), m]) for m, _ in drawn]
    outputs = masked_scores(network, x, target, start, labels, rows, chunk)
    found, short = [], list[tuple[float, int, int]]()
    for (masks, weights), output in zip(drawn, outputs, strict=True):
        count, width = masks.shape
        few = count < min(2**width - 2, ENOUGH * width)
        penalty = (RIDGE if few else 0.0) if ridge == "auto" else float(ridge)
        game = (masks, output[2:] - output[1], output[0] - output[1], weights, penalty)
        found.append(shapley_fit(*game))
        if few:
            short.append((half_spread(*game), count, width))
    if short:
        _tell(network, *max(short))
    scores, reference = (torch.stack([o[i] for o in outputs]) for i in (0, 1))
    gap = completeness_gap(torch.stack([c.sum() for c in found]), scores - reference, scores)
    return Found(painted(found, labels, x), scores.to(x), start, gap=gap)


def _tell(network: Network, spread: float, count: int, width: int) -> None:
    """Note that samples are few; warn as well where they are too few for a map."""
    text = f"samples: {count} for {width} segments; two halves of them say that the map's error is about {spread:.0%}"
    network.note(f"{text}; {ENOUGH * width} are enough for most images")
    if count < TOO_FEW * width:
        warnings.warn(f"kernel_shap: {text}; take {ENOUGH * width}", stacklevel=3)


def coalitions(width: int, samples: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Coalitions (S, M) of M segments, True where a segment is kept, and their weights (S,).

    All of them with the Shapley kernel's weights where `samples` allows; else random ones, which have weight 1 because
    they are drawn from the kernel: the second half of them are the complements of the first.
    """
    samples = ENOUGH * width if samples is None else samples
    if samples >= 2**width - 2:
        masks = torch.tensor(list(product((False, True), repeat=width)))[1:-1]
        kernel = [0.0, *((width - 1) / (comb(width, k) * k * (width - k)) for k in range(1, width))]
        return masks, torch.tensor(kernel, dtype=torch.float64)[masks.sum(1)]
    draw, pairs = torch_generator(seed, "kernel_shap"), -(-samples // 2)
    k = torch.arange(1, width, dtype=torch.float64)
    sizes = 1 + torch.multinomial(1 / (k * (width - k)), pairs, replacement=True, generator=draw)  # (P,)
    ranks = torch.rand(pairs, width, generator=draw).argsort(1).argsort(1)  # random orders
    half = ranks < sizes[:, None]
    return torch.cat([half, ~half]), torch.ones(2 * pairs, dtype=torch.float64)


def shapley_fit(masks: Tensor, worth: Tensor, total: Tensor, weights: Tensor, ridge: float = 0.0) -> Tensor:
    """Coefficients (M,) that fit the coalitions' worth and add up to `total` exactly.

    With equal shares u = total / M taken off, the rest v has sum 0, so a coalition's row may be centred:
    ``minimise sum_s w_s (worth_s - u k_s - (z_s - k_s / M) . v)^2 + ridge * sum(w) / 4 * |v|^2``, k_s segments kept.

    Args:
        masks: coalitions (S, M).
        worth: their outputs less the baseline's (S,), float64.
        total: output of the image less the baseline's.
        weights: of the coalitions (S,).
        ridge: penalty; 1/4 is the variance of an entry that is kept half of the time.
    """
    width, share = masks.shape[1], masks.double().mean(1)  # k_s / M
    root = weights.sqrt()
    rows = (masks.double() - share[:, None]) * root[:, None]  # (S, M)
    rest = (worth - total * share) * root
    if ridge:
        rows = torch.cat([rows, (ridge * weights.sum() / 4).sqrt() * torch.eye(width, dtype=torch.float64)])
        rest = torch.cat([rest, rest.new_zeros(width)])
    v = torch.linalg.lstsq(rows, rest[:, None], driver="gelsd").solution[:, 0]
    return total / width + v - v.mean()


def half_spread(masks: Tensor, worth: Tensor, total: Tensor, weights: Tensor, ridge: float = 0.0) -> float:
    """Estimated error of the coefficients relative to their size: ``|a - b| / |a + b|``, each from half of the pairs.

    The mean of two independent estimates a and b scatters as (a - b) / 2 does.
    """
    pair = torch.arange(len(masks)) % (len(masks) // 2)
    a, b = (shapley_fit(masks[h], worth[h], total, weights[h], ridge) for h in (pair % 2 == 0, pair % 2 == 1))
    return float((a - b).norm() / (a + b).norm().clamp(min=1e-30))
