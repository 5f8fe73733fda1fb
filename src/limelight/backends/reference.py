"""The definition of attention, in plain tensor operations.

Everything else is tested against this file. It works in any float dtype, on any device and under every transform
of PyTorch, because it consists of operations that PyTorch differentiates. It holds every score; a long call is computed
a chunk at a time (`limelight.operator.derivatives`).

In order, for query ``i`` and key ``j`` of one head::

    s_ij = compare(q_i, k_j)                  # scale * q_i . k_j, or v . tanh(q_i + k_j)
    s_ij = rule(s_ij)                         # each score rule, in the given order
    seen = layout and pattern allow (i, j), and s_ij is not -inf
    lse_i = log(sum over seen of exp(s_ij) + exp(sink))
    p_ij = exp(s_ij - lse_i) where seen, else nothing
    out_i = sum over seen of dropout(p_ij) * v_j

"Nothing" is meant: what is not seen is selected away, never multiplied by zero, so NaN or infinity in a key, a value
or a gradient that a row does not see leaves that row as it is, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..forms.coordinates import Part, Where
from ..forms.layouts import Aligned
from ..forms.observations import Observations, Observe
from ..forms.philox import kept
from ..forms.scores import Additive
from ..tensors import tracing
from ..tensors.shapes import PLAIN, check_tensor
from ..tensors.torch_internals import are_transforms_active, has_storage
from .contract import Call, Result, check_local

NAME = "reference"
ABOUT = "the definition: plain tensor operations, a long call a chunk of queries at a time"


def reasons_against(call: Call) -> list[str]:
    """The reference serves every call whose tensors have memory of their own.

    Raises:
        ArgumentError: the memory of query, key or value was freed, or one of them is a `DTensor`.
    """
    for name, tensor in (("query", call.query), ("key", call.key), ("value", call.value)):
        if type(tensor) not in PLAIN:
            check_local(name, tensor)
        check_tensor(name, tensor)
    return []


def status() -> str:
    """That it is available, as on every machine."""
    return ABOUT


def score_bytes(call: Call) -> int:
    """Bytes of one score matrix; with `Additive`, of what it takes to compute it."""
    B, Hq, Lq, Lk = call.shapes.scores
    width = 1 if call.compare is None else call.shapes.D
    return B * Hq * Lq * Lk * width * accumulator(call.query.dtype).itemsize


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: scores, weights, and what lies between, are about four score matrices."""
    return 4 * score_bytes(call)


def forward(call: Call) -> Result:
    """Compute the call; or, where ``call.part`` names a part of one, that part."""
    dtype = accumulator(call.query.dtype)
    query, key, value = (x.to(dtype) for x in (call.query, call.key, call.value))
    key, value = _per_query_head(key, query.shape[1]), _per_query_head(value, query.shape[1])

    visible, at, document = _visibility(call)
    scores = _compare(query, key, visible, call.compare, call.scale)  # (B, Hq, Lq, Lk), 0 where not visible
    for rule in call.scores:
        scores = torch.where(visible, rule.apply(scores, at), 0.0)
    seen = visible & (scores != -torch.inf)
    scores = torch.where(seen, scores, -torch.inf)

    weights, logsumexp = _softmax(scores, seen, None if call.sink is None else call.sink.to(dtype))
    mixed = weights
    if call.dropout:
        documents = call.layout.documents if call.layout else 1
        row = at.batch * documents + document % documents
        seed = torch.as_tensor(call.seed, device=query.device, dtype=torch.int64)
        keep = kept(call.dropout, seed, row, at.head, at.query_position, at.key_position)
        mixed = torch.where(keep, weights / (1.0 - call.dropout), 0.0)
    output = mix(mixed, value, seen).to(call.query.dtype)

    observations = None
    if call.observe is not None:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not call.only_watched):
            observations = _observe(call.observe, scores, weights, logsumexp, seen, visible, at)
    return Result(output, logsumexp, observations)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """In what sums are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_query_head(tensor: Tensor, Hq: int) -> Tensor:
    """Each key-value head once for every query head of its group: ``(B, Hkv, L, D) -> (B, Hq, L, D)``."""
    return tensor.repeat_interleave(Hq // tensor.shape[1], dim=1)


def _visibility(call: Call) -> tuple[Tensor, Where, Tensor]:
    """``visible`` ``(B, Hq, Lq, Lk)`` by layout and pattern, the positions, and each query's document."""
    B, Hq, Lq, Lk = call.shapes.scores
    part = call.part
    coordinates = (call.layout or Aligned()).coordinates(B, Lq, Lk, call.query.device)
    at = Where.of(coordinates, B, Hq, part)
    visible = coordinates.together(part)
    if call.pattern is not None:
        visible = visible & call.pattern.allows(at)
    visible = visible.expand(*call.query.shape[:3], call.key.shape[2])
    return visible, at, part.of(coordinates.query_document[:, None, :, None])


