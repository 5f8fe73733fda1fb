"""What all dispatch paths of the operator share: `prepare` checks a call, `run` computes it.

A call takes one of three paths:

- *direct*: to the kernel of a backend (`run`);
- *autograd*: through `limelight.operator.derivatives`, where PyTorch may take derivatives (`run`);
- *compiled*: through the registered operator, where something records operations (`limelight.operator.compiled`), which
  runs the call by one of the other two when the graph runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import choose, reference
from ..backends.contract import (
    Call,
    Result,
    Scales,
    check_local,
    reasons_against_eight_bits,
    reasons_against_pages,
)
from ..forms.descriptions import Description
from ..forms.layouts import Layout
from ..forms.observations import Observe
from ..forms.pages import Pages
from ..forms.patterns import Pattern
from ..forms.quantized import LARGEST, Quantized
from ..forms.scores import Additive, Comparison, ScoreRule
from ..forms.settings import Settings
from ..tensors.shapes import (
    FLOATS,
    PLAIN,
    ArgumentError,
    Shapes,
    check_dense,
    check_dropout,
    check_seed,
    check_sink,
    describe,
    is_lazy,
    number,
    read_shapes,
    wrong,
)
from ..tensors.torch_internals import (
    are_transforms_active,
    in_forward_mode,
    in_vmap_alone,
    is_any_autocast_enabled,
    vmap_level,
    vmap_samples,
)
from ..tensors.tracing import is_transformed, readable
from . import derivatives

_DEFAULTS = Settings()


def with_batch(query: Tensor, key: Any, value: Any) -> tuple[Tensor, Any, Any]:
    """Three ``(H, L, D)`` tensors as a batch of one row."""
    for which, tensor in (("key", key), ("value", value)):
        if not isinstance(tensor, (Tensor, Quantized)) or tensor.dim() != 3:
            got = f"its shape is {tuple(tensor.shape)}" if hasattr(tensor, "shape") else f"it is {tensor!r}"
            raise wrong(which, "must have 3 dimensions (H, L, D) like `query`", got, "Or give all three a batch.")
    key, value = (x.map(lambda t: t[None]) if isinstance(x, Quantized) else x[None] for x in (key, value))
    return query[None], key, value


def autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operands in the dtype of the autocast around the call, if there is one; float64 stays."""
    if query.dtype == torch.float64 or not torch.is_autocast_enabled(query.device.type):
        return query, key, value
    dtype = torch.get_autocast_dtype(query.device.type)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def prepare(query: Tensor, key: Tensor | Quantized, value: Tensor | Quantized, settings: Settings = _DEFAULTS) -> Call:
    """The call of three ``(B, H, L, D)`` tensors, every argument checked and the defaults filled in.

    Under autocast the tensors are converted to its dtype.

    Raises:
        ArgumentError: an argument breaks a rule.
    """
    pages = scales = dtype = None
    if isinstance(key, Quantized) or isinstance(value, Quantized):
        key, value, scales = _eight_bits(query, key, value, settings)
        dtype = None if scales is None else key.dtype
    if settings.layout is not None and getattr(settings.layout, "paged", False):
        key, value, settings, pages = _stored(query, key, value, settings)
    if scales is None and is_any_autocast_enabled():
        query, key, value = autocast(query, key, value)
    shapes = read_shapes(query, key, value, None if pages is None else pages.total, dtype)
    scale, dropout = settings.scale, settings.dropout
    if scale is None:
        scale = 1.0 / math.sqrt(shapes.D)
    elif type(scale) is not float or not -math.inf < scale < math.inf:
        scale = number("scale", scale, "must be a finite number", "None is 1 / sqrt(D).")
    if settings.layout is not None:
        _check_layout(settings.layout, query, shapes)
    if settings.pattern is not None:
        _check_pattern(settings.pattern, query, shapes)
    compare: Additive | None = None
    if settings.compare is not None:
        _check_operand("compare", settings.compare, Comparison, query, shapes)
        query, key, scale, compare = settings.compare.prepare(query, key)  # it has no scale
    scores = () if settings.scores == () else _check_scores(settings.scores, query, shapes)
    if settings.sink is not None:
        check_sink(settings.sink, query, shapes)
        if type(settings.sink) not in PLAIN:
            check_local("sink", settings.sink)
    if settings.observe is not None:
        _check_observe(settings.observe, query, shapes)
    call = Call(
        settings.sink, scores, compare, settings.layout, settings.pattern, scale, 0.0, 0, settings.observe,
        query, key, value, shapes, pages, scales,
    )  # fmt: skip
    if settings.seed is not None or type(dropout) is not float or dropout:
        return call.replace(**_chance(settings, query))
    return call


