"""An atlas, or two that are compared, in a terminal."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...text import printable
from ..heads.against import AtlasComparison
from ..heads.atlas import Atlas
from ..heads.measure import Result
from ..heads.roles import LEFT
from ..tables import TableRow

PER_ROLE = 6  # heads shown of each role
CHANGES = 15  # heads shown of a comparison


def summarise_atlas(atlas: Atlas, console: Console) -> None:
    """Print the roles that hold, with the numbers that make them believable, and how many heads have none."""
    model, corpus = atlas.model, atlas.corpus
    console.print()
    title = f": {model.layers} layers x {model.heads} heads, measured on {corpus['tokens']:,} tokens in "
    texts = "1 text" if corpus["texts"] == 1 else f"{corpus['texts']:,} texts"
    end = f"{texts} of {printable(corpus['name'])}"
    console.print(Text.assemble((printable(model.name), "bold"), title, end))
    if not corpus["complete"]:
        console.print(Text("Interrupted: this is what the texts read so far show.", style="yellow"))
    roles = sorted(atlas.roles, key=lambda row: (row["role"] == "sink", row["measure"], row["detail"], -row["score"]))
    groups = [list(rows) for _, rows in groupby(roles, key=lambda row: row["role"])]
    if groups:
        console.print(_roles(groups, wide=console.width >= 80))
    some = {(row["layer"], row["head"]) for row in atlas.roles}
    beside = {(row["layer"], row["head"]) for row in atlas.roles if row["role"] != "sink"}
    every = model.layers * model.heads
    console.print(
        f"{len(beside):,} of {every:,} heads have a role beside a sink, {len(some - beside):,} are sinks alone; "
        f"no role found for {every - len(some):,}."
    )
    for found in atlas.findings:
        if found.result.measure == "ablation":
            console.print(_most_important(found.result))
    notes = [
        "head: layer.head, from 0. score: on the half of the texts that did not choose the head; 95 % interval.",
        f"Shares are those of what sinks leave (a head that leaves less than {LEFT:.0%} has no other role).",
        "even: what an even spread or the best fixed offset reaches. shuffled: the same positions, tokens shuffled.",
    ]
    if any(row["measure"].startswith("syntax") for row in atlas.roles):
        notes.append("dependent to head: from a word to the one that it depends on in the parse; the reverse likewise.")
    notes.append("An attention weight is not an explanation.")
    console.print(Text("\n".join(notes), style="dim"))


def _most_important(result: Result) -> Text:
    """The heads whose ablation changes most, with their intervals."""
    total = result.total
    order = np.argsort(np.nan_to_num(-total.score, nan=np.inf), axis=None)[:PER_ROLE]
    places = [np.unravel_index(at, total.score.shape) for at in order]
    heads = []
    for place in places:
        if np.isfinite(total.score[place]):
            interval = f" ({total.low[place]:+.3f} to {total.high[place]:+.3f})" if total.texts > 1 else ""
            heads.append(f"{place[0]}.{place[1]} {total.score[place]:+.3f}{interval}")
    unit = "nats" if result.unit == "loss" else result.unit
    title = f"Change of the {result.detail} ({unit}) when a head is silenced, over {total.n:,.0f} tokens: "
    return Text(f"{title}{', '.join(heads)}.")


def summarise_comparison(comparison: AtlasComparison, console: Console) -> None:
    """Print the heads that changed most, where their intervals do not overlap, and those whose role differs."""
    first, second = comparison.first.model.name, comparison.second.model.name
    rows = comparison.tables["heads"]
    changed = [row for row in rows if row["changed"] is not None]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("head", "changed", "first", "second", "role", "role in the second"):
        table.add_column(name, justify="right" if name in ("first", "second") else "left")
    for row in changed[:CHANGES]:
        cells = (_place(row), row["changed"], _number(row["first"]), _number(row["second"]))
        table.add_row(*(Text(printable(cell)) for cell in (*cells, row["role"], row["other_role"])))
    console.print()
    console.print(Text.assemble((printable(first), "bold"), " against ", (printable(second), "bold")))
    if changed:
        console.print(table)
    same = sum(row["same"] for row in rows)
    console.print(f"{len(changed):,} of {len(rows):,} heads changed clearly; {same:,} have the same role in both.")
    console.print(Text(printable("\n".join(comparison.notes)), style="dim"))


def _roles(groups: list[list[TableRow]], wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("role", "head", "score", *(("interval",) if wide else ()), "even", "shuffled", "n"):
        table.add_column(name, justify="left" if name in ("role", "head") else "right")
    for rows in groups:
        for place, row in enumerate(rows[:PER_ROLE]):
            interval = (f"{_number(row['low'])}-{_number(row['high'])}",) if wide else ()
            numbers = (_number(row["score"]), *interval, _number(row["baseline"]), _number(row["control"]))
            role = printable(row["role"]) if not place else ""
            table.add_row(*map(Text, (role, _place(row), *numbers, f"{row['n']:,.0f}")))
        if len(rows) > PER_ROLE:
            table.add_row("", Text(f"and {len(rows) - PER_ROLE:,} more", style="dim"))
    return table


def _place(row: TableRow) -> str:
    return f"{row['layer']}.{row['head']}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
