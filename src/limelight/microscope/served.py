"""What a vLLM server with Limelight's plugin attended to while it answered: one request, observed and drawn."""

from __future__ import annotations

import json
import math
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..tensors.shapes import describe, wrong
from ..text import printable

OBSERVED, TOP = "entropy,top=4", 4
MAX_ANSWER = 2**28  # bytes
_HOW = "Start vLLM with LIMELIGHT_OBSERVE=requests VLLM_PLUGINS=limelight (docs/serving.md)."


@dataclass(frozen=True)
class Served:
    """The observations of one answer of a server.

    Attributes:
        model: the server's name of its model.
        tokens: the text's tokens and those that were generated, as text.
        given: how many of them are the text's.
        rows: for each token that was computed: ``index``, ``token``, ``generated``, ``entropy`` (mean over layers and
            heads, nats), ``entropy_uniform`` (of an even spread over all tokens before it and itself); the key that got
            the largest weight, other than itself and the first: ``other``, ``other_index``, ``weight``, ``layer``,
            ``head`` (``None`` where there is none).
        notes: what is missing, and why.
    """

    model: str
    tokens: tuple[str, ...]
    given: int
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def look_at_server(server: str, text: str, *, generate: int = 16, layers: str | None = None) -> Served:
    """Let a server continue a text greedily, and return what it attended to meanwhile.

    Args:
        server: its address, such as ``http://127.0.0.1:8000``. A key is read from ``OPENAI_API_KEY``.
        text: what it continues.
        generate: how many tokens at most.
        layers: which layers are observed, such as ``"0-3,29"``; ``None`` for all.

    Raises:
        ArgumentError: there is no such server, or it keeps no observations.
    """
    if not isinstance(server, str) or not re.match(r"https?://[^/]", server):
        raise wrong("server", "must be an address", f"it is {describe(server)}", "For example http://127.0.0.1:8000.")
    server = server.rstrip("/")
    name = _fetch(f"{server}/v1/models")["data"][0]["id"]
    wanted = OBSERVED if layers is None else f"{OBSERVED}; layers={layers}"
    # With `echo` and log-probabilities every token is computed, also those that the prefix cache holds.
    asked = {
        "model": name, "prompt": text, "max_tokens": generate, "temperature": 0, "echo": True, "logprobs": 0,
        "vllm_xargs": {"limelight_observe": wanted},
    }  # fmt: skip
    answer = _fetch(f"{server}/v1/completions", asked)
    record = _fetch(f"{server}/v1/limelight/requests/{answer['id']}")
    tokens = tuple(answer["choices"][0]["logprobs"]["tokens"])
    return Served(name, tokens, len(record["prompt"]), tuple(_rows(record, tokens)), tuple(record["notes"]))


def _rows(record: dict[str, Any], tokens: tuple[str, ...]) -> list[dict[str, Any]]:
    layers = {_number(name): layer for name, layer in record["layers"].items() if "entropy" in layer}
    if not layers:
        return []
    first, end = (max(layer["first"] for layer in layers.values()), min(layer["end"] for layer in layers.values()))

    def stacked(name: str) -> np.ndarray[Any, Any]:  # (layers, heads, queries, ...)
        return np.array([np.array(layer[name])[:, first - layer["first"] : end - layer["first"]]
                         for layer in layers.values()])  # fmt: skip

    entropy = stacked("entropy").mean((0, 1))
    keys, weights = stacked("top_keys"), stacked("top_weights")
    queries = np.arange(first, end)[:, None]
    weights = np.where((keys <= 0) | (keys == queries), -1.0, weights)
    rows = []
    for place, index in enumerate(range(first, min(end, len(tokens)))):
        layer, head, rank = np.unravel_index(weights[:, :, place].argmax(), weights[:, :, place].shape)
        weight, key = float(weights[layer, head, place, rank]), int(keys[layer, head, place, rank])
        there = weight > 0 and key < len(tokens)
        rows.append(
            {
                "index": index, "token": tokens[index], "generated": index >= len(record["prompt"]),
                "entropy": float(entropy[place]), "entropy_uniform": math.log(index + 1),
                "other": tokens[key] if there else None, "other_index": key if there else None,
                "weight": weight if there else None, "layer": list(layers)[layer] if there else None,
                "head": int(head) if there else None,
            }
        )  # fmt: skip
    return rows


def _number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 0


def _fetch(address: str, data: dict[str, Any] | None = None) -> Any:
    """The JSON at an address, by POST where there is ``data``."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    body = None if data is None else json.dumps(data).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=600) as answer:
            return json.loads(answer.read(MAX_ANSWER))
    except urllib.error.HTTPError as error:
        got = f"it answers {error.code} at {address}: {error.read(300).decode(errors='replace')}"
    except (OSError, HTTPException, ValueError) as error:
        got = f"{address} cannot be read ({error})"
    raise wrong("server", "must be a vLLM server that keeps observations", got, _HOW)


def summarise_served(served: Served, console: Console) -> None:
    """Print a row for each token: how spread its attention was, and the token that got most of it."""
    console.print()
    console.print(Text.assemble((printable(served.model), "bold"), ": as it was served"))
    for note in served.notes:
        console.print(Text(printable(note), style="yellow"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token", max_width=24, no_wrap=True)
    for name in ("entropy", "even"):
        table.add_column(name, justify="right")
    table.add_column("looks at", max_width=24, no_wrap=True)
    for name in ("weight", "head"):
        table.add_column(name, justify="right")
    for row in served.rows:
        found = row["other"] is not None
        table.add_row(
            Text(printable(row["token"]).strip() or "␣", style="bold" if row["generated"] else ""),
            f"{row['entropy']:.2f}",
            f"{row['entropy_uniform']:.2f}",
            Text(printable(row["other"]).strip() or "␣") if found else "",
            f"{row['weight']:.2f}" if found else "",
            f"{row['layer']}.{row['head']}" if found else "",
        )
    console.print(table)
    console.print()
    console.print(
        Text(
            "entropy: in nats, the mean over all layers and heads observed; even: of a spread over all tokens before. "
            "looks at: the largest weight of any head (layer.head, from 0), but of the token itself and the first one. "
            "Bold tokens were generated.",
            style="dim",
        )
    )
