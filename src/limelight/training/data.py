"""What is read at each step: a pure function of the seed and of the step, so that a run can go on where it stopped.

Documents are laid end to end in one row (`limelight.Packed`): no place is wasted on padding, and no token sees another
document. One pass over the data is an epoch; each has an order of its own.
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

from ..forms.layouts import Packed
from ..tensors.shapes import wrong
from ..text import Tokenizer

Ids = NDArray[np.int32]
Places = NDArray[np.int64]


class Batch(NamedTuple):
    """What one process reads at a time: one row of documents.

    Args:
        tokens: ``(1, T)`` int64 token ids.
        targets: ``(1, T)``, the token after each.
        layout: where each document ends.
        source: ``(1, S)``, what is translated, document for document; ``None`` where nothing is.
        source_layout: where each source ends.
    """

    tokens: Tensor
    targets: Tensor
    layout: Packed
    source: Tensor | None = None
    source_layout: Packed | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        source = None if self.source is None else self.source.to(device)
        return self._replace(tokens=self.tokens.to(device), targets=self.targets.to(device), source=source)


class Corpus(Protocol):
    """Data in an order of its own for each epoch."""

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""

    def batch(self, number: int) -> Batch:
        """Batch ``number``, counted from 0 through all epochs."""

    def targets_of(self, number: int) -> int:
        """How many tokens it foretells."""

    def in_order(self) -> list[Batch]:
        """All of the data once, in the order of the file, for evaluation."""

    @property
    def targets_in_order(self) -> int:
        """How many tokens that foretells."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that is read."""


