"""Command line: ``xai-lib list | run | real | verify | claims | attribute | cdmam-readout | data``.

Every mistake of the user ends in one line on stderr and exit code 1.
"""

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from xai_lib import batch, config, notebooks
from xai_lib import records as record_files
from xai_lib import verify as checks


class _Group(TyperGroup):
    """Commands whose expected errors are one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a ValueError or OSError into its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError) as error:
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


_JUDGED = ("id", "claim", "paper", "ours", "interval", "baseline", "verdict", "data", "profile")
_LISTS = ("ours", "interval", "baseline")  # several figures of one claim, one line each
_OPEN = ("id", "claim", "paper", "verdict")

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


def _results(folder: Path | None) -> Path:
    """Folder of results: the one named, which must exist, or the default one."""
    if folder is not None and not folder.is_dir():
        raise NotADirectoryError(f"folder of results {folder} does not exist")
    return config.output_dir(folder)


@app.command("list")
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
            table.add_row(path.stem, escape(found.title), names, _record_state(found, _results(output)))
    _console().print(table)


def _record_state(notebook: notebooks.Notebook, folder: Path) -> str:
    """Whether the newest run left a record, and whether the notebook's code is still the same."""
    stem = notebook.path.stem
    try:
        made_with = json.loads((folder / stem / f"{stem}.record.json").read_text())["notebook_sha256"]
    except (OSError, ValueError, LookupError):
        return "none"
    return "yes" if made_with == notebook.sha256 else "notebook changed since"


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
    end_on_sigterm()
    results = batch.run_many(jobs, parallel, _show_result)
    if any(r.failure for r in results):
        raise typer.Exit(1)


def end_on_sigterm() -> None:
    """Let SIGTERM end running notebooks in order, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


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


@app.command()
def verify(
    records: Annotated[Path | None, typer.Option(help="Folder of the records to check (default: outputs).")] = None,
    expected: Annotated[
        Path | None, typer.Option(help="Folder of the pinned figures (default: data/expected).")
    ] = None,
) -> None:
    """Compare fresh records with the pinned figures; exit code 1 if a figure moved, or nothing could be compared."""
    folder = _results(records)
    report = checks.verify(checks.find_records(folder), expected)
    console = _console()
    if report.comparisons:
        table = Table("notebook", "profile", "figure", "expected", "tolerance", "ours", "moved", "")
        for c in sorted(report.comparisons, key=lambda c: c.ok):
            numbers = ["missing" if n is None else f"{n:.6g}" for n in (c.expected, c.tolerance, c.ours)]
            moved = "" if c.ours is None else f"{c.moved:+.3g}"
            table.add_row(c.study, c.profile, c.figure, *numbers, moved, "ok" if c.ok else "[red]moved[/red]")
        console.print(table)
    for line in report.skipped:
        console.print(f"not compared: {escape(line)}", soft_wrap=True)
    for line in report.problems:
        console.print(f"[red]problem:[/red] {escape(line)}", soft_wrap=True)
    if not report.comparisons:
        console.print(f"Nothing was compared: no fresh record with pinned figures in {folder}", soft_wrap=True)
    bad = sum(not c.ok for c in report.comparisons)
    console.print(f"{len(report.comparisons)} figures compared, {bad} moved, {len(report.problems)} problems")
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def claims(
    records: Annotated[Path | None, typer.Option(help="Folder of fresh records (default: outputs).")] = None,
) -> None:
    """Print the ledger: each claim of the papers, our figure, its baseline and the verdict."""
    from xai_lib import claims as rules  # pandas takes a second

    committed = sorted((config.repository_dir() / "data" / "records").glob("**/*.json"))
    found = {path: record_files.read(path) for path in [*committed, *checks.find_records(_results(records))]}
    ledger = rules.ledger(list(found.values()))
    console = _console()
    judged = ledger["why"] != ""
    for part, columns in ((ledger[judged], _JUDGED), (ledger[~judged], _OPEN)):
        table = Table(*columns)
        for row in part[list(columns)].itertuples(index=False):
            cells = zip(columns, map(escape, map(str, row)), strict=True)
            table.add_row(*[text.replace("; ", "\n") if name in _LISTS else text for name, text in cells])
        if len(part):
            console.print(table)
    for row in ledger[judged].itertuples(index=False):
        console.print(Text(f"{row.id} on {row.data} ({row.profile}): {row.verdict}. {row.why}"), soft_wrap=True)
    counts = ", ".join(f"{number} {verdict}" for verdict, number in ledger["verdict"].value_counts().items())
    console.print(f"{ledger['id'].nunique()} claims, {len(found)} records: {counts}")
    for path, record in found.items():
        if checks.outdated(record):
            console.print(f"[yellow]older:[/yellow] {path}: its notebook changed since this record", soft_wrap=True)


@app.command()
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
    from xai_lib.real_runs import run_real

    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"out: {out} is not the name of a .json file")  # said now, not after hours
    source = str(root) if root else None
    record = run_real(study, dataset, source, weights, padding, precision, maps, threads, checkpoint, seeds)
    record_files.write(record, out)
    for name, figure in record.figures.items():
        _console().print(Text(f"{name}: {figure.estimate}"), soft_wrap=True)


@app.command("cdmam-readout")
def cdmam_readout(
    images: Annotated[list[Path] | None, typer.Argument(help="DICOM, PNG or TIFF files, or folders of them.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for matrices, curve and report.")] = Path("cdmam_readout"),
    use: Annotated[str, typer.Option(help="Discs that count: corner, centre or both.")] = "corner",
    matrices: Annotated[list[Path] | None, typer.Option(help="Another reader's matrices (CSV); repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Contrast-detail curve of CDMAM 3.4 images, or of another reader's matrices, beside the guidelines' limits."""
    from xai_lib.cdmam import report
    from xai_lib.plotting import contrast_detail

    if bool(images) == bool(matrices):
        raise ValueError("cdmam-readout: give either images or --matrices")
    if matrices:
        done = report.read_scores(matrices, out, use, seed, contrast_detail)
    else:
        done = report.read_folder(images or [], out, use, seed=seed, draw=contrast_detail)
    for line in (*done.warnings, *(f"refused {skipped.source}: {skipped.why}" for skipped in done.refused)):
        _console(stderr=True).print(escape(line), soft_wrap=True)
    _console().print(f"{len(done.matrices.images)} images read: {out / 'report.md'}", soft_wrap=True, markup=False)


