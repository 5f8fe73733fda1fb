"""``limelight explain``: which backend runs a call, or the layers of a model, on this machine, and why not another."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .explained_call import ExplainedCall
from .options import MODEL, Dtype, dtype_of

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from ..models import Stack
    from ..models.fast_paths import PartPaths, Path

MAX_LENGTH = 2**24  # the lowering of a pattern holds some integers for each token: about a gigabyte
#: Options of a single call, which --model replaces.
OF_A_CALL = (
    *("heads", "key_value_heads", "queries", "batch", "documents", "width", "pattern", "back", "first", "score"),
    *("compare", "sink", "dropout", "observe", "cache", "gradients", "backend"),
)


def explain(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Option(help=f"Explain the layers of a model instead of one call. {MODEL}", show_default=False)
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            help="Tokens: queries and keys of a call (Lq = Lk), 4096 by default; the prompt of a model, 2048 by "
            "default, or as many as it has positions.",
            min=1,
            max=MAX_LENGTH,
            show_default=False,
        ),
    ] = None,
    heads: Annotated[int, typer.Option(help="Query heads (Hq).", min=1)] = 8,
    key_value_heads: Annotated[
        int | None, typer.Option(help="Key-value heads (Hkv); as many as query heads by default.", min=1)
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            help="Queries of a call (Lq), where they are fewer than its keys: 1 for a step of decoding.",
            min=1,
            max=MAX_LENGTH,
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Batch rows (B).", min=1)] = 1,
    documents: Annotated[int, typer.Option(help="Equally long texts that are laid end to end (Packed).", min=1)] = 1,
    width: Annotated[int, typer.Option(help="Head width (D = Dv).", min=1)] = 64,
    pattern: Annotated[str, typer.Option(help="full, causal or window.")] = "causal",
    back: Annotated[int, typer.Option(help="Keys before the query that a window sees.", min=0)] = 256,
    first: Annotated[
        int, typer.Option(help="First keys that a window sees, too (attention sinks that are keys).", min=0)
    ] = 0,
    score: Annotated[
        list[str] | None,
        typer.Option(help="A score rule: alibi, t5, bias or softcap; may be given several times."),
    ] = None,
    compare: Annotated[str, typer.Option(help="dot, additive or cosine.")] = "dot",
    sink: Annotated[bool, typer.Option("--sink", help="Each head has a sink: a logit that takes weight.")] = False,
    dropout: Annotated[float, typer.Option(help="Probability with which a weight is dropped.")] = 0.0,
    observe: Annotated[
        list[str] | None,
        typer.Option(
            help="An observation: logsumexp, max_score, max_weight, entropy, distance, received, top, rows or blocks; "
            "may be given several times."
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Keys and values have 8 bits: int8, float8_e4m3fn or float8_e5m2.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Explain a call of this backend, not of the fastest.")] = None,
    dtype: Dtype = "float32",
    gradients: Annotated[bool, typer.Option(help="Gradients of the call are needed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> None:
    """Report which backend this machine would run a call with, why not another, and what the call costs.

    With --model: which fast paths each kind of layer takes, over a prompt and over the next token, and why not where
    not: the backend of attention, fused steps of the native library, and capture, which runs all layers by one call for
    each token.

    Example: limelight explain --length 16384 --pattern window --back 1024

    Example: limelight explain --length 16384 --queries 1 --key-value-heads 2 --sink --cache int8

    Example: limelight explain --model smollm2
    """
    number = dtype_of(dtype)
    if model is not None:
        _refuse_options_of_a_call(ctx)
        _explain_model(model, length, number, as_json)
        return
    call = ExplainedCall(
        heads, key_value_heads, 4096 if length is None else length, queries, batch, documents, width, pattern, back,
        first, score or (), compare, sink, dropout, observe or (), cache, number, gradients, backend,
    )  # fmt: skip
    shown, found = call.explain()
    if as_json:
        given = {**dataclasses.asdict(call), "pattern": shown, "dtype": dtype, "key_value_heads": call.sizes[1]}
        _print_json({"call": given, **dataclasses.asdict(found)})
        return
    idle = _print_backends()
    typer.echo(f"\n{shown}: {heads} heads x {call.length} tokens x {width}, {dtype}")
    reasons = {name: why for name, why in found.reasons.items() if name not in idle}
    typer.echo(str(dataclasses.replace(found, reasons=reasons)))


def _refuse_options_of_a_call(ctx: typer.Context) -> None:
    """Raise where an option of a single call is given together with --model."""
    from ..tensors.shapes import wrong

    sources = {name: ctx.get_parameter_source(name) for name in OF_A_CALL}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise wrong(options, "belongs to a single call", "--model decides it", "Leave it out, or leave out --model.")


def _print_json(values: dict[str, Any]) -> None:
    typer.echo(json.dumps({"format": "limelight.explain", "version": 1, **values}, indent=2))


def _print_backends() -> list[str]:
    """Print the state of every backend; return those for GPUs where there is no GPU."""
    import platform

    import torch

    from .._version import __version__
    from ..backends import BACKENDS

    machine, threads = platform.machine(), torch.get_num_threads()
    typer.echo(f"limelight {__version__}, torch {torch.__version__}, {machine}, {threads} threads")
    idle = _idle_backends()
    for backend in BACKENDS:
        if backend.NAME not in idle:
            typer.echo(f"  {backend.NAME}: {backend.status()}")
    if idle:
        typer.echo(f"  {', '.join(idle)}: for GPUs; PyTorch sees none here")
    return idle


def _idle_backends() -> list[str]:
    """Return the backends for GPUs where there is no GPU: what else they lack, and why none serves, matters to none."""
    import re

    import torch

    from ..backends import BACKENDS

    if torch.cuda.is_available():
        return []
    return [backend.NAME for backend in BACKENDS if re.search("; not (usable|available): ", backend.status())]


# --- A model ----------------------------------------------------------------------------------------------------------


def _explain_model(name: str, length: int | None, dtype: torch.dtype, as_json: bool) -> None:
    """Print the fast paths of every kind of layer of a model."""
    from rich.console import Console

    from ..checkpoints.load import outline
    from ..models.fast_paths import fast_paths

    network = outline(name)
    if length is None:
        length = min(2048, network.config.limit or 2048)
    found = fast_paths(network, length, dtype=dtype)
    precision = str(dtype).removeprefix("torch.")
    if as_json:
        parts = [one.as_json() for one in found]
        _print_json({"model": name, "dtype": precision, "length": length, "parts": parts})
        return
    console = Console(highlight=False)
    console.print(_title(name, network, length, precision), style="bold", markup=False)
    _print_paths(found, console)


def _title(name: str, network: Stack, length: int, dtype: str) -> str:
    kind, layers = type(network).__name__, network.config.layers
    return f"{name}: {kind}, {layers} layers, {dtype}; a prompt of {length:,} tokens, then the next token"


def _print_paths(found: list[PartPaths], console: Console) -> None:
    """Print a table of the paths, and below it why faster ones are not taken."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("part", "kind", "count", "prompt", "next token"):
        table.add_column(name, justify="right" if name == "count" else "left", overflow="fold")
    for one in found:
        token = "" if one.token is None else one.token.taken
        table.add_row(*map(Text, (one.part, one.kind, str(one.count), one.prompt.taken, token)))
    console.print(table)
    idle = _idle_backends()
    reasons = [line for one in found for line in _why_not(one, idle)]
    if reasons:
        console.print("Why not", style="bold")
    for line in dict.fromkeys(reasons):
        console.print(Text(f"  {line}"))
    if idle:
        console.print(Text(f"  {', '.join(idle)}: for GPUs; PyTorch sees none here"))


def _why_not(one: PartPaths, idle: list[str]) -> list[str]:
    """Return a line for each path that a part does not take, over both the prompt and the token where they agree."""

    def lines(path: Path | None) -> dict[str, str]:
        reasons = {} if path is None else path.reasons
        return {name: "; ".join(why) for name, why in reasons.items() if name not in idle}

    prompt, token = lines(one.prompt), lines(one.token)
    if one.token is None or prompt == token:
        return [f"{one.part} ({one.kind}) not {name}: {why}" for name, why in prompt.items()]
    found = [f"{one.part} ({one.kind}) over a prompt not {name}: {why}" for name, why in prompt.items()]
    return found + [f"{one.part} ({one.kind}) over the next token not {name}: {why}" for name, why in token.items()]
