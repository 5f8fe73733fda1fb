"""The decoding loop: prefill the prompts, then choose and read a token for each row until every row has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from ..forms.layouts import Layout
from ..forms.quantized import eight_bits
from ..nn import Keep
from ..tensors.shapes import whole_number, wrong
from ..text import valid_text
from .beam import Beam, search
from .guide import Guide
from .prompts import Prompt, beginnings
from .results import LIMIT, POSITIONS, Continuation, Generation
from .row import Row
from .sampling import Greedy, Sampler, draws
from .session import Prefill, Session, nothing_allowed
from .writer import Writer
from .writing import Writing


def generate(
    model: Writer,
    prompt: Prompt,
    sampler: Sampler | Beam | None = None,
    *,
    tokens: int | None = 128,
    stop: str | int | Sequence[str | int] = (),
    seed: int | None = None,
    copies: int = 1,
    target: Prompt | None = None,
    layout: Layout | None = None,
    logprobs: bool = False,
    keep: Keep | None = None,
    prefill: Prefill | None = None,
    cache_dtype: str | torch.dtype | None = None,
) -> Generation:
    """Continue texts until each one ends: what `limelight.Pretrained.generate` does, with the same arguments.

    Raises:
        ArgumentError: a model that does not write, a prompt of another kind, more tokens than the model has positions,
            a bad setting, or a model whose scores are not finite.
    """
    whole_number("copies", copies, at_least=1)
    if not isinstance(logprobs, bool):
        raise wrong("logprobs", "must be True or False", f"it is {logprobs!r}", "True gives one for each token.")
    how, seed = _checked(sampler), _seed(seed)
    session, rows, guide = begun(model, prompt, tokens, stop, target, layout, keep, prefill, cache_dtype)
    if isinstance(how, Beam):
        if copies > how.width:
            raise wrong("copies", f"must be at most the beam's {how.width}", f"it is {copies}", "Widen the beam.")
        found = search(session, rows, how, guide)
        return Generation(tuple(row.continuation(logprobs, score) for one in found for score, row in one[:copies]))
    if copies > 1 and isinstance(how, Greedy):
        raise wrong("copies", "must be 1 for Greedy", f"it is {copies}", "Greedy finds one text. Use Sample or Beam.")
    rows = [replace(row, copy=number) for row in rows for number in range(copies)]
    *_, written = write(session, rows, how, guide, seed)
    return Generation(tuple(row.continuation(logprobs) for row in written))


class Stream(Iterator[str]):
    """An iterator over the pieces of a text as they are generated.

    Args:
        steps: the row after each token.
        row: the row before the first token.
    """

    def __init__(self, steps: Iterator[list[Row]], row: Row) -> None:
        self._steps, self._row, self._shown = steps, row, 0

    def __next__(self) -> str:
        while True:
            piece = self._row.shown[self._shown :]
            if piece:
                self._shown += len(piece)
                return piece
            [self._row] = next(self._steps)

    @property
    def result(self) -> Continuation:
        """All that is written so far."""
        return self._row.continuation(logprobs=True)


def stream(
    model: Writer,
    prompt: Prompt,
    sampler: Sampler | None = None,
    *,
    tokens: int | None = 128,
    stop: str | int | Sequence[str | int] = (),
    seed: int | None = None,
    target: Prompt | None = None,
    layout: Layout | None = None,
    keep: Keep | None = None,
    prefill: Prefill | None = None,
    cache_dtype: str | torch.dtype | None = None,
) -> Stream:
    """Continue one text, piece by piece: what `limelight.Pretrained.stream` does, with the same arguments.

    Raises:
        ArgumentError: several prompts, a beam, a model without a tokenizer, or what `generate` refuses.
    """
    how, seed = _checked(sampler), _seed(seed)
    if isinstance(how, Beam):
        raise wrong(
            "sampler", "must choose one token at a time to stream", f"it is {how}", "Use generate() for a beam."
        )
    _ = model.tokenizer  # pieces are characters
    session, rows, guide = begun(model, prompt, tokens, stop, target, layout, keep, prefill, cache_dtype)
    if len(rows) != 1:
        raise wrong("prompt", "must be a single one to stream", f"there are {len(rows)}", "Use generate() for several.")
    return Stream(write(session, rows, how, guide, seed), rows[0])


def begun(
    model: Writer,
    prompt: Prompt,
    tokens: int | None,
    stop: str | int | Sequence[str | int],
    target: Prompt | None,
    layout: Layout | None,
    keep: Keep | None = None,
    prefill: Prefill | None = None,
    cache_dtype: str | torch.dtype | None = None,
) -> tuple[Session, list[Row], Guide]:
    """A session with nothing read yet, a row for each prompt, and the constraints of the configuration."""
    if cache_dtype is not None:
        cache_dtype = eight_bits("cache_dtype", cache_dtype)
    stops = _stops(stop, model.config.vocabulary)
    beginning, encoded = beginnings(model, prompt, layout, target)
    guide = Guide.of(model.special_token_ids, model.config.vocabulary)
    room = _room(model, beginning, tokens)
    ends = guide.ends | {one for one in stops if isinstance(one, int)}
    strings = tuple(one for one in stops if isinstance(one, str))
    tokenizer = model.tokenizer if strings or not isinstance(model.tokenizer_or_why, str) else None
    rows = [
        Row(
            begun=tuple(ids),
            ends=ends,
            most=room - len(ids) if tokens is None else tokens,
            at_most=POSITIONS if tokens is None else LIMIT,
            writing=None if tokenizer is None else Writing.after(tokenizer, ids, strings),
        )
        for ids in beginning
    ]
    return Session(model.network, encoded, keep, prefill, cache_dtype), rows, guide


def write(session: Session, rows: Sequence[Row], sampler: Sampler, guide: Guide, seed: int) -> Iterator[list[Row]]:
    """All rows, after each token. Copies of a row are adjacent; their common prompt is read once."""
    rows = list(rows)
    firsts = [number for number, row in enumerate(rows) if not row.copy]
    scores = session.read([rows[number].begun for number in firsts])
    origin = [sum(first <= number for first in firsts) - 1 for number in range(len(rows))]
    session.select(origin)
    scores = scores[origin]
    going = list(range(len(rows)))
    while True:
        texts = [rows[number] for number in going]
        step = len(texts[0].ids)
        logprobs = session.logprobs(scores, step)
        scores = guide.scores(scores, texts, sampler.repetition)
        copy = torch.tensor([row.copy for row in texts], dtype=torch.int64, device="cpu")
        chosen = sampler.choose(scores, partial(draws, seed, copy, step))
        if bool(scores.gather(-1, chosen[:, None]).isneginf().any()):
            raise nothing_allowed(step)
        likely = logprobs.gather(-1, chosen[:, None])[:, 0]
        for number, token, logprob in zip(going, chosen.tolist(), likely.tolist(), strict=True):
            rows[number] = rows[number].add(token, logprob)
        yield list(rows)
        kept = [place for place, number in enumerate(going) if not rows[number].ended]
        if not kept:
            return
        session.select(kept)
        going = [going[place] for place in kept]
        scores = session.read([rows[number].ids[-1:] for number in going])


def _checked(sampler: Sampler | Beam | None) -> Sampler | Beam:
    if sampler is None:
        return Greedy()
    if isinstance(sampler, type) or not (isinstance(sampler, Beam) or callable(getattr(sampler, "choose", None))):
        got = f"it is the class {sampler.__name__}" if isinstance(sampler, type) else f"it is {sampler!r}"
        raise wrong("sampler", "must be Greedy, Sample or Beam", got, "Pass an object: Sample(top_p=0.9), Greedy().")
    return sampler


def _seed(seed: int | None) -> int:
    """The seed; where none is given, one of torch's generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    if not -(2**63) <= whole_number("seed", seed) < 2**63:
        raise wrong("seed", "must fit into 64 bits with a sign", f"it is {seed}", "Take a smaller one.")
    return seed


