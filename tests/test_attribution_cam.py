import copy

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from xai_lib import models
from xai_lib.attribution import cam
from xai_lib.attribution.core import Network
from xai_lib.attribution.passes import gradients
from xai_lib.models import Classifier

NETWORKS = ("resnet10", "squeezenet1_1", "mobilenet_v2", "densenet121")


@pytest.fixture(scope="module")
def built():
    """Each network once, random weights; batch-norm statistics that are not those of a fresh layer."""
    made = {}
    with torch.random.fork_rng():
        for name in NETWORKS:
            torch.manual_seed(1)
            net = models.build(name)
            for module in net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.1)
                    module.bias.data.normal_(0, 0.1)
            made[name] = net
    return made


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 1, 80, 80, generator=torch.Generator().manual_seed(0))


def by_hand(*layers, weight, bias=0.0):
    """A classifier without normalisation, of these layers and this head."""
    net = Classifier(nn.Sequential(*layers), len(weight), {"in_channels": 3, "outputs": 1, "drs": False}).eval()
    net.normalize.mean.zero_()
    net.normalize.std.fill_(1)
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([weight]))
        net.head.bias.fill_(bias)
    return net


def activation_and_gradient(net, x, layer):
    at = gradients(Network(net), x, torch.zeros(len(x), dtype=torch.long), layers=[layer]).layers[layer]
    return at.value, at.gradient


# ---------------------------------------------------------------------------------------------------- CAM


def test_map_of_two_channels_by_hand():
    net = by_hand(nn.Conv2d(3, 2, 1, bias=False), weight=[2.0, -1.0], bias=0.5)
    with torch.no_grad():
        net.features[0].weight.zero_()
        net.features[0].weight[0, 0] = net.features[0].weight[1, 1] = 1  # channel k of the features is channel k of x
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    x[0, 1] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    logits, maps = cam.class_activation_map(net, x)
    assert maps.tolist() == [[[2.0, -1.0], [0.0, 0.0]]]
    assert logits.tolist() == [1 / 4 + 0.5]
    assert cam.identity_gap(net, logits, maps) == 0
    assert cam.identity_gap(net, logits + 3, maps) == pytest.approx(3 / 3.75)
    assert cam.identity_gap(net, logits - 1, maps) == pytest.approx(1)  # small logits: the absolute gap


@pytest.mark.parametrize("name", NETWORKS)
def test_mean_of_the_map_is_the_logit(built, x, name):
    logits, maps = cam.class_activation_map(built[name], x)
    assert_close(logits, built[name](x)[:, 0].detach(), atol=1e-5, rtol=1e-5)
    assert_close(maps.mean((1, 2)) + built[name].head.bias.detach(), logits, atol=1e-5, rtol=1e-5)
    assert cam.identity_gap(built[name], logits, maps) <= 1e-5
    assert maps.std() > 0 and not maps.requires_grad


def test_identity_of_a_network_with_representation_scaling(x):
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = models.add_representation_scaling(models.build("squeezenet1_1"))
        for module in net.modules():
            if isinstance(module, models.ChannelScale):
                module.gamma.uniform_(0.5, 1.5)
                module.beta.uniform_(-0.2, 0.2)
    logits, maps = cam.class_activation_map(net, x)
    assert_close(logits, net(x)[:, 0].detach())
    assert cam.identity_gap(net, logits, maps) <= 1e-5


# ------------------------------------------------------------------------------------ Grad-CAM and LayerCAM


