"""Patterns: each class agrees with its definition in every fact that it states of itself.

The properties run over all classes of patterns. A new class needs an entry in `support.strategies.PATTERNS` and a line
in `support.oracles.loops.allows`; then a fact that it states wrongly, or forgets to state, fails here.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import PATTERNS, layouts, of_each_kind, patterns, sizes, subclasses
from torch.fx.experimental.proxy_tensor import make_fx

import limelight
from limelight import (
    Aligned,
    Blocks,
    Causal,
    Chunks,
    DilatedWindow,
    Explicit,
    Full,
    Keys,
    Observe,
    Pattern,
    Predicate,
    Prefix,
    Where,
    Window,
)  # fmt: skip
from limelight.compat.flex.patterns import Below, SameDocument
from limelight.forms.coordinates import Part
from limelight.forms.lowering import lower
from limelight.forms.patterns import And, Not, Or
from limelight.forms.spans import Reach
from limelight.nn import Cache, ForwardContext, MultiHead
from limelight.tensors.shapes import Shapes

KINDS = subclasses(Pattern)
#: Nothing is known of a function but what it gives.
OPAQUE = {"Predicate": "a function is known by what it gives alone"}
#: Their facts are those of the patterns within.
JOINED = ("And", "Or", "Not")


def drawn(data, kind, s):
    assert KINDS[kind] in PATTERNS, f"give support.strategies.PATTERNS an entry that draws a {kind}"
    return PATTERNS[KINDS[kind]](data.draw, s)


def where(layout, s, part=Part()):  # noqa: B008
    coordinates = (layout or Aligned()).coordinates(s.B, s.Lq, s.Lk, torch.device("cpu"))
    return Where.of(coordinates, s.B, s.Hq, part)


def around(pattern, L):
    """Which keys are seen by queries at the positions -L to L, ``(1, Hq | 1, 2 L, 2 L)``."""
    s = Shapes(1, 2, 2, 2 * L, 2 * L, 1, 1)
    return pattern.allows(where(Aligned(-L, -L), s)).expand(-1, -1, 2 * L, 2 * L)


def functions(description):
    """Whether there is a function within."""
    return any(
        functions(part) if isinstance(part, limelight.forms.descriptions.Description) else callable(part)
        for part in description.parts()
    )


def may_change(pattern):
    """Whether there is a function or a tensor within; FlexAttention's masks promise that theirs are not modified."""
    if isinstance(pattern, (And, Or, Not)):
        return any(may_change(part) for part in pattern.parts() if isinstance(part, limelight.Pattern))
    return not isinstance(pattern, (Below, SameDocument)) and bool(pattern.tensors() or functions(pattern))


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_it_allows_what_its_definition_says(kind, data):
    s = data.draw(sizes())
    pattern, layout = drawn(data, kind, s), data.draw(layouts(s))
    pattern.check(*s.scores)
    truth = loops.visible(pattern, layout, s.B, s.Hq, s.Lq, s.Lk)
    coordinates = (layout or Aligned()).coordinates(s.B, s.Lq, s.Lk, torch.device("cpu"))
    allowed = pattern.allows(where(layout, s))
    assert allowed.dtype == torch.bool
    seen = (allowed & coordinates.together()).expand(*truth.shape)
    assert (seen.numpy() == truth).all()
    lowered = lower(pattern, layout, s.B, s.Hq, s.Lq, s.Lk)
    assert (np.broadcast_to(lowered.rows(0, s.Lq), truth.shape) == truth).all()


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_a_part_of_a_call_sees_what_it_sees_in_the_whole(kind, data):
    s = data.draw(sizes())
    pattern, layout = drawn(data, kind, s), data.draw(layouts(s))
    cut = lambda size: slice(*sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))))  # noqa: E731
    part = Part(*map(cut, s.scores))
    whole = pattern.allows(where(layout, s)).expand(s.scores)
    some = whole[tuple(part)]
    assert torch.equal(pattern.allows(where(layout, s, part)).expand(some.shape), some)


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_chosen_queries_and_keys_see_what_they_see_in_the_whole(kind, data):
    s = data.draw(sizes())
    pattern, layout = drawn(data, kind, s), data.draw(layouts(s))
    chosen = (st.lists(st.integers(0, max(size - 1, 0)), max_size=5 if size else 0) for size in (s.Lq, s.Lk))
    queries, keys = (torch.tensor(data.draw(indices), dtype=torch.int64) for indices in chosen)
    coordinates = (layout or Aligned()).coordinates(s.B, s.Lq, s.Lk, torch.device("cpu"))
    cut = coordinates._replace(
        query_position=coordinates.query_position[:, queries], key_position=coordinates.key_position[:, keys]
    )
    some = pattern.select(queries, keys)
    some.check(s.B, s.Hq, len(queries), len(keys))
    whole = pattern.allows(where(layout, s)).expand(s.scores)[:, :, queries][..., keys]
    assert torch.equal(some.allows(Where.of(cut, s.B, s.Hq)).expand(whole.shape), whole)


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_its_spans_are_its_definition(kind, data):
    s = data.draw(sizes())
    pattern, layout = drawn(data, kind, s), data.draw(layouts(s))
    at = where(layout, s)
    allowed = pattern.allows(at).expand(s.scores)
    p, j = at.query_position, at.key_position
    for row in (None, *range(s.B)):
        spans = pattern.spans(row)
        if spans is None:
            continue
        inside = torch.zeros(s.scores, dtype=torch.bool)
        for span in spans:
            chunk = p.div(span.chunk, rounding_mode="floor") * span.chunk if span.chunk else 0 * p
            start = torch.maximum(torch.full_like(p, span.start), p + span.start_offset)
            end = torch.minimum(torch.full_like(p, span.end), p + span.end_offset)
            if span.chunk:
                start, end = torch.maximum(start, chunk + span.chunk_start), torch.minimum(end, chunk + span.chunk_end)
            inside |= (p >= span.query_from) & (p < span.query_to) & (j >= start) & (j < end)
        rows = slice(None) if row is None else slice(row, row + 1)
        assert torch.equal(inside[rows], allowed[rows])


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_its_conjuncts_are_it(kind, data):
    s = data.draw(sizes())
    pattern, at = drawn(data, kind, s), where(None, s)
    allowed = torch.ones(s.scores, dtype=torch.bool)
    for part in pattern.conjuncts():
        allowed &= part.allows(at)
    assert torch.equal(allowed, pattern.allows(at).expand(s.scores))


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_no_key_lies_beyond_its_reach(kind, data):
    s = data.draw(sizes())
    pattern, layout = drawn(data, kind, s), data.draw(layouts(s))
    at, (back, ahead) = where(layout, s), pattern.reach()
    distance = at.distance.expand(s.scores)[pattern.allows(at).expand(s.scores)]
    assert back is None or (back >= 0 and (distance >= -back).all())
    assert ahead is None or (ahead >= 0 and (distance <= ahead).all())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*OPAQUE, *JOINED)])
