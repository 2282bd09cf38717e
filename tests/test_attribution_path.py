import numpy as np
import pytest
import torch
from captum.attr import GradientShap, IntegratedGradients
from linear_network import Linear
from torch import nn
from torch.testing import assert_close

from xai_lib.attribution import path
from xai_lib.attribution.core import Network
from xai_lib.attribution.path import gradient_shap, integrated_gradients, quadrature


class Square(nn.Module):
    def forward(self, x):
        return (x**2).sum((1, 2, 3))


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def convolutional(activation, dtype=torch.float32, channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            activation(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            activation(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 4),
        )
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.2)
                m.running_var.uniform_(0.5, 2)
    return net.to(dtype).eval()


TARGET = torch.tensor([1, 3])

# ---------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("rule", path.RULES)
def test_ig_of_a_linear_model_is_w_times_the_difference(rule):
    w, x, b = randn(4, 3, 5, 7), randn(2, 3, 5, 7, seed=1), randn(3, 5, 7, seed=2)
    network = Network(Linear(w))
    found = integrated_gradients(network, x, TARGET, baseline=b, steps=3, rule=rule)
    assert_close(found.map, (w[TARGET] * (x - b)).sum(1), atol=1e-6, rtol=1e-6)
    assert found.gap < 1e-6 and network.notes == []
    assert_close(found.baseline, b[None])


def test_ig_of_a_square_is_the_square():
    """f = x^2, from 0: 2 a x * x, integrated over a: x^2. Between b and x: (x - b) (x + b) = x^2 - b^2."""
    x = torch.tensor([[[[3.0, -1.0]]]])
    zero = torch.zeros(1, dtype=torch.long)
    assert_close(integrated_gradients(Network(Square().eval()), x, zero, steps=1).map, torch.tensor([[[9.0, 1.0]]]))
    found = integrated_gradients(Network(Square().eval()), x, zero, baseline=2.0, steps=2)
    assert_close(found.map, torch.tensor([[[5.0, -3.0]]]))
    assert_close(found.scores, torch.tensor([10.0]))


def test_gauss_legendre_of_two_points_by_hand():
    points, weights = quadrature("gausslegendre", 2)  # 1/2 -+ 1 / (2 sqrt 3)
    assert_close(points, torch.tensor([0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5], dtype=torch.float64))
    assert_close(weights, torch.tensor([0.5, 0.5], dtype=torch.float64))
    points, weights = quadrature("riemann_middle", 4)
    assert points.tolist() == [0.125, 0.375, 0.625, 0.875] and weights.tolist() == [0.25] * 4


def test_gradient_shap_of_a_linear_model_is_w_times_the_mean_difference():
    w, x, b = randn(4, 3, 5, 7), randn(2, 3, 5, 7, seed=1), randn(1, 3, 5, 7, seed=2)
    one = gradient_shap(Network(Linear(w)), x, TARGET, baselines=b, samples=3)
    assert_close(one.map, (w[TARGET] * (x - b)).sum(1), atol=1e-6, rtol=1e-5)
    several = torch.cat([b, b + 1, b - 3])
    network = Network(Linear(w))
    found = gradient_shap(network, x, TARGET, baselines=several, samples=40, seed=5)
    assert found.gap < 1e-5  # complete with respect to the baselines that were drawn
    shift = (found.map - one.map) / w[TARGET].sum(1)  # every draw adds w * (its shift)
    assert_close(shift, shift.mean().expand_as(shift), atol=1e-3, rtol=0)
    assert_close(found.baseline, several.mean(0, keepdim=True))


