"""The forward pass of the native kernels in every element type, on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import kernels
from support.accuracy import check_close, check_logsumexp, steps
from support.kernels import every_dtype, every_kernel, same_bits, selected
from support.oracles.plain import rounded

import limelight
from limelight import ALiBi, Causal, Keys, Observe, Packed, SoftCap, Window
from limelight.backends import native, reference
from limelight.backends.contract import BackendError

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

some = settings(max_examples=settings.default.max_examples // 4)


def run(example, how, **observed):
    """Output and observations, as `kernels.gradients` computes a call."""
    dtype, call = example.query.dtype, example
    if how == "truth":
        dtype = example.truth
        call = kernels.with_tensors(example, {n: t.to(dtype) for n, t in kernels.tensors_of(example).items()})
    backend = "native" if how == "native" else "reference"
    with torch.no_grad(), rounded(dtype):
        return limelight.attention(
            call.query, call.key, call.value, backend=backend, observe=Observe(**observed), **call.settings
        )


@every_kernel
@some
@given(data=st.data())
def test_equals_the_definition(kernel, data):
    isa, dtype = kernel
    example = data.draw(kernels.calls(dtype))
    with selected(isa):
        ours, seen = run(example, "native", logsumexp=True)
    plain, plain_seen = run(example, "plain", logsumexp=True)
    truth, truth_seen = run(example, "truth", logsumexp=True)
    assert ours.dtype == dtype
    assert seen.logsumexp.dtype == reference.accumulator(dtype)
    positive = kernels.with_tensors(example, kernels.tensors_of(example) | {"value": example.value.abs()})
    size = run(positive, "truth")[0].nan_to_num(0, 0, 0)
    slack = steps(example)
    check_close(ours, plain, truth, "output", slack, size.max().item() if size.numel() else 0.0, dtype)
    check_logsumexp(example, seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, slack)


@every_kernel
@pytest.mark.parametrize("D", [64, 128])
def test_as_exact_as_the_plain_computation(kernel, D):
    """One rounding step and no more, where there are numbers enough for the plain computation to show its error."""
    isa, dtype = kernel
    q, k, v = (x.to(dtype) for x in torch.randn(3, 1, 2, 400, D, generator=torch.Generator().manual_seed(1)))
    rules = (SoftCap(20.0), ALiBi(torch.tensor([0.5, 0.01])))
    for asked in ({}, {"pattern": Causal(), "scores": rules}):

        def call(t, backend, asked=asked):
            return limelight.attention(q.to(t), k.to(t), v.to(t), backend=backend, **asked)

        with selected(isa):
            ours = call(dtype, "native")
        with rounded(dtype):
            plain = call(dtype, "reference")
        check_close(ours, plain, call(torch.float64, "reference"), repr(asked), dtype=dtype)


@every_kernel
def test_many_weights_that_are_alike(kernel):
    """Beside a weight of 1, each of many small ones is rounded alike, so that one long sum of them would be off."""
    isa, dtype = kernel
    generator = torch.Generator().manual_seed(2)
    shares = torch.linspace(0.005, 0.02, 48, dtype=torch.float64)  # of a small weight
    q = shares.log().to(dtype)[None, None, :, None]
    k = torch.ones(1, 1, 128, 1, dtype=dtype)
    k[:, :, 0] = 0
    v = torch.randn(1, 1, 128, 16, generator=generator).to(dtype)
    v[:, :, 0] = 3

    def call(t, backend):
        with torch.no_grad(), rounded(t):
            return limelight.attention(
                q.to(t), k.to(t), v.to(t), scale=1.0, backend=backend, observe=Observe(logsumexp=True)
            )

    with selected(isa):
        ours, seen = call(dtype, "native")
    (plain, plain_seen), (truth, truth_seen) = call(dtype, "reference"), call(torch.float64, "reference")
    check_close(ours, plain, truth, "output", dtype=dtype)
    sums = reference.accumulator(dtype)
    check_close(seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, "logsumexp", dtype=sums)


@every_kernel
@some
@given(data=st.data())
def test_same_bits_whatever_the_threads(kernel, data):
    isa, dtype = kernel
    example = data.draw(kernels.calls(dtype))
    with selected(isa):
        found = []
        for count in (1, 2, 3, 5, 1):
            with kernels.threads(count):
                out, seen = run(example, "native", logsumexp=True, entropy=True, received=True, top=2)
                found.append((out, *seen.seen().values()))
    for again in found[1:]:
        assert all(map(same_bits, found[0], again))


@every_kernel
def test_a_row_of_the_batch_does_not_know_the_others(kernel):
    isa, dtype = kernel
    q, k, v = (x.to(dtype) for x in torch.randn(3, 5, 2, 130, 40, generator=torch.Generator().manual_seed(2)))
    with selected(isa):
        for settings in ({}, {"pattern": Causal()}, {"pattern": Causal() & (Window(20, 0) | Keys(3))}):
            whole = limelight.attention(q, k, v, backend="native", **settings)
            for b in (0, 3):
                one = limelight.attention(*(x[b : b + 1] for x in (q, k, v)), backend="native", **settings)
                assert same_bits(whole[b : b + 1], one)
            pair = limelight.attention(*(x[1:4] for x in (q, k, v)), backend="native", **settings)
            assert same_bits(whole[1:4], pair)


@every_dtype
def test_every_number_survives_its_element(dtype):
    """One key: the output is its value, whatever number that is: largest, infinite, subnormal or not a number."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    words = torch.arange(2**16) << (8 * dtype.itemsize - 16)  # every number of two bytes, or its leading ones
    value = words.to(whole).view(dtype).reshape(1, -1, 1, 32)  # (1, H, 1, 32): every head has one key
    key = torch.zeros(1, value.shape[1], 1, 8, dtype=dtype)
    for isa in kernels.AVAILABLE:
        if (isa, dtype) not in kernels.KERNELS:
            continue
        for queries in (1, 17):  # few and many take different ways
            expected = value
            # Products of pairs take subnormal numbers as zeros. On matrix registers few queries are widened instead.
            if isa == "avx512bf16" or (queries > 16 and isa == "amx"):
                expected = torch.where(value.abs() < torch.finfo(dtype).tiny, 0.0, value)
            with selected(isa):
                found = limelight.attention(key.expand(-1, -1, queries, -1), key, value, backend="native")
            assert same_bits(found, expected.expand_as(found)), (isa, queries)


@every_dtype
def test_many_documents(dtype):
    lengths = tuple((7 * n) % 13 for n in range(150))
    q, k, v = torch.randn(3, 2, 2, sum(lengths), 8, generator=torch.Generator().manual_seed(3)).to(dtype)
    settings = {"layout": Packed(lengths), "pattern": Causal(), "scores": (ALiBi(torch.ones(2)), SoftCap(5.0))}
    settings |= {"dropout": 0.3, "seed": 5}
    ours = limelight.attention(q, k, v, backend="native", **settings)
    with rounded(dtype):
        plain = limelight.attention(q, k, v, backend="reference", **settings)
    truth = limelight.attention(*(x.double() for x in (q, k, v)), backend="reference", **settings)
    check_close(ours, plain, truth, "documents", slack=8, dtype=dtype)


def test_a_kernel_that_is_not_there_says_so():
    q = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    with selected("wide"), pytest.raises(BackendError, match=r"wide.*no kernels"):
        limelight.attention(q, q, q, backend="native")