def _compare(query: Tensor, key: Tensor, visible: Tensor, compare: Additive | None, scale: float) -> Tensor:
    """Scores before any rule, 0 where not visible."""
    if compare is None:
        return _scores(query, key, visible) * scale
    pairs = query[:, :, :, None, :] + key[:, :, None, :, :]  # (B, Hq, Lq, Lk, D)
    pairs = torch.tanh(torch.where(visible[..., None], pairs, 0.0))
    vector = compare.vector.to(query.dtype)
    scores = (pairs * vector[..., None, None, :].reshape(-1, 1, 1, vector.shape[-1])).sum(-1)
    return torch.where(visible, scores, 0.0)


def _softmax(scores: Tensor, seen: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights and logsumexp over what is seen and the sink; a row without either has weights 0 and logsumexp -inf."""
    Lk = scores.shape[-1]
    most = scores.detach().amax(-1, keepdim=True) if Lk else scores.new_full((*scores.shape[:-1], 1), -torch.inf)
    if sink is not None:
        sink = sink.reshape(1, -1, 1, 1)  # (1, Hq, 1, 1)
        most = torch.maximum(most, sink.detach())
    most = torch.where(most == -torch.inf, 0.0, most)
    parts = torch.where(seen, torch.exp(scores - most), 0.0)
    total = parts.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink - most)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    logsumexp = torch.where(empty, -torch.inf, most + torch.log(total))
    return parts / total, logsumexp.squeeze(-1)


def _observe(
    observe: Observe, scores: Tensor, weights: Tensor, logsumexp: Tensor, seen: Tensor, visible: Tensor, at: Where
) -> Observations:
    """Each field as `Observe` defines it."""
    distance = at.distance.abs().expand(scores.shape[0], 1, *scores.shape[-2:])
    if observe.heads is not None:
        heads = list(observe.heads)
        scores, weights, logsumexp, seen, visible = (x[:, heads] for x in (scores, weights, logsumexp, seen, visible))
    fixed = weights.detach()
    result = Observations()
    if observe.logsumexp:
        result.logsumexp = logsumexp
    if observe.max_score:
        result.max_score = _largest(scores.detach(), -torch.inf)
    if observe.max_weight:
        result.max_weight = _largest(fixed, 0.0)
    if observe.entropy:
        # Not by way of the logsumexp, whose rounding is as large as the entropy where scores are large. 0 log 0 is 0.
        result.entropy = -(weights * torch.where(weights == 0, 1.0, weights).log()).sum(-1)
    if observe.distance:
        result.distance = (fixed * distance).sum(-1)
    if observe.top:
        result.top_weights, result.top_keys = _top(fixed, seen, observe.top)
    if observe.received:
        result.received = fixed.sum(-2)
        result.received_by = visible.sum(-2)
    if observe.features is not None:
        result.features = fixed @ observe.features.detach().to(fixed)
    if observe.rows is not None:
        result.rows = weights[:, :, torch.as_tensor(observe.rows, device=weights.device, dtype=torch.int64)]
    if observe.pairs is not None:
        i, j = torch.as_tensor(observe.pairs, device=weights.device, dtype=torch.int64).reshape(-1, 2).unbind(-1)
        result.pairs = weights[:, :, i, j]
    if observe.blocks is not None:
        result.blocks = _block_sums(fixed, *observe.blocks, at.part)
        result.block_pairs = _block_sums(visible.to(torch.int64), *observe.blocks, at.part)
    return result


def _largest(tensor: Tensor, none: float) -> Tensor:
    return tensor.amax(-1) if tensor.shape[-1] else tensor.new_full(tensor.shape[:-1], none)


def _top(weights: Tensor, seen: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest seen weights, of equals the lowest key first; -1 and 0 where there are fewer."""
    ranked, keys = torch.where(seen, weights, -1.0).sort(dim=-1, descending=True, stable=True)
    ranked, keys = ranked[..., :k], keys[..., :k]
    missing = k - ranked.shape[-1]
    ranked, keys = (torch.nn.functional.pad(x, (0, max(missing, 0)), value=-1) for x in (ranked, keys))
    none = ranked == -1
    return torch.where(none, 0.0, ranked), torch.where(none, -1, keys)


def _block_sums(tensor: Tensor, bq: int, bk: int, part: Part) -> Tensor:
    # Blocks are counted from the first query and key of the whole call.
    query, key = (part.queries.start or 0) % bq, (part.keys.start or 0) % bk
    B, H, Lq, Lk = tensor.shape
    nq, nk = -(-(query + Lq) // bq), -(-(key + Lk) // bk)
    padded = torch.nn.functional.pad(tensor, (key, nk * bk - Lk - key, query, nq * bq - Lq - query))
    return padded.reshape(B, H, nq, bq, nk, bk).sum((3, 5))


# --- Two products in which what is not kept does not exist. -----------------------------------------------------------
#
# A matrix product multiplies what is not seen by zero, and 0 * NaN is NaN. These two select instead, and the
# derivatives of each are again these two, so the promise holds backward and in every higher derivative.


def _scores(a: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """``s_ij = a_i . b_j`` where kept, else 0. Shapes ``(..., I, D), (..., J, D), keep (..., I, J)``."""
    result: Tensor = (_Scores if torch.compiler.is_compiling() else _ScoresForward).apply(a, b, keep)  # type: ignore[no-untyped-call]
    return result


def mix(w: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """``o_i = sum over kept j of w_ij b_j``. Shapes ``(..., I, J), (..., J, D), keep (..., I, J)``."""
    result: Tensor = (_Mix if torch.compiler.is_compiling() else _MixForward).apply(w, b, keep)  # type: ignore[no-untyped-call]
    return result


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, b: Tensor, keep: Tensor) -> Tensor:
        return torch.where(keep, a @ b.mT, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*_kept(inputs, output))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, b, keep = ctx.saved_tensors
        return mix(grad, b, keep), mix(grad.mT, a, keep.mT), None


def _kept(inputs: tuple[Tensor, Tensor, Tensor], scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A pair whose score is -inf is not seen, so an infinity in its query or key reaches no gradient."""
    a, b, keep = inputs
    return a, b, keep & (scores != -torch.inf)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(w: Tensor, b: Tensor, keep: Tensor) -> Tensor:
        w = torch.where(keep, w, 0.0)
        finite = b.isfinite()
        # Under a transform or while tracing values cannot be read; then the general formula is always computed.
        if _can_read(b) and bool(finite.all()):
            return w @ b
        return w @ torch.where(finite, b, 0.0) + _spoils(w, b, keep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        w, b, keep = ctx.saved_tensors
        return _scores(grad, b, keep), mix(w.mT, grad, keep.mT), None


# The same with forward-mode derivatives and vmap, which torch.compile refuses to trace.


class _ScoresForward(_Scores):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*_kept(inputs, output))
        ctx.save_for_forward(*_kept(inputs, output))

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        a, b, keep = ctx.saved_tensors
        return _plus(da if da is None else _scores(da, b, keep), db if db is None else _scores(a, db, keep))


class _MixForward(_Mix):
    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, dw: Tensor | None, db: Tensor | None, _: None) -> Tensor:
        w, b, keep = ctx.saved_tensors
        return _plus(dw if dw is None else mix(dw, b, keep), db if db is None else mix(w, db, keep))


def _plus(first: Tensor | None, second: Tensor | None) -> Tensor:
    if first is None or second is None:
        only = second if first is None else first
        assert only is not None  # a jvp is asked for only when some input has a tangent
        return only
    return first + second


def _can_read(tensor: Tensor) -> bool:
    return (
        not are_transforms_active()
        and tensor.device.type == "cpu"
        and tracing.readable(tensor)
        and has_storage(tensor)  # a batch of PyTorch's older vmap has none
    )


def _spoils(w: Tensor, b: Tensor, keep: Tensor) -> Tensor:
    """0 where every kept ``b_j`` is finite; else what IEEE arithmetic makes of ``w_ij * b_j``: NaN or an infinity."""
    there = keep.to(w.dtype)
    nothing = ((w == 0) & keep).to(w.dtype)  # a kept weight of exactly 0 times infinity is NaN
    nan = (there @ b.isnan().to(w.dtype)) + (nothing @ b.isinf().to(w.dtype)) > 0
    signed = torch.where(b.isinf(), b.sign(), 0.0)
    up = w.clamp(min=0) @ signed.clamp(min=0) + w.clamp(max=0) @ signed.clamp(max=0) > 0
    down = w.clamp(min=0) @ signed.clamp(max=0) + w.clamp(max=0) @ signed.clamp(min=0) < 0
    zero = torch.zeros((), dtype=w.dtype, device=w.device)
    spoiled = torch.where(up, torch.inf, zero) + torch.where(down, -torch.inf, zero)
    return torch.where(nan, torch.nan, spoiled)
