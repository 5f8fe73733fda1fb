"""An extension of griffe: a docstring's examples become blocks of code, and its names links, as Markdown has them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^([ \t]*)(>>> .*(?:\n[ \t]*\S.*)*)", re.MULTILINE)
_SKIP = re.compile(r"  # doctest: \+\w+")
_NAME = re.compile(r"(?<!`)`(limelight\.[\w.]+)`(?!`)")
_ANNOUNCED = re.compile(r"::$(?=\n\n[ \t]+\S)", re.MULTILINE)


class Examples(griffe.Extension):
    """Fence the doctests of every docstring, link names, write `:` for the `::` that announces an indented block."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package and of all that it contains."""
        rewrite(pkg)


def rewrite(part: griffe.Object) -> None:
    """Rewrite the docstring of an object and of its members; what is imported is rewritten where it is defined."""
    if part.docstring is not None:
        part.docstring.value = as_markdown(in_one_line(part.docstring.value))
    for member in part.members.values():
        if isinstance(member, griffe.Object):
            rewrite(member)


def in_one_line(docstring: str) -> str:
    """The docstring with its first paragraph in one line, since tables of contents show the first line alone."""
    first, gap, rest = docstring.partition("\n\n")
    lines = first.splitlines()
    plain = not any(line.startswith((" ", ">>>", "- ", "Args:")) for line in lines[1:])
    return " ".join(lines) + gap + rest if plain else docstring


def as_markdown(docstring: str) -> str:
    """The docstring with its doctests in fences, and links from each full name that has a place in the reference."""
    docstring = _NAME.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', docstring)
    text = _EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", _SKIP.sub("", docstring))
    return re.sub(r"^:$\n", "", _ANNOUNCED.sub(":", text), flags=re.MULTILINE)
