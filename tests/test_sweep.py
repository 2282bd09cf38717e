import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster
from sweep_notebooks import counted, write_study

from xai_lib import batch, sweep, sweep_task
from xai_lib.sweep_grid import read_grid

COMMAND = "import typer; from xai_lib.cli.sweep import sweep; typer.run(sweep)"


@pytest.fixture
def command():
    """Start the command; what a test leaves of it is ended."""
    started = []
    yield lambda *words, before=(): started.append(start(*words, before=before)) or started[-1]
    for process in started:
        process.kill()


def start(*words, before=()):
    environment = os.environ | {"PYTHONPATH": str(Path(batch.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}
    words = [*before, sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def busy_worker(process):
    """A worker of the command `process` that runs a kernel, with all that is below it; None where there is none."""
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # a kernel that ends just now
            below = child.children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline()) and len(below) >= 2:
                return [child, *below]
    return None


def kill_a_worker(process, log):
    """SIGKILL to a worker in the middle of a run; its kernel must end as well."""
    begun = counted(log).total()
    found = []
    wait_for(lambda: counted(log).total() > begun and found.append(busy_worker(process)) is None and found[-1])
    family = found[-1]
    family[0].kill()
    wait_for(lambda: not any(map(alive, family)), 60)


@pytest.mark.slow
def test_a_sweep_survives_dead_workers_and_its_own_death(tmp_path, write_notebook, command):
    notebook = write_study(write_notebook, tmp_path / "03_tiny.ipynb", pause=0.3)
    grid, out = tmp_path / "grid.yml", tmp_path / "out"
    betas = [k / 10 for k in range(8)]
    grid.write_text(f"notebooks: [{notebook}]\nparameters: {{beta: {betas}}}\nseeds: [0, 1, 2]\n")
    runs = read_grid(grid, out)
    assert len(runs) == 24
    log, started = tmp_path / "log", tmp_path / "log.started"

    first = command(grid, "--out", out, "--workers", 2)
    for finished in (3, 6):
        wait_for(lambda finished=finished: counted(log).total() >= finished)
        kill_a_worker(first, started)
    wait_for(lambda: counted(log).total() >= 11)
    with pytest.raises(sweep.SweepRunning, match="out: another sweep is running in this folder"):
        sweep.run_sweep(runs, out)
    family = psutil.Process(first.pid).children(recursive=True)
    assert len(family) >= 3  # the workers at least, and one of their runs
    first.kill()
    first.communicate(timeout=60)  # its workers and kernels let go of the pipe
    wait_for(lambda: not any(map(alive, family)), 60)
    before = {run.folder: records_of(run) for run in runs if sweep.finished(run)}
    assert 7 <= len(before) < 24

    second = command(grid, "--out", out, "--workers", 2)
    text, _ = second.communicate(timeout=900)
    assert second.returncode == 0, text
    assert f"{24 - len(before)} runs done, {len(before)} kept from before, 0 failed" in text
    assert all(map(sweep.finished, runs))
    assert {folder: records_of(run) for run in runs if (folder := run.folder) in before} == before
    counts = counted(log)
    keys = {run.folder: (run.parameters["beta"], run.seed) for run in runs}
    assert all(counts[keys[folder]] == 1 for folder in before)
    assert sum(counts.values()) <= 24 + 4  # a run whose last cell had ended, but not the run, may be there twice
    for run in runs:
        assert [path.name for path in run.folder.parent.iterdir() if ".tries" not in path.name] == ["03_tiny"]
    rows = json.loads((out / "sweep.json").read_text())["runs"]
    assert {row["state"] for row in rows} == {"done", "kept"} and str(tmp_path) not in (out / "sweep.json").read_text()
    assert len((out / "summary.csv").read_text().splitlines()) == 1 + 8
    assert (out / "summary.png").stat().st_size > 10_000


def records_of(run):
    state = (run.folder / f"{run.notebook}.record.json").stat()
    return state.st_ino, state.st_mtime_ns


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, write_notebook):
    """Good runs beside one that fails, one that meets a full device and one that always kills its worker."""
    root = tmp_path_factory.mktemp("mixed")
    notebook = write_study(write_notebook, root / "03_tiny.ipynb")
    bad = '["fail", "full device", "kill the worker"]'
    grid = f"- {{notebooks: [{notebook}], parameters: {{do: {bad}}}, seeds: [5]}}\n"
    grid += f"- {{notebooks: [{notebook}], profile: smoke, parameters: {{do: [work]}}, seeds: [0, 1]}}\n"
    (root / "grid.yml").write_text(grid)
    runs = read_grid(root / "grid.yml", root / "out")
    heard = []
    outcomes = sweep.run_sweep(runs, root / "out", workers=2, watch=heard.append, allowed_deaths=1)
    return root, runs, outcomes, heard


@pytest.mark.slow
def test_failures_are_told_with_their_cell_and_the_others_finish(mixed):
    root, runs, outcomes, _ = mixed
    assert [outcome.run for outcome in outcomes] == runs
    failed, full, deadly, *good = outcomes
    assert (failed.failure.cell, failed.failure.error) == (4, "RuntimeError: no luck")
    assert (full.failure.cell, full.failure.error) == (4, "OSError: [Errno 28] No space left on device")
    assert deadly.failure.cell == 0 and "its worker died 2 times" in deadly.failure.error
    assert all(outcome.failure is None and not outcome.kept and outcome.seconds > 0 for outcome in good)
    assert counted(root / "log") == {(0.0, 0): 1, (0.0, 1): 1}
    assert (failed.run.folder.parent / "03_tiny.failed" / "03_tiny.ipynb").exists()
    rows = json.loads((root / "out" / "sweep.json").read_text())["runs"]
    assert [row["state"] for row in rows] == ["failed"] * 3 + ["done"] * 2
    assert rows[0]["failure"] == {"cell": 4, "error": "RuntimeError: no luck"}


@pytest.mark.slow
def test_progress_goes_from_waiting_over_running_to_the_end(mixed):
    _, runs, _, heard = mixed
    assert heard[0].states.count("waiting") >= 3 and any("running" in p.states for p in heard)
    assert heard[-1].states == ["failed"] * 3 + ["done"] * 2
    assert sorted(o.run.label for p in heard for o in p.ended) == sorted(run.label for run in runs)
    assert max(p.workers for p in heard) == 2
    assert [p.seconds for p in heard] == sorted(p.seconds for p in heard)


@pytest.mark.slow
def test_a_scheduler_that_runs_already_is_used(write_notebook, tmp_path):
    notebook = write_study(write_notebook, tmp_path / "03_tiny.ipynb")
    (tmp_path / "grid.yml").write_text(f"notebooks: [{notebook}]\nseeds: [0]\n")
    local = {"processes": True, "dashboard_address": None, "local_directory": str(tmp_path), "threads_per_worker": 1}
    with LocalCluster(n_workers=1, **local) as cluster:
        runs = read_grid(tmp_path / "grid.yml", tmp_path / "out")
        (outcome,) = sweep.run_sweep(runs, tmp_path / "out", scheduler=cluster.scheduler_address)
        assert outcome.failure is None and not outcome.kept
        (again,) = sweep.run_sweep(runs, tmp_path / "out", scheduler=cluster.scheduler_address)
        assert again.kept
        write_study(write_notebook, notebook, pause=0.1)  # changed code, same parameters
        (changed,) = sweep.run_sweep(runs, tmp_path / "out", scheduler=cluster.scheduler_address)
        assert changed.kept  # for the notebook as it was read
        runs = read_grid(tmp_path / "grid.yml", tmp_path / "out")
        (changed,) = sweep.run_sweep(runs, tmp_path / "out", scheduler=cluster.scheduler_address)
        assert changed.failure is None and not changed.kept
    assert counted(tmp_path / "log") == {(0.0, 0): 2}


@pytest.mark.slow
def test_a_full_disk_fails_the_run_that_fills_it_and_no_other(tmp_path, write_notebook, command):
    """For real: the folder of the sweep is a disk of 3 MiB, that only the command sees."""
    alone = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=3m none {disk}"
    if not shutil.which("unshare") or subprocess.run([*alone, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    notebook = write_study(write_notebook, tmp_path / "03_tiny.ipynb")
    grid = tmp_path / "grid.yml"
    grid.write_text(f'notebooks: [{notebook}]\nparameters: {{do: ["fill the disk", work]}}\nseeds: [0, 1]\n')
    script = f'{mount} && "$@"; code=$?; cp -r {disk} {copy}; exit $code'
    process = command(grid, "--out", disk, "--workers", 1, before=[*alone, "sh", "-c", script, "sh"])
    text, _ = process.communicate(timeout=900)
    assert process.returncode == 1, text
    assert "2 runs done, 0 kept from before, 2 failed" in text
    assert text.count("OSError: no space left on the disk of the results") == 2
    assert "failed 03_tiny do=fill the disk seed=0: code cell" in text
    states = [row["state"] for row in json.loads((copy / "sweep.json").read_text())["runs"]]
    assert states == ["failed", "failed", "done", "done"]
    assert "do=work" in (copy / "summary.csv").read_text()


def test_a_disk_that_cannot_take_the_list_of_runs_is_said(tmp_path, write_notebook, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda self, text: open("/dev/full", "w").write("x" * 10_000))
    with pytest.raises(OSError, match="No space left"):
        sweep.run_sweep([], tmp_path)


def test_two_sweeps_into_one_folder_are_refused(tmp_path):
    with sweep._locked(tmp_path), pytest.raises(OSError, match="another sweep is running in this folder"):
        sweep.run_sweep([], tmp_path)
    assert sweep.run_sweep([], tmp_path) == []


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 2, "scheduler": "tcp://localhost:1"}])
def test_workers_and_scheduler_exclude_each_other(tmp_path, options):
    with pytest.raises(ValueError, match="expected at least 1, and either workers or scheduler"):
        sweep.run_sweep([], tmp_path, **options)


