"""From an attribution map to boxes, from boxes to their IOU with the annotated ones, and boxes that know no network.

Usage::

    box = boxes_from_map(scores, quantile=0.99)            # (1, 4): the paper's single big box; (0, 4): no region
    best_iou(box, case.boxes)
    frame = score({"saliency": maps, "brightness": images}, cases, inside=breasts)    # a row per image and method
    tpr_curve(frame.iou[frame.method == "saliency"])       # share of images with IOU >= 0, 0.05, ..., 1
    score_boxes({"breast": [breast_box(breast) for breast in breasts]}, cases, inside=breasts)

Theory: a map is dilated, the pixels above its quantile are kept, an opening removes small regions, every region gets
its bounding box, and the smallest box around all of them is compared with the annotation. The quantile fixes how many
pixels are kept, and one stray region spans the big box. `component_box` and `peak_box` keep a single region instead.

Boxes are int64 (k, 4), half-open ``row0, col0, row1, col1``; k = 0 where a map has no region. What is not defined is
NaN; no box is defined and has an IOU of 0.

References: Sam-Millan et al. 2023, sections 3.2.4 to 4.2, Figs. 3, 5 and 6; Zhang et al. 2018 (pointing game).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor

from xai_lib.attribution.measures import PARTS, as_maps, mass_inside, peak
from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, boxes_from_mask

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Boxes = NDArray[np.int64]
Finder = Callable[..., Boxes]  # find(scores, inside=mask or None) -> (k, 4)

FULL_HEIGHT = 1024  # rows of the paper's images, for which its sizes in pixels are meant
SEGMENT_METHODS = ("lime", "kernel_shap")  # their maps are not dilated
THRESHOLDS = tuple(t / 20 for t in range(21))  # of the IOU, Fig. 6
EIGHT = np.ones((3, 3))  # pixels that touch at a corner are connected


def _array(values: ArrayLike | Tensor) -> NDArray:
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _as_scores(scores: ArrayLike | Tensor) -> Array:
    """One map as float64 (H, W)."""
    values = _array(scores).astype(float)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"scores: expected finite values of shape (H, W), got shape {values.shape}")
    return values


def _as_mask(mask: ArrayLike | Tensor, name: str, shape: tuple[int, ...] | None = None) -> Mask:
    """A mask as bool (H, W), of `shape` where it is given, with at least one pixel."""
    given = _array(mask).astype(bool)
    if given.ndim != 2 or not given.any() or shape not in (None, given.shape):
        raise ValueError(
            f"{name}: expected shape {shape or '(H, W)'} and a pixel inside, got {given.shape} with {given.sum()}"
        )
    return given


def _part(scores: ArrayLike | Tensor, part: str) -> Array:
    if part not in PARTS:
        raise ValueError(f"part: {part!r} is unknown, expected one of {', '.join(PARTS)}")
    return PARTS[part](_as_scores(scores))


def _square(name: str, size: int) -> tuple[int, int]:
    if not isinstance(size, int | np.integer) or size < 1 or size % 2 == 0:
        raise ValueError(f"{name}: {size!r} is not an odd number of pixels (1 for none)")
    return (int(size), int(size))


def as_boxes(boxes: ArrayLike | Tensor, name: str = "boxes", shape: tuple[int, ...] | None = None) -> Boxes:
    """Boxes as int64 (k, 4), from any device; one box (4,) becomes (1, 4), an empty list (0, 4).

    Raises:
        ValueError: not whole numbers, another shape, a box without area, or one outside an image of `shape` (H, W).
    """
    given = _array(boxes)
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
    return ndimage.grey_dilation(_as_scores(scores), _square("dilation", size))


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
    values = _as_scores(scores)
    within = np.ones(values.shape, bool) if inside is None else _as_mask(inside, "inside", values.shape)
    # the lower of the two scores beside the quantile: what exceeds a value between them is the same, without rounding
    return within & (values > np.quantile(values[within], quantile, method="lower"))


def open_regions(mask: ArrayLike | Tensor, size: int = 5) -> Mask:
    """Erosion, then dilation, with a square of `size` pixels (3.2.5, step 2; the paper does not give the size).

    What lies beyond the image's border does not erode a region that touches it, as in OpenCV.
    """
    return ndimage.grey_opening(_array(mask).astype(np.uint8), _square("opening", size)).astype(bool)


def region_boxes(mask: ArrayLike | Tensor) -> Boxes:
    """Bounding box of every 8-connected region of a mask (H, W): (k, 4) (3.2.5, step 3)."""
    return boxes_from_mask(_array(mask).astype(bool), speck=0).numpy()


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
    boxes = region_boxes(_regions(_part(scores, part), quantile, dilation, opening, inside)[1])
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
    values, mask = _regions(_part(scores, part), quantile, dilation, opening, inside)
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
    values = ndimage.gaussian_filter(_part(scores, part), blur)
    values = values if inside is None else values * _as_mask(inside, "inside", values.shape)
    if values.max() <= 0:
        return region_boxes(np.zeros(values.shape))
    labels, _ = ndimage.label(values >= level * values.max(), EIGHT)
    return region_boxes(labels == labels.flat[values.argmax()])


# ---------------------------------------------------------------------------------------- agreement with the true box


def iou_matrix(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> Array:
    """Intersection over union of every box of `a` (k, 4) with every box of `b` (m, 4): (k, m)."""
    first, second = as_boxes(a, "a")[:, None], as_boxes(b, "b")[None]
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    common = np.maximum(high - low, 0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    return common / (areas[0] + areas[1] - common)


def iou(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> float:
    """Intersection over union of two boxes (4,)."""
    table = iou_matrix(a, b)
    if table.shape != (1, 1):
        raise ValueError(f"a, b: got {table.shape[0]} and {table.shape[1]} boxes, expected one box each")
    return float(table[0, 0])


def best_iou(boxes: ArrayLike | Tensor, true: ArrayLike | Tensor) -> float:
    """Largest IOU of any box (k, 4) with any true box (m, 4); 0 without a box, NaN without a true box.

    With several boxes the best one is chosen by looking at the truth: more boxes have more chances.
    """
    table = iou_matrix(boxes, true)
    return float(table.max(initial=0)) if table.shape[1] else np.nan


def tpr_curve(ious: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> Array:
    """Share of images whose IOU reaches each threshold, (T,) (4.2, Fig. 6); at 0 it is 1 by definition.

    Raises:
        ValueError: no IOU, or one that is not in [0, 1].
    """
    values = np.asarray(ious, float)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"ious: expected (N,) values in [0, 1], N > 0, got shape {values.shape}: {values}")
    return (values[:, None] >= np.asarray(thresholds)).mean(0)


def box_mask(boxes: ArrayLike | Tensor, shape: tuple[int, int]) -> Mask:
    """Pixels that lie in any of the boxes, (H, W)."""
    mask = np.zeros(shape, bool)
    for row0, col0, row1, col1 in as_boxes(boxes, shape=shape):
        mask[row0:row1, col0:col1] = True
    return mask


def energy_inside(scores: ArrayLike | Tensor, boxes: ArrayLike | Tensor, part: str = "positive") -> float:
    """Share of the map's mass that lies in any of the boxes; NaN without a box or without mass."""
    values = _as_scores(scores)
    inside = box_mask(boxes, values.shape)
    return float(mass_inside(values[None], inside, part)[0]) if inside.any() else np.nan


