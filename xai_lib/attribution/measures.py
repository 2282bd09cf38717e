"""Numbers about attribution maps: how spread out they are, how far they agree, how much of them lies in a lesion.

Usage::

    dispersion(maps)                                    # gini, entropy and effective area of every map
    agreement({"saliency": a, "occlusion": b})          # rank correlation and top overlap, all pairs, every image
    mass_inside(maps, masks), top_inside(maps, masks)   # (N,), (N,); both have masks.mean((1, 2)) as chance level
    peak_distance_px(maps, centres)                     # (N,)

Maps are tensors or arrays (N, H, W), signed; every measure gives one number per map. Nothing here knows a network.

Theory: a map is read as a distribution of *mass*, its positive part (what argues for the target) or its absolute value,
divided by the sum. A map without mass has no distribution, a constant map has no order and no peak: such a measure is
NaN and never 0. Ties are common (a map made of segments, a map that is mostly 0) and are never broken by the order of
the pixels: tied pixels share the remaining places of a top set equally, which is the expectation over random ties.

References: Hurley and Rickard 2009 (Gini index as sparsity); Shannon 1948; Spearman 1904; Adebayo et al.
2018 (rank correlation with and without the sign); Sam Millan 2023, sections 4.1 and 5 (the claims that these measure).
"""

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.special import entr
from scipy.stats import rankdata
from torch import Tensor

from xai_lib.localization import extremes

Array = NDArray[np.float64]
PARTS: dict[str, Callable[[Array], Array]] = {"positive": lambda m: np.maximum(m, 0), "absolute": np.abs}


