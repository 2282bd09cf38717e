"""Real mammograms in the form that studies 1 and 2 take: cropped whole images, and centres for patches.

Usage::

    films = data.load("mini_mias")
    whole = prepared(films, size=(512, 256))              # study 2: cropped to the breast, chest wall on the left
    cut = patches(with_centres(films, seed=0))            # study 1: lesions, and places in normal breasts

Theory. If normal patches lay elsewhere in the breast than lesions do, the place would give the class away. So a normal
patch takes the place of some lesion, relative to the box around the breast. As in the thesis, an image with a lesion
gives a normal patch too.

Reference: Sam-Millan et al. 2023, sections 3.1 and 3.2.1.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, CaseDataset, DataError, Skipped
from xai_lib.data.images import resample
from xai_lib.data.prepare import Prepared, move_boxes, prepare_image

WALL = 0.02  # of the crop's width at the chest wall that is cut off: a film's border can lie there


def prepared(cases: CaseDataset, size: tuple[int, int], aspect: bool = False) -> CaseDataset:
    """A lazy data set of the same cases, cropped, flipped and resized.

    Outside the breast the image is black: film labels would tell images apart. Masks and boxes move along.

    Args:
        cases: mammograms on a dark background.
        size: rows and columns.
        aspect: keep the aspect ratio, with black below or on the right, and so the pixel size; without it the breast
            is stretched to the size, and the pixel size is unknown afterwards.

    Raises:
        DataError: when a case is read, no breast is found in it, or a box lies outside the breast's box.
    """
    table = cases.table.assign(index=np.arange(len(cases)))
    read = partial(_read_whole, cases=cases, size=size, aspect=aspect)
    parameters = {"size": size, "images": cases.fingerprint} | ({"aspect": True} if aspect else {})
    return CaseDataset(f"{cases.name}_prepared", table, read, cases.skipped, parameters)


def _read_whole(row: pd.Series, cases: CaseDataset, size: tuple[int, int], aspect: bool) -> Case:
    """The prepared case of one row of the table."""
    case = cases[int(row["index"])]
    found = prepare_image(case.image[0].numpy())
    wall = round(WALL * found.image.shape[1])
    boxes = move_boxes(case.boxes, found) - torch.tensor([0, wall, 0, wall])
    height, width = found.image.shape[0], found.image.shape[1] - wall
    full, shrink = size, min(size[0] / height, size[1] / width)
    if aspect:
        size = min(round(height * shrink), size[0]), min(round(width * shrink), size[1])
    scale = torch.tensor([size[0] / height, size[1] / width] * 2)
    low, high = (boxes * scale).floor()[:, :2], (boxes * scale).ceil()[:, 2:]
    moved = torch.cat([low, high], 1).clamp(min=0).minimum(torch.tensor([*size, *size])).long()
    mask = None if case.mask is None else _moved(case.mask, found, wall, size)
    image = torch.from_numpy(resample(np.ascontiguousarray((found.image * found.mask)[:, wall:]), size)).clamp(0, 1)
    below = (0, full[1] - size[1], 0, full[0] - size[0])
    image, mask = functional.pad(image, below), None if mask is None else functional.pad(mask, below)
    pixel_mm = case.pixel_mm / shrink if aspect and case.pixel_mm else None
    return replace(case, image=image[None], mask=mask, boxes=moved, pixel_mm=pixel_mm)


def _moved(mask: Tensor, found: Prepared, wall: int, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) in the frame of the prepared and resized image."""
    row0, col0, row1, col1 = found.box
    part = mask.numpy()[row0:row1, col0:col1]
    part = part[:, ::-1] if found.flipped else part
    return torch.from_numpy(resample(np.ascontiguousarray(part[:, wall:], np.float32), size) > 0.5)


