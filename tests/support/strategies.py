"""Random calls for hypothesis: sizes, layouts, patterns, score rules. Used by the tests of every backend.

The tables `LAYOUTS`, `PATTERNS` and `RULES` have an entry for each class: where a new class is added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st

from limelight import (
    Additive,
    ALiBi,
    Aligned,
    Bias,
    Blocks,
    Causal,
    Chunks,
    CosineSimilarity,
    DilatedWindow,
    Explicit,
    Full,
    KeyMask,
    Keys,
    Packed,
    Padded,
    Paged,
    Predicate,
    Prefix,
    RelativeBias,
    SoftCap,
    Subset,
    T5Buckets,
    Window,
)  # fmt: skip
from limelight.compat.flex.patterns import Below, SameDocument
from limelight.forms.layouts import Portion, ScatteredPortion
from limelight.forms.patterns import And, Not, Or
from limelight.tensors.shapes import Shapes

SHORT, NARROW, FEW = st.integers(0, 12), st.integers(1, 9), st.integers(1, 3)


@st.composite
def sizes(draw, lengths=SHORT, widths=NARROW, heads=FEW, batch=FEW):
    Hkv = draw(st.integers(1, 2))
    return Shapes(draw(batch), Hkv * draw(heads), Hkv, draw(lengths), draw(lengths), draw(widths), draw(widths))


def _aligned(draw, s):
    ints = st.integers(-5, 20)
    if draw(st.booleans()):
        return Aligned(draw(st.none() | ints), draw(ints))
    start = torch.tensor([draw(ints) for _ in range(s.B)])
    return Aligned(start, draw(ints)) if draw(st.booleans()) else Aligned(None, start)


def _padded(draw, s):
    side = draw(st.sampled_from(["left", "right"]))
    if draw(st.booleans()):
        return Padded(draw(st.integers(0, s.Lq)), draw(st.integers(0, s.Lk)), side)
    rows = lambda most: torch.tensor([draw(st.integers(0, most)) for _ in range(s.B)])  # noqa: E731
    return Padded(rows(s.Lq), rows(s.Lk), side)


def _packed(draw, s):
    cuts = draw(st.integers(0, 3))
    lengths = [_cut(draw, total, cuts) for total in (s.Lq, s.Lk)]
    if draw(st.booleans()):
        lengths = [torch.tensor(n) for n in lengths]
    return Packed(*lengths)


def _paged(draw, s):
    cuts = draw(st.integers(0, 3))
    lengths = [_cut(draw, total, cuts) for total in (s.Lq, s.Lk)]
    pages = torch.arange((cuts + 1) * s.Lk).reshape(cuts + 1, s.Lk)  # enough for pages of a single key
    return Paged(*([torch.tensor(n) for n in lengths] if draw(st.booleans()) else lengths), pages)


def _key_mask(draw, s):
    share = draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return KeyMask(torch.rand(draw(st.sampled_from([1, s.B])), s.Lk, generator=generator) < share)


def _subset(draw, s):
    of = draw(st.integers(0, 12))
    index = [[draw(st.integers(-1, of - 1)) for _ in range(s.Lq)] for _ in range(s.B)]
    whole = draw(layouts(s._replace(Lq=of)))
    return Subset(torch.tensor(index, dtype=torch.int64).reshape(s.B, s.Lq), of, whole)


def _portion(kind):
    """Queries and keys cut into segments; each query of a `ScatteredPortion` may have several."""

    def drawn(draw, s):
        count, table = draw(st.integers(1, 3)), []
        offsets = st.integers(-3, 20)
        for row in range(s.B):
            pieces = draw(st.integers(1, 3))
            most = 1 if kind is Portion else 3
            keys = iter(pairwise(_marks(draw, s.Lk, pieces * most - 1)))
            queries = pairwise(_marks(draw, s.Lq, pieces - 1))
            for q0, q1 in queries:
                document, query_offset = draw(st.integers(0, count - 1)), draw(offsets)
                for _ in range(most):
                    offset, before = draw(offsets), draw(st.integers(0, 70))
                    numbers = (row, q0, q1, *next(keys), query_offset, offset, row * count + document, 0, 0, before)
                    table += [numbers] if q0 < q1 else []
        exists = None
        if draw(st.booleans()):
            exists = torch.rand(draw(st.sampled_from([1, s.B])), s.Lk, generator=_generator(draw)) < 0.7
        return kind(torch.tensor(table, dtype=torch.int64).reshape(-1, 11), count, exists)

    return drawn


#: Of 2 batch rows, 21 queries and 37 keys: documents whose numbers are neither those of their segments nor those of
#: their batch rows.
PORTION = Portion(
    torch.tensor(
        [
            [0, 0, 12, 0, 20, 8, 0, 2, 0, 0, 0],
            [0, 12, 21, 20, 37, -4, -20, 1, 0, 0, 0],
            [1, 0, 21, 0, 37, 16, 0, 4, 0, 0, 0],
        ]
    ),
    3,
)


def _marks(draw, total: int, cuts: int) -> list[int]:
    return [0, *sorted(draw(st.lists(st.integers(0, total), min_size=cuts, max_size=cuts))), total]


#: How to draw a layout of each class, for a call of given sizes; tests/test_layouts.py asks for every class.
LAYOUTS = {
    Aligned: _aligned,
    Padded: _padded,
    Packed: _packed,
    Paged: _paged,
    KeyMask: _key_mask,
    Subset: _subset,
    Portion: _portion(Portion),
    ScatteredPortion: _portion(ScatteredPortion),
}


@st.composite
def layouts(draw, s: Shapes):
    kind = draw(st.sampled_from([None, Aligned, Padded, Packed, KeyMask, Portion]))
    return None if kind is None else LAYOUTS[kind](draw, s)


def _cut(draw, total: int, cuts: int) -> tuple[int, ...]:
    marks = sorted(draw(st.lists(st.integers(0, total), min_size=cuts, max_size=cuts)))
    edges = [0, *marks, total]
    return tuple(b - a for a, b in pairwise(edges))


def _generator(draw):
    return torch.Generator().manual_seed(draw(st.integers(0, 99)))


def _sides(draw):
    return tuple(draw(st.none() | st.integers(0, 6)) for _ in range(2))


def _prefix(draw, s):
    few = st.integers(0, 12)
    return Prefix(draw(few) if draw(st.booleans()) else torch.tensor([draw(few) for _ in range(s.B)]))


def _blocks(draw, s):
    lead = draw(st.sampled_from([(), (1,), (s.Hq,), (s.B, s.Hq), (s.B, 1)]))
    return Blocks(torch.rand(*lead, 4, 5, generator=_generator(draw)) < 0.6, draw(st.integers(1, 5)))


def _explicit(draw, s):
    shapes = [(s.Lk,), (s.Lq, s.Lk), (s.Hq, s.Lq, 1), (s.B, 1, s.Lq, s.Lk), (s.B, s.Hq, 1, s.Lk)]
    return Explicit(torch.rand(*draw(st.sampled_from(shapes)), generator=_generator(draw)) < 0.7)


def _predicate(draw, s):
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Predicate(lambda at: (at.batch + at.head + n * at.query_position + at.key_position) % m == 0)


def _inner(draw, s):
    kinds = [kind for kind in PATTERNS if kind not in (And, Or, Not)]
    return PATTERNS[draw(st.sampled_from(kinds))](draw, s)


#: How to draw a pattern of each class, for a call of given sizes; tests/test_patterns.py asks for every class.
def _below(draw, s):
    bounds = st.integers(0, 12)
    bound = torch.tensor([draw(bounds) for _ in range(s.B)], dtype=torch.int64) if draw(st.booleans()) else draw(bounds)
    return Below(bound, draw(st.booleans()))


def _same_document(draw, s):
    rows = () if draw(st.booleans()) else (s.B,)
    return SameDocument(*(torch.randint(0, 4, (*rows, size), generator=_generator(draw)) for size in (s.Lq, s.Lk)))


PATTERNS = {
    Full: lambda draw, s: Full(),
    Causal: lambda draw, s: Causal(),
    Window: lambda draw, s: Window(*_sides(draw)),
    DilatedWindow: lambda draw, s: DilatedWindow(*_sides(draw), draw(st.integers(1, 4))),
    Prefix: _prefix,
    Keys: lambda draw, s: Keys(first=draw(st.integers(0, 12))),
    Chunks: lambda draw, s: Chunks(draw(st.integers(1, 7))),
    Blocks: _blocks,
    Explicit: _explicit,
    Predicate: _predicate,
    Below: _below,
    SameDocument: _same_document,
    And: lambda draw, s: _inner(draw, s) & _inner(draw, s),
    Or: lambda draw, s: _inner(draw, s) | _inner(draw, s),
    Not: lambda draw, s: ~_inner(draw, s),
}


@st.composite
def patterns(draw, s: Shapes, depth: int = 3):
    kinds = [None, *(kind for kind in PATTERNS if kind not in (And, Or, Not))]
    kinds += [And, Or, Not] * 2 if depth else []
    kind = draw(st.sampled_from(kinds))
    inner = lambda: draw(patterns(s, depth - 1)) or Full()  # noqa: E731
    if kind is None:
        return None
    if kind in (And, Or):
        return kind(inner(), inner())
    return Not(inner()) if kind is Not else PATTERNS[kind](draw, s)


def _normal(draw, dtype):
    generator = _generator(draw)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def _alibi(draw, s, dtype):
    return ALiBi(_normal(draw, dtype)(*draw(st.sampled_from([(s.Hq,), (s.B, s.Hq), (1, s.Hq)]))).abs())


def _relative(draw, s, dtype):
    buckets = T5Buckets(8, 6, draw(st.booleans()))
    return RelativeBias(_normal(draw, dtype)(draw(st.sampled_from([1, s.Hq])), 8), buckets)


def _bias(draw, s, dtype):
    shapes = [(s.Lk,), (s.Lq, s.Lk), (s.Hq, 1, s.Lk), (s.B, 1, s.Lq, 1), (s.B, s.Hq, s.Lq, s.Lk)]
    normal = _normal(draw, dtype)
    bias = normal(*draw(st.sampled_from(shapes)))
    return Bias(torch.where(normal(*bias.shape) > 1.2, -torch.inf, bias) if draw(st.booleans()) else bias)


#: How to draw a score rule of each class, for a call of given sizes; tests/test_scores.py asks for every class.
RULES = {
    ALiBi: _alibi,
    RelativeBias: _relative,
    Bias: _bias,
    SoftCap: lambda draw, s, dtype: SoftCap(draw(st.sampled_from([0.5, 3.0, 50.0]))),
}


#: How to draw a comparison of each class, as `RULES`.
COMPARISONS = {
    Additive: lambda draw, s, dtype: Additive(_normal(draw, dtype)(*draw(st.sampled_from([(s.D,), (s.Hq, s.D)])))),
    CosineSimilarity: lambda draw, s, dtype: CosineSimilarity(
        draw(st.sampled_from([1.0, 0.1])) if draw(st.booleans()) else _normal(draw, dtype)(s.Hq).abs() + 0.1
    ),
}


@st.composite
def score_rules(draw, s: Shapes, dtype=torch.float64):
    kinds = draw(st.lists(st.sampled_from([*RULES]), max_size=3))
    return tuple(RULES[kind](draw, s, dtype) for kind in kinds)


#: The examples of a property that is tested for every class by itself.
of_each_kind = settings(max_examples=settings().max_examples // 2)


def subclasses(base):
    """Every class of the library that descends from ``base``, by name, but private ones, which are bases of others."""
    found = {}
    for kind in base.__subclasses__():
        if kind.__module__.startswith("limelight."):
            found |= {} if kind.__name__.startswith("_") else {kind.__name__: kind}
            found |= subclasses(kind)
    return found


# Finite numbers beside which every ordinary score is less than half a rounding step: so large a score is the same in
# whatever order it is computed.
EXTREME = {
    torch.float32: (1e12, 1e20, 1e30, 1e36, 3e38, torch.finfo(torch.float32).max),
    torch.float64: (1e22, 1e38, 1e100, 1e300, torch.finfo(torch.float64).max),
}
# Of a power of two that scales integers: products of queries and keys are exact.
EXPONENTS = {torch.float64: (40, 150), torch.float32: (30, 50), torch.bfloat16: (30, 50), torch.float16: (7,)}


@st.composite
def extreme_rules(draw, s: Shapes, dtype):
    """One score rule or sink that lifts or sinks some scores beyond all others, in the dtype of sums."""
    sums = torch.float64 if dtype is torch.float64 else torch.float32
    size = draw(st.sampled_from(EXTREME[sums])) * draw(st.sampled_from([-1, -1, 1]))
    zeros = lambda *shape: torch.zeros(shape, dtype=sums)  # noqa: E731
    first = draw(st.sampled_from([1, 30, 128, 200]))
    kinds = ["first keys", "last keys", "one key", "rows", "everything", "pairs", "table", "slopes"]
    match draw(st.sampled_from(kinds)):
        case "first keys":
            bias = zeros(s.Lk)
            bias[:first] = size
        case "last keys":
            bias = zeros(s.Hq, 1, s.Lk)
            bias[-1:, :, first:] = size
        case "one key":
            bias = zeros(s.Lk)
            bias[first % max(s.Lk, 1) : first % max(s.Lk, 1) + 1] = size
        case "rows":
            bias = zeros(s.B, 1, s.Lq, 1)
            bias[:, :, :: first + 1] = size
        case "pairs":
            generator = torch.Generator().manual_seed(first)
            chosen = torch.rand(s.B, s.Hq, s.Lq, s.Lk, generator=generator) < draw(st.sampled_from([0.01, 0.5, 0.99]))
            bias = torch.where(chosen, size, zeros(1))
        case "table":
            table = zeros(1, 8)
            table[:, first % 8] = size
            return RelativeBias(table, T5Buckets(8, 6))
        case "slopes":
            return ALiBi(torch.full((s.Hq,), max(abs(size) / 1000, 1e12), dtype=sums))
        case _:
            bias = torch.full((s.Lk,), size, dtype=sums)
    return Bias(bias)


@dataclass
class Example:
    """One random call."""

    sizes: Shapes
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    settings: dict[str, Any] = field(default_factory=dict)
    # In what the definition is exact: beside a large score, a dtype with fewer digits forgets what another remembers.
    truth: torch.dtype = torch.float64

    def __repr__(self) -> str:
        return f"Example({self.sizes}, {self.settings})"


@st.composite
def examples(
    draw,
    sizes=sizes(),  # noqa: B008
    dtype=torch.float64,
    depth=2,
    dropout=True,
    strides=True,
    additive=False,
    extreme=False,
):
    """Random calls; where ``extreme``, also some with scores up to the largest finite number."""
    s = draw(sizes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))

    def tensor(H, L, D):
        # (B, H, L, D) by several strides: as it lies, from (B, L, H, D), or a slice of something wider
        kind = draw(st.sampled_from(["plain", "transposed", "slice", "expanded"])) if strides else "plain"
        make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
        if kind == "transposed":
            return make(s.B, L, H, D).transpose(1, 2)
        if kind == "slice":
            return make(s.B, H, L + 2, D + 3)[:, :, 1 : L + 1, 1 : D + 1]
        if kind == "expanded":
            return make(1, H, L, D).expand(s.B, H, L, D)
        return make(s.B, H, L, D)

    query, key, value = tensor(s.Hq, s.Lq, s.D), tensor(s.Hkv, s.Lk, s.D), tensor(s.Hkv, s.Lk, s.Dv)
    settings: dict[str, Any] = {
        "layout": draw(layouts(s)),
        "pattern": draw(patterns(s, depth)),
        "scores": draw(score_rules(s, dtype)),
        "scale": draw(st.sampled_from([None, 0.3, 2.0])),
    }
    pairs = s.B * s.Hq * s.Lq * s.Lk * s.D  # the definition holds that many numbers
    if additive and pairs < 2**18 and draw(st.integers(0, 3)) == 0:
        shape = draw(st.sampled_from([(s.D,), (s.Hq, s.D), (1, s.D)]))
        settings["compare"] = Additive(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype))
    if draw(st.booleans()):
        settings["sink"] = torch.randn(s.Hq, generator=generator, dtype=torch.float64).to(dtype)
    if dropout and draw(st.integers(0, 3)) == 0:
        settings |= {"dropout": draw(st.sampled_from([0.1, 0.5])), "seed": draw(st.integers(0, 2**62))}
    kind = draw(st.sampled_from(["none"] * 4 + ["rule", "sink", "operands"])) if extreme else "none"
    if kind == "none":
        return Example(s, query, key, value, settings)
    sums = torch.float64 if dtype is torch.float64 else torch.float32
    if kind == "rule":
        rules = [*settings["scores"]]
        rules.insert(draw(st.integers(0, len(rules))), draw(extreme_rules(s, dtype)))
        settings["scores"] = tuple(rules)
    if kind == "sink":
        size = draw(st.sampled_from(EXTREME[sums])) * draw(st.sampled_from([-1, 1]))
        settings["sink"] = torch.where(torch.arange(s.Hq) % 2 == 0, size, torch.ones(s.Hq, dtype=sums))
    if kind == "operands":
        power = 2.0 ** draw(st.sampled_from(EXPONENTS[dtype]))
        query, key = ((x.sign() * (x.abs() > 0.5) * power).to(dtype) for x in (query, key))
        settings |= {"scale": draw(st.sampled_from([0.25, 2.0])), "scores": (), "compare": None, "sink": None}
    return Example(s, query, key, value, settings, sums)
