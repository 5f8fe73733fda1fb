"""`compat.flex` is PyTorch's FlexAttention: its masks, its scores, and the gradients that it has on no CPU."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as theirs

import limelight
from limelight import ArgumentError, Causal, Chunks, Full, Keys, Packed, Window
from limelight.compat import flex

B, H, Lq, Lk, D = 2, 4, 37, 45, 16
DOCUMENTS = torch.repeat_interleave(torch.arange(4), torch.tensor([10, 1, 20, 30]))
INTERRUPTED = torch.tensor([0] * 10 + [1] * 20 + [0] * 31)
OF_ROWS = torch.stack((DOCUMENTS, DOCUMENTS.flip(0)))
LENGTHS = torch.tensor([11, 40])
TABLE = torch.rand(B, H, Lq, Lk) < 0.5
SEEN = torch.rand(B, Lk) < 0.7
STARTS = torch.tensor([0, 3, 20])

BEGINS = torch.tensor([0, 10, 11, 31])


def place(index):
    """Of a token within its document."""
    return index - BEGINS[DOCUMENTS[index]]


def inner_mask(q, k, function):
    """A mask of the places within documents, as attention-gym's masks of documents are."""
    return (DOCUMENTS[q] == DOCUMENTS[k]) & function(place(q), place(k))


