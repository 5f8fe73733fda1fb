"""The training data. Each batch is a pure function of the seed and the step, so a run resumes without reader state.

Documents are packed end to end in one row (`limelight.Packed`): there is no padding, and no token sees another
document. One pass over the data is an epoch; each epoch has its own random order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..forms.layouts import Layout, Packed
from ..tensors.shapes import wrong
from ..text import Tokenizer

Ids = NDArray[np.int32]
Indices = NDArray[np.int64]


class Batch(NamedTuple):
    """The input of one forward pass: packed documents, or packed pairs of a source and a target.

    Args:
        tokens: ``(1, T)`` int64 token ids.
        targets: ``(1, T)``, the next token of each.
        layout: the lengths of the documents; where the tokens are those of one of several processes, a
            `limelight.distributed.ContextParallel` of them.
        source: ``(1, S)``, the packed sources, one for each document; ``None`` for a language model.
        source_layout: the lengths of the sources, or a `limelight.distributed.ContextParallel` of them.
    """

    tokens: Tensor
    targets: Tensor
    layout: Layout
    source: Tensor | None = None
    source_layout: Layout | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on ``device``."""
        source = None if self.source is None else self.source.to(device)
        return self._replace(tokens=self.tokens.to(device), targets=self.targets.to(device), source=source)


class Corpus(Protocol):
    """Data as numbered batches, in a different order in each epoch, by a pure function of the seed."""

    @property
    def per_epoch(self) -> int:
        """Number of batches in an epoch."""

    def batch(self, number: int) -> Batch:
        """Return batch ``number``, counted from 0 through all epochs.

        Raises:
            ArgumentError: there is less data than one batch takes.
        """

    def targets_of(self, number: int) -> int:
        """Return the number of tokens that batch ``number`` predicts."""

    def in_order(self) -> list[Batch]:
        """Return all of the data once, in the order of the file, for evaluation."""

    @property
    def targets_in_order(self) -> int:
        """Number of tokens that all of the data predicts."""

    @property
    def fingerprint(self) -> str:
        """Hash of all token ids and of where documents begin."""


