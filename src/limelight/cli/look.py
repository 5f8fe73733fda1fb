"""``limelight look``: run a model over a text, and show what each token looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MODEL, echo_json, read_text, writable


def look(
    text: Annotated[
        str | None, typer.Argument(help="The text, in quotes; - for standard input.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read the text from a file (UTF-8) instead; - for standard input.")
    ] = None,
    model: Annotated[str, typer.Option(help=MODEL)] = "minilm",
    compare: Annotated[str | None, typer.Option(help="A second text, to compare the words of both.")] = None,
    word: Annotated[list[str] | None, typer.Option(help="A word to report on; may be given several times.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Include special tokens, sinks, punctuation and the word itself.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write a page: one HTML file that opens without a network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every table as JSON instead.")] = False,
) -> None:
    """Run a model over a text, and show what each word looked at and how its vector moved through the layers.

    Example: limelight look "The bank is near the river." --compare "She deposited money at the bank." --word bank
    """
    text = read_text(text, file, 'limelight look "The bank is near the river."')
    if output is not None:
        writable("--output", output)
    from ..microscope import look as run
    from ..microscope import write_page
    from ..microscope.terminal import summarise

    report = run(model, text, compare=compare, words=word or (), special=special)
    from rich.console import Console

    size = None
    if output is not None:
        with Console(stderr=True).status("Writing the page"):  # ten seconds for 8,000 tokens
            size = write_page(report, output)
    if as_json:
        echo_json(report.to_json(indent=2))
        return
    console = Console(highlight=False)
    summarise(report, console)
    if size is not None:
        console.print(
            f"Page: {output} ({size / 1e6:.2f} MB), opens in any browser without a network.",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print("Add --output page.html for every head, layer and token as a page to explore.", style="dim")
