"""Occlusion: by hand, against Captum, and what users can get wrong."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision import models as tv

from xai_lib import models
from xai_lib.attribution.core import Found, Network
from xai_lib.attribution.occlusion import occlusion, window_corners, window_shares


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """Outputs w_k . x of images (N, C, H, W)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight)


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


def run(model: nn.Module, x: Tensor, target: object, **options: object) -> tuple[Found, Network]:
    network = Network(model.eval(), progress=False)
    return occlusion(network, *network.inputs(x, target), **options), network


def warmed(model: nn.Module, channels: int = 3) -> nn.Module:
    """With batch-norm statistics that fit: an untrained network otherwise gives almost a constant."""
    model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train().momentum = None  # one batch sets the statistics
    with torch.no_grad():
        model(draw(0, 4, channels, 64, 64).float())
    return model.eval()


def by_definition(
    model: nn.Module, x: Tensor, target: int, window: tuple[int, int], stride: tuple[int, int], fill: Tensor
) -> Tensor:
    """One image after the other, one window after the other: (N, C, H, W) -> (N, H, W)."""
    total, count = x.new_zeros(len(x), *x.shape[2:]), x.new_zeros(x.shape[2:])
    with torch.no_grad():
        before = model(x)[:, target]
        for row in range(0, x.shape[2] - window[0] + stride[0], stride[0]):
            for col in range(0, x.shape[3] - window[1] + stride[1], stride[1]):
                inside = (..., slice(row, row + window[0]), slice(col, col + window[1]))
                covered = x.clone()
                covered[inside] = fill.expand_as(x)[inside]
                total[inside] += (before - model(covered)[:, target])[:, None, None]
                count[inside] += 1
    return total / count


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("local", [True, False, "auto"])
def test_linear_model_is_weight_times_difference(local: object) -> None:
    """Windows of one pixel: the channels' w (x - b), summed (Sundararajan's linear case)."""
    weight, x, baseline = draw(0, 4, 3, 5, 6), draw(1, 2, 3, 5, 6), draw(2, 3, 5, 6)
    found, _ = run(Linear(weight), x, [1, 3], window=1, stride=1, baseline=baseline, local=local)
    assert_close(found.map, (weight[[1, 3]] * (x - baseline)).sum(1), rtol=0, atol=1e-12)
    assert_close(found.scores, torch.stack([(weight[1] * x[0]).sum(), (weight[3] * x[1]).sum()]))
    assert found.baseline is not None and torch.equal(found.baseline[0], baseline)


def test_overlap_and_cut_windows_by_hand() -> None:
    """5 pixels, window 3, step 2: windows 0-2 and 2-4. 6 pixels: 0-2, 2-4 and 4-5, cut. Ones: a fall is a count."""
    ones = Linear(torch.ones(1, 1, 1, 6, dtype=torch.float64))
    found, network = run(ones, torch.arange(1.0, 7).double().reshape(1, 1, 1, 6), 0, window=(1, 3), stride=(1, 2))
    falls = [1 + 2 + 3, 3 + 4 + 5, 5 + 6]
    mean = [falls[0], falls[0], (falls[0] + falls[1]) / 2, falls[1], (falls[1] + falls[2]) / 2, falls[2]]
    assert_close(found.map[0, 0], torch.tensor(mean).double())
    assert network.forward_passes == 1 + 1 + 3  # the model, its graph, the windows
    assert window_corners((1, 5), (1, 3), (1, 2)).tolist() == [[0, 0], [0, 2]]


def test_convolution_and_relu_by_hand() -> None:
    """Kernel (1, -1) and ReLU on 1 0 2 3: 1, 0, 0, in sum 1. Covering a pixel changes two of them."""
    model = nn.Sequential(nn.Conv2d(1, 1, (1, 2), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False))
    model[0].weight.data = torch.tensor([[[[1.0, -1.0]]]])
    nn.init.ones_(model[3].weight)
    found, _ = run(model, torch.tensor([[[[1.0, 0.0, 2.0, 3.0]]]]), 0, window=1, stride=1, local=True)
    # without pixel 0: 0; pixel 1 is 0 already; without pixel 2: 1 (1, 0, 0); without pixel 3: 1, 0, 2
    assert found.map.flatten().tolist() == [1.0, 0.0, 0.0, -2.0]


def test_window_corners() -> None:
    assert len(window_corners((224, 224), (60, 60), (30, 30))) == 7 * 7
    assert len(window_corners((1024, 512), (60, 60), (30, 30))) == 34 * 17  # section 3.2.4
    assert window_corners((60, 61), (60, 60), (30, 30)).tolist() == [[0, 0], [0, 30]]
    assert window_corners((4, 4), (4, 4), (9, 9)).tolist() == [[0, 0]]


