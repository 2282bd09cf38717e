"""Rectangles in which variants of an activation differ, and how a convolution or pooling moves and grows them.

Usage::

    window = window_of(module, size)            # None: it is neither a convolution nor a pooling with a rule
    changed = window(changed, base, new_size)   # None: most of the map changes

Theory: output o of a window with kernel k, stride s and p pixels of padding before the map reads the inputs
``o s - p ... o s - p + k - 1``. A changed rectangle [a, b] therefore reaches the outputs ``ceil((a + p - k + 1) / s)``
to ``floor((b + p) / s)``, and no others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xai_lib.models import TensorFlowConv2d

LARGEST_SHARE = 0.8  # of a map; the whole map is not slower than a larger rectangle
_Ints = Any  # an integer or a pair, as in torch


@dataclass(frozen=True)
class Changed:
    """B variants of one activation; each differs from it inside one rectangle only."""

    base: Tensor | None  # (1, C, H, W) the image's own activation; None: nothing reads it
    size: np.ndarray  # (2,) H, W
    patch: Tensor  # (B, C, h, w)
    at: np.ndarray  # (B, 2) row, col of each rectangle's corner

    @property
    def extent(self) -> np.ndarray:
        """Height and width of the rectangles (2,)."""
        return np.array(self.patch.shape[-2:])

    def region(self, at: np.ndarray, extent: np.ndarray, fill: float = 0.0) -> Tensor:
        """The variants inside other rectangles (B, C, *extent); beyond the border of the map: `fill`."""
        if (at == self.at).all() and (extent == self.extent).all():
            return self.patch
        if self.base is None:
            raise RuntimeError("an activation that was not kept is needed")
        count, channels = self.patch.shape[:2]
        out = self.patch.new_empty(count, *extent.tolist(), channels).permute(0, 3, 1, 2)  # channels_last
        if (at < 0).any() or (at + extent > self.size).any():
            out.fill_(fill)
        for n in range(count):
            _paste(out[n], self.base[0], *(-at[n]).tolist())
            _paste(out[n], self.patch[n], *(self.at[n] - at[n]).tolist())
        return out

    def whole(self) -> Tensor:
        """The complete variants (B, C, H, W)."""
        return self.region(np.zeros_like(self.at), self.size)


def _paste(into: Tensor, what: Tensor, row: int, col: int) -> None:
    """Copy what lies inside `into` (C, H, W) when the corner of `what` (C, h, w) is put at (row, col)."""
    top, bottom = max(row, 0), min(row + what.shape[1], into.shape[1])
    left, right = max(col, 0), min(col + what.shape[2], into.shape[2])
    if top < bottom and left < right:
        into[:, top:bottom, left:right] = what[:, top - row : bottom - row, left - col : right - col]


def common(parts: Sequence[Changed]) -> tuple[np.ndarray, np.ndarray]:
    """Corners (B, 2) and extent (2,) of the smallest rectangles that hold those of all parts."""
    corner = np.min([p.at for p in parts], axis=0)
    extent = np.max([p.at + p.extent - corner for p in parts], axis=(0, 1))
    return np.minimum(corner, parts[0].size - extent), extent


@dataclass(frozen=True)
class Window:
    """A convolution or pooling: output o reads inputs ``o stride - before ... o stride - before + kernel - 1``."""

    kernel: np.ndarray  # (2,) with dilation
    stride: np.ndarray
    before: np.ndarray  # padding above and left
    fill: float  # value of the padding
    apply: Callable[[Tensor], Tensor]  # without padding

    def __call__(self, v: Changed, base: Tensor | None, size: np.ndarray) -> Changed | None:
        """The changed rectangle of the output, whose map has `size`; None if it covers most of it."""
        first = np.clip(-(-(v.at + self.before - self.kernel + 1) // self.stride), 0, size - 1)
        last = np.clip((v.at + self.before + v.extent - 1) // self.stride, first, size - 1)
        extent = np.max(last - first + 1, axis=0)
        if extent.prod() > LARGEST_SHARE * size.prod():
            return None
        at = np.minimum(first, size - extent)
        read = v.region(at * self.stride - self.before, (extent - 1) * self.stride + self.kernel, self.fill)
        return Changed(base, size, self.apply(read), at)


def _pair(value: _Ints) -> np.ndarray:
    return np.broadcast_to(np.array(value), 2)


def _conv(
    size: np.ndarray,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Ints = 1,
    padding: _Ints | str = 0,
    dilation: _Ints = 1,
    groups: int = 1,
) -> Window:
    kernel = _pair(dilation) * (np.array(weight.shape[-2:]) - 1) + 1
    before = (kernel - 1) // 2 * (padding == "same") if isinstance(padding, str) else _pair(padding)
    run = partial(F.conv2d, weight=weight, bias=bias, stride=stride, dilation=dilation, groups=groups)
    return Window(kernel, _pair(stride), before, 0.0, run)


def _max_pool(
    size: np.ndarray,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    dilation: _Ints = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Window | None:
    if return_indices:
        return None
    kernel = _pair(dilation) * (_pair(kernel_size) - 1) + 1
    run = partial(F.max_pool2d, kernel_size=kernel_size, stride=stride, dilation=dilation)
    return Window(kernel, _pair(stride or kernel_size), _pair(padding), -float("inf"), run)


def _avg_pool(
    size: np.ndarray,
    kernel_size: _Ints,
    stride: _Ints | None = None,
    padding: _Ints = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Window | None:
    kernel, step, before = _pair(kernel_size), _pair(stride or kernel_size), _pair(padding)
    cut = ceil_mode and ((size + 2 * before - kernel) % step).any()
    if cut or (before.any() and not count_include_pad):
        return None  # windows at the border divide by another number
    run = partial(F.avg_pool2d, kernel_size=kernel_size, stride=stride, divisor_override=divisor_override)
    return Window(kernel, step, before, 0.0, run)


def window_of(m: Any, size: np.ndarray) -> Window | None:
    """The window that a module moves over a map of `size`; None: it is no such module."""
    if type(m) is TensorFlowConv2d:
        kernel, stride = np.array(m.kernel_size), np.array(m.stride)
        before = np.maximum((-(-size // stride) - 1) * stride + kernel - size, 0) // 2
        return _conv(size, m.weight, m.bias, m.stride, before.tolist(), m.dilation, m.groups)
    if type(m) is nn.Conv2d and m.padding_mode == "zeros":
        return _conv(size, m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups)
    if type(m) is nn.MaxPool2d:
        return _max_pool(size, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
    if type(m) is nn.AvgPool2d:
        options = (m.ceil_mode, m.count_include_pad, m.divisor_override)
        return _avg_pool(size, m.kernel_size, m.stride, m.padding, *options)
    return None


WINDOWS: dict[Any, Callable[..., Window | None]] = {
    F.conv2d: _conv,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.avg_pool2d: _avg_pool,
}


def border_of(pad: Sequence[int], mode: str = "constant", value: float | None = None) -> np.ndarray | None:
    """How far padding moves a map: rows, columns; None where it does more than add a constant border."""
    if mode != "constant" or len(pad) != 4 or not all(isinstance(p, int) and p >= 0 for p in pad):
        return None
    return np.array([pad[2], pad[0]])
