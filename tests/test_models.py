"""Backbones behind one `build`, TensorFlow's padding by hand, and deep representation scaling."""

import copy
import pickle
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models as tv
from torchvision.transforms.functional import normalize

from xai_lib import config, models

BLOCKS = {
    "resnet10": 4,
    "resnet18": 8,
    "resnet50": 16,
    "mobilenet_v1": 13,
    "mobilenet_v2": 17,
    "efficientnet_b0": 16,
    "squeezenet1_1": 8,
    "densenet121": 7,  # four dense blocks, three transitions
}


def images(n=2, channels=1, size=64, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def seeded(name="squeezenet1_1", seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, **options)


# by hand


def test_channel_scale_by_hand():
    scale = models.ChannelScale(2)
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])  # (1, 2, 1, 2)
    assert torch.equal(scale(x), x)
    with torch.no_grad():
        scale.gamma.copy_(torch.tensor([2.0, -1.0]))
        scale.beta.copy_(torch.tensor([0.5, 1.0]))
    assert scale(x).tolist() == [[[[2.5, 4.5]], [[-2.0, -3.0]]]]


def ones_convolution(size, kernel=3, stride=2):
    """Sums of a kernel of ones over 0, 1, 2, ... in reading order, with TensorFlow's and with torch's padding."""
    rows, cols = size
    conv = nn.Conv2d(1, 1, kernel, stride, kernel // 2, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.arange(float(rows * cols)).view(1, 1, rows, cols)
    plain = conv(x)[0, 0].tolist()
    models.use_tensorflow_padding(conv)
    return conv(x)[0, 0].tolist(), plain


def test_tensorflow_padding_of_an_even_size():
    # 0..15 in a 4 x 4 grid: one row below and one column on the right are missing, none above or on the left
    same, plain = ones_convolution((4, 4))
    assert same == [[45, 39], [66, 50]]  # 45 = 0+1+2+4+5+6+8+9+10
    assert plain == [[10, 24], [51, 90]]  # 10 = 0+1+4+5: torch pads above and left


def test_tensorflow_padding_of_an_odd_size():
    # 0..24 in a 5 x 5 grid: one row and column are missing on each side, as in torch
    same, plain = ones_convolution((5, 5))
    assert same == [[12, 27, 24], [63, 108, 81], [72, 117, 84]]
    assert same == plain


def test_tensorflow_padding_treats_rows_and_columns_apart():
    # 4 rows (pad below only), 5 columns (pad both sides): 0..4 / 5..9 / 10..14 / 15..19
    assert ones_convolution((4, 5))[0] == [[33, 63, 51], [52, 87, 64]]  # 33 = 0+1+5+6+10+11


def test_tensorflow_padding_of_a_wider_kernel():
    # 6 wide, kernel 5, stride 2: three are missing, one before and two after
    same, _ = ones_convolution((6, 6), kernel=5)
    grid = F.pad(torch.arange(36.0).view(6, 6), (1, 2, 1, 2))
    assert same == [[float(grid[r : r + 5, c : c + 5].sum()) for c in (0, 2, 4)] for r in (0, 2, 4)]


def test_tensorflow_padding_leaves_other_convolutions_and_keys():
    net = nn.Sequential(nn.Conv2d(1, 1, 3, 1, 1), nn.Conv2d(1, 1, 1, 2), nn.Conv2d(1, 1, 3, 2, 1))
    keys = list(net.state_dict())
    models.use_tensorflow_padding(net)
    assert [type(m) for m in net] == [nn.Conv2d, nn.Conv2d, models.TensorFlowConv2d]
    assert list(net.state_dict()) == keys


def test_build_with_tensorflow_padding():
    plain, same = (seeded("mobilenet_v2", padding=p) for p in ("torchvision", "tensorflow"))
    assert sum(isinstance(m, models.TensorFlowConv2d) for m in same.modules()) == 5  # 224 -> 7
    assert same.spec["padding"] == "tensorflow"
    same.load_state_dict(plain.state_dict())
    a, b = plain.feature_maps(images()).detach(), same.feature_maps(images()).detach()
    assert a.shape == b.shape == (2, 1280, 2, 2)
    assert float((a - b).abs().max()) > 0.1 * float(a.max())


# against torchvision


def test_normalize():
    x = images(channels=3)
    expected = normalize(x, list(models.IMAGENET_MEAN), list(models.IMAGENET_STD))
    assert torch.allclose(models.Normalize()(x), expected)
    grey = models.Normalize()(torch.full((1, 1, 1, 1), 0.485))
    assert grey.flatten().tolist() == pytest.approx([0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier"),
        ("efficientnet_b0", "classifier"),
        ("densenet121", "classifier"),
    ],
)
def test_build_is_torchvisions_network_with_another_head(name, last, tmp_path):
    torch.manual_seed(0)
    net = getattr(tv, name)(weights=None).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = models.build(name, in_channels=3, outputs=4, weights=tmp_path / "net.pth")
    setattr(net, last, model.head)
    x = images(channels=3)
    with torch.no_grad():
        expected = net(normalize(x, list(models.IMAGENET_MEAN), list(models.IMAGENET_STD)))
        assert model(x).shape == (2, 4)
        assert torch.allclose(model(x), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_grey_is_colour_repeated():
    grey, colour = models.build("squeezenet1_1"), models.build("squeezenet1_1", in_channels=3)
    colour.load_state_dict(grey.state_dict())
    x = images()
    assert torch.equal(grey(x), colour(x.repeat(1, 3, 1, 1)))


def test_logit_is_the_heads_answer_to_the_mean_of_the_maps():
    model, x = models.build("squeezenet1_1", outputs=2), images()
    maps = model.feature_maps(x)
    assert maps.shape == (2, 512, 3, 3)
    assert torch.allclose(model(x), maps.mean((2, 3)) @ model.head.weight.T + model.head.bias, atol=1e-6)


def test_reset_head():
    model = models.build("squeezenet1_1", generator=torch.Generator().manual_seed(3))
    first = model.head.weight.clone()
    assert model.head.bias.tolist() == [0]
    assert 0.9 * 512**-0.5 < float(first.detach().abs().max()) <= 512**-0.5
    models.reset_head(model, torch.Generator().manual_seed(4))
    assert not torch.equal(model.head.weight, first)
    models.reset_head(model, torch.Generator().manual_seed(3))
    assert torch.equal(model.head.weight, first)


# deep representation scaling


@pytest.fixture(scope="module", params=BLOCKS)
def pair(request):
    """A network with lively batch-norm statistics, the same with DRS, and images."""
    plain = seeded(request.param)
    generator = torch.Generator().manual_seed(1)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.05, generator=generator)
            module.running_var.uniform_(0.2, 0.8, generator=generator)
    scaled = models.add_representation_scaling(copy.deepcopy(plain))
    return request.param, plain, scaled, images()


def scales(model):
    return [m for m in model.modules() if isinstance(m, models.ChannelScale)]


def test_scaling_starts_as_the_identity_to_the_bit(pair):
    name, plain, scaled, x = pair
    with torch.no_grad():
        maps = plain.feature_maps(x)
        assert float(maps.std()) > 0
        assert torch.equal(scaled.feature_maps(x), maps)
        assert torch.equal(scaled(x), plain(x))
    assert len(scales(scaled)) == BLOCKS[name] and not scales(plain)
    assert (plain.spec["drs"], scaled.spec["drs"]) == (False, True)
    assert not scaled.training


def test_only_scales_offsets_and_head_train(pair):
    _, _, scaled, _ = pair
    trained = {n for n, p in scaled.named_parameters() if p.requires_grad}
    wanted = {n for n, _ in scaled.named_parameters() if n.endswith((".gamma", ".beta")) or n.startswith("head.")}
    assert trained == wanted and len(trained) == 2 * len(scales(scaled)) + 2


def test_a_training_step_leaves_backbone_and_statistics(pair):
    _, _, scaled, x = pair
    model = copy.deepcopy(scaled).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    first = model(x)
    assert torch.equal(first, model(x))  # no dropout, no batch statistics
    F.binary_cross_entropy_with_logits(first[:, 0], torch.tensor([0.0, 1.0])).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    after = model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed <= set(trained)
    assert changed >= {"head.weight", "head.bias"}
    parameters = dict(model.named_parameters())
    assert all(float(parameters[n].grad.abs().sum()) > 0 for n in trained)  # every scale lies in the network's path
    assert model.train() is model and model.training and model.head.training and not model.features.training


def test_the_step_would_move_a_network_that_is_not_frozen():
    model = models.build("resnet10").train()
    before = model.features.bn1.running_mean.clone()
    model(images())
    assert not torch.equal(model.features.bn1.running_mean, before)


def test_scaling_keeps_the_mode_and_refuses_a_second_time():
    model = models.build("squeezenet1_1").train()
    models.add_representation_scaling(model)
    assert model.training and not model.features.training
    with pytest.raises(ValueError, match="model: it already has representation scaling"):
        models.add_representation_scaling(model)


def test_freeze_backbone():
    model = models.freeze_backbone(models.build("resnet10").train())
    before = {n: t.clone() for n, t in model.features.state_dict().items()}
    model(images()).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == ["head.weight", "head.bias"]
    assert all(torch.equal(t, before[n]) for n, t in model.features.state_dict().items())
    assert model.training and not model.eval().training


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "alexnet"}, r"name: 'alexnet' is unknown, expected one of resnet10, .*squeezenet1_1"),
        ({"padding": "same"}, "padding: 'same' is not 'torchvision' or 'tensorflow'"),
        ({"in_channels": 2}, "in_channels: 2 is not 1 or 3"),
        ({"outputs": 0}, "outputs: 0 is not an integer of at least 1"),
        ({"outputs": "two"}, "outputs: 'two' is not an integer of at least 1"),
        ({"name": "resnet10", "weights": "imagenet"}, "weights: there are no ImageNet weights for resnet10"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        models.build(**({"name": "squeezenet1_1"} | options))


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 3, 64, 64), (2, 2, 64, 64), (64, 64)])
def test_feature_maps_name_the_shape(shape):
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, H, W\), got \(.*64\)"):
        models.build("squeezenet1_1").feature_maps(torch.zeros(shape))


