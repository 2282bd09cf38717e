"""Attribution maps of a whole data set in one chunked Zarr store.

Usage::

    store = open_maps("busi.zarr")
    store.maps[3]                               # (H, W), read from the disk now
    store.maps[store.row("busi/benign (4)")]    # by the source of a case
    store.scores, store.gaps, store.done        # (N,)
    store.attributes["checkpoint"]              # how the maps were made: data, method, options, checkpoint, versions

The store is Zarr format 3, so other languages read it too. Every array has one chunk for each batch of images, with a
checksum; `done` is written last, so a batch counts only when all of it is there. A store names no patient and no file:
a case is known by the first 12 hex digits of the sha256 of its source (`data.case.hashed_id`).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from xai_lib.data.case import hashed_id

FORMAT = 1
ARRAYS: dict[str, tuple[str, Any, tuple[int, ...]]] = {  # type, value where nothing is, shape beside the images
    "scores": ("float32", np.nan, ()),
    "gaps": ("float32", np.nan, ()),
    "shapes": ("int32", 0, (2,)),
    "done": ("bool", False, ()),
}
DTYPES = ("float32", "float16")


class MapStoreError(ValueError):
    """A store of maps that cannot be used; the message names it and what is wrong."""


@dataclass(frozen=True, eq=False)
class MapStore:
    """Maps of N images and what is known about them.

    `maps` (N, H, W) is read chunk by chunk when it is indexed; NaN where there is no map. `scores` are the target's
    logits and `gaps` the completeness gaps, NaN where the function gave none. `shapes` are rows and columns of each
    image before it was resized to the maps' size. `failures` says why an image has no map, by its index. The versions
    among the `attributes` are those of the run that made the store.
    """

    path: Path
    maps: zarr.Array  # (N, H, W)
    ids: tuple[str, ...]
    scores: np.ndarray  # (N,)
    gaps: np.ndarray  # (N,)
    shapes: np.ndarray  # (N, 2)
    done: np.ndarray  # (N,), bool
    failures: dict[int, str]
    attributes: dict[str, Any]

    def row(self, source: str) -> int:
        """Index of the case with this source.

        Raises:
            ValueError: it is not in the store.
        """
        wanted = hashed_id(source)
        if wanted not in self.ids:
            raise ValueError(f"source: {source!r} is none of the {len(self.ids)} cases of {self.path}")
        return self.ids.index(wanted)


def open_maps(path: str | Path) -> MapStore:
    """Open a store to read; the maps stay on the disk.

    Raises:
        MapStoreError: it is not a store of maps, of another format, incomplete or damaged.
    """
    path = Path(path)
    group = _group(path)
    try:
        small = {name: np.asarray(group[name][:]) for name in ARRAYS}
        ids = tuple(str(i) for i in group["ids"][:])
    except Exception as error:  # zarr has no common class for what a damaged chunk raises
        raise MapStoreError(f"{path}: a chunk is damaged ({error}); make the maps again to repair it") from error
    attributes = dict(group.attrs)
    failures = {int(i): why for i, why in attributes.pop("failures").items() if not small["done"][int(i)]}
    return MapStore(path=path, maps=group["maps"], ids=ids, **small, failures=failures, attributes=attributes)


def prepare(
    path: Path, ids: Sequence[str], shape: tuple[int, int], batch: int, dtype: str, attributes: Mapping[str, Any]
) -> None:
    """Make an empty store, or see that the one at `path` was made in the same way.

    Args:
        path: of the store.
        ids: of the cases, in order.
        shape: rows and columns of a map.
        batch: images in a chunk.
        dtype: "float32" or "float16".
        attributes: plain JSON: all that the maps depend on. `versions` may differ from those in a store.

    Raises:
        MapStoreError: something else is there, or a store of other maps; the message names the first difference.
        ValueError, TypeError: an unknown dtype, a batch below 1, or attributes that JSON cannot hold.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is unknown, expected one of {', '.join(DTYPES)}")
    if batch < 1:
        raise ValueError(f"batch: {batch} is below 1")
    own: dict[str, Any] = {
        "map_shape": list(shape),
        "batch": batch,
        "dtype": dtype,
        "cases": len(ids),
        "order": hashed_id("".join(ids)),
    }
    wanted = json.loads(json.dumps({**attributes, **own}))
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        _refuse_others(path, dict(_group(path).attrs), wanted)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # a kill leaves no half-made store
    group: Any = zarr.open_group(str(temporary), mode="w", zarr_format=3)
    group.attrs.update({**wanted, "format": FORMAT, "failures": {}})
    kinds = {"maps": (dtype, np.nan, shape), **ARRAYS}
    for name, (kind, fill, rest) in kinds.items():
        group.create_array(
            name,
            shape=(len(ids), *rest),
            chunks=(min(batch, len(ids)), *rest),
            dtype=kind,
            fill_value=fill,
            compressors=ZstdCodec(level=1, checksum=True),
        )
    names = group.create_array("ids", shape=(len(ids),), chunks=(len(ids),), dtype="str")
    names[:] = np.array(list(ids), dtype=object)
    os.replace(temporary, path)


