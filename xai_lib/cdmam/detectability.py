"""How likely the observer is to find a disc: one table per diameter, for every beam and noise level.

Usage::

    p = probabilities("#1")                                  # (16, 16), 0 where there is no cell
    p = probabilities("#1", contrast=0.5)

The observer (`observer.detect`) smooths the image, takes the darkest value near each of four corners, and picks the
darkest corner. The chain from gold to smoothed value is linear and the noise does not depend on the signal, so the
chance that it is right depends only on the disc's diameter and on its depth in units of the noise level. `table` finds
it by simulation, once per detector.

Reference: European Guidelines, 4th edition (2013), automated readout; the observer after MedPhysQC/MG_CDMAM.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xai_lib.cdmam.geometry import CELLS, DIAMETERS_MM
from xai_lib.cdmam.phantom import BACKGROUND, GRID, Detector, add_disc
from xai_lib.cdmam.simulate import Scenario, levels, scenario, white_sd
from xai_lib.config import numpy_generator

SEARCH_MM = 0.25  # the observer looks this far around each corner
DEPTHS = np.geomspace(0.003, 60, 60)  # depth of a disc over the noise level
FIELDS = 800  # of noise, per diameter


def smoothing_px(radius_px: float) -> float:
    """Standard deviation of the observer's smoothing for a disc: half its radius, at least 1.5 pixels."""
    return max(1.5, radius_px / 2)


@cache
def table(detector: Detector, seed: int = 0) -> NDArray[np.float64]:
    """Chance (16, 60) that a disc of each diameter and each of `DEPTHS` is found among four corners.

    The disc's centre lies on a pixel. Fields of noise are the same for all depths, so the chance rises smoothly.
    """
    rng = numpy_generator(seed, "detectability")
    found = np.empty((len(DIAMETERS_MM), len(DEPTHS)))
    reach = SEARCH_MM * detector.px_per_mm
    for i, diameter in enumerate(DIAMETERS_MM):
        radius = diameter / 2 * detector.px_per_mm
        smooth = smoothing_px(radius)
        half = int(reach + 4 * smooth + radius + 8)
        classes, disc = np.zeros((2 * half + 1,) * 2, np.uint8), np.zeros((2 * half + 1,) * 2, np.float32)
        add_disc(classes, disc, half, half, radius, 1)
        near = np.hypot(*np.mgrid[-half : half + 1, -half : half + 1]) < reach
        signal = gaussian_filter(gaussian_filter(disc, detector.blur_px), smooth)[near]
        crop = int(reach + 4 * smooth + 4)  # noise needs no room for the disc
        inner = np.hypot(*np.mgrid[-crop : crop + 1, -crop : crop + 1]) < reach
        spread = np.hypot(detector.noise_blur_px, smooth)
        white = white_sd(1.0, detector)
        fields = [
            gaussian_filter(
                rng.standard_normal((FIELDS, 2 * crop + 1, 2 * crop + 1), dtype=np.float32) * np.float32(white),
                (0, spread, spread),
                mode="wrap",
            )[:, inner]
            for _ in range(4)
        ]
        empty = np.min([field.min(1) for field in fields[1:]], 0)
        found[i] = [((fields[0] - depth * signal).min(1) < empty).mean() for depth in DEPTHS]
    return found


def probabilities(
    which: Scenario | str, contrast: float = 1.0, noise: float = 1.0, seed: int = 0
) -> NDArray[np.float64]:
    """Chance (16, 16) that the observer finds the disc of each cell, 0 where there is no cell.

    Args:
        which: scenario, or its name.
        contrast: factor on the discs' contrast.
        noise: factor on the noise level.
        seed: of the table.
    """
    setting = scenario(which)
    grey = levels(setting, contrast)
    depths = (grey[BACKGROUND] - grey[1:GRID]) / (setting.noise * noise)
    chance = [np.interp(np.log(depths), np.log(DEPTHS), row) for row in table(setting.detector, seed)]
    return np.asarray(chance) * CELLS
