"""Occlusion: how much the target's output falls when a window of the image is covered.

Usage::

    found = occlusion(network, x, target, window=60, stride=30, baseline=0.0)
    found.map                                             # (N, H, W): output of the image minus output with the window

Theory: a window slides over the image; what it covers is replaced by the baseline. Every pixel gets the mean of the
falls of the output over all windows that cover it. Windows at the right and lower border are cut there, as in Captum.
The map is the fall itself, not a share of it per channel: for a linear model and windows of one pixel it is
``sum_c w_c (x_c - b_c)``. Only what a window can change is computed again, see `changed_rectangle`.

A window with a hard edge draws a square, and a network may read the square. With ``edge=e`` its outer e pixels go over
into the image: the baseline's share is ``(k + 1) / (e + 1)``, k pixels from the border, in rows times in columns. A
pixel's mean is then weighted by these shares.

References: Zeiler and Fergus 2014; San Millan 2023, section 3.2.4 (60 pixels, step 30).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xai_lib.attribution.changed_rectangle import LocalNetwork
from xai_lib.attribution.core import Found, Network, as_baseline, chunked, pick

LOCAL_CHUNK = 8  # windows at a time on a CPU: the fastest or almost, measured on four networks at two sizes


def occlusion(
    network: Network,
    x: Tensor,
    target: Tensor,
    *,
    window: int | tuple[int, int] = 60,
    stride: int | tuple[int, int] = 30,
    baseline: float | Tensor | None = None,
    edge: int = 0,
    local: bool | Literal["auto"] = "auto",
    chunk: int | None = None,
) -> Found:
    """Mean fall of the target's output over all windows that cover a pixel.

    A window whose content equals the baseline changes nothing: it counts as a fall of 0 and is not run.

    Args:
        network: the model.
        x: images (N, C, H, W).
        target: classes (N,).
        window: height and width in pixels, or one number for both.
        stride: step of the window in pixels, rows and columns, or one number for both.
        baseline: what a window is filled with: a number, an image (a blurred one, a healthy twin) or images; None: 0.
        edge: width in pixels of the window's soft border, at most half of the window; 0: none.
        local: see `LocalNetwork`; the map is the same.
        chunk: windows at a time; None: timed.

    Returns:
        Map (N, H, W), scores (N,), and the baseline.

    Raises:
        TypeError: a window, stride or edge that is no integer.
        ValueError: a window larger than the image; a stride below 1, or above the window, which leaves pixels out; an
            edge below 0 or above half of the window.
    """
    size, extent, step = (x.shape[2], x.shape[3]), _pair("window", window), _pair("stride", stride)
    corners = window_corners(size, extent, step)
    shares = window_shares(extent, edge).to(x)
    fill = as_baseline(baseline, x)
    with torch.no_grad():
        outputs = network(x)  # (N, K)
    scores = pick(outputs, target)
    fills = fill.expand_as(x)
    jobs = _changing((x != fills).any(1).cpu().numpy(), corners, extent)  # (M, 2) image, window
    falls = torch.zeros(len(x), len(corners), dtype=torch.float64, device=x.device)
    if len(jobs):
        variants = LocalNetwork(network, local)
        run = _runner(variants, x, outputs, target, fills, corners, shares, jobs)
        falls[tuple(jobs[0])] = run(0, 1)[0]  # decides which way is taken
        chunk = LOCAL_CHUNK if chunk is None and variants.local and x.device.type == "cpu" else chunk
        rest = jobs[1:]
        for start, stop, value in chunked(network, len(rest), lambda a, b: run(a + 1, b + 1), chunk, "windows"):
            falls[tuple(rest[start:stop].T)] = value
    return Found(_spread(falls, corners, shares.double(), size).to(x.dtype), scores, fill)


def window_corners(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> np.ndarray:
    """Corners (M, 2), row and col, of windows that together cover a map of `size`; the last may reach beyond it.

    Raises:
        ValueError: a window larger than the map; a stride below 1, or above the window, which leaves pixels out.
    """
    if min(window) < 1 or min(stride) < 1:
        raise ValueError(f"window, stride: expected pixels, at least 1, got {window} and {stride}")
    if window[0] > size[0] or window[1] > size[1]:
        raise ValueError(f"window: {window[0]} x {window[1]} pixels are more than the image's {size[0]} x {size[1]}")
    if any(s > w and w < n for s, w, n in zip(stride, window, size, strict=True)):
        raise ValueError(f"stride: {stride} is above the window {window}, some pixels would never be covered")
    rows, cols = (range(0, -(-(n - w) // s) * s + 1, s) for n, w, s in zip(size, window, stride, strict=True))
    return np.array([(row, col) for row in rows for col in cols])


def window_shares(window: tuple[int, int], edge: int = 0) -> Tensor:
    """Share of the baseline at each pixel of a window (h, w), in (0, 1]; all 1 without a soft edge.

    Raises:
        TypeError: an edge that is no integer.
        ValueError: an edge below 0 or above half of the window.
    """
    if not isinstance(edge, int | np.integer) or isinstance(edge, bool):
        raise TypeError(f"edge: expected an integer, got {edge!r}")
    if not 0 <= 2 * edge <= min(window):
        raise ValueError(f"edge: {edge} pixels, expected from 0 to half of the window {window[0]} x {window[1]}")
    sides = []
    for length in window:
        place = torch.arange(length, dtype=torch.float64)
        sides.append(((torch.minimum(place, length - 1 - place) + 1) / (edge + 1)).clamp(max=1))
    return sides[0][:, None] * sides[1]


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name}: expected an integer or two, got {value!r}")
    return int(pair[0]), int(pair[1])


def _changing(differs: np.ndarray, corners: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """The (image, window) pairs (M, 2) in which some pixel differs from the baseline; `differs` (N, H, W)."""
    inside = [differs[:, row : row + window[0], col : col + window[1]].any((1, 2)) for row, col in corners]
    return np.argwhere(np.stack(inside, axis=1))


def _runner(
    variants: LocalNetwork,
    x: Tensor,
    outputs: Tensor,
    target: Tensor,
    fills: Tensor,
    corners: np.ndarray,
    shares: Tensor,
    jobs: np.ndarray,
) -> Callable[[int, int], Tensor]:
    """A function that gives the falls of jobs start ... stop - 1; it goes from image to image in the jobs' order."""
    current = -1
    inside = np.minimum(corners, np.array(x.shape[-2:]) - shares.shape)  # patches that cover the cut windows

    def run(start: int, stop: int) -> Tensor:
        nonlocal current
        parts = []
        for image in np.unique(jobs[start:stop, 0]).tolist():
            mine = jobs[start:stop, 1][jobs[start:stop, 0] == image]
            if image != current:
                variants.keep(x[image : image + 1], outputs[image : image + 1])
                current = image
            patches = [_patch(x[image], fills[image], corners[k], inside[k], shares) for k in mine]
            covered = variants.outputs(torch.stack(patches), inside[mine])[:, target[image]]
            parts.append(variants.image_outputs()[:, target[image]].double() - covered.double())
        return torch.cat(parts)

    return run


def _patch(x: Tensor, fill: Tensor, corner: np.ndarray, inside: np.ndarray, shares: Tensor) -> Tensor:
    """What stands at `inside` (C, h, w) when the window at `corner`, cut at the border, is covered."""
    (row, col), (top, left), (height, width) = corner.tolist(), inside.tolist(), shares.shape
    patch = x[:, top : top + height, left : left + width].clone()
    covered, new = patch[:, row - top :, col - left :], fill[:, row : top + height, col : left + width]
    covered.lerp_(new, shares[: covered.shape[1], : covered.shape[2]])
    return patch


def _spread(falls: Tensor, corners: np.ndarray, shares: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over the windows that cover a pixel, weighted by their shares (h, w) there: (N, M) -> (N, H, W)."""
    total, count = falls.new_zeros(len(falls), *size), falls.new_zeros(size)
    height, width = shares.shape
    for fall, (row, col) in zip(falls.T, corners.tolist(), strict=True):
        weight = shares[: size[0] - row, : size[1] - col]
        total[:, row : row + height, col : col + width] += fall[:, None, None] * weight
        count[row : row + height, col : col + width] += weight
    return total / count
