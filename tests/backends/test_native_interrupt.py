"""Ctrl-C in a long call: the kernels notice it within a second, and the next call works.

Time is that of the process, all threads together, so that a busy machine is not taken for a slow answer.
"""

import os
import subprocess
import sys

import pytest

from limelight.backends import native

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)
if sys.platform not in ("linux", "darwin"):
    pytest.skip("other systems' main thread is not looked for", allow_module_level=True)

PROGRAM = """
import faulthandler, os, signal, sys, threading, time
import torch, limelight
from limelight import Observe
from limelight.fused import matrices
kind, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)

class Raised(Exception):
    pass

def raising(*_):
    raise Raised("by a handler")

seen = []
# A parent that ignores the signal hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGPROF, raising if kind == "alarm" else lambda *_: seen.append(time.process_time()))
states = torch.randn(1, 8, 60_000, 64)
few = states[:, :1, :30_000].clone()
cotangent = torch.ones(few.shape)
if kind == "backward":
    kept = few, torch.zeros(few.shape), torch.zeros(few.shape[:3])

def backward():
    from limelight.operator.calling import prepare
    from limelight.backends import native
    call = prepare(few, few, few)
    native.backward(call, kept[1], kept[2], cotangent, None, (True, True, True))

if kind == "matrices":
    square = torch.zeros(12_000, 12_000)

calls = {
    "forward": lambda: limelight.attention(states, states, states, backend="native"),
    "alarm": lambda: limelight.attention(states, states, states, backend="native"),
    "observe": lambda: limelight.attention(few, few, few, backend="native", observe=Observe(received=True)),
    "backward": backward,
    # The library's own kernel: where PyTorch's product is faster, `fused.matmul` calls that, which no signal ends.
    "matrices": lambda: matrices._multiply(square, square, None, torch.empty_like(square)),
    "harmless": lambda: limelight.attention(few, few, few, backend="native"),
}
start = time.process_time()
signal.setitimer(signal.ITIMER_PROF, 0.5, 0.2 if kind == "harmless" else 0)
if kind not in ("alarm", "harmless"):
    signal.signal(signal.SIGPROF, signal.default_int_handler)
try:
    calls[kind]()
    print("finished", len(seen))
except BaseException as error:
    print(type(error).__name__, time.process_time() - start - 0.5)
signal.setitimer(signal.ITIMER_PROF, 0)
small = torch.randn(1, 2, 300, 64)
ours, truth = (limelight.attention(small, small, small, backend=b) for b in ("native", "reference"))
assert torch.allclose(ours, truth, atol=1e-5)
"""


def outcome(kind, threads=2):
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind, str(threads)],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["forward", "observe", "backward", "matrices"])
def test_a_long_call_ends(kind, threads):
    raised, late = outcome(kind, threads)
    assert raised == "KeyboardInterrupt"
    assert float(late) < threads


def test_whatever_a_handler_raises_is_raised():
    raised, late = outcome("alarm")
    assert raised == "Raised"
    assert float(late) < 2


def test_handlers_run_meanwhile_and_the_call_goes_on():
    what, handled = outcome("harmless", 1)
    assert what == "finished"
    assert int(handled) >= 1
