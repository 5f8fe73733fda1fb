"""Derivatives in linear memory: run by run they are the whole, of every order; those of the kernels are right."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import examples, sizes
from test_promises import (  # noqa: F401 (they hold run by run, too)
    test_a_gradient_reaches_only_what_its_row_saw,
    test_a_query_that_sees_nothing,
    test_a_seen_nan_spoils_exactly_the_rows_that_see_it,
    test_an_unseen_score_that_is_nan_passes_no_gradient_through_a_rule,
    test_merge_is_the_union_of_disjoint_keys,
    test_what_is_not_seen_changes_no_bit,
)
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
    Predicate,
    RelativeBias,
    SoftCap,
    T5Buckets,
    Window,
)
from limelight.backends import native
from limelight.backends.contract import NOTHING
from limelight.operator import derivatives
from limelight.operator.derivatives import chunks

SMALL = sizes(lengths=st.integers(0, 9), widths=st.integers(1, 5))
EPS = torch.finfo(torch.float32).eps
needs_native = pytest.mark.skipif(not native.available(), reason=native.why_missing())


@pytest.fixture(autouse=True)
def short_runs(monkeypatch):
    """Runs of a few queries; the definition, too, is differentiated run by run, however small the call."""
    monkeypatch.setattr(derivatives, "MAX_WHOLE_BYTES", -1)
    monkeypatch.setattr(chunks, "MAX_CHUNK_BYTES", 300)
    monkeypatch.setattr(chunks, "FEW_SCORES", 4)


@pytest.fixture
def whole(monkeypatch):
    """A function of a backend's name, with the definition as a whole: PyTorch's own derivatives."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(derivatives, "MAX_WHOLE_BYTES", 2**40)
            return function("reference")

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
        patch.setattr(derivatives, "MAX_WHOLE_BYTES", 2**40)
        truth, expected = gradients(example, "reference", torch.float64)
    for a, b in zip((*values, *found), (*truth, *expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@needs_native
@given(examples(SMALL, dtype=torch.float32))
def test_gradients_of_the_native_kernels(example):
    """At most 1.5 times the error of the plain float32 computation, and a few rounding steps of the largest score."""
    _, ours = gradients(example, "native", torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivatives, "MAX_WHOLE_BYTES", 2**40)
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
        "pattern": Predicate(lambda at: (at.head + at.query_index + at.key_index) % 3 > 0),
        "scores": (
            ALiBi(torch.rand(1, 4, dtype=torch.float64)),
            Bias(torch.randn(4, 5, 6, dtype=torch.float64)),
            SoftCap(2.0),
            RelativeBias(torch.randn(4, 8, dtype=torch.float64), T5Buckets(8, 6)),
        ),
    },
    "packed and dropout": {"layout": Packed((2, 3), (4, 2)), "dropout": 0.3, "seed": 5},
    "additive": {"compare": Additive(torch.randn(4, 3, dtype=torch.float64))},
    "mask": {"pattern": Explicit(torch.rand(1, 1, 5, 6) < 0.6)},
}
forms = pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)


def tensors() -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(*shape, dtype=torch.float64) for shape in ((1, 4, 5, 3), (1, 2, 6, 3), (1, 2, 6, 2)))


def call(settings, backend=None):
    return lambda q, k, v: limelight.attention(q, k, v, backend=backend, **settings)


@forms
@pytest.mark.parametrize("backend", [None, "reference"])
def test_every_order(settings, backend):
    f, leaves = call(settings, backend), [t.requires_grad_() for t in tensors()]
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, leaves, check_fwd_over_rev=True, fast_mode=True)


