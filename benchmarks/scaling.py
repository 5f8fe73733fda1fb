"""Estimate the seconds of a training step of a long text over many GPUs, with context parallelism, by arithmetic.

python benchmarks/scaling.py [--length 1048576] [--gpus 8,64,1024] [--bandwidth 50] ... [--write]
python benchmarks/scaling.py --check

A model of about 100 billion parameters by default. For every number of GPUs and every kind of layers, runs are dealt
and needs worked out by Limelight's own planning code, so that pairs and bytes are counted, not estimated; speeds,
bandwidth and latency are arguments. Three ways to bring keys to queries are compared: the exchange of only those that
are seen, an all-gather, and a ring. `--write` keeps the table in `scaling.md` beside this file. `--check` measures
small steps of 1, 2 and 4 processes on this machine beside what the same arithmetic predicts for them.
"""

import argparse
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from exchanged_bytes import documents

from limelight import Causal, Layout, Packed, Pattern, Window
from limelight.distributed import Plan, deal, make_plan
from limelight.distributed.exchange import NODE
from limelight.distributed.runs import Runs, count
from limelight.forms.layouts import Aligned
from limelight.forms.lowering import lower

WAYS = ("exchanged", "all-gather", "ring")
TILE = 128  # queries and keys of a kernel's tile: pairs are counted by whole tiles


@dataclass(frozen=True)
class Shape:
    """A decoder-only model with gated feed-forward layers."""

    layers: int = 88
    d_model: int = 10240
    heads: int = 80
    key_value_heads: int = 8
    width: int = 128
    d_ff: int = 28672
    vocabulary: int = 128_000

    @property
    def layer_parameters(self) -> int:
        """Parameters of a layer's matrices."""
        return self.d_model * (2 * (self.heads + self.key_value_heads) * self.width + 3 * self.d_ff)

    @property
    def parameters(self) -> int:
        """All parameters; embedding and head are not shared."""
        return self.layers * self.layer_parameters + 2 * self.d_model * self.vocabulary


@dataclass(frozen=True)
class Machine:
    """What the arithmetic assumes of the machine."""

    dense_tflops: float = 600.0  # of matrix products, in 16 bits
    attention_tflops: float = 540.0  # of attention forward: flash3 on an H200, causal, 16k (results/h200.json)
    backward_tflops: float = 410.0  # of attention backward, which has 2.5 times the operations
    bandwidth: float = 50.0  # GB/s of each GPU to other nodes, each way
    node_bandwidth: float = 450.0  # GB/s of each GPU within its node, each way
    node: int = 8  # GPUs of a node
    latency: float = 5.0  # microseconds for each peer that a rank exchanges keys with
    overlap: float = 0.0  # share of attention's time behind which an exchange or an all-gather is hidden
    recompute: int = 1  # 1: a layer's forward pass, exchange included, is repeated backward; 0: all is kept
    number_bytes: int = 2  # bytes of a key's number
    memory: float = 141.0  # GB of a GPU


ABOUT = """\
What it says, by these assumptions:

- Windows: the exchange takes less than 2 % of any step; an all-gather takes most of it from 512 GPUs on.
- One causal text: every rank needs nearly all keys, which travel by an all-gather. A ring hides behind computation up
  to 256 GPUs; on 1,024 it is the slowest. The table's all-gather is a little faster since it returns gradients in 16
  bits, and of ranks that hold equally much.
- Packed documents: the exchange is the fastest of the three, by as much as the longest documents let it.
- A causal layer in six: an all-gather for it and an exchange for the windows are faster than either for all layers.

[Small steps, measured and predicted](scaling_check.md) compares the arithmetic with runs.

"""

