import copy
import warnings

import pytest
import torch
import torchvision
from captum import attr
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from xai_lib import models
from xai_lib.attribution import gradients as engine
from xai_lib.attribution import passes
from xai_lib.attribution.core import Network, Refused

NETWORKS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "densenet121", "squeezenet1_1")
DEFAULT = {"resnet18": "layer4", "resnet50": "layer4"}  # the others: features
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum", "ignore:Input Tensor", "ignore:Setting")


@pytest.fixture(scope="module")
def built():
    """torchvision's networks with random weights, and batch-norm statistics of random images."""
    made = {}
    with torch.random.fork_rng():
        for name in NETWORKS:
            torch.manual_seed(2)
            net = getattr(torchvision.models, name)(weights=None, num_classes=10).train()
            norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
            for module in norms:
                module.momentum = 1.0  # the statistics of one batch
                module.bias.data.normal_(0, 0.1)
            if norms:
                with torch.no_grad():
                    net(torch.randn(2, 3, 64, 64))
            else:
                net.classifier[1].bias.data.fill_(0.5)  # its last ReLU must let something pass
            net.eval()
            made[name] = net
    return made


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))


def run(method, model, x, target=3, **options):
    network = Network(model)
    x, target = network.inputs(x, target)
    return getattr(engine, method)(network, x, target, **options), network


class Calls(nn.Module):
    """A network that is one function."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.eval()

    def forward(self, x):
        return self.f(x)


def plain_net(pool=nn.AvgPool2d):
    """Convolutions, ReLUs (each used once) and a linear layer: what Captum's and shap's DeepLIFT can do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            pool(2),
            nn.Conv2d(6, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 5 * 5, 7),
            nn.ReLU(),
            nn.Linear(7, 4),
        )
        net[4].running_mean.normal_()
    return net.eval()


# ------------------------------------------------------------------------------------------------------- by hand


def test_linear_model():
    """Every gradient method of w x + c is w (x - b), exactly."""
    w = torch.tensor([[1.0, -2.0, 0.0, 4.0], [0.5, 1.0, -1.0, 3.0]])
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    net[1].weight.data.copy_(w)
    x, b = torch.tensor([3.0, 1.0, 2.0, -1.0]).view(1, 1, 2, 2), torch.tensor([1.0, 1.0, 5.0, 0.5]).view(1, 1, 2, 2)
    for target in (0, 1):
        weights = w[target].view(1, 2, 2)
        assert torch.equal(run("saliency", net, x, target)[0].map, weights.abs())
        assert torch.equal(run("gradient_x_input", net, x, target)[0].map, weights * x[:, 0])
        assert torch.equal(run("guided_backprop", net, x, target)[0].map, weights)
        assert torch.equal(run("deeplift", net, x, target, baseline=b)[0].map, weights * (x - b)[:, 0])
        assert torch.equal(run("deeplift", net, x, target, baseline=0.5)[0].map, weights * (x - 0.5)[:, 0])
        found, _ = run("deep_shap", net, x, target, baselines=torch.cat([b, 3 * b]))
        assert_close(found.map, weights * (x - 2 * b)[:, 0])


def two_convolutions():
    """relu(x0 - x1) and relu(x1), then 2 first - 3 second, relu, mean; by hand."""
    net = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 2, 1, bias=False), nn.ReLU())
    net = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False)).eval()
    with torch.no_grad():
        net[0][0].weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 1.0]])[:, :, None, None])
        net[0][2].weight.copy_(torch.tensor([[2.0, -3.0], [1.0, 1.0]])[:, :, None, None])
        net[3].weight.copy_(torch.tensor([[4.0, -8.0], [1.0, 1.0]]))
    return net


