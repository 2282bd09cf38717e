"""Claim 2.6: a lesion put into a mammogram without one, and what network and maps make of it.

Usage::

    pairs = twin_pairs(twins, indices, contrasts=(0.1, 0.2, 0.4), seed=0)      # healthy twins of synthetic images
    pairs = real_pairs(prepared(films, (512, 256)), 20, (0.2, 0.4), seed=0)    # real mammograms without a lesion
    frame = follow(pair, variants, networks, setup)                            # a row per variant and contrast

Theory. The image before and the image after differ in the lesion alone, so the change of score and map is the lesion's
work. `energy` is the share of the map's positive part in the lesion's box. `rank` says how many of 100 random places of
the box's size, with their centre in the breast, hold as much: 0 is the first place, 0.5 what a map without an idea
would have. Before insertion (contrast 0) both are read at the place where the lesion will be.

Reference: Sam-Millan et al. 2023, section 4.3 (one image by a diffusion model, Fig. 7).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from xai_lib import box_scores
from xai_lib.attribution.measures import peak
from xai_lib.boxes import SEGMENT_METHODS
from xai_lib.config import numpy_generator
from xai_lib.data import Case, CaseDataset
from xai_lib.data.case import boxes_from_mask
from xai_lib.data.synthetic.mammogram import anatomy
from xai_lib.data.synthetic.mammogram_lesions import draw_lesion, insert_lesion, places
from xai_lib.data.synthetic.mammogram_tissue import FRAME_MM
from xai_lib.studies.mammograms.maps import scores, smoothing
from xai_lib.studies.mammograms.variants import Scene, Variant, as_seen, explain

PLACES = 100  # random places that the lesion's is compared with
RADIUS_MM = (5.0, 9.0)


@dataclass(frozen=True, eq=False)
class Pair:
    """One mammogram without a lesion (`before`) and with the same lesion at several contrasts (`after`)."""

    before: Scene
    after: Mapping[float, Scene]


def make_pair(case: Case, breast: NDArray[np.bool_], contrasts: Sequence[float], seed: int) -> Pair:
    """Put one malignant mass into a normal image, at a random place that suits it.

    Args:
        case: with `pixel_mm`.
        breast: (H, W).
        contrasts: signal in the middle of the mass, see `insert_lesion`.
        seed: of shape, size and place; together with the case's source.

    Raises:
        ValueError: the pixel size is unknown, or no place in the breast is wide enough.
    """
    if not case.pixel_mm:
        raise ValueError(f"case: {case.source} needs its pixel size to draw a lesion in millimetres")
    rng = numpy_generator(seed, "insertion", case.source)
    radius = rng.uniform(*RADIUS_MM)
    image = case.image[0].numpy()
    lesion = draw_lesion(rng, "malignant", radius, case.pixel_mm)
    row, col = places(image, breast, radius / case.pixel_mm, 1, rng, grey=(0.2, 0.8))[0]
    after = {}
    for contrast in contrasts:
        made = insert_lesion(image, breast, lesion, (int(row), int(col)), contrast)
        after[float(contrast)] = Scene(_case(case, made.image, made.mask), as_seen(case.image), breast)
    first = next(iter(after.values())).case
    before = replace(first, image=as_seen(case.image), label=0)
    return Pair(Scene(before, None, breast), after)


def _case(case: Case, image: NDArray[np.float32], mask: NDArray[np.bool_]) -> Case:
    """The case with another image and a malignant lesion."""
    seen = as_seen(torch.from_numpy(image)[None])
    return replace(case, image=seen, label=1, mask=torch.from_numpy(mask), boxes=boxes_from_mask(mask))


def twin_pairs(twins: CaseDataset, indices: Iterable[int], contrasts: Sequence[float], seed: int = 0) -> Iterator[Pair]:
    """Pairs made of lesion-free synthetic images; one in which no place fits is left out."""
    for index in indices:
        try:
            yield make_pair(twins[int(index)], anatomy(twins, int(index)).breast, contrasts, seed)
        except ValueError as error:
            if "places asked for" not in str(error):
                raise


def real_pairs(normals: CaseDataset, count: int, contrasts: Sequence[float], seed: int = 0) -> Iterator[Pair]:
    """Pairs made of `count` real mammograms of different patients; images in which no place fits are passed over.

    Args:
        normals: without a lesion, from `data.real_mammograms.prepared`: black outside the breast, chest wall at
            column 0. Their pixel size is taken as if the image were 200 mm high, and the mass is drawn round.
        count: at most so many.
        contrasts: see `make_pair`.
        seed: of the choice and of the lesions.
    """
    first = normals.table.reset_index(drop=True).reset_index().drop_duplicates("patient_id")["index"].to_numpy()
    made = 0
    for index in numpy_generator(seed, "normals").permutation(first):
        if made == count:
            return
        case = normals[int(index)]
        case = replace(case, pixel_mm=FRAME_MM / case.image.shape[1])
        try:
            yield make_pair(case, case.image[0].numpy() > 0, contrasts, seed)
        except ValueError as error:
            if "places asked for" not in str(error):
                raise
        else:
            made += 1


# ---------------------------------------------------------------------------------------- what network and maps say


def follow(
    pair: Pair,
    variants: Mapping[str, Variant],
    networks: Mapping[str, nn.Module],
    setup: Any,
    precision: str = "float32",
    seed: int = 0,
) -> pd.DataFrame:
    """Score and maps before and after: one row per variant and contrast; contrast 0 is before.

    Returns:
        source, patient_id, contrast, score (log odds of malignant), variant, energy (0 where a map has no positive
        part), rank, hit (peak in the box).
    """
    rows = []
    for contrast, scene in ({0.0: pair.before} | dict(pair.after)).items():
        score = float(scores(networks["trained"], scene.case.image[None])[0])
        box = scene.case.boxes.numpy()
        truth = np.array([*box[:, :2].min(0), *box[:, 2:].max(0)])
        rng = numpy_generator(seed, "places", scene.case.source)  # the same places before and after
        for name, variant in variants.items():
            positive = np.maximum(explain(variant, scene, networks, setup, precision).map, 0)
            facts = {"source": scene.case.source, "patient_id": scene.case.patient_id, "contrast": contrast}
            blur = 0.0 if variant.method.startswith(SEGMENT_METHODS) else smoothing(len(positive))
            rows.append(facts | {"score": score, "variant": name} | in_box(positive, truth, scene.breast, rng, blur))
            rng = numpy_generator(seed, "places", scene.case.source)
    return pd.DataFrame(rows)


def in_box(
    positive: NDArray[Any], box: NDArray[Any], breast: NDArray[np.bool_], rng: np.random.Generator, blur: float = 0.0
) -> dict[str, float]:
    """Energy, rank and hit of one box (row0, col0, row1, col1) in a map (H, W) without negative values.

    Ties count one half, so a map that is 0 everywhere has rank 0.5 at every place.
    """
    size = (int(box[2] - box[0]), int(box[3] - box[1]))
    drawn = box_scores.random_boxes(size, breast, PLACES, rng)
    sums = np.pad(np.cumsum(np.cumsum(positive, 0, dtype=float), 1), ((1, 0), (1, 0)))  # summed-area table

    def held(boxes: NDArray[Any]) -> NDArray[Any]:
        r0, c0, r1, c1 = boxes.T
        return sums[r1, c1] - sums[r0, c1] - sums[r1, c0] + sums[r0, c0]

    own, others, total = float(held(box[None])[0]), held(drawn), sums[-1, -1]
    tie = 1e-9 * total
    point = peak(positive[None], blur)[0] + 0.5
    hit = np.nan if np.isnan(point).any() else float((box[:2] <= point).all() and (point < box[2:]).all())
    return {
        "energy": own / total if total > 0 else 0.0,
        "rank": float(((others > own + tie) + 0.5 * (np.abs(others - own) <= tie)).mean()),
        "hit": hit,
    }
