"""Samplers: how the next token is chosen from the scores of all tokens of the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..forms.philox import philox
from ..tensors.shapes import whole_number, wrong

FEW = 256  # tokens among which those that `Sample.top_p` keeps are looked for first


class Sampler(Protocol):
    """Chooses one token for each row: `Greedy` or `Sample`."""

    @property
    def repetition(self) -> float:
        """The penalty on tokens that are already in the text (`penalised`); 1 is off."""

    def choose(self, scores: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The tokens ``(R,)`` for scores ``(R, V)``; ``draw()`` gives ``(R,)`` random numbers from 0 to below 1."""


@dataclass(frozen=True)
class Greedy:
    """The most likely token, always; of equals the one with the lowest id.

    Args:
        repetition: penalty on tokens that are already in the text (`penalised`); 1 is off.
    """

    repetition: float = 1.0

    def __post_init__(self) -> None:
        check_above_0("repetition", self.repetition)

    def choose(self, scores: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """The tokens ``(R,)`` with the largest of the scores ``(R, V)``."""
        return scores.argmax(-1)


@dataclass(frozen=True)
class Sample:
    """A token drawn by its probability, after these changes, in this order.

    Args:
        temperature: scores are divided by it; below 1 sharpens the distribution. The limit towards 0 is the most
            likely token, and among equals any of them.
        top_k: only the ``top_k`` most likely tokens stay (Fan et al. 2018, arXiv:1805.04833); ``None`` for all.
        top_p: only the most likely tokens stay that together have at least this probability (Holtzman et al. 2019,
            arXiv:1904.09751).
        min_p: only tokens stay that have at least this share of the probability of the most likely one (Nguyen et al.
            2024, arXiv:2407.01082).
        repetition: penalty on tokens that are already in the text (`penalised`), before the rest; 1 is off.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0

    def __post_init__(self) -> None:
        if is_number(self.temperature) and self.temperature == 0:
            raise wrong("temperature", "must be above 0", "it is 0", "Greedy() takes the most likely token.")
        check_above_0("temperature", self.temperature)
        check_above_0("repetition", self.repetition)
        if self.top_k is not None:
            whole_number("top_k", self.top_k, at_least=1)
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            rule = "must be a number above 0 and at most 1"
            raise wrong("top_p", rule, f"it is {self.top_p!r}", "1 keeps every token.")
        if not (is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise wrong("min_p", "must be a number from 0 to 1", f"it is {self.min_p!r}", "0 keeps every token.")

    def scores(self, scores: Tensor) -> Tensor:
        """The scores ``(R, V)`` of tokens that stay, divided by the temperature; minus infinity for the others."""
        scores = _divided(scores, self.temperature)
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(self.top_k).values[:, -1:], -torch.inf)
        if self.top_p < 1:
            scores = scores.masked_fill(_beyond(scores.softmax(-1), self.top_p), -torch.inf)
        if self.min_p > 0:
            shares = scores.softmax(-1)
            scores = scores.masked_fill(shares < self.min_p * shares.amax(-1, keepdim=True), -torch.inf)
        return scores

    def choose(self, scores: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Tokens ``(R,)`` drawn from the softmax of the changed scores ``(R, V)``, by one ``draw()`` for each row."""
        reached = self.scores(scores).softmax(-1).double().cumsum(-1)
        places = torch.searchsorted(reached, draw().to(reached)[:, None] * reached[:, -1:], right=True)
        return places[:, 0].clamp(max=scores.shape[-1] - 1)


def _divided(scores: Tensor, temperature: float) -> Tensor:
    """Scores ``(R, V)`` divided by the temperature; where that leaves the range of numbers, relative to the largest."""
    divided = scores / temperature
    if temperature >= 1 or bool(divided.amax(-1).isfinite().all()):
        return divided
    below = scores.double() - scores.double().amax(-1, keepdim=True)
    return (below / max(temperature, torch.finfo(torch.float64).tiny)).to(scores.dtype)


def _beyond(shares: Tensor, top_p: float) -> Tensor:
    """``(R, V)`` bool: the least likely tokens that together have no more than ``1 - top_p``; never the likeliest.

    Usually some dozens of tokens have that much. Where the `FEW` likeliest show which (they reach ``top_p``, and the
    last one that stays is no equal of the next), the vocabulary of that row need not be sorted.
    """
    few = shares.topk(min(FEW, shares.shape[-1])).values
    reached = few.cumsum(-1, dtype=torch.float64)
    stay = (reached < top_p).sum(-1, keepdim=True) + 1  # how many
    known = stay < few.shape[-1]
    least = few.gather(-1, (stay - 1).clamp(max=few.shape[-1] - 1))
    known &= few.gather(-1, stay.clamp(max=few.shape[-1] - 1)) < least
    beyond = shares < least
    rest = ~known[:, 0]
    if rest.any():
        rising, order = shares[rest].sort(-1)
        sorted_out = rising.cumsum(-1) <= 1 - top_p
        sorted_out[:, -1] = False
        beyond[rest] = sorted_out.scatter(-1, order, sorted_out)
    return beyond


def penalised(scores: Tensor, seen: Tensor, repetition: float) -> Tensor:
    """Scores ``(R, V)``, those of ``seen`` tokens divided by ``repetition`` where positive, multiplied where negative.

    (Keskar et al. 2019, arXiv:1909.05858.) ``seen`` ``(R, V)`` is true for each token of the text of a row.
    """
    return torch.where(seen, torch.where(scores < 0, scores * repetition, scores / repetition), scores)


def tokens_in(rows: Sequence[Sequence[int]], scores: Tensor) -> Tensor:
    """``(R, V)`` bool, like the ``scores``: which tokens are in each of the ``rows``."""
    seen = torch.zeros_like(scores, dtype=torch.bool)
    for text, row in zip(seen, rows, strict=True):
        text[torch.tensor(row, dtype=torch.int64, device=scores.device)] = True
    return seen


def draws(seed: int, copies: Tensor, step: int) -> Tensor:
    """A random number from 0 to below 1 for each row: a pure function of seed, number of the copy ``(R,)`` and step.

    53 bits of Philox4x32-10. A row's numbers depend neither on the other rows nor on its place among them.
    """
    zero = torch.zeros_like(copies)
    first, second, _, _ = philox((zero + step, copies, zero, zero), torch.tensor(seed, dtype=torch.int64, device="cpu"))
    return ((first >> 5) * 2**26 + (second >> 6)).double() / 2**53


def check_above_0(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    if not (is_number(value) and math.isfinite(value) and value > 0):
        raise wrong(name, "must be a number above 0", f"it is {value!r}", "1 changes nothing.")


def is_number(value: object) -> bool:
    """Whether it is an int or a float; a bool is neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
