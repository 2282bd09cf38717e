import io

import pytest
import typer
from rich.console import Console
from sweep_notebooks import PARAMETERS
from typer.testing import CliRunner

from xai_lib import batch
from xai_lib.cli import sweep as command
from xai_lib.sweep import Outcome, Progress
from xai_lib.sweep_grid import read_grid


@pytest.fixture
def runs(tmp_path, write_notebook):
    """Six runs in three cells; nothing is run."""
    notebook = write_notebook(tmp_path / "03_tiny.ipynb", parameters=PARAMETERS)
    (tmp_path / "grid.yml").write_text(f"notebooks: [{notebook}]\nparameters: {{beta: [0, 1, 2]}}\nseeds: [0, 1]")
    return read_grid(tmp_path / "grid.yml", tmp_path / "out")


def printed(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


STATES = ["done", "failed", "running", "waiting", "waiting", "kept"]


def test_the_table_has_a_row_per_cell_and_a_sum(runs):
    text = printed(command.progress_table(runs, Progress(STATES, [], 2, 3725.4)))
    assert "1:02:05, 2 workers" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert ["03 beta=0.0", "", "", "1", "", "1"] in rows
    assert ["03 beta=1.0", "1", "1", "", "", ""] in rows
    assert ["03 beta=2.0", "1", "", "", "1", ""] in rows
    assert ["all", "2", "1", "1", "1", "1"] in rows


def test_of_many_cells_those_at_work_are_shown(runs, monkeypatch):
    monkeypatch.setattr(command, "_ROWS", 1)
    text = printed(command.progress_table(runs, Progress(STATES, [], 2, 1)))
    assert "beta=1.0" in text and "beta=0.0" not in text and "all, with 2 cells not shown" in text


def invoke(monkeypatch, outcomes, *words):
    def run_sweep(runs, folder, workers, scheduler, watch):
        watch(Progress(STATES, list(outcomes), 1, 61))
        return outcomes

    monkeypatch.setattr(command, "run_sweep", run_sweep)
    monkeypatch.setattr(command, "end_on_sigterm", lambda: None)
    monkeypatch.setattr("xai_lib.sweep_summary.write_summary", lambda runs, folder: runs[:0])
    app = typer.Typer()
    app.command()(command.sweep)
    return CliRunner().invoke(app, [str(word) for word in words])


def test_failures_are_listed_with_notebook_parameters_cell_and_error(runs, tmp_path, monkeypatch):
    failure = batch.Failure(3, "1 / 0", "ZeroDivisionError: division by zero")
    outcomes = [Outcome(runs[0], 1.5), Outcome(runs[3], 2.0, failure=failure), Outcome(runs[5], kept=True)]
    result = invoke(monkeypatch, outcomes, tmp_path / "grid.yml", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "6 runs in 3 cells of the grid" in result.output
    assert "0:01:01 03 beta=0.0 seed=0 done in 2 s (2 waiting, 1 running, 1 done, 1 kept, 1 failed)" in result.output
    assert "1 runs done, 1 kept from before, 1 failed" in result.output
    assert "failed 03_tiny beta=1.0 seed=1: code cell 3: ZeroDivisionError: division by zero" in result.output


def test_a_sweep_without_a_failure_ends_with_zero(runs, tmp_path, monkeypatch):
    outcomes = [Outcome(run, 1.0) for run in runs]
    assert invoke(monkeypatch, outcomes, tmp_path / "grid.yml", "--out", tmp_path / "out").exit_code == 0