@dataclass(frozen=True, eq=False)
class Texts:
    """Documents of which every next token is foretold.

    A document is ``<s>``, its tokens, ``</s>``. It is cut into pieces of at most ``length`` tokens, at other places in
    each epoch, and the pieces, in random order, make one stream of which every batch takes the next ``tokens``: all
    batches have one size, and every token is foretold once in an epoch, but for the rest that fills no batch.

    Args:
        ids: all documents, end to end.
        starts: where each begins in ``ids``, and at last the end.
        length: the most tokens of a piece.
        tokens: of a batch.
        seed: of the order.
    """

    ids: Ids
    starts: Places
    length: int
    tokens: int
    seed: int = 0

    @property
    def targets_in_order(self) -> int:
        """See `Corpus`."""
        return len(self.ids) - (len(self.starts) - 1)  # nothing follows the end of a document

    @property
    def per_epoch(self) -> int:
        """See `Corpus`."""
        return self.targets_in_order // self.tokens

    def targets_of(self, number: int) -> int:
        """See `Corpus`."""
        return self.tokens

    def batch(self, number: int) -> Batch:
        """See `Corpus`.

        Raises:
            ArgumentError: a text that fills no batch.
        """
        if self.per_epoch < 1:
            raise wrong(
                "run.tokens",
                "must be no more than the tokens of the text",
                f"{self.tokens} stands against {self.targets_in_order}",
                "Take a longer text or a smaller batch.",
            )
        epoch, number = divmod(number, self.per_epoch)
        starts, ends = _shuffled_pieces(self, epoch)
        return self._taken(starts, ends, number)

    def in_order(self) -> list[Batch]:
        """See `Corpus`."""
        starts, ends = self._pieces(np.full(len(self.starts) - 1, self.length))
        lengths = ends - starts
        begins = lengths.cumsum() - lengths  # a batch takes the pieces that begin in it, so that none is cut
        cuts = np.searchsorted(begins, self.tokens * np.arange(1, self.per_epoch))
        parts = np.split(np.arange(len(starts)), cuts)
        return [self._packed(starts[part], ends[part]) for part in parts if len(part)]

    @property
    def fingerprint(self) -> str:
        """See `Corpus`."""
        return _hash(self.ids, self.starts)

    def _pieces(self, first: Places) -> tuple[Places, Places]:
        """Where pieces start and end in ``ids``, when the first of each document has at most ``first`` tokens."""
        begins, stops = self.starts[:-1], self.starts[1:] - 1
        counts = 1 + np.maximum(0, -(-(stops - begins - first) // self.length))
        numbers = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        begins, stops, first = (np.repeat(each, counts) for each in (begins, stops, first))
        ends = np.minimum(stops, begins + first + numbers * self.length)
        starts = np.where(numbers == 0, begins, begins + first + (numbers - 1) * self.length)
        return starts, ends

    def _taken(self, starts: Places, ends: Places, number: int) -> Batch:
        """The part ``number`` of the stream of pieces."""
        after = np.cumsum(ends - starts)
        low = number * self.tokens
        high = min(low + self.tokens, int(after[-1]))
        first, last = np.searchsorted(after, (low, high - 1), side="right")
        starts, ends = starts[first : last + 1].copy(), ends[first : last + 1].copy()
        starts[0] = ends[0] - (after[first] - low)
        ends[-1] -= after[last] - high
        return self._packed(starts, ends)

    def _packed(self, starts: Places, ends: Places) -> Batch:
        places = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        tokens, targets = (torch.from_numpy(self.ids[at].astype(np.int64))[None] for at in (places, places + 1))
        return Batch(tokens, targets, Packed(tuple(int(n) for n in ends - starts)))


@lru_cache(maxsize=4)
def _shuffled_pieces(texts: Texts, epoch: int) -> tuple[Places, Places]:
    random = np.random.default_rng((texts.seed, epoch))
    starts, ends = texts._pieces(random.integers(1, texts.length, len(texts.starts) - 1, endpoint=True))
    order = random.permutation(len(starts))
    return starts[order], ends[order]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sources with their targets, in random order.

    The targets of an epoch make one stream; a batch holds the pairs whose target begins in its ``tokens`` of it, and
    the last one also the rest. A target is ``<s>``, its tokens, ``</s>``; a source is its tokens and ``</s>``.

    Args:
        sources, targets: the ids of each, marks included.
        tokens: of targets in a batch, on average; at least as many as the longest target has.
        seed: of the order.
    """

    sources: Sequence[Ids]
    targets: Sequence[Ids]
    tokens: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.targets:
            raise wrong("data", "must hold pairs", "it holds none, or none of this length", "Raise run.length.")

    @property
    def per_epoch(self) -> int:
        """See `Corpus`."""
        return max(1, self.targets_in_order // self.tokens)

    @property
    def targets_in_order(self) -> int:
        """See `Corpus`."""
        return sum(len(target) - 1 for target in self.targets)

    def targets_of(self, number: int) -> int:
        """See `Corpus`."""
        return int(sum(len(self.targets[pair]) - 1 for pair in self._chosen(number)))

    def batch(self, number: int) -> Batch:
        """See `Corpus`."""
        return self._packed(self._chosen(number))

    def in_order(self) -> list[Batch]:
        """See `Corpus`."""
        numbers = np.arange(len(self.targets))
        return [self._packed(some) for some in self._parts(numbers)]

    @property
    def fingerprint(self) -> str:
        """See `Corpus`."""
        return _hash(*self.sources, *self.targets)

    def _chosen(self, number: int) -> Places:
        epoch, number = divmod(number, self.per_epoch)
        return _shuffled_parts(self, epoch)[number]

    def _parts(self, order: Places) -> list[Places]:
        lengths = np.array([len(self.targets[pair]) - 1 for pair in order])
        begins = np.cumsum(lengths) - lengths
        return np.split(order, np.searchsorted(begins, self.tokens * np.arange(1, self.per_epoch)))

    def _packed(self, some: Places) -> Batch:
        targets = [self.targets[pair] for pair in some]
        sources = [self.sources[pair] for pair in some]
        return Batch(
            _row([target[:-1] for target in targets]),
            _row([target[1:] for target in targets]),
            Packed(tuple(len(target) - 1 for target in targets)),
            _row(sources),
            Packed(tuple(len(source) for source in sources)),
        )


@lru_cache(maxsize=4)
def _shuffled_parts(pairs: Pairs, epoch: int) -> list[Places]:
    return pairs._parts(np.random.default_rng((pairs.seed, epoch)).permutation(len(pairs.targets)))


def _row(parts: Sequence[Ids]) -> Tensor:
    joined = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return torch.from_numpy(joined.astype(np.int64))[None]


def _hash(*arrays: Ids | Places) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(len(array).to_bytes(8, "little"))
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def documents_in(path: Path, separator: str) -> list[str]:
    """The documents of a text file that are not blank."""
    text = path.read_text("utf-8")
    return [part for part in (text.split(separator) if separator else [text]) if part.strip()]


def pairs_in(path: Path) -> list[tuple[str, str]]:
    """The pairs of a file: on each line a source, a tab, a target. Blank lines are passed over.

    Raises:
        ArgumentError: a line with no tab, or with several.
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
    """Which of ``count`` documents are kept for evaluation: a ``share`` of them, spread evenly; of two at least one."""
    kept: NDArray[np.bool_] = np.diff(np.floor(np.arange(count + 1) * share)) > 0
    if share and count > 1 and not kept.any():
        kept[-1] = True
    return kept


def texts_of(
    documents: Sequence[str], tokenizer: Tokenizer, *, start: int, end: int, length: int, tokens: int, seed: int
) -> Texts:
    """Cut documents into tokens; ``start`` and ``end`` are the ids of the marks around them."""
    cut = [
        np.array([start, *one.ids, end], np.int32)
        for one in tokenizer.backend.encode_batch_fast(list(documents), add_special_tokens=False)
    ]
    starts = np.cumsum([0, *(len(ids) for ids in cut)], dtype=np.int64)
    return Texts(np.concatenate(cut) if cut else np.zeros(0, np.int32), starts, length, tokens, seed)


def pairs_of(
    pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, *, start: int, length: int, tokens: int, seed: int
) -> tuple[Pairs, list[tuple[str, str]]]:
    """Tokenize pairs, without those of which one side, special tokens included, is longer than ``length``.

    Returns:
        The pairs in tokens, and those same pairs as text.
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
