from itertools import permutations, product
from math import factorial

import numpy as np
import pytest
import shap
import torch
from captum.attr import Lime
from linear_network import Linear
from sklearn.metrics import pairwise_distances
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from xai_lib.attribution import segments as module
from xai_lib.attribution.core import Network, Refused
from xai_lib.attribution.kernel_shap import coalitions, half_spread, kernel_shap, shapley_fit
from xai_lib.attribution.segments import label_maps, likeness, lime, masked_scores, slic_segments


class Game(nn.Module):
    """A game whose players are the pixels of a one-channel image of ones."""

    def __init__(self, worth):
        super().__init__()
        self.worth = worth
        self.eval()

    def forward(self, x):
        return self.worth(x.flatten(1))


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def smooth(count=2, channels=3, size=(40, 56)):
    """Images with structure, so that SLIC finds segments."""
    return F.interpolate(randn(count, channels, 8, 11), size, mode="bilinear")


def blocks(height, width, side):
    """Labels (H, W) of square blocks."""
    rows, columns = torch.arange(height) // side, torch.arange(width) // side
    return rows[:, None] * (columns[-1] + 1) + columns


def convolutional(channels=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(4), nn.Flatten(),
            nn.Linear(128, 4),
        )  # fmt: skip
        nn.init.normal_(net[-1].weight, 0, 1.0)
        net[1].running_mean.normal_(0, 0.2)
    return net.eval()


def over_segments(values, labels):
    """Sum of pixel values (N, H, W) over each segment, at each of its pixels."""
    out = torch.zeros_like(values)
    for n in range(len(values)):
        for name in labels.unique():
            out[n][labels == name] = values[n][labels == name].sum()
    return out


def shapley(worth, width):
    """Shapley values by their definition: the mean over all orders of a player's contribution when it joins."""
    total = np.zeros(width)
    for order in permutations(range(width)):
        z = torch.zeros(1, width)
        before = float(worth(z))
        for player in order:
            z[0, player] = 1
            after = float(worth(z))
            total[player] += after - before
            before = after
    return torch.tensor(total / factorial(width))


TARGET = torch.tensor([1, 3])

# ---------------------------------------------------------------------------------------------------- SLIC


def test_slic_labels_are_contiguous_and_follow_the_edges():
    image = torch.zeros(3, 40, 40)
    image[0, :20, :20], image[1, :20, 20:], image[2, 20:, :20] = 1, 1, 1
    labels = slic_segments(image, segments=16)
    assert labels.shape == (40, 40) and labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1)) and labels.max() > 2
    for name in labels.unique():
        quarters = {(int(r >= 20), int(c >= 20)) for r, c in (labels == name).nonzero()}
        assert len(quarters) == 1, f"segment {name} crosses an edge"


def test_slic_of_one_channel_and_of_any_scale():
    grey = smooth(1, 1)[0]
    expected = slic_segments(grey, 30)
    assert torch.equal(slic_segments(grey.expand(3, -1, -1), 30), expected)
    assert torch.equal(slic_segments(grey.expand(2, -1, -1), 30), expected)
    assert torch.equal(slic_segments(grey * 50 - 20, 30), expected)


@pytest.mark.parametrize(
    "image", [torch.zeros(1, 20, 20), torch.tensor([1.0, 2.0, 3.0])[:, None, None].expand(3, 9, 9)]
)
def test_constant_images_are_refused_by_name(image):
    with pytest.raises(Refused, match="segments: the image is constant"):
        slic_segments(image)
    for method in (lime, kernel_shap):
        net = Network(Linear(torch.ones(1, *image.shape)))
        with pytest.raises(Refused, match="the image is constant"):
            method(net, image[None], torch.zeros(1, dtype=torch.long))


