"""Score rules as the library reads them (``ll_rule``), and the gradients of their tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.scores import ALiBi, Bias, RelativeBias, ScoreRule, SoftCap
from .. import memory
from ..contract import Call
from .addresses import SUM_OPTIONS, address_or_zero, copy_of, plain, summed
from .structures import MAX_RULES, RULE, SEGMENT

_BIAS, _ALIBI, _DISTANCE_TABLE, _SOFTCAP = range(4)  # ll_rule_kind


def reasons_against(rules: Sequence[object]) -> list[str]:
    """Why the library cannot compute these score rules."""
    reasons = [f"it has no kernel for the score rule {rule!r}" for rule in rules if type(rule) not in _RULES]
    if len(rules) > MAX_RULES:
        reasons.append(f"there are {len(rules)} score rules; it takes {MAX_RULES}")
    return reasons


def packed(call: Call, kept: list[Any]) -> bytes:
    """``ll_rule`` of each score rule; ``kept`` receives the tensors that they point to."""
    return b"".join([_RULES[type(rule)].packed(rule, call, kept) for rule in call.scores])


def distances(call: Call) -> tuple[int, int]:
    """The smallest and the largest distance from a query to a key."""
    if len(call.lowered.segments) == SEGMENT.size:  # the common one, without numpy
        segment: Any = SEGMENT.unpack(call.lowered.segments)
        _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, *_ = segment
        low = key_begin + key_offset - query_end + 1 - query_offset
        return low, max(low, key_end - 1 + key_offset - query_begin - query_offset)
    table = call.lowered.segment_table
    if not len(table):
        return 0, 0
    _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, *_ = table.T
    low = int((key_begin + key_offset - query_end + 1 - query_offset).min())
    return low, max(low, int((key_end - 1 + key_offset - query_begin - query_offset).max()))


def _strided(tensor: Tensor, kept: list[Any]) -> tuple[int, ...]:
    """``ll_tensor``, whose strides may be 0."""
    kept.append(tensor)
    return (tensor.data_ptr(), *tensor.stride())


def _bias(rule: Bias, call: Call, kept: list[Any]) -> bytes:
    """A bias, without a copy if it has the dtype of the query: it may be as large as all scores."""
    tensor = rule.tensor.detach() if rule.tensor.requires_grad else rule.tensor
    stored = tensor.dtype is call.query.dtype
    if not stored:
        tensor = tensor.to(**SUM_OPTIONS[call.query.dtype])
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
            if not rule.tensors() or not next(asked):
                self._sums.append(None)
                continue
            shape = _RULES[type(rule)].gradient(rule, call)
            if _has_every_pair(shape, call):
                self._sums.append(memory.empty(call.shapes.scores, SUM_OPTIONS[call.query.dtype]["dtype"]))
                self.uncleared |= 1 << number
            else:
                self._sums.append(memory.zeros(shape, SUM_OPTIONS[call.query.dtype]["dtype"]))

    def packed(self) -> tuple[int, ...]:
        """The bytes of ``ll_gradients.rules``, one tensor for each rule."""
        if not self._sums:
            return _NO_RULES
        numbers = [number for tensor in self._sums for number in summed(tensor)]
        return (*numbers, *_NO_RULES[len(numbers) :])

    def reduced(self) -> list[Tensor | None]:
        """The gradient of each rule's tensor in its shape and dtype; ``None`` where it is not wanted."""
        found: list[Tensor | None] = []
        for rule, total in zip(self._call.scores, self._sums, strict=True):
            for tensor in rule.tensors():
                reduced = None if total is None else _RULES[type(rule)].reduced(rule, total, self._call)
                found.append(None if reduced is None else reduced.to(tensor.dtype))
        return found


_NO_RULES = (0,) * 5 * MAX_RULES


def _dimensions(rule: Bias) -> list[int]:
    """The sizes of a bias, leading ones of 1 included: four."""
    return [1] * (4 - rule.tensor.dim()) + list(rule.tensor.shape)


def _has_every_pair(gradient: list[int], call: Call) -> bool:
    """Whether a gradient of this shape has one number for each pair, each of which the library writes. Beyond what is
    kept for reuse, new memory is cleared by the system anyway.
    """
    shape = call.shapes.scores
    return (
        call.layout is None
        and min(shape[2:]) > 1
        and gradient == list(shape)
        and math.prod(shape) * SUM_OPTIONS[call.query.dtype]["dtype"].itemsize <= memory.MAX_POOL_BYTES
    )


def _per_query(rule: ScoreRule, call: Call) -> list[int]:
    """One number for each query, to which chunks of keys add in their order."""
    return [*call.shapes.scores[:3], 1]


def _per_distance(rule: RelativeBias, call: Call) -> list[int]:
    low, high = distances(call)
    return [*call.shapes.scores[:2], 1, high - low + 1]


def _per_entry(rule: Bias, call: Call) -> list[int]:
    """The shape of the bias; one number for each query where all keys share an entry."""
    return _dimensions(rule) if _dimensions(rule)[-1] != 1 else _per_query(rule, call)


def _of_bias(rule: Bias, total: Tensor, call: Call) -> Tensor:
    return total.sum_to_size(_dimensions(rule)).reshape(rule.tensor.shape)


def _of_slopes(rule: ALiBi, total: Tensor, call: Call) -> Tensor:
    return total.sum((2, 3)).sum_to_size(rule.slopes.shape)


def _of_table(rule: RelativeBias, total: Tensor, call: Call) -> Tensor:
    low, high = distances(call)
    buckets = rule.bucket_of(torch.arange(low, high + 1, device="cpu"))
    heads = total.sum((0, 2))
    return heads.new_zeros(len(heads), rule.table.shape[1]).index_add_(1, buckets, heads).sum_to_size(rule.table.shape)


def _no_tensor(*_: Any) -> Any:
    raise AssertionError("a rule without a tensor has no gradient")


class _Kind(NamedTuple):
    """How the library computes a class of score rules.

    Args:
        packed: the rule's ``ll_rule``.
        gradient: the shape of the sums that the library accumulates for the rule's tensor.
        reduced: the gradient of the tensor from these sums.
        is_tabled: whether the library reads one number for each distance.
    """

    packed: Callable[[Any, Call, list[Any]], bytes]
    gradient: Callable[[Any, Call], list[int]]
    reduced: Callable[[Any, Tensor, Call], Tensor]
    is_tabled: bool = False


#: The score rules that the library computes; any other is refused.
_RULES: dict[type[ScoreRule], _Kind] = {
    Bias: _Kind(_bias, _per_entry, _of_bias),
    ALiBi: _Kind(_alibi, _per_query, _of_slopes),
    RelativeBias: _Kind(_relative_bias, _per_distance, _of_table, is_tabled=True),
    SoftCap: _Kind(_soft_cap, _no_tensor, _no_tensor),
}


def reads_distances(rules: Sequence[ScoreRule]) -> bool:
    """Whether the library reads one number for each distance for one of these rules."""
    return any(_RULES[type(rule)].is_tabled for rule in rules)
