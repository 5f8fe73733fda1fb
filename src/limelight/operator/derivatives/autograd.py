"""How PyTorch differentiates a `ChunkedFunction`: one `torch.autograd.Function` for each and its derivatives."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ...backends.contract import NOTHING, Call, Differentiable, Result
from ...tensors import tracing
from ...tensors.torch_internals import are_transforms_active, in_forward_mode, is_dynamo_imported
from .algebra import JVP, VJP, Attention, ChunkedFunction, Tensors
from .older_vmap import is_batched, one_by_one


def evaluate(function: ChunkedFunction, tensors: Tensors) -> Tensors:
    """The outputs of a function, as PyTorch differentiates them where derivatives may be wanted."""
    outputs: Tensors
    if are_transforms_active() or in_forward_mode():
        apply = _Differentiated.apply
        if is_dynamo_imported():  # a compiled function runs transforms around it here: no frame is traced
            apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]
        outputs = apply(function, *tensors)  # type: ignore[no-untyped-call]
    elif torch.is_grad_enabled():
        outputs = _DifferentiatedEagerly.apply(function, *tensors)  # type: ignore[no-untyped-call]
    else:
        outputs = function.evaluate(tensors)
    return outputs


class _Differentiated(torch.autograd.Function):
    """``(function, *tensors) -> outputs``, with every derivative and vmap."""

    @staticmethod
    def forward(function: ChunkedFunction, *tensors: Tensor) -> Tensors:
        return function.evaluate(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        function, *tensors = inputs
        ctx.function = function
        ctx.set_materialize_grads(False)
        if isinstance(function, Attention):
            tensors += output[:2]
            if function.observed:
                ctx.mark_non_differentiable(
                    *[t for n, t in enumerate(output) if n not in function.differentiable_outputs]
                )
        ctx.save_for_backward(*tensors)
        if in_forward_mode():
            ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if is_batched(grads):
            return one_by_one(_Differentiated.backward, ctx, grads)
        function: ChunkedFunction = ctx.function
        outputs = tuple([n for n, grad in enumerate(grads) if grad is not None])
        needs = ctx.needs_input_grad[1:]
        inputs = tuple([n for n, needed in enumerate(needs) if needed and function.differentiable(n)])
        found: dict[int, Tensor] = {}
        if outputs and inputs:
            vjp = VJP(function, outputs, inputs)
            tensors = list(ctx.saved_tensors)
            if torch.is_grad_enabled():  # the saved output and logsumexp are constants
                for n in range(len(function.input_axes), len(tensors)):
                    tensors[n] = tensors[n].detach()
            cotangents = [grad for grad in grads if grad is not None]
            found = dict(zip(inputs, evaluate(vjp, (*tensors, *cotangents)), strict=True))
        return None, *[found.get(n) for n in range(len(needs))]

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if is_batched(tangents):
            return one_by_one(lambda ctx, *each: _Differentiated.jvp(ctx, None, *each), ctx, tangents)
        function: ChunkedFunction = ctx.function
        inputs = tuple([n for n, t in enumerate(tangents) if t is not None and function.differentiable(n)])
        jvp = JVP(function, inputs)
        tensors = ctx.saved_tensors[: len(function.input_axes)]
        found = evaluate(jvp, (*tensors, *[t for n, t in enumerate(tangents) if t is not None and n in inputs]))
        tangent_of = dict(zip(jvp.outputs, found, strict=True))
        return tuple([tangent_of.get(n) for n in range(len(function.output_axes))])

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: ChunkedFunction, *tensors: Tensor
    ) -> tuple[Tensors, Any]:
        N, B = info.batch_size, function.attention.template.shapes.B
        if _folds(function.attention):
            rows = [
                (t.expand(N, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
                for t, dim in zip(tensors, in_dims[1:], strict=True)
            ]
            outputs = evaluate(_folded(function, N), tuple(rows))
            return tuple([output.reshape(N, B, *output.shape[1:]) for output in outputs]), (0,) * len(outputs)
        # One after the other: masks, seeds and rules may differ, and a batch row's number is part of its dropout.
        each = [
            evaluate(
                function,
                tuple(t if dim is None else t.select(dim, n) for t, dim in zip(tensors, in_dims[1:], strict=True)),
            )
            for n in range(N)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0,) * len(function.output_axes)


def _folds(attention: Attention) -> bool:
    """Whether several calls can be one call with a larger batch: no setting of them depends on the row."""
    return (
        attention.template.dropout == 0.0
        and not attention.observed
        and len(attention.input_axes) == 3
        and (attention.template.layout is None or attention.template.layout.uniform_over_batch)
        and (attention.template.pattern is None or attention.template.pattern.uniform_over_batch)
    )


def _folded(function: Any, times: int) -> Any:
    """The function of a batch of so many times the rows."""
    new = copy.copy(function)
    if isinstance(function, Attention):
        shapes = function.template.shapes
        new.template = function.template.replace(shapes=shapes._replace(B=times * shapes.B))
        new.pending, new.attention = None, new
    else:
        new.inner = _folded(function.inner, times)
        new.attention = new.inner.attention
    return new


class _DifferentiatedEagerly(torch.autograd.Function):
    """`_Differentiated` without `torch.func`, in the older form of a function, which takes a quarter of the time."""

    @staticmethod
    def forward(ctx: Any, function: ChunkedFunction, *tensors: Tensor) -> Tensors:
        outputs = function.evaluate(tensors)
        _Differentiated.setup_context(ctx, (function, *tensors), outputs)
        return outputs

    backward = _Differentiated.backward
    jvp = _Differentiated.jvp


class PlainAttention(torch.autograd.Function):
    """``(call, backend, query, key, value) -> output`` of a call that `is_plain`, the common one.

    The call itself, without its tensors, is all that is kept beside them, so a step costs half as much as by way of
    `Attention` and `VJP`. Those compute what goes beyond the backend's own gradients.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, backend: Differentiable, *tensors: Tensor) -> Tensor:
        result: Result = backend.forward(call)  # type: ignore[attr-defined]
        assert result.logsumexp is not None
        # What a backward pass needs of the call, which keeps no tensor alive.
        ctx.call, ctx.backend = call.replace(query=NOTHING, key=NOTHING, value=NOTHING), backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, result.output, result.logsumexp)
        return result.output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if is_batched((grad,)):
            return one_by_one(PlainAttention.backward, ctx, (grad,))
        query, key, value, output, logsumexp = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None
        call = ctx.call.replace(query=query, key=key, value=value)
        needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or tracing.active() or in_forward_mode():
            function = Attention(call, ctx.backend, (query, key, value))
            wanted = tuple([n for n, needed in enumerate(needs) if needed])
            tensors = (query, key, value, output.detach(), logsumexp, grad)
            found = dict(zip(wanted, evaluate(VJP(function, (0,), wanted), tensors), strict=True))
            return None, None, *[found.get(n) for n in range(3)]
        return None, None, *ctx.backend.backward(call, output, logsumexp, grad, None, needs)


def is_plain(call: Call) -> bool:
    """Whether query, key and value are the only tensors of a call, and nothing but backward mode is asked for."""
    return (
        call.sink is None
        and call.compare is None
        and not call.scores
        and not isinstance(call.seed, Tensor)
        and (call.layout is None or not call.layout.tensors())
        and (call.pattern is None or not call.pattern.tensors())
        and torch.is_grad_enabled()
        and not are_transforms_active()
        and not in_forward_mode()
    )