def test_two_convolutions_by_hand():
    x = torch.tensor([[5.0, 1.0], [2.0, 2.0]])[None, :, None]  # channels at pixel 0: 5, 2; at pixel 1: 1, 2
    # first ReLU: (3, 2) and (0, 2); second layer: (0, 5) and (-6, 2) -> after its ReLU (0, 5) and (0, 2)
    net = two_convolutions()
    found, _ = run("grad_cam", net, x, 0, layer="0")
    assert found.grid.tolist() == [[[-20.0, -8.0]]]  # weights 4/2 and -8/2 on channels (0, 5), (0, 2)
    assert torch.equal(found.map, found.grid)
    assert run("grad_cam", net, x, 0, layer="0", relu=True)[0].grid.tolist() == [[[0.0, 0.0]]]
    assert run("grad_cam", net, x, 1, layer="0")[0].grid.tolist() == [[[2.5, 1.0]]]
    # at the first ReLU: gradient for target 1 is 1/2 (1, 1) through the second unit only, so mean 1/2 for both channels
    assert run("grad_cam", net, x, 1, layer="0.1")[0].grid.tolist() == [[[2.5, 1.0]]]
    # guided, target 0: the second unit has gradient -4, so nothing passes; the first is off
    assert run("guided_backprop", net, x, 0)[0].map.tolist() == [[[0.0, 0.0]]]
    # target 1: 1/2 (1, 1) at the first ReLU; pixel 1 has its first unit off. Input: 1/2 (x0 - x1) + 1/2 x1, and 1/2 x1
    assert run("guided_backprop", net, x, 1)[0].map.tolist() == [[[0.5 - 0.5 + 0.5, 0.5]]]
    guided_cam, _ = run("guided_grad_cam", net, x, 1, layer="0")
    assert guided_cam.map.tolist() == [[[0.5 * 2.5, 0.5 * 1.0]]]
    assert guided_cam.grid.tolist() == [[[2.5, 1.0]]]


def test_the_weight_of_a_channel_is_its_mean_gradient_by_hand():
    """Without pooling the gradient is 3 at one pixel and 1 at the other: the channel's weight is 2."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Flatten(), nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[2].weight.copy_(torch.tensor([[3.0, 1.0]]))
    found, _ = run("grad_cam", net, torch.tensor([[[[5.0, 1.0]]]]), 0, layer="0")
    assert found.grid.tolist() == [[[10.0, 2.0]]]


def test_guided_by_hand_differs_from_the_gradient():
    """y = relu(x) - relu(2x): the gradient is -1, but the unit with the negative weight lets nothing pass."""

    net, x = Calls(lambda x: (F.relu(x) - F.relu(2 * x)).flatten(1).sum(1)), torch.ones(1, 1, 1, 1)
    assert run("guided_backprop", net, x, 0)[0].map.item() == 1
    assert run("gradient_x_input", net, x, 0)[0].map.item() == -1


def test_layer_cam_by_hand():
    """A = x, gradient by x: (3, -1) at pixel 0 and (-2, 2) at pixel 1; A is (1, 2) and (4, 5)."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()
            self.w = nn.Parameter(torch.tensor([[3.0, -2.0], [-1.0, 2.0]])[None, :, None])

        def forward(self, x):
            return (self.same(x) * self.w).sum((1, 2, 3))

    x, net = torch.tensor([[1.0, 4.0], [2.0, 5.0]])[None, :, None], Net().eval()
    assert run("layer_cam", net, x, 0, layer="same")[0].grid.tolist() == [[[3.0, 10.0]]]
    assert run("layer_cam", net, x, 0, layer="same", signed=True)[0].grid.tolist() == [[[1.0, 2.0]]]
    assert run("layer_cam", net, -x, 0, layer="same")[0].grid.tolist() == [[[0.0, 0.0]]]  # the last ReLU
    fused, _ = run("layer_cam", net, x, 0, layer=["same", "same"])
    assert_close(fused.map, torch.tanh(2 * torch.tensor([[[0.3, 1.0]]])))


def test_maps_are_resized_to_the_image():
    net = nn.Sequential(nn.AvgPool2d((1, 2)), nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))).eval()
    net[1][1].weight.data.fill_(1.0)
    x = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4)
    assert run("grad_cam", net, x, 0, layer="0")[0].map.tolist() == [[[0.0, 0.25, 0.75, 1.0]]]
    assert run("grad_cam", net, x, 0, layer="0", resize="nearest")[0].map.tolist() == [[[0.0, 0.0, 1.0, 1.0]]]


# ------------------------------------------------------------------------------------------------- other libraries


