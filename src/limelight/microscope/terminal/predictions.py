"""What a decoder wrote or expected, in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...text import printable
from ..report import Report

MOST = 60  # tokens shown; the page and the tables hold all
WIDE = 84  # columns of a terminal that shows three candidates beside each token


def print_predictions(report: Report, console: Console) -> None:
    """Print for each predicted token its probability and rank, from which layer on it is decided, and the candidates.

    The tokens that the model wrote; where it wrote none, those of the text, of which the last ones are shown.
    """
    tables = report.tables
    rows = tables.get("predictions", [])
    candidates: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in tables.get("candidates", []):
        candidates.setdefault((row["text"], row["index"]), []).append(row)
    for number in dict.fromkeys(row["text"] for row in rows):
        here = [row for row in rows if row["text"] == number]
        written = [row for row in here if row["written"]]
        which = f" in text {number + 1}" if len(report.readings) > 1 else ""
        title = "What the model wrote" if written else "What the model expected at each token"
        console.print(Text(f"\n{title}{which}", style="bold"))
        shown = written[:MOST] if written else here[-MOST:]
        console.print(_table(shown, candidates, report.model.layers, console.width))
        left = len(written or here) - len(shown)
        if left:
            console.print(Text(f"  and {left:,} more, with --output or --json", style="dim"))
    if rows:
        first = rows[0]
        lines = (
            f"probability and rank among {first['vocabulary']:,} tokens; entropy in nats, "
            f"{first['entropy_uniform']:.1f} if all were as likely. decided: layers after which the logit lens (the "
            "output embedding applied to the layer's state) ranks the token first, and does so to the end."
        )
        console.print(Text(lines, style="dim"))


def _table(
    rows: list[dict[str, Any]], candidates: dict[tuple[int, int], list[dict[str, Any]]], layers: int, width: int
) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  token", no_wrap=True, max_width=18, overflow="ellipsis")
    for name in ("prob.", "rank", "decided", "entropy"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column("candidates", no_wrap=True, overflow="ellipsis")
    for row in rows:
        found = candidates[row["text"], row["index"]]
        others = [f"{_quoted(one['candidate'])} {one['probability']:.2f}" for one in found if not one["chosen"]][:3]
        known = row["rank"] is not None
        cells = (
            Text(f"  {_quoted(row['token'])}" if known else "  (next)"),
            f"{row['probability']:.3f}" if known else "–",
            f"{row['rank']:,}" if known else "–",
            f"{row['decided']} of {layers}" if row["decided"] is not None else "–",
            Text(f"{row['entropy']:.2f}", style="dim"),
        )
        table.add_row(*cells, *([Text(", ".join(others), style="dim")] if width >= WIDE else []))
    return table


def _quoted(token: str) -> str:
    """A token in quotes, so that blanks are seen, on one line."""
    shown = token.replace("\n", "\u21b5").replace("\t", "\u21e5")
    return f"“{printable(shown)}”"
