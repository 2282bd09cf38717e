"""The CDMAM 3.4 phantom as published: diameters, thicknesses, cells, and where the discs lie on the plate.

Usage::

    discs()[["row", "column", "place", "diameter_mm", "thickness_um", "along_mm", "down_mm"]]
    DIAMETERS_MM[READ]                                       # the 12 diameters of a contrast-detail curve

A matrix of 16 rows (diameters) and 16 columns (thicknesses of gold), without its corners, stands on its corner: turned
by 45 degrees, with the row of the largest discs at the upper right edge. A cell holds two equal discs, one in its
centre and one near one of its four corners. Plate coordinates in millimetres start in the middle of the plate:
`along_mm` grows to the right, `down_mm` downwards.

References: Artinis, CDMAM 3.4 manual; Thomas et al., Med. Phys. 32 (2005) 807; the corner of every second disc as in
MedPhysQC/MG_CDMAM. Amanova et al. 2022, section 2.1 and appendix A.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Numbers = tuple[float, ...]

DIAMETERS_MM: Numbers = (2.0, 1.6, 1.25, 1.0, 0.8, 0.63, 0.5, 0.4, 0.31, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06)
THICKNESSES_UM: Numbers = (0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.36, 0.5, 0.71, 1.0, 1.42, 2.0)
READ = slice(3, 15)  # the rows of a contrast-detail curve, 1.00 to 0.08 mm
CURVE_MM: Numbers = DIAMETERS_MM[READ]
PITCH_MM = 10.0  # side of a cell
OFFSET_MM = 3.0  # from the centre of a cell to the second disc, along each side

# One line per diameter, one digit per thickness: 0 no cell, else the corner of the second disc, with thickness growing
# to the right and diameter shrinking downwards: 1 upper right, 2 lower right, 3 lower left, 4 upper left.
CORNERS: NDArray[np.int8] = np.array(
    [
        [int(digit) for digit in row]
        for row in (
            "0321432123000000", "1123233121400000", "1311441433420000", "2434321323142000",
            "1131214242233100", "4214214134122410", "1424421322313142", "2112334144312141",
            "3314142232432312", "0242133114334411", "0013424322343344", "0004142244242131",
            "0000244342312421", "0000021232343434", "0000003233114332", "0000000422422340",
        )
    ],
    dtype=np.int8,
)  # fmt: skip
CELLS: NDArray[np.bool_] = CORNERS > 0  # (16, 16), 205 cells
STEPS = {1: (1, -1), 2: (1, 1), 3: (-1, 1), 4: (-1, -1)}  # corner -> direction in (thickness, diameter)


def on_plate(thickness: ArrayLike, diameter: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Plate coordinates (along_mm, down_mm) of positions counted in cells: 0 to 16 along thickness and diameter.

    The cells present span 1 to 31 in the sum of the two and -9 to 10 in their difference; the middle of that is the
    middle of the plate.
    """
    u, v = np.asarray(thickness, float), np.asarray(diameter, float)
    along = (u - v - 0.5) * PITCH_MM / math.sqrt(2)
    down = (u + v - 16) * PITCH_MM / math.sqrt(2)
    return along, down


def discs() -> pd.DataFrame:
    """All 410 discs, two rows per cell: row, column, place ("centre" | "corner"), corner, diameter_mm, thickness_um,
    along_mm, down_mm.
    """
    rows = []
    for i, j in np.argwhere(CELLS):
        step = STEPS[int(CORNERS[i, j])]
        for place, (du, dv) in (("centre", (0, 0)), ("corner", step)):
            along, down = on_plate(j + 0.5 + du * OFFSET_MM / PITCH_MM, i + 0.5 + dv * OFFSET_MM / PITCH_MM)
            rows.append((int(i), int(j), place, int(CORNERS[i, j]), DIAMETERS_MM[i], THICKNESSES_UM[j], along, down))
    names = ["row", "column", "place", "corner", "diameter_mm", "thickness_um", "along_mm", "down_mm"]
    return pd.DataFrame(rows, columns=names)


def sites(row: int, column: int) -> dict[int, tuple[float, float]]:
    """Where discs can lie in a cell: 0 the centre, 1 to 4 its corners; plate coordinates (along_mm, down_mm)."""
    steps = np.array([(0, 0), *(STEPS[corner] for corner in sorted(STEPS))]) * OFFSET_MM / PITCH_MM
    along, down = on_plate(column + 0.5 + steps[:, 0], row + 0.5 + steps[:, 1])
    return dict(enumerate(zip(along.tolist(), down.tolist(), strict=True)))
