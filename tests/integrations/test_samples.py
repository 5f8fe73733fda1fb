"""PyTorch's own samples of scaled_dot_product_attention, through `compat` and through `sdpa`.

Every transform of every sample gives what the formula gives. `LEFT` names what `sdpa` leaves to PyTorch, and why.
"""

import subprocess
import sys

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
# Under `sdpa` a call is Limelight's, unless:
LEFT = {
    "compiled": "the call is recorded by torch.compile",
    "recorded": "the call is recorded by make_fx",
    "fake": "the call is recorded by FakeTensorMode",
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
    """The call by each door; the second gives its account too."""

    def direct(*tensors):
        torch.manual_seed(0)  # from which dropout draws its seed
        return compat.scaled_dot_product_attention(*tensors, **options)

    def routed(*tensors):
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(*tensors, **options)

    return direct, routed


def everywhere(samples, transform, left=None):
    """Each sample, transformed, by both doors, against the formula; whatever `sdpa` left had the reason ``left``."""
    for tensors, options in samples[0]:
        expected = transform(lambda *x, options=options: formula(*x, **options), tensors)
        direct, routed = doors(options)
        torch.testing.assert_close(transform(direct, tensors), expected)
        with sdpa() as told:
            found = transform(routed, tensors)
        torch.testing.assert_close(found, expected)
        if left is None:
            assert told.taken
            assert not told.left, str(told)
        else:
            assert not told.taken, str(told)
            assert all(LEFT[left] in why for why in told.left), str(told)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward(samples, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    for tensors, options in samples[0]:
        tensors = [x.to(dtype) for x in tensors]
        expected = formula(*(x.double() for x in tensors), **options)
        direct, routed = doors(options)
        with sdpa() as told:
            results = direct(*tensors), routed(*tensors)
        for found in results:
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        assert told.taken.total() == 1


def assert_dropped(call, tensors, options):
    """The call mixes values by half of the formula's weights, doubled."""
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
        with sdpa() as told:
            assert_dropped(routed, tensors, options)
        assert told.taken.total() == 2


def test_gradients(samples):
    """First and second, by differences of the values."""
    for tensors, options in [*samples[0], *samples[1]]:
        leaves = [x.clone().requires_grad_() for x in tensors]
        for call in doors(options):
            with sdpa() as told:
                assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
                assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)
            assert not told.left


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


def test_compiled(samples):
    def transform(call, tensors):
        torch.compiler.reset()
        leaves = [x.clone().requires_grad_() for x in tensors]
        output = torch.compile(call, backend="aot_eager")(*leaves)
        return output.detach(), torch.autograd.grad(output.square().sum(), leaves)

    everywhere((samples[0], []), transform, left="compiled")


def test_compiled_with_dropout(samples):
    for tensors, options in samples[1]:
        torch.compiler.reset()
        call = torch.compile(doors(options)[0], backend="aot_eager")
        leaves = [x.clone().requires_grad_() for x in tensors]
        assert_dropped(call, leaves, options)
        each = torch.eye(tensors[1].shape[-2], dtype=torch.float64).expand(*tensors[2].shape[:-1], -1)
        kept = (call(*tensors[:2], each) != 0).double()
        expected = (formula(*leaves[:2], each, **options) * kept * 2) @ leaves[2]
        found = torch.autograd.grad(call(*leaves).square().sum(), leaves)
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
        for call in doors(options):
            with FakeTensorMode() as mode, sdpa() as told:
                found = call(*(mode.from_tensor(x) for x in tensors))
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
            assert not told.taken
            assert all(LEFT["fake"] in why for why in told.left), str(told)


def test_functionalized(samples):
    everywhere(samples, lambda call, tensors: torch.func.functionalize(call)(*tensors))