def test_integration_along_a_kink_is_complete_with_enough_steps():
    """f = relu(x - 1/2) from 0 to 1: the gradient jumps in the middle of the path."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.ReLU()).eval()
    with torch.no_grad():
        net[1].weight.fill_(1)
        net[1].bias.fill_(-0.45)
    x, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long)
    network = Network(net)
    few = integrated_gradients(network, x, zero, steps=3)
    assert few.gap > 0.01 and "steps" in network.notes[0] and "3" in network.notes[0]
    network = Network(net)
    many = integrated_gradients(network, x, zero, steps=200)
    assert many.gap < 0.01 and network.notes == []
    assert_close(many.map, torch.tensor([[[0.55]]]), atol=0.005, rtol=0)


# ---------------------------------------------------------------------------------------------------- Captum


@pytest.mark.parametrize("activation", [nn.SiLU, nn.GELU])
def test_ig_of_a_smooth_network_equals_captum(activation):
    net, x, b = convolutional(activation), randn(2, 3, 20, 26), randn(2, 3, 20, 26, seed=1)
    found = integrated_gradients(Network(net), x, TARGET, baseline=b, steps=30, chunk=7)
    expected = IntegratedGradients(net).attribute(x, b, target=TARGET, n_steps=30).sum(1)
    assert_close(found.map, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert found.gap < 1e-3


@pytest.mark.parametrize(("rule", "name"), [("gausslegendre", "gausslegendre"), ("riemann_middle", "riemann_middle")])
def test_ig_of_a_relu_network_equals_captum_in_float64(rule, name):
    net, x = convolutional(nn.ReLU, torch.float64), randn(2, 3, 20, 26, dtype=torch.float64)
    found = integrated_gradients(Network(net), x, TARGET, steps=60, rule=rule)  # folded: 120 passes
    expected = IntegratedGradients(net).attribute(x, target=TARGET, n_steps=60, method=name).sum(1).detach()
    assert found.map.dtype == torch.float64
    assert_close(found.map, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)


def test_gradient_shap_agrees_with_captum_in_expectation():
    net, x = convolutional(nn.SiLU), randn(2, 3, 12, 14)
    baselines = randn(3, 3, 12, 14, seed=4)
    found = gradient_shap(Network(net), x, TARGET, baselines=baselines, samples=1500, stdev=0.1, chunk=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)
        shap = GradientShap(net)
        expected = shap.attribute(x, baselines, n_samples=1500, stdevs=0.1, target=TARGET).sum(1).detach()
    difference = (found.map - expected).norm() / expected.norm()
    assert difference < 0.06, difference  # 1 / sqrt(1500) of the scatter of a single draw


# ---------------------------------------------------------------------------------------------------- properties


def test_completeness_gap_shrinks_with_steps():
    net, x = convolutional(nn.ReLU), randn(2, 3, 20, 26)
    gaps = [integrated_gradients(Network(net), x, TARGET, steps=s, chunk=8).gap for s in (2, 200)]
    assert gaps[1] < 0.01 and gaps[1] < gaps[0]


def test_gradient_shap_is_complete_in_expectation():
    net, x, baselines = convolutional(nn.SiLU), randn(2, 3, 12, 14), randn(3, 3, 12, 14, seed=4)
    options = {"baselines": baselines, "chunk": 64}
    gaps = [gradient_shap(Network(net), x, TARGET, samples=s, **options).gap for s in (3, 800)]
    assert gaps[1] < 0.01 and gaps[1] < gaps[0]


@pytest.mark.parametrize("method", [integrated_gradients, gradient_shap])
def test_images_are_explained_independently(method):
    net, x = convolutional(nn.SiLU), randn(3, 3, 20, 26)
    options = {"steps": 25} if method is integrated_gradients else {"samples": 25, "stdev": 0.2}
    together = method(Network(net), x, torch.tensor([0, 1, 2]), chunk=4, **options)
    for n in range(3):
        alone = method(Network(net), x[n : n + 1], torch.tensor([n]), chunk=4, **options)
        assert_close(together.map[n], alone.map[0], atol=1e-6, rtol=1e-4)


def test_gradient_shap_depends_on_the_seed_only():
    net, x = convolutional(nn.ReLU), randn(1, 3, 20, 26)
    options = {"baselines": randn(4, 3, 20, 26, seed=3), "samples": 12, "stdev": 0.1, "chunk": 4}
    torch.manual_seed(1)
    a = gradient_shap(Network(net), x, TARGET[:1], seed=2, **options).map
    torch.manual_seed(9)
    state = torch.get_rng_state()
    b = gradient_shap(Network(net), x, TARGET[:1], seed=2, **options).map
    assert torch.equal(a, b) and torch.equal(state, torch.get_rng_state())
    assert not torch.allclose(a, gradient_shap(Network(net), x, TARGET[:1], seed=3, **options).map)


def test_passes_and_the_largest_batch():
    net = Linear(randn(4, 3, 5, 7))
    x = randn(2, 3, 5, 7)
    network = Network(net)
    integrated_gradients(network, x, TARGET, steps=100, chunk=6)
    assert (network.forward_passes, network.backward_passes) == (2 * 100 + 2 + 1, 200)
    assert max(net.seen) == 6  # whatever the number of steps
    network = Network(net)
    gradient_shap(network, x, TARGET, baselines=randn(1, 3, 5, 7, seed=1), samples=9, chunk=6)
    assert (network.forward_passes, network.backward_passes) == (2 * 9 + 2 + 1, 18)
    network = Network(net)
    gradient_shap(network, x, TARGET, baselines=randn(50, 3, 5, 7, seed=1), samples=3, chunk=6)
    assert 3 + 2 * 3 <= network.forward_passes <= 2 * 3 + 2 + 3  # only baselines that were drawn


@pytest.mark.parametrize("method", [integrated_gradients, gradient_shap])
def test_short_memory_ends_with_a_note(method):
    w, x = randn(4, 3, 5, 7), randn(2, 3, 5, 7)
    network = Network(Linear(w, limit=2))
    found = method(network, x, TARGET, chunk=8)
    assert_close(found.map, (w[TARGET] * x).sum(1), atol=1e-5, rtol=1e-5)
    assert any("memory was short" in note for note in network.notes)
    with pytest.raises(torch.OutOfMemoryError):
        method(Network(Linear(w, limit=0)), x, TARGET, chunk=8)


def test_image_equal_to_the_baseline_gives_zero():
    x = randn(1, 3, 20, 26)
    found = integrated_gradients(Network(convolutional(nn.ReLU)), x, TARGET[:1], baseline=x, steps=5)
    assert not found.map.any() and found.gap == 0


@pytest.mark.parametrize("method", [integrated_gradients, gradient_shap])
def test_one_channel_and_constant_images(method):
    net, x = convolutional(nn.ReLU, channels=1), torch.full((1, 1, 9, 31), 0.3)
    found = method(Network(net), x, TARGET[:1])
    assert found.map.shape == (1, 9, 31) and torch.isfinite(found.map).all() and not found.map.requires_grad


def test_bf16_notes_its_deviation():
    net, x = convolutional(nn.SiLU), randn(1, 3, 20, 26)
    network = Network(net, precision="bf16")
    found = integrated_gradients(network, x, TARGET[:1], steps=20, chunk=4)
    exact = integrated_gradients(Network(net), x, TARGET[:1], steps=20, chunk=4)
    assert found.map.dtype == torch.float32 and [n for n in network.notes if n.startswith("bf16")]
    assert 0 < (found.map - exact.map).norm() < 0.2 * exact.map.norm()
    assert_close(found.scores, exact.scores)  # the ends of the path are computed in float32


# ---------------------------------------------------------------------------------------------------- folded copy


def test_a_folded_copy_is_used_and_put_back(monkeypatch):
    used = []
    net, x = convolutional(nn.SiLU), randn(1, 3, 20, 26)
    network = Network(net)

    def scaled(module):
        used.append(module)
        return nn.Sequential(module, nn.Hardtanh(-1e6, 1e6))

    monkeypatch.setattr(path, "folded", scaled)
    with path.quick(network, x, path.FOLD_FROM):
        assert isinstance(network.module[1], nn.Hardtanh)
    assert used == [network.module] and network.forward_passes == 0
    with path.quick(network, x, path.FOLD_FROM - 1):
        assert network.module is used[0]
    with pytest.raises(KeyboardInterrupt), path.quick(network, x, path.FOLD_FROM):
        raise KeyboardInterrupt
    assert network.module is used[0]


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Unflatten(1, (3, 5))])  # other values; an error
def test_a_copy_that_computes_something_else_is_not_used(monkeypatch, last):
    net, x = convolutional(nn.SiLU), randn(1, 3, 20, 26)
    expected = integrated_gradients(Network(net), x, TARGET[:1], chunk=8).map
    monkeypatch.setattr(path, "folded", lambda module: nn.Sequential(module, last))
    assert_close(integrated_gradients(Network(net), x, TARGET[:1], chunk=8).map, expected, atol=1e-5, rtol=1e-3)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps: 0 is below 1"),
        ({"steps": 2.5}, TypeError, "steps: expected a whole number, got 2.5"),
        ({"rule": "simpson"}, ValueError, "rule: 'simpson' is unknown"),
        ({"baseline": torch.zeros(3, 5, 6)}, ValueError, "baseline: shape"),
        ({"baseline": torch.full((3, 5, 7), torch.nan)}, ValueError, "baseline: it holds NaN"),
        ({"chunk": 0}, ValueError, "chunk: 0 is below 1"),
    ],
)
def test_bad_options_of_ig(options, error, words):
    with pytest.raises(error, match=words):
        integrated_gradients(Network(Linear(randn(4, 3, 5, 7))), randn(2, 3, 5, 7), TARGET, **options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"samples": 0}, ValueError, "samples: 0 is below 1"),
        ({"samples": True}, TypeError, "samples: expected a whole number"),
        ({"stdev": -1.0}, ValueError, "stdev: -1.0 is not"),
        ({"baselines": torch.zeros(3, 5, 7)}, ValueError, r"baselines: shape \(3, 5, 7\) .* \(B, 3, 5, 7\)"),
        ({"baselines": torch.zeros(0, 3, 5, 7)}, ValueError, "baselines: shape"),
        ({"baselines": torch.full((1, 3, 5, 7), torch.inf)}, ValueError, "baselines: it holds NaN"),
        ({"seed": -1}, ValueError, "seed: -1"),
    ],
)
def test_bad_options_of_gradient_shap(options, error, words):
    with pytest.raises(error, match=words):
        gradient_shap(Network(Linear(randn(4, 3, 5, 7))), randn(2, 3, 5, 7), TARGET, **options)


def test_target_out_of_range_and_wrong_shape_are_named():
    network = Network(Linear(randn(4, 3, 5, 7)))
    with pytest.raises(ValueError, match="target: 4 is out of range"):
        integrated_gradients(network, randn(2, 3, 5, 7), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="the model does not take images"):
        gradient_shap(network, randn(2, 3, 5, 8), TARGET)