@forms
def test_transforms_of_torch_func(settings, whole):
    primals, tangents = tensors(), tensors()

    def pushed(backend):
        return torch.func.jvp(call(settings, backend), primals, tangents)[1]

    def product(backend):
        loss = lambda *args: call(settings, backend)(*args).square().sum()  # noqa: E731
        return torch.func.jvp(torch.func.grad(loss, argnums=(0, 1, 2)), primals, tangents)[1]

    def third(backend):
        loss = lambda *args: call(settings, backend)(*args).square().sum()  # noqa: E731
        slopes = lambda *args: torch.func.jvp(torch.func.grad(loss, (0, 1)), args, tangents)[1]  # noqa: E731
        return torch.func.grad(lambda *args: sum(g.pow(3).sum() for g in slopes(*args)))(*primals)

    for derivative in (pushed, product, third):
        expected = whole(derivative)
        torch.testing.assert_close(derivative(None), expected)
        torch.testing.assert_close(derivative("reference"), expected)
    expected = whole(pushed)
    with forward_ad.dual_level():
        dual = call(settings)(*map(forward_ad.make_dual, primals, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected)


@given(examples(SMALL, dropout=False), st.data())
def test_everything_that_is_observed(example, data):
    s = example.sizes
    draw = lambda most, n: tuple(data.draw(st.lists(st.integers(0, most - 1), max_size=n))) if most else ()  # noqa: E731
    observe = Observe(
        logsumexp=True, max_score=True, max_weight=True, entropy=True, distance=True, received=True,
        top=data.draw(st.integers(1, 4)),
        features=torch.randn(s.Lk, 3, dtype=torch.float64),
        rows=draw(s.Lq, 4),
        pairs=tuple(zip(draw(s.Lq, 4), draw(s.Lk, 4), strict=False)),
        blocks=data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        heads=data.draw(st.none() | st.permutations(range(s.Hq)).map(tuple)),
    )  # fmt: skip
    see = lambda: limelight.attention(  # noqa: E731
        example.query, example.key, example.value, observe=observe, backend="reference", **example.settings
    )
    out, seen = see()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derivatives, "MAX_WHOLE_BYTES", 2**40)
        truth, expected = see()
    torch.testing.assert_close(out, truth, rtol=1e-10, atol=1e-11)
    assert seen.seen().keys() == expected.seen().keys()
    for name, value in expected.seen().items():
        torch.testing.assert_close(seen.seen()[name], value, rtol=1e-10, atol=1e-11)


@needs_native
def test_gradients_of_what_the_native_kernels_observe():
    """Heads, rows and pairs in any order; what is not smooth has no gradient."""
    see = Observe(
        logsumexp=True, entropy=True, rows=(3, 1, 3), pairs=((4, 2), (0, 5), (4, 0)), top=2, received=True, heads=(2, 0)
    )

    def f(dtype, backend):
        leaves = [t.detach().to(dtype).requires_grad_() for t in primals]
        _, seen = limelight.attention(*leaves, pattern=~Window(0, 0), observe=see, backend=backend)
        smooth = (seen.logsumexp, seen.entropy, seen.rows, seen.pairs)
        assert not any(t.requires_grad for t in (seen.top_weights, seen.top_keys, seen.received, seen.received_by))
        total = sum((t.double() * torch.arange(1.0, t.numel() + 1).reshape(t.shape)).sum() for t in smooth)
        return *smooth, *torch.autograd.grad(total, leaves[:2])

    primals = tensors()
    for ours, truth in zip(f(torch.float32, "native"), f(torch.float64, "reference"), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("name", FORMS)
def test_vmap(name):
    """Over the batch, with and without gradients, of the native kernels and of the definition."""
    f = call(FORMS[name], None if "compare" in FORMS[name] else "native")
    batched = [torch.stack([t.float() for t in ts], dim=1) for ts in zip(*(tensors() for _ in range(3)), strict=True)]
    in_dims = (1, 1, None)
    arguments = (batched[0], batched[1], batched[2][:, 0])
    out = torch.vmap(f, in_dims)(*arguments)
    slopes = torch.vmap(torch.func.grad(lambda *args: f(*args).square().sum(), (0, 1, 2)), in_dims)(*arguments)
    for n in range(3):
        leaves = [t.clone().requires_grad_() for t in (batched[0][:, n], batched[1][:, n], arguments[2])]
        alone = f(*leaves)
        torch.testing.assert_close(out[n], alone)
        for a, b in zip(slopes, torch.autograd.grad(alone.square().sum(), leaves), strict=True):
            torch.testing.assert_close(a[n], b, rtol=1e-4, atol=1e-4)


def test_vmap_over_masks_and_seeds():
    q, k, v = tensors()
    masks, seeds = torch.rand(3, 5, 6) < 0.7, torch.arange(3)
    f = lambda mask, seed: limelight.attention(q, k, v, pattern=Explicit(mask), dropout=0.5, seed=seed)  # noqa: E731
    for n, out in enumerate(torch.vmap(f)(masks, seeds)):
        torch.testing.assert_close(out, f(masks[n], seeds[n]))


def test_jacobians_and_hessians():
    q, k, v = (t[:1, :2, :2] for t in tensors())
    f = lambda q: limelight.attention(q, k[:, :1], v[:, :1], pattern=Causal())  # noqa: E731
    torch.testing.assert_close(torch.func.jacrev(f)(q), torch.func.jacfwd(f)(q))
    exact = torch.autograd.functional.hessian(lambda q: f(q).square().sum(), q)
    torch.testing.assert_close(torch.func.hessian(lambda q: f(q).square().sum())(q), exact)
    torch.testing.assert_close(exact.reshape(q.numel(), -1), exact.reshape(q.numel(), -1).mT)


def test_a_gradient_penalty_and_a_hessian_vector_product(whole):
    primals, tangents = tensors(), tensors()
    loss = lambda backend: lambda *args: call({"pattern": Causal()}, backend)(*args).square().sum()  # noqa: E731
    product = lambda backend: torch.autograd.functional.hvp(loss(backend), primals, tangents)[1]  # noqa: E731
    torch.testing.assert_close(product(None), whole(product))

    def penalty(backend):
        leaves = [t.requires_grad_() for t in primals]
        slopes = torch.autograd.grad(loss(backend)(*leaves), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in slopes), leaves)

    torch.testing.assert_close(penalty(None), whole(penalty))


