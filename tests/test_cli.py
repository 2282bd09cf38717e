import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from xai_lib import batch, checkpoints, cli, config, models, notebooks, records
from xai_lib.cdmam.detectability import probabilities
from xai_lib.cdmam.limits import Matrices, write_matrices
from xai_lib.statistics import Estimate
from xai_lib.studies import real_runs


@pytest.fixture
def xai(tmp_path, monkeypatch, write_notebook):
    """Run the command line on a repository with two notebooks; gives exit code and everything printed."""
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path / "notebooks" / "03_good.ipynb", "1 + 1", title="Study of everything")
    write_notebook(tmp_path / "notebooks" / "04_bad.ipynb", "k = [1]", "# look\nk[5]")
    monkeypatch.setattr(config, "repository_dir", lambda: tmp_path)
    monkeypatch.delenv("XAI_OUTPUT_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the test process keeps its own handlers

    def run(*words):
        result = CliRunner().invoke(cli.app, [str(w) for w in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.output

    return run


def write_record(path, study="03_good", value=0.8, sha=None, verdicts=None):
    record = records.make(
        study=study,
        title="Study of everything",
        profile="lab",
        parameters={},
        seed=0,
        data={"name": "synthetic", "fingerprint": "0"},
        figures={"auc": records.Figure(Estimate(value))},
        verdicts=verdicts,
        started=time.perf_counter(),
        command=f"xai-lib run {study} --profile lab",
        notebook_sha256=sha,
    )
    return records.write(record, path)


@pytest.fixture
def fake_runs(monkeypatch):
    """Replace the runs by ones that finish at once; gives the jobs that were asked for."""
    jobs = []

    def run_many(asked, parallel, on_finish):
        jobs.extend(asked)
        results = [batch.RunResult(job.notebook.path.stem, job.folder, 1.0) for job in asked]
        for result in results:
            on_finish(result)
        return results

    monkeypatch.setattr(batch, "run_many", run_many)
    return jobs


@pytest.mark.parametrize(
    "command", [[], ["list"], ["run"], ["verify"], ["claims"], ["data"], ["data", "check"], ["cdmam-readout"]]
)
def test_each_command_has_help(xai, command):
    code, text = xai(*command, "--help")
    assert code == 0 and "Usage" in text and "--help" in text


def test_list_shows_notebooks_and_their_records(xai, tmp_path):
    code, text = xai("list")
    assert code == 0 and "03_good" in text and "Study of everything" in text and "seed" in text
    assert text.count("none") == 2
    sha = notebooks.read_notebook(tmp_path / "notebooks" / "03_good.ipynb").sha256
    path = tmp_path / "outputs" / "03_good" / "03_good.record.json"
    write_record(path, sha=sha)
    assert "yes" in xai("list")[1]
    write_record(path, sha="0")
    assert "notebook changed since" in xai("list")[1]


def test_list_of_one_notebook_shows_its_parameters_with_their_help(xai):
    code, text = xai("list", "03")
    assert code == 0 and "seed of every random number" in text and "int | None" in text


def test_run_passes_what_was_asked_for(xai, tmp_path, fake_runs):
    code, text = xai("run", "3", "4", "-p", "seed", "-7", "-p", "threads=2", "--profile", "smoke", "--output", "there")
    assert code == 0 and "03_good finished in 1 s" in text
    assert [job.folder for job in fake_runs] == [tmp_path / "there" / "03_good", tmp_path / "there" / "04_bad"]
    assert fake_runs[0].parameters == {"seed": -7, "threads": 2, "profile": "smoke"}


def test_run_all_runs_every_notebook(xai, fake_runs):
    assert xai("run", "all")[0] == 0
    assert [job.notebook.path.stem for job in fake_runs] == ["03_good", "04_bad"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "07"], "notebook '07' not found; there are 03_good, 04_bad"),
        (["run", "03", "-p", "sead", "1"], "03_good has no parameter 'sead'"),
        (["run", "03", "-p", "seed", "x"], "parameter seed: 'x' is not of type int"),
        (["run", "03", "--profile", "huge"], "profile: 'huge' is unknown, expected one of smoke, lab, paper"),
        (["run", "03", "--output", "notebooks/03_good.ipynb"], "output folder"),
        (["run", "03", "--data-dir", "nowhere"], "nowhere does not exist"),
        (["run", "03", "--parallel", "0"], "parallel: 0 is below 1"),
        (["list", "07"], "'07' not found"),
        (["list", "--output", "nowhere"], "folder of results nowhere does not exist"),
        (["verify", "--records", "nowhere"], "folder of results nowhere does not exist"),
        (["data", "check", "mnist", "."], "'mnist'"),
        (["data", "check", "busi", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(xai, words, message):
    code, text = xai(*words)
    assert code == 1
    assert text.startswith("error: ") and text.count("\n") == 1 and message in text


@pytest.mark.parametrize("words", [["run", "03", "-p", "seed"], ["run", "03", "-p"], ["run"], ["walk"]])
def test_an_incomplete_command_line_is_a_usage_error(xai, words):
    code, text = xai(*words)
    assert code != 0 and "Traceback" not in text


def test_a_failed_run_shows_cell_and_error_and_exits_with_1(xai, tmp_path):
    code, text = xai("run", "04", "--profile", "smoke")
    assert code == 1 and "04_bad failed in code cell 3" in text
    assert "k[5]" in text and "IndexError: list index out of range" in text
    assert str(tmp_path / "outputs" / "04_bad.failed") in text.replace("\n", "")


def test_verify_names_the_figure_that_moved(xai, tmp_path):
    (tmp_path / "data" / "expected").mkdir(parents=True)
    pinned = {"figures": {"auc": {"value": 0.8, "tolerance": 0.02}}}
    (tmp_path / "data" / "expected" / "03_good.lab.json").write_text(json.dumps(pinned))
    code, text = xai("verify")
    assert code == 1 and "Nothing was compared" in text
    write_record(tmp_path / "outputs" / "03_good" / "03_good.record.json")
    code, text = xai("verify")
    assert code == 0 and "1 figures compared, 0 moved, 0 problems" in text
    write_record(tmp_path / "outputs" / "03_good" / "03_good.record.json", value=0.85)
    code, text = xai("verify")
    assert code == 1 and "moved" in text and "+0.05" in text
    write_record(tmp_path / "outputs" / "03_good" / "03_good.record.json", sha="0")
    code, text = xai("verify")
    assert code == 1 and "problem: " in text and "changed since" in text


def test_claims_prints_the_ledger_with_committed_and_fresh_records(xai, tmp_path, monkeypatch):
    from xai_lib import claims

    known = {"9.1": make_claim("9.1", "answered"), "9.2": make_claim("9.2", "planned")}
    monkeypatch.setattr(claims, "load", lambda: known)
    ours = Estimate(0.81, 0.7, 0.9)
    verdict = records.Verdict("9.1", "holds", "it [clearly] does", "by rule", ours, Estimate(0.5))
    (tmp_path / "data" / "records").mkdir(parents=True)
    write_record(tmp_path / "data" / "records" / "a.json", verdicts={"9.1": verdict})
    write_record(tmp_path / "outputs" / "03_good" / "03_good.record.json", verdicts={"9.1": verdict}, sha="0")
    code, text = xai("claims")
    assert code == 0 and "2 claims, 2 records: 2 holds, 1 planned" in text
    assert "0.81" in text and "it [clearly] does" in text and "one claim 9.2" in text
    assert text.count("its notebook changed since") == 1


def make_claim(number, status):
    from xai_lib.claims import Claim

    words = {"paper": "p", "where": "w", "kind": "value", "paper_value": "1", "measured": "m", "rule": "r"}
    return Claim(id=number, claim=f"one claim {number}", notebook="03_good", status=status, **words)


def test_a_damaged_record_is_named(xai, tmp_path):
    (tmp_path / "outputs" / "03_good").mkdir(parents=True)
    (tmp_path / "outputs" / "03_good" / "03_good.record.json").write_text("{")
    code, text = xai("verify")
    assert code == 1 and "03_good.record.json" in text and text.startswith("error: ")


def test_data_check_prints_the_report(xai, monkeypatch):
    from xai_lib import data

    reports = {
        "good": data.Report("good", {"images": 3}),
        "bad": data.Report("bad", {"images": 3}, faulty=[data.Skipped("bad/1", "truncated [file]")]),
    }
    monkeypatch.setattr(data, "check", lambda name, root: reports[name])
    assert xai("data", "check", "good", ".") == (0, str(reports["good"]) + "\n")
    assert xai("data", "check", "bad") == (1, str(reports["bad"]) + "\n")


def test_the_command_line_starts_without_torch(tmp_path):
    """Nor scipy or scikit-learn: each takes seconds to import. One process for all commands, the lightest first."""
    code = """
import sys
import xai_lib.cli
slow = {"torch", "torchvision", "scipy", "sklearn", "pandas", "matplotlib"}
assert not slow & set(sys.modules), slow & set(sys.modules)
for words in (["--help"], ["list"], ["list", "03"], ["claims"], ["verify", "--records", "."]):
    try:
        xai_lib.cli.app(words)
    except SystemExit as end:
        assert end.code == int(words[0] == "verify"), (words, end.code)  # nothing to compare here
    assert not (slow - {"pandas"}) & set(sys.modules), (words, slow & set(sys.modules))
"""
    environment = os.environ | {"XAI_OUTPUT_DIR": str(tmp_path), "PYTHONPATH": str(config.repository_dir())}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout, ended.stderr


def test_sigterm_becomes_an_orderly_exit():
    before = signal.getsignal(signal.SIGTERM)
    try:
        cli.common.end_on_sigterm()
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_real_writes_the_record_and_refuses_its_name_before_the_run(xai, monkeypatch, tmp_path):
    record = records.read(write_record(tmp_path / "made.json"))
    seen = []
    monkeypatch.setattr(real_runs, "run_real", lambda *options: seen.append(options) or record)
    code, output = xai("real", "boxes", tmp_path)
    assert code == 1 and "is not the name of a .json file" in output and not seen
    code, output = xai("real", "boxes", tmp_path / "new" / "r.json", "--maps", 3, "--root", "films")
    assert code == 0 and seen == [("boxes", "mini_mias", "films", None, "torchvision", "float32", 3, None, None, None)]
    assert records.read(tmp_path / "new" / "r.json") == record and "auc: 0.800" in output


def test_attribute_explains_a_file(xai, tmp_path):
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "mass.png")
    model = models.build("squeezenet1_1", generator=torch.Generator().manual_seed(0))
    checkpoints.save(model, tmp_path / "net.safetensors", {"size": 64})
    call = [
        "attribute",
        "mass.png",
        "--checkpoint",
        "net.safetensors",
        "--method",
        "integrated_gradients",
        "--out",
        "o",
    ]
    code, text = xai(*call, "-o", "steps=3")
    assert code == 0 and text.split() == [f"o/mass.integrated_gradients.{e}" for e in ("png", "npy", "json")]
    assert json.loads((tmp_path / "o/mass.integrated_gradients.json").read_text())["options"] == {"steps": 3}
    for words, says in (
        (["-o", "n=3"], "n: integrated_gradients has no such option"),
        (["-o", "3"], "is not NAME=VALUE"),
    ):
        code, text = xai(*call, *words)
        assert code == 1 and says in text


def test_data_prepare_counts_and_fails_when_a_file_did(xai, tmp_path):
    (tmp_path / "in").mkdir()
    breast = np.zeros((80, 60), np.uint8)
    breast[10:70, 5:40] = 120 + np.arange(35)
    Image.fromarray(breast).save(tmp_path / "in" / "a.png")
    code, text = xai("data", "prepare", "in", "out")
    assert code == 0 and "1 done" in text
    (tmp_path / "in" / "b.png").write_text("not an image")
    code, text = xai("data", "prepare", "in", "out")
    assert code == 1 and "1 failed" in text


def test_cdmam_readout_reads_the_matrices_of_another_reader(xai, tmp_path):
    chance = probabilities("#1")
    hits = np.random.default_rng(0).random((16, 16, 16)) < chance
    matrices = Matrices(hits, hits, tuple(f"image {k}" for k in range(16)))
    write_matrices(tmp_path / "cdcom.csv", matrices)
    code, text = xai("cdmam-readout", "--matrices", "cdcom.csv", "--out", "o")
    assert code == 0 and "16 images read: o/report.md" in text
    assert {"report.md", "curve.csv", "curve.png"} <= {file.name for file in (tmp_path / "o").iterdir()}
    code, text = xai("cdmam-readout")
    assert code == 1 and "give either images or --matrices" in text
