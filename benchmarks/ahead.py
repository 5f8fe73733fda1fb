"""Compile the GPU kernels ahead of time, without a GPU, and report registers, spills and instructions.

    python benchmarks/ahead.py                 # compile every case and print the table
    python benchmarks/ahead.py --write FILE    # and write it to a file
    python benchmarks/ahead.py NAME ...        # some cases only; with --write, the file keeps its other cases

Each case is a call of the operator. The backend's own host code runs, up to the launch, for a GPU that need not be
present; the kernels that it would have launched are compiled by Triton for that GPU. Registers, spills and serialised
matrix instructions are what Triton's assembler (``ptxas``) says; instructions are counted in the machine code.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from machine_code import REGISTERS, SPILLED, report, sum_of
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

import limelight
from limelight import ALiBi, Bias, Causal, Explicit, Keys, Observe, Packed, Paged, RelativeBias, SoftCap, Window
from limelight.backends.contract import Call
from limelight.backends.gpu import flash1, flash2, launching, machine, plans
from limelight.backends.gpu.hopper import flash3, flash3_float8, tuning
from limelight.backends.gpu.hopper.tuning import CANDIDATES, MEASURED, ForwardStages
from limelight.backends.gpu.tuning import width
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

TARGETS = {"ampere": 80, "ampere 86": 86, "ada": 89, "hopper": 90, "blackwell": 100, "blackwell 120": 120}
#: The generation in `limelight.backends.gpu.tuning` of a GPU that has no tiles of its own.
TILES_OF = {"ampere 86": "ampere", "ada": "ampere", "blackwell 120": "other"}


def tensors(
    L: int, D: int, Dv: int | None = None, dtype: torch.dtype = torch.bfloat16, heads: tuple[int, int] = (16, 16)
):
    """Zeros; only their shapes, strides and dtype matter."""
    make = lambda H, W: torch.zeros(1, H, L, W, dtype=dtype)  # noqa: E731
    return make(heads[0], D), make(heads[1], D), make(heads[1], D if Dv is None else Dv)


def plain(D: int, dtype: torch.dtype = torch.bfloat16, L: int = 4096, **settings: Any) -> Callable[[], Call]:
    return lambda: prepare(*tensors(L, D, dtype=dtype), Settings(**settings))


def decode(D: int) -> Call:
    query, _, _ = tensors(1, D, heads=(32, 8))
    _, key, value = tensors(4096, D, heads=(32, 8))
    return prepare(query, key, value, Settings(pattern=Causal()))


def paged(D: int, queries: tuple[int, ...], **settings: Any) -> Call:
    query, _, _ = tensors(sum(queries), D, heads=(32, 8))
    pages = torch.zeros(2, 8, 64, D, dtype=query.dtype)
    layout = Paged(queries, (100,) * len(queries), [[0, 1]] * len(queries))
    return prepare(query, pages, pages, Settings(pattern=Causal(), layout=layout, **settings))


EVERYTHING = Observe(
    entropy=True, top=8, received=True, blocks=(64, 64), rows=(0, 5), features=torch.zeros(512, 8), pairs=((1, 0),)
)

FORWARD: dict[str, Callable[[], Call]] = {
    **{f"causal {D}": plain(D, pattern=Causal()) for D in (32, 64, 80, 96, 128, 192, 256, 512)},
    "causal 128 float32": plain(128, torch.float32, pattern=Causal()),
    "causal 256 float32": plain(256, torch.float32, pattern=Causal()),
    "decode 128": lambda: decode(128),
    "observed 128": plain(128, L=512, pattern=Causal(), observe=EVERYTHING),
    "observed tiles 128": plain(128, L=512, pattern=Explicit(torch.eye(512, dtype=torch.bool)), observe=EVERYTHING),
    "observed 512": plain(512, L=512, pattern=Causal(), observe=EVERYTHING),
    "packed 128": plain(128, layout=Packed((2048, 2048)), pattern=Causal()),
    "paged 128": lambda: paged(128, (100, 100)),
    "paged decode 128": lambda: paged(128, (1, 1)),
    "paged observed 128": lambda: paged(128, (100, 100), observe=Observe(entropy=True, received=True)),
    **{f"tiles {D}": plain(D, L=256, pattern=Explicit(torch.eye(256, dtype=torch.bool))) for D in (80, 96, 128)},
    "table 64": plain(64, L=512, pattern=Causal(), scores=(RelativeBias(torch.zeros(16, 32)),)),
    "rules 128": plain(128, pattern=Causal(), scores=(ALiBi(torch.zeros(16)), SoftCap(30.0))),
    "bias 64": plain(64, L=512, scores=(Bias(torch.zeros(16, 512, 512)),)),
    **{f"dropout {D}": plain(D, pattern=Causal(), dropout=0.1, seed=3) for D in (64, 128)},
}
# All that needs registers at once: a tile map, dropout, a bias, a table, the derivative of a rule.
DEMANDING: dict[str, Any] = {
    "pattern": Explicit(torch.eye(256, dtype=torch.bool)), "dropout": 0.1, "seed": 3,
    "scores": (SoftCap(5.0), Bias(torch.zeros(16, 256, 256)), RelativeBias(torch.zeros(16, 32))),
}  # fmt: skip
BACKWARD: dict[str, Callable[[], Call]] = {
    **{f"causal {D}": plain(D, pattern=Causal()) for D in (64, 128, 256, 512)},
    "causal 512 float32": plain(512, torch.float32, pattern=Causal()),
    "causal 64 float32": plain(64, torch.float32, pattern=Causal()),
    "packed 128": plain(128, layout=Packed((2048, 2048)), pattern=Causal()),
    "rules 128": plain(128, pattern=Causal(), scores=(ALiBi(torch.zeros(16)), SoftCap(30.0))),
    "bias 64": plain(64, L=512, scores=(Bias(torch.zeros(16, 512, 512)), RelativeBias(torch.zeros(16, 32)))),
    **{f"bias {D}": plain(D, L=512, scores=(Bias(torch.zeros(16, 512, 512)),)) for D in (128, 512)},
    "table 64": plain(64, L=512, scores=(RelativeBias(torch.zeros(16, 32)),)),
    **{f"dropout {D}": plain(D, pattern=Causal(), dropout=0.1, seed=3) for D in (64, 128)},
    **{f"demanding {D}": plain(D, L=256, **DEMANDING) for D in (64, 128)},
}
# Compiled for every target.
WIDTHS = tuple(f"causal {D}" for D in (32, 64, 96, 128, 192, 256))
EVERYWHERE = {  # and for every target but those of the same PTX, not for Hopper alone
    "forward": (
        *WIDTHS, "rules 128", "decode 128", "observed 128", "observed tiles 128", "packed 128", "tiles 128",
        "bias 64", "dropout 64", "dropout 128",
    ),
    "backward": tuple(
        name
        for name in BACKWARD
        if name in ("causal 64", "causal 128", "causal 512")
        or name.startswith(("bias", "table", "dropout", "demanding"))
    ),
}  # fmt: skip
SAME_PTX = ("ampere 86", "ada")  # as Ampere's A100


HOPPER: dict[str, Callable[[], Call]] = {
    **{f"causal {D}": plain(D, pattern=Causal()) for D in (64, 96, 128, 192, 256)},
    "full 128": plain(128),
    "causal 128 float16": plain(128, torch.float16, pattern=Causal()),
    "packed 128": plain(128, layout=Packed((2048, 2048)), pattern=Causal()),
    "first keys and window 128": plain(128, pattern=Causal() & (Window(1024, 0) | Keys(first=4))),
    "rules 128": plain(128, pattern=Causal(), scores=(ALiBi(torch.zeros(16)), SoftCap(30.0)), sink=torch.zeros(16)),
    "rules 64": plain(64, pattern=Causal(), scores=(ALiBi(torch.zeros(16)), SoftCap(30.0)), sink=torch.zeros(16)),
    "packed 256": plain(256, layout=Packed((2048, 2048)), pattern=Causal()),
    "groups 128": lambda: prepare(*tensors(4096, 128, heads=(32, 8)), Settings(pattern=Causal())),
}


def backward(call: Call, backend: Any = flash2) -> None:
    B, Hq, _, Lq, _, _, Dv = call.shapes
    output = torch.zeros(B, Hq, Lq, Dv, dtype=call.query.dtype)
    slopes = backend is flash2  # gradients of ALiBi slopes come from flash2 alone
    wanted = (True,) * 3 + (slopes,) * len(call.operands)
    with mock.patch.object(tuning, "WIDEST_BACKWARD", tuning.WIDEST):  # also what is not the default
        backend.backward(call, output, torch.zeros(B, Hq, Lq), output, None, wanted)


def candidate(call: Call) -> None:
    """The forward pass in the form that is to be measured (`limelight.backends.gpu.hopper.tuning`)."""
    flash3.compute(call, None, MEASURED | CANDIDATES)


def statistics(call: Call, table: dict[int, ForwardStages]) -> None:
    """The forward pass with the statistics of each row."""
    largest = torch.zeros(call.shapes.scores[:3])
    flash3.compute(call, None, table, (largest, largest, largest))


def call_widths(call: Call) -> tuple[int, ...]:
    """The keys of the tables of `flash3`'s forward pass that serve a call."""
    widest = max(call.shapes.D, call.shapes.Dv)
    return (192 if 128 < widest <= 192 else max(64, width(widest)),)


