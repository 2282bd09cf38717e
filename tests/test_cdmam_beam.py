"""The beam: Beer and Lambert by hand, thin gold, and the PTB's published tables where they are at hand."""

import numpy as np
import pytest

from xai_lib.cdmam.beam import ANODES, DENSITY_G_CM3, Beam, attenuation, grey_levels, spectrum
from xai_lib.config import data_dir


def test_attenuation_is_the_table_times_the_density():
    assert attenuation("gold", [20.0])[0] == pytest.approx(78.81 * 19.302 / 10)  # NIST: 78.81 cm2/g at 20 keV
    assert attenuation("pmma", [20.0], "linear")[0] == pytest.approx(0.5714 * 1.19 / 10)


def test_spectrum_ends_at_the_tube_voltage_and_is_not_negative():
    energies, photons = spectrum(Beam(25))
    assert energies[0] == 1 and energies[-1] == 40 and len(energies) == 79
    assert (photons[energies > 25] == 0).all() and (photons >= 0).all()
    assert photons[energies == 17.5] > 3 * photons[energies == 16]  # the K line of molybdenum, 17.5 keV


def test_filter_by_hand():
    bare = Beam(28, filters_mm={})
    filtered = Beam(28, filters_mm={"aluminium": 0.5})
    at = spectrum(bare)[0] == 20
    ratio = spectrum(filtered)[1][at] / spectrum(bare)[1][at]
    assert ratio == pytest.approx(np.exp(-3.442 * 2.6989 / 10 * 0.5), rel=1e-6)  # NIST: 3.442 cm2/g at 20 keV


def test_contrast_is_linear_in_thin_gold():
    background, thin, double = grey_levels(Beam(28), [0, 0.01, 0.02])
    assert (background - double) / (background - thin) == pytest.approx(2, rel=2e-3)
    thick, twice = 1 - grey_levels(Beam(28), [1, 2]) / background
    assert twice / thick < 1.95  # and not in thick gold


def test_contrast_falls_with_the_voltage():
    contrast = [1 - np.divide(*grey_levels(Beam(kvp), [1, 0])) for kvp in (23, 25, 28, 30)]
    assert contrast == sorted(contrast, reverse=True)


@pytest.mark.parametrize("anode", ANODES)
def test_every_anode_gives_light(anode):
    assert grey_levels(Beam(28, anode), [0])[0] > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"anode": "lead"}, "anode: 'lead' is not one of molybdenum"),
        ({"kvp": 80}, "kvp: 80 is outside 20 to 40"),
        ({"filters_mm": {"cheese": 1}}, "filters_mm: 'cheese'"),
        ({"filters_mm": {"gold": -1}}, "filters_mm: -1 mm of gold is below 0"),
    ],
)
def test_bad_beam(change, message):
    with pytest.raises(ValueError, match=message):
        Beam(**({"kvp": 25} | change))


@pytest.mark.realdata
def test_tables_are_those_of_the_ptb():
    folder = data_dir() / "CDMAM" / "VirtualMammography" / "attenuation_files"
    files = {"beryllium": "be", "pmma": "pmma", "molybdenum": "mo", "rhodium": "rh", "aluminium": "al", "gold": "au"}
    for material, short in files.items():
        rows = np.loadtxt(folder / f"{short}_attenuation.txt", skiprows=5)
        rows = rows[rows[:, 0] <= 0.05]
        ours = attenuation(material, rows[:, 0] * 1000, "linear") * 10 / DENSITY_G_CM3[material]
        np.testing.assert_allclose(ours, rows[:, 2], rtol=1e-5)
