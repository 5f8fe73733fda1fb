"""Limelight under a Hugging Face model against the model's own `sdpa`, end to end; and packed against padded batches.

    python benchmarks/drop_in.py [--quick] [--only TEXT] [--output FILE.json]

A Llama of SmolLM2-135M's shape with random weights, on which speed does not depend: prefill of 2k and 8k tokens, one
token after a cache of 8k, one training step at 2k tokens, in float32 and bfloat16. And `minilm`, reading 64 texts of 16
to 256 tokens as one packed row and as a padded batch. What is compared runs in turn; medians.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

import limelight
from limelight import Packed, Padded
from limelight.benchmark.timing import Function, machine, median_times
from limelight.integrations.transformers import enable

SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8193, "tie_word_embeddings": True,
}  # fmt: skip
KINDS = ("limelight", "sdpa")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 tokens instead of 8k and 2k, one measurement each")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, help="where the numbers are written (JSON)")
    options = parser.parse_args()
    torch.manual_seed(0)
    transformers.utils.logging.set_verbosity_error()
    enable()
    about = machine(torch.get_num_threads()) | {"transformers": transformers.__version__}
    print("  ".join(f"{name}: {value}" for name, value in about.items()))
    cases = []
    for name, make in cases_of(options.quick):
        if options.only not in name:
            continue
        ours, theirs = median_times(make(), 0.0 if options.quick else 20.0)
        cases.append({"case": name, "limelight": ours, "peer": theirs, "ratio": theirs / ours})
        print(f"{name:<44} {1e3 * ours:>9.1f} ms  {1e3 * theirs:>9.1f} ms  {theirs / ours:>5.2f}x", flush=True)
        if options.output:  # after every case: the whole takes about ten minutes
            header = {"format": "limelight.drop-in", "version": 1, "machine": about}
            options.output.write_text(json.dumps({**header, "cases": cases}, indent=1) + "\n")


def cases_of(quick: bool) -> Iterator[tuple[str, Callable[[], list[Function]]]]:
    """Each case, and what makes the calls of Limelight and of its peer."""
    short, long = (512, 512) if quick else (2048, 8192)
    config = transformers.LlamaConfig(**SMOLLM2)
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.LlamaForCausalLM(config).to(dtype).eval()
        what = str(dtype).removeprefix("torch.")
        for length in sorted({short, long}):
            yield f"{what}, prefill of {length}", partial(prefills, model, length)
        yield f"{what}, one token after {long}", partial(steps, model, long)
        yield f"{what}, training step at {short}", partial(training_steps, model, short)
    yield "minilm, 64 texts packed (against padded)", packed_and_padded


def prefills(model: Any, length: int) -> list[Function]:
    tokens = torch.randint(SMOLLM2["vocab_size"], (1, length))

    def prefill(kind: str) -> None:
        model.set_attn_implementation(kind)
        with torch.no_grad():
            model(tokens, logits_to_keep=1)

    return [lambda kind=kind: prefill(kind) for kind in KINDS]  # type: ignore[misc]


def steps(model: Any, length: int) -> list[Function]:
    """Each with a cache of its own, cut back after the token."""
    tokens = torch.randint(SMOLLM2["vocab_size"], (1, length + 1))
    with torch.no_grad():
        caches = {kind: model(tokens[:, :length], logits_to_keep=1).past_key_values for kind in KINDS}

    def step(kind: str) -> None:
        model.set_attn_implementation(kind)
        with torch.no_grad():
            model(tokens[:, length:], past_key_values=caches[kind])
        caches[kind].crop(-1)

    return [lambda kind=kind: step(kind) for kind in KINDS]  # type: ignore[misc]


def training_steps(model: Any, length: int) -> list[Function]:
    tokens = torch.randint(SMOLLM2["vocab_size"], (1, length))
    model.train()

    def step(kind: str) -> None:
        model.set_attn_implementation(kind)
        model(tokens, labels=tokens).loss.backward()
        model.zero_grad()

    return [lambda kind=kind: step(kind) for kind in KINDS]  # type: ignore[misc]


def packed_and_padded() -> list[Function]:
    model = limelight.load("minilm")
    lengths = torch.randint(16, 257, (64,)).tolist()
    texts = [torch.randint(1000, 20000, (length,)) for length in lengths]
    row, batch = torch.cat(texts)[None], torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    calls = [(row, Packed(tuple(lengths))), (batch, Padded(torch.tensor(lengths)))]

    def read(tokens: torch.Tensor, layout: limelight.Layout) -> None:
        with torch.no_grad():
            model(tokens, layout=layout)

    return [lambda call=call: read(*call) for call in calls]  # type: ignore[misc]


if __name__ == "__main__":
    main()
