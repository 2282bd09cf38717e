"""Synthetic regions of interest with a benign or malignant mass and confounders that can be tied to the label.

Usage::

    cases = load_synthetic_masses(patients=100, seed=0)                    # 200 ROIs: 100 masses, CC and MLO
    train = load_synthetic_masses(calcification_correlation=0.8)           # calcifications hint at malignancy
    test = load_synthetic_masses(calcification_correlation=-0.8)           # the same masses, the hint turned round
    clean = load_synthetic_masses(calcifications=0, dense=0, noise=0)      # the same masses without confounders
    where = confounders(train, 0)                                          # exact masks of what case 0 has

Theory. As in `mammogram`, a ROI shows the film's answer to the sum of attenuation along the beam: tissue with the
spectrum of a breast, a mass in the middle, confounders, then quantum noise. Three traits make a mass look benign
(round, sharp, no spicules) or malignant (lobed, blurred, spiculated). A trait is the cumulative probability of a normal
number with unit variance and mean -d / 2 (benign) or d / 2, d being `separation`. The three are independent given the
class, so who knows them all has an AUC of Phi(sqrt(3 / 2) d): 0.986 for the default. Size, place, contrast and tissue
do not know the label.

A confounder is on a share p of the ROIs, and its correlation r with the label is the phi coefficient: where m is the
share of malignant masses, it is on p + r sqrt(p (1 - p) (1 - m) / m) of these. Tissue, mass, each confounder and the
noise of the film have their own random numbers: switching one confounder leaves all else as it was.

Reference: Li et al., An interpretable CNN-based model for mass classification in mammography, Knowledge-Based Systems
316 (2025) 113372, sec. 5.1.2 and Fig. 7: fine-tuned networks look at microcalcifications, salt and pepper noise and
dense tissue.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage, special
from torch import Tensor

from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, CaseDataset, boxes_from_mask
from xai_lib.data.synthetic.mammogram import expose
from xai_lib.data.synthetic.mammogram_lesions import speck
from xai_lib.data.synthetic.mammogram_tissue import FAT, GLAND, VIEWS, lines, power_law, rise

VERSION = 1  # of the images; part of a data set's fingerprint
NAME = "synthetic_masses"
TRAITS = ("irregular", "blurred", "spiculated")
CONFOUNDERS = ("calcifications", "dense", "noise")
RADIUS_MM = (5.0, 9.0)
CONTRAST = (0.26, 0.46)  # signal in the middle of a mass


@dataclass(frozen=True)
class Confounders:
    """Where the confounders of a ROI are; each (H, W), bool, without a pixel where there is none."""

    calcifications: Tensor
    dense: Tensor
    noise: Tensor


def load_synthetic_masses(
    patients: int = 100,
    seed: int = 0,
    size: int = 128,
    side_mm: float = 36.0,
    malignant: float = 0.5,
    separation: float = 1.8,
    calcifications: float = 0.5,
    calcification_correlation: float = 0.0,
    dense: float = 0.5,
    dense_correlation: float = 0.0,
    noise: float = 0.25,
    noise_correlation: float = 0.0,
    shift_mm: float = 0.0,
    view: str | None = None,
    twins: bool = False,
) -> CaseDataset:
    """A lazy data set of ROIs: one mass per patient, seen in two views (or in one).

    A ROI depends on the seed, the patient's number and the other arguments, not on how many patients there are. Beside
    the usual columns the table has patient, kind (benign, malignant), the traits irregular, blurred and spiculated in
    [0, 1], the flags calcifications, dense and noise, radius_mm and contrast.

    Args:
        patients: how many.
        seed: of everything.
        size: rows and columns of a ROI, at least 64.
        side_mm: side of a ROI.
        malignant: share of the malignant masses.
        separation: distance d of the classes in each trait, in standard deviations; 0 makes the label a coin toss.
        calcifications: share of the ROIs with a cluster of microcalcifications beside the mass.
        calcification_correlation: of this flag with the label, in [-1, 1].
        dense: share of the ROIs with a patch of dense tissue that reaches the mass.
        dense_correlation: as above.
        noise: share of the ROIs with salt and pepper noise.
        noise_correlation: as above.
        shift_mm: distance of the mass from the middle, in a random direction.
        view: "CC", "MLO", or None for both.
        twins: leave every mass out, and keep label and confounders: what a network still knows then is a shortcut.

    Raises:
        ValueError: an argument is out of range, or a correlation is not possible with these shares.
    """
    shares = {"calcifications": calcifications, "dense": dense, "noise": noise}
    ties = {"calcifications": calcification_correlation, "dense": dense_correlation, "noise": noise_correlation}
    _check(patients, size, side_mm, malignant, separation, shift_mm, view)
    odds = {name: _shares(name, shares[name], ties[name], malignant) for name in CONFOUNDERS}
    parameters: dict[str, Any] = {"size": int(size), "side_mm": float(side_mm), "malignant": malignant, "view": view}
    parameters |= {"separation": separation, "shift_mm": float(shift_mm), "odds": odds}
    parameters |= {"seed": seed, "twins": bool(twins), "generator": VERSION}
    start = numpy_generator(seed, "label").random()
    labels = np.diff(np.floor(np.arange(patients + 1) * malignant + start)).astype(int)
    rows = [row for patient, label in enumerate(labels) for row in _rows(parameters, patient, int(label))]
    return CaseDataset(NAME, pd.DataFrame(rows), partial(_read, parameters=parameters), parameters=parameters)


def confounders(cases: CaseDataset, index: int) -> Confounders:
    """Exact masks of the confounders of one case of a synthetic set.

    Raises:
        ValueError: the cases are not synthetic masses.
    """
    if cases.name != NAME:
        raise ValueError(f"cases: {cases.name!r} has no known confounders, expected {NAME!r}")
    parts = _draw(cases.table.iloc[index], cases.parameters)
    return Confounders(*(torch.from_numpy(mask) for mask in (parts.specks > 0.05, parts.dense > 0.15, parts.dots != 0)))


@dataclass(frozen=True)
class _Parts:
    """What a ROI is made of; each (n, n)."""

    tissue: np.ndarray  # signal
    mass: np.ndarray  # signal
    mask: np.ndarray  # bool, body of the mass
    specks: np.ndarray  # signal
    dense: np.ndarray  # signal
    dots: np.ndarray  # 1 salt, -1 pepper, 0 neither


def _rows(parameters: Mapping[str, Any], patient: int, label: int) -> Iterator[dict[str, object]]:
    """The table's rows of one patient. Noise is drawn for each image, the rest belongs to the breast."""
    seed, odds, name = parameters["seed"], parameters["odds"], f"patient-{patient:05d}"
    rng = numpy_generator(seed, "mass", patient)
    radius, contrast = rng.uniform(*RADIUS_MM), rng.uniform(*CONTRAST)
    traits = special.ndtr((label - 0.5) * parameters["separation"] + rng.standard_normal(len(TRAITS)))
    for view in VIEWS if parameters["view"] is None else (parameters["view"],):
        keys = {"calcifications": (patient,), "dense": (patient,), "noise": (patient, view)}
        dice = {kind: numpy_generator(seed, "has", kind, *key).random() for kind, key in keys.items()}
        source = f"{NAME}/{name}-{view}" + ("-twin" if parameters["twins"] else "")
        yield {"source": source, "label": label, "patient_id": name, "view": view, "patient": patient} | {
            "kind": "malignant" if label else "benign",
            **dict(zip(TRAITS, map(float, traits), strict=True)),
            **{kind: bool(dice[kind] < odds[kind][label]) for kind in CONFOUNDERS},
            "radius_mm": radius,
            "contrast": contrast,
        }


