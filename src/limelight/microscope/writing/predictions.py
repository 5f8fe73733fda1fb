"""What a decoder expected at each token of a text, and what each layer's state alone would have it write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..reading.record import Floats, Integers, Reading
from ..subjects import Subject
from ..tables import TableRow, short

CANDIDATES, LAYER_CANDIDATES = 8, 3  # of the model, and of each layer's state
CHUNK = 2**22  # logits at once: 16 MiB of float32, whatever the length of the text


@dataclass(frozen=True)
class Predictions:
    """What the model expected at ``P`` successive tokens of a text, each from the tokens before it.

    The token at position ``p`` is predicted by the states at ``p - 1``. A last position behind the text stands for the
    token that would come next; it has no ``probability`` (NaN) and no ``rank`` (0).

    Args:
        first: position of the first predicted token; the others follow.
        written: position from which on the model wrote the text itself; the length of the text if it wrote nothing.
        vocabulary: number of tokens that were to be chosen from.
        ids: the tokens that stand there, ``(P,)``; -1 for the one that would come next.
        probability: of the token that stands there, ``(P,)``.
        rank: its rank, ``(P,)``: 1 is the most likely.
        entropy: of the distribution over the vocabulary, in nats, ``(P,)``.
        candidates: ids of the most likely tokens, the first the most likely, ``(P, K)``.
        shares: their probabilities, ``(P, K)``.
        layer_candidates: the most likely tokens by the logit lens, ``(P, N + 1, 3)``: the output embedding applied to
            the state after each layer, 0 for the embedding (nostalgebraist 2020).
        layer_shares: their probabilities, ``(P, N + 1, 3)``.
        layer_probability: the probability of the token that stands there, by the logit lens, ``(P, N + 1)``.
        layer_rank: its rank, ``(P, N + 1)``.
        spelled: the text of each id above, with the blank before a word.
    """

    first: int
    written: int
    vocabulary: int
    ids: Integers
    probability: Floats
    rank: Integers
    entropy: Floats
    candidates: Integers
    shares: Floats
    layer_candidates: Integers
    layer_shares: Floats
    layer_probability: Floats
    layer_rank: Integers
    spelled: dict[int, str]

    def __len__(self) -> int:
        return len(self.rank)

    def decided(self, number: int) -> int | None:
        """The layers after which the lens ranks the token first and does so to the end; ``None``: not even then."""
        others = np.flatnonzero(self.layer_rank[number] != 1)
        depth = int(others[-1]) + 1 if len(others) else 0
        return depth if depth < self.layer_rank.shape[1] else None


class Expected:
    """Collects what a decoder expects at the positions ``first`` to ``last``, one layer's states after another.

    Memory does not grow with tokens times vocabulary: the logits of a few tokens are computed at once.

    Args:
        subject: the decoder.
        ids: the tokens of the text.
        first: the first position, at least 1.
        last: the last one; ``len(ids)`` is the token that would come next.
        written: the position from which on the model wrote the text.
    """

    def __init__(self, subject: Subject, ids: Sequence[int], first: int, last: int, written: int) -> None:
        self.subject, self.first, self.written = subject, first, written
        self.positions = torch.arange(first, last + 1, device="cpu")
        self.ids = torch.tensor([*ids, -1], dtype=torch.int64, device="cpu")[self.positions]
        self.layers: list[dict[str, npt.NDArray[Any]]] = []

    def add(self, depth: int, states: Tensor) -> None:
        """Apply the logit lens to the states ``(1, L, width)`` of the next depth, the embedding's first."""
        size = max(1, CHUNK // self.subject.vocabulary)
        parts = []
        for places, tokens in zip(torch.split(self.positions, size), torch.split(self.ids, size), strict=True):
            logits = self.subject.lens(states[0, places.to(states.device) - 1], depth)
            assert logits is not None  # `check_writer`
            parts.append(_of_layer(logits.float().cpu(), tokens))
        self.layers.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    def predictions(self) -> Predictions:
        """Everything together, after the states of the last layer."""
        last, few = self.layers[-1], LAYER_CANDIDATES
        layers = {name: np.stack([layer[name] for layer in self.layers], 1) for name in last}
        tops = layers["candidates"][..., :few].copy()
        return Predictions(
            first=self.first,
            written=self.written,
            vocabulary=self.subject.vocabulary,
            ids=self.ids.to(torch.int32).numpy(),
            probability=last["probability"],
            rank=last["rank"],
            entropy=last["entropy"],
            candidates=last["candidates"],
            shares=last["shares"],
            layer_candidates=tops,
            layer_shares=layers["shares"][..., :few].copy(),
            layer_probability=layers["probability"],
            layer_rank=layers["rank"],
            spelled=_spelled(self.subject, {*tops.ravel().tolist(), *last["candidates"].ravel().tolist()}),
        )


def _of_layer(logits: Tensor, tokens: Tensor) -> dict[str, npt.NDArray[Any]]:
    """The statistics of the softmax of ``(P, V)`` logits; ``tokens``: the ids that stand there, -1 for none."""
    whole = logits.logsumexp(-1, keepdim=True)
    best, candidates = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1)
    there = tokens >= 0
    score = logits.gather(-1, tokens.clamp(min=0)[:, None])
    rank = (logits > score).sum(-1) + 1
    probability = (score - whole).exp()[:, 0]
    relative = logits - whole
    return {
        "probability": torch.where(there, probability, torch.nan).numpy(),
        "rank": torch.where(there, rank, 0).to(torch.int32).numpy(),
        "entropy": -(relative.exp() * relative).sum(-1).numpy(),
        "candidates": candidates.to(torch.int32).numpy(),
        "shares": (best - whole).exp().numpy(),
    }


