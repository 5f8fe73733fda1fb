"""What a cache gives back, token for token, against each text read alone and at once."""

import pickle
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import limelight
from limelight.nn import (
    Cache,
    DistanceBias,
    DynamicNTK,
    ForwardContext,
    LinearBias,
    MultiHead,
    PreNorm,
    RMSNorm,
    Rotary,
)

F64 = torch.float64
PATTERNS = {
    "causal": limelight.Causal(),
    "window": limelight.Window(3, 0),
    "short window": limelight.Window(0, 0),
    "long window": limelight.Causal() & limelight.Window(40, None),
    "streaming": limelight.Causal() & (limelight.Window(2, 0) | limelight.Keys(2)),
    "chunks": limelight.Causal() & limelight.Chunks(5),
    "prefix": limelight.Causal() | limelight.Prefix(1),
}
POSITIONS = {
    "rotary": {"rotary": Rotary(4)},
    "alibi": {"scores": (LinearBias(4),)},
    "t5": {"scores": (DistanceBias(4, limelight.T5Buckets(8, 20, bidirectional=False)),)},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def model(pattern, position="rotary", key_value_heads=2):
    layers = [
        PreNorm(
            MultiHead(
                8, query_heads=4, key_value_heads=key_value_heads, head_width=4, pattern=each, **POSITIONS[position]
            ),
            RMSNorm(8),
        )
        for each in (pattern, limelight.Causal())
    ]
    return torch.nn.ModuleList(layers).to(F64).requires_grad_(False)


def read(layers, states, layout=None, cache=None):
    """One pass; with a cache, a step of it."""
    if cache is None:
        context = ForwardContext(layout, torch.arange(states.shape[1])[None])
    else:
        step = cache.step(*states.shape[:2], layout)
        context = ForwardContext(layout, step.positions, cache=step)
    for layer in layers:
        states = layer(states, context)
    if cache is not None:
        cache.close(step)
    return states


def alone(layers, texts):
    return [read(layers, text[None])[0] for text in texts]


def padded(parts, side="right"):
    """Pieces of different lengths as one batch whose padding is NaN, and its layout."""
    lengths = torch.tensor([len(part) for part in parts])
    batch = torch.full((len(parts), int(lengths.max()), 8), torch.nan, dtype=F64)
    for row, part in zip(batch, parts, strict=True):
        if side == "right":
            row[: len(part)] = part
        else:
            row[len(row) - len(part) :] = part
    return batch, limelight.Padded(lengths, side=side)


def unpadded(batch, layout):
    L = batch.shape[1]
    ends = [(0, n) if layout.side == "right" else (L - n, L) for n in layout.query_lengths.tolist()]
    return [row[a:b] for row, (a, b) in zip(batch, ends, strict=True)]


def in_steps(layers, texts, cuts, side, cache):
    """Each text in pieces: those before its cut at once, padded at ``side``; then by turns, padded at the right."""
    got = [[] for _ in texts]
    for which, (a, b) in enumerate(pairwise(cuts)):
        parts = [text[start:end] for text, start, end in zip(texts, a, b, strict=True)]
        batch, layout = padded(parts, "right" if which else side)
        if len({len(part) for part in parts}) == 1 and batch.shape[1]:
            layout = None
        out = read(layers, batch, layout, cache)
        pieces = list(out) if layout is None else unpadded(out, layout)
        for row, piece in zip(got, pieces, strict=True):
            row.append(piece)
    return [torch.cat(row) for row in got]


@settings(max_examples=settings().max_examples // 2)
@given(
    data=st.data(),
    pattern=st.sampled_from(list(PATTERNS)),
    position=st.sampled_from(list(POSITIONS)),
    key_value_heads=st.sampled_from([1, 2, 4]),
    side=st.sampled_from(["left", "right"]),
    rows=st.integers(1, 3),
    limit=st.sampled_from([None, 90]),
)
def test_cached_is_uncached(data, pattern, position, key_value_heads, side, rows, limit):
    layers = model(PATTERNS[pattern], position, key_value_heads)
    steps = st.lists(st.sampled_from([0, 1, 1, 1, 2, 5, 20]), min_size=4, max_size=4)
    same = data.draw(steps)
    pieces = data.draw(st.lists(steps, min_size=rows, max_size=rows) | st.just([same] * rows))
    cuts = [tuple(sum(row[:n]) for row in pieces) for n in range(5)]
    texts = [torch.randn(n, 8, dtype=F64) for n in cuts[-1]]
    got = in_steps(layers, texts, cuts, side, Cache(limit))
    for mine, expected in zip(got, alone(layers, texts), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_a_long_text_in_bounded_memory_and_few_copies():
    window = torch.nn.ModuleList([model(limelight.Window(7, 0))[0]])
    whole = torch.nn.ModuleList([model(limelight.Causal())[0]])
    text = torch.randn(2, 300, 8, dtype=F64)
    for layers, bounded in ((window, True), (whole, False)):
        cache, sizes, out = Cache(), [], []
        for token in text.split(1, dim=1):
            out.append(read(layers, token, None, cache))
            sizes.append(cache.bytes)
        torch.testing.assert_close(torch.cat(out, 1), read(layers, text), rtol=1e-12, atol=1e-12)
        each = 2 * 2 * 2 * 4 * 8  # key and value, rows, heads, width, bytes
        if bounded:
            assert set(sizes) == {64 * each}
        else:
            assert len(set(sizes)) <= 5  # doubling
            assert sizes[-1] <= 2.5 * 300 * each


def test_a_fixed_size_is_taken_at_once_and_kept():
    layers, cache = model(limelight.Causal()), Cache(limit=6)
    read(layers, torch.randn(1, 4, 8, dtype=F64), None, cache)
    taken = cache.bytes
    read(layers, torch.randn(1, 2, 8, dtype=F64), None, cache)
    assert cache.bytes == taken == 2 * 2 * 2 * 6 * 4 * 8
    with pytest.raises(limelight.ArgumentError, match="6 positions"):
        cache.step(1, 1)


def test_a_prompt_read_once_for_several_texts():
    layers = model(limelight.Window(3, 0))
    prompt, ends = torch.randn(1, 9, 8, dtype=F64), torch.randn(3, 4, 8, dtype=F64)
    cache = Cache()
    read(layers, prompt, None, cache)
    cache.repeat(3)
    got = [read(layers, token, None, cache) for token in ends.split(1, dim=1)]
    expected = read(layers, torch.cat((prompt.expand(3, -1, -1), ends), 1))[:, 9:]
    torch.testing.assert_close(torch.cat(got, 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [[2, 0, 0], [1], [1, 1, 2, 0]])
def test_chosen_rows_go_on(rows):
    layers = model(limelight.Window(3, 0))
    texts = [torch.randn(n, 8, dtype=F64) for n in (9, 4, 6)]
    cache = Cache()
    read(layers, *padded(texts, "left"), cache)
    cache.select(torch.tensor(rows))
    texts = [torch.cat((texts[row], torch.randn(5, 8, dtype=F64))) for row in rows]
    ends = torch.stack([text[-5:] for text in texts])
    got = [read(layers, token, None, cache) for token in ends.split(1, dim=1)]
    for mine, expected in zip(torch.cat(got, 1), alone(layers, texts), strict=True):
        torch.testing.assert_close(mine, expected[-5:], rtol=1e-12, atol=1e-12)


def test_a_source_is_projected_once():
    layer = MultiHead(8, query_heads=4, key_value_heads=2, head_width=4, source_width=6).to(F64).requires_grad_(False)
    calls = []
    layer.key.register_forward_hook(lambda *_: calls.append(1))
    states, source = torch.randn(2, 5, 8, dtype=F64), torch.randn(2, 7, 6, dtype=F64)
    layout = limelight.KeyMask(torch.tensor([[True] * 7, [True] * 3 + [False] * 4]))
    expected = layer(states, ForwardContext(layout, torch.arange(5)[None], source=source))
    cache, got = Cache(), []
    for token in states.split(1, dim=1):
        step = cache.step(2, 1)
        got.append(layer(token, ForwardContext(layout, step.positions, source=source, cache=step)))
        cache.close(step)
    torch.testing.assert_close(torch.cat(got, 1), expected)
    assert len(calls) == 2
    cache.select(torch.tensor([1]))
    step = cache.step(1, 5)
    layout = limelight.KeyMask(layout.mask[1:])
    again = layer(states[1:], ForwardContext(layout, step.positions, source=source[1:], cache=step))
    torch.testing.assert_close(again, expected[1:])


@pytest.mark.parametrize(
    "rows", [[0], torch.tensor([2]), torch.tensor([0, -1]), torch.tensor([0.0]), torch.tensor([[0]])]
)
def test_rows_that_are_not_there_change_nothing(rows):
    cache = Cache()
    read(model(limelight.Causal()), torch.randn(2, 3, 8, dtype=F64), None, cache)
    with pytest.raises(limelight.ArgumentError, match="`rows` must be"):
        cache.select(rows)
    assert (cache.lengths, cache._rows) == (3, 2)


def test_a_layer_that_is_run_twice_in_a_pass_remembers_twice():
    layer = model(limelight.Causal())[0]
    shared = [layer, layer]
    text = torch.randn(1, 7, 8, dtype=F64)
    cache = Cache()
    got = [read(shared, token, None, cache) for token in text.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(got, 1), read(shared, text), rtol=1e-12, atol=1e-12)


def test_what_a_cache_refuses():
    layers, cache = model(limelight.Causal()), Cache()
    states = torch.randn(2, 3, 8, dtype=F64)
    with pytest.raises(limelight.ArgumentError, match="must be Padded"):
        cache.step(2, 3, limelight.Packed((1, 2)))
    read(layers, states, None, cache)
    with pytest.raises(limelight.ArgumentError, match="2 rows"):
        cache.step(1, 3)
    with pytest.raises(limelight.ArgumentError, match="at the right"):
        cache.step(2, 3, limelight.Padded(torch.tensor([1, 2]), side="left"))
    layers[1].inner.key.weight.requires_grad_()
    with pytest.raises(limelight.ArgumentError, match="no_grad"):
        read(layers, states, None, cache)


def test_angles_that_change_with_the_length_are_refused_where_they_change():
    layer = (
        MultiHead(8, query_heads=2, key_value_heads=2, head_width=4, rotary=Rotary(4, scaling=DynamicNTK(2.0, 6)))
        .to(F64)
        .requires_grad_(False)
    )
    layers, cache = [PreNorm(layer, RMSNorm(8).to(F64).requires_grad_(False))], Cache()
    text = torch.randn(1, 8, 8, dtype=F64)
    read(layers, text[:, :6], None, cache)
    with pytest.raises(limelight.ArgumentError, match="YaRN"):
        read(layers, text[:, 6:], None, cache)
    read(layers, text)


def interrupted(layers, states, cache):
    """A pass that ends after the first layer."""
    step = cache.step(*states.shape[:2])
    layers[0](states, ForwardContext(None, step.positions, cache=step))


@pytest.mark.parametrize("pattern", ["causal", "window"])
def test_a_first_pass_that_failed_leaves_the_cache_empty(pattern):
    layers, text = model(PATTERNS[pattern]), torch.randn(2, 100, 8, dtype=F64)
    cache = Cache()
    interrupted(layers, torch.randn(3, 80, 8, dtype=F64), cache)
    got = torch.cat([read(layers, text[:, :90], cache=cache), read(layers, text[:, 90:], cache=cache)], 1)
    torch.testing.assert_close(got, read(layers, text), rtol=1e-12, atol=1e-12)


def test_a_later_pass_that_failed_is_read_again_or_refused():
    text = torch.randn(2, 100, 8, dtype=F64)
    layers, cache = model(PATTERNS["causal"]), Cache()
    got = [read(layers, text[:, :10], cache=cache)]
    interrupted(layers, torch.randn(2, 80, 8, dtype=F64), cache)  # columns behind the length, which are written again
    got.append(read(layers, text[:, 10:], cache=cache))
    torch.testing.assert_close(torch.cat(got, 1), read(layers, text), rtol=1e-12, atol=1e-12)
    layers, cache = model(PATTERNS["window"]), Cache()
    read(layers, text[:, :10], cache=cache)
    interrupted(layers, text[:, 10:], cache)  # more than its columns: the window has moved
    for copy in (cache, deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        with pytest.raises(limelight.ArgumentError, match="must hold whole passes"):
            read(layers, text[:, 10:], cache=copy)
