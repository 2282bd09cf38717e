"""Does a map name the pixels that the network uses? Remove them, and see what the network says.

Usage::

    auc(deletion(model, x, target, maps)), auc(insertion(model, x, target, maps))
    sensitivity_n(model, x, target, maps, n=[16, 256])

All take finished maps (N, H, W) and return a table with a row per image; ``table.attrs`` says what was done to the
network: "forward_passes" and "notes". The model is never changed.

Theory: a removed pixel needs a value to be replaced by, and that choice (`fill`, `baseline`) is part of the result.
Each of these scores stands beside that of a random order and of the image's brightness, which know nothing of the
network.

References: Petsiuk et al. 2018, RISE (deletion and insertion); Ancona et al. 2018, Towards better understanding of
gradient-based attribution methods (sensitivity-n). The pointing game is in `xai_lib.localization`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from xai_lib.attribution.core import Network, as_baseline, chunked, pick
from xai_lib.attribution.measures import Array, as_maps
from xai_lib.config import numpy_generator

Target = int | Sequence[int] | Tensor
ORDERS = ("map", "random", "brightness")
BLUR_PX = 5.0  # RISE's deviation, for 224 pixels; its code cuts the kernel to 11 pixels, here it is whole


def deletion(
    model: nn.Module,
    x: Tensor,
    target: Target,
    maps: ArrayLike | Tensor,
    *,
    steps: int = 50,
    fill: float | str | Tensor = 0.0,
    output: str = "probability",
    seed: int = 0,
    chunk: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Deletion (Petsiuk 2018): remove pixels, those with the highest attribution first. A low area is good.

    Args:
        model: in eval mode.
        x: images (N, C, H, W).
        target: class or classes.
        maps: (N, H, W). Pixels of equal value are removed in random order.
        steps: number of groups in which the pixels are removed.
        fill: what a removed pixel is replaced by: a number, a tensor (see `core.as_baseline`), or "blur" (the image
            after a Gaussian blur of 5 pixels).
        output: "probability" (softmax, or sigmoid for one output) as in the paper, or "score".
        seed: of the random order and of the order of ties.
        chunk: images at a time; None: timed.
        progress: show a bar on work of more than a few seconds.

    Returns:
        Columns image, order ("map"; the controls "random" and "brightness", the brightest pixels first), `share` of
        the pixels replaced, `score`, and `normalised`: 1 for the image, 0 for the image that is only fill; NaN where
        the two scores are equal. `auc` sums it up.

    Raises:
        ValueError: maps that do not fit the images or are not finite, steps outside 1 ... HW, an unknown option.
    """
    network = Network(model, progress=progress)
    x, target = network.inputs(x, target)
    return _curves(network, x, target, _filled(x, fill), maps, steps, output, seed, chunk, insert=False)