@dataclass(frozen=True, eq=False)
class Texts(Corpus):
    """Next-token prediction over documents.

    A document is ``<s>``, its tokens, ``</s>``. It is cut into pieces of at most ``length`` tokens, at different places
    in each epoch. The pieces, in random order, make one stream, of which every batch takes the next ``tokens``: all
    batches have one size, and every token is predicted once in an epoch, except for a rest that fills no batch.

    Args:
        ids: all documents, end to end.
        starts: index in ``ids`` of the start of each document, and the length of ``ids``.
        length: maximum tokens of a piece.
        tokens: tokens of a batch.
        seed: seed of the cuts and the order.
    """

    ids: Ids
    starts: Indices
    length: int
    tokens: int
    seed: int = 0

    @property
    def targets_in_order(self) -> int:
        return len(self.ids) - (len(self.starts) - 1)  # nothing follows the end of a document

    @property
    def per_epoch(self) -> int:
        return self.targets_in_order // self.tokens

    def targets_of(self, number: int) -> int:
        return self.tokens

    def batch(self, number: int) -> Batch:
        if self.per_epoch < 1:
            raise wrong(
                "run.batch_tokens",
                "must be no more than the tokens of the text",
                f"a batch takes {self.tokens} and the text has {self.targets_in_order}",
                "Use a longer text or lower run.batch_tokens.",
            )
        epoch, number = divmod(number, self.per_epoch)
        starts, ends = _shuffled_pieces(self, epoch)
        return self._cut(starts, ends, number)

    def in_order(self) -> list[Batch]:
        starts, ends = self._pieces(np.full(len(self.starts) - 1, self.length))
        lengths = ends - starts
        begins = lengths.cumsum() - lengths  # a batch takes the pieces that begin in it, so that none is cut
        cuts = np.searchsorted(begins, self.tokens * np.arange(1, self.per_epoch))
        parts = np.split(np.arange(len(starts)), cuts)
        return [self._packed(starts[part], ends[part]) for part in parts if len(part)]

    @property
    def fingerprint(self) -> str:
        return _hash(self.ids, self.starts)

    def _pieces(self, first: Indices) -> tuple[Indices, Indices]:
        """Return where pieces start and end in ``ids`` if the first of each document has at most ``first`` tokens."""
        begins, stops = self.starts[:-1], self.starts[1:] - 1
        counts = 1 + np.maximum(0, -(-(stops - begins - first) // self.length))
        numbers = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        begins, stops, first = (np.repeat(each, counts) for each in (begins, stops, first))
        ends = np.minimum(stops, begins + first + numbers * self.length)
        starts = np.where(numbers == 0, begins, begins + first + (numbers - 1) * self.length)
        return starts, ends

    def _cut(self, starts: Indices, ends: Indices, number: int) -> Batch:
        """Return batch ``number`` of the stream of pieces."""
        after = np.cumsum(ends - starts)
        low = number * self.tokens
        high = min(low + self.tokens, int(after[-1]))
        first, last = np.searchsorted(after, (low, high - 1), side="right")
        starts, ends = starts[first : last + 1].copy(), ends[first : last + 1].copy()
        starts[0] = ends[0] - (after[first] - low)
        ends[-1] -= after[last] - high
        return self._packed(starts, ends)

    def _packed(self, starts: Indices, ends: Indices) -> Batch:
        index = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        tokens, targets = (torch.from_numpy(self.ids[at].astype(np.int64))[None] for at in (index, index + 1))
        return Batch(tokens, targets, Packed(tuple(int(n) for n in ends - starts)))


@lru_cache(maxsize=4)
def _shuffled_pieces(texts: Texts, epoch: int) -> tuple[Indices, Indices]:
    random = np.random.default_rng((texts.seed, epoch))
    starts, ends = texts._pieces(random.integers(1, texts.length, len(texts.starts) - 1, endpoint=True))
    order = random.permutation(len(starts))
    return starts[order], ends[order]


@dataclass(frozen=True, eq=False)
class Pairs(Corpus):
    """Sentence pairs for translation, in random order.

    The targets of an epoch make one stream. A batch holds the pairs whose target begins in its ``tokens`` of the
    stream, and the last batch also the rest. A target is ``<s>``, its tokens, ``</s>``; a source is its tokens and
    ``</s>``.

    Args:
        sources, targets: the token ids of each, special tokens included.
        tokens: mean number of target tokens of a batch; at least the length of the longest target.
        seed: seed of the order.
    """

    sources: Sequence[Ids]
    targets: Sequence[Ids]
    tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.targets:
            raise wrong("data", "must hold pairs", "it holds none, or none this short", "Raise run.max_length.")

    @property
    def per_epoch(self) -> int:
        return max(1, self.targets_in_order // self.tokens)

    @property
    def targets_in_order(self) -> int:
        return sum(len(target) - 1 for target in self.targets)

    def targets_of(self, number: int) -> int:
        return int(sum(len(self.targets[pair]) - 1 for pair in self._chosen(number)))

    def batch(self, number: int) -> Batch:
        return self._packed(self._chosen(number))

    def in_order(self) -> list[Batch]:
        numbers = np.arange(len(self.targets))
        return [self._packed(some) for some in self._parts(numbers)]

    @property
    def fingerprint(self) -> str:
        return _hash(*self.sources, *self.targets)

    def _chosen(self, number: int) -> Indices:
        epoch, number = divmod(number, self.per_epoch)
        return _shuffled_parts(self, epoch)[number]

    def _parts(self, order: Indices) -> list[Indices]:
        lengths = np.array([len(self.targets[pair]) - 1 for pair in order])
        begins = np.cumsum(lengths) - lengths
        return np.split(order, np.searchsorted(begins, self.tokens * np.arange(1, self.per_epoch)))

    def _packed(self, some: Indices) -> Batch:
        targets = [self.targets[pair] for pair in some]
        sources = [self.sources[pair] for pair in some]
        return Batch(
            _joined([target[:-1] for target in targets]),
            _joined([target[1:] for target in targets]),
            Packed(tuple(len(target) - 1 for target in targets)),
            _joined(sources),
            Packed(tuple(len(source) for source in sources)),
        )


@lru_cache(maxsize=4)
def _shuffled_parts(pairs: Pairs, epoch: int) -> list[Indices]:
    return pairs._parts(np.random.default_rng((pairs.seed, epoch)).permutation(len(pairs.targets)))


def _joined(parts: Sequence[Ids]) -> Tensor:
    joined = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return torch.from_numpy(joined.astype(np.int64))[None]


def _hash(*arrays: Ids | Indices) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(len(array).to_bytes(8, "little"))
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def documents_in(path: Path, separator: str) -> list[str]:
    """Return the documents of a text file that are not blank."""
    text = path.read_text("utf-8")
    return [part for part in (text.split(separator) if separator else [text]) if part.strip()]


def pairs_in(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a file: on each line a source, a tab, a target. Blank lines are skipped.

    Raises:
        ArgumentError: a line has no tab or several, or nothing on one side.
    """
    found = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        sides = line.rstrip("\r").split("\t")
        if len(sides) != 2 or not all(side.strip() for side in sides):
            got = f"line {number} of {path} has {len(sides) - 1} tabs, or nothing on one side"
            raise wrong("data", "must have a source, a tab and a target on each line", got, "Correct the line.")
        found.append((sides[0], sides[1]))
    return found


def held_out(count: int, share: float) -> NDArray[np.bool_]:
    """Return which of ``count`` documents are held out: a ``share`` of them, evenly spaced, at least one of two."""
    kept: NDArray[np.bool_] = np.diff(np.floor(np.arange(count + 1) * share)) > 0
    if share and count > 1 and not kept.any():
        kept[-1] = True
    return kept


def texts_of(
    documents: Sequence[str], tokenizer: Tokenizer, *, start: int, end: int, length: int, tokens: int, seed: int
) -> Texts:
    """Tokenize documents into `Texts`; ``start`` and ``end`` are the ids of the tokens around each."""
    tokenized = [
        np.array([start, *one.ids, end], np.int32)
        for one in tokenizer.backend.encode_batch_fast(list(documents), add_special_tokens=False)
    ]
    starts = np.cumsum([0, *(len(ids) for ids in tokenized)], dtype=np.int64)
    return Texts(np.concatenate(tokenized) if tokenized else np.zeros(0, np.int32), starts, length, tokens, seed)


def pairs_of(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, *, start: int, length: int, tokens: int, seed: int
) -> tuple[Pairs, list[tuple[str, str]]]:
    """Tokenize pairs, without those of which one side, special tokens included, is longer than ``length``.

    Returns:
        The tokenized pairs, and the same pairs as text.
    """
    sides = [
        [np.array(one.ids, np.int32) for one in tokenizer.backend.encode_batch_fast([pair[side] for pair in pairs])]
        for side in (0, 1)
    ]
    kept = [
        (source, np.concatenate(([np.int32(start)], target)), pair)
        for source, target, pair in zip(*sides, pairs, strict=True)
        if len(source) <= length and len(target) <= length
    ]
    made = Pairs([source for source, _, _ in kept], [target for _, target, _ in kept], tokens, seed)
    return made, [pair for _, _, pair in kept]
