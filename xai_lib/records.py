"""One JSON record per run: what was done, on what, with which figures, and what they say about the claims.

Usage::

    started = time.perf_counter()
    ...
    write(make(study="03_ultrasound_cam_pointing_game", ..., started=started), "03.record.json")
    record = read("03.record.json")

A record says nothing about who ran it and where: no host or user name, and no absolute path (`public_parameters`).
The file is stable: sorted keys, floats with six significant digits, NaN as null.
"""

import json
import math
import os
import platform
import re
import time
import tomllib
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from xai_lib.config import data_dir, repository_dir
from xai_lib.results import VERDICTS, Figure, Verdict

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "scikit-image", "pillow", "matplotlib")


class RecordError(ValueError):
    """A record cannot be written or read; the message names the file and the field."""


@dataclass(frozen=True)
class Record:
    """Everything one run leaves behind in numbers.

    `data` holds at least `name` and `fingerprint`, `checkpoint` (None without one) at least `name` and `sha256`.
    `verdicts` is keyed by claim id, `tables` holds rows as dicts, `created` is ISO 8601 in UTC.
    """

    study: str
    title: str
    profile: str
    parameters: dict
    seed: int
    data: dict
    checkpoint: dict | None
    figures: dict[str, Figure]
    verdicts: dict[str, Verdict]
    tables: dict[str, list[dict]]
    command: str
    versions: dict
    hardware: dict
    seconds: float
    notebook_sha256: str | None
    created: str
    schema: int


def make(
    *,
    study: str,
    title: str,
    profile: str,
    parameters: Mapping[str, Any],
    seed: int,
    data: Mapping[str, Any],
    figures: Mapping[str, Figure],
    started: float,
    verdicts: Mapping[str, Verdict] | None = None,
    tables: Mapping[str, list[dict]] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    command: str = "",
    notebook_sha256: str | None = None,
) -> Record:
    """Build a record, and fill in versions, hardware, wall time, date and schema.

    `started` is ``time.perf_counter()`` at the start of the run.

    Raises:
        ValueError: `started` lies in the future (most likely ``time.time()``).
    """
    seconds = time.perf_counter() - started
    if seconds < 0:
        raise ValueError(f"started: {started} lies in the future, expected time.perf_counter() from the run's start")
    return Record(
        study=study,
        title=title,
        profile=profile,
        parameters=public_parameters(parameters),
        seed=seed,
        data=public_parameters(data),
        checkpoint=None if checkpoint is None else public_parameters(checkpoint),
        figures=dict(figures),
        verdicts=dict(verdicts or {}),
        tables=dict(tables or {}),
        command=_public_text(command),
        versions=versions(),
        hardware=hardware(),
        seconds=round(seconds, 1),
        notebook_sha256=notebook_sha256,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        schema=SCHEMA_VERSION,
    )


def versions() -> dict[str, str]:
    """Versions of Python, of `xai_lib`, and of the packages that the figures depend on."""
    return {"python": platform.python_version(), "xai_lib": _own_version()} | {
        p: metadata.version(p) for p in _PACKAGES
    }


def _own_version() -> str:
    """Version of this library: of the installed package, else of the checkout's pyproject.toml."""
    try:
        return metadata.version("xai-lib")
    except metadata.PackageNotFoundError:
        project = repository_dir() / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.is_file() else "unknown"


