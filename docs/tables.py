"""The tables of pages that are made from the source: the keys of a training run.

    python docs/tables.py

writes them between their two comments, `<!-- NAME: python docs/tables.py -->` and `<!-- end -->`; the tests compare.
"""

from __future__ import annotations

from pathlib import Path

from limelight.training.settings import explained

DOCS = Path(__file__).parent


def training_keys() -> str:
    """Every key of a training file with its default and meaning, from the docstrings of the settings."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, meaning in explained():
        text = meaning.replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{key}` | {f'`{default}`' if default else ''} | {text} |")
    return "\n".join(lines)


TABLES = {"runs.md": {"training keys": training_keys}}


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
