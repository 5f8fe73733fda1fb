"""Derivatives of the operator, of every order, in memory that grows with the length.

A row of attention is a function of its own query and of what it sees. So a call is a sum over runs of queries, and so
is each of its derivatives: the gradient of the keys is the sum of what every run gives them. `Runwise` is such a
function, computed a run at a time by the definition (`limelight.backends.reference`), holding the scores of one run
only. Its derivatives are again such functions:

- `Attention`: ``tensors -> output, logsumexp, observations``, one call; its value may come from any backend;
- `Transposed`: ``(tensors, cotangents) -> gradients``, backward mode; its value may come from the backend too;
- `Pushed`: ``(tensors, tangents) -> tangents``, forward mode.

They nest, so ``Transposed(Transposed(...))`` is the double backward, ``Pushed(Transposed(...))`` a Hessian-vector
product, and so on. One `torch.autograd.Function`, `_Computed`, shows all of them to PyTorch. Sums are taken in float32
(float64 for float64) and rounded once, at the end.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backends import reference
from ..backends.contract import Backend, Call, Differentiable, Result, operands
from ..forms.coordinates import Part
from ..forms.lowering import Lowered
from ..forms.observations import Observations, Observe
from ..tensors import tracing
from ..tensors.shapes import PLAIN
from ..tensors.torch_internals import (
    add_batch_dim,
    are_transforms_active,
    has_storage,
    in_forward_mode,
    is_dynamo_imported,
    is_transform_tensor,
    legacy_vmap_level,
    remove_batch_dim,
)

#: Bytes of scores that a run may hold; about ten such arrays are alive while its gradient is taken.
MOST_SCORES = 4 * 2**20
#: Bytes of scores up to which the definition is computed whole.
WHOLE = 16 * 2**20
#: Scores from which on a run pays for looking at too many keys.
FEW_SCORES = 2**19

Tensors = tuple[Tensor, ...]
MaybeTensors = tuple[Tensor | None, ...]


def forward(call: Call, backend: Backend) -> Result:
    """Compute a call by ``backend`` so that PyTorch can differentiate it, to any order, under any transform."""
    asked = call.observe
    if asked is None and _is_plain(call) and _takes_gradients(backend) and not backend.reasons_against_backward(call):
        return Result(_Plain.apply(call, backend, call.query, call.key, call.value))  # type: ignore[no-untyped-call]
    if asked is not None:
        call.observe = _in_order(asked)
    tensors = _tensors(call)
    function = Attention(call, backend, tensors)
    if function.fixed:
        function.first = call
    output, logsumexp, *seen = computed(function, tensors)
    if asked is None:
        return Result(output, logsumexp)
    observations = Observations(**dict(zip(function.seen, seen, strict=True)))
    if asked.logsumexp:
        observations.logsumexp = logsumexp.detach() if call.only_watched else logsumexp
    return Result(output, logsumexp, _as_asked(observations, asked))


def explain(call: Call, backend: Backend) -> str:
    """How the derivatives of a call of ``backend`` are taken, in words."""
    reasons = _reasons_against_backward(call, backend)
    if not reasons:
        by = backend.backward_by(call) if hasattr(backend, "backward_by") else backend.NAME
        return f"gradients by {by}, others from the definition, a run of queries at a time"
    return f"from the definition, a run of queries at a time ({backend.NAME}: {'; '.join(reasons)})"


def _reasons_against_backward(call: Call, backend: Backend) -> list[str]:
    """Why ``backend`` does not take the gradients of a call itself; then they are taken from the definition."""
    if not _takes_gradients(backend):
        return ["it has no backward pass"]
    return backend.reasons_against_backward(call)


def _takes_gradients(backend: Backend) -> TypeGuard[Differentiable]:
    return hasattr(backend, "backward")


def whole(call: Call) -> bool:
    """Small enough for the definition to be computed and differentiated at once, by PyTorch alone."""
    return reference.score_bytes(call) <= WHOLE


def memory(call: Call, backend: Backend) -> int:
    """Bytes taken beside inputs, outputs and gradients."""
    score_bytes = reference.score_bytes(call)
    scores = score_bytes if backend is reference and whole(call) else min(MOST_SCORES, score_bytes)
    if backend is reference:
        return (12 if call.traced else 4) * scores
    return backend.memory(call) + (12 * scores if call.traced else 0)


# --- Runs -------------------------------------------------------------------------------------------------------------
#
# The dimensions of every tensor are named by letters, matched from the last one on: b batch row, h query head, g
# key-value head, q query, k key, r chosen row, p chosen pair, x and y blocks; a point for one that no run cuts.


class Run(NamedTuple):
    """A part of a call that is computed at once."""

    part: Part
    slices: dict[str, slice]  # for each letter

    def cut(self, tensor: Tensor, letters: str) -> Tensor:
        """This run's part of a tensor, a view; what is shared (a 1) stays whole."""
        index = [slice(None)] * tensor.dim()
        for back, letter in zip(range(1, tensor.dim() + 1), reversed(letters), strict=False):
            if letter in "rpxy" or (letter in "bhgqk" and tensor.shape[-back] != 1):
                index[-back] = self.slices[letter]
        return tensor[tuple(index)]


