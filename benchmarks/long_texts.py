"""Look at long texts with SmolLM2: memory, time and page, beside what eager attention takes.

    python benchmarks/long_texts.py [--tokens 1024 4096 32768] [--pages FOLDER]

Each length runs in a process of its own, which loads the model, and reports how far its memory rises above that:
`limelight.look`, then the page; and transformers' model with ``attn_implementation="eager"`` and
``output_attentions=True``, where its weights (layers x heads x tokens^2 x 4 bytes) take less than half of the memory
that is free, else their size alone. The text is chapters of *Persuasion* (Austen 1818), repeated where they are too
short.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import limelight
from limelight.microscope import heads as packaged
from limelight.microscope import look, write_page

LENGTHS = (1024, 4096, 8192, 16_384, 32_768)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--pages", type=Path, help="keep the pages in this folder")
    parser.add_argument("--one", choices=("look", "eager"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        run = {"look": looked, "eager": eager}[options.one]
        print(json.dumps(run(options.tokens[0], options.pages)))
        return
    print("tokens | look: GB | seconds | page: GB | seconds | MB | eager: GB | seconds", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for tokens in options.tokens:
            ours = measured("look", tokens, options.pages or Path(folder))
            weights = eager_bytes(tokens)
            fits = weights < free_bytes() / 2
            theirs = measured("eager", tokens, Path(folder)) if fits else {"memory": weights, "seconds": "computed"}
            row = [tokens, ours["memory"] / 1e9, ours["seconds"], ours["page_memory"] / 1e9, ours["page_seconds"]]
            row += [ours["page"] / 1e6, theirs["memory"] / 1e9, theirs["seconds"]]
            print(" | ".join(written(n) for n in row), flush=True)


def measured(what: str, tokens: int, folder: Path) -> dict[str, Any]:
    """The result of one run in a process of its own."""
    command = [sys.executable, __file__, "--one", what, "--tokens", str(tokens), "--pages", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])


def looked(tokens: int, folder: Path) -> dict[str, Any]:
    """Look at a text of so many tokens, and write its page."""
    model = limelight.load("smollm2")
    text = text_of(model, tokens)
    look(model, text_of(model, 100))  # reads the weights, and loads what is loaded once
    before = restart_peak()
    began = time.perf_counter()
    report = look(model, text)
    seconds, memory = time.perf_counter() - began, peak() - before
    began = time.perf_counter()
    page = write_page(report, folder / f"{tokens}.html")
    page_seconds, page_memory = time.perf_counter() - began, peak() - before
    found = len(report.readings[0].tokens)
    return {
        "tokens": found,
        "seconds": seconds,
        "memory": memory,
        "page": page,
        "page_seconds": page_seconds,
        "page_memory": page_memory,
    }


def eager(tokens: int, folder: Path) -> dict[str, Any]:
    """Run transformers' model with all attention weights."""
    from transformers import AutoModelForCausalLM

    ours = limelight.load("smollm2")
    ids = torch.tensor([ours.read(text_of(ours, tokens)).texts[0].ids])
    ours.save(folder / "smollm2")
    del ours
    model = AutoModelForCausalLM.from_pretrained(folder / "smollm2", attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        model(ids[:, :8], output_attentions=True)
        before = restart_peak()
        began = time.perf_counter()
        model.model(ids, output_attentions=True)
    return {"seconds": time.perf_counter() - began, "memory": peak() - before}


def text_of(model: limelight.Pretrained, tokens: int) -> str:
    """The packaged chapters, repeated and cut to a number of tokens."""
    chapters = (Path(packaged.__file__).parent / "data" / "persuasion.txt").read_text("utf-8")
    text = "\n\n".join([chapters] * (1 + tokens // 10_000))  # they have about 12,000 tokens
    return text[: model.read(text).texts[0].spans[tokens - 1][1]]


def written(cell: float | str) -> str:
    """A cell of the table."""
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}"


def eager_bytes(tokens: int) -> int:
    """The size of all attention weights in float32."""
    config = limelight.load("smollm2").config
    return config.layers * config.query_heads * tokens**2 * 4


def free_bytes() -> int:
    return field("/proc/meminfo", "MemAvailable")


def peak() -> int:
    return field("/proc/self/status", "VmHWM")


def restart_peak() -> int:
    """Let the peak begin from the memory that is resident now, and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return field("/proc/self/status", "VmRSS")


def field(path: str | os.PathLike[str], name: str) -> int:
    """A number of kB from a file of Linux's /proc, in bytes."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
