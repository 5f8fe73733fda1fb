"""The compiled path: attention where something records operations (`limelight.tensors.tracing`).

``torch.compile``, ``torch.export``, ``torch.jit.trace``, ``make_fx``, fake and functional tensors see one operator,
``limelight::attention``, and for its gradients another, ``limelight::attention_backward``, both registered with
``torch.library`` when Limelight is imported. Pattern, layout and score rules travel as a *recipe*, a string that is a
constant of the graph; the numbers and tensors inside them travel beside it, so that a changing length does not
recompile. At run time the recipe is parsed, by a table of class names, and the call takes the direct or autograd path.

No list among their arguments is ever empty: PyTorch's autograd and AOTInductor treat an empty list as none.

A call that wants observations other than the logsumexp, or stands inside a transform of `torch.func`, is recorded
through the reference, as plain tensor operations.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import choose, reference
from ..backends.contract import BackendError, Call, Result
from ..forms import layouts, patterns, scores
from ..forms.coordinates import Where
from ..forms.descriptions import Description
from ..forms.observations import Observations
from ..forms.settings import Settings, SettingsButObserve
from ..tensors import tracing
from ..tensors.torch_internals import autograd_enabled_in_operator, in_forward_mode
from . import flops
from .calling import prepare, run
from .derivatives import VJP, Attention, observed

_KINDS: dict[str, type[Description]] = {
    kind.__name__: kind
    for module in (layouts, patterns, scores)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Description)
}

# The settings that travel in a graph; what is observed decides only whether a call can be recorded as one operator.
_SETTINGS = tuple(SettingsButObserve.__annotations__)

MAX_SCORE_BYTES = 256 * 2**20  # of a call that is recorded as plain operations


def is_one_operator(call: Call, backend: str | None) -> bool:
    """Whether a call can be the registered operator, and need not be computed by PyTorch's own operations."""
    return backend in (None, "auto") and not _why_not(call)


def forward(call: Call, backend: str | None, seen_by: str) -> Result:
    """Compute a call so that ``seen_by`` (`limelight.tensors.tracing.seen_by`) sees operations of PyTorch alone.

    Raises:
        BackendError: a backend is named, or the recorded operations would hold too many scores, or cannot be recorded.
    """
    if backend not in (None, "auto"):
        raise BackendError(f"a backend cannot be named under {seen_by}; the choice is made when the graph runs.")
    why = _why_not(call)
    if why:
        call = call.gathered()
        if reference.score_bytes(call) > MAX_SCORE_BYTES:
            have = " x ".join(map(str, call.shapes.scores))
            most = f"{MAX_SCORE_BYTES // 2**20} MiB"
            raise BackendError(
                f"under {seen_by}, a call with {why} holds its scores, but B x Hq x Lq x Lk = {have} would "
                f"take {reference.score_bytes(call) / 2**20:,.0f} MiB, over the limit of {most}. "
                "Call it outside of what is recorded (for torch.compile: torch.compiler.disable), or on fewer rows."
            )
        if tracing.is_functionalized():
            raise BackendError(
                f"under torch.func.functionalize, a call with {why} cannot be recorded: PyTorch has no rule there for "
                "the operations with derivatives of their own that it consists of. Leave functionalize out: make_fx "
                "and torch.compile record the call by themselves, and nothing in it changes its inputs."
            )
        return reference.forward(call)
    if call.pattern is not None:
        call = call.replace(pattern=call.pattern.as_data(lambda: _everywhere(call)))
    if seen_by is tracing.MODE:
        flops.register()
    written = _write_call(call)
    if call.pages is not None and torch.is_grad_enabled() and any(x.requires_grad for x in written[0]):
        written = _write_call(call.gathered())
    output, logsumexp = torch.ops.limelight.attention(*written)
    observe = call.observe
    if observe is None:
        return Result(output, logsumexp)
    seen = logsumexp if observe.heads is None else logsumexp[:, list(observe.heads)]
    return Result(output, logsumexp, Observations(logsumexp=seen if observe.logsumexp else None))


