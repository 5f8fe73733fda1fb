"""Caches that keep only some keys: what is kept and computed, against the weights of every pair written out."""

import copy
import dataclasses
import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import limelight
from limelight.nn import (
    Adaptive,
    Cache,
    DistanceBias,
    ForwardContext,
    Importance,
    Keep,
    LastQueries,
    LinearBias,
    MixtureOfHeads,
    MultiHead,
    PreNorm,
    Pyramid,
    Received,
    Recency,
    RMSNorm,
    Rotary,
)

F64 = torch.float64
CAUSAL = limelight.Causal()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def layer(key_value_heads=2, **more):
    more = {"pattern": CAUSAL, "rotary": Rotary(4), **more}
    made = MultiHead(8, query_heads=4, key_value_heads=key_value_heads, head_width=4, **more)
    torch.nn.init.normal_(made.query.weight, std=1.0)  # weights far from even
    if made.sink is not None:
        torch.nn.init.normal_(made.sink)
    return PreNorm(made, RMSNorm(8)).to(F64).requires_grad_(False)


def read(layers, states, cache, layout=None):
    """One pass."""
    step = cache.step(*states.shape[:2], layout, layers=len(layers))
    context = ForwardContext(layout, step.positions, cache=step)
    for each in layers:
        states = each(states, context)
    cache.close(step)
    return states


# --- The definition: one text, one layer, all pairs ------------------------------------------------------------


def scores_of(by, weights, kept, after):
    """The score of each kept key of one head, from the weights ``(G, after, after)`` of all queries so far."""
    if isinstance(by, Recency):
        return [float(j) for j in kept]
    if isinstance(by, Received):
        sums = [weights[:, :, j].sum(-1).mean().item() for j in kept]
        return [total / (after - j) for total, j in zip(sums, kept, strict=True)] if by.mean else sums
    before = [j for j in kept if j < after - by.window]
    last = [weights[:, after - by.window :, j].sum(-1).mean().item() / by.window for j in before]
    reach, pooled = by.pool // 2, []
    for n in range(len(last)):
        pooled.append(sum(last[max(n - reach, 0) : n + reach + 1]) / by.pool)
    return pooled + [0.0] * (len(kept) - len(before))


def chosen_of(keep, weights, kept, after, budget):
    """The keys that the heads of a layer keep: ``weights`` and ``kept`` have an entry for each key head."""
    always = {*range(keep.first), *range(after - max(keep.recent, keep.by.window), after)}
    ranked = []
    for head, keys in enumerate(kept):
        scores = scores_of(keep.by, weights[head], keys, after)
        scores = [math.inf if j in always else s for s, j in zip(scores, keys, strict=True)]
        ranked.append(sorted(zip(scores, keys, strict=True), key=lambda one: (-one[0], one[1])))
    if keep.heads is None:
        return [sorted(j for _, j in one[:budget]) for one in ranked]
    safe = int(keep.heads.floor * budget)
    joined = [
        (-math.inf if place < safe else -score, head, j)
        for head, one in enumerate(ranked)
        for place, (score, j) in enumerate(one)
    ]
    best = sorted(joined)[: budget * len(kept)]
    return [sorted(j for _, h, j in best if h == head) for head in range(len(kept))]