@pytest.mark.parametrize("name", NETWORKS)
def test_methods_meet_at_the_last_layer(built, x, name):
    _, maps = cam.class_activation_map(built[name], x)
    cells = maps.shape[1] * maps.shape[2]
    for method in (cam.grad_cam, cam.layer_cam):
        assert_close(method(built[name], x), maps / cells, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet10", "features"),
        ("resnet10", "features.layer3"),
        ("resnet10", "features.bn1"),  # an in-place ReLU follows
        ("resnet10", "features.layer4.0.bn1"),
        ("squeezenet1_1", "features.7"),
        ("squeezenet1_1", "features.12.expand3x3"),
        ("mobilenet_v2", "features.13"),
        ("densenet121", "features"),
        ("densenet121", "features.0"),  # norm5: the classifier's ReLU follows
        ("densenet121", "features.0.denseblock4.denselayer2.norm2"),
        ("densenet121", "features.0.transition3.norm"),
    ],
)
def test_grad_cam_is_captums(built, x, name, layer):
    net = built[name]
    ours = cam.grad_cam(net, x, layer)
    modules = dict(net.named_modules())
    theirs = LayerGradCam(lambda images: net(images)[:, 0], modules[layer]).attribute(x, relu_attributions=False)
    assert_close(ours, theirs[:, 0].detach(), atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet10", "features.bn1"), ("resnet10", "features.layer4.0.bn1"), ("densenet121", "features.0.norm0")],
)
def test_activation_is_the_one_before_an_in_place_relu(built, x, name, layer):
    activation, gradient = activation_and_gradient(built[name], x, layer)
    assert activation.min() < 0 and activation.shape == gradient.shape
    seen = {}
    module = dict(built[name].named_modules())[layer]
    handle = module.register_forward_hook(lambda _m, _i, out: seen.update(out=out.clone()))
    with torch.no_grad():
        built[name](x)
    handle.remove()
    assert_close(activation, seen["out"])
    assert not gradient[activation < 0].any()  # the ReLU stops the gradient there


def test_gradient_against_finite_differences():
    torch.manual_seed(0)
    net = by_hand(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 2, 3), nn.Tanh(), weight=[1.0, -2.0]).double()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    activation, gradient = activation_and_gradient(net, x, "features.1")

    def rest(a):
        return net.head(net.features[2:](a).mean((2, 3))).item()

    for place in ((0, 0, 0, 0), (0, 3, 2, 4), (0, 1, 5, 5)):
        step = torch.zeros_like(activation)
        step[place] = 1e-4
        slope = (rest(activation + step) - rest(activation - step)) / 2e-4
        assert gradient[place].item() == pytest.approx(slope, rel=1e-5)


def test_layer_cam_by_hand():
    """Two channels, a pooling between them and the end: LayerCAM's positive part is sum_k relu(g_k) A_k."""
    net = by_hand(nn.Identity(), nn.ReLU(), nn.AvgPool2d((1, 2)), nn.Tanh(), weight=[3.0, -1.0, 0.0])
    x = torch.zeros(1, 3, 1, 4)
    x[0, 0, 0] = torch.tensor([1.0, 0.0, 2.0, 0.5])
    x[0, 1, 0] = torch.tensor([0.0, 1.0, 0.0, 3.0])
    activation, gradient = activation_and_gradient(net, x, "features.1")
    assert_close(activation, x)
    pooled = torch.tensor([[0.5, 1.25], [0.5, 1.5]])  # (channel, cell)
    slope = (1 - pooled.tanh() ** 2) * torch.tensor([[3.0], [-1.0]]) / 4  # 2 cells, each the mean of 2 pixels
    expected = slope.repeat_interleave(2, 1)
    assert_close(gradient[0, :2, 0], expected)
    positive, negative = (F.relu(sign * gradient) * activation for sign in (1, -1))
    assert_close(cam.layer_cam(net, x, "features.1"), (positive - negative).sum(1))
    assert_close(positive.sum(1)[0, 0], expected[0] * x[0, 0, 0])
    assert_close(negative.sum(1)[0, 0], -expected[1] * x[0, 1, 0])
    weights = expected.mean(1, keepdim=True)
    assert_close(cam.grad_cam(net, x, "features.1")[0, 0], (weights * x[0, :2, 0]).sum(0))


def test_layer_cam_differs_from_grad_cam_at_an_earlier_layer(built, x):
    one, other = (f(built["resnet10"], x, "features.layer3") for f in (cam.layer_cam, cam.grad_cam))
    assert one.shape == other.shape == (2, 5, 5)
    assert not torch.allclose(one / one.abs().max(), other / other.abs().max(), atol=0.05)


