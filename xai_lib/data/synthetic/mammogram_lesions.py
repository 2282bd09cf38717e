"""Masses and microcalcifications, and their insertion into any mammogram, real or synthetic.

Usage::

    lesion = draw_lesion(rng, "malignant", radius_mm=7, pixel_mm=0.2)
    place = places(image, breast, radius_px=35, n=1, rng=rng)[0]          # row, column
    inserted = insert_lesion(image, breast, lesion, place, contrast=0.2)  # .image, .mask, .support

Theory. A lesion adds its own attenuation to the *signal* s, the sum along the beam (see `mammogram_tissue`). The film
turns it into grey, a = 1 - exp(-2 s), so a lesion of signal d changes grey a into 1 - (1 - a) exp(-2 d): much in fat,
little in tissue that is white already. The generator and `insert_lesion` share this law. Radiologists (BI-RADS)
describe a benign mass as round or oval with a sharp, smooth margin and a malignant one as irregular, with a blurred
margin and spicules: thin lines that radiate from it. Its mask is the body without the spicules, as an annotated box
has it.

Reference: Sam-Millan (2023), sec. 4.3, one lesion painted into a normal mammogram by a diffusion model; here the
image before is known, so the pair differs in the lesion alone.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, special

FILM = 2.0  # grey = 1 - exp(-FILM * signal)
KINDS = ("benign", "malignant")
REACH = 3.0  # nothing of a lesion lies further from its centre than this many radii


@dataclass(frozen=True)
class Lesion:
    """A lesion on a square of pixels (n, n), n odd, its centre in the middle."""

    mass: np.ndarray  # float32, signal of mass and spicules per unit of contrast: about 1 in the middle
    specks: np.ndarray  # float32, signal of microcalcifications, whatever the contrast
    mask: np.ndarray  # bool, body of the mass

    def signal(self, contrast: float) -> np.ndarray:
        """What the lesion adds to the signal (n, n)."""
        return np.float32(contrast) * self.mass + self.specks


@dataclass(frozen=True)
class Inserted:
    """An image with a lesion; outside `support` it equals the image before, to the bit. All (H, W)."""

    image: np.ndarray  # float32
    mask: np.ndarray  # bool, body of the mass
    support: np.ndarray  # bool, where lesion, spicules or microcalcifications are


def film(signal: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """Grey value in [0, 1) of a signal >= 0."""
    return -np.expm1(np.float32(-FILM * gain) * signal)


def draw_lesion(
    rng: np.random.Generator, kind: str, radius_mm: float, pixel_mm: float, calcifications: bool = False
) -> Lesion:
    """Draw one lesion. The same generator state gives the same lesion at every pixel size.

    Args:
        rng: source of its numbers.
        kind: "benign" or "malignant".
        radius_mm: of the disc with about the area of the mass.
        pixel_mm: side of a pixel.
        calcifications: add a cluster of microcalcifications.

    Raises:
        ValueError: the kind is unknown, or a length is not above 0.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: {kind!r} is unknown, expected one of {', '.join(KINDS)}")
    for name, value in (("radius_mm", radius_mm), ("pixel_mm", pixel_mm)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name}: {value} is not a length above 0")
    malignant = kind == "malignant"
    stretch, turn = rng.uniform(1.0, 1.2), rng.uniform(0, np.pi)
    orders = np.arange(2, 11 if malignant else 4)
    size = (0.16 if malignant else 0.03) * (orders / 2) ** -0.9
    amplitudes, phases = size * rng.uniform(0.3, 1.3, orders.size), rng.uniform(0, 2 * np.pi, orders.size)

    half = int(np.ceil(REACH * radius_mm / pixel_mm)) + 1
    axis = np.arange(-half, half + 1, dtype=np.float32) * np.float32(pixel_mm / radius_mm)  # in radii
    y, x = axis[:, None], axis[None, :]
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    away, angle = np.hypot(along / stretch, across * stretch), np.arctan2(across, along)
    edge = np.ones_like(away)
    for order, amplitude, phase in zip(orders, amplitudes, phases, strict=True):
        edge += amplitude * np.cos(order * angle + phase)
    edge = np.maximum(edge, 0.4)
    blur = 0.24 if malignant else 0.4 / radius_mm  # of the margin, in radii
    body = 0.5 - 0.5 * np.tanh((away - edge) / blur)
    chord = np.sqrt(np.maximum(1 - (away / (1.15 * edge)) ** 2, 0))  # a ball is thickest in its middle
    mass = body * (0.35 + 0.65 * chord)
    if malignant:
        mass = mass + (1 - mass) * 0.5 * _spicules(rng, y, x, radius_mm, pixel_mm)
    specks = _specks(rng, y, x, radius_mm, pixel_mm) if calcifications else np.zeros_like(mass)
    return Lesion(_finite(mass), _finite(specks), away <= edge)


