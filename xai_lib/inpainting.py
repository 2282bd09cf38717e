"""Partial convolution, and the U-Net that fills holes with it.

Usage::

    model = PartialUNet(depth=5, base=24)
    filled = inpaint(model, image, keep)          # (N, 1, H, W); keep is 1 where the image is known, 0 in holes

Theory. A partial convolution sees only the known pixels of its window and is scaled up for those it does not see::

    x' = W^T (X * M) sum(1) / sum(M) + b   where sum(M) > 0, else 0
    m' = 1                                 where sum(M) > 0, else 0

so that a hole closes from its rim, one layer after the other. The paper prints 1 / sum(M) in the place of
sum(1) / sum(M), which makes the output as many times smaller as a window has weights: ``scale="major"``.

`keep` may lie between 0 and 1 in the first layer (sum(M) is then a sum of weights): a mask that is optimised sends its
gradient that way. What a layer passes on is hard.

References: Liu et al. 2018, "Image inpainting for irregular holes using partial convolutions", equations 1 and 2;
Major et al. 2020, section 2, "Image Inpainting with Partial Convolutions".
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALES = ("liu", "major")


class PartialConv2d(nn.Conv2d):
    """A convolution over known pixels: ``y, keep = layer(x, keep)``. Weights are those of `nn.Conv2d`.

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: side of the window.
        stride: step of the window.
        padding: zeros at the borders, which count as unknown.
        bias: whether there is one.
        scale: "liu": times sum(1) / sum(M); "major": divided by sum(M), as printed.

    Raises:
        ValueError: an unknown scale.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        scale: str = "liu",
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"scale: {scale!r} is not one of {', '.join(SCALES)}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
        self.scale = scale

    def forward(  # type: ignore[override]
        self, x: Tensor, keep: Tensor, shares: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features (N, C, H, W) and their masks (N, G, H, W) -> (N, D, h, w) and the new mask (N, 1, h, w).

        Args:
            x: the features.
            keep: 1 where they are known.
            shares: how many channels have each mask, in order; None: all have the one, or each its own.

        Raises:
            ValueError: masks of another shape or outside [0, 1], or shares that do not add up to C.
        """
        counts = list(shares or [x.shape[1] // keep.shape[1]] * keep.shape[1])
        if len(counts) != keep.shape[1] or sum(counts) != x.shape[1]:
            raise ValueError(f"keep: {keep.shape[1]} masks for {counts} channels, the features have {x.shape[1]}")
        check_keep(keep, x)
        whole = not keep.requires_grad and bool((keep == 1).all())  # nothing to hide: only the borders are scaled
        windows = keep.new_tensor(counts).view(1, -1, 1, 1).expand(1, -1, *self.kernel_size)
        known = functional.conv2d(keep, windows, None, self.stride, self.padding)  # sum(M): (N, 1, h, w)
        seen = known > 0
        weight = float(windows.sum()) if self.scale == "liu" else 1.0
        if not whole:
            x = torch.cat([part * keep[:, g : g + 1] for g, part in enumerate(x.split(counts, 1))], 1)
        y = functional.conv2d(x, self.weight, None, self.stride, self.padding)
        y = y * (weight / known.where(seen, torch.ones_like(known)))
        y = y if self.bias is None else y + self.bias.view(1, -1, 1, 1)
        return y if whole else y * seen, seen.to(keep.dtype)


def check_keep(keep: Tensor, x: Tensor) -> None:
    """Refuse a mask that does not belong to `x` (N, C, H, W).

    Raises:
        TypeError: not a tensor of floating-point numbers.
        ValueError: another shape, values outside [0, 1], or NaN.
    """
    if not torch.is_tensor(keep) or not keep.is_floating_point():
        raise TypeError(f"keep: {getattr(keep, 'dtype', type(keep).__name__)}, expected a tensor of floats in [0, 1]")
    if keep.ndim != 4 or (len(keep), *keep.shape[2:]) != (len(x), *x.shape[2:]):
        raise ValueError(f"keep: shape {tuple(keep.shape)}, expected {(len(x), 1, *x.shape[2:])} for this image")
    low, high = keep.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"keep: values from {low:g} to {high:g}, expected 1 where the image is known and 0 in holes")


class _Layer(nn.Module):
    """Partial convolution, batch norm and activation; outside the new mask the features are 0."""

    def __init__(self, conv: PartialConv2d, norm: bool, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = conv, activation
        self.norm = nn.BatchNorm2d(conv.out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor, keep: Tensor, shares: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        y, keep = self.conv(x, keep, shares)
        y = self.activation(self.norm(y))
        return (y if keep.all() else y * keep), keep


class PartialUNet(nn.Module):
    """The inpainter: `depth` partial convolutions down, as many up, with skips of features and masks.

    Kernels 7, 5, 5, 3, 3, ... and ReLU down; nearest upsampling, kernels 3 and LeakyReLU(0.2) up; batch norm but in the
    first and the last layer. Grey images in `value_range`.

    Args:
        depth: halvings; 8 in the paper.
        base: channels of the first layer; they double up to `8 * base`. 64 in the paper.
        scale: of the partial convolutions.

    Raises:
        ValueError: depth or base below 1.
    """

    value_range = (0.0, 1.0)

    def __init__(self, depth: int = 8, base: int = 64, scale: str = "liu") -> None:
        super().__init__()
        if depth < 1 or base < 1:
            raise ValueError(f"depth and base: {depth} and {base}, expected at least 1 each")
        self.spec = {"depth": depth, "base": base, "scale": scale}
        widths = [1, *(base * min(2**i, 8) for i in range(depth))]
        kernels = [7, 5, 5, *[3] * depth][:depth]
        self.down = nn.ModuleList(
            _Layer(PartialConv2d(c, d, k, 2, k // 2, i == 0, scale), i > 0, nn.ReLU())
            for i, (k, (c, d)) in enumerate(zip(kernels, pairwise(widths), strict=True))
        )
        self.up = nn.ModuleList(
            _Layer(
                PartialConv2d(widths[i + 1] + widths[i], widths[i], 3, 1, 1, i == 0, scale),
                i > 0,
                nn.LeakyReLU(0.2) if i else nn.Identity(),
            )
            for i in reversed(range(depth))
        )

    def forward(self, image: Tensor, keep: Tensor) -> Tensor:
        """What the network draws, everywhere: image (N, 1, H, W), keep (N, 1, H, W) -> (N, 1, H, W).

        Sides that `depth` halvings do not divide are padded, as holes, and cut off again.

        Raises:
            ValueError: an image of another shape, a mask that does not fit, or an image of which nothing is kept.
        """
        if image.ndim != 4 or image.shape[1] != 1:
            raise ValueError(f"image: expected shape (N, 1, H, W), got {tuple(image.shape)}")
        check_keep(keep, image)
        if not (keep.detach().flatten(1) > 0).any(1).all():
            raise ValueError("keep: an image is all hole; something must be known to fill it from")
        (height, width), step = image.shape[2:], 2 ** len(self.down)
        pad = (0, -width % step, 0, -height % step)
        x, keep = functional.pad(image, pad), functional.pad(keep, pad)
        skips = []
        for layer in self.down:
            skips.append((x, keep))
            x, keep = layer(x, keep)  # (N, D, H / 2, W / 2)
        for layer in self.up:
            skip, known = skips.pop()
            x, keep = (functional.interpolate(t, scale_factor=2, mode="nearest") for t in (x, keep))
            x, keep = layer(torch.cat((x, skip), 1), torch.cat((keep, known), 1), (x.shape[1], skip.shape[1]))
        return x[..., :height, :width]

    def freeze_encoder_norms(self) -> None:
        """Keep the statistics of the encoder's batch norms, and their scales, as they are (Liu 2018, phase two)."""
        for layer in self.down:
            layer.get_submodule("norm").requires_grad_(False)
        self.frozen_norms = True
        self.train(self.training)

    frozen_norms = False

    def train(self, mode: bool = True) -> "PartialUNet":
        """Set the mode; frozen norms stay in eval mode."""
        super().train(mode)
        if self.frozen_norms:
            for layer in self.down:
                layer.get_submodule("norm").eval()
        return self


def inpaint(model: Callable[[Tensor, Tensor], Tensor], image: Tensor, keep: Tensor) -> Tensor:
    """The image with its holes filled: keep * I + (1 - keep) * model(I, keep); known pixels stay as they are."""
    return keep * image + (1 - keep) * model(image, keep)
