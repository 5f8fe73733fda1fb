"""``limelight look``: read a text with a real model, and see what each token looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..microscope import Report


def look(
    text: Annotated[str | None, typer.Argument(help="The text to read, in quotes.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read the text from a file (UTF-8) instead; - for standard input.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A name of `limelight models`, a folder, a .gguf file, or a hub name.")
    ] = "minilm",
    compare: Annotated[str | None, typer.Option(help="A second text, to compare the words of both.")] = None,
    word: Annotated[list[str] | None, typer.Option(help="A word to report on; may be given several times.")] = None,
    special: Annotated[
        bool, typer.Option("--special", help="Count special tokens, sinks, punctuation and the word itself too.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the page: one HTML file that opens without a network.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every table as JSON instead.")] = False,
) -> None:
    """Read a text with a model, and show what each word looked at and how its meaning moved.

    Example: limelight look "The bank is near the river." --compare "She deposited money at the bank." --word bank
    """
    text = read_text(text, file, 'limelight look "The bank is near the river."')
    if output is not None:
        _writable(output)
    from ..microscope import look as run
    from ..microscope import write_page

    report = run(model, text, compare=compare, words=word or (), special=special)
    from rich.console import Console

    size = None
    if output is not None:
        with Console(stderr=True).status("Writing the page"):  # ten seconds for 8,000 tokens
            size = write_page(report, output)
    if as_json:
        typer.echo(report.to_json(indent=2))
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


def read_text(text: str | None, file: Path | None, example: str) -> str:
    """The text that a command is given: itself, in a file, or from standard input (``-``)."""
    from ..shapes import ArgumentError, wrong

    if (text is None) == (file is None):
        got = "both were given" if text is not None else "neither was"
        raise wrong("TEXT or --file", "must name one text", got, f"For example: {example}")
    if file is None:
        assert text is not None
        return text
    if str(file) == "-":
        return typer.get_text_stream("stdin").read()
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"`--file` must be UTF-8 text, but byte {error.start:,} of {file} is {error.object[error.start]:#04x}. "
            "Convert it: iconv -f ENCODING -t UTF-8."
        ) from None
    except OSError as error:
        reason = f"{file} cannot be read ({error.strerror})"
        raise wrong(
            "--file", "must name a readable text file", reason, "Check the path, or give the text itself."
        ) from None


def _writable(output: Path) -> None:
    """Say that a page cannot be written before a model is run for it."""
    from ..shapes import wrong

    if output.is_dir():
        raise wrong("--output", "must name a file", f"{output} is a folder", f"Try {output / 'page.html'}.")
    if not output.parent.is_dir():
        raise wrong(
            "--output",
            "must lie in a folder that exists",
            f"{output.parent} does not",
            f"Make it: mkdir -p {output.parent}",
        )


def summarise(report: Report, console: Console) -> None:
    """The report in a terminal: relations and paths of the chosen words."""
    from rich.text import Text

    from ..microscope.look import NAMED

    facts, tables = report.model, report.tables
    sees = "each token sees itself and those before" if facts.kind == "decoder" else "each token sees every token"
    console.print()
    console.print(f"[bold]{facts.name}[/]: {facts.layers} layers x {facts.heads} heads, {sees}")
    for number, reading in enumerate(report.readings):
        many = len(report.readings) > 1
        shown = " ".join(reading.text.split())
        line = Text(f"{f'Text {number + 1}' if many else 'Text'} ({reading.length:,} tokens): ", style="dim")
        console.print(line.append(shown if len(shown) <= 160 else shown[:159] + "…", style="default"))
    if report.chosen_by != NAMED:
        console.print(Text(f"Words: {report.chosen_by}.", style="dim"))
    for text, chosen in enumerate(report.chosen):
        for index in chosen:
            _word(report, tables, text, index, console)
    if report.comparison is not None:
        _comparison(tables, console)
    console.print()
    footing = (
        "head: layer.head, from 0. even: if attention were spread evenly. mean: over that layer's heads.\n"
        "An attention weight is not an explanation."
    )
    console.print(Text(footing, style="dim"))


def _word(report: Report, tables: dict[str, Any], text: int, index: int, console: Console) -> None:
    from rich.text import Text

    words = report.readings[text].words
    word = words[index].text
    heading = Text(f"\n{word}", style="bold yellow")
    if len(report.readings) > 1:
        heading.append(f"  in text {text + 1}", style="dim")
    if len(report.readings[text].find(word)) > 1:
        heading.append(f"  word {index + 1:,} of {len(words):,}", style="dim")
    console.print(heading)
    found = [row for row in tables["relations"] if (row["text"], row["index"]) == (text, index)]
    if found:
        console.print(_relations(found))
    else:
        console.print(Text("  no relation to another word", style="dim"))
    path = [row for row in tables["path"] if (row["text"], row["index"]) == (text, index)]
    console.print(
        _layers(
            [row["depth"] for row in path],
            {
                "cosine with embedding": [row["cosine"] for row in path],
                "mean of all words": [row["all_words"] for row in path],
            },
        )
    )


def _relations(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", max_width=24, overflow="ellipsis", no_wrap=True)
    for name in ("weight", "even", "", "head", "mean", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    direction = None
    for row in rows:
        if row["direction"] != direction:
            direction = row["direction"]
            table.add_row(Text(f"  {direction}", style="italic"))
        ratio = row["weight"] / row["uniform"] if row["uniform"] else 0.0
        table.add_row(
            Text(f"    {row['other']}"),  # as text: a word such as [bold] is no markup
            ("≥ " if row["lower_bound"] and row["pieces"] > 1 else "") + f"{row['weight']:.3f}",
            Text(_number(row["uniform"]), style="dim"),
            Text(f"{ratio:,.1f}x" if ratio < 100 else f"{ratio:,.0f}x", style="dim"),
            f"{row['layer']}.{row['head']}",
            Text(f"{row['layer_mean']:.3f}", style="dim"),
            Text(_where(row["offset"]) if row["other_kind"] == "word" else row["other_kind"], style="dim"),
        )
    return table


def _number(value: float) -> str:
    """Three digits after the point, or two that say something."""
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def _where(offset: int) -> str:
    """How far away the other word is, in words."""
    if abs(offset) == 1:
        return "next word" if offset > 0 else "word before"
    return f"{abs(offset):,} words {'on' if offset > 0 else 'back'}"


def _layers(depths: list[int], lines: dict[str, list[float]], most: int = 7) -> Table:
    """Numbers by layers passed, at most ``most`` columns."""
    from rich.table import Table

    step = -(-(len(depths) - 1) // (most - 1)) if len(depths) > most else 1
    columns = sorted({*range(0, len(depths), step), len(depths) - 1})
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  layers passed", no_wrap=True)
    for column in columns:
        table.add_column(str(depths[column]) if column else "0 (emb.)", justify="right", no_wrap=True)
    for name, values in lines.items():
        table.add_row(
            f"  {name}", *(f"{values[column]:.2f}" for column in columns), style="" if len(table.rows) == 0 else "dim"
        )
    return table


def _comparison(tables: dict[str, Any], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print(Text("\nThe same word in both texts", style="bold"))
    chosen = [row for row in tables["contexts"] if row["chosen"]]
    if not chosen:
        console.print(Text("  no chosen word stands in both", style="dim"))
        return
    lines: dict[str, list[float]] = {}
    for row in chosen:
        lines.setdefault(f"cosine of {row['word']} with {row['word']}", []).append(row["cosine"])
    first = [row for row in chosen if row["index"] == chosen[0]["index"]]
    lines["mean of different words"] = [row["different_words"] for row in first]
    console.print(_layers([row["depth"] for row in first], lines))
    if not tables["changes"]:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("  looks at", "", "text 1", "text 2", "change", "layer"):
        table.add_column(name, justify="left" if name in ("  looks at", "") else "right", no_wrap=True)
    for row in tables["changes"]:
        change = row["second"] - row["first"]
        table.add_row(
            Text(f"  {row['word']}"),
            Text(f"→ {row['other']}"),
            f"{row['first']:.3f}",
            f"{row['second']:.3f}",
            f"{change:+.3f}",
            str(row["layer"]),
        )
    console.print(Text("\nWhat changed most (mean over the heads of the layer)", style="bold"))
    console.print(table)