def with_centres(
    cases: CaseDataset,
    seed: int,
    classes: tuple[str, ...] = ("malignant", "normal"),
    side_mm: float = 43.75,
    progress: bool = True,
) -> CaseDataset:
    """A case for every located lesion and, of every image, one for a normal place; columns centre_row and centre_col.

    `patches` cuts a square around the centre. The mask shows that lesion alone; for a normal place it is empty. The
    column kind says what is in the middle: malignant, benign or normal. An image has no normal place if one of its
    lesions is not located, or if none is free.

    Args:
        cases: images whose table has the columns boxes, lesions and pixel_mm.
        seed: of the normal places.
        classes: which of malignant, benign and normal are wanted.
        side_mm: side of the squares: the one around a normal place holds no lesion.
        progress: show a bar: every image is read, to find the breast.

    Raises:
        DataError: no lesion is located.
    """
    rows, places, skipped = [], [], list(cases.skipped)
    frames: dict[int, Prepared] = {}
    for index in tqdm(range(len(cases)), desc="breasts", disable=not progress, leave=False):
        row = cases.table.iloc[index]
        try:
            frames[index] = prepare_image(cases[index].image[0].numpy())
        except DataError as error:
            skipped.append(Skipped(row["source"], str(error)))
            continue
        for number, (box, kind) in enumerate(zip(row["boxes"], row["lesions"], strict=True)):
            centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            places.append(_relative(centre, frames[index]))
            facts = {"kind": kind, "label": int(kind == "malignant"), "lesion": number}
            rows.append(_row(row, index, centre, f"{row['source']}-{number}") | facts)
    if not places:
        raise DataError(f"{cases.name}: no lesion is located, expected boxes in the table")
    for index, frame in frames.items():
        row = cases.table.iloc[index]
        free = _like_a_lesion(places, frame, row["boxes"], side_mm / row["pixel_mm"], seed, row["source"])
        if free is not None and row.get("located", True):
            rows.append(_row(row, index, free, f"{row['source']}-normal") | {"kind": "normal", "label": 0})
    table = pd.DataFrame([facts for facts in rows if facts["kind"] in classes])
    read = partial(_read_centred, cases=cases)
    parameters = {"seed": seed, "classes": list(classes), "side_mm": side_mm}
    return CaseDataset(f"{cases.name}_centred", table, read, skipped, parameters)


def _row(row: pd.Series, index: int, centre: tuple[float, float], source: str) -> dict[str, object]:
    """The row of one place in an image."""
    place = {"index": index, "centre_row": round(centre[0]), "centre_col": round(centre[1])}
    return {str(name): value for name, value in row.items()} | place | {"source": source}


def _relative(point: tuple[float, float], frame: Prepared) -> tuple[float, float]:
    """A point as shares of the breast's box, the chest wall at column 0."""
    row0, col0, row1, col1 = frame.box
    across = (point[1] - col0) / (col1 - col0)
    return (point[0] - row0) / (row1 - row0), 1 - across if frame.flipped else across


def _like_a_lesion(
    places: list[tuple[float, float]], frame: Prepared, boxes: tuple, side: float, seed: int, source: str
) -> tuple[float, float] | None:
    """Place in the image where some lesion would lie, inside this breast and clear of its own; None: there is none."""
    row0, col0, _, col1 = frame.box
    height, width = frame.mask.shape
    for down, across in numpy_generator(seed, "places", source).permutation(places):
        row, col = (int(np.clip(share * length, 0, length - 1)) for share, length in ((down, height), (across, width)))
        place = row0 + row, (col1 - 1 - col) if frame.flipped else col0 + col
        half = side / 2
        clear = all(
            place[0] + half < top or place[0] - half > bottom or place[1] + half < left or place[1] - half > right
            for top, left, bottom, right in boxes
        )
        if frame.mask[row, col] and clear:
            return place
    return None


def _read_centred(row: pd.Series, cases: CaseDataset) -> Case:
    """The case of one row of the table, with the mask of its own lesion."""
    case = cases[int(row["index"])]
    mask = torch.zeros(case.image.shape[1:], dtype=torch.bool)
    boxes = torch.zeros((0, 4), dtype=torch.int64)
    if row["kind"] != "normal":
        boxes = case.boxes[int(row["lesion"])][None]
        row0, col0, row1, col1 = boxes[0].tolist()
        part = torch.ones_like(mask) if case.mask is None else case.mask
        mask[row0:row1, col0:col1] = part[row0:row1, col0:col1]
    return replace(case, label=int(row["label"]), mask=mask, boxes=boxes, source=row["source"])
