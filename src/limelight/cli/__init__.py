"""The command line: one file for each command, and `options` for what they share."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from typing import Annotated

import typer

from .. import _interrupted
from .._version import __version__
from ..backends.contract import BackendError
from ..tensors.shapes import ArgumentError
from ..text import printable
from .bench import bench
from .cost import cost
from .explain import explain
from .generate import generate
from .heads import heads
from .look import look
from .models import models
from .options import Command
from .train import train

app = typer.Typer(
    name="limelight",
    help="Exact attention in every form, fast on any machine, and visible.",
    no_args_is_help=True,
    # As markdown, paragraphs are filled to the width; a table of options needs one.
    rich_markup_mode="markdown" if shutil.get_terminal_size().columns >= 60 else None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (look, heads, generate, models, explain, bench, cost, train):
    app.command(cls=Command)(command)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"limelight {__version__}")
        raise typer.Exit


@app.callback()
def _limelight(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Exact attention in every form, fast on any machine, and visible.

    Example: limelight look "The bank is near the river."
    """


def main() -> None:
    """Run the command line; a mistake of the user is reported as one paragraph, without a traceback."""
    _interrupted.imported()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream of another kind
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except (ArgumentError, BackendError, OSError) as error:
        typer.secho(f"error: {printable(str(error))}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("interrupted", err=True)
        sys.exit(130)
