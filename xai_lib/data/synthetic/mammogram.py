"""Synthetic mammograms with exact masks, and a healthy twin of every image.

Usage::

    cases = load_synthetic_mammogram(patients=50, seed=0)               # 200 images: 50 patients, L and R, CC and MLO
    twins = load_synthetic_mammogram(patients=50, seed=0, twins=True)   # case i is case i of `cases` without its lesion
    cases[0].image, twins[0].image, anatomy(cases, 0).breast            # the pair; exact breast, pectoral, gland

Theory. `mammogram_tissue` gives the signal of a lesion-free breast; a lesion (`mammogram_lesions`) adds its own; then
come quantum noise and the film. Anatomy, lesion and noise have their own random numbers, and every step from signal to
grey works pixel by pixel: image and twin are equal to the bit wherever the lesion adds nothing. Every breast has a
place where a lesion is, or could be, and the law of that place does not know the label: neither where a lesion lies
nor what is cut out around it (`mammogram_patches`) gives the class away.

As in the thesis, the chest wall is at column 0 (the images of right breasts are mirrored) and label 1 is malignant;
label 0 is everything else: normal and, where `benign` is not 0, benign. A mass lies at the same distance behind the
nipple in both views of a breast; its shape is drawn anew for each view.

Reference: Sam-Millan, Deep Learning Explainability for Breast Cancer Detection in Mammography (2023), sec. 3.1
and 3.2.1.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from xai_lib.config import numpy_generator
from xai_lib.data.case import Case, CaseDataset, boxes_from_mask
from xai_lib.data.synthetic.mammogram_lesions import draw_lesion, film, paste, speck
from xai_lib.data.synthetic.mammogram_tissue import (
    FRAME_MM,
    VIEWS,
    Breast,
    Outline,
    Tissue,
    build_tissue,
    draw_breast,
    draw_outline,
)

VERSION = 1  # of the images; part of a data set's fingerprint
SIDES = ("L", "R")
NOISE_MM = 0.0016  # standard deviation of the quantum noise in signal, times the side of a pixel in mm


def expose(signal: np.ndarray, pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Image (H, W), float32 in [0, 1), of a signal: quantum noise, then the film. Where the signal is 0 it is 0.

    The fewer quanta pass, the noisier the logarithm of their number: its standard deviation goes as exp(signal / 2)
    and, for the same dose, as 1 / pixel side. Exposure varies by 8 %. The noise pattern does not depend on the signal.
    """
    gain, noise = rng.uniform(0.92, 1.08), rng.standard_normal(signal.shape, dtype=np.float32)
    noisy = signal + np.float32(NOISE_MM / pixel_mm) * noise * np.exp(signal / 2)
    return np.where(signal > 0, film(np.maximum(noisy, 0), gain), 0).astype(np.float32)


def lesion_columns(outline: Outline, radius_mm: float) -> tuple[float, float]:
    """First and last column in mm where a mass fits between chest wall and nipple."""
    return 1.3 * radius_mm + 2, outline.nipple_mm[1] - 1.5 * radius_mm - 4


def lesion_row(outline: Outline, col_mm: float, radius_mm: float, rng: np.random.Generator) -> float:
    """Row in mm for a mass at this column: off skin, pectoral muscle and edges; middle rows are likelier."""
    rows = np.arange(1.5 * radius_mm, FRAME_MM - 1.5 * radius_mm)
    fits = (outline.skin(rows) > col_mm + 1.4 * radius_mm + 3) & (outline.muscle(rows) < col_mm - 1.2 * radius_mm)
    return float(rows[fits][int(rng.beta(2.5, 2.5) * fits.sum())])