@pytest.mark.parametrize("name", ["squeezenet1_1", "efficientnet_b0"])
def test_plain_gradients_are_captums(built, x, name):
    net = built[name]
    saliency = attr.Saliency(net).attribute(x.clone().requires_grad_(), target=3)
    assert_close(run("saliency", net, x)[0].map, saliency.amax(1), atol=1e-7, rtol=1e-4)
    product = attr.InputXGradient(net).attribute(x.clone().requires_grad_(), target=3)
    assert_close(run("gradient_x_input", net, x)[0].map, product.sum(1).detach(), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_guided_methods_are_captums_on_networks_of_relu_modules(built, x, name):
    net = built[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = attr.GuidedBackprop(copy.deepcopy(net)).attribute(x.clone().requires_grad_(), target=3)
    ours, network = run("guided_backprop", net, x)
    assert_close(ours.map, theirs.sum(1), atol=1e-7, rtol=1e-4)
    assert network.notes == []
    gradient = torch.autograd.grad(net(z := x.clone().requires_grad_())[:, 3].sum(), z)[0]
    assert (ours.map - gradient.sum(1)).abs().max() > 0.1 * ours.map.abs().max()
    if name == "resnet18":
        model = copy.deepcopy(net)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = attr.GuidedGradCam(model, model.layer3)
            theirs = method.attribute(x.clone().requires_grad_(), target=3, interpolate_mode="bilinear")
        assert_close(run("guided_grad_cam", net, x, layer="layer3")[0].map, theirs.sum(1), atol=1e-8, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "layer"),
    [(name, DEFAULT.get(name, "features")) for name in NETWORKS]
    + [("resnet18", "layer2.0.bn1"), ("densenet121", "features.norm0"), ("mobilenet_v2", "features.4")],
)
def test_grad_cam_is_captums(built, x, name, layer):
    net = built[name]
    theirs = attr.LayerGradCam(net, net.get_submodule(layer)).attribute(x, target=3, relu_attributions=False)
    ours, _ = run("grad_cam", net, x, layer=layer)
    assert_close(ours.grid, theirs[:, 0].detach(), atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_cams_are_pytorch_grad_cams(built, x, name):
    """That library scales each map to [0, 1]."""
    net, layer = copy.deepcopy(built[name]), DEFAULT.get(name, "features")
    for ours, theirs in (("grad_cam", GradCAM), ("layer_cam", LayerCAM)):
        options = {"relu": True} if ours == "grad_cam" else {}
        grid = run(ours, built[name], x, layer=layer, **options)[0].grid
        with theirs(model=net, target_layers=[net.get_submodule(layer)]) as cam:
            reference = torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(3)] * 2))
        large = engine.resize_map(grid, (64, 80))
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        assert_close((large - low) / (high - low), reference, atol=1e-4, rtol=1e-3)


