"""The alignment of a target with its source, in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...text import printable
from ..sources.cross import Cross

WIDEST = 24


def print_alignment(cross: Cross, console: Console) -> None:
    """Print the word or the moment of the source that each word of the target is aligned with."""
    sound = cross.source.seconds is not None
    heading = "When each word is said" if sound else "Each word beside the word of the source that it is aligned with"
    console.print(Text(f"\n{heading}", style="bold"))
    if cross.source.text is not None:
        console.print(Text(f"Source: {printable(' '.join(cross.source.text.text.split()))}", style="dim"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("", "seconds") if sound else ("", "", "weight", "even"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True, max_width=None if name else WIDEST)
    for row in cross.tables()["alignment"]:
        word = Text(f"  {_clipped(row['word'])}")
        if sound:
            table.add_row(word, f"{row['start']:.2f} to {row['end']:.2f}")
        else:
            numbers = f"{row['weight']:.3f}", Text(f"{row['uniform']:.3f}", style="dim")
            table.add_row(word, Text(f"→ {_clipped(row['source'])}"), *numbers)
    console.print(table)
    console.print(Text(cross.notes[-1], style="dim"))


def _clipped(text: str) -> str:
    """A word on one line, without control characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) < WIDEST - 2 else line[: WIDEST - 3] + "…"