@of_each_kind
@given(st.data())
def test_a_reach_that_it_has_is_stated(kind, data):
    """Else a cache keeps every key. Where twice as many keys are not seen farther, there is a bound."""
    pattern = drawn(data, kind, Shapes(1, 1, 1, 40, 40, 1, 1))
    if pattern.tensors():
        return
    distance = torch.arange(80)[None] - torch.arange(80)[:, None]
    reached = []
    for L in (20, 40):
        seen = distance[: 2 * L, : 2 * L][around(pattern, L)[0, 0]]
        reached.append([int(seen.min()), int(seen.max())] if len(seen) else [0, 0])
    (low, high), (lower_, higher) = reached
    back, ahead = pattern.reach()
    assert low > lower_ or back == max(0, -low), f"{pattern} reaches {-low} keys back: state it in reach() or spans()"
    assert high < higher or ahead == max(0, high), f"{pattern} reaches {high} keys ahead: state it"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*OPAQUE, *JOINED)])
@of_each_kind
@given(st.data())
def test_spans_that_it_has_are_stated(kind, data):
    """Else kernels read a map of tiles. Where the keys of every query are one interval, there is a span."""
    pattern = drawn(data, kind, Shapes(1, 1, 1, 40, 40, 1, 1))
    if pattern.tensors():
        return
    seen = around(pattern, 40)[0, 0].int()
    edges = seen.diff(dim=1).abs().sum(1) + seen[:, 0] + seen[:, -1]
    assert (edges > 2).any() or pattern.spans() is not None, f"the keys of {pattern} are intervals: give it spans()"


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_uniform_over_batch_means_that_rows_are_alike(kind, data):
    s = Shapes(3, 2, 2, 12, 12, 1, 1)
    pattern = drawn(data, kind, s)
    allowed = pattern.allows(where(None, s))
    alike = bool((allowed == allowed[:1]).all())
    assert alike or not pattern.uniform_over_batch
    if len(allowed) == 1 and not pattern.tensors() and not functions(pattern):
        assert pattern.uniform_over_batch, f"all rows of {pattern} are alike: state it in uniform_over_batch"


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_what_may_change_is_not_fixed(kind, data):
    pattern = drawn(data, kind, data.draw(sizes()))
    assert pattern.is_fixed == (not may_change(pattern))


