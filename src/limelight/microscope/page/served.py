"""The page of what a server attended to: a table in the style of the other pages, without a script."""

from __future__ import annotations

import base64
import hashlib
import os
from html import escape
from typing import Any, Protocol

from ...text import printable
from ..files import write_atomically

#: The colours and letters of the other pages; without their script the system chooses between light and dark.
_STYLE = """
:root { --page: #faf9f5; --ink: #1d1e22; --faint: #63646b; --rule: #e4e2d9; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --page: #101116; --ink: #ecebe4; --faint: #a3a39d; --rule: #2b2c33; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 20px 12px 48px; overflow-wrap: anywhere; }
h1 { font-size: 20px; margin: 0; }
p { margin: 4px 0; color: var(--faint); font-size: 13px; }
div { overflow-x: auto; }
table { width: 100%; margin: 16px 0; border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 12px 4px 0; text-align: right; border-bottom: 1px solid var(--rule); font-weight: 400; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--faint); font-size: 12px; white-space: nowrap; overflow-wrap: normal; }
.word { text-align: left; min-width: 72px; width: 35%; white-space: pre-wrap; }
.written { font-weight: 650; }
"""
_HEADER = ("token", "entropy", "even", "looks at", "weight", "head")
HOW = (
    "Entropy: in nats, the mean over all layers and heads observed; even: of a spread over all tokens before and the "
    "token itself. Looks at: the largest weight of any head (layer.head, from 0), but of the token itself and of the "
    "first one. Bold tokens were generated."
)


class ServedLike(Protocol):
    """The parts of a `limelight.microscope.served.Served` that go into its page."""

    @property
    def model(self) -> str:
        """The server's name of its model."""

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """What each token attended to."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing, and why."""


def write_served(served: ServedLike, path: str | os.PathLike[str]) -> int:
    """Write the page to ``path`` and return its size in bytes. The file is replaced atomically.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    return write_atomically(path, make_served(served).encode())


def make_served(served: ServedLike) -> str:
    """Return the page as text. Texts are escaped, and the content security policy lets nothing run or load."""
    policy = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    title = f"{_text(served.model)}: as it was served"
    notes = "".join(f"<p>{_text(note)}</p>" for note in served.notes)
    notes += "" if served.rows else "<p>No token was observed.</p>"
    header = "".join(f'<th scope="col"{_kind(name)}>{name}</th>' for name in _HEADER)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title} · Limelight</title>\n"
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src '{policy}'; "
        "base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="limelight">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{notes}\n"
        f'<div><table class="served">\n<thead><tr>{header}</tr></thead>\n<tbody>\n'
        + "\n".join(map(_row, served.rows))
        + f"\n</tbody>\n</table></div>\n<p>{HOW}</p>\n</main>\n</body>\n</html>\n"
    )


def _row(row: dict[str, Any]) -> str:
    found = row["other"] is not None
    written = " written" if row["generated"] else ""
    numbers = (
        "" if row["entropy"] is None else f"{row['entropy']:.2f}",
        f"{row['entropy_uniform']:.2f}",
        _word(row["other"]) if found else "",
        f"{row['weight']:.2f}" if found else "",
        f"{row['layer']}.{row['head']}" if found else "",
    )
    cells = [f"<td{_kind(name)}>{cell}</td>" for name, cell in zip(_HEADER[1:], numbers, strict=True)]
    return f'<tr><th scope="row" class="word{written}">{_word(row["token"])}</th>{"".join(cells)}</tr>'


def _kind(column: str) -> str:
    return ' class="word"' if column in ("token", "looks at") else ""


def _word(token: str) -> str:
    return _text(token.strip()) or "␣"


def _text(text: str) -> str:
    return escape(printable(text))
