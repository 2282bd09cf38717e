"""Tables that take long to compute: shipped with the project, found in the cache, or computed.

Usage::

    key = {"checkpoint": card["sha256"], "data": dataset.fingerprint, "setup": asdict(setup)}
    frame = table("mammogram_scores", key, compute, shipped=checkpoint_dir)      # compute() -> DataFrame

A stored table is used only if it was made from the same `key`, which says all that its figures depend on. The key lies
beside the table as JSON. Figures are kept to six significant digits.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from xai_lib.config import cache_dir


def digest(key: Mapping[str, Any]) -> str:
    """Name of a key: 16 hex digits.

    Raises:
        TypeError: the key holds what JSON cannot.
    """
    return sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def table(
    name: str,
    key: Mapping[str, Any],
    compute: Callable[[], pd.DataFrame],
    shipped: str | Path | None = None,
    recompute: bool = False,
) -> pd.DataFrame:
    """The table `name` made from `key`: shipped, cached, or computed and cached.

    Args:
        name: of the file, without ending.
        key: all that the figures depend on, as plain JSON.
        compute: makes the table.
        shipped: folder with ``<name>.csv`` and ``<name>.json``; None looks in the cache only.
        recompute: compute although a stored table fits.

    Returns:
        The table as it is read from a file, also when it was just computed.
    """
    wanted = digest(key)
    cached = cache_dir() / "tables" / wanted
    for folder in () if recompute else ((Path(shipped), cached) if shipped else (cached,)):
        if _is_key(folder / f"{name}.json", wanted):
            return pd.read_csv(folder / f"{name}.csv")
    frame = compute()
    save(frame, name, key, cached)
    return pd.read_csv(cached / f"{name}.csv")


def save(frame: pd.DataFrame, name: str, key: Mapping[str, Any], folder: str | Path) -> None:
    """Write a table and its key; the key last, so that a table without its key counts as not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = StringIO()
    frame.to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    document = json.dumps({"digest": digest(key), "key": dict(key)}, indent=1, sort_keys=True) + "\n"
    (folder / f"{name}.json").unlink(missing_ok=True)
    for file, content in ((f"{name}.csv", text.getvalue()), (f"{name}.json", document)):
        temporary = folder / f".{file}.{os.getpid()}.tmp"
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, folder / file)


def _is_key(path: Path, wanted: str) -> bool:
    """Whether the key at `path` is the wanted one; a damaged one is reported and not used."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["digest"] == wanted and path.with_suffix(".csv").is_file()
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError) as error:
        logging.getLogger(__name__).warning("%s is no key of a stored table (%s); computing anew", path, error)
        return False
