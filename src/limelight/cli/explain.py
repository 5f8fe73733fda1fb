"""``limelight explain``: what this machine runs a call with, why, and what it costs."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Dtype, dtype_of

LONGEST = 2**24  # what each token sees is written down: about a gigabyte


def explain(
    length: Annotated[int, typer.Option(help="Queries and keys of each head (Lq = Lk).", min=1, max=LONGEST)] = 4096,
    heads: Annotated[int, typer.Option(help="Query heads (Hq).", min=1)] = 8,
    kv_heads: Annotated[
        int | None, typer.Option(help="Key-value heads (Hkv); as many as query heads by default.", min=1)
    ] = None,
    width: Annotated[int, typer.Option(help="Head width (D = Dv).", min=1)] = 64,
    pattern: Annotated[str, typer.Option(help="full, causal or window.")] = "causal",
    back: Annotated[int, typer.Option(help="Keys before the query that a window sees.", min=0)] = 256,
    dtype: Dtype = "float32",
    gradients: Annotated[bool, typer.Option(help="The call wants gradients.")] = False,
) -> None:
    """Say which backend this machine would run a call with, why not another, and what the call costs.

    Example: limelight explain --length 16384 --pattern window --back 1024
    """
    import dataclasses
    import platform
    import re

    import torch

    from .. import Causal, Full, Window, __version__
    from .. import explain as explain_call
    from ..backends import BACKENDS
    from ..tensors.shapes import wrong

    number = dtype_of(dtype)
    patterns = {"full": Full(), "causal": Causal(), "window": Causal() & Window(back, 0)}
    if pattern not in patterns:
        raise wrong(
            "--pattern", f"must be one of {', '.join(patterns)}", f"it is {pattern!r}", "See limelight explain --help."
        )
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        rule = "must be a divisor of --heads, for each key-value head serves as many query heads"
        raise wrong("--kv-heads", rule, f"{heads} is not a multiple of {kv_heads}", "Correct one of them.")

    typer.echo(
        f"limelight {__version__}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads"
    )
    states = {backend.NAME: backend.status() for backend in BACKENDS}
    # Without a GPU it does not matter what else those for GPUs lack, nor why none of them serves this call.
    lacking = [name for name, state in states.items() if re.search("; not (usable|there): ", state)]
    idle = [] if torch.cuda.is_available() else lacking
    for name, state in states.items():
        if name not in idle:
            typer.echo(f"  {name}: {state}")
    if idle:
        typer.echo(f"  {', '.join(idle)}: for GPUs; PyTorch sees none here")
    # Nothing is computed and nothing this large is held: one element is seen at every place.
    one = torch.zeros((), dtype=number).requires_grad_(gradients)
    query = one.expand(1, heads, length, width)
    key = one.expand(1, kv_heads, length, width)
    typer.echo(f"\n{patterns[pattern]!r}: {heads} heads x {length} tokens x {width}, {dtype}")
    explained = explain_call(query, key, key, pattern=patterns[pattern])
    reasons = {name: why for name, why in explained.reasons.items() if name not in idle}
    typer.echo(str(dataclasses.replace(explained, reasons=reasons)))
