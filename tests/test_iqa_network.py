"""iqa_network: the layers of table 2, units, uncertainty of an ensemble."""

import math

import pytest
import torch
from torch import fx

from xai_lib.iqa_network import IqaNetwork, predict

CONVOLUTIONS = (9 * 8 + 8) + 2 * 8 + (9 * 8 * 16 + 16) + 2 * 16 + (9 * 16 * 32 + 32) + 2 * 32  # weights, biases, norms
FULL = (123008 * 512 + 512) + (512 * 512 + 512)
HEAD = 512 * 12 + 12


def of_two(unit="um", bias=(1.0, -1.0), spread=(2.0, 1.0), mean=(1.0, 2.0), sd=(0.5, 2.0)):
    """Two outputs that do not depend on the image: `bias` times `sd` plus `mean`, with `spread` times `sd`."""
    network = IqaNetwork(size=8, hidden=3, outputs=2, unit=unit).eval().requires_grad_(False)
    network.mu.weight.zero_()
    network.mu.bias.copy_(torch.tensor(bias))
    network.log_variance.copy_(2 * torch.tensor(spread).log())
    network.curve_mean.copy_(torch.tensor(mean))
    network.curve_sd.copy_(torch.tensor(sd))
    return network


@pytest.mark.parametrize(("sigma", "spread"), [("features", HEAD), ("constant", 12)])
def test_parameters_of_table_2(sigma, spread):
    with torch.device("meta"):
        network = IqaNetwork(sigma=sigma)
    count = sum(p.numel() for p in network.parameters())
    assert count == CONVOLUTIONS + FULL + HEAD + spread
    assert round(count / 1e6, 2) == 63.26


def test_shapes_of_table_2():
    network, x, shapes = IqaNetwork(hidden=2).eval(), torch.zeros(1, 1, 250, 250), []
    for layer in network.features:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    pooled = [s for s, layer in zip(shapes, network.features, strict=True) if isinstance(layer, torch.nn.MaxPool2d)]
    assert pooled == [(8, 125, 125), (16, 62, 62)]
    assert (32, 62, 62) in shapes and (123008,) in shapes and shapes[-1] == (2,)


def test_micrometres_by_hand():
    curve, sd = of_two().distribution(torch.rand(3, 1, 8, 8))
    torch.testing.assert_close(curve, torch.tensor([[1.5, 0.0]]).expand(3, 2))
    torch.testing.assert_close(sd, torch.tensor([[1.0, 2.0]]).expand(3, 2))


def test_log_micrometres_by_hand():
    network, x = of_two("log um"), torch.rand(1, 1, 8, 8)
    curve, sd = network.distribution(x)
    assert curve[0].tolist() == pytest.approx([math.exp(1.5), 1.0])
    assert sd[0].tolist() == pytest.approx([1.0 * math.exp(1.5), 2.0])  # d exp(u) = exp(u) du
    torch.testing.assert_close(network(x), curve)


def test_targets_by_hand():
    wanted = torch.tensor([[2.0, 2.0]])
    assert of_two().targets(wanted)[0].tolist() == pytest.approx([2.0, 0.0])
    assert of_two("log um").targets(wanted)[0].tolist() == pytest.approx(
        [(math.log(2) - 1) / 0.5, (math.log(2) - 2) / 2]
    )


def test_total_uncertainty_and_midpoint_by_hand():
    one = of_two(bias=(1.0, 3.0), spread=(0.3, 0.1), mean=(0.0, 0.0), sd=(1.0, 1.0))
    two = of_two(bias=(2.0, 3.0), spread=(0.4, 0.1), mean=(0.0, 0.0), sd=(1.0, 1.0))
    said = predict([one, two], torch.rand(1, 1, 8, 8))
    assert said.mean[0].tolist() == pytest.approx([1.5, 3.0])
    assert said.epistemic[0].tolist() == pytest.approx([0.5, 0.0])
    assert said.aleatoric[0].tolist() == pytest.approx([math.sqrt((0.09 + 0.16) / 2), 0.1])
    assert said.total[0].tolist() == pytest.approx([math.sqrt(0.25 + 0.125), 0.1])
    assert said.midpoint.tolist() == pytest.approx([2.25])
    assert said.members[:, 0, 0].tolist() == pytest.approx([1.0, 2.0])


@pytest.mark.parametrize("unit", ["um", "log um"])
@pytest.mark.parametrize("sigma", ["constant", "features"])
def test_units_undo_each_other(unit, sigma):
    torch.manual_seed(0)
    network = IqaNetwork(size=9, hidden=4, unit=unit, sigma=sigma)
    network.curve_mean.uniform_(-1, 1)
    network.curve_sd.uniform_(0.5, 2)
    x = torch.rand(3, 1, 9, 9)
    network.eval()
    mean, log_variance = network.standardised(x)
    assert mean.shape == log_variance.shape == (3, 12)
    torch.testing.assert_close(network.targets(network(x)), mean, atol=1e-5, rtol=1e-4)
    differs = (log_variance[0] != log_variance[1]).any()
    assert bool(differs) == (sigma == "features")


def test_batches_change_nothing_and_the_mode_is_kept():
    torch.manual_seed(0)
    members, x = [IqaNetwork(size=8, hidden=4, dropout=0.5).train() for _ in range(2)], torch.rand(5, 1, 8, 8)
    whole, parts = predict(members, x), predict(members, x, batch=2)
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.aleatoric, parts.aleatoric)
    torch.testing.assert_close(whole.mean[3:], predict(members, x[3:]).mean)
    assert all(member.training for member in members)


def test_a_traced_network_says_the_same():
    network, x = IqaNetwork(size=8, hidden=4).eval(), torch.rand(2, 1, 8, 8)
    traced = fx.symbolic_trace(network)
    torch.testing.assert_close(traced(x), network(x))
    with pytest.raises(ValueError, match="expected"):
        traced(torch.rand(2, 1, 9, 9))


def test_bad_input():
    with pytest.raises(ValueError, match=r"sigma: 'both' is not one of constant, features"):
        IqaNetwork(sigma="both")
    with pytest.raises(ValueError, match=r"unit: 'mm' is not one of um, log um"):
        IqaNetwork(unit="mm")
    with pytest.raises(ValueError, match="size: 7 is below 8"):
        IqaNetwork(size=7)
    with pytest.raises(ValueError, match="members: the ensemble is empty"):
        predict([], torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (1, 1, 8, 9), (1, 3, 8, 8), (1, 8, 8)])
def test_images_of_another_size(shape):
    with pytest.raises(ValueError, match=r"x: shape .*, expected \(N, 1, 8, 8\)"):
        IqaNetwork(size=8, hidden=2).eval()(torch.rand(shape))
