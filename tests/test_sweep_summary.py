import math
from dataclasses import replace

import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sweep_notebooks import PARAMETERS, make_record

from xai_lib import records
from xai_lib.results import Estimate, Figure
from xai_lib.sweep_grid import read_grid
from xai_lib.sweep_summary import runs_table, summarise, write_summary

VALUES = {(0.0, 0): 0.5, (0.0, 1): 0.7, (0.0, 2): 0.9, (1.0, 0): 0.6, (1.0, 1): math.nan}


@pytest.fixture
def runs(tmp_path, write_notebook):
    """Five finished runs and one without a record."""
    notebook = write_notebook(tmp_path / "03_tiny.ipynb", parameters=PARAMETERS)
    grid = tmp_path / "grid.yml"
    grid.write_text(f"notebooks: [{notebook}]\nparameters: {{beta: [0, 1]}}\nseeds: [0, 1, 2]")
    runs = read_grid(grid, tmp_path / "out")
    for run in runs:
        value = VALUES.get((run.parameters["beta"], run.seed))
        if value is not None:
            figures = {
                "auc": Figure(Estimate(value, value - 0.1, value + 0.2), "", {"chance": Estimate(0.5)}),
                "loss": Figure(Estimate(2 * value, 0.0, 9.0, "sd over 3 runs")),
            }
            made = replace(make_record("03_tiny"), figures=figures, notebook_sha256=run.job.notebook.sha256)
            records.write(made, run.folder / "03_tiny.record.json")
    return runs


def test_the_figures_of_a_cell_over_its_seeds(runs):
    summary = summarise(runs_table(runs)).set_index(["parameter.beta", "figure"])
    assert len(summary) == 4
    row = summary.loc[(0.0, "auc")]
    assert row["n"] == 3
    assert_allclose(row[["mean", "sd"]].astype(float), [0.7, 0.2])
    reach = 4.302653 * 0.2 / math.sqrt(3)  # t(0.975, 2) from a table
    assert_allclose(row[["low", "high"]].astype(float), [0.7 - reach, 0.7 + reach], rtol=1e-6)
    assert_allclose(
        row[["low", "high"]].astype(float), stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem([0.5, 0.7, 0.9]))
    )
    assert_allclose(row[["within_low", "within_high"]].astype(float), [0.6, 0.9])
    assert row["baselines"] == "chance: 0.5" and row["label"] == "03 beta=0.0" and row["notebook"] == "03_tiny"


def test_one_run_has_no_interval_and_a_nan_is_not_counted(runs):
    summary = summarise(runs_table(runs)).set_index(["parameter.beta", "figure"])
    row = summary.loc[(1.0, "auc")]
    assert row["n"] == 1 and row["mean"] == 0.6
    assert row[["sd", "low", "high"]].isna().all()


def test_ends_that_are_a_standard_deviation_are_no_interval(runs):
    loss = summarise(runs_table(runs)).query("figure == 'loss'")
    assert loss[["within_low", "within_high"]].isna().all(axis=None)
    assert list(loss["baselines"]) == ["", ""]


def test_files_of_the_summary(runs, tmp_path):
    out = tmp_path / "out"
    summary = write_summary(runs, out)
    read = pd.read_csv(out / "summary.csv")
    assert_allclose(read["mean"], summary["mean"], rtol=1e-5)
    assert (out / "summary.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_an_older_summary_does_not_stay_where_nothing_is_finished(runs, tmp_path):
    out = tmp_path / "out"
    (out / "summary.csv").write_text("old")
    for run in runs:
        (run.folder / "03_tiny.record.json").unlink(missing_ok=True)
    assert write_summary(runs, out).empty and not (out / "summary.csv").exists()


def test_a_full_disk_is_said_and_the_older_summary_stays(runs, tmp_path, monkeypatch):
    (tmp_path / "out" / "summary.csv").write_text("old")
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda self, path, **_: open("/dev/full", "w").write("x" * 10_000))
    with pytest.raises(OSError, match="No space left"):
        write_summary(runs, tmp_path / "out")
    assert (tmp_path / "out" / "summary.csv").read_text() == "old"
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_file()) == ["summary.csv"]
