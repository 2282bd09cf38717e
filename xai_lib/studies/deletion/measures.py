"""How far a result mask lies from the annotation, how large it is, and what masks without a classifier would score.

Usage::

    hole = threshold(saliency, 90)                                            # the top 10 percent of a map
    row = measure(hole, truth, breast, pixel_mm=0.625, rng=rng)               # D, H, A and more, one dict per mask
    O = overlap(ours, hole)
    measure(random_disc(hole.sum(), breast, rng), truth, breast, rng=rng)     # the same area, anywhere in the breast

Theory. D and H relate a result mask to the annotation, A to the breast, O two result masks to each other. D is read
from the centres of connected components alone, so that a ring around the mass scores like a disc on it; H is the
distance of the pixel that lies furthest off, so that one stray pixel decides it. D and H are in pixels. An empty result
has neither: they are NaN, and whoever averages counts it.

All masks are bool arrays (H, W) of one shape: `result` is what an explanation marks (the hole of the smallest deletion
region, or a thresholded map) and may be empty, `truth` the annotation, `breast` the breast. Errors name the argument: a
mask that is not bool is a TypeError; another shape, an empty annotation or breast, a number out of its range and values
that are not finite are a ValueError.

Reference: Major et al. 2020, section 3, "Saliency Mapping", Tabs. 1 and 2; section 4 for the circumference.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def threshold(values: NDArray, percentile: float, inside: Mask | None = None) -> Mask:
    """Keep the largest ``100 - percentile`` percent of a map's values (H, W): the paper's 50, 75 and 90.

    Exactly so many pixels are kept, rounded to a whole pixel, and never more for ties: of equal values the first in
    row-major order is kept. A map with a large flat part (a rectified CAM) is therefore filled from the top. With
    `inside` (H, W), such as the breast, only its pixels are ranked and kept.
    """
    grid = _finite("values", values)
    if not 0 < percentile < 100:
        raise ValueError(f"percentile: {percentile!r} is not in (0, 100)")
    ranked = np.ones(grid.shape, bool) if inside is None else _mask("inside", inside, grid.shape, filled=True)
    pixels = np.flatnonzero(ranked)
    best = np.argsort(-grid.ravel()[pixels], kind="stable")[: round(len(pixels) * (100 - percentile) / 100)]
    hole = np.zeros(grid.shape, bool)
    hole.flat[pixels[best]] = True
    return hole


def centres(mask: Mask) -> Array:
    """Centres of mass (row, col) of the 8-connected components of a mask, (k, 2); k = 0 for an empty one."""
    parts, count = ndimage.label(_mask("mask", mask), np.ones((3, 3)))
    return np.reshape(ndimage.center_of_mass(mask, parts, range(1, count + 1)), (count, 2))


def distance(result: Mask, truth: Mask, average: str = "mean") -> float:
    """D: Euclidean distance in pixels between the centre of the annotation and those of the result's components.

    Table 1 calls D the "average" distance; the text says "where multiple masses, or mapping results occurred we used
    their median". Here each mass (component of the annotation) takes the `average` over all components of the
    result, large and small alike, "mean" or "median", and D is the median over the masses. NaN for an empty result.
    """
    marked, found = centres(_mask("truth", truth, filled=True)), centres(_mask("result", result, truth.shape))
    if average not in ("mean", "median"):
        raise ValueError(f"average: {average!r} is not 'mean' or 'median'")
    if not len(found):
        return np.nan
    per_mass = (np.mean if average == "mean" else np.median)(cdist(marked, found), axis=1)
    return float(np.median(per_mass))


def hausdorff(result: Mask, truth: Mask) -> float:
    """H: symmetric Hausdorff distance in pixels, the largest distance from a pixel of one mask to the other mask.

    Several masses count as one annotation. NaN for an empty result. Two distance transforms serve masks of any size.
    """
    marked = _mask("truth", truth, filled=True)
    found = _mask("result", result, marked.shape)
    if not found.any():
        return np.nan
    to_marked, to_found = (ndimage.distance_transform_edt(~mask) for mask in (marked, found))
    return float(max(to_marked[found].max(), to_found[marked].max()))


def area(result: Mask, breast: Mask, over: str = "breast") -> float:
    """A: share of the breast that the result covers; what lies outside the breast does not count.

    Percentiles of a map over the image do not fix this share, and the paper prints .50±.0 for saliency at the 50th. So
    its threshold and its A use the same pixels. To get there: ``over="image"``, all of the result as a share of the
    image, or ``threshold(values, 50, inside=breast)``.
    """
    inside = _mask("breast", breast, filled=True)
    found = _mask("result", result, inside.shape)
    if over not in ("breast", "image"):
        raise ValueError(f"over: {over!r} is not 'breast' or 'image'")
    return float(found[inside].mean() if over == "breast" else found.mean())


def overlap(a: Mask, b: Mask) -> float:
    """O: overlap coefficient ``|a & b| / min(|a|, |b|)``, 1 where one mask holds the other; NaN where one is empty."""
    first = _mask("a", a)
    second = _mask("b", b, first.shape)
    smaller = min(first.sum(), second.sum())
    return float((first & second).sum() / smaller) if smaller else np.nan


def band(truth: Mask, width_px: float) -> Mask:
    """Pixels (H, W) within `width_px` of the contour of the annotation, on both sides of it.

    The contour runs between the pixels: the centre of a mass pixel beside the background is half a pixel from it. Where
    the annotation is cut off by the image there is no contour, and one that fills the image is an error.
    """
    inside = _mask("truth", truth, filled=True)
    if inside.all():
        raise ValueError("truth: fills the image and has no contour")
    if not 0 < width_px < np.inf:
        raise ValueError(f"width_px: {width_px!r} is not a positive number")
    to_other_side = ndimage.distance_transform_edt(inside) + ndimage.distance_transform_edt(~inside)
    return to_other_side - 0.5 <= width_px


def circumference(result: Mask, truth: Mask, width_px: float) -> float:
    """Share of the result within `width_px` of the contour of the annotation, see `band`; NaN for an empty result."""
    rim = band(truth, width_px)
    found = _mask("result", result, rim.shape)
    return float(rim[found].mean()) if found.any() else np.nan


def shifted_circumference(
    result: Mask, truth: Mask, breast: Mask, width_px: float, draws: int, rng: np.random.Generator
) -> float:
    """Mean of `circumference` over random places of the same result: what its shape and size alone would give.

    In each draw the result is moved by whole pixels so that its centre of mass falls on a pixel of the breast, each as
    likely. Of a result that the move takes partly out of the image the rest counts; a draw without a rest is left out.

    A mask anywhere on the mass beats this control. Whether it prefers the contour to the inside of the mass is asked by
    the annotation in the place of the breast: ``shifted_circumference(result, truth, truth, ...)``.
    """
    rim = band(truth, width_px)
    found = _mask("result", result, rim.shape)
    places = np.argwhere(_mask("breast", breast, rim.shape, filled=True))
    if draws < 1:
        raise ValueError(f"draws: {draws!r} is not at least 1")
    if not found.any():
        return np.nan
    pixels = np.argwhere(found)
    from_centre = pixels - np.round(pixels.mean(axis=0)).astype(int)
    shares = []
    for place in rng.choice(places, draws):
        rows, cols = (from_centre + place).T
        kept = (rows >= 0) & (cols >= 0) & (rows < rim.shape[0]) & (cols < rim.shape[1])
        if kept.any():
            shares.append(rim[rows[kept], cols[kept]].mean())
    return float(np.mean(shares)) if shares else np.nan


def measure(
    result: Mask,
    truth: Mask,
    breast: Mask,
    pixel_mm: float | None = None,
    width_mm: float = 2.0,
    *,
    rng: np.random.Generator,
    average: str = "mean",
    draws: int = 100,
) -> dict[str, float]:
    """All measures of one result mask: a row of the table of masks.

    `width_mm` is half the width of the band around the contour, `draws` the number of random shifts.

    Returns:
        ``D`` and ``H`` in pixels, ``A``, ``components``, ``empty`` (bool), ``area`` in pixels, ``hit`` (share of the
        result inside the annotation), ``circumference`` and ``shifted`` (NaN where `pixel_mm` is unknown). For an empty
        result A, components and area are 0 and the others NaN.
    """
    if pixel_mm is not None and not 0 < pixel_mm < np.inf:
        raise ValueError(f"pixel_mm: {pixel_mm!r} is not a positive number")
    pixels = int(_mask("result", result, np.shape(breast)).sum())
    width_px = width_mm / pixel_mm if pixel_mm else np.nan
    return {
        "D": distance(result, truth, average),
        "H": hausdorff(result, truth),
        "A": area(result, breast),
        "components": len(centres(result)),
        "empty": pixels == 0,
        "area": pixels,
        "hit": float(truth[result].mean()) if pixels else np.nan,
        "circumference": circumference(result, truth, width_px) if pixel_mm else np.nan,
        "shifted": shifted_circumference(result, truth, breast, width_px, draws, rng) if pixel_mm else np.nan,
    }


def disc(area_px: int, centre: NDArray[np.integer], shape: tuple[int, int]) -> Mask:
    """The `area_px` pixels of an image of `shape` (H, W) that are closest to `centre` (row, col).

    At the image's border it is cut off and reaches further inside. Of equally close pixels the first in row-major order
    is taken.
    """
    if not 0 <= area_px <= shape[0] * shape[1]:
        raise ValueError(f"area_px: {area_px!r} is not from 0 to the image's {shape[0]} x {shape[1]} pixels")
    apart = np.add.outer((np.arange(shape[0]) - centre[0]) ** 2, (np.arange(shape[1]) - centre[1]) ** 2)
    mask = np.zeros(shape, bool)
    mask.flat[np.argsort(apart, axis=None, kind="stable")[:area_px]] = True
    return mask


def random_disc(area_px: int, breast: Mask, rng: np.random.Generator) -> Mask:
    """Chance mask: a `disc` of that area around a random pixel of the breast, each as likely."""
    inside = _mask("breast", breast, filled=True)
    return disc(area_px, rng.choice(np.argwhere(inside)), inside.shape)


def breast_centre(area_px: int, breast: Mask) -> Mask:
    """Chance mask: a `disc` of that area around the pixel of the breast nearest to the breast's centre of mass."""
    pixels = np.argwhere(_mask("breast", breast, filled=True))
    return disc(area_px, pixels[np.argmin(cdist(pixels, pixels.mean(axis=0)[None]))], breast.shape)


