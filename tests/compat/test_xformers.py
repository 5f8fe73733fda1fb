"""`compat.xformers` means what xFormers documents."""

import math
import sys
from types import ModuleType

import pytest
import torch

import limelight
import limelight.compat.xformers as xops
from limelight import ArgumentError

H, K, Kv = 4, 8, 5
QUERIES, KEYS = [3, 1, 5], [4, 6, 5]
STARTS, SLOTS = [1, 6, 13, 20], 7
TABLE = torch.tensor([[4, 1], [0, 2], [3, 5]], dtype=torch.int32)
PAGE = 4


def seen_by_hand(queries, keys, Lq, Lk, rule):
    """``(Lq, Lk)``: blocks of queries and keys, given by their indices; ``rule(i, j, n, m)`` within a block of ``n``
    queries and ``m`` keys."""
    seen = torch.zeros(Lq, Lk, dtype=torch.bool)
    for mine, theirs in zip(queries, keys, strict=True):
        for i, query in enumerate(mine):
            for j, key in enumerate(theirs):
                seen[query, key] |= rule(i, j, len(mine), len(theirs))
    return seen


def laid(lengths):
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    return [range(first, first + n) for first, n in zip(starts, lengths, strict=True)]


def paged(starts, lengths):
    return [
        [int(TABLE[n, j // PAGE]) * PAGE + j % PAGE for j in range(first, first + length)]
        for n, (first, length) in enumerate(zip(starts, lengths, strict=True))
    ]


ALL = lambda i, j, n, m: True  # noqa: E731
TOP_LEFT = lambda i, j, n, m: j <= i  # noqa: E731
BOTTOM_RIGHT = lambda i, j, n, m: j <= i + m - n  # noqa: E731
LOCAL = lambda i, j, n, m: i + m - n - 2 <= j <= i + m - n + 1  # noqa: E731
WINDOW = lambda i, j, n, m: i + m - n - 2 < j <= i + m - n  # noqa: E731
WINDOW_TOP_LEFT = lambda i, j, n, m: i - 2 < j <= i  # noqa: E731

DENSE = {
    "top left": (xops.LowerTriangularMask(), TOP_LEFT),
    "bottom right": (xops.LowerTriangularFromBottomRightMask(), BOTTOM_RIGHT),
    "window": (xops.LocalAttentionFromBottomRightMask(2, 1), LOCAL),
    "causal window": (xops.LowerTriangularFromBottomRightMask().make_local_attention(2), WINDOW),
}
PLAIN = xops.BlockDiagonalMask.from_seqlens(QUERIES, KEYS)
PADDED = xops.BlockDiagonalPaddedKeysMask.from_seqlens(QUERIES, SLOTS, KEYS)
GAPPY = xops.BlockDiagonalGappyKeysMask.from_seqlens(QUERIES, STARTS, KEYS)
SHARED = ([0, 2, 2, 20], KEYS)
PAGED = xops.PagedBlockDiagonalPaddedKeysMask.from_seqlens(QUERIES, KEYS, TABLE, PAGE)
FIRST = [2, 0, 3]
IN_PAGES, IN_SLOTS = paged([0, 0, 0], KEYS), [range(n * SLOTS, n * SLOTS + KEYS[n]) for n in range(3)]
IN_GAPS = [range(first, first + n) for first, n in zip(STARTS, KEYS, strict=False)]
#: Each mask with the keys of its blocks, the number of keys in all, and its rule.
BLOCKS = {
    "blocks": (PLAIN, laid(KEYS), 15, ALL),
    "as many keys": (xops.BlockDiagonalMask.from_seqlens(QUERIES), laid(QUERIES), 9, ALL),
    "causal": (PLAIN.make_causal(), laid(KEYS), 15, TOP_LEFT),
    "causal, as many keys": (xops.BlockDiagonalCausalMask.from_seqlens(QUERIES), laid(QUERIES), 9, TOP_LEFT),
    "causal, bottom right": (PLAIN.make_causal_from_bottomright(), laid(KEYS), 15, BOTTOM_RIGHT),
    "window": (PLAIN.make_local_attention(2), laid(KEYS), 15, WINDOW_TOP_LEFT),
    "window, bottom right": (PLAIN.make_local_attention_from_bottomright(2), laid(KEYS), 15, WINDOW),
    "padded": (PADDED, IN_SLOTS, 21, ALL),
    "padded, causal": (
        xops.BlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(QUERIES, SLOTS, KEYS), IN_SLOTS, 21, BOTTOM_RIGHT,
    ),
    "padded, local": (PADDED.make_local_attention(2, 1), IN_SLOTS, 21, LOCAL),
    "padded, local from lengths": (
        xops.BlockDiagonalLocalAttentionPaddedKeysMask.from_seqlens_local(QUERIES, SLOTS, KEYS, 2, 1), IN_SLOTS, 21,
        LOCAL,
    ),
    "padded, causal window": (
        xops.BlockDiagonalCausalLocalAttentionPaddedKeysMask.from_seqlens_local(QUERIES, SLOTS, KEYS, 2), IN_SLOTS, 21,
        WINDOW,
    ),
    "gappy": (GAPPY, IN_GAPS, 20, ALL),
    "gappy, causal": (
        xops.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(QUERIES, STARTS, KEYS), IN_GAPS, 20, BOTTOM_RIGHT,
    ),
    "shared keys": (
        xops.BlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(QUERIES, *SHARED),
        [range(first, first + n) for first, n in zip(*SHARED, strict=False)], 20, BOTTOM_RIGHT,
    ),
    "pages": (PAGED, IN_PAGES, 24, ALL),
    "pages, causal": (
        PADDED.make_paged(TABLE, PAGE, xops.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask), IN_PAGES, 24,
        BOTTOM_RIGHT,
    ),
    "pages, gappy": (
        xops.PagedBlockDiagonalGappyKeysMask.from_seqlens(QUERIES, FIRST, KEYS, TABLE, PAGE), paged(FIRST, KEYS), 24,
        ALL,
    ),
    "pages, from gappy": (
        xops.BlockDiagonalGappyKeysMask.from_seqlens(QUERIES, [2, 8, 19, 24], KEYS).make_paged(
            TABLE, PAGE, 8, xops.PagedBlockDiagonalGappyKeysMask
        ),
        paged([2, 0, 3], KEYS), 24, ALL,
    ),
    "pages, gappy, causal": (
        xops.PagedBlockDiagonalCausalWithOffsetGappyKeysMask.from_seqlens(QUERIES, FIRST, KEYS, TABLE, PAGE),
        paged(FIRST, KEYS), 24, BOTTOM_RIGHT,
    ),
}  # fmt: skip


def by_hand(q, k, v, bias, scale=None):
    """xFormers' documented formula, of ``(B, M, H, K)``; a query that sees nothing gives zeros."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + bias
    seen = (scores > -math.inf).any(-1, keepdim=True)
    weights = scores.where(seen, 0.0).softmax(-1).where(seen, 0.0)
    return (weights @ v).transpose(1, 2)


def tensors(B, Lq, Lk):
    shapes = (B, Lq, H, K), (B, Lk, H, K), (B, Lk, H, Kv)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def compared(inputs, mask, bias, **settings):
    """Output and gradients."""
    outputs = xops.memory_efficient_attention(*inputs, attn_bias=mask, **settings), by_hand(*inputs, bias, **settings)
    torch.testing.assert_close(*outputs)
    weight = torch.randn_like(outputs[0])
    torch.testing.assert_close(*(torch.autograd.grad((output * weight).sum(), inputs) for output in outputs))


def as_bias(seen):
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)


@pytest.mark.parametrize("sizes", [(7, 7), (5, 9), (9, 5)], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_dense_masks(name, sizes):
    mask, rule = DENSE[name]
    bias = as_bias(seen_by_hand([range(sizes[0])], [range(sizes[1])], *sizes, rule))
    assert torch.equal(mask.materialize((2, *sizes), torch.float64), bias.expand(2, *sizes))
    assert torch.equal(mask.materialize(sizes), bias.float())
    compared(tensors(2, *sizes), mask, bias)
    assert mask.to(torch.device("cpu")).materialize(sizes).shape == sizes


@pytest.mark.parametrize("name", BLOCKS)
def test_block_diagonal_masks(name):
    mask, keys, Lk, rule = BLOCKS[name]
    bias = as_bias(seen_by_hand(laid(QUERIES), keys, 9, Lk, rule))
    assert torch.equal(mask.materialize((9, Lk), torch.float64), bias)
    assert torch.equal(mask.materialize((1, H, 9, Lk), torch.float64), bias.expand(1, H, 9, Lk))
    compared(tensors(1, 9, Lk), mask, bias, scale=0.7)
    assert torch.equal(mask.to(torch.device("cpu")).materialize((9, Lk), torch.float64), bias)


@pytest.mark.parametrize("name", ["blocks", "causal", "padded, causal", "gappy", "pages, causal"])
def test_masks_take_no_memory_and_keys_are_read_where_they_lie(name, monkeypatch):
    from limelight.compat.xformers import attention as module

    seen = []

    def attention(query, key, value, **settings):
        seen.append((key, limelight.explain(query, key, value, **settings)))
        return limelight.attention(query, key, value, **settings)

    monkeypatch.setattr(module, "attention", attention)
    mask, _, Lk, _ = BLOCKS[name]
    q, k, v = (x.detach() for x in tensors(1, 9, Lk))
    xops.memory_efficient_attention(q, k, v, mask)
    assert seen[0][0].data_ptr() == k.data_ptr()
    assert "tile" not in seen[0][1].form


def test_tensors_as_biases():
    inputs = tensors(2, 7, 9)
    bias = torch.randn(2, H, 7, 9, dtype=torch.float64)
    compared(inputs, bias, bias)
    compared(inputs, bias[0, 0], bias[0, 0])
    causal = xops.LowerTriangularMask().add_bias(bias)
    expected = bias.masked_fill(~torch.ones(7, 9).tril().bool(), -math.inf)
    compared(inputs, causal, expected)
    assert torch.equal(causal.materialize(bias.shape, torch.float64), expected)
    bias.requires_grad_()
    output = xops.memory_efficient_attention(*inputs, attn_bias=causal.to(torch.device("cpu")))
    expected = by_hand(*inputs, bias.masked_fill(~torch.ones(7, 9).tril().bool(), -math.inf))
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), bias), torch.autograd.grad(expected.square().sum(), bias)
    )


def test_three_and_five_dimensions():
    q, k, v = (x.detach() for x in tensors(2, 7, 9))
    bias = torch.randn(2, 7, 9, dtype=torch.float64)
    found = xops.memory_efficient_attention(q[:, :, 0], k[:, :, 0], v[:, :, 0], bias)
    torch.testing.assert_close(found, by_hand(q[:, :, :1], k[:, :, :1], v[:, :, :1], bias[:, None])[:, :, 0])
    found = xops.memory_efficient_attention(*(x.unflatten(2, (2, 2)) for x in (q, k, v)), xops.LowerTriangularMask())
    expected = by_hand(q, k, v, as_bias(torch.ones(7, 9).tril().bool()))
    torch.testing.assert_close(found, expected.unflatten(2, (2, 2)))
    shared = [x[:, :, :2, None].expand(-1, -1, 2, 2, -1) for x in (k, v)]  # two groups of two heads
    bias = torch.randn(2, 2, 2, 7, 9, dtype=torch.float64)
    expected = by_hand(q, *(x.flatten(2, 3) for x in shared), bias.flatten(1, 2)).unflatten(2, (2, 2))
    for keys, values in (shared, [x[:, :, :, :1] for x in shared], [x.contiguous() for x in shared]):
        found = xops.memory_efficient_attention(q.unflatten(2, (2, 2)), keys, values, bias)
        torch.testing.assert_close(found, expected)


def test_other_dtypes_and_dropout():
    q, k, v = (x.detach().float() for x in tensors(2, 7, 9))
    assert xops.memory_efficient_attention(q, k, v, output_dtype=torch.float64).dtype == torch.float64
    assert not torch.equal(
        xops.memory_efficient_attention(q, k, v, p=0.5), xops.memory_efficient_attention(q, k, v, op=None)
    )


def test_lists_of_tensors():
    texts = [torch.randn(2, 3, H, K), torch.randn(1, 5, H, K)]
    mask, joined = xops.BlockDiagonalMask.from_tensor_list(texts)
    assert joined.shape == (1, 11, H, K)
    assert mask.q_seqinfo.seqstart_py == [0, 3, 6, 11]
    assert all(map(torch.equal, mask.split(joined), texts))
    output = mask.split(xops.memory_efficient_attention(joined, joined, joined, mask))
    for text, found in zip(texts, output, strict=True):
        torch.testing.assert_close(found, xops.memory_efficient_attention(text, text, text))
    keys = [torch.randn(2, 4, H, K), torch.randn(1, 2, H, K)]
    mask, queries, joined, values = xops.BlockDiagonalMask.from_tensor_lists_qkv(texts, keys, keys)
    assert torch.equal(joined, values)
    assert all(map(torch.equal, mask.split_queries(queries), texts))
    assert all(map(torch.equal, mask.split_kv(joined), keys))
    assert xops.BlockDiagonalMask.from_tensor_lists_qkv(texts, keys)[3] is None
    info = PADDED.k_seqinfo
    assert (info.max_seqlen, info.min_seqlen) == (6, 4)
    assert info.seqlen.tolist() == KEYS
    assert PLAIN.q_seqinfo.seqstart.tolist() == [0, 3, 4, 9]


def test_masks_of_xformers_itself(monkeypatch):
    """Masks of the same names and attributes; xFormers is not needed for the test."""
    theirs = ModuleType("xformers.ops.fmha.attn_bias")
    monkeypatch.setitem(sys.modules, theirs.__name__, theirs)

    def foreign(mask, **attributes):
        made = type(type(mask).__name__, (), {"__module__": theirs.__name__})()
        made.__dict__.update(vars(mask), **attributes)
        return made

    q, k, v = (x.detach() for x in tensors(1, 9, 24))
    bias = torch.randn(1, H, 9, 9)
    for mask, Lk in (
        (BLOCKS["padded, causal window"][0], 21),
        (PAGED, 24),
        (PLAIN.make_local_attention(2), 15),
        (xops.LowerTriangularMask(), 9),
        (xops.LowerTriangularMaskWithTensorBias(bias), 9),
        (xops.LocalAttentionFromBottomRightMask(2, 1), 9),
    ):
        expected = xops.memory_efficient_attention(q, k[:, :Lk], v[:, :Lk], mask)
        assert torch.equal(xops.memory_efficient_attention(q, k[:, :Lk], v[:, :Lk], foreign(mask)), expected)
    with pytest.raises(ArgumentError, match="`attn_bias` must be a mask or a tensor, but it is a dict"):
        xops.memory_efficient_attention(q, k, v, {})


def test_wrong_arguments():
    q, k, v = (x.detach() for x in tensors(1, 9, 15))
    for match, call in {
        "`attn_bias` must be made for the 8 queries.*made for 9": lambda: xops.memory_efficient_attention(
            q[:, 1:], k, v, PLAIN
        ),
        "`attn_bias` must be made for the 14 keys": lambda: xops.memory_efficient_attention(
            q, k[:, 1:], v[:, 1:], PLAIN
        ),
        "`query` must have one batch row": lambda: xops.memory_efficient_attention(
            *(x.expand(2, -1, -1, -1) for x in (q, k, v)), PLAIN
        ),
        "`key` must consist of whole pages": lambda: xops.memory_efficient_attention(q, k, v, PAGED),
        "`key` must be .*all three alike": lambda: xops.memory_efficient_attention(q, k[0], v),
        "`key` must have the groups": lambda: xops.memory_efficient_attention(
            q.unflatten(2, (2, 2)), k.unflatten(2, (4, 1)), v.unflatten(2, (2, 2))
        ),
        "`attn_bias` with a tensor needs": lambda: xops.memory_efficient_attention(
            q[:, :, 0], k[:, :, 0], v[:, :, 0], xops.LowerTriangularMask().add_bias(torch.zeros(9, 15))
        ),
        "`kv_seqlen` must not be below": lambda: xops.BlockDiagonalMask.from_seqlens(
            [5], [3]
        ).make_causal_from_bottomright(),
        "`kv_seqlen` must hold as many": lambda: xops.BlockDiagonalMask.from_seqlens([5], [3, 4]),
        "`kv_seqlen` must fit": lambda: xops.BlockDiagonalPaddedKeysMask.from_seqlens([5], 3, [4]),
        "`kv_seqstarts` must hold one number more": lambda: xops.BlockDiagonalGappyKeysMask.from_seqlens([5], [3], [4]),
        "`window_size`": lambda: PLAIN.make_local_attention(0),
        "`window_left`": lambda: xops.LocalAttentionFromBottomRightMask(-1, 2),
        "`q_seqlen`": lambda: xops.BlockDiagonalMask.from_seqlens([-1]),
        r"`block_tables` must be \(3, pages": lambda: xops.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
            QUERIES, KEYS, TABLE[:2], PAGE
        ),
        r"`tensor` must be \(1, 9, ...\)": lambda: PLAIN.split_queries(k),
    }.items():
        with pytest.raises(ArgumentError, match=match):
            call()
