"""Random calls whose keys and values lie in pages, each beside the same call over rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

import limelight
from limelight import Observe, Packed, Paged
from limelight.tensors.shapes import Shapes
from support.strategies import Example, patterns, score_rules

SIZES = (1, 3, 16, 32, 48, 64, 128)
HEADS = st.sampled_from([(1, 1), (2, 2), (4, 1), (6, 2)])
WIDTHS = st.sampled_from([1, 17, 64])
#: Decoding steps, short runs of queries and prompts; texts without keys or without queries.
QUERIES = st.sampled_from([0, 1, 1, 1, 2, 7, 33])
KEYS = st.sampled_from([0, 1, 16, 47, 64, 130])
NAN = float("nan")


@dataclass
class PagedCall:
    """A call over pages; ``rows`` is the same call over keys as rows, under `Packed`."""

    rows: Example
    layout: Paged
    key: Tensor
    value: Tensor

    def run(self, backend: str | None = None, observe: Observe | None = None):
        settings = self.rows.settings | {"layout": self.layout}
        return limelight.attention(self.rows.query, self.key, self.value, backend=backend, observe=observe, **settings)

    def run_rows(self, dtype: torch.dtype, backend: str = "reference", observe: Observe | None = None, **change):
        example = self.rows
        q, k, v = (change.get(name, getattr(example, name)).to(dtype) for name in ("query", "key", "value"))
        return limelight.attention(q, k, v, backend=backend, observe=observe, **example.settings)


@st.composite
def page_tables(draw, lengths, size, generator):
    """``(R, M)`` page numbers and the number of pages: shuffled, some shared, some unused."""
    needed = [-(-n // size) for n in lengths]
    count = sum(needed) + draw(st.integers(1, 3))
    if draw(st.booleans()):
        numbers = torch.randperm(count, generator=generator)
    else:
        numbers = torch.randint(0, count, (count,), generator=generator)  # shared by texts, and within one
    M = max(needed, default=0) + draw(st.integers(0, 2))
    table, taken = torch.full((len(lengths), M), draw(st.sampled_from([-1, 10**6]))), 0
    for row, n in enumerate(needed):
        table[row, :n] = numbers[taken : taken + n]
        taken += n
    return table, count


def places(layout: Paged, size: int):
    """Page and slot of every key, by the definition."""
    return [
        (int(row[j // size]), j % size)
        for row, n in zip(layout.pages, layout.key_lengths.tolist(), strict=True)
        for j in range(n)
    ]


def stored(content: Tensor, where, layout: str) -> Tensor:
    """The pages ``(count, H, size, D)`` in another layout of memory; whatever holds no key is NaN."""
    count, H, size, D = content.shape
    if layout == "NHD":
        pages = content.new_full((count, size, H, D), NAN).transpose(1, 2)
    elif layout == "beside":  # keys and values of a page in one row each
        pages = content.new_full((count, H, size, 2 * D), NAN)[..., D:]
    elif layout == "after":  # all keys of a page, then its values
        pages = content.new_full((count, H, 2 * size, D), NAN)[:, :, size:]
    else:
        pages = content.new_full((count, H, size, D), NAN)
    for page, slot in where:
        pages[page, :, slot] = content[page, :, slot]
    return pages


@st.composite
def paged_calls(draw, dtype=torch.float32, sizes=SIZES, dropout=True, most=3):
    """A random call: decoding steps beside prompts, and every pattern, score rule and sink."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    texts = draw(st.lists(st.tuples(QUERIES, KEYS), max_size=most))
    queries, keys = [n for n, _ in texts], [n for _, n in texts]
    (Hq, Hkv), size = draw(HEADS), draw(st.sampled_from(sizes))
    s = Shapes(1, Hq, Hkv, sum(queries), sum(keys), draw(WIDTHS), draw(WIDTHS))
    table, count = draw(page_tables(keys, size, generator))
    layout = Paged(queries, keys, table)
    where = places(layout, size)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    how = draw(st.sampled_from(["HND", "NHD", "beside", "after"]))
    contents = [stored(make(count, Hkv, size, width), where, how) for width in (s.D, s.Dv)]
    rows = [
        torch.stack([x[page, :, slot] for page, slot in where], dim=1)[None] if where else x.new_empty(1, Hkv, 0, n)
        for x, n in zip(contents, (s.D, s.Dv), strict=True)
    ]
    settings = {
        "layout": Packed(tuple(queries), tuple(keys)),
        "pattern": draw(patterns(s, 1)),
        "scores": draw(score_rules(s, dtype)),
        "scale": draw(st.sampled_from([None, 0.3])),
        "sink": make(Hq) if draw(st.booleans()) else None,
    }
    if dropout and draw(st.integers(0, 3)) == 0:
        settings |= {"dropout": 0.3, "seed": draw(st.integers(0, 99))}
    return PagedCall(Example(s, make(1, Hq, s.Lq, s.D), *rows, settings), layout, *contents)


@st.composite
def observed(draw, s: Shapes):
    """An `Observe` of everything, for a call of these sizes."""
    indices = lambda most: st.lists(st.integers(0, most - 1), max_size=3) if most else st.just([])  # noqa: E731
    i, j = draw(indices(s.Lq)), draw(indices(s.Lk))
    return Observe(
        logsumexp=True, max_score=True, max_weight=True, entropy=True, distance=True, received=True,
        top=draw(st.integers(0, 3)), rows=torch.tensor(i, dtype=torch.int64),
        pairs=torch.tensor(list(zip(i, j, strict=False)), dtype=torch.int64).reshape(-1, 2),
        features=torch.arange(2 * s.Lk, dtype=torch.float64).sin().reshape(s.Lk, 2),
        blocks=draw(st.tuples(st.integers(1, 70), st.integers(1, 70))),
        heads=draw(st.none() | st.permutations(range(s.Hq)).map(tuple)),
    )  # fmt: skip