def brightest_spot(area_px: int, image: NDArray, breast: Mask, sigma_px: float) -> Mask:
    """Chance mask: a `disc` of that area around the brightest pixel of the breast after Gaussian smoothing.

    What lies outside the breast counts as black, so that a bright label beside the breast does not matter.
    """
    grey = _finite("image", image)
    inside = _mask("breast", breast, grey.shape, filled=True)
    if not 0 <= sigma_px < np.inf:
        raise ValueError(f"sigma_px: {sigma_px!r} is not a number from 0")
    smooth = ndimage.gaussian_filter(np.where(inside, grey, 0), sigma_px, mode="nearest")
    return disc(area_px, np.argwhere(inside)[np.argmax(smooth[inside])], grey.shape)


def _finite(name: str, values: NDArray) -> Array:
    """A map or an image as float64 (H, W)."""
    grid = np.asarray(values, float)
    if grid.ndim != 2 or grid.size == 0 or not np.isfinite(grid).all():
        raise ValueError(f"{name}: expected finite values of shape (H, W), got shape {grid.shape}")
    return grid


def _mask(name: str, mask: Mask, shape: tuple[int, ...] | None = None, filled: bool = False) -> Mask:
    """The mask itself, if it is a bool array (H, W), of `shape` where it is given, with a pixel inside if `filled`."""
    if not isinstance(mask, np.ndarray) or mask.dtype != bool:
        raise TypeError(f"{name}: expected a NumPy array of bool, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.ndim != 2 or shape not in (None, mask.shape):
        raise ValueError(f"{name}: expected shape {shape or '(H, W)'}, got {mask.shape}")
    if filled and not mask.any():
        raise ValueError(f"{name}: is empty, expected at least one pixel")
    return mask
