"""What a worker does for a sweep: run one notebook, once, and answer with how it ended.

Usage::

    answer = run_task(task_of(run, sweep="4f1c", allowed_deaths=5))      # {"seconds": 12.3, "failure": None}

A task and its answer are plain data, because the worker may be on another machine that shares the folder of results.
"""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xai_lib import batch, records
from xai_lib.sweep_grid import Run

_FULL = 2**20  # a disk with fewer bytes left is called full


def finished(run: Run) -> bool:
    """Whether the record of `run` is in place and was made by the notebook's code as it is now."""
    return _made_by(run.folder, run.job.notebook.sha256)


def task_of(run: Run, sweep: str, allowed_deaths: int) -> dict[str, Any]:
    """What a worker has to know of `run`; `sweep` is a name that no other sweep has."""
    return {
        "notebook": str(run.job.notebook.path),
        "sha256": run.job.notebook.sha256,
        "parameters": run.job.parameters,
        "folder": str(run.folder),
        "data_dir": None if run.job.data_dir is None else str(run.job.data_dir),
        "sweep": sweep,
        "allowed_deaths": allowed_deaths,
    }


def run_task(task: dict[str, Any]) -> dict[str, Any]:
    """Run one notebook on a worker; returns its seconds, and its failure as a dict or None.

    A task can come twice, when its worker dies before it could answer: a finished run is not repeated.
    """
    folder = Path(task["folder"])
    started = time.monotonic()
    try:
        failure = _run(task, folder)
        _tries(folder).unlink(missing_ok=True)
        if failure is None:
            for other in folder.parent.iterdir():  # what earlier tries of this run have left
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
    except (OSError, ValueError) as error:
        failure = batch.Failure(0, "", f"{type(error).__name__}: {error}")
    return {"seconds": time.monotonic() - started, "failure": None if failure is None else asdict(failure)}


def _run(task: dict[str, Any], folder: Path) -> batch.Failure | None:
    """Run the notebook of `task` unless it is finished."""
    if _made_by(folder, task["sha256"]):
        return None
    job = batch.prepare(task["notebook"], task["parameters"], None, folder.parent, task["data_dir"])
    if job.notebook.sha256 != task["sha256"]:
        return batch.Failure(0, "", "NotebookError: the notebook is not the one that the sweep was started with")
    deaths = _begin(folder, task["sweep"])
    if deaths > task["allowed_deaths"]:
        return batch.Failure(0, "", f"KilledWorker: its worker died {deaths} times, perhaps for lack of memory")
    result = batch.run_many([job])[0]
    failure = result.failure
    if failure is None and result.record is None:
        failure = batch.Failure(0, "", f"RecordError: the notebook left no {_record(folder).name}")
    if failure is not None and shutil.disk_usage(folder.parent).free < _FULL:
        shutil.rmtree(result.folder, ignore_errors=True)  # so that the others can go on
        last = "" if failure.error == "no message" else f" ({failure.error})"
        return batch.Failure(failure.cell, failure.source, f"OSError: no space left on the disk of the results{last}")
    return failure


def _tries(folder: Path) -> Path:
    """File with a line for each time that a run was begun and has not ended."""
    return folder.with_name(f".{folder.name}.tries")


def _begin(folder: Path, sweep: str) -> int:
    """Note that a run begins; returns how often this sweep had begun it before, each time losing the worker."""
    with _tries(folder).open("a+") as file:
        file.write(f"{sweep}\n")
        file.seek(0)
        return file.read().split().count(sweep) - 1


def _made_by(folder: Path, sha256: str) -> bool:
    try:
        return records.read(_record(folder)).notebook_sha256 == sha256
    except records.RecordError:
        return False


def _record(folder: Path) -> Path:
    return folder / f"{folder.name}.record.json"


def write_in_place(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, which then takes its place; none is left when it fails.

    Raises:
        OSError: the disk is full, or the folder cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
