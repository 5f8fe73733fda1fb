"""Functions that are sums over chunks of a call, and their derivatives, which are again such functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...backends import reference
from ...backends.contract import NOTHING, Backend, Call, differentiable
from ...forms.observations import Observe
from ...tensors import tracing
from ...tensors.torch_internals import are_transforms_active
from . import observed
from .chunks import Chunk, chunks, indices

Tensors = tuple[Tensor, ...]


class ChunkedFunction:
    """A function of tensors that is a sum over chunks: each chunk adds to a part of every output."""

    attention: Attention  # the call that it comes from; its tensors are the first inputs
    input_axes: tuple[str, ...]
    output_axes: tuple[str, ...]
    differentiable_outputs: Sequence[int]

    def differentiable(self, n: int) -> bool:
        """Whether there are derivatives with respect to input ``n``."""
        raise NotImplementedError

    def compute(self, chunk: Chunk, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        """What one chunk adds to the outputs ``which``, from its parts of the inputs; ``None`` for nothing."""
        raise NotImplementedError

    def specs(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """Shape and dtype of every output."""
        raise NotImplementedError

    def evaluate(self, tensors: Tensors) -> Tensors:
        """The outputs, computed chunk by chunk, summed in float32 (float64 for float64) and rounded once."""
        call = self.attention.call(tensors)
        accumulator = reference.accumulator(call.query.dtype)
        specs = self.specs(tensors)
        totals: list[Tensor | None] = [None] * len(specs)
        for chunk in chunks(call):
            parts = tuple(
                chunk.part_of(t.detach(), axes).to(accumulator) if t.is_floating_point() else t
                for t, axes in zip(tensors, self.input_axes, strict=True)
            )
            for n, piece in enumerate(self.compute(chunk, parts, range(len(specs)))):
                if piece is not None:
                    total = totals[n]
                    if total is None:
                        total = totals[n] = torch.zeros(tuple(specs[n][0]), dtype=piece.dtype, device=piece.device)
                    chunk.part_of(total, self.output_axes[n]).add_(piece)
        self.attention.keep_lowered(call)
        return tuple(
            torch.zeros(tuple(shape), dtype=dtype, device=call.query.device) if total is None else total.to(dtype)
            for total, (shape, dtype) in zip(totals, specs, strict=True)
        )


class Attention(ChunkedFunction):
    """A call without its tensors: ``(query, key, value, operands, others) -> (output, logsumexp, observations)``.

    Args:
        call: the call, its rows and pairs in the order of `observed.in_order`.
        backend: computes the value, and the gradient where it has a backward pass.
        tensors: query, key, value and `Settings.tensors` of the call.
    """

    def __init__(self, call: Call, backend: Backend, tensors: Tensors) -> None:
        self.attention = self
        self.backend = backend
        self.template = call.replace(query=NOTHING, key=NOTHING, value=NOTHING, logsumexp=True).hollow()
        self.observed = () if call.observe is None else observed.names(call.observe)
        self.input_axes = _QKV if len(tensors) == 3 else _axes_of_inputs(call, len(tensors))
        # Under a transform one call stands for several, whose layouts and patterns may differ in their tensors.
        self.keeps_lowered = not are_transforms_active()
        self.pending: Call | None = None  # the call itself, until it is computed

    @cached_property
    def output_axes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("bhq.", "bhq", *[observed.AXES[name] for name in self.observed])

    def differentiable(self, n: int) -> bool:
        return bool(self.input_axes[n])  # query, key, value and the operands have axes

    @cached_property
    def differentiable_outputs(self) -> Sequence[int]:  # type: ignore[override]
        names = () if self.template.only_watched else observed.DIFFERENTIABLE
        return [0, 1, *[n for n, name in enumerate(self.observed, 2) if name in names]]

    def call(self, tensors: Tensors) -> Call:
        """The call with its tensors, the first of those given."""
        query, key, value, *others = tensors
        call = self.template.replace(query=query, key=key, value=value)
        return call.with_tensors(iter(others)).lowered_like(self.template)

    def keep_lowered(self, call: Call) -> None:
        """Keep the lowering of a call of this template for the next one."""
        if self.keeps_lowered:
            self.template = self.template.lowered_like(call)

    def specs(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        (B, Hq, _, Lq, Lk, _, Dv), observe = self.template.shapes, self.template.observe or Observe()
        bq, bk = observe.blocks or (1, 1)
        sizes = {"b": B, "h": Hq, "q": Lq, "k": Lk, "x": -(-Lq // bq), "y": -(-Lk // bk)}
        sizes |= {"r": len(indices(observe.rows)), "p": len(indices(observe.pairs))}
        width = {"output": Dv, "top_weights": observe.top, "top_keys": observe.top}
        if observe.features is not None:
            width["features"] = observe.features.shape[1]
        dtype = {"output": tensors[0].dtype, **dict.fromkeys(("top_keys", "received_by", "block_pairs"), torch.int64)}
        real = reference.accumulator(tensors[0].dtype)
        return [
            ([width[name] if axis == "." else sizes[axis] for axis in axes], dtype.get(name, real))
            for name, axes in zip(("output", "logsumexp", *self.observed), self.output_axes, strict=True)
        ]

    def compute(self, chunk: Chunk, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        asked = {self.observed[n - 2] for n in which if n >= 2}
        observe = self._observed_of(chunk, asked) if asked else None
        result = reference.forward(self.call(tensors).replace(part=chunk.part, observe=observe))
        if torch.is_grad_enabled() and not result.output.requires_grad and any(t.requires_grad for t in tensors):
            raise RuntimeError("derivatives were asked for where autograd is switched off; they would all be zero.")
        found = {} if result.observations is None else result.observations.seen()
        if "top_keys" in found:
            found["top_keys"] = torch.where(found["top_keys"] < 0, -1, found["top_keys"] + chunk.part.keys.start)
        first = (result.output, result.logsumexp)
        return [first[n] if n < 2 else found[self.observed[n - 2]] for n in which]

    def _observed_of(self, chunk: Chunk, asked: set[str]) -> Observe:
        """The observations asked for, in the chunk's own numbers of queries and keys."""
        whole, queries, keys = self.template.observe or Observe(), chunk.part.queries, chunk.part.keys
        rows, pairs = indices(whole.rows)[chunk.slices["r"]], indices(whole.pairs)[chunk.slices["p"]]
        return Observe(
            max_score="max_score" in asked,
            max_weight="max_weight" in asked,
            entropy="entropy" in asked,
            distance="distance" in asked,
            top=whole.top if "top_keys" in asked or "top_weights" in asked else 0,
            received="received" in asked or "received_by" in asked,
            features=whole.features[keys] if whole.features is not None and "features" in asked else None,
            rows=tuple(i - queries.start for i in rows) if "rows" in asked else None,
            pairs=tuple((i - queries.start, j - keys.start) for i, j in pairs) if "pairs" in asked else None,
            blocks=whole.blocks if "blocks" in asked or "block_pairs" in asked else None,
        )

    def evaluate(self, tensors: Tensors) -> Tensors:
        """The outputs, computed by the backend."""
        if self.backend is reference:
            return super().evaluate(tensors)
        call, self.pending = self.pending or self.call(tensors), None
        result = self.backend.forward(call)
        self.keep_lowered(call)
        assert result.logsumexp is not None
        if result.observations is None:
            return result.output, result.logsumexp
        return result.output, result.logsumexp, *result.observations.seen().values()


