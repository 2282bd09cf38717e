"""Regions of interest around lesions, cut in the five ways of Table 1.

Usage::

    cases = rois(data.load("busi"), "mass_centred")            # one 224 x 224 ROI with its mask for each image
    tight = rois(data.load("cbis_ddsm", kinds=["mass"]), "original")
    train, test = rois(part, "shifted"), rois(rest, "shifted", copies=1)    # shifted copies are for training only
    image, mask = cut(case.image, case.mask, case.boxes[0], "mass_centred", padding="reflect")

Theory. A network reads a square of fixed size, so a recipe decides three things: how much tissue around the mass it
sees, whether the shape survives the resizing, and how many different ROIs a lesion gives. The five of Table 1, as its
references and section 3.3 describe them:

- ``original``: the bounding box. Resized to a square, an oval mass looks round.
- ``double_square``: the square of twice the longer side of the box, so that the shape survives.
- ``double_flips``: twice the box, of its aspect; and the same flipped across, down, and both ways.
- ``shifted``: the bounding box, and copies of it moved at random that cover at least 90 % of it.
- ``mass_centred``: the paper's own, max(224, height) x max(224, width) pixels around the middle of the box; trained
  with random flips and rotation (``augment``).

Windows may reach over the edges of the image or be larger than it; `padding` says what is there. The mass stays in the
middle. Images are resized bicubically with an anti-aliasing filter, masks by nearest neighbour.

Reference: Li et al., An interpretable CNN-based model for mass classification in mammography, Knowledge-Based Systems
316 (2025) 113372, sections 3.2 and 3.3, Table 1, Fig. 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, CaseDataset, DataError, boxes_from_mask
from xai_lib.data.mammograms import CLASSES, Box

PADDINGS = ("edge", "zeros", "reflect")


@dataclass(frozen=True)
class Recipe:
    """How ROIs are cut.

    Attributes:
        window: "tight", "double_square", "double" or "context", see `window`.
        copies: how many ROIs a lesion gives; the first is the plain one.
        vary: what the others are: "flips" or "shifts"; None where there is only one.
        augment: name in `augmentations.AUGMENTATIONS` of the random changes in training.
    """

    window: str
    copies: int = 1
    vary: str | None = None
    augment: str = "none"


RECIPES = {
    "original": Recipe("tight"),
    "double_square": Recipe("double_square"),
    "double_flips": Recipe("double", copies=4, vary="flips"),
    "shifted": Recipe("tight", copies=10, vary="shifts"),
    "mass_centred": Recipe("context", augment="roi"),
}
FLIPS: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))  # axes, by number of the copy


def rois(
    cases: CaseDataset,
    recipe: str = "mass_centred",
    size: int = 224,
    context: int = 224,
    padding: str = "edge",
    copies: int | None = None,
    overlap: float = 0.9,
    seed: int = 0,
) -> CaseDataset:
    """A lazy data set of ROIs, each with the mask of its own lesion.

    Where the table of `cases` has the column `lesions`, every lesion gives a ROI, with its own label if that column
    says benign or malignant; images without lesion give none. Otherwise each image gives one, of its largest lesion.
    The new columns are image (number of the case), lesion (number in the image, -1 the largest) and copy. The pixel
    size is known where the ROI keeps the aspect.

    Args:
        cases: images with masks.
        recipe: one of `RECIPES`.
        size: rows and columns of a ROI.
        context: smallest height and width, in pixels of the image, that ``mass_centred`` cuts out.
        padding: what lies outside the image: "edge" repeats its border, "zeros" is black, "reflect" mirrors it.
        copies: ROIs of each lesion; None: as many as the recipe has. Test on ``copies=1``.
        overlap: share of the box that a shifted copy covers at least.
        seed: of the shifts.

    Raises:
        ValueError: an argument is out of range.
        DataError: there is no lesion. When a case is read: its mask is missing, of another size than the image, not
            binary, empty or full, or the mask vanishes at this size.
    """
    made = _recipe(recipe, padding, size, context, overlap)
    number = made.copies if copies is None else copies
    most = {"flips": len(FLIPS), "shifts": np.inf, None: 1}[made.vary]
    if not 1 <= number <= most:
        raise ValueError(f"copies: {number}, expected from 1 to {most} for {recipe!r}")
    rows = [row for index in range(len(cases)) for row in _rows(cases.table.iloc[index], index, number)]
    if not rows:
        raise DataError(f"{cases.name}: no case has a lesion; expected cases with masks")
    options: dict[str, Any] = {
        "recipe": recipe,
        "size": size,
        "context": context,
        "padding": padding,
        "overlap": overlap,
        "seed": seed,
    }
    parameters = {**options, "copies": number, "of": cases.parameters}
    read = partial(_read, cases=cases, **options)
    return CaseDataset(f"{cases.name}_rois", pd.DataFrame(rows), read, cases.skipped, parameters)


def cut(
    image: Tensor,
    mask: Tensor,
    box: Sequence[int] | Tensor,
    recipe: str = "mass_centred",
    size: int = 224,
    context: int = 224,
    padding: str = "edge",
    copy: int = 0,
    overlap: float = 0.9,
    rng: np.random.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """One ROI (1, size, size) in [0, 1] and its mask (size, size), bool.

    Args:
        image: (1, H, W), in [0, 1].
        mask: (H, W), bool or of zeros and ones.
        box: of the lesion, half-open row0, col0, row1, col1. What the mask has outside it belongs to other lesions and
            is left out.
        copy: number of the copy, 0 the plain one.
        rng: of a shifted copy; needed where a copy above 0 is a shift.

    The other arguments are those of `rois`.

    Raises:
        ValueError: an argument is out of range; the mask is of another size than the image, not binary, empty or full,
            has no pixel in the box, or vanishes at this size.
    """
    made = _recipe(recipe, padding, size, context, overlap)
    lesion = _lesion(image, mask, box)
    row0, col0, row1, col1 = (int(value) for value in box)
    where = window((row0, col0, row1, col1), made.window, context)
    if copy and made.vary == "shifts":
        if rng is None:
            raise ValueError(f"rng: None, expected a generator for copy {copy} of {recipe!r}")
        where = shifted(where, overlap, rng)
    roi = _resized(_cropped(image, where, padding), size, "bicubic").clamp(0, 1)
    found = _resized(_cropped(lesion[None].float(), where, "zeros"), size, "nearest-exact")[0] > 0.5
    if not found.any():
        raise ValueError(f"size: the mask vanishes when {where[2] - where[0]} x {where[3] - where[1]} become {size}")
    axes = FLIPS[copy] if made.vary == "flips" else ()
    return roi.flip(axes), found.flip(axes)


def window(box: Box, kind: str = "context", context: int = 224) -> Box:
    """The window of a lesion's box, half-open row0, col0, row1, col1; it may reach over the edges of the image.

    Args:
        box: of the lesion.
        kind: "tight", the box; "double_square", the square of twice its longer side; "double", twice its height and
            width; "context", at least `context` high and wide. All have their middle where the box has it, to within
            half a pixel.
        context: in pixels.

    Raises:
        ValueError: the kind is unknown.
    """
    row0, col0, row1, col1 = box
    height, width = row1 - row0, col1 - col0
    longer = max(height, width)
    sizes = {
        "tight": (height, width),
        "double_square": (2 * longer, 2 * longer),
        "double": (2 * height, 2 * width),
        "context": (max(context, height), max(context, width)),
    }
    if kind not in sizes:
        raise ValueError(f"kind: {kind!r} is unknown, expected one of {', '.join(sizes)}")
    high, wide = sizes[kind]
    top, left = row0 - (high - height) // 2, col0 - (wide - width) // 2
    return top, left, top + high, left + wide


def shifted(box: Box, overlap: float, rng: np.random.Generator) -> Box:
    """The box moved by whole pixels: any move that leaves at least `overlap` of its area covered is equally likely."""
    row0, col0, row1, col1 = box
    moves = []
    for length in (row1 - row0, col1 - col0):
        most = int((1 - overlap) * length + 1e-9)
        moves.append(np.arange(-most, most + 1))
    covered = (1 - np.abs(moves[0]) / (row1 - row0))[:, None] * (1 - np.abs(moves[1]) / (col1 - col0))[None, :]
    allowed = np.argwhere(covered >= overlap - 1e-9)
    i, j = allowed[rng.integers(len(allowed))]
    down, right = int(moves[0][i]), int(moves[1][j])
    return row0 + down, col0 + right, row1 + down, col1 + right


def _rows(row: pd.Series, index: int, copies: int) -> Iterator[dict[str, object]]:
    """The table's rows of one image."""
    facts = {str(name): value for name, value in row.items() if name != "boxes"}
    lesions = list(row["lesions"]) if "lesions" in row else [None]
    for number, kind in enumerate(lesions):
        known = {"label": CLASSES[kind], "class": kind} if kind in CLASSES else {}
        name = f"{row['source']}-roi" + ("" if kind is None else str(number))
        for copy in range(copies):
            place = {"image": index, "lesion": -1 if kind is None else number, "copy": copy}
            yield facts | known | place | {"source": name + (f"-copy{copy}" if copy else "")}


