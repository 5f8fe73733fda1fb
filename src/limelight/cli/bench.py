"""``limelight bench``: the speed of attention on this machine, beside PyTorch and the machine's own limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..benchmark import Case, Measurement


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure the short cases only, half a second each: a minute or two.")
    ] = False,
    only: Annotated[str, typer.Option(help="Measure only cases whose name or heading contains this.")] = "",
    threads: Annotated[
        int | None, typer.Option(help="Number of threads; by default as many as PyTorch uses.", min=1)
    ] = None,
    output: Annotated[
        Path, typer.Option(help="File for the numbers (JSON); a figure (SVG) is written beside it.")
    ] = Path("limelight-bench.json"),
) -> None:
    """Measure attention on this machine, interleaved with PyTorch's, and beside the machine's own peak.

    Speeds count the operations of the pairs that a pattern allows. The whole table takes a quarter of an hour; close
    other programs. A row marked ~ was measured while the machine's peak changed by more than 5 %.

    Example: limelight bench --quick --only "forward, bf16"
    """
    import json

    import torch
    from rich.console import Console

    from .. import benchmark

    cases, with_memory = _cases(only, quick)
    figure = _figure_path(output)
    count = threads or torch.get_num_threads()
    about = benchmark.machine(count)
    console = Console(highlight=False)
    console.print("  ".join(f"{name}: {value}" for name, value in about.items()), soft_wrap=True)
    measured, memory = _measure(cases, with_memory, count, quick, console)
    output.write_text(json.dumps(benchmark.as_json(about, measured, memory), indent=1) + "\n", "utf-8")
    figure.write_text(benchmark.figure_of(about, measured), "utf-8")
    console.print(f"\nWritten: {output}, {figure}", soft_wrap=True)


def _cases(only: str, quick: bool) -> tuple[list[Case], bool]:
    """Return the cases to measure, and whether memory is measured too.

    Raises:
        BackendError: there is no native library.
        ArgumentError: no case has ``only`` in its name or heading.
    """
    from .. import benchmark
    from ..backends import native
    from ..backends.contract import BackendError
    from ..tensors.shapes import wrong

    if not native.available():
        raise BackendError(f"limelight bench measures the native kernels, and {native.why_missing()}.")
    cases = benchmark.chosen(only, quick)
    with_memory = only.lower() in benchmark.MEMORY
    if not cases and not with_memory:
        names = sorted({case.group for case in benchmark.chosen()})
        raise wrong("--only", "must be part of a name or heading", f"it is {only!r}", f"Headings: {'; '.join(names)}.")
    return cases, with_memory


def _figure_path(output: Path) -> Path:
    """Return where the figure is written, beside the numbers.

    Raises:
        ArgumentError: ``output`` is no .json file in a folder that exists.
    """
    from ..tensors.shapes import wrong

    if output.suffix != ".json" or not output.absolute().parent.is_dir():
        raise wrong("--output", "must be a .json file in a folder that exists", f"it is {output}", "Create the folder.")
    return output.with_suffix(".svg")


def _measure(
    cases: list[Case], with_memory: bool, threads: int, quick: bool, console: Console
) -> tuple[list[Measurement], dict[str, Any] | None]:
    """Measure cases, and print each as a line below its heading; return the measurements and those of memory."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .. import benchmark

    measured: list[Measurement] = []
    memory: dict[str, Any] | None = None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn once a second: drawing takes a core from what is measured.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1) as progress:
        task = progress.add_task("", total=len(cases) + with_memory)

        def begin(case: Case) -> None:
            progress.update(task, description=case.name)
            if not measured or measured[-1].case.group != case.group:
                console.print(f"\n{case.group}", style="bold")
                console.print(_line(console.width, "", *_HEADS[case.per]), style="dim")

        for one in benchmark.run(cases, threads, 0.5 if quick else 3.0, begin):
            measured.append(one)
            console.print(_line(console.width, one.case.name + ("" if one.steady else " ~"), *_cells(one)))
            progress.advance(task)
        if with_memory:
            progress.update(task, description=benchmark.MEMORY)
            memory = benchmark.memory_row(threads, quick)
            console.print(f"\n{benchmark.MEMORY}", style="bold")
            console.print(
                f"{memory['tokens']:,} tokens: {memory['bytes'] / 2**20:,.0f} MiB, {memory['times']:.2f} times the "
                f"{memory['inputs_and_outputs'] / 2**20:,.0f} MiB of inputs, outputs and gradients"
            )
            progress.advance(task)
    return measured, memory


_HEADS = {
    "peak": ("ms", "GFLOP/s", "of peak", "torch ms", "x torch", "x plain"),
    "bandwidth": ("ms", "GB/s", "of reads", "torch ms", "x torch", ""),
    "call": ("µs", "", "", "torch µs", "x torch", "µs more"),
}


_NAME, _CELL = 38, 10  # characters
_BY_IMPORTANCE = (0, 4, 2, 3, 1, 5)  # cells of a line: where not all fit, the last of these are left out


def _line(width: int, name: str, *cells: str) -> str:
    names = _NAME if width >= _NAME + 3 * _CELL else 28
    kept = sorted(_BY_IMPORTANCE[: max(1, (width - names) // _CELL)])
    short = name if len(name) <= names else name[: names - 1] + "…"
    return f"{short:{names}}" + "".join(f"{cells[number]:>{_CELL}}" for number in kept)


def _cells(row: Measurement) -> tuple[str, ...]:
    peer, ratio = row.peer_seconds, _number(row.ratio, ".2f")
    if row.case.per == "call":
        more = None if peer is None else 1e6 * (row.seconds - peer)
        return f"{1e6 * row.seconds:.1f}", "", "", _number(peer and 1e6 * peer, ".1f"), ratio, _number(more, "+.1f")
    speed, fraction = _number(row.speed, ".1f"), _number(row.fraction, ".1%")
    torch_ms = _number(peer and 1e3 * peer, ".2f")
    return f"{1e3 * row.seconds:.2f}", speed, fraction, torch_ms, ratio, _number(row.beside_plain, ".2f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