def batches_left(path: Path) -> list[tuple[int, int]]:
    """First and last + 1 image of each batch of which an image has no map, or a chunk is missing or damaged."""
    group = _group(path)
    count, batch = group["maps"].shape[0], group.attrs["batch"]
    batches = [(start, min(start + batch, count)) for start in range(0, count, batch)]
    return [(start, stop) for start, stop in batches if not _whole(group, start, stop)]


def write_batch(path: Path, start: int, maps: np.ndarray, **small: np.ndarray) -> None:
    """Write a whole batch: maps (B, H, W), and each of `ARRAYS` (B, ...); `done` last.

    Raises:
        OSError: the disk is full or the store cannot be written.
    """
    group: Any = zarr.open_group(str(path), mode="r+", zarr_format=3)
    rows = slice(start, start + len(maps))
    for name, values in {"maps": maps, **{name: small[name] for name in ARRAYS}}.items():
        group[name][rows] = values


def write_failures(path: Path, failures: Mapping[int, str]) -> None:
    """Say why images have no map; replaces what was said before."""
    group = zarr.open_group(str(path), mode="r+", zarr_format=3)
    group.attrs.update({"failures": {str(i): why for i, why in sorted(failures.items())}})


def _group(path: Path) -> Any:
    """The zarr group, if it is one of ours."""
    try:
        group: Any = zarr.open_group(str(path), mode="r", zarr_format=3)
    except Exception as error:  # not found, an array, no JSON: a class of its own each
        raise MapStoreError(f"{path}: not a store of maps ({type(error).__name__})") from error
    if group.attrs.get("format") != FORMAT:
        raise MapStoreError(f"{path}: format is {group.attrs.get('format')!r}, this version reads {FORMAT}")
    lacking = [name for name in ("maps", "ids", *ARRAYS) if name not in group]
    if lacking:
        raise MapStoreError(f"{path}: the array {lacking[0]!r} is missing")
    lengths = {name: group[name].shape[0] for name in ("maps", "ids", *ARRAYS)}
    wrong = [name for name, length in lengths.items() if length != group.attrs.get("cases")]
    if wrong:
        raise MapStoreError(f"{path}: {wrong[0]!r} has {lengths[wrong[0]]} rows, expected {group.attrs.get('cases')}")
    return group


def _whole(group: Any, start: int, stop: int) -> bool:
    """Whether all images of a batch have a map that can be read."""
    rows = slice(start, stop)
    try:
        if not np.asarray(group["done"][rows]).all():
            return False
        maps, *_ = [group[name][rows] for name in ("maps", "scores", "gaps", "shapes")]
    except Exception:  # a damaged chunk: zarr has no common class
        return False
    return bool(np.isfinite(maps).all())


def _refuse_others(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise for the first attribute in which the store differs from what is wanted."""
    theirs, ours = _flat(found), _flat(wanted)
    for name in sorted(set(theirs) | set(ours), key=lambda n: (n in ("data.fingerprint", "order"), n)):  # hashes last
        if name.split(".")[0] in ("versions", "failures", "format") or theirs.get(name) == ours.get(name):
            continue
        raise MapStoreError(
            f"{path}: its maps were made with {name} {theirs.get(name)!r}, not {ours.get(name)!r}; give another name "
            "for the store, or remove it"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, Mapping) else {f"{prefix}{name}": item}
    return flat