def by_definition(step, states, cuts, keep, budget, precision=None, first=0):
    """The output of a layer for one text ``(L, 8)`` read in pieces, and the keys that each head keeps at the end.

    With a ``precision``, a dtype of 8 bits and whether rows are rotated, queries of the pieces up to number ``first``
    see keys and values as they are, later ones rounded.
    """
    attend, L = step.inner, len(states)
    normal = step.norm(states[None])
    context = ForwardContext.of(normal)
    query = attend.rotated_heads(attend.query(normal), attend.query_norm, context.rotation)[0]
    key, value = (x[0] for x in attend.keys_and_values(normal, context))
    H, G = len(key), len(query) // len(key)
    plain, rounded = (key, value), (key, value)
    if precision is not None:
        rounded = tuple(limelight.Quantized.of(x, precision[0], rotate=precision[1]).dense(F64) for x in plain)
    kept, weights = [[] for _ in range(H)], query.new_zeros(H, G, L, L)
    mixed = query.new_zeros(len(query), L, 4)
    for number, (begin, end) in enumerate(zip([0, *cuts], cuts, strict=False)):
        key, value = plain if number <= first else rounded
        kept = [keys + list(range(begin, end)) for keys in kept]
        for head, keys in enumerate(kept):
            for g in range(G):
                for i in range(begin, end):
                    seen = [j for j in keys if j <= i]
                    score = key[head, seen] @ query[head * G + g, i] / 2
                    if attend.sink is not None:
                        score = torch.cat((score, attend.sink[head * G + g, None]))
                    share = score.softmax(0)[: len(seen)]
                    weights[head, g, i, seen] = share
                    mixed[head * G + g, i] = share @ value[head, seen]
        limit = budget(end)
        if end and sum(map(len, kept)) >= H * (limit + keep.interval):
            # What the last queries give to the keys that are held now
            now = weights
            if keep.by.window:
                now = torch.zeros_like(weights)
                for head, keys in enumerate(kept):
                    for g in range(G):
                        for i in range(end - min(end, keep.by.window), end):
                            seen = [j for j in keys if j <= i]
                            score = rounded[0][head, seen] @ query[head * G + g, i] / 2
                            if attend.sink is not None:
                                score = torch.cat((score, attend.sink[head * G + g, None]))
                            now[head, g, i, seen] = score.softmax(0)[: len(seen)]
            kept = chosen_of(keep, now[:, :, :end], kept, end, limit)
    return states + attend.output(mixed.transpose(0, 1).flatten(1)), kept


def budgets_of(keep, number, layers):
    def budget(after):
        even = keep.tokens if isinstance(keep.tokens, int) else max(math.floor(keep.tokens * after), keep.always)
        if keep.layers is None or layers == 1:
            return even
        low = 1 / keep.layers.steepness
        sums = [
            sum(2 - low - 2 * (1 - low) * n / (layers - 1) for n in range(end)) * (even - keep.always)
            for end in (number, number + 1)
        ]
        return keep.always + math.floor(sums[1] + 1e-6) - math.floor(sums[0] + 1e-6)

    return budget


def in_precision(precision):
    return {} if precision is None else {"dtype": precision[0], "rotate": precision[1]}


POLICIES = st.sampled_from([Recency(), Received(), Received(mean=False), LastQueries(3, 3), LastQueries(2, 1)])


