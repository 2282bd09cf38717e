import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from skimage.draw import disk as draw_disk

from xai_lib import localization as loc

MASS, RING, BELOW = 1, 2, 4


def picture(*rows):
    """Regions drawn with . (none), m (mass), r (ring), b (below), x (ring and below)."""
    bits = {".": 0, "m": MASS, "r": RING, "b": BELOW, "x": RING | BELOW}
    return np.array([[bits[c] for c in row] for row in rows], np.uint8)


def mask_of(*rows):
    return np.array([[c == "m" for c in row] for row in rows])


def blob(seed, shape=(48, 40)):
    """A random, usually concave mass of several parts."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        rows, cols = draw_disk((rng.integers(4, 30), rng.integers(4, 36)), rng.integers(2, 7), shape=shape)
        mask[rows, cols] = True
    return mask


# ------------------------------------------------------------------------------------------------ regions


def test_regions_by_hand():
    mask = mask_of(".......", "...m...", ".......", ".......", ".......")
    expected = picture("..rrr..", "..rmr..", "..rrr..", "...b...", "...b...")
    assert_array_equal(loc.regions(mask, pixel_mm=1.0, ring_mm=1.5), expected)
    expected = picture("..rrr..", "..rmr..", "..rxr..", "...b...", "...b...")
    assert_array_equal(loc.regions(mask, pixel_mm=1.0, ring_mm=1.5, below="touching"), expected)


def test_ring_is_exact_in_mm():
    mask = np.zeros((41, 41), bool)
    mask[20, 20] = True
    areas = loc.regions(mask, pixel_mm=0.5)  # the paper's 5 mm are 10 pixels
    rows, cols = np.indices(mask.shape)
    distance_mm = 0.5 * np.hypot(rows - 20, cols - 20)
    assert_array_equal(areas & RING > 0, (distance_mm > 0) & (distance_mm <= 5))
    assert areas[20, 10] == areas[10, 20] == RING and areas[20, 9] == areas[9, 20] == 0
    assert areas[30, 20] == RING and areas[31, 20] == BELOW and areas[40, 20] == BELOW and areas[31, 21] == 0


def test_ring_follows_pixels_that_are_not_square():
    mask = np.zeros((41, 41), bool)
    mask[20, 20] = True
    ring = loc.regions(mask, pixel_mm=(1.0, 0.5)) & RING > 0
    assert ring[:, 20].sum() == 10 and ring[20].sum() == 20  # 5 pixels up and down, 10 to each side
    assert ring[20 + 3, 20 + 8] and not ring[20 + 3, 20 + 9]  # 3 mm and 4 mm: 5 mm; and 5.41 mm


def test_disk_is_an_ellipse_in_the_tissue():
    mask = np.zeros((41, 41), bool)
    mask[20, 20] = True
    ring = loc.regions(mask, pixel_mm=(1.0, 0.5), ring="disk") & RING > 0
    assert ring[:, 20].sum() == ring[20].sum() == 14  # round(5 / 0.75) = 7 pixels each way: 7 mm deep, 3.5 mm wide
    square = [loc.regions(mask, pixel_mm=0.5, ring=kind) for kind in ("disk", "euclidean")]
    assert_array_equal(*square)  # on square pixels and a single point the two are the same


def test_ring_fraction_of_the_equivalent_diameter():
    mask = np.zeros((64, 64), bool)
    mask[draw_disk((30, 30), 8)] = True
    width = 0.5 * 2 * np.sqrt(mask.sum() / np.pi)  # close to 8 pixels
    assert_array_equal(loc.regions(mask, ring_fraction=0.5), loc.regions(mask, pixel_mm=1.0, ring_mm=width))
    assert_array_equal(loc.regions(mask, ring_fraction=0.5), loc.regions(mask, pixel_mm=7.0, ring_fraction=0.5))


def test_mask_touching_the_border():
    expected = picture("mmr.", "mmr.", "rrr.", "bb..")
    assert_array_equal(loc.regions(expected == MASS, pixel_mm=1.0, ring_mm=1.5), expected)
    bottom = mask_of("....", ".mm.", ".mm.")
    assert not (loc.regions(bottom, pixel_mm=1.0, ring_mm=1.0) & BELOW).any()
    whole = np.ones((3, 3), bool)
    assert (loc.regions(whole, pixel_mm=1.0) == MASS).all()


def test_below_starts_under_the_lowest_pixel_of_each_column():
    hook = mask_of("mmmm", "m...", "...m", "....", "....")
    touching = loc.regions(hook, pixel_mm=1.0, ring_mm=0.5, below="touching")
    assert_array_equal(touching, picture("mmmm", "mbb.", "bbbm", "bbbb", "bbbb"))
    gap = mask_of("m.", "..", "m.", "..")  # between two masses it is not below
    assert_array_equal(loc.regions(gap, pixel_mm=1.0, ring_mm=0.5), picture("m.", "..", "m.", "b."))


@pytest.mark.parametrize("seed", range(8))
def test_regions_of_any_mass(seed):
    mask = blob(seed)
    apart = loc.regions(mask, pixel_mm=0.5, ring_mm=1.7)
    overlapping = loc.regions(mask, pixel_mm=0.5, ring_mm=1.7, below="touching")
    assert set(np.unique(apart)) <= {0, MASS, RING, BELOW}  # disjoint
    assert_array_equal(apart & MASS > 0, mask)
    assert_array_equal(apart & (MASS | RING), overlapping & (MASS | RING))
    assert_array_equal(apart & BELOW > 0, (overlapping & BELOW > 0) & (overlapping & RING == 0))
    for col in range(mask.shape[1]):
        under = np.flatnonzero(overlapping[:, col] & BELOW)
        lowest = np.flatnonzero(mask[:, col])
        expected = np.arange(lowest[-1] + 1, len(mask)) if len(lowest) else []
        assert_array_equal(under, expected)
    points = np.argwhere(mask)
    for row, col in np.argwhere(~mask)[::17]:
        near = 0.5 * np.hypot(*(points - (row, col)).T).min() <= 1.7
        assert near == bool(apart[row, col] & RING)


@pytest.mark.parametrize("size", [None, 0, -0.1, np.nan, np.inf, "0.08", "wide", (0.1, 0.0), (0.1, 0.1, 0.1), True])
def test_pixel_size_that_cannot_be_used(size):
    with pytest.raises(ValueError, match="pixel_mm"):
        loc.regions(np.eye(4, dtype=bool), pixel_mm=size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ring_mm": 0}, "ring_mm: 0 "),
        ({"ring_mm": np.nan}, "ring_mm: nan"),
        ({"ring_mm": np.inf}, "ring_mm: inf"),
        ({"ring_fraction": -1.0}, "ring_fraction: -1.0"),
        ({"ring": "square"}, "'square' is not 'euclidean' or 'disk'"),
        ({"below": "left"}, "'left' is not 'beyond_ring' or 'touching'"),
    ],
)
def test_options_that_cannot_be_used(options, message):
    with pytest.raises(ValueError, match=message):
        loc.regions(np.eye(4, dtype=bool), pixel_mm=1.0, **options)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), bool), np.zeros((0, 4), bool), np.ones((2, 4, 4), bool)])
def test_mask_that_cannot_be_used(mask):
    with pytest.raises(ValueError, match="mask: expected"):
        loc.regions(mask, pixel_mm=1.0)


# ----------------------------------------------------------------------------------------------- extremes


def test_extremes_are_cell_centres():
    cam = np.zeros((7, 7))
    cam[0, 6], cam[3, 2] = 1, -1
    found = loc.extremes(cam, (224, 448))
    assert found.maximum == (15.5, 6 * 64 + 31.5) and found.minimum == (3 * 32 + 15.5, 2 * 64 + 31.5)
    assert found.ties == (1, 1)


def test_a_cell_is_placed_in_the_middle_of_its_pixels():
    cam = np.zeros((7, 7))
    cam[2, 3], cam[4, 4] = 1, -1
    big = np.kron(cam, np.ones((32, 32)))
    rows, cols = np.nonzero(big == 1)
    assert loc.extremes(cam, (224, 224)).maximum == (rows.mean(), cols.mean())


def test_ties_are_counted_and_the_first_is_taken():
    cam = np.array([[0, 1, 1], [0, 1, 0]])
    found = loc.extremes(cam, (2, 3))
    assert found.ties == (3, 3) and found.maximum == (0, 1) and found.minimum == (0, 0)
    flat = loc.extremes(np.full((2, 2), 0.5), (4, 4))
    assert flat.ties == (4, 4) and flat.maximum == flat.minimum == (0.5, 0.5)


def test_offset_moves_and_the_image_clips():
    cam = np.array([[0.0, 2.0], [-1.0, 0.0]])
    found = loc.extremes(cam, (8, 8), offset=(-0.5, 1.0))
    assert found.maximum == (1.0, 6.5) and found.minimum == (5.0, 2.5)
    assert loc.extremes(cam, (8, 8), offset=(-15.5, 15.5)).maximum == (0, 7)


def test_the_first_of_equal_values_counts():
    cam = np.zeros((4, 4))
    cam[1, 1:3] = 1
    assert loc.extremes(cam, (4, 4)).maximum == (1, 1)
    assert loc.extremes(cam, (4, 4)).ties == (2, 14)


def test_maps_that_cannot_be_used():
    with pytest.raises(ValueError, match="cam: expected finite"):
        loc.extremes(np.array([[0, np.nan]]), (4, 4))
    with pytest.raises(ValueError, match="shape \\(4,\\)"):
        loc.extremes(np.zeros(4), (4, 4))


# ------------------------------------------------------------------------------------------ pointing game

AREAS = picture("......", "..rr..", ".rmmr.", "..rr..", "..bb..", "..bb..")


def hot_and_cold(hot, cold):
    cam = np.zeros(AREAS.shape)
    cam[hot], cam[cold] = 1, -1
    return cam


def test_pointing_game_by_hand():
    cam = hot_and_cold((2, 2), (1, 2))
    assert loc.pointing_game(cam, AREAS) == {"mass": True, "ring": True, "below": False, "any": True}
    maximum, minimum = (loc.pointing_game(cam, AREAS, which) for which in ("maximum", "minimum"))
    assert maximum == {"mass": True, "ring": False, "below": False, "any": True}
    assert minimum == {"mass": False, "ring": True, "below": False, "any": True}
    nowhere = {"mass": False, "ring": False, "below": False, "any": False}
    assert loc.pointing_game(hot_and_cold((0, 0), (5, 5)), AREAS) == nowhere
    with pytest.raises(ValueError, match="'either' is not"):
        loc.pointing_game(cam, AREAS, "either")


def test_the_three_scores_can_add_to_more_than_one():
    games = [loc.pointing_game(hot_and_cold((2, 2), cold), AREAS) for cold in ((1, 2), (4, 2))]
    means = {name: np.mean([g[name] for g in games]) for name in loc.COLUMNS}
    assert means == {"mass": 1, "ring": 0.5, "below": 0.5, "any": 1}


def test_offset_moves_the_points_of_the_game():
    cam = hot_and_cold((0, 2), (0, 0))
    assert loc.pointing_game(cam, AREAS)["any"] is False
    assert loc.pointing_game(cam, AREAS, offset=(4, 0)) == {"mass": False, "ring": False, "below": True, "any": True}


@pytest.mark.parametrize(
    ("point", "tolerance", "names"),
    [
        ((0, 0), 0, ()),
        ((0, 0), 2.2, ()),
        ((0, 0), 2.3, ("ring",)),  # (1, 2) and (2, 1) are sqrt(5) = 2.236 away
        ((0, 0), 2.9, ("mass", "ring")),  # (2, 2) is 2.83 away
        ((5, 5), 2, ("below",)),
        ((3, 2), 1, ("mass", "ring", "below")),
    ],
)
def test_tolerance(point, tolerance, names):
    hits = loc.region_hits(point, AREAS, tolerance)
    assert {name for name, hit in hits.items() if hit} == set(names)


@pytest.mark.parametrize("tolerance", [0.5, 1, 3.7, 15])
def test_tolerance_against_all_distances(tolerance):
    areas = loc.regions(blob(3), pixel_mm=0.5, ring_mm=1.7)
    for point in itertools.product(range(0, 48, 7), range(0, 40, 6)):
        for name, hit in loc.region_hits(point, areas, tolerance).items():
            places = np.argwhere(areas & loc.REGIONS[name])
            near = len(places) > 0 and np.hypot(*(places - point).T).min() <= tolerance
            assert hit == near


# ------------------------------------------------------------------------------------------------- chance


def test_shares_by_counting():
    assert loc.area_shares(AREAS) == pytest.approx({"mass": 2 / 36, "ring": 6 / 36, "below": 4 / 36, "any": 12 / 36})
    overlapping = picture("m.", "x.")
    assert loc.area_shares(overlapping) == {"mass": 0.25, "ring": 0.25, "below": 0.25, "any": 0.5}


def test_cell_shares_use_the_pixel_that_the_game_uses():
    areas = loc.regions(blob(1), pixel_mm=0.5, ring_mm=1.7)
    grid = (7, 5)
    counts = dict.fromkeys(loc.COLUMNS, 0)
    for cell in itertools.product(range(7), range(5)):
        cam = np.zeros(grid)
        cam[cell] = 1
        for name, hit in loc.pointing_game(cam, areas, "maximum").items():
            counts[name] += hit
    assert loc.cell_shares(areas, grid) == pytest.approx({name: n / 35 for name, n in counts.items()})


def test_cell_shares_of_a_grid_as_fine_as_the_image_are_area_shares():
    assert loc.cell_shares(AREAS, AREAS.shape) == loc.area_shares(AREAS)


def test_centre():
    assert loc.centre_hits(AREAS) == {"mass": False, "ring": True, "below": False, "any": True}
    assert loc.centre_hits(picture("...", ".m.", "...")) == {"mass": True, "ring": False, "below": False, "any": True}


@pytest.mark.parametrize(("cells", "hits"), [(9, 0), (9, 1), (9, 4), (9, 8), (9, 9), (49, 13), (2, 1)])
def test_two_cells_against_all_pairs(cells, hits):
    pairs = list(itertools.permutations(range(cells), 2))
    exact = np.mean([a < hits or b < hits for a, b in pairs])
    assert loc.two_points(hits / cells, cells) == pytest.approx(exact, abs=1e-12)


def test_two_points_by_hand():
    assert loc.two_points(0.5) == 0.75
    assert loc.two_points(0.0) == 0 and loc.two_points(1.0) == 1
    assert loc.two_points(1 / 4, 4) == pytest.approx(1 / 2)
    assert loc.two_points(1.0, 1) == 1 and loc.two_points(0.0, 1) == 0  # one cell is maximum and minimum


def test_chance_against_random_maps():
    """Maximum and minimum of maps of white noise are two different cells, each pair as likely."""
    rng = np.random.default_rng(0)
    areas = loc.regions(blob(2), pixel_mm=0.5, ring_mm=1.7)
    games = [loc.pointing_game(rng.normal(size=(7, 7)), areas) for _ in range(3000)]
    for name, share in loc.cell_shares(areas, (7, 7)).items():
        assert np.mean([g[name] for g in games]) == pytest.approx(loc.two_points(share, 49), abs=0.03)
    points = rng.integers(0, areas.shape, size=(3000, 2, 2))
    for name, share in loc.area_shares(areas).items():
        bit = loc.REGIONS.get(name, 7)
        drawn = [(areas[tuple(a)] | areas[tuple(b)]) & bit > 0 for a, b in points]
        assert np.mean(drawn) == pytest.approx(loc.two_points(share), abs=0.03)
