"""Command line: ``xai-lib list | run | sweep | real | verify | claims | report | attribute | cdmam-readout | data``.

Every mistake of the user ends in one line on stderr and exit code 1. Each command is a function in a module here.
"""

import typer

from xai_lib.cli import attribute, cdmam, checking, data, report, running, sweep
from xai_lib.cli.common import OneLineErrors, PapermillParameters

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
data_app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Open companion to five papers on explainable AI for breast imaging. Not for diagnosis."""


app.command("list")(running.list_)
app.command("run", cls=PapermillParameters)(running.run)
app.command("sweep")(sweep.sweep)
app.command("real")(running.real)
app.command("verify")(checking.verify)
app.command("claims")(checking.claims)
app.command("report")(report.report)
app.command("attribute")(attribute.attribute)
app.command("cdmam-readout")(cdmam.cdmam_readout)
data_app.command("check")(data.check)
data_app.command("prepare")(data.prepare)
app.add_typer(data_app, name="data", help="Data sets on this machine.")
