"""The operator: check, choose, run.

One mechanism: a query is compared with keys, the comparison becomes weights by a softmax, the weights mix values.
Self, causal, cross, multi-head, multi-query, grouped-query, windowed, packed, block-sparse, biased and additive
attention are settings of it (*what*); a backend computes it (*how*); observations are what is *seen* on the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from ..backends import BACKENDS, choose, passed_over, reference
from ..backends.contract import BackendError, Call, Result, operands
from ..forms.layouts import Layout
from ..forms.observations import Observations, Observe, current_watcher
from ..forms.patterns import Pattern
from ..forms.scores import Additive, ScoreRule
from ..tensors import tracing
from ..tensors.shapes import (
    check_dropout,
    check_seed,
    check_sink,
    check_tensor,
    describe,
    number,
    read_shapes,
    sequence,
    wrong,
)
from ..tensors.torch_internals import are_transforms_active, in_forward_mode, is_any_autocast_enabled
from . import compiled, derivatives


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout | None = None,
    pattern: Pattern | None = None,
    compare: Additive | None = None,
    scores: Sequence[ScoreRule] = (),
    sink: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    observe: Observe | None = None,
    backend: str | None = None,
    name: str | None = None,
) -> Tensor | tuple[Tensor, Observations]:
    """Exact attention: ``out_i = sum_j softmax_j(s_ij) v_j`` over the keys ``j`` that query ``i`` sees.

    In order: ``s = compare(q, k)``, each score rule, layout and pattern (a key that is not seen does not exist),
    softmax with the sink in its denominator, dropout, times ``v``. The definition is `limelight.backends.reference`.

    A row is a function of what it sees and of nothing else; a query that sees nothing gives zeros. Products
    accumulate in float32 (float64 for float64).

    Args:
        query: ``(B, Hq, Lq, D)``, or all three without ``B``; any strides with the last one 1.
        key: ``(B, Hkv, Lk, D)``, where ``Hq`` is a multiple of ``Hkv`` (grouped-query attention).
        value: ``(B, Hkv, Lk, Dv)``.
        layout: the positions of tokens and which exist (`limelight.forms.layouts`); ``None`` is ``Aligned()``: the last
            query has the position of the last key.
        pattern: which keys a query may see (`limelight.forms.patterns`); ``None`` is ``Full()``.
        compare: ``None`` for the dot product, or `limelight.forms.scores.Additive`.
        scores: score rules in order (`limelight.forms.scores`).
        sink: ``(Hq,)`` logit of each head that takes weight and gives no value.
        scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        dropout: probability in ``[0, 1)`` with which a weight is dropped, the others divided by ``1 - dropout``.
        seed: of the dropout, an int or an int64 tensor; by default drawn from torch's generator.
        observe: what to see of the weights (`Observe`); the result is then ``(output, Observations)``.
        backend: ``None`` for the fastest that can serve the call; a named one is never replaced.
        name: of the layer that calls, for `limelight.watching`.

    Returns:
        ``(B, Hq, Lq, Dv)`` in the dtype of the query, and `Observations` when asked for.

    Raises:
        ArgumentError: an argument breaks a rule.
        BackendError: the named backend cannot serve the call.
        torch.OutOfMemoryError: the system has no memory for the result or for the scratch of a kernel.

    Example:
        >>> import torch, limelight
        >>> q = k = v = torch.eye(4).reshape(1, 1, 4, 4)
        >>> limelight.attention(q, k, v, pattern=limelight.Causal()).shape
        torch.Size([1, 1, 4, 4])
    """
    if not isinstance(query, Tensor) or query.dim() == 3:
        settings: dict[str, Any] = {
            "layout": layout, "pattern": pattern, "compare": compare, "scores": scores, "sink": sink, "scale": scale,
            "dropout": dropout, "seed": seed, "observe": observe, "backend": backend, "name": name,
        }  # fmt: skip
        if has_torch_function((query, key, value)):  # torch.fx.symbolic_trace
            return handle_torch_function(attention, (query, key, value), query, key, value, **settings)
        if isinstance(query, Tensor) and not query.is_nested:
            return _unbatched(query, key, value, settings)
    if name is not None and not isinstance(name, str):
        way_out = "It names the layer for limelight.watching."
        raise wrong("name", "must be a string", f"it is {describe(name)}", way_out)
    seen_by = tracing.seen_by(query)
    watcher = current_watcher(bool(seen_by) and seen_by is not tracing.MODE)
    call = prepare(
        query, key, value, layout, pattern, compare, scores, sink, scale, dropout, seed,
        observe if watcher is None else _watched(observe, watcher.observe),
    )  # fmt: skip
    call.only_watched = observe is None
    if seen_by and (seen_by is not tracing.MODE or compiled.is_one_operator(call, backend)):
        result = compiled.forward(call, backend, seen_by)
    else:
        result = run(call, backend)
    if watcher is not None and result.observations is not None:
        watcher.add(name, result.observations)
    if observe is None:
        return result.output
    assert result.observations is not None
    return result.output, result.observations


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout | None = None,
    pattern: Pattern | None = None,
    compare: Additive | None = None,
    scores: Sequence[ScoreRule] = (),
    sink: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    observe: Observe | None = None,
) -> Call:
    """Check every argument and fill in the defaults; tensors are ``(B, H, L, D)``."""
    if is_any_autocast_enabled() and torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        if query.dtype != torch.float64:
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    shapes = read_shapes(query, key, value)
    if scale is None:
        scale = 1.0 / math.sqrt(shapes.D)
    elif type(scale) is not float or not -math.inf < scale < math.inf:
        scale = number("scale", scale, "must be a finite number", "None is 1 / sqrt(D).")
    call = Call(query, key, value, shapes, scale, layout, pattern, compare, (), sink, 0.0, 0, observe)
    if layout is not None:
        _check_type("layout", layout, Layout, "limelight.forms.layouts")
        _check_numbers("layout", layout.tensors(), query)
        layout.check(shapes.B, shapes.Lq, shapes.Lk)
    if pattern is not None:
        _check_type("pattern", pattern, Pattern, "limelight.forms.patterns")
        _check_numbers("pattern", pattern.tensors(), query)
        pattern.check(*shapes.scores)
    if compare is not None:
        _check_type("compare", compare, Additive, "limelight.forms.scores")
        compare.check(shapes)
        _check_device("compare", compare, query)
        call.scale = 1.0  # it has none
    if scores != ():
        call.scores = _check_scores(scores, call)
    if sink is not None:
        check_sink(sink, query, shapes)
    if seed is not None:
        check_seed(seed)
        if isinstance(seed, Tensor):
            _check_numbers("seed", (seed,), query)
    if type(dropout) is not float or dropout:
        call.dropout = check_dropout(dropout)
    if call.dropout:
        # torch's generator, so that manual_seed and activation checkpointing mean what they say
        call.seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu") if seed is None else seed
    if observe is not None:
        _check_type("observe", observe, Observe, "limelight")
        _check_numbers("observe", observe.tensors(), query)
        observe.check(shapes)
    return call


def merge(outputs: Sequence[Tensor], logsumexps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The exact union of attention over disjoint sets of keys.

    With ``L = log sum_n exp(L_n)``: ``out = sum_n exp(L_n - L) out_n``. Differentiable in everything. A sink may be
    part of one of the calls only.

    Args:
        outputs: ``(..., Lq, Dv)`` each.
        logsumexps: ``(..., Lq)`` each, from ``observe=Observe(logsumexp=True)``.

    Returns:
        ``(output, logsumexp)`` of the whole; a query that saw nothing anywhere has zeros and ``-inf``.
    """
    what = "a sequence of tensors, one for each set of keys"
    outputs = [check_tensor("outputs", x) for x in sequence("outputs", outputs, what, "merge([a, b], [la, lb])")]
    logsumexps = [
        check_tensor("logsumexps", x) for x in sequence("logsumexps", logsumexps, what, "merge([a, b], [la, lb])")
    ]
    if len(outputs) == 0 or len(outputs) != len(logsumexps):
        got = f"there are {len(outputs)} outputs and {len(logsumexps)} logsumexps"
        raise wrong("logsumexps", "must be as many as `outputs`, at least one", got, "Ask for Observe(logsumexp=True).")
    for output, part in zip(outputs, logsumexps, strict=True):
        if output.shape[:-1] != part.shape or output.shape != outputs[0].shape:
            got = f"an output of shape {tuple(output.shape)} has one of {tuple(part.shape)}"
            raise wrong(
                "logsumexps", "must have the shape of their output without its width", got, "Do not reduce them."
            )
    parts = torch.stack(list(logsumexps))  # (N, ..., Lq)
    most = parts.detach().amax(0)
    most = torch.where(most == -torch.inf, 0.0, most)
    shares = torch.where(parts == -torch.inf, 0.0, torch.exp(parts - most))
    total = shares.sum(0)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    logsumexp = torch.where(empty, -torch.inf, most + torch.log(total))
    shares = (shares / total)[..., None]
    stacked = torch.stack(list(outputs)).to(shares.dtype)
    # A part that saw nothing is selected away: its share is no factor.
    output = torch.where(shares == 0, 0.0, shares * torch.where(shares == 0, 0.0, stacked)).sum(0)
    return output.to(outputs[0].dtype), logsumexp


