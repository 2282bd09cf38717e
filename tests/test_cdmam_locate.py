import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from cdmam_images import draw
from scipy.ndimage import gaussian_filter

from xai_lib.cdmam.geometry import discs
from xai_lib.cdmam.locate import NoPhantom, Placement, locate, nominal, of_phantom

PIXEL_MM = 0.4


@pytest.fixture(scope="module")
def image():
    return draw(PIXEL_MM)


def off_by_mm(found, true):
    """Largest distance between where two placements have the discs, in mm of the plate."""
    table = discs()
    one, other = (np.stack(p.pixels(table["along_mm"], table["down_mm"])) for p in (found, true))
    return np.hypot(*(one - other)).max() / true.px_per_mm


def turned(shape, quarters=0, mirrored=False):
    """The placement of a drawn phantom after `np.rot90(image, quarters)` of the mirrored image."""
    shape = shape[::-1] if quarters % 2 else shape
    plain = nominal(shape, PIXEL_MM, 1.0)
    return dataclasses.replace(plain, angle=(-90.0 * quarters) % 360, mirrored=mirrored)


def test_pixels_by_hand():
    place = Placement(y=100, x=200, px_per_mm=2)
    assert place.pixels(10, 3) == (106, 220)
    assert dataclasses.replace(place, mirrored=True).pixels(10, 3) == (106, 180)
    assert np.allclose(dataclasses.replace(place, angle=90).pixels(10, 3), (120, 194))  # right turns down, down left
    assert np.allclose(dataclasses.replace(place, angle=90, mirrored=True).pixels(10, 3), (80, 194))


def test_nominal_is_the_formula_of_the_simulated_phantom():
    y, x = nominal((3654, 2323)).pixels(-4.0, 7.0)
    assert (y, x) == pytest.approx((1826.5 + 7 * 1.0375 / 0.06, 1161 - 4 * 1.0375 / 0.06))


@pytest.mark.parametrize("true", [Placement(50.5, 70, 3.2), Placement(9, 8, 2, 270), Placement(9, 8, 2, 33, True)])
def test_of_phantom_recovers_a_placement(true):
    table = discs()
    table["y"], table["x"] = true.pixels(table["along_mm"], table["down_mm"])
    found = of_phantom(SimpleNamespace(discs=table))
    assert off_by_mm(found, true) < 1e-9
    assert found.mirrored == true.mirrored


@pytest.mark.parametrize(
    ("quarters", "mirrored"), [(0, False), (1, False), (2, False), (3, False), (0, True), (1, True)]
)
def test_rotated_and_mirrored(image, quarters, mirrored):
    found = locate(np.rot90(image[:, ::-1] if mirrored else image, quarters))
    assert off_by_mm(found, turned(image.shape, quarters, mirrored)) < 0.05
    assert found.mirrored == mirrored
    assert found.polarity == -1


def test_inverted(image):
    found = locate(2000 - image)
    assert found.polarity == 1
    assert off_by_mm(found, turned(image.shape)) < 0.05


def test_8_bit(image):
    grey = np.clip((image - 400) / 2, 0, 255).astype(np.uint8)
    assert off_by_mm(locate(grey), turned(image.shape)) < 0.05


def test_scaled_by_0_8_and_a_few_degrees_off_with_margin():
    found = locate(draw(0.3 / 0.8, margin_mm=12, angle=3.3))
    assert found.px_per_mm == pytest.approx(0.8 / 0.3, rel=1e-3)
    assert found.angle == pytest.approx(3.3, abs=0.05)


def test_a_large_image_is_reduced_and_the_placement_enlarged():
    big = np.kron(draw(0.6), np.ones((4, 4)))  # pixels of 0.15 mm
    assert off_by_mm(locate(big, pixel_mm=0.15), nominal(big.shape, 0.15, 1.0)) < 0.05


def test_writing_and_a_bright_border_do_not_disturb(image):
    framed = np.pad(image, 40, constant_values=16000)
    framed[43:48, 60:200:7] = 100
    assert off_by_mm(locate(framed), nominal(framed.shape, PIXEL_MM, 1.0)) < 0.05


def refused(image, **options):
    with pytest.raises(NoPhantom) as error:
        locate(image, **options)
    return str(error.value)


def test_noise_has_no_grid():
    assert "no grid was found" in refused(np.random.default_rng(0).normal(500, 10, (700, 450)))


def test_a_breast_has_no_grid():
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:700, :450]
    breast = gaussian_filter((np.hypot(y / 330 - 1, x / 300) < 0.9) * 500.0, 6)
    assert "no grid was found" in refused(
        breast + 100 * gaussian_filter(rng.normal(0, 9, y.shape), 5) + rng.normal(0, 5, y.shape)
    )


@pytest.mark.parametrize(
    ("part", "reason"), [(np.s_[:360], "is cut"), (np.s_[:, 75:], "is cut"), (np.s_[20:], "is cut")]
)
def test_a_cut_phantom_is_named(image, part, reason):
    assert reason in refused(image[part])


@pytest.mark.parametrize(("part", "reason"), [(np.s_[:195], "the phantom is cut"), (np.s_[225:300], "cut or covered")])
def test_a_covered_phantom_is_named(image, part, reason):
    covered = image.copy()
    covered[part] = 0
    assert reason in refused(covered)


def test_a_grid_without_discs_is_no_phantom():
    assert "fit in no way round" in refused(draw(PIXEL_MM, contrast=0))


def test_a_wrong_pixel_size_is_not_followed_to_a_wrong_scale(image):
    assert "no grid" in refused(image, pixel_mm=0.05)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((3, 700, 450)), "expected (H, W)"),
        (np.ones((100, 60)), "too small"),
        (np.zeros((0, 900)), "too small"),
        (np.full((700, 450), 7), "constant, every pixel is 7"),
        (np.where(np.eye(700, 450) > 0, np.nan, 1.0), "NaN"),
    ],
)
def test_bad_images_are_named(bad, reason):
    assert reason in refused(bad)
