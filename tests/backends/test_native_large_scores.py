"""Every finite score gives what the definition gives: the softmax of the same scores in float64.

The queries are 0, so that a score is its bias, exactly, whatever the order of sums.
"""

import pytest
import torch
from support import kernels
from support.kernels import every_kernel, selected

import limelight
from limelight import ALiBi, Bias, Causal, Observe, RelativeBias, SoftCap, T5Buckets
from limelight.backends import native, reference

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

LARGE = (1e4, 1e10, 1e30)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def biases(size: float, Lq: int, Lk: int, dtype: torch.dtype):
    """(Lq, Lk) finite scores by name: all that padding, masks and raised keys do."""
    generator = torch.Generator().manual_seed(3)
    ordinary = torch.randn(Lq, Lk, generator=generator, dtype=torch.float64).to(dtype)
    for name, first in (("one key", 1), ("a block", 128), ("a chunk", 600), ("nearly everything", Lk - 30)):
        for sign in (-1, 1):
            bias = ordinary.clone()
            bias[:, :first] = sign * size
            yield f"{name} at {sign * size:g}", bias
    bias = ordinary.clone()
    bias[::2] = -size
    yield f"whole rows at {-size:g}", bias
    yield f"everything at {size:g}", torch.full_like(ordinary, size)
    yield f"every key further by {size:g}", -size * torch.linspace(0, 1, Lk, dtype=dtype).expand(Lq, Lk)
    bias = ordinary.clone()
    bias[:, -3:] = torch.tensor([size, size * (1 + 4 * torch.finfo(dtype).eps), size], dtype=dtype)
    yield f"neighbours of {size:g}", bias


def defined(bias, value, grad, key, sink=None):
    """Output, logsumexp and gradients in float64, from the definition."""
    bias, value, grad, key = (x.double() for x in (bias, value, grad, key))
    most = bias.amax(-1, keepdim=True)
    if sink is not None:
        most = most.clamp_min(sink)
    parts = torch.exp(bias - most)
    aside = torch.zeros_like(most) if sink is None else torch.exp(sink - most)
    total = parts.sum(-1, keepdim=True) + aside
    weights = parts / total
    output = weights @ value
    slopes = weights * (grad @ value.mT - (grad * output).sum(-1, keepdim=True))
    logsumexp = (most + total.log())[..., 0]
    return {
        "output": output,
        "logsumexp": logsumexp,
        "bias": slopes,
        "query": slopes @ key,
        "value": weights.mT @ grad,
        "sink": (aside / total)[..., 0],
    }


def near(ours, expected, dtype, what, terms=1.0):
    """``terms``: the size of what a sum is of, where it may cancel."""
    bound = TOLERANCE[dtype] * expected.abs().max().clamp_min(terms)
    assert ((ours.double() - expected).abs() <= bound).all(), what


@every_kernel
@pytest.mark.parametrize("size", [*LARGE, "largest"])
@pytest.mark.parametrize("Lq", [2, 70])
def test_forward_and_backward(kernel, size, Lq):
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, 1, 700, 12, generator=generator).to(dtype) for _ in range(2))
    grad = torch.randn(1, 1, Lq, 12, generator=generator).to(dtype)
    size = torch.finfo(sums).max / 2 if size == "largest" else size
    for name, bias in biases(size, Lq, 700, sums):
        leaves = [
            torch.zeros(1, 1, Lq, 12, dtype=dtype).requires_grad_(),
            value.clone().requires_grad_(),
            bias.clone().requires_grad_(),
        ]
        with selected(isa):
            query, values, biased = leaves
            output, seen = limelight.attention(
                query, key, values, scores=(Bias(biased),), scale=1.0, backend="native", observe=Observe(logsumexp=True)
            )
            found = dict(zip(("query", "value", "bias"), torch.autograd.grad(output, leaves, grad), strict=True))
        expected = defined(bias, value[0, 0], grad[0, 0], key[0, 0])
        near(output[0, 0], expected["output"], dtype, f"{name}: output")
        assert torch.allclose(seen.logsumexp[0, 0].double(), expected["logsumexp"], rtol=3e-7, atol=1e-6), name
        for what, gradient in found.items():
            near(gradient.reshape(expected[what].shape), expected[what], dtype, f"{name}: gradient of {what}", 20.0)