def _read(row: pd.Series, parameters: Mapping[str, Any]) -> Case:
    """Generate the case of one row of the table."""
    parts = _draw(row, parameters)
    pixel_mm = parameters["side_mm"] / parameters["size"]
    rng = numpy_generator(parameters["seed"], "film", int(row["patient"]), row["view"])
    image = expose(parts.tissue + parts.mass + parts.specks + parts.dense, pixel_mm, rng)
    image = np.where(parts.dots == 0, image, parts.dots > 0).astype(np.float32)
    return Case(
        image=torch.from_numpy(image)[None],
        label=int(row["label"]),
        mask=torch.from_numpy(parts.mask),
        boxes=boxes_from_mask(parts.mask),
        pixel_mm=pixel_mm,
        patient_id=row["patient_id"],
        view=row["view"],
        source=row["source"],
    )


def _draw(row: pd.Series, parameters: Mapping[str, Any]) -> _Parts:
    """Everything in the ROI of one row of the table; every part has its own random numbers."""
    size, side, shift = parameters["size"], parameters["side_mm"], parameters["shift_mm"]
    axis = (((np.arange(size) + 0.5) / size - 0.5) * side).astype(np.float32)  # mm from the middle

    def rng(part: str) -> np.random.Generator:
        return numpy_generator(parameters["seed"], part, int(row["patient"]), row["view"])

    angle = rng("shift").uniform(0, 2 * np.pi)
    y, x = (axis - np.float32(shift * np.sin(angle)))[:, None], (axis - np.float32(shift * np.cos(angle)))[None, :]
    nothing, radius = np.zeros((size, size), np.float32), row["radius_mm"]
    signal, mask = (nothing, nothing > 0) if parameters["twins"] else _mass(row, y, x, side / size, rng("shape"))
    return _Parts(
        tissue=_tissue(size, side, rng("tissue")),
        mass=signal,
        mask=mask,
        specks=_specks(radius, y, x, rng("calcifications")) if row["calcifications"] else nothing,
        dense=_dense(radius, y, x, rng("dense")) if row["dense"] else nothing,
        dots=_dots(size, rng("noise")) if row["noise"] else nothing,
    )


