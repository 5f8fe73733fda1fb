"""Run a model over a text under observation: a run gives a `Reading`, one or two of them a `Report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..formats.progress import counted
from ..forms.observations import watching
from ..generation import Sampler
from ..tensors.shapes import wrong
from ..text import Text
from .across import look_across
from .choosing import about, cautions, choose, facts
from .reading.comparison import compare_readings
from .reading.gathering import Gatherer, Watch
from .reading.nearest import nearest_units
from .reading.norms import ValueNorms
from .reading.pictures import PatchGatherer
from .reading.record import Reading
from .report import Report
from .subjects import Subject, subject_of
from .writing.continuing import check_writer, continued
from .writing.predictions import Expected, Predictions


def look(
    model: Any,
    text: Any,
    *,
    target: str | None = None,
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

    Memory grows with the length of the text: a long one is observed as blocks and strongest keys. A text may be longer
    than the positions that a model was trained on, with a warning in the report, where positions are computed
    (rotations, sinusoids, biases of the distance); a learned table of positions has none beyond its end.

    Args:
        model: a name or path for `limelight.load`, or a folder or hub name of another family, which transformers opens;
            a `Pretrained`; or a model of transformers, unchanged by it.
        text: the text. For an encoder-decoder the source: a text, or for Whisper a WAV file (or its samples, 16,000 a
            second). For an encoder of pictures a picture (of Pillow, or a file) where it has a processor, or the
            numbers that a processor makes of it, ``(3, height, width)``; its tokens are patches, named by row and
            column (``r0c3``).
        target: of an encoder-decoder: what its decoder reads, a translation or transcript; by default what the model
            writes, each token the likeliest. The report is of the target, and ``tables["alignment"]`` says which source
            each word belongs to.
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
        ArgumentError: a text is empty or longer than the model's positions, a word is in no text, no attention layer of
            the model can be observed, its tokenizer does not fit it, or it is no decoder that can ``generate`` so many
            tokens.

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
    if generate is None and (sampler is not None or seed is not None):
        name = "sampler" if sampler is not None else "seed"
        raise wrong(name, "belongs to generate", "nothing is written", "For example generate=40.")
    subject = subject_of(model, tokenizer=tokenizer, processor=processor)
    if generate is not None or lens:
        check_writer(subject, "generate" if generate is not None else "lens")
    if subject.kind == "encoder-decoder":
        if compare is not None:
            raise wrong("compare", "is for encoders and decoders", f"{subject.name} is both", "Leave it out.")
        return look_across(subject, text, target, words, special)
    if target is not None:
        got = f"{subject.name} is {'a decoder' if subject.causal else 'an encoder'}"
        raise wrong("target", "is for an encoder-decoder", got, "Leave it out.")
    runs, pictures = [], []
    for name, one in [("text", text)] if compare is None else [("text", text), ("compare", compare)]:
        tokens, ids = subject.read(one, name, extrapolate=True)
        given = len(tokens)
        if generate is not None:
            tokens = continued(subject, tokens, generate, sampler, seed)
            ids = torch.tensor([tokens.ids], dtype=torch.int64, device="cpu")
        gatherer = _gatherer(subject, tokens)
        predicted = _predicted(given, len(tokens), lens)
        runs.append(_read(subject, tokens, ids, gatherer, compare is not None, predicted, given))
        if isinstance(gatherer, PatchGatherer):
            pictures.append(gatherer.picture(ids))
    readings = tuple(reading for reading, _ in runs)
    comparison = compare_readings(*readings) if len(readings) == 2 else None
    chosen, chosen_by = choose(readings, comparison, words)
    predictions = tuple(found for _, found in runs)
    return Report(
        facts(subject),
        readings,
        chosen,
        chosen_by,
        comparison,
        special,
        about(subject),
        predictions=predictions,
        pictures=tuple(pictures),
        cautions=cautions(subject, [reading.length for reading in readings]),
    )


def _gatherer(subject: Subject, tokens: Text) -> Gatherer:
    """What gathers the self-attention of a run over a text or a picture."""
    if subject.patches is not None:
        return PatchGatherer(subject.patches, subject.layers, subject.heads)
    return Gatherer(tokens, subject.causal, subject.layers, subject.heads)


def _predicted(given: int, length: int, every: bool) -> tuple[int, int] | None:
    """The first and last position to predict: all but the first token and the one that would come next, or those that
    the model wrote."""
    if every:
        return 1, length
    return (given, length - 1) if length > given else None


def _read(
    subject: Subject,
    tokens: Text,
    ids: Tensor,
    gatherer: Gatherer,
    keep_vectors: bool,
    predicted: tuple[int, int] | None,
    written: int,
) -> tuple[Reading, Predictions | None]:
    """Run the model once over one text, and return its observations.

    Args:
        subject: the model.
        tokens: the text.
        ids: what the model reads of it.
        gatherer: keeps the observations of each layer.
        keep_vectors: whether vectors are kept for a comparison.
        predicted: the first and last position whose tokens are predicted (`Expected`), if any are.
        written: the position from which on the model wrote the text.
    """
    values = ValueNorms(subject) if gatherer.block == 1 else None
    paths = gatherer.paths(keep_vectors or values is not None)
    expected = None if predicted is None else Expected(subject, tokens.ids, *predicted, written)

    def visit(depth: int, states: Tensor) -> None:
        paths.add(states)
        if expected is not None:
            expected.add(depth, states)

    with (
        counted(f"Reading {len(tokens):,} tokens", subject.layers) as progress,
        watching(Watch(dict.fromkeys(subject.attention_names, gatherer), progress, values)),
    ):
        subject.follow(ids, visit)
    reading = gatherer.reading(paths, subject.unknown_token)
    if values is not None:
        assert reading.vectors is not None
        vectors = reading.vectors if keep_vectors else None
        nearest = nearest_units(reading.vectors)
        reading = dataclasses.replace(reading, vectors=vectors, value_norms=values.norms(), nearest=nearest)
    return reading, None if expected is None else expected.predictions()