@settings(max_examples=settings().max_examples // 4)
@given(
    data=st.data(),
    by=POLICIES,
    tokens=st.sampled_from([7, 10, 0.4]),
    first=st.integers(0, 2),
    recent=st.sampled_from([0, 2, 4]),
    steepness=st.sampled_from([None, 3.0]),
    floor=st.sampled_from([None, 0.0, 0.5]),
    interval=st.sampled_from([1, 3]),
    key_value_heads=st.sampled_from([1, 2, 4]),
    sink=st.booleans(),
    rows=st.integers(1, 3),
    precision=st.sampled_from([None, None, ("int8", True), ("int8", False), ("float8_e4m3fn", True)]),
)
def test_what_is_kept_and_computed_is_the_definition(
    data, by, tokens, first, recent, steepness, floor, interval, key_value_heads, sink, rows, precision
):
    heads = None if floor is None or isinstance(by, Recency) else Adaptive(floor)
    layers = None if steepness is None else Pyramid(steepness)
    keep = Keep(tokens, first, recent, by, layers, heads, interval)
    stack = [layer(key_value_heads, sink=sink) for _ in range(2)]
    pieces = data.draw(
        st.lists(st.lists(st.sampled_from([0, 1, 1, 2, 5, 9]), min_size=4, max_size=4), min_size=rows, max_size=rows)
    )
    cache, got = Cache(keep=keep, **in_precision(precision)), [[] for _ in pieces]
    texts = [torch.randn(sum(row), 8, dtype=F64) for row in pieces]
    at = [0] * rows
    for n in range(4):
        lengths = torch.tensor([row[n] for row in pieces])
        batch = torch.full((rows, int(lengths.max()), 8), torch.nan, dtype=F64)
        side = "left" if n == 0 else "right"
        for row, count in enumerate(lengths.tolist()):
            place = slice(batch.shape[1] - count, None) if side == "left" else slice(0, count)
            batch[row, place] = texts[row][at[row] : at[row] + count]
        even = bool((lengths == batch.shape[1]).all())
        out = read(stack, batch, cache, None if even else limelight.Padded(lengths, side=side))
        for row, count in enumerate(lengths.tolist()):
            got[row].append(out[row, batch.shape[1] - count :] if side == "left" else out[row, :count])
            at[row] += count
    filled = next(
        (n for n in range(4) if any(row[n] for row in pieces)), 0
    )  # by the pass before which nothing was kept
    for row, text in enumerate(texts):
        cuts = [sum(pieces[row][: n + 1]) for n in range(4)]
        states = text
        for number, one in enumerate(stack):
            states, kept = by_definition(one, states, cuts, keep, budgets_of(keep, number, 2), precision, filled)
            assert [head.tolist() for head in cache.kept(number).positions[row]] == kept
        torch.testing.assert_close(torch.cat(got[row]), states, rtol=1e-9, atol=1e-9)


# --- The parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("by", [Received(), LastQueries(4, 3)])
def test_a_watcher_changes_nothing_and_sees_the_layer(by, dtype):
    stack = [layer(name=f"layers.{n}") for n in range(2)]
    keep = Keep(9, 1, 3, by, heads=Adaptive(0.0), interval=2)
    text = torch.randn(2, 30, 8, dtype=F64)
    found, caches = [], []
    for watched in (False, True):
        cache = Cache(keep=keep, dtype=dtype)
        out = [read(stack, text[:, :12], cache)]
        for token in text[:, 12:].split(3, 1):
            if watched:
                with limelight.watching(limelight.Observe(entropy=True)) as seen:
                    out.append(read(stack, token, cache))
                assert list(seen) == ["layers.0", "layers.1"]
                assert seen["layers.1"].entropy.shape == (2, 4, 3)
            else:
                out.append(read(stack, token, cache))
        found.append(torch.cat(out, 1))
        caches.append(cache)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    for n in range(2):
        one, two = (cache.kept(n) for cache in caches)
        assert [head.tolist() for row in one.positions for head in row] == [
            head.tolist() for row in two.positions for head in row
        ]


def room_of(cache):
    return (len(store.positions) for store in cache._stores.values())


def test_memory_falls_to_the_budget():
    stack, text = [layer()], torch.randn(2, 600, 8, dtype=F64)
    for keep in (Keep(32, 4, 8), Keep(32, 4, 8, Received(), heads=Adaptive()), Keep(32, 4, 8, LastQueries(8))):
        keep = dataclasses.replace(keep, interval=8)
        cache, sizes = Cache(keep=keep), []
        bits = Cache(keep=keep, dtype="int8")
        read(stack, text[:, :500], cache)
        read(stack, text[:, :500], bits)
        for token in text[:, 500:].split(1, 1):
            read(stack, token, cache)
            read(stack, token, bits)
            sizes.append(cache.bytes)
            saved = sum(room_of(cache)) * 2 * (4 * 8 - (4 + 8))  # 4 bytes and a scale of float64 for 4 numbers
            assert bits.bytes == cache.bytes - saved
        places = 2 * 2 * (32 + 8)  # rows, key heads, keys
        each = 2 * 4 * 8 + 8 + (8 if keep.by.observes else 0)  # a key and a value of 4 float64, a position, a weight
        queries = 2 * 4 * keep.by.window * 4 * 8
        assert max(sizes) <= places * each + queries
        kept = cache.kept(0)
        assert int(kept.counts.sum()) <= places
        assert bool((kept.evicted + kept.counts == 600).all())


def test_budgets_of_a_pyramid_fall_and_add_up():
    for tokens, layers, steepness in ((100, 12, 20.0), (64, 30, 5.0), (40, 1, 3.0), (77, 7, 1.0)):
        keep = Keep(tokens, 4, 16, layers=Pyramid(steepness))
        budgets = [int(keep.budget(torch.tensor([5000]).numpy(), n, layers)[0]) for n in range(layers)]
        assert sum(budgets) == tokens * layers
        assert all(a >= b - 1 for a, b in itertools.pairwise(budgets))
        if layers > 1:
            assert budgets[-1] - 20 == pytest.approx((tokens - 20) / steepness, abs=1)


def test_heads_share_the_budget_of_their_layer():
    keep = Keep(12, 1, 2, Received(), heads=Adaptive(0.25), interval=1)
    cache = Cache(keep=keep)
    read([layer(4)], torch.randn(3, 80, 8, dtype=F64), cache)
    counts = cache.kept(0).counts
    assert counts.sum(1).tolist() == [48, 48, 48]
    assert int(counts.min()) >= 3
    assert len(set(counts.flatten().tolist())) > 1


def test_the_evicted_weight_is_the_rest_of_the_received_weight():
    one, text = layer(), torch.randn(1, 40, 8, dtype=F64)
    cache = Cache(keep=Keep(10, 1, 2, Received(), interval=1))
    with limelight.watching(limelight.Observe(received=True)) as seen:
        read([one], text, cache)
    kept = cache.kept(0)
    received = seen["attention.0"].received[0].unflatten(0, (2, 2)).mean(1)
    for head, share in enumerate(kept.evicted_weight[0].tolist()):
        left = received[head, kept.positions[0][head]].sum() / received[head].sum()
        assert share == pytest.approx(1 - left.item(), abs=1e-6)


def test_windows_keep_their_window_and_everything_else_is_kept_without_a_policy():
    stack = [layer(pattern=limelight.Window(3, 0)), layer()]
    text, cache = torch.randn(1, 200, 8, dtype=F64), Cache(keep=Keep(20, 4, 8, interval=1))
    out = torch.cat([read(stack, token, cache) for token in text.split(1, 1)], 1)
    assert cache.kept(0).positions[0][0][-4:].tolist() == [196, 197, 198, 199]
    assert cache.kept(1).positions[0][1].tolist() == [0, 1, 2, 3, *range(184, 200)]
    assert cache.kept(1).evicted_weight is None
    plain = Cache()
    first = read(stack[:1], text, plain)
    expected, _ = by_definition(stack[1], first[0], range(1, 201), cache.keep, lambda _: 20)
    torch.testing.assert_close(out[0], expected, rtol=1e-9, atol=1e-9)
    assert plain.kept(0).positions[0][0].tolist() == list(range(plain.kept(0).evicted[0, 0], 200))


def test_chosen_and_repeated_rows_go_on():
    stack, keep = [layer(), layer()], Keep(8, 1, 3, LastQueries(3, 1), heads=Adaptive(), interval=2)
    texts, ends = torch.randn(2, 20, 8, dtype=F64), torch.randn(3, 6, 8, dtype=F64)
    cache = Cache(keep=keep)
    read(stack, texts, cache)
    twin = copy.deepcopy(cache)
    cache.select(torch.tensor([1, 1, 0]))
    got = torch.cat([read(stack, token, cache) for token in ends.split(1, 1)], 1)
    for row, of in enumerate((1, 1, 0)):
        other = Cache(keep=keep)
        read(stack, texts[of][None], other)
        alone = torch.cat([read(stack, token, other) for token in ends[row][None].split(1, 1)], 1)
        torch.testing.assert_close(got[row], alone[0], rtol=1e-12, atol=1e-12)
    assert twin.kept(0).counts.shape == (2, 2)


def test_no_row_is_left():
    cache = Cache(keep=Keep(8, 1, 3, Received(), interval=2))
    read([layer()], torch.randn(2, 20, 8, dtype=F64), cache)
    cache.select(torch.tensor([], dtype=torch.int64))
    assert cache.kept(0).evicted_weight.shape == (0, 2)


class Even(Importance):
    """Keeps the tokens of even position."""

    def scores(self, keys):
        return 1.0 - keys.positions % 2


def test_an_importance_of_ones_own():
    cache = Cache(keep=Keep(10, 0, 0, Even(), interval=1))
    read([layer()], torch.randn(1, 20, 8, dtype=F64), cache)
    assert cache.kept(0).positions[0][0].tolist() == list(range(0, 20, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_that_are_not_finite_never_displace_what_is_always_kept(dtype):
    made = layer().to(dtype)
    text = torch.randn(1, 30, 8, dtype=dtype)
    text[0, 10] = torch.nan
    cache = Cache(keep=Keep(8, 2, 4, Received(), interval=1))
    read([made], text, cache)
    kept = cache.kept(0).positions[0][0].tolist()
    assert kept[:2] == [0, 1]
    assert kept[-4:] == [26, 27, 28, 29]


@pytest.mark.parametrize(
    "scores",
    [
        lambda keys: torch.zeros(3),
        lambda keys: keys.positions,
        lambda keys: keys.positions > 3,
        lambda keys: keys.positions.numpy(),
        lambda keys: None,
        lambda keys: torch.ones(keys.positions.shape, device="meta"),
    ],
    ids=["shape", "int64", "bool", "numpy", "nothing", "device"],
)
def test_scores_of_ones_own_are_checked(scores):
    class Own(Importance):
        def scores(self, keys):
            return scores(keys)

    cache = Cache(keep=Keep(8, 1, 2, Own(), interval=1))
    with pytest.raises(limelight.ArgumentError, match=r"`Own\.scores` must return float scores of shape \(1, 2, 30\)"):
        read([layer()], torch.randn(1, 30, 8, dtype=F64), cache)


def test_the_largest_settings_and_the_smallest():
    """Budgets that no text reaches keep everything, and memory follows the keys, not the settings."""
    stack, text = [layer(), layer()], torch.randn(1, 90, 8, dtype=F64)
    for keep in (
        Keep(2**40, by=Received(), layers=Pyramid(), heads=Adaptive()),
        Keep(8, 1, 2, interval=2**40),
        Keep(2**40, 2**39, 2**39),
    ):
        cache, plain = Cache(keep=keep), Cache()
        ours, truth = (torch.cat([read(stack, x, c) for x in text.split(30, 1)], 1) for c in (cache, plain))
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)
        assert cache.kept(1).counts.tolist() == [[90, 90]]
        assert max(room_of(cache)) < 4 * 90
    cache = Cache(keep=Keep(1e-9, 0, 0, interval=1))  # a share of less than one key keeps one
    read(stack, text, cache)
    assert cache.kept(0).positions[0][0].tolist() == [89]


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: Keep(0), "at least 1"),
        (lambda: Keep(True), "whole number"),
        (lambda: Keep(1.5), r"share above 0 and up to 1\.0"),
        (lambda: Keep(0.0), "share above 0"),
        (lambda: Keep(float("nan")), "share above 0"),
        (lambda: Keep(30), "30 is less than 36"),
        (lambda: Keep(60, by=LastQueries(64)), "60 is less than 68"),
        (lambda: Keep(100, by=Received), "is the class Received"),
        (lambda: Keep(100, by=None), "kind Importance"),
        (lambda: Keep(100, layers=3), "kind Pyramid"),
        (lambda: Keep(100, heads=Adaptive()), "by their age"),
        (lambda: Keep(100, interval=0), "at least 1"),
        (lambda: Keep(2**62), "`tokens` must be at most 1099511627776"),
        (lambda: Keep(100, interval=2**62), "`interval` must be at most"),
        (lambda: Keep(100, 2**62), "`first` must be at most"),
        (lambda: LastQueries(8, pool=4), "must be odd"),
        (lambda: LastQueries(0), "at least 1"),
        (lambda: Received(mean=1), "True or False"),
        (lambda: Pyramid(0.5), "at least 1"),
        (lambda: Adaptive(1.5), "from 0 to 1"),
        (lambda: Cache(keep=100), "must be a Keep"),
    ],
)
def test_bad_settings(bad, message):
    with pytest.raises(limelight.ArgumentError, match=message):
        bad()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"pattern": None}, "unless it is Causal"),
        ({"pattern": CAUSAL | limelight.Prefix(1)}, "Prefix"),
        ({"pattern": CAUSAL & (limelight.Window(2, 0) | limelight.Keys(2))}, "Keys"),
        ({"scores": (LinearBias(4),)}, "ALiBi"),
        ({"scores": (DistanceBias(4, limelight.T5Buckets(8, 20, bidirectional=False)),)}, "RelativeBias"),
        ({"scores": (limelight.Bias(torch.zeros(1, 1, 1, 1, dtype=F64)),)}, "Bias"),
        ({"compare": limelight.Additive(torch.ones(4, 4, dtype=F64))}, "Additive"),
    ],
)
def test_what_goes_by_places_is_refused_by_name(more, message):
    cache = Cache(keep=Keep(8, 1, 2))
    with pytest.raises(limelight.ArgumentError, match=message):
        read([layer(**more)], torch.randn(1, 3, 8, dtype=F64), cache)


