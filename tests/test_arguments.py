"""Bad input: one paragraph that names the argument, the rule, the values and the way out."""

import warnings

import pytest
import torch

import limelight
from limelight import (
    Additive,
    ALiBi,
    Aligned,
    ArgumentError,
    Bias,
    Blocks,
    Causal,
    Chunks,
    Explicit,
    KeyMask,
    Keys,
    Observe,
    Packed,
    Padded,
    Predicate,
    Prefix,
    RelativeBias,
    SoftCap,
    Subset,
    T5Buckets,
    Window,
)  # fmt: skip

q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)


def _nested(tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype
        return torch.nested.nested_tensor(list(tensor))


BAD = {
    "rank": (lambda: limelight.attention(q[0, 0], k, k), "query", "(5, 8)"),
    "mixed rank": (lambda: limelight.attention(q[0], k, k), "key", "(2, 2, 6, 8)"),
    "batch": (lambda: limelight.attention(q, k[:1], k[:1]), "key", "1 is not 2"),
    "groups": (lambda: limelight.attention(q[:, :3], k, k), "query", "3 is not a multiple of 2"),
    "width": (lambda: limelight.attention(q, k[..., :4], k), "key", "`key` has head width 4, `query` 8"),
    "value length": (lambda: limelight.attention(q, k, k[:, :, :5]), "value", "(2, 2, 5, 8)"),
    "dtype": (lambda: limelight.attention(q, k.double(), k), "key", "float64"),
    "whole numbers": (lambda: limelight.attention(q.long(), k.long(), k.long()), "query", "int64"),
    "device": (lambda: limelight.attention(q, k.to("meta"), k), "key", "meta"),
    "no tensor": (lambda: limelight.attention(q, None, k), "key", "NoneType"),
    "pattern class": (lambda: limelight.attention(q, k, k, pattern=Causal), "pattern", "Causal()"),
    "pattern type": (lambda: limelight.attention(q, k, k, pattern="causal"), "pattern", "'causal'"),
    "layout type": (lambda: limelight.attention(q, k, k, layout=Causal()), "layout", "Causal()"),
    "scores": (lambda: limelight.attention(q, k, k, scores=SoftCap(2.0)), "scores", "SoftCap"),
    "sink": (lambda: limelight.attention(q, k, k, sink=torch.zeros(2)), "sink", "(2,)"),
    "dropout": (lambda: limelight.attention(q, k, k, dropout=1.5), "dropout", "1.5"),
    "dropout of each": (lambda: limelight.attention(q, k, k, dropout=torch.ones(3)), "dropout", "shape (3,)"),
    "dropout tensor": (lambda: limelight.attention(q, k, k, dropout=torch.tensor(0.0)), "dropout", "shape ()"),
    "name": (lambda: limelight.attention(q, k, k, name=5), "name", "5"),
    "observe a word": (lambda: Observe(entropy="x"), "entropy", "'x'"),
    "observe a number": (lambda: Observe(distance=1), "distance", "1"),
    "observe a tensor": (lambda: Observe(received=torch.ones(3)), "received", "shape (3,)"),
    "fixed": (lambda: KeyMask(torch.ones(2, 6).bool(), fixed="no"), "fixed", "'no'"),
    "direction": (lambda: T5Buckets(8, 6, "encoder"), "bidirectional", "'encoder'"),
    "backend": (lambda: limelight.attention(q, k, k, backend="fast"), "backend", "'fast'"),
    "window": (lambda: Window(-1, 0), "back", "-1"),
    "window type": (lambda: Window(1.5, 0), "back", "1.5"),
    "prefix": (lambda: Prefix(-3), "length", "-3"),
    "prefix rows": (lambda: limelight.attention(q, k, k, pattern=Prefix(torch.tensor([1]))), "length", "1 is not 2"),
    "chunks": (lambda: Chunks(0), "size", "0"),
    "keys": (lambda: Keys(first=-1), "first", "-1"),
    "blocks": (lambda: Blocks(torch.ones(2, 2), 4), "table", "tensor"),
    "explicit": (lambda: Explicit(torch.zeros(5, 6)), "mask", "float32"),
    "explicit shape": (
        lambda: limelight.attention(q, k, k, pattern=Explicit(torch.ones(5, 5).bool())),
        "mask",
        "(5, 5)",
    ),
    "rule": (lambda: limelight.attention(q, k, k, pattern=Predicate(lambda at: at.head)), "function", "int64"),
    "packed": (lambda: limelight.attention(q, k, k, layout=Packed((2, 2), (3, 3))), "query_lengths", "4 tokens"),
    "packed negative": (lambda: Packed((7, -2)), "query_lengths", "-2"),
    "packed count": (lambda: Packed((2, 3), (6,)), "key_lengths", "1 is not 2"),
    "padded": (lambda: limelight.attention(q, k, k, layout=Padded(9, 6)), "query_lengths", "9"),
    "padded rows": (lambda: limelight.attention(q, k, k, layout=Padded(torch.tensor([1]), 6)), "query_lengths", "(1,)"),
    "padded side": (lambda: Padded(3, side="up"), "side", "'up'"),
    "aligned": (lambda: Aligned(1.5), "query_start", "1.5"),
    "padded list": (lambda: Padded([3, 4]), "query_lengths", r"[3, 4]. Use torch.tensor([3, 4])."),
    "key mask of pairs": (lambda: KeyMask(torch.ones(2, 1, 1, 6).bool()), "mask", "mask[:, 0, 0]"),
    "key mask": (lambda: KeyMask(torch.ones(2, 6)), "mask", "float32"),
    "key mask shape": (lambda: limelight.attention(q, k, k, layout=KeyMask(torch.ones(2, 5).bool())), "mask", "(2, 5)"),
    "alibi": (lambda: limelight.attention(q, k, k, scores=(ALiBi(torch.rand(3)),)), "slopes", "(3,)"),
    "relative": (lambda: limelight.attention(q, k, k, scores=(RelativeBias(torch.rand(2, 32)),)), "table", "(2,)"),
    "bias": (lambda: limelight.attention(q, k, k, scores=(Bias(torch.rand(7, 6)),)), "tensor", "(7, 6)"),
    "cap": (lambda: SoftCap(0.0), "limit", "0.0"),
    "additive": (lambda: limelight.attention(q, k, k, compare=Additive(torch.rand(7))), "vector", "(7,)"),
    "top": (lambda: Observe(top=-1), "top", "-1"),
    "rows": (lambda: limelight.attention(q, k, k, observe=Observe(rows=(5,))), "rows", "5"),
    "heads": (lambda: limelight.attention(q, k, k, observe=Observe(heads=(4,))), "heads", "4"),
    "pairs": (lambda: limelight.attention(q, k, k, observe=Observe(pairs=((0, 6),))), "pairs", "6"),
    "features": (
        lambda: limelight.attention(q, k, k, observe=Observe(features=torch.ones(5, 1))),
        "features",
        "(5, 1)",
    ),
    "blocks observed": (lambda: Observe(blocks=(0, 4)), "blocks", "0"),
    "scale word": (lambda: limelight.attention(q, k, k, scale="x"), "scale", "'x'"),
    "scale complex": (lambda: limelight.attention(q, k, k, scale=1j), "scale", "1j"),
    "scale list": (lambda: limelight.attention(q, k, k, scale=[1]), "scale", "[1]"),
    "scale large": (lambda: limelight.attention(q, k, k, scale=10**400), "scale", "1000"),
    "scale nan": (lambda: limelight.attention(q, k, k, scale=float("nan")), "scale", "nan"),
    "dropout word": (lambda: limelight.attention(q, k, k, dropout="x"), "dropout", "'x'"),
    "dropout flag": (lambda: limelight.attention(q, k, k, dropout=True), "dropout", "True"),
    "seed word": (lambda: limelight.attention(q, k, k, dropout=0.1, seed="x"), "seed", "'x'"),
    "seed float": (lambda: limelight.attention(q, k, k, dropout=0.1, seed=1.5), "seed", "1.5"),
    "seed large": (lambda: limelight.attention(q, k, k, dropout=0.1, seed=2**70), "seed", str(2**70)),
    "class": (lambda: limelight.attention(torch.nn.Parameter, k, k), "query", "class Parameter"),
    "sink dtype": (lambda: limelight.attention(q, k, k, sink=torch.ones(4).long()), "sink", "int64"),
    "mask": (lambda: limelight.attention(q, k, k, pattern=torch.ones(5, 6)), "pattern", "(5, 6)"),
    "mask's way out": (lambda: limelight.attention(q, k, k, pattern=torch.ones(5, 6)), "pattern", "Explicit(mask)"),
    "bias's way out": (lambda: limelight.attention(q, k, k, scores=[torch.ones(5, 6)]), "scores", "Bias(tensor)"),
    "nested": (lambda: limelight.attention(*[_nested(q)] * 3), "query", "nested"),
    "narrow table": (lambda: RelativeBias(torch.rand(4, 8)), "table", "(4, 8)"),
    "no buckets": (lambda: T5Buckets(0), "count", "0"),
    "one bucket": (lambda: T5Buckets(1), "count", "1"),
    "no distance": (lambda: T5Buckets(32, 0), "max_distance", "9"),
    "slopes of documents": (
        lambda: limelight.attention(q, k, k, scores=(ALiBi(torch.rand(3, 4)),)),
        "slopes",
        "documents of a packed row",
    ),
    "rows number": (lambda: Observe(rows=5), "rows", "5"),
    "pairs number": (lambda: Observe(pairs=5), "pairs", "5"),
    "pairs flat": (lambda: Observe(pairs=[1, 2]), "pairs", "1"),
    "blocks number": (lambda: Observe(blocks=5), "blocks", "5"),
    "blocks of three": (lambda: Observe(blocks=(1, 2, 3)), "blocks", "(1, 2, 3)"),
    "heads number": (lambda: Observe(heads=3), "heads", "3"),
    "features number": (lambda: Observe(features=5), "features", "int"),
    "too many of the top": (lambda: limelight.attention(q, k, k, observe=Observe(top=10**9)), "top", "1024"),
    "far position": (lambda: Aligned(2**60), "query_start", "2^58"),
    "far positions": (
        lambda: limelight.attention(q, k, k, layout=Aligned(torch.tensor([1, 2**60]))),
        "query_start",
        "2^58",
    ),
    "far chunk": (lambda: Chunks(2**63), "size", "2^58"),
    "far keys": (lambda: Keys(2**63), "first", "2^58"),
    "far prefix": (lambda: Prefix(2**63), "length", "2^58"),
    "draw a float": (lambda: Causal().draw(1.5), "queries", "1.5"),
    "draw a word": (lambda: Causal().draw("a"), "queries", "'a'"),
    "draw too much": (lambda: Causal().draw(10**9), "queries", "16777216"),
    "negative pairs": (lambda: Causal().pairs(-1), "queries", "-1"),
    "merge numbers": (lambda: limelight.merge(5, 5), "outputs", "5"),
    "explain numbers": (lambda: limelight.explain(5, 5, 5), "query", "int"),
    "merge": (lambda: limelight.merge([q], []), "logsumexps", "1 outputs and 0"),
    "merge shape": (lambda: limelight.merge([q], [q[..., 0, 0]]), "logsumexps", "(2, 4)"),
}


@pytest.mark.parametrize(("bad", "argument", "values"), BAD.values(), ids=BAD)
def test_bad_input(bad, argument, values):
    with pytest.raises(ArgumentError) as caught:
        bad()
    message = str(caught.value)
    assert message.startswith(f"`{argument}`"), message
    assert values in message, message
    assert message.count("\n") == 0
    assert len(message) < 400
    assert message.endswith("."), message


def test_explain_says_all_of_it():
    text = str(limelight.explain(q, k, k, pattern=Causal()))
    assert "pairs:" in text
    assert "as 1 span\n" in text
    answer = limelight.explain(q, k, k, pattern=Causal(), backend="reference")
    assert answer.backend == "reference"
    assert answer.pairs == 8 * (2 + 3 + 4 + 5 + 6)
    big = torch.zeros(1, dtype=torch.float64).expand(1, 8, 50000, 16).requires_grad_()
    answer = limelight.explain(big, big, big, compare=Additive(torch.zeros(16)), backend="reference")
    assert answer.backend == "reference"
    assert answer.memory < answer.score_memory / 1000
    assert "Additive" in str(answer)
    assert "a chunk of queries at a time" in answer.gradients


def test_unbatched():
    out, seen = limelight.attention(q[0], k[0], k[0], observe=Observe(entropy=True))
    assert out.shape == (4, 5, 8)
    assert seen.entropy.shape == (4, 5)
    torch.testing.assert_close(out, limelight.attention(q[:1], k[:1], k[:1])[0])


def _meta(*shape, dtype=torch.int64):
    return torch.zeros(shape, dtype=dtype, device="meta")


WITHOUT_NUMBERS = {
    "starts": ("layout", lambda: Aligned(_meta(2))),
    "padded": ("layout", lambda: Padded(_meta(2))),
    "packed": ("layout", lambda: Packed(_meta(2), _meta(2))),
    "key mask": ("layout", lambda: KeyMask(_meta(2, 6, dtype=torch.bool))),
    "chosen": ("layout", lambda: Subset(_meta(2, 5), 6)),
    "inside chosen": ("layout", lambda: Subset(torch.zeros(2, 5, dtype=torch.int64), 6, Aligned(_meta(2)))),
    "explicit": ("pattern", lambda: Explicit(_meta(5, 6, dtype=torch.bool))),
    "inside a pattern": ("pattern", lambda: Causal() & ~Explicit(_meta(5, 6, dtype=torch.bool))),
    "prefix": ("pattern", lambda: Prefix(_meta(2))),
    "vector": ("compare", lambda: Additive(_meta(8, dtype=torch.float32))),
    "bias": ("scores", lambda: (Bias(_meta(5, 6, dtype=torch.float32)),)),
    "slopes": ("scores", lambda: (ALiBi(_meta(4, dtype=torch.float32)),)),
    "sink": ("sink", lambda: _meta(4, dtype=torch.float32)),
    "features": ("observe", lambda: Observe(features=_meta(6, 2, dtype=torch.float32))),
    "rows": ("observe", lambda: Observe(rows=_meta(2))),
    "pairs": ("observe", lambda: Observe(pairs=_meta(3, 2))),
}


@pytest.mark.parametrize(("argument", "value"), WITHOUT_NUMBERS.values(), ids=WITHOUT_NUMBERS)
@pytest.mark.parametrize("asked", [limelight.attention, limelight.explain])
def test_tensors_without_numbers_beside_those_with(asked, argument, value):
    with pytest.raises(ArgumentError, match=f"^`{argument}` must .*meta") as caught:
        asked(q, k, k, **{argument: value()})
    assert "cpu" in str(caught.value) or argument == "sink"
    here, there = q.to("meta"), k.to("meta")
    assert limelight.attention(here, there, there, **{argument: value()}) is not None  # all without: shapes alone


def test_a_seed_without_a_number():
    with pytest.raises(ArgumentError, match=r"^`seed` must hold numbers.* meta .* cpu"):
        limelight.attention(q, k, k, dropout=0.5, seed=_meta())