ASSUMPTIONS = """\
Assumptions beside these numbers:

- One text of the given length is a batch row; `--context` GPUs hold it, and the rest repeat that with other texts.
- The slowest rank decides: dense layers by the rank with most tokens, attention by the one with most pairs, an exchange
  by the one that takes longest. Attention's operations are counted by tiles of 128 x 128 that hold a pair that is seen,
  so that a kernel is slower on a window by as much as it computes in vain. (Within documents: whole tiles, too.)
- **Exchanged**: each byte that a rank needs travels to it alone, so a node gets what its GPUs share once for each; or,
  where ranks need nearly all keys (`Plan.gathers`), by an all-gather, and over more than 8 ranks gradients return by a
  reduce-scatter of float32.
- **All-gather**: each byte from outside enters a node once, by all its GPUs' links together, as NCCL does it.
- **Ring**: in every one of `P - 1` steps a rank passes on as many keys as it holds, hidden behind the attention of a
  step, and backward twice as many; the link between two nodes sets the pace. Rings are given Limelight's balance, and
  skip what is not seen as well as it does, which implementations of windows and documents do not.
- Backward, an exchange returns a gradient for each key, in as many bytes, and an all-gather scatters as many.
- Parameters, gradients and optimizer (16 bytes a parameter) are sharded over all GPUs (FSDP): two all-gathers and a
  reduce-scatter in 16 bits a step, hidden behind computation as far as it lasts. Links are not shared with exchanges.
- Memory: shards, the inputs of all layers (with recomputation), and a layer's gathered keys with their gradients.
  "-" stands where it does not fit; a part that no program avoids (workspaces, logits, fragmentation) is left out.
- No pipeline, no tensor parallelism, no stragglers, no time of the host.
"""


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts, for the slowest rank, and bytes of memory."""

    dense: float
    attention: float
    exposed: dict[str, float]  # of the ways to bring keys to queries, what computation does not hide
    parameters: float  # of the parameters' traffic, what computation does not hide
    memory: dict[str, float]

    def seconds(self, way: str) -> float:
        """The whole step."""
        return self.dense + self.attention + self.exposed[way] + self.parameters


def simulate(
    shape: Shape, machine: Machine, kinds: dict[Pattern, int], layout: Layout | None, length: int, ranks: int, gpus: int
) -> Step:
    """A step of one text over ``ranks`` GPUs, and of others over the rest.

    Args:
        shape: of the model.
        machine: speeds.
        kinds: the patterns of the layers, and how many layers have each.
        layout: documents of the text.
        length: tokens of the text.
        ranks: GPUs that hold it.
        gpus: all GPUs.
    """
    runs = deal(length, ranks, [pattern for pattern, times in kinds.items() for _ in range(times)], layout)
    tokens = max(map(count, runs))
    passes = 1 + machine.recompute
    flops = 2 * tokens * (shape.layers * shape.layer_parameters * (passes + 2) + 3 * shape.d_model * shape.vocabulary)
    dense = flops / (machine.dense_tflops * 1e12)
    key_bytes = 2 * shape.key_value_heads * shape.width * machine.number_bytes
    attention, exposed, gathered = 0.0, dict.fromkeys(WAYS, 0.0), 0
    # The rank with most pairs over all layers computes most; each layer waits for it.
    per_rank = {pattern: pairs_by_rank(pattern, layout, length, runs) for pattern in kinds}
    slowest = int(np.argmax(sum(times * per_rank[pattern] for pattern, times in kinds.items())))
    for pattern, times in kinds.items():
        flops = 4 * shape.width * shape.heads * float(per_rank[pattern][slowest])
        forward, backward = flops / machine.attention_tflops / 1e12, 2.5 * flops / machine.backward_tflops / 1e12
        attention += times * (passes * forward + backward)
        plan = make_plan(pattern, layout or Aligned(), (1, 1, length, length), runs, runs, 0, contiguous=False)
        gathered = max(gathered, ranks * plan.largest if plan.gathers else 0, *map(count, plan.needs))
        gather = gather_seconds(length * key_bytes, ranks, machine)
        moved = {"exchanged": (exchange_seconds(plan, machine, key_bytes),) * 2, "all-gather": (gather, gather)}
        if plan.gathers:
            size = ranks * plan.largest * key_bytes
            scatter = gather_seconds(size * 4 / machine.number_bytes, ranks, machine)
            moved["exchanged"] = (
                gather_seconds(size, ranks, machine),
                scatter if ranks > NODE else moved["exchanged"][1],
            )
        for way, (seconds, returned) in moved.items():
            hidden = passes * max(0.0, seconds - machine.overlap * forward)
            exposed[way] += times * (hidden + max(0.0, returned - machine.overlap * backward))
        ring = ring_seconds(tokens * key_bytes, ranks, machine)
        hidden = passes * max(0.0, ring - forward * (ranks - 1) / ranks)
        exposed["ring"] += times * (hidden + max(0.0, 2 * ring - backward * (ranks - 1) / ranks))
    parameters = 3 * gather_seconds(2 * shape.parameters, gpus, machine)
    kept = 16 * shape.parameters / gpus + 2 * tokens * shape.d_model * (shape.layers if machine.recompute else 0)
    memory = {
        "exchanged": kept + 2 * gathered * key_bytes,
        "all-gather": kept + 2 * length * key_bytes,
        "ring": kept + 4 * tokens * key_bytes,
    }
    return Step(dense, attention, exposed, max(0.0, parameters - dense - attention), memory)


def pairs_by_rank(pattern: Pattern, layout: Layout | None, length: int, runs: tuple[Runs, ...]) -> np.ndarray:
    """``(P,)``: pairs in the tiles that each rank computes."""
    starts, ends = lower(pattern, layout, 1, 1, length, length).intervals()
    edges = np.arange(0, length, TILE)
    total = np.zeros(len(edges))
    for start, end in zip(starts[:, 0], ends[:, 0], strict=True):
        some = start < end
        low = np.minimum.reduceat(np.where(some, start, length), edges) // TILE * TILE
        high = -(-np.maximum.reduceat(np.where(some, end, 0), edges) // TILE) * TILE
        total += np.maximum(high - low, 0)
    each = np.repeat(total, TILE)[:length]
    sums = np.concatenate([[0.0], each.cumsum()])
    return np.array([sum(sums[last] - sums[first] for first, last in held) for held in runs])


def exchange_seconds(plan: Plan, machine: Machine, key_bytes: int) -> float:
    """Seconds of one exchange of a layer's keys and values, for the rank that takes longest."""
    ranks = len(plan.held)
    if not plan.sends:
        return 0.0
    owners = sorted((first, last, rank) for rank, held in enumerate(plan.held) for first, last in held)
    firsts, ends, ranks_of = (np.array(column) for column in zip(*owners, strict=True))
    near, far, peers = (np.zeros((2, ranks), np.int64) for _ in range(3))  # sent and received keys, and peers
    for receiver, need in enumerate(plan.needs):
        keys = np.zeros(ranks, np.int64)  # from each rank
        for first, last in need:
            some = slice(np.searchsorted(ends, first, "right"), np.searchsorted(firsts, last))
            overlap = np.minimum(ends[some], last) - np.maximum(firsts[some], first)
            np.add.at(keys, ranks_of[some], overlap)
        keys[receiver] = 0
        beside = np.arange(ranks) // machine.node == receiver // machine.node
        for moved, which in ((near, beside), (far, ~beside)):
            moved[0] += keys * which
            moved[1, receiver] += (keys * which).sum()
        peers[0] += keys > 0
        peers[1, receiver] = (keys > 0).sum()
    slowest = np.maximum(near / machine.node_bandwidth, far / machine.bandwidth) * key_bytes / 1e9
    return float((slowest + peers * machine.latency * 1e-6).max())


