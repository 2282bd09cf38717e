import numpy as np
import pytest
from numpy.testing import assert_array_equal
from skimage.draw import disk, ellipse
from skimage.measure import label, regionprops
from skimage.metrics import hausdorff_distance

from xai_lib.studies.deletion import measures as dm

SHAPE = (60, 44)
WHOLE = np.ones(SHAPE, bool)


def mask_of(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def points(shape, *places):
    mask = np.zeros(shape, bool)
    mask[tuple(np.transpose(places))] = True
    return mask


def filled(draw, *geometry, shape=SHAPE):
    mask = np.zeros(shape, bool)
    mask[draw(*geometry, shape=shape)] = True
    return mask


def scattered(seed, share=0.03, shape=SHAPE):
    return np.random.default_rng(seed).random(shape) < share


MASS = filled(disk, (28, 20), 7)
BREAST = filled(ellipse, 30, 0, 28, 38)


def rng(seed=0):
    return np.random.default_rng(seed)


# ---------------------------------------------------------------------------------------------- threshold


def test_threshold_by_hand():
    values = np.array([[1.0, 4.0], [3.0, 2.0]])
    assert_array_equal(dm.threshold(values, 50), [[False, True], [True, False]])
    assert_array_equal(dm.threshold(values, 75), [[False, True], [False, False]])
    assert_array_equal(dm.threshold(-values, 25), [[True, False], [True, True]])  # signed values are ranked as they are


def test_ties_go_to_the_first_pixels():
    assert_array_equal(dm.threshold(np.zeros((2, 4)), 75), mask_of("##..", "...."))
    values = np.array([[5, 5, 0, 0], [7, 5, 5, 0]], np.uint8)  # unsigned: negating it would wrap around
    assert_array_equal(dm.threshold(values, 50), mask_of("##..", "##.."))


@pytest.mark.parametrize("percentile", [50, 75, 90])
def test_area_of_the_threshold_is_exact(percentile):
    noise = rng().normal(size=(320, 160)).astype(np.float32)
    for values in (noise, np.maximum(noise, 1), np.round(noise)):  # the last two are full of ties
        hole = dm.threshold(values, percentile)
        assert hole.dtype == bool and hole.sum() == 320 * 160 * (100 - percentile) // 100
        assert values[hole].min() >= values[~hole].max()
    assert_array_equal(dm.threshold(noise, percentile), noise > np.percentile(noise, percentile))


def test_threshold_inside_the_breast():
    values = np.array([[9.0, 1.0, 2.0], [9.0, 4.0, 3.0]])
    hole = dm.threshold(values, 50, inside=values < 9)
    assert_array_equal(hole, mask_of("...", ".##"))
    hole = dm.threshold(rng().random(SHAPE), 50, inside=BREAST)
    assert dm.area(hole, BREAST) == pytest.approx(0.5, abs=1 / BREAST.sum())


# ----------------------------------------------------------------------------------------------- distance


def test_distance_by_hand():
    truth = mask_of("###..", "###..", "###..", ".....", ".....")  # centre (1, 1)
    assert dm.distance(truth, truth) == 0
    assert dm.distance(points((5, 5), (4, 4)), truth) == pytest.approx(np.hypot(3, 3))
    two = points((5, 5), (1, 4), (4, 1), (4, 2))  # centres (1, 4), 3 away, and (4, 1.5)
    assert dm.distance(two, truth) == pytest.approx((3 + np.hypot(3, 0.5)) / 2)


def test_components_touch_at_corners():
    diagonal = mask_of("#...", ".#..", "..#.", "....")
    assert_array_equal(dm.centres(diagonal), [[1, 1]])
    assert_array_equal(dm.centres(points((4, 4), (0, 0), (0, 2), (3, 3))), [[0, 0], [0, 2], [3, 3]])
    assert dm.centres(np.zeros((4, 4), bool)).shape == (0, 2)


def test_mean_and_median_over_components():
    truth = points((1, 20), (0, 0))
    result = points((1, 20), (0, 1), (0, 3), (0, 17))
    assert dm.distance(result, truth) == 7
    assert dm.distance(result, truth, average="median") == 3


def test_median_over_masses():
    truth = points((1, 20), (0, 0), (0, 4), (0, 19))
    result = points((1, 20), (0, 2), (0, 6))  # per mass the mean is 4, 2 and 15
    assert dm.distance(result, truth) == 4
    ring = dm.band(MASS, 1.5)
    assert dm.distance(ring, MASS) == pytest.approx(0)  # centres alone count


@pytest.mark.parametrize("seed", range(4))
def test_distance_against_scikit_image(seed):
    result, truth = scattered(seed, 0.2), scattered(seed + 10, 0.01)
    found, marked = ([np.array(p.centroid) for p in regionprops(label(m, connectivity=2))] for m in (result, truth))
    apart = [[np.linalg.norm(a - b) for b in found] for a in marked]
    assert dm.distance(result, truth) == pytest.approx(np.median([np.mean(row) for row in apart]))
    assert dm.distance(result, truth, "median") == pytest.approx(np.median([np.median(row) for row in apart]))
    assert len(dm.centres(result)) == len(found)


# ---------------------------------------------------------------------------------------------- hausdorff


def test_hausdorff_by_hand():
    truth = points((9, 9), (4, 4))
    assert dm.hausdorff(truth, truth) == 0
    assert dm.hausdorff(points((9, 9), (0, 1)), truth) == 5
    assert dm.hausdorff(points((9, 9), (4, 4), (8, 8)), truth) == pytest.approx(np.sqrt(32))  # one stray pixel
    assert dm.hausdorff(truth, points((9, 9), (4, 4), (8, 8))) == pytest.approx(np.sqrt(32))  # and one that is missed
    assert dm.hausdorff(np.ones((9, 9), bool), truth) == pytest.approx(np.sqrt(32))


@pytest.mark.parametrize("share", [0.001, 0.03, 0.5, 1.0])
def test_hausdorff_against_scikit_image(share):
    for seed in range(3):
        result = scattered(seed, share) | points(SHAPE, (seed, 3))
        assert dm.hausdorff(result, MASS) == pytest.approx(hausdorff_distance(result, MASS), abs=1e-12)
        assert dm.hausdorff(MASS, result) == dm.hausdorff(result, MASS)


# --------------------------------------------------------------------------------------- area and overlap


def test_area_by_hand():
    breast = mask_of("##..", "##..", "##..")
    result = mask_of("#...", "##..", "..##")
    assert dm.area(result, breast) == 3 / 6
    assert dm.area(result, breast, over="image") == 5 / 12
    assert dm.area(~breast, breast) == 0 and dm.area(breast, breast) == 1


def test_saliency_covers_half_of_the_image():
    """The paper's .50 +- .0."""
    areas = [dm.area(dm.threshold(rng(s).random(SHAPE), 50), BREAST, over="image") for s in range(5)]
    assert areas == [0.5] * 5


def test_overlap_by_hand():
    a, b = mask_of("##..", "##.."), mask_of(".##.", "....")
    assert dm.overlap(a, b) == dm.overlap(b, a) == 1 / 2
    assert dm.overlap(a, a) == 1 and dm.overlap(a, ~a) == 0
    assert dm.overlap(mask_of("#...", "...."), a) == 1  # one holds the other
    assert np.isnan(dm.overlap(a, np.zeros((2, 4), bool))) and np.isnan(dm.overlap(np.zeros((2, 4), bool), a))


# ------------------------------------------------------------------------------------------ circumference


def test_band_by_hand():
    truth = np.zeros((1, 12), bool)
    truth[0, :6] = True  # the contour lies at 5.5; the image's border is none
    assert_array_equal(np.flatnonzero(dm.band(truth, 0.5)), [5, 6])
    assert_array_equal(np.flatnonzero(dm.band(truth, 2)), [4, 5, 6, 7])
    assert_array_equal(np.flatnonzero(dm.band(truth, 3.5)), range(2, 10))
    assert dm.band(truth, 100).all()
    assert not dm.band(truth, 0.4).any()
    square = mask_of(".....", ".###.", ".###.", ".###.", ".....")
    assert_array_equal(dm.band(square, 0.5), mask_of(".###.", "#####", "##.##", "#####", ".###."))  # corners: 0.91


@pytest.mark.parametrize("width", [1, 3.2])
def test_band_against_all_distances(width):
    inside, outside = np.argwhere(MASS), np.argwhere(~MASS)
    for row, col in np.argwhere(WHOLE)[::7]:
        other = outside if MASS[row, col] else inside
        near = np.hypot(*(other - (row, col)).T).min() - 0.5 <= width
        assert dm.band(MASS, width)[row, col] == near


def test_circumference_by_hand():
    truth = np.zeros((1, 12), bool)
    truth[0, :6] = True
    assert dm.circumference(points((1, 12), (0, 0), (0, 4), (0, 7), (0, 11)), truth, 2) == 0.5
    assert dm.circumference(dm.band(MASS, 2), MASS, 2) == 1
    assert dm.circumference(filled(disk, (28, 20), 4), MASS, 2) == 0  # the core: 7 - 4 > 2
    assert np.isnan(dm.circumference(np.zeros(SHAPE, bool), MASS, 2))


def test_shifted_circumference_by_hand():
    truth = np.zeros((1, 12), bool)
    truth[0, :6] = True  # band of 2: pixels 4 to 7
    pixel = points((1, 12), (0, 11))
    breast = np.zeros((1, 12), bool)
    breast[0, 4:9] = True  # four of five places lie in the band
    assert dm.shifted_circumference(pixel, truth, breast, 2, 4000, rng()) == pytest.approx(0.8, abs=0.02)
    only = points((1, 12), (0, 4))  # a pair around 11 moves to 4 and 5; a triple to 3, 4, 5
    assert dm.shifted_circumference(points((1, 12), (0, 9), (0, 10), (0, 11)), truth, only, 2, 5, rng()) == 2 / 3
    edge = points((1, 12), (0, 0))  # of the triple around 0, the pixels 0 and 1 are left
    three = points((1, 12), (0, 3), (0, 4), (0, 5))
    assert dm.shifted_circumference(three, truth, edge, 2, 5, rng()) == 0
    assert dm.shifted_circumference(three, points((1, 12), (0, 0)), edge, 1, 5, rng()) == 1
    assert np.isnan(dm.shifted_circumference(np.zeros((1, 12), bool), truth, breast, 2, 5, rng()))


def test_a_draw_that_leaves_nothing_in_the_image_is_left_out():
    corners, truth = points((3, 3), (0, 0), (2, 2)), points((3, 3), (0, 0))
    away, home = points((3, 3), (0, 2)), points((3, 3), (1, 1))  # at (0, 2) both pixels fall outside, at (1, 1) none
    assert np.isnan(dm.shifted_circumference(corners, truth, away, 0.5, 3, rng()))
    assert dm.shifted_circumference(corners, truth, home, 0.5, 3, rng()) == 0.5
    assert dm.shifted_circumference(corners, truth, away | home, 0.5, 40, rng()) == 0.5


def test_shifted_mask_against_all_places():
    result = filled(disk, (10, 8), 3) | points(SHAPE, (15, 15))
    centre = np.round(np.argwhere(result).mean(axis=0)).astype(int)
    rim, shares = dm.band(MASS, 2), []
    for place in np.argwhere(BREAST):
        moved = np.pad(result, 60)  # the image shifted over a margin, and cut out
        row, col = np.array([60, 60]) + centre - place
        moved = moved[row : row + SHAPE[0], col : col + SHAPE[1]]
        shares.append(rim[moved].mean())
    mean = dm.shifted_circumference(result, MASS, BREAST, 2, 3000, rng())
    assert mean == pytest.approx(np.mean(shares), abs=4 * np.std(shares) / np.sqrt(3000))


def test_controls_tell_ring_disc_and_elsewhere_apart():
    ring, core = dm.band(MASS, 1), filled(disk, (28, 20), 4)
    elsewhere = dm.shifted_circumference(ring, MASS, BREAST, 2, 200, rng())
    assert dm.circumference(ring, MASS, 2) == 1 > elsewhere + 0.5
    assert dm.circumference(MASS, MASS, 2) > dm.shifted_circumference(MASS, MASS, BREAST, 2, 200, rng())  # any hit does
    on_mass = [dm.shifted_circumference(m, MASS, MASS, 2, 200, rng()) for m in (ring, core)]
    assert dm.circumference(ring, MASS, 2) > on_mass[0] and dm.circumference(core, MASS, 2) < on_mass[1]


def test_shift_follows_the_generator():
    draw = [dm.shifted_circumference(MASS, MASS, BREAST, 2, 5, rng(seed)) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]


# ------------------------------------------------------------------------------------------------ measure


def test_measure_by_hand():
    truth, breast = np.zeros((5, 8), bool), np.zeros((5, 8), bool)
    truth[1:4, 1:4], breast[:, :6] = True, True
    result = points((5, 8), (2, 2), (2, 3), (2, 6))
    row = dm.measure(result, truth, breast, pixel_mm=2.0, width_mm=1.0, rng=rng())  # a band of half a pixel
    shifted = row.pop("shifted")
    assert row == pytest.approx(
        {
            "D": (0.5 + 4) / 2,
            "H": 3,
            "A": 2 / 30,
            "components": 2,
            "empty": False,
            "area": 3,
            "hit": 2 / 3,
            "circumference": 1 / 3,
        }
    )
    assert shifted == dm.shifted_circumference(result, truth, breast, 0.5, 100, rng())
    assert dm.measure(result, truth, breast, rng=rng(), average="median")["D"] == row["D"]


def test_measure_of_an_empty_result():
    row = dm.measure(np.zeros(SHAPE, bool), MASS, BREAST, 0.625, rng=rng())
    assert row["empty"] is True and row["A"] == row["components"] == row["area"] == 0
    assert all(np.isnan(row[name]) for name in ("D", "H", "hit", "circumference", "shifted"))


def test_band_needs_the_pixel_size():
    row = dm.measure(MASS, MASS, BREAST, rng=rng())
    assert np.isnan(row["circumference"]) and np.isnan(row["shifted"])
    assert row["D"] == row["H"] == 0 and row["hit"] == 1
    fine, coarse = (dm.measure(MASS, MASS, BREAST, mm, rng=rng())["circumference"] for mm in (0.5, 1.0))
    assert fine == dm.circumference(MASS, MASS, 4) > coarse == dm.circumference(MASS, MASS, 2)


@pytest.mark.parametrize("move", [(3, 2), (-5, 7)])
def test_measures_move_with_the_image(move):
    result = filled(disk, (22, 18), 3) | points(SHAPE, (40, 10))
    breast = filled(disk, (30, 18), 9)
    moved = [np.roll(m, move, axis=(0, 1)) for m in (result, MASS, breast)]
    expected = dm.measure(result, MASS, breast, 0.625, rng=rng())
    assert dm.measure(*moved, 0.625, rng=rng()) == pytest.approx(expected)


def test_measures_turn_with_the_image():
    result = scattered(3)
    expected = dm.measure(result, MASS, BREAST, 0.625, rng=rng())
    turned = dm.measure(result.T, MASS.T, BREAST.T, 0.625, rng=rng())
    del expected["shifted"], turned["shifted"]  # other draws
    assert turned == pytest.approx(expected)


def test_measure_leaves_its_masks_alone():
    masks = [scattered(1), MASS.copy(), BREAST.copy()]
    before = [m.copy() for m in masks]
    dm.measure(*masks, 0.625, rng=rng())
    for mask, old in zip(masks, before, strict=True):
        assert_array_equal(mask, old)


# ------------------------------------------------------------------------------------------- chance masks


def test_disc_by_hand():
    assert_array_equal(dm.disc(5, (1, 2), (4, 5)), mask_of("..#..", ".###.", "..#..", "....."))
    assert_array_equal(dm.disc(2, (1, 2), (4, 5)), mask_of("..#..", "..#..", ".....", "....."))  # the first in order
    assert_array_equal(dm.disc(3, (0, 0), (4, 5)), mask_of("##...", "#....", ".....", "....."))  # cut off at the corner
    assert not dm.disc(0, (0, 0), (4, 5)).any() and dm.disc(20, (0, 0), (4, 5)).all()


@pytest.mark.parametrize("area", [1, 2, 37, 500, 2000])
def test_chance_masks_have_the_area(area):
    image = rng().random(SHAPE)
    for mask in (
        dm.random_disc(area, BREAST, rng()),
        dm.breast_centre(area, BREAST),
        dm.brightest_spot(area, image, BREAST, 2),
    ):
        assert mask.dtype == bool and mask.shape == SHAPE and mask.sum() == area
        assert len(dm.centres(mask)) == 1


def test_random_disc_takes_each_pixel_of_the_breast():
    breast = points((3, 4), (0, 0), (1, 2), (2, 3))
    stream = rng()
    counts = sum(dm.random_disc(1, breast, stream).astype(int) for _ in range(900))
    assert (counts > 0).sum() == 3 and counts[breast].min() > 240
    assert_array_equal(dm.random_disc(50, BREAST, rng(4)), dm.random_disc(50, BREAST, rng(4)))


def test_breast_centre():
    breast = np.zeros(SHAPE, bool)
    breast[10:31, 4:25] = True
    assert_array_equal(dm.breast_centre(97, breast), dm.disc(97, (20, 14), SHAPE))
    bow = mask_of("####", "...#", "####")  # the centre of mass (1, 1.8) is outside; (0, 2) is the first of the nearest
    assert_array_equal(dm.breast_centre(1, bow), points((3, 4), (0, 2)))


def test_brightest_spot():
    image = np.full(SHAPE, 0.2)
    image[40, 9] = 1.0  # a single bright pixel
    image[18:25, 14:21] = 0.6  # a bright region
    image[:15][~BREAST[:15]] = 5.0  # a label that touches the breast
    assert BREAST[40, 9] and BREAST[18:25, 14:21].all()
    assert_array_equal(dm.brightest_spot(30, image, BREAST, 0), dm.disc(30, (40, 9), SHAPE))
    assert_array_equal(dm.brightest_spot(30, image, BREAST, 2), dm.disc(30, (21, 17), SHAPE))
    assert_array_equal(dm.brightest_spot(1, -image - 1, BREAST, 0) & ~BREAST, np.zeros(SHAPE, bool))


# ---------------------------------------------------------------------------------------------- bad input

EMPTY = np.zeros(SHAPE, bool)
SMALL = np.ones((5, 5), bool)
CALLS = {
    "distance": (lambda result, truth, breast: dm.distance(result, truth), "result truth"),
    "hausdorff": (lambda result, truth, breast: dm.hausdorff(result, truth), "result truth"),
    "area": (lambda result, truth, breast: dm.area(result, breast), "result breast"),
    "overlap": (lambda result, truth, breast: dm.overlap(truth, result), "b"),
    "circumference": (lambda result, truth, breast: dm.circumference(result, truth, 2), "result truth"),
    "shifted": (
        lambda result, truth, breast: dm.shifted_circumference(result, truth, breast, 2, 3, rng()),
        "result truth breast",
    ),
    "measure": (lambda result, truth, breast: dm.measure(result, truth, breast, rng=rng()), "result truth breast"),
    "random_disc": (lambda result, truth, breast: dm.random_disc(5, breast, rng()), "breast"),
    "breast_centre": (lambda result, truth, breast: dm.breast_centre(5, breast), "breast"),
    "brightest_spot": (lambda result, truth, breast: dm.brightest_spot(5, np.ones(SHAPE), breast, 1), "breast"),
    "threshold": (lambda result, truth, breast: dm.threshold(np.ones(SHAPE), 50, inside=breast), "inside"),
}
SITES = [(name, argument) for name, (_, arguments) in CALLS.items() for argument in arguments.split()]


def call(name, argument, mask):
    masks = {"result": MASS, "truth": MASS, "breast": BREAST}
    CALLS[name][0](**{**masks, {"b": "result", "inside": "breast"}.get(argument, argument): mask})


@pytest.mark.parametrize(("name", "argument"), SITES)
@pytest.mark.parametrize("kind", [np.float32, np.uint8, list])
def test_mask_that_is_not_bool(name, argument, kind):
    mask = MASS.tolist() if kind is list else MASS.astype(kind)
    with pytest.raises(TypeError, match=f"{argument}: expected a NumPy array of bool, got {kind.__name__}"):
        call(name, argument, mask)


@pytest.mark.parametrize(("name", "argument"), SITES)
def test_mask_of_another_shape(name, argument):
    with pytest.raises(ValueError, match="expected shape"):
        call(name, argument, WHOLE[None])
    if name not in ("random_disc", "breast_centre"):  # they take one mask alone
        with pytest.raises(ValueError, match="expected shape"):
            call(name, argument, np.eye(5, dtype=bool))


@pytest.mark.parametrize(("name", "argument"), [s for s in SITES if s[1] in ("truth", "breast", "inside")])
def test_empty_mask(name, argument):
    with pytest.raises(ValueError, match=f"{argument}: is empty"):
        call(name, argument, EMPTY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dm.threshold(np.ones(SHAPE), 0), "percentile: 0 is not in"),
        (lambda: dm.threshold(np.ones(SHAPE), 100), "percentile: 100 is not in"),
        (lambda: dm.threshold(np.ones(SHAPE), -5), "percentile: -5"),
        (lambda: dm.threshold(np.ones(SHAPE), np.nan), "percentile: nan"),
        (lambda: dm.threshold(np.full(SHAPE, np.nan), 50), "values: expected finite"),
        (lambda: dm.threshold(np.ones(5), 50), "values: expected finite values of shape"),
        (lambda: dm.threshold(np.ones((0, 4)), 50), "values: expected finite values of shape"),
        (lambda: dm.distance(MASS, MASS, "mode"), "average: 'mode' is not 'mean' or 'median'"),
        (lambda: dm.area(MASS, BREAST, "chest"), "over: 'chest' is not 'breast' or 'image'"),
        (lambda: dm.band(MASS, 0), "width_px: 0 is not a positive number"),
        (lambda: dm.band(MASS, np.inf), "width_px: inf"),
        (lambda: dm.band(WHOLE, 2), "truth: fills the image"),
        (lambda: dm.shifted_circumference(MASS, MASS, BREAST, 2, 0, rng()), "draws: 0 is not at least 1"),
        (lambda: dm.measure(MASS, MASS, BREAST, 0.0, rng=rng()), r"pixel_mm: 0\.0 is not a positive number"),
        (lambda: dm.measure(MASS, MASS, BREAST, np.nan, rng=rng()), "pixel_mm: nan"),
        (lambda: dm.measure(MASS, MASS, BREAST, 0.6, width_mm=-1, rng=rng()), "width_px: -1.66"),
        (lambda: dm.measure(MASS, MASS, BREAST, 0.6, width_mm=0, rng=rng()), r"width_px: 0\.0"),
        (lambda: dm.disc(-1, (0, 0), SHAPE), "area_px: -1 is not from 0 to"),
        (lambda: dm.random_disc(60 * 44 + 1, BREAST, rng()), "area_px: 2641 is not from 0 to the image's 60 x 44"),
        (lambda: dm.brightest_spot(5, np.ones(SHAPE), BREAST, -1), "sigma_px: -1"),
        (lambda: dm.brightest_spot(5, np.full(SHAPE, np.inf), BREAST, 1), "image: expected finite"),
    ],
)
def test_options_that_cannot_be_used(call, message):
    with pytest.raises(ValueError, match=message):
        call()