@needs_native
def test_checkpointing_repeats_the_bits_of_dropout():
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(1, 2, 30, 8, requires_grad=True)

    def block(x):
        return limelight.attention(x, x, x, dropout=0.3, pattern=Causal(), name="block")

    torch.manual_seed(3)
    with limelight.watching(Observe(entropy=True, top=2)) as seen:
        out = checkpoint(block, x, use_reentrant=False)
        (kept,) = torch.autograd.grad(out.square().sum(), x)
    assert len(seen.calls("block")) == 1
    torch.manual_seed(3)
    again = block(x)
    assert torch.equal(again, out)
    assert torch.equal(torch.autograd.grad(again.square().sum(), x)[0], kept)


@needs_native
def test_a_changed_tensor_is_noticed():
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    bias = torch.zeros(5, 5)
    out = limelight.attention(x, x, x, scores=(Bias(bias),))
    bias.add_(1.0)
    with pytest.raises(RuntimeError, match="inplace"):
        out.sum().backward()


@needs_native
def test_tensors_live_in_the_graph_alone():
    """So that hooks, such as those of checkpointing, may take them away."""
    bias, x = torch.randn(5, 5, requires_grad=True), torch.randn(1, 2, 5, 4, requires_grad=True)
    out = limelight.attention(x, x, x, scores=(Bias(bias),), layout=Packed((2, 3)), dropout=0.1)
    function = out.grad_fn.function
    assert function.pending is None
    held = [*vars(function).values(), *vars(function.template).values()]
    assert all(tensor is NOTHING for tensor in held if isinstance(tensor, torch.Tensor))
    assert function.template.tensors == function.template.operands == ()


SCRIPT = """
import resource, torch, limelight
torch.set_num_threads(1)
q, k, v = (torch.randn(1, 1, 8192, 64).requires_grad_() for _ in range(3))
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = limelight.attention(q, k, v, pattern=limelight.Causal(), backend=BACKEND)
out.backward(out.detach())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)
"""


@pytest.mark.parametrize("backend", [None, "reference"])
def test_memory_is_linear(backend):
    """The scores alone would be 256 MiB; inputs, outputs and gradients are 14."""
    pytest.importorskip("resource")
    script = SCRIPT.replace("BACKEND", repr(backend))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100, "MiB"


@pytest.mark.parametrize("both", [True, False])
def test_the_common_call_has_every_derivative(both):
    """A call with no tensors but query, key and value goes a short way; what comes out is what the long way gives."""
    query, key, value = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    observe = limelight.Observe(logsumexp=True) if both else None

    def found(*tensors):
        result = limelight.attention(*tensors, pattern=limelight.Causal(), observe=observe)
        return (result[0], result[1].logsumexp) if both else result

    assert torch.autograd.gradcheck(found, (query, key, value))
    assert torch.autograd.gradgradcheck(found, (query, key, value))
    alone = torch.autograd.grad(limelight.attention(query, key, value).sum(), key)
    together = torch.autograd.grad(limelight.attention(query, key, value).sum(), (query, key, value))
    assert torch.equal(alone[0], together[1])
