"""The native kernels that read keys and values in pages, in every element type and on every instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.accuracy import check_close, check_logsumexp, rounded, steps
from support.kernels import every_dtype, every_kernel, same_bits, selected, threads
from support.pages import observed, paged_calls, places, stored

import limelight
from limelight import ALiBi, Causal, Keys, Observe, Packed, Paged, SoftCap, Window
from limelight.backends import native

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

some = settings(max_examples=settings.default.max_examples // 10)
IN_PLACE = (16, 32, 48, 64, 128)  # page sizes that the kernels read


@every_kernel
@some
@given(data=st.data())
def test_equals_the_definition(kernel, data):
    isa, dtype = kernel
    call = data.draw(paged_calls(dtype, IN_PLACE))
    seen = Observe(logsumexp=True)
    with selected(isa):
        ours, ours_seen = call.run("native", seen)
        assert same_bits(ours, call.run("native")), "observing changes bits"
    with rounded(dtype):
        plain, plain_seen = call.run_rows(dtype, observe=seen)
    truth, truth_seen = call.run_rows(torch.float64, observe=seen)
    terms = call.run_rows(torch.float64, value=call.rows.value.abs()).nan_to_num(0, 0, 0)
    slack, size = steps(call.rows), terms.max().item() if terms.numel() else 0.0
    check_close(ours, plain, truth, "output", slack, size, dtype)
    check_logsumexp(call.rows, ours_seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, slack)


@every_dtype
@some
@given(data=st.data())
def test_observations(dtype, data):
    call = data.draw(paged_calls(dtype, IN_PLACE, dropout=False))
    observe = data.draw(observed(call.rows.sizes))
    ours, plain, truth = (
        x[1].seen()
        for x in (
            call.run("native", observe),
            call.run_rows(dtype, observe=observe),
            call.run_rows(torch.float64, observe=observe),
        )
    )
    s = call.rows.sizes
    for name, expected in truth.items():
        if name in ("received_by", "block_pairs"):
            assert torch.equal(ours[name].expand_as(expected), expected), name
        elif name == "top_keys":
            assert torch.equal(ours[name] >= 0, expected >= 0)
        else:
            slack = steps(call.rows) + max(s.Lq, s.Lk) ** 0.5 / 2
            check_close(ours[name], plain[name], expected, name, slack, size=1.0)


PATTERNS = (None, Causal(), Causal() & Window(40, 0), Causal() & (Window(70, 0) | Keys(4)))


@every_kernel
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_text_has_the_same_bits_alone_and_among_others(kernel, pattern):
    """Decoding steps over long and short texts beside a prompt and a part of one, whatever the threads."""
    isa, dtype = kernel
    queries, keys, size, count = (1, 90, 1, 3, 40, 1), (700, 90, 5, 260, 333, 64), 32, 64
    generator = torch.Generator().manual_seed(0)
    table = torch.randperm(count, generator=generator)[None].expand(6, count).contiguous()
    table = torch.stack([row.roll(11 * n) for n, row in enumerate(table)])
    query = torch.randn(1, 8, sum(queries), 64, generator=generator).to(dtype)
    key, value = torch.randn(2, count, 2, size, 64, generator=generator).to(dtype)
    how = {"pattern": pattern, "scores": (SoftCap(9.0), ALiBi.standard(8)), "backend": "native"}
    with selected(isa):
        whole = limelight.attention(query, key, value, layout=Paged(queries, keys, table), **how)
        with threads(3):
            again = limelight.attention(query, key, value, layout=Paged(queries, keys, table), **how)
        assert torch.equal(whole, again)
        first = 0
        for n, (Lq, Lk) in enumerate(zip(queries, keys, strict=True)):
            some = slice(first, first + Lq)
            alone = limelight.attention(
                query[:, :, some], key, value, layout=Paged((Lq,), (Lk,), table[n : n + 1]), **how
            )
            assert torch.equal(alone, whole[:, :, some]), f"text {n}"
            first += Lq


@every_kernel
@pytest.mark.parametrize("size", [16, 48, 128])
def test_prompts_have_the_same_bits_in_pages_and_in_rows(kernel, size):
    """Blocks of keys that begin and end anywhere in a page, after an odd number of keys, beside slots that hold NaN."""
    isa, dtype = kernel
    queries, keys = (70, 33, 60), (131, 290, 60)
    generator = torch.Generator().manual_seed(3)
    counts = [-(-n // size) for n in keys]
    numbers = torch.randperm(sum(counts), generator=generator).split(counts)
    layout = Paged(queries, keys, [n.tolist() for n in numbers])
    where = places(layout, size)
    page, slot = (list(numbers) for numbers in zip(*where, strict=True))
    for width, form in ((64, "HND"), (64, "NHD"), (40, "after")):
        query = torch.randn(1, 4, sum(queries), width, generator=generator).to(dtype)
        full = torch.randn(2, sum(counts), 2, size, width, generator=generator).to(dtype)
        pages = [stored(x, where, form) for x in full]
        rows = [x[page, :, slot].transpose(0, 1)[None] for x in full]
        for pattern in (None, Causal(), Causal() & (Window(77, 0) | Keys(5))):
            how = {"pattern": pattern, "scores": (SoftCap(9.0), ALiBi.standard(4)), "backend": "native"}
            seen = Observe(entropy=True, received=True)
            with selected(isa):
                ours, ours_seen = limelight.attention(query, *pages, layout=layout, observe=seen, **how)
                plain, plain_seen = limelight.attention(query, *rows, layout=Packed(queries, keys), observe=seen, **how)
            assert same_bits(ours, plain), (form, pattern)
            assert same_bits(ours_seen.entropy, plain_seen.entropy)
            assert same_bits(ours_seen.received, plain_seen.received)


def test_what_is_read_in_place():
    query = torch.randn(1, 2, 1, 16)

    def pages(key, value):
        table = torch.zeros(1, 64, dtype=torch.int32)
        return limelight.explain(query, key, value, layout=Paged((1,), (64,), table)).pages

    key, value = torch.randn(2, 4, 2, 64, 16)
    assert pages(key, value) == "read in place, 64 keys in each"
    assert pages(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value))).startswith("read in place")
    assert "a page has 24 keys; it reads pages of a multiple of 16" in pages(key[:, :, :24], value[:, :, :24])
    assert "the last stride of key or value is not 1" in pages(key, value.mT.contiguous().mT)


@every_dtype
def test_long_texts_in_pages_and_in_rows(dtype):
    """The same result to rounding, where decoding steps are divided among chunks of keys."""
    keys, size = (3000, 9000, 17), 64
    counts = [-(-n // size) for n in keys]
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randperm(sum(counts), generator=generator).split(counts)
    key, value = (torch.randn(sum(counts), 2, size, 32, generator=generator).to(dtype) for _ in "kv")
    query = torch.randn(1, 8, 6, 32, generator=generator).to(dtype)
    rows = [
        torch.cat([torch.cat([*x[n]], 1)[:, :L] for n, L in zip(numbers, keys, strict=True)], 1)[None]
        for x in (key, value)
    ]
    layout = Paged((1, 4, 1), keys, [n.tolist() for n in numbers])
    for pattern in (Causal(), Causal() & Window(2000, 0)):
        ours = limelight.attention(query, key, value, layout=layout, pattern=pattern, backend="native")
        packed = {"layout": Packed((1, 4, 1), keys), "pattern": pattern, "backend": "reference"}
        with rounded(dtype):
            plain = limelight.attention(query, *rows, **packed)
        truth = limelight.attention(*(x.double() for x in (query, *rows)), **packed)
        check_close(ours, plain, truth, repr(pattern), dtype=dtype)


@every_kernel
@pytest.mark.parametrize("width", [64, 40])
@pytest.mark.parametrize("queries", [(1,) * 9, (2, 1, 2, 1, 2, 40)], ids=["one", "several"])
def test_texts_that_begin_with_the_same_pages(kernel, queries, width):
    """The same bits as if each text had pages of its own: their common keys are read once, for all of them."""
    isa, dtype = kernel
    size, common = 64, (9, 9, 9, 20, 20, 9, 17, 9, 0)[: len(queries)]  # pages that a text begins with
    keys = [size * n + 100 + 2 * n_text for n_text, n in enumerate(common)]
    generator = torch.Generator().manual_seed(2)
    counts = [-(-n // size) for n in keys]
    own = torch.arange(sum(counts)).split(counts)
    shared = [torch.cat([own[3 if len(own) > 3 else 0][:n], row[n:]]) for n, row in zip(common, own, strict=True)]
    key, value = (torch.randn(sum(counts), 2, size, width, generator=generator).to(dtype) for _ in "kv")
    for mine, theirs in zip(own, shared, strict=True):
        key[mine], value[mine] = key[theirs], value[theirs]
    query = torch.randn(1, 8, sum(queries), width, generator=generator).to(dtype)
    for how in (
        {"pattern": Causal(), "scores": (ALiBi.standard(8),)},
        {"pattern": Causal() & Window(900, 0), "sink": torch.randn(8, generator=generator).to(dtype)},
        {"dropout": 0.3, "seed": 5},
    ):
        with selected(isa):
            apart, together = (
                limelight.attention(
                    query, key, value, layout=Paged(queries, keys, [n.tolist() for n in table]), backend="native", **how
                )
                for table in (own, shared)
            )
            with threads(3):
                again = limelight.attention(
                    query,
                    key,
                    value,
                    layout=Paged(queries, keys, [n.tolist() for n in shared]),
                    backend="native",
                    **how,
                )
        assert torch.equal(apart, together), how
        assert torch.equal(apart, again), how
