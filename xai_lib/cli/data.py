"""``data check`` and ``data prepare``: data sets on this machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from xai_lib.cli.common import console


def check(
    name: Annotated[str, typer.Argument(help="For example busi, mini_mias or cbis_ddsm; a wrong name lists them all.")],
    root: Annotated[Path | None, typer.Argument(help="Its folder (default: the official one in XAI_DATA_DIR).")] = None,
) -> None:
    """Say what a data set's folder holds, what is missing and what is faulty; exit code 1 if anything is."""
    from xai_lib import data

    report = data.check(name, root)
    console().print(Text(str(report)), soft_wrap=True)
    if report.missing or report.faulty:
        raise typer.Exit(1)


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
    console().print(
        ", ".join(f"{n} {status}" for status, n in counts.items()) + f"; {out}/prepared.csv", soft_wrap=True
    )
    if counts.get("failed", 0):
        raise typer.Exit(1)
