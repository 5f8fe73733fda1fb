"""Run a model over a text under observation: a run gives a `Reading`, one or two of them a `Report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..formats.progress import counted
from ..forms.observations import watching
from ..tensors.shapes import wrong
from .comparison import Comparison, compare_readings, words_that_changed
from .gathering import Gatherer, Watch
from .reading import Reading
from .relations import words_that_matter
from .report import ModelFacts, Report
from .subjects import Subject, subject_of

NAMED = "named by the user"
MOVED = "content words whose vector moves most between the embedding and the last layer"
RECEIVED = "content words that receive most attention beyond an even spread"
CHANGED = "words of both texts whose cosine falls most below that of their embeddings, content words first"


def look(
    model: Any,
    text: str,
    *,
    compare: str | None = None,
    words: Sequence[str] = (),
    special: bool = False,
    tokenizer: Any = None,
    processor: Any = None,
) -> Report:
    """Run a model over a text and report what each token looked at.

    Memory grows with the length of the text: a long one is observed as blocks and strongest keys.

    Args:
        model: a name or path for `limelight.load`, or a folder or hub name of another family, which transformers opens;
            a `Pretrained`; or a model of transformers, unchanged by it.
        text: the text.
        compare: a second text, run by itself and compared with the first word by word.
        words: the words to report on, in either text and any case; by default the most prominent ones.
        special: include special tokens, sinks, punctuation and the word itself in relations.
        tokenizer: of a model of transformers (or in a pair with it: ``look((model, tokenizer), text)``).
        processor: the same, for a model that has a processor.

    Raises:
        ArgumentError: a text is empty or longer than the model's positions, a word is in no text, the model has an
            encoder and a decoder, no attention layer of it can be observed, or its tokenizer does not fit it.

    Example:
        >>> report = look("minilm", "The bank is near the river.", words=["bank"])
        >>> report
        Report('minilm', 'The bank is near the river.', words='bank')
        >>> first = report.tables["relations"][0]
        >>> first["direction"], first["other"], round(first["weight"], 2), (first["layer"], first["head"])
        ('looks at', 'river', 0.64, (0, 4))
    """
    if isinstance(words, str):
        raise wrong("words", "must be a list of words", f"it is {words!r}", f"Write words=[{words!r}].")
    subject = subject_of(model, tokenizer=tokenizer, processor=processor)
    if subject.kind == "encoder-decoder":
        raise wrong(
            "model",
            "must be an encoder or a decoder",
            f"{subject.name} has an encoder and a decoder",
            "limelight.watching observes each of its layers: `network.attention_names`, `network.cross_names`.",
        )
    texts = [text] if compare is None else [text, compare]
    readings = tuple(_read(subject, text, keep_vectors=compare is not None) for text in texts)
    comparison = compare_readings(*readings) if len(readings) == 2 else None
    chosen, chosen_by = _choose(readings, comparison, words)
    facts = ModelFacts(subject.name, subject.kind, subject.layers, subject.heads)
    return Report(facts, readings, chosen, chosen_by, comparison, special)


def _choose(
    readings: Sequence[Reading], comparison: Comparison | None, names: Sequence[str]
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Choose the words to report on for each text; return also the measure, in words."""
    if names:
        for name in names:
            if not any(reading.find(name) for reading in readings):
                known = list(
                    dict.fromkeys(w.text for reading in readings for w in reading.words if not w.is_punctuation)
                )
                some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise wrong("word", "must be in the text", f"{name!r} is not", f"The words are: {some}.")
        found = (dict.fromkeys(number for name in names for number in reading.find(name)) for reading in readings)
        return tuple(tuple(numbers) for numbers in found), NAMED
    if comparison is not None and comparison.pairs:
        pairs = [comparison.pairs[number] for number in words_that_changed(comparison, readings[0])]
        return tuple(tuple(pair[side] for pair in pairs) for side in (0, 1)), CHANGED
    chosen = tuple(tuple(words_that_matter(reading)) for reading in readings)
    return chosen, RECEIVED if readings[0].causal else MOVED


def _read(subject: Subject, text: str, keep_vectors: bool) -> Reading:
    """Run the model once over one text, and return its observations."""
    if not isinstance(text, str) or not text.strip():
        raise wrong(
            "text", "must hold at least one word", f"it is {text!r}", 'For example: "The bank is near the river."'
        )
    tokens = subject.tokenize(text)
    gatherer = Gatherer(tokens, subject.causal, subject.layers, subject.heads)
    ids = torch.tensor([tokens.ids], dtype=torch.int64, device="cpu")
    with (
        counted(f"Reading {len(tokens):,} tokens", subject.layers) as progress,
        watching(Watch(dict.fromkeys(subject.attention_names, gatherer), progress)),
    ):
        hidden = subject.run(ids, hidden=True).hidden
    return gatherer.reading(hidden, keep_vectors, subject.unknown_token)
