"""Recomputing only the changed rectangle: by hand, and against the whole image on many layers and networks."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as tv

from xai_lib import models
from xai_lib.attribution import changed_rectangle, rectangles
from xai_lib.attribution.changed_rectangle import LocalNetwork
from xai_lib.attribution.core import Network
from xai_lib.attribution.folding import folded


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def warmed(model: nn.Module, channels: int = 3) -> nn.Module:
    """In float64, with batch-norm statistics that fit: an untrained network otherwise gives almost a constant."""
    model = model.double().train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.train().momentum = None  # one batch sets the statistics
    with torch.no_grad():
        model(draw(0, 4, channels, 64, 64))
    return model.eval()


def local(model: nn.Module, x: Tensor, **options: object) -> LocalNetwork:
    network = LocalNetwork(Network(model), **options)
    network.keep(x)
    return network


def pasted(x: Tensor, patches: Tensor, corners: list[tuple[int, int]]) -> Tensor:
    images = x.repeat(len(patches), 1, 1, 1)
    for image, patch, (row, col) in zip(images, patches, corners, strict=True):
        image[:, row : row + patch.shape[1], col : col + patch.shape[2]] = patch
    return images


def largest_error(model: nn.Module, x: Tensor, seed: int = 0) -> float:
    """Of local outputs, relative to the largest change, over rectangles of many sizes and places."""
    height, width = x.shape[2:]
    network, rng, worst = local(model, x, local=True), np.random.default_rng(seed), 0.0
    for h, w in ((1, 1), (height // 3, width // 4), (height, 3), (height, width)):
        random = rng.integers(0, (height - h + 1, width - w + 1), (2, 2)).tolist()
        corners = list({(0, 0), (height - h, width - w), (0, width - w), *map(tuple, random)})
        patches = draw(seed, len(corners), x.shape[1], h, w)
        with torch.no_grad():
            whole, before = model(pasted(x, patches, corners)), model(x)
        error = (network.outputs(patches, corners) - whole.reshape(len(corners), -1)).abs().max()
        worst = max(worst, float(error / (whole - before).abs().max()))
    assert not any("whole images" in note for note in network.network.notes)
    return worst


# ---------------------------------------------------------------- by hand


def test_one_pixel_under_a_kernel_of_ones_by_hand() -> None:
    """A 3 x 3 kernel of ones spreads one pixel to 4 places in a corner, 6 at an edge, 9 inside."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(25, 1, bias=False)).eval()
    for p in model.parameters():
        nn.init.ones_(p)
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1.0  # gives 9
    network = local(model, x, local=True)
    patches = torch.tensor([1.0, 1.0, 1.0, 3.0])[:, None, None, None]
    assert network.image_outputs().tolist() == [[9.0]]
    assert network.outputs(patches, [(0, 0), (0, 3), (3, 1), (2, 2)]).flatten().tolist() == [13.0, 15.0, 18.0, 27.0]


@pytest.mark.parametrize(
    ("at", "extent", "expected"),
    [
        (4, 2, (2, 2)),  # pixels 4, 5: output 2 reads 3 ... 5, output 3 reads 5 ... 7
        (0, 1, (0, 1)),  # pixel 0: output 0 reads -1 ... 1
        (7, 1, (3, 1)),  # pixel 7: output 3
        (5, 1, (2, 2)),
        (6, 1, (3, 1)),
    ],
)
def test_rectangle_of_a_strided_convolution_by_hand(at: int, extent: int, expected: tuple[int, int]) -> None:
    """Kernel 3, stride 2, padding 1 on 8 pixels: output o reads pixels 2 o - 1 ... 2 o + 1."""
    window = rectangles._conv(np.array([8, 8]), torch.ones(1, 1, 3, 3), stride=2, padding=1)
    base = torch.zeros(1, 1, 8, 8)
    changed = rectangles.Changed(base, np.array([8, 8]), torch.ones(1, 1, extent, 1), np.array([[at, 2]]))
    out = window(changed, torch.zeros(1, 1, 4, 4), np.array([4, 4]))
    assert (out.at[0, 0], out.extent[0]) == expected