def as_maps(maps: ArrayLike | Tensor, name: str = "maps") -> Array:
    """Maps as float64 (N, H, W), from any device.

    Raises:
        ValueError: another shape, fewer than two pixels, or a value that is not finite (the message says which map).
    """
    values = np.asarray(maps.detach().double().cpu() if isinstance(maps, Tensor) else maps, float)
    if values.ndim != 3 or not len(values) or values[0].size < 2:
        raise ValueError(f"{name}: expected shape (N, H, W) with at least one map of two pixels, got {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values).all((1, 2)))
    if len(bad):
        raise ValueError(f"{name}: map {bad[0]} holds NaN or infinite values")
    return values


def _as_masks(masks: ArrayLike | Tensor, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Masks as bool of `shape` (N, H, W); one mask (H, W) serves all maps."""
    given = np.asarray(masks.detach().cpu() if isinstance(masks, Tensor) else masks)
    if given.shape not in (shape, shape[1:]):
        raise ValueError(f"masks: shape {given.shape} does not fit, expected {shape} or {shape[1:]}")
    inside = np.broadcast_to(given.astype(bool), shape)
    empty = np.flatnonzero(~inside.any((1, 2)))
    if len(empty):
        raise ValueError(f"masks: mask {empty[0]} is empty, expected at least one pixel")
    return inside


def shares(maps: ArrayLike | Tensor, part: str = "positive") -> Array:
    """Each pixel's share of the map's mass: (N, H, W) -> (N, H W), rows sum to 1; NaN where a map has no mass.

    Args:
        maps: (N, H, W).
        part: "positive" (negative values count as 0) or "absolute".
    """
    if part not in PARTS:
        raise ValueError(f"part: {part!r} is unknown, expected one of {', '.join(PARTS)}")
    values = as_maps(maps)
    mass = PARTS[part](values.reshape(len(values), -1))
    with np.errstate(invalid="ignore"):
        mass = mass / mass.max(1, keepdims=True)  # the sum of huge or tiny values stays a number
        return mass / mass.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------------- dispersion


def gini(maps: ArrayLike | Tensor, part: str = "positive") -> Array:
    """Gini index (N,): 0 where the mass is even, 1 - 1/HW where one pixel has it all; NaN without mass.

    ``sum_i (2 i - n - 1) s_i / n`` over the shares s in ascending order. Absolute Gaussian noise has sqrt(2) - 1.
    """
    ordered = np.sort(shares(maps, part), axis=1)
    n = ordered.shape[1]
    return ordered @ (2 * np.arange(1, n + 1) - n - 1) / n


def entropy(maps: ArrayLike | Tensor, part: str = "positive") -> Array:
    """Shannon entropy of the mass divided by log(HW), (N,): 1 where it is even, 0 in one pixel; NaN without mass."""
    mass = shares(maps, part)
    return entr(mass).sum(1) / np.log(mass.shape[1])


def effective_area(maps: ArrayLike | Tensor, part: str = "positive", mass: float = 0.5) -> Array:
    """Area of the smallest set of pixels that holds this share of the mass, as a share of the image (N,).

    It is `mass` itself where the mass is even, 1/HW where one pixel has it all; NaN without mass.
    """
    if not 0 < mass <= 1:
        raise ValueError(f"mass: {mass!r} is not in (0, 1]")
    held = np.sort(shares(maps, part), axis=1)[:, ::-1].cumsum(1)
    count = (held < mass * (1 - 1e-12)).sum(1) + 1  # the margin is for sums that miss by rounding
    return np.where(np.isnan(held[:, 0]), np.nan, count / held.shape[1])


def dispersion(maps: ArrayLike | Tensor, part: str = "positive") -> pd.DataFrame:
    """One row per map: image, `gini`, `entropy`, `effective_area` (claim 1.2). A dispersed map: low, high, high."""
    measured = {measure.__name__: measure(maps, part) for measure in (gini, entropy, effective_area)}
    return pd.DataFrame(measured).rename_axis("image").reset_index()


# ---------------------------------------------------------------------------------------------------- agreement


def rank_correlation(first: ArrayLike | Tensor, second: ArrayLike | Tensor) -> Array:
    """Spearman's rank correlation of two sets of maps (N, H, W), (N,); NaN where either map is constant."""
    pairs = zip(*_flat({"first": first, "second": second}).values(), strict=True)
    return np.array([_spearman(np.stack(pair))[0, 1] for pair in pairs])


def top_overlap(first: ArrayLike | Tensor, second: ArrayLike | Tensor, share: float = 0.1) -> Array:
    """How much of the top `share` of one map is in the top of the other, (N,); NaN where either map is constant.

    By chance it is `share`. It relates to the intersection over union J as ``2 J / (1 + J)``. Pixels that tie for the
    last places share them, so that a map's overlap with itself is 1 only if it has no such ties.
    """
    pairs = zip(*_flat({"first": first, "second": second}).values(), strict=True)
    return np.array([_overlaps(np.stack(pair), share)[0, 1] for pair in pairs])


def agreement(maps: Mapping[str, ArrayLike | Tensor], share: float = 0.1) -> pd.DataFrame:
    """Agreement of all pairs of methods on every image (claim 1.3).

    Args:
        maps: at least two methods, each (N, H, W).
        share: size of the top set.

    Returns:
        Columns image, first, second (methods), `rank_correlation` of the signed maps, `absolute_rank_correlation` of
        their absolute values (the fair one where one of the methods has no sign), `top_overlap` (chance: `share`).
        NaN where either map is constant.
    """
    if len(maps) < 2:
        raise ValueError(f"maps: expected at least two methods, got {len(maps)} ({', '.join(maps)})")
    rows = []
    for image, values in enumerate(np.stack(list(_flat(maps).values()), axis=1)):  # (M, HW)
        tables = _spearman(values), _spearman(np.abs(values)), _overlaps(values, share)
        for i, j in combinations(range(len(maps)), 2):
            rows.append((image, list(maps)[i], list(maps)[j], *(table[i, j] for table in tables)))
    columns = ["image", "first", "second", "rank_correlation", "absolute_rank_correlation", "top_overlap"]
    return pd.DataFrame(rows, columns=columns)


def _flat(maps: Mapping[str, ArrayLike | Tensor]) -> dict[str, Array]:
    """Each set of maps as (N, HW), all of one shape."""
    values = {name: as_maps(m, name) for name, m in maps.items()}
    shapes = {name: v.shape for name, v in values.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"maps: expected one shape for all, got {', '.join(f'{n}: {s}' for n, s in shapes.items())}")
    return {name: v.reshape(len(v), -1) for name, v in values.items()}


def _spearman(values: Array) -> Array:
    """Rank correlations of the rows: (M, HW) -> (M, M)."""
    with np.errstate(invalid="ignore"):
        return np.corrcoef(rankdata(values, axis=1))


def _overlaps(values: Array, share: float) -> Array:
    """Expected overlaps of the rows' top sets: (M, HW) -> (M, M)."""
    count = _count(share, values.shape[1])
    top = np.stack([_top(v, count) for v in values])
    return top @ top.T / count


def _count(share: float, pixels: int) -> int:
    if not 0 < share < 1:
        raise ValueError(f"share: {share!r} is not in (0, 1)")
    return max(1, round(share * pixels))


def _top(values: Array, count: int) -> Array:
    """Membership of each pixel (HW,) in the top set: 1, 0, or an equal part of the places left for tied pixels."""
    if values.min() == values.max():
        return np.full(values.shape, np.nan)
    cut = np.partition(values, -count)[-count]
    above, tied = values > cut, values == cut
    return above + tied * (count - above.sum()) / tied.sum()


# ----------------------------------------------------------------------------------------- against a mask or a point


def mass_inside(maps: ArrayLike | Tensor, masks: ArrayLike | Tensor, part: str = "positive") -> Array:
    """Share of the map's mass inside the mask, (N,); by chance the mask's share of the image; NaN without mass.

    Args:
        maps: (N, H, W).
        masks: (N, H, W) or one (H, W), bool.
        part: "positive" or "absolute".

    Raises:
        ValueError: masks of another shape, or an empty one.
    """
    inside = _as_masks(masks, as_maps(maps).shape)
    mass = shares(maps, part)
    return (mass * inside.reshape(mass.shape)).sum(1)


def top_inside(maps: ArrayLike | Tensor, masks: ArrayLike | Tensor, share: float | None = 0.1) -> Array:
    """Share of the map's top pixels that lie inside the mask, (N,); NaN where a map is constant.

    By chance it is the mask's share of the image. A mask smaller than the top set cannot reach 1.

    Args:
        maps: (N, H, W).
        masks: (N, H, W) or one (H, W), bool.
        share: size of the top set, 0.1 for the top decile. None: as many pixels as the mask has, so that 1 can always
            be reached.

    Raises:
        ValueError: masks of another shape, or an empty one; a share outside (0, 1).
    """
    values = as_maps(maps)
    inside = _as_masks(masks, values.shape)
    counts = [int(m.sum()) if share is None else _count(share, m.size) for m in inside]
    return np.array([_top(v.ravel(), k) @ m.ravel() / k for v, m, k in zip(values, inside, counts, strict=True)])


def peak(maps: ArrayLike | Tensor, smooth_px: float = 0.0) -> Array:
    """Where each map is largest, as (row, col): (N, H, W) -> (N, 2); NaN where a map is constant.

    The place is the one that `localization.extremes` finds; where it belongs to a plateau of equal values (a segment),
    it is moved to the plateau's centre, which may lie between pixels and, in a bent plateau, outside it.

    Args:
        maps: (N, H, W).
        smooth_px: deviation of a Gaussian blur before the search, in pixels; the image is mirrored at its border. 0:
            none, as is right for maps made of segments.

    Raises:
        ValueError: a negative `smooth_px`.
    """
    if not 0 <= smooth_px < np.inf:
        raise ValueError(f"smooth_px: {smooth_px!r} is not a number >= 0")
    return np.array([_peak(values, smooth_px) for values in as_maps(maps)])


def _peak(values: Array, smooth_px: float) -> tuple[float, float]:
    if values.min() == values.max():
        return np.nan, np.nan
    if smooth_px:
        values = ndimage.gaussian_filter(values, smooth_px)
    found = extremes(values, values.shape)
    if found.ties[0] == 1:
        return found.maximum
    plateaus, _ = ndimage.label(values == values.max(), np.ones((3, 3)))
    row, col = map(int, found.maximum)
    return ndimage.center_of_mass(plateaus == plateaus[row, col])


def peak_distance_px(maps: ArrayLike | Tensor, points: ArrayLike, smooth_px: float = 0.0) -> Array:
    """Distance of each map's `peak` from a point (row, col), (N,), in pixels; NaN where a map is constant (claim 1.4).

    Args:
        maps: (N, H, W).
        points: (N, 2), or (2,) for all maps; the centre of an image is ((H - 1) / 2, (W - 1) / 2).
        smooth_px: see `peak`.

    Raises:
        ValueError: points of another shape, or not finite.
    """
    peaks, given = peak(maps, smooth_px), np.asarray(points, float)
    if given.shape not in (peaks.shape, (2,)) or not np.isfinite(given).all():
        raise ValueError(f"points: expected finite (row, col), shape {peaks.shape} or (2,), got shape {given.shape}")
    return np.hypot(*(peaks - given).T)