def _stops(stop: str | int | Sequence[str | int], vocabulary: int) -> tuple[str | int, ...]:
    """The strings and tokens that end a text."""
    example = 'For example: stop=["\\n", 2]; leave it out for none.'
    if isinstance(stop, (bytes, bool)) or not isinstance(stop, (str, int, Sequence)):
        raise wrong("stop", "must be a string, a token id or several of them", f"it is {stop!r}", example)
    stops = (stop,) if isinstance(stop, (str, int)) else tuple(stop)
    for one in stops:
        if isinstance(one, bool) or not isinstance(one, (str, int)) or one == "":
            raise wrong("stop", "must be strings or tokens", f"{one!r} is among them", example)
        if isinstance(one, int) and not 0 <= one < vocabulary:
            raise wrong("stop", f"must hold token ids from 0 to {vocabulary - 1}", f"{one} is among them", example)
    return tuple(valid_text(one, "stop") if isinstance(one, str) else one for one in stops)


def _room(model: Writer, beginning: list[list[int]], tokens: int | None) -> int:
    """Positions for tokens, that of the last one included: it is written, but not read."""
    limit, longest = model.config.cached_limit, max(map(len, beginning))
    if tokens is not None:
        whole_number("tokens", tokens, at_least=1)
    if limit is None:
        if tokens is None:
            raise wrong(
                "tokens",
                "must be a number for a model without a limit",
                "it is None",
                "Give a maximum number of new tokens.",
            )
        return longest + tokens
    room = limit + 1
    positions = f"the {limit} positions that this model ({model.config.family}) has"
    if limit != model.config.limit:
        positions += " for texts that are written: longer ones would change the rotation of cached keys"
    if longest > limit:
        raise wrong(
            "prompt",
            f"must leave room in {positions}",
            f"the longest has {longest} tokens",
            "Shorten it, or use another model.",
        )
    if tokens is not None and longest + tokens > room:
        raise wrong(
            "tokens",
            f"must fit into {positions}",
            f"{tokens} new tokens and a prompt of {longest} do not",
            f"Ask for at most {room - longest}, or for None: as many as there is room for.",
        )
    return room