# ---------------------------------------------------------------- layers


class Functional(nn.Module):
    """Calls that are no modules, on a network input (N, 2, H, W)."""

    def __init__(self, call: object) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(draw(7, 2, 2, 3, 3))
        self.scale = nn.Parameter(draw(8, 2))
        self.register_buffer("mean", draw(9, 1, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.call(self, x)
        return (y * y).mean((2, 3))


def residual(_: Functional, x: Tensor) -> Tensor:
    y = F.relu(x.clone(), inplace=True)
    y += x
    return y


def overwritten(m: Functional, x: Tensor) -> Tensor:
    """The convolution in the middle reads what the ReLU then overwrites."""
    y = F.conv2d(x, m.weight, padding=1)
    z = F.conv2d(y, m.weight, padding=1)
    return z + y.relu_()


def joined(m: Functional, x: Tensor) -> Tensor:
    """Rectangles that reach up and left join those that reach down and right: at the border the union is smaller."""
    before, after = (F.conv2d(F.pad(x, border), m.weight) for border in ((2, 0, 2, 0), (0, 2, 0, 2)))
    return F.conv2d(before + after + 1, m.weight, stride=2, padding=1)


def shaped(_: Functional, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h * w).transpose(1, 2).reshape(n, h * w, c).permute(0, 2, 1).reshape(n, c, h, w).tanh()


LAYERS = {
    "1x1 stride 2": nn.Conv2d(2, 3, 1, 2),
    "rectangular kernel, stride and padding": nn.Conv2d(2, 4, (3, 5), (2, 1), (0, 2)),
    "kernel 7 stride 4": nn.Conv2d(2, 4, 7, 4, 3),
    "stride above kernel": nn.Conv2d(2, 4, 2, 3),
    "dilation and groups": nn.Conv2d(2, 4, 3, 1, 2, dilation=2, groups=2),
    "same padding, even kernel": nn.Conv2d(2, 4, (4, 3), padding="same"),
    "valid padding": nn.Conv2d(2, 4, 3, padding="valid"),
    "reflected padding": nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"),
    "max-pool": nn.MaxPool2d(3, 2, 1),
    "max-pool, ceil mode": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max-pool, ceil mode, padded": nn.MaxPool2d((2, 3), (3, 2), (1, 0), ceil_mode=True),
    "max-pool, dilation": nn.MaxPool2d(2, 1, dilation=3),
    "average pool": nn.AvgPool2d(2),
    "average pool, padded": nn.AvgPool2d(3, 2, 1),
    "average pool, padding not counted": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pool, ceil mode": nn.AvgPool2d(3, 2, ceil_mode=True),
    "pre-activation": nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3)),
    "local response, unknown": nn.Sequential(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 3)),
    "transposed convolution": nn.ConvTranspose2d(2, 3, 2, 2),
    "channel-wise prelu": nn.Sequential(nn.Conv2d(2, 4, 3), nn.PReLU(4)),
    "zero padding": nn.Sequential(nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 3, 3)),
    "instance norm": nn.InstanceNorm2d(2),
    "softmax over channels": nn.Softmax2d(),
}
CALLS = {
    "functional convolution": lambda m, x: F.conv2d(x, m.weight, None, 2, padding=1),
    "functional pools": lambda m, x: F.avg_pool2d(F.max_pool2d(x, 3, stride=2, padding=1), 2),
    "padding": lambda m, x: F.conv2d(F.pad(x, (1, 0, 2, 3), value=0.5), m.weight),
    "reflection": lambda m, x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), m.weight),
    "cropping": lambda m, x: F.conv2d(F.pad(x, (-1, 0, 2, 0)), m.weight),
    "concatenation": lambda m, x: torch.cat([F.conv2d(x, m.weight, padding=1), x, F.relu(x)], 1),
    "concatenation of rows": lambda m, x: torch.cat([x, -x], dim=2),
    "operators": lambda m, x: (2 - (x - m.mean) / 3) * F.conv2d(x, m.weight, padding=1) + 1,
    "representation scaling": lambda m, x: x * m.scale[:, None, None] + m.scale[:, None, None],
    "constant per column": lambda m, x: x * torch.arange(x.shape[3], dtype=x.dtype),
    "methods": lambda m, x: x.add(1).mul(x.sigmoid()).clamp(min=0),
    "squeeze and excitation": lambda m, x: F.conv2d(x, m.weight) * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "residual in place": residual,
    "overwritten after use": overwritten,
    "joined and convolved": joined,
    "shapes": shaped,
    "maximum over the map": lambda m, x: x - x.amax((2, 3), keepdim=True),
}


