"""A breast as a mammogram shows it, without any lesion: outline, pectoral muscle, glandular tissue, ducts, skin.

Usage::

    breast = draw_breast(patient_rng, rng)            # what the two views of one breast share
    outline = draw_outline(breast, "MLO", view_rng)   # where skin, nipple and muscle lie in one view, in mm
    tissue = build_tissue(breast, outline, view_rng, size=(512, 256))

Theory. A mammogram is close to the logarithm of the exposure, so it shows a sum along the beam: thickness times
attenuation. Here that sum is the *signal*: 0 outside the breast, about 0.3 in fat, up to 0.9 in glandular tissue. Its
texture is that of filtered noise whose power spectrum falls off as 1 / f^3. Glandular tissue is a region behind the
nipple whose border the noise breaks up; its strands and ducts run towards the nipple, so their noise is drawn in polar
coordinates around it. Thin septa (Cooper's ligaments) are the zero crossings of such noise.

Row 0 is the upper edge of the image, column 0 the chest wall. The image is 200 mm high whatever its number of pixels,
and low frequencies are drawn first: one seed shows the same breast at every size.

References: A. E. Burgess, Mammographic structure: data preparation and spatial statistics analysis, Proceedings of SPIE
3661 (1999) 642-653 (power spectrum); BI-RADS Atlas, 4th edition (2003), density by quarters of glandular tissue.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy import interpolate, ndimage, special

FRAME_MM = 200.0  # height of an image
VIEWS = ("CC", "MLO")
DENSITIES = {"A": (0.02, 0.10), "B": (0.14, 0.30), "C": (0.38, 0.58), "D": (0.70, 0.92)}  # aimed share of gland
FAT, GLAND, MUSCLE = 0.29, 0.85, 0.66  # signal at full thickness
SHARED_MODES = 64  # modes of a noise field that are the same at every size


@dataclass(frozen=True)
class Breast:
    """What the two views of one breast share. All lengths in mm."""

    density: str  # A (fatty) to D (dense)
    gland: float  # share of glandular tissue aimed at
    depth_mm: float  # chest wall to nipple
    height_mm: float  # extent along the chest wall
    thickness: float  # relative thickness under compression
    muscle: float  # 0 to 1, how much of the pectoral muscle is in an MLO view


@dataclass(frozen=True)
class Outline:
    """Where things lie in one view. All lengths in mm."""

    view: str
    rows_mm: tuple[float, ...]  # control points of the skin line, from top to bottom
    cols_mm: tuple[float, ...]
    nipple_mm: tuple[float, float]
    muscle_mm: tuple[float, float]  # width at the upper edge and height at the chest wall; zeros in CC

    def skin(self, rows_mm: np.ndarray) -> np.ndarray:
        """Column of the skin line at each row, 0 where there is no breast."""
        edge = interpolate.PchipInterpolator(self.rows_mm, self.cols_mm, extrapolate=False)(rows_mm)
        return np.clip(np.nan_to_num(edge, nan=0.0), 0, None)

    def muscle(self, rows_mm: np.ndarray) -> np.ndarray:
        """Column of the edge of the pectoral muscle at each row, negative below it: a slightly convex line."""
        width, height = self.muscle_mm
        if width == 0:
            return np.full(np.shape(rows_mm), -1.0)
        down = rows_mm / height
        return width * (1 - down + 0.12 * np.sin(np.pi * np.clip(down, 0, 1)))


@dataclass(frozen=True)
class Tissue:
    """The lesion-free breast on the pixel grid; all maps are (height, columns)."""

    signal: np.ndarray  # float32, 0 outside the breast
    breast: np.ndarray  # bool
    pectoral: np.ndarray  # bool
    gland: np.ndarray  # share of glandular tissue along the beam, in [0, 1]


def draw_breast(patient: np.random.Generator, breast: np.random.Generator) -> Breast:
    """Draw what two views share. The two breasts of a patient resemble each other: traits correlate with 0.85.

    Args:
        patient: generator that restarts for each breast of a patient.
        breast: generator of this breast.
    """
    share = special.ndtr(np.sqrt(0.85) * patient.standard_normal(5) + np.sqrt(0.15) * breast.standard_normal(5))
    density = "ABCD"[int(patient.choice(4, p=(0.10, 0.40, 0.40, 0.10)))]
    low, high = DENSITIES[density]
    return Breast(
        density=density,
        gland=float(low + (high - low) * share[0]),
        depth_mm=float(52 + 42 * share[1]),
        height_mm=float(120 + 58 * share[2]),
        thickness=float(0.9 + 0.2 * share[3]),
        muscle=float(share[4]),
    )


def draw_outline(breast: Breast, view: str, rng: np.random.Generator) -> Outline:
    """Draw the skin line, the nipple and the pectoral muscle of one view (CC: symmetric; MLO: open at the top)."""
    depth, tall = breast.depth_mm, breast.height_mm
    wobble = rng.normal(0, 0.025, 6)
    if view == "CC":
        nipple, top = 100 + rng.normal(0, 5), 100 - tall / 2 + rng.normal(0, 4)
        bottom = top + tall
        rows = (
            top,
            top + 0.05 * tall,
            0.5 * (top + nipple),
            nipple,
            0.5 * (nipple + bottom),
            bottom - 0.05 * tall,
            bottom,
        )
        cols = np.array([0, 0.32 + wobble[0], 0.84 + wobble[1], 1, 0.84 + wobble[2], 0.32 + wobble[3], 0]) * depth
        muscle = (0.0, 0.0)
    else:
        bottom = min(155 + 0.25 * tall + rng.normal(0, 4), 197)
        nipple = bottom - 0.44 * tall + rng.normal(0, 4)
        waist = 0.50 + 0.20 * breast.muscle + wobble[0]
        rows = (-5, 0.25 * nipple, 0.65 * nipple, nipple, nipple + 0.6 * (bottom - nipple), bottom - 7, bottom)
        cols = (
            np.array([waist + 0.02, waist + 0.03, 0.88 + wobble[2] / 2, 1, 0.82 + wobble[3], 0.36 + wobble[4], 0])
            * depth
        )
        muscle = ((0.24 + 0.22 * breast.muscle) * depth + 8, (0.55 + 0.40 * breast.muscle) * nipple)
    return Outline(view, tuple(map(float, rows)), tuple(map(float, cols)), (float(nipple), float(depth)), muscle)


def power_law(
    rng: np.random.Generator, shape: tuple[int, int], exponent: float, lowest: float = 1.0, stretch: float = 1.0
) -> np.ndarray:
    """Gaussian random field (H, W) with power spectrum 1 / f^exponent, mean 0 and about unit variance.

    The Fourier coefficients of the lowest modes come first from the generator, so fields of two sizes (of the same
    shape in mm) differ only in fine detail.

    Args:
        rng: source of its numbers; it is left one child richer, whatever the size.
        shape: rows and columns; the field repeats itself at the edges.
        exponent: of the power spectrum.
        lowest: waves longer than 1 / lowest of the height are left out.
        stretch: how much longer the waves are along the columns than across.
    """
    rng = rng.spawn(1)[0]
    rows, cols = shape
    f_row = scipy.fft.fftfreq(rows, 1 / rows)[:, None]
    f_col = scipy.fft.rfftfreq(cols, 1 / rows)[None, :]  # both in waves per height
    f = np.hypot(f_row / np.sqrt(stretch), f_col * np.sqrt(stretch)).astype(np.float32)
    amplitude = np.where(f >= lowest, np.maximum(f, 0.5) ** np.float32(-exponent / 2), 0).astype(np.float32)
    few = SHARED_MODES // 2
    shared = rng.standard_normal((2 * few, few, 2), dtype=np.float32).view(np.complex64)[..., 0]
    noise = rng.standard_normal((*amplitude.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    noise[:few, :few], noise[-few:, :few] = shared[:few], shared[few:]
    noise *= amplitude
    power = 4 * np.sum(amplitude[:, 1:] ** 2, dtype=np.float64) + np.sum(amplitude[:, 0] ** 2, dtype=np.float64)
    return scipy.fft.irfft2(noise, s=shape, norm="forward") / np.float32(np.sqrt(power))


def rise(x: np.ndarray) -> np.ndarray:
    """Smooth step: 0 well below -1, 1/2 at 0, 1 well above 1."""
    return 0.5 + 0.5 * np.tanh(2 * x)


def lines(field: np.ndarray, width: float) -> np.ndarray:
    """Bright lines of `width` pixels (Gaussian) along the zero crossings of a field: a net of thin curves."""
    slope = np.hypot(*np.gradient(field))
    return np.exp(-((field / (slope * width + 1e-6)) ** 2))


def texture(
    rng: np.random.Generator, y: np.ndarray, x: np.ndarray, nipple: tuple[float, float]
) -> tuple[np.ndarray, ...]:
    """Four textures (H, W) that the tissue is made of: lumps, grain, strands towards the nipple, and a net of lines.

    Args:
        rng: source of its numbers.
        y: rows in mm (H, 1).
        x: columns in mm (1, W).
        nipple: its row and column in mm. Strands meet 20 mm behind it, outside the breast.
    """
    shape, pixel_mm = (y.size, x.size), float(y[1, 0] - y[0, 0])

    def noise(exponent: float, lowest: float, stretch: float = 1.0) -> np.ndarray:
        return power_law(rng, shape, exponent, lowest, stretch)

    row, col = nipple[0], nipple[1] + 20
    angle = np.arctan2(y - row, col - x) + 0.10 * noise(5.0, 1)
    polar = np.stack([(FRAME_MM / 2 + 70 * angle) / pixel_mm, np.hypot(y - row, x - col) / pixel_mm])

    def strands(exponent: float, lowest: float, stretch: float) -> np.ndarray:
        field = noise(exponent, lowest, stretch)
        return ndimage.map_coordinates(field, polar, order=1, mode="grid-wrap")

    lumps, grain, fibres = noise(3.6, 3), noise(3.1, 2), strands(3.4, 4, 1.8)
    net = 0.8 * lines(strands(5.0, 5, 2.5), 0.55 / pixel_mm) * rise(lumps + 0.4)
    net += lines(strands(4.6, 9, 2.2), 0.35 / pixel_mm) * rise(fibres + 0.2)
    net += 0.45 * lines(noise(4.8, 9), 0.35 / pixel_mm) * rise(-fibres)
    return lumps, grain, fibres, net


def build_tissue(breast: Breast, outline: Outline, rng: np.random.Generator, size: tuple[int, int]) -> Tissue:
    """Draw the tissue of one view on a grid of `size` (rows, columns); the breast fits into rows / 2 columns."""
    height, used = size[0], (size[0] + 1) // 2
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (FRAME_MM / height))[:, None]
    x = ((np.arange(used, dtype=np.float32) + 0.5) * (FRAME_MM / height))[None, :]
    row, col = outline.nipple_mm
    inside = (x < outline.skin(y)) | (np.hypot((y - row) / 4.5, (x - col) / 3.5) < 1)  # the nipple stands out
    depth = ndimage.distance_transform_edt(inside).astype(np.float32) * np.float32(FRAME_MM / height)  # from the skin
    thickness = breast.thickness * (1 - (1 - np.clip(depth / 24, 0, 1)) ** 2) ** 0.7  # thins out over 24 mm
    lumps, grain, fibres, net = texture(rng, y, x, outline.nipple_mm)

    into = outline.muscle(y) - x + 1.2 * np.sin(y / 9 + 6 * breast.muscle)  # mm from the wavy edge of the muscle
    muscle = rise(into / (2 + 2 * breast.muscle)) if outline.view == "MLO" else np.zeros_like(depth)
    pectoral = (muscle > 0.5) & inside
    middle = row - (0.06 * breast.height_mm if outline.view == "MLO" else 0)
    away = np.hypot((y - middle) / (0.40 * breast.height_mm), (x - 0.55 * col) / (0.55 * col))
    level = -2.5 * away + 0.38 * lumps + 0.40 * fibres + 0.8 * np.minimum(depth / 14, 1)
    level -= np.quantile(level[inside & ~pectoral][::7], 1 - breast.gland)  # gland where the level is above 0
    gland = rise(level / 2) * np.clip((depth - 2) / 8, 0, 1) * (1 - muscle) * min(1.0, 0.5 + 1.2 * breast.gland)

    signal = FAT * (1 + 0.06 * grain) + (GLAND - FAT) * gland * (0.90 + 0.14 * grain + 0.10 * fibres)
    signal += 0.09 * net * (0.45 + 0.55 * rise((level + 1) / 1.5))
    signal += muscle * (MUSCLE * (0.50 + 0.56 * rise(into / 40) + 0.03 * fibres) - signal)
    signal = signal * thickness + 0.03 * np.exp(-(((depth - 0.9) / 0.8) ** 2))  # the skin is a faint line
    maps = (np.where(inside, np.maximum(signal, 1e-3), 0).astype(np.float32), inside, pectoral, gland)
    margin = ((0, 0), (0, size[1] - used))
    return Tissue(*(np.pad(field, margin) for field in maps))