def test_a_promise_is_believed():
    for fixed in (Predicate(lambda at: at.distance == 0, fixed=True), Explicit(torch.ones(3, 3).bool(), fixed=True)):
        assert fixed.is_fixed
        assert (Causal() & ~fixed).is_fixed
        assert not (fixed | Explicit(torch.ones(3, 3).bool())).is_fixed


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_it_is_the_same_as_data(kind, data):
    s = data.draw(sizes())
    pattern, layout = drawn(data, kind, s), data.draw(layouts(s))
    at = where(layout, s)
    found = pattern.as_data(lambda: at)
    assert not functions(found)
    assert torch.equal(found.allows(at).expand(s.scores), pattern.allows(at).expand(s.scores))


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_it_is_a_value(kind, data):
    pattern = drawn(data, kind, data.draw(sizes()))
    again = copy.copy(pattern)
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert again.hollow().with_tensors(iter(pattern.tensors())) == pattern
    assert pattern != Not(pattern)


# --- A class without a claim -----------------------------------------------------------------------------------------


class Even(Pattern):
    """Every second key, by a class that says nothing but its definition."""

    def allows(self, at):
        return at.key_position % 2 == 0


def test_a_class_that_states_nothing_is_served_everywhere():
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    pattern = Causal() & Even()
    truth = limelight.attention(q, k, v, pattern=Explicit((torch.arange(9) % 2 == 0).expand(9, 9)) & Causal())
    torch.testing.assert_close(limelight.attention(q, k, v, pattern=pattern), truth)
    batched = torch.vmap(lambda *x: limelight.attention(*x, pattern=pattern))(q[None], k[None], v[None])
    torch.testing.assert_close(batched[0], truth)
    with pytest.raises(limelight.BackendError, match=r"Even\(\) cannot travel in a compiled graph"):
        make_fx(lambda q: limelight.attention(q, k, v, pattern=pattern))(q)
    assert pattern.pairs(9) == sum((i + 2) // 2 for i in range(9))
    assert pattern.reach() == Reach(None, 0)


# --- DilatedWindow ---------------------------------------------------------------------------------------------------


def test_a_dilated_window_counts_the_keys_it_sees():
    pattern = DilatedWindow(2, 1, step=3)
    assert str(pattern.draw(8)).splitlines()[-2] == "■ · · ■ · · ■ ·"
    assert pattern.pairs(8) == 8 + (5 + 2) + 5
    assert DilatedWindow(2, 0, step=1).pairs(50) == Window(2, 0).pairs(50)
    assert (pattern & Causal()).reach() == (6, 0)
    with pytest.raises(limelight.ArgumentError, match="`back`"):
        DilatedWindow(-1, 0, step=2)
    with pytest.raises(limelight.ArgumentError, match="`step`"):
        DilatedWindow(1, 0, step=0)


def test_a_narrow_dilated_window_is_arithmetic():
    """A decode step builds nothing; a wide one is a map of tiles."""
    narrow, wide = DilatedWindow(3, 0, step=8), DilatedWindow(9, 0, step=8)
    assert lower(narrow, None, 1, 1, 200, 200).form == "4 spans"
    assert lower(wide, None, 1, 1, 200, 200).tiles is not None


@pytest.mark.parametrize("pattern", [DilatedWindow(3, 0, step=2), DilatedWindow(6, 0, step=3)], ids=str)
def test_a_dilated_window_in_a_cache(pattern):
    """Token by token what the whole text gives, in the 64 columns that a store begins with, not in 90."""
    layer, cache = MultiHead(16, query_heads=2, key_value_heads=2, head_width=8, pattern=pattern, name="layer"), Cache()
    states = torch.randn(2, 90, 16)
    with torch.no_grad():
        whole, kept = layer(states), 0
        for n in range(90):
            step = cache.step(2, 1)
            with limelight.watching(Observe(received=True)) as seen:
                one = layer(states[:, n : n + 1], ForwardContext(None, step.positions, cache=step))
            cache.close(step)
            torch.testing.assert_close(one, whole[:, n : n + 1], rtol=1e-4, atol=1e-5)
            kept = max(kept, seen["layer"].received.shape[-1])
    assert pattern.reach().back < kept <= 64


def test_a_dilated_window_under_vmap_is_one_call():
    q = torch.randn(3, 2, 2, 9, 4)
    pattern = DilatedWindow(2, 1, step=3)
    truth = torch.stack([limelight.attention(x, x, x, pattern=pattern) for x in q])
    torch.testing.assert_close(torch.vmap(lambda x: limelight.attention(x, x, x, pattern=pattern))(q), truth)


@pytest.mark.parametrize("pattern", [DilatedWindow(1, 1, step=2), DilatedWindow(None, 3, step=3)], ids=str)
def test_a_nan_reaches_only_queries_that_see_it(pattern):
    q, k, v = (torch.randn(1, 1, 12, 4) for _ in range(3))
    clean = limelight.attention(q, k, v, pattern=pattern)
    k[:, :, 5] = torch.nan
    found = limelight.attention(q, k, v, pattern=pattern)
    sees = pattern.allows(where(None, Shapes(1, 1, 1, 12, 12, 4, 4)))[0, 0, :, 5]
    assert found[0, 0, sees].isnan().all()
    assert torch.equal(found[0, 0, ~sees], clean[0, 0, ~sees])


# --- Print, count, compare -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Causal() & (Window(255, 0) | Keys(first=4)), "Causal() & (Window(back=255, ahead=0) | Keys(first=4))"),
        ((Causal() & Window(1, 0)) | Full(), "Causal() & Window(back=1, ahead=0) | Full()"),
        (~(Causal() | Chunks(3)), "~(Causal() | Chunks(size=3))"),
        (Causal() & (Causal() & Prefix(2)), "Causal() & (Causal() & Prefix(length=2))"),
        (Explicit(torch.ones(2, 3).bool()), "Explicit(mask=<bool (2, 3)>, fixed=False)"),
        (Blocks(torch.ones(2, 3).bool(), 64), "Blocks(table=<bool (2, 3)>, size=64)"),
    ],
)
def test_print(pattern, text):
    assert repr(pattern) == text


