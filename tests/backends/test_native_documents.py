"""A document has the same bits alone and anywhere in a batch, forward and backward."""

import pytest
import torch
from support.kernels import every_kernel, selected, threads

import limelight
from limelight import ALiBi, Causal, KeyMask, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends import native

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

LENGTHS = (37, 90, 5, 260, 333, 64)  # first keys odd and even, at other places in 32 keys
PATTERNS = (None, Causal(), Causal() & Window(40, 0), Causal() & (Window(70, 0) | Keys(4)))


def computed(query, key, value, **how):
    """Output, logsumexp and gradients."""
    query, key, value = (x.clone().requires_grad_() for x in (query, key, value))
    output, seen = limelight.attention(query, key, value, observe=Observe(logsumexp=True), backend="native", **how)
    grads = torch.autograd.grad(output.float().square().sum(), (query, key, value))
    return {"output": output, "logsumexp": seen.logsumexp} | dict(zip("qkv", grads, strict=True))


def differences(alone, whole, place):
    """The results whose bits differ from those at a place of the whole."""
    row, tokens = place
    return [name for name, x in alone.items() if not torch.equal(x[0], whole[name][row, :, tokens])]


@every_kernel
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_packed(kernel, pattern):
    isa, dtype = kernel
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, sum(LENGTHS), 72, generator=generator).to(dtype)
    key, value = torch.randn(2, 1, 2, sum(LENGTHS), 72, generator=generator).to(dtype)
    how = {"pattern": pattern, "scores": (SoftCap(9.0), ALiBi.standard(4))}
    with selected(isa):
        with threads(3):
            whole = computed(query, key, value, layout=Packed(LENGTHS), **how)
        first = 0
        for n, length in enumerate(LENGTHS):
            tokens = slice(first, first + length)
            alone = computed(query[:, :, tokens], key[:, :, tokens], value[:, :, tokens], **how)
            assert not differences(alone, whole, (0, tokens)), f"text {n}"
            first += length


@every_kernel
@pytest.mark.parametrize("left", [False, True])
def test_rows_that_begin_anywhere(kernel, left):
    """Rows padded on the left, or rows whose first keys a mask hides, beside a row that is whole."""
    isa, dtype = kernel
    first, length = torch.tensor([0, 7, 40]), 300
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(3, 4, length, 64, generator=generator).to(dtype)
    key, value = torch.randn(2, 3, 2, length, 64, generator=generator).to(dtype)
    padded = Padded(length - first, side="left") if left else KeyMask(torch.arange(length) >= first[:, None])
    with selected(isa):
        whole = computed(query, key, value, layout=padded)
        for row, begin in enumerate(first.tolist()):
            one = slice(row, row + 1)
            queries = slice(begin if left else 0, None)
            alone = computed(query[one, :, queries], key[one, :, begin:], value[one, :, begin:])
            keys = {name: alone.pop(name) for name in ("k", "v")}
            assert not differences(alone, whole, (row, queries)), f"row {row}"
            assert not differences(keys, whole, (row, slice(begin, None))), f"row {row}"
