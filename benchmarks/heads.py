"""Measure the heads of SmolLM2 and check what is known of them; then those of the same model with shuffled weights.

    python benchmarks/heads.py [--tokens 4000]

Prints time, memory, the known findings beside what was measured, and ends with an error where they differ or where the
shuffled model has a role.

At full size: `limelight heads --model smollm2 --corpus persuasion.txt --output atlas.html` (270 heads, 100,000 tokens;
`docs/atlas.md` shows what it finds and gives time, memory and the size of the page).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch

import limelight
from limelight.microscope import Atlas

# Weights on the key in repeated random tokens, sinks left in; heads are (layer, head).
INDUCTION = {(18, 6): 0.88, (17, 3): 0.77, (17, 4): 0.76}
PREVIOUS = {(16, 0): 0.88, (11, 1): 0.84}
SINKS = 145  # heads that give more than 0.3 to the first token
TOLERANCE, SINKS_TOLERANCE = 0.12, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4000, help="of the packaged text")
    parser.add_argument("--corpus", help="a text file instead of the packaged one")
    parser.add_argument("--conllu", help="a treebank: measure its relations, too")
    parser.add_argument("--gap", help="a file of GAP: measure its pronouns, too")
    options = parser.parse_args()
    model = limelight.load("smollm2")
    wrong = check(measure(model, options))
    shuffle(model)
    roles = measure(model, options).tables["roles"]
    for row in roles:
        print(f"shuffled weights: {row['layer']}.{row['head']} {row['role']} {row['score']:.2f}")
    print(f"shuffled weights: {len(roles)} roles")
    sys.exit(1 if wrong or roles else 0)


def measure(model: limelight.Pretrained, options: argparse.Namespace) -> Atlas:
    began, cpu = time.perf_counter(), time.process_time()
    files = {"conllu": options.conllu, "gap": options.gap}
    atlas = limelight.heads(model, options.corpus, tokens=options.tokens, **files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    tokens = sum(probe["tokens"] for probe in atlas.corpus["probes"])
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{atlas}: {tokens:,} tokens in all, {wall:.0f} s, {cpu:.0f} s of one core, {peak:.2f} GB")
    return atlas


def check(atlas: Atlas) -> int:
    """Print known findings beside what was measured; return how many differ."""
    wrong = 0
    found = {
        "induction": atlas.finding("repeated random tokens", "induction"),
        "previous token": atlas.finding("repeated random tokens", "previous token"),
    }
    for name, known in (("induction", INDUCTION), ("previous token", PREVIOUS)):
        raw = found[name].result.raw
        assert raw is not None
        for (layer, head), weight in known.items():
            differs = abs(raw[layer, head] - weight) > TOLERANCE
            wrong += differs
            remark = "  <-- differs" if differs else ""
            print(f"{name} {layer}.{head}: {raw[layer, head]:.2f}, known {weight:.2f}{remark}")
    sinks = int((atlas.finding("sink").result.total.score > 0.3).sum())
    differs = abs(sinks - SINKS) > SINKS_TOLERANCE
    print(f"sinks: {sinks} heads, known {SINKS}{'  <-- differs' if differs else ''}")
    return wrong + differs


def shuffle(model: limelight.Pretrained) -> None:
    """Permute the numbers of every parameter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        flat = parameter.data.reshape(-1)
        parameter.data = flat[torch.randperm(len(flat), generator=generator)].reshape(parameter.shape)


if __name__ == "__main__":
    main()
