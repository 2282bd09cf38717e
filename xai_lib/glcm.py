"""Variance of the grey-level co-occurrence matrix (GLCM) around every pixel, and the images *Lesion* and *Background*.

Usage::

    v = glcm_variance(roi)                      # (H, W), the paper's equations as they are printed
    edges = glcm_variance(roi, mu="textbook")   # the variance that everybody else means
    contents = lesion_background(roi)           # {"lesion": (H, W), "background": (H, W)}, each in [0, 1]

Theory: p(m, n) is the share of pixel pairs at a given offset in a window whose grey levels are m and n, each pair
counted in both directions. Then ``variance = sum (m - mu)^2 p(m, n)`` and, in the textbook, ``mu = sum m p(m, n)``.
The paper's mu has a factor 1 / L^2 more. With L = 32 it is almost 0, and what is called variance is the local mean of
the squared grey level: a blurred picture of brightness, high on a mass. The textbook's is high on edges.

No matrix is needed. Both sums ask for one level of a pair only, so they are sums of m and m^2 over the pixels of the
window, each as often as it takes part in a pair: a box filter over integers, and exact.

References: Li et al. 2025, section 2.2.2, equations 1 and 2, and section 4.2, step 1; Haralick et al. 1973.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

FOUR_ANGLES = (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
MEANS = ("printed", "textbook")
BACKGROUNDS = ("remainder", "rescaled")


def glcm_variance(
    roi: ArrayLike,
    mu: str = "printed",
    window: int = 7,
    distance: int = 1,
    angles: Sequence[float] = (0.0,),
    levels: int = 32,
) -> np.ndarray:
    """GLCM variance of the window around every pixel (eqs. 1, 2), in squared grey levels; shape (H, W), float64.

    A window is cut where it reaches beyond the image. With several angles it is the mean of their variances. The
    value of each window is that of the matrix of ``skimage.feature.graycomatrix(..., symmetric=True, normed=True)``.

    Args:
        roi: grey image (H, W) or (1, H, W) in [0, 1]; level m holds the values from m / levels to (m + 1) / levels.
        mu: "printed", equation 2 with its factor 1 / levels^2; "textbook", without.
        window: side in pixels, odd.
        distance: of the two pixels of a pair, from 1 to ``window // 2``, so that a window cut in a corner has pairs.
        angles: directions of the pairs in radians, as in scikit-image: 0 is along the row; see `FOUR_ANGLES`.
        levels: number of grey levels L, from 2 to 65536.

    Raises:
        TypeError: a window, distance or number of levels that is no integer.
        ValueError: another shape, a value outside [0, 1] or not finite, a window that is even or larger than the
            image, a distance, an angle or a number of levels out of range, or an unknown `mu`.
    """
    if mu not in MEANS:
        raise ValueError(f"mu: {mu!r} is not 'printed' or 'textbook'")
    grey = as_grey("roi", roi)
    _check(grey.shape, window, distance, angles, levels)
    m = np.minimum((grey * levels).astype(np.int64), levels - 1)
    factor = 1 / levels**2 if mu == "printed" else 1.0
    total = np.zeros(m.shape)
    for angle in angles:
        sums, squares, count = _window_sums(m, window, *_offset(distance, angle))
        # E m^2 - 2 (f E m) E m + (f E m)^2 with mu = f E m; times count^2, so that the integers are exact
        total += (count * squares - factor * (2 - factor) * sums**2) / count**2
    return total / len(angles)


def lesion_background(
    roi: ArrayLike, mu: str = "printed", background: str = "remainder", dark: bool = False, **options: object
) -> dict[str, np.ndarray]:
    """The images *Lesion* and *Background* (section 4.2, step 1), float32 (H, W) in [0, 1].

    *Lesion* is the GLCM variance, rescaled to the whole range of grey. *Background* is "the remaining information":
    the ROI minus *Lesion*, cut at 0.

    Args:
        roi: as for `glcm_variance`.
        mu: as there, like all further options.
        background: "remainder", as it is, in the ROI's grey; "rescaled", stretched to the whole range of grey.
        dark: masses are darker than what is around them, as in ultrasound: the images are made of the negative and
            turned back. The printed variance would else be high everywhere but on the mass.

    Raises:
        ValueError: as `glcm_variance`; an unknown `background`; one of the images would have the same grey everywhere,
            as for a constant ROI.
    """
    if background not in BACKGROUNDS:
        raise ValueError(f"background: {background!r} is not 'remainder' or 'rescaled'")
    grey = as_grey("roi", roi)
    if dark:
        negative = lesion_background(1 - grey, mu, background, **options)  # type: ignore[arg-type]
        return {name: 1 - image for name, image in negative.items()}
    lesion = _rescaled("Lesion", glcm_variance(grey, mu, **options))  # type: ignore[arg-type]
    rest = np.clip(grey - lesion, 0, None)
    stretched = _rescaled("Background", rest)
    images = {"lesion": lesion, "background": stretched if background == "rescaled" else rest}
    return {name: image.astype(np.float32) for name, image in images.items()}


def as_grey(name: str, image: ArrayLike) -> np.ndarray:
    """One grey image as float64 (H, W).

    Raises:
        ValueError: not (H, W) or (1, H, W), empty, not finite, or outside [0, 1]; the message has its `name`.
    """
    grey = np.asarray(image, dtype=float)
    grey = grey[0] if grey.ndim == 3 and len(grey) == 1 else grey
    if grey.ndim != 2 or grey.size == 0:
        raise ValueError(f"{name}: expected one grey image (H, W) or (1, H, W), got shape {grey.shape}")
    if not np.isfinite(grey).all():
        raise ValueError(f"{name}: it holds NaN or infinite values")
    if grey.min() < 0 or grey.max() > 1:
        raise ValueError(f"{name}: values from {grey.min():g} to {grey.max():g}, expected them in [0, 1]")
    return grey


def _check(shape: tuple[int, ...], window: int, distance: int, angles: Sequence[float], levels: int) -> None:
    for name, value in (("window", window), ("distance", distance), ("levels", levels)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise TypeError(f"{name}: expected an integer, got {value!r}")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window: {window} pixels, expected an odd number of at least 3")
    if window > min(shape):
        raise ValueError(f"window: {window} x {window} pixels are more than the ROI's {shape[0]} x {shape[1]}")
    if not 1 <= distance <= window // 2:
        raise ValueError(f"distance: {distance} pixels, expected from 1 to {window // 2} in a window of {window}")
    if not 2 <= levels <= 65536:
        raise ValueError(f"levels: {levels}, expected from 2 to 65536")
    if len(angles) == 0 or not all(abs(angle) <= 2 * math.pi for angle in angles):
        raise ValueError(f"angles: {tuple(angles)}, expected at least one, in radians from -2 pi to 2 pi")


def _offset(distance: int, angle: float) -> tuple[int, int]:
    """Steps down (at least 0) and right from one pixel of a pair to the other; halves are rounded away from 0."""
    steps = (math.sin(angle) * distance, math.cos(angle) * distance)
    down, right = (int(math.copysign(math.floor(abs(step) + 0.5), step)) for step in steps)
    return (-down, -right) if down < 0 else (down, right)


def _window_sums(m: np.ndarray, window: int, down: int, right: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of m and of m^2 over both pixels of all pairs in each window, and how many pixels were counted; (H, W)."""
    (top, bottom), (left, end) = (_reach(length, window // 2) for length in m.shape)
    places = (top, bottom - down, left, end - abs(right))  # a pair is known by the corner of its rectangle
    sums, squares = (_box(_pairs(values, down, right), *places).astype(float) for values in (m, m**2))
    return sums, squares, 2 * np.outer(places[1] - places[0], places[3] - places[2])


def _reach(length: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    """First pixel, and the one after the last, of the window around each pixel of a line."""
    place = np.arange(length)
    return np.maximum(place - half, 0), np.minimum(place + half + 1, length)


def _pairs(m: np.ndarray, down: int, right: int) -> np.ndarray:
    """Sum of the two values of every pair at an offset, at the upper left corner of its rectangle."""
    height, width = m.shape
    first, second = max(-right, 0), max(right, 0)
    return m[: height - down, first : width - second] + m[down:, second : width - first]


def _box(values: np.ndarray, row0: np.ndarray, row1: np.ndarray, col0: np.ndarray, col1: np.ndarray) -> np.ndarray:
    """Sums over the rectangles row0 ... row1 - 1, col0 ... col1 - 1, from one table of running sums."""
    table = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    bands = table[row1] - table[row0]  # (H, W + 1)
    return bands[:, col1] - bands[:, col0]


def _rescaled(name: str, image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    if high - low <= 1e-9 * max(1.0, high):
        raise ValueError(f"roi: its {name} image has the same grey everywhere, so there is nothing to replace with")
    return (image - low) / (high - low)
