"""Small pictures of maps that take long to compute: shipped with the project, found in the cache, or computed.

Usage::

    found = stored_pictures("cdmam_pictures", key, compute, shipped=checkpoint_dir)      # compute() -> {name: (h, w)}

As `stored_tables` for tables: pictures are used only if they were made from the same key. They are kept in 8 bits.
"""

import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xai_lib import stored_tables
from xai_lib.config import cache_dir

Pictures = Mapping[str, NDArray[np.float32]]


def stored_pictures(
    name: str,
    key: Mapping[str, Any],
    compute: Callable[[], Pictures],
    shipped: Path | None,
    recompute: bool = False,
) -> dict[str, NDArray[np.float32]]:
    """Pictures made from `key`: shipped, cached, or computed and cached. NaN stays NaN."""
    wanted = stored_tables.digest(key)
    cached = cache_dir() / "pictures" / wanted / f"{name}.npz"
    for file in () if recompute else (*([shipped / f"{name}.npz"] if shipped else []), cached):
        if file.is_file() and (found := _fitting(file, wanted)) is not None:
            return found
    save_pictures(compute(), cached, wanted)
    return load_pictures(cached)[1]


def _fitting(file: Path, wanted: str) -> dict[str, NDArray[np.float32]] | None:
    """The pictures of a file if they were made from the wanted key; a damaged one is reported and not used."""
    try:
        digest, found = load_pictures(file)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("%s holds no pictures (%s); computing anew", file, error)
        return None
    return found if digest == wanted else None


def save_pictures(pictures: Pictures, file: Path, digest: str) -> None:
    """Write pictures in 8 bits: a value in steps of a 120th of the largest but extreme one; -128 is "never visited"."""
    packed: dict[str, NDArray[Any]] = {"digest": np.array(digest)}
    for name, values in pictures.items():
        step = float(np.nanquantile(np.abs(values), 0.999)) / 120 or 1.0
        whole = np.where(np.isnan(values), -128, np.clip(np.rint(values / step), -127, 127))
        packed |= {f"{name}|values": whole.astype(np.int8), f"{name}|step": np.array(step, np.float32)}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez_compressed(stream, **packed)  # type: ignore[arg-type]
    temporary.replace(file)


def load_pictures(file: Path) -> tuple[str, dict[str, NDArray[np.float32]]]:
    """Digest of the key and pictures, as `save_pictures` wrote them."""
    with np.load(file, allow_pickle=False) as stored:
        found = {}
        for name in [name.removesuffix("|values") for name in stored.files if name.endswith("|values")]:
            whole = stored[f"{name}|values"]
            found[name] = np.where(whole == -128, np.nan, whole * stored[f"{name}|step"]).astype(np.float32)
        return str(stored["digest"]), found
