"""The lowering allows exactly the pairs that the definitions allow, and costs next to nothing where it must."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import layouts, patterns, sizes

from limelight import Aligned, Blocks, Causal, Explicit, KeyMask, Keys, Packed, Padded, Predicate, Prefix, Window
from limelight.forms.lowering import MAX_SPANS, Lowered, lower
from limelight.forms.segments import pack


@given(st.data())
@settings(max_examples=settings().max_examples * 4)
def test_lowering_equals_definition(data):
    s = data.draw(sizes())
    layout, pattern = data.draw(layouts(s)), data.draw(patterns(s))
    lowered = lower(pattern, layout, s.B, s.Hq, s.Lq, s.Lk)
    truth = loops.visible(pattern, layout, s.B, s.Hq, s.Lq, s.Lk)
    seen = np.broadcast_to(lowered.rows(0, s.Lq), truth.shape)
    assert (seen == truth).all()
    assert lowered.pairs() == truth.sum()
    assert (np.broadcast_to(lowered.seen_by(), (s.B, s.Hq, s.Lk)) == truth.sum(2)).all()
    starts, ends = lowered.intervals()
    assert len(starts) <= max(1, MAX_SPANS)
    full = (starts < ends)[1:]
    assert (~full | (starts[1:] > ends[:-1])).all(), "intervals are sorted and do not touch"


@given(st.data())
def test_block_counts(data):
    s = data.draw(sizes())
    layout, pattern = data.draw(layouts(s)), data.draw(patterns(s))
    bq, bk = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    counts = lower(pattern, layout, s.B, s.Hq, s.Lq, s.Lk).block_pairs(bq, bk)
    truth = loops.visible(pattern, layout, s.B, s.Hq, s.Lq, s.Lk)
    nq, nk = -(-s.Lq // bq), -(-s.Lk // bk)
    padded = np.zeros((s.B, s.Hq, nq * bq, nk * bk), int)
    padded[:, :, : s.Lq, : s.Lk] = truth
    truth = padded.reshape(s.B, s.Hq, nq, bq, nk, bk).sum((3, 5))
    assert (np.broadcast_to(counts, truth.shape) == truth).all()


@given(st.data())
def test_tiles_across_edges(data):
    """More than one 64 x 64 tile, whole, empty and mixed."""
    Lq, Lk = data.draw(st.integers(60, 140)), data.draw(st.integers(60, 140))
    size = data.draw(st.sampled_from([16, 32, 50, 64]))
    table = torch.rand(9, 9, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) < 0.5
    pattern = Blocks(table, size) & Causal()
    at = torch.arange(Lq)[:, None] + (Lk - Lq), torch.arange(Lk)[None]
    inside = at[0] >= 0
    truth = table[(at[0].clamp(min=0) // size), at[1] // size] & inside & (at[1] <= at[0])
    assert (lower(pattern, None, 1, 1, Lq, Lk).rows(0, Lq)[0, 0] == truth.numpy()).all()


def test_a_rule_over_heads_and_indices():
    rule = Predicate(lambda at: (at.head == 0) | ((at.query_index + at.key_index) % 3 == 0))
    seen = lower(rule & Causal(), None, 1, 2, 70, 70).rows(0, 70)
    i, j = np.arange(70)[:, None], np.arange(70)[None]
    assert (seen[0, 0] == (j <= i)).all()
    assert (seen[0, 1] == ((j <= i) & ((i + j) % 3 == 0))).all()


def test_common_patterns_are_arithmetic():
    for pattern in (
        None, Causal(), Window(5, 2), Causal() & (Window(255, 0) | Keys(first=4)), Causal() | Prefix(7), ~Window(3, 3),
    ):  # fmt: skip
        lowered = lower(pattern, None, 2, 4, 100, 100)
        assert lowered.spans is not None
        assert lowered.tiles is None
        assert lowered.bytes < 1000
    for layout in (Packed((30, 70)), Padded(torch.tensor([3, 9])), Aligned(0), KeyMask(torch.ones(2, 100).bool())):
        assert lower(Causal(), layout, 2, 4, 100, 100).spans is not None


def test_long_and_cheap():
    """131,072 tokens: under a millisecond and without anything of their number, let alone its square."""
    times = []
    for back in range(100, 120):
        start = time.perf_counter()
        lowered = lower(Causal() & Window(back, 0), None, 1, 8, 131_072, 131_072)
        times.append(time.perf_counter() - start)
        assert lowered.bytes < 1000
    assert min(times) < 1e-3


def test_thousand_decode_steps_build_no_plan():
    from limelight.forms.lowering.lower import _packed_spans_cached

    pattern = Causal() & Window(63, 0)
    lower(pattern, None, 1, 8, 1, 1)
    before = _packed_spans_cached.cache_info().misses
    tracemalloc.start()
    for length in range(1, 1001):
        lowered = lower(pattern, None, 1, 8, 1, length)
        assert lowered.bytes < 300
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert _packed_spans_cached.cache_info().misses == before
    assert held < 10_000


def test_tensors_are_never_compared_by_value(monkeypatch):
    mask = torch.ones(1, 8, dtype=torch.bool)
    lengths = torch.tensor([3])

    def compared(*_):
        raise AssertionError("a tensor was compared by value")

    pairs = [
        (KeyMask(mask), KeyMask(mask.clone())),
        (Padded(lengths), Padded(lengths.clone())),
        (Explicit(mask), Explicit(mask.clone())),
    ]
    monkeypatch.setattr(torch.Tensor, "__eq__", compared)
    for one, other in pairs:
        assert one == type(one)(*one.parts())
        assert hash(one) == hash(type(one)(*one.parts()))
        assert one != other


def test_fixed_rules_are_kept_and_others_are_not():
    calls = []

    def function(at):
        calls.append(1)
        return at.key_position % 2 == 0

    for _ in range(3):
        lower(Predicate(function, fixed=True), None, 1, 1, 64, 64)
    assert len(calls) == 1
    for _ in range(3):
        lower(Predicate(function), None, 1, 1, 64, 64)
    assert len(calls) == 4


@pytest.mark.parametrize("n", [0, 1, 63, 64, 65])
def test_edges_of_tiles(n):
    mask = torch.rand(n, n, generator=torch.Generator().manual_seed(n)) < 0.5
    lowered = lower(Explicit(mask), None, 1, 1, n, n)
    assert (lowered.rows(0, n)[0, 0] == mask.numpy()).all()


def test_a_mask_promised_not_to_change_is_lowered_once():
    """One lowering for every layer that is given the same description, and none where nothing was promised."""
    mask = torch.tensor([[True, False, True, True], [False, True, True, True]])
    for fixed in (False, True):
        for pattern, layout in (
            (Causal(), KeyMask(mask, fixed=fixed)),
            (Causal() & Explicit(mask[:, None, None], fixed=fixed), None),
        ):
            first, again = (lower(pattern, layout, 2, 1, 4, 4) for _ in range(2))
            assert (first is again) == fixed
            assert lower(pattern, layout, 2, 1, 3, 4) is not first
            if layout is not None:
                assert lower(None, layout, 2, 1, 4, 4).pairs() != lower(pattern, layout, 2, 1, 4, 4).pairs()


@pytest.mark.parametrize(
    ("layout", "queries", "keys"),
    [
        (None, True, True),
        (Packed((3, 0, 7), (5, 4, 3)), True, True),
        (Packed((3, 7), (12, 0)), True, True),
        (Padded(torch.tensor([10, 10]), torch.tensor([12, 12])), True, True),
        (Padded(torch.tensor([10, 9]), torch.tensor([12, 12])), False, True),
        (Padded(torch.tensor([10, 10]), torch.tensor([12, 11])), True, False),
        (Padded(torch.tensor([10, 10]), torch.tensor([12, 11]), side="left"), True, False),
        (Padded(torch.tensor([10, 10]), torch.tensor([12, 0])), True, False),
    ],
)
def test_it_says_whether_segments_cover_queries_and_keys(layout, queries, keys):
    """So that kernels write every row of outputs and gradients."""
    lowered = lower(None, layout, 2, 1, 10, 12)
    assert (lowered.covers, lowered.covers_keys) == (queries, keys)


def test_keys_of_two_segments_are_not_covered():
    """Each would be written by the owners of two segments."""
    for begins, ends in (((0, 4), (6, 10)), ((0, 7), (6, 10)), ((0, 0), (10, 10)), ((1, 6), (6, 10)), ((0, 6), (6, 9))):
        segments = pack(
            2,
            row=-1,
            query_begin=np.array([0, 5]),
            query_end=np.array([5, 10]),
            key_begin=np.array(begins),
            key_end=np.array(ends),
        )
        assert not Lowered(2, 1, 10, 10, segments, b"").covers_keys
