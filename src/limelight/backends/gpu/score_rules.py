"""The score rules that GPU kernels compute, and their kernel arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.lowering import Lowered
from ...forms.scores import ALiBi, Bias, RelativeBias, ScoreRule, SoftCap
from ..contract import Call

BIAS, ALIBI, DISTANCE_TABLE, SOFTCAP = range(4)  # as in `limelight.backends.gpu.kernels.scores`


class RuleArguments(NamedTuple):
    """The score rules of a call, in order: the kind of each, its tensor, and its strides or scalars."""

    kinds: tuple[int, ...]
    operands: tuple[Tensor | None, ...]
    numbers: tuple[tuple[int | float, ...], ...]


def rule_arguments(call: Call) -> RuleArguments:
    """The kernel arguments of the score rules of a call."""
    packed = [_KERNEL_RULES[type(rule)].arguments(rule, call) for rule in call.scores]
    return RuleArguments(tuple(p[0] for p in packed), tuple(p[1] for p in packed), tuple(p[2] for p in packed))


Arguments = tuple[int, Tensor | None, tuple[int | float, ...]]


def _bias(rule: Bias, call: Call) -> Arguments:
    tensor = rule.tensor.detach().resolve_neg().expand(call.shapes.scores)
    return BIAS, tensor, tensor.stride()


def _alibi(rule: ALiBi, call: Call) -> Arguments:
    slopes = rule.slopes.detach().resolve_neg()
    slopes = slopes.expand(call.shapes.B, call.shapes.Hq)
    return ALIBI, slopes, slopes.stride()


def distance_range(lowered: Lowered) -> tuple[int, int]:
    """The smallest and the largest distance from a query to a key of its segment."""
    table = lowered.segment_table
    if not len(table):
        return 0, 0
    _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, *_ = table.T
    low = int((key_begin + key_offset - query_end + 1 - query_offset).min())
    return low, max(low, int((key_end - 1 + key_offset - query_begin - query_offset).max()))


def _relative_bias(rule: RelativeBias, call: Call) -> Arguments:
    """The bias at every distance that occurs: ``O(Lq + Lk)`` values for each head."""
    low, high = distance_range(call.lowered)
    with torch.no_grad():
        biases = rule.over(low, high).detach().contiguous()
    return DISTANCE_TABLE, biases, (0 if len(biases) == 1 else biases.stride(0), low)


def _soft_cap(rule: SoftCap, call: Call) -> Arguments:
    return SOFTCAP, None, (float(rule.limit),)


class KernelRule(NamedTuple):
    """How kernels compute a class of score rules.

    ``of_pairs``: they read a value for each pair. ``of_distances``: they read one for each distance. ``of_queries``:
    the gradient is one value for each query, which the kernel of query gradients sums.
    """

    arguments: Callable[[Any, Call], Arguments]
    of_pairs: bool = False
    of_distances: bool = False
    of_queries: bool = False


#: The score rules that kernels compute; any other is refused.
_KERNEL_RULES: dict[type[ScoreRule], KernelRule] = {
    Bias: KernelRule(_bias, of_pairs=True),
    ALiBi: KernelRule(_alibi, of_queries=True),
    RelativeBias: KernelRule(_relative_bias, of_distances=True),
    SoftCap: KernelRule(_soft_cap),
}


def kernel_rules(call: Call) -> list[KernelRule]:
    """How kernels compute each of the call's score rules."""
    return [_KERNEL_RULES[type(rule)] for rule in call.scores]


def unsupported_rules(call: Call) -> list[str]:
    """A reason for each score rule that no kernel computes."""
    return [f"the score rule {rule!r} has no GPU kernel" for rule in call.scores if type(rule) not in _KERNEL_RULES]