def _eight_bits(
    query: Tensor, key: Tensor | Quantized, value: Tensor | Quantized, settings: Settings
) -> tuple[Tensor, Tensor, Scales | None]:
    """Data and scales of keys and values of 8 bits; where not both are alike, or keys are prepared, dense tensors."""
    if not isinstance(query, Tensor) or query.dtype not in FLOATS:
        read_shapes(query, query, query)  # raises
    if (
        isinstance(key, Quantized)
        and isinstance(value, Quantized)
        and (key.dtype, key.rotated) == (value.dtype, value.rotated)
        and not why_dense(query, settings)
    ):
        return key.data, value.data, Scales(key.scale, value.scale, key.rotated)
    key, value = (x.dense(query.dtype) if isinstance(x, Quantized) else x for x in (key, value))
    return key, value, None


def why_dense(query: Tensor, settings: Settings) -> str:
    """Why keys and values of 8 bits are made dense before anything else; empty where they are not."""
    if settings.compare is not None:
        return f"{settings.compare!r} prepares the keys"
    if are_transforms_active() and in_vmap_alone():
        return "torch.vmap makes one call of all samples"
    return "autocast converts the query" if is_any_autocast_enabled() else ""


def _stored(
    query: Tensor, key: Tensor, value: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Settings, Pages | None]:
    """Key, value and settings of a call whose keys lie in pages, and the pages, checked; or, where every slot of every
    page would be converted, as rows.
    """
    layout = settings.layout
    assert layout is not None
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if not isinstance(tensor, Tensor) or tensor.is_nested or is_lazy(tensor) or tensor.dim() != 4:
            check_dense(name, tensor)
            read_shapes(query, key, value)  # raises, if that did not
        if tensor.layout is not torch.strided:
            check_dense(name, tensor)
    size = int(key.shape[2])  # a constant of what is recorded
    if not size:
        raise wrong("key", "must have pages of at least one key", f"its shape is {tuple(key.shape)}", "See Paged.")
    pages = layout.stored(size)
    pages.check(key.shape[0])
    if not why_converted(query, key, settings):
        return key, value, settings, pages
    sizes = [torch.empty(tensor.shape, device="meta") for tensor in (query, key, value)]
    read_shapes(sizes[0], sizes[1], sizes[2], pages.total)
    key, value = pages.gather("key", key), pages.gather("value", value)
    return key, value, settings.replace(layout=layout.in_rows), None


def why_converted(query: Tensor, key: Tensor | Quantized, settings: Settings) -> str:
    """Why keys in pages are gathered before anything else: they will be converted. Empty where they are not."""
    if settings.compare is not None:
        return f"{settings.compare!r} prepares the keys"
    if not isinstance(key, Tensor) or key.dtype in LARGEST:
        return ""
    if is_any_autocast_enabled() and autocast(query, key[:0], key[:0])[1].dtype is not key.dtype:
        return "autocast converts the keys"
    return ""


