"""Every transform of PyTorch is either right or an error; none gives zeros in silence."""

import pytest
import torch
from torch.autograd import forward_ad

import limelight
from limelight import (
    Additive,
    ALiBi,
    Bias,
    Causal,
    KeyMask,
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
from limelight.forms import descriptions

FORMS = {
    "causal": {"pattern": Causal()},
    "window and sink": {"pattern": Causal() & (Window(2, 0) | Keys(1)), "sink": torch.randn(4, dtype=torch.float64)},
    "rules": {
        "scores": (
            ALiBi(torch.rand(4, dtype=torch.float64)),
            Bias(torch.randn(4, 5, 6, dtype=torch.float64)),
            SoftCap(2.0),
            RelativeBias(torch.randn(4, 8, dtype=torch.float64), T5Buckets(8, 6)),
        )
    },
    "packed and dropout": {"layout": Packed((2, 3), (4, 2)), "dropout": 0.3, "seed": 5},
    "additive": {"compare": Additive(torch.randn(3, dtype=torch.float64))},
}
forms = pytest.mark.parametrize("settings", FORMS.values(), ids=FORMS)


def tensors(*lead: int) -> tuple[torch.Tensor, ...]:
    return tuple(
        torch.randn(*lead, *shape, dtype=torch.float64) for shape in ((1, 4, 5, 3), (1, 2, 6, 3), (1, 2, 6, 2))
    )


def call(settings):
    return lambda q, k, v: limelight.attention(q, k, v, **settings)


@forms
def test_first_and_second_derivatives(settings):
    leaves = [t.requires_grad_() for t in tensors()]
    assert torch.autograd.gradcheck(call(settings), leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call(settings), leaves, fast_mode=True)


def test_gradients_of_every_operand():
    q, k, v = tensors()

    def f(sink, slopes, bias, table, vector):
        rules = (ALiBi(slopes), Bias(bias), SoftCap(3.0), RelativeBias(table, T5Buckets(8, 6)))
        dot = limelight.attention(q, k, v, sink=sink, scores=rules, pattern=Causal())
        return dot, limelight.attention(q, k, v, compare=Additive(vector))

    operands = (torch.randn(4), torch.rand(4), torch.randn(5, 6), torch.randn(4, 8), torch.randn(4, 3))
    operands = [t.double().requires_grad_() for t in operands]
    assert torch.autograd.gradcheck(f, operands, check_forward_ad=True, fast_mode=True)


def test_gradients_of_what_is_observed():
    def f(q, k, v):
        see = Observe(logsumexp=True, entropy=True, rows=(1, 3), pairs=((0, 0), (4, 2)))
        seen = limelight.attention(q, k, v, pattern=Causal(), sink=torch.ones(4).double(), observe=see)[1]
        return seen.logsumexp, seen.entropy, seen.rows, seen.pairs

    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in tensors()], fast_mode=True)
    q, k, v = (t.requires_grad_() for t in tensors())
    seen = limelight.attention(q, k, v, observe=Observe(max_weight=True, top=2, received=True, blocks=(2, 2)))[1]
    assert not any(t.requires_grad for t in seen.seen().values())


