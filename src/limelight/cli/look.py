"""``limelight look``: run a model over a text, and show what each token looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import MODEL, echo_json, errors_of, read_text, writable

if TYPE_CHECKING:
    from ..generation import Sampler

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
        str | None,
        typer.Option(
            help=f"{MODEL} Other families are opened with transformers, if it is installed. By default minilm, and "
            "smollm2 with --generate or --lens.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Of a model with an encoder and a decoder: a translation or transcript; else it writes one."),
    ] = None,
    compare: Annotated[str | None, typer.Option(help="A second text, to compare the words of both.")] = None,
    word: Annotated[list[str] | None, typer.Option(help="A word to report on; may be given several times.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Include special tokens, sinks, punctuation and the word itself.")
    ] = False,
    generate: Annotated[
        int | None,
        typer.Option(
            help="Let a decoder continue the text by at most this many tokens; show its candidates for each, and what "
            "each layer's state alone would write.",
            min=1,
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="With --generate: sampling temperature; without it decoding is greedy.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="With --generate: sample from the most likely tokens that together have this probability."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    lens: Annotated[
        bool, typer.Option("--lens", help="Show candidates and the logit lens for every token of a decoder's text.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write a page: one HTML file that opens without a network.")
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(help="With --output: the JSON of the model's atlas, whose roles then stand beside the heads."),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Look at what a vLLM server attends to while it continues the text, by default by 16 tokens; such as "
            "http://127.0.0.1:8000.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every table as JSON instead.")] = False,
) -> None:
    """Run a model over a text, and show what each word looked at and how its vector moved through the layers.

    Of a model that translates it shows the words aligned; of Whisper, when each word is said; of a vision model, where
    each patch of the picture looks.

    Example: limelight look "The bank is near the river." --compare "She deposited money at the bank." --word bank

    Example: limelight look "The capital of France is" --generate 40 --output written.html
    """
    if server is not None:
        others = {
            "--target": target, "--compare": compare, "--word": word or None, "--model": model, "--atlas": atlas,
            "--temperature": temperature, "--top-p": top_p, "--seed": seed, "--lens": lens or None,
            "--special": special or None,
        }  # fmt: skip
        beginning = read_text(text, file, 'limelight look "Once" --server URL')
        _look_at_server(server, beginning, generate, others, output, as_json)
        return
    sampler = _sampler(generate, temperature, top_p, seed)
    seen_or_heard = text is None and file is not None and file.suffix.lower() in NOT_TEXT
    given = file if seen_or_heard else read_text(text, file, 'limelight look "The bank is near the river."')
    if output is not None:
        writable("--output", output, ".html")
    from ..microscope import load_atlas, write_page
    from ..microscope import look as run
    from ..microscope.subjects import subject_of
    from ..microscope.terminal.report import summarise
    from ..tensors.shapes import wrong
    from ..text import printable

    name = model or ("minilm" if generate is None and not lens else "smollm2")
    subject = subject_of(name)
    if atlas is not None and output is None:
        raise wrong("--atlas", "needs a page to stand in", "there is no --output", "Add --output page.html.")
    with errors_of("--atlas", "path"):
        roles = None if atlas is None else load_atlas(atlas)
    settings: dict[str, Any] = {"generate": generate, "sampler": sampler, "seed": seed, "lens": lens}
    with errors_of("--file" if text is None else "TEXT", "text"):
        report = run(subject, given, target=target, compare=compare, words=word or (), special=special, **settings)
    from rich.console import Console

    size = None
    if output is not None:
        with Console(stderr=True).status("Writing the page"):  # ten seconds for 8,000 tokens
            size = write_page(report, output, roles, None if atlas is None else _page_of(atlas))
    if as_json:
        echo_json(report.to_json(indent=2))
        return
    console = Console(highlight=False)
    summarise(report, console)
    if size is not None:
        console.print(
            f"Page: {printable(str(output))} ({size / 1e6:.2f} MB), opens in any browser without a network.",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print("Add --output page.html for every head, layer and token as a page to explore.", style="dim")


def _look_at_server(
    server: str, text: str, generate: int | None, others: dict[str, Any], output: Path | None, as_json: bool
) -> None:
    """Print what a server attended to, and write its page.

    Raises:
        ArgumentError: there is no such server, or an option that does not belong to one is given.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console

    from ..microscope.page.served import write_served
    from ..microscope.served import look_at_server, summarise_served
    from ..tensors.shapes import wrong
    from ..text import printable

    for name, value in others.items():
        if value is not None:
            raise wrong(name, "belongs to a model that is run here", "--server is given", "Leave one of them out.")
    if output is not None:
        writable("--output", output, ".html")
    with Console(stderr=True).status("Waiting for the server"):
        served = look_at_server(server, text, generate=generate or 16)
    if as_json:
        echo_json(json.dumps(asdict(served), indent=2))
    else:
        summarise_served(served, Console(highlight=False))
    if output is not None:
        write_served(served, output)
        Console(stderr=True, highlight=False).print(f"Page: {printable(str(output))}", markup=False, soft_wrap=True)


def _sampler(generate: int | None, temperature: float | None, top_p: float | None, seed: int | None) -> Sampler | None:
    """Return the sampler of the options; ``None`` for greedy decoding.

    Raises:
        ArgumentError: an option without the one that it belongs to.
    """
    from ..generation import Sample
    from ..tensors.shapes import wrong

    sampling = {"temperature": temperature, "top_p": top_p}
    given: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if given and generate is None:
        name = "--" + next(iter(given)).replace("_", "-")
        raise wrong(name, "belongs to --generate", "nothing is written", "For example: --generate 40.")
    if seed is not None and not given:
        raise wrong("--seed", "belongs to sampling", "decoding is greedy", "For example: --temperature 0.8.")
    return Sample(**given) if given else None


def _page_of(atlas: Path) -> Path | None:
    """The page of an atlas, if it stands beside its JSON: ``atlas.html`` beside ``atlas.json``."""
    page = atlas.with_suffix(".html")
    return page if page.is_file() else None