@every_kernel
def test_the_largest_numbers_of_the_dtype(kernel):
    """finfo.min masks a key; a row of it alone is an even average; twice added it is -inf, and nothing is seen."""
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    low = torch.finfo(sums).min
    value = torch.randn(1, 1, 300, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    for Lq in (1, 50):
        query = torch.zeros(1, 1, Lq, 8, dtype=dtype)
        bias = torch.zeros(Lq, 300, dtype=sums)
        bias[:, :200] = low
        bias[-1] = low
        with selected(isa):
            output = limelight.attention(query, value, value, scores=(Bias(bias),), backend="native")
            nothing = limelight.attention(query, value, value, scores=(Bias(bias), Bias(bias)), backend="native")
        for row, first in ((0, 200 if Lq > 1 else 0), (-1, 0)):
            near(output[0, 0, row], value[0, 0, first:].double().mean(0), dtype, f"row {row}")
        assert not nothing[0, 0, -1].any()


@every_kernel
@pytest.mark.parametrize("size", [1e10, 1e30])
def test_observations(kernel, size):
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    value = torch.randn(1, 1, 600, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    for Lq in (3, 60):
        bias = torch.zeros(Lq, 600, dtype=sums)
        bias[:, :550] = -size
        bias[1] = -size  # evenly, over 600 keys
        bias[2, 7] = size
        with selected(isa):
            _, seen = limelight.attention(
                torch.zeros(1, 1, Lq, 8, dtype=dtype), value, value, scores=(Bias(bias),), backend="native",
                observe=Observe(entropy=True, max_weight=True, max_score=True, received=True, rows=[0, 1, 2], top=2),
            )  # fmt: skip
        entropy = torch.tensor([50.0, 600.0, 1.0], dtype=torch.float64).log()
        assert torch.allclose(seen.entropy[0, 0, :3].double(), entropy, atol=1e-5)
        assert torch.allclose(seen.max_weight[0, 0, :3].double(), torch.exp(-entropy), rtol=1e-5)
        assert torch.equal(seen.max_score[0, 0, :3], torch.tensor([0.0, -size, size], dtype=sums))
        assert seen.top_keys[0, 0, :3].tolist() == [[550, 551], [0, 1], [7, 0]]
        assert torch.allclose(seen.rows[0, 0].sum(-1), torch.ones(3, dtype=sums), rtol=1e-5)
        assert torch.allclose(seen.received.sum().double(), torch.tensor(float(Lq), dtype=torch.float64), rtol=1e-5)


@every_kernel
@pytest.mark.parametrize("size", [-1e30, -1e10, -200.0, 200.0, 1e4, 1e10, 1e30])
def test_a_large_sink(kernel, size):
    """With its gradient: minus its weight times dO . O."""
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, 1, 200, 8, generator=generator).to(dtype) for _ in range(2))
    for Lq, level in ((2, 0.0), (60, 0.0), (2, size), (60, size)):
        bias = torch.randn(Lq, 200, generator=generator, dtype=torch.float64).to(sums) if level == 0 else None
        bias = torch.full((Lq, 200), level, dtype=sums) if bias is None else bias
        grad = torch.randn(1, 1, Lq, 8, generator=generator).to(dtype)
        sink = torch.full((1,), size, dtype=sums).requires_grad_()
        with selected(isa):
            output, seen = limelight.attention(
                torch.zeros(1, 1, Lq, 8, dtype=dtype), key, value, scores=(Bias(bias),), sink=sink, backend="native",
                observe=Observe(logsumexp=True, entropy=True),
            )  # fmt: skip
            (found,) = torch.autograd.grad(output, sink, grad)
        exactly = sink.item()
        expected = defined(bias, value[0, 0], grad[0, 0], key[0, 0], exactly)
        near(output[0, 0], expected["output"], dtype, "output")
        assert torch.allclose(seen.logsumexp[0, 0].double(), expected["logsumexp"], rtol=3e-7, atol=1e-6)
        assert seen.entropy.isfinite().all()
        along = (grad[0, 0].double() * output[0, 0].detach().double()).sum(-1)
        near(found, -(expected["sink"] * along).sum(), dtype, "gradient", 20.0)


