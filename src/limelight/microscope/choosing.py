"""What a report is about: its words, and the facts of its model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..tensors.shapes import describe, wrong
from .reading.comparison import Comparison, words_that_changed
from .reading.record import Reading
from .reading.relations import words_that_matter
from .report import ModelFacts
from .subjects import Subject

NAMED = "named by the user"
MOVED = "content words whose vector moves most between the embedding and the last layer"
RECEIVED = "content words that receive most attention beyond an even spread"
ALONE = "none, since no layer of the decoder looks at its own words"
CHANGED = "words of both texts whose cosine falls most below that of their embeddings, content words first"


def facts(subject: Subject) -> ModelFacts:
    """Name and sizes of a subject."""
    return ModelFacts(subject.name, subject.kind, subject.layers, subject.heads)


def about(subject: Subject) -> tuple[str, ...]:
    """What of a model is not observed, in sentences."""
    found = []
    if subject.grid is not None:
        rows, columns, side = subject.grid
        found.append(
            f"A token is a patch of {side} x {side} pixels of the picture as the model reads it, named by row and "
            f"column from the top left: r0c0 to r{rows - 1}c{columns - 1}."
        )
    if subject.blocks > subject.layers:
        found.append(
            f"{subject.layers} of {subject.blocks} blocks have attention that is observed; layers count these alone. "
            "The others are parts of the layer before them."
        )
    for why, count in Counter(subject.unobserved.values()).items():
        first = next(name for name, reason in subject.unobserved.items() if reason == why)
        found.append(f"Not observed: {first}{f' and {count - 1} more' if count > 1 else ''} ({why}).")
    return tuple(found)


def cautions(subject: Subject, lengths: Sequence[int]) -> tuple[str, ...]:
    """Warnings about texts of these numbers of tokens: positions beyond those of the model's training."""
    trained = subject.trained_positions
    if trained is None or max(lengths) <= trained:
        return ()
    return (
        f"The text has {max(lengths):,} tokens, but {subject.name} was trained on at most {trained:,} positions. "
        "The weights are those that it computes; beyond these positions it has not learned to read.",
    )


def choose(
    readings: Sequence[Reading], comparison: Comparison | None, names: Sequence[str]
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Choose the words to report on for each text; return also the measure, in words.

    Args:
        readings: of each text.
        comparison: of two texts.
        names: the words that the user named; by default the most prominent ones.
    """
    if names:
        for name in names:
            if not isinstance(name, str):
                raise wrong("words", "must be a list of words", f"it holds {describe(name)}", 'As in words=["bank"].')
            if not any(reading.find(name) for reading in readings):
                known = list(
                    dict.fromkeys(w.text for reading in readings for w in reading.words if not w.is_punctuation)
                )
                some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                way_out = f"The words are: {some}." if some else "There is no word in it."
                raise wrong("words", "must be in the text", f"{name!r} is not", way_out)
        found = (dict.fromkeys(number for name in names for number in reading.find(name)) for reading in readings)
        return tuple(tuple(numbers) for numbers in found), NAMED
    if comparison is not None and comparison.pairs:
        pairs = [comparison.pairs[number] for number in words_that_changed(comparison, readings[0])]
        return tuple(tuple(pair[side] for pair in pairs) for side in (0, 1)), CHANGED
    if not all(len(reading.shares) for reading in readings):
        return ((),) * len(readings), ALONE
    chosen = tuple(tuple(words_that_matter(reading)) for reading in readings)
    return chosen, RECEIVED if readings[0].causal else MOVED