def test_hooks_and_gradients_are_gone_afterwards(built, x):
    net = built["resnet10"]
    state = copy.deepcopy(net.state_dict())
    cam.grad_cam(net, x, "features.layer3")
    with pytest.raises(ValueError):
        cam.grad_cam(net, x, "features.layer4.0.relu")
    assert not any(module._forward_hooks for module in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_works_on_a_frozen_network_without_gradients_on(built, x):
    net = models.freeze_backbone(copy.deepcopy(built["resnet10"]))
    with torch.no_grad():
        assert_close(cam.layer_cam(net, x, "features.layer3"), cam.layer_cam(built["resnet10"], x, "features.layer3"))


# ------------------------------------------------------------------------------------ CAMERAS and resizing


@pytest.mark.parametrize("name", ["resnet10", "squeezenet1_1"])
def test_cameras_is_the_papers_definition_up_to_a_factor(built, x, name):
    """Jalwana 2021: sum over channels of scale-averaged activation times scale-averaged gradient, without the ReLU."""
    sizes = (64, 96, 160)
    activations, gradients = [], []
    for size in sizes:
        scaled = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        a, g = activation_and_gradient(built[name], scaled, "features")
        for kept, values in ((activations, a), (gradients, g)):
            kept.append(F.interpolate(values, size=x.shape[2:], mode="bilinear", align_corners=False))
    direct = (torch.stack(activations).mean(0) * torch.stack(gradients).mean(0)).sum(1)
    ours = cam.cameras(built[name], x, sizes)
    factor = (direct * ours).sum() / ours.square().sum()
    assert factor > 0 and ours.shape == (2, 80, 80)
    assert_close(factor * ours, direct, atol=1e-5 * float(direct.abs().max()), rtol=1e-4)


def test_resize_keeps_the_mean_at_an_integer_factor():
    maps = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(cam.resize_map(maps, (224, 224)).mean((1, 2)), maps.mean((1, 2)), atol=1e-12, rtol=0)
    assert_close(cam.resize_map(maps, (14, 49)).mean((1, 2)), maps.mean((1, 2)), atol=1e-12, rtol=0)
    odd = cam.resize_map(maps, (500, 333)).mean((1, 2)) - maps.mean((1, 2))
    assert 0 < odd.abs().max() < 0.01


def test_resize_by_hand():
    resized = cam.resize_map(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    assert_close(resized, torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))  # cell centres at 0.5 and 2.5, flat outside


# --------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("where", ["features.layer4.0.conv1.weight", "head.weight", "head.bias"])
def test_nan_weights(built, x, where):
    net = copy.deepcopy(built["resnet10"])
    with torch.no_grad():
        net.get_parameter(where).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="NaN in the weights"):
        cam.class_activation_map(net, x)


def test_nan_image(built, x):
    with pytest.raises(ValueError, match="NaN in the weights or the image"):
        cam.class_activation_map(built["resnet10"], x * torch.nan)


@pytest.mark.parametrize("method", [cam.class_activation_map, cam.grad_cam, cam.layer_cam, cam.cameras])
def test_train_mode_and_several_outputs(built, x, method):
    with pytest.raises(ValueError, match="train mode"):
        method(copy.deepcopy(built["resnet10"]).train(), x)
    net = copy.deepcopy(built["resnet10"])
    net.head = nn.Linear(512, 2)
    with pytest.raises(ValueError, match="one output expected, it has 2"):
        method(net, x)


@pytest.mark.parametrize("layer", ["layer4", "", "features.layer9"])
def test_unknown_layer_lists_those_there_are(built, x, layer):
    with pytest.raises(ValueError, match=r"is not in the model, which has features, .*features\.layer4"):
        cam.layer_cam(built["resnet10"], x, layer)


def test_layer_that_has_no_map(built, x):
    with pytest.raises(ValueError, match=r"layer: 'head' gave 1 outputs \(\(2, 1\)\), expected one of shape"):
        cam.grad_cam(built["resnet10"], x, "head")
    with pytest.raises(ValueError, match=r"'features\.layer4\.0\.relu' gave 2 outputs"):
        cam.grad_cam(built["resnet10"], x, "features.layer4.0.relu")


def test_layer_that_is_not_used():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.used(x)

    net = by_hand(Idle(), weight=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"'features\.0\.idle' gave 0 outputs"):
        cam.grad_cam(net, torch.zeros(1, 3, 4, 4), "features.0.idle")


def test_layer_whose_output_is_dropped():
    class Side(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.side = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            self.side(x)
            return self.used(x)

    net = by_hand(Side(), weight=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"does not depend on 'features\.0\.side'"):
        cam.grad_cam(net, torch.zeros(1, 3, 4, 4), "features.0.side")