def test_other_refusals():
    heads = MixtureOfHeads(8, query_heads=4, key_value_heads=2, head_width=4, shared=2, k=1, pattern=CAUSAL)
    with pytest.raises(limelight.ArgumentError, match="must keep every key for a MixtureOfHeads"):
        read([heads.to(F64).requires_grad_(False)], torch.randn(1, 3, 8, dtype=F64), Cache(keep=Keep(40)))
    cache = Cache(keep=Keep(40, layers=Pyramid()))
    step = cache.step(1, 3)
    with pytest.raises(limelight.ArgumentError, match="must be counted for a Pyramid"):
        layer()(torch.randn(1, 3, 8, dtype=F64), ForwardContext(None, step.positions, cache=step))
    cache = Cache(keep=Keep(8, 1, 2))
    read([layer(scores=(limelight.SoftCap(3.0),))], torch.randn(1, 30, 8, dtype=F64), cache)  # no position in it
    with pytest.raises(limelight.ArgumentError, match="it is 1, and 1 layers"):
        cache.kept(1)


def test_a_pass_that_was_interrupted_is_noticed():
    stack, cache = [layer()], Cache(keep=Keep(8, 1, 2))
    text = torch.randn(1, 30, 8, dtype=F64)
    read(stack, text, cache)
    step = cache.step(1, 1)
    stack[0](text[:, :1], ForwardContext(None, step.positions, cache=step))  # and never closed
    with pytest.raises(limelight.ArgumentError, match="must hold whole passes"):
        read(stack, text[:, :1], cache)


