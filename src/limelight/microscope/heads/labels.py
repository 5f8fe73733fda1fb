"""Texts with known answers, as files and grammars give them, and the samples that a model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..subjects import Subject
from .sample import Sample

Span = tuple[int, int]  # characters of a text, from and to (exclusive)


@dataclass(frozen=True)
class Arc:
    """One arc of a dependency tree; words are indices into `Sentence.words`.

    Args:
        dependent: the word that the relation belongs to.
        head: the word that it depends on.
        relation: without its subtype: ``"nsubj"`` for ``nsubj:pass``.
    """

    dependent: int
    head: int
    relation: str


@dataclass(frozen=True)
class Sentence:
    """A parsed sentence.

    Args:
        text: its characters.
        words: the span of each word.
        arcs: its relations, without that of the root.
    """

    text: str
    words: tuple[Span, ...]
    arcs: tuple[Arc, ...]


@dataclass(frozen=True)
class Reference:
    """A text with a pronoun, what it stands for, and what else it might stand for.

    Args:
        text: its characters.
        pronoun: its span.
        antecedent: what it stands for.
        rivals: the other candidates.
        group: texts of one group are no independent observations; ``None`` for a text that stands by itself.
    """

    text: str
    pronoun: Span
    antecedent: Span
    rivals: tuple[Span, ...]
    group: int | None = None


@dataclass(frozen=True)
class SenseExample:
    """A word in a sentence, and its sense there.

    Args:
        text: the sentence.
        word: the span of the word.
        name: the word, in lower case.
        sense: the name of the sense.
        last: whether it is the last example of the word.
    """

    text: str
    word: Span
    name: str
    sense: str
    last: bool


Label = Sentence | Reference | SenseExample
AnyLabel = TypeVar("AnyLabel", Sentence, Reference, SenseExample)


def sample_of(subject: Subject, number: int, *labels: Label | None) -> Sample | None:
    """The sample of a labelled text; ``None`` where the model has too few positions for it.

    The first token of a decoder's text takes the attention that heads have no use for (Xiao 2023) and is no candidate,
    so a line break is put before the text unless the model begins every text with a special token.

    Args:
        subject: the model.
        number: of the sample.
        labels: what is labelled of the text, which all of them share.
    """
    some = [label for label in labels if label is not None]
    written, start = some[0].text, 0
    text = subject.tokenize(written)
    if subject.causal and not text.special[0]:
        text, start = subject.tokenize("\n" + written), 1
    if subject.limit is not None and len(text) > subject.limit:
        return None
    return Sample(text, number, {"start": start} | {type(label).__name__: label for label in some})


def label_of(sample: Sample, kind: type[AnyLabel]) -> AnyLabel | None:
    """The label of this kind that a sample carries; ``None`` if there is none."""
    found = sample.labels.get(kind.__name__)
    return found if isinstance(found, kind) else None


def tokens_of(sample: Sample, spans: Sequence[Span]) -> tuple[tuple[int, ...], ...]:
    """The tokens of each span of a labelled text: those whose first visible character lies in it.

    A span has none where a token that begins before it covers it (``cannot`` as one token of two words).

    Args:
        sample: of `sample_of`.
        spans: in the characters of the labelled text.
    """
    text, before = sample.text, int(sample.labels["start"])
    first = []  # (token, its first visible character)
    for token, ((start, end), special) in enumerate(zip(text.spans, text.special, strict=True)):
        piece = text.text[start:end]
        if not special and piece.strip():
            first.append((token, start + len(piece) - len(piece.lstrip()) - before))
    return tuple(tuple(token for token, at in first if start <= at < end) for start, end in spans)
