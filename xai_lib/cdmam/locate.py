"""Where the CDMAM phantom lies in an image: scale, position, which way round, and whether discs are dark or bright.

Usage::

    placement = locate(image)                                # any size, depth and rotation; else NoPhantom says why
    y, x = placement.pixels(discs["along_mm"], discs["down_mm"])

Four steps on a reduced, high-passed image. (1) The lines of the grid make a square lattice at about 45 degrees; its
direction and pitch are those whose first four harmonics are strongest in the Fourier spectrum. (2) The outline of the
grid, whose corners are cut off in steps, is found by correlation for all eight ways in which the plate can lie. (3)
Each piece of line is measured across, and the placement follows from all of them by least squares. (4) The way round is
the one in which the second discs lie in the corners that the plate has them in.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import fft, ndimage, signal
from skimage.draw import line
from skimage.transform import downscale_local_mean

from xai_lib.cdmam.geometry import CELLS, CORNERS, PITCH_MM, on_plate, sites

LONG_PX = 750  # longer side of the reduced image
SMALLEST_PX = 300  # shorter images show no disc below 1 mm
PLATE_MM = (212.1, 134.4)  # of the cells, along the plate's longer and shorter side
LARGER, SMALLER = 1.6, 0.4  # scales that are tried, as a share of the largest that fits into the image
HARMONICS = np.arange(1, 5)
LEAST_STRENGTH, LEAST_PIECES, LEAST_DISCS = 1.5, 0.95, 0.4


class NoPhantom(ValueError):
    """The image shows no CDMAM phantom that can be read; the message says what was not found."""


@dataclass(frozen=True)
class Placement:
    """Where plate coordinates lie in an image; the plate turns by `angle` clockwise, after mirroring left to right."""

    y: float  # pixel of the middle of the plate
    x: float
    px_per_mm: float
    angle: float = 0.0  # degrees
    mirrored: bool = False
    polarity: int = -1  # of discs and grid: -1 darker than the background (raw images), +1 brighter

    def pixels(self, along_mm: ArrayLike, down_mm: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixel coordinates (y, x) of plate coordinates."""
        cos, sin = (self.px_per_mm * f(math.radians(self.angle)) for f in (math.cos, math.sin))
        along, down = np.asarray(along_mm) * (-1 if self.mirrored else 1), np.asarray(down_mm)
        return self.y + sin * along + cos * down, self.x + cos * along - sin * down


def nominal(shape: tuple[int, int], pixel_mm: float = 0.06, magnification: float = 1.0375) -> Placement:
    """Placement of a simulated phantom, whose plate lies in the middle of the image."""
    return Placement((shape[0] - 1) / 2, (shape[1] - 1) / 2, magnification / pixel_mm)


def of_phantom(phantom: Any) -> Placement:
    """Placement of a simulated phantom, turned or not, from the table of its discs (along_mm, down_mm, y, x)."""
    table = phantom.discs
    plate = np.stack([table["along_mm"], table["down_mm"], np.ones(len(table))], axis=1)
    along, down, origin = np.linalg.lstsq(plate, table[["y", "x"]].to_numpy(), rcond=None)[0]  # each (y, x)
    return Placement(
        y=float(origin[0]),
        x=float(origin[1]),
        px_per_mm=float(np.hypot(*down)),
        angle=math.degrees(math.atan2(-down[1], down[0])) % 360,
        mirrored=bool(along[1] * down[0] < along[0] * down[1]),
    )


def locate(image: ArrayLike, pixel_mm: float | None = None) -> Placement:
    """Find the phantom.

    Args:
        image: (H, W), any number type, scale, polarity and bit depth.
        pixel_mm: side of a pixel at the detector, if known; it narrows the search for the scale.

    Raises:
        NoPhantom: the image is not one grey image of finite, varying values, it is too small, it shows no grid, a
            part of the grid lies outside or is covered, or the discs fit in no way round.
    """
    small, factor = _reduced(image)
    lines = _high_passed(small)
    angle, px_per_mm = _lattice(lines, None if pixel_mm is None else pixel_mm * factor)
    found = [_refined(lines, way) for way in _ways_round(lines, angle, px_per_mm)]
    placement = _way_round(small, found)
    return _enlarged(placement, factor)


