"""Presses of kvpress that score by Limelight, against kvpress' own over eager attention: the same keys are kept.

    python -m venv build/kvpress
    build/kvpress/bin/pip install torch==2.13.0 kvpress==0.5.5 && build/kvpress/bin/pip install --no-deps .
    build/kvpress/bin/python tests/integrations/kvpress_presses.py [--length 4096]

kvpress wants a `transformers` older than the one that the tests use, so the script has an environment of its own; run
it before a release. It ends with an error where a cache or the logits after it differ, and prints the time and the
rise of memory of both at ``--length`` tokens.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from kvpress import ObservedAttentionPress, ScorerPress, SnapKVPress
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from limelight.integrations.kvpress import Score
from limelight.nn import LastQueries, Received

SHAPE: dict[str, Any] = {
    "vocab_size": 500, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 65536,
}  # fmt: skip
WINDOW, POOL = 32, 5
TOLERANCE = 1e-6  # of float64: the softmax of `transformers` has float32


@dataclass
class HeavyHitters(Score, ScorerPress):  # type: ignore[misc]
    """By the weight that keys received, as ``ObservedAttentionPress``."""

    by = Received()


@dataclass
class LastOnes(Score, ScorerPress):  # type: ignore[misc]
    """By the weight that the last queries gave, as ``SnapKVPress``."""

    by = LastQueries(WINDOW, POOL)


PRESSES = {
    "received": (lambda share: ObservedAttentionPress(share), lambda share: HeavyHitters(share)),
    "last queries": (lambda share: SnapKVPress(share, WINDOW, POOL), lambda share: LastOnes(share)),
}


def model(kind: type, attention: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SHAPE), attn_implementation=attention).to(dtype).eval()


def compare(kind: type) -> int:
    """How many presses keep other keys than kvpress' own, or lead to other logits."""
    wrong, ids = 0, torch.randint(5, 500, (1, 300), generator=torch.Generator().manual_seed(1))
    for name, makers in PRESSES.items():
        for share in (0.25, 0.5, 0.9):
            found = []
            for attention, make in zip(("eager", "sdpa"), makers, strict=True):
                network = model(kind, attention, torch.float64)
                with torch.no_grad(), make(share)(network):
                    cache = network(ids[:, :-1]).past_key_values
                    logits = network(ids[:, -1:], past_key_values=cache, position_ids=torch.tensor([[299]])).logits
                found.append(([layer.keys for layer in cache.layers], logits))
            (theirs, expected), (ours, logits) = found
            pairs = [*zip(theirs, ours, strict=True), (expected, logits)]
            same = all(a.shape == b.shape and (a - b).abs().max() < TOLERANCE for a, b in pairs)
            kept = f"{theirs[0].shape[2]} of 299 keys kept"
            print(f"{'ok  ' if same else 'FAIL'} {kind.__name__}, {name}: {kept}")
            wrong += not same
    return wrong


def cost(which: str, length: int) -> None:
    """Print the seconds and the rise of memory of one press, in this process."""
    attention, make = ("eager", PRESSES["received"][0]) if which == "kvpress" else ("sdpa", PRESSES["received"][1])
    network = model(LlamaConfig, attention, torch.float32)
    ids = torch.randint(5, 500, (1, length))
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with torch.no_grad(), make(0.5)(network):
        network(ids, logits_to_keep=1)
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{which}: {time.perf_counter() - begun:.1f} s, {rise:,.0f} MiB more")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096, help="tokens of the text whose cost is printed (4096)")
    parser.add_argument("--cost", choices=("kvpress", "limelight"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cost:
        cost(options.cost, options.length)
        return 0
    wrong = compare(LlamaConfig) + compare(Qwen3Config)
    for which in ("kvpress", "limelight"):  # a process of its own, whose memory has not risen before
        command = [sys.executable, __file__, "--cost", which, "--length", str(options.length)]
        subprocess.run(command, check=True, env=os.environ)
    print("All is well." if not wrong else f"{wrong} presses differ.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
