"""Images cut into segments, outputs of images with segments replaced, and LIME, which fits a linear model to them.

Usage::

    found = lime(network, x, target, segments=150, samples=200)       # one coefficient per SLIC segment
    found = lime(network, x, target, segments=labels)                 # labels (H, W) or (N, H, W), from 0
    values = masked_scores(network, x, target, start, labels, masks)  # outputs of your own coalitions

Theory: an image is cut into M segments; a *coalition* z in {0, 1}^M keeps the segments with z = 1 and fills the others
with the baseline. LIME fits ``f(z) = c0 + sum_i z_i c_i`` to the outputs of random coalitions, weighted by their
likeness to the image, with a lasso penalty. `kernel_shap` uses the same segments and the same masked images. A map
holds a segment's coefficient at each of its pixels.

References: Ribeiro et al. 2016, "Why should I trust you?", section 3; Achanta et al. 2012 (SLIC); Sam-Millan et al.
2023, section 3.2.4 (SLIC with 150 segments, 200 samples).
"""

from collections.abc import Sequence

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor

from xai_lib.attribution.core import Found, Network, Refused, as_baseline, chunked
from xai_lib.attribution.path import quick, whole
from xai_lib.config import torch_generator

DISTANCES = ("pixels", "segments")
EPSILON = 1e-8  # smallest length of a vector in a cosine


def slic_segments(image: Tensor, segments: int = 150, compactness: float = 10.0) -> Tensor:
    """Superpixels by SLIC: labels (H, W), 0 to M - 1.

    Args:
        image: (C, H, W), on any scale. Three channels are read as colours, other numbers are averaged to grey.
        segments: how many are asked for; SLIC gives fewer where the image has little structure.
        compactness: high values give squares, low values follow the edges (scikit-image).

    Raises:
        ValueError: another shape, fewer than two segments asked for.
        Refused: the image is constant, or SLIC finds one segment only.
    """
    whole("segments", segments, 2)
    if image.ndim != 3 or image.numel() == 0:
        raise ValueError(f"image: expected shape (C, H, W), got {tuple(image.shape)}")
    if bool((image.amax((1, 2)) == image.amin((1, 2))).all()):
        raise Refused("segments: the image is constant, SLIC cannot divide it; pass labels (H, W) instead of a number")
    colours = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    pixels = colours.detach().double().permute(1, 2, 0).cpu().numpy()  # (H, W, 3)
    found = slic(pixels, n_segments=segments, compactness=compactness, start_label=0)
    names, labels = np.unique(found, return_inverse=True)
    if len(names) == 1:
        raise Refused(f"segments: SLIC found one segment instead of {segments}; pass labels (H, W) instead of a number")
    return torch.from_numpy(labels.reshape(found.shape)).long()


def lime(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    segments: int | Tensor = 150,
    samples: int = 200,
    baseline: float | Tensor | None = None,
    kernel_width: float = 1.0,
    distance: str = "pixels",
    alpha: float = 0.01,
    seed: int = 0,
    chunk: int | None = None,
) -> Found:
    """LIME: a lasso fit to the outputs of images with random segments replaced (Ribeiro 2016, equation 1).

    Every segment is kept with probability 1/2. A coalition weighs ``exp(-d^2 / (2 kernel_width^2))``, d the cosine
    distance between the image and the masked image: the defaults are those of Captum's `Lime`. The lime library
    measures d between the coalitions instead, ``distance="segments", kernel_width=0.25``.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs to explain (N,).
        segments: number of SLIC segments, or labels (H, W) or (N, H, W) that count from 0.
        samples: coalitions, one forward pass each; the image itself is one more.
        baseline: see `as_baseline`; None is 0.
        kernel_width: width of the kernel.
        distance: "pixels" or "segments".
        alpha: lasso penalty, in units of the output; 0 is least squares.
        seed: of the coalitions; the same for every image.
        chunk: coalitions at a time; None chooses by timing.

    Raises:
        ValueError: an option out of range, labels or a baseline that do not fit.
        Refused: see `slic_segments`.
    """
    whole("samples", samples, 2)
    if distance not in DISTANCES:
        raise ValueError(f"distance: {distance!r} is unknown, expected one of {', '.join(DISTANCES)}")
    if not kernel_width > 0:
        raise ValueError(f"kernel_width: {kernel_width} is not above 0")
    if not alpha >= 0:
        raise ValueError(f"alpha: {alpha} is below 0")
    labels, start = label_maps(network, x, segments), as_baseline(baseline, x)
    masks = []
    for each in labels:
        draw = torch_generator(seed, "lime")
        masks.append(torch.rand(samples, int(each.max()) + 1, generator=draw) < 0.5)
    return _lime(network, x, target, start, labels, masks, kernel_width, distance, alpha, chunk)


