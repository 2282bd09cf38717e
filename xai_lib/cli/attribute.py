"""``attribute``: explain an image file of one's own, or every image of a data set."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.text import Text

from xai_lib.cli.common import console

SHOWN = 10  # failures that are listed; the store names all of them


def attribute(
    checkpoint: Annotated[Path, typer.Option(help="A .safetensors file with its JSON card beside it.")],
    method: Annotated[str, typer.Option(help="For example integrated_gradients; a wrong name lists them all.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; with --dataset, the Zarr store of the maps.")],
    image: Annotated[Path | None, typer.Argument(help="PNG, JPEG, TIFF, BMP or DICOM file.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Instead of an image: name of a data set.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the data set (default: in XAI_DATA_DIR).")] = None,
    split: Annotated[str | None, typer.Option(help="train, val or test (default: all cases).")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first cases.")] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, instead of --workers.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the stored maps: float32 or float16.")] = "float32",
    option: Annotated[
        list[str] | None, typer.Option("-o", "--option", metavar="NAME=VALUE", help="Option of the method; repeatable.")
    ] = None,
    target: Annotated[int, typer.Option(help="Output to explain.")] = 0,
    size: Annotated[int | None, typer.Option(help="Side of the network's input (default: the card's, or 224).")] = None,
) -> None:
    """Explain one image file (PNG overlay, map, how it was made), or all images of a data set into one Zarr store.

    The same call with --dataset goes on where an earlier one was killed. Exit code 1 when an image has no map.
    """
    if (image is None) == (dataset is None):
        raise ValueError("give either an image or --dataset NAME")
    options = dict(_option(text) for text in option or [])
    if image is not None:
        _refuse(root=root, split=split, limit=limit, scheduler=scheduler)
        from xai_lib.explain_file import explain_file

        for path in explain_file(image, checkpoint, method, out, options, target, size):
            console().print(Text(str(path)), soft_wrap=True)
        return
    from xai_lib import data
    from xai_lib.map_cases import explain_dataset

    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} is below 1")
    cases = data.load(str(dataset), root, split)
    cases = cases if limit is None else cases.subset(range(min(limit, len(cases))))
    store = explain_dataset(
        cases, out, checkpoint, method, options, target, size, workers=workers, client=scheduler, dtype=dtype
    )
    failed = list(store.failures.items())
    console().print(Text(f"{out}: {int(store.done.sum())} maps of {len(cases)} images"), soft_wrap=True)
    for index, why in failed[:SHOWN]:
        console().print(Text(f"  image {index} ({store.ids[index]}) has none: {why}"), soft_wrap=True)
    if len(failed) > SHOWN:
        console().print(f"  and {len(failed) - SHOWN} more")
    if failed:
        raise typer.Exit(1)


def _refuse(**given: object) -> None:
    """Raise for an option that belongs to --dataset."""
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise ValueError(f"--{wrong[0]} belongs to --dataset")


def _option(text: str) -> tuple[str, Any]:
    """``steps=50`` -> ("steps", 50): numbers, true, false and lists as in YAML, anything else is text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"option: {text!r} is not NAME=VALUE")
    return name, yaml.safe_load(value)
