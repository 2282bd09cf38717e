"""A breast with one mass, as the ultrasound beam meets it: how strongly each point scatters, and how much it absorbs.

Usage::

    mass = draw_mass(rng, label=1, strength=DEFAULT_STRENGTH)   # size, position and four cues of one mass
    scene = build_scene(mass, view=0, rng=rng, size=224)        # maps on a square grid, and the exact mask

Theory. From the skin down a breast scan shows skin, fat with bright ligaments, glandular tissue, and the pectoral
muscle. A mass replaces some of it. Four of the properties that radiologists describe (BI-RADS, 5th edition,
ultrasound) carry the diagnosis here. Each is a *cue* in [0, 1], from the benign look (0) to the malignant look (1):

    shape      oval, wider than tall, smooth contour        -> taller than wide, lobed, spiculated
    margin     sharp border, thin bright wall               -> blurred, irregular border, bright halo
    posterior  absorbs less than tissue: enhancement        -> absorbs more: shadow
    texture    homogeneous inside                           -> heterogeneous, bright specks

Rows are depth, columns are lateral position. Lengths are in mm. Levels are in decibels of amplitude
(20 log10), with glandular tissue at 0. Absorption is counted for both ways of the sound, in dB per mm of depth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse

CUES = ("shape", "margin", "posterior", "texture")
DEFAULT_STRENGTH: Mapping[str, tuple[float, float]] = dict.fromkeys(CUES, (0.40, 0.60))
TISSUE_ABSORPTION = 1.4  # dB/mm, both ways: 0.7 dB/cm/MHz in breast tissue at 10 MHz
LOBES = np.arange(2, 8)  # Fourier orders of the contour
ANGLES = np.linspace(-np.pi, np.pi, 720, endpoint=False, dtype=np.float32)


@dataclass(frozen=True)
class Mass:
    """One mass and the breast around it: what its two views share."""

    label: int  # 0 benign, 1 malignant
    cues: Mapping[str, float]  # each in [0, 1]
    diameter_mm: float  # of the disc with the area of a section, geometric mean of the two views
    axes_mm: tuple[float, float, float]  # lateral in view 0, lateral in view 1, axial
    depth_mm: float  # of its centre
    field_mm: float  # side of the square image
    contrast_db: float  # how far the mass is below the tissue around it
    lobes: tuple[float, ...]  # relative amplitude for each of LOBES
    spicules: int
    specks: int  # calcifications
    layers_mm: tuple[float, float, float]  # thickness of skin, fat and gland

    @property
    def cystic(self) -> bool:
        """Whether the mass is filled with fluid: both its texture and its posterior cue look benign."""
        return self.cues["texture"] < 0.35 and self.cues["posterior"] < 0.35


@dataclass(frozen=True)
class Scene:
    """What the scanner looks at, on a square grid; all maps are (size, size)."""

    echo_db: np.ndarray  # level of the backscatter
    absorption: np.ndarray  # dB/mm, both ways
    specks: np.ndarray  # (k, 2) row and column of calcifications
    mask: np.ndarray  # bool, the mass
    pixel_mm: float


def draw_mass(
    rng: np.random.Generator, label: int, strength: Mapping[str, tuple[float, float]], spread: float = 0.18
) -> Mass:
    """Draw one mass. Size, depth, contrast and layers have the same law in both classes: only the cues differ.

    Args:
        rng: source of all its numbers.
        label: 0 benign, 1 malignant.
        strength: mean of each cue for (benign, malignant).
        spread: standard deviation of a cue around its mean, before it is clipped to [0, 1].
    """
    cues = {cue: float(np.clip(rng.normal(strength[cue][label], spread), 0, 1)) for cue in CUES}
    diameter = float(np.clip(rng.lognormal(np.log(11.5), 0.33), 5.5, 22))
    taller = 0.45 + 0.75 * cues["shape"] + rng.uniform(-0.06, 0.06)  # axial over lateral axis
    lateral, ratio = diameter / np.sqrt(taller), np.sqrt(rng.uniform(0.85, 1.18))
    axial = lateral * taller
    skin, fat, gland = rng.uniform(1.2, 2.2), rng.uniform(2.5, 8.0), rng.uniform(10, 22)
    field = max(rng.uniform(32, 42), 1.75 * diameter + 4)  # the operator sets the depth so that the mass fits
    return Mass(
        label=label,
        cues=cues,
        diameter_mm=diameter,
        axes_mm=(lateral * ratio, lateral / ratio, axial),
        depth_mm=float(skin + 1.5 + axial / 2 + rng.gamma(3.0, 1.6)),
        field_mm=float(field),
        contrast_db=float(rng.uniform(10.5, 16.5)),
        lobes=tuple(0.13 * cues["shape"] ** 1.5 * (LOBES / 2) ** -0.8 * rng.uniform(0.4, 1.6, LOBES.size)),
        spicules=int(rng.poisson(9 * max(0.0, cues["shape"] - 0.45))),
        specks=int(rng.poisson(8 * max(0.0, cues["texture"] - 0.5))),
        layers_mm=(float(skin), float(fat), float(gland)),
    )


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]) -> np.ndarray:
    """Gaussian random field (H, W), mean 0, variance 1, with autocorrelation exp(-lag^2 / (4 sigma^2)) on each axis.

    White noise is put on a grid with one node per sigma (in pixels) and blurred with a Gaussian of that sigma; both
    steps at once are a sparse matrix product per axis, so a smooth field costs little, and the same numbers come out
    whatever the number of threads.
    """
    down, across = _blur(shape[0], sigma[0]), _blur(shape[1], sigma[1])
    noise = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
    return (across @ (down @ noise).T).T


def _blur(length: int, sigma: float) -> sparse.csr_array:
    """Matrix (length, nodes) that blurs white noise on nodes one sigma (at least one pixel) apart to unit variance."""
    sigma, spacing = max(sigma, 0.5), max(sigma, 1.0)
    nodes = np.arange(-4 * sigma, length + 4 * sigma + spacing, spacing, dtype=np.float32)
    weight = np.exp(-0.5 * ((np.arange(length, dtype=np.float32)[:, None] - nodes) / np.float32(sigma)) ** 2)
    weight[weight < 1e-3] = 0
    return sparse.csr_array(weight / np.sqrt((weight**2).sum(1, keepdims=True)))


def step(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Rise smoothly from 0 (distance far below 0) to 1 (far above); `width` in the unit of `distance`."""
    return 0.5 + 0.5 * np.tanh(distance / (2 * width))


