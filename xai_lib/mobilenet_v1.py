"""MobileNetV1, which torchvision does not have.

Usage::

    model = models.build("mobilenet_v1", weights="mobilenet_v1.pth", padding="tensorflow")

A 3x3 convolution, then thirteen blocks. A block splits an ordinary convolution in two: a *depthwise* one filters each
channel by itself, a *pointwise* 1x1 one mixes the channels. At 224 x 224 this takes 569 million multiplications and
4.2 million weights.

Reference: Howard et al. 2017, "MobileNets", arXiv:1704.04861, section 3.1 and Table 1.
"""

from collections import OrderedDict

from torch import Tensor, nn

BLOCKS = (  # channels after the block, stride of its depthwise convolution
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6; the random start keeps the variance (He et al. 2015)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight)  # torch's default fades to 1e-12 over 27 layers
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU6()))


class DepthwiseSeparable(nn.Module):
    """One block: 3x3 filter per channel, then a 1x1 convolution over the channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = _conv(inputs, inputs, 3, stride, groups=inputs)
        self.pointwise = _conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))."""
        return self.pointwise(self.depthwise(x))


class MobileNetV1(nn.Module):
    """MobileNet 1.0: (N, 3, H, W), normalised as for torchvision's networks -> logits (N, classes)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, 32, 3, stride=2)]
        channels = 32
        for outputs, stride in BLOCKS:
            layers.append(DepthwiseSeparable(channels, outputs, stride))
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes)."""
        return self.classifier(self.features(x).mean((2, 3)))


def mobilenet_v1(weights: object = None) -> MobileNetV1:
    """The network for 1000 classes with random weights.

    Raises:
        ValueError: weights are asked for: torchvision has none to download.
    """
    if weights is not None:
        raise ValueError("weights: torchvision has none for mobilenet_v1; give the path of a .pth file or None")
    return MobileNetV1()
