"""Explanation maps at full resolution: what many virtual images say about each pixel of the image they came from.

Usage::

    found = upsample(...)                    # xai_lib.omig_upsampling
    found.average("OMIG")                    # (H, W) mean over the visits of a pixel, NaN where there was none
    found.standard_error("OMIG")
    found.smoothed("OMIG", sd_px=7)
    both = first_half + second_half

Theory: for each method the sums of the values and of their squares are kept, and one number of visits for each pixel,
so memory does not grow with the number of virtual images N (but for the two midpoints of each). Algorithm 2 divides the
sum by N, which dims pixels that were drawn rarely; the mean over visits does not.

Reference: Amanova, Martin, Elster 2022, section 2.3.2, Algorithm 2; see `xai_lib.omig`.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter

ARRAYS = ("sums", "visits", "indices", "start", "end")


@dataclass(frozen=True, eq=False)
class Upsampled:
    """Sums over virtual images at every pixel of the full image; values in the unit of `Omig`'s maps.

    `indices` are the virtual images in it, `start` and `end` the midpoints of each before and after its path (`end` is
    NaN without OMIG). `mask` is where occlusion was measured; None is everywhere.
    """

    run: str  # hash of image, networks, parameters and seed
    methods: tuple[str, ...]
    sums: np.ndarray  # (H, W, methods, 2) float64: values, squares
    visits: np.ndarray  # (H, W) int32
    indices: np.ndarray  # (N,) int64
    start: np.ndarray  # (N,) float64
    end: np.ndarray  # (N,) float64
    mask: np.ndarray | None = None  # (H, W) bool

    def total(self, method: str = "OMIG") -> np.ndarray:
        """Sum of the values at each pixel, (H, W). Raises ValueError: the method was not computed."""
        return self.sums[:, :, self._index(method), 0]

    def count(self, method: str = "OMIG") -> np.ndarray:
        """Visits of each pixel by a method, (H, W): 0 for occlusion where it was not measured."""
        self._index(method)
        return self.visits if self.mask is None or method != "occlusion" else self.visits * self.mask

    def average(self, method: str = "OMIG", over: Literal["visits", "paper"] = "visits") -> np.ndarray:
        """Sum over number of visits, NaN where there was none; or over N as printed ("paper"). (H, W)."""
        if over not in ("visits", "paper"):
            raise ValueError(f"over: {over!r} is not 'visits' or 'paper'")
        if over == "paper":
            return self.total(method) / len(self.indices)
        count = self.count(method)
        return np.divide(self.total(method), count, out=np.full(count.shape, np.nan), where=count > 0)

    def standard_error(self, method: str = "OMIG") -> np.ndarray:
        """Of the mean over visits: sd of a visit over the root of their number, (H, W). NaN below two visits."""
        count = self.count(method).astype(float)
        count[count < 2] = np.nan
        squares = self.sums[:, :, self._index(method), 1]
        variance = np.maximum(squares - self.total(method) ** 2 / count, 0) / (count - 1)
        return np.sqrt(variance / count)

    def smoothed(self, method: str = "OMIG", sd_px: float = 7.0) -> np.ndarray:
        """`smoothed` of a method, (H, W)."""
        return smoothed(self.total(method), self.count(method), sd_px)

    def save(self, file: str | Path) -> None:
        """Write everything into a .npz file, in one step: a kill leaves the older one."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        arrays = {k: getattr(self, k) for k in ARRAYS} | ({} if self.mask is None else {"mask": self.mask})
        with temporary.open("wb") as stream:
            np.savez(stream, run=np.array(self.run), methods=np.array(self.methods), **arrays)
        temporary.replace(file)

    @classmethod
    def load(cls, file: str | Path) -> "Upsampled":
        """What `save` wrote. Raises ValueError: the file is damaged or another; FileNotFoundError: there is none."""
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {k: stored[k] for k in (*ARRAYS, *({"mask"} & set(stored.files)))}
                return cls(run=str(stored["run"]), methods=tuple(stored["methods"].tolist()), **arrays)
        except FileNotFoundError:
            raise
        except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"state: {file} is damaged or not a map of `upsample` ({error}); delete it") from error

    def _index(self, method: str) -> int:
        if method not in self.methods:
            raise ValueError(f"method: {method!r} was not computed, there are {', '.join(self.methods)}")
        return self.methods.index(method)

    def __add__(self, other: "Upsampled") -> "Upsampled":
        if self.run != other.run:
            raise ValueError("cannot add maps of different images, networks, parameters or seeds")
        if twice := set(self.indices.tolist()) & set(other.indices.tolist()):
            raise ValueError(f"cannot add maps that share virtual images, such as {min(twice)}")
        joined = {k: np.concatenate([getattr(self, k), getattr(other, k)]) for k in ("indices", "start", "end")}
        sums, visits = self.sums + other.sums, self.visits + other.visits
        return Upsampled(self.run, self.methods, sums, visits, **joined, mask=self.mask)


def neighbourhood(total: np.ndarray, visits: np.ndarray, sd_px: float = 7.0) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values and number of visits (H, W), both after a Gaussian of `sd_px` pixels; float32."""
    above, below = (gaussian_filter(part.astype(np.float32), sd_px, truncate=3) for part in (total, visits))
    return above, below


def smoothed(total: np.ndarray, visits: np.ndarray, sd_px: float = 7.0) -> np.ndarray:
    """Mean over the visits of a neighbourhood: Gaussian of the sum over that of the number (H, W); NaN without one."""
    above, below = neighbourhood(total, visits, sd_px)
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below > 1e-6)
