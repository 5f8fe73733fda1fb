"""The Triton kernels that read keys and values in pages, in Triton's interpreter, against the definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.accuracy import check_close, rounded, steps
from support.pages import observed, paged_calls

import limelight
from limelight import Causal, Observe, Packed, Paged, SoftCap, Window
from limelight.backends.gpu import flash2, machine

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter")

SIZES = (1, 3, 16, 64)


@settings(max_examples=20)
@given(st.data(), st.sampled_from([torch.float32, torch.float16]))
def test_equals_the_definition(data, dtype):
    call = data.draw(paged_calls(dtype, SIZES, most=2))
    observe = Observe(logsumexp=True)
    ours, ours_seen = call.run("flash2", observe)
    with rounded(dtype):
        plain, plain_seen = call.run_rows(dtype, observe=observe)
    truth, truth_seen = call.run_rows(torch.float64, observe=observe)
    slack = steps(call.rows)
    terms = call.run_rows(torch.float64, value=call.rows.value.abs()).nan_to_num(0, 0, 0)
    check_close(ours, plain, truth, "output", slack, terms.max().item() if terms.numel() else 0.0, dtype)
    check_close(ours_seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, "logsumexp", slack, 1.0)


@settings(max_examples=5)
@given(st.data())
def test_observations(data):
    call = data.draw(paged_calls(torch.float32, SIZES, dropout=False, most=2))
    observe = data.draw(observed(call.rows.sizes))
    ours = call.run("flash2", observe)[1].seen()
    plain = call.run_rows(torch.float32, observe=observe)[1].seen()
    truth = call.run_rows(torch.float64, observe=observe)[1].seen()
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        if name in ("received_by", "block_pairs"):
            assert torch.equal(ours[name].expand_as(expected), expected), name
        elif name == "top_keys":
            assert torch.equal(ours[name] >= 0, expected >= 0)
        else:
            check_close(ours[name], plain[name], expected, name, 16.0 + steps(call.rows), size=1.0)


# Decoding steps alone, whose keys are split, and beside a prompt; a single text; widths in two parts.
CALLS = {
    "decode": ((1, 1), (150, 9), 32, 32),
    "mixed": ((1, 40, 3), (70, 40, 30), 16, 24),
    "one text": ((5,), (99,), 64, 32),
    "parts": ((70,), (70,), 16, 96),
}


@pytest.mark.parametrize("case", CALLS)
def test_fixed_calls(case):
    queries, keys, size, D = CALLS[case]
    generator = torch.Generator().manual_seed(0)
    counts = [-(-n // size) for n in keys]
    numbers = torch.randperm(sum(counts) + 2, generator=generator)[: sum(counts)].split(counts)
    key, value = (torch.randn(sum(counts) + 2, 2, size, D, generator=generator) for _ in "kv")
    query = torch.randn(1, 4, sum(queries), D, generator=generator)
    rows = [
        torch.cat([torch.cat([*x[n]], 1)[:, :L] for n, L in zip(numbers, keys, strict=True)], 1)[None]
        for x in (key, value)
    ]
    how = {"pattern": Causal() & Window(60, 0), "scores": (SoftCap(5.0),), "sink": torch.zeros(4)}
    layout = Paged(queries, keys, [n.tolist() for n in numbers])
    assert "read in place" in limelight.explain(query, key, value, layout=layout, backend="flash2", **how).pages
    ours = limelight.attention(query, key, value, layout=layout, backend="flash2", **how)
    packed = {"layout": Packed(queries, keys), "backend": "reference"} | how
    plain = limelight.attention(query, *rows, **packed)
    truth = limelight.attention(*(x.double() for x in (query, *rows)), **packed)
    check_close(ours, plain, truth, case, slack=4.0)


def test_what_a_rescue_reads():
    """A value that is not finite, or scores too large for the fast path, where keys lie in pages."""
    query, (key, value) = torch.randn(1, 2, 3, 8), torch.randn(2, 3, 1, 16, 8)
    layout = Paged((1, 2), (20, 10), [[2, 0], [1]])
    value[1, :, 2] = float("inf")
    value[0, :, 9:] = key[0, :, 9:] = float("nan")  # no key
    for scale in (None, 1e9):
        out = limelight.attention(query, key, value, layout=layout, scale=scale, backend="flash2")
        truth = limelight.attention(query, key, value, layout=layout, scale=scale, backend="reference")
        torch.testing.assert_close(out, truth, rtol=1e-4, atol=1e-4, equal_nan=True)
        assert out[:, :, :1].isfinite().all()


def test_one_table_on_the_device_for_all_layers():
    layout = Paged((1,), (5,), [[0]])
    query, (key, value) = torch.randn(1, 2, 1, 8), torch.randn(2, 3, 1, 16, 8)
    limelight.attention(query, key, value, layout=layout, backend="flash2")
    tables = flash2.arguments._tables[layout.stored(16)]
    (first,) = tables.values()
    limelight.attention(query, value, key, layout=layout, backend="flash2")
    assert [*tables.values()] == [first]
    assert first.shape == (1, 16), "columns in multiples of 16"


def test_what_is_gathered():
    query, (key, value) = torch.randn(1, 2, 1, 8), torch.randn(2, 3, 1, 16, 8)
    layout = Paged((1,), (5,), [[0]])
    turned = key.mT.contiguous().mT
    answer = limelight.explain(query, turned, value, layout=layout, backend="flash2")
    assert "its last stride is not 1" in answer.pages