def _tissue(size: int, side_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Signal (n, n) of fatty tissue with some gland, strands that run in one direction and a net of thin septa."""
    shape, pixel_mm = (size, size), side_mm / size
    turn, level = rng.uniform(0, np.pi), rng.normal(-1.0, 0.5)
    rows, cols = np.mgrid[:size, :size].astype(np.float32) - np.float32(size / 2)
    turned = np.stack([np.cos(turn) * rows - np.sin(turn) * cols, np.sin(turn) * rows + np.cos(turn) * cols])
    lumps, grain = power_law(rng, shape, 3.4), power_law(rng, shape, 3.0)
    fibres, strands = (
        ndimage.map_coordinates(power_law(rng, shape, *law), turned, order=1, mode="grid-wrap")
        for law in ((3.2, 1.0, 2.0), (4.6, 3.0, 2.5))
    )
    gland = rise(0.7 * (level + 0.8 * lumps + 0.5 * fibres))
    signal = FAT * (1 + 0.08 * grain) + 0.5 * (GLAND - FAT) * gland * (0.9 + 0.2 * grain + 0.14 * fibres)
    return np.maximum(signal + 0.07 * lines(strands, 0.4 / pixel_mm) * rise(lumps + 0.3), 1e-3).astype(np.float32)


def _mass(
    row: pd.Series, y: np.ndarray, x: np.ndarray, pixel_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Signal and body (n, n) of the mass at the origin, as its traits have it; coordinates in mm."""
    radius = row["radius_mm"]
    y, x = y / np.float32(radius), x / np.float32(radius)  # in radii
    stretch, turn = rng.uniform(1.0, 1.25), rng.uniform(0, np.pi)
    orders = np.arange(2, 11)
    size = np.where(orders < 4, 0.03, 0.0) + 0.15 * row["irregular"] * (orders / 2) ** -0.8
    amplitudes, phases = size * rng.uniform(0.3, 1.3, orders.size), rng.uniform(0, 2 * np.pi, orders.size)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    away, angle = np.hypot(along / stretch, across * stretch), np.arctan2(across, along)
    waves = (a * np.cos(order * angle + phase) for order, a, phase in zip(orders, amplitudes, phases, strict=True))
    edge = np.maximum(1 + sum(waves), 0.4)
    body = 0.5 - 0.5 * np.tanh((away - edge) / (0.06 + 0.26 * row["blurred"]))
    chord = np.sqrt(np.maximum(1 - (away / (1.15 * edge)) ** 2, 0))  # a ball is thickest in its middle
    signal = body * (0.4 + 0.6 * chord)
    for _ in range(round(26 * row["spiculated"])):
        signal += (1 - signal) * 0.45 * _spicule(y, x, radius, pixel_mm, rng)
    signal = np.maximum(signal - 0.02, 0) / 0.98  # without the endless faint tail
    return (row["contrast"] * signal).astype(np.float32), away <= edge


def _spicule(y: np.ndarray, x: np.ndarray, radius: float, pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A thin, slightly bent line that leaves the mass and tapers off, in [0, 1]; coordinates in radii."""
    start, bend, reach = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.1), rng.uniform(1.3, 2.4)
    sine, cosine, width = np.float32(np.sin(start)), np.float32(np.cos(start)), rng.uniform(0.25, 0.6) / radius
    along = sine * y + cosine * x
    across = cosine * y - sine * x - np.float32(bend) * along * (along - 1)
    taper = np.clip((reach - along) / (reach - 0.6), 0, 1) * (along > 0.4)
    seen = np.float32(np.hypot(width, 0.4 * pixel_mm / radius))  # no line is thinner than a pixel
    return taper * np.float32(width) / seen * np.exp(-((across / seen) ** 2))


def _beside(radius: float, distance: float, rng: np.random.Generator) -> tuple[float, float]:
    """Row and column in mm, from the middle of the mass, of a point at this distance from its edge in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return (radius + distance) * np.sin(angle), (radius + distance) * np.cos(angle)


def _specks(radius: float, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signal (n, n) of a cluster of 12 to 24 microcalcifications of 0.5 to 1 mm beside the mass."""
    pixel_mm = float(y[1, 0] - y[0, 0])
    row, col = _beside(radius, rng.uniform(3.0, 5.0), rng)
    signal = np.zeros((y.size, x.size), np.float32)
    for _ in range(int(rng.integers(12, 25))):
        down, right = rng.normal(0, 1.5, 2)
        signal += 1.5 * speck(y - row - down, x - col - right, pixel_mm, (0.25, 0.5), rng)
    return signal


def _dense(radius: float, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Signal (n, n) of a patch of dense tissue, ragged, that reaches the edge of the mass."""
    shape, wide = (y.size, x.size), rng.uniform(6, 9)
    row, col = _beside(radius, rng.uniform(0.3, 0.8) * wide, rng)
    level = 1 - np.hypot(y - row, x - col) / wide + 0.22 * power_law(rng, shape, 3.2)
    strength = rng.uniform(0.24, 0.34) * (1 + 0.15 * power_law(rng, shape, 3.0))
    return np.maximum(strength * rise(3 * level) - 0.01, 0).astype(np.float32)


def _dots(size: int, rng: np.random.Generator) -> np.ndarray:
    """Salt (1) on 0.3 to 0.9 % of the pixels, pepper (-1) on half as many, 0 elsewhere; (n, n)."""
    share, dice = rng.uniform(0.003, 0.009), rng.random((size, size), dtype=np.float32)
    return (dice < share).astype(np.float32) - (dice > 1 - share / 2)


def _shares(name: str, share: float, correlation: float, malignant: float) -> tuple[float, float]:
    """Share of a confounder among benign and among malignant masses."""
    if not 0 <= share <= 1:
        raise ValueError(f"{name}: {share} is outside [0, 1]")
    tie = "calcification_correlation" if name == "calcifications" else f"{name}_correlation"
    if not -1 <= correlation <= 1:
        raise ValueError(f"{tie}: {correlation} is outside [-1, 1]")
    if correlation == 0:
        return share, share
    if malignant in (0, 1):
        raise ValueError(f"{tie}: {correlation}, expected 0 where only one class is there")
    spread, ratio = correlation * np.sqrt(share * (1 - share)), np.sqrt((1 - malignant) / malignant)
    found = (float(share - spread / ratio), float(share + spread * ratio))
    if min(found) < -1e-9 or max(found) > 1 + 1e-9:
        raise ValueError(
            f"{tie}: {correlation} is not possible if {name} are on {share} of the ROIs and {malignant} are malignant"
        )
    return found


def _check(
    patients: int, size: int, side_mm: float, malignant: float, separation: float, shift_mm: float, view: str | None
) -> None:
    """Refuse arguments out of range."""
    if patients < 1:
        raise ValueError(f"patients: {patients} is below 1")
    if size < 64:
        raise ValueError(f"size: {size} rows and columns, expected at least 64")
    if not 4 * RADIUS_MM[1] <= side_mm <= 200:
        raise ValueError(f"side_mm: {side_mm}, expected from {4 * RADIUS_MM[1]:g} to 200")
    if not 0 <= malignant <= 1:
        raise ValueError(f"malignant: {malignant} is outside [0, 1]")
    if not 0 <= separation < np.inf:
        raise ValueError(f"separation: {separation} is below 0")
    if not 0 <= shift_mm <= side_mm / 2 - RADIUS_MM[1]:
        raise ValueError(
            f"shift_mm: {shift_mm}, expected from 0 to {side_mm / 2 - RADIUS_MM[1]:g}: the mass stays inside"
        )
    if view not in (None, *VIEWS):
        raise ValueError(f"view: {view!r} is unknown, expected None or one of {', '.join(VIEWS)}")