def insertion(
    model: nn.Module,
    x: Tensor,
    target: Target,
    maps: ArrayLike | Tensor,
    *,
    steps: int = 50,
    fill: float | str | Tensor = "blur",
    output: str = "probability",
    seed: int = 0,
    chunk: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Insertion (Petsiuk 2018): add pixels to the blurred image, highest attribution first. A high area is good.

    Arguments, columns and errors are those of `deletion`; `share` is the share of the pixels that are shown.
    """
    network = Network(model, progress=progress)
    x, target = network.inputs(x, target)
    return _curves(network, x, target, _filled(x, fill), maps, steps, output, seed, chunk, insert=True)


def auc(curves: pd.DataFrame) -> pd.DataFrame:
    """Area under each curve of `deletion` or `insertion`: columns image, order, `auc`, `normalised_auc`.

    A map that orders the pixels no better than chance has the area of the row "random".
    """
    rows = []
    for (image, order), curve in curves.groupby(["image", "order"], sort=False):
        areas = [float(np.trapezoid(curve[name], curve["share"])) for name in ("score", "normalised")]
        rows.append((image, order, *areas))
    return pd.DataFrame(rows, columns=["image", "order", "auc", "normalised_auc"])


def sensitivity_n(
    model: nn.Module,
    x: Tensor,
    target: Target,
    maps: ArrayLike | Tensor,
    n: int | Sequence[int],
    subsets: int = 100,
    seed: int = 0,
    *,
    baseline: float | Tensor | None = None,
    segments: ArrayLike | Tensor | None = None,
    chunk: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Sensitivity-n (Ancona 2018): do the summed attributions of n pixels predict what removing them changes?

    Args:
        model: in eval mode.
        x: images (N, C, H, W).
        target: class or classes.
        maps: (N, H, W).
        n: size or sizes of the subsets, 1 to one less than there are pixels (or segments).
        subsets: how many random subsets of each size, at least 3; the same for all images.
        seed: of the subsets.
        baseline: what a removed pixel is replaced by; None is 0.
        segments: labels (H, W) or (N, H, W); n then counts segments.
        chunk: images at a time; None: timed.
        progress: show a bar on work of more than a few seconds.

    Returns:
        Columns image, n, `correlation` (Pearson, over subsets: 1 for a linear network and an exact map) and the
        controls `random` (the same attributions, permuted) and `brightness` (the image itself as map); NaN where the
        sums or the outputs do not vary.

    Raises:
        ValueError: maps or segments that do not fit the images, n out of range, fewer than 3 subsets.
    """
    network = Network(model, progress=progress)
    x, target = network.inputs(x, target)
    values, labels = _fitting(maps, x), _labels(segments, x)
    blank = as_baseline(baseline, x).expand_as(x)
    sizes, most = np.atleast_1d(np.asarray(n)), min(int(image.max()) for image in labels)
    if sizes.dtype.kind not in "iu" or sizes.size == 0 or sizes.min() < 1 or sizes.max() > most:
        raise ValueError(f"n: {n!r}, expected integers from 1 to {most}, one less than there are pixels or segments")
    if subsets < 3:
        raise ValueError(f"subsets: {subsets} is below 3")
    sums = [_sums(values[i], x[i], labels[i], seed) for i in range(len(x))]
    jobs = [(image, int(size), draw) for image in range(len(x)) for size in sizes for draw in range(subsets)]

    def run(start: int, stop: int) -> Tensor:  # -> (b, 4): score after removal, and three sums of attributions
        rows = [image for image, _, _ in jobs[start:stop]]
        picked = [_subset(len(sums[image]), size, seed, draw) for image, size, draw in jobs[start:stop]]
        removed = np.stack([p[labels[image]] for p, image in zip(picked, rows, strict=True)])
        mask = torch.from_numpy(removed).to(x.device).reshape(-1, 1, *x.shape[2:])
        with torch.no_grad():
            scores = network.scores(torch.where(mask, blank[rows], x[rows]), target[rows])
        added = np.stack([p @ sums[image] for p, image in zip(picked, rows, strict=True)])
        return torch.cat([scores.double().cpu()[:, None], torch.from_numpy(added)], dim=1)

    found = torch.cat([value for _, _, value in chunked(network, len(jobs), run, chunk)])
    rounding, rows = 4 * torch.finfo(network.dtype).eps, []
    for (image, size, _), part in zip(jobs[::subsets], found.reshape(-1, subsets, 4).numpy(), strict=True):
        rows.append((image, size, *(_pearson(part[:, 0], part[:, column], rounding) for column in (1, 2, 3))))
    table = pd.DataFrame(rows, columns=["image", "n", "correlation", "random", "brightness"])
    return _annotated(table, network)


def _filled(x: Tensor, fill: float | str | Tensor) -> Tensor:
    """What removed pixels are replaced by, (N, C, H, W)."""
    if not isinstance(fill, str):
        return as_baseline(fill, x).expand_as(x)
    if fill != "blur":
        raise ValueError(f"fill: {fill!r} is unknown, expected a number, a tensor or 'blur'")
    return torch.from_numpy(gaussian_filter(x.cpu().numpy(), (0, 0, BLUR_PX, BLUR_PX))).to(x)


def _curves(
    network: Network,
    x: Tensor,
    target: Tensor,
    blank: Tensor,
    maps: ArrayLike | Tensor,
    steps: int,
    output: str,
    seed: int,
    chunk: int | None,
    insert: bool,
) -> pd.DataFrame:
    """The table of `deletion` and `insertion`: scores of images that are partly `x` and partly `blank`."""
    pixels = x.shape[2] * x.shape[3]
    if output not in ("probability", "score"):
        raise ValueError(f"output: {output!r} is not 'probability' or 'score'")
    if not 1 <= steps <= pixels:
        raise ValueError(f"steps: {steps} is not in 1 to {pixels}, the number of pixels")
    ranks = torch.from_numpy(_ranks(_fitting(maps, x), x, seed)).to(x.device)  # (N, 3, HW)
    cuts = torch.linspace(0, pixels, steps + 1, dtype=torch.float64).round().int().to(x.device)
    before, after = (blank, x) if insert else (x, blank)

    def run(start: int, stop: int) -> Tensor:
        job = torch.arange(start, stop, device=x.device)
        image, order, step = job // (3 * len(cuts)), job // len(cuts) % 3, job % len(cuts)
        done = (ranks[image, order] < cuts[step, None]).reshape(-1, 1, *x.shape[2:])
        with torch.no_grad():
            out = network(torch.where(done, after[image], before[image]))
        if output == "probability":
            out = out.softmax(1) if out.shape[1] > 1 else out.sigmoid()
        return pick(out, target[image])

    found = [value for _, _, value in chunked(network, len(x) * 3 * len(cuts), run, chunk)]
    scores = torch.cat(found).double().cpu().numpy().reshape(len(x), 3, len(cuts))
    none, full = (scores[..., :1], scores[..., -1:])[:: 1 if insert else -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        equal = np.abs(full - none) <= 1e-6 * np.abs(scores).max((1, 2), keepdims=True)
        normalised = np.where(equal, np.nan, (scores - none) / (full - none))
    index = pd.MultiIndex.from_product(
        [range(len(x)), ORDERS, (cuts.double() / pixels).tolist()], names=["image", "order", "share"]
    )
    table = pd.DataFrame({"score": scores.ravel(), "normalised": normalised.ravel()}, index=index).reset_index()
    return _annotated(table, network)


def _ranks(maps: Array, x: Tensor, seed: int) -> NDArray[np.int32]:
    """When each pixel's turn comes: (N, 3, HW), one row per order. Ties are in random order."""
    flat = maps.reshape(len(maps), -1)
    ties = numpy_generator(seed, "order").permutation(flat.shape[1])
    values = np.stack([flat, np.zeros_like(flat), _brightness(x)], axis=1)
    turns = np.argsort(np.lexsort((np.broadcast_to(ties, values.shape), -values)))
    return turns.astype(np.int32)


def _brightness(x: Tensor) -> Array:
    """Mean over channels: (N, C, H, W) -> (N, H W)."""
    return x.mean(1).flatten(1).double().cpu().numpy()


def _fitting(maps: ArrayLike | Tensor, x: Tensor) -> Array:
    values, expected = as_maps(maps), (len(x), *x.shape[2:])
    if values.shape != expected:
        raise ValueError(f"maps: shape {values.shape} does not fit the images, expected {expected}")
    return values


def _labels(segments: ArrayLike | Tensor | None, x: Tensor) -> list[NDArray[np.intp]]:
    """Feature number 0 ... K - 1 of every pixel, (HW,) for each image; without segments every pixel is a feature."""
    n, height, width = len(x), *x.shape[2:]
    if segments is None:
        return [np.arange(height * width)] * n
    given = np.asarray(segments.cpu() if isinstance(segments, Tensor) else segments)
    if given.shape not in ((height, width), (n, height, width)):
        expected = f"{(height, width)} or {(n, height, width)}"
        raise ValueError(f"segments: shape {given.shape} does not fit the images, expected {expected}")
    return [np.unique(image, return_inverse=True)[1].ravel() for image in np.broadcast_to(given, (n, height, width))]


def _sums(values: Array, x: Tensor, labels: NDArray[np.intp], seed: int) -> Array:
    """Attribution of every feature, (K, 3): of the map, of the map permuted, of the brightness."""
    own, bright = (np.bincount(labels, v.ravel()) for v in (values, _brightness(x[None])))
    return np.stack([own, numpy_generator(seed, "permuted").permutation(own), bright], axis=1)


def _subset(features: int, size: int, seed: int, draw: int) -> NDArray[np.bool_]:
    picked = np.zeros(features, bool)
    picked[numpy_generator(seed, "subset", size, draw).choice(features, size, replace=False)] = True
    return picked


def _pearson(scores: Array, sums: Array, rounding: float) -> float:
    """Correlation of the sums with what the scores lose; NaN where one varies by no more than its rounding."""
    if np.ptp(scores) <= rounding * np.abs(scores).max() or np.ptp(sums) <= 1e-9 * np.abs(sums).max():
        return float("nan")
    return -float(np.corrcoef(scores, sums)[0, 1])


def _annotated(table: pd.DataFrame, network: Network) -> pd.DataFrame:
    table.attrs.update(forward_passes=network.forward_passes, notes=tuple(network.notes))
    return table
