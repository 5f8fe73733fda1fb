"""Caches of 8 bits: what SmolLM2 loses by each of them, and how long a decoding step of attention takes.

    python benchmarks/quantized_caches.py [--prompt 500 2000 7500] [--texts 2] [--keys 8192 32768] [--rounds 15]

Table 1, for each cache: the loss of the 256 tokens that follow prompts of several lengths (chapters of *Persuasion*,
Austen 1818), in nats per token and beside that of a bfloat16 cache; and how far the logits of these tokens differ from
those over a bfloat16 cache, the root of the mean square and the largest. The model computes in bfloat16.

Table 2: microseconds of one query of attention over all keys, of the shapes of SmolLM2-135M (9 query heads, 3 key
heads, D = 64) and Llama 3 8B (32, 8, 128). As in a model, each layer has keys of its own, so that they come from
memory, not from a cache of the processor, and they lie in huge pages. The caches take turns, `--rounds` times; the
median is printed, and its share of bfloat16's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

import limelight
from limelight import Quantized
from limelight.backends import huge_pages
from limelight.formats.progress import counted
from limelight.microscope import heads as packaged
from limelight.nn import Cache

FOLLOWING = 256
BF16 = torch.bfloat16
KINDS = ("int8", "float8_e4m3fn", "float8_e5m2")
CACHES: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    **{
        f"{kind}{', rotated' * rotate}": {"dtype": kind, "rotate": rotate} for kind in KINDS for rotate in (True, False)
    },
}
SHAPES = {"SmolLM2-135M": (9, 3, 64), "Llama 3 8B": (32, 8, 128)}
LAYER_BYTES = 128 * 2**20  # of bfloat16 keys and values of all layers of a measurement: more than processors cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, nargs="*", default=(500, 2000, 7500), help="tokens of prompts")
    parser.add_argument("--texts", type=int, default=2, help="prompts of each length; 0 leaves table 1 out")
    parser.add_argument("--keys", type=int, nargs="*", default=(8192, 32_768), help="keys of a decoding step")
    parser.add_argument("--rounds", type=int, default=15, help="times of each measurement")
    options = parser.parse_args()
    if options.prompt and options.texts:
        table_of_losses(options.prompt, options.texts)
    if options.keys:
        table_of_times(options.keys, options.rounds)


# --- What is lost ----------------------------------------------------------------------------------------------


def table_of_losses(lengths: list[int], texts: int) -> None:
    """Print a row for each cache."""
    model = limelight.load("smollm2", dtype=BF16)
    text = files(packaged).joinpath("data/persuasion.txt").read_text(encoding="utf-8")
    ids = model.read(text[: 6 * texts * (max(lengths) + FOLLOWING)]).ids[0]
    losses: dict[str, list[float]] = {name: [] for name in CACHES}
    apart: dict[str, list[Tensor]] = {name: [] for name in CACHES}
    with counted("Texts", len(lengths) * texts) as progress:
        for done, length in enumerate(lengths):
            found: dict[str, list[float]] = {name: [] for name in CACHES}
            for n, chunk in enumerate(ids[: texts * (length + FOLLOWING)].split(length + FOLLOWING)):
                plain = None
                for name, cache in CACHES.items():
                    logits = following(model, chunk, length, Cache(**cache))
                    plain = logits if plain is None else plain
                    found[name].append(torch.nn.functional.cross_entropy(logits, chunk[length:]).item())
                    apart[name].append(logits - plain)
                progress(done * texts + n + 1)
            for name, values in found.items():
                losses[name].append(statistics.mean(values))
    print(f"SmolLM2-135M in bfloat16, {texts} texts, loss of {FOLLOWING} tokens after a prompt of\n")
    print(f"| cache | {' | '.join(f'{n:,} tokens' for n in lengths)} | logits apart: RMS | largest |")
    print("|---|" + "---|" * (len(lengths) + 2))
    for name, values in losses.items():
        shares = [f"{x:.4f} ({x / y - 1:+.2%})" for x, y in zip(values, losses["bfloat16"], strict=True)]
        difference = torch.cat(apart[name])
        rms, largest = difference.square().mean().sqrt(), difference.abs().max()
        print(f"| {name} | {' | '.join(shares)} | {rms:.3f} | {largest:.2f} |")


@torch.no_grad()
def following(model: limelight.Pretrained, ids: Tensor, length: int, cache: Cache) -> Tensor:
    """The logits of the tokens that follow a prompt, ``(n, V)`` float32, each read over what the cache holds."""
    last = model.network.head_on(model.network(ids[None, :length], cache=cache, logits=False).states[0, -1:])
    return torch.cat((last, model.network(ids[None, length:-1], cache=cache).logits[0])).float()


# --- How long a step takes -------------------------------------------------------------------------------------


def table_of_times(lengths: list[int], rounds: int) -> None:
    """Print a row for each shape and number of keys."""
    print(f"\nOne query of attention, {torch.get_num_threads()} threads, microseconds, and their share of bfloat16's\n")
    print(
        f"| shape | keys | bfloat16 | {' | '.join(f'{kind}, rotated' for kind in KINDS)} |\n|---|---|---|---|---|---|"
    )
    for name, (Hq, Hkv, D) in SHAPES.items():
        for keys in lengths:
            times = measured(Hq, Hkv, D, keys, rounds)
            cells = [f"{1e6 * t:,.0f}" + (f" ({t / times[0]:.0%})" if n else "") for n, t in enumerate(times)]
            print(f"| {name} | {keys:,} | {' | '.join(cells)} |", flush=True)


def measured(Hq: int, Hkv: int, D: int, keys: int, rounds: int) -> list[float]:
    """Median seconds of a call over keys in bfloat16 and in each of 8 bits, all in turn."""
    layers = max(2, LAYER_BYTES // (4 * Hkv * keys * D))
    query = torch.randn(1, Hq, 1, D).to(BF16)
    caches: list[list[Any]] = [[[torch.randn(1, Hkv, keys, D).to(BF16) for _ in "kv"] for _ in range(layers)]]
    caches += [[[Quantized.of(x, kind, rotate=True) for x in layer] for layer in caches[0]] for kind in KINDS]
    for stored in (x for cache in caches for layer in cache for x in layer):
        huge_pages.use(stored.data if isinstance(stored, Quantized) else stored, seconds=10)
    times: list[list[float]] = [[] for _ in caches]
    for _ in range(rounds):
        for cache, found in zip(caches, times, strict=True):
            began = time.perf_counter()
            for key, value in cache:
                limelight.attention(query, key, value)
            found.append((time.perf_counter() - began) / layers)
    return [statistics.median(found) for found in times]


if __name__ == "__main__":
    main()
