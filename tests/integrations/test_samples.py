"""PyTorch's own samples of scaled_dot_product_attention, through `compat` and through `sdpa`.

Every transform of every sample gives what the formula gives. `LEFT` names what `sdpa` leaves to PyTorch, and why.
"""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from limelight import compat
from limelight.integrations.torch import sdpa

pytest.importorskip("expecttest", reason="PyTorch's samples import it; it is in the extra `test`")

# Importing them changes PyTorch for the whole process (torch.backends.disable_global_flags), so another one does.
_WRITE = """
import sys, torch
from torch.testing._internal.common_methods_invocations import op_db
(op,) = (op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
samples = [((s.input, *s.args), s.kwargs) for s in op.sample_inputs("cpu", torch.float64, requires_grad=False)]
torch.save(samples, sys.argv[1])
"""
# A call under `sdpa` is Limelight's. While PyTorch records it, the kernel that will serve it is unknown: it is left to
# PyTorch, and the reason names the recorder.
LEFT = {
    "compiled": "torch.compile",
    "recorded": "make_fx",
    "fake": "FakeTensorMode",
    "functionalized": "torch.func.functionalize",
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """``(tensors, keyword arguments)``, each once; those with dropout apart."""
    file = tmp_path_factory.mktemp("samples") / "samples.pt"
    subprocess.run([sys.executable, "-W", "ignore", "-c", _WRITE, str(file)], check=True)
    found = {}
    for tensors, options in torch.load(file, weights_only=True):
        tensors = (*tensors, *([options.pop("attn_mask")] if "attn_mask" in options else []))
        found[str([tuple(x.shape) for x in tensors]), str(options)] = (tensors, options)
    plain = [sample for sample in found.values() if not sample[1]["dropout_p"]]
    dropping = [sample for sample in found.values() if sample[1]["dropout_p"]]
    assert len(plain) >= 7
    assert len(dropping) >= 6
    return plain, dropping


def formula(query, key, value, mask=None, is_causal=False, dropout_p=0.0):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ value


def doors(options):
    """The call by each door."""
    return partial(compat.scaled_dot_product_attention, **options), partial(F.scaled_dot_product_attention, **options)


def seeded(call):
    """Dropout draws its seed from PyTorch's generator."""

    def same(*tensors):
        torch.manual_seed(0)
        return call(*tensors)

    return same


def everywhere(samples, transform, left=None):
    """Each sample, transformed, by both doors, against the formula; whatever `sdpa` left had the reason ``left``."""
    for tensors, options in samples[0]:
        expected = transform(lambda *x, options=options: formula(*x, **options), tensors)
        direct, routed = doors(options)
        torch.testing.assert_close(transform(direct, tensors), expected)
        with sdpa() as calls:
            found = transform(routed, tensors)
        torch.testing.assert_close(found, expected)
        assert_calls(calls, left)


def assert_calls(calls, left):
    assert bool(calls.taken) == (left is None), str(calls)
    assert bool(calls.left) == (left is not None), str(calls)
    assert all(LEFT[left] in why for why in calls.left), str(calls)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward(samples, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for tensors, options in samples[0]:
        tensors = [x.to(dtype) for x in tensors]
        expected = formula(*(x.double() for x in tensors), **options)
        direct, routed = doors(options)
        with sdpa() as calls:
            results = direct(*tensors), routed(*tensors)
        for found in results:
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        assert calls.taken.total() == 1


def assert_dropped(call, tensors, options):
    """The call mixes values by half of the formula's weights, doubled."""
    call = seeded(call)
    query, key, value = tensors
    each = torch.eye(key.shape[-2], dtype=value.dtype).expand(*value.shape[:-1], -1)  # the output is the weights
    weights = formula(query, key, each, **options)
    dropped = call(query, key, each)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, 2 * weights, 0.0))
    assert 0.3 < kept[weights > 0].double().mean() < 0.7
    torch.testing.assert_close(call(*tensors), dropped @ value)


