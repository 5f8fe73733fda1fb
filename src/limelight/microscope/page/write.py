"""Assemble template, view and data, and write the file atomically.

A text may hold anything, ``</script><img src=x onerror=...>`` among it. Three measures keep it inert: the data stands
in a block that browsers do not run, with every ``<``, ``>`` and ``&`` written as an escape, so no tag can begin or
end in it; the view builds its elements with ``textContent`` only; and the content security policy lets nothing run
but this view's own script, named by its hash, and nothing load at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
from importlib.resources import files

from ...text import printable
from ..files import write_atomically
from .contents import Contents
from .pack import pack

PAGE_LIMIT = 3_000_000 - 1  # bytes: under 3 MB up to `LONG` tokens,
LONG, LONG_LIMIT = 10_000, 8_000_000 - 1  # and under 8 MB beyond

# In JSON these stand only inside strings, where an escape means the same.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def make_page(report: Contents, limit: int | None = None) -> str:
    """Return the page as text, at most ``limit`` bytes of UTF-8; by default 3 MB, and 8 MB beyond 10,000 tokens.

    Raises:
        ValueError: not even the coarsest form of the report fits.
    """
    if limit is None:
        limit = LONG_LIMIT if sum(reading.length for reading in report.readings) > LONG else PAGE_LIMIT
    here = files(__package__)
    template, view, style = (
        here.joinpath(name).read_text("utf-8") for name in ("template.html", "view.js", "view.css")
    )
    frame = len((template + view + style).encode()) + 2048  # hashes, title
    title = html.escape(f"{_shorten(report.readings[0].text)} · {report.model.name}")
    spare = limit - frame - len(title.encode())
    # Escapes lengthen the data: measure again with what they cost taken off.
    data = pack(report, spare).translate(_ESCAPES)
    if (over := len(data.encode()) - spare) > 0:
        data = pack(report, spare - over).translate(_ESCAPES)
    parts = {
        "{{title}}": title,
        "{{style_hash}}": _hash(style),
        "{{view_hash}}": _hash(view),
        "{{style}}": style,
        "{{data}}": data,
        "{{view}}": view,
    }
    # One pass, so that nothing which looks like a placeholder inside a part is ever replaced.
    page, rest = "", template
    for placeholder, part in parts.items():
        before, found, rest = rest.partition(placeholder)
        assert found, f"template.html has no {placeholder}"
        page += before + part
    return page + rest


def write_page(report: Contents, path: str | os.PathLike[str]) -> int:
    """Write the page to ``path`` and return its size in bytes. The file is replaced atomically.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    return write_atomically(path, make_page(report).encode())


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shorten(text: str, most: int = 60) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"
