"""A machine without Triton: nothing imports it, calls are served, and what needs it says so."""

import subprocess
import sys

PROGRAM = """
import sys

sys.modules["triton"] = None  # find_spec finds nothing, and an import fails

import torch

import limelight
from limelight import BackendError, Causal, Observe
from limelight.backends.gpu.hopper import flash3, flash3_float8
from limelight.backends.gpu import arguments, flash1, flash2, gradients, observing, score_rules, tuning, visibility

q, k, v = (torch.randn(1, 2, 7, 8, requires_grad=True) for _ in range(3))
output, seen = limelight.attention(q, k, v, pattern=Causal(), observe=Observe(entropy=True, top=2, received=True))
output.sum().backward()
assert q.grad.isfinite().all() and seen.entropy.shape == (1, 2, 7)

why = "Triton is not installed (pip install triton; it comes with PyTorch's CUDA builds)"
explained = str(limelight.explain(q, k, v, pattern=Causal()))
for name in ("flash1", "flash2", "flash3"):
    assert any(name in line and why in line for line in explained.splitlines()), explained
for backend in (flash1, flash2, flash3, flash3_float8):
    assert why in backend.status()
    try:
        limelight.attention(q.detach(), k.detach(), v.detach(), backend=backend.NAME)
    except BackendError as error:
        assert f"backend {backend.NAME!r} cannot serve this call: {why}" in str(error), error
    else:
        raise AssertionError(f"{backend.NAME} serves a call")
assert not [name for name, module in sys.modules.items() if name.split(".")[0] == "triton" and module is not None]
print("served")
"""


def test_nothing_of_triton_is_imported_where_it_is_not():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ran.stdout == "served\n", ran.stderr
