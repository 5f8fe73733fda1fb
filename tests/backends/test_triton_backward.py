"""Gradients of the Triton kernels, in Triton's interpreter, against the definition in float64."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.accuracy import check_close, rounded_gradients
from support.strategies import PORTION, examples, sizes

import limelight
from limelight import (
    Additive,
    ALiBi,
    Bias,
    Causal,
    Explicit,
    KeyMask,
    Keys,
    Observe,
    Packed,
    Padded,
    RelativeBias,
    SoftCap,
    Window,
)
from limelight.backends.gpu import flash2, machine, tuning

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

NAN = float("nan")


def gradients(backend, dtype, tensors, extra, settings, weights, like=None):
    """Of a random function of output and logsumexp, in ``dtype``, of numbers that ``like`` has."""
    leaves = [t.to(like or dtype).to(dtype).requires_grad_() for t in (*tensors, *extra)]
    with rounded_gradients(dtype) if backend == "plain" else nullcontext():
        out, seen = limelight.attention(
            *leaves[:3], backend="reference" if backend == "plain" else backend, observe=Observe(logsumexp=True),
            **settings(*leaves[3:]),
        )  # fmt: skip
        of_output, of_logsumexp = (w.to(like or dtype) for w in weights)
        finite = torch.where(seen.logsumexp.isfinite(), seen.logsumexp, 0.0)
        ((out * of_output).double().sum() + (finite * of_logsumexp).double().sum()).backward()
    return [leaf.grad for leaf in leaves]


def check(settings, extra=(), dtype=torch.float32, Hq=4, Hkv=2, Lq=21, Lk=37, D=8, Dv=12, B=2):
    generator = torch.Generator().manual_seed(Lk)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    tensors = make(B, Hq, Lq, D), make(B, Hkv, Lk, D), make(B, Hkv, Lk, Dv)
    weights = make(B, Hq, Lq, Dv), make(B, Hq, Lq)
    extra = [make(*shape) for shape in extra]
    args = (tensors, extra, settings, weights, dtype)
    ours, plain, truth = (
        gradients(backend, kind, *args)
        for backend, kind in (("flash2", dtype), ("plain", dtype), ("reference", torch.float64))
    )
    names = ["query", "key", "value", *(f"operand {n}" for n in range(len(extra)))]
    for name, x, y, z in zip(names, ours, plain, truth, strict=True):
        check_close(x, y, z, name, slack=16.0, dtype=dtype)


MASK = torch.rand(2, 4, 21, 37, generator=torch.Generator().manual_seed(0)) < 0.3
RANDOM = {"dropout": 0.3, "seed": 5}
FORMS = {
    "full": (dict, ()),
    "causal": (lambda: {"pattern": Causal()}, ()),
    "spans": (lambda: {"pattern": Causal() & (Window(9, 0) | Keys(first=3))}, ()),
    "tiles": (lambda: {"pattern": Explicit(MASK)}, ()),
    "holes": (lambda: {"layout": KeyMask(MASK[:, 0, 0])}, ()),
    "packed": (lambda: {"layout": Packed((8, 0, 13), (7, 10, 20)), "pattern": Causal()}, ()),
    "padded": (lambda: {"layout": Padded(torch.tensor([5, 20]), torch.tensor([37, 0]))}, ()),
    "dropout": (lambda: {"pattern": Causal()} | RANDOM, ()),
    "dropout, documents of batch rows": (
        lambda b, t: {"layout": PORTION, "scores": (Bias(b), RelativeBias(t))} | RANDOM, [(2, 4, 21, 37), (4, 32)],
    ),
    "sink": (lambda s: {"sink": s, "pattern": Causal()}, [(4,)]),
    "slopes": (lambda s, t: {"scores": (ALiBi(s), SoftCap(2.0), ALiBi(t))}, [(4,), (2, 4)]),
    "additive": (lambda v: {"compare": Additive(v), "pattern": Causal()}, [(4, 8)]),
    "bias": (lambda b: {"scores": (Bias(b), SoftCap(3.0)), "pattern": Causal()}, [(2, 4, 21, 37)]),
    "bias of keys": (lambda b: {"scores": (SoftCap(3.0), Bias(b))}, [(37,)]),
    "bias of queries": (lambda b: {"scores": (Bias(b),)}, [(4, 21, 1)]),
    "bias of all": (lambda b: {"scores": (Bias(b),)}, [(1, 1)]),
    "table": (lambda t: {"scores": (RelativeBias(t), SoftCap(3.0)), "pattern": Causal()}, [(4, 32)]),
    "shared table": (lambda t: {"scores": (RelativeBias(t),), "pattern": Explicit(MASK)}, [(1, 32)]),
    "table, packed": (lambda t: {"scores": (RelativeBias(t),), "layout": Packed((8, 13), (17, 20))}, [(4, 32)]),
}  # fmt: skip
# Those in which batch rows differ; each further row costs the interpreter the time of the first.
OF_ROWS = ("tiles", "holes", "padded", "dropout", "dropout, documents of batch rows", "slopes", "bias", "shared table")


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition(form):
    check(*FORMS[form], B=2 if form in OF_ROWS else 1)


@pytest.mark.parametrize("form", ["causal", "slopes"])
def test_half_precision(form):
    check(*FORMS[form], dtype=torch.float16, D=40, Dv=20, B=2 if form in OF_ROWS else 1)


WIDE = {
    "160": ({"D": 160, "Dv": 200, "Lq": 18, "Lk": 18}, lambda: {"pattern": Causal()}, ()),
    "256": ({"D": 256, "Dv": 16, "Lq": 5, "Lk": 19}, lambda: {"scores": (SoftCap(3.0),), "scale": -0.2}, ()),
    "257": ({"D": 257, "Dv": 257, "Lq": 5, "Lk": 19}, lambda: {"pattern": Causal()}, ()),
    "320": ({"D": 320, "Dv": 40, "Hq": 2, "Lq": 5, "Lk": 19}, lambda: {"dropout": 0.3, "seed": 7}, ()),
    "values of 512": ({"D": 24, "Dv": 512, "Lq": 17, "Lk": 9}, lambda: {"pattern": Causal()}, ()),
    "400": (
        {"D": 400, "Dv": 300, "Lq": 4, "Lk": 18},
        lambda b, t: {"scores": (Bias(b), RelativeBias(t))}, [(18,), (1, 32)],
    ),
    "512": ({"D": 512, "Dv": 512, "Lq": 3, "Lk": 5}, lambda s: {"sink": s}, [(1,)]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(width, torch.float32) for width in WIDE] + [(width, torch.float16) for width in ("160", "257", "512")],
)
def test_wide_heads(width, dtype):
    """Above 256 a part of the width at a time."""
    sizes, settings, extra = WIDE[width]
    check(settings, extra, dtype=dtype, **({"B": 1, "Hq": 1, "Hkv": 1} | sizes))


def test_the_kernels_are_asked(monkeypatch):
    """And not the definition, which would give the same."""
    asked = []
    backward = flash2.backward
    monkeypatch.setattr(flash2, "backward", lambda *args: asked.append(1) or backward(*args))
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    limelight.attention(q, q, q, backend="flash2").sum().backward()
    assert asked


@settings(max_examples=4)
@given(examples(sizes(lengths=st.integers(0, 20), widths=st.integers(1, 20), batch=st.integers(1, 2)), depth=1))
def test_random_calls(example):
    def of(backend, dtype):
        leaves = [getattr(example, n).to(dtype).requires_grad_() for n in ("query", "key", "value")]
        out = limelight.attention(*leaves, backend=backend, **example.settings)
        weights = torch.arange(out.numel(), dtype=torch.float64).remainder(7).reshape(out.shape)
        (out * weights.to(dtype)).sum().backward()
        return [leaf.grad for leaf in leaves]

    runs = of("flash2", torch.float32), of("reference", torch.float32), of("reference", torch.float64)
    for name, ours, plain, truth in zip(("query", "key", "value"), *runs, strict=True):
        size = max(x.abs().max().item() if x.numel() else 0.0 for x in runs[2])
        check_close(ours, plain, truth, name, slack=64.0, size=size)


@pytest.mark.parametrize("where", ["query", "key", "value", "gradient"])
def test_what_is_not_seen_changes_no_bit(where):
    """NaN in one token reaches the gradients of the tokens that see it or that it sees, and no others."""
    generator = torch.Generator().manual_seed(3)
    q, k, v, g = torch.randn(4, 1, 2, 40, 8, generator=generator).unbind()

    def of(*tensors):
        leaves = [t.clone().requires_grad_() for t in tensors[:3]]
        limelight.attention(*leaves, pattern=Causal() & Window(4, 0), backend="flash2").backward(tensors[3])
        return [leaf.grad for leaf in leaves]

    before = of(q, k, v, g)
    spoiled = [t.clone() for t in (q, k, v, g)]
    spoiled[("query", "key", "value", "gradient").index(where)][0, 1, 20] = NAN
    after = of(*spoiled)
    # Token 20 as a query sees keys 16 to 20; as a key it is seen by queries 20 to 24, which see keys 16 to 24.
    as_query = where in ("query", "gradient")
    touched = (
        (slice(20, 21), slice(16, 21), slice(16, 21)) if as_query else (slice(20, 25), slice(16, 25), slice(16, 25))
    )
    for x, y, rows in zip(before, after, touched, strict=True):
        same = torch.ones(x.shape, dtype=torch.bool)
        same[0, 1, rows] = False
        assert torch.equal(x[same], y[same])
    assert after[0][0, 1, touched[0]].isnan().all()


def test_same_bits_every_time():
    def once():
        generator = torch.Generator().manual_seed(1)
        leaves = [torch.randn(1, 2, 33, 8, generator=generator).requires_grad_() for _ in range(3)]
        bias = torch.randn(33, generator=generator).requires_grad_()
        limelight.attention(*leaves, scores=(Bias(bias),), pattern=Causal(), backend="flash2").square().sum().backward()
        return [t.grad for t in (*leaves, bias)]

    assert all(torch.equal(x, y) for x, y in zip(once(), once(), strict=True))


@pytest.mark.parametrize("settings", [{}, {"pattern": Causal()}, {"pattern": Window(30, 9)}])
def test_blocks_that_an_edge_cuts_are_computed_in_parts(settings, monkeypatch):
    """Blocks of 32 queries; those that an edge cuts in two parts of 16."""
    monkeypatch.setattr(tuning, "INTERPRETED", tuning.Tile(32, 16, 4, 1, edge=16))
    check(lambda: settings, Lq=90, Lk=90, B=1)
