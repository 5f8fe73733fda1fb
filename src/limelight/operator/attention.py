"""The operator: check, choose, run.

One mechanism: a query is compared with keys, the comparison becomes weights by a softmax, the weights mix values.
Self, causal, cross, multi-head, multi-query, grouped-query, windowed, packed, block-sparse, biased and additive
attention are settings of it (*what*); a backend computes it (*how*); observations are what is *seen* on the way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..forms.layouts import Layout
from ..forms.observations import Observations, Observe, current_watcher
from ..forms.patterns import Pattern
from ..forms.quantized import Quantized
from ..forms.scores import Comparison, ScoreRule
from ..forms.settings import Settings, SettingsButObserve
from ..tensors import tracing
from ..tensors.shapes import describe, wrong
from . import compiled
from .calling import autocast, prepare, run, with_batch
from .keywords import unexpected

if TYPE_CHECKING:
    from typing_extensions import Never, Unpack


@overload
def attention(
    query: Tensor,
    key: Tensor | Quantized,
    value: Tensor | Quantized,
    *,
    observe: None = None,
    backend: str | None = None,
    name: str | None = None,
    **settings: Unpack[SettingsButObserve],
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor | Quantized,
    value: Tensor | Quantized,
    *,
    observe: Observe,
    backend: str | None = None,
    name: str | None = None,
    **settings: Unpack[SettingsButObserve],
) -> tuple[Tensor, Observations]: ...


@overload
def attention(
    query: Tensor,
    key: Tensor | Quantized,
    value: Tensor | Quantized,
    *,
    observe: Observe | None,
    backend: str | None = None,
    name: str | None = None,
    **settings: Unpack[SettingsButObserve],
) -> Tensor | tuple[Tensor, Observations]: ...


def attention(
    query: Tensor,
    key: Tensor | Quantized,
    value: Tensor | Quantized,
    *,
    layout: Layout | None = None,
    pattern: Pattern | None = None,
    compare: Comparison | None = None,
    scores: Sequence[ScoreRule] = (),
    sink: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    observe: Observe | None = None,
    backend: str | None = None,
    name: str | None = None,
    **unknown: Never,
) -> Tensor | tuple[Tensor, Observations]:
    """Exact attention: ``out_i = sum_j softmax_j(s_ij) v_j`` over the keys ``j`` that query ``i`` sees.

    In order: ``s = compare(q, k)``, each score rule, layout and pattern (a key that is not seen does not exist),
    softmax with the sink in its denominator, dropout, times ``v``. The definition is `limelight.backends.reference`.

    A row is a function of what it sees and of nothing else; a query that sees nothing gives zeros. Products
    accumulate in float32 (float64 for float64).

    Args:
        query: ``(B, Hq, Lq, D)``, or all three without ``B``; any strides with the last one 1.
        key: ``(B, Hkv, Lk, D)``, where ``Hq`` is a multiple of ``Hkv`` (grouped-query attention); or of 8 bits
            (`limelight.Quantized`).
        value: ``(B, Hkv, Lk, Dv)``, or of 8 bits.
        layout: the positions of tokens and which exist (`limelight.forms.layouts`); ``None`` is ``Aligned()``: the last
            query has the position of the last key.
        pattern: which keys a query may see (`limelight.forms.patterns`); ``None`` is ``Full()``.
        compare: ``None`` for the dot product, or a `Comparison` of `limelight.forms.scores`, such as `Additive`.
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
        TypeError: a keyword that is not among these; the message says what those of other libraries are called here.
        torch.OutOfMemoryError: the system has no memory for the result or for the scratch of a kernel.

    Example:
        >>> import torch, limelight
        >>> q = k = v = torch.eye(4).reshape(1, 1, 4, 4)
        >>> limelight.attention(q, k, v, pattern=limelight.Causal()).shape
        torch.Size([1, 1, 4, 4])
    """
    if unknown:
        raise unexpected("attention", unknown, "backend", "name")
    settings = Settings(sink, scores, compare, layout, pattern, scale, dropout, seed, observe)
    if not isinstance(query, Tensor) or query.dim() == 3:
        found = _of_other_inputs(query, key, value, {"backend": backend, "name": name, **settings.__dict__})
        if found is not None:
            return found
    if name is not None and not isinstance(name, str):
        way_out = "It names the layer for limelight.watching."
        raise wrong("name", "must be a string", f"it is {describe(name)}", way_out)
    seen_by = tracing.seen_by(query)
    watcher = current_watcher(bool(seen_by) and seen_by is not tracing.MODE)
    if watcher is not None:
        settings = settings.replace(observe=_watched(observe, watcher.request(name, query, *_dense(query, key))))
    only_watched = watcher is not None and observe is None
    if isinstance(layout, Layout) and layout.spread:
        tensors = autocast(query, *_dense(query, key, value))  # before they are sent
        output, observations = _over_ranks(*tensors, settings, backend, seen_by, only_watched)
    else:
        output, observations = _computed(query, key, value, settings, backend, seen_by, only_watched)
    if watcher is not None:
        if observations is not None:
            watcher.add(name, observations)
        dense_key, dense_value = _dense(query, key, value)
        output = watcher.replace(name, query, dense_key, dense_value, output)
    if observe is None:
        return output
    assert observations is not None
    return output, observations


def _computed(
    query: Tensor,
    key: Tensor | Quantized,
    value: Tensor | Quantized,
    settings: Settings,
    backend: str | None,
    seen_by: str,
    only_watched: bool,
) -> tuple[Tensor, Observations | None]:
    """Output and observations of a call on this process."""
    call = prepare(query, key, value, settings)
    if seen_by:
        call = call.dense()
    if only_watched:
        call = call.replace(only_watched=True)
    if seen_by and (seen_by is not tracing.MODE or compiled.is_one_operator(call, backend)):
        result = compiled.forward(call, backend, seen_by)
    else:
        result = run(call, backend)
    return result.output, result.observations


def _dense(query: Tensor, *tensors: Tensor | Quantized) -> Any:
    """Keys and values in the dtype of the query where they have 8 bits."""
    return [x.dense(query.dtype) if isinstance(x, Quantized) else x for x in tensors]


def _over_ranks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    settings: Settings,
    backend: str | None,
    seen_by: str,
    only_watched: bool,
) -> tuple[Tensor, Observations | None]:
    """The same under a layout that is `Layout.spread`: this process's own calls, each of consecutive heads, joined."""
    assert settings.layout is not None
    calls, join = settings.layout.localized(query, key, value, settings)
    found = []
    for call in calls:
        keys, values = call.gathered()
        found.append(_computed(call.query, keys, values, call.settings, backend, seen_by, only_watched))
    output = found[0][0] if len(found) == 1 else torch.cat([one for one, _ in found], 1)
    return output, None if settings.observe is None else join([seen for _, seen in found])


def _of_other_inputs(
    query: Any, key: Any, value: Any, others: dict[str, Any]
) -> Tensor | tuple[Tensor, Observations] | None:
    """`attention` of three ``(H, L, D)`` tensors, or of what stands for tensors; ``None`` where it must be refused."""
    again: Any = attention
    if has_torch_function((query, key, value)):  # torch.fx.symbolic_trace
        return handle_torch_function(again, (query, key, value), query, key, value, **others)  # type: ignore[no-any-return]
    if not isinstance(query, Tensor) or query.is_nested:
        return None
    result = again(*with_batch(query, key, value), **others)
    return result[0] if isinstance(result, Tensor) else (result[0][0], result[1].map(lambda tensor: tensor[0]))


def _watched(own: Observe | None, watched: Observe) -> Observe:
    """The observations of the caller and the watcher together; where both set a field, the caller's value is used."""
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
