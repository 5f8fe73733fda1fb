"""A mask that is read means what transformers' own mask means, and survives what models do to it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import masking_utils as masks

import limelight
from limelight import Causal, Chunks, Explicit, KeyMask, Packed, Window
from limelight.integrations.transformers_masks import Mask, read


def theirs(function, size, q_offset=0, kv_offset=0, padding=None, use_vmap=False):
    B, Lq, Lk = size
    return masks.sdpa_mask(
        B, Lq, Lk, q_offset, kv_offset, function, padding, allow_is_causal_skip=False, use_vmap=use_vmap
    )


@st.composite
def described(draw):
    """A mask as a model describes it: a function, sizes, the offsets of a cache, padding."""
    B, Lq, seen = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(0, 9))
    kv_offset = draw(st.integers(0, seen))  # keys that a sliding cache has let go
    unused = draw(st.integers(0, 4))  # room at the end of a static cache
    Lk = seen + Lq - kv_offset + unused
    total = draw(st.integers(seen + Lq, kv_offset + Lk + 2))
    padding = None
    kind = draw(st.sampled_from(["none", "left", "right", "holes"]))
    left = torch.zeros(B, dtype=torch.int64)
    if kind == "holes":
        padding = torch.tensor(draw(st.lists(st.booleans(), min_size=B * total, max_size=B * total))).view(B, total)
    elif kind != "none":
        missing = torch.tensor(draw(st.lists(st.integers(0, total), min_size=B, max_size=B)))
        place = torch.arange(total)
        padding = place >= missing[:, None] if kind == "left" else place < total - missing[:, None]
    if padding is not None:
        left = (padding.long().cumsum(-1) == 0).sum(-1)  # as transformers counts it
    width = draw(st.integers(1, 6))
    function = draw(
        st.sampled_from(
            [
                masks.causal_mask_function,
                masks.bidirectional_mask_function,
                masks.sliding_window_causal_mask_function(width),
                masks.sliding_window_bidirectional_mask_function(width),
                masks.chunked_causal_mask_function(width, left),
                masks.or_masks(masks.causal_mask_function, masks.sliding_window_bidirectional_overlay(width)),
            ]
        )
    )
    return function, (B, Lq, Lk), seen, kv_offset, padding


@given(described())
def test_reads_what_transformers_means(case):
    function, size, q_offset, kv_offset, padding = case
    sight = read(function, size, q_offset, kv_offset, padding)
    assert torch.equal(sight.seen, theirs(function, size, q_offset, kv_offset, padding))
    assert not sight.notes


@given(described(), st.integers(0, 99))
def test_attends_to_what_it_reads(case, seed):
    """The layout and the pattern mean in a kernel what they mean written out."""
    function, (B, Lq, Lk), q_offset, kv_offset, padding = case
    sight = read(function, (B, Lq, Lk), q_offset, kv_offset, padding)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(B, 2, Lq, 4, generator=generator)
    key, value = torch.randn(2, B, 1, Lk, 4, generator=generator)
    found = limelight.attention(
        query, key[:, :, : sight.keys], value[:, :, : sight.keys], layout=sight.layout, pattern=sight.pattern
    )
    explicit = Explicit(theirs(function, (B, Lq, Lk), q_offset, kv_offset, padding))
    torch.testing.assert_close(found, limelight.attention(query, key, value, pattern=explicit))


@pytest.mark.parametrize(
    ("function", "pattern"),
    [
        (masks.causal_mask_function, Causal()),
        (masks.bidirectional_mask_function, None),
        (masks.sliding_window_causal_mask_function(4), Window(3, None) & Causal()),
        (masks.sliding_window_bidirectional_mask_function(4), Window(4, 4)),
        (masks.chunked_causal_mask_function(4, torch.tensor([0, 0])), Chunks(4) & Causal()),
    ],
)
def test_recognises(function, pattern):
    """The pattern by name, and no tensor for what arithmetic tells."""
    sight = read(function, (2, 7, 7))
    assert (sight.pattern, sight.layout, sight.keys) == (pattern, None, 7)
    everybody = read(function, (2, 7, 7), padding=torch.ones(2, 7, dtype=torch.bool))
    assert (everybody.pattern, everybody.layout) == (pattern, None)


def test_a_static_cache_is_cut_to_what_is_filled():
    sight = read(masks.causal_mask_function, (1, 1, 4096), q_offset=9, padding=torch.ones(1, 10, dtype=torch.bool))
    assert (sight.keys, sight.layout, sight.pattern) == (10, None, Causal())
    padded = read(
        masks.causal_mask_function, (2, 1, 64), q_offset=2, padding=torch.tensor([[0, 1, 1], [1, 1, 1]]).bool()
    )
    assert padded.keys == 3
    assert isinstance(padded.layout, KeyMask)


def packed(position_ids, inner):
    numbers = masks.find_packed_sequence_indices(position_ids)
    return masks.packed_sequence_compatibility_function(inner, position_ids, numbers)


@pytest.mark.parametrize(
    "inner",
    [masks.causal_mask_function, masks.sliding_window_causal_mask_function(2), masks.bidirectional_mask_function],
)
def test_packed_documents(inner):
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 1, 2, 3]]).expand(2, -1)
    function = packed(positions, inner)
    sight = read(function, (2, 10, 10))
    assert sight.layout == Packed((3, 2, 1, 4))
    assert torch.equal(sight.seen, theirs(function, (2, 10, 10)))


@pytest.mark.parametrize(
    "positions", [[[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]], [[5, 6, 7, 0, 1, 2], [5, 6, 7, 0, 1, 2]]]
)
def test_packed_documents_that_no_layout_describes(positions):
    """Rows cut at different places, or chunks counted within documents: evaluated, and said to be."""
    function = packed(torch.tensor(positions), masks.chunked_causal_mask_function(2, torch.zeros(2, dtype=torch.int64)))
    sight = read(function, (2, 6, 6))
    assert torch.equal(sight.seen, theirs(function, (2, 6, 6)))
    assert any("evaluated for every pair" in note for note in sight.notes)


@pytest.mark.parametrize("use_vmap", [False, True])
def test_an_unknown_function_is_evaluated_and_said_to_be(use_vmap):
    table = torch.tensor([True, False, True, True, False, True])

    def every_second(batch_idx, head_idx, q_idx, kv_idx):
        return table[kv_idx] & (q_idx >= 0)

    function = masks.and_masks(masks.causal_mask_function, every_second)
    sight = read(function, (2, 4, 6), q_offset=2, use_vmap=use_vmap)
    assert torch.equal(sight.seen, theirs(function, (2, 4, 6), 2, use_vmap=use_vmap))
    assert "every_second" in sight.notes[0]
    assert isinstance(sight.pattern.right, Explicit)  # the causal half is still arithmetic


def test_images_see_themselves():
    blocks = torch.tensor([[-1, 0, 0, -1, 1, 1, 1, -1]])
    function = masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(blocks))
    sight = read(function, (1, 8, 8))
    assert torch.equal(sight.seen, theirs(function, (1, 8, 8)))


# --- What models do to a mask ----------------------------------------------------------------------------------------


def mask(padding=None):
    return Mask.of(read(masks.causal_mask_function, (2, 3, 8), q_offset=4, padding=padding))


def test_looks_like_the_mask_of_eager_and_holds_nothing():
    it = mask()
    assert isinstance(it, torch.Tensor)
    assert (it.shape, it.dtype, it.ndim, it.device.type) == ((2, 1, 3, 8), torch.float32, 4, "cpu")
    assert torch.equal(it.numbers, masks.eager_mask(2, 3, 8, 4))
    assert "Causal()" in repr(it)
    million = Mask.of(read(masks.causal_mask_function, (64, 10**6, 10**6)))  # 64 TB, were it written out
    assert isinstance(million.detach()[..., : 10**6], Mask)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[:, :, :, :7],
        lambda m: m[:, :, :, :8],
        lambda m: m[..., :-1],
        lambda m: m[:, :],
        lambda m: m.to("cpu"),
        lambda m: m.to(torch.float32),
        lambda m: m.float(),
        lambda m: m.detach(),
        lambda m: m.clone(),
        lambda m: m.contiguous(),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_stays_a_description(change):
    it = mask()
    changed = change(it)
    assert isinstance(changed, Mask)
    assert not it.touched
    assert torch.equal(changed.numbers, change(it.numbers))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[:, 0],
        lambda m: m[:, :, -1:],
        lambda m: m[:, :, :, 2:],
        lambda m: m[:, :, :, :5],
        lambda m: m[:1],
        lambda m: m[torch.tensor([1, 0, 1])],
        lambda m: -m,
        lambda m: m + 1,
        lambda m: torch.ones(1) + m,
        lambda m: m.to(torch.float64),
        lambda m: m.bool(),
        lambda m: torch.where(m == 0, 0.0, -1.0),
        lambda m: torch.cat([m, m], dim=-1),
        lambda m: m.expand(2, 4, 3, 8),
        lambda m: m.masked_fill(m == 0, 2.0),
        lambda m: m.repeat_interleave(2, dim=0),
        lambda m: torch.tensor(m.any()),
    ],
)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_gives_its_numbers_to_who_computes(change):
    it = mask()
    changed = change(it)
    assert type(changed) is torch.Tensor
    assert it.touched
    assert torch.equal(changed, change(it.numbers))
