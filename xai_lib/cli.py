"""Command line: ``xai-lib list | run | verify | claims | data check``.

Every mistake of the user ends in one line on stderr and exit code 1.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from xai_lib import batch, notebooks


class _Group(TyperGroup):
    """Commands whose expected errors are one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a ValueError or OSError into its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            _console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(1) from None


class _RunCommand(TyperCommand):
    """Accepts ``-p name value`` as papermill does, beside ``-p name=value``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join name and value of each ``-p``; then parse."""
        joined: list[str] = []
        rest = iter(args)
        for arg in rest:
            joined.append(arg)
            if arg in ("-p", "--parameter"):
                name = next(rest, "")
                joined.append(name if "=" in name else f"{name}={next(rest, '')}")
        return super().parse_args(ctx, joined)


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
data_app = typer.Typer(no_args_is_help=True)
app.add_typer(data_app, name="data", help="Data sets on this machine.")


@app.callback()
def main() -> None:
    """Open companion to five papers on explainable AI for breast imaging. Not for diagnosis."""


def _console(stderr: bool = False) -> Console:
    """Console as wide as the terminal, or 160 columns where there is none (a file, CI)."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


@app.command("list")
def list_(
    notebook: Annotated[str | None, typer.Argument(help="Number or name: show its parameters in full.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of results (default: outputs).")] = None,
) -> None:
    """Show the notebooks, their parameters, and whether each has a record."""
    paths = notebooks.list_notebooks() if notebook is None else [notebooks.find_notebook(notebook)]
    table = Table("notebook", "study", "parameters", "record")
    for path in paths:
        found = notebooks.read_notebook(path)
        table.add_row(path.stem, found.title, ", ".join(found.parameters), "")
    _console().print(table)


@app.command(cls=_RunCommand)
def run(
    notebook: Annotated[list[str], typer.Argument(help="Numbers, names or paths of notebooks, or: all.")],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter; repeatable.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="smoke, lab or paper (default: the notebook's own, lab).")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of results (default: outputs).")] = None,
    parallel: Annotated[int, typer.Option(help="Notebooks at a time, one thread each when above 1.")] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the real data sets (else XAI_DATA_DIR).")] = None,
) -> None:
    """Run notebooks headless; each leaves executed notebook, record and figures in OUTPUT/<notebook>."""
    values = dict(p.split("=", 1) for p in parameter or [])
    chosen: Sequence[str | Path] = notebooks.list_notebooks() if notebook == ["all"] else notebook
    jobs = [batch.prepare(n, values, profile, output, data_dir) for n in chosen]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end running notebooks in order, as Ctrl-C does
    results = batch.run_many(jobs, parallel, _show_result)
    if any(r.failure for r in results):
        raise typer.Exit(1)


def _show_result(result: batch.RunResult) -> None:
    """One finished run: where it lies, or the failed cell and its error."""
    console = _console()
    if result.failure is None:
        figures = len(list((result.folder / "figures").glob("*"))) if (result.folder / "figures").is_dir() else 0
        console.print(
            f"[green]{result.notebook}[/green] finished in {result.seconds:.0f} s: "
            f"{result.folder / result.notebook}.ipynb, {figures} files in figures/",
            soft_wrap=True,
        )
        return
    failure = result.failure
    console.print(f"[red]{result.notebook} failed[/red] in code cell {failure.cell} after {result.seconds:.0f} s")
    if failure.source:
        console.print(Syntax(failure.source, "python", line_numbers=True, background_color="default"))
    if failure.traceback:
        console.print(Text.from_ansi(failure.traceback))
    console.print(Text(failure.error))
    console.print(f"Partial notebook and stderr.txt: {result.folder}", soft_wrap=True)