def cases() -> dict[str, tuple[str, Callable[[], Any]]]:
    """``{name: (generation, function that runs the case)}``."""
    found: dict[str, tuple[str, Callable[[], Any]]] = {}
    for generation in TARGETS:
        own = generation not in SAME_PTX
        for name, call in FORWARD.items():
            if generation == "hopper" or name in (EVERYWHERE["forward"] if own else WIDTHS):
                found[f"forward {name}, {generation}"] = generation, lambda call=call: flash2.forward(call())
        if not own:
            continue
        if generation == "hopper":
            for name, call in HOPPER.items():
                found[f"third {name}, hopper"] = generation, lambda call=call: flash3.forward(call())
                if not call().scores and not CANDIDATES.keys().isdisjoint(call_widths(call())):
                    found[f"third candidate {name}, hopper"] = generation, lambda call=call: candidate(call())
                found[f"third backward {name}, hopper"] = generation, lambda call=call: backward(call(), flash3)
            for name in ("causal 64", "causal 128", "causal 192", "causal 256"):
                for title, forms in (("statistics", MEASURED), ("candidate statistics", MEASURED | CANDIDATES)):
                    if forms is MEASURED or name != "causal 128":
                        found[f"third {title} {name}, hopper"] = (
                            generation,
                            lambda call=HOPPER[name], forms=forms: statistics(call(), forms),
                        )
            for name in ("full 128", "causal 64", "causal 128", "causal 256", "rules 128"):
                call = HOPPER[name]
                found[f"third float8 {name}, hopper"] = generation, lambda call=call: flash3_float8.forward(call())
        for D in (64, 128):
            call = plain(D, pattern=Causal())
            found[f"first causal {D}, {generation}"] = generation, lambda call=call: flash1.forward(call())
        for name, call in BACKWARD.items():
            if generation == "hopper" or name in EVERYWHERE["backward"]:
                found[f"backward {name}, {generation}"] = generation, lambda call=call: backward(call())
    return found


