"""What the commands share: parsing of options and texts, and errors that name options."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ..tensors.shapes import ArgumentError

MODEL = "A name of `limelight models`, a folder, a .gguf file, or a Hugging Face hub name."
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]

# Arguments of the library that an option sets under another name.
_ALIASES = {
    "generate": {"repetition": "--repetition-penalty", "width": "--beam", "prompt": "TEXT"},
    "heads": {"state": "--resume"},
    "look": {"words": "--word"},
}
_MODEL = "name_or_path"  # of limelight.load

# What an option stands for that is given without its value.
_IMPLIED = {"heads": {"--ablate": "512"}}


class Command(TyperCommand):
    """A command whose errors name its options as they are typed, not the arguments of the library behind them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what was typed, with the values that some options stand for when they are given without one."""
        parsed: list[str] = super().parse_args(ctx, with_implied(args, _IMPLIED.get(str(self.name), {})))
        return parsed

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors of arguments name the options as typed."""
        from ..tensors.shapes import ArgumentError

        try:
            return super().invoke(ctx)
        except ArgumentError as error:
            names = {
                str(one.name): one.opts[0] if one.opts[0].startswith("-") else one.opts[0].upper()
                for one in self.params
            }
            names |= _ALIASES.get(str(self.name), {})
            raise _renamed(error, {_MODEL: names.get("model", _MODEL)} | names) from error
        except KeyboardInterrupt:  # Typer would print nothing
            typer.secho("interrupted", err=True)
            raise typer.Exit(130) from None


def with_implied(args: Sequence[str], implied: dict[str, str]) -> list[str]:
    """Return what was typed, with the value of each option of ``implied`` that stands without one.

    >>> with_implied(["--ablate", "--json", "a.json"], {"--ablate": "512"})
    ['--ablate', '512', '--json', 'a.json']
    """
    found = []
    for arg, behind in pairwise([*args, "-"]):
        found.append(arg)
        if arg in implied and behind.startswith("-") and not behind[1:].isdigit():
            found.append(implied[arg])
    return found


def _renamed(error: ArgumentError, names: dict[str, str]) -> ArgumentError:
    """The error with options in place of arguments."""
    message = re.sub(r"`(\w+)`", lambda found: f"`{names.get(found[1], found[1])}`", str(error))
    return type(error)(message)


@contextmanager
def errors_of(option: str, *arguments: str) -> Iterator[None]:
    """Inside, errors of these arguments of the library name the option that they come from."""
    from ..tensors.shapes import ArgumentError

    try:
        yield
    except ArgumentError as error:
        raise _renamed(error, dict.fromkeys(arguments, option)) from error


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype that ``--dtype`` names.

    Raises:
        ArgumentError: the name is no float dtype.
    """
    from ..tensors.shapes import FLOATS, wrong

    dtypes = {str(one).removeprefix("torch."): one for one in FLOATS}
    if name not in dtypes:
        raise wrong("--dtype", f"must be one of {', '.join(dtypes)}", f"it is {name!r}", "Leave it out for float32.")
    return dtypes[name]


def read_text(text: str | None, file: Path | None, example: str) -> str:
    """Return the text of a command: its argument, a file, or standard input (``-``) without its last line break.

    Raises:
        ArgumentError: none or both are given, the text is not UTF-8, or the file cannot be read.
    """
    from ..tensors.shapes import wrong

    if (text is None) == (file is None):
        got = "both were given" if text is not None else "neither was"
        way_out = f"For example: {example}; - reads standard input."
        raise wrong("TEXT or --file", "must name one text", got, way_out)
    if text is not None and text != "-":
        return text
    if file is None or str(file) == "-":
        return _decoded(sys.stdin.buffer.read(), "TEXT" if file is None else "--file", "standard input").removesuffix(
            "\n"
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = f"{file} cannot be read ({error.strerror})"
        way_out = "Check the path, or give the text itself."
        raise wrong("--file", "must name a readable text file", reason, way_out) from None
    return _decoded(content, "--file", str(file))


def writable(option: str, path: Path, suffix: str | None = None) -> None:
    """Check that a file can be written, before a model is run for it.

    Raises:
        ArgumentError: ``path`` is a folder, lies in none that exists, or has another suffix.
    """
    from ..tensors.shapes import wrong

    if path.is_dir():
        raise wrong(option, "must name a file", f"{path} is a folder", f"Try {path / 'page.html'}.")
    if not path.parent.is_dir():
        way_out = f"Make it: mkdir -p {path.parent}"
        raise wrong(option, "must lie in a folder that exists", f"{path.parent} does not", way_out)
    if suffix is not None and path.suffix.lower() != suffix:
        raise wrong(option, f"must end in {suffix}", f"it is {path}", f"Try {path.with_suffix(suffix)}.")


def _decoded(content: bytes, option: str, name: str) -> str:
    from ..tensors.shapes import wrong

    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        got = f"byte {error.start:,} of {name} is {content[error.start]:#04x}"
        raise wrong(option, "must be UTF-8 text", got, "Convert it: iconv -f ENCODING -t UTF-8.") from None


def fitting(columns: dict[str, list[str]], width: int, spare: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of a table that fit into a terminal; those of ``spare`` are left out first, in that order.

    >>> fitting({"name": ["a"], "size": ["12.5 MB"], "more": ["never"]}, 20, ["more", "size"])
    {'name': ['a'], 'size': ['12.5 MB']}
    """
    kept = dict(columns)
    for name in spare:
        if sum(max(map(len, [header, *cells])) + 3 for header, cells in kept.items()) <= width:
            break
        del kept[name]
    return kept


def shown(text: str) -> str:
    """Prepare a text for standard output: unchanged for a pipe, without control characters for a terminal."""
    from ..text import printable

    return printable(text) if sys.stdout.isatty() else text


def echo(text: str, *, nl: bool = True) -> None:
    """Print a text of a user or a model, without control characters on a terminal."""
    typer.echo(shown(text), nl=nl, color=True)  # else Typer strips escape sequences in a pipe


def echo_json(text: str) -> None:
    """Print JSON with control characters as escapes, which JSON reads as the same text."""
    from ..text import printable_json

    typer.echo(printable_json(text))
