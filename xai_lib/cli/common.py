"""What the commands share: the console, the folder of results, and errors that are one line."""

import signal
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from xai_lib import config


class OneLineErrors(TyperGroup):
    """Commands whose expected errors are one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; turn a ValueError or OSError into its message and exit code 1."""
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError) as error:
            console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
            raise typer.Exit(1) from None


class PapermillParameters(TyperCommand):
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


def console(stderr: bool = False) -> Console:
    """Console as wide as the terminal, or 160 columns where there is none (a file, CI)."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 160, highlight=False)


def results_folder(folder: Path | None) -> Path:
    """Folder of results: the one named, which must exist, or the default one."""
    if folder is not None and not folder.is_dir():
        raise NotADirectoryError(f"folder of results {folder} does not exist")
    return config.output_dir(folder)


def end_on_sigterm() -> None:
    """Let SIGTERM end running notebooks in order, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
