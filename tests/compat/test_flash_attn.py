"""flash-attention's functions, by the formulas that it documents."""

from contextlib import nullcontext

import pytest
import torch

import limelight
from limelight import ArgumentError, BackendError, compat

q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)


def flash_by_hand(q, k, v, causal=False, left=-1, right=-1, softcap=0.0, slopes=None):
    """flash-attention's documented meaning, of ``(L, H, D)``: bottom-right causal, windows that count keys.

    The output and ``(H, L)`` logsumexps.
    """
    i, j = torch.arange(len(q))[:, None] + len(k) - len(q), torch.arange(len(k))
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * (i - j).abs()
    seen = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        seen &= j <= i
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v), scores.logsumexp(-1)


FORMS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"left": 2, "right": 1},
    "window, causal, cap": {"causal": True, "left": 3, "softcap": 2.0},
    "cap below zero": {"softcap": -1.0},
    "slopes": {"slopes": torch.rand(4)},
    "slopes of each row": {"slopes": torch.rand(2, 4), "causal": True},
}


@pytest.mark.parametrize("window", [tuple, torch.tensor], ids=["ints", "tensor"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_flash_attention(form, window):
    settings = {
        "causal": form.get("causal", False),
        "window_size": window([form.get("left", -1), form.get("right", -1)]),
        "softcap": form.get("softcap", 0.0),
        "alibi_slopes": form.get("slopes"),
    }

    def of(row):
        slopes = form.get("slopes")
        return form if slopes is None or slopes.dim() == 1 else {**form, "slopes": slopes[row]}

    a, b, c = (t.transpose(1, 2) for t in (q, k, v))
    ours = compat.flash_attn_func(a, b, c, **settings)
    output, logsumexp, nothing = compat.flash_attn_func(a, b, c, **settings, return_attn_probs=True)
    assert torch.equal(output, ours)
    assert nothing is None
    for row in range(2):
        expected, expected_logsumexp = flash_by_hand(a[row], b[row], c[row], **of(row))
        torch.testing.assert_close(ours[row], expected)
        torch.testing.assert_close(logsumexp[row], expected_logsumexp)
    ends_q, ends_k = torch.tensor([0, 2, 7], dtype=torch.int32), torch.tensor([0, 4, 9], dtype=torch.int32)
    arguments = [t.detach().clone().requires_grad_() for t in (a[0], b[0], c[0])]
    packed = compat.flash_attn_varlen_func(*arguments, ends_q, ends_k, 5, 5, **settings)
    output, logsumexp, nothing = compat.flash_attn_varlen_func(
        *arguments, ends_q, ends_k, 5, 5, **settings, return_attn_probs=True
    )
    torch.testing.assert_close(output, packed, rtol=0, atol=0)
    assert nothing is None
    expected, expected_logsumexp = zip(
        *(
            flash_by_hand(arguments[0][q0:q1], arguments[1][k0:k1], arguments[2][k0:k1], **of(document))
            for document, ((q0, q1), (k0, k1)) in enumerate((((0, 2), (0, 4)), ((2, 7), (4, 9))))
        ),
        strict=True,
    )
    torch.testing.assert_close(packed, torch.cat(expected))
    torch.testing.assert_close(logsumexp, torch.cat(expected_logsumexp, 1))
    torch.testing.assert_close(
        torch.autograd.grad(packed.square().sum(), arguments),
        torch.autograd.grad(torch.cat(expected).square().sum(), arguments),
    )


def test_slopes_of_documents_without_tokens():
    """A document may have no queries, or no keys: then its queries see nothing."""
    slopes = torch.rand(4, 4)
    ends_q, ends_k = torch.tensor([0, 3, 3, 5, 7]), torch.tensor([0, 4, 6, 6, 9])
    a, b, c = q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1)
    output = compat.flash_attn_varlen_func(a, b, c, ends_q, ends_k, alibi_slopes=slopes)
    for document, (q0, q1, k0, k1) in {0: (0, 3, 0, 4), 3: (5, 7, 6, 9)}.items():
        expected, _ = flash_by_hand(a[q0:q1], b[k0:k1], c[k0:k1], slopes=slopes[document])
        torch.testing.assert_close(output[q0:q1], expected)
    assert not output[3:5].any()
    with pytest.raises(ArgumentError, match="must add up to Lq"):
        compat.flash_attn_varlen_func(a, b, c, ends_q[:-1], ends_k[:-1], alibi_slopes=slopes[:3])
    with pytest.raises(ArgumentError, match="one number for each query head"):
        compat.flash_attn_varlen_func(a, b, c, ends_q, ends_k, alibi_slopes=slopes[:3])


@pytest.mark.parametrize("form", [{"causal": True}, {"window_size": (2, 1), "softcap": 3.0}], ids=str)
def test_packed_tensors(form):
    """One tensor of queries, keys and values is that of three, with its gradient."""
    qkv = torch.randn(2, 7, 3, 4, 8, requires_grad=True)
    ends = torch.tensor([0, 3, 7])
    for packed, three, arguments in (
        (compat.flash_attn_qkvpacked_func, compat.flash_attn_func, ()),
        (compat.flash_attn_varlen_qkvpacked_func, compat.flash_attn_varlen_func, (ends, 4)),
    ):
        whole = qkv[0] if arguments else qkv
        parts = whole.unbind(-3)
        expected = three(*parts, *arguments[:1], *arguments, *arguments[1:], **form)
        found = packed(whole, *arguments, **form, return_attn_probs=True)
        torch.testing.assert_close(found[0], expected, rtol=0, atol=0)
        torch.testing.assert_close(
            torch.autograd.grad(found[0].square().sum(), qkv), torch.autograd.grad(expected.square().sum(), qkv)
        )
    kv = torch.stack((k, v), 3).permute(0, 2, 3, 1, 4)
    query = q.transpose(1, 2)
    torch.testing.assert_close(
        compat.flash_attn_kvpacked_func(query, kv, **form), compat.flash_attn_func(query, *kv.unbind(2), **form)
    )
    ends_q, ends_k = torch.tensor([0, 2, 7]), torch.tensor([0, 4, 9])
    torch.testing.assert_close(
        compat.flash_attn_varlen_kvpacked_func(query[0], kv[0], ends_q, ends_k, 5, 5, **form),
        compat.flash_attn_varlen_func(query[0], *kv[0].unbind(1), ends_q, ends_k, 5, 5, **form),
    )
    with pytest.raises(ArgumentError, match=r"`qkv` must be \(B, L, 3, H, D\)"):
        compat.flash_attn_qkvpacked_func(kv)
    with pytest.raises(ArgumentError, match=r"`kv` must be \(total, 2, H, D\)"):
        compat.flash_attn_varlen_kvpacked_func(query[0], kv, ends_q, ends_k)


def test_documents_in_pages():
    ends_q, ends_k = torch.tensor([0, 2, 7], dtype=torch.int32), torch.tensor([0, 20, 25], dtype=torch.int32)
    query, keys, values = torch.randn(7, 4, 8), torch.randn(5, 16, 2, 8), torch.randn(5, 16, 2, 8)
    table = torch.tensor([[3, 0], [2, -1]], dtype=torch.int32)
    rows = [torch.cat((x[3], x[0, :4], x[2, :5])) for x in (keys, values)]
    for slopes in (None, torch.rand(4), torch.rand(2, 4)):
        settings = {"causal": True, "alibi_slopes": slopes, "return_attn_probs": True}
        found = compat.flash_attn_varlen_func(query, keys, values, ends_q, ends_k, 5, 20, **settings, block_table=table)
        expected = compat.flash_attn_varlen_func(query, *rows, ends_q, ends_k, 5, 20, **settings)
        torch.testing.assert_close(found, expected)
    with pytest.raises(ArgumentError, match=r"`k` must be \(number of pages, page size, Hkv, D\)"):
        compat.flash_attn_varlen_func(query, *rows, ends_q, ends_k, block_table=table)


def rotate_by_hand(x, cosine, sine, first, interleaved, shared):
    """``(L, H, D)``, pair by pair."""
    x = x.clone()
    half = cosine.shape[1]
    for i, row in enumerate(x):
        position = first if shared else first + i
        for n in range(half):
            a, b = (2 * n, 2 * n + 1) if interleaved else (n, half + n)
            c, s = cosine[position, n], sine[position, n]
            one, other = row[:, a].clone(), row[:, b].clone()
            row[:, a], row[:, b] = one * c - other * s, other * c + one * s
    return x


def cached_by_hand(q, keys, values, k, v, held, first, rotary, interleaved, form):
    """One row: ``(Lq, Hq, D)`` queries, caches ``(S, Hkv, D)``; the output, the logsumexp and the caches after it."""
    keys, values = keys.clone(), values.clone()
    if rotary is not None:
        q = rotate_by_hand(q, *rotary, held, interleaved, not (form["causal"] or max(form["left"], form["right"]) >= 0))
        k = rotate_by_hand(k, *rotary, held, interleaved, False)
    last = held
    if k is not None:
        last = held + len(k)
        keys[held:last], values[held:last] = k, v
    group = q.shape[1] // keys.shape[1]
    seen = (x[first:last].repeat_interleave(group, 1) for x in (keys, values))
    return *flash_by_hand(q, *seen, **form), keys, values


CACHES = {
    "whole": {},
    "an int": {"seqlens": 5},
    "lengths": {"seqlens": (5, 20, 0)},
    "appended": {"seqlens": 5, "new": 3},
    "appended by row": {"seqlens": (5, 20, 0), "new": 2},
    "rotated": {"seqlens": (5, 20, 0), "new": 3, "rotary": 4},
    "rotated halves": {"seqlens": 4, "new": 3, "rotary": 2, "interleaved": False},
    "rows": {"seqlens": (5, 20, 9), "rows": (3, 0, 2)},
    "rows, appended": {"seqlens": (5, 20, 9), "new": 3, "rows": (3, 0, 2), "rotary": 4},
    "rows to their last slot": {"seqlens": (34, 20, 9), "new": 1, "rows": (3, 0, 2)},
    "left padding": {"seqlens": (9, 20, 6), "first": (2, 0, 5), "new": 3, "rotary": 4},
    "left padding of an int": {"seqlens": 9, "first": (2, 0, 5)},
    "rows, left padding": {"seqlens": (9, 20, 6), "first": (2, 0, 5), "rows": (3, 0, 2)},
    "pages": {"seqlens": (5, 20, 17), "pages": True},
    "pages, appended": {"seqlens": (5, 20, 30), "new": 3, "pages": True, "rotary": 4},
    "pages of an int": {"seqlens": 14, "new": 4, "pages": True},
}


@pytest.mark.parametrize("form", ["plain", "causal", "window, causal, cap", "slopes of each row"])
@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("Lq", [1, 3])
def test_cache(name, form, Lq):
    case, B, S = CACHES[name], 3, 35
    form = {"causal": False, "left": -1, "right": -1} | FORMS[form]
    slopes = torch.rand(B, 4) if "slopes" in form else None
    held, new, pages = case.get("seqlens"), case.get("new"), case.get("pages")
    keys, values = torch.randn(2, 4, S, 2, 8)
    table = torch.tensor([[4, 1, -1], [0, 5, 7], [2, 3, 6]], dtype=torch.int32) if pages else None
    if pages:
        keys, values = torch.randn(2, 8, 16, 2, 8)
    query = torch.randn(B, Lq, 4, 8)
    k, v = torch.randn(2, B, new, 2, 8) if new else (None, None)
    angles = torch.rand(50, case["rotary"] // 2) if "rotary" in case else None
    rotary = None if angles is None else (angles.cos(), angles.sin())
    tensor = lambda numbers: torch.tensor(numbers, dtype=torch.int32) if isinstance(numbers, tuple) else numbers  # noqa: E731
    before = keys.clone(), values.clone()
    output, logsumexp = compat.flash_attn_with_kvcache(
        query, keys, values, k, v, *(rotary or (None, None)), cache_seqlens=tensor(held),
        cache_batch_idx=tensor(case.get("rows")), cache_leftpad=tensor(case.get("first")), block_table=table,
        causal=form["causal"], window_size=(form["left"], form["right"]), softcap=form.get("softcap", 0.0),
        rotary_interleaved=case.get("interleaved", True), alibi_slopes=slopes, return_softmax_lse=True,
    )  # fmt: skip
    expected_caches = [x.clone() for x in before]
    for b in range(B):
        places = torch.arange(S) + S * (case["rows"][b] if "rows" in case else b)
        if pages:
            places = (table[b].clamp(min=0)[:, None] * 16 + torch.arange(16)).flatten()
        count = S if held is None else held if isinstance(held, int) else held[b]
        first = case["first"][b] if "first" in case else 0
        expected = cached_by_hand(
            query[b], *(x.flatten(0, 1)[places] for x in before), None if k is None else k[b],
            None if v is None else v[b], count, first, rotary, case.get("interleaved", True),
            form if slopes is None else form | {"slopes": slopes[b]},
        )  # fmt: skip
        if count + (new or 0) - first == 0:
            assert not output[b].any()
            assert (logsumexp[b] == -torch.inf).all()
        else:
            torch.testing.assert_close(output[b], expected[0].nan_to_num())
            torch.testing.assert_close(logsumexp[b], expected[1])
        if new:
            written = places[count : count + new]
            for cache, one in zip(expected_caches, expected[2:], strict=True):
                cache.flatten(0, 1)[written] = one[count : count + new]
    torch.testing.assert_close((keys, values), tuple(expected_caches))


@pytest.mark.parametrize("way", ["an int", "lengths", "rows", "pages"])
def test_a_step_of_decoding_reads_the_cache_where_it_lies(way, monkeypatch):
    """The tensors that the operator gets are the cache's memory, and a kernel serves the call."""
    from limelight.compat.flash_attn import settings

    seen = []

    def attention(query, key, value, **rest):
        seen.append((key, value, limelight.explain(query, key, value, **rest)))
        return limelight.attention(query, key, value, **rest)

    monkeypatch.setattr(settings, "attention", attention)
    keys, values = torch.randn(2, 4, 64, 2, 16)
    held, arguments = 40, {}
    if way != "an int":
        held = torch.tensor([40, 7, 20])
    if way == "rows":
        arguments["cache_batch_idx"] = torch.tensor([2, 0, 1])
    if way == "pages":
        keys, values = torch.randn(2, 16, 16, 2, 16)
        arguments["block_table"] = torch.arange(12).view(3, 4)
    k, v = torch.randn(2, 3, 1, 2, 16)
    compat.flash_attn_with_kvcache(torch.randn(3, 1, 4, 16), keys, values, k, v, cache_seqlens=held, **arguments)
    ((key, value, explained),) = seen
    assert key.data_ptr() == keys.data_ptr()
    assert value.data_ptr() == values.data_ptr()
    if limelight.backends.native.available():
        assert explained.backend == "native"
        assert "gathered" not in explained.pages
        assert explained.memory < keys.nbytes + 2**20


def test_caches_that_do_not_fit():
    keys, values = torch.randn(2, 4, 10, 2, 8)
    k, v = torch.randn(2, 3, 2, 2, 8)
    query = torch.randn(3, 1, 4, 8)
    angles = torch.rand(4, 2)
    for match, arguments in {
        "`cache_seqlens` must be given with k and v": {"k": k, "v": v},
        "`k` must be given with v": {"k": k, "cache_seqlens": 1},
        "`k_cache` must have room.*10 slots.*holds 9 keys and gets 2": {"k": k, "v": v, "cache_seqlens": 9},
        "`k_cache` must have room": {"cache_seqlens": torch.tensor([1, 11, 2])},
        r"`cache_seqlens` must be \(3,\) whole numbers": {"cache_seqlens": torch.tensor([1, 2])},
        "`cache_leftpad` must not be negative": {"cache_leftpad": torch.tensor([0, -1, 0])},
        "`cache_batch_idx` must be among the 4 rows": {"cache_batch_idx": torch.tensor([0, 4, 0])},
        "`block_table` cannot be given with": {
            "block_table": torch.zeros(3, 1).int(),
            "cache_leftpad": torch.tensor([0, 1, 0]),
        },
        "`block_table` must have a row for each of 3": {"block_table": torch.zeros(2, 1).int()},
        "`rotary_cos` must be given with": {"rotary_cos": angles, "rotary_sin": angles, "cache_seqlens": 1},
        "`rotary_cos` must have a row for each position.*has 4.*position 4": {
            "k": k, "v": v, "cache_seqlens": 3, "rotary_cos": angles, "rotary_sin": angles,
        },
        r"`k` must be \(3, 2, 2, 8\) of the dtype of `k_cache`": {"k": k.half(), "v": v, "cache_seqlens": 3},
        "`rotary_cos` and rotary_sin must both be": {
            "k": k, "v": v, "cache_seqlens": 3, "rotary_cos": angles, "rotary_sin": angles[:, :1],
        },
        "`cache_leftpad` must not exceed the number of keys": {
            "cache_seqlens": 3, "cache_leftpad": torch.tensor([0, 4, 3]),
        },
        "`cache_batch_idx` must be a torch.Tensor": {"cache_batch_idx": [0, 1, 2]},
        "`window_size` must be two whole numbers": {"window_size": 4},
    }.items():  # fmt: skip
        with pytest.raises(ArgumentError, match=match):
            compat.flash_attn_with_kvcache(query, keys, values, **arguments)
    with pytest.raises(ArgumentError, match="`k_cache` must have a row for each row of `q`"):
        compat.flash_attn_with_kvcache(torch.randn(5, 1, 4, 8), keys, values)
    with pytest.raises(ArgumentError, match=r"`q` must be \(B, L, H, D\)"):
        compat.flash_attn_with_kvcache(query[0], keys, values)
    with pytest.raises(ArgumentError, match="`v_cache` must have the rows, slots and heads of `k_cache`"):
        compat.flash_attn_with_kvcache(query, keys, values[:, :9])


FAILING = {
    "scale": (ArgumentError, {"softmax_scale": float("nan")}),
    "slopes": (ArgumentError, {"alibi_slopes": torch.rand(5)}),
    "query": (ArgumentError, {"q": torch.randn(3, 1, 4, 8).half()}),
    "heads": (ArgumentError, {"q": torch.randn(3, 1, 3, 8)}),
    "backend": (BackendError, {"backend": "flash2"}),
    "values": (ArgumentError, {"v": torch.randn(3, 1, 2, 8, device="meta")}),
}


@pytest.mark.parametrize("way", ["an int", "lengths", "rows", "pages"])
@pytest.mark.parametrize(("error", "changes"), FAILING.values(), ids=FAILING)
def test_a_call_that_fails_leaves_the_cache_as_it_was(way, error, changes):
    keys, values = torch.randn(2, 4, 64, 2, 8)
    arguments = {"q": torch.randn(3, 1, 4, 8), "cache_seqlens": 40 if way == "an int" else torch.tensor([40, 7, 20])}
    arguments["k"], arguments["v"] = torch.randn(2, 3, 1, 2, 8)
    if way == "rows":
        arguments["cache_batch_idx"] = torch.tensor([2, 0, 1])
    if way == "pages":
        keys, values = torch.randn(2, 16, 16, 2, 8)
        arguments["block_table"] = torch.arange(12).view(3, 4)
    before = keys.clone(), values.clone()
    arguments |= changes
    allowed = compat.sdpa_kernel(arguments.pop("backend")) if "backend" in arguments else nullcontext()
    with pytest.raises(error), allowed:
        compat.flash_attn_with_kvcache(k_cache=keys, v_cache=values, **arguments)
    assert torch.equal(keys, before[0])
    assert torch.equal(values, before[1])


@pytest.mark.parametrize("page", [-1, 12])
@pytest.mark.parametrize("slopes", [None, torch.rand(3, 4)], ids=["one row of pages", "slopes of each row"])
def test_pages_that_do_not_exist(page, slopes):
    """They are refused before anything is written, and entries that hold no key may be anything."""
    keys, values = torch.randn(2, 12, 16, 2, 8)
    query, new = torch.randn(3, 1, 4, 8), torch.randn(3, 1, 2, 8)
    table, held = torch.arange(12).view(3, 4), torch.tensor([20, 32, 3])
    how = {"cache_seqlens": held, "alibi_slopes": slopes}
    expected = compat.flash_attn_with_kvcache(query, keys.clone(), values.clone(), new, new, block_table=table, **how)
    table[0, 2] = table[2, 1] = page
    found = compat.flash_attn_with_kvcache(query, keys.clone(), values.clone(), new, new, block_table=table, **how)
    assert torch.equal(found, expected)
    table[1, 2] = page
    before = keys.clone()
    with pytest.raises(ArgumentError, match=r"must name one of the 12 pages.*row 1, column 2"):
        compat.flash_attn_with_kvcache(query, keys, values, new, new, block_table=table, **how)
    assert torch.equal(keys, before)


def test_pages_without_queries():
    keys, values = torch.randn(12, 16, 2, 8), torch.randn(12, 16, 2, 5)
    table = torch.arange(12).view(3, 4)
    for rows, Lq in ((0, 1), (3, 0)):
        query = torch.randn(rows, Lq, 4, 8)
        output, logsumexp = compat.flash_attn_with_kvcache(
            query, keys, values, cache_seqlens=7, block_table=table[:rows], return_softmax_lse=True
        )
        assert output.shape == (rows, Lq, 4, 5)
        assert logsumexp.shape == (rows, 4, Lq)


def test_a_cache_of_float64_is_rotated_in_float64():
    angles = torch.rand(12, 4, dtype=torch.float64)
    query, new = torch.zeros(1, 1, 2, 8, dtype=torch.float64), torch.randn(1, 1, 2, 8, dtype=torch.float64)
    keys, values = torch.zeros(2, 1, 10, 2, 8, dtype=torch.float64)
    compat.flash_attn_with_kvcache(
        query, keys, values, new, new, angles.cos(), angles.sin(), cache_seqlens=5, rotary_interleaved=False
    )
    a, b = new[0, 0].chunk(2, -1)
    cosine, sine = angles[5].cos(), angles[5].sin()
    expected = torch.cat((a * cosine - b * sine, a * sine + b * cosine), -1)
    torch.testing.assert_close(keys[0, 5], expected, rtol=1e-14, atol=1e-14)


def test_bad_shapes_and_documents():
    x, rows = torch.randn(5, 4, 8), torch.randn(2, 5, 4, 8)
    for match, call in {
        r"`k` must be \(B, L, H, D\)": lambda: compat.flash_attn_func(rows, x, rows),
        "`q` must be a torch.Tensor": lambda: compat.flash_attn_func(None, rows, rows),
        r"`q` must be \(total, H, D\)": lambda: compat.flash_attn_varlen_func(rows, x, x, *[torch.tensor([0, 5])] * 2),
        "`cu_seqlens_q` must begin with 0": lambda: compat.flash_attn_varlen_func(x, x, x, *[torch.tensor([1, 6])] * 2),
        "`cu_seqlens_q` must be a torch.Tensor": lambda: compat.flash_attn_varlen_func(x, x, x, [0, 5], [0, 5]),
        "`window_size` must be two": lambda: compat.flash_attn_func(rows, rows, rows, window_size=(1.5, 0)),
    }.items():
        with pytest.raises(ArgumentError, match=match):
            call()


@pytest.mark.parametrize("held", [5, torch.tensor([5, 3, 7])], ids=["an int", "lengths"])
def test_a_cache_under_a_compiler(held):
    caches = torch.randn(2, 3, 10, 2, 8)
    query, k, v = torch.randn(3, 1, 4, 8), *torch.randn(2, 3, 1, 2, 8)
    found = []
    for function in (compat.flash_attn_with_kvcache, torch.compile(compat.flash_attn_with_kvcache, backend="eager")):
        own = caches.clone()
        output = function(query, *own, k, v, cache_seqlens=held, cache_leftpad=torch.tensor([1, 0, 2]), causal=True)
        found.append((output, own))
    torch.testing.assert_close(*found)