def _read(
    row: pd.Series, cases: CaseDataset, recipe: str, size: int, context: int, padding: str, overlap: float, seed: int
) -> Case:
    """The ROI of one row of the table."""
    case = cases[int(row["image"])]
    if case.mask is None:
        raise DataError(f"{case.source}: it has no mask; a ROI needs one")
    rng = numpy_generator(seed, "shift", row["source"])
    try:
        box = _box(case, int(row["lesion"]), len(row["lesions"]) if "lesions" in row else None)
        image, mask = cut(case.image, case.mask, box, recipe, size, context, padding, int(row["copy"]), overlap, rng)
    except ValueError as error:
        raise DataError(f"{case.source}: {error}") from error
    row0, col0, row1, col1 = window(box, RECIPES[recipe].window, context)
    scale = (row1 - row0) / size if row1 - row0 == col1 - col0 else None
    return replace(
        case,
        image=image,
        mask=mask,
        boxes=boxes_from_mask(mask),
        label=case.label if pd.isna(row["label"]) else int(row["label"]),
        pixel_mm=case.pixel_mm * scale if case.pixel_mm and scale else None,
        source=row["source"],
    )


def _box(case: Case, lesion: int, expected: int | None) -> Box:
    """The box of this lesion of the case, or of the one with the largest area of the mask."""
    if case.mask is None or not case.mask.any():
        raise ValueError("mask: it has no pixel: the lesion is empty")
    boxes = case.boxes if len(case.boxes) else boxes_from_mask(case.mask)
    if expected not in (None, len(boxes)):
        raise ValueError(f"boxes: {len(boxes)}, the table says {expected} lesions")
    if lesion < 0:
        areas = [int(case.mask[row0:row1, col0:col1].sum()) for row0, col0, row1, col1 in boxes.tolist()]
        lesion = int(np.argmax(areas))
    row0, col0, row1, col1 = boxes[lesion].tolist()
    return row0, col0, row1, col1


