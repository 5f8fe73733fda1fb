"""Unusual tensors (lazy, conjugated, shrunk, freed, ...) as every argument: no crash; the right result or an error."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import odd_tensors

import limelight
from limelight import ArgumentError, Bias, Causal, Observe, fused
from limelight.tensors.shapes import check_tensor

#: Arguments of which a shrunk storage is not detected: the check would take a tenth of the time of a short call.
UNCHECKED = {
    "query", "key", "value", "all three", "query with a gradient", "gradient", "gradient of a plain call",
    "keys in pages", "values in pages",
}  # fmt: skip
ALWAYS_RIGHT = ("plain", "parameter", "negated", "lazily cloned")


def _reports(arguments):
    script = (
        "import sys\nfrom support.odd_tensors import main\nfor a in sys.argv[1:]: print('##', a, flush=True); main(a)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"ended with {done.returncode} after:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
    return {
        name: dict(line.split(": ", 1) for line in lines)
        for name, *lines in (part.strip().splitlines() for part in done.stdout.split("## ")[1:])
    }


@pytest.mark.parametrize("part", range(4))
def test_no_tensor_crashes_or_is_misread(part):
    names = list(odd_tensors.ARGUMENTS)[part::4]
    reports = _reports(names)
    assert list(reports) == names
    for name, report in reports.items():
        assert set(report) == set(odd_tensors.KINDS)
        fast = name in UNCHECKED or name in odd_tensors.STEPS
        wrong = [kind for kind, line in report.items() if line == "WRONG" and not (fast and kind == "shrunk")]
        assert not wrong, f"{name}: {wrong}"
        for kind in ALWAYS_RIGHT:
            assert report[kind] in ("right", "cannot be made"), f"{name}, {kind}: {report[kind]}"
        assert report["freed"].startswith("ArgumentError"), f"{name}: {report['freed']}"


def test_a_shrunk_storage_of_a_large_tensor_is_an_error():
    query, key = torch.randn(2, 1, 8, 2048, 64).unbind()
    key = key.clone()
    key.untyped_storage().resize_(4096)
    with pytest.raises(ArgumentError, match=r"`key` .* holds 4,096 of the 4,194,304 bytes"):
        limelight.attention(query, key, query)


def test_memory_that_is_freed_before_the_backward_pass():
    query, key = torch.randn(2, 1, 2, 5, 4).unbind()
    query, key = query.clone().requires_grad_(), key.clone()
    output = limelight.attention(query, key, key)
    key.untyped_storage().resize_(0)
    with pytest.raises(ArgumentError, match="`key` must be a dense tensor with memory"):
        output.sum().backward()


def test_views_within_their_storage_pass():
    whole = torch.randn(100)
    for tensor in (whole[90:], whole[99], whole.as_strided((3, 3), (1, 1), 95), whole[:0], whole.expand(7, 100)):
        assert check_tensor("x", tensor) is tensor
    last = whole[99]
    whole.untyped_storage().resize_(99 * 4)
    with pytest.raises(ArgumentError, match=r"`x` .* 396 of the 400 bytes"):
        check_tensor("x", last)


@pytest.mark.parametrize("sizes", [(1, 0, 1, 5, 4), (0, 2, 1, 5, 4), (1, 2, 1, 0, 4), (1, 2, 1, 5, 0), (1, 0, 1, 0, 0)])
def test_empty_calls(sizes):
    B, Hq, Hkv, Lq, Lk = sizes
    query, key, value = torch.ones(B, Hq, Lq, 3), torch.ones(B, Hkv, Lk, 3), torch.ones(B, Hkv, Lk, 2)
    leaves = [t.requires_grad_() for t in (query, key, value, torch.zeros(Hq, Lq, Lk), torch.zeros(Hq))]
    observe = Observe(logsumexp=True, entropy=True, received=True, top=2, blocks=(2, 2))
    output, seen = limelight.attention(
        *leaves[:3], scores=(Bias(leaves[3]),), sink=leaves[4], observe=observe, pattern=Causal()
    )
    assert output.shape == (B, Hq, Lq, 2)
    assert not output.any()
    assert seen.logsumexp.shape == (B, Hq, Lq)
    assert seen.received.shape == (B, Hq, Lk)
    assert not seen.received.any()
    assert seen.top_keys.shape == (B, Hq, Lq, 2)
    for plain in (output.sum() + seen.logsumexp.sum(), limelight.attention(*leaves[:3]).sum()):
        for leaf, grad in zip(leaves, torch.autograd.grad(plain, leaves, allow_unused=True), strict=True):
            if grad is not None and not (leaf is leaves[4] and Lk == 0):
                assert grad.shape == leaf.shape
                assert not grad.any()


WRONG_SHAPES = {
    "norm": lambda: fused.rms_norm(torch.randn(64, 5), torch.ones(64), 1e-6),
    "norm of few": lambda: fused.rms_norm(torch.randn(3, 5), torch.ones(64), 1e-6),
    "norm with a gradient": lambda: fused.rms_norm(torch.randn(64, 5, requires_grad=True), torch.ones(64), 1e-6),
    "norm of a number": lambda: fused.rms_norm(torch.tensor(1.0), torch.ones(1), 1e-6),
    "bias": lambda: fused.product(torch.ones(1, 64), torch.ones(4096, 64), torch.ones(1)),
    "bias of many rows": lambda: fused.product(torch.ones(50, 64), torch.ones(4096, 64), torch.ones(1)),
    "weight": lambda: fused.product(torch.ones(1, 64), torch.ones(64, 32)),
    "matmul": lambda: fused.matmul(torch.ones(300, 64), torch.ones(32, 300)),
    "device of right": lambda: fused.matmul(torch.ones(5, 6), torch.ones(6, 7, device="meta")),
    "device of left": lambda: fused.matmul(torch.ones(5, 6, device="meta"), torch.ones(6, 7)),
    "device of out": lambda: fused.matmul(torch.ones(5, 6), torch.ones(6, 7), out=torch.ones(5, 7, device="meta")),
    "out": lambda: fused.matmul(torch.ones(300, 64), torch.ones(64, 300), out=torch.ones(2, 3)),
    "length of a table": lambda: _rotate((2, 3, 5, 8), (1, 1, 4, 8)),
    "rows of a table": lambda: _rotate((2, 3, 5, 8), (3, 1, 5, 8)),
    "heads of a table": lambda: _rotate((2, 3, 5, 8), (1, 3, 5, 8)),
    "width of a table": lambda: _rotate((2, 3, 5, 8), (1, 1, 5, 10)),
    "half a pair": lambda: _rotate((2, 3, 5, 8), (1, 1, 5, 7)),
    "partners": lambda: fused.rotate_halves(torch.ones(2, 3, 5, 8), torch.ones(1, 1, 5, 8), torch.ones(1, 1, 1, 8)),
    "rank": lambda: _rotate((3, 5, 8), (1, 1, 5, 8)),
    "captured norm": lambda: fused.CapturedCalls().norm(torch.ones(1, 8), torch.ones(9), 1e-6, 0.0),
    "captured product": lambda: fused.CapturedCalls().products(torch.ones(1, 8), [(torch.ones(9, 7), None)]),
    "captured bias": lambda: fused.CapturedCalls().products(torch.ones(1, 8), [(torch.ones(9, 8), torch.ones(1))]),
    "captured sum": lambda: fused.CapturedCalls().add(torch.ones(1, 8), torch.ones(1, 9)),
    "captured copy": lambda: fused.CapturedCalls().copy(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 2, 4)),
    "captured rotation": lambda: fused.CapturedCalls().rotate_halves(
        torch.ones(1, 2, 3, 4), *torch.ones(2, 1, 1, 2, 4), torch.ones(1, 2, 3, 4)
    ),
    "captured gate": lambda: fused.CapturedCalls().gated(torch.nn.functional.silu, torch.ones(8), torch.ones(4)),
}  # fmt: skip


@pytest.mark.parametrize("sizes", [(0, 6), (0, 0), (4, 0)])
@pytest.mark.parametrize("leading", [(3,), (2, 20), (0,)])
def test_empty_products(leading, sizes):
    outputs, inputs = sizes
    states, weight = torch.randn(*leading, inputs), torch.randn(sizes)
    bias = torch.randn(outputs)
    for leaf in (states, weight, bias):
        made = fused.product(states, weight, bias)
        assert torch.equal(made, (states @ weight.T + bias).detach())
        leaf.requires_grad_()
    found = torch.autograd.grad(fused.product(states, weight, bias).sum(), (states, weight, bias))
    assert [grad.shape for grad in found] == [states.shape, weight.shape, bias.shape]
    assert torch.equal(found[2], torch.full((outputs,), float(math.prod(leading))))


def _rotate(heads, table):
    return fused.rotate_halves(torch.ones(heads), torch.ones(table), torch.ones(table))


@pytest.mark.parametrize("call", WRONG_SHAPES.values(), ids=WRONG_SHAPES)
def test_fused_steps_check_shapes(call):
    with pytest.raises(ArgumentError):
        call()


def test_a_negated_sink():
    sink = torch.complex(torch.zeros(1), torch.full((1,), 2.0)).conj().imag  # -2, one element: contiguous
    assert sink.is_neg()
    assert sink.is_contiguous()
    query = torch.randn(1, 1, 5, 4)
    found = limelight.attention(query, query, query, sink=sink)
    torch.testing.assert_close(found, limelight.attention(query, query, query, sink=torch.tensor([-2.0])))