#: Functions of indices, each with whether it becomes spans: a pattern of no memory.
MASKS = {
    "causal": (lambda b, h, q, k: q >= k, True),
    "causal, reversed": (lambda b, h, q, k: k <= q, True),
    "after": (lambda b, h, q, k: k > q, True),
    "shifted": (lambda b, h, q, k: q >= k + 3, True),
    "shifted back": (lambda b, h, q, k: k - 5 < q, True),
    "far": (lambda b, h, q, k: k - q >= 4, True),
    "window": (lambda b, h, q, k: (q >= k) & (q - k < 7), True),
    "band": (lambda b, h, q, k: torch.abs(q - k) <= 5, True),
    "not a band": (lambda b, h, q, k: (q - k).abs() > 5, True),
    "prefix": (lambda b, h, q, k: (k < 9) | (q >= k), True),
    "prefix of rows": (lambda b, h, q, k: (k < LENGTHS[b]) | (q >= k), True),
    "lengths": (lambda b, h, q, k: (q < LENGTHS[b]) & (k < LENGTHS[b]), True),
    "lengths, reversed": (lambda b, h, q, k: (LENGTHS[b] > q) & ~(LENGTHS[b] <= k), True),
    "last keys": (lambda b, h, q, k: k >= Lk - 4, True),
    "some queries": (lambda b, h, q, k: (q < 5) | (q >= 30) | (q == k), True),
    "chunks": (lambda b, h, q, k: q // 8 == k // 8, True),
    "floor division": (lambda b, h, q, k: torch.div(q, 8, rounding_mode="floor") >= k // 8, True),
    "later chunks": (lambda b, h, q, k: k // 8 > q // 8, True),
    "chunk by number": (lambda b, h, q, k: (k // 8 == 2) | (q // 8 < 1), True),
    "sinks": (lambda b, h, q, k: (q >= k) & ((q - k <= 6) | (k < 2)), True),
    "scaled": (lambda b, h, q, k: 2 * q - 2 * k >= 3, True),
    "negated": (lambda b, h, q, k: ~((-q) <= -k), True),
    "number minus": (lambda b, h, q, k: (10 - q > 0) | (20 - k <= 0), True),
    "captured number": (lambda b, h, q, k: (q - k < LENGTHS[0]) & (q >= k), True),
    "where": (lambda b, h, q, k: torch.where(q < 9, k < 4, k <= q), True),
    "logical": (lambda b, h, q, k: torch.logical_or(torch.logical_and(q > k, k > 3), torch.logical_not(q < 7)), True),
    "exclusive": (lambda b, h, q, k: (q >= k) ^ (k < 5), True),
    "everything": (flex.noop_mask, True),
    "nothing": (lambda b, h, q, k: q - k > q - k, True),
    "documents": (lambda b, h, q, k: DOCUMENTS[q] == DOCUMENTS[k], True),
    "documents, interrupted": (lambda b, h, q, k: INTERRUPTED[q] == INTERRUPTED[k], True),
    "documents of rows": (lambda b, h, q, k: (OF_ROWS[b, q] == OF_ROWS[b, k]) & (q >= k), True),
    "places in documents": (lambda b, h, q, k: inner_mask(q, k, lambda i, j: i >= j), True),
    "window in documents": (lambda b, h, q, k: inner_mask(q, k, lambda i, j: (i >= j) & ((i - j).abs() <= 4)), True),
    "or in documents": (lambda b, h, q, k: inner_mask(q, k, lambda i, j: (i > j) | (j - i == 2)), True),
    "prefix in documents": (lambda b, h, q, k: inner_mask(q, k, lambda i, j: (j < 3) | (i >= j)), False),
    "places without documents": (lambda b, h, q, k: q - BEGINS[DOCUMENTS[q]] >= k - BEGINS[DOCUMENTS[k]], False),
    "places of others": (lambda b, h, q, k: (INTERRUPTED[q] == INTERRUPTED[k]) & (place(q) >= place(k)), False),
    "documents, causal": (lambda b, h, q, k: (DOCUMENTS[q] == DOCUMENTS[k]) & (q >= k), True),
    "of a module's functions": (theirs.and_masks(theirs.noop_mask, lambda b, h, q, k: q >= k), True),
    "or": (flex.or_masks(lambda b, h, q, k: k < 3, lambda b, h, q, k: q - k > 9), True),
    "and": (flex.and_masks(lambda b, h, q, k: k > 3, lambda b, h, q, k: q - k > 9), True),
    "dilated": (lambda b, h, q, k: (q - k) % 3 == 0, False),
    "dilated window": (lambda b, h, q, k: ((q - k) % 3 == 0) & (q >= k) & (q - k < 9), False),
    "heads": (lambda b, h, q, k: (h < 2) | (q >= k), False),
    "some heads, causal": (lambda b, h, q, k: ((h + b) % 2 == 0) & (q >= k), False),
    "a table": (lambda b, h, q, k: TABLE[b, h, q, k], False),
    "a table of keys": (lambda b, h, q, k: SEEN[b, k] & (q >= k), False),
    "scalar index": (lambda b, h, q, k: k >= STARTS[(q > 5).long() + 1], False),
    "sum": (lambda b, h, q, k: (q + k) % 5 < 3, False),
    "ranges of queries": (lambda b, h, q, k: k < torch.clamp(q * 2, max=30), False),
    "float": (lambda b, h, q, k: (q - k).float() < 3.5, False),
}


def dense(mask):
    """What a mask says of every pair, by its pattern and its layout."""
    coordinates = mask.layout.coordinates(B, *mask.seq_lengths, torch.device("cpu"))
    at = limelight.Where.of(coordinates, B, H)
    seen = mask.pattern.allows(at) & coordinates.together()
    return seen.expand(B, H, *mask.seq_lengths)


@pytest.mark.parametrize("sizes", [(Lq, Lk), (Lk, Lq), (Lq, Lq), (1, 5)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_masks(name, sizes):
    """The pattern of a function is the mask that PyTorch evaluates; what positions decide has spans."""
    function, has_spans = MASKS[name]
    if name in ("a table", "a table of keys") and sizes[0] > Lq:
        sizes = (Lq, Lq)
    mask = flex.create_block_mask(function, B, H, *sizes)
    expected = theirs.create_mask(function, B, H, *sizes, device="cpu")
    assert torch.equal(dense(mask), expected)
    assert torch.equal(flex.create_mask(function, B, H, *sizes), expected)
    assert (mask.pattern.spans(0) is not None) == has_spans, mask.pattern
    block = theirs.create_block_mask(function, B, H, *sizes, device="cpu", BLOCK_SIZE=8)
    ours = flex.create_block_mask(function, B, H, *sizes, BLOCK_SIZE=8)
    assert torch.equal(ours.to_dense(), block.to_dense().long())
    assert ours.shape == block.shape
    assert ours.numel() == block.numel()


def test_sparsity():
    function = MASKS["window"][0]
    ours = flex.create_block_mask(function, B, H, 40, 48, BLOCK_SIZE=8)
    expected = theirs.create_block_mask(function, B, H, 40, 48, device="cpu", BLOCK_SIZE=8)
    assert ours.sparsity() == pytest.approx(expected.sparsity(), abs=1e-3)
    assert flex.create_block_mask(function, B, H, 0, 0).sparsity() == 0.0


def test_what_masks_become():
    made = lambda function: flex.create_block_mask(function, None, None, 61, 61)  # noqa: E731
    assert made(lambda b, h, q, k: q >= k).pattern == Causal()
    assert made(lambda b, h, q, k: q // 8 == k // 8).pattern == Chunks(8)
    assert made(lambda b, h, q, k: (q >= k) | (k < 9)).pattern == Causal() | Keys(9)
    assert made(lambda b, h, q, k: q - k <= 5).pattern == Window(5, None)
    assert made(flex.noop_mask).pattern == Full()
    mask = made(lambda b, h, q, k: (DOCUMENTS[q] == DOCUMENTS[k]) & (q >= k))
    assert (mask.layout, mask.pattern) == (Packed((10, 1, 20, 30)), Causal())
    mask = made(lambda b, h, q, k: inner_mask(q, k, lambda i, j: (i >= j) & (i - j < 5)))
    assert (mask.layout, mask.pattern) == (Packed((10, 1, 20, 30)), Causal() & Window(4, None))
    assert made(lambda b, h, q, k: (DOCUMENTS[q] == DOCUMENTS[k]) & (k < 9)).layout == limelight.Aligned(query_start=0)


NUMBER = st.integers(-12, 12)
SIDE = st.sampled_from(
    [lambda b, h, q, k: q, lambda b, h, q, k: k, lambda b, h, q, k: q - k, lambda b, h, q, k: k - q,
     lambda b, h, q, k: q // 5, lambda b, h, q, k: k // 5, lambda b, h, q, k: (k - q).abs(), lambda b, h, q, k: -q],
)  # fmt: skip
RELATION = st.sampled_from([torch.ge, torch.gt, torch.le, torch.lt, torch.eq, torch.ne])
COMPARISON = st.one_of(
    st.builds(lambda side, n, is_: lambda *at: is_(side(*at), n), SIDE, NUMBER, RELATION),
    st.builds(lambda a, b, n, is_: lambda *at: is_(a(*at) + n, b(*at)), SIDE, SIDE, NUMBER, RELATION),
)
EXPRESSION = st.recursive(
    COMPARISON,
    lambda inner: st.one_of(
        st.builds(lambda a, b: lambda *at: a(*at) & b(*at), inner, inner),
        st.builds(lambda a, b: lambda *at: a(*at) | b(*at), inner, inner),
        st.builds(lambda a, b: lambda *at: a(*at) ^ b(*at), inner, inner),
        st.builds(lambda a: lambda *at: ~a(*at), inner),
        st.builds(lambda a, b, c: lambda *at: torch.where(a(*at), b(*at), c(*at)), inner, inner, inner),
    ),
    max_leaves=5,
)


@given(EXPRESSION, st.sampled_from([(13, 17), (16, 16), (17, 9)]))
def test_any_expression(expression, sizes):
    def function(b, h, q, k):
        return expression(b, h, q, k)

    mask = flex.create_block_mask(function, B, H, *sizes)
    assert torch.equal(dense(mask), theirs.create_mask(function, B, H, *sizes, device="cpu"))


SLOPES = torch.rand(H, dtype=torch.float64)
RELATIVE = torch.randn(H, Lq + Lk, dtype=torch.float64)
BIAS = torch.randn(Lq, Lk, dtype=torch.float64)
OF_KEYS = torch.randn(B, Lk, dtype=torch.float64)
SCORES = {
    "identity": lambda s, b, h, q, k: s,
    "factor": lambda s, b, h, q, k: s * 2.5,
    "negative": lambda s, b, h, q, k: -(s + BIAS[q, k]),
    "quotient": lambda s, b, h, q, k: s / 3,
    "soft cap": lambda s, b, h, q, k: 2.0 * torch.tanh(s / 2.0),
    "soft cap by a product": lambda s, b, h, q, k: torch.tanh(s * (1 / 7.0)) * 7.0,
    "alibi": lambda s, b, h, q, k: s - SLOPES[h] * (q - k).abs(),
    "signed alibi": lambda s, b, h, q, k: s + SLOPES[h] * (k - q),
    "distance": lambda s, b, h, q, k: s + (q - k),
    "relative": lambda s, b, h, q, k: s + RELATIVE[h, q - k + Lk],
    "bucketed": lambda s, b, h, q, k: s + RELATIVE[h, (q - k).clamp(-3, 3) + 3],
    "a bias": lambda s, b, h, q, k: s + BIAS[q, k],
    "a bias of keys": lambda s, b, h, q, k: OF_KEYS[b, k] + s,
    "of batch and head": lambda s, b, h, q, k: s - torch.cos(b * 3.0 + h),
    "a number": lambda s, b, h, q, k: s + 1.5,
    "cap, then bias": lambda s, b, h, q, k: torch.tanh(s / 2.0) * 2.0 + BIAS[q, k],
    "bias, then cap": lambda s, b, h, q, k: torch.tanh((s + SLOPES[h] * (k - q)) / 2.0) * 2.0,
    "bias, then factor": lambda s, b, h, q, k: (s + BIAS[q, k] - SLOPES[h] * (q - k).abs()) * 0.5,
    "masked": lambda s, b, h, q, k: torch.where(q + 8 >= k, s, -float("inf")),
    "masked, reversed": lambda s, b, h, q, k: torch.where(q + 8 < k, float("-inf"), s * 2),
    "masked fill": lambda s, b, h, q, k: (s + 1).masked_fill(DOCUMENTS[q] != DOCUMENTS[k], -math.inf),
    "masked by a tensor": lambda s, b, h, q, k: torch.where(SEEN[b, k], s, torch.full_like(s, -math.inf)),
}


def by_hand(q, k, v, score_mod=None, mask_mod=None, scale=None):
    """FlexAttention's definition."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    indices = [torch.arange(n) for n in scores.shape]
    if score_mod is not None:
        function = score_mod
        for dim in (3, 2, 1, 0):
            function = torch.vmap(function, in_dims=(0, *(0 if n == dim else None for n in range(4))))
        with flex.recording.IndexByTensors():
            scores = function(scores, *indices)
    if mask_mod is not None:
        scores = scores.masked_fill(~theirs.create_mask(mask_mod, *scores.shape, device="cpu"), -math.inf)
    weights = scores.softmax(-1).where((scores > -math.inf).any(-1, keepdim=True), 0.0)
    return weights @ v, scores.logsumexp(-1), scores.amax(-1)


def tensors(dtype=torch.float64, heads=H, grad=True):
    shapes = (B, H, Lq, D), (B, heads, Lk, D), (B, heads, Lk, 8)
    return [torch.randn(shape, dtype=dtype, requires_grad=grad) for shape in shapes]


@pytest.mark.parametrize("mask", [None, "window", "documents, causal", "a table"])
@pytest.mark.parametrize("name", SCORES)
def test_scores(name, mask):
    """Output, logsumexp, largest score, and the gradients of queries, keys, values and captured tensors."""
    score_mod, mask_mod = SCORES[name], None if mask is None else MASKS[mask][0]
    captured = [SLOPES, RELATIVE, BIAS, OF_KEYS]
    inputs = [*tensors(), *(x.requires_grad_() for x in captured)]
    try:
        block_mask = None if mask is None else flex.create_block_mask(mask_mod, B, H, Lq, Lk)
        wanted = flex.AuxRequest(lse=True, max_scores=True)
        output, aux = flex.flex_attention(*inputs[:3], score_mod, block_mask, return_aux=wanted)
        found = (output, aux.lse, aux.max_scores)
        expected = by_hand(*inputs[:3], score_mod, mask_mod)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        weight = torch.randn_like(output)
        gradients = [
            torch.autograd.grad((x[0] * weight).sum() + x[1].clamp(min=-9).sum(), inputs, allow_unused=True)
            for x in (found, expected)
        ]
        for a, b in zip(*gradients, strict=True):
            none = torch.zeros(()) if a is None and b is None else None
            a, b = (none if x is None else x for x in (a, b))
            torch.testing.assert_close(a, b)
    finally:
        for x in captured:
            x.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["soft cap", "relative", "a bias of keys"])
@pytest.mark.parametrize("mask", [None, "prefix of rows", "some heads, causal"])
def test_is_pytorchs(name, mask, monkeypatch):
    """PyTorch's own function, its masks included."""
    monkeypatch.setattr(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    q, k, v = tensors(heads=2, grad=False)
    made = None if mask is None else theirs.create_block_mask(MASKS[mask][0], B, H, Lq, Lk, device="cpu")
    request = theirs.AuxRequest(lse=True)
    output, aux = theirs.flex_attention(q, k, v, SCORES[name], made, 0.3, True, return_aux=request)
    ours, our_aux = flex.flex_attention(q, k, v, SCORES[name], made, 0.3, True, return_aux=request)
    torch.testing.assert_close(ours, output)
    torch.testing.assert_close(our_aux.lse, aux.lse)
    assert our_aux.max_scores is None
    lse = flex.flex_attention(q, k, v, SCORES[name], made, 0.3, True, return_lse=True)[1]
    assert torch.equal(lse, our_aux.lse)


def test_masks_of_pytorch_without_a_function():
    table = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    table[0, 0, :, 2] = table[0, 0, 1, :] = True
    for blocks in ((8, 8), (8, 16)):
        counts = table.sum(-1).int()
        order = torch.argsort(table.int(), dim=-1, descending=True, stable=True).int()
        mask = theirs.BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=blocks)
        q, k, v = (torch.randn(1, 2, n, D) for n in (40, 6 * blocks[1], 6 * blocks[1]))
        seen = table.repeat_interleave(blocks[0], 2).repeat_interleave(blocks[1], 3)
        expected = limelight.attention(q, k, v, pattern=limelight.Explicit(seen))
        torch.testing.assert_close(flex.flex_attention(q, k, v, block_mask=mask), expected)
    noop = theirs.BlockMask.from_kv_blocks(torch.full((1, 1, 5), 6), torch.arange(6).expand(1, 1, 5, 6), BLOCK_SIZE=8)
    assert flex.masks.as_block_mask(noop).pattern == Full()
    with pytest.raises(ArgumentError, match="sliced"):
        flex.flex_attention(q, k, v, block_mask=mask[:, :, :2])


def test_keeps_what_pytorchs_mask_became():
    mask = theirs.create_block_mask(MASKS["causal"][0], None, None, 40, 40, device="cpu")
    found = flex.masks.as_block_mask(mask)
    assert flex.masks.as_block_mask(mask) is found
    mask.mask_mod = MASKS["window"][0]
    assert flex.masks.as_block_mask(mask).pattern != found.pattern


def test_memory_is_linear_where_a_mask_has_structure():
    n = 100_000
    documents = torch.arange(n) // 1000
    mask = flex.create_block_mask(lambda b, h, q, k: (documents[q] == documents[k]) & (q >= k), None, None, n, n)
    q = torch.empty(1, 1, n, 16, device="meta")
    explained = limelight.explain(q, q, q, layout=mask.layout, pattern=mask.pattern)
    assert explained.pairs == 100 * 1000 * 1001 // 2
    assert mask.layout == Packed((1000,) * 100)


def test_shared_keys_and_groups():
    q, k, v = tensors(heads=2)
    with pytest.raises(ArgumentError, match="enable_gqa"):
        flex.flex_attention(q, k, v)
    torch.testing.assert_close(flex.flex_attention(q, k, v, enable_gqa=True), by_hand(q, k, v)[0])
    one = flex.flex_attention(q, k[:1], v[:1], enable_gqa=True)
    torch.testing.assert_close(one, by_hand(q, k[:1].expand(B, -1, -1, -1), v[:1].expand(B, -1, -1, -1))[0])


def test_under_a_compiler():
    """It is left out of the graph."""
    q, k, v = tensors(torch.float32)
    mask = flex.create_block_mask(MASKS["window"][0], None, None, Lq, Lk)
    compiled = torch.compile(flex.flex_attention, backend="eager")
    torch.testing.assert_close(
        compiled(q, k, v, SCORES["distance"], mask), by_hand(q, k, v, SCORES["distance"], MASKS["window"][0])[0]
    )


def test_transforms_of_torch_func():
    """Of queries, keys and values; a captured tensor would lose its derivatives, and is refused."""
    x = torch.randn(3, 1, H, 9, D, dtype=torch.float64, requires_grad=True)

    def loss(x, slopes=SLOPES):
        mask = flex.create_block_mask(MASKS["window"][0], None, None, 9, 9)
        return flex.flex_attention(x, x, x, lambda s, b, h, q, k: s + slopes[h] * (k - q), mask).sin().sum()

    expected = torch.stack([torch.autograd.grad(loss(one), one)[0] for one in x])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x.detach()), expected)
    with pytest.raises(ArgumentError, match=r"`score_mod` must not capture a tensor that torch\.func transforms"):
        torch.func.grad(loss, argnums=1)(x[0].detach(), SLOPES)


def test_scores_that_are_refused():
    q, k, v = tensors(grad=False)
    learned = torch.tensor(2.0, requires_grad=True)
    for match, function in {
        "it computes mul of the score": lambda s, b, h, q, k: s * SLOPES[h],
        "it computes mul": lambda s, b, h, q, k: s * learned,
        "it computes relu": lambda s, b, h, q, k: torch.relu(s),
        "it computes add": lambda s, b, h, q, k: s + s,
        "it computes where": lambda s, b, h, q, k: torch.where(q >= k, s, -1e9),
        "it computes rsub": lambda s, b, h, q, k: 1 - s,
        "tanh of the score that is not": lambda s, b, h, q, k: torch.tanh(s / 2) * 3,
        "after a soft cap": lambda s, b, h, q, k: torch.tanh(s / 2) * 2 * 3,
        "minus infinity by a number that is not positive": lambda s, b, h, q, k: -1 * s.masked_fill(q < k, -math.inf),
        "tanh of a score that it made minus": lambda s, b, h, q, k: 2 * torch.tanh(s.masked_fill(q < k, -math.inf) / 2),
        "does not depend on the score": lambda s, b, h, q, k: q * 1.0,
        "must not read its arguments": lambda s, b, h, q, k: s if q > k else s * 2,
        r"must take \(score, b, h, q_idx, kv_idx\)": lambda b, h, q, k: q >= k,
        "must not change a tensor in place": lambda s, b, h, q, k: s.add_(1),
        "divides the score by 0": lambda s, b, h, q, k: s / 0,
    }.items():
        with pytest.raises(ArgumentError, match=match):
            flex.flex_attention(q, k, v, function)


def test_wrong_arguments():
    q, k, v = tensors(grad=False)
    mask = flex.create_block_mask(MASKS["causal"][0], B, H, Lq, Lq)
    for match, call in {
        "`block_mask` must be made for 37 queries and 45 keys.*37 queries and 37 keys": lambda: flex.flex_attention(
            q, k, v, block_mask=mask
        ),
        "`block_mask` must be a BlockMask": lambda: flex.flex_attention(q, k, v, block_mask=TABLE),
        r"`query` must be \(B, H, L, D\)": lambda: flex.flex_attention(q[0], k, v),
        "`return_lse` cannot": lambda: flex.flex_attention(q, k, v, return_lse=True, return_aux=flex.AuxRequest()),
        "`mask_mod` must give a bool": lambda: flex.create_block_mask(lambda b, h, q, k: q - k, B, H, 5, 5),
        "`mask_mod` must give a tensor without": lambda: flex.create_block_mask(lambda b, h, q, k: True, B, H, 5, 5),
        "`mask_mod` must not read": lambda: flex.create_block_mask(lambda b, h, q, k: q >= k and q < 3, B, H, 5, 5),
        r"`mask_mod` must take \(b, h, q_idx, kv_idx\)": lambda: flex.create_block_mask(SCORES["factor"], B, H, 5, 5),
        "`mask_mod` must be callable": lambda: flex.create_block_mask(None, B, H, 5, 5),
        "`Q_LEN` must": lambda: flex.create_block_mask(MASKS["causal"][0], B, H, -5, 5),
        "`BLOCK_SIZE` must": lambda: flex.create_block_mask(MASKS["causal"][0], B, H, 5, 5, BLOCK_SIZE=0),
        "`mask_mods` must be callable": lambda: flex.and_masks(MASKS["causal"][0], 3),
    }.items():
        with pytest.raises(ArgumentError, match=match):
            call()
    for mask in (
        lambda b, h, q, k: DOCUMENTS[q] == DOCUMENTS[k],
        lambda b, h, q, k: (q >= k) & (DOCUMENTS[q] != DOCUMENTS[k]),
    ):
        with pytest.raises(ArgumentError, match="must have a number for each of 70 tokens"):
            flex.create_block_mask(mask, B, H, 70, 70)
