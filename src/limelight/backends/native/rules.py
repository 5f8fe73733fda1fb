"""Score rules as the library reads them (``ll_rule``), and the gradients of their tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...forms.scores import ALiBi, Bias, RelativeBias, ScoreRule, SoftCap
from .. import memory
from ..contract import Call
from .addresses import NUMBERS, address_or_zero, copy_of, plain, summed
from .structures import MAX_RULES, RULE, SEGMENT

_BIAS, _ALIBI, _DISTANCE_TABLE, _SOFTCAP = range(4)  # ll_rule_kind


def reasons_against(rules: Sequence[object]) -> list[str]:
    """Why the library cannot compute these score rules."""
    reasons = [f"it has no kernel for the score rule {rule!r}" for rule in rules if type(rule) not in _PACKED]
    if len(rules) > MAX_RULES:
        reasons.append(f"there are {len(rules)} score rules; it takes {MAX_RULES}")
    return reasons


def packed(call: Call, kept: list[Any]) -> bytes:
    """``ll_rule`` of each score rule; ``kept`` receives the tensors that they point to."""
    return b"".join([_PACKED[type(rule)](rule, call, kept) for rule in call.scores])


def distances(call: Call) -> tuple[int, int]:
    """The smallest and the largest distance from a query to a key."""
    if len(call.lowered.segments) == SEGMENT.size:  # the common one, without numpy
        segment: Any = SEGMENT.unpack(call.lowered.segments)
        _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = segment
        low = key_begin + key_offset - query_end + 1 - query_offset
        return low, max(low, key_end - 1 + key_offset - query_begin - query_offset)
    table = call.lowered.segment_table
    if not len(table):
        return 0, 0
    _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = table.T
    low = int((key_begin + key_offset - query_end + 1 - query_offset).min())
    return low, max(low, int((key_end - 1 + key_offset - query_begin - query_offset).max()))


def _strided(tensor: Tensor, kept: list[Any]) -> tuple[int, ...]:
    """``ll_tensor``, whose strides may be 0."""
    kept.append(tensor)
    return (tensor.data_ptr(), *tensor.stride())


def _bias(rule: Bias, call: Call, kept: list[Any]) -> bytes:
    """As it lies when it has the dtype of the query: it may be as large as all scores."""
    tensor = rule.tensor.detach() if rule.tensor.requires_grad else rule.tensor
    stored = tensor.dtype is call.query.dtype
    if not stored:
        tensor = tensor.to(**NUMBERS[call.query.dtype])
    if tensor.is_neg() or not address_or_zero(tensor):
        tensor = copy_of("tensor", tensor)
    return RULE.pack(kind=_BIAS, tensor=_strided(tensor.expand(call.shapes.scores), kept), stored=stored)


def _alibi(rule: ALiBi, call: Call, kept: list[Any]) -> bytes:
    B, Hq, _, _ = call.shapes.scores
    slopes = plain("slopes", rule.slopes, call.query.dtype).expand(B, Hq)[:, :, None, None].expand(B, Hq, 1, 1)
    return RULE.pack(kind=_ALIBI, tensor=_strided(slopes, kept))


def _relative_bias(rule: RelativeBias, call: Call, kept: list[Any]) -> bytes:
    """The bias at every distance that occurs: ``O(Lq + Lk)`` numbers for each head."""
    low, high = distances(call)
    biases = plain("table", rule.over(low, high), call.query.dtype)
    biases = biases.expand(call.shapes.Hq, biases.shape[1])[None, :, None, :]
    return RULE.pack(kind=_DISTANCE_TABLE, tensor=_strided(biases, kept), parameters=(-low, high - low + 1))


def _soft_cap(rule: SoftCap, call: Call, kept: list[Any]) -> bytes:
    return RULE.pack(kind=_SOFTCAP, parameters=(rule.limit, 0.0))


_PACKED: dict[type[ScoreRule], Callable[[Any, Call, list[Any]], bytes]] = {
    Bias: _bias,
    ALiBi: _alibi,
    RelativeBias: _relative_bias,
    SoftCap: _soft_cap,
}


# --- Gradients -------------------------------------------------------------------------------------------------------


class Gradients:
    """Gradients of the score rules' tensors, accumulated by the library.

    Args:
        call: the call.
        wanted: for each rule that has a tensor, whether its gradient is wanted.
    """

    def __init__(self, call: Call, wanted: Sequence[bool]) -> None:
        self._call = call
        self._sums: list[Tensor | None] = []
        #: Bit r: the memory for rule r is uninitialised, see ``ll_gradients``.
        self.uncleared = 0
        asked = iter(wanted)
        for number, rule in enumerate(call.scores):
            if type(rule) is SoftCap or not next(asked):
                self._sums.append(None)
            elif _has_every_pair(rule, call):
                self._sums.append(memory.empty(call.shapes.scores, NUMBERS[call.query.dtype]["dtype"]))
                self.uncleared |= 1 << number
            else:
                self._sums.append(_zeros(rule, call))

    def packed(self) -> tuple[int, ...]:
        """``ll_gradients.rules``."""
        if not self._sums:
            return _NO_RULES
        numbers = [number for tensor in self._sums for number in summed(tensor)]
        return (*numbers, *_NO_RULES[len(numbers) :])

    def reduced(self) -> list[Tensor | None]:
        """The gradient of each rule's tensor in its shape and dtype; ``None`` where it is not wanted."""
        found: list[Tensor | None] = []
        for rule, total in zip(self._call.scores, self._sums, strict=True):
            if type(rule) is not SoftCap:
                dtype = rule.tensors()[0].dtype
                found.append(None if total is None else _REDUCED[type(rule)](rule, total, self._call).to(dtype))
        return found