class VJP(ChunkedFunction):
    """Backward mode, vector-Jacobian products: ``(tensors, saved, cotangents) -> gradients``.

    The ``saved`` output and logsumexp, which the backward pass of a backend takes, are inputs only where ``inner`` is
    an `Attention`.

    Args:
        inner: the function that is differentiated.
        outputs: those outputs of ``inner`` that have cotangents.
        inputs: those inputs of ``inner`` whose gradients are computed.
    """

    def __init__(self, inner: ChunkedFunction, outputs: tuple[int, ...], inputs: tuple[int, ...]) -> None:
        self.inner, self.outputs, self.inputs = inner, outputs, inputs
        self.attention = inner.attention
        self.saved = 2 if isinstance(inner, Attention) else 0
        self.first_cotangent = len(inner.input_axes) + self.saved
        self.differentiable_outputs = range(len(inputs))

    @cached_property
    def input_axes(self) -> tuple[str, ...]:  # type: ignore[override]
        axes = self.inner.output_axes
        return (*self.inner.input_axes, *axes[: self.saved], *[axes[n] for n in self.outputs])

    @cached_property
    def output_axes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple([self.inner.input_axes[n] for n in self.inputs])

    def differentiable(self, n: int) -> bool:
        first = self.first_cotangent
        return n >= first or (n < first - self.saved and self.inner.differentiable(n))

    def specs(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        return [(tensors[n].shape, tensors[n].dtype) for n in self.inputs]

    def compute(self, chunk: Chunk, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = _leaves(tensors, [self.inputs[n] for n in which])
            outputs = self.inner.compute(chunk, inputs[: len(self.inner.input_axes)], self.outputs)
            live = [
                (output, cotangent)
                for output, cotangent in zip(outputs, tensors[self.first_cotangent :], strict=True)
                if output is not None and output.requires_grad
            ]
            if not live:
                return [None for _ in which]
            return torch.autograd.grad(
                [output for output, _ in live], [inputs[self.inputs[n]] for n in which],
                [cotangent for _, cotangent in live], create_graph=again, allow_unused=True,
            )  # fmt: skip

    def evaluate(self, tensors: Tensors) -> Tensors:
        """The gradients, computed by the backend where it has a backward pass for them."""
        found = self._by_backend(tensors)
        return super().evaluate(tensors) if found is None else found

    def _by_backend(self, tensors: Tensors) -> Tensors | None:
        attention = self.attention
        if self.inner is not attention or max(self.outputs) > 1 or not tracing.readable(tensors[0]):
            return None
        call = attention.call(tensors)
        backend = differentiable(attention.backend)
        if backend is None or backend.reasons_against_backward(call):
            return None
        first = self.first_cotangent
        output, logsumexp = tensors[first - 2 : first]
        cotangents = dict(zip(self.outputs, tensors[first:], strict=True))
        grad_output = cotangents[0] if 0 in cotangents else torch.zeros_like(output)
        wanted = tuple([n in self.inputs for n, axes in enumerate(attention.input_axes) if axes])
        found = backend.backward(call, output, logsumexp, grad_output, cotangents.get(1), wanted)
        attention.keep_lowered(call)
        return tuple([gradient for n in self.inputs if (gradient := found[n]) is not None])


class JVP(ChunkedFunction):
    """Forward mode, Jacobian-vector products: ``(tensors, tangents) -> tangents`` of the differentiable outputs.

    Args:
        inner: the function that is differentiated.
        inputs: those inputs of ``inner`` that have tangents.
    """

    def __init__(self, inner: ChunkedFunction, inputs: tuple[int, ...]) -> None:
        self.inner, self.inputs = inner, inputs
        self.attention = inner.attention
        self.outputs = inner.differentiable_outputs
        self.input_axes = (*inner.input_axes, *[inner.input_axes[n] for n in inputs])
        self.output_axes = tuple([inner.output_axes[n] for n in self.outputs])
        self.differentiable_outputs = range(len(self.outputs))

    def differentiable(self, n: int) -> bool:
        return n >= len(self.inner.input_axes) or self.inner.differentiable(n)

    def specs(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        specs = self.inner.specs(tensors)
        return [specs[n] for n in self.outputs]

    def compute(self, chunk: Chunk, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        """The tangents of one chunk.

        Backward mode is linear in its cotangents ``u``: the gradient of ``<gradients(u), tangents>`` with respect to
        ``u`` are the tangents of the outputs. This needs no second mechanism, and nests.
        """
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = _leaves(tensors, self.inputs)
            outputs = self.inner.compute(chunk, inputs[: len(self.inner.input_axes)], [self.outputs[n] for n in which])
            live = {n: o for n, o in enumerate(outputs) if o is not None and o.requires_grad}
            if not live:
                return [None for _ in which]
            u = [torch.zeros_like(o).requires_grad_() for o in live.values()]
            gradients = torch.autograd.grad(
                list(live.values()), [inputs[n] for n in self.inputs], u, create_graph=True, allow_unused=True
            )
            tangents = tensors[len(self.inner.input_axes) :]
            pairs = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None]
            found = torch.autograd.grad(
                [g for g, _ in pairs], u, [t for _, t in pairs], create_graph=again, allow_unused=True
            )
        pushed = dict(zip(live, found, strict=True))
        return [pushed.get(n) for n in range(len(which))]


def _leaves(tensors: Tensors, wanted: Sequence[int]) -> Tensors:
    """The tensors, those ``wanted`` made to require gradients where they do not."""
    leaves = list(tensors)
    for n in wanted:
        if not leaves[n].requires_grad:
            leaves[n] = leaves[n].detach().requires_grad_()
    return tuple(leaves)


_QKV = ("bhq.", "bgk.", "bgk.")


def _axes_of_inputs(call: Call, count: int) -> tuple[str, ...]:
    """The axes of query, key, value and operands; the other tensors, up to ``count``, have none."""
    axes = [*_QKV] if call.sink is None else [*_QKV, "h"]
    for description in (*call.scores, call.compare):
        if description is not None:
            axes += [description.letters] * len(description.tensors())
    return (*axes, *[""] * (count - len(axes)))
