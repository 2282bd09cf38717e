"""The phantom's geometry and its pixels."""

import numpy as np
import pytest

from xai_lib.cdmam import geometry
from xai_lib.cdmam.phantom import (
    BACKGROUND,
    GRID,
    WRITING,
    Detector,
    add_disc,
    build,
    crop,
    grid_lines,
    rotated,
    without_discs,
)  # fmt: skip

COARSE = Detector(pixel_mm=0.24)


@pytest.fixture(scope="module")
def phantom():
    return build(COARSE, margin=0.1)


def test_cells_as_published():
    assert geometry.CELLS.sum() == 205
    assert geometry.CELLS.sum(1).tolist() == [9, 11, 12, 13, 14, 15, 16, 16, 16, 15, 14, 13, 12, 11, 10, 8]
    assert len(geometry.discs()) == 410
    assert geometry.CURVE_MM == (1.0, 0.8, 0.63, 0.5, 0.4, 0.31, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08)


def test_plate_coordinates_by_hand():
    along, down = geometry.on_plate(np.array([9.0]), np.array([8.5]))
    assert along[0] == 0 and down[0] == pytest.approx(1.5 * 10 / np.sqrt(2))
    places = geometry.sites(3, 5)  # corner 1 lies 3 mm further along thickness, 3 mm less along diameter
    across = np.subtract(places[1], places[0])
    np.testing.assert_allclose(across, (6 / np.sqrt(2), 0), atol=1e-12)
    np.testing.assert_allclose(np.add(places[1], places[3]), np.multiply(2, places[0]))


def test_every_second_disc_lies_at_its_corner():
    table = geometry.discs()
    for centre, corner in zip(table.iloc[::2].itertuples(), table.iloc[1::2].itertuples(), strict=True):
        expected = geometry.sites(corner.row, corner.column)[corner.corner]
        assert (corner.along_mm, corner.down_mm) == pytest.approx(expected)
        assert (centre.place, corner.place) == ("centre", "corner")


def test_size_of_the_paper_scale():
    height, width = (round(side * Detector().px_per_mm) for side in (219.24 / 1.0375, 139.38 / 1.0375))
    assert (height, width) == (3654, 2323)


def test_a_disc_covers_its_area():
    classes, coverage = np.zeros((41, 41), np.uint8), np.zeros((41, 41), np.float32)
    add_disc(classes, coverage, 20.3, 19.6, 10.0, 7)
    assert coverage.sum() == pytest.approx(np.pi * 100, rel=2e-3)
    rows, columns = np.mgrid[:41, :41]
    assert (coverage * rows).sum() / coverage.sum() == pytest.approx(20.3, abs=0.02)
    assert (coverage * columns).sum() / coverage.sum() == pytest.approx(19.6, abs=0.02)
    assert set(np.unique(classes)) == {0, 7}


def test_a_disc_at_the_edge_is_cut():
    whole, part = np.zeros((41, 41), np.float32), np.zeros((21, 30), np.float32)
    add_disc(np.zeros(whole.shape, np.uint8), whole, 20.3, 19.6, 10.0, 7)
    add_disc(np.zeros(part.shape, np.uint8), part, 0.3, 19.6, 10.0, 7)
    np.testing.assert_array_equal(part, whole[20:, :30])


def test_grid_lines_are_half_a_millimetre_wide_and_at_45_degrees():
    step = 0.05
    down, along = (np.arange(-15, 15, step).astype(np.float32) for _ in range(2))
    share = grid_lines(down, along, step)
    assert share[-1, -1] in (0, 1) and share.max() == 1
    assert share.mean() == pytest.approx(1 - 0.95**2, abs=0.01)  # two sets of lines 0.5 mm wide every 10 mm
    moved = round(10 / np.sqrt(2) / step)
    assert np.abs(share[:-moved, :-moved] - share[moved:, moved:]).mean() < 0.01  # the pattern repeats along 45 degrees


def test_materials_and_discs(phantom):
    assert set(np.unique(phantom.classes)) == set(range(19))
    for disc in phantom.discs.itertuples():
        y, x = round(disc.y), round(disc.x)
        assert phantom.classes[y, x] == disc.column + 1
        if disc.diameter_mm >= 1:
            assert phantom.coverage[y, x] > 0.9
    assert (phantom.coverage[phantom.classes == BACKGROUND] <= 1e-3).all()
    assert phantom.pixel_mm == pytest.approx(0.24 / 1.0375)


def test_cells_that_do_not_exist_have_no_lines(phantom):
    height = phantom.shape[0]
    assert (phantom.classes[: height // 20] == BACKGROUND).all()  # the margin
    plain = build(COARSE, writing=False)
    assert not (plain.classes == WRITING).any()
    assert (plain.classes[: plain.shape[0] // 8, : plain.shape[1] // 8] == BACKGROUND).all()  # a corner of the crop


def test_crop_moves_the_discs(phantom):
    small = crop(phantom, 0.0)
    assert small.shape == build(COARSE).shape and small.margin == 0
    for disc in small.discs.itertuples():
        assert small.classes[round(disc.y), round(disc.x)] == disc.column + 1
    with pytest.raises(ValueError, match=r"margin: 0\.2 is not within 0 and the phantom's 0\.1"):
        crop(phantom, 0.2)


def test_rotation(phantom):
    turned = rotated(phantom)
    np.testing.assert_array_equal(turned.classes, np.rot90(phantom.classes))
    for disc in turned.discs.itertuples():
        assert turned.classes[round(disc.y), round(disc.x)] == disc.column + 1
    with pytest.raises(ValueError, match="turned"):
        crop(turned, 0)


def test_without_discs(phantom):
    bare = without_discs(phantom)
    assert set(np.unique(bare.classes)) == {BACKGROUND, GRID, WRITING}
    assert len(bare.discs) == 410
    same = phantom.classes >= GRID
    np.testing.assert_array_equal(bare.coverage[same], phantom.coverage[same])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"margin": 0.7}, "margin: 0.7"), ({"detector": Detector(pixel_mm=5)}, "pixels of 5 mm leave")],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)
