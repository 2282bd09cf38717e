"""Images of the phantom: any beam, noise level and margin, whole or only the pixels that a network is shown.

Usage::

    image = simulate(SCENARIOS["#1"], seed=0)                # (3654, 2323) float32 grey levels, discs darker
    image = simulate("#4", seed=0, contrast=0.5)             # discs of half the contrast, the same noise

A grey level is what `levels` says for the pixel's material; noise is white and then blurred. As in the PTB's public
simulator the exposure (mAs) is a label and noise does not depend on the signal; with ``quantum_noise=True`` it does,
and grey levels follow the exposure.

References: Amanova et al. 2022, table 1; Kretz et al., Phys. Med. 62 (2019) 120.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from xai_lib.cdmam.beam import Beam, grey_levels
from xai_lib.cdmam.geometry import THICKNESSES_UM
from xai_lib.cdmam.phantom import BACKGROUND, Detector, Phantom, build
from xai_lib.config import numpy_generator

GRID_UM = 2.5  # of gold, as dark as a grid line is; inferred
REFERENCE_MAS = 110.0
MARGINS = (0.0, 0.02, 0.04, 0.07, 0.10, 0.14)  # six sizes; the paper does not give its own


@dataclass(frozen=True)
class Scenario:
    """Settings of one image (table 1): tube voltage, exposure, noise level (of the white noise, in grey levels)."""

    name: str
    kvp: float
    mas: float
    noise: float
    beam: Beam | None = None
    detector: Detector = field(default_factory=Detector)

    def __post_init__(self) -> None:
        for name in ("mas", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")

    @property
    def rays(self) -> Beam:
        """The beam: molybdenum on molybdenum at `kvp` where no other is given."""
        return self.beam or Beam(self.kvp)


SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        name: Scenario(name, kvp, mas, noise)
        for name, kvp, mas, noise in (
            ("#1", 28, 115, 9.55),
            ("#2", 25, 110, 13.06),
            ("#3", 25, 110, 18.91),
            ("#4", 25, 110, 22.91),
            ("OOD", 23, 105, 6.04),
        )
    }
)


def scenario(which: Scenario | str) -> Scenario:
    """A scenario of table 1 by its name; a `Scenario` is returned as it is.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(which, Scenario):
        return which
    if which not in SCENARIOS:
        raise ValueError(f"scenario: {which!r} is not one of {', '.join(SCENARIOS)}")
    return SCENARIOS[which]


def levels(which: Scenario | str, contrast: float = 1.0, grid: float = 1.0) -> NDArray[np.float32]:
    """Grey levels (19,) of the background, the 16 thicknesses of gold, the grid and the writing, scatter included.

    Args:
        which: setting.
        contrast: factor on the difference of every disc to the background.
        grid: the same for grid and writing.
    """
    setting = scenario(which)
    primary = grey_levels(setting.rays, [0.0, *THICKNESSES_UM, GRID_UM, GRID_UM])
    grey = primary + setting.detector.scatter * primary[0]
    factor = np.array([0.0, *[contrast] * 16, grid, grid])
    return np.asarray(grey[0] + factor * (grey - grey[0]), np.float32)


def noise_free(phantom: Phantom, grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Image (H, W) without noise, from `levels`."""
    return grey[BACKGROUND] + phantom.coverage * (grey - grey[BACKGROUND])[phantom.classes]


def noise_sd(noise: float, detector: Detector) -> float:
    """Standard deviation of a pixel's noise, for the white noise's level as in table 1."""
    image = np.zeros((33, 33))
    image[16, 16] = white_sd(noise, detector)
    return float(np.sqrt((gaussian_filter(image, detector.noise_blur_px) ** 2).sum()))


def white_sd(noise: float, detector: Detector) -> float:
    """Standard deviation of the white noise before its blur: 2 n s sqrt(pi), so that the blurred one is about n."""
    return 2 * noise * detector.noise_blur_px * math.sqrt(math.pi)


def field_of_noise(
    shape: tuple[int, ...], noise: float, detector: Detector, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Correlated noise (H, W) of a level."""
    white = rng.standard_normal(shape, dtype=np.float32) * np.float32(white_sd(noise, detector))
    return gaussian_filter(white, detector.noise_blur_px)


def simulate(
    which: Scenario | str,
    seed: int,
    phantom: Phantom | None = None,
    contrast: float = 1.0,
    grid: float = 1.0,
    noise: float = 1.0,
    margin: float = 0.0,
    quantum_noise: bool = False,
    inverted: bool = False,
) -> NDArray[np.float32]:
    """One image of the whole phantom.

    Args:
        which: scenario, or its name in table 1.
        seed: of the noise.
        phantom: from `build`; drawn here where it is None.
        contrast: factor on the contrast of all discs.
        grid: factor on the contrast of grid and writing.
        noise: factor on the noise level.
        margin: where `phantom` is None, its margin.
        quantum_noise: grey levels follow the exposure, and the noise its square root and that of the signal; the
            scenario's level then is that of the background at 110 mAs.
        inverted: discs brighter than the background, mirrored at the background's grey level.

    Returns:
        Grey levels (H, W), discs darker unless `inverted`.

    Raises:
        ValueError: an unknown scenario, or a phantom of another detector.
    """
    setting = scenario(which)
    phantom = phantom or build(setting.detector, margin)
    if phantom.detector != setting.detector:
        raise ValueError(f"phantom: made for {phantom.detector}, the scenario has {setting.detector}")
    grey = levels(setting, contrast, grid)
    image = noise_free(phantom, grey)
    rng = numpy_generator(seed, "cdmam", setting.name)
    spread = field_of_noise(phantom.shape, setting.noise * noise, setting.detector, rng)
    if quantum_noise:
        exposure = setting.mas / REFERENCE_MAS
        spread *= np.sqrt(exposure * image / grey[BACKGROUND])
        image = image * np.float32(exposure) + spread
        middle = grey[BACKGROUND] * exposure
    else:
        image, middle = image + spread, grey[BACKGROUND]
    return np.asarray(2 * middle - image if inverted else image, np.float32)
