"""GLCM variance: by hand, against scikit-image window by window, and what the two means make of it."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from skimage.feature import graycomatrix

from xai_lib.glcm import FOUR_ANGLES, glcm_variance, lesion_background

EXAMPLE = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 2, 2], [2, 2, 3, 3]])  # scikit-image's, four grey levels


def grey(levels: np.ndarray, count: int) -> np.ndarray:
    """An image whose grey levels are the given ones."""
    return (levels + 0.5) / count


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def disc(size: int = 48, radius: int = 12) -> np.ndarray:
    away = np.hypot(*(np.indices((size, size)) - (size - 1) / 2))
    return np.where(away < radius, 0.8, 0.2) + 0.05 * noise(size, size)


# ---------------------------------------------------------------- by hand


def test_the_four_level_example_by_hand() -> None:
    """24 pixels of pairs, of level 0: 7, 1: 6, 2: 8, 3: 3. Mean 31/24, of squares 65/24."""
    image = np.zeros((8, 8), int)
    image[:4, :4] = EXAMPLE  # the window of 7 around pixel (0, 0), cut at the border, is the example
    assert glcm_variance(grey(image, 4), "textbook", levels=4)[0, 0] == pytest.approx(599 / 576, abs=1e-14)  # 1.0399
    mu = 31 / 24 / 16
    printed = 65 / 24 - 2 * mu * 31 / 24 + mu**2
    assert glcm_variance(grey(image, 4), "printed", levels=4)[0, 0] == pytest.approx(printed, abs=1e-14)


@pytest.mark.parametrize(
    ("angle", "counts"),  # how often each pixel of the window takes part in a pair
    [
        (0.0, [[1, 2, 1], [1, 2, 1], [1, 2, 1]]),
        (math.pi / 2, [[1, 1, 1], [2, 2, 2], [1, 1, 1]]),
        (math.pi / 4, [[1, 1, 0], [1, 2, 1], [0, 1, 1]]),  # scikit-image's pi / 4 goes down and right
        (3 * math.pi / 4, [[0, 1, 1], [1, 2, 1], [1, 1, 0]]),
    ],
)
def test_one_window_of_three_by_hand(angle: float, counts: list[list[int]]) -> None:
    m = np.array([[0, 3, 1], [2, 2, 0], [3, 1, 3]])
    p = np.array(counts) / np.sum(counts)
    expected = (p * m**2).sum() - (p * m).sum() ** 2
    assert glcm_variance(grey(m, 4), "textbook", 3, angles=(angle,), levels=4)[1, 1] == pytest.approx(expected)


@pytest.mark.parametrize("level", [0, 5, 31])
def test_a_constant_image_has_one_level(level: int) -> None:
    roi = np.full((9, 9), (level + 0.5) / 32)
    assert_array_equal(glcm_variance(roi, "textbook"), 0)
    assert_allclose(glcm_variance(roi, "printed"), (level - level / 32**2) ** 2, rtol=1e-12)


def test_white_is_in_the_highest_level() -> None:
    assert_allclose(glcm_variance(np.ones((7, 7)), levels=4), (3 - 3 / 16) ** 2)


# ---------------------------------------------------------------- against scikit-image


@pytest.mark.parametrize(
    ("window", "distance", "angle", "levels"),
    [
        (7, 1, 0.0, 32),
        (7, 3, math.pi / 4, 8),
        (5, 2, math.pi / 2, 256),
        (3, 1, 3 * math.pi / 4, 2),
        (5, 2, -0.4, 16),
        (7, 2, math.pi + 0.3, 16),
    ],
)
def test_every_window_is_that_of_graycomatrix(window: int, distance: int, angle: float, levels: int) -> None:
    roi, half = noise(9, 8), window // 2
    m = (roi * levels).astype(np.uint8)
    found = {mu: glcm_variance(roi, mu, window, distance, (angle,), levels) for mu in ("printed", "textbook")}
    i = np.arange(levels)[:, None]
    for row, col in np.ndindex(m.shape):
        cut = m[max(row - half, 0) : row + half + 1, max(col - half, 0) : col + half + 1]
        p = graycomatrix(cut, [distance], [angle], levels, symmetric=True, normed=True)[:, :, 0, 0]
        for mu, factor in (("printed", levels**-2), ("textbook", 1)):
            expected = ((i - factor * (i * p).sum()) ** 2 * p).sum()
            assert found[mu][row, col] == pytest.approx(expected, rel=1e-10, abs=1e-10)


# ---------------------------------------------------------------- properties


def test_several_angles_are_averaged() -> None:
    roi = noise(12, 9)
    single = [glcm_variance(roi, angles=(angle,)) for angle in FOUR_ANGLES]
    assert_allclose(glcm_variance(roi, angles=FOUR_ANGLES), np.mean(single, axis=0))
    assert np.ptp(single, axis=0).max() > 1


def test_a_pair_has_no_direction() -> None:
    roi = noise(12, 9)
    for angle in FOUR_ANGLES:
        assert_array_equal(glcm_variance(roi, angles=(angle,)), glcm_variance(roi, angles=(angle - math.pi,)))


def test_the_printed_mean_gives_brightness_and_the_textbook_s_gives_edges() -> None:
    roi, row = disc(), 24
    printed, textbook = glcm_variance(roi), glcm_variance(roi, "textbook")
    assert printed[row, 24] > 10 * printed[row, 2]
    assert textbook[row, 12] > 10 * max(textbook[row, 24], textbook[row, 2])  # the disc's edge
    m = np.minimum((roi * 32).astype(int), 31)
    here = (m[21:28, 21:28] ** 2 * np.array([1, 2, 2, 2, 2, 2, 1])).sum() / 84  # local mean of the squared level
    assert printed[24, 24] == pytest.approx(here, rel=2 / 32**2)


def test_pixels_far_away_do_not_matter() -> None:
    roi = noise(20, 20)
    changed = roi.copy()
    changed[10, 10] = 1 - changed[10, 10]
    moved = glcm_variance(roi) != glcm_variance(changed)
    assert moved[7:14, 7:14].all() and moved.sum() == 49


def test_many_levels_do_not_overflow() -> None:
    roi = np.full((64, 64), 1.0)
    assert_array_equal(glcm_variance(roi, "textbook", 63, levels=65536), 0)
    assert_allclose(glcm_variance(roi, "printed", 63, levels=65536), 65535**2, rtol=1e-8)


def test_a_tensor_with_a_channel_is_taken_and_not_changed() -> None:
    roi = torch.as_tensor(noise(10, 8), dtype=torch.float32)
    before = roi.clone()
    assert_array_equal(glcm_variance(roi[None]), glcm_variance(roi))
    assert torch.equal(roi, before)


# ---------------------------------------------------------------- Lesion and Background


def test_lesion_is_the_mass_and_background_the_rest() -> None:
    roi, away = disc(), np.hypot(*(np.indices((48, 48)) - 23.5))
    images = lesion_background(roi)
    lesion, background = images["lesion"], images["background"]
    assert list(images) == ["lesion", "background"] and lesion.shape == background.shape == roi.shape
    assert lesion.dtype == background.dtype == np.float32
    assert lesion[away < 8].mean() > 0.8 and lesion[away > 16].mean() < 0.05
    assert_allclose(background[away > 16], roi[away > 16], atol=0.1)
    assert_array_equal(background[away < 8], 0)


@pytest.mark.parametrize("background", ["remainder", "rescaled"])
def test_lesion_and_background_by_their_definition(background: str) -> None:
    roi = disc()
    variance = glcm_variance(roi, "textbook", 5, levels=16)
    lesion = (variance - variance.min()) / np.ptp(variance)
    rest = np.maximum(roi - lesion, 0)
    rest = rest if background == "remainder" else (rest - rest.min()) / np.ptp(rest)
    images = lesion_background(roi, "textbook", background, window=5, levels=16)
    assert_allclose(images["lesion"], lesion, atol=1e-6)
    assert_allclose(images["background"], rest, atol=1e-6)


def test_a_dark_mass_is_a_bright_one_in_the_negative() -> None:
    bright, dark = lesion_background(disc()), lesion_background(1 - disc(), dark=True)
    for name, image in bright.items():
        assert_allclose(dark[name], 1 - image, atol=1e-6)


@pytest.mark.parametrize("mu", ["printed", "textbook"])
def test_a_constant_roi_has_no_lesion_image(mu: str) -> None:
    with pytest.raises(ValueError, match="roi: its Lesion image has the same grey everywhere"):
        lesion_background(np.full((32, 32), 0.4), mu)


def test_an_unknown_background_is_refused() -> None:
    with pytest.raises(ValueError, match="background: 'blurred' is not 'remainder' or 'rescaled'"):
        lesion_background(disc(), background="blurred")


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": "median"}, "mu: 'median' is not"),
        ({"window": 4}, "window: 4 pixels, expected an odd"),
        ({"window": 1}, "window: 1 pixels, expected an odd"),
        ({"window": 13}, "window: 13 x 13 pixels are more than the ROI's 12 x 14"),
        ({"distance": 0}, "distance: 0 pixels, expected from 1 to 3"),
        ({"distance": 4}, "distance: 4 pixels, expected from 1 to 3"),
        ({"levels": 1}, "levels: 1, expected from 2"),
        ({"levels": 65537}, "levels: 65537, expected from 2"),
        ({"angles": ()}, "angles: "),
        ({"angles": (45,)}, "in radians"),
        ({"angles": (math.nan,)}, "in radians"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        glcm_variance(noise(12, 14), **options)


@pytest.mark.parametrize("name", ["window", "distance", "levels"])
def test_only_integers_are_taken(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected an integer, got 7.0"):
        glcm_variance(noise(12, 14), **{name: 7.0})


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (np.zeros((3, 9, 9)), "got shape \\(3, 9, 9\\)"),
        (np.zeros((0, 9)), "got shape \\(0, 9\\)"),
        (np.full((9, 9), np.nan), "NaN or infinite"),
        (np.full((9, 9), 200), "values from 200 to 200, expected them in \\[0, 1\\]"),
        (np.full((9, 9), -0.1), "values from -0.1"),
    ],
)
def test_a_bad_roi_is_refused(roi: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match="roi: .*" + message):
        glcm_variance(roi)
