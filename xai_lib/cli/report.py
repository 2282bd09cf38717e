"""``report``: one static HTML site from the records and the notebooks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from xai_lib.cli.common import console, results_folder


def report(
    records: Annotated[
        Path | None, typer.Option(help="Folder of fresh records, notebooks and figures (default: outputs).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the site (default: outputs/report).")] = None,
) -> None:
    """Write a site to read: ledger of claims, figures with baselines, pictures, notebooks; no network is needed.

    The records committed in data/records are always shown. What cannot be read is named, on the site as well, and the
    exit code is then 1.
    """
    from xai_lib.report import build  # it imports pandas and nbconvert

    results = results_folder(records)
    site = build(out or results_folder(None) / "report", results)
    screen = console()
    for problem in site.problems:
        screen.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
    size = f"{site.size / 2**20:.1f} MiB"
    screen.print(f"{site.pages} pages of {site.records} records, {size}: {escape(str(site.folder))}/index.html")
    if site.problems:
        raise typer.Exit(1)