def _spicules(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, radius_mm: float, pixel_mm: float) -> np.ndarray:
    """Thin, slightly bent lines that leave the mass and taper off; coordinates in radii."""
    found = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for _ in range(int(rng.integers(14, 31))):
        start, bend, reach = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.1), rng.uniform(1.3, 2.8)
        width = rng.uniform(0.25, 0.6) / radius_mm
        sine, cosine = np.float32(np.sin(start)), np.float32(np.cos(start))
        along = sine * y + cosine * x
        across = cosine * y - sine * x - np.float32(bend) * along * (along - 1)
        taper = np.clip((reach - along) / (reach - 0.6), 0, 1) * (along > 0.4)
        wide = np.float32(width) * (0.5 + taper)
        seen = np.hypot(wide, np.float32(0.4 * pixel_mm / radius_mm))  # no line is thinner than a pixel
        np.maximum(found, taper * wide / seen * np.exp(-((across / seen) ** 2)), out=found)
    return found


def _specks(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, radius_mm: float, pixel_mm: float) -> np.ndarray:
    """A cluster of 6 to 17 microcalcifications of 0.3 to 0.8 mm; coordinates in radii."""
    found = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for _ in range(int(rng.integers(6, 18))):
        row, col = rng.normal(0, 0.5, 2)
        found += speck((y - row) * radius_mm, (x - col) * radius_mm, pixel_mm, (0.15, 0.4), rng)
    return found