class NamedGPU:
    """A driver of a GPU that is not present: enough to compile for it, not to launch."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton caches the target of each device

    def get_current_stream(self, device: int) -> int:
        return 0


MAKE_CUBIN = CUDABackend.make_cubin


def assembled(self: CUDABackend, ptx: str, metadata: dict[str, Any], options: Any, architecture: int) -> bytes:
    """Triton's own last step, which keeps what the assembler says."""
    with knobs.nvidia.scope(), redirect_stdout(io.StringIO()) as words:
        knobs.nvidia.dump_ptxas_log = True
        binary: bytes = MAKE_CUBIN(self, ptx, metadata, options, architecture)
    metadata["assembler"] = words.getvalue()
    return binary


def resources(kernel: Any) -> tuple[int, int]:
    """The registers of a thread of a compiled kernel and the bytes that it spills, as the assembler says."""
    words = kernel.metadata.assembler
    return sum_of(REGISTERS, words), sum_of(SPILLED, words)


@contextmanager
def recording(generation: str) -> Iterator[list[tuple[Any, bool]]]:
    """Inside, a launch compiles its kernel for the GPU and appends it to the list, with whether it is a rescue, which
    need not be fast.
    """
    compiled: list[tuple[Any, bool]] = []
    run = JITFunction.run

    def record(self: Any, *args: Any, warmup: bool = False, **settings: Any) -> Any:
        kernel = run(self, *args, warmup=True, **settings)
        if not warmup:
            compiled.append((kernel, settings.get("RESCUE", False)))
        return kernel

    triton.runtime.driver.set_active(NamedGPU(TARGETS[generation]))
    plans.clear()  # of another generation
    launching.forget_spills()
    cache = Path(knobs.cache.dir)  # apart from kernels that were compiled without a word of the assembler
    with (
        mock.patch.object(knobs.cache, "dir", str(cache if cache.name == "ahead" else cache / "ahead")),
        mock.patch.object(CUDABackend, "make_cubin", assembled),
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(launching, "resources", resources),
        mock.patch.object(machine, "generation", return_value=TILES_OF.get(generation, generation)),
        mock.patch.object(machine, "processors", return_value=132),
    ):
        yield compiled


