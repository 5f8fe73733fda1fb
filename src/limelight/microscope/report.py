"""The result of the microscope: a `Report` of tables, from which the page and the terminal output are made.

The JSON form, ``limelight.report`` version 1::

    {"format": "limelight.report", "version": 1,
     "model": {"name", "kind": "encoder" | "decoder" | "encoder-decoder", "layers", "heads"},
     "texts": [text, ...],              one, or two that are compared
     "notes": [sentence, ...],          how to read the numbers
     "tables": {name: [row, ...]},
     "encoder": {"model", "texts", "notes", "tables"}}   of an encoder-decoder: its encoder's self-attention

Every row is a flat object. ``text`` is 0 or 1; layers and heads count from 0; ``depth`` is the number of layers a
vector has passed, 0 for the embedding (positions included). Weights are shares of attention between 0 and 1.
``index`` is a word's number in its text (a token's in ``tokens``); ``offset`` counts words.

=============  ==================================================================================================
``tokens``     text, index, token, start, end, word, special, sink, unknown (the vocabulary has no token for it),
               received (times what an even spread would give; null for a decoder with cross-attention alone)
``words``      text, index, word, start, end, tokens, chosen
``heads``      text, layer, head, entropy (nats), entropy_uniform, strongest, distance (tokens), distance_uniform,
               previous, own, next, apart, uniform (one key's even share, mean over the queries), queries
``relations``  text, word, index, direction ("looks at", "is looked at by"), other, other_kind (word,
               itself, punctuation, special, sink, blank), content (the other is a content word: such rows come first),
               offset, pieces (of the word looked at), layer, head, positional (the head looks at a relative position;
               such rows come last), weight, uniform, at_offset (what the head gives at this offset elsewhere in the
               text), lift (weight / at_offset), layer_mean (over its heads), contribution (the share of the key in the
               length of what the head writes: weights times norms of values, Kobayashi 2020; null for a long text),
               lower_bound (true: a long text, where only each query's strongest keys are known)
``path``       text, word, index, depth, cosine (with the embedding), step (cosine with the depth before), all_words
``nearest``    text, word, index, depth, rank, other, cosine (of the two vectors), all_pairs (its mean over all
               different words and tokens); of short texts
``contexts``   word, index, other_index, chosen, depth, cosine, different_words (mean cosine of different words), pairs
``predictions``  with ``generate`` or ``lens``: text, index, token (``None`` behind the text), written (by the model),
               probability, rank (1: the most likely), decided (depth from which on the lens ranks it first), entropy
               (nats), entropy_uniform, vocabulary
``candidates`` text, index, token, rank, candidate, id, probability, chosen (it is the token)
``lens``       the output embedding applied to the state of each layer: text, index, token, depth, probability, rank
               (of the token), top, top_probability (lists of the most likely tokens)
``changes``    word, other, layer, head, first, second (the weight in each text), noise (the head's root mean square
               change between all other shared words); only what exceeds 0.05 and three times the noise
``contrasts``  word, layer, head, first_other, second_other (the different words that the head takes its context from),
               first, second, first_at_offset, second_at_offset
``source``,    of an encoder-decoder: see `limelight.microscope.sources.cross.Cross.tables`; texts, tokens and the other
``cross``,     tables are of the decoder
``alignment``
=============  ==================================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from .page.notebook import frame
from .page.write import make_page
from .reading.comparison import Comparison, changes, contrasts
from .reading.pictures import Picture
from .reading.record import Reading, even_distance, mean_path
from .reading.relations import strongest
from .sources.cross import Cross
from .tables import TableRow, Tables
from .tables import short as _short
from .writing.predictions import Predictions, prediction_tables

FORMAT, VERSION = "limelight.report", 1

_NOTES = (
    "A weight says where a head took its values from, not why the model answers as it does: "
    "an attention weight is not an explanation.",
    "The even share is what attention spread evenly over the visible keys would give: compare every weight with it.",
    "Heads are written layer.head, counted from 0. A vector that has passed 0 layers is the embedding.",
    "Relations leave out the word itself, punctuation, special tokens and sinks unless these were asked for.",
    "Relations are ranked by how much a weight exceeds what the same head gives at the same distance elsewhere in the "
    "text; content words come first.",
    "A head is positional if more than half of its attention goes to the previous, own or next token, whatever it is: "
    "its relations come last.",
)
_LAST_NORM = "The last point of a path is behind the model's last norm, which rotates vectors like one more layer."
_LOWER_BOUND = (
    "This text is too long to keep every weight: relations come from each query's strongest keys, "
    "and a weight on a word of several pieces is a lower bound."
)


@dataclass(frozen=True)
class ModelFacts:
    """Name and sizes of the model; ``kind`` is ``"encoder"``, ``"decoder"`` or ``"encoder-decoder"``."""

    name: str
    kind: str
    layers: int
    heads: int


@dataclass(frozen=True)
class Report(Tables):
    """The observations of a model over one text, or over two that are compared.

    Args:
        model: facts about the model.
        readings: one reading per text.
        chosen: for each text, the words that relations and paths are reported for.
        chosen_by: the measure by which they were chosen, in words.
        comparison: of the two texts, if there are two.
        special: whether relations count special tokens, sinks, punctuation and the word itself.
        about: notes about the model: what of it is not observed.
        cautions: warnings about the run, such as positions beyond those of the training.
        cross: what an encoder-decoder looked at in its source.
        predictions: for each text, what a decoder expected at its tokens, where that was asked for.
        source: of an encoder-decoder: the report of the encoder's self-attention over what it reads; of a sound the
            tokens are parts of it, named by the second when they begin.
        pictures: of a model that reads pictures: each of them, with where its patches looked.

    Example:
        >>> from limelight.microscope import look
        >>> report = look("minilm", "The bank is near the river.")
        >>> report.tables["relations"][0]["other"]
        'river'
    """

    model: ModelFacts
    readings: tuple[Reading, ...]
    chosen: tuple[tuple[int, ...], ...]
    chosen_by: str
    comparison: Comparison | None = None
    special: bool = False
    about: tuple[str, ...] = ()
    cross: Cross | None = None
    predictions: tuple[Predictions | None, ...] = ()
    cautions: tuple[str, ...] = ()
    source: Report | None = None
    pictures: tuple[Picture, ...] = ()

    def __repr__(self) -> str:
        texts = [repr(_clipped(reading.text)) for reading in self.readings]
        words = dict.fromkeys(
            reading.words[number].text
            for reading, chosen in zip(self.readings, self.chosen, strict=True)
            for number in chosen
        )
        return f"Report({self.model.name!r}, {', '.join(texts)}, words={_clipped(', '.join(words))!r})"

    def _repr_html_(self) -> str:
        """The page, as a notebook shows it."""
        return frame(partial(make_page, self), repr(self))

    @cached_property
    def tables(self) -> dict[str, list[TableRow]]:
        """Every table by name, as a list of flat rows, which the top of this module describes."""
        per_text: dict[str, Callable[[int], list[TableRow]]] = {
            "tokens": self._tokens,
            "words": self._words,
            "heads": self._heads,
            "relations": self._relations,
            "path": self._path,
            "nearest": self._nearest,
        }
        tables = {
            name: [row for text in range(len(self.readings)) for row in make(text)] for name, make in per_text.items()
        }
        tables |= prediction_tables(self.predictions, self.readings)
        if self.comparison is not None:
            tables |= {"contexts": self._contexts(), "changes": self._changes(), "contrasts": self._contrasts()}
        if self.cross is not None:
            tables |= self.cross.tables()
        return tables

    @property
    def notes(self) -> list[str]:
        """How to read the numbers."""
        last = [_LAST_NORM] if self.model.kind == "decoder" else []
        cross = [] if self.cross is None else self.cross.notes
        bound = [] if all(reading.exact for reading in self.readings) else [_LOWER_BOUND]
        return [*_NOTES, *last, f"Words: {self.chosen_by}.", *bound, *cross, *self.about, *self.warnings]

    @property
    def warnings(self) -> list[str]:
        """Warnings: positions beyond those of the training, tokens that the vocabulary of the model does not have."""
        found = list(self.cautions)
        for number, reading in enumerate(self.readings):
            if reading.unknown:
                which = "" if len(self.readings) == 1 else f"Text {number + 1}: "
                names = ", ".join(dict.fromkeys(reading.tokens[place].text for place in reading.unknown))
                found.append(
                    f"{which}{len(reading.unknown):,} of {reading.length:,} tokens are unknown ({names}): "
                    "the model sees that there is a token, but not which."
                )
        return found if self.cross is None else [*found, *self.cross.warnings]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that the top of this module describes."""
        source = {} if self.source is None else {"encoder": self.source._parts()}
        return {"format": FORMAT, "version": VERSION, **self._parts(), **source}

    def _parts(self) -> dict[str, Any]:
        texts = [reading.text for reading in self.readings]
        return {"model": asdict(self.model), "texts": texts, "notes": self.notes, "tables": self.tables}

    def to_json(self, indent: int | None = None) -> str:
        """Return the JSON form as text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

    def _tokens(self, text: int) -> list[TableRow]:
        reading = self.readings[text]
        received = reading.received.mean(axis=0) / reading.expected if len(reading.received) else None
        unknown = frozenset(reading.unknown)
        return [
            {
                "text": text,
                "index": index,
                "token": token.text,
                "start": token.start,
                "end": token.end,
                "word": reading.words[token.word].text if token.word >= 0 else None,
                "special": token.special,
                "sink": index in reading.apart and not token.special,
                "unknown": index in unknown,
                "received": None if received is None else _short(received[index]),
            }
            for index, token in enumerate(reading.tokens)
        ]

    def _words(self, text: int) -> list[TableRow]:
        return [
            {
                "text": text,
                "index": index,
                "word": word.text,
                "start": word.start,
                "end": word.end,
                "tokens": list(word.tokens),
                "chosen": index in self.chosen[text],
            }
            for index, word in enumerate(self.readings[text].words)
        ]

    def _heads(self, text: int) -> list[TableRow]:
        reading, each = self.readings[text], self.readings[text].heads
        uniform = {
            "uniform": float(np.mean(1.0 / reading.visible)),
            "entropy_uniform": float(np.mean(np.log(reading.visible))),
            "distance_uniform": even_distance(reading),
        }
        return [
            {
                "text": text,
                "layer": layer,
                "head": head,
                "entropy": _short(each.entropy[layer, head]),
                "entropy_uniform": _short(uniform["entropy_uniform"]),
                "strongest": _short(each.strongest[layer, head]),
                "distance": _short(each.distance[layer, head]),
                "distance_uniform": _short(uniform["distance_uniform"]),
                "previous": _short(each.previous[layer, head]),
                "own": _short(each.own[layer, head]),
                "next": _short(each.next[layer, head]),
                "apart": _short(each.apart[layer, head]),
                "uniform": _short(uniform["uniform"]),
                "queries": reading.length,
            }
            for layer in range(len(each.entropy))
            for head in range(self.model.heads)
        ]

    def _relations(self, text: int) -> list[TableRow]:
        reading = self.readings[text]
        rows = []
        for word in self.chosen[text] if len(reading.shares) else ():
            for received in (False, True):
                for found in strongest(reading, word, received=received, special=self.special):
                    other = found.query if received else found.key
                    rows.append(
                        {
                            "text": text,
                            "word": reading.words[word].text,
                            "index": word,
                            "direction": "is looked at by" if received else "looks at",
                            "other": reading.unit_text[other],
                            "other_kind": "itself" if other == word else reading.kind(other),
                            "content": other in reading.content,
                            "offset": reading.words_between(word, other),
                            "pieces": len(reading.unit_tokens[found.key]),
                            "layer": found.layer,
                            "head": found.head,
                            "positional": found.positional,
                            "weight": _short(found.weight),
                            "uniform": _short(found.uniform),
                            "at_offset": _short(found.at_offset),
                            "lift": _short(found.lift),
                            "layer_mean": _short(found.mean),
                            "contribution": None if found.contribution is None else _short(found.contribution),
                            "lower_bound": not reading.exact,
                        }
                    )
        return rows

    def _path(self, text: int) -> list[TableRow]:
        reading, background = self.readings[text], mean_path(self.readings[text])
        return [
            {
                "text": text,
                "word": reading.words[word].text,
                "index": word,
                "depth": depth,
                "cosine": _short(reading.path[depth, word]),
                "step": _short(reading.steps[depth, word]),
                "all_words": _short(background[depth]),
            }
            for word in self.chosen[text]
            for depth in range(self.model.layers + 1)
        ]

    def _nearest(self, text: int) -> list[TableRow]:
        reading, nearest = self.readings[text], self.readings[text].nearest
        if nearest is None:
            return []
        return [
            {
                "text": text,
                "word": reading.words[word].text,
                "index": word,
                "depth": depth,
                "rank": rank,
                "other": reading.unit_text[unit],
                "cosine": _short(nearest.cosine[depth, word, rank]),
                "all_pairs": _short(nearest.mean[depth]),
            }
            for word in self.chosen[text]
            for depth in range(len(nearest.mean))
            for rank, unit in enumerate(nearest.units[depth, word].tolist())
        ]

    def _contexts(self) -> list[TableRow]:
        comparison, first = self.comparison, self.readings[0]
        assert comparison is not None
        return [
            {
                "word": first.words[a].text,
                "index": a,
                "other_index": b,
                "chosen": a in self.chosen[0],
                "depth": depth,
                "cosine": _short(comparison.cosine[number, depth]),
                "different_words": _short(comparison.baseline[depth]),
                "pairs": comparison.baseline_pairs,
            }
            for number, (a, b) in enumerate(comparison.pairs)
            for depth in range(self.model.layers + 1)
        ]

    def _changes(self) -> list[TableRow]:
        first, second = self.readings
        return [
            {
                "word": first.unit_text[comparison.pairs[number][0]],
                "other": first.unit_text[comparison.pairs[change.key][0]],
                "layer": change.layer,
                "head": change.head,
                "first": _short(change.first),
                "second": _short(change.second),
                "noise": _short(change.noise),
            }
            for comparison, number in self._compared()
            for change in changes(first, second, comparison, number)
        ]

    def _contrasts(self) -> list[TableRow]:
        first, second = self.readings
        return [
            {
                "word": first.unit_text[comparison.pairs[number][0]],
                "layer": contrast.layer,
                "head": contrast.head,
                "first_other": first.unit_text[contrast.first_key],
                "second_other": second.unit_text[contrast.second_key],
                "first": _short(contrast.first),
                "second": _short(contrast.second),
                "first_at_offset": _short(contrast.first_at_offset),
                "second_at_offset": _short(contrast.second_at_offset),
            }
            for comparison, number in self._compared()
            for contrast in contrasts(first, second, comparison, number)
        ]

    def _compared(self) -> Iterator[tuple[Comparison, int]]:
        """The chosen words that stand in both texts, as numbers of their pairs."""
        comparison = self.comparison
        assert comparison is not None
        for number, (word, _) in enumerate(comparison.pairs):
            if word in self.chosen[0]:
                yield comparison, number


def _clipped(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
