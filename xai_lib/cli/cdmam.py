"""``cdmam-readout``: contrast-detail curves from images of the CDMAM phantom."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from xai_lib.cli.common import console


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
        console(stderr=True).print(escape(line), soft_wrap=True)
    console().print(f"{len(done.matrices.images)} images read: {out / 'report.md'}", soft_wrap=True, markup=False)
