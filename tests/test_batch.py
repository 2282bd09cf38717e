import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from xai_lib import batch, notebooks, records
from xai_lib.statistics import Estimate

REPORT = """
import json, os, sys
seen = {"seed": seed, "profile": profile, "threads": threads, "python": sys.executable, "folder": os.getcwd()}
seen |= {k: os.environ.get(k) for k in ("PYTHONHASHSEED", "OMP_NUM_THREADS", "XAI_DATA_DIR", "XAI_INTERACTIVE")}
open(os.path.join(output_dir, "seen.json"), "w").write(json.dumps(seen))
"""


def make_record(study: str) -> records.Record:
    return records.make(
        study=study,
        title="A tiny study",
        profile="smoke",
        parameters={},
        seed=0,
        data={"name": "none", "fingerprint": "0"},
        figures={"auc": records.Figure(Estimate(0.8))},
        started=time.perf_counter(),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, write_notebook):
    """One good and one failing notebook, run side by side, over the results of an earlier run of each."""
    root = tmp_path_factory.mktemp("{batch}")  # papermill would fill in the braces
    template = records.write(make_record("01_good"), root / "template.json")
    keep = f"import shutil; shutil.copy({str(template)!r}, output_dir + '/01_good.record.json')"
    good = write_notebook(root / "01_good.ipynb", REPORT, keep)
    bad = write_notebook(root / "02_bad.ipynb", "x = 1", "y = 2\nraise RuntimeError('no luck')", "never = 1")
    for stem in ("01_good", "02_bad"):
        (root / "out" / stem).mkdir(parents=True)
        (root / "out" / stem / "old.txt").write_text("earlier")
    options = {"profile": "smoke", "output": root / "out"}
    jobs = [batch.prepare(bad, **options), batch.prepare(good, {"seed": "7"}, data_dir=root, **options)]
    heard = []
    results = batch.run_many(jobs, parallel=2, on_finish=heard.append)
    assert sorted(heard, key=lambda r: r.notebook) == results[::-1]
    return root, *results


def test_a_finished_run_takes_the_place_of_the_earlier_one(runs):
    root, _, good = runs
    assert good.failure is None and good.folder == root / "out" / "01_good"
    assert sorted(p.name for p in good.folder.iterdir()) == ["01_good.ipynb", "01_good.record.json", "seen.json"]
    assert good.seconds > 0


def test_the_notebook_sees_its_parameters_and_its_environment(runs):
    root, _, good = runs
    seen = json.loads((good.folder / "seen.json").read_text())
    assert seen == {
        "seed": 7,
        "profile": "smoke",
        "threads": 1,
        "python": sys.executable,
        "folder": str(root),
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "XAI_DATA_DIR": str(root),
        "XAI_INTERACTIVE": "0",
    }


def test_the_record_says_which_code_was_run_and_how_to_repeat_it(runs):
    root, _, good = runs
    assert good.record == good.folder / "01_good.record.json"
    record = records.read(good.record)
    assert record.command == "xai-lib run 01_good --profile smoke -p seed 7"
    assert record.notebook_sha256 == notebooks.read_notebook(root / "01_good.ipynb").sha256
    assert record.figures["auc"].estimate.value == 0.8


def test_a_failed_run_names_the_cell_and_keeps_everything(runs):
    root, bad, _ = runs
    assert bad.failure is not None and bad.record is None
    assert bad.failure.cell == 3 and bad.failure.source == "y = 2\nraise RuntimeError('no luck')"
    assert bad.failure.error == "RuntimeError: no luck" and "no luck" in bad.failure.traceback
    assert bad.folder == root / "out" / "02_bad.failed"
    assert sorted(p.name for p in bad.folder.iterdir()) == ["02_bad.ipynb", "stderr.txt"]
    assert (root / "out" / "02_bad" / "old.txt").read_text() == "earlier"


def test_no_hidden_folder_is_left(runs):
    root, _, _ = runs
    assert sorted(p.name for p in (root / "out").iterdir()) == ["01_good", "02_bad", "02_bad.failed"]


STOP = """
import signal, sys
from pathlib import Path
from xai_lib import batch, cli, notebooks

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored below a shell's background job

cli.common.end_on_sigterm() if sys.argv[3] == "TERM" else None
batch.run_many([batch.Job(notebooks.read_notebook(sys.argv[1]), {}, Path(sys.argv[2]))])
"""