def _lime(
    network: Network,
    x: Tensor,
    target: Tensor,
    start: Tensor,
    labels: Tensor,
    masks: Sequence[Tensor],
    kernel_width: float,
    distance: str,
    alpha: float,
    chunk: int | None,
) -> Found:
    from sklearn.linear_model import Lasso, LinearRegression  # takes a second to import

    rows = [torch.cat([torch.ones_like(m[:1]), m]) for m in masks]  # the image itself, then the coalitions
    values = masked_scores(network, x, target, start, labels, rows, chunk)
    found = []
    for n, mask in enumerate(masks):
        near = likeness(x[n], start.expand_as(x)[n], labels[n], mask, distance)
        weights = torch.exp(-((1 - near) ** 2) / (2 * kernel_width**2))
        fit = Lasso(alpha=alpha) if alpha else LinearRegression()
        fit.fit(mask.double().numpy(), values[n][1:].numpy(), sample_weight=weights.numpy())
        found.append(torch.from_numpy(fit.coef_))
        if alpha and not fit.coef_.any():
            network.note(f"alpha: the penalty {alpha} is so large for this output that no segment counts; the map is 0")
    scores = torch.stack([v[0] for v in values])
    return Found(painted(found, labels, x), scores.to(x), start)


def likeness(image: Tensor, start: Tensor, labels: Tensor, masks: Tensor, distance: str = "pixels") -> Tensor:
    """Cosine between the image and each of its masked versions, (S,) in float64, without making the images.

    With ``x.x``, ``x.b`` and ``b.b`` summed over each segment, the products of the whole images are sums over the
    kept and the replaced segments.

    Args:
        image: (C, H, W).
        start: the baseline (C, H, W).
        labels: (H, W).
        masks: coalitions (S, M).
        distance: "pixels"; "segments" gives the cosine between a row of ones and the coalition.
    """
    kept = masks.double()

    def summed(values: Tensor) -> Tensor:
        """(C, H, W) -> (M,)."""
        flat = values.double().sum(0).flatten().cpu()
        return flat.new_zeros(masks.shape[1]).index_add_(0, labels.flatten().cpu(), flat)

    if distance == "segments":
        xx = kept.new_ones(masks.shape[1])
        xb = bb = torch.zeros_like(xx)
    else:
        xx, xb, bb = summed(image * image), summed(image * start), summed(start * start)
    product = kept @ xx + (1 - kept) @ xb
    length = (kept @ xx + (1 - kept) @ bb).sqrt().clamp(min=EPSILON)
    return product / (length * xx.sum().sqrt().clamp(min=EPSILON))


def masked_scores(
    network: Network,
    x: Tensor,
    target: Tensor,
    start: Tensor,
    labels: Tensor,
    masks: Sequence[Tensor],
    chunk: int | None = None,
) -> list[Tensor]:
    """The target's output for every coalition of every image: (S_n,) in float64 on the CPU, for each image n.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: outputs (N,).
        start: baseline (1 or N, C, H, W).
        labels: segments (N, H, W).
        masks: for each image its coalitions (S_n, M_n), True where the segment is kept.
        chunk: masked images at a time; None chooses by timing.
    """
    counts = [len(m) for m in masks]
    owner = torch.repeat_interleave(torch.arange(len(x)), torch.tensor(counts)).to(x.device)
    rows = [row for m in masks for row in m.to(x.device)]

    def run(first: int, stop: int) -> Tensor:
        image = owner[first:stop]
        kept = torch.stack([rows[i][labels[owner[i]]] for i in range(first, stop)])  # (n, H, W)
        masked = torch.where(kept[:, None], x[image], start.expand_as(x)[image])
        return network.scores(masked, target[image])

    with torch.no_grad(), quick(network, x, len(rows)):
        scores = torch.cat([value for _, _, value in chunked(network, len(rows), run, chunk)])
    return list(scores.double().cpu().split(counts))


def label_maps(network: Network, x: Tensor, segments: int | Tensor) -> Tensor:
    """Labels (N, H, W) of all images: by SLIC, or the ones given, checked. SLIC's shortfall becomes a note.

    Raises:
        TypeError: `segments` is neither a whole number nor a tensor of whole numbers.
        ValueError: labels of another shape, that do not count from 0 without a gap, or with one segment only.
    """
    if not isinstance(segments, Tensor):
        labels = torch.stack([slic_segments(image, whole("segments", segments, 2)) for image in x])
        found = [int(m.max()) + 1 for m in labels]
        if min(found) < segments:
            between = f"{min(found)}" if min(found) == max(found) else f"{min(found)} to {max(found)}"
            network.note(f"segments: SLIC gave {between} of the {segments} asked for")
        return labels.to(x.device)
    if segments.is_floating_point() or segments.dtype == torch.bool:
        raise TypeError(f"segments: expected whole numbers, got {segments.dtype}")
    if segments.shape not in (x.shape[2:], (len(x), *x.shape[2:])):
        expected = f"{tuple(x.shape[2:])} or {(len(x), *x.shape[2:])}"
        raise ValueError(f"segments: shape {tuple(segments.shape)} does not fit, expected {expected}")
    labels = segments.detach().long().expand(len(x), *x.shape[2:])
    for one in labels:
        names = one.unique()
        if len(names) < 2 or names[0] != 0 or names[-1] != len(names) - 1:
            known = f"{len(names)} labels from {int(names[0])} to {int(names[-1])}"
            raise ValueError(f"segments: expected at least two labels that count from 0 without a gap, got {known}")
    return labels.to(x.device)


def painted(coefficients: Sequence[Tensor], labels: Tensor, x: Tensor) -> Tensor:
    """Each segment's coefficient (M_n,) at each of its pixels: (N, H, W) in the type of `x`."""
    return torch.stack([c.to(x)[m] for c, m in zip(coefficients, labels, strict=True)])