def test_one_segment_is_refused_and_a_shortfall_is_noted():
    with pytest.raises(Refused, match="SLIC found one segment instead of 2"):
        slic_segments(randn(3, 8, 8), segments=2)
    network = Network(convolutional())
    labels = label_maps(network, smooth(), 60)
    assert 1 < labels.max() + 1 < 60
    assert len(network.notes) == 1 and "of the 60 asked for" in network.notes[0]


def test_labels_are_checked():
    network, x = Network(convolutional()), smooth()
    good = blocks(40, 56, 8)
    assert torch.equal(label_maps(network, x, good.to(torch.uint8)), good.expand(2, 40, 56))
    assert torch.equal(label_maps(network, x, torch.stack([good, good])), good.expand(2, 40, 56))
    for wrong, error, words in [
        (good + 1, ValueError, "count from 0 without a gap, got 35 labels from 1 to 35"),
        (good * 2, ValueError, "got 35 labels from 0 to 68"),
        (good * 0, ValueError, "got 1 labels from 0 to 0"),
        (good.T, ValueError, r"segments: shape \(56, 40\) does not fit, expected \(40, 56\) or \(2, 40, 56\)"),
        (good.expand(3, 40, 56), ValueError, "segments: shape"),
        (good.float(), TypeError, "segments: expected whole numbers"),
        (1, ValueError, "segments: 1 is below 2"),
        (2.5, TypeError, "segments: expected a whole number"),
        (None, TypeError, "segments: expected a whole number"),
    ]:
        with pytest.raises(error, match=words):
            label_maps(network, x, wrong)


# ---------------------------------------------------------------------------------------------------- masked images


def test_masked_scores_by_hand():
    """f = sum of the pixels; the kept half comes from the image of ones, the other from the baseline of 10."""
    x, labels = torch.ones(1, 1, 2, 2), torch.tensor([[[0, 0], [0, 1]]])
    masks = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool()
    network = Network(Linear(torch.ones(1, 1, 2, 2), offset=0.0))
    zero = torch.zeros(1, dtype=torch.long)
    (values,) = masked_scores(network, x, zero, torch.full_like(x, 10), labels, [masks])
    assert values.tolist() == [4, 13, 31, 40] and values.dtype == torch.float64
    assert network.forward_passes == 4


def test_likeness_equals_the_cosine_of_the_images():
    x, b, labels = smooth(1)[0], randn(3, 40, 56, seed=2), blocks(40, 56, 8)
    masks = torch.rand(9, 35, generator=torch.Generator().manual_seed(1)) < 0.5
    for start in (b, torch.zeros_like(b)):
        images = torch.stack([torch.where(m[labels], x, start) for m in masks])
        expected = F.cosine_similarity(images.flatten(1).double(), x.flatten()[None].double())
        assert_close(likeness(x, start, labels, masks), expected)
    nothing = likeness(torch.zeros_like(x), torch.zeros_like(b), labels, masks)
    assert not nothing.any()  # as torch's cosine of a vector of zeros