def _lesion(image: Tensor, mask: Tensor, box: Sequence[int] | Tensor) -> Tensor:
    """The mask's part in the box, (H, W) bool, or why there is none."""
    if image.ndim != 3 or mask.shape != image.shape[1:]:
        raise ValueError(f"mask: shape {tuple(mask.shape)}, the image has {tuple(image.shape)}; expected (1, H, W)")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError("mask: not binary, it has other values than 0 and 1")
    mask = mask.bool()
    if not mask.any() or mask.all():
        raise ValueError(f"mask: {'full' if mask.any() else 'empty'}, expected a lesion and something around it")
    row0, col0, row1, col1 = (int(value) for value in box)
    if not (0 <= row0 < row1 <= mask.shape[0] and 0 <= col0 < col1 <= mask.shape[1]):
        raise ValueError(f"box: {(row0, col0, row1, col1)} is no box within {mask.shape[0]} x {mask.shape[1]}")
    lesion = torch.zeros_like(mask)
    lesion[row0:row1, col0:col1] = mask[row0:row1, col0:col1]
    if not lesion.any():
        raise ValueError(f"mask: no pixel in the box {(row0, col0, row1, col1)}")
    return lesion


def _cropped(image: Tensor, where: Box, padding: str) -> Tensor:
    """The window (C, h, w) of an image (C, H, W)."""
    row0, col0, row1, col1 = where
    rows, cols = torch.arange(row0, row1), torch.arange(col0, col1)
    height, width = image.shape[1:]
    out = image[:, _source(rows, height, padding)][:, :, _source(cols, width, padding)]
    if padding == "zeros":
        out = out * ((rows >= 0) & (rows < height))[:, None] * ((cols >= 0) & (cols < width))[None, :]
    return out


def _source(places: Tensor, length: int, padding: str) -> Tensor:
    """The pixels of an axis of this length that places on it, also outside, are taken from."""
    if padding != "reflect" or length == 1:
        return places.clamp(0, length - 1)
    period = 2 * (length - 1)
    places = places % period
    return torch.minimum(places, period - places)


def _resized(image: Tensor, size: int, mode: str) -> Tensor:
    """Image (C, size, size), or the image itself if it has that size."""
    if image.shape[1:] == (size, size):
        return image
    if mode == "bicubic":
        return functional.interpolate(image[None], (size, size), mode=mode, antialias=True)[0]
    return functional.interpolate(image[None], (size, size), mode=mode)[0]


def _recipe(name: str, padding: str, size: int, context: int, overlap: float) -> Recipe:
    """The recipe of this name; refuse arguments out of range."""
    if name not in RECIPES:
        raise ValueError(f"recipe: {name!r} is unknown, expected one of {', '.join(RECIPES)}")
    if padding not in PADDINGS:
        raise ValueError(f"padding: {padding!r} is unknown, expected one of {', '.join(PADDINGS)}")
    if size < 8 or context < 1:
        raise ValueError(f"size, context: {size} and {context} pixels, expected at least 8 and at least 1")
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap: {overlap}, expected above 0 and at most 1")
    return RECIPES[name]
