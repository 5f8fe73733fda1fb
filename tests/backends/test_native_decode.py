"""Short queries over long caches on the native kernels: several chunks of keys, groups, all dtypes."""

import subprocess
import sys

import pytest
import torch
from support.accuracy import check_close, rounded

import limelight
from limelight import ALiBi, Aligned, Bias, Causal, Explicit, KeyMask, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends import native

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

AVAILABLE = native.instruction_sets()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NAN = float("nan")


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512bf16", "wide"], autouse=True)
def isa(request):
    if request.param not in AVAILABLE:
        pytest.skip(f"this machine cannot run {request.param} (only {', '.join(AVAILABLE)})")
    native.select_instruction_set(request.param)
    yield request.param
    native.select_instruction_set(None)


def served(isa, dtype):
    if isa == "wide" and dtype is not torch.float32:
        pytest.skip("wide has float32 only")


def tensors(B, Hq, Hkv, Lq, Lk, D, Dv=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    return make(B, Hq, Lq, D), make(B, Hkv, Lk, D), make(B, Hkv, Lk, Dv or D)


def compare(q, k, v, slack=4.0, **settings):
    """By the rule of `accuracy`, the output and the logsumexp."""
    observe = Observe(logsumexp=True)
    ours, ours_seen = limelight.attention(q, k, v, backend="native", observe=observe, **settings)
    settings["backend"] = "reference"
    with rounded(q.dtype):
        plain, plain_seen = limelight.attention(q, k, v, observe=observe, **settings)
    truth, truth_seen = limelight.attention(q.double(), k.double(), v.double(), observe=observe, **settings)
    if q.dtype is torch.float64:
        assert torch.allclose(ours, truth, rtol=1e-12, atol=1e-14, equal_nan=True)
        return ours
    check_close(ours, plain, truth, "output", slack, dtype=q.dtype)
    check_close(ours_seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, "logsumexp", slack, size=1.0)
    assert torch.equal(ours, limelight.attention(q, k, v, **settings | {"backend": "native"})), "observing changes bits"
    return ours


# Groups of 1 to 8 heads, up to 16 queries, one chunk of keys and several, odd widths.
SIZES = [
    (4, 4, 1, 1100, 32, 32),
    (6, 2, 3, 1025, 40, 24),
    (8, 1, 1, 1100, 64, 128),
    (3, 1, 16, 513, 17, 33),
    (7, 1, 2, 600, 9, 130),
    (9, 3, 1, 571, 64, 64),
    (5, 1, 1, 700, 72, 20),
    (4, 2, 1, 8191, 16, 16),  # the last of the shorter chunks, and longer ones
    (10, 1, 2, 9300, 24, 8),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_definition(isa, dtype, size):
    served(isa, dtype)
    Hq, Hkv, Lq, Lk, D, Dv = size
    q, k, v = tensors(1, Hq, Hkv, Lq, Lk, D, Dv, dtype)
    sink = torch.linspace(-1, 5, Hq)
    compare(q, k, v)
    compare(q, k, v, pattern=Causal(), sink=sink, scale=-0.2)
    # keys as they lie in a cache of another order, with room between them
    k, v = (
        torch.cat([x.transpose(1, 2), x.transpose(1, 2)], dim=-1).transpose(1, 2)[..., : x.shape[-1]] for x in (k, v)
    )
    compare(q, k, v, pattern=Causal() & Window(700, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form(isa, dtype):
    served(isa, dtype)
    q, k, v = tensors(2, 4, 2, 3, 600, 16, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    dense = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    bias = torch.where(dense(4, 3, 600) < 0.1, -torch.inf, dense(4, 3, 600)).to(dtype)
    for settings in (
        {"scores": (SoftCap(5.0), ALiBi(torch.linspace(0.001, 0.1, 4)), Bias(bias))},
        {"pattern": Causal() & (Window(50, 0) | Keys(first=4))},
        {"pattern": ~Causal()},
        {"pattern": Explicit(dense(4, 3, 600) < 0.1)},  # other keys in each head of a group
        {"layout": KeyMask(dense(2, 600) < 0.95), "pattern": Causal()},
        {"layout": Padded(torch.tensor([3, 2]), torch.tensor([550, 0]), "left"), "sink": torch.ones(4)},
        {"layout": Aligned(torch.tensor([5, 590])), "pattern": Causal()},
        {"layout": Packed((1, 0, 2), (30, 10, 560)), "pattern": Causal()},
        {"dropout": 0.3, "seed": 7, "pattern": Causal()},
    ):
        compare(q, k, v, **settings)


def test_the_other_observations():
    q, k, v = tensors(1, 4, 2, 2, 1100, 64)
    observe = Observe(entropy=True, max_weight=True, top=3, received=True, blocks=(1, 500))
    ours, truth = (
        limelight.attention(*(x.to(t) for x in (q, k, v)), pattern=Causal(), observe=observe, backend=b)[1].seen()
        for b, t in (("native", torch.float32), ("reference", torch.float64))
    )
    for name, expected in truth.items():
        assert torch.allclose(ours[name].double(), expected.double(), atol=2e-5, rtol=2e-5), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_whatever_the_threads_and_the_batch(isa, dtype):
    served(isa, dtype)
    short, long = tensors(5, 8, 2, 2, 1700, 64, dtype=dtype), tensors(5, 4, 2, 1, 9000, 16, dtype=dtype)
    lengths = torch.tensor([8191, 9000, 0, 8192, 700])  # each row has the chunks of its own length
    threads = torch.get_num_threads()
    for (q, k, v), settings in (
        (short, {}),
        (short, {"pattern": Causal(), "scores": (SoftCap(9.0),)}),
        (short, {"pattern": Window(1000, 0)}),
        (long, {"layout": Padded(1, lengths)}),
    ):
        outs = []
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                outs.append(limelight.attention(q, k, v, backend="native", **settings))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(outs[0], out) for out in outs)
        for b in (0, 3):
            end = lengths[b] if "layout" in settings else k.shape[2]
            key, value = (x[b : b + 1, :, :end] for x in (k, v))
            plain = {name: given for name, given in settings.items() if name != "layout"}
            alone = limelight.attention(q[b : b + 1], key, value, backend="native", **plain)
            assert torch.equal(alone, outs[0][b : b + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize(("length", "places"), [(1200, (0, 511, 512)), (8400, (1023, 1024, 8192))])
def test_what_is_not_seen_changes_no_bit(isa, dtype, which, length, places):
    served(isa, dtype)
    q, k, v = tensors(1, 6, 2, 4, length, 24, dtype=dtype)
    settings = {"pattern": Causal() & ~Window(7, 0), "sink": torch.zeros(6), "backend": "native"}
    before = limelight.attention(q, k, v, **settings)
    for place in (*places, length - 12, length - 10, length - 1):
        for poison in (NAN, torch.inf, -torch.inf):
            key, value = k.clone(), v.clone()
            (key if which == "key" else value)[:, 0, place] = poison
            after = limelight.attention(q, key, value, **settings)
            seen = (torch.arange(length - 4, length) - 7 > place).expand(3, 4)
            assert torch.equal(after[:, 3:], before[:, 3:])
            assert torch.equal(after[0, :3][~seen], before[0, :3][~seen])
            if poison != poison or which == "value":
                assert not after[0, :3][seen].isfinite().any()


def test_a_cache_with_room_to_grow(isa):
    q, k, v = tensors(3, 4, 2, 1, 900, 64)
    lengths = torch.tensor([700, 0, 900])
    expected = limelight.attention(q, k, v, layout=Padded(1, lengths), backend="native")
    room = [torch.full((3, 2, 2000, 64), NAN) for _ in range(2)]
    for cache, whole in zip(room, (k, v), strict=True):
        for b, n in enumerate(lengths):
            cache[b, :, :n] = whole[b, :, :n]
    out = limelight.attention(q, *room, layout=Padded(1, lengths), backend="native")
    assert torch.equal(out, expected)
    assert not out[1].any()


GUARDED = """
import ctypes, mmap, sys, torch, limelight
from limelight import Causal, Window
from limelight.backends import native
rows, seen, width = 4096, 256, 64
for isa in sys.argv[1:]:
    native.select_instruction_set(isa)
    print(isa, flush=True)  # the last one is where the process ends by a signal
    cache = []
    for _ in range(2):
        memory = mmap.mmap(-1, rows * width * 4)
        tensor = torch.frombuffer(memory, dtype=torch.float32).view(1, 1, rows, width)
        tensor.copy_(torch.randn(rows, width))
        cache.append((memory, tensor))
    query = torch.randn(1, 4, 1, width)
    expected = limelight.attention(query, *(t[:, :, -seen:] for _, t in cache), backend="native")
    for _, tensor in cache:  # no page before the window may be read
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t((rows - seen) * width * 4), 0) == 0
    pattern = Causal() & Window(seen - 1, 0)
    out = limelight.attention(query, *(t for _, t in cache), pattern=pattern, backend="native")
    assert torch.equal(out, expected)
print("only the window")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forbids reading of pages with mprotect")
def test_a_window_reads_nothing_else(isa):
    if isa != "generic":
        pytest.skip("one process runs every instruction set")
    done = subprocess.run(
        [sys.executable, "-c", GUARDED, *AVAILABLE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == [*AVAILABLE, "only the window"], (done.returncode, done.stderr)
