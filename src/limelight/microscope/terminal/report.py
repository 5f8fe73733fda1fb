"""A `Report` in a terminal: relations and paths of the chosen words, and what differs between two texts."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...text import printable
from ..choosing import NAMED
from ..report import Report
from .cross import print_alignment
from .predictions import print_predictions

# Widths in columns: of a terminal that shows every column of a table; of names in it, and of names in a narrower one.
WIDE, WIDEST, NARROW = 72, 24, 14
SHORT, AROUND = 25, 4  # words of a text in which a word is found at a glance; words shown around one otherwise


def summarise(report: Report, console: Console) -> None:
    """Print a report: relations and paths of the chosen words, and the comparison of two texts."""
    facts, tables = report.model, report.tables
    sees = {
        "encoder": "each token sees every token",
        "decoder": "each token sees itself and those before",
        "encoder-decoder": "a decoder that sees the source of an encoder",
    }[facts.kind]
    console.print()
    console.print(Text.assemble((facts.name, "bold"), f": {facts.layers} layers x {facts.heads} heads, {sees}"))
    for number, reading in enumerate(report.readings):
        many = len(report.readings) > 1
        line = Text(f"{f'Text {number + 1}' if many else 'Text'} ({reading.length:,} tokens): ", style="dim")
        console.print(line.append(_one_line(reading.text, 160), style="default"))
    for warning in report.warnings:
        console.print(Text(printable(warning), style="yellow"))
    if report.chosen_by != NAMED:
        console.print(Text(f"Words: {report.chosen_by}.", style="dim"))
    print_predictions(report, console)
    for text, chosen in enumerate(report.chosen):
        for index in chosen:
            _print_word(report, tables, text, index, console)
    if report.comparison is not None:
        _print_comparison(tables, console)
    if report.cross is not None:
        print_alignment(report.cross, console)
    console.print()
    console.print(Text("\n".join(_footing(report, tables)), style="dim"))


def _footing(report: Report, tables: dict[str, Any]) -> list[str]:
    """Explain the signs that occur in the tables."""
    lines = [
        "head: layer.head, from 0. even: if attention were spread evenly. usual: what the head gives at that distance "
        "elsewhere in the text; lift: the weight as its multiple. Content words first, then the others, by how much "
        "they exceed the usual.",
    ]
    if any(row["positional"] for row in tables["relations"]):
        lines.append("*: a head that mostly looks at the previous, own or next token, whatever it is.")
    if any(row["lower_bound"] and row["pieces"] > 1 for row in tables["relations"]):
        lines.append("≥: at least; of a text this long only the strongest keys of each token are kept.")
    return [*lines, "An attention weight is not an explanation."]


def _one_line(text: str, most: int) -> str:
    """Put a text on one line, without control characters; one that is written from right to left in an isolate.

    The isolate (U+2068 to U+2069) keeps its direction to itself: else the numbers of the row change their places.
    """
    line = printable(" ".join(text.split()))
    line = line if len(line) <= most else line[: most - 1] + "…"
    return f"\u2068{line}\u2069" if any(unicodedata.bidirectional(c) in ("R", "AL") for c in line) else line


def _print_word(report: Report, tables: dict[str, Any], text: int, index: int, console: Console) -> None:
    reading = report.readings[text]
    word = reading.words[index]
    heading = Text(f"\n{_one_line(word.text, WIDEST)}", style="bold yellow")
    if len(report.readings) > 1:
        heading.append(f"  in text {text + 1}", style="dim")
    if len(reading.find(word.text)) > 1 or len(reading.words) > SHORT:
        near = reading.words[max(0, index - AROUND) : index + AROUND + 1]
        around = _one_line(reading.text[near[0].start : near[-1].end], 99)
        heading.append(f"  word {index + 1:,} of {len(reading.words):,}: … {around} …", style="dim")
    console.print(heading)
    found = [row for row in tables["relations"] if (row["text"], row["index"]) == (text, index)]
    if found:
        console.print(_relations(found, console.width))
    else:
        console.print(Text("  no relation to another word", style="dim"))
    path = [row for row in tables["path"] if (row["text"], row["index"]) == (text, index)]
    lines = {"cosine with embedding": "cosine", "mean of all words": "all_words"}
    columns = {name: [row[key] for row in path] for name, key in lines.items()}
    console.print(_layers([row["depth"] for row in path], columns, console.width))


def _relations(rows: list[dict[str, Any]], width: int) -> Table:
    """Lay out relations as a table; a narrow terminal gets fewer columns, never shorter numbers."""
    wide = width >= WIDE
    names = ("weight", "even", "usual", "lift", "head", "") if wide else ("weight", "even", "head", "")
    cells = [(_cells(row) if wide else _cells(row)[:2] + _cells(row)[4:]) for row in rows]
    taken = sum(max(cell_len(str(cell)) for cell in column) + 2 for column in zip(names, *cells, strict=True))
    table = _table()
    table.add_column("", max_width=max(NARROW, min(WIDEST, width - taken)), overflow="ellipsis", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    direction = None
    for row, numbers in zip(rows, cells, strict=True):
        if row["direction"] != direction:
            direction = row["direction"]
            table.add_row(Text(f"  {direction if wide else direction.removeprefix('is ')}", style="italic"))
        # as text: a word such as [bold] is no markup
        table.add_row(Text(f"    {_one_line(row['other'], WIDEST)}"), *numbers)
    return table


def _cells(row: dict[str, Any]) -> tuple[Text | str, ...]:
    """Format weight, even share, usual weight at this offset, their ratio, head, and place of the other word."""
    ratio = row["lift"]
    return (
        ("≥ " if row["lower_bound"] and row["pieces"] > 1 else "") + f"{row['weight']:.3f}",
        Text(_number(row["uniform"]), style="dim"),
        Text(_number(row["at_offset"]), style="dim"),
        f"{ratio:,.1f}x" if ratio < 100 else f"{ratio:,.0f}x",
        f"{row['layer']}.{row['head']}{'*' if row['positional'] else ' '}",
        Text(_where(row["offset"]) if row["other_kind"] == "word" else row["other_kind"], style="dim"),
    )


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _number(value: float) -> str:
    """Format with three decimals, or two significant digits where these would be zeros."""
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def _where(offset: int) -> str:
    """Describe how far away the other word is."""
    if abs(offset) == 1:
        return "next word" if offset > 0 else "word before"
    return f"{abs(offset):,} words {'on' if offset > 0 else 'back'}"


def _layers(depths: list[int], lines: dict[str, list[float]], width: int) -> Table:
    """Lay out numbers by layers passed, in as many columns as fit into the width, at most seven."""
    first = "0 (emb.)" if width >= WIDE else "emb."
    name = max(map(len, ["layers passed", *lines])) + 2
    most = max(2, min(7, (width - name - 2 - len(first)) // 6 + 1))
    step = -(-(len(depths) - 1) // (most - 1)) if len(depths) > most else 1
    columns = sorted({*range(0, len(depths), step), len(depths) - 1})
    if len(columns) > most:  # the last depth, in place of the one before it
        columns.pop(-2)
    table = _table()
    table.add_column("  layers passed", no_wrap=True)
    for column in columns:
        table.add_column(str(depths[column]) if column else first, justify="right", no_wrap=True)
    for label, values in lines.items():
        style = "" if len(table.rows) == 0 else "dim"
        table.add_row(f"  {label}", *(f"{values[column]:.2f}" for column in columns), style=style)
    return table


def _print_comparison(tables: dict[str, Any], console: Console) -> None:
    console.print(Text("\nThe same word in both texts", style="bold"))
    chosen = [row for row in tables["contexts"] if row["chosen"]]
    if not chosen:
        console.print(Text("  no chosen word stands in both", style="dim"))
        return
    lines: dict[str, list[float]] = {}
    for row in chosen:
        word = _one_line(row["word"], NARROW)
        lines.setdefault(f"cosine of {word} with {word}", []).append(row["cosine"])
    first = [row for row in chosen if row["index"] == chosen[0]["index"]]
    lines["mean of different words"] = [row["different_words"] for row in first]
    console.print(_layers([row["depth"] for row in first], lines, console.width))
    if tables["changes"]:
        console.print(Text("\nWhat changed most between words of both texts, by head", style="bold"))
        console.print(_changes(tables["changes"]))
    if tables["contrasts"]:
        console.print(Text("\nThe same head, different words", style="bold"))
        console.print(_contrasts(tables["contrasts"], console.width))
    if not tables["changes"] and not tables["contrasts"]:
        console.print(Text("\nNo relation to a content word changed beyond the noise.", style="dim"))


def _changes(rows: list[dict[str, Any]]) -> Table:
    """Lay out the weights on the same words in both texts."""
    table = _table()
    for name in ("  looks at", "", "text 1", "text 2", "change", "head"):
        text = name in ("  looks at", "")
        table.add_column(name, justify="left" if text else "right", no_wrap=True, max_width=NARROW if text else None)
    for row in rows:
        table.add_row(
            Text(f"  {_one_line(row['word'], NARROW)}"),
            Text(f"→ {_one_line(row['other'], NARROW)}"),
            f"{row['first']:.3f}",
            f"{row['second']:.3f}",
            f"{row['second'] - row['first']:+.3f}",
            f"{row['layer']}.{row['head']}",
        )
    return table


def _contrasts(rows: list[dict[str, Any]], width: int) -> Table:
    """Lay out the different words that the same head takes a word's context from."""
    table = _table()
    names = max(6, min(NARROW, (width - 28) // 3))  # what the numbers leave
    for name in ("  word", "text 1", "", "text 2", "", "head"):
        number = name in ("", "head")
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(f"  {_one_line(row['word'], names)}"),
            Text(_one_line(row["first_other"], names)),
            f"{row['first']:.3f}",
            Text(_one_line(row["second_other"], names)),
            f"{row['second']:.3f}",
            f"{row['layer']}.{row['head']}",
        )
    return table
