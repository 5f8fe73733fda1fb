"""`benchmarks/gpu.py` as far as it goes without a GPU."""

import json
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


def rates(direction, form, D, length, **tflops):
    return {"direction": direction, "form": form, "D": D, "length": length, "dtype": "bfloat16", "tflops": tflops}


def test_goals_are_met_missed_or_not_measured(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from on_gpu.goals import goals

    decoded = ((1, 16384, 0, 0.3), (16, 4096, 0, 0.7), (16, 16384, 0, 0.86), (16, 65536, 0, 0.9), (16, 65536, 64, 0.6))
    result = {
        "speed": [
            rates("forward", "full", 64, 4096, flash3=400.0, cudnn=500.0),
            rates("forward", "causal", 64, 4096, flash3=405.0, cudnn=500.0),
            rates("backward", "causal", 256, 4096, **{"flash3": 60.0, "flash3 own backward": 300.0}),
        ],
        "candidates": {"64": [rates("forward", "full", 64, 4096, measured=401.0, candidate=475.0)]},
        "decode": [dict(zip(("batch", "length", "page", "of bandwidth"), numbers, strict=True)) for numbers in decoded],
        "observations": [{"served by": "flash2", "length": 8192, "D": 128, "entropy": 1.2, "top": 3.5, "all": 4.0}],
        "host": [{"call": "causal", "flash2": 59.0}],
    }
    found = {row["goal"]: (row["measured"], row["met"]) for row in goals(result)}
    expected = {
        "flash3 forward, full 64 4096, TFLOP/s": (475.0, True),  # by the candidate
        "flash3 forward, causal 64 4096, TFLOP/s": (405.0, False),
        "flash3 forward, causal 128 4096, TFLOP/s": (None, None),
        "flash3 forward over cuDNN, full 64 4096": (0.95, True),
        "flash3 backward, causal 256 4096, TFLOP/s": (300.0, True),
        "flash2 backward over FlexAttention, causal 64 4096": (None, None),
        "decoding, 16 sequences from 16k on, of the bandwidth": (0.86, True),
        "the same over pages of 64 keys": (0.6, False),
        "entropy over a plain pass, flash2": (1.2, True),
        "8 largest weights over a plain pass, flash2": (3.5, False),
        "all observations over a plain pass, flash3": (None, None),
        "host time, causal, flash2, µs": (59.0, True),
        "host time, causal, flash3, µs": (None, None),
    }
    assert {goal: found[goal] for goal in expected} == expected
    lines = {line[:54].strip(): line[54:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["the same over pages of 64 keys"] == ["0.85", "0.84", "not", "measured", "0.6", "missed"]
    assert lines["host time, causal, flash2, µs"] == ["<=", "60", "60", "380", "59", "met"]
    assert lines["flash3 forward, causal 128 4096, TFLOP/s"][-2:] == ["not", "measured"]


def test_goals_are_of_cases_that_run_and_keep_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from on_gpu.goals import GOALS
    from on_gpu.speed import GPU_BACKENDS, OWN_BACKWARD, speed_cases

    ways = (*GPU_BACKENDS, "flash3-float8 kernel", OWN_BACKWARD, "cudnn", "flex")
    run = [
        rates(direction, form, D, length, **dict.fromkeys(ways, 1.0)) | {"dtype": str(dtype)[6:]}
        for dtype, D, length, form in speed_cases()
        for direction in ("forward", "backward")
    ]
    result = {
        "speed": run,
        "decode": [{"batch": 16, "length": 65536, "page": page, "of bandwidth": 1.0} for page in (0, 64)],
        "observations": [
            {"served by": backend, "length": 8192, "D": 128, "entropy": 1.0, "top": 1.0, "all": 1.0}
            for backend in ("flash2", "flash3")
        ],
        "host": [{"call": call, "flash2": 1.0, "flash3": 1.0} for call in ("causal", "causal, both ways")],
    }
    before = json.loads((SCRIPT.parent / "results" / "h200.json").read_text()) | {"host": []}
    for goal in GOALS:
        assert goal.measured(result) == 1.0, goal.name
        measured = goal.measured(before)
        assert measured is None or measured == pytest.approx(goal.before, rel=0.01), goal.name