def test_shares_of_a_soft_edge() -> None:
    """Edge 2 on 6 pixels: 1/3, 2/3, 1, 1, 2/3, 1/3; a window's corner has the product of both sides."""
    ramp = torch.tensor([1, 2, 3, 3, 2, 1]).double() / 3
    assert_close(window_shares((6, 6), 2), ramp[:, None] * ramp)
    assert_close(window_shares((5, 6), 1)[2], torch.tensor([0.5, 1, 1, 1, 1, 0.5]).double())
    assert torch.equal(window_shares((3, 4)), torch.ones(3, 4).double())


def test_soft_edge_by_hand() -> None:
    """A row of 4 pixels 1 2 3 4, window 3, step 1, edge 1, shares 1/2 1 1/2; the output is the sum, so a fall is the
    shared sum: 1/2 + 2 + 3/2 = 4 and 1 + 3 + 2 = 6. Pixel 1: (1 * 4 + 1/2 * 6) / (3/2)."""
    ones = Linear(torch.ones(1, 1, 3, 4, dtype=torch.float64))
    x = torch.tensor([1.0, 2, 3, 4]).double().expand(1, 1, 3, 4) / torch.tensor([0.5, 1, 0.5]).double()[:, None] / 3
    found, _ = run(ones, x, 0, window=3, stride=1, edge=1)  # each of the three rows gives a third of a fall
    expected = [4, (4 + 0.5 * 6) / 1.5, (0.5 * 4 + 6) / 1.5, 6]
    assert_close(found.map[0, 1], torch.tensor(expected).double())


# ---------------------------------------------------------------- against Captum and the definition


def captum(model: nn.Module, x: Tensor, target: object, window: tuple, stride: tuple, **options: object) -> Tensor:
    shapes = {"sliding_window_shapes": (x.shape[1], *window), "strides": (x.shape[1], *stride)}
    found = Occlusion(model).attribute(x, target=torch.as_tensor(target), perturbations_per_eval=1, **shapes, **options)
    assert torch.equal(found[:, 0], found[:, -1])  # the same fall in every channel
    return found[:, 0].detach()


NETWORKS = ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0"]


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_captum_and_the_definition(name: str) -> None:
    torch.manual_seed(0)
    model, x = warmed(tv.get_model(name, weights=None)), draw(1, 1, 3, 48, 65)
    window, stride = (32, 30), (20, 25)  # the last row and column of windows are cut
    found, _ = run(model, x.float(), 3, window=window, stride=stride, local=True)
    expected = captum(model, x.float(), 3, window, stride)
    assert (found.map - expected).abs().max() < 1e-4 * expected.abs().max()
    model = model.double()
    found, _ = run(model, x, 3, window=window, stride=stride, local=True)
    expected = by_definition(model, x, 3, window, stride, torch.zeros(()).double())
    assert found.map.dtype == torch.float64
    assert (found.map - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("local", [True, False])
def test_soft_edge_equals_the_definition(small: nn.Module, local: bool) -> None:
    """Blended by hand, window by window, also where windows are cut."""
    x, fill, shares = draw(1, 1, 2, 20, 24), draw(2, 2, 20, 24), window_shares((8, 8), 3)
    found, _ = run(small, x, 1, window=8, stride=5, baseline=fill, edge=3, local=local)
    total, count = torch.zeros(20, 24).double(), torch.zeros(20, 24).double()
    with torch.no_grad():
        for row, col in window_corners((20, 24), (8, 8), (5, 5)).tolist():
            weight = torch.zeros(28, 32).double()
            weight[row : row + 8, col : col + 8] = shares
            weight = weight[:20, :24]
            fall = (small(x) - small(x + weight * (fill - x)))[0, 1]
            total, count = total + weight * fall, count + weight
    assert_close(found.map[0], total / count, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["torchvision", "tensorflow"])
def test_classifier_equals_captum(padding: str) -> None:
    """One channel, TensorFlow's padding, representation scaling, a batch, and an image as the fill."""
    torch.manual_seed(0)
    model = models.add_representation_scaling(models.build("mobilenet_v2", padding=padding, outputs=2))
    model = warmed(model, 1)
    x, fill = draw(1, 2, 1, 55, 64).float(), draw(2, 1, 55, 64).float()
    options = {"window": (32, 30), "stride": (20, 25)}
    found, _ = run(model, x, [0, 1], baseline=fill, local=True, **options)
    expected = captum(model, x, [0, 1], *options.values(), baselines=fill[None])
    assert (found.map - expected).abs().max() < 1e-4 * expected.abs().max()


def test_network_without_a_graph_equals_captum() -> None:
    x = draw(1, 2, 3, 9, 11)
    found, network = run(DependsOnValues(), x.float(), 2, window=4, stride=2, baseline=-0.7, chunk=1)
    with torch.no_grad():
        expected = torch.cat(
            [captum(DependsOnValues(), one[None].float(), 2, (4, 4), (2, 2), baselines=-0.7) for one in x]
        )
    assert_close(found.map, expected, atol=1e-6, rtol=1e-5)
    assert "no graph" in network.notes[0]


# ---------------------------------------------------------------- properties


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
    )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 9 * 11, 3)).double().eval()