def _why_not(call: Call) -> str:
    """Why a call is not the registered operator, in words; empty where it is."""
    if call.observe is not None and observed.names(call.observe):
        return "observations"
    if in_forward_mode() or tracing.is_transformed():
        return "a transform of torch.func around it"
    return ""


def _write_call(call: Call) -> tuple[list[Tensor], list[int], list[float], str]:
    """Tensors, whole numbers, real numbers, recipe.

    The tensors are query, key, value, and those of the settings in their order (`Settings.tensors`). The first whole
    number counts them; the second counts the keys in pages, -1 where keys lie in rows.
    """
    tensors: list[Tensor] = [call.query, call.key, call.value]
    numbers: list[int] = [0, -1 if call.pages is None else call.pages.total]
    reals: list[float] = []
    recipe = _write([getattr(call, name) for name in _SETTINGS], tensors, numbers, reals)
    numbers[0] = len(tensors)
    return tensors, numbers, reals, recipe


def _everywhere(call: Call) -> Where:
    """Every query and key of a call."""
    B, Hq, Lq, Lk = call.shapes.scores
    return Where.of((call.layout or layouts.Aligned()).coordinates(B, Lq, Lk, call.query.device), B, Hq)


# --- The recipe ---------------------------------------------------------------------------------------------------
#
# value := "None" | "True" | "False" | "i" index of a whole number | "t" index of a tensor | "f" index
#        of a real number | "s" a word | "(" values ")" | Name "(" values ")"          each followed by one space


def _write(value: object, tensors: list[Tensor], numbers: list[int], reals: list[float]) -> str:
    if value is None or isinstance(value, bool):
        return f"{value} "
    if isinstance(value, Tensor):
        tensors.append(value)
        return f"t{len(tensors) - 1} "
    if isinstance(value, (int, torch.SymInt)):
        numbers.append(value)  # type: ignore[arg-type]
        return f"i{len(numbers) - 1} "
    if isinstance(value, (float, torch.SymFloat)):
        reals.append(value)  # type: ignore[arg-type]
        return f"f{len(reals) - 1} "
    if isinstance(value, str):
        return f"s{value} "
    if isinstance(value, (tuple, list)):
        return "( " + "".join([_write(part, tensors, numbers, reals) for part in value]) + ") "
    if isinstance(value, Description) and _KINDS.get(type(value).__name__) is type(value):
        return (
            f"{type(value).__name__}( "
            + "".join([_write(part, tensors, numbers, reals) for part in value.parts()])
            + ") "
        )
    raise BackendError(
        f"{value!r} cannot travel in a compiled graph. Use limelight's own descriptions (T5Buckets), or call "
        "attention outside the compiled region (torch.compiler.disable)."
    )


def _read(
    words: Iterator[str], tensors: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float]
) -> list[object]:
    values: list[object] = []
    for word in words:
        if word == ")":
            break
        if word == "(":
            values.append(tuple(_read(words, tensors, numbers, reals)))
        elif word.endswith("("):
            values.append(_KINDS[word[:-1]](*_read(words, tensors, numbers, reals)))
        elif word in ("None", "True", "False"):
            values.append({"None": None, "True": True, "False": False}[word])
        else:
            kind, rest = word[0], word[1:]
            values.append(rest if kind == "s" else {"i": numbers, "t": tensors, "f": reals}[kind][int(rest)])
    return values


def read_call(tensors: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float], recipe: str) -> Call:
    """The call that the arguments of the registered operator describe, checked again.

    Raises:
        NotImplementedError: the graph was recorded without derivatives and runs inside a forward-mode transform.
    """
    if in_forward_mode():
        # PyTorch would silently make the tangent zero, and does not report whether there is one.
        raise NotImplementedError(
            "a graph recorded without derivatives was run inside a forward-mode transform; "
            "call limelight.attention itself there, or compile the transform."
        )
    parts: Any = _read(iter(recipe.split()), tensors, numbers, reals)[0]
    query, key, value, *_ = tensors
    return prepare(query, key, value, Settings(**dict(zip(_SETTINGS, parts, strict=True))))


