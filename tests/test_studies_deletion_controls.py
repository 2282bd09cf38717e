"""Other fills, the distance from healthy images and holes over the mass: by hand, against SciPy, and bad input."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage
from scipy.spatial.distance import mahalanobis
from test_inpainting import drawn, holes
from torch import nn

from xai_lib import models
from xai_lib.deletion_region import fill
from xai_lib.studies.deletion import controls as dc

KEEP = torch.ones(1, 1, 6, 8)
KEEP[..., 2:4, 3:5] = 0


# ---------------------------------------------------------------------------------------- fills


def test_grey_is_the_mean_of_each_image_s_tissue():
    x = torch.zeros(2, 1, 2, 2)
    x[0, 0, 0] = torch.tensor([0.2, 0.6])
    x[1] = 0.5
    assert_allclose(dc.grey(x, x)[:, 0], [[[0.4] * 2] * 2, [[0.5] * 2] * 2])


def test_blur_by_hand():
    assert_allclose(dc.blur(torch.full((1, 1, 9, 9), 0.3), KEEP), 0.3, rtol=1e-6)
    x = drawn(2, 1, 12, 10)
    for image, smooth in zip(x, dc.blur(x, KEEP, sigma=2.0), strict=True):
        assert_allclose(smooth[0], ndimage.gaussian_filter(image[0].numpy().astype(float), 2.0), atol=1e-6)


def test_noise_has_the_mean_and_scatter_of_the_tissue():
    x = 0.5 + 0.05 * drawn(3, 1, 64, 64)
    x[..., 32:] = 0
    found = dc.noise(x, x)
    tissue = x[..., :32].flatten(1)
    assert_allclose(found.flatten(1).mean(1), tissue.mean(1), atol=1e-3)
    assert_allclose(found.flatten(1).std(1), tissue.std(1), rtol=0.05)
    assert torch.equal(found, dc.noise(x, x))
    for i in range(3):
        assert torch.equal(found[i : i + 1], dc.noise(x[i : i + 1], x))
    wide = torch.cat((torch.full((1, 1, 8, 8), 0.01), torch.full((1, 1, 8, 8), 0.99)), 2)
    assert dc.noise(wide, wide).min() == 0 and dc.noise(wide, wide).max() == 1


def test_mean_of_the_rim_by_hand():
    """One pixel around the hole without its corners: four pixels of 0.4 above and below, four of 0.8 at the sides."""
    x = torch.zeros(1, 1, 6, 8)
    x[..., (1, 4), 3:5], x[..., 2:4, 2], x[..., 2:4, 5] = 0.4, 0.8, 0.8
    x[..., 2:4, 3:5] = 9.0
    drawn_ = dc.rim(x, KEEP, width=1)
    assert_allclose(drawn_[KEEP == 0], (4 * 0.4 + 4 * 0.8) / 8, rtol=1e-6)
    assert torch.equal(drawn_[KEEP == 1], x[KEEP == 1])


def test_each_hole_has_its_own_rim():
    x, keep = torch.full((2, 1, 8, 20), 0.2), torch.ones(2, 1, 8, 20)
    x[..., 10:] = 0.6
    keep[0, :, 3:5, 3:5], keep[0, :, 3:5, 16:18], keep[1, :, 2, 2] = 0, 0, 0
    out = dc.rim(x * keep, keep, width=2)
    assert_allclose(out, x, rtol=1e-6)
    assert (dc.rim(x, 0 * keep) == 0).all()  # nothing around it


@pytest.mark.parametrize("name", list(dc.FILLS))
def test_a_fill_stands_where_the_inpainter_stands(name):
    """What is known stays; what lies in the hole is replaced; images of a batch do not see each other."""
    x, hole = 0.2 + 0.6 * drawn(3, 1, 16, 12), holes(3, 1, 16, 12)[:, 0] == 0
    filled = fill(dc.FILLS[name], x, hole)
    assert torch.equal(filled[:, 0][~hole], x[:, 0][~hole]) and filled.dtype == x.dtype
    assert (filled != x)[:, 0][hole].all()
    for i in range(3):
        assert torch.equal(filled[i : i + 1], fill(dc.FILLS[name], x[i : i + 1], hole[i : i + 1]))
    assert list(dc.FILLS) == ["blur", "noise", "grey", "mean of the rim"]


# ---------------------------------------------------------------------------------------- distance


def classifier():
    """Two features: the mean of the image, and the mean of its squares."""

    class Powers(nn.Module):
        def forward(self, x):
            return torch.cat((x, x.square()), 1)

    model = models.Classifier(Powers(), 2, {"in_channels": 1, "outputs": 1}).eval()
    model.normalize = nn.Identity()
    return model


def test_features_are_pooled_in_chunks():
    x = drawn(5, 1, 4, 4)
    healthy = dc.Healthy(classifier(), x)
    expected = torch.stack((x.mean((1, 2, 3)), x.square().mean((1, 2, 3))), 1)
    for chunk in (2, 16):
        assert_allclose(healthy.features(x, chunk), expected, rtol=1e-5)
    assert healthy.features(x).dtype == np.float64


def test_distance_against_scipy():
    known, x = drawn(20, 1, 4, 4), drawn(4, 1, 4, 4, seed=1) + 0.3
    healthy = dc.Healthy(classifier(), known)
    features = healthy.features(known)
    shrunk = healthy.fitted.covariance_
    inverse = np.linalg.inv(shrunk)
    expected = [mahalanobis(f, features.mean(0), inverse) for f in healthy.features(x)]
    assert_allclose(healthy(x), expected, rtol=1e-6)
    plain, share = np.cov(features.T, bias=True), healthy.fitted.shrinkage_
    assert_allclose(shrunk, (1 - share) * plain + share * np.trace(plain) / 2 * np.eye(2), rtol=1e-6)


def test_what_is_farther_from_healthy_is_more_distant():
    known = 0.4 + 0.1 * drawn(30, 1, 8, 8)
    found = dc.Healthy(classifier(), known)(torch.stack([torch.full((1, 8, 8), v) for v in (0.45, 0.6, 0.9)]))
    assert (np.diff(found) > 0).all()


def test_the_model_stays_as_it_is():
    model = classifier()
    dc.Healthy(model, drawn(4, 1, 4, 4))(drawn(1, 1, 4, 4))
    assert not model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(count):
    with pytest.raises(ValueError, match=f"healthy: {count} images, expected at least two"):
        dc.Healthy(classifier(), drawn(2, 1, 4, 4)[:count])


# ---------------------------------------------------------------------------------------- holes


def test_squares_on_a_lattice_by_hand():
    """Sides of 5 and 7 hold two rows and three columns of squares of 3 pixels, the last ones cut off."""
    mask = np.zeros((5, 7), bool)
    mask[2, 2] = mask[4, 6] = True
    expected = np.zeros((5, 7), bool)
    expected[:3, :3] = expected[3:, 6:] = True
    assert_array_equal(dc.squares(mask, 3), expected)
    assert_array_equal(dc.squares(mask, 1), mask)
    assert dc.squares(mask, 100).all() and not dc.squares(mask & False, 3).any()
    assert dc.squares(mask, 3).dtype == bool


def test_mass_holes_cover_the_mass_and_no_square_more():
    y, x = np.mgrid[:40, :30]
    mask = np.hypot(y - 19, x - 6) < 8
    wider, rng, seen = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=2), np.random.default_rng(0), set()
    for _ in range(12):
        hole = dc.mass_holes(mask, side=8, rng=rng)
        assert hole.shape == mask.shape and hole.dtype == bool
        assert hole[wider].all()
        assert (ndimage.distance_transform_cdt(~wider, "chessboard")[hole] <= 7).all()
        seen.add(hole.tobytes())
    assert len(seen) > 6  # the lattice moves
    tight = dc.mass_holes(mask, 1, rng, wider=0)
    assert_array_equal(tight, mask)
    assert_array_equal(dc.mass_holes(mask, 1, rng, wider=2), wider)


def test_the_lattice_is_one_lattice():
    """With its origin shifted by (row, col) the squares begin at multiples of the side, less that shift."""
    mask = np.zeros((32, 32), bool)
    mask[16, 16] = True
    corners = set()
    for seed in range(10):
        hole = dc.mass_holes(mask, 8, np.random.default_rng(seed), wider=0)
        rows, cols = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole.sum() == 64 and len(rows) == len(cols) == 8 and hole[16, 16]
        row, col = np.random.default_rng(seed).integers(8, size=2)
        assert ((rows[0] + row) % 8, (cols[0] + col) % 8) == (0, 0)
        corners.add((rows[0], cols[0]))
    assert len(corners) > 5


def test_no_mass_no_hole():
    assert not dc.mass_holes(np.zeros((16, 16), bool), 8, np.random.default_rng(0)).any()