@pytest.mark.parametrize("chunk", [1, 3, 100, None])
def test_images_are_explained_independently(small: nn.Module, chunk: int | None) -> None:
    """Whatever the chunks are, also where one spans two images; each image has its own target and fill."""
    x, fill = draw(1, 3, 2, 20, 24), draw(2, 3, 2, 20, 24)
    fill[1] = x[1]
    fill[1, :, 3, 3] += 1  # of the second image few windows change anything
    together, network = run(small, x, [0, 1, 2], window=6, stride=4, baseline=fill, chunk=chunk)
    for i in range(3):
        alone, _ = run(small, x[i : i + 1], i, window=6, stride=4, baseline=fill[i], chunk=2)
        assert_close(together.map[i], alone.map[0], rtol=0, atol=1e-12)
    assert network.forward_passes == 3 + 3 + 30 + 1 + 30  # the images twice, and the windows that change something


def test_image_equal_to_the_fill_gives_zeros_without_passes(small: nn.Module) -> None:
    found, network = run(small, torch.full((2, 2, 20, 24), 0.25).double(), 0, window=6, stride=4, baseline=0.25)
    assert torch.equal(found.map, torch.zeros(2, 20, 24).double()) and network.forward_passes == 2


def test_model_is_unchanged_also_after_an_interrupt(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    state, members = copy.deepcopy(small.state_dict()), {n: dict(vars(m)) for n, m in small.named_modules()}

    def unchanged() -> bool:
        now = {n: dict(vars(m)) for n, m in small.named_modules()}
        same = all(torch.equal(v, state[k]) for k, v in small.state_dict().items())
        return same and now.keys() == members.keys() and all(repr(now[k]) == repr(members[k]) for k in now)

    x = draw(1, 1, 2, 20, 24)
    run(small, x, 0, window=6, stride=4)
    assert unchanged() and all(p.grad is None and p.requires_grad for p in small.parameters())
    calls = []

    def interrupted(*args: object) -> Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.zeros(1, 3).double()

    monkeypatch.setattr("xai_lib.attribution.occlusion.LocalNetwork.outputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small, x, 0, window=6, stride=4, chunk=1)
    assert unchanged()


def test_short_memory_makes_chunks_smaller(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from xai_lib.attribution.changed_rectangle import LocalNetwork

    outputs = LocalNetwork.outputs

    def short(self: LocalNetwork, patches: Tensor, corners: np.ndarray) -> Tensor:
        if len(patches) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return outputs(self, patches, corners)

    expected = run(small, draw(1, 1, 2, 20, 24), 0, window=6, stride=4)[0].map
    monkeypatch.setattr(LocalNetwork, "outputs", short)
    found, network = run(small, draw(1, 1, 2, 20, 24), 0, window=6, stride=4)
    assert_close(found.map, expected, rtol=0, atol=1e-12)
    assert any("memory was short" in note for note in network.notes)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 21}, ValueError, "window: 21 x 21 pixels are more than the image's 20 x 24"),
        ({}, ValueError, "window: 60 x 60 pixels"),
        ({"window": (6, 25)}, ValueError, "window: 6 x 25 pixels"),
        ({"window": 6, "stride": 7}, ValueError, "never be covered"),
        ({"window": 0}, ValueError, "at least 1"),
        ({"window": 6, "stride": 0}, ValueError, "at least 1"),
        ({"window": 6.0}, TypeError, "window: expected an integer"),
        ({"window": 6, "stride": (2, 2, 2)}, TypeError, "stride: expected an integer"),
        ({"window": 6, "stride": "4"}, TypeError, "stride: expected an integer"),
        ({"window": 6, "stride": 4, "local": "no"}, ValueError, "local: 'no'"),
        ({"window": 6, "stride": 4, "chunk": 0}, ValueError, "chunk: 0"),
        ({"window": 6, "stride": 4, "edge": 4}, ValueError, "edge: 4 pixels, expected from 0 to half of the window 6"),
        ({"window": 6, "stride": 4, "edge": -1}, ValueError, "edge: -1 pixels"),
        ({"window": 6, "stride": 4, "edge": 1.5}, TypeError, "edge: expected an integer, got 1.5"),
        ({"window": 6, "stride": 4, "baseline": torch.zeros(1, 20, 24)}, ValueError, "baseline: shape"),
    ],
)
def test_bad_options_are_named(small: nn.Module, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        run(small, draw(1, 1, 2, 20, 24), 0, **options)


def test_bad_target_and_image_are_named(small: nn.Module) -> None:
    with pytest.raises(ValueError, match="target: 3 is out of range"):
        run(small, draw(1, 1, 2, 20, 24), 3, window=6, stride=4)
    with pytest.raises(ValueError, match="the model does not take images of shape"):
        run(small, draw(1, 1, 3, 20, 24), 0, window=6, stride=4)
