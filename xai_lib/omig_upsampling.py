"""Explanation maps at full resolution, for networks that see a few thousand pixels drawn at random.

Usage::

    found = upsample(members, image, size=125, virtual_images=256, steps=10, normalise=(mean, sd), state="map.npz")
    found.average("OMIG")                    # (H, W) mean over the visits of a pixel, NaN where there was none
    found.smoothed("OMIG", sd_px=7)
    both = upsample(..., virtual_images=range(0, 128)) + upsample(..., virtual_images=range(128, 256))

Theory: Algorithm 2 draws a virtual image N times: `size` rows and `size` columns of the full image in their order, and
their product grid. The map of each virtual image is added to the full image at the pixels that were drawn; only the
sums are kept (`xai_lib.omig_maps`). Virtual image i has a random generator of its own, made of the seed and i: batches
of any size, a run that was stopped and goes on, and halves that are added, use the same virtual images.

Readings of "randomly selected pixels ... while keeping track of their original order" (section 2.3.2):
"anywhere" draws rows and columns from all of them and sorts them, as the indices of Algorithm 2 say (printed (x_i,j,
l_y,j), meant (l_x,i, l_y,j)); a structure's place in the virtual image then wanders. "blocks" draws one row of each of
`size` blocks of equal height, and columns alike; places stay.

Reference: Amanova, Martin, Elster 2022, section 2.3.2, Algorithm 2; see `xai_lib.omig`.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from xai_lib.omig import check_path, follow, midpoint, occluded, places, ready
from xai_lib.omig_maps import Upsampled

Sampling = Literal["anywhere", "blocks"]
SAMPLINGS = ("anywhere", "blocks")
METHODS = ("OMIG", "sensitivity", "clipped sensitivity", "occlusion")
SAVE_EVERY_S = 10.0  # of a state file; less often where writing it takes long
SAVE_SHARE = 0.05  # of the time may go into writing


def pick(rng: np.random.Generator, n: int, size: int, how: Sampling = "anywhere") -> np.ndarray:
    """`size` of n rows (or columns), ascending, each at most once. See the module for the two ways.

    Raises:
        ValueError: fewer rows than are to be drawn, or an unknown way.
    """
    if how not in SAMPLINGS:
        raise ValueError(f"sampling: {how!r} is not one of {', '.join(SAMPLINGS)}")
    if not 1 <= size <= n:
        raise ValueError(f"size: {size} rows or columns cannot be drawn from {n}, expected 1 to {n}")
    if how == "anywhere":
        return np.sort(rng.choice(n, size, replace=False))
    edges = np.arange(size + 1) * n // size  # blocks differ by one row at most
    return rng.integers(edges[:-1], edges[1:])


@dataclass(frozen=True)
class Plan:
    """The arguments of `upsample` that decide what comes out, up to rounding."""

    size: int
    c: float
    steps: int
    z_max: float | None
    clip_first: bool
    normalise: tuple[float, float]
    sampling: Sampling
    methods: tuple[str, ...]
    value: float
    seed: int


def upsample(
    members: Sequence[nn.Module],
    image: np.ndarray,
    size: int,
    virtual_images: int | range,
    *,
    c: float = 1.0,
    steps: int = 50,
    z_max: float | None = 3.0,
    clip_first: bool = False,
    normalise: tuple[float, float] = (0.0, 1.0),
    sampling: Sampling = "anywhere",
    methods: Sequence[str] = METHODS[:3],
    mask: np.ndarray | None = None,
    value: float = 0.0,
    batch: int = 16,
    fast: bool = True,
    seed: int = 0,
    state: str | Path | None = None,
    progress: bool = True,
) -> Upsampled:
    """Algorithm 2 as a stream: maps of `virtual_images` virtual images, added at full resolution.

    Args:
        members: as for `explain`, for images (N, 1, size, size); all on one device, where the sums are kept.
        image: (H, W) grey levels, H and W >= size.
        size: rows and columns of a virtual image.
        virtual_images: N, or a range of their numbers for a part of a run.
        c, steps, z_max, clip_first: as for `explain`.
        normalise: mean and sd of the training's grey levels; virtual images are (grey - mean) / sd.
        sampling: "anywhere" or "blocks", see the module.
        methods: some of `METHODS`. Without "OMIG" only one gradient is computed for each network and virtual image.
        mask: (H, W) bool, where "occlusion" is measured; None: everywhere, as in the paper (slow).
        value: of an occluded pixel, in normalised grey levels.
        batch: virtual images in one pass.
        fast: run the members as `fold` makes them.
        seed: of the virtual images.
        state: file (.npz) that is written every `SAVE_EVERY_S` seconds and from which a stopped run goes on, also to
            more virtual images. Batch and `fast` may change; sums then differ by rounding.
        progress: show a bar.

    Raises:
        TypeError: `members` is not a list of networks, or one does not give a tensor.
        ValueError: an argument outside its range, an image that is too small, constant or not finite, members that
            do not fit together or give NaN, a state file that is damaged or of another run.
    """
    numbers = range(virtual_images) if isinstance(virtual_images, int | np.integer) else virtual_images
    plan = Plan(size, c, steps, z_max, clip_first, tuple(normalise), sampling, tuple(methods), value, seed)  # type: ignore[arg-type]
    _check(plan, image, mask, numbers, batch)
    networks, file = ready(members, fast), None if state is None else Path(state)
    stream = _Stream(members[0], image, plan, mask, fingerprint(members, image, plan, mask))
    if file is not None and file.exists():
        stream.load(file, numbers)
    saved, spent = time.monotonic(), 0.0
    with tqdm(total=len(numbers), initial=stream.done, desc="virtual images", disable=not progress) as bar:
        while stream.done < len(numbers):
            part = numbers[stream.done : stream.done + batch]
            stream.add(networks, part)
            bar.update(len(part))
            last = stream.done == len(numbers)
            if file is not None and (last or time.monotonic() - saved > max(SAVE_EVERY_S, spent / SAVE_SHARE)):
                began = time.monotonic()
                stream.result().save(file)
                saved = time.monotonic()
                spent = saved - began
    return stream.result()


class _Stream:
    """The running sums on the networks' device."""

    def __init__(self, member: nn.Module, image: np.ndarray, plan: Plan, mask: np.ndarray | None, run: str):
        weight = next(member.parameters(), torch.zeros(0))
        mean, sd = plan.normalise
        grey = torch.from_numpy((np.asarray(image, np.float64) - mean) / sd)
        self.grey = grey.to(weight.device, weight.dtype).flatten()
        self.shape, self.plan, self.mask, self.run = image.shape, plan, mask, run
        self.sums = torch.zeros(len(self.grey), len(plan.methods), 2, dtype=torch.float64, device=weight.device)
        self.visits = torch.zeros(len(self.grey), dtype=torch.int32, device=weight.device)
        self.indices, self.start, self.end = np.zeros(0, np.int64), np.zeros(0), np.zeros(0)

    @property
    def done(self) -> int:
        return len(self.indices)

    def add(self, networks: Sequence[nn.Module], numbers: range) -> None:
        """Draw these virtual images, explain them and add their maps, one after the other."""
        size = self.plan.size
        grids = [grid(self.shape, size, self.plan.sampling, self.plan.seed, i) for i in numbers]
        flat = np.stack([np.ravel_multi_index(np.ix_(*g), self.shape).ravel() for g in grids])
        at = torch.from_numpy(flat).to(self.grey.device)  # (N, size * size)
        values, start, end = self._maps(networks, self.grey[at].view(-1, 1, size, size), grids)
        both = torch.stack([values, values.square()], -1)  # (N, size * size, methods, 2)
        for pixels, value in zip(at, both, strict=True):
            self.sums[pixels] += value  # no pixel is drawn twice
            self.visits[pixels] += 1
        self.indices = np.append(self.indices, np.array(numbers))
        self.start, self.end = (np.append(a, b.double().cpu()) for a, b in ((self.start, start), (self.end, end)))

    def _maps(
        self, networks: Sequence[nn.Module], x: Tensor, grids: Sequence[Sequence[np.ndarray]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N, size * size, methods) float64 and the midpoints (N,) before and after."""
        plan, maps = self.plan, {}
        if set(plan.methods) == {"occlusion"}:
            start = midpoint(networks, x)
        else:
            steps = plan.steps if "OMIG" in plan.methods else 1
            found = follow(networks, x, plan.c, steps, plan.z_max, plan.clip_first)
            maps = dict(zip(METHODS, (found.change, found.sensitivity, found.clipped_sensitivity), strict=False))
            start, end = found.start, found.end
        if "OMIG" not in plan.methods:
            end = torch.full_like(start, torch.nan)
        if "occlusion" in plan.methods:
            maps["occlusion"] = torch.zeros_like(x)
            for image, one, rows_columns in zip(x, maps["occlusion"], grids, strict=True):
                where = places(None if self.mask is None else self.mask[np.ix_(*rows_columns)], x.shape[-2:])
                one[0, where[:, 0], where[:, 1]] = occluded(networks, image, where, plan.value, batch=64)
        return torch.stack([maps[m].flatten(1).double() for m in plan.methods], -1), start, end

    def result(self) -> Upsampled:
        """The sums so far, as arrays."""
        sums = self.sums.cpu().numpy().reshape(*self.shape, len(self.plan.methods), 2)
        visits = self.visits.cpu().numpy().reshape(self.shape)
        return Upsampled(self.run, self.plan.methods, sums, visits, self.indices, self.start, self.end, self.mask)

    def load(self, file: Path, numbers: range) -> None:
        """Go on from a state file. Raises ValueError: damaged, or of another run."""
        old = Upsampled.load(file)
        if old.run != self.run:
            raise ValueError(f"state: {file} belongs to another image, network, seed or other settings; delete it")
        if not np.array_equal(old.indices, np.array(numbers)[: len(old.indices)]):
            raise ValueError(f"state: {file} holds other virtual images than those asked for ({numbers}); delete it")
        self.sums.copy_(torch.from_numpy(old.sums).view_as(self.sums))
        self.visits.copy_(torch.from_numpy(old.visits).view_as(self.visits))
        self.indices, self.start, self.end = old.indices, old.start, old.end


def grid(shape: Sequence[int], size: int, how: Sampling, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, (size,) each, of virtual image `number` of an image of `shape` (H, W)."""
    rng = np.random.default_rng([seed, number])
    return pick(rng, shape[0], size, how), pick(rng, shape[1], size, how)


def fingerprint(members: Sequence[nn.Module], image: np.ndarray, plan: Plan, mask: np.ndarray | None) -> str:
    """SHA-256 of everything that decides the result up to rounding."""
    digest = hashlib.sha256(repr(plan).encode())
    for array in (image, mask):
        if array is not None:
            digest.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    for member in members:
        digest.update(repr(member).encode())
        for name, weight in member.state_dict().items():
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _check(plan: Plan, image: np.ndarray, mask: np.ndarray | None, numbers: range, batch: int) -> None:
    check_path(plan.c, plan.steps, plan.z_max)
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        raise ValueError(f"image: {getattr(image, 'shape', type(image).__name__)}, expected an array (H, W)")
    if not np.isfinite(image).all():
        raise ValueError("image: it holds NaN or infinite values")
    if image.min() == image.max():
        raise ValueError(f"image: it is constant ({image.min()}), there is nothing to explain")
    if min(image.shape) < plan.size or plan.size < 1:
        raise ValueError(f"size: a grid of {plan.size} x {plan.size} does not fit into an image of {image.shape}")
    mean, sd = plan.normalise
    if not (np.isfinite(mean) and np.isfinite(sd) and sd > 0):
        raise ValueError(f"normalise: mean {mean} and sd {sd}, expected finite numbers and sd > 0")
    if unknown := [m for m in plan.methods if m not in METHODS]:
        raise ValueError(f"methods: {unknown[0]!r} is not one of {', '.join(METHODS)}")
    if not plan.methods or len(set(plan.methods)) < len(plan.methods):
        raise ValueError(f"methods: {plan.methods}, expected at least one, each once")
    if mask is not None and (mask.dtype != bool or mask.shape != image.shape):
        raise ValueError(f"mask: {mask.dtype} {mask.shape}, expected bool {image.shape}")
    if mask is not None and "occlusion" not in plan.methods:
        raise ValueError("mask: it is for occlusion, which is not among the methods")
    if plan.sampling not in SAMPLINGS:
        raise ValueError(f"sampling: {plan.sampling!r} is not one of {', '.join(SAMPLINGS)}")
    if len(numbers) < 1 or min(numbers) < 0:
        raise ValueError(f"virtual_images: {numbers}, expected a number >= 1 or a range of numbers >= 0")
    if not np.isfinite(plan.value):
        raise ValueError(f"value: {plan.value} is not a finite number")
    if isinstance(plan.seed, bool) or not isinstance(plan.seed, int | np.integer) or plan.seed < 0:
        raise ValueError(f"seed: {plan.seed!r} is not an integer >= 0")
    if batch < 1:
        raise ValueError(f"batch: {batch} is below 1")
