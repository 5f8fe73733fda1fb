"""The backward pass of the native kernels: every gradient, every element type, every instruction set."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import kernels
from support.accuracy import check_close, steps
from support.kernels import Upstream, check_on_average, every_dtype, every_kernel, gradients, same_bits, selected, terms
from support.strategies import Example

import limelight
from limelight import (
    ALiBi,
    Bias,
    Causal,
    Chunks,
    Explicit,
    KeyMask,
    Keys,
    Observe,
    Packed,
    Padded,
    RelativeBias,
    SoftCap,
    T5Buckets,
    Window,
)
from limelight.backends import memory, native
from limelight.forms import philox
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare
from limelight.tensors.shapes import Shapes

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_cleared():
    """Memory of results is NaN until it is written."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("empty", "empty_like"):
            made = getattr(memory, name)
            patched.setattr(memory, name, lambda *what, made=made: made(*what).fill_(torch.nan))
        yield


some = settings(max_examples=settings.default.max_examples // 4)
few = settings(max_examples=settings.default.max_examples // 10)


def check(example, upstream, isa, slack=None):
    """Every gradient by the rule of `accuracy`; returns those of the kernels."""
    dtype = example.query.dtype
    with selected(isa), mock.patch.object(native, "backward", wraps=native.backward) as called:
        ours = gradients(example, upstream)
    assert called.called or not ours["output"].numel(), "the kernels did not take the gradients"
    plain, truth = gradients(example, upstream, "plain"), gradients(example, upstream, "truth")
    sizes = terms(example, upstream)
    slack = steps(example) + 4 if slack is None else slack
    for name, exact in truth.items():
        if name != "logsumexp":
            assert ours[name].dtype == (dtype if name == "output" else tensor_of(example, name).dtype)
            check_close(ours[name], plain[name], exact, name, slack, sizes[name], dtype)
    return ours


def tensor_of(example, name):
    return kernels.tensors_of(example)[name]


@every_kernel
@some
@given(data=st.data())
def test_every_gradient(kernel, data):
    isa, dtype = kernel
    example = data.draw(kernels.calls(dtype))
    check(example, Upstream.of(example, logsumexp=data.draw(st.booleans())), isa)


def made(s: Shapes, dtype, **settings) -> Example:
    generator = torch.Generator().manual_seed(4)
    shapes = ((s.B, s.Hq, s.Lq, s.D), (s.B, s.Hkv, s.Lk, s.D), (s.B, s.Hkv, s.Lk, s.Dv))
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return Example(s, q, k, v, {"layout": None, "pattern": None, "scores": (), "scale": None} | settings)


@lru_cache
def judged(dtype, form):
    """A call, its upstream gradients, and all gradients plainly and in float64: computed once for the kernels."""
    bias = torch.randn(6, 2, 1, 300, generator=torch.Generator().manual_seed(8))
    scores = (ALiBi(torch.tensor([0.5, 0.01]).to(dtype)), Bias(bias.to(dtype)), SoftCap(20.0))
    rules = {"pattern": Causal(), "scores": scores, "sink": torch.tensor([0.3, -1.0]).to(dtype)}
    example = made(
        Shapes(6, 2, 1, 300, 300, 64, 72), dtype, **{"full": {}, "causal": {"pattern": Causal()}, "rules": rules}[form]
    )
    upstream = Upstream.of(example)
    return example, upstream, gradients(example, upstream, "plain"), gradients(example, upstream, "truth")


@every_kernel
@pytest.mark.parametrize("form", ["full", "causal", "rules"])
def test_as_exact_as_the_plain_computation(kernel, form):
    """One rounding step and no more, where there are numbers enough for the plain computation to show its error."""
    isa, dtype = kernel
    if dtype == torch.float64:
        return  # there the plain computation is the truth: `test_every_gradient` and `test_gradcheck` judge it
    example, upstream, plain, truth = judged(dtype, form)
    with selected(isa):
        ours = gradients(example, upstream)
    for name in [name for name in truth if name in ("query", "key", "value") or name.startswith("Bias")]:
        check_on_average(ours[name], plain[name], truth[name], name, dtype)


LONG = {
    "full": {},
    "causal": {"pattern": Causal()},
    "window and first keys": {"pattern": Causal() & (Window(100, 0) | Keys(first=5))},
    "two chunks seen": {"pattern": Keys(first=3) | Window(10, 10)},
    "not": {"pattern": ~Causal()},
    "bits": {"pattern": Explicit(torch.rand(1100, 1100, generator=torch.Generator().manual_seed(5)) < 0.03)},
    "chunks": {"pattern": Chunks(300)},
    "documents": {"layout": Packed((5, 600, 0, 495)), "pattern": Causal()},
    "more keys than queries": {"layout": Packed((100, 1000), (700, 400)), "pattern": Causal()},
    "padding": {"layout": Padded(1000, 900, "left"), "pattern": Causal()},
    "key mask": {"layout": KeyMask(torch.rand(1, 1100, generator=torch.Generator().manual_seed(6)) < 0.5)},
    "no query sees a key": {"pattern": ~Keys(first=2**20)},
    "dropout": {"pattern": Causal(), "dropout": 0.3, "seed": 5},
    "rules": {
        "pattern": Causal(),
        "sink": torch.tensor([0.5, -2.0]),
        "scores": (
            ALiBi(torch.tensor([[0.05, 0.2]])),
            RelativeBias(torch.randn(2, 32, generator=torch.Generator().manual_seed(7))),
            Bias(torch.randn(1, 2, 1100, 1, generator=torch.Generator().manual_seed(8))),
            SoftCap(30.0),
        ),
    },
}


@every_dtype
@pytest.mark.parametrize("name", LONG)
def test_many_chunks_of_keys(dtype, name):
    """A sum over chunks of up to 512 keys; 129 tiles of queries wait for their turn at each. One head, five threads."""
    example = made(Shapes(1, 2, 1, 1100, 1100, 24, 40), dtype, **LONG[name])
    named = {n: t.to(dtype) for n, t in kernels.tensors_of(example).items()}
    example = kernels.with_tensors(example, named)
    upstream = Upstream.of(example)
    with kernels.threads(5):
        several = check(example, upstream, kernels.AVAILABLE[0], slack=4.0)
    with kernels.threads(1):
        one = gradients(example, upstream)
    for x in one:
        assert same_bits(one[x], several[x]), x


@pytest.mark.parametrize("D", [1, 300])
def test_narrow_and_wide_heads(D):
    """Chunks become shorter as heads become wider."""
    example = made(Shapes(1, 1, 1, 200, 700, D, D + 20), torch.float32, pattern=Causal())
    check(example, Upstream.of(example), kernels.AVAILABLE[0], slack=4.0)


@every_kernel
@few
@given(data=st.data())
def test_same_bits_whatever_the_threads(kernel, data):
    isa, dtype = kernel
    example = data.draw(kernels.calls(dtype))
    upstream = Upstream.of(example)
    found = []
    with selected(isa):
        for count in (1, 2, 3, 5, 1):
            with kernels.threads(count):
                found.append(gradients(example, upstream))
    for again in found[1:]:
        assert all(same_bits(found[0][name], again[name]) for name in again)


@every_kernel
def test_a_row_of_the_batch_does_not_know_the_others(kernel):
    isa, dtype = kernel
    for pattern in (None, Causal(), Causal() & (Window(20, 0) | Keys(3))):
        example = made(Shapes(5, 4, 2, 130, 150, 40, 24), dtype, pattern=pattern)
        upstream = Upstream.of(example)
        with selected(isa):
            whole = gradients(example, upstream)
            for rows in (slice(0, 1), slice(3, 4), slice(1, 4)):
                tensors = (example.query[rows], example.key[rows], example.value[rows])
                part = Example(example.sizes, *tensors, example.settings)
                found = gradients(part, Upstream(upstream.output[rows], upstream.logsumexp[rows]))
                assert all(same_bits(found[name], whole[name][rows]) for name in found)


# --- Score rules ------------------------------------------------------------------------------------------------------

B, H, LQ, LK = 2, 4, 70, 150
SHAPES = [
    *itertools.product((1, B), (1, H), (1, LQ), (1, LK)),
    (1, LQ, LK), (H, 1, LK), (H, LQ, 1), (LQ, LK), (LQ, 1), (LK,), (1,),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_bias_of_every_shape(shape):
    """What a bias shares is summed: over rows, heads, queries, keys, and every combination of them."""
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(9))
    for asked in ({}, {"layout": Packed((30, 40), (100, 50)), "pattern": Causal()}):
        example = made(Shapes(B, H, 2, LQ, LK, 12, 20), torch.float32, scores=(SoftCap(5.0), Bias(bias)), **asked)
        upstream = Upstream.of(example)
        check(example, upstream, kernels.AVAILABLE[0], slack=8.0)
        with kernels.threads(1):
            one = gradients(example, upstream)
        with kernels.threads(3):
            three = gradients(example, upstream)
        assert all(same_bits(one[name], three[name]) for name in one)


@every_kernel
@pytest.mark.parametrize(
    "pattern",
    [
        Causal(),
        ~Causal(),
        Window(20, 0) & ~Keys(first=3),
        Window(5, 2) | Keys(first=4),
        Explicit(torch.rand(H, LQ, LK, generator=torch.Generator().manual_seed(3)) < 0.01),
        Explicit(torch.zeros(LQ, LK, dtype=torch.bool)),
    ],
    ids=str,
)
def test_a_bias_of_all_pairs_has_zeros_where_no_query_looks(kernel, pattern):
    isa, dtype = kernel
    bias = torch.randn(B, H, LQ, LK, generator=torch.Generator().manual_seed(9)).to(dtype)
    example = made(Shapes(B, H, 2, LQ, LK, 12, 20), dtype, scores=(Bias(bias),), pattern=pattern)
    upstream = Upstream.of(example)
    with selected(isa):
        found = gradients(example, upstream)
    with selected(isa), mock.patch.object(native.rules, "_has_every_pair", return_value=False):
        cleared = gradients(example, upstream)
    assert all(same_bits(found[name], cleared[name]) for name in cleared)


@every_dtype
def test_slopes_and_tables_of_every_shape(dtype):
    normal = lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(10)).to(dtype)  # noqa: E731
    slopes = [ALiBi(normal(*shape).abs() / 10) for shape in ((H,), (1, H), (B, H))]
    tables = [RelativeBias(normal(h, 16), T5Buckets(16, 40, both)) for h in (1, H) for both in (True, False)]
    layouts = ({}, {"layout": Packed((30, 40), (100, 50))}, {"layout": limelight.Aligned(torch.tensor([0, 90]), 7)})
    if dtype != torch.float32:
        layouts = layouts[2:]
    for rule, layout in itertools.product((*slopes, *tables), layouts):
        example = made(Shapes(B, H, 2, LQ, LK, 12, 20), dtype, scores=(rule,), pattern=Causal(), **layout)
        check(example, Upstream.of(example), kernels.AVAILABLE[0], slack=8.0)


def test_what_is_not_wanted_is_not_computed_and_changes_nothing():
    rules = (Bias(torch.randn(LQ, LK)), ALiBi(torch.rand(H)), RelativeBias(torch.randn(H, 32)))
    example = made(Shapes(B, H, 2, LQ, LK, 12, 20), torch.float32, scores=rules, sink=torch.randn(H), pattern=Causal())
    upstream = Upstream.of(example, logsumexp=False)
    everything = gradients(example, upstream)
    for name in kernels.tensors_of(example):
        alone = tensor_of(example, name).clone().requires_grad_()
        call = kernels.with_tensors(example, kernels.tensors_of(example) | {name: alone})
        out = limelight.attention(call.query, call.key, call.value, backend="native", **call.settings)
        (found,) = torch.autograd.grad(out, alone, upstream.output)
        assert same_bits(found, everything[name]), name


# --- What is not seen ------------------------------------------------------------------------------------------------

POISON = st.sampled_from([float("nan"), float("inf"), float("-inf")])


@every_kernel
@few
@given(data=st.data(), poison=POISON)
def test_what_is_not_seen_changes_no_bit_of_a_gradient(kernel, data, poison):
    """A key or value spoils at most the rows that see it, and these the keys that they see."""
    isa, dtype = kernel
    example = data.draw(kernels.calls(dtype))
    s = example.sizes
    assume(s.Lq and s.Lk)
    seen = visible(example)
    b, g, j = (data.draw(st.integers(0, n - 1)) for n in (s.B, s.Hkv, s.Lk))
    name = data.draw(st.sampled_from(["key", "value"]))
    dense = {n: tensor_of(example, n).clone() for n in ("query", "key", "value")}
    example = kernels.with_tensors(example, kernels.tensors_of(example) | dense)
    changed = example.__getattribute__(name).clone()
    changed[b, g, j] = poison
    upstream = Upstream.of(example)
    with selected(isa):
        before = gradients(example, upstream)
        after = gradients(kernels.with_tensors(example, kernels.tensors_of(example) | {name: changed}), upstream)
    spoiled = torch.zeros(s.B, s.Hq, s.Lq, dtype=torch.bool)
    group = slice(g * s.Hq // s.Hkv, (g + 1) * s.Hq // s.Hkv)
    spoiled[b, group] = seen[b, group, :, j]
    unchanged(before, after, seen, spoiled, s, written=(b, g, j))
    if not spoiled.any():
        for found in ("key", "value"):
            assert not after[found][b, g, j].any(), "a key that no query sees has no gradient"
        rest = [n for n in before if n not in ("key", "value")]
        assert all(same_bits(before[n], after[n]) for n in rest), "the sink and the rules neither"


@every_kernel
@few
@given(data=st.data(), poison=POISON)
def test_a_query_or_its_gradient_reaches_only_what_it_sees(kernel, data, poison):
    isa, dtype = kernel
    example = data.draw(kernels.calls(dtype))
    s = example.sizes
    assume(s.Lq and s.Lk)
    seen = visible(example)
    b, h, i = (data.draw(st.integers(0, n - 1)) for n in (s.B, s.Hq, s.Lq))
    name = data.draw(st.sampled_from(["query", "output", "logsumexp"]))
    example = kernels.with_tensors(example, kernels.tensors_of(example) | {"query": example.query.clone()})
    upstream, other = Upstream.of(example), Upstream.of(example)
    changed = example
    if name == "query":
        query = example.query.clone()
        query[b, h, i] = poison
        changed = kernels.with_tensors(example, kernels.tensors_of(example) | {"query": query})
    else:
        getattr(other, name)[b, h, i] = poison
    with selected(isa):
        before, after = gradients(example, upstream), gradients(changed, other)
    spoiled = torch.zeros(s.B, s.Hq, s.Lq, dtype=torch.bool)
    spoiled[b, h, i] = True
    unchanged(before, after, seen, spoiled, s)
    if not seen[b, h, i].any():
        assert not after["query"][b, h, i].any(), "a query that sees nothing has no gradient"
        rest = [n for n in before if n not in ("query", "output")]
        if example.settings.get("sink") is None or name == "query":
            assert all(same_bits(before[n], after[n]) for n in rest)


def visible(example):
    s = example.sizes
    seen = Settings(layout=example.settings["layout"], pattern=example.settings["pattern"])
    call = prepare(example.query, example.key, example.value, seen)
    return torch.from_numpy(call.lowered.rows(0, s.Lq)).expand(s.B, s.Hq, s.Lq, s.Lk)


def unchanged(before, after, seen, spoiled, s, written=None):
    """Bits of the gradients of rows that are not spoiled, and of keys that no spoiled row sees."""
    assert same_bits(before["query"][~spoiled], after["query"][~spoiled])
    reached = (seen & spoiled[..., None]).any(2).unflatten(1, (s.Hkv, s.Hq // s.Hkv)).any(2)  # (B, Hkv, Lk)
    if written is not None:
        reached[written] = True
    for name in ("key", "value"):
        assert same_bits(before[name][~reached], after[name][~reached]), name


@every_dtype
def test_rows_that_see_nothing_have_no_gradients(dtype):
    q, k, v = (torch.randn(2, 2, 130, 20).to(dtype).requires_grad_() for _ in range(3))
    mask = torch.rand(130, 1, generator=torch.Generator().manual_seed(11)) < 0.5
    bias = torch.where(mask, 0.0, -torch.inf).to(dtype).requires_grad_()
    seeing = mask[:, 0]
    for asked in ({"pattern": Explicit(mask)}, {"scores": (Bias(bias),)}):
        for sink in (None, torch.tensor([0.5, -torch.inf])):
            out, seen = limelight.attention(
                q, k, v, sink=sink, observe=Observe(logsumexp=True), backend="native", **asked
            )
            assert not out[:, :, ~seeing].any()
            upstream = (torch.full_like(out, 3.0), seen.logsumexp.isfinite().to(seen.logsumexp))
            found = torch.autograd.grad((out, seen.logsumexp), (q, k, v), upstream, retain_graph=True)
            assert not found[0][:, :, ~seeing].any()
            assert found[0][:, :, seeing].any()
            assert all(x.isfinite().all() for x in found)
    (found,) = torch.autograd.grad(out.sum(), bias)
    assert not found[~seeing].any()


# --- Derivatives by differences ---------------------------------------------------------------------------------------

FORMS = {
    "causal": {"pattern": Causal()},
    "window and sink": {"pattern": Causal() & (Window(2, 0) | Keys(1)), "sink": torch.randn(4)},
    "rules": {
        "pattern": Explicit(torch.rand(4, 50, 6, generator=torch.Generator().manual_seed(12)) < 0.7),
        "scores": (
            ALiBi(torch.rand(2, 4)),
            Bias(torch.randn(4, 1, 6)),
            SoftCap(2.0),
            RelativeBias(torch.randn(4, 8), T5Buckets(8, 6)),
        ),
    },
    "packed and dropout": {"layout": Packed((20, 30), (4, 2)), "dropout": 0.3, "seed": 5},
    "key mask": {"layout": KeyMask(torch.tensor([[True, False, True, True, False, True]]))},
    "padding": {"layout": Padded(torch.tensor([3, 50]), torch.tensor([6, 2])), "pattern": Causal()},
}  # fmt: skip


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
@pytest.mark.parametrize("name", FORMS)
def test_gradcheck(isa, name):
    """Differences of the kernels' own forward pass, in float64."""
    example = made(Shapes(2, 4, 2, 50, 6, 3, 2), torch.float64, **FORMS[name])
    named = {n: t.double().requires_grad_() for n, t in kernels.tensors_of(example).items()}

    def f(*leaves):
        call = kernels.with_tensors(example, dict(zip(named, leaves, strict=True)))
        out, seen = limelight.attention(
            call.query, call.key, call.value, observe=Observe(logsumexp=True), backend="native", **call.settings
        )
        return out, torch.where(seen.logsumexp.isfinite(), seen.logsumexp, 0.0)

    with selected(isa), mock.patch.object(native, "backward", wraps=native.backward) as called:
        assert torch.autograd.gradcheck(f, tuple(named.values()), fast_mode=True, check_batched_grad=False)
    assert called.called


# --- Processes and threads --------------------------------------------------------------------------------------------


def test_several_python_threads_at_once():
    examples = [
        made(Shapes(1, 4, 2, 200 + n, 300, 32, 32), dtype, pattern=Causal())
        for n, dtype in enumerate(kernels.DTYPES * 2)
    ]
    upstreams = [Upstream.of(example) for example in examples]
    alone = list(map(gradients, examples, upstreams))
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for one, other in zip(alone, pool.map(gradients, examples, upstreams), strict=True):
                assert all(same_bits(one[name], other[name]) for name in one)


# Tensors are made before the fork: in a child PyTorch's own parallel operations, filling an array among them, hang.
BEGIN = """
import os, torch, limelight, warnings
warnings.simplefilter('ignore')
torch.set_num_threads(4)
tensors = [torch.randn(4, 1, 8, 600, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
def gradients(seed):
    q, k, v, up = tensors[seed]
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = limelight.attention(q, k, v, pattern=limelight.Causal(), backend='native')
    return [x.numpy().tobytes() for x in (out.detach(), *torch.autograd.grad(out, (q, k, v), up))]
"""
SCRIPTS = {
    "a child of fork": (
        BEGIN + "before = gradients(0)\nchild = os.fork()\nsame = gradients(0) == before\n"
        "if child == 0: os._exit(0 if same else 1)\nassert os.waitpid(child, 0)[1] == 0 and same\nprint('the same')",
        {},
    ),
    "workers of a DataLoader": (
        BEGIN + "class Data(torch.utils.data.Dataset):\n    def __len__(self): return 4\n"
        "    def __getitem__(self, n): return hash(tuple(gradients(n)))\n"
        "before = [hash(tuple(gradients(n))) for n in range(4)]\n"
        "found = torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=2)\n"
        "assert [int(x) for x in found] == before\nprint('the same')",
        {},
    ),
    "fewer threads than asked for": (BEGIN + "gradients(0)\nprint('the same')", {"OMP_THREAD_LIMIT": "2"}),
    "threads as the system likes": (BEGIN + "gradients(0)\nprint('the same')", {"OMP_DYNAMIC": "true"}),
    "one thread": (BEGIN + "gradients(0)\nprint('the same')", {"OMP_NUM_THREADS": "1"}),
}


@pytest.mark.parametrize("which", SCRIPTS)
def test_in_a_process_of_its_own(which):
    script, environment = SCRIPTS[which]
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment,
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.stdout == "the same\n", done.stderr


def test_memory_stays():
    """Scratch is kept for each thread, not for each call; what a call takes it gives back."""
    resource = pytest.importorskip("resource")
    used = []
    for _ in range(3):
        for length in range(200, 260):
            example = made(Shapes(1, 2, 2, length, length, 64, 64), torch.bfloat16, pattern=Causal())
            gradients(example, Upstream.of(example))
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert used[2] - used[1] < 2048, "kilobytes"


def rounding_where_kernels_do(query, key, value, grad, keep, dtype):
    """Gradients of query, key and value of the plain computation that rounds weights, gradients of scores and the
    output to ``dtype``; ``keep``: what dropout multiplies weights by.
    """
    rounded = lambda x: x.to(dtype).to(x.dtype)  # noqa: E731
    weights = torch.softmax(query @ key.mT, -1)
    output = rounded(rounded(weights * keep) @ value)
    slopes = weights * (grad @ value.mT * keep - (grad * output).sum(-1, keepdim=True))
    return rounded(slopes) @ key, rounded(slopes).mT @ query, rounded(weights * keep).mT @ grad


@every_kernel
@pytest.mark.parametrize("dropout", [0.0, 0.5, 0.9])
def test_a_sharp_softmax(kernel, dropout):
    """Where one key has nearly all the weight, dP - delta is a difference of equals, and delta comes from the rounded
    output: no error is added to that.
    """
    isa, dtype = kernel
    if dtype == torch.float64:
        return  # the plain computation is the truth there
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 1, 300, 256, generator=generator).to(dtype) for _ in range(4)]
    place, zero = torch.arange(300), torch.zeros((), dtype=torch.int64)
    keep = torch.ones(300, 300)
    if dropout:
        keep = philox.kept(dropout, zero + 5, zero, zero, place[:, None], place[None]).float() / (1 - dropout)
    leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    with selected(isa):
        output = limelight.attention(*leaves, scale=1.0, dropout=dropout, seed=5, backend="native")
        ours = torch.autograd.grad(output, leaves, tensors[3])
    plain = rounding_where_kernels_do(*(x.float() for x in tensors), keep, dtype)
    truth = rounding_where_kernels_do(*(x.double() for x in tensors), keep.double(), torch.float64)
    for name, mine, theirs, exact in zip(("query", "key", "value"), ours, plain, truth, strict=True):
        rms = lambda x, exact=exact: (x.to(dtype).double() - exact).square().mean().sqrt()  # noqa: E731
        assert rms(mine) <= 1.5 * rms(theirs), name