def speck(
    down_mm: np.ndarray, right_mm: np.ndarray, pixel_mm: float, radius_mm: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Signal of one calcification at the origin, on a grid of coordinates (H, 1) and (1, W) in mm.

    It is a Gaussian spot averaged over each pixel, so that small ones fade in large pixels.
    """
    sigma, strength = rng.uniform(*radius_mm) / 2, rng.uniform(0.3, 0.9)

    def profile(away: np.ndarray) -> np.ndarray:
        inside = special.ndtr((away + pixel_mm / 2) / sigma) - special.ndtr((away - pixel_mm / 2) / sigma)
        return np.sqrt(2 * np.pi) * sigma / pixel_mm * inside

    return strength * profile(down_mm) * profile(right_mm)


def _finite(field: np.ndarray, floor: float = 0.02) -> np.ndarray:
    """Take the endless faint tail off a field without a step: what is below `floor` becomes 0."""
    return (np.maximum(field - floor, 0) / (1 - floor)).astype(np.float32)


def paste(patch: np.ndarray, shape: tuple[int, int], centre: tuple[int, int]) -> np.ndarray:
    """Put a square patch (n, n), n odd, on an empty image of `shape` with its middle at `centre`; cut at the edges."""
    image = np.zeros(shape, patch.dtype)
    half = len(patch) // 2
    spans = [(max(c - half, 0), min(c + half + 1, size)) for c, size in zip(centre, shape, strict=True)]
    (r0, r1), (c0, c1) = spans
    image[r0:r1, c0:c1] = patch[
        r0 - centre[0] + half : r1 - centre[0] + half, c0 - centre[1] + half : c1 - centre[1] + half
    ]
    return image


def insert_lesion(
    image: np.ndarray, breast: np.ndarray, lesion: Lesion, place: tuple[int, int], contrast: float
) -> Inserted:
    """Insert a lesion into a mammogram; what lies outside the breast is cut off.

    The lesion's signal is added under the film law. The film's shoulder would make the mass smoother than the tissue
    around it, so 0.6 of the fine texture (what a blur of 6 pixels removes) that it takes away is given back.

    Args:
        image: (H, W), in [0, 1].
        breast: (H, W), bool.
        lesion: from `draw_lesion`, drawn for the pixel size of the image.
        place: row and column of its centre.
        contrast: signal in the middle of the mass; grey a becomes 1 - (1 - a) exp(-2 contrast) there.

    Raises:
        ValueError: shapes differ, the image is not in [0, 1], the place is outside the breast, or the contrast is not
            above 0.
    """
    image = _checked(image, breast)
    row, col = (int(value) for value in place)
    if not (0 <= row < image.shape[0] and 0 <= col < image.shape[1] and breast[row, col]):
        raise ValueError(
            f"place: {(row, col)} is outside the breast of an image of {image.shape[0]} x {image.shape[1]}"
        )
    if not 0 < contrast < np.inf:
        raise ValueError(f"contrast: {contrast} is not above 0")
    added = paste(lesion.signal(contrast), image.shape, (row, col)) * breast
    share = -np.expm1(-np.float32(FILM) * added)  # of the way to white
    texture = image - ndimage.gaussian_filter(image, 6)
    out = np.clip(image + share * (1 - image + 0.6 * texture), 0, 1).astype(np.float32)
    return Inserted(out, paste(lesion.mask, image.shape, (row, col)) & breast, added > 0)


def places(
    image: np.ndarray,
    breast: np.ndarray,
    radius_px: float,
    n: int,
    rng: np.random.Generator,
    grey: tuple[float, float] = (0.35, 0.72),
    top: float = 0.3,
) -> np.ndarray:
    """Random places (n, 2), row and column, where a lesion of this radius can be inserted.

    A place is further than 1.6 radii from the background and from the image's edges, below the upper part of the
    breast (in an MLO view the pectoral muscle is there), and its surroundings are neither black nor white.

    Args:
        image: (H, W), in [0, 1].
        breast: (H, W), bool.
        radius_px: of the mass.
        n: how many, drawn without replacement.
        rng: source of the choice.
        grey: lowest and highest mean of the image around the place (Gaussian of one radius).
        top: share of the rows of the image that are left out at the top.

    Raises:
        ValueError: shapes differ, an argument is out of range, or fewer than `n` pixels are admissible.
    """
    image = _checked(image, breast)
    if not radius_px > 0 or n < 1:
        raise ValueError(f"radius_px, n: {radius_px} and {n}, expected a radius above 0 and at least one place")
    depth = ndimage.distance_transform_edt(np.pad(breast, 1))[1:-1, 1:-1]
    around = ndimage.gaussian_filter(image, radius_px)
    good = (depth > 1.6 * radius_px) & (around > grey[0]) & (around < grey[1])
    good[: round(top * len(good))] = False
    found = np.argwhere(good)
    if len(found) < n:
        raise ValueError(f"n: {n} places asked for, but only {len(found)} pixels admit a radius of {radius_px} pixels")
    return found[rng.choice(len(found), n, replace=False)]


def _checked(image: np.ndarray, breast: np.ndarray) -> np.ndarray:
    """The image as float32, or why not."""
    image = np.asarray(image, np.float32)
    if image.ndim != 2 or image.shape != np.shape(breast):
        raise ValueError(f"image, breast: shapes {image.shape} and {np.shape(breast)} differ, expected the same (H, W)")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(f"image: values from {image.min()} to {image.max()}, expected [0, 1]")
    return image
