"""``limelight cost``: the operations, bytes and memory of a model at a length, before it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Dtype, dtype_of, fitting

if TYPE_CHECKING:
    from ..models.cost import Cost


def cost(
    model: Annotated[str, typer.Argument(help="A folder, a config.json, a .gguf file, or a name (limelight models).")],
    length: Annotated[
        int | None,
        typer.Option(help="Tokens of each text; by default 2048, or as many as the model has positions.", min=1),
    ] = None,
    batch: Annotated[int, typer.Option(help="Number of texts.", min=1)] = 1,
    dtype: Dtype = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Report the operations, bytes and minimum time of each step of a forward pass, and the memory of a model.

    Everything follows from the config of the model; no weights are read. The minimum time is that of this machine's
    peak and memory bandwidth, measured now: a bound that no program beats.

    Example: limelight cost smollm2 --length 8192
    """
    import json

    import torch

    from ..backends import native
    from ..checkpoints.load import outline
    from ..models.cost import cost as cost_of

    itemsize = dtype_of(dtype).itemsize
    network = outline(model)
    length = min(2048, network.config.limit or 2048) if length is None else length
    found = cost_of(network, length, batch=batch, itemsize=itemsize)
    limits: tuple[float, float] | None = None
    if native.available() and not native.why_failing():
        from ..benchmark.timing import bandwidth, peak

        limits = 1e9 * peak(dtype, torch.get_num_threads()), 1e9 * bandwidth()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "format": "limelight.cost",
                    "version": 1,
                    "model": model,
                    "dtype": dtype,
                    **_json_values(found, limits),
                },
                indent=2,
            )
        )
        return
    _print(found, f"{model}, {batch} x {length:,} tokens, {dtype}", limits, native.why_missing())


def _json_values(found: Cost, limits: tuple[float, float] | None) -> dict[str, Any]:
    """Return the numbers as JSON values, with minimum times where the machine's limits are known."""
    values = found.as_json()
    if limits is not None:
        values["peak_flops"], values["bandwidth_bytes"] = limits
        for value, part in zip(values["parts"], found.parts, strict=True):
            value["seconds"] = part.seconds(*limits)
    return values


def _print(found: Cost, title: str, limits: tuple[float, float] | None, missing: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(title, style="bold")
    seconds = [part.seconds(*limits) if limits else None for part in found.parts]
    total = sum(one for one in seconds if one is not None) if limits else None
    columns = {
        "step": [*(part.name for part in found.parts), "all"],
        "grows as": [*(part.growth for part in found.parts), ""],
        "GFLOP": [f"{flop / 1e9:,.2f}" for flop in (*(part.flop for part in found.parts), found.flop)],
        "share": [*(f"{part.flop / found.flop:.1%}" for part in found.parts), ""],
        "MB": [f"{size / 1e6:,.1f}" for size in (*(part.bytes for part in found.parts), found.bytes)],
        "min ms": [_time(one) for one in (*seconds, total)],
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    columns = fitting(columns, console.width, ["grows as", "share", "MB"])
    for name in columns:
        table.add_column(name, justify="left" if name in ("step", "grows as") else "right", no_wrap=True)
    for number, cells in enumerate(zip(*columns.values(), strict=True), 1):
        table.add_row(*cells, end_section=number == len(found.parts))
    console.print(table)
    if limits:
        console.print(f"This machine: {limits[0] / 1e9:,.0f} GFLOP/s, {limits[1] / 1e9:,.1f} GB/s, measured now.")
    else:
        console.print(f"Minimum times are unknown: {missing}.")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("memory")
    table.add_column("MB", justify="right")
    for name, size in found.memory().items():
        table.add_row(name, f"{size / 1e6:,.1f}")
    console.print(table)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.2f}"