@pytest.mark.filterwarnings("ignore:Using padding=")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_the_whole_image(name: str) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    model = nn.Sequential(LAYERS[name], head).double().eval()
    assert largest_error(model, draw(1, 1, 2, 23, 30)) < 1e-12


@pytest.mark.parametrize("name", CALLS)
def test_call_equals_the_whole_image(name: str) -> None:
    assert largest_error(Functional(CALLS[name]).double().eval(), draw(1, 1, 2, 23, 30)) < 1e-12


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0"])
def test_network_equals_the_whole_image(name: str) -> None:
    torch.manual_seed(0)
    assert largest_error(warmed(tv.get_model(name, weights=None)), draw(1, 1, 3, 58, 43)) < 1e-9


@pytest.mark.parametrize("padding", ["torchvision", "tensorflow"])
def test_classifier_with_one_channel_and_representation_scaling(padding: str) -> None:
    torch.manual_seed(0)
    model = models.add_representation_scaling(models.build("resnet10", padding=padding))
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    assert largest_error(warmed(model, channels=1), draw(1, 1, 1, 58, 43)) < 1e-9


# ---------------------------------------------------------------- which way is taken


class Gated(nn.Module):
    """Squeeze and excitation after the first convolution: everything behind it depends on the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.then = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.then(y * torch.sigmoid(y.mean((2, 3), keepdim=True))).mean((2, 3))


def test_whole_images_where_rectangles_save_little() -> None:
    network = local(Gated().double().eval(), draw(1, 1, 1, 40, 40))
    patches, corners = draw(2, 2, 1, 5, 5), [(3, 4), (20, 30)]
    first = network.outputs(patches, corners)
    assert network.local is False and "whole images were run" in network.network.notes[0]
    assert torch.allclose(network.outputs(patches, corners), first, rtol=0, atol=1e-12)


def test_rectangles_where_they_save_and_passes_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    network = local(model, torch.rand(1, 1, 40, 40))
    network.outputs(torch.zeros(3, 1, 5, 5), [(3, 4), (20, 30), (0, 0)])
    assert network.local is True and "only changed rectangles" in network.network.notes[0]
    assert network.network.forward_passes == 1 + 1 + 3  # the network itself, its graph, the variants
    network.outputs(torch.zeros(1, 1, 5, 5), [(3, 4)])
    assert network.network.forward_passes == 6
    known = LocalNetwork(Network(model))
    known.keep(torch.rand(1, 1, 40, 40) * 0, outputs=model(torch.zeros(1, 1, 40, 40)).detach())
    known.image_outputs()
    assert known.network.forward_passes == 1


class DependsOnValues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3)) if x.sum() > 0 else -x.mean((1, 2, 3))


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True).mean((2, 3))


class Overwrites(nn.Module):
    """Reads a tensor again after an in-place operation on it, through another name."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 0
        z = y.view(y.shape)
        y.relu_()
        return (z - 0.5).mean((2, 3))


def test_network_without_a_graph_runs_whole_images() -> None:
    x = draw(1, 1, 1, 6, 6).abs()
    network = local(DependsOnValues().eval(), x)
    patches = torch.full((1, 1, 5, 6), -9.0, dtype=x.dtype)  # turns the sign of the sum, and so the branch
    expected = DependsOnValues()(pasted(x, patches, [(0, 0)]))
    assert network.outputs(patches, [(0, 0)]).flatten().tolist() == expected.tolist()
    assert network.network.forward_passes == 2 and "no graph" in network.network.notes[0]


