"""Caches that keep only some keys: what SmolLM2 loses by each policy, and what it costs to know the received weight.

    python benchmarks/kept_caches.py [--prompt 1000] [--texts 3] [--depths 3] [--layer 4096 32768]

Table 1, for each policy at 50, 25 and 10 % of the keys: the loss of the 100 tokens that follow a prompt (chapters of
*Persuasion*, Austen 1818), in nats per token; and how many tokens of a number that stands somewhere in the prompt are
the model's first choice when it is asked for it, in the prompt, so that a policy can see the question, or after the
prompt, when keys have been evicted already.

Table 2, one layer (32 heads, D = 128, float32, causal), with the received weight of every key, each in a process of
its own: the rise of memory and the seconds of Limelight, and of eager attention, whose weights have 32 x N x N numbers;
where those take more than a third of the memory that is free, their size is computed alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from importlib.resources import files

import torch
from torch import Tensor

import limelight
from limelight.formats.progress import counted
from limelight.microscope import heads as packaged
from limelight.nn import Adaptive, Cache, Keep, LastQueries, Pyramid, Received

SHARES = (0.5, 0.25, 0.1)
FOLLOWING = 100
HEADS, D = 32, 128
NEEDLE, NUMBER = " The secret number of the old castle is 48213.", " 48213"
QUESTION = "\nThe secret number of the old castle is"
POLICIES = {
    "first and recent (StreamingLLM)": lambda share: Keep(share),
    "received weight (H2O)": lambda share: Keep(share, by=Received()),
    "received weight, adaptive heads": lambda share: Keep(share, by=Received(), heads=Adaptive()),
    "last queries (SnapKV)": lambda share: Keep(share, by=LastQueries(32)),
    "last queries, pyramid (PyramidKV)": lambda share: Keep(share, by=LastQueries(32), layers=Pyramid()),
    "last queries, adaptive heads (AdaKV)": lambda share: Keep(share, by=LastQueries(32), heads=Adaptive()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=1000, help="tokens of a prompt")
    parser.add_argument("--texts", type=int, default=3, help="prompts whose continuation is predicted; 0 for none")
    parser.add_argument("--depths", type=int, default=3, help="places in a prompt where the number stands")
    parser.add_argument("--layer", type=int, nargs="*", default=(4096, 32_768), help="tokens of the layer")
    parser.add_argument("--one", choices=("limelight", "eager"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one, options.layer[0])))
        return
    if options.texts:
        table_of_losses(options)
    if options.layer:
        table_of_costs(options.layer)


# --- What is lost ----------------------------------------------------------------------------------------------


def table_of_losses(options: argparse.Namespace) -> None:
    """Print a row for each policy and share, and one for a cache that keeps everything."""
    model = limelight.load("smollm2")
    text = files(packaged).joinpath("data/persuasion.txt").read_text(encoding="utf-8")
    ids = model.read(text[: 8 * options.texts * (options.prompt + FOLLOWING)]).ids[0]
    chunks = ids[: options.texts * (options.prompt + FOLLOWING)].split(options.prompt + FOLLOWING)
    needle, question, number = (model.read(part).ids[0] for part in (NEEDLE, QUESTION, NUMBER))
    prompts = []
    for n in range(options.depths):
        at = int((n + 0.5) / options.depths * options.prompt)
        prompts.append(torch.cat((chunks[0][:at], needle, chunks[0][at : options.prompt])))
    cases = [("everything", 1.0, None)]
    cases += [(name, share, make(share)) for name, make in POLICIES.items() for share in SHARES]
    rows = []
    with counted("Policies", len(cases)) as progress:
        for done, (name, share, keep) in enumerate(cases, 1):
            losses = [loss(model, chunk[: options.prompt], chunk[options.prompt :], keep) for chunk in chunks]
            asked, later = [], []
            for prompt in prompts:
                asked.append(right(model, torch.cat((prompt, question)), number, keep))
                later.append(right(model, prompt, torch.cat((question, number)), keep, len(number)))
            rows.append((name, share, losses, asked, later))
            progress(done)
    print(f"SmolLM2-135M, prompts of {options.prompt} tokens: {options.texts} continuations of {FOLLOWING} tokens,")
    print(f"{options.depths} numbers of {len(number)} tokens\n")
    print("| policy | keys | loss | number, asked in the prompt | number, asked after it |\n|---|---|---|---|---|")
    for name, share, *found in rows:
        mean, asked, later = (sum(part) / max(len(part), 1) for part in found)
        print(f"| {name} | {share:.0%} | {mean:.3f} | {asked:.0%} | {later:.0%} |")


@torch.no_grad()
def logits(model: limelight.Pretrained, prompt: Tensor, following: Tensor, keep: Keep | None) -> Tensor:
    """The logits of the tokens ``following`` a prompt, ``(n, V)``, after the prompt was read and keys were evicted."""
    cache = Cache(keep=keep)
    last = model.network.head_on(model.network(prompt[None], cache=cache, logits=False).states[0, -1:])
    if len(following) == 1:
        return last
    return torch.cat((last, model.network(following[None, :-1], cache=cache).logits[0]))


def loss(model: limelight.Pretrained, prompt: Tensor, following: Tensor, keep: Keep | None) -> float:
    """Mean ``-log p`` of the tokens that follow a prompt, in nats."""
    return torch.nn.functional.cross_entropy(logits(model, prompt, following, keep), following).item()


def right(
    model: limelight.Pretrained, prompt: Tensor, following: Tensor, keep: Keep | None, last: int | None = None
) -> float:
    """The share of the ``last`` tokens that the model ranks first, given those before."""
    first = logits(model, prompt, following, keep).argmax(-1) == following
    return first[-(last or len(following)) :].float().mean().item()


# --- What it costs ---------------------------------------------------------------------------------------------


def table_of_costs(lengths: list[int]) -> None:
    """Print memory and time of the received weight of one layer, ours and eager's."""
    print(f"\nReceived weight of one layer, {HEADS} heads, D = {D}, float32, {torch.get_num_threads()} threads\n")
    print("| tokens | Limelight: GB | s | eager: GB | s |\n|---|---|---|---|---|")
    for tokens in lengths:
        row = [of_process("limelight", tokens)]
        weights = 4 * HEADS * tokens**2
        row.append(of_process("eager", tokens) if weights < free_bytes() / 3 else (weights, None))
        cells = [f"{memory / 1e9:.2f} | {'computed' if s is None else f'{s:.1f}'}" for memory, s in row]
        print(f"| {tokens:,} | {' | '.join(cells)} |", flush=True)


def of_process(way: str, tokens: int) -> tuple[float, float]:
    """Memory and time of one way, in a process of its own."""
    command = [sys.executable, __file__, "--one", way, "--layer", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    memory, seconds = json.loads(done.stdout)
    return memory, seconds


def measured(way: str, tokens: int) -> tuple[float, float]:
    """How far memory rises above the operands, and the seconds."""
    query, key, value = torch.randn(3, 1, HEADS, tokens, D).unbind()
    limelight.attention(query[:, :, :64], key[:, :, :64], value[:, :, :64])
    before, began = peak(), time.perf_counter()
    if way == "limelight":
        observe = limelight.Observe(received=True)
        limelight.attention(query, key, value, pattern=limelight.Causal(), observe=observe)
    else:
        mask = torch.full((tokens, tokens), -torch.inf).triu_(1)
        weights = (query @ key.transpose(-1, -2) / D**0.5 + mask).softmax(-1)
        _ = weights @ value, weights.sum(2)
    return peak() - before, time.perf_counter() - began


def peak() -> float:
    """The largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_bytes() -> float:
    """Physical memory that no process uses."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