@every_kernel
@pytest.mark.parametrize("power", [30, 60])
@pytest.mark.parametrize("Lq", [1, 70])
def test_large_operands(kernel, power, Lq):
    """Integers times a power of two: products are exact, the largest scores tie or stand apart."""
    isa, dtype = kernel
    if dtype == torch.float16:
        power = 12  # its largest number is 65504
    generator = torch.Generator().manual_seed(1)
    query = torch.randint(-2, 3, (1, 2, Lq, 16), generator=generator).to(dtype) * 2.0**power
    key = torch.randint(-2, 3, (1, 1, 700, 16), generator=generator).to(dtype)
    key = key if dtype == torch.float16 else key * 2.0**power
    value = torch.randn(1, 1, 700, 16, generator=generator).to(dtype)
    truth = query.double() @ key.double().mT
    for settings in ({}, {"scores": (SoftCap(2.0),)}, {"scale": -1.0}, {"scale": 2.0**-120}):
        if settings.get("scale") == 2.0**-120 and power != 60:
            continue
        scale = settings.get("scale", 0.25)
        scores = truth * scale
        if "scores" in settings:
            scores = 2.0 * torch.tanh(scores / 2.0)
        expected = torch.softmax(scores, -1) @ value.double()
        with selected(isa):
            output = limelight.attention(query, key, value, backend="native", **{"scale": 0.25, **settings})
        near(output, expected, dtype, repr(settings))


@every_kernel
def test_a_scale_that_is_tiny(kernel):
    """Differences of scores beyond the largest number, brought back by the scale."""
    isa, dtype = kernel
    if dtype == torch.float16:
        return  # its products stay far below
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 1, 4, 1)
    query, key = torch.full((1, 1, 3, 1), 2.0**63).to(dtype), (sign * 2.0**64).to(dtype)
    value = torch.arange(8.0).reshape(1, 1, 4, 2).to(dtype)
    with selected(isa):
        output = limelight.attention(query, key, value, scale=2.0**-127, backend="native")
    expected = torch.softmax(sign.double().mT, -1) @ value.double()
    near(output, expected.expand(1, 1, 3, 2), dtype, "output")


@every_kernel
@pytest.mark.parametrize("with_rule", [False, True])
@pytest.mark.parametrize("Lq", [3, 70])
@pytest.mark.parametrize("scale", [1e-60, -1e-60, 1e-45, 1e-40])
def test_a_scale_that_float32_cannot_hold(kernel, scale, Lq, with_rule):
    """Products beyond the largest number times a scale below the smallest: ordinary scores, forward and backward."""
    isa, dtype = kernel
    if dtype == torch.float16:
        return  # its products stay far below
    sums = reference.accumulator(dtype)
    generator = torch.Generator().manual_seed(1)
    query, key, value, grad = (torch.randn(1, 1, n, 16, generator=generator) for n in (Lq, 90, 90, Lq))
    query, key = (query.double() * 1e30).to(dtype), (key.double() / (abs(scale) * 1e30)).to(dtype)
    leaves = [x.requires_grad_() for x in (query, key, value.to(dtype))]
    bias = torch.randn(Lq, 90, generator=generator).to(sums)
    rules = (Bias(bias),) if with_rule else ()
    with selected(isa):
        output = limelight.attention(*leaves, scores=rules, scale=scale, backend="native")
        found = torch.autograd.grad(output, leaves, grad.to(dtype))
    wide = [x.detach().double().requires_grad_() for x in leaves]
    scores = wide[0] @ wide[1].mT * scale + (bias.double() if with_rule else 0.0)
    truth = torch.softmax(scores, -1) @ wide[2]
    near(output, truth, dtype, "output", terms=10.0)
    for ours, expected in zip(found, torch.autograd.grad(truth, wide, grad.to(dtype).double()), strict=True):
        near(ours, expected, dtype, "gradient", terms=10 * expected.abs().max().item())