@pytest.fixture
def task(tmp_path, write_notebook):
    """The task of one run, as a worker gets it."""
    notebook = write_study(write_notebook, tmp_path / "03_tiny.ipynb")
    (tmp_path / "grid.yml").write_text(f"notebooks: [{notebook}]\nseeds: [3]\n")
    (run,) = read_grid(tmp_path / "grid.yml", tmp_path / "out")
    return sweep_task.task_of(run, "now", 2)


def test_a_task_is_plain_data(task):
    assert json.loads(json.dumps(task)) == task


def test_a_task_that_comes_again_is_not_repeated(task, tmp_path):
    answer = sweep_task.run_task(task)
    assert answer["failure"] is None
    folder = Path(task["folder"])
    (folder.parent / ".03_tiny.1.running").mkdir()  # left by an earlier try
    assert sweep_task.run_task(task)["failure"] is None
    assert counted(tmp_path / "log") == {(0.0, 3): 1}
    assert [path.name for path in folder.parent.iterdir()] == ["03_tiny"]
    (folder / "03_tiny.record.json").write_text("{")  # damaged: not finished
    assert sweep_task.run_task(task)["failure"] is None
    assert counted(tmp_path / "log") == {(0.0, 3): 2}


def test_a_run_whose_workers_die_is_at_last_a_failure(task):
    folder = Path(task["folder"])
    folder.parent.mkdir(parents=True)
    folder.with_name(".03_tiny.tries").write_text("before\n" * 9 + "now\n" * 3)  # those of an older sweep do not count
    answer = sweep_task.run_task(task)
    assert answer["failure"]["error"] == "KilledWorker: its worker died 3 times, perhaps for lack of memory"
    assert not folder.with_name(".03_tiny.tries").exists()


def test_a_notebook_that_changed_on_the_way_is_a_failure(task, write_notebook):
    write_study(write_notebook, Path(task["notebook"]), pause=0.1)
    assert "not the one that the sweep was started with" in sweep_task.run_task(task)["failure"]["error"]


def test_a_notebook_without_a_record_is_a_failure(task, tmp_path, write_notebook):
    notebook = write_notebook(tmp_path / "04_bare.ipynb")
    (tmp_path / "grid.yml").write_text(f"notebooks: [{notebook}]\nseeds: [3]\n")
    (run,) = read_grid(tmp_path / "grid.yml", tmp_path / "out")
    answer = sweep_task.run_task(sweep_task.task_of(run, "now", 2))
    assert answer["failure"]["error"] == "RecordError: the notebook left no 04_bare.record.json"


def test_a_folder_that_cannot_be_made_is_a_failure_of_the_run(task, tmp_path):
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file")
    assert "cannot be made" in sweep_task.run_task(task)["failure"]["error"]
