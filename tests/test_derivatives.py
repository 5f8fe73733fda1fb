"""Derivatives in linear memory: run by run they are the whole, of every order; those of the kernels are right."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, sizes
from torch.autograd import forward_ad

import limelight
from limelight import (
    Additive,
    ALiBi,
    Bias,
    Causal,
    Explicit,
    Keys,
    Observe,
    Packed,
    RelativeBias,
    Rule,
    SoftCap,
    T5Buckets,
    Window,
    derivatives,
)
from limelight.backends import native

SMALL = sizes(lengths=st.integers(0, 9), widths=st.integers(1, 5))
EPS = torch.finfo(torch.float32).eps
needs_native = pytest.mark.skipif(native._library is None, reason=native._missing)


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """Runs of a few queries; the definition, too, is differentiated run by run, however small the call."""
    monkeypatch.setattr(derivatives, "MOST_SCORES", 200)
    monkeypatch.setattr(derivatives, "FEW_SCORES", 4)


@pytest.fixture
def whole(monkeypatch):
    """A function computed on the definition as a whole, by PyTorch's own derivatives."""

    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(derivatives, "MOST_SCORES", 2**40)
            return function(*args)

    return run


def gradients(example, backend, dtype, upstream=None):
    """Output, logsumexp, entropy, and the gradients of a weighting of them, of every operand."""
    leaves = [getattr(example, n).detach().to(dtype).requires_grad_() for n in ("query", "key", "value")]
    settings, rules = dict(example.settings), []
    for rule in settings["scores"]:
        tensors = [t.detach().to(dtype).clone().requires_grad_() for t in rule.tensors()]
        leaves += tensors
        rules.append(rule.with_tensors(iter(tensors)))
    settings["scores"] = tuple(rules)
    if settings.get("sink") is not None:
        settings["sink"] = settings["sink"].detach().to(dtype).clone().requires_grad_()
        leaves.append(settings["sink"])
    see = Observe(logsumexp=True, entropy=True, rows=tuple(range(0, example.sizes.Lq, 2))[::-1])
    out, seen = limelight.attention(*leaves[:3], observe=see, backend=backend, **settings)
    finite = torch.isfinite(seen.logsumexp)  # that of a row that sees nothing is -inf for ever
    values = (out, seen.logsumexp[finite], seen.entropy, seen.rows)
    generator = torch.Generator().manual_seed(0)
    total = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)).sum() for x in values)
    return values, torch.autograd.grad(total, leaves)


@given(examples(SMALL))
def test_run_by_run_is_the_whole(example):
    values, found = gradients(example, "reference", torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivatives, "MOST_SCORES", 2**40)
        truth, expected = gradients(example, "reference", torch.float64)
    for a, b in zip((*values, *found), (*truth, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@needs_native
@given(examples(SMALL, dtype=torch.float32))
def test_gradients_of_the_native_kernels(example):
    """At most 1.5 times the error of the plain float32 computation, and a few rounding steps of the largest score."""
    _, ours = gradients(example, "native", torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivatives, "MOST_SCORES", 2**40)
        _, plain = gradients(example, "reference", torch.float32)
        _, truth = gradients(example, "reference", torch.float64)
    group = example.sizes.Hq // example.sizes.Hkv
    terms = example.query.double().abs() @ example.key.double().abs().repeat_interleave(group, 1).mT
    slack = 4 + (terms.max().item() if terms.numel() else 0.0) * (example.settings["scale"] or example.sizes.D**-0.5)
    for a, b, exact in zip(ours, plain, truth, strict=True):
        if exact.numel():
            step = slack * EPS * max(1.0, exact.abs().max().item())
            assert (a - exact).abs().max() <= 1.5 * (b - exact).abs().max() + step


FORMS = {
    "causal": {"pattern": Causal()},
    "window and sink": {"pattern": Causal() & (Window(2, 0) | Keys(1)), "sink": torch.randn(4, dtype=torch.float64)},
    "rules": {
        "pattern": Rule(lambda at: (at.head + at.query_index + at.key_index) % 3 > 0),
        "scores": (
            ALiBi(torch.rand(2, 4, dtype=torch.float64)),
            Bias(torch.randn(4, 5, 6, dtype=torch.float64)),
            SoftCap(2.0),
            RelativeBias(torch.randn(4, 8, dtype=torch.float64), T5Buckets(8, 6)),
        ),
    },
    "packed and dropout": {"layout": Packed((2, 3), (4, 2)), "dropout": 0.3, "seed": 5},
    "additive": {"compare": Additive(torch.randn(4, 3, dtype=torch.float64))},
    "mask": {"pattern": Explicit(torch.rand(2, 1, 5, 6) < 0.6)},
}
forms = pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)


def tensors() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(*shape, dtype=torch.float64) for shape in ((2, 4, 5, 3), (2, 2, 6, 3), (2, 2, 6, 2)))


def call(settings):
    return lambda q, k, v: limelight.attention(q, k, v, **settings)


@forms
def test_every_order(settings):
    leaves = [t.requires_grad_() for t in tensors()]
    check = {"fast_mode": True, "check_batched_grad": False}
    assert torch.autograd.gradcheck(call(settings), leaves, check_forward_ad=True, **check)
    assert torch.autograd.gradgradcheck(call(settings), leaves, check_fwd_over_rev=True, **check)


@forms
def test_transforms_of_torch_func(settings, whole):
    f, primals, tangents = call(settings), tensors(), tensors()
    pushed = lambda: torch.func.jvp(f, primals, tangents)[1]  # noqa: E731
    tangent = whole(pushed)
    torch.testing.assert_close(pushed(), tangent)
    loss = lambda *args: f(*args).square().sum()  # noqa: E731
    product = lambda: torch.func.jvp(torch.func.grad(loss, argnums=(0, 1, 2)), primals, tangents)[1]  # noqa: E731
    torch.testing.assert_close(product(), whole(product))
    third = lambda: torch.func.grad(  # noqa: E731
        lambda *args: sum(g.pow(3).sum() for g in torch.func.jvp(torch.func.grad(loss, (0, 1)), args, tangents)[1])
    )(*primals)
    torch.testing.assert_close(third(), whole(third))
    with forward_ad.dual_level():
        dual = f(*map(forward_ad.make_dual, primals, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)