@dataclass(frozen=True)
class Explanation:
    """How a call would be computed, and why; printed, it says so in words."""

    backend: str | None
    gradients: str  # how derivatives are taken, when any are wanted
    reasons: dict[str, list[str]]
    about: dict[str, str]
    pairs: int
    all_pairs: int
    form: str
    memory: int
    score_memory: int

    def __str__(self) -> str:
        share = self.pairs / self.all_pairs if self.all_pairs else 0.0
        lines = [
            f"backend: {self.backend} ({self.about[self.backend]})" if self.backend else "backend: none can serve this",
            f"pairs:   {self.pairs:,} of {self.all_pairs:,} (query, key) pairs are seen ({share:.1%}), as {self.form}",
            f"memory:  about {self.memory / 2**20:,.1f} MiB beside inputs and outputs"
            f" (the whole score matrix would be {self.score_memory / 2**20:,.1f} MiB)",
        ]
        lines += [f"derivatives: {self.gradients}"] if self.gradients else []
        lines += [f"not {name}: {'; '.join(why)}" for name, why in self.reasons.items() if why]
        return "\n".join(lines)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: Layout | None = None,
    pattern: Pattern | None = None,
    compare: Additive | None = None,
    scores: Sequence[ScoreRule] = (),
    sink: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    observe: Observe | None = None,
    backend: str | None = None,
) -> Explanation:
    """Which backend would run a call of `attention`, why each other one would not, and what the call costs."""
    if isinstance(query, Tensor) and query.dim() == 3 and not query.is_nested:
        query, key, value = _with_batch(query, key, value)
    call = prepare(
        query, key, value, layout, pattern, compare, scores, sink, scale, dropout, 0 if seed is None else seed, observe
    )
    call.traced = _looked_at(call)
    try:
        chosen = choose(call, backend)
    except BackendError:
        chosen = None
    B, Hq, Lq, Lk = call.shapes.scores
    return Explanation(
        backend=chosen.NAME if chosen else None,
        gradients=derivatives.explain(call, chosen) if chosen and call.traced else "",
        reasons={b.NAME: passed_over(call, b) for b in BACKENDS if b is not chosen},
        about={b.NAME: b.ABOUT for b in BACKENDS},
        pairs=call.lowered.pairs(),
        all_pairs=B * Hq * Lq * Lk,
        form=call.lowered.form,
        memory=derivatives.memory(call, chosen) + call.lowered.bytes if chosen else 0,
        score_memory=B * Hq * Lq * Lk * max(4, call.query.dtype.itemsize),
    )


