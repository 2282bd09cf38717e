"""Sweeps: the runs of a grid as tasks on Dask, one kernel per task, that survive what happens in a night.

Usage::

    runs = read_grid("grid.yml", out)                          # see `sweep_grid`
    outcomes = run_sweep(runs, out, workers=4)                 # or scheduler="tcp://node7:8786"
    failed = [o for o in outcomes if o.failure]

Each run has its folder OUT/<cell>/seed-<seed>/<notebook>/, which `batch` puts in place in one step when the last cell
is done. A run whose record lies there, made by the same code of the notebook, is finished and is not repeated; other
parameters, another profile or another data folder have another folder. So a sweep that was stopped, however, is
continued by the same command.

The kernel of a task is a child of a worker and ends with it (`batch`). A task whose worker dies is given to another
worker; a run that has cost more than `ALLOWED_DEATHS` workers is a failure. Local workers end with this process.

**Another machine.** ``scheduler`` is the address of a running Dask scheduler. Its workers must have this library, the
same notebooks, and OUT and the data folder under the same path (a shared folder); give them one thread each
(``dask worker ADDRESS --nthreads 1``), because a kernel has the cores to itself. A scheduler counts the death of a
worker against every task that waited there, a run only its own (`sweep_task`): start the scheduler with a high
``DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES``. A worker that has lost the scheduler finishes its run, and the record
counts.

**SLURM**, through ``pip install dask-jobqueue``, from a session on the login node that stays open::

    import dask
    from dask_jobqueue import SLURMCluster
    dask.config.set({"distributed.scheduler.allowed-failures": 1000})
    cluster = SLURMCluster(cores=1, processes=1, memory="8GB", walltime="04:00:00", job_cpu=4,
                           job_script_prologue=["export OMP_NUM_THREADS=4"])
    cluster.adapt(maximum_jobs=20)                     # jobs come and go with the waiting runs
    print(cluster.scheduler_address)                   # xai-lib sweep GRID.yml --scheduler tcp://...

A job that reaches its wall time is a worker that dies: its run starts again in another job.
"""

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from xai_lib import batch, records
from xai_lib.sweep_grid import Run
from xai_lib.sweep_task import finished, run_task, task_of, write_in_place

if TYPE_CHECKING:
    from distributed import Client, Future

ALLOWED_DEATHS = 5
_POLL_S = 0.2
_NO_WORKER_S = 600


class SweepRunning(OSError):
    """Another sweep writes to the folder."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `kept`: it was finished before this sweep; `failure` is None for a finished run."""

    run: Run
    seconds: float = 0.0
    kept: bool = False
    failure: batch.Failure | None = None


@dataclass(frozen=True)
class Progress:
    """State of a sweep: for each run (in their order) waiting, running, done, kept or failed.

    `ended` are the runs that ended since the last call, `workers` is how many there are now.
    """

    states: list[str]
    ended: list[Outcome]
    workers: int
    seconds: float


