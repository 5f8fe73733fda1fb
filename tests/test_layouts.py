"""Layouts: each class agrees with its definition in every fact that it states of itself.

The properties run over all classes of layouts. A new class needs an entry in `support.strategies.LAYOUTS` and a branch
in `support.oracles.loops.places`; then a fact that it states wrongly, or forgets to state, fails here. Then: a subset
of queries gets what it gets among all, in every backend that takes the call.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import LAYOUTS, examples, layouts, of_each_kind, patterns, sizes, subclasses

import limelight
from limelight import ALiBi, Causal, Explicit, Layout, Observe, Packed, Padded, Subset, Window, models
from limelight.backends import BACKENDS, native
from limelight.forms.layouts import Portion, ScatteredPortion
from limelight.forms.lowering import lower
from limelight.forms.patterns import Pattern
from limelight.forms.segments import KeyRanges
from limelight.forms.settings import Settings
from limelight.nn import Cache
from limelight.operator.calling import prepare

PORTIONS = (Portion, ScatteredPortion)
#: `limelight.distributed.ContextParallel` is tested where there are processes.
KINDS = {name: kind for name, kind in subclasses(Layout).items() if not kind.spread}


def drawn(data, kind, s):
    assert KINDS[kind] in LAYOUTS, f"give support.strategies.LAYOUTS an entry that draws a {kind}"
    return LAYOUTS[KINDS[kind]](data.draw, s)


def self_attention(layout):
    """With as many keys as queries, where a layout has numbers of both."""
    if isinstance(layout, limelight.Paged):
        return dataclasses.replace(layout, key_lengths=layout.query_lengths)
    return dataclasses.replace(layout, key_lengths=None) if hasattr(layout, "key_lengths") else layout


def coordinates(layout, s):
    return layout.coordinates(s.B, s.Lq, s.Lk, torch.device("cpu"))


def of_ranges(ranges, Lk):
    """``(B | 1, Lq, Lk)``: which keys lie in the range of each query."""
    j = np.arange(Lk)
    return (j >= ranges.key_begin[..., None]) & (j < ranges.key_end[..., None])


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_its_coordinates_are_its_definition(kind, data):
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    layout.check(s.B, s.Lq, s.Lk)
    found = coordinates(layout, s)
    for b, rows in enumerate(loops.places(layout, s.B, s.Lq, s.Lk)):
        for name, stand in zip(("query", "key"), rows, strict=True):
            position, document, exists = (
                getattr(found, f"{name}_{what}").expand(s.B, len(stand))[b].tolist()
                for what in ("position", "document", "exists")
            )
            assert exists == [place is not None for place in stand]
            assert all(place in (None, (p, d)) for place, p, d in zip(stand, position, document, strict=True))
            portion = layout.of if isinstance(layout, Subset) else layout
            parts = len(portion.table) if isinstance(portion, PORTIONS) else 1
            assert all(0 <= d < parts * layout.documents for d, there in zip(document, exists, strict=True) if there)


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_its_segments_and_holes_are_its_definition(kind, data):
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    found = coordinates(layout, s)
    together = found.together()[:, 0].expand(s.B, s.Lq, s.Lk).numpy()
    segments = layout.segments(s.B, s.Lq, s.Lk)
    assert layout.has_offsets == (segments is not None)
    ranges = KeyRanges.of_segments(segments, s.Lq) if layout.has_offsets else layout.key_ranges(s.B, s.Lq, s.Lk)
    if ranges is None:
        return
    seen = of_ranges(ranges, s.Lk)
    if (holes := layout.holes()) is not None:
        assert not layout.only_segments
        seen = seen & holes.numpy()[:, None]
    assert (np.broadcast_to(seen, together.shape) == together).all()
    distance = (np.arange(s.Lk) + ranges.key_offset[..., None]) - ranges.position[..., None]
    truth = (found.key_position[:, None] - found.query_position[:, :, None]).expand(together.shape).numpy()
    assert (np.broadcast_to(distance, together.shape) == truth)[together].all()


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_what_its_coordinates_give_by_default(kind, data):
    """The ranges that a class without `segments` gets: the same pairs, or none where they are no ranges."""
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    ranges = Layout.key_ranges(layout, s.B, s.Lq, s.Lk)
    together = coordinates(layout, s).together()[:, 0].numpy()
    if ranges is None:
        assert layout.holes() is not None or isinstance(layout, ScatteredPortion)
    else:
        assert (np.broadcast_to(of_ranges(ranges, s.Lk), together.shape) == together).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("Subset", "ScatteredPortion")])
@of_each_kind
@given(st.data())
def test_segments_that_it_has_are_stated(kind, data):
    """Else kernels cannot count distances. Where positions are indices plus an offset, there are segments."""
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    ranges = Layout.key_ranges(layout, s.B, s.Lq, s.Lk)
    if ranges is None or not (np.diff(ranges.position - np.arange(s.Lq)) == 0).all():
        return
    assert layout.has_offsets, f"positions of {layout} are indices plus an offset: give it segments()"


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_near_means_that_no_distance_is_long(kind, data):
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    found = coordinates(layout, s)
    distance = (found.key_position[:, None] - found.query_position[:, :, None]).expand(s.B, -1, -1)
    if layout.near:
        assert (distance[found.together()[:, 0].expand(distance.shape)].abs() <= s.Lq + s.Lk).all()


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_uniform_over_batch_means_that_rows_are_alike(kind, data):
    s = data.draw(sizes())._replace(B=3)
    layout = drawn(data, kind, s)
    found = coordinates(layout, s)
    if layout.uniform_over_batch:
        assert all(bool((x == x[:1]).all()) for x in found)
    if not layout.tensors():
        assert layout.uniform_over_batch, f"all rows of {layout} are alike: state it in uniform_over_batch"


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_chosen_rows_stand_where_they_stood(kind, data):
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, s.B - 1), max_size=4)), dtype=torch.int64)
    some = layout.select(rows)
    some.check(len(rows), s.Lq, s.Lk)
    for whole, few in zip(coordinates(layout, s), coordinates(some, s._replace(B=len(rows))), strict=True):
        assert torch.equal(few.expand(len(rows), few.shape[1]), whole.expand(s.B, whole.shape[1])[rows])


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_its_texts_lie_where_it_states(kind, data):
    s = data.draw(sizes())
    s = s._replace(Lq=s.Lk)
    layout = self_attention(drawn(data, kind, s))
    ranges = layout.text_ranges(s.Lk)
    if ranges is None:
        return
    first, length = (torch.as_tensor(x).expand(s.B)[:, None] for x in ranges)
    number = torch.arange(s.Lk) - first
    truth = (number >= 0) & (number < length)
    found = coordinates(layout, s)
    for position, document, exists in (found[0::2], found[1::2]):
        assert (exists.expand(truth.shape) == truth).all()
        assert (position.expand(truth.shape) == number)[truth].all()
        assert not document.expand(truth.shape)[truth].any()


@pytest.mark.parametrize(
    ("layout", "ranges"),
    [
        (limelight.Aligned(), (0, 9)),
        (limelight.Aligned(0), (0, 9)),
        (limelight.Aligned(1), None),
        (limelight.Packed((9,)), (0, 9)),
        (limelight.Packed((4, 5)), None),
        (Padded(4), (0, 4)),
        (Padded(4, side="left"), (5, 4)),
        (Padded(4, 3), None),
        (limelight.KeyMask(torch.ones(1, 9).bool()), None),
    ],
    ids=str,
)
def test_layouts_of_one_text_a_row(layout, ranges):
    assert layout.text_ranges(9) == ranges


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_its_index_offset_gives_every_distance(kind, data):
    s = data.draw(sizes())
    layout = drawn(data, kind, s)
    if data.draw(st.booleans()):
        s = s._replace(Lq=s.Lk)
        layout = self_attention(drawn(data, kind, s))
    offset = layout.index_offset(s.Lq, s.Lk)
    if offset is None:
        assert not (isinstance(layout, limelight.Aligned) and layout.uniform_over_batch)
        return
    found = coordinates(layout, s)
    distance = (found.key_position[:, None] - found.query_position[:, :, None]).expand(s.B, -1, -1)
    truth = torch.arange(s.Lk) - torch.arange(s.Lq)[:, None] - offset
    together = found.together()[:, 0].expand(distance.shape)
    assert (distance == truth)[together].all()


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_what_may_change_is_not_fixed(kind, data):
    layout = drawn(data, kind, data.draw(sizes()))
    # The table of a portion never changes, nor do the copies that a `Paged` holds.
    fixed = isinstance(layout, limelight.Paged) or (isinstance(layout, PORTIONS) and layout.exists is None)
    assert layout.is_fixed == (not layout.tensors() or fixed)


# --- A class without a claim -----------------------------------------------------------------------------------------


class Mirrored(Layout):
    """Queries from the last position to the first: no offset gives their positions."""

    def coordinates(self, B, Lq, Lk, device):
        plain = limelight.Aligned().coordinates(B, Lq, Lk, device)
        return plain._replace(query_position=plain.query_position.flip(1))


class Interleaved(Layout):
    """Two documents, token by token: their keys are no ranges."""

    documents = 2

    def coordinates(self, B, Lq, Lk, device):
        plain = limelight.Aligned().coordinates(B, Lq, Lk, device)
        query, key = plain.query_position, plain.key_position
        return plain._replace(query_document=query % 2, key_document=key % 2)


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("layout", [Mirrored(), Interleaved()], ids=str)
@pytest.mark.parametrize("pattern", [None, Causal(), Window(3, 1) | limelight.Keys(2)], ids=str)
def test_a_class_that_states_nothing_is_served(layout, pattern, backend):
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    found = layout.coordinates(2, 9, 9, torch.device("cpu"))
    at = limelight.Where.of(found, 2, 2)
    mask = (found.together() & (pattern or limelight.Full()).allows(at)).expand(2, 2, 9, 9)
    truth = limelight.attention(q, k, v, pattern=Explicit(mask), backend="reference")
    torch.testing.assert_close(
        limelight.attention(q, k, v, layout=layout, pattern=pattern, backend=backend), truth, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "layout",
    [limelight.Aligned(0), limelight.Aligned(None, 3), Padded(5, 7), Padded(4, side="left"), limelight.Packed((3, 6))],
    ids=str,
)
def test_a_uniform_layout_under_vmap(layout):
    """The samples are computed in one call, and each as alone."""
    q, k, v = (torch.randn(3, 2, 2, 9, 4) for _ in range(3))
    assert layout.uniform_over_batch

    def one(q, k, v):
        return limelight.attention(q, k, v, layout=layout, pattern=Causal())

    truth = torch.stack([one(*x) for x in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.vmap(one)(q, k, v), truth)
    cotangent = torch.randn(3, 2, 2, 9, 4)
    gradients = torch.func.vjp(torch.vmap(one), q, k, v)[1](cotangent)
    alone = [torch.func.vjp(one, *x[:3])[1](x[3]) for x in zip(q, k, v, cotangent, strict=True)]
    for found, parts in zip(gradients, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(parts))


def test_where_offsets_are_needed_the_reason_is_given():
    q = torch.randn(1, 1, 4, 4)
    scores = (ALiBi.standard(1),)
    reasons = limelight.explain(q, q, q, layout=Mirrored(), scores=scores).reasons
    for name in ("native", "flash2", "flash3"):
        assert any("Mirrored() gives no offsets, and positions are needed for ALiBi" in why for why in reasons[name])
    assert limelight.attention(q, q, q, layout=Mirrored(), scores=scores).shape == q.shape
    with pytest.raises(limelight.ArgumentError, match="rows can be chosen"):
        Mirrored().select(torch.tensor([0]))


def test_a_class_that_states_nothing_is_refused_by_name_where_more_is_needed():
    model = models.new("t5", vocab_size=9, d_model=8, num_layers=1, num_heads=1, d_kv=8, d_ff=8).eval()
    ids = torch.arange(8).reshape(2, 4)
    for given_layout in ({"source_layout": Interleaved()}, {"layout": Interleaved()}):
        with pytest.raises(limelight.ArgumentError, match=r"that of the (source|tokens) is Interleaved\(\)"):
            model(ids, source=ids, **given_layout)
    with torch.no_grad(), pytest.raises(limelight.ArgumentError, match=r"must be Padded.* it is Mirrored\(\)"):
        model(ids, source=ids, layout=Mirrored(), cache=Cache())
    assert Mirrored().index_offset(4, 4) is None


# --- Subsets of queries ----------------------------------------------------------------------------------------------


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
    lowered = lower(pattern, Subset(index, s.Lq, layout), s.B, s.Hq, index.shape[1], s.Lk)
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
        few, example.key, example.value, layout=Subset(index, example.sizes.Lq, layout), backend="reference", **settings
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
    chosen = Subset(index, 200, layout)
    if backend.reasons_against(prepare(few, key, value, Settings(layout=chosen, pattern=pattern, scores=scores))):
        assert scores or backend is not native or not native.available()
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
        limelight.attention(q, q, q, layout=Subset(torch.tensor([[0, 1, 3]] * 2), 3))
    with pytest.raises(limelight.ArgumentError, match="one row for each"):
        limelight.attention(q, q, q, layout=Subset(torch.tensor([[0, 1, 2]]), 3))
    with pytest.raises(limelight.ArgumentError, match="int64"):
        Subset(torch.tensor([[True]]), 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_packed_lengths_that_are_written_to_are_read_anew(dtype):
    """In place, through `.data`, and through NumPy, which no version of the tensor counts."""
    queries, keys = torch.tensor([3, 4, 3], dtype=dtype), torch.tensor([5, 5, 2], dtype=dtype)
    layout = Packed(queries, keys)

    def write(tensor, numbers):
        tensor.copy_(torch.tensor(numbers))

    for change in (
        lambda: None,
        lambda: write(queries, [1, 5, 4]),
        lambda: write(keys.data, [2, 4, 6]),
        lambda: queries.numpy().__setitem__(slice(None), [0, 0, 10]),
    ):
        for _ in range(2):
            layout.check(2, 10, 12)
            assert layout.segments(2, 10, 12) == Packed(tuple(queries.tolist()), tuple(keys.tolist())).segments(
                2, 10, 12
            )
        change()
    keys[0] = 0
    with pytest.raises(limelight.ArgumentError, match="must add up to Lk"):
        layout.check(2, 10, 12)