def _enlarged(placement: Placement, factor: int) -> Placement:
    """The placement in an image before blocks of `factor` pixels were averaged."""
    return replace(
        placement,
        y=placement.y * factor + (factor - 1) / 2,  # pixel centres
        x=placement.x * factor + (factor - 1) / 2,
        px_per_mm=placement.px_per_mm * factor,
    )


def _reduced(image: ArrayLike) -> tuple[NDArray[np.float32], int]:
    """The image, checked, averaged over blocks to about 750 pixels, and the side of a block."""
    pixels = np.asarray(image)
    if pixels.ndim != 2:
        raise NoPhantom(f"image: has the shape {pixels.shape}; expected (H, W), one grey image")
    if min(pixels.shape) < 2 or max(pixels.shape) < SMALLEST_PX:
        raise NoPhantom(
            f"image: too small, {pixels.shape[0]} x {pixels.shape[1]} pixels; "
            f"expected at least {SMALLEST_PX} along the longer side"
        )
    pixels = pixels.astype(np.float32, copy=False)
    if not np.isfinite(pixels).all():
        raise NoPhantom("image: has NaN or infinite values")
    if pixels.min() == pixels.max():
        raise NoPhantom(f"image: constant, every pixel is {pixels.flat[0]:g}")
    factor = max(1, round(max(pixels.shape) / LONG_PX))
    height, width = (n // factor * factor for n in pixels.shape)
    return downscale_local_mean(pixels[:height, :width], (factor, factor)).astype(np.float32), factor


def _high_passed(small: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is thin, dark or bright, in units of what the grid's lines reach (they cover a few per cent); held at 2.

    The image less the mean of its opening and closing: slow changes and edges of wide things (plate, collimator) go.
    """
    side = 2 * round(max(small.shape) / 200) + 1
    rest = small - (ndimage.grey_opening(small, side) + ndimage.grey_closing(small, side)) / 2
    rest = np.clip(rest / (np.percentile(np.abs(rest), 97) + 1e-12), -2, 2)
    return rest - rest.mean()


def _lattice(lines: NDArray[np.float32], pixel_mm: float | None) -> tuple[float, float]:
    """Angle of the plate (-10 to 10 degrees) and scale in pixels per mm, from the spectrum."""
    spectrum = _white_spectrum(lines)
    largest = min(max(lines.shape) / PLATE_MM[0], min(lines.shape) / PLATE_MM[1])
    low, high = SMALLER * largest, LARGER * largest
    if pixel_mm is not None:
        low, high = 0.9 / pixel_mm, 1.3 / pixel_mm
    angles = np.arange(-10, 10.05, 0.1)
    scales = np.geomspace(low, high, math.ceil(math.log(high / low) / 0.003))
    turn, scale = np.meshgrid(np.radians(angles + 45), scales, indexing="ij")
    step = len(spectrum) / (PITCH_MM * scale)  # of the fundamental, in bins

    def strength(offset: float) -> NDArray[np.float32]:
        """Mean over harmonics, less `offset`, and both directions."""
        radius = (HARMONICS[:, None, None] - offset) * step
        y = np.stack([radius * np.sin(turn), radius * np.cos(turn)]) + len(spectrum) // 2
        x = np.stack([radius * np.cos(turn), -radius * np.sin(turn)]) + len(spectrum) // 2
        return ndimage.map_coordinates(spectrum, [y, x], order=1).mean(axis=(0, 1))

    lattice = strength(0)
    score = lattice - np.maximum(strength(1 / 2), strength(1 / 3))  # those in between: the pitch is longer
    best = np.unravel_index(np.where(score > 0.7 * score.max(), lattice, -np.inf).argmax(), score.shape)
    if score[best] < LEAST_STRENGTH:
        raise NoPhantom("image: no grid was found: no square lattice of lines at about 45 degrees stands out")
    return float(angles[best[0]]), float(scales[best[1]])


def _white_spectrum(lines: NDArray[np.float32]) -> NDArray[np.float32]:
    """Root of the amplitudes of the square spectrum over that of their surroundings, zero frequency in the middle."""
    window = np.hanning(lines.shape[0])[:, None] * np.hanning(lines.shape[1])
    size = fft.next_fast_len(max(lines.shape))
    size += size % 2
    spectrum = np.abs(fft.fftshift(fft.fft2((lines * window).astype(np.float32), (size, size))))
    return np.sqrt(spectrum / (ndimage.uniform_filter(spectrum, 31) + 1e-6))


def _pieces() -> pd.DataFrame:
    """Every side of a cell once: its middle (along_mm, down_mm) and its two ends."""
    ends = {
        (v, u, v + dv, u + du)
        for i, j in np.argwhere(CELLS).tolist()
        for v, u, dv, du in ((i, j, 0, 1), (i + 1, j, 0, 1), (i, j, 1, 0), (i, j + 1, 1, 0))
    }
    v0, u0, v1, u1 = np.array(sorted(ends), dtype=float).T
    table = {}
    for name, (u, v) in {"": ((u0 + u1) / 2, (v0 + v1) / 2), "_0": (u0, v0), "_1": (u1, v1)}.items():
        table[f"along{name}"], table[f"down{name}"] = on_plate(u, v)
    return pd.DataFrame(table)


def _ways_round(lines: NDArray[np.float32], angle: float, px_per_mm: float) -> list[Placement]:
    """The best position of each of the eight ways round, by correlation with the drawn grid at 2 pixels per mm."""
    pieces = _pieces()
    side = max(1, round(px_per_mm / 2))
    coarse, scale = downscale_local_mean(lines, (side, side)).astype(np.float32), px_per_mm / side
    middle = math.ceil(scale * math.hypot(*PLATE_MM) / 2) + 2
    found = []
    for quarter in range(4):
        for mirrored in (False, True):
            way = Placement(middle, middle, scale, (angle + 90 * quarter) % 360, mirrored)
            drawn = np.zeros((2 * middle + 1, 2 * middle + 1), dtype=np.float32)
            ends = [way.pixels(pieces[f"along_{k}"], pieces[f"down_{k}"]) for k in (0, 1)]
            for ends_of_piece in np.rint(np.concatenate(ends)).astype(int).T:
                drawn[line(*ends_of_piece)] = 1
            match = signal.correlate(coarse, ndimage.gaussian_filter(drawn, 1), mode="same", method="fft")
            y, x = np.unravel_index(np.abs(match).argmax(), match.shape)
            found.append(_enlarged(replace(way, y=float(y), x=float(x), polarity=1 if match[y, x] > 0 else -1), side))
    return found


def _refined(lines: NDArray[np.float32], placement: Placement, rounds: int = 3) -> tuple[Placement, float]:
    """Placement by least squares from the pieces of line, and the share of the pieces that were seen."""
    pieces, seen = _pieces(), np.zeros(0, dtype=bool)
    for reach_mm in (*[1.5] * (rounds - 1), 0.8):
        shift, seen, normal = _across(lines, placement, pieces, reach_mm)
        if seen.sum() < 20:
            break
        y, x = placement.pixels(pieces["along"], pieces["down"])
        arm = np.stack([y - placement.y, x - placement.x])
        turned = np.stack([arm[1], -arm[0]])  # of a turn clockwise by one radian
        terms = np.stack([*normal, (normal * arm).sum(0), (normal * turned).sum(0)], axis=1)[seen]
        step = np.linalg.lstsq(terms, shift[seen], rcond=None)[0]
        placement = replace(
            placement,
            y=placement.y + float(step[0]),
            x=placement.x + float(step[1]),
            px_per_mm=placement.px_per_mm * (1 + float(step[2])),
            angle=(placement.angle + math.degrees(step[3])) % 360,
        )
    shifted = [_moved(placement, du, dv) for dv in (-1, 0, 1) for du in (-1, 0, 1)]  # the outline may be a cell off
    shares = [float(_across(lines, way, pieces, 0.8)[1].mean()) for way in shifted]
    best = int(np.argmax(shares))
    return shifted[best], shares[best]


def _moved(placement: Placement, du: int, dv: int) -> Placement:
    """The placement moved by whole cells along thickness and diameter."""
    y, x = placement.pixels(*on_plate(np.array(8.25 + du), np.array(7.75 + dv)))  # from the middle of the plate
    return replace(placement, y=float(y), x=float(x))


def _across(
    lines: NDArray[np.float32], placement: Placement, pieces: pd.DataFrame, reach_mm: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """How far each piece of line lies from its place (pixels), whether it was seen, and its unit normal (y, x)."""
    ends = [np.stack(placement.pixels(pieces[f"along_{k}"], pieces[f"down_{k}"])) for k in (0, 1)]
    middle, run = (ends[0] + ends[1]) / 2, ends[1] - ends[0]
    normal = np.stack([run[1], -run[0]]) / np.hypot(*run)
    reach = max(2.0, reach_mm * placement.px_per_mm)
    t = np.linspace(-reach, reach, 2 * math.ceil(reach) + 1)
    along = np.linspace(-0.35, 0.35, 7)
    places = (
        middle[:, :, None, None] + run[:, :, None, None] * along[:, None] + normal[:, :, None, None] * t
    )  # (2, pieces, along, across)
    profile = placement.polarity * ndimage.map_coordinates(lines, places, order=1, mode="nearest").mean(axis=1)
    profile = profile - np.median(profile, axis=1, keepdims=True)
    peak = profile.max(axis=1)
    near = np.abs(t - t[profile.argmax(axis=1)][:, None]) <= 0.6 * placement.px_per_mm + 1
    weight = np.clip(profile, 0, None) * near + 1e-9
    inside = ((middle >= 0) & (middle <= np.array(lines.shape)[:, None] - 1)).all(axis=0)
    return (weight * t).sum(1) / weight.sum(1), inside & (peak > 0.4), normal


def _way_round(small: NDArray[np.float32], found: list[tuple[Placement, float]]) -> Placement:
    """The placement whose discs show in the right corners; NoPhantom where none holds the whole phantom or fits."""
    faults = [_fault(placement, small.shape, pieces) for placement, pieces in found]
    whole = [placement for (placement, _), fault in zip(found, faults, strict=True) if not fault]
    if not whole:
        raise NoPhantom(f"image: {faults[int(np.argmax([pieces for _, pieces in found]))]}")
    smooth = ndimage.gaussian_filter(small, 1)
    agreement = [agreeing_corners(smooth, placement) for placement in whole]
    best = int(np.argmax(agreement))
    if agreement[best] < LEAST_DISCS * CELLS.sum():
        raise NoPhantom(
            f"image: a grid was found, but the discs of a CDMAM 3.4 fit in no way round: the second disc was seen in "
            f"{agreement[best]} of {CELLS.sum()} cells (chance gives {CELLS.sum() // 4})"
        )
    return whole[best]


def _fault(placement: Placement, shape: tuple[int, ...], pieces: float) -> str:
    """What is wrong where cells lie outside the image or pieces of the grid were not seen, else nothing."""
    row, column = np.nonzero(CELLS)
    y, x = placement.pixels(*on_plate(np.asarray(column + 0.5, float), np.asarray(row + 0.5, float)))
    room = 4.3 * placement.px_per_mm  # the second disc lies within this distance
    outside = int(((y < room) | (y > shape[0] - 1 - room) | (x < room) | (x > shape[1] - 1 - room)).sum())
    if outside:
        return f"the phantom is cut: {outside} of {CELLS.sum()} cells lie outside the image"
    if pieces < LEAST_PIECES:
        return f"the phantom is cut or covered: {pieces:.0%} of its grid was seen, expected {LEAST_PIECES:.0%}"
    return ""


def agreeing_corners(smooth: NDArray[np.float32], placement: Placement) -> int:
    """Cells whose true corner stands out most among the four, read at single points of a smoothed image."""
    cells = np.argwhere(CELLS).tolist()
    plate = np.array([[sites(i, j)[k] for k in (1, 2, 3, 4)] for i, j in cells])  # (cells, 4, along and down)
    y, x = placement.pixels(plate[..., 0], plate[..., 1])
    value = placement.polarity * ndimage.map_coordinates(smooth, [y, x], order=1, mode="nearest")
    return int((value.argmax(axis=1) + 1 == CORNERS[CELLS]).sum())