def test_likeness_of_the_coalitions_is_the_lime_librarys():
    """lime_image: cosine distance of each row of 0 and 1 from the row of ones, a row of zeros being at distance 1."""
    masks = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]]).bool()
    x, labels = torch.ones(1, 2, 2), torch.arange(4).reshape(2, 2)
    distance = 1 - likeness(x, x, labels, masks, "segments")
    assert_close(
        distance, torch.from_numpy(pairwise_distances(masks.double(), masks[:1].double(), metric="cosine")[:, 0])
    )
    assert_close(distance[1], torch.tensor(0.5, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------------- LIME


def test_lime_of_a_linear_model_without_penalty_is_the_sum_over_segments():
    w, x, b, labels = randn(4, 3, 8, 12), randn(2, 3, 8, 12, seed=1), randn(3, 8, 12, seed=2), blocks(8, 12, 4)
    network = Network(Linear(w))
    found = lime(network, x, TARGET, segments=labels, samples=60, baseline=b, alpha=0.0)
    assert_close(found.map, over_segments((w[TARGET] * (x - b)).sum(1), labels), atol=1e-4, rtol=1e-4)
    assert_close(found.scores, Linear(w)(x)[torch.arange(2), TARGET].detach())
    assert network.forward_passes == 2 * (60 + 1) and network.backward_passes == 0


@pytest.mark.parametrize("baseline", [None, 0.7])
def test_lime_equals_captum_with_the_same_masks(baseline):
    net, x, labels = convolutional(), smooth(1), slic_segments(smooth(1)[0], 30)
    width, samples = int(labels.max()) + 1, 60
    with torch.random.fork_rng():
        torch.manual_seed(5)
        masks = torch.cat([torch.bernoulli(torch.full((1, width), 0.5)) for _ in range(samples)]).bool()
        torch.manual_seed(5)
        reference = Lime(net).attribute(
            x, target=1, feature_mask=labels[None, None], n_samples=samples, baselines=baseline or 0.0
        )[:, 0]
    network, start = Network(net), torch.full_like(x, baseline or 0.0)
    found = module._lime(network, x, TARGET[:1], start, labels[None], [masks], 1.0, "pixels", 0.01, 8)
    assert reference.any()
    assert_close(found.map, reference, atol=1e-5 * float(reference.abs().max()), rtol=0)


def test_lime_says_when_the_penalty_hides_everything():
    network, x, labels = Network(convolutional()), smooth(1), blocks(40, 56, 8)
    found = lime(network, x, TARGET[:1], segments=labels, samples=20, alpha=1e3)
    assert not found.map.any() and any(note.startswith("alpha:") for note in network.notes)


def test_lime_weighs_near_coalitions_more():
    """x0 x1 with both kept is 1 and its slope there 1; over all coalitions the slopes are 1/2."""
    game, x = Game(lambda z: z[:, 0] * z[:, 1]), torch.ones(1, 1, 1, 2)
    labels, zero = torch.arange(2).reshape(1, 2), torch.zeros(1, dtype=torch.long)
    options = {"segments": labels, "samples": 400, "alpha": 0.0}
    wide = lime(Network(game), x, zero, kernel_width=100.0, **options).map
    narrow = lime(Network(game), x, zero, kernel_width=0.12, **options).map
    assert_close(wide, torch.full((1, 1, 2), 0.5), atol=0.1, rtol=0)
    assert (narrow > 0.9).all()


# ---------------------------------------------------------------------------------------------------- Kernel SHAP


@pytest.mark.parametrize("samples", [None, 24, 2**6])
def test_kernel_shap_of_a_linear_model_is_the_sum_over_segments(samples):
    w, x, b = randn(4, 3, 8, 12, dtype=torch.float64), randn(2, 3, 8, 12, seed=1).double(), randn(3, 8, 12, seed=2)
    labels = blocks(8, 12, 4)  # 6 segments
    network = Network(Linear(w))
    found = kernel_shap(network, x, TARGET, segments=labels, samples=samples, baseline=b, ridge=0.0)
    assert_close(found.map, over_segments((w[TARGET] * (x - b.double())).sum(1), labels))
    assert found.gap < 1e-12
    assert network.forward_passes == 2 * ((24 if samples == 24 else 2**6 - 2 if samples else 48) + 2)


def test_kernel_shap_of_xor_and_of_a_product_by_hand():
    """z0 xor z1 is worth nothing to either when both are in; the product of z2 and z3 is shared."""
    game = Game(lambda z: z[:, 0] + z[:, 1] - 2 * z[:, 0] * z[:, 1] + 4 * z[:, 2] * z[:, 3])
    labels, zero = torch.arange(4).reshape(2, 2), torch.zeros(1, dtype=torch.long)
    found = kernel_shap(Network(game), torch.ones(1, 1, 2, 2), zero, segments=labels)
    assert_close(found.map, torch.tensor([[[0.0, 0.0], [2.0, 2.0]]]))


@pytest.mark.parametrize("width", [2, 4, 6])
def test_kernel_shap_of_all_coalitions_is_the_shapley_value(width):
    w = randn(width, 8, seed=7, dtype=torch.float64)

    def worth(z):
        return torch.relu(z.double() @ w - 0.3).prod(1) + torch.sin(3 * z.double() @ w[:, 0])

    labels, zero = torch.arange(width).reshape(2, -1), torch.zeros(1, dtype=torch.long)
    x = torch.ones(1, 1, 2, width // 2, dtype=torch.float64)
    network = Network(Game(worth))
    found = kernel_shap(network, x, zero, segments=labels, samples=1000)
    assert_close(found.map.flatten().double(), shapley(worth, width), atol=1e-6, rtol=1e-6)
    assert network.forward_passes == 2**width and network.notes == []


def test_shapley_fit_equals_a_weighted_fit_in_float64():
    """The empty and the full coalition with a weight of 1e9, as shap and Captum do, instead of the constraint."""
    masks, _ = coalitions(20, 300, 0)
    w = randn(20, 8, dtype=torch.float64)
    z = torch.cat([torch.zeros(1, 20), torch.ones(1, 20), masks]).double()
    values = torch.relu(z @ w).sum(1)
    root = torch.tensor([1e9, 1e9, *[1.0] * 300], dtype=torch.float64).sqrt()[:, None]
    design = torch.cat([torch.ones_like(z[:, :1]), z], 1)
    expected = torch.linalg.lstsq(design * root, values[:, None] * root, driver="gelsd").solution[1:, 0]
    found = shapley_fit(masks, values[2:] - values[0], values[1] - values[0], torch.ones(300, dtype=torch.float64))
    assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=0)
    assert_close(found.sum(), values[1] - values[0])


def test_kernel_shap_agrees_with_the_shap_library():
    x, labels, net = smooth(1), blocks(40, 56, 20), convolutional()  # 6 segments: shap takes every coalition
    width = int(labels.max()) + 1

    def tabular(z):
        with torch.no_grad():
            return torch.cat([net(x * torch.tensor(row).float()[labels])[:, 1] for row in z]).double().numpy()

    explainer = shap.KernelExplainer(tabular, np.zeros((1, width)))
    expected = explainer.shap_values(np.ones((1, width)), nsamples=2**width, silent=True, l1_reg=False)
    found = kernel_shap(Network(net), x, TARGET[:1], segments=labels, samples=2**width)
    assert_close(found.map, torch.tensor(expected)[0].float()[labels][None], atol=1e-4, rtol=1e-4)


def test_sampled_kernel_shap_agrees_with_the_shap_library_in_expectation():
    w = randn(12, 8, dtype=torch.float64)

    def worth(z):
        return torch.relu(torch.as_tensor(z).double() @ w).sum(1)

    explainer = shap.KernelExplainer(lambda z: worth(z).numpy(), np.zeros((1, 12)))
    expected = torch.tensor(explainer.shap_values(np.ones((1, 12)), nsamples=2**12, silent=True, l1_reg=False)[0])
    labels, zero = torch.arange(12).reshape(3, 4), torch.zeros(1, dtype=torch.long)
    x = torch.ones(1, 1, 3, 4, dtype=torch.float64)
    found = kernel_shap(Network(Game(worth)), x, zero, segments=labels, samples=2000)
    assert (found.map.flatten() - expected).norm() < 0.06 * expected.norm()


def test_coalitions_are_pairs_from_the_shapley_kernel():
    masks, weights = coalitions(10, 801, 0)
    assert masks.shape == (802, 10) and torch.equal(masks[401:], ~masks[:401]) and (weights == 1).all()
    k = torch.arange(1, 10, dtype=torch.float64)
    kernel = 1 / (k * (10 - k))
    share = torch.bincount(masks.sum(1), minlength=11)[1:10] / 802
    assert_close(share.double(), kernel / kernel.sum(), atol=0.05, rtol=0)
    every, weights = coalitions(3, 6, 0)
    assert sorted(every.int().tolist()) == sorted(map(list, list(product((0, 1), repeat=3))[1:-1]))
    assert_close(weights, torch.full((6,), 1 / 3, dtype=torch.float64))  # (3 - 1) / (3 * 1 * 2)


def test_paired_coalitions_need_half_the_samples():
    """Mean error over draws: pairs with n / 2 samples against independent coalitions with n."""
    w = randn(40, 32, dtype=torch.float64) * 3 / 40**0.5
    ends = torch.cat([torch.zeros(1, 40), torch.ones(1, 40)])

    def worth(z):
        return torch.relu(z.double() @ w + 0.5).sum(1)

    empty, full = worth(ends)

    def fit(masks):
        return shapley_fit(masks, worth(masks) - empty, full - empty, torch.ones(len(masks), dtype=torch.float64))

    exact = fit(coalitions(40, 40000, 99)[0])
    paired = [(fit(coalitions(40, 320, seed)[0]) - exact).norm() for seed in range(5)]
    plain = [(fit(coalitions(40, 2 * 640, seed)[0][:640]) - exact).norm() for seed in range(5)]  # without complements
    assert sum(paired) < sum(plain)


def test_few_samples_warn_with_the_spread():
    x, labels = smooth(2), blocks(40, 56, 8)  # 35 segments
    network = Network(convolutional())
    with pytest.warns(UserWarning, match=r"samples: 70 for 35 segments; .* error is about \d+%; take 280") as warned:
        kernel_shap(network, x, TARGET, segments=labels, samples=70)
    assert len(warned) == 1 and sum(note.startswith("samples: 70") for note in network.notes) == 1


@pytest.mark.filterwarnings("error")
def test_enough_samples_do_not_warn():
    x, labels = smooth(1), blocks(40, 56, 8)
    network = Network(convolutional())
    kernel_shap(network, x, TARGET[:1], segments=labels, samples=4 * 35)
    assert network.notes[0].startswith("samples: 140 for 35 segments")
    network = Network(convolutional())
    kernel_shap(network, x, TARGET[:1], segments=labels)
    assert network.notes == [] and network.forward_passes == 8 * 35 + 2


def test_half_spread_estimates_the_error():
    w = randn(30, 32, dtype=torch.float64)

    def worth(z):
        return torch.relu(z.double() @ w).sum(1)

    empty, full = worth(torch.cat([torch.zeros(1, 30), torch.ones(1, 30)]))

    def game(samples, seed):
        masks, weights = coalitions(30, samples, seed)
        return masks, worth(masks) - empty, full - empty, weights

    exact = shapley_fit(*game(20000, 99))
    errors = [float((shapley_fit(*game(240, s)) - exact).norm() / exact.norm()) for s in range(5)]
    spreads = [half_spread(*game(240, s)) for s in range(5)]
    assert 0.5 < np.mean(spreads) / np.mean(errors) < 3


def test_ridge_pulls_towards_equal_shares():
    masks, weights = coalitions(12, 100, 0)
    worth, total = masks[:, 0].double() * 6, torch.tensor(6.0, dtype=torch.float64)
    deviation = []
    for ridge in (0.0, 0.1, 1e9):
        found = shapley_fit(masks, worth, total, weights, ridge)
        assert_close(found.sum(), total)
        deviation.append(float((found - 0.5).norm()))
    assert deviation[0] > deviation[1] > deviation[2] and deviation[2] < 1e-6


# ---------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_images_are_explained_independently(method):
    net, x = convolutional(), smooth(3)
    options = {"segments": 20, "samples": 60, "chunk": 7} | ({"alpha": 1e-3} if method is lime else {})
    together = method(Network(net), x, torch.tensor([0, 1, 2]), **options)
    for n in range(3):
        alone = method(Network(net), x[n : n + 1], torch.tensor([n]), **options)
        assert_close(together.map[n], alone.map[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_the_seed_decides_and_nothing_else(method):
    net, x, options = convolutional(), smooth(1), {"segments": blocks(40, 56, 8), "samples": 160, "chunk": 4}
    options |= {"alpha": 1e-3} if method is lime else {}
    torch.manual_seed(1)
    a = method(Network(net), x, TARGET[:1], seed=2, **options).map
    torch.manual_seed(9)
    state = torch.get_rng_state()
    b = method(Network(net), x, TARGET[:1], seed=2, **options).map
    assert torch.equal(a, b) and torch.equal(state, torch.get_rng_state())
    assert not torch.allclose(a, method(Network(net), x, TARGET[:1], seed=3, **options).map)


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_the_largest_batch_does_not_depend_on_the_samples(method):
    net, x = Linear(randn(4, 3, 8, 12)), randn(2, 3, 8, 12)
    method(Network(net), x, TARGET, segments=blocks(8, 12, 4), samples=60, chunk=5)
    assert max(net.seen) == 5


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_short_memory_ends_with_a_note(method):
    w, x, labels = randn(4, 3, 8, 12), randn(2, 3, 8, 12, seed=1), blocks(8, 12, 4)
    network = Network(Linear(w, limit=2))
    options = {"alpha": 0.0} if method is lime else {}
    found = method(network, x, TARGET, segments=labels, samples=60, chunk=8, **options)
    assert_close(found.map, over_segments((w[TARGET] * x).sum(1), labels), atol=1e-4, rtol=1e-4)
    assert any("memory was short: 2 instead of 4" in note for note in network.notes)


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_constant_images_work_with_given_labels(method):
    net, x = convolutional(channels=1), torch.full((1, 1, 16, 24), 0.3)
    for baseline in (0.0, 0.3):  # with 0.3 the baseline is the image
        found = method(Network(net), x, TARGET[:1], segments=blocks(16, 24, 8), samples=62, baseline=baseline)
        assert found.map.shape == (1, 16, 24) and torch.isfinite(found.map).all()
    assert found.map.abs().max() < 1e-6


@pytest.mark.parametrize("method", [lime, kernel_shap])
def test_bf16_notes_its_deviation(method):
    network = Network(convolutional(), precision="bf16")
    found = method(network, smooth(1), TARGET[:1], segments=blocks(40, 56, 8), samples=280)
    assert found.map.dtype == torch.float32 and any(n.startswith("bf16") for n in network.notes)


@pytest.mark.parametrize(
    ("method", "options", "error", "words"),
    [
        (lime, {"samples": 1}, ValueError, "samples: 1 is below 2"),
        (lime, {"samples": 1.5}, TypeError, "samples: expected a whole number"),
        (lime, {"kernel_width": 0.0}, ValueError, "kernel_width: 0.0 is not above 0"),
        (lime, {"alpha": -1.0}, ValueError, "alpha: -1.0 is below 0"),
        (lime, {"distance": "euclidean"}, ValueError, "distance: 'euclidean' is unknown"),
        (lime, {"baseline": torch.zeros(3, 9, 9)}, ValueError, "baseline: shape"),
        (kernel_shap, {"samples": 0}, ValueError, "samples: 0 is below 2"),
        (kernel_shap, {"ridge": -0.1}, ValueError, "ridge: -0.1 is neither"),
        (kernel_shap, {"ridge": "much"}, ValueError, "ridge: 'much' is neither"),
        (kernel_shap, {"baseline": torch.zeros(1, 8, 12)}, ValueError, "baseline: shape"),
        (kernel_shap, {"chunk": 0}, ValueError, "chunk: 0 is below 1"),
        (kernel_shap, {"seed": -1, "samples": 10}, ValueError, "seed: -1"),
    ],
)
def test_bad_options(method, options, error, words):
    network, x = Network(Linear(randn(4, 3, 8, 12))), randn(2, 3, 8, 12)
    with pytest.raises(error, match=words):
        method(network, x, TARGET, **{"segments": blocks(8, 12, 4)} | options)
