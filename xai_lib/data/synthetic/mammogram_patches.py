"""Patches for study 1: squares cut from mammograms around a lesion, or around where one could be.

Usage::

    cut = patches(cases)                          # one patch of each image, the lesion in its middle
    same = patches(twins)                         # the same patches without the lesion
    shifted = patches(cases, shift_px=50)         # the lesion 50 patch pixels off the middle

Theory. If the lesion is in the middle of every patch, a network that looks at the middle seems to find lesions: a
centre bias costs nothing. Shifted patches tell the two apart. All patches have the same side in mm: a side that follows
the lesion's size would give the class away.

Reference: Sam-Millan, Deep Learning Explainability for Breast Cancer Detection in Mammography (2023), sec. 3.2.2:
one patch centred on the lesion and one normal patch, resized to 224 x 224. The side of the patch in mm is not given.
"""

from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn import functional

from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, CaseDataset, boxes_from_mask


def patches(
    cases: CaseDataset, size: int = 224, side_mm: float = 43.75, shift_px: float = 0.0, seed: int = 0
) -> CaseDataset:
    """A lazy data set with one square patch of each image; what lies outside the image is black.

    Case i of the patches is cut from case i of `cases`, with its label. Synthetic images 1024 pixels high give the
    default patch pixel by pixel; it is resized (bilinear) from others.

    Args:
        cases: images whose table has the columns centre_row and centre_col (pixels), and whose pixel size is known.
        size: rows and columns of a patch.
        side_mm: side of the square that is cut out.
        shift_px: distance, in pixels of the patch, of the lesion from the middle; the direction is random. A twin's
            patch is shifted as that of its image.
        seed: of the directions.

    Raises:
        ValueError: an argument is out of range or a column is missing; when a case is read, its pixel size is unknown.
    """
    lacking = [column for column in ("centre_row", "centre_col") if column not in cases.table]
    if lacking:
        raise ValueError(f"cases: the table of {cases.name!r} lacks the columns {', '.join(lacking)}")
    if size < 8 or not 0 < side_mm < np.inf:
        raise ValueError(
            f"size, side_mm: {size} pixels and {side_mm} mm, expected at least 8 pixels and more than 0 mm"
        )
    if not 0 <= shift_px < size / 2:
        raise ValueError(f"shift_px: {shift_px}, expected from 0 to half of the {size} pixels of a patch")
    table = cases.table.assign(image=np.arange(len(cases)), source=cases.table["source"] + "-patch")
    parameters = {"size": size, "side_mm": side_mm, "shift_px": shift_px, "seed": seed, "images": cases.fingerprint}
    read = partial(_read, cases=cases, size=size, side_mm=side_mm, shift_px=shift_px, seed=seed)
    return CaseDataset(f"{cases.name}_patches", table, read, parameters=parameters)


def _read(row: pd.Series, cases: CaseDataset, size: int, side_mm: float, shift_px: float, seed: int) -> Case:
    """Cut the patch of one row of the table."""
    case = cases[int(row["image"])]
    if case.mask is None or not case.pixel_mm:
        raise ValueError(f"{case.source}: a patch needs a mask and the pixel size, one of them is unknown")
    side = max(round(side_mm / case.pixel_mm), 1)
    angle = numpy_generator(seed, "shift", case.source.removesuffix("-twin")).uniform(0, 2 * np.pi)
    away = shift_px * side / size
    top = round(row["centre_row"] - side / 2 + away * np.sin(angle))
    left = round(row["centre_col"] - side / 2 + away * np.cos(angle))
    mask = _resized(_cut(case.mask[None].float(), top, left, side), size)[0] > 0.5
    return Case(
        image=_resized(_cut(case.image, top, left, side), size),
        label=case.label,
        mask=mask,
        boxes=boxes_from_mask(mask),
        pixel_mm=case.pixel_mm * side / size,
        patient_id=case.patient_id,
        view=case.view,
        source=row["source"],
    )


def _cut(image: Tensor, top: int, left: int, side: int) -> Tensor:
    """Square (C, side, side) of an image (C, H, W); it may reach over the edges, where it is 0."""
    height, width = image.shape[1:]
    edges = (-left, left + side - width, -top, top + side - height)  # negative: cropped
    return functional.pad(image, edges)


def _resized(image: Tensor, size: int) -> Tensor:
    """Image (C, size, size), or the image itself if it has that size."""
    if image.shape[-1] == size:
        return image
    return functional.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)
