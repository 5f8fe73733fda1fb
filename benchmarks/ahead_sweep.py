"""Compile every kind of call for every named GPU, and list the kernels that spill registers or lack shared memory.

    python benchmarks/ahead_sweep.py --cache FOLDER                    # everything: hours; a second run continues
    python benchmarks/ahead_sweep.py --cache FOLDER --only backward    # cases with this in their names
    python benchmarks/ahead_sweep.py --cache FOLDER --chips sm_80      # for these chips

A case is a kind of call, a head width, what its scores need and a dtype; the library chooses the tiles. Rescue kernels,
which may spill, are left out: ``--rescues`` compiles them too and checks their shared memory. The PTX of Triton for
sm_80, sm_86 and sm_89 is the same up to the name of the chip, so it is made once and assembled for each of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ahead
import torch
from machine_code import REGISTERS, SPILLED, sum_of
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from limelight import ALiBi, Bias, Causal, Explicit, Keys, Observe, Packed, Paged, RelativeBias, SoftCap, Window
from limelight.backends.contract import Call
from limelight.backends.gpu import flash1, flash2, launching
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

#: The generation that is compiled for -> the chips that its PTX is assembled for.
ASSEMBLED = {
    "ampere": ("sm_80", "sm_86", "sm_89"), "blackwell 120": ("sm_120",), "hopper": ("sm_90",), "blackwell": ("sm_100",),
}  # fmt: skip
#: KiB of shared memory that a program may have.
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}

# What matters most comes first.
WIDTHS = (128, 64, 96, 192, 256, 32)
KINDS = ("forward", "backward", "observe", "decode", "received", "paged", "paged decode")
NEEDS = ("plain", "bias", "dropout", "bits")
MORE_NEEDS = ("demanding", "table", "rules", "packed", "spans", "odd", "odd bias")
OBSERVED = {
    "received": Observe(received=True),
    "observe": Observe(entropy=True, top=8, received=True, blocks=(64, 64), rows=(0, 5), distance=True),
}


def settings_of(need: str, queries: int, keys: int, heads: int) -> dict[str, Any] | None:
    """The settings of a call whose scores have a ``need``; ``None`` where there is no such call."""
    bias = Bias(torch.zeros(heads, queries, keys))
    table = RelativeBias(torch.zeros(heads, 32))
    explicit = Explicit(torch.arange(keys)[None, :].remainder(3).eq(0).expand(queries, keys).contiguous())
    rules = {"scores": (ALiBi(torch.zeros(heads)), SoftCap(30.0))}
    random = {"dropout": 0.1, "seed": 3}
    packed = {"layout": Packed((queries // 2, queries - queries // 2))} if queries == keys else None
    found: dict[str, dict[str, Any] | None] = {
        "plain": {}, "odd": {}, "bias": {"scores": (bias,)}, "odd bias": {"scores": (bias,)}, "dropout": random,
        "bits": {"pattern": explicit}, "rules": rules, "table": {"scores": (table,)}, "packed": packed,
        "spans": {"pattern": Causal() & (Window(1024, 0) | Keys(first=4))},
        "demanding": {"pattern": explicit, "scores": (SoftCap(5.0), bias, table)} | random,
    }  # fmt: skip
    of_need = found[need]
    return None if of_need is None else {"pattern": Causal()} | of_need


def call_of(kind: str, width: int, need: str, dtype: torch.dtype) -> Call | None:
    """The call of a case; ``None`` where there is none."""
    if "paged" in kind:
        rules = {"scores": (ALiBi(torch.zeros(32)), SoftCap(30.0))} if need == "rules" else {}
        if need not in ("plain", "rules"):
            return None
        queries = (1, 1) if "decode" in kind else (100, 100)
        query, _, _ = ahead.tensors(sum(queries), width, dtype=dtype, heads=(32, 8))
        pages = torch.zeros(2, 8, 64, width, dtype=dtype)
        layout = Paged(queries, (100,) * len(queries), [[0, 1]] * len(queries))
        observe = OBSERVED["observe"] if "observe" in kind else None
        return prepare(query, pages, pages, Settings(pattern=Causal(), layout=layout, observe=observe, **rules))
    decode = kind == "decode"
    keys = 509 if "odd" in need else 4096 if need in ("plain", "dropout", "rules") and kind != "observe" else 512
    heads = (32, 8) if decode else (16, 16)
    queries = 1 if decode else keys
    settings = settings_of(need, queries, keys, heads[0])
    if settings is None:
        return None
    query, _, _ = ahead.tensors(queries, width, dtype=dtype, heads=heads)
    _, key, value = ahead.tensors(keys, width, dtype=dtype, heads=heads)
    return prepare(query, key, value, Settings(observe=OBSERVED.get(kind), **settings))


def run(kind: str, width: int, need: str, dtype: torch.dtype) -> None:
    """Run the host code of a case."""
    call = call_of(kind, width, need, dtype)
    if call is None:
        return
    if kind == "backward":
        ahead.backward(call)
    elif kind == "first":
        flash1.forward(call)
    else:
        flash2.forward(call)


def cases() -> dict[str, Callable[[], None]]:
    """``{name: function that runs the case}``, those that matter most first."""
    steps = (
        (KINDS, WIDTHS[:2], NEEDS, torch.bfloat16),
        (KINDS, WIDTHS[2:], NEEDS, torch.bfloat16),
        (KINDS[:4], (64, 128, 256), ("plain", "bias", "demanding"), torch.float32),
        (("first",), WIDTHS, ("plain",), torch.bfloat16),
        ((*KINDS, "paged observe"), WIDTHS, MORE_NEEDS, torch.bfloat16),
    )
    return {
        f"{kind} {width} {need}{' float32' * (dtype is torch.float32)}": partial(run, kind, width, need, dtype)
        for kinds, widths, needs, dtype in steps
        for kind in kinds
        for width in widths
        for need in needs
    }


class Resources(NamedTuple):
    """Registers of a thread and bytes that it spills, by the assembler."""

    registers: int
    spilled: int


#: The line of PTX by which `launching.with_registers` lets a thread have all registers.
LIMIT = f".maxnreg {launching.MOST_REGISTERS}\n"


def resources(kernel: Any, chip: str, cache: Path) -> Resources:
    """What the assembler makes of a kernel for a chip, with more registers where it would spill needlessly."""
    target = kernel.metadata.target
    if chip == f"sm_{target.arch}":
        return Resources(*ahead.resources(kernel))
    ptx = re.sub(r"^\.target sm_\d+", f".target {chip}", kernel.asm["ptx"].replace(LIMIT, ""), flags=re.MULTILINE)
    found = assembled(ptx, chip, cache)
    if launching.spills_needlessly(*found) and ".maxnreg" not in ptx:
        found = assembled(ptx.replace("\n.reqntid", f"\n{LIMIT}.reqntid"), chip, cache)
    return found


def assembled(ptx: str, chip: str, cache: Path) -> Resources:
    """What the assembler makes of PTX for a chip, kept in ``cache``."""
    kept = cache / "assembled" / f"{hashlib.sha256(ptx.encode()).hexdigest()}.txt"
    if not kept.exists():
        backend, found = CUDABackend(GPUTarget("cuda", int(chip[3:]), 32)), {}
        ahead.assembled(backend, ptx, found, backend.parse_options({}), int(chip[3:]))
        kept.parent.mkdir(parents=True, exist_ok=True)
        whole = kept.with_suffix(f".{os.getpid()}")
        whole.write_text(found["assembler"])
        whole.replace(kept)
    words = kept.read_text()
    return Resources(sum_of(REGISTERS, words), sum_of(SPILLED, words))


def compiled(
    generation: str, name: str, cache: Path, rescues: bool, chips: Iterable[str] = SHARED
) -> list[dict[str, Any]]:
    """The kernels of a case, once for each chip that they are assembled for."""
    knobs.cache.dir = str(cache / "ahead")
    found: list[tuple[Any, bool, dict[str, Any]]] = []
    launch = JITFunction.run

    def record(self: Any, *args: Any, warmup: bool = False, **settings: Any) -> Any:
        rescue = settings.get("RESCUE", False)
        if rescue and not rescues:
            return None
        kernel = launch(self, *args, warmup=True, **settings)
        if kernel and not warmup:
            found.append((kernel, rescue, settings))
        return kernel

    lines = []
    with (
        ahead.recording(generation),
        mock.patch.object(JITFunction, "run", record),
        torch.no_grad(),
    ):
        cases()[name]()
    for kernel, rescue, settings in found:
        const = settings.get("const")
        for chip in sorted(set(ASSEMBLED[generation]) & set(chips)):
            registers, spilled = resources(kernel, chip, cache)
            lines.append({
                "chip": chip, "case": name, "kernel": kernel.metadata.name, "rescue": rescue,
                "tile": const and (const.ROWS, const.BLOCK, kernel.metadata.num_warps, kernel.metadata.num_stages),
                "registers": registers, "spilled": spilled, "shared": kernel.metadata.shared,
            })  # fmt: skip
    return lines


def wrong(line: dict[str, Any]) -> str:
    """What is wrong with a kernel, in words; empty where nothing is."""
    found = [f"spills {line['spilled']} bytes"] if line["spilled"] and not line["rescue"] else []
    if line["shared"] > SHARED[line["chip"]] * 1024:
        found.append(f"{line['shared'] / 1024:.1f} KiB of shared memory")
    return ", ".join(found)


def tried(generation: str, name: str, cache: Path, rescues: bool, chips: Iterable[str]) -> list[dict[str, Any]]:
    """`compiled`, or an error of the compiler as a line."""
    try:
        return compiled(generation, name, cache, rescues, chips)
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()[0]
        return [{"chip": chip, "case": name, "error": words} for chip in ASSEMBLED[generation]]


def fingerprint() -> str:
    """A hash of the sources that a case depends on."""
    total = hashlib.sha256(Path(__file__).read_bytes())
    for path in sorted(Path(flash2.__file__).parent.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()


def results(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The kernels of each case, kept in the cache as they come."""
    chips = tuple(options.chips or SHARED)
    asked = hashlib.sha256(repr((fingerprint(), chips, options.rescues)).encode()).hexdigest()
    kept = options.cache / f"{asked[:16]}.jsonl"
    options.cache.mkdir(parents=True, exist_ok=True)
    known = {}
    for line in kept.read_text().splitlines() if kept.exists() else ():
        generation, name, lines = json.loads(line)
        known[generation, name] = lines
    wanted = [
        (generation, name)
        for name in cases()
        for generation, of_generation in ASSEMBLED.items()
        if any(part in name for part in options.only or [""])
        and not set(chips).isdisjoint(of_generation)
    ]  # fmt: skip
    yield from (known[case] for case in wanted if case in known)
    missing = [case for case in wanted if case not in known]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool, kept.open("a") as file:
        running = {pool.submit(tried, *case, options.cache, options.rescues, chips): case for case in missing}
        for done, future in enumerate(as_completed(running), 1):
            lines = future.result()
            file.write(json.dumps((*running[future], lines)) + "\n")
            file.flush()
            print(f"{done} of {len(missing)}", *running[future], file=sys.stderr, flush=True)
            yield lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for what is compiled; a second run continues")
    parser.add_argument("--only", nargs="+", help="parts of the names of cases")
    parser.add_argument("--chips", nargs="+", choices=SHARED, help="all of them by default")
    parser.add_argument("--rescues", action="store_true", help="compile rescue kernels too")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    count = 0
    for lines in results(options):
        count += len(lines)
        for line in lines:
            if words := line.get("error") or wrong(line):
                print(
                    f"{line['chip']:7s} {line['case']:30s} {line.get('kernel', ''):18s} {line.get('tile')} {words}",
                    flush=True,
                )
    print(f"{count} kernels compiled")


if __name__ == "__main__":
    main()
