"""Masks of perturbation maps, by hand."""

import math

import pytest
import torch
from torch import Tensor

from xai_lib.perturbation_masks import (
    area_misfit,
    blur,
    centred_disc,
    enlarge,
    gaussian_weights,
    radial_weights,
    smooth_masks,
)


def test_a_mask_is_drawn_large_and_cut_out_at_its_shift() -> None:
    """Two cells a side, image 2 x 4: cells of 1 x 2, drawn on 3 x 6; rows by hand at (k + 1/2) 2/3 - 1/2."""
    grid = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    row = torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1])
    for shift in (0, 1):
        found = enlarge(grid, torch.tensor([[0, shift]]), (2, 4))
        torch.testing.assert_close(found, row[shift : shift + 4].expand(1, 2, 4))
    down = enlarge(grid.mT, torch.tensor([[0, 0]]), (2, 4))[0, :, 0]
    torch.testing.assert_close(down, torch.tensor([0, 0.5]))


def test_a_blurred_constant_is_that_constant_and_a_point_a_gaussian() -> None:
    torch.testing.assert_close(blur(torch.full((2, 1, 9, 13), 0.3), 2.0), torch.full((2, 1, 9, 13), 0.3))
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[0, 0, 20, 20] = 1
    found = blur(point, 2.0)[0, 0]
    expected = torch.tensor(1 / (2 * math.pi * 4), dtype=torch.float64)
    torch.testing.assert_close(found[20, 20], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[22, 24], expected * math.exp(-(4 + 16) / 8), rtol=1e-6, atol=0)
    assert blur(point, 0) is point


def test_weights_of_two_cells() -> None:
    """Cells of two pixels with centres 1 and 3; a pixel at 0.5 is 0.5 and 2.5 away."""
    near, far = math.exp(-0.125), math.exp(-3.125)
    found = gaussian_weights(4, 2, 1.0)
    torch.testing.assert_close(found[0], torch.tensor([near, far], dtype=torch.float64) / (near + far))
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))


def test_the_smallest_disc_that_is_enough() -> None:
    """3 x 3 cells at distances 0, 1 and sqrt 2: a disc of radius 1 leaves the corners, 4/9 of the mean."""
    ones, corners = torch.ones(2, 3, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 0, 1]])

    def score(masks: Tensor) -> Tensor:
        return torch.stack([masks[0].mean(), masks[1, 1, 1]])

    assert torch.equal(centred_disc(score, ones, 0.5), torch.stack([corners, corners]))
    assert torch.equal(centred_disc(score, ones, 0.6), torch.stack([torch.zeros(3, 3), corners]))
    assert torch.equal(centred_disc(lambda masks: -score(masks), ones, 0.5), torch.zeros(2, 3, 3))


def test_a_smooth_maximum_by_hand() -> None:
    """Cells of one pixel, sigma 1: neighbours within 2; a cell weighs exp(-2 (d - 1/2)^2) at distance d."""
    weights = radial_weights(1, 1.0, 1)
    assert weights.shape == (25, 1) and float(weights[12]) == 1
    assert float(weights[13]) == pytest.approx(math.exp(-0.5)) and float(weights[10]) == pytest.approx(math.exp(-4.5))
    cells = torch.zeros(1, 1, 7, 7, dtype=torch.float64)
    cells[0, 0, 3, 3] = 1
    found = smooth_masks(cells, weights, 0.05)
    for place, weight in (((3, 3), 1.0), ((3, 4), math.exp(-0.5)), ((5, 3), math.exp(-4.5))):
        share = math.exp(20 * weight) / (math.exp(20 * weight) + 24)
        assert float(found[0][place]) == pytest.approx(weight * share)
    assert float(found[0, 0, 0]) == 0


def test_points_of_a_cell_and_the_border() -> None:
    """Two points in a cell of four pixels lie one pixel from its centre; the border repeats its cells."""
    weights = radial_weights(4, 2.0, 2)
    assert weights.shape == (25, 4)
    torch.testing.assert_close(weights[12], torch.full((4,), math.exp(-2 * (math.sqrt(2) / 2 - 0.5) ** 2)).double())
    masks = smooth_masks(torch.ones(1, 1, 3, 5, dtype=torch.float64), weights, 0.05)
    assert masks.shape == (1, 6, 10)
    torch.testing.assert_close(masks, masks[:, :1, :1].expand_as(masks))


def test_the_misfit_of_an_area() -> None:
    """Sorted 0, .2, .6, 1 against 0, 0, 0, 1 and against 0, 0, 1, 1."""
    masks = torch.tensor([[[1.0, 0.2], [0.0, 0.6]]])
    assert float(area_misfit(masks, 0.25)) == pytest.approx((0.04 + 0.36) / 4)
    assert float(area_misfit(masks, 0.5)) == pytest.approx((0.04 + 0.16) / 4)
