"""Measure attention over keys in pages: against the same keys in rows, without shared pages, and against vLLM.

python benchmarks/paged.py [--threads 2] [--rounds 9] [--shapes 8B SmolLM2 multi-head] [--peer-huge-pages] [--write]

The cases are batches of a server: decoding steps, parts of prompts, both together, and users of one system prompt. In
each round all ways of a case are called in turn; the table gives medians, and ratios of medians. Where vLLM for CPUs is
installed (`pip install "limelight-attention[vllm]"`), its own attention kernel is measured beside ours, with the pages
in its own order, and the results are compared. Our keys lie in huge pages, as in our caches and under our plugin, and
vLLM's as it allocates them, unless `--peer-huge-pages` is given. `--write` keeps the tables in `paged.md` beside this
file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from limelight import Causal, Packed, Paged, Pattern, Window
from limelight.backends import huge_pages
from limelight.benchmark.timing import peak, processor, timed
from limelight.forms.settings import Settings
from limelight.operator.repeated import Repeated

SIZE = 128  # keys of a page: vLLM's on CPUs
LONG = tuple(4096 - 37 * n for n in range(8))
WAIT = 30.0  # seconds, at most, to move memory into huge pages
WAYS = ("rows", "pages", "shared", "vLLM")
#: Query heads, key heads, width.
SHAPES = {"8B": (32, 8, 128), "SmolLM2": (9, 3, 64), "multi-head": (32, 32, 128)}


@dataclass(frozen=True)
class Case:
    """A batch: queries and keys of each text, a window, and how many keys all texts begin with."""

    name: str
    queries: Sequence[int]
    keys: Sequence[int]
    window: int | None = None
    shared: int = 0

    @property
    def pattern(self) -> Pattern:
        return Causal() if self.window is None else Causal() & Window(self.window - 1, 0)


CASES = (
    Case("decode, 8 texts of 4k", (1,) * 8, LONG),
    Case("decode, 8 texts of 4k, window 512", (1,) * 8, LONG, window=512),
    Case("decode, 16 texts of 64 after 4k in common", (1,) * 16, (4096 + 64,) * 16, shared=4096),
    Case("prompt, 512 tokens at 2k", (512,), (2048,)),
    Case("7 decode at 4k, prompt 256 at 2k", (1,) * 7 + (256,), (*LONG[:7], 2048)),
)


class Batch:
    """The tensors of a case, and the ways to compute it."""

    def __init__(
        self, case: Case, dtype: torch.dtype, heads: int, key_heads: int, width: int, peer_huge_pages: bool
    ) -> None:
        self.case, self.dtype, self.heads, self.key_heads, self.width = case, dtype, heads, key_heads, width
        self.peer_huge_pages = peer_huge_pages
        torch.manual_seed(0)
        self.query = torch.randn(1, heads, sum(case.queries), width).to(dtype)
        counts = [-(-keys // SIZE) for keys in case.keys]
        self.pages = sum(counts)
        self.table = _table(counts)
        self.store = torch.randn(self.pages, key_heads, 2 * SIZE, width).to(dtype)  # a head's keys, then its values
        alike = self.table.clone()
        alike[:, : case.shared // SIZE] = alike[0, : case.shared // SIZE]
        self.alike = alike if case.shared else self.table

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        """Each way by its name, as a call without arguments that returns ``(T, Hq, D)``."""
        case, (key, value) = self.case, self.store.chunk(2, dim=2)
        rows = [_rows(x, self.alike, case.keys) for x in (key, value)]
        for tensor in (self.store, *rows):
            huge_pages.use(tensor, WAIT)
        found = {
            "rows": self._call(*rows, Packed(tuple(case.queries), tuple(case.keys))),
            "pages": self._call(key, value, Paged(tuple(case.queries), tuple(case.keys), self.table)),
        }
        if case.shared:
            found["shared"] = self._call(key, value, Paged(tuple(case.queries), tuple(case.keys), self.alike))
        peer = self._vllm(rows[0], rows[1])
        return found if peer is None else {**found, "vLLM": peer}

    def _call(self, key: Tensor, value: Tensor, layout: Packed | Paged) -> Callable[[], Tensor]:
        """A call as the plugin makes it: checked once for all layers of a step."""
        repeated, output = Repeated(Settings(layout=layout, pattern=self.case.pattern)), torch.empty_like(self.query)

        def call() -> Tensor:
            repeated.into(output, self.query, key, value, None)
            return output[0].transpose(0, 1)

        return call

    def _vllm(self, key: Tensor, value: Tensor) -> Callable[[], Tensor] | None:
        """vLLM's kernel, over pages that it filled itself; ``None`` without vLLM for CPUs."""
        try:
            from vllm import _custom_ops as ops
            from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
        except ImportError:
            return None
        case, dtype, D = self.case, self.dtype, self.width
        isa = _get_attn_isa(dtype, SIZE, D)
        store = torch.zeros(self.pages, self.key_heads, SIZE, 2 * D, dtype=dtype)
        if self.peer_huge_pages:
            huge_pages.use(store, WAIT)
        keys, values = store.view(self.pages, self.key_heads, 2 * SIZE, D).chunk(2, dim=2)
        begins = [0, *accumulate(case.keys)]
        for row, count in enumerate(case.keys):
            at = torch.arange(count)
            slots = self.alike[row].long()[at // SIZE] * SIZE + at % SIZE
            of_row = [x[0, :, begins[row] : begins[row + 1]].transpose(0, 1).contiguous() for x in (key, value)]
            ops.cpu_attn_reshape_and_cache(*of_row, keys, values, slots, isa)
        starts = torch.tensor([0, *accumulate(case.queries)], dtype=torch.int32)
        lengths = torch.tensor(case.keys, dtype=torch.int32)
        window = -1 if case.window is None else case.window
        R = len(case.keys)
        plan = ops.cpu_attn_get_scheduler_metadata(
            R, self.heads, self.key_heads, D, lengths, dtype, starts, True, window, isa, True
        )
        query = self.query[0].transpose(0, 1).contiguous()
        output = torch.empty_like(query)

        def call() -> Tensor:
            ops.cpu_attention_with_kv_cache(
                query, keys, values, output, starts, lengths, D**-0.5, True, None, window, self.alike, 0.0, plan, None
            )
            return output

        return call

    def least(self, rate: float, product_rate: float) -> float:
        """The fewest seconds that the case takes: all keys and values are read once, or all products are computed.

        Args:
            rate: of reading memory, bytes a second.
            product_rate: floating-point operations a second.
        """
        case = self.case
        reach = max(case.keys) if case.window is None else case.window
        texts = list(zip(case.queries, case.keys, strict=True))
        keys = sum(min(n, reach + queries - 1) for queries, n in texts) - case.shared * (len(texts) - 1)
        pairs = sum(min(n - queries + 1 + i, reach) for queries, n in texts for i in range(queries))
        read = 2 * keys * self.key_heads * self.width * self.dtype.itemsize
        return max(read / rate, 4 * pairs * self.heads * self.width / product_rate)


def reading_rate() -> float:
    """Bytes a second of a sum over an array in huge pages that is in no cache: the best of several runs."""
    array = torch.ones(2**26, dtype=torch.int64)
    huge_pages.use(array, WAIT)
    return array.nbytes / min(timed(array.sum, 1) for _ in range(6))


def _table(counts: Sequence[int]) -> Tensor:
    """A page table of texts with so many pages each, in random order."""
    order = torch.randperm(sum(counts)).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for row, (count, end) in enumerate(zip(counts, accumulate(counts), strict=True)):
        table[row, :count] = order[end - count : end]
    return table


def _rows(stored: Tensor, table: Tensor, lengths: Sequence[int]) -> Tensor:
    """``(1, Hkv, sum of lengths, D)``: the keys or values of all texts, end to end."""
    texts = [
        stored[table[row, : -(-length // SIZE)].long()].transpose(0, 1).flatten(1, 2)[:, :length]
        for row, length in enumerate(lengths)
    ]
    return torch.cat(texts, 1)[None].contiguous()


def measure(batch: Batch, rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds of each way, and the largest difference between vLLM's result and ours, 0 without it."""
    ways = batch.ways()
    results = {name: call().float().clone() for name, call in ways.items()}
    ours = results["shared" if batch.case.shared else "pages"]
    apart = (results["vLLM"] - ours).abs().max().item() if "vLLM" in results else 0.0
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            begin = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(all_of) for name, all_of in seconds.items()}, apart


def row_of(batch: Batch, seconds: dict[str, float], apart: float, least: float) -> str:
    """A row of the table."""
    best = seconds["shared" if batch.case.shared else "pages"]
    cells = [batch.case.name, str(batch.dtype).removeprefix("torch.")]
    cells += [f"{1e3 * seconds[way]:.2f}" if way in seconds else "" for way in WAYS]
    cells.append(f"{seconds['rows'] / seconds['pages']:.2f}")
    cells.append(f"{seconds['pages'] / seconds['shared']:.2f}" if "shared" in seconds else "")
    cells.append(f"{seconds['vLLM'] / best:.2f} ({apart:.0e})" if "vLLM" in seconds else "")
    cells.append(f"{least / best:.2f}")
    return f"| {' | '.join(cells)} |"


ABOUT = """\
# Keys in pages

`python benchmarks/paged.py --write`

Attention of one layer of a server's step: pages of {size} keys in random order (in a page, a head's keys and then its
values), causal; {machine}, {threads} threads. Milliseconds, medians of {rounds} rounds in which all ways are called in
turn.

- **rows**: the same keys as rows at equal distances (`Packed`). **pages**: in pages (`Paged`). **shared**: the texts
  begin with the same pages.
- **rows / pages** and **pages / shared** are ratios of the medians. **vLLM / ours**: how many times as long vLLM's own
  kernel for CPUs takes (its result differs by at most what stands in brackets). Our keys lie in huge pages of memory,
  as our plugin puts them, vLLM's {peer}.
- **of peak**: the fewest milliseconds that the case can take over ours: what it reads at the rate of a plain sum of a
  large array in huge pages, or its products at the rate of independent multiply-adds, whichever takes longer; both
  rates are measured in the same run.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads (all cores)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of which medians are taken (9)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="heads and widths (all)")
    parser.add_argument("--peer-huge-pages", action="store_true", help="put vLLM's pages in huge pages of memory, too")
    parser.add_argument("--write", action="store_true", help="keep the tables in benchmarks/paged.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines: list[str] = []

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    peer = "in small ones, as it allocates them (`--peer-huge-pages`: as well)"
    if options.peer_huge_pages:
        peer = "as well"
    add(ABOUT.format(size=SIZE, threads=options.threads, rounds=options.rounds, machine=processor(), peer=peer))
    for shape in options.shapes:
        heads, key_heads, width = SHAPES[shape]
        add(f"## {shape}: {heads} query heads, {key_heads} key heads, width {width}\n")
        add(f"| case | dtype | {' | '.join(WAYS)} | rows / pages | pages / shared | vLLM / ours | of peak |")
        add("|---|---|" + "---|" * (len(WAYS) + 4))
        for dtype in (torch.bfloat16, torch.float32):
            for case in CASES:
                rate = reading_rate(), 1e9 * peak(str(dtype).removeprefix("torch."), options.threads)
                batch = Batch(case, dtype, heads, key_heads, width, options.peer_huge_pages)
                add(row_of(batch, *measure(batch, options.rounds), batch.least(*rate)))
        add("")
    if options.write:
        Path(__file__).with_suffix(".md").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