def planned_seconds(plan: Plan, machine: Machine, key_bytes: int) -> tuple[float, float]:
    """Seconds in which keys travel as they are planned, and in which their gradients return."""
    ranks, exchange = len(plan.held), exchange_seconds(plan, machine, key_bytes)
    if not plan.gathers:
        return exchange, exchange
    size = ranks * plan.largest * key_bytes
    scatter = gather_seconds(size * 4 / machine.number_bytes, ranks, machine)
    return gather_seconds(size, ranks, machine), scatter if ranks > NODE else exchange


def gather_seconds(size: float, ranks: int, machine: Machine) -> float:
    """Seconds of an all-gather of ``size`` bytes in all, or of a reduce-scatter."""
    share = size * (ranks - 1) / ranks / 1e9
    seconds = share / machine.node_bandwidth
    if ranks > machine.node:
        seconds = max(seconds, size * (1 - machine.node / ranks) / 1e9 / (machine.node * machine.bandwidth))
    return seconds + (ranks - 1) * machine.latency * 1e-6


def ring_seconds(size: float, ranks: int, machine: Machine) -> float:
    """Seconds of the ``P - 1`` steps of a ring that passes ``size`` bytes on in each."""
    bandwidth = machine.bandwidth if ranks > machine.node else machine.node_bandwidth
    return (ranks - 1) * (size / 1e9 / bandwidth + machine.latency * 1e-6)