def ridge(distance: np.ndarray, width: float) -> np.ndarray:
    """Line of height 1 where `distance` is 0, falling off as a Gaussian of the given width."""
    return np.exp(-0.5 * (distance / width) ** 2)


def contour(mass: Mass, view: int, rng: np.random.Generator) -> np.ndarray:
    """Radius in mm for each of ANGLES (0 = to the right, pi / 2 = down): an ellipse with lobes and spicules.

    The area is that of the ellipse, whatever the lobes add. The two views share the axes and the roughness; the
    phases of the lobes are drawn anew.
    """
    a, c = mass.axes_mm[view] / 2, mass.axes_mm[2] / 2
    radius = a * c / np.hypot(c * np.cos(ANGLES), a * np.sin(ANGLES))
    for order, amplitude in zip(LOBES, mass.lobes, strict=True):
        radius = radius * (1 + amplitude * np.cos(order * ANGLES + rng.uniform(0, 2 * np.pi)))
    for _ in range(mass.spicules):
        turn = np.angle(np.exp(1j * (ANGLES - rng.uniform(-np.pi, np.pi))))
        radius = radius + rng.uniform(0.1, 0.35) * np.sqrt(a * c) * ridge(turn, rng.uniform(0.04, 0.10))
    return radius * np.sqrt(a * c / np.mean(radius**2))


def place(radius: np.ndarray, row: float, col: float, field_mm: float, top: float) -> tuple[np.ndarray, float, float]:
    """Move a contour into the image and, if it is too large, shrink it; returns radius and centre in mm.

    At least 1 mm stays free on each side, and `top` mm above.
    """
    down, right = radius * np.sin(ANGLES), radius * np.cos(ANGLES)
    room = min((field_mm - 1 - top) / np.ptp(down), (field_mm - 2) / np.ptp(right), 1.0)
    down, right = down * room, right * room
    row = float(np.clip(row, top - down.min(), field_mm - 1 - down.max()))
    col = float(np.clip(col, 1 - right.min(), field_mm - 1 - right.max()))
    return radius * room, row, col