def test_deeplift_is_captums_on_a_plain_net():
    net, x = plain_net(), torch.randn(3, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    baseline = torch.randn(3, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    theirs = attr.DeepLift(copy.deepcopy(net)).attribute(x, baseline, target=torch.tensor([0, 1, 3])).detach()
    ours, network = run("deeplift", net, x, [0, 1, 3], baseline=baseline)
    assert_close(ours.map, theirs.sum(1), atol=1e-6, rtol=1e-4)
    assert ours.gap < 1e-5 and torch.equal(ours.baseline, baseline)
    assert (network.forward_passes, network.backward_passes) == (6, 3)


def test_deeplift_is_captums_with_max_pooling_that_it_does_right():
    """Windows that do not overlap, between two convolutions: next to a ReLU, Captum's sum is wrong there too."""
    pooled = [nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Flatten()]
    net = nn.Sequential(*pooled, nn.Linear(294, 4)).eval()
    x, baseline = torch.randn(2, 1, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    theirs = attr.DeepLift(copy.deepcopy(net)).attribute(x, baseline, target=1).detach()
    assert_close(run("deeplift", net, x, 1, baseline=baseline)[0].map, theirs.sum(1), atol=1e-6, rtol=1e-4)


def test_deep_shap_is_captums_and_the_mean_of_deeplift():
    net, x = plain_net(), torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    baselines = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    theirs = attr.DeepLiftShap(copy.deepcopy(net)).attribute(x, baselines, target=torch.tensor([2, 0])).detach()
    ours, network = run("deep_shap", net, x, [2, 0], baselines=baselines, chunk=2)
    assert_close(ours.map, theirs.sum(1), atol=1e-6, rtol=1e-4)
    assert ours.gap < 1e-5
    assert (network.forward_passes, network.backward_passes) == (15, 10)
    each = [run("deeplift", net, x, [2, 0], baseline=b)[0].map for b in baselines]
    assert_close(ours.map, torch.stack(each).mean(0), atol=1e-6, rtol=1e-4)
    assert_close(run("deep_shap", net, x, [2, 0], baselines=baselines)[0].map, ours.map, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
def test_deep_shap_is_shaps():
    shap = pytest.importorskip("shap")
    net, x = plain_net(), torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    baselines = torch.randn(4, 3, 14, 14, generator=torch.Generator().manual_seed(2))
    theirs = shap.DeepExplainer(copy.deepcopy(net), baselines).shap_values(x, check_additivity=False)  # (N, C, H, W, K)
    ours, _ = run("deep_shap", net, x, 1, baselines=baselines)
    assert_close(ours.map, torch.as_tensor(theirs[..., 1]).sum(1).to(ours.map), atol=1e-5, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
def test_deeplift_is_complete(built, x, name, dtype):
    net = built[name] if dtype == torch.float32 else copy.deepcopy(built[name]).double()
    image, baseline = x[:1].to(dtype), x[1:].to(dtype) / 3
    found, network = run("deeplift", net, image, 3, baseline=baseline)
    with torch.no_grad():
        difference = (net(image) - net(baseline))[:, 3]
        scale = difference.abs().clamp(min=1e-3 * float(net(image).abs().max()))
    assert found.map.dtype == dtype
    limit = 1e-3 if dtype == torch.float32 else 1e-10
    assert float(((found.map.double().sum((1, 2)) - difference).abs() / scale).max()) <= limit
    assert found.gap <= limit and network.notes == []


@pytest.mark.parametrize("name", NETWORKS)
def test_default_layer(built, x, name):
    net = built[name]
    default, _ = run("grad_cam", net, x[:1])
    named, _ = run("grad_cam", net, x[:1], layer=DEFAULT.get(name, "features"))
    assert torch.equal(default.grid, named.grid) and default.grid.shape[1] > 1


@pytest.mark.parametrize("name", ["resnet10", "densenet121", "squeezenet1_1"])
def test_default_layer_of_our_own_networks(name):
    net = models.build(name)
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run("grad_cam", net, x, 0)[0].grid, run("grad_cam", net, x, 0, layer="features")[0].grid)
    if name == "resnet10":  # one channel, repeated by the network
        found, _ = run("deeplift", net, x, 0)
        assert found.map.shape == (1, 64, 64) and found.gap < 1e-3


def test_implementation_does_not_matter():
    class Net(nn.Module):
        def __init__(self, relu):
            super().__init__()
            self.body, self.relu = plain_net(nn.MaxPool2d), relu

        def forward(self, x):
            for layer in self.body:
                x = self.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
            return x

    x = torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    for method in ("guided_backprop", "deeplift", "gradient_x_input"):
        expected, _ = run(method, plain_net(nn.MaxPool2d), x)
        for relu in (F.relu, torch.relu_, lambda z: z.clamp(min=0), lambda z: z.relu(), nn.ReLU(inplace=True)):
            assert_close(run(method, Net(relu).eval(), x)[0].map, expected.map, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("method", sorted(engine.SHARED))
def test_images_do_not_depend_on_their_batch(built, x, method):
    net = built["squeezenet1_1"]
    baseline = {"baseline": x.flip(0)} if method == "deeplift" else {}
    both, _ = run(method, net, x, [3, 5], **baseline)
    for i, target in enumerate((3, 5)):
        alone, _ = run(method, net, x[i : i + 1], target, **{k: v[i : i + 1] for k, v in baseline.items()})
        assert_close(both.map[i], alone.map[0], atol=1e-5 * float(alone.map.abs().max()), rtol=1e-4)
        assert_close(both.scores[i], alone.scores[0])


@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "deeplift", "grad_cam", "guided_grad_cam"])
def test_a_shifted_image_gives_a_shifted_map(method):
    """A network without padding that ends in a sum over places does not know where things are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    for convolution in (body[0], body[2]):
        convolution.padding, convolution.padding_mode = (1, 1), "circular"
        convolution._reversed_padding_repeated_twice = [1, 1, 1, 1]
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    one, other = (run(method, net, image, 1)[0].map for image in (x, x.roll((3, 5), (2, 3))))
    assert_close(other, one.roll((3, 5), (1, 2)), atol=1e-6, rtol=1e-4)


def test_shift_of_the_input_that_the_network_undoes():
    """Kindermans 2019: a constant added to image and baseline, taken off by the first bias, changes nothing."""
    net, x = plain_net(), torch.randn(1, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    shifted = nn.Sequential(_Minus(2.0), net).eval()
    one, _ = run("deeplift", net, x, 1, baseline=0.25)
    other, _ = run("deeplift", shifted, x + 2, 1, baseline=2.25)
    assert_close(one.map, other.map, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        run("gradient_x_input", shifted, x + 2, 1)[0].map, run("gradient_x_input", net, x, 1)[0].map
    )


class _Minus(nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.register_buffer("constant", torch.tensor(constant))

    def forward(self, x):
        x -= self.constant  # in place, on the image itself
        return x


def test_a_first_layer_in_place_does_not_change_the_image():
    net = nn.Sequential(_Minus(2.0), nn.Flatten(), nn.Linear(4, 1)).eval()
    x = torch.ones(1, 1, 2, 2)
    for method in engine.SHARED:
        if "cam" not in method:
            found, _ = run(method, net, x, 0)
            assert torch.isfinite(found.map).all() and x.tolist() == [[[[1, 1], [1, 1]]]]
    assert_close(run("gradient_x_input", net, x, 0)[0].map, net[2].weight.detach().view(1, 2, 2))


def test_constant_image_gives_no_nan(built):
    for value in (0.0, 1.0):
        x = torch.full((1, 3, 64, 64), value)
        network = Network(built["efficientnet_b0"])
        found = engine.shared(network, *network.inputs(x, 3), {name: {} for name in engine.SHARED})
        assert all(torch.isfinite(f.map).all() for f in found.values())
        assert value or not found["deeplift"].map.any()


def test_rectifiers_that_are_no_relu_are_noted(built, x):
    for name, met in (("mobilenet_v2", "hardtanh|relu6"), ("efficientnet_b0", "silu")):
        _, network = run("guided_backprop", built[name], x[:1])
        assert len(network.notes) == 1 and any(word in network.notes[0] for word in met.split("|"))
        gradient, _ = run("gradient_x_input", built[name], torch.ones_like(x[:1]))
        guided, _ = run("guided_backprop", built[name], torch.ones_like(x[:1]))
        assert (gradient.map - guided.map).abs().max() > 0.1 * gradient.map.abs().max()


def test_bf16(built, x):
    network = Network(built["squeezenet1_1"], precision="bf16")
    image, target = network.inputs(x, 3)
    for name, limit in (("saliency", 0.3), ("grad_cam", 0.3), ("deeplift", 1e-3)):
        found = getattr(engine, name)(network, image, target)
        exact, _ = run(name, built["squeezenet1_1"], x)
        assert found.map.dtype == torch.float32
        assert float((found.map - exact.map).abs().sum() / exact.map.abs().sum()) < limit
    assert torch.isfinite(engine.guided_backprop(network, image, target).map).all()


# --------------------------------------------------------------------------------------------------- shared passes


def test_shared_equals_the_methods_alone(built, x):
    net, baseline = built["squeezenet1_1"], x.flip(0)
    chosen = {name: {} for name in engine.SHARED}
    chosen |= {"grad_cam": {"layer": "features.7"}, "layer_cam": {"layer": ["features.4", "features"]}}
    chosen |= {"deeplift": {"baseline": baseline}}
    network = Network(net)
    found = engine.shared(network, *network.inputs(x, [3, 4]), chosen)
    assert (network.forward_passes, network.backward_passes) == (4, 6)  # images and baselines; three rules
    assert list(found) == list(chosen)
    for name, options in chosen.items():
        alone, _ = run(name, net, x, [3, 4], **options)
        assert_close(found[name].map, alone.map, atol=1e-7, rtol=1e-4)
        assert torch.equal(found[name].scores, alone.scores)
    assert found["deeplift"].gap < 1e-3


def test_shared_costs_no_more_than_it_must(built, x):
    for chosen, cost in (
        ({"saliency": {}, "gradient_x_input": {}, "grad_cam": {}}, (1, 1)),
        ({"grad_cam": {"layer": "features.3"}}, (1, 1)),
        ({"guided_backprop": {}}, (1, 1)),
        ({"guided_grad_cam": {}, "saliency": {}}, (1, 2)),
        ({"deeplift": {}}, (2, 1)),
    ):
        network = Network(built["squeezenet1_1"])
        engine.shared(network, *network.inputs(x[:1], 3), chosen)
        assert (network.forward_passes, network.backward_passes) == cost


def test_a_baseline_is_run_once_for_a_study(built, x):
    network = Network(built["squeezenet1_1"])
    images, target = network.inputs(x, 3)
    made = passes.reference(network, torch.zeros_like(images[:1]))
    network.forward_passes = 0
    found = engine.deeplift(network, images, target, baseline=made)
    assert network.forward_passes == 2
    assert torch.equal(found.map, run("deeplift", built["squeezenet1_1"], x)[0].map)
    both = engine.shared(network, images, target, {"deeplift": {"baseline": made}})
    assert_close(both["deeplift"].map, found.map)


def test_shared_unknown_method(x, built):
    network = Network(built["resnet18"])
    with pytest.raises(ValueError, match="methods: 'occlusion' shares no passes, expected some of saliency"):
        engine.shared(network, *network.inputs(x, 3), {"occlusion": {}})


# --------------------------------------------------------------------------------------------- float32 and float64


def shaky(x):
    """In float32 the first difference loses the last digits of a, so the sum misses by a few per cent."""
    a = x.flatten(1).sum(1)
    return (F.relu(a + 1e6) - 1e6) * (1 + torch.sigmoid(a))


def test_float64_where_float32_is_not_enough():
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e-2
    found, network = run("deeplift", Calls(shaky), x, 0)
    assert "in float32, so the map was computed in float64" in network.notes[0]
    assert found.gap < 1e-6 and found.map.dtype == torch.float32
    assert (network.forward_passes, network.backward_passes) == (4, 2)
    double = Calls(shaky)
    double.register_buffer("one", torch.ones((), dtype=torch.float64))
    expected, network = run("deeplift", double, x, 0)
    assert network.notes == []
    assert_close(found.map.double(), expected.map, rtol=1e-6, atol=0)


def test_model_that_does_not_run_in_float64():
    f = lambda x: shaky(x) + 0 * F.linear(x.flatten(1), torch.ones(1, 16))[:, 0]  # noqa: E731
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e-2
    with pytest.raises(Refused, match=r"deeplift: the sum misses by .* in float32; in float64: x: the model does not"):
        run("deeplift", Calls(f), x, 0)


# ------------------------------------------------------------------------------------- the user's model, and errors


class Interrupting(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.broken, self.head = nn.Conv2d(3, 4, 3), None, nn.Linear(4, 10)

    def forward(self, x):
        a = F.relu(self.body(x), inplace=True)
        if self.broken:
            raise self.broken
        return self.head(a.mean((2, 3)))


def snapshot(model):
    return {
        "state": copy.deepcopy(model.state_dict()),
        "attributes": {n: {k: v for k, v in vars(m).items() if k[0] != "_"} for n, m in model.named_modules()},
        "parameters": [(id(p), p.requires_grad, p.grad, p._version) for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "forward": ["forward" in vars(m) for m in model.modules()],
    }


def same(one, other):
    for key in one["state"]:
        assert torch.equal(one["state"][key], other["state"][key])
    assert all(one[k] == other[k] for k in one if k != "state")


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121"])
def test_the_model_is_not_changed(built, x, name):
    before = snapshot(built[name])
    run("shared", built[name], x[:1], methods={m: {} for m in engine.SHARED})
    same(before, snapshot(built[name]))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of paper"), Refused("no")])
@pytest.mark.parametrize("method", sorted(engine.SHARED))
def test_nothing_stays_behind_an_error(method, error, x):
    model = Interrupting().eval()
    network = Network(model)
    images, target = network.inputs(x, 3)
    expected = getattr(engine, method)(network, images, target)
    model.broken = error
    network.module.broken = error
    before = snapshot(model)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        getattr(engine, method)(network, images, target)
    same(before, snapshot(model))
    assert not any("forward" in vars(m) for m in network.module.modules())
    network.module.broken = None
    assert_close(getattr(engine, method)(network, images, target).map, expected.map)


def net_with(layer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()


class Attention(nn.Module):
    def forward(self, x):
        return x * F.softmax(x.flatten(2), 2).view_as(x)


class Custom(nn.Module):
    """A layer of the user's own, in torch calls that have rules."""

    def forward(self, x):
        y = x[:, ::2] * torch.sigmoid(x[:, 1::2])
        return torch.cat([y, y.clamp(-1, 1)], 1)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(abs(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].sign()


class Hidden(nn.Module):
    def forward(self, x):
        return Own.apply(x)


@pytest.mark.parametrize("method", ["guided_backprop", "deeplift", "guided_grad_cam", "deep_shap"])
def test_layer_without_a_rule_is_refused_by_name(method, x):
    with pytest.raises(Refused, match="no rule for 'softmax'"):
        run(method, net_with(Attention()), x)
    with pytest.raises(Refused, match="no rule for 'layer_norm'"):
        run(method, net_with(nn.LayerNorm((62, 78))), x)
    with pytest.raises(Refused, match="no rule for"):
        run(method, net_with(Hidden()), x)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_layer_is_caught(x):
    """No torch call of it is seen: the guided rule refuses it by name, DeepLIFT by its sum."""
    net = net_with(torch.jit.script(nn.Sequential(nn.Tanh(), nn.Hardtanh(-0.1, 0.1))))
    with pytest.raises(Refused, match="scripted module '1'"):
        run("guided_backprop", net, x)
    with pytest.raises(Refused, match="deeplift: the attributions miss the difference of the outputs"):
        run("deeplift", net, x)
    run("saliency", net, x)


def test_own_layer_with_rules_works(x):
    found, _ = run("deeplift", net_with(Custom()), x)
    assert found.gap < 1e-4
    run("guided_grad_cam", net_with(Custom()), x)


def test_unknown_layer_lists_those_there_are(built, x):
    with pytest.raises(
        ValueError, match=r"layer: 'layer9' is not in the model, which has conv1, bn1, layer1, layer1\.0"
    ):
        run("grad_cam", built["resnet18"], x, layer="layer9")


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("fc", r"'fc' gave 1 outputs \(\(2, 10\)\), expected one of shape \(N, K, h, w\)"),
        ("layer1.0.relu", r"'layer1\.0\.relu' gave 2 outputs"),
    ],
)
def test_layer_that_gives_no_map(built, x, layer, message):
    for method in ("grad_cam", "layer_cam", "guided_grad_cam"):
        with pytest.raises(ValueError, match=message):
            run(method, built["resnet18"], x, layer=layer)


def test_no_default_layer():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(ValueError, match="no layer gives a map"):
        run("grad_cam", net, torch.zeros(1, 3, 2, 2), 0)


def test_wrong_options(built, x):
    net = built["resnet18"]
    with pytest.raises(ValueError, match="layer: expected one layer, or several without signed"):
        run("layer_cam", net, x, layer=["layer1", "layer2"], signed=True)
    with pytest.raises(ValueError, match="layer: expected one layer"):
        run("layer_cam", net, x, layer=[])
    with pytest.raises(ValueError, match="resize: 'cubic' is unknown, expected one of bilinear, nearest"):
        run("grad_cam", net, x, resize="cubic")
    with pytest.raises(ValueError, match=r"baseline: shape \(3, 4, 4\) does not fit"):
        run("deeplift", net, x, baseline=torch.zeros(3, 4, 4))
    for wrong in (torch.zeros(2, 3, 4, 4), torch.zeros(3, 64, 80), 0.0, torch.zeros(0, 3, 64, 80)):
        with pytest.raises(ValueError, match=r"baselines: expected images \(B, 3, 64, 80\)"):
            run("deep_shap", net, x, baselines=wrong)


def test_deep_shap_without_baselines_is_deeplift(built, x):
    found, network = run("deep_shap", built["squeezenet1_1"], x)
    assert_close(found.map, run("deeplift", built["squeezenet1_1"], x)[0].map)
    assert "so this is DeepLIFT" in network.notes[0]


def test_model_that_does_not_depend_on_the_image(x):
    for method in ("saliency", "deeplift", "guided_backprop"):
        with pytest.raises(Refused, match="does not depend on the image"):
            run(method, Calls(lambda x: torch.ones(len(x), 10)), x)
