"""The parts of pages that are made from the source: the keys of a training run, and the options of every command.

    python docs/tables.py

writes them between their two comments, `<!-- NAME: python docs/tables.py -->` and `<!-- end -->`; the tests compare.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer

from limelight.cli import app
from limelight.training.settings import explained

DOCS = Path(__file__).parent


def training_keys() -> str:
    """Every key of a training file with its default and meaning, from the docstrings of the settings."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in explained():
        text = meaning.replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{key}` | {f'`{default}`' if default else ''} | {text} |")
    return "\n".join(lines)


def commands() -> str:
    """Every command: what it does, its examples, its arguments and options, from the command line itself."""
    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in sorted(group.commands.items()))


def _command(name: str, command: Any) -> str:
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(command.help).split("\n\n")]
    examples = [part.removeprefix("Example: ") for part in paragraphs if part.startswith("Example: ")]
    text = [part for part in paragraphs if not part.startswith("Example: ")]
    lines = ["| argument or option | default | meaning |", "|---|---|---|"]
    lines += [_option(option) for option in command.params if not option.hidden and option.help]
    return "\n\n".join([f"## limelight {name}", *text, "```sh\n" + "\n".join(examples) + "\n```", "\n".join(lines)])


def _option(option: Any) -> str:
    names = ", ".join(f"`{one}`" for one in (*option.opts, *option.secondary_opts))
    shown = option.default not in (None, False, "", ())
    default = "required" if option.required else f"`{option.default}`" if shown else ""
    return f"| {names} | {default} | {' '.join(option.help.split()).replace('|', chr(92) + '|')} |"


TABLES = {"runs.md": {"training keys": training_keys}, "commands.md": {"commands": commands}}


def filled(page: Path) -> str:
    """The text of a page with its tables made anew."""
    text = page.read_text("utf-8")
    for name, make in TABLES[page.name].items():
        before, comment, rest = text.partition(f"<!-- {name}: python docs/tables.py -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert end, f"{page.name} has no place for the table {name!r}"
        text = f"{before}{comment}\n{make()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for name in TABLES:
        (DOCS / name).write_text(filled(DOCS / name), "utf-8")
