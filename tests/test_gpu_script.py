"""`benchmarks/gpu.py` as far as it goes without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limelight.backends.gpu import machine

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments, interpreted):
    settings = os.environ | {"TRITON_INTERPRET": "1" if interpreted else "0", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, SCRIPT, *arguments], env=settings, capture_output=True, text=True)


def test_it_lists_what_it_would_do():
    ran = run("--list", interpreted=False)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert {line.split(":")[0] for line in lines} == {
        "correctness", "determinism", "sanitizer", "candidates", "speed",
    }  # fmt: skip
    for case in ("grouped 128 32768 float16", "packed 64 1024 bfloat16", "window 256 4096", "decode", "CUDA graphs"):
        assert any(case in line for line in lines), case


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the script would measure for half an hour")
def test_without_a_gpu_it_says_what_it_needs():
    ran = run(interpreted=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("PyTorch sees no GPU, and this script checks and measures one. --list prints")
    ran = run(interpreted=True)
    assert ran.returncode == 1
    assert "only --tiny" in ran.stderr


def test_its_checks_run_in_the_interpreter():
    ran = run("--tiny", "--part", "correctness", "--seed", "1", interpreted=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "35 calls compared" in ran.stdout
    assert "observations of 2 calls compared" in ran.stdout
    assert ran.stdout.endswith("no failures\n")


def test_candidates_are_checked_and_timed_on_a_model_of_the_machine(monkeypatch):
    from support.gluon_machine import installed

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from on_gpu import candidates

    cpu = torch.device("cpu")
    with installed():
        assert candidates.wrong(cpu, 192, ((1, 2, 1, 70, 90),), 1) == []
        rows = candidates.times(cpu, 64, (128,), 0.0)
    assert [row["form"] for row in rows] == ["full", "causal"]
    with installed(change=("acc = rescaled(acc, rescale, variant.FLOAT8)", "pass")):
        assert "times the allowed error of the output" in candidates.wrong(cpu, 64, ((1, 1, 1, 64, 300),), 0)[0]
