"""The operator by the library: outputs, observations, and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..contract import BackendError, Call, Result
from . import library, observing, rules
from .addresses import (
    SUM_OPTIONS,
    empty_gradient,
    empty_output,
    plain,
    pointer,
    readable,
    row,
)
from .call import packed, reasons_against_distances
from .structures import GRADIENTS

_pack_gradients = GRADIENTS.packer(
    "output", "grad_output", "logsumexp", "grad_logsumexp", "query", "key", "value", "sink", "compare",
    "rules", "uncleared",
)  # fmt: skip


def forward(call: Call) -> Result:
    """Compute the call.

    Raises:
        BackendError: the library refuses, for instance because ``LIMELIGHT_ISA`` names what the machine cannot run.
        torch.OutOfMemoryError: there is no memory for a result or for the scratch of the kernels.
    """
    B, Hq, _, Lq, _, _, Dv = call.shapes
    query, query_row = readable("query", call.query)
    _key, key_row = readable("key", call.key)  # a copy lives as long as its variable
    _value, value_row = readable("value", call.value)
    far = None if call.layout is None or call.layout.near else reasons_against_distances(call)
    if far:
        raise BackendError(f"backend 'native', inside a transform: {'; '.join(far)}. Name backend='reference'.")
    covered = call.layout is None or call.lowered.covers
    output, output_row = empty_output(query, (B, Hq, Lq, Dv))
    if not covered:
        output.zero_()
    kept: list[Any] = []  # what the addresses in the call point to
    observation, seen = 0, None
    if call.observe is not None:
        seen, described = observing.start(call.observe, call, kept)
        observation = library.address(described, kept)
    logsumexp = _logsumexp(call, covered) if call.logsumexp else None
    # Without queries there is nothing to compute, and without a width of values nothing unless weights are observed.
    if query_row[0] and (output_row[0] or logsumexp is not None or seen is not None):
        library.forward(packed(call, query_row, key_row, value_row, output_row, kept, pointer(logsumexp), observation))
    if seen is not None:
        assert call.observe is not None
        observing.finish(seen, call.observe, call.lowered)
    return Result(output, logsumexp, seen)


def forward_into(call: Call, output: Tensor) -> None:
    """Compute a call without observations and logsumexp into ``output`` ``(B, Hq, Lq, Dv)``, whose last stride is 1.

    Raises:
        BackendError: the library refuses.
        torch.OutOfMemoryError: there is no memory for the scratch of the kernels.
    """
    rows = [readable(name, getattr(call, name)) for name in ("query", "key", "value")]  # a copy lives as long as this
    kept: list[Any] = []
    if call.layout is not None and not call.lowered.covers:
        output.zero_()
    if rows[0][1][0] and output.numel():
        library.forward(packed(call, rows[0][1], rows[1][1], rows[2][1], row(output), kept))


def captured(call: Call, output: Tensor, kept: list[Any]) -> bytes:
    """``ll_call`` of a call without observations into ``output``, to be computed later, by `library.replay`.

    The call's tensors need not have their values yet; their last stride is 1. ``kept`` receives what else the addresses
    point to.
    """
    if call.layout is not None and not call.lowered.covers:
        output.zero_()
    return packed(call, row(call.query), row(call.key), row(call.value), row(output), kept)


def _logsumexp(call: Call, covered: bool) -> Tensor:
    """``(B, Hq, Lq)`` for the library to fill, initialised as for a query that belongs to no document."""
    B, Hq, _, Lq, _, _, _ = call.shapes
    numbers = SUM_OPTIONS[call.query.dtype]
    if covered:
        return torch.empty((B, Hq, Lq), **numbers)
    none = torch.full((B, Hq, Lq), -torch.inf, **numbers)
    return none if call.sink is None else none.copy_(plain("sink", call.sink, call.query.dtype)[:, None])


def reasons_against_backward(call: Call) -> list[str]:
    """Why `backward` cannot serve a call that `forward` serves: there is no such call."""
    return []


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, sink and the tensors of the score rules (`contract.Differentiable`)."""
    dtype = call.query.dtype
    numbers = SUM_OPTIONS[dtype]
    query, query_row = readable("query", call.query)
    key, key_row = readable("key", call.key)
    value, value_row = readable("value", call.value)
    output, output_row = readable("output", output)
    grad_output, grad_row = readable("grad_output", _in_dtype(grad_output, output.dtype))
    if logsumexp.dtype is not numbers["dtype"] or not logsumexp.is_contiguous() or not logsumexp.data_ptr():
        logsumexp = plain("logsumexp", logsumexp, dtype)
    if grad_logsumexp is not None:
        grad_logsumexp = plain("grad_logsumexp", grad_logsumexp, dtype)
    # Keys and queries that belong to no document are not written; nor is anything where there are no queries.
    cleared = call.layout is not None or not query_row[0]
    found: list[Tensor | None] = [
        empty_gradient(tensor, cleared) if asked else None
        for tensor, asked in zip((query, key, value), wanted, strict=False)
    ]
    # The rest is in the order of `contract.operands`: the sink, the score rules, the vector of `compare`.
    asked = list(wanted[3:])
    sink = torch.zeros(call.shapes.scores[:3], **numbers) if call.sink is not None and asked.pop(0) else None
    vectors = None
    if call.compare is not None and asked.pop():
        vectors = torch.zeros((*call.shapes.scores[:3], call.shapes.D), **numbers)
    of_rules = rules.Gradients(call, asked)
    kept: list[Any] = []
    if query_row[0]:
        gradients = _pack_gradients(
            output_row, grad_row, logsumexp.data_ptr(), pointer(grad_logsumexp),
            row(found[0]), row(found[1]), row(found[2]), pointer(sink), pointer(vectors),
            of_rules.packed(), of_rules.uncleared,
        )  # fmt: skip
        library.backward(packed(call, query_row, key_row, value_row, (0, 0, 0, 0, 1), kept), gradients)
    if call.sink is not None:
        found.append(None if sink is None else sink.sum((0, 2)).to(call.sink.dtype))
    found += of_rules.reduced()
    if call.compare is not None:
        vector = call.compare.vector
        found.append(None if vectors is None else vectors.sum((0, 2)).sum_to_size(vector.shape).to(vector.dtype))
    return tuple(found)


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