def run(call: Call, name: str | None) -> Result:
    """Compute a call by the backend of that name, or by the one that `limelight.backends.choose` takes for ``None``.

    The definition is differentiated by PyTorch itself while it is small; a long call of it is computed a chunk of
    queries at a time.

    Raises:
        ArgumentError: no backend has that name.
        BackendError: the backend cannot serve the call.
    """
    reason = why_autograd(call)
    check_eight_bits(call, reason)
    if reason:
        call = call.gathered().replace(autograd_reason=reason, logsumexp=True)
    backend = choose(call, name)
    if call.scales is not None and (reasons_against_eight_bits(backend, call) or why_overflowing(call)):
        call = call.dense()
        backend = choose(call, name)
    if call.pages is not None and reasons_against_pages(backend, call):
        call = call.gathered()
        backend = choose(call, name)
    if derivatives.whole(call) if backend is reference else not reason:
        return backend.forward(call)
    return derivatives.forward(call, backend)


def why_overflowing(call: Call) -> str:
    """Why keys of 8 bits are made dense for the values of the query: kernels multiply ``sum_d q_d data_d`` by the scale
    of the key, and the sum may exceed the range of floats although the score does not. Empty where it does not.
    """
    query, D = call.query, call.shapes.D
    readable_here = query.is_cpu and query.numel() and readable(query) and not is_transformed()
    if call.scales is None or query.dtype is torch.float16 or not readable_here:
        return ""
    spread = math.sqrt(D) if call.scales.rotated else 1.0
    growth = LARGEST[call.key.dtype] * D * spread * max(1.0, 2.0 * abs(call.scale))
    low, high = (float(end) for end in query.detach().aminmax())
    if max(-low, high) < torch.finfo(query.dtype).max / growth:  # as NaN is not
        return ""
    return "the sum of the query times the data may exceed the largest float"


def check_eight_bits(call: Call, reason: str) -> None:
    """Raise where a call goes through `limelight.operator.derivatives`, for a ``reason``, and its keys have 8 bits."""
    if reason and call.scales is not None:
        way_out = "Use key.dense() and value.dense(), or torch.no_grad()."
        raise wrong("key", "has no derivatives where it is Quantized, since rounding has none", reason, way_out)


def why_autograd(call: Call) -> str:
    """Why the call goes through `limelight.operator.derivatives`; empty when it need not."""
    if are_transforms_active():
        return "the call stands inside a transform of torch.func"
    if torch.is_grad_enabled() and (
        call.query.requires_grad
        or call.key.requires_grad
        or call.value.requires_grad
        or (call.scales is not None and (call.scales.key.requires_grad or call.scales.value.requires_grad))
        or ((call.sink is not None or call.scores or call.compare) and any(t.requires_grad for t in call.operands))
    ):
        return "a gradient is wanted"
    if in_forward_mode() and any(
        forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
        for tensor in (call.query, call.key, call.value, *call.operands)
    ):
        return "a forward-mode derivative is wanted"
    return ""


def _chance(settings: Settings, query: Tensor) -> dict[str, float | int | Tensor]:
    """``dropout`` and ``seed`` of a call, which draws its seed where it needs one and is given none."""
    seed = settings.seed
    if seed is not None:
        check_seed(seed)
        if isinstance(seed, Tensor):
            _check_numbers("seed", (seed,), query)
    dropout = check_dropout(settings.dropout)
    if not dropout:
        return {"dropout": 0.0, "seed": 0}
    if seed is None:
        # torch's generator, so that manual_seed and activation checkpointing have their usual effect
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")
    return {"dropout": dropout, "seed": seed}


def _check_layout(layout: Layout, query: Tensor, shapes: Shapes) -> None:
    if not isinstance(layout, Layout):
        raise _wrong_type("layout", layout, Layout, "limelight.forms.layouts")
    _check_numbers("layout", layout.tensors(), query)
    for sample in _samples(layout) if are_transforms_active() else (layout,):
        sample.check(shapes.B, shapes.Lq, shapes.Lk)


