"""The native kernels against the definition, on every instruction set that this machine can run."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.accuracy import check_close, check_logsumexp, steps
from support.kernels import LENGTHS, selected
from support.strategies import Example, examples, sizes

import limelight
from limelight import (
    ALiBi,
    Aligned,
    ArgumentError,
    Bias,
    Causal,
    Chunks,
    Explicit,
    Keys,
    Observe,
    Packed,
    Padded,
    RelativeBias,
    SoftCap,
    T5Buckets,
    Window,
)
from limelight.backends import BackendError, native
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

WIDTHS = st.integers(1, 40) | st.sampled_from([64, 80, 127, 128, 200, 256, 320])
SIZES = sizes(lengths=LENGTHS, widths=WIDTHS, batch=st.integers(1, 2))
CALLS = examples(SIZES, dtype=torch.float32, depth=1, additive=True, extreme=True)
EVERYTHING = {
    "logsumexp": True, "max_score": True, "max_weight": True, "entropy": True, "distance": True, "received": True,
}  # fmt: skip


@pytest.fixture(params=["generic", "avx2", "avx512", "wide"], autouse=True)  # the others differ in bfloat16 alone
def isa(request):
    with selected(request.param):
        yield request.param


def run(example: Example, backend="native", dtype=torch.float32, **change):
    q, k, v = (change.pop(name, getattr(example, name)).to(dtype) for name in ("query", "key", "value"))
    return limelight.attention(q, k, v, backend=backend, **(example.settings | change))


@given(CALLS)
def test_equals_the_definition(example):
    seen = Observe(logsumexp=True)
    ours, ours_seen = run(example, observe=seen)
    plain, plain_seen = run(example, "reference", observe=seen)
    truth, truth_seen = run(example, "reference", example.truth, observe=seen)
    slack = steps(example)
    # Values of both signs cancel; the rounding of a sum is that of its terms, sum_j p_ij |v_j|.
    terms = run(example, "reference", example.truth, value=example.value.abs()).nan_to_num(0, 0, 0)
    check_close(ours, plain, truth, "output", slack, size=terms.max().item() if terms.numel() else 0.0)
    check_logsumexp(example, ours_seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, slack)


@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("scores", [(), (SoftCap(20.0), ALiBi(torch.tensor([0.5, 0.01])))])
def test_as_exact_as_the_plain_computation(D, scores):
    q, k, v = torch.randn(3, 1, 2, 400, D, generator=torch.Generator().manual_seed(1)).unbind()
    for pattern in (None, Causal()):
        ours, plain, truth = (
            limelight.attention(q.to(t), k.to(t), v.to(t), pattern=pattern, scores=scores, backend=b)
            for b, t in (("native", q.dtype), ("reference", q.dtype), ("reference", torch.float64))
        )
        check_close(ours, plain, truth, repr(pattern))


@given(CALLS, st.data())
def test_observations_equal_the_definition(example, data):
    s = example.sizes
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    indices = lambda most, n: torch.randint(0, most, (n,), generator=generator) if most else torch.zeros(0).long()  # noqa: E731
    observe = Observe(
        **EVERYTHING,
        features=torch.randn(s.Lk, data.draw(st.integers(0, 20)), generator=generator),
        rows=indices(s.Lq, 3),
        pairs=torch.stack([indices(min(s.Lq, s.Lk) and s.Lq, 20), indices(min(s.Lq, s.Lk) and s.Lk, 20)], dim=1),
        blocks=data.draw(st.tuples(st.integers(1, 70), st.integers(1, 70))),
        heads=data.draw(st.none() | st.permutations(range(s.Hq)).map(tuple)),
    )
    ours = run(example, observe=observe)[1].seen()
    plain = run(example, "reference", observe=observe)[1].seen()
    truth = run(example, "reference", example.truth, observe=observe)[1].seen()
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        if name in ("received_by", "block_pairs"):
            assert torch.equal(ours[name].expand_as(expected), expected), name
        elif name == "logsumexp":
            check_logsumexp(example, ours[name], plain[name], expected, steps(example) + max(s.Lq, s.Lk) ** 0.5 / 2)
        elif (
            name != "entropy" or example.truth == torch.float64
        ):  # beside a large score the definition loses its digits
            # A running sum of n terms is off by about sqrt(n) / 2 rounding steps (Higham & Mary 2019); the plain
            # computation adds in a tree, and may be exact by luck where there is only one number to compare.
            slack = steps(example) + max(s.Lq, s.Lk) ** 0.5 / 2
            check_close(ours[name], plain[name], expected, name, slack, size=1.0)


@given(CALLS, st.integers(1, 6))
def test_the_largest_weights_and_their_keys(example, top):
    seen = run(example, observe=Observe(top=top, rows=tuple(range(example.sizes.Lq))))[1]
    # Of the weights that the kernel itself gives, exactly the largest, of equals the lowest key first.
    truth = run(example, "reference", example.truth, observe=Observe(top=top))[1]
    there = truth.top_keys >= 0
    padded = torch.nn.functional.pad(seen.rows, (0, top))
    weights, keys = padded.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(seen.top_weights, torch.where(there, weights[..., :top], 0.0))
    assert torch.equal(seen.top_keys >= 0, there)
    clear = there & (weights[..., :top] > 0)  # among weights of 0 an unseen key may come first in the sorted row
    assert torch.equal(seen.top_keys[clear], keys[..., :top][clear])


@pytest.mark.parametrize("top", [1, 9, 20])
def test_ties_go_to_the_lowest_key(top):
    q, k = torch.ones(1, 1, 70, 4), torch.randint(0, 2, (1, 1, 300, 4)).float()
    settings = {"pattern": Causal() & Window(200, 0), "observe": Observe(top=top)}
    ours, truth = (limelight.attention(q, k, k, backend=b, **settings)[1] for b in ("native", "reference"))
    assert torch.equal(ours.top_keys, truth.top_keys)


@given(CALLS)
def test_same_bits_whatever_the_threads_and_the_other_rows(example):
    observe = Observe(**EVERYTHING, top=2, blocks=(5, 7))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        out, seen = run(example, observe=observe)
        torch.set_num_threads(3)
        again, seen_again = run(example, observe=observe)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(out, again)
    assert all(same_bits(x, seen_again.seen()[name]) for name, x in seen.seen().items())
    if example.settings["layout"] is None and not any(map(has_rows, example.settings.values())):
        row = {name: getattr(example, name)[-1:] for name in ("query", "key", "value")}
        if not example.settings.get("dropout"):
            assert same_bits(run(example, **row), out[-1:])


def has_rows(setting):
    """It may speak of single batch rows."""
    described = setting if isinstance(setting, tuple) else (setting,)
    return any(getattr(x, "tensors", tuple)() for x in described)


def same_bits(a, b):
    return torch.equal(torch.nan_to_num(a, nan=3.0), torch.nan_to_num(b, nan=3.0))


@given(CALLS, st.sampled_from([float("nan"), float("inf"), float("-inf")]), st.data())
def test_what_is_not_seen_changes_no_bit(example, poison, data):
    s = example.sizes
    if 0 in (s.Lq, s.Lk):
        return
    seen = Settings(layout=example.settings["layout"], pattern=example.settings["pattern"])
    call = prepare(example.query, example.key, example.value, seen)
    seen = torch.from_numpy(call.lowered.rows(0, s.Lq)).expand(s.B, s.Hq, s.Lq, s.Lk)
    b, g, j = (data.draw(st.integers(0, n - 1)) for n in (s.B, s.Hkv, s.Lk))
    which = data.draw(st.sampled_from(["key", "value"]))
    changed = getattr(example, which).clone(memory_format=torch.contiguous_format)
    changed[b, g, j] = poison
    blind = torch.ones(s.B, s.Hq, s.Lq, dtype=torch.bool)
    group = slice(g * s.Hq // s.Hkv, (g + 1) * s.Hq // s.Hkv)
    blind[b, group] = ~seen[b, group, :, j]
    before = run(example, **{which: getattr(example, which).clone(memory_format=torch.contiguous_format)})
    after = run(example, **{which: changed})
    assert torch.equal(before[blind], after[blind])
    if poison != poison and not any(isinstance(rule, Bias) for rule in example.settings["scores"]):
        defined = run(example, backend="reference", **{which: changed})
        assert torch.equal(after[~blind].isnan(), defined[~blind].isnan())
        assert example.settings.get("dropout") or after[~blind].isnan().all()  # what is dropped spoils nothing


@pytest.mark.parametrize(("Lq", "Lk"), [(1, 2000), (5, 700), (700, 700)])
def test_long_calls(Lq, Lk):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 64, generator=generator) for h, n in ((4, Lq), (2, Lk), (2, Lk)))
    patterns = [None, Causal(), Causal() & Window(100, 0), Causal() & (Window(50, 0) | Keys(first=4)), ~Causal()]
    patterns += [Chunks(100) & Causal(), Explicit(torch.rand(Lq, Lk, generator=generator) < 0.1), ~Keys(first=2**20)]
    for pattern in patterns:
        outs = [
            limelight.attention(q.to(dtype), k.to(dtype), v.to(dtype), pattern=pattern, backend=backend)
            for backend, dtype in (("native", q.dtype), ("reference", q.dtype), ("reference", torch.float64))
        ]
        check_close(*outs, repr(pattern), slack=4)


def test_many_documents():
    lengths = tuple((7 * n) % 13 for n in range(150))
    total = sum(lengths)
    q, k, v = torch.randn(3, 2, 2, total, 8).unbind()
    settings = {"layout": Packed(lengths), "pattern": Causal(), "scores": (ALiBi(torch.ones(2)), SoftCap(5.0))}
    settings |= {"dropout": 0.3, "seed": 5}
    ours = limelight.attention(q, k, v, backend="native", **settings)
    truth = limelight.attention(q, k, v, backend="reference", **settings)
    assert torch.allclose(ours, truth, atol=2e-6)


def test_padding_is_zeros_and_the_sink():
    q = torch.randn(2, 3, 10, 8)
    sink = torch.tensor([0.5, -1.0, -torch.inf])
    layout = Padded(torch.tensor([4, 0]), torch.tensor([0, 7]))
    out, seen = limelight.attention(
        q, q, q, layout=layout, sink=sink, observe=Observe(logsumexp=True, max_score=True), backend="native"
    )
    assert not out.any()
    assert torch.equal(seen.logsumexp, sink[:, None].expand(2, 3, 10))
    assert (seen.max_score == -torch.inf).all()


def test_a_sink_that_is_nan_spoils_only_rows_that_see_something():
    q, sink = torch.randn(1, 2, 5, 8), torch.tensor([float("nan"), 0.5])
    mask = Explicit(torch.tensor([True, False, True, False, False])[:, None])
    outs = [limelight.attention(q, q, q, pattern=mask, sink=sink, backend=b) for b in ("native", "reference")]
    for out in outs:
        assert out[0, 0, [0, 2]].isnan().all()
        assert not out[0, :, [1, 3, 4]].any()
        assert out[0, 1].isfinite().all()


def test_wide_heads_and_long_rows_far_apart():
    q, k, v = torch.randn(1, 600, 9, 520, generator=torch.Generator().manual_seed(0)).transpose(1, 2).split(3, dim=1)
    ours = limelight.attention(q, k, v, backend="native")
    plain, truth = (
        limelight.attention(q.to(t), k.to(t), v.to(t), backend="reference") for t in (q.dtype, torch.float64)
    )
    assert ours.stride(1) < ours.stride(2), "an output lies as its query does"
    check_close(ours, plain, truth, "output")


SCRIPTS = {
    "an unknown instruction set": (
        "import torch, limelight\nlimelight.attention(*torch.ones(3, 1, 1, 2, 2), backend='native')",
        {"LIMELIGHT_ISA": "abacus"},
        "instruction set 'abacus' is not available",
    ),
    "an explanation says what a call would do": (
        "import torch, limelight\nfrom limelight.models import new\n"
        "from limelight.models.fast_paths import fast_paths\n"
        "q = torch.ones(1, 1, 2, 2)\nfound = limelight.explain(q, q, q)\n"
        "try:\n    limelight.attention(q, q, q)\nexcept limelight.BackendError as error:\n    refused = str(error)\n"
        "assert found.backend is None and found.failing == 'native' and found.reasons['native'][0] in refused\n"
        "assert 'none; native would be given the call, and fail' in str(found)\n"
        "assert limelight.explain(q, q, q, backend='reference').backend == 'reference'\n"
        "network = new('llama', vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,\n"
        "              intermediate_size=8, max_position_embeddings=16)\n"
        "assert not any(path.taken == 'native' for one in fast_paths(network, 4) for path in (one.prompt, one.token))\n"
        "print('it fails, and is said to')",
        {"LIMELIGHT_ISA": "abacus"},
        "it fails, and is said to",
    ),
    "a child of fork": (
        "import os, torch, limelight, warnings\nwarnings.simplefilter('ignore')\n"
        "q = torch.randn(1, 8, 512, 64)\nout = limelight.attention(q, q, q, backend='native')\n"
        "child = os.fork()\n"
        # compared by numpy: torch's own parallel comparison would hang in a child
        "same = (limelight.attention(q, q, q, backend='native').numpy() == out.numpy()).all()\n"
        "if child == 0: os._exit(0 if same else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\nprint('the child came back')",
        {},
        "the child came back",
    ),
    "threads of its own": (
        "import torch, limelight\nfrom limelight.backends.native import library\ntorch.set_num_threads(3)\n"
        "q = torch.randn(1, 8, 512, 64)\nout = limelight.attention(q, q, q, backend='native')\n"
        "assert library.shares_threads() == ('backend: OpenMP' in torch.__config__.parallel_info())\n"
        "library._library.ll_set_openmp(None)\n"
        "assert torch.equal(out, limelight.attention(q, q, q, backend='native'))\nprint('the same')",
        {},
        "the same",
    ),
}


@pytest.mark.parametrize("which", SCRIPTS)
def test_in_a_process_of_its_own(which, isa):
    if isa != "generic":
        pytest.skip("once is enough")
    script, environment, expected = SCRIPTS[which]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert expected in done.stdout + done.stderr


def test_memory_stays():
    """Scratch is kept for each thread, not for each call."""
    resource = pytest.importorskip("resource")
    q = torch.randn(1, 2, 300, 64)
    used = []
    for _ in range(3):
        for length in range(200, 300):
            limelight.attention(q[:, :, -1:], q[:, :, :length], q[:, :, :length], pattern=Causal(), backend="native")
        used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert used[2] - used[1] < 1024, "kilobytes"


def test_the_peak_is_measured(isa):
    assert native.peak(torch.float32, 1, 0.01, isa) > 0.1
    with pytest.raises(BackendError, match="'abacus' is not available"):
        native.peak(torch.float32, 1, 0.01, "abacus")
    assert np.isfinite(native.peak(torch.float32, 2, 0.01))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "size",
    [(1, 0, 1, 5, 4, 3, 2), (2, 0, 3, 5, 4, 3, 0), (0, 2, 1, 5, 4, 3, 2), (1, 2, 1, 0, 4, 3, 2), (1, 2, 1, 5, 0, 3, 2),
     (1, 2, 2, 60, 70, 3, 0), (0, 0, 1, 0, 0, 1, 0), (2, 0, 1, 60, 0, 3, 2)],
)  # fmt: skip
def test_sizes_of_nothing(isa, dtype, size):
    """No heads, rows, tokens or columns: empty results and gradients of zeros, as the definition has them."""
    if isa == "wide" and dtype is not torch.float32:
        pytest.skip("wide has float32 only")
    B, Hq, Hkv, Lq, Lk, D, Dv = size
    found = []
    for backend in ("native", "reference"):
        shapes = ((B, Hq, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv))
        leaves = [torch.ones(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        output, seen = limelight.attention(
            *leaves, backend=backend, observe=Observe(logsumexp=True, entropy=True, top=2)
        )
        gradients = torch.autograd.grad(output.sum() + 0 * seen.logsumexp.clamp_min(-9).sum(), leaves)
        found.append((output.detach(), *(x.detach() for x in seen.seen().values()), *gradients))
    for ours, truth in zip(*found, strict=True):
        assert ours.shape == truth.shape
        assert torch.allclose(ours, truth, atol=1e-4)


def test_sizes_that_cannot_be_counted():
    one = torch.ones(1, 1, 1, 1).expand(2**62, 1, 1, 1)
    none = torch.empty(2**62, 1, 1, 0)
    assert limelight.attention(one, one, none, backend="native").shape == none.shape
    for value, observe in ((one, None), (none, Observe(logsumexp=True))):
        with pytest.raises(RuntimeError, match="overflow"):  # PyTorch's own, where room for the result is made
            limelight.attention(one, one, value, backend="native", observe=observe)


@pytest.mark.parametrize("start", [2**58, -(2**58)])
def test_the_farthest_positions(start):
    q = torch.randn(1, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    for pattern in (None, Causal(), Window(2, 2), ~Causal()):
        for layout in (Aligned(start, start), Aligned(*[torch.tensor([start])] * 2)):
            settings = {"layout": layout, "pattern": pattern}
            ours, truth = (limelight.attention(q, q, q, backend=b, **settings) for b in ("native", "reference"))
            assert torch.allclose(ours, truth, atol=1e-6)


@pytest.mark.parametrize("start", [2**58 + 1, -(2**58) - 1, 2**62])
def test_positions_beyond_them(start):
    q = torch.ones(1, 1, 8, 4)
    for starts in ((start, 0), (0, start), (start, start), (torch.tensor([start]), 0), (0, torch.tensor([start]))):
        with pytest.raises(ArgumentError, match=r"_start` must lie between -2\^58 and 2\^58"):
            limelight.attention(q, q, q, layout=Aligned(*starts), pattern=Causal(), backend="native")


FAR = 2**40


@pytest.mark.parametrize("layout", [Aligned(FAR), Aligned(torch.tensor([FAR])), Aligned(0, FAR)], ids=repr)
def test_distances_that_the_kernels_cannot_count(layout):
    """Every key is about 2^40 away: so is the mean, and a slope of 2^-40 takes 1 from every score."""
    q = torch.randn(1, 1, 2, 4)
    asked = {"layout": layout, "observe": Observe(distance=True)}
    found = limelight.attention(q, q, q, **asked)[1].distance
    torch.testing.assert_close(found, torch.full((1, 1, 2), float(FAR)))
    biased = {"layout": layout, "scores": (ALiBi(torch.tensor([2.0**-40])),), "observe": Observe(logsumexp=True)}
    plain = limelight.attention(q, q, q, layout=layout, observe=Observe(logsumexp=True))[1].logsumexp
    torch.testing.assert_close(limelight.attention(q, q, q, **biased)[1].logsumexp, plain - 1)
    for settings in (asked, biased):
        with pytest.raises(BackendError, match=r"distances up to 2\^30"):
            limelight.attention(q, q, q, backend="native", **settings)
    assert limelight.explain(q, q, q, layout=layout).backend == "native"  # no part of the call needs a distance


def test_the_farthest_distance_that_the_kernels_count():
    q = torch.randn(1, 1, 1, 4)
    layout = Aligned(2**30)
    seen = limelight.attention(q, q, q, layout=layout, observe=Observe(distance=True), backend="native")[1]
    assert seen.distance.item() == 2**30
    assert limelight.explain(q, q, q, layout=Aligned(2**30 + 1), observe=Observe(distance=True)).backend == "reference"


def test_a_relative_bias_of_rows_far_apart_takes_no_memory_for_what_lies_between():
    q, table = torch.randn(2, 1, 3, 4), torch.zeros(1, 32)
    for apart in (FAR, 2**29):
        far = Aligned(torch.tensor([0, apart]), 0)
        rule = RelativeBias(table, T5Buckets(32, 128))
        assert limelight.explain(q, q, q, layout=far, scores=(rule,)).backend == "reference"
        expected = limelight.attention(q, q, q, layout=far)  # a bias of zeros is none
        torch.testing.assert_close(limelight.attention(q, q, q, layout=far, scores=(rule,)), expected)
        with pytest.raises(BackendError, match="distance"):
            limelight.attention(q, q, q, layout=far, scores=(rule,), backend="native")


def test_far_distances_inside_a_transform():
    q = torch.randn(1, 1, 2, 4)

    def distance(start):
        return limelight.attention(q, q, q, layout=Aligned(start), observe=Observe(distance=True))[1].distance

    assert torch.func.vmap(distance)(torch.tensor([[5]])).shape == (1, 1, 1, 2)
    with pytest.raises(BackendError, match="Name backend='reference'"):
        torch.func.vmap(distance)(torch.tensor([[5], [FAR]]))