@forms
def test_jvp_and_vmap_of_torch_func(settings):
    f, primals, tangents = call(settings), tensors(), tensors()
    out, tangent = torch.func.jvp(f, primals, tangents)
    step = 1e-6
    ahead, behind = (f(*(p + sign * step * t for p, t in zip(primals, tangents, strict=True))) for sign in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)
    assert tangent.abs().max() > 0
    torch.testing.assert_close(out, f(*primals))
    with forward_ad.dual_level():
        dual = f(*map(forward_ad.make_dual, primals, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, tangent)
    batched = tensors(3)
    together = torch.func.vmap(f)(*batched)
    for n in range(3):
        torch.testing.assert_close(together[n], f(*(t[n] for t in batched)))


def test_hessian_vector_product():
    f = lambda q, k, v: limelight.attention(q, k, v, pattern=Causal()).square().sum()  # noqa: E731
    primals, tangents = tensors(), tensors()
    _, product = torch.func.jvp(torch.func.grad(f, argnums=(0, 1, 2)), primals, tangents)
    step = 1e-6
    ahead, behind = (
        torch.func.grad(f, argnums=(0, 1, 2))(*(p + sign * step * t for p, t in zip(primals, tangents, strict=True)))
        for sign in (1, -1)
    )
    for got, plus, minus in zip(product, ahead, behind, strict=True):
        torch.testing.assert_close(got, (plus - minus) / (2 * step), rtol=1e-5, atol=1e-6)


@forms
def test_compile_with_changing_lengths(settings):
    fixed = "scores" in settings or "layout" in settings  # their tensors and lengths have one size
    lengths = [(5, 6)] if fixed else [(5, 6), (7, 9), (3, 3)]
    torch._dynamo.reset()
    descriptions._FIELDS.clear()  # as in a process that compiles before it calls
    f = torch.compile(call(settings), fullgraph=True, dynamic=True, backend="aot_eager")
    for Lq, Lk in lengths:
        q, k, v = (
            torch.randn(1, 4, Lq, 3).double(),
            torch.randn(1, 2, Lk, 3).double(),
            torch.randn(1, 2, Lk, 2).double(),
        )
        with torch.no_grad():
            torch.testing.assert_close(f(q, k, v), call(settings)(q, k, v))
        leaves = [t.requires_grad_() for t in (q, k, v)]
        for a, b in zip(
            torch.autograd.grad(f(q, k, v).square().sum(), leaves),
            torch.autograd.grad(call(settings)(q, k, v).square().sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_compile_with_masks_rules_and_observations():
    torch._dynamo.reset()

    def f(q, k, v, mask):
        rule = Predicate(lambda at: (at.query_index + at.key_index) % 2 == 0)
        return limelight.attention(q, k, v, layout=KeyMask(mask), pattern=rule, observe=Observe(entropy=True))

    args = (*tensors(), torch.rand(1, 6) < 0.7)
    out, seen = torch.compile(f, fullgraph=True, backend="aot_eager")(*args)
    torch.testing.assert_close(out, f(*args)[0])
    torch.testing.assert_close(seen.entropy, f(*args)[1].entropy)


def test_compiled_graphs_do_not_lose_derivatives():
    torch._dynamo.reset()
    f = call({"pattern": Causal()})
    primals, tangents = tensors(), tensors()
    truth = torch.func.jvp(f, primals, tangents)[1]
    compiled = torch.compile(f, backend="aot_eager")
    compiled(*primals)  # the graph without derivatives exists before the transform asks for one
    torch.testing.assert_close(torch.func.jvp(compiled, primals, tangents)[1], truth)
    with forward_ad.dual_level():
        dual = compiled(*map(forward_ad.make_dual, primals, tangents))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, truth)


def test_compiled_transforms_are_right():
    f, primals, tangents = call({"pattern": Causal() & Window(4, 0)}), tensors(), tensors()
    forms = {
        "jvp": lambda *args: torch.func.jvp(f, args, tangents)[1],
        "grad": lambda *args: torch.func.grad(lambda *args: f(*args).square().sum(), (0, 1, 2))(*args),
        "vmap": lambda *args: torch.vmap(f)(*(torch.stack([t, 2 * t]) for t in args)),
    }
    for name, form in forms.items():
        truth = form(*primals)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(form, fullgraph=True, backend="aot_eager")(*primals), truth, msg=name)


def test_long_calls_with_gradients_compile():
    """What the graph holds grows with the length: 4 heads x 4096 tokens would be 256 MiB of scores in float32."""
    torch._dynamo.reset()
    f = torch.compile(call({"pattern": Causal() & Window(63, 0)}), fullgraph=True, backend="aot_eager")
    leaves = [torch.randn(1, 4, 4096, 8).requires_grad_() for _ in range(3)]
    upstream = torch.randn(1, 4, 4096, 8)
    ours = torch.autograd.grad(f(*leaves), leaves, upstream)
    truth = torch.autograd.grad(call({"pattern": Causal() & Window(63, 0)})(*leaves), leaves, upstream)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_the_logsumexp_comes_out_of_a_compiled_graph():
    torch._dynamo.reset()

    def f(q, k, v):
        out, seen = limelight.attention(q, k, v, observe=Observe(logsumexp=True, heads=(2, 0)))
        return out, seen.logsumexp

    leaves = [t.requires_grad_() for t in tensors()]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    found = []
    for g in (f, compiled):
        out, logsumexp = g(*leaves)
        assert logsumexp.shape == (1, 2, 5)
        found.append(torch.autograd.grad(out.sum() + logsumexp.square().sum(), leaves))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def registered_operator(settings):
    """``limelight::attention`` as a compiled graph calls it, of query, key and value."""
    from limelight.forms.settings import Settings
    from limelight.operator import compiled
    from limelight.operator.calling import prepare

    (_, _, _, *operands), *rest = compiled._write_call(prepare(*tensors(), Settings(scale=0.5, **settings)))
    return lambda q, k, v: torch.ops.limelight.attention([q, k, v, *operands], *rest)


def test_the_registered_operator_differentiates_or_raises():
    """Inside an exported program the operator itself meets the derivatives."""
    bias = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    settings = {"pattern": Causal(), "scores": (Bias(bias),)}
    f, primals = registered_operator(settings), tensors()
    leaves = [*(t.requires_grad_() for t in primals), bias]
    see = Observe(logsumexp=True)

    def eager(q, k, v):
        out, seen = limelight.attention(q, k, v, scale=0.5, observe=see, **settings)
        return out, seen.logsumexp

    def first_and_second(function):
        out, logsumexp = function(*leaves[:3])
        first = torch.autograd.grad(out.square().sum() + logsumexp.sin().sum(), leaves, create_graph=True)
        return out, logsumexp, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for a, b in zip(first_and_second(f), first_and_second(eager), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(NotImplementedError, match="forward-mode"), forward_ad.dual_level():
        f(*map(forward_ad.make_dual, [t.detach() for t in primals], tensors()))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(f, tuple(t.detach() for t in primals), tensors())


def test_export():
    class Module(torch.nn.Module):
        def forward(self, q, k):
            return limelight.attention(q, k, k, pattern=Causal() & Window(3, 0))

    Dim = torch.export.Dim
    q, k = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 9, 8)
    exported = torch.export.export(
        Module(), (q, k), dynamic_shapes={"q": {2: Dim("queries", min=2, max=64)}, "k": {2: Dim("keys", min=2, max=64)}}
    )
    q, k = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 30, 8)
    torch.testing.assert_close(exported.module()(q, k), Module()(q, k))