# PyTorch looks up the module that registers an operator. Unless it is in this cache, all modules are searched: 4 ms.
inspect.modulesbyfile.setdefault(__file__, __name__)


@torch.library.custom_op("limelight::attention", mutates_args=())
def _attention(
    tensors: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float], recipe: str
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of the call that `_write_call` wrote."""
    flops.register()
    call = read_call(tensors, numbers, reals, recipe)
    result = run(call.replace(logsumexp=True), None)
    assert result.logsumexp is not None
    return _with_strides(result.output, _empty_output(tensors, "meta")), result.logsumexp.contiguous()


@_attention.register_fake
def _(tensors: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float], recipe: str) -> tuple[Tensor, Tensor]:
    query = tensors[0]
    logsumexp = query.new_empty(query.shape[:3], dtype=reference.accumulator(query.dtype))
    return _empty_output(tensors, query.device), logsumexp


@torch.library.custom_op("limelight::attention_backward", mutates_args=())
def _attention_backward(
    tensors: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float], recipe: str, orders: str
) -> list[Tensor]:
    """Gradients, and gradients of gradients: the `limelight.operator.derivatives.VJP` that ``orders`` names.

    ``tensors`` are those of the call, its output and logsumexp, and the cotangents of each order.
    """
    own = tuple(tensors[: numbers[0]])
    call = read_call(own, numbers, reals, recipe)
    function: Any = Attention(call, choose(call, None), own)
    for outputs, inputs in _read_orders(orders):
        function = VJP(function, outputs, inputs)
    with autograd_enabled_in_operator():
        gradients = function.evaluate(tuple(tensors))
    promised = [torch.empty_like(tensors[n], device="meta") for n in inputs]
    return [_with_strides(gradient, like) for gradient, like in zip(gradients, promised, strict=True)]


@_attention_backward.register_fake
def _(
    tensors: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float], recipe: str, orders: str
) -> list[Tensor]:
    _, wanted = _read_orders(orders)[-1]
    return [torch.empty_like(tensors[n]) for n in wanted]


def _order(given: Sequence[int], wanted: Sequence[int]) -> str:
    """One order: which outputs have cotangents, which inputs get gradients."""
    return f"{' '.join(map(str, given))}>{' '.join(map(str, wanted))};"


def _read_orders(orders: str) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(tuple(map(int, part.split())) for part in order.split(">")) for order in orders.split(";")[:-1]]


def _empty_output(tensors: Sequence[Tensor], device: Any) -> Tensor:
    """Laid out as the native kernels do it: in the query's own order of memory."""
    query, _, value, *_ = tensors
    if query.shape[3] == value.shape[3]:
        return torch.empty_like(query, device=device)
    return query.new_empty((*query.shape[:3], value.shape[3]), device=device)


def _with_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with the strides that the fake implementation promised to the graph."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


# --- Derivatives of the two operators: each is the second one, with one order more -----------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    tensors, *ctx.rest = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    *tensors, output, logsumexp = ctx.saved_tensors
    tensors += [output.detach(), logsumexp.detach(), *grads]
    return _one_more(ctx, tensors, "", 2), None, None, None


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, *ctx.rest, ctx.orders = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_backward(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    return _one_more(ctx, [*ctx.saved_tensors, *grads], ctx.orders, len(grads)), None, None, None, None


def _one_more(ctx: Any, tensors: list[Tensor], orders: str, outputs: int) -> list[Tensor | None]:
    """The gradients of every tensor that the operator was given, where they are needed."""
    needed = ctx.needs_input_grad[0]
    wanted = [n for n, need in enumerate(needed) if need]
    orders += _order(range(outputs), wanted)
    gradients = torch.ops.limelight.attention_backward(tensors, *ctx.rest, orders)
    found: list[Tensor | None] = [None] * len(needed)
    for n, gradient in zip(wanted, gradients, strict=True):
        found[n] = gradient
    return found


_attention.register_autograd(_backward, setup_context=_keep)
_attention_backward.register_autograd(_backward_of_backward, setup_context=_keep_backward)
