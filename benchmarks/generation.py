"""Time prefill and decoding, ours and transformers with `sdpa`, with the same random weights, interleaved.

python benchmarks/generation.py [--dtypes float32,bfloat16] [--decode 2048] [--prefill 4096] [--output FILE]

The shape is that of SmolLM2-135M; weights are random, so nothing is downloaded. Decoding: one token after `--decode`
tokens in a cache. Prefill: `--prefill` tokens at once, and the logits of the last one.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import transformers

import limelight
from limelight import Causal
from limelight.benchmark import machine
from limelight.generation.session import Session
from limelight.models import Config, DecoderOnly, recipe
from limelight.nn import GatedFeedForward, MultiHead, PreNorm, RMSNorm, Rotary, TiedHead, TokenEmbedding

VOCABULARY, WIDTH, INNER, LAYERS, HEADS, KEY_VALUE_HEADS, D = 49_152, 576, 1536, 30, 9, 3, 64
STEPS = 12  # tokens decoded in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--decode", type=int, default=2048)
    parser.add_argument("--prefill", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    print(
        f"SmolLM2-135M's shape, {threads} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(f"{'':26}{'limelight':>12}{'sdpa':>12}{'ratio':>8}")
    found = []
    for dtype in options.dtypes.split(","):
        ours, theirs = models(getattr(torch, dtype))
        for what, length, rounds in (("decode", options.decode, options.rounds), ("prefill", options.prefill, 2)):
            if not length:
                continue
            measured = decode if what == "decode" else prefill
            mine, others = measured(ours, theirs, length, rounds)
            row = {"what": what, "dtype": dtype, "tokens": length, "seconds": mine, "sdpa_seconds": others}
            found.append(row | {"ratio": others / mine})
            print(
                f"{what}, {length} tokens, {dtype:10}{1e3 * mine:>9.1f} ms{1e3 * others:>9.1f} ms{others / mine:>8.2f}"
            )
    if options.output:
        values = {"format": "limelight.generation-bench", "version": 1, "machine": machine(threads), "cases": found}
        options.output.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def models(dtype):
    """Our model and that of transformers, with the same weights."""
    torch.manual_seed(0)
    shared = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    theirs = transformers.LlamaForCausalLM(shared).to(dtype).eval().requires_grad_(False)
    plain = {"bias": False, "output_bias": False}
    config = Config(
        family="llama", vocabulary=VOCABULARY, width=WIDTH, layers=LAYERS, limit=8192,
        query_heads=HEADS, key_value_heads=KEY_VALUE_HEADS, head_width=D, embedding=recipe(TokenEmbedding),
        attention=recipe(MultiHead, pattern=Causal(), rotary=Rotary(D), **plain),
        feed_forward=recipe(GatedFeedForward, inner=INNER, activation="silu"),
        norm=recipe(RMSNorm), final_norm=recipe(RMSNorm), residual=recipe(PreNorm), head=recipe(TiedHead),
    )  # fmt: skip
    with torch.device("meta"):
        ours = DecoderOnly(config)
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[published(name)] for name in ours.state_dict()}, assign=True)
    return ours.eval().requires_grad_(False), theirs


def published(name):
    """The name in transformers of one of our parameters."""
    pairs = {
        "embedding.tokens": "model.embed_tokens",
        "attention.inner.query": "self_attn.q_proj",
        "attention.inner.key": "self_attn.k_proj",
        "attention.inner.value": "self_attn.v_proj",
        "attention.inner.output": "self_attn.o_proj",
        "feed_forward.inner": "mlp",
        ".gate.": ".gate_proj.",
        ".up.": ".up_proj.",
        ".down.": ".down_proj.",
        "attention.norm": "input_layernorm",
        "feed_forward.norm": "post_attention_layernorm",
    }
    name = {"norm.weight": "model.norm.weight"}.get(name, name)
    for mine, others in pairs.items():
        name = name.replace(mine, others)
    return name.replace("layers.", "model.layers.", 1) if name.startswith("layers.") else name


@torch.no_grad()
def decode(ours, theirs, length, rounds):
    """The median seconds of a token, ours and theirs."""
    ids = torch.randint(VOCABULARY, (1, length))
    run, cache = Session(ours), transformers.DynamicCache(config=theirs.config)
    mine = run.read(ids.tolist())
    others = theirs(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
    assert (mine - others).abs().max() < 0.1 * others.abs().max()
    times = [], []
    for number in range(rounds + 1):
        for which, step in enumerate(
            (lambda: run.read([[7]]), lambda: theirs(torch.tensor([[7]]), past_key_values=cache))
        ):
            begin = time.perf_counter()
            for _ in range(STEPS):
                step()
            if number:  # the first round warms up
                times[which].append((time.perf_counter() - begin) / STEPS)
    return tuple(map(statistics.median, times))


@torch.no_grad()
def prefill(ours, theirs, length, rounds):
    """The median seconds of a prompt, ours and theirs."""
    ids = torch.randint(VOCABULARY, (1, length))
    times = [], []
    for number in range(rounds + 1):
        for which in (0, 1):
            begin = time.perf_counter()
            if which:
                cache = transformers.DynamicCache(config=theirs.config)
                theirs(ids, past_key_values=cache, logits_to_keep=1)
            else:
                Session(ours).read(ids.tolist())
            if number:
                times[which].append(time.perf_counter() - begin)
    return tuple(map(statistics.median, times))


if __name__ == "__main__":
    assert limelight.__version__
    main()