def test_weights_that_are_no_file(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"weights: {path} is no file; expected None, 'imagenet'"):
            models.build("squeezenet1_1", weights=path)


def test_imagenet_without_a_network(monkeypatch):
    def offline(weights=None):
        raise URLError("Name or service not known")

    monkeypatch.setitem(models.ARCHITECTURES, "squeezenet1_1", (offline, models._features, 512))
    with pytest.raises(ConnectionError, match=r"weights of squeezenet1_1 cannot be .*weights=None, a local file"):
        models.build("squeezenet1_1", weights="imagenet")


def test_imagenet_asks_torchvision_for_its_weights(monkeypatch):
    asked = []

    def builder(weights=None):
        asked.append(weights)
        return tv.squeezenet1_1(weights=None)

    monkeypatch.setitem(models.ARCHITECTURES, "squeezenet1_1", (builder, models._features, 512))
    models.build("squeezenet1_1", weights="imagenet")
    assert asked == ["IMAGENET1K_V1"]


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pth_of_something_else(tmp_path):
    path, trap = tmp_path / "net.pth", tmp_path / "trap"
    contents = {
        "another architecture": lambda: torch.save(tv.squeezenet1_0(weights=None).state_dict(), path),
        "not weights": lambda: torch.save([1, 2], path),
        "a text": lambda: path.write_text("no weights"),
        "empty": lambda: path.write_bytes(b""),
        "code": lambda: path.write_bytes(pickle.dumps(Harmful(str(trap)), protocol=2)),
    }
    for write in contents.values():
        write()
        with pytest.raises(ValueError, match=f"weights: {path} does not hold the weights of squeezenet1_1") as caught:
            models.build("squeezenet1_1", weights=path)
        assert len(str(caught.value)) < 500
    assert not trap.exists()