def test_dropout(samples):
    for tensors, options in samples[1]:
        direct, routed = doors(options)
        assert_dropped(direct, tensors, options)
        with sdpa() as calls:
            assert_dropped(routed, tensors, options)
        assert calls.taken.total() == 2


def test_gradients(samples):
    """First and second, by differences of the values."""
    for tensors, options in [*samples[0], *samples[1]]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        for call in doors(options):
            with sdpa() as calls:
                assert torch.autograd.gradcheck(seeded(call), leaves, fast_mode=True)
                assert torch.autograd.gradgradcheck(seeded(call), leaves, fast_mode=True)
            assert not calls.left


def test_gradients_of_batches(samples):
    """Those of autograd (``is_grads_batched``, ``vectorize=True``), not of `torch.func`."""
    for tensors, options in samples[0]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        for call in doors(options):
            with sdpa():
                assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_batched_grad=True)


def test_forward_mode(samples):
    everywhere(samples, lambda call, tensors: torch.func.jvp(call, tensors, tuple(x.cos() for x in tensors)))


def test_gradients_of_functions(samples):
    def transform(call, tensors):
        return torch.func.grad(lambda *x: call(*x).square().sum(), argnums=tuple(range(len(tensors))))(*tensors)

    everywhere(samples, transform)


def test_vmap(samples):
    def transform(call, tensors):
        stacked = [torch.stack([x, x.sin(), x + 1]) for x in tensors]
        over_key_alone = torch.vmap(call, in_dims=(None, 0, *[None] * (len(tensors) - 2)))
        return torch.vmap(call)(*stacked), over_key_alone(tensors[0], stacked[1], *tensors[2:])

    everywhere(samples, transform)


def compiled(call, tensors):
    torch.compiler.reset()
    leaves = [x.clone().requires_grad_() for x in tensors]
    return torch.compile(call, backend="aot_eager", fullgraph=True), leaves


def test_compiled(samples):
    for tensors, options in samples[0]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        expected = formula(*leaves, **options)
        gradients = torch.autograd.grad(expected.square().sum(), leaves)
        call, leaves = compiled(doors(options)[0], tensors)
        found = call(*leaves)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), leaves), gradients)


def test_compiled_calls_are_left_by_sdpa(samples):
    tensors, options = samples[0][-1]
    call, leaves = compiled(doors(options)[1], tensors)
    with sdpa() as calls:
        torch.testing.assert_close(call(*leaves), formula(*leaves, **options))
    assert_calls(calls, "compiled")


@pytest.mark.parametrize("is_causal", [False, True])
def test_compiled_with_dropout(samples, is_causal):
    tensors, options = next(sample for sample in samples[1] if sample[1]["is_causal"] == is_causal)
    call, leaves = compiled(doors(options)[0], tensors)
    assert_dropped(call, leaves, options)
    each = torch.eye(tensors[1].shape[-2], dtype=torch.float64).expand(*tensors[2].shape[:-1], -1)
    kept = (seeded(call)(*tensors[:2], each) != 0).double()
    expected = (formula(*leaves[:2], each, **options) * kept * 2) @ leaves[2]
    found = torch.autograd.grad(seeded(call)(*leaves).square().sum(), leaves)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), leaves))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_recorded(samples, mode):
    """What is recorded computes other numbers."""

    def transform(call, tensors):
        def plain(*x):
            return call(*x)

        graph = make_fx(plain, tracing_mode=mode)(*tensors)
        return graph(*(x.sin() for x in tensors))

    everywhere(samples, transform, left="recorded")


def test_fake(samples):
    for tensors, options in samples[0]:
        expected = formula(*tensors, **options)
        with FakeTensorMode() as mode, sdpa() as calls:
            results = [call(*(mode.from_tensor(x) for x in tensors)) for call in doors(options)]
        for found in results:
            assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())
        assert_calls(calls, "fake")


def test_functionalized(samples):
    everywhere(samples, lambda call, tensors: torch.func.functionalize(call)(*tensors), left="functionalized")
