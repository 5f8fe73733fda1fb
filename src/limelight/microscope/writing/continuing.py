"""A text that a decoder continues, as one text whose first tokens are given: `continued`."""

from __future__ import annotations

import torch

from ...generation import Beam, Greedy, Sampler
from ...tensors.shapes import describe, whole_number, wrong
from ...text import Text
from ..subjects import Subject

BROKEN = "\ufffd"  # what stands for bytes that are no character, or not yet


def check_writer(subject: Subject, what: str) -> None:
    """Check that a model predicts the next token of a text.

    Args:
        subject: the model.
        what: the argument that needs it, for the error message.

    Raises:
        ArgumentError: it is no decoder, or has no output embedding.
    """
    if subject.kind != "decoder":
        got = f"{subject.name} is an {subject.kind}, which does not continue a text"
        raise wrong(what, "needs a decoder with an output embedding", got, 'For example: model="smollm2".')
    if subject.lens(subject.embeddings()[:1], 0) is None:
        got = f"{subject.name} has no output embedding"
        raise wrong(what, "needs a decoder with an output embedding", got, "Load the model with its language head.")


def continued(subject: Subject, text: Text, tokens: int, sampler: Sampler | None, seed: int | None) -> Text:
    """Return a text with the tokens that a decoder writes behind it; its first tokens stay as they are.

    The model sees each token once more when the whole text is read. In a causal model the observations of that run
    are those of the steps in which the text was written.

    Args:
        subject: the decoder.
        text: what it continues.
        tokens: maximum number of new tokens; a token that ends texts, which is kept, ends it before.
        sampler: how a token is chosen; ``None`` for the most likely.
        seed: of a sampler that draws; by default from torch's generator.

    Raises:
        ArgumentError: no positive number of tokens, more than the model has positions, or a search instead of a
            sampler, whose tokens are not chosen one after another.
    """
    whole_number("generate", tokens, at_least=1)
    if isinstance(sampler, Beam) or not hasattr(sampler or Greedy(), "choose"):
        got, way_out = f"it is {describe(sampler)}", "Take Greedy() or Sample(...) of limelight.generation."
        raise wrong("sampler", "must choose one token after another", got, way_out)
    if subject.limit is not None and len(text) + tokens > subject.limit:
        got = f"the text has {len(text):,} tokens, {tokens:,} are to be written, {subject.name} has {subject.limit:,}"
        room = subject.limit - len(text)
        way_out = f"At most {room:,} more fit." if room > 0 else "Take a shorter text."
        raise wrong("generate", "must fit into the positions of the model", got, way_out)
    if seed is None:
        seed = int(torch.randint(2**31, (), dtype=torch.int64, device="cpu"))
    written = subject.generate(text.ids, tokens, sampler or Greedy(), seed)
    return _joined(subject, text, written)


def _joined(subject: Subject, text: Text, written: tuple[int, ...]) -> Text:
    """The tokens of a text and those written behind it, with the characters that each new one adds."""
    names = [subject.spell(token) for token in written]
    special = [subject.is_special(token) for token in written]
    # Decoded behind the text's own last tokens, on which the blank before the first word depends.
    before = list(text.ids[-8:])
    start = subject.decode(before)
    whole, spans = text.text, []
    for number in range(len(written)):
        begin = len(whole)
        decoded = subject.decode([*before, *written[: number + 1]])
        grown = decoded[len(start) :] if decoded.startswith(start) else ""
        if not grown.endswith(BROKEN) or number == len(written) - 1:
            whole = text.text + grown
        spans.append((min(begin, len(whole)), len(whole)))
    spans = [_without_blank(whole, *span) for span in spans]
    return Text(
        text=whole,
        ids=(*text.ids, *written),
        tokens=(*text.tokens, *names),
        spans=(*text.spans, *spans),
        words=(*text.words, *(None for _ in written)),
        special=(*text.special, *special),
    )


def _without_blank(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the blank before the word, unless there is nothing else in it."""
    bare = len(text[start:end].lstrip())
    return (end - bare, end) if bare else (start, end)