def _unbatched(
    query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]
) -> Tensor | tuple[Tensor, Observations]:
    """`attention` of three ``(H, L, D)`` tensors."""
    result = attention(*_with_batch(query, key, value), **settings)
    if isinstance(result, Tensor):
        return result[0]
    return result[0][0], result[1].map(lambda tensor: tensor[0])


def _with_batch(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three ``(H, L, D)`` tensors as a batch of one row."""
    for which, tensor in (("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 3:
            got = f"its shape is {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else f"it is {tensor!r}"
            raise wrong(which, "must have 3 dimensions (H, L, D) like `query`", got, "Or give all three a batch.")
    return query[None], key[None], value[None]


def run(call: Call, name: str | None) -> Result:
    """By the first door, straight to the backend of that name, or by the second, where PyTorch may take derivatives.

    The definition needs none while it is small; a long call of it is computed a run of queries at a time.
    """
    call.traced = _looked_at(call)
    backend = choose(call, name)
    if derivatives.whole(call) if backend is reference else not call.traced:
        return backend.forward(call)
    return derivatives.forward(call, backend)


def _looked_at(call: Call) -> str:
    """Why the call goes through `limelight.operator.derivatives`; empty when it need not."""
    if are_transforms_active():
        return "the call stands inside a transform of torch.func"
    query, key, value, beside = call.query, call.key, call.value, operands(call)
    if torch.is_grad_enabled() and (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (beside and any(tensor.requires_grad for tensor in beside))
    ):
        return "a gradient is wanted"
    if in_forward_mode() and any(
        forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]
        for t in (query, key, value, *beside)
    ):
        return "a forward-mode derivative is wanted"
    return ""


def _watched(own: Observe | None, watched: Observe) -> Observe:
    """What the caller and the watcher want to see; the caller's own choice of anything comes first."""
    if own is None or own == watched:
        return watched
    if own.heads != watched.heads:
        raise wrong(
            "observe",
            "must look at the same heads as the watcher around the call",
            f"{own.heads} is not {watched.heads}",
            "Give both the same `heads`.",
        )
    fields = {
        f.name: getattr(own, f.name) or getattr(watched, f.name)
        for f in dataclasses.fields(Observe)
        if not isinstance(getattr(own, f.name), Tensor)
    }
    return dataclasses.replace(own, **fields)


def _check_type(name: str, value: object, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        way_out = f"See {where}."
        if isinstance(value, type):
            way_out = "An instance is needed, such as Causal(), not the class."
        elif isinstance(value, Tensor):
            way_out = _OF_TENSOR.get(name, way_out)
        raise wrong(name, f"must be a {kind.__name__}", f"it is {describe(value)}", way_out)


# What a tensor in the place of a description may have been meant for.
_OF_TENSOR = {
    "pattern": "A bool mask is limelight.Explicit(mask), a float one goes to scores=(limelight.Bias(mask),).",
    "layout": "A bool mask of the keys is limelight.KeyMask(mask), lengths are limelight.Padded or limelight.Packed.",
    "scores": "A tensor that is added to the scores is limelight.Bias(tensor).",
    "compare": "The vector of additive attention is limelight.Additive(vector).",
    "observe": "Features of the keys are limelight.Observe(features=tensor).",
}


def _check_scores(scores: Sequence[ScoreRule], call: Call) -> tuple[ScoreRule, ...]:
    if not isinstance(scores, (tuple, list)):
        way_out = _OF_TENSOR["scores"] if isinstance(scores, Tensor) else "Write (rule,) for a single one."
        raise wrong("scores", "must be a sequence of score rules", f"it is {describe(scores)}", way_out)
    for rule in scores:
        _check_type("scores", rule, ScoreRule, "limelight.forms.scores")
        rule.check(call.shapes)
        _check_device("scores", rule, call.query)
    return tuple(scores)


def _check_device(name: str, described: ScoreRule | Additive, query: Tensor) -> None:
    """Raise unless the tensors of an operand lie beside the query."""
    for tensor in described.tensors():
        if tensor.device != query.device:
            got = f"{described!r} lies on {tensor.device} and `query` on {query.device}"
            raise wrong(name, "must be on the device of `query`", got, "Move one with .to().")


def _check_numbers(name: str, tensors: tuple[Tensor, ...], query: Tensor) -> None:
    """Raise where the query has numbers and one of the ``tensors``, which may lie on any device, has none."""
    for tensor in tensors:
        if tensor.is_meta and not query.is_meta:
            got = f"{describe(tensor)} lies on {tensor.device} and `query` on {query.device}"
            raise wrong(name, "must hold numbers, as `query` does", got, "Make it on a device with memory.")
