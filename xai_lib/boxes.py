"""From an attribution map to boxes. `box_scores` compares them with the annotated ones.

Usage::

    box = boxes_from_map(scores, quantile=0.99)            # (1, 4): the paper's single big box; (0, 4): no region
    box = peak_box(scores)                                 # the region around the largest value alone

Theory: a map is dilated, the pixels above its quantile are kept, an opening removes small regions, every region gets
its bounding box, and the smallest box around all of them is compared with the annotation. The quantile fixes how many
pixels are kept, and one stray region spans the big box. `component_box` and `peak_box` keep a single region instead.

Boxes are int64 (k, 4), half-open ``row0, col0, row1, col1``; k = 0 where a map has no region. What is not defined is
NaN; no box is defined and has an IOU of 0.

References: Sam-Millan et al. 2023, sections 3.2.4, 3.2.5 and 5.1, Fig. 3.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from xai_lib.attribution.measures import PARTS
from xai_lib.data.case import boxes_from_mask

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Boxes = NDArray[np.int64]
Finder = Callable[..., Boxes]  # find(scores, inside=mask or None) -> (k, 4)

FULL_HEIGHT = 1024  # rows of the paper's images, for which its sizes in pixels are meant
SEGMENT_METHODS = ("lime", "kernel_shap")  # their maps are not dilated
EIGHT = np.ones((3, 3))  # pixels that touch at a corner are connected


def as_array(values: ArrayLike | Tensor) -> NDArray:
    """A tensor on any device, or anything array-like, as an array of its own type."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def as_scores(scores: ArrayLike | Tensor) -> Array:
    """One map as float64 (H, W)."""
    values = as_array(scores).astype(float)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"scores: expected finite values of shape (H, W), got shape {values.shape}")
    return values


def as_mask(mask: ArrayLike | Tensor, name: str, shape: tuple[int, ...] | None = None) -> Mask:
    """A mask as bool (H, W), of `shape` where it is given, with at least one pixel."""
    given = as_array(mask).astype(bool)
    if given.ndim != 2 or not given.any() or shape not in (None, given.shape):
        raise ValueError(
            f"{name}: expected shape {shape or '(H, W)'} and a pixel inside, got {given.shape} with {given.sum()}"
        )
    return given


def part_of(scores: ArrayLike | Tensor, part: str) -> Array:
    """The positive or the absolute part of a map (H, W)."""
    if part not in PARTS:
        raise ValueError(f"part: {part!r} is unknown, expected one of {', '.join(PARTS)}")
    return PARTS[part](as_scores(scores))


def _square(name: str, size: int) -> tuple[int, int]:
    if not isinstance(size, int | np.integer) or size < 1 or size % 2 == 0:
        raise ValueError(f"{name}: {size!r} is not an odd number of pixels (1 for none)")
    return (int(size), int(size))


def as_boxes(boxes: ArrayLike | Tensor, name: str = "boxes", shape: tuple[int, ...] | None = None) -> Boxes:
    """Boxes as int64 (k, 4), from any device; one box (4,) becomes (1, 4), an empty list (0, 4).

    Raises:
        ValueError: not whole numbers, another shape, a box without area, or one outside an image of `shape` (H, W).
    """
    given = as_array(boxes)
    given = given.reshape(-1, 4) if given.shape in ((0,), (4,)) else given
    if given.ndim != 2 or given.shape[1] != 4 or given.dtype.kind not in "iuf" or (given != np.rint(given)).any():
        raise ValueError(f"{name}: expected whole numbers of shape (k, 4), got {given.dtype} of shape {given.shape}")
    low, high = given[:, :2], given[:, 2:]
    if not np.isfinite(given).all() or not (low < high).all():
        raise ValueError(f"{name}: expected row0 < row1 and col0 < col1, got {given.tolist()}")
    if shape is not None and ((low < 0) | (high > shape)).any():
        raise ValueError(f"{name}: {given.tolist()} reaches outside the image of {shape[0]} x {shape[1]} pixels")
    return given.astype(np.int64)


# ---------------------------------------------------------------------------------------- the paper's steps, in order


