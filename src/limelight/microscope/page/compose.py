"""Assemble template, view and data into one page that runs nothing but its own script and loads nothing.

A text may hold anything, ``</script><img src=x onerror=...>`` among it. Three measures keep it inert: the data stands
in a block that browsers do not run, with every ``<``, ``>`` and ``&`` written as an escape, so no tag can begin or
end in it; the view builds its elements with ``textContent`` only; and the content security policy lets nothing run
but this view's own script, named by its hash, and nothing load at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Callable
from importlib.resources import files

from ...text import printable

# In JSON these stand only inside strings, where an escape means the same.
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def compose(bundle: str, title: str, pack: Callable[[int], str], limit: int) -> str:
    """Return a page as text, at most ``limit`` bytes of UTF-8.

    Args:
        bundle: the name of the view's files beside this one: ``view`` for `view.js` and `view.css`.
        title: of the browser's window; shortened to one line.
        pack: returns the data as JSON, in at most as many bytes as it is given; raises `ValueError` if it cannot.
        limit: of the whole page, in bytes.
    """
    here = files(__package__)
    template, view, style = (
        here.joinpath(name).read_text("utf-8") for name in ("template.html", f"{bundle}.js", f"{bundle}.css")
    )
    title = html.escape(_shorten(title))
    frame = len((template + view + style + title).encode()) + 2048  # hashes
    spare = limit - frame
    # Escapes lengthen the data: measure again with what they cost taken off.
    data = pack(spare).translate(_ESCAPES)
    if (over := len(data.encode()) - spare) > 0:
        data = pack(spare - over).translate(_ESCAPES)
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


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shorten(text: str, most: int = 100) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"
