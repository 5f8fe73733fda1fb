"""A row is a function of what it sees and of nothing else: forward, backward, and in every derivative."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import examples, sizes

import limelight
from limelight import Additive, Bias, Causal, Explicit, Observe, Packed, Padded, SoftCap, Window

SMALL = sizes(lengths=st.integers(1, 7), widths=st.integers(1, 4))
POISON = st.sampled_from([float("nan"), float("inf"), float("-inf")])


def gradients(example, **change):
    """Output and the gradients of a fixed weighting of it."""
    settings = example.settings | change.pop("settings", {})
    leaves = [change.get(n, getattr(example, n)).detach().clone().requires_grad_() for n in ("query", "key", "value")]
    out = limelight.attention(*leaves, backend="reference", **settings)
    upstream = change.get("upstream")
    if upstream is None:
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=out.dtype)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream)


@given(examples(SMALL, dropout=False, strides=False), POISON, st.data())
def test_what_is_not_seen_changes_no_bit(example, poison, data):
    s = example.sizes
    group = s.Hq // s.Hkv
    seen = loops.visible(example.settings["pattern"], example.settings["layout"], s.B, s.Hq, s.Lq, s.Lk)
    b, g, j = (data.draw(st.integers(0, n - 1)) for n in (s.B, s.Hkv, s.Lk))
    blind = ~seen[b, g * group : (g + 1) * group, :, j]  # (G, Lq): rows that do not see the poisoned key
    clean = gradients(example)
    which = data.draw(st.sampled_from(["key", "value"]))
    changed = getattr(example, which).clone()
    changed[b, g, j] = poison
    dirty = gradients(example, **{which: changed})
    rows = torch.from_numpy(blind)
    for index, name in ((0, "output"), (1, "gradient of the query")):
        before, after = (x[index][b, g * group : (g + 1) * group][rows] for x in (clean, dirty))
        assert torch.equal(before, after), name
    if blind.all():
        keep = torch.ones(s.Lk, dtype=torch.bool)
        keep[j] = False
        for index in (2, 3):
            assert torch.equal(clean[index][b, g][keep], dirty[index][b, g][keep])
            assert not dirty[index][b, g, j].any(), "a key that no query sees has no gradient"


@given(examples(SMALL, dropout=False, strides=False), POISON, st.data())
def test_a_gradient_reaches_only_what_its_row_saw(example, poison, data):
    s = example.sizes
    seen = loops.visible(example.settings["pattern"], example.settings["layout"], s.B, s.Hq, s.Lq, s.Lk)
    b, h, i = (data.draw(st.integers(0, n - 1)) for n in (s.B, s.Hq, s.Lq))
    upstream = torch.randn(s.B, s.Hq, s.Lq, s.Dv, dtype=torch.float64)
    clean = gradients(example, upstream=upstream)
    upstream = upstream.clone()
    upstream[b, h, i] = poison
    dirty = gradients(example, upstream=upstream)
    others = torch.ones(s.B, s.Hq, s.Lq, dtype=torch.bool)
    others[b, h, i] = False
    assert torch.equal(clean[1][others], dirty[1][others])
    spared = torch.ones(s.B, s.Hkv, s.Lk, dtype=torch.bool)
    spared[b, h // (s.Hq // s.Hkv)] = torch.from_numpy(~seen[b, h, i])
    for index in (2, 3):
        assert torch.equal(clean[index][spared], dirty[index][spared])


@given(examples(SMALL, dropout=False, strides=False), st.data())
def test_a_seen_nan_spoils_exactly_the_rows_that_see_it(example, data):
    s = example.sizes
    assume(not any(isinstance(rule, Bias) for rule in example.settings["scores"]))
    group = s.Hq // s.Hkv
    seen = loops.visible(example.settings["pattern"], example.settings["layout"], s.B, s.Hq, s.Lq, s.Lk)
    b, g, j = (data.draw(st.integers(0, n - 1)) for n in (s.B, s.Hkv, s.Lk))
    which = data.draw(st.sampled_from(["key", "value"]))
    changed = getattr(example, which).clone()
    changed[b, g, j] = float("nan")
    tensors = {n: getattr(example, n) for n in ("query", "key", "value")} | {which: changed}
    out = limelight.attention(**tensors, backend="reference", **example.settings)
    spoiled = out.isnan().all(-1).numpy()
    expected = np.zeros_like(spoiled)
    expected[b, g * group : (g + 1) * group] = seen[b, g * group : (g + 1) * group, :, j]
    assert (spoiled == expected).all()
    assert (out.isnan().any(-1).numpy() == expected).all()


def test_a_query_that_sees_nothing():
    q, k, v = (torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    nothing = Explicit(torch.zeros(3, 3, dtype=torch.bool))
    out, seen = limelight.attention(q, k, v, pattern=nothing, observe=Observe(logsumexp=True, entropy=True, top=2))
    assert not out.any()
    assert (seen.logsumexp == -torch.inf).all()
    assert not seen.entropy.any()
    assert (seen.top_keys == -1).all()
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert not grad.any()
    sink = torch.tensor([0.5, -1.0], dtype=torch.float64)
    out, seen = limelight.attention(q, k, v, pattern=nothing, sink=sink, observe=Observe(logsumexp=True))
    assert not out.any()
    torch.testing.assert_close(seen.logsumexp, sink[None, :, None].expand(1, 2, 3))


def test_minus_infinity_is_unseen():
    q, k, v = (torch.randn(1, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.zeros(4, 4, dtype=torch.float64)
    bias[:, 2] = -torch.inf
    v[0, 0, 2] = float("nan")
    mask = torch.ones(4, dtype=torch.bool)
    mask[2] = False
    a = limelight.attention(q, k, v, scores=(Bias(bias),))
    b = limelight.attention(q, k, v, pattern=Explicit(mask))
    assert torch.equal(a, b)


def test_an_unseen_score_that_is_nan_passes_no_gradient_through_a_rule():
    q, k, v = (torch.randn(1, 1, 3, 4, dtype=torch.float64) for _ in range(3))
    bias = torch.zeros(3, 3, dtype=torch.float64)
    bias[0, 2] = float("nan")  # a pair that causal does not see
    q.requires_grad_()
    out = limelight.attention(q, k, v, pattern=Causal(), scores=(Bias(bias), SoftCap(2.0)))
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert out.isfinite().all()
    assert grad.isfinite().all()


@given(SMALL, st.sampled_from([None, Packed, Causal(), Window(2, 1)]))
def test_batch_rows_are_independent(s, form):
    q, k = torch.randn(s.B, s.Hq, s.Lq, s.D).double(), torch.randn(s.B, s.Hkv, s.Lk, s.D).double()
    settings = {"layout": Packed((1, s.Lq - 1), (s.Lk, 0))} if form is Packed else {"pattern": form}
    whole = limelight.attention(q, k, k, backend="reference", **settings)
    for b in range(s.B):
        row = slice(b, b + 1)
        alone = limelight.attention(q[row], k[row], k[row], backend="reference", **settings)
        torch.testing.assert_close(whole[row], alone, rtol=1e-13, atol=1e-14)


@given(examples(SMALL, dropout=False), st.data())
def test_merge_is_the_union_of_disjoint_keys(example, data):
    """Split the keys in two by a mask, attend to each, merge: the whole, with its gradients."""
    s = example.sizes
    settings = {k: v for k, v in example.settings.items() if k != "sink"}
    pattern = settings.pop("pattern") or limelight.Full()
    mask = torch.tensor([data.draw(st.booleans()) for _ in range(s.Lk)])
    see = Observe(logsumexp=True)
    leaves = [getattr(example, n).detach().clone().requires_grad_() for n in ("query", "key", "value")]
    whole, seen = limelight.attention(*leaves, pattern=pattern, observe=see, **settings)
    parts = [
        limelight.attention(*leaves, pattern=pattern & Explicit(m), observe=see, **settings) for m in (mask, ~mask)
    ]
    out, lse = limelight.merge([o for o, _ in parts], [o.logsumexp for _, o in parts])
    torch.testing.assert_close(out, whole, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(lse, seen.logsumexp, rtol=1e-11, atol=1e-12)
    upstream = torch.randn_like(whole)
    for a, b in zip(
        torch.autograd.grad(out, leaves, upstream), torch.autograd.grad(whole, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_dropout_is_a_function_of_position():
    """The same weights are dropped whether the queries are computed together or one by one with a cache."""
    q, k, v = (torch.randn(2, 3, 9, 4, dtype=torch.float64) for _ in range(3))
    together = limelight.attention(q, k, v, pattern=Causal(), dropout=0.4, seed=7)
    for i in range(9):
        alone = limelight.attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], dropout=0.4, seed=7)
        torch.testing.assert_close(alone, together[:, :, i : i + 1])
    torch.manual_seed(1)
    first = limelight.attention(q, k, v, dropout=0.4)
    second = limelight.attention(q, k, v, dropout=0.4)
    torch.manual_seed(1)
    assert torch.equal(first, limelight.attention(q, k, v, dropout=0.4))
    assert not torch.equal(first, second)


def test_dropout_keeps_the_mean():
    q = torch.zeros(1, 1, 400, 1)
    v = torch.ones(1, 1, 400, 1)
    out = limelight.attention(q, q, v, dropout=0.25, seed=1)
    assert abs(out.mean().item() - 1) < 0.01
    assert 0.015 < out.std().item() < 0.045  # sqrt(0.25 / 0.75 / 400) = 0.029


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_as_good_as_absent(side):
    lengths = [3, 5]
    q, k, v = (torch.randn(2, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    out = limelight.attention(q, k, v, layout=Padded(torch.tensor(lengths), side=side), pattern=Causal())
    for b, n in enumerate(lengths):
        real = slice(0, n) if side == "right" else slice(5 - n, 5)
        alone = limelight.attention(
            q[b : b + 1, :, real], k[b : b + 1, :, real], v[b : b + 1, :, real], pattern=Causal()
        )
        torch.testing.assert_close(out[b : b + 1, :, real], alone)
        padding = [i for i in range(5) if i not in range(*real.indices(5))]
        assert not out[b, :, padding].any()


def test_packed_documents_are_alone():
    q, k, v = (torch.randn(1, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    out = limelight.attention(q, k, v, layout=Packed((2, 0, 4, 3)), pattern=Causal() & Window(1, 0))
    for a, b in ((0, 2), (2, 6), (6, 9)):
        alone = limelight.attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], pattern=Causal() & Window(1, 0))
        torch.testing.assert_close(out[:, :, a:b], alone)


def test_additive_sees_no_nan_where_no_query_looks():
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64) for _ in range(3))
    vector = torch.randn(3, dtype=torch.float64)
    clean = limelight.attention(q, k, v, compare=Additive(vector), pattern=Causal())
    k[:, :, 3] = float("nan")
    q.requires_grad_()
    dirty = limelight.attention(q, k, v, compare=Additive(vector), pattern=Causal())
    assert torch.equal(clean[:, :, :3], dirty[:, :, :3])
    (grad,) = torch.autograd.grad(dirty[:, :, :3].sum(), q)
    assert grad[:, :, :3].isfinite().all()
