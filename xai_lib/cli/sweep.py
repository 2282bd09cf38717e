"""``sweep``: a grid of runs on Dask, with a table that follows it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xai_lib import config
from xai_lib.cli.common import console, end_on_sigterm
from xai_lib.sweep import Outcome, Progress, run_sweep
from xai_lib.sweep_grid import Run, read_grid

_STATES = ("waiting", "running", "done", "kept", "failed")
_ROWS = 25  # of the live table: more would not fit a screen


def sweep(
    grid: Annotated[Path, typer.Argument(help="YAML: blocks of notebooks, profile, parameters and seeds.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the sweep (default: outputs/sweeps/GRID).")] = None,
    workers: Annotated[int | None, typer.Option(help="Runs at a time on this machine (default: one per core).")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a running Dask scheduler, instead.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the real data sets (else XAI_DATA_DIR).")] = None,
) -> None:
    """Run notebooks x parameters x seeds; a stopped sweep goes on where it was. Summary as CSV and figure."""
    from xai_lib.sweep_summary import write_summary  # pandas and scipy take seconds

    folder = out or config.output_dir() / "sweeps" / grid.stem
    runs = read_grid(grid, folder, data_dir)
    end_on_sigterm()
    show = console()
    cells = len({run.cell for run in runs})
    show.print(f"{len(runs)} runs in {cells} cells of the grid: {escape(str(folder))}", soft_wrap=True)
    if show.is_terminal:
        with Live(console=show, auto_refresh=False) as live:
            watch = _Screen(runs, live)
            outcomes = run_sweep(runs, folder, workers, scheduler, watch)
    else:
        outcomes = run_sweep(runs, folder, workers, scheduler, _Lines(show))
    failed = [outcome for outcome in outcomes if outcome.failure]
    kept = sum(outcome.kept for outcome in outcomes)
    show.print(f"{len(outcomes) - kept - len(failed)} runs done, {kept} kept from before, {len(failed)} failed")
    for outcome in failed:
        _show_failure(show, outcome)
    summary = write_summary(runs, folder)
    if len(summary):
        show.print(f"Summary: {escape(str(folder))}/summary.csv and summary.png", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _show_failure(show: Console, outcome: Outcome) -> None:
    """One failed run: notebook, parameters and seed, the cell that failed and its error."""
    run, failure = outcome.run, outcome.failure
    if failure is not None:
        values = "".join(f" {name}={value}" for name, value in run.parameters.items())
        text = f"{run.notebook}{values} seed={run.seed}: code cell {failure.cell}: {failure.error}"
        show.print(Text.assemble(("failed ", "red"), text), soft_wrap=True)


class _Lines:
    """A line for every run that ended, where there is no terminal."""

    def __init__(self, show: Console) -> None:
        self.show = show

    def __call__(self, progress: Progress) -> None:
        counts, clock = Counter(progress.states), _clock(progress.seconds)
        for outcome in progress.ended:
            state = "failed" if outcome.failure else f"done in {outcome.seconds:.0f} s"
            rest = ", ".join(f"{counts[name]} {name}" for name in _STATES if counts[name])
            text = f"{clock} {outcome.run.label} seed={outcome.run.seed} {state} ({rest})"
            self.show.print(Text(text), soft_wrap=True)


class _Screen:
    """A table with a row per cell of the grid, renewed in its place."""

    def __init__(self, runs: Sequence[Run], live: Live) -> None:
        self.runs, self.live = runs, live

    def __call__(self, progress: Progress) -> None:
        for outcome in progress.ended:
            _show_failure(self.live.console, outcome)  # above the table
        self.live.update(progress_table(self.runs, progress), refresh=True)


def progress_table(runs: Sequence[Run], progress: Progress) -> Table:
    """Waiting, running, done, kept and failed runs of each cell; of many cells those that are not done come first."""
    counts: dict[str, Counter[str]] = {}
    for run, state in zip(runs, progress.states, strict=True):
        counts.setdefault(run.label, Counter())[state] += 1
    order = sorted(counts, key=lambda label: (not counts[label]["running"], not counts[label]["waiting"]))
    title = f"{_clock(progress.seconds)}, {progress.workers} workers"
    table = Table("cell", title=title, title_justify="left", show_footer=True)
    total = Counter(progress.states)
    table.columns[0].footer = "all" if len(order) <= _ROWS else f"all, with {len(order) - _ROWS} cells not shown"
    for name in _STATES:
        table.add_column(name, str(total[name]), justify="right")
    for label in (order if len(order) > _ROWS else list(counts))[:_ROWS]:
        table.add_row(escape(label), *(str(counts[label][name] or "") for name in _STATES))
    return table


def _clock(seconds: float) -> str:
    """Elapsed time as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
