"""PyTorch's counter of floating-point operations counts ours as it counts its own attention."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

import limelight
from limelight import Causal, Window

q, k, v = (torch.randn(2, 4, length, 8, requires_grad=True) for length in (6, 10, 10))


def counted(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def on_meta(function):
    """PyTorch's count for its fused kernels, which a CPU would not choose for these tensors."""
    tensors = [t.detach().to("meta") for t in (q, k, v)]
    return counted(lambda: function(*tensors))


@pytest.mark.parametrize("pattern", [None, Causal(), Window(2, 0)], ids=str)
def test_an_eager_call_counts_every_pair_forward_and_backward(pattern):
    forward = 2 * (2 * 4 * 6 * 10) * (8 + 8)
    assert counted(lambda: limelight.attention(q, k, v, pattern=pattern)) == forward
    assert on_meta(lambda q, k, v: limelight.attention(q, k, v, pattern=pattern)) == forward
    whole = counted(lambda: limelight.attention(q, k, v, pattern=pattern).sum().backward())
    assert whole == forward + forward * 5 // 2


def test_the_count_is_that_of_pytorch():
    leaves = [torch.randn(1, 4, 64, 16, device="meta", requires_grad=True) for _ in range(3)]
    ours = counted(lambda: limelight.attention(*leaves))
    theirs = counted(lambda: scaled_dot_product_attention(*leaves))
    assert ours == theirs == 2 * 4 * 64 * 64 * 32


def test_second_derivatives_count_more():
    def second():
        (first,) = torch.autograd.grad(limelight.attention(q, k, v).square().sum(), q, create_graph=True)
        first.square().sum().backward()

    assert counted(second) > counted(lambda: limelight.attention(q, k, v).square().sum().backward())


IMPORTED = """
import sys, torch, limelight
unneeded = {"triton", "torch.utils.flop_counter", "numpy.typing", "limelight.backends.gpu", "limelight.nn"}
assert not unneeded & set(sys.modules), unneeded & set(sys.modules)
assert {*limelight.__all__, "models", "nn"} <= set(dir(limelight))
q = k = v = torch.ones(1, 1, 4, 8)
limelight.attention(q, k, v)  # which the native library serves
assert "limelight.backends.gpu" not in sys.modules
assert [str(getattr(limelight, name)) for name in limelight.__all__]
assert limelight.explain(q, k, v).backend and {"BACKENDS", "ONLY_NAMED"} <= set(dir(limelight.backends))
"""


def test_importing_limelight_imports_nothing_that_it_does_not_need():
    subprocess.run([sys.executable, "-c", IMPORTED], check=True, timeout=300)
