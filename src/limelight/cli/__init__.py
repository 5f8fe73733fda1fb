"""The command line: one file for each command."""

from __future__ import annotations

import sys

import typer

from ..backends.contract import BackendError
from ..shapes import ArgumentError
from .bench import bench
from .cost import cost
from .explain import explain
from .generate import generate
from .look import look
from .models import models
from .train import train

app = typer.Typer(
    name="limelight",
    help="Exact attention in every form, fast on any machine, and visible.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(look)
app.command()(generate)
app.command()(models)
app.command()(explain)
app.command()(bench)
app.command()(cost)
app.command()(train)


def main() -> None:
    """Run the command line. A user's mistake ends in one paragraph, not in a traceback."""
    try:
        app()
    except (ArgumentError, BackendError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("interrupted", err=True)
        sys.exit(130)