def is_meant(name: str, part: str, known: Iterable[str]) -> bool:
    """Whether a case is asked for by its name, or by a part of it that is no case's whole name."""
    return name == part or (part not in known and part in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases, or parts of their names; all of them by default")
    parser.add_argument("--write", type=Path, help="write the table to this file")
    options = parser.parse_args()
    table: dict[str, Any] = {}
    if options.names and options.write and options.write.exists():
        table = json.loads(options.write.read_text())["cases"]
    known = cases()
    wanted = [name for name in known if not options.names or any(is_meant(name, part, known) for part in options.names)]
    for name in wanted:
        generation, run = known[name]
        with recording(generation) as compiled, torch.no_grad():
            run()
        table[name] = [report(*kernel) for kernel in compiled]
        for line in table[name]:
            print(f"{name:40s} {json.dumps(line)}", file=sys.stderr, flush=True)
        if options.write:
            options.write.write_text(as_text(table, known))
    if not options.write:
        print(as_text(table, known))


RESCUES = (
    "A rescue has the tile shape and warps of the kernel that it replaces, so that rows keep their bits, and loops "
    "over the keys twice: the sums of finite values stay in registers while the effects of non-finite ones are "
    "summed, which exceeds the registers. It runs only for a tile with a non-finite value; smaller tiles would "
    "spill less and change bits."
)


def as_text(table: dict[str, Any], known: Iterable[str]) -> str:
    """The table as JSON: the cases that are still ``known``, in their order, and the spills of rescues."""
    cases = {name: table[name] for name in known if name in table}
    words = {
        "triton": triton.__version__,
        "limelight": limelight.__version__,
        "rescues": rescues(cases),
        "cases": cases,
    }
    return json.dumps(words, indent=1) + "\n"


def rescues(cases: dict[str, Any]) -> dict[str, Any]:
    """Why rescues spill, and the bytes of the worst of each kernel and generation."""
    most: dict[str, int] = {}
    for case, lines in cases.items():
        for line in lines:
            name = f"{line['kernel']}, {case.split(', ')[-1]}"
            if line["rescue"]:
                most[name] = max(most.get(name, 0), line["spilled"])
    return {"why": RESCUES, "spilled": dict(sorted(most.items()))}


if __name__ == "__main__":
    main()
