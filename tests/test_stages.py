"""A notebook that failed, or whose kernel was killed, repeats no stage that it had finished (papermill issue 824)."""

import pytest

from xai_lib import batch

STAGES = """
import os, signal
from pathlib import Path

import pandas as pd

from xai_lib.stored_tables import table

LOG = Path(os.environ["XAI_CACHE_DIR"]) / "computed.txt"


def stage(name, key, last=lambda: None):
    def compute():
        with LOG.open("a") as log:
            print(name, file=log)
        last()
        return pd.DataFrame({"figure": [len(name)]})

    return table(name, key, compute)
"""
MAPS = "maps = stage('maps', {'seed': seed, 'checkpoint': 'abc'})"
ENDS = {
    "a cell that fails": "if not (LOG.parent / 'mended').exists(): raise RuntimeError('no luck')",
    "a kernel that is killed while it computes": """\
def killed():
    if not (LOG.parent / 'mended').exists():
        os.kill(os.getpid(), signal.SIGKILL)

scores = stage('scores', {'seed': seed}, killed)""",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_finished_stage_is_not_repeated(tmp_path, write_notebook, monkeypatch, end):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    study = write_notebook(tmp_path / "01_study.ipynb", STAGES, MAPS, ENDS[end], "assert maps['figure'][0] == 4")
    computed = tmp_path / "computed.txt"

    first = batch.run_notebook(study, output=tmp_path / "out")
    assert first.failure is not None and first.failure.cell == 4
    begun = computed.read_text().split()
    assert begun[0] == "maps"

    (tmp_path / "mended").touch()
    assert batch.run_notebook(study, output=tmp_path / "out").failure is None
    again = computed.read_text().split()[len(begun) :]
    assert "maps" not in again
    assert again == begun[1:]  # what had not been finished


def test_other_parameters_are_another_stage(tmp_path, write_notebook, monkeypatch):
    monkeypatch.setenv("XAI_CACHE_DIR", str(tmp_path))
    study = write_notebook(tmp_path / "01_study.ipynb", STAGES, MAPS)
    for seed in (0, 1, 0):
        assert batch.run_notebook(study, {"seed": seed}, output=tmp_path / "out").failure is None
    assert (tmp_path / "computed.txt").read_text().split() == ["maps", "maps"]