def test_pth_with_nan(tmp_path):
    state = tv.squeezenet1_1(weights=None).state_dict()
    state["features.0.bias"][3] = torch.nan
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"net\.pth holds NaN or infinite values, the first in 'features\.0\.bias'"):
        models.build("squeezenet1_1", weights=tmp_path / "net.pth")


def test_checkpoint_as_weights_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match=r"net\.safetensors is a checkpoint; checkpoints\.load"):
        models.build("squeezenet1_1", weights=tmp_path / "net.safetensors")


# real weights


@pytest.mark.realdata
@pytest.mark.skipif(config.data_dir() is None, reason="XAI_DATA_DIR is not set")
@pytest.mark.parametrize(
    ("name", "file", "padding", "shape"),
    [
        ("mobilenet_v1", "mobilenet_v1_imagenet_tf1_int8_dequantised.pth", "tensorflow", (2, 1024, 7, 7)),
        ("mobilenet_v2", "mobilenet_v2_imagenet_tf2_int8_dequantised.pth", "tensorflow", (2, 1280, 7, 7)),
        ("squeezenet1_1", "squeezenet1_1_imagenet_gluon_fp32.pth", "torchvision", (2, 512, 13, 13)),
    ],
)
def test_real_weights(name, file, padding, shape):
    path = config.data_dir().parent / "weights" / file
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    model = models.build(name, weights=path, padding=padding)
    with torch.no_grad():
        maps = model.feature_maps(images(size=224))
    assert maps.shape == shape
    assert torch.isfinite(maps).all() and float(maps.std()) > 0.01
    assert float((maps > 0).float().mean()) > 0.01