def test_patterns_are_values():
    assert Causal() & Window(2, 0) == Causal() & Window(2, 0)
    assert len({Causal() | Keys(1), Causal() | Keys(1), Causal() | Keys(2)}) == 2
    assert Window(2, 0) != Window(0, 2)


def test_pairs():
    assert Full().pairs(7, 9, batch=2, heads=3) == 7 * 9 * 6
    assert Causal().pairs(100_000) == 100_000 * 100_001 // 2
    assert (Causal() & Window(255, 0)).pairs(4096) == sum(min(i + 1, 256) for i in range(4096))


@pytest.mark.parametrize(
    ("pattern", "reach"),
    [
        (Full(), (None, None)),
        (Causal(), (None, 0)),
        (Window(3, None), (3, None)),
        (Chunks(5), (4, 4)),
        (Causal() & Window(7, 2), (7, 0)),
        (Causal() & Chunks(8), (7, 0)),
        (Causal() & (Window(2, 0) | Keys(1)), (None, 0)),
        (Window(2, 1) | Window(1, 3), (2, 3)),
        (Causal() & Window(3, 0) & Predicate(lambda at: at.key_position > 0), (3, 0)),
        (Window(2, 0) & ~Causal(), (0, 0)),
    ],
    ids=str,
)
def test_reach(pattern, reach):
    assert pattern.reach() == reach


@given(st.data())
def test_joined_patterns_agree_with_sets(data):
    s = data.draw(sizes())
    a, b = (data.draw(patterns(s)) or Full() for _ in range(2))
    at = where(None, s)
    one, other = a.allows(at).expand(s.scores), b.allows(at).expand(s.scores)
    for joined, truth in ((And(a, b), one & other), (Or(a, b), one | other), (Not(a), ~one)):
        assert torch.equal(joined.allows(at).expand(s.scores), truth)
