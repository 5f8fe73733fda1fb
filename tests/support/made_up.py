"""Readings made up from a formula, so that the page and the tables are tested without a model."""

from __future__ import annotations

import re

import numpy as np

from limelight.microscope.reading.comparison import compare_readings
from limelight.microscope.reading.record import HeadStatistics, Reading
from limelight.microscope.reading.relations import words_that_matter
from limelight.microscope.reading.words import join_words
from limelight.microscope.report import ModelFacts, Report


def split(text: str, special: bool) -> tuple[list[str], list[tuple[int, int]], list[bool]]:
    """A stand-in tokenizer: words, long ones in two pieces, and [CLS] ... [SEP]."""
    pieces, offsets = [], []
    for match in re.finditer(r"\w+|[^\w\s]", text):
        start, end = match.span()
        for a, b in ((start, start + 7), (start + 7, end)) if end - start > 9 else ((start, end),):
            pieces.append(text[a:b])
            offsets.append((a, b))
    if not special:
        return pieces, offsets, [False] * len(pieces)
    return (
        ["[CLS]", *pieces, "[SEP]"],
        [(0, 0), *offsets, (0, 0)],
        [True] + [False] * len(pieces) + [True],
    )


def mock_reading(
    text: str, layers: int, heads: int, *, causal: bool = False, k: int = 4, exact_pairs: int = 1_200_000
) -> Reading:
    """Heads of six kinds (previous, own, next, sink, far, broad), mixed by layer and head number."""
    tokens, words = join_words(text, *split(text, special=not causal))
    length = len(tokens)
    exact = exact_pairs > 0 and (length <= 64 or layers * heads * length**2 <= exact_pairs)
    block = 1 if exact else -(-length // 64)
    side = -(-length // block)
    random = np.random.default_rng(length)
    shares = np.zeros((layers, heads, side, side), np.float32)
    top_weights = np.zeros((layers, heads, length, k), np.float32)
    top_keys = np.full((layers, heads, length, k), -1, np.int32)
    statistics = {name: np.zeros((layers, heads), np.float32) for name in HeadStatistics.__dataclass_fields__}
    received = np.zeros((layers, length), np.float32)
    apart = (0,) if causal else (0, length - 1)
    apart_shares = np.zeros_like(shares)
    position = np.arange(length)
    favourite = random.integers(0, length, length)
    step = 1 if length < 400 else length // 128  # of a long text one row stands for its neighbours
    for layer in range(layers):
        for head in range(heads):
            kind, sharp = (layer * 5 + head * 7) % 6, 1.0 + 4.0 * random.random()
            rows = position[::step, None]
            distance = position - rows
            target = {0: distance == -1, 1: distance == 0, 2: distance == 1}.get(kind)
            if kind == 3:
                target = np.isin(position, apart)[None].repeat(len(rows), 0)
            if kind == 4:
                target = position[None] == favourite[rows]
            scores = 0.7 * random.standard_normal(distance.shape, np.float32)
            if target is not None:
                scores = scores + sharp * target * (1.0 + np.log(length) / 3)
            if causal:
                scores = np.where(distance <= 0, scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            entropy = -(weights * np.log(weights + 1e-30)).sum(1)
            statistics["entropy"][layer, head] = entropy.mean()
            statistics["strongest"][layer, head] = weights.max(1).mean()
            statistics["distance"][layer, head] = (weights * abs(distance)).sum(1).mean()
            for name, offset in (("previous", -1), ("own", 0), ("next", 1)):
                there = (weights * (distance == offset)).sum()
                statistics[name][layer, head] = there / max(1, len(rows) - abs(offset))
            statistics["apart"][layer, head] = weights[:, list(apart)].sum(1).mean()
            received[layer] += weights.sum(0) * (length / len(rows)) / heads
            if not exact:
                order = np.argpartition(-weights, k - 1, axis=1)[:, :k]
                order = np.take_along_axis(order, np.argsort(-np.take_along_axis(weights, order, 1), 1), 1)
                found = np.take_along_axis(weights, order, 1)
                top_weights[layer, head] = found.repeat(step, 0)[:length]
                top_keys[layer, head] = np.where(found > 0, order, -1).repeat(step, 0)[:length]
            cuts = np.arange(0, length, block)
            for row, share in zip(rows[:, 0] // block, np.add.reduceat(weights, cuts, 1), strict=True):
                shares[layer, head, row] += share / (rows[:, 0] // block == row).sum()
            only = np.where(np.isin(position, apart), weights, 0.0)
            for row, share in zip(rows[:, 0] // block, np.add.reduceat(only, cuts, 1), strict=True):
                apart_shares[layer, head, row] += share / (rows[:, 0] // block == row).sum()
    units = len(words) + sum(token.word < 0 for token in tokens)
    width = 24
    vectors = np.cumsum(random.standard_normal((layers + 1, units, width), np.float32), axis=0)
    vectors[:, :, 0] += 3.0
    normal = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    path = np.einsum("nuw,uw->nu", normal, normal[0])
    steps = np.einsum("nuw,nuw->nu", normal, normal[[0, *range(layers)]])
    return Reading(
        text=text,
        tokens=tokens,
        words=words,
        causal=causal,
        block=block,
        shares=shares,
        apart=apart,
        apart_shares=apart_shares,
        top_weights=top_weights,
        top_keys=top_keys,
        heads=HeadStatistics(**statistics),
        received=received,
        path=path.astype(np.float32),
        steps=steps.astype(np.float32),
        vectors=vectors,
    )


def mock_report(texts: tuple[str, ...], layers: int, heads: int, *, causal: bool = False) -> Report:
    readings = tuple(mock_reading(text, layers, heads, causal=causal) for text in texts)
    return Report(
        model=ModelFacts("made-up", "decoder" if causal else "encoder", layers, heads),
        readings=readings,
        chosen=tuple(tuple(words_that_matter(reading)) for reading in readings),
        chosen_by="content words whose vector moves most between the embedding and the last layer",
        comparison=compare_readings(*readings) if len(readings) == 2 else None,
    )


SENTENCE = "The bank is near the river."
OTHER = "She deposited money at the bank."


def paragraphs(words: int) -> str:
    """A text of about this many words, with paragraphs, written by a counter."""
    names = "light water stone the a of understanding north quietly and was seen electricity she he in every"
    vocabulary = names.split()
    random = np.random.default_rng(7)
    parts = []
    for number in range(words):
        parts.append(vocabulary[int(random.integers(len(vocabulary)))])
        if number % 13 == 12:
            parts[-1] += "."
        if number % 120 == 119:
            parts[-1] += "\n\n"
    return " ".join(parts)