@pytest.mark.parametrize("model", [Random(), Overwrites()], ids=["random", "overwritten"])
def test_graph_that_does_not_compute_the_same_is_left(model: nn.Module) -> None:
    network = local(model.eval(), draw(1, 1, 1, 8, 8))
    network.outputs(torch.ones(1, 1, 2, 2), [(0, 0)])
    assert network.graph is None and "differ" in network.network.notes[0]


def test_memory_too_short_for_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(changed_rectangle._Run, "run", short)
    model, x = (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval(),
        draw(1, 1, 1, 9, 9),
    )
    network = local(model, x)
    patches = draw(2, 1, 1, 3, 3)
    found = network.outputs(patches, [(1, 2)])
    assert torch.allclose(found, model(pasted(x, patches, [(1, 2)])), atol=1e-12)
    assert "memory was short" in network.network.notes[0]


def test_bf16_keeps_activations_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    network = LocalNetwork(Network(model, precision="bf16"), local=True)
    x, patches = torch.rand(1, 1, 30, 30), torch.rand(1, 1, 6, 6)
    network.keep(x)
    rounded = network.outputs(patches, [(5, 5)])
    with network.network.exact():
        exact = network.outputs(patches, [(5, 5)])
    whole = model(pasted(x, patches, [(5, 5)]))
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert torch.allclose(exact, whole, atol=1e-6) and torch.allclose(rounded, whole, atol=0.02)


# ---------------------------------------------------------------- folding


def test_folded_network_is_equal_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    model = warmed(models.build("resnet10"), channels=1)
    before, tensors = copy.deepcopy(model.state_dict()), [id(t) for t in (*model.parameters(), *model.buffers())]
    network = Network(model)
    graph = folded(network.module)
    x = draw(1, 2, 1, 50, 61)
    assert torch.allclose(graph(x), model(x), rtol=1e-9, atol=1e-12)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert tensors == [id(t) for t in (*model.parameters(), *model.buffers())]
    assert all(p.requires_grad and p.is_contiguous() for p in model.parameters())
    assert torch.equal(network.module(x), model(x))  # the shadow has not changed either
    assert "feature_maps" not in vars(network.module)


def test_shared_convolution_is_not_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.conv(x)) + 2 * self.b(self.conv(x))

    model = Twice().double().eval()
    model.b.running_mean += 3
    x = draw(1, 1, 1, 6, 6)
    graph = folded(model)
    assert torch.allclose(graph(x), model(x)) and sum(isinstance(m, nn.BatchNorm2d) for m in graph.modules()) == 2


def test_no_graph_with_hooks_or_replaced_forward() -> None:
    hooked, replaced = nn.Sequential(nn.ReLU()).eval(), nn.Sequential(nn.ReLU()).eval()
    hooked[0].register_forward_hook(lambda *_: None)
    replaced[0].forward = torch.tanh
    assert folded(hooked) is None and folded(replaced) is None and folded(DependsOnValues()) is None


# ---------------------------------------------------------------- bad input


def test_bad_arguments_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ValueError, match="local: 'never'"):
        LocalNetwork(Network(model), local="never")
    network = local(model, torch.rand(1, 1, 9, 9))
    with pytest.raises(ValueError, match=r"patches: expected shape \(1, 1, h, w\) for 1 corners, got \(2, 1, 3, 3\)"):
        network.outputs(torch.zeros(2, 1, 3, 3), [(0, 0)])
    with pytest.raises(ValueError, match=r"corners: a patch of .* lies outside"):
        network.outputs(torch.zeros(1, 1, 3, 3), [(7, 0)])
    with pytest.raises(ValueError, match="output is not finite"):
        network.outputs(torch.full((1, 1, 3, 3), torch.inf), [(0, 0)])
