"""``limelight look``: run a model over a text, and show what each token looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MODEL, echo_json, read_text

NOT_TEXT = (".wav", ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")  # files that are no texts


def look(
    text: Annotated[
        str | None, typer.Argument(help="The text, in quotes; - for standard input.", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Read the text from a file (UTF-8); - for standard input. For Whisper a WAV file, for a vision model "
            "a picture."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help=f"{MODEL} Other families are opened with transformers, if it is installed.")
    ] = "minilm",
    target: Annotated[
        str | None,
        typer.Option(help="Of a model with an encoder and a decoder: a translation or transcript; else it writes one."),
    ] = None,
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

    Of a model that translates it shows the words aligned; of Whisper, when each word is said.

    Example: limelight look "The bank is near the river." --compare "She deposited money at the bank." --word bank
    """
    seen_or_heard = text is None and file is not None and file.suffix.lower() in NOT_TEXT
    given = file if seen_or_heard else read_text(text, file, 'limelight look "The bank is near the river."')
    if output is not None:
        _writable(output)
    from ..microscope import look as run
    from ..microscope import write_page
    from ..microscope.subjects import subject_of
    from ..microscope.terminal import summarise
    from ..tensors.shapes import wrong

    subject = subject_of(model)
    if output is not None and subject.kind == "encoder-decoder":
        got = f"{subject.name} has an encoder and a decoder"
        raise wrong("--output", "writes pages of encoders and decoders", got, "--json prints every table.")
    report = run(subject, given, target=target, compare=compare, words=word or (), special=special)
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
    elif report.cross is None:
        console.print("Add --output page.html for every head, layer and token as a page to explore.", style="dim")


def _writable(output: Path) -> None:
    """Check that a page can be written, before a model is run for it.

    Raises:
        ArgumentError: ``output`` is a folder, or lies in none that exists.
    """
    from ..tensors.shapes import wrong

    if output.is_dir():
        raise wrong("--output", "must name a file", f"{output} is a folder", f"Try {output / 'page.html'}.")
    if not output.parent.is_dir():
        raise wrong(
            "--output",
            "must lie in a folder that exists",
            f"{output.parent} does not",
            f"Make it: mkdir -p {output.parent}",
        )
