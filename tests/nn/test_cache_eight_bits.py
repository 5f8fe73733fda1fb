"""Caches of 8 bits: what a pass computes, against attention over the same keys and values rounded."""

import copy
import pickle

import pytest
import torch
from support.kernels import same_bits

import limelight
from limelight import ArgumentError, Causal, Padded, Quantized, Window
from limelight.backends import native
from limelight.models import new
from limelight.nn import (
    Adaptive,
    Cache,
    ForwardContext,
    Keep,
    LastQueries,
    MixtureOfHeads,
    MultiHead,
    Received,
    Recency,
)

KINDS = ("int8", "float8_e4m3fn", "float8_e5m2")
PATTERNS = {"causal": Causal(), "window": Window(5, 0), "sinks": Causal() & (Window(9, 0) | limelight.Keys(2))}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


F64 = torch.float64  # in which a product of other rows rounds no key to the neighbouring number


def layer(pattern=None):
    made = MultiHead(32, query_heads=4, key_value_heads=2, head_width=16, pattern=pattern or Causal())
    return made.to(F64).requires_grad_(False)


def model(**changes):
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256,
    }  # fmt: skip
    return new("llama", **{**sizes, **changes}).eval().requires_grad_(False)


def read(layer, states, cache, layout=None):
    step = cache.step(*states.shape[:2], layout)
    output = layer(states, ForwardContext(layout, step.positions, cache=step))
    cache.close(step)
    return output


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotate", [False, True])
def test_later_queries_see_rounded_keys_and_the_first_ones_do_not(pattern, kind, rotate):
    one, states, cache = layer(pattern), torch.randn(2, 40, 32, dtype=F64), Cache(dtype=kind, rotate=rotate)
    first = read(one, states[:, :17], cache)
    assert torch.allclose(first, one(states[:, :17]), atol=1e-12)
    later = torch.cat([read(one, states[:, n : n + 1], cache) for n in range(17, 40)], 1)
    query = one.query(states).unflatten(2, (4, 16)).transpose(1, 2)
    key, value = (
        Quantized.of(part(states).unflatten(2, (2, 16)).transpose(1, 2), kind, rotate=rotate).dense(F64)
        for part in (one.key, one.value)
    )
    mixed = limelight.attention(query, key, value, pattern=pattern, backend="reference")
    expected = one.output(mixed.transpose(1, 2).flatten(2))[:, 17:]
    assert torch.allclose(later, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_and_called_layers_give_the_same_bits(kind, dtype, monkeypatch):
    network, tokens = model().to(dtype), torch.randint(50, (2, 30))

    def logits():
        cache = Cache(dtype=kind)
        passes = [network(tokens[:, :20], cache=cache)]
        passes += [network(tokens[:, n : n + 1], cache=cache) for n in range(20, 30)]
        return torch.cat([one.logits for one in passes], 1), cache

    captured, cache = logits()
    assert [graph.reason for graph in cache._graphs.values()] == [""]
    monkeypatch.setattr("limelight.models.stack.decode_step", lambda *_: None)
    called, _ = logits()
    assert same_bits(captured, called)


def test_rows_of_other_lengths_and_beams():
    """Padding at either side in the first pass, then rows selected and repeated."""
    one, states = layer(), torch.randn(3, 9, 32, dtype=F64)
    lengths = torch.tensor([9, 4, 6])
    cache, alone = Cache(dtype="int8"), [Cache(dtype="int8") for _ in range(3)]
    read(one, states, cache, Padded(lengths))
    for row, n in enumerate(lengths.tolist()):
        read(one, states[row : row + 1, :n], alone[row])
    cache.select(torch.tensor([2, 0, 2]))
    more = torch.randn(3, 1, 32, dtype=F64)
    found = read(one, more, cache)
    for place, row in enumerate((2, 0, 2)):
        copied = copy.deepcopy(alone[row], {id(one): one})
        assert torch.allclose(found[place], read(one, more[place : place + 1], copied)[0], atol=1e-12)
    cache.repeat(2)
    copies = read(one, more[:1].expand(6, 1, 32).contiguous(), cache)
    assert torch.allclose(copies[0], copies[1], atol=1e-12)
    assert not torch.allclose(copies[1], copies[2], atol=1e-2)


@pytest.mark.parametrize("others", [5, 0])
def test_the_first_pass_is_that_of_the_first_tokens_of_any_row(others):
    one, states, cache = layer(), torch.randn(2, 6, 32, dtype=F64), Cache(dtype="int8")
    read(one, states[:, :5], cache, Padded(torch.tensor([others, 0])))
    found = read(one, states[:, 5:], cache)[1]
    value = one.value(states[1, 5:]).unflatten(1, (2, 16))
    seen = Quantized.of(value, "int8", rotate=True).dense(F64) if others else value
    expected = one.output(seen.repeat_interleave(2, 1).flatten(1))  # a token that sees itself alone
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_window_moves_its_bytes():
    one, states, cache = layer(Window(40, 0)), torch.randn(1, 300, 32, dtype=F64), Cache(dtype="int8")
    whole = Cache(dtype="int8")
    read(one, states[:, :150], cache)
    read(one, states[:, :150], whole)
    later = read(one, states[:, 150:], whole)
    stepwise = torch.cat([read(one, states[:, n : n + 10], cache) for n in range(150, 300, 10)], 1)
    assert torch.allclose(later, stepwise, atol=1e-12)
    assert cache.kept(0).positions[0][0][0] > 150


def test_heads_that_are_computed_separately():
    made = MixtureOfHeads(32, query_heads=4, key_value_heads=2, head_width=16, shared=2, k=1, pattern=Causal())
    one, states, cache = made.to(F64).requires_grad_(False), torch.randn(1, 20, 32, dtype=F64), Cache(dtype="int8")
    read(one, states[:, :12], cache)
    assert torch.allclose(read(one, states[:, 12:], cache), one(states)[:, 12:], atol=0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", [Recency(), Received(), LastQueries(4, 3)], ids=["recency", "received", "last queries"])
def test_kept_keys_are_those_of_the_dequantised_cache_read_in_place(kind, by, monkeypatch):
    """Before each token the store is made dense and computed in float64; the kernel is given bytes."""
    keep = Keep(20, 2, 6, by, heads=None if isinstance(by, Recency) else Adaptive(), interval=3)
    one, states, cache = layer(), torch.randn(2, 60, 32, dtype=F64), Cache(keep=keep, dtype=kind)
    one, states, dtypes = one.float(), states.float(), set()
    forward = native.forward

    def spied(call):
        dtypes.add(call.key.dtype)
        return forward(call)

    read(one, states[:, :30], cache)
    monkeypatch.setattr(native, "forward", spied)
    for n in range(30, 60):
        new = states[:, n : n + 1]
        query, key, value = (
            part(new).unflatten(2, (-1, 16)).transpose(1, 2) for part in (one.query, one.key, one.value)
        )
        (store,) = cache._stores.values()
        mixed = torch.zeros(2, 4, 1, 16, dtype=F64)
        folded, own = store._folded(), [Quantized.of(x, kind, rotate=True).dense(F64) for x in (key, value)]
        for head, (start, count) in enumerate(zip(store.heads.start, store.heads.count, strict=True)):
            held = [
                torch.cat([x.dense(F64)[0, 0, start : start + count], mine.flatten(0, 1)[head]])
                for x, mine in zip(folded, own, strict=True)
            ]
            group = query.unflatten(1, (2, 2)).flatten(0, 1)[head, :, 0].double()
            mixed.view(4, 2, 16)[head] = (group @ held[0].T / 4).softmax(-1) @ held[1]
        expected = one.double().output(mixed.transpose(1, 2).flatten(2))
        found = read(one.float(), new, cache)
        assert torch.allclose(found.double(), expected, atol=2e-5)
    assert dtypes == {getattr(torch, kind)}
    assert int(cache.kept(0).evicted.sum()) > 0


def test_memory_and_copies():
    network, tokens = model(hidden_size=256, num_attention_heads=4), torch.randint(50, (1, 100))
    caches = [Cache(100), Cache(100, dtype="int8")]
    for cache in caches:
        network(tokens[:, :99], cache=cache)
    assert caches[1].bytes == caches[0].bytes * (64 + 4) // (4 * 64)
    twin, other = copy.deepcopy((network, caches[1]))
    assert torch.equal(twin(tokens[:, 99:], cache=other).logits, network(tokens[:, 99:], cache=caches[1]).logits)
    assert other.precision == caches[1].precision
    _, kept = pickle.loads(pickle.dumps((network, caches[1])))
    assert kept.precision == caches[1].precision
    assert kept.bytes == caches[1].bytes


def test_int8_writes_what_bfloat16_writes():
    network = limelight.load("smollm2")
    prompt = "The capital of France is"
    plain = network.generate(prompt, tokens=20)
    assert network.generate(prompt, tokens=20, cache_dtype="int8").text == plain.text
    assert network.generate([prompt, "Once upon a time"], tokens=8, cache_dtype=torch.int8)[0].text in plain.text
    assert "".join(network.stream(prompt, tokens=20, cache_dtype="int8")) == plain.text
    kept = network.generate(prompt, tokens=20, cache_dtype="int8", keep=Keep(64))  # which holds all of it
    assert kept.text == plain.text
    beam = limelight.generation.Beam(2)
    assert network.generate(prompt, beam, tokens=4, cache_dtype="float8_e4m3fn").text
    with pytest.raises(ArgumentError, match="`cache_dtype` must be one of int8"):
        network.generate(prompt, tokens=1, cache_dtype="int4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int4"}, "`dtype` must be one of int8, float8_e4m3fn, float8_e5m2"),
        ({"dtype": torch.bfloat16}, "`dtype` must be one of int8"),
        ({"dtype": "int8", "rotate": 1}, "`rotate` must be True or False"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ArgumentError, match=message):
        Cache(**settings)
