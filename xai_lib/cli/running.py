"""``list``, ``run`` and ``real``: what there is, and carrying it out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from xai_lib import batch, notebooks
from xai_lib import records as record_files
from xai_lib.cli.common import console, end_on_sigterm, results_folder


def list_(
    notebook: Annotated[str | None, typer.Argument(help="Number or name: show its parameters in full.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of results (default: outputs).")] = None,
) -> None:
    """Show the notebooks, their parameters, and whether there is a record of each."""
    if notebook is not None:
        found = notebooks.read_notebook(notebooks.find_notebook(notebook))
        table = Table("parameter", "type", "default", "meaning", title=f"{found.path.stem}: {found.title}")
        for p in found.parameters.values():
            table.add_row(*map(escape, (p.name, p.type, p.default, p.help)))
    else:
        table = Table("notebook", "study", "parameters", "record")
        for path in notebooks.list_notebooks():
            found = notebooks.read_notebook(path)
            names = ", ".join(found.parameters)
            table.add_row(path.stem, escape(found.title), names, _record_state(found, results_folder(output)))
    console().print(table)


def _record_state(notebook: notebooks.Notebook, folder: Path) -> str:
    """Whether the newest run left a record, and whether the notebook's code is still the same."""
    stem = notebook.path.stem
    try:
        made_with = json.loads((folder / stem / f"{stem}.record.json").read_text())["notebook_sha256"]
    except (OSError, ValueError, LookupError):
        return "none"
    return "yes" if made_with == notebook.sha256 else "notebook changed since"


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
    end_on_sigterm()
    results = batch.run_many(jobs, parallel, _show_result)
    if any(r.failure for r in results):
        raise typer.Exit(1)


def _show_result(result: batch.RunResult) -> None:
    """One finished run: where it lies, or the failed cell and its error."""
    out = console()
    if result.failure is None:
        figures = len(list((result.folder / "figures").glob("*"))) if (result.folder / "figures").is_dir() else 0
        out.print(
            f"[green]{result.notebook}[/green] finished in {result.seconds:.0f} s: "
            f"{result.folder / result.notebook}.ipynb, {figures} files in figures/",
            soft_wrap=True,
        )
        return
    failure = result.failure
    out.print(f"[red]{result.notebook} failed[/red] in code cell {failure.cell} after {result.seconds:.0f} s")
    if failure.source:
        out.print(Syntax(failure.source, "python", line_numbers=True, background_color="default"))
    if failure.traceback:
        out.print(Text.from_ansi(failure.traceback))
    out.print(Text(failure.error))
    out.print(f"Partial notebook and stderr.txt: {result.folder}", soft_wrap=True)


def real(
    study: Annotated[str, typer.Argument(help="patches (study 1), boxes, insertion (2), transfer (4), deletion (5).")],
    out: Annotated[Path, typer.Argument(help="The record to write, a .json file.")],
    dataset: Annotated[
        str, typer.Option(help="Of mammograms with located lesions; for transfer: of images with masks.")
    ] = "mini_mias",
    root: Annotated[Path | None, typer.Option(help="Its folder (default: the official one in XAI_DATA_DIR).")] = None,
    weights: Annotated[
        str | None, typer.Option(help="imagenet, or a file; default: ours for boxes and deletion, else imagenet.")
    ] = None,
    padding: Annotated[
        str, typer.Option(help="Of patches' and transfer's weights: torchvision or tensorflow.")
    ] = "torchvision",
    precision: Annotated[str, typer.Option(help="Of the maps of many passes: float32 or bf16.")] = "float32",
    maps: Annotated[int | None, typer.Option(help="Images to explain (default: the study's).")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads (default: all cores).")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Of transfer: a second start, a .safetensors file.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Of transfer: trainings of each fold (default: three).")] = None,
) -> None:
    """Carry a study out on real images: train in folds, explain, and write the record; a stopped run goes on."""
    from xai_lib.studies.real_runs import run_real

    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"out: {out} is not the name of a .json file")  # said now, not after hours
    source = str(root) if root else None
    record = run_real(study, dataset, source, weights, padding, precision, maps, threads, checkpoint, seeds)
    record_files.write(record, out)
    for name, figure in record.figures.items():
        console().print(Text(f"{name}: {figure.estimate}"), soft_wrap=True)