def cases(
    shape: Shape, length: int, window: int, full_every: int
) -> dict[str, tuple[dict[Pattern, int], Layout | None]]:
    """The patterns of the layers that are compared, with their layouts."""
    causal, windowed = Causal(), Causal() & Window(window - 1, 0)
    full = shape.layers // full_every
    mixed: dict[Pattern, int] = {causal: full, windowed: shape.layers - full}
    return {
        "causal": ({causal: shape.layers}, None),
        f"window {window:,}": ({windowed: shape.layers}, None),
        "documents": ({causal: shape.layers}, Packed(documents(length))),
        f"one layer in {full_every} causal, others window {window:,}": (mixed, None),
    }


def table(shape: Shape, machine: Machine, options: argparse.Namespace) -> list[str]:
    """The rows, each printed as soon as it is there."""
    lines = [
        "| layers | GPUs | computing, s | step: exchanged, s | all-gather, s | ring, s | waiting for keys: exchanged,"
        " all-gather, ring | GB a GPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for name, (kinds, layout) in cases(shape, options.length, options.window, options.full_every).items():
        for gpus in map(int, options.gpus.split(",")):
            ranks = min(gpus, options.context or gpus)
            step = simulate(shape, machine, kinds, layout, options.length, ranks, gpus)
            fits = {way: step.memory[way] <= machine.memory * 1e9 for way in WAYS}
            seconds = [f"{step.seconds(way):,.2f}" if fits[way] else "-" for way in WAYS]
            waits = ", ".join(f"{step.exposed[way] / step.seconds(way):.1%}" for way in WAYS)
            lines.append(
                f"| {name} | {gpus:,} | {step.dense + step.attention:,.2f} | {' | '.join(seconds)} | {waits} |"
                f" {step.memory['exchanged'] / 1e9:,.0f} |"
            )
            print(lines[-1], flush=True)
    return lines


def add_fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """An option for each field of a data class."""
    for field in fields(kind):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)


def chosen(kind: type, options: argparse.Namespace) -> object:
    """The data class with the options that were given."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2**20, help="tokens of a text")
    parser.add_argument("--gpus", default="8,16,32,64,128,256,512,1024")
    parser.add_argument("--context", type=int, default=0, help="GPUs that hold a text, at most (0: all)")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--full-every", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true", help="measure small steps on this machine")
    add_fields(parser, Shape)
    add_fields(parser, Machine)
    options = parser.parse_args()
    if options.check:
        import scaling_check  # imports this file

        lines = [scaling_check.__doc__, *scaling_check.measured_and_predicted()]
        print("\n".join(lines))
        if options.write:
            head = "# Small steps, measured and predicted\n\n`python benchmarks/scaling.py --check --write`\n\n"
            Path(scaling_check.__file__).with_suffix(".md").write_text(head + "\n".join(lines) + "\n", "utf-8")
        return
    shape, machine = chosen(Shape, options), chosen(Machine, options)
    given = asdict(shape) | asdict(machine) | {"length": options.length, "context": options.context or "all"}
    about = [
        f"{shape.parameters / 1e9:.1f} billion parameters. " + ", ".join(f"{k} {v}" for k, v in given.items()) + ".",
        ASSUMPTIONS,
    ]
    print("\n\n".join(about))
    lines = table(shape, machine, options)
    if options.write:
        head = "# Training steps of a long text over many GPUs, estimated\n\n`python benchmarks/scaling.py --write`\n\n"
        text = head + ABOUT + "\n\n".join(about) + "\n" + "\n".join(lines) + "\n"
        Path(__file__).with_suffix(".md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