def scaled(size: int, height: int) -> int:
    """A size in pixels of the paper's 1024 rows at another height: the nearest odd number, of two the larger."""
    return 2 * (size * height // (2 * FULL_HEIGHT)) + 1


def dilate(scores: ArrayLike | Tensor, size: int = 9) -> Array:
    """Largest score in the square of `size` pixels around each pixel, (H, W) (3.2.4: 9x9, a single iteration)."""
    return ndimage.grey_dilation(as_scores(scores), _square("dilation", size))


def binarise(scores: ArrayLike | Tensor, quantile: float, inside: ArrayLike | Tensor | None = None) -> Mask:
    """Pixels whose score is higher than the quantile, (H, W) (3.2.5, step 1).

    Where scores tie, as in a map made of segments, this can be far fewer pixels than 1 - quantile of them, or none.

    Args:
        scores: (H, W).
        quantile: in (0, 1). The paper does not give it.
        inside: (H, W), bool. The quantile is taken over these pixels and no other is kept; None: over the whole image,
            its black background included.
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: {quantile!r} is not in (0, 1)")
    values = as_scores(scores)
    within = np.ones(values.shape, bool) if inside is None else as_mask(inside, "inside", values.shape)
    # the lower of the two scores beside the quantile: what exceeds a value between them is the same, without rounding
    return within & (values > np.quantile(values[within], quantile, method="lower"))


def open_regions(mask: ArrayLike | Tensor, size: int = 5) -> Mask:
    """Erosion, then dilation, with a square of `size` pixels (3.2.5, step 2; the paper does not give the size).

    What lies beyond the image's border does not erode a region that touches it, as in OpenCV.
    """
    return ndimage.grey_opening(as_array(mask).astype(np.uint8), _square("opening", size)).astype(bool)


def region_boxes(mask: ArrayLike | Tensor) -> Boxes:
    """Bounding box of every 8-connected region of a mask (H, W): (k, 4) (3.2.5, step 3)."""
    return boxes_from_mask(as_array(mask).astype(bool), speck=0).numpy()


def merge(boxes: ArrayLike | Tensor) -> Boxes:
    """The paper's single big box, from smallest to largest coordinates of all boxes: (k, 4) -> (1, 4); none stays none.

    Section 3.2.5, step 4.
    """
    given = as_boxes(boxes)
    return np.hstack([given[:, :2].min(0), given[:, 2:].max(0)])[None] if len(given) else given


def _regions(
    scores: ArrayLike | Tensor, quantile: float, dilation: int, opening: int, inside: ArrayLike | Tensor | None
) -> tuple[Array, Mask]:
    """The dilated map and its regions, both (H, W)."""
    values = dilate(scores, dilation)
    return values, open_regions(binarise(values, quantile, inside), opening)


def boxes_from_map(
    scores: ArrayLike | Tensor,
    quantile: float = 0.99,
    dilation: int = 9,
    opening: int = 5,
    merged: bool = True,
    inside: ArrayLike | Tensor | None = None,
    part: str = "positive",
) -> Boxes:
    """All steps of section 3.2.5 (Fig. 3): (1, 4), or (k, 4) if not `merged`; (0, 4) where no region is left.

    Args:
        scores: map (H, W), signed; or the image itself, whose brightness is the map of no network.
        quantile: see `binarise`.
        dilation: size of the square in pixels, for images of 1024 rows (see `scaled`); 1 for LIME and SHAP.
        opening: likewise.
        merged: the single big box; else one box for every region.
        inside: see `binarise`.
        part: "positive" (negative scores count as 0) or "absolute"; the paper does not say which.

    Raises:
        ValueError: scores that are not finite or not (H, W), or an option out of its range.
    """
    boxes = region_boxes(_regions(part_of(scores, part), quantile, dilation, opening, inside)[1])
    return merge(boxes) if merged else boxes


def paper_rule(method: str, height: int, quantile: float = 0.99, opening: int = 5) -> Finder:
    """`boxes_from_map` with the paper's sizes at this height and without merging, ready for `score`.

    Maps of methods whose name begins with one of `SEGMENT_METHODS` are not dilated (3.2.5, step 1).
    """
    dilation = 1 if method.startswith(SEGMENT_METHODS) else scaled(9, height)
    return partial(boxes_from_map, quantile=quantile, dilation=dilation, opening=scaled(opening, height), merged=False)


# ---------------------------------------------------------------------------------------- one region (5.1 asks for it)


def component_box(
    scores: ArrayLike | Tensor,
    by: str = "score",
    quantile: float = 0.99,
    dilation: int = 9,
    opening: int = 5,
    inside: ArrayLike | Tensor | None = None,
    part: str = "positive",
) -> Boxes:
    """Box of the one region with the largest sum of (dilated) scores, or the most pixels, (1, 4); or (0, 4).

    Args:
        scores: map (H, W).
        by: "score" or "area".
        quantile, dilation, opening, inside, part: see `boxes_from_map`.
    """
    if by not in ("score", "area"):
        raise ValueError(f"by: {by!r} is not 'score' or 'area'")
    values, mask = _regions(part_of(scores, part), quantile, dilation, opening, inside)
    labels, count = ndimage.label(mask, EIGHT)
    weights = ndimage.sum_labels(values if by == "score" else mask, labels, range(1, count + 1))
    return region_boxes(labels == 1 + np.argmax(weights)) if count else region_boxes(mask)


def peak_box(
    scores: ArrayLike | Tensor,
    level: float = 0.3,
    blur: float = 0.0,
    inside: ArrayLike | Tensor | None = None,
    part: str = "positive",
) -> Boxes:
    """Box of the region around the peak whose scores reach `level` times the peak's, (1, 4); (0, 4) if no score is > 0.

    It needs no quantile, so that the box can follow the lesion's size. Of equal peaks the first in row-major order
    counts.

    Args:
        scores: map (H, W).
        level: in (0, 1].
        blur: deviation of a Gaussian blur before, in pixels; 0 for maps made of segments.
        inside: (H, W), bool: scores elsewhere count as 0 after the blur.
        part: see `boxes_from_map`.
    """
    if not 0 < level <= 1 or not 0 <= blur < np.inf:
        raise ValueError(f"level: {level!r} is not in (0, 1], or blur: {blur!r} is negative or infinite")
    values = ndimage.gaussian_filter(part_of(scores, part), blur)
    values = values if inside is None else values * as_mask(inside, "inside", values.shape)
    if values.max() <= 0:
        return region_boxes(np.zeros(values.shape))
    labels, _ = ndimage.label(values >= level * values.max(), EIGHT)
    return region_boxes(labels == labels.flat[values.argmax()])
