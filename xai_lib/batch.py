"""Run notebooks headless: strict parameters, one subprocess each, nothing lost when a run fails or is stopped.

Usage::

    result = run_notebook("03", {"seed": 7}, profile="lab")
    jobs = [prepare("03", {"seed": seed}, output=f"outputs/seed-{seed}") for seed in range(4)]
    results = run_many(jobs, parallel=2)

A run works in a hidden folder beside its destination. When the last cell is done, the folder (executed notebook, record
and figures) takes the place of the earlier result; otherwise it becomes ``<stem>.failed`` and the earlier result stays.
Each run is a child process that starts the kernel and lives only as long as the pipe from its parent: however the
parent ends (Ctrl-C, kill, even kill -9), the child sees the pipe close and ends its kernel and itself.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from xai_lib import config, records
from xai_lib.notebooks import Notebook, NotebookError, code_cells, convert, find_notebook, read_notebook, source


@dataclass(frozen=True)
class Job:
    """A checked run: `parameters` have their declared types, the result goes to `folder`."""

    notebook: Notebook
    parameters: dict[str, Any]
    folder: Path
    data_dir: Path | None = None


@dataclass(frozen=True)
class Failure:
    """Where a run ended: the code cell (counted from 1; 0 when none had begun), its source, and the error."""

    cell: int
    source: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class RunResult:
    """Where a run's results lie; `failure` is None when every cell ran."""

    notebook: str
    folder: Path
    seconds: float
    record: Path | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class _Running:
    """A run in progress: its child process and its hidden folder."""

    job: Job
    work: Path
    process: subprocess.Popen[bytes]
    started: float


def prepare(
    notebook: str | Path,
    parameters: Mapping[str, object] | None = None,
    profile: str | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> Job:
    """Check a run before anything starts.

    Args:
        notebook: number, name or path, see `find_notebook`.
        parameters: values for parameters that the notebook declares.
        profile: smoke, lab or paper; None is the notebook's own default.
        output: folder that will hold the folder of results, see `config.output_dir`.
        data_dir: becomes XAI_DATA_DIR of the run.

    Raises:
        NotebookError: notebook or parameter unknown, a value of a wrong type.
        ValueError: unknown profile.
        OSError: `output` cannot be written, or `data_dir` is no folder.
    """
    found = read_notebook(find_notebook(notebook))
    stem = found.path.stem
    given = dict(parameters or {}) | ({} if profile is None else {"profile": profile})
    for name in given:
        if name not in found.parameters:
            raise NotebookError(f"{stem} has no parameter {name!r}; it has {', '.join(found.parameters) or 'none'}")
    if "output_dir" in given or "output_dir" not in found.parameters:
        raise NotebookError(f"{stem}: output_dir must be declared, and is set by the runner; use output (--output)")
    values = {name: convert(value, found.parameters[name], f"{stem}: parameter") for name, value in given.items()}
    if "profile" in values:
        config.profile(values["profile"])
    root = None if data_dir is None else Path(data_dir).expanduser().resolve()
    if root is not None and not root.is_dir():
        raise NotADirectoryError(f"data folder {root} does not exist")
    return Job(found, values, config.output_dir(output).resolve() / stem, root)


def run_notebook(
    notebook: str | Path,
    parameters: Mapping[str, object] | None = None,
    profile: str | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> RunResult:
    """Run one notebook; arguments and errors as in `prepare`. A failing cell is a `failure` in the result."""
    return run_many([prepare(notebook, parameters, profile, output, data_dir)])[0]


def run_many(
    jobs: Sequence[Job], parallel: int = 1, on_finish: Callable[[RunResult], None] | None = None
) -> list[RunResult]:
    """Run `jobs`, at most `parallel` at a time (with one thread each when `parallel` > 1), and return their results.

    A failed job does not stop the others. `on_finish` hears of each as it ends. When the caller is interrupted, all
    running jobs are ended, and their partial results kept as ``<stem>.failed``.

    Raises:
        ValueError: `parallel` below 1, or two jobs with the same folder.
    """
    if parallel < 1:
        raise ValueError(f"parallel: {parallel} is below 1")
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError("two runs of one notebook would write the same folder; give each its own output")
    waiting, running, results = list(jobs), dict[int, _Running](), dict[Path, RunResult]()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                slot = min(set(range(parallel)) - set(running))
                running[slot] = _start(waiting.pop(0), slot, single_thread=parallel > 1)
            time.sleep(0.1)
            for slot in [s for s, run in running.items() if run.process.poll() is not None]:
                run = running.pop(slot)
                results[run.job.folder] = result = _finish(run)
                if on_finish is not None:
                    on_finish(result)
    finally:
        for run in running.values():
            _stop(run)
    return [results[job.folder] for job in jobs]


def _start(job: Job, slot: int, single_thread: bool) -> _Running:
    """Start the child process of `job`; `slot` is the line of its progress bar."""
    _keep_abandoned(job.folder)
    work = job.folder.with_name(f".{job.folder.name}.{os.getpid()}.running")
    work.mkdir()
    values = job.parameters | {"output_dir": str(work)}
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "XAI_INTERACTIVE": "0",  # nobody moves a slider, also where a person's kernel started this run
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this interpreter, not one of the same name in the home folder
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])),
    }
    if single_thread:
        environment["OMP_NUM_THREADS"] = "1"
        values = ({"threads": 1} if "threads" in job.notebook.parameters else {}) | values
    if job.data_dir is not None:
        environment["XAI_DATA_DIR"] = str(job.data_dir)
    task = {
        "input": str(job.notebook.path),
        "output": str(work / job.notebook.path.name),
        "parameters": values,
        "bar": {"desc": job.folder.name, "position": slot, "leave": False, "disable": None, "dynamic_ncols": True},
    }
    with (work / "stderr.txt").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "xai_lib.batch", json.dumps(task)],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, and that ends the child
            stderr=stderr,
            cwd=job.notebook.path.parent,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the child in order
        )
    return _Running(job, work, process, time.monotonic())


