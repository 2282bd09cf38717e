"""A single cell as the PTB's simulator draws it: the check of our beam, scatter and noise against published images.

Usage::

    image = simulate_cell(Scenario("PTB", 25, 110, 9.7), diameter_mm=1.6, thickness_um=2.0, corner=4, seed=0)

The cell's sides are upright, its disc is 71 mm above the detector, and scattered photons follow the image's lowest
spatial frequencies instead of being the same everywhere. On a whole phantom the two differ little.

Reference: Kretz et al., Phys. Med. 62 (2019) 120, and its simulator VirtualMammography.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xai_lib.cdmam.beam import grey_levels
from xai_lib.cdmam.geometry import STEPS
from xai_lib.cdmam.phantom import add_disc
from xai_lib.cdmam.simulate import Scenario, field_of_noise
from xai_lib.config import numpy_generator

PIXELS = 146
MAGNIFICATION = 700 / 629
OFFSET_MM = 2.5
KEPT = 4  # Fourier coefficients of scatter, in each direction


def scattered(primary: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Scattered photons of an image (H, W): its first 4 x 4 Fourier coefficients, scaled to a share of its mean."""
    low = np.zeros(primary.shape, complex)
    low[:KEPT, :KEPT] = np.fft.fft2(primary)[:KEPT, :KEPT]
    slow = np.abs(np.fft.ifft2(low))
    return slow * share * primary.mean() / slow.mean()


def simulate_cell(
    setting: Scenario, diameter_mm: float, thickness_um: float, corner: int, seed: int | None
) -> NDArray[np.float32]:
    """One cell (146, 146) in grey levels, a disc in its centre and one near a corner (`geometry.STEPS`).

    Args:
        setting: beam, noise level and detector.
        diameter_mm: of both discs.
        thickness_um: of both discs, gold.
        corner: 1 upper right, 2 lower right, 3 lower left, 4 upper left.
        seed: of the noise; None draws none.

    Raises:
        ValueError: an unknown corner.
    """
    if corner not in STEPS:
        raise ValueError(f"corner: {corner!r} is not one of {', '.join(map(str, STEPS))}")
    detector = setting.detector
    scale, middle = MAGNIFICATION / detector.pixel_mm, (PIXELS - 1) / 2
    kind, coverage = np.zeros((PIXELS, PIXELS), np.uint8), np.zeros((PIXELS, PIXELS), np.float32)
    for step in ((0, 0), STEPS[corner]):
        y, x = (middle + s * OFFSET_MM * scale for s in (step[1], step[0]))
        add_disc(kind, coverage, y, x, diameter_mm / 2 * scale, 1)
    empty, gold = grey_levels(setting.rays, [0.0, thickness_um])
    primary = empty + coverage * (gold - empty)
    image = gaussian_filter(primary + scattered(primary, detector.scatter), detector.blur_px).astype(np.float32)
    if seed is None:
        return image
    return image + field_of_noise(image.shape, setting.noise, detector, numpy_generator(seed, "cell"))