def hardware() -> dict[str, str | int | float | None]:
    """Processor, cores, threads in use, memory and GPU; nothing that names the machine or its user."""
    import torch  # takes seconds, and reading a record does not need it

    info = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else []
    names = getattr(os, "sysconf_names", {})
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_PHYS_PAGES" in names else None
    return {
        "system": platform.system(),
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": None if pages is None else round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def public_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of `parameters` in which no text holds an absolute path, at any depth.

    A path below the data folder, the checkout or the home folder becomes relative to it; any other keeps only its
    last part. `pathlib` paths become text.
    """
    return {str(key): _public(value) for key, value in parameters.items()}


def _public(value: Any) -> Any:
    """`value` without absolute paths: dicts and sequences are walked, text and paths are shortened."""
    if isinstance(value, Mapping):
        return public_parameters(value)
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if not isinstance(value, str | PurePath):
        return value
    return _public_text(str(value), whole=True)


def _public_text(text: str, whole: bool = False) -> str:
    """`text` with the absolute paths in it shortened; `whole`: it may be one path, with spaces in it."""
    start = r"(?<![\w.:/~-])"  # not inside a relative path or an address
    for folder in (data_dir(), repository_dir(), Path.home()):
        if folder is not None and len(folder.absolute().parts) > 1:
            text = re.sub(start + re.escape(str(folder.absolute())) + "/", "", text)
    if whole and text.startswith(("/", "~", "../")):
        return PurePath(text).name
    path = start + r"(?:~|\.\.)?/[\w.~+@-]+/[^\s'\"()<>|,;]*"
    return re.sub(path, lambda match: PurePath(match.group()).name, text)


def _plain(value: Any, where: str) -> Any:
    """`value` as JSON has it: numpy numbers to Python, floats to six digits, NaN and infinity to None, no paths."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, str | PurePath):
        return _public_text(str(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise RecordError(f"{where}: a {type(value).__name__} cannot be written to a record")


def _typed(value: Any, expected: Any, where: str) -> Any:
    """`value` from JSON as the type `expected`, checked at every depth; `where` names file and field in the error."""
    origin, inside = get_origin(expected), get_args(expected)
    if origin is types.UnionType:  # only "X | None" occurs
        return None if value is None else _typed(value, inside[0], where)
    if is_dataclass(expected):
        return _dataclass(value, expected, where)
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, inside[1], f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_typed(item, inside[0], f"{where}[{i}]") for i, item in enumerate(value)]
    kind = origin or expected
    if kind is float and value is None:
        return math.nan
    if isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool):
        return float(value) if kind is float else value
    raise RecordError(f"{where}: is {value!r:.60}, expected {kind.__name__}")


def _dataclass(value: Any, expected: Any, where: str) -> Any:
    """`value`, a JSON object with exactly the fields of the dataclass `expected`, as that dataclass."""
    if not isinstance(value, dict):
        raise RecordError(f"{where}: is {value!r:.60}, expected an object")
    names = {f.name for f in fields(expected)}
    for problem, found in (("is missing", names - set(value)), ("is not a known field", set(value) - names)):
        if found:
            raise RecordError(f"{where}.{min(found)}: {problem}")
    hints = get_type_hints(expected)
    return expected(**{name: _typed(value[name], hints[name], f"{where}.{name}") for name in value})


def _parsed(value: Any, where: str) -> Record:
    """`value` from JSON as a Record; RecordError names the field that is wrong."""
    if isinstance(value, dict) and value.get("schema") != SCHEMA_VERSION:
        raise RecordError(f"{where}: schema: is {value.get('schema')!r}, this version reads {SCHEMA_VERSION}")
    record: Record = _typed(value, Record, f"{where}: record")
    for name, keys in (("data", ("name", "fingerprint")), ("checkpoint", ("name", "sha256"))):
        part = getattr(record, name)
        for key in keys if part is not None else ():
            if not isinstance(part.get(key), str):
                raise RecordError(f"{where}: record.{name}.{key}: is {part.get(key)!r:.60}, expected str")
    for claim, verdict in record.verdicts.items():
        if verdict.verdict not in VERDICTS:
            raise RecordError(f"{where}: record.verdicts.{claim}.verdict: is {verdict.verdict!r}, expected {VERDICTS}")
        if verdict.claim != claim:
            raise RecordError(f"{where}: record.verdicts.{claim}.claim: is {verdict.claim!r}, expected {claim!r}")
    try:
        datetime.fromisoformat(record.created)
    except ValueError as error:
        raise RecordError(f"{where}: record.created: is {record.created!r:.60}, expected an ISO 8601 date") from error
    return record


def write(record: Record, path: str | Path) -> Path:
    """Write `record` to `path` in one step: another reader sees the older file or the new one, never a part.

    Raises:
        RecordError: a field has a wrong type, or the file cannot be written (full disk, no permission). An older
            file is then untouched, and no temporary file is left.
    """
    path = Path(path)
    plain = _plain(asdict(record), f"{path}: record")
    _parsed(plain, str(path))
    text = json.dumps(plain, indent=1, sort_keys=True, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RecordError(f"{path}: the record cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # a failure to clean up must not hide the error that led here
            temporary.unlink(missing_ok=True)
    return path


def read(path: str | Path) -> Record:
    """Read and check a record.

    Raises:
        RecordError: no such file, not JSON (truncated), another schema version, or a field that is missing, unknown
            or of a wrong type; the message names file and field.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: the record cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RecordError(f"{path}: is not JSON, perhaps truncated: {error}") from error
    return _parsed(value, str(path))
