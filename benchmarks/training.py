"""Time one training step of a Llama, ours and transformers with sdpa, from the same weights, interleaved.

python benchmarks/training.py [--shape small|smollm2] [--precision float32|bfloat16] [--tokens 2048] [--rounds 5]

A step is the forward pass, the loss, the backward pass, clipping, and AdamW (PyTorch's fused one for both). The table
gives the median seconds of each part and their ratio, transformers over ours; benchmarks/results/ has the same in
training-SHAPE-PRECISION.json.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

import limelight
from limelight import Packed
from limelight.benchmark import machine
from limelight.training import Batch, Objective, adamw

SHAPES = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 8192,
    },
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
}
AUTOCAST_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--precision", choices=AUTOCAST_DTYPES, default="float32")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    ids = torch.randint(SHAPES[options.shape]["vocab_size"], (1, options.tokens + 1))
    theirs = _theirs(options.shape)
    ours = _ours(theirs)
    autocast_dtype = AUTOCAST_DTYPES[options.precision]
    objective = Objective(ours, autocast=autocast_dtype)
    batch = Batch(ids[:, :-1], ids[:, 1:], Packed((options.tokens,)))

    def our_loss():
        return objective(batch) / options.tokens

    def their_loss():
        with torch.autocast("cpu", autocast_dtype, enabled=autocast_dtype is not None):
            return theirs(input_ids=batch.tokens, labels=batch.tokens, shift_labels=batch.targets).loss

    steps = {"ours": (ours, our_loss), "transformers": (theirs, their_loss)}
    optimizers = {
        name: adamw(model, rate=1e-4, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-8)
        for name, (model, _) in steps.items()
    }
    times: dict[str, dict[str, list[float]]] = {name: {} for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, (model, loss) in steps.items():
            gc.collect()
            parts, found = _step(model, loss, optimizers[name])
            losses[name].append(found)
            if number:  # the first round warms up
                for part, seconds in parts.items():
                    times[name].setdefault(part, []).append(seconds)
    medians = {name: {part: statistics.median(each) for part, each in parts.items()} for name, parts in times.items()}
    ratios = {part: medians["transformers"][part] / seconds for part, seconds in medians["ours"].items()}
    about = machine(torch.get_num_threads()) | {"transformers": transformers.__version__}
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    print(f"{options.shape}, {options.precision}, {options.tokens} tokens, {options.rounds} rounds")
    print(f"{'':10}{'ours':>10}{'theirs':>10}{'ratio':>8}")
    for part, ratio in ratios.items():
        print(f"{part:10}{medians['ours'][part]:>9.3f}s{medians['transformers'][part]:>9.3f}s{ratio:>8.2f}")
    print("losses:", *(f"{name} {' '.join(f'{one:.5f}' for one in each)};" for name, each in losses.items()))
    path = Path(__file__).parent / "results" / f"training-{options.shape}-{options.precision}.json"
    header = {"format": "limelight.training-bench", "version": 1, "machine": about}
    row = {**header, **vars(options), "seconds": medians, "ratio": ratios, "losses": losses}
    path.write_text(json.dumps(row, indent=1) + "\n", "utf-8")


def _theirs(shape):
    config = transformers.LlamaConfig(
        **SHAPES[shape], max_position_embeddings=8192, tie_word_embeddings=True, attn_implementation="sdpa"
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).train()


def _ours(theirs):
    """The same model in Limelight, with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        network = limelight.load(folder).network
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()  # not mapped from the file
    return network.train().requires_grad_()


def _step(model, loss, optimizer):
    """Take one step; return the seconds of its parts, and its loss."""
    begin = time.perf_counter()
    found = loss()
    after_forward = time.perf_counter()
    found.backward()
    after_backward = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    end = time.perf_counter()
    parts = {
        "forward": after_forward - begin,
        "backward": after_backward - after_forward,
        "update": end - after_backward,
        "step": end - begin,
    }
    return parts, found.item()


if __name__ == "__main__":
    main()
