"""How well boxes agree with the annotated ones, beside boxes that know no network.

Usage::

    best_iou(box, case.boxes)
    frame = score({"saliency": maps, "brightness": images}, cases, inside=breasts)    # a row per image and method
    tpr_curve(frame.iou[frame.method == "saliency"])       # share of images with IOU >= 0, 0.05, ..., 1
    score_boxes({"breast": [breast_box(breast) for breast in breasts]}, cases, inside=breasts)

Boxes are int64 (k, 4), half-open ``row0, col0, row1, col1``; no box is defined and has an IOU of 0. What is not defined
is NaN. `boxes` makes them from maps.

References: Sam-Millan et al. 2023, sections 3.2.5 to 4.2, Figs. 5 and 6; Zhang et al. 2018 (pointing game).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import Tensor

from xai_lib.attribution.measures import as_maps, mass_inside, peak
from xai_lib.boxes import (
    Array,
    Boxes,
    Finder,
    Mask,
    as_array,
    as_boxes,
    as_mask,
    as_scores,
    merge,
    paper_rule,
    part_of,
    region_boxes,
)
from xai_lib.config import numpy_generator
from xai_lib.data.case import Case

THRESHOLDS = tuple(t / 20 for t in range(21))  # of the IOU, Fig. 6


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
    values = as_scores(scores)
    inside = box_mask(boxes, values.shape)
    return float(mass_inside(values[None], inside, part)[0]) if inside.any() else np.nan


def pointing_hit(scores: ArrayLike | Tensor, boxes: ArrayLike | Tensor) -> float:
    """1 where the map's `measures.peak` lies in any of the boxes, else 0; NaN without a box or for a constant map."""
    values = as_scores(scores)
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
    breast = as_mask(inside, "inside")
    h, w = _fitting(size, breast.shape)
    corners = np.array(breast.shape) - (h, w) + 1  # how many places, down and across
    centred = breast[h // 2 :, w // 2 :][: corners[0], : corners[1]]  # by the box's first corner
    places = np.flatnonzero(centred if centred.any() else ~centred)
    rows, cols = np.unravel_index(rng.choice(places, n), centred.shape)
    return np.stack([rows, cols, rows + h, cols + w], axis=1)


def centre_box(size: tuple[int, int], inside: ArrayLike | Tensor) -> Boxes:
    """One box of a size (h, w) at the centroid of the breast `inside` (H, W), moved into the image: (1, 4)."""
    breast = as_mask(inside, "inside")
    h, w = _fitting(size, breast.shape)
    corner = np.array(ndimage.center_of_mass(breast)) + 0.5 - np.array([h, w]) / 2
    row, col = np.clip(np.round(corner), 0, np.array(breast.shape) - (h, w)).astype(int)
    return np.array([[row, col, row + h, col + w]])


def breast_box(inside: ArrayLike | Tensor) -> Boxes:
    """Bounding box of the whole breast `inside` (H, W): (1, 4)."""
    return merge(region_boxes(as_mask(inside, "inside")))


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
        values = [part_of(scores, part) for scores in as_maps(given, method)]  # N of (H, W)
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
    given = np.ones(shape, bool) if inside is None else as_array(inside)
    if given.shape != shape:
        raise ValueError(f"inside: shape {given.shape} does not fit, expected {shape}")
    return [as_mask(mask, f"inside[{i}]") for i, mask in enumerate(given)]