def run_sweep(
    runs: Sequence[Run],
    out: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    allowed_deaths: int = ALLOWED_DEATHS,
) -> list[Outcome]:
    """Run what is not finished, and return the outcome of every run in the order of `runs`.

    OUT/sweep.json says at the start what is to be run, and at the end how each run ended.

    Args:
        runs: of `read_grid`.
        out: the folder that they were read for.
        workers: local processes with one thread each (default: one per core).
        scheduler: address of a running Dask scheduler, instead of `workers`.
        watch: is told the progress several times a second.
        allowed_deaths: of workers, that a run may cost and still be tried again; for local workers.

    Raises:
        SweepRunning: another sweep holds the folder (an OSError).
        ValueError: both `workers` and `scheduler`, or `workers` below 1.
        OSError: `out` cannot be written, or the scheduler is not there or was lost.
    """
    if workers is not None and (scheduler is not None or workers < 1):
        raise ValueError(f"workers: {workers}; expected at least 1, and either workers or scheduler")
    out = Path(out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        outcomes: dict[int, Outcome] = {
            number: Outcome(run, kept=True) for number, run in enumerate(runs) if finished(run)
        }
        _describe(out, runs, outcomes)
        todo = [number for number in range(len(runs)) if number not in outcomes]
        if todo:
            from dask.system import CPU_COUNT

            count = min(len(todo), workers or CPU_COUNT)
            with _client(count, scheduler) as client:
                _work_off(client, runs, todo, outcomes, watch, allowed_deaths)
        _describe(out, runs, outcomes)
    return [outcomes[number] for number in range(len(runs))]


@contextmanager
def _locked(out: Path) -> Iterator[IO[str]]:
    """Hold the folder; the lock ends with this process, however that ends."""
    import fcntl  # not on Windows

    with (out / ".sweep.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepRunning(f"{out}: another sweep is running in this folder; wait for it or name another") from None
        yield file


@contextmanager
def _client(count: int, scheduler: str | None) -> Iterator["Client"]:
    """Client of the scheduler, or of a local cluster that ends with the block, and with this process."""
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        with Client(scheduler, set_as_default=False) as client:
            yield client
        return
    single = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    lasting = {
        "distributed.scheduler.allowed-failures": 1000,  # `sweep_task` counts the deaths of a run
        "distributed.deploy.lost-worker-timeout": "24h",  # a dead worker that is not back by then is given up for good
        "distributed.nanny.pre-spawn-environ": single,  # without MALLOC_TRIM_THRESHOLD_, see `map_cases.local_cluster`
    }
    with (
        dask.config.set(lasting),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # the kernels need the memory, and they are not the worker
            dashboard_address="127.0.0.1:0",  # None would take the port 8787, and warn where it is taken
            scheduler_kwargs={"dashboard": False},
            local_directory=tempfile.gettempdir(),
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_worker_callbacks(_no_bars)
        yield client


def _no_bars() -> None:
    """Take the terminal from a local worker: papermill's bars would run through the table."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _work_off(
    client: "Client",
    runs: Sequence[Run],
    todo: Sequence[int],
    outcomes: dict[int, Outcome],
    watch: Callable[[Progress], None],
    allowed_deaths: int,
) -> None:
    """Add the outcome of every run in `todo` to `outcomes`."""
    started, sweep = time.monotonic(), uuid4().hex[:8]
    futures: dict[str, tuple[int, Future]] = {}
    for number in todo:
        task = task_of(runs[number], sweep, allowed_deaths)
        key = f"run-{sweep}-{number}"
        futures[key] = number, client.submit(run_task, task, key=key, pure=False)
    seen = started
    while futures:
        time.sleep(_POLL_S)
        ended = []
        for key, (number, future) in list(futures.items()):
            if future.done():
                ended.append(_outcome(runs[number], future))
                outcomes[number] = ended[-1]
                del futures[key]
        threads = client.nthreads()
        seen = time.monotonic() if threads or client.cluster is None else seen
        if time.monotonic() - seen > _NO_WORKER_S:  # jobs of a queue may take longer, local processes do not
            raise ChildProcessError(f"no worker has come back for {_NO_WORKER_S} s; start the sweep again")
        held = [key for worker, keys in client.processing().items() for key in list(keys)[: threads.get(worker, 0)]]
        active = {futures[key][0] for key in held if key in futures}
        states = [_state(number, outcomes, active) for number in range(len(runs))]
        watch(Progress(states, ended, len(threads), time.monotonic() - started))


def _state(number: int, outcomes: dict[int, Outcome], active: set[int]) -> str:
    if number not in outcomes:
        return "running" if number in active else "waiting"
    outcome = outcomes[number]
    return "failed" if outcome.failure else "kept" if outcome.kept else "done"


def _outcome(run: Run, future: "Future") -> Outcome:
    """How the task of `run` ended; a task without an answer is a failure as well."""
    from distributed import KilledWorker

    try:
        answer = future.result()
    except KilledWorker as error:
        died = f"its worker died {error.allowed_failures + 1} times, perhaps for lack of memory"
        return Outcome(run, failure=batch.Failure(0, "", f"KilledWorker: {died}"))
    except Exception as error:  # of the transport, the worker's environment, or the scheduler
        return Outcome(run, failure=batch.Failure(0, "", f"{type(error).__name__}: {error}"))
    failure = None if answer["failure"] is None else batch.Failure(**answer["failure"])
    return Outcome(run, answer["seconds"], failure=failure)


def _describe(out: Path, runs: Sequence[Run], outcomes: dict[int, Outcome]) -> None:
    """Write OUT/sweep.json: every run with its cell, parameters and seed, and how it ended; no absolute path."""
    rows = []
    for number, run in enumerate(runs):
        row: dict[str, object] = {
            "cell": run.cell,
            "notebook": run.notebook,
            "notebook_sha256": run.job.notebook.sha256,
            "parameters": records.public_parameters(run.parameters),
            "seed": run.seed,
            "folder": str(run.folder.relative_to(out)),
            "state": _state(number, outcomes, set()),
        }
        failure = outcomes[number].failure if number in outcomes else None
        if failure is not None:
            row["failure"] = {"cell": failure.cell, "error": failure.error}
        rows.append(row)
    write_in_place(out / "sweep.json", lambda path: path.write_text(json.dumps({"runs": rows}, indent=1) + "\n"))
