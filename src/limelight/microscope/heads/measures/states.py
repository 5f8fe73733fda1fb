"""What measures of the hidden states share: nothing of the attention is observed, and words have vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..measure import Measure, Part, Request
from ..sample import Sample


class OfStates(Measure):
    """A measure of the hidden states, which `finish` counts; shuffled texts are no control of it."""

    hidden = True
    controlled = False

    def request(self, sample: Sample) -> Request | None:
        return None

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        raise NotImplementedError("nothing of the weights is observed")


def word_vectors(hidden: tuple[Tensor, ...], words: Sequence[tuple[int, ...]]) -> Tensor:
    """The vectors of some words at each depth, of length 1, ``(K, N + 1, width)``.

    Args:
        hidden: the states ``(1, L, width)`` of each depth.
        words: the tokens of each word, of whose states the mean is taken.
    """
    mean = torch.zeros(len(words), hidden[0].shape[1], dtype=torch.float32, device="cpu")
    for number, tokens in enumerate(words):
        mean[number, list(tokens)] = 1 / len(tokens)
    return torch.nn.functional.normalize(torch.stack([mean @ states[0].float().cpu() for states in hidden], 1), dim=-1)