def distance_to_contour(radius: np.ndarray, down: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm along the ray from the centre (negative inside), and sine of the ray's angle; both (H, W)."""
    length = np.hypot(down, right)
    angle = np.arctan2(down, right)
    edge = np.interp(angle, ANGLES, radius.astype(np.float32), period=2 * np.pi).astype(np.float32)
    return length - edge, down / np.maximum(length, 1e-6)


def layered_tissue(mass: Mass, depth: np.ndarray, rng: np.random.Generator, size: int, pixel_mm: float) -> np.ndarray:
    """Echo level in dB (size, size) of skin, fat, gland and muscle, with wavy borders, ligaments and strands."""

    def field(axial_mm: float, lateral_mm: float) -> np.ndarray:
        return smooth_field(rng, (size, size), (axial_mm / pixel_mm, lateral_mm / pixel_mm))

    def wave(height_mm: float, length_mm: float) -> np.ndarray:
        return height_mm * smooth_field(rng, (1, size), (1.0, length_mm / pixel_mm))

    skin, fat, gland = mass.layers_mm
    below_skin = skin + wave(0.05, 4)
    below_fat = below_skin + fat + wave(0.9, 3) + wave(0.3, 1)
    below_gland = below_fat + gland + wave(1.2, 6)
    below_muscle = below_gland + 7.5 + wave(0.8, 8)
    lumps, strands = field(0.9, 1.6), field(0.22, 2.6)
    # fibres: bright, along the surface, in groups
    fibres = 11 * np.maximum(strands - 0.4, 0) * step(field(2.0, 4.0) + 0.2, 0.25)
    tissue = np.full((size, size), 5.0, np.float32)  # skin
    for border, level, width in (
        (below_skin, -9 + 1.5 * field(0.6, 1.2) + 0.7 * fibres, 0.12),
        (below_fat, 2.5 * lumps - 6 * step(field(1.2, 2.4) - 1.2, 0.1) + fibres, 0.35),
        (below_gland, -8 + 3 * strands + 0.5 * fibres, 0.2),
        (below_muscle, np.float32(-13) + 2 * lumps, 0.5),
    ):
        share = step(depth - border, width)
        tissue = tissue * (1 - share) + level * share
    ligaments = ridge(field(1.8, 3.2), 0.10) * step(depth - below_skin - 0.6, 0.3) * step(below_fat - depth, 0.5)
    fascia = 9 * ridge(depth - below_gland, 0.22) + 6 * ridge(depth - below_muscle, 0.3)
    return tissue + 10 * ligaments + fascia + 5 * ridge(depth - 0.25, 0.18) + 3 * ridge(depth - below_skin, 0.18)


def bend(image: np.ndarray, depth: np.ndarray, rng: np.random.Generator, pixel_mm: float) -> np.ndarray:
    """Shift each column up and down by a smooth field of about 2 mm, less near the skin: tissue is never flat."""
    rows, cols = np.indices(image.shape, dtype=np.float32)
    shift = 2.0 * smooth_field(rng, image.shape, (6 / pixel_mm, 7 / pixel_mm))
    shift += 0.5 * smooth_field(rng, image.shape, (2 / pixel_mm, 2 / pixel_mm))
    rows += shift / pixel_mm * step(depth - 4, 1.0)
    return ndimage.map_coordinates(image, (rows, cols), order=1, mode="nearest")


def build_scene(mass: Mass, view: int, rng: np.random.Generator, size: int = 224) -> Scene:
    """Put the mass into a layered breast and return the maps that the scanner needs.

    Args:
        mass: from `draw_mass`.
        view: 0 or 1, the two orthogonal planes through the mass.
        rng: for everything that differs between the views.
        size: rows and columns of the image.
    """
    pixel_mm = mass.field_mm / size
    axis = (np.arange(size, dtype=np.float32) + 0.5) * pixel_mm
    depth = axis[:, None]
    middle = mass.field_mm / 2 + rng.normal(0, 0.09 * mass.field_mm)
    radius, row, col = place(
        contour(mass, view, rng), mass.depth_mm + rng.normal(0, 0.5), middle, mass.field_mm, mass.layers_mm[0] + 1
    )
    distance, sine = distance_to_contour(radius, depth - row, axis[None, :] - col)
    mask = distance < 0
    margin, texture = mass.cues["margin"], mass.cues["texture"]

    # margin cue: how wide and how ragged the passage from mass to tissue is, a bright halo or a thin bright wall
    ragged = (0.03 + 0.7 * margin) * smooth_field(rng, (size, size), (0.7 / pixel_mm, 0.7 / pixel_mm))
    inside = step(-distance - ragged, 0.03 + 1.0 * margin**1.5)
    halo = 7 * margin * ridge(distance - 0.9, 0.8)
    wall = 9 * (1 - margin) ** 2 * np.abs(sine) ** 3 * ridge(distance, 0.22)  # echoes where it faces the probe

    tissue = bend(layered_tissue(mass, depth, rng, size, pixel_mm), depth, rng, pixel_mm)
    around = tissue[(distance > 0.3) & (distance < 3)].mean()
    within = around - mass.contrast_db - (12 if mass.cystic else 0)
    within = within + (0.5 + 6 * texture) * smooth_field(rng, (size, size), (0.7 / pixel_mm, 1.0 / pixel_mm))
    echo = tissue * (1 - inside) + within * inside + halo + wall

    points = np.argwhere(mask)
    specks = points[rng.integers(0, len(points), mass.specks)]
    return Scene(echo, absorption_map(mass, inside, distance, sine, rng, pixel_mm), specks, mask, pixel_mm)


def absorption_map(
    mass: Mass,
    inside: np.ndarray,
    distance: np.ndarray,
    sine: np.ndarray,
    rng: np.random.Generator,
    pixel_mm: float,
) -> np.ndarray:
    """Absorption in dB/mm, both ways (H, W). The posterior cue sets what the mass adds or leaves out.

    Across the whole height of the mass the level changes by +21 dB (cue 0) to -21 dB (cue 1) against plain tissue,
    but no medium absorbs less than nothing. A smooth round wall also bends sound away at its sides: a thin edge shadow.
    """
    change_db = 21 - 42 * mass.cues["posterior"]
    excess = max(-change_db / mass.axes_mm[2], 0.05 - TISSUE_ABSORPTION)
    uneven = 0.12 * smooth_field(rng, inside.shape, (1.5 / pixel_mm, 2 / pixel_mm))
    edge = 1.0 * (1 - mass.cues["margin"]) * (1 - sine**2) ** 4 * ridge(distance - 0.1, 0.3)
    return TISSUE_ABSORPTION + uneven + excess * inside + edge
