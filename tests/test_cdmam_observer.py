import dataclasses

import numpy as np
import pytest
from cdmam_images import draw

from xai_lib.cdmam.geometry import CELLS, CORNERS, DIAMETERS_MM, THICKNESSES_UM, sites
from xai_lib.cdmam.locate import nominal
from xai_lib.cdmam.observer import background, detect, detect_many

PIXEL_MM = 0.2


@pytest.fixture(scope="module")
def image():
    return draw(PIXEL_MM, noise=4.0)


@pytest.fixture(scope="module")
def placement(image):
    return nominal(image.shape, PIXEL_MM, 1.0)


def test_one_dark_pixel_decides():
    """A cell of 0.5 mm discs: only the true corner is dark; then a wrong one is darker; then the centre alone."""
    row, column = 6, 4
    true = int(CORNERS[row, column])
    wrong = true % 4 + 1
    for dark, corner, centre in (
        ({true: 5}, True, False),
        ({true: 5, wrong: 9}, False, False),
        ({0: 5}, False, True),
        ({0: 5, true: 9}, True, True),
        ({0: 5, wrong: 9}, False, False),
        ({}, False, False),  # a tie is no hit
    ):
        image = np.full((1101, 713), 100.0)
        place = nominal(image.shape, PIXEL_MM, 1.0)
        at = {k: tuple(round(float(v)) for v in place.pixels(*p)) for k, p in sites(row, column).items()}
        for k, depth in dark.items():
            image[at[k]] -= depth
        hits = detect(image, place)
        assert (hits.corner[row, column], hits.centre[row, column]) == (corner, centre)
        assert hits.corner.sum() == corner and hits.centre.sum() == centre  # no other cell


def test_the_search_ends_at_a_quarter_of_a_millimetre():
    row, column = 8, 9
    image = np.full((2201, 1425), 100.0)
    place = nominal(image.shape, 0.1, 1.0)
    true = int(CORNERS[row, column])
    others = {k: p for k, p in sites(row, column).items() if k not in (0, true)}
    wrong = next(iter(others.values()))
    y, x = (float(v) for v in place.pixels(*sites(row, column)[true]))
    image[round(y) + 2, round(x)] -= 5  # 0.2 mm away
    assert detect(image, place).corner[row, column]
    y, x = (float(v) for v in place.pixels(*wrong))
    image[round(y) + 12, round(x)] -= 500  # 1.2 mm away: more than search and smoothing
    assert detect(image, place).corner[row, column]


def test_large_thick_discs_are_all_seen_and_thin_small_ones_guessed(image, placement):
    hits = detect(image, placement)
    thick, thin = np.array(THICKNESSES_UM) >= 0.2, np.array(THICKNESSES_UM) <= 0.06
    large, small = np.array(DIAMETERS_MM) >= 1.0, np.array(DIAMETERS_MM) <= 0.5
    seen = CELLS & large[:, None] & thick
    assert hits.corner[seen].all() and hits.centre[seen].all()
    many = detect_many([draw(PIXEL_MM, noise=40.0, seed=s) for s in range(3)], placement, progress=False)
    guessed = CELLS & small[:, None] & thin
    assert 0.1 < many.corner[:, guessed].mean() < 0.45
    assert not hits.corner[~CELLS].any() and not hits.centre[~CELLS].any()


def test_without_discs_a_quarter_is_right():
    image = draw(PIXEL_MM, noise=5.0, contrast=0, seed=3)
    place = nominal(image.shape, PIXEL_MM, 1.0)
    rng = np.random.default_rng(0)
    hits = detect_many([image + rng.normal(0, 5, image.shape) for _ in range(5)], place, progress=False)
    n = 5 * CELLS.sum()
    for found in (hits.corner, hits.centre):
        assert found.sum() / n == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / n) ** 0.5)


def test_brighter_discs_read_alike(image, placement):
    plain, negative = detect(image, placement), detect(2000 - image, dataclasses.replace(placement, polarity=1))
    assert (plain.corner != negative.corner).sum() <= 1  # rounding
    assert detect(2000 - image, placement).corner.sum() < 60


def test_rotated_reads_alike(image, placement):
    turned = dataclasses.replace(nominal(image.T.shape, PIXEL_MM, 1.0), angle=270.0)
    one, other = detect(image, placement), detect(np.rot90(image), turned)
    assert (one.corner != other.corner).sum() <= 2 and (one.centre != other.centre).sum() <= 2


def test_flatten_takes_a_slope_away(image, placement):
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    sloped = image + 0.1 * x + 0.05 * y
    plain = detect(image, placement).corner
    flat = detect(sloped, placement, flatten=True).corner
    assert (plain != flat).mean() < 0.02
    assert detect(sloped, placement).corner.sum() < plain.sum() - 20


def test_background_is_the_level_without_gold(image, placement):
    levels = background(image, placement)
    assert levels.shape == (205,)
    assert levels == pytest.approx(800, abs=3)


def test_detect_many_stacks(image, placement):
    hits = detect_many([image, image], [placement, placement], progress=False)
    assert hits.corner.shape == hits.centre.shape == (2, 16, 16)
    assert (hits.corner[0] == detect(image, placement).corner).all()
    assert detect_many([], placement).corner.shape == (0, 16, 16)


def test_bad_input_is_named(image, placement):
    with pytest.raises(ValueError, match=r"image: has the shape \(3, .*expected \(H, W\)"):
        detect(np.stack([image] * 3), placement)
    with pytest.raises(ValueError, match="image: has NaN"):
        detect(np.full_like(image, np.nan), placement)
    with pytest.raises(ValueError, match="placement: discs of 2 mm lie outside the image of 300 x 712"):
        detect(image[:300, :], placement)
    with pytest.raises(ValueError, match="placements: 1 for 2 images"):
        detect_many([image, image], [placement], progress=False)
