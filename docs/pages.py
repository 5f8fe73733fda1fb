"""The examples of a Markdown page, in order, and the output that the page states for them.

A ``python`` block is an example. So is a ``sh`` block, of which the commands that begin with ``limelight`` are run. A
``text`` block directly after an example is its output: a line ``…`` there matches any lines, and a ``…`` at the end of
a line matches the rest of it.
"""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n?", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_ANY = "…"


@dataclass(frozen=True)
class Example:
    """One example.

    Args:
        page: the file.
        line: where its block begins, from 0.
        language: ``"python"`` or ``"sh"``.
        code: the text of the block.
        prints: the output that the page states; ``None`` where it states none.
    """

    page: Path
    line: int
    language: str
    code: str
    prints: str | None

    def run(self, names: dict[str, Any]) -> str:
        """Run the example with the variables ``names`` of the examples before it; return what it printed."""
        if self.language == "sh":
            return "".join(_command(line) for line in self.code.replace("\\\n", "").splitlines())
        out = io.StringIO()
        with redirect_stdout(out):  # empty lines first, so that an error names the line of the page
            exec(compile("\n" * (self.line + 1) + self.code, str(self.page), "exec"), names)
        return out.getvalue()


def examples(page: Path) -> list[Example]:
    """The examples of a page."""
    text, found = page.read_text("utf-8"), []
    blocks = list(_BLOCK.finditer(text))
    for block, behind in zip_longest(blocks, blocks[1:]):
        if block[1] in ("python", "sh"):
            printed = behind is not None and behind[1] == "text" and not text[block.end() : behind.start()].strip()
            line = text.count("\n", 0, block.start())
            found.append(Example(page, line, block[1], block[2], behind[2] if behind and printed else None))
    return found


def run(page: Path) -> dict[str, Any]:
    """Run every example of a page in the current folder; return the variables that they define.

    Raises:
        AssertionError: an example printed something else than the page states.
    """
    names: dict[str, Any] = {}
    for example in examples(page):
        printed = example.run(names)
        if example.prints is not None:
            where = f"{page.name}, line {example.line + 1}"
            assert alike(example.prints, printed), f"{where}: the page says\n{example.prints}\nbut it is\n{printed}"
    return names


def alike(expected: str, found: str) -> bool:
    """Whether two texts are equal, up to one unit in the last digit of decimal fractions.

    Machines may differ by that much, because they add in another order.
    """
    lines = [line.rstrip() for line in found.splitlines()]
    parts: list[list[str]] = [[]]  # the lines between two lines ``…``
    for line in (line.rstrip() for line in expected.splitlines()):
        if line.strip() == _ANY:
            parts.append([])
        else:
            parts[-1].append(line)
    first, *others = parts
    if not others:
        return len(first) == len(lines) and _begins(lines, first)
    *middle, last = others
    if not _begins(lines, first) or len(first) + len(last) > len(lines):
        return False
    rest, end = lines[len(first) : len(lines) - len(last)], lines[len(lines) - len(last) :]
    for part in middle:
        start = next((n for n in range(len(rest) + 1) if _begins(rest[n:], part)), None)
        if start is None:
            return False
        rest = rest[start + len(part) :]
    return _begins(end, last)


def _begins(lines: list[str], expected: list[str]) -> bool:
    """Whether ``lines`` begin with the ``expected`` ones."""
    return len(lines) >= len(expected) and all(map(_same_line, expected, lines))


def _same_line(expected: str, found: str) -> bool:
    if expected.endswith(_ANY):
        expected = expected[: -len(_ANY)].rstrip()
        found = found[: len(expected)]
    if _NUMBER.sub("0", expected) != _NUMBER.sub("0", found):
        return False
    return all(_same_number(*pair) for pair in zip(_NUMBER.findall(expected), _NUMBER.findall(found), strict=True))


def _same_number(expected: str, found: str) -> bool:
    if expected == found:
        return True
    digits = len(expected.partition(".")[2])
    return digits > 0 and digits == len(found.partition(".")[2]) and abs(_units(expected) - _units(found)) <= 1


def _units(number: str) -> int:
    """The number in units of its last digit."""
    return int(re.sub(r"[,.]", "", number))


def _command(line: str) -> str:
    """Run a ``limelight`` command and return its output; other programs are not run."""
    from typer.testing import CliRunner

    from limelight.cli import app

    program, *arguments = shlex.split(line, comments=True) or [""]
    if program != "limelight":
        return ""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{line}\n{done.output}"
    return done.stdout
