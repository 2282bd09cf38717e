"""One batch of `map_cases`: read, resized, explained and written by one process.

Usage::

    failures = explain_batch(Batch(function, part, path, start, (224, 224), "float32"))    # {index: why}

Whatever goes wrong with an image is that image's failure; only a store that cannot be written ends the run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xai_lib import map_store, records
from xai_lib.data import CaseDataset, images
from xai_lib.data.case import hashed_id


@dataclass(frozen=True, eq=False)
class BatchMaps:
    """What a function may return beside the maps (N, H, W): scores (N,) and completeness gaps (N,)."""

    maps: Tensor
    scores: Tensor
    gaps: Tensor


Function = Callable[[Tensor], Tensor | BatchMaps]


@dataclass(frozen=True, eq=False)
class Batch:
    """All that a process needs: the function, the cases, and where in which store their maps go."""

    function: Function
    part: CaseDataset
    path: Path
    start: int
    shape: tuple[int, int]
    dtype: str


def explain_batch(batch: Batch) -> dict[int, str]:
    """Read, resize, explain and write one batch; returns why images failed, by their index in the data set."""
    count, why = len(batch.part), dict[int, str]()
    x = torch.zeros((count, 1, *batch.shape))
    shapes = np.zeros((count, 2), np.int32)
    lengths = {"maps": (count, *batch.shape), "scores": (count,), "gaps": (count,)}
    into = {name: np.full(length, np.nan, np.float32) for name, length in lengths.items()}
    with _one_thread():
        for i in range(count):
            try:
                image = batch.part[i].image
                shapes[i], x[i] = image.shape[1:], images.resize(image, batch.shape)
            except Exception as error:  # whatever a file or its reader does, the other images go on
                why[i] = _reason(error, batch.part.table.iloc[i])
        _fill(batch, x, [i for i in range(count) if i not in why], into, why)
    done = np.array([i not in why for i in range(count)])
    map_store.write_batch(
        batch.path, batch.start, into.pop("maps").astype(batch.dtype), **into, shapes=shapes, done=done
    )
    return {batch.start + i: reason for i, reason in why.items()}


def _fill(batch: Batch, x: Tensor, rows: list[int], into: dict[str, np.ndarray], why: dict[int, str]) -> None:
    """Explain the images `rows` together, or one by one where that fails, to find the one that does."""
    try:
        found = _found(batch, x[rows]) if rows else {}
    except Exception as error:  # whatever the function does, the other images go on
        if len(rows) == 1:
            why[rows[0]] = _reason(error, batch.part.table.iloc[rows[0]])
        else:
            for row in rows:
                _fill(batch, x, [row], into, why)
        return
    for name, values in found.items():
        into[name][rows] = values


def _found(batch: Batch, x: Tensor) -> dict[str, np.ndarray]:
    """Maps, scores and gaps of the images, checked.

    Raises:
        ValueError: maps of another shape, or not finite; a peak that float16 cannot hold.
    """
    result = batch.function(x)
    nothing = torch.full((len(x),), torch.nan)
    both = result if isinstance(result, BatchMaps) else BatchMaps(torch.as_tensor(result), nothing, nothing)
    arrays = {name: getattr(both, name).detach().float().cpu().numpy() for name in ("maps", "scores", "gaps")}
    for name, expected in (("maps", (len(x), *batch.shape)), ("scores", (len(x),)), ("gaps", (len(x),))):
        if arrays[name].shape != expected:
            raise ValueError(f"function: {name} have shape {arrays[name].shape}, expected {expected}")
    if not np.isfinite(arrays["maps"]).all():
        raise ValueError("function: the map is not finite")
    peaks, limits = np.abs(arrays["maps"]).max((1, 2)), np.finfo(batch.dtype)
    if ((peaks > limits.max) | ((peaks > 0) & (peaks < limits.tiny))).any():
        raise ValueError(f"dtype: {batch.dtype} cannot hold a map whose peak is {peaks.max():.2g}; use float32")
    return arrays


def _reason(error: Exception, row: pd.Series) -> str:
    """An error as one line that names no file, no folder and no source: these may name a patient."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    names = [name for path in row.get("files", ()) for name in (str(path), Path(path).name)]
    for name in (*names, str(row["source"])):
        text = text.replace(name, hashed_id(row["source"]))
    return str(records.public_parameters({"why": text})["why"])


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread inside, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