def clutter(outline: Outline, shape: tuple[int, int], pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Signal (H, W) of normal things that look a little like a lesion: blurred nodules, single coarse calcifications.

    Without them any round shadow and any bright dot would be a lesion.
    """
    y = ((np.arange(shape[0], dtype=np.float32) + 0.5) * pixel_mm)[:, None]
    x = ((np.arange(shape[1], dtype=np.float32) + 0.5) * pixel_mm)[None, :]
    signal = np.zeros(shape, np.float32)
    for radius in rng.uniform(3, 9, rng.poisson(1.5)):
        col = rng.uniform(*lesion_columns(outline, radius))
        down, right = y - lesion_row(outline, col, radius, rng), x - col
        turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.4)
        along, across = np.cos(turn) * right + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * right
        signal += rng.uniform(0.03, 0.14) * np.exp(-((along / stretch) ** 2 + (across * stretch) ** 2) / radius**2)
    for _ in range(rng.poisson(0.8)):
        col = rng.uniform(*lesion_columns(outline, 2.0))
        signal += speck(y - lesion_row(outline, col, 2.0, rng), x - col, pixel_mm, (0.3, 0.8), rng)
    return signal


def load_synthetic_mammogram(
    patients: int = 100,
    seed: int = 0,
    size: tuple[int, int] = (512, 256),
    prevalence: float = 0.5,
    benign: float = 0.0,
    view: str | None = None,
    contrast: tuple[float, float] = (0.10, 0.40),
    radius_mm: tuple[float, float] = (4.0, 10.0),
    calcifications: float = 0.3,
    twins: bool = False,
) -> CaseDataset:
    """A lazy data set of both breasts of each patient, each in two views (or in one).

    An image depends on the seed, the patient's number and the other arguments, not on how many patients there are; the
    same breasts appear at every size. Beside the usual columns the table has patient, side, density (A to D), kind
    (normal, benign, malignant) and, for the lesion that is there or could be there, radius_mm, contrast, calcified,
    centre_row and centre_col (pixels).

    Args:
        patients: how many; each gives 4 images, or 2 of one view.
        seed: of everything.
        size: rows and columns of an image, at least 128 rows and half as many columns. The image is 200 mm high; what
            is right of the first 100 mm is background.
        prevalence: share of the breasts with a malignant mass; with 0.5 each patient has one such breast. Among the
            first n breasts the count is within two of n times this.
        benign: share of the other breasts with a benign mass (label 0).
        view: "CC", "MLO", or None for both.
        contrast: lowest and highest signal in the middle of a mass (log-uniform); in fat the grey value rises by about
            the same number.
        radius_mm: smallest and largest radius (uniform), between 1 and 16 mm.
        calcifications: share of the malignant masses with a cluster of microcalcifications.
        twins: leave every lesion out: case i is the healthy twin of case i of the set with the same other arguments.
            Kind and label of all cases are then normal and 0.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """
    parameters = _checked(patients, size, prevalence, benign, view, contrast, radius_mm, calcifications)
    parameters |= {"seed": seed, "twins": bool(twins), "generator": VERSION}
    start = numpy_generator(seed, "label").random()
    labels = np.diff(np.floor(np.arange(2 * patients + 1) * prevalence + start)).astype(int).reshape(-1, 2)
    rows = [row for patient, pair in enumerate(labels) for row in _rows(parameters, patient, pair)]
    read = partial(_read, seed=seed, size=parameters["size"])
    return CaseDataset("synthetic_mammogram", pd.DataFrame(rows), read, parameters=parameters)


def anatomy(cases: CaseDataset, index: int) -> Tissue:
    """Breast, pectoral muscle and glandular tissue (H, W) of one case of a synthetic set, without lesion and clutter.

    Raises:
        ValueError: the cases are not synthetic mammograms.
    """
    if cases.name != "synthetic_mammogram":
        raise ValueError(f"cases: {cases.name!r} has no known anatomy, expected 'synthetic_mammogram'")
    known: Any = cases.parameters
    return _tissue(cases.table.iloc[index], known["seed"], known["size"])[0]


def _rows(parameters: dict, patient: int, labels: np.ndarray) -> Iterator[dict[str, object]]:
    """The table's rows of one patient. `labels` holds the labels of the two breasts; chance says which is which."""
    seed, name = parameters["seed"], f"patient-{patient:05d}"
    for side, label in zip(SIDES, numpy_generator(seed, "sides", patient).permutation(labels), strict=True):
        rng = numpy_generator(seed, "lesion", patient, side)
        radius, share = rng.uniform(*parameters["radius_mm"]), rng.random()
        contrast = np.exp(rng.uniform(*np.log(parameters["contrast"])))
        kind = "malignant" if label else "benign" if rng.random() < parameters["benign"] else "normal"
        calcified = kind == "malignant" and rng.random() < parameters["calcifications"]
        if parameters["twins"]:
            kind, label, calcified = "normal", 0, False
        for view in VIEWS if parameters["view"] is None else (parameters["view"],):
            breast, outline = _geometry(seed, patient, side, view)
            first, last = lesion_columns(outline, radius)
            col = first + share * (last - first)
            row = lesion_row(outline, col, radius, numpy_generator(seed, "row", patient, side, view))
            pixels_per_mm = parameters["size"][0] / FRAME_MM
            source = f"synthetic_mammogram/{name}-{side}-{view}" + ("-twin" if parameters["twins"] else "")
            yield {"source": source, "label": int(label), "patient_id": name, "view": view, "patient": patient} | {
                "side": side,
                "density": breast.density,
                "kind": kind,
                "radius_mm": radius,
                "contrast": contrast,
                "calcified": calcified,
                "centre_row": int(row * pixels_per_mm),
                "centre_col": int(col * pixels_per_mm),
            }


def _geometry(seed: int, patient: int, side: str, view: str) -> tuple[Breast, Outline]:
    """The breast and its outline in one view."""
    breast = draw_breast(numpy_generator(seed, "patient", patient), numpy_generator(seed, "breast", patient, side))
    return breast, draw_outline(breast, view, numpy_generator(seed, "outline", patient, side, view))


def _tissue(row: pd.Series, seed: int, size: tuple[int, int]) -> tuple[Tissue, Outline]:
    """The lesion-free tissue of one row of the table, and its outline."""
    who = (int(row["patient"]), row["side"], row["view"])
    breast, outline = _geometry(seed, *who)
    return build_tissue(breast, outline, numpy_generator(seed, "tissue", *who), size), outline


def _read(row: pd.Series, seed: int, size: tuple[int, int]) -> Case:
    """Generate the case of one row of the table."""
    who = (int(row["patient"]), row["side"], row["view"])
    pixel_mm = FRAME_MM / size[0]
    tissue, outline = _tissue(row, seed, size)
    signal = tissue.signal + clutter(outline, size, pixel_mm, numpy_generator(seed, "clutter", *who)) * tissue.breast
    mask = np.zeros(size, bool)
    if row["kind"] != "normal":
        rng, centre = numpy_generator(seed, "shape", *who), (int(row["centre_row"]), int(row["centre_col"]))
        lesion = draw_lesion(rng, row["kind"], row["radius_mm"], pixel_mm, row["calcified"])
        signal += paste(lesion.signal(row["contrast"]), size, centre) * tissue.breast
        mask = paste(lesion.mask, size, centre) & tissue.breast
    image = expose(signal, pixel_mm, numpy_generator(seed, "noise", *who))
    return Case(
        image=torch.from_numpy(image)[None],
        label=int(row["label"]),
        mask=torch.from_numpy(mask),
        boxes=boxes_from_mask(mask),
        pixel_mm=pixel_mm,
        patient_id=row["patient_id"],
        view=row["view"],
        source=row["source"],
    )


def _checked(
    patients: int,
    size: tuple[int, int],
    prevalence: float,
    benign: float,
    view: str | None,
    contrast: tuple[float, float],
    radius_mm: tuple[float, float],
    calcifications: float,
) -> dict:
    """Refuse arguments out of range; return those that images depend on, by name."""
    if patients < 1:
        raise ValueError(f"patients: {patients} is below 1")
    height, width = size
    if height < 128 or 2 * width < height:
        raise ValueError(f"size: {height} x {width}, expected at least 128 rows and half as many columns as rows")
    shares = {"prevalence": prevalence, "benign": benign, "calcifications": calcifications}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: {share} is outside [0, 1]")
    if view not in (None, *VIEWS):
        raise ValueError(f"view: {view!r} is unknown, expected None or one of {', '.join(VIEWS)}")
    for name, (low, high), least, most in (("contrast", contrast, 1e-3, 2.0), ("radius_mm", radius_mm, 1.0, 16.0)):
        if not least <= low <= high <= most:
            raise ValueError(f"{name}: from {low} to {high}, expected a range within {least} and {most}")
    ranges = {"contrast": tuple(map(float, contrast)), "radius_mm": tuple(map(float, radius_mm))}
    return {"size": (int(height), int(width)), "view": view} | shares | ranges
