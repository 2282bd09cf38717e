import copy

import numpy as np
import pytest
import torch
from torch import nn

from xai_lib import models
from xai_lib.attribution import alignment
from xai_lib.models import Classifier


def network(*layers, in_channels=1):
    """A classifier of these layers, weights positive, so that a cell's gradient is its receptive field."""
    features = nn.Sequential(*layers)
    with torch.no_grad():
        for p in features.parameters():
            p.fill_(0.1)
        channels = features(torch.zeros(1, 3, 64, 64)).shape[1]
    return Classifier(features, channels, {"in_channels": in_channels, "outputs": 1, "drs": False}).eval()


def halving(times, channels=2):
    """Convolutions 3 x 3 with stride 2 and torchvision's padding."""
    return [nn.Conv2d(3 if k == 0 else channels, channels, 3, stride=2, padding=1, bias=False) for k in range(times)]


@pytest.mark.parametrize(("times", "size"), [(1, 16), (2, 28), (3, 56), (3, 64), (4, 112)])
def test_torchvision_padding_looks_above_and_left(times, size):
    """Cell i is centred at 2^k i and drawn at 2^k (i + 0.5) - 0.5: (2^k - 1) / 2 pixels too far down and right."""
    found = alignment.cell_offset(network(*halving(times)), torch.rand(2, 1, size, size))
    expected = -((2**times) - 1) / 2
    assert (found.rows, found.cols) == pytest.approx((expected, expected), abs=1e-6)


@pytest.mark.parametrize(("times", "size"), [(1, 16), (2, 28), (3, 56), (3, 64)])
def test_tensorflow_padding_looks_below_and_right(times, size):
    """An even image is padded on the right and bottom only: cell i is centred at 2^k i + 2^k - 1."""
    net = network(*halving(times))
    models.use_tensorflow_padding(net)
    found = alignment.cell_offset(net, torch.rand(2, 1, size, size))
    expected = ((2**times) - 1) / 2
    assert (found.rows, found.cols) == pytest.approx((expected, expected), abs=1e-6)


def test_average_pooling_stays_in_place():
    net = network(nn.Conv2d(3, 2, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.AvgPool2d(2))
    found = alignment.cell_offset(net, torch.rand(1, 1, 28, 28))
    assert (found.rows, found.cols) == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.parametrize("size", [(15, 15), (16, 16), (16, 21)])
def test_kernel_with_one_tap_looks_at_that_tap(size):
    net = network(nn.Conv2d(3, 1, 5, padding=2, bias=False))
    with torch.no_grad():
        net.features[0].weight.zero_()
        net.features[0].weight[0, :, 0, 3] = 1  # two rows above and one column right of the centre
    found = alignment.cell_offset(net, torch.rand(3, 1, *size))
    assert (found.rows, found.cols) == pytest.approx((-2, 1), abs=1e-6)
    assert (found.sd_rows, found.sd_cols) == pytest.approx((0, 0), abs=1e-6)


def test_centroid_weighs_by_the_squared_gradient():
    net = network(nn.Conv2d(3, 1, (1, 5), padding=(0, 2), bias=False))
    with torch.no_grad():
        net.features[0].weight.zero_()
        net.features[0].weight[0, 0, 0] = torch.tensor([0.0, 0.0, -1.0, 0.0, 2.0])
        net.normalize.std.fill_(1)
    found = alignment.cell_offset(net, torch.rand(1, 1, 9, 9))
    assert found.cols == pytest.approx((1 * 0 + 4 * 2) / 5) and found.rows == pytest.approx(0)


def test_energy_by_hand():
    """Even grid: each of the four central cells reads one pixel, with weight 3 over a deviation of 0.5."""
    net = network(nn.Conv2d(3, 1, 1, stride=2, bias=False))
    with torch.no_grad():
        net.features[0].weight.copy_(torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1))
        net.normalize.std.fill_(0.5)
    energy = alignment.cell_energy(net, torch.rand(2, 1, 8, 8))
    expected = torch.zeros(2, 8, 8, dtype=torch.float64)
    expected[:, 2:5:2, 2:5:2] = 36  # cells 1 and 2 of 4, at pixels 2 and 4
    torch.testing.assert_close(energy, expected)


def test_spread_between_images():
    """A ReLU lets an image switch taps off: the spread is the standard deviation over images."""
    net = network(nn.Conv2d(3, 2, (1, 3), padding=(0, 1), bias=False), nn.ReLU(), in_channels=3)
    with torch.no_grad():
        net.normalize.mean.zero_()
        net.features[0].weight.zero_()
        net.features[0].weight[0, 0, 0, 0] = 1  # reads channel 0 on the left
        net.features[0].weight[1, 1, 0, 2] = 1  # reads channel 1 on the right
    x = torch.zeros(2, 3, 5, 5)
    x[0, 0] = x[1, 1] = 1
    found = alignment.cell_offset(net, x)
    assert found.cols == pytest.approx(0) and found.sd_cols == pytest.approx(np.std([-1, 1], ddof=1))
    assert alignment.cell_offset(net, x[:1]).cols == pytest.approx(-1)
    assert alignment.cell_offset(net, x[:1]).sd_cols == 0


def test_paddings_of_a_real_network_differ_by_twice_the_nominal_offset():
    """Nominal at 224: 32 i against 32 i + 31, so 31 pixels apart; single random networks scatter by a few."""
    x = torch.rand(2, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.build("mobilenet_v2")
    torchvision = alignment.cell_offset(net, x)
    models.use_tensorflow_padding(net.features)
    tensorflow = alignment.cell_offset(net, x)
    assert torchvision.rows < -8 and torchvision.cols < -8 and tensorflow.rows > 8 and tensorflow.cols > 8
    assert tensorflow.rows - torchvision.rows == pytest.approx(31, abs=6)
    assert tensorflow.cols - torchvision.cols == pytest.approx(31, abs=6)


def test_model_and_image_are_left_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = models.build("resnet10")
    before, x = copy.deepcopy(net.state_dict()), torch.rand(2, 1, 64, 64)
    kept = x.clone()
    alignment.cell_offset(net, x)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in net.parameters()) and not net.training
    assert torch.equal(x, kept) and not x.requires_grad


def test_works_on_a_frozen_network_without_gradients_on():
    net = models.freeze_backbone(network(*halving(2)))
    with torch.no_grad():
        assert alignment.cell_offset(net, torch.rand(1, 1, 28, 28)).rows == pytest.approx(-1.5, abs=1e-6)


def test_bad_input():
    net = network(*halving(2))
    with pytest.raises(ValueError, match="x: no image"):
        alignment.cell_offset(net, torch.zeros(0, 1, 16, 16))
    with pytest.raises(ValueError, match="train mode"):
        alignment.cell_offset(copy.deepcopy(net).train(), torch.zeros(1, 1, 16, 16))
    with torch.no_grad():
        net.features[0].weight.zero_()
    with pytest.raises(ValueError, match="does not depend on the image"):
        alignment.cell_offset(net, torch.zeros(1, 1, 16, 16))
    with torch.no_grad():
        net.features[0].weight[0] = torch.nan
    with pytest.raises(ValueError, match="NaN in the weights"):
        alignment.cell_offset(net, torch.zeros(1, 1, 16, 16))
