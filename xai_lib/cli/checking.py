"""``verify`` and ``claims``: figures against the pinned ones, and against the papers."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from xai_lib import config
from xai_lib import records as record_files
from xai_lib import verify as checks
from xai_lib.cli.common import console, results_folder

_JUDGED = ("id", "claim", "paper", "ours", "interval", "baseline", "verdict", "data", "profile")
_LISTS = ("ours", "interval", "baseline")  # several figures of one claim, one line each
_OPEN = ("id", "claim", "paper", "verdict")


def verify(
    records: Annotated[Path | None, typer.Option(help="Folder of the records to check (default: outputs).")] = None,
    expected: Annotated[
        Path | None, typer.Option(help="Folder of the pinned figures (default: data/expected).")
    ] = None,
    exact: Annotated[
        bool, typer.Option(help="Ask for equal figures: on the machine that they were pinned on.")
    ] = False,
) -> None:
    """Compare fresh records with the pinned figures; exit code 1 if a figure moved, or nothing could be compared.

    Figures may move by the tolerance in the file; on the machine that the file names they are equal (--exact).
    """
    folder = results_folder(records)
    report = checks.verify(checks.find_records(folder), expected, exact)
    out = console()
    if report.comparisons:
        table = Table("notebook", "profile", "figure", "expected", "tolerance", "ours", "moved", "")
        verdict = lambda c: "[red]moved[/red]" if c in report.moved else "equal" if c.equal else "ok"  # noqa: E731
        for c in sorted(report.comparisons, key=lambda c: c not in report.moved):
            numbers = ["missing" if n is None else f"{n:.6g}" for n in (c.expected, c.tolerance, c.ours)]
            moved = "" if c.ours is None else f"{c.moved:+.3g}"
            table.add_row(c.study, c.profile, c.figure, *numbers, moved, verdict(c))
        out.print(table)
    for line in report.skipped:
        out.print(f"not compared: {escape(line)}", soft_wrap=True)
    for line in report.problems:
        out.print(f"[red]problem:[/red] {escape(line)}", soft_wrap=True)
    if not report.comparisons:
        out.print(f"Nothing was compared: no fresh record with pinned figures in {folder}", soft_wrap=True)
    equal, bad = sum(c.equal for c in report.comparisons), len(report.moved)
    counts = f"{bad} moved, {len(report.problems)} problems; {equal} equal to the last digit"
    out.print(f"{len(report.comparisons)} figures compared, {counts}")
    if not report.ok:
        raise typer.Exit(1)


def claims(
    records: Annotated[Path | None, typer.Option(help="Folder of fresh records (default: outputs).")] = None,
) -> None:
    """Print the ledger: each claim of the papers, our figure, its baseline and the verdict."""
    from xai_lib import claims as rules  # pandas takes a second

    committed = sorted((config.repository_dir() / "data" / "records").glob("**/*.json"))
    found = {path: record_files.read(path) for path in [*committed, *checks.find_records(results_folder(records))]}
    ledger = rules.ledger(list(found.values()))
    out = console()
    judged = ledger["why"] != ""
    for part, columns in ((ledger[judged], _JUDGED), (ledger[~judged], _OPEN)):
        table = Table(*columns)
        for row in part[list(columns)].itertuples(index=False):
            cells = zip(columns, map(escape, map(str, row)), strict=True)
            table.add_row(*[text.replace("; ", "\n") if name in _LISTS else text for name, text in cells])
        if len(part):
            out.print(table)
    for row in ledger[judged].itertuples(index=False):
        out.print(Text(f"{row.id} on {row.data} ({row.profile}): {row.verdict}. {row.why}"), soft_wrap=True)
    counts = ", ".join(f"{number} {verdict}" for verdict, number in ledger["verdict"].value_counts().items())
    out.print(f"{ledger['id'].nunique()} claims, {len(found)} records: {counts}")
    for path, record in found.items():
        if checks.outdated(record):
            out.print(f"[yellow]older:[/yellow] {path}: its notebook changed since this record", soft_wrap=True)