@every_kernel
@pytest.mark.parametrize("pattern", [None, Causal()])
@pytest.mark.parametrize("L", [12, 150])
def test_a_weight_of_one_has_no_gradient(kernel, L, pattern):
    """dS = P (dP - sum of P dP) is exactly 0 where P is 1: nothing else could be multiplied by queries so large."""
    isa, dtype = kernel
    size = 2.0**12 if dtype == torch.float16 else 2.0**33  # its largest number is 65504
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randint(-9, 10, (1, 2, L, 16), generator=generator).to(dtype) for _ in range(2))
    value, grad = (torch.randn(1, 2, L, 16, generator=generator).to(dtype) for _ in range(2))
    leaves = [x.requires_grad_() for x in (query * size, key, value)]
    scores = query.double() @ key.double().mT
    if pattern is not None:
        scores = scores.masked_fill(~torch.ones(L, L, dtype=torch.bool).tril(), -torch.inf)
    first, second = scores.topk(2).values.unbind(-1)
    alone = first - second > 0.5  # rows that one key has: an integer apart, times `size`
    assert alone.float().mean() > 0.5
    grad = torch.where(alone[..., None], grad, 0)
    with selected(isa):
        output = limelight.attention(*leaves, pattern=pattern, scale=1.0, backend="native")
        of_query, of_key, of_value = torch.autograd.grad(output, leaves, grad)
    assert not of_query.any()
    assert not of_key.any()
    chosen = torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
    near(of_value, chosen.mT @ grad.double(), dtype, "gradient of value", 20.0)


@every_kernel
@pytest.mark.parametrize("slope", [1e10, 1e30])
def test_rules_that_grow_with_the_distance(kernel, slope):
    """The nearest key alone is left, forward and backward."""
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    generator = torch.Generator().manual_seed(1)
    query, key, value, grad = (torch.randn(1, 1, 200, 16, generator=generator).to(dtype) for _ in range(4))
    table = torch.full((1, 32), -slope, dtype=sums)
    table[:, 0] = 0
    for rule in (ALiBi(torch.tensor([slope], dtype=sums)), RelativeBias(table, T5Buckets(32, 128))):
        values = value.clone().requires_grad_()
        with selected(isa):
            output = limelight.attention(query, key, values, pattern=Causal(), scores=(rule,), backend="native")
            (found,) = torch.autograd.grad(output, values, grad)
        assert torch.equal(output, value)
        assert torch.equal(found, grad)


@every_kernel
def test_a_row_does_not_know_of_large_ones_beside_it(kernel):
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    generator = torch.Generator().manual_seed(1)
    query, key, grad = (torch.randn(1, 1, 60, 16, generator=generator).to(dtype) for _ in range(3))
    plain = torch.zeros(60, 60, dtype=sums)
    lifted = plain.clone()
    lifted[10] = -1e20
    lifted[11, 3] = 1e20
    others = [i for i in range(60) if i not in (10, 11)]
    found = []
    for bias in (plain, lifted):
        leaf = query.clone().requires_grad_()
        with selected(isa):
            output = limelight.attention(leaf, key, key, scores=(Bias(bias),), backend="native")
            found.append((output.detach(), *torch.autograd.grad(output, leaf, grad)))
    for before, after in zip(*found, strict=True):
        assert kernels.same_bits(before[:, :, others], after[:, :, others])
