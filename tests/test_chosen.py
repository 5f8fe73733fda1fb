"""Chosen queries get what they get among all, in every backend that takes the call."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import examples, layouts, patterns, sizes

import limelight
from limelight import ALiBi, Causal, Chosen, Explicit, Observe, Padded, Window
from limelight.backends import BACKENDS, native
from limelight.forms.lowering import lower
from limelight.forms.patterns import Pattern
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare


def by_index(pattern):
    """Whether the pattern counts queries by their index, which is another among the chosen."""
    return isinstance(pattern, Explicit) or (
        isinstance(pattern, Pattern) and any(by_index(part) for part in pattern.parts())
    )


@st.composite
def choices(draw, s):
    """``(B, n)`` ascending queries of each row, -1 where a row has fewer."""
    rows = [draw(st.lists(st.integers(0, s.Lq - 1), unique=True).map(sorted)) if s.Lq else [] for _ in range(s.B)]
    n = max(map(len, rows), default=0) + draw(st.integers(0, 1))
    return torch.tensor([row + [-1] * (n - len(row)) for row in rows], dtype=torch.int64).reshape(s.B, n)


def taken(x, index):
    """Of ``(B, H, Lq, ...)`` the chosen queries; zeros for those that do not exist."""
    out = x.new_zeros(x.shape[0], x.shape[1], index.shape[1], *x.shape[3:])
    for b, c in (index >= 0).nonzero().tolist():
        out[b, :, c] = x[b, :, index[b, c]]
    return out


@given(st.data())
def test_the_lowering_of_chosen_queries(data):
    s = data.draw(sizes())
    layout, pattern, index = data.draw(layouts(s)), data.draw(patterns(s)), data.draw(choices(s))
    assume(not by_index(pattern))
    lowered = lower(pattern, Chosen(index, s.Lq, layout), s.B, s.Hq, index.shape[1], s.Lk)
    truth = taken(torch.from_numpy(loops.visible(pattern, layout, s.B, s.Hq, s.Lq, s.Lk)), index).numpy()
    assert (np.broadcast_to(lowered.rows(0, index.shape[1]), truth.shape) == truth).all()
    assert lowered.pairs() == truth.sum()


@given(st.data())
def test_chosen_queries_in_the_definition(data):
    example = data.draw(examples(dropout=False))
    settings = dict(example.settings)
    layout = settings.pop("layout")
    assume(not by_index(settings["pattern"]))
    settings["scores"] = tuple(rule for rule in settings["scores"] if not isinstance(rule, limelight.Bias))
    index = data.draw(choices(example.sizes))
    few = taken(example.query, index)
    got = limelight.attention(
        few, example.key, example.value, layout=Chosen(index, example.sizes.Lq, layout), backend="reference", **settings
    )
    whole, _ = loops.attention(example.query, example.key, example.value, layout=layout, **settings)[:2]
    torch.testing.assert_close(got, taken(torch.from_numpy(whole), index), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scores", [(), (ALiBi.standard(2),)])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.NAME)
@pytest.mark.parametrize("layout", [None, Padded(torch.tensor([200, 130]), side="left")], ids=["whole", "padded"])
@pytest.mark.parametrize("pattern", [None, Causal(), Window(20, 5)], ids=str)
def test_every_backend_serves_chosen_queries_right_or_not_at_all(backend, layout, pattern, scores):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 2, 200, 16, generator=generator) for _ in range(3))
    index = (torch.rand(2, 200, generator=generator) < 0.4).int().argsort(dim=1, descending=True, stable=True)[:, :70]
    index = index.where(torch.arange(70) < torch.tensor([[70], [50]]), -1)
    few = taken(query, index)
    chosen = Chosen(index, 200, layout)
    if backend.reasons_against(prepare(few, key, value, Settings(layout=chosen, pattern=pattern, scores=scores))):
        assert scores or backend is not native or native._library is None
        return
    settings = {"pattern": pattern, "scores": scores, "observe": Observe(logsumexp=True, entropy=True)}
    got, seen = limelight.attention(few, key, value, layout=chosen, backend=backend.NAME, **settings)
    whole, all_seen = limelight.attention(query, key, value, layout=layout, backend="reference", **settings)
    torch.testing.assert_close(got, taken(whole, index), rtol=1e-4, atol=1e-5)
    exists = (index >= 0)[:, None].expand(2, 2, 70)
    torch.testing.assert_close(seen.entropy[exists], taken(all_seen.entropy, index)[exists], rtol=1e-4, atol=1e-5)


def test_what_chosen_refuses():
    q = torch.randn(2, 1, 3, 4)
    with pytest.raises(limelight.ArgumentError, match="below 3"):
        limelight.attention(q, q, q, layout=Chosen(torch.tensor([[0, 1, 3]] * 2), 3))
    with pytest.raises(limelight.ArgumentError, match="one row for each"):
        limelight.attention(q, q, q, layout=Chosen(torch.tensor([[0, 1, 2]]), 3))
    with pytest.raises(limelight.ArgumentError, match="int64"):
        Chosen(torch.tensor([[True]]), 3)