def test_however_a_run_is_stopped_no_process_is_left(tmp_path, write_notebook):
    slow = "import subprocess, time\nsubprocess.Popen(['sleep', '1000'])"  # a kernel's own child must go as well
    ready = "open(output_dir + '/ready', 'w').close()\ntime.sleep(1000)"
    notebook = write_notebook(tmp_path / "04_slow.ipynb", slow, ready)
    started = {}
    for name in ("INT", "TERM", "KILL"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "04_slow").mkdir()
        command = [sys.executable, "-c", STOP, str(notebook), str(tmp_path / name / "04_slow"), name]
        environment = os.environ | {"PYTHONPATH": str(Path(batch.__file__).parent.parent)}
        started[name] = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    trees = {}
    for name, parent in started.items():
        wait_for(lambda name=name: list((tmp_path / name).glob(".04_slow.*.running/ready")), 60)
        trees[name] = psutil.Process(parent.pid).children(recursive=True)
        assert len(trees[name]) == 3  # the child, its kernel, and the kernel's child
        parent.send_signal(getattr(signal, f"SIG{name}"))
    for name, parent in started.items():
        assert parent.wait(20) != 0
        wait_for(lambda name=name: not any(map(alive, trees[name])), 20)
    for name in ("INT", "TERM"):
        kept = tmp_path / name / "04_slow.failed"
        assert (kept / "04_slow.ipynb").exists() and (kept / "stderr.txt").exists()
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["04_slow", "04_slow.failed"]
    assert len(list((tmp_path / "KILL").glob(".04_slow.*.running"))) == 1
    batch._keep_abandoned(tmp_path / "KILL" / "04_slow")  # what the next run does first
    assert sorted(p.name for p in (tmp_path / "KILL").iterdir()) == ["04_slow", "04_slow.failed"]


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_a_run_in_progress_is_not_taken_for_an_abandoned_one(tmp_path):
    (tmp_path / f".03_x.{os.getpid()}.running").mkdir()
    batch._keep_abandoned(tmp_path / "03_x")
    assert [p.name for p in tmp_path.iterdir()] == [f".03_x.{os.getpid()}.running"]


def test_a_dead_kernel_is_reported_with_its_cell(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "a.ipynb", "import os", "os.abort()", "never = 1")
    content = json.loads(path.read_text())
    for cell in content["cells"][:4]:
        cell["metadata"]["papermill"] = {"start_time": "2026-01-01"}
    path.write_text(json.dumps(content))
    (tmp_path / "stderr.txt").write_text("Traceback\nDeadKernelError: Kernel died\n")
    failure = batch._failure(path, tmp_path / "stderr.txt")
    assert failure == batch.Failure(3, "os.abort()", "DeadKernelError: Kernel died")


@pytest.mark.parametrize("text", [None, "", '{"cells": [{"cell_type'])
def test_a_child_that_wrote_no_notebook_is_reported_with_its_last_words(tmp_path, text):
    if text is not None:
        (tmp_path / "a.ipynb").write_text(text)
    (tmp_path / "stderr.txt").write_text("OSError: No space left on device\n")
    failure = batch._failure(tmp_path / "a.ipynb", tmp_path / "stderr.txt")
    assert failure == batch.Failure(0, "", "OSError: No space left on device")


def test_a_damaged_record_is_a_failure(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "03_x.ipynb")
    (tmp_path / "03_x.record.json").write_text('{"schema": 1')
    job = batch.Job(notebooks.read_notebook(path), {}, tmp_path)
    failure = batch._stamp(tmp_path / "03_x.record.json", path, job)
    assert failure is not None and "03_x.record.json" in failure.error


def test_the_command_of_a_record_can_be_pasted(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "03_x.ipynb")
    record = records.write(make_record("03_x"), tmp_path / "03_x.record.json")
    job = batch.Job(notebooks.read_notebook(path), {"rates": [0.1, None], "name": "a b", "profile": "smoke"}, tmp_path)
    assert batch._stamp(record, path, job) is None
    assert records.read(record).command == "xai-lib run 03_x --profile smoke -p name 'a b' -p rates '[0.1, null]'"


@pytest.mark.parametrize(
    ("parameters", "options", "error", "message"),
    [
        ({"sead": 1}, {}, ValueError, "03_x has no parameter 'sead'; it has profile, seed, output_dir, threads"),
        ({"seed": "many"}, {}, ValueError, "03_x: parameter seed: 'many' is not of type int"),
        ({"output_dir": "x"}, {}, ValueError, "output_dir .* set by the runner"),
        ({}, {"profile": "huge"}, ValueError, "profile: 'huge' is unknown"),
        ({}, {"output": "03_x.ipynb/out"}, OSError, "output folder .*03_x.ipynb/out cannot be made"),
        ({}, {"data_dir": "nowhere"}, OSError, "data folder .*nowhere does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, write_notebook, parameters, options, error, message):
    path = write_notebook(tmp_path / "03_x.ipynb")
    options = {"output": "out"} | options
    paths = {key: tmp_path / value if key != "profile" else value for key, value in options.items()}
    with pytest.raises(error, match=message):
        batch.prepare(path, parameters, **paths)
    assert not list(tmp_path.glob("out/*"))


def test_a_notebook_must_declare_its_output_folder(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "03_x.ipynb", parameters="seed: int = 0")
    with pytest.raises(ValueError, match="03_x: output_dir must be declared"):
        batch.prepare(path, output=tmp_path / "out")


def test_prepared_values_have_their_types(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "03_x.ipynb", parameters="output_dir: str = ''\nrate: float = 0.0\nk: int = 1")
    job = batch.prepare(path, {"rate": "nan", "k": "2"}, output=tmp_path / "out")
    assert math.isnan(job.parameters["rate"]) and job.parameters["k"] == 2
    assert job.folder == tmp_path / "out" / "03_x"


def test_run_many_refuses_what_cannot_work(tmp_path, write_notebook):
    job = batch.Job(notebooks.read_notebook(write_notebook(tmp_path / "03_x.ipynb")), {}, tmp_path / "out")
    with pytest.raises(ValueError, match="parallel: 0 is below 1"):
        batch.run_many([job], parallel=0)
    with pytest.raises(ValueError, match="same folder"):
        batch.run_many([job, job])
    assert batch.run_many([]) == []