def _finish(run: _Running) -> RunResult:
    """Put the result of an ended child process in its place."""
    run.process.communicate()  # closes the pipe
    seconds = time.monotonic() - run.started
    stem, folder = run.job.notebook.path.stem, run.job.folder
    executed, record = run.work / f"{stem}.ipynb", run.work / f"{stem}.record.json"
    failure = _failure(executed, run.work / "stderr.txt") if run.process.returncode else None
    if failure is None and record.exists():
        failure = _stamp(record, executed, run.job)
    if failure is not None:
        _move(run.work, _failed(folder))
        return RunResult(stem, _failed(folder), seconds, failure=failure)
    (run.work / "stderr.txt").unlink()
    _move(run.work, folder)
    return RunResult(stem, folder, seconds, folder / record.name if (folder / record.name).exists() else None)


def _stop(run: _Running) -> None:
    """End a running job; what it has so far is kept as a failed run."""
    try:
        run.process.communicate(timeout=10)  # closes the pipe, and the child ends itself and its kernel
    except subprocess.TimeoutExpired:
        run.process.kill()  # its kernel notices within a second
        run.process.wait()
    _move(run.work, _failed(run.job.folder))


def _failed(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.failed")


def _move(work: Path, folder: Path) -> None:
    """Let `work` take the place of `folder`."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _keep_abandoned(folder: Path) -> None:
    """Keep what a run left behind whose process was killed, as a failed run."""
    for work in folder.parent.glob(f".{folder.name}.*.running"):
        if not psutil.pid_exists(int(work.name.split(".")[-2])):
            _move(work, _failed(folder))


def _stamp(path: Path, executed: Path, job: Job) -> Failure | None:
    """Add to the record which code was run and how; a record that cannot be read is a failure."""
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in job.parameters.items() if n != "profile"}
    options = "".join(f" -p {name} {shlex.quote(text)}" for name, text in sorted(texts.items()))
    try:
        record = records.read(path)
        command = f"xai-lib run {executed.stem} --profile {record.profile}{options}"
        records.write(replace(record, command=command, notebook_sha256=read_notebook(executed).sha256), path)
    except records.RecordError as error:
        return Failure(0, "", f"RecordError: {error}")
    return None


def _failure(notebook: Path, stderr: Path) -> Failure:
    """Read from a partial notebook where it ended: in the last cell that had begun."""
    last = (stderr.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"])[-1]
    cells: list[dict[str, Any]] = []
    with suppress(NotebookError):  # the child ended before it wrote one, or while it did
        cells = code_cells(notebook)
    begun = [(n, c) for n, c in enumerate(cells, 1) if c["metadata"].get("papermill", {}).get("start_time")]
    if not begun:
        return Failure(0, "", last)
    number, cell = begun[-1]
    for output in cell["outputs"]:
        if output["output_type"] == "error":
            error = f"{output['ename']}: {output['evalue']}"
            return Failure(number, source(cell), error, "\n".join(output["traceback"]))
    return Failure(number, source(cell), last)  # no Python error: the kernel died


def _end_with_parent() -> None:
    """Wait until the parent's end of the pipe closes; then end the kernel, all it has started, and this process."""
    os.read(sys.stdin.fileno(), 1)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(130)


def _child(task: dict[str, Any]) -> int:
    """Run one notebook in this process; exit code 0 when every cell ran."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import papermill

    try:
        papermill.execute_notebook(
            task["input"].replace("{", "{{").replace("}", "}}"),  # papermill fills in braces
            task["output"].replace("{", "{{").replace("}", "}}"),
            parameters=task["parameters"],
            kernel_name="python3",
            language="python",
            progress_bar=task["bar"] | {"file": sys.stdout},
            stderr_file=sys.stderr,
        )
    except papermill.PapermillExecutionError:
        return 1  # the notebook says where and why
    return 0


if __name__ == "__main__":
    sys.exit(_child(json.loads(sys.argv[1])))
