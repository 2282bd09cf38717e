"""The X-ray beam: from tube voltage, anode and filter to the grey level behind a disc of gold.

Usage::

    beam = Beam(kvp=28)
    energies, photons = spectrum(beam)                       # keV (79,), photons per step behind the filters (79,)
    grey_levels(beam, [0, 1.0])                              # background, and behind 1 um of gold; without scatter

For every energy the anode's spectrum is a polynomial in the tube voltage; filters, phantom and gold weaken it by the
law of Beer and Lambert; the detector of caesium iodide counts what it absorbs. The scale of the grey levels is that of
the PTB's simulator, which this follows step by step so that its published cells are met.

References: Boone, Fewell and Jennings, Med. Phys. 24 (1997) 1863 (spectra); NIST XCOM (attenuation); both as
distributed with VirtualMammography, Kretz et al., Phys. Med. 62 (2019) 120. Amanova et al. 2022, table 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import interp1d

from xai_lib.config import repository_dir

DENSITY_G_CM3 = {
    "beryllium": 1.848, "pmma": 1.19, "molybdenum": 10.28, "rhodium": 12.38, "aluminium": 2.6989, "gold": 19.302,
    "caesium_iodide": 4.51,
}  # fmt: skip
ANODES = ("molybdenum", "rhodium", "tungsten")
ENERGIES_KEV = np.arange(1, 40.25, 0.5)
DETECTOR_MM = 0.25  # of caesium iodide
GREY_PER_PHOTON = 2**14 / 2032443611.0515957  # scale of the PTB's simulator, 14 bit


@dataclass(frozen=True)
class Beam:
    """Tube voltage (kVp), anode, and the filters (mm) that the beam crosses before it meets the gold.

    The default filters are those of the PTB's cells: the tube's window, the filter proper, and 2.35 mm of PMMA.
    """

    kvp: float
    anode: str = "molybdenum"
    filters_mm: Mapping[str, float] = field(
        default_factory=lambda: {"beryllium": 0.3, "pmma": 2.35, "molybdenum": 0.0275}
    )

    def __post_init__(self) -> None:
        if self.anode not in ANODES:
            raise ValueError(f"anode: {self.anode!r} is not one of {', '.join(ANODES)}")
        if not 20 <= self.kvp <= 40:
            raise ValueError(f"kvp: {self.kvp} is outside 20 to 40 kV, where the spectra are known")
        for name, mm in self.filters_mm.items():
            if name not in DENSITY_G_CM3:
                raise ValueError(f"filters_mm: {name!r} is not one of {', '.join(DENSITY_G_CM3)}")
            if mm < 0:
                raise ValueError(f"filters_mm: {mm} mm of {name} is below 0")


@cache
def _rows(table: str, of: str) -> NDArray[np.float64]:
    """The lines of one material or anode in a table of ``data/cdmam``, without its name."""
    rows = pd.read_csv(repository_dir() / "data" / "cdmam" / f"{table}.csv", index_col=0)
    return rows.loc[of].to_numpy(float)


def attenuation(material: str, energies_kev: ArrayLike, kind: str = "cubic") -> NDArray[np.float64]:
    """Linear attenuation coefficient in 1/mm of a material of `DENSITY_G_CM3` at energies of 1 to 50 keV.

    Between the tabled energies by a spline (`kind="cubic"`) or straight lines (`"linear"`), as the PTB's simulator
    does for signal and filters; absorption edges are as smooth as that makes them.
    """
    of = interp1d(*_rows("attenuation", material).T, kind=kind)
    return np.asarray(of(np.asarray(energies_kev, float))) * DENSITY_G_CM3[material] / 10


def spectrum(beam: Beam) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Energies (79,) in keV and photons (79,) per keV behind the filters."""
    known, *coefficients = _rows("spectra", beam.anode).T
    photons = (beam.kvp ** np.arange(4)) @ np.stack(coefficients) / 0.5
    photons = np.where(known <= beam.kvp, photons, 0.0)
    emitted = np.interp(ENERGIES_KEV, known, photons, left=0.0, right=0.0)
    for material, mm in beam.filters_mm.items():
        emitted = emitted * np.exp(-attenuation(material, ENERGIES_KEV, "linear") * mm)
    return ENERGIES_KEV, emitted


def grey_levels(beam: Beam, gold_um: ArrayLike) -> NDArray[np.float64]:
    """Grey levels (n,) of primary photons behind each thickness of gold (n,) in micrometres; scatter is not in them."""
    energies, photons = spectrum(beam)
    fine = np.linspace(energies[0], energies[-1], 60)
    arriving = interp1d(energies, photons, kind="cubic")(fine)
    absorbed = 1 - np.exp(-attenuation("caesium_iodide", fine) * DETECTOR_MM)
    behind = np.exp(-np.outer(np.atleast_1d(np.asarray(gold_um, float)) * 1e-3, attenuation("gold", fine)))
    return (behind * arriving * absorbed).sum(1) * (fine[1] - fine[0]) * GREY_PER_PHOTON
