"""Run a model over a text under observation: a run gives a `Reading`, one or two of them a `Report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..formats.progress import counted
from ..forms.observations import watching
from ..tensors.shapes import wrong
from .across import look_across
from .choosing import about, checked, choose, facts
from .comparison import compare_readings
from .gathering import Gatherer, Watch
from .nearest import nearest_units
from .norms import ValueNorms
from .reading import Reading
from .report import Report
from .subjects import Subject, subject_of


def look(
    model: Any,
    text: Any,
    *,
    target: str | None = None,
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
        text: the text. For an encoder-decoder the source: a text, or for Whisper a WAV file (or its samples, 16,000 a
            second).
        target: of an encoder-decoder: what its decoder reads, a translation or transcript; by default what the model
            writes, each token the likeliest. The report is of the target, and ``tables["alignment"]`` says which source
            each word belongs to.
        compare: a second text, run by itself and compared with the first word by word.
        words: the words to report on, in either text and any case; by default the most prominent ones.
        special: include special tokens, sinks, punctuation and the word itself in relations.
        tokenizer: of a model of transformers (or in a pair with it: ``look((model, tokenizer), text)``).
        processor: the same, for a model that has a processor.

    Raises:
        ArgumentError: a text is empty or longer than the model's positions, a word is in no text, no attention layer of
            the model can be observed, or its tokenizer does not fit it.

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
        if compare is not None:
            raise wrong("compare", "is for encoders and decoders", f"{subject.name} is both", "Leave it out.")
        return look_across(subject, text, target, words, special)
    if target is not None:
        got = f"{subject.name} is {'a decoder' if subject.causal else 'an encoder'}"
        raise wrong("target", "is for an encoder-decoder", got, "Leave it out.")
    texts = [text] if compare is None else [text, compare]
    readings = tuple(_read(subject, text, keep_vectors=compare is not None) for text in texts)
    comparison = compare_readings(*readings) if len(readings) == 2 else None
    chosen, chosen_by = choose(readings, comparison, words)
    return Report(facts(subject), readings, chosen, chosen_by, comparison, special, about(subject))


def _read(subject: Subject, text: str, keep_vectors: bool) -> Reading:
    """Run the model once over one text, and return its observations."""
    tokens = subject.tokenize(checked(text))
    gatherer = Gatherer(tokens, subject.causal, subject.layers, subject.heads)
    ids = torch.tensor([tokens.ids], dtype=torch.int64, device="cpu")
    values = ValueNorms(subject) if gatherer.block == 1 else None
    with (
        counted(f"Reading {len(tokens):,} tokens", subject.layers) as progress,
        watching(Watch(dict.fromkeys(subject.attention_names, gatherer), progress, values)),
    ):
        hidden = subject.run(ids, hidden=True).hidden
    reading = gatherer.reading(hidden, keep_vectors, subject.unknown_token)
    if values is None:
        return reading
    nearest = nearest_units(hidden, torch.from_numpy(reading.unit_of).long())
    return dataclasses.replace(reading, value_norms=values.norms(), nearest=nearest)