def _spelled(subject: Subject, ids: set[int]) -> dict[int, str]:
    """The text of each token as it stands behind another, with the blank before a word; else its spelling."""
    found = {}
    for token in sorted(ids):
        alone = subject.decode([token])
        text = subject.decode([token, token])[len(alone) :]
        found[token] = text if text and "\ufffd" not in text else subject.spell(token)
    return found


def prediction_tables(
    predictions: Sequence[Predictions | None], readings: Sequence[Reading]
) -> dict[str, list[TableRow]]:
    """The tables ``predictions``, ``candidates`` and ``lens`` of a report; none where nothing was predicted."""
    given = [(text, one) for text, one in enumerate(predictions) if one is not None]
    if not given:
        return {}
    tables: dict[str, list[TableRow]] = {"predictions": [], "candidates": [], "lens": []}
    for text, one in given:
        reading = readings[text]
        pieces = [reading.text[token.start : token.end] or token.text for token in reading.tokens]
        for number in range(len(one)):
            index = one.first + number
            where = {"text": text, "index": index, "token": pieces[index] if index < len(pieces) else None}
            tables["predictions"].append({**where, **_prediction(one, number)})
            tables["candidates"] += [{**where, **row} for row in _candidates(one, number)]
            tables["lens"] += [{**where, **row} for row in _lens(one, number)]
    return tables


def _prediction(one: Predictions, number: int) -> TableRow:
    there = bool(one.rank[number])
    return {
        "written": one.first + number >= one.written and there,
        "probability": short(one.probability[number]) if there else None,
        "rank": int(one.rank[number]) if there else None,
        "decided": one.decided(number) if there else None,
        "entropy": short(one.entropy[number]),
        "entropy_uniform": short(np.log(one.vocabulary)),
        "vocabulary": one.vocabulary,
    }


def _candidates(one: Predictions, number: int) -> list[TableRow]:
    return [
        {
            "rank": place + 1,
            "candidate": one.spelled[int(token)],
            "id": int(token),
            "probability": short(one.shares[number, place]),
            "chosen": int(token) == int(one.ids[number]),
        }
        for place, token in enumerate(one.candidates[number])
    ]


def _lens(one: Predictions, number: int) -> list[TableRow]:
    there = bool(one.rank[number])
    return [
        {
            "depth": depth,
            "probability": short(one.layer_probability[number, depth]) if there else None,
            "rank": int(one.layer_rank[number, depth]) if there else None,
            "top": [one.spelled[int(token)] for token in one.layer_candidates[number, depth]],
            "top_probability": [short(share) for share in one.layer_shares[number, depth]],
        }
        for depth in range(one.layer_rank.shape[1])
    ]