def _samples(layout: Layout) -> Iterator[Layout]:
    """The layout of each sample of the `torch.vmap` around a call: numbers can be read of these alone."""
    tensors = layout.tensors()
    levels = [vmap_level(t) for t in tensors]
    innermost = max(levels, default=0)
    if not innermost:
        yield layout
        return
    batches = [vmap_samples(t) if level == innermost else None for t, level in zip(tensors, levels, strict=True)]
    for n in range(max(len(batch) for batch in batches if batch is not None)):
        each = [t if batch is None else batch[n] for t, batch in zip(tensors, batches, strict=True)]
        yield from _samples(layout.with_tensors(iter(each)))


def _check_pattern(pattern: Pattern, query: Tensor, shapes: Shapes) -> None:
    if not isinstance(pattern, Pattern):
        raise _wrong_type("pattern", pattern, Pattern, "limelight.forms.patterns")
    _check_numbers("pattern", pattern.tensors(), query)
    pattern.check(*shapes.scores)


def _check_observe(observe: Observe, query: Tensor, shapes: Shapes) -> None:
    if not isinstance(observe, Observe):
        raise _wrong_type("observe", observe, Observe, "limelight")
    _check_numbers("observe", observe.tensors(), query)
    observe.check(shapes)


def _check_scores(scores: Sequence[ScoreRule], query: Tensor, shapes: Shapes) -> tuple[ScoreRule, ...]:
    if not isinstance(scores, (tuple, list)):
        way_out = _OF_TENSOR["scores"] if isinstance(scores, Tensor) else "Write (rule,) for a single one."
        raise wrong("scores", "must be a sequence of score rules", f"it is {describe(scores)}", way_out)
    for rule in scores:
        _check_operand("scores", rule, ScoreRule, query, shapes)
    return tuple(scores)


def _check_operand(
    name: str, operand: ScoreRule | Comparison, kind: type[Description], query: Tensor, shapes: Shapes
) -> None:
    if not isinstance(operand, kind):
        raise _wrong_type(name, operand, kind, "limelight.forms.scores")
    operand.check(shapes)
    for tensor in operand.tensors():
        if type(tensor) not in PLAIN:
            check_local(name, tensor)
        if tensor.device != query.device:
            got = f"{operand!r} lies on {tensor.device} and `query` on {query.device}"
            raise wrong(name, "must be on the device of `query`", got, "Move one with .to().")


def _check_numbers(name: str, tensors: tuple[Tensor, ...], query: Tensor) -> None:
    """Raise where one of the ``tensors``, which may lie on any device, has no numbers here although the query has."""
    for tensor in tensors:
        if type(tensor) not in PLAIN:
            check_local(name, tensor)
        if tensor.is_meta and not query.is_meta:
            got = f"{describe(tensor)} lies on {tensor.device} and `query` on {query.device}"
            raise wrong(name, "must hold numbers, as `query` does", got, "Make it on a device with memory.")


def _wrong_type(name: str, value: object, kind: type, where: str) -> ArgumentError:
    way_out = f"See {where}."
    if isinstance(value, type):
        way_out = "An instance is needed, such as Causal(), not the class."
    elif isinstance(value, Tensor):
        way_out = _OF_TENSOR.get(name, way_out)
    return wrong(name, f"must be a {kind.__name__}", f"it is {describe(value)}", way_out)


# What a tensor in the place of a description may have been meant for.
_OF_TENSOR = {
    "pattern": "A bool mask is limelight.Explicit(mask), a float one goes to scores=(limelight.Bias(mask),).",
    "layout": "A bool mask of the keys is limelight.KeyMask(mask), lengths are limelight.Padded or limelight.Packed.",
    "scores": "A tensor that is added to the scores is limelight.Bias(tensor).",
    "compare": "The vector of additive attention is limelight.Additive(vector).",
    "observe": "Features of the keys are limelight.Observe(features=tensor).",
}
