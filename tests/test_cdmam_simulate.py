"""Images of the phantom: grey levels, noise, exposure, and the PTB's published cells."""

import numpy as np
import pytest

from xai_lib.cdmam.cell import scattered, simulate_cell
from xai_lib.cdmam.phantom import BACKGROUND, Detector, build
from xai_lib.cdmam.simulate import SCENARIOS, Scenario, field_of_noise, levels, noise_free, noise_sd, scenario, simulate
from xai_lib.config import data_dir

DETECTOR = Detector(pixel_mm=0.24)
SETTING = Scenario("coarse", 28, 115, 9.55, detector=DETECTOR)


@pytest.fixture(scope="module")
def phantom():
    return build(DETECTOR)


def test_scenarios_are_table_1():
    rows = [(s.kvp, s.mas, s.noise) for s in SCENARIOS.values()]
    assert rows == [(28, 115, 9.55), (25, 110, 13.06), (25, 110, 18.91), (25, 110, 22.91), (23, 105, 6.04)]


def test_levels_and_factors():
    grey = levels("#1")
    assert len(grey) == 19 and (np.diff(grey[:17]) < 0).all()
    half = levels("#1", contrast=0.5, grid=2)
    np.testing.assert_allclose(grey[0] - half[1:17], (grey[0] - grey[1:17]) / 2, rtol=1e-3)
    np.testing.assert_allclose(grey[0] - half[17:], 2 * (grey[0] - grey[17:]), rtol=1e-5)


def test_noise_free_by_hand(phantom):
    grey = levels(SETTING)
    image = noise_free(phantom, grey)
    y, x = 200, 200
    expected = grey[0] + phantom.coverage[y, x] * (grey[phantom.classes[y, x]] - grey[0])
    assert image[y, x] == pytest.approx(expected)
    assert image[phantom.classes == BACKGROUND].max() == grey[0]


def test_noise_has_its_level_and_its_correlation():
    noise = field_of_noise((600, 600), 10.0, Detector(), np.random.default_rng(0))
    assert noise.std() == pytest.approx(noise_sd(10.0, Detector()), rel=0.01) == pytest.approx(10.9, rel=0.01)
    assert (noise[:, 1:] * noise[:, :-1]).mean() / noise.var() == pytest.approx(0.36, abs=0.01)  # as the PTB's cells
    assert (noise[:, 2:] * noise[:, :-2]).mean() / noise.var() == pytest.approx(0.03, abs=0.01)


def test_same_seed_same_image(phantom):
    first, again, other = (simulate(SETTING, seed, phantom) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.99
    assert first.dtype == np.float32 and first.shape == phantom.shape


def test_exposure_is_a_label_by_default(phantom):
    more = Scenario("coarse", 28, 460, 9.55, detector=DETECTOR)
    np.testing.assert_array_equal(simulate(SETTING, 0, phantom), simulate(more, 0, phantom))


def test_quantum_noise_follows_exposure_and_signal(phantom):
    once, four = (Scenario("q", 28, mas, 9.55, detector=DETECTOR) for mas in (110, 440))
    clean = noise_free(phantom, levels(once))
    plain = simulate(once, 0, phantom) - clean
    quantum = simulate(once, 0, phantom, quantum_noise=True) - clean
    np.testing.assert_allclose(quantum, plain * np.sqrt(clean / levels(once)[0]), rtol=1e-3, atol=1e-3)
    bright = simulate(four, 0, phantom, quantum_noise=True) - 4 * clean
    np.testing.assert_allclose(bright, 2 * quantum, rtol=1e-3, atol=2e-3)  # four times the photons, twice the noise


def test_inverted_mirrors_at_the_background(phantom):
    dark, bright = simulate(SETTING, 3, phantom), simulate(SETTING, 3, phantom, inverted=True)
    np.testing.assert_allclose(dark + bright, 2 * levels(SETTING)[0], rtol=1e-5)


def test_bad_input(phantom):
    with pytest.raises(ValueError, match="scenario: '#9' is not one of #1"):
        scenario("#9")
    with pytest.raises(ValueError, match="noise: 0 is not above 0"):
        Scenario("x", 28, 110, 0)
    with pytest.raises(ValueError, match="phantom: made for"):
        simulate("#1", 0, phantom)


def test_scatter_keeps_its_share():
    image = np.random.default_rng(0).uniform(1, 2, (32, 32))
    assert scattered(image, 0.18).mean() == pytest.approx(0.18 * image.mean())
    np.testing.assert_allclose(scattered(np.full((16, 16), 5.0), 0.2), 1.0)


def test_corner_of_a_cell():
    image = simulate_cell(Scenario("PTB", 25, 110, 9.7), 1.6, 2.0, 4, None)
    assert image[26, 26] < 400 < image[119, 119]
    with pytest.raises(ValueError, match="corner: 7"):
        simulate_cell(SETTING, 1.6, 2.0, 7, None)


@pytest.mark.realdata
def test_cells_of_the_ptb():
    h5py = pytest.importorskip("h5py")
    file = data_dir() / "CDMAM" / "VirtualMammography" / "Results" / "sim_data_16062020_382.hdf5"
    with h5py.File(file) as stored:
        theirs = stored["imgdata"][:].T.reshape(20, 146, 146)
    setting = Scenario("PTB", 25, 110, 9.7)
    ours = simulate_cell(setting, 1.6, 2.0, 4, None)
    areas = {"centre": np.s_[68:78, 68:78], "corner": np.s_[21:31, 21:31], "background": np.s_[100:130, 30:130]}
    for area in areas.values():
        assert ours[area].mean() == pytest.approx(theirs.mean(0)[area].mean(), rel=0.005)
    noise = (theirs - theirs.mean(0)) * np.sqrt(20 / 19)
    drawn = np.stack([simulate_cell(setting, 1.6, 2.0, 4, seed) for seed in range(20)]) - ours
    assert drawn.std() == pytest.approx(noise.std(), rel=0.02)
    for lag in (1, 2):
        found, expected = ((n[..., lag:] * n[..., :-lag]).mean() / n.var() for n in (drawn, noise))
        assert found == pytest.approx(expected, abs=0.02)
