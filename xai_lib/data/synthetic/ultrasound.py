"""Synthetic breast ultrasound (B-mode) with exact masks: what a scanner makes of `tissue.Scene`.

Usage::

    dataset = load_synthetic_ultrasound(masses=100, seed=0)     # 200 cases: two orthogonal views of each mass
    only_shadow = load_synthetic_ultrasound(masses=100, strength=planted("posterior"))

Theory, one function per step: a cell of tissue holds many scatterers, so the echo field is a complex Gaussian times
the echo level (`scatterers`); the probe sees it through its point-spread function (`focus`); the envelope is what is
left when the carrier is removed, and two looks are averaged (`detect`); sound is absorbed on its way down and
back (`transmission_db`); the scanner raises the gain with depth to make up for it (`time_gain_db`), and compresses
the level to 8 bit (`log_compress`). The carrier itself is left out: it changes no statistic of the envelope.

Reference: R. F. Wagner, S. W. Smith, J. M. Sandrik, H. Lopez, Statistics of speckle in ultrasound B-scans, IEEE
Transactions on Sonics and Ultrasonics 30 (1983) 156-163. In fully developed speckle the envelope is Rayleigh
distributed: its mean over its standard deviation is sqrt(pi / (4 - pi)) = 1.91.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
import scipy.fft
import torch
from scipy import ndimage

from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, CaseDataset, boxes_from_mask
from xai_lib.data.synthetic.tissue import (
    CUES,
    DEFAULT_STRENGTH,
    TISSUE_ABSORPTION,
    Mass,
    Scene,
    build_scene,
    draw_mass,
    smooth_field,
)

VERSION = 1  # of the images; part of a data set's fingerprint
VIEWS = ("longitudinal", "transverse")
AXIAL_MM, LATERAL_MM = 0.15, 0.22  # standard deviation of the point-spread function at the focus
FOCUS_MM, FOCAL_ZONE_MM = 16.0, 11.0  # depth of the focus; distance from it at which the beam is wider by sqrt(2)
DYNAMIC_RANGE_DB = 54.0


def scatterers(echo_db: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Complex echo field (H, W): Gaussian, zero mean, with the given level in dB (mean power 10^(dB / 10))."""
    noise = rng.standard_normal((*echo_db.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    return noise * np.exp(echo_db.astype(np.float32) * np.float32(np.log(10) / 20)) * np.float32(np.sqrt(0.5))


def beam_width(depth_mm: np.ndarray) -> np.ndarray:
    """Lateral standard deviation of the beam in mm: narrowest at the focus, a hyperbola around it (Gaussian beam)."""
    return LATERAL_MM * np.sqrt(1 + ((depth_mm - FOCUS_MM) / FOCAL_ZONE_MM) ** 2)


def focus(field: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Blur a complex field (H, W) with the point-spread function; the power of plain speckle stays the same.

    Axially a fixed Gaussian. Laterally a Gaussian whose width changes with depth: row by row a multiplication in
    the Fourier domain (so the left and right ends of a row touch). Nothing scatters above or below the image.
    """
    rows, cols = field.shape
    field = ndimage.gaussian_filter1d(field, AXIAL_MM / pixel_mm, axis=0, mode="constant")
    field = field * np.float32(np.sqrt(2 * np.sqrt(np.pi) * AXIAL_MM / pixel_mm))
    width = beam_width((np.arange(rows)[:, None] + 0.5) * pixel_mm) / pixel_mm
    transfer = np.exp(-2 * (np.pi * scipy.fft.fftfreq(cols)[None, :] * width) ** 2)
    transfer /= np.sqrt((transfer**2).mean(1, keepdims=True))
    return scipy.fft.ifft(scipy.fft.fft(field, axis=1) * transfer.astype(np.float32), axis=1)


def detect(scene: Scene, rng: np.random.Generator, looks: int = 2) -> np.ndarray:
    """Power of the envelope (H, W), averaged over independent `looks` (spatial compounding), slightly smoothed.

    Raw speckle has more black dots than a scanner shows; compounding and smoothing fill them.
    """
    power = np.zeros(scene.echo_db.shape, np.float32)
    bright = 10 ** (rng.uniform(14, 24, len(scene.specks)) / 20)
    for _ in range(looks):
        field = scatterers(scene.echo_db, rng)
        field[scene.specks[:, 0], scene.specks[:, 1]] += bright
        power += np.abs(focus(field, scene.pixel_mm)) ** 2 / looks
    return ndimage.gaussian_filter(power, (0.08 / scene.pixel_mm, 0.14 / scene.pixel_mm))


def transmission_db(absorption: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Level change in dB (<= 0) at each pixel centre: minus the path integral of the absorption from the probe down.

    Args:
        absorption: (H, W), dB/mm for both ways.
        pixel_mm: height of a pixel.
    """
    return -(np.cumsum(absorption, axis=0) - absorption / 2) * pixel_mm


def time_gain_db(depth_mm: np.ndarray, fade: float) -> np.ndarray:
    """Gain in dB that the scanner adds with depth: what plain tissue absorbs, less `fade` dB/mm beyond 5 mm."""
    return TISSUE_ABSORPTION * depth_mm - fade * np.maximum(depth_mm - 5, 0)


def log_compress(level_db: np.ndarray, white_db: float) -> np.ndarray:
    """Map a level in dB to 8 bit: `white_db` and above is 255, `DYNAMIC_RANGE_DB` below it and less is 0."""
    grey = 255 * (1 + (level_db - white_db) / DYNAMIC_RANGE_DB)
    return np.round(np.clip(grey, 0, 255)).astype(np.uint8)


def scan(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """B-mode image (H, W), uint8, of a scene, with the gain an operator would choose."""
    size = scene.echo_db.shape[0]
    depth = ((np.arange(size, dtype=np.float32) + 0.5) * scene.pixel_mm)[:, None]
    path = transmission_db(scene.absorption, scene.pixel_mm)
    path = ndimage.gaussian_filter1d(path, 0.6 / scene.pixel_mm, axis=1)  # the beam has a width
    contact = 2.2 * smooth_field(rng, (1, size), (1.0, 3 / scene.pixel_mm))  # lateral bands: coupling to the skin
    electronic = 10 ** (-5.0) * np.abs(focus(scatterers(np.zeros_like(scene.echo_db), rng), scene.pixel_mm)) ** 2
    received = detect(scene, rng) * 10 ** ((path + contact) / 10)
    gain = time_gain_db(depth, fade=rng.uniform(0.15, 0.6))
    level = 10 * np.log10(received * 10 ** (gain / 10) + electronic * 10 ** (0.3 * (depth - 10) / 10) + 1e-12)
    grey_of_median = np.clip(rng.normal(84, 20), 45, 125)
    white = np.median(level) + DYNAMIC_RANGE_DB * (1 - grey_of_median / 255)
    return log_compress(level, float(white))


def simulate(mass: Mass, view: int, rng: np.random.Generator, size: int = 224) -> tuple[np.ndarray, np.ndarray, float]:
    """One view of one mass: image (size, size) uint8, mask (size, size) bool, side of a pixel in mm."""
    scene = build_scene(mass, view, rng, size)
    return scan(scene, rng), scene.mask, scene.pixel_mm


def planted(cue: str, low: float = 0.1, high: float = 0.9) -> dict[str, tuple[float, float]]:
    """Strengths with which only `cue` separates the classes; the other three have the same law in both.

    Raises:
        ValueError: `cue` is not one of shape, margin, posterior, texture.
    """
    if cue not in CUES:
        raise ValueError(f"cue: {cue!r} is unknown, expected one of {', '.join(CUES)}")
    return {name: (low, high) if name == cue else (0.5, 0.5) for name in CUES}


def load_synthetic_ultrasound(
    masses: int = 100,
    seed: int = 0,
    size: int = 224,
    strength: Mapping[str, tuple[float, float]] | None = None,
    prevalence: float = 123 / 272,
    spread: float = 0.18,
) -> CaseDataset:
    """A lazy data set of `2 * masses` images; cases 2 i and 2 i + 1 are the two views of mass i.

    Mass i depends on the seed and on i, not on how many masses there are. The table has columns for the four cues,
    `diameter_mm` and `mass` (i) beside the usual ones.

    Args:
        masses: how many masses, each with a longitudinal and a transverse view and its own patient.
        seed: of everything.
        size: rows and columns of an image.
        strength: mean of each cue for (benign, malignant), each in [0, 1]; a cue left out has its default.
        prevalence: fraction of malignant masses; the default is that of the paper's 272 masses (sec. 2.1). Among
            the first n masses the count is within one of n times this.
        spread: standard deviation of a cue within a class.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    strength = _checked(masses, size, strength, prevalence, spread)
    start = numpy_generator(seed, "label").random()
    labels = np.diff(np.floor(np.arange(masses + 1) * prevalence + start)).astype(int)
    rows = []
    for i, label in enumerate(labels):
        mass = draw_mass(numpy_generator(seed, "mass", i), int(label), strength, spread)
        for view in VIEWS:
            name = f"mass-{i:05d}"
            row = {"source": f"synthetic_ultrasound/{name}-{view}", "label": int(label), "patient_id": name}
            rows.append(row | {"view": view, "mass": i, "diameter_mm": mass.diameter_mm} | dict(mass.cues))
    parameters = {"seed": seed, "size": size, "strength": strength, "prevalence": prevalence, "spread": spread}
    parameters["generator"] = VERSION
    read = partial(_read, seed=seed, size=size, strength=strength, spread=spread)
    return CaseDataset("synthetic_ultrasound", pd.DataFrame(rows), read, parameters=parameters)


def _checked(
    masses: int, size: int, strength: Mapping[str, tuple[float, float]] | None, prevalence: float, spread: float
) -> dict[str, tuple[float, float]]:
    """Refuse arguments out of range; return the strength of every cue."""
    if masses < 1:
        raise ValueError(f"masses: {masses} is below 1")
    if size < 64:
        raise ValueError(f"size: {size} is below 64 pixels, too small to show a mass")
    if not 0 <= prevalence <= 1:
        raise ValueError(f"prevalence: {prevalence} is outside [0, 1]")
    if not spread >= 0:
        raise ValueError(f"spread: {spread} is below 0")
    for cue, pair in (strength or {}).items():
        if cue not in CUES:
            raise ValueError(f"strength: {cue!r} is not a cue, expected some of {', '.join(CUES)}")
        if len(pair) != 2 or not all(0 <= value <= 1 for value in pair):
            raise ValueError(f"strength: {cue!r} has {pair!r}, expected (benign, malignant), each in [0, 1]")
    return {cue: (float(low), float(high)) for cue, (low, high) in {**DEFAULT_STRENGTH, **(strength or {})}.items()}


def _read(row: pd.Series, seed: int, size: int, strength: Mapping[str, tuple[float, float]], spread: float) -> Case:
    """Generate the case of one row of the table."""
    i, label = int(row["mass"]), int(row["label"])
    mass = draw_mass(numpy_generator(seed, "mass", i), label, strength, spread)
    view = VIEWS.index(row["view"])
    image, mask, pixel_mm = simulate(mass, view, numpy_generator(seed, "view", i, view), size)
    return Case(
        image=torch.from_numpy(image[None].astype(np.float32) / 255),
        label=label,
        mask=torch.from_numpy(mask),
        boxes=boxes_from_mask(mask),
        pixel_mm=pixel_mm,
        patient_id=row["patient_id"],
        view=row["view"],
        source=row["source"],
    )