@data_app.command()
def check(
    name: Annotated[str, typer.Argument(help="For example busi, mini_mias or cbis_ddsm; a wrong name lists them all.")],
    root: Annotated[Path | None, typer.Argument(help="Its folder (default: the official one in XAI_DATA_DIR).")] = None,
) -> None:
    """Say what a data set's folder holds, what is missing and what is faulty; exit code 1 if anything is."""
    from xai_lib import data

    report = data.check(name, root)
    _console().print(Text(str(report)), soft_wrap=True)
    if report.missing or report.faulty:
        raise typer.Exit(1)


@data_app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of DICOM, PNG or other image files; searched in depth.")],
    out: Annotated[Path, typer.Argument(help="Folder of the results, beside it.")],
    threshold: Annotated[float, typer.Option(help="Breast against background, as a share of the grey range.")] = 0.07,
    stretch: Annotated[bool, typer.Option(help="Stretch the grey values inside the breast to the full range.")] = True,
    voi: Annotated[bool, typer.Option(help="Apply the window or VOI LUT of a DICOM file.")] = True,
    keep_paths: Annotated[
        bool, typer.Option(help="Write source paths, which may name patients, to the table.")
    ] = False,
) -> None:
    """Crop mammograms to the breast, chest wall left, as 16-bit PNG without patient data; a stopped run goes on."""
    from xai_lib.data.prepare import prepare_folder

    table = prepare_folder(source, out, threshold, stretch, voi, keep_paths)
    counts = table["status"].value_counts()
    _console().print(
        ", ".join(f"{n} {status}" for status, n in counts.items()) + f"; {out}/prepared.csv", soft_wrap=True
    )
    if counts.get("failed", 0):
        raise typer.Exit(1)


@app.command()
def attribute(
    image: Annotated[Path, typer.Argument(help="PNG, JPEG, TIFF, BMP or DICOM file.")],
    checkpoint: Annotated[Path, typer.Option(help="A .safetensors file with its JSON card beside it.")],
    method: Annotated[str, typer.Option(help="For example integrated_gradients; a wrong name lists them all.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    option: Annotated[
        list[str] | None, typer.Option("-o", "--option", metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    target: Annotated[int, typer.Option(help="Output to explain.")] = 0,
    size: Annotated[int | None, typer.Option(help="Side of the network's input (default: the card's, or 224).")] = None,
) -> None:
    """Explain one image file: PNG overlay, the map as .npy, and how it was made as JSON."""
    from xai_lib.explain_file import explain_file

    options = dict(_option(text) for text in option or [])
    for path in explain_file(image, checkpoint, method, out, options, target, size):
        _console().print(Text(str(path)), soft_wrap=True)


def _option(text: str) -> tuple[str, Any]:
    """``steps=50`` -> ("steps", 50): numbers, true, false and lists as in YAML, anything else is text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"option: {text!r} is not NAME=VALUE")
    return name, yaml.safe_load(value)
