"""Small steps of 1, 2 and 4 processes on this machine, beside what the arithmetic of `scaling.py` predicts for them.

A step is a forward and a backward pass of a small Llama over one text under `ContextParallel`, in float32, over gloo;
without the sum of the parameters' gradients and without the optimizer. What the prediction is made of is measured
first: with one process, the seconds of a step in which every token sees itself alone (all but attention), and of
attention's forward and backward pass on a causal text; with 2 and 4 processes, the seconds of an all-to-all of a few
bytes and of 4 MiB to each.

Seconds of the processor are compared, of the process that takes most: they hardly depend on what else runs, and show
whether pairs, tokens and the work of an exchange are counted well. The clock's seconds are beside them. Processes
beyond the number of cores take turns, so 4 processes on 2 cores take the clock's time of 2, at best.
"""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from scaling import Machine, Shape, planned_seconds

from limelight import Causal, Window, attention
from limelight.distributed import ContextParallel
from limelight.models.families import FAMILIES, Published

SHAPE = Shape(layers=4, d_model=256, heads=4, key_value_heads=2, width=64, d_ff=704, vocabulary=1024)
LENGTH, ROUNDS, WINDOW = 4096, 3, 256
KEY_BYTES = 2 * SHAPE.key_value_heads * SHAPE.width * 4
BLOCK = 2**20  # numbers that are sent to each peer to measure the bandwidth
PATTERNS = {"causal": None, f"window {WINDOW}": WINDOW, "itself alone": 1}


class Seconds(NamedTuple):
    """Of the processor, and of the clock."""

    processor: float
    clock: float


def measured_and_predicted() -> list[str]:
    """The rows of a table."""
    cores = len(os.sched_getaffinity(0))
    one = run(1)
    rest = one["itself alone"].processor
    forward, backward = one["forward"].processor, one["both"].processor - one["forward"].processor
    flops = 4 * SHAPE.width * SHAPE.heads * Causal().pairs(LENGTH) / 1e9
    lines = [
        f"{cores} cores, with a load average of {os.getloadavg()[0]:.1f} before the first run: where that is more than"
        " none, the clock's seconds are those of a busy machine.",
        "",
        f"One process computes attention at {flops / forward:,.0f} GFLOP/s forward,"
        f" {2.5 * flops / backward:,.0f} backward, and all else of a step in {rest:.3f} s.",
        "",
        "| processes | layers | processor, s: measured | predicted | ratio | clock, s: measured | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    for processes in (1, 2, 4):
        found = one if processes == 1 else run(processes)
        for name in list(PATTERNS)[:2]:
            report, seconds, exchange = found[name, "report"], found[name], found[name, "exchange"]
            # a pair costs what it costs in a causal text
            work = [SHAPE.layers * (forward + backward) * pairs / Causal().pairs(LENGTH) for pairs in report.pairs]
            predicted = max(n + rest * tokens / LENGTH for n, tokens in zip(work, report.tokens, strict=True))
            predicted += exchange.processor
            lines.append(
                f"| {processes} | {name} | {seconds.processor:.3f} | {predicted:.3f} |"
                f" {seconds.processor / predicted:.2f} | {seconds.clock:.3f} |"
                f" {predicted * max(1.0, processes / cores) + exchange.clock:.3f} |"
            )
    return lines


def run(processes: int) -> dict[Any, Any]:
    """What was measured, of the slowest rank each."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(_measure, (processes, folder), processes, start_method="spawn")
        return torch.load(f"{folder}/found", weights_only=False)


def _measure(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    found: dict[Any, Any] = {}
    machines = _links(processes)
    torch.manual_seed(0)
    text = torch.randint(SHAPE.vocabulary, (1, LENGTH))
    for name, window in PATTERNS.items():
        network = _network(window)
        pattern = Causal() if window is None else Causal() & Window(window - 1, 0)
        spread = ContextParallel.balanced(dist.group.WORLD, LENGTH, patterns=[pattern])
        own = spread.mine(text)
        found[name, "report"] = spread.explain(pattern)
        found[name, "exchange"] = Seconds(
            *[SHAPE.layers * sum(planned_seconds(spread.plan(pattern, 1), one, KEY_BYTES)) for one in machines]
        )
        found[name] = _seconds(lambda network=network, own=own, spread=spread: _step(network, own, spread))
    if processes == 1:
        found |= _attention()
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.barrier()
    dist.destroy_process_group()


def _step(network: torch.nn.Module, tokens: torch.Tensor, spread: ContextParallel) -> None:
    network(tokens, layout=spread).states.square().mean().backward()
    network.zero_grad()


def _attention() -> dict[str, float]:
    query = torch.randn(1, SHAPE.heads, LENGTH, SHAPE.width, requires_grad=True)
    key = torch.randn(1, SHAPE.key_value_heads, LENGTH, SHAPE.width, requires_grad=True)
    forward = _seconds(lambda: attention(query, key, key, pattern=Causal()))
    both = _seconds(lambda: attention(query, key, key, pattern=Causal()).sum().backward())
    return {"forward": forward, "both": both}


def _links(processes: int) -> list[Machine]:
    """Latency and bandwidth of an all-to-all, by the processor's seconds and by the clock's."""
    short, long = [_seconds(_all_to_all(size * processes)) for size in (1, BLOCK)]
    peers = max(1, processes - 1)
    return [
        Machine(node_bandwidth=peers * BLOCK * 4 / max(b - a, 1e-9) / 1e9, latency=a / peers * 1e6)
        for a, b in zip(short, long, strict=True)
    ]


def _all_to_all(size: int) -> Callable[[], object]:
    sent, received = torch.zeros(size), torch.empty(size)
    return lambda: dist.all_to_all_single(received, sent)


def _network(window: int | None) -> torch.nn.Module:
    described = {
        "model_type": "llama" if window is None else "mistral",
        "vocab_size": SHAPE.vocabulary,
        "max_position_embeddings": LENGTH,
        "hidden_size": SHAPE.d_model,
        "intermediate_size": SHAPE.d_ff,
        "num_hidden_layers": SHAPE.layers,
        "num_attention_heads": SHAPE.heads,
        "num_key_value_heads": SHAPE.key_value_heads,
        "tie_word_embeddings": True,
    }
    if window is not None:
        described["sliding_window"] = window
    family = FAMILIES[described["model_type"]]
    return family.shape(family.configure(Published("a small one", described))).train().requires_grad_()


def _seconds(function: Callable[[], object]) -> Seconds:
    """The least over rounds of the slowest rank's seconds; the first round warms up."""
    found = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        begin = time.process_time(), time.perf_counter()
        function()
        seconds = torch.tensor([time.process_time(), time.perf_counter()], dtype=torch.float64)
        seconds -= torch.tensor(begin, dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        found.append(seconds)
    return Seconds(*torch.stack(found[1:]).amin(0).tolist())
