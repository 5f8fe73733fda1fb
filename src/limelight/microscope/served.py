"""What a vLLM server with Limelight's plugin attended to while it answered: one request, observed and drawn."""

from __future__ import annotations

import json
import math
import os
import re
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..tensors.shapes import ArgumentError, describe, wrong
from ..text import printable

OBSERVED, TOP = "entropy,top=4", 4
MAX_ANSWER = 2**28  # bytes
_RULE = "must be a vLLM server that keeps observations"
_HOW = "Start vLLM with LIMELIGHT_OBSERVE=requests VLLM_PLUGINS=limelight (docs/serving.md)."


@dataclass(frozen=True)
class Served:
    """The observations of one answer of a server.

    Attributes:
        model: the server's name of its model.
        tokens: the text's tokens and those that were generated, as text.
        given: how many of them are the text's.
        rows: for each token that was computed: ``index``, ``token``, ``generated``, ``entropy`` (mean over layers and
            heads, nats; ``None`` where one is not finite), ``entropy_uniform`` (of an even spread over all tokens
            before it and itself); the key that got the largest weight, other than itself and the first: ``other``,
            ``other_index``, ``weight``, ``layer``, ``head`` (``None`` where there is none).
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
        server: its address, such as ``http://127.0.0.1:8000``, also with ``/v1`` behind it. A key is read from
            ``OPENAI_API_KEY``.
        text: what it continues.
        generate: how many tokens at most.
        layers: which layers are observed, such as ``"0-3,29"``; ``None`` for all.

    Raises:
        ArgumentError: there is no such server, it refuses the request, or it keeps no observations.
    """
    if not isinstance(server, str) or not re.match(r"https?://[^/]", server, re.IGNORECASE):
        raise wrong("server", "must be an address", f"it is {describe(server)}", "For example http://127.0.0.1:8000.")
    server = re.sub(r"/+(v1/*)?$", "", server)
    wanted = OBSERVED if layers is None else f"{OBSERVED}; layers={layers}"
    try:
        name = _text(_fetch(f"{server}/v1/models", wait=30)["data"][0]["id"])
        # With `echo` and log-probabilities every token is computed, also those that the prefix cache holds.
        asked = {
            "model": name, "prompt": text, "max_tokens": generate, "temperature": 0, "echo": True, "logprobs": 0,
            "vllm_xargs": {"limelight_observe": wanted},
        }  # fmt: skip
        answer = _fetch(f"{server}/v1/completions", asked, wait=600)
        record = _fetch(f"{server}/v1/limelight/requests/{quote(_text(answer['id']), safe='')}", wait=60)
        tokens = tuple(map(_text, answer["choices"][0]["logprobs"]["tokens"]))
        notes = tuple(map(_text, record["notes"]))
        return Served(name, tokens, len(record["prompt"]), tuple(_rows(record, tokens)), notes)
    except ArgumentError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:  # JSON of another form
        got = f"{server} answers in another form ({type(error).__name__}: {error})"
        raise wrong("server", _RULE, got, _HOW) from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{describe(value)} stands in the place of a text")
    return value


def _rows(record: dict[str, Any], tokens: tuple[str, ...]) -> list[dict[str, Any]]:
    layers = {_number(name): _checked(layer) for name, layer in record["layers"].items() if "entropy" in layer}
    if not layers:
        return []
    first, end = (max(layer["first"] for layer in layers.values()), min(layer["end"] for layer in layers.values()))

    def stacked(name: str) -> np.ndarray[Any, Any]:  # (layers, heads, queries, ...)
        return np.array([layer[name][:, first - layer["first"] : end - layer["first"]] for layer in layers.values()])

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
                "entropy": float(entropy[place]) if np.isfinite(entropy[place]) else None,
                "entropy_uniform": math.log(index + 1),
                "other": tokens[key] if there else None, "other_index": key if there else None,
                "weight": weight if there else None, "layer": list(layers)[layer] if there else None,
                "head": int(head) if there else None,
            }
        )  # fmt: skip
    return rows


def _checked(layer: dict[str, Any]) -> dict[str, Any]:
    """The record of a layer as arrays: ``(heads, queries)``, of the largest weights ``(heads, queries, TOP)``."""
    first, end = layer["first"], layer["end"]
    dtypes = {"entropy": np.float64, "top_weights": np.float64, "top_keys": np.int64}
    arrays = {name: np.array(layer[name], dtype) for name, dtype in dtypes.items()}
    heads = len(arrays["entropy"])
    for name, found in arrays.items():
        shape = (heads, end - first) if name == "entropy" else (heads, end - first, *found.shape[2:3])
        if first < 0 or found.shape != shape or 0 in found.shape[2:]:
            raise ValueError(f"{name} of the queries {first} to {end} has the shape {found.shape}")
    return {"first": first, "end": end, **arrays}


def _number(name: str) -> int:
    found = re.search(r"\d+", name)
    return int(found[0]) if found else 0


def _fetch(address: str, data: dict[str, Any] | None = None, *, wait: float) -> Any:
    """The JSON at an address, by POST where there is ``data``; a server that says nothing for ``wait`` seconds ends it.

    Raises:
        ArgumentError: there is no JSON, or more than `MAX_ANSWER` bytes.
    """
    rule, way_out = _RULE, _HOW
    try:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        if key := os.environ.get("OPENAI_API_KEY"):
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # another host never gets the key
        with urllib.request.urlopen(request, timeout=wait) as answer:
            found = answer.read(MAX_ANSWER + 1)
        if len(found) <= MAX_ANSWER:
            return json.loads(found)
        got = f"{address} answers with more than {MAX_ANSWER / 2**20:g} MiB"
    except urllib.error.HTTPError as error:
        got = f"it answers {error.code} at {address}: {_message(error)}"
        if error.code in (401, 403):
            way_out = "Set OPENAI_API_KEY to the server's key."
        elif error.code in (400, 413, 422):
            rule, way_out = "must be a server that takes the request", "Change the text or how many tokens it writes."
    except urllib.error.URLError as error:
        got = f"{address} cannot be read ({error.reason})"
    except TimeoutError:
        got = f"{address} gave no answer for {wait:g} seconds"
    except (OSError, HTTPException, ValueError, RecursionError) as error:
        got = f"{address} cannot be read ({error})"
    raise wrong("server", rule, got, way_out)


def _message(error: urllib.error.HTTPError) -> str:
    """What the server says of an error: the message in its JSON, or the beginning of what it answers."""
    said = ""
    with suppress(OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError):
        said = error.read(2**16).decode(errors="replace")
        said = str(json.loads(said)["error"]["message"])
    return said[:300].rstrip(".")


def summarise_served(served: Served, console: Console) -> None:
    """Print a row for each token: how spread its attention was, and the token that got most of it."""
    console.print()
    console.print(Text.assemble((_line(served.model), "bold"), ": as it was served"))
    for note in served.notes:
        console.print(Text(_line(note), style="yellow"))
    if not served.rows:
        console.print("No token was observed.")
        return
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
            Text(_line(row["token"]), style="bold" if row["generated"] else ""),
            "" if row["entropy"] is None else f"{row['entropy']:.2f}",
            f"{row['entropy_uniform']:.2f}",
            Text(_line(row["other"])) if found else "",
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


def _line(text: str) -> str:
    """A text on one line, so that a token that holds several keeps to its row."""
    return " ".join(printable(text).split()) or "␣"