@pytest.mark.parametrize(("by", "dtype"), [(Recency(), None), (Received(), "int8"), (LastQueries(4, 3), None)])
def test_the_compiler_leaves_kept_keys_to_python(by, dtype):
    torch.compiler.reset()
    one, text, keep = layer(), torch.randn(2, 20, 8, dtype=F64), Keep(8, 1, 3, by, interval=2)
    compiled, caches = torch.compile(one, backend="eager"), [Cache(keep=keep, dtype=dtype) for _ in range(2)]
    for tokens in (text[:, :12], *text[:, 12:].split(1, 1)):
        expected, found = (read([x], tokens, cache) for x, cache in zip((one, compiled), caches, strict=True))
        torch.testing.assert_close(found, expected)
    expected, found = ([head.tolist() for row in cache.kept(0).positions for head in row] for cache in caches)
    assert found == expected
    assert int(caches[0].kept(0).evicted.sum()) > 0


def test_without_torch_compile_the_compiler_is_not_imported():
    """It would take a second."""
    text = """
import sys, torch
from limelight.nn import Cache, ForwardContext, Keep, MultiHead
from limelight import Causal
layer = MultiHead(8, query_heads=2, key_value_heads=1, head_width=4, pattern=Causal()).requires_grad_(False)
cache = Cache(keep=Keep(8, 1, 1))
step = cache.step(1, 3)
layer(torch.ones(1, 3, 8), ForwardContext(None, step.positions, cache=step))
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", text], check=True)
