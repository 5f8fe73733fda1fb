"""Measure requests per second of vLLM on CPUs: its own attention against Limelight's, in turns.

build/vllm/bin/python benchmarks/serving.py [--rounds 3] [--dtype bfloat16] [--threads 2] [--write]

The environment is the one that `tests/integrations/vllm_serving.py` makes. The model has the shape of SmolLM2-135M and
random weights, so that nothing is downloaded. Each round runs vLLM's engine in a new process, without our plugin and
with it, on the same requests; the table gives medians over the rounds. `--write` keeps it in `serving.md` beside this
file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "integrations"), str(ROOT / "src")]
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
#: Requests, shortest and longest prompt, tokens that are generated.
LOADS = {
    "32 short prompts, 32 tokens each": (32, 16, 128, 32),
    "8 prompts of 1k, 4 tokens each": (8, 1024, 1024, 4),
    "4 prompts of 2k to 4k, 32 tokens each": (4, 2048, 4096, 32),
}


def serve(folder: Path, dtype: str) -> dict[str, float]:
    """Requests per second of each load, in this process."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder), dtype=dtype, enforce_eager=True, max_model_len=8192, max_num_seqs=64,
        max_num_batched_tokens=512, enable_prefix_caching=False, skip_tokenizer_init=True,
    )  # fmt: skip
    draw, rates = random.Random(0), {}
    for name, (count, shortest, longest, tokens) in LOADS.items():
        texts = [[draw.randrange(3, 49152) for _ in range(draw.randint(shortest, longest))] for _ in range(count)]
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate([{"prompt_token_ids": texts[0][:16]}], params, use_tqdm=False)
        begun = time.perf_counter()
        llm.generate([{"prompt_token_ids": text} for text in texts], params, use_tqdm=False)
        rates[name] = count / (time.perf_counter() - begun)
    return rates


def write_model(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).save_pretrained(folder)


def rates_of(folder: Path, plugin: str, arguments: argparse.Namespace, paths: list[str]) -> dict[str, float]:
    """Those of a new process, with our plugin or with none."""
    from vllm_serving import QUIET

    variables = QUIET | {
        "VLLM_PLUGINS": plugin, "OMP_NUM_THREADS": str(arguments.threads), "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "2",
    }  # fmt: skip
    command = [sys.executable, __file__, "--inside", str(folder), "--dtype", arguments.dtype]
    done = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, check=True, timeout=3600)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(serve(arguments.inside, arguments.dtype)))
        return
    from vllm_serving import entry_points

    from limelight.benchmark.timing import processor

    with tempfile.TemporaryDirectory() as temporary:
        folder, plugins = Path(temporary) / "model", Path(temporary) / "plugins"
        plugins.mkdir()
        entry_points(plugins)
        write_model(folder)
        found: dict[str, list[dict[str, float]]] = {"": [], "limelight": []}
        for n in range(arguments.rounds):
            for plugin, rates in found.items():
                rates.append(rates_of(folder, plugin, arguments, [str(ROOT / "src"), str(plugins)]))
                print(f"round {n + 1}, {plugin or 'vLLM alone'}: {rates[-1]}", file=sys.stderr, flush=True)
    lines = [
        f"A model of SmolLM2-135M's shape on {arguments.threads} threads of {processor()}; medians of",
        f"{arguments.rounds} rounds (`build/vllm/bin/python benchmarks/serving.py --dtype {arguments.dtype}`).",
        "",
        "| load | vLLM's attention | Limelight's | ratio |",
        "|---|---|---|---|",
    ]
    for name in LOADS:
        theirs, ours = (statistics.median(rates[name] for rates in found[plugin]) for plugin in ("", "limelight"))
        lines.append(f"| {name} | {theirs:.3g} | {ours:.3g} | {ours / theirs:.2f} |")
    text = "\n".join(lines)
    print(text)
    if arguments.write:
        _write(text, arguments.dtype)


def _write(text: str, dtype: str) -> None:
    """The table of a dtype in ``serving.md``; those of other dtypes stay."""
    path, mark = Path(__file__).with_suffix(".md"), f"## {dtype}\n"
    title = "# Requests per second, served by vLLM on CPUs\n"
    before: Any = path.read_text().split("\n## ")[1:] if path.exists() else []
    others = [f"## {part.strip()}\n" for part in before if not part.startswith(dtype)]
    path.write_text("\n".join([title, *others, mark, text]) + "\n")


if __name__ == "__main__":
    main()