@pytest.mark.parametrize("transposed", [False, True])
def test_the_registered_operators_pass_opcheck(transposed):
    from limelight.forms.settings import Settings
    from limelight.operator import compiled
    from limelight.operator.calling import prepare

    q, k, v = (t.float() for t in tensors())
    if transposed:
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    bias = torch.randn(5, 6, requires_grad=True)
    settings = {"pattern": Causal() & Window(2, None), "scores": (SoftCap(2.0), Bias(bias)), "sink": torch.randn(4)}
    q.requires_grad_(), k.requires_grad_()
    call, *rest = compiled._write_call(prepare(q, k, v, Settings(**settings)))
    torch.library.opcheck(torch.ops.limelight.attention.default, (call, *rest))
    out, logsumexp = (t.detach() for t in torch.ops.limelight.attention(call, *rest))
    tensors_of_backward = [*call, out, logsumexp, torch.randn_like(out), torch.randn_like(logsumexp)]
    torch.library.opcheck(
        torch.ops.limelight.attention_backward.default,
        (tensors_of_backward, *rest, compiled._order((0, 1), (0, 1, 4))),
    )


def test_autocast_takes_the_cast_that_products_take():
    q, k, v = (torch.randn(1, 2, 8, 16) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert limelight.attention(q, k, v).dtype == torch.bfloat16


def test_checkpointing_observes_once_and_repeats_the_dropout():
    from torch.utils.checkpoint import checkpoint

    q = torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True)

    def block(x):
        return limelight.attention(x, x, x, dropout=0.3, name="block")

    torch.manual_seed(3)
    with limelight.watching(Observe(entropy=True)) as seen:
        checkpoint(block, q, use_reentrant=False).sum().backward()
    assert len(seen.calls("block")) == 1
    kept, q.grad = q.grad, None
    torch.manual_seed(3)
    block(q).sum().backward()
    torch.testing.assert_close(kept, q.grad)


