"""The papers' networks behind one `build`, and deep representation scaling (DRS).

Usage::

    model = build("mobilenet_v2", weights="imagenet")     # grey image (N, 1, H, W) -> logits (N, 1)
    add_representation_scaling(model)                     # freeze the backbone, train scales and head only

Every network is a `Classifier`: features, global average pooling, one linear layer. That is the form that class
activation mapping needs (Zhou et al. 2016), and it makes all backbones look alike from outside.

References: Byra 2021, Biomed. Signal Process. Control 69:102828 (DRS); Byra et al. 2022, "Deep learning methods".
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models as tv
from torchvision.models import densenet, efficientnet, mobilenetv2, resnet, squeezenet

from xai_lib.mobilenet_v1 import DepthwiseSeparable, mobilenet_v1

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCALED_BLOCKS = (
    resnet.BasicBlock,
    resnet.Bottleneck,
    DepthwiseSeparable,
    mobilenetv2.InvertedResidual,
    efficientnet.MBConv,
    squeezenet.Fire,
    densenet._DenseBlock,
    densenet._Transition,
)


class Normalize(nn.Module):
    """Grey (N, 1, H, W) or colour (N, 3, H, W) image in [0, 1] -> (N, 3, H, W) with ImageNet's mean and deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Repeat a grey channel three times, then normalise."""
        return (x - self.mean) / self.std  # broadcasting repeats a single channel


class Classifier(nn.Module):
    """Image -> `features` -> global average pooling -> `head` (linear) -> logits (N, outputs).

    `spec` holds the arguments that build the same architecture again; a checkpoint stores it.
    """

    def __init__(self, features: nn.Module, channels: int, spec: dict[str, Any]) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.features = features
        self.head = nn.Linear(channels, spec["outputs"])
        self.spec = dict(spec)
        self.frozen = False  # True: the backbone stays in eval mode, so that its statistics cannot move

    def feature_maps(self, x: Tensor) -> Tensor:
        """Activations before pooling: (N, 1 or 3, H, W) -> (N, K, h, w)."""
        expected = self.spec["in_channels"]
        if x.ndim != 4 or x.shape[1] != expected:
            raise ValueError(f"x: expected shape (N, {expected}, H, W), got {tuple(x.shape)}")
        return self.features(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, outputs)."""
        return self.head(self.feature_maps(x).mean((2, 3)))

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode; a frozen backbone keeps its batch-norm statistics and switches dropout off."""
        super().train(mode)
        if self.frozen:
            self.features.eval()
        return self


def _resnet10(weights: object = None) -> nn.Module:
    """ResNet with one basic block per stage: the smallest of the family, 4.9 M parameters."""
    if weights is not None:
        raise ValueError("weights: there are no ImageNet weights for resnet10, use resnet18 or weights=None")
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])


def _stages(net: resnet.ResNet) -> nn.Module:
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(OrderedDict((n, getattr(net, n)) for n in names))


def _features_then_relu(net: nn.Module) -> nn.Module:
    return nn.Sequential(_features(net), nn.ReLU())  # DenseNet applies this ReLU in its forward


def _features(net: nn.Module) -> nn.Module:
    return net.features  # type: ignore[return-value]


ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module], int]] = {
    "resnet10": (_resnet10, _stages, 512),
    "resnet18": (tv.resnet18, _stages, 512),
    "resnet50": (tv.resnet50, _stages, 2048),
    "resnet101": (tv.resnet101, _stages, 2048),
    "mobilenet_v1": (mobilenet_v1, _features, 1024),
    "mobilenet_v2": (tv.mobilenet_v2, _features, 1280),
    "efficientnet_b0": (tv.efficientnet_b0, _features, 1280),
    "densenet121": (tv.densenet121, _features_then_relu, 1024),
    "squeezenet1_1": (tv.squeezenet1_1, _features, 512),
    "vgg16": (tv.vgg16, _features, 512),
}


