"""MobileNetV1: the paper's table, a block by hand, the shared weights."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from skimage import data
from torch import nn
from torch.nn import functional as F
from torchvision.models import MobileNet_V2_Weights
from torchvision.transforms import functional as T

from xai_lib import config, models
from xai_lib.mobilenet_v1 import BLOCKS, DepthwiseSeparable, MobileNetV1, mobilenet_v1


def test_sizes_of_the_papers_table():
    # Howard 2017, Table 1: 112 x 112 x 32 after the first convolution, then 64 ... 1024 channels down to 7 x 7
    net, x, shapes = MobileNetV1().eval(), torch.zeros(1, 3, 224, 224), []
    with torch.no_grad():
        for layer in net.features:
            x = layer(x)
            shapes.append(tuple(x.shape[1:]))
    halves = [(32, 112), (64, 112), *[(128, 56)] * 2, *[(256, 28)] * 2, *[(512, 14)] * 6, *[(1024, 7)] * 2]
    assert shapes == [(channels, side, side) for channels, side in halves]
    assert len(BLOCKS) == 13


def test_number_of_weights_by_hand():
    # 27 * 32 + sum of 9 * in + in * out over the blocks + 1024 * 1000 + 1000, and two per batch-norm channel
    inputs = [32, *(channels for channels, _ in BLOCKS)]
    blocks = sum(9 * a + a * b for a, b in pairwise(inputs))
    norms = 2 * (32 + sum(inputs[:-1]) + sum(inputs[1:]))
    expected = 27 * 32 + blocks + norms + 1024 * 1000 + 1000
    assert sum(p.numel() for p in MobileNetV1().parameters()) == expected == 4_231_976  # the paper: 4.2 million


def test_block_by_hand():
    block = DepthwiseSeparable(2, 1, 1).eval()
    with torch.no_grad():
        block.depthwise.conv.weight.copy_(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3))
        block.pointwise.conv.weight.copy_(torch.tensor([1.0, -0.5]).view(1, 2, 1, 1))
        for norm in (block.depthwise.bn, block.pointwise.bn):
            norm.eps = 0.0
        x = torch.tensor([[0.0, 0.5], [0.5, 1.0]]).expand(1, 2, 2, 2) / 2
        # each 3 x 3 window sees all four pixels, sum 1: depthwise 1 and 10 -> 6 (ReLU6); pointwise 1 - 3 = -2 -> 0
        assert block(x).flatten().tolist() == [0, 0, 0, 0]
        block.pointwise.conv.weight[0, 1] = 0.5
        assert block(x).flatten().tolist() == [4, 4, 4, 4]


def test_channels_do_not_mix_before_the_pointwise_convolution():
    block = DepthwiseSeparable(3, 5, 2).eval()
    with torch.no_grad():
        block.depthwise.conv.weight.abs_()  # random ones: a channel that is negative everywhere would be rectified to 0
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 1] += 1
    differ = (block.depthwise(x) != block.depthwise(changed)).flatten(2).any(2)
    assert differ.tolist() == [[False, True, False]]
    filters = block.depthwise.conv.weight  # (3, 1, 3, 3)
    apart = [F.conv2d(x[:, [i]], filters[[i]], stride=2, padding=1) for i in range(3)]
    expected = F.relu6(block.depthwise.bn(torch.cat(apart, 1)))
    assert torch.allclose(block.depthwise(x), expected, atol=1e-6)
    assert block(x).shape == (1, 5, 4, 4)


def test_keys():
    keys = list(MobileNetV1().state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    parts = ["features.0", *(f"features.{i}.{part}" for i in range(1, 14) for part in ("depthwise", "pointwise"))]
    expected = [key for part in parts for key in (f"{part}.conv.weight", *(f"{part}.bn.{name}" for name in norm))]
    assert keys == [*expected, "classifier.weight", "classifier.bias"]


def test_build():
    plain = models.build("mobilenet_v1", outputs=2)
    same = models.build("mobilenet_v1", outputs=2, padding="tensorflow")
    assert sum(isinstance(m, models.TensorFlowConv2d) for m in same.modules()) == 5
    same.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = plain.feature_maps(x), same.feature_maps(x)
        assert plain(x).shape == (2, 2) and a.shape == b.shape == (2, 1024, 2, 2)
    assert 0.05 < float(a.std()) < 5  # a random network keeps its signal
    assert float((a - b).abs().max()) > 0.1 * float(a.max())
    assert sum(type(m) is nn.ReLU6 for m in plain.modules()) == 27


def test_build_keeps_the_whole_networks_weights(tmp_path):
    torch.manual_seed(0)
    net = mobilenet_v1().eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = models.build("mobilenet_v1", in_channels=3, weights=tmp_path / "net.pth")
    x = torch.rand(1, 3, 64, 64)
    normed = T.normalize(x, list(models.IMAGENET_MEAN), list(models.IMAGENET_STD))
    with torch.no_grad():
        assert torch.allclose(net.classifier(model.feature_maps(x).mean((2, 3))), net(normed), atol=1e-6)


def test_no_download():
    with pytest.raises(ValueError, match=r"weights: torchvision has none for mobilenet_v1; give the path"):
        models.build("mobilenet_v1", weights="imagenet")


@pytest.fixture(scope="module")
def weights():
    folder = config.data_dir()
    path = Path(folder or ".").parent / "weights" / "mobilenet_v1_imagenet_tf1_int8_dequantised.pth"
    if folder is None or not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("picture", "answer", "least"), [("chelsea", "Egyptian cat", 0.7), ("coffee", "espresso", 0.9)]
)
def test_real_weights_know_pictures(weights, picture, answer, least):
    net = mobilenet_v1()
    net.load_state_dict(torch.load(weights, weights_only=True))  # strict
    image = torch.from_numpy(getattr(data, picture)().copy()).permute(2, 0, 1) / 255
    image = T.center_crop(T.resize(image, 256, antialias=True), 224)
    model = models.build("mobilenet_v1", in_channels=3, weights=weights, padding="tensorflow")
    with torch.no_grad():
        score = net.classifier(model.feature_maps(image[None]).mean((2, 3))).softmax(1)[0]
    assert MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"][int(score.argmax())] == answer
    assert float(score.max()) > least
