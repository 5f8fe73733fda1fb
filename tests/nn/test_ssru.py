"""The recurrence against its formula."""

import pytest
import torch

import limelight
from limelight.nn import SSRU, Cache, ForwardContext

F64 = torch.float64


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return SSRU(6, query_heads=2, key_value_heads=2, head_width=3, name="layers.0.attention").to(F64)


def alone(layer, text):
    """``(L, width)`` by the formula."""
    carried, found = torch.zeros(6, dtype=F64), []
    for x in text:
        keep = torch.sigmoid(layer.forget.weight @ x + layer.forget.bias)
        carried = keep * carried + (1 - keep) * (layer.inner.weight @ x)
        found.append(carried.clamp(min=0))
    return torch.stack(found)


def context(layout, B, L):
    at = layout.coordinates(B, L, L, torch.device("cpu"))
    return ForwardContext(layout, at.query_position.where(at.query_exists, 0))


def test_the_formula(layer):
    states = torch.randn(2, 5, 6, dtype=F64)
    got = layer(states, ForwardContext(None, torch.arange(5)[None]))
    for row, text in zip(got, states, strict=True):
        torch.testing.assert_close(row, alone(layer, text), rtol=1e-12, atol=1e-12)
    assert layer(states[:, :0], ForwardContext(None, torch.arange(0)[None])).shape == (2, 0, 6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing_not_even_when_it_is_nan(layer, side):
    states, lengths = torch.randn(3, 5, 6, dtype=F64), torch.tensor([5, 1, 3])
    layout = limelight.Padded(lengths, side=side)
    exists = layout.coordinates(3, 5, 5, states.device).query_exists
    states[~exists] = torch.nan
    got = layer(states, context(layout, 3, 5))
    for row, text, real in zip(got, states, exists, strict=True):
        torch.testing.assert_close(row[real], alone(layer, text[real]), rtol=1e-12, atol=1e-12)


def test_packed_documents_begin_anew(layer):
    states = torch.randn(1, 7, 6, dtype=F64)
    got = layer(states, context(limelight.Packed((3, 4)), 1, 7))
    for part, text in zip(got[0].split((3, 4)), states[0].split((3, 4)), strict=True):
        torch.testing.assert_close(part, alone(layer, text), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["right", "left"])
def test_with_a_cache_in_pieces(layer, side):
    lengths = torch.tensor([4, 2])
    texts = [torch.randn(n + 3, 6, dtype=F64) for n in lengths.tolist()]
    first = torch.full((2, 4, 6), torch.nan, dtype=F64)
    for row, text, n in zip(first, texts, lengths.tolist(), strict=True):
        row[slice(n) if side == "right" else slice(4 - n, 4)] = text[:n]
    cache = Cache()
    pieces = [(first, limelight.Padded(lengths, side=side))]
    pieces += [(torch.stack([t[n + k] for t, n in zip(texts, lengths, strict=True)])[:, None], None) for k in range(3)]
    got = []
    with torch.no_grad():
        for piece, layout in pieces:
            step = cache.step(2, piece.shape[1], layout)
            got.append(layer(piece, ForwardContext(layout, step.positions, cache=step)))
            cache.close(step)
        for row, (text, n) in enumerate(zip(texts, lengths.tolist(), strict=True)):
            kept = got[0][row, :n] if side == "right" else got[0][row, 4 - n :]
            whole = torch.cat([kept, *(part[row] for part in got[1:])])
            torch.testing.assert_close(whole, alone(layer, text), rtol=1e-12, atol=1e-12)
    cache.select(torch.tensor([1, 1, 0]))
    assert [store.state.shape for store in cache._stores.values()] == [(3, 6)]


def test_gradients_by_finite_differences(layer):
    states = torch.randn(2, 4, 6, dtype=F64, requires_grad=True)
    here = context(limelight.Padded(torch.tensor([4, 2])), 2, 4)
    assert torch.autograd.gradcheck(lambda x: layer(x, here), (states,))
