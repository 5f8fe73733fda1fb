"""Keys and values in pages: a call is that of `Packed` over the keys laid end to end, on every path and backend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.accuracy import check_close, check_logsumexp, steps
from support.kernels import same_bits, threads
from support.pages import observed, paged_calls, places
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import limelight
from limelight import (
    Additive,
    ArgumentError,
    Bias,
    Causal,
    CosineSimilarity,
    Observe,
    Packed,
    Paged,
    Subset,
    Window,
)
from limelight.backends import BackendError, native
from limelight.forms.segments import FIELDS, unpack

BACKENDS = ("reference", "native") if native.available() else ("reference",)
some = settings(max_examples=settings.default.max_examples // 5)

# Two texts, a decoding step and a prompt: 20 keys in pages 2 and 0, 5 in page 3.
LAYOUT = Paged((1, 5), (20, 5), [[2, 0], [3]])
generator = torch.Generator().manual_seed(0)
Q = torch.randn(1, 4, 6, 8, generator=generator)
K, V = torch.randn(2, 4, 2, 16, 8, generator=generator)


def rows(tensor, layout=LAYOUT):
    """The keys of all texts end to end."""
    return torch.stack([tensor[page, :, slot] for page, slot in places(layout, tensor.shape[2])], dim=1)[None]


def packed(q=Q, k=K, v=V, **settings):
    return limelight.attention(q, rows(k), rows(v), layout=Packed((1, 5), (20, 5)), **settings)


# --- The result ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@some
@given(data=st.data())
def test_equals_the_definition_over_rows(backend, data):
    """In pages of any size; `tests/backends/` has the kernels that read pages in place, in every element type."""
    call = data.draw(paged_calls())
    seen = Observe(logsumexp=True)
    ours, ours_seen = call.run(backend, seen)
    plain, plain_seen = call.run_rows(torch.float32, observe=seen)
    truth, truth_seen = call.run_rows(torch.float64, observe=seen)
    terms = call.run_rows(torch.float64, value=call.rows.value.abs()).nan_to_num(0, 0, 0)
    slack, size = steps(call.rows), terms.max().item() if terms.numel() else 0.0
    check_close(ours, plain, truth, "output", slack, size)
    check_logsumexp(call.rows, ours_seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, slack)


@pytest.mark.parametrize("backend", BACKENDS)
@some
@given(data=st.data())
def test_observations_refer_to_the_keys_of_all_texts(backend, data):
    call = data.draw(paged_calls(torch.float64, dropout=False))
    observe = data.draw(observed(call.rows.sizes))
    ours, truth = (x[1].seen() for x in (call.run(backend, observe), call.run_rows(torch.float64, observe=observe)))
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        if expected.dtype == torch.int64 and name != "top_keys":
            assert torch.equal(ours[name].expand_as(expected), expected), name
        elif name != "top_keys":  # of equal weights one or the other
            torch.testing.assert_close(ours[name], expected, rtol=1e-9, atol=1e-9, equal_nan=True, msg=name)


@some
@given(data=st.data())
def test_same_bits_whatever_the_threads_and_the_keys_of_other_texts(data):
    call = data.draw(paged_calls(dropout=False))
    observe = Observe(logsumexp=True, entropy=True, top=2, received=True)
    with threads(1):
        out, seen = call.run(observe=observe)
    with threads(3):
        again, seen_again = call.run(observe=observe)
    assert same_bits(out, again)
    assert all(same_bits(x, seen_again.seen()[name]) for name, x in seen.seen().items())
    texts = call.layout.query_lengths.tolist()
    if not texts:
        return
    # One text keeps its keys; those of the others, also where a page is shared, come from elsewhere.
    own = data.draw(st.integers(0, len(texts) - 1))
    table, count = call.layout.pages.clone(), len(call.key)
    others = torch.arange(len(texts)) != own
    table[others] = table[others].clamp(0, count - 1) + count
    call.key, call.value = (torch.cat([x, x.nan_to_num(1.0) * 0.5]) for x in (call.key, call.value))
    call.layout = Paged(call.layout.query_lengths, call.layout.key_lengths, table)
    first = sum(texts[:own])
    queries = slice(first, first + texts[own])
    assert same_bits(call.run()[:, :, queries], out[:, :, queries])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("layout", "Lq"),
    [
        (Paged((), (), []), 0),
        (Paged((0, 0), (0, 0), torch.zeros(2, 0, dtype=torch.int32)), 0),
        (Paged((0, 0), (9, 0), [[1], []]), 0),
        (Paged((2, 1), (0, 0), [[], []]), 3),
    ],
    ids=["no text", "empty texts", "no queries", "no keys"],
)
def test_texts_without_tokens(layout, Lq, backend):
    out, seen = limelight.attention(
        Q[:, :, :Lq], K, V, layout=layout, backend=backend, observe=Observe(logsumexp=True, received=True)
    )
    assert torch.equal(out, torch.zeros(1, 4, Lq, 8))
    assert torch.equal(seen.logsumexp, torch.full((1, 4, Lq), -torch.inf))
    assert seen.received.shape == (1, 4, sum(layout.key_lengths.tolist()))


def test_a_shared_page_and_one_of_the_same_text_twice():
    layout = Paged((1, 2), (40, 20), [[3, 3, 0], [3, 2, -7]])
    out = limelight.attention(Q[:, :, :3], K, V, layout=layout, pattern=Causal())
    truth = limelight.attention(
        Q[:, :, :3], rows(K, layout), rows(V, layout), layout=Packed((1, 2), (40, 20)), pattern=Causal()
    )
    torch.testing.assert_close(out, truth)


def test_the_layout_is_a_copy():
    lengths, table = torch.tensor([20, 5]), torch.tensor([[2, 0], [3, 9]])
    layout = Paged(torch.tensor([1, 5]), lengths, table)
    before = limelight.attention(Q, K, V, layout=layout)
    lengths.fill_(1)
    table.fill_(-1)
    assert torch.equal(limelight.attention(Q, K, V, layout=layout), before)
    assert repr(layout) == "Paged(query_lengths=<int64 (2,)>, key_lengths=<int64 (2,)>, pages=<int32 (2, 2)>)"


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint32, torch.uint64])
def test_any_integers(dtype):
    layout = Paged(*(torch.tensor(x).to(dtype) for x in ([1, 5], [20, 5], [[2, 0], [3, 0]])))
    assert torch.equal(limelight.attention(Q, K, V, layout=layout), limelight.attention(Q, K, V, layout=LAYOUT))


@pytest.mark.parametrize("size", [1, 16])
def test_the_place_of_a_segment_in_the_table(size):
    """Key index ``k`` of a segment is entry ``k + page_offset`` of all slots of the table, row after row."""
    layout = Paged((1, 0, 5), (20, 0, 5), torch.arange(3 * 24).reshape(3, 24))
    segments = unpack(layout.stored(size).segments(layout.segments(1, 6, 25)))
    begin, end, offset = (segments[:, FIELDS.index(name)] for name in ("key_begin", "key_end", "page_offset"))
    assert offset.tolist() == [row * 24 * size - first for row, first in enumerate([0, 20, 20])]
    numbers = layout.pages.flatten()
    found = [
        (int(numbers[(k + o) // size]), (k + o) % size)
        for b, e, o in zip(begin.tolist(), end.tolist(), offset.tolist(), strict=True)
        for k in range(b, e)
    ]
    assert found == places(layout, size)


# --- Dispatch paths --------------------------------------------------------------------------------------------------


SETTINGS = {
    "plain": {},
    "causal": {"pattern": Causal()},
    "rules": {"pattern": Window(9, 0), "scores": (Bias(torch.randn(4, 6, 25, generator=generator)),)},
    "sink": {"sink": torch.randn(4, generator=generator)},
    "additive": {"compare": Additive(torch.randn(8, generator=generator))},
    "cosine": {"compare": CosineSimilarity(0.1)},
    "dropout": {"dropout": 0.4, "seed": 3},
}
every_setting = pytest.mark.parametrize("given_settings", SETTINGS.values(), ids=SETTINGS)


@every_setting
def test_gradients_reach_the_pages(given_settings):
    tensors = [x.double().requires_grad_() for x in (Q, K, V)]
    cotangent = torch.randn(1, 4, 6, 8, dtype=torch.float64, generator=generator)
    found = torch.autograd.grad(limelight.attention(*tensors, layout=LAYOUT, **given_settings), tensors, cotangent)
    truth = torch.autograd.grad(packed(*tensors, **given_settings), tensors, cotangent)
    for ours, theirs in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not found[1][1].any(), "a page without keys"


def test_gradients_of_a_page_that_texts_share_are_added():
    layout = Paged((1, 1), (16, 16), [[2], [2]])
    q, k, v = (x.double().requires_grad_() for x in (Q[:, :, :2], K, V))
    assert torch.autograd.gradcheck(lambda *x: limelight.attention(*x, layout=layout), (q, k, v))


def test_gradients_after_a_call_in_inference_mode():
    layout, key = Paged((1, 5), (20, 5), [[2, 0], [3]]), K.clone().requires_grad_()
    with torch.inference_mode():
        limelight.attention(Q, K, V, layout=layout, backend="reference")
    (found,) = torch.autograd.grad(limelight.attention(Q, key, V, layout=layout).sum(), key)
    (truth,) = torch.autograd.grad(packed(k=key).sum(), key)
    torch.testing.assert_close(found, truth)


def test_transforms():
    def call(q, k, v):
        return limelight.attention(q, k, v, layout=LAYOUT, pattern=Causal())

    def over_rows(q, k, v):
        return packed(q, k, v, pattern=Causal())

    tangents = torch.randn_like(Q), torch.randn_like(K), torch.randn_like(V)
    for ours, theirs in zip(
        torch.func.jvp(call, (Q, K, V), tangents), torch.func.jvp(over_rows, (Q, K, V), tangents), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    queries = torch.randn(3, *Q.shape)
    many = torch.vmap(call, in_dims=(0, None, None))(queries, K, V)
    torch.testing.assert_close(many, torch.stack([over_rows(q, K, V) for q in queries]))


@every_setting
@pytest.mark.parametrize("grad", [False, True])
def test_compiled(given_settings, grad):
    torch._dynamo.reset()
    tensors = [x.clone().requires_grad_(grad) for x in (Q, K, V)]
    f = torch.compile(
        lambda *x: limelight.attention(*x, layout=LAYOUT, **given_settings), backend="aot_eager", fullgraph=True
    )
    out = f(*tensors)
    torch.testing.assert_close(out, packed(*tensors, **given_settings))
    if grad:
        found, truth = (
            torch.autograd.grad(x.sum(), tensors) for x in (f(*tensors), packed(*tensors, **given_settings))
        )
        for ours, theirs in zip(found, truth, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_layout_made_inside_of_what_is_compiled():
    def call(q, k, v, table):
        return limelight.attention(q, k, v, layout=Paged((1, 5), (20, 5), table))

    table = torch.tensor([[2, 0], [3, 0]])
    torch.testing.assert_close(torch.compile(call, backend="eager")(Q, K, V, table), packed())
    with pytest.raises(ArgumentError, match=r"`pages` must hold numbers that can be read.*outside of what is compiled"):
        make_fx(call, tracing_mode="fake")(Q, K, V, table)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_recorded_and_exported():
    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return limelight.attention(q, k, v, layout=LAYOUT, pattern=Causal())

    truth, other = packed(pattern=Causal()), torch.randn_like(Q)
    torch.testing.assert_close(make_fx(Module())(Q, K, V)(Q, K, V), truth)
    program = torch.export.export(Module(), (Q, K, V)).module()
    torch.testing.assert_close(program(other, K, V), packed(other, pattern=Causal()))
    torch.testing.assert_close(torch.jit.trace(Module(), (Q, K, V))(Q, K, V), truth)
    assert limelight.attention(*(x.to("meta") for x in (Q, K, V)), layout=LAYOUT).shape == Q.shape


def test_observed_while_it_is_compiled():
    observe = Observe(entropy=True, received=True)
    f = torch.compile(lambda *x: limelight.attention(*x, layout=LAYOUT, observe=observe), backend="eager")
    (out, seen), (truth, seen_truth) = f(Q, K, V), packed(observe=observe)
    torch.testing.assert_close(out, truth)
    torch.testing.assert_close(seen.received, seen_truth.received)


def test_operations_are_counted_over_the_keys_of_all_texts():
    with FlopCounterMode(display=False) as counter:
        limelight.attention(Q, K, V, layout=LAYOUT)
    assert counter.get_total_flops() == 4 * 6 * 25 * 2 * (8 + 8)


def test_autocast_converts_the_keys_alone():
    with torch.autocast("cpu", torch.bfloat16):
        out = limelight.attention(Q, K, V, layout=LAYOUT)
        assert torch.equal(out, packed())
        assert "autocast converts the keys" in limelight.explain(Q, K, V, layout=LAYOUT).pages
        stored = (x.bfloat16() for x in (K, V))
        assert torch.equal(limelight.attention(Q, *stored, layout=LAYOUT), out)
    assert out.dtype == torch.bfloat16


def test_watched():
    with limelight.watching(Observe(received=True)) as seen:
        limelight.attention(Q, K, V, layout=LAYOUT, name="layer")
    assert seen["layer"].received.shape == (1, 4, 25)


# --- Reports and errors ----------------------------------------------------------------------------------------------


def test_explain_names_how_pages_are_read():
    answer = limelight.explain(Q, K, V, layout=LAYOUT, pattern=Causal())
    assert answer.pages.startswith(("gathered before", "read in place"))
    assert f"pages:   {answer.pages}" in str(answer)
    assert answer.pairs == 4 * (20 + 15)
    wanted = limelight.explain(Q, K.clone().requires_grad_(), V, layout=LAYOUT)
    assert wanted.pages == f"gathered before, {2 * 2 * 25 * 8 * 4 / 2**20:.1f} MiB: a gradient is wanted"
    assert "CosineSimilarity" in limelight.explain(Q, K, V, layout=LAYOUT, compare=CosineSimilarity()).pages
    assert "reference reads no pages" in limelight.explain(Q, K, V, layout=LAYOUT, backend="reference").pages
    assert limelight.explain(Q, Q, Q).pages == ""


def call(q=Q, k=K, v=V, layout=LAYOUT, **settings):
    return lambda: limelight.attention(q, k, v, layout=layout, **settings)


WRONG = {
    "entry too large": (call(layout=Paged((1, 5), (20, 5), [[2, 4], [3]])), "pages", "row 0, column 1 is 4"),
    "entry negative": (call(layout=Paged((1, 5), (20, 5), [[2, 0], [-1]])), "pages", "row 1, column 0 is -1"),
    "entry beyond int32": (call(layout=Paged((1, 5), (20, 5), [[2, 0], [2**32]])), "pages", "column 0 is 2147483647"),
    "entry beyond int64": (call(layout=Paged((1, 5), (20, 5), [[2, 0], [2**70]])), "pages", "row 1, column 0"),
    "entry of uint32": (call(layout=Paged((6,), (5,), torch.tensor([[2**31]], dtype=torch.uint32))), "pages", "2147"),
    "entry of uint64": (call(layout=Paged((6,), (5,), torch.tensor([[2**32]], dtype=torch.uint64))), "pages", "2147"),
    "entry of uint64 beyond int64": (
        call(layout=Paged((6,), (5,), torch.tensor([[2**63]], dtype=torch.uint64))),
        "pages",
        "is -2147",
    ),
    "columns": (call(layout=Paged((1, 5), (20, 33), [[2, 0], [3, 1]])), "pages", "text 1 has 33 keys"),
    "rows": (lambda: Paged((1, 5), (20, 5), [[2, 0]]), "pages", "it has 1, and there are 2 documents"),
    "table type": (lambda: Paged((1,), (5,), torch.zeros(1, 1)), "pages", "float32"),
    "table shape": (lambda: Paged((1,), (5,), torch.zeros(1, dtype=torch.int32)), "pages", "shape (1,)"),
    "table of words": (lambda: Paged((1,), (5,), [["a"]]), "pages", "'a'"),
    "no table": (lambda: Paged((1,), (5,), 3), "pages", "it is 3"),
    "lengths": (lambda: Paged(torch.ones(1), (5,), [[0]]), "query_lengths", "float32"),
    "negative length": (lambda: Paged((1,), (-5,), [[0]]), "key_lengths", "-5"),
    "negative length in a tensor": (lambda: Paged(torch.tensor([-1]), (5,), [[0]]), "query_lengths", "-1"),
    "count": (lambda: Paged((1, 2), (5,), [[0]]), "key_lengths", "1 is not 2"),
    "queries": (call(q=Q[:, :, :3]), "query_lengths", "Lq = 3"),
    "batch": (call(q=Q.expand(2, -1, -1, -1)), "query", "its batch size is 2"),
    "pages of value": (call(v=V[:3]), "value", "3 is not 4"),
    "slots of value": (call(v=V[:, :, :9]), "value", "(4, 2, 9, 8)"),
    "slots": (call(k=K[:, :, :0], v=V[:, :, :0]), "key", "(4, 2, 0, 8)"),
    "rank": (call(k=K[0], v=V[0]), "key", "(2, 16, 8)"),
    "width": (call(q=Q[..., :4]), "key", "`query` 4"),
    "dtype": (call(q=Q.double()), "key", "torch.float32 is not torch.float64"),
    "heads": (call(q=Q[:, :3]), "query", "3 is not a multiple of 2"),
    "pattern": (call(scores=(Bias(torch.zeros(6, 16)),)), "tensor", "(6, 16)"),
    "inside a subset": (lambda: Subset(torch.tensor([[0]]), 6, LAYOUT), "of", "Paged"),
}


@pytest.mark.parametrize(("wrong", "argument", "got"), WRONG.values(), ids=WRONG)
def test_errors_name_the_argument_and_what_was_got(wrong, argument, got):
    with pytest.raises(ArgumentError, match=f"^`{argument}` ") as caught:
        wrong()
    assert got in str(caught.value)


def test_a_named_backend_is_never_replaced():
    with pytest.raises(BackendError, match="flash2"):
        limelight.attention(Q, K, V, layout=LAYOUT, backend="flash2")
