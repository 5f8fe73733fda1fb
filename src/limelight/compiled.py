"""The third door: attention under ``torch.compile`` and ``torch.export``.

A call without derivatives and observations becomes one operator, ``limelight::attention``, registered with
``torch.library``. Its pattern, layout and score rules travel as a *recipe*, a string that is a constant of the graph;
the numbers inside them travel beside it, so that a changing length compiles nothing anew, and the tensors inside them
are operands. At run time the recipe is read again, by a table of names, and the call takes the eager way.

A call that wants derivatives or observations is traced through the reference, as plain tensor operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import layouts, patterns, scores
from .backends import choose, reference
from .backends.contract import BackendError, Call, Result
from .descriptions import Description

_KINDS: dict[str, type[Description]] = {
    kind.__name__: kind
    for module in (layouts, patterns, scores)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Description) and kind.__module__ == module.__name__
}

MOST_SCORES = 256 * 2**20  # bytes of scores that a traced call may hold


def forward(call: Call) -> Result:
    """Compute a call while it is being traced.

    Raises:
        BackendError: the traced way would hold too many scores.
    """
    if call.traced or call.observe is not None:
        if reference.score_bytes(call) > MOST_SCORES:
            have = " x ".join(map(str, call.shapes.scores))
            raise BackendError(
                f"under torch.compile, a call with {call.traced or 'observations'} holds its scores, but B x Hq x Lq x "
                f"Lk = {have} would take {reference.score_bytes(call) / 2**20:,.0f} MiB, over the limit of "
                f"{MOST_SCORES // 2**20} MiB. Call it outside the compiled region (torch.compiler.disable), or on "
                "fewer rows."
            )
        return reference.forward(call)
    operands: list[Tensor] = []
    numbers: list[int] = []
    reals: list[float] = [call.scale]
    call.pattern = None if call.pattern is None else _without_rules(call.pattern, call)
    parts = (call.layout, call.pattern, call.compare, call.scores, call.sink, call.dropout, call.seed)
    recipe = _write(parts, operands, numbers, reals)
    output = torch.ops.limelight.attention(call.query, call.key, call.value, operands, numbers, reals, recipe)
    return Result(output)


def _without_rules(pattern: patterns.Pattern, call: Call) -> patterns.Pattern:
    """A function cannot travel in a graph: a `Rule` is traced to the mask that it gives."""
    match pattern:
        case patterns.Rule():
            B, Hq, Lq, Lk = call.shapes.scores
            coordinates = (call.layout or layouts.Aligned()).coordinates(B, Lq, Lk, call.query.device)
            return patterns.Explicit(pattern.allows(patterns.Where.of(coordinates, B, Hq)))
        case patterns.And(left, right) | patterns.Or(left, right):
            return type(pattern)(_without_rules(left, call), _without_rules(right, call))
        case patterns.Not(inner):
            return patterns.Not(_without_rules(inner, call))
    return pattern


# --- The recipe ---------------------------------------------------------------------------------------------------
#
# value := "None" | "True" | "False" | "i" index of a whole number | "t" index of an operand | "f" index
#        of a real number | "s" a word | "(" values ")" | Name "(" values ")"          each followed by one space


def _write(value: object, operands: list[Tensor], numbers: list[int], reals: list[float]) -> str:
    if value is None or isinstance(value, bool):
        return f"{value} "
    if isinstance(value, Tensor):
        operands.append(value)
        return f"t{len(operands) - 1} "
    if isinstance(value, (int, torch.SymInt)):
        numbers.append(value)  # type: ignore[arg-type]
        return f"i{len(numbers) - 1} "
    if isinstance(value, (float, torch.SymFloat)):
        reals.append(value)  # type: ignore[arg-type]
        return f"f{len(reals) - 1} "
    if isinstance(value, str):
        return f"s{value} "
    if isinstance(value, (tuple, list)):
        return "( " + "".join([_write(part, operands, numbers, reals) for part in value]) + ") "
    if isinstance(value, Description):
        return (
            f"{type(value).__name__}( "
            + "".join([_write(part, operands, numbers, reals) for part in value.parts()])
            + ") "
        )
    raise BackendError(
        f"{value!r} cannot travel in a compiled graph. Use limelight's own descriptions (T5Buckets), or call "
        "attention outside the compiled region (torch.compiler.disable)."
    )


def _read(
    words: Iterator[str], operands: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float]
) -> list[object]:
    values: list[object] = []
    for word in words:
        if word == ")":
            break
        if word == "(":
            values.append(tuple(_read(words, operands, numbers, reals)))
        elif word.endswith("("):
            values.append(_KINDS[word[:-1]](*_read(words, operands, numbers, reals)))
        elif word in ("None", "True", "False"):
            values.append({"None": None, "True": True, "False": False}[word])
        else:
            kind, rest = word[0], word[1:]
            values.append(rest if kind == "s" else {"i": numbers, "t": operands, "f": reals}[kind][int(rest)])
    return values


@torch.library.custom_op("limelight::attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    operands: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    recipe: str,
) -> Tensor:
    if forward_ad._current_level >= 0:
        # PyTorch would make the tangent zero without a word, and does not tell us whether there is one.
        raise NotImplementedError(
            "a graph compiled or exported without derivatives was run inside a forward-mode transform; "
            "call limelight.attention itself there, or compile the transform."
        )
    call = _call((query, key, value), operands, numbers, reals, recipe)
    return choose(call, None).forward(call).output


@_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    operands: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    recipe: str,
) -> Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))


def _call(
    tensors: tuple[Tensor, Tensor, Tensor],
    operands: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    recipe: str,
) -> Call:
    from .attention import prepare

    parts: Any = _read(iter(recipe.split()), operands, numbers, reals)[0]
    layout, pattern, compare, rules, sink, dropout, seed = parts
    return prepare(*tensors, layout, pattern, compare, rules, sink, reals[0], dropout, seed)


# An exported program meets gradients here, eagerly.


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, operands, *ctx.rest = inputs
    ctx.save_for_backward(query, key, value, *operands)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
    with torch.enable_grad():
        call = _call((leaves[0], leaves[1], leaves[2]), leaves[3:], *ctx.rest)
        output = choose(call, None).forward(call).output
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = iter(torch.autograd.grad(output, wanted, grad, allow_unused=True))
    found = [next(grads) if leaf.requires_grad else None for leaf in leaves]
    return *found[:3], found[3:], None, None, None


_attention.register_autograd(_backward, setup_context=_keep)