def test_watching_and_compile_raise_together():
    torch._dynamo.reset()
    q = torch.randn(1, 2, 6, 4)
    f = torch.compile(lambda x: limelight.attention(x, x, x), fullgraph=True, backend="aot_eager")
    f(q)
    with limelight.watching(Observe(entropy=True)), pytest.raises(Exception, match="watching"):
        f(q)


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, None, 2), (None, 0, 0)])
def test_a_mapped_call_is_one_call(dims, monkeypatch):
    """Samples become rows of a batch where nothing tells rows apart; gradients too, of any order."""
    made = [torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(3)]
    pairs = list(zip(made, dims, strict=True))
    tensors = [t if dim is None else torch.stack([t, t.sin(), t.cos()], dim) for t, dim in pairs]
    seen = []
    forward = native.forward
    monkeypatch.setattr(native, "forward", lambda call: seen.append(call.shapes.B) or forward(call))

    def call(*tensors):
        return limelight.attention(*tensors, pattern=Causal() & Window(2, 0))

    def each(function):
        pairs = list(zip(tensors, dims, strict=True))
        parts = [[t if dim is None else t.select(dim, n) for t, dim in pairs] for n in range(3)]
        return [torch.stack(found) for found in zip(*(function(*part) for part in parts), strict=True)]

    slopes = torch.func.grad(lambda *t: call(*t).square().sum(), (0, 1, 2))
    curvature = torch.func.grad(lambda *t: sum(slope.sin().sum() for slope in slopes(*t)), (1, 2))
    for function in (lambda *t: (call(*t),), slopes, curvature):
        expected = each(function)
        seen.clear()
        found = torch.vmap(function, dims)(*tensors)
        assert set(seen) == {6}
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    # Dropout counts rows: sample by sample.
    seen.clear()
    torch.vmap(lambda *t: limelight.attention(*t, dropout=0.5, seed=3), dims)(*tensors)
    assert seen == [2, 2, 2]


@forms
@pytest.mark.parametrize("backend", [None, "reference"])
def test_batched_gradients_of_autograd(settings, backend):
    """PyTorch's older vmap: in a backward pass, in forward mode, and in a backward pass that is differentiated."""
    f, inputs = call(settings | {"backend": backend}), tensors()
    jacobian = torch.autograd.functional.jacobian
    each = jacobian(f, inputs)
    torch.testing.assert_close(jacobian(f, inputs, vectorize=True), each)
    torch.testing.assert_close(jacobian(f, inputs, vectorize=True, create_graph=True), each)
    torch.testing.assert_close(jacobian(f, inputs, vectorize=True, strategy="forward-mode"), each)
    leaves = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (5, 1), (2, 1, 1, 1)], ids=str)
def test_a_bias_of_any_rank_has_every_derivative(shape, backend):
    """A constant changes no weight, so its gradient is zero; that of the logsumexp is one for each query."""
    q, k, v = torch.randn(2, 4, 5, 3), torch.randn(2, 2, 6, 3), torch.randn(2, 2, 6, 2)
    q, k, v = q.double(), k.double(), v.double()
    bias = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def f(bias, q):
        rules = (Bias(bias), SoftCap(3.0))
        output, seen = limelight.attention(q, k, v, scores=rules, observe=Observe(logsumexp=True), backend=backend)
        return output, seen.logsumexp

    assert torch.autograd.gradcheck(f, (bias, q.requires_grad_()), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, (bias, q), fast_mode=True)
    if bias.numel() == 1:
        settings = {"scores": (Bias(bias),), "observe": Observe(logsumexp=True), "backend": backend}
        output, seen = limelight.attention(q, k, v, **settings)
        grad_output, grad_logsumexp = (
            torch.autograd.grad(x.sum(), bias, retain_graph=True)[0] for x in (output, seen.logsumexp)
        )
        torch.testing.assert_close(grad_output, torch.zeros_like(bias), atol=1e-12, rtol=0)
        torch.testing.assert_close(grad_logsumexp, torch.full_like(bias, 2 * 4 * 5))


@pytest.mark.parametrize(
    ("layout", "lengths"),
    [
        (limelight.Padded, torch.tensor([[3, 8], [5, 6], [8, 1]])),
        (limelight.Packed, torch.tensor([[3, 5], [4, 4], [1, 7]])),
    ],
)
def test_vmap_over_lengths(layout, lengths):
    states = torch.randn(3, 2, 2, 8, 4, dtype=torch.float64)

    def function(states, lengths):
        return limelight.attention(states, states, states, layout=layout(lengths), pattern=Causal())

    each = [function(*sample) for sample in zip(states, lengths, strict=True)]
    torch.testing.assert_close(torch.func.vmap(function)(states, lengths), torch.stack(each))
    twice = torch.func.vmap(torch.func.vmap(function), in_dims=(1, 1), out_dims=1)
    two = torch.stack([states, states]), torch.stack([lengths, lengths.flip(1)])
    each = [torch.stack([function(*sample) for sample in zip(*half, strict=True)]) for half in zip(*two, strict=True)]
    torch.testing.assert_close(twice(*(t.transpose(0, 1) for t in two)), torch.stack(each, 1))
    with pytest.raises(limelight.ArgumentError, match="lengths"):
        torch.func.vmap(function)(states, lengths + 1)
