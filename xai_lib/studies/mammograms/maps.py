"""Study 2, one image: the boxes made of its maps, and how well they agree with the annotation.

Usage::

    frame, maps = measure(scene, MAIN, networks, Setup(window=30, stride=15))   # a row per variant, rule and setting

Rules: ``union`` is the thesis's single big box (3.2.5), ``separate`` its boxes before merging (the best one counts),
``component`` the region with the largest sum of scores, ``peak`` the region around the largest value. Boxes are made of
the map's positive part. `setting` is a quantile or, for ``peak``, a share of the largest value.

Reference: Sam-Millan et al. 2023, sections 3.2.5 and 5.1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from xai_lib import box_scores, boxes, training
from xai_lib.attribution.measures import peak, rank_correlation
from xai_lib.boxes import SEGMENT_METHODS, Boxes
from xai_lib.studies.mammograms.thesis_methods import Setup
from xai_lib.studies.mammograms.variants import Explained, Scene, Variant, explain

QUANTILES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998)
FEW_QUANTILES = (0.98, 0.99, 0.995)  # of the rule without merging
LEVELS = (0.2, 0.3, 0.5)  # of the rule `peak`
DEFAULT = 0.99  # the quantile of 3.2.5 is not given
PLAIN_BOXES = ("random box", "centre box", "breast box")


def find_boxes(scores: NDArray[Any], method: str) -> dict[tuple[str, float], Boxes]:
    """Boxes of one map by every rule and setting; "union" and "separate" hold the same boxes, not yet merged.

    The map is dilated once (not those of segments), with the thesis's sizes for this height (3.2.4, 3.2.5).
    """
    height, values = len(scores), boxes.part_of(scores, "positive")
    segments = method.startswith(SEGMENT_METHODS)
    dilated = values if segments else boxes.dilate(values, boxes.scaled(9, height))
    how: dict[str, Any] = {"dilation": 1, "opening": boxes.scaled(5, height)}
    found: dict[tuple[str, float], Boxes] = {}
    for q in QUANTILES:
        found["union", q] = boxes.boxes_from_map(dilated, q, merged=False, **how)
        found["component", q] = boxes.component_box(dilated, "score", q, **how)
    found |= {("separate", q): found["union", q] for q in FEW_QUANTILES}
    blur = 0.0 if segments else smoothing(height)
    return found | {("peak", level): boxes.peak_box(values, level, blur) for level in LEVELS}


def smoothing(height: int) -> float:
    """Deviation in pixels of the blur before a peak is looked for: 3 at 512 rows."""
    return 3 * height / 512


def measure(
    scene: Scene,
    variants: Mapping[str, Variant],
    networks: Mapping[str, nn.Module],
    setup: Setup,
    precision: str = "float32",
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, NDArray[np.float32]]]:
    """Explain one image with a lesion by every variant; find and measure all boxes.

    Args:
        scene: the image.
        variants: by name.
        networks, setup, precision: see `explain`.
        seed: of the random boxes.

    Returns:
        The maps by name, and a table with one row per variant, rule and setting: iou, chance (mean IOU of random boxes
        of the same size), ratio (area over the annotated area, NaN without a box), components (before merging), and,
        the same in all rows of a variant: energy (share of the positive part inside the annotation), hit (both 0
        without a positive part), off_row and off_col (peak of the smoothed map minus the annotation's centre), like
        (rank correlation with the variant's reference), forward, backward, seconds; score is the log odds of malignant.
        `PLAIN_BOXES` are rows of rule "box".

    Raises:
        ValueError: an image without an annotated box; see `explain`.
    """
    if not len(scene.case.boxes):
        raise ValueError(f"scene: {scene.case.source} has no annotated box to measure by")
    explained = {name: explain(variant, scene, networks, setup, precision) for name, variant in variants.items()}
    maps = {name: e.map for name, e in explained.items()}
    parts = []
    for name, variant in variants.items():
        facts = _facts(scene, explained[name], variant) | {"like": _like(variant, name, maps)}
        parts.append(_scored(scene, find_boxes(maps[name], variant.method), seed).assign(variant=name, **facts))
    parts.append(_plain(scene, seed))
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(score=float(scores(networks["trained"], scene.case.image[None])[0])), maps


def scores(model: nn.Module, images: Tensor) -> NDArray[Any]:
    """Log odds of malignant (N,) of images (N, 1, H, W)."""
    with torch.inference_mode():
        return training.scores(model(images.to(next(model.parameters()).device)).float().cpu().numpy())


def _facts(scene: Scene, e: Explained, variant: Variant) -> dict[str, float]:
    """What is known of a map without a box rule."""
    positive = np.maximum(e.map, 0)
    truth = boxes.merge(scene.case.boxes)[0]
    blur = 0.0 if variant.method.startswith(SEGMENT_METHODS) else smoothing(len(positive))
    row, col = peak(positive[None], blur)[0] + 0.5 - (truth[:2] + truth[2:]) / 2
    return {
        "energy": box_scores.energy_inside(positive, scene.case.boxes) if positive.any() else 0.0,
        "hit": box_scores.pointing_hit(positive, scene.case.boxes) if positive.any() else 0.0,
        "off_row": row,
        "off_col": col,
        "forward": e.forward,
        "backward": e.backward,
        "seconds": e.seconds,
    }


def _like(variant: Variant, name: str, maps: Mapping[str, NDArray[np.float32]]) -> float:
    """Rank correlation with the map of the variant's reference; NaN without one."""
    if variant.reference not in maps:
        return np.nan
    return float(rank_correlation(maps[name][None], maps[variant.reference][None])[0])


def _scored(scene: Scene, found: Mapping[tuple[str, float], Boxes], seed: int) -> pd.DataFrame:
    """Rows of one map: every rule and setting."""
    parts = []
    for merged in (True, False):
        some = {key: [value] for key, value in found.items() if (key[0] == "separate") != merged}
        names = {"/".join(map(str, key)): value for key, value in some.items()}
        if not some:
            continue
        frame = box_scores.score_boxes(names, [scene.case], merged=merged, inside=scene.breast[None], seed=seed)
        frame[["rule", "setting"]] = list(some)
        parts.append(frame)
    scored = pd.concat(parts, ignore_index=True).rename(columns={"iou_chance": "chance", "area_ratio": "ratio"})
    return scored[["rule", "setting", "iou", "chance", "ratio", "components"]]


def _plain(scene: Scene, seed: int) -> pd.DataFrame:
    """Rows of the boxes that know no map: random and centred boxes of the annotated size, and the whole breast."""
    truth = boxes.merge(scene.case.boxes)
    size = (int(truth[0, 2] - truth[0, 0]), int(truth[0, 3] - truth[0, 1]))
    found = {("box", 0.0): truth}
    drawn = _scored(scene, found, seed)["chance"]
    rows = [pd.DataFrame({"rule": "box", "setting": 0.0, "iou": drawn, "chance": drawn, "ratio": 1.0, "components": 1})]
    for box in (box_scores.centre_box(size, scene.breast), box_scores.breast_box(scene.breast)):
        rows.append(_scored(scene, {("box", 0.0): box}, seed))
    share = {"energy": np.nan, "hit": float(box_scores.box_mask(truth, scene.breast.shape)[scene.breast].mean())}
    return pd.concat([row.assign(variant=name, **share) for name, row in zip(PLAIN_BOXES, rows, strict=True)])