def pointing_hit(scores: ArrayLike | Tensor, boxes: ArrayLike | Tensor) -> float:
    """1 where the map's `measures.peak` lies in any of the boxes, else 0; NaN without a box or for a constant map."""
    values = _as_scores(scores)
    given, point = as_boxes(boxes, shape=values.shape), peak(values[None])[0] + 0.5  # a pixel covers [r, r + 1)
    if not len(given) or np.isnan(point).any():
        return np.nan
    return float(((given[:, :2] <= point) & (point < given[:, 2:])).all(1).any())


# ---------------------------------------------------------------------------------------- boxes that know no network


def _fitting(size: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """The size (h, w) if it fits into the image."""
    if len(size) != 2 or not (1 <= size[0] <= shape[0] and 1 <= size[1] <= shape[1]):
        raise ValueError(f"size: {size!r} is not a box (h, w) inside the image of {shape[0]} x {shape[1]} pixels")
    return int(size[0]), int(size[1])


def random_boxes(size: tuple[int, int], inside: ArrayLike | Tensor, n: int, rng: np.random.Generator) -> Boxes:
    """`n` boxes of a size (h, w) anywhere in the image with their centre in the breast `inside` (H, W): (n, 4).

    All such places are equally likely. Where the box is so large that there are none, any place in the image is.
    """
    breast = _as_mask(inside, "inside")
    h, w = _fitting(size, breast.shape)
    corners = np.array(breast.shape) - (h, w) + 1  # how many places, down and across
    centred = breast[h // 2 :, w // 2 :][: corners[0], : corners[1]]  # by the box's first corner
    places = np.flatnonzero(centred if centred.any() else ~centred)
    rows, cols = np.unravel_index(rng.choice(places, n), centred.shape)
    return np.stack([rows, cols, rows + h, cols + w], axis=1)


def centre_box(size: tuple[int, int], inside: ArrayLike | Tensor) -> Boxes:
    """One box of a size (h, w) at the centroid of the breast `inside` (H, W), moved into the image: (1, 4)."""
    breast = _as_mask(inside, "inside")
    h, w = _fitting(size, breast.shape)
    corner = np.array(ndimage.center_of_mass(breast)) + 0.5 - np.array([h, w]) / 2
    row, col = np.clip(np.round(corner), 0, np.array(breast.shape) - (h, w)).astype(int)
    return np.array([[row, col, row + h, col + w]])


def breast_box(inside: ArrayLike | Tensor) -> Boxes:
    """Bounding box of the whole breast `inside` (H, W): (1, 4)."""
    return merge(region_boxes(_as_mask(inside, "inside")))


# ---------------------------------------------------------------------------------------- tables


def score(
    maps: Mapping[str, ArrayLike | Tensor],
    cases: Sequence[Case],
    find: Mapping[str, Finder] | None = None,
    *,
    merged: bool = True,
    truth: str = "union",
    part: str = "positive",
    inside: ArrayLike | Tensor | None = None,
    region: str = "image",
    draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Find the boxes of all maps and measure them: one row per method and image.

    Args:
        maps: method -> (N, H, W); ``{"brightness": images}`` is the control that needs no network.
        cases: the N cases, of the maps' size. A list: a lazy data set would be read again for every method.
        find: method -> what makes the boxes of its maps, ``find[method](scores, inside=...)``, without merging, so that
            the regions can be counted; None: `paper_rule` for each.
        merged, truth, draws, seed: see `score_boxes`.
        part: "positive" or "absolute"; boxes, energy and hit are made of this part.
        inside: breasts (N, H, W), bool; for the chance levels.
        region: "image", or "breast" to give `find` the breast too.

    Returns:
        The columns of `score_boxes`, and energy (share of the map in the annotated boxes; NaN without mass) and hit (0
        or 1, see `pointing_hit`), whose chance level is `true_share`.

    Raises:
        ValueError: maps and cases of different number or size, a method without a finder, or an unknown option.
    """
    if region not in ("image", "breast") or (region == "breast" and inside is None):
        raise ValueError(f"region: {region!r} is not 'image' or, with the breasts as inside, 'breast'")
    rules = {method: paper_rule(method, _size(cases)[0]) for method in maps} if find is None else find
    found, rows = {}, []
    for method, given in maps.items():
        if method not in rules:
            raise ValueError(f"find: has no rule for {method!r}, only for {', '.join(rules)}")
        values = [_part(scores, part) for scores in as_maps(given, method)]  # N of (H, W)
        if len(values) != len(cases):
            raise ValueError(f"maps: {len(values)} of {method!r} for {len(cases)} cases")
        breasts = _breasts(inside, cases) if region == "breast" else [None] * len(cases)
        found[method] = [rules[method](scores, inside=b) for scores, b in zip(values, breasts, strict=True)]
        for scores, case in zip(values, cases, strict=True):
            boxes = _true_boxes(case, scores.shape)
            rows.append({"energy": energy_inside(scores, boxes), "hit": pointing_hit(scores, boxes)})
    frame = score_boxes(found, cases, merged=merged, truth=truth, inside=inside, draws=draws, seed=seed)
    return frame.join(pd.DataFrame(rows))


def score_boxes(
    found: Mapping[str, Sequence[ArrayLike | Tensor]],
    cases: Sequence[Case],
    *,
    merged: bool = True,
    truth: str = "union",
    inside: ArrayLike | Tensor | None = None,
    draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure boxes that are already there, such as `breast_box`: one row per method and image.

    Args:
        found: method -> for each of the N images its boxes (k, 4).
        cases: the N cases.
        merged: compare the single big box; else the best of all boxes (see `best_iou`).
        truth: how several annotated boxes are read: "union", their single big box; "best", the one with the best IOU.
        inside: breasts (N, H, W), bool; None: the whole image.
        draws: number of `random_boxes` for `iou_chance`.
        seed: of these.

    Returns:
        image (index), source, patient_id, method, components (number of boxes found, before merging), true_share (share
        of the breast that is annotated), iou (0 without a box), iou_chance (mean IOU of random boxes, as many and as
        large as those compared), area (share of the image in the boxes compared), area_ratio (that area over the
        annotated one, claim 2.3; NaN without a box). All that needs an annotated box is NaN without one.

    Raises:
        ValueError: no case, images of different size, a number of boxes, breasts or masks that is not the cases', a box
            outside its image, or an unknown option.
    """
    if truth not in ("union", "best") or draws < 1:
        raise ValueError(f"truth: {truth!r} is not 'union' or 'best', or draws: {draws!r} is less than 1")
    breasts, rows = _breasts(inside, cases), []
    for method, per_image in found.items():
        rng = numpy_generator(seed, "random boxes", method)
        for image, (boxes, case, breast) in enumerate(zip(per_image, cases, breasts, strict=True)):
            separate, true = as_boxes(boxes, method, breast.shape), _true_boxes(case, breast.shape)
            compared, annotated = merge(separate) if merged else separate, merge(true) if truth == "union" else true
            facts = {"image": image, "source": case.source, "patient_id": case.patient_id, "method": method}
            share = box_mask(true, breast.shape)[breast].mean() if len(true) else np.nan
            facts |= {"components": len(separate), "true_share": share}
            rows.append(facts | _measured(compared, annotated, breast, draws, rng))
    return pd.DataFrame(rows)


def _measured(boxes: Boxes, true: Boxes, breast: Mask, draws: int, rng: np.random.Generator) -> dict[str, float]:
    """The figures of one image in `score_boxes`."""
    area, true_area = (box_mask(b, breast.shape).sum() for b in (boxes, true))
    chance = np.zeros(draws)  # the best of all boxes, each at a random place
    for box in boxes:
        drawn = random_boxes((box[2] - box[0], box[3] - box[1]), breast, draws, rng)
        chance = np.maximum(chance, iou_matrix(drawn, true).max(1, initial=0))
    return {
        "iou": best_iou(boxes, true),
        "iou_chance": float(chance.mean()) if len(true) else np.nan,
        "area": area / breast.size,
        "area_ratio": area / true_area if len(true) and len(boxes) else np.nan,
    }


def _size(cases: Sequence[Case]) -> tuple[int, int]:
    """Size (H, W) of the images."""
    if not len(cases):
        raise ValueError("cases: is empty, expected at least one case")
    return cases[0].image.shape[-2], cases[0].image.shape[-1]


def _true_boxes(case: Case, shape: tuple[int, ...]) -> Boxes:
    """The annotated boxes of a case, whose image has this size (H, W)."""
    size = tuple(case.image.shape[-2:])
    if size != shape:
        raise ValueError(f"cases: {case.source} has {size} pixels, expected {shape} as the other cases and the maps")
    return as_boxes(case.boxes, f"cases: {case.source}", shape)


def _breasts(inside: ArrayLike | Tensor | None, cases: Sequence[Case]) -> list[Mask]:
    """A mask (H, W) for each case."""
    shape = (len(cases), *_size(cases))
    given = np.ones(shape, bool) if inside is None else _array(inside)
    if given.shape != shape:
        raise ValueError(f"inside: shape {given.shape} does not fit, expected {shape}")
    return [_as_mask(mask, f"inside[{i}]") for i, mask in enumerate(given)]