_NO_RULES = (0,) * 5 * MAX_RULES


def _dimensions(rule: Bias) -> list[int]:
    """The sizes of a bias, leading ones of 1 included: four."""
    return [1] * (4 - rule.tensor.dim()) + list(rule.tensor.shape)


def _has_every_pair(rule: ScoreRule, call: Call) -> bool:
    """Whether the gradient is that of a bias of all pairs, each of which the library writes. Beyond what is kept for
    reuse, new memory is cleared by the system anyway.
    """
    shape = call.shapes.scores
    return (
        isinstance(rule, Bias)
        and call.layout is None
        and min(shape[2:]) > 1
        and _dimensions(rule) == list(shape)
        and math.prod(shape) * NUMBERS[call.query.dtype]["dtype"].itemsize <= memory.MOST
    )


def _zeros(rule: ScoreRule, call: Call) -> Tensor:
    """Memory in which the library accumulates the gradient of a rule's tensor."""
    B, Hq, Lq, _ = call.shapes.scores
    shape = [B, Hq, Lq, 1]  # of each query, to which chunks of keys add in their order
    if isinstance(rule, Bias) and _dimensions(rule)[-1] != 1:
        shape = _dimensions(rule)
    elif isinstance(rule, RelativeBias):
        low, high = distances(call)
        shape = [B, Hq, 1, high - low + 1]
    return memory.zeros(shape, NUMBERS[call.query.dtype]["dtype"])


def _of_bias(rule: Bias, total: Tensor, call: Call) -> Tensor:
    return total.sum_to_size(_dimensions(rule)).reshape(rule.tensor.shape)


def _of_slopes(rule: ALiBi, total: Tensor, call: Call) -> Tensor:
    return total.sum((2, 3)).sum_to_size(rule.slopes.shape)


def _of_table(rule: RelativeBias, total: Tensor, call: Call) -> Tensor:
    low, high = distances(call)
    buckets = rule.bucket_of(torch.arange(low, high + 1, device="cpu"))
    heads = total.sum((0, 2))
    return heads.new_zeros(len(heads), rule.table.shape[1]).index_add_(1, buckets, heads).sum_to_size(rule.table.shape)


_REDUCED: dict[type[ScoreRule], Callable[[Any, Tensor, Call], Tensor]] = {
    Bias: _of_bias,
    ALiBi: _of_slopes,
    RelativeBias: _of_table,
}
