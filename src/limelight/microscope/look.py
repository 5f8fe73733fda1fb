"""Run a model over a text under observation: a run gives a `Reading`, one or two of them a `Report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..formats.progress import counted
from ..forms.observations import watching
from ..generation import Sampler
from ..tensors.shapes import wrong
from ..text import Text
from .comparison import Comparison, compare_readings, words_that_changed
from .gathering import Gatherer, Watch
from .predictions import Predictions, predict
from .reading import Reading
from .relations import words_that_matter
from .report import ModelFacts, Report
from .subjects import Subject, subject_of
from .writing import check_writer, continued

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
    generate: int | None = None,
    sampler: Sampler | None = None,
    seed: int | None = None,
    lens: bool = False,
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
        generate: let a decoder continue each text by at most this many tokens, and report for each of them the
            candidates and the logit lens. The whole text is read once then, with the same observations as while it
            was written, since a token of a decoder sees those before it alone.
        sampler: how these tokens are chosen: `limelight.generation.Greedy` (the default) or ``Sample``.
        seed: of a ``Sample``.
        lens: report candidates and the logit lens for every token of the text, and for the one that would come next.
        tokenizer: of a model of transformers (or in a pair with it: ``look((model, tokenizer), text)``).
        processor: the same, for a model that has a processor.

    Raises:
        ArgumentError: a text is empty or longer than the model's positions, a word is in no text, the model has an
            encoder and a decoder, no attention layer of it can be observed, its tokenizer does not fit it, or it is no
            decoder that can ``generate`` so many tokens.

    Example:
        >>> report = look("minilm", "The bank is near the river.", words=["bank"])
        >>> report
        Report('minilm', 'The bank is near the river.', words='bank')
        >>> first = report.tables["relations"][0]
        >>> first["direction"], first["other"], round(first["weight"], 2), (first["layer"], first["head"])
        ('looks at', 'river', 0.64, (0, 4))
        >>> report = look("smollm2", "The capital of France is", generate=2)
        >>> [(row["token"], row["rank"], round(row["probability"], 2)) for row in report.tables["predictions"]]
        [('Paris', 1, 0.77), ('.', 1, 0.68)]
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
    if generate is not None or lens:
        check_writer(subject, "generate" if generate is not None else "lens")
    given = [_tokens(subject, one) for one in ([text] if compare is None else [text, compare])]
    texts = given if generate is None else [continued(subject, one, generate, sampler, seed) for one in given]
    runs = [
        _read(subject, one, compare is not None, _predicted(len(before), len(one), lens), len(before))
        for before, one in zip(given, texts, strict=True)
    ]
    readings = tuple(reading for reading, _ in runs)
    comparison = compare_readings(*readings) if len(readings) == 2 else None
    chosen, chosen_by = _choose(readings, comparison, words)
    facts = ModelFacts(subject.name, subject.kind, subject.layers, subject.heads)
    return Report(facts, readings, chosen, chosen_by, comparison, special, predictions=tuple(found for _, found in runs))


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


def _predicted(given: int, length: int, every: bool) -> tuple[int, int] | None:
    """The first and last position to predict: all but the first token and the one that would come next, or those that
    the model wrote."""
    if every:
        return 1, length
    return (given, length - 1) if length > given else None


def _tokens(subject: Subject, text: str) -> Text:
    """The tokens of a text, as the model reads them."""
    if not isinstance(text, str) or not text.strip():
        raise wrong(
            "text", "must hold at least one word", f"it is {text!r}", 'For example: "The bank is near the river."'
        )
    return subject.tokenize(text)


def _read(
    subject: Subject, tokens: Text, keep_vectors: bool, predicted: tuple[int, int] | None, written: int
) -> tuple[Reading, Predictions | None]:
    """Run the model once over one text, and return its observations.

    Args:
        subject: the model.
        tokens: the text.
        keep_vectors: whether vectors are kept for a comparison.
        predicted: the first and last position whose tokens are predicted (`predict`), if any are.
        written: the position from which on the model wrote the text.
    """
    gatherer = Gatherer(tokens, subject.causal, subject.layers, subject.heads)
    ids = torch.tensor([tokens.ids], dtype=torch.int64, device="cpu")
    with (
        counted(f"Reading {len(tokens):,} tokens", subject.layers) as progress,
        watching(Watch(dict.fromkeys(subject.attention_names, gatherer), progress)),
    ):
        hidden = subject.run(ids, hidden=True).hidden
    found = None if predicted is None else predict(subject, tokens.ids, hidden, *predicted, written)
    return gatherer.reading(hidden, keep_vectors, subject.unknown_token), found