def runs(call: Call) -> Iterator[Run]:
    """The runs of a call, each with a range of keys outside of which its queries see nothing."""
    B, Hq, Hkv, Lq, Lk, D, _ = call.shapes
    group, observe = Hq // Hkv, call.observe or Observe()
    rows, pairs = list(_indices(observe.rows)), [i for i, _ in _indices(observe.pairs)]
    bq, bk = observe.blocks or (1, 1)

    def run(b: slice, g: slice, q: slice, k: slice) -> Run:
        part = Part(b, slice(g.start * group, g.stop * group), q, k)
        blocks = {"x": slice(q.start // bq, -(-q.stop // bq)), "y": slice(k.start // bk, -(-k.stop // bk))}
        chosen = {"r": _between(rows, q), "p": _between(pairs, q)}
        return Run(part, dict(zip("bhqk", part, strict=True)) | {"g": g} | blocks | chosen)

    few, most = FEW_SCORES, MOST_SCORES // reference.accumulator(call.query.dtype).itemsize
    if call.compare is not None:
        few, most = few // D, most // D
    if B * Hq * Lq * Lk <= min(few, most):
        yield run(slice(0, B), slice(0, Hkv), slice(0, Lq), slice(0, Lk))
        return
    # As many batch rows, or else key-value heads, as leave room for 64 queries.
    units = min(B * Hkv, max(1, most // (group * Lk * min(64, Lq))))
    batch, heads = (units // Hkv, Hkv) if units >= Hkv else (1, units)
    starts, ends = call.lowered.intervals_kept
    starts, ends = np.where(starts < ends, starts, Lk).min(0), np.where(starts < ends, ends, 0).max(0)  # (B | 1, Lq)
    if observe.pairs is not None:  # a chosen pair that is not seen must still be found
        starts, ends = np.zeros_like(starts), np.full_like(ends, Lk)
    for b in _steps(B, batch):
        mine = b if len(starts) > 1 else slice(0, 1)
        low, high = starts[mine].min(0), ends[mine].max(0)
        for g in _steps(Hkv, heads):
            width = (b.stop - b.start) * (g.stop - g.start) * group
            for q in _cuts(low, high, most // width, few // width):
                end = int(high[q].max())
                yield run(b, g, q, slice(min(int(low[q].min()), end), end))


def _steps(size: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, size)) for first in range(0, size, step)]


def _cuts(low: NDArray[np.int64], high: NDArray[np.int64], most: int, few: int) -> Iterator[slice]:
    """Runs of queries with at most ``most`` scores, and not many more than are seen unless they are ``few``."""
    seen = np.concatenate([[0], np.maximum(high - low, 0).cumsum()])
    Lq, first = len(low), 0
    while first < Lq:
        count = 1
        while first + count < Lq:
            last = min(first + 2 * count, Lq)
            area = (last - first) * max(0, int(high[first:last].max() - low[first:last].min()))
            if area > most or (area > few and area > 2 * (seen[last] - seen[first])):
                break
            count = last - first
        yield slice(first, first + count)
        first += count


def _between(places: list[int], queries: slice) -> slice:
    return slice(bisect.bisect_left(places, queries.start), bisect.bisect_left(places, queries.stop))


class Runwise:
    """A function of tensors that is a sum over runs: each run gives to a part of every output."""

    attention: Attention  # the call that it comes from; its tensors are the first ones
    takes: tuple[str, ...]  # letters of every input
    gives: tuple[str, ...]  # letters of every output
    smooth_outputs: Sequence[int]  # those that have derivatives

    def smooth(self, n: int) -> bool:
        """Whether there are derivatives with respect to an input."""
        raise NotImplementedError

    def compute(self, run: Run, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        """What one run gives to some of the outputs, of the parts of the inputs; ``None`` for nothing."""
        raise NotImplementedError

    def forms(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """Shape and dtype of every output."""
        raise NotImplementedError

    def evaluate(self, tensors: Tensors) -> Tensors:
        """The outputs, run by run."""
        call = self.attention.call(tensors)
        accumulator = reference.accumulator(call.query.dtype)
        forms = self.forms(tensors)
        totals: list[Tensor | None] = [None] * len(forms)
        for run in runs(call):
            parts = tuple(
                run.cut(t.detach(), letters).to(accumulator) if t.is_floating_point() else t
                for t, letters in zip(tensors, self.takes, strict=True)
            )
            for n, piece in enumerate(self.compute(run, parts, range(len(forms)))):
                if piece is not None:
                    total = totals[n]
                    if total is None:
                        total = totals[n] = torch.zeros(tuple(forms[n][0]), dtype=piece.dtype, device=piece.device)
                    run.cut(total, self.gives[n]).add_(piece)
        self.attention.keep(call)
        return tuple(
            torch.zeros(tuple(shape), dtype=dtype, device=call.query.device) if total is None else total.to(dtype)
            for total, (shape, dtype) in zip(totals, forms, strict=True)
        )


class Attention(Runwise):
    """A call without its tensors: ``(query, key, value, operands, others) -> (output, logsumexp, observations)``."""

    def __init__(self, call: Call, backend: Backend, tensors: Tensors) -> None:
        self.attention = self
        self.backend = backend
        self.shapes, self.scale, self.dropout = call.shapes, call.scale, call.dropout
        self.layout = None if call.layout is None else call.layout.hollow()
        self.pattern = None if call.pattern is None else call.pattern.hollow()
        self.compare = None if call.compare is None else call.compare.hollow()
        self.scores = tuple([rule.hollow() for rule in call.scores]) if call.scores else ()
        self.sink = call.sink is not None
        self.seed = None if isinstance(call.seed, Tensor) else call.seed
        self.observe, self.only_watched = call.observe, call.only_watched
        self.seen = () if call.observe is None else names(call.observe)
        self.takes = _QKV if len(tensors) == 3 else _letters(call, len(tensors))
        # Under a transform one call stands for several, whose tensors differ.
        self.fixed = not are_transforms_active()
        self.lowered: Lowered | None = None
        self.first: Call | None = None  # the call itself, until it is computed

    @cached_property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Runwise`."""
        return ("bhq.", "bhq", *[_SEEN[name] for name in self.seen])

    def smooth(self, n: int) -> bool:
        """See `Runwise`: query, key, value and the operands, which have letters."""
        return bool(self.takes[n])

    @cached_property
    def smooth_outputs(self) -> Sequence[int]:  # type: ignore[override]
        """See `Runwise`."""
        smooth = () if self.only_watched else _SMOOTH
        return [0, 1, *[n for n, name in enumerate(self.seen, 2) if name in smooth]]

    def call(self, tensors: Tensors, part: Part | None = None, observe: Observe | None = None) -> Call:
        """The call with its tensors, the first of those given; or one for a part of them."""
        query, key, value, *more = tensors
        rest = iter(more)
        sink = next(rest) if self.sink else None
        scores = tuple([rule.with_tensors(rest) for rule in self.scores])
        compare = None if self.compare is None else self.compare.with_tensors(rest)
        layout = None if self.layout is None else self.layout.with_tensors(rest)
        pattern = None if self.pattern is None else self.pattern.with_tensors(rest)
        seed = next(rest) if self.seed is None else self.seed
        call = Call(
            query, key, value, self.shapes, self.scale, layout, pattern, compare, scores, sink, self.dropout, seed,
            self.observe if part is None else observe, True, part or Part(),
        )  # fmt: skip
        call._lowered = self.lowered
        return call

    def keep(self, call: Call) -> None:
        """Keep the lowering of a call of this kind for the next one."""
        if self.fixed:
            self.lowered = call._lowered

    def forms(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """See `Runwise.forms`."""
        (B, Hq, _, Lq, Lk, _, Dv), observe = self.shapes, self.observe or Observe()
        bq, bk = observe.blocks or (1, 1)
        sizes = {"b": B, "h": Hq, "q": Lq, "k": Lk, "x": -(-Lq // bq), "y": -(-Lk // bk)}
        sizes |= {"r": len(_indices(observe.rows)), "p": len(_indices(observe.pairs))}
        width = {"output": Dv, "top_weights": observe.top, "top_keys": observe.top}
        if observe.features is not None:
            width["features"] = observe.features.shape[1]
        dtype = {"output": tensors[0].dtype, **dict.fromkeys(("top_keys", "received_by", "block_pairs"), torch.int64)}
        real = reference.accumulator(tensors[0].dtype)
        return [
            ([width[name] if letter == "." else sizes[letter] for letter in letters], dtype.get(name, real))
            for name, letters in zip(("output", "logsumexp", *self.seen), self.gives, strict=True)
        ]

    def compute(self, run: Run, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        """See `Runwise.compute`."""
        asked = {self.seen[n - 2] for n in which if n >= 2}
        call = self.call(tensors, run.part, self._observed_of(run, asked) if asked else None)
        result = reference.forward(call)
        if torch.is_grad_enabled() and not result.output.requires_grad and any(t.requires_grad for t in tensors):
            raise RuntimeError("derivatives were asked for where autograd is switched off; they would all be zero.")
        seen = {} if result.observations is None else result.observations.seen()
        if "top_keys" in seen:
            seen["top_keys"] = torch.where(seen["top_keys"] < 0, -1, seen["top_keys"] + run.part.keys.start)
        everything = {0: result.output, 1: result.logsumexp}
        return [everything[n] if n < 2 else seen[self.seen[n - 2]] for n in which]

    def _observed_of(self, run: Run, asked: set[str]) -> Observe:
        """What is asked for, as the run's part of the call numbers its queries and keys."""
        whole, queries, keys = self.observe or Observe(), run.part.queries, run.part.keys
        rows, pairs = _indices(whole.rows)[run.slices["r"]], _indices(whole.pairs)[run.slices["p"]]
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
        """The outputs, by the backend."""
        if self.backend is reference:
            return super().evaluate(tensors)
        call, self.first = self.first or self.call(tensors), None
        call.logsumexp = True
        result = self.backend.forward(call)
        self.keep(call)
        assert result.logsumexp is not None
        if result.observations is None:
            return result.output, result.logsumexp
        return result.output, result.logsumexp, *result.observations.seen().values()


class Transposed(Runwise):
    """Backward mode: ``(tensors, output and logsumexp, cotangents) -> gradients`` of some inputs of ``inner``.

    Output and logsumexp, which a backend may want, stand there only where ``inner`` is an `Attention`.
    """

    def __init__(self, inner: Runwise, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        self.inner, self.given, self.wanted = inner, given, wanted
        self.attention = inner.attention
        self.known = 2 if isinstance(inner, Attention) else 0
        self.first = len(inner.takes) + self.known  # where the cotangents begin
        self.smooth_outputs = range(len(wanted))

    @cached_property
    def takes(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Runwise`."""
        gives = self.inner.gives
        return (*self.inner.takes, *gives[: self.known], *[gives[n] for n in self.given])

    @cached_property
    def gives(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Runwise`."""
        return tuple([self.inner.takes[n] for n in self.wanted])

    def smooth(self, n: int) -> bool:
        """See `Runwise`."""
        return n >= self.first or (n < self.first - self.known and self.inner.smooth(n))

    def forms(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """See `Runwise.forms`."""
        return [(tensors[n].shape, tensors[n].dtype) for n in self.wanted]

    def compute(self, run: Run, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        """See `Runwise.compute`."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = _leaves(tensors, [self.wanted[n] for n in which])
            outputs = self.inner.compute(run, inputs[: len(self.inner.takes)], self.given)
            live = [
                (o, c) for o, c in zip(outputs, tensors[self.first :], strict=True) if o is not None and o.requires_grad
            ]
            if not live:
                return [None for _ in which]
            return torch.autograd.grad(
                [o for o, _ in live], [inputs[self.wanted[n]] for n in which], [c for _, c in live],
                create_graph=again, allow_unused=True,
            )  # fmt: skip

    def evaluate(self, tensors: Tensors) -> Tensors:
        """The gradients, by the backend where it takes them itself."""
        found = self._by_backend(tensors)
        return super().evaluate(tensors) if found is None else found

    def _by_backend(self, tensors: Tensors) -> Tensors | None:
        attention = self.attention
        if self.inner is not attention or max(self.given) > 1 or not tracing.readable(tensors[0]):
            return None
        call = attention.call(tensors)
        backend = attention.backend
        if not _takes_gradients(backend) or backend.reasons_against_backward(call):
            return None
        output, logsumexp = tensors[self.first - 2 : self.first]
        cotangents = dict(zip(self.given, tensors[self.first :], strict=True))
        grad_output = cotangents[0] if 0 in cotangents else torch.zeros_like(output)
        wanted = tuple([n in self.wanted for n, letters in enumerate(attention.takes) if letters])
        found = backend.backward(call, output, logsumexp, grad_output, cotangents.get(1), wanted)
        attention.keep(call)
        return tuple([gradient for n in self.wanted if (gradient := found[n]) is not None])


class Pushed(Runwise):
    """Forward mode: ``(tensors, tangents) -> tangents`` of the outputs of ``inner`` that have any."""

    def __init__(self, inner: Runwise, moved: tuple[int, ...]) -> None:
        self.inner, self.moved = inner, moved
        self.attention = inner.attention
        self.outputs = inner.smooth_outputs
        self.takes = (*inner.takes, *[inner.takes[n] for n in moved])
        self.gives = tuple([inner.gives[n] for n in self.outputs])
        self.smooth_outputs = range(len(self.outputs))

    def smooth(self, n: int) -> bool:
        """See `Runwise`."""
        return n >= len(self.inner.takes) or self.inner.smooth(n)

    def forms(self, tensors: Tensors) -> Sequence[tuple[Sequence[int], torch.dtype]]:
        """See `Runwise.forms`."""
        forms = self.inner.forms(tensors)
        return [forms[n] for n in self.outputs]

    def compute(self, run: Run, tensors: Tensors, which: Sequence[int]) -> Sequence[Tensor | None]:
        """See `Runwise.compute`.

        Backward mode is linear in its cotangents ``u``: the gradient of ``<gradients(u), tangents>`` with respect to
        ``u`` are the tangents of the outputs. This needs no second mechanism, and nests.
        """
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = _leaves(tensors, self.moved)
            outputs = self.inner.compute(run, inputs[: len(self.inner.takes)], [self.outputs[n] for n in which])
            live = {n: o for n, o in enumerate(outputs) if o is not None and o.requires_grad}
            if not live:
                return [None for _ in which]
            u = [torch.zeros_like(o).requires_grad_() for o in live.values()]
            gradients = torch.autograd.grad(
                list(live.values()), [inputs[n] for n in self.moved], u, create_graph=True, allow_unused=True
            )
            tangents = tensors[len(self.inner.takes) :]
            pairs = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None]
            found = torch.autograd.grad(
                [g for g, _ in pairs], u, [t for _, t in pairs], create_graph=again, allow_unused=True
            )
        pushed = dict(zip(live, found, strict=True))
        return [pushed.get(n) for n in range(len(which))]


def _leaves(tensors: Tensors, wanted: Sequence[int]) -> Tensors:
    """The tensors, those wanted so that gradients of them can be taken."""
    leaves = list(tensors)
    for n in wanted:
        if not leaves[n].requires_grad:
            leaves[n] = leaves[n].detach().requires_grad_()
    return tuple(leaves)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


class _Computed(torch.autograd.Function):
    """``(function, *tensors) -> outputs``, with every derivative and vmap."""

    @staticmethod
    def forward(function: Runwise, *tensors: Tensor) -> Tensors:
        return function.evaluate(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        function, *tensors = inputs
        ctx.function = function
        ctx.set_materialize_grads(False)
        if isinstance(function, Attention):
            tensors += output[:2]
            if function.seen:
                ctx.mark_non_differentiable(*[t for n, t in enumerate(output) if n not in function.smooth_outputs])
        ctx.save_for_backward(*tensors)
        if in_forward_mode():
            ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if _batched(grads):
            return _one_by_one(_Computed.backward, ctx, grads)
        function: Runwise = ctx.function
        given = tuple([n for n, grad in enumerate(grads) if grad is not None])
        needs = ctx.needs_input_grad[1:]
        wanted = tuple([n for n, needed in enumerate(needs) if needed and function.smooth(n)])
        found: dict[int, Tensor] = {}
        if given and wanted:
            transposed = Transposed(function, given, wanted)
            tensors = list(ctx.saved_tensors)
            if torch.is_grad_enabled():  # output and logsumexp are known, not differentiated
                for n in range(len(function.takes), len(tensors)):
                    tensors[n] = tensors[n].detach()
            cotangents = [grad for grad in grads if grad is not None]
            found = dict(zip(wanted, computed(transposed, (*tensors, *cotangents)), strict=True))
        return None, *[found.get(n) for n in range(len(needs))]

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if _batched(tangents):
            return _one_by_one(lambda ctx, *each: _Computed.jvp(ctx, None, *each), ctx, tangents)
        function: Runwise = ctx.function
        moved = tuple([n for n, t in enumerate(tangents) if t is not None and function.smooth(n)])
        pushed = Pushed(function, moved)
        tensors = ctx.saved_tensors[: len(function.takes)]
        found = computed(pushed, (*tensors, *[t for n, t in enumerate(tangents) if t is not None and n in moved]))
        tangent_of = dict(zip(pushed.outputs, found, strict=True))
        return tuple([tangent_of.get(n) for n in range(len(function.gives))])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Runwise, *tensors: Tensor) -> tuple[Tensors, Any]:
        N, B = info.batch_size, function.attention.shapes.B
        if _folds(function.attention):
            rows = [
                (t.expand(N, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
                for t, dim in zip(tensors, in_dims[1:], strict=True)
            ]
            outputs = computed(_folded(function, N), tuple(rows))
            return tuple([output.reshape(N, B, *output.shape[1:]) for output in outputs]), (0,) * len(outputs)
        # One after the other: masks, seeds and rules may differ, and a batch row's number is part of its dropout.
        each = [
            computed(
                function,
                tuple(t if dim is None else t.select(dim, n) for t, dim in zip(tensors, in_dims[1:], strict=True)),
            )
            for n in range(N)
        ]
        return tuple(torch.stack(outputs) for outputs in zip(*each, strict=True)), (0,) * len(function.gives)


def _folds(attention: Attention) -> bool:
    """Whether several calls are one call with as many times the rows: nothing in them tells rows apart."""
    return (
        attention.dropout == 0.0
        and not attention.seen
        and len(attention.takes) == 3
        and (attention.layout is None or attention.layout.uniform_over_batch)
        and (attention.pattern is None or attention.pattern.uniform_over_batch)
    )


def _folded(function: Any, times: int) -> Any:
    """The same function of as many times the rows."""
    new = copy.copy(function)
    if isinstance(function, Attention):
        new.shapes = function.shapes._replace(B=times * function.shapes.B)
        new.lowered, new.first, new.attention = None, None, new
    else:
        new.inner = _folded(function.inner, times)
        new.attention = new.inner.attention
    return new


class _ComputedEagerly(torch.autograd.Function):
    """The same without `torch.func`, in the form that costs a quarter of the time for each call."""

    @staticmethod
    def forward(ctx: Any, function: Runwise, *tensors: Tensor) -> Tensors:
        outputs = function.evaluate(tensors)
        _Computed.setup_context(ctx, (function, *tensors), outputs)
        return outputs

    backward = _Computed.backward
    jvp = _Computed.jvp


class _Plain(torch.autograd.Function):
    """``(call, backend, query, key, value) -> output`` of a call that `_is_plain`, the common one.

    The call itself, without its tensors, is all that is kept beside them, so a step costs half as much as by way of
    `Attention` and `Transposed`. Those compute what goes beyond the backend's own gradients.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, backend: Differentiable, *tensors: Tensor) -> Tensor:
        call.logsumexp = True
        result: Result = backend.forward(call)  # type: ignore[attr-defined]
        assert result.logsumexp is not None
        ctx.call, ctx.backend = call.of(_NOTHING, _NOTHING, _NOTHING), backend
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, result.output, result.logsumexp)
        return result.output

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        if _batched((grad,)):
            return _one_by_one(_Plain.backward, ctx, (grad,))
        query, key, value, output, logsumexp = ctx.saved_tensors
        if grad is None:
            return None, None, None, None, None
        call = ctx.call.of(query, key, value)
        needs = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or tracing.active() or in_forward_mode():
            function = Attention(call, ctx.backend, (query, key, value))
            wanted = tuple([n for n, needed in enumerate(needs) if needed])
            tensors = (query, key, value, output.detach(), logsumexp, grad)
            found = dict(zip(wanted, computed(Transposed(function, (0,), wanted), tensors), strict=True))
            return None, None, *[found.get(n) for n in range(3)]
        return None, None, *ctx.backend.backward(call, output, logsumexp, grad, None, needs)


_NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")


def _is_plain(call: Call) -> bool:
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


def _batched(tensors: Sequence[Tensor | None]) -> bool:
    """Whether some are batches of PyTorch's older vmap, which have no memory: those of ``is_grads_batched=True``,
    ``jacobian(vectorize=True)``, and of gradcheck.
    """
    for tensor in tensors:
        if tensor is not None and not has_storage(tensor):
            return tensor.layout is torch.strided and type(tensor) in PLAIN and not is_transform_tensor(tensor)
    return False


def _one_by_one(rule: Callable[..., Sequence[Any]], ctx: Any, tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """``rule(ctx, *tensors)`` of batches by PyTorch's older vmap: of each entry by itself. Neither the kernels nor
    the definition can read such a batch.

    Raises:
        RuntimeError: the batches are nested.
    """
    level = legacy_vmap_level()
    if level != 1:
        raise RuntimeError(
            "limelight.attention takes batched gradients of one level, but several is_grads_batched=True or "
            "jacobian(vectorize=True) are nested. Use torch.func.jacrev, or torch.func.vjp under torch.vmap."
        )
    size = next(len(remove_batch_dim(t, level, 1, 0)) for t in tensors if t is not None and _batched((t,)))
    entries = [None if t is None else remove_batch_dim(t, level, size, 0).unbind() for t in tensors]
    found = [rule(ctx, *[None if entry is None else entry[n] for entry in entries]) for n in range(size)]
    return tuple(
        [
            None if parts[0] is None else add_batch_dim(torch.stack(parts), 0, level)
            for parts in zip(*found, strict=True)
        ]
    )


def computed(function: Runwise, tensors: Tensors) -> Tensors:
    """The outputs, with derivatives where anybody may want them."""
    outputs: Tensors
    if are_transforms_active() or in_forward_mode():
        apply = _Computed.apply
        if is_dynamo_imported():  # a compiled function leaves transforms around it to us: no frame is traced
            apply = torch.compiler.disable(apply)  # type: ignore[no-untyped-call]
        outputs = apply(function, *tensors)  # type: ignore[no-untyped-call]
    elif torch.is_grad_enabled():
        outputs = _ComputedEagerly.apply(function, *tensors)  # type: ignore[no-untyped-call]
    else:
        outputs = function.evaluate(tensors)
    return outputs


# --- Calls and observations -------------------------------------------------------------------------------------------

#: Letters of every observation but the logsumexp, which is an output of its own.
_SEEN = {
    "max_score": "bhq", "max_weight": "bhq", "entropy": "bhq", "distance": "bhq", "top_weights": "bhq.",
    "top_keys": "bhq.", "received": "bhk", "received_by": "bhk", "features": "bhq.", "rows": "bhrk", "pairs": "bhp",
    "blocks": "bhxy", "block_pairs": "bhxy",
}  # fmt: skip
_SMOOTH = {"entropy", "rows", "pairs"}
_ASKED_BY = {"top_weights": "top", "top_keys": "top", "received_by": "received", "block_pairs": "blocks"}


def _tensors(call: Call) -> Tensors:
    """Every tensor of a call, in the order in which `Attention` takes them."""
    found: Tensors = (call.query, call.key, call.value, *operands(call))
    for description in (call.layout, call.pattern):
        if description is not None:
            found += description.tensors()
    return (*found, call.seed) if isinstance(call.seed, Tensor) else found


_QKV = ("bhq.", "bgk.", "bgk.")


def _letters(call: Call, count: int) -> tuple[str, ...]:
    letters = [*_QKV] if call.sink is None else [*_QKV, "h"]
    for description in (*call.scores, call.compare):
        if description is not None:
            letters += [description.letters] * len(description.tensors())
    return (*letters, *[""] * (count - len(letters)))


def names(observe: Observe) -> tuple[str, ...]:
    """The fields of `Observations` that are asked for, but the logsumexp."""
    asked = {name: getattr(observe, _ASKED_BY.get(name, name)) for name in _SEEN}
    return tuple(
        [name for name, value in asked.items() if value is not None and not (isinstance(value, int) and not value)]
    )


def _indices(chosen: Any) -> Any:
    return () if chosen is None else chosen


def _in_order(observe: Observe) -> Observe | None:
    """The same for all heads, with chosen rows and pairs in the order of the queries."""
    rows, pairs = observe.rows, observe.pairs
    observe = dataclasses.replace(
        observe,
        logsumexp=False,
        heads=None,
        rows=None if rows is None else tuple(sorted(torch.as_tensor(rows, device="cpu").reshape(-1).tolist())),
        pairs=None
        if pairs is None
        else tuple(sorted(map(tuple, torch.as_tensor(pairs, device="cpu").reshape(-1, 2).tolist()))),
    )
    return observe if names(observe) else None


def _as_asked(seen: Observations, asked: Observe) -> Observations:
    """Heads, rows and pairs as the caller asked for them."""
    if asked.rows is not None:
        assert seen.rows is not None
        rows = torch.as_tensor(asked.rows, device="cpu").reshape(-1).tolist()
        seen.rows = seen.rows[:, :, _places(rows)]
    if asked.pairs is not None:
        assert seen.pairs is not None
        pairs = [tuple(pair) for pair in torch.as_tensor(asked.pairs, device="cpu").reshape(-1, 2).tolist()]
        seen.pairs = seen.pairs[:, :, _places(pairs)]
    if asked.heads is None:
        return seen
    heads = list(asked.heads)
    return seen.map(lambda tensor: tensor if tensor.shape[1] == 1 else tensor[:, heads])


def _places(values: list[Any]) -> list[int]:
    """Where each of the values stands once they are sorted."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [0] * len(values)
    for place, n in enumerate(order):
        places[n] = place
    return places