def build(
    name: str,
    in_channels: int = 1,
    outputs: int = 1,
    weights: str | Path | None = None,
    padding: str = "torchvision",
    generator: torch.Generator | None = None,
) -> Classifier:
    """Build a classifier: backbone `name`, global average pooling, a new linear head.

    Args:
        name: a key of `ARCHITECTURES` (torchvision's names, resnet10 and mobilenet_v1).
        in_channels: 1 (grey, repeated three times inside) or 3.
        outputs: number of logits; 1 for a sigmoid.
        weights: None (random), "imagenet" (torchvision's loader), or a ``.pth`` file with torchvision's keys
            (`MobileNetV1`'s for mobilenet_v1). A checkpoint of this project knows its architecture itself:
            `checkpoints.load`.
        padding: "torchvision", or "tensorflow": stride-2 convolutions pad right and bottom only, as TensorFlow does.
            Weights trained there need it: with torchvision's padding their maps are displaced by up to 31 pixels.
        generator: source of the head's random numbers. A random backbone is drawn from torch's global generator.

    Raises:
        ValueError: an unknown name or padding, a wrong number of channels or outputs, weights that do not fit or are
            not finite.
        FileNotFoundError: `weights` is a path to no file.
        ConnectionError: "imagenet" was asked for and cannot be downloaded.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"name: {name!r} is unknown, expected one of {', '.join(ARCHITECTURES)}")
    if in_channels not in (1, 3):
        raise ValueError(f"in_channels: {in_channels!r} is not 1 or 3")
    if not isinstance(outputs, int) or outputs < 1:
        raise ValueError(f"outputs: {outputs!r} is not an integer of at least 1")
    if padding not in ("torchvision", "tensorflow"):
        raise ValueError(f"padding: {padding!r} is not 'torchvision' or 'tensorflow'")
    if str(weights).endswith((".safetensors", ".safetensors.gz")):
        raise ValueError(f"weights: {weights} is a checkpoint; checkpoints.load builds its network and loads it")
    make, cut, channels = ARCHITECTURES[name]
    net = _whole_net(name, make, weights)
    features = cut(net)
    if padding == "tensorflow":
        use_tensorflow_padding(features)
    spec = {"architecture": name, "in_channels": in_channels, "outputs": outputs, "padding": padding, "drs": False}
    model = Classifier(features, channels, spec)
    if generator is not None:
        reset_head(model, generator)
    return model.eval()


def _whole_net(name: str, make: Callable[..., nn.Module], weights: str | Path | None) -> nn.Module:
    """The network with its own classifier and the wanted weights."""
    if weights is None:
        return make(weights=None)
    if weights == "imagenet":
        try:
            return make(weights="IMAGENET1K_V1")
        except OSError as error:  # URLError is one
            raise ConnectionError(
                f"weights: ImageNet weights of {name} cannot be downloaded ({error}); use weights=None, a local file, "
                "or put torchvision's file into torch.hub's cache"
            ) from error
    path = Path(weights)
    if not path.is_file():
        raise FileNotFoundError(f"weights: {path} is no file; expected None, 'imagenet' or a .pth file")
    net = make(weights=None)
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds here, with one line for every weight that does not fit
        raise ValueError(f"weights: {path} does not hold the weights of {name} ({shorten(str(error), 300)})") from error
    bad = [n for n, t in net.state_dict().items() if not torch.isfinite(t).all()]
    if bad:
        raise ValueError(f"weights: {path} holds NaN or infinite values, the first in {bad[0]!r}")
    return net


def reset_head(model: Classifier, generator: torch.Generator) -> None:
    """Draw the head anew: weights uniform in +-1/sqrt(K), bias 0."""
    bound = model.head.in_features**-0.5
    with torch.no_grad():
        model.head.weight.uniform_(-bound, bound, generator=generator)
        model.head.bias.zero_()


class TensorFlowConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: what is missing is added on the right and bottom first."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D, ceil(H / stride), ceil(W / stride))."""
        (kh, kw), (sh, sw), (h, w) = self.kernel_size, self.stride, x.shape[-2:]
        rows = max((-(-h // sh) - 1) * sh + kh - h, 0)
        cols = max((-(-w // sw) - 1) * sw + kw - w, 0)
        x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def use_tensorflow_padding(module: nn.Module) -> None:
    """Turn every strided convolution of `module` into a `TensorFlowConv2d`, in place; keys and weights stay."""
    for child in module.modules():
        if type(child) is nn.Conv2d and max(child.stride) > 1 and max(child.kernel_size) > 1:
            child.__class__ = TensorFlowConv2d


class ChannelScale(nn.Module):
    """DRS layer: ``y_c = gamma_c * x_c + beta_c`` per channel, starting as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x * self.gamma[:, None, None] + self.beta[:, None, None]


def add_representation_scaling(model: Classifier) -> Classifier:
    """Deep representation scaling (Byra 2021), in place: a `ChannelScale` after every block, everything else frozen.

    The backbone's weights *and* batch-norm statistics stay as they are; only scales, offsets and head train.
    At the start the network equals the one without the new layers.

    Raises:
        ValueError: the model already has these layers.
    """
    if model.spec["drs"]:
        raise ValueError("model: it already has representation scaling")
    was_training = model.training
    channels: dict[nn.Module, int] = {}

    def note(block: nn.Module, _: object, out: Tensor) -> None:
        channels[block] = out.shape[1]

    blocks = [m for m in model.features.modules() if isinstance(m, SCALED_BLOCKS)]
    handles = [m.register_forward_hook(note) for m in blocks]
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, model.spec["in_channels"], 64, 64, device=model.head.weight.device))
    finally:
        for handle in handles:
            handle.remove()
    freeze_backbone(model)
    for parent in list(model.features.modules()):
        for name, child in list(parent.named_children()):
            if child in channels:
                setattr(parent, name, nn.Sequential(child, ChannelScale(channels[child]).to(model.head.weight.device)))
    model.spec["drs"] = True
    return model.train(was_training)


def freeze_backbone(model: Classifier) -> Classifier:
    """Freeze all of `model.features`, weights and batch-norm statistics, in place; the head still trains."""
    model.features.requires_grad_(False)
    model.frozen = True
    return model.train(model.training)
